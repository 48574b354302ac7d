#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# -o backing=DIR on hugetlbfs, which knows no write(2); and -o hugepages=SIZE.
. "$(dirname "$0")/functions.sh"
without_tls "a listener has another port when it is made again"
requires_root
helper mapping

hugetlbfs store 16 >why || skip "$(cat why)"

pair -o backing=store
random image 12M
outgoing vm 3
truncate -s 12M src/vm/ram
tell src/vm start
overwrite image src/vm/ram bs=1M
expect ok fallocate src/vm/ram 3000000 5000000 punch
fallocate -p -o 3000000 -l 5000000 image
limited dd if=/dev/zero of=src/vm/ram bs=1M seek=9 count=1 conv=notrunc status=none
dd if=/dev/zero of=image bs=1M seek=9 count=1 conv=notrunc status=none
tell src/vm sync
same image dst/vm/ram
tell src/vm complete
same image dst/vm/ram
# dd and cmp read a file on hugetlbfs too.
same image store/vm
limited "$helper" dst/vm/ram image
same image store/vm
forget src/vm dst/vm
[ ! -e store/vm ]

say "not enough of them"
outgoing vm 2
truncate -s 1T src/vm/ram
attempt write src/vm/control start
[[ $got =~ ^(ENOSPC|EDQUOT)$ ]] || fail "start says $got"
[ -n "$(cat src/vm/error)" ]
unmount src
unmount dst
umount store

say "a memfd of huge pages"
for options in hugepages=2M hugepages=2M,preallocate; do
	pair -o $options
	outgoing vm 3
	truncate -s 12M src/vm/ram
	tell src/vm start
	grep -qE '^[0-9a-f-]+ .*memfd:migfs:vm' /proc/"${daemon[dst]}"/maps || fail "no memfd is mapped"
	grep -A30 'memfd:migfs:vm' /proc/"${daemon[dst]}"/smaps | grep -q '^KernelPageSize: *2048 kB' || fail "not of huge pages"
	overwrite image src/vm/ram bs=1M
	tell src/vm complete
	same image dst/vm/ram
	limited "$helper" dst/vm/ram image
	forget src/vm dst/vm
	unmount src
	unmount dst
done
