#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A data channel that carries nothing any more, behind a tunnel that acknowledges all the same, or that waits for a byte
# that was lost, while the main channel lives: whatever waits for it ends with ETIMEDOUT and names the channel, on both
# sides. One that is slow, but moves, is waited for.
. "$(dirname "$0")/functions.sh"

helper tunnel && tunnel=$helper
uri=unix:$dir/socket
migfs dst -o "listen=$uri"
migfs src

# Two channels get a packet of 64 + 70000 bytes each, and channel 1 another one of 64 + 5, of a device.
random stripe 70000

# dig NAME N FAULT: a tunnel with the fault on connection N; it ends with the shell
dig() {
	local ready in out
	mkfifo "$1.in" "$1.out"
	"$tunnel" "$dir/$1.socket" "$dir/socket" "$2" "$3" <"$1.in" >"$1.out" &
	# shellcheck disable=SC2034
	exec {in}>"$1.in" {out}<"$1.out"
	read -r ready <&"$out"
	[ "$ready" = ready ] || fail "the tunnel does not begin: $ready"
}

# prepare NAME TIMEOUT: writes that are answered, whatever the tunnel does
prepare() {
	outgoing "$1" 2 "unix:$dir/$1.socket"
	expect ok write "src/$1/timeout" "$2"
	expect ok truncate "src/$1/ram" $((2 << 20))
	tell "src/$1" start
	overwrite stripe "src/$1/ram" bs=70000
	overwrite stripe "src/$1/ram" bs=70000 seek=$((1 << 20)) oflag=seek_bytes
	limited dd if=<(printf state) of="src/$1/device-state/d" status=none
}

# stalled "N FAULT COMMAND"
stalled() {
	local channel fault command name
	read -r channel fault command <<<"$1"
	name=vm-$channel-${fault/=/-}-${command// /-}
	say "channel $channel, $fault: $command"
	dig "$name" $((channel + 1)) "$fault"
	prepare "$name" 2
	case $command in
	fsync) attempt fsync "src/$name/ram" ;;
	*) attempt write "src/$name/control" "$command" ;;
	esac
	[ "$got" = ETIMEDOUT ] || fail "$1: $got"
	[[ $(limited cat "src/$name/error") =~ ^channel\ $channel\ has\ stalled ]] || fail "$1: error says $(cat "src/$name/error")"
	is_in "src/$name" failed || fail "$1: the source is $(status "src/$name" status)"
	reaches "dst/$name" failed
	[[ $(limited cat "dst/$name/error") =~ channel\ $channel\ has\ stalled ]] || fail "$1: the destination says $(cat "dst/$name/error")"
	forget "src/$name" "dst/$name"
}

# blocked "N FAULT": so does a write that can only wait, of more than the daemon takes at once
blocked() {
	local channel fault name
	read -r channel fault <<<"$1"
	name=blocked-$channel
	say "channel $channel, $fault: a write that waits"
	dig "$name" $((channel + 1)) "$fault"
	outgoing "$name" 2 "unix:$dir/$name.socket"
	expect ok write "src/$name/timeout" 2
	tell "src/$name" start
	not limited dd if=/dev/urandom of="src/$name/ram" bs=1M count=64 conv=notrunc status=none 2>"$name.err"
	grep -q 'Connection timed out' "$name.err" || fail "$1: dd says $(cat "$name.err")"
	[[ $(limited cat "src/$name/error") =~ ^channel\ $channel\ has\ stalled ]] || fail "$1: error says $(cat "src/$name/error")"
	reaches "dst/$name" failed
	forget "src/$name" "dst/$name"
}

# reference "N FAULT COMMAND": so does what waits for RAM by reference
reference() {
	local channel fault command name
	read -r channel fault command <<<"$1"
	name=reference-$channel
	say "channel $channel, $fault: RAM by reference, $command"
	dig "$name" $((channel + 1)) "$fault"
	random "$name.ram" $((16 << 20))
	outgoing "$name" 2 "unix:$dir/$name.socket"
	expect ok write "src/$name/timeout" 2
	expect ok write "src/$name/ram-source" "$dir/$name.ram"
	tell "src/$name" start
	head -c 512 /dev/zero | tr '\0' '\377' >"src/$name/dirty"
	expect ETIMEDOUT write "src/$name/control" "$command"
	[[ $(limited cat "src/$name/error") =~ ^channel\ $channel\ has\ stalled ]] || fail "$1: error says $(cat "src/$name/error")"
	reaches "dst/$name" failed
	forget "src/$name" "dst/$name"
}

# slow "N PACE COMMAND": more than the whole timeout for a packet, less than that from byte to byte
slow() {
	local channel fault command name
	read -r channel fault command <<<"$1"
	name=slow-$channel-$command
	say "channel $channel, $fault: $command"
	dig "$name" $((channel + 1)) "$fault"
	outgoing "$name" 2 "unix:$dir/$name.socket"
	expect ok write "src/$name/timeout" 2
	expect ok truncate "src/$name/ram" $((2 << 20))
	tell "src/$name" start
	expect ok pwrite "src/$name/ram" $((channel << 20)) 20
	tell "src/$name" "$command"
	is_in "src/$name" "$([ "$command" = complete ] && echo completed || echo active)"
	[ "$command" = complete ] || tell "src/$name" cancel
	reaches "dst/$name" completed cancelled
	forget "src/$name" "dst/$name"
}

case_of() { "${1%% *}" "${1#* }"; }

# At the beginning, in a header, between header and payload, in a payload, and at the last byte. A byte that is lost
# before the last one damages what follows, which is another failure.
cases=("slow 0 pace=1000 sync" "slow 1 pace=1000 complete")
for command in sync complete; do
	for at in 0 1 63 64 65 70063; do
		cases+=("stalled 0 stall=$at $command")
	done
	cases+=("stalled 1 stall=30000 $command" "stalled 0 lose=70063 $command" "stalled 1 lose=70132 $command")
done
cases+=("blocked 1 hold=1500000" "reference 0 stall=3000000 sync" "reference 1 stall=5000000 complete")
cases+=("stalled 0 stall=40000 fsync" "stalled 1 stall=64 sync ram")
share "$(scaled 8 4)" case_of "${cases[@]}"
