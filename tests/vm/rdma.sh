#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Migrations over soft-RoCE in one guest: what is particular to RDMA. See also rdma-functional.sh and rdma-hosts.sh.
. "$(dirname "$0")/functions.sh"
requires rdma ibv_devinfo

build_helpers
limit=900
tests=(rdma-settings rdma)
# Forty kills take their time: not under both kernels, unless there is some.
[ "$series" = 6.1 ] && [ -z "${MIGFS_ROUNDS:-}" ] || tests+=(rdma-kill)
# It takes the device away.
tests+=(rdma-removed)
cat >guest <<'END'
vm=$1
shift
. "$vm/guest/functions.sh"
. "$vm/guest/rdma.sh"
rdma_up
for test in "$@"; do
	"$vm/guest/functional" "$test"
	rdma_renew
done
END
mkdir results
guest_passes -m 1000 -o results -- bash "$dir/guest" "$vm" "${tests[@]}"
each_result results "${tests[@]}"
