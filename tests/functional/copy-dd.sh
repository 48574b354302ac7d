#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# An image through dd, with six devices written at the same time, over 1, 2, 7 and 16 channels.
. "$(dirname "$0")/functions.sh"

# copy NAME CHANNELS SIZE BLOCK-SIZE
copy() {
	say "$2 channels, $3 bytes, blocks of $4"
	random image "$3"
	outgoing "$1" "$2"
	truncate -s "$3" "src/$1/ram"
	tell "src/$1" start
	write_devices "src/$1"
	overwrite image "src/$1/ram" bs="$4"
	await_devices
	tell "src/$1" sync
	same image "dst/$1/ram"
	compare_devices "dst/$1"
	tell "src/$1" complete
	reaches "src/$1" completed
	reaches "dst/$1" completed
	same image "dst/$1/ram"
	compare_devices "dst/$1"
	forget "src/$1" "dst/$1"
}

pair
make_devices
copy one 1 "$(scaled 200M 16M)" 1M
copy two 2 "$(scaled 100M 8M)" 64K
copy seven 7 "$(scaled 1G 48M)" 1M
copy sixteen 16 "$(scaled 200M 24M)" 5000001
