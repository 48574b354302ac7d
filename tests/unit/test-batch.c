/* SPDX-License-Identifier: Apache-2.0 */
/* What is sent in one go: where the bytes of each kind of entry are, and those of what is sent once more. */
#include "batch.h"
#include "check.h"

#include <string.h>

static struct batch batch;
static char payload[1000];

/* @n in the batch is @len bytes at @at. */
static void expect_part(int n, const void *at, size_t len)
{
    cr_assert(lt(int, n, batch.n));
    cr_expect(eq(ptr, batch.iov[n].iov_base, (void *)(uintptr_t)at), "part %d", n);
    cr_expect(eq(sz, batch.iov[n].iov_len, len), "part %d", n);
}

static void begin(struct channel_entry *entries)
{
    memset(&batch, 0xff, sizeof(batch));
    batch_begin(&batch, entries);
    cr_expect(eq(ptr, batch.entries, entries));
    cr_expect(zero(int, batch.n));
    cr_expect(zero(u64, batch.bytes));
    cr_expect(zero(u64, batch.large));
    cr_expect(zero(u64, batch.uncopied));
    cr_expect(zero(u64, batch.placed));
    cr_expect(zero(ptr, (void *)(uintptr_t)batch.piped));
    cr_expect(zero(ptr, batch.zerocopy));
}

static struct channel_entry of(enum channel_place place)
{
    return (struct channel_entry){.place = place, .payload = payload, .length = sizeof(payload)};
}

Test(batch, memory)
{
    struct channel_entry entry = of(CHANNEL_MEMORY), empty = {.place = CHANNEL_MEMORY};

    begin(&entry);
    batch_add(&batch, &entry, false);
    batch_add(&batch, &empty, false);
    expect_part(0, &entry.header, 64);
    expect_part(1, payload, 1000);
    expect_part(2, &empty.header, 64);
    cr_expect(eq(int, batch.n, 3), "there is no part without bytes");
    cr_expect(eq(u64, batch.bytes, 64 + 1000 + 64));
}

Test(batch, slice)
{
    struct channel_entry entry = of(CHANNEL_SLICE);

    begin(&entry);
    batch_add(&batch, &entry, false);
    expect_part(0, payload, 1000);
    cr_expect(eq(int, batch.n, 1), "it has its headers");
    cr_expect(eq(u64, batch.bytes, 1000));
}

Test(batch, parts)
{
    struct channel_entry entry = of(CHANNEL_PARTS);
    struct iovec parts[] = {{payload, 1}, {payload + 10, 990}, {payload + 5, 9}};

    entry.parts = parts;
    entry.part_count = 3;
    begin(&entry);
    batch_add(&batch, &entry, false);
    expect_part(0, &entry.header, 64);
    for (int i = 0; i < 3; i++)
        expect_part(1 + i, parts[i].iov_base, parts[i].iov_len);
    cr_expect(eq(int, batch.n, 4));
    cr_expect(eq(u64, batch.bytes, 1064));
}

/* The payloads that go another way: their headers go this one. */
Test(batch, only_the_header)
{
    struct channel_entry piped = of(CHANNEL_PIPE), placed = of(CHANNEL_MEMORY), uncopied = of(CHANNEL_MEMORY);

    placed.placed = true;
    begin(&piped);
    batch_add(&batch, &placed, false);
    batch_add(&batch, &placed, false);
    batch_add(&batch, &piped, false);
    cr_expect(eq(int, batch.n, 3));
    cr_expect(eq(u64, batch.bytes, 3 * 64));
    cr_expect(eq(u64, batch.placed, 2000));
    cr_expect(eq(ptr, (void *)(uintptr_t)batch.piped, &piped));
    begin(&uncopied);
    batch_add(&batch, &uncopied, true);
    expect_part(0, &uncopied.header, 64);
    cr_expect(eq(int, batch.n, 1));
    cr_expect(eq(ptr, batch.zerocopy, &uncopied));
}

/* Of what the destination has the beginning. */
Test(batch, rest)
{
    struct channel_entry entry = of(CHANNEL_MEMORY);
    const char *header = (const char *)&entry.header;

    entry.orphan = true;
    static const uint32_t skips[] = {1, 63, 64, 65, 64 + 999};
    for (size_t i = 0; i < ARRAY_LENGTH(skips); i++) {
        entry.skip = skips[i];
        begin(&entry);
        batch_add(&batch, &entry, false);
        cr_expect(eq(u64, batch.bytes, 1064 - entry.skip), "skip %u", entry.skip);
        if (entry.skip < 64)
            expect_part(0, header + entry.skip, 64 - entry.skip);
        uint32_t of_payload = entry.skip < 64 ? 0 : entry.skip - 64;
        expect_part(batch.n - 1, payload + of_payload, 1000 - of_payload);
        cr_expect(eq(int, batch.n, entry.skip < 64 ? 2 : 1), "skip %u", entry.skip);
    }
    entry.skip = 10;
    entry.length = 0;
    begin(&entry);
    batch_add(&batch, &entry, false);
    expect_part(0, header + 10, 54);
    cr_expect(eq(int, batch.n, 1));
}

Test(batch, room)
{
    struct channel_entry entry = of(CHANNEL_MEMORY), parts = of(CHANNEL_PARTS);

    begin(&entry);
    parts.part_count = TRANSPORT_IOV_MAX - 1;
    cr_expect(batch_has_room(&batch, &parts));
    batch.n = 1;
    cr_expect(not(batch_has_room(&batch, &parts)));
    batch.n = TRANSPORT_IOV_MAX - 2;
    cr_expect(batch_has_room(&batch, &entry));
    batch.n++;
    cr_expect(not(batch_has_room(&batch, &entry)));
    parts.part_count = 0;
    cr_expect(batch_has_room(&batch, &parts));
}
