#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# `resume`: connections that are cut at random bytes are made again, and every migration completes with what was sent; a
# link that is lost for a while is a pause, for the writer too; one that does not come back, and a destination that has been
# started again, end the migration on both sides, with a sentence. MIGFS_CUTS=1000 is the full run, MIGFS_SEED has one again.
[ -z "${MIGFS_CUTS:-}" ] || export MIGFS_TEST_LIMIT=${MIGFS_TEST_LIMIT:-$((MIGFS_CUTS + 200))}
MIGFS_TEST_LISTEN=tcp:127.0.0.1:0
. "$(dirname "$0")/functions.sh"

seed=${MIGFS_SEED:-$RANDOM$RANDOM}
cuts=${MIGFS_CUTS:-$(scaled 200 60)}
size=$(scaled 40000000 6000000)

# begins NAME CHANNELS [KEY=VALUE...]: an outgoing migration with these settings, and `resume`
begins() {
	local name=$1 setting
	outgoing "$name" "$2"
	expect ok write "src/$name/resume" 30
	for setting in "${@:3}"; do
		expect ok write "src/$name/${setting%%=*}" "${setting#*=}"
	done
}

# ends_well NAME: it has completed on both sides, with the image and the devices
ends_well() {
	reaches "src/$1" completed
	reaches "dst/$1" completed
	[ -z "$(limited cat "src/$1/error")" ] || fail "$1 has completed, and 'error' says: $(limited cat "src/$1/error")"
	same image "dst/$1/ram"
	compare_devices "dst/$1"
	forget "src/$1" "dst/$1"
}

# is_paused MIGRATION: it says so, and why
is_paused() {
	reaches "$1" paused
	[ -n "$(status "$1" pause-reason)" ] || is_in "$1" active || fail "$1 is paused and does not say why"
}

# loses NAME: its link goes down, and both ends are paused
loses() {
	ask down
	is_paused "src/$1"
	is_paused "dst/$1"
}

pair -o timeout=20
lay "$seed"
say "seed $seed"
random image "$size"
make_devices
remember_resources

say "what cannot be resumed is refused"
begins refused 2 zero-copy=require
refused EOPNOTSUPP src/refused/error 'zero-copy is required, but with resume' write src/refused/control start
expect ok write src/refused/zero-copy auto
expect ok write src/refused/splice on
refused EOPNOTSUPP src/refused/error 'splice is on, but with resume' write src/refused/control start
expect ok write src/refused/splice auto
refused EINVAL src/refused/error 'not a number of seconds' write src/refused/resume 3601
refused EINVAL src/refused/error 'not a number of seconds' write src/refused/resume soon
[ "$(limited cat src/refused/resume)" = 30 ] || fail "resume reads back as $(limited cat src/refused/resume)"
if "$MIGFS" -V | grep -q 'with RDMA'; then
	expect ok write src/refused/uri rdma:192.0.2.1:1
	refused EOPNOTSUPP src/refused/error 'resume is not possible by RDMA' write src/refused/control start
fi
forget src/refused

say "$cuts cuts"
done=0 round=0
kinds=("" "compression=zstd" "checksum=on" "dirty-tracking=compare" "device-channels=1" "zero-page-detection=off")
ways=(pushed compare bitmap)
while [ $done -lt "$cuts" ]; do
	name=cut$round way=${ways[round % 3]} kind=${kinds[round % 6]}
	# Each connection is cut sooner or later, also while it says hello.
	case $((round % 4)) in
	0) ask "cut 20 1 3000" ;;
	1) ask "cut 20 300 400000" ;;
	2) ask "cut 20 1000 $((size / 4))" ;;
	3) ask "cut 20 1 $((size / 20))" ;;
	esac
	[ $way != compare ] || kind=dirty-tracking=compare
	begins "$name" $((2 + round % 3)) $kind
	[ $way != pushed ] || truncate -s "$size" "src/$name/ram"
	[ $way = pushed ] || expect ok write "src/$name/ram-source" "$dir/image"
	# A connection that is lost before it was accepted for the first time is no one's yet, and may be refused.
	tell "src/$name" start
	write_devices "src/$name"
	case $way in
	pushed) overwrite image "src/$name/ram" bs=1M conv=notrunc,fsync ;;
	compare) tell "src/$name" precopy ;;
	bitmap) head -c $((((size + 4095) / 4096 + 63) / 64 * 8)) /dev/zero | tr '\0' '\377' >"src/$name/dirty" ;;
	esac
	await_devices
	[ $((round % 2)) = 0 ] || tell "src/$name" sync
	tell "src/$name" complete
	ask cuts
	done=$((done + answer))
	ask "cut 0 1 1"
	ends_well "$name"
	round=$((round + 1))
	[ $round -lt 500 ] || fail "$done cuts in $round migrations"
done
say "$done cuts in $round migrations"
same_resources

say "the link is lost for a while"
begins while 3
truncate -s "$size" src/while/ram
tell src/while start
overwrite image src/while/ram bs=1M count=2
tell src/while sync
write_devices src/while
await_devices
tell src/while sync
loses while
grep -q '"status": "paused"' src/while/status.json
limited cat src/while/error | grep -q . || fail "'error' says nothing while it is paused"
expect_status src/while pauses -eq 1
# More than is kept and queued for a destination that is not there, if it is large.
dd if=image of=src/while/ram bs=1M conv=notrunc status=none &
writer=$!
refused EBUSY src/while/error 'has been started already' write src/while/control start
expect EBUSY rmdir dst/while
grep -q 'the migration is paused' dst/while/error || fail "rmdir says: $(cat dst/while/error)"
if [ "$size" -gt 33554432 ]; then
	eventually "the writer is blocked" in_write $writer
fi
ask up
wait $writer || fail "the writer was told that the link was lost"
reaches src/while active
reaches dst/while active
[[ $(limited cat src/while/error) = *"has been started already"* ]] || fail "error says: $(limited cat src/while/error)"

say "commands wait, and can be interrupted"
ask down
is_paused src/while
for what in sync complete; do
	command_in_background src/while $what
	eventually "$what has begun" in_write $command
	kill -INT "$command"
	eventually "$what has ended" gone "$command"
	wait "$command" || true
	[ ! -s answer ] || fail "$what was not interrupted: it says $(cat answer)"
done
is_in src/while paused || fail "src/while is $(status src/while status)"
ask up
reaches src/while active
tell src/while complete
reaches src/while completed
reaches dst/while completed
expect_status src/while paused-time -gt 0
same image dst/while/ram
compare_devices dst/while
forget src/while dst/while

say "in the middle of complete, at each of its messages"
for ((bytes = 1; bytes < 700; bytes += $(scaled 60 250))); do
	begins last 2
	truncate -s 300000 src/last/ram
	tell src/last start
	limited dd if=image of=src/last/ram bs=100000 count=3 conv=notrunc status=none
	tell src/last sync
	ask "cut 3 $bytes $bytes"
	tell src/last complete
	ask "cut 0 1 1"
	reaches dst/last completed
	cmp -n 300000 image dst/last/ram
	forget src/last dst/last
done

say "cancelled during the pause: the destination hears of it as soon as it can be reached"
begins cancelled 2
tell src/cancelled start
loses cancelled
tell src/cancelled cancel
reaches src/cancelled cancelled
rmdir src/cancelled
is_paused dst/cancelled
ask up
reaches dst/cancelled cancelled
says_why dst/cancelled
[[ $(limited cat dst/cancelled/wait) = "cancelled: the source: cancelled at the source"* ]] ||
	fail "wait says: $(limited cat dst/cancelled/wait)"
rmdir dst/cancelled
begins cancelled 2
tell src/cancelled start
tell src/cancelled complete
forget src/cancelled dst/cancelled

say "cancelled during the pause, and not reached"
begins unreached 2
expect ok write src/unreached/resume 1
tell src/unreached start
loses unreached
tell src/unreached cancel
reaches src/unreached cancelled
reaches dst/unreached failed
says_why dst/unreached
[[ $(limited cat dst/unreached/wait) = "failed: "*"has not come back within 1 s"* ]] || fail "wait says: $(limited cat dst/unreached/wait)"
ask up
forget src/unreached dst/unreached

say "cancelled at the destination during the pause"
begins refused 2
tell src/refused start
loses refused
tell dst/refused cancel
command_in_background src/refused sync
ask up
command_says ECANCELED
reaches src/refused cancelled
[[ $(limited cat src/refused/error) = *"given up there: cancelled at the destination" ]] ||
	fail "error says: $(limited cat src/refused/error)"
forget src/refused dst/refused

say "the link does not come back"
begins gone 2
expect ok write src/gone/resume 1
truncate -s "$size" src/gone/ram
tell src/gone start
overwrite image src/gone/ram bs=1M count=2
ask down
attempt write src/gone/control complete
[[ $got =~ ^(ECONNRESET|ECONNREFUSED|ETIMEDOUT)$ ]] || fail "complete gives $got"
reaches src/gone failed
reaches dst/gone failed
says_why src/gone
says_why dst/gone
[[ $(limited cat src/gone/error) = *"could not be made again within 1 s"* ]] || fail "error says: $(limited cat src/gone/error)"
ask up
forget src/gone dst/gone
same_resources

say "the destination has been started again"
begins again 2
tell src/again start
ask down
is_paused src/again
port=${uri##*:}
kill_migfs dst
umount -l dst
listens=$(sed -n 's/^migfs: listening at //p' dst.log | tail -n 1)
migfs dst -o "listen=$listens,timeout=20"
ask up
reaches src/again failed
[[ $(limited cat src/again/error) = *"cannot go on here: this daemon has been started again since"* ]] ||
	fail "error says: $(limited cat src/again/error)"
forget src/again

say "the daemon goes away with a goodbye that nobody hears"
begins unheard 2
tell src/unheard start
ask down
is_paused src/unheard
tell src/unheard cancel
unmount src
not grep 'not all migrations have ended' src.log
