#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# One page, rewritten by four threads under a lock without a barrier in between, over 16 channels, ends as its last
# version; also a page that lies in two stripes, one in a device, and one that a hole is punched over before.
. "$(dirname "$0")/functions.sh"
helper rewrite
rewrite=$helper

writes=$(scaled 100000 6000)
runs=$(scaled 4 1)

# rewrite FILE OFFSET: and compare, with what is there after a sync
rewrite() {
	limited "$rewrite" "src/$name/$1" "$2" 4096 "${3:-$writes}" 4 model
	tell "src/$name" sync
	limited cmp -n 4096 -i "$2:0" "dst/$name/$1" model || fail "not the last version of $1 at $2"
}

pair
for ((run = 0; run < runs; run++)); do
	name=page$run
	outgoing "$name" 16
	truncate -s 40M "src/$name/ram"
	tell "src/$name" start
	rewrite ram $((4096 * (100 + run)))
	rewrite ram $((7 * 1048576 - 1000)) $((writes / 5))
	: >"src/$name/device-state/dev"
	rewrite device-state/dev 100000 $((writes / 5))
	for i in {1..50}; do
		limited "$rewrite" "src/$name/ram" 500000 4096 20 4 model
		expect ok fallocate "src/$name/ram" 400000 1000000 punch
	done
	limited "$rewrite" "src/$name/ram" 700000 4096 20 4 model
	tell "src/$name" sync
	[ -z "$(limited tail -c +400001 "dst/$name/ram" | head -c 300000 | tr -d '\0' | head -c 1)" ] ||
		fail "something came back after a hole"
	limited cmp -n 4096 -i 700000:0 "dst/$name/ram" model || fail "a hole came after a later write"
	tell "src/$name" complete
	limited cmp -n 4096 -i 700000:0 "dst/$name/ram" model
	forget "src/$name" "dst/$name"
done

# The destination stores into pages that it has in another way than into new ones.
say "more of the last page, where no size was declared"
random image 100500
for block in 100500 5000 200; do
	outgoing grown 2
	expect ok write src/grown/zero-page-detection off
	tell src/grown start
	overwrite image src/grown/ram bs=100000 count=1
	tell src/grown sync
	overwrite image src/grown/ram bs=$block
	tell src/grown sync
	same image dst/grown/ram
	tell src/grown complete
	same image dst/grown/ram
	forget src/grown dst/grown
done
