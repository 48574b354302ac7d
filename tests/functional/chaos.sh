#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Whatever can go wrong, in bulk: cuts at random bytes of any connection, damage, kills, full file systems, descriptors that
# run out, and so on, with and without TLS and `resume`: chaos.py says what must hold. MIGFS_FAULTS=10000 is the full run, MIGFS_SEED
# chooses, MIGFS_FAULT=N has one of them again.
[ -z "${MIGFS_FAULTS:-}" ] || export MIGFS_TEST_LIMIT=${MIGFS_TEST_LIMIT:-$((MIGFS_FAULTS / 2 + 400))}
. "$(dirname "$0")/functions.sh"
requires_root
requires python3

faults=${MIGFS_FAULTS:-$(scaled 240 60)}
seed=${MIGFS_SEED:-$RANDOM$RANDOM}
tls=()
if "$MIGFS" -V | grep -q 'with TLS' && command -v openssl >/dev/null; then
	"$root/examples/make-certificates" ca >make.log
	"$root/examples/make-certificates" ca dst localhost 127.0.0.1 >>make.log
	"$root/examples/make-certificates" ca src localhost >>make.log
	tls=("$dir")
fi
say "seed $seed, $faults faults"
python3 "$here/chaos.py" "$faults" "$seed" 3 "${tls[@]}"
