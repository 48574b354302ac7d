#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Sending without a copy, where the kernel copies all the same: over loopback. What each setting does and what the
# counters say; little lockable memory; and buffers that are in flight when the connection ends.
. "$(dirname "$0")/functions.sh"
without_tls "all is copied"

size=$(scaled 64M 12M)
random image "$size"

# write_image MIGRATION WRITERS: each writes its share
write_image() {
	local i mib=$(($(stat -c %s image) >> 20)) writers=()
	for ((i = 0; i < $2; i++)); do
		limited dd if=image of="$1/ram" bs=1M conv=notrunc status=none \
			skip=$((mib * i / $2)) seek=$((mib * i / $2)) count=$((mib * (i + 1) / $2 - mib * i / $2)) &
		writers+=($!)
	done
	for i in "${writers[@]}"; do wait "$i" || fail "a writer has failed"; done
}

migfs dst -o listen=tcp:127.0.0.1:0,listen="unix:$dir/socket",timeout=600
migfs src -o timeout=600
uri=$(sed -n 's/.*listening at \(tcp:\)/\1/p' dst.log)

say "the setting"
outgoing setting
[ "$(cat src/setting/zero-copy)" = auto ] || fail "the default is $(cat src/setting/zero-copy)"
refused EINVAL src/setting/error 'off, auto' write src/setting/zero-copy maybe
forget src/setting

for channels in 1 2 7; do
	for mode in off auto; do
		name=$mode$channels
		say "$mode, $channels channels"
		outgoing "$name" $channels
		expect ok write "src/$name/zero-copy" $mode
		expect ok write "src/$name/checksum" "$([ $channels = 2 ] && echo off || echo on)"
		truncate -s "$size" "src/$name/ram"
		tell "src/$name" start
		write_image "src/$name" 3
		tell "src/$name" sync
		add_up "src/$name"
		expect_status "src/$name" zero-copy = $mode
		expect_status "src/$name" zero-copy-bytes = 0
		missed=0
		if [ $mode = auto ]; then
			# Each channel tries, is told that it was copied, and stops.
			missed=$channels
			expect_status "src/$name" kernel-copied-sends -ge $channels
			expect_status "src/$name" kernel-copied-bytes -lt $((channels << 20))
		else
			expect_status "src/$name" kernel-copied-sends = 0
		fi
		expect_status "src/$name" dirty-sync-missed-zero-copy = $missed
		# Idle is not missed, and little is not worth it.
		tell "src/$name" sync
		overwrite image "src/$name/ram" bs=4K count=8
		tell "src/$name" sync
		expect_status "src/$name" dirty-sync-missed-zero-copy = $missed
		tell "src/$name" complete
		add_up "src/$name"
		same image "dst/$name/ram"
		forget "src/$name" "dst/$name"
	done
done

say "compressed"
outgoing zstd
expect ok write src/zstd/compression zstd
tell src/zstd start
base64 image >text
overwrite text src/zstd/ram bs=1M
tell src/zstd complete
add_up src/zstd
expect_status src/zstd kernel-copied-sends -ge 1
same text dst/zstd/ram
forget src/zstd dst/zstd

# fails_as ERRNO PATTERN: the migration has failed, for that reason, at both sides
fails_as() {
	reaches "src/$name" failed
	refused "$1" "src/$name/error" "$2" write "src/$name/control" sync
	[[ $(status "src/$name" error-desc) =~ $2 ]] || fail "error-desc says $(status "src/$name" error-desc)"
	reaches "dst/$name" failed
	says_why "dst/$name"
	forget "src/$name" "dst/$name"
}

say "required, with one large packet: the barrier says no"
for command in sync flush complete; do
	name=one-$command
	outgoing "$name"
	expect ok write "src/$name/zero-copy" require
	tell "src/$name" start
	overwrite image "src/$name/ram" bs=1M count=1
	refused EOPNOTSUPP "src/$name/error" 'zero-copy is required, .*copies.* channel 0' write "src/$name/control" $command
	fails_as EOPNOTSUPP 'zero-copy is required'
done

say "required, with many: it does not wait for the barrier"
name=many
outgoing many 2
expect ok write src/many/zero-copy require
truncate -s 1G src/many/ram
tell src/many start
(while overwrite image src/many/ram bs=1M; do :; done) 2>writer.err
grep -q 'not supported' writer.err || fail "the writer was told: $(cat writer.err)"
expect_status src/many kernel-copied-sends -ge 16
fails_as EOPNOTSUPP 'copies what channel [01] sends'

say "required, and nothing large"
outgoing small
expect ok write src/small/zero-copy require
tell src/small start
overwrite image src/small/ram bs=16K count=100
tell src/small sync
tell src/small complete
forget src/small dst/small

say "required over a unix socket"
outgoing unix 2 "unix:$dir/socket"
expect ok write src/unix/zero-copy require
refused EOPNOTSUPP src/unix/error 'zero-copy is required, but there is none' write src/unix/control start
expect ok write src/unix/zero-copy auto
tell src/unix start
overwrite image src/unix/ram bs=1M
tell src/unix sync
add_up src/unix
expect_status src/unix kernel-copied-sends = 0
expect_status src/unix dirty-sync-missed-zero-copy = 2
tell src/unix complete
same image dst/unix/ram
forget src/unix dst/unix

# Buffers are in flight, and nobody reads: they come back at once when the migration ends, whoever ends it. (The
# destination's kernel takes a few MiB, fewer than 16 sends, so `require` does not fail first.)
is_blocked() { [ "$(status "src/$name" remaining)" -gt $((4 << 20)) ] && [ "$(status "src/$name" status)" = active ]; }
remember_resources
for end in cancel kill; do
	say "in flight: $end"
	name=$end
	outgoing "$name" 1
	expect ok write "src/$name/zero-copy" require
	truncate -s 1G "src/$name/ram"
	tell "src/$name" start
	reaches "dst/$name" active
	stop_migfs dst
	while overwrite image "src/$name/ram" bs=1M; do :; done 2>writer.err &
	writer=$!
	eventually "the writer is blocked" is_blocked
	begun=$SECONDS
	if [ $end = cancel ]; then
		tell "src/$name" cancel
	else
		kill_migfs dst
	fi
	reaches "src/$name" failed cancelled
	eventually "the writer has ended" gone $writer
	wait $writer || true
	drained() { [ "$(status "src/$name" remaining)" = 0 ] && [ "$(count_threads src)" -lt 4 ]; }
	eventually "all buffers are back" drained
	[ $((SECONDS - begun)) -lt 30 ] || fail "it took $((SECONDS - begun)) s"
	forget "src/$name"
	[ $end = kill ] || continue_migfs dst
done
fusermount3 -u dst
unmount src

# Little memory that can be locked. Root may lock more, with a capability that this daemon does not have.
if [ "$(id -u)" = 0 ] && command -v setpriv prlimit >/dev/null; then
	say "no memory can be locked"
	migfs dst -o listen=tcp:127.0.0.1:0
	uri=$(sed -n 's/.*listening at \(tcp:\)/\1/p' dst.log | tail -n 1)
	migfs_through "setpriv --bounding-set=-ipc_lock prlimit --memlock=0" src
	outgoing auto 1
	tell src/auto start
	overwrite image src/auto/ram bs=1M
	tell src/auto sync
	add_up src/auto
	expect_status src/auto kernel-copied-sends = 0
	expect_status src/auto zero-copy-refused -ge 1
	expect_status src/auto zero-copy-refused -lt 20
	expect_status src/auto dirty-sync-missed-zero-copy = 1
	tell src/auto complete
	same image dst/auto/ram
	forget src/auto dst/auto
	name=require
	outgoing require 1
	expect ok write src/require/zero-copy require
	tell src/require start
	overwrite image src/require/ram bs=1M count=1
	refused ENOMEM src/require/error 'channel 0 cannot lock memory' write src/require/control sync
	fails_as ENOMEM 'zero-copy is required'
	unmount src

	say "little memory can be locked"
	migfs_through "setpriv --bounding-set=-ipc_lock prlimit --memlock=65536" src
	outgoing auto 2
	tell src/auto start
	overwrite image src/auto/ram bs=1M
	tell src/auto complete
	add_up src/auto
	expect_status src/auto kernel-copied-sends -ge 1
	same image dst/auto/ram
	forget src/auto dst/auto
	outgoing require 1
	expect ok write src/require/zero-copy require
	tell src/require start
	overwrite image src/require/ram bs=1M count=1
	# A MiB in pieces of 32 KiB, each of which goes, and is copied.
	attempt write src/require/control sync
	[ "$got" = EOPNOTSUPP ] || fail "sync says $got"
	expect_status src/require kernel-copied-sends -ge 16
	fails_as EOPNOTSUPP 'copies what channel 0'
fi
