#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# An image of 1 GiB over 4 channels: the peak of resident memory stays under 128 MiB in the source's daemon, and in the
# destination's too, beyond the image. (The image's memfd is not mapped there, so that it does not count.)
. "$(dirname "$0")/functions.sh"
[ -z "$MIGFS_SLOW" ] || skip "sanitizers take memory of their own"

pair
random image 1G
outgoing vm 4
truncate -s 1G src/vm/ram
tell src/vm start
pids=()
for part in 0 1 2 3; do
	overwrite image src/vm/ram bs=1M skip=$((part * 256)) seek=$((part * 256)) count=256 &
	pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid"; done
tell src/vm sync
same image dst/vm/ram
tell src/vm complete
same image dst/vm/ram
for name in src dst; do
	peak=$(memory_of $name VmHWM)
	say "$name: $((peak >> 20)) MiB"
	[ "$peak" -lt $((128 << 20)) ] || fail "the daemon of $name has had $((peak >> 20)) MiB"
done
