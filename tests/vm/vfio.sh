#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The state of a VFIO device goes through a migration, with examples/vfio-copy. The device is a serial port of mtty, the
# kernel's sample driver, which is compiled for this: no driver of a Debian kernel migrates anything without hardware.
. "$(dirname "$0")/functions.sh"
requires cc
[ "$series" != 6.1 ] || skip "mtty of Linux 6.1 has no migration"
[ -x "$(dirname "$MIGFS")/examples/vfio-copy" ] || skip "the headers of this kernel know no migration of VFIO devices"
mtty=$("$vm/mtty" 2>mtty.log) || skip "$(sed -n 's/^skip: //p' mtty.log | grep . || tail -n 1 mtty.log)"

# The guest has no time to build them.
helper attempt
helper await
cc -std=gnu11 -D_GNU_SOURCE -O2 -o serial "$vm/guest/serial.c"
guest_passes -- "$vm/guest/vfio" "$mtty" "$dir"
