#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# examples/quickstart: moves a guest that writes, shows the rounds and both ways beside each other, and leaves nothing behind.
. "$(dirname "$0")/functions.sh"
requires_root
requires qemu-system-x86_64 as ld

# quickstart VARIABLE...: leaves what it says in `said`, and nothing else
quickstart() {
	local status=0
	# shellcheck disable=SC2016
	limited env MIGFS="$MIGFS" "$@" bash -c 'echo $$ >pid; exec "$0"' "$root/examples/quickstart" >said 2>&1 || status=$?
	not compgen -G "/dev/shm/migfs-quickstart.$(cat pid).*"
	return $status
}

say "as it is"
quickstart GUEST_RATE=100 || fail "it says: $(cat said)"
sed 's/^/    /' said
grep -q 'round 1: 256 MiB changed of 256 MiB' said
grep -q 'the RAM is identical' said
for row in rounds 'from start to running there' 'downtime, from stop to running there' 'the last round and the check' sent; do
	grep -qE "^ +$row +[0-9].* +[0-9]" said || fail "the table has no figures of: $row"
done

say "mistakes"
for rate in 0 fast 4 401; do
	not quickstart GUEST_RATE=$rate
	grep -q 'GUEST_RATE is max, or 5 to 400 MB/s' said || fail "GUEST_RATE=$rate: $(cat said)"
done
not quickstart MIGFS=/nowhere/migfs
grep -q 'FAILED: there is no /nowhere/migfs' said || fail "$(cat said)"
