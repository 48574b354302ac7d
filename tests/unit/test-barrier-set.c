/* SPDX-License-Identifier: Apache-2.0 */
/* Barriers, against a list that is searched from its beginning. */
#include "barrier_set.h"
#include "check.h"

#include <stdlib.h>
#include <string.h>

#define CHANNELS 5
#define BARRIERS 400

static struct barrier *make(struct barrier_set *set, uint64_t id, const uint64_t *counts)
{
    struct barrier *barrier = barrier_new(set->channels);

    barrier->type = WIRE_SYNC;
    barrier->id = id;
    memcpy(barrier->counts, counts, set->channels * sizeof(counts[0]));
    barrier_set_add(set, barrier);
    return barrier;
}

/* Takes the next one. Return: its id; 0: there is none. */
static uint64_t take(struct barrier_set *set, const uint64_t *applied)
{
    struct barrier *barrier = barrier_set_take(set, applied);
    uint64_t id = barrier ? barrier->id : 0;

    free(barrier);
    return id;
}

Test(barrier_set, one_channel_at_a_time)
{
    struct barrier_set set;
    uint64_t applied[3] = {0};

    cr_assert(zero(int, barrier_set_init(&set, 3)));
    cr_expect(zero(u64, take(&set, applied)));
    make(&set, 7, (uint64_t[]){5, 0, 9});
    cr_expect(zero(u64, take(&set, applied)));
    cr_expect(eq(u64, barrier_set_target(&set, 0), 5));
    cr_expect(zero(u64, barrier_set_target(&set, 2)), "it waits for one channel only");
    applied[2] = 8;
    applied[0] = 5;
    cr_expect(zero(u64, take(&set, applied)));
    cr_expect(zero(u64, barrier_set_target(&set, 0)));
    cr_expect(eq(u64, barrier_set_target(&set, 2), 9));
    applied[2] = 100;
    cr_expect(eq(u64, take(&set, applied), 7));
    cr_expect(zero(uint, set.count));
    barrier_set_fini(&set);
}

/* Those that are passed at the same time come in the order in which they were added. */
Test(barrier_set, in_order)
{
    struct barrier_set set;
    uint64_t applied[2] = {0};

    cr_assert(zero(int, barrier_set_init(&set, 2)));
    for (uint64_t id = 1; id <= 20; id++)
        make(&set, id, (uint64_t[]){20 - id, id % 3});
    make(&set, 21, (uint64_t[]){0, 0});
    cr_expect(eq(u64, take(&set, applied), 21), "an old one that waits does not hold it up");
    applied[0] = applied[1] = 20;
    for (uint64_t id = 1; id <= 20; id++)
        cr_expect(eq(u64, take(&set, applied), id));
    barrier_set_fini(&set);
}

Test(barrier_set, removal)
{
    struct barrier_set set;
    struct barrier *barriers[10];
    uint64_t applied[1] = {0};

    cr_assert(zero(int, barrier_set_init(&set, 1)));
    for (uint64_t i = 0; i < 10; i++)
        barriers[i] = make(&set, i + 1, (uint64_t[]){10 - i});
    static const unsigned removed[] = {9, 0, 4, 5};
    for (unsigned i = 0; i < ARRAY_LENGTH(removed); i++) {
        barrier_set_remove(&set, barriers[removed[i]]);
        free(barriers[removed[i]]);
    }
    cr_expect(eq(uint, set.count, 6));
    cr_expect(zero(u64, take(&set, applied)));
    cr_expect(eq(u64, barrier_set_target(&set, 0), 2));
    applied[0] = 10;
    for (uint64_t i = 0; i < 10; i++) {
        if (i != 9 && i != 0 && i != 4 && i != 5)
            cr_expect(eq(u64, take(&set, applied), i + 1));
    }
    cr_expect(zero(u64, take(&set, applied)));
    make(&set, 99, (uint64_t[]){11}); /* is freed with the set */
    barrier_set_fini(&set);
}

/* A model: a list, and everything is looked at each time. */
struct model {
    struct barrier *barrier; /* NULL: it was taken or removed */
    uint64_t counts[CHANNELS];
};

static bool is_passed(const struct model *model, const uint64_t *applied)
{
    for (unsigned c = 0; c < CHANNELS; c++) {
        if (applied[c] < model->counts[c])
            return false;
    }
    return true;
}

static void take_all(struct barrier_set *set, struct model *models, unsigned n, const uint64_t *applied)
{
    for (unsigned i = 0; i < n; i++) {
        if (!models[i].barrier || !is_passed(&models[i], applied))
            continue;
        cr_assert(eq(u64, take(set, applied), i + 1));
        models[i].barrier = NULL;
    }
    cr_assert(zero(u64, take(set, applied)));
    /* A channel is told of a count only where that is something to do, and one of those that are awaited is told. */
    for (unsigned i = 0; i < n; i++) {
        bool told = !models[i].barrier;
        for (unsigned c = 0; c < CHANNELS; c++) {
            uint64_t target = barrier_set_target(set, c);
            bool pending = target == 0 || target > applied[c];
            cr_assert(pending, "channel %u", c);
            told |= target && models[i].counts[c] > applied[c] && target <= models[i].counts[c];
        }
        cr_assert(told, "barrier %u", i + 1);
    }
}

Test(barrier_set, against_a_model)
{
    static struct model models[BARRIERS];
    struct barrier_set set;
    uint64_t applied[CHANNELS] = {0};
    unsigned random = 1;

    cr_assert(zero(int, barrier_set_init(&set, CHANNELS)));
    for (unsigned n = 0; n < BARRIERS; n++) {
        for (unsigned c = 0; c < CHANNELS; c++) {
            random = random * 1103515245 + 12345;
            models[n].counts[c] = (random >> 8) % 4 ? applied[c] + (random >> 16) % 40 : 0;
        }
        models[n].barrier = make(&set, n + 1, models[n].counts);
        random = random * 1103515245 + 12345;
        applied[(random >> 8) % CHANNELS] += (random >> 16) % 20;
        unsigned victim = (random >> 12) % (n + 1);
        if (random >> 30 == 0 && models[victim].barrier) {
            barrier_set_remove(&set, models[victim].barrier);
            free(models[victim].barrier);
            models[victim].barrier = NULL;
        }
        take_all(&set, models, n + 1, applied);
    }
    for (unsigned c = 0; c < CHANNELS; c++)
        applied[c] = UINT64_MAX;
    take_all(&set, models, BARRIERS, applied);
    cr_expect(zero(uint, set.count));
    barrier_set_fini(&set);
}
