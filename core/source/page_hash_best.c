/* SPDX-License-Identifier: Apache-2.0 */
#include "page_hash.h"

page_hash_fn *page_hash_best(void)
{
#ifdef MIGFS_PAGE_HASH_X86
    if (__builtin_cpu_supports("avx512f"))
        return page_hash_avx512;
    if (__builtin_cpu_supports("avx2"))
        return page_hash_avx2;
#endif
    return page_hash_plain;
}
