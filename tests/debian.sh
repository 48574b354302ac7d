# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# debian.sh: where the machine's packages come from. Hosts of packages are the machine's business, and stand nowhere here.

# sources_with_backports DIR: writes the machine's own Debian sources to DIR/migfs.list and DIR/migfs.sources, with
# bookworm-backports besides bookworm
sources_with_backports() {
	local file
	for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
		[ -e "$file" ] || continue
		sed -nE 's/^(deb .*[[:space:]])bookworm(-security)?([[:space:]]+.*)$/\1bookworm\2\3\n\1bookworm-backports\2\3/p' "$file" |
			grep -v 'backports-security' || true
	done >"$1/migfs.list"
	for file in /etc/apt/sources.list.d/*.sources; do
		[ -e "$file" ] || continue
		awk 'BEGIN { RS = ""; FS = "\n"; ORS = "\n\n" }
			/(^|\n)Suites:[^\n]*[ \t]bookworm([ \t]|\n|$)/ {
				sub(/Suites:[^\n]*/, "Suites: bookworm bookworm-backports")
				print
				next
			}
			/(^|\n)Suites:[^\n]*[ \t]bookworm-security([ \t]|\n|$)/' "$file"
	done >"$1/migfs.sources"
	[ -s "$1/migfs.list" ] || rm "$1/migfs.list"
	[ -s "$1/migfs.sources" ] || rm "$1/migfs.sources"
}
