#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Truncation, holes and zero ranges in order with writes, as in any other file: the same is done to a model, and compared
# after a sync. See also copy-ranges.sh, which does this at random.
. "$(dirname "$0")/functions.sh"
requires fallocate

# both COMMAND...: to the file and to the model; FILE stands for them
both() {
	limited "${@/FILE/src/vm/$file}"
	limited "${@/FILE/model}"
}
# The model's file system may not know how to zero a range.
zero() {
	limited fallocate -z -o "$1" -l "$2" "src/vm/$file"
	head -c "$2" /dev/zero | limited dd of=model oflag=seek_bytes seek="$1" conv=notrunc status=none bs=1M iflag=fullblock
}
compare() {
	tell src/vm sync
	same model "dst/vm/$file"
	[ "$(stat -c %s "src/vm/$file")" = "$(stat -c %s model)" ] || fail "another size at the source"
}
write() { both dd if=data of=FILE oflag=seek_bytes seek="$1" bs="$2" count=1 conv=notrunc status=none; }

pair
random data 5000000
for channels in 1 4; do
	outgoing vm $channels
	truncate -s 20M src/vm/ram
	tell src/vm start
	for file in ram device-state/dev; do
		say "$file, $channels channels"
		rm -f model
		if [ $file = ram ]; then truncate -s 20M model; else : >model; fi
		both dd if=data of=FILE bs=70001 conv=notrunc status=none
		compare
		both fallocate -p -o 100000 -l 3000000 FILE
		write 200000 333333
		compare
		write 1500000 1
		both fallocate -p -o 0 -l 50 FILE
		both fallocate -p -o 4096 -l 4096 FILE
		zero 3000000 777777
		write 3100000 5
		compare
		both truncate -s 2500001 FILE
		compare
		both truncate -s 6000000 FILE
		compare
		write 5000000 1000000
		both truncate -s 3000000 FILE
		both truncate -s 8000000 FILE
		write 3500000 10
		compare
		both fallocate -p -o 7000000 -l 9000000 FILE
		both fallocate -p -o 9000000 -l 1000 FILE
		compare
		zero 7900000 400000
		compare
		both fallocate -l 9000000 FILE
		both fallocate -n -o 9000000 -l 100000 FILE
		compare
		both dd if=data of=FILE bs=3M count=1 status=none
		compare
		for i in {1..30}; do
			write $((i * 40000)) 100000
			both truncate -s $((i * 50000)) FILE
			both fallocate -p -o $((i * 30000)) -l 12345 FILE
		done
		compare
		both truncate -s 0 FILE
		compare
		both truncate -s 1 FILE
		write 0 3000000
		compare
		for text in one two three; do
			echo $text >>"src/vm/$file"
			echo $text >>model
		done
		compare
		cp model "model.$(basename $file)"
	done
	tell src/vm complete
	same model.ram dst/vm/ram
	same model.dev dst/vm/device-state/dev
	forget src/vm dst/vm
done
