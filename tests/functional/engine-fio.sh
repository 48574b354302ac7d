#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# fio writes blocks of 4 KiB to 1 MiB that carry their own checks, several jobs at once, through the source's `ram`,
# and finds them right at the destination: after a sync, and, with the order of the writes, after complete.
. "$(dirname "$0")/functions.sh"
requires fio
limit=150

jobs=4
part=$(scaled $((24 << 20)) $((4 << 20)))

# fio_jobs FILE VERIFY BLOCK-SIZES SEED [OPTION...]: each job has a part of the file for itself
fio_jobs() {
	local file=$1 verify=$2 sizes=$3 seed=$4
	shift 4
	limited fio --name=job --filename="$file" --numjobs=$jobs --thread --offset_increment="$part" --size="$part" \
		--bsrange="$sizes" --verify="$verify" --verify_fatal=1 --randseed="$seed" --allrandrepeat=1 \
		--allow_file_create=0 --fallocate=none --output-format=terse --output=fio.out "$@" >fio.err 2>&1
}

# crosses NAME CHANNELS VERIFY BLOCK-SIZES FIO-OPTIONS [SETTING VALUE]...
crosses() {
	local name=$1 channels=$2 verify=$3 sizes=$4 options i
	read -r -a options <<<"$5"
	say "$*"
	outgoing "$name" "$channels"
	for ((i = 6; i < $#; i += 2)); do expect ok write "src/$name/${!i}" "${@:$((i + 1)):1}"; done
	truncate -s $((jobs * part)) "src/$name/ram"
	tell "src/$name" start
	fio_jobs "src/$name/ram" "$verify" "$sizes" $seed --rw=randwrite --do_verify=0 "${options[@]}" ||
		fail "$name: fio cannot write: $(cat fio.err fio.out)"
	tell "src/$name" sync
	cp "dst/$name/ram" synced
	tell "src/$name" complete
	reaches "dst/$name" completed
	same synced "dst/$name/ram"
	fio_jobs "dst/$name/ram" "$verify" "$sizes" $seed --rw=randwrite --verify_only "${options[@]}" ||
		fail "$name: fio finds at the destination: $(cat fio.err fio.out)"
	# It would have noticed: a few bytes are changed.
	random data 16
	overwrite data "dst/$name/ram" bs=16 seek=$((part / 16 + 5000 + RANDOM))
	fio_jobs "dst/$name/ram" "$verify" "$sizes" $seed --rw=randwrite --verify_only "${options[@]}" &&
		fail "$name: fio would not notice what is wrong"
	forget "src/$name" "dst/$name"
	seed=$((seed + 1))
}

pair
seed=$((RANDOM + 1))
say "seed $seed"
crosses small 2 crc32c 4k-4k ""
crosses mixed 4 crc32c 4k-1024k ""
crosses direct 7 crc32c 64k-64k "--direct=1 --ioengine=psync"
crosses large 16 xxhash 1m-1m "--ioengine=pvsync" checksum on
crosses queued 3 crc32c 4k-256k "--ioengine=libaio --direct=1 --iodepth=8"
crosses zstd 3 crc32c 4k-1024k "--buffer_compress_percentage=60" compression zstd
crosses sha 3 sha256 16k-512k "" zero-page-detection off device-channels 1
