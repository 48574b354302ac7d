/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The destination against peers of all kinds. Each case breaks one rule, and is
 * answered with a cause and a sentence; nothing that a peer says ends as
 * `completed` when it should not, or takes the daemon along.
 */
#include "incoming.h"
#include "blocked.h"
#include "check.h"
#include "cleanup.h"
#include "clock.h"
#include "compression.h"
#include "guard.h"
#include "peer.h"
#include "rig.h"
#include "scratch.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>

static const struct transport_identity nobody;

TestSuite(incoming, .init = scratch_make, .fini = scratch_remove);

#define STRIPE   WIRE_STRIPE_SIZE
#define RAM_SIZE (8ull * STRIPE)

static struct rig rig;

static const char *place(void)
{
    static char text[128];

    snprintf(text, sizeof(text), "unix:%s/socket", scratch);
    return text;
}

/*
 * Handshakes
 */

static const struct {
    const char *what;
    size_t offset, size;
    uint64_t value;
} bad_hellos[] = {
    {"another version", offsetof(struct wire_hello, version), 2, 1},
    {"129 channels", offsetof(struct wire_hello, channels), 2, 129},
    {"no channels", offsetof(struct wire_hello, channels), 2, 0},
    {"an unknown feature", offsetof(struct wire_hello, features), 8, 1ull << 40},
    {"another page size", offsetof(struct wire_hello, page_size), 4, 65536},
    {"a name with a NUL", offsetof(struct wire_hello, name), 1, 0},
    {"a name of 65535 bytes", offsetof(struct wire_hello, name_length), 2, 65535},
    {"noise", offsetof(struct wire_hello, magic), 8, 0x123456789},
};

/* Answers with a reason, each time, and closes. */
Test(incoming, bad_hellos)
{
    rig_init(&rig, place(), NULL);
    for (size_t i = 0; i < ARRAY_LENGTH(bad_hellos); i++) {
        struct hello hello = peer_hello("vm", 2);
        struct wire_hello wire;
        struct wire_hello_reply answer;
        struct hello_reply reply;
        struct iovec iov = {&wire, sizeof(wire)};
        struct transport *t = peer_dial(rig.address);
        struct error err;
        char c;
        wire_hello_encode(&hello, &wire);
        memcpy((char *)&wire + bad_hellos[i].offset, &bad_hellos[i].value, bad_hellos[i].size);
        wire.check = wire_payload_check(&wire, sizeof(wire) - WIRE_CHECK_SIZE);
        transport_send(t, &iov, 1);
        cr_assert(zero(int, transport_recv_all(t, &answer, sizeof(answer), NULL)), "%s", bad_hellos[i].what);
        CHECK_OK(wire_hello_reply_decode(&answer, &reply, &err));
        cr_expect(eq(int, (int)reply.cause, CAUSE_PROTOCOL), "%s", bad_hellos[i].what);
        cr_expect(ne(str, reply.text, ""), "%s", bad_hellos[i].what);
        cr_expect(eq(long, transport_recv(t, &c, 1, 0), 0), "nothing follows");
        transport_close(t);
    }
    cr_expect(eq(uint, rig.destination.count, 0));
    cr_expect(ne(str, rig.destination.host.last_error, ""));
    rig_fini(&rig);
}

Test(incoming, bad_names)
{
    static const char *const names[] = {"../x", ".x", "a/b", "..", "a\nb"};

    rig_init(&rig, place(), NULL);
    for (size_t i = 0; i < ARRAY_LENGTH(names); i++) {
        struct hello hello = peer_hello(names[i], 1);
        struct hello_reply reply;
        cr_expect(zero(ptr, peer_greet(rig.address, &hello, &reply)));
        cr_expect(eq(int, (int)reply.cause, CAUSE_SYNTAX), "%s", names[i]);
    }
    rig_fini(&rig);
}

/* Peers that say half a hello, or nothing, and go. */
Test(incoming, cut_hellos)
{
    struct peer p;

    rig_init(&rig, place(), NULL);
    for (size_t length = 0; length < sizeof(struct wire_hello); length += 31) {
        struct hello hello = peer_hello("vm", 1);
        struct wire_hello wire;
        struct iovec iov = {&wire, length};
        struct transport *t = peer_dial(rig.address);
        wire_hello_encode(&hello, &wire);
        transport_send(t, &iov, 1);
        transport_close(t);
    }
    peer_open(&p, rig.address, "vm", 1);
    peer_close(&p);
    rig_fini(&rig);
}

/* More idle connections than are kept, and a migration that starts among them. */
Test(incoming, idle_connections_keep_nobody_out)
{
    enum { IDLE = 600 };
    static struct transport *idle[IDLE];
    struct peer p;

    rig_init(&rig, place(), NULL);
    for (int i = 0; i < IDLE; i++)
        idle[i] = peer_dial(rig.address);
    peer_open(&p, rig.address, "vm", 4);
    cr_expect(eq(int, (int)peer_announce(&p, 0, RAM_SIZE, "ram"), CAUSE_NONE));
    peer_close(&p);
    for (int i = 0; i < IDLE; i++)
        transport_close(idle[i]);
    rig_fini(&rig);
}

/* A peer that begins and does not go on keeps nobody out. */
Test(incoming, stalled_peer_of_the_same_name)
{
    struct hello_reply reply;
    struct error err;
    uint8_t body[WIRE_BODY_MAX];
    struct message message;
    struct peer p = {0};

    rig_init(&rig, place(), NULL);
    p.hello = peer_hello("vm", 2);
    p.main = peer_greet(rig.address, &p.hello, &reply);
    cr_assert(not(zero(ptr, p.main)));
    struct migration *m = rig_start(&rig, "vm", 2, 0);
    /* What it gets when it goes on. */
    for (unsigned c = 0; c < 2; c++) {
        struct hello hello = p.hello;
        hello.kind = WIRE_HELLO_DATA;
        hello.channel = c;
        p.data[c] = peer_greet(rig.address, &hello, &reply);
        cr_assert(not(zero(ptr, p.data[c])));
    }
    cr_expect(eq(int, peer_receive(p.main, &message, body), 0));
    cr_expect(eq(int, (int)message.type, WIRE_ABORT));
    CHECK_OK(outgoing_complete(m, NULL, &err));
    migration_put(m);
    peer_close(&p);
    rig_fini(&rig);
}

Test(incoming, channels_that_do_not_belong)
{
    struct hello hello;
    struct hello_reply reply;
    struct peer p = {0};

    rig_init(&rig, place(), NULL);
    p.hello = peer_hello("vm", 2);
    p.main = peer_greet(rig.address, &p.hello, &reply);
    cr_assert(not(zero(ptr, p.main)));

    hello = peer_hello("vm", 2);
    hello.kind = WIRE_HELLO_DATA;
    cr_expect(zero(ptr, peer_greet(rig.address, &hello, &reply)));
    cr_expect(eq(int, (int)reply.cause, CAUSE_NOT_FOUND), "another session's channel");

    hello = p.hello;
    hello.kind = WIRE_HELLO_DATA;
    strcpy(hello.name, "other");
    cr_expect(zero(ptr, peer_greet(rig.address, &hello, &reply)));
    cr_expect(eq(int, (int)reply.cause, CAUSE_NOT_FOUND), "another migration's channel");

    hello = p.hello;
    hello.kind = WIRE_HELLO_DATA;
    hello.channels = 3;
    cr_expect(zero(ptr, peer_greet(rig.address, &hello, &reply)));
    cr_expect(eq(int, (int)reply.cause, CAUSE_PROTOCOL), "another number of channels");

    hello.channels = 2;
    p.data[0] = peer_greet(rig.address, &hello, &reply);
    cr_assert(not(zero(ptr, p.data[0])));
    cr_expect(zero(ptr, peer_greet(rig.address, &hello, &reply)));
    cr_expect(eq(int, (int)reply.cause, CAUSE_EXISTS), "the same channel again");

    hello.channel = 1;
    p.data[1] = peer_greet(rig.address, &hello, &reply);
    cr_assert(not(zero(ptr, p.data[1])), "and after all that it starts");
    migration_put(rig_arrived(&rig, "vm"));
    struct hello second = peer_hello("vm", 2);
    cr_expect(zero(ptr, peer_greet(rig.address, &second, &reply)));
    cr_expect(eq(int, (int)reply.cause, CAUSE_EXISTS), "a second peer of the same name");
    cr_expect(eq(int, (int)peer_announce(&p, 0, RAM_SIZE, "ram"), CAUSE_NONE));
    cr_expect(zero(ptr, peer_greet(rig.address, &hello, &reply)));
    cr_expect(eq(int, (int)reply.cause, CAUSE_STATE), "a channel too many");
    peer_close(&p);
    rig_fini(&rig);
}

Test(incoming, channels_that_never_arrive)
{
    struct limits limits = rig_limits();
    struct hello hello = peer_hello("vm", 2);
    struct hello_reply reply;
    struct message message;
    uint8_t *body = malloc(WIRE_BODY_MAX);
    struct error got = {0};

    limits.timeout_ms = 200;
    rig_init(&rig, place(), &limits);
    struct transport *t = peer_greet(rig.address, &hello, &reply);
    cr_assert(not(zero(ptr, t)));
    /* The peer is alive: it is the channels that are missing. */
    int ret = -EAGAIN;
    struct transport_wait wait = {.cancel_fd = -1};
    struct wire_message header;
    while (ret == -EAGAIN || ret == -ETIMEDOUT || message.type == WIRE_PING || message.type == WIRE_PROGRESS) {
        peer_send(t, WIRE_PING, 0, NULL, 0);
        wait.deadline_ms = clock_ms() + 20;
        ret = transport_recv_all(t, &header, sizeof(header), &wait);
        if (ret == 0)
            wire_message_decode(&header, &message, NULL);
        else if (ret != -ETIMEDOUT)
            break;
    }
    cr_assert(zero(int, ret));
    cr_assert(eq(int, (int)message.type, WIRE_ABORT));
    cr_assert(zero(int, transport_recv_all(t, body, message.length, NULL)));
    struct wire_reader r = {.p = body, .left = message.length};
    session_read_abort(&r, "the destination", &got);
    cr_expect(eq(int, (int)got.cause, CAUSE_TIMEOUT), "%s", got.message);
    transport_close(t);
    rig_fini(&rig);
    free(body);
}

/*
 * After the handshake. The peer has two channels, RAM of 8 stripes and a device.
 */

static uint8_t payload[2 * STRIPE];

static struct packet data(uint32_t file, uint64_t offset, uint32_t length)
{
    return (struct packet){.type = WIRE_DATA, .file = file, .offset = offset, .length = length};
}

/* Counts, a number, bytes: the body of a message. */
static uint8_t body_buf[WIRE_BODY_MAX];
static struct wire_writer body(void)
{
    return (struct wire_writer){body_buf, body_buf, body_buf + sizeof(body_buf)};
}

static void say(struct peer *p, enum wire_message_type type, uint64_t id, const struct wire_writer *w)
{
    peer_send(p->main, type, id, w->start, wire_written(w));
}

static void counts(struct wire_writer *w, uint64_t a, uint64_t b)
{
    wire_write_u64(w, a);
    wire_write_u64(w, b);
}

static void wrong_sequence(struct peer *p)
{
    struct packet packet = data(0, 0, 10);
    packet.sequence = 2;
    peer_packet(p, 0, packet, payload);
}

static void repeated_sequence(struct peer *p)
{
    struct packet packet = data(0, 0, 10);
    peer_packet(p, 0, packet, payload);
    packet.sequence = 1;
    peer_packet(p, 0, packet, payload);
}

static void wrong_channel(struct peer *p)
{
    struct packet packet = data(0, 0, 10);
    packet.channel = 1;
    peer_packet(p, 0, packet, payload);
}

static void unannounced_file(struct peer *p)
{
    peer_packet(p, 0, data(2, 0, 10), payload);
}

static void wrong_home(struct peer *p)
{
    peer_packet(p, 0, data(0, STRIPE, 10), payload);
}

static void damaged_payload(struct peer *p)
{
    struct packet packet = data(0, 0, 4096);
    packet.payload_check = 1;
    peer_packet(p, 0, packet, payload);
}

static void noise_on_a_data_channel(struct peer *p)
{
    struct iovec iov = {payload, sizeof(struct wire_packet)};
    transport_send(p->data[1], &iov, 1);
}

static void ram_past_its_limit(struct peer *p)
{
    peer_packet(p, 0, data(0, rig.destination.host.limits.max_ram, 1), payload);
}

static void device_past_its_limit(struct peer *p)
{
    peer_packet(p, 1, data(1, rig.destination.host.limits.max_device, 1), payload);
}

static void truncation_past_the_limit(struct peer *p)
{
    peer_packet(p, 0, (struct packet){.type = WIRE_TRUNCATE, .offset = rig.destination.host.limits.max_ram + 1, .range = 1}, NULL);
}

static void zero_pages_past_the_limit(struct peer *p)
{
    peer_packet(p, 0, (struct packet){.type = WIRE_ZERO, .offset = rig.destination.host.limits.max_ram, .range = 4096}, NULL);
}

static void truncation_twice(struct peer *p)
{
    peer_packet(p, 0, (struct packet){.type = WIRE_TRUNCATE, .offset = 5, .range = 1}, NULL);
    peer_packet(p, 0, (struct packet){.type = WIRE_TRUNCATE, .offset = 6, .range = 1}, NULL);
}

static void zero_pages_of_a_device(struct peer *p)
{
    peer_packet(p, 1, (struct packet){.type = WIRE_ZERO, .file = 1, .range = 4096}, NULL);
}

static void pages_of_a_device(struct peer *p)
{
    struct packet packet = {.type = WIRE_PAGES, .file = 1, .range = 4096, .length = 8 + 4096};
    payload[0] = 1;
    peer_packet(p, 1, packet, payload);
}

static void more_bits_than_pages(struct peer *p)
{
    struct packet packet = {.type = WIRE_PAGES, .range = 8192, .length = 8 + 4096};
    payload[0] = 3;
    peer_packet(p, 0, packet, payload);
}

static void bits_past_the_range(struct peer *p)
{
    struct packet packet = {.type = WIRE_PAGES, .range = 8192, .length = 8 + 8192};
    payload[0] = 5;
    peer_packet(p, 0, packet, payload);
}

static void partial_pages(struct peer *p, uint8_t data_bits, uint8_t said_bits, uint32_t pages)
{
    struct packet packet = {
        .type = WIRE_PAGES, .flags = WIRE_PACKET_PARTIAL, .range = 8192, .length = 16 + pages * 4096};
    payload[0] = data_bits;
    payload[8] = said_bits;
    peer_packet(p, 0, packet, payload);
}

static void data_of_which_nothing_is_said(struct peer *p)
{
    partial_pages(p, 3, 1, 2);
}

static void pages_past_the_range_are_said(struct peer *p)
{
    partial_pages(p, 1, 5, 1);
}

static void fewer_pages_than_bits(struct peer *p)
{
    partial_pages(p, 3, 3, 1);
}

static void compressed_without_asking(struct peer *p)
{
    struct packet packet = data(0, 0, 10);
    packet.flags = WIRE_PACKET_ZSTD;
    packet.raw_length = 4096;
    peer_packet(p, 0, packet, payload);
}

static void sync_of_too_few(struct peer *p)
{
    struct wire_writer w = body();
    wire_write_u64(&w, 0);
    say(p, WIRE_SYNC, 1, &w);
}

static void sync_of_too_many(struct peer *p)
{
    struct wire_writer w = body();
    counts(&w, 0, 0);
    wire_write_u64(&w, 0);
    say(p, WIRE_SYNC, 1, &w);
}

static void too_many_barriers(struct peer *p)
{
    for (int i = 0; i < 5000; i++) {
        struct wire_writer w = body();
        counts(&w, 1000, 1000);
        say(p, WIRE_SYNC, (uint64_t)i + 1, &w);
    }
}

static void answer_of_a_destination(struct peer *p)
{
    peer_send(p->main, WIRE_COMMITTED, 1, NULL, 0);
}

static void noise_on_the_main_channel(struct peer *p)
{
    struct iovec iov = {payload, sizeof(struct wire_message)};
    transport_send(p->main, &iov, 1);
}

static void message_of_4_gib(struct peer *p)
{
    struct wire_message header;
    struct iovec iov = {&header, sizeof(header)};
    wire_message_encode(WIRE_SYNC, 1, NULL, 0, &header);
    header.length = UINT32_MAX;
    transport_send(p->main, &iov, 1);
}

static void file_of_a_number(struct peer *p, uint32_t number)
{
    struct wire_writer w = body();
    wire_write_u32(&w, number);
    wire_write_u64(&w, 0);
    wire_write_text(&w, "another");
    say(p, WIRE_FILE_CREATE, 0, &w);
}

static void file_of_a_number_that_is_taken(struct peer *p)
{
    file_of_a_number(p, 1);
}

static void file_of_a_number_that_is_none(struct peer *p)
{
    file_of_a_number(p, WIRE_DEVICES_MAX + 1);
}

/* Counts as they are now, or of packets that will never come. */
static void remove_file(struct peer *p, uint32_t number, bool later)
{
    struct wire_writer w = body();
    wire_write_u32(&w, number);
    counts(&w, p->sequence[0] + (later ? 1000 : 0), p->sequence[1]);
    say(p, WIRE_FILE_REMOVE, 7, &w);
}

static void rename_file(struct peer *p, uint32_t number, const char *name, uint32_t replaced, bool later)
{
    struct wire_writer w = body();
    wire_write_u32(&w, number);
    counts(&w, p->sequence[0] + (later ? 1000 : 0), p->sequence[1]);
    wire_write_u32(&w, replaced);
    wire_write_text(&w, name);
    say(p, WIRE_FILE_RENAME, 8, &w);
}

/* The destination says that it has made a change. */
static void await_change(struct peer *p, enum wire_message_type type)
{
    struct message message;
    cr_assert(zero(int, peer_receive(p->main, &message, body_buf)));
    cr_assert(eq(int, (int)message.type, (int)type));
    cr_assert(eq(u64, message.id, type == WIRE_FILE_REMOVE ? 7 : 8));
}

static void removal_of_ram(struct peer *p)
{
    remove_file(p, WIRE_RAM, false);
}

static void removal_of_nothing(struct peer *p)
{
    remove_file(p, 2, false);
}

static void removal_of_a_large_number(struct peer *p)
{
    remove_file(p, UINT32_MAX, false);
}

static void removal_twice(struct peer *p)
{
    remove_file(p, 1, true);
    remove_file(p, 1, false);
}

static void removal_without_counts(struct peer *p)
{
    struct wire_writer w = body();
    wire_write_u32(&w, 1);
    say(p, WIRE_FILE_REMOVE, 1, &w);
}

static void packet_after_a_removal(struct peer *p)
{
    remove_file(p, 1, false);
    await_change(p, WIRE_FILE_REMOVE);
    peer_packet(p, 1, data(1, 0, 10), payload);
}

static void end_after_a_removal(struct peer *p)
{
    struct wire_writer w = body();
    remove_file(p, 1, true);
    wire_write_u32(&w, 1);
    counts(&w, 0, 0);
    say(p, WIRE_FILE_END, 0, &w);
}

static void digest_after_a_removal(struct peer *p)
{
    struct wire_writer w = body();
    remove_file(p, 1, true);
    wire_write_u32(&w, 1);
    say(p, WIRE_DIGEST, 1, &w);
}

/* The number is free only when the destination has answered. */
static void number_of_a_file_that_is_still_there(struct peer *p)
{
    remove_file(p, 1, true);
    file_of_a_number(p, 1);
}

static void renaming_of_ram(struct peer *p)
{
    rename_file(p, WIRE_RAM, "rom", 0, false);
}

static void renaming_to_nothing(struct peer *p)
{
    rename_file(p, 1, "", 0, false);
}

static void renaming_out_of_the_directory(struct peer *p)
{
    rename_file(p, 1, "..", 0, false);
}

static void renaming_to_its_own_name(struct peer *p)
{
    rename_file(p, 1, "dev", 1, false);
}

static void renaming_that_replaces_nothing(struct peer *p)
{
    rename_file(p, 1, "new", 2, false);
}

static void renaming_to_a_name_that_is_taken(struct peer *p)
{
    peer_announce(p, 2, 0, "other");
    rename_file(p, 1, "other", 0, false);
}

static void renaming_that_replaces_another(struct peer *p)
{
    peer_announce(p, 2, 0, "other");
    peer_announce(p, 3, 0, "third");
    rename_file(p, 1, "other", 3, false);
}

static void too_many_changes(struct peer *p)
{
    for (int i = 0; i <= WIRE_CHANGES_MAX; i++)
        rename_file(p, 1, i % 2 ? "a" : "b", 0, true);
}

/* The manifest is about less than the change waits for. */
static void manifest_before_a_change(struct peer *p)
{
    struct wire_writer w = body();
    remove_file(p, 1, true);
    w = body();
    counts(&w, p->sequence[0], p->sequence[1]);
    wire_write_u32(&w, 1);
    for (int i = 0; i < 5; i++)
        wire_write_u64(&w, i == 1 ? RAM_SIZE : 0);
    say(p, WIRE_COMPLETE, 1, &w);
}

static void file_that_is_there(struct peer *p)
{
    struct wire_writer w = body();
    wire_write_u32(&w, 0);
    wire_write_u64(&w, 0);
    wire_write_text(&w, "ram");
    say(p, WIRE_FILE_CREATE, 0, &w);
}

static void file_that_is_too_large(struct peer *p)
{
    struct wire_writer w = body();
    wire_write_u32(&w, 2);
    wire_write_u64(&w, WIRE_OFFSET_MAX + 1);
    wire_write_text(&w, "dev-2");
    say(p, WIRE_FILE_CREATE, 0, &w);
}

static void file_with_bytes_left_over(struct peer *p)
{
    struct wire_writer w = body();
    wire_write_u32(&w, 2);
    wire_write_u64(&w, 0);
    wire_write_text(&w, "dev-2");
    wire_write_u16(&w, 0);
    say(p, WIRE_FILE_CREATE, 0, &w);
}

static void file_without_a_name(struct peer *p)
{
    struct wire_writer w = body();
    wire_write_u32(&w, 2);
    say(p, WIRE_FILE_CREATE, 0, &w);
}

static void end_of_ram(struct peer *p)
{
    struct wire_writer w = body();
    wire_write_u32(&w, 0);
    counts(&w, 0, 0);
    say(p, WIRE_FILE_END, 0, &w);
}

static void end_of_nothing(struct peer *p)
{
    struct wire_writer w = body();
    wire_write_u32(&w, 77);
    counts(&w, 0, 0);
    say(p, WIRE_FILE_END, 0, &w);
}

static void resume_of_nothing(struct peer *p)
{
    struct wire_writer w = body();
    wire_write_u32(&w, UINT32_MAX);
    say(p, WIRE_FILE_RESUME, 0, &w);
}

static void digest_of_nothing(struct peer *p)
{
    struct wire_writer w = body();
    wire_write_u32(&w, 2);
    say(p, WIRE_DIGEST, 1, &w);
}

static void complete_without_a_manifest(struct peer *p)
{
    struct wire_writer w = body();
    counts(&w, 0, 0);
    say(p, WIRE_COMPLETE, 1, &w);
}

static void manifest_of_4_billion_files(struct peer *p)
{
    struct wire_writer w = body();
    counts(&w, 0, 0);
    wire_write_u32(&w, UINT32_MAX);
    say(p, WIRE_COMPLETE, 1, &w);
}

/* A manifest of @n files, all empty but for what is given; files count from @first. */
static void complete(struct peer *p, uint32_t n, uint32_t first, uint64_t ram_size, uint64_t packets, uint64_t bytes,
                     uint64_t digest)
{
    struct wire_writer w = body();
    counts(&w, p->sequence[0], p->sequence[1]);
    wire_write_u32(&w, n);
    for (uint32_t i = 0; i < n; i++) {
        wire_write_u32(&w, first + i);
        wire_write_u32(&w, 0);
        wire_write_u64(&w, i ? 0 : ram_size);
        wire_write_u64(&w, i ? 0 : packets);
        wire_write_u64(&w, i ? 0 : bytes);
        wire_write_u64(&w, i ? 0 : digest);
    }
    say(p, WIRE_COMPLETE, 1, &w);
}

static void manifest_out_of_order(struct peer *p)
{
    complete(p, 2, UINT32_MAX, RAM_SIZE, 0, 0, 0);
}

static void manifest_of_one_file_twice(struct peer *p)
{
    struct wire_writer w = body();
    counts(&w, p->sequence[0], p->sequence[1]);
    wire_write_u32(&w, 2);
    for (uint32_t i = 0; i < 2; i++) {
        wire_write_u64(&w, WIRE_RAM);
        for (unsigned j = 0; j < 4; j++)
            wire_write_u64(&w, 0);
    }
    say(p, WIRE_COMPLETE, 1, &w);
}

static void manifest_of_other_files(struct peer *p)
{
    complete(p, 2, 1, 0, 0, 0, 0);
}

static void manifest_of_more_files(struct peer *p)
{
    complete(p, 3, 0, RAM_SIZE, 0, 0, 0);
}

static void manifest_of_another_size(struct peer *p)
{
    complete(p, 2, 0, RAM_SIZE - 1, 0, 0, 0);
}

static void manifest_of_more_packets(struct peer *p)
{
    complete(p, 2, 0, RAM_SIZE, 1, 0, 0);
}

static void manifest_of_more_bytes(struct peer *p)
{
    complete(p, 2, 0, RAM_SIZE, 0, 1, 0);
}

static void manifest_of_another_digest(struct peer *p)
{
    complete(p, 2, 0, RAM_SIZE, 0, 0, 1);
}

static void commit_out_of_the_blue(struct peer *p)
{
    peer_send(p->main, WIRE_COMMIT, 1, NULL, 0);
}

static void await_prepared(struct peer *p)
{
    struct message message;
    complete(p, 2, 0, RAM_SIZE, 0, 0, 0);
    cr_assert(zero(int, peer_receive(p->main, &message, body_buf)));
    cr_assert(eq(int, (int)message.type, WIRE_PREPARED));
}

static void commit_of_another_manifest(struct peer *p)
{
    await_prepared(p);
    peer_send(p->main, WIRE_COMMIT, 2, NULL, 0);
}

static void commit_after_more_data(struct peer *p)
{
    await_prepared(p);
    peer_packet(p, 0, data(0, 0, 10), payload);
    cr_assert(peer_sync(p, 5));
    peer_send(p->main, WIRE_COMMIT, 1, NULL, 0);
}

/* The manifest said nothing of it. */
static void commit_after_another_file(struct peer *p)
{
    struct wire_writer w = {body_buf, body_buf, body_buf + sizeof(body_buf)};
    struct message message;

    await_prepared(p);
    wire_write_u32(&w, 2);
    wire_write_u64(&w, 5);
    wire_write_text(&w, "late");
    say(p, WIRE_FILE_CREATE, 0, &w);
    cr_assert(zero(int, peer_receive(p->main, &message, body_buf)));
    peer_send(p->main, WIRE_COMMIT, 1, NULL, 0);
}

static void commit_after_a_removal(struct peer *p)
{
    await_prepared(p);
    remove_file(p, 1, false);
    await_change(p, WIRE_FILE_REMOVE);
    peer_send(p->main, WIRE_COMMIT, 1, NULL, 0);
}

static void commit_after_a_renaming(struct peer *p)
{
    await_prepared(p);
    rename_file(p, 1, "late", 0, true);
    peer_send(p->main, WIRE_COMMIT, 1, NULL, 0);
}

static void hang_up_in_a_packet(struct peer *p)
{
    struct wire_packet wire;
    struct packet packet = data(0, 0, 4096);
    struct iovec iov[2] = {{&wire, sizeof(wire)}, {payload, 100}};
    packet.sequence = 1;
    packet.raw_length = packet.length;
    wire_packet_encode(&packet, &wire);
    transport_send(p->data[0], iov, 2);
    transport_finish(p->data[0]);
}

static void hang_up_a_data_channel(struct peer *p)
{
    transport_finish(p->data[1]);
}

static void hang_up_after_prepared(struct peer *p)
{
    await_prepared(p);
    transport_finish(p->main);
}

static void give_up(struct peer *p)
{
    struct wire_writer w = body();
    wire_write_u32(&w, CAUSE_NO_SPACE);
    wire_write_text(&w, "the source's disk is full");
    say(p, WIRE_ABORT, 0, &w);
}

static const struct {
    const char *what;
    void (*break_it)(struct peer *p);
    enum cause cause;
} breaches[] = {
#define CASE(f, cause) {#f, f, cause}
    CASE(wrong_sequence, CAUSE_PROTOCOL),
    CASE(repeated_sequence, CAUSE_PROTOCOL),
    CASE(wrong_channel, CAUSE_PROTOCOL),
    CASE(unannounced_file, CAUSE_PROTOCOL),
    CASE(wrong_home, CAUSE_PROTOCOL),
    CASE(damaged_payload, CAUSE_PROTOCOL),
    CASE(noise_on_a_data_channel, CAUSE_PROTOCOL),
    CASE(ram_past_its_limit, CAUSE_QUOTA),
    CASE(device_past_its_limit, CAUSE_QUOTA),
    CASE(truncation_past_the_limit, CAUSE_QUOTA),
    CASE(zero_pages_past_the_limit, CAUSE_QUOTA),
    CASE(truncation_twice, CAUSE_PROTOCOL),
    CASE(zero_pages_of_a_device, CAUSE_PROTOCOL),
    CASE(pages_of_a_device, CAUSE_PROTOCOL),
    CASE(more_bits_than_pages, CAUSE_PROTOCOL),
    CASE(bits_past_the_range, CAUSE_PROTOCOL),
    CASE(data_of_which_nothing_is_said, CAUSE_PROTOCOL),
    CASE(pages_past_the_range_are_said, CAUSE_PROTOCOL),
    CASE(fewer_pages_than_bits, CAUSE_PROTOCOL),
    CASE(compressed_without_asking, CAUSE_PROTOCOL),
    CASE(sync_of_too_few, CAUSE_PROTOCOL),
    CASE(sync_of_too_many, CAUSE_PROTOCOL),
    CASE(too_many_barriers, CAUSE_PROTOCOL),
    CASE(answer_of_a_destination, CAUSE_PROTOCOL),
    CASE(noise_on_the_main_channel, CAUSE_PROTOCOL),
    CASE(message_of_4_gib, CAUSE_PROTOCOL),
    CASE(file_of_a_number_that_is_taken, CAUSE_PROTOCOL),
    CASE(file_of_a_number_that_is_none, CAUSE_PROTOCOL),
    CASE(removal_of_ram, CAUSE_PROTOCOL),
    CASE(removal_of_nothing, CAUSE_PROTOCOL),
    CASE(removal_of_a_large_number, CAUSE_PROTOCOL),
    CASE(removal_twice, CAUSE_PROTOCOL),
    CASE(removal_without_counts, CAUSE_PROTOCOL),
    CASE(packet_after_a_removal, CAUSE_PROTOCOL),
    CASE(end_after_a_removal, CAUSE_PROTOCOL),
    CASE(digest_after_a_removal, CAUSE_PROTOCOL),
    CASE(number_of_a_file_that_is_still_there, CAUSE_PROTOCOL),
    CASE(renaming_of_ram, CAUSE_PROTOCOL),
    CASE(renaming_to_nothing, CAUSE_SYNTAX),
    CASE(renaming_out_of_the_directory, CAUSE_SYNTAX),
    CASE(renaming_to_its_own_name, CAUSE_PROTOCOL),
    CASE(renaming_that_replaces_nothing, CAUSE_PROTOCOL),
    CASE(renaming_to_a_name_that_is_taken, CAUSE_PROTOCOL),
    CASE(renaming_that_replaces_another, CAUSE_PROTOCOL),
    CASE(too_many_changes, CAUSE_PROTOCOL),
    CASE(manifest_before_a_change, CAUSE_PROTOCOL),
    CASE(file_that_is_there, CAUSE_PROTOCOL),
    CASE(file_that_is_too_large, CAUSE_PROTOCOL),
    CASE(file_with_bytes_left_over, CAUSE_PROTOCOL),
    CASE(file_without_a_name, CAUSE_PROTOCOL),
    CASE(end_of_ram, CAUSE_PROTOCOL),
    CASE(end_of_nothing, CAUSE_PROTOCOL),
    CASE(resume_of_nothing, CAUSE_PROTOCOL),
    CASE(digest_of_nothing, CAUSE_PROTOCOL),
    CASE(complete_without_a_manifest, CAUSE_MISMATCH),
    CASE(manifest_of_4_billion_files, CAUSE_MISMATCH),
    CASE(manifest_out_of_order, CAUSE_PROTOCOL),
    CASE(manifest_of_one_file_twice, CAUSE_PROTOCOL),
    CASE(manifest_of_other_files, CAUSE_MISMATCH),
    CASE(manifest_of_more_files, CAUSE_MISMATCH),
    CASE(manifest_of_another_size, CAUSE_MISMATCH),
    CASE(manifest_of_more_packets, CAUSE_MISMATCH),
    CASE(manifest_of_more_bytes, CAUSE_MISMATCH),
    CASE(manifest_of_another_digest, CAUSE_MISMATCH),
    CASE(commit_out_of_the_blue, CAUSE_PROTOCOL),
    CASE(commit_of_another_manifest, CAUSE_PROTOCOL),
    CASE(commit_after_more_data, CAUSE_PROTOCOL),
    CASE(commit_after_another_file, CAUSE_PROTOCOL),
    CASE(commit_after_a_removal, CAUSE_PROTOCOL),
    CASE(commit_after_a_renaming, CAUSE_PROTOCOL),
    CASE(hang_up_in_a_packet, CAUSE_RESET),
    CASE(hang_up_a_data_channel, CAUSE_RESET),
    CASE(hang_up_after_prepared, CAUSE_RESET),
    CASE(give_up, CAUSE_NO_SPACE),
#undef CASE
};

static struct peer peer; /* of the tests; the cases above get it as an argument */

static struct migration *open_all(const char *name)
{
    peer_open(&peer, rig.address, name, 2);
    cr_assert(eq(int, (int)peer_announce(&peer, 0, RAM_SIZE, "ram"), CAUSE_NONE));
    cr_assert(eq(int, (int)peer_announce(&peer, 1, 0, "dev"), CAUSE_NONE));
    return rig_arrived(&rig, name);
}

/* Each ends the migration with its cause, the peer is told, and another migration goes on all the time. */
Test(incoming, breaches)
{
    struct message message = {0};
    uint8_t *got = malloc(WIRE_BODY_MAX);

    rig_init(&rig, place(), NULL);
    struct migration *bystander = rig_start(&rig, "bystander", 2, 0);
    for (size_t i = 0; i < ARRAY_LENGTH(breaches); i++) {
        struct migration *m = open_all("vm");
        memset(payload, 0, sizeof(payload));
        breaches[i].break_it(&peer);
        cr_expect(eq(int, (int)rig_await_end(m), STATE_FAILED), "%s", breaches[i].what);
        cr_expect(eq(int, (int)m->failure.cause, (int)breaches[i].cause), "%s: %s", breaches[i].what, m->failure.message);
        cr_expect(ne(str, m->failure.message, ""), "%s", breaches[i].what);
        if (breaches[i].break_it != give_up) {
            int ret;
            while ((ret = peer_receive(peer.main, &message, got)) == 0 && message.type != WIRE_ABORT)
                ;
            cr_expect(zero(int, ret), "%s: the peer is told why", breaches[i].what);
            struct error told = {0};
            struct wire_reader r = {.p = got, .left = message.length};
            session_read_abort(&r, "the destination", &told);
            cr_expect(eq(int, (int)told.cause, (int)breaches[i].cause), "%s: %s", breaches[i].what, told.message);
        }
        cr_expect(eq(int, (int)host_outcome(&rig.destination.host, peer.hello.session, nobody.digest) == WIRE_OUTCOME_COMPLETED, 0));
        peer_close(&peer);
        migration_put(m);
        rig_write(bystander, migration_file(bystander, WIRE_RAM), "still here", 10, i);
        struct error err;
        CHECK_OK(outgoing_sync(bystander, NULL, NULL, &err));
    }
    migration_put(bystander);
    rig_fini(&rig);
    free(got);
}

/* Announcements that are refused, and after which the migration goes on. */
Test(incoming, refused_files)
{
    struct limits limits = rig_limits();

    limits.max_devices = 2;
    limits.max_memory = 100 << 20;
    rig_init(&rig, place(), &limits);
    struct migration *m = open_all("vm");
    cr_expect(eq(int, (int)peer_announce(&peer, 2, 0, "dev"), CAUSE_EXISTS));
    cr_expect(eq(int, (int)peer_announce(&peer, 2, 0, "../x"), CAUSE_SYNTAX));
    cr_expect(eq(int, (int)peer_announce(&peer, 2, 0, ".."), CAUSE_SYNTAX));
    cr_expect(eq(int, (int)peer_announce(&peer, 2, 0, ""), CAUSE_SYNTAX));
    cr_expect(eq(int, (int)peer_announce(&peer, 2, limits.max_device + 1, "large"), CAUSE_QUOTA));
    cr_expect(eq(int, (int)peer_announce(&peer, 2, 0, ".second"), CAUSE_NONE));
    cr_expect(eq(int, (int)peer_announce(&peer, 3, 0, "third"), CAUSE_QUOTA));
    cr_expect(eq(int, (int)m->state, STATE_ACTIVE));
    cr_expect(eq(u32, m->file_count, 3));
    peer_packet(&peer, 0, data(0, 0, 10), payload);
    cr_expect(peer_sync(&peer, 1));
    peer_close(&peer);
    migration_put(m);
    rig_fini(&rig);
}

Test(incoming, message_before_the_channels)
{
    struct hello hello = peer_hello("vm", 2);
    struct hello_reply reply;
    struct message message;
    uint8_t *got = malloc(WIRE_BODY_MAX);

    rig_init(&rig, place(), NULL);
    struct transport *t = peer_greet(rig.address, &hello, &reply);
    struct wire_writer w = body();
    wire_write_u32(&w, 0);
    wire_write_u64(&w, 0);
    wire_write_text(&w, "ram");
    peer_send(t, WIRE_FILE_CREATE, 0, body_buf, wire_written(&w));
    cr_assert(zero(int, peer_receive(t, &message, got)));
    cr_expect(eq(int, (int)message.type, WIRE_ABORT));
    transport_close(t);
    rig_fini(&rig);
    free(got);
}

/* A whole migration by hand, as migfs-wire(7) has it. */
Test(incoming, by_hand)
{
    struct message message;
    struct wire_packet wire;
    struct packet packet = data(0, 100, 5);
    char got[8];

    rig_init(&rig, place(), NULL);
    struct migration *m = open_all("vm");
    peer_packet(&peer, 0, packet, "hello");
    cr_expect(peer_sync(&peer, 17));
    struct file *ram = migration_file(m, WIRE_RAM);
    cr_expect(eq(long, file_read(ram, 100, got, 5, true, NULL), 5));
    cr_expect(zero(int, memcmp(got, "hello", 5)));
    packet.sequence = 1;
    packet.raw_length = 5;
    packet.payload_check = wire_payload_check("hello", 5);
    uint64_t digest = wire_packet_encode(&packet, &wire);
    complete(&peer, 2, 0, RAM_SIZE, 1, 5, digest);
    cr_assert(zero(int, peer_receive(peer.main, &message, body_buf)));
    cr_expect(eq(int, (int)message.type, WIRE_PREPARED));
    cr_expect(eq(u64, message.id, 1));
    cr_expect(eq(int, (int)m->state, STATE_ACTIVE), "not before the commit");
    peer_send(peer.main, WIRE_COMMIT, 1, NULL, 0);
    cr_assert(zero(int, peer_receive(peer.main, &message, body_buf)));
    cr_expect(eq(int, (int)message.type, WIRE_COMMITTED));
    cr_expect(eq(int, (int)rig_await_end(m), STATE_COMPLETED));
    peer_close(&peer);
    migration_put(m);
    rig_fini(&rig);
}

/* The devices that users see, with a space behind each. */
static char *listing(struct migration *m)
{
    static char text[1024];
    struct file **files;
    int n = migration_files(m, &files, NULL);

    *text = '\0';
    for (int i = 1; i < n; i++) {
        char name[WIRE_NAME_MAX + 1];
        strcat(strcat(text, file_name(files[i], name)), " ");
    }
    migration_put_files(files, n);
    return text;
}

/* Changes come after the data that was sent before them, and one after another; a file that is made meanwhile waits for them. */
Test(incoming, changes_in_order)
{
    char got[8];

    rig_init(&rig, place(), NULL);
    struct migration *m = open_all("vm");
    struct file *old = file_get(migration_file(m, 1));
    unsigned home = file_home(old, 0);
    cr_expect(zero(int, file_open_reader(old)));
    peer_packet(&peer, home, data(1, 0, 5), "first");
    cr_expect(peer_sync(&peer, 1));
    /* Three packets are announced; so long nothing changes for users, but everything for what comes next. */
    struct wire_writer w = body();
    wire_write_u32(&w, 1);
    counts(&w, peer.sequence[0] + (home == 0 ? 3 : 0), peer.sequence[1] + (home == 1 ? 3 : 0));
    say(&peer, WIRE_FILE_REMOVE, 7, &w);
    cr_expect(eq(int, (int)peer_announce(&peer, 2, 0, "dev"), CAUSE_NONE), "the name is free");
    cr_expect(eq(int, (int)peer_announce(&peer, 3, 0, "dev"), CAUSE_EXISTS), "and taken again");
    rename_file(&peer, 2, "renamed", 0, false);
    cr_expect(eq(int, (int)peer_announce(&peer, 3, 0, "dev"), CAUSE_NONE));
    rename_file(&peer, 3, "renamed", 2, false);
    cr_expect(peer_sync(&peer, 2), "nothing is answered before its turn");
    cr_expect(eq(str, listing(m), "dev "));
    for (int i = 1; i <= 3; i++)
        peer_packet(&peer, home, data(1, 5 * i, 5), "again");
    await_change(&peer, WIRE_FILE_REMOVE);
    await_change(&peer, WIRE_FILE_RENAME);
    await_change(&peer, WIRE_FILE_RENAME);
    cr_expect(peer_sync(&peer, 3));
    cr_expect(eq(str, listing(m), "renamed "));
    /* Whoever has it open reads what arrived. */
    cr_expect(eq(long, file_read(old, 15, got, 5, true, NULL), 5));
    cr_expect(zero(int, memcmp(got, "again", 5)));
    cr_expect(eq(long, file_read(old, 20, got, 5, true, NULL), -ESTALE), "but it will not end");
    cr_expect(eq(int, file_open_reader(old), -ESTALE));
    uint64_t used = rig.destination.host.accounts.memory.used;
    file_close_reader(old);
    cr_expect(le(u64, rig.destination.host.accounts.memory.used, used - 20), "its memory is given back");
    cr_expect(eq(u64, m->gone[home].packets, 4));
    /* Its number is free now, and it begins anew. */
    cr_expect(eq(int, (int)peer_announce(&peer, 1, 0, "dev"), CAUSE_NONE));
    cr_expect(eq(str, listing(m), "dev renamed "));
    peer_packet(&peer, home, data(1, 0, 5), "hello");
    cr_expect(peer_sync(&peer, 4));
    struct file *dev = migration_file(m, 1);
    cr_expect(eq(long, file_read(dev, 0, got, 8, true, NULL), 5));
    cr_expect(zero(int, memcmp(got, "hello", 5)));
    file_put(old);
    peer_close(&peer);
    migration_put(m);
    rig_fini(&rig);
}

/* FILE_END that arrives after packets that were sent behind it. */
Test(incoming, late_end_of_a_stream)
{
    rig_init(&rig, place(), NULL);
    struct migration *m = open_all("vm");
    struct file *dev = migration_file(m, 1);
    unsigned home = file_home(dev, 0);
    for (uint64_t count = 1; count <= 3; count++) {
        peer_packet(&peer, home, data(1, 5 * (count - 1), 5), "hello");
        cr_expect(peer_sync(&peer, count));
        /* Once with a count that is over, once with the right one. */
        for (uint64_t told = count - 1; told <= count; told++) {
            struct wire_writer w = body();
            wire_write_u32(&w, 1);
            counts(&w, home == 0 ? told : 0, home == 1 ? told : 0);
            say(&peer, WIRE_FILE_END, 0, &w);
            cr_expect(peer_sync(&peer, 100 + told));
            cr_expect(eq(int, file_readable(dev, 5 * count), told == count), "%d of %d packets", (int)told, (int)count);
        }
    }
    peer_close(&peer);
    migration_put(m);
    rig_fini(&rig);
}

/*
 * Compressed payloads. The first time a page arrives it is stored from a buffer,
 * later it is unpacked where it belongs.
 */

static struct compressor *packer;
static uint8_t *packed;

static void open_compressed(const char *name, struct migration **m)
{
    peer_open_with(&peer, rig.address, name, 2, WIRE_FEATURE_ZSTD);
    cr_assert(eq(int, (int)peer_announce(&peer, 0, RAM_SIZE, "ram"), CAUSE_NONE));
    *m = rig_arrived(&rig, name);
}

/* A payload that shrinks, of no more than 4 bits a byte; another one for each @seed. */
static void make_payload(uint8_t *out, size_t len, uint32_t seed)
{
    for (size_t i = 0; i < len; i++) {
        seed = seed * 1664525 + 1013904223;
        out[i] = (uint8_t)('a' + (seed >> 28));
    }
}

/* The same packet, compressed; the packed payload is in @packed. */
static struct packet compressed(struct packet packet, const void *raw)
{
    struct context *lease = NULL;

    packet.flags = WIRE_PACKET_ZSTD;
    packet.raw_length = packet.length;
    packet.length = (uint32_t)compressor_pack(packer, raw, packet.raw_length, packed, false, &lease);
    compressor_help(packer, lease);
    cr_assert(ne(u32, packet.length, 0));
    return packet;
}

static void expect_ram(struct migration *m, uint64_t offset, const uint8_t *want, size_t len)
{
    static uint8_t got[STRIPE];

    cr_expect(eq(long, file_read(migration_file(m, WIRE_RAM), offset, got, len, true, NULL), (long)len));
    cr_expect(zero(int, memcmp(got, want, len)), "%zu bytes at %llu", len, (unsigned long long)offset);
}

Test(incoming, compressed)
{
    static const size_t lengths[] = {STRIPE, 5000, 4096, 200000};
    static uint8_t page_payload[8 + 2 * 4096];
    static const uint8_t zeros[4096];
    struct migration *m;

    rig_init(&rig, place(), NULL);
    packer = compressor_new(1);
    packed = compressor_buffer(packer);
    open_compressed("vm", &m);
    for (uint32_t round = 0; round < 3; round++) {
        for (size_t i = 0; i < ARRAY_LENGTH(lengths); i++) {
            uint64_t offset = 2 * i * STRIPE;
            make_payload(payload, lengths[i], 10 * round + (uint32_t)i);
            struct packet packet = compressed(data(0, offset, (uint32_t)lengths[i]), payload);
            cr_assert(zero(int, peer_packet(&peer, 0, packet, packed)));
            cr_assert(peer_sync(&peer, 1 + i + 10 * round), "%s", m->failure.message);
            expect_ram(m, offset, payload, lengths[i]);
        }
        /* The first and the third page of three. */
        make_payload(page_payload, sizeof(page_payload), 100 + round);
        memset(page_payload, 0, 8);
        page_payload[0] = 5;
        struct packet packet = {.type = WIRE_PAGES, .offset = STRIPE, .range = 3 * 4096, .length = sizeof(page_payload)};
        packet = compressed(packet, page_payload);
        cr_assert(zero(int, peer_packet(&peer, 1, packet, packed)));
        cr_assert(peer_sync(&peer, 9 + 10 * round), "%s", m->failure.message);
        expect_ram(m, STRIPE, page_payload + 8, 4096);
        expect_ram(m, STRIPE + 4096, zeros, 4096);
        expect_ram(m, STRIPE + 8192, page_payload + 8 + 4096, 4096);
    }
    peer_close(&peer);
    cr_expect(eq(int, (int)rig_await_end(m), STATE_FAILED));
    migration_put(m);
    rig_fini(&rig);
    compressor_return(packer, packed);
    compressor_free(packer);
}

/* What is wrong with a compressed packet for pages that are there. */
static void cut_frame(struct packet *packet, struct migration *m)
{
    (void)m;
    packet->length--;
}

static void damaged_frame(struct packet *packet, struct migration *m)
{
    (void)packet, (void)m;
    memset(packed + 20, 0xff, 40); /* in a table */
}

static void frame_that_grows(struct packet *packet, struct migration *m)
{
    (void)m;
    packet->raw_length -= 4096;
}

static void frame_that_shrinks(struct packet *packet, struct migration *m)
{
    (void)m;
    packet->raw_length += 4096;
}

static void memory_went_away(struct packet *packet, struct migration *m)
{
    (void)packet;
    cr_assert(zero(int, ftruncate(migration_file(m, WIRE_RAM)->image.memory.fd, 0)));
}

static const struct {
    const char *what;
    void (*spoil)(struct packet *packet, struct migration *m);
    enum cause cause;
} spoilt[] = {
    {"cut_frame", cut_frame, CAUSE_PROTOCOL},
    {"damaged_frame", damaged_frame, CAUSE_PROTOCOL},
    {"frame_that_grows", frame_that_grows, CAUSE_PROTOCOL},
    {"frame_that_shrinks", frame_that_shrinks, CAUSE_PROTOCOL},
    {"memory_went_away", memory_went_away, CAUSE_IO},
};

/* Each ends the migration with a sentence. */
Test(incoming, spoilt_frames)
{
    enum { LENGTH = 300000 / 4096 * 4096 };
    static uint8_t before[STRIPE];
    struct migration *m;

    guard_setup();
    rig_init(&rig, place(), NULL);
    packer = compressor_new(1);
    packed = compressor_buffer(packer);
    make_payload(before, sizeof(before), 1);
    make_payload(payload, LENGTH, 2);
    for (size_t i = 0; i < ARRAY_LENGTH(spoilt); i++) {
        open_compressed("vm", &m);
        peer_packet(&peer, 0, data(0, 0, STRIPE), before);
        cr_assert(peer_sync(&peer, 1));
        struct packet packet = compressed(data(0, 0, LENGTH), payload);
        spoilt[i].spoil(&packet, m);
        peer_packet(&peer, 0, packet, packed);
        cr_expect(eq(int, (int)rig_await_end(m), STATE_FAILED), "%s", spoilt[i].what);
        cr_expect(eq(int, (int)m->failure.cause, (int)spoilt[i].cause), "%s: %s", spoilt[i].what, m->failure.message);
        peer_close(&peer);
        migration_put(m);
    }
    rig_fini(&rig);
    compressor_return(packer, packed);
    compressor_free(packer);
}

/*
 * A source may call off a `complete` and go on, so a manifest that is about less
 * than has been applied is out of date: it is not answered, and ends nothing.
 */
Test(incoming, manifests_that_are_out_of_date)
{
    struct message message;

    rig_init(&rig, place(), NULL);
    struct migration *m = open_all("vm");
    /* Fewer packets than have been applied. */
    struct peer before = peer;
    peer_packet(&peer, 0, data(0, 0, 10), payload);
    cr_assert(peer_sync(&peer, 1));
    complete(&before, 2, 0, RAM_SIZE, 0, 0, 0);
    cr_expect(peer_sync(&peer, 2), "no other answer comes first");
    /* Fewer files than have been announced. */
    cr_assert(eq(int, (int)peer_announce(&peer, 2, 0, "dev-2"), CAUSE_NONE));
    complete(&peer, 2, 0, RAM_SIZE, 1, 10, 0);
    cr_expect(peer_sync(&peer, 3));
    cr_expect(eq(int, (int)m->state, STATE_ACTIVE), "%s", m->failure.message);
    /* And so it cannot be committed. */
    peer_send(peer.main, WIRE_COMMIT, 1, NULL, 0);
    cr_assert(zero(int, peer_receive(peer.main, &message, body_buf)));
    cr_expect(eq(int, (int)message.type, WIRE_ABORT));
    cr_expect(eq(int, (int)rig_await_end(m), STATE_FAILED));
    peer_close(&peer);
    migration_put(m);
    rig_fini(&rig);
}

static unsigned listed(void)
{
    SCOPED_LOCK(&rig.destination.lock);
    return rig.destination.count;
}

/* Its channels never came: nothing of it is in the list any more. */
Test(incoming, attempt_that_fails_is_forgotten)
{
    struct hello hello = peer_hello("vm", 2);
    struct hello_reply reply;

    rig_init(&rig, place(), NULL);
    struct transport *t = peer_greet(rig.address, &hello, &reply);
    cr_assert(not(zero(ptr, t)), "%s", reply.text);
    cr_expect(eq(uint, listed(), 1));
    transport_close(t);
    while (listed())
        sched_yield();
    rig_fini(&rig);
}

/* A user who expects it sees why, and may have it come again. */
Test(incoming, attempt_that_fails_is_told)
{
    struct hello hello = peer_hello("vm", 2);
    struct hello_reply reply;
    char text[ERROR_MESSAGE_MAX] = "";
    struct migration *m;
    struct error err;

    rig_init(&rig, place(), NULL);
    CHECK_OK(registry_add_outgoing(&rig.destination, "vm", 0, 0, &m, &err));
    struct transport *t = peer_greet(rig.address, &hello, &reply);
    cr_assert(not(zero(ptr, t)), "%s", reply.text);
    migration_last_error(m, text);
    cr_expect(eq(str, text, ""));
    transport_close(t);
    while (!text[0]) {
        sched_yield();
        migration_last_error(m, text);
    }
    cr_expect(eq(int, (int)migration_state(m), STATE_NONE));
    peer_open(&peer, rig.address, "vm", 2);
    cr_expect(eq(int, (int)peer_announce(&peer, WIRE_RAM, 1 << 20, "ram"), CAUSE_NONE));
    cr_expect(migration_is_incoming(m));
    migration_put(m);
    peer_close(&peer);
    rig_fini(&rig);
}

/*
 * Questions
 */

static enum wire_outcome ask(const struct hello *of)
{
    struct hello hello = *of;
    struct hello_reply reply;

    hello.kind = WIRE_HELLO_QUERY;
    struct transport *t = peer_greet(rig.address, &hello, &reply);
    cr_assert(not(zero(ptr, t)));
    transport_close(t);
    return reply.outcome;
}

Test(incoming, questions)
{
    struct hello unknown = peer_hello("vm", 2);
    struct error err;

    rig_init(&rig, place(), NULL);
    cr_expect(eq(int, (int)ask(&unknown), WIRE_OUTCOME_UNKNOWN));
    struct migration *m = open_all("vm");
    cr_expect(eq(int, (int)ask(&unknown), WIRE_OUTCOME_UNKNOWN), "another session's");
    cr_expect(eq(int, (int)m->state, STATE_ACTIVE));
    /* The answer has to stay true. */
    cr_expect(eq(int, (int)ask(&peer.hello), WIRE_OUTCOME_FAILED));
    cr_expect(eq(int, (int)rig_await_end(m), STATE_FAILED));
    cr_expect(eq(str, m->failure.message, "the source has lost the connection"));
    cr_expect(eq(int, (int)ask(&peer.hello), WIRE_OUTCOME_FAILED));
    peer_close(&peer);
    migration_put(m);

    m = open_all("vm");
    await_prepared(&peer);
    peer_send(peer.main, WIRE_COMMIT, 1, NULL, 0);
    cr_expect(eq(int, (int)rig_await_end(m), STATE_COMPLETED));
    cr_expect(eq(int, (int)ask(&peer.hello), WIRE_OUTCOME_COMPLETED));
    peer_close(&peer);
    CHECK_OK(registry_remove(&rig.destination, m, &err));
    cr_expect(eq(int, (int)ask(&peer.hello), WIRE_OUTCOME_COMPLETED), "it is remembered");
    migration_put(m);
    rig_fini(&rig);
}

/* A source that is alive, and whose channel carries nothing more that a barrier waits for. */
Test(incoming, barrier_that_stands_still)
{
    struct limits limits = rig_limits();
    struct message message = {0};
    uint8_t *got = malloc(WIRE_BODY_MAX);
    struct wire_writer w = body();
    uint64_t received = 0, applied = 0;

    limits.timeout_ms = peer_timeout_ms = 300;
    rig_init(&rig, place(), &limits);
    struct migration *m = open_all("vm");
    peer_packet(&peer, 1, data(0, STRIPE, 10), payload);
    counts(&w, 0, 2);
    say(&peer, WIRE_SYNC, 1, &w);
    while (message.type != WIRE_ABORT) {
        struct wire_message header;
        peer_send(peer.main, WIRE_PING, 0, NULL, 0);
        cr_assert(zero(int, transport_recv_all(peer.main, &header, sizeof(header), NULL)));
        cr_assert(zero(int, wire_message_decode(&header, &message, NULL)));
        cr_assert(zero(int, transport_recv_all(peer.main, got, message.length, NULL)));
        if (message.type == WIRE_PROGRESS) {
            struct wire_reader r = {.p = got + 24, .left = message.length - 24};
            cr_assert(eq(u32, message.length, 8 + 2 * 16));
            received = wire_read_u64(&r);
            applied = wire_read_u64(&r);
        }
    }
    cr_expect(eq(u64, received, sizeof(struct wire_packet) + 10), "of channel 1");
    cr_expect(eq(u64, applied, 1));
    cr_expect(eq(int, (int)rig_await_end(m), STATE_FAILED));
    cr_expect(eq(int, (int)m->failure.cause, CAUSE_TIMEOUT), "%s", m->failure.message);
    cr_expect(eq(int, strncmp(m->failure.message, "channel 1 has stalled", 21), 0), "%s", m->failure.message);
    peer_close(&peer);
    migration_put(m);
    rig_fini(&rig);
    free(got);
}

/* Random bytes on either kind of channel, at every stage. */
Test(incoming, noise)
{
    uint64_t random = 7;

    rig_init(&rig, place(), NULL);
    for (int round = 0; round < 60; round++) {
        uint8_t noise[3000];
        struct iovec iov = {noise, sizeof(noise)};
        for (size_t i = 0; i < sizeof(noise); i++) {
            random = random * 6364136223846793005ull + 1442695040888963407ull;
            noise[i] = (uint8_t)(random >> 56);
        }
        if (round % 3 == 0) {
            struct transport *t = peer_dial(rig.address);
            transport_send(t, &iov, 1);
            transport_close(t);
            continue;
        }
        struct migration *m = open_all("vm");
        transport_send(round % 3 == 1 ? peer.main : peer.data[round % 2], &iov, 1);
        cr_expect(eq(int, (int)rig_await_end(m), STATE_FAILED));
        peer_close(&peer);
        migration_put(m);
    }
    rig_fini(&rig);
}

/*
 * A peer that talks and never listens: its questions fill the buffers of both
 * directions. The daemon can still be told to stop.
 */
Test(incoming, peer_that_never_listens)
{
    struct wire_writer w = body();
    struct wire_message header;
    struct error err;

    rig_init(&rig, place(), NULL);
    struct migration *m = open_all("vm");
    counts(&w, 0, 0);
    wire_message_encode(WIRE_SYNC, 1, body_buf, wire_written(&w), &header);
    char bytes[sizeof(header) + 16];
    memcpy(bytes, &header, sizeof(header));
    memcpy(bytes + sizeof(header), body_buf, 16);
    int fd = transport_pollfd(peer.main);
    for (bool stuck = false; !stuck;) {
        struct pollfd pfd = {.fd = fd, .events = POLLOUT};
        stuck = poll(&pfd, 1, 300) == 0;
        if (!stuck && send(fd, bytes, sizeof(bytes), MSG_DONTWAIT | MSG_NOSIGNAL) != sizeof(bytes))
            stuck = true; /* a part of a message: the destination is not reading */
    }
    /* It may have given up by itself. */
    migration_cancel(m, &err);
    enum state state = rig_await_end(m);
    cr_expect(state == STATE_CANCELLED || state == STATE_FAILED);
    migration_put(m);
    /* Hangs here when the thread of the migration does. */
    rig_fini(&rig);
    peer_close(&peer);
}

/* Processor time of this process, in microseconds. */
static int64_t processor_time(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
    return ts.tv_sec * 1000000ll + ts.tv_nsec / 1000;
}

/* What it costs to have @n barriers of 128 counts wait, and then pass. */
static int64_t cost_of_barriers(unsigned n)
{
    struct migration *m;
    struct message message;

    peer_open(&peer, rig.address, "vm", WIRE_CHANNELS_MAX);
    m = rig_arrived(&rig, "vm");
    cr_assert(eq(int, (int)peer_announce(&peer, WIRE_RAM, WIRE_CHANNELS_MAX * STRIPE, "ram"), CAUSE_NONE));
    int64_t start = processor_time();
    for (unsigned i = 0; i < n; i++) {
        struct wire_writer w = body();
        for (unsigned c = 0; c < WIRE_CHANNELS_MAX; c++)
            wire_write_u64(&w, 1);
        cr_assert(zero(int, peer_send(peer.main, WIRE_SYNC, i + 1, body_buf, wire_written(&w))));
    }
    for (unsigned c = 0; c < WIRE_CHANNELS_MAX; c++)
        peer_packet(&peer, c, data(0, c * STRIPE, 10), payload);
    for (unsigned i = 0; i < n; i++) {
        cr_assert(zero(int, peer_receive(peer.main, &message, body_buf)), "%s", m->failure.message);
        cr_assert(eq(int, (int)message.type, WIRE_SYNC_ACK));
        cr_assert(eq(u64, message.id, i + 1));
    }
    int64_t cost = processor_time() - start;
    peer_close(&peer);
    rig_await_end(m);
    migration_put(m);
    return cost;
}

/* Barriers that wait cost no more each when there are many of them. */
Test(incoming, barriers_that_wait)
{
    rig_init(&rig, place(), NULL);
    int64_t few = cost_of_barriers(WIRE_SYNCS_MAX / 16), many = cost_of_barriers(WIRE_SYNCS_MAX);
    cr_expect(lt(i64, many, 64 * few), "%d us for few, %d us for sixteen times as many", (int)few, (int)many);
    rig_fini(&rig);
}

/* Memory that is being preallocated is not made after it was given back. */
Test(incoming, ends_while_it_preallocates)
{
    struct limits limits = rig_limits();
    struct stat st;

    limits.preallocate = true;
    rig_init(&rig, place(), &limits);
    unsigned threads = rig_count_threads();
    for (int i = 0; i < 20; i++) {
        peer_open(&peer, rig.address, "vm", 1);
        struct migration *m = rig_arrived(&rig, "vm");
        cr_assert(eq(int, (int)peer_announce(&peer, WIRE_RAM, limits.max_ram, "ram"), CAUSE_NONE));
        struct file *ram = migration_file(m, WIRE_RAM);
        while (!counter_get(&ram->image.preallocated))
            sched_yield();
        peer_close(&peer);
        rig_await_end(m);
        rig_await_threads(threads);
        if (ram->image.has_memory) {
            cr_assert(zero(int, fstat(ram->image.memory.fd, &st)));
            cr_assert(zero(i64, (int64_t)st.st_blocks), "attempt %d", i);
        }
        migration_put(m);
    }
    rig_fini(&rig);
}

/* A question about a device that has been removed meanwhile is no reason to fail. */
Test(incoming, digest_of_a_removed_device)
{
    uint8_t out[DIGEST_SIZE];
    struct error err;

    rig_init(&rig, place(), NULL);
    struct migration *m = rig_start(&rig, "vm", 2, 1 << 20);
    struct file *dev = file_get(rig_device(m, "dev"));
    rig_write(m, dev, "hello", 5, 0);
    CHECK_OK(outgoing_remove_device(m, "dev", NULL, &err));
    cr_expect(lt(int, outgoing_digest(m, dev, NULL, out, &err), 0));
    CHECK_OK(outgoing_sync(m, NULL, NULL, &err));
    cr_expect(eq(int, (int)m->state, STATE_ACTIVE), "%s", m->failure.message);
    file_put(dev);
    migration_put(m);
    rig_fini(&rig);
}

/* A device that was made here has its name taken by a renaming that is on its way, and let go of by the next one. */
Test(incoming, expected_device_and_renamings)
{
    struct file *device;
    struct error err;
    struct migration *m;

    rig_init(&rig, place(), NULL);
    CHECK_OK(registry_add_outgoing(&rig.destination, "vm", 0, 0, &m, &err));
    CHECK_OK(outgoing_create_device(m, "x", true, NULL, &device, &err));
    file_put(device);
    peer_open(&peer, rig.address, "vm", 2);
    cr_expect(eq(int, (int)peer_announce(&peer, WIRE_RAM, 1 << 20, "ram"), CAUSE_NONE));
    cr_expect(eq(int, (int)peer_announce(&peer, 1, 0, "a"), CAUSE_NONE));
    struct wire_writer w = body();
    wire_write_u32(&w, 1);
    counts(&w, peer.sequence[0] + 1, peer.sequence[1]);
    wire_write_u32(&w, 0);
    wire_write_text(&w, "x");
    say(&peer, WIRE_FILE_RENAME, 8, &w);
    rename_file(&peer, 1, "y", 0, false);
    cr_expect(eq(int, (int)peer_announce(&peer, 2, 0, "x"), CAUSE_NONE));
    struct packet zero_page = {.type = WIRE_ZERO, .file = WIRE_RAM, .range = 4096};
    zero_page.offset = file_home(migration_file(m, WIRE_RAM), 0) == 0 ? 0 : WIRE_STRIPE_SIZE;
    peer_packet(&peer, 0, zero_page, NULL);
    await_change(&peer, WIRE_FILE_RENAME);
    await_change(&peer, WIRE_FILE_RENAME);
    cr_expect(peer_sync(&peer, 3));
    cr_expect(eq(str, listing(m), "x y "));
    migration_put(m);
    peer_close(&peer);
    rig_fini(&rig);
}
