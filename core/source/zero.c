/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Finding zero pages; see zero.h.
 *
 * Most pages with data show it in their first bytes, so a look at three places
 * comes first, as in QEMU's buffer_is_zero. The rest is a loop over blocks that
 * the compiler turns into vector instructions; target_clones lets it do so for
 * the machine that it runs on.
 */
#include "zero.h"
#include "wire.h"

#include <stdint.h>
#include <string.h>

#define BLOCK 256

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_THREAD__)
#define CLONES __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define CLONES
#endif

/* @len is a multiple of BLOCK. */
CLONES static bool blocks_are_zero(const char *p, size_t len)
{
    for (; len; p += BLOCK, len -= BLOCK) {
        uint64_t words[BLOCK / 8], any = 0;
        memcpy(words, p, sizeof(words));
        for (size_t i = 0; i < BLOCK / 8; i++)
            any |= words[i];
        if (any)
            return false;
    }
    return true;
}

bool zero_is(const void *buf, size_t len)
{
    const char *p = buf;
    size_t whole = len / BLOCK * BLOCK;

    if (len && (p[0] || p[len / 2] || p[len - 1]))
        return false;
    if (!blocks_are_zero(p, whole))
        return false;
    for (size_t i = whole; i < len; i++) {
        if (p[i])
            return false;
    }
    return true;
}

size_t zero_run(const void *buf, size_t len, bool *zero)
{
    const char *p = buf;
    size_t run = WIRE_PAGE_SIZE;

    *zero = zero_is(p, WIRE_PAGE_SIZE);
    while (run < len && zero_is(p + run, WIRE_PAGE_SIZE) == *zero)
        run += WIRE_PAGE_SIZE;
    return run;
}
