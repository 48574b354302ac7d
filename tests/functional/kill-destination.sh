#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# kill -9 of the destination's daemon while nothing happens, in the middle of a write, of a sync, of a flush and of a
# complete: the source fails and says why, writers and commands get an error, nothing hangs, both mounts unmount.
. "$(dirname "$0")/functions.sh"

uri=unix:$dir/socket
random image "$(scaled 32M 8M)"
migfs src

# Starts a migration to a new destination.
begin() {
	name=$1
	say "$name"
	migfs dst -o "listen=$uri"
	outgoing "$name" 3
	truncate -s "$(stat -c %s image)" "src/$name/ram"
	tell "src/$name" start
	reaches "dst/$name" active
}

# Writes the image over and over, until that fails.
write_on() {
	while overwrite image "src/$name/ram" bs=1M; do :; done 2>writer.log &
	writer=$!
}

has_sent() { [ "$(status "src/$name" transferred)" -gt "$1" ]; }
is_blocked() { [ "$(status "src/$name" remaining)" -gt $((8 << 20)) ]; }

# The daemon is gone: what must follow.
source_fails() {
	reaches "src/$name" failed
	says_why "src/$name"
	attempt write "src/$name/control" sync
	[[ $got =~ ^(ECONNRESET|EREMOTEIO|ETIMEDOUT)$ ]] || fail "sync after the failure says $got"
	attempt pwrite "src/$name/ram" 0 4096
	[[ $got =~ ^(ECONNRESET|EREMOTEIO|ETIMEDOUT)$ ]] || fail "a write after the failure says $got"
	expect EBUSY write "src/$name/control" start
	expect ENOTCONN stat dst/"$name"
	fusermount3 -u dst
	forget "src/$name"
}

writer_fails() {
	eventually "the writer has ended" gone "$writer"
	wait "$writer" || true
	[ -s writer.log ] || fail "the writer was not told"
}

begin idle
kill_migfs dst
source_fails

begin write
write_on
eventually "data moves" has_sent $((8 << 20))
kill_migfs dst
writer_fails
source_fails

# A destination that is stopped keeps a command waiting for sure.
begin sync
overwrite image "src/$name/ram" bs=1M
stop_migfs dst
command_in_background "src/$name" sync
eventually "the sync waits" in_write "$command"
kill_migfs dst
command_says 'ECONNRESET|EREMOTEIO|ETIMEDOUT'
source_fails

begin complete
overwrite image "src/$name/ram" bs=1M
stop_migfs dst
command_in_background "src/$name" complete
reaches "src/$name" completing
kill_migfs dst
command_says 'ECONNRESET|EREMOTEIO|ETIMEDOUT'
source_fails

# A blocked writer, and what waits for it to get through.
begin flush
stop_migfs dst
write_on
eventually "the writer is blocked" is_blocked
command_in_background "src/$name" flush
kill_migfs dst
eventually "the command has ended" gone "$command"
writer_fails
source_fails

# Without the help of a stop, at any moment of a complete. Who was quick enough has completed.
for ((run = 0; run < $(scaled 20 5); run++)); do
	begin "moment$run"
	overwrite image "src/$name/ram" bs=1M
	command_in_background "src/$name" complete
	((run % 2)) || reaches "src/$name" completing completed
	kill_migfs dst
	eventually "the command has ended" gone "$command"
	reaches "src/$name" failed completed
	if [ "$state" = completed ]; then
		[ "$(cat answer)" = ok ] || fail "completed, and the command says $(cat answer)"
		fusermount3 -u dst
		forget "src/$name"
	else
		command_says 'ECONNRESET|EREMOTEIO|ETIMEDOUT'
		source_fails
	fi
done
