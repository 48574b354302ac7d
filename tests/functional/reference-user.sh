#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# `ram-source` of a mount of root's that others may use: an ordinary user can name what he could open, and nothing else, and
# a refusal leaves the daemon as it was.
. "$(dirname "$0")/functions.sh"
requires_root
requires setpriv unshare
helper reference && reference=$helper

# A user and groups that nobody has.
user=64321 group=64322 shared=64323
! getent passwd $user >/dev/null && ! getent group $group >/dev/null || skip "there is a user $user or a group $group"
as() { limited setpriv --reuid=$user --regid=$group --clear-groups "$@"; }

uri=unix:$dir/socket
migfs dst -o "listen=$uri"
migfs src -o allow_other
mkdir open closed
chmod 755 open
chmod 700 closed
random open/root 300000
cp open/root closed/readable
cp open/root open/group
cp open/root open/own
cp open/root open/everybody
chmod 600 open/root
chmod 644 closed/readable open/everybody
chown 0:$shared open/group
chmod 640 open/group
chown $user:$group open/own
chmod 600 open/own
mkdir work
chown $user:$group work
ln -s ../open/root work/link
ln -s /proc/self/root work/magic
ln -s "$dir/open/own" work/own

vm=$dir/src/vm
# The migration is the user's. Only the owner of the mount's root can make one, so he is lent the right.
make_users() {
	limited setpriv --reuid=$user --regid=$group --clear-groups --inh-caps=+dac_override --ambient-caps=+dac_override \
		mkdir src/vm
	[ "$(stat -c %u:%g src/vm/ram-source)" = $user:$group ]
}
# names ERRNO|ok TEXT [COMMAND...]: what a write of the user's says; an error has a sentence. (Any errno: `refused`.)
names() {
	local want=$1 text=$2 got before
	shift 2
	before=$(count_fds src)
	got=$("${@:-as}" "$attempt" write "$vm/ram-source" "$text")
	if [ "$want" = refused ]; then [ "$got" != ok ]; else [ "$got" = "$want" ]; fi || fail "$text: expected $want, got $got"
	if [ "$got" != ok ]; then
		[ -n "$(cat "$vm/error")" ] || fail "$text: no sentence"
		[ "$(count_fds src)" = "$before" ] || fail "$text: a descriptor is left"
		unharmed
	else
		[ "$(cat "$vm/ram-source")" = "$text" ]
		expect ok write "$vm/ram-source" none
	fi
}
# All threads of the daemon have the rights of the first one, and can use them.
rights() { grep -hE '^(Uid|Gid|Groups|CapEff|CapPrm):' "$1"; }
unharmed() {
	local task first
	first=$(rights "/proc/${daemon[src]}/status")
	for task in "/proc/${daemon[src]}"/task/*/status; do
		[ "$(rights "$task" 2>/dev/null || echo "$first")" = "$first" ] || fail "a thread has other rights: $(rights "$task")"
	done
	expect ok write "$vm/ram-source" "$dir/closed/readable"
	expect ok write "$vm/ram-source" none
}

make_users
say "what he may read"
names ok "$dir/open/own"
names ok "$dir/open/everybody"
names ok "$dir/work/own"
say "what he may not"
names EPERM "$dir/open/root"
names EPERM "$dir/closed/readable"
names EPERM "$dir/closed/missing"
names EPERM "$dir/work/link"
names EPERM /etc/shadow
(cd work && names EPERM link && names EPERM ../open/root && names EPERM magic/"$dir"/open/own && names ok ../open/own)
say "in a directory that he may not search"
(cd closed && names EPERM readable && names EPERM ./readable && names EPERM ../closed/readable)
say "through /proc"
for path in self/fd/0 self/fd/1 self/root/etc/shadow self/cwd/open/root "self/root$dir/open/own" thread-self/fd/0 \
	"${daemon[src]}/root$dir/open/root" "${daemon[src]}/fd/0" "1/root$dir/open/own" 1/cwd/etc/passwd "$$/cwd/open/own"; do
	names EPERM "/proc/$path"
done
for path in self/mem self/maps self/environ thread-self/mem "${daemon[src]}/mem" "${daemon[src]}/environ" 1/mem 1/maps kcore \
	kallsyms self/pagemap "${daemon[src]}/status"; do
	names refused "/proc/$path"
done
say "groups"
names EPERM "$dir/open/group"
with_group() { limited setpriv --reuid=$user --regid=$group --groups="$1" "${@:2}"; }
names ok "$dir/open/group" with_group $shared
names ok "$dir/open/group" with_group 1,2,$shared,4
names EPERM "$dir/open/group" with_group 1,2,4
names EPERM "$dir/open/root" with_group 0
as_group() { limited setpriv --reuid=$user --regid=$shared --clear-groups "$@"; }
names ok "$dir/open/group" as_group

say "descriptors"
for n in 0 3 4 5 6 7 50; do
	[ ! -e "/proc/${daemon[src]}/fd/$n" ] || held=$n
	names EINVAL fd:$((n + 900))
done
names refused "fd:$held"
# The one that writes is 3, which is no regular file's.
names refused fd:3
gives() { # WANT OPERATION...
	local want=$1 got
	shift
	got=$(as "$reference" "$@") || fail "reference $*"
	[ "$got" = "$want" ] || fail "reference $*: expected $want, got $got: $(cat src/vm/error)"
	unharmed
}
gives ok give rdonly "$dir/open/own" src/vm/ram-source
gives EPERM give wronly "$dir/open/own" src/vm/ram-source
gives EPERM give path "$dir/open/root" src/vm/ram-source
gives ok thread "$dir/open/everybody" src/vm/ram-source
# What was opened for him he has.
exec {fd}<open/root
names ok "fd:$fd"
exec {fd}<&-

say "rights that are not his"
gives EPERM hidden "$dir/open/own" src/vm/ram-source
grep -q 'may not look into' src/vm/error
lends() { # WANT OPENER WRITER TEXT: UID:GID each
	local got
	got=$(limited "$reference" lend "${2%:*}" "${2#*:}" "${3%:*}" "${3#*:}" src/vm/ram-source "$4")
	[ "$got" = "$1" ] || fail "$2 lends to $3 for $4: expected $1, got $got"
	unharmed
}
# What a setuid or setgid program of somebody's choice prints, for instance.
lends EPERM $user:$group 0:0 "$dir/open/root"
lends EPERM $user:$group 0:0 "$dir/open/own"
lends EPERM $user:$group $user:$shared "$dir/open/group"
exec {fd}<open/root
lends EPERM $user:$group 0:0 "fd:$fd"
exec {fd}<&-
lends ok $user:$group $user:$group "$dir/open/own"
lends ok 0:0 0:0 "$dir/open/root"
lends EPERM 0:0 $user:$group "$dir/open/root"
lends ok 0:0 $user:$group "$dir/open/own"
# The other way round: root has opened it, and the user's program writes with the user's rights.
echo "$dir/open/root" >text
chmod 644 text
not as cat text >src/vm/ram-source 2>/dev/null
grep -q 'may not read' src/vm/error
echo "$dir/open/own" >text
as cat text >src/vm/ram-source
[ "$(cat src/vm/ram-source)" = "$dir/open/own" ]

say "somebody else's migration"
expect ok rmdir src/vm
expect ok mkdir src/vm
[ "$(as "$attempt" write src/vm/ram-source "$dir/open/own")" = EACCES ]
[ "$(as "$attempt" pwrite src/vm/dirty 0 8)" = EACCES ]

say "callers who see other files"
[ "$(limited "$reference" rooted "$dir" src/vm/ram-source /open/root)" = EPERM ]
grep -q 'sees other files' src/vm/error
[ "$(limited "$reference" rooted / src/vm/ram-source "$dir/open/root")" = ok ]
[ "$(limited "$reference" rooted "$dir" src/vm/ram-source fd:9)" = EINVAL ]
elsewhere() { limited unshare -m --propagation private "$@"; }
names EPERM "$dir/open/root" elsewhere
[ "$(elsewhere "$reference" give rdonly "$dir/open/root" "$dir/src/vm/ram-source")" = ok ]
# Another PID namespace below the daemon's is fine.
elsewhere() { limited unshare -p -f "$@"; }
names ok "$dir/open/root" elsewhere
[ "$(elsewhere "$reference" give rdonly "$dir/open/root" "$dir/src/vm/ram-source")" = ok ]
expect ok rmdir src/vm

say "and all of it works"
make_users
for file in "$dir/open/own" "$dir/open/everybody"; do
	as sh -c "echo $uri >src/vm/uri && echo $file >src/vm/ram-source && echo start >src/vm/control &&
		head -c 16 /dev/zero | tr '\0' '\377' >src/vm/dirty && echo complete >src/vm/control"
	same open/root dst/vm/ram
	forget src/vm dst/vm
	make_users
done
forget src/vm
