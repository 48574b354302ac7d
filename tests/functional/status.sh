#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# status and status.json say the same, the JSON is JSON, and the numbers add up: over the channels, and on both sides.
. "$(dirname "$0")/functions.sh"
requires perl
perl -MJSON::PP -e 1 2>/dev/null || skip "perl has no JSON::PP"

# json MIGRATION: as the lines of status
json() {
	limited cat "$1/status.json" | perl -MJSON::PP -e '
		binmode STDOUT, ":utf8";
		my $status = decode_json(join "", <STDIN>);
		my $rounds = delete $status->{precopy} // [];
		my $first = $status->{"precopy-rounds"} // 0;
		$first = $first - @$rounds + 1;
		for my $n (0 .. $#$rounds) {
			$status->{"round-@{[$n + $first]}-$_"} = $rounds->[$n]{$_} for keys %{$rounds->[$n]};
		}
		my $channels = delete $status->{channels};
		die "channels is no array of objects" unless ref $channels eq "ARRAY" && !grep { ref ne "HASH" } @$channels;
		for my $n (0 .. $#$channels) {
			$status->{"channel-$n-$_"} = $channels->[$n]{$_} for keys %{$channels->[$n]};
		}
		$status->{channels} = delete $status->{"channel-count"};
		print sort map { "$_ $status->{$_}\n" } keys %$status;'
}
# agree MIGRATION: what moves with the clock aside
times='^(total-time|setup-time|mbps|round-[0-9]+-(time|scan-time|expected-downtime)) '
agree() {
	diff <(grep -vE "$times" "$1/status" | sort) <(json "$1" | grep -vE "$times") || fail "status and status.json of $1 differ"
}
number() { status "$1" "$2" | grep -xE '[0-9]+' || fail "$1 has no number $2"; }
adds_up() {
	awk '
		{ value[$1] = $2 }
		/^channel-[0-9]+-/ {
			split($1, part, "-")
			key = substr($1, length("channel-" part[2] "-") + 1)
			sum[key] += $2
		}
		END {
			for (key in sum) {
				total = key == "bytes" ? "multifd-bytes" : key
				if (total in value && value[total] != sum[key]) {
					print "the sum of channel-N-" key " is " sum[key] ", " total " is " value[total]
					bad = 1
				}
			}
			parts = value["normal-bytes"] + value["zero-bytes"] + value["discarded-bytes"] + value["device-bytes"]
			if (value["accepted-bytes"] != parts) {
				print "accepted-bytes is " value["accepted-bytes"] ", its parts are " parts
				bad = 1
			}
			exit bad
		}' "$1/status" || fail "the numbers of $1 do not add up"
}

pair
name='a "name" \ with ünïcode'
outgoing "$name" 3
agree "src/$name"
[ "$(status "src/$name" status)" = none ]
[ "$(status "src/$name" role)" = outgoing ]
expect ok mkdir src/undecided
[ "$(status src/undecided role)" = none ]
expect EINVAL write src/undecided/uri nonsense
[ "$(status src/undecided role)" = none ]
expect ok write src/undecided/uri "$uri"
[ "$(status src/undecided role)" = outgoing ]
forget src/undecided
[ "$(status "src/$name" name)" = "$name" ]
[ -z "$(cat "src/$name/error")" ]
truncate -s 20M "src/$name/ram"
tell "src/$name" start
random data 3000000
agree "src/$name"
agree "dst/$name"
[ "$(status "dst/$name" role)" = incoming ]

say "while data moves"
while [ ! -e enough ]; do limited dd if=data of="src/$name/ram" bs=100K conv=notrunc status=none; done &
writer=$!
for i in {1..30}; do
	for side in src dst; do
		json "$side/$name" >/dev/null
		# A snapshot stays one, also for who reads it in pieces.
		dd if="$side/$name/status.json" bs=7 status=none | perl -MJSON::PP -e 'decode_json(join "", <STDIN>)'
	done
done
touch enough
wait $writer

say "what adds up"
limited dd if=/dev/zero of="src/$name/ram" bs=1M seek=4 count=3 conv=notrunc status=none
expect ok fallocate "src/$name/ram" 0 1000000 punch
limited cp data "src/$name/device-state/dev"
tell "src/$name" sync
for side in src dst; do
	agree "$side/$name"
	adds_up "$side/$name"
	[ "$(number "$side/$name" ram-size)" = $((20 << 20)) ]
	[ "$(number "$side/$name" devices)" = 1 ]
	[ "$(number "$side/$name" device-bytes)" = 3000000 ]
done
for key in accepted-bytes normal normal-bytes duplicate zero-bytes discarded-bytes device-bytes; do
	[ "$(number "src/$name" $key)" = "$(number "dst/$name" $key)" ] || fail "$key differs between source and destination"
done
[ "$(number "src/$name" transferred)" -gt "$(number "src/$name" normal-bytes)" ]
tell "src/$name" precopy
tell "src/$name" precopy
[ "$(number "src/$name" precopy-rounds)" = 2 ]
[ "$(number "src/$name" round-2-changed-pages)" = 0 ]
agree "src/$name"
tell "src/$name" stop
tell "src/$name" complete
for side in src dst; do
	agree "$side/$name"
	adds_up "$side/$name"
	[ "$(status "$side/$name" status)" = completed ]
done

say "a failure"
outgoing 'f"a\il' 1 "unix:$dir/nobody"
attempt write 'src/f"a\il/control' start
agree 'src/f"a\il'
says_why 'src/f"a\il'
say "text that is not UTF-8, or not for a terminal"
outgoing odd 1 "unix:$dir/"$'\xff\xc3(\xed\xa0\x80\xf4\x90\x80\x80\xc0\xaf-\xc2\x9b-\xe2\x80\xae-"\\end'
attempt write src/odd/control start
[ "$got" != ok ]
json src/odd >odd
grep -q -- '-"\\end' odd
grep -q '^error-desc ' odd
# A sentence that ends in the middle of a character.
for ((i = 0; i < 4; i++)); do
	outgoing "cut$i" 1 "unix:$dir/$(printf 'x%.0s' $(seq $((20 + i))))$(printf 'ü%.0s' {1..16})"
	attempt write "src/cut$i/control" start
	[ "$got" != ok ]
	json "src/cut$i" >/dev/null
	iconv -f UTF-8 -t UTF-8 "src/cut$i/error" >/dev/null
done
say "names"
for name in $'\xff' $'a\xc3' $'\xed\xa0\x80' $'\xc0\xaf' $'\xe2\x80\xae' $'a\xe2\x81\xa6b' $'\xe2\x80\xa8' $'\xc2\x9b' $'\x7f'; do
	refused EINVAL src/.error 'the name of a migration' mkdir "src/$name"
	refused EINVAL src/.error 'the name of a device' open "src/odd/device-state/$name" wronly,creat
done
