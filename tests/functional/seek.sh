#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# SEEK_DATA and SEEK_HOLE at the destination tell what is held from what is not; tools that copy sparsely see it.
. "$(dirname "$0")/functions.sh"

pair
outgoing vm 3
ram=dst/vm/ram
truncate -s 8M src/vm/ram
tell src/vm start
M=$((1 << 20))
random data 3000000
write() { limited dd if=data of=src/vm/ram oflag=seek_bytes seek="$1" bs="$2" count=1 conv=notrunc status=none; }

tell src/vm sync
expect ENXIO seek $ram data 0
expect 0 seek $ram hole 0
write $((2 * M)) $M
write $((6 * M + 4096)) 4096
tell src/vm sync
for ((round = 0; round < 2; round++)); do
	expect $((2 * M)) seek $ram data 0
	expect $((2 * M)) seek $ram data $((2 * M))
	expect $((2 * M + 5)) seek $ram data $((2 * M + 5))
	expect $((3 * M)) seek $ram hole $((2 * M))
	expect $((3 * M)) seek $ram hole $((3 * M - 1))
	expect $((3 * M + 1)) seek $ram hole $((3 * M + 1))
	expect $((6 * M + 4096)) seek $ram data $((3 * M))
	expect $((6 * M + 8192)) seek $ram hole $((6 * M + 4096))
	expect ENXIO seek $ram data $((6 * M + 8192))
	expect $((7 * M)) seek $ram hole $((7 * M))
	expect ENXIO seek $ram data $((8 * M))
	expect ENXIO seek $ram hole $((8 * M))
	limited cp --sparse=auto $ram copy
	cmp copy $ram
	[ $round = 0 ] || continue
	say "zeros and holes"
	# Zero pages where nothing is change nothing, nor does a hole in a hole.
	limited dd if=/dev/zero of=src/vm/ram bs=1M seek=4 count=1 conv=notrunc status=none
	expect ok fallocate src/vm/ram $((5 * M)) 100000 punch
	tell src/vm sync
done
expect ok fallocate src/vm/ram $((2 * M + 100)) $((M / 2)) punch
tell src/vm sync
expect $((2 * M)) seek $ram data 0
expect $((2 * M + 4096)) seek $ram hole $((2 * M))
expect $((2 * M + M / 2)) seek $ram data $((2 * M + 4096))
tell src/vm complete
expect $((2 * M)) seek $ram data 0
expect $((2 * M + 4096)) seek $ram hole $((2 * M))
limited cp --sparse=auto $ram copy
cmp copy $ram
