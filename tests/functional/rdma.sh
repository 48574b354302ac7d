#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Migrations over RDMA, where this machine has a device with an address: what is written arrives, RAM is placed and counted
# the same at both ends, whatever is mixed with it; and what fails is said.
. "$(dirname "$0")/functions.sh"
requires_root
requires prlimit setpriv
rdma_device
pair

size=$((5 << 20))
random image $size
# A hole, zero pages, and a tail that is no page.
dd if=/dev/zero of=image bs=4096 seek=300 count=40 conv=notrunc status=none
random rest 4100
make_devices

# placed NAME: bytes of RAM that the card has written; the same at both ends
placed() {
	local here there
	here=$(status "src/$1" rdma-bytes) there=$(status "dst/$1" rdma-bytes)
	[ "$here" = "$there" ] || fail "$1: rdma-bytes is $here at the source and $there at the destination"
	echo "$here"
}

# Of soft-RoCE: all packets that the device has sent, and messages (SEND) of them.
counters=/sys/class/infiniband/$device/ports/1/hw_counters
counts() { if [ -r $counters/rdma_sends ]; then echo "$(<$counters/sent_pkts) $(<$counters/rdma_sends)"; else echo 0 0; fi; }
payload=$(ibv_devinfo -d "$device" 2>/dev/null | sed -n 's/.*active_mtu: *\([0-9]*\).*/\1/p') || true
# counters_agree NAME PACKETS MESSAGES: what the device had counted before. What is placed goes in full packets, none of
# it in messages; besides there are headers, answers, and little else.
counters_agree() {
	local packets messages full
	[ -r $counters/rdma_sends ] && [ -n "$payload" ] || return 0
	read -r packets messages < <(counts)
	packets=$((packets - $2)) messages=$((messages - $3)) full=$(($(status "src/$1" rdma-bytes) / payload))
	say "$packets packets, $messages messages; $full of $payload bytes are placed"
	[ $packets -ge $full ] || fail "there are too few packets"
	[ $packets -le $((full * 5 / 4 + 200)) ] || fail "there are too many packets"
	[ $messages -le $((full / 16 + 40)) ] || fail "there are too many messages"
	expect_status "src/$1" rdma-rnr-naks = 0
}

for channels in 1 2 7; do
	say "$channels channels"
	name=file-$channels
	outgoing $name $channels
	truncate -s $((size + 4100)) src/$name/ram
	tell src/$name start
	read -r packets messages < <(counts)
	overwrite image src/$name/ram bs=1M
	tell src/$name sync
	counters_agree $name "$packets" "$messages"
	[ "$(placed $name)" -ge $((size * 9 / 10 - (1 << 20))) ] || fail "only $(placed $name) of $size bytes were placed"
	write_devices src/$name
	# Small writes, a rewrite of what was placed, a hole, and a rewrite of the hole.
	overwrite rest src/$name/ram bs=1000 oflag=seek_bytes seek=$size
	overwrite image src/$name/ram bs=64K count=10
	fallocate -p -o 1048576 -l 1048576 src/$name/ram
	await_devices
	overwrite image src/$name/ram bs=1M skip=1 seek=1 count=1
	cp image want
	cat rest >>want
	tell src/$name complete
	same want dst/$name/ram
	compare_devices dst/$name
	[ "$(status src/$name multifd-bytes)" = "$(status dst/$name multifd-bytes)" ] || fail "the bytes are not the same"
done

say "compressed"
outgoing packed 2
expect ok write src/packed/compression zstd
truncate -s $size src/packed/ram
tell src/packed start
overwrite image src/packed/ram bs=1M
tell src/packed complete
same image dst/packed/ram
[ "$(placed packed)" = 0 ] || fail "compressed payloads were placed"

head -c 160 /dev/zero | tr '\0' '\377' >dirty
for channels in 1 2 7; do
	say "by reference, $channels channels"
	name=reference-$channels
	outgoing $name $channels
	truncate -s $size src/$name/ram
	expect ok write src/$name/ram-source "$dir/image"
	tell src/$name start
	dd if=dirty of=src/$name/dirty bs=160 conv=notrunc status=none
	tell src/$name sync
	[ "$(placed $name)" -ge $((size * 8 / 10)) ] || fail "only $(placed $name) of $size bytes were placed"
	# The same pages again, changed, and some of them zero.
	random changed $((1 << 20))
	dd if=changed of=image bs=64K seek=16 conv=notrunc status=none
	dd if=/dev/zero of=image bs=4096 seek=$((700 + channels)) count=20 conv=notrunc status=none
	dd if=dirty of=src/$name/dirty bs=160 conv=notrunc status=none
	tell src/$name complete
	same image dst/$name/ram
done

# made NAME SOURCE URI SIZE
made() {
	expect ok mkdir "$2/$1"
	expect ok write "$2/$1/uri" "$3"
	expect ok write "$2/$1/channels" 2
	truncate -s "$4" "$2/$1/ram"
}

say "no memory to pin"
limited_to $((3 << 20)) poor -o listen=rdma:"$address":0
there=$(sed -n 's/^migfs: listening at //p' poor.log | head -n 1)
made pinned src "$there" $size
tell src/pinned start
overwrite image src/pinned/ram bs=1M
tell src/pinned complete
same image poor/pinned/ram
[ "$(status src/pinned rdma-refusals)" -ge 1 ] || fail "what cannot be pinned was not refused"
[ "$(status src/pinned rdma-bytes)" = 0 ] || fail "something was placed in memory that cannot be pinned"

say "memory for one chunk of three, at each end"
limited_to $((44 << 20)) tight-dst -o listen=rdma:"$address":0
limited_to $((44 << 20)) tight-src
there_too=$(sed -n 's/^migfs: listening at //p' tight-dst.log | head -n 1)
truncate -s 96M sparse
for at in 0 33 70; do dd if=image of=sparse bs=1M seek=$at count=2 conv=notrunc status=none; done
made tight tight-src "$there_too" $((96 << 20))
expect ok write tight-src/tight/ram-source "$dir/sparse"
tell tight-src/tight start
head -c $((96 << 5)) /dev/zero | tr '\0' '\377' >all
for round in 1 2; do
	dd if=all of=tight-src/tight/dirty bs=$((96 << 5)) conv=notrunc status=none
	tell tight-src/tight sync
done
[ "$(status tight-src/tight rdma-withdrawals)" -ge 1 ] || fail "no chunk of the destination has made room"
# Linux before 6.2 registers no mapping that can only be read.
[ "$(status tight-src/tight rdma-registrations)" = 0 ] || [ "$(status tight-src/tight rdma-evictions)" -ge 1 ] ||
	fail "no chunk of the source has made room"
[ "$(status tight-src/tight rdma-bytes)" -ge $((6 << 20)) ] || fail "too little was placed"
tell tight-src/tight complete
same sparse tight-dst/tight/ram

say "the destination is killed"
outgoing killed 2 "$there"
truncate -s $size src/killed/ram
tell src/killed start
overwrite image src/killed/ram bs=1M
kill_migfs poor
reaches src/killed failed
says_why src/killed
fusermount3 -uz "$dir/poor"

say "cancelled"
outgoing cancelled 2
truncate -s $size src/cancelled/ram
tell src/cancelled start
overwrite image src/cancelled/ram bs=1M
tell src/cancelled cancel
reaches dst/cancelled failed cancelled
outgoing after 2
truncate -s $size src/after/ram
tell src/after start
overwrite image src/after/ram bs=1M
tell src/after complete
same image dst/after/ram

say "in the background, to all addresses"
mkdir -p back
"$MIGFS" -o listen=rdma:"$address":45454,insecure "$dir/back" >>back.log 2>&1
at_exit "umount -l '$dir/back' 2>/dev/null"
outgoing back 2 "rdma:$address:45454"
truncate -s $size src/back/ram
tell src/back start
overwrite image src/back/ram bs=1M
tell src/back complete
same image back/back/ram
fusermount3 -u back

case $card in
dummy*) ;;
*) exit 0 ;; # the link is not ours
esac
# There soft-RoCE forgets what the connection manager has told it to send, and a thread that ends a connection waits for
# that in the kernel for ever: not each time, but often enough.
[[ $(uname -r) != 6.1.* ]] || exit 0
say "the link is down"
outgoing down 2
expect ok write src/down/timeout 5
truncate -s $size src/down/ram
tell src/down start
overwrite image src/down/ram bs=1M count=1
ip link set "$card" down
overwrite image src/down/ram bs=1M skip=1 seek=1 2>down.log || true
reaches src/down failed
says_why src/down
reaches dst/down failed
