/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One bit for each page of a RAM image.
 *
 * A stripe is a whole number of words, and belongs to one channel, so a word
 * has one writer. Others read it: the words are atomics, relaxed. Only
 * page_map_merge() and page_map_take() may be called by several threads at once.
 */
#ifndef MIGFS_PAGE_MAP_H
#define MIGFS_PAGE_MAP_H

#include "error.h"
#include "wire.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct page_map {
    _Atomic uint64_t *words; /* address space for all pages; memory for those that were touched */
    uint64_t pages;
};

/** page_map_span - how many pages the bytes [offset, offset + len) touch, and the first of them; @len is not
 * 0 */
static inline uint64_t page_map_span(uint64_t offset, uint64_t len, uint64_t *first)
{
    *first = offset / WIRE_PAGE_SIZE;
    return (offset + len - 1) / WIRE_PAGE_SIZE - *first + 1;
}

/** page_map_init - a map of zeros for @bytes of image */
int page_map_init(struct page_map *map, uint64_t bytes, struct error *err);
void page_map_fini(struct page_map *map);

bool page_map_test(const struct page_map *map, uint64_t page);

/** page_map_set, page_map_clear - change [first, first + count); returns how many bits were different */
uint64_t page_map_set(struct page_map *map, uint64_t first, uint64_t count);
uint64_t page_map_clear(struct page_map *map, uint64_t first, uint64_t count);

/**
 * page_map_merge - set more bits of a word: pages 64 * @word and on; what was written before is seen by who
 * takes them
 */
void page_map_merge(struct page_map *map, uint64_t word, uint64_t bits);

/** page_map_take - the bits of a word, which are clear then */
uint64_t page_map_take(struct page_map *map, uint64_t word);

/** page_map_count - how many bits are set, in all */
uint64_t page_map_count(const struct page_map *map);

/**
 * page_map_next - the first page at or after @page whose bit is @value, before @end; @end when there is none
 */
uint64_t page_map_next(const struct page_map *map, uint64_t page, uint64_t end, bool value);

/**
 * page_map_read - the map as bytes, little-endian words; @len bytes at byte @offset; the caller keeps within
 * it
 */
void page_map_read(const struct page_map *map, uint64_t offset, void *out, size_t len);

#endif
