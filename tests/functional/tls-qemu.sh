#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The files that migfs proves itself with are those of QEMU: the same directories, of certificates and of keys, drive a pair
# of QEMUs and a pair of daemons; and QEMU 10, too, where it can be had.
. "$(dirname "$0")/functions.sh"
requires openssl qemu-system-x86_64 python3
"$MIGFS" -V | grep -q 'with TLS' || skip "this migfs is built without TLS"
make=$root/examples/make-certificates
size=16 # MiB

"$make" ca >make.log
"$make" ca x509-src source.example >>make.log
"$make" ca x509-dst destination.example 127.0.0.1 >>make.log
mkdir psk-src
"$make" psk psk-src/keys.psk >>make.log
cp -r psk-src psk-dst
random marked "${size}M"

# boot SIDE KIND OPTION...: a QEMU that does not run its guest, whose RAM is the file SIDE.ram
declare -A vm
boot() {
	local side=$1 kind=$2 endpoint=client creds
	shift 2
	[ "$side" = src ] || endpoint=server
	creds="tls-creds-$kind,id=tls0,dir=$dir/$kind-$side,endpoint=$endpoint"
	[ "$kind" != x509 ] || creds+=,verify-peer=on
	rm -f "$side.qmp"
	"${qemu[@]}" -S -accel tcg -machine pc,memory-backend=ram -nodefaults -no-user-config -display none \
		-object "memory-backend-file,id=ram,size=${size}M,mem-path=$side.ram,share=on" -m $size -object "$creds" \
		-qmp "unix:$side.qmp,server=on,wait=off" "$@" >"qemu-$side.log" 2>&1 &
	vm[$side]=$!
	eventually "the QEMU of $side listens" test -S "$side.qmp" -o ! -d "/proc/${vm[$side]}"
	for command in 'migrate-set-parameters {"tls-creds":"tls0","multifd-channels":2}' \
		'migrate-set-capabilities {"capabilities":[{"capability":"multifd","state":true},{"capability":"events","state":true}]}'; do
		# shellcheck disable=SC2086
		qmp $side $command
	done
}
qmp() { limited "$root/examples/qmp" "$1.qmp" "${@:2}" >answer 2>&1 || fail "the QEMU of $1, at $2: $(cat answer "qemu-$1.log")"; }

# qemus_move KIND
qemus_move() {
	cp marked src.ram
	truncate -s 0 dst.ram
	truncate -s "${size}M" dst.ram
	boot dst "$1" -incoming defer
	boot src "$1"
	qmp dst migrate-incoming '{"uri":"tcp:127.0.0.1:0"}'
	qmp dst query-migrate
	port=$(sed -nE 's/.*"port": "([0-9]+)".*/\1/p' answer)
	[ -n "$port" ] || fail "the QEMU does not say where it listens: $(cat answer)"
	qmp src migrate "{\"uri\":\"tcp:127.0.0.1:$port\"}" --completed
	for side in src dst; do
		qmp $side quit
		wait "${vm[$side]}" || fail "the QEMU of $side has failed: $(cat qemu-$side.log)"
	done
	# A machine's reset writes to a page of it, on either side.
	same src.ram dst.ram
	[ "$(cmp -l marked dst.ram | wc -l)" -lt 65536 ] || fail "what arrived is not what was sent"
}

# daemons_move NAME DESTINATION-OPTION SOURCE-OPTION
daemons_move() {
	migfs dst -o "listen=tcp:127.0.0.1:0,$2"
	uri=$(sed -n 's/^migfs: listening at //p' dst.log | tail -n 1)
	migfs src -o "$3"
	outgoing "$1"
	tell "src/$1" start
	overwrite marked "src/$1/ram" bs=1M
	tell "src/$1" complete
	same marked "dst/$1/ram"
	expect_status "src/$1" tls = on
	unmount src
	unmount dst
}

say "two daemons"
daemons_move x509 "tls=$dir/x509-dst" "tls=$dir/x509-src"
daemons_move psk "tls-psk=$dir/psk-dst/keys.psk" "tls-psk=$dir/psk-src/keys.psk"

# The QEMUs are the same whatever this migfs is made of.
[ -z "$MIGFS_SLOW" ] || exit 0
qemu=(qemu-system-x86_64)
say "two QEMUs: $("${qemu[@]}" --version | head -n 1)"
qemus_move x509
qemus_move psk
if why=$( (newer_qemu) 2>&1); then
	newer_qemu
	say "and $(head -n 1 qemu.version)"
	qemus_move x509
	qemus_move psk
else
	say "$why"
fi
