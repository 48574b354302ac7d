#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The peer vanishes without a word: the link between two network namespaces goes down while nothing happens, in the
# middle of a write, of a sync, of a complete, of a start. Both sides notice within their timeout of 2 s.
. "$(dirname "$0")/functions.sh"
hosts_apart

# Nor is the peer taken for unreachable because it did not answer while the link was down.
link_up() {
	ip -n $b link set veth0 up
	eventually "the link is up" is_up
	ip -n $a neighbour flush dev veth0
	ip -n $b neighbour flush dev veth0
}
is_up() { ip -n $a link show veth0 | grep -q LOWER_UP && ip -n $b link show veth0 | grep -q LOWER_UP; }

in_namespace $a src -o timeout=2
in_namespace $b dst -o listen=tcp:192.0.2.2:4242,insecure,timeout=2
uri=tcp:192.0.2.2:4242
random image 8M

begin() {
	name=$1
	say "$name"
	link_up
	outgoing "$name" 3
	truncate -s 8M "src/$name/ram"
}
start() {
	tell "src/$name" start
	reaches "dst/$name" active
}
vanish() {
	ip -n $b link set veth0 down
	vanished=$(date +%s%3N)
}

# both_fail: within the timeout, with a good allowance for a machine that does other things too
both_fail() {
	local took
	limit=20
	reaches "src/$name" failed
	reaches "dst/$name" failed
	took=$(($(date +%s%3N) - vanished))
	limit=60
	[ $took -lt 10000 ] || fail "noticed only after $took ms"
	says_why "src/$name"
	says_why "dst/$name"
	forget "src/$name" "dst/$name"
}
told='ETIMEDOUT|ECONNRESET|EHOSTUNREACH'

begin idle
start
vanish
both_fail

begin write
start
while overwrite image "src/$name/ram" bs=1M; do :; done 2>writer.err &
writer=$!
has_sent() { [ "$(status "src/$name" transferred)" -gt 10000000 ]; }
eventually "data moves" has_sent
vanish
eventually "the writer has ended" gone $writer
wait $writer || true
[ -s writer.err ] || fail "the writer was not told"
both_fail

for command in sync complete; do
	begin $command
	start
	overwrite image "src/$name/ram" bs=1M
	vanish
	command_in_background "src/$name" $command
	command_says "$told"
	both_fail
done

begin start
vanish
attempt write "src/$name/control" start
[[ $got =~ ^($told)$ ]] || fail "start says $got"
reaches "src/$name" failed
says_why "src/$name"
# Nothing was sent: it can be started again.
link_up
start
overwrite image "src/$name/ram" bs=1M
tell "src/$name" complete
same image "dst/$name/ram"
forget "src/$name" "dst/$name"
