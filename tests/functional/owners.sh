#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A VMM that is another user: it can be given a migration, at either side, with chown and chmod or with uid=, gid= and
# umask=; who is not given it can do nothing. What appears later in a directory has its owner, and so has the backing file.
. "$(dirname "$0")/functions.sh"
requires_root
requires setpriv install tar

vmm=64321 other=64322 group=64323
as() { limited setpriv --reuid="$1" --regid="$1" --clear-groups "${@:2}" 2>/dev/null; }
as_member() { limited setpriv --reuid=$other --regid=$other --groups=$group "$@" 2>/dev/null; }
# is PATH OWNER:GROUP:MODE
is() { [ "$(stat -c %u:%g:%a "$1")" = "$2" ] || fail "$1 is $(stat -c %u:%g:%a "$1"), not $2"; }
# nothing_for COMMAND... MIGRATION: whoever it runs as can neither write nor command
nothing_for() {
	local path=${*: -1} file
	set -- "${@:1:$#-1}"
	for file in ram control device-state/new; do
		not "$@" sh -c "echo status >$path/$file"
	done
	not "$@" cat "$path/ram"
	not "$@" chmod 777 "$path"
	not "$@" chown "$other" "$path/ram"
	not "$@" rmdir "$path"
}
random image 1M
echo state >state
chmod 644 image state

say "given by chown, at both sides"
mkdir store
chmod 755 store
pair -o allow_other,backing=store
unmount src
migfs src -o allow_other
expect ok mkdir src/vm
nothing_for as $vmm src/vm
chown -R $vmm:$group src/vm
is src/vm $vmm:$group:755
is src/vm/ram $vmm:$group:600
is src/vm/control $vmm:$group:600
is src/vm/channels $vmm:$group:644
is src/vm/device-state $vmm:$group:755
nothing_for as $other src/vm
as $vmm sh -c "echo $uri >src/vm/uri && truncate -s 1M src/vm/ram && echo start >src/vm/control"
reaches dst/vm active
is dst/vm 0:0:755
is dst/vm/ram 0:0:600
is store/vm "$(stat -c %u:%g dst/vm/ram):$(stat -c %a store/vm)"
nothing_for as $vmm dst/vm
chown -R $vmm:$group dst/vm
is dst/vm/received $vmm:$group:444
[ "$(stat -c %u:%g store/vm)" = $vmm:$group ] || fail "the backing file is not the VMM's"
as $vmm dd if=image of=src/vm/ram conv=notrunc
as $vmm sh -c 'cat state >src/vm/device-state/own'
is src/vm/device-state/own $vmm:$vmm:600
echo data >src/vm/device-state/roots
is src/vm/device-state/roots $vmm:$group:600
as $vmm sh -c 'cat state >src/vm/device-state/roots'
tell src/vm sync
is dst/vm/device-state/own $vmm:$group:400
nothing_for as $other dst/vm
chmod 640 dst/vm/ram
[[ $(stat -c %a store/vm) = ?640 || $(stat -c %a store/vm) = 640 ]] || fail "the backing file has mode $(stat -c %a store/vm)"
as $vmm sh -c 'echo complete >src/vm/control'
as $vmm cmp image dst/vm/ram
as $vmm cmp image store/vm
as_member cmp image dst/vm/ram
as_member cmp image store/vm
not as $other cat dst/vm/ram
not as $other cat store/vm
[ "$(as $vmm cat dst/vm/device-state/own)" = state ]
as $vmm dd if=/dev/zero of=dst/vm/ram conv=notrunc count=1
not as_member dd if=/dev/zero of=dst/vm/ram conv=notrunc count=1
is store/vm $vmm:$group:640
forget src/vm dst/vm
[ ! -e store/vm ]

say "an owner who may not change what is not his"
chmod 1777 src
as $vmm mkdir src/vm
as $other mkdir src/vm2
is src/vm $vmm:$vmm:755
not as $other rmdir src/vm
not as $vmm chown $other src/vm/ram
not as $vmm chgrp $group src/vm
as $vmm chmod 700 src/vm
not as $other cat src/vm/status
as $vmm chmod 711 src/vm
as $vmm chmod 400 src/vm/status
not as $other cat src/vm/status
not as $other sh -c ": >src/vm/device-state/x"
as $vmm rmdir src/vm
as $other rmdir src/vm2
chmod 755 src

say "modes of mkdir and of the umask"
(umask 0; mkdir -m 700 src/a && mkdir src/b && umask 077 && mkdir src/c && mkdir -m 6775 src/d)
is src/a 0:0:700
is src/b 0:0:777
is src/c 0:0:700
is src/d 0:0:775
chmod 7777 src/a src/a/ram
is src/a 0:0:1777
is src/a/ram 0:0:777
# Who had it and kept it open has no more of it than any other user.
chown $vmm src/b/control
cat >keeps <<'WORDS'
exec 3<src/b/control
echo >ready
read -r _ <go
! chmod 777 /proc/self/fd/3
WORDS
chmod 755 "$dir"
mkfifo ready go
chmod 666 ready go
as $vmm bash keeps &
keeper=$!
read -r _ <ready
chown $other src/b/control
echo >go
wait $keeper || fail "an owner that was has changed the mode"
is src/b/control $other:0:600
chown $vmm src/b/control
is src/b/control $vmm:0:600
forget src/a src/b src/c src/d

say "cp -p, cp -a, tar x, install, rsync, touch"
expect ok mkdir src/vm
expect ok write src/vm/uri "$uri"
truncate -s 1M src/vm/ram
tell src/vm start
chown $vmm:$group image
chmod 604 image
touch -d '2001-02-03 04:05:06.789' image
cp -p image src/vm/ram
is src/vm/ram $vmm:$group:604
[ "$(stat -c %Y src/vm/ram)" = "$(stat -c %Y image)" ] || fail "cp -p has not kept the time"
[ "$(stat -c %y src/vm/ram)" = "$(stat -c %y image)" ] || fail "cp -p has not kept the fraction of the time"
cp -a image src/vm/device-state/copy
is src/vm/device-state/copy $vmm:$group:604
install -m 640 -o $other -g $group state src/vm/device-state/installed
is src/vm/device-state/installed $other:$group:640
mkdir -p packed/vm/device-state
cp image packed/vm/ram
cp state packed/vm/device-state/tarred
chmod 640 packed/vm/ram
tar c -C packed vm | tar x --overwrite -C src
is src/vm/ram 0:0:640
is src/vm/device-state/tarred 0:0:644
if command -v rsync >/dev/null; then
	chmod 600 packed/vm/ram
	rsync -p --inplace packed/vm/ram src/vm/ram
	is src/vm/ram 0:0:600
fi
tell src/vm complete
same image dst/vm/ram
same image dst/vm/device-state/copy
same state dst/vm/device-state/installed
same state dst/vm/device-state/tarred
touch dst/vm/ram
forget src/vm dst/vm

say "an expected migration keeps what was prepared, and the next one of its name has it, too"
expect ok mkdir dst/vm
: >dst/vm/device-state/disk
chown -R $vmm:$group dst/vm
chmod 751 dst/vm
chmod 640 dst/vm/ram dst/vm/device-state/disk
for end in cancel complete; do
	outgoing vm
	truncate -s 1M src/vm/ram
	tell src/vm start
	[ $end = cancel ] || overwrite image src/vm/ram
	echo state >src/vm/device-state/disk
	echo state >src/vm/device-state/another
	tell src/vm sync
	is dst/vm $vmm:$group:751
	is dst/vm/ram $vmm:$group:640
	is dst/vm/received $vmm:$group:444
	is dst/vm/device-state/disk $vmm:$group:640
	is dst/vm/device-state/another $vmm:$group:400
	[[ $(stat -c %u:%g:%a store/vm) =~ ^$vmm:$group:.?640$ ]] || fail "the backing file is $(stat -c %u:%g:%a store/vm)"
	tell src/vm $end
	reaches dst/vm cancelled completed
	forget src/vm
done
as $vmm cat dst/vm/device-state/disk >/dev/null
chmod 644 image
as_member cmp image dst/vm/ram
forget dst/vm
unmount dst

say "uid=, gid= and umask= of the mount"
migfs dst -o "listen=$uri,allow_other,uid=$vmm,gid=$group,umask=027,backing=store"
is dst $vmm:$group:750
is dst/.error $vmm:$group:440
outgoing vm
truncate -s 1M src/vm/ram
tell src/vm start
overwrite image src/vm/ram
echo state >src/vm/device-state/dev
tell src/vm sync
is dst/vm $vmm:$group:750
is dst/vm/ram $vmm:$group:640
is dst/vm/control $vmm:$group:640
is dst/vm/status $vmm:$group:440
is dst/vm/device-state $vmm:$group:750
is dst/vm/device-state/dev $vmm:$group:440
[ "$(stat -c %u:%g store/vm)" = $vmm:$group ]
not as $other ls dst
not as $other cat dst/vm/status
as_member cat dst/vm/status >/dev/null
not as_member sh -c 'echo cancel >dst/vm/control'
tell src/vm complete
as_member cmp image dst/vm/ram
[ "$(as_member cat dst/vm/device-state/dev)" = state ]
not as_member dd if=image of=dst/vm/ram conv=notrunc
as $vmm dd if=image of=dst/vm/ram conv=notrunc
is store/vm $vmm:$group:640
as_member cmp image store/vm
as $vmm rmdir dst/vm
as $vmm mkdir dst/own
is dst/own $vmm:$vmm:755
is dst/own/ram $vmm:$vmm:600
forget src/vm dst/own
unmount dst

say "names, and a group that may command"
migfs dst -o "listen=$uri,allow_other,uid=nobody,gid=$group,umask=7"
is dst "$(id -u nobody):$group:770"
outgoing vm
tell src/vm start
reaches dst/vm active
as_member sh -c 'echo cancel >dst/vm/control'
not as $other cat dst/vm/status
reaches src/vm cancelled
forget src/vm dst/vm
