/* SPDX-License-Identifier: Apache-2.0 */
/* Connections that are made again: the destination is the test, and answers hellos by hand. */
#include "again.h"
#include "blocked.h"
#include "check.h"
#include "clock.h"
#include "connection.h"
#include "peer.h"
#include "scratch.h"

#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define CHANNELS 2u
#define LONG_MS  3600000u
#define PACKET   (sizeof(struct wire_packet) + 1)

static struct fake fake;
static struct uri_list uris;
static struct connection_config config;
static struct connection *conn;
static struct again again;
static struct transport *main_end, *data[CHANNELS]; /* the destination's */

/* What it was told. */
static pthread_mutex_t told_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t told_more = PTHREAD_COND_INITIALIZER;
static unsigned failures, losses, finds;
static struct error failed_reason, lost_reason;
static int64_t failed_delay;
static bool looks; /* only the listener of channel 0 finds connections again */
static struct again_patience patience;

static void note_failure(void *arg, const struct error *reason, int64_t delay_ms)
{
    cr_expect(eq(ptr, arg, &failures));
    pthread_mutex_lock(&told_lock);
    failures++;
    failed_reason = *reason;
    failed_delay = delay_ms;
    pthread_cond_broadcast(&told_more);
    pthread_mutex_unlock(&told_lock);
}

static void note_loss(void *arg, const struct error *reason)
{
    cr_expect(eq(ptr, arg, &failures));
    pthread_mutex_lock(&told_lock);
    losses++;
    lost_reason = *reason;
    pthread_cond_broadcast(&told_more);
    pthread_mutex_unlock(&told_lock);
}

static void note_find(void *arg)
{
    cr_expect(eq(ptr, arg, &failures));
    pthread_mutex_lock(&told_lock);
    finds++;
    if (looks)
        patience = again.listeners[0].patience;
    pthread_cond_broadcast(&told_more);
    pthread_mutex_unlock(&told_lock);
}

static void await_told(const unsigned *what, unsigned count)
{
    pthread_mutex_lock(&told_lock);
    while (*what < count)
        pthread_cond_wait(&told_more, &told_lock);
    pthread_mutex_unlock(&told_lock);
}

static void welcome_all(void *arg)
{
    struct hello hello;

    (void)arg;
    main_end = fake_answer(&fake, &hello);
    for (unsigned c = 0; c < CHANNELS; c++)
        data[c] = fake_answer(&fake, &hello);
}

/* A connection that is made again for so long. */
static void open_for(uint32_t resume_ms)
{
    struct worker worker;
    struct error err;

    config.resume_ms = resume_ms;
    worker_start(&worker, welcome_all, NULL);
    CHECK_OK(connection_open(&config, &conn, &err));
    worker_join(&worker);
}

static void begin(uint32_t resume_ms)
{
    struct error err;

    open_for(resume_ms);
    CHECK_OK(again_start(&again, conn, &err));
}

static void set_up(void)
{
    char text[128];
    struct error err;

    scratch_make();
    snprintf(text, sizeof(text), "unix:%s/socket", scratch);
    fake_listen(&fake, text);
    CHECK_OK(uri_list_parse(text, &uris, &err));
    config = (struct connection_config){
        .uris = &uris,
        .name = "vm",
        .channels = CHANNELS,
        .timeout_ms = LONG_MS,
        .features = WIRE_FEATURE_RESUME,
        .write_behind = 1 << 20,
        .rdma_chunk = TRANSPORT_CHUNK,
        .cancel_fd = -1,
        .failed = note_failure,
        .lost = note_loss,
        .found_again = note_find,
        .arg = &failures,
    };
    again_init(&again);
}

static void close_connection(void)
{
    again_stop(&again);
    connection_break(conn);
    again_join(&again);
    again_join(&again);
    transport_close(main_end);
    for (unsigned c = 0; c < CHANNELS; c++)
        transport_close(data[c]);
    connection_hang_up(conn);
    connection_end(conn);
    connection_free(conn);
}

static void end(void)
{
    close_connection();
    fake_close(&fake);
}

TestSuite(again, .init = set_up, .fini = scratch_remove);

static void send_packet(unsigned index, char byte)
{
    struct channel *ch = &conn->channels[index];
    struct packet packet = {.type = WIRE_DATA, .length = 1, .raw_length = 1};

    cr_assert(zero(int, gate_enter(&conn->gate, PACKET, NULL)));
    pthread_mutex_lock(&ch->lock);
    cr_assert(zero(int, channel_reserve(ch, 1, 1)));
    channel_add_copied(ch, &packet, &byte, PACKET);
    pthread_mutex_unlock(&ch->lock);
    channel_send_copied(ch);
}

static void expect_packet(unsigned index, uint64_t sequence, char byte)
{
    struct wire_packet wire;
    struct packet packet;
    struct error err;
    char got;

    cr_assert(zero(int, transport_recv_all(data[index], &wire, sizeof(wire), NULL)));
    CHECK_OK(wire_packet_decode(&wire, &packet, &err));
    cr_expect(eq(u64, packet.sequence, sequence));
    cr_assert(zero(int, transport_recv_all(data[index], &got, 1, NULL)));
    cr_expect(eq(chr, got, byte));
}

static void lose(unsigned index)
{
    transport_close(data[index]);
    data[index] = NULL;
}

static void tell(unsigned index, uint64_t count)
{
    struct iovec iov = {&count, sizeof(count)};

    count = htole64(count);
    cr_assert(zero(int, transport_send(data[index], &iov, 1)));
}

/* It comes for a channel, and is told that so many bytes have been received. */
static void answer(unsigned index, uint64_t received)
{
    struct hello hello;

    fake.reply.received = received;
    data[index] = fake_answer(&fake, &hello);
    cr_expect(eq(int, (int)hello.kind, WIRE_HELLO_DATA_AGAIN));
    cr_expect(eq(uint, hello.channel, index));
    cr_expect(eq(uint, hello.channels, CHANNELS));
    cr_expect(eq(str, hello.name, "vm"));
    cr_expect(zero(int, memcmp(hello.session, conn->hello.session, sizeof(hello.session))));
}

/* Each by itself, and what it has lost is sent again. */
Test(again, data_channels)
{
    begin(LONG_MS);
    for (unsigned c = 0; c < CHANNELS; c++) {
        send_packet(c, 'x');
        send_packet(c, 'y');
        expect_packet(c, 1, 'x');
        lose(c);
        answer(c, PACKET);
        await_told(&finds, c + 1);
        cr_expect(eq(uint, losses, c + 1));
        expect_packet(c, 2, 'y');
        send_packet(c, 'z');
        expect_packet(c, 3, 'z');
        cr_expect(eq(int, (int)lost_reason.cause, CAUSE_RESET));
        cr_expect(ne(ptr, strstr(lost_reason.message, c ? "channel 1" : "channel 0"), NULL), "%s",
                  lost_reason.message);
    }
    tell(0, 3);
    while (conn->gate.used > 2 * PACKET)
        sched_yield();
    cr_expect(zero(uint, failures));
    end();
}

/* The destination may think better of it, or not. */
Test(again, refusals)
{
    static const struct {
        enum cause cause;
        bool final;
    } cases[] = {
        {CAUSE_AGAIN, false},      {CAUSE_QUOTA, false},    {CAUSE_EXISTS, false},  {CAUSE_SHUTDOWN, false},
        {CAUSE_NOT_FOUND, true},   {CAUSE_STATE, true},     {CAUSE_PROTOCOL, true}, {CAUSE_DENIED, true},
        {CAUSE_UNSUPPORTED, true}, {CAUSE_CANCELLED, true},
    };

    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        struct hello hello;
        unsigned found = finds, failed = failures;
        begin(LONG_MS);
        lose(1);
        fake.reply.cause = cases[i].cause;
        strcpy(fake.reply.text, "no");
        transport_close(fake_answer(&fake, &hello));
        fake.reply.cause = CAUSE_NONE;
        *fake.reply.text = '\0';
        if (cases[i].final) {
            await_told(&failures, failed + 1);
            cr_expect(eq(str, failed_reason.message,
                         "channel 1 is lost (the connection of channel 1: Connection reset by peer): the "
                         "destination refuses: no"));
            cr_expect(zero(i64, failed_delay));
            cr_expect(channel_is_dead(&conn->channels[1]));
            cr_expect(not(channel_is_dead(&conn->channels[0])));
        } else {
            answer(1, 0);
            await_told(&finds, found + 1);
            cr_expect(eq(uint, failures, failed));
        }
        close_connection();
    }
    fake_close(&fake);
}

/* Nobody is there. */
Test(again, no_time_left)
{
    begin(1000);
    transport_listener_close(fake.listener);
    fake.listener = NULL;
    lose(0);
    await_told(&failures, 1);
    cr_expect(ne(ptr, strstr(failed_reason.message, "it could not be made again within 1 s: "), NULL), "%s",
              failed_reason.message);
    cr_expect(eq(uint, losses, 1));
    cr_expect(zero(uint, finds));
    end();
}

/* The destination does not answer, and then there is no time. */
Test(again, no_answer)
{
    struct transport *silent = NULL;

    begin(300);
    lose(0);
    await_told(&losses, 1);
    await_told(&failures, 1);
    cr_expect(eq(int, (int)failed_reason.cause, CAUSE_TIMEOUT), "%s", failed_reason.message);
    while (transport_accept(fake.listener, &silent) == 0)
        transport_close(silent);
    end();
}

/* It is over while the destination does not answer, or while nobody is there. */
Test(again, stopped)
{
    for (int deaf = 0; deaf < 2; deaf++) {
        begin(LONG_MS);
        if (!deaf) {
            transport_listener_close(fake.listener);
            fake.listener = NULL;
        }
        lose(0);
        await_told(&losses, 1);
        end();
        cr_expect(zero(uint, failures));
        cr_expect(zero(uint, finds));
        losses = 0;
        scratch_remove();
        set_up();
    }
    fake_close(&fake);
}

/* What cannot be: the destination has received more than was sent. */
Test(again, received_too_much)
{
    begin(LONG_MS);
    send_packet(0, 'x');
    expect_packet(0, 1, 'x');
    lose(0);
    answer(0, PACKET + 1);
    await_told(&failures, 1);
    cr_expect(eq(int, (int)failed_reason.cause, CAUSE_PROTOCOL));
    cr_expect(ne(ptr, strstr(failed_reason.message, "66 bytes, which cannot be"), NULL), "%s",
              failed_reason.message);
    cr_expect(channel_is_dead(&conn->channels[0]));
    end();
}

/* What it says that it has applied cannot be: no other connection would make that better. */
Test(again, applied_too_much)
{
    begin(LONG_MS);
    send_packet(0, 'x');
    expect_packet(0, 1, 'x');
    tell(0, 2);
    await_told(&failures, 1);
    cr_expect(eq(int, (int)failed_reason.cause, CAUSE_PROTOCOL));
    cr_expect(ne(ptr, strstr(failed_reason.message, "channel 0"), NULL), "%s", failed_reason.message);
    cr_expect(zero(uint, losses));
    cr_expect(channel_is_dead(&conn->channels[0]));
    end();
}

/* A channel that is dead, or not needed any more, is not made again; its listener ends by itself. */
Test(again, not_needed)
{
    for (int committed = 0; committed < 2; committed++) {
        open_for(LONG_MS);
        struct error err;
        CHECK_OK(again_start(&again, conn, &err));
        if (committed)
            atomic_store(&conn->committed, true);
        else
            connection_break(conn);
        for (unsigned c = 0; c < CHANNELS; c++)
            lose(c);
        again_join(&again);
        cr_expect(zero(uint, losses));
        cr_expect(zero(uint, failures));
        connection_break(conn);
        transport_close(main_end);
        main_end = NULL;
        connection_hang_up(conn);
        connection_end(conn);
        connection_free(conn);
    }
    fake_close(&fake);
}

/* The destination is told to complete while a channel is being made again: what it says of that is no matter.
 */
Test(again, not_needed_any_more)
{
    struct hello hello;

    begin(LONG_MS);
    lose(0);
    await_told(&losses, 1);
    atomic_store(&conn->committed, true);
    fake.reply.cause = CAUSE_STATE;
    transport_close(fake_answer(&fake, &hello));
    lose(1);
    again_join(&again);
    cr_expect(eq(uint, losses, 1));
    cr_expect(eq(uint, finds, 1), "nothing is lost any more");
    cr_expect(zero(uint, failures));
    end();
}

/*
 * Patience
 */

/* It is lost, and found again, where so much has been received. */
static struct again_patience lose_and_find(uint64_t received)
{
    static unsigned found;

    lose(0);
    answer(0, received);
    await_told(&finds, ++found);
    pthread_mutex_lock(&told_lock);
    struct again_patience now = patience;
    pthread_mutex_unlock(&told_lock);
    return now;
}

/* Whether it is given up before it comes once more. */
static bool is_given_up(void)
{
    struct pollfd fd = {.fd = transport_listener_pollfd(fake.listener), .events = POLLIN};
    bool over = false;

    while (!over && poll(&fd, 1, 10) == 0) {
        pthread_mutex_lock(&told_lock);
        over = failures;
        pthread_mutex_unlock(&told_lock);
    }
    return over;
}

/* One that is made again and again, and carries nothing, is tried often, and then it ends. */
Test(again, nothing_moves)
{
    static const int backoffs[] = {20, 40, 80, 160, 200, 200};
    int64_t left = 3000;
    unsigned made = 0;

    looks = true;
    begin(3000);
    send_packet(0, 'x');
    expect_packet(0, 1, 'x');
    for (; made < ARRAY_LENGTH(backoffs); made++) {
        struct again_patience now = lose_and_find(0);
        cr_expect(eq(int, now.backoff_ms, backoffs[made]));
        cr_expect(le(i64, now.left_ms, left - (made ? backoffs[made - 1] / 2 : 0)), "it gets less");
        left = now.left_ms;
    }
    for (lose(0); !is_given_up(); lose(0)) {
        struct hello hello;
        data[0] = fake_answer(&fake, &hello);
    }
    cr_expect(ne(ptr, strstr(failed_reason.message, "it could not be made again within 3 s"), NULL), "%s",
              failed_reason.message);
    end();
}

/* One that carries something is tried at once, and has all the time once more. */
Test(again, something_moves)
{
    looks = true;
    begin(LONG_MS);
    send_packet(0, 'x');
    send_packet(0, 'y');
    cr_expect(eq(int, lose_and_find(0).backoff_ms, 20));
    struct again_patience before = lose_and_find(0);
    cr_expect(eq(int, before.backoff_ms, 40));
    expect_packet(0, 1, 'x');
    /* This one shows that it has moved. */
    struct again_patience now = lose_and_find(PACKET);
    cr_expect(eq(int, now.backoff_ms, 80));
    cr_expect(le(i64, now.left_ms, before.left_ms - 40));
    cr_expect(eq(int, lose_and_find(PACKET).backoff_ms, 20));
    cr_expect(eq(int, lose_and_find(PACKET).backoff_ms, 40));
    /* So does what is applied. */
    tell(0, 1);
    while (atomic_load(&conn->gate.used) > PACKET)
        sched_yield();
    cr_expect(eq(int, lose_and_find(PACKET).backoff_ms, 20));
    end();
}

/*
 * The main channel
 */

static struct {
    struct worker worker;
    struct error reason, err;
    int cancel_fd, ret;
} renewal;

static void renew_main(void *arg)
{
    (void)arg;
    renewal.ret = again_main(&again, conn, renewal.cancel_fd, &renewal.reason, &renewal.err);
}

static void begin_main(void)
{
    begin(LONG_MS);
    memset(&renewal, 0, sizeof(renewal));
    renewal.cancel_fd = eventfd(0, EFD_CLOEXEC);
    error_set(&renewal.reason, CAUSE_RESET, "it has gone");
    atomic_store(&conn->main.received, 11);
    worker_start(&renewal.worker, renew_main, NULL);
}

static void answer_main(uint64_t received)
{
    struct hello hello;

    fake.reply.received = received;
    struct transport *t = fake_answer(&fake, &hello);
    transport_close(main_end);
    main_end = t;
    cr_expect(eq(int, (int)hello.kind, WIRE_HELLO_MAIN_AGAIN));
    cr_expect(eq(u64, hello.received, atomic_load(&conn->main.received)));
    cr_expect(zero(int, memcmp(hello.session, conn->hello.session, sizeof(hello.session))));
}

Test(again, main_channel)
{
    struct message message;
    static uint8_t body[WIRE_BODY_MAX];

    begin_main();
    await_told(&losses, 1);
    cr_expect(eq(str, lost_reason.message, "it has gone"));
    session_send(&conn->main, WIRE_SYNC, 7, NULL, 0);
    answer_main(0);
    worker_join(&renewal.worker);
    cr_expect(zero(int, renewal.ret), "%s", renewal.err.message);
    cr_expect(eq(uint, finds, 1));
    cr_assert(zero(int, peer_receive(main_end, &message, body)));
    cr_expect(eq(u64, message.id, 7));
    cr_expect(not(conn->main.heard));
    cr_expect(eq(i64, again.main.left_ms > 0, 1));
    close(renewal.cancel_fd);
    end();
}

Test(again, main_channel_cannot_go_on)
{
    begin_main();
    answer_main(5);
    worker_join(&renewal.worker);
    cr_expect(lt(int, renewal.ret, 0));
    cr_expect(eq(int, (int)renewal.err.cause, CAUSE_PROTOCOL));
    cr_expect(eq(str, renewal.err.message, "it has gone: the other side has received 0 messages, but not 5"));
    cr_expect(zero(uint, finds));
    close(renewal.cancel_fd);
    end();
}

Test(again, main_channel_is_refused)
{
    fake.reply.cause = CAUSE_NONE;
    begin_main();
    await_told(&losses, 1);
    fake.reply.cause = CAUSE_NOT_FOUND;
    strcpy(fake.reply.text, "who?");
    answer_main(0);
    worker_join(&renewal.worker);
    cr_expect(eq(int, (int)renewal.err.cause, CAUSE_NOT_FOUND));
    cr_expect(eq(str, renewal.err.message, "it has gone: the destination refuses: who?"));
    close(renewal.cancel_fd);
    end();
}

Test(again, main_channel_is_cancelled)
{
    begin_main();
    await_told(&losses, 1);
    eventfd_write(renewal.cancel_fd, 1);
    worker_join(&renewal.worker);
    cr_expect(lt(int, renewal.ret, 0));
    cr_expect(renewal.err.cause == CAUSE_CANCELLED || renewal.err.cause == CAUSE_INTERRUPTED, "%s",
              renewal.err.message);
    struct transport *t = NULL;
    while (transport_accept(fake.listener, &t) == 0)
        transport_close(t);
    close(renewal.cancel_fd);
    end();
}

/*
 * A goodbye
 */

static atomic_uint looked;
static atomic_bool is_over;

static bool look_whether_over(void *arg)
{
    cr_expect(eq(ptr, arg, &renewal));
    atomic_fetch_add(&looked, 1);
    return atomic_load(&is_over);
}

static void say_goodbye(void *arg)
{
    (void)arg;
    again_goodbye(conn, look_whether_over, &renewal);
}

/* The listeners are gone, as they are when the migration is over. */
static void begin_goodbye(bool lost)
{
    struct error reason = {0};

    begin(LONG_MS);
    error_set(&reason, CAUSE_CANCELLED, "enough");
    if (lost)
        session_lose(&conn->main);
    session_goodbye(&conn->main, &reason);
    again_stop(&again);
    connection_break(conn);
    again_join(&again);
    worker_start(&renewal.worker, say_goodbye, NULL);
}

static void expect_goodbye(void)
{
    static uint8_t body[WIRE_BODY_MAX];
    struct message message;

    do
        cr_assert(zero(int, peer_receive(main_end, &message, body)));
    while (message.type == WIRE_PING);
    cr_expect(eq(int, (int)message.type, WIRE_ABORT));
    transport_close(main_end);
    main_end = NULL;
}

/* The one that there is will do. */
Test(again, goodbye)
{
    struct transport *t = NULL;

    begin_goodbye(false);
    expect_goodbye();
    worker_join(&renewal.worker);
    cr_expect(zero(uint, looked));
    cr_expect(lt(int, transport_accept(fake.listener, &t), 0));
    end();
}

/* A connection that is lost, and one that is lost with the goodbye in it, is made again. */
Test(again, goodbye_by_another_connection)
{
    begin_goodbye(true);
    answer_main(0);
    transport_close(main_end); /* unread */
    main_end = NULL;
    answer_main(0);
    expect_goodbye();
    worker_join(&renewal.worker);
    cr_expect(eq(uint, looked, 2));
    cr_expect(zero(uint, finds), "it does not go on");
    end();
}

Test(again, goodbye_is_refused)
{
    begin_goodbye(true);
    fake.reply.cause = CAUSE_NOT_FOUND;
    answer_main(0);
    worker_join(&renewal.worker);
    cr_expect(eq(uint, looked, 1));
    end();
}

/* It cannot be said now, and then there is no time for it. */
Test(again, goodbye_is_given_up)
{
    begin_goodbye(true);
    fake.reply.cause = CAUSE_NO_MEMORY;
    answer_main(0);
    atomic_store(&is_over, true);
    worker_join(&renewal.worker);
    cr_expect(ge(uint, looked, 2));
    end();
}
