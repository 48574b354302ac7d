#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What goes wrong at the destination after the writer was answered, and after it has closed its file without hearing of
# it, is told by fsync, `sync` and `complete` at the latest, in the errno of its kind, also when it is one byte.
. "$(dirname "$0")/functions.sh"

requires_root
mkdir full
mount -t tmpfs -o size=16k none full
at_exit "umount -l '$dir/full' 2>/dev/null"

# The RAM's directory is full to its last byte, and the budget has room for the channels and the declared RAM, but for no
# byte of a device as far out as that.
pair -o "backing=$dir/full,max-memory=16M"
printf x >one
head -c 16384 /dev/zero >full/fill || fail "there is room for less"

# tell_of WHAT FILE ERRNO OPERATION...: a byte of FILE is written and closed, and OPERATION is the first to tell
tell_of() { # WHAT FILE ERRNO OPERATION...
	local what=$1 file=$2 errno=$3
	shift 3
	say "$what: $*"
	outgoing vm
	expect ok truncate src/vm/ram 1048576
	tell src/vm start
	expect ok open "src/vm/$file" creat,wronly
	overwrite one "src/vm/$file" bs=1 seek=$at || fail "the write, or the close, tells already: that is too early to be sure of"
	expect "$errno" "$@"
	reaches src/vm failed
	says_why src/vm
	expect "$errno" "$@"
	forget src/vm
	eventually "the destination has failed" eval '[ ! -e dst/vm ] || is_in dst/vm failed'
	[ ! -e dst/vm ] || forget dst/vm
}

for file in ram device-state/d; do
	case $file in
	ram) errno=ENOSPC at=0 ;;
	*) errno=EDQUOT at=$((15 << 20)) ;;
	esac
	tell_of "one byte of $file" $file $errno fsync "src/vm/$file"
	tell_of "one byte of $file" $file $errno write src/vm/control "sync $file"
	tell_of "one byte of $file" $file $errno write src/vm/control sync
	tell_of "one byte of $file" $file $errno write src/vm/control complete
done

say "the pattern of the man page"
outgoing vm
expect ok truncate src/vm/ram 1048576
tell src/vm start
not limited dd if=one of=src/vm/ram conv=notrunc,fsync status=none 2>dd.err
grep -q 'No space left on device' dd.err || fail "dd says: $(cat dd.err)"
unmount src
unmount dst
umount full
