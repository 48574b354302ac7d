#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Every command, and writing, truncating, punching, making devices, changing settings and rmdir, in every state.
. "$(dirname "$0")/functions.sh"

pair -o timeout=100
unmount src
migfs src -o timeout=100

commands=(start flush sync 'sync ram' stop complete)

# all ERRNO...: what each of the commands says, and then: a write, a hole, a truncation, a new device, a setting
all() {
	local i errno
	say "$name: $*"
	for ((i = 0; i < ${#commands[@]}; i++)); do
		errno=$1
		shift
		case $errno in
		-) ;;
		ok) expect ok write "src/$name/control" "${commands[i]}" ;;
		*) refused "$errno" "src/$name/error" . write "src/$name/control" "${commands[i]}" ;;
		esac
	done
	check "$1" pwrite "src/$name/ram" 0 5000
	check "$2" fallocate "src/$name/ram" 0 5000 punch
	check "$3" truncate "src/$name/ram" 7000
	check "$4" open "src/$name/device-state/new$((++n))" wronly,creat
	check "$5" write "src/$name/timeout" 50
}
check() {
	case $1 in
	-) ;;
	ok) expect "$@" ;;
	*) refused "$1" "src/$name/error" . "${@:2}" ;;
	esac
}
rmdir_says() {
	if [ "$1" = ok ]; then expect ok rmdir "src/$name"; else refused "$1" "src/$name/error" . rmdir "src/$name"; fi
}
cancel_says() { check "$1" write "src/$name/control" cancel; }
n=0
state_is() { [ "$(status "src/$name" status)" = "$1" ] || fail "$name is $(status "src/$name" status)"; }

#    start    flush    sync     sync ram stop     complete   write    punch    truncate device   setting
name=none
expect ok mkdir src/none
all  EINVAL   ENOTCONN ENOTCONN ENOTCONN ENOTCONN ENOTCONN   ENOTCONN ENOTCONN ok       ok       ok
cancel_says ENOTCONN
state_is none
rmdir_says ok

name=setup
stop_migfs dst
outgoing setup
command_in_background src/setup start
reaches src/setup setup
all  EBUSY    ENOTCONN ENOTCONN ENOTCONN ENOTCONN ENOTCONN   ENOTCONN ENOTCONN ENOTCONN ENOTCONN EBUSY
rmdir_says EBUSY
state_is setup
cancel_says ok
state_is cancelled
command_says ECANCELED
continue_migfs dst
# It was cancelled before it was active.
all  -        ECANCELED ECANCELED ECANCELED ECANCELED ECANCELED   ECANCELED ECANCELED ok ok      ok
cancel_says ok
state_is cancelled
rmdir_says ok

name=active
outgoing active
expect ok truncate src/active/ram 10000
tell src/active start
all  EBUSY    ok       ok       ok       ok       -          ok       ok       ok       ok       EBUSY
state_is active
rmdir_says EBUSY
state_is active

name=completing
outgoing completing
tell src/completing start
stop_migfs dst
command_in_background src/completing complete
reaches src/completing completing
all  EBUSY    EBUSY    EBUSY    EBUSY    EBUSY    EBUSY      EBUSY    EBUSY    EBUSY    EBUSY    EBUSY
rmdir_says EBUSY
state_is completing
continue_migfs dst
command_says ok

name=completing
state_is completed
all  EBUSY    EBUSY    EBUSY    EBUSY    EBUSY    EBUSY      EBUSY    EBUSY    EBUSY    EBUSY    EBUSY
cancel_says EBUSY
state_is completed
rmdir_says ok

name=failed
outgoing failed
tell src/failed start
reaches dst/failed active
kill_migfs dst
reaches src/failed failed
all  EBUSY ECONNRESET ECONNRESET ECONNRESET ECONNRESET ECONNRESET ECONNRESET ECONNRESET ECONNRESET ECONNRESET EBUSY
cancel_says EBUSY
state_is failed
rmdir_says ok
fusermount3 -u dst

# The other one has failed too.
name=active
reaches src/active failed
rmdir_says ok

# It has failed before it was active: everything can be tried again.
name=refused
outgoing refused
all  ECONNREFUSED ECONNREFUSED ECONNREFUSED ECONNREFUSED ECONNREFUSED ECONNREFUSED ECONNREFUSED ECONNREFUSED ok ok ok
state_is failed
cancel_says EBUSY
migfs dst -o "listen=$uri"
tell src/refused start
state_is active

name=refused
cancel_says ok
state_is cancelled
all  EBUSY    ECANCELED ECANCELED ECANCELED ECANCELED ECANCELED ECANCELED ECANCELED ECANCELED ECANCELED EBUSY
cancel_says ok
reaches dst/refused cancelled failed
rmdir_says ok
forget dst/refused
