#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Data in runs of every length with zero pages between them: small and large packets alternate in one write.
. "$(dirname "$0")/functions.sh"

# image RUN: data of RUN KiB, then a zero page, and so on
image() {
	perl -e 'my ($run, $size) = @ARGV; srand $run; my $out = "";
		while (length $out < $size) {
			$out .= pack("N*", map { 1 + int rand 4294967295 } 1 .. $run * 256) . "\0" x 4096;
		}
		print substr $out, 0, $size' "$1" $((3 << 20)) >image
}

pair
for compression in none zstd; do
	outgoing vm 3
	echo $compression >src/vm/compression
	truncate -s 3M src/vm/ram
	tell src/vm start
	for run in 4 12 16 20 28 32 60 124 252; do
		say "$compression, runs of $run KiB"
		image $run
		overwrite image src/vm/ram bs=1M
		tell src/vm sync
		same image dst/vm/ram
	done
	tell src/vm complete
	same image dst/vm/ram
	forget src/vm dst/vm
done
