#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Firecracker and Cloud Hypervisor write their snapshots into a mount, and load them at the destination: replays of what
# they do to files, by replay.c.
. "$(dirname "$0")/functions.sh"
helper replay
mkdir received
pair -o "backing=$dir/received"

# replay ARGUMENT...; replays PATTERN ARGUMENT...: it succeeds, and says that
replays() {
	local pattern=$1
	shift
	limited "$helper" "$@" >said 2>&1 || fail "replay $*: $(cat said)"
	grep -qE "$pattern" said || fail "replay $*: $(cat said)"
	sed 's/^/    /' said
}
# done_with MIGRATION: complete, and wait at the destination
done_with() {
	tell "src/$1" complete
	[ "$(limited cat "dst/$1/wait")" = completed ] || fail "$(cat "dst/$1/wait")"
}

mib=$(scaled 2304 48)
for channels in 1 4; do
	say "Firecracker, $mib MiB, $channels channels"
	outgoing fc $channels
	tell src/fc start
	replays '^full: the first write took ' firecracker src/fc/ram src/fc/device-state/state expected "$mib" 4
	[ "$mib" -lt 2048 ] || grep -q 'took 2147479552 of' said || fail "it took another part"
	done_with fc
	[ "$(stat -c %s dst/fc/device-state/state)" = 10000 ]
	replays '^restored$' firecracker-restore "$(status dst/fc ram-path)" expected
	# Through the mount, too, which is slower: where it is small.
	mib=48
	forget src/fc dst/fc
done
outgoing fc
tell src/fc start
replays '^full' firecracker src/fc/ram src/fc/device-state/state expected $mib 1
done_with fc
replays '^restored$' firecracker-restore dst/fc/ram expected
forget src/fc dst/fc

say "a diff of another guest begins anew: the file has another size"
outgoing fc
tell src/fc start
replays '^full' firecracker src/fc/ram src/fc/device-state/state expected 40 1
replays '^full' firecracker src/fc/ram src/fc/device-state/state expected 32 1
done_with fc
replays '^restored$' firecracker-restore dst/fc/ram expected
forget src/fc dst/fc

say "Cloud Hypervisor"
outgoing ch 3
tell src/ch start
replays '^snapshot$' cloud-hypervisor src/ch/device-state expected $mib
# It wants each of its files to be new: who takes a second snapshot into the same migration removes those of the first.
not "$helper" cloud-hypervisor src/ch/device-state expected $mib >said
grep -qx 'config.json: EEXIST' said || fail "$(cat said)"
rm src/ch/device-state/{config.json,state.json,memory-ranges}
replays '^snapshot$' cloud-hypervisor src/ch/device-state expected 33
done_with ch
replays '^restored: [0-9]+ extents' cloud-hypervisor-restore dst/ch/device-state expected
[ "$(awk '{ print $4 < $7 / 4 }' said)" = 1 ] || fail "the holes are none"
[ "$(cat dst/ch/device-state/config.json)" = '{"cpus": 1}' ]
forget src/ch dst/ch
