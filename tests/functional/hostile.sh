#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Peers that take as much as they can: others are admitted and go on meanwhile, and when they have gone, the daemon
# has what it had before, though nobody has removed what they have left.
. "$(dirname "$0")/functions.sh"
without_tls "these peers are refused, who speak none"
helper adversary

devices=$(scaled 1024 128)
migfs dst -o "listen=tcp:127.0.0.1:0,max-memory=2G,timeout=20"
migfs src
uri=$(sed -n 's/.*listening at //p' dst.log)
port=${uri##*:}
random image 4M
without=$(count_fds dst)
has_given_back() { [ "$(count_fds dst)" -le "$without" ]; }

# The migration that runs beside.
outgoing beside 2
truncate -s 4M src/beside/ram
tell src/beside start

# attack ARGUMENT...: one from another address
attack() {
	say "$*"
	ADDRESS=127.0.0.2 limited "$helper" "$port" "$@" >attack.out 2>&1 || { cat attack.out; fail "$*"; }
	sed 's/^/    /' attack.out
}

# admitted NAME: a migration that starts now arrives, and so does what is written to the one beside
admitted() {
	outgoing "$1" 4
	truncate -s 4M "src/$1/ram"
	tell "src/$1" start
	overwrite image "src/$1/ram" bs=1M
	tell "src/$1" complete
	same image "dst/$1/ram"
	overwrite image src/beside/ram bs=64K
	tell src/beside sync
	same image dst/beside/ram
	forget "src/$1" "dst/$1"
}

round() {
	attack empty 300
	expect ok mkdir dst/local
	expect ok rmdir dst/local
	admitted after-empty
	attack devices 4 "$devices"
	admitted after-devices
	attack packed 12
	grep -qE 'max-peer-channels|max-peer-memory|max-memory' attack.out || fail "it is not said what is too much"
	admitted after-packed
	attack barriers
	admitted after-barriers

	say "held"
	mkfifo held.in
	: >held.out # what it said the last time would be taken for its word
	ADDRESS=127.0.0.2 limited "$helper" "$port" hold <held.in >held.out 2>&1 &
	holder=$!
	exec 9>held.in
	eventually "it holds what it may have" grep -qs '^held' held.out
	grep -q max-peer-migrations held.out || fail "$(cat held.out)"
	# Idle connections, too.
	: >idle.out # what it said the last time would be taken for its word
	ADDRESS=127.0.0.2 limited "$helper" "$port" idle 300 >idle.out 2>&1 &
	idle=$!
	eventually "they are there" grep -qs idle idle.out
	admitted beside-held
	exec 9>&-
	wait $holder
	wait $idle || fail "$(cat idle.out)"
	rm held.in
	# From the same address, now that those have ended.
	attack empty 1
}

# What the daemon has. Nothing is removed; what is over has to give it back by itself.
count_maps() { wc -l <"/proc/${daemon[dst]}/maps"; }
has_returned() {
	echo "descriptors $(count_fds dst) of $1, size $(memory_of dst VmSize) of $2, maps $(count_maps) of $3" >returned.log
	[ "$(count_fds dst)" -le "$1" ] && [ "$(memory_of dst VmSize)" -le $(($2 + (256 << 20))) ] &&
		[ "$(count_maps)" -le $(($3 + 40)) ]
}

# A round may make what is made once: arenas of malloc(3), workers, and what caches keep. What leaks grows in each.
settles() {
	local end=$((SECONDS + 8))
	until has_returned "$fds" "$size" "$maps"; do
		[ $SECONDS -lt $end ] || return 1
		sleep 0.02
	done
}
are_gone() {
	local n
	n=$(cat /proc/"${daemon[dst]}"/task/*/comm 2>/dev/null | grep -c mig-recv || true)
	[ "$n" = 2 ] # those of the one beside
}
round
for rounds in 2 3 4; do
	eventually "the threads of the peers are gone" are_gone
	fds=$(count_fds dst) size=$(memory_of dst VmSize) maps=$(count_maps) rss=$(memory_of dst RssAnon)
	[ "$fds" -lt 100 ] || fail "what has failed holds descriptors: there are $fds"
	[ -n "$MIGFS_SLOW" ] || [ "$size" -lt $((1 << 40)) ] || fail "it has $size bytes of address space"
	round
	! settles || break
	say "after round $rounds it has more: $(cat returned.log)"
	[ "$rounds" != 4 ] || fail "what it has grows with each round"
done
now=$(memory_of dst RssAnon)
[ -n "$MIGFS_SLOW" ] || [ "$now" -lt $((rss + (32 << 20))) ] || fail "it had $rss bytes, and has $now"

tell src/beside complete
same image dst/beside/ram

say "no descriptors left"
# As many connections that say nothing as there are numbers below the limit that no descriptor has, when those of
# the one beside have been given back.
forget src/beside dst/beside
eventually "no migration has any" has_given_back
limit=$(($(count_fds dst) + 20))
taken=0
for fd in "/proc/${daemon[dst]}/fd"/*; do
	[ "${fd##*/}" -ge $limit ] || taken=$((taken + 1))
done
prlimit --pid "${daemon[dst]}" --nofile=$limit:
had=$(count_fds dst)
ADDRESS=127.0.0.2 limited "$helper" "$port" idle $((limit - taken)) >idle.out 2>&1 &
idle=$!
all_taken() { [ "$(count_fds dst)" -ge $((had + limit - taken)) ]; }
eventually "they have been taken" all_taken
outgoing starved
refused ENOMEM src/starved/error 'no file descriptors left' write src/starved/control start
wait $idle || fail "$(cat idle.out)"
[ "$(grep -c 'refusing connections' dst.log)" = 1 ] || fail "the log does not say it once"
prlimit --pid "${daemon[dst]}" --nofile=1024:
tell src/starved start
tell src/starved complete
