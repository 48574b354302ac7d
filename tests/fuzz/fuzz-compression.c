/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Compressed payloads.
 *
 * The first byte says what to do: unpack the rest as it is, with a claimed size
 * from the input; pack the rest and unpack it again; or pack it, damage it, and
 * unpack that. Nothing is ever written past the claimed size, and a context that
 * has met a broken frame is as good as new.
 */
#include "input.h"
#include "compression.h"

#define GUARD 64

static struct decompressor *decompressor;

/* The room is exactly as large as claimed, and what lies behind it stays as it was: libzstd itself is not
 * instrumented. */
static int unpack(const void *packed, size_t len, size_t claimed, void *expected, size_t expected_len)
{
    uint8_t *room = malloc(claimed + GUARD);
    struct error err = {0};

    MUST(room);
    memset(room + claimed, 0xa5, GUARD);
    int ret = decompressor_unpack(decompressor, packed, len, room, claimed, &err);
    MUST((ret < 0) == error_is_set(&err) && err.cause == (ret < 0 ? CAUSE_PROTOCOL : CAUSE_NONE));
    /* The decoders of old formats, where libzstd has them, are not for strangers. */
    MUST(ret < 0 || (len >= 4 && !memcmp(packed, "\x28\xb5\x2f\xfd", 4)));
    for (size_t i = 0; i < GUARD; i++)
        MUST(room[claimed + i] == 0xa5);
    if (expected) {
        MUST(ret == 0 && claimed == expected_len);
        MUST(!memcmp(room, expected, expected_len));
    }
    free(room);
    return ret;
}

static size_t claim(struct input *in)
{
    static const size_t sizes[] = {WIRE_STRIPE_SIZE, COMPRESSION_RAW_MAX, 0, 1, 4095, 4096, 4104, 17000};
    unsigned choice = input_u8(in);

    /* Large ones are slow: few of them. */
    if (choice == 255)
        return input_u24(in) % (COMPRESSION_RAW_MAX + 1);
    return choice < 64 ? sizes[choice % (sizeof(sizes) / sizeof(sizes[0]))] : input_u16(in) % 20000;
}

static const int levels[] = {1, 3, -1, -100, 9};
static struct compressor *compressors[sizeof(levels) / sizeof(levels[0])];

/* Repeats what is in the input up to a larger size, so that there is something to compress. */
static uint8_t *stretch(const uint8_t *bytes, size_t len, size_t size)
{
    uint8_t *raw = malloc(size ? size : 1);

    MUST(raw);
    for (size_t at = 0; at < size; at += len) {
        if (!len) {
            memset(raw, 0, size);
            break;
        }
        memcpy(raw + at, bytes, size - at < len ? size - at : len);
    }
    return raw;
}

static void round_trip(struct input *in, bool damage)
{
    unsigned i = input_u8(in) % (sizeof(levels) / sizeof(levels[0]));
    size_t size = claim(in), len;
    unsigned at = input_u24(in), flip = input_u8(in), cut = input_u16(in);
    const uint8_t *bytes = input_bytes(in, in->left, &len);
    uint8_t *raw = stretch(bytes, len, size);

    if (!compressors[i])
        compressors[i] = compressor_new(levels[i]);
    MUST(compressors[i]);
    uint8_t *out = compressor_buffer(compressors[i]);
    MUST(out);
    struct context *lease = NULL;
    size_t packed = compressor_pack(compressors[i], raw, size, out, false, &lease);
    compressor_help(compressors[i], lease);
    MUST(!packed || packed < size);
    if (packed && damage) {
        out[at % packed] ^= (uint8_t)flip;
        uint8_t *exact = input_copy(out, packed - cut % packed);
        unpack(exact, packed - cut % packed, size, NULL, 0);
        free(exact);
    } else if (packed) {
        uint8_t *exact = input_copy(out, packed);
        unpack(exact, packed, size, raw, size);
        if (size > 1)
            MUST(unpack(exact, packed, size - 1, NULL, 0) < 0);
        MUST(unpack(exact, packed, size + 1, NULL, 0) < 0);
        MUST(unpack(exact, packed - 1, size, NULL, 0) < 0);
        free(exact);
    }
    compressor_return(compressors[i], out);
    free(raw);
}

/* After whatever came before, a right frame unpacks. */
static void check_context(void)
{
    static const uint8_t hello[] = {0x28, 0xb5, 0x2f, 0xfd, 0x20, 0x05, 0x29,
                                    0x00, 0x00, 'h',  'e',  'l',  'l',  'o'};
    char expected[] = "hello";

    unpack(hello, sizeof(hello), 5, expected, 5);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    unsigned what = input_u8(&in) % 4;

    if (!decompressor)
        decompressor = decompressor_new();
    MUST(decompressor);
    if (what >= 2) {
        round_trip(&in, what == 3);
    } else {
        size_t claimed = claim(&in), len;
        const uint8_t *bytes = input_bytes(&in, in.left, &len);
        uint8_t *exact = input_copy(bytes, len);
        unpack(exact, len, claimed, NULL, 0);
        free(exact);
    }
    check_context();
    return 0;
}
