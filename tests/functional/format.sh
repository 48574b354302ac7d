#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The C files of fs/, core/ and transport/ have the form of .clang-format, and no line of more than 110 columns.
. "$(dirname "$0")/functions.sh"
requires clang-format

cd "$root"
mapfile -t files < <(find fs core transport -name '*.[ch]' | sort)
[ ${#files[@]} -gt 100 ]
long=$(awk 'length($0) > 110 { print FILENAME ": " FNR }' "${files[@]}")
[ -z "$long" ] || fail "lines of more than 110 columns: $long"
clang-format --dry-run -Werror "${files[@]}" >"$dir/said" 2>&1 || fail "run clang-format -i: $(head -n 5 "$dir/said")"

# And it does find one.
{ cat core/state.c; printf 'int  x;\n'; } >"$dir/state.c"
not clang-format --style=file:.clang-format --dry-run -Werror "$dir/state.c" 2>/dev/null
