#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Some of the other tests once more, over TLS: random programs, rounds, barriers, all of RAM by reference.
# MIGFS_TEST_TLS=1 does it for any of them, and `tests/run -t` for all.
. "$(dirname "$0")/functions.sh"
requires openssl
"$MIGFS" -V | grep -q 'with TLS' || skip "this migfs is built without TLS"

for test in $(scaled "engine-random engine-rounds barriers reference" barriers); do
	say "$test"
	env -u MIGFS_TEST_DIR -u MIGFS_TEST_LISTEN TMPDIR="$dir" MIGFS_TEST_TLS=1 "$here/$test.sh" >"$test.log" 2>&1 ||
		fail "$test: status $?: $(grep -m 3 -A 3 FAIL "$test.log")"
done
