/* SPDX-License-Identifier: Apache-2.0 */
/* The main channel: messages in pieces, heartbeats, silence, floods, goodbyes. */
#include "session.h"
#include "check.h"
#include "clock.h"
#include "link.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LONG_MS 3600000u

/* What a handler was given. */
struct log {
    unsigned count;
    struct {
        int type;
        uint64_t id;
        uint32_t length;
        char body[32];
    } entries[16];
    int answer; /* what the handler returns */
};

static int note(void *arg, const struct message *message, struct wire_reader *body, struct error *err)
{
    struct log *log = arg;

    cr_assert(lt(uint, log->count, (unsigned)ARRAY_LENGTH(log->entries)));
    log->entries[log->count].type = (int)message->type;
    log->entries[log->count].id = message->id;
    log->entries[log->count].length = message->length;
    memcpy(log->entries[log->count].body, body->p, message->length < 32 ? message->length : 32);
    log->count++;
    return log->answer ? error_set(err, (enum cause)log->answer, "the handler says no") : 0;
}

static void open_pair(struct session *a, struct session *b, uint32_t timeout_ms)
{
    struct link link;

    link_pair(&link);
    cr_assert(zero(int, session_init(a, link.a, timeout_ms, timeout_ms)));
    cr_assert(zero(int, session_init(b, link.b, timeout_ms, timeout_ms)));
}

/* Steps until @count messages have come. */
static void step_until(struct session *s, struct log *log, unsigned count)
{
    struct error err;

    while (log->count < count)
        CHECK_OK(session_step(s, INT64_MAX, note, log, &err));
}

Test(session, messages_in_order)
{
    struct session a, b;
    struct log log = {0};

    open_pair(&a, &b, LONG_MS);
    session_send(&a, WIRE_SYNC, 7, "body", 4);
    session_send(&a, WIRE_COMMIT, 8, NULL, 0);
    session_send(&a, WIRE_ABORT, 9, "x", 1);
    step_until(&b, &log, 3);
    cr_expect(eq(int, log.entries[0].type, WIRE_SYNC));
    cr_expect(eq(u64, log.entries[0].id, 7));
    cr_expect(eq(u32, log.entries[0].length, 4));
    cr_expect(zero(int, memcmp(log.entries[0].body, "body", 4)));
    cr_expect(eq(int, log.entries[1].type, WIRE_COMMIT));
    cr_expect(eq(u32, log.entries[1].length, 0));
    cr_expect(eq(int, log.entries[2].type, WIRE_ABORT));
    cr_expect(eq(u64, a.bytes_sent, 3 * sizeof(struct wire_message) + 5));
    session_fini(&a);
    session_fini(&b);
}

/* A byte at a time, and the longest body that is allowed. */
Test(session, pieces)
{
    struct link link;
    struct session b;
    struct wire_message header;
    struct log log = {0};
    struct error err;
    uint8_t *body = malloc(WIRE_BODY_MAX);

    link_pair(&link);
    cr_assert(zero(int, session_init(&b, link.b, LONG_MS, LONG_MS)));
    wire_message_encode(WIRE_SYNC, 1, "abc", 3, &header);
    char bytes[sizeof(header) + 3];
    memcpy(bytes, &header, sizeof(header));
    memcpy(bytes + sizeof(header), "abc", 3);
    for (size_t i = 0; i < sizeof(bytes); i++) {
        cr_expect(eq(uint, log.count, 0));
        link_send(link.a, bytes + i, 1);
        CHECK_OK(session_step(&b, clock_ms(), note, &log, &err));
    }
    step_until(&b, &log, 1);
    cr_expect(zero(int, memcmp(log.entries[0].body, "abc", 3)));

    pattern(body, WIRE_BODY_MAX, 4);
    wire_message_encode(WIRE_COMPLETE, 2, body, WIRE_BODY_MAX, &header);
    struct iovec iov[2] = {{&header, sizeof(header)}, {body, WIRE_BODY_MAX}};
    size_t sent = 0, total = sizeof(header) + WIRE_BODY_MAX;
    while (sent < total) {
        /* In slices that fit the socket's buffer. */
        struct iovec part = sent < iov[0].iov_len ? iov[0]
                                                  : (struct iovec){body + sent - iov[0].iov_len,
                                                                   total - sent < 4096 ? total - sent : 4096};
        cr_assert(zero(int, transport_send(link.a, &part, 1)));
        sent += part.iov_len;
        CHECK_OK(session_step(&b, clock_ms(), note, &log, &err));
    }
    step_until(&b, &log, 2);
    cr_expect(eq(u32, log.entries[1].length, WIRE_BODY_MAX));
    cr_expect(zero(int, memcmp(log.entries[1].body, body, 32)));
    session_fini(&b);
    transport_close(link.a);
    free(body);
}

Test(session, handler_ends_the_step)
{
    struct session a, b;
    struct log log = {.answer = CAUSE_MISMATCH};
    struct error err;

    open_pair(&a, &b, LONG_MS);
    session_send(&a, WIRE_SYNC, 1, NULL, 0);
    CHECK_FAILS(session_step(&b, INT64_MAX, note, &log, &err), CAUSE_MISMATCH);
    session_fini(&a);
    session_fini(&b);
}

Test(session, pings_are_sent_and_swallowed)
{
    struct session a, b;
    struct log log = {0};
    struct error err;

    /* The heart of @a beats every 50 ms, that of @b never on its own. */
    open_pair(&a, &b, 150);
    b.next_ping = INT64_MAX;
    b.timeout_ms = 1 << 30;
    uint64_t before = a.bytes_sent;
    while (a.bytes_sent < before + 3 * sizeof(struct wire_message))
        session_step(&a, a.next_ping, note, &log, &err), a.last_heard = clock_ms();
    int64_t heard = b.last_heard;
    CHECK_OK(session_step(&b, clock_ms(), note, &log, &err));
    cr_expect(b.last_heard > heard, "a ping is a sign of life");
    cr_expect(eq(uint, log.count, 0), "and nothing else");
    session_fini(&a);
    session_fini(&b);
}

Test(session, silence)
{
    struct session a, b;
    struct log log = {0};
    struct error err = {0};

    open_pair(&a, &b, 60);
    int ret = 0;
    int64_t start = a.last_heard;
    while (ret == 0)
        ret = session_step(&a, INT64_MAX, note, &log, &err);
    cr_expect(eq(int, (int)err.cause, CAUSE_TIMEOUT), "%s", err.message);
    cr_expect(ge(i64, clock_ms() - start, 60), "not before its time");
    session_fini(&a);
    session_fini(&b);
}

Test(session, wake)
{
    struct session a, b;
    struct log log = {0};
    struct error err;

    open_pair(&a, &b, LONG_MS);
    session_wake(&a);
    session_wake(&a);
    CHECK_OK(session_step(&a, INT64_MAX, note, &log, &err));
    CHECK_OK(session_step(&a, clock_ms(), note, &log, &err));
    session_fini(&a);
    session_fini(&b);
}

Test(session, closed_by_the_peer)
{
    struct session a, b;
    struct log log = {0};
    struct error err;

    open_pair(&a, &b, LONG_MS);
    session_send(&a, WIRE_COMMIT, 1, NULL, 0);
    session_fini(&a);
    step_until(&b, &log, 1); /* what came before is not lost */
    CHECK_FAILS(session_step(&b, INT64_MAX, note, &log, &err), CAUSE_RESET);
    session_fini(&b);
}

/* Bytes that are no message, or a damaged one, end the step. */
Test(session, nonsense)
{
    static const struct {
        const char *what;
        size_t at;
        uint8_t flip;
    } cases[] = {
        {"magic", 0, 1}, {"type", 4, 0x40}, {"a length of 4 GiB", 11, 0x80},
        {"id", 16, 1},   {"check", 24, 1},  {"body", 33, 1},
    };

    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        struct link link;
        struct session b;
        struct log log = {0};
        struct error err;
        uint8_t bytes[sizeof(struct wire_message) + 4];
        link_pair(&link);
        cr_assert(zero(int, session_init(&b, link.b, LONG_MS, LONG_MS)));
        memcpy(bytes + sizeof(struct wire_message), "abcd", 4);
        struct wire_message header;
        wire_message_encode(WIRE_SYNC, 1, "abcd", 4, &header);
        memcpy(bytes, &header, sizeof(header));
        bytes[cases[i].at] ^= cases[i].flip;
        link_send(link.a, bytes, sizeof(bytes));
        CHECK_FAILS(session_step(&b, INT64_MAX, note, &log, &err), CAUSE_PROTOCOL);
        cr_expect(eq(uint, log.count, 0), "%s", cases[i].what);
        session_fini(&b);
        transport_close(link.a);
    }
}

/*
 * A peer that never stops talking
 */

struct chatter {
    struct transport base;
    int fd;
    unsigned calls;
};

#define CALLS_MAX 100000

static ssize_t chatter_recv(struct transport *t, void *buf, size_t len, int flags)
{
    struct chatter *c = (struct chatter *)t;
    struct wire_message ping;

    (void)flags;
    if (++c->calls > CALLS_MAX || len < sizeof(ping))
        return -EAGAIN;
    wire_message_encode(WIRE_PING, 0, NULL, 0, &ping);
    memcpy(buf, &ping, sizeof(ping));
    return sizeof(ping);
}

static ssize_t chatter_try_send(struct transport *t, const void *buf, size_t len)
{
    (void)t, (void)buf;
    return (ssize_t)len;
}

static int chatter_pollfd(struct transport *t)
{
    return ((struct chatter *)t)->fd;
}

static void chatter_set_timeout(struct transport *t, int timeout_ms)
{
    (void)t, (void)timeout_ms;
}

static void chatter_close(struct transport *t)
{
    (void)t;
}

static const struct transport_ops chatter_ops = {
    .name = "chatter",
    .try_send = chatter_try_send,
    .recv = chatter_recv,
    .pollfd = chatter_pollfd,
    .set_timeout = chatter_set_timeout,
    .shutdown = chatter_close,
    .close = chatter_close,
};

/* session_step() returns at its deadline, whatever the peer does: a cancelled migration must be able to end.
 */
Test(session, flood_does_not_hold_a_step)
{
    struct chatter chatter = {.base.ops = &chatter_ops, .fd = -1};
    struct session s;
    struct log log = {0};
    struct error err;

    cr_assert(zero(int, session_init(&s, &chatter.base, LONG_MS, LONG_MS)));
    CHECK_OK(session_step(&s, clock_ms(), note, &log, &err));
    cr_expect(le(uint, chatter.calls, CALLS_MAX),
              "one step went on for as long as the peer had something to say");
    session_fini(&s);
}

/* One step, which nothing but a signal ends. */
struct stepper {
    struct worker worker;
    struct session *s;
    struct log log;
    struct error err;
    int ret;
};

static void step_once(void *arg)
{
    struct stepper *stepper = arg;

    stepper->ret = session_step(stepper->s, INT64_MAX, note, &stepper->log, &stepper->err);
}

Test(session, a_signal_is_no_failure)
{
    struct session a, b;
    static struct stepper stepper;

    open_pair(&a, &b, LONG_MS);
    stepper.s = &a;
    worker_start(&stepper.worker, step_once, &stepper);
    worker_interrupt(&stepper.worker);
    cr_expect(atomic_load(&stepper.worker.done), "the caller looks at what the signal was for");
    session_wake(&a);
    worker_join(&stepper.worker);
    cr_expect(eq(int, stepper.ret, 0), "%s", stepper.err.message);
    session_fini(&a);
    session_fini(&b);
}

/*
 * A peer that never listens
 */

/* Nobody blocks: what does not fit waits in a queue, in order, until there is room. */
Test(session, queue)
{
    struct session a, b;
    struct log log = {0};
    struct error err;
    uint8_t *body = calloc(1, WIRE_BODY_MAX);
    unsigned sent = 0;

    open_pair(&a, &b, LONG_MS);
    while (!a.queued) {
        body[0] = (uint8_t)sent;
        session_send(&a, WIRE_SYNC, ++sent, body, WIRE_BODY_MAX);
    }
    session_send(&a, WIRE_COMMIT, ++sent, NULL, 0);
    cr_assert(le(uint, sent, (unsigned)ARRAY_LENGTH(log.entries)));
    while (log.count < sent) {
        CHECK_OK(session_step(&b, clock_ms(), note, &log, &err));
        CHECK_OK(session_step(&a, clock_ms(), note, &log, &err));
    }
    for (unsigned i = 0; i < sent; i++)
        cr_expect(eq(u64, log.entries[i].id, i + 1));
    cr_expect(eq(sz, a.queued, 0));
    session_fini(&a);
    session_fini(&b);
    free(body);
}

static struct session stepping;
static struct error step_error;

static void step_until_it_fails(void *arg)
{
    struct log log = {0};

    (void)arg;
    while (session_step(&stepping, INT64_MAX, note, &log, &step_error) == 0)
        ;
}

/* What another thread queues while the loop waits for messages is sent by the loop. */
Test(session, queued_while_the_loop_waits)
{
    struct session b;
    struct log log = {0};
    struct worker worker;
    uint8_t *body = calloc(1, WIRE_BODY_MAX);
    unsigned sent = 0;
    bool queued = false;

    open_pair(&stepping, &b, LONG_MS);
    worker_start(&worker, step_until_it_fails, NULL);
    worker_await_sleep(&worker);
    while (!queued) {
        session_send(&stepping, WIRE_SYNC, ++sent, body, WIRE_BODY_MAX);
        pthread_mutex_lock(&stepping.send_lock);
        queued = stepping.queued > 0;
        pthread_mutex_unlock(&stepping.send_lock);
    }
    cr_assert(le(uint, sent, (unsigned)ARRAY_LENGTH(log.entries)));
    step_until(&b, &log, sent);
    session_fini(&b);
    worker_join(&worker);
    cr_expect(eq(int, (int)step_error.cause, CAUSE_RESET), "%s", step_error.message);
    session_fini(&stepping);
    free(body);
}

/* The queue is bounded: a peer that reads nothing loses the connection. */
Test(session, queue_is_bounded)
{
    struct session a, b;
    struct log log = {0};
    struct error err;
    uint8_t *body = calloc(1, WIRE_BODY_MAX);

    open_pair(&a, &b, LONG_MS);
    for (int i = 0; i < 1000; i++)
        session_send(&a, WIRE_SYNC, 1, body, WIRE_BODY_MAX);
    cr_expect(le(sz, a.queue_size, 64u << 20));
    CHECK_FAILS(session_step(&a, INT64_MAX, note, &log, &err), CAUSE_RESET);
    session_fini(&a);
    session_fini(&b);
    free(body);
}

/* A goodbye goes out even when there is no room for it yet. */
Test(session, linger_sends_the_rest)
{
    struct session a, b;
    struct error reason = {.cause = CAUSE_QUOTA, .message = "too much"};
    uint8_t *body = calloc(1, WIRE_BODY_MAX);
    struct sink sink;

    open_pair(&a, &b, LONG_MS);
    while (!a.queued)
        session_send(&a, WIRE_SYNC, 1, body, WIRE_BODY_MAX);
    session_goodbye(&a, &reason);
    size_t total = a.bytes_sent;
    sink_start(&sink, b.transport, total + 1);
    session_linger(&a, 1000);
    sink_join(&sink);
    cr_expect(eq(sz, sink.have, total));
    sink_free(&sink);
    session_fini(&a);
    session_fini(&b);
    free(body);
}

/*
 * Goodbyes
 */

static void check_abort(const struct error *sent, struct error *got)
{
    struct session a, b;
    uint8_t buf[512];

    open_pair(&a, &b, LONG_MS);
    session_goodbye(&a, sent);
    session_fini(&a);
    struct wire_message header;
    cr_assert(zero(int, transport_recv_all(b.transport, &header, sizeof(header), NULL)));
    struct message message;
    cr_assert(zero(int, wire_message_decode(&header, &message, NULL)));
    cr_assert(eq(int, (int)message.type, WIRE_ABORT));
    cr_assert(le(u32, message.length, sizeof(buf)));
    cr_assert(zero(int, transport_recv_all(b.transport, buf, message.length, NULL)));
    cr_expect(wire_message_check(&header, buf, message.length));
    struct wire_reader body = {.p = buf, .left = message.length};
    session_read_abort(&body, "the source", got);
    session_fini(&b);
}

Test(session, goodbye)
{
    struct error sent = {.cause = CAUSE_QUOTA, .message = "too much"}, got = {0};

    check_abort(&sent, &got);
    cr_expect(eq(int, (int)got.cause, CAUSE_QUOTA));
    cr_expect(eq(str, got.message, "the source: too much"));

    got = (struct error){0};
    strcpy(sent.message, "escape \x1b[2J\nnewline\x7f");
    check_abort(&sent, &got);
    cr_expect(eq(str, got.message, "the source: escape ?[2J?newline?"), "nothing that a terminal obeys");

    got = (struct error){0};
    memset(sent.message, 'x', sizeof(sent.message) - 1);
    check_abort(&sent, &got);
    cr_expect(eq(sz, strlen(got.message), ERROR_MESSAGE_MAX - 1));
}

Test(session, no_goodbye_without_a_reason)
{
    struct session a, b;

    open_pair(&a, &b, LONG_MS);
    session_goodbye(&a, NULL);
    cr_expect(eq(u64, a.bytes_sent, 0));
    session_fini(&a);
    session_fini(&b);
}

Test(session, bad_goodbyes)
{
    static const struct {
        const char *bytes;
        size_t length;
    } cases[] = {
        {"", 0},
        {"\x01\0\0\0", 4},
        {"\0\0\0\0\0\0", 6},
        {"\xff\0\0\0\0\0", 6},
        {"\x01\0\0\0\x05\0ab", 8},
        {"\x01\0\0\0\0\0x", 7},
    };

    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        struct wire_reader body = {.p = (const uint8_t *)cases[i].bytes, .left = cases[i].length};
        struct error got = {0};
        session_read_abort(&body, "the destination", &got);
        cr_expect(eq(int, (int)got.cause, CAUSE_PEER), "case %zu", i);
        cr_expect(ne(str, got.message, ""));
    }
}

/* What only this side can know is not the peer's to say: a writer would be told of a signal that never came.
 */
Test(session, causes_of_a_peer)
{
    for (uint32_t cause = 0; cause <= CAUSE_MAX + 1; cause++) {
        bool ours =
            cause == CAUSE_NONE || cause == CAUSE_INTERRUPTED || cause == CAUSE_AGAIN || cause >= CAUSE_MAX;
        struct error got = {0};
        session_read_reason(cause, "because", "the peer", &got);
        cr_expect(eq(int, (int)got.cause, ours ? CAUSE_PEER : (int)cause), "cause %u", cause);
        cr_expect(eq(str, got.message, "the peer: because"));
    }
    struct error silent = {0};
    session_read_reason(CAUSE_IO, "", "the peer", &silent);
    cr_expect(ne(str, silent.message, "the peer: "), "%s", silent.message);
}

Test(session, linger_ends_with_the_peer)
{
    struct session a, b;
    char rest[64];

    open_pair(&a, &b, LONG_MS);
    session_send(&b, WIRE_SYNC, 1, NULL, 0);
    transport_finish(b.transport);
    session_linger(&a, 1 << 30);
    cr_expect(eq(long, transport_recv(b.transport, rest, sizeof(rest), 0), 0),
              "and it said that it is finished");
    session_fini(&a);
    session_fini(&b);
}

/*
 * A session that outlives its connection
 */

/* Messages of @s that are in its queue, pings not counted, and pings. */
static unsigned in_queue(const struct session *s, unsigned *pings)
{
    unsigned n = 0, heartbeats = 0;

    for (size_t at = 0; at < s->queued;) {
        struct wire_message header;
        struct message message;
        struct error err;
        memcpy(&header, s->queue + at, sizeof(header));
        CHECK_OK(wire_message_decode(&header, &message, &err));
        at += sizeof(header) + message.length;
        n += message.type != WIRE_PING;
        heartbeats += message.type == WIRE_PING;
    }
    if (pings)
        *pings = heartbeats;
    return n;
}

static void open_kept(struct session *a, struct session *b)
{
    open_pair(a, b, LONG_MS);
    session_keep(a);
    session_keep(b);
}

/* What is there is read. */
static void read_all(struct session *s, struct log *log)
{
    struct error err;

    CHECK_OK(session_step(s, 0, note, log, &err));
    CHECK_OK(session_step(s, 0, note, log, &err));
}

/* The peer, by hand, says something and has received so many. */
static void say(struct transport *t, enum wire_message_type type, uint64_t received)
{
    struct wire_message header;

    wire_message_encode_received(type, 0, received, NULL, 0, &header);
    link_send(t, &header, sizeof(header));
}

/* The connection of both is lost, and they go on over another one, after what each says that it has. */
static void reconnect(struct session *a, struct session *b, uint64_t a_has, uint64_t b_has)
{
    struct link link;
    struct error err;

    session_lose(a);
    session_lose(b);
    link_pair(&link);
    CHECK_OK(session_renew(a, link.a, b_has, &err));
    CHECK_OK(session_renew(b, link.b, a_has, &err));
}

Test(session, kept_until_the_peer_says_that_it_has_it)
{
    struct session a, b;
    struct log log = {0};

    open_kept(&a, &b);
    session_send(&a, WIRE_SYNC, 1, "one", 3);
    session_send(&a, WIRE_SYNC, 2, "two", 3);
    cr_expect(eq(uint, in_queue(&a, NULL), 2));
    cr_expect(eq(sz, a.out, a.queued), "it is sent");
    step_until(&b, &log, 1);
    cr_expect(eq(u64, atomic_load(&b.received), 2));
    session_send(&b, WIRE_SYNC_ACK, 1, NULL, 0);
    read_all(&a, &log);
    cr_expect(zero(uint, in_queue(&a, NULL)), "the acknowledgement tells");
    cr_expect(zero(sz, a.out));
    cr_expect(eq(u64, a.confirmed, 2));
    cr_expect(eq(uint, in_queue(&b, NULL), 1));
    /* So does a ping, which is not counted itself. */
    session_send(&a, WIRE_PING, 0, NULL, 0);
    read_all(&b, &log);
    cr_expect(eq(u64, atomic_load(&b.received), 2));
    cr_expect(zero(uint, in_queue(&b, NULL)));
    cr_expect(eq(u64, b.confirmed, 1));
    session_fini(&a);
    session_fini(&b);
}

/* Nothing is kept, and nobody counts, without session_keep(). */
Test(session, not_kept)
{
    struct session a, b;
    struct log log = {0};
    struct message message;
    struct wire_message header;

    open_pair(&a, &b, LONG_MS);
    session_send(&a, WIRE_SYNC, 1, NULL, 0);
    cr_expect(zero(sz, a.queued));
    step_until(&b, &log, 1);
    session_send(&b, WIRE_SYNC_ACK, 1, NULL, 0);
    cr_assert(zero(int, transport_recv_all(a.transport, &header, sizeof(header), NULL)));
    cr_assert(zero(int, wire_message_decode(&header, &message, NULL)));
    cr_expect(zero(u32, message.received));
    /* And what a peer says of it is not looked at. */
    say(b.transport, WIRE_SYNC_ACK, 77);
    step_until(&a, &log, 2);
    cr_expect(zero(u64, a.confirmed));
    session_fini(&a);
    session_fini(&b);
}

/* Pings go with what is before them, and those after the last message that is confirmed, too. */
Test(session, pings_are_kept_for_nothing)
{
    struct session a;
    struct link link;
    struct log log = {0};
    unsigned pings;

    link_pair(&link);
    cr_assert(zero(int, session_init(&a, link.a, LONG_MS, LONG_MS)));
    session_keep(&a);
    session_send(&a, WIRE_PING, 0, NULL, 0);
    session_send(&a, WIRE_SYNC, 1, NULL, 0);
    session_send(&a, WIRE_PING, 0, NULL, 0);
    session_send(&a, WIRE_SYNC, 2, NULL, 0);
    say(link.b, WIRE_PING, 0);
    read_all(&a, &log);
    cr_expect(eq(uint, in_queue(&a, &pings), 2));
    cr_expect(eq(uint, pings, 1), "nothing is confirmed but what came before the first message");
    say(link.b, WIRE_PING, 1);
    read_all(&a, &log);
    cr_expect(eq(uint, in_queue(&a, &pings), 1));
    cr_expect(zero(uint, pings));
    cr_expect(eq(u64, a.confirmed, 1));
    session_fini(&a);
    transport_close(link.b);
}

/* Numbers are modulo 2^32; one that was said before another one, and came once more, is no news. */
Test(session, numbers_of_messages)
{
    struct session a;
    struct link link;
    struct log log = {0};
    struct error err;

    link_pair(&link);
    cr_assert(zero(int, session_init(&a, link.a, LONG_MS, LONG_MS)));
    session_keep(&a);
    a.confirmed = 0x7ffffffffull;
    for (unsigned i = 0; i < 3; i++)
        session_send(&a, WIRE_SYNC, i, NULL, 0);
    say(link.b, WIRE_PING, 0xffffffff);
    say(link.b, WIRE_PING, 0xfffffff0);
    say(link.b, WIRE_PING, 0x80000000);
    read_all(&a, &log);
    cr_expect(eq(uint, in_queue(&a, NULL), 3));
    say(link.b, WIRE_PING, 1);
    read_all(&a, &log);
    cr_expect(eq(uint, in_queue(&a, NULL), 1));
    cr_expect(eq(u64, a.confirmed, 0x800000001ull));
    say(link.b, WIRE_PING, 3);
    CHECK_FAILS(session_step(&a, INT64_MAX, note, &log, &err), CAUSE_PROTOCOL);
    cr_expect(not(a.lost), "what makes no sense does so over any connection");
    session_fini(&a);
    transport_close(link.b);
}

/* Of what has not been sent as a whole, the peer cannot have received anything. */
Test(session, confirmed_before_it_was_sent)
{
    struct session a, b;
    struct log log = {0};
    struct error err;
    uint8_t *body = calloc(1, WIRE_BODY_MAX);
    unsigned sent = 0;

    open_kept(&a, &b);
    do
        session_send(&a, WIRE_SYNC, ++sent, body, WIRE_BODY_MAX);
    while (a.out == a.queued);
    say(b.transport, WIRE_PING, sent - 1);
    read_all(&a, &log);
    cr_expect(eq(uint, in_queue(&a, NULL), 1));
    cr_expect(lt(sz, a.out, a.queued));
    say(b.transport, WIRE_PING, sent);
    CHECK_FAILS(session_step(&a, INT64_MAX, note, &log, &err), CAUSE_PROTOCOL);
    session_fini(&a);
    session_fini(&b);
    free(body);
}

/* What the other side has not handled comes once more, as a whole, and the rest in its order. */
Test(session, goes_on)
{
    struct session a, b;
    struct log log = {0};
    struct error err;

    open_kept(&a, &b);
    session_send(&a, WIRE_SYNC, 1, "one", 3);
    step_until(&b, &log, 1);
    session_send(&a, WIRE_SYNC, 2, "two", 3);
    session_send(&a, WIRE_PING, 0, NULL, 0);
    session_send(&a, WIRE_SYNC, 3, "three", 5);
    transport_shutdown(a.transport);
    session_send(&b, WIRE_SYNC_ACK, 1, NULL, 0);
    CHECK_FAILS(session_step(&a, INT64_MAX, note, &log, &err), CAUSE_RESET);
    cr_expect(a.lost);
    session_lose(&a);
    cr_expect(not(a.lost));
    cr_expect(zero(ptr, a.transport));
    session_send(&a, WIRE_SYNC, 4, "four", 4);
    cr_expect(eq(uint, in_queue(&a, NULL), 4));
    log.count = 0;
    reconnect(&a, &b, 0, 1);
    cr_expect(eq(u64, a.confirmed, 1));
    step_until(&b, &log, 3);
    for (unsigned i = 0; i < 3; i++)
        cr_expect(eq(u64, log.entries[i].id, i + 2));
    cr_expect(zero(int, memcmp(log.entries[2].body, "four", 4)));
    cr_expect(eq(u64, atomic_load(&b.received), 4));
    step_until(&a, &log, 4);
    cr_expect(eq(int, log.entries[3].type, WIRE_SYNC_ACK));
    session_fini(&a);
    session_fini(&b);
}

/* A message of which only a part was received, or sent, comes as a whole. */
Test(session, half_a_message)
{
    struct session a, b;
    struct log log = {0};
    uint8_t *body = malloc(WIRE_BODY_MAX);
    unsigned sent = 0;

    pattern(body, WIRE_BODY_MAX, 5);
    open_kept(&a, &b);
    do
        session_send(&a, WIRE_SYNC, ++sent, body, WIRE_BODY_MAX);
    while (a.out == a.queued);
    /* One piece: the socket has less than a message. */
    b.unread = true;
    read_all(&b, &log);
    unsigned had = log.count;
    cr_assert(lt(uint, had, sent));
    cr_assert(b.have > 0 && b.partial_since, "a part of the next one");
    reconnect(&a, &b, 0, had);
    cr_expect(zero(sz, b.have));
    cr_expect(zero(i64, b.partial_since));
    while (log.count < sent) {
        read_all(&b, &log);
        read_all(&a, &log);
    }
    for (unsigned i = 0; i < sent; i++) {
        cr_expect(eq(u64, log.entries[i].id, i + 1));
        cr_expect(eq(u32, log.entries[i].length, WIRE_BODY_MAX));
        cr_expect(zero(int, memcmp(log.entries[i].body, body, 32)));
    }
    session_fini(&a);
    session_fini(&b);
    free(body);
}

/* The other side has forgotten messages, or has received some that were never sent. */
Test(session, cannot_go_on)
{
    struct session a, b;
    struct log log = {0};
    struct error err;
    struct link link;

    open_kept(&a, &b);
    for (unsigned i = 0; i < 3; i++)
        session_send(&a, WIRE_SYNC, i, NULL, 0);
    say(b.transport, WIRE_PING, 2);
    read_all(&a, &log);
    session_lose(&a);
    link_pair(&link);
    CHECK_FAILS(session_renew(&a, link.a, 1, &err), CAUSE_PROTOCOL);
    cr_expect(not(zero(ptr, strstr(err.message, "2 messages, but not 1"))), "%s", err.message);
    cr_expect(zero(ptr, a.transport), "it is the caller's");
    CHECK_FAILS(session_renew(&a, link.a, 4, &err), CAUSE_PROTOCOL);
    CHECK_OK(session_renew(&a, link.a, 3, &err));
    session_fini(&a);
    session_fini(&b);
    transport_close(link.b);
}

/* Another connection begins as the first one did: with nothing heard, a heartbeat and time to answer. */
Test(session, another_connection)
{
    struct session a, b;
    struct log log = {0};

    open_kept(&a, &b);
    cr_expect(a.heard);
    a.last_heard = 0;
    a.next_ping = INT64_MAX;
    a.unread = false;
    reconnect(&a, &b, 0, 0);
    cr_expect(not(a.heard));
    cr_expect(a.unread);
    cr_expect(lt(i64, clock_ms() - a.last_heard, LONG_MS));
    cr_expect(le(i64, a.next_ping, clock_ms()));
    uint64_t before = a.bytes_sent;
    read_all(&a, &log);
    cr_expect(eq(u64, a.bytes_sent, before + sizeof(struct wire_message)), "a ping");
    cr_expect(not(a.heard));
    read_all(&b, &log);
    read_all(&a, &log);
    cr_expect(b.heard, "a ping is enough");
    session_fini(&a);
    session_fini(&b);
}

/* A peer that sends much and is told nothing by the way is told by a ping. */
Test(session, tells_after_a_while)
{
    struct session a, b;
    struct log log = {0};
    static uint8_t body[(32 << 10) - 3 * sizeof(struct wire_message)];

    open_kept(&a, &b);
    /* One byte less than it takes. */
    session_send(&a, WIRE_SYNC, 1, body, sizeof(body) - 1);
    session_send(&a, WIRE_SYNC, 2, NULL, 0);
    step_until(&b, &log, 2);
    uint64_t before = b.bytes_sent;
    read_all(&b, &log);
    cr_expect(eq(u64, b.bytes_sent, before));
    session_send(&a, WIRE_SYNC, 3, body, 1);
    step_until(&b, &log, 3);
    cr_expect(eq(u64, b.bytes_sent, before + sizeof(struct wire_message)));
    cr_expect(zero(u32, b.unsaid));
    read_all(&a, &log);
    cr_expect(eq(u64, a.confirmed, 3));
    session_fini(&a);
    session_fini(&b);
}

/* Without a connection a step waits for its deadline, or somebody; what is sent meanwhile waits. */
Test(session, step_without_a_connection)
{
    struct session a, b;
    static struct stepper stepper;
    struct log log = {0};
    struct error err;

    open_kept(&a, &b);
    session_lose(&a);
    int64_t start = clock_ms();
    CHECK_OK(session_step(&a, start + 30, note, &log, &err));
    cr_expect(ge(i64, clock_ms() - start, 30));
    stepper = (struct stepper){.s = &a};
    worker_start(&stepper.worker, step_once, &stepper);
    worker_await_sleep(&stepper.worker);
    cr_expect(not(atomic_load(&stepper.worker.done)));
    session_wake(&a);
    worker_join(&stepper.worker);
    cr_expect(zero(int, stepper.ret), "%s", stepper.err.message);
    stepper = (struct stepper){.s = &a};
    worker_start(&stepper.worker, step_once, &stepper);
    worker_await_sleep(&stepper.worker);
    cr_expect(not(atomic_load(&stepper.worker.done)), "a wake-up is one");
    worker_interrupt(&stepper.worker);
    worker_join(&stepper.worker);
    cr_expect(zero(int, stepper.ret), "%s", stepper.err.message);
    cr_expect(zero(u64, a.bytes_sent), "nobody pings");
    session_fini(&a);
    session_fini(&b);
}

Test(session, linger_without_a_connection)
{
    struct session a, b;

    open_kept(&a, &b);
    session_lose(&a);
    session_linger(&a, 1 << 30);
    cr_expect(a.broken);
    session_fini(&a);
    session_fini(&b);
}

/* A queue that is full is the end, whether there is a connection or not. */
Test(session, kept_queue_is_bounded)
{
    for (int connected = 0; connected < 2; connected++) {
        struct session a, b;
        struct log log = {0};
        struct error err;
        uint8_t *body = calloc(1, WIRE_BODY_MAX);
        struct link link;
        open_kept(&a, &b);
        if (!connected)
            session_lose(&a);
        for (int i = 0; i < 1000; i++)
            session_send(&a, WIRE_SYNC, 1, body, WIRE_BODY_MAX);
        cr_expect(le(sz, a.queue_size, 64u << 20));
        cr_expect(a.broken);
        if (!connected) {
            link_pair(&link);
            CHECK_FAILS(session_renew(&a, link.a, 5, &err), CAUSE_NO_MEMORY);
            transport_close(link.a);
            transport_close(link.b);
        } else {
            CHECK_FAILS(session_step(&a, INT64_MAX, note, &log, &err), CAUSE_RESET);
            cr_expect(not(a.lost), "another connection would not help");
        }
        session_fini(&a);
        session_fini(&b);
        free(body);
    }
}

/* Sending fails first: the step finds it, and it is no more than a loss. */
Test(session, lost_while_it_sends)
{
    struct session a, b;
    struct log log = {0};
    struct error err;

    open_kept(&a, &b);
    transport_close(b.transport);
    b.transport = NULL;
    for (int i = 0; i < 3; i++)
        session_send(&a, WIRE_SYNC, 1, "x", 1);
    cr_expect(not(a.broken));
    cr_expect(eq(uint, in_queue(&a, NULL), 3));
    CHECK_FAILS(session_step(&a, INT64_MAX, note, &log, &err), CAUSE_RESET);
    cr_expect(a.lost);
    session_fini(&a);
    session_fini(&b);
}

/* What another connection would cure, and what not. */
Test(session, what_is_a_loss)
{
    struct session a, b;
    struct log log = {.answer = CAUSE_MISMATCH};
    struct error err;

    open_kept(&a, &b);
    session_send(&a, WIRE_SYNC, 1, NULL, 0);
    CHECK_FAILS(session_step(&b, INT64_MAX, note, &log, &err), CAUSE_MISMATCH);
    cr_expect(not(b.lost));
    cr_expect(zero(u64, atomic_load(&b.received)), "it was not handled");
    link_send(a.transport, "this is no message, this is no message", 38);
    CHECK_FAILS(session_step(&b, INT64_MAX, note, &log, &err), CAUSE_PROTOCOL);
    cr_expect(not(b.lost));
    session_fini(&a);
    session_fini(&b);

    open_kept(&a, &b);
    b.last_heard -= LONG_MS;
    CHECK_FAILS(session_step(&b, INT64_MAX, note, &log, &err), CAUSE_TIMEOUT);
    cr_expect(b.lost, "silence");
    session_fini(&a);
    session_fini(&b);
}

/* The line goes dead in a message that comes in several pieces: that is a loss, since it comes again. */
Test(session, dead_in_a_message)
{
    struct session a, b;
    struct wire_message header;
    struct log log = {0};
    struct error err;

    for (int kept = 0; kept < 2; kept++) {
        open_pair(&a, &b, LONG_MS);
        if (kept)
            session_keep(&b);
        wire_message_encode(WIRE_SYNC, 1, "body", 4, &header);
        link_send(a.transport, &header, 10);
        read_all(&b, &log);
        link_send(a.transport, (char *)&header + 10, 10);
        b.partial_since -= LONG_MS;
        CHECK_FAILS(session_step(&b, INT64_MAX, note, &log, &err), kept ? CAUSE_TIMEOUT : CAUSE_PROTOCOL);
        cr_expect(eq(int, b.lost, kept));
        session_fini(&a);
        session_fini(&b);
    }
}
