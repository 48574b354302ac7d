#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# kill -9 of the source's daemon while nothing happens, in the middle of a write, of a sync and of a complete: the
# destination fails and says why, never says completed, who reads a stream there gets an error, writers and commands at
# the source get one too, nothing hangs, both mounts unmount.
. "$(dirname "$0")/functions.sh"

pair
unmount src
random image "$(scaled 32M 8M)"

begin() {
	name=$1
	say "$name"
	migfs src
	outgoing "$name" 3
	truncate -s "$(stat -c %s image)" "src/$name/ram"
	tell "src/$name" start
	reaches "dst/$name" active
	# A stream that is open, with somebody who follows it.
	exec {stream}>"src/$name/device-state/dev"
	echo beginning >&"$stream"
	eventually "the device appears" test -e "dst/$name/device-state/dev"
	limited cat "dst/$name/device-state/dev" >followed 2>follower.log &
	follower=$!
	eventually "the stream is read" grep -qs beginning followed
}

has_arrived() { [ "$(status "dst/$name" transferred)" -gt "$1" ]; }

# The daemon is gone: what must follow.
destination_fails() {
	reaches "dst/$name" failed
	says_why "dst/$name"
	eventually "the follower has ended" gone "$follower"
	! wait "$follower" || fail "the follower was not told"
	grep -q 'reset by peer' follower.log || fail "the follower was told: $(cat follower.log)"
	exec {stream}>&- || true
	expect ENOTCONN stat "src/$name"
	fusermount3 -u src
	forget "dst/$name"
}

begin idle
kill_migfs src
destination_fails

begin write
while overwrite image "src/$name/ram" bs=1M; do :; done 2>writer.log &
writer=$!
eventually "data moves" has_arrived $((8 << 20))
kill_migfs src
eventually "the writer has ended" gone "$writer"
destination_fails

begin sync
overwrite image "src/$name/ram" bs=1M
stop_migfs dst
command_in_background "src/$name" sync
eventually "the sync waits" in_write "$command"
kill_migfs src
continue_migfs dst
command_says 'ENOTCONN|ECONNABORTED'
destination_fails

begin complete
overwrite image "src/$name/ram" bs=1M
stop_migfs dst
command_in_background "src/$name" complete
reaches "src/$name" completing
kill_migfs src
continue_migfs dst
command_says 'ENOTCONN|ECONNABORTED'
destination_fails

# A request that the daemon is answering when it is killed can also end with EIO, says the kernel.
dead='ENOTCONN|ECONNABORTED|EIO'

# Without the help of a stop, at any moment of a complete. Who was quick enough has completed.
for ((run = 0; run < $(scaled 20 5); run++)); do
	begin "moment$run"
	overwrite image "src/$name/ram" bs=1M
	command_in_background "src/$name" complete
	((run % 2)) || reaches "src/$name" completing completed
	kill_migfs src
	eventually "the command has ended" gone "$command"
	reaches "dst/$name" failed completed
	if [ "$state" = completed ]; then
		same image "dst/$name/ram"
		eventually "the follower has ended" gone "$follower"
		exec {stream}>&- || true
		fusermount3 -u src
		forget "dst/$name"
	else
		command_says "$dead"
		destination_fails
	fi
done
