#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# RAM by reference from huge pages: a file on hugetlbfs and a memfd. None is allocated for a look, and all are given back.
. "$(dirname "$0")/functions.sh"
requires_root
helper reference && reference=$helper

huge() { awk -v key="HugePages_$1:" '$1 == key { print $2 }' /proc/meminfo; }
hugetlbfs store 12 >why || skip "$(cat why)"

all() { head -c "$1" /dev/zero | tr '\0' '\377'; }
# let_go NAME: the source has nothing of it mapped, a moment after `complete`
not_mapped() { ! grep -q "$1" "/proc/${daemon[src]}/maps"; }
let_go() { eventually "$1 is not mapped" not_mapped "$1"; }

pair
random image 7000001
overwrite /dev/zero image bs=4096 seek=100 count=1000

# In the middle of a huge page, and at the end of one.
for size in 7000001 $((8 << 20)); do
	for setting in "checksum auto" "checksum on" "compression zstd" "zero-page-detection off" "verify on"; do
		say "a memfd, $size bytes, $setting"
		outgoing vm 3
		# shellcheck disable=SC2086
		expect ok write src/vm/${setting% *} ${setting#* }
		truncate -s $size src/vm/ram
		[ "$(limited "$reference" memfd image src/vm/ram-source huge)" = ok ]
		tell src/vm start
		all $(((size + 262143) / 262144 * 8)) >src/vm/dirty
		tell src/vm sync
		limited cmp -n 7000001 image dst/vm/ram
		all $(((size + 262143) / 262144 * 8)) >src/vm/dirty
		tell src/vm complete
		limited cmp -n 7000001 image dst/vm/ram
		[ "$(status dst/vm ram-size)" = $size ]
		let_go memfd:guest
		forget src/vm dst/vm
	done
done

say "a file that is mostly holes"
truncate -s $((4096 << 20)) store/ram # more than there is
outgoing vm 2
expect ok write src/vm/verify on
expect ok write src/vm/ram-source "$dir/store/ram"
truncate -s 64M src/vm/ram
tell src/vm start
all 2048 >src/vm/dirty
tell src/vm sync
[ "$(status src/vm duplicate)" = 16384 ]
[ "$(stat -c %b store/ram)" = 0 ] || fail "a look has allocated $(stat -c %b store/ram) blocks"
tell src/vm complete
[ "$(status src/vm verified-bytes)" = $((64 << 20)) ]
[ "$(stat -c %b store/ram)" = 0 ] || fail "verifying has allocated $(stat -c %b store/ram) blocks"
let_go store/ram
forget src/vm dst/vm
rm store/ram
unmount src
unmount dst
umount store
