#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What arrives at once shares what the destination receives: by weight, whatever a migration has of channels; and what one
# does not take is for the others.
. "$(dirname "$0")/functions.sh"
rate=$(scaled 32 16)    # MiB a second
size=$(scaled 512 256)  # MiB: more than is received here

say "mistakes"
mkdir mnt
for bad in 1000 -1 much; do
	not limited "$MIGFS" -f -o "max-bandwidth=$bad" mnt 2>said
	grep -q max-bandwidth said || fail "max-bandwidth=$bad: $(cat said)"
done
pair -o "max-bandwidth=${rate}M"
expect ok mkdir dst/many
for bad in 0 10001 -1 heavy; do
	refused EINVAL dst/many/error "'$bad' is not a weight: 1 to 10000" write dst/many/weight "$bad"
done
[ "$(cat dst/many/weight)" = 100 ]

# arriving NAME CHANNELS: RAM by reference of which much is left to send
truncate -s "${size}M" image
arriving() {
	outgoing "$1" "$2"
	expect ok write "src/$1/ram-source" "$dir/image"
	expect ok write "src/$1/zero-page-detection" off
	tell "src/$1" start
	head -c $((size * 32)) /dev/zero | tr '\0' '\377' >"src/$1/dirty"
}
received() { status "dst/$1" multifd-bytes; }
has_received() { [ "$(received "$1")" -ge "$2" ]; } # MIGRATION BYTES

# shared A B LEAST MOST: while B receives what comes in a quarter of a second, A receives so many percent of that
shared() {
	local from_a from_b part
	from_a=$(received "$1")
	from_b=$(received "$2")
	eventually "$2 has received more" has_received "$2" $((from_b + (rate << 18)))
	part=$((($(received "$1") - from_a) * 100 / ($(received "$2") - from_b)))
	say "$1 has received $part % of what $2 has"
	[ $part -ge "$3" ] && [ $part -le "$4" ] || fail "not $3 to $4 %"
}

say "one channel beside many"
arriving one 1
arriving many 16
reaches dst/many active
expect_status dst/many weight = 100
shared one many 50 170

say "weights"
expect ok write dst/one/weight 400
expect_status dst/one weight = 400
shared one many 180 800
expect ok write dst/one/weight 25
shared many one 180 800
refused EBUSY src/one/error "" write src/one/weight 50
expect_status dst/one throttled-time -gt 0
expect_status dst/many throttled-time -gt 0

say "what one does not take, the other one has"
expect ok write dst/one/weight 10000
expect ok write dst/one/max-bandwidth 2M
expect_status dst/one max-bandwidth = $((2 << 20))
shared one many 0 30
expect ENOENT stat dst/one/channels
tell src/one cancel
tell src/many cancel
reaches dst/one cancelled failed
reaches dst/many cancelled failed

say "all of it arrives"
expect ok mkdir dst/slow
expect ok write dst/slow/max-bandwidth $(scaled 16M 4M)
random image "$(scaled 8M 2M)"
outgoing slow 4
tell src/slow start
overwrite image src/slow/ram bs=300K
tell src/slow complete
reaches dst/slow completed
same image dst/slow/ram
expect_status dst/slow throttled-time -gt 200
expect EBUSY write dst/slow/weight 50
