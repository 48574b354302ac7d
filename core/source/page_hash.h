/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The hash of a page that stands in memory, at the memory's rate.
 *
 * Of a page in the cache XXH3 takes a third of what it takes to bring the page there, so what counts is that
 * the processor always asks for as many cache lines as it can. The library's binary asks for those half a KiB
 * ahead, and so falls behind whenever a page begins, whose first lines its prefetchers do not foresee. The
 * library's own code, compiled here to ask for those a page and a half ahead, reads memory faster by a
 * quarter. What comes after a page in memory is most often the next one to be looked at; if it is not, or is
 * not even there, a prefetch does no harm.
 */
#ifndef MIGFS_PAGE_HASH_H
#define MIGFS_PAGE_HASH_H

#include <stddef.h>
#include <stdint.h>

#define PAGE_HASH_SECRET 192 /* bytes */

struct page_hash {
    uint64_t low, high;
};

/** page_hash_fn - XXH3 (128 bits) of @len bytes with @secret of PAGE_HASH_SECRET bytes */
typedef struct page_hash page_hash_fn(const void *bytes, size_t len, const void *secret);

/* The same code for each instruction set that there is for it; a processor may not have the latter two. */
page_hash_fn page_hash_plain, page_hash_avx2, page_hash_avx512;

/** page_hash_best - the fastest that this processor has */
page_hash_fn *page_hash_best(void);

#endif
