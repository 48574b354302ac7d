#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# examples/live-migrate moves a guest whose RAM is no file: QEMU 10 writes it with mapped-ram, and the QEMU at the destination
# maps it where it has arrived. Before that, what can go wrong, after each of which the guest runs at the source.
. "$(dirname "$0")/functions.sh"
requires as ld python3
newer_qemu
qemu_words=("${qemu[@]}")

tool=$root/examples/live-migrate
say "what is in a stream"
PYTHONPATH=$root/examples python3 -B - <<'END'
import os, random, struct
from mapped_ram import PAGE, Stream

PAGES = 1031
AT = 1 << 20        # of the pages

def block(name, length, at):
    name = name.encode()
    return bytes([len(name)]) + name + struct.pack(">QIQQQ", length, 1, PAGE, at - (1 << 19), at)

def stream(bits, data):
    """With a word in each page of @data, and @bits in the bitmap. How it begins, and Stream."""
    second = AT + PAGES * PAGE
    head = b"QEVM" + bytes(range(60)) + b"\x01" + bytes(4) + b"\x03ram" + bytes(8)
    head += struct.pack(">Q", (PAGES + 4) * PAGE | 4)
    with open("stream", "wb") as f:
        os.ftruncate(f.fileno(), second + (2 << 20))
        f.write(head + block("pc.ram", PAGES * PAGE, AT))
        f.seek(AT - (1 << 19))
        f.write(sum(1 << page for page in bits).to_bytes((PAGES + 63) // 64 * 8, "little"))
        for page in data:
            f.seek(AT + page * PAGE)
            f.write(b"old or new" * 100)
        f.seek(second)
        f.write(block("vga.vram", 4 * PAGE, second + (1 << 20)))
        f.seek(second + (1 << 20))
        f.write(b"screen")
        f.seek(second + (1 << 20) + 4 * PAGE)
        f.write(b"state of devices")
    it = Stream("stream")
    assert it.is_known() and (it.name, it.length, it.pages_at) == ("pc.ram", PAGES * PAGE, AT)
    return head, it

def whole(fd):
    return os.pread(fd, os.fstat(fd).st_size, 0)

random.seed(1)
some = lambda: set(random.sample(range(PAGES), PAGES // 2))
for bits, data in ((set(), set()), (set(), set(range(PAGES))), (set(range(PAGES)), set(range(PAGES))), ({0}, {0, 1, PAGES - 1}),
                   ({PAGES - 1}, {0, PAGES - 2}), *((some(), some()) for _ in range(6))):
    head, it = stream(bits, data)
    before = whole(it.fd)
    it.clear_zeros()
    after = whole(it.fd)
    for page in range(PAGES):
        at = AT + page * PAGE
        assert after[at:at + PAGE] == (before[at:at + PAGE] if page in bits else bytes(PAGE)), (page, page in bits, page in data)
    assert after[:AT] == before[:AT] and after[AT + PAGES * PAGE:] == before[AT + PAGES * PAGE:]
    rest = it.without_ram()
    second = AT + PAGES * PAGE
    got = whole(rest)
    expected = head[:-8] + struct.pack(">Q", 4 * PAGE | 4) + block("vga.vram", 4 * PAGE, second + (1 << 20))
    assert got[:len(expected)] == expected and got[second:] == after[second:]
    os.close(rest)
    os.close(it.fd)

# Not yet, not at all, and not this.
for text, known in ((b"", False), (b"QEVM", False), (bytes(8192), False), (os.urandom(70000).replace(b"ram", b"RAM"), False),
                    (head + block("pc.ram", 100, AT), None), (b"x" + head[1:] + block("pc.ram", PAGE, AT), None)):
    with open("stream", "wb") as f:
        f.write(text + bytes(100))
    try:
        assert Stream("stream").is_known() is known
    except ValueError:
        assert known is None
END

as --32 --defsym LAST=$((96 << 20)) --defsym CHUNK=524288 --defsym TICKS=15640 -o guest.o "$root/examples/guest.s" # 40 MB/s
ld -m elf_i386 -Ttext 0x7c00 --oformat binary -o guest.img guest.o
common=(-accel tcg -m 128 -nodefaults -no-user-config -display none -no-reboot
	-drive "if=floppy,format=raw,readonly=on,file=$dir/guest.img")
counter() { cat "$1.serial" 2>/dev/null | grep -c 'block [0-9]* good$' || true; }
counter_above() {
	! grep -q WRONG "$1.serial" 2>/dev/null || fail "the guest has found a wrong word in its memory"
	[ "$(counter "$1")" -gt "$2" ]
}
# sends STATUS PATTERN [OPTION...]: what it ends with, and says
sends() {
	local status=0
	limited env --default-signal=INT "$tool" send --mapped-ram --qmp qmp --uri "$uri" "${@:3}" src/vm >said 2>&1 || status=$?
	[ $status = "$1" ] && grep -qE -- "$2" said || fail "send ${*:3}: status $status, and says: $(cat said) $(cat received.log)"
}
here() {
	eventually "the guest goes on" counter_above source "$(counter source)"
	[ ! -e src/vm ] || fail "src/vm is left"
	rmdir dst/vm 2>/dev/null || true
}

uri=unix:$dir/socket
mkdir received
migfs dst -o "listen=$uri,backing=$dir/received"
migfs src
"${qemu_words[@]}" "${common[@]}" -serial "file:$dir/source.serial" -qmp unix:qmp,server=on,wait=off >qemu.log 2>&1 &
qemu=$!
eventually "the guest runs" counter_above source 4

# receive ID SIZE: expects it, with a backend like that
receive() {
	"$tool" receive --wait dst/vm -- "${qemu_words[@]}" "${common[@]}" -serial "file:$dir/destination.serial" \
		-machine "pc,memory-backend=$1" -object "memory-backend-file,id=$1,share=on,size=$2,mem-path={ram},offset={offset}" \
		>received.log 2>&1 &
	receiving=$!
	eventually "it is expected" test -d dst/vm
}

say "not with this"
sends 1 'RAM that is a shared file' --ram guest.img
here
say "it does not converge"
sends 1 'it does not converge: after 2 rounds' --downtime-limit 1 --max-rounds 2 --max-bandwidth 30M
here
say "^C"
status=0
env --default-signal=INT "$tool" send --mapped-ram --qmp qmp --uri "$uri" --max-bandwidth 5M src/vm >said 2>&1 &
sending=$!
sent() { [ -e src/vm/status ] && [ "$(status src/vm accepted-bytes)" -gt $((1 << 20)) ]; }
eventually "some of it is sent" sent
kill -INT $sending
wait $sending || status=$?
[ $status = 130 ] && grep -q 'interrupted by SIGINT; the guest runs on here' said || fail "status $status: $(cat said)"
here
say "not into that"
receive ram 128M
sends 1 'cancel' --max-bandwidth 5M
not wait $receiving
grep -q "the source's RAM is pc.ram of 134217728 bytes, and that of the QEMU here ram" received.log || fail "$(cat received.log)"
here

say "and it moves"
receive pc.ram 128M
limited "$tool" send --mapped-ram --quit --qmp qmp --uri "$uri" src/vm >said 2>&1 || fail "$(cat said) $(cat received.log)"
sed 's/^/    /' said
wait $qemu
eventually "the guest goes over all of its memory" counter_above destination 17
sed 's/^/    /' received.log
kill "$(sed -n 's/.*QEMU is process //p' received.log)"
wait $receiving || true
cat source.serial destination.serial | awk '{ line[NR] = $0 } END { for (n = 1; n < NR; n++)
	if (line[n] != "pass " int((n - 1) / 8) + 1 " block " n " good") { print "the guest said " line[n] " in line " n; exit 1 } }'
