#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Files in -o backing=DIR that a daemon has left: one that it was filling when it was killed makes way for the next migration
# of the name; one that is complete, in use by another daemon, or somebody else's does not.
. "$(dirname "$0")/functions.sh"
requires_root

uri=unix:$dir/socket
migfs src
migfs src2
random image 6M

destination() { migfs dst -o "listen=$uri,backing=$store"; }

# begin: a migration in whose middle we are
begin() {
	outgoing vm 2
	truncate -s 6M src/vm/ram
	tell src/vm start
	overwrite image src/vm/ram bs=1M count=3
	tell src/vm sync
}

# fill: the rest of it
fill() {
	overwrite image src/vm/ram bs=1M
	tell src/vm complete
	same image $store/vm
	same image dst/vm/ram
	has_mode 600
}

has_mode() { [ "$(stat -c %a $store/vm)" = "$1" ] || fail "the file has mode $(stat -c %a $store/vm), not $1"; }

# crash: the daemon is killed and started again
crash() {
	kill_migfs dst
	fusermount3 -u dst
	reaches src/vm failed completed
	forget src/vm
	destination
}

leftovers() {
	say "a leftover, with another owner and mode"
	destination
	begin
	has_mode 1600
	chmod 640 dst/vm/ram
	has_mode 1640
	chown 12345:12345 dst/vm/ram
	crash
	has_mode 1640
	begin
	has_mode 1600
	[ "$(stat -c %u $store/vm)" = 0 ] || fail "the new file belongs to $(stat -c %u $store/vm)"
	grep -q "removed '$dir/$store/vm', which a migfs that died has left" dst.log || fail "the log does not say so"

	say "killed again, and again"
	crash
	begin
	crash
	outgoing vm 2
	truncate -s 6M src/vm/ram
	tell src/vm start
	fill

	say "a complete one"
	crash
	outgoing vm 2
	refused EEXIST src/vm/error "'$dir/$store/vm' exists already: remove it" write src/vm/control start
	same image $store/vm
	has_mode 600
	rm $store/vm
	tell src/vm start
	fill

	say "chmod after the end"
	chmod 644 dst/vm/ram
	has_mode 644
	forget src/vm dst/vm
	[ ! -e $store/vm ] || fail "the file is left"

	say "in use by another daemon"
	begin
	migfs other -o "listen=unix:$dir/other.socket,backing=$store"
	expect ok mkdir src2/vm
	expect ok write src2/vm/uri "unix:$dir/other.socket"
	refused EBUSY src2/vm/error "'$dir/$store/vm' is in use: another migfs" write src2/vm/control start
	fill
	refused EEXIST src2/vm/error "'$dir/$store/vm' exists already: remove it" write src2/vm/control start
	same image $store/vm
	forget src/vm dst/vm src2/vm
	unmount other

	say "cancelled"
	begin
	tell src/vm cancel
	reaches dst/vm cancelled failed
	forget src/vm dst/vm
	[ ! -e $store/vm ] || fail "the file of a cancelled migration is left"
	unmount dst
}

for store in directory tmpfs hugetlbfs; do
	storage $store 8 || continue
	say "---- in $store"
	leftovers
	[ $store = directory ] || umount $store
done

say "files of others"
store=directory
destination
outgoing vm 2
for mode in 600 1600; do
	echo precious >precious
	chmod $mode precious
	ln precious $store/vm
	refused EEXIST src/vm/error "'$dir/$store/vm' exists already" write src/vm/control start
	rm $store/vm
	ln -s ../precious $store/vm
	refused EEXIST src/vm/error "'$dir/$store/vm' exists already" write src/vm/control start
	rm $store/vm
	[ "$(cat precious)" = precious ] || fail "what was not a leftover is gone"
	rm precious
done
forget src/vm
unmount dst
unmount src
unmount src2
