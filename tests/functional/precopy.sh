#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A guest that goes on writing moves by `precopy`, and nobody says what it has changed (dirty-tracking compare). What is
# written to `ram` a second time is sent only where it is another thing.
. "$(dirname "$0")/functions.sh"
helper busy

pair
size=$(scaled 64 24)
truncate -s ${size}M vm.ram
random part $((size * 3 / 4))M
dd if=part of=vm.ram conv=notrunc bs=1M status=none # and holes at the end

# guest MIB-PER-SECOND FLIPPED: begins to write; rest: stops it
guest() {
	mkfifo guest.in
	: >guest.out
	"$helper" vm.ram "$@" <guest.in >guest.out &
	guest=$!
	exec {power}>guest.in
	rm guest.in
	eventually "the guest runs" grep -q busy guest.out
}
rest() {
	exec {power}>&-
	wait $guest || fail "the guest has failed"
	cat guest.out
}
# live NAME CHANNELS [SETTING VALUE]...: one that is active
live() {
	local name=$1
	say "$*"
	outgoing "$name" "$2"
	for ((i = 3; i < $#; i += 2)); do expect ok write "src/$name/${!i}" "${@:$((i + 1)):1}"; done
	expect ok write "src/$name/dirty-tracking" compare
	expect ok write "src/$name/ram-source" "$dir/vm.ram"
	tell "src/$name" start
}
# arrived NAME: and forgotten
arrived() {
	same vm.ram "dst/$1/ram"
	[ "$(status "src/$1" accepted-bytes)" = "$(status "dst/$1" accepted-bytes)" ] || fail "accepted-bytes differ"
	forget "src/$1" "dst/$1"
}

for channels in 1 2 5; do
	guest 20 16
	live vm $channels downtime-limit 3600000
	tell src/vm precopy
	rest
	tell src/vm complete
	arrived vm
done
guest 10 8
live zstd 2 compression zstd downtime-limit 3600000
tell src/zstd precopy
tell src/zstd precopy
rest
tell src/zstd complete
arrived zstd

say "what does not change is not sent again"
live still 2 max-rounds 3
tell src/still precopy
before=$(status src/still multifd-bytes)
tell src/still precopy
rounds=$(status src/still precopy-rounds)
[ "$rounds" -ge 2 ] || fail "$rounds rounds"
[ "$(status src/still round-"$rounds"-changed-pages)" = 0 ] || fail "pages that nobody writes change"
[ "$(status src/still round-"$rounds"-scanned-pages)" = $((size * 256)) ] || fail "not all of it was looked at"
printf x | dd of=vm.ram bs=1 seek=1234567 conv=notrunc status=none
fallocate -p -o $((2 << 20)) -l 8192 vm.ram
expected=$(status src/still expected-downtime)
tell src/still complete
took=$(status src/still complete-time)
[ "$took" = "$(status src/still downtime)" ] || fail "nobody has said stop, and complete took $took ms of the downtime"
say "complete was expected to take $expected ms, and took $took"
sent=$(($(status src/still multifd-bytes) - before))
[ "$sent" -lt 100000 ] || fail "$sent bytes for three pages"
arrived still

say "too few rounds"
live fast 2 downtime-limit 3600000
tell src/fast precopy
expect ok write src/fast/max-bandwidth 1M
expect ok write src/fast/downtime-limit 1
expect ok write src/fast/max-rounds 1
dd if=/dev/urandom of=vm.ram bs=256K seek=3 count=1 conv=notrunc status=none
refused ETIME src/fast/error 'after 1 rounds a switch-over would take [0-9]+ ms, and downtime-limit is 1' write src/fast/control precopy
is_in src/fast active || fail "it has not gone on"
grep -q '"precopy": \[' src/fast/status.json || fail "status.json has no rounds"
[ "$(status src/fast round-2-changed-pages)" = 64 ] || fail "$(status src/fast round-2-changed-pages) pages have changed"
expect ok write src/fast/max-rounds 30
expect ok write src/fast/max-bandwidth 0
attempt write src/fast/control precopy
case $got in
ETIME) grep -q 'takes [0-9]* ms by itself' src/fast/error || fail "precopy says $(cat src/fast/error)" ;;
ok) say "this machine looks at $size MiB in a millisecond" ;;
*) fail "precopy says $got" ;;
esac
[ "$(status src/fast precopy-rounds)" -lt 20 ] || fail "rounds that cannot help: $(status src/fast precopy-rounds)"
expect ok write src/fast/downtime-limit 3600000
tell src/fast precopy
tell src/fast complete
arrived fast

say "interrupted, cancelled"
live slow 2
tell src/slow precopy
stop_migfs dst # so it waits for the barrier
command_in_background src/slow precopy
eventually "it runs" in_write "$command"
refused EBUSY src/slow/error 'another precopy runs' write src/slow/control precopy
tell src/slow cancel
command_says ECANCELED
continue_migfs dst
reaches dst/slow cancelled failed
forget src/slow dst/slow

say "pushed"
outgoing pushed 3
expect ok write src/pushed/dirty-tracking compare
truncate -s ${size}M src/pushed/ram
tell src/pushed start
overwrite vm.ram src/pushed/ram bs=1M
tell src/pushed precopy
before=$(status src/pushed multifd-bytes)
# Whole pages, from anywhere, and one that has changed; parts of pages always go.
overwrite vm.ram src/pushed/ram bs=1M
overwrite vm.ram src/pushed/ram bs=4K
printf y | dd of=vm.ram bs=1 seek=54321 conv=notrunc status=none
overwrite vm.ram src/pushed/ram bs=256K
tell src/pushed sync
sent=$(($(status src/pushed multifd-bytes) - before))
[ "$sent" -lt $((size << 20 >> 6)) ] || fail "$sent bytes for one page of $size MiB"
same vm.ram dst/pushed/ram
# A part of a page, and the same page as it was; a hole, and what was there.
overwrite part src/pushed/ram bs=1000 count=1 skip=7 seek=7
fallocate -p -o 4096 -l 1048576 src/pushed/ram
tell src/pushed sync
cmp -n $((1 << 20)) -i $((1 << 16)) /dev/zero dst/pushed/ram >/dev/null 2>&1 || [ "$(dd if=dst/pushed/ram bs=4096 skip=1 count=256 status=none | tr -d '\0' | wc -c)" = 0 ] ||
	fail "the hole is not there"
overwrite vm.ram src/pushed/ram bs=1M
tell src/pushed complete
arrived pushed

say "no faster than it may"
random paced 6M
outgoing paced 3
expect ok write src/paced/max-bandwidth 10M
truncate -s 6M src/paced/ram
tell src/paced start
begun=${EPOCHREALTIME/./}
overwrite paced src/paced/ram bs=1M
tell src/paced sync
took=$((${EPOCHREALTIME/./} - begun))
[ $took -gt 500000 ] || fail "6 MiB at 10 MiB/s took $took us"
# Another rate at once, also for what waits.
expect ok write src/paced/max-bandwidth 1M
overwrite paced src/paced/ram bs=1M &
writer=$!
expect ok write src/paced/max-bandwidth 0
wait $writer
tell src/paced complete
same paced dst/paced/ram
forget src/paced dst/paced

say "mistakes"
outgoing wrong
refused EINVAL src/wrong/error "'hash' is neither bitmap nor compare" write src/wrong/dirty-tracking hash
refused EINVAL src/wrong/error "1M at least" write src/wrong/max-bandwidth 1000
refused EINVAL src/wrong/error "is not a number of rounds" write src/wrong/max-rounds 0
refused EINVAL src/wrong/error "is not a number of milliseconds" write src/wrong/downtime-limit soon
refused ENOTCONN src/wrong/error "not been started" write src/wrong/control precopy
tell src/wrong start
tell src/wrong precopy
refused EBUSY src/wrong/error "" write src/wrong/dirty-tracking bitmap
expect ok write src/wrong/max-bandwidth 2M
[ "$(cat src/wrong/max-bandwidth)" = 2097152 ]
tell src/wrong complete
