#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Several ways to one destination: the channels take turns. And a way by RDMA that there is not, with something to fall
# back to and without.
. "$(dirname "$0")/functions.sh"
without_tls "a unix socket among the ways is another identity"

random image 6M
migfs dst -o "listen=tcp:127.0.0.1:0,unix:$dir/socket"
migfs src
tcp=$(sed -n 's/.*listening at //p' dst.log | head -n 1)
rdma=rdma:${tcp#tcp:}

# move URIS CHANNELS: by them
move() {
	say "$1, $2 channels"
	outgoing vm "$2" "$1"
	[ "$(cat src/vm/uri)" = "$1" ] || fail "uri is $(cat src/vm/uri)"
	truncate -s 6M src/vm/ram
	expect ok write src/vm/fallback "${3:-off}"
	tell src/vm start
	limited cp image src/vm/device-state/one
	overwrite image src/vm/ram bs=100K
	tell src/vm sync
	cmp image dst/vm/ram || fail "it is not there after sync"
	overwrite image src/vm/ram bs=64K skip=3 seek=3 count=20
	tell src/vm complete
	same image dst/vm/ram
	same image dst/vm/device-state/one
}
peers() { sed -n 's/^channel-[0-9]*-peer //p' src/vm/status | tr '\n' ' '; }

move "$tcp unix:$dir/socket" 3
[[ $(peers) =~ ^"tcp:127.0.0.1:"[0-9]+" unix peer (pid "[0-9]+") tcp:127.0.0.1:"[0-9]+" "$ ]] || fail "they go to $(peers)"
[ "$(status src/vm uri)" = "$tcp unix:$dir/socket" ] || fail "status shows $(status src/vm uri)"
forget src/vm dst/vm
move "unix:$dir/socket $tcp unix:$dir/socket" 2
[[ $(peers) =~ ^"unix peer (pid "[0-9]+") tcp:127.0.0.1:"[0-9]+" "$ ]] || fail "they go to $(peers)"
forget src/vm dst/vm

say "one of the ways is none"
outgoing vm 2 "$tcp unix:$dir/nobody"
refused ECONNREFUSED src/vm/error 'nobody' write src/vm/control start
expect ok write src/vm/uri "$tcp"
tell src/vm start
tell src/vm cancel
forget src/vm dst/vm

say "mistakes"
outgoing vm 2 "$tcp"
refused EINVAL src/vm/error "'tcp' is not a URI" write src/vm/uri "$tcp tcp"
refused EINVAL src/vm/error "more than 8 URIs" write src/vm/uri "$(printf 'unix:/x %.0s' 1 2 3 4 5 6 7 8 9)"
refused EINVAL src/vm/error "more than one line" write src/vm/uri "$tcp"$'\n'"$tcp"
refused EINVAL src/vm/error "'yes' is neither on nor off" write src/vm/fallback yes
refused EINVAL src/vm/error "'some' is neither demand nor all" write src/vm/rdma-pin some
refused EINVAL src/vm/error "not a power of two from 1M to 1G" write src/vm/rdma-chunk 3M
refused EINVAL src/vm/error "not a power of two from 1M to 1G" write src/vm/rdma-chunk 512K
refused EINVAL src/vm/error "not a power of two from 1M to 1G" write src/vm/rdma-chunk 2G
refused EINVAL src/vm/error "'much' is not a size" write src/vm/rdma-chunk much
for setting in "fallback off" "rdma-pin demand" "rdma-chunk 32M"; do
	[ "$(cat "src/vm/${setting% *}")" = "${setting#* }" ] || fail "${setting% *} is $(cat "src/vm/${setting% *}")"
done
expect ok write src/vm/rdma-chunk 1g
expect ok write src/vm/rdma-pin all
[ "$(cat src/vm/rdma-chunk) $(cat src/vm/rdma-pin)" = "1024M all" ]
forget src/vm

say "no RDMA"
outgoing vm 2 "$rdma"
attempt write src/vm/control start
[ "$got" != ok ] || fail "it goes by RDMA to who does not"
[ "$(status src/vm fallback)" = "" ] || fail "it has fallen back"
rmdir src/vm
move "$rdma" 2 on
[[ $(peers) =~ ^"tcp:127.0.0.1:"[0-9]+" tcp:127.0.0.1:"[0-9]+" "$ ]] || fail "they go to $(peers)"
[ -n "$(status src/vm fallback)" ] || fail "status does not say that it has fallen back"
grep -q "vm: not by RDMA, but by TCP: $(status src/vm fallback)" src.log || fail "nor does the log"
forget src/vm dst/vm
# Nothing is pinned where nothing is placed.
outgoing vm 2 "$rdma"
expect ok write src/vm/fallback on
expect ok write src/vm/rdma-pin all
truncate -s 6M src/vm/ram
tell src/vm start
tell src/vm complete
