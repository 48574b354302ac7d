#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# RAM by reference: what users get wrong. Each gets the errno of migfs(5) and a sentence, and nothing is left open.
. "$(dirname "$0")/functions.sh"
requires mkfifo
helper reference && reference=$helper

# gives ERRNO PATTERN OPERATION...: what the helper says, and a sentence
gives() {
	local want=$1 pattern=$2 got text
	shift 2
	got=$(limited "$reference" "$@") || fail "reference $* has failed"
	[ "$got" = "$want" ] || fail "reference $*: expected $want, got $got"
	[ "$want" = ok ] || { text=$(cat src/vm/error); [[ $text =~ $pattern ]] || fail "reference $*: error says '$text'"; }
}
refuses() { refused "$1" src/vm/error "$2" "${@:3}"; }
names() { refuses "$1" "$2" write src/vm/ram-source "$3"; }
all() { head -c "$1" /dev/zero | tr '\0' '\377'; }

pair
random image 300000
: >empty
mkdir directory
mkfifo fifo
ln -s loop loop
ln -s image link
remember_resources
expect ok mkdir src/vm
descriptors=$(count_fds src)

say "what is no source"
names ENOENT 'there is no' "$dir/missing"
names ENOENT 'there is no' "$dir/missing/missing"
names EINVAL 'is empty' "$dir/empty"
names EINVAL 'not a regular file' "$dir/directory"
names EINVAL 'not a regular file' "$dir/fifo"
names EINVAL 'not a regular file' /dev/null
names EINVAL 'not a regular file' /dev/zero
names EINVAL 'not a regular file' /dev/fuse
names EINVAL 'is empty' /proc/version
names EIO 'Not a directory' "$dir/image/image"
names EPERM 'link of /proc, or too many links' "$dir/loop"
names EPERM 'link of /proc' "/proc/$$/cwd/image"
names EPERM 'link of /proc' /proc/self/fd/0
names EINVAL 'too long' "$dir/$(printf 'x%.0s' {1..5000})"
names EIO 'File name too long' "$dir/$(printf 'x%.0s' {1..300})"
names EINVAL 'more than one line' $'a\nb'
names EINVAL 'control characters' $'a\001'
say "what is no descriptor"
for text in fd: fd:x fd:-1 'fd:1 2' fd:0x1 fd:1x fd:99999999999 fd:18446744073709551615; do
	names EINVAL 'is not a descriptor' "$text"
done
names EINVAL 'has no descriptor 777' fd:777
gives EPERM 'not open for reading' give wronly "$dir/image" src/vm/ram-source
gives EPERM 'not open for reading' give path "$dir/image" src/vm/ram-source
gives EINVAL 'not a regular file' give rdonly "$dir/directory" src/vm/ram-source
gives EINVAL 'not a regular file' give rdwr "$dir/fifo" src/vm/ram-source
gives EINVAL 'is empty' give rdonly "$dir/empty" src/vm/ram-source
[ -z "$(cat src/vm/ram-source)" ] || fail "something was taken: $(cat src/vm/ram-source)"
[ "$(count_fds src)" = "$descriptors" ] || fail "descriptors are left open: $(ls -l "/proc/${daemon[src]}/fd")"

say "before the start"
expect ok write src/vm/ram-source "$dir/link"
[ "$(count_fds src)" = $((descriptors + 1)) ]
names ENOENT 'there is no' "$dir/missing"
# What was taken before stays.
[ "$(cat src/vm/ram-source)" = "$dir/link" ]
refuses ENOTCONN 'not been started' pwrite src/vm/dirty 0 8
expect ok fsync src/vm/dirty
refuses EINVAL 'Write a URI' write src/vm/control start
expect ok write src/vm/uri "$uri"
expect ok truncate src/vm/ram 300001
refuses EINVAL "RAM of 300001 bytes, and '$dir/link' has 300000" write src/vm/control start
[ "$(status src/vm status)" = none ]
expect ok truncate src/vm/ram 0
refuses EINVAL 'RAM of 0 bytes' write src/vm/control start
expect ok truncate src/vm/ram 300000
truncate -s 299999 image
refuses EINVAL 'RAM of 300000 bytes' write src/vm/control start
truncate -s 300000 image
tell src/vm start

say "after it"
names EBUSY 'cannot be changed' "$dir/image"
names EBUSY 'cannot be changed' none
refuses EINVAL '7 bytes at 0 are not multiples of 8' pwrite src/vm/dirty 0 7
refuses EINVAL '8 bytes at 4 are not multiples of 8' pwrite src/vm/dirty 4 8
refuses EINVAL '1 bytes at 0 are' pwrite src/vm/dirty 0 1
refuses EFBIG 'ends at 16 for RAM of 300000 bytes' pwrite src/vm/dirty 16 8
refuses EFBIG 'ends at 16' pwrite src/vm/dirty 0 24
refuses EBUSY 'size of RAM by reference' truncate src/vm/ram 5
refuses EBUSY 'size of RAM by reference' open src/vm/ram wronly,trunc
refuses EFBIG 'declared' truncate src/vm/ram 300001
[ "$(wc -c <src/vm/dirty)" = 16 ] || fail "the bitmap reads back as another size"
expect EOPNOTSUPP fallocate src/vm/dirty 0 4096
# A request of FUSE is at most a MiB from a page's start: more of it in one write has to begin at a multiple of 8.
gives EFBIG 'ends at 16' unaligned src/vm/dirty 3000000 16
gives EINVAL 'not multiples of 8' unaligned src/vm/dirty 3000000 3
gives EINVAL 'not multiples of 8' unaligned src/vm/dirty 17 0
[ "$(status src/vm status)" = active ]
[ "$(status src/vm accepted-bytes)" = 0 ]
all 16 >src/vm/dirty
tell src/vm sync
same image dst/vm/ram

say "at the end"
tell src/vm complete
refuses EBUSY 'has completed' pwrite src/vm/dirty 0 8
names EBUSY 'cannot be changed' "$dir/image"
expect ENOENT stat dst/vm/ram-source
expect ENOENT stat dst/vm/dirty
# The file is the VMM's again.
let_go() { ! grep -q image <(ls -l "/proc/${daemon[src]}/fd") && ! grep -q image "/proc/${daemon[src]}/maps"; }
eventually "the source has let go of it" let_go
forget src/vm dst/vm

say "without a source"
outgoing vm
truncate -s 300000 src/vm/ram
tell src/vm start
refuses EINVAL 'no ram-source' pwrite src/vm/dirty 0 8
overwrite image src/vm/ram
tell src/vm complete
same image dst/vm/ram
forget src/vm dst/vm

say "a start that fails, and another one"
outgoing vm 2 "unix:$dir/nobody"
expect ok write src/vm/ram-source "$dir/image"
refuses ECONNREFUSED nobody write src/vm/control start
refuses ECONNREFUSED nobody pwrite src/vm/dirty 0 8
expect ok write src/vm/uri "$uri"
tell src/vm start
all 16 >src/vm/dirty
tell src/vm complete
same image dst/vm/ram
forget src/vm dst/vm
same_resources

say "removed, and somebody has a file of it open"
outgoing vm 2 "unix:$dir/nobody"
expect ok write src/vm/ram-source "$dir/image"
refuses ECONNREFUSED nobody write src/vm/control start
exec {held}<src/vm/error
forget src/vm
let_go || fail "the source holds on to it"
exec {held}<&-

say "a mount of its own"
expect ok mkdir src/vm
attempt write src/vm/ram-source "$dir/src/vm/ram-source"
[ "$got" = EINVAL ] || fail "its own setting: $got"
truncate -s 1M src/vm/ram
attempt write src/vm/ram-source "$dir/src/vm/ram"
if [ "$got" = ok ]; then
	expect ok write src/vm/uri "$uri"
	attempt write src/vm/control start
	[ "$got" != ok ] || fail "an outgoing file is the source of another one"
	expect ok write src/vm/ram-source none
fi
forget src/vm
