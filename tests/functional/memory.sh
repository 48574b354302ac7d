#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# An image of 1 GiB over 4 channels: the peak of resident memory stays under 128 MiB in the source's daemon, and in the
# destination's too, beyond the image. (The image's memfd is not mapped there, so that it does not count.) The source's
# workers take huge pages for large writes, and none before.
. "$(dirname "$0")/functions.sh"
[ -z "$MIGFS_SLOW" ] || skip "sanitizers take memory of their own"

grep -q '\[madvise\]' /sys/kernel/mm/transparent_hugepage/enabled && by_request=1 || by_request=

pair
random image 1G
outgoing vm 4
truncate -s 1G src/vm/ram
tell src/vm start
for ((i = 0; i < 40; i++)); do cat src/vm/status >/dev/null; done
if [ -n "$by_request" ]; then
	huge=$(memory_of src AnonHugePages)
	[ "$huge" = 0 ] || fail "the daemon of src has $huge bytes of huge pages before there was a write"
fi
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
if [ -n "$by_request" ]; then
	huge=$(memory_of src AnonHugePages)
	say "huge pages: $((huge >> 20)) MiB"
	[ "$huge" -gt 0 ] || fail "large writes came in small pages"
fi
for name in src dst; do
	peak=$(memory_of $name VmHWM)
	say "$name: $((peak >> 20)) MiB"
	[ "$peak" -lt $((128 << 20)) ] || fail "the daemon of $name has had $((peak >> 20)) MiB"
done
