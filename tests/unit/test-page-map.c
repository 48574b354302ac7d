/* SPDX-License-Identifier: Apache-2.0 */
/* One bit a page, against an array of bools. */
#include "page_map.h"
#include "check.h"
#include "wire.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#define PAGES 300

static void check_all(const struct page_map *map, const bool *want)
{
    uint8_t bytes[(PAGES + 63) / 64 * 8];

    page_map_read(map, 0, bytes, sizeof(bytes));
    for (uint64_t page = 0; page < PAGES; page++) {
        cr_assert(eq(int, page_map_test(map, page), want[page]), "page %d", (int)page);
        cr_assert(eq(int, bytes[page / 8] >> page % 8 & 1, want[page]), "page %d of the bytes", (int)page);
    }
}

Test(page_map, against_a_model)
{
    struct page_map map;
    struct error err;
    bool want[PAGES] = {false};
    unsigned random = 1;

    CHECK_OK(page_map_init(&map, PAGES * WIRE_PAGE_SIZE - 5, &err));
    check_all(&map, want);
    for (int i = 0; i < 3000; i++) {
        random = random * 1103515245 + 12345;
        uint64_t first = (random >> 8) % PAGES, count = (random >> 16) % (i % 3 ? 5 : PAGES + 1), changed = 0;
        bool value = random >> 31;
        if (count > PAGES - first)
            count = PAGES - first;
        for (uint64_t page = first; page < first + count; page++) {
            changed += want[page] != value;
            want[page] = value;
        }
        cr_assert(eq(u64, value ? page_map_set(&map, first, count) : page_map_clear(&map, first, count), changed));
        if (i % 50 == 0)
            check_all(&map, want);
        uint64_t end = first + (random >> 20) % (PAGES - first + 1), next = first;
        while (next < end && want[next] != value)
            next++;
        cr_assert(eq(u64, page_map_next(&map, first, end, value), next), "from %d to %d", (int)first, (int)end);
    }
    check_all(&map, want);
    page_map_fini(&map);
}

Test(page_map, parts_of_the_bytes)
{
    struct page_map map;
    struct error err;
    uint8_t got[4];

    CHECK_OK(page_map_init(&map, 1 << 20, &err));
    page_map_set(&map, 8, 9);
    page_map_read(&map, 1, got, 3);
    cr_expect(eq(u8, got[0], 0xff));
    cr_expect(eq(u8, got[1], 0x01));
    cr_expect(eq(u8, got[2], 0));
    page_map_fini(&map);
    page_map_fini(&map);
}

/* Address space is all that a huge one costs. */
Test(page_map, of_the_largest_file)
{
    struct page_map map;
    struct error err;
    uint64_t last = WIRE_OFFSET_MAX / WIRE_PAGE_SIZE - 1;

    CHECK_OK(page_map_init(&map, WIRE_OFFSET_MAX, &err));
    cr_expect(eq(u64, page_map_set(&map, last, 1), 1));
    cr_expect(page_map_test(&map, last));
    cr_expect(not(page_map_test(&map, last - 1)));
    page_map_fini(&map);
    CHECK_OK(page_map_init(&map, 0, &err));
    page_map_fini(&map);
}

Test(page_map, words_that_are_merged_and_taken)
{
    struct page_map map;
    struct error err;
    bool want[PAGES] = {false};

    CHECK_OK(page_map_init(&map, PAGES * WIRE_PAGE_SIZE, &err));
    cr_expect(eq(u64, page_map_count(&map), 0));
    cr_expect(eq(u64, page_map_take(&map, 0), 0));
    page_map_merge(&map, 1, 1ull << 63 | 5);
    page_map_merge(&map, 1, 1ull << 2 | 2);
    page_map_merge(&map, 4, 1);
    want[64] = want[65] = want[66] = want[127] = want[256] = true;
    check_all(&map, want);
    cr_expect(eq(u64, page_map_count(&map), 5));
    cr_expect(eq(u64, page_map_take(&map, 1), 1ull << 63 | 7));
    cr_expect(eq(u64, page_map_take(&map, 1), 0));
    cr_expect(eq(u64, page_map_count(&map), 1));
    want[64] = want[65] = want[66] = want[127] = false;
    check_all(&map, want);
    page_map_fini(&map);
    CHECK_OK(page_map_init(&map, 0, &err));
    cr_expect(eq(u64, page_map_count(&map), 0));
    page_map_fini(&map);
}

#define TURNS 200000

static struct page_map shared;
static uint64_t written[64]; /* relaxed: the bit brings the order */
static atomic_bool merging;

static void *merge(void *arg)
{
    unsigned half = (unsigned)(uintptr_t)arg;

    for (unsigned i = 0; i < TURNS; i++) {
        unsigned bit = half * 32 + i % 32;
        __atomic_fetch_add(&written[bit], 1, __ATOMIC_RELAXED);
        page_map_merge(&shared, 0, 1ull << bit);
    }
    return NULL;
}

static void *take(void *arg)
{
    uint64_t *seen = arg, bits;
    bool last;

    do {
        last = !atomic_load(&merging);
        bits = page_map_take(&shared, 0);
        for (unsigned bit = 0; bit < 64; bit++) {
            if (bits >> bit & 1)
                seen[bit] = __atomic_load_n(&written[bit], __ATOMIC_RELAXED);
        }
    } while (!last);
    return NULL;
}

/* Who takes a bit sees what was written before it was set; no bit is lost between threads. */
Test(page_map, merged_by_many_and_taken_by_one)
{
    pthread_t mergers[2], taker;
    struct error err;
    uint64_t seen[64] = {0};

    CHECK_OK(page_map_init(&shared, 64 * WIRE_PAGE_SIZE, &err));
    atomic_store(&merging, true);
    cr_assert(zero(int, pthread_create(&taker, NULL, take, seen)));
    for (unsigned i = 0; i < 2; i++)
        cr_assert(zero(int, pthread_create(&mergers[i], NULL, merge, (void *)(uintptr_t)i)));
    for (unsigned i = 0; i < 2; i++)
        pthread_join(mergers[i], NULL);
    atomic_store(&merging, false);
    pthread_join(taker, NULL);
    for (unsigned bit = 0; bit < 64; bit++)
        cr_expect(eq(u64, seen[bit], TURNS / 32), "bit %u", bit);
    cr_expect(eq(u64, page_map_count(&shared), 0));
    page_map_fini(&shared);
}
