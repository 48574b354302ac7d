/* SPDX-License-Identifier: Apache-2.0 */
/* What the targets share: the input as a stream of fields, and a check that ends the process. */
#ifndef MIGFS_FUZZ_INPUT_H
#define MIGFS_FUZZ_INPUT_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/** LLVMFuzzerTestOneInput - one run; every target has one, and replay.c calls it too */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Unlike an assert it stays in every build. */
#define MUST(condition)                                                                                      \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition);                   \
            abort();                                                                                         \
        }                                                                                                    \
    } while (0)

/* The input, read from the front. Past the end everything is 0. */
struct input {
    const uint8_t *p;
    size_t left;
};

static inline uint64_t input_number(struct input *in, size_t bytes)
{
    uint64_t value = 0;

    for (size_t i = 0; i < bytes && in->left; i++) {
        value |= (uint64_t)*in->p++ << 8 * i;
        in->left--;
    }
    return value;
}

static inline uint8_t input_u8(struct input *in)
{
    return (uint8_t)input_number(in, 1);
}

static inline uint32_t input_u16(struct input *in)
{
    return (uint32_t)input_number(in, 2);
}

static inline uint32_t input_u24(struct input *in)
{
    return (uint32_t)input_number(in, 3);
}

/* At most @max bytes of the input, which stay where they are; *@len says how many there were. */
static inline const uint8_t *input_bytes(struct input *in, size_t max, size_t *len)
{
    const uint8_t *p = in->p;

    *len = max < in->left ? max : in->left;
    in->p += *len;
    in->left -= *len;
    return p;
}

/* A copy of exactly @len bytes on the heap, so that reading one more is noticed. */
static inline void *input_copy(const void *bytes, size_t len)
{
    void *copy = malloc(len ? len : 1);

    MUST(copy);
    if (len)
        memcpy(copy, bytes, len);
    return copy;
}

#endif
