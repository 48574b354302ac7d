#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# poll(2): `status` wakes at each change of state and not in between, a device's stream when there is more.
. "$(dirname "$0")/functions.sh"
helper polling
polling=$helper

pair
outgoing vm
seen() { [ "$(tail -n 1 "$1")" = "$2" ]; }
limited "$polling" status src/vm/status >src.states &
watcher=$!
eventually "none is seen" seen src.states none
limited "$polling" quiet src/vm/status 200
tell src/vm start
eventually "active is seen" seen src.states active
eventually "it is there" test -e dst/vm
limited "$polling" status dst/vm/status >dst.states &
watchers="$watcher $!"
eventually "active is seen there" seen dst.states active
limited "$polling" quiet src/vm/status 200
limited "$polling" quiet dst/vm/status 200

say "a stream"
random device 3000000
exec {stream}>src/vm/device-state/device
eventually "the device appears" test -e dst/vm/device-state/device
limited "$polling" quiet dst/vm/device-state/device 200
limited "$polling" follow dst/vm/device-state/device >followed 2>follow.err {stream}>&- &
follower=$!
for part in 0 1 2 3 4 5; do
	dd if=device bs=500000 skip=$part count=1 status=none >&"$stream"
	arrived() { [ "$(stat -c %s followed)" = $(((part + 1) * 500000)) ]; }
	eventually "part $part is read" arrived
done
limited "$polling" quiet dst/vm/device-state/device 200
exec {stream}>&-
wait $follower || fail "$(cat follow.err)"
same device followed
[ "$(cat follow.err)" != "0 waits" ]

# Somebody who polls when the migration ends.
exec {stream}>>src/vm/device-state/device
waits_again() { attempt read dst/vm/device-state/device $(stat -c %s dst/vm/device-state/device) 1 nonblock && [ "$got" = EAGAIN ]; }
eventually "the stream goes on" waits_again
limited "$polling" follow dst/vm/device-state/device >followed 2>follow.err {stream}>&- &
follower=$!
eventually "it is read" arrived
exec {stream}>&-
tell src/vm complete
wait $follower || fail "$(cat follow.err)"
same device followed
for watcher in $watchers; do wait "$watcher"; done
[ "$(tail -n 1 src.states)" = completed ]
[ "$(tail -n 1 dst.states)" = completed ]
say "$(echo $(cat src.states)), $(echo $(cat dst.states))"
forget src/vm dst/vm

say "a failure"
outgoing vm
tell src/vm start
eventually "it is there" test -e dst/vm
: >src/vm/device-state/device
exec {stream}>src/vm/device-state/device
eventually "the device appears" test -e dst/vm/device-state/device
limited "$polling" status src/vm/status >src.states &
watcher=$!
eventually "active is seen" seen src.states active
eventually "the stream goes on" waits_again
limited "$polling" follow dst/vm/device-state/device >followed 2>follow.err {stream}>&- &
follower=$!
tell dst/vm cancel
wait $watcher
seen src.states cancelled || fail "the source is told of $(tail -n 1 src.states)"
! wait $follower || fail "who follows a stream that will not end is not told"
exec {stream}>&-
forget src/vm
