#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# More readers wait than there can be workers: nobody else notices, each can be killed, and all are answered. There is a
# limit to how many wait, and whoever comes then is told so at once.
. "$(dirname "$0")/functions.sh"
requires_root
requires setpriv
helper crowd
crowd=$helper
as_user=(setpriv --reuid=64321 --regid=64322 --clear-groups)
readers=2100

uri=unix:$dir/socket
migfs dst -o "listen=$uri,allow_other"
migfs src -o allow_other
chmod 755 "$dir"

# crowd_in_background COUNT OPERATION FILE: sets $crowd_pid; what it says goes to the file crowd.said
crowd_in_background() {
	: >crowd.said # what it said the last time would be taken for its word
	"${as_user[@]}" "$crowd" "$@" <&0 >crowd.said 2>&1 &
	crowd_pid=$!
}
# all_wait COUNT: so many of its threads are blocked in pread(2), or in $1's call
waiting() { { cat /proc/"$crowd_pid"/task/*/syscall 2>/dev/null || true; } | awk '$1 == 17 || $1 == 67 { n++ } END { print n + 0 }'; }
all_wait() { [ "$(waiting)" = "$1" ]; }
crowd_says() {
	eventually "the crowd has ended" gone "$crowd_pid"
	wait "$crowd_pid" || fail "the crowd says $(cat crowd.said)"
	[ "$(cat crowd.said)" = "$1" ] || fail "the crowd says $(cat crowd.said), not $1"
}
workers() { { cat /proc/"${daemon[$1]}"/task/*/comm 2>/dev/null || true; } | grep -c fuse-worker || true; }

number=0
# A migration with a writer that waits for nobody.
nobody_else_notices() { # SIDE
	local name=other$((++number)) other
	say "nobody else notices: $1"
	[ "$(workers "$1")" -lt 100 ] || fail "$(workers "$1") workers are busy"
	outgoing $name
	tell src/$name start
	eventually "$name is there" test -e dst/$name
	expect ok pwrite src/$name/ram 0 100000
	limited sh -c 'printf 1234 >"$1"' sh src/$name/device-state/dev
	tell src/$name sync
	expect 1234 read dst/$name/device-state/dev 0 4
	[ "$(status src/$name status)" = active ] && [ "$(status dst/$name status)" = active ]
	tell $1/$name cancel
	reaches src/$name cancelled failed
	reaches dst/$name cancelled failed
	forget src/$name dst/$name
	other=$(waiting)
	[ "$other" = "${2:-$readers}" ] || fail "$other still wait"
}

outgoing vm 2
tell src/vm start
exec {stream}>src/vm/device-state/dev
eventually "the device is there" test -e dst/vm/device-state/dev
# Whoever opened the file pays; the reading is the user's.
exec {frontier}<dst/vm/device-state/dev

say "at the frontier of a device"
crowd_in_background $readers read - <&$frontier
eventually "all of them wait" all_wait $readers
nobody_else_notices dst
say "killed"
kill -9 "$crowd_pid"
eventually "all of them have ended" gone "$crowd_pid"
not wait "$crowd_pid" 2>/dev/null

say "answered when there is data"
crowd_in_background $readers read - <&$frontier
eventually "all of them wait" all_wait $readers
echo data >&"$stream"
crowd_says "$readers ok"

say "wait"
crowd_in_background $readers read dst/vm/wait
eventually "all of them wait" all_wait $readers
nobody_else_notices dst
kill -9 "$crowd_pid"
eventually "all of them have ended" gone "$crowd_pid"
not wait "$crowd_pid" 2>/dev/null

say "more than may wait"
crowd_in_background 4200 read src/vm/wait
eventually "2730 of them wait" all_wait 2730
nobody_else_notices src 2730
[ "$("${as_user[@]}" "$attempt" read src/vm/wait 0 1)" = EDQUOT ]
exec {stream}>&-
tell src/vm complete
crowd_says "$(printf '2730 ok\n1470 EDQUOT')"
exec {frontier}<&-
forget src/vm dst/vm

say "the daemon goes away"
expect ok mkdir src/vm
crowd_in_background $readers read src/vm/wait
eventually "all of them wait" all_wait $readers
kill -TERM "${daemon[src]}"
crowd_says "$readers ok"
ended src
