#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# An RDMA device that is removed while a migration uses it: both ends say so, what is to go by RDMA then does not start, or
# goes by TCP, and nothing keeps the device.
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
say "the next migration"
outgoing next 2
attempt write src/next/control start
[ "$got" != ok ] || fail "it starts without a device"
says_why src/next
say "$(cat src/next/error)"
expect ok write src/next/fallback on
truncate -s 3000000 src/next/ram
tell src/next start
[ -n "$(status src/next fallback)" ] || fail "it does not say that it goes by TCP"
overwrite image src/next/ram bs=1M
tell src/next complete
same image dst/next/ram
expect_status dst/next rdma-bytes = 0
unmount src
unmount dst
eventually "the device is gone" gone $remover
wait $remover
