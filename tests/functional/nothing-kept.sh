#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Migrations of 1,024 devices that are over keep, on either side, no descriptor, thread or mapping, no address space and no
# memory; they still say why and how much. What completed keeps its files and nothing else, and a peer's
# devices are gone with what they were part of.
. "$(dirname "$0")/functions.sh"

devices=$(scaled 1024 100)
pair
random ram.image 3000000

# One number of /proc/PID/status, in KiB.
of_status() { awk -v key="$2:" '$1 == key { print $2 }' /proc/"${daemon[$1]}"/status; }
# Mappings of files; those of threads' stacks and arenas come and go with FUSE's workers.
count_mappings() { grep -cE 'memfd:|anon_hugepage|/store/' /proc/"${daemon[$1]}"/maps || true; }

begin() {
	outgoing "$1" "$2"
	truncate -s "$3" "src/$1/ram"
	tell "src/$1" start
	reaches "dst/$1" active
	for ((i = 0; i < devices; i++)); do echo "state of $i" >"src/$1/device-state/dev-$i"; done
	overwrite ram.image "src/$1/ram" bs=1M
	tell "src/$1" sync
}

# fails NAME CHANNELS SIZE: it fails when it has all of its devices
fails() {
	begin "$@"
	[ "$(ls "dst/$1/device-state" | wc -l)" = "$devices" ]
	[ "$(cat "dst/$1/device-state/dev-7")" = "state of 7" ] || fail "dev-7 says $(cat "dst/$1/device-state/dev-7")"
	tell "src/$1" cancel
	reaches "src/$1" cancelled
	reaches "dst/$1" failed cancelled
}

measure() {
	local name
	for name in src dst; do
		mappings[$name]=$(count_mappings $name) size[$name]=$(of_status $name VmSize) resident[$name]=$(of_status $name VmRSS)
	done
}

# at_most NAME WHAT NOW BEFORE SLACK
at_most() { [ "$3" -le $(($4 + $5)) ] || fail "$1 had $4 $2, and has $3"; }

compare() {
	local name
	same_resources
	for name in src dst; do
		at_most $name mappings "$(count_mappings $name)" "${mappings[$name]}" 0
		# Arenas of malloc() are 64 MiB each.
		at_most $name "KiB of address space" "$(of_status $name VmSize)" "${size[$name]}" $((2 << 20))
		[ -n "$MIGFS_SLOW" ] || at_most $name "KiB of memory" "$(of_status $name VmRSS)" "${resident[$name]}" $((24 << 10))
	done
}

declare -A mappings size resident
remember_resources
say "the first one: what stays for the next time"
fails first 32 64M
same_resources
measure

say "declared and undeclared, of many channels and few"
fails second 4 64M
fails third 32 0
fails fourth 2 1G
compare

say "what they still say"
for name in first second third fourth; do
	[ -z "$(ls dst/$name/device-state)" ] || fail "dst/$name has devices"
	[ -e dst/$name/ram ]
	[[ $(status dst/$name error-desc) =~ cancelled ]]
	[ "$(status dst/$name normal-bytes)" = 3000000 ] || fail "dst/$name: $(status dst/$name normal-bytes) bytes"
	[ "$(status dst/$name device-bytes)" = "$(status src/$name device-bytes)" ]
	[ "$(status src/$name channel-0-device-bytes)" -gt 0 ]
	not cat dst/$name/ram 2>/dev/null
	[ "$(cat dst/$name/received | wc -c)" = 0 ]
done

say "a reader that has a device open"
begin open 2 4M
exec 5<dst/open/device-state/dev-3
tell src/open cancel
reaches dst/open failed cancelled
compare
not cat <&5 2>/dev/null
exec 5<&-

say "those that complete: files, and nothing else"
begin done 16 4M
tell src/done complete
same ram.image <(head -c 3000000 dst/done/ram)
eventually "dst gives up its windows" eval '[ "$(count_mappings dst)" = "${mappings[dst]}" ]'
[ "$(count_fds dst)" = $((${before[dst]%% *} + devices + 1)) ] || fail "dst has $(count_fds dst) descriptors"
[ "$(cat dst/done/device-state/dev-9)" = "state of 9" ]
[ "$(status dst/done channel-3-bytes)" = "$(status src/done channel-3-bytes)" ]
forget src/done dst/done
compare
forget src/* dst/*
compare
