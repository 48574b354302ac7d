#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Twenty migrations at once between one pair of daemons: each arrives as it was sent.
. "$(dirname "$0")/functions.sh"

pair
size=$(scaled 24M 4M)

migrate() {
	local name=vm$1
	random "$name.image" "$size"
	random "$name.device" $((1 + RANDOM * 50))
	outgoing "$name" $((1 + $1 % 5))
	truncate -s "$size" "src/$name/ram"
	tell "src/$name" start
	overwrite "$name.image" "src/$name/ram" bs=1M &
	local writer=$!
	limited cp "$name.device" "src/$name/device-state/device"
	wait $writer
	# Half of it once more, so that all of them are there at the same time.
	overwrite "$name.image" "src/$name/ram" bs=64K count=100
	tell "src/$name" sync
	same "$name.image" "dst/$name/ram"
	tell "src/$name" complete
	same "$name.image" "dst/$name/ram"
	same "$name.device" "dst/$name/device-state/device"
	rm "$name.image" "$name.device"
}

remember_resources
share 20 migrate {1..20}
for i in {1..20}; do
	reaches "src/vm$i" completed
	reaches "dst/vm$i" completed
done
[ "$(ls -d dst/* | wc -l)" = 20 ]
forget src/* dst/*
same_resources
