#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The harness itself: what comes back from a guest, and what does not; what becomes of one that hangs, panics or is
# interrupted; two guests and their link; and counts of gcov.
. "$(dirname "$0")/functions.sh"
requires gcc gcov gcov-tool

# What tests/vm/run keeps while it runs; it is to be empty afterwards.
export TMPDIR=$dir/tmp
mkdir tmp kept
nothing_left() {
	[ -z "$(ls -A tmp)" ] || fail "left behind: $(ls -A tmp)"
	[ -z "$(processes_with "$dir/tmp/")" ] || fail "a process is left behind"
}

say "status, output, file, root, coverage"
cat >counted.c <<'END'
int main(void)
{
	return 41;
}
END
gcc --coverage -o counted counted.c
./counted && fail "it returns 41" || true
cat >script <<'END'
echo from the guest
echo to stderr >&2
uname -r
echo "a file" >"$VM_FILES/file"
echo changed >>script && rm counted.c && touch new
modprobe dummy && ip link add dummy0 type dummy && echo "a module"
echo "$MIGFS_HELPERS"
exec ./counted
END
cp script script.before
guest -o kept -- bash ./script >output
[ $status = 41 ] || fail "the status is $status, not 41"
grep -qx 'from the guest' output
grep -qx 'to stderr' output
grep -q "^${series//./\\.}\\.[0-9].*-amd64\$" output
grep -qx 'a module' output
grep -qxF "$MIGFS_HELPERS" output
same output kept/output-1
[ "$(cat kept/file)" = "a file" ] || fail "the file has not come back"
[ -e kept/console-1 ]
[ -e counted.c ] && [ ! -e new ] || fail "the guest has changed the host's files"
same script script.before
gcov counted.c >gcov.log 2>&1 || gcov counted-counted.gcda >gcov.log 2>&1
grep -qE '^ +2: +3:' counted.c.gcov || fail "not counted twice: $(cat gcov.log counted.c.gcov)"
nothing_left

say "a panic, and a guest that hangs"
(guest -- bash -c 'echo before it; echo c >/proc/sysrq-trigger' >panic.output.log 2>panic.log; echo $status >panic.status) &
panic=$!
guest -t 5 -- sleep infinity 2>late.log
[ $status = 124 ] || fail "the status of one that hangs is $status, not 124"
grep -q 'not done after 5 s' late.log
wait $panic
[ "$(cat panic.status)" = 125 ] || fail "the status after a panic is $(cat panic.status), not 125"
grep -qx 'before it' panic.output.log
grep -q 'guest 1 died' panic.log
grep -q 'Kernel panic.*sysrq triggered crash' panic.log
nothing_left

say "a command that a signal ends"
# shellcheck disable=SC2016
guest -- bash -c 'kill -9 $$' 2>/dev/null >/dev/null
[ $status = 137 ] || fail "the status is $status, not 137"

runs() { compgen -G "tmp/*/console-1" >/dev/null; }
ended_all() { [ -z "$(processes_with "$dir/tmp/")" ]; }
say "interrupted"
for signal in INT TERM; do
	env --default-signal=INT "$vm/run" -k "$series" -- sleep infinity &
	runner=$!
	eventually "QEMU runs" runs
	kill -$signal $runner
	status=0
	wait $runner || status=$?
	[ $status = $((128 + $(kill -l $signal))) ] || fail "the status after SIG$signal is $status"
	nothing_left
done
say "killed"
"$vm/run" -k "$series" -- sleep infinity &
runner=$!
eventually "QEMU runs" runs
kill -9 $runner
wait $runner 2>/dev/null || true
eventually "QEMU has ended" ended_all
rm -r tmp/*

say "two guests"
cat >first <<'END'
. "$1/guest/functions.sh"
await ready || exit 1
ip -o link show eth0 | grep -o 'mtu [0-9]*'
exec {peer}<>/dev/tcp/192.0.2.2/4242
cat <&$peer
announce done
END
cat >second <<'END'
. "$1/guest/functions.sh"
busybox nc -l -p 4242 -e /bin/echo "hello from $VM_GUEST" &
until grep -q ':1092 .* 0A ' /proc/net/tcp6; do pause; done
announce ready
await done
await never
exit 7
END
guest -2 -t 300 -- "bash $dir/first $vm" "bash $dir/second $vm" >output
cat output
[ $status = 7 ] || fail "the status is $status, not the second guest's"
grep -qx '1: mtu 4200' output
grep -qx '1: hello from 2' output
grep -qx '2: guest 1 has ended and has not said never' output
nothing_left

say "a guest that has died has one more chance"
(
	tries=0
	guest() { status=$((tries++ == 0 ? 125 : 0)); }
	guest_passes -- true
	[ $tries = 2 ]
)
not_at_all() (
	guest() { status=125; }
	guest_passes -- true
)
not not_at_all >/dev/null 2>&1
