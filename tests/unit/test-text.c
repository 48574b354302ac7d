/* SPDX-License-Identifier: Apache-2.0 */
/* Text that others choose. */
#include "text.h"
#include "check.h"

#include <string.h>

struct sample {
    const char *text;
    enum text_kind kind;
    size_t length;
    uint32_t code;
};

static const struct sample samples[] = {
    {"a", TEXT_PLAIN, 1, 'a'},
    {" ", TEXT_PLAIN, 1, ' '},
    {"~", TEXT_PLAIN, 1, '~'},
    {"\xc2\xa0", TEXT_PLAIN, 2, 0xa0},
    {"\xdf\xbf", TEXT_PLAIN, 2, 0x7ff},
    {"\xe0\xa0\x80", TEXT_PLAIN, 3, 0x800},
    {"\xed\x9f\xbf", TEXT_PLAIN, 3, 0xd7ff},
    {"\xee\x80\x80", TEXT_PLAIN, 3, 0xe000},
    {"\xef\xbf\xbd", TEXT_PLAIN, 3, 0xfffd},
    {"\xf0\x90\x80\x80", TEXT_PLAIN, 4, 0x10000},
    {"\xf4\x8f\xbf\xbf", TEXT_PLAIN, 4, 0x10ffff},
    {"\xe2\x80\x8d", TEXT_PLAIN, 3, 0x200d},
    /* stray, missing, cut */
    {"\x80", TEXT_INVALID, 1, 0},
    {"\xbf", TEXT_INVALID, 1, 0},
    {"\xc3", TEXT_INVALID, 1, 0},
    {"\xc3(", TEXT_INVALID, 1, 0},
    {"\xe2\x82", TEXT_INVALID, 1, 0},
    {"\xf0\x9f\x98", TEXT_INVALID, 1, 0},
    {"\xfe", TEXT_INVALID, 1, 0},
    {"\xff", TEXT_INVALID, 1, 0},
    /* overlong */
    {"\xc0\xaf", TEXT_INVALID, 1, 0},
    {"\xc1\xbf", TEXT_INVALID, 1, 0},
    {"\xe0\x9f\xbf", TEXT_INVALID, 1, 0},
    {"\xf0\x8f\xbf\xbf", TEXT_INVALID, 1, 0},
    /* surrogates, and past the end */
    {"\xed\xa0\x80", TEXT_INVALID, 1, 0},
    {"\xed\xbf\xbf", TEXT_INVALID, 1, 0},
    {"\xf4\x90\x80\x80", TEXT_INVALID, 1, 0},
    {"\xf5\x80\x80\x80", TEXT_INVALID, 1, 0},
    {"\xf8\x88\x80\x80\x80", TEXT_INVALID, 1, 0},
    {"\x01", TEXT_CONTROL, 1, 1},
    {"\n", TEXT_CONTROL, 1, '\n'},
    {"\x1b", TEXT_CONTROL, 1, 0x1b},
    {"\x7f", TEXT_CONTROL, 1, 0x7f},
    {"\xc2\x80", TEXT_CONTROL, 2, 0x80},
    {"\xc2\x9b", TEXT_CONTROL, 2, 0x9b},
    {"\xc2\x9f", TEXT_CONTROL, 2, 0x9f},
    {"\xe2\x80\xa8", TEXT_CONTROL, 3, 0x2028},
    {"\xe2\x80\xa9", TEXT_CONTROL, 3, 0x2029},
    {"\xd8\x9c", TEXT_DIRECTION, 2, 0x61c},
    {"\xe2\x80\x8e", TEXT_DIRECTION, 3, 0x200e},
    {"\xe2\x80\x8f", TEXT_DIRECTION, 3, 0x200f},
    {"\xe2\x80\xaa", TEXT_DIRECTION, 3, 0x202a},
    {"\xe2\x80\xae", TEXT_DIRECTION, 3, 0x202e},
    {"\xe2\x81\xa6", TEXT_DIRECTION, 3, 0x2066},
    {"\xe2\x81\xa9", TEXT_DIRECTION, 3, 0x2069},
};

Test(text, kinds)
{
    for (size_t i = 0; i < ARRAY_LENGTH(samples); i++) {
        const struct sample *want = &samples[i];
        size_t length = 0;
        uint32_t code = 0;
        cr_expect(eq(int, (int)text_next(want->text, &length, &code), (int)want->kind), "sample %zu", i);
        cr_expect(eq(sz, length, want->length), "sample %zu", i);
        cr_expect(eq(u32, code, want->code), "sample %zu", i);
    }
}

Test(text, made_plain)
{
    static const struct {
        const char *from, *to;
    } pairs[] = {
        {"", ""},
        {"plain", "plain"},
        {"h\xc3\xa9!", "h\xc3\xa9!"},
        {"first\nsecond \x1b[2J", "first?second ?[2J"},
        {"a\xc2\x9b" "b\xe2\x80\xae" "c\xe2\x80\xa8", "a?b?c?"},
        {"\xff\xc3(", "?" "?("},
        {"cut \xe2\x82", "cut ??"},
        {"\xed\xa0\x80", "???"},
    };

    for (size_t i = 0; i < ARRAY_LENGTH(pairs); i++) {
        char text[64];
        strcpy(text, pairs[i].from);
        text_make_plain(text);
        cr_expect(eq(str, text, (char *)pairs[i].to));
    }
}
