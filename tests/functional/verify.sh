#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# `verify`: RAM by reference whose bits are flipped on their way, which is not the same at both ends when the migration
# completes, or which is: of all kinds of files and sizes.
. "$(dirname "$0")/functions.sh"
without_tls "damage is found by TLS"
helper reference && reference=$helper

MB=$((1 << 20))
pair -o max-memory=64G,max-ram=64G
mark_all() { head -c "$(stat -c %s "$1/dirty")" /dev/zero | tr '\0' '\377' >"$1/dirty"; }
# begin NAME URI FILE [SETTING VALUE]...: by reference and active
begin() {
	local i
	outgoing "$1" 2 "$2"
	expect ok write "src/$1/verify" on
	for ((i = 4; i < $#; i += 2)); do expect ok write "src/$1/${!i}" "${@:$((i + 1)):1}"; done
	expect ok write "src/$1/ram-source" "$3"
	tell "src/$1" start
}
# differs NAME: complete finds out, and both ends say so
differs() {
	refused EREMOTEIO "src/$1/error" "'ram' is not the same at both ends in the MiB at offset ${2:-[0-9]+}:" \
		write "src/$1/control" complete
	[ "$(status "src/$1" status)" = failed ] || fail "$1 is $(status "src/$1" status)"
	reaches "dst/$1" failed
	grep -q "source: 'ram' is not the same" "dst/$1/error" || fail "$1: $(cat "dst/$1/error")"
	forget "src/$1" "dst/$1"
}
# agrees NAME FILE SIZE: complete succeeds
agrees() {
	tell "src/$1" complete
	[ "$(status "src/$1" verified-bytes)" = "$3" ] || fail "$1: $(status "src/$1" verified-bytes) bytes verified, not $3"
	limited cmp -n "$3" "$2" "dst/$1/ram" || fail "$1: the files differ"
	[ "$(stat -c %s "dst/$1/ram")" = "$3" ] || fail "$1: of another size"
	forget "src/$1" "dst/$1"
}

say "the setting"
outgoing vm
[ "$(cat src/vm/verify)" = off ] || fail "the default is $(cat src/vm/verify)"
refused EINVAL src/vm/error 'neither on nor off' write src/vm/verify auto
expect ok write src/vm/verify on
[ "$(status src/vm verify)" = on ]
expect ok write src/vm/checksum off
tell src/vm start
[ "$(status src/vm checksum)" = on ] || fail "what comes through FUSE is not checked"
[ "$(status dst/vm checksum)" = on ]
expect EBUSY write src/vm/verify off
tell src/vm complete
[ "$(status src/vm verified-bytes)" = 0 ]
forget src/vm dst/vm

say "flipped bits"
random image $((4 * MB))
# A channel sends 2 MiB, in packets of a stripe: behind the hello come 64 bytes of header, and payload.
flip() {
	local byte=$1 name=flip$1 settings=(zero-page-detection on)
	((byte % 2)) || settings=(zero-page-detection off)
	((byte % 3)) || settings+=(zero-copy off)
	begin "$name" "faulty:corrupt=$((320 + byte))+only=$((1 + byte % 2)):$uri" "$dir/image" "${settings[@]}"
	[ "$(status "src/$name" checksum)" = off ] || fail "RAM by reference is checked twice"
	mark_all "src/$name"
	differs "$name" "$((MB * (byte % 2 + 2 * (byte / MB))))"
}
flips=()
for ((i = 0; i < $(scaled 24 6); i++)); do
	((i % 4 < 2)) && flips+=($((65 + i * 40001))) || flips+=($((MB + 129 + i * 40001)))
done
share 4 flip "${flips[@]}"
say "${#flips[@]} found"

say "a page that changes after the last round, and one that was never sent"
cp image ram
begin late "$uri" "$dir/ram"
mark_all src/late
tell src/late sync
printf x | overwrite /dev/stdin ram bs=1 seek=$((3 * MB + 5))
[ "$(dd if=ram bs=1 skip=$((3 * MB + 5)) count=1 status=none)" != "$(dd if=image bs=1 skip=$((3 * MB + 5)) count=1 status=none)" ] ||
	printf y | overwrite /dev/stdin ram bs=1 seek=$((3 * MB + 5))
differs late $((3 * MB))
begin never "$uri" "$dir/image"
limited "$reference" mark src/never/dirty 0-511 513-1023 | grep -q ok
differs never $((2 * MB))
begin again "$uri" "$dir/ram"
mark_all src/again
tell src/again sync
overwrite image ram bs=1M
limited "$reference" mark src/again/dirty 768-1023 | grep -q ok
agrees again image $((4 * MB))

say "what is pushed into RAM counts for nothing against its file"
begin pushed "$uri" "$dir/image"
mark_all src/pushed
expect ok pwrite src/pushed/ram 4096 4096
differs pushed 0
begin pushed "$uri" "$dir/image"
overwrite image src/pushed/ram bs=1M
agrees pushed image $((4 * MB))

say "what the destination has, not what it ought to have: somebody has written to a page that came as zero"
rm -f file
truncate -s $((3 * MB)) file
begin written "$uri" "$dir/file"
mark_all src/written
tell src/written sync
printf x | overwrite /dev/stdin "$(status dst/written ram-path)" bs=1 seek=$((2 * MB + 7))
differs written $((2 * MB))

say "sizes, holes and settings"
for size in 1 4095 4096 4097 $((MB - 1)) $MB $((MB + 1)) $(((6 << 20) + 5 * 4096 + 777)); do
	random file "$size"
	begin size "$uri" "$dir/file"
	mark_all src/size
	agrees size file "$size"
done
rm file
truncate -s $((37 * MB + 100)) file
for offset in 4096 $((2 * MB)) $((9 * MB - 4096)) $((37 * MB)); do
	overwrite image file bs=4096 count=1 seek=$((offset / 4096))
done
truncate -s $((37 * MB + 100)) file
used=$(stat -c %b file)
for settings in "" "compression zstd" "checksum on" "zero-page-detection off" "channels 7"; do
	# shellcheck disable=SC2086
	begin holes "$uri" "$dir/file" $settings
	mark_all src/holes
	agrees holes file $((37 * MB + 100))
done
[ "$(stat -c %b file)" = "$used" ] || fail "the holes of the source are filled"
say "only a part of the file"
outgoing part
expect ok write src/part/verify on
truncate -s 1000001 src/part/ram
expect ok write src/part/ram-source "$dir/image"
tell src/part start
mark_all src/part
agrees part image 1000001
say "a source that comes late"
outgoing late
expect ok write src/late/verify on
tell src/late start
expect ok write src/late/ram-source "$dir/image"
mark_all src/late
agrees late image $((4 * MB))
say "a memfd, whose position is the VMM's"
outgoing memfd
expect ok write src/memfd/verify on
limited "$reference" memfd image src/memfd/ram-source | grep -q ok
tell src/memfd start
mark_all src/memfd
agrees memfd image $((4 * MB))
exec {fd}<image
head -c 4096 <&"$fd" >/dev/null
before=$(sed -n 's/^pos:\s*//p' "/proc/$$/fdinfo/$fd")
outgoing position
expect ok write src/position/verify on
echo "fd:$fd" >src/position/ram-source
tell src/position start
mark_all src/position
agrees position image $((4 * MB))
[ "$(sed -n 's/^pos:\s*//p' "/proc/$$/fdinfo/$fd")" = "$before" ] || fail "the position of the VMM's file has moved"
if huge_pages 8; then
	say "huge pages"
	outgoing huge
	expect ok write src/huge/verify on
	limited "$reference" memfd image src/huge/ram-source huge | grep -q ok
	tell src/huge start
	mark_all src/huge
	agrees huge image $((4 * MB))
fi

say "an end in the middle"
truncate -s $(scaled 40G 12G) large
remember_resources
for end in signal cancel kill; do
	begin "$end" "$uri" "$dir/large"
	command_in_background "src/$end" complete
	reaches "src/$end" completing completed
	case $end in
	signal)
		kill -INT "$command"
		command_says '|ok'
		# It goes on, and is completed the next time.
		reaches "src/$end" active completed
		[ "$state" = completed ] || tell "src/$end" complete
		;;
	cancel)
		attempt write "src/$end/control" cancel
		command_says 'ECANCELED|ok'
		;;
	kill)
		kill_migfs dst
		command_says 'ECONNRESET|EREMOTEIO|ETIMEDOUT|ok'
		;;
	esac
	reaches "src/$end" cancelled failed completed
	if [ "$end" != kill ]; then
		reaches "dst/$end" cancelled failed completed
		forget "dst/$end"
	fi
	forget "src/$end"
	[ "$end" = kill ] || same_resources
done
fusermount3 -u dst
