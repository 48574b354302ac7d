/* SPDX-License-Identifier: Apache-2.0 */
/* Bits of pages; see page_map.h. */
#include "page_map.h"

#include <endian.h>
#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#define BITS 64

static size_t map_bytes(const struct page_map *map)
{
    return (size_t)((map->pages + BITS - 1) / BITS * sizeof(uint64_t));
}

int page_map_init(struct page_map *map, uint64_t bytes, struct error *err)
{
    *map = (struct page_map){.pages = (bytes + WIRE_PAGE_SIZE - 1) / WIRE_PAGE_SIZE};
    if (!map->pages)
        return 0;
    void *words = mmap(NULL, map_bytes(map), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (words == MAP_FAILED)
        return error_set_errno(err, errno, "no room for a map of %llu pages", (unsigned long long)map->pages);
    map->words = words;
    return 0;
}

void page_map_fini(struct page_map *map)
{
    if (map->words)
        munmap(map->words, map_bytes(map));
    map->words = NULL;
}

static uint64_t load(const struct page_map *map, uint64_t word)
{
    return atomic_load_explicit(&map->words[word], memory_order_relaxed);
}

bool page_map_test(const struct page_map *map, uint64_t page)
{
    return load(map, page / BITS) >> (page % BITS) & 1;
}

/* The bits of [first, end) that are in the word of @first. */
static uint64_t mask_of(uint64_t first, uint64_t end)
{
    uint64_t low = first % BITS, count = end - first < BITS - low ? end - first : BITS - low;

    return (count == BITS ? ~0ull : (1ull << count) - 1) << low;
}

static uint64_t change(struct page_map *map, uint64_t first, uint64_t count, bool value)
{
    uint64_t end = first + count, changed = 0;

    while (first < end) {
        uint64_t mask = mask_of(first, end), old = load(map, first / BITS);
        uint64_t new = value ? old | mask : old & ~mask;
        if (new != old)
            atomic_store_explicit(&map->words[first / BITS], new, memory_order_relaxed);
        changed += (uint64_t)__builtin_popcountll(new ^ old);
        first = (first / BITS + 1) * BITS;
    }
    return changed;
}

uint64_t page_map_set(struct page_map *map, uint64_t first, uint64_t count)
{
    return change(map, first, count, true);
}

uint64_t page_map_clear(struct page_map *map, uint64_t first, uint64_t count)
{
    return change(map, first, count, false);
}

void page_map_merge(struct page_map *map, uint64_t word, uint64_t bits)
{
    atomic_fetch_or_explicit(&map->words[word], bits, memory_order_release);
}

uint64_t page_map_take(struct page_map *map, uint64_t word)
{
    return load(map, word) ? atomic_exchange_explicit(&map->words[word], 0, memory_order_acquire) : 0;
}

uint64_t page_map_count(const struct page_map *map)
{
    uint64_t count = 0;

    for (uint64_t word = 0; word * BITS < map->pages; word++)
        count += (uint64_t)__builtin_popcountll(load(map, word));
    return count;
}

uint64_t page_map_next(const struct page_map *map, uint64_t page, uint64_t end, bool value)
{
    while (page < end) {
        uint64_t word = load(map, page / BITS);
        uint64_t wanted = (value ? word : ~word) & mask_of(page, end);
        if (wanted)
            return page / BITS * BITS + (uint64_t)__builtin_ctzll(wanted);
        page = (page / BITS + 1) * BITS;
    }
    return end;
}

void page_map_read(const struct page_map *map, uint64_t offset, void *out, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        uint64_t at = offset + i, word = htole64(load(map, at / 8));
        ((uint8_t *)out)[i] = ((const uint8_t *)&word)[at % 8];
    }
}
