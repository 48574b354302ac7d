/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel says of sends without a copy, in all the ways that it can say it. */
#include "completions.h"
#include "check.h"

#include <stdlib.h>
#include <string.h>

static struct completions c;

/* @n sends of 1, 2, 3... bytes, the first of which the kernel calls @first. */
static void begin(uint32_t first, unsigned n)
{
    completions_init(&c, first);
    for (unsigned i = 0; i < n; i++)
        cr_assert(eq(u64, completions_add(&c, i + 1), (uint64_t)first + i + 1));
}

static void expect_sums(uint64_t sends, uint64_t bytes, uint64_t copied_sends, uint64_t copied_bytes)
{
    cr_expect(eq(u64, c.returns.sends, sends));
    cr_expect(eq(u64, c.returns.bytes, bytes));
    cr_expect(eq(u64, c.returns.copied_sends, copied_sends));
    cr_expect(eq(u64, c.returns.copied_bytes, copied_bytes));
}

Test(completions, one_by_one)
{
    begin(0, 3);
    cr_expect(completions_in_flight(&c));
    for (uint32_t i = 0; i < 3; i++) {
        completions_end(&c, i, i, false);
        cr_expect(eq(u64, c.returns.ticket, i + 1));
    }
    cr_expect(not(completions_in_flight(&c)));
    expect_sums(3, 6, 0, 0);
}

Test(completions, merged)
{
    begin(0, 10);
    completions_end(&c, 0, 6, false);
    cr_expect(eq(u64, c.returns.ticket, 7));
    cr_expect(completions_in_flight(&c));
    completions_end(&c, 7, 9, true);
    cr_expect(eq(u64, c.returns.ticket, 10));
    cr_expect(not(completions_in_flight(&c)));
    expect_sums(7, 28, 3, 27);
}

/* The ticket is that of the first gap; what is behind it counts at once. */
Test(completions, out_of_order)
{
    begin(0, 6);
    completions_end(&c, 4, 5, true);
    cr_expect(eq(u64, c.returns.ticket, 0));
    expect_sums(0, 0, 2, 11);
    completions_end(&c, 1, 2, false);
    cr_expect(eq(u64, c.returns.ticket, 0));
    completions_end(&c, 0, 0, false);
    cr_expect(eq(u64, c.returns.ticket, 3));
    completions_end(&c, 3, 3, false);
    cr_expect(eq(u64, c.returns.ticket, 6));
    cr_expect(not(completions_in_flight(&c)));
    expect_sums(4, 10, 2, 11);
}

/* The kernel counts in 32 bits. */
Test(completions, wrap_around)
{
    begin(UINT32_MAX - 2, 6);
    completions_end(&c, UINT32_MAX - 2, UINT32_MAX - 2, false);
    cr_expect(eq(u64, c.returns.ticket, UINT32_MAX - 1ull));
    /* Over the edge, backwards first. */
    completions_end(&c, 1, 2, false);
    cr_expect(eq(u64, c.returns.ticket, UINT32_MAX - 1ull));
    completions_end(&c, UINT32_MAX - 1, 0, false);
    cr_expect(eq(u64, c.returns.ticket, UINT32_MAX + 4ull));
    cr_expect(not(completions_in_flight(&c)));
    expect_sums(6, 21, 0, 0);
}

Test(completions, wraps_many_times)
{
    uint64_t bytes = 0;

    completions_init(&c, UINT32_MAX - 5000);
    for (uint32_t i = 0; i < 10000; i++) {
        uint32_t kernel = UINT32_MAX - 5000 + i;
        cr_assert(completions_has_room(&c));
        completions_add(&c, i);
        bytes += i;
        if (i % 7 == 6)
            completions_end(&c, kernel - 6, kernel, false);
    }
    completions_end(&c, UINT32_MAX - 5000 + 9996, UINT32_MAX - 5000 + 9999, false);
    cr_expect(not(completions_in_flight(&c)));
    expect_sums(10000, bytes, 0, 0);
}

/* What cannot be is harmless: twice the same, and what was never sent. */
Test(completions, nonsense)
{
    begin(100, 4);
    completions_end(&c, 100, 101, false);
    completions_end(&c, 100, 101, true);
    completions_end(&c, 90, 99, false);
    completions_end(&c, 104, 200, false);
    completions_end(&c, 5000000, 5000001, false);
    cr_expect(eq(u64, c.returns.ticket, 102));
    expect_sums(2, 3, 0, 0);
    /* The part of it that can be counts. */
    completions_end(&c, 99, 102, false);
    cr_expect(eq(u64, c.returns.ticket, 103));
    completions_end(&c, 103, 300, true);
    cr_expect(eq(u64, c.returns.ticket, 104));
    expect_sums(3, 6, 1, 4);
}

Test(completions, full)
{
    completions_init(&c, 7);
    for (unsigned i = 0; i < COMPLETIONS_MAX; i++) {
        cr_assert(completions_has_room(&c));
        completions_add(&c, 1);
    }
    cr_expect(not(completions_has_room(&c)));
    completions_end(&c, 8, 8, false);
    cr_expect(not(completions_has_room(&c)), "the oldest one is still out");
    completions_end(&c, 7, 7, false);
    cr_expect(completions_has_room(&c));
    completions_end(&c, 9, 7 + COMPLETIONS_MAX - 1, false);
    cr_expect(not(completions_in_flight(&c)));
    expect_sums(COMPLETIONS_MAX, COMPLETIONS_MAX, 0, 0);
}

/* Random ranges in random order: each send ends once. */
Test(completions, any_order)
{
    for (unsigned seed = 0; seed < 500; seed++) {
        uint32_t first[64], last[64], at = seed * 2654435761u;
        unsigned ranges = 0, total = 0;
        uint64_t bytes = 0;
        srand(seed);
        completions_init(&c, at);
        while (total < 500) {
            unsigned n = 1 + (unsigned)rand() % 20;
            first[ranges] = at;
            last[ranges++] = at + n - 1;
            for (unsigned i = 0; i < n; i++) {
                completions_add(&c, at + i);
                bytes += (uint32_t)(at + i);
            }
            at += n;
            total += n;
        }
        uint64_t sends = total;
        while (ranges > 0) {
            unsigned pick = (unsigned)rand() % ranges;
            uint64_t before = c.returns.ticket;
            completions_end(&c, first[pick], last[pick], false);
            cr_assert(ge(u64, c.returns.ticket, before));
            first[pick] = first[ranges - 1];
            last[pick] = last[--ranges];
            cr_assert(eq(int, completions_in_flight(&c), ranges > 0));
        }
        cr_assert(eq(u64, c.returns.ticket, c.next));
        cr_assert(eq(u64, c.returns.sends, sends));
        cr_assert(eq(u64, c.returns.bytes, bytes));
    }
}
