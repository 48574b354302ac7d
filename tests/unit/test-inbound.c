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
#include <sys/eventfd.h>

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

static int never_found(void *owner, unsigned channel, const struct error *reason)
{
    (void)owner;
    (void)channel;
    (void)reason;
    return -1;
}

static const struct receiver_events events = {
    .failed = note_failure, .lost = never_found, .reached = ignore, .applied = ignore};
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

/* The source's end of its main channel, which may be made again for so long. */
static struct transport *open_for(struct inbound *one, uint32_t patience_ms, uint32_t resume_ms)
{
    struct link link;

    link_pair(&link);
    CHECK_OK(inbound_open(one, link.b, LONG_MS, LONG_MS, patience_ms, resume_ms, &err));
    return link.a;
}

static struct transport *open_main(struct inbound *one, uint32_t patience_ms)
{
    return open_for(one, patience_ms, 0);
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

/*
 * Connections that are made again
 */

/* It has ended, as its peer sees. */
static void expect_end(struct transport *t)
{
    char rest[256];

    while (transport_recv(t, rest, sizeof(rest), 0) > 0)
        ;
}

static bool is_woken(void)
{
    struct pollfd woken = {.fd = in.session.wake_fd, .events = POLLIN};
    eventfd_t drained;

    bool is = poll(&woken, 1, 0) == 1;
    if (is)
        eventfd_read(in.session.wake_fd, &drained);
    return is;
}

static struct transport *attach_again(int channel, uint64_t received)
{
    struct link link;

    link_pair(&link);
    CHECK_OK(inbound_attach_again(&in, channel, received, link.b, &err));
    cr_expect(is_woken(), "the reader looks");
    return link.a;
}

/* The welcome, which says how much has been received. */
static void expect_welcome(struct transport *t, uint64_t received)
{
    struct wire_hello_reply wire;
    struct hello_reply got;

    cr_assert(zero(int, transport_recv_all(t, &wire, sizeof(wire), NULL)));
    CHECK_OK(wire_hello_reply_decode(&wire, &got, &err));
    cr_expect(eq(u64, got.received, received));
    cr_expect(eq(u64, got.max_ram, 77));
}

Test(inbound, says_whether_they_are)
{
    struct transport *source = open_main(&in, LONG_MS), *data = attach(&in, 0);
    struct link link;

    cr_expect(not(in.reception.resumes));
    cr_expect(not(in.session.keeps));
    link_pair(&link);
    CHECK_FAILS(inbound_attach_again(&in, 0, 0, link.b, &err), CAUSE_STATE);
    inbound_fini(&in);
    transport_close(source);
    transport_close(data);
    CHECK_OK(inbound_init(&in, &reception, account, CHANNELS, BESIDE, &err));
    source = open_for(&in, LONG_MS, 1000);
    cr_expect(in.reception.resumes);
    cr_expect(in.session.keeps);
    CHECK_FAILS(inbound_attach_again(&in, CHANNELS, 0, link.b, &err), CAUSE_PROTOCOL);
    in.ending = true;
    CHECK_FAILS(inbound_attach_again(&in, 0, 0, link.b, &err), CAUSE_AGAIN);
    cr_assert(zero(int, link_send(link.b, "x", 1)), "it is the caller's");
    link_close(&link);
    transport_close(source);
}

/* A channel comes twice while they arrive: its first one is closed, and all are there all the same. */
Test(inbound, attached_twice)
{
    struct transport *source = open_for(&in, LONG_MS, 1000);
    struct transport *first = attach(&in, 0), *second = attach(&in, 0);
    const struct hello_reply reply = {0};
    struct link link;

    expect_end(first);
    cr_expect(eq(uint, in.attached, 1));
    cr_expect(not(inbound_is_whole(&in)));
    struct transport *other = attach(&in, 1);
    cr_expect(inbound_is_whole(&in));
    cr_expect(is_woken());
    struct transport *third = attach(&in, 1);
    cr_expect(eq(uint, in.attached, CHANNELS));
    expect_end(other);
    CHECK_OK(inbound_start(&in, &err));
    link_pair(&link);
    CHECK_FAILS(inbound_attach(&in, 1, CHANNELS, link.b, LONG_MS, &reply, &err), CAUSE_EXISTS);
    link_close(&link);
    inbound_end(&in);
    transport_close(first);
    transport_close(second);
    transport_close(other);
    transport_close(third);
    transport_close(source);
}

/* A newer attempt takes the place of an older one, and the connection that is still there is shut down. */
Test(inbound, attached_again)
{
    struct transport *source = open_for(&in, LONG_MS, 1000), *data[CHANNELS];
    struct hello_reply reply = {.max_ram = 77};

    for (unsigned c = 0; c < CHANNELS; c++)
        data[c] = attach(&in, c);
    is_woken();
    cr_expect(not(inbound_renew(&in, 1, &reply)), "none has come");
    struct transport *attempt = attach_again(1, 0);
    expect_end(data[1]);
    struct transport *next = attach_again(1, 0);
    expect_end(attempt);
    counter_add(&in.receivers[1].wire_bytes, 123);
    struct transport *old = in.receivers[1].transport;
    cr_expect(inbound_renew(&in, 1, &reply));
    cr_expect(ne(ptr, in.receivers[1].transport, old));
    cr_expect(zero(ptr, in.receivers[1].next));
    expect_welcome(next, 123);
    cr_expect(not(inbound_renew(&in, 1, &reply)));
    /* One that is lost needs no shutting down. */
    struct error reason = {0};
    error_set(&reason, CAUSE_RESET, "gone");
    inbound_lose(&in, 0, &reason);
    struct transport *other = attach_again(0, 0);
    cr_expect(zero(int, link_send(data[0], "x", 1)));
    transport_close(other);
    cr_expect(inbound_renew(&in, 0, &reply), "that it has gone already is found when it is used");
    transport_close(source);
    for (unsigned c = 0; c < CHANNELS; c++)
        transport_close(data[c]);
    transport_close(attempt);
    transport_close(next);
}

Test(inbound, main_channel_made_again)
{
    struct transport *source = open_for(&in, LONG_MS, 1000);
    struct hello_reply reply = {.max_ram = 77};
    struct error reason = {0};

    error_set(&reason, CAUSE_RESET, "gone");
    session_send(&in.session, WIRE_SYNC_ACK, 4, NULL, 0);
    atomic_store(&in.session.received, 9);
    struct transport *attempt = attach_again(-1, 1);
    expect_end(source);
    inbound_lose(&in, -1, &reason);
    session_lose(&in.session);
    struct transport *next = attach_again(-1, 1);
    expect_end(attempt);
    cr_expect(eq(int, inbound_renew_main(&in, &reply, &err), 1));
    expect_welcome(next, 9);
    cr_expect(eq(u64, in.session.confirmed, 1));
    inbound_find_again(&in, -1);
    cr_expect(zero(int, inbound_renew_main(&in, &reply, &err)), "there is no other one");
    /* One whose source has received what was never sent. */
    inbound_lose(&in, -1, &reason);
    session_lose(&in.session);
    struct transport *liar = attach_again(-1, 2);
    CHECK_FAILS(inbound_renew_main(&in, &reply, &err), CAUSE_PROTOCOL);
    expect_welcome(liar, 9);
    expect_end(liar);
    cr_expect(zero(ptr, in.next_main));
    /* And one that nobody needs any more. */
    struct transport *late = attach_again(-1, 1);
    inbound_end(&in);
    expect_end(late);
    transport_close(source);
    transport_close(attempt);
    transport_close(next);
    transport_close(liar);
    transport_close(late);
}

/* Each connection has its own time, whatever becomes of the others meanwhile. */
Test(inbound, deadline)
{
    struct transport *source = open_for(&in, LONG_MS, 2000);
    struct error gone = {0}, ended = {0}, reason = {0};
    const int64_t allowed = 2000 + 500 + 1000;

    error_set(&gone, CAUSE_RESET, "gone");
    error_set(&ended, CAUSE_TIMEOUT, "ended");
    cr_expect(eq(i64, inbound_deadline(&in, &reason), INT64_MAX));
    int64_t before = clock_ms();
    inbound_lose(&in, -1, &gone);
    cr_expect(le(i64, before + allowed, inbound_deadline(&in, NULL)));
    cr_expect(le(i64, inbound_deadline(&in, &reason), clock_ms() + allowed));
    cr_expect(eq(str, reason.message, "gone"));
    in.main_loss.since = 10000;
    inbound_lose(&in, 1, &ended);
    in.receivers[1].loss.since = 10500;
    cr_expect(eq(i64, inbound_deadline(&in, &reason), 10000 + allowed));
    cr_expect(eq(str, reason.message, "gone"));
    inbound_find_again(&in, -1);
    cr_expect(eq(i64, inbound_deadline(&in, &reason), 10500 + allowed), "what is there again is no matter");
    cr_expect(eq(str, reason.message, "ended"));
    inbound_lose(&in, 0, &gone);
    in.receivers[0].loss.since = 10200;
    cr_expect(eq(i64, inbound_deadline(&in, &reason), 10200 + allowed));
    cr_expect(eq(uint, in.lost, 2));
    inbound_find_again(&in, 0);
    inbound_find_again(&in, 1);
    cr_expect(zero(uint, in.lost));
    cr_expect(eq(i64, inbound_deadline(&in, &reason), INT64_MAX));
    transport_close(source);
}

/* What stands still while a connection is lost has a reason. */
Test(inbound, rests)
{
    struct transport *source = open_main(&in, 1);

    in.receivers[1].target = 9;
    CHECK_OK(inbound_look(&in, 0, &err));
    in.watch.last_ms = 1; /* long ago */
    inbound_rest(&in);
    cr_expect(inbound_look_is_due(&in));
    CHECK_OK(inbound_look(&in, 0, &err));
    in.watch.last_ms = 1;
    CHECK_FAILS(inbound_look(&in, 0, &err), CAUSE_TIMEOUT);
    transport_close(source);
}
