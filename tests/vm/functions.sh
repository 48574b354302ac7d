# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# functions.sh: what every test with guests begins with.
#
#     #!/bin/bash
#     # SPDX-License-Identifier: Apache-2.0
#     # What is tested.
#     . "$(dirname "$0")/functions.sh"
#
# It is a functional test as tests/functional/functions.sh has it: a private directory, a limited time, nothing left behind.
# The directory is the guests', too, where they can read it; what a guest writes is in its own memory, but for $VM_FILES.
#
# Environment, besides what is said there:
#   MIGFS_VM_KERNEL   the series: 6.1 (default) or 6.12
#   MIGFS_VM_RESULTS  a directory for tests within this one, see each_result

MIGFS_TEST_LIMIT=${MIGFS_TEST_LIMIT:-1800}
series=${MIGFS_VM_KERNEL:-6.1}
vm=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=../functional/functions.sh
. "$vm/../functional/functions.sh"

limit=1500
PATH=$PATH:/usr/sbin:/sbin
requires qemu-system-x86_64 setpriv
"$vm/kernel" "$series" >kernel.log 2>&1 || skip "$(sed -n 's/^skip: //p' kernel.log | grep . || tail -n 1 kernel.log)"

# guest [OPTION...] -- COMMAND...: as tests/vm/run has it, with the kernel of this test; sets $status
guest() {
	status=0
	"$vm/run" -k "$series" -t "$limit" "$@" || status=$?
}

# guest_passes [OPTION...] -- COMMAND...: and its status is 0. A guest whose kernel has died, which says something of the
# emulator or of Linux, and nothing of a program, has one more chance.
guest_passes() {
	guest "$@"
	if [ $status = 125 ]; then
		say "a guest has died: once more"
		guest "$@"
	fi
	[ $status = 0 ] || fail "the guest's command ended with status $status"
}

# build_helpers: all programs of the functional tests; a guest has no time for that
build_helpers() {
	local source
	for source in "$here"/*.c; do helper "$(basename "$source" .c)"; done
}

# each_result DIR NAME...: tests that have run in a guest left NAME.log and NAME.result (STATUS SECONDS) in DIR. tests/run counts
# each of them; without it they are listed here, with the logs of those that failed, and it is false when one has.
each_result() {
	local result name said seconds failed=0
	for name in "${@:2}"; do [ -s "$1/$name.result" ] || fail "$name has no result"; done
	if [ -n "${MIGFS_VM_RESULTS:-}" ]; then
		cp "$1"/*.result "$1"/*.log "$MIGFS_VM_RESULTS/"
		return
	fi
	for result in "$1"/*.result; do
		name=$(basename "$result" .result)
		read -r said seconds <"$result"
		say "status $said after $seconds s: $name"
		case $said in
		0) ;;
		77) sed -n 's/^skip: /    /p' "$1/$name.log" ;;
		*)
			failed=1
			sed 's/^/    /' "$1/$name.log"
			;;
		esac
	done
	[ $failed = 0 ]
}
