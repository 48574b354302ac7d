/* SPDX-License-Identifier: Apache-2.0 */
/* Compiled once for each instruction set, as PAGE_HASH; see page_hash.h. */
#include "page_hash.h"

#ifndef PAGE_HASH
#define PAGE_HASH page_hash_plain
#endif

#define XXH_INLINE_ALL
#define XXH_PREFETCH_DIST 6144 /* 2 to 8 KiB are nearly as good */
#include <xxhash.h>

#include <assert.h>

static_assert(PAGE_HASH_SECRET >= XXH3_SECRET_SIZE_MIN, "XXH3 takes it");

struct page_hash PAGE_HASH(const void *bytes, size_t len, const void *secret) {
    XXH128_hash_t hash = XXH3_128bits_withSecret(bytes, len, secret, PAGE_HASH_SECRET);

    return (struct page_hash){hash.low64, hash.high64};
}
