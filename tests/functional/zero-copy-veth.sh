#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Sending without a copy between two network namespaces: over veth the kernel copies, which `auto` notices and `require`
# does not accept.
. "$(dirname "$0")/functions.sh"
without_tls "all is copied"
hosts_apart

in_namespace $a src
in_namespace $b dst -o listen=tcp:192.0.2.2:4242,insecure
uri=tcp:192.0.2.2:4242
random image "$(scaled 64M 12M)"
is_up() { ip -n $a link show veth0 | grep -q LOWER_UP && ip -n $b link show veth0 | grep -q LOWER_UP; }
eventually "the link is up" is_up

outgoing auto 2
tell src/auto start
overwrite image src/auto/ram bs=1M
tell src/auto sync
for channel in 0 1; do
	sends=$(status src/auto channel-$channel-kernel-copied-sends)
	[ "$sends" -ge 1 ] && [ "$sends" -le 6 ] || fail "channel $channel has tried $sends times"
	[ "$(status src/auto channel-$channel-zero-copy-bytes)" = 0 ] || fail "veth copies"
	[ "$(status src/auto channel-$channel-dirty-sync-missed-zero-copy)" = 1 ] || fail "channel $channel has missed nothing"
done
tell src/auto complete
same image dst/auto/ram
forget src/auto dst/auto

outgoing require 2
expect ok write src/require/zero-copy require
tell src/require start
overwrite image src/require/ram bs=1M count=1
refused EOPNOTSUPP src/require/error 'zero-copy is required' write src/require/control sync
reaches src/require failed
reaches dst/require failed
says_why dst/require
forget src/require dst/require
