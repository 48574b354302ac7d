#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# `cancel`, other settings and `start`, while the `start` before still connects to a peer that accepts and never answers: the
# next one waits until it has left, and then works. Of several at once, one starts.
. "$(dirname "$0")/functions.sh"

pair -o timeout=50
outgoing vm 3
random image 200000

say "cancelled, and started again"
stop_migfs dst
for ((i = 0; i < 20; i++)); do
	command_in_background src/vm start
	eventually "it connects" is_in src/vm setup
	tell src/vm cancel
	expect ok write src/vm/channels $((1 + i % 5))
	expect ok truncate src/vm/ram $((200000 + i))
	expect ok open "src/vm/device-state/dev$i" wronly,creat
	command_says ECANCELED
	is_in src/vm cancelled
done

say "several at once"
for ((i = 0; i < 10; i++)); do
	command_in_background src/vm start
	eventually "it connects" is_in src/vm setup
	limited "$attempt" write src/vm/control cancel >cancelled &
	canceller=$!
	for k in 1 2 3; do limited "$attempt" write src/vm/control start >"says$k" & pids[k]=$!; done
	wait $canceller
	[ "$(cat cancelled)" = ok ]
	command_says ECANCELED
	# One of them may have come before the cancel, and whoever comes after another one is refused: cancel until all are told.
	all_told() {
		local k
		attempt write src/vm/control cancel
		for k in 1 2 3; do gone "${pids[k]}" || return 1; done
	}
	eventually "all are told" all_told
	for k in 1 2 3; do
		wait "${pids[k]}"
		[[ $(cat "says$k") =~ ^(EBUSY|ECANCELED)$ ]] || fail "start says $(cat "says$k")"
	done
done

say "and it works"
command_in_background src/vm start
eventually "it connects" is_in src/vm setup
tell src/vm cancel
continue_migfs dst
# The destination reads all the hellos that have waited, and finds those connections closed, in its own time.
starts() { attempt write src/vm/control start && [ "$got" = ok ]; }
eventually "the destination has forgotten the others" starts
command_says ECANCELED
expect ok truncate src/vm/ram 200000
overwrite image src/vm/ram
tell src/vm complete
same image dst/vm/ram
