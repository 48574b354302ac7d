#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The rules of RAM by reference under fire; see dirtying.c. SECONDS_EACH=N lets each run take so long (5 s), RUNS="N..." says
# which: numbers of channels.
. "$(dirname "$0")/functions.sh"
helper dirtying

seconds=${SECONDS_EACH:-$(scaled 5 3)}
limit=$((seconds + limit * 2))
pair

# fire NAME CHANNELS THREADS MIB [SETTING VALUE]...
fire() {
	local name=$1
	say "$*"
	outgoing "$name" "$2"
	for ((i = 5; i < $#; i += 2)); do expect ok write "src/$name/${!i}" "${@:$((i + 1)):1}"; done
	limited nice "$helper" "src/$name" "dst/$name" "$seconds" "$3" "$4" || { cat "src/$name/error"; fail "$*"; }
	[ "$(status "src/$name" status)" = completed ]
	for key in accepted-bytes normal-bytes zero-bytes; do
		[ "$(status "src/$name" $key)" = "$(status "dst/$name" $key)" ] || fail "$name: $key differs"
	done
	[ "$(status "src/$name" accepted-bytes)" = $(($(status "src/$name" normal-bytes) + $(status "src/$name" zero-bytes))) ]
	forget "src/$name" "dst/$name"
}
for channels in ${RUNS:-1 4 16}; do
	fire "vm$channels" "$channels" 3 "$(scaled 48 12)"
done
if [ -z "${RUNS:-}" ]; then
	fire checksum 4 2 16 checksum on
	fire zstd 3 2 16 compression zstd
	fire plain 2 3 16 zero-page-detection off
fi
