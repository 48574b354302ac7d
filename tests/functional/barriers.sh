#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# fsync, fdatasync and sync return when the destination has applied what was written before; flush is local, and
# returns at once when nothing is in flight; writers that go on do not keep a barrier from being passed.
. "$(dirname "$0")/functions.sh"

pair -o timeout=100
unmount src
migfs src -o timeout=100
random image 10M
outgoing vm 5
truncate -s 10M src/vm/ram
tell src/vm start

# changes N: writes something new, and compares without a further barrier
arrived() { cmp -n "$1" -i "$2:0" "$3" piece || fail "what was written before ${*:4} is not there"; }
for ((i = 0; i < $(scaled 20 5); i++)); do
	offset=$((i * 400000))
	head -c 1500000 /dev/urandom >piece
	limited dd if=piece of=src/vm/ram oflag=seek_bytes seek=$offset bs=200K conv=notrunc,fsync status=none
	arrived 1500000 $offset dst/vm/ram fsync
	head -c 1500000 /dev/urandom >piece
	limited dd if=piece of=src/vm/ram oflag=seek_bytes seek=$offset bs=1M conv=notrunc,fdatasync status=none
	arrived 1500000 $offset dst/vm/ram fdatasync
	head -c 1500000 /dev/urandom >piece
	limited dd if=piece of=src/vm/ram oflag=seek_bytes seek=$offset bs=1M conv=notrunc status=none
	tell src/vm 'sync ram'
	arrived 1500000 $offset dst/vm/ram sync ram
	limited dd if=piece of=src/vm/device-state/dev$i bs=300000 conv=fsync status=none
	arrived 1500000 0 dst/vm/device-state/dev$i fsync of a device
	head -c 1400000 /dev/urandom >piece
	limited cp piece src/vm/device-state/dev$i
	tell src/vm "sync device-state/dev$i"
	arrived 1400000 0 dst/vm/device-state/dev$i sync of a device
	tell src/vm flush
	[ "$(status src/vm remaining)" = 0 ] || fail "something remains after flush"
done
rounds=$(status src/vm dirty-sync-count)
tell src/vm sync
[ "$(status src/vm dirty-sync-count)" = $((rounds + 1)) ] || fail "a sync is no round"

say "a destination that does nothing"
tell src/vm sync
stop_migfs dst
for command in flush 'flush ram' 'flush device-state/dev0'; do tell src/vm "$command"; done
command_in_background src/vm sync
eventually "sync waits" in_write "$command"
expect ok pwrite src/vm/ram 0 4096
tell src/vm flush
continue_migfs dst
command_says ok

say "writers that go on"
touch running
for i in 1 2; do
	while [ -e running ]; do limited dd if=image of=src/vm/ram bs=256K conv=notrunc status=none; done &
	writers="${writers:-} $!"
done
for ((i = 0; i < $(scaled 50 10); i++)); do
	tell src/vm sync
	tell src/vm flush
	expect ok fsync src/vm/ram
done
rm running
for writer in $writers; do wait "$writer"; done
tell src/vm complete
same image dst/vm/ram
expect ok fsync dst/vm/ram
