/* SPDX-License-Identifier: Apache-2.0 */
/* One attempt of a source, without a migration: its connections are socket pairs, the source is the test. */
#include "inbound.h"
#include "check.h"
#include "clock.h"
#include "link.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#define CHANNELS 2
#define BESIDE   1000
#define LONG_MS  3600000u

static struct accounts accounts;
static struct account *account;
static struct catalog catalog;
static struct inbound in;
static struct error err;
static atomic_uint failures;

static void note_failure(void *owner, unsigned channel, const struct error *reason)
{
    (void)owner;
    (void)channel;
    (void)reason;
    atomic_fetch_add(&failures, 1);
}

static void ignore(void *owner)
{
    (void)owner;
}

static const struct receiver_events events = {.failed = note_failure, .reached = ignore, .applied = ignore};
static struct reception reception = {.events = &events, .catalog = &catalog};

/* What the account has is just enough for @memory, @channels and @descriptors. */
static void limit(uint64_t memory, uint64_t channels, uint64_t descriptors)
{
    const struct shares all = {UINT64_MAX, UINT64_MAX, UINT64_MAX}, each = {memory, channels, descriptors};

    accounts_init(&accounts, &all, &each);
    account = account_get(&accounts, "test");
    cr_assert(zero(int, catalog_init(&catalog, 0)));
}

static void begin(void)
{
    limit(2 * (inbound_memory(CHANNELS) + BESIDE), 2 * CHANNELS, 2 * (CHANNELS + 2));
    CHECK_OK(inbound_init(&in, &reception, account, CHANNELS, BESIDE, &err));
}

static void end(void)
{
    inbound_fini(&in);
    cr_expect(zero(u64, account->memory.used));
    cr_expect(zero(u64, account->channels.used));
    cr_expect(zero(u64, account->descriptors.used));
    catalog_fini(&catalog);
    account_put(account);
    accounts_fini(&accounts);
}

TestSuite(inbound, .init = begin, .fini = end);

/* The source's end of its main channel. */
static struct transport *open_main(struct inbound *one, uint32_t patience_ms)
{
    struct link link;

    link_pair(&link);
    CHECK_OK(inbound_open(one, link.b, LONG_MS, LONG_MS, patience_ms, 0, &err));
    return link.a;
}

static struct transport *attach(struct inbound *one, unsigned channel)
{
    const struct hello_reply reply = {.max_ram = 77};
    struct wire_hello_reply wire;
    struct hello_reply got;
    struct link link;

    link_pair(&link);
    CHECK_OK(inbound_attach(one, channel, CHANNELS, link.b, LONG_MS, &reply, &err));
    cr_assert(zero(int, transport_recv_all(link.a, &wire, sizeof(wire), NULL)));
    CHECK_OK(wire_hello_reply_decode(&wire, &got, &err));
    cr_expect(eq(u64, got.max_ram, 77));
    return link.a;
}

/* What is not there before or after cannot be in the account. */
static void expect_charged(uint64_t memory, uint64_t channels, uint64_t descriptors)
{
    cr_expect(eq(u64, account->memory.used, memory));
    cr_expect(eq(u64, account->channels.used, channels));
    cr_expect(eq(u64, account->descriptors.used, descriptors));
}

Test(inbound, charged_from_its_start_to_its_end)
{
    struct transport *source[CHANNELS + 1];

    expect_charged(inbound_memory(CHANNELS) + BESIDE, CHANNELS, CHANNELS + 2);
    source[CHANNELS] = open_main(&in, LONG_MS);
    for (unsigned c = 0; c < CHANNELS; c++)
        source[c] = attach(&in, c);
    expect_charged(inbound_memory(CHANNELS) + BESIDE, CHANNELS, CHANNELS + 2);
    inbound_end(&in);
    expect_charged(inbound_memory(0) + BESIDE, 0, 2);
    inbound_end(&in);
    expect_charged(inbound_memory(0) + BESIDE, 0, 2);
    inbound_settle(&in);
    session_linger(&in.session, 0);
    inbound_close(&in);
    expect_charged(0, 0, 0);
    for (unsigned c = 0; c <= CHANNELS; c++)
        transport_close(source[c]);
}

/* Each limit alone refuses it, and what was charged before is given back. */
Test(inbound_limits, over_a_limit)
{
    const struct shares enough = {inbound_memory(CHANNELS) + BESIDE, CHANNELS, CHANNELS + 2};

    for (unsigned i = 0; i < 4; i++) {
        limit(enough.memory - (i == 1), enough.channels - (i == 2), enough.descriptors - (i == 3));
        if (i > 0)
            CHECK_FAILS(inbound_init(&in, &reception, account, CHANNELS, BESIDE, &err), CAUSE_QUOTA);
        else
            CHECK_OK(inbound_init(&in, &reception, account, CHANNELS, BESIDE, &err));
        if (i > 0)
            expect_charged(0, 0, 0);
        end();
    }
}

Test(inbound, whole_when_all_are_there)
{
    struct transport *source = open_main(&in, LONG_MS), *data[CHANNELS];
    struct pollfd woken = {.fd = in.session.wake_fd, .events = POLLIN};
    const struct hello_reply reply = {0};
    struct link link;

    link_pair(&link);
    CHECK_FAILS(inbound_attach(&in, 0, CHANNELS + 1, link.b, LONG_MS, &reply, &err), CAUSE_PROTOCOL);
    data[1] = attach(&in, 1);
    CHECK_FAILS(inbound_attach(&in, 1, CHANNELS, link.b, LONG_MS, &reply, &err), CAUSE_EXISTS);
    cr_expect(not(inbound_is_whole(&in)));
    cr_expect(eq(int, poll(&woken, 1, 0), 0));
    link_close(&link);
    /* One that goes before it is welcomed has not come. */
    link_pair(&link);
    transport_close(link.a);
    CHECK_FAILS(inbound_attach(&in, 0, CHANNELS, link.b, LONG_MS, &reply, &err), CAUSE_RESET);
    transport_close(link.b);
    cr_expect(not(inbound_is_whole(&in)));
    data[0] = attach(&in, 0);
    cr_expect(inbound_is_whole(&in));
    cr_expect(eq(int, poll(&woken, 1, 0), 1), "the reader is told");
    for (unsigned c = 0; c < CHANNELS; c++)
        transport_close(data[c]);
    transport_close(source);
}

/* When no thread can be made for it, the connection is the caller's again. */
Test(inbound, given_back)
{
    struct link link;
    char c;

    link_pair(&link);
    CHECK_OK(inbound_open(&in, link.b, LONG_MS, LONG_MS, LONG_MS, 0, &err));
    inbound_give_back(&in);
    inbound_fini(&in);
    cr_assert(zero(int, link_send(link.b, "x", 1)));
    cr_expect(zero(int, transport_recv_all(link.a, &c, 1, NULL)));
    link_close(&link);
    CHECK_OK(inbound_init(&in, &reception, account, CHANNELS, BESIDE, &err));
}

/* The first reason counts, and only what the connection says can be explained by the main channel. */
Test(inbound, suspicion)
{
    struct error reset = {0}, bad = {0};

    error_set(&reset, CAUSE_RESET, "it has ended");
    error_set(&bad, CAUSE_PROTOCOL, "it is bad");
    int64_t before = clock_ms();
    inbound_suspect(&in, 1, &reset);
    cr_expect(eq(str, in.suspect.message, "channel 1: it has ended"));
    cr_expect(le(i64, before + 1000, in.suspect_until));
    inbound_suspect(&in, 0, &bad);
    cr_expect(eq(str, in.suspect.message, "channel 1: it has ended"));
    in.suspect = (struct error){0};
    inbound_suspect(&in, 0, &bad);
    cr_expect(eq(str, in.suspect.message, "channel 0: it is bad"));
    cr_expect(le(i64, in.suspect_until, clock_ms()), "there is nothing to wait for");
}

/* The next message of this side is news of what has arrived; @expected: numbers. */
static void expect_progress(struct transport *source, const uint64_t *expected)
{
    struct wire_message wire;
    struct message message;
    uint8_t body[8 + 16 * CHANNELS];

    cr_assert(zero(int, transport_recv_all(source, &wire, sizeof(wire), NULL)));
    CHECK_OK(wire_message_decode(&wire, &message, &err));
    cr_assert(eq(int, (int)message.type, WIRE_PROGRESS));
    cr_assert(eq(u32, message.length, (uint32_t)sizeof(body)));
    cr_assert(zero(int, transport_recv_all(source, body, sizeof(body), NULL)));
    struct wire_reader r = {body, sizeof(body), false};
    for (unsigned i = 0; i < 1 + 2 * CHANNELS; i++)
        cr_expect(eq(u64, wire_read_u64(&r), expected[i]), "number %u", i);
}

Test(inbound, tells_what_has_arrived)
{
    struct transport *source = open_main(&in, LONG_MS);

    cr_expect(inbound_look_is_due(&in));
    in.receivers[0].wire_bytes = 1000;
    in.receivers[0].applied = 3;
    in.receivers[1].wire_bytes = 50;
    CHECK_OK(inbound_look(&in, 7, &err));
    cr_expect(not(inbound_look_is_due(&in)));
    expect_progress(source, (uint64_t[]){7, 1000, 3, 50, 0});
    cr_expect(eq(u64, inbound_wire_bytes(&in, 0), 1000));
    transport_close(source);
}

/* Fails when a barrier waits for a channel and nothing moves: no byte, no packet and no other work. */
Test(inbound, stands_still)
{
    struct transport *source = open_main(&in, 1);

    in.watch.step_ms = 1000;
    for (unsigned i = 0; i < 5; i++) {
        in.receivers[1].target = i == 0 ? 0 : 9;
        in.receivers[0].wire_bytes += i == 1;
        in.receivers[1].applied += i == 2;
        in.watch.last_ms = 1; /* long ago */
        CHECK_OK(inbound_look(&in, i >= 3 ? i : 0, &err));
    }
    in.watch.last_ms = 1;
    CHECK_FAILS(inbound_look(&in, 4, &err), CAUSE_TIMEOUT);
    cr_expect(not(zero(ptr, strstr(err.message, "channel 1 "))), "%s", err.message);
    /* Nothing is wrong when nothing waits. */
    in.receivers[1].target = 0;
    in.watch.last_ms = 1;
    CHECK_OK(inbound_look(&in, 4, &err));
    transport_close(source);
}

Test(inbound, knows_what_is_used)
{
    struct file *file = file_new(1, "dev");

    cr_expect(not(inbound_uses(&in, file)));
    in.receivers[CHANNELS - 1].using = file;
    cr_expect(inbound_uses(&in, file));
    in.receivers[CHANNELS - 1].using = NULL;
    file_put(file);
}

/* The sums stay when the receivers have gone. */
Test(inbound, settled)
{
    in.receivers[0].barrier_ns = 3;
    in.receivers[1].barrier_ns = 4;
    cr_expect(eq(u64, inbound_barrier_ns(&in), 7));
    inbound_end(&in);
    inbound_settle(&in);
    cr_expect(eq(u64, inbound_barrier_ns(&in), 7));
    cr_expect(zero(ptr, in.receivers));
}

/* The same owner has a second one, after the first or beside it: each counts by itself, and ends by itself. */
Test(inbound, another_one)
{
    struct inbound second;
    struct transport *source[2], *data[2][CHANNELS];

    CHECK_OK(inbound_init(&second, &reception, account, CHANNELS, BESIDE, &err));
    struct inbound *each[2] = {&in, &second};
    for (unsigned i = 0; i < 2; i++) {
        source[i] = open_main(each[i], LONG_MS);
        for (unsigned c = 0; c < CHANNELS; c++)
            data[i][c] = attach(each[i], c);
        CHECK_OK(inbound_start(each[i], &err));
    }
    inbound_end(&in);
    cr_expect(eq(uint, atomic_load(&failures), CHANNELS), "those of the first");
    expect_charged(inbound_memory(CHANNELS) + inbound_memory(0) + 2 * BESIDE, CHANNELS, CHANNELS + 4);
    cr_expect(inbound_is_whole(&second));
    inbound_fini(&second);
    cr_expect(eq(uint, atomic_load(&failures), 2 * CHANNELS));
    for (unsigned i = 0; i < 2; i++) {
        for (unsigned c = 0; c < CHANNELS; c++)
            transport_close(data[i][c]);
        transport_close(source[i]);
    }
}
