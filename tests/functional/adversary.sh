#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Peers that mean harm, or are broken; see adversary.c for what they do. Each is refused with a line in the log, the
# daemon stays within its limits, and a migration that runs at the same time is not disturbed.
. "$(dirname "$0")/functions.sh"
without_tls "this peer is refused, which speaks none"
helper adversary

migfs dst -o listen=tcp:127.0.0.1:0,max-ram=64M,max-device=16M,max-devices=8,max-memory=256M,max-migrations=32,timeout=5
migfs src
uri=$(sed -n 's/.*listening at //p' dst.log)
port=${uri##*:}
seed=$((RANDOM * 32768 + RANDOM))
random image 20M

# The migration that is not to be disturbed: it writes until the file is gone, and has a stream that is open.
remember_resources
outgoing good 3
truncate -s 20M src/good/ram
tell src/good start
touch running
(
	while [ -e running ]; do
		limited dd if=image of=src/good/ram bs=256K conv=notrunc status=none
		limited dd if=image of=src/good/device-state/dev bs=64K count=4 status=none
		expect ok write src/good/control sync
		limited cmp -n 262144 image dst/good/device-state/dev
	done
) &
good=$!

# attack ARGUMENT...: says what it is told
attack() {
	say "$*"
	limited "$helper" "$port" "$@" >attack.out 2>&1 || { cat attack.out; fail "$*"; }
	sed 's/^/    /' attack.out
	[ "$(status src/good status)" = active ] || fail "the good migration is $(status src/good status)"
	[ "$(status dst/good status)" = active ] || fail "the good migration is $(status dst/good status)"
	! gone $good || fail "the good writer has ended"
}
# logged PATTERN...: that there is a line for it
logged() {
	local pattern
	for pattern; do
		grep -qE "$pattern" dst.log || fail "the log does not say '$pattern'"
	done
}

attack hellos
logged 'not a migfs peer' 'speaks version' 'damaged' 'kind 5' '129 channels' 'features' 'bad name' "'\.\./x'" 'no slash'
[[ $(cat dst/.error) =~ refused ]] || fail "dst/.error says '$(cat dst/.error)'"
! LC_ALL=C grep -q $'\033' dst.log || fail "a peer can write escapes to the log"
attack random $(scaled 300 50) $seed
attack cut
logged 'closed before it said hello' 'has not said hello'
attack same good
logged 'exists already'
attack channels
logged 'is there already' 'no such migration' 'too late|came when'
attack missing
logged '[02] of 4 channels have arrived'
attack messages
attack packets
logged 'where packet 1 of channel 0 was due' 'has not been announced' 'home is another channel' 'arrived damaged' 'grows to' \
	'middle of a packet' 'compression was not asked for' 'truncation 1 after truncation 1'
attack noise $(scaled 60 15) $seed
# What was active and failed can be seen, and why.
says_why dst/adversary

say "to a migration that somebody has prepared"
expect ok rmdir dst/adversary
expect ok mkdir dst/adversary
touch dst/adversary/device-state/{dev,dev1,never}
chmod 700 dst/adversary
attack messages
attack packets
attack noise $(scaled 30 10) $((seed + 1))
says_why dst/adversary
[ "$(stat -c %a dst/adversary)" = 700 ]
for device in dev dev1 never; do expect ok stat dst/adversary/device-state/$device; done
forget dst/adversary
attack budget
logged 'does not fit|holds at most'
attack many 40
logged 'migrations already'

say "1000 idle connections"
before_idle=$(memory_of dst RssAnon)
: >idle.out # what it said the last time would be taken for its word
limited "$helper" "$port" idle 1000 >idle.out 2>&1 &
idle=$!
eventually "they are there" grep -qs idle idle.out
[ "$(count_fds dst)" -lt 500 ] || fail "the daemon has $(count_fds dst) descriptors"
[ -n "$MIGFS_SLOW" ] || [ $(($(memory_of dst RssAnon) - before_idle)) -lt $((20 << 20)) ] || fail "the daemon grows"
outgoing meanwhile 4
truncate -s 20M src/meanwhile/ram
tell src/meanwhile start
overwrite image src/meanwhile/ram bs=1M
tell src/meanwhile complete
same image dst/meanwhile/ram
wait $idle || fail "$(cat idle.out)"
logged 'say nothing'
forget src/meanwhile dst/meanwhile

say "and the good one"
rm running
wait $good || fail "the good writer has failed"
tell src/good complete
same image dst/good/ram
cmp -n 262144 image dst/good/device-state/dev
reaches dst/good completed
forget src/good dst/good

shopt -s nullglob
forget dst/*
# The kernel remembers a name that has made way until somebody looks for it.
expect ENOENT stat dst/adversary
same_resources
[ -n "$MIGFS_SLOW" ] || [ "$(memory_of dst VmHWM)" -lt $((128 << 20)) ] || fail "the daemon has had $(memory_of dst VmHWM) bytes"
