#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Random operations with `resume`, where each connection is cut after some bytes, and so are those that take its place:
# what arrives, and what both sides count, is what a model has. With and without zstd and checksums, and over TLS.
# See random-program.c; MIGFS_SEED and MIGFS_STEPS as in engine-random.sh.
. "$(dirname "$0")/functions.sh"
helper random-program
limit=$((120 + ${MIGFS_STEPS:-0} / 20))

pair
seed=${MIGFS_SEED:-$((RANDOM * 32768 + RANDOM))}
steps=${MIGFS_STEPS:-$(scaled 400 100)}
size=$(scaled 12000000 6000000)
# A record of TLS has to arrive as a whole.
least=$([ -n "${MIGFS_TEST_TLS:-}" ] && echo 60000 || echo 3000)
declared=0
for settings in compression=none compression=zstd checksum=on; do
	for cut in $least 150000 900000; do
		say "seed $seed: cut $cut $settings"
		limited "$helper" src dst "faulty:cut=$cut:$uri" "run$seed" "$seed" "$steps" resume=30 "size=$size" threads=4 \
			"channels=$((1 + seed % 5))" "$settings" declared=$declared watch=1 >said 2>&1 ||
			fail "seed $seed: cut $cut $settings: $(cat said)"
		seed=$((seed + 1)) declared=$((1 - declared))
	done
done
[ -n "${MIGFS_TEST_TLS:-}" ] || ! command -v openssl >/dev/null || ! "$MIGFS" -V | grep -q 'with TLS' || [ -n "$MIGFS_SLOW" ] ||
	env -u MIGFS_TEST_DIR TMPDIR="$dir" MIGFS_TEST_TLS=1 "$here/resume-random.sh" >over-tls.out 2>&1 ||
	fail "over TLS: $(grep -E -m 3 -A 3 'FAIL|skip' over-tls.out)"
