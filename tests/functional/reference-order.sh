#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# RAM by reference among everything else: writes to `ram`, holes, devices, flush, fsync, commands that are interrupted or
# cancelled while pages are on their way, and `remaining` in status.
. "$(dirname "$0")/functions.sh"
helper reference && reference=$helper
MB=$((1 << 20))

all() { head -c "$1" /dev/zero | tr '\0' '\377'; }
is() { [ "$(status "$1" "$2")" = "$3" ] || fail "$1: $2 is $(status "$1" "$2"), not $3"; }
mark() { [ "$(limited "$reference" mark "src/$name/dirty" "$@")" = ok ] || fail "$name: marking $*"; }

# begin NAME CHANNELS MIB [SETTING VALUE]...: a source of random data, all of it dirty but not asked for
begin() {
	local i
	name=$1
	say "$*"
	size=$(($3 * MB)) words=$(($3 * 4))
	[ -e "image$3" ] || random "image$3" $size
	cp "image$3" ram
	outgoing "$name" "$2"
	for ((i = 4; i < $#; i += 2)); do expect ok write "src/$name/${!i}" "${@:$((i + 1)):1}"; done
	expect ok write "src/$name/ram-source" "$dir/ram"
	tell "src/$name" start
	reaches "dst/$name" active
}
forget_both() { forget "src/$name" "dst/$name"; }

pair

# mixed [SETTING VALUE]...: what comes later wins, whichever way it comes
mixed() {
	begin mixed 3 8 "$@"
	cp ram model
	all $((words * 8)) >src/mixed/dirty
	# After the bitmap: these are not overwritten by the pages.
	head -c 3000000 image8 | limited dd of=src/mixed/ram oflag=seek_bytes seek=1234567 conv=notrunc status=none bs=1M iflag=fullblock
	head -c 3000000 image8 | dd of=model oflag=seek_bytes seek=1234567 conv=notrunc status=none bs=1M iflag=fullblock
	limited fallocate -p -o 6000001 -l 1500000 src/mixed/ram
	fallocate -p -o 6000001 -l 1500000 model
	overwrite image8 src/mixed/device-state/dev bs=1M count=2
	tell src/mixed sync
	same model dst/mixed/ram
	is src/mixed accepted-bytes $((size + 3000000 + 1500000 + 2 * MB))
	is src/mixed discarded-bytes 1500000
	is src/mixed device-bytes $((2 * MB))
	# After those: the pages are what they are in the file.
	mark 0-1023 1600 1900-2047
	dd if=ram of=model bs=4096 count=1024 conv=notrunc status=none
	dd if=ram of=model bs=4096 skip=1600 seek=1600 count=1 conv=notrunc status=none
	dd if=ram of=model bs=4096 skip=1900 seek=1900 count=148 conv=notrunc status=none
	expect ok fsync src/mixed/dirty
	same model dst/mixed/ram
	# One page, over and over, both ways.
	for i in {1..40}; do
		random page 4096
		dd if=page of=ram bs=4096 seek=$((i % 3)) conv=notrunc status=none
		mark $((i % 3))
		((i % 2)) || overwrite image8 src/mixed/ram bs=4096 seek=$((i % 3)) count=1
		((i % 5)) || limited fallocate -p -o 0 -l 12288 src/mixed/ram
	done
	random page 12288
	dd if=page of=ram bs=4096 conv=notrunc status=none
	dd if=page of=model bs=4096 conv=notrunc status=none
	mark 0-2
	limited head -c 100000 image8 >src/mixed/device-state/other
	tell src/mixed complete
	same model dst/mixed/ram
	same <(head -c 100000 image8) dst/mixed/device-state/other
	same <(head -c $((2 * MB)) image8) dst/mixed/device-state/dev
	for key in accepted-bytes normal-bytes zero-bytes discarded-bytes device-bytes; do
		is dst/mixed $key "$(status src/mixed $key)"
	done
	is src/mixed accepted-bytes $(($(status src/mixed normal-bytes) + $(status src/mixed zero-bytes) + \
		$(status src/mixed discarded-bytes) + $(status src/mixed device-bytes)))
	forget_both
}
mixed
mixed checksum on
mixed compression zstd
mixed zero-page-detection off device-channels 1

say "flush and fsync"
begin flush 2 8
all $((words * 8)) >src/flush/dirty
tell src/flush flush
is src/flush remaining 0
is src/flush normal 2048
is src/flush dirty-sync-count 0
expect ok fdatasync src/flush/dirty
is src/flush dirty-sync-count 1
same ram dst/flush/ram
all $((words * 8)) >src/flush/dirty
tell src/flush "flush ram"
is src/flush normal 4096
tell src/flush sync
tell src/flush cancel
reaches dst/flush cancelled failed
forget_both

# A destination that is stopped takes no more than the sockets hold.
waits() {
	command_in_background "src/$name" "$1"
	eventually "$1 waits" in_write "$command"
}
say "what remains, and what waits for it"
begin remains 2 32
stop_migfs dst
all $((words * 8)) >src/remains/dirty
remaining=$(status src/remains remaining)
[ "$remaining" -gt $((24 * MB)) ] && [ "$remaining" -le $((32 * MB)) ] || fail "$remaining bytes remain of $((32 * MB))"
# What is asked for again is no more.
all $((words * 8)) >src/remains/dirty
remaining=$(status src/remains remaining)
[ "$remaining" -gt $((24 * MB)) ] && [ "$remaining" -le $((32 * MB)) ] || fail "$remaining bytes remain of $((32 * MB))"
# Everything but a device waits for the pages; a signal ends that.
for what in sync 'sync ram' flush 'flush ram' complete; do
	waits "$what"
	[ "$what" != complete ] || reaches src/remains completing
	kill -INT "$command"
	command_says '' # it has ended by the signal
	is src/remains status active
done
dd if=/dev/zero of=ram bs=1M count=32 conv=notrunc status=none
continue_migfs dst
all $((words * 8)) >src/remains/dirty
tell src/remains sync
is src/remains remaining 0
same ram dst/remains/ram
tell src/remains complete
forget_both

say "while it completes"
begin completing 3 32
stop_migfs dst
all $((words * 8)) >src/completing/dirty
waits complete
reaches src/completing completing
refused EBUSY src/completing/error 'being completed' pwrite src/completing/dirty 0 8
refused EBUSY src/completing/error 'being completed' pwrite src/completing/ram 0 8
continue_migfs dst
command_says ok
same ram dst/completing/ram
forget_both

for who in src dst; do
	begin cancel-$who 3 32
	[ $who = dst ] || stop_migfs dst
	all $((words * 8)) >"src/$name/dirty"
	if [ $who = src ]; then waits sync; else command_in_background "src/$name" sync; fi
	tell $who/"$name" cancel
	# The destination may have applied everything before it was asked.
	command_says "ECANCELED$([ $who = src ] || echo '|ok')"
	[ $who = dst ] || continue_migfs dst
	reaches "src/$name" cancelled
	reaches "dst/$name" cancelled failed
	refused ECANCELED "src/$name/error" cancelled pwrite "src/$name/dirty" 0 8
	is "src/$name" remaining 0
	forget "src/$name"
	attempt rmdir "dst/$name"
done
remember_resources

# An interrupt at any moment of a complete, and then a good one: nothing of what was asked for is forgotten.
say "interrupted at any moment"
waits_or_done() { gone "$command" || in_write "$command"; }
begin moments 16 8
for ((run = 0; run < $(scaled 60 15); run++)); do
	dd if=image32 of=ram bs=4096 skip=$run count=2048 conv=notrunc status=none
	all $((words * 8)) >src/moments/dirty
	command_in_background src/moments complete
	eventually "it waits, or is done" waits_or_done 2>/dev/null
	kill -INT "$command" 2>/dev/null || true
	eventually "the command has ended" gone "$command"
	wait "$command" 2>/dev/null || true
	[[ $(cat answer) =~ ^(ok)?$ ]] || fail "complete says $(cat answer)"
	# The signal can also end the command when its write has succeeded.
	if [ "$(status src/moments status)" = completed ]; then
		same ram dst/moments/ram
		forget src/moments dst/moments
		begin moments 16 8
	fi
	is src/moments status active
done
all $((words * 8)) >src/moments/dirty
tell src/moments complete
same ram dst/moments/ram
forget_both
same_resources
