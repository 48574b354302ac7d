#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# An RDMA device that is removed while a migration uses it: both ends say so, and nothing keeps it.
. "$(dirname "$0")/functions.sh"
requires_root
rdma_device
case $card in
dummy*) ;;
*) skip "the device of $card is not ours to remove" ;;
esac
pair
random image 3000000
outgoing vm 2
truncate -s 3000000 src/vm/ram
tell src/vm start
overwrite image src/vm/ram bs=1M count=1
# It returns when nobody has the device open any more.
rdma link delete "$device" >removed.log 2>&1 &
remover=$!
reaches src/vm failed
says_why src/vm
reaches dst/vm failed
grep -q 'the RDMA device was removed' dst.log || fail "the destination does not say that it takes no more channels"
unmount src
unmount dst
eventually "the device is gone" gone $remover
wait $remover
