#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# With one channel slowed down, a barrier that waits for it keeps no other channel from going on: what is written after
# the barrier to stripes of other channels is at the destination while the barrier still waits, and no receiver has
# idled at one.
. "$(dirname "$0")/functions.sh"

MB=$((1 << 20))

# Every send of a channel takes $delay ms, and there are some of them in the way of the barrier: small packets may travel together.
# A machine that is busy with other things may not get done what it has to meanwhile: then nothing is $shown.

# stripe FILE FROM TO: the stripe FROM of the image is written as stripe TO of the file
stripe() { limited dd if=image of="$1" bs=1M skip="$2" seek="$3" count=1 conv=notrunc status=none; }

# arrived FILE FROM TO
arrived() { limited cmp -s -n $MB -i $(($2 * MB)):$(($3 * MB)) image "$1"; }

# past NAME CHANNELS SLOW [SETTING VALUE]...: the connection SLOW (0 is the main one) is slow
past() {
	for delay in 2000 4000 8000; do
		go_past "$@"
		[ $shown = no ] || return 0
		say "    nothing was shown"
	done
	fail "$1: each barrier was over before"
}
go_past() {
	local name=$1 channels=$2 slow=$(($3 - 1)) round waiting others=() c
	# A few of them will do: the test must be done before the barrier is.
	for ((c = 0; c < channels; c++)); do
		[ $c = $slow ] || [ $((c % ((channels + 3) / 4))) != 0 ] || others+=("$c")
	done
	[ ${#others[@]} -gt 0 ] || others=($((1 - slow)))
	say "$*"
	outgoing "$name" "$channels" "faulty:delay=$delay+only=$3:$uri"
	for ((i = 4; i < $#; i += 2)); do expect ok write "src/$name/${!i}" "${@:$((i + 1)):1}"; done
	truncate -s $((64 * MB)) "src/$name/ram"
	tell "src/$name" start

	# Stripe s is at home on channel s % channels. Each write(2) to the slow one is a send.
	for ((round = 0; round < 6; round++)); do
		limited dd if=image of="src/$name/ram" bs=64K count=1 skip=$round seek=$((slow * 16 + 2 * round)) conv=notrunc status=none &
	done
	wait_for_jobs
	limited "$attempt" write "src/$name/control" sync >synced &
	waiting=$!

	# The barrier waits. Others go on, past it, and past further barriers of their own.
	for ((round = 1; round <= 3; round++)); do
		for c in "${others[@]}"; do
			stripe "src/$name/ram" $((round * 4 + c % 4)) $((round * channels + c))
		done
		for c in "${others[@]}"; do
			eventually "$name: round $round has arrived on channel $c" arrived "dst/$name/ram" $((round * 4 + c % 4)) \
				$((round * channels + c))
			[ "$(status "dst/$name" "channel-$c-normal-bytes")" = $((round * MB)) ] ||
				fail "$name: channel $c has $(status "dst/$name" "channel-$c-normal-bytes") bytes after round $round"
			[ "$(status "dst/$name" "channel-$c-bytes")" -ge $((round * MB)) ]
		done
		limited head -c 100000 image >"src/$name/device-state/dev$round"
	done
	shown=no
	[ -s synced ] || ! kill -0 $waiting 2>/dev/null ||
		[ "$(status "dst/$name" "channel-$slow-normal-bytes")" -ge $((6 * 65536)) ] || shown=yes
	wait $waiting
	[ "$(cat synced)" = ok ] || fail "$name: sync says $(cat synced)"
	[ "$(status "dst/$name" "channel-$slow-normal-bytes")" = $((6 * 65536)) ] || fail "$name: sync did not wait for the slow channel"
	for ((round = 0; round < 6; round++)); do
		limited cmp -n 65536 -i $((65536 * round)):$((slow * MB + 131072 * round)) image "dst/$name/ram" ||
			fail "$name: sync did not wait for the slow channel"
	done
	[ "$(status "dst/$name" barrier-idle-time)" = 0 ] || fail "$name: channels idled for $(status "dst/$name" barrier-idle-time) ms"
	tell "src/$name" complete
	[ "$(status "dst/$name" barrier-idle-time)" = 0 ] || fail "$name: channels idled for $(status "dst/$name" barrier-idle-time) ms"
	forget "src/$name" "dst/$name"
}
wait_for_jobs() { local job; for job in $(jobs -p); do [ "$job" = "${daemon[src]}" ] || [ "$job" = "${daemon[dst]}" ] || wait "$job"; done; }

# many NAME CHANNELS: barriers in great number, while data flows; nobody idles
many() {
	local i
	say "$*"
	outgoing "$1" "$2"
	truncate -s $((64 * MB)) "src/$1/ram"
	tell "src/$1" start
	for i in {1..30}; do
		overwrite image "src/$1/ram" bs=1M count=4 seek=$((i % 5)) &
		overwrite image "src/$1/ram" bs=64K count=40 seek=$((480 + i)) &
		tell "src/$1" sync
		wait_for_jobs
	done
	tell "src/$1" complete
	[ "$(status "src/$1" dirty-sync-count)" = 30 ]
	[ "$(status "dst/$1" barrier-idle-time)" = 0 ] || fail "$1: channels idled for $(status "dst/$1" barrier-idle-time) ms"
	forget "src/$1" "dst/$1"
}

pair
random image $((24 * MB))
past two-first 2 1
past two-second 2 2
past seven 7 4 checksum on
past sixteen 16 16
past zstd 3 2 compression zstd # random data: it goes as it is
many many-one 1
many many 7
