/* SPDX-License-Identifier: Apache-2.0 */
/* What `status` shows of a migration, which has a role of the test's. */
#include "bed.h"
#include "check.h"
#include "clock.h"

#include <stdlib.h>
#include <string.h>

#define CHANNELS 3u
/* Every counter of a record, as numbers in their order. */
#define NUMBERS (sizeof(struct channel_record) / sizeof(uint64_t))

static struct bed bed;
static struct migration *m;

static unsigned channels(struct migration *mine)
{
    (void)mine;
    return CHANNELS;
}

static uint64_t count_of(unsigned channel, unsigned what)
{
    return (channel + 1) * 1000 + what;
}

static void count(struct migration *mine, unsigned channel, struct channel_record *record)
{
    (void)mine;
    record->wire_bytes = count_of(channel, 0);
    record->copies = (struct zerocopy_counters){
        .sends = count_of(channel, 1),
        .bytes = count_of(channel, 2),
        .copied_sends = count_of(channel, 3),
        .copied_bytes = count_of(channel, 4),
        .kernel_copied_sends = count_of(channel, 5),
        .kernel_copied_bytes = count_of(channel, 6),
        .refused = count_of(channel, 7),
        .missed = count_of(channel, 8),
    };
    record->spliced_bytes = count_of(channel, 9);
}

static void figures(struct migration *mine, struct migration_figures *out)
{
    (void)mine;
    *out = (struct migration_figures){.ram_size = 77, .path = "copy"};
}

static const struct role_operations *bed_operations;
static struct role_operations operations;

static void set_up(void)
{
    bed_init(&bed);
    m = bed.m;
    bed_operations = m->operations;
    operations = *bed_operations;
    operations.channels = channels;
    operations.count = count;
    operations.figures = figures;
    m->operations = &operations;
    bed_activate(&bed);
}

static void end(void)
{
    m->operations = bed_operations;
    bed_fini(&bed);
}

TestSuite(snapshot, .init = set_up);

/* All that the channels did: what the role counts, and what files do. */
static void are_counted(const struct channel_record *records, unsigned n)
{
    struct channel_record all;
    const uint64_t *sums = (const uint64_t *)&all;
    uint64_t want[NUMBERS] = {0};

    for (unsigned c = 0; c < n; c++) {
        uint64_t one[NUMBERS];
        memcpy(one, &records[c], sizeof(one));
        for (unsigned i = 0; i < NUMBERS; i++)
            want[i] += one[i];
        cr_expect(eq(u64, records[c].wire_bytes, count_of(c, 0)));
        cr_expect(eq(u64, records[c].copies.refused, count_of(c, 7)));
        cr_expect(eq(u64, records[c].spliced_bytes, count_of(c, 9)));
    }
    all = records[n];
    for (unsigned i = 0; i < NUMBERS; i++)
        cr_expect(eq(u64, sums[i], want[i]), "number %u", i);
}

Test(snapshot, records_are_added_up)
{
    struct file *ram = m->files[WIRE_RAM], *device = bed_device(&bed, "x"), *removed = bed_device(&bed, "y");
    struct channel_record *records;
    unsigned n;

    counter_add(&ram->per_channel[1].bytes, 5);
    counter_add(&device->per_channel[1].bytes, 60);
    counter_add(&removed->per_channel[1].bytes, 700);
    counter_add(&device->per_channel[2].packets, 8);
    for (unsigned turn = 0; turn < 4; turn++) {
        if (turn == 1) {
            /* What it did stays: while the destination has it, */
            atomic_store(&removed->removed, true);
        } else if (turn == 2) {
            /* when it is gone, */
            pthread_mutex_lock(&m->lock);
            file_put(migration_remove_file(m, removed));
            pthread_mutex_unlock(&m->lock);
        } else if (turn == 3) {
            /* and when all is over. */
            cr_assert(zero(int, migration_keep_records(m, true)));
            counter_add(&ram->per_channel[1].bytes, 5);
        }
        cr_assert(zero(int, migration_records(m, &n, &records)));
        cr_assert(eq(uint, n, CHANNELS));
        cr_expect(eq(u64, records[1].ram.bytes, 5));
        cr_expect(eq(u64, records[1].devices.bytes, 760), "turn %u", turn);
        cr_expect(eq(u64, records[2].devices.packets, 8));
        cr_expect(eq(u64, records[CHANNELS].devices.bytes, 760));
        are_counted(records, n);
        free(records);
    }
    end();
}

Test(snapshot, only_the_sum_is_kept)
{
    struct channel_record *records;
    unsigned n;

    cr_assert(zero(int, migration_keep_records(m, false)));
    cr_assert(zero(int, migration_records(m, &n, &records)));
    cr_expect(eq(uint, n, 0));
    cr_expect(eq(u64, records[0].wire_bytes, count_of(0, 0) + count_of(1, 0) + count_of(2, 0)));
    free(records);
    end();
}

Test(snapshot, of_one_moment)
{
    struct migration_snapshot snapshot;

    bed_device(&bed, "x");
    strcpy(m->warning, "look");
    m->rounds = 3;
    m->last_round.pages = 4;
    cr_assert(zero(int, migration_take_snapshot(m, &snapshot)));
    cr_expect(eq(int, (int)snapshot.state, STATE_ACTIVE));
    cr_expect(eq(str, (char *)(uintptr_t)snapshot.role, "outgoing"));
    cr_expect(not(snapshot.incoming));
    cr_expect(eq(str, snapshot.warning, "look"));
    cr_expect(eq(u64, snapshot.generation, 2));
    cr_expect(eq(u64, snapshot.rounds, 3));
    cr_expect(eq(u64, snapshot.round.pages, 4));
    cr_expect(eq(u32, snapshot.devices, 1));
    cr_expect(eq(uint, snapshot.channels, CHANNELS));
    cr_expect(eq(u64, snapshot.figures.ram_size, 77));
    are_counted(snapshot.records, CHANNELS);
    migration_drop_snapshot(&snapshot);
    end();
}

/*
 * Pauses
 */

static void lose(const char *sentence)
{
    struct error reason = {0};

    error_set(&reason, CAUSE_RESET, "%s", sentence);
    migration_lose(m, &reason);
}

static void expect(bool paused, const char *reason, const char *last_error, uint64_t pauses)
{
    struct migration_snapshot snapshot;
    char shown[ERROR_MESSAGE_MAX];

    cr_assert(zero(int, migration_take_snapshot(m, &snapshot)));
    cr_expect(eq(int, snapshot.paused, paused));
    cr_expect(eq(int, migration_is_paused(m), paused));
    cr_expect(eq(str, snapshot.pause_reason.message, (char *)reason));
    cr_expect(eq(u64, snapshot.pauses, pauses));
    migration_drop_snapshot(&snapshot);
    migration_last_error(m, shown);
    cr_expect(eq(str, shown, (char *)last_error));
}

static uint64_t paused_ms(void)
{
    struct migration_snapshot snapshot;

    cr_assert(zero(int, migration_take_snapshot(m, &snapshot)));
    migration_drop_snapshot(&snapshot);
    return snapshot.paused_ms;
}

/* From the first connection that is lost until none is, whatever is lost and found meanwhile. */
Test(snapshot, paused)
{
    strcpy(m->last_error.message, "long ago");
    expect(false, "", "long ago", 0);
    uint64_t generation = migration_generation(m);
    unsigned announced = atomic_load(&bed.announced);
    lose("first");
    expect(true, "first", "first", 1);
    cr_expect(eq(u64, migration_generation(m), generation + 1));
    cr_expect(eq(uint, atomic_load(&bed.announced), announced + 1));
    lose("second");
    expect(true, "first", "first", 1);
    migration_find_again(m);
    expect(true, "first", "first", 1);
    cr_expect(eq(u64, migration_generation(m), generation + 1), "nothing to look at");
    cr_expect(eq(uint, atomic_load(&bed.announced), announced + 1));
    migration_find_again(m);
    expect(false, "", "long ago", 1);
    cr_expect(eq(u64, migration_generation(m), generation + 2));
    cr_expect(eq(uint, atomic_load(&bed.announced), announced + 2));
    migration_find_again(m); /* nothing is lost */
    cr_expect(eq(uint, atomic_load(&bed.announced), announced + 2));
    lose("third");
    expect(true, "third", "third", 2);
    bed_move(&bed, STATE_COMPLETING);
    expect(true, "third", "third", 2);
    /* What is refused meanwhile is news, and the pause is not any more. */
    struct error refused = {0};
    error_set(&refused, CAUSE_STATE, "not now");
    migration_note_error(m, &refused);
    expect(true, "third", "not now", 2);
    migration_find_again(m);
    expect(false, "", "not now", 2);
    lose("fourth");
    expect(true, "fourth", "fourth", 3);
    end();
}

/* Those that are over, and the one that is not. */
Test(snapshot, paused_for_so_long)
{
    cr_expect(zero(u64, paused_ms()));
    lose("x");
    m->paused_since -= 1000000;
    uint64_t first = paused_ms();
    cr_expect(first >= 1000000 && first < 2000000);
    migration_find_again(m);
    first = paused_ms();
    cr_expect(first >= 1000000 && first < 2000000);
    cr_expect(eq(u64, first, (uint64_t)m->paused_ms));
    lose("y");
    m->paused_since -= 5000000;
    uint64_t both = paused_ms();
    cr_expect(both >= first + 5000000 && both < first + 6000000);
    bed_fail(&bed, CAUSE_RESET, "it is over");
    cr_expect(ge(u64, paused_ms(), both));
    cr_expect(lt(u64, paused_ms(), first + 6000000));
    end();
}

/* The end of it is the end of a pause, and later there is none. */
Test(snapshot, ends_while_it_is_paused)
{
    lose("x");
    bed_fail(&bed, CAUSE_RESET, "given up");
    expect(false, "", "given up", 1);
    migration_find_again(m);
    expect(false, "", "given up", 1);
    unsigned announced = atomic_load(&bed.announced);
    lose("y");
    expect(false, "", "given up", 1);
    cr_expect(eq(uint, atomic_load(&bed.announced), announced));
    /* Another start has its own. */
    m->was_active = false;
    lose("z");
    bed_move(&bed, STATE_SETUP);
    expect(false, "", "given up", 0);
    cr_expect(zero(u64, paused_ms()));
    lose("x");
    expect(true, "x", "x", 1);
    end();
}
