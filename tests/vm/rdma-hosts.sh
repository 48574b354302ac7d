#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Migrations over RDMA from one machine to another: the source in one guest, the destination in another.
. "$(dirname "$0")/functions.sh"
requires rdma

helper attempt
helper await
guest_passes -2 -m 512 -- "$vm/guest/rdma-host destination" "$vm/guest/rdma-host source"
