#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# zstd at several levels, with text, program binaries, random data, zeros and a mix, in the image and in device state:
# all arrives identical, what can shrink does, and what cannot goes as it is.
. "$(dirname "$0")/functions.sh"
limit=120

size=$(scaled $((10 << 20)) $((4 << 20)))

# fill FILE COMMAND...: $size bytes of what it says, over and over
fill() {
	local file=$1
	shift
	: >"$file"
	"$@" >part
	while [ "$(wc -c <"$file")" -lt "$size" ]; do cat part >>"$file"; done
	truncate -s "$size" "$file"
}
numbers() { seq -f 'page %.0f is dirty, its channel has carried more of it before' 1 200000; }
binaries() { cat "$(readlink -f "$BASH")" "$MIGFS" "$helper" "$(readlink -f "$(command -v awk)")"; }
fill text numbers
fill binaries binaries
random random "$size"
truncate -s "$size" zeros
# Each 64 KiB of the mix is of another kind, and some pages in between are zero.
{
	for ((i = 0; i < size / 65536; i++)); do
		case $((i % 4)) in
		0) dd if=text bs=64K skip=$i count=1 status=none ;;
		1) dd if=random bs=64K skip=$i count=1 status=none ;;
		2) dd if=zeros bs=64K count=1 status=none ;;
		3) dd if=binaries bs=60K skip=$i count=1 status=none && head -c 4096 /dev/zero ;;
		esac
	done
	head -c 70000 binaries
} >mix

# per_mille BYTES: of what was moved, rounded up
per_mille() { echo $((($1 * 1000 + total - 1) / total)); }

# cross NAME FILE LEVEL AT-LEAST AT-MOST [SETTING VALUE]...: the file crosses as the image and as two devices, and so
# many per mille of its bytes go over the wire
cross() {
	local name=$1 file=$2 level=$3
	outgoing "$name" 3
	expect ok write "src/$name/compression" zstd
	expect ok write "src/$name/zstd-level" "$level"
	[ "$(cat "src/$name/zstd-level")" = "$level" ]
	local least=$4 most=$5
	shift 5
	while [ $# -gt 0 ]; do
		expect ok write "src/$name/$1" "$2"
		shift 2
	done
	truncate -s "$(stat -c %s "$file")" "src/$name/ram"
	tell "src/$name" start
	limited dd if="$file" of="src/$name/device-state/whole" bs=1M status=none &
	local whole=$!
	limited dd if="$file" of="src/$name/device-state/odd" bs=77777 status=none &
	local odd=$!
	overwrite "$file" "src/$name/ram" bs=1M
	wait $whole
	wait $odd
	tell "src/$name" sync
	total=$((3 * $(stat -c %s "$file")))
	moved=$(per_mille "$(status "src/$name" transferred)")
	say "$name, level $level: $moved per mille"
	same "$file" "dst/$name/ram"
	same "$file" "dst/$name/device-state/whole"
	same "$file" "dst/$name/device-state/odd"
	[ "$(status "src/$name" accepted-bytes)" = $total ] || fail "$name: $(status "src/$name" accepted-bytes) bytes accepted"
	[ "$(status "dst/$name" accepted-bytes)" = $total ]
	[ "$(status "dst/$name" device-bytes)" = $((total / 3 * 2)) ]
	[ "$(status "src/$name" compression)" = zstd ] && [ "$(status "dst/$name" compression)" = zstd ]
	[ "$moved" -ge "$least" ] && [ "$moved" -le "$most" ] || fail "$name: $moved per mille, not $least to $most"
	# Over something else and back: what arrives now is unpacked where it belongs.
	random other "$(stat -c %s "$file")"
	overwrite other "src/$name/ram" bs=1M
	tell "src/$name" sync
	same other "dst/$name/ram"
	overwrite "$file" "src/$name/ram" bs=1M
	tell "src/$name" complete
	same "$file" "dst/$name/ram"
	same "$file" "dst/$name/device-state/odd"
	forget "src/$name" "dst/$name"
}

pair
cross text1 text 1 1 250
cross text3 text 3 1 250
cross text-fast text -5 1 500 checksum on
cross binaries1 binaries 1 100 600
cross binaries3 binaries 3 100 600 checksum on device-channels 1
cross binaries-fast binaries -5 100 850
cross zeros zeros 1 0 5
cross zeros-data zeros 1 0 5 zero-page-detection off
cross mix1 mix 1 250 700
cross mix-data mix 3 250 700 zero-page-detection off checksum on
cross text-slow text 19 1 250
# What does not shrink goes as it is: the same bytes, and no more than headers on top.
cross random1 random 1 1000 1010
cross random-fast random -5 1000 1010

say "a higher level is a better ratio"
cross fast binaries -50 1 1000
fast=$moved
cross slow binaries 9 1 1000
[ "$moved" -lt "$fast" ] || fail "level 9 gives $moved per mille, level -50 $fast"

say "settings"
outgoing settings
[ "$(cat src/settings/compression)" = none ]
for value in lz4 on '' zstdx; do refused EINVAL src/settings/error 'none nor zstd' write src/settings/compression "$value "; done
for value in 20 -101 x 1x 99999999999999999999 ''; do
	refused EINVAL src/settings/error '-100 to 19' write src/settings/zstd-level "$value "
done
[ "$(cat src/settings/compression)" = none ]
tell src/settings start
expect EBUSY write src/settings/compression zstd
expect EBUSY write src/settings/zstd-level 1
[ "$(status src/settings compression)" = none ] && [ "$(status dst/settings compression)" = none ]
limited dd if=text of=src/settings/ram bs=1M conv=notrunc status=none
tell src/settings sync
[ "$(status src/settings transferred)" -ge "$size" ] || fail "without compression less is sent than was written"
tell src/settings complete
forget src/settings dst/settings
