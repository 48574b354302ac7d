#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# examples/live-migrate moves a guest that writes over a link of 1 Gbit/s, 20 ms there and back; before that, everything
# that can go wrong, after each of which the guest still runs at the source and nothing is left.
. "$(dirname "$0")/functions.sh"
requires qemu-system-x86_64 as ld python3 script

tool=$root/examples/live-migrate
hosts_far_apart 1000 10
mkdir received
in_namespace $b dst -o "insecure,listen=tcp:192.0.2.2:0,backing=$dir/received"
in_namespace $b memfd -o "insecure,listen=tcp:192.0.2.2:0"
in_namespace $a src
uri=$(sed -n 's/^migfs: listening at //p' dst.log)

as --32 --defsym LAST=$((96 << 20)) --defsym CHUNK=524288 --defsym TICKS=15640 -o guest.o "$root/examples/guest.s" # 40 MB/s
ld -m elf_i386 -Ttext 0x7c00 --oformat binary -o guest.img guest.o
# vm NAME RAM: sets $words to those that call QEMU
vm() {
	words=(qemu-system-x86_64 -accel tcg -machine "pc,memory-backend=ram" -m 128 -nodefaults -no-user-config -display none
		-no-reboot -drive "if=floppy,format=raw,readonly=on,file=$dir/guest.img" -serial "file:$dir/$1.serial"
		-object "memory-backend-file,id=ram,share=on,size=128M,mem-path=$2")
}
counter() { cat "$1.serial" 2>/dev/null | grep -c 'block [0-9]* good$' || true; }
counter_above() {
	! grep -q WRONG "$1.serial" 2>/dev/null || fail "the guest has found a wrong word in its memory"
	[ "$(counter "$1")" -gt "$2" ]
}

vm source "$dir/ram"
"${words[@]}" -qmp unix:qmp,server=on,wait=off -monitor unix:monitor,server=on,wait=off >qemu.log 2>&1 &
qemu=$!
eventually "the guest runs" counter_above source 4

# send [OPTION...] MIGRATION; sends STATUS PATTERN [OPTION...]: what it ends with, and says
send() { "$tool" send --qmp qmp "$@"; }
sends() {
	local status=0
	limited env --default-signal=INT "$tool" send "${@:3}" >said 2>&1 || status=$?
	[ $status = "$1" ] && grep -qE -- "$2" said || fail "send ${*:3}: status $status, and says: $(cat said)"
}
# here: the guest runs, and there is no migration of it
here() {
	eventually "the guest goes on" counter_above source "$(counter source)"
	[ ! -e src/vm ] || fail "src/vm is left"
	rmdir dst/vm 2>/dev/null || true
}

say "not this socket"
sends 1 'there is no QMP socket nowhere: start QEMU with' --qmp nowhere --uri "$uri" src/vm
sends 1 'it is no socket|Connection refused|nobody listens' --qmp guest.img --uri "$uri" src/vm
sends 1 'monitor is no QMP socket of QEMU' --qmp monitor --uri "$uri" src/vm
python3 -c '
import signal, socket
s = socket.socket(socket.AF_UNIX)
s.connect("qmp")
print(s.recv(3), flush=True)
signal.pause()' >taken.log &
other=$!
eventually "another client has the socket" test -s taken.log
sends 1 'does not greet.*another client' --qmp qmp --uri "$uri" src/vm
kill $other
wait $other || true

say "not this guest"
qemu-system-x86_64 -S -machine pc -m 64 -nodefaults -display none -qmp unix:private,server=on,wait=off &
private=$!
eventually "it has a socket" test -S private
sends 1 'pc.ram, memory-backend-ram\) is no shared file: QEMU has to be started with' --qmp private --uri "$uri" src/vm
kill $private
wait $private || true
sends 1 'has not mapped guest.img: that is not the RAM' --qmp qmp --ram guest.img --uri "$uri" src/vm
sends 1 'nowhere: No such file.*--ram' --qmp qmp --ram nowhere --uri "$uri" src/vm

say "not there"
sends 1 'received is no mount of migfs' --qmp qmp --uri "$uri" received/vm
sends 1 'no destination: --uri' --qmp qmp src/vm
sends 1 "cannot be the uri" --qmp qmp --uri nonsense src/vm
sends 1 "cannot be the channels of vm: '0'" --qmp qmp --uri "$uri" --channels 0 src/vm
sends 1 "there is no setting 'speed'" --qmp qmp --uri "$uri" --set speed=1 src/vm
sends 1 "there is no setting 'control'" --qmp qmp --uri "$uri" --set control=cancel src/vm
sends 1 "compression: it has no value" --qmp qmp --uri "$uri" --set compression src/vm
sends 1 'Connection refused' --qmp qmp --uri tcp:192.0.2.2:1 src/vm
grep -q 'the guest runs on here' said
here
mkdir src/vm dst/vm
echo "$uri" >src/vm/uri
tell src/vm start
sends 1 'the name vm is taken by a migration that is active' --qmp qmp --uri "$uri" src/vm
[ "$(status src/vm status)" = active ] || fail "it has ended what is not its own"
tell src/vm cancel
forget src/vm
reaches dst/vm cancelled failed
sends 2 'usage' src/vm

say "it does not converge"
sends 1 'it does not converge: after 2 rounds' --qmp qmp --uri "$uri" --downtime-limit 1 --max-rounds 2 src/vm
here

# interrupted STATE OPTION...: by ^C, in a state
interrupted() {
	local status=0 state=$1
	env --default-signal=INT "$tool" send --qmp qmp --uri "$uri" "${@:2}" src/vm >said 2>&1 &
	sending=$!
	reaches src/vm "$state"
	kill -INT $sending
	wait $sending || status=$?
	[ $status = 130 ] && grep -q 'interrupted by SIGINT; the guest runs on here' said || fail "status $status: $(cat said)"
	here
}
say "^C in a round"
interrupted active --max-bandwidth 5M
say "^C in the last round, when the guest stands still"
interrupted completing --max-bandwidth 100M --downtime-limit 3600000 --set channels=1

say "not at the destination"
receives() {
	local status=0
	limited "$tool" receive "${@:3}" >received.log 2>&1 || status=$?
	[ $status = "$1" ] && grep -qE -- "$2" received.log || fail "receive ${*:3}: status $status, and says: $(cat received.log)"
}
receives 1 'has no \{ram\}' dst/vm -- qemu-system-x86_64
receives 2 usage dst/vm
vm there '{ram}'
"$tool" receive memfd/vm -- "${words[@]}" >received.log 2>&1 &
receiving=$!
eventually "it is expected" test -d memfd/vm
sends 1 'it does not converge|cancel|Canceled|fail' --qmp qmp --uri "$(sed -n 's/^migfs: listening at //p' memfd.log)" --max-rounds 1 --downtime-limit 1 src/vm
not wait $receiving
grep -q 'mount it with -o backing=DIR' received.log || fail "$(cat received.log)"
here
"$tool" receive dst/vm -- nowhere {ram} >received.log 2>&1 &
receiving=$!
eventually "it is expected" test -d dst/vm
sends 1 cancel --qmp qmp --uri "$uri" src/vm
not wait $receiving
grep -q 'nowhere: No such file' received.log || fail "$(cat received.log)"
here

say "and it moves"
vm destination '{ram}'
"$tool" receive --wait dst/vm -- "${words[@]}" -qmp unix:qmp2,server=on,wait=off >received.log 2>&1 &
receiving=$!
eventually "it is expected" test -d dst/vm
# Where there is a terminal, a line shows how far it is.
limited script -qec "$tool send --qmp qmp --uri $uri --channels 2 --quit src/vm" /dev/null >said 2>&1 || fail "$(cat said) $(cat received.log)"
sed 's/^/    /' said
wait $qemu
eventually "the guest goes over all of its memory" counter_above destination 9
sed 's/^/    /' received.log
grep -q 'active: .* sent of 128 MiB, ' said || fail "no progress is shown"
grep -q 'round 1: 128 MiB of 128 MiB' said
grep -q 'vm runs,' received.log
kill "$(sed -n 's/.*QEMU is process //p' received.log)"
wait $receiving || true
cat source.serial destination.serial | awk '{ line[NR] = $0 } END { for (n = 1; n < NR; n++)
	if (line[n] != "pass " int((n - 1) / 8) + 1 " block " n " good") { print "the guest said " line[n] " in line " n; exit 1 } }'
cut_link
