#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Expected migrations: what mkdir made at the destination becomes the migration that arrives under its name, with what
# was prepared there; it waits for the next peer when one fails; and -o expect lets nothing else in.
. "$(dirname "$0")/functions.sh"
helper polling
polling=$helper

# reader FILE TO: somebody reads a file to its end; sets $reader
reader() {
	cat "$1" >"$2" 2>"$2.err" &
	reader=$!
}
# blocked PID: in read(2) or pread(2)
blocked() {
	local call
	read -r call _ </proc/"$1"/syscall 2>/dev/null || return 1
	case $(uname -m):$call in
	x86_64:0 | x86_64:17 | aarch64:63 | aarch64:67) ;;
	*) return 1 ;;
	esac
}
# told FILE: the last reader has ended in good order, and has read that
told() {
	eventually "the reader has ended" gone "$reader"
	wait "$reader" || fail "cat has failed: $(cat -- *.err)"
	same "$1" "$2"
}

pair -o timeout=1000
random image 3000000
random device 1234567

say "prepared, waited for, and followed"
expect ok mkdir dst/vm
[ "$(status dst/vm status) $(status dst/vm role)" = "none none" ]
expect ok write dst/vm/timeout 50
touch dst/vm/device-state/disk dst/vm/device-state/never
truncate -s 4M dst/vm/ram
expect EOPNOTSUPP read dst/vm/ram 0 10
expect EAGAIN read dst/vm/device-state/disk 0 10 nonblock
reader dst/vm/wait waited
waiter=$reader
reader dst/vm/device-state/never nothing
never=$reader
limited "$polling" follow dst/vm/device-state/disk >polled 2>polled.err &
poller=$!
reader dst/vm/device-state/disk followed
inode=$(stat -c %i dst/vm)
for pid in $waiter $never $reader; do eventually "somebody waits" blocked $pid; done
outgoing vm 3
tell src/vm start
reaches dst/vm active
[ "$(status dst/vm role) $(status dst/vm channels)" = "incoming 3" ]
[ "$(stat -c %i dst/vm)" = "$inode" ]
expect ENOENT stat dst/vm/timeout
expect ENOENT stat dst/vm/uri
refused EROFS dst/vm/error . open dst/vm/device-state/new wronly,creat
limited dd if=image of=src/vm/ram bs=100K conv=notrunc status=none
limited cp device src/vm/device-state/disk
echo other >src/vm/device-state/unexpected
told device followed
wait $poller || fail "$(cat polled.err)"
same device polled
kill -0 $waiter $never || fail "somebody did not wait for the end"
tell src/vm complete
reader=$never
told /dev/null nothing
reader=$waiter
echo completed >completed
told completed waited
same image dst/vm/ram
same device dst/vm/device-state/disk
[ "$(cat dst/vm/device-state/unexpected)" = other ]
[ "$(stat -c %s dst/vm/device-state/never)" = 0 ]
[ "$(echo $(ls dst/vm/device-state))" = "disk never unexpected" ]
outgoing again
expect ok rmdir src/vm
outgoing vm
refused EEXIST src/vm/error 'exists already: it is completed' write src/vm/control start
forget src/vm dst/vm src/again

say "its owner, its modes and its timeout"
expect ok mkdir dst/vm
touch dst/vm/device-state/disk
expect ok write dst/vm/timeout 2
chmod 750 dst/vm
chmod 640 dst/vm/device-state/disk dst/vm/ram
[ "$(id -u)" != 0 ] || chown -R 1234:5678 dst/vm
owners() { stat -c '%n %u %g %a' dst/vm dst/vm/ram dst/vm/status dst/vm/device-state dst/vm/device-state/disk; }
owners >owners.before
[ "$(id -u)" != 0 ] || grep -q 'disk 1234 5678 640' owners.before
outgoing vm
for end in failed completed; do
	tell src/vm start
	reaches dst/vm active
	owners >owners.after
	cmp owners.before owners.after
	[ $end = failed ] || break
	# The mount's timeout is longer than a test may take.
	stop_migfs src
	[[ $(limited cat dst/vm/wait) =~ ^failed:.*2000\ ms ]] || fail "wait says $(cat dst/vm/wait)"
	owners >owners.after
	cmp owners.before owners.after
	continue_migfs src
	reaches src/vm failed
	forget src/vm
	outgoing vm
done
echo theirs >src/vm/device-state/disk
tell src/vm complete
owners >owners.after
cmp owners.before owners.after
forget src/vm dst/vm

say "too large"
expect ok mkdir dst/vm
truncate -s 1M dst/vm/ram
outgoing vm
truncate -s 2M src/vm/ram
expect EDQUOT write src/vm/control start
[[ $(cat src/vm/error) =~ 1048576 ]] || fail "it says $(cat src/vm/error)"
forget src/vm
outgoing vm
tell src/vm start
expect EDQUOT pwrite src/vm/ram 1000000 100000
tell src/vm complete
[ "$(cat dst/vm/wait)" = completed ]
forget src/vm dst/vm

say "a device that is both prepared and written here"
expect ok mkdir dst/vm
exec {stream}>dst/vm/device-state/disk
outgoing vm
tell src/vm start
reaches dst/vm active
not eval 'echo ours >&"$stream"' 2>/dev/null
exec {stream}>&-
echo theirs >src/vm/device-state/disk
tell src/vm complete
[ "$(cat dst/vm/device-state/disk)" = theirs ]
forget src/vm dst/vm

say "a start that fails, and one that does not"
expect ok mkdir dst/vm
touch dst/vm/device-state/disk
reader dst/vm/wait waited
waiter=$reader
reader dst/vm/device-state/disk followed
for fault in cut=100+only=0 cut=300+only=1 cut=300+only=2 corrupt=100+only=2; do
	outgoing vm 2 "faulty:$fault:$uri"
	expect ok write src/vm/timeout 3
	attempt write src/vm/control start
	[ "$got" = ok ] && fail "$fault has done nothing"
	[ "$(status dst/vm status) $(status dst/vm role)" = "none none" ]
	expect ok rmdir src/vm
done
kill -0 $waiter $reader || fail "somebody did not wait for the next start"
outgoing vm 2 "faulty:cut=100:$uri"
attempt write src/vm/control start
expect ok write src/vm/uri "$uri"
tell src/vm start
cp device src/vm/device-state/disk
tell src/vm complete
told device followed
reader=$waiter
told completed waited
forget src/vm dst/vm

say "a failure in the middle, and the next peer"
expect ok mkdir dst/vm
touch dst/vm/device-state/disk
outgoing vm
tell src/vm start
reaches dst/vm active
reader dst/vm/wait waited
waiter=$reader
limited cat dst/vm/device-state/disk >followed 2>followed.err &
reader=$!
tell src/vm cancel
expect ok rmdir src/vm
eventually "the reader is told" gone $reader
not wait $reader
eventually "the waiter is told" gone $waiter
wait $waiter
[[ $(cat waited) =~ ^cancelled:\ the\ source: ]] || fail "wait says $(cat waited)"
is_in dst/vm cancelled
outgoing vm
tell src/vm start
reader dst/vm/device-state/disk followed
reader dst/vm/wait waited
cp device src/vm/device-state/disk
tell src/vm complete
told completed waited
same device dst/vm/device-state/disk
forget src/vm dst/vm

say "what is not expected any more"
expect ok mkdir dst/vm
touch dst/vm/device-state/disk
for end in rmdir uri; do
	[ -e dst/vm ] || expect ok mkdir dst/vm
	touch dst/vm/device-state/disk
	"$attempt" read dst/vm/device-state/disk 0 10 >answer &
	reader=$!
	eventually "somebody waits" blocked $reader
	if [ $end = rmdir ]; then expect ok rmdir dst/vm; else expect ok write dst/vm/uri "$uri"; fi
	eventually "the reader is told" gone $reader
	[ "$(cat answer)" = "$([ $end = rmdir ] && echo ECANCELED || echo EOPNOTSUPP)" ] || fail "after $end: $(cat answer)"
done
outgoing vm
refused EEXIST src/vm/error 'exists already: it is none' write src/vm/control start
forget src/vm dst/vm
unmount dst

say "-o expect"
rm -f socket
migfs dst -o "listen=$uri,expect,timeout=1000"
outgoing vm
refused EPERM src/vm/error "the destination refuses: nobody here expects a migration 'vm'" write src/vm/control start
[[ $(cat dst/.error) =~ nobody\ here\ expects ]]
expect ENOENT stat dst/vm
expect ok mkdir dst/vm
tell src/vm start
tell src/vm cancel
reaches dst/vm cancelled
forget src/vm
outgoing vm
tell src/vm start
tell src/vm complete
forget src/vm dst/vm
outgoing vm
expect EPERM write src/vm/control start
forget src/vm

say "the daemon goes away"
expect ok mkdir dst/vm
touch dst/vm/device-state/disk
"$attempt" read dst/vm/device-state/disk 0 10 >answer &
reader=$!
eventually "somebody waits" blocked $reader
kill -TERM "${daemon[dst]}"
ended dst
eventually "the reader is told" gone $reader
