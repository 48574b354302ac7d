#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A completed image can be opened O_RDWR through the mount, written, and mapped MAP_SHARED and MAP_PRIVATE; and so can the
# file that `ram-path` in `status` names, before and after.
. "$(dirname "$0")/functions.sh"
requires_root # /proc/PID/fd of the daemon
helper mapping

pair
size=5000000
random image $size
# Some of it was never written.
fallocate -p -o 1000000 -l 1000000 image
outgoing vm 3
truncate -s $size src/vm/ram
tell src/vm start
expect EBUSY open dst/vm/ram rdwr
overwrite image src/vm/ram bs=1M
tell src/vm sync
path=$(status dst/vm ram-path)
cmp image "$path"
tell src/vm complete
say "through the mount"
limited "$helper" dst/vm/ram image
same image dst/vm/ram
say "through $path"
cmp image "$path"
limited "$helper" "$path" image
same image "$path"
expect ok pwrite dst/vm/ram 4999999 1
expect x read dst/vm/ram 4999999 10
expect EFBIG pwrite dst/vm/ram 5000000 1
