#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What connections use within a machine, congestion control and a send buffer that does not grow, and that those between
# two have the machine's own.
. "$(dirname "$0")/functions.sh"
hosts_apart
requires ss

# within NAMESPACE COMMAND...: its network, and its /proc/sys/net
within() { nsenter --net="/run/netns/$1" "${@:2}"; }
proc=/proc/sys/net/ipv4
default=$(within $a cat $proc/tcp_available_congestion_control | tr ' ' '\n' | grep -vx -m 1 reno) || skip "there is only reno"
within $a sh -c "echo $default >$proc/tcp_congestion_control" || skip "the default cannot be changed"

in_namespace $a src
in_namespace $a near -o listen=tcp:127.0.0.1:4242
in_namespace $b far -o listen=tcp:192.0.2.2:4242,insecure
is_up() { ip -n $a link show veth0 | grep -q LOWER_UP && ip -n $b link show veth0 | grep -q LOWER_UP; }
eventually "the link is up" is_up

# uses NAME URI: all connections to there, which are the main one and two for data; sets $fixed to how many of them have
# a send buffer of 256 KiB
uses() {
	outgoing "$1" 2 "$2"
	tell "src/$1" start
	within $a ss -timnH "dst ${2#tcp:}" >connections
	[ "$(grep -cw "$1" connections)" = 3 ] || fail "to $2, not three connections with $1: $(cat connections)"
	fixed=$(grep -c 'skmem:.*,tb262144,' connections) || true
}
uses reno tcp:127.0.0.1:4242
[ "$fixed" = 3 ] || fail "not three have a send buffer of 256 KiB: $(cat connections)"
uses "$default" tcp:192.0.2.2:4242
[ "$fixed" = 0 ] || fail "the network is held up by a send buffer of 256 KiB: $(cat connections)"
