/* SPDX-License-Identifier: Apache-2.0 */
/* Encoding, decoding and checking what travels; see wire.h. */
#include "wire.h"
#include "xxh3.h"

#include <endian.h>
#include <string.h>

static const char hello_magic[8] = {'m', 'i', 'g', 'f', 's', '\r', '\n', 0x1a};
static const char reply_magic[8] = {'M', 'I', 'G', 'F', 'S', '\r', '\n', 0x1a};

#define MESSAGE_MAGIC 0x4d47494du /* "MIGM" */
#define PACKET_MAGIC  0x5047494du /* "MIGP" */

static uint64_t check_of(const void *wire, size_t size)
{
    return htole64(XXH3_64bits(wire, size - WIRE_CHECK_SIZE));
}

void wire_hello_encode(const struct hello *hello, struct wire_hello *out)
{
    memset(out, 0, sizeof(*out));
    memcpy(out->magic, hello_magic, sizeof(out->magic));
    out->version = htole16(WIRE_VERSION);
    out->kind = htole16((uint16_t)hello->kind);
    out->channel = htole16((uint16_t)hello->channel);
    out->channels = htole16((uint16_t)hello->channels);
    out->features = htole64(hello->kind == WIRE_HELLO_MAIN_AGAIN ? hello->received : hello->features);
    if (hello->kind == WIRE_HELLO_MAIN && hello->features & WIRE_FEATURE_RESUME)
        out->channel = htole16((uint16_t)((hello->resume_ms + 999) / 1000));
    memcpy(out->session, hello->session, sizeof(out->session));
    out->page_size = htole32(hello->page_size);
    out->stripe_size = htole32(hello->stripe_size);
    out->timeout_ms = htole32(hello->timeout_ms);
    out->name_length = htole16((uint16_t)strlen(hello->name));
    out->device_channels = htole16((uint16_t)hello->device_channels);
    memcpy(out->name, hello->name, strlen(hello->name));
    out->check = check_of(out, sizeof(*out));
}

int wire_hello_decode(const struct wire_hello *wire, struct hello *out, struct error *err)
{
    struct hello hello = {0};
    uint16_t name_length = le16toh(wire->name_length);

    if (memcmp(wire->magic, hello_magic, sizeof(hello_magic)))
        return error_set(err, CAUSE_PROTOCOL, "this is not a migfs peer");
    hello.version = le16toh(wire->version);
    if (hello.version != WIRE_VERSION) {
        *out = hello;
        return error_set(err, CAUSE_PROTOCOL,
                         "the peer speaks version %u of the protocol, this migfs version %u", hello.version,
                         WIRE_VERSION);
    }
    if (wire->check != check_of(wire, sizeof(*wire)))
        return error_set(err, CAUSE_PROTOCOL, "a hello arrived damaged");
    if (le16toh(wire->kind) > WIRE_HELLO_DATA_AGAIN)
        return error_set(err, CAUSE_PROTOCOL, "a hello of unknown kind %u", le16toh(wire->kind));
    hello.kind = le16toh(wire->kind);
    hello.channel = le16toh(wire->channel);
    hello.channels = le16toh(wire->channels);
    hello.device_channels = le16toh(wire->device_channels);
    if (hello.kind == WIRE_HELLO_MAIN_AGAIN)
        hello.received = le64toh(wire->features);
    else
        hello.features = le64toh(wire->features);
    if (hello.kind == WIRE_HELLO_MAIN && hello.features & WIRE_FEATURE_RESUME) {
        hello.resume_ms = hello.channel * 1000;
        hello.channel = 0;
    }
    memcpy(hello.session, wire->session, sizeof(hello.session));
    hello.page_size = le32toh(wire->page_size);
    hello.stripe_size = le32toh(wire->stripe_size);
    hello.timeout_ms = le32toh(wire->timeout_ms);
    if (hello.channels < 1 || hello.channels > WIRE_CHANNELS_MAX)
        return error_set(err, CAUSE_PROTOCOL, "%u channels asked for; 1 to %u are possible", hello.channels,
                         WIRE_CHANNELS_MAX);
    if (hello.device_channels >= hello.channels)
        return error_set(err, CAUSE_PROTOCOL, "%u of %u channels for devices leave none for RAM",
                         hello.device_channels, hello.channels);
    if (hello.channel >= hello.channels)
        return error_set(err, CAUSE_PROTOCOL, "channel %u of %u", hello.channel, hello.channels);
    if (hello.features & ~WIRE_FEATURES)
        return error_set(err, CAUSE_PROTOCOL, "features asked for that this migfs does not know: %#llx",
                         (unsigned long long)(hello.features & ~WIRE_FEATURES));
    if (hello.resume_ms > WIRE_RESUME_MAX * 1000)
        return error_set(err, CAUSE_PROTOCOL, "connections that are made again for %u s",
                         hello.resume_ms / 1000);
    if (hello.page_size != WIRE_PAGE_SIZE || hello.stripe_size != WIRE_STRIPE_SIZE)
        return error_set(err, CAUSE_PROTOCOL, "pages of %u and stripes of %u bytes; this migfs has %u and %u",
                         hello.page_size, hello.stripe_size, WIRE_PAGE_SIZE, WIRE_STRIPE_SIZE);
    if (name_length < 1 || name_length > WIRE_NAME_MAX || memchr(wire->name, '\0', name_length))
        return error_set(err, CAUSE_PROTOCOL, "a hello with a bad name");
    memcpy(hello.name, wire->name, name_length);
    *out = hello;
    return 0;
}

void wire_hello_reply_encode(const struct hello_reply *reply, struct wire_hello_reply *out)
{
    memset(out, 0, sizeof(*out));
    memcpy(out->magic, reply_magic, sizeof(out->magic));
    out->version = htole16(WIRE_VERSION);
    out->cause = htole16((uint16_t)reply->cause);
    out->outcome = htole16((uint16_t)reply->outcome);
    out->text_length = htole16((uint16_t)strlen(reply->text));
    out->features = htole64(reply->features);
    out->max_ram = htole64(reply->max_ram);
    out->max_device = htole64(reply->max_device);
    out->max_devices = htole32(reply->max_devices);
    out->timeout_ms = htole32(reply->timeout_ms);
    out->received = htole64(reply->received);
    memcpy(out->text, reply->text, strlen(reply->text));
    out->check = check_of(out, sizeof(*out));
}

static enum cause cause_from_wire(uint32_t value)
{
    return value < CAUSE_MAX ? (enum cause)value : CAUSE_PEER;
}

int wire_hello_reply_decode(const struct wire_hello_reply *wire, struct hello_reply *out, struct error *err)
{
    struct hello_reply reply = {0};
    uint16_t text_length = le16toh(wire->text_length);

    if (memcmp(wire->magic, reply_magic, sizeof(reply_magic)))
        return error_set(err, CAUSE_PROTOCOL, "the other side is not migfs");
    /* The place of cause and text is the same in every version, so that a refusal can be read. */
    if (wire->check != check_of(wire, sizeof(*wire)) || text_length > WIRE_TEXT_MAX)
        return error_set(err, CAUSE_PROTOCOL, "a reply to a hello arrived damaged");
    reply.cause = cause_from_wire(le16toh(wire->cause));
    memcpy(reply.text, wire->text, text_length);
    if (reply.cause == CAUSE_NONE && le16toh(wire->version) != WIRE_VERSION)
        return error_set(err, CAUSE_PROTOCOL,
                         "the destination speaks version %u of the protocol, this migfs version %u",
                         le16toh(wire->version), WIRE_VERSION);
    reply.outcome =
        le16toh(wire->outcome) <= WIRE_OUTCOME_FAILED ? le16toh(wire->outcome) : WIRE_OUTCOME_UNKNOWN;
    reply.features = le64toh(wire->features);
    reply.max_ram = le64toh(wire->max_ram);
    reply.max_device = le64toh(wire->max_device);
    reply.max_devices = le32toh(wire->max_devices);
    reply.timeout_ms = le32toh(wire->timeout_ms);
    reply.received = le64toh(wire->received);
    *out = reply;
    return 0;
}

static uint64_t message_check(const struct wire_message *wire, const void *body, uint32_t length)
{
    uint64_t check = XXH3_64bits(wire, sizeof(*wire) - WIRE_CHECK_SIZE);

    return htole64(length ? check ^ XXH3_64bits(body, length) : check);
}

void wire_message_encode_received(enum wire_message_type type, uint64_t id, uint64_t received,
                                  const void *body, uint32_t length, struct wire_message *out)
{
    memset(out, 0, sizeof(*out));
    out->magic = htole32(MESSAGE_MAGIC);
    out->type = htole16((uint16_t)type);
    out->length = htole32(length);
    out->received = htole32((uint32_t)received);
    out->id = htole64(id);
    out->check = message_check(out, body, length);
}

void wire_message_encode(enum wire_message_type type, uint64_t id, const void *body, uint32_t length,
                         struct wire_message *out)
{
    wire_message_encode_received(type, id, 0, body, length, out);
}

int wire_message_decode(const struct wire_message *wire, struct message *out, struct error *err)
{
    uint16_t type = le16toh(wire->type);
    uint32_t length = le32toh(wire->length);

    if (le32toh(wire->magic) != MESSAGE_MAGIC)
        return error_set(err, CAUSE_PROTOCOL, "no message where one was due on the main channel");
    if (type < WIRE_FILE_CREATE || type >= WIRE_MESSAGE_MAX)
        return error_set(err, CAUSE_PROTOCOL, "a message of unknown type %u", type);
    if (length > WIRE_BODY_MAX)
        return error_set(err, CAUSE_PROTOCOL, "a message of %u bytes; at most %u are allowed", length,
                         WIRE_BODY_MAX);
    out->type = type;
    out->id = le64toh(wire->id);
    out->length = length;
    out->received = le32toh(wire->received);
    out->check = wire->check;
    return 0;
}

bool wire_message_check(const struct wire_message *wire, const void *body, uint32_t length)
{
    return wire->check == message_check(wire, body, length);
}

uint64_t wire_packet_encode(const struct packet *packet, struct wire_packet *out)
{
    out->magic = htole32(PACKET_MAGIC);
    out->type = (uint8_t)packet->type;
    out->flags = (uint8_t)packet->flags;
    out->channel = htole16((uint16_t)packet->channel);
    out->file = htole32(packet->file);
    out->length = htole32(packet->length);
    out->offset = htole64(packet->offset);
    out->range = htole64(packet->range);
    out->sequence = htole64(packet->sequence);
    out->payload_check = htole64(packet->payload_check);
    out->raw_length = htole32(packet->raw_length);
    out->reserved = 0;
    out->check = check_of(out, sizeof(*out));
    return le64toh(out->check);
}

/* Whether [offset, offset + range) is whole pages of one stripe. */
static bool is_pages_of_stripe(const struct packet *packet)
{
    return packet->range && packet->range <= WIRE_OFFSET_MAX - packet->offset &&
           packet->range % WIRE_PAGE_SIZE == 0 && packet->offset % WIRE_PAGE_SIZE == 0 &&
           packet->range <= WIRE_STRIPE_SIZE - packet->offset % WIRE_STRIPE_SIZE;
}

/* Whether the sizes of a payload fit together. */
static bool is_payload(const struct packet *packet)
{
    if (packet->flags & WIRE_PACKET_ZSTD)
        return packet->length > 0 && packet->length < packet->raw_length &&
               !(packet->flags & (WIRE_PACKET_PLACED | WIRE_PACKET_PARTIAL));
    return packet->length > 0 && packet->length == packet->raw_length;
}

static bool is_plausible(const struct packet *packet)
{
    uint32_t head = wire_pages_head(packet);
    bool empty = !packet->length && !packet->raw_length && !packet->flags;

    switch (packet->type) {
    case WIRE_DATA:
        /* A packet never crosses a stripe: its stripe is what picked its channel. */
        return is_payload(packet) && !(packet->flags & WIRE_PACKET_PARTIAL) &&
               packet->raw_length <= WIRE_OFFSET_MAX - packet->offset &&
               packet->raw_length <= WIRE_STRIPE_SIZE - packet->offset % WIRE_STRIPE_SIZE;
    case WIRE_PAGES:
        return is_pages_of_stripe(packet) && is_payload(packet) && !(packet->flags & WIRE_PACKET_PLACED) &&
               packet->raw_length > head && packet->raw_length <= head + packet->range;
    case WIRE_ZERO:
        return empty && is_pages_of_stripe(packet);
    case WIRE_DISCARD:
        return empty && packet->range && packet->range <= WIRE_OFFSET_MAX - packet->offset;
    default:
        return empty;
    }
}

int wire_packet_decode(const struct wire_packet *wire, struct packet *out, struct error *err)
{
    struct packet packet = {
        .type = wire->type,
        .flags = wire->flags,
        .channel = le16toh(wire->channel),
        .file = le32toh(wire->file),
        .length = le32toh(wire->length),
        .raw_length = le32toh(wire->raw_length),
        .offset = le64toh(wire->offset),
        .range = le64toh(wire->range),
        .sequence = le64toh(wire->sequence),
        .payload_check = le64toh(wire->payload_check),
        .check = le64toh(wire->check),
    };

    if (le32toh(wire->magic) != PACKET_MAGIC)
        return error_set(err, CAUSE_PROTOCOL, "no packet where one was due");
    if (wire->check != check_of(wire, sizeof(*wire)))
        return error_set(err, CAUSE_PROTOCOL, "the header of a packet arrived damaged");
    if (wire->type < WIRE_DATA || wire->type >= WIRE_PACKET_MAX ||
        (wire->flags & ~(WIRE_PACKET_ZSTD | WIRE_PACKET_PLACED | WIRE_PACKET_PARTIAL)))
        return error_set(err, CAUSE_PROTOCOL, "a packet of unknown type %u, flags %#x", wire->type,
                         wire->flags);
    if (packet.offset > WIRE_OFFSET_MAX || !is_plausible(&packet))
        return error_set(err, CAUSE_PROTOCOL,
                         "a packet of type %u that makes no sense: offset %llu, range %llu, length %u of %u",
                         wire->type, (unsigned long long)packet.offset, (unsigned long long)packet.range,
                         packet.length, packet.raw_length);
    *out = packet;
    return 0;
}

uint64_t wire_payload_check(const void *payload, size_t length)
{
    return XXH3_64bits(payload, length);
}

static const uint8_t *take(struct wire_reader *r, size_t n)
{
    const uint8_t *p = r->p;

    if (r->bad || r->left < n) {
        r->bad = true;
        return NULL;
    }
    r->p += n;
    r->left -= n;
    return p;
}

uint16_t wire_read_u16(struct wire_reader *r)
{
    const uint8_t *p = take(r, 2);
    uint16_t value;

    if (!p)
        return 0;
    memcpy(&value, p, sizeof(value));
    return le16toh(value);
}

uint32_t wire_read_u32(struct wire_reader *r)
{
    const uint8_t *p = take(r, 4);
    uint32_t value;

    if (!p)
        return 0;
    memcpy(&value, p, sizeof(value));
    return le32toh(value);
}

uint64_t wire_read_u64(struct wire_reader *r)
{
    const uint8_t *p = take(r, 8);
    uint64_t value;

    if (!p)
        return 0;
    memcpy(&value, p, sizeof(value));
    return le64toh(value);
}

void wire_read_text(struct wire_reader *r, char *out, size_t max)
{
    uint16_t length = wire_read_u16(r);
    const uint8_t *p = length <= max ? take(r, length) : NULL;

    out[0] = '\0';
    if (!p || memchr(p, '\0', length)) {
        r->bad = true;
        return;
    }
    memcpy(out, p, length);
    out[length] = '\0';
}

bool wire_read_done(const struct wire_reader *r)
{
    return !r->bad && r->left == 0;
}

static void put(struct wire_writer *w, const void *value, size_t n)
{
    assert((size_t)(w->end - w->p) >= n);
    memcpy(w->p, value, n);
    w->p += n;
}

void wire_write_u16(struct wire_writer *w, uint16_t value)
{
    value = htole16(value);
    put(w, &value, sizeof(value));
}

void wire_write_u32(struct wire_writer *w, uint32_t value)
{
    value = htole32(value);
    put(w, &value, sizeof(value));
}

void wire_write_u64(struct wire_writer *w, uint64_t value)
{
    value = htole64(value);
    put(w, &value, sizeof(value));
}

void wire_write_text(struct wire_writer *w, const char *text)
{
    uint16_t length = (uint16_t)strlen(text);

    wire_write_u16(w, length);
    put(w, text, length);
}
