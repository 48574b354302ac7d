#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A running QEMU 10, unmodified, that writes its RAM with `migrate file:` (mapped-ram, four channels): when the migration
# is cancelled, when the peer dies, and when the source's own daemon dies in the middle of it, the guest goes on; it can
# be migrated again afterwards, and goes on at the destination.
#
# MIGFS_ROUNDS=N: so many times each (2).
. "$(dirname "$0")/functions.sh"

requires_root
requires as ld flock
rounds=${MIGFS_ROUNDS:-$(scaled 2 1)}
ram=$((256 << 20)) # what the guest goes over

newer_qemu
# Some 20 MB/s where migfs has a sanitizer.
# shellcheck disable=SC2046
as --32 $(scaled "" "--defsym TICKS=7457") -o guest.o "$root/examples/guest.s"
ld -m elf_i386 -Ttext 0x7c00 --oformat binary -o guest.img guest.o

declare -A to from vm # the QMP pipes and the process of each QEMU

# boot NAME [OPTION...]
boot() {
	local name=$1
	shift
	rm -f "$name.in" "$name.out" "$name.serial"
	mkfifo "$name.in" "$name.out"
	"${qemu[@]}" -accel tcg -machine pc -m $((ram >> 20)) -nodefaults -no-user-config -display none -no-reboot \
		-drive if=floppy,format=raw,readonly=on,file=guest.img -serial file:"$name.serial" \
		-chardev pipe,id=qmp,path="$name" -mon chardev=qmp,mode=control "$@" >"qemu-$name.log" 2>&1 &
	vm[$name]=$!
	# shellcheck disable=SC1083
	exec {to[$name]}<>"$name.in" {from[$name]}<>"$name.out"
	qmp "$name" qmp_capabilities
	qmp "$name" migrate-set-capabilities '{"capabilities": [{"capability": "mapped-ram", "state": true},
		{"capability": "multifd", "state": true}]}'
	qmp "$name" migrate-set-parameters '{"multifd-channels": 4}'
}

# qmp NAME COMMAND [ARGUMENTS]: leaves the answer in $reply
qmp() {
	local end=$((SECONDS + limit))
	printf '{"execute": "%s", "arguments": %s}\n' "$2" "$(echo "${3:-{\}}" | tr '\n\t' '  ')" >&"${to[$1]}"
	while [ $SECONDS -lt $end ]; do
		ended=no
		kill -0 "${vm[$1]}" 2>/dev/null || ended=yes
		# What it has said before it ended is there.
		while read -r -t 1 -u "${from[$1]}" reply; do
			case $reply in
			'{"return"'*) return ;;
			'{"error"'*) fail "the $1's QEMU, at $2: $reply" ;;
			esac
		done
		[ $ended = no ] || fail "the $1's QEMU has ended: $(tail -n 3 "qemu-$1.log")"
	done
	fail "the $1's QEMU does not answer $2"
}

quit() {
	qmp "$1" quit
	wait "${vm[$1]}" || true
	# shellcheck disable=SC1083
	exec {to[$1]}>&- {from[$1]}>&-
}

# migrating NAME STATUS: the last answer of query-migrate says so
migrating() {
	qmp "$1" query-migrate
	[[ $reply == *"\"status\": \"$2\""* ]]
}

# counter NAME: how many blocks the guest has found right
counter() { grep -c 'block [0-9]* good$' "$1.serial" || true; }
counter_above() {
	! grep -q WRONG "$1.serial" || fail "the guest has found a wrong word in its memory"
	[ "$(counter "$1")" -gt "$2" ]
}
goes_on() {
	qmp "$1" query-status
	[[ $reply == *'"running": true'* ]] || fail "after $2 the guest stands still: $reply"
	eventually "the guest goes on after $2" counter_above "$1" "$(counter "$1")"
}

begin() {
	outgoing vm 4
	tell src/vm start
}

sent_more_than() { [ "$(status src/vm accepted-bytes)" -gt "$1" ]; }

# in_the_middle: the migration runs, at a pace that leaves time for accidents
in_the_middle() {
	begin
	qmp source migrate-set-parameters "{\"max-bandwidth\": $((16 << 20))}"
	qmp source migrate "{\"uri\": \"file:$dir/src/vm/ram\"}"
	eventually "QEMU has written some of its RAM" sent_more_than $((2 << 20))
	not let_go
}

# QEMU 10.0 says that a migration has failed before it has let go of all that it had, and does not bear a new one meanwhile.
# What `yank` could end goes last.
let_go() {
	qmp source query-yank
	[[ $reply != *'"type": "migration"'* ]]
}

# after WHAT: QEMU has noticed, and the guest lives
after() {
	eventually "QEMU's migration has failed after $1" migrating source failed
	eventually "QEMU's migration has ended after $1" let_go
	goes_on source "$1"
}

pair
boot source
eventually "the guest runs" counter_above source 4

for ((round = 1; round <= rounds; round++)); do
	say "round $round: cancel"
	in_the_middle
	tell src/vm cancel
	after cancel
	says_why src/vm
	forget src/vm
	reaches dst/vm cancelled failed
	forget dst/vm

	say "round $round: the peer dies"
	in_the_middle
	kill_migfs dst
	after "the peer's death"
	says_why src/vm
	forget src/vm
	umount -l dst
	rm -f socket
	migfs dst -o "listen=$uri"

	say "round $round: the source's own daemon dies"
	in_the_middle
	kill_migfs src
	after "the daemon's death"
	umount -l src
	migfs src
	reaches dst/vm failed
	forget dst/vm
done

say "and it can be migrated, over connections that are cut again and again"
outgoing vm 4 "faulty:cut=$(scaled 9000001 5000001):$uri"
expect ok write src/vm/resume 30
tell src/vm start
qmp source migrate-set-parameters '{"max-bandwidth": 1000000000000}'
qmp source migrate "{\"uri\": \"file:$dir/src/vm/ram\"}"
eventually "QEMU has written all of it" migrating source completed
tell src/vm complete
reaches dst/vm completed
expect_status src/vm pauses -gt 0
before=$(counter source)
boot destination -incoming defer
qmp destination migrate-incoming "{\"uri\": \"file:$dir/dst/vm/ram\"}"
eventually "the destination's QEMU has loaded it" migrating destination completed
qmp destination cont
eventually "the guest goes on at the destination" counter_above destination 16
# Where the guest was, it goes on: the last line that it wrote here may have been cut.
first=$(sed -n 's/.*block \([0-9]*\) good.*/\1/p' destination.serial | sed -n 2p)
[ "$first" -ge "$before" ] && [ "$first" -le $((before + 3)) ] || fail "the guest was at $before, and goes on at $first"
quit source
quit destination
