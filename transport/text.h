/* SPDX-License-Identifier: Apache-2.0 */
/* Text that others choose, names and sentences: whether it can be shown in a line, a log or a terminal. */
#ifndef MIGFS_TEXT_H
#define MIGFS_TEXT_H

#include <stddef.h>
#include <stdint.h>

enum text_kind {
    TEXT_PLAIN,
    TEXT_INVALID,   /* not UTF-8 (RFC 3629): a stray or missing byte, overlong, a surrogate, past U+10FFFF */
    TEXT_CONTROL,   /* of C0 or C1, DEL, or a separator of lines or paragraphs */
    TEXT_DIRECTION, /* makes other text look as if it stood elsewhere: bidirectional controls */
};

/**
 * text_next - look at the first character of a text that is not empty
 * @length: its bytes; 1 when it is TEXT_INVALID
 * @code: of the character; may be NULL
 */
enum text_kind text_next(const char *text, size_t *length, uint32_t *code);

/**
 * text_make_plain - replace every character that is not TEXT_PLAIN by '?', in place; the text does not grow
 */
void text_make_plain(char *text);

#endif
