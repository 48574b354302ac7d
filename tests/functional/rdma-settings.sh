#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Over RDMA: several ways at once, smaller chunks, all of the memory pinned before the start, and too little of it at
# either end, with something to fall back to and without. See mixed.sh for what needs no device.
. "$(dirname "$0")/functions.sh"
requires_root
requires prlimit setpriv
rdma_device

size=$((5 << 20))
random image $size
migfs dst -o "listen=$MIGFS_TEST_LISTEN,tcp:$address:0"
migfs src
uri=$(sed -n 's/^migfs: listening at //p' dst.log | grep ^rdma:)
tcp=$(sed -n 's/^migfs: listening at //p' dst.log | grep ^tcp:)

# begin NAME CHANNELS URIS [SETTING VALUE]...: of a size, and not started
begin() {
	local i
	outgoing "$1" "$2" "$3"
	for ((i = 4; i < $#; i += 2)); do expect ok write "src/$1/${!i}" "${@:$((i + 1)):1}"; done
	truncate -s $size "src/$1/ram"
}
# arrives NAME: all of it
arrives() {
	overwrite image "src/$1/ram" bs=1M
	tell "src/$1" complete
	same image "dst/$1/ram"
}

say "RDMA and TCP"
for uris in "$uri $tcp" "$tcp $uri"; do
	begin mixed 3 "$uris"
	tell src/mixed start
	limited cp image src/mixed/device-state/dev
	overwrite image src/mixed/ram bs=64K
	tell src/mixed sync
	# Rewritten, by whichever of them, and again.
	random image $size
	arrives mixed
	[ "$(stat -c %s dst/mixed/device-state/dev)" = $size ]
	for n in 0 1 2; do
		peer=$(status src/mixed channel-$n-peer) placed=$(status src/mixed channel-$n-rdma-bytes)
		case $peer in
		rdma:*) [ "$placed" -ge $((1 << 20)) ] ;;
		tcp:*) [ "$placed" = 0 ] ;;
		esac || fail "channel $n to $peer has placed $placed bytes"
	done
	[ "$(status src/mixed channel-0-peer | sed 's/:.*//')" = "${uris%%:*}" ] || fail "the first way is another one"
	[ "$(status src/mixed rdma-bytes)" = "$(status dst/mixed rdma-bytes)" ] || fail "the ends have counted otherwise"
	forget src/mixed dst/mixed
done

say "chunks of 1 MiB"
begin chunks 2 "$uri" rdma-chunk 1M
tell src/chunks start
overwrite image src/chunks/ram bs=1M
expect_status src/chunks rdma-exposures = 5
expect_status src/chunks rdma-chunks = 5
tell src/chunks complete
same image dst/chunks/ram
forget src/chunks dst/chunks

say "all is pinned"
begin pinned 2 "$uri" rdma-pin all rdma-chunk 1M
tell src/pinned start
expect_status src/pinned rdma-chunks = 5
arrives pinned
forget src/pinned dst/pinned
begin pinned 2 "$uri" rdma-pin all rdma-chunk 1M ram-source "$dir/image"
attempt write src/pinned/control start
if [ "$got" = ok ]; then
	expect_status src/pinned rdma-registered-bytes = $size
	expect_status src/pinned rdma-registrations = 5
	tell src/pinned complete
else
	[[ $(cat src/pinned/error) = *"Linux before 6.2"* ]] || fail "it cannot be pinned: $(cat src/pinned/error)"
	say "(not by reference: $got)"
fi
forget src/pinned
[ ! -e dst/pinned ] || forget dst/pinned

say "too little memory at the destination"
limited_to $((6 << 20)) poor -o "listen=rdma:$address:0"
poor=$(sed -n 's/^migfs: listening at //p' poor.log | head -n 1)
begin poor 2 "$poor" rdma-pin all rdma-chunk 1M
refused ENOMEM src/poor/error 'the destination can pin only [0-4] MiB of 5: raise its RLIMIT_MEMLOCK' \
	write src/poor/control start
# The same migration without that.
expect ok write src/poor/rdma-pin demand
tell src/poor start
overwrite image src/poor/ram bs=1M
tell src/poor complete
same image poor/poor/ram
unmount poor

say "too little memory here"
limited_to $((6 << 20)) tight
expect ok mkdir tight/vm
for setting in "uri $uri" "channels 2" "rdma-pin all" "rdma-chunk 1M" "ram-source $dir/image"; do
	expect ok write "tight/vm/${setting%% *}" "${setting#* }"
done
truncate -s $size tight/vm/ram
attempt write tight/vm/control start
[[ $(cat tight/vm/error) =~ "'$dir/image' cannot be "("pinned: raise RLIMIT_MEMLOCK"|"registered (Linux before 6.2") ]] ||
	fail "$got: $(cat tight/vm/error)"
expect ok write tight/vm/rdma-pin demand
tell tight/vm start
head -c $((size / 4096 / 8)) /dev/zero | tr '\0' '\377' >all
dd if=all of=tight/vm/dirty bs=$((size / 4096 / 8)) conv=notrunc status=none
tell tight/vm complete
same image dst/vm/ram
forget dst/vm
unmount tight

say "no memory at all: it goes by TCP, if it may"
limited_to $((1 << 20)) none
expect ok mkdir none/vm
for setting in "uri $uri" "channels 3"; do
	expect ok write "none/vm/${setting%% *}" "${setting#* }"
done
truncate -s $size none/vm/ram
refused ENOMEM none/vm/error 'raise RLIMIT_MEMLOCK' write none/vm/control start
expect ok write none/vm/fallback on
tell none/vm start
[[ $(status none/vm fallback) = *"raise RLIMIT_MEMLOCK"* ]] || fail "fallback says $(status none/vm fallback)"
overwrite image none/vm/ram bs=1M
tell none/vm complete
same image dst/vm/ram
expect_status none/vm rdma-bytes = 0
unmount none
