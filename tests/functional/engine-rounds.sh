#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Rounds, the stop mark, the downtime, and digests of both sides.
. "$(dirname "$0")/functions.sh"

# is WHAT WANT HAVE; within WHAT MIN MAX HAVE
is() { [ "$3" = "$2" ] || fail "$1: expected $2, got $3"; }
within() { [ "$4" -ge "$2" ] && [ "$4" -le "$3" ] || fail "$1: $4 is not within $2 and $3"; }
now_ms() { echo $(($(date +%s%N) / 1000000)); }

# Nobody but the test waits here: time that has to pass.
pass() { sleep "0.$1"; }

# rounds NAME [SETTING VALUE]...
rounds() {
	local name=$1 count=0 before after
	say "$*"
	outgoing "$name" 3
	for ((i = 2; i < $#; i += 2)); do expect ok write "src/$name/${!i}" "${@:$((i + 1)):1}"; done
	truncate -s 16M "src/$name/ram"
	before=$(now_ms)
	tell "src/$name" start
	is "$name: rounds at first" 0 "$(status "src/$name" dirty-sync-count)"
	round() { # PAGES: that the last round had
		count=$((count + 1))
		is "$name: rounds" $count "$(status "src/$name" dirty-sync-count)"
		is "$name: pages of round $count" "$1" "$(status "src/$name" last-round-pages)"
		is "$name: bytes of round $count" $(($1 * 4096)) "$(status "src/$name" last-round-bytes)"
	}
	overwrite image "src/$name/ram" bs=1M
	asked=$(now_ms)
	tell "src/$name" sync
	after=$(now_ms)
	round 4096
	within "$name: time of the first round" 0 $((after - before + 2)) "$(status "src/$name" last-round-time)"
	within "$name: expected downtime" 0 $((after - before + 2)) "$(status "src/$name" expected-downtime)"

	# A round takes from the last one to its end.
	pass 3
	overwrite image "src/$name/ram" bs=64K count=10 seek=5
	overwrite /dev/zero "src/$name/ram" bs=4K count=7
	tell "src/$name" "sync ram"
	after=$(now_ms)
	round 167
	within "$name: time of the second round" 300 $((after - asked + 2)) "$(status "src/$name" last-round-time)"
	within "$name: dirty rate" 1 $((167 * 1000 / 300)) "$(status "src/$name" dirty-pages-rate)"

	# Nothing dirty; then what is no round.
	expect ok fsync "src/$name/ram"
	round 0
	echo state >"src/$name/device-state/dev"
	tell "src/$name" "sync device-state/dev"
	tell "src/$name" flush
	tell "src/$name" "flush ram"
	expect ok fsync "src/$name/device-state/dev"
	is "$name: rounds after what is none" $count "$(status "src/$name" dirty-sync-count)"
	is "$name: pages of a round after what is none" 0 "$(status "src/$name" last-round-pages)"
	# One page twice is two, and devices are not counted.
	overwrite image "src/$name/ram" bs=4K count=1
	overwrite image "src/$name/ram" bs=4K count=1
	head -c 100000 image >"src/$name/device-state/dev"
	tell "src/$name" sync
	round 2
	eventually "all has left" nothing_remains "$name"
	grep -q '"dirty-sync-count": '$count, "src/$name/status.json"
	tell "src/$name" complete
	same "dst/$name/device-state/dev" <(head -c 100000 image)
	forget "src/$name" "dst/$name"
}
nothing_remains() { [ "$(status "src/$1" remaining)" = 0 ]; }

# downtime NAME [stop]: from the mark, or else from `complete`, to the end
downtime() {
	local name=$1 before after downtime
	say "$*"
	outgoing "$name" 2
	expect ENOTCONN write "src/$name/control" stop
	truncate -s 16M "src/$name/ram"
	tell "src/$name" start
	overwrite image "src/$name/ram" bs=1M
	tell "src/$name" sync
	pass 4
	before=$(now_ms)
	[ $# = 1 ] || tell "src/$name" stop
	is "$name: downtime before the end" 0 "$(status "src/$name" downtime)"
	overwrite image "src/$name/ram" bs=64K count=3
	[ $# = 1 ] || pass 3
	[ $# != 1 ] || before=$(now_ms)
	tell "src/$name" complete
	after=$(now_ms)
	downtime=$(status "src/$name" downtime)
	within "$name: downtime" $(($# == 1 ? 0 : 300)) $((after - before + 2)) "$downtime"
	within "$name: total time" $((400 + downtime)) 60000 "$(status "src/$name" total-time)"
	within "$name: setup time" 0 $(($(status "src/$name" total-time) - 400 - downtime)) "$(status "src/$name" setup-time)"
	pass 2
	is "$name: downtime later" "$downtime" "$(status "src/$name" downtime)"
	expect EBUSY write "src/$name/control" stop
	forget "src/$name" "dst/$name"
}

# digest_of MOUNT NAME FILE
digest_of() { limited awk -v file="$3" '$2 == file { print $1 }' "$1/$2/digest"; }

# digests NAME [SETTING VALUE]...
digests() {
	local name=$1 file want
	say "$*"
	outgoing "$name" 3
	for ((i = 2; i < $#; i += 2)); do expect ok write "src/$name/${!i}" "${@:$((i + 1)):1}"; done
	truncate -s 5000001 "src/$name/ram"
	expect ENOTCONN read "src/$name/digest" 0 100
	tell "src/$name" start
	compare() {
		tell "src/$name" sync
		for file in ram device-state/a device-state/b; do
			want=$("$MIGFS" "--digest=${file##*/}.model" | cut -d ' ' -f 1)
			[ ${#want} = 32 ] || fail "migfs --digest says '$want'"
			is "$name: digest of $file at the destination" "$want" "$(digest_of dst "$name" "$file")"
			is "$name: digest of $file at the source" "$want" "$(digest_of src "$name" "$file")"
		done
		is "$name: lines" 3 "$(limited wc -l <"src/$name/digest")"
	}
	: >a.model
	: >b.model
	: >"src/$name/device-state/a"
	: >"src/$name/device-state/b"
	: >ram.model
	truncate -s 5000001 ram.model
	compare
	for ram in ram.model "src/$name/ram"; do
		overwrite image "$ram" bs=1000000 count=3 seek=1
		fallocate -p -o 2000000 -l 500000 "$ram"
		overwrite /dev/zero "$ram" bs=4096 count=100 seek=400
	done
	head -c 3000000 image >a.model
	head -c 1 image >b.model
	cat a.model >"src/$name/device-state/a"
	cat b.model >"src/$name/device-state/b"
	compare
	# One bit is enough.
	printf x | overwrite /dev/stdin "src/$name/ram" bs=1 seek=4999999
	tell "src/$name" sync
	want=$(digest_of dst "$name" ram)
	printf y | overwrite /dev/stdin "src/$name/ram" bs=1 seek=4999999
	tell "src/$name" sync
	[ "$(digest_of dst "$name" ram)" != "$want" ] || fail "$name: a byte makes no difference"
	printf y | overwrite /dev/stdin ram.model bs=1 seek=4999999
	compare
	tell "src/$name" complete
	for file in ram device-state/a device-state/b; do
		want=$("$MIGFS" "--digest=${file##*/}.model" | cut -d ' ' -f 1)
		is "$name: digest of $file when complete" "$want" "$(digest_of dst "$name" "$file")"
		is "$name: digest of the received $file" "$want" "$("$MIGFS" "--digest=dst/$name/$file" | cut -d ' ' -f 1)"
	done
	forget "src/$name" "dst/$name"
}

random image 16M
pair
rounds rounds
rounds rounds-zstd compression zstd device-channels 1
rounds rounds-plain zero-page-detection off checksum on
downtime to-complete
downtime to-stop stop
digests digest
digests digest-zstd compression zstd
expect_failure() { "$MIGFS" --digest=not-there 2>/dev/null && fail "a digest of a file that is not there"; true; }
expect_failure
