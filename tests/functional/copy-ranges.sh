#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Eight processes write random, unaligned, overlapping ranges, punch holes and sync, over 1, 2, 7 and 16 channels, with
# six devices written at the same time. See ranges.c for how it is known what must arrive.
. "$(dirname "$0")/functions.sh"
helper ranges

# copy NAME CHANNELS [truncate]
copy() {
	say "$2 channels ${3:-}, seed $seed"
	outgoing "$1" "$2"
	truncate -s "$size" "src/$1/ram"
	tell "src/$1" start
	write_devices "src/$1"
	limited "$helper" "src/$1/ram" model "$size" 8 "$operations" "$seed" "${@:3}" || fail "the writers failed"
	await_devices
	tell "src/$1" sync
	same model "dst/$1/ram"
	compare_devices "dst/$1"
	tell "src/$1" complete
	reaches "src/$1" completed
	reaches "dst/$1" completed
	same model "dst/$1/ram"
	compare_devices "dst/$1"
	forget "src/$1" "dst/$1"
	seed=$((seed + 1))
}

pair
make_devices
size=$(scaled 50000011 10000011)
operations=$(scaled 400 60)
seed=$((RANDOM * 32768 + RANDOM))
for channels in 1 2 7 16; do
	copy "write$channels" $channels
	copy "truncate$channels" $channels truncate
done
