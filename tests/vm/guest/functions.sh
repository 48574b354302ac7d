# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# functions.sh: for commands that run in a guest.
#
#     . tests/vm/guest/functions.sh

# pause [SECONDS]: without a fork, which takes long here
[ -p /run/nothing ] || mkfifo /run/nothing
pause() { read -r -t "${1:-0.05}" <>/run/nothing || true; }

# announce WORD: to the other guest; await WORD: until it has been, false when the other guest has ended without it.
# (Files in the share, so it works with the link down, too.)
announce() { : >"$VM_WORDS/$1"; }
await() {
	local other=$((3 - VM_GUEST))
	until [ -e "$VM_WORDS/$1" ]; do
		if [ -e "/run/share/$other/status" ] && [ ! -e "$VM_WORDS/$1" ]; then
			echo "guest $other has ended and has not said $1"
			return 1
		fi
		pause
	done
}
