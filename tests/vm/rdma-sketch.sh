#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What migfs over RDMA builds on: soft-RoCE comes up in a guest, two processes of it reach each other, and so do two guests.
. "$(dirname "$0")/functions.sh"
requires rdma rping ib_write_bw ibv_devinfo

cat >alone <<'END'
set -Ee
trap 'echo "line $LINENO"' ERR
. "$1/guest/functions.sh"
. "$1/guest/rdma.sh"
# A busy machine has no steady clock, and then it transfers all and does not say how fast it was.
measured_badly() { grep -qs "Can't produce a report" "$VM_FILES"/{client,server}.log; }
rdma_up
ibv_devinfo | grep active_mtu
rping -s -a 192.0.2.9 -C 20 -S 4000 &
rdma_listens
rping -c -a 192.0.2.9 -C 20 -S 4000 -V
wait $!
echo "pinged"
# It is not ours, and once in a while its ends wait for each other: then once more.
transfer() {
	local server status=0
	timeout -k 5 90 ib_write_bw -R -d rxe0 -s 65536 -n 50 >"$VM_FILES/server.log" 2>&1 &
	server=$!
	rdma_listens
	timeout -k 5 60 ib_write_bw -R -d rxe0 -s 65536 -n 50 192.0.2.9 >"$VM_FILES/client.log" 2>&1 || status=$?
	[ $status -lt 124 ] || { kill $server; wait $server || true; return 1; }
	[ $status = 0 ] || measured_badly || return 1
	wait $server || measured_badly
}
transfer || transfer || transfer
echo "written"
echo "packets $(rdma_counter sent_pkts)"
END
cat >first <<'END'
set -Ee
trap 'echo "line $LINENO"' ERR
. "$1/guest/functions.sh"
. "$1/guest/rdma.sh"
rdma_up eth0
rping -s -a 192.0.2.1 -C 20 -S 4000 &
rdma_listens
announce listening
wait $!
echo "pinged, packets $(rdma_counter rcvd_pkts)"
END
cat >second <<'END'
set -Ee
trap 'echo "line $LINENO"' ERR
. "$1/guest/functions.sh"
. "$1/guest/rdma.sh"
rdma_up eth0
await listening
rping -c -a 192.0.2.1 -C 20 -S 4000 -V
END

say "one guest"
mkdir kept
guest -m 384 -o kept -- bash "$dir/alone" "$vm" >alone.log
[ $status = 0 ] || { cp kept/client.log kept/server.log . || true; fail "the status is $status"; }
grep -q 'active_mtu:.*4096' alone.log
grep -qx pinged alone.log
grep -qx written alone.log
# 50 times 16 packets of 4096 bytes, and answers.
[ "$(sed -n 's/^packets //p' alone.log)" -ge 800 ]
say "$(awk '$1 == 65536 { print $4 " MB/s (ib_write_bw -R, 64 KiB)" }' kept/client.log)"

say "two guests"
guest -2 -m 384 -- "bash $dir/first $vm" "bash $dir/second $vm" >two.log
[ $status = 0 ] || fail "the status is $status"
packets=$(sed -n 's/^1: pinged, packets //p' two.log)
[ "${packets:-0}" -ge 40 ] || fail "the first guest has received ${packets:-no} packets"
