/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of a packet of scattered pages. */
#include "gathered.h"
#include "check.h"

#include <endian.h>

#define PAGE WIRE_PAGE_SIZE

static struct gathered g;
static struct plan_pages pages;
static char memory[8 * PAGE];

/* A page of the stripe. */
static void set(uint64_t *bits, unsigned page)
{
    bits[page / 64] |= 1ull << page % 64;
}

static struct packet packet_of(unsigned first, unsigned count)
{
    return (struct packet){.type = WIRE_PAGES,
                           .flags = WIRE_PACKET_PARTIAL,
                           .offset = 9ull * WIRE_STRIPE_SIZE + first * PAGE,
                           .range = (uint64_t)count * PAGE};
}

/* The bits travel from the packet's first page on: first those of the data, then those of what is said. */
Test(gathered, bits)
{
    struct packet packet = packet_of(60, 70);

    set(pages.data, 60);
    set(pages.data, 124);
    set(pages.said, 60);
    set(pages.said, 61);
    set(pages.said, 124);
    set(pages.said, 129);
    gathered_begin(&g, &packet, &pages);
    cr_assert(eq(u32, g.count, 1));
    cr_assert(eq(sz, g.parts[0].iov_len, 4 * 8));
    const uint64_t *bits = g.parts[0].iov_base;
    cr_expect(eq(u64, le64toh(bits[0]), 1));
    cr_expect(eq(u64, le64toh(bits[1]), 1));
    cr_expect(eq(u64, le64toh(bits[2]), 3));
    cr_expect(eq(u64, le64toh(bits[3]), 1 | 1 << 5));
}

Test(gathered, pages_that_touch_are_one_part)
{
    struct packet packet = packet_of(0, 3);

    gathered_begin(&g, &packet, &pages);
    cr_expect(eq(sz, g.parts[0].iov_len, 2 * 8));
    gathered_add(&g, memory + 4 * PAGE);
    gathered_add(&g, memory + 5 * PAGE);
    gathered_add(&g, memory + 7 * PAGE);
    gathered_add(&g, memory);
    cr_assert(eq(u32, g.count, 4));
    cr_expect(eq(ptr, g.parts[1].iov_base, memory + 4 * PAGE));
    cr_expect(eq(sz, g.parts[1].iov_len, 2 * PAGE));
    cr_expect(eq(ptr, g.parts[2].iov_base, memory + 7 * PAGE));
    cr_expect(eq(sz, g.parts[2].iov_len, PAGE));
    cr_expect(eq(ptr, g.parts[3].iov_base, memory));
}

/* A page that follows the bits in memory is still no part of them; all pages may be apart. */
Test(gathered, most)
{
    struct packet packet = packet_of(0, 256);

    gathered_begin(&g, &packet, &pages);
    g.parts[0].iov_len = 64;
    gathered_add(&g, (const char *)g.bitmaps + 64);
    cr_expect(eq(u32, g.count, 2));
    for (unsigned page = 1; page < 256; page++)
        gathered_add(&g, memory + page % 2 * 2 * PAGE);
    cr_expect(eq(u32, g.count, 257));
}
