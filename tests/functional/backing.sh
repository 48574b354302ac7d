#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# -o backing=DIR: the image arrives in a file in DIR, whose path is in `status`; rmdir removes it, the daemon's end leaves a
# completed one and no other; a file that is there already is not touched; a full file system is an error.
. "$(dirname "$0")/functions.sh"
requires_root
helper mapping

mkdir store
mount -t tmpfs -o size=40M none store || skip "tmpfs cannot be mounted"
at_exit "umount -l $dir/store"
finish_store() { umount store; }
pair -o backing=store
random image 5000001

begin() {
	outgoing "$1" 2
	truncate -s 5000001 "src/$1/ram"
	tell "src/$1" start
	reaches "dst/$1" active
	path=$(status "dst/$1" ram-path)
	[ "$path" = "$dir/store/$1" ] || fail "the path is $path"
}

say "its life"
begin vm
overwrite image src/vm/ram bs=1M
tell src/vm sync
same image store/vm
tell src/vm complete
same image store/vm
limited "$helper" store/vm image
same image store/vm
same image dst/vm/ram
forget src/vm dst/vm
[ ! -e store/vm ] || fail "rmdir leaves the file"

say "cancelled"
begin vm
overwrite image src/vm/ram bs=1M
tell src/vm cancel
reaches dst/vm cancelled failed
forget src/vm dst/vm
[ ! -e store/vm ] || fail "rmdir leaves the file of a cancelled migration"

say "there already"
echo precious >store/vm
outgoing vm 2
refused EEXIST src/vm/error 'exists already' write src/vm/control start
[ "$(cat store/vm)" = precious ]
forget src/vm
ln -sf precious store/vm
outgoing vm 2
refused EEXIST src/vm/error 'exists already' write src/vm/control start
[ ! -e store/precious ]
rm store/vm
tell src/vm start
tell src/vm complete
forget src/vm dst/vm

# has_no_room: the migration fails of it, and both sides know
has_no_room() {
	attempt write src/vm/control sync
	[[ $got =~ ^(ENOSPC|EREMOTEIO)$ ]] || fail "sync says $got"
	reaches src/vm failed
	reaches dst/vm failed
	[[ $(cat src/vm/error) =~ 'No space left' ]] || fail "the source says $(cat src/vm/error)"
	forget src/vm dst/vm
}
say "a full file system"
begin vm
head -c 39M /dev/zero >store/filler
random large 5000000
attempt pwrite src/vm/ram 0 5000000
overwrite large src/vm/ram bs=1M 2>/dev/null || true
has_no_room

say "and scattered pages in it"
truncate -s 5M sparse
for ((at = 0; at < 1280; at += 2)); do
	printf x | dd of=sparse bs=1 seek=$((at * 4096)) conv=notrunc status=none
done
outgoing vm 2
echo "$dir/sparse" >src/vm/ram-source
tell src/vm start
head -c 160 /dev/zero | tr '\0' '\377' >src/vm/dirty
has_no_room
rm store/filler

say "what the daemon leaves behind"
begin kept
overwrite image src/kept/ram bs=1M
tell src/kept complete
begin broken
unmount dst
same image store/kept
[ ! -e store/broken ] || fail "the file of a failed migration is left"
reaches src/broken failed
unmount src
finish_store
