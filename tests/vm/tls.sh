#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# TLS in the kernel, which the host's may not have: in one guest.
. "$(dirname "$0")/functions.sh"
requires openssl
"$MIGFS" -V | grep -q 'with TLS' || skip "this migfs is built without TLS"

helper attempt
helper await
export MIGFS_TEST_TLS=1
mkdir .tls
"$root/examples/make-certificates" .tls/ca >.tls/log
"$root/examples/make-certificates" .tls/ca .tls/host localhost 127.0.0.1 >>.tls/log
guest_passes -- env MIGFS_TEST_TLS=1 "$vm/guest/kernel-tls"
