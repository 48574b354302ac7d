#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# kill -9 of one end of a migration over RDMA, at twenty points each: after a number of writes, in the middle of one, of a
# sync and of a complete, with writes and by reference. The other end fails and says why, or has completed and has all of
# it; it keeps nothing; and the next migration goes through.
. "$(dirname "$0")/functions.sh"
requires_root
rdma_device

size=$((3 << 20))
random image $size
head -c $((size / 4096 / 8)) /dev/zero | tr '\0' '\377' >all

start_dst() { migfs dst -o "listen=${uri:-$MIGFS_TEST_LISTEN}"; }
start_dst
uri=$(sed -n 's/^migfs: listening at //p' dst.log | head -n 1)
migfs src

# Where a guest runs this a fork takes long, so builtins do what they can.
begin() {
	mkdir src/vm
	echo "$uri" >src/vm/uri
	echo 2 >src/vm/channels
	truncate -s $size src/vm/ram
	[ "$1" = file ] || echo "$dir/image" >src/vm/ram-source
	echo start >src/vm/control
}

# send file|reference [COUNT]: all of the image, or so many pieces of it
send() {
	if [ "$1" = file ]; then
		dd if=image of=src/vm/ram bs=64K ${2:+count=$2} conv=notrunc status=none
	else
		dd if=all of=src/vm/dirty bs=${2:-96} count=1 conv=notrunc status=none
	fi
}

whole() {
	begin file
	send file
	tell src/vm complete
	same image dst/vm/ram
	forget src/vm dst/vm
}

# What an end has that lives: its own descriptors and threads, and what the kernel has of RDMA besides contexts.
kept() {
	local rdma
	rdma=$(rdma resource show)
	echo "$(count_fds "$1") descriptors, $(count_threads "$1") threads, ${rdma%% ctx*}"
}
keeps() { [ "$(kept "$1")" = "$2" ]; }

# Nothing forks between what goes on and the kill.
pause() { read -r -t "$1" <>nothing || true; }
mkfifo nothing

# killed VICTIM POINT
killed() {
	local victim=$1 point=$2 survivor how=file in_flight=
	[ "$victim" = src ] && survivor=dst || survivor=src
	((point % 2)) && how=reference
	say "$victim at point $point, $how"
	begin $how
	case $point in
	?)
		# So many pieces of 64 KiB, or so many pages for each bit of a byte, and nothing is written any more.
		send $how $((point == 0 ? 1 : point * 8))
		;;
	*)
		((point < 15)) || send $how
		case $point in
		1[0-4]) send $how 2>sending.log || true & ;;
		1[567]) "$attempt" write src/vm/control sync >answer 2>&1 & ;;
		*) "$attempt" write src/vm/control complete >answer 2>&1 & ;;
		esac
		in_flight=$!
		pause "0.0$((RANDOM % 10))$((RANDOM % 10))"
		;;
	esac
	kill_migfs "$victim"
	[ -z "$in_flight" ] || { eventually "what was going on has ended" gone $in_flight && wait $in_flight || true; }
	reaches $survivor/vm failed completed
	if [ "$state" = completed ]; then
		((point >= 18)) || fail "it has completed, and nobody has asked for that"
		[ $survivor = src ] || same image dst/vm/ram
	else
		read -r why <$survivor/vm/error && [ -n "$why" ] || fail "$survivor does not say why"
	fi
	fusermount3 -u "$victim"
	rmdir $survivor/vm
	eventually "$survivor has what it had, ${before[$survivor]}" keeps $survivor "${before[$survivor]}"
	if [ "$victim" = src ]; then migfs src; else start_dst; fi
}

for victim in src dst; do
	[ $victim = src ] && survivor=dst || survivor=src
	whole
	begin file
	kill_migfs $victim
	reaches $survivor/vm failed
	fusermount3 -u $victim
	forget $survivor/vm
	before[$survivor]=$(kept $survivor)
	say "$survivor: ${before[$survivor]}"
	if [ $victim = src ]; then migfs src; else start_dst; fi
	for ((point = 0; point < 20; point++)); do killed $victim $point; done
	whole
done
