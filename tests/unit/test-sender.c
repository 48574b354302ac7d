/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packets to channels. A connection whose sends go into a buffer for each channel; what is in the buffers is
 * applied as a destination would, and compared with what was written.
 */
#include "sender.h"
#include "check.h"
#include "dummy.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PAGE     ((size_t)WIRE_PAGE_SIZE)
#define STRIPE   ((size_t)WIRE_STRIPE_SIZE)
#define CHANNELS 3u
#define IMAGE    (12 * STRIPE)

/* Where a channel's sends go. */
struct recorder {
    struct transport base;
    uint8_t *bytes;
    size_t have, seen, room; /* recorded, and applied */
    uint64_t sequence;
};

static struct recorder recorders[CHANNELS];
static struct channel channels[CHANNELS];
static struct connection conn;
static struct file *file;
static struct plan plan;
static struct decompressor *decompressor;
static char *image, *expected;  /* at the destination, and what was written */
static struct file_totals seen; /* of the packets that were applied */
static uint64_t last_seen[CHANNELS];
static uint64_t truncation_seen;

static int record(struct transport *t, const struct iovec *iov, int n)
{
    struct recorder *r = t->own;

    for (int i = 0; i < n; i++) {
        if (r->have + iov[i].iov_len > r->room) {
            r->room = 2 * (r->have + iov[i].iov_len);
            r->bytes = realloc(r->bytes, r->room);
        }
        memcpy(r->bytes + r->have, iov[i].iov_base, iov[i].iov_len);
        r->have += iov[i].iov_len;
    }
    return 0;
}

static void forget(struct transport *t)
{
    (void)t;
}

static const struct transport_ops recorder_ops = {
    .name = "recorder", .send = record, .send_pipe = dummy_send_pipe, .close = forget};

static void not_expected(void *arg, const struct error *reason, int64_t delay_ms)
{
    (void)arg;
    (void)delay_ms;
    cr_assert(0, "the connection has failed: %s", reason->message);
}

static void channel_failed(void *arg, unsigned index, int code)
{
    (void)arg;
    cr_assert(0, "channel %u has failed: %d", index, code);
}

static void begin(uint32_t id, bool compress)
{
    conn = (struct connection){.channels = channels, .channel_count = CHANNELS, .failed = not_expected};
    gate_init(&conn.gate, 1u << 30);
    for (unsigned c = 0; c < CHANNELS; c++) {
        struct recorder *r = &recorders[c];
        *r = (struct recorder){.base = {.ops = &recorder_ops, .own = r, .traits.copy_max = CHANNEL_COPY_MAX}};
        channel_init(&channels[c], c, &r->base, &conn.gate, channel_failed, NULL);
    }
    if (compress)
        conn.compressor = compressor_new(1);
    decompressor = decompressor_new();
    file = file_new(id, "x");
    cr_assert(ne(ptr, file, NULL));
    cr_assert(zero(int, file_set_channels(file, CHANNELS, 0)));
    image = calloc(1, IMAGE);
    expected = calloc(1, IMAGE);
    cr_assert(ne(ptr, image, NULL));
    cr_assert(ne(ptr, expected, NULL));
    cr_assert(ne(ptr, decompressor, NULL));
}

static void end(void)
{
    cr_expect(eq(u64, conn.gate.used, 0), "the gate got everything back");
    for (unsigned c = 0; c < CHANNELS; c++) {
        channel_fini(&channels[c]);
        free(recorders[c].bytes);
    }
    compressor_free(conn.compressor);
    decompressor_free(decompressor);
    gate_fini(&conn.gate);
    file_put(file);
    free(image);
    free(expected);
}

/* Zeros of the channel's stripes of [from, to). */
static void clear(unsigned channel, uint64_t from, uint64_t to)
{
    for (uint64_t at = from, next; at < to; at = next) {
        next = (at / STRIPE + 1) * STRIPE;
        if (next > to)
            next = to;
        if (file_home(file, at) == channel)
            memset(image + at, 0, next - at);
    }
}

/* Whole pages: those whose bit is set have bytes. */
static void apply_pages(const struct packet *packet, const char *raw)
{
    const char *bytes = raw + wire_bitmap_size(packet->range);

    for (uint64_t page = 0; page < packet->range / PAGE; page++) {
        uint64_t word;
        memcpy(&word, raw + page / 64 * 8, 8);
        char *to = image + packet->offset + page * PAGE;
        if (le64toh(word) >> page % 64 & 1) {
            memcpy(to, bytes, PAGE);
            bytes += PAGE;
            seen.pages++;
            seen.bytes += PAGE;
        } else {
            memset(to, 0, PAGE);
            seen.zero_pages++;
        }
    }
    cr_assert(eq(u64, (uint64_t)(bytes - raw), packet->raw_length));
}

static void apply(unsigned channel, const struct packet *packet, const char *raw)
{
    switch (packet->type) {
    case WIRE_DATA:
        cr_assert(eq(u32, file_home(file, packet->offset), channel));
        memcpy(image + packet->offset, raw, packet->raw_length);
        seen.bytes += packet->raw_length;
        seen.pages += (packet->offset + packet->raw_length - 1) / PAGE - packet->offset / PAGE + 1;
        break;
    case WIRE_ZERO:
        cr_assert(eq(u32, file_home(file, packet->offset), channel));
        clear(channel, packet->offset, packet->offset + packet->range);
        seen.zero_pages += packet->range / PAGE;
        break;
    case WIRE_PAGES:
        cr_assert(eq(u32, file_home(file, packet->offset), channel));
        apply_pages(packet, raw);
        break;
    case WIRE_DISCARD:
        clear(channel, packet->offset, packet->offset + packet->range);
        seen.discarded_bytes += file_home_bytes(file, channel, packet->offset, packet->range);
        break;
    case WIRE_TRUNCATE:
        clear(channel, packet->offset, IMAGE);
        truncation_seen = packet->range;
        break;
    default:
        cr_assert(0, "packet type %d", (int)packet->type);
    }
}

/* Applies what has been sent on a channel. Return: how many packets. */
static unsigned receive(unsigned channel, bool checksum)
{
    static char raw[COMPRESSION_RAW_MAX];
    struct recorder *r = &recorders[channel];
    unsigned count = 0;
    struct packet packet;
    struct error err;

    for (; r->seen < r->have; count++) {
        CHECK_OK(wire_packet_decode((const struct wire_packet *)(r->bytes + r->seen), &packet, &err));
        const uint8_t *payload = r->bytes + r->seen + sizeof(struct wire_packet);
        cr_assert(eq(u32, packet.channel, channel));
        cr_assert(eq(u32, packet.file, file->id));
        cr_assert(eq(u64, packet.sequence, ++r->sequence));
        cr_assert(r->seen + sizeof(struct wire_packet) + packet.length <= r->have);
        uint64_t check = checksum && packet.length ? wire_payload_check(payload, packet.length) : 0;
        cr_assert(eq(u64, packet.payload_check, check), "packet %lu", (unsigned long)packet.sequence);
        if (packet.flags & WIRE_PACKET_ZSTD)
            CHECK_OK(decompressor_unpack(decompressor, payload, packet.length, raw, packet.raw_length, &err));
        else
            memcpy(raw, payload, packet.length);
        apply(channel, &packet, raw);
        r->seen += sizeof(struct wire_packet) + packet.length;
        seen.packets++;
        seen.digest += packet.check;
        last_seen[channel] = packet.sequence;
    }
    return count;
}

static unsigned receive_all(bool checksum)
{
    unsigned count = 0;

    for (unsigned c = 0; c < CHANNELS; c++)
        count += receive(c, checksum);
    return count;
}

/* What the source has counted is what the destination has seen. */
static void check_totals(void)
{
    struct file_totals totals = file_totals(file);

    cr_expect(eq(u64, totals.packets, seen.packets));
    cr_expect(eq(u64, totals.digest, seen.digest));
    cr_expect(eq(u64, totals.bytes, seen.bytes));
    cr_expect(eq(u64, totals.pages, seen.pages));
    cr_expect(eq(u64, totals.zero_pages, seen.zero_pages));
    cr_expect(eq(u64, totals.discarded_bytes, seen.discarded_bytes));
    for (unsigned c = 0; c < CHANNELS; c++)
        cr_expect(eq(u64, counter_get(&file->per_channel[c].last_sequence), last_seen[c]), "on channel %u",
                  c);
}

static const struct plan_rules plain = {.copy_max = CHANNEL_COPY_MAX, .large = PLAN_KEPT};

static int try_write(const struct plan_rules *rules, struct sender_write *write, const char *buf, size_t len,
                     uint64_t offset)
{
    struct path_bytes bytes = {.buf = buf, .offset = offset, .gated = true};

    plan_write(&plan, rules, buf, len, offset);
    return sender_accept(write, &conn, file, &plan, &bytes, NULL);
}

static void write_all(const struct plan_rules *rules, const char *buf, size_t len, uint64_t offset)
{
    struct sender_write write;

    cr_assert(zero(int, try_write(rules, &write, buf, len, offset)));
    memcpy(expected + offset, buf, len);
    sender_finish(&write);
}

/* Fills with runs of data and of zeros, of whole pages and less. */
static void fill(char *buf, size_t len, unsigned *seed)
{
    for (size_t at = 0, run; at < len; at += run) {
        int kind = rand_r(seed) % 3;
        run = (size_t)rand_r(seed) % (5 * PAGE) + 1;
        if (run > len - at)
            run = len - at;
        memset(buf + at, kind == 0 ? 0 : rand_r(seed), run);
        for (size_t i = 0; kind == 2 && i < run; i++)
            buf[at + i] = (char)rand_r(seed);
    }
}

static size_t random_length(unsigned *seed)
{
    static const size_t most[] = {10, PAGE, 3 * PAGE, 20000, STRIPE / 2, 2 * STRIPE, PLAN_WRITE_MAX};

    return (size_t)rand_r(seed) % most[(size_t)rand_r(seed) % ARRAY_LENGTH(most)] + 1;
}

/* Writes, holes and truncations at random places, of a RAM or of a device. */
static void random_work(uint32_t id, bool zero_pages, bool compress, bool checksum, unsigned seed)
{
    const struct plan_rules rules = {.copy_max = CHANNEL_COPY_MAX,
                                     .large = PLAN_KEPT,
                                     .zero_pages = zero_pages,
                                     .compress = compress,
                                     .checksum = checksum};
    char *buf = malloc(PLAN_WRITE_MAX);
    uint64_t accepted = 0, truncations = 0;

    begin(id, compress);
    for (int i = 0; i < 120; i++) {
        size_t len = random_length(&seed);
        uint64_t offset = (uint64_t)rand_r(&seed) % (IMAGE - len + 1);
        if (i % 4 == 1)
            offset = offset / PAGE * PAGE;
        uint64_t size = atomic_load(&file->size);
        if (i % 10 == 8 && offset + len <= size) {
            cr_assert(zero(int, sender_discard(&conn, file, offset, len, NULL)));
            memset(expected + offset, 0, len);
            accepted += len;
        } else if (i % 20 == 19) {
            cr_assert(zero(int, sender_truncate(&conn, file, offset, NULL)));
            memset(expected + offset, 0, IMAGE - offset);
            cr_expect(eq(u64, atomic_load(&file->size), offset));
            truncations++;
        } else {
            fill(buf, len, &seed);
            write_all(&rules, buf, len, offset);
            accepted += len;
            cr_expect(eq(u64, atomic_load(&file->size), offset + len > size ? offset + len : size));
        }
    }
    receive_all(checksum);
    cr_expect(zero(int, memcmp(image, expected, IMAGE)), "rules: zero_pages %d, compress %d, checksum %d",
              zero_pages, compress, checksum);
    check_totals();
    cr_expect(eq(u64, file_totals(file).covered, accepted));
    cr_expect(eq(u64, file->truncations, truncations));
    cr_expect(eq(u64, truncation_seen, truncations));
    cr_expect(atomic_load(&file->touched));
    end();
    free(buf);
    seen = (struct file_totals){0};
    memset(last_seen, 0, sizeof(last_seen));
    truncation_seen = 0;
}

Test(sender, what_is_written_arrives)
{
    for (unsigned rules = 0; rules < 8; rules++)
        random_work(rules % 2 ? WIRE_RAM : 5, rules & 1, rules & 2, rules & 4, 4711 + rules);
}

/* However small they are, so many writes are seen out at once: each has a thread. What is copied has none. */
Test(sender, the_gate_bounds_writes)
{
    static char buf[CHANNEL_COPY_MAX + PAGE];
    struct interrupt hit = {.hit = true};
    struct sender_write writes[SENDER_WRITES_MAX], more;
    struct path_bytes bytes = {.buf = buf, .gated = true};

    begin(5, false);
    plan_write(&plan, &plain, buf, PAGE, 0);
    cr_assert(zero(int, sender_accept(&more, &conn, file, &plan, &bytes, NULL)));
    cr_expect(eq(u64, conn.gate.used, plan.cost), "a copied one costs what it is");
    sender_finish(&more);
    plan_write(&plan, &plain, buf, sizeof(buf), 0);
    for (unsigned i = 0; i < SENDER_WRITES_MAX; i++)
        cr_assert(zero(int, sender_accept(&writes[i], &conn, file, &plan, &bytes, NULL)), "write %u", i);
    cr_expect(eq(int, sender_accept(&more, &conn, file, &plan, &bytes, &hit), -EINTR));
    sender_finish(&writes[0]);
    cr_assert(zero(int, sender_accept(&more, &conn, file, &plan, &bytes, &hit)));
    for (unsigned i = 1; i < SENDER_WRITES_MAX; i++)
        sender_finish(&writes[i]);
    sender_finish(&more);
    end();
    seen = (struct file_totals){0};
}

/* A write in the order as a whole or not at all: with a channel closed, none of its packets has a place. */
Test(sender, a_closed_channel)
{
    static char buf[2 * STRIPE];
    struct sender_write write;

    begin(WIRE_RAM, false);
    memset(buf, 'a', sizeof(buf));
    write_all(&plain, buf, 3, 0);
    channel_close(&channels[1], CHANNEL_SEALED);
    cr_expect(eq(int, try_write(&plain, &write, buf, sizeof(buf), 0), -EAGAIN));
    cr_expect(eq(u64, conn.gate.used, 0));
    cr_expect(eq(u64, channels[0].last_sequence, 1));
    cr_expect(eq(u64, atomic_load(&file->size), 3));
    cr_expect(eq(int, sender_discard(&conn, file, 0, 2 * STRIPE, NULL), -EAGAIN));
    cr_expect(eq(int, sender_truncate(&conn, file, 0, NULL), -EAGAIN));
    cr_expect(eq(u64, atomic_load(&file->size), 3));
    cr_expect(eq(u64, file->truncations, 0));
    cr_expect(eq(u64, conn.gate.used, 0));
    /* What does not need it goes on. */
    write_all(&plain, buf, STRIPE, 2 * STRIPE);
    cr_assert(zero(int, sender_discard(&conn, file, 2 * STRIPE, 2 * STRIPE, NULL)));
    memset(expected + 2 * STRIPE, 0, 2 * STRIPE);
    channel_reopen(&channels[1]);
    write_all(&plain, buf, sizeof(buf), 0);
    receive_all(false);
    cr_expect(zero(int, memcmp(image, expected, IMAGE)));
    check_totals();
    end();
}

/* A hole goes to the channels that have something of it, a truncation to all. */
Test(sender, who_is_told)
{
    begin(WIRE_RAM, false);
    cr_assert(zero(int, sender_discard(&conn, file, STRIPE + 5, 10, NULL)));
    cr_expect(eq(u32, receive(0, false), 0));
    cr_expect(eq(u32, receive(1, false), 1));
    cr_expect(eq(u32, receive(2, false), 0));
    cr_assert(zero(int, sender_discard(&conn, file, 2 * STRIPE - 1, 2, NULL)));
    cr_expect(eq(u32, receive(0, false), 0));
    cr_expect(eq(u32, receive(1, false), 1));
    cr_expect(eq(u32, receive(2, false), 1));
    cr_assert(zero(int, sender_discard(&conn, file, 0, IMAGE, NULL)));
    cr_expect(eq(u32, receive_all(false), 3));
    cr_assert(zero(int, sender_truncate(&conn, file, 7, NULL)));
    cr_expect(eq(u32, receive_all(false), 3));
    check_totals();
    end();
}

/* Emptying a file does not count as something that was written to it; anything else does. */
Test(sender, touched)
{
    begin(5, false);
    cr_assert(zero(int, sender_truncate(&conn, file, 0, NULL)));
    cr_expect(not(atomic_load(&file->touched)));
    cr_assert(zero(int, sender_truncate(&conn, file, 1, NULL)));
    cr_expect(atomic_load(&file->touched));
    atomic_store(&file->touched, false);
    write_all(&plain, "x", 1, 0);
    cr_expect(atomic_load(&file->touched));
    end();
}

/* The gate is full: an interrupt and its end let nothing in, and what it does not count passes. */
Test(sender, the_gate)
{
    static char buf[STRIPE];
    struct path_bytes bytes = {.buf = buf, .gated = true};
    struct sender_write write;
    struct interrupt interrupt = {.hit = true};

    begin(WIRE_RAM, false);
    cr_assert(zero(int, gate_enter(&conn.gate, conn.gate.limit, NULL)));
    plan_write(&plan, &plain, buf, STRIPE, 0);
    cr_expect(eq(int, sender_accept(&write, &conn, file, &plan, &bytes, &interrupt), -EINTR));
    cr_expect(eq(int, sender_discard(&conn, file, 0, 1, &interrupt), -EINTR));
    cr_expect(eq(int, sender_truncate(&conn, file, 1, &interrupt), -EINTR));
    bytes.gated = false;
    cr_assert(zero(int, sender_accept(&write, &conn, file, &plan, &bytes, NULL)));
    sender_finish(&write);
    cr_expect(eq(u64, conn.gate.used, conn.gate.limit));
    cr_expect(eq(u32, receive_all(false), 1));
    gate_close(&conn.gate);
    bytes.gated = true;
    cr_expect(eq(int, sender_accept(&write, &conn, file, &plan, &bytes, NULL), -ECANCELED));
    cr_expect(eq(int, sender_discard(&conn, file, 0, 1, NULL), -ECANCELED));
    gate_leave(&conn.gate, conn.gate.limit);
    end();
}

Test(sender, a_removed_file_takes_nothing)
{
    static char buf[PLAN_WRITE_MAX];
    struct sender_write write;

    begin(5, false);
    atomic_store(&file->removed, true);
    cr_assert(zero(int, try_write(&plain, &write, buf, sizeof(buf), 1)));
    cr_expect(eq(u64, conn.gate.used, 0));
    cr_expect(eq(u32, write.count, 0));
    sender_finish(&write);
    cr_expect(zero(int, sender_discard(&conn, file, 0, 10, NULL)));
    cr_expect(zero(int, sender_truncate(&conn, file, 10, NULL)));
    cr_expect(eq(u64, atomic_load(&file->size), 0));
    cr_expect(eq(u32, receive_all(false), 0));
    check_totals();
    end();
}

/* What is still to be made keeps its place: what comes after it waits, and nothing overtakes it. */
Test(sender, what_is_made_later_holds_its_place)
{
    static char buf[PLAN_WRITE_MAX];
    struct plan_rules packing = plain;
    struct sender_write first;
    unsigned seed = 1;

    packing.compress = packing.zero_pages = true;
    begin(WIRE_RAM, true);
    fill(buf, sizeof(buf), &seed);
    /* More packets than a write has entries of its own for. */
    cr_assert(zero(int, try_write(&packing, &first, buf, sizeof(buf), 5 * PAGE - 1)));
    cr_expect(first.count > ARRAY_LENGTH(first.few));
    cr_expect(eq(u32, first.channels, CHANNELS));
    memcpy(expected + 5 * PAGE - 1, buf, sizeof(buf));
    write_all(&packing, "newer", 5, 6 * PAGE);
    cr_expect(eq(u64, recorders[1].have, 0));
    cr_expect(eq(u64, recorders[2].have, 0));
    sender_finish(&first);
    receive_all(false);
    cr_expect(zero(int, memcmp(image, expected, IMAGE)));
    check_totals();
    end();
}

Test(sender, out_of_a_pipe)
{
    static char buf[40000];
    struct path_bytes bytes = {.gated = true};
    struct sender_write sent;
    int ends[2];

    begin(WIRE_RAM, false);
    memset(buf, 'p', sizeof(buf));
    cr_assert(zero(int, pipe(ends)));
    cr_assert(eq(sz, (size_t)write(ends[1], buf, sizeof(buf)), sizeof(buf)));
    bytes.pipe = ends[0];
    plan_pipe(&plan, &plain, sizeof(buf), STRIPE + 9);
    cr_assert(zero(int, sender_accept(&sent, &conn, file, &plan, &bytes, NULL)));
    sender_finish(&sent);
    memcpy(expected + STRIPE + 9, buf, sizeof(buf));
    receive_all(false);
    cr_expect(zero(int, memcmp(image, expected, IMAGE)));
    cr_expect(eq(u64, channels[1].spliced_bytes, sizeof(buf)));
    check_totals();
    end();
    close(ends[0]);
    close(ends[1]);
}

/* Large payloads come from the mapping as they are when they are sent, what is copied from the buffer. */
Test(sender, out_of_a_mapping)
{
    static char map[3 * STRIPE], buf[STRIPE];
    struct plan_rules rules = plain;
    struct path_bytes bytes = {.buf = buf, .offset = STRIPE, .map = map};
    struct sender_write write;

    begin(WIRE_RAM, false);
    rules.large = PLAN_MAPPED;
    memset(map, 'm', sizeof(map));
    memset(buf, 'b', sizeof(buf));
    plan_begin(&plan, &rules);
    plan_data(&plan, STRIPE, PAGE);
    plan_data(&plan, STRIPE + 8 * PAGE, 10 * PAGE);
    plan_end(&plan, buf, STRIPE);
    cr_assert(zero(int, sender_accept(&write, &conn, file, &plan, &bytes, NULL)));
    cr_expect(eq(u32, write.count, 1));
    map[STRIPE + 9 * PAGE] = 'n'; /* it is sent from where it is */
    sender_finish(&write);
    memcpy(expected + STRIPE, buf, PAGE);
    memcpy(expected + STRIPE + 8 * PAGE, map + STRIPE + 8 * PAGE, 10 * PAGE);
    receive_all(false);
    cr_expect(zero(int, memcmp(image, expected, IMAGE)));
    check_totals();
    end();
}
