#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What somebody does to the file that RAM arrives in, after the last packet or before it: it is truncated, removed,
# replaced. Then nothing completes, and both sides say why; a file that only grows is the size of the image in the end.
. "$(dirname "$0")/functions.sh"
requires_root

uri=unix:$dir/socket
migfs src
random image 12M

# begin: everything has arrived; $path is where
begin() {
	outgoing vm 3
	truncate -s 12M src/vm/ram
	tell src/vm start
	overwrite image src/vm/ram bs=1M
	echo state >src/vm/device-state/vm
	tell src/vm sync
	path=$(status dst/vm ram-path)
}

# spoiled PATTERN: `complete` fails, and that is why
spoiled() {
	refused EIO src/vm/error "the destination: .*$1" write src/vm/control complete
	reaches src/vm failed
	reaches dst/vm failed
	[[ $(cat dst/vm/error) =~ $1 ]] || fail "the destination says '$(cat dst/vm/error)', not '$1'"
	says_why src/vm
	says_why dst/vm
	forget src/vm dst/vm
}

# truncations STORE: in there
truncations() {
	begin
	truncate -s 8M "$path"
	spoiled "'$dir/$1/vm' was truncated.* 8388608 bytes, and had 12582912"
	[ ! -e "$1/vm" ] || fail "the file is left"
	begin
	truncate -s 0 "$path"
	spoiled "'$dir/$1/vm' was truncated.* 0 bytes, and had 12582912"

	# The second round finds nothing to store into.
	begin
	truncate -s 0 "$path"
	limited dd if=image of=src/vm/ram bs=1M count=4 conv=notrunc status=none 2>dd.err || true
	attempt write src/vm/control sync
	[ "$got" = EIO ] || [ "$got" = ok ] || fail "sync says $got"
	spoiled "'$dir/$1/vm' was truncated"

	begin
	truncate -s 16M "$path"
	tell src/vm complete
	same image "$1/vm"
	same image dst/vm/ram
	forget src/vm dst/vm
}

for store in directory tmpfs hugetlbfs; do
	storage $store 16 || continue
	say "in $store"
	migfs dst -o "listen=$uri,backing=$store"
	truncations $store

	begin
	rm $store/vm
	spoiled "'$dir/$store/vm' was removed or replaced"

	# Another file of the name is not migfs's to remove.
	begin
	rm $store/vm
	touch $store/vm
	spoiled "'$dir/$store/vm' was removed or replaced"
	[ -e $store/vm ] || fail "the file of somebody else is gone"
	rm $store/vm
	unmount dst
	[ $store = directory ] || umount $store
done

say "in a memfd"
migfs dst -o "listen=$uri"
begin
truncate -s 1M "$path"
spoiled "'ram': the memory was truncated.* 1048576 bytes, and had 12582912"
begin
for fd in /proc/"${daemon[dst]}"/fd/*; do
	[[ $(readlink "$fd") != *memfd:migfs:vm* ]] || [ "$(stat -Lc %s "$fd")" != 6 ] || truncate -s 3 "$fd"
done
spoiled "'vm': the memory was truncated.* 3 bytes, and had 6"

say "a size that nobody declared"
outgoing vm 3
tell src/vm start
overwrite image src/vm/ram bs=1M
tell src/vm sync
truncate -s 5M "$(status dst/vm ram-path)"
spoiled "'ram': the memory was truncated.* 5242880 bytes, and had 12582912"
unmount dst
unmount src
