#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# More writers and barriers wait for a destination that has stopped than there can be workers: some are refused, and another
# migration of the same user goes on, and so does what never waits. Each that waits can be killed.
. "$(dirname "$0")/functions.sh"
helper crowd
crowd=$helper
many=$(scaled 2100 1200)
limit=150

pair -o timeout=300
unmount src
migfs src -o timeout=300,write-behind=1M
uri2=unix:$dir/socket2
migfs dst2 -o "listen=$uri2"

crowd_in_background() {
	: >crowd.said # what it said the last time would be taken for its word
	"$crowd" "$@" >crowd.said 2>&1 &
	crowd_pid=$!
}
# Threads of the crowd that are blocked in write(2), pwrite(2), fsync(2) or pread(2).
waiting() { { cat /proc/"$crowd_pid"/task/*/syscall 2>/dev/null || true; } | awk '$1 == 1 || $1 == 64 || $1 == 18 || $1 == 68 || $1 == 74 || $1 == 82 || $1 == 17 || $1 == 67 { n++ } END { print n + 0 }'; }
# As many wait as may, and the others have been refused.
members() { ls /proc/"$crowd_pid"/task 2>/dev/null | wc -l; }
all_settled() { local n; n=$(waiting); [ "$n" -ge 300 ] && [ "$n" -lt 1000 ] && [ "$(members)" = $((n + 1)) ]; }

number=0
nobody_else_notices() {
	local name=other$((++number)) before
	before=$(waiting)
	outgoing $name 2 "$uri2"
	tell src/$name start
	eventually "$name is there" test -e dst2/$name
	expect ok pwrite src/$name/ram 0 3000000
	limited sh -c 'printf 1234 >"$1"' sh src/$name/device-state/dev
	tell src/$name sync
	expect ok fsync src/$name/ram
	expect 1234 read dst2/$name/device-state/dev 0 4
	[ "$(status src/$name status)" = active ]
	[ "$(status src/vm status)" = active ]
	tell src/$name cancel
	forget src/$name
	reaches dst2/$name cancelled failed
	forget dst2/$name
	[ "$(waiting)" = "$before" ] || fail "of $before, $(waiting) still wait"
}
killed() {
	kill -9 "$crowd_pid"
	eventually "all of them have ended" gone "$crowd_pid"
	not wait "$crowd_pid" 2>/dev/null
}

outgoing vm
truncate -s 256M src/vm/ram
tell src/vm start
tell src/vm sync
stop_migfs dst
say write
crowd_in_background $many write src/vm/ram
eventually "as many wait as may" all_settled
nobody_else_notices
killed
say sync
crowd_in_background $many sync src/vm/control
eventually "as many wait as may" all_settled
nobody_else_notices
killed
say "fsync, of which the kernel lets one at a time through"
crowd_in_background $many fsync src/vm/ram
all_wait() { [ "$(waiting)" = $many ]; }
eventually "all of them wait" all_wait
nobody_else_notices
killed
say digest
crowd_in_background $many read src/vm/digest
eventually "as many wait as may" all_settled
nobody_else_notices
[ "$(stat -c %a src/vm/digest)" = 400 ]
killed

say "cancel, which never waits"
crowd_in_background $many write src/vm/ram
eventually "as many wait as may" all_settled
tell src/vm cancel
eventually "the crowd has ended" gone "$crowd_pid"
wait "$crowd_pid"
[ -z "$(awk '$2 != "EDQUOT" && $2 != "ECANCELED" && $2 != "ok"' crowd.said)" ] || fail "the crowd says $(cat crowd.said)"
grep -q EDQUOT crowd.said
grep -q ECANCELED crowd.said
continue_migfs dst
reaches dst/vm cancelled failed
forget src/vm
few_workers() { [ "$({ cat /proc/"${daemon[src]}"/task/*/comm 2>/dev/null || true; } | grep -c fuse-worker)" -le 20 ]; }
eventually "the workers have ended" few_workers
