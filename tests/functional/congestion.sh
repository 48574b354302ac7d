#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Which congestion control connections use: reno within a machine, and between two the machine's own.
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

# uses NAME URI: all connections to there, which are the main one and two for data
uses() {
	outgoing "$1" 2 "$2"
	tell "src/$1" start
	within $a ss -tinH "dst ${2#tcp:}" >connections
	[ "$(grep -cw "$1" connections)" = 3 ] || fail "to $2, not three connections with $1: $(cat connections)"
}
uses reno tcp:127.0.0.1:4242
uses "$default" tcp:192.0.2.2:4242
