#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# A sparse image through cp, which truncates what it writes to, with devices through cp too.
. "$(dirname "$0")/functions.sh"

copy() {
	say "$2 channels"
	outgoing "$1" "$2"
	truncate -s "$size" "src/$1/ram"
	tell "src/$1" start
	write_devices "src/$1"
	limited cp image "src/$1/ram"
	limited cp device4 "src/$1/device-state/copied"
	await_devices
	tell "src/$1" sync
	same image "dst/$1/ram"
	same device4 "dst/$1/device-state/copied"
	compare_devices "dst/$1"
	tell "src/$1" complete
	reaches "dst/$1" completed
	same image "dst/$1/ram"
	compare_devices "dst/$1"
	forget "src/$1" "dst/$1"
}

pair
make_devices
size=$(scaled 150000001 16000001)
random image "$size"
fallocate -p -o 5000000 -l 3000000 image
fallocate -p -o $((size - 700000)) -l 700000 image
for channels in 1 2 7 16; do
	copy "image$channels" $channels
done
