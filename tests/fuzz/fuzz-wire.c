/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The decoders of the wire.
 *
 * The first byte picks a decoder, the second one says whether magic and check
 * are made right, the rest is what arrives. Whatever decodes encodes to the same
 * bytes again, but for what a decoder ignores: reserved fields, and the room
 * behind a name or a text.
 */
#include "input.h"
#include "session.h"
#include "wire.h"

#include <ctype.h>
#include <xxhash.h>

#define FIX_MAGIC  1
#define FIX_CHECK  2
#define FIX_FIELDS 4 /* those that are constants in this version */

static void fix_check(void *wire, size_t size)
{
    uint64_t check = XXH3_64bits(wire, size - WIRE_CHECK_SIZE);

    memcpy((char *)wire + size - WIRE_CHECK_SIZE, &check, sizeof(check));
}

static void take(struct input *in, void *wire, size_t size)
{
    size_t len;
    const uint8_t *p = input_bytes(in, size, &len);

    memset(wire, 0, size);
    if (len)
        memcpy(wire, p, len);
}

/* An error is set exactly when the decoder has failed, and is a sentence. */
static void check_error(int ret, const struct error *err)
{
    MUST((ret < 0) == error_is_set(err));
    MUST(memchr(err->message, '\0', sizeof(err->message)));
}

static void fuzz_hello(struct input *in, unsigned fix)
{
    struct wire_hello wire, again;
    struct hello model = {.channels = 1, .name = "x"}, hello, twice;
    struct error err = {0};

    take(in, &wire, sizeof(wire));
    wire_hello_encode(&model, &again);
    if (fix & FIX_MAGIC)
        memcpy(wire.magic, again.magic, sizeof(wire.magic));
    if (fix & FIX_FIELDS) {
        wire.version = WIRE_VERSION;
        wire.kind %= WIRE_HELLO_QUERY + 1;
        wire.channels %= WIRE_CHANNELS_MAX + 2;
        wire.features &= WIRE_FEATURES;
        wire.page_size = WIRE_PAGE_SIZE;
        wire.stripe_size = WIRE_STRIPE_SIZE;
    }
    if (fix & FIX_CHECK)
        fix_check(&wire, sizeof(wire));
    int ret = wire_hello_decode(&wire, &hello, &err);
    check_error(ret, &err);
    if (ret < 0)
        return;
    MUST(hello.channels >= 1 && hello.channels <= WIRE_CHANNELS_MAX && hello.channel < hello.channels);
    MUST(hello.device_channels < hello.channels && strlen(hello.name) == wire.name_length);
    memset(wire.name + wire.name_length, 0, sizeof(wire.name) - wire.name_length);
    fix_check(&wire, sizeof(wire));
    wire_hello_encode(&hello, &again);
    MUST(!memcmp(&wire, &again, sizeof(wire)));
    MUST(wire_hello_decode(&again, &twice, &err) == 0);
}

static void fuzz_reply(struct input *in, unsigned fix)
{
    struct wire_hello_reply wire, first, second;
    struct hello_reply model = {0}, reply;
    struct error err = {0};

    take(in, &wire, sizeof(wire));
    wire_hello_reply_encode(&model, &first);
    if (fix & FIX_MAGIC)
        memcpy(wire.magic, first.magic, sizeof(wire.magic));
    if (fix & FIX_FIELDS) {
        wire.version = WIRE_VERSION;
        wire.text_length %= WIRE_TEXT_MAX + 2;
    }
    if (fix & FIX_CHECK)
        fix_check(&wire, sizeof(wire));
    int ret = wire_hello_reply_decode(&wire, &reply, &err);
    check_error(ret, &err);
    if (ret < 0)
        return;
    MUST(reply.cause < CAUSE_MAX && reply.outcome <= WIRE_OUTCOME_FAILED);
    MUST(memchr(reply.text, '\0', sizeof(reply.text)));
    /* Causes that this version does not know are mapped, so only the second round is exact. */
    wire_hello_reply_encode(&reply, &first);
    MUST(wire_hello_reply_decode(&first, &reply, &err) == 0);
    wire_hello_reply_encode(&reply, &second);
    MUST(!memcmp(&first, &second, sizeof(first)));
    if (wire.version == WIRE_VERSION && wire.cause < CAUSE_MAX && wire.outcome <= WIRE_OUTCOME_FAILED &&
        strnlen(wire.text, wire.text_length) == wire.text_length) {
        memset(wire.text + wire.text_length, 0, sizeof(wire.text) - wire.text_length);
        fix_check(&wire, sizeof(wire));
        MUST(!memcmp(&wire, &first, sizeof(wire)));
    }
}

static void fuzz_message(struct input *in, unsigned fix)
{
    struct wire_message wire, again;
    struct message message;
    struct error err = {0};
    size_t left;

    take(in, &wire, sizeof(wire));
    const uint8_t *rest = input_bytes(in, WIRE_BODY_MAX, &left);
    wire_message_encode(WIRE_PING, 0, NULL, 0, &again);
    if (fix & FIX_MAGIC)
        wire.magic = again.magic;
    if (fix & FIX_FIELDS) {
        wire.length = (uint32_t)left;
        wire.type = (uint16_t)(wire.type % WIRE_MESSAGE_MAX);
    }
    if (fix & FIX_CHECK) {
        wire.check = XXH3_64bits(&wire, sizeof(wire) - WIRE_CHECK_SIZE);
        if (left)
            wire.check ^= XXH3_64bits(rest, left);
    }
    int ret = wire_message_decode(&wire, &message, &err);
    check_error(ret, &err);
    if (ret < 0)
        return;
    MUST(message.length <= WIRE_BODY_MAX && message.type < WIRE_MESSAGE_MAX);
    if (message.length > left)
        return;
    uint8_t *body = input_copy(rest, message.length);
    if (wire_message_check(&wire, body, message.length) && !wire.reserved && !wire.received) {
        wire_message_encode(message.type, message.id, body, message.length, &again);
        MUST(!memcmp(&wire, &again, sizeof(wire)));
        if (message.length) {
            body[message.length / 2] ^= 1;
            MUST(!wire_message_check(&wire, body, message.length));
        }
    }
    free(body);
}

static void fuzz_packet(struct input *in, unsigned fix)
{
    struct wire_packet wire, again;
    struct packet packet = {0};
    struct error err = {0};

    take(in, &wire, sizeof(wire));
    wire_packet_encode(&packet, &again);
    if (fix & FIX_MAGIC)
        wire.magic = again.magic;
    if (fix & FIX_FIELDS) {
        wire.type %= WIRE_PACKET_MAX;
        wire.flags &= WIRE_PACKET_ZSTD | WIRE_PACKET_PARTIAL;
        wire.offset %= WIRE_OFFSET_MAX + 2;
        if (wire.type == WIRE_ZERO || wire.type == WIRE_PAGES) {
            wire.offset -= wire.offset % WIRE_PAGE_SIZE;
            wire.range = wire.range % (WIRE_STRIPE_SIZE + 1) / WIRE_PAGE_SIZE * WIRE_PAGE_SIZE;
        }
    }
    if (fix & FIX_CHECK)
        fix_check(&wire, sizeof(wire));
    int ret = wire_packet_decode(&wire, &packet, &err);
    check_error(ret, &err);
    if (ret < 0)
        return;
    MUST(packet.offset <= WIRE_OFFSET_MAX && packet.length <= packet.raw_length);
    /* What the receiver's buffers are made for. */
    MUST(packet.raw_length <= WIRE_STRIPE_SIZE + 2 * (WIRE_STRIPE_SIZE / WIRE_PAGE_SIZE / 8));
    if (packet.type == WIRE_DATA)
        MUST(packet.offset % WIRE_STRIPE_SIZE + packet.raw_length <= WIRE_STRIPE_SIZE);
    if (packet.type == WIRE_ZERO || packet.type == WIRE_PAGES)
        MUST(packet.offset % WIRE_STRIPE_SIZE + packet.range <= WIRE_STRIPE_SIZE);
    if (packet.type == WIRE_DISCARD)
        MUST(packet.offset + packet.range <= WIRE_OFFSET_MAX);
    wire.reserved = 0;
    fix_check(&wire, sizeof(wire));
    MUST(wire_packet_encode(&packet, &again) == wire.check);
    MUST(!memcmp(&wire, &again, sizeof(wire)));
}

/* Reads a body by a list of fields, and writes it again. */
static void fuzz_body(struct input *in)
{
    size_t fields_len = input_u8(in) % 64, len;
    const uint8_t *fields = input_bytes(in, fields_len, &fields_len);
    const uint8_t *rest = input_bytes(in, in->left, &len);
    uint8_t *body = input_copy(rest, len), *copy = calloc(1, len + 1);
    struct wire_reader r = {.p = body, .left = len};
    struct wire_writer w = {copy, copy, copy + len};
    char text[WIRE_TEXT_MAX + 1];

    MUST(copy);
    for (size_t i = 0; i < fields_len; i++) {
        size_t max = fields[i] / 4 * 4;
        if (max > WIRE_TEXT_MAX)
            max = WIRE_TEXT_MAX;
        uint64_t value = 0;
        switch (fields[i] % 4) {
        case 0:
            value = wire_read_u16(&r);
            if (!r.bad)
                wire_write_u16(&w, (uint16_t)value);
            break;
        case 1:
            value = wire_read_u32(&r);
            if (!r.bad)
                wire_write_u32(&w, (uint32_t)value);
            break;
        case 2:
            value = wire_read_u64(&r);
            if (!r.bad)
                wire_write_u64(&w, value);
            break;
        default:
            wire_read_text(&r, text, max);
            MUST(strlen(text) <= max);
            MUST(!r.bad || !*text);
            if (!r.bad)
                wire_write_text(&w, text);
        }
        MUST(!r.bad || value == 0);
        if (!r.bad)
            MUST(wire_written(&w) == len - r.left && !memcmp(body, copy, wire_written(&w)));
    }
    MUST(wire_read_done(&r) == (!r.bad && !r.left));
    free(copy);
    free(body);
}

static void fuzz_abort(struct input *in)
{
    size_t len;
    const uint8_t *rest = input_bytes(in, in->left, &len);
    uint8_t *body = input_copy(rest, len);
    struct wire_reader r = {.p = body, .left = len};
    struct error err = {0};

    session_read_abort(&r, "source", &err);
    MUST(error_is_set(&err) && err.cause < CAUSE_MAX);
    for (const char *p = err.message; *p; p++)
        MUST(!iscntrl((unsigned char)*p));
    free(body);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, size};
    unsigned decoder = input_u8(&in) % 6, fix = input_u8(&in);

    switch (decoder) {
    case 0:
        fuzz_hello(&in, fix);
        break;
    case 1:
        fuzz_reply(&in, fix);
        break;
    case 2:
        fuzz_message(&in, fix);
        break;
    case 3:
        fuzz_packet(&in, fix);
        break;
    case 4:
        fuzz_body(&in);
        break;
    default:
        fuzz_abort(&in);
    }
    return 0;
}
