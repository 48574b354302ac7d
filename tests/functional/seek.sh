#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# SEEK_DATA and SEEK_HOLE at the destination tell what is held from what is not, of the image and of devices; tools that
# copy sparsely see it.
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

say "a device"
outgoing sparse 3
tell src/sparse start
dev=dst/sparse/device-state/memory-ranges
# As a VMM writes a snapshot: 7 of 32 MiB.
exec {stream}>src/sparse/device-state/memory-ranges
limited dd if=data of=src/sparse/device-state/memory-ranges oflag=seek_bytes seek=$((4 * M)) bs=$M count=2 conv=notrunc status=none
tell src/sparse sync
# What may still come is no hole.
expect 0 seek $dev data 0
expect $((6 * M)) seek $dev hole 0
truncate -s 32M src/sparse/device-state/memory-ranges
for at in 0 11 12 30 31; do
	limited dd if=data of=src/sparse/device-state/memory-ranges oflag=seek_bytes seek=$((at * M)) bs=$M count=1 conv=notrunc status=none
done
exec {stream}>&-
tell src/sparse sync
check_device() {
	expect 0 seek $dev data 0
	expect $M seek $dev hole 0
	expect $((4 * M)) seek $dev data $M
	expect $((6 * M)) seek $dev hole $((4 * M))
	expect $((11 * M)) seek $dev data $((6 * M))
	expect $((13 * M)) seek $dev hole $((11 * M))
	expect $((20 * M)) seek $dev hole $((20 * M))
	expect $((30 * M)) seek $dev data $((13 * M))
	expect $((32 * M)) seek $dev hole $((30 * M))
	expect ENXIO seek $dev data $((32 * M))
	[ "$(stat -c %b $dev)" = $((7 * M / 512)) ] || fail "$(stat -c %b $dev) blocks are held"
	limited cp --sparse=auto $dev copy
	cmp copy $dev
	[ "$(stat -c %b copy)" -le $((9 * M / 512)) ] || fail "the copy has $(stat -c %b copy) blocks"
}
check_device
tell src/sparse complete
check_device
