#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The daemon's life: it goes to the background only when mount and listener are there, ends at signals and unmounts in good
# order, also while migrations run and commands, readers and writers wait.
. "$(dirname "$0")/functions.sh"

# What went to the background is in no session of ours, but its mount point is.
in_background() { processes_with "$dir/$1"; }
nothing_in_background() { [ -z "$(in_background "$1")" ]; }

say "to the background"
mkdir bg
for ((i = 0; i < $(scaled 10 3); i++)); do
	limited "$MIGFS" -o "listen=unix:$dir/bg.socket" "$dir/bg" 2>bg.log || fail "it does not start: $(cat bg.log)"
	# Now, not soon: it is mounted, and it listens.
	is_mounted bg || fail "it has gone to the background, and is not mounted"
	[ "$(ls -A bg)" = .error ] || fail "$(ls -A bg)"
	[ -n "$(in_background bg)" ] || fail "there is no daemon"
	migfs src
	uri=unix:$dir/bg.socket
	outgoing vm
	tell src/vm start
	tell src/vm complete
	unmount src
	fusermount3 -u "$dir/bg"
	eventually "the daemon has ended" nothing_in_background bg
done

say "signals"
random image 8M
pair
for signal in TERM INT $([ -n "${MIGFS_TEST_TLS:-}" ] || echo HUP); do
	unmount src
	# bash lets what runs in the background ignore SIGINT; the daemon does not care.
	migfs src
	outgoing vm$signal
	tell src/vm$signal start
	reaches dst/vm$signal active
	exec {stream}>src/vm$signal/device-state/dev
	echo text >&"$stream"
	eventually "the device appears" test -e dst/vm$signal/device-state/dev
	limited cat dst/vm$signal/device-state/dev >followed 2>/dev/null {stream}>&- &
	follower=$!
	eventually "it is read" grep -qs text followed
	kill -$signal "${daemon[src]}"
	ended src 0
	! is_mounted src || fail "it is still mounted after SIG$signal"
	! echo more >&"$stream" 2>/dev/null || fail "one can still write"
	exec {stream}>&- || true
	reaches dst/vm$signal failed
	[[ $(cat dst/vm$signal/error) =~ 'going away' ]] || fail "the destination says $(cat dst/vm$signal/error)"
	not wait $follower
	forget dst/vm$signal
	migfs src
done

say "while everything waits"
outgoing vm
truncate -s 8M src/vm/ram
tell src/vm start
reaches dst/vm active
stop_migfs dst
dd if=image of=src/vm/ram bs=1M conv=notrunc 2>/dev/null
(while :; do dd if=image of=src/vm/ram bs=1M conv=notrunc || break; done) 2>writer.err &
writer=$!
is_blocked() { [ "$(status src/vm remaining)" -gt $((10 << 20)) ]; }
eventually "the writer is blocked" is_blocked
command_in_background src/vm sync
eventually "sync waits" in_write "$command"
kill -TERM "${daemon[src]}"
ended src 0
command_says 'ESHUTDOWN|ENOTCONN|ECONNABORTED'
wait $writer
[ -s writer.err ]
continue_migfs dst
reaches dst/vm failed

say "a destination that goes while somebody reads and writes"
migfs src
forget dst/vm
outgoing vm
truncate -s 8M src/vm/ram
tell src/vm start
(while :; do dd if=image of=src/vm/ram bs=1M conv=notrunc || break; done) 2>writer.err &
writer=$!
exec {stream}>src/vm/device-state/dev
echo text >&"$stream"
eventually "the device appears" test -e dst/vm/device-state/dev
limited cat dst/vm/device-state/dev >followed 2>/dev/null {stream}>&- &
follower=$!
eventually "it is read" grep -qs text followed
kill -TERM "${daemon[dst]}"
ended dst 0
not wait $follower
wait $writer
reaches src/vm failed
[[ $(cat src/vm/error) =~ 'going away' ]] || fail "the source says $(cat src/vm/error)"
exec {stream}>&- || true
forget src/vm

say "while many keep asking"
jobs=()
for i in {1..24}; do
	(while [ -e src/.error ]; do [ ! -e src/nothing ]; done) 2>/dev/null &
	jobs+=($!)
done
kill -TERM "${daemon[src]}"
ended src 0
wait "${jobs[@]}"
migfs src

say "unmounted by force while it runs"
migfs dst -o "listen=$uri"
outgoing vm
tell src/vm start
reaches dst/vm active
fusermount3 -uz src
ended src 0
reaches dst/vm failed
fusermount3 -uz dst
ended dst 0
