#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# HACKING.md leads a newcomer to functions and files: all of those that it names exist.
. "$(dirname "$0")/functions.sh"

# missing TEXT: prints the functions and the files of it that are not there
missing() {
	local name path
	for name in $(grep -oE '`[a-z_]+\(\)`' "$1" | tr -d '`()' | sort -u); do
		grep -rqE "(^|[ *])$name\(" --include='*.[ch]' "$root"/{fs,core,transport} || echo "$name()"
	done
	for path in $(grep -oE '`(fs|core|transport|tests|examples)/[A-Za-z_./-]+`' "$1" | tr -d '`' | grep -v NAME | sort -u); do
		[ -e "$root/$path" ] || echo "$path"
	done
}

[ "$(grep -cE '^\| (asked|cut|ordered, counted|queued|sent|received|checked|stored|counted|awaited) ' "$root/docs/HACKING.md")" = 10 ] ||
	fail "the way of a page is not whole"
wrong=$(missing "$root/docs/HACKING.md")
[ -z "$wrong" ] || fail "HACKING.md names what does not exist: $wrong"
# shellcheck disable=SC2016
echo 'See `no_such_function()` in `core/no_such_file.c`.' >text
[ "$(missing text | xargs)" = "no_such_function() core/no_such_file.c" ] || fail "what is missing is not found"
