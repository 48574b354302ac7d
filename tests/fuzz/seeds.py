#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""
Writes the inputs that were made by hand into the corpus: seeds.py [DIRECTORY].
The other files there were found by running. The formats are at the top of each
target; zstd(1) makes the frames.
"""
import os
import struct
import subprocess
import sys

TOP = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)), 'corpus')
KIB, MIB = 1 << 10, 1 << 20


def write(target, name, content):
    os.makedirs(os.path.join(TOP, target), exist_ok=True)
    with open(os.path.join(TOP, target, name), 'wb') as f:
        f.write(content)


def u16(value):
    return struct.pack('<H', value)


def u24(value):
    return struct.pack('<I', value)[:3]


# The destination: see enum code and the flags in fuzz-incoming.c.
CHECKSUM, ZSTD, LOOSE, ODD, DIGEST, BUSY, PLACES, RESUME = 1, 2, 4, 8, 16, 32, 64, 128
LATE = 128
HOW_BYTES, HOW_ZSTD, HOW_SEQUENCE, HOW_CHECK, HOW_LIE, HOW_FAR, HOW_ROUGH, HOW_SPLIT = 1, 2, 4, 8, 16, 32, 64, 128
READ, SEEK, READABLE, MAP, FILE_DIGEST, CANCEL, QUERY, REMOVE, PATH, SETTLE = range(10)
CLOSED, RESET, TIMED_OUT, BROKEN, MUTE, DEAF = 0, 1, 2, 3, 4, 8
TWICE, AS_DATA, LIE, SKEW, ASTRAY, NO_WELCOME, SWAP, BY_RDMA = 1, 2, 4, 8, 16, 32, 64, 128
OF_SESSION, OF_NAME, OF_IDENTITY, OF_CHANNEL, DAMAGED, OF_FEATURES = range(6)


def header(channels, devices=0, flags=CHECKSUM, slice_=0, seconds=60):
    return bytes([channels - 1, devices, flags, slice_] + [seconds] * bool(flags & RESUME))


def packet(kind, file, offset, length, where=0, how=0):
    return bytes([0, kind, file, where, how]) + u24(offset) + u24(length)


def data(file, offset, length, seed=5, how=0, where=0):
    return packet(1, file, offset, length, where, how) + bytes([seed])


def discard(file, offset, length, channel):
    return packet(2, file, offset, length, 64 + channel)


def truncate(file, size, channel):
    return packet(3, file, size, 3, 64 + channel)


def zero(file, offset, length):
    return packet(4, file, offset, length)


def pages(file, offset, length, seed=5, how=0):
    return packet(5, file, offset, length, 0, how) + bytes([seed])


def create(size, name=b''):
    return bytes([1, len(name)]) + u24(size) + name


def end(file, skew=0):
    return bytes([2, file, skew])


def resume(file):
    return bytes([2, 128 + file])


def sync(number, skew=0):
    return bytes([3, number, skew])


def complete(number=1, skew=0, wrong=0):
    return bytes([4, number, skew, wrong])


def verify(number, file, count, first):
    return bytes([6, 128 + number, file, count, first])


def digest(number, file):
    return bytes([6, number, file])


def remove(file, skew=0):
    return bytes([12, file, 0, skew])


def rename(file, name, replaced=0, skew=0):
    """To "nameN", or in the place of another one."""
    return bytes([12, file, 1 | 2 * bool(replaced) | (replaced or name) << 2, skew])


def abort(cause, text):
    return bytes([7, cause, len(text)]) + text


def message(kind, body, number=0):
    return bytes([8, kind, len(body)]) + body + bytes([number])


def raw(lane, content):
    return bytes([9, lane, len(content)]) + content


def close(lane):
    return bytes([10, lane])


def user(what, file=0, offset=0, length=0):
    return bytes([11, what, file]) + u24(offset) + u16(length)


def expose(offset, length, how=0):
    return bytes([13, how]) + u24(offset) + u24(length)


def withdraw(n=0, offset=0, length=0, how=0):
    return bytes([13, 128 | n | how]) + u24(offset) + u24(length)


def placed(offset, length, seed=5, how=0):
    return bytes([14, how]) + u24(offset) + u24(length) + bytes([seed])


def lose(lane, after=0, how=CLOSED):
    return bytes([15, lane, how]) + u24(after)


def again(lane, how=0, *more):
    return bytes([16, lane, how]) + bytes(n % 256 for n in more)


def heard(skew):
    return bytes([17, skew % 256])


def passes(tenths):
    return bytes([18]) + u16(tenths)


AMBUSH = bytes([19, 128])


def ambush(lane):
    return bytes([19, lane])


COMMIT = bytes([5, 0])
FINISH = complete() + COMMIT


def incoming(name, *steps):
    write('incoming', name, b''.join(steps))


incoming('ram', header(2), create(2 * MIB), data(0, 0, 4096), data(0, MIB, 65536), zero(0, 0, 8192),
         pages(0, MIB, MIB, 3), FINISH)
incoming('zstd', header(3, 0, CHECKSUM | ZSTD), create(2 * MIB), data(0, 100, 90000, 7, HOW_ZSTD),
         pages(0, MIB, 256 * KIB, 9, HOW_ZSTD), FINISH)
incoming('devices', header(4, 2), create(MIB), create(0, b'a'), create(0, b'b'), data(1, 0, 5000),
         data(2, 0, 70000), data(1, 5000, 5000), user(READ, 1, 0, 9000), end(1), user(READ, 1, 0, 20000), resume(1),
         data(1, MIB, 40000), end(1), end(2), FINISH)
incoming('holes', header(2, 0, CHECKSUM | DIGEST), create(3 * MIB), pages(0, 0, MIB, 1), pages(0, MIB, MIB, 1),
         discard(0, 5000, 2 * MIB, 0), discard(0, 5000, 2 * MIB, 1), zero(0, 0, MIB), user(SEEK, 0, 0, 1), user(SEEK),
         user(MAP, 0, 0, 80), FINISH)
incoming('truncate', header(2), create(2 * MIB), data(0, MIB + 512 * KIB, 9000), truncate(0, MIB, 0),
         truncate(0, MIB, 1), data(0, MIB, 100), FINISH)
incoming('truncate-device', header(1), create(MIB), create(0, b'd'), data(1, 0, MIB - 7), data(1, MIB - 7, 7),
         data(1, MIB, 7), user(READABLE, 1, MIB + 1), truncate(1, 500, 0), data(1, 100, 1000), end(1), FINISH)
incoming('sync', header(3), create(MIB), sync(1), sync(2, 0x61), data(0, 0, 1), data(0, 1, 1), data(0, 2, 1), sync(3),
         digest(1, 0), user(SETTLE), FINISH)
incoming('loose', header(5, 1, CHECKSUM | LOOSE), create(3 * MIB), create(9, b'd'), data(0, 0, MIB),
         data(0, MIB, MIB), data(0, 2 * MIB, MIB), data(1, 0, 60000), pages(0, 0, MIB, 2), pages(0, MIB, MIB, 3),
         zero(0, 2 * MIB, MIB), user(SETTLE), FINISH)
incoming('odd', header(2, 0, CHECKSUM | ODD), create(3 * MIB + 100), data(0, 3 * MIB, 100),
         data(0, 3 * MIB - 4096, 4096), zero(0, 3 * MIB - 8192, 8192), truncate(0, 3 * MIB + 50, 0),
         truncate(0, 3 * MIB + 50, 1), user(FILE_DIGEST), FINISH)
incoming('far', header(2), create(MIB), discard(0, 0, 0xffffff, 0), data(0, 0xffff, 100, 1, HOW_FAR), sync(1))
incoming('query', header(2), create(MIB), data(0, 0, 10), user(QUERY))
incoming('cancel', header(2), create(MIB), data(0, 0, 10), user(CANCEL), data(0, 0, 10), user(REMOVE))
incoming('quota', header(2), create(0xffffff), create(MIB), create(0xffffff, b'x'), create(5, b'.x'), create(5, b'x/y'),
         create(5, b'ok'), data(1, 512 * KIB, MIB), FINISH)
incoming('budget', header(1), create(3 * MIB), create(MIB, b'a'), create(MIB, b'a'), create(MIB, b'b'),
         create(1, b'c'), data(2, MIB, 70000), data(1, MIB, 60000), user(SEEK, 1, 0, 1), user(MAP, 0, 3, 200), FINISH)
incoming('abort', header(1), create(MIB), abort(4, b'never'))
incoming('message', header(1), create(MIB), message(12, b''), message(5, b'123456789', 1))
incoming('close', header(2), create(MIB), data(0, 0, 10), close(0), sync(1))
incoming('raw', header(2), create(MIB), raw(0, b'MIGP' + bytes(60)))
incoming('cut', header(1), create(MIB), raw(0, b'MIGP' + bytes(30)), close(0))
incoming('slices', header(1, 0, CHECKSUM, 17), create(MIB), data(0, 0, 70000), FINISH)
incoming('split', header(1), create(MIB), data(0, 0, 5000, 1, HOW_SPLIT) + bytes([9]),
         data(0, 0, 5000, 2, HOW_SPLIT) + bytes([60]), pages(0, 0, 65536, 1, HOW_SPLIT) + bytes([33]), FINISH)
incoming('rewrite', header(2), create(2 * MIB), data(0, 0, MIB), data(0, 0, MIB, 9, HOW_SPLIT) + bytes(1),
         data(0, MIB, MIB), data(0, MIB, 4096, 8, HOW_SPLIT) + bytes(1), discard(0, 4096, 4096, 0),
         data(0, 0, 12288, 3, HOW_SPLIT) + bytes(1), FINISH)
incoming('wrong-check', header(1), create(MIB), data(0, 0, 1000, 5, HOW_CHECK) + bytes([1]))
incoming('verify', header(2), create(2 * MIB + 5000), data(0, 0, 70000), data(0, MIB, 5000), complete(1), verify(1, 0, 3, 0),
         user(SETTLE), verify(2, 0, 1, 2), user(SETTLE), verify(3, 0, 2, 2), user(SETTLE), COMMIT)
incoming('wrong-check-of-a-device', header(2, 0, 0), create(MIB), create(0, b'c'), data(1, 0, 1000, 5, HOW_CHECK) + bytes([1]),
         FINISH)
incoming('wrong-check-unchecked', header(1, 0, 0), create(MIB), data(0, 0, 1000, 5, HOW_CHECK) + bytes([1]), FINISH)
incoming('wrong-sequence', header(1), create(MIB), data(0, 0, 1000, 5, HOW_SEQUENCE) + bytes([1]))
incoming('wrong-frame', header(1, 0, ZSTD), create(MIB), packet(1, 0, 0, 5, 0, HOW_ZSTD | HOW_BYTES) + bytes(1),
         u16(4) + bytes.fromhex('28b52ffd'))
incoming('wrong-size', header(1, 0, CHECKSUM | ZSTD), create(MIB), data(0, 0, 9000, 1, HOW_ZSTD | HOW_LIE))
incoming('not-asked-for', header(1), create(MIB), data(0, 0, 9000, 1, HOW_ZSTD))
incoming('zero-of-device', header(1), create(MIB), create(0, b'd'), zero(1, 0, 4096))
incoming('pages-of-device', header(1), create(MIB), create(0, b'd'), pages(1, 0, 8192))
incoming('ahead', header(2, 0, CHECKSUM | BUSY), create(MIB), create(0, b'd'), sync(1, 72), sync(2, 73), sync(3, 82),
         end(1, 72), end(1, 80), resume(1), end(1, 72), data(0, 0, 10), data(1, 0, 10), sync(4), end(1, 80),
         data(0, 0, 99), complete(3), COMMIT)
incoming('stale', header(1), create(MIB), data(0, 0, 10), data(0, 0, 10), complete(1, 56), complete(2), digest(1, 0),
         COMMIT)
incoming('commit-after-more', header(2), create(MIB), data(0, 0, 10), complete(), data(0, 0, 20), COMMIT)
# What came after the commit was stored.
incoming('data-after-commit', header(2), create(MIB), data(0, 0, 10), FINISH, data(0, 0, 20))
incoming('busy', header(2, 0, CHECKSUM | BUSY), create(MIB), sync(1), sync(2), sync(3), digest(1, 0), user(SETTLE),
         create(5, b'x'), data(0, 0, 10), FINISH)
incoming('slow', header(2, 0, CHECKSUM | BUSY, 16), create(MIB), sync(1), data(0, 0, 3000), data(0, 0, 3000), sync(2),
         FINISH)

incoming('placed', header(2, 0, CHECKSUM | PLACES), create(3 * MIB), expose(0, 2 * MIB), expose(2 * MIB, MIB), placed(0, MIB),
         data(0, 5000, 5000), placed(4096, 9000, 9), zero(0, 0, 65536), discard(0, 0, 2 * MIB, 0), discard(0, 0, 2 * MIB, 1),
         placed(MIB + 100, 70000, 3), truncate(0, 2 * MIB, 0), truncate(0, 2 * MIB, 1), withdraw(), withdraw(), FINISH)
incoming('placed-unchecked', header(3, 0, PLACES | DIGEST), create(0), expose(0, MIB), placed(0, 1000), withdraw(), zero(0, 0, 4096),
         expose(0, 3 * MIB), placed(2 * MIB, MIB), FINISH)
incoming('placed-late-header', header(1, 0, PLACES), create(MIB), expose(0, MIB), withdraw(), placed(0, 5000, 1, 1), sync(1))
incoming('placed-nowhere', header(1, 0, PLACES), create(MIB), placed(0, 1000))
incoming('placed-past-the-end', header(1, 0, PLACES | CHECKSUM), create(0), expose(0, MIB), placed(3 * MIB - 10, 10), user(READ, 0, 0, 9))
incoming('placed-damaged', header(1, 0, PLACES | CHECKSUM), create(MIB), expose(0, MIB), placed(0, 1000, 1, 1))
incoming('placed-device', header(1, 0, PLACES), create(MIB), create(0, b'a'), create(0, b'b'), expose(0, MIB), placed(0, 1000, 1, 2))
incoming('placed-by-tcp', header(1), create(MIB), expose(0, MIB), placed(0, 1000))
incoming('expose-too-early', header(1, 0, PLACES), expose(0, MIB))
incoming('expose-twice', header(1, 0, PLACES), create(3 * MIB), expose(0, 2 * MIB), expose(MIB, MIB))
incoming('expose-odd', header(1, 0, PLACES), create(3 * MIB), expose(5, MIB, 64))
incoming('expose-too-much', header(1, 0, PLACES), create(MIB), expose(MIB, MIB), expose(3 * MIB, MIB), sync(1), expose(0, MIB), FINISH)
incoming('withdraw-nothing', header(1, 0, PLACES), create(MIB), expose(0, MIB), withdraw(0, 0, 5, 64))

# A skew of 88 is 3 more packets of channel 0 than there are.
incoming('removed', header(2, 0, CHECKSUM | DIGEST), create(MIB), create(0, b'a'), data(1, 0, 70000), remove(1), create(0, b'a'),
         data(1, 0, 5000, 9), end(1), remove(1), create(9, b'b'), data(1, 0, 10), FINISH)
incoming('renamed', header(3), create(MIB), create(0, b'a'), create(0, b'b'), data(1, 0, 5000), data(2, 0, MIB), rename(1, 5),
         rename(2, 0, 1), create(0, b'c'), data(1, 0, 9, 3), rename(1, 6), FINISH)
incoming('changes-that-wait', header(2), create(MIB), create(0, b'a'), remove(1, 88), create(0, b'a'), rename(2, 3, 0, 88),
         end(2), data(0, 0, 10), data(0, 0, 10), sync(1), data(0, 0, 10), sync(2), FINISH)
incoming('packet-after-removal', header(1), create(MIB), create(0, b'a'), remove(1), data(1, 0, 5000))
incoming('number-that-is-taken', header(2), create(MIB), create(0, b'a'), remove(1, 88), message(1, struct.pack('<IQH', 1, 0, 1) + b'x'))

# Connections that are lost and made again. The main channel has the number after the data channels.
AGAIN = CHECKSUM | RESUME
incoming('resume', header(2, 0, AGAIN), create(2 * MIB), data(0, 0, 4096), lose(0), data(0, 5000, 70000), again(0), lose(1, 0, RESET),
         data(0, MIB, 5000), again(1), data(0, MIB, 99), lose(2), sync(1), again(2), again(0), again(1), again(2), sync(2), FINISH)
incoming('resume-edges', header(1, 0, AGAIN), create(2 * MIB), lose(0, 1), data(0, 0, 4096), again(0), lose(0, 40), data(0, 9, 4096), again(0),
         lose(0, 64), data(0, 77, 4096, 9), again(0), lose(0, 70, RESET), pages(0, 0, 65536), again(0), lose(0, 5000), zero(0, 0, 4096),
         pages(0, MIB, 262144, 3), again(0), lose(0, 300000, TIMED_OUT), data(0, 0, MIB), data(0, MIB, 99), again(0), FINISH)
incoming('resume-in-place', header(1, 0, RESUME), create(2 * MIB), data(0, 0, MIB), pages(0, MIB, MIB, 3), lose(0, 300000, RESET),
         data(0, 0, MIB, 9), again(0), lose(0, 5000), pages(0, MIB, MIB, 3), again(0), lose(0, 70), pages(0, MIB, 65536, 129), again(0), FINISH)
incoming('resume-in-a-file', header(1, 0, RESUME), create(2 * MIB), lose(0, 200000), data(0, 0, MIB), again(0), lose(0, 0, RESET), data(0, MIB, MIB),
         again(0), lose(0, 70), data(0, 0, MIB, 9), again(0), FINISH)
incoming('resume-packed', header(1, 0, AGAIN | ZSTD), create(2 * MIB), lose(0, 99), data(0, 0, 90000, 7, HOW_ZSTD), again(0), lose(0, 80),
         pages(0, MIB, MIB, 9, HOW_ZSTD), again(0), FINISH)
incoming('resume-devices', header(3, 1, AGAIN), create(MIB), create(0, b'a'), data(1, 0, 5000), lose(2), data(1, 5000, 70000), user(READ, 1, 0, 9000),
         end(1), again(2), lose(3, 50), rename(1, 6), again(3), remove(1), lose(3, 0, RESET), again(3), FINISH)
incoming('resume-in-a-message', header(1, 0, AGAIN), create(MIB), lose(1, 10), sync(1), again(1), lose(1, 35), sync(2), again(1), lose(1, 40), sync(3),
         sync(4), again(1), lose(1, 0, BROKEN), message(12, b''), complete(), message(12, b''), again(1), COMMIT)
incoming('resume-unheard', header(1, 0, AGAIN), create(MIB), lose(1, 1000, MUTE), sync(1), sync(2), again(1), data(0, 0, 5000),
         lose(1, 1000, MUTE), complete(), again(1), COMMIT)
incoming('resume-deaf', header(1, 0, AGAIN), create(MIB), lose(1, 1000, DEAF), sync(1), again(1), lose(0, 5000, DEAF), data(0, 0, 5000), again(0),
         again(1, NO_WELCOME), again(0, NO_WELCOME), sync(2), again(1), again(0), FINISH)
incoming('resume-busy', header(2, 0, AGAIN | BUSY, 16), create(MIB), sync(1), data(0, 0, 3000), data(0, 0, 3000), lose(0), data(0, 0, 70000),
         again(0), data(0, 9, 9), data(0, 9, 9), lose(2), again(2), sync(2), FINISH)
incoming('resume-twice', header(2, 0, AGAIN), create(MIB), lose(0), again(0, TWICE), again(1, TWICE), data(0, 0, 5000), again(2, TWICE),
         lose(2), again(2, TWICE), again(0, AS_DATA), again(0, AS_DATA | TWICE), FINISH)
incoming('resume-loose', header(4, 1, AGAIN | LOOSE), create(3 * MIB), create(9, b'd'), lose(0, 9000), lose(1, 99), lose(2), lose(3),
         data(0, 0, MIB), data(0, MIB, MIB), data(0, 2 * MIB, MIB), data(1, 0, 60000), again(3), again(2), again(1), again(0), user(SETTLE), FINISH)
incoming('resume-late-channel', header(2, 0, AGAIN, 0, LATE | 60), again(2), again(0), again(0, AS_DATA), lose(2),
         again(1, AS_DATA), again(2), create(MIB), FINISH)
incoming('resume-late-channel-refused', header(2, 0, AGAIN, 0, LATE | 60), again(1, AS_DATA | BY_RDMA), again(1, AS_DATA | LIE, OF_CHANNEL, 1),
         again(1, AS_DATA | NO_WELCOME), again(1, AS_DATA | TWICE), create(MIB), FINISH)
incoming('resume-late-channel-never', header(2, 0, AGAIN, 0, LATE | 60), passes(700))
incoming('resume-nothing-but-hello', header(1, 0, AGAIN, 0, LATE | 60), lose(1), again(0, AS_DATA))
incoming('resume-lies', header(2, 0, AGAIN), create(MIB), again(0, LIE, OF_SESSION, 3), again(2, LIE, OF_SESSION, 15), again(0, LIE, OF_NAME),
         again(2, LIE, OF_IDENTITY), again(0, LIE, OF_CHANNEL, 2), again(0, LIE | AS_DATA, OF_CHANNEL, 9), again(2, LIE, OF_CHANNEL, 5),
         again(0, LIE, OF_CHANNEL, 1), again(0, LIE, DAMAGED, 20, 0, 7), again(1, LIE, OF_FEATURES), again(1, BY_RDMA), again(2, BY_RDMA),
         data(0, 0, 5000), FINISH)
incoming('resume-old-attempt', header(1, 0, AGAIN), create(MIB), sync(1), sync(2), again(1, SKEW, -3), again(1), FINISH)
incoming('resume-heard-again', header(1, 0, AGAIN), create(MIB), sync(1), again(1, SKEW, -1), FINISH)
incoming('resume-heard-too-many', header(1, 0, AGAIN), create(MIB), lose(1), again(1, SKEW, 5))
incoming('resume-heard-far-too-many', header(1, 0, AGAIN), create(MIB), again(1, LIE, OF_FEATURES))
incoming('resume-says-too-many', header(1, 0, AGAIN), create(MIB), heard(1), sync(1))
incoming('resume-says-too-few', header(1, 0, AGAIN), create(MIB), heard(-1), sync(1), sync(2), heard(0), sync(3), again(1), FINISH)
incoming('resume-astray', header(1, 0, AGAIN), create(MIB), lose(0, 70), data(0, 0, 10), data(0, 0, 20), again(0, ASTRAY, 4), sync(1))
incoming('resume-junk', header(1, 0, AGAIN), create(MIB), again(0, ASTRAY, -64))
incoming('resume-left-out', header(1, 0, AGAIN), create(MIB), lose(1), sync(1), sync(2), again(1, ASTRAY, 1), sync(3), FINISH)
incoming('resume-repeated', header(1, 0, AGAIN), create(MIB), sync(1), again(1, ASTRAY, -1), sync(2), again(1), FINISH)
incoming('resume-swapped', header(1, 0, AGAIN), create(MIB), sync(1), again(0, SWAP))
incoming('resume-swapped-main', header(1, 0, AGAIN), create(MIB), sync(1), again(1, SWAP))
incoming('resume-places', header(2, 0, AGAIN | PLACES), create(MIB), data(0, 0, 10), again(0), FINISH)
incoming('resume-for-no-time', header(1, 0, AGAIN, 0, 0), create(MIB), data(0, 0, 10), again(0), again(1), again(0, AS_DATA), close(0))
incoming('resume-not-asked-for', header(1), create(MIB), again(0), again(1), again(0, AS_DATA), AMBUSH, FINISH)
incoming('resume-completed', header(1, 0, AGAIN), create(MIB), FINISH, again(0), again(1), again(0, AS_DATA), data(0, 0, 10))
incoming('resume-removed', header(1, 0, AGAIN), create(MIB), FINISH, user(REMOVE), again(0), again(1))
incoming('resume-when-it-ends', header(2, 0, AGAIN), create(MIB), AMBUSH, data(0, 0, 10), FINISH)
incoming('resume-when-it-fails', header(2, 0, AGAIN), create(MIB), AMBUSH, again(0), AMBUSH, user(CANCEL))
incoming('resume-commit-of-nothing', header(2, 0, AGAIN), create(MIB), AMBUSH, COMMIT)
incoming('resume-in-vain', header(2, 0, AGAIN), create(MIB), ambush(0), lose(0))
incoming('resume-in-vain-main', header(2, 0, AGAIN), create(MIB), ambush(2), lose(2))
incoming('resume-in-vain-both', header(2, 0, AGAIN), create(MIB), ambush(1), lose(0), again(1))
incoming('resume-half-said', header(1, 0, AGAIN | BUSY), create(MIB), data(0, 0, 9), data(0, 0, 9), lose(0), again(0), data(0, 0, 9), data(0, 0, 9),
         again(0), data(0, 9, 9), again(0), data(0, 9, 9), data(0, 9, 9), data(0, 9, 9), data(0, 9, 9), FINISH)
incoming('resume-paused', header(2, 0, AGAIN), create(MIB), data(0, 0, 10), lose(0, 5), data(0, 0, 10), lose(2))
incoming('resume-paused-abort', header(2, 0, AGAIN), create(MIB), lose(0), abort(4, b'enough'))
incoming('resume-paused-query', header(2, 0, AGAIN), create(MIB), lose(0), lose(2), user(QUERY))
incoming('resume-too-late', header(2, 0, AGAIN), create(MIB), lose(2), passes(760), again(0))
incoming('resume-too-late-for-a-channel', header(2, 0, AGAIN, 0, 10), create(MIB), lose(1), passes(100), lose(2), passes(36), again(2))
incoming('resume-in-time', header(2, 0, AGAIN), create(MIB), lose(0), passes(500), lose(2), passes(249), again(2), again(0), FINISH)
incoming('resume-silence', header(1, 0, AGAIN), create(MIB), passes(601), again(1), raw(1, b'MIGM'), passes(601), again(1), FINISH)
incoming('silence', header(1), create(MIB), passes(601))
incoming('stalled', header(1), create(MIB), sync(1, 72), passes(500), message(12, b''), passes(500), message(12, b''), passes(500),
         message(12, b''), passes(500))
incoming('resume-stalled', header(2, 0, AGAIN), create(MIB), sync(1, 72), lose(0), passes(500), message(12, b''), passes(240), message(12, b''), again(0),
         passes(500), message(12, b''), passes(500), message(12, b''), passes(500), message(12, b''), passes(500))

# The decoders of the wire: decoder, what is to be made right, bytes.
HELLO, REPLY, MESSAGE, PACKET, BODY, ABORT = range(6)
MAGIC, CHECK, FIELDS = 1, 2, 4


def wire(name, decoder, fix, content):
    write('wire', name, bytes([decoder, fix]) + content)


hello = b'migfs\r\n\x1a' + struct.pack('<HHHHQ16sIIIHH256sQ', 1, 1, 1, 2, 3, b's' * 16, 4096, MIB, 5000, 4, 0, b'name', 0)
wire('hello', HELLO, MAGIC | CHECK | FIELDS, hello)
wire('hello-damaged', HELLO, 0, hello)
reply = b'MIGFS\r\n\x1a' + struct.pack('<HHHHQQQII256sQQ', 1, 13, 0, 4, 3, 1 << 30, 1 << 28, 64, 5000, b'full', 0, 0)
wire('reply', REPLY, MAGIC | CHECK | FIELDS, reply)
wire('reply-other-version', REPLY, MAGIC | CHECK, reply[:8] + u16(2) + reply[10:])
wire('message', MESSAGE, MAGIC | CHECK | FIELDS, struct.pack('<4sHHIIQQ', b'MIGM', 5, 0, 16, 0, 9, 0) + bytes(16))


def wire_packet(name, kind, flags, offset, range_, length, raw_length):
    wire(name, PACKET, MAGIC | CHECK,
         struct.pack('<4sBBHIIQQQQIIQ', b'MIGP', kind, flags, 0, 0, length, offset, range_, 1, 0, raw_length, 0, 0))


wire_packet('data', 1, 0, 4096, 0, 100, 100)
wire_packet('data-zstd', 1, 1, 4096, 0, 10, 100)
wire_packet('discard', 2, 0, 1, (1 << 46) - 1, 0, 0)
wire_packet('truncate', 3, 0, 1 << 46, 1, 0, 0)
wire_packet('zero', 4, 0, MIB - 4096, 4096, 0, 0)
wire_packet('pages', 5, 0, 0, MIB, 4096 + 32, 4096 + 32)
wire('body', BODY, 0, bytes([4, 0, 1, 2, 255]) + struct.pack('<HIQH', 1, 2, 3, 4) + b'text')
wire('abort', ABORT, 0, struct.pack('<IH', 4, 5) + b'hello')


# What users write: parser, text.
def text(name, parser, content):
    write('text', name, bytes([parser]) + content)


for i, line in enumerate([b'start\n', b' sync  ram\n', b'flush device-state/dev0\n', b'complete now', b'cancel\n\n']):
    text('command-%d' % i, 1, line)
for i, line in enumerate([b'tcp:h:1', b'tcp:[::1]:65535', b'unix:/run/x', b'rdma:h:svc-1', b'faulty::unix:/x',
                          b'faulty:cut=1+corrupt=2+delay=3+short=4+only=0:tcp:h:1']):
    text('uri-%d' % i, 3, line)
for i, line in enumerate([b'tcp:h:1\n', b'16\n', b'30\n', b'4\n', b'on\n', b'zstd\n', b'-100\n', b'off\n']):
    text('setting-%d' % i, 6 + i, line)
text('line', 0, b'\t a\tb \n')
text('name', 5, b'device-0')

# Compressed payloads: unpack (0), pack (2), damage (3); claimed size; bytes.
UNPACK, PACK, DAMAGE = 0, 2, 3
SIZE_STRIPE, SIZE_4096 = bytes([0]), bytes([5])


def zstd(content, *options):
    return subprocess.run(['zstd', '-c', *options], input=content, stdout=subprocess.PIPE, check=True).stdout


def claim(size):
    return bytes([64]) + u16(size)


def compression(name, *parts):
    write('compression', name, b''.join(parts))


words = b'hello world' * 90
frame = zstd(b'q' * 4096)
compression('pack-stripe', bytes([PACK, 0]), SIZE_STRIPE, bytes(6), b'abcabcabdabcabc')
compression('pack-small', bytes([PACK, 2]), claim(9000), bytes(6), b'abcabcabdabcabc')
compression('damage', bytes([DAMAGE, 0]), SIZE_4096, bytes([9, 0, 0, 4, 0, 0]), b'abcdefghabcdefgh')
compression('frame', bytes([UNPACK]), SIZE_4096, frame)
compression('frame-words', bytes([UNPACK]), claim(len(words)), zstd(words, '-19', '--no-check'))
compression('two-frames', bytes([UNPACK]), claim(8192), frame + frame)
compression('skippable', bytes([UNPACK]), SIZE_4096, bytes.fromhex('502a4d1804000000'), b'skip', frame)
compression('bomb', bytes([UNPACK]), SIZE_STRIPE, zstd(bytes(16 * MIB))[:2000])
# libzstd has decoders of its formats before 0.8, where it was built with them.
compression('frame-0.7', bytes([UNPACK]), claim(5), bytes.fromhex('27b52ffd2005400005'), b'hello', bytes.fromhex('c00000'))
