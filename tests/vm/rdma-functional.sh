#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Functional tests whose destinations are at an rdma: address, in one guest: random programs, and a selection of what does
# not take long there; in Linux 6.12 alone. With MIGFS_ROUNDS, which is not empty, in any, and more of them, for half an
# hour and more.
. "$(dirname "$0")/functions.sh"
[ "$series" = 6.12 ] || [ -n "${MIGFS_ROUNDS:-}" ] || skip "not once more in Linux $series, unless MIGFS_ROUNDS is set"
requires rdma

build_helpers
tests=(engine-random last-write)
if [ "$series" = 6.1 ]; then steps=30; else steps=100; fi
if [ -n "${MIGFS_ROUNDS:-}" ]; then
	limit=7000 steps=300
	tests+=(ordering barriers verify reference reference-order reference-bitmaps states engine-devices
		engine-compression engine-rounds late-errors kill-source cut corrupt start-again nothing-kept cycles snapshots follow
		closing short-and-slow)
fi
cat >guest <<'END'
vm=$1
export MIGFS_STEPS=$2 # of each random program
shift 2
. "$vm/guest/functions.sh"
. "$vm/guest/rdma.sh"
rdma_up
MIGFS_TEST_LISTEN=rdma:192.0.2.9:0 "$vm/guest/functional" "$@"
END
mkdir results
guest_passes -m "$([ -n "${MIGFS_ROUNDS:-}" ] && echo 2000 || echo 1000)" -o results -- bash "$dir/guest" "$vm" $steps "${tests[@]}"
each_result results "${tests[@]}"
