/* SPDX-License-Identifier: Apache-2.0 */
/* One bit a page, against an array of bools. */
#include "page_map.h"
#include "check.h"
#include "wire.h"

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
