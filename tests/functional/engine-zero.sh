#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Zero pages and holes. An image of which 7/8 are zero costs the destination memory and page faults for its data only;
# a second pass that zeroes everything gives zeros, and memory back; `received`, SEEK_DATA and SEEK_HOLE are exact;
# holes that cp and dd skip are not sent.
. "$(dirname "$0")/functions.sh"
requires cp dd stat
helper pages
pages=$helper
limit=120

# Minor faults of the destination's daemon. Its resident bytes, below, are all of them, as the kernel adds them up.
faults() { sed 's/.*) //' /proc/"${daemon[dst]}"/stat | cut -d ' ' -f 8; }

# held NAME: bytes of memory that its image takes at the destination, by the kernel and by the mount alike
held() {
	local kernel mount
	kernel=$(($(stat -L -c %b "$(status "dst/$1" ram-path)") * 512))
	mount=$(($(stat -c %b "dst/$1/ram") * 512))
	[ $kernel = $mount ] || fail "$1: the kernel counts $kernel bytes, the mount $mount"
	echo "$kernel"
}

# is WHAT WANT HAVE, at_most WHAT LIMIT HAVE
is() { [ "$3" = "$2" ] || fail "$1: expected $2, got $3"; }
at_most() { [ "$3" -le "$2" ] || fail "$1: $3 are more than $2"; }

# begin NAME SIZE [SETTING VALUE]...
begin() {
	local name=$1 size=$2
	shift 2
	outgoing "$name" 4
	truncate -s "$size" "src/$name/ram"
	while [ $# -gt 0 ]; do
		expect ok write "src/$name/$1" "$2"
		shift 2
	done
	tell "src/$name" start
}

finish_both() {
	tell "src/$1" complete
	forget "src/$1" "dst/$1"
}

# eighths NAME DATA EVERY BLOCK [SETTING VALUE]...: an image with DATA data pages of every EVERY pages, written whole
# in blocks of BLOCK, and then zeros over all of it
eighths() {
	local name=$1 data all
	say "$*"
	"$pages" image "$size" "$2" "$3" "$2"
	all=$((size / 4096))
	data=$(((all / $3 * $2 + (all % $3 < $2 ? all % $3 : $2)) * 4096))
	begin "$name" "$size" "${@:5}"
	# What the first data costs anyway is no matter.
	overwrite image "src/$name/ram" bs=1M count=8
	tell "src/$name" sync
	local faults resident before
	faults=$(faults)
	before=$(memory_of dst Rss)
	overwrite image "src/$name/ram" bs="$4" skip=8M seek=8M iflag=skip_bytes oflag=seek_bytes
	tell "src/$name" sync
	faults=$(($(faults) - faults))
	resident=$(($(memory_of dst Rss) - before))
	say "$name: $((data / 4096)) data pages of $all: $faults faults, $resident bytes more"
	is "$name: memory of the image" "$data" "$(held "$name")"
	is "$name: data pages" $((data / 4096)) "$(status "dst/$name" normal)"
	is "$name: zero pages" $((all - data / 4096)) "$(status "dst/$name" duplicate)"
	is "$name: zero pages at the source" $((all - data / 4096)) "$(status "src/$name" duplicate)"
	is "$name: first arrivals" $all "$(status "dst/$name" first-arrivals)"
	at_most "$name: bytes sent" $((data + data / 16 + (4 << 20))) "$(status "src/$name" transferred)"
	if [ -z "$MIGFS_SLOW" ]; then
		at_most "$name: minor faults" $((data / 4096 + 1000)) "$faults"
		at_most "$name: resident memory" $((16 << 20)) "$resident"
	fi
	same image "dst/$name/ram"
	[ "$(limited tr -d '\377' <"dst/$name/received" | wc -c)" = 0 ] || fail "$name: not all pages have arrived"

	limited dd if=/dev/zero of="src/$name/ram" bs="$4" count="$size" iflag=count_bytes conv=notrunc status=none
	tell "src/$name" sync
	limited cmp -n "$size" /dev/zero "dst/$name/ram" || fail "$name: not all is zero"
	is "$name: memory after zeros" 0 "$(held "$name")"
	is "$name: first arrivals after zeros" $all "$(status "dst/$name" first-arrivals)"
	is "$name: data after zeros" ENXIO "$(attempt seek "dst/$name/ram" data 0 && echo "$got")"
	if [ -z "$MIGFS_SLOW" ]; then
		at_most "$name: resident memory after zeros" $((16 << 20)) $(($(memory_of dst Rss) - before))
	fi
	finish_both "$name"
	rm image
}

# Which pages are there, after writes and holes here and there.
map() { # NAME DETECTION [SETTING VALUE]
	# Where pages of zeros that were found to be such take memory, they are data.
	local name=$1 ram=src/$1/ram zeros_end=18
	[ "$2" = on ] || zeros_end=36
	say "$*"
	begin "$name" 4M "${@:3}"
	is "$name: received at first" 0 "$(limited tr -d '\0' <"dst/$name/received" | wc -c)"
	is "$name: its size" 128 "$(stat -c %s "dst/$name/received")"
	expect ENXIO seek "dst/$name/ram" data 0
	expect 0 seek "dst/$name/ram" hole 0
	random data 1M
	overwrite data "$ram" bs=4K count=1                              # page 0
	overwrite data "$ram" bs=1 count=10 seek=40000                   # page 9
	overwrite data "$ram" bs=8K count=1 seek=64K oflag=seek_bytes    # pages 16 and 17
	overwrite data "$ram" bs=1M count=1 seek=1                       # pages 256 to 511
	overwrite /dev/zero "$ram" bs=16K count=1 seek=128K oflag=seek_bytes # pages 32 to 35, zero
	expect ok fallocate "$ram" 65536 4096 punch                      # page 16 is gone again
	expect ok fallocate "$ram" 1500000 8192 punch                    # only page 367 lies in it whole
	tell "src/$name" sync
	{
		printf '\001\002\002\000\017'
		head -c 27 /dev/zero
		head -c 32 /dev/zero | tr '\0' '\377'
		head -c 64 /dev/zero
	} >map
	printf '\177' | overwrite /dev/stdin map bs=1 seek=45            # bit 7 of byte 45 is page 367
	same map "dst/$name/received"
	is "$name: first arrivals" $((1 + 1 + 2 + 256 + 4)) "$(status "dst/$name" first-arrivals)"
	expect 0 seek "dst/$name/ram" data 0
	expect 4096 seek "dst/$name/ram" hole 0
	expect 36864 seek "dst/$name/ram" data 4096
	expect 40000 seek "dst/$name/ram" data 40000
	expect 40960 seek "dst/$name/ram" hole 40000
	expect 69632 seek "dst/$name/ram" data 40960
	expect 1048576 seek "dst/$name/ram" data $((zeros_end * 4096))
	expect 1503232 seek "dst/$name/ram" hole 1048576
	expect 1507328 seek "dst/$name/ram" data 1503232
	expect 2097152 seek "dst/$name/ram" hole 1507328
	expect ENXIO seek "dst/$name/ram" data 2097152
	# A page that is gone, and comes back as zeros, arrives for the first time again.
	overwrite /dev/zero "$ram" bs=4K count=1 seek=16
	overwrite /dev/zero "$ram" bs=4K count=1 seek=17
	tell "src/$name" sync
	is "$name: first arrivals of a page that was gone" 265 "$(status "dst/$name" first-arrivals)"
	# Truncation: what lay past it has not arrived, to the last byte.
	expect ok truncate "$ram" 10000
	overwrite data "$ram" bs=10000 count=1
	expect ok truncate "$ram" 3000
	expect ok truncate "$ram" 4194304
	tell "src/$name" sync
	is "$name: received after truncation" ' 01 00 00 00 00 00 00 00' "$(limited head -c 8 "dst/$name/received" | od -An -tx1)"
	expect 4096 seek "dst/$name/ram" hole 0
	expect ENXIO seek "dst/$name/ram" data 4096
	limited cmp -n 3000 data "dst/$name/ram"
	limited cmp -n $((4 * 1048576 - 3000)) -i 3000:0 "dst/$name/ram" /dev/zero
	finish_both "$name"
}

# The end of the image: after a truncation its last page is gone too, though it was not a whole one.
last_page() {
	outgoing last 2
	tell src/last start
	random data 10000
	overwrite data src/last/ram bs=10000
	expect ok truncate src/last/ram 0
	expect ok truncate src/last/ram 20000
	tell src/last sync
	is "received after truncation to nothing" ' 00 00 00 00 00 00 00 00' "$(limited od -An -tx1 dst/last/received)"
	expect ENXIO seek dst/last/ram data 0
	is "memory after truncation to nothing" 0 "$(held last)"
	finish_both last
}

# sent NAME WHAT: what it was is there, and little more than the data has been sent
sent() {
	tell "src/$1" sync
	same image "dst/$1/ram"
	at_most "$1: bytes accepted" $((data + data / 8)) "$(($(status "src/$1" accepted-bytes) - $(status "src/$1" discarded-bytes)))"
	at_most "$1: bytes sent" $((data + data / 8 + 65536)) "$(status "src/$1" transferred)"
	at_most "$1: memory of the image" $((data + data / 8)) "$(held "$1")"
	same image "dst/$1/ram"
	finish_both "$1"
}

pair
size=$(scaled $((512 << 20)) $((64 << 20)))
say "holes that are not sent"
holes=$((64 << 20))
"$pages" image $holes 64 1024 7 map # 256 KiB of each 4 MiB
data=$((holes / 16))
for settings in "" "zero-page-detection off"; do
	# shellcheck disable=SC2086
	begin cp $holes $settings
	limited cp --sparse=auto image src/cp/ram
	sent cp
	# shellcheck disable=SC2086
	begin dd $holes $settings
	overwrite image src/dd/ram bs=64K conv=notrunc,sparse
	tell src/dd sync
	same map dst/dd/received
	is "dd: SEEK_DATA" $((4 << 20)) "$(attempt seek dst/dd/ram data $((256 << 10)) && echo "$got")"
	sent dd
done
# A file without holes, but with zeros; cp looks for them block by block, by st_blksize.
"$pages" sparse $holes 256 4096 7 map
data=$((holes / 16))
limited cp --sparse=never sparse image
begin always $holes zero-page-detection off
limited cp --sparse=always image src/always/ram
sent always
rm image sparse

last_page
map exact on
map exact-off off zero-page-detection off

# Data in long runs, as single pages in between, and as the seed has it: 1 MiB writes; small ones; compressed.
eighths runs 512 4096 1M
eighths single 1 8 1M
eighths small 256 2048 16K
eighths zstd 1 8 1M compression zstd
eighths checksum 3 24 300K checksum on
