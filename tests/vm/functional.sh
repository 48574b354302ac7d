#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Functional tests under another kernel: a selection that does not take long there, in one guest.
. "$(dirname "$0")/functions.sh"

tests=(copy-dd barriers follow mount poll wait)

# The guest has no time to build them.
for source in "$here"/*.c; do helper "$(basename "$source" .c)"; done

mkdir results
guest_passes -o results -- "$vm/guest/functional" "${tests[@]}"
for name in "${tests[@]}"; do [ -s "results/$name.result" ] || fail "$name has no result"; done
each_result results
