#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Whatever waits for a destination that has stopped can be killed: who makes a device, who waits until that is done, and
# whoever comes after them. Opening a device that is there, and closing one, wait for nothing.
. "$(dirname "$0")/functions.sh"
requires_root

pair -o timeout=300
unmount src
migfs src -o timeout=300

# in_background OPERATION ARGUMENT...: what attempt says goes to the file said; sets $pid
in_background() {
	: >said # what it said the last time would be taken for its word
	env --default-signal=INT "$attempt" "$@" >said 2>&1 &
	pid=$!
}
# in_call NUMBER...: the last one is blocked in one of these system calls (of x86_64, of aarch64)
in_call() {
	local call number
	read -r call _ </proc/"$pid"/syscall 2>/dev/null || return 1
	for number; do
		if [ "$call" = "$number" ]; then
			in_fuse
			return
		fi
	done
	return 1
}
# It may also be blocked while it is loaded, or looks a name up.
in_fuse() { grep -q "${1:-fuse}" /proc/"$pid"/stack; }
# creates: the daemon has been asked to make a device, and has not answered
creates() {
	eventually "it waits for the answer" in_fuse fuse_create_open
	# The kernel's queue is in order.
	expect ok open src/vm/device-state/old wronly
}
ends_by() { # SIGNAL
	kill -"$1" "$pid"
	eventually "it has ended" gone "$pid"
	not wait "$pid" 2>/dev/null
}
has_device() { [ -e "$1/device-state/$2" ]; }

outgoing vm
tell src/vm start
exec {old}>src/vm/device-state/old
printf old >&"$old"
tell src/vm sync

for signal in INT TERM KILL; do
	say "SIG$signal"
	stop_migfs dst
	in_background open src/vm/device-state/first$signal wronly,creat
	# (The kernel itself holds up whoever makes or looks up another device meanwhile.)
	creates
	ends_by $signal
	in_background open src/vm/device-state/second$signal wronly,creat
	eventually "it waits for the first one" in_call 257 56
	ends_by $signal
	in_background write src/vm/control complete
	eventually "complete waits" in_call 1 64
	[ "$(status src/vm status)" = active ]
	ends_by $signal

	# None of these waits.
	expect ok open src/vm/device-state/old wronly
	expect EEXIST open src/vm/device-state/old wronly,creat,excl
	expect ok pwrite src/vm/device-state/old 3 4
	exec {old}>&-
	exec {old}>>src/vm/device-state/old

	continue_migfs dst
	# The destination has taken the first one; nobody has asked it about the second.
	eventually "the device is there" has_device src/vm first$signal
	eventually "the device is there" has_device dst/vm first$signal
	not has_device src/vm second$signal
	expect ok write src/vm/control sync
	limited sh -c 'echo "$2" >"$1"' sh src/vm/device-state/second$signal $signal
	tell src/vm sync
	[ "$(limited cat dst/vm/device-state/second$signal)" = $signal ]
done

say "the end of a migration"
stop_migfs dst
in_background open src/vm/device-state/last wronly,creat
creates
ends_by KILL
in_background open src/vm/device-state/late wronly,creat
eventually "it waits for the first one" in_call 257 56
tell src/vm cancel
eventually "it has ended" gone "$pid"
[ "$(cat said)" = ECANCELED ]
continue_migfs dst
reaches dst/vm cancelled failed
exec {old}>&-
forget src/vm

say "a device that the destination refuses, and nobody waits for the answer"
unmount dst
rm -f socket
migfs dst -o "listen=$uri,timeout=300,max-devices=2"
outgoing vm
expect ok open src/vm/device-state/old wronly,creat
tell src/vm start
stop_migfs dst
in_background open src/vm/device-state/first wronly,creat
creates
ends_by KILL
continue_migfs dst
eventually "the device is there" has_device src/vm first
expect EDQUOT open src/vm/device-state/second wronly,creat
tell src/vm complete
forget src/vm dst/vm

say "a second signal to the daemon"
outgoing vm
tell src/vm start
stop_migfs dst
kill -TERM "${daemon[src]}"
going() { grep -q 'vm: failed: the daemon is going away' src.log; }
eventually "it says goodbye" going
kill -TERM "${daemon[src]}"
ended src 1
grep -q 'for the second time' src.log
not is_mounted src
continue_migfs dst
