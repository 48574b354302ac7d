#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Functional tests under another kernel: a selection that does not take long there, in one guest; the longest ones under
# the older one alone.
. "$(dirname "$0")/functions.sh"

tests=(tls-kernel mount poll wait)
[ "$series" != 6.1 ] || tests+=(copy-dd barriers follow)

build_helpers
mkdir results
guest_passes -o results -- "$vm/guest/functional" "${tests[@]}"
each_result results "${tests[@]}"
