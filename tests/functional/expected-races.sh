#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# One name that somebody makes, prepares, starts and removes while two peers come under it, and others read and wait:
# each has its one role, nobody hangs, and nothing is left.
. "$(dirname "$0")/functions.sh"

pair -o timeout=20
migfs third
rounds=$(scaled 60 25)

# What a loop does may fail in any way, but must end.
try() {
	attempt "$@"
	[ "$got" != "no answer in $limit s" ] || fail "$*: $got"
}

user() {
	local i
	for ((i = 0; i < rounds; i++)); do
		try mkdir dst/vm
		try open dst/vm/device-state/disk wronly,creat
		try truncate dst/vm/ram 1000000
		try write dst/vm/timeout $((10 + i % 5))
		[ $((i % 4)) != 1 ] || try write dst/vm/uri unix:$dir/nobody
		[ $((i % 8)) != 1 ] || try write dst/vm/control start
		[ $((i % 4)) != 2 ] || try rmdir dst/vm
		[ $((i % 8)) != 3 ] || try write dst/vm/control cancel
		try rmdir dst/vm
	done
}

peer() {
	local i
	for ((i = 0; i < rounds; i++)); do
		try mkdir "$1/vm"
		try write "$1/vm/uri" "$uri"
		try write "$1/vm/control" start
		if [ "$got" = ok ]; then
			try pwrite "$1/vm/ram" 0 100000
			try open "$1/vm/device-state/disk" wronly,creat
			try pwrite "$1/vm/device-state/disk" 0 1000
			try write "$1/vm/control" "$([ $((i % 3)) = 0 ] && echo cancel || echo complete)"
			echo "$got" >>"$1.started"
		fi
		try write "$1/vm/control" cancel
		try rmdir "$1/vm"
	done
}

reader() {
	local text
	while [ ! -e done ]; do
		text=$(cat dst/vm/status 2>/dev/null) || true
		case $(echo "$text" | sed -n 's/^status //p; s/^role //p' | tr '\n' ' ') in
		'' | 'none none ' | 'none outgoing ' | 'setup outgoing ' | 'failed outgoing ' | 'cancelled outgoing ') ;;
		'active incoming ' | 'completed incoming ' | 'failed incoming ' | 'cancelled incoming ') ;;
		*) fail "status says $text" ;;
		esac
		ls -lR dst >/dev/null 2>&1 || true
		cat dst/vm/{digest,received,error,uri,timeout} >/dev/null 2>&1 || true
		try read dst/vm/ram 0 1000
		try read dst/vm/wait 0 1000 nonblock
		try read dst/vm/device-state/disk 0 1000 nonblock
	done
}

waiter() {
	while [ ! -e done ]; do
		try read "dst/vm/$1" 0 1000
		[[ $got =~ ^(E|x|completed|failed:|cancelled:|end) ]] || fail "$1: $got"
	done
}

# The daemons have all that they keep once something has worked.
outgoing vm
tell src/vm start
tell src/vm complete
forget src/vm dst/vm
remember_resources
reader & loops=($!)
waiter wait & loops+=($!)
waiter device-state/disk & loops+=($!)
user & workers=($!)
peer src & workers+=($!)
peer third & workers+=($!)
for pid in "${workers[@]}"; do wait "$pid" || fail "a loop has failed"; done
touch done
# Those who wait are told when it goes away.
attempt rmdir dst/vm
attempt write dst/vm/control cancel
attempt rmdir dst/vm
for pid in "${loops[@]}"; do wait "$pid" || fail "a reader has failed"; done
say "$(cat src.started third.started | sort | uniq -c | tr '\n' ' ')"
[ -s src.started ] || fail "no peer ever came through"
emptied() {
	shopt -s nullglob
	for migration in {dst,src,third}/vm; do
		[ ! -e "$migration" ] || "$attempt" rmdir "$migration" >rmdir.log || true
	done
	set -- dst/* src/* third/*
	[ $# = 0 ]
}
eventually "nothing is left" emptied
# The kernel may remember what somebody looked up while it was removed.
if [ -w /proc/sys/vm/drop_caches ]; then
	forgotten() {
		echo 2 >/proc/sys/vm/drop_caches
		has_resources dst "${before[dst]}"
	}
	end=$((SECONDS + limit))
	until forgotten; do
		[ $SECONDS -lt $end ] || { ls -l /proc/"${daemon[dst]}"/fd; fail "something is held: there were ${before[dst]}"; }
		sleep 0.1
	done
fi
