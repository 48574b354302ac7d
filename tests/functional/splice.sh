#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Writes that go from FUSE's pipe to the socket: when they do, what the counters say, what arrives, and that nothing of
# what was refused or lost gets into a later write.
. "$(dirname "$0")/functions.sh"
without_tls "nothing is spliced"

size=$(scaled 33554432 9437184)
random image "$size"
migfs dst -o "listen=tcp:127.0.0.1:0,listen=unix:$dir/socket,max-memory=128M"
migfs src -o write-behind=4M
tcp=$(sed -n 's/.*listening at \(tcp:\)/\1/p' dst.log) unix=unix:$dir/socket

say "the setting"
outgoing vm 2 "$unix"
[ "$(cat src/vm/splice)" = auto ] || fail "the default is $(cat src/vm/splice)"
refused EINVAL src/vm/error 'neither auto' write src/vm/splice maybe
expect ok write src/vm/splice on
attempt write src/vm/control start
if [ "$got" = EOPNOTSUPP ]; then
	grep -q 'fs.pipe-max-size' src/vm/error || fail "no reason: $(cat src/vm/error)"
	skip "pipes of 2 MiB cannot be had here (fs.pipe-max-size)"
fi
[ "$got" = ok ] || fail "start: $got"
tell src/vm cancel
reaches dst/vm cancelled failed
forget src/vm dst/vm

# begin NAME URI CHANNELS PATH [SETTING VALUE]...
begin() {
	local i
	outgoing "$1" "$3" "$2"
	for ((i = 5; i < $#; i += 2)); do expect ok write "src/$1/${!i}" "${@:$((i + 1)):1}"; done
	tell "src/$1" start
	[ "$(status "src/$1" path)" = "$4" ] || fail "$*: the path is $(status "src/$1" path)"
}
# add_up NAME MIN: at least so many bytes were spliced, and the rest was copied
add_up() {
	local n
	n=$(status "src/$1" spliced-bytes)
	[ "$n" -ge "$2" ] || fail "$1: $n bytes were spliced, not $2"
	[ $((n + $(status "src/$1" copied-bytes))) = "$(status "src/$1" multifd-bytes)" ] || fail "$1: bytes are missing"
}
finish_with() {
	tell "src/$1" sync
	add_up "$1" "$2"
	tell "src/$1" complete
	same image "dst/$1/ram"
	forget "src/$1" "dst/$1"
}
# The first requests of a series find workers that read into memory: up to 16.
write_image() {
	local i
	for i in {1..4}; do overwrite image "src/$1/ram" "bs=${2:-1M}"; done
}
plain=(zero-page-detection off)

say "which path"
begin looked "$unix" 2 copy
overwrite image src/looked/ram bs=1M
finish_with looked 0
for not in 'splice off' 'checksum on' 'compression zstd'; do
	begin not "$unix" 2 copy "${plain[@]}" $not
	overwrite image src/not/ram bs=1M
	tell src/not complete
	[ "$(status src/not spliced-bytes)" = 0 ] || fail "$not: spliced all the same"
	forget src/not dst/not
done
begin far "$tcp" 2 copy "${plain[@]}"
overwrite image src/far/ram bs=1M
tell src/far sync
[ "$(status src/far spliced-bytes)" = 0 ] || fail "TCP is spliced by itself"
tell src/far complete
forget src/far dst/far

say "what arrives"
for uri in "$unix" "$tcp" "faulty:delay=1:$unix"; do
	for channels in 1 3; do
		for block in 1M 64K 100000 4096; do
			begin data "$uri" $channels splice "${plain[@]}" splice on
			write_image data $block
			case $block-$uri in
			*-faulty* | 4096-*) finish_with data 0 ;;
			1M-*) finish_with data $((size / 2)) ;;
			*) finish_with data 1 ;;
			esac
		done
	done
done

say "devices at the same time, and a migration whose pages are looked at"
begin one "$unix" 3 splice "${plain[@]}" device-channels 1
begin two "$unix" 2 copy
random device 3000001
overwrite image src/one/ram bs=1M & jobs=($!)
overwrite image src/two/ram bs=1M & jobs+=($!)
limited dd if=device of=src/one/device-state/dev bs=1M status=none & jobs+=($!)
limited dd if=device of=src/two/device-state/dev bs=100K status=none & jobs+=($!)
for job in "${jobs[@]}"; do wait "$job" || fail "a writer has failed"; done
for name in one two; do
	tell src/$name sync
	same device dst/$name/device-state/dev
	finish_with $name 0
done

say "a write that is refused leaves nothing behind"
outgoing vm 1 "$unix"
expect ok write src/vm/zero-page-detection off
truncate -s "$size" src/vm/ram
tell src/vm start
write_image vm
for i in {1..20}; do
	refused EFBIG src/vm/error declared pwrite src/vm/ram "$size" 300000
	overwrite image src/vm/ram bs=1M count=1 skip=$((i % 8)) seek=$((i % 8))
done
finish_with vm $((size / 4))

say "a writer that is interrupted, and a destination that is gone"
remember_resources
begin vm "$unix" 2 splice "${plain[@]}"
write_image vm
tell src/vm sync
stop_migfs dst
head -c "$size" image >src/vm/ram 2>writer.err & writer=$!
blocked() { [ "$(status src/vm remaining)" -ge 3000000 ]; }
eventually "the writer is blocked" blocked
kill -TERM $writer
wait $writer || true
continue_migfs dst
write_image vm
finish_with vm $((size / 4))
begin vm "$unix" 2 splice "${plain[@]}"
stop_migfs dst
head -c "$size" image >src/vm/ram 2>writer.err & writer=$!
eventually "the writer is blocked" blocked
kill_migfs dst
not wait $writer
reaches src/vm failed
says_why src/vm
forget src/vm
umount -l dst
rm -f "$dir/socket"
migfs dst -o "listen=unix:$dir/socket"
begin vm "$unix" 2 splice "${plain[@]}"
write_image vm
finish_with vm $((size / 4))
