#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# 64 devices, written at once while the image is written again and again, arrive identical, over channels that carry
# everything and with some for devices alone; and who follows a stream gets its bytes before the writer has closed it.
. "$(dirname "$0")/functions.sh"
limit=150

devices=64
bytes=$(scaled $((8 << 20)) $((1 << 20)))
image=$(scaled $((64 << 20)) $((8 << 20)))
random pool $((bytes + 4099 * devices > 5000000 ? bytes + 4099 * devices : 5000000))

# Device i is $bytes bytes of the pool from 4099 * i on, written in blocks of its own size.
write_device() {
	limited dd if=pool of="src/$1/device-state/vfio$2" bs=$((4096 * (1 + $2 % 7) + $2 * 37 % 1000)) skip=$((4099 * $2)) \
		count="$bytes" iflag=skip_bytes,count_bytes status=none
}

# channel_sum NAME KEY FIRST LAST: at the destination
channel_sum() {
	local c sum=0
	for ((c = $3; c <= $4; c++)); do sum=$((sum + $(status "dst/$1" "channel-$c-$2"))); done
	echo $sum
}

# copy NAME CHANNELS DEVICE-CHANNELS [SETTING VALUE]
copy() {
	local name=$1 channels=$2 dedicated=$3 i writers=() passes ram carried
	say "$*"
	random image "$image"
	outgoing "$name" "$channels"
	expect ok write "src/$name/device-channels" "$dedicated"
	[ $# -lt 4 ] || expect ok write "src/$name/$4" "$5"
	truncate -s "$image" "src/$name/ram"
	tell "src/$name" start

	# RAM passes go on until the last device is written.
	touch "$name.go-on"
	{
		passes=0
		while [ -e "$name.go-on" ] || [ $passes = 0 ]; do
			overwrite image "src/$name/ram" bs=1M
			tell "src/$name" "sync ram"
			passes=$((passes + 1))
		done
		echo $passes >"$name.passes"
	} &
	ram=$!
	for ((i = 0; i < devices; i++)); do
		write_device "$name" "$i" &
		writers+=($!)
	done
	for i in "${writers[@]}"; do wait "$i" || fail "$name: a device could not be written"; done
	rm "$name.go-on"
	wait "$ram" || fail "$name: the image could not be written"

	# Without a barrier: a reader gets to the end when all has arrived.
	for ((i = 0; i < devices; i++)); do
		limited cmp -i $((4099 * i)):0 -n "$bytes" pool "dst/$name/device-state/vfio$i" || fail "$name: device $i differs"
		[ "$(limited wc -c <"dst/$name/device-state/vfio$i")" = "$bytes" ] || fail "$name: device $i is longer"
	done
	tell "src/$name" complete
	same image "dst/$name/ram"
	for ((i = 0; i < devices; i++)); do
		limited cmp -i $((4099 * i)):0 -n "$bytes" pool "dst/$name/device-state/vfio$i" || fail "$name: device $i differs"
	done
	[ "$(status "dst/$name" devices)" = $devices ] || fail "$name: there are $(status "dst/$name" devices) devices"
	[ "$(status "dst/$name" device-bytes)" = $((devices * bytes)) ]
	[ "$(status "src/$name" device-bytes)" = $((devices * bytes)) ]
	# Each channel had its part of what it is for, and of nothing else.
	for ((i = 0; i < channels; i++)); do
		carried=$(channel_sum "$name" device-bytes $i $i)
		if [ "$dedicated" != 0 ] && [ $i -lt $((channels - dedicated)) ]; then
			[ "$carried" = 0 ] || fail "$name: channel $i carried devices"
		else
			[ "$carried" != 0 ] || fail "$name: channel $i carried no devices"
		fi
	done
	if [ "$dedicated" != 0 ]; then
		[ "$(channel_sum "$name" normal-bytes $((channels - dedicated)) $((channels - 1)))" = 0 ] ||
			fail "$name: RAM went over a channel for devices"
	fi
	[ "$(channel_sum "$name" normal-bytes 0 $((channels - 1)))" = $(($(cat "$name.passes") * image)) ]
	say "$name: $(cat "$name.passes") passes of RAM meanwhile"
	forget "src/$name" "dst/$name"
}

# follow NAME CHANNELS DEVICE-CHANNELS [SETTING VALUE]: a reader that follows the stream
follow() {
	local name=$1 reader
	say "$*"
	outgoing "$name" "$2"
	expect ok write "src/$name/device-channels" "$3"
	[ $# -lt 4 ] || expect ok write "src/$name/$4" "$5"
	tell "src/$name" start
	exec 7>"src/$name/device-state/stream"
	eventually "the device is there" test -e "dst/$name/device-state/stream"
	limited cat "dst/$name/device-state/stream" >followed 7>&- &
	reader=$!
	head -c 1000 pool >&7
	eventually "the first 1000 bytes have been followed" followed 1000
	head -c 3001000 pool | tail -c +1001 >&7
	eventually "3001000 bytes have been followed" followed 3001000
	limited cmp -n 3001000 pool followed || fail "$name: other bytes have been followed"
	# With the writer still there, there is no end, and no more to read.
	kill -0 $reader || fail "$name: the reader came to an end before the writer"
	expect EAGAIN read "dst/$name/device-state/stream" 3001000 1 nonblock
	head -c 5000000 pool | tail -c +3001001 >&7
	exec 7>&-
	wait $reader || fail "$name: the reader has failed"
	[ "$(wc -c <followed)" = 5000000 ] || fail "$name: $(wc -c <followed) bytes have been followed"
	limited cmp -n 5000000 pool followed || fail "$name: other bytes have been followed"

	# Opened once more: it goes on where it ended.
	exec 7>>"src/$name/device-state/stream"
	tell "src/$name" "sync device-state/stream"
	limited dd if="dst/$name/device-state/stream" bs=64K skip=5000000 iflag=skip_bytes status=none >followed 7>&- &
	reader=$!
	echo more >&7
	eventually "the rest has been followed" followed 5
	kill -0 $reader || fail "$name: the reader came to an end before the writer"
	exec 7>&-
	wait $reader || fail "$name: the reader has failed"
	[ "$(cat followed)" = more ]

	# A stream that breaks: its reader does not take that for the end.
	exec 7>>"src/$name/device-state/stream"
	tell "src/$name" "sync device-state/stream"
	limited dd if="dst/$name/device-state/stream" bs=64K skip=5000000 iflag=skip_bytes status=none >followed 2>followed.err 7>&- &
	reader=$!
	eventually "the reader is there" followed 5
	tell "src/$name" cancel
	wait $reader && fail "$name: a stream that broke was read to its end"
	[ -s followed.err ]
	exec 7>&- 2>/dev/null || true
	forget "src/$name"
	reaches "dst/$name" cancelled failed
	forget "dst/$name"
}
followed() { [ "$(wc -c <followed)" -ge "$1" ]; }

pair
follow follow-one 1 0
follow follow-shared 4 0 checksum on
follow follow-dedicated 4 1
follow follow-zstd 3 2 compression zstd
copy shared 4 0
copy dedicated 4 1
copy dedicated-most 7 5 compression zstd
copy one 1 0 checksum on
