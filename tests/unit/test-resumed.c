/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What arrives over many connections: the source is the test. It cuts the stream of packets of a channel at
 * the edges of everything, goes on with the byte that the destination wants next, and does the same to the
 * messages of the main channel.
 */
#include "blocked.h"
#include "check.h"
#include "compression.h"
#include "incoming.h"
#include "peer.h"
#include "rig.h"
#include "scratch.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STRIPE   WIRE_STRIPE_SIZE
#define PAGE     WIRE_PAGE_SIZE
#define HEADER   ((uint32_t)sizeof(struct wire_packet))
#define RAM_SIZE (8u * STRIPE)
#define DEVICE   (300u << 10)

static uint32_t resume_ms = 60000;

TestSuite(resumed, .init = scratch_make, .fini = scratch_remove);

static struct rig rig;
static struct hello hello;
static struct transport *main_end, *data;
static struct migration *m;

/*
 * The main channel
 */

static uint64_t said, heard; /* messages, pings not counted */
static uint8_t body[WIRE_BODY_MAX], last_body[WIRE_BODY_MAX];
static struct wire_message last;
static uint32_t last_length;

static void say(enum wire_message_type type, uint64_t id, const void *bytes, uint32_t length)
{
    struct iovec iov[2] = {{&last, sizeof(last)}, {last_body, length}};

    wire_message_encode_received(type, id, heard, bytes, length, &last);
    memcpy(last_body, bytes ? bytes : "", length);
    last_length = length;
    said++;
    cr_assert(zero(int, transport_send(main_end, iov, length ? 2 : 1)));
}

/* The next message that is no news. */
static struct message hear(void)
{
    struct message message;
    struct wire_message header;
    struct error err;

    do {
        cr_assert(zero(int, transport_recv_all(main_end, &header, sizeof(header), NULL)), "%s",
                  m ? m->failure.message : "");
        CHECK_OK(wire_message_decode(&header, &message, &err));
        cr_assert(zero(int, transport_recv_all(main_end, body, message.length, NULL)));
        cr_assert(wire_message_check(&header, body, message.length));
        cr_expect(le(u64, message.received, said));
        heard += message.type != WIRE_PING;
        if (message.type == WIRE_ABORT)
            cr_assert(0, "%.*s", (int)message.length - 6, (char *)body + 6);
    } while (message.type == WIRE_PING || message.type == WIRE_PROGRESS);
    return message;
}

static void expect(enum wire_message_type type, uint64_t id)
{
    struct message message = hear();

    cr_assert(eq(int, (int)message.type, (int)type));
    cr_assert(eq(u64, message.id, id));
}

/* It is lost, and made again; what the destination has not received comes once more. */
static void cut_main(bool closed)
{
    struct transport *old = main_end;
    struct hello again = hello;
    struct hello_reply reply;
    struct iovec iov[2] = {{&last, sizeof(last)}, {last_body, last_length}};

    if (closed)
        transport_close(old);
    again.kind = WIRE_HELLO_MAIN_AGAIN;
    again.received = heard;
    main_end = peer_greet(rig.address, &again, &reply);
    cr_assert(ne(ptr, main_end, NULL), "%s", reply.text);
    if (!closed)
        transport_close(old);
    cr_assert(reply.received == said || reply.received + 1 == said);
    if (reply.received != said)
        cr_assert(zero(int, transport_send(main_end, iov, last_length ? 2 : 1)));
}

static void announce(uint32_t id, uint64_t size, const char *name)
{
    uint8_t buf[300];
    struct wire_writer w = {buf, buf, buf + sizeof(buf)};

    wire_write_u32(&w, id);
    wire_write_u64(&w, size);
    wire_write_text(&w, name);
    say(WIRE_FILE_CREATE, 0, buf, wire_written(&w));
    expect(WIRE_FILE_REPLY, 0);
    struct wire_reader r = {.p = body, .left = 8};
    cr_assert(eq(u32, wire_read_u32(&r), id));
    cr_assert(zero(u32, wire_read_u32(&r)));
}

/* All channels, one of them for data, which can be made again. */
static void open_all(uint64_t features)
{
    struct hello_reply reply;

    said = heard = 0;
    hello = peer_hello("vm", 1);
    hello.features = features | WIRE_FEATURE_RESUME;
    hello.resume_ms = resume_ms;
    main_end = peer_greet(rig.address, &hello, &reply);
    cr_assert(ne(ptr, main_end, NULL), "%s", reply.text);
    struct hello of_data = hello;
    of_data.kind = WIRE_HELLO_DATA;
    /* Its source has not heard that the first one was welcome. */
    transport_close(peer_greet(rig.address, &of_data, &reply));
    data = peer_greet(rig.address, &of_data, &reply);
    cr_assert(ne(ptr, data, NULL), "%s", reply.text);
    cr_expect(zero(u64, reply.received));
    announce(WIRE_RAM, RAM_SIZE, "ram");
    announce(1, 0, "dev");
    m = rig_arrived(&rig, "vm");
}

/*
 * The stream of packets
 */

static uint8_t *stream;
static size_t size;
static uint64_t sequence;
static size_t edges[64]; /* where packets begin, and the end */
static uint8_t ram[RAM_SIZE], device[DEVICE];
static struct {
    uint64_t packets, bytes, digest;
} sums[2];

static bool checked;
static struct compressor *packer;

static void put(struct packet packet, const void *payload)
{
    struct wire_packet wire;

    packet.sequence = ++sequence;
    if (!packet.raw_length)
        packet.raw_length = packet.length;
    if (packet.length && (checked || packet.file))
        packet.payload_check = wire_payload_check(payload, packet.length);
    sums[packet.file].digest += wire_packet_encode(&packet, &wire);
    sums[packet.file].packets++;
    if (packet.type == WIRE_DATA)
        sums[packet.file].bytes += packet.raw_length;
    edges[sequence - 1] = size;
    memcpy(stream + size, &wire, HEADER);
    if (packet.length)
        memcpy(stream + size + HEADER, payload, packet.length);
    size += HEADER + packet.length;
    edges[sequence] = size;
}

/* The same, compressed. */
static void put_packed(struct packet packet, const void *raw)
{
    uint8_t *packed = compressor_buffer(packer);
    struct context *lease = NULL;

    packet.flags |= WIRE_PACKET_ZSTD;
    packet.raw_length = packet.length;
    packet.length = (uint32_t)compressor_pack(packer, raw, packet.raw_length, packed, false, &lease);
    compressor_help(packer, lease);
    cr_assert(ne(u32, packet.length, 0));
    put(packet, packed);
    compressor_return(packer, packed);
}

/* Bytes that shrink to about a half. */
static void fill(uint8_t *out, size_t len)
{
    static uint32_t seed = 1;

    for (size_t i = 0; i < len; i++) {
        seed = seed * 1664525 + 1013904223;
        out[i] = (uint8_t)('a' + (seed >> 28));
    }
}

static void put_data(uint64_t offset, uint32_t length, bool packed)
{
    struct packet packet = {.type = WIRE_DATA, .offset = offset, .length = length};

    fill(ram + offset, length);
    if (packed)
        put_packed(packet, ram + offset);
    else
        put(packet, ram + offset);
}

/* Every other page of so many; those between are zero. */
static void put_pages(uint64_t offset, unsigned pages, bool packed)
{
    static uint8_t payload[STRIPE];
    uint32_t words = (pages + 63) / 64 * 8, length = words;

    memset(payload, 0, words);
    memset(ram + offset, 0, pages * PAGE);
    for (unsigned i = 0; i < pages; i += 2) {
        payload[i / 8] |= (uint8_t)(1u << i % 8);
        fill(ram + offset + i * PAGE, PAGE);
        memcpy(payload + length, ram + offset + i * PAGE, PAGE);
        length += PAGE;
    }
    sums[WIRE_RAM].bytes += length - words;
    struct packet packet = {.type = WIRE_PAGES, .offset = offset, .range = pages * PAGE, .length = length};
    if (packed)
        put_packed(packet, payload);
    else
        put(packet, payload);
}

/* Packets of every kind, twice: pages come for the first time, and over what is there. */
static void make_stream(void)
{
    stream = malloc(16u << 20);
    size = 0;
    sequence = 0;
    memset(sums, 0, sizeof(sums));
    memset(ram, 0, sizeof(ram));
    for (unsigned round = 0; round < 2; round++) {
        put_data(0, STRIPE, false);
        put_data(STRIPE + 100, 200000, false);
        put_data(2 * STRIPE + 5000, 17, false);
        put_data(2 * STRIPE, 3000, false);
        put_pages(3 * STRIPE, 150, false);
        put_pages(3 * STRIPE + 200 * PAGE, 3, false);
        put_data(4 * STRIPE, STRIPE, true);
        put_data(5 * STRIPE + 1000, 5000, true);
        put_pages(6 * STRIPE, 100, true);
        memset(ram + 7 * STRIPE - 4 * PAGE, 0, 4 * PAGE);
        put((struct packet){.type = WIRE_ZERO, .offset = 7 * STRIPE - 4 * PAGE, .range = 4 * PAGE}, NULL);
        memset(ram + STRIPE / 2, 0, STRIPE);
        put((struct packet){.type = WIRE_DISCARD, .offset = STRIPE / 2, .range = STRIPE}, NULL);
        fill(device + round * DEVICE / 2, DEVICE / 2);
        put((struct packet){.type = WIRE_DATA, .file = 1, .offset = round * DEVICE / 2, .length = DEVICE / 2},
            device + round * DEVICE / 2);
    }
    put((struct packet){.type = WIRE_TRUNCATE, .offset = RAM_SIZE, .range = 1}, NULL);
}

static void send_until(size_t *at, size_t end)
{
    struct iovec iov = {stream + *at, end - *at};

    if (end > *at)
        cr_assert(zero(int, transport_send(data, &iov, 1)), "%s", m->failure.message);
    *at = end;
}

/* The data channel is lost, and made again; the destination says where it goes on. */
static void cut(size_t *at, bool closed)
{
    struct transport *old = data;
    struct hello again = hello;
    struct hello_reply reply;

    if (closed)
        transport_close(old);
    again.kind = WIRE_HELLO_DATA_AGAIN;
    data = peer_greet(rig.address, &again, &reply);
    cr_assert(ne(ptr, data, NULL), "%s", reply.text);
    if (!closed)
        transport_close(old);
    /* By TCP a count that nobody reads makes the end of the connection a reset. */
    if (closed && !strncmp(rig.address, "unix:", 5))
        cr_assert(eq(sz, reply.received, *at), "all that was sent was received");
    cr_assert(le(u64, reply.received, *at));
    *at = reply.received;
}

/* What is applied is told, in its order, and all of it when nothing more comes. */
static void expect_told(uint64_t all)
{
    uint64_t before = 0, count = 0;

    while (count != all) {
        cr_assert(zero(int, transport_recv_all(data, &count, sizeof(count), NULL)));
        count = le64toh(count);
        cr_assert(le(u64, before, count));
        cr_assert(le(u64, count, all));
        before = count;
    }
}

static void complete(void)
{
    uint8_t buf[256];
    struct wire_writer w = {buf, buf, buf + sizeof(buf)};

    wire_write_u64(&w, sequence);
    wire_write_u32(&w, 2);
    for (uint32_t i = 0; i < 2; i++) {
        wire_write_u32(&w, i);
        wire_write_u32(&w, 0);
        wire_write_u64(&w, i ? DEVICE : RAM_SIZE);
        wire_write_u64(&w, sums[i].packets);
        wire_write_u64(&w, sums[i].bytes);
        wire_write_u64(&w, sums[i].digest);
    }
    say(WIRE_COMPLETE, 9, buf, wire_written(&w));
    cut_main(true);
    expect(WIRE_PREPARED, 9);
    cut_main(false);
    say(WIRE_COMMIT, 9, NULL, 0);
    expect(WIRE_COMMITTED, 9);
    cr_expect(eq(int, (int)rig_await_end(m), STATE_COMPLETED));
    rig_compare(m, WIRE_RAM, ram, RAM_SIZE);
    rig_compare(m, 1, device, DEVICE);
}

static void end(void)
{
    transport_close(main_end);
    transport_close(data);
    migration_put(m);
    m = NULL;
    rig_fini(&rig);
    free(stream);
    compressor_free(packer);
}

static void begin(const char *listen, bool checksum)
{
    char text[128];

    snprintf(text, sizeof(text), *listen ? "%s" : "unix:%s/socket", *listen ? listen : scratch);
    rig_init(&rig, text, NULL);
    packer = compressor_new(1);
    checked = checksum;
    make_stream();
    open_all((checksum ? WIRE_FEATURE_CHECKSUM : 0) | WIRE_FEATURE_ZSTD);
}

/* At each edge of each packet, of its header and of its payload, and the main channel now and then. */
static void cut_at_the_edges(const char *listen, bool checksum)
{
    size_t at = 0;
    unsigned cuts = 0;

    begin(listen, checksum);
    for (uint64_t i = 0; i < sequence; i++) {
        size_t begins = edges[i], ends = edges[i + 1];
        size_t places[] = {
            begins,          begins + 1,          begins + 40,         begins + HEADER - 1,
            begins + HEADER, begins + HEADER + 1, begins + HEADER + 9, (begins + HEADER + ends) / 2,
            ends - 1};
        for (size_t p = 0; p < ARRAY_LENGTH(places); p++) {
            if (places[p] >= ends || places[p] < at)
                continue;
            send_until(&at, places[p]);
            cut(&at, cuts++ % 2);
            if (cuts % 16 == 0)
                cut_main(cuts % 32);
        }
    }
    send_until(&at, size);
    uint64_t counts = htole64(sequence);
    say(WIRE_SYNC, 5, &counts, sizeof(counts));
    cut_main(false);
    expect(WIRE_SYNC_ACK, 5);
    expect_told(sequence);
    complete();
    cr_expect(m->pauses > 0);
    end();
}

Test(resumed, with_checksums)
{
    cut_at_the_edges("", true);
}

Test(resumed, without_checksums)
{
    cut_at_the_edges("", false);
}

Test(resumed, over_tcp)
{
    cut_at_the_edges("tcp:127.0.0.1:0", false);
}

/* A connection that carries next to nothing, again and again. */
Test(resumed, step_by_step)
{
    size_t at = 0;

    begin("", true);
    while (at < size) {
        size_t next = at < 3000 ? at + 37 : at + 60001;
        send_until(&at, next < size ? next : size);
        cut(&at, true);
    }
    complete();
    end();
}

/* A hello that comes once more, when all is there, is the same as one that makes it again. */
Test(resumed, data_hello_twice)
{
    struct hello of_data, other;
    struct hello_reply reply;
    size_t at = 0;

    begin("", true);
    send_until(&at, 100);
    of_data = hello;
    of_data.kind = WIRE_HELLO_DATA;
    struct transport *next = peer_greet(rig.address, &of_data, &reply);
    cr_assert(ne(ptr, next, NULL), "%s", reply.text);
    cr_expect(eq(u64, reply.received, 100));
    transport_close(data);
    data = next;
    other = of_data;
    other.channels = 2;
    other.channel = 1;
    cr_expect(zero(ptr, peer_greet(rig.address, &other, &reply)));
    cr_expect(eq(int, (int)reply.cause, CAUSE_PROTOCOL));
    other.kind = WIRE_HELLO_DATA_AGAIN;
    cr_expect(zero(ptr, peer_greet(rig.address, &other, &reply)));
    cr_expect(eq(int, (int)reply.cause, CAUSE_PROTOCOL));
    send_until(&at, size);
    complete();
    end();
}

/* Nobody else's session, nor one that is over. */
Test(resumed, strangers)
{
    struct hello other;
    struct hello_reply reply;
    size_t at = 0;

    begin("", true);
    for (int i = 0; i < 4; i++) {
        other = hello;
        other.kind = i % 2 ? WIRE_HELLO_DATA_AGAIN : WIRE_HELLO_MAIN_AGAIN;
        if (i < 2)
            other.session[15] ^= 1;
        else
            strcpy(other.name, "vn");
        cr_expect(zero(ptr, peer_greet(rig.address, &other, &reply)));
        cr_expect(eq(int, (int)reply.cause, CAUSE_NOT_FOUND));
        cr_expect(
            ne(ptr, strstr(reply.text, "cannot go on here: this daemon has been started again since"), NULL),
            "%s", reply.text);
    }
    cr_expect(not(migration_is_paused(m)));
    send_until(&at, size);
    complete();
    for (int i = 0; i < 2; i++) {
        other = hello;
        other.kind = i % 2 ? WIRE_HELLO_DATA_AGAIN : WIRE_HELLO_MAIN_AGAIN;
        cr_expect(zero(ptr, peer_greet(rig.address, &other, &reply)));
        cr_expect(eq(int, (int)reply.cause, CAUSE_STATE), "%s", reply.text);
    }
    end();
}

/* Before all channels are there, nothing is made again yet. */
Test(resumed, too_early)
{
    struct hello_reply reply;
    char text[128];

    snprintf(text, sizeof(text), "unix:%s/socket", scratch);
    rig_init(&rig, text, NULL);
    hello = peer_hello("vm", 1);
    hello.features |= WIRE_FEATURE_RESUME;
    hello.resume_ms = resume_ms;
    struct transport *t = peer_greet(rig.address, &hello, &reply);
    struct hello again = hello;
    for (int i = 0; i < 2; i++) {
        again.kind = i ? WIRE_HELLO_DATA_AGAIN : WIRE_HELLO_MAIN_AGAIN;
        cr_expect(zero(ptr, peer_greet(rig.address, &again, &reply)));
        cr_expect(eq(int, (int)reply.cause, CAUSE_AGAIN), "%s", reply.text);
    }
    transport_close(t);
    rig_fini(&rig);
}

/* The main channel is lost while the others still come: it is made again, too. */
Test(resumed, main_lost_in_setup)
{
    struct hello_reply reply;
    char text[128];

    snprintf(text, sizeof(text), "unix:%s/socket", scratch);
    rig_init(&rig, text, NULL);
    said = heard = 0;
    hello = peer_hello("vm", 2);
    hello.features |= WIRE_FEATURE_RESUME;
    hello.resume_ms = resume_ms;
    main_end = peer_greet(rig.address, &hello, &reply);
    cr_assert(ne(ptr, main_end, NULL), "%s", reply.text);
    struct hello of_data = hello;
    struct transport *both[2];
    for (unsigned c = 0; c < 2; c++) {
        of_data.kind = WIRE_HELLO_DATA;
        of_data.channel = c;
        both[c] = peer_greet(rig.address, &of_data, &reply);
        cr_assert(ne(ptr, both[c], NULL), "%s", reply.text);
        if (c == 0)
            transport_close(main_end);
    }
    m = rig_arrived(&rig, "vm");
    of_data = hello;
    of_data.kind = WIRE_HELLO_MAIN_AGAIN;
    main_end = peer_greet(rig.address, &of_data, &reply);
    cr_assert(ne(ptr, main_end, NULL), "%s", reply.text);
    announce(WIRE_RAM, RAM_SIZE, "ram");
    for (unsigned c = 0; c < 2; c++)
        transport_close(both[c]);
    transport_close(main_end);
    migration_put(m);
    rig_fini(&rig);
}

/* Who says hello and goes leaves nothing behind. */
Test(resumed, gone_after_the_hello)
{
    struct limits limits = rig_limits();
    struct hello_reply reply;
    char text[128];

    snprintf(text, sizeof(text), "unix:%s/socket", scratch);
    limits.max_migrations = 1;
    rig_init(&rig, text, &limits);
    for (int i = 0; i < 3; i++) {
        struct transport *t;
        hello = peer_hello("vm", 1);
        hello.features |= WIRE_FEATURE_RESUME;
        hello.resume_ms = resume_ms;
        hello.session[0] = (uint8_t)i;
        while (!(t = peer_greet(rig.address, &hello, &reply)))
            cr_assert(eq(int, (int)reply.cause, CAUSE_QUOTA), "%s", reply.text);
        transport_close(t);
    }
    rig_fini(&rig);
}

/* An attempt that its source has given up can arrive when a later one is in its place. */
Test(resumed, late_attempt)
{
    static const uint8_t counts[8];
    struct hello late;
    struct hello_reply reply;
    size_t at = 0;

    begin("", true);
    late = hello;
    late.kind = WIRE_HELLO_MAIN_AGAIN;
    late.received = 0;
    /* It tells what has been received, and the answer that it was heard. */
    say(WIRE_SYNC, 5, counts, sizeof(counts));
    expect(WIRE_SYNC_ACK, 5);
    cr_expect(zero(ptr, peer_greet(rig.address, &late, &reply)));
    cr_expect(eq(int, (int)reply.cause, CAUSE_AGAIN), "%s", reply.text);
    send_until(&at, size);
    complete();
    end();
}

/* Without it a lost connection is the end, as ever, and nothing takes its place. */
Test(resumed, not_without_asking)
{
    struct peer peer;
    struct hello_reply reply;
    char text[128];

    snprintf(text, sizeof(text), "unix:%s/socket", scratch);
    rig_init(&rig, text, NULL);
    peer_open(&peer, rig.address, "vm", 1);
    cr_assert(eq(int, (int)peer_announce(&peer, 0, RAM_SIZE, "ram"), CAUSE_NONE));
    m = rig_arrived(&rig, "vm");
    struct hello again = peer.hello;
    for (int i = 0; i < 2; i++) {
        again.kind = i ? WIRE_HELLO_DATA_AGAIN : WIRE_HELLO_MAIN_AGAIN;
        cr_expect(zero(ptr, peer_greet(rig.address, &again, &reply)));
        cr_expect(eq(int, (int)reply.cause, CAUSE_STATE), "%s", reply.text);
    }
    cr_expect(eq(int, (int)m->state, STATE_ACTIVE));
    transport_close(peer.data[0]);
    peer.data[0] = NULL;
    cr_expect(eq(int, (int)rig_await_end(m), STATE_FAILED));
    cr_expect(zero(u64, m->pauses));
    peer_close(&peer);
    migration_put(m);
    rig_fini(&rig);
}

/* The source gives it up while a channel is lost: those who wait for another connection do not. */
Test(resumed, ends_while_it_is_paused)
{
    uint8_t buf[64];
    struct wire_writer w = {buf, buf, buf + sizeof(buf)};
    size_t at = 0;

    begin("", true);
    send_until(&at, 1000);
    transport_close(data);
    data = NULL;
    pthread_mutex_lock(&m->lock);
    while (!m->lost)
        pthread_cond_wait(&m->changed, &m->lock);
    pthread_mutex_unlock(&m->lock);
    wire_write_u32(&w, CAUSE_CANCELLED);
    wire_write_text(&w, "enough");
    say(WIRE_ABORT, 0, buf, wire_written(&w));
    cr_expect(eq(int, (int)rig_await_end(m), STATE_CANCELLED));
    cr_expect(not(migration_is_paused(m)));
    end();
}

/* The source does not come back: with the main channel, or another one, that is the end after a while. */
Test(resumed, not_in_time)
{
    resume_ms = 1000;
    for (int all = 0; all < 2; all++) {
        size_t at = 0;
        begin("", true);
        send_until(&at, 1000);
        if (all) {
            transport_close(main_end);
            main_end = NULL;
        } else {
            transport_close(data);
            data = NULL;
        }
        cr_expect(eq(int, (int)rig_await_end(m), STATE_FAILED));
        cr_expect(eq(int, (int)m->failure.cause, CAUSE_RESET));
        cr_expect(ne(ptr, strstr(m->failure.message, ", and the source has not come back within 1 s"), NULL),
                  "%s", m->failure.message);
        cr_expect(eq(int, !strncmp(m->failure.message, "channel 0: ", 11), !all), "%s", m->failure.message);
        end();
    }
}

/* What has gone is the memory and not the connection: another one is not waited for. */
Test(resumed, memory_goes_away)
{
    size_t at = 0;
    uint64_t count = htole64(12);

    begin("", true);
    send_until(&at, edges[12]);
    say(WIRE_SYNC, 5, &count, sizeof(count));
    expect(WIRE_SYNC_ACK, 5);
    cr_assert(zero(int, ftruncate(migration_file(m, WIRE_RAM)->image.memory.fd, 0)));
    /* Over what is there, which goes straight into its place. */
    sequence = 12;
    size = at;
    put_data(4 * STRIPE, STRIPE, false);
    struct iovec iov = {stream + at, size - at};
    transport_send(data, &iov, 1); /* as far as it is taken */
    cr_expect(eq(int, (int)rig_await_end(m), STATE_FAILED));
    cr_expect(eq(int, (int)m->failure.cause, CAUSE_IO), "%s", m->failure.message);
    end();
}
