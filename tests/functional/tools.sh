#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Every tool that copies, and what it must give: an image written to `ram` by each of them, a file to device-state/, and what
# has arrived read by each. Those that cannot work are in the table, with what they say.
. "$(dirname "$0")/functions.sh"
[ -z "$MIGFS_SLOW" ] || skip "what the tools ask for, other tests ask for, too, with a sanitizer"

size=$((9 << 20))
random image 5M
truncate -s $size image
dd if=/dev/urandom of=image bs=4K seek=2000 count=7 conv=notrunc status=none
tar cf image.tar image
mkdir away out received
pair -o "backing=$dir/received"

rows=0 skipped=() wrong=0
# amiss TEXT: a row is not as it should be; the others are tried all the same
amiss() {
	echo "WRONG: $*"
	wrong=$((wrong + 1))
}
# has WORD...: the program that a command begins with is there
has() {
	local word
	for word in "$@"; do
		case $word in
		*=* | limited | \( | "!") ;;
		*) command -v "$word" >/dev/null && return; break ;;
		esac
	done
	skipped+=("$word")
	return 1
}
# runs WANT COMMAND: `same`, or a pattern of what it says when it fails
runs() {
	local status=0
	timeout -k 1 "$limit" bash -euo pipefail -c "$2" >said 2>&1 || status=$?
	if [ "$1" = same ]; then
		[ $status = 0 ] || amiss "$2: status $status, and says: $(cat said)"
		return 0
	fi
	[ $status != 0 ] && [ $status != 124 ] || amiss "$2: status $status, where it was to fail with $1"
	grep -qE "$1" said || amiss "$2: says $(cat said), not $1"
}

# Each has a migration of its own. $RAM, $DEV and $VM are those of the source; a `same` has to arrive.
to_ram() { # WANT COMMAND
	# shellcheck disable=SC2086
	has $2 || return 0
	rows=$((rows + 1))
	outgoing tool 3
	truncate -s $size src/tool/ram
	tell src/tool start
	VM=src/tool RAM=src/tool/ram runs "$1" "$2"
	if [ "$1" = same ]; then
		tell src/tool complete
		reaches dst/tool completed
		cmp image dst/tool/ram || amiss "$2: another image has arrived"
	else
		# A refusal does no harm.
		overwrite image src/tool/ram bs=1M
		tell src/tool complete
		cmp image dst/tool/ram || amiss "$2: then another image arrives"
	fi
	forget src/tool dst/tool
}
to_device() { # WANT COMMAND
	# shellcheck disable=SC2086
	has $2 || return 0
	rows=$((rows + 1))
	outgoing tool 3
	tell src/tool start
	DIR=src/tool/device-state DEV=src/tool/device-state/image runs "$1" "$2"
	tell src/tool complete
	reaches dst/tool completed
	if [ "$1" = same ]; then
		cmp image dst/tool/device-state/image || amiss "$2: another device has arrived"
		[ "$(ls dst/tool/device-state)" = image ] || amiss "$2: at the destination is $(ls dst/tool/device-state)"
	fi
	forget src/tool dst/tool
}
from() { # WANT COMMAND: leaves `out/copy`, or says that it is the same
	# shellcheck disable=SC2086
	has $2 || return 0
	rows=$((rows + 1))
	rm -rf out/*
	RAM=dst/tool/ram VM=dst/tool DEV=dst/tool/device-state/image runs "$1" "$2"
	[ "$1" != same ] || [ ! -e out/copy ] || cmp image out/copy || amiss "$2: another copy"
}
export size root limit

say "to ram"
to_ram same 'dd if=image of=$RAM conv=notrunc'
to_ram same 'dd if=image of=$RAM bs=1M conv=notrunc,fsync'
to_ram same 'dd if=image of=$RAM bs=1M'
to_ram same 'dd if=image of=$RAM bs=64K conv=sparse,notrunc'
to_ram same 'dd if=image of=$RAM bs=512K oflag=direct conv=notrunc'
to_ram same 'dd if=image of=$RAM bs=1000003 oflag=sync conv=notrunc'
to_ram same 'dd if=image of=$RAM bs=1M oflag=nonblock conv=notrunc iflag=fullblock'
to_ram same 'cat image >$RAM'
to_ram same 'cat image 1<>$RAM'
to_ram same 'cp image $RAM'
to_ram same 'cp --sparse=always image $RAM'
to_ram same 'cp --sparse=never image $RAM'
to_ram same 'cp --reflink=auto image $RAM'
to_ram 'failed to clone .*: Invalid cross-device link' 'cp --reflink=always image $RAM'
to_ram 'cannot remove .*: Operation not permitted' 'cp --remove-destination image $RAM'
to_ram 'cannot create regular file .*: Operation not permitted' 'cp -a image $VM/other'
to_ram same 'tar xOf image.tar >$RAM'
to_ram 'image: Cannot open: Operation not permitted' 'tar xf image.tar -C $VM'
to_ram same 'rsync --inplace image $RAM'
to_ram same 'rsync --inplace -S image $RAM'
to_ram same 'rsync --inplace --no-whole-file --checksum image $RAM'
to_ram 'mkstemp.*Operation not permitted' 'rsync image $RAM'
to_ram 'cannot remove .*: Operation not permitted' 'install image $RAM'
to_ram 'unable to remove target: Operation not permitted' 'mv -f image.tar $RAM'
to_ram same 'tee $RAM <image >/dev/null'
to_ram same 'qemu-img dd -f raw -O raw bs=1M if=image of=$RAM'
to_ram same 'qemu-img convert -n -f raw -O raw image $RAM'
to_ram same 'qemu-img convert -n -t none -f raw -O raw image $RAM'
to_ram same 'nbdcopy image $RAM'
to_ram same 'nbdcopy --synchronous image $RAM'
to_ram same 'ddrescue --force image $RAM'
to_ram same 'pv -q image >$RAM'
to_ram same 'socat -u OPEN:image OPEN:$RAM,wronly'
to_ram same 'truncate -s $((size + 4096)) image && truncate -s $size image && dd if=image of=$RAM bs=2M conv=notrunc'
to_ram 'File too large' 'dd if=image of=$RAM bs=1M seek=9 count=1 conv=notrunc'
to_ram 'Operation not supported' 'cat <$RAM'
to_ram 'Operation not supported' 'cmp image $RAM'
to_ram 'Operation not permitted' 'rm $RAM'
to_ram 'Operation not permitted' 'mv $RAM $VM/old'
to_ram 'Operation not permitted' 'ln $RAM $VM/other'
to_ram 'Function not implemented' 'ln -s image $VM/other'
# virsh save: a descriptor, O_DIRECT for what is aligned, the tail without, ftruncate, fsync.
to_ram same 'python3 -c "
import fcntl, mmap, os
fd = os.open(os.environ[\"RAM\"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_DIRECT)
buf = mmap.mmap(-1, 1 << 20)
with open(\"image\", \"rb\") as f:
    while (n := f.readinto(buf)) == len(buf):
        assert os.write(fd, buf) == n
    tail = bytes(buf[:n])
fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT)
assert os.write(fd, tail) == len(tail)
os.ftruncate(fd, int(os.environ[\"size\"]))
os.fsync(fd)
os.close(fd)"'
to_ram same 'python3 -c "
import os
src, dst = os.open(\"image\", 0), os.open(os.environ[\"RAM\"], os.O_WRONLY)
n = int(os.environ[\"size\"])
while n: n -= os.sendfile(dst, src, None, n)"'
to_ram 'No such device' 'python3 -c "
import mmap, os
mmap.mmap(os.open(os.environ[\"RAM\"], os.O_RDWR), 4096)"'
# fio, which has its own pattern, and cannot read back.
for engine in psync sync pvsync2 libaio posixaio io_uring splice; do
	to_ram same "fio --name=f --filename=\$RAM --ioengine=$engine --rw=write --bs=256k --size=1m --direct=1 --file_append=0 --create_on_open=0 && dd if=image of=\$RAM bs=1M conv=notrunc"
done
to_ram 'No such device' 'fio --name=f --filename=$RAM --ioengine=mmap --rw=write --bs=256k --size=1m'
to_ram 'Operation not supported' 'fio --name=f --filename=$RAM --ioengine=psync --rw=write --bs=256k --size=1m --verify=crc32c'

say "to device-state"
to_device same 'cp image $DEV'
to_device same 'cp --sparse=always image $DEV'
to_device same 'cp -p image $DEV'
to_device same 'cp -t $DIR image'
to_device same 'tar xf image.tar -C $DIR'
to_device same 'tar xf image.tar --no-same-owner -C $DIR'
to_device same 'tar xOf image.tar >$DEV'
to_device same 'rsync image $DIR/'
to_device same 'rsync --inplace image $DIR/'
to_device same 'rsync -aS image $DIR/'
to_device same 'install image $DEV'
to_device same 'install -m 600 -D image $DEV'
to_device same 'cp image away/ && mv away/image $DIR/'
to_device same 'dd if=image of=$DEV bs=64K'
to_device same 'dd if=image of=$DEV bs=1M oflag=direct'
to_device same 'split -b 20M image $DEV && mv ${DEV}aa $DEV'
to_device same 'qemu-img convert -f raw -O raw image $DEV'
to_device same 'nbdcopy image $DEV'
to_device same 'ddrescue --force image $DEV'
to_device same 'socat -u OPEN:image CREATE:$DEV'
to_device same 'pv -q image >$DEV'
to_device 'cannot create directory .*: Operation not permitted' 'mkdir $DIR/more'
to_device 'File exists' ': >$DEV; python3 -c "import os; os.open(os.environ[\"DEV\"], os.O_CREAT | os.O_EXCL)"'
to_device 'Function not implemented' 'mkfifo $DEV'

say "what has arrived"
outgoing tool 3
truncate -s $size src/tool/ram
tell src/tool start
overwrite image src/tool/ram bs=1M
cp image src/tool/device-state/image
tell src/tool complete
reaches dst/tool completed
for name in RAM DEV; do
	from same "cmp image \$$name"
	from same "[ \"\$(sha256sum <image)\" = \"\$(sha256sum <\$$name)\" ]"
	from same "md5sum \$$name && cat \$$name >out/copy"
	from same "cp \$$name out/copy"
	from same "cp --sparse=always \$$name out/copy"
	from same "dd if=\$$name of=out/copy bs=64K"
	from same "dd if=\$$name of=out/copy bs=1M iflag=direct"
	from same "rsync \$$name out/copy"
	from same "rsync -S --inplace \$$name out/copy"
	from same "tar cSf - \$$name | tar xOf - >out/copy"
	from same "install \$$name out/copy"
	from same "qemu-img convert -f raw -O raw \$$name out/copy"
	from same "qemu-img info -f raw \$$name"
	from same "nbdcopy \$$name out/copy"
	from same "ddrescue \$$name out/copy"
	from same "socat -u OPEN:\$$name,rdonly CREATE:out/copy"
	from same "pv -q \$$name >out/copy"
	from same "python3 -c 'import mmap, sys; f = open(sys.argv[1], \"rb\"); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE); assert m[:] == open(\"image\", \"rb\").read()' \$$name"
	from 'cannot remove .*: Operation not permitted' "rm \$$name"
done
from 'Read-only file system' 'cp image $DEV'
forget src/tool dst/tool
[ ${#skipped[@]} = 0 ] || say "not there: $(printf '%s\n' "${skipped[@]}" | sort -u | xargs)"
say "$rows rows"
[ $wrong = 0 ] || fail "$wrong of them are wrong"
