#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# No circles: a file and its header are one node, and in core/ and in fs/ the includes between nodes never lead back to
# where they came from. So each file can be understood with those below it. And the checker does find a circle.
. "$(dirname "$0")/functions.sh"

# circles ROOT DIRECTORY: prints the nodes that are in circles, and those between two circles. What includes nothing
# of what is left, or is included by nothing of it, is in no circle, and is taken away as long as there is any.
circles() {
	(cd "$1" && find "$2" -name '*.[ch]' -exec awk '
		function node(path) { sub(/.*\//, "", path); sub(/\.[ch]$/, "", path); return path }
		function quoted(line) { return line ~ /^[^<]*"/ }
		{ left[node(FILENAME)] = 1 }
		/^[ \t]*#[ \t]*include[ \t]*["<]/ {
			name = $0
			sub(/^[^"<]*["<]/, "", name)
			sub(/[">].*/, "", name)
			if (quoted($0) || name !~ /\//) # <sys/file.h> is not ours
				edge[node(FILENAME), node(name)] = 1
		}
		END {
			do {
				split("", includes)
				split("", included)
				for (e in edge) {
					split(e, end, SUBSEP)
					if (end[1] != end[2] && end[1] in left && end[2] in left)
						includes[end[1]] = included[end[2]] = 1
				}
				gone = 0
				for (n in left) {
					if (!(n in includes) || !(n in included)) {
						delete left[n]
						gone = 1
					}
				}
			} while (gone)
			for (n in left)
				print n
		}' {} + | sort | xargs)
}

# finds FILE LINE [NODE...]: in a copy of the tree with that line in that file these nodes are in a circle; none: there is none
finds() {
	rm -rf copy
	mkdir copy
	cp -r "$root"/{fs,core,transport} copy/
	printf '%s\n' "$2" >>"copy/$1"
	found=$(circles copy "${1%%/*}")
	for node in "${@:3}"; do
		[[ " $found " == *" $node "* ]] || fail "'$2' in $1 makes a circle with '$node', and '$found' is found"
	done
	[ $# -gt 2 ] || [ -z "$found" ] || fail "'$2' in $1 makes no circle, and '$found' is found"
}

for directory in fs core transport; do
	found=$(circles "$root" $directory)
	[ -z "$found" ] || fail "circles in $directory/: $found"
done

finds fs/loop.c '#include "ops.h"' loop ops
finds fs/handle.h '#include "polling.h"' handle polling
finds core/account.c '#include "host.h"' account host
finds core/wire.h '  #  include <session.h> /* quietly */' session wire
finds core/image.h '#include "file.h"' image stream file
finds core/source/gate.h '#include "connection.h"' gate connection
finds core/host.c '/* #include "registry.h" */'
finds core/wire.c '#include <sys/session.h>'
