#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Lines of fstab: `mount -a` again and again mounts once, whatever the source is called, and never hides what runs; the
# options that are meant for mount(8) are no mistakes; remount, and a mount point that is taken, get a sentence.
. "$(dirname "$0")/functions.sh"
[ -z "$MIGFS_SLOW" ] || skip "what a line of fstab is is no matter of a sanitizer"
requires_root
requires unshare setpriv mount.fuse3 fusermount3

# mount(8) looks for migfs in the usual places only; ours have another one. What users do needs /dev/fuse.
if [ -z "${INSIDE:-}" ]; then
	unshare -m --propagation private true 2>/dev/null || skip "no mount namespaces"
	INSIDE=1 exec unshare -m --propagation private bash "$here/fstab.sh"
fi
mkdir bin mnt other
cp "$MIGFS" bin/migfs
mount --bind bin /usr/local/bin
if [ "$(stat -c %a /dev/fuse)" != 666 ]; then
	mknod fuse c 10 229 && chmod 666 fuse && mount --bind fuse /dev/fuse || skip "no /dev/fuse for users"
fi
mount_point=$dir/mnt
mounts() { awk -v point="${1:-$mount_point}" '$5 == point { n++ } END { print n + 0 }' /proc/self/mountinfo; }
nothing_left() { [ -z "$(processes_with "${1:-$mount_point}")" ]; }
# says STATUS PATTERN COMMAND...
says() {
	local want=$1 pattern=$2 got=0
	shift 2
	"$@" >"$dir/said" 2>&1 || got=$?
	[ $got = "$want" ] || fail "$*: status $got, not $want: $(cat "$dir/said")"
	grep -qE -- "$pattern" "$dir/said" || fail "$*: says '$(cat "$dir/said")', not '$pattern'"
}
end() {
	umount "$mount_point"
	[ "$(mounts)" = 0 ] || fail "$(mounts) mounts are left"
	eventually "the daemon has ended" nothing_left
}

say "mount -a"
for source in none migfs foo /dev/null with,comma; do
	for type in fuse.migfs fuse.migfs3 fuse; do
		case $type in
		fuse.migfs3) line="$source $mount_point fuse.migfs rw,user,nodev,nosuid,noexec,_netdev,nofail,allow_other,x-systemd.automount,x-gvfs-show" ;;
		fuse) [ "$source" = migfs ] || continue; line="$source $mount_point fuse defaults" ;;
		*) line="$source $mount_point fuse.migfs defaults" ;;
		esac
		echo "$line 0 0" >fstab
		mount -a -T fstab
		[ "$(mounts)" = 1 ] || fail "$line: $(mounts) mounts"
		mkdir mnt/vm
		mount -a -T fstab
		mount -a -T fstab
		[ "$(mounts)" = 1 ] || fail "$line: mounted $(mounts) times"
		[ -d mnt/vm ] || fail "$line: the migration is hidden"
		end
	done
done
grep -q . fstab
echo "my-source $mount_point fuse.migfs noauto,umask=077 0 0" >fstab
mount -a -T fstab
[ "$(mounts)" = 0 ] || fail "noauto is mounted"
mount -T fstab mnt
grep -q "^my-source $mount_point fuse.migfs " /proc/self/mounts || fail "the source is not kept: $(grep "$mount_point" /proc/self/mounts)"
[ "$(stat -c %a mnt)" = 700 ]

say "a place that is taken"
mkdir mnt/vm
says 32 "mounted at '$mount_point' already" mount -T fstab mnt
says 32 "mounted at '$mount_point' already" mount -t fuse.migfs another "$mount_point"
says 32 "mounted at '$mount_point' already" mount.fuse3 migfs#another "$mount_point"
says 32 "mounted at '$mount_point' already" "$dir/bin/migfs" mnt
(cd mnt && says 32 "mounted at '$mount_point' already" "$dir/bin/migfs" .)
ln -s mnt link
says 32 "mounted at '$mount_point' already" "$dir/bin/migfs" link
[ "$(mounts)" = 1 ] && [ -d mnt/vm ]
says 32 'cannot be changed: unmount it' mount -o remount "$mount_point"
says 32 'cannot be changed: unmount it' mount -o remount,ro "$mount_point"
says 32 'cannot be changed: unmount it' mount -T fstab -o remount,timeout=5 mnt
[ -d mnt/vm ]

say "a daemon that does not answer is no dead one"
pid=$(processes_with "$mount_point")
kill -STOP "$pid"
says 32 'already, and does not answer' "$dir/bin/migfs" mnt
kill -CONT "$pid"

say "asked for"
limited bin/migfs -o stack mnt
[ "$(mounts)" = 2 ]
[ ! -e mnt/vm ]
umount mnt
[ -d mnt/vm ] || fail "the wrong one was unmounted"
end

say "other forms"
limited mount.fuse3 migfs#foo "$mount_point" -o noatime,nofail
grep -q "^foo $mount_point fuse.migfs .*noatime" /proc/self/mounts
end
echo "migfs#foo $mount_point fuse defaults 0 0" >fstab
mount -a -T fstab
says 32 already mount -a -T fstab
[ "$(mounts)" = 1 ]
end
limited mount.fuse3 foo "$mount_point" -t fuse.migfs -o ro
grep -q "^foo $mount_point fuse.migfs ro," /proc/self/mounts
[ "$( (mkdir mnt/vm) 2>&1)" != '' ]
end
limited bin/migfs -o defaults,auto,nofail,_netdev,users,group,owner,comment=x,x-systemd.requires=a,X-mount.y,nouser,relatime,nodiratime,lazytime,silent mnt
grep -q "^migfs $mount_point " /proc/self/mounts
end
limited bin/migfs -o 'fsname=a b' mnt
grep -qF "a\040b $mount_point " /proc/self/mounts
end
if [ -e /etc/fstab ]; then
	say "a line that users may mount"
	echo "none $mount_point fuse.migfs user,noauto 0 0" >fstab
	mount --bind fstab /etc/fstab
	chown 65534 mnt
	as_user() { limited setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; }
	as_user mount mnt
	grep -q "^none $mount_point fuse.migfs .*user_id=65534" /proc/self/mounts
	as_user mkdir mnt/vm
	says 32 "mounted at '$mount_point' already|mounted on" as_user mount mnt
	[ "$(mounts)" = 1 ]
	as_user fusermount3 -u mnt
	eventually "the daemon has ended" nothing_left
fi
