#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# mount -t fuse.migfs, with options of migfs and of FUSE; umount ends the daemon.
. "$(dirname "$0")/functions.sh"
requires_root
requires unshare setpriv mount.fuse3

# mount(8) looks for migfs in the usual places only; ours have another one.
if [ -z "${INSIDE:-}" ]; then
	unshare -m --propagation private true 2>/dev/null || skip "no mount namespaces"
	INSIDE=1 exec unshare -m --propagation private bash "$here/mount.sh"
fi
mkdir bin mnt
ln -s "$MIGFS" bin/migfs
mount --bind bin /usr/local/bin

uri=unix:$dir/socket
limited mount -t fuse.migfs none "$dir/mnt" -o "listen=$uri,max-ram=64M,allow_other,nosuid,nodev"
grep -q "^none $dir/mnt fuse.migfs .*nosuid.*allow_other" /proc/self/mounts || fail "$(grep "$dir/mnt" /proc/self/mounts)"
migfs src
outgoing vm
truncate -s 1M src/vm/ram
tell src/vm start
random image 1M
overwrite image src/vm/ram bs=64K
tell src/vm complete
same image mnt/vm/ram

say "allow_other: others may look, and may not touch"
as_nobody() { limited setpriv --reuid=65534 --regid=65534 --clear-groups "$@" 2>/dev/null; }
as_nobody cat mnt/vm/status >/dev/null
not as_nobody sh -c 'echo cancel >mnt/vm/control'
not as_nobody rmdir mnt/vm
not as_nobody mkdir mnt/vm2
not as_nobody cat mnt/vm/ram

umount mnt
nothing_left() { [ -z "$(processes_with "$dir/mnt")" ]; }
eventually "the daemon has ended" nothing_left
