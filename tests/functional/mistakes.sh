#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What users get wrong: names, commands, settings, sizes. Each gets the errno of migfs(5) and a sentence.
. "$(dirname "$0")/functions.sh"

pair -o max-ram=64M,max-device=1M,max-devices=3
long=$(printf 'x%.0s' {1..300})
path=$(printf '/%.0s' {1..200})

say "names"
root_refuses() { refused "$1" src/.error "$2" "${@:3}"; }
root_refuses EINVAL 'does not begin with a dot' mkdir src/.x
root_refuses EINVAL 'does not begin with a dot' mkdir src/...
root_refuses ENAMETOOLONG 'at most 255' mkdir "src/$long"
root_refuses EINVAL 'control characters' mkdir $'src/a\nb'
root_refuses EPERM 'mkdir makes a migration' open src/file wronly,creat
expect ENOENT mkdir src/a/b
expect EEXIST mkdir src
expect EEXIST mkdir src/.error
expect ENOENT rmdir src/nothing
expect ok mkdir "src/${long:0:255}"
expect ok rmdir "src/${long:0:255}"
expect ok mkdir 'src/a name, "quoted" \ and ünïcode'
expect ok rmdir 'src/a name, "quoted" \ and ünïcode'
expect ok mkdir src/vm
expect EEXIST mkdir src/vm
refuses() { refused "$1" src/vm/error "$2" "${@:3}"; }
refuses EPERM 'has the files that it has' mkdir src/vm/b
refuses EPERM 'keeps the files' rmdir src/vm/device-state
refuses EPERM 'rmdir ends a migration' unlink src/vm/ram
refuses EPERM 'renamed' rename src/vm/ram src/vm/rom
refuses EPERM 'device-state/ only' open src/vm/file wronly,creat
expect EPERM rename src/vm src/other
refuses EINVAL "no control" open $'src/vm/device-state/.x\n' wronly,creat
refuses ENAMETOOLONG 'at most 255' open "src/vm/device-state/$long" wronly,creat
refuses EPERM 'has the files' mkdir src/vm/device-state/dir
expect ENOENT open src/vm/device-state/nothing wronly

say "commands"
refuses EINVAL "unknown command 'strat'" write src/vm/control strat
refuses EINVAL "unknown command ''" write src/vm/control $'\n'
refuses EINVAL "unknown command 'START'" write src/vm/control START
refuses EINVAL 'stands alone' write src/vm/control 'start now'
refuses EINVAL 'stands alone' write src/vm/control 'complete ram'
refuses EINVAL 'expected ram or device-state/DEV' write src/vm/control 'sync rom'
refuses EINVAL 'more than one line' write src/vm/control $'sync\nsync'
refuses EINVAL 'control characters' write src/vm/control $'sync\x01'
refuses EINVAL 'too long' pwrite src/vm/control 0 1048576
refuses EINVAL 'too long' pwrite src/vm/control 0 3000000
refuses EINVAL 'too long' pwrite src/vm/control 0 $((64 << 10))
refuses EINVAL 'too long' write src/vm/control "sync device-state/$long$long"
refuses ENOENT "there is no 'device-state/nothing'" write src/vm/control 'sync device-state/nothing'
refuses EINVAL 'Write a URI' write src/vm/control start

say "settings"
for value in 0 -1 1000000000 99999999999999999999 x '' 2x 0x10 129 1.5; do
	refuses EINVAL 'not a number of channels' write src/vm/channels "$value "
done
expect ok write src/vm/channels ' 128 '
[ "$(cat src/vm/channels)" = 128 ]
for value in tcp tcp: tcp:host tcp:host: tcp:host:99999 tcp:host:-1 tcp:::1:5 tcp:[::1] tcp:[::1:5 unix: unix:relative \
	http://host:80 host:80 faulty: faulty:cut=1 faulty:cut=x:tcp:host:1 faulty:break=1:tcp:host:1 \
	faulty:cut=1:faulty:cut=1:tcp:host:1 'tcp:a host:1' "unix:$path" "tcp:$long:1" "$long$long"; do
	attempt write src/vm/uri "$value"
	[ "$got" = EINVAL ] || fail "uri '$value': $got"
	[ -n "$(cat src/vm/error)" ]
done
[ -z "$(cat src/vm/uri)" ] || fail "a bad URI was taken"
refuses EINVAL 'neither auto nor on nor off' write src/vm/checksum maybe
refuses EINVAL 'neither on nor off' write src/vm/zero-page-detection 1
refuses EINVAL 'neither none nor zstd' write src/vm/compression gzip
refuses EINVAL 'not a level' write src/vm/zstd-level 1000
refuses EINVAL 'not a number of seconds' write src/vm/timeout 0
refuses EINVAL 'not a number of channels' write src/vm/device-channels -1
refuses EINVAL 'too long' pwrite src/vm/uri 0 1048576
for file in status status.json error; do
	attempt write src/vm/$file x
	[[ $got =~ ^(EACCES|EPERM)$ ]] || fail "$file: $got"
done

say "where nobody is"
expect ok write src/vm/channels 2
expect ok write src/vm/uri "unix:$dir/nobody"
refuses ECONNREFUSED 'nobody' write src/vm/control start
[ "$(status src/vm status)" = failed ]
expect ok write src/vm/uri tcp:127.0.0.1:1
refuses ECONNREFUSED 'Connection refused' write src/vm/control start
expect ok write src/vm/uri tcp:nowhere.invalid:4444
refuses EHOSTUNREACH 'nowhere.invalid' write src/vm/control start
expect ok write src/vm/uri rdma:127.0.0.1:1
refuses EOPNOTSUPP 'RDMA|rdma' write src/vm/control start

say "sizes"
expect ok write src/vm/uri "$uri"
expect ok truncate src/vm/ram $((65 << 20))
refuses EDQUOT 'allows 67108864' write src/vm/control start
# Why it could not start stays in `error`.
root_refuses EFBIG '^vm: no file has more' truncate src/vm/ram $((1 << 50))
grep -q 'allows 67108864' src/vm/error
expect ok truncate src/vm/ram $((8 << 20))
tell src/vm start
refuses EFBIG 'declared to have 8388608' pwrite src/vm/ram $((8 << 20)) 1
refuses EFBIG 'declared to have 8388608' pwrite src/vm/ram $(((8 << 20) - 1)) 2
refuses EFBIG 'declared' truncate src/vm/ram $(((8 << 20) + 1))
refuses EFBIG 'no file has more' pwrite src/vm/ram $((1 << 50)) 1
expect ok pwrite src/vm/ram $(((8 << 20) - 1)) 1
expect EFBIG fallocate src/vm/ram $((8 << 20)) 4096
# The kernel does not ask.
expect EOPNOTSUPP fallocate src/vm/ram 0 4096 collapse
expect ok open src/vm/device-state/one wronly,creat
expect EEXIST open src/vm/device-state/one wronly,creat,excl
refuses EDQUOT 'allows 1048576' pwrite src/vm/device-state/one $((1 << 20)) 1
refuses EDQUOT 'allows 1048576' truncate src/vm/device-state/one $(((1 << 20) + 1))
expect ok open src/vm/device-state/two wronly,creat
expect ok open src/vm/device-state/three wronly,creat
refuses EDQUOT '3 devices' open src/vm/device-state/four wronly,creat

say "a migration that runs"
refuses EBUSY "write 'cancel' to control first" rmdir src/vm
[ "$(status src/vm status)" = active ]
refuses EBUSY 'cannot be changed' write src/vm/channels 4
refuses EBUSY 'cannot be changed' write src/vm/uri "$uri"
expect EOPNOTSUPP read src/vm/ram 0 10
expect EOPNOTSUPP read src/vm/device-state/one 0 10
refused EBUSY dst/vm/error "write 'cancel' to control first" rmdir dst/vm
for command in start sync flush stop complete; do
	refused EOPNOTSUPP dst/vm/error 'for the source' write dst/vm/control $command
done
refused EBUSY dst/vm/error 'when the migration has completed' open dst/vm/ram wronly
refused EROFS dst/vm/error 'size of an incoming file' truncate dst/vm/ram 1
attempt open dst/vm/device-state/new wronly,creat
[ "$got" = EROFS ] || fail "a device at the destination: $got"
expect ENOENT open dst/vm/channels rdonly
[ "$(status dst/vm status)" = active ]

say "and none of it has disturbed it"
tell src/vm complete
[ "$(limited tail -c 1 dst/vm/ram)" = x ]
refused EROFS dst/vm/error 'size of an incoming file' truncate dst/vm/ram 1
refused EFBIG dst/vm/error 'does not grow' pwrite dst/vm/ram $((8 << 20)) 1
forget src/vm dst/vm

say "the same name twice"
outgoing vm
tell src/vm start
migfs third
expect ok mkdir third/vm
expect ok write third/vm/uri "$uri"
refused EEXIST third/vm/error 'exists already: it is active' write third/vm/control start
tell src/vm complete
refused EEXIST third/vm/error 'exists already: it is completed' write third/vm/control start
forget dst/vm
tell third/vm start
tell third/vm complete
forget third/vm dst/vm src/vm

say "a name that is taken by the other role"
expect ok mkdir dst/vm
expect ok write dst/vm/uri "$uri"
outgoing vm
refused EEXIST src/vm/error 'exists already' write src/vm/control start
forget src/vm dst/vm
