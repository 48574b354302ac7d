/* SPDX-License-Identifier: Apache-2.0 */
#include "stall.h"
#include "check.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>

#define LIMIT 1000
#define STEP  250

static struct stall_watch watch;
static int64_t now;

static void begin(void)
{
    now = 5000;
    stall_init(&watch, LIMIT, STEP);
}

/* A look a step later. */
static int look(const struct stall_sight *sights, unsigned n)
{
    now += STEP;
    return stall_look(&watch, now, sights, n);
}

Test(stall, what_stands_still_has_stalled, .init = begin)
{
    struct stall_sight sights[] = {{true, 7}, {true, 7}};

    /* The first look is the first time that it is seen, the second one the first time that it has not moved. */
    for (int i = 0; i < 4; i++) {
        sights[0].mark++;
        cr_expect(eq(int, look(sights, 2), -1), "look %d", i);
    }
    sights[0].mark++;
    cr_expect(eq(int, look(sights, 2), 1));
}

Test(stall, the_first_of_several_is_named, .init = begin)
{
    struct stall_sight sights[] = {{false, 1}, {true, 1}, {true, 1}};
    int found = -1;

    for (int i = 0; i < 6 && found < 0; i++)
        found = look(sights, 3);
    cr_expect(eq(int, found, 1));
}

Test(stall, slow_is_not_stalled, .init = begin)
{
    struct stall_sight sight = {true, 1};

    for (int i = 0; i < 100; i++) {
        sight.mark += i % 3 == 0;
        cr_expect(eq(int, look(&sight, 1), -1), "look %d", i);
    }
}

Test(stall, nothing_is_awaited, .init = begin)
{
    struct stall_sight sight = {false, 1};

    for (int i = 0; i < 100; i++)
        cr_expect(eq(int, look(&sight, 1), -1), "look %d", i);
    /* It is awaited from now on: its time begins now. */
    sight.awaited = true;
    for (int i = 0; i < 3; i++)
        cr_expect(eq(int, look(&sight, 1), -1), "awaited, look %d", i);
    cr_expect(eq(int, look(&sight, 1), 0));
}

Test(stall, who_was_not_there_has_not_seen_it, .init = begin)
{
    struct stall_sight sight = {true, 1};

    cr_expect(eq(int, look(&sight, 1), -1));
    cr_expect(eq(int, look(&sight, 1), -1));
    now += 3600 * 1000;
    cr_expect(eq(int, look(&sight, 1), -1), "an hour counts as two steps");
    cr_expect(eq(int, look(&sight, 1), 0));
}

Test(stall, looks_are_due_step_by_step, .init = begin)
{
    struct stall_sight sight = {true, 1};

    cr_expect(stall_is_due(&watch, now), "the first one");
    look(&sight, 1);
    cr_expect(not(stall_is_due(&watch, now)));
    cr_expect(not(stall_is_due(&watch, now + STEP - 1)));
    cr_expect(stall_is_due(&watch, now + STEP));
}
