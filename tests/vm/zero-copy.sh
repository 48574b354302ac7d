#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Sending without a copy where the kernel really does not copy, between two e1000 cards of a guest; and where it copies
# some of it, between two of virtio. (Over loopback and veth, which are all that the host has, it copies everything.)
. "$(dirname "$0")/functions.sh"

helper attempt
helper await
say "e1000: nothing is copied"
guest_passes -n e1000,e1000 -- "$vm/guest/zero-copy" never
say "virtio: some of it is"
guest_passes -n virtio-net-pci,virtio-net-pci -- "$vm/guest/zero-copy" mixed
