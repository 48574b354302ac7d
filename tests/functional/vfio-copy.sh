#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# examples/vfio-copy without a device: what it says when it is called wrongly. And with one that is made up, in the ways in
# which a driver or a migration can fail; tests/vm/vfio.sh has a real driver.
. "$(dirname "$0")/functions.sh"
requires cc

copy=$(dirname "$MIGFS")/examples/vfio-copy
[ -x "$copy" ] || skip "the headers of this kernel know no migration of VFIO devices"

# says STATUS PATTERN COMMAND...: that is its status, and what it writes to stderr matches
says() {
	local want=$1 pattern=$2 status=0
	shift 2
	limited "$@" >said 2>said.err || status=$?
	[ $status = "$want" ] || fail "$*: status $status, it says $(cat said said.err)"
	[[ $(cat said.err) =~ $pattern ]] || fail "$*: it says $(cat said.err), not $pattern"
}

say "called wrongly"
limited "$copy" --help >said
grep -q '^usage: vfio-copy save' said
says 2 '^usage: ' "$copy"
for words in nonsense save load state reset "save fd:3" "load fd:3" "save fd:3 a b" "save fd: a" "save fd:x a" "save fd:3x a" \
	"save fd:99999999999 a" "save /dev/vfio/1 name" "state fd:3 error" "state fd:3 stop stop" "reset fd:3 stop" \
	"save -n fd:3 a" "load -w fd:3 a" "state -s fd:3"; do
	# shellcheck disable=SC2086
	says 2 'usage: ' "$copy" $words
done
echo precious >kept
says 1 '^vfio-copy: /nowhere/1: No such file' "$copy" save /nowhere/1 name kept
says 1 '^vfio-copy: fd:0 is no VFIO device' "$copy" save fd:0 kept
says 1 '^vfio-copy: fd:57 is no VFIO device: Bad file descriptor' "$copy" load fd:57 kept
says 1 '^vfio-copy: .*/kept is no VFIO group' "$copy" state "$dir/kept" name
[ "$(cat kept)" = precious ] || fail "the file was changed"

# ---- A device that is made up ----

cc -std=gnu11 -D_GNU_SOURCE -g -O1 -fsanitize=address,undefined -o vfio-fake "$here/vfio-fake.c"
random state 150000

# fake STATUS PATTERN ARGUMENT...: what vfio-copy says of a device with $fault
fault=
fake() { says "$1" "$2" env "FAULT=$fault" "$dir/vfio-fake" "${@:3}"; }

# device STATE [FILE]: it is in there, with that in it
device() {
	echo "$1" >device.state
	cp "${2:-state}" device.data
	: >device.log
}

# went STATE...: it was told to go to these; is STATE: it is in there
went() { [ "$(paste -sd ' ' device.log)" = "$*" ] || fail "the device went $(paste -sd ' ' device.log), not $*"; }
is() { [ "$(cat device.state)" = "$1" ] || fail "the device is $(cat device.state), not $1"; }

say "to a file and back"
random file 200000
device running
fake 0 '^$' save fd:900 file
grep -q '^fd:900: saved 150000 bytes, 75000 of them while it was running' said
went pre-copy stop-copy stop
same state file
device stop
fake 0 '^$' save fd:900 file
went stop-copy stop
same state file
device running
fault=no-pre-copy fake 0 '^$' save fd:900 file
went stop-copy stop
same state file
device running
fault=dirty fake 0 '^$' save fd:900 file.dirty
went pre-copy stop-copy stop
device running
fake 0 '^$' save fd:900 /dev/null
[ -c /dev/null ]
device running kept
fake 0 '^$' load fd:900 file
went resuming running
same state device.data
device running kept
fake 0 '^$' load -s fd:900 file
went resuming stop
same state device.data
fake 0 '^$' state fd:900
[ "$(cat said)" = stop ]
fake 0 '^$' state fd:900 running
is running

say "the device is stopped when standard input ends"
has_half() { [ "$(stat -c %s file 2>/dev/null)" = 75000 ]; }
mkfifo input
for fault in "" no-pre-copy; do
	device running
	rm file
	FAULT=$fault ./vfio-fake save -w fd:900 file <input >said 2>&1 &
	copying=$!
	exec {input}>input
	echo "this means nothing" >&$input
	if [ -z "$fault" ]; then
		eventually "all is there that the device has while it runs" has_half
		is pre-copy
	fi
	exec {input}>&-
	wait $copying || fail "save -w: $(cat said)"
	is stop
	same state file
done
fault=

# not_saved FAULT PATTERN STATE...: save says so, the device was told to go there, and nothing is left
not_saved() {
	local fault=$1 pattern=$2
	shift 2
	device running
	: >file
	fake 1 "$pattern" save fd:900 file
	went "$@"
	same state device.data
	[ ! -e file ] || fail "half a state is left"
}
say "not saved"
not_saved read 'reading its data: Input/output error.*fd:900 is running again' pre-copy running
not_saved stopped-read 'reading its data: Input/output error.*is running again' pre-copy stop-copy running
not_saved no-message 'reading its data: No message.*is running again' pre-copy stop-copy running
not_saved stop 'stop-copy cannot be reached, it is pre-copy: Device or resource busy.*is running again' \
	pre-copy stop-copy running
is running
not_saved stop-error 'stop-copy cannot be reached, it is error: .*needs a reset' pre-copy stop-copy running
is error
fake 1 'is in the state error' save fd:900 file
fake 1 'is in the state error' load fd:900 kept
fake 0 '^$' reset fd:900
is running
device running
fault=no-migration fake 1 'its driver cannot migrate it' save fd:900 kept
fake 1 'nowhere/file: No such file' save fd:900 nowhere/file
[ "$(cat kept)" = precious ] || fail "the file was changed"
went
fake 1 'writing /dev/full: No space left.*is running again' save fd:900 /dev/full
went pre-copy running
[ -c /dev/full ]

# not_loaded FAULT FILE PATTERN STATE...: load says so, and the device was told to go there
not_loaded() {
	local fault=$1 file=$2 pattern=$3
	shift 3
	device running kept
	fake 1 "$pattern" load fd:900 "$file"
	went "$@"
	same kept device.data
}
say "not loaded"
not_loaded write state 'writing its data: No space left.*has been reset and is running' resuming reset
is running
not_loaded load state 'running cannot be reached, it is resuming: Invalid argument.*has been reset' resuming running reset
is running
: >empty
not_loaded '' empty 'empty is empty.*has been reset' resuming reset
is running
not_loaded no-reset empty 'empty is empty.*cannot be reset' resuming reset
is resuming
not_loaded '' nowhere 'nowhere: No such file'
is running

# ---- In a migration ----

pair
active() {
	outgoing vm
	tell src/vm start
	device running
}
cancel() {
	tell src/vm cancel
	reaches dst/vm cancelled
}
# begin ARGUMENT...: in the background, with $stdin; ends STATUS PATTERN: as `says` has it
stdin=/dev/null
begin() {
	rm -f said said.err
	FAULT=$fault env --default-signal=INT "$dir/vfio-fake" "$@" <"$stdin" >said 2>said.err {input}>&- &
	copying=$!
}
ends() {
	local status=0
	eventually "it has ended" gone $copying
	wait $copying || status=$?
	[ $status = "$1" ] || fail "status $status, it says $(cat said said.err)"
	[[ $(cat said.err) =~ $2 ]] || fail "it says $(cat said.err), not $2"
}
# What is loaded is another device, in a directory of its own.
load_begins() {
	rm -rf other
	mkdir other
	echo running >other/device.state
	cp kept other/device.data
	: >other/device.log
	cd other
	begin load fd:900 "$dir/dst/vm/device-state/nic"
	cd ..
}
other_is_resuming() { [ "$(cat other/device.state)" = resuming ]; }
waits() { grep -qs 'waiting for the migration' other/said.err; }

say "it arrives"
active
fake 0 '^$' save fd:900 src/vm/device-state/nic
went pre-copy stop-copy stop
load_begins
eventually "it waits for the migration" waits
other_is_resuming
tell src/vm complete
cd other
ends 0 ''
went resuming running
same ../state device.data
cd ..
same state dst/vm/device-state/nic
forget src/vm dst/vm

say "the migration is cancelled when all is there"
active
fake 0 '^$' save fd:900 src/vm/device-state/nic
load_begins
eventually "it waits for the migration" waits
cancel
cd other
ends 1 'has not completed: cancelled: .*has been reset and is running'
went resuming reset
cd ..
fake 0 '^$' state fd:900 running
is running
forget src/vm dst/vm

say "a load that does not wait"
active
fake 0 '^$' save fd:900 src/vm/device-state/nic
device running kept
fake 0 '^$' load -n fd:900 dst/vm/device-state/nic
went resuming running
same state device.data
cancel
forget src/vm dst/vm

say "the destination takes no more than 100000 bytes of a device"
migfs small -o "listen=unix:$dir/small.socket,max-device=100000"
outgoing vm 2 "unix:$dir/small.socket"
tell src/vm start
device running
fake 1 'nic.*: Disk quota exceeded; .*src/vm/error says: .*is running again' save fd:900 src/vm/device-state/nic
is running
[ ! -e src/vm/device-state/nic ] || fail "half a state is left"
tell src/vm cancel
reaches small/vm cancelled
forget src/vm small/vm
unmount small

say "the migration is cancelled before, and is not there"
active
cancel
fake 1 'nic: Operation canceled; .*src/vm/error says: ' save fd:900 src/vm/device-state/nic
is running
forget src/vm dst/vm
fake 1 'nic: No such file' save fd:900 src/vm/device-state/nic

say "the migration is not started"
outgoing vm
fake 1 'nic: .*not connected; .*is running again' save fd:900 src/vm/device-state/nic
forget src/vm

say "the migration is cancelled, or save is interrupted, while it saves, and load is told"
half_arrived() { [ "$(stat -c %s dst/vm/device-state/nic 2>/dev/null)" = 75000 ]; }
for how in cancel interrupt; do
	active
	stdin=input begin save -w fd:900 src/vm/device-state/nic
	saving=$copying
	exec {input}>input
	eventually "half of it has arrived" half_arrived
	load_begins
	loading=$copying
	eventually "it is loading" other_is_resuming
	if [ $how = cancel ]; then
		cancel
		exec {input}>&-
		pattern='writing .*nic: Operation canceled; .*is running again'
	else
		kill -INT $saving
		pattern='interrupted by a signal.*is running again'
	fi
	copying=$saving
	ends 1 "$pattern"
	is running
	copying=$loading
	cd other
	ends 1 'reading .*nic: .*has been reset'
	cd ..
	if [ $how = interrupt ]; then
		exec {input}>&-
		[ ! -e src/vm/device-state/nic ] || fail "half a state is left"
		cancel
	fi
	forget src/vm dst/vm
done

say "interrupted while it waits for the driver, and for the source"
has_state() { [ "$(cat device.state)" = "$1" ]; }
device running
fault=hang begin save fd:900 file
eventually "it is saving" has_state pre-copy
kill -TERM $copying
ends 1 'interrupted by a signal \(Terminated\).*is running again'
[ ! -e file ] || fail "half a state is left"
active
echo >src/vm/device-state/nic
tell src/vm sync
device running kept
begin load fd:900 dst/vm/device-state/nic
eventually "it waits" grep -qs 'waiting for the migration' said.err
kill -HUP $copying
ends 1 'interrupted by a signal \(Hangup\).*has been reset and is running'
cancel
forget src/vm dst/vm

say "it has not been saved before the destination has it"
in_fsync() {
	local call
	read -r call _ </proc/$copying/syscall 2>/dev/null || return 1
	case $(uname -m):$call in
	x86_64:74 | aarch64:82) ;;
	*) return 1 ;;
	esac
}
active
touch src/vm/device-state/nic
stop_migfs dst
begin save fd:900 src/vm/device-state/nic
eventually "it waits for the destination" in_fsync
is stop-copy
kill_migfs dst
ends 1 'nic has not arrived: .*; .*src/vm/error says: .*is running again'
is running
umount -l dst 2>/dev/null || fusermount3 -uz "$dir/dst"
reaches src/vm failed
forget src/vm
