#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The command line: help, version, mistakes, and the exit status of each: 0, 1 when something failed, 2 for a mistake.
. "$(dirname "$0")/functions.sh"

mkdir mnt
touch file

# gives STATUS PATTERN ARGUMENT...: what migfs says and ends with
gives() {
	local want=$1 pattern=$2 got=0
	shift 2
	limited "$MIGFS" "$@" >said 2>&1 || got=$?
	[ $got = "$want" ] || fail "migfs $*: status $got, not $want: $(cat said)"
	grep -qE -- "$pattern" said || fail "migfs $*: says '$(cat said)', not '$pattern'"
}

gives 0 '^usage: .*MOUNTPOINT' -h
gives 0 'listen=URI' --help
gives 0 '^migfs [0-9]+\.[0-9]+' -V
gives 0 'protocol [0-9]' --version

gives 2 'where should it be mounted'
gives 2 'where should it be mounted' -f
gives 2 'nothing' -f nothing
gives 2 'not a directory' -f file
gives 2 'too much' -f a b c
gives 2 'option' -f -o nonsense=1 mnt
gives 2 'option' -f --nonsense mnt
gives 2 'not a URI' -f -o listen=here mnt
gives 2 'expected a port' -f -o listen=tcp:host: mnt
gives 2 'not a URI' -f -o listen= mnt
gives 2 'backing: nowhere' -f -o backing=nowhere mnt
gives 2 'not a directory' -f -o backing=file mnt
gives 2 'hugepages=3M: no, yes, or' -f -o hugepages=3M mnt
gives 2 'hugepages.*size' -f -o hugepages=maybe mnt
gives 2 'exclude each other' -f -o hugepages=2M,backing=. mnt
gives 2 "'nosuchuser' is no user" -f -o uid=nosuchuser mnt
gives 2 "'4294967295' is no group" -f -o gid=4294967295 mnt
for value in 8 1000 -1 '' 022x; do gives 2 'umask=.*octal' -f -o "umask=$value" mnt; done
for option in max-memory max-ram max-device max-devices max-migrations write-behind timeout; do
	for value in x -1 1X 1MM 99999999999999999999999 ''; do
		gives 2 "$option.*(size|number)" -f -o "$option=$value" mnt
	done
done
gives 2 'timeout is from 1 to 3600' -f -o timeout=0 mnt
gives 2 'max-migrations is from 1' -f -o max-migrations=0 mnt

gives 1 'cannot listen' -f -o "listen=unix:$dir/no/such/place" mnt
gives 1 'cannot listen' -o "listen=unix:$dir/no/such/place" mnt
gives 1 'cannot listen' -f -o listen=tcp:203.0.113.1:4444,insecure mnt
gives 1 '' -o listen=rdma:127.0.0.1:4444 mnt
! is_mounted mnt || fail "it is mounted after a failure"

# Sizes with units are what they say.
migfs mnt -o "max-memory=1G,max-ram=3M,max-device=4K,max-devices=2,write-behind=512k,timeout=7,listen=unix:$dir/socket"
expect ok mkdir mnt/vm
[ "$(cat mnt/vm/timeout)" = 7 ]
expect ok rmdir mnt/vm
[ $(($(stat -f -c '%b * %S' mnt))) = $((1 << 30)) ] || fail "statfs says $(stat -f -c '%b * %S' mnt)"
migfs src
uri=unix:$dir/socket
outgoing vm 1
truncate -s 3145729 src/vm/ram
refused EDQUOT src/vm/error 'allows 3145728' write src/vm/control start
