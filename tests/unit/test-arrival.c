/* SPDX-License-Identifier: Apache-2.0 */
/* Counts at the destination, with neither threads nor connections: the counts are numbers of this file. */
#include "arrival.h"
#include "check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHANNELS 3
#define DEVICES  3

/* What has been told, one letter and a number each, in its order. */
static char told[4096];
static uint64_t applied[CHANNELS], targets[CHANNELS];
/* The next aim at this channel is overtaken: so many packets are applied after the target is set. */
static unsigned overtaken_channel;
static uint64_t overtaken_by;
static int complete_returns;

static struct budget budget;
static struct catalog catalog;
static struct file *files[DEVICES + 1];
static struct arrival arrival;
static struct error err;

static void tell(char what, uint64_t number)
{
    size_t len = strlen(told);

    snprintf(told + len, sizeof(told) - len, "%c%llu ", what, (unsigned long long)number);
}

/* What has been told since the last call is this. */
static void expect_told(const char *what)
{
    cr_expect(eq(str, told, (char *)what));
    told[0] = '\0';
}

static uint64_t count_of(void *owner, unsigned channel)
{
    cr_assert(eq(ptr, owner, applied));
    return applied[channel];
}

static bool aim(void *owner, unsigned channel, uint64_t target)
{
    cr_assert(eq(ptr, owner, applied));
    targets[channel] = target;
    if (target && overtaken_by && channel == overtaken_channel) {
        applied[channel] += overtaken_by;
        overtaken_by = 0;
    }
    return target && applied[channel] >= target;
}

static void synced(void *owner, uint64_t id)
{
    cr_assert(eq(ptr, owner, applied));
    tell('s', id);
}

static void ended(void *owner, struct file *file, const uint64_t *counts)
{
    cr_assert(eq(ptr, owner, applied));
    cr_expect(zero(ptr, file->end_barrier));
    tell('e', file->id);
    tell('@', counts[0]);
}

static void change(void *owner, const struct change *made)
{
    cr_assert(eq(ptr, owner, applied));
    tell(made->type == CHANGE_CREATE ? 'c' : made->type == CHANGE_REMOVE ? 'r' : 'n', made->id);
    if (made->type == CHANGE_REMOVE)
        file_put(catalog_forget(&catalog, made->number));
}

static void changed(void *owner, const struct change *made)
{
    cr_assert(eq(ptr, owner, applied));
    tell('.', 0);
    for (; made; made = made->next)
        tell('+', made->id);
}

static int complete(void *owner, uint64_t id, struct error *error)
{
    cr_assert(eq(ptr, owner, applied));
    cr_expect(not(arrival_is_complete(&arrival, id)), "not before the owner agrees");
    tell('m', id);
    return complete_returns < 0 ? error_set(error, CAUSE_IO, "it went away") : 0;
}

static const struct arrival_operations operations = {
    .applied = count_of,
    .aim = aim,
    .synced = synced,
    .ended = ended,
    .change = change,
    .changed = changed,
    .complete = complete,
};

static void begin(void)
{
    char name[8];
    bool hidden;

    budget = (struct budget){.limit = 1 << 20, .unit = "bytes"};
    cr_assert(zero(int, catalog_init(&catalog, DEVICES)));
    for (uint32_t i = 0; i <= DEVICES; i++) {
        snprintf(name, sizeof(name), i ? "d%u" : "ram", i);
        files[i] = file_new(i, name);
        cr_assert(zero(int, file_set_channels(files[i], CHANNELS, 0)));
        cr_assert(zero(int, catalog_add(&catalog, i, files[i], name, true, &hidden)));
    }
    cr_assert(zero(int, arrival_init(&arrival, CHANNELS, &catalog, &budget, &operations, applied)));
}

static void end(void)
{
    arrival_fini(&arrival);
    arrival_fini(&arrival);
    cr_expect(zero(u64, budget.used));
    catalog_fini(&catalog);
    for (uint32_t i = 0; i <= DEVICES; i++)
        file_put(files[i]);
}

TestSuite(arrival, .init = begin, .fini = end);

/* @file has got a packet of @bytes on @channel, the channel's next one. */
static void arrive(unsigned number, unsigned channel, uint64_t bytes)
{
    struct file_channel *c = &files[number]->per_channel[channel];

    counter_add(&c->packets, 1);
    counter_add(&c->bytes, bytes);
    counter_add(&c->digest, bytes * 3);
    applied[channel]++;
}

/* A manifest of all that has arrived so far, as it is. */
static struct manifest_entry *manifest(uint32_t count)
{
    struct manifest_entry *entries = calloc(DEVICES + 2, sizeof(*entries));
    uint32_t n = 0;

    for (uint32_t i = 0; i <= DEVICES && n < count; i++) {
        if (!catalog_has(&catalog, i))
            continue;
        struct file_totals totals = file_totals(files[i]);
        entries[n++] = (struct manifest_entry){
            .file = i,
            .size = file_received_size(files[i]),
            .packets = totals.packets,
            .bytes = totals.bytes,
            .digest = totals.digest,
        };
    }
    return entries;
}

Test(arrival, sync)
{
    applied[0] = 4;
    CHECK_OK(arrival_sync(&arrival, 1, (uint64_t[]){4, 0, 0}, &err));
    expect_told("s1 ");
    cr_expect(zero(u64, targets[0] + targets[1] + targets[2]));
    CHECK_OK(arrival_sync(&arrival, 2, (uint64_t[]){5, 2, 0}, &err));
    CHECK_OK(arrival_sync(&arrival, 3, (uint64_t[]){9, 1, 0}, &err));
    cr_expect(eq(u64, targets[0], 5), "the lowest one");
    expect_told("");
    applied[0] = 9;
    CHECK_OK(arrival_check(&arrival, &err));
    cr_expect(zero(u64, targets[0]));
    cr_expect(eq(u64, targets[1], 1), "a later one is passed first where its count is lower");
    applied[1] = 1;
    CHECK_OK(arrival_check(&arrival, &err));
    expect_told("s3 ");
    cr_expect(eq(u64, targets[1], 2));
    applied[1] = 7;
    CHECK_OK(arrival_check(&arrival, &err));
    expect_told("s2 ");
    CHECK_OK(arrival_check(&arrival, &err));
    expect_told("");
    cr_expect(zero(u64, targets[1]));
}

/* A receiver that passes its count while its target is set wakes nobody: it is seen all the same. */
Test(arrival, overtaken)
{
    overtaken_channel = 1;
    overtaken_by = 3;
    CHECK_OK(arrival_sync(&arrival, 1, (uint64_t[]){0, 3, 0}, &err));
    expect_told("s1 ");
    overtaken_by = 2;
    CHECK_OK(arrival_sync(&arrival, 2, (uint64_t[]){0, 6, 0}, &err));
    expect_told("");
    cr_expect(eq(u64, targets[1], 6));
}

/* Receivers wake only at their targets, and nothing that is passed is ever left. */
Test(arrival, nothing_is_missed)
{
    enum { BARRIERS = 500 };
    static uint64_t counts[BARRIERS + 1][CHANNELS];
    uint64_t sent[CHANNELS] = {0}, random = 88172645463325252u;
    unsigned made = 0, told_of = 0;

    for (unsigned step = 0; made < BARRIERS || told_of < made; step++) {
        cr_assert(step < 100000);
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        unsigned c = (unsigned)(random >> 20) % CHANNELS;
        overtaken_channel = (unsigned)(random >> 24) % CHANNELS;
        overtaken_by = (random >> 28) % 4 == 0 && applied[overtaken_channel] < sent[overtaken_channel];
        if (random % 5 < 3) {
            sent[c]++;
        } else if (random % 5 == 3 && made < BARRIERS && made - told_of < WIRE_SYNCS_MAX) {
            memcpy(counts[++made], sent, sizeof(sent));
            CHECK_OK(arrival_sync(&arrival, made, sent, &err));
        }
        if (applied[c] < sent[c] && ++applied[c] >= targets[c] && targets[c]) {
            targets[c] = 0;
            CHECK_OK(arrival_check(&arrival, &err));
        }
        for (char *p = told; *p; told_of++) {
            unsigned long id = strtoul(p + 1, &p, 10);
            for (unsigned i = 0; i < CHANNELS; i++)
                cr_assert(applied[i] >= counts[id][i]);
            p++;
        }
        told[0] = '\0';
        unsigned passed = 0;
        for (unsigned b = 1; b <= made; b++) {
            bool all = true;
            for (unsigned i = 0; i < CHANNELS; i++)
                all &= applied[i] >= counts[b][i];
            passed += all;
        }
        cr_assert(eq(uint, told_of, passed), "step %u", step);
    }
}

Test(arrival, too_many)
{
    const uint64_t far[CHANNELS] = {1, 1, 1};

    for (uint64_t i = 1; i <= WIRE_SYNCS_MAX; i++)
        CHECK_OK(arrival_sync(&arrival, i, far, &err));
    CHECK_FAILS(arrival_sync(&arrival, WIRE_SYNCS_MAX + 1, far, &err), CAUSE_PROTOCOL);
    applied[0] = applied[1] = applied[2] = 1;
    CHECK_OK(arrival_check(&arrival, &err));
    CHECK_OK(arrival_sync(&arrival, 9999, (uint64_t[]){2, 2, 2}, &err));
}

/* Barriers beyond the free ones are charged, and given back. */
Test(arrival, charged)
{
    const uint64_t far[CHANNELS] = {1, 0, 0};
    uint64_t free_ones = arrival_memory(CHANNELS) / barrier_size(CHANNELS);

    cr_assert(free_ones > 0 && free_ones + 2 < WIRE_SYNCS_MAX);
    for (uint64_t i = 1; i <= free_ones; i++)
        CHECK_OK(arrival_sync(&arrival, i, far, &err));
    cr_expect(zero(u64, budget.used));
    budget.limit = 2 * barrier_size(CHANNELS) - 1;
    CHECK_OK(arrival_sync(&arrival, 1000, far, &err));
    cr_expect(eq(u64, budget.used, barrier_size(CHANNELS)));
    CHECK_FAILS(arrival_sync(&arrival, 1001, far, &err), CAUSE_QUOTA);
    applied[0] = 1;
    CHECK_OK(arrival_check(&arrival, &err));
    cr_expect(zero(u64, budget.used));
    for (uint64_t i = 1; i <= free_ones + 1; i++)
        CHECK_OK(arrival_sync(&arrival, i, (uint64_t[]){2, 0, 0}, &err));
    cr_expect(eq(u64, budget.used, barrier_size(CHANNELS)), "what is left is given back at the end");
}

Test(arrival, streams)
{
    CHECK_OK(arrival_end(&arrival, files[1], (uint64_t[]){3, 0, 0}, &err));
    CHECK_OK(arrival_end(&arrival, files[2], (uint64_t[]){5, 0, 0}, &err));
    cr_expect(ne(ptr, files[1]->end_barrier, NULL));
    arrival_forget_end(&arrival, files[1]);
    cr_expect(zero(ptr, files[1]->end_barrier));
    arrival_forget_end(&arrival, files[1]);
    CHECK_OK(arrival_check(&arrival, &err));
    cr_expect(eq(u64, targets[0], 5));
    CHECK_OK(arrival_end(&arrival, files[2], (uint64_t[]){7, 0, 0}, &err));
    applied[0] = 6;
    CHECK_OK(arrival_check(&arrival, &err));
    expect_told("");
    applied[0] = 8;
    CHECK_OK(arrival_check(&arrival, &err));
    expect_told("e2 @7 ");
}

/* A change waits for its own counts, and for the changes before it. */
Test(arrival, changes)
{
    struct change *first = catalog_remove(&catalog, 11, 1, &err);
    CHECK_OK(arrival_change(&arrival, first, (uint64_t[]){2, 0, 0}, &err));
    struct change *second = catalog_rename(&catalog, 12, 2, "other", 0, &err);
    CHECK_OK(arrival_change(&arrival, second, (uint64_t[]){1, 0, 0}, &err));
    expect_told("");
    applied[0] = 1;
    CHECK_OK(arrival_check(&arrival, &err));
    expect_told(".0 ");
    applied[0] = 2;
    CHECK_OK(arrival_check(&arrival, &err));
    expect_told("r11 n12 .0 +11 +12 ");
    cr_expect(lt(int, arrival_change(&arrival, NULL, applied, &err), 0), "no change");
}

Test(arrival, a_manifest)
{
    arrive(0, 0, 4096);
    arrive(1, 1, 10);
    CHECK_OK(arrival_manifest(&arrival, 5, (uint64_t[]){1, 1, 0}, manifest(DEVICES + 1), DEVICES + 1, &err));
    expect_told("m5 ");
    cr_expect(arrival_is_complete(&arrival, 5));
    cr_expect(not(arrival_is_complete(&arrival, 4)));
    applied[2]++;
    cr_expect(not(arrival_is_complete(&arrival, 5)), "the source has gone on");
    applied[2]--;
    arrival_forget_manifest(&arrival);
    cr_expect(not(arrival_is_complete(&arrival, 5)));
    cr_expect(not(arrival_is_complete(&arrival, 0)));
}

Test(arrival, a_manifest_waits)
{
    struct manifest_entry *entries;

    arrive(0, 0, 4096);
    entries = manifest(DEVICES + 1);
    applied[0]--;
    CHECK_OK(arrival_manifest(&arrival, 5, (uint64_t[]){1, 0, 0}, entries, DEVICES + 1, &err));
    expect_told("");
    cr_expect(eq(u64, targets[0], 1));
    /* A newer one takes its place. */
    CHECK_OK(arrival_manifest(&arrival, 6, (uint64_t[]){1, 0, 0}, manifest(DEVICES + 1), DEVICES + 1, &err));
    applied[0]++;
    CHECK_OK(arrival_check(&arrival, &err));
    expect_told("m6 ");
    cr_expect(arrival_is_complete(&arrival, 6));
}

/* More than it is about, or more files: void, and no failure. */
Test(arrival, a_manifest_is_void)
{
    arrive(0, 0, 4096);
    CHECK_OK(arrival_manifest(&arrival, 5, (uint64_t[]){0, 0, 0}, manifest(DEVICES + 1), DEVICES + 1, &err));
    expect_told("");
    cr_expect(zero(u64, arrival.manifest.id));
    CHECK_OK(arrival_manifest(&arrival, 6, (uint64_t[]){1, 0, 0}, manifest(DEVICES), DEVICES, &err));
    expect_told("");
    cr_expect(zero(u64, arrival.manifest.id));
    CHECK_OK(arrival_manifest(&arrival, 7, (uint64_t[]){1, 1, 0}, manifest(DEVICES + 1), DEVICES + 1, &err));
    CHECK_OK(arrival_change(&arrival, catalog_remove(&catalog, 11, 1, &err), (uint64_t[]){2, 0, 0}, &err));
    cr_expect(zero(u64, arrival.manifest.id), "a change makes it void");
    applied[1] = 1;
    CHECK_OK(arrival_check(&arrival, &err));
    expect_told("");
}

/* Whatever of an entry is not as it has arrived is a failure. */
Test(arrival, a_manifest_is_wrong)
{
    arrive(0, 0, 4096);
    for (unsigned wrong = 0; wrong < 5; wrong++) {
        struct manifest_entry *entries = manifest(DEVICES + 1);
        struct manifest_entry *last = &entries[DEVICES];
        if (wrong == 4)
            last->file++;
        else
            (wrong == 0   ? &last->size
             : wrong == 1 ? &last->packets
             : wrong == 2 ? &last->bytes
                          : &last->digest)[0]++;
        CHECK_FAILS(arrival_manifest(&arrival, 5, (uint64_t[]){1, 0, 0}, entries, DEVICES + 1, &err),
                    CAUSE_MISMATCH);
        cr_expect(not(arrival_is_complete(&arrival, 5)), "%u", wrong);
    }
    expect_told("");
}

Test(arrival, a_manifest_that_cannot_be_kept)
{
    complete_returns = -1;
    CHECK_FAILS(arrival_manifest(&arrival, 5, applied, manifest(DEVICES + 1), DEVICES + 1, &err), CAUSE_IO);
    expect_told("m5 ");
    cr_expect(not(arrival_is_complete(&arrival, 5)));
}

Test(arrival, a_manifest_before_a_change)
{
    struct change *removal = catalog_remove(&catalog, 11, 1, &err);

    CHECK_OK(arrival_change(&arrival, removal, (uint64_t[]){9, 0, 0}, &err));
    CHECK_FAILS(arrival_manifest(&arrival, 5, applied, manifest(DEVICES), DEVICES, &err), CAUSE_PROTOCOL);
}
