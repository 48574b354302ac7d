/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sending side of a data channel. What comes out at the other end of the
 * connection is parsed as a destination would: sequence numbers, checks, payloads.
 */
#include "channel.h"
#include "dummy.h"
#include "blocked.h"
#include "check.h"
#include "clock.h"
#include "link.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * A connection whose sends go into a buffer, when the valve is open
 */
struct valve {
    struct transport base;
    pthread_mutex_t lock; /* guards the rest */
    pthread_cond_t changed;
    bool open;
    unsigned let; /* so many sends pass though it is not open */
    int broken; /* not 0: what a send returns */
    bool stuck;   /* close does not return */
    unsigned sends, closes;
    struct transport_figures figures;
    uint8_t *bytes;
    size_t have;
};

static int valve_send(struct transport *t, const struct iovec *iov, int n)
{
    struct valve *v = (struct valve *)t;

    pthread_mutex_lock(&v->lock);
    while (!v->open && !v->let && !v->broken)
        pthread_cond_wait(&v->changed, &v->lock);
    v->let -= !v->open && v->let;
    int ret = v->broken;
    for (int i = 0; i < n && ret == 0; i++) {
        v->bytes = realloc(v->bytes, v->have + iov[i].iov_len);
        memcpy(v->bytes + v->have, iov[i].iov_base, iov[i].iov_len);
        v->have += iov[i].iov_len;
    }
    v->sends++;
    pthread_mutex_unlock(&v->lock);
    return ret;
}

static void valve_close(struct transport *t)
{
    struct valve *v = (struct valve *)t;

    pthread_mutex_lock(&v->lock);
    while (v->stuck)
        pthread_cond_wait(&v->changed, &v->lock);
    v->closes++;
    pthread_mutex_unlock(&v->lock);
}

static void valve_figures(struct transport *t, bool of_group, struct transport_figures *out)
{
    struct valve *v = (struct valve *)t;

    out->partial_drains += v->figures.partial_drains;
    out->rnr_naks += v->figures.rnr_naks;
    out->retries += v->figures.retries;
    if (!of_group)
        return;
    out->registrations += v->figures.registrations;
    out->evictions += v->figures.evictions;
    out->registered_bytes += v->figures.registered_bytes;
}

static const struct transport_ops valve_ops = {
    .name = "valve", .send = valve_send, .figures = valve_figures, .close = valve_close};

static void valve_set(struct valve *v, bool open, int broken)
{
    pthread_mutex_lock(&v->lock);
    v->open = open;
    v->broken = broken;
    pthread_cond_broadcast(&v->changed);
    pthread_mutex_unlock(&v->lock);
}

/* A channel in front of a valve. */
struct bench {
    struct channel ch;
    struct gate gate;
    struct valve valve;
    atomic_uint failures;
    unsigned failed_index;
    int failed_code;
};

static void note_failure(void *arg, unsigned index, int code)
{
    struct bench *b = arg;

    b->failed_index = index;
    b->failed_code = code;
    atomic_fetch_add(&b->failures, 1);
}

static void bench_init_with(struct bench *b, bool open, uint32_t copy_max)
{
    *b = (struct bench){.valve = {.base = {.ops = &valve_ops, .traits.copy_max = copy_max}, .open = open}};
    pthread_mutex_init(&b->valve.lock, NULL);
    pthread_cond_init(&b->valve.changed, NULL);
    gate_init(&b->gate, 1u << 30);
    channel_init(&b->ch, 5, &b->valve.base, &b->gate, note_failure, b);
}

static void bench_init(struct bench *b, bool open)
{
    bench_init_with(b, open, CHANNEL_COPY_MAX);
}

static void bench_fini(struct bench *b)
{
    channel_fini(&b->ch);
    cr_expect(eq(u64, b->gate.used, 0), "the gate got everything back");
    gate_fini(&b->gate);
    pthread_mutex_destroy(&b->valve.lock);
    pthread_cond_destroy(&b->valve.changed);
    free(b->valve.bytes);
}

/* Finishes as the sender does: a packet that was copied has no entry. */
static void finish(struct channel *ch, uint32_t length, struct channel_entry *entry)
{
    if (channel_copies(ch, length))
        channel_send_copied(ch);
    else
        channel_finish_entry(ch, entry);
}

/* Adds a packet as outgoing.c does. False: the channel is closed. */
static bool add(struct channel *ch, uint32_t file, const void *payload, uint32_t length, struct channel_entry *entry,
                uint64_t *check)
{
    struct packet packet = {
        .type = WIRE_DATA,
        .file = file,
        .length = length,
        .raw_length = length,
        .payload_check = wire_payload_check(payload, length),
    };
    bool copies = channel_copies(ch, length);
    uint64_t made = 0;

    gate_enter(ch->gate, length, NULL);
    pthread_mutex_lock(&ch->lock);
    bool open = ch->closed == CHANNEL_OPEN;
    if (open && copies)
        channel_reserve(ch, 1, length);
    if (open)
        made = copies ? channel_add_copied(ch, &packet, payload, length)
                      : channel_add(ch, &packet, payload, length, entry);
    pthread_mutex_unlock(&ch->lock);
    if (!open)
        gate_leave(ch->gate, length);
    if (check)
        *check += made;
    return open;
}

/* Reads packets off a stream of bytes, and checks what every receiver checks. */
struct parser {
    uint64_t sequence; /* of the last packet */
    uint64_t digest;
    char problem[160]; /* empty: none */
};

static bool parse_header(struct parser *p, const struct wire_packet *wire, unsigned channel, struct packet *packet)
{
    struct error err = {0};

    if (wire_packet_decode(wire, packet, &err) < 0) {
        snprintf(p->problem, sizeof(p->problem), "%.150s", err.message);
        return false;
    }
    if (packet->channel != channel || packet->sequence != p->sequence + 1) {
        snprintf(p->problem, sizeof(p->problem), "packet %llu of channel %u after packet %llu",
                 (unsigned long long)packet->sequence, packet->channel, (unsigned long long)p->sequence);
        return false;
    }
    p->sequence++;
    p->digest += packet->check;
    return true;
}

static bool parse_payload(struct parser *p, const struct packet *packet, const void *payload)
{
    if (!packet->length || wire_payload_check(payload, packet->length) == packet->payload_check)
        return true;
    snprintf(p->problem, sizeof(p->problem), "the payload of packet %llu is damaged",
             (unsigned long long)packet->sequence);
    return false;
}

/* Parses what went through a valve; the number of packets. The first byte of each payload is put together in @first. */
static unsigned parse_valve(struct bench *b, struct parser *p, char *first, size_t size)
{
    size_t at = 0;
    unsigned n = 0;

    while (at < b->valve.have && !p->problem[0]) {
        struct packet packet;
        struct wire_packet wire;
        cr_assert(le(sz, at + sizeof(wire), b->valve.have));
        memcpy(&wire, b->valve.bytes + at, sizeof(wire));
        at += sizeof(wire);
        if (!parse_header(p, &wire, 5, &packet))
            break;
        cr_assert(le(sz, at + packet.length, b->valve.have));
        parse_payload(p, &packet, b->valve.bytes + at);
        if (n < size)
            first[n] = (char)b->valve.bytes[at];
        at += packet.length;
        n++;
    }
    cr_expect(eq(str, p->problem, ""));
    return n;
}

/*
 * Order and content, with many threads
 */

#define WRITERS 6
#define PACKETS 700

/* What every payload begins with. */
struct stamp {
    uint32_t writer, number;
    uint64_t seed;
};

static const uint32_t sizes[] = {
    sizeof(struct stamp), 17, 100, 4096, CHANNEL_COPY_MAX - 1, CHANNEL_COPY_MAX, CHANNEL_COPY_MAX + 1, 65536, 200000, 1u << 20,
};

struct writer {
    struct worker worker;
    struct channel *ch;
    uint32_t id;
    uint64_t digest;
};

static void write_packets(void *arg)
{
    struct writer *w = arg;
    uint8_t *buf = malloc(1u << 20);
    unsigned random = w->id * 7919 + 1;

    for (uint32_t i = 0; i < PACKETS; i++) {
        struct channel_entry entry;
        random = random * 1103515245 + 12345;
        /* Mostly small ones; the large ones are rare enough for the time that this takes. */
        unsigned pick = random >> 16;
        uint32_t length = sizes[pick % 16 ? pick / 16 % 7 : pick / 16 % ARRAY_LENGTH(sizes)];
        struct stamp stamp = {.writer = w->id, .number = i, .seed = random};
        pattern(buf, length, random);
        memcpy(buf, &stamp, sizeof(stamp));
        if (!add(w->ch, w->id, buf, length, &entry, &w->digest))
            break;
        finish(w->ch, length, &entry);
        /* From here on the buffer is the writer's again. */
        memset(buf, 0xdd, length);
    }
    free(buf);
}

struct receiver {
    struct worker worker;
    struct transport *t;
    struct parser parser;
    uint32_t next[WRITERS];
    uint64_t wire_bytes;
};

static void receive_packets(void *arg)
{
    struct receiver *r = arg;
    uint8_t *buf = malloc(1u << 20), *want = malloc(1u << 20);
    struct wire_packet wire;

    while (!r->parser.problem[0] && transport_recv_all(r->t, &wire, sizeof(wire), NULL) == 0) {
        struct packet packet;
        struct stamp stamp;
        if (!parse_header(&r->parser, &wire, 5, &packet))
            break;
        if (transport_recv_all(r->t, buf, packet.length, NULL) < 0) {
            strcpy(r->parser.problem, "the stream ended in a packet");
            break;
        }
        r->wire_bytes += sizeof(wire) + packet.length;
        if (!parse_payload(&r->parser, &packet, buf))
            break;
        memcpy(&stamp, buf, sizeof(stamp));
        if (stamp.writer >= WRITERS || stamp.writer != packet.file || stamp.number != r->next[stamp.writer]) {
            snprintf(r->parser.problem, sizeof(r->parser.problem), "packet %u of writer %u came out of order",
                     stamp.number, stamp.writer);
            break;
        }
        r->next[stamp.writer]++;
        pattern(want, packet.length, (unsigned)stamp.seed);
        if (memcmp(buf + sizeof(stamp), want + sizeof(stamp), packet.length - sizeof(stamp)))
            strcpy(r->parser.problem, "the payload is another packet's");
    }
    free(buf);
    free(want);
}

Test(channel, order_is_preserved)
{
    struct link link;
    struct gate gate;
    struct channel ch;
    struct bench unused = {0};
    struct receiver receiver = {0};
    struct writer writers[WRITERS] = {0};
    uint64_t digest = 0;

    link_pair(&link);
    gate_init(&gate, 4u << 20);
    channel_init(&ch, 5, link.a, &gate, note_failure, &unused);
    receiver.t = link.b;
    worker_start(&receiver.worker, receive_packets, &receiver);
    for (uint32_t i = 0; i < WRITERS; i++) {
        writers[i].ch = &ch;
        writers[i].id = i;
        worker_start(&writers[i].worker, write_packets, &writers[i]);
    }
    for (int i = 0; i < WRITERS; i++) {
        worker_join(&writers[i].worker);
        digest += writers[i].digest;
    }
    cr_expect(eq(int, channel_flush(&ch, WRITERS * PACKETS, NULL), 0));
    channel_close(&ch, CHANNEL_SEALED);
    uint64_t wire_bytes = ch.wire_bytes;
    transport_shutdown(link.a);
    worker_join(&receiver.worker);
    cr_expect(eq(str, receiver.parser.problem, ""));
    cr_expect(eq(u64, receiver.parser.sequence, WRITERS * PACKETS));
    cr_expect(eq(u64, receiver.parser.digest, digest), "both ends add up the same digest");
    cr_expect(eq(u64, receiver.wire_bytes, wire_bytes), "and the same bytes");
    cr_expect(eq(u64, gate.used, 0));
    cr_expect(eq(uint, unused.failures, 0));
    channel_disconnect(&ch);
    channel_fini(&ch);
    gate_fini(&gate);
    transport_close(link.b);
}

/*
 * Who waits, and who does not
 */

/* A writer of one packet. */
struct one {
    struct worker worker;
    struct channel *ch;
    uint8_t *payload;
    uint32_t length;
    struct channel_entry entry;
    bool added;
};

static void finish_one(void *arg)
{
    struct one *o = arg;

    finish(o->ch, o->length, &o->entry);
}

/* Adds here, so that the order is known, and finishes in a thread. */
static void one_start(struct one *o, struct bench *b, char mark, uint32_t length)
{
    o->ch = &b->ch;
    o->length = length;
    o->payload = malloc(length);
    pattern(o->payload, length, (unsigned)mark);
    o->payload[0] = (uint8_t)mark;
    o->added = add(&b->ch, 0, o->payload, length, &o->entry, NULL);
    cr_assert(o->added);
    worker_start(&o->worker, finish_one, o);
}

static void one_join(struct one *o)
{
    worker_join(&o->worker);
    free(o->payload);
}

Test(channel, small_packets_are_copied_and_travel_together)
{
    struct bench b;
    struct one first;
    struct parser parser = {0};
    char marks[101] = "";

    bench_init(&b, false);
    one_start(&first, &b, 'A', 100);
    worker_await_sleep(&first.worker);
    for (int i = 1; i < 100; i++) {
        uint8_t payload[100];
        struct channel_entry entry;
        memset(payload, 'B', sizeof(payload));
        add(&b.ch, 0, payload, sizeof(payload), &entry, NULL);
        /* It was copied: the buffer is the caller's already, and it does not wait. */
        memset(payload, 'X', sizeof(payload));
        finish(&b.ch, sizeof(payload), &entry);
    }
    valve_set(&b.valve, true, 0);
    one_join(&first);
    cr_expect(eq(int, channel_flush(&b.ch, 100, NULL), 0));
    cr_expect(eq(uint, parse_valve(&b, &parser, marks, 100), 100));
    cr_expect(eq(chr, marks[0], 'A'));
    cr_expect(eq(sz, strspn(marks + 1, "B"), 99), "%s", marks);
    cr_expect(le(uint, b.valve.sends, 3), "%u sends for 100 small packets", b.valve.sends);
    bench_fini(&b);
}

Test(channel, large_packets_are_lent_until_they_are_sent)
{
    struct bench b;
    struct one ones[3];
    struct parser parser = {0};
    char marks[4] = "";

    bench_init(&b, false);
    for (int i = 0; i < 3; i++) {
        one_start(&ones[i], &b, (char)('A' + i), CHANNEL_COPY_MAX + 1);
        worker_await_sleep(&ones[i].worker);
        cr_expect(not(atomic_load(&ones[i].worker.done)), "the owner waits for its buffer");
    }
    valve_set(&b.valve, true, 0);
    for (int i = 0; i < 3; i++)
        one_join(&ones[i]);
    cr_expect(eq(uint, parse_valve(&b, &parser, marks, 3), 3));
    cr_expect(eq(str, marks, "ABC"));
    bench_fini(&b);
}

/* Many small packets while nobody takes any: they are all copied, in order, and the memory is given back later. */
Test(channel, copies_pile_up)
{
    enum { N = 64 };
    struct bench b;
    struct one first;
    struct parser parser = {0};
    char marks[N + 1] = "", want[N + 1] = "";
    uint8_t payload[CHANNEL_COPY_MAX];

    bench_init(&b, false);
    one_start(&first, &b, '!', CHANNEL_COPY_MAX);
    worker_await_sleep(&first.worker);
    want[0] = '!';
    for (int i = 1; i < N; i++) {
        struct channel_entry entry;
        memset(payload, '!' + i, sizeof(payload));
        cr_assert(add(&b.ch, 0, payload, sizeof(payload), &entry, NULL));
        finish(&b.ch, sizeof(payload), &entry);
        want[i] = (char)('!' + i);
    }
    cr_expect(eq(u64, b.gate.used, N * CHANNEL_COPY_MAX), "the gate bounds what is copied");
    valve_set(&b.valve, true, 0);
    one_join(&first);
    cr_expect(eq(int, channel_flush(&b.ch, N, NULL), 0));
    cr_expect(eq(uint, parse_valve(&b, &parser, marks, N), N));
    cr_expect(eq(str, marks, want));
    cr_expect(le(uint, b.ch.chunks.free_count, CHUNK_SPARE));
    bench_fini(&b);
}

/* The transport says up to what size a copy pays; but several copies fit into a chunk. */
Test(channel, the_transport_says_what_is_copied)
{
    static const struct {
        uint32_t says, copied;
    } cases[] = {{0, 0}, {1000, 1000}, {CHANNEL_COPY_MAX, CHANNEL_COPY_MAX}, {UINT32_MAX, CHANNEL_COPY_MAX}};

    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        struct bench b;
        bench_init_with(&b, true, cases[i].says);
        cr_expect(channel_copies(&b.ch, cases[i].copied), "%u", cases[i].says);
        cr_expect(not(channel_copies(&b.ch, cases[i].copied + 1)), "%u", cases[i].says);
        bench_fini(&b);
    }
}

/* Room for packets of every size that is copied is really there: channel_add_copied() asserts it. */
Test(channel, reserve)
{
    static const uint32_t lengths[] = {0, 1, 100, 4096, CHANNEL_COPY_MAX / 2 + 1, CHANNEL_COPY_MAX};
    static uint8_t payload[CHANNEL_COPY_MAX];

    for (size_t l = 0; l < ARRAY_LENGTH(lengths); l++) {
        for (unsigned n = 0; n < 50; n += 7) {
            struct bench b;
            struct parser parser = {0};
            bench_init(&b, true);
            pthread_mutex_lock(&b.ch.lock);
            cr_assert(zero(int, channel_reserve(&b.ch, n, n * lengths[l])));
            for (unsigned i = 0; i < n; i++) {
                struct packet packet = {
                    .type = lengths[l] ? WIRE_DATA : WIRE_TRUNCATE,
                    .length = lengths[l],
                    .raw_length = lengths[l],
                    .payload_check = wire_payload_check(payload, lengths[l]),
                };
                channel_add_copied(&b.ch, &packet, payload, 0);
            }
            pthread_mutex_unlock(&b.ch.lock);
            channel_send_copied(&b.ch);
            cr_expect(eq(uint, parse_valve(&b, &parser, NULL, 0), n));
            bench_fini(&b);
        }
    }
}

/* A write with small and large packets in turn, as one whose zero pages are found is: large ones end a chunk. */
Test(channel, reserve_with_large_packets_in_between)
{
    enum { N = 20 };
    static uint8_t large[CHANNEL_COPY_MAX + 1];
    static struct channel_entry entries[N];
    struct bench b;
    struct parser parser = {0};

    bench_init(&b, true);
    pthread_mutex_lock(&b.ch.lock);
    cr_assert(zero(int, channel_reserve(&b.ch, N, 0)));
    for (int i = 0; i < N; i++) {
        struct packet zero = {.type = WIRE_ZERO, .range = WIRE_PAGE_SIZE};
        struct packet data = {
            .type = WIRE_DATA,
            .length = sizeof(large),
            .raw_length = sizeof(large),
            .payload_check = wire_payload_check(large, sizeof(large)),
        };
        channel_add_copied(&b.ch, &zero, NULL, 0);
        channel_add(&b.ch, &data, large, 0, &entries[i]);
    }
    pthread_mutex_unlock(&b.ch.lock);
    for (int i = 0; i < N; i++)
        channel_finish_entry(&b.ch, &entries[i]);
    channel_send_copied(&b.ch);
    cr_expect(eq(uint, parse_valve(&b, &parser, NULL, 0), 2 * N));
    bench_fini(&b);
}

/*
 * Packets whose payload is made later
 */

/* A place in the queue, and a packet for it. */
struct later {
    struct worker worker;
    struct bench *b;
    struct packet packet;
    struct channel_entry entry;
    uint8_t payload[100];
};

static void later_add(struct later *l, struct bench *b, char mark)
{
    *l = (struct later){.b = b, .packet = {.type = WIRE_DATA, .length = 100, .raw_length = 100}};
    memset(l->payload, mark, sizeof(l->payload));
    l->packet.payload_check = wire_payload_check(l->payload, sizeof(l->payload));
    gate_enter(&b->gate, 100, NULL);
    pthread_mutex_lock(&b->ch.lock);
    channel_add_unmade(&b->ch, &l->packet, 100, &l->entry);
    pthread_mutex_unlock(&b->ch.lock);
}

static void later_finish(void *arg)
{
    struct later *l = arg;

    channel_finish_entry(&l->b->ch, &l->entry);
}

/* Makes the payload, and finishes in a thread. */
static void later_prepare(struct later *l)
{
    pthread_mutex_lock(&l->b->ch.lock);
    channel_made(&l->packet, l->payload, &l->entry);
    pthread_mutex_unlock(&l->b->ch.lock);
    worker_start(&l->worker, later_finish, l);
}

/* Two of them, prepared in either order, with a large packet and copied ones in between: the order is that of adding. */
Test(channel, unmade_packets_keep_their_place)
{
    for (int swapped = 0; swapped < 2; swapped++) {
        struct bench b;
        struct later first, second;
        struct one large;
        struct channel_entry entry;
        struct parser parser = {0};
        char marks[6] = "";
        bench_init(&b, true);
        later_add(&first, &b, 'A');
        add(&b.ch, 0, "B", 1, &entry, NULL);
        channel_send_copied(&b.ch);
        one_start(&large, &b, 'C', 100000);
        later_add(&second, &b, 'D');
        add(&b.ch, 0, "E", 1, &entry, NULL);
        channel_send_copied(&b.ch);
        worker_await_sleep(&large.worker);
        cr_expect(eq(uint, b.valve.sends, 0), "all wait for the first one");
        later_prepare(swapped ? &second : &first);
        worker_await_sleep(swapped ? &second.worker : &first.worker);
        cr_expect(eq(int, b.valve.have > 0, !swapped));
        later_prepare(swapped ? &first : &second);
        worker_join(&first.worker);
        worker_join(&second.worker);
        one_join(&large);
        cr_expect(eq(int, channel_flush(&b.ch, 5, NULL), 0));
        cr_expect(eq(uint, parse_valve(&b, &parser, marks, 5), 5));
        cr_expect(eq(str, marks, "ABCDE"));
        bench_fini(&b);
    }
}

/* The channel dies while a payload is made: the owner gets away, and nothing stays behind. */
Test(channel, unmade_packet_of_a_dead_channel)
{
    struct bench b;
    struct later later;
    struct one large;

    bench_init(&b, true);
    later_add(&later, &b, 'A');
    one_start(&large, &b, 'B', 100000);
    worker_await_sleep(&large.worker);
    channel_close(&b.ch, CHANNEL_DEAD);
    later_prepare(&later);
    worker_join(&later.worker);
    one_join(&large);
    channel_disconnect(&b.ch);
    cr_expect(eq(sz, b.valve.have, 0));
    cr_expect(eq(uint, b.failures, 0));
    bench_fini(&b);
}

/* Adds a payload of @count parts, each of some bytes of its own that follow one another in @bytes. */
static void add_parts(struct bench *b, const char *bytes, unsigned count, struct iovec *parts,
                      struct channel_entry *entry)
{
    struct packet packet = {.type = WIRE_DATA};

    for (unsigned i = 0; i < count; i++) {
        parts[i] = (struct iovec){(void *)(uintptr_t)(bytes + packet.length), i % 7 + 1};
        packet.length += i % 7 + 1;
    }
    packet.raw_length = packet.length;
    packet.payload_check = wire_payload_check(bytes, packet.length);
    pthread_mutex_lock(&b->ch.lock);
    channel_add_parts(&b->ch, &packet, parts, count, 0, entry);
    pthread_mutex_unlock(&b->ch.lock);
}

struct part_owner {
    struct worker worker;
    struct bench *b;
    struct channel_entry entry;
};

static void finish_parts(void *arg)
{
    struct part_owner *owner = arg;

    channel_finish_entry(&owner->b->ch, &owner->entry);
}

/* Payloads in few and in as many parts as there may be, among others: all in order, whole, and few a send. */
Test(channel, payloads_in_parts)
{
    static const unsigned counts[] = {1, 2, CHANNEL_PARTS_MAX, 100, 100, 100, CHANNEL_PARTS_MAX - 1, 3};
    static struct iovec parts[ARRAY_LENGTH(counts)][CHANNEL_PARTS_MAX];
    static struct part_owner owners[ARRAY_LENGTH(counts)];
    static char bytes[ARRAY_LENGTH(counts)][7 * CHANNEL_PARTS_MAX];
    struct bench b;
    struct channel_entry entry;
    struct parser parser = {0};
    struct one large;
    char marks[32] = "";

    bench_init(&b, false);
    /* While a send is held up, all others get their places. */
    one_start(&large, &b, '(', 100000);
    worker_await_sleep(&large.worker);
    for (unsigned i = 0; i < ARRAY_LENGTH(counts); i++) {
        pattern(bytes[i], sizeof(bytes[i]), i);
        bytes[i][0] = (char)('A' + i);
        owners[i].b = &b;
        add_parts(&b, bytes[i], counts[i], parts[i], &owners[i].entry);
        add(&b.ch, 0, "-", 1, &entry, NULL);
        worker_start(&owners[i].worker, finish_parts, &owners[i]);
    }
    valve_set(&b.valve, true, 0);
    one_join(&large);
    for (unsigned i = 0; i < ARRAY_LENGTH(counts); i++)
        worker_join(&owners[i].worker);
    channel_send_copied(&b.ch);
    cr_expect(eq(int, channel_flush(&b.ch, 2 * ARRAY_LENGTH(counts) + 1, NULL), 0));
    cr_expect(eq(uint, parse_valve(&b, &parser, marks, sizeof(marks) - 1), 2 * ARRAY_LENGTH(counts) + 1));
    cr_expect(eq(str, marks, "(A-B-C-D-E-F-G-H-"));
    cr_expect(eq(u64, b.ch.wire_bytes, b.valve.have));
    bench_fini(&b);
}

/* A packet that is sent as fast as 20 MB/s. */
struct paced {
    struct bench b;
    struct pace pace;
    struct one one;
};

/* Comes back when so many of its pieces have gone, and all the others wait. */
static struct paced *paced_begin(unsigned let)
{
    struct paced *p = calloc(1, sizeof(*p));
    uint64_t sent = 0;

    bench_init(&p->b, false);
    p->b.valve.let = let;
    pace_init(&p->pace, 20000000);
    p->b.ch.pace = &p->pace;
    one_start(&p->one, &p->b, 'A', 1 << 20);
    while (sent < let * 200000) {
        pthread_mutex_lock(&p->b.ch.lock);
        sent = p->b.ch.wire_bytes;
        pthread_mutex_unlock(&p->b.ch.lock);
        sched_yield();
    }
    return p;
}

static void paced_end(struct paced *p)
{
    bench_fini(&p->b);
    pace_fini(&p->pace);
    free(p);
}

/* Where there is a rate a packet goes in pieces, and each counts when it is sent. */
Test(channel, paced_in_pieces)
{
    struct paced *p = paced_begin(3);
    struct parser parser = {0};
    char first[2];

    cr_expect(eq(u64, p->b.ch.wire_bytes, 600000));
    cr_expect(zero(u64, p->b.ch.sent_sequence));
    valve_set(&p->b.valve, true, 0);
    one_join(&p->one);
    cr_expect(eq(uint, p->b.valve.sends, 6));
    cr_expect(eq(uint, parse_valve(&p->b, &parser, first, sizeof(first)), 1));
    cr_expect(eq(u64, p->b.ch.wire_bytes, p->b.valve.have));
    cr_expect(eq(u64, p->b.ch.zerocopy.counters.copied_bytes, p->b.valve.have));
    cr_expect(eq(u64, p->b.ch.sent_sequence, 1));
    paced_end(p);
}

Test(channel, lost_between_pieces)
{
    struct paced *p = paced_begin(2);

    valve_set(&p->b.valve, false, -EPIPE);
    one_join(&p->one);
    cr_expect(eq(uint, atomic_load(&p->b.failures), 1));
    cr_expect(eq(int, p->b.failed_code, -EPIPE));
    cr_expect(eq(u64, p->b.ch.wire_bytes, 400000), "what has gone has gone");
    paced_end(p);
}

/* Packets without a payload: discards and truncations. */
Test(channel, no_payload)
{
    struct bench b;
    struct parser parser = {0};

    bench_init(&b, true);
    for (int i = 0; i < 1000; i++) {
        struct packet packet = {.type = WIRE_DISCARD, .range = 4096};
        pthread_mutex_lock(&b.ch.lock);
        channel_reserve(&b.ch, 1, 0);
        channel_add_copied(&b.ch, &packet, NULL, 0);
        pthread_mutex_unlock(&b.ch.lock);
        cr_expect(eq(u64, packet.sequence, (uint64_t)i + 1), "the caller's packet is filled in");
        cr_expect(eq(uint, packet.channel, 5));
        channel_send_copied(&b.ch);
    }
    cr_expect(eq(sz, b.valve.have, 1000 * sizeof(struct wire_packet)));
    parse_valve(&b, &parser, NULL, 0);
    cr_expect(eq(u64, parser.sequence, 1000));
    bench_fini(&b);
}

/*
 * Flush
 */

struct flusher {
    struct worker worker;
    struct channel *ch;
    uint64_t sequence;
    struct interrupt interrupt;
    int ret;
};

static void flush(void *arg)
{
    struct flusher *f = arg;

    f->ret = channel_flush(f->ch, f->sequence, &f->interrupt);
}

static void flusher_start(struct flusher *f, struct bench *b, uint64_t sequence)
{
    *f = (struct flusher){.ch = &b->ch, .sequence = sequence, .ret = 1};
    worker_start(&f->worker, flush, f);
    worker_await_sleep(&f->worker);
}

/* A migration that ends does not wait for a send that the peer holds up. */
Test(channel, close_wakes_a_flusher)
{
    struct bench b;
    struct one first;
    struct flusher flusher;

    bench_init(&b, false);
    one_start(&first, &b, 'A', 100);
    flusher_start(&flusher, &b, 1);
    channel_close(&b.ch, CHANNEL_DEAD);
    worker_join(&flusher.worker);
    cr_expect(eq(int, flusher.ret, -ECONNRESET));
    cr_expect(not(atomic_load(&first.worker.done)), "the send is still held up");
    valve_set(&b.valve, true, 0);
    one_join(&first);
    bench_fini(&b);
}

Test(channel, flush)
{
    struct bench b;
    struct one one;
    struct flusher flusher, interrupted;

    bench_init(&b, false);
    cr_expect(eq(int, channel_flush(&b.ch, 0, NULL), 0), "nothing was accepted: nothing to wait for");
    one_start(&one, &b, 'A', 100);
    cr_expect(eq(int, channel_flush(&b.ch, 0, NULL), 0), "nor for what came later");
    flusher_start(&flusher, &b, 1);
    flusher_start(&interrupted, &b, 1);
    cr_expect(not(atomic_load(&flusher.worker.done)));
    atomic_store(&interrupted.interrupt.hit, true);
    channel_kick(&b.ch);
    worker_join(&interrupted.worker);
    cr_expect(eq(int, interrupted.ret, -EINTR));
    worker_await_sleep(&flusher.worker);
    cr_expect(not(atomic_load(&flusher.worker.done)), "the other one waits on");
    valve_set(&b.valve, true, 0);
    worker_join(&flusher.worker);
    cr_expect(eq(int, flusher.ret, 0));
    one_join(&one);
    cr_expect(eq(int, channel_flush(&b.ch, 1, &interrupted.interrupt), 0), "who need not wait is not interrupted");
    channel_close(&b.ch, CHANNEL_SEALED);
    cr_expect(eq(int, channel_flush(&b.ch, UINT64_MAX, NULL), 0), "everything, of a sealed channel");
    bench_fini(&b);
}

/* What was flushed has been sent, and what came later has not: the sender changes hands in between. */
Test(channel, flush_while_the_next_is_sent)
{
    struct bench b;
    struct one first, next;
    struct flusher flusher;

    bench_init(&b, false);
    one_start(&first, &b, 'A', 300000);
    worker_await_sleep(&first.worker);
    one_start(&next, &b, 'B', 300000);
    worker_await_sleep(&next.worker);
    flusher_start(&flusher, &b, 1);
    pthread_mutex_lock(&b.valve.lock);
    b.valve.let = 1;
    pthread_cond_broadcast(&b.valve.changed);
    pthread_mutex_unlock(&b.valve.lock);
    worker_join(&flusher.worker);
    cr_expect(eq(int, flusher.ret, 0));
    cr_expect(eq(uint, b.valve.sends, 1));
    one_join(&first);
    valve_set(&b.valve, true, 0);
    one_join(&next);
    bench_fini(&b);
}

/*
 * Failure
 */

Test(channel, failure_is_told_once)
{
    struct bench b;
    struct one ones[4];
    struct flusher flusher;

    bench_init(&b, false);
    for (int i = 0; i < 4; i++)
        one_start(&ones[i], &b, 'A', i % 2 ? 100 : 100000);
    flusher_start(&flusher, &b, 4);
    valve_set(&b.valve, false, -ETIMEDOUT);
    for (int i = 0; i < 4; i++)
        one_join(&ones[i]);
    worker_join(&flusher.worker);
    cr_expect(eq(int, flusher.ret, -ECONNRESET));
    cr_expect(eq(uint, b.failures, 1));
    cr_expect(eq(uint, b.failed_index, 5));
    cr_expect(eq(int, b.failed_code, -ETIMEDOUT));
    cr_expect(eq(u64, b.gate.used, 0), "what was dropped is given back");
    cr_expect(eq(int, (int)b.ch.closed, CHANNEL_DEAD));
    cr_expect(eq(u64, b.ch.wire_bytes, 0), "nothing was sent");
    cr_expect(eq(int, channel_flush(&b.ch, 0, NULL), -ECONNRESET), "a dead channel has lost what was in it");
    /* A dead channel stays dead. */
    channel_reopen(&b.ch);
    cr_expect(eq(int, (int)b.ch.closed, CHANNEL_DEAD));
    channel_close(&b.ch, CHANNEL_SEALED);
    cr_expect(eq(int, (int)b.ch.closed, CHANNEL_DEAD));
    struct channel_entry entry;
    cr_expect(not(add(&b.ch, 0, "x", 1, &entry, NULL)));
    channel_disconnect(&b.ch);
    cr_expect(eq(uint, b.valve.closes, 1));
    b.ch.transport = &b.valve.base; /* for bench_fini() */
    bench_fini(&b);
}

/* Declared dead by somebody else: what is queued is dropped without a send, and that is no failure of the channel's. */
Test(channel, dead_drops)
{
    struct bench b;
    struct one sending, queued, small;

    bench_init(&b, false);
    one_start(&sending, &b, 'A', 100000);
    worker_await_sleep(&sending.worker);
    one_start(&queued, &b, 'B', 100000);
    one_start(&small, &b, 'C', 10);
    worker_await_sleep(&queued.worker);
    channel_close(&b.ch, CHANNEL_DEAD);
    valve_set(&b.valve, true, 0);
    one_join(&sending);
    one_join(&queued);
    one_join(&small);
    channel_disconnect(&b.ch);
    cr_expect(eq(uint, b.valve.sends, 1));
    cr_expect(eq(sz, b.valve.have, sizeof(struct wire_packet) + 100000));
    cr_expect(eq(uint, b.failures, 0));
    cr_expect(eq(u64, b.gate.used, 0));
    bench_fini(&b);
}

/* The connection breaks while many threads write: all get away, the failure is told once, the gate gets all back. */
Test(channel, failure_under_load)
{
    struct link link;
    struct bench b = {0};
    struct writer writers[WRITERS] = {0};

    for (int round = 0; round < 20; round++) {
        b = (struct bench){0};
        link_pair(&link);
        pthread_mutex_init(&b.valve.lock, NULL);
        pthread_cond_init(&b.valve.changed, NULL);
        gate_init(&b.gate, 1u << 20);
        channel_init(&b.ch, 5, link.a, &b.gate, note_failure, &b);
        for (uint32_t i = 0; i < WRITERS; i++) {
            writers[i] = (struct writer){.ch = &b.ch, .id = i};
            worker_start(&writers[i].worker, write_packets, &writers[i]);
        }
        /* Takes a little, and goes away. */
        for (int i = 0; i < round; i++) {
            char some[5000];
            cr_assert(zero(int, transport_recv_all(link.b, some, sizeof(some), NULL)));
        }
        transport_close(link.b);
        for (int i = 0; i < WRITERS; i++)
            worker_join(&writers[i].worker);
        channel_disconnect(&b.ch);
        cr_expect(eq(uint, b.failures, 1));
        cr_expect(eq(u64, b.gate.used, 0));
        bench_fini(&b);
    }
}

/*
 * Seals
 */

/* Somebody who finishes what was copied, and may linger. */
struct lingerer {
    struct worker worker;
    struct channel *ch;
};

static void run_lingerer(void *arg)
{
    channel_linger_copied(((struct lingerer *)arg)->ch);
}

/* Small packets wait for one another, but for no longer than a moment, and not when somebody waits for them. */
Test(channel, small_packets_linger)
{
    struct bench b;
    char page[4096];

    bench_init(&b, true);
    pattern(page, sizeof(page), 1);
    /* Alone: it goes when the moment is over, and not before. */
    cr_assert(add(&b.ch, 1, page, sizeof(page), NULL, NULL));
    int64_t before = clock_ns();
    channel_linger_copied(&b.ch);
    cr_expect(ge(i64, clock_ns() - before, CHANNEL_LINGER_US * 1000));
    cr_expect(eq(uint, b.valve.sends, 1));
    /* Enough of them: whoever adds the last one sends them all. */
    for (unsigned i = 0; i < CHANNEL_ENOUGH / sizeof(page) + 1; i++)
        cr_assert(add(&b.ch, 1, page, sizeof(page), NULL, NULL));
    channel_linger_copied(&b.ch);
    cr_expect(eq(uint, b.valve.sends, 2));
    /* A flush, and a closed channel, end the wait; whichever comes first, all has been sent. */
    for (unsigned i = 0; i < 200; i++) {
        struct lingerer l = {.ch = &b.ch};
        uint64_t sequence;
        cr_assert(add(&b.ch, 1, page, sizeof(page), NULL, NULL));
        sequence = b.ch.last_sequence;
        worker_start(&l.worker, run_lingerer, &l);
        if (i == 199)
            channel_close(&b.ch, CHANNEL_SEALED);
        cr_expect(eq(int, channel_flush(&b.ch, sequence, NULL), 0));
        cr_expect(eq(u64, b.ch.sent_sequence, sequence));
        worker_join(&l.worker);
    }
    bench_fini(&b);
}

Test(channel, seal_and_reopen)
{
    struct bench b;
    struct one one;
    struct channel_entry entry;
    struct parser parser = {0};
    char marks[3] = "";

    bench_init(&b, false);
    one_start(&one, &b, 'A', 100000);
    worker_await_sleep(&one.worker);
    channel_close(&b.ch, CHANNEL_SEALED);
    cr_expect(not(add(&b.ch, 0, "x", 1, &entry, NULL)), "nothing more comes in");
    valve_set(&b.valve, true, 0);
    one_join(&one);
    cr_expect(eq(int, channel_flush(&b.ch, 1, NULL), 0), "what was accepted goes out");
    channel_reopen(&b.ch);
    cr_assert(add(&b.ch, 0, "B", 1, &entry, NULL));
    channel_send_copied(&b.ch);
    cr_expect(eq(uint, parse_valve(&b, &parser, marks, 2), 2));
    cr_expect(eq(str, marks, "AB"));
    channel_close(&b.ch, CHANNEL_SEALED);
    channel_close(&b.ch, CHANNEL_DEAD);
    channel_reopen(&b.ch);
    cr_expect(eq(int, (int)b.ch.closed, CHANNEL_DEAD));
    bench_fini(&b);
}

static void disconnect(void *arg)
{
    channel_disconnect(arg);
}

static void expect_figures(struct bench *b, const struct transport_figures *want)
{
    struct transport_figures got = {.partial_drains = 100, .registrations = 200, .evictions = 300};
    uint64_t drains = 7;

    got.registered_bytes = 400, got.rnr_naks = 500, got.retries = 600;
    channel_figures(&b->ch, &got, &drains);
    cr_expect(eq(u64, drains, 7 + b->ch.drains));
    cr_expect(eq(u64, got.partial_drains, 100 + want->partial_drains));
    cr_expect(eq(u64, got.registrations, 200 + want->registrations));
    cr_expect(eq(u64, got.evictions, 300 + want->evictions));
    cr_expect(eq(u64, got.registered_bytes, 400 + want->registered_bytes));
    cr_expect(eq(u64, got.rnr_naks, 500 + want->rnr_naks));
    cr_expect(eq(u64, got.retries, 600 + want->retries));
}

/* They are added to those of the others, and stay when the connection goes, but for what is registered now. */
Test(channel, figures)
{
    struct transport_figures want = {1, 2, 3, 4, 5, 6};
    struct bench b;

    bench_init(&b, true);
    b.ch.of_group = true;
    b.ch.drains = 9;
    b.valve.figures = want;
    expect_figures(&b, &want);
    channel_close(&b.ch, CHANNEL_DEAD);
    channel_disconnect(&b.ch);
    want.registered_bytes = 0;
    expect_figures(&b, &want);
    b.ch.transport = &b.valve.base; /* for bench_fini() */
    bench_fini(&b);
}

/* Not every device closes a connection at once, and `status` asks for the figures meanwhile. */
Test(channel, figures_while_the_connection_is_closed)
{
    struct bench b;
    struct worker worker;
    struct transport_figures figures = {0};
    uint64_t drains = 0;

    bench_init(&b, true);
    b.valve.stuck = true;
    channel_close(&b.ch, CHANNEL_DEAD);
    worker_start(&worker, disconnect, &b.ch);
    worker_await_sleep(&worker);
    cr_assert(zero(int, pthread_mutex_trylock(&b.ch.lock)), "the channel is locked");
    pthread_mutex_unlock(&b.ch.lock);
    channel_figures(&b.ch, &figures, &drains);
    cr_expect(not(atomic_load(&worker.done)));
    pthread_mutex_lock(&b.valve.lock);
    b.valve.stuck = false;
    pthread_cond_broadcast(&b.valve.changed);
    pthread_mutex_unlock(&b.valve.lock);
    worker_join(&worker);
    cr_expect(eq(uint, b.valve.closes, 1));
    bench_fini(&b);
}

Test(channel, disconnect_waits_for_the_sender)
{
    struct bench b;
    struct one one;
    struct worker worker;

    bench_init(&b, false);
    one_start(&one, &b, 'A', 100000);
    worker_await_sleep(&one.worker);
    channel_close(&b.ch, CHANNEL_SEALED);
    worker_start(&worker, disconnect, &b.ch);
    worker_await_sleep(&worker);
    cr_expect(not(atomic_load(&worker.done)));
    cr_expect(eq(uint, b.valve.closes, 0));
    valve_set(&b.valve, true, 0);
    one_join(&one);
    worker_join(&worker);
    cr_expect(eq(uint, b.valve.closes, 1));
    cr_expect(zero(ptr, b.ch.transport));
    bench_fini(&b);
}
