# SPDX-License-Identifier: Apache-2.0
"""What QEMU (from 9.0) writes with its capability mapped-ram; for live-migrate."""

import ctypes
import os
import re
import struct
import sys

PAGE = 4096
LIBC = ctypes.CDLL(None, use_errno=True)
PUNCH_HOLE = 3      # and keep the size


class Stream:
    """
    A stream of QEMU's in which the pages of each block of RAM have a place of their own; the file that arrives.

    The first block is the largest, the guest's RAM. A QEMU maps its pages where they are, and gets the rest in a file
    from which that block is left out.
    """

    BLOCK = struct.Struct(">QIQQQ")         # length, version of what follows, page size, where its bitmap is, where its pages are
    START = re.compile(rb"\x01.{4}\x03ram.{8}(?P<total>.{8})(?P<size>.)", re.DOTALL)

    def __init__(self, path):
        self.fd = os.open(path, os.O_RDWR)
        self.length = 0

    def is_known(self):
        """Whether the beginning has come."""
        head = os.pread(self.fd, 1 << 16, 0)
        begin = self.START.search(head, 8)
        if not begin or begin.start() > 4096:
            return False
        self.total_at, self.block_at = begin.start("total"), begin.start("size")
        at = self.block_at + 1 + head[self.block_at]
        self.name = head[self.block_at + 1:at].decode(errors="replace")
        length, version, page, self.bitmap_at, self.pages_at = self.BLOCK.unpack_from(head, at)
        if not self.pages_at:
            return False
        if head[:4] != b"QEVM" or version != 1 or page != PAGE or length % PAGE or self.pages_at % PAGE or \
           not at < self.bitmap_at < self.pages_at:
            raise ValueError("what arrives is no stream of QEMU's with mapped-ram")
        self.length = length
        return True

    def make_room(self):
        """All of the RAM can be mapped."""
        if os.fstat(self.fd).st_size < self.pages_at + self.length:
            os.ftruncate(self.fd, self.pages_at + self.length)

    def next_data(self, offset):
        """Where there is no hole."""
        try:
            return os.lseek(self.fd, offset, os.SEEK_DATA)
        except OSError:
            return sys.maxsize

    def clear_zeros(self):
        """A page that has become zero is none in the bitmap, and in the file it is as it was before."""
        pages = self.length // PAGE
        bitmap = os.pread(self.fd, (pages + 7) // 8, self.bitmap_at)
        known = 0       # there is no data before that
        for part in re.finditer(rb"[^\xff]+", bitmap):
            bits = f"{int.from_bytes(part[0], 'little'):0{8 * len(part[0])}b}"[::-1]
            for run in re.finditer("0+", bits):
                begin, end = (self.pages_at + min(8 * part.start() + page, pages) * PAGE for page in run.span())
                if begin >= known:
                    known = self.next_data(begin)
                if known < end and LIBC.fallocate(self.fd, PUNCH_HOLE, ctypes.c_long(begin), ctypes.c_long(end - begin)):
                    raise OSError(ctypes.get_errno(), "a page that has become zero cannot be cleared")

    def without_ram(self):
        """A descriptor of all but the RAM."""
        end, after = os.fstat(self.fd).st_size, self.pages_at + self.length
        out = os.memfd_create("devices", 0)
        os.ftruncate(out, end)
        os.pwrite(out, os.pread(self.fd, self.block_at, 0), 0)
        while (after := self.next_data(after)) < end:
            after += os.pwrite(out, os.pread(self.fd, 1 << 16, after), after)
        # The next block is the first one; it says itself where it is.
        block = os.pread(self.fd, 1 + 255 + self.BLOCK.size, self.pages_at + self.length)
        os.pwrite(out, block[:1 + block[0] + self.BLOCK.size], self.block_at)
        total, = struct.unpack(">Q", os.pread(self.fd, 8, self.total_at))
        os.pwrite(out, struct.pack(">Q", total - self.length), self.total_at)
        return out
