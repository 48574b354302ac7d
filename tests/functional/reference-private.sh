#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# RAM by reference whose VMM maps the file privately: what the guest writes is not in the file, and `status` warns.
. "$(dirname "$0")/functions.sh"

helper maps && maps=$helper
pair
random image 1048576

# vmm HOW: a process that maps the image; sets $vmm
vmm() {
	local said
	rm -f vmm.in vmm.out
	mkfifo vmm.in vmm.out
	"$maps" image "$1" <vmm.in >vmm.out &
	vmm=$!
	exec {keep}>vmm.in {said_by}<vmm.out
	read -r said <&"$said_by"
	[ "$said" = mapped ] || fail "the VMM says $said"
}
vmm_ends() {
	exec {keep}>&- {said_by}<&-
	wait "$vmm"
}

say "shared: nothing to warn of"
vmm shared
outgoing vm
expect ok write src/vm/ram-source "$dir/image"
tell src/vm start
[ -z "$(status src/vm warning)" ] || fail "a warning: $(status src/vm warning)"
tell src/vm cancel
forget src/vm
vmm_ends

say "private"
vmm private
outgoing vm
[ -z "$(status src/vm warning)" ] || fail "a warning of nothing"
expect ok write src/vm/ram-source "$dir/image"
[[ $(status src/vm warning) =~ ^process\ $vmm\ has\ the\ ram-source\ mapped\ privately ]] || fail "status warns: $(status src/vm warning)"
grep -q '"warning": "process' src/vm/status.json || fail "status.json does not warn"
[ -z "$(limited cat src/vm/error)" ] || fail "a warning is no error"
expect ok write src/vm/ram-source none
[ -z "$(status src/vm warning)" ] || fail "a warning of what was taken back"

say "private, and mapped after it was named"
vmm_ends
expect ok write src/vm/ram-source "$dir/image"
[ -z "$(status src/vm warning)" ] || fail "a warning of a process that has ended"
vmm private
tell src/vm start
[[ $(status src/vm warning) =~ ^process\ $vmm\ has ]] || fail "status warns: $(status src/vm warning)"
grep -q "vm: process $vmm has" src.log || fail "the log does not warn"
tell src/vm cancel
vmm_ends
