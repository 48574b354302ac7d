#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# One bit of a device's state is flipped on its way. Whatever `checksum` says, and whichever way the RAM takes, no
# migration completes.
. "$(dirname "$0")/functions.sh"
without_tls "no byte that is broken has a place that is known"

pair
random image 1000000
random small 900
random large 150000

# with SETTINGS BYTE: a migration whose channel for devices flips a bit of that byte of theirs
with() {
	local settings=$1 byte=$2 name=vm$2-${1//[^a-z]/} i
	outgoing "$name" 2 "faulty:corrupt=$((320 + byte))+only=2:$uri"
	expect ok write "src/$name/device-channels" 1
	# shellcheck disable=SC2086
	set -- $settings
	for ((i = 1; i < $#; i += 2)); do expect ok write "src/$name/${!i}" "${@:$((i + 1)):1}"; done
	tell "src/$name" start
	if [ -n "$(limited cat "src/$name/ram-source")" ]; then
		head -c 32 /dev/zero | tr '\0' '\377' >"src/$name/dirty"
	else
		overwrite image "src/$name/ram" bs=64K
	fi
	# What goes wrong is told to the writer or, at the latest, to `complete`.
	cat small >"src/$name/device-state/small" 2>>"$name.err" || true
	dd if=large of="src/$name/device-state/large" bs=70000 status=none 2>>"$name.err" || true
	attempt write "src/$name/control" complete
	[[ $got =~ ^(EPROTO|EREMOTEIO)$ ]] || fail "$name: byte $byte of what is sent was broken, and complete says $got"
	reaches "src/$name" failed
	reaches "dst/$name" failed
	grep -q "'$broken'.* arrived damaged" "dst/$name/error" || fail "$name: $(cat "dst/$name/error")"
	forget "src/$name" "dst/$name"
}

# The first packet has 900 bytes behind its header of 64; the next one begins with its header again.
some() {
	local byte
	broken=small
	for byte in 65 500 964; do with "$1" $byte; done
	broken=large
	for byte in 1029 40000 71028; do with "$1" $byte; done
}
for settings in "checksum off" "checksum auto ram-source $dir/image" "checksum off zero-page-detection off splice on" \
	"checksum off ram-source $dir/image zero-page-detection off zero-copy off"; do
	case $settings in
	*splice*) [ "$(cat /proc/sys/fs/pipe-max-size)" -ge 2097152 ] || continue ;;
	esac
	say "$settings"
	some "$settings"
done
