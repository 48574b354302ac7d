#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# -o preallocate and -o hugepages=yes: the memory is there before the data, and what arrives is right all the same.
. "$(dirname "$0")/functions.sh"

size=$(scaled 64 8)
pair -o preallocate,hugepages=yes

blocks() { echo $(($(stat -c %b dst/vm/ram) * 512)); }
all_there() { [ "$(blocks)" -ge $((size << 20)) ]; }

for channels in 1 4; do
	random image "${size}M"
	outgoing vm $channels
	truncate -s "${size}M" src/vm/ram
	tell src/vm start
	eventually "the memory is there" all_there
	[ -z "$(tr -d '\0' <dst/vm/ram | head -c 1)" ] || fail "it is not zero"
	overwrite image src/vm/ram bs=1M
	tell src/vm sync
	same image dst/vm/ram
	# Zero pages, small writes, a hole, and a new version of everything.
	limited dd if=/dev/zero of=src/vm/ram bs=4k seek=100 count=300 conv=notrunc status=none
	dd if=/dev/zero of=image bs=4k seek=100 count=300 conv=notrunc status=none
	expect ok fallocate src/vm/ram 3000000 2000000 punch
	fallocate -p -o 3000000 -l 2000000 image
	tell src/vm sync
	same image dst/vm/ram
	random image "${size}M"
	overwrite image src/vm/ram bs=7k
	tell src/vm complete
	same image dst/vm/ram
	forget src/vm dst/vm
done

say "while it is being made ready"
outgoing vm 2
truncate -s "${size}M" src/vm/ram
tell src/vm start
overwrite image src/vm/ram bs=1M
tell src/vm complete
same image dst/vm/ram
forget src/vm dst/vm

say "cancelled while it is being made ready"
outgoing vm 2
truncate -s "${size}M" src/vm/ram
tell src/vm start
tell src/vm cancel
forget src/vm
unmount src
unmount dst
