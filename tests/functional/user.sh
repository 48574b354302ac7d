#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# An ordinary user mounts through fusermount3, and moves a file.
. "$(dirname "$0")/functions.sh"
requires setpriv unshare fusermount3

if [ "$(id -u)" != 0 ]; then
	me=()
else
	me=(setpriv --reuid=65534 --regid=65534 --clear-groups)
fi
# Where only root may open /dev/fuse, a place of our own has another one.
inside='if [ "$(id -u)" = 0 ] && [ "$(stat -c %a /dev/fuse)" != 666 ]; then
	mknod fuse c 10 229 && chmod 666 fuse && mount --bind fuse /dev/fuse || exit 77
fi
exec "$@"'
mkdir work
chmod 777 work
cp "$MIGFS" work/migfs
cat >work/copy <<'END'
#!/bin/bash
# The user's part; it says where it fails.
set -Eeuo pipefail
trap 'echo "line $LINENO: $BASH_COMMAND" >&2; cat src/vm/error dst.log src.log >&2' ERR
cd "$(dirname "$0")"
mkdir src dst
trap 'fusermount3 -uz src; fusermount3 -uz dst' EXIT
head -c 5000000 /dev/urandom >image
./migfs -o "listen=unix:$PWD/socket" dst 2>dst.log
./migfs src 2>src.log
mkdir src/vm
echo "unix:$PWD/socket" >src/vm/uri
truncate -s 5000000 src/vm/ram
echo start >src/vm/control
cp image src/vm/ram
echo state >src/vm/device-state/dev
echo complete >src/vm/control
cmp image dst/vm/ram
[ "$(cat dst/vm/device-state/dev)" = state ]
[ "$(stat -c %u dst/vm/ram)" = "$(id -u)" ]
rmdir src/vm dst/vm
fusermount3 -u src
fusermount3 -u dst
trap - EXIT
END
chmod 755 work/copy
status=0
limited unshare ${me:+-m --propagation private} sh -c "$inside" sh "${me[@]}" work/copy || status=$?
[ $status != 77 ] || skip "/dev/fuse is for root only, and cannot be replaced here"
[ $status = 0 ] || fail "the user's part has failed"
nobody_left() { [ -z "$(processes_with "$dir/work")" ]; }
eventually "the daemons have ended" nobody_left
