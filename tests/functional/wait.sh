#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# `wait`: a read returns when the migration is over and says how, at both sides; also for poll(2), O_NONBLOCK and
# signals. It ends when the migration is removed or the daemon goes away, and waits again for a second start.
. "$(dirname "$0")/functions.sh"
helper polling
polling=$helper

# waiter MIGRATION: somebody reads `wait`; sets $waiter; what it says goes to the file said.$waiters
waiters=0
waiter() {
	waiters=$((waiters + 1))
	: >said.$waiters # what it said the last time would be taken for its word
	env --default-signal=INT cat "$1/wait" >said.$waiters 2>&1 &
	waiter=$!
}
waits() { eventually "somebody waits" in_read; }
# The last waiter is blocked in read(2).
in_read() {
	local call
	read -r call _ </proc/"$waiter"/syscall 2>/dev/null || return 1
	case $(uname -m):$call in
	x86_64:0 | aarch64:63) ;;
	*) return 1 ;;
	esac
}
# says PATTERN: the last waiter has ended, and that is what it was told
says() {
	eventually "cat has been told" gone "$waiter"
	wait "$waiter" || fail "cat has failed: $(cat said.$waiters)"
	[[ $(cat said.$waiters) =~ ^$1$ ]] || fail "wait says '$(cat said.$waiters)', not '$1'"
}

pair
say "completed, at both sides"
outgoing vm
[ "$(stat -c '%a %F' src/vm/wait)" = "444 regular empty file" ]
expect EAGAIN read src/vm/wait 0 100 nonblock
waiter src/vm
waits
src=$waiter
limited "$polling" quiet src/vm/wait 200
tell src/vm start
eventually "it is there" test -e dst/vm
waiter dst/vm
waits
expect EAGAIN read dst/vm/wait 0 100 nonblock
kill -0 "$src" || fail "it was told something at the start"
"$polling" follow src/vm/wait >ready 2>follow.err &
poller=$!
polls() { [[ $(uname -m):$(cat /proc/$poller/syscall) =~ ^(x86_64:7|aarch64:73)\  ]]; }
eventually "somebody polls" polls
tell src/vm complete
says completed
wait "$src"
[ "$(cat said.1)" = completed ]
wait $poller
[ "$(cat ready)" = completed ]
[ "$(cat follow.err)" = "1 waits" ]
[ "$(limited cat src/vm/wait)" = completed ]
[ "$(limited cat dst/vm/wait)" = completed ]
expect completed read src/vm/wait 0 100 nonblock
expect end read src/vm/wait 10 100
forget src/vm dst/vm

say "cancelled, at both sides"
outgoing vm
tell src/vm start
eventually "it is there" test -e dst/vm
waiter dst/vm
waits
tell src/vm cancel
says 'cancelled: the source: cancelled at the source'
waiter src/vm
says 'cancelled: cancelled at the source'
forget src/vm

say "failed, and started again"
outgoing vm 2 unix:$dir/nobody
expect ECONNREFUSED write src/vm/control start
waiter src/vm
says 'failed: .*nobody.*'
expect ok write src/vm/uri "$uri"
tell src/vm start
expect EAGAIN read src/vm/wait 0 100 nonblock
waiter src/vm
waits
tell src/vm complete
says completed
forget src/vm dst/vm

say "removed"
expect ok mkdir src/vm
waiter src/vm
waits
expect ok rmdir src/vm
says 'cancelled: the migration was removed before it was started'

say "a signal"
expect ok mkdir src/vm
for signal in INT TERM KILL; do
	waiter src/vm
	waits
	kill -$signal $waiter
	eventually "the reader has ended" gone $waiter
	not wait $waiter 2>/dev/null
done

say "the daemon goes away"
waiter src/vm
waits
kill -TERM "${daemon[src]}"
eventually "it is told" gone "$waiter"
# The read that follows finds no daemon any more.
wait "$waiter" || true
[[ $(head -n 1 said.$waiters) = 'failed: the daemon is going away' ]] || fail "wait says $(cat said.$waiters)"
ended src
