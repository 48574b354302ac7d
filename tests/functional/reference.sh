#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# RAM by reference: all the ways to name the file, over all numbers of channels and with all settings that change how its
# pages travel. The pages that were asked for arrive, others do not; the counters are exact on both sides.
. "$(dirname "$0")/functions.sh"
helper reference && reference=$helper

# says WANT OPERATION...: what the helper says
says() {
	local want=$1 got
	shift
	got=$(limited "$reference" "$@") || fail "reference $* has failed"
	[ "$got" = "$want" ] || fail "reference $*: expected $want, got $got"
}
# all BYTES: a bitmap of ones, as the manual has it
all() { head -c "$1" /dev/zero | tr '\0' '\377'; }

# An image that ends in the middle of a page, of a bitmap's word and of a stripe; 300 pages of it are zero.
size=$(((6 << 20) + 5 * 4096 + 777))
pages=$(((size + 4095) / 4096))
words=$(((pages + 63) / 64))
random first $size
random second $size
for file in first second; do
	overwrite /dev/zero $file bs=4096 seek=200 count=299
	overwrite /dev/zero $file bs=4096 seek=1535 count=1
done

# is MIGRATION KEY WANT
is() { [ "$(status "$1" "$2")" = "$3" ] || fail "$1: $2 is $(status "$1" "$2"), not $3"; }

# counters NAME NORMAL-PAGES NORMAL-BYTES ZERO-PAGES: on both sides
counters() {
	local side key sum c
	for side in src dst; do
		is "$side/$1" accepted-bytes $(($3 + $4 * 4096))
		is "$side/$1" normal "$2"
		is "$side/$1" normal-bytes "$3"
		is "$side/$1" duplicate "$4"
		is "$side/$1" zero-bytes $(($4 * 4096))
		is "$side/$1" discarded-bytes 0
		for key in accepted-bytes normal-bytes zero-bytes; do
			sum=0
			for ((c = 0; c < channels; c++)); do sum=$((sum + $(status "$side/$1" channel-$c-$key))); done
			is "$side/$1" $key $sum
		done
	done
}

# copy NAME CHANNELS [SETTING VALUE]...: two rounds, and the end
copy() {
	local name=$1 channels=$2 zero=300 patched=(0 3 64-70 255-256 300-310 511 512 1024-1300 1530-1535 $((pages - 1)))
	say "$*"
	outgoing "$name" "$channels"
	for ((i = 3; i < $#; i += 2)); do expect ok write "src/$name/${!i}" "${@:$((i + 1)):1}"; done
	[ "$(cat "src/$name/zero-page-detection")" = on ] || zero=0
	cp first "$name.ram"
	expect ok write "src/$name/ram-source" "$dir/$name.ram"
	is "src/$name" ram-size $size
	[ "$(stat -c %s "src/$name/dirty")" = $((words * 8)) ] || fail "$name: dirty has $(stat -c %s "src/$name/dirty") bytes"
	tell "src/$name" start
	all $((words * 8)) >"src/$name/dirty"
	tell "src/$name" sync
	same first "dst/$name/ram"
	is "src/$name" dirty-sync-count 1
	is "src/$name" last-round-pages $pages
	is "src/$name" last-round-bytes $size
	is "src/$name" remaining 0
	counters "$name" $((pages - zero)) $((size - zero * 4096)) $zero

	# Everything changes, and some of it is asked for: 308 pages, 14 of them zero.
	overwrite second "$name.ram" bs=1M
	says ok mark "src/$name/dirty" "${patched[@]}"
	tell "src/$name" "sync ram"
	cp first model
	says ok patch model second "${patched[@]}"
	same model "dst/$name/ram"
	is "src/$name" last-round-pages 308
	[ $zero = 0 ] || zero=314
	counters "$name" $((pages + 308 - zero)) $((size + 307 * 4096 + 777 - zero * 4096)) $zero
	is "src/$name" status active

	all $((words * 8)) >"src/$name/dirty"
	tell "src/$name" complete
	same second "dst/$name/ram"
	for side in src dst; do is "$side/$name" accepted-bytes $((2 * size + 307 * 4096 + 777)); done
	[ "$(cat "src/$name/ram-source")" = "$dir/$name.ram" ]
	forget "src/$name" "dst/$name"
	rm "$name.ram"
}

pair
n=0
for channels in 1 2 7 16; do
	for checksum in on off; do
		for compression in none zstd; do
			for zero in on off; do
				[ -z "$MIGFS_SLOW" ] || [ $((n % 3)) = 0 ] || { n=$((n + 1)); continue; }
				copy vm$((n++)) $channels checksum $checksum compression $compression zero-page-detection $zero
			done
		done
	done
done
copy devices1 2 device-channels 1
copy devices2 7 device-channels 6 compression zstd
copy devices3 5 device-channels 2 checksum off

say "reading back"
outgoing back
expect ok write src/back/ram-source "$dir/first"
same first src/back/ram
tell src/back start
same first src/back/ram
python3 -c '
import mmap, sys
with open("src/back/ram", "rb") as ram, open("first", "rb") as image:
    mapped = mmap.mmap(ram.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ)
    sys.exit(mapped[:] != image.read())' || fail "a private mapping shows something else"
all $((words * 8)) >src/back/dirty
tell src/back sync
[ "$(tr -d '\0' <src/back/dirty | wc -c)" = 0 ] || fail "something is still to be sent"
[ "$(wc -c <src/back/dirty)" = $((words * 8)) ] || fail "the bitmap has another size"
tell src/back complete
expect EOPNOTSUPP read src/back/ram 0 10
forget src/back dst/back

# named NAME: whatever was named arrives
named() {
	expect ok write "src/$1/channels" 3
	tell "src/$1" start
	all $((words * 8)) >"src/$1/dirty"
	tell "src/$1" complete
	same first "dst/$1/ram"
	forget "src/$1" "dst/$1"
}
say "a descriptor"
outgoing vm
exec {fd}<first
echo "fd:$fd" >src/vm/ram-source
[ "$(cat src/vm/ram-source)" = "fd:$fd" ]
exec {fd}<&-
named vm
for flags in rdonly rdwr; do
	outgoing vm
	says ok give $flags "$dir/first" src/vm/ram-source
	named vm
done
say "a descriptor of another thread"
outgoing vm
says ok thread "$dir/first" src/vm/ram-source
named vm
say "a file that is gone"
outgoing vm
cp first gone
says ok give rdonly gone src/vm/ram-source
rm gone
named vm
say "a memfd"
outgoing vm
says ok memfd first src/vm/ram-source
named vm
say "a path of the caller's"
mkdir -p sub/sub
for place in . sub sub/sub; do
	outgoing vm
	cp first $place/relative
	(cd $place && echo relative >"$dir/src/vm/ram-source")
	named vm
done
outgoing vm
(cd sub/sub && echo ../../first >"$dir/src/vm/ram-source")
named vm
outgoing vm
ln -s "$dir/first" sub/link
(cd sub && echo link >"$dir/src/vm/ram-source")
named vm
say "a later name, and none"
outgoing vm
head -c 5000 second >short
expect ok write src/vm/ram-source "$dir/short"
is src/vm ram-size 5000
expect ok write src/vm/ram-source none
is src/vm ram-size 0
[ -z "$(cat src/vm/ram-source)" ]
expect ok write src/vm/ram-source "$dir/short"
expect ok write src/vm/ram-source $'\n'
is src/vm ram-size 0
expect ok write src/vm/ram-source "$dir/short"
expect ok write src/vm/ram-source "$dir/first"
is src/vm ram-size $size
named vm
say "a source that comes late, and not all of its pages are asked for"
outgoing vm
tell src/vm start
expect ok write src/vm/ram-source "$dir/first"
is src/vm ram-size $size
printf '\001\0\0\0\0\0\0\0' >src/vm/dirty
tell src/vm complete
head -c 4096 first >model
truncate -s $size model
same model dst/vm/ram
forget src/vm dst/vm
say "a size that was declared"
outgoing vm
truncate -s 1000001 src/vm/ram
expect ok write src/vm/ram-source "$dir/first"
is src/vm ram-size 1000001
tell src/vm start
all 32 >src/vm/dirty
tell src/vm complete
same <(head -c 1000001 first) dst/vm/ram
forget src/vm dst/vm
