#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The same as cut.sh, with connections that are cut at the destination's end.
. "$(dirname "$0")/functions.sh"

make_disturbed
migfs src
for cut in $(scaled "1 320 640 700 850 1000 1150 1200 1250 1300 1350 1400 20000 150000 400000" "640 1000 1300 400000"); do
	migfs dst -o "listen=faulty:cut=$cut:unix:$dir/socket,timeout=5"
	disturbed "cut$cut" "unix:$dir/socket"
	forget_all
	unmount dst
done
say "$(sort states | uniq -c | xargs echo)"
grep -q failed states
grep -q completed states
