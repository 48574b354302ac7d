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

# backports_options DIR: sets $apt_options to what apt needs to know of these sources and nothing else; all that it keeps is
# below DIR
backports_options() {
	mkdir -p "$1"/{sources,lists/partial,cache/archives/partial}
	sources_with_backports "$1/sources"
	apt_options=(-o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$1/sources" -o Dir::State::lists="$1/lists"
		-o Dir::Cache="$1/cache" -o APT::Sandbox::User=root)
}
