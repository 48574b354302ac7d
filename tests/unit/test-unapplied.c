/* SPDX-License-Identifier: Apache-2.0 */
/* What a channel has sent and the destination may not have applied. */
#include "unapplied.h"
#include "check.h"

#include <string.h>

static struct unapplied u;

static void begin(void)
{
    cr_assert(zero(int, unapplied_init(&u)));
}

static void end(void)
{
    unapplied_fini(&u);
}

TestSuite(unapplied, .init = begin, .fini = end);

Test(unapplied, nothing)
{
    cr_expect(unapplied_is_empty(&u));
    cr_expect(not(unapplied_touches(&u, 0, UINT64_MAX)));
    unapplied_pass(&u, 0);
    unapplied_pass(&u, UINT64_MAX);
    cr_expect(unapplied_is_empty(&u));
}

Test(unapplied, to_the_byte)
{
    unapplied_add(&u, 1, 100, 50);
    cr_expect(not(unapplied_is_empty(&u)));
    cr_expect(not(unapplied_touches(&u, 0, 100)));
    cr_expect(unapplied_touches(&u, 0, 101));
    cr_expect(unapplied_touches(&u, 149, 1));
    cr_expect(unapplied_touches(&u, 120, 1), "inside");
    cr_expect(unapplied_touches(&u, 0, 1000), "around");
    cr_expect(not(unapplied_touches(&u, 150, 100)));
}

Test(unapplied, in_the_order_of_their_packets)
{
    unapplied_add(&u, 3, 0, 10);
    unapplied_add(&u, 7, 100, 10);
    unapplied_add(&u, 9, 0, 10);
    unapplied_pass(&u, 2);
    cr_expect(unapplied_touches(&u, 0, 10));
    unapplied_pass(&u, 8);
    cr_expect(not(unapplied_touches(&u, 100, 10)));
    cr_expect(unapplied_touches(&u, 0, 10), "said again by a later one");
    unapplied_pass(&u, 5);
    cr_expect(unapplied_touches(&u, 0, 10), "an older count changes nothing");
    unapplied_pass(&u, 9);
    cr_expect(unapplied_is_empty(&u));
}

/* What goes on where the last one ended is one range, until the last packet of it is applied. */
Test(unapplied, neighbours_are_one)
{
    for (unsigned i = 0; i < 3 * UNAPPLIED_MAX; i++)
        unapplied_add(&u, i + 1, 10 * i, 10);
    cr_expect(not(unapplied_touches(&u, 30 * UNAPPLIED_MAX, 1)));
    unapplied_pass(&u, 3 * UNAPPLIED_MAX - 1);
    cr_expect(unapplied_touches(&u, 0, 1));
    unapplied_pass(&u, 3 * UNAPPLIED_MAX);
    cr_expect(unapplied_is_empty(&u));
}

Test(unapplied, too_many)
{
    uint64_t last = UNAPPLIED_MAX + 2;

    for (uint64_t i = 1; i <= UNAPPLIED_MAX; i++)
        unapplied_add(&u, i, 100 * i, 10);
    cr_expect(not(unapplied_touches(&u, 0, 100)), "there is room for as many");
    unapplied_add(&u, last - 1, 0, 1);
    unapplied_add(&u, last, 50, 1);
    cr_expect(unapplied_touches(&u, UINT64_MAX - 1, 1), "everything counts as said");
    unapplied_pass(&u, last - 1);
    cr_expect(unapplied_touches(&u, UINT64_MAX - 1, 1));
    cr_expect(not(unapplied_is_empty(&u)));
    unapplied_add(&u, last + 1, 500, 10);
    unapplied_pass(&u, last);
    cr_expect(not(unapplied_touches(&u, 0, 500)));
    cr_expect(unapplied_touches(&u, 500, 1), "what was added meanwhile is kept");
    unapplied_pass(&u, last + 1);
    cr_expect(unapplied_is_empty(&u));
}

/* The ring goes around, many times. */
Test(unapplied, model)
{
    enum { SPACE = 64, WINDOW = 40 };
    uint64_t said[SPACE] = {0}; /* by which packet last */
    uint64_t sequence = 0, applied = 0;
    unsigned x = 1;

    for (unsigned i = 0; i < 20000; i++) {
        x = x * 1103515245u + 12345u;
        unsigned start = (x >> 8) % SPACE, len = 1 + (x >> 16) % 5;
        len = len < SPACE - start ? len : SPACE - start;
        if (sequence - applied < WINDOW && x >> 30) {
            unapplied_add(&u, ++sequence, start, len);
            for (unsigned b = start; b < start + len; b++)
                said[b] = sequence;
        } else if (applied < sequence) {
            applied += 1 + (x >> 4) % (unsigned)(sequence - applied);
            unapplied_pass(&u, applied);
        }
        for (unsigned b = 0; b < SPACE; b++) {
            if (said[b] > applied)
                cr_assert(unapplied_touches(&u, b, 1), "byte %u, packet %d", b, (int)said[b]);
        }
        if (applied == sequence)
            cr_assert(unapplied_is_empty(&u));
    }
}
