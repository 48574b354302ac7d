#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Each line of docs/vmm.md in a block of sh, section by section: with QEMU, and with stand-ins for the programs that are not
# here, which replay what they do to files.
. "$(dirname "$0")/functions.sh"
requires_root
requires qemu-system-x86_64 qemu-img as ld python3 rsync cc
helper replay
# A sanitizer finds no more here than in the tests of what the lines do, and a guest as in the text outruns it.
[ -z "$MIGFS_SLOW" ] || skip "a guest outruns a migfs with a sanitizer"

ln -s "$root/examples" examples
mkdir bin
at_exit "for pid in $dir/*.pid; do kill -9 \$(cat \$pid); done 2>/dev/null"

# stand_in NAME TEXT: a program of that name
stand_in() {
	printf '#!/bin/bash\nset -eu\n%s\n' "$2" >"bin/$1"
	chmod +x "bin/$1"
}
stand_in migfs "exec '$MIGFS' \"\$@\""
# Firecracker's API.
stand_in curl '
[ "$1 $3 $6" = "--unix-socket -X -d" ]
url=$5 body=$7
field() { python3 -c "import json, sys; print(json.loads(sys.argv[1])$1)" "$body"; }
case $url in
*/vm) field "[\"state\"]" ;;
*/snapshot/create) '"'$helper'"' firecracker "$(field "[\"mem_file_path\"]")" "$(field "[\"snapshot_path\"]")" expected.fc 40 1 ;;
*/snapshot/load)
	[ "$(stat -c %s "$(field "[\"snapshot_path\"]")")" = 10000 ]
	'"'$helper'"' firecracker-restore "$(field "[\"mem_backend\"][\"backend_path\"]")" expected.fc ;;
*) exit 1 ;;
esac'
stand_in ch-remote '
case $3 in
pause) ;;
snapshot) '"'$helper'"' cloud-hypervisor "${4#file://}" expected.ch 33 ;;
*) exit 1 ;;
esac'
stand_in cloud-hypervisor ''"'$helper'"' cloud-hypervisor-restore "${4#source_url=file://}" expected.ch'
# The way to QEMU 10, for what is new in it.
(newer_qemu >newer.log && printf '%q ' "${qemu[@]}" >newer) || say "$(cat newer.log)"

# One script a section.
port=$((20000 + RANDOM % 10000))
awk '/^## / { n++; title[n] = substr($0, 4); print title[n] > ("title." n) }
	/^```sh/ { inside = 1; next } /^```/ { inside = 0 } inside { print > ("lines." n + 0) }' "$root/docs/vmm.md"
count=$(ls title.* | wc -l)
ran=0
for ((n = 0; n <= count; n++)); do
	[ -e lines.$n ] || continue
	title=$(cat title.$n 2>/dev/null || echo "to begin with")
	path=$PWD/bin:$PATH
	if grep -q mapped-ram lines.$n; then
		[ -e newer ] || { say "left out: $title"; continue; }
		stand_in qemu-system-x86_64 "exec $(cat newer) \"\$@\""
	else
		rm -f bin/qemu-system-x86_64
	fi
	say "$title"
	# A guest has the time to say something before it is ended.
	sed -i -E -e "s/:4444/:$port/g" \
		-e 's/^examples\/qmp (there[0-9]*)\.qmp quit$/until grep -qs "good$" \1.serial; do sleep 0.05; done\n&/' lines.$n
	PATH=$path limited bash -euo pipefail lines.$n >said 2>&1 </dev/null || fail "$title: $(cat said)"
	ran=$((ran + $(grep -vc '^until grep' lines.$n)))
done
say "$ran lines"

# The guests went on at the destination, with all of their memory.
for name in there there2 there3; do
	[ "$name" = there ] || [ -e newer ] || continue
	grep -q 'good$' $name.serial || fail "the guest of $name does nothing: $(tail -n 3 $name.serial)"
	not grep WRONG $name.serial
done

# Its mount is gone; a daemon in the background takes a moment longer.
nothing_in_background() { [ -z "$(processes_with "$dir/received")" ]; }
eventually "the daemon has ended" nothing_in_background
