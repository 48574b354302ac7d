#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Dirty bitmaps of all shapes: RAM of sizes that end in the middle of things, bitmaps in pieces, longer than a request of
# FUSE, pages at random, twice, and bits past the end.
. "$(dirname "$0")/functions.sh"
helper reference && reference=$helper
MB=$((1 << 20))

all() { head -c "$1" /dev/zero | tr '\0' '\377'; }

# begin NAME FILE CHANNELS [SETTING VALUE]...
begin() {
	local i
	outgoing "$1" "$3"
	for ((i = 4; i < $#; i += 2)); do expect ok write "src/$1/${!i}" "${@:$((i + 1)):1}"; done
	expect ok write "src/$1/ram-source" "$dir/$2"
	tell "src/$1" start
	words=$((($(stat -c %s "$2") + 64 * 4096 - 1) / 4096 / 64))
}
mark() { [ "$(limited "$reference" mark "src/$1/dirty" "${@:2}")" = ok ] || fail "$1: marking ${*:2}"; }
accepted() { [ "$(status "src/$1" accepted-bytes)" = "$2" ] || fail "$1: accepted $(status "src/$1" accepted-bytes), not $2"; }
end() {
	tell "src/$1" complete
	forget "src/$1" "dst/$1"
}

pair -o max-ram=64G,max-memory=64G

say "sizes"
random image $((3 * MB + 4096))
for size in 1 4095 4096 4097 $((64 * 4096 - 1)) $((64 * 4096)) $((64 * 4096 + 1)) $((65 * 4096)) $((MB - 1)) $MB $((MB + 1)) \
	$((2 * MB - 4096)) $((3 * MB - 1)) $((3 * MB + 4096)); do
	head -c $size image >ram
	for setting in "checksum off" "checksum on" "compression zstd"; do
		# shellcheck disable=SC2086
		begin vm ram 2 $setting
		all $((words * 8)) >src/vm/dirty
		tell src/vm sync
		same ram dst/vm/ram
		accepted vm $size
		# The last page alone.
		printf x | dd of=ram oflag=seek_bytes seek=$((size - 1)) conv=notrunc status=none
		mark vm $(((size - 1) / 4096))
		tell src/vm sync
		same ram dst/vm/ram
		accepted vm $((size + (size - 1) % 4096 + 1))
		end vm
	done
done

say "pieces"
random image $((5 * MB + 12345))
size=$(stat -c %s image)
for bs in 8 16 24 4096; do
	begin vm image 3
	all $((words * 8)) | limited dd of=src/vm/dirty bs=$bs iflag=fullblock status=none
	tell src/vm sync
	same image dst/vm/ram
	# How many are asked for again before they are sent is nobody's promise; all of them are sent.
	end vm
done
begin vm image 3
for ((word = words - 1; word >= 0; word -= 2)); do
	all 8 | limited dd of=src/vm/dirty bs=8 seek=$word conv=notrunc status=none
done
for ((word = words - 2; word >= 0; word -= 2)); do
	all 8 | limited dd of=src/vm/dirty bs=8 seek=$word conv=notrunc status=none
done
tell src/vm sync
same image dst/vm/ram
accepted vm "$size"
say "nothing"
limited head -c $((words * 8)) /dev/zero >src/vm/dirty
limited head -c 1000000 /dev/zero >src/vm/dirty
tell src/vm sync
accepted vm "$size"
[ "$(status src/vm last-round-pages)" = 0 ]
say "bits past the end"
all 8 | limited dd of=src/vm/dirty bs=8 seek=$((words - 1)) conv=notrunc status=none
tell src/vm sync
accepted vm $((size + size - (words - 1) * 64 * 4096))
accepted=$(status src/vm accepted-bytes)
all 8 >bits
if limited dd if=bits of=src/vm/dirty bs=8 seek="$words" conv=notrunc status=none 2>dd.err; then fail "pages that are not there"; fi
grep -q 'File too large' dd.err
grep -q "ends at $((words * 8)) for RAM of $size bytes" src/vm/error
# Nothing of a bitmap that is refused is taken.
all $((words * 8 + 8)) >bits
if limited dd if=bits of=src/vm/dirty bs=64K conv=notrunc status=none 2>dd.err; then fail "pages that are not there"; fi
tell src/vm sync
accepted vm "$accepted"
for offset in $((1 << 61)) $((1 << 62)) $((3 << 61)) $((1 << 40)); do
	refused EFBIG src/vm/error 'dirty pages at byte' pwrite src/vm/dirty $offset 8
done
[ "$(status src/vm status)" = active ]
end vm

say "at random"
random one $((8 * MB))
for channels in 1 5; do
	cp one ram
	cp one model
	begin vm ram $channels
	all $((words * 8)) >src/vm/dirty
	for round in {1..10}; do
		random two $((8 * MB))
		overwrite /dev/zero two bs=4096 seek=$((RANDOM % 1000)) count=$((RANDOM % 1000))
		ranges=()
		for ((i = 0; i < round * 5; i++)); do
			first=$((RANDOM % 2048))
			last=$((first + (RANDOM % 4 ? RANDOM % 3 : RANDOM % 400)))
			ranges+=($first-$((last < 2048 ? last : 2047)))
		done
		# What is asked for changes, so that the rest of the file can stay what was sent.
		[ "$(limited "$reference" patch ram two "${ranges[@]}")" = ok ]
		mark vm "${ranges[@]}"
		((round % 3)) || continue
		tell src/vm sync
		same ram dst/vm/ram
	done
	tell src/vm complete
	same ram dst/vm/ram
	forget src/vm dst/vm
done

say "a bitmap of more than a request"
rm -f one two
truncate -s 41G ram
random image $((2 * MB))
begin vm ram 4
limited dd if=image of=ram bs=1M seek=40960 conv=notrunc status=none
limited dd if=image of=ram bs=1M seek=3 conv=notrunc status=none
# Its last bits, of 512 pages from 40 GiB on, lie in the second request.
{
	head -c $((3 * 32)) /dev/zero
	all 64
	head -c $((40960 * 32 - 5 * 32)) /dev/zero
	all 64
	head -c $((words * 8 - 40962 * 32)) /dev/zero
} >bits
limited dd if=bits of=src/vm/dirty bs=2M iflag=fullblock conv=notrunc status=none
tell src/vm sync
accepted vm $((4 * MB))
limited cmp -n $((2 * MB)) -i $((40960 * MB)):0 dst/vm/ram image
limited cmp -n $((2 * MB)) -i $((3 * MB)):0 dst/vm/ram image
end vm
rm ram
