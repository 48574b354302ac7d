#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The addresses that a destination can listen at, several at once, and how a source reaches them.
. "$(dirname "$0")/functions.sh"

# address NAME N: the Nth address that the daemon of a mount listens at
address() { sed -n 's/.*listening at //p' "$1.log" | sed -n "$2p"; }
move() {
	say "$1"
	outgoing vm 3 "$1"
	truncate -s 3M src/vm/ram
	tell src/vm start
	overwrite image src/vm/ram bs=100K
	tell src/vm complete
	same image dst/vm/ram
	forget src/vm dst/vm
}

random image 3M
migfs src
migfs dst -o "listen=tcp:127.0.0.1:0,unix:$dir/one,unix:two"
tcp=$(address dst 1)
[[ $tcp =~ ^tcp:127.0.0.1:[1-9][0-9]*$ ]] || fail "it listens at $tcp"
move "$tcp"
move "tcp:localhost:${tcp##*:}"
move "unix:$dir/one"
move "unix:$dir/two"
[ "$(stat -c %a one)" = 600 ] || fail "others may write to the socket"
say "an address that is taken"
mkdir third
for taken in "$tcp" "unix:$dir/one"; do
	status=0
	limited "$MIGFS" -f -o "listen=$taken" third 2>third.err || status=$?
	[ $status = 1 ] || fail "listening at $taken again: status $status"
	grep -q 'cannot listen' third.err
done
rmdir third
unmount dst
[ ! -e one ] || fail "the socket is left"

say "a socket that a crash has left, and a file that is none"
migfs dst -o "listen=unix:$dir/one"
kill_migfs dst
fusermount3 -u dst
[ -e one ]
migfs dst -o "listen=unix:$dir/one"
move "unix:$dir/one"
unmount dst
echo file >one
status=0
limited "$MIGFS" -f -o "listen=unix:$dir/one" dst 2>third.err || status=$?
[ $status = 1 ] || fail "listening at a file: status $status"
[ "$(cat one)" = file ]

if [ -e /proc/net/if_inet6 ] && grep -q ' lo$' /proc/net/if_inet6; then
	migfs dst -o "listen=tcp:[::1]:0"
	tcp=$(address dst 6)
	[[ $tcp =~ ^tcp:\[::1\]:[1-9][0-9]*$ ]] || fail "it listens at $tcp"
	move "$tcp"
	unmount dst
	migfs dst -o "listen=tcp:localhost:0"
	tcp=$(address dst 7)
	move "$tcp"
	# All addresses of the name.
	for host in $(getent ahosts localhost | awk '{ print $1 }' | sort -u); do
		[[ $host != *:* ]] || host="[$host]"
		move "tcp:$host:${tcp##*:}"
	done
else
	say "(no IPv6 here)"
fi
