/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The destination's side as a whole: a hostile source.
 *
 * The input is a script (docs below, at the codes). The driver carries it out as
 * a source would, with checks, sequence numbers and counts that are right unless
 * the script says otherwise, on connections that end in the driver, and that it may
 * lose and make again (ends.h). It keeps a
 * model of what the files should hold. In the end:
 *   - a migration that has completed holds what the model holds, and has counted it;
 *   - nothing that came after the completion has changed it;
 *   - no limit was passed, and everything that was charged, made or opened is gone.
 */
#include "ends.h"
#include "cleanup.h"
#include "guard.h"
#include "incoming.h"
#include "shifted_clock.h"
#include "shown.h"
#include "zero.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>
#include <zstd.h>

#define CHANNELS_MAX ENDS_CHANNELS_MAX
#define FILES_MAX    4 /* the RAM and the devices that the limits allow */
#define RAM_MAX      (3u << 20)
#define DEVICE_MAX   ((1u << 20) + 70000)
#define MEMORY_MAX   (5u << 20)
#define IMAGE_MAX    (4u << 20)

/* Header: channels, device channels, flags, slice; with FLAG_RESUME: for how many seconds. */
#define FLAG_CHECKSUM 1
#define FLAG_ZSTD     2
#define FLAG_LOOSE    4   /* packets are not waited for: channels run ahead of one another */
#define FLAG_ODD      8   /* limits that are no whole number of pages */
#define FLAG_DIGEST   16  /* compute the digests in the end */
#define FLAG_BUSY     32  /* every other send finds no room */
#define FLAG_PLACES   64  /* data channels place */
#define FLAG_RESUME   128 /* connections can be made again */

#define SECONDS_LATE 128 /* of the seconds: the last channel has not come when the script begins */

/* A step begins with one of these. */
enum code {
    CODE_PACKET,   /* type, file, where, how, offset 24, range 24, payload */
    CODE_CREATE,   /* how, size 24, name */
    CODE_STREAM,   /* file (+128: resume), skew */
    CODE_SYNC,     /* id, skew */
    CODE_COMPLETE, /* id, skew, wrong: which field of the manifest */
    CODE_COMMIT,   /* 0: the last id completed, else the id */
    CODE_DIGEST,   /* id, file; from id 128 on: about pieces, their count and the first one */
    CODE_ABORT,    /* cause, text */
    CODE_MESSAGE,  /* type, body: a right header around any body */
    CODE_RAW,      /* lane, bytes */
    CODE_CLOSE,    /* lane */
    CODE_USER,     /* what, file, offset 24, length 16: what a local user does meanwhile */
    CODE_CHANGE,   /* file, how (1: a new name; 2: which replaces; the rest: which name or file), skew */
    CODE_EXPOSE,   /* how (+128: withdraw, the how-th; +64: as it is, whole stripes otherwise), offset 24,
                      length 24 */
    CODE_PLACED,   /* how (1: nothing is written; 2: of another file), offset 24, length 24, seed */
    CODE_LOSE,     /* lane, how, after how many bytes 24: see ends.h */
    CODE_AGAIN,    /* lane, how, and what belongs to it: see ends.h */
    CODE_HEARD,    /* how many messages too many the source says that it has received, from now on (signed) */
    CODE_TIME,     /* tenths of a second 16, which pass */
    CODE_AMBUSH,   /* lane: see ends.h */
    CODE_MAX
};

/* How a packet is made. */
#define HOW_BYTES    1   /* the payload is from the input, not a pattern */
#define HOW_ZSTD     2   /* the payload is packed (or said to be, with HOW_BYTES) */
#define HOW_SEQUENCE 4   /* a wrong one */
#define HOW_CHECK    8   /* a wrong one, of header or payload */
#define HOW_LIE      16  /* raw_length as the range says */
#define HOW_FAR      32  /* the offset is in units of 32 MiB */
#define HOW_ROUGH    64  /* what should be whole pages is not */
#define HOW_SPLIT    128 /* arrives in pieces, the first one not a whole header */

/* What the source believes. */
struct model {
    uint8_t *image; /* IMAGE_MAX bytes */
    uint64_t packets, bytes, digest;
    uint64_t ends[CHANNELS_MAX];
    uint64_t truncations;
};

struct lab {
    struct registry registry;
    struct migration *m;
    struct input in;
    unsigned channels, flags;
    struct ends ends;
    uint64_t sent[CHANNELS_MAX]; /* packets */
    int64_t passed_ms;           /* by which the clock has been shifted */
    struct model models[FILES_MAX];
    bool modelled; /* the models still know what was sent */
    bool intact;   /* what was sent on the connections makes sense, as far as they go */
    uint64_t last_complete;
};

/*
 * Packets
 */

/* A pattern that packs, and differs from seed to seed. */
static void pattern(uint8_t *out, size_t len, uint32_t seed)
{
    for (size_t i = 0; i < len; i += 256) {
        seed = seed * 1664525 + 1013904223;
        memset(out + i, (int)(seed >> 24), len - i < 256 ? len - i : 256);
    }
}

static bool same_home(const struct file *file, unsigned channel, uint64_t stripe)
{
    return file_is_home(file, channel) && file_home(file, stripe * WIRE_STRIPE_SIZE) == channel;
}

/* What an honest packet does. */
static void model_packet(struct lab *lab, const struct file *file, const struct packet *packet,
                         const uint8_t *raw)
{
    struct model *model = &lab->models[packet->file];
    uint64_t end = packet->offset,
             limit = packet->type == WIRE_TRUNCATE ? IMAGE_MAX : packet->offset + packet->range;

    model->packets++;
    model->digest += packet->check;
    if (!file || !file_is_home(file, packet->channel) || packet->offset > IMAGE_MAX)
        return; /* it will be refused, or be for nothing that is modelled */
    switch (packet->type) {
    case WIRE_DATA:
        end += packet->raw_length;
        if (end <= IMAGE_MAX)
            memcpy(model->image + packet->offset, raw, packet->raw_length);
        model->bytes += packet->raw_length;
        break;
    case WIRE_ZERO:
        end += packet->range;
        if (end <= IMAGE_MAX)
            memset(model->image + packet->offset, 0, packet->range);
        break;
    case WIRE_PAGES: {
        uint64_t words[4];
        uint64_t said[4];
        uint32_t bitmap = wire_bitmap_size(packet->range);
        bool partial = packet->flags & WIRE_PACKET_PARTIAL;
        const uint8_t *p = raw + wire_pages_head(packet);
        memset(said, 0xff, sizeof(said));
        memcpy(words, raw, bitmap);
        memcpy(said, partial ? raw + bitmap : (const uint8_t *)said, bitmap);
        end += packet->range;
        for (uint64_t page = 0; end <= IMAGE_MAX && page < packet->range / WIRE_PAGE_SIZE; page++) {
            uint8_t *to = model->image + packet->offset + page * WIRE_PAGE_SIZE;
            bool held = words[page / 64] >> page % 64 & 1;
            if (held && p + WIRE_PAGE_SIZE > raw + packet->raw_length)
                break; /* the bits lie */
            if (held)
                memcpy(to, p, WIRE_PAGE_SIZE);
            else if (said[page / 64] >> page % 64 & 1)
                memset(to, 0, WIRE_PAGE_SIZE);
            p += held ? WIRE_PAGE_SIZE : 0;
            model->bytes += held ? WIRE_PAGE_SIZE : 0;
        }
        break;
    }
    default:
        for (uint64_t at = packet->offset; at < limit && at < IMAGE_MAX;) {
            uint64_t stripe = at / WIRE_STRIPE_SIZE, next = (stripe + 1) * WIRE_STRIPE_SIZE;
            uint64_t to = next < limit ? next : limit;
            if (same_home(file, packet->channel, stripe))
                memset(model->image + at, 0, (to < IMAGE_MAX ? to : IMAGE_MAX) - at);
            at = to;
        }
        if (packet->type == WIRE_TRUNCATE)
            model->ends[packet->channel] = packet->offset;
        return;
    }
    if (end > model->ends[packet->channel])
        model->ends[packet->channel] = end;
}

/* The bits of a PAGES payload and its pages; the whole length. */
static uint32_t make_pages(uint8_t *raw, uint64_t range, uint32_t seed)
{
    uint32_t bitmap = wire_bitmap_size(range);
    uint64_t words[4] = {0}, data = 0;

    for (uint64_t page = 0; page < range / WIRE_PAGE_SIZE && page < 256; page++) {
        /* Runs of up to 32 pages: long ones are given back, short ones are cleared. */
        bool held = (seed * 2654435761u >> (page / (1u << seed % 6)) % 32) & 1;
        words[page / 64] |= (uint64_t)held << page % 64;
        data += held;
    }
    memcpy(raw, words, bitmap);
    pattern(raw + bitmap, data * WIRE_PAGE_SIZE, seed);
    return bitmap + (uint32_t)data * WIRE_PAGE_SIZE;
}

/* Nothing is said of half of the pages without data. Return: the new size. */
static uint32_t make_partial(uint8_t *raw, uint64_t range, uint32_t size)
{
    uint32_t bitmap = wire_bitmap_size(range);
    uint64_t said[4], pages = range / WIRE_PAGE_SIZE;

    memcpy(said, raw, bitmap);
    for (uint64_t page = 0; page < pages; page += 2)
        said[page / 64] |= 1ull << page % 64;
    memmove(raw + 2 * bitmap, raw + bitmap, size - bitmap);
    memcpy(raw + bitmap, said, bitmap);
    return size + bitmap;
}

static void send_packet(struct lab *lab, unsigned channel, const struct wire_packet *wire,
                        const uint8_t *payload, size_t len, bool split)
{
    size_t first = split ? input_u8(&lab->in) % sizeof(*wire) : 0;
    struct lane *lane = lab->ends.now[channel];

    lane_speak(lane, lab->sent[channel]);
    if (split) {
        lane_put(lane, wire, first);
        ends_settle(&lab->ends, channel);
    }
    lane_put(lane, (const uint8_t *)wire + first, sizeof(*wire) - first);
    lane_put(lane, payload, split ? len / 2 : len);
    if (split) {
        ends_settle(&lab->ends, channel);
        lane_put(lane, payload + len / 2, len - len / 2);
    }
}

static void step_packet(struct lab *lab)
{
    static uint8_t raw[2 * WIRE_STRIPE_SIZE], packed[2 * WIRE_STRIPE_SIZE];
    struct input *in = &lab->in;
    struct packet packet = {.type = input_u8(in) % (WIRE_PACKET_MAX + 1), .file = input_u8(in)};
    unsigned where = input_u8(in), how = input_u8(in);
    struct wire_packet wire;
    const uint8_t *payload = raw;
    uint32_t seed;

    packet.offset = input_u24(in);
    packet.range = input_u24(in);
    if (packet.file >= FILES_MAX && packet.file < 128)
        packet.file %= FILES_MAX;
    if (packet.file >= FILES_MAX)
        lab->modelled = false;
    if (how & HOW_FAR)
        packet.offset <<= 25;
    bool placed = packet.type == WIRE_DATA || packet.type == WIRE_ZERO || packet.type == WIRE_PAGES;
    bool pages = packet.type == WIRE_ZERO || packet.type == WIRE_PAGES;
    if (pages && !(how & HOW_ROUGH)) {
        packet.offset -= packet.offset % WIRE_PAGE_SIZE;
        packet.range -= packet.range % WIRE_PAGE_SIZE;
    }
    if (placed && !(how & HOW_ROUGH)) {
        uint64_t room = WIRE_STRIPE_SIZE - packet.offset % WIRE_STRIPE_SIZE;
        if (packet.range > room)
            packet.range = room;
    }
    if (packet.type == WIRE_DATA || packet.type == WIRE_PAGES) {
        seed = input_u8(in);
        if (how & HOW_BYTES) {
            size_t len, want = input_u16(in);
            payload = input_bytes(in, want, &len);
            packet.length = packet.raw_length = (uint32_t)len;
        } else if (packet.type == WIRE_PAGES) {
            packet.length = packet.raw_length = make_pages(raw, packet.range % (WIRE_STRIPE_SIZE + 1), seed);
            if (seed & 128 && packet.range <= WIRE_STRIPE_SIZE)
                packet.length = packet.raw_length = make_partial(raw, packet.range, packet.raw_length);
        } else {
            packet.length = packet.raw_length = (uint32_t)(packet.range % (WIRE_STRIPE_SIZE + 1));
            pattern(raw, packet.length, seed);
        }
        if (packet.type == WIRE_PAGES && seed & 128)
            packet.flags = WIRE_PACKET_PARTIAL;
        if (how & HOW_ZSTD) {
            packet.flags |= WIRE_PACKET_ZSTD;
            if (how & HOW_BYTES) {
                packet.raw_length = (uint32_t)packet.range;
                lab->modelled = false;
            } else {
                packet.length = (uint32_t)ZSTD_compress(packed, sizeof(packed), raw, packet.raw_length, 1);
                payload = packed;
            }
        }
        if (how & HOW_LIE) {
            packet.raw_length = (uint32_t)packet.range;
            lab->modelled = false;
        }
        if (packet.type == WIRE_DATA)
            packet.range = 0;
        else if (how & (HOW_BYTES | HOW_ROUGH))
            lab->modelled = false;
        packet.payload_check = wire_payload_check(payload, packet.length);
    }
    CLEANUP_FILE struct file *file = migration_get_file(lab->m, packet.file);
    packet.channel = where < 64 && file ? file_home(file, packet.offset) : where % lab->channels;
    if (where >= 192) /* a number that is not the connection's */
        packet.channel = where;
    unsigned c = packet.channel % lab->channels;
    if (packet.type == WIRE_TRUNCATE && packet.file < FILES_MAX && packet.range % 4)
        packet.range =
            lab->models[packet.file].truncations + packet.range % 4; /* goes on from the last one */
    if (packet.type == WIRE_TRUNCATE && packet.file < FILES_MAX && packet.range % 4 == 3)
        lab->models[packet.file].truncations = packet.range;
    packet.sequence = ++lab->sent[c];
    if (how & (HOW_SEQUENCE | HOW_CHECK) || where >= 192)
        lab->intact = false;
    if (how & HOW_SEQUENCE)
        packet.sequence += seed = input_u8(in);
    if (how & HOW_CHECK)
        packet.payload_check ^= input_u8(in);
    packet.check = wire_packet_encode(&packet, &wire);
    if ((how & HOW_CHECK) && !packet.length)
        wire.check ^= input_u8(in);
    /* Whether it is applied before a commit is a matter of luck, and the source's fault. */
    if (lab->last_complete &&
        (lab->flags & FLAG_LOOSE || (lab->m->state != STATE_COMPLETED && lane_is_cut(lab->ends.now[c]))))
        lab->modelled = false;
    /* Its announcement, or it, may come later. */
    if (!file)
        lab->modelled = false;
    if (packet.file < FILES_MAX && lab->modelled && lab->m->state != STATE_COMPLETED)
        model_packet(lab, file, &packet, how & HOW_ZSTD ? raw : payload);
    send_packet(lab, c, &wire, payload, packet.length, how & HOW_SPLIT);
    if (!(lab->flags & FLAG_LOOSE))
        ends_settle(&lab->ends, c);
}

/*
 * Messages
 */

static void write_counts(struct lab *lab, struct wire_writer *w)
{
    unsigned skew = input_u8(&lab->in);

    for (unsigned c = 0; c < lab->channels; c++)
        wire_write_u64(w, lab->sent[c] + (skew && c == skew % lab->channels ? (uint64_t)(skew >> 3) - 8 : 0));
}

static void step_create(struct lab *lab)
{
    unsigned how = input_u8(&lab->in);
    uint64_t size = input_u24(&lab->in);
    char name[WIRE_NAME_MAX + 1] = {0};
    uint8_t buf[16 + WIRE_NAME_MAX];
    struct wire_writer w = {buf, buf, buf + sizeof(buf)};
    uint32_t id = 0;
    size_t len;

    while (migration_file(lab->m, id))
        id++;

    const uint8_t *text = input_bytes(&lab->in, how % 64, &len);
    if (len)
        memcpy(name, text, len);
    if (!len)
        snprintf(name, sizeof(name), "device%u", id);
    if (how & 64)
        size <<= 25;
    wire_write_u32(&w, how & 128 ? id + 1 : id);
    wire_write_u64(&w, size);
    wire_write_text(&w, name);
    ends_send(&lab->ends, WIRE_FILE_CREATE, 0, buf, wire_written(&w));
    CLEANUP_FILE struct file *file = migration_get_file(lab->m, id);
    if (file) {
        MUST(id < FILES_MAX);
        for (unsigned c = 0; c < lab->channels; c++)
            lab->models[id].ends[c] = file_is_home(file, c) ? size : 0;
    }
    /* It comes later, if at all. */
    if (lane_is_cut(ends_main(&lab->ends)))
        lab->modelled = false;
}

static void step_stream(struct lab *lab)
{
    unsigned file = input_u8(&lab->in);
    uint8_t buf[4 + CHANNELS_MAX * 8];
    struct wire_writer w = {buf, buf, buf + sizeof(buf)};

    wire_write_u32(&w, file % 128);
    if (file < 128)
        write_counts(lab, &w);
    ends_send(&lab->ends, file < 128 ? WIRE_FILE_END : WIRE_FILE_RESUME, 0, buf, wire_written(&w));
}

/* The source has removed a file, and its number begins anew. */
static void model_remove(struct lab *lab, uint32_t id)
{
    struct model *model = &lab->models[id];
    uint8_t *image = model->image;

    if (migration_file(lab->m, id)) {
        lab->modelled = false; /* it was refused, or waits */
        return;
    }
    memset(image, 0, IMAGE_MAX);
    *model = (struct model){.image = image};
}

static void step_change(struct lab *lab)
{
    unsigned number = input_u8(&lab->in) % 8, how = input_u8(&lab->in),
             replaced = how & 2 ? (how >> 2) % 8 : 0;
    CLEANUP_FILE struct file *there = migration_get_file(lab->m, replaced);
    uint8_t buf[16 + CHANNELS_MAX * 8 + WIRE_NAME_MAX];
    struct wire_writer w = {buf, buf, buf + sizeof(buf)};
    char name[WIRE_NAME_MAX + 1];

    snprintf(name, sizeof(name), how & 128 ? "../%u" : "name%u", how >> 2 & 7);
    if (there && replaced)
        file_name(there, name);
    if (!(lab->flags & FLAG_LOOSE))
        ends_settle_all(&lab->ends);
    else
        lab->modelled = false;
    wire_write_u32(&w, number);
    unsigned skew = lab->in.left ? lab->in.p[0] : 0;
    write_counts(lab, &w);
    if (skew)
        lab->modelled = false;
    if (how & 1) {
        wire_write_u32(&w, replaced);
        wire_write_text(&w, name);
    }
    ends_send(&lab->ends, how & 1 ? WIRE_FILE_RENAME : WIRE_FILE_REMOVE, number, buf, wire_written(&w));
    if (!(how & 1) && number < FILES_MAX)
        model_remove(lab, number);
    else if (replaced && replaced < FILES_MAX)
        model_remove(lab, replaced);
}

static void step_sync(struct lab *lab)
{
    uint8_t buf[CHANNELS_MAX * 8];
    struct wire_writer w = {buf, buf, buf + sizeof(buf)};
    uint64_t id = input_u8(&lab->in);

    lab->ends.syncs += lab->in.left && !lab->in.p[0];
    write_counts(lab, &w);
    ends_send(&lab->ends, WIRE_SYNC, id, buf, wire_written(&w));
}

static void step_complete(struct lab *lab)
{
    uint8_t buf[CHANNELS_MAX * 8 + 4 + FILES_MAX * WIRE_MANIFEST_ENTRY_SIZE];
    struct wire_writer w = {buf, buf, buf + sizeof(buf)};
    uint64_t id = input_u8(&lab->in), files = 0;

    ends_settle_all(&lab->ends);
    for (uint32_t i = 0; i < FILES_MAX; i++)
        files += migration_file(lab->m, i) != NULL;
    write_counts(lab, &w);
    unsigned wrong = input_u8(&lab->in);
    if (wrong == 6 && files)
        files--;
    wire_write_u32(&w, (uint32_t)files);
    for (uint32_t i = 0; i < FILES_MAX && files; i++) {
        const struct model *model = &lab->models[i];
        if (!migration_file(lab->m, i))
            continue;
        files--;
        uint64_t size = 0;
        for (unsigned c = 0; c < lab->channels; c++)
            size = model->ends[c] > size ? model->ends[c] : size;
        wire_write_u32(&w, i + (wrong == 1));
        wire_write_u32(&w, 0);
        wire_write_u64(&w, size + (wrong == 2));
        wire_write_u64(&w, model->packets + (wrong == 3));
        wire_write_u64(&w, model->bytes + (wrong == 4));
        wire_write_u64(&w, model->digest + (wrong == 5));
    }
    lab->last_complete = id;
    ends_send(&lab->ends, WIRE_COMPLETE, id, buf, wire_written(&w));
}

static void step_digest(struct lab *lab)
{
    uint64_t id = input_u8(&lab->in);
    uint8_t buf[16] = {input_u8(&lab->in)};
    bool pieces = id >= 128;

    if (pieces) {
        buf[4] = input_u8(&lab->in);
        buf[8] = input_u8(&lab->in);
    }
    ends_send(&lab->ends, pieces ? WIRE_VERIFY : WIRE_DIGEST, id, buf, pieces ? 16 : 4);
}

static void step_abort(struct lab *lab)
{
    uint8_t buf[256 + 8];
    struct wire_writer w = {buf, buf, buf + sizeof(buf)};
    size_t len;

    wire_write_u32(&w, input_u8(&lab->in));
    const uint8_t *text = input_bytes(&lab->in, input_u8(&lab->in), &len);
    wire_write_u16(&w, (uint16_t)len);
    memcpy(w.p, text, len);
    ends_send(&lab->ends, WIRE_ABORT, 0, buf, wire_written(&w) + len);
}

static void step_message(struct lab *lab)
{
    unsigned type = input_u8(&lab->in) % (WIRE_MESSAGE_MAX + 1);
    size_t len, want = input_u8(&lab->in);
    const uint8_t *body = input_bytes(&lab->in, want, &len);

    ends_send(&lab->ends, type, input_u8(&lab->in), body, len);
}

static void step_raw(struct lab *lab)
{
    unsigned lane = input_u8(&lab->in) % (lab->channels + 1);
    size_t len, want = input_u8(&lab->in);
    const uint8_t *bytes = input_bytes(&lab->in, want, &len);

    if (!len)
        return;
    lab->modelled = lab->intact = false;
    ends_put_junk(&lab->ends, lane, bytes, len);
}

/*
 * What the source writes by itself
 */

static void step_expose(struct lab *lab)
{
    unsigned how = input_u8(&lab->in);
    uint64_t offset = input_u24(&lab->in), len = input_u24(&lab->in);
    uint8_t buf[16];
    struct wire_writer w = {buf, buf, buf + sizeof(buf)};

    if (!(how & 64) && how & 128)
        lane_exposure(how % 64, &offset, &len);
    else if (!(how & 64))
        offset -= offset % WIRE_STRIPE_SIZE;
    wire_write_u64(&w, offset);
    wire_write_u64(&w, len);
    ends_send(&lab->ends, how & 128 ? WIRE_WITHDRAW : WIRE_EXPOSE, 0, buf, sizeof(buf));
}

/* As an honest source does: nothing that is not applied says something of these bytes. */
static void step_placed(struct lab *lab)
{
    static uint8_t raw[WIRE_STRIPE_SIZE];
    unsigned how = input_u8(&lab->in);
    struct packet packet = {
        .type = WIRE_DATA, .flags = WIRE_PACKET_PLACED, .file = how & 2, .offset = input_u24(&lab->in)};
    uint64_t room = WIRE_STRIPE_SIZE - packet.offset % WIRE_STRIPE_SIZE, len = input_u24(&lab->in);
    struct wire_packet wire;

    CLEANUP_FILE struct file *file = migration_get_file(lab->m, packet.file);
    packet.length = packet.raw_length = (uint32_t)(len < room ? len : room);
    pattern(raw, packet.length, input_u8(&lab->in));
    packet.payload_check = wire_payload_check(raw, packet.length);
    packet.channel = file ? file_home(file, packet.offset) : 0;
    packet.sequence = ++lab->sent[packet.channel];
    packet.check = wire_packet_encode(&packet, &wire);
    ends_settle(&lab->ends, packet.channel);
    uint8_t *to = how & 1 ? NULL : lane_exposed(packet.offset, packet.length);
    /* What is written after the source has said that all is complete is its own fault. */
    if (!to || !file || lab->last_complete)
        lab->modelled = lab->intact = false;
    if (to)
        memcpy(to, raw, packet.length);
    if (lab->modelled && lab->m->state != STATE_COMPLETED)
        model_packet(lab, file, &packet, raw);
    lane_speak(lab->ends.now[packet.channel], packet.sequence);
    lane_put(lab->ends.now[packet.channel], &wire, sizeof(wire));
    ends_settle(&lab->ends, packet.channel);
}

/*
 * What a user does at the destination while it arrives
 */

static void read_file(struct file *file, uint64_t offset, size_t len)
{
    uint8_t *buf = malloc(len + 1);

    MUST(buf);
    ssize_t n = file_read(file, offset, buf, len, true, NULL);
    MUST(n <= (ssize_t)len);
    free(buf);
}

static void step_user(struct lab *lab)
{
    unsigned what = input_u8(&lab->in), which = input_u8(&lab->in);
    uint64_t offset = input_u24(&lab->in);
    size_t len = input_u16(&lab->in);
    CLEANUP_FILE struct file *file = migration_get_file(lab->m, which % FILES_MAX);
    struct error err = {0};
    uint8_t digest[DIGEST_SIZE];
    char path[64];

    switch (what % 10) {
    case 0:
        if (file)
            read_file(file, offset, len);
        break;
    case 1:
        if (file)
            file_seek(file, offset, len & 1);
        break;
    case 2:
        if (file)
            file_readable(file, offset);
        break;
    case 3:
        if (file && file->id == WIRE_RAM) {
            uint8_t *map = malloc(len + 1);
            MUST(map);
            MUST(file_read_received_map(file, offset / 4096, map, len) <= len);
            free(map);
        }
        break;
    case 4:
        if (file)
            MUST(image_digest(&file->image, NULL, digest) == 0 || state_is_final(lab->m->state));
        break;
    case 5:
        migration_cancel(lab->m, &err);
        break;
    case 6:
        incoming_decide(lab->m);
        break;
    case 7:
        registry_remove(&lab->registry, lab->m, &err);
        break;
    case 8:
        shown_ram_path(lab->m, path, sizeof(path));
        break;
    default:
        ends_settle_all(&lab->ends);
    }
}

/*
 * Afterwards
 */

static uint64_t model_size(const struct lab *lab, const struct model *model)
{
    uint64_t size = 0;

    for (unsigned c = 0; c < lab->channels; c++)
        size = model->ends[c] > size ? model->ends[c] : size;
    return size;
}

static void check_file(const struct lab *lab, struct file *file)
{
    static uint8_t have[IMAGE_MAX];
    const struct model *model = &lab->models[file->id];
    struct file_totals totals = file_totals(file);
    uint64_t size = file_received_size(file);

    MUST(totals.covered == totals.bytes + totals.zero_pages * WIRE_PAGE_SIZE + totals.discarded_bytes);
    MUST(totals.packets == model->packets && totals.bytes == model->bytes && size == model_size(lab, model));
    MUST(file_read(file, 0, have, sizeof(have), true, NULL) == (ssize_t)size);
    MUST(!memcmp(have, model->image, size));
    if (file->id != WIRE_RAM)
        return;
    /* What SEEK_DATA skips is zero. */
    for (int64_t hole = 0; hole >= 0 && hole < (int64_t)size;) {
        hole = file_seek(file, (uint64_t)hole, false);
        int64_t data = hole < (int64_t)size ? file_seek(file, (uint64_t)hole, true) : -ENXIO;
        MUST(zero_is(have + hole, (data < 0 ? size : (uint64_t)data) - (uint64_t)hole));
        hole = data;
    }
}

static void check_limits(const struct lab *lab)
{
    const struct limits *limits = &lab->registry.host.limits;
    uint64_t sum = 0;

    MUST(lab->m->file_count <= limits->max_devices + 1);
    for (uint32_t i = 0; i < lab->m->file_count; i++) {
        const struct file *file = lab->m->files[i];
        if (!file) /* a device of a migration that has failed */
            continue;
        uint64_t size = file_received_size(file);
        MUST(size <= (i ? limits->max_device : limits->max_ram));
        if (lab->m->state == STATE_COMPLETED && !lab->m->removed)
            MUST(size <= file->image.charged && file->stream.frontier <= file->image.charged);
        else
            MUST(file->image.charged == 0);
        sum += file->image.charged + file->image.overhead;
    }
    MUST(sum == lab->registry.host.accounts.memory.used && sum <= limits->max_memory);
}

static uint64_t applied(const struct lab *lab)
{
    uint64_t packets = 0;

    for (uint32_t i = 0; i < lab->m->file_count; i++)
        packets += lab->m->files[i] ? file_totals(lab->m->files[i]).packets : 0;
    return packets;
}

static void step_commit(struct lab *lab)
{
    uint64_t id = input_u8(&lab->in);

    ends_send(&lab->ends, WIRE_COMMIT, id ? id : lab->last_complete, NULL, 0);
}

/* What is sent on a lane that has ended does not arrive, but on another one in its place. */
static void step_close(struct lab *lab)
{
    lab->modelled &= lab->ends.resumes;
    lane_end(lab->ends.now[input_u8(&lab->in) % (lab->channels + 1)]);
}

static void step_lose(struct lab *lab)
{
    lab->modelled &= lab->ends.resumes;
    ends_lose(&lab->ends);
}

static void step_again(struct lab *lab)
{
    if (!ends_again(&lab->ends))
        return;
    lab->modelled = lab->intact = false;
}

static void step_heard(struct lab *lab)
{
    lab->ends.skew = (int8_t)input_u8(&lab->in);
    lab->ends.lied |= lab->ends.skew != 0;
}

static void step_time(struct lab *lab)
{
    int64_t ms = input_u16(&lab->in) * 100;

    lab->passed_ms += ms;
    shifted_clock_add(ms);
    ends_settle_all(&lab->ends);
}

static void step_ambush(struct lab *lab)
{
    ends_ambush(&lab->ends);
}

static void (*const steps[CODE_MAX])(struct lab *lab) = {
    [CODE_PACKET] = step_packet, [CODE_CREATE] = step_create,     [CODE_STREAM] = step_stream,
    [CODE_SYNC] = step_sync,     [CODE_COMPLETE] = step_complete, [CODE_COMMIT] = step_commit,
    [CODE_DIGEST] = step_digest, [CODE_ABORT] = step_abort,       [CODE_MESSAGE] = step_message,
    [CODE_RAW] = step_raw,       [CODE_CLOSE] = step_close,       [CODE_USER] = step_user,
    [CODE_CHANGE] = step_change, [CODE_EXPOSE] = step_expose,     [CODE_PLACED] = step_placed,
    [CODE_LOSE] = step_lose,     [CODE_AGAIN] = step_again,       [CODE_HEARD] = step_heard,
    [CODE_TIME] = step_time,     [CODE_AMBUSH] = step_ambush,
};

static void run_script(struct lab *lab)
{
    uint64_t at_commit = 0;
    bool completed = false;

    for (int i = 0; i < ENDS_STEPS_MAX && lab->in.left; i++) {
        steps[input_u8(&lab->in) % CODE_MAX](lab);
        if (lab->m->state == STATE_FAILED || lab->m->state == STATE_CANCELLED)
            break;
        if (lab->m->state == STATE_COMPLETED && !completed) {
            completed = true;
            at_commit = applied(lab);
            ends_check_answers(&lab->ends);
        }
    }
    ends_settle_all(&lab->ends);
    if (completed)
        MUST(applied(lab) == at_commit);
}

static void set_up(struct lab *lab)
{
    unsigned channels = input_u8(&lab->in) % CHANNELS_MAX + 1, devices = input_u8(&lab->in) % channels;
    unsigned flags = input_u8(&lab->in), slice = input_u8(&lab->in), odd = flags & FLAG_ODD ? 100 : 0;
    unsigned seconds = flags & FLAG_RESUME ? input_u8(&lab->in) : 0;
    struct limits limits = {
        .max_memory = MEMORY_MAX + odd + incoming_memory(&(struct host){0}, channels),
        .max_ram = RAM_MAX + odd,
        .max_device = DEVICE_MAX,
        .max_devices = FILES_MAX - 1,
        .max_migrations = 2,
        .write_behind = 1 << 20,
        .timeout_ms = 60000,
    };
    struct hello hello = {
        .version = WIRE_VERSION,
        .channels = channels,
        .device_channels = devices,
        .features = (flags & FLAG_CHECKSUM ? WIRE_FEATURE_CHECKSUM : 0) |
                    (flags & FLAG_ZSTD ? WIRE_FEATURE_ZSTD : 0) |
                    (flags & FLAG_RESUME ? WIRE_FEATURE_RESUME : 0),
        .resume_ms = seconds % SECONDS_LATE * 1000,
        .page_size = WIRE_PAGE_SIZE,
        .stripe_size = WIRE_STRIPE_SIZE,
        .timeout_ms = 60000,
        .name = "m",
    };

    lab->flags = flags;
    lab->channels = channels;
    lab->modelled = lab->intact = true;
    for (unsigned i = 0; i < FILES_MAX; i++) {
        lab->models[i].image =
            mmap(NULL, IMAGE_MAX, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        MUST(lab->models[i].image != MAP_FAILED);
    }
    registry_init(&lab->registry, &limits, NULL);
    lab->ends = (struct ends){.registry = &lab->registry, .in = &lab->in};
    lab->ends.slice = slice < 16 ? 0 : slice * 8;
    lab->ends.busy = flags & FLAG_BUSY;
    ends_open(&lab->ends, &hello, flags & FLAG_PLACES, seconds & SECONDS_LATE && hello.resume_ms);
    lab->m = lab->ends.m;
}

/* Until the threads of the migration have ended, it may be giving something back. */
static void await_threads(struct lab *lab)
{
    for (bool idle = false; !idle; sched_yield()) {
        SCOPED_LOCK(&lab->registry.lock);
        idle = atomic_load(&lab->m->refs) == 1u + lab->m->listed;
    }
}

static void tear_down(struct lab *lab)
{
    ends_close(&lab->ends);
    await_threads(lab);
    ends_check_failure(&lab->ends, lab->intact);
    MUST(lane_keys() == 0);
    check_limits(lab);
    for (uint32_t i = 0; i < lab->m->file_count; i++) {
        struct file *file = lab->m->files[i];
        uint8_t digest[DIGEST_SIZE];
        if (!file) /* a device of a migration that has failed */
            continue;
        if (lab->m->state == STATE_COMPLETED && lab->modelled)
            check_file(lab, file);
        if (lab->flags & FLAG_DIGEST)
            MUST(image_digest(&file->image, NULL, digest) ==
                 (lab->m->state == STATE_COMPLETED ? 0 : -ECONNRESET));
    }
    migration_put(lab->m);
    registry_drain(&lab->registry, HOST_FOREVER);
    MUST(lab->registry.host.accounts.memory.used == 0);
    registry_fini(&lab->registry);
    ends_free(&lab->ends);
    shifted_clock_add(-lab->passed_ms);
    for (unsigned i = 0; i < FILES_MAX; i++)
        munmap(lab->models[i].image, IMAGE_MAX);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct lab *lab = calloc(1, sizeof(*lab));
    int before = fcntl(0, F_DUPFD_CLOEXEC, 0);

    MUST(lab && before >= 0);
    close(before);
    guard_setup();
    lab->in = (struct input){data, size};
    set_up(lab);
    run_script(lab);
    tear_down(lab);
    free(lab);
    int after = fcntl(0, F_DUPFD_CLOEXEC, 0);
    MUST(after == before);
    close(after);
    return 0;
}
