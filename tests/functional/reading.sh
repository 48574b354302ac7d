#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Whoever only looks leaves no sentence: why a migration has failed or was cancelled stands in `error` whatever is read, by
# whom, and on which side; and what is refused afterwards does not replace it either.
. "$(dirname "$0")/functions.sh"
requires grep find

# Whoever may look: the owner, and where there is one, a user who may read no more than others.
readers=(env)
options=()
if [ "$(id -u)" = 0 ] && command -v setpriv >/dev/null; then
	readers+=("setpriv --reuid=65534 --regid=65534 --clear-groups")
	options=(-o allow_other)
fi
uri=unix:$dir/socket
migfs dst -o "listen=$uri,max-ram=1G" "${options[@]}"
migfs src "${options[@]}"

# look MOUNT NAME: every file, as every reader; it may take an error, and no more
look() {
	local reader file
	for reader in "${readers[@]}"; do
		# shellcheck disable=SC2086
		limited $reader grep -r . "$1/$2" >looked 2>&1 || true
		# shellcheck disable=SC2086
		limited $reader ls -lR "$1" >looked 2>&1 || true
		for file in "$1/$2"/* "$1/$2"/device-state/* "$1/$2/nothing"; do
			# shellcheck disable=SC2086
			limited $reader "$attempt" read "$file" 0 4096 nonblock >/dev/null
			# shellcheck disable=SC2086
			limited $reader "$attempt" seek data "$file" 0 >/dev/null
			# shellcheck disable=SC2086
			limited $reader "$attempt" stat "$file" >/dev/null
		done
	done
}
# keeps MOUNT NAME PATTERN COMMAND...: `error` and `.error` say what they did, and that is PATTERN
keeps() {
	local mount=$1 name=$2 reason root
	reason=$(limited cat "$mount/$name/error")
	[[ $reason =~ $3 ]] || fail "$mount/$name/error says '$reason', not '$3'"
	root=$(limited cat "$mount/.error")
	"${@:4}"
	[ "$(limited cat "$mount/$name/error")" = "$reason" ] ||
		fail "$mount/$name/error said '$reason', and now '$(cat "$mount/$name/error")'"
	[ "$(limited cat "$mount/.error")" = "$root" ] || fail "$mount/.error said '$root', and now '$(cat "$mount/.error")'"
}
active() {
	outgoing "$1"
	expect ok truncate "src/$1/ram" $((1 << 20))
	tell "src/$1" start
	expect ok pwrite "src/$1/ram" 0 100000
}

say "before the start, and while it runs"
outgoing fresh
keeps src fresh '^$' look src fresh
active running
expect ok open src/running/device-state/dev wronly,creat
refused EBUSY src/running/error 'cannot be changed' write src/running/channels 3
keeps src running 'cannot be changed' look src running
keeps dst running '^$' look dst running

say "a start that was refused"
outgoing refused 2 "unix:$dir/nobody"
expect ECONNREFUSED write src/refused/control start
keeps src refused 'nobody' look src refused

say "cancelled"
tell src/running cancel
reaches dst/running cancelled
keeps src running 'cancelled at the source' look src running
keeps dst running 'cancelled at the source' look dst running

say "failed at both ends"
outgoing damaged 1 "faulty:corrupt=70000+only=1:$uri"
expect ok truncate src/damaged/ram $((1 << 20))
tell src/damaged start
expect ok open src/damaged/device-state/dev wronly,creat
attempt pwrite src/damaged/ram 0 200000
reaches src/damaged failed
reaches dst/damaged failed
keeps src damaged 'damaged' look src damaged
keeps dst damaged 'damaged' look dst damaged

say "what is refused afterwards"
# later MOUNT NAME ERRNO OPERATION...: the reason stays, and the sentence stands in .error with the migration's name
later() {
	local mount=$1 name=$2 reason
	reason=$(cat "$mount/$name/error")
	refused "$3" "$mount/.error" "^$name: ." "${@:4}"
	[ "$(cat "$mount/$name/error")" = "$reason" ] || fail "$mount/$name/error said '$reason', and now '$(cat "$mount/$name/error")'"
}
later src damaged EBUSY write src/damaged/control start
later src damaged EBUSY write src/damaged/control cancel
later src damaged EBUSY write src/damaged/channels 5
later src damaged EINVAL write src/damaged/control strat
later src running EBUSY write src/running/uri "$uri"
later dst damaged EOPNOTSUPP write dst/damaged/control sync
later dst damaged EBUSY open dst/damaged/ram wronly
later src refused EINVAL write src/refused/channels 0
keeps src damaged damaged expect EPROTO write src/damaged/control sync
keeps src damaged damaged expect EPROTO fsync src/damaged/ram
keeps src damaged damaged expect EPROTO pwrite src/damaged/ram 0 10

say "and a start clears the way for the next one"
expect ok write src/refused/uri "unix:$dir/somebody-else"
refused ECONNREFUSED src/refused/error 'somebody-else' write src/refused/control start
expect ok write src/refused/uri "$uri"
tell src/refused start
refused EBUSY src/refused/error 'cannot be changed' write src/refused/channels 3
