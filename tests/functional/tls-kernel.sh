#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# TLS in the kernel, where it has it: which sockets are its own, and migrations between an end that uses it and one that does
# not.
export MIGFS_TEST_TLS=1
. "$(dirname "$0")/functions.sh"
requires python3
modprobe tls 2>/dev/null || true
two_namespaces
in_a() { nsenter --net=/run/netns/$a "$@"; }
in_a python3 - <<'END' 2>said || skip "this kernel has no TLS: $(tail -n 1 said)"
import socket
listener = socket.create_server(("127.0.0.1", 0))
connection = socket.create_connection(listener.getsockname())
connection.setsockopt(socket.IPPROTO_TCP, 31, b"tls")   # TCP_ULP
END

counted() { in_a awk -v name="$1" '$1 == name { print $2 }' /proc/net/tls_stat; }
declare -A had
remember() {
	had[TlsTxSw]=$(counted TlsTxSw)
	had[TlsRxSw]=$(counted TlsRxSw)
}
# counts N: so many more sockets, at least, send by the kernel, and receive by it, than before
counts() {
	local name now
	for name in "${!had[@]}"; do
		now=$(counted "$name")
		[ $((now - ${had[$name]})) -ge "$1" ] || fail "$name: $((now - ${had[$name]})) sockets, not $1"
	done
}

size=$((2 << 20))
random image $size
uri=tcp:127.0.0.1:4242
in_namespace $a dst -o "listen=$uri,timeout=300" "${every[@]}"
in_namespace $a src -o timeout=300 "${every[@]}"

# In a guest a handshake may take longer than a listener waits.
starts() { attempt write "src/$1/control" start && [ "$got" = ok ]; }

# moves NAME WHO URI SETTING=VALUE...: by reference, and then some of it once more, pushed, and a device
moves() {
	local name=$1 who=$2 at=$3 setting
	shift 3
	remember
	outgoing "$name" 2 "$at"
	for setting in "ram-source=$dir/image" "$@"; do
		expect ok write "src/$name/${setting%%=*}" "${setting#*=}"
	done
	eventually "$name has started" starts "$name"
	head -c $((size / 32768)) /dev/zero | tr '\0' '\377' >"src/$name/dirty"
	tell "src/$name" sync
	limited dd if=image of="src/$name/ram" bs=300K count=3 conv=notrunc status=none
	limited dd if=image of="src/$name/device-state/disk" bs=100K count=5 status=none
	tell "src/$name" complete
	reaches "dst/$name" completed
	same image "dst/$name/ram"
	limited cmp -n 512000 image "dst/$name/device-state/disk" || fail "the device differs"
	expect_status "src/$name" tls-by = "$who"
	expect_status "src/$name" not-with-tls = "zero-copy splice"
	forget "src/$name" "dst/$name"
}

say "both ends"
moves both kernel $uri
counts 6
moves packed kernel $uri compression=zstd checksum=on

say "the destination alone"
moves one migfs "faulty:short=70000:$uri"
counts 3
[ "$(counted TlsDecryptError)" = 0 ] || fail "$(counted TlsDecryptError) records could not be decrypted"

say "a source that dies"
outgoing killed
eventually "it has started" starts killed
reaches dst/killed active
kill_migfs src
reaches dst/killed failed
umount -l src
