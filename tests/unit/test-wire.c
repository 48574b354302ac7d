/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What travels: round trips, and every field that a peer could get wrong. A case
 * of a table changes one field of a good header, and says whether the check is
 * made right again afterwards, so that it is the field that is refused.
 */
#include "wire.h"
#include "check.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define LONGEST                                                                                             \
    "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn"                                      \
    "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn"                                      \
    "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn"                                      \
    "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn"

/* Overwrites bytes of a header, little-endian. */
struct change {
    const char *what;
    size_t offset, size;
    uint64_t value;
    bool good; /* it is still accepted */
};

static void apply(const struct change *change, void *wire, size_t size)
{
    uint64_t value = htole64(change->value);

    memcpy((char *)wire + change->offset, &value, change->size);
    uint64_t check = htole64(XXH3_64bits(wire, size - WIRE_CHECK_SIZE));
    memcpy((char *)wire + size - WIRE_CHECK_SIZE, &check, sizeof(check));
}

#define FIELD(type, field) offsetof(struct type, field), sizeof(((struct type *)0)->field)

/* A generator of its own: rand(3) is not the same everywhere. */
static uint64_t random_state = 42;

static uint64_t random_u64(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static void random_bytes(void *buf, size_t len)
{
    for (size_t i = 0; i < len; i++)
        ((uint8_t *)buf)[i] = (uint8_t)(random_u64() >> 32);
}

/*
 * Hello
 */

static struct hello good_hello(void)
{
    struct hello hello = {
        .kind = WIRE_HELLO_DATA,
        .channel = 3,
        .channels = 7,
        .device_channels = 2,
        .features = WIRE_FEATURE_CHECKSUM,
        .page_size = WIRE_PAGE_SIZE,
        .stripe_size = WIRE_STRIPE_SIZE,
        .timeout_ms = 12345,
        .name = "vm-1",
    };

    random_bytes(hello.session, sizeof(hello.session));
    return hello;
}

static void check_hello(const struct hello *sent)
{
    struct wire_hello wire;
    struct hello got;
    struct error err;

    memset(&wire, 0xa5, sizeof(wire));
    wire_hello_encode(sent, &wire);
    CHECK_OK(wire_hello_decode(&wire, &got, &err));
    cr_expect(eq(uint, got.version, WIRE_VERSION));
    cr_expect(eq(int, (int)got.kind, (int)sent->kind));
    cr_expect(eq(uint, got.channel, sent->channel));
    cr_expect(eq(uint, got.channels, sent->channels));
    cr_expect(eq(uint, got.device_channels, sent->device_channels));
    cr_expect(eq(u64, got.features, sent->features));
    cr_expect(zero(int, memcmp(got.session, sent->session, sizeof(got.session))));
    cr_expect(eq(u32, got.page_size, sent->page_size));
    cr_expect(eq(u32, got.stripe_size, sent->stripe_size));
    cr_expect(eq(u32, got.timeout_ms, sent->timeout_ms));
    cr_expect(eq(str, got.name, (char *)sent->name));
    cr_expect(eq(u32, got.resume_ms, sent->resume_ms));
    cr_expect(eq(u64, got.received, sent->received));
}

Test(wire, hello_round_trip)
{
    struct hello hello = good_hello();

    check_hello(&hello);
    hello.kind = WIRE_HELLO_MAIN;
    hello.channel = 0;
    hello.channels = 1;
    hello.device_channels = 0;
    hello.features = 0;
    hello.timeout_ms = UINT32_MAX;
    check_hello(&hello);
    hello.kind = WIRE_HELLO_QUERY;
    hello.channels = WIRE_CHANNELS_MAX;
    hello.channel = hello.device_channels = WIRE_CHANNELS_MAX - 1;
    hello.timeout_ms = 0;
    strcpy(hello.name, LONGEST);
    check_hello(&hello);
    strcpy(hello.name, "n");
    check_hello(&hello);
}

/* Where connections are made again: for how long, and from where on. */
Test(wire, hellos_that_resume)
{
    struct hello hello = good_hello(), got;
    struct wire_hello wire;
    struct error err;
    const uint8_t *p = (const uint8_t *)&wire;

    hello.features = WIRE_FEATURE_RESUME;
    check_hello(&hello);
    hello.kind = WIRE_HELLO_DATA_AGAIN;
    check_hello(&hello);
    hello.kind = WIRE_HELLO_MAIN;
    hello.channel = 0;
    hello.resume_ms = 1000;
    check_hello(&hello);
    hello.resume_ms = WIRE_RESUME_MAX * 1000;
    check_hello(&hello);
    wire_hello_encode(&hello, &wire);
    cr_expect(zero(int, memcmp(p + 10, "\0\0\x10\x0e\x07\0\x04\0", 6)), "kind, seconds, channels");
    cr_expect(zero(int, memcmp(p + 16, "\x04\0\0\0\0\0\0\0", 8)), "features");
    /* A part of a second is one. */
    hello.resume_ms = 1;
    wire_hello_encode(&hello, &wire);
    CHECK_OK(wire_hello_decode(&wire, &got, &err));
    cr_expect(eq(u32, got.resume_ms, 1000));
    cr_expect(zero(uint, got.channel));
    hello.resume_ms = 1001;
    wire_hello_encode(&hello, &wire);
    CHECK_OK(wire_hello_decode(&wire, &got, &err));
    cr_expect(eq(u32, got.resume_ms, 2000));
    hello.resume_ms = 0;
    wire_hello_encode(&hello, &wire);
    CHECK_OK(wire_hello_decode(&wire, &got, &err));
    cr_expect(zero(u32, got.resume_ms));
    hello.resume_ms = WIRE_RESUME_MAX * 1000 + 1;
    wire_hello_encode(&hello, &wire);
    CHECK_FAILS(wire_hello_decode(&wire, &got, &err), CAUSE_PROTOCOL);
    /* Without the feature there is no time, and a main channel has no number. */
    hello.features = 0;
    hello.resume_ms = 0;
    check_hello(&hello);
    hello.kind = WIRE_HELLO_MAIN_AGAIN;
    hello.received = 0x123456789abcdef0;
    check_hello(&hello);
    wire_hello_encode(&hello, &wire);
    cr_expect(zero(int, memcmp(p + 10, "\x03\0\0\0", 4)));
    cr_expect(zero(int, memcmp(p + 16, "\xf0\xde\xbc\x9a\x78\x56\x34\x12", 8)));
}

/* The bytes themselves, so that both ends of the code cannot be wrong in the same way. */
Test(wire, hello_layout)
{
    struct hello hello = good_hello();
    struct wire_hello wire;
    const uint8_t *p = (const uint8_t *)&wire;

    wire_hello_encode(&hello, &wire);
    cr_expect(zero(int, memcmp(p, "migfs\r\n\x1a", 8)));
    cr_expect(zero(int, memcmp(p + 8, "\x03\0\x01\0\x03\0\x07\0", 8)), "version, kind, channel, channels");
    cr_expect(zero(int, memcmp(p + 40, "\0\x10\0\0\0\0\x10\0\x39\x30\0\0\x04\0\x02\0", 16)),
              "page size, stripe size, timeout, length of the name, device channels");
    cr_expect(zero(int, memcmp(p + 56, "vm-1\0", 5)));
}

static const struct change hello_changes[] = {
    {"nothing", FIELD(wire_hello, timeout_ms), 7, true},
    {"magic", 0, 1, 'M', false},
    {"magic, last byte", 7, 1, 0, false},
    {"version 0", FIELD(wire_hello, version), 0, false},
    {"version 1", FIELD(wire_hello, version), 1, false},
    {"version 65535", FIELD(wire_hello, version), 65535, false},
    {"kind 5", FIELD(wire_hello, kind), 5, false},
    {"kind 65535", FIELD(wire_hello, kind), 65535, false},
    {"no channels", FIELD(wire_hello, channels), 0, false},
    {"128 channels", FIELD(wire_hello, channels), 128, true},
    {"129 channels", FIELD(wire_hello, channels), 129, false},
    {"65535 channels", FIELD(wire_hello, channels), 65535, false},
    {"the last channel", FIELD(wire_hello, channel), 6, true},
    {"a channel past the last", FIELD(wire_hello, channel), 7, false},
    {"channel 65535", FIELD(wire_hello, channel), 65535, false},
    {"no device channels", FIELD(wire_hello, device_channels), 0, true},
    {"one channel for RAM", FIELD(wire_hello, device_channels), 6, true},
    {"no channel for RAM", FIELD(wire_hello, device_channels), 7, false},
    {"65535 device channels", FIELD(wire_hello, device_channels), 65535, false},
    {"all features", FIELD(wire_hello, features), WIRE_FEATURES, true},
    {"an unknown feature", FIELD(wire_hello, features), WIRE_FEATURES + 1, false},
    {"the highest feature", FIELD(wire_hello, features), 1ull << 63, false},
    {"another page size", FIELD(wire_hello, page_size), 16384, false},
    {"no page size", FIELD(wire_hello, page_size), 0, false},
    {"another stripe size", FIELD(wire_hello, stripe_size), 2u << 20, false},
    {"no name", FIELD(wire_hello, name_length), 0, false},
    {"a name that is too long", FIELD(wire_hello, name_length), 256, false},
    {"a name that is much too long", FIELD(wire_hello, name_length), 65535, false},
    {"a name with a NUL at its end", FIELD(wire_hello, name_length), 5, false},
    {"a name with a NUL in it", offsetof(struct wire_hello, name) + 1, 1, 0, false},
    {"a name that is only a NUL", offsetof(struct wire_hello, name), 4, 0, false},
};

Test(wire, hello_fields)
{
    for (size_t i = 0; i < ARRAY_LENGTH(hello_changes); i++) {
        const struct change *change = &hello_changes[i];
        struct hello hello = good_hello(), got;
        struct wire_hello wire;
        struct error err = {0};
        wire_hello_encode(&hello, &wire);
        apply(change, &wire, sizeof(wire));
        int ret = wire_hello_decode(&wire, &got, &err);
        cr_expect(eq(int, ret == 0, change->good), "%s: %s", change->what, err.message);
        if (!change->good)
            cr_expect(eq(int, (int)err.cause, CAUSE_PROTOCOL), "%s", change->what);
    }
}

/* Who speaks another version can still be answered. */
Test(wire, hello_of_another_version)
{
    static const struct change change = {"version", FIELD(wire_hello, version), 9, false};
    struct hello hello = good_hello(), got, empty = {.version = 9};
    struct wire_hello wire;
    struct error err;

    memset(&got, 0x77, sizeof(got));
    wire_hello_encode(&hello, &wire);
    apply(&change, &wire, sizeof(wire));
    CHECK_FAILS(wire_hello_decode(&wire, &got, &err), CAUSE_PROTOCOL);
    cr_expect(eq(uint, got.version, 9));
    cr_expect(zero(int, memcmp(got.name, empty.name, sizeof(got.name))), "nothing but the version");
    cr_expect(eq(uint, got.channels, 0));

    memset(&got, 0x77, sizeof(got));
    wire.magic[0] ^= 1;
    CHECK_FAILS(wire_hello_decode(&wire, &got, &err), CAUSE_PROTOCOL);
    cr_expect(eq(uint, got.version, 0x7777), "not even that, from who is no peer");
}

/*
 * The reply
 */

static struct hello_reply good_reply(void)
{
    return (struct hello_reply){
        .outcome = WIRE_OUTCOME_FAILED,
        .features = WIRE_FEATURES,
        .max_ram = 1ull << 40,
        .max_device = 123,
        .max_devices = 64,
        .timeout_ms = 30000,
    };
}

static void check_reply(const struct hello_reply *sent)
{
    struct wire_hello_reply wire;
    struct hello_reply got;
    struct error err;

    memset(&wire, 0xa5, sizeof(wire));
    wire_hello_reply_encode(sent, &wire);
    CHECK_OK(wire_hello_reply_decode(&wire, &got, &err));
    cr_expect(eq(int, (int)got.cause, (int)sent->cause));
    cr_expect(eq(int, (int)got.outcome, (int)sent->outcome));
    cr_expect(eq(str, got.text, (char *)sent->text));
    cr_expect(eq(u64, got.features, sent->features));
    cr_expect(eq(u64, got.max_ram, sent->max_ram));
    cr_expect(eq(u64, got.max_device, sent->max_device));
    cr_expect(eq(u32, got.max_devices, sent->max_devices));
    cr_expect(eq(u32, got.timeout_ms, sent->timeout_ms));
    cr_expect(eq(u64, got.received, sent->received));
}

Test(wire, reply_round_trip)
{
    struct hello_reply reply = good_reply();

    check_reply(&reply);
    reply.cause = CAUSE_QUOTA;
    strcpy(reply.text, "no room");
    check_reply(&reply);
    strcpy(reply.text, LONGEST);
    reply.max_ram = reply.max_device = UINT64_MAX;
    reply.max_devices = reply.timeout_ms = UINT32_MAX;
    reply.outcome = WIRE_OUTCOME_COMPLETED;
    reply.received = UINT64_MAX - 1;
    check_reply(&reply);
    struct wire_hello_reply wire;
    wire_hello_reply_encode(&reply, &wire);
    cr_expect(zero(int, memcmp((char *)&wire + 304, "\xfe\xff\xff\xff\xff\xff\xff\xff", 8)));
}

static const struct change reply_changes[] = {
    {"nothing", FIELD(wire_hello_reply, timeout_ms), 7, true},
    {"magic", 0, 1, 'm', false},
    {"version 0", FIELD(wire_hello_reply, version), 0, false},
    {"version 1", FIELD(wire_hello_reply, version), 1, false},
    {"the longest text", FIELD(wire_hello_reply, text_length), 255, true},
    {"a text that is too long", FIELD(wire_hello_reply, text_length), 256, false},
    {"a text that is much too long", FIELD(wire_hello_reply, text_length), 65535, false},
};

Test(wire, reply_fields)
{
    for (size_t i = 0; i < ARRAY_LENGTH(reply_changes); i++) {
        const struct change *change = &reply_changes[i];
        struct hello_reply reply = good_reply(), got;
        struct wire_hello_reply wire;
        struct error err = {0};
        wire_hello_reply_encode(&reply, &wire);
        apply(change, &wire, sizeof(wire));
        int ret = wire_hello_reply_decode(&wire, &got, &err);
        cr_expect(eq(int, ret == 0, change->good), "%s: %s", change->what, err.message);
        if (!change->good)
            cr_expect(eq(int, (int)err.cause, CAUSE_PROTOCOL), "%s", change->what);
    }
}

/* A refusal is readable whatever version it comes from; causes and outcomes of the future mean something safe. */
Test(wire, reply_of_the_future)
{
    static const struct change version = {"version", FIELD(wire_hello_reply, version), 1, true};
    static const struct change cause = {"cause", FIELD(wire_hello_reply, cause), 999, true};
    static const struct change outcome = {"outcome", FIELD(wire_hello_reply, outcome), 77, true};
    struct hello_reply reply = good_reply(), got;
    struct wire_hello_reply wire;
    struct error err;

    reply.cause = CAUSE_PROTOCOL;
    strcpy(reply.text, "you are too old");
    wire_hello_reply_encode(&reply, &wire);
    apply(&version, &wire, sizeof(wire));
    CHECK_OK(wire_hello_reply_decode(&wire, &got, &err));
    cr_expect(eq(int, (int)got.cause, CAUSE_PROTOCOL));
    cr_expect(eq(str, got.text, "you are too old"));
    apply(&cause, &wire, sizeof(wire));
    CHECK_OK(wire_hello_reply_decode(&wire, &got, &err));
    cr_expect(eq(int, (int)got.cause, CAUSE_PEER));
    apply(&outcome, &wire, sizeof(wire));
    CHECK_OK(wire_hello_reply_decode(&wire, &got, &err));
    cr_expect(eq(int, (int)got.outcome, WIRE_OUTCOME_UNKNOWN));
}

/*
 * Messages
 */

Test(wire, message_round_trip)
{
    static const char body[] = "a body of some length";

    for (int type = WIRE_FILE_CREATE; type < WIRE_MESSAGE_MAX; type++) {
        for (uint32_t length = 0; length < sizeof(body); length += 7) {
            struct wire_message wire;
            struct message got;
            struct error err;
            memset(&wire, 0xa5, sizeof(wire));
            wire_message_encode((enum wire_message_type)type, 1ull << 63 | (unsigned)type, body, length, &wire);
            CHECK_OK(wire_message_decode(&wire, &got, &err));
            cr_expect(eq(int, (int)got.type, type));
            cr_expect(eq(u64, got.id, 1ull << 63 | (unsigned)type));
            cr_expect(eq(u32, got.length, length));
            cr_expect(wire_message_check(&wire, body, length));
        }
    }
}

Test(wire, messages_say_what_was_received)
{
    struct wire_message wire;
    struct message got;
    struct error err;

    wire_message_encode(WIRE_PING, 0, NULL, 0, &wire);
    CHECK_OK(wire_message_decode(&wire, &got, &err));
    cr_expect(zero(u32, got.received));
    wire_message_encode_received(WIRE_SYNC, 3, 0x5fedcba98, "abc", 3, &wire);
    CHECK_OK(wire_message_decode(&wire, &got, &err));
    cr_expect(eq(u32, got.received, 0xfedcba98), "modulo 2^32");
    cr_expect(zero(int, memcmp((char *)&wire + 12, "\x98\xba\xdc\xfe", 4)));
    cr_expect(wire_message_check(&wire, "abc", 3));
    wire.received ^= 1;
    cr_expect(not(wire_message_check(&wire, "abc", 3)));
}

static const struct change message_changes[] = {
    {"nothing", FIELD(wire_message, id), 7, true},
    {"magic", FIELD(wire_message, magic), 0, false},
    {"type 0", FIELD(wire_message, type), 0, false},
    {"a type past the last", FIELD(wire_message, type), WIRE_MESSAGE_MAX, false},
    {"type 65535", FIELD(wire_message, type), 65535, false},
    {"the longest body", FIELD(wire_message, length), WIRE_BODY_MAX, true},
    {"a body that is too long", FIELD(wire_message, length), WIRE_BODY_MAX + 1, false},
    {"a body of 4 GiB", FIELD(wire_message, length), UINT32_MAX, false},
};

Test(wire, message_fields)
{
    for (size_t i = 0; i < ARRAY_LENGTH(message_changes); i++) {
        const struct change *change = &message_changes[i];
        struct wire_message wire;
        struct message got;
        struct error err = {0};
        wire_message_encode(WIRE_SYNC, 5, NULL, 0, &wire);
        apply(change, &wire, sizeof(wire));
        int ret = wire_message_decode(&wire, &got, &err);
        cr_expect(eq(int, ret == 0, change->good), "%s: %s", change->what, err.message);
    }
}

/* Any bit of the header or the body that flips is noticed. */
Test(wire, message_damage)
{
    uint8_t body[40];
    struct wire_message wire;

    random_bytes(body, sizeof(body));
    wire_message_encode(WIRE_SYNC, 5, body, sizeof(body), &wire);
    cr_assert(wire_message_check(&wire, body, sizeof(body)));
    for (size_t bit = 0; bit < 8 * sizeof(wire); bit++) {
        struct wire_message damaged = wire;
        ((uint8_t *)&damaged)[bit / 8] ^= (uint8_t)(1 << bit % 8);
        cr_expect(not(wire_message_check(&damaged, body, sizeof(body))), "bit %zu of the header", bit);
    }
    for (size_t bit = 0; bit < 8 * sizeof(body); bit++) {
        body[bit / 8] ^= (uint8_t)(1 << bit % 8);
        cr_expect(not(wire_message_check(&wire, body, sizeof(body))), "bit %zu of the body", bit);
        body[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    cr_expect(not(wire_message_check(&wire, body, sizeof(body) - 1)), "a body that is cut");
}

/*
 * Packets
 */

#define MAP 32u /* the bits of a whole stripe */

static const struct packet good_packets[] = {
    {.type = WIRE_DATA, .length = 1, .raw_length = 1},
    {.type = WIRE_DATA,
     .channel = 127,
     .file = 4096,
     .length = WIRE_STRIPE_SIZE,
     .raw_length = WIRE_STRIPE_SIZE,
     .offset = 5ull * WIRE_STRIPE_SIZE},
    {.type = WIRE_DATA, .length = 1, .raw_length = 1, .offset = WIRE_STRIPE_SIZE - 1, .sequence = UINT64_MAX},
    {.type = WIRE_DATA,
     .length = WIRE_STRIPE_SIZE,
     .raw_length = WIRE_STRIPE_SIZE,
     .offset = WIRE_OFFSET_MAX - WIRE_STRIPE_SIZE},
    {.type = WIRE_DATA, .length = 4096, .raw_length = 4096, .offset = 8192, .payload_check = 0x123456789abcdef0},
    {.type = WIRE_DATA, .flags = WIRE_PACKET_ZSTD, .length = 1, .raw_length = 2},
    {.type = WIRE_DATA, .flags = WIRE_PACKET_PLACED, .length = 4096, .raw_length = 4096},
    {.type = WIRE_DATA, .flags = WIRE_PACKET_ZSTD, .length = WIRE_STRIPE_SIZE - 1, .raw_length = WIRE_STRIPE_SIZE},
    {.type = WIRE_DISCARD, .range = 1},
    {.type = WIRE_DISCARD, .offset = 3, .range = WIRE_OFFSET_MAX - 3},
    {.type = WIRE_TRUNCATE, .range = 1},
    {.type = WIRE_TRUNCATE, .offset = WIRE_OFFSET_MAX, .range = UINT64_MAX},
    {.type = WIRE_ZERO, .range = 4096},
    {.type = WIRE_ZERO, .offset = WIRE_STRIPE_SIZE - 4096, .range = 4096},
    {.type = WIRE_ZERO, .offset = WIRE_OFFSET_MAX - WIRE_STRIPE_SIZE, .range = WIRE_STRIPE_SIZE},
    {.type = WIRE_PAGES, .range = 8192, .length = 8 + 4096, .raw_length = 8 + 4096},
    {.type = WIRE_PAGES, .range = WIRE_STRIPE_SIZE, .length = MAP + WIRE_STRIPE_SIZE, .raw_length = MAP + WIRE_STRIPE_SIZE},
    {.type = WIRE_PAGES, .flags = WIRE_PACKET_ZSTD, .range = 4096, .length = 9, .raw_length = 8 + 4096},
    {.type = WIRE_PAGES, .flags = WIRE_PACKET_PARTIAL, .range = 8192, .length = 16 + 4096, .raw_length = 16 + 4096},
    {.type = WIRE_PAGES,
     .flags = WIRE_PACKET_PARTIAL,
     .range = WIRE_STRIPE_SIZE,
     .length = 2 * MAP + WIRE_STRIPE_SIZE,
     .raw_length = 2 * MAP + WIRE_STRIPE_SIZE},
};

Test(wire, packet_round_trip)
{
    for (size_t i = 0; i < ARRAY_LENGTH(good_packets); i++) {
        const struct packet *sent = &good_packets[i];
        struct wire_packet wire;
        struct packet got;
        struct error err;
        memset(&wire, 0xa5, sizeof(wire));
        uint64_t check = wire_packet_encode(sent, &wire);
        CHECK_OK(wire_packet_decode(&wire, &got, &err));
        cr_expect(eq(int, (int)got.type, (int)sent->type));
        cr_expect(eq(uint, got.channel, sent->channel));
        cr_expect(eq(u32, got.file, sent->file));
        cr_expect(eq(u32, got.length, sent->length));
        cr_expect(eq(u64, got.offset, sent->offset));
        cr_expect(eq(uint, got.flags, sent->flags));
        cr_expect(eq(u32, got.raw_length, sent->raw_length));
        cr_expect(eq(u64, got.range, sent->range));
        cr_expect(eq(u64, got.sequence, sent->sequence));
        cr_expect(eq(u64, got.payload_check, sent->payload_check));
        cr_expect(eq(u64, got.check, check), "both ends add up the same digest");
    }
}

static const struct {
    const char *what;
    struct packet packet;
} bad_packets[] = {
    {"no type", {.type = 0, .length = 1, .raw_length = 1}},
    {"a type past the last", {.type = WIRE_PACKET_MAX, .length = 1, .raw_length = 1}},
    {"type 255", {.type = 255, .length = 1, .raw_length = 1}},
    {"an unknown flag", {.type = WIRE_DATA, .flags = 8, .length = 1, .raw_length = 1}},
    {"partial data", {.type = WIRE_DATA, .flags = WIRE_PACKET_PARTIAL, .length = 1, .raw_length = 1}},
    {"partial zero pages", {.type = WIRE_ZERO, .flags = WIRE_PACKET_PARTIAL, .range = 4096}},
    {"partial pages without pages",
     {.type = WIRE_PAGES, .flags = WIRE_PACKET_PARTIAL, .range = 4096, .length = 16, .raw_length = 16}},
    {"more partial pages than the range",
     {.type = WIRE_PAGES, .flags = WIRE_PACKET_PARTIAL, .range = 4096, .length = 17 + 4096, .raw_length = 17 + 4096}},
    {"partial pages that are compressed",
     {.type = WIRE_PAGES, .flags = WIRE_PACKET_PARTIAL | WIRE_PACKET_ZSTD, .range = 8192, .length = 9, .raw_length = 16 + 4096}},
    {"placed and compressed",
     {.type = WIRE_DATA, .flags = WIRE_PACKET_PLACED | WIRE_PACKET_ZSTD, .length = 1, .raw_length = 2}},
    {"placed data of no bytes", {.type = WIRE_DATA, .flags = WIRE_PACKET_PLACED}},
    {"placed pages",
     {.type = WIRE_PAGES, .flags = WIRE_PACKET_PLACED, .range = 4096, .length = 8 + 4096, .raw_length = 8 + 4096}},
    {"placed zero pages", {.type = WIRE_ZERO, .flags = WIRE_PACKET_PLACED, .range = 4096}},
    {"a placed hole", {.type = WIRE_DISCARD, .flags = WIRE_PACKET_PLACED, .range = 4096}},
    {"all flags", {.type = WIRE_DATA, .flags = 255, .length = 1, .raw_length = 2}},
    {"data of no bytes", {.type = WIRE_DATA}},
    {"data whose lengths differ", {.type = WIRE_DATA, .length = 1, .raw_length = 2}},
    {"data with no length before compression", {.type = WIRE_DATA, .length = 1}},
    {"data that crosses its stripe", {.type = WIRE_DATA, .length = 2, .raw_length = 2, .offset = WIRE_STRIPE_SIZE - 1}},
    {"data longer than a stripe", {.type = WIRE_DATA, .length = WIRE_STRIPE_SIZE + 1, .raw_length = WIRE_STRIPE_SIZE + 1}},
    {"data of 4 GiB", {.type = WIRE_DATA, .length = UINT32_MAX, .raw_length = UINT32_MAX}},
    {"data that begins past the largest file",
     {.type = WIRE_DATA, .length = 1, .raw_length = 1, .offset = WIRE_OFFSET_MAX + 1}},
    {"data that ends past the largest file",
     {.type = WIRE_DATA, .length = 4096, .raw_length = 4096, .offset = WIRE_OFFSET_MAX}},
    {"data at the end of numbers", {.type = WIRE_DATA, .length = 1, .raw_length = 1, .offset = UINT64_MAX}},
    {"compressed data that did not shrink", {.type = WIRE_DATA, .flags = WIRE_PACKET_ZSTD, .length = 5, .raw_length = 5}},
    {"compressed data of no bytes", {.type = WIRE_DATA, .flags = WIRE_PACKET_ZSTD, .raw_length = 5}},
    {"compressed data that unpacks past its stripe",
     {.type = WIRE_DATA, .flags = WIRE_PACKET_ZSTD, .length = 5, .raw_length = 4097, .offset = WIRE_STRIPE_SIZE - 4096}},
    {"compressed data that unpacks to 4 GiB",
     {.type = WIRE_DATA, .flags = WIRE_PACKET_ZSTD, .length = 5, .raw_length = UINT32_MAX}},
    {"a discard with a payload", {.type = WIRE_DISCARD, .length = 1, .raw_length = 1, .range = 1}},
    {"a discard of nothing", {.type = WIRE_DISCARD}},
    {"a discard past the largest file", {.type = WIRE_DISCARD, .offset = 1, .range = WIRE_OFFSET_MAX}},
    {"a discard that wraps", {.type = WIRE_DISCARD, .offset = 4096, .range = UINT64_MAX - 100}},
    {"a discard at the end of numbers", {.type = WIRE_DISCARD, .offset = UINT64_MAX, .range = 1}},
    {"a truncation with a payload", {.type = WIRE_TRUNCATE, .length = 1, .raw_length = 1, .range = 1}},
    {"a truncation with a flag", {.type = WIRE_TRUNCATE, .flags = WIRE_PACKET_ZSTD, .range = 1}},
    {"a truncation past the largest file", {.type = WIRE_TRUNCATE, .offset = WIRE_OFFSET_MAX + 1, .range = 1}},
    {"no zero pages", {.type = WIRE_ZERO}},
    {"half a zero page", {.type = WIRE_ZERO, .range = 2048}},
    {"zero pages that are not aligned", {.type = WIRE_ZERO, .offset = 2048, .range = 4096}},
    {"zero pages that cross their stripe", {.type = WIRE_ZERO, .offset = WIRE_STRIPE_SIZE - 4096, .range = 8192}},
    {"zero pages longer than a stripe", {.type = WIRE_ZERO, .range = WIRE_STRIPE_SIZE + 4096}},
    {"zero pages that wrap", {.type = WIRE_ZERO, .offset = 4096, .range = UINT64_MAX - 4095}},
    {"zero pages past the largest file", {.type = WIRE_ZERO, .offset = WIRE_OFFSET_MAX, .range = 4096}},
    {"zero pages with a payload", {.type = WIRE_ZERO, .range = 4096, .length = 1, .raw_length = 1}},
    {"pages without pages", {.type = WIRE_PAGES, .range = 4096, .length = 8, .raw_length = 8}},
    {"pages without bits", {.type = WIRE_PAGES, .range = 4096, .length = 7, .raw_length = 7}},
    {"more pages than the range", {.type = WIRE_PAGES, .range = 4096, .length = 8 + 8192, .raw_length = 8 + 8192}},
    {"pages that are not aligned",
     {.type = WIRE_PAGES, .offset = 1, .range = 4096, .length = 8 + 4096, .raw_length = 8 + 4096}},
    {"pages that cross their stripe",
     {.type = WIRE_PAGES, .offset = WIRE_STRIPE_SIZE - 4096, .range = 8192, .length = 8 + 4096, .raw_length = 8 + 4096}},
    {"pages past the largest file",
     {.type = WIRE_PAGES, .offset = WIRE_OFFSET_MAX, .range = 4096, .length = 8 + 4096, .raw_length = 8 + 4096}},
};

Test(wire, packet_fields)
{
    for (size_t i = 0; i < ARRAY_LENGTH(bad_packets); i++) {
        struct wire_packet wire;
        struct packet got = {.file = 77};
        struct error err = {0};
        wire_packet_encode(&bad_packets[i].packet, &wire);
        cr_expect(lt(int, wire_packet_decode(&wire, &got, &err), 0), "accepted: %s", bad_packets[i].what);
        cr_expect(eq(int, (int)err.cause, CAUSE_PROTOCOL), "%s", bad_packets[i].what);
        cr_expect(eq(u32, got.file, 77), "%s wrote to the result", bad_packets[i].what);
    }
}

/*
 * Damage and noise
 */

/* Every single bit of every kind of header is covered by its check. */
Test(wire, damage)
{
    struct hello hello = good_hello();
    struct hello_reply reply = good_reply();
    union {
        struct wire_hello hello;
        struct wire_hello_reply reply;
        struct wire_packet packet;
        uint8_t bytes[sizeof(struct wire_hello)];
    } wire;

    strcpy(reply.text, "text");
    wire_hello_encode(&hello, &wire.hello);
    for (size_t bit = 0; bit < 8 * sizeof(wire.hello); bit++) {
        struct hello got;
        wire.bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        cr_expect(lt(int, wire_hello_decode(&wire.hello, &got, NULL), 0), "bit %zu of a hello", bit);
        wire.bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    wire_hello_reply_encode(&reply, &wire.reply);
    for (size_t bit = 0; bit < 8 * sizeof(wire.reply); bit++) {
        struct hello_reply got;
        wire.bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        cr_expect(lt(int, wire_hello_reply_decode(&wire.reply, &got, NULL), 0), "bit %zu of a reply", bit);
        wire.bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    wire_packet_encode(&good_packets[4], &wire.packet);
    for (size_t bit = 0; bit < 8 * sizeof(wire.packet); bit++) {
        struct packet got;
        wire.bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        cr_expect(lt(int, wire_packet_decode(&wire.packet, &got, NULL), 0), "bit %zu of a packet", bit);
        wire.bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
}

/* Noise is refused; so is noise that begins with the right magic. */
Test(wire, noise)
{
    struct hello sample_hello = good_hello();
    struct hello_reply sample_reply = good_reply();
    struct wire_hello hello;
    struct wire_hello_reply reply;
    struct wire_packet packet;
    struct wire_message message;

    for (int i = 0; i < 100000; i++) {
        struct hello got_hello;
        struct hello_reply got_reply;
        struct packet got_packet;
        struct message got_message;
        random_bytes(&hello, i % 16 ? 64 : sizeof(hello));
        random_bytes(&reply, i % 16 ? 64 : sizeof(reply));
        random_bytes(&packet, sizeof(packet));
        random_bytes(&message, sizeof(message));
        if (i % 2) {
            struct wire_hello magic_hello;
            struct wire_hello_reply magic_reply;
            struct wire_packet magic_packet;
            struct wire_message magic_message;
            wire_hello_encode(&sample_hello, &magic_hello);
            wire_hello_reply_encode(&sample_reply, &magic_reply);
            wire_packet_encode(&good_packets[0], &magic_packet);
            wire_message_encode(WIRE_PING, 0, NULL, 0, &magic_message);
            memcpy(&hello, &magic_hello, 10);
            memcpy(&reply, &magic_reply, 10);
            packet.magic = magic_packet.magic;
            message.magic = magic_message.magic;
        }
        cr_assert(lt(int, wire_hello_decode(&hello, &got_hello, NULL), 0));
        cr_assert(lt(int, wire_hello_reply_decode(&reply, &got_reply, NULL), 0));
        cr_assert(lt(int, wire_packet_decode(&packet, &got_packet, NULL), 0));
        /* A message's check covers the body, so the header alone may pass; the check does not. */
        if (wire_message_decode(&message, &got_message, NULL) == 0)
            cr_assert(not(wire_message_check(&message, &hello, 32)));
    }
}

Test(wire, payload_check)
{
    uint8_t buf[4096];

    random_bytes(buf, sizeof(buf));
    uint64_t before = wire_payload_check(buf, sizeof(buf));
    cr_expect(eq(u64, before, XXH3_64bits(buf, sizeof(buf))), "as migfs-wire(7) says: XXH3");
    buf[4095] ^= 1;
    cr_expect(ne(u64, wire_payload_check(buf, sizeof(buf)), before));
}

/*
 * Cursors
 */

Test(wire, write_then_read)
{
    uint8_t buf[64];
    char text[16];
    struct wire_writer w = {buf, buf, buf + sizeof(buf)};

    wire_write_u16(&w, 0x1234);
    wire_write_u32(&w, 0x12345678);
    wire_write_u64(&w, 0x123456789abcdef0);
    wire_write_text(&w, "hello");
    wire_write_text(&w, "");
    cr_assert(eq(u32, wire_written(&w), 2 + 4 + 8 + 2 + 5 + 2));
    cr_expect(zero(int, memcmp(buf, "\x34\x12\x78\x56\x34\x12", 6)), "little-endian");

    struct wire_reader r = {.p = buf, .left = wire_written(&w)};
    cr_expect(eq(u16, wire_read_u16(&r), 0x1234));
    cr_expect(eq(u32, wire_read_u32(&r), 0x12345678));
    cr_expect(eq(u64, wire_read_u64(&r), 0x123456789abcdef0));
    cr_expect(not(wire_read_done(&r)));
    wire_read_text(&r, text, sizeof(text) - 1);
    cr_expect(eq(str, text, "hello"));
    wire_read_text(&r, text, sizeof(text) - 1);
    cr_expect(eq(str, text, ""));
    cr_expect(wire_read_done(&r));
}

/* Whatever is cut off a body, reading it ends with `bad` and with zeros, never past its end. */
Test(wire, short_bodies)
{
    uint8_t whole[2 + 4 + 8 + 2 + 5];
    struct wire_writer w = {whole, whole, whole + sizeof(whole)};

    wire_write_u16(&w, 1);
    wire_write_u32(&w, 2);
    wire_write_u64(&w, 3);
    wire_write_text(&w, "hello");
    for (size_t length = 0; length <= sizeof(whole); length++) {
        /* On the heap and of its own size, so that a read past the end is noticed. */
        uint8_t *body = malloc(length + 1);
        char text[8];
        memcpy(body, whole, length);
        struct wire_reader r = {.p = body, .left = length};
        wire_read_u16(&r);
        wire_read_u32(&r);
        wire_read_u64(&r);
        wire_read_text(&r, text, sizeof(text) - 1);
        cr_expect(eq(int, wire_read_done(&r), length == sizeof(whole)), "%zu bytes", length);
        cr_expect(eq(int, r.bad, length < sizeof(whole)), "%zu bytes", length);
        if (r.bad) {
            cr_expect(eq(str, text, ""), "%zu bytes", length);
            cr_expect(eq(u64, wire_read_u64(&r), 0), "all reads give 0 from then on");
            cr_expect(eq(u32, wire_read_u32(&r), 0));
            cr_expect(eq(u16, wire_read_u16(&r), 0));
            cr_expect(not(wire_read_done(&r)));
        }
        free(body);
    }
}

Test(wire, texts)
{
    static const struct {
        const char *what;
        const char *bytes;
        size_t length, max;
        bool good;
    } cases[] = {
        {"as long as allowed", "\x03\0abc", 5, 3, true},
        {"longer than allowed", "\x04\0abcd", 6, 3, false},
        {"longer than the body", "\x09\0abc", 5, 100, false},
        {"of 65535 bytes", "\xff\xff"
                           "abc",
         5, 65535, false},
        {"with a NUL", "\x03\0a\0c", 5, 3, false},
        {"that ends in a NUL", "\x03\0ab\0", 5, 3, false},
        {"with no length", "\x03", 1, 3, false},
    };

    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        char out[16] = "before";
        struct wire_reader r = {.p = (const uint8_t *)cases[i].bytes, .left = cases[i].length};
        wire_read_text(&r, out, cases[i].max);
        cr_expect(eq(int, !r.bad, cases[i].good), "a text %s", cases[i].what);
        if (!cases[i].good)
            cr_expect(eq(str, out, ""), "a text %s", cases[i].what);
    }
}

Test(wire, left_over_bytes)
{
    static const uint8_t body[6] = {0};
    struct wire_reader r = {.p = body, .left = sizeof(body)};

    wire_read_u32(&r);
    cr_expect(not(wire_read_done(&r)), "two bytes are left");
    wire_read_u16(&r);
    cr_expect(wire_read_done(&r));
}
