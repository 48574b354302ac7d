#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# close(2) never fails: not after `cancel`, not when the peer or the source's own daemon has died, not for a file that
# nothing was written to. What went wrong is told by write(2), fsync(2), the commands, `status` and `error`.
. "$(dirname "$0")/functions.sh"

helper closing && closing=$helper
declare -A to from
closers=()

# held NAME FILE ACCESS [TEXT]: a process that has FILE open, and has written TEXT
held() {
	local said name=$1
	shift
	mkfifo "$name.in" "$name.out"
	"$closing" "$@" <"$name.in" >"$name.out" &
	closers+=("$name")
	# shellcheck disable=SC1083
	exec {to[$name]}>"$name.in" {from[$name]}<"$name.out"
	read -r said <&"${from[$name]}"
	[ "$said" = open ] || fail "$*: $said"
}

# all_close AFTER: each of them can close what it holds
all_close() {
	local name said
	for name in "${closers[@]}"; do
		echo >&"${to[$name]}"
		read -r said <&"${from[$name]}" || said="no answer"
		[ "$said" = ok ] || fail "after $1, '$name': $said"
		exec {to[$name]}>&- {from[$name]}<&-
		rm "$name.in" "$name.out"
	done
	wait $(jobs -p | grep -vxF -f <(printf '%s\n' "${daemon[@]}")) || true
	closers=()
}

begin() {
	outgoing vm
	expect ok truncate src/vm/ram 1048576
	tell src/vm start
	: >src/vm/device-state/dev
	: >src/vm/device-state/silent
	held ram src/vm/ram wronly "some bytes of RAM"
	held device src/vm/device-state/dev wronly "a device's state"
	held silent src/vm/device-state/silent wronly
	held control src/vm/control wronly sync
	held status src/vm/status rdonly
	held received dst/vm/ram rdonly
}

say "after cancel"
pair
begin
tell src/vm cancel
all_close cancel
expect ECANCELED write src/vm/control sync
expect ECANCELED fsync src/vm/ram
expect ECANCELED pwrite src/vm/device-state/dev 0 10
says_why src/vm
forget src/vm
reaches dst/vm cancelled failed
forget dst/vm

say "after the peer's death"
begin
kill_migfs dst
reaches src/vm failed
all_close "the peer's death"
expect ECONNRESET write src/vm/control complete
expect ECONNRESET fsync src/vm/device-state/dev
says_why src/vm
forget src/vm
umount -l dst

say "after the death of the source's own daemon"
rm -f socket
migfs dst -o "listen=$uri"
begin
kill_migfs src
all_close "the daemon's death"
reaches dst/vm failed
umount -l src
forget dst/vm

say "a completed image, written to, when the destination's daemon dies"
migfs src
outgoing vm
expect ok truncate src/vm/ram 1048576
tell src/vm start
overwrite <(head -c 1048576 /dev/urandom) src/vm/ram bs=64K
tell src/vm complete
held image dst/vm/ram wronly "of the VM that runs here now"
kill_migfs dst
all_close "the death of the destination's daemon"
umount -l dst
