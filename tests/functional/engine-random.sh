#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Random operations on the image and on devices, by several threads, at 1, 2, 7 and 16 channels, with compression and
# zero page detection on and off and some channels for devices alone: after each barrier the destination has what a
# model has, and the counters of both sides are equal and add up. See random-program.c.
#
# MIGFS_SEED repeats a run (exactly when there was one thread); MIGFS_STEPS is how long each of the runs is.
. "$(dirname "$0")/functions.sh"
helper random-program
limit=$((120 + ${MIGFS_STEPS:-0} / 20)) # seconds for one of the runs

# run CHANNELS DEVICE-CHANNELS [KEY=VALUE...]
run() {
	say "seed $seed: $*"
	limited "$helper" src dst "$uri" "run$seed" "$seed" "$steps" "channels=$1" "device-channels=$2" "size=$size" "${@:3}" ||
		fail "seed $seed: $*"
	seed=$((seed + 1))
}

pair
seed=${MIGFS_SEED:-$((RANDOM * 32768 + RANDOM))}
steps=${MIGFS_STEPS:-$(scaled 640 100)}
size=$(scaled 20971520 6000000)
declared=0
for compression in none zstd; do
	for detection in on off; do
		settings=("compression=$compression" "zero-page-detection=$detection")
		run 1 0 "${settings[@]}" threads=1 declared=$declared checksum=on
		run 2 $((seed % 2)) "${settings[@]}" threads=4 declared=$((1 - declared)) watch=1
		run 7 $((seed % 4)) "${settings[@]}" threads=8 declared=$declared
		run 16 $((seed % 3 * 5)) "${settings[@]}" threads=4 declared=$((1 - declared)) devices=12 checksum=on watch=1
		declared=$((1 - declared))
	done
done
