# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# rdma.sh: RDMA in a guest, by soft-RoCE.
#
#     . tests/vm/guest/rdma.sh

# rdma_up [CARD]: rxe0 on a network card that is up and has an address, such as eth0 of two guests; without one, on dummy0
# with the address 192.0.2.9, for two processes of one guest. An MTU of 4200 gives RoCE its largest one, 4096. (Without
# crc32_generic 6.12 says that there is no such file.)
rdma_up() {
	local card=${1:-dummy0}
	modprobe -a ib_uverbs rdma_ucm crc32_generic rdma_rxe || return
	if [ "$card" = dummy0 ]; then
		modprobe dummy && ip link add dummy0 mtu 4200 up type dummy && ip address add 192.0.2.9/24 dev dummy0 || return
	fi
	rdma link add rxe0 type rxe netdev "$card"
}

# rdma_renew [CARD]: a card whose link was down has it up again, and another rxe0. What the old one was to send for the
# connection manager meanwhile has left its queue pair for that in an error: it takes and makes no connections any more.
rdma_renew() {
	local card=${1:-dummy0}
	ip link set "$card" up
	rdma link delete rxe0 2>/dev/null || true # it may be gone
	rdma link add rxe0 type rxe netdev "$card"
}

# rdma_listens: until somebody listens for connections
rdma_listens() { until rdma resource show cm_id | grep -q LISTEN; do pause; done; }

# rdma_counter NAME: one of the counters of the device, such as sent_pkts, rcvd_pkts
rdma_counter() { echo "$(</sys/class/infiniband/rxe0/ports/1/hw_counters/"$1")"; }
