/* SPDX-License-Identifier: Apache-2.0 */
/* Text that others choose; see text.h. */
#include "text.h"

#include <stdbool.h>
#include <string.h>

/* The code of the UTF-8 sequence at @p, and its length; false when there is none. */
static bool decode(const unsigned char *p, uint32_t *code, size_t *length)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t n = *p < 0x80 ? 1 : *p < 0xc0 ? 0 : *p < 0xe0 ? 2 : *p < 0xf0 ? 3 : *p < 0xf8 ? 4 : 0;
    uint32_t value = n == 1 ? *p : *p & (0x7fu >> n);

    if (n == 0)
        return false;
    for (size_t i = 1; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80) /* nor is the end of the text */
            return false;
        value = value << 6 | (p[i] & 0x3f);
    }
    if (value < least[n] || value > 0x10ffff || (value >= 0xd800 && value <= 0xdfff))
        return false;
    *code = value;
    *length = n;
    return true;
}

enum text_kind text_next(const char *text, size_t *length, uint32_t *code)
{
    uint32_t c = 0;

    *length = 1;
    if (!decode((const unsigned char *)text, &c, length))
        return TEXT_INVALID;
    if (code)
        *code = c;
    if (c < 0x20 || (c >= 0x7f && c <= 0x9f) || c == 0x2028 || c == 0x2029)
        return TEXT_CONTROL;
    if (c == 0x061c || c == 0x200e || c == 0x200f || (c >= 0x202a && c <= 0x202e) ||
        (c >= 0x2066 && c <= 0x2069))
        return TEXT_DIRECTION;
    return TEXT_PLAIN;
}

void text_make_plain(char *text)
{
    char *to = text;

    while (*text) {
        size_t n;
        bool plain = text_next(text, &n, NULL) == TEXT_PLAIN;
        /* Towards the beginning, over what has been looked at. */
        if (plain)
            memmove(to, text, n);
        else
            *to = '?';
        to += plain ? n : 1;
        text += n;
    }
    *to = '\0';
}
