#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Devices are removed, renamed and begun anew at the source while a migration runs, as VMMs do that take one snapshot
# after another and as tools do that write a temporary file first; the destination follows, in order.
. "$(dirname "$0")/functions.sh"

pair
src=src/vm/device-state dst=dst/vm/device-state
begin() {
	outgoing vm "$1"
	expect ok truncate src/vm/ram 1048576
	tell src/vm start
}
# identical FILE [NAME]: it is there, and whole, without a barrier that anybody has asked for
identical() {
	local name=${2:-$1}
	eventually "$name is whole at the destination" cmp -s "$1" "$dst/$name"
}
listed() { [ "$(ls -A "$1" | sort | tr '\n' ' ')" = "$2" ]; }
# both_list NAME...: in that order
both_list() {
	listed $src "${*/%/ }" 2>/dev/null || listed $src "$(printf '%s ' "$@")" || fail "the source lists $(ls -A $src)"
	eventually "the destination lists $*" listed $dst "$(printf '%s ' "$@")"
	[ "$(status src/vm devices)" = $# ] || fail "the source counts $(status src/vm devices) devices"
	[ "$(status dst/vm devices)" = $# ] || fail "the destination counts $(status dst/vm devices) devices"
}
both_agree() {
	tell src/vm sync
	local key
	for key in device-bytes discarded-bytes accepted-bytes normal-bytes devices; do
		[ "$(status src/vm $key)" = "$(status dst/vm $key)" ] ||
			fail "$key is $(status src/vm $key) at the source and $(status dst/vm $key) at the destination"
	done
	diff <(limited cat src/vm/digest) <(limited cat dst/vm/digest)
}
finish_vm() {
	both_agree
	tell src/vm complete
	[ "$(status dst/vm status)" = completed ]
	"$@"
	forget src/vm dst/vm
}

random one 3000000
random two 2500001
random three 700

say "Cloud Hypervisor: unlink, and O_CREAT | O_EXCL"
begin 3
for round in one two three; do
	for file in config.json state.json memory-ranges; do
		if [ -e $src/$file ]; then
			expect EEXIST open $src/$file rdwr,creat,excl
			expect ok unlink $src/$file
			expect ENOENT open $src/$file wronly
		fi
		expect ok open $src/$file rdwr,creat,excl
		limited dd if=$round of=$src/$file bs=300000 conv=notrunc status=none
	done
	for file in config.json state.json memory-ranges; do identical $round $file; done
	both_list config.json memory-ranges state.json
done
finish_vm cmp three $dst/memory-ranges

say "Firecracker: O_TRUNC"
begin 2
for round in one two three one; do
	for file in vmstate memory; do
		limited dd if=$round of=$src/$file bs=300000 status=none conv=fsync
		cmp $round $dst/$file
	done
done
finish_vm cmp one $dst/memory

say "tools"
begin 4
for tool in rsync install tar mv cp; do
	command -v $tool >/dev/null || { say "there is no $tool"; continue; }
	for round in one two three; do
		cp $round state
		case $tool in
		rsync) limited rsync --whole-file --omit-dir-times state $src/state ;;
		install) limited install -m 600 state $src/state ;;
		tar) tar -cf - state | limited tar -C $src -xf - --no-same-owner --no-same-permissions -m ;;
		mv) limited cp state $src/.state.tmp && limited mv $src/.state.tmp $src/state ;;
		cp) limited cp --remove-destination state $src/state ;;
		esac || fail "$tool has failed: $(cat src/vm/error)"
		identical state
		both_list state
	done
done
# What reads first cannot, and leaves everything as it was.
limited sed -i s/a/b/ $src/state 2>said && fail "sed -i has read what cannot be read"
both_list state
identical three state
finish_vm cmp three $dst/state

say "mistakes"
begin 2
echo a >$src/a
echo b >$src/b
refuses() { refused "$1" src/vm/error "$2" "${@:3}"; }
expect ENOENT unlink $src/nothing
expect ENOENT rename $src/nothing $src/c
expect EPERM unlink src/vm/ram
expect EPERM rename $src/a src/vm/a
expect EPERM rename src/vm/ram $src/ram
expect EPERM rename src/vm/status src/vm/statut
expect EPERM mkdir $src/directory
expect ok mkdir src/other
expect EXDEV rename $src/a src/other/device-state/a
expect ok rmdir src/other
refuses EINVAL 'control' rename $src/a $src/$'a\nb'
expect ok rename $src/a $src/a
both_list a b
for file in $dst/a dst/vm/ram dst/vm/status; do
	expect EPERM unlink $file
	expect EPERM rename $file ${file%/*}/c
done
echo after >$src/after
expect ok unlink $src/after
both_list a b
finish_vm expect EPERM rename $dst/a $dst/b
begin 2
echo a >$src/a
tell src/vm complete
expect EPERM unlink $dst/a
refuses EBUSY completed unlink $src/a
refuses EBUSY completed rename $src/a $src/b
forget src/vm dst/vm

say "before the start"
outgoing vm 3
for name in a b c d; do : >$src/$name; done
expect ok unlink $src/b
expect ok rename $src/c $src/a
expect ok rename $src/d $src/.hidden
exec {stream}>$src/gone
expect ok unlink $src/gone
listed $src ".hidden a "
expect ok truncate src/vm/ram 1048576
tell src/vm start
both_list .hidden a
# It has not been there since before the start: what is written to it goes nowhere.
limited cat one >&"$stream"
exec {stream}>&-
limited cp two $src/a
identical two a
finish_vm cmp two $dst/a

say "open handles"
begin 3
limited cp one $src/old
identical one old
exec {reader}<$dst/old {writer}>>$src/old
: >$src/follow
eventually "it is there" test -e $dst/follow
limited cat $dst/follow >followed 2>follow.err {reader}<&- {writer}>&- &
follower=$!
expect ok unlink $src/old
limited cp two $src/old
identical two old
# Who had opened what was removed before still reads it; what is written to it succeeds and goes nowhere.
limited dd if=three conv=fsync status=none >&"$writer"
expect ESTALE open /dev/fd/$writer wronly
tell src/vm sync
cmp -n 3000000 one - <&"$reader" || fail "what was removed cannot be read any more"
[ "$(stat -L -c %h /dev/fd/$reader)" = 0 ]
cmp two $dst/old
exec {reader}<&- {writer}>&-
# A reader whose stream was removed before its end is told.
expect ok rename $src/old $src/follow
wait $follower && fail "the reader of a stream that was removed comes to its end"
grep -qi stale follow.err || fail "it is told $(cat follow.err)"
both_list follow
identical two follow
finish_vm cmp two $dst/follow

say "a sync of a device covers its name"
# What the old one has is on its way on a slow channel.
outgoing vm 2 "faulty:delay=500+only=1:$uri"
tell src/vm start
limited cp three $src/new
limited cp one $src/state
expect ok rename $src/new $src/state
tell src/vm "sync device-state/state"
cmp three $dst/state
limited cp two $src/new
limited dd if=one of=$src/state bs=1M seek=1 count=1 conv=notrunc status=none
exec {stream}>>$src/new
expect ok rename $src/new $src/state
limited dd if=/dev/null conv=fsync status=none >&"$stream"
limited head -c 2500001 $dst/state | cmp two -
exec {stream}>&-
finish_vm cmp two $dst/state

say "numbers and memory are given back"
unmount dst
dst_options=(-o "listen=$uri,max-devices=3,max-memory=16M")
migfs dst "${dst_options[@]}"
mounted_dst() { is_mounted dst; }
eventually "the destination is mounted" mounted_dst
begin 2
for ((i = 0; i < 40; i++)); do
	limited cp one $src/.tmp
	limited cp one $src/other
	expect ok rename $src/.tmp $src/state
	expect ok unlink $src/other
done
identical one state
both_list state
finish_vm cmp one $dst/state
