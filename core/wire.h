/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The wire protocol; migfs-wire(7) describes it for people. All numbers are
 * little-endian. This header has the layouts as they travel (struct wire_*) and
 * the decoded forms that the rest of the core uses.
 *
 * Every connection opens with a hello and its reply, both of fixed size. After
 * that a data channel carries packets, one way, and the main channel carries
 * messages, both ways. Nothing here allocates or blocks: the decoders are pure
 * functions of bytes, and check every field that a peer could get wrong without
 * knowing the migration.
 */
#ifndef MIGFS_WIRE_H
#define MIGFS_WIRE_H

#include "error.h"

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WIRE_VERSION      3
#define WIRE_PAGE_SIZE    4096u
#define WIRE_STRIPE_SIZE  (1u << 20)
#define WIRE_CHANNELS_MAX 128
#define WIRE_DEVICES_MAX  4096
#define WIRE_NAME_MAX     255
#define WIRE_TEXT_MAX     255
#define WIRE_NAME_SIZE    (WIRE_NAME_MAX + 1) /* of a string that has one */
#define WIRE_TEXT_SIZE    (WIRE_TEXT_MAX + 1)
#define WIRE_BODY_MAX     (1u << 18)
#define WIRE_OFFSET_MAX   (1ull << 46) /* no file is larger */
#define WIRE_VERIFY_MAX   4096u        /* pieces of a file in one question; each is a stripe */
#define WIRE_RAM          0u           /* the file id of the RAM image; devices count from 1 */
#define WIRE_SYNCS_MAX    4096         /* that may wait for their acknowledgement */
#define WIRE_CHANGES_MAX  256          /* removals and renamings that may wait for theirs */
#define WIRE_CHECK_SIZE   8

/* Feature bits of a hello. The destination refuses bits that it does not know. */
/* packets of RAM carry a checksum of their payload; those of devices always do */
#define WIRE_FEATURE_CHECKSUM (1ull << 0)
#define WIRE_FEATURE_ZSTD     (1ull << 1) /* payloads may be compressed */
#define WIRE_FEATURE_RESUME   (1ull << 2) /* a lost connection can be made again */
#define WIRE_FEATURES         (WIRE_FEATURE_CHECKSUM | WIRE_FEATURE_ZSTD | WIRE_FEATURE_RESUME)
#define WIRE_RESUME_MAX       3600u /* seconds */

enum wire_hello_kind {
    WIRE_HELLO_MAIN = 0,  /* starts a migration */
    WIRE_HELLO_DATA = 1,  /* a data channel of a migration whose main channel is there */
    WIRE_HELLO_QUERY = 2, /* asks what became of a migration; the reply is all */
    /* The connections of a migration that is active, made again after they were lost: */
    WIRE_HELLO_MAIN_AGAIN = 3,
    WIRE_HELLO_DATA_AGAIN = 4,
};

/* What a destination says of a migration that is asked for. */
enum wire_outcome {
    WIRE_OUTCOME_UNKNOWN = 0,
    WIRE_OUTCOME_COMPLETED = 1,
    WIRE_OUTCOME_FAILED = 2,
};

enum wire_message_type {
    WIRE_FILE_CREATE = 1, /* source: a file of this name will be sent */
    WIRE_FILE_REPLY = 2,  /* destination: it may, or why not */
    WIRE_FILE_END = 3,    /* source: the stream has ended, for now */
    WIRE_FILE_RESUME = 4, /* source: the stream goes on */
    WIRE_SYNC = 5,        /* source: say so when these counts are applied */
    WIRE_SYNC_ACK = 6,    /* destination: they are */
    WIRE_COMPLETE = 7,    /* source: the manifest */
    WIRE_PREPARED = 8,    /* destination: it is all here */
    WIRE_COMMIT = 9,      /* source: then it is yours */
    WIRE_COMMITTED = 10,  /* destination: it is mine */
    WIRE_ABORT = 11,      /* either: it is over, and why */
    WIRE_PING = 12,       /* either: still there */
    WIRE_DIGEST = 13,     /* source: what is the digest of this file? One question at a time */
    WIRE_DIGEST_REPLY = 14,
    WIRE_PROGRESS = 15, /* destination: what has arrived on each channel so far, and what else it has done */
    /* From the destination, both are the answer: it is done. */
    WIRE_FILE_REMOVE = 16, /* source: a device is gone, when these counts are applied */
    /* source: a device has another name then, and takes the place of the one that has it */
    WIRE_FILE_RENAME = 17,
    WIRE_VERIFY = 18, /* source: what are the digests of these pieces of a file? In place of WIRE_DIGEST */
    WIRE_VERIFY_REPLY = 19,
    WIRE_EXPOSE = 20,   /* source: let this part of the RAM be written by placed packets */
    WIRE_EXPOSED = 21,  /* destination: it may, and by which key; or why not */
    WIRE_WITHDRAW = 22, /* source: this part is not written any more */
    WIRE_MESSAGE_MAX
};

enum wire_packet_type {
    WIRE_DATA = 1,    /* `length` bytes of payload for `offset` */
    WIRE_DISCARD = 2, /* the channel's stripes of [offset, offset + range) become a hole */
    /* the file's size becomes `offset`; what lay past it in the channel's stripes is gone */
    WIRE_TRUNCATE = 3,
    WIRE_ZERO = 4, /* the whole pages [offset, offset + range), of one stripe, are zero */
    /* whole pages of [offset, offset + range), of one stripe: a bit for each, and those whose bit is set; the
       others are zero, or the packet is PARTIAL and says which it is about */
    WIRE_PAGES = 5,
    WIRE_PACKET_MAX
};

#define WIRE_PACKET_ZSTD   1 /* flag: the payload is one zstd frame */
#define WIRE_PACKET_PLACED 2 /* flag: the payload is in its place already, and not in the stream */
/* flag of PAGES: a second bit for each page, after the first ones; of pages without it nothing is said */
#define WIRE_PACKET_PARTIAL 4

/*
 * On a channel that places, or that can be made again, the destination tells, as 8 bytes each time, how many
 * packets it has applied, after such as the source must not place over before, or has to keep until then.
 */
#define WIRE_APPLIED_SIZE 8

struct wire_hello {
    char magic[8];
    uint16_t version;
    uint16_t kind;
    uint16_t channel; /* WIRE_HELLO_MAIN, with WIRE_FEATURE_RESUME: seconds */
    uint16_t channels;
    uint64_t features; /* WIRE_HELLO_MAIN_AGAIN: messages received from the destination */
    uint8_t session[16];
    uint32_t page_size;
    uint32_t stripe_size;
    uint32_t timeout_ms;
    uint16_t name_length;
    uint16_t device_channels;
    char name[256];
    uint64_t check;
};
static_assert(offsetof(struct wire_hello, magic) == 0, "wire layout");
static_assert(offsetof(struct wire_hello, version) == 8, "wire layout");
static_assert(offsetof(struct wire_hello, kind) == 10, "wire layout");
static_assert(offsetof(struct wire_hello, channel) == 12, "wire layout");
static_assert(offsetof(struct wire_hello, channels) == 14, "wire layout");
static_assert(offsetof(struct wire_hello, features) == 16, "wire layout");
static_assert(offsetof(struct wire_hello, session) == 24, "wire layout");
static_assert(offsetof(struct wire_hello, page_size) == 40, "wire layout");
static_assert(offsetof(struct wire_hello, stripe_size) == 44, "wire layout");
static_assert(offsetof(struct wire_hello, timeout_ms) == 48, "wire layout");
static_assert(offsetof(struct wire_hello, name_length) == 52, "wire layout");
static_assert(offsetof(struct wire_hello, device_channels) == 54, "wire layout");
static_assert(offsetof(struct wire_hello, name) == 56, "wire layout");
static_assert(offsetof(struct wire_hello, check) == 312, "wire layout");
static_assert(sizeof(struct wire_hello) == 320, "wire layout");

struct wire_hello_reply {
    char magic[8];
    uint16_t version;
    uint16_t cause;
    uint16_t outcome;
    uint16_t text_length;
    uint64_t features;
    uint64_t max_ram;
    uint64_t max_device;
    uint32_t max_devices;
    uint32_t timeout_ms;
    char text[256];
    uint64_t received; /* WIRE_HELLO_MAIN_AGAIN: messages; WIRE_HELLO_DATA_AGAIN: bytes */
    uint64_t check;
};
static_assert(offsetof(struct wire_hello_reply, magic) == 0, "wire layout");
static_assert(offsetof(struct wire_hello_reply, version) == 8, "wire layout");
static_assert(offsetof(struct wire_hello_reply, cause) == 10, "wire layout");
static_assert(offsetof(struct wire_hello_reply, outcome) == 12, "wire layout");
static_assert(offsetof(struct wire_hello_reply, text_length) == 14, "wire layout");
static_assert(offsetof(struct wire_hello_reply, features) == 16, "wire layout");
static_assert(offsetof(struct wire_hello_reply, max_ram) == 24, "wire layout");
static_assert(offsetof(struct wire_hello_reply, max_device) == 32, "wire layout");
static_assert(offsetof(struct wire_hello_reply, max_devices) == 40, "wire layout");
static_assert(offsetof(struct wire_hello_reply, timeout_ms) == 44, "wire layout");
static_assert(offsetof(struct wire_hello_reply, text) == 48, "wire layout");
static_assert(offsetof(struct wire_hello_reply, received) == 304, "wire layout");
static_assert(offsetof(struct wire_hello_reply, check) == 312, "wire layout");
static_assert(sizeof(struct wire_hello_reply) == 320, "wire layout");

struct wire_message {
    uint32_t magic;
    uint16_t type;
    uint16_t reserved;
    uint32_t length; /* of the body that follows */
    /* Where connections can be made again: messages received so far, pings not counted, modulo 2^32 */
    uint32_t received;
    uint64_t id;
    uint64_t check; /* of the header before it, and the body */
};
static_assert(offsetof(struct wire_message, magic) == 0, "wire layout");
static_assert(offsetof(struct wire_message, type) == 4, "wire layout");
static_assert(offsetof(struct wire_message, reserved) == 6, "wire layout");
static_assert(offsetof(struct wire_message, length) == 8, "wire layout");
static_assert(offsetof(struct wire_message, received) == 12, "wire layout");
static_assert(offsetof(struct wire_message, id) == 16, "wire layout");
static_assert(offsetof(struct wire_message, check) == 24, "wire layout");
static_assert(sizeof(struct wire_message) == 32, "wire layout");

struct wire_packet {
    uint32_t magic;
    uint8_t type;
    uint8_t flags;
    uint16_t channel;
    uint32_t file;
    uint32_t length; /* of the payload that follows */
    uint64_t offset;
    uint64_t range;    /* DISCARD, ZERO, PAGES: bytes; TRUNCATE: the number of the truncation */
    uint64_t sequence; /* of the packet in its channel, from 1 */
    uint64_t payload_check;
    uint32_t raw_length; /* of the payload before it was compressed */
    uint32_t reserved;
    uint64_t check; /* of the header before it */
};
static_assert(offsetof(struct wire_packet, magic) == 0, "wire layout");
static_assert(offsetof(struct wire_packet, type) == 4, "wire layout");
static_assert(offsetof(struct wire_packet, flags) == 5, "wire layout");
static_assert(offsetof(struct wire_packet, channel) == 6, "wire layout");
static_assert(offsetof(struct wire_packet, file) == 8, "wire layout");
static_assert(offsetof(struct wire_packet, length) == 12, "wire layout");
static_assert(offsetof(struct wire_packet, offset) == 16, "wire layout");
static_assert(offsetof(struct wire_packet, range) == 24, "wire layout");
static_assert(offsetof(struct wire_packet, sequence) == 32, "wire layout");
static_assert(offsetof(struct wire_packet, payload_check) == 40, "wire layout");
static_assert(offsetof(struct wire_packet, raw_length) == 48, "wire layout");
static_assert(offsetof(struct wire_packet, reserved) == 52, "wire layout");
static_assert(offsetof(struct wire_packet, check) == 56, "wire layout");
static_assert(sizeof(struct wire_packet) == 64, "wire layout");

/* The decoded forms, in host order. */
struct hello {
    uint16_t version;
    enum wire_hello_kind kind;
    unsigned channel; /* data: its index */
    unsigned channels;
    unsigned device_channels; /* the last so many of them carry devices alone; 0: all carry everything */
    uint64_t features;
    uint32_t resume_ms; /* how long the source tries to make a lost connection again; 0: not at all */
    uint64_t received;  /* WIRE_HELLO_MAIN_AGAIN, which has neither of these: messages from the destination */
    uint8_t session[16];
    uint32_t page_size, stripe_size, timeout_ms;
    char name[WIRE_NAME_SIZE];
};

/**
 * wire_resume_wait_ms - how long the destination waits for a source that tries for @resume_ms: longer, so
 * that the one who knows more gives up first
 */
static inline int64_t wire_resume_wait_ms(uint32_t resume_ms)
{
    return (int64_t)resume_ms + resume_ms / 4 + 1000;
}

struct hello_reply {
    enum cause cause; /* CAUSE_NONE: accepted */
    char text[WIRE_TEXT_SIZE];
    enum wire_outcome outcome;
    uint64_t features;
    uint64_t max_ram, max_device; /* bytes */
    uint32_t max_devices, timeout_ms;
    uint64_t received; /* to WIRE_HELLO_MAIN_AGAIN: messages; to WIRE_HELLO_DATA_AGAIN: bytes */
};

struct message {
    enum wire_message_type type;
    uint64_t id;
    uint32_t length;
    uint32_t received; /* by who sends this */
    uint64_t check;
};

struct packet {
    enum wire_packet_type type;
    unsigned flags;
    unsigned channel;
    uint32_t file;
    uint32_t length, raw_length;
    uint64_t offset, range, sequence, payload_check;
    uint64_t check; /* of the header */
    uint64_t pages; /* that a PARTIAL one is about; its payload says it, not the header */
};

/* What the manifest says of one file. */
struct manifest_entry {
    uint32_t file;
    uint64_t size, packets, bytes, digest;
};
#define WIRE_MANIFEST_ENTRY_SIZE 40

void wire_hello_encode(const struct hello *hello, struct wire_hello *out);
/**
 * wire_hello_decode - read a hello
 * @err: what is wrong with it
 *
 * A hello of another version decodes when its magic is right, with nothing but
 * @out->version filled in and an error: the caller can still answer it.
 */
int wire_hello_decode(const struct wire_hello *wire, struct hello *out, struct error *err);

void wire_hello_reply_encode(const struct hello_reply *reply, struct wire_hello_reply *out);
int wire_hello_reply_decode(const struct wire_hello_reply *wire, struct hello_reply *out, struct error *err);

/** wire_message_encode - the header of a message whose body is @body */
void wire_message_encode(enum wire_message_type type, uint64_t id, const void *body, uint32_t length,
                         struct wire_message *out);
/** wire_message_encode_received - the same, of one who has received so many messages */
void wire_message_encode_received(enum wire_message_type type, uint64_t id, uint64_t received,
                                  const void *body, uint32_t length, struct wire_message *out);
int wire_message_decode(const struct wire_message *wire, struct message *out, struct error *err);
/** wire_message_check - whether header and body are what was sent */
bool wire_message_check(const struct wire_message *wire, const void *body, uint32_t length);

/** wire_packet_encode - the header of a packet; returns its check */
uint64_t wire_packet_encode(const struct packet *packet, struct wire_packet *out);
int wire_packet_decode(const struct wire_packet *wire, struct packet *out, struct error *err);

/** wire_bitmap_size - bytes of the bits of a PAGES packet: whole 64-bit words */
static inline uint32_t wire_bitmap_size(uint64_t range)
{
    return (uint32_t)((range / WIRE_PAGE_SIZE + 63) / 64 * 8);
}

/** wire_pages_head - bytes of a PAGES packet's payload before the pages */
static inline uint32_t wire_pages_head(const struct packet *packet)
{
    return wire_bitmap_size(packet->range) * (packet->flags & WIRE_PACKET_PARTIAL ? 2 : 1);
}

/** wire_payload_check - the checksum of a payload: XXH3, 64 bits */
uint64_t wire_payload_check(const void *payload, size_t length);

/* A cursor over a body that is being read. After a read past the end all reads give 0 and `bad` is set. */
struct wire_reader {
    const uint8_t *p;
    size_t left;
    bool bad;
};

uint16_t wire_read_u16(struct wire_reader *r);
uint32_t wire_read_u32(struct wire_reader *r);
uint64_t wire_read_u64(struct wire_reader *r);
/**
 * wire_read_text - read a length-prefixed text of at most @max bytes into @out, which has room for one more
 */
void wire_read_text(struct wire_reader *r, char *out, size_t max);
/** wire_read_done - whether the whole body was read, and no more */
bool wire_read_done(const struct wire_reader *r);

/* A cursor over a body that is being written; the caller's buffer is large enough by construction. */
struct wire_writer {
    uint8_t *start, *p, *end;
};

static inline struct wire_writer wire_writer_of(uint8_t *buf, size_t size)
{
    return (struct wire_writer){buf, buf, buf + size};
}

void wire_write_u16(struct wire_writer *w, uint16_t value);
void wire_write_u32(struct wire_writer *w, uint32_t value);
void wire_write_u64(struct wire_writer *w, uint64_t value);
void wire_write_text(struct wire_writer *w, const char *text);
static inline uint32_t wire_written(const struct wire_writer *w)
{
    return (uint32_t)(w->p - w->start);
}

#endif
