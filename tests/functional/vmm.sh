#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# examples/vmm.c, built as its comment says: the guest's RAM arrives as it is. And examples/share-memory runs.
. "$(dirname "$0")/functions.sh"
requires cc

cp "$root/examples/vmm.c" .
cc -O2 -o vmm vmm.c -pthread
pair
for channels in 1 4; do
	outgoing vm $channels
	limited ./vmm src/vm dst/vm/ram >said || fail "vmm says $(cat said), and error $(cat src/vm/error)"
	sed 's/^/    /' said
	grep -q '^last round: ' said
	grep -q '^completed' said
	grep -q '^identical$' said
	[ "$(status dst/vm status)" = completed ]
	[ "$(status src/vm dirty-sync-count)" = 5 ]
	# Half of the RAM was never touched.
	[ "$(status src/vm duplicate)" -ge 8192 ]
	[ -s dst/vm/device-state/cpu ]
	forget src/vm dst/vm
done
say "without a uri"
expect ok mkdir src/vm
not limited ./vmm src/vm 2>said
grep -q 'vmm: control: Invalid argument' said
forget src/vm
not limited ./vmm src/vm 2>said
not limited ./vmm 2>said
unmount src
unmount dst
MIGFS=$MIGFS limited "$root/examples/share-memory" >said 2>&1 || fail "share-memory: $(cat said)"
grep -q '^identical$' said
