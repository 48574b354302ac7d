/* SPDX-License-Identifier: Apache-2.0 */
/* The files of an incoming migration by number, and the changes that wait for their turn. */
#include "catalog.h"
#include "check.h"
#include "wire.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DEVICES 5

static struct catalog catalog;
static struct file *files[DEVICES + 1];
static struct error err;
static bool hidden;

/* The RAM, and devices "d1" to "d3". */
static void begin(void)
{
    char name[8];

    cr_assert(zero(int, catalog_init(&catalog, DEVICES)));
    cr_assert(eq(u32, catalog.size, DEVICES + 1));
    for (uint32_t i = 0; i <= DEVICES; i++) {
        snprintf(name, sizeof(name), i ? "d%u" : "ram", i);
        files[i] = file_new(i, name);
        if (i <= 3)
            cr_assert(zero(int, catalog_add(&catalog, i, files[i], name, true, &hidden)));
    }
}

static void end(void)
{
    catalog_fini(&catalog);
    for (uint32_t i = 0; i <= DEVICES; i++)
        file_put(files[i]);
}

TestSuite(catalog, .init = begin, .fini = end);

Test(catalog, by_number_and_by_name)
{
    cr_expect(eq(u32, catalog.count, 4));
    cr_expect(not(hidden));
    for (uint32_t i = 0; i <= DEVICES + 1; i++) {
        cr_expect(eq(ptr, catalog_file(&catalog, i), i <= 3 ? files[i] : NULL), "%u", i);
        cr_expect(eq(int, catalog_has(&catalog, i), i <= 3), "%u", i);
    }
    cr_expect(eq(u32, catalog_find(&catalog, "d1"), 1));
    cr_expect(eq(u32, catalog_find(&catalog, "d3"), 3));
    cr_expect(eq(u32, catalog_find(&catalog, "d4"), 0));
    cr_expect(eq(u32, catalog_find(&catalog, "ram"), 0), "no device is called so");
    cr_expect(zero(ptr, catalog_take(&catalog)));
}

Test(catalog, removed)
{
    struct change *change = catalog_remove(&catalog, 7, 2, &err);

    cr_assert(not(zero(ptr, change)));
    cr_expect(eq(int, (int)change->type, CHANGE_REMOVE));
    cr_expect(eq(u64, change->id, 7));
    cr_expect(eq(u32, change->number, 2));
    cr_expect(eq(ptr, change->file, files[2]));
    cr_expect(eq(u32, catalog.count, 3));
    cr_expect(eq(uint, catalog.asked, 1));
    cr_expect(not(catalog_has(&catalog, 2)), "the source has none any more");
    cr_expect(eq(u32, catalog_find(&catalog, "d2"), 0));
    cr_expect(eq(ptr, catalog_file(&catalog, 2), files[2]), "its bytes may still come");
    cr_expect(zero(ptr, catalog_take(&catalog)), "it is not ripe");
    change->ripe = true;
    cr_expect(eq(ptr, catalog_take(&catalog), change));
    free(change);
    cr_expect(eq(uint, catalog.asked, 0));
    cr_expect(zero(ptr, catalog_take(&catalog)));
    cr_expect(eq(ptr, catalog_forget(&catalog, 2), files[2]));
    file_put(files[2]);
    cr_expect(zero(ptr, catalog_file(&catalog, 2)));
}

Test(catalog, renamed)
{
    struct change *change = catalog_rename(&catalog, 8, 1, "new", 0, &err);

    cr_assert(not(zero(ptr, change)));
    cr_expect(eq(str, change->name, "new"));
    cr_expect(eq(u32, change->replaced, 0));
    cr_expect(eq(u32, catalog.count, 4));
    cr_expect(eq(u32, catalog_find(&catalog, "new"), 1));
    cr_expect(eq(u32, catalog_find(&catalog, "d1"), 0));
    /* Over another one. */
    change = catalog_rename(&catalog, 9, 1, "d3", 3, &err);
    cr_assert(not(zero(ptr, change)));
    cr_expect(eq(u32, change->replaced, 3));
    cr_expect(eq(u32, catalog.count, 3));
    cr_expect(not(catalog_has(&catalog, 3)));
    cr_expect(eq(u32, catalog_find(&catalog, "d3"), 1));
    cr_expect(eq(uint, catalog.asked, 2));
}

/* A peer can ask for anything. */
Test(catalog, changes_that_make_no_sense)
{
    static const struct {
        uint32_t number;
        const char *name;
        uint32_t replaced;
    } cases[] = {
        {WIRE_RAM, "x", 0}, {4, "x", 0}, {DEVICES + 1, "x", 0}, {UINT32_MAX, "x", 0}, {1, "d2", 0},
        {1, "d2", 3},       {1, "x", 2}, {1, "d1", 1},          {1, "d1", 0},
    };

    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        err = (struct error){0};
        cr_expect(zero(ptr, catalog_rename(&catalog, 1, cases[i].number, cases[i].name, cases[i].replaced, &err)),
                  "case %zu", i);
        cr_expect(eq(int, (int)err.cause, CAUSE_PROTOCOL), "case %zu", i);
        if (i >= 4)
            continue;
        err = (struct error){0};
        cr_expect(zero(ptr, catalog_remove(&catalog, 1, cases[i].number, &err)), "case %zu", i);
        cr_expect(eq(int, (int)err.cause, CAUSE_PROTOCOL), "case %zu", i);
    }
    cr_expect(eq(u32, catalog.count, 4));
    cr_expect(eq(uint, catalog.asked, 0));
}

/* As many as may wait, and one more. */
Test(catalog, changes_are_bounded)
{
    struct change *change;
    char name[16];

    for (unsigned i = 0; i < WIRE_CHANGES_MAX; i++) {
        snprintf(name, sizeof(name), "n%u", i);
        cr_assert(not(zero(ptr, catalog_rename(&catalog, i, 1, name, 0, &err))), "%u", i);
    }
    err = (struct error){0};
    cr_expect(zero(ptr, catalog_rename(&catalog, 0, 1, "more", 0, &err)));
    cr_expect(eq(int, (int)err.cause, CAUSE_PROTOCOL));
    cr_expect(zero(ptr, catalog_remove(&catalog, 0, 2, &err)));
    catalog.first->ripe = true;
    change = catalog_take(&catalog);
    cr_assert(not(zero(ptr, change)));
    cr_expect(eq(str, change->name, "n0"), "the oldest");
    free(change);
    cr_expect(not(zero(ptr, catalog_rename(&catalog, 0, 1, "more", 0, &err))), "there is room again");
}

/* What is announced after a change is seen after it; what users see already does not wait. */
Test(catalog, a_file_after_a_change)
{
    struct change *removal = catalog_remove(&catalog, 1, 1, &err), *change;

    cr_assert(zero(int, catalog_add(&catalog, 4, files[4], "d4", false, &hidden)));
    cr_expect(hidden);
    cr_assert(zero(int, catalog_add(&catalog, 5, files[5], "d5", true, &hidden)));
    cr_expect(not(hidden));
    cr_expect(eq(ptr, catalog_file(&catalog, 4), files[4]));
    cr_expect(eq(u32, catalog_find(&catalog, "d4"), 4));
    cr_expect(eq(uint, catalog.asked, 1), "a file that appears is not acknowledged");
    cr_expect(zero(ptr, catalog_take(&catalog)));
    removal->ripe = true;
    change = catalog_take(&catalog);
    cr_expect(eq(ptr, change, removal));
    free(change);
    change = catalog_take(&catalog);
    cr_assert(not(zero(ptr, change)));
    cr_expect(eq(int, (int)change->type, CHANGE_CREATE));
    cr_expect(eq(ptr, change->file, files[4]));
    free(change);
    cr_expect(eq(uint, catalog.asked, 0));
    cr_expect(zero(ptr, catalog_take(&catalog)));
    /* And the queue works when it was empty. */
    removal = catalog_remove(&catalog, 2, 2, &err);
    removal->ripe = true;
    cr_expect(eq(ptr, catalog_take(&catalog), removal));
    free(removal);
    cr_assert(zero(int, catalog_remove(&catalog, 3, 3, &err) == NULL));
}

/*
 * All files
 */

static struct budget budget = {.limit = 64ull << 40, .unit = "bytes"};

/* Makes a file arrive: RAM of one MiB, whose memory is there, or a device without a byte. */
static void receive(uint32_t number)
{
    const struct image_budgets budgets = {.memory = &budget, .windows = &budget};
    const struct memory_place place = {0};

    CHECK_OK(file_set_channels(files[number], 1, 0));
    CHECK_OK(file_receive_begin(files[number], number ? 0 : 1 << 20, 1 << 20, number ? NULL : &place, "ram", &budgets,
                                &err));
}

Test(catalog, work_of_all)
{
    cr_expect(zero(u64, catalog_work(&catalog)));
    for (uint32_t i = 0; i <= DEVICES; i++)
        files[i]->image.work = 1 << i;
    cr_expect(eq(u64, catalog_work(&catalog), 1 + 2 + 4 + 8));
    file_put(catalog_forget(&catalog, 2));
    cr_expect(eq(u64, catalog_work(&catalog), 1 + 2 + 8), "a removed one is done with");
}

/* Each of them goes over all files, those behind a gap as well. */
Test(catalog, finished_and_kept)
{
    file_put(catalog_forget(&catalog, 2));
    for (uint32_t i = 0; i <= 3; i++) {
        if (i != 2)
            receive(i);
    }
    CHECK_OK(catalog_check_storage(&catalog, &err));
    CHECK_OK(catalog_finish(&catalog, &err));
    catalog_keep(&catalog);
    catalog_settle(&catalog);
    for (uint32_t i = 0; i <= 3; i++) {
        cr_expect(eq(int, files[i]->image.kept, i != 2), "%u", i);
        cr_expect(zero(ptr, files[i]->per_channel), "%u", i);
    }
}

Test(catalog, dropped)
{
    for (uint32_t i = 0; i <= 3; i++)
        receive(i);
    catalog_drop(&catalog);
    for (uint32_t i = 0; i <= 3; i++)
        cr_expect(files[i]->image.dropped, "%u", i);
    cr_expect(zero(u64, budget.used));
}

/* Somebody who can reach the memory has made it shorter: that is found, whichever file it is. */
Test(catalog, storage_that_went_away)
{
    for (uint32_t i = 0; i <= 3; i++)
        receive(i);
    CHECK_OK(file_receive_size(files[3], 0, 8192, 1 << 20, &err));
    CHECK_OK(file_receive_storage(files[3], &err));
    CHECK_OK(image_write(&files[3]->image, 4096, "x", 1, &err));
    CHECK_OK(catalog_check_storage(&catalog, &err));
    cr_assert(zero(int, ftruncate(files[3]->image.memory.fd, 0)));
    CHECK_FAILS(catalog_check_storage(&catalog, &err), CAUSE_IO);
    catalog_drop(&catalog);
}
