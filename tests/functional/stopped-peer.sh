#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A destination that has stopped reading blocks the writer, and no more: the source's memory stays bounded, `status` can
# be read, signals reach the writer and whoever waits for a command, `cancel` works; and all goes on when it reads again.
. "$(dirname "$0")/functions.sh"

pair -o timeout=300
random image "$(scaled 64M 32M)"
unmount src
migfs src -o timeout=300,write-behind=4M

begin() {
	name=$1
	say "$name"
	outgoing "$name" 2
	truncate -s 64M "src/$name/ram"
	tell "src/$name" start
	reaches "dst/$name" active
	stop_migfs dst
}
write_in_background() {
	# bash lets what runs in the background ignore SIGINT.
	env --default-signal=INT dd if=image of="src/$name/ram" bs=1M conv=notrunc 2>writer.err &
	writer=$!
	eventually "the writer is blocked" is_blocked
}
# What it may have accepted is accepted, and it waits.
is_blocked() { [ "$(status "src/$name" remaining)" -gt $((3 << 20)) ] && in_write "$writer"; }
writer_ends() {
	eventually "the writer has ended" gone "$writer"
	! wait "$writer" 2>/dev/null || fail "the writer has ended well"
}

begin signals
write_in_background
[ "$(status "src/$name" remaining)" -le $((5 << 20)) ] || fail "more is accepted than write-behind allows"
kill -INT $writer
writer_ends
write_in_background
kill -9 $writer
writer_ends
write_in_background
kill -TERM $writer
writer_ends

say "commands that wait"
for command in sync flush complete; do
	command_in_background "src/$name" $command
	eventually "$command waits" in_write $command
	[ $command != complete ] || reaches "src/$name" completing
	[ -n "$(status "src/$name" transferred)" ] || fail "status cannot be read"
	kill -INT "$command"
	eventually "$command has ended" gone "$command"
	! wait "$command" || fail "$command has succeeded"
	reaches "src/$name" active
done
[ "$(memory_of src RssAnon)" -lt $((64 << 20)) ] || [ -n "$MIGFS_SLOW" ] || fail "the source grows"

say "and it goes on"
continue_migfs dst
overwrite image "src/$name/ram" bs=1M
tell "src/$name" sync
cmp -n "$(stat -c %s image)" image "dst/$name/ram"
tell "src/$name" complete
cmp -n "$(stat -c %s image)" image "dst/$name/ram"
forget "src/$name" "dst/$name"

begin cancel
write_in_background
command_in_background "src/$name" flush
eventually "flush waits" in_write $command
tell "src/$name" cancel
[ "$(status "src/$name" status)" = cancelled ] || fail "not cancelled"
writer_ends
grep -q 'Operation canceled' writer.err || fail "the writer was told $(cat writer.err)"
command_says ECANCELED
expect ECANCELED pwrite "src/$name/ram" 0 4096
continue_migfs dst
reaches "dst/$name" cancelled failed
says_why "dst/$name"
forget "src/$name" "dst/$name"

begin complete
command_in_background "src/$name" complete
reaches "src/$name" completing
tell "src/$name" cancel
command_says ECANCELED
continue_migfs dst
reaches "dst/$name" cancelled failed
forget "src/$name" "dst/$name"

# A migration whose peer accepts connections and says nothing: still in setup.
stop_migfs dst
name=setup
say $name
outgoing $name 2
command_in_background src/$name start
reaches src/$name setup
expect EBUSY rmdir src/$name
tell src/$name cancel
command_says ECANCELED
command_in_background src/$name start
eventually "it is in setup again" is_in src/$name setup
kill -INT "$command"
eventually "start has ended" gone "$command"
reaches src/$name failed cancelled
continue_migfs dst
# Nothing was sent: it can be started again. The destination finds out by itself that the others are gone.
restarted() { attempt write src/$name/control start && [ "$got" = ok ]; }
eventually "it can be started again" restarted
tell src/$name complete
forget src/$name dst/$name
