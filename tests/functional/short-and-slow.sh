#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Connections that move few bytes at a time, or slowly, work.
. "$(dirname "$0")/functions.sh"

slow() {
	disturbed "${1//[=+]/-}" "faulty:$1:$uri"
	[ "$state" = completed ] || fail "$1: $(cat "src/${1//[=+]/-}/error")"
}

pair -o timeout=10
make_disturbed
share 4 slow short=1 short=7 short=63 short=64 short=65 short=1000 short=4096+only=0 short=3+only=1 delay=2 \
	delay=20+only=0 delay=5+only=2 short=100+delay=1 cut=100000000 corrupt=100000000
forget_all
unmount dst

# The destination's end too.
for fault in short=1 short=100 delay=3; do
	migfs dst -o "listen=faulty:$fault:unix:$dir/socket"
	disturbed "listen-${fault//=/-}" "unix:$dir/socket"
	[ "$state" = completed ] || fail "listen=faulty:$fault: $(cat "src/listen-${fault//=/-}/error")"
	forget_all
	unmount dst
done
