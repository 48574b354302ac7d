#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A migration of the same name, again and again, some of which fail or are cancelled, and remounts: neither daemon's
# descriptors, threads and memory grow.
. "$(dirname "$0")/functions.sh"

pair
random image 3M
random device 100000
cycles=$(scaled 100 20)
declare -A anonymous

# cycle N: most of them complete
cycle() {
	outgoing vm 3
	truncate -s 3M src/vm/ram
	tell src/vm start
	overwrite image src/vm/ram bs=1M
	limited cp device src/vm/device-state/device
	case $(($1 % 10)) in
	3)
		tell src/vm cancel
		reaches dst/vm cancelled failed
		;;
	7)
		tell dst/vm cancel
		reaches src/vm cancelled failed
		;;
	*)
		tell src/vm sync
		same image dst/vm/ram
		tell src/vm complete
		same image dst/vm/ram
		same device dst/vm/device-state/device
		;;
	esac
	# The destination's is replaced by the next one of its name, if it did not complete.
	forget src/vm
	[ $(($1 % 10)) = 3 ] || forget dst/vm
}

remember_resources
for ((i = 1; i <= cycles / 5; i++)); do cycle "$i"; done
for name in src dst; do anonymous[$name]=$(memory_of $name RssAnon); done
for ((; i <= cycles; i++)); do cycle "$i"; done
[ ! -e dst/vm ] || forget dst/vm
same_resources
for name in src dst; do
	grown=$(($(memory_of $name RssAnon) - anonymous[$name]))
	say "$name has grown by $((grown / 1024)) KiB"
	[ -n "$MIGFS_SLOW" ] || [ $grown -lt $((8 << 20)) ] || fail "the daemon of $name has grown by $grown bytes"
done

say "remounts"
for ((i = 1; i <= $(scaled 10 3); i++)); do
	cycle 1
	unmount src
	migfs src
	cycle 2
	unmount dst
	migfs dst -o "listen=$uri"
done
cycle 1
