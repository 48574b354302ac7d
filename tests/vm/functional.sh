#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Functional tests under another kernel: a selection that does not take long there, in one guest.
. "$(dirname "$0")/functions.sh"

tests=(tls-kernel copy-dd barriers follow mount poll wait)

build_helpers
mkdir results
guest_passes -o results -- "$vm/guest/functional" "${tests[@]}"
each_result results "${tests[@]}"
