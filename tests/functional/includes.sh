#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The layers: fs includes core and transport, core includes transport, transport includes neither. What only the source
# has and what only the destination has do not include each other. fs asks the migration, which knows no role. FUSE's
# headers are for fs/ alone, verbs for transport/rdma*, OpenSSL's for transport/tls*. And the checker does find an include that goes the wrong way.
. "$(dirname "$0")/functions.sh"

# check ROOT: prints the includes that go the wrong way
check() {
	(cd "$1" && awk '
		BEGIN {
			level["transport"] = 1; level["core"] = 2; level["fs"] = 3
			for (i = 1; i < ARGC; i++) {
				n = split(ARGV[i], part, "/")
				if (part[n] ~ /\.h$/) {
					if (part[n] in home)
						print part[n] " is in " home[part[n]] "/ and in " part[1] "/"
					home[part[n]] = part[1]
					side[part[n]] = n > 2 ? part[2] : ""
				}
			}
		}
		!/^[ \t]*#[ \t]*include/ { next }
		{
			mine = split(FILENAME, place, "/") > 2 ? place[2] : ""
			name = $0
			sub(/^[ \t]*#[ \t]*include[ \t]*/, "", name)
			quoted = name ~ /^"/
			name = substr(name, 2)
			sub(/[">].*/, "", name)
			if ((name ~ /^fuse/ || name ~ /\/fuse/) && place[1] != "fs")
				print FILENAME ": " name ": only fs/ knows FUSE"
			if ((name ~ /^infiniband\// || name ~ /^rdma\//) && FILENAME !~ /^transport\/rdma/)
				print FILENAME ": " name ": only transport/rdma* knows verbs"
			if (name ~ /^openssl\// && FILENAME !~ /^transport\/tls/)
				print FILENAME ": " name ": only transport/tls* knows OpenSSL"
			n = split(name, part, "/")
			if (part[n] in home && level[home[part[n]]] > level[place[1]])
				print FILENAME ": " name ": " place[1] "/ does not include " home[part[n]] "/"
			if (mine && side[part[n]] && side[part[n]] != mine)
				print FILENAME ": " name ": " mine "/ does not include " side[part[n]] "/"
			if ((place[1] == "fs" || FILENAME ~ /^core\/(migration|host)\.[ch]$/) && part[n] ~ /^(outgoing|incoming)\.h$/)
				print FILENAME ": " name ": the migration is asked, not its role"
			if (quoted && !(part[n] in home))
				print FILENAME ": " name ": no such header"
		}' fs/*.[ch] core/*.[ch] core/*/*.[ch] transport/*.[ch])
}

# finds FILE LINE: a copy of the tree with that line in that file is found wrong
finds() {
	rm -rf copy
	mkdir copy
	cp -r "$root"/{fs,core,transport} copy/
	printf '%s\n' "$2" >>"copy/$1"
	[ "$(check copy | grep -c "^$1: ")" = 1 ] || fail "'$2' in $1 is not found"
}

wrong=$(check "$root")
[ -z "$wrong" ] || fail "includes that go the wrong way:
$wrong"

finds core/source/gate.c '#include "node.h"'
finds core/source/gate.c '#include "incoming.h"'
finds core/destination/incoming.h '#include "channel.h"'
finds core/source/gate.h '  #  include	"../fs/node.h"'
finds transport/uri.c '#include "wire.h"'
finds transport/uri.h '#include <gate.h> /* quietly */'
finds transport/tcp.c '#include "handle.h"'
finds core/host.c '#include <fuse_lowlevel.h>'
finds core/host.c '#include <fuse3/fuse.h>'
finds transport/socket.c '#include <linux/fuse.h>'
finds transport/tcp.c '#include <infiniband/verbs.h>'
finds core/source/channel.c '#include <rdma/rdma_cma.h>'
finds core/source/connection.c '#include <openssl/ssl.h>'
finds transport/socket.c '#include <openssl/evp.h>'
finds fs/ops.c '#include "outgoing.h"'
finds fs/status.c '#include "incoming.h"'
finds core/migration.c '#include "incoming.h"'
finds fs/main.c '#include "missing.h"'
finds fs/main.c '#include <infiniband/verbs.h>'
mkdir -p copy
cp "$root/core/source/gate.h" copy/transport/gate.h
check copy | grep -q '^gate.h is in' || fail "two headers of one name are not found"
