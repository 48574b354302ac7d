# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# functions.sh: what every functional test begins with.
#
#     #!/bin/bash
#     # SPDX-License-Identifier: Apache-2.0
#     # What is tested.
#     . "$(dirname "$0")/functions.sh"
#
# A test is run by itself or by tests/run. Sourcing this file for the first time makes a private directory and runs
# the script again in there, in a session of its own and for a limited time; whatever becomes of it, its processes,
# mounts and files are then removed. The second time it defines the functions below, and the test goes on.
#
# A test passes when it comes to its end, all its daemons end with the status that is due, and nothing is left
# behind: no process, no mount, no sanitizer's report. It exits with 77 when it cannot run here (see skip).
#
# Environment:
#   MIGFS             the daemon; default: build/migfs
#   MIGFS_SLOW        not empty: the daemon is instrumented; sizes are scaled down, and memory is not measured
#   MIGFS_HELPERS     where the helper programs are, or will be, built; default: functional/ beside the daemon
#   MIGFS_TEST_LISTEN the URI that destinations listen at; default: a socket in the test's directory
#   MIGFS_TEST_TLS    not empty: what goes by TCP goes by TLS, and destinations listen there unless the test says otherwise
#   MIGFS_TEST_LIMIT  seconds that a test may take
#   MIGFS_LIMIT       seconds that one command in it may take; default: 60
#   MIGFS_KEEP        not empty: a failed test's directory is kept

set -Eeuo pipefail
export LC_ALL=C

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
MIGFS=$(realpath -m "${MIGFS:-$root/build/migfs}")
MIGFS_HELPERS=$(realpath -m "${MIGFS_HELPERS:-$(dirname "$MIGFS")/functional}")
export MIGFS MIGFS_HELPERS MIGFS_SLOW=${MIGFS_SLOW:-}

# ---- The first time: supervise ----

# The processes of session $1.
session_processes() {
	local stat line
	for stat in /proc/[0-9]*/stat; do
		{ read -r line <"$stat"; } 2>/dev/null || continue
		local pid=${line%% *}
		# shellcheck disable=SC2086
		set -- "$1" ${line##*) }
		[ "$5" != "$1" ] || [ "$2" = Z ] || echo "$pid"
	done
}

# The processes that have $1 in their command line.
processes_with() {
	local file words
	for file in /proc/[0-9]*/cmdline; do
		{ mapfile -d "" -t words <"$file"; } 2>/dev/null || continue
		[[ "${words[*]}" != *"$1"* ]] || echo "${file//[!0-9]/}"
	done
}

# The mounts below directory $1, the last one first.
mounts_below() { awk -v dir="$1/" 'index($2, dir) == 1 { list = $2 "\n" list } END { printf "%s", list }' /proc/self/mounts; }

supervise() {
	local dir status=0 child left try mount log test huge_lock
	test=$(basename "$0" .sh)

	dir=$(mktemp -d "${TMPDIR:-/tmp}/migfs-test.XXXXXX")
	chmod 755 "$dir"
	[ -x "$MIGFS" ] || { echo "$test: there is no $MIGFS: build it first"; rmdir "$dir"; exit 1; }
	# What a test locks there (huge_pages) stays locked until all that it has changed is put back.
	exec {huge_lock}>/tmp/migfs-test-huge-pages.lock || huge_lock=
	# The group of processes is the test's own, so that timeout(1) ends all of it.
	MIGFS_TEST_DIR=$dir MIGFS_TEST_HUGE_LOCK=$huge_lock setsid timeout -k 5 "${MIGFS_TEST_LIMIT:-$([ -n "$MIGFS_SLOW" ] && echo 400 || echo 200)}" \
		bash "$0" "$@" </dev/null &
	child=$!
	trap 'kill "$child" 2>/dev/null; status=143' HUP INT TERM
	wait "$child" || status=$?
	trap '' HUP INT TERM
	wait "$child" 2>/dev/null || true
	case $status in
	124 | 137) echo "$test: not done after its time limit" ;;
	esac

	# Those that read from the test's shell end when it does, a moment later, and no event tells of it.
	for ((try = 0; try < 500; try++)); do
		left=$(session_processes "$child" && processes_with "$dir/")
		[ "$status" = 0 ] && [ -n "$left" ] || break
		sleep 0.02
	done
	if [ -n "$left" ]; then
		if [ "$status" = 0 ]; then
			echo "$test: processes were left behind:"
			for pid in $left; do tr '\0' ' ' </proc/"$pid"/cmdline; echo; done || true
			status=1
		fi
		# shellcheck disable=SC2086
		kill -9 $left 2>/dev/null || true
	fi
	for mount in $(mounts_below "$dir"); do
		if [ "$status" = 0 ]; then
			echo "$test: a mount was left behind: $mount"
			status=1
		fi
		umount -l "$mount" 2>/dev/null || fusermount3 -uz "$mount" || true
	done
	[ ! -e "$dir/at-exit" ] || tac "$dir/at-exit" | bash || true
	if compgen -G "$dir/sanitizer.*" >/dev/null || grep -qsE 'Sanitizer|runtime error:' "$dir"/*.log; then
		echo "$test: a sanitizer has found something"
		status=1
	fi
	if [ "$status" != 0 ] && [ "$status" != 77 ]; then
		for log in "$dir"/sanitizer.* "$dir"/*.log; do
			[ ! -s "$log" ] || { echo "---- ${log##*/} ----"; tail -n 150 "$log"; }
		done
		echo "---- FAILED: $test (status $status)"
	fi
	if [ -n "${MIGFS_KEEP:-}" ] && [ "$status" != 0 ] && [ "$status" != 77 ]; then
		echo "---- its directory is $dir"
	else
		rm -rf --one-file-system "$dir"
	fi
	exit "$status"
}

[ -n "${MIGFS_TEST_DIR:-}" ] || supervise "$@"

# ---- The second time: the test itself ----

dir=$MIGFS_TEST_DIR
cd "$dir"
limit=${MIGFS_LIMIT:-60}     # seconds that one command may take
declare -A daemon    # the process of each migfs that runs, by the name of its mount

# One report a process; they are looked at when the test is over.
export ASAN_OPTIONS="${ASAN_OPTIONS:-}:log_path=$dir/sanitizer"
export UBSAN_OPTIONS="${UBSAN_OPTIONS:-}:print_stacktrace=1:halt_on_error=1:log_path=$dir/sanitizer"
export TSAN_OPTIONS="${TSAN_OPTIONS:-}:log_path=$dir/sanitizer"

say() { echo "$*"; }

fail() {
	echo "FAIL: $*"
	trap - ERR
	exit 1
}

# without_tls WHY: for tests that cannot be run with MIGFS_TEST_TLS
without_tls() { [ -z "${MIGFS_TEST_TLS:-}" ] || skip "over TLS $*"; }

# skip WHY: what the test needs is not there
skip() {
	echo "skip: $*"
	trap - ERR
	exit 77
}

# at_exit COMMAND: run when the test is over, whatever became of it; the last one first
at_exit() { echo "$*" >>at-exit; }

finish() {
	local status=$? name
	trap - EXIT ERR
	if [ $status = 0 ]; then
		trap 'exit 1' ERR
		for name in "${!daemon[@]}"; do
			unmount "$name"
		done
	elif [ $status != 77 ]; then
		# The daemons may hang.
		# shellcheck disable=SC2016
		timeout -k 1 5 bash -c 'for f in */*/status */*/error */.error; do
			if [ -s "$f" ]; then echo "---- $f ----"; cat "$f"; fi; done' 2>/dev/null || true
	fi
	exit $status
}
trap finish EXIT
trap 'echo "FAIL: ${BASH_SOURCE[0]##*/} line $LINENO: $BASH_COMMAND"' ERR

requires_root() { [ "$(id -u)" = 0 ] || skip "only root can do this"; }
requires() {
	local command
	for command in "$@"; do
		command -v "$command" >/dev/null || skip "there is no $command"
	done
}

# not COMMAND...: it fails. (`! COMMAND` would end no test.)
not() { if "$@"; then fail "$* has succeeded"; fi; }

# scaled FULL SLOW: the size or count for this daemon
scaled() { if [ -n "$MIGFS_SLOW" ]; then echo "$2"; else echo "$1"; fi; }

# limited COMMAND...: run it for a limited time
limited() { timeout -k 1 "$limit" "$@"; }

# eventually WHAT COMMAND...: for conditions that no event tells of; looks again and again, for a limited time
eventually() {
	local what=$1 end=$((SECONDS + limit))
	shift
	until "$@"; do
		[ $SECONDS -lt $end ] || fail "waited in vain until $what"
		sleep 0.02
	done
}

gone() { ! kill -0 "$1" 2>/dev/null; }

# huge_pages N: so many free huge pages of 2 MiB, until the test ends; false when they cannot be had, and says why. Only
# one test at a time has any: their number is the machine's.
huge_pages() {
	local had
	grep -q '^Hugepagesize: *2048 kB' /proc/meminfo || { echo "no huge pages of 2 MiB"; return 1; }
	flock -w 300 "$MIGFS_TEST_HUGE_LOCK" || { echo "another test has the huge pages"; return 1; }
	had=$(cat /proc/sys/vm/nr_hugepages)
	at_exit "echo $had > /proc/sys/vm/nr_hugepages"
	{ echo $((had + $1)) >/proc/sys/vm/nr_hugepages; } 2>/dev/null ||
		{ echo "the number of huge pages cannot be set"; return 1; }
	[ "$(awk '/^HugePages_Free:/ { free = $2 } /^HugePages_Rsvd:/ { print free - $2 }' /proc/meminfo)" -ge "$1" ] ||
		{ echo "there are not $1 huge pages"; return 1; }
}

# hugetlbfs DIR N: a mount with so many free huge pages; the same
hugetlbfs() {
	huge_pages "$2" || return
	mkdir -p "$1"
	mount -t hugetlbfs none "$1" || { echo "hugetlbfs cannot be mounted"; return 1; }
	at_exit "umount -l '$dir/$1' 2>/dev/null"
}

# storage KIND N: a directory of that name: an ordinary one (directory), a tmpfs, or a hugetlbfs with so many free huge
# pages; false when it cannot be had
storage() {
	mkdir "$1"
	case $1 in
	tmpfs)
		mount -t tmpfs -o size=64m none "$1" || return
		at_exit "umount -l '$dir/$1' 2>/dev/null"
		;;
	hugetlbfs) hugetlbfs "$1" "$2" || return ;;
	esac
}

# helper NAME: sets $helper to the program of NAME.c, built if need be
helper() {
	local libs=()
	helper=$MIGFS_HELPERS/$1
	[ "$1" != adversary ] || libs=(-I"$root/core" -I"$root/transport" -lxxhash)
	if [ ! -x "$helper" ] || [ "$here/$1.c" -nt "$helper" ]; then
		mkdir -p "$MIGFS_HELPERS"
		cc -std=gnu11 -D_GNU_SOURCE -O2 -Wall -Wextra ${CFLAGS_HELPERS:-} -o "$helper.$$" "$here/$1.c" "${libs[@]}" -pthread ||
			fail "cannot build $1.c"
		mv "$helper.$$" "$helper"
	fi
}

helper attempt && attempt=$helper
helper await && await=$helper

# command_in_background MIGRATION COMMAND: sets $command; what it says goes to the file answer
# (bash lets what runs in the background ignore SIGINT)
command_in_background() {
	env --default-signal=INT "$attempt" write "$1/control" "$2" >answer 2>&1 &
	command=$!
}

# command_says PATTERN: it ends, and that is what it says
command_says() {
	eventually "the command has ended" gone "$command"
	wait "$command" || true
	[[ $(cat answer) =~ ^($1)$ ]] || fail "the command says $(cat answer), not $1"
}

# in_write PID: it is blocked in write(2)
in_write() {
	local call
	read -r call _ </proc/"$1"/syscall 2>/dev/null || return 1
	case $(uname -m):$call in
	x86_64:1 | aarch64:64) ;;
	*) return 1 ;;
	esac
}

# ---- Daemons ----

is_mounted() { grep -qF " $dir/$1 fuse" /proc/self/mounts; }

mounted() {
	kill -0 "${daemon[$1]}" 2>/dev/null || fail "migfs has ended instead of mounting $1"
	is_mounted "$1"
}

# Options of every daemon, unless its own say more of TLS.
every=()
if [ -n "${MIGFS_TEST_TLS:-}" ]; then
	requires openssl
	"$MIGFS" -V | grep -q 'with TLS' || skip "this migfs is built without TLS"
	# A test can begin once more, in a namespace.
	if [ ! -e .tls ]; then
		mkdir .tls
		"$root/examples/make-certificates" .tls/ca >.tls/log
		"$root/examples/make-certificates" .tls/ca .tls/host localhost 127.0.0.1 ::1 192.0.2.1 192.0.2.2 >>.tls/log
		chmod -R a+rX .tls
	fi
	every=(-o "tls=$dir/.tls/host")
	MIGFS_TEST_LISTEN=${MIGFS_TEST_LISTEN:-tcp:127.0.0.1:0}
fi
[[ ${MIGFS_TEST_LISTEN:-} != rdma:* ]] || every+=(-o insecure)

# migfs NAME [OPTION...]: mount at NAME; the log is NAME.log
migfs() {
	local name=$1 more=("${every[@]}")
	shift
	[[ "$*" != *tls* ]] || more=()
	mkdir -p "$name"
	"$MIGFS" -f "${more[@]}" "$@" "$dir/$name" >>"$name.log" 2>&1 &
	daemon[$name]=$!
	eventually "$name is mounted" mounted "$name"
}

# pair [OPTION...]: a destination `dst` with these options, a source `src`, and the URI between them in $uri
pair() {
	uri=${MIGFS_TEST_LISTEN:-unix:$dir/socket}
	migfs dst -o "listen=$uri" "$@"
	uri=$(sed -n 's/^migfs: listening at //p' dst.log | head -n 1)
	migfs src
}

# ended NAME [STATUS]: the daemon ends by itself, with this exit status
ended() {
	local pid=${daemon[$1]} status=0
	eventually "the daemon of $1 has ended" gone "$pid"
	wait "$pid" || status=$?
	unset "daemon[$1]"
	[ $status = "${2:-0}" ] || fail "the daemon of $1 ended with status $status, not ${2:-0}"
}

# unmount NAME: in good order, and the daemon ends with status 0
unmount() {
	eventually "$1 can be unmounted" fusermount3 -u "$dir/$1" 2>>unmount.log
	ended "$1"
}

# newer_qemu: sets $qemu to the words that call a QEMU of bookworm-backports, which tests/newer-qemu keeps for all tests
newer_qemu() {
	local keep=${BENCH_DIR:-/var/tmp/migfs-bench} tree why
	tree=$keep/qemu-10
	why=$("$root/tests/newer-qemu" "$keep" 2>&1) || skip "there is no QEMU 10: $(tail -n 1 <<<"$why")"
	qemu=(env "LD_LIBRARY_PATH=$tree/usr/lib/x86_64-linux-gnu" "QEMU_MODULE_DIR=$tree/usr/lib/x86_64-linux-gnu/qemu"
		"$tree/usr/bin/qemu-system-x86_64" -L "$tree/usr/share/qemu" -L "$tree/usr/share/seabios")
	"${qemu[@]}" --version >qemu.version 2>&1 || skip "QEMU 10 does not run here: $(head -n 1 qemu.version)"
}

# lay SEED: a line to the destination (line.c) that can be lost, and $uri leads over it
lay() {
	local port
	helper line
	coproc LINE { "$helper" "${uri##*:}" "$1" 2>line.log; }
	read -r -t "$limit" port <&"${LINE[0]}" || fail "there is no line"
	uri=tcp:127.0.0.1:$port
}

# ask COMMAND: of the line; sets $answer
ask() {
	echo "$1" >&"${LINE[1]}"
	read -r -t "$limit" answer <&"${LINE[0]}" || fail "the line does not answer '$1'"
}

# two_namespaces: $a and $b, which nothing joins
two_namespaces() {
	local ns
	requires_root
	requires ip nsenter
	a=migfs-$$-a b=migfs-$$-b
	ip netns add $a 2>netns.log || skip "no network namespaces: $(cat netns.log)"
	at_exit "ip netns del $a"
	ip netns add $b
	at_exit "ip netns del $b"
	for ns in $a $b; do ip -n $ns link set lo up; done
}

# join_namespaces DEVICE: the device of that name in each has the address 192.0.2.1 and 192.0.2.2
join_namespaces() {
	ip -n $a link set "$1" up
	ip -n $b link set "$1" up
	ip -n $a address add 192.0.2.1/24 dev "$1"
	ip -n $b address add 192.0.2.2/24 dev "$1"
}

# hosts_apart: two network namespaces $a and $b, joined by a link (veth0 in each) with the addresses 192.0.2.1 and 192.0.2.2
hosts_apart() {
	two_namespaces
	ip -n $a link add veth0 type veth peer name veth0 netns $b 2>netns.log || skip "no veth: $(cat netns.log)"
	join_namespaces veth0
}

# hosts_far_apart MBIT MS: the same, by a link (far0) of so many Mbit/s, and so many milliseconds long in each direction
hosts_far_apart() {
	[ -c /dev/net/tun ] || skip "there is no /dev/net/tun"
	two_namespaces
	helper shaped
	"$helper" $a $b "$1" "$2" >shaped.log 2>&1 &
	link=$!
	eventually "the link is there" grep -q ready shaped.log
	ip -n $a link set far0 mtu 9000
	ip -n $b link set far0 mtu 9000
	join_namespaces far0
}
cut_link() {
	kill "$link"
	wait "$link" || true
}

# in_namespace NAMESPACE NAME [OPTION...]: migfs NAME, whose connections are those of the namespace; the mount is ours
in_namespace() {
	local ns=$1
	shift
	migfs_through "nsenter --net=/run/netns/$ns" "$@"
}

# migfs_through COMMAND NAME [OPTION...]: migfs NAME, run by a command
migfs_through() {
	local runner=$dir/through-$2.sh
	printf '#!/bin/sh\nexec %s %q "$@"\n' "$1" "$MIGFS" >"$runner"
	chmod +x "$runner"
	shift
	MIGFS=$runner migfs "$@"
}

# limited_to BYTES NAME [OPTION...]: migfs NAME, which may lock no more memory
limited_to() { migfs_through "prlimit --memlock=$1:$1 setpriv --bounding-set=-ipc_lock" "${@:2}"; }

# rdma_device: sets $device, $card and $address of an RDMA device, where destinations listen from now on
rdma_device() {
	requires rdma ip
	"$MIGFS" -V | grep -q 'with RDMA' || skip "this migfs is built without RDMA"
	read -r device card < <({ rdma link show 2>/dev/null || true; } | sed -n 's|^link \([^/]*\)/.*state ACTIVE.*netdev \([^ ]*\).*|\1 \2|p') || true
	[ -n "${card:-}" ] || skip "there is no RDMA device"
	address=$(ip -4 -o address show dev "$card" | sed -n 's|.* inet \([0-9.]*\)/.*|\1|p' | head -n 1)
	[ -n "$address" ] || skip "the card $card of the RDMA device has no address"
	MIGFS_TEST_LISTEN=rdma:$address:0
	every+=(-o insecure)
}

# kill_migfs NAME: as a crash would
kill_migfs() {
	local pid=${daemon[$1]} status=0
	unset "daemon[$1]"
	kill -9 "$pid"
	wait "$pid" 2>/dev/null || status=$?
	[ $status = 137 ] || fail "the daemon of $1 had ended before it was killed, with status $status"
}

# stop_migfs NAME, continue_migfs NAME: SIGSTOP is in effect for all of its threads, or over
stop_migfs() {
	kill -STOP "${daemon[$1]}"
	eventually "$1 is stopped" is_stopped "${daemon[$1]}"
}
is_stopped() { ! awk '{ print $3 }' /proc/"$1"/task/*/stat | grep -qv T; }
continue_migfs() { kill -CONT "${daemon[$1]}"; }

# Descriptors of the daemon of mount $1, but for those of FUSE's workers: only those have pipes at a source.
count_fds() {
	local fd n=0
	for fd in /proc/"${daemon[$1]}"/fd/*; do
		if [ -e "$fd" ] && [ ! "$fd" -ef /dev/fuse ]; then
			[ "$1" = src ] && [ -p "$fd" ] || n=$((n + 1))
		fi
	done
	echo $n
}

# Threads of the daemon of mount $1, but for FUSE's workers.
count_threads() {
	local comm file n=0
	for file in /proc/"${daemon[$1]}"/task/*/comm; do
		{ read -r comm <"$file"; } 2>/dev/null || continue
		[[ $comm != mig-* ]] || n=$((n + 1))
	done
	echo $n
}

# memory_of NAME KEY: bytes, from /proc/PID/status (VmHWM, RssAnon, RssFile) or smaps_rollup (Rss, AnonHugePages)
memory_of() { awk -v key="$2:" '$1 == key { printf "%.0f\n", $2 * 1024; exit }' /proc/"${daemon[$1]}"/{status,smaps_rollup}; }

# ---- Migrations ----

# outgoing NAME [CHANNELS [URI]]: make one at src
outgoing() {
	expect ok mkdir "src/$1"
	expect ok write "src/$1/uri" "${3:-$uri}"
	expect ok write "src/$1/channels" "${2:-2}"
}

# attempt OPERATION ARGUMENT...: sets $got to "ok", what was asked for, or the errno; see attempt.c
attempt() {
	local status=0
	got=$(limited "$attempt" "$@") || status=$?
	case $status in
	0) ;;
	124 | 137) got="no answer in $limit s" ;;
	*) fail "attempt $* ended with status $status" ;;
	esac
}

# expect ERRNO|ok|TEXT OPERATION ARGUMENT...: what attempt says
expect() {
	local want=$1
	shift
	attempt "$@"
	[ "$got" = "$want" ] || fail "$(echo "$*" | head -c 200): expected $want, got $got"
}

# refused ERRNO FILE PATTERN OPERATION ARGUMENT...: expect, and a sentence in FILE that matches
refused() {
	local errno=$1 file=$2 pattern=$3 text
	shift 3
	expect "$errno" "$@"
	text=$(limited cat "$file")
	[[ $text =~ $pattern ]] || fail "$(echo "$*" | head -c 200): '$file' says '$text', not '$pattern'"
}

# tell MIGRATION COMMAND: give a command, which must succeed
tell() { expect ok write "$1/control" "$2"; }

# status MIGRATION KEY
status() { limited sed -n "s/^$2 //p" "$1/status"; }

# reaches MIGRATION STATE...: wait until it is in one of them; sets $state
reaches() {
	local migration=$1
	shift
	state=$("$await" "$migration/status" "$limit" "$@") || fail "$migration: expected $*, it is $state"
}

# is_in MIGRATION STATE: now
is_in() { [ "$(status "$1" status)" = "$2" ]; }

# says_why MIGRATION: a sentence stands in `error` and in `status`
says_why() {
	[ -n "$(status "$1" error-desc)" ] || fail "$1 is $(status "$1" status) and does not say why in status"
	[ -n "$(limited cat "$1/error")" ] || fail "$1 is $(status "$1" status) and does not say why in error"
}

# expect_status MIGRATION KEY TEST VALUE: as test(1) has it
expect_status() {
	local is
	is=$(status "$1" "$2")
	[ "$is" "$3" "$4" ] || fail "$1: $2 is $is, not $3 $4"
}

# add_up MIGRATION: each channel's bytes went in one of three ways, and the sums are sums, also in status.json
add_up() {
	limited cat "$1/status" >add-up.status
	limited cat "$1/status.json" >add-up.json
	awk '
		FNR == 1 { file++ }
		file == 2 { gsub(/[",:]/, " "); json[$1, $2] = 1; next }
		match($1, /^channel-[0-9]+-/) {
			key = substr($1, RLENGTH + 1)
			of[substr($1, 9, RLENGTH - 9), key] = $2
			sum[key] += $2
			next
		}
		{ top[$1] = $2 }
		END {
			for (n = 0; n < top["channels"]; n++) {
				sent = of[n, "zero-copy-bytes"] + of[n, "copied-bytes"] + of[n, "spliced-bytes"]
				if (sent != of[n, "bytes"]) { print "channel " n " has sent " sent " bytes in three ways"; wrong = 1 }
			}
			count = split("zero-copy-bytes zero-copy-sends copied-bytes copied-sends kernel-copied-bytes " \
				"kernel-copied-sends zero-copy-refused spliced-bytes dirty-sync-missed-zero-copy", keys, " ")
			for (i = 1; i <= count; i++) {
				key = keys[i]
				if (!(key in sum) || top[key] != sum[key]) { print key " is " top[key] ", its channels have " sum[key]; wrong = 1 }
				if (!((key, sum[key] "") in json)) { print "status.json says otherwise of " key; wrong = 1 }
			}
			exit wrong || !count || !top["channels"]
		}' add-up.status add-up.json || fail "$1: the counters do not add up"
}

# same FILE FILE
same() { limited cmp "$1" "$2" || fail "$1 and $2 differ"; }

# forget MIGRATION...: rmdir
forget() {
	local migration
	for migration in "$@"; do
		expect ok rmdir "$migration"
	done
}

# random FILE SIZE
random() { head -c "$2" /dev/urandom >"$1"; }

# dd to a file that is there
overwrite() { limited dd if="$1" of="$2" conv=notrunc status=none "${@:3}"; }

# Six devices of odd sizes: made, written at once in the background (await_devices waits), compared.
device_sizes=(0 1 4097 $((1 << 20)) $(((3 << 20) + 5)) $(((6 << 20) - 1)))
make_devices() {
	local i
	for i in {0..5}; do random "device$i" "${device_sizes[i]}"; done
}
device_writers=()
write_devices() {
	local i
	for i in {0..5}; do
		limited dd if="device$i" of="$1/device-state/device$i" bs=$((1000 + 70000 * i)) status=none &
		device_writers+=($!)
	done
}
await_devices() {
	local pid
	for pid in "${device_writers[@]}"; do wait "$pid" || fail "a device could not be written"; done
	device_writers=()
}
# A reader of the empty one waits for its first byte until the migration has completed.
compare_devices() {
	local i
	for i in {0..5}; do
		[ "${device_sizes[i]}" != 0 ] || is_in "$1" completed || continue
		same "device$i" "$1/device-state/device$i"
	done
}

# ---- Migrations that something happens to ----

# share JOBS FUNCTION ARGUMENT...: calls FUNCTION with each argument, JOBS of them at a time, in subshells
share() {
	local jobs=$1 function=$2 job pids=() failed=0
	shift 2
	for ((job = 1; job <= jobs; job++)); do
		(
			for ((i = job; i <= $#; i += jobs)); do
				"$function" "${!i}"
			done
		) &
		pids+=($!)
	done
	for job in "${pids[@]}"; do wait "$job" || failed=1; done
	[ $failed = 0 ] || fail "see above"
}

# What disturbed migrations move; see there.
disturbed_size=300000
make_disturbed() {
	random image $disturbed_size
	random device_a 5000
	random device_b 70000
}

# disturbed NAME URI: the whole life of a small migration over 2 channels, whose URI has a fault. Each step may fail,
# none may hang; in the end both sides have completed and have the same, or neither has, and both say why.
disturbed() {
	local name=$1 told=no limit=40

	step() { # OPERATION...
		attempt "$@"
		case $got in
		ok) return 0 ;;
		'no answer'*) fail "$name: $*: $got" ;;
		*) told=yes && return 1 ;;
		esac
	}
	copy() { # FILE TO
		local status=0
		limited dd if="$1" of="$2" conv=notrunc bs=16K status=none 2>>"$name.err" || status=$?
		[ $status != 124 ] && [ $status != 137 ] || fail "$name: writing $2 hangs"
		[ $status = 0 ] || told=yes
	}
	outgoing "$name" 2 "$2"
	expect ok write "src/$name/timeout" 5
	truncate -s $disturbed_size "src/$name/ram"
	if step write "src/$name/control" start; then
		copy image "src/$name/ram"
		copy device_a "src/$name/device-state/a"
		copy device_b "src/$name/device-state/b"
		step write "src/$name/control" sync || true
		step write "src/$name/control" complete || true
	fi
	reaches "src/$name" completed failed
	echo $state >>states
	if [ "$state" = completed ]; then
		[ "$got" = ok ] || fail "$name: the source has completed, and complete says $got"
		reaches "dst/$name" completed
		same image "dst/$name/ram"
		same device_a "dst/$name/device-state/a"
		same device_b "dst/$name/device-state/b"
	else
		[ $told = yes ] || fail "$name: has failed, and nobody was told"
		says_why "src/$name"
		attempt stat "dst/$name"
		if [ "$got" != ENOENT ]; then
			reaches "dst/$name" failed
			says_why "dst/$name"
		fi
	fi
	rm -f "$name.err"
}

# forget_all: nothing has completed meanwhile at one side only, and neither daemon keeps a descriptor or a thread
forget_all() {
	local migration
	shopt -s nullglob
	for migration in dst/*; do
		[ "$(status "$migration" status)" = "$(status "src/${migration#dst/}" status)" ] ||
			fail "$migration is $(status "$migration" status), its source is not"
	done
	forget dst/* src/*
	shopt -u nullglob
}

watches_for_signals() { [[ $(readlink /proc/"${daemon[$1]}"/fd/*) = *signalfd* ]]; }

# remember_resources, same_resources: that they have no more descriptors and threads than before
declare -A before
remember_resources() {
	local name
	# A daemon that has used an RDMA device keeps it open.
	if [[ ${uri:-} = rdma:* ]]; then
		outgoing opens 1
		tell src/opens start
		tell src/opens complete
		forget src/opens dst/opens
	fi
	for name in src dst; do
		# The mount is there before the daemon has all that it keeps; this is the last.
		eventually "$name watches for signals" watches_for_signals "$name"
		before[$name]="$(count_fds $name) descriptors, $(count_threads $name) threads"
	done
}
same_resources() {
	local name end=$((SECONDS + limit))
	for name in src dst; do
		until has_resources "$name" "${before[$name]}"; do
			[ $SECONDS -ge $end ] || { sleep 0.02; continue; }
			ls -l /proc/"${daemon[$name]}"/fd
			cat /proc/"${daemon[$name]}"/task/*/comm
			fail "$name had ${before[$name]}, and has $(count_fds "$name") descriptors, $(count_threads "$name") threads"
		done
	done
}
has_resources() { [ "$(count_fds "$1") descriptors, $(count_threads "$1") threads" = "$2" ]; }
