#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# CRIU, unmodified: a process is dumped into one mount, its pages by splice(2), and restored from the other. In a guest, since the CRIU of
# Debian 12 knows no vDSO of a kernel like the machine's; in Linux 6.12 alone, unless MIGFS_ROUNDS is set.
. "$(dirname "$0")/functions.sh"
[ "$series" = 6.12 ] || [ -n "${MIGFS_ROUNDS:-}" ] || skip "not once more in Linux $series, unless MIGFS_ROUNDS is set"
requires criu cc
helper ticking
mkdir files
guest -o files -- "$vm/guest/criu"
[ $status != 77 ] || skip "$(cat files/* 2>/dev/null | sed -n 's/^skip: //p' | head -n 1)"
[ $status = 0 ] || fail "the guest's command ended with status $status"
