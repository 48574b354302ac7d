/* SPDX-License-Identifier: Apache-2.0 */
/* Zero pages are found, and nothing else is taken for one. */
#include "zero.h"
#include "check.h"
#include "wire.h"

#include <stdlib.h>
#include <string.h>

/* Every length around the block size, from every alignment, with a single bit anywhere. */
Test(zero, single_bits)
{
    char buf[1200] = {0};

    for (size_t len = 0; len <= 1100; len += len < 20 ? 1 : 53) {
        for (size_t start = 0; start < 16; start += 5) {
            cr_assert(zero_is(buf + start, len), "%zu zeros", len);
            for (size_t at = 0; at < len; at++) {
                buf[start + at] = (char)(1 << at % 8);
                cr_assert(not(zero_is(buf + start, len)), "byte %zu of %zu", at, len);
                buf[start + at] = 0;
            }
            buf[start + len] = 1;
            cr_assert(zero_is(buf + start, len), "the byte behind the end does not count");
            buf[start + len] = 0;
        }
    }
}

Test(zero, every_byte_of_a_page)
{
    static char page[WIRE_PAGE_SIZE];

    cr_expect(zero_is(page, sizeof(page)));
    for (size_t at = 0; at < sizeof(page); at++) {
        page[at] = (char)0x80;
        cr_assert(not(zero_is(page, sizeof(page))), "byte %zu", at);
        page[at] = 0;
    }
}

Test(zero, runs)
{
    static const struct {
        const char *pages; /* '.' is a zero page */
        size_t run;
        bool zero;
    } cases[] = {
        {".", 1, true}, {"x", 1, false}, {"..x.", 2, true}, {"xx..", 2, false}, {"....", 4, true}, {"xxxx", 4, false}, {"x.x.", 1, false},
    };

    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        size_t n = strlen(cases[i].pages);
        char *buf = calloc(n, WIRE_PAGE_SIZE);
        bool zero;
        for (size_t page = 0; page < n; page++) {
            if (cases[i].pages[page] == 'x')
                buf[page * WIRE_PAGE_SIZE + (page * 1777) % WIRE_PAGE_SIZE] = 1;
        }
        cr_expect(eq(sz, zero_run(buf, n * WIRE_PAGE_SIZE, &zero), cases[i].run * WIRE_PAGE_SIZE), "%s", cases[i].pages);
        cr_expect(eq(int, zero, cases[i].zero), "%s", cases[i].pages);
        free(buf);
    }
}
