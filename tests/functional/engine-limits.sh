#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A destination with a limit of memory refuses what does not fit, with EDQUOT at whoever wanted it and a sentence, and
# stays under the limit; so it does with the number of devices.
. "$(dirname "$0")/functions.sh"

MB=$((1 << 20))

# All that the destination's daemon has: its own memory, and the memfds.
memory() {
	local fd sum
	sum=$(memory_of dst RssAnon)
	for fd in /proc/"${daemon[dst]}"/fd/*; do
		case $(readlink "$fd") in
		# It may be gone by now.
		/memfd:*) sum=$((sum + $(stat -L -c %b "$fd" 2>/dev/null || echo 0) * 512)) ;;
		esac
	done
	echo "$sum"
}
under_limit() {
	local memory
	memory=$(memory)
	# The limit is for what arrives; the daemon itself needs a little.
	[ -n "$MIGFS_SLOW" ] || [ "$memory" -le $((264 * MB)) ] || fail "$1: the destination has $memory bytes"
}

# still_active NAME: the source's migration is none the worse
still_active() {
	[ "$(status "src/$1" status)" = active ] || fail "$1 is $(status "src/$1" status)"
	random data 300000
	overwrite data "src/$1/ram" bs=100000
	tell "src/$1" sync
	limited cmp -n 300000 data "dst/$1/ram" || fail "$1: other data has arrived"
}

gave_back() { [ -n "$MIGFS_SLOW" ] || [ "$(memory)" -le $((48 * MB)) ]; }

pair -o max-memory=256M,max-devices=20
say "an image that is declared too large"
outgoing declared
truncate -s 1G src/declared/ram
refused EDQUOT src/declared/error '1073741824.*268435456' write src/declared/control start
[ "$(status src/declared status)" = failed ]
says_why src/declared
reaches dst/declared failed
says_why dst/declared
# It can be made smaller, and started then.
expect ok truncate src/declared/ram $((200 * MB))
tell src/declared start
still_active declared

say "one more, when the limit is almost reached"
outgoing second
truncate -s 100M src/second/ram
refused EDQUOT src/second/error 'does not fit.*268435456' write src/second/control start
outgoing third
tell src/third start
random data $((8 * MB))
overwrite data src/third/ram
tell src/third sync
# What the third one grows by now is too much together, though not by itself: that only shows at the destination.
limited dd if=/dev/urandom of=src/third/ram bs=1M count=100 conv=notrunc status=none 2>dd.err || true
expect EDQUOT write src/third/control sync
reaches src/third failed
says_why src/third
grep -q 'does not fit' src/third/error
expect EDQUOT pwrite src/third/ram 0 4096
reaches dst/third failed
still_active declared
under_limit "two migrations"
tell src/declared complete
same dst/declared/ram dst/declared/ram
forget src/declared src/second src/third dst/declared dst/third

say "an image that grows too large"
outgoing grown
tell src/grown start
still_active grown
refused EDQUOT src/grown/error '268435456' pwrite src/grown/ram $((256 * MB)) 1
refused EDQUOT src/grown/error '268435456' pwrite src/grown/ram $((256 * MB - 100)) 101
refused EDQUOT src/grown/error '268435456' truncate src/grown/ram $((1024 * MB))
refused EDQUOT src/grown/error '268435456' fallocate src/grown/ram $((255 * MB)) $((2 * MB))
refused EDQUOT src/grown/error '268435456' fallocate src/grown/ram $((255 * MB)) $((2 * MB)) zero
[ "$(stat -c %s src/grown/ram)" = 300000 ] || fail "the size is $(stat -c %s src/grown/ram) after what was refused"
still_active grown

say "a device that grows too large"
# The rest of the limit is there for it, and all of it is too little.
status=0
limited dd if=/dev/zero of=src/grown/device-state/large bs=1M count=300 2>dd.err || status=$?
[ $status = 1 ] || fail "a device of 300 MiB: dd ended with $status"
grep -q 'quota exceeded' dd.err || fail "a device of 300 MiB: $(cat dd.err)"
under_limit "a large device"
if [ "$(status src/grown status)" = active ]; then
	# It was refused where it was written.
	grep -q 268435456 src/grown/error
	still_active grown
	tell src/grown complete
	forget src/grown dst/grown
else
	# The budget was used up by what else is there.
	reaches src/grown failed
	says_why src/grown
	forget src/grown
	reaches dst/grown failed
	forget dst/grown
fi

say "a device alone that grows too large"
outgoing device
tell src/device start
expect ok open src/device/device-state/x wronly,creat
refused EDQUOT src/device/error '268435456' pwrite src/device/device-state/x $((300 * MB - 1)) 1
refused EDQUOT src/device/error '268435456' truncate src/device/device-state/x $((300 * MB))
still_active device

say "too many devices"
for i in {2..20}; do expect ok open "src/device/device-state/d$i" wronly,creat,excl; done
refused EDQUOT src/device/error '20' open src/device/device-state/d21 wronly,creat
expect ENOENT stat src/device/device-state/d21
expect ENOENT stat dst/device/device-state/d21
still_active device
tell src/device complete
[ "$(status dst/device devices)" = 20 ]
forget src/device dst/device

say "too many devices before the start"
outgoing many
for i in {1..21}; do expect ok open "src/many/device-state/d$i" wronly,creat,excl; done
refused EDQUOT src/many/error '20' write src/many/control start
[ "$(status src/many status)" = failed ]
forget src/many

say "what was given back can be used again"
for i in 1 2 3; do
	outgoing again
	# The buffers of its channels count, too.
	truncate -s 250M src/again/ram
	tell src/again start
	limited dd if=/dev/urandom of=src/again/ram bs=1M count="$(scaled 200 20)" conv=notrunc status=none
	tell src/again complete
	[ "$(status dst/again status)" = completed ]
	under_limit "an image of all there is"
	forget src/again dst/again
done
eventually "the destination has given its memory back" gave_back
