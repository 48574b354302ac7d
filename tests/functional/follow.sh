#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A device's stream at the destination: who reads it before it ends gets what is there and waits for more; it ends at
# its writers' last close and no earlier, and not while it is empty; it can be opened again and appended to, or begun
# anew.
. "$(dirname "$0")/functions.sh"

pair
outgoing vm 3
src=src/vm/device-state/dev dst=dst/vm/device-state/dev
tell src/vm start
random part1 3000000
random part2 1234567
cat part1 part2 >whole

stream=
follow() {
	: >followed # what was read the last time is not what this one has read
	# It must not have the writer's descriptor.
	limited cat $dst >followed {stream}>&- &
	follower=$!
}
has_read() { [ "$(stat -c %s followed)" = "$1" ]; }
read_all() {
	wait $follower || fail "the reader has failed"
	same "$1" followed
}

say "before it ends"
exec {stream}>$src
eventually "the device appears" test -e $dst
expect EAGAIN read $dst 0 1 nonblock
follow
limited dd if=part1 bs=77777 status=none >&"$stream"
eventually "the first part is read" has_read 3000000
expect EAGAIN read $dst 3000000 1 nonblock
[ "$(attempt read $dst 2999999 10 nonblock && echo -n "$got" | wc -c)" -le 1 ]

say "what closes a copy of the descriptor does not end it"
(exec true) >&"$stream"
(:) >&"$stream"
limited dd if=/dev/null status=none >&"$stream"
tell src/vm sync
expect EAGAIN read $dst 3000000 1 nonblock
limited cat part2 >&"$stream"
eventually "the second part is read" has_read 4234567
gone $follower && fail "the reader has ended before the stream"
exec {stream}>&-
read_all whole
tell src/vm sync
expect end read $dst 4234567 1
expect end read $dst 4234567 1 nonblock

say "and then more"
echo more >>whole
exec {stream}>>$src
waits() { attempt read $dst 4234567 1 nonblock && [ "$got" = EAGAIN ]; }
eventually "the stream goes on" waits
follow
eventually "the old part is read" has_read 4234567
echo more >&"$stream"
exec {stream}>&-
read_all whole

say "two writers"
exec {one}>>$src {two}>>$src
exec {one}>&-
tell src/vm sync
expect EAGAIN read $dst 4234572 1 nonblock
exec {two}>&-
tell src/vm sync
expect end read $dst 4234572 1

say "anew"
echo shorter >$src
tell src/vm sync
[ "$(limited cat $dst)" = shorter ]
random part1 2500000
limited cp part1 $src
tell src/vm sync
same part1 $dst

say "closed without a byte"
# As scripts do it, so that a reader finds the device; and once more, over what was there before.
for round in 1 2 3; do
	: >$src
	tell src/vm sync
	expect EAGAIN read $dst 0 1 nonblock
	follow
	touch $src
	limited dd if=/dev/null of=$src status=none
	tell src/vm sync
	gone $follower && fail "the reader has ended before the stream has begun"
	# QEMU's exec:cat, and what a daemon does that forks before it writes.
	sh -c "(exec true); exec cat >$src" <part1
	read_all part1
	truncate -s $((round * 1000000)) $src
	tell src/vm sync
	expect end read $dst $((round * 1000000)) 1 nonblock
done

say "a reader that is interrupted"
limited cp part1 $src
exec {stream}>>$src
tell src/vm sync
for signal in INT TERM KILL; do
	: >followed
	env --default-signal=INT cat $dst >followed {stream}>&- &
	follower=$!
	eventually "all is read" has_read 2500000
	kill -$signal $follower
	eventually "the reader has ended" gone $follower
	not wait $follower 2>/dev/null
done

say "out of order"
limited dd if=part2 of=$src bs=1000 seek=2501 conv=notrunc status=none
tell src/vm sync
expect EAGAIN read $dst 2500000 1 nonblock
limited dd if=part2 of=$src bs=1000 seek=2500 count=1 conv=notrunc status=none
exec {stream}>&-
tell src/vm sync
(cat part1 && head -c 1000 part2 && cat part2) | cmp - $dst

say "complete ends it"
exec {stream}>>$src
follow
tell src/vm complete
exec {stream}>&-
wait $follower
same $dst followed
expect EROFS open $dst wronly
