#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What a daemon leaves that was killed: a mount of our own is taken away by the next daemon there, root's and a user's; other
# dead mounts are named, wherever they are in the way. With auto_unmount, nothing is left.
. "$(dirname "$0")/functions.sh"
requires_root
requires unshare setpriv fusermount3 mount.fuse3

if [ -z "${INSIDE:-}" ]; then
	unshare -m --propagation private true 2>/dev/null || skip "no mount namespaces"
	INSIDE=1 exec unshare -m --propagation private bash "$here/dead-mount.sh"
fi
if [ "$(stat -c %a /dev/fuse)" != 666 ]; then
	mknod fuse c 10 229 && chmod 666 fuse && mount --bind fuse /dev/fuse || skip "no /dev/fuse for users"
fi
mounts() { awk -v point="$dir/$1" '$5 == point { n++ } END { print n + 0 }' /proc/self/mountinfo; }
dead() { [[ $(stat "$1" 2>&1) = *"Transport endpoint is not connected"* ]]; }
# says STATUS PATTERN COMMAND...
says() {
	local want=$1 pattern=$2 got=0
	shift 2
	"$@" >"$dir/said" 2>&1 || got=$?
	[ $got = "$want" ] || fail "$*: status $got, not $want: $(cat "$dir/said")"
	grep -qE -- "$pattern" "$dir/said" || fail "$*: says '$(cat "$dir/said")', not '$pattern'"
}
crash() {
	kill_migfs "$1"
	eventually "$1 is dead" dead "$1"
}

say "root's"
migfs mnt
expect ok mkdir mnt/vm
crash mnt
"$MIGFS" "$dir/mnt" || fail "it cannot be mounted again"
[ "$(mounts mnt)" = 1 ]
[ ! -e mnt/vm ]
pid=$(processes_with "$dir/mnt")
kill -9 "$pid"
eventually "the daemon is gone" gone "$pid"

say "with somebody in it, and through mount(8)"
mkdir bin
cp "$MIGFS" bin/migfs
mount --bind bin /usr/local/bin
limited mount -t fuse.migfs none "$dir/mnt"
[ "$(mounts mnt)" = 1 ]
(
	cd mnt
	pid=$(processes_with "$dir/mnt")
	kill -9 "$pid"
	eventually "the daemon is gone" gone "$pid"
	limited mount -t fuse.migfs none "$dir/mnt"
)
[ "$(mounts mnt)" = 1 ]
mkdir mnt/vm

say "several on top of one another, and one below that lives"
for i in 1 2 3; do
	"$MIGFS" -f -o stack "$dir/mnt" 2>>stack.log &
	stacked() { [ "$(mounts mnt)" = $((i + 1)) ]; }
	eventually "mount $i" stacked
	daemons[i]=$!
done
kill -9 "${daemons[@]}"
wait "${daemons[@]}" || true
eventually "it is dead" dead mnt
says 32 'already' "$MIGFS" "$dir/mnt"
[ "$(mounts mnt)" = 1 ] || fail "$(mounts mnt) mounts"
[ -d mnt/vm ]
umount mnt

say "one that was unmounted while it is in use, and ends when another one is there"
migfs mnt
expect ok mkdir mnt/old
(
	exec 7<mnt/old/status
	umount -l mnt
	"$MIGFS" -o "fsname=second" "$dir/mnt"
	expect ok mkdir mnt/new
	kill -TERM "${daemon[mnt]}"
	eventually "the first one is gone" gone "${daemon[mnt]}"
	[ -d mnt/new ] || fail "the mount of the second one is gone"
)
unset "daemon[mnt]"
second=$(processes_with fsname=second)
umount mnt
eventually "the second one is gone" gone "$second"

say "in the way"
mkdir -p mnt outside
migfs mnt
crash mnt
says 32 "^migfs: backing: .*'$dir/mnt' .fuse.migfs. is dead.*fusermount3 -u.*umount -l" "$MIGFS" -o "backing=$dir/mnt" outside
says 32 "^migfs: backing: .*'$dir/mnt' .fuse.migfs. is dead" "$MIGFS" -o "backing=$dir/mnt/a/b" outside
says 32 "'$dir/mnt' .fuse.migfs. is dead" "$MIGFS" "$dir/mnt/vm"
says 32 "'$dir/mnt' .fuse.migfs. is dead" "$MIGFS" "$dir/mnt/vm/below"
(cd "$dir" && says 32 "'$dir/mnt' .fuse.migfs. is dead" "$MIGFS" -o backing=mnt/x outside)
[ "$(mounts mnt)" = 1 ] && [ "$(mounts outside)" = 0 ]
umount -l mnt

say "a user's"
mkdir theirs
chown 65534 theirs
chmod 755 theirs
as_user() { limited setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; }
kill_theirs() {
	pid=$(processes_with "$dir/theirs")
	kill -9 $pid
	eventually "the daemon is gone" gone "$pid"
}
as_user bin/migfs "$dir/theirs"
as_user mkdir theirs/vm
says 32 already as_user bin/migfs "$dir/theirs"
says 32 already "$MIGFS" "$dir/theirs"
kill_theirs
as_user bin/migfs "$dir/theirs" || fail "the user cannot mount again"
[ "$(mounts theirs)" = 1 ]
as_user test ! -e theirs/vm
say "root may end it, and another user may not"
kill_theirs
limited "$MIGFS" "$dir/theirs"
[ "$(mounts theirs)" = 1 ]
pid=$(processes_with "$dir/theirs")
umount theirs
eventually "its daemon is gone" gone "$pid"
migfs theirs -o allow_other
crash theirs
says 32 "'$dir/theirs' .fuse.migfs. is dead.*fusermount3 -u" as_user bin/migfs "$dir/theirs"
[ "$(mounts theirs)" = 1 ]
umount -l theirs

# (For an ordinary user, fusermount3 of libfuse 3.14.0 does it with allow_other only.)
say "auto_unmount"
limited bin/migfs -o auto_unmount "$dir/theirs"
[ "$(mounts theirs)" = 1 ]
pid=$(processes_with "migfs -o auto_unmount $dir/theirs")
kill -9 "$pid"
no_mount() { [ "$(mounts theirs)" = 0 ]; }
eventually "nothing is mounted" no_mount
