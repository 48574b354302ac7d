/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An image: its sizes and what they are charged to, what is stored, cleared and given back, and its maps.
 * Without files, without threads but for those that look at it.
 */
#include "image.h"
#include "check.h"
#include "scratch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define STRIPE ((uint64_t)WIRE_STRIPE_SIZE)
#define PAGE   ((uint64_t)WIRE_PAGE_SIZE)
#define FIRST  3u /* of the channels: others carry none of it */

static struct budget budget, windows;
static struct accounts accounts;
static struct account *account;

static void begin(void)
{
    scratch_make();
    budget = (struct budget){.limit = 1ull << 40, .unit = "bytes"};
    windows = (struct budget){.limit = 4ull << 40};
    accounts_init(&accounts, &(struct shares){.memory = 1 << 20, .channels = 10, .descriptors = 3},
                  &(struct shares){.memory = 1 << 20, .channels = 10, .descriptors = 2});
    account = account_get(&accounts, "peer");
}

static void end(void)
{
    account_put(account);
    accounts_fini(&accounts);
    scratch_remove();
}

TestSuite(image, .init = begin, .fini = end);

static struct image_form form_of(bool is_ram, unsigned channels, uint64_t size)
{
    return (struct image_form){
        .is_ram = is_ram,
        .size = size,
        .limit = 1ull << 40,
        .name = "image",
        .budgets = {&budget, &windows},
        .homes = {.turn = is_ram ? 0 : 1, .first = FIRST, .count = channels},
    };
}

static void make(struct image *image, bool is_ram, unsigned channels, uint64_t size)
{
    const struct image_form form = form_of(is_ram, channels, size);
    struct error err;

    image_init(image);
    cr_expect(not(image_is_begun(image)));
    CHECK_OK(image_begin(image, &form, &err));
    cr_assert(image_is_begun(image));
}

/* The last one goes. */
static void finish(struct image *image)
{
    image_fini(image);
    cr_expect(zero(u64, account->descriptors.used), "every descriptor was given back");
    cr_expect(zero(u64, account->memory.used));
    cr_expect(zero(u64, budget.used), "and every byte");
    cr_expect(zero(u64, windows.used), "and the address space");
}

/* Stores bytes of one stripe, as its home channel does. Return: pages that arrived for the first time. */
static uint64_t store(struct image *image, uint64_t offset, const void *data, size_t len)
{
    struct error err;

    CHECK_OK(image_grow(image, homes_of(&image->homes, offset), offset + len, &err));
    CHECK_OK(image_reserve(image, "image", &err));
    CHECK_OK(image_write(image, offset, data, len, &err));
    return image_arrived(image, offset, len);
}

static uint64_t fill(struct image *image, uint64_t offset, char c, size_t len)
{
    char *buf = malloc(len);

    memset(buf, c, len);
    uint64_t first = store(image, offset, buf, len);
    free(buf);
    return first;
}

static char byte_at(struct image *image, uint64_t offset)
{
    char c = '?';

    cr_assert(eq(long, image_read(image, offset, &c, 1), 1));
    return c;
}

static bool arrived(struct image *image, uint64_t page)
{
    return page_map_test(&image->received, page);
}

static bool held(struct image *image, uint64_t page)
{
    return page_map_test(&image->held, page);
}

static uint64_t work_of(const struct image *image)
{
    return counter_get(&image->work);
}

/*
 * Sizes, and what they are charged to
 */

Test(image, declared_size)
{
    struct image image;
    struct stat st;

    make(&image, true, 2, 3 * STRIPE + 5);
    cr_expect(eq(u64, image_size(&image), 3 * STRIPE + 5));
    cr_expect(eq(u64, budget.used, 3 * STRIPE + 5), "what is declared is charged");
    cr_expect(eq(u64, windows.used, 3 * STRIPE + 5), "the window is as large");
    cr_expect(eq(u64, image_end(&image, FIRST), 3 * STRIPE + 5));
    cr_expect(eq(u64, image_end(&image, FIRST + 1), 3 * STRIPE + 5));
    cr_assert(zero(int, fstat(image.memory.fd, &st)));
    cr_expect(eq(u64, (uint64_t)st.st_size, 3 * STRIPE + 5), "the memory has its length");
    finish(&image);
}

/* Not before a byte of it comes. */
Test(image, memory_of_a_device)
{
    struct image image;
    struct error err;

    image_init(&image);
    image_account(&image, account, 0);
    const struct image_form form = form_of(false, 2, 100);
    CHECK_OK(image_begin(&image, &form, &err));
    cr_expect(not(image_has_memory(&image)));
    cr_expect(zero(u64, account->descriptors.used));
    cr_expect(zero(u64, windows.used));
    cr_expect(eq(chr, byte_at(&image, 99), 0), "it reads as a hole");
    cr_expect(zero(i64, image_blocks(&image)));
    CHECK_OK(image_discard(&image, FIRST, 0, 100, &err));
    CHECK_OK(image_check(&image, &err));
    CHECK_OK(image_finish(&image, &err));
    cr_expect(zero(u64, store(&image, 10, "data", 4)), "no pages are counted");
    cr_expect(image_has_memory(&image));
    CHECK_OK(image_reserve(&image, "image", &err));
    cr_expect(eq(u64, account->descriptors.used, 1), "one descriptor, whoever asks");
    cr_expect(zero(ptr, image.memory.window));
    cr_expect(image_blocks(&image) > 0);
    cr_expect(zero(ptr, image_window(&image, 10, 4)));
    finish(&image);
}

Test(image, growth_is_charged_once)
{
    struct image image;
    struct error err;

    make(&image, false, 3, 0);
    CHECK_OK(image_grow(&image, FIRST, 1000, &err));
    CHECK_OK(image_grow(&image, FIRST + 1, 900, &err));
    CHECK_OK(image_grow(&image, FIRST + 2, 1000, &err));
    cr_expect(eq(u64, budget.used, 1000));
    CHECK_OK(image_grow(&image, FIRST + 1, 1500, &err));
    CHECK_OK(image_grow(&image, FIRST + 1, 10, &err));
    cr_expect(eq(u64, budget.used, 1500));
    cr_expect(eq(u64, image_end(&image, FIRST), 1000), "each channel has its own view");
    cr_expect(eq(u64, image_end(&image, FIRST + 1), 1500), "which does not shrink");
    cr_expect(eq(u64, image_size(&image), 1500), "the size is the largest");
    finish(&image);
}

Test(image, no_more_than_the_budget)
{
    struct image image, other;
    struct error err;
    struct image_form form = form_of(false, 1, 501);

    make(&image, false, 1, 0);
    CHECK_OK(image_grow(&image, FIRST, 1000, &err));
    budget.limit = 1500;
    CHECK_FAILS(image_grow(&image, FIRST, 1501, &err), CAUSE_QUOTA);
    cr_expect(
        eq(str, err.message, "a size of 1501 bytes does not fit: the destination holds at most 1500 bytes"));
    cr_expect(eq(u64, image_size(&image), 1000), "a refusal changes nothing");
    image_init(&other);
    image_account(&other, account, 0);
    CHECK_FAILS(image_begin(&other, &form, &err), CAUSE_QUOTA);
    cr_expect(not(image_is_begun(&other)));
    cr_expect(eq(u64, budget.used, 1000));
    form.size = 500;
    CHECK_OK(image_begin(&other, &form, &err));
    image_fini(&other);
    CHECK_OK(image_grow(&image, FIRST, 1500, &err));
    cr_expect(eq(u64, image_size(&image), 1500));
    finish(&image);
}

/* What cannot begin gives everything back, and can begin again. */
Test(image, begins_again)
{
    struct memory_place nowhere = {.directory = "/nonexistent/directory"};
    struct image_form form = form_of(true, 2, STRIPE);
    struct image image;
    struct error err;

    image_init(&image);
    cr_assert(budget_charge(&account->memory, 100));
    image_account(&image, account, 100);
    form.place = &nowhere;
    cr_expect(lt(int, image_begin(&image, &form, &err), 0));
    cr_expect(zero(u64, budget.used));
    cr_expect(zero(u64, windows.used));
    cr_expect(zero(u64, account->descriptors.used));
    cr_expect(zero(u64, account->memory.used));
    cr_expect(not(image_use(&image)));
    form.place = NULL;
    CHECK_OK(image_begin(&image, &form, &err));
    cr_expect(eq(u64, account->descriptors.used, 1));
    cr_expect(image_use(&image));
    image_unuse(&image);
    finish(&image);
}

Test(image, no_descriptor_left)
{
    struct image_form form = form_of(true, 1, PAGE);
    struct image images[3];
    struct error err;

    for (int i = 0; i < 3; i++) {
        image_init(&images[i]);
        image_account(&images[i], account, 0);
    }
    CHECK_OK(image_begin(&images[0], &form, &err));
    CHECK_OK(image_begin(&images[1], &form, &err));
    CHECK_FAILS(image_begin(&images[2], &form, &err), CAUSE_QUOTA);
    cr_expect(eq(u64, account->descriptors.used, 2));
    image_fini(&images[1]);
    CHECK_OK(image_begin(&images[2], &form, &err));
    image_fini(&images[0]);
    finish(&images[2]);
}

/* No map, and no window, is larger than it can be of use. */
Test(image, maps_and_windows)
{
    static const struct {
        uint64_t size, limit, memory;
        uint64_t bytes, window;
    } cases[] = {
        {0, 10 * PAGE, 1ull << 40, 10 * PAGE, 10 * PAGE},
        {0, 10 * PAGE, 9 * PAGE, 9 * PAGE, 9 * PAGE},
        {0, 10 * PAGE, 10 * PAGE + 1, 10 * PAGE, 10 * PAGE},
        {3 * PAGE + 1, 10 * PAGE - 1, 1ull << 40, 10 * PAGE, 3 * PAGE + 1},
        {0, 3ull << 40, 4ull << 40, 3ull << 40, 1ull << 40},
        {2ull << 40, 3ull << 40, 4ull << 40, 3ull << 40, 2ull << 40},
    };
    struct error err;

    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        struct image_form form = form_of(true, 1, cases[i].size);
        struct image image;
#ifdef __SANITIZE_THREAD__
        if (cases[i].limit > 1ull << 40)
            continue; /* it leaves no address space */
#endif
        form.limit = cases[i].limit;
        budget.limit = cases[i].memory;
        image_init(&image);
        CHECK_OK(image_begin(&image, &form, &err));
        cr_expect(eq(u64, image.received.pages, cases[i].bytes / PAGE), "case %zu", i);
        cr_expect(eq(u64, image.held.pages, cases[i].bytes / PAGE), "case %zu", i);
        cr_expect(eq(u64, windows.used, cases[i].window), "case %zu", i);
        cr_expect(eq(u64, image.memory.window_size, cases[i].window), "case %zu", i);
        image_fini(&image);
    }
    budget.limit = UINT64_MAX;
    struct image_form form = form_of(true, 1, 0);
    struct image image;
    form.limit = UINT64_MAX;
    windows.limit = PAGE;
    image_init(&image);
    CHECK_OK(image_begin(&image, &form, &err));
    cr_expect(eq(u64, image.received.pages, (WIRE_OFFSET_MAX + PAGE - 1) / PAGE));
    cr_expect(zero(ptr, image.memory.window), "there is no room for a window");
    cr_expect(zero(u64, windows.used));
    fill(&image, 0, 'x', PAGE);
    cr_expect(zero(ptr, image_window(&image, 0, PAGE)), "all else works");
    cr_expect(eq(chr, byte_at(&image, PAGE - 1), 'x'));
    finish(&image);
}

/* The channels are gone: the size stays, and what was there for them does not. */
Test(image, settled)
{
    struct image image;
    const struct image_form form = form_of(true, 2, 2 * STRIPE);
    struct error err;

    image_init(&image);
    cr_assert(budget_charge(&account->memory, 100));
    image_account(&image, account, 100);
    CHECK_OK(image_begin(&image, &form, &err));
    fill(&image, 0, 'x', 10);
    CHECK_OK(image_grow(&image, FIRST + 1, 3 * STRIPE, &err));
    image_settle(&image, 60);
    cr_expect(eq(u64, account->memory.used, 60));
    cr_expect(eq(u64, image_size(&image), 3 * STRIPE));
    cr_expect(zero(ptr, image.ends));
    cr_expect(zero(ptr, image.memory.window));
    cr_expect(zero(u64, windows.used));
    cr_expect(eq(u64, budget.used, 3 * STRIPE));
    cr_expect(eq(chr, byte_at(&image, 9), 'x'));
    image_settle(&image, 60);
    image_settle(&image, 100);
    cr_expect(eq(u64, account->memory.used, 60));
    cr_expect(eq(u64, image_size(&image), 3 * STRIPE));
    finish(&image);
}

/*
 * Bytes that arrive
 */

Test(image, pages_that_arrive)
{
    struct image image;

    make(&image, true, 2, 200 * PAGE);
    cr_expect(eq(u64, fill(&image, 5 * PAGE + 100, 'x', 10), 1), "a part of a page");
    cr_expect(eq(u64, fill(&image, 8 * PAGE - 1, 'x', 2), 2), "two of them");
    cr_expect(eq(u64, fill(&image, 20 * PAGE, 'x', 2 * PAGE), 2), "whole ones");
    cr_expect(eq(u64, fill(&image, 19 * PAGE, 'x', 4 * PAGE), 2), "those between have arrived");
    for (uint64_t page = 0; page < 200; page++) {
        bool there = page == 5 || page == 7 || page == 8 || (page >= 19 && page < 23);
        cr_expect(eq(int, arrived(&image, page), there), "page %d", (int)page);
        cr_expect(eq(int, held(&image, page), there), "page %d", (int)page);
    }
    finish(&image);
}

Test(image, reading)
{
    struct image image;
    char buf[16];

    make(&image, true, 1, 0);
    store(&image, 5, "abc", 3);
    cr_expect(eq(long, image_readable(&image, 0, 100), 8));
    cr_expect(eq(long, image_readable(&image, 0, 8), 8));
    cr_expect(eq(long, image_readable(&image, 7, 1), 1));
    cr_expect(eq(long, image_readable(&image, 7, 2), 1));
    cr_expect(eq(long, image_readable(&image, 8, 1), 0));
    cr_expect(eq(long, image_readable(&image, 9, 1), 0));
    memset(buf, '?', sizeof(buf));
    cr_expect(eq(long, image_read(&image, 4, buf, 6), 6));
    cr_expect(zero(int, memcmp(buf, "\0abc\0\0?", 7)), "what was never stored is zero");
    finish(&image);
}

/* One stripe, or all of them but one channel's. */
Test(image, discard_touches_only_the_channel_s_stripes)
{
    struct image image;
    struct error err;

    make(&image, true, 3, 0);
    for (uint64_t s = 0; s < 9; s++)
        fill(&image, s * STRIPE, 'a', STRIPE);
    CHECK_OK(image_discard(&image, FIRST + 1, STRIPE / 2, 7 * STRIPE, &err));
    CHECK_OK(image_discard(&image, FIRST, 6 * STRIPE + PAGE, PAGE, &err));
    CHECK_OK(image_discard(&image, FIRST + 1, 6 * STRIPE + 3 * PAGE, PAGE, &err));
    for (uint64_t at = 0; at < 9 * STRIPE; at += PAGE) {
        bool in_range = at >= STRIPE / 2 && at < STRIPE / 2 + 7 * STRIPE;
        bool gone = (in_range && at / STRIPE % 3 == 1) || at == 6 * STRIPE + PAGE;
        cr_assert(eq(int, byte_at(&image, at) == 0, gone), "at %llu", (unsigned long long)at);
        cr_assert(eq(int, held(&image, at / PAGE), !gone));
        cr_assert(eq(int, arrived(&image, at / PAGE), !gone));
    }
    cr_expect(eq(u64, image_size(&image), 9 * STRIPE), "a hole keeps the size");
    finish(&image);
}

/* A range of one channel is one hole, and no other channel's. */
Test(image, discard_with_one_channel)
{
    struct image image;
    struct error err;

    make(&image, true, 1, 0);
    for (uint64_t s = 0; s < 3; s++)
        fill(&image, s * STRIPE, 'a', STRIPE);
    CHECK_OK(image_discard(&image, FIRST + 1, 0, 3 * STRIPE, &err));
    cr_expect(zero(u64, work_of(&image)));
    CHECK_OK(image_discard(&image, FIRST, STRIPE - 1, STRIPE + 2, &err));
    cr_expect(eq(u64, work_of(&image), STRIPE + 2), "what takes long is told");
    cr_expect(eq(chr, byte_at(&image, STRIPE - 2), 'a'));
    cr_expect(eq(chr, byte_at(&image, STRIPE - 1), 0));
    cr_expect(eq(chr, byte_at(&image, 2 * STRIPE), 0));
    cr_expect(eq(chr, byte_at(&image, 2 * STRIPE + 1), 'a'));
    finish(&image);
}

/* A page that a hole only touches has still arrived. */
Test(image, discard_of_parts_of_pages)
{
    struct image image;
    struct error err;

    make(&image, true, 2, 0);
    fill(&image, 0, 'a', 20 * PAGE);
    CHECK_OK(image_discard(&image, FIRST, 2 * PAGE, PAGE, &err));
    CHECK_OK(image_discard(&image, FIRST, 4 * PAGE + 1, 2 * PAGE - 1, &err));
    CHECK_OK(image_discard(&image, FIRST, 8 * PAGE, 2 * PAGE - 1, &err));
    CHECK_OK(image_discard(&image, FIRST, 12 * PAGE + 1, PAGE - 2, &err));
    for (uint64_t page = 0; page < 20; page++) {
        bool gone = page == 2 || page == 5 || page == 8;
        cr_expect(eq(int, arrived(&image, page), !gone), "page %d", (int)page);
        cr_expect(eq(int, held(&image, page), !gone), "page %d", (int)page);
    }
    cr_expect(eq(chr, byte_at(&image, 4 * PAGE), 'a'));
    cr_expect(eq(chr, byte_at(&image, 4 * PAGE + 1), 0));
    cr_expect(eq(chr, byte_at(&image, 10 * PAGE - 2), 0));
    cr_expect(eq(chr, byte_at(&image, 10 * PAGE - 1), 'a'));
    finish(&image);
}

/* A peer's range may reach far past what is stored: that is no work, and no error. */
Test(image, discard_past_the_end)
{
    for (unsigned channels = 1; channels <= 2; channels++) {
        struct image image;
        struct error err;
        make(&image, true, channels, 0);
        fill(&image, 0, 'a', 100);
        for (unsigned c = FIRST; c < FIRST + channels; c++) {
            CHECK_OK(image_discard(&image, c, 50, WIRE_OFFSET_MAX - 50, &err));
            CHECK_OK(image_discard(&image, c, 5 * STRIPE, STRIPE, &err));
            CHECK_OK(image_discard(&image, c, WIRE_OFFSET_MAX - 1, 1, &err));
        }
        cr_expect(eq(u64, work_of(&image), PAGE - 50));
        cr_expect(eq(chr, byte_at(&image, 49), 'a'));
        cr_expect(eq(chr, byte_at(&image, 50), 0));
        cr_expect(arrived(&image, 0));
        CHECK_OK(image_discard(&image, FIRST, 0, WIRE_OFFSET_MAX, &err));
        cr_expect(not(arrived(&image, 0)), "there is no more of the page than that");
        fill(&image, PAGE, 'a', 1);
        CHECK_OK(image_discard(&image, homes_of(&image.homes, PAGE), PAGE, PAGE, &err));
        cr_expect(not(arrived(&image, 1)), "and if it is a byte");
        finish(&image);
    }
}

/* Holes are made in parts; all of them. */
Test(image, a_large_hole)
{
    uint64_t size = 5ull << 29;
    struct image image;
    struct error err;

    make(&image, true, 1, size);
    for (uint64_t at = 0; at < size; at += 1ull << 29) {
        fill(&image, at, 'x', 1);
        fill(&image, at + (1ull << 29) - 1, 'x', 1);
    }
    CHECK_OK(image_discard(&image, FIRST, PAGE, size - 2 * PAGE, &err));
    cr_expect(eq(u64, work_of(&image), size - 2 * PAGE));
    cr_expect(eq(i64, image_blocks(&image), (int64_t)(2 * PAGE / 512)),
              "the first page and the last one are left");
    cr_expect(eq(chr, byte_at(&image, 0), 'x'));
    cr_expect(eq(chr, byte_at(&image, size - 1), 'x'));
    finish(&image);
}

/* From the first page that holds something on; and nothing where nothing is held. */
Test(image, zero_pages)
{
    struct image image;
    struct error err;
    uint64_t first = 99;

    make(&image, true, 2, STRIPE);
    CHECK_OK(image_zero(&image, 10 * PAGE, 54 * PAGE, &first, &err));
    cr_expect(eq(u64, first, 54));
    cr_expect(zero(u64, work_of(&image)), "nothing is held");
    cr_expect(eq(u64, counter_get(&image.intact), UINT64_MAX), "and nothing is given back");
    fill(&image, 20 * PAGE, 'x', 30 * PAGE);
    CHECK_OK(image_zero(&image, 9 * PAGE, 31 * PAGE, &first, &err));
    cr_expect(eq(u64, first, 1), "the others had arrived before");
    cr_expect(eq(u64, work_of(&image), 20 * PAGE), "from the first page that is held");
    for (uint64_t page = 0; page < 70; page++) {
        cr_expect(eq(int, held(&image, page), page >= 40 && page < 50), "page %d", (int)page);
        cr_expect(eq(int, arrived(&image, page), page >= 9 && page < 64), "page %d", (int)page);
        cr_expect(eq(chr, byte_at(&image, page * PAGE), page >= 40 && page < 50 ? 'x' : 0), "page %d",
                  (int)page);
    }
    finish(&image);
}

/*
 * Truncation, seen by channels in different orders
 */

Test(image, truncation_is_each_channel_s)
{
    struct image image;
    struct error err;

    make(&image, true, 2, 0);
    for (uint64_t s = 0; s < 4; s++)
        fill(&image, s * STRIPE, 'a', STRIPE);
    CHECK_OK(image_truncate(&image, FIRST, STRIPE + 100, &err));
    cr_expect(eq(u64, image_size(&image), 4 * STRIPE), "the other one is still before it");
    cr_expect(eq(u64, image_end(&image, FIRST), STRIPE + 100));
    cr_expect(eq(chr, byte_at(&image, STRIPE + 100), 'a'));
    cr_expect(eq(chr, byte_at(&image, 2 * STRIPE), 0));
    CHECK_OK(image_truncate(&image, FIRST + 1, STRIPE + 100, &err));
    cr_expect(eq(u64, image_size(&image), STRIPE + 100));
    /* What was cut off is gone when it grows again. */
    CHECK_OK(image_grow(&image, FIRST, 4 * STRIPE, &err));
    cr_expect(eq(chr, byte_at(&image, STRIPE + 99), 'a'));
    for (uint64_t at = STRIPE + 100; at < 4 * STRIPE; at += STRIPE / 4)
        cr_expect(eq(chr, byte_at(&image, at), 0), "at %llu", (unsigned long long)at);
    finish(&image);
}

/* What a truncation cut off has not arrived, and nothing is held of it. */
Test(image, truncation_forgets)
{
    struct image image;
    struct error err;

    make(&image, true, 1, 0);
    fill(&image, 0, 'x', 3 * PAGE + 100);
    CHECK_OK(image_truncate(&image, FIRST, PAGE, &err));
    for (uint64_t page = 0; page < 8; page++) {
        cr_expect(eq(int, arrived(&image, page), page == 0), "page %d", (int)page);
        cr_expect(eq(int, held(&image, page), page == 0), "page %d", (int)page);
    }
    cr_expect(eq(i64, image_seek(&image, 0, true), 0));
    finish(&image);
}

/*
 * Memory that is there before it arrives, and windows
 */

Test(image, preallocated_in_parts)
{
    uint64_t part = 16 << 20, size = 2 * part + 3 * PAGE + 100;
    struct image image;

    make(&image, true, 2, size);
    cr_expect(zero(ptr, image_window(&image, 0, 100)), "nothing is there");
    cr_expect(image_preallocate(&image));
    cr_expect(eq(u64, counter_get(&image.preallocated), part));
    cr_expect(not(zero(ptr, image_window(&image, part - 100, 100))));
    cr_expect(zero(ptr, image_window(&image, part - 100, 101)));
    cr_expect(image_preallocate(&image));
    cr_expect(image_preallocate(&image));
    cr_expect(eq(u64, counter_get(&image.preallocated), 2 * part + 3 * PAGE), "whole pages");
    cr_expect(not(image_preallocate(&image)));
    cr_expect(eq(i64, image_blocks(&image), (int64_t)((2 * part + 3 * PAGE) / 512)));
    finish(&image);
}

/* Memory that was preallocated can be given back: what comes then is written, so that a full file system is
 * an error. */
Test(image, preallocated_and_discarded)
{
    struct image image;
    struct error err;

    make(&image, true, 2, 4 * STRIPE);
    while (image_preallocate(&image))
        ;
    cr_expect(not(zero(ptr, image_window(&image, 3 * STRIPE, STRIPE))));
    CHECK_OK(image_discard(&image, FIRST + 1, STRIPE + 2 * PAGE, PAGE, &err));
    cr_expect(not(zero(ptr, image_window(&image, STRIPE, 2 * PAGE))));
    cr_expect(zero(ptr, image_window(&image, STRIPE, 2 * PAGE + 1)));
    cr_expect(zero(ptr, image_window(&image, STRIPE + 2 * PAGE, PAGE)));
    CHECK_OK(image_discard(&image, FIRST + 1, STRIPE + 8 * PAGE, PAGE, &err));
    cr_expect(eq(u64, counter_get(&image.intact), STRIPE + 2 * PAGE), "the first hole counts");
    fill(&image, STRIPE + 2 * PAGE, 'a', PAGE);
    void *window = image_window(&image, STRIPE + 2 * PAGE, PAGE);
    cr_assert(not(zero(ptr, window)), "it is there again");
    cr_expect(zero(int, memcmp(window, "aaaa", 4)));
    finish(&image);
}

/* All pages that a range touches must be held. */
Test(image, window_of_held_pages)
{
    struct image image;

    make(&image, true, 2, STRIPE);
    fill(&image, 4 * PAGE, 'x', 2 * PAGE);
    cr_expect(not(zero(ptr, image_window(&image, 4 * PAGE, 2 * PAGE))));
    cr_expect(not(zero(ptr, image_window(&image, 6 * PAGE - 1, 1))));
    cr_expect(zero(ptr, image_window(&image, 4 * PAGE - 1, 2)));
    cr_expect(zero(ptr, image_window(&image, 6 * PAGE - 1, 2)));
    cr_expect(zero(ptr, image_window(&image, 3 * PAGE, PAGE)));
    cr_expect(zero(ptr, image_window(&image, 6 * PAGE, PAGE)));
    finish(&image);
}

/* Page table entries are made once for each unit. */
Test(image, mapped_once)
{
    struct image image;

    make(&image, true, 1, 2 * STRIPE);
    fill(&image, 0, 'x', STRIPE);
    fill(&image, STRIPE, 'x', STRIPE);
    image_window(&image, STRIPE, 1);
    cr_expect(eq(u16, image.mapped[1], 1));
    image_window(&image, STRIPE + 3 * MEMORY_MAP_UNIT, MEMORY_MAP_UNIT);
    cr_expect(eq(u16, image.mapped[1], 1 | 1 << 3));
    image_window(&image, STRIPE + 6 * MEMORY_MAP_UNIT - 1, MEMORY_MAP_UNIT + 2);
    cr_expect(eq(u16, image.mapped[1], 1 | 1 << 3 | 7 << 5));
    cr_expect(zero(u16, image.mapped[0]), "of its own stripe");
    image_window(&image, 0, STRIPE);
    cr_expect(eq(u16, image.mapped[0], 0xffff));
    image_window(&image, 2 * STRIPE - MEMORY_MAP_UNIT, MEMORY_MAP_UNIT);
    cr_expect(eq(u16, image.mapped[1], 1 | 1 << 3 | 7 << 5 | 1 << 15), "as far as the window reaches");
    finish(&image);
}

/*
 * What is there
 */

Test(image, seek)
{
    struct image image;

    make(&image, true, 2, 10 * PAGE + 5);
    fill(&image, 3 * PAGE + 1, 'x', 10);
    cr_expect(eq(i64, image_seek(&image, 0, true), (int64_t)(3 * PAGE)));
    cr_expect(eq(i64, image_seek(&image, 0, false), 0));
    cr_expect(eq(i64, image_seek(&image, 3 * PAGE + 5, true), (int64_t)(3 * PAGE + 5)));
    cr_expect(eq(i64, image_seek(&image, 3 * PAGE + 5, false), (int64_t)(4 * PAGE)));
    cr_expect(eq(i64, image_seek(&image, 4 * PAGE, true), -ENXIO));
    cr_expect(eq(i64, image_seek(&image, 10 * PAGE + 4, false), (int64_t)(10 * PAGE + 4)));
    cr_expect(eq(i64, image_seek(&image, 10 * PAGE + 5, false), -ENXIO), "past the end");
    fill(&image, 10 * PAGE, 'x', 5);
    cr_expect(eq(i64, image_seek(&image, 4 * PAGE, true), (int64_t)(10 * PAGE)));
    cr_expect(eq(i64, image_seek(&image, 10 * PAGE + 1, false), (int64_t)(10 * PAGE + 5)),
              "the end is a hole");
    image_fini(&image);
    make(&image, true, 2, 10 * PAGE + 1);
    fill(&image, 10 * PAGE, 'x', 1);
    cr_expect(eq(i64, image_seek(&image, 0, true), (int64_t)(10 * PAGE)), "a page of one byte");
    finish(&image);
}

Test(image, seek_without_maps)
{
    struct image image;
    struct error err;

    make(&image, false, 1, 8 * PAGE);
    cr_expect(eq(i64, image_seek(&image, 0, true), -ENXIO), "there is no memory");
    cr_expect(eq(i64, image_seek(&image, 3, false), 3));
    fill(&image, 2 * PAGE, 'x', PAGE);
    cr_expect(eq(i64, image_seek(&image, 0, true), (int64_t)(2 * PAGE)));
    cr_expect(eq(i64, image_seek(&image, 2 * PAGE, false), (int64_t)(3 * PAGE)));
    cr_expect(eq(i64, image_seek(&image, 3 * PAGE, true), -ENXIO));
    cr_expect(eq(i64, image_seek(&image, 7 * PAGE, false), (int64_t)(7 * PAGE)),
              "past the end of the memory, too");
    cr_expect(eq(i64, image_seek(&image, 8 * PAGE, false), -ENXIO));
    /* The memory is longer than the image. */
    CHECK_OK(image_write(&image, 7 * PAGE, "x", 1, &err));
    CHECK_OK(image_write(&image, 8 * PAGE, "x", 1, &err));
    cr_expect(eq(i64, image_seek(&image, 7 * PAGE, false), (int64_t)(8 * PAGE)));
    CHECK_OK(image_discard(&image, FIRST, 7 * PAGE, PAGE, &err));
    cr_expect(eq(i64, image_seek(&image, 3 * PAGE, true), -ENXIO), "what is behind the end does not count");
    finish(&image);
}

Test(image, received_map)
{
    struct image image;
    uint8_t map[64];

    make(&image, true, 2, 200 * PAGE);
    cr_expect(eq(u64, image_map_size(&image), 32), "whole words");
    memset(map, 0xff, sizeof(map));
    cr_expect(eq(sz, image_read_map(&image, 0, map, sizeof(map)), 32));
    for (int i = 0; i < 32; i++)
        cr_expect(eq(u8, map[i], 0));
    fill(&image, 9 * PAGE, 'x', 1);
    cr_expect(eq(sz, image_read_map(&image, 1, map, 1), 1));
    cr_expect(eq(u8, map[0], 2));
    cr_expect(eq(sz, image_read_map(&image, 31, map, 64), 1));
    cr_expect(eq(sz, image_read_map(&image, 32, map, 64), 0));
    cr_expect(eq(sz, image_read_map(&image, UINT64_MAX, map, 64), 0));
    image_fini(&image);
    make(&image, true, 1, 64 * PAGE);
    cr_expect(eq(u64, image_map_size(&image), 8));
    image_fini(&image);
    make(&image, true, 1, 64 * PAGE + 1);
    cr_expect(eq(u64, image_map_size(&image), 16));
    finish(&image);
}

static ssize_t read_plain(void *arg, uint64_t offset, void *buf, size_t len)
{
    memcpy(buf, (const char *)arg + offset, len);
    return (ssize_t)len;
}

Test(image, digests)
{
    uint64_t size = 2 * DIGEST_PIECE + 1000;
    uint8_t want[DIGEST_SIZE], got[4 * DIGEST_SIZE], pieces[3 * DIGEST_SIZE];
    struct interrupt interrupt = {false};
    char *plain = calloc(1, size);
    struct image image;
    struct digest_source source = {.size = size, .read = read_plain, .arg = plain};

    make(&image, true, 1, size);
    memset(plain + 5000, 'x', 3000);
    memset(plain + DIGEST_PIECE, 'y', DIGEST_PIECE);
    fill(&image, 5000, 'x', 3000);
    fill(&image, DIGEST_PIECE, 'y', DIGEST_PIECE);
    cr_assert(zero(int, digest_compute(size, read_plain, plain, want)));
    cr_assert(zero(int, digest_pieces(&source, 0, 3, pieces)));
    cr_expect(zero(int, image_digest(&image, &interrupt, got)));
    cr_expect(zero(int, memcmp(got, want, DIGEST_SIZE)));
    cr_expect(eq(u64, work_of(&image), size), "what takes long is told");
    cr_expect(zero(int, image_digest_pieces(&image, 0, 3, got)));
    cr_expect(zero(int, memcmp(got, pieces, 3 * DIGEST_SIZE)));
    cr_expect(zero(int, image_digest_pieces(&image, 1, 2, got)));
    cr_expect(zero(int, memcmp(got, pieces + DIGEST_SIZE, 2 * DIGEST_SIZE)));
    cr_expect(zero(int, image_digest_pieces(&image, 3, 0, got)));
    cr_expect(eq(int, image_digest_pieces(&image, 4, 0, got), -ERANGE));
    cr_expect(eq(int, image_digest_pieces(&image, 1, 3, got), -ERANGE));
    cr_expect(eq(int, image_digest_pieces(&image, 1, UINT64_MAX, got), -ERANGE));
    interrupt.hit = true;
    cr_expect(eq(int, image_digest(&image, &interrupt, got), -EINTR));
    image_drop(&image);
    cr_expect(eq(int, image_digest(&image, NULL, got), -ECONNRESET));
    cr_expect(eq(int, image_digest_pieces(&image, 0, 3, got), -ECONNRESET));
    image_fini(&image);
    free(plain);
    make(&image, true, 1, 2 * DIGEST_PIECE);
    cr_expect(zero(int, image_digest_pieces(&image, 0, 2, got)));
    cr_expect(eq(int, image_digest_pieces(&image, 0, 3, got), -ERANGE), "whole pieces, and none behind them");
    finish(&image);
}

/*
 * Ends
 */

Test(image, finished_and_kept)
{
    struct memory_place place = {.directory = scratch};
    char path[128], found[256];
    struct stat st;
    struct error err;

    snprintf(path, sizeof(path), "%s/image", scratch);
    for (int kept = 0; kept < 2; kept++) {
        struct image_form form = form_of(true, 1, 3 * PAGE);
        struct image image;
        form.place = &place;
        image_init(&image);
        image_path(&image, found, sizeof(found));
        cr_expect(eq(str, found, ""), "it is nowhere yet");
        CHECK_OK(image_own(&image, getuid(), getgid(), 0640, &err));
        CHECK_OK(image_begin(&image, &form, &err));
        image_path(&image, found, sizeof(found));
        cr_expect(eq(str, found, path));
        CHECK_OK(image_own(&image, getuid(), getgid(), 0640, &err));
        fill(&image, 2 * PAGE, 'x', PAGE);
        CHECK_OK(image_truncate(&image, FIRST, 2 * PAGE + 10, &err));
        CHECK_OK(image_finish(&image, &err));
        cr_assert(zero(int, stat(path, &st)));
        cr_expect(eq(u64, (uint64_t)st.st_size, 2 * PAGE + 10), "as long as the image");
        cr_expect(eq(uint, st.st_mode & 07777, 0640));
        CHECK_OK(image_check(&image, &err));
        if (kept)
            image_keep(&image);
        finish(&image);
        cr_expect(eq(int, access(path, F_OK), kept ? 0 : -1));
    }
}

Test(image, removed_by_its_user)
{
    struct memory_place place = {.directory = scratch};
    struct image_form form = form_of(true, 1, PAGE);
    char path[128];
    struct image image;
    struct error err;

    snprintf(path, sizeof(path), "%s/image", scratch);
    form.place = &place;
    image_init(&image);
    CHECK_OK(image_begin(&image, &form, &err));
    image_keep(&image);
    image_unlink(&image);
    cr_expect(eq(int, access(path, F_OK), -1));
    CHECK_OK(image_check(&image, &err));
    image_discharge(&image);
    cr_expect(zero(u64, budget.used));
    cr_expect(eq(long, image_readable(&image, 0, 10), 10), "it can still be read");
    finish(&image);
}

Test(image, truncated_by_somebody)
{
    char path[64], want[64];
    struct image image;
    struct error err;

    make(&image, true, 1, PAGE);
    snprintf(want, sizeof(want), "/proc/%d/fd/%d", (int)getpid(), image.memory.fd);
    image_path(&image, path, sizeof(path));
    cr_expect(eq(str, path, want));
    cr_expect(eq(int, image_descriptor(&image), image.memory.fd));
    CHECK_OK(image_check(&image, &err));
    cr_assert(zero(int, truncate(path, (off_t)PAGE - 1)));
    CHECK_FAILS(image_check(&image, &err), CAUSE_IO);
    finish(&image);
}

/* Everything is given back at once, but for what somebody looks at, which goes with the last of them. */
Test(image, dropped_while_it_is_used)
{
    struct image image;
    char got[4];

    make(&image, true, 2, STRIPE);
    cr_assert(zero(ptr, image.account));
    store(&image, 0, "data", 4);
    int fd = image.memory.fd;
    cr_assert(image_use(&image));
    cr_assert(image_use(&image));
    image_drop(&image);
    cr_expect(not(image_use(&image)), "nobody starts to look at it");
    cr_expect(eq(long, image_readable(&image, 0, 4), -ECONNRESET));
    cr_expect(eq(long, image_read(&image, 0, got, 4), -ECONNRESET));
    cr_expect(zero(u64, budget.used));
    cr_expect(zero(i64, image_blocks(&image)));
    image_unuse(&image);
    struct stat st;
    cr_assert(zero(int, fstat(fd, &st)), "one still looks");
    cr_expect(zero(i64, st.st_blocks), "the pages are gone");
    cr_expect(eq(u64, windows.used, STRIPE));
    image_unuse(&image);
    cr_expect(eq(int, fcntl(fd, F_GETFD), -1));
    cr_expect(zero(ptr, image.received.words));
    cr_expect(zero(u64, windows.used));
    cr_expect(zero(sz, image_read_map(&image, 0, got, sizeof(got))));
    cr_expect(eq(i64, image_seek(&image, 0, true), -ENXIO));
    image_drop(&image);
    image_settle(&image, 0);
    cr_expect(eq(u64, image_size(&image), STRIPE), "the size is still told");
    finish(&image);
}

/* A thread that looks at it and goes, while it is not dropped, takes nothing along, and keeps nothing. */
Test(image, used_and_left)
{
    uint8_t digest[DIGEST_SIZE], map[8];
    char path[64];
    struct image image;
    struct error err;

    make(&image, true, 1, PAGE);
    cr_assert(image_use(&image));
    image_unuse(&image);
    cr_expect(image_has_memory(&image));
    cr_expect(eq(u64, budget.used, PAGE));
    fill(&image, 0, 'x', 1);
    cr_expect(eq(chr, byte_at(&image, 0), 'x'));
    cr_expect(zero(i64, image_seek(&image, 0, true)));
    cr_expect(zero(int, image_digest(&image, NULL, digest)));
    cr_expect(zero(int, image_digest_pieces(&image, 0, 1, digest)));
    cr_expect(eq(sz, image_read_map(&image, 0, map, sizeof(map)), sizeof(map)));
    cr_expect(image_blocks(&image) > 0);
    image_path(&image, path, sizeof(path));
    CHECK_OK(image_own(&image, getuid(), getgid(), 0600, &err));
    image_unlink(&image);
    cr_expect(zero(uint, image.users));
    image_drop(&image);
    cr_expect(not(image_has_memory(&image)));
    cr_expect(zero(i64, image_blocks(&image)));
    image_path(&image, path, sizeof(path));
    cr_expect(eq(str, path, ""));
    CHECK_OK(image_own(&image, getuid(), getgid(), 0600, &err));
    image_unlink(&image);
    finish(&image);
}

static struct image racing;
static pthread_barrier_t both;

static void *unuse_racing(void *arg)
{
    pthread_barrier_wait(&both);
    image_unuse(&racing);
    return arg;
}

/* A thread that looks at it last gives all back, while the migration's thread keeps the size. */
Test(image, settled_while_the_last_user_leaves)
{
    pthread_barrier_init(&both, NULL, 2);
    for (int i = 0; i < 2000; i++) {
        pthread_t thread;
        make(&racing, true, 2, STRIPE);
        cr_assert(image_use(&racing));
        image_drop(&racing);
        pthread_create(&thread, NULL, unuse_racing, NULL);
        pthread_barrier_wait(&both);
        image_settle(&racing, 0);
        pthread_join(thread, NULL);
        cr_assert(eq(u64, windows.used, 0), "round %d", i);
        cr_assert(eq(u64, budget.used, 0), "round %d", i);
        finish(&racing);
    }
}

static void *discharge_racing(void *arg)
{
    pthread_barrier_wait(&both);
    image_discharge(&racing);
    return arg;
}

/* Its user removes it when its first byte is still to come. */
Test(image, discharged_while_it_begins)
{
    const struct image_form form = form_of(true, 2, STRIPE);

    pthread_barrier_init(&both, NULL, 2);
    for (int i = 0; i < 500; i++) {
        pthread_t thread;
        struct error err;
        image_init(&racing);
        pthread_create(&thread, NULL, discharge_racing, NULL);
        pthread_barrier_wait(&both);
        CHECK_OK(image_begin(&racing, &form, &err));
        pthread_join(thread, NULL);
        cr_assert(budget.used == 0 || budget.used == STRIPE, "round %d", i);
        image_discharge(&racing);
        cr_assert(eq(u64, budget.used, 0), "round %d", i);
        finish(&racing);
    }
}

/* What cannot be finished is said. */
Test(image, not_finished)
{
    struct image image;
    struct error err;

    make(&image, true, 2, 4 * PAGE);
    fill(&image, 0, 'x', PAGE);
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    cr_assert(eq(int, dup2(fd, image.memory.fd), image.memory.fd));
    close(fd);
    cr_expect(lt(int, image_finish(&image, &(struct error){0}), 0));
    err = (struct error){0};
    image_finish(&image, &err);
    cr_expect(error_is_set(&err));
    finish(&image);
}
