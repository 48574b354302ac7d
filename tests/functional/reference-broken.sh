#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# RAM by reference when something breaks: either daemon is killed in the middle of a round or of the end, or the source's
# file becomes shorter. Both sides fail and say why, the destination never completes, and the daemons that live go on.
. "$(dirname "$0")/functions.sh"

MB=$((1 << 20))
mib=$(scaled 64 24)
words=$((mib * 4))
all() { head -c "$1" /dev/zero | tr '\0' '\377'; }

uri=unix:$dir/socket
random image $((mib * MB))
begin() { # NAME [SETTING VALUE]
	name=$1
	say "$*"
	cp image ram
	outgoing "$name" 3
	[ $# = 1 ] || expect ok write "src/$name/$2" "$3"
	[ $# -lt 5 ] || expect ok write "src/$name/$4" "$5"
	expect ok write "src/$name/ram-source" "$dir/ram"
	tell "src/$name" start
	reaches "dst/$name" active
}
# Something is on its way, and cannot arrive: the destination is stopped.
hold() {
	stop_migfs dst
	all $((words * 8)) >"src/$name/dirty"
	command_in_background "src/$name" "$1"
	if [ "$1" = complete ]; then reaches "src/$name" completing; else eventually "$1 waits" in_write "$command"; fi
}

# ---- A daemon is killed ----

told='ECONNRESET|EREMOTEIO|ETIMEDOUT'
migfs src
for what in sync flush complete; do
	migfs dst -o "listen=$uri"
	begin "dst-$what"
	hold $what
	kill_migfs dst
	command_says "$told"
	reaches "src/$name" failed
	says_why "src/$name"
	attempt pwrite "src/$name/dirty" 0 8
	[[ $got =~ ^($told)$ ]] || fail "a bitmap after the failure: $got"
	[ "$(status "src/$name" remaining)" = 0 ]
	fusermount3 -u dst
	forget "src/$name"
done
unmount src
migfs dst -o "listen=$uri"
for what in sync complete; do
	migfs src
	begin "src-$what"
	hold $what
	kill_migfs src
	continue_migfs dst
	command_says 'ENOTCONN|ECONNABORTED'
	reaches "dst/$name" failed
	says_why "dst/$name"
	fusermount3 -u src
	forget "dst/$name"
done
for ((run = 0; run < $(scaled 10 3); run++)); do
	migfs src
	begin "moment$run"
	all $((words * 8)) >"src/$name/dirty"
	command_in_background "src/$name" complete
	((run % 2)) || reaches "src/$name" completing completed
	kill_migfs src
	eventually "the command has ended" gone "$command"
	reaches "dst/$name" failed completed
	[ "$state" = failed ] || same image "dst/$name/ram"
	fusermount3 -u src
	forget "dst/$name"
done

# ---- The file becomes shorter ----

migfs src
# The command fails, and all that follows.
shorter() {
	command_says EIO
	reaches "src/$name" failed
	says_why "src/$name"
	grep -q 'has become shorter' "src/$name/error" || fail "$name: $(cat "src/$name/error")"
	refused EIO "src/$name/error" shorter pwrite "src/$name/dirty" 0 8
	reaches "dst/$name" failed
	says_why "dst/$name"
	forget "src/$name" "dst/$name"
}
for setting in "checksum off" "checksum on" "compression zstd" "zero-page-detection off" "checksum on zero-page-detection off"; do
	for what in sync complete; do
		# shellcheck disable=SC2086
		begin "shorter-$what" $setting
		hold $what
		truncate -s $MB ram
		continue_migfs dst
		shorter
	done
done

# Nobody asks for its pages: what is not there any more is no zeros.
for what in precopy complete; do
	begin "shorter-$what" dirty-tracking compare
	tell "src/$name" precopy
	truncate -s $MB ram
	command_in_background "src/$name" $what
	shorter
done

# At any moment, again and again: what was sent before is all there is, or it fails. At whole pages: the rest of a page that
# is cut becomes zero while it is on its way, as in any file.
for ((run = 0; run < $(scaled 30 8); run++)); do
	begin "short$run" "checksum" "$( ((run % 4)) && echo off || echo on)" "zero-page-detection" "$( ((run % 2)) && echo off || echo on)"
	all $((words * 8)) >"src/$name/dirty"
	command_in_background "src/$name" complete
	((run % 3)) || reaches "src/$name" completing completed
	truncate -s $((run % 5 * 4096)) ram
	reaches "src/$name" failed completed
	if [ "$state" = completed ]; then
		command_says ok
		same image "dst/$name/ram"
		forget "src/$name" "dst/$name"
	else
		shorter
	fi
done

say "and the daemons are none the worse"
begin good
all $((words * 8)) >src/good/dirty
tell src/good complete
same image dst/good/ram
forget src/good dst/good
