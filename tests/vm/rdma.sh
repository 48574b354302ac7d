#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Migrations over soft-RoCE: what is particular to it, and functional tests that destinations take over RDMA.
. "$(dirname "$0")/functions.sh"
requires rdma

# The guest has no time to build them.
for source in "$here"/*.c; do helper "$(basename "$source" .c)"; done

cat >guest <<'END'
set -e
. "$1/guest/functions.sh"
. "$1/guest/rdma.sh"
rdma_up
"$1/guest/functional" rdma
# The link is down.
ip link set dummy0 up
rdma link delete rxe0
rdma link add rxe0 type rxe netdev dummy0
export MIGFS_TEST_LISTEN=rdma:192.0.2.9:0
"$1/guest/functional" transports last-write
unset MIGFS_TEST_LISTEN
"$1/guest/functional" rdma-removed
END
mkdir results
guest_passes -m 1200 -o results -- bash "$dir/guest" "$vm"
for name in rdma transports last-write rdma-removed; do [ -s "results/$name.result" ] || fail "$name has no result"; done
each_result results
