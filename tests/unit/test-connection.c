/* SPDX-License-Identifier: Apache-2.0 */
/* Connections to a peer: one, another one of the same migration after it, and two at once. */
#include "connection.h"
#include "blocked.h"
#include "check.h"
#include "clock.h"
#include "peer.h"
#include "rig.h"
#include "scratch.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define CHANNELS 2u
#define FOREVER  INT64_MAX

static struct fake fake;
static struct uri_list uris;
static struct connection_config config;

/* What connection_config.failed was told. */
static struct {
    pthread_mutex_t lock;
    unsigned count;
    struct error reason;
    int64_t delay_ms;
} failure = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void note_failure(void *arg, const struct error *reason, int64_t delay_ms)
{
    cr_expect(eq(ptr, arg, &failure));
    pthread_mutex_lock(&failure.lock);
    failure.count++;
    failure.reason = *reason;
    failure.delay_ms = delay_ms;
    pthread_mutex_unlock(&failure.lock);
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
        .device_channels = 1,
        .timeout_ms = 60000,
        .features = WIRE_FEATURE_CHECKSUM,
        .write_behind = 1 << 20,
        .rdma_chunk = TRANSPORT_CHUNK,
        .cancel_fd = -1,
        .failed = note_failure,
        .arg = &failure,
    };
}

static void tear_down(void)
{
    scratch_remove();
}

TestSuite(connection, .init = set_up, .fini = tear_down);

/* A peer's ends of a connection. */
struct ends {
    struct transport *main, *data[CHANNELS];
    struct hello hello; /* of the main channel */
};

/* Welcomes one connection, in a thread of its own; the listener's backlog keeps the order of those who call.
 */
static void welcome(void *arg)
{
    struct ends *ends = arg;

    ends->main = fake_answer(&fake, &ends->hello);
    cr_assert(eq(int, (int)ends->hello.kind, WIRE_HELLO_MAIN));
    for (unsigned c = 0; c < CHANNELS; c++) {
        struct hello hello;
        ends->data[c] = fake_answer(&fake, &hello);
        cr_assert(eq(int, (int)hello.kind, WIRE_HELLO_DATA));
        cr_assert(eq(uint, hello.channel, c));
        cr_assert(zero(int, memcmp(hello.session, ends->hello.session, sizeof(hello.session))));
    }
}

static struct connection *open_to(struct ends *ends)
{
    struct connection *conn = NULL;
    struct worker worker;
    struct error err;

    worker_start(&worker, welcome, ends);
    CHECK_OK(connection_open(&config, &conn, &err));
    worker_join(&worker);
    return conn;
}

static void hang_up(struct ends *ends)
{
    transport_close(ends->main);
    for (unsigned c = 0; c < CHANNELS; c++)
        transport_close(ends->data[c]);
    *ends = (struct ends){0};
}

static void end(void)
{
    fake_close(&fake);
}

/* Gives a small packet its place on a channel. */
static void add_packet(struct connection *conn, unsigned index, char byte)
{
    struct channel *ch = &conn->channels[index];
    struct packet packet = {.type = WIRE_DATA, .length = 1, .raw_length = 1};
    uint64_t bytes = sizeof(struct wire_packet) + 1;

    cr_assert(zero(int, gate_enter(&conn->gate, bytes, NULL)));
    pthread_mutex_lock(&ch->lock);
    cr_assert(eq(int, (int)ch->closed, CHANNEL_OPEN));
    cr_assert(zero(int, channel_reserve(ch, 1, 1)));
    channel_add_copied(ch, &packet, &byte, bytes);
    pthread_mutex_unlock(&ch->lock);
}

static void send_packet(struct connection *conn, unsigned index, char byte)
{
    add_packet(conn, index, byte);
    channel_send_copied(&conn->channels[index]);
}

/* Receives it. */
static void expect_packet(struct ends *ends, unsigned index, uint64_t sequence, char byte)
{
    struct wire_packet wire;
    struct packet packet;
    struct error err;
    char got;

    cr_assert(zero(int, transport_recv_all(ends->data[index], &wire, sizeof(wire), NULL)));
    CHECK_OK(wire_packet_decode(&wire, &packet, &err));
    cr_expect(eq(u64, packet.sequence, sequence));
    cr_assert(zero(int, transport_recv_all(ends->data[index], &got, 1, NULL)));
    cr_expect(eq(chr, got, byte));
}

/* Takes one message of the peer's. */
static int count_message(void *arg, const struct message *message, struct wire_reader *body,
                         struct error *err)
{
    struct connection *conn = arg;

    if (message->type == WIRE_PROGRESS)
        return connection_note_progress(conn, body, err);
    return error_set(err, CAUSE_PROTOCOL, "a message of type %d", (int)message->type);
}

static int send_progress(struct transport *t, uint64_t work, unsigned channels)
{
    uint8_t buf[8 + 16 * WIRE_CHANNELS_MAX];
    struct wire_writer w = {buf, buf, buf + sizeof(buf)};

    wire_write_u64(&w, work);
    for (unsigned c = 0; c < channels; c++) {
        wire_write_u64(&w, 100 + c);
        wire_write_u64(&w, 10 + c);
    }
    return peer_send(t, WIRE_PROGRESS, 0, buf, wire_written(&w));
}

/* Steps until the peer has said that it has done @work. */
static void await_progress(struct connection *conn, uint64_t work)
{
    struct error err;

    while (conn->progress.work != work)
        CHECK_OK(session_step(&conn->main, FOREVER, count_message, conn, &err));
}

static bool same_session(const struct ends *a, const struct ends *b)
{
    return !memcmp(a->hello.session, b->hello.session, sizeof(a->hello.session));
}

static void close_connection(struct connection *conn, struct ends *ends)
{
    connection_break(conn);
    hang_up(ends);
    connection_hang_up(conn);
    connection_end(conn);
}

Test(connection, says_what_it_was_made_with)
{
    struct ends ends = {0};

    fake.reply.max_ram = 4321;
    fake.reply.max_devices = 7;
    struct connection *conn = open_to(&ends);
    cr_expect(eq(str, ends.hello.name, "vm"));
    cr_expect(eq(uint, ends.hello.channels, CHANNELS));
    cr_expect(eq(uint, ends.hello.device_channels, 1));
    cr_expect(eq(u64, ends.hello.features, WIRE_FEATURE_CHECKSUM));
    cr_expect(eq(u32, ends.hello.timeout_ms, 60000));
    cr_expect(eq(u64, conn->limits.max_ram, 4321));
    cr_expect(eq(u32, conn->limits.max_devices, 7));
    cr_expect(eq(uint, conn->channel_count, CHANNELS));
    cr_expect(zero(ptr, conn->compressor));
    cr_expect(not(conn->splices));
    cr_expect(eq(u64, connection_next_id(conn), 1));
    cr_expect(eq(u64, connection_next_id(conn), 2));
    close_connection(conn, &ends);
    connection_free(conn);
    end();
}

Test(connection, with_compression_and_splicing)
{
    struct ends ends = {0};

    config.compress = true;
    config.zstd_level = 1;
    config.splice = CONNECTION_SPLICE_ALWAYS;
    struct connection *conn = open_to(&ends);
    cr_expect(not(zero(ptr, conn->compressor)));
    cr_expect(conn->splices);
    close_connection(conn, &ends);
    connection_free(conn);
    end();
}

/* The same migration reaches its peer again after the connection broke. The first one is still there for its
 * counters. */
Test(connection, made_again)
{
    struct ends before = {0}, after = {0};
    struct connection *first = open_to(&before);

    send_packet(first, 0, 'a');
    send_packet(first, 1, 'b');
    send_packet(first, 1, 'c');
    expect_packet(&before, 0, 1, 'a');
    expect_packet(&before, 1, 1, 'b');
    expect_packet(&before, 1, 2, 'c');
    connection_next_id(first);
    send_progress(before.main, 5, CHANNELS);
    await_progress(first, 5);
    struct ends lost = before;
    close_connection(first, &before);

    struct connection *second = open_to(&after);
    cr_expect(not(same_session(&lost, &after)));
    cr_expect(eq(str, after.hello.name, "vm"));
    cr_expect(zero(u64, second->progress.work));
    cr_expect(zero(u64, second->progress.channel[1].applied));
    cr_expect(zero(u64, second->channels[1].wire_bytes));
    cr_expect(zero(u64, second->gate.used));
    cr_expect(eq(u64, connection_next_id(second), 1));
    /* The packets of a channel are numbered from one again. */
    send_packet(second, 1, 'd');
    expect_packet(&after, 1, 1, 'd');
    /* What the first one did can still be asked for. */
    cr_expect(eq(u64, first->progress.channel[1].applied, 11));
    cr_expect(eq(u64, first->channels[0].wire_bytes, sizeof(struct wire_packet) + 1));
    cr_expect(eq(u64, first->channels[1].wire_bytes, 2 * (sizeof(struct wire_packet) + 1)));
    cr_expect(eq(u64, connection_next_id(first), 2));
    close_connection(second, &after);
    connection_free(second);
    connection_free(first);
    cr_expect(zero(uint, failure.count));
    end();
}

/* Two connections of one migration, which know nothing of each other. */
Test(connection, two_at_once)
{
    struct ends one = {0}, two = {0};
    struct connection *first = open_to(&one), *second = open_to(&two);

    cr_expect(not(same_session(&one, &two)));
    for (char i = 0; i < 3; i++) {
        send_packet(first, 0, i);
        send_packet(second, 0, (char)(i + 10));
    }
    for (char i = 0; i < 3; i++) {
        expect_packet(&two, 0, (uint64_t)i + 1, (char)(i + 10));
        expect_packet(&one, 0, (uint64_t)i + 1, i);
    }
    send_progress(one.main, 1, CHANNELS);
    send_progress(two.main, 2, CHANNELS);
    await_progress(second, 2);
    await_progress(first, 1);
    /* One of them breaks; the other one goes on. */
    close_connection(first, &one);
    connection_free(first);
    send_packet(second, 1, 'x');
    expect_packet(&two, 1, 1, 'x');
    send_progress(two.main, 3, CHANNELS);
    await_progress(second, 3);
    cr_expect(zero(int, channel_flush(&second->channels[1], 1, NULL)));
    close_connection(second, &two);
    connection_free(second);
    end();
}

Test(connection, progress_of_another_number_of_channels)
{
    struct ends ends = {0};
    struct connection *conn = open_to(&ends);
    struct error err;

    for (unsigned channels = 0; channels <= 2 * CHANNELS; channels++) {
        uint8_t buf[8 + 16 * 2 * CHANNELS] = {channels == CHANNELS};
        struct wire_reader reader = {.p = buf, .left = 8 + 16 * channels};
        if (channels == CHANNELS)
            CHECK_OK(connection_note_progress(conn, &reader, &err));
        else
            CHECK_FAILS(connection_note_progress(conn, &reader, &err), CAUSE_PROTOCOL);
        cr_expect(eq(u64, conn->progress.work, channels >= CHANNELS));
    }
    close_connection(conn, &ends);
    connection_free(conn);
    end();
}

/* The peer takes nothing more: whoever sends tells the owner, once for each channel. */
Test(connection, tells_that_a_channel_is_broken)
{
    struct ends ends = {0};
    struct connection *conn = open_to(&ends);

    transport_close(ends.data[1]);
    ends.data[1] = NULL;
    pthread_mutex_lock(&failure.lock);
    while (failure.count == 0) {
        pthread_mutex_unlock(&failure.lock);
        pthread_mutex_lock(&conn->channels[1].lock);
        bool open = conn->channels[1].closed == CHANNEL_OPEN;
        pthread_mutex_unlock(&conn->channels[1].lock);
        if (open)
            send_packet(conn, 1, 'x');
        pthread_mutex_lock(&failure.lock);
    }
    cr_expect(eq(uint, failure.count, 1));
    cr_expect(eq(int, (int)failure.reason.cause, CAUSE_RESET), "%s", failure.reason.message);
    cr_expect(failure.delay_ms > 0);
    pthread_mutex_unlock(&failure.lock);
    /* The other channel does not know of it. */
    send_packet(conn, 0, 'y');
    expect_packet(&ends, 0, 1, 'y');
    close_connection(conn, &ends);
    connection_free(conn);
    end();
}

static void wait_at_the_gate(void *arg)
{
    struct connection *conn = arg;

    cr_expect(eq(int, gate_enter(&conn->gate, 1, NULL), -ECANCELED));
}

Test(connection, break_lets_nobody_wait)
{
    struct ends ends = {0};
    struct connection *conn = open_to(&ends);
    struct worker worker;

    cr_assert(zero(int, gate_enter(&conn->gate, config.write_behind, NULL)));
    worker_start(&worker, wait_at_the_gate, conn);
    worker_await_sleep(&worker);
    connection_break(conn);
    worker_join(&worker);
    cr_expect(eq(int, (int)conn->channels[0].closed, CHANNEL_DEAD));
    gate_leave(&conn->gate, config.write_behind);
    close_connection(conn, &ends);
    connection_free(conn);
    end();
}

/* Only what is due and does not move has stalled, and which one it is is said. */
Test(connection, looks_for_what_stands_still)
{
    struct ends ends = {0};
    struct error reason = {0};
    bool stalled = false;

    config.timeout_ms = 100;
    struct connection *conn = open_to(&ends);
    connection_watch(conn);
    int64_t until = clock_ms() + 600;
    while (clock_ms() < until) {
        cr_assert(not(connection_look(conn, false, &reason)));
        usleep(10000);
    }
    while (!stalled) {
        usleep(10000);
        stalled = connection_look(conn, true, &reason);
    }
    cr_expect(eq(int, (int)reason.cause, CAUSE_TIMEOUT));
    cr_expect(not(zero(ptr, strstr(reason.message, "has not answered for 100 ms"))), "%s", reason.message);

    connection_watch(conn);
    send_packet(conn, 1, 'x');
    reason = (struct error){0};
    for (stalled = false; !stalled; stalled = connection_look(conn, false, &reason))
        usleep(10000);
    cr_expect(not(zero(ptr, strstr(reason.message, "channel 1 has stalled"))), "%s", reason.message);
    close_connection(conn, &ends);
    connection_free(conn);
    end();
}

/* The peer's ends of an attempt that it refuses, or that the source gives up. */
struct refusal {
    unsigned welcome; /* how many hellos are answered well */
    struct transport *t[CHANNELS + 1];
    unsigned count;
    bool silent; /* the last one is not answered */
};

static void refuse(void *arg)
{
    struct refusal *refusal = arg;
    struct hello hello;

    while (refusal->count < refusal->welcome)
        refusal->t[refusal->count++] = fake_answer(&fake, &hello);
    if (refusal->silent)
        return;
    fake.reply.cause = CAUSE_REFUSED;
    strcpy(fake.reply.text, "not today");
    refusal->t[refusal->count++] = fake_answer(&fake, &hello);
    fake.reply.cause = CAUSE_NONE;
}

static void end_refusal(struct refusal *refusal)
{
    for (unsigned i = 0; i < refusal->count; i++)
        transport_close(refusal->t[i]);
}

Test(connection, refused)
{
    struct refusal refusal = {0};
    struct connection *conn = NULL;
    struct worker worker;
    struct error err;

    worker_start(&worker, refuse, &refusal);
    CHECK_FAILS(connection_open(&config, &conn, &err), CAUSE_REFUSED);
    worker_join(&worker);
    cr_expect(zero(ptr, conn));
    cr_expect(not(zero(ptr, strstr(err.message, "not today"))), "%s", err.message);
    end_refusal(&refusal);
    end();
}

/* When the main channel is there, the peer hears why it is given up. */
Test(connection, refused_channel_ends_with_a_goodbye)
{
    static uint8_t body[WIRE_BODY_MAX];
    struct refusal refusal = {.welcome = 2};
    struct connection *conn = NULL;
    struct message message;
    struct worker worker;
    struct error err;

    worker_start(&worker, refuse, &refusal);
    CHECK_FAILS(connection_open(&config, &conn, &err), CAUSE_REFUSED);
    worker_join(&worker);
    cr_assert(zero(int, peer_receive(refusal.t[0], &message, body)));
    cr_expect(eq(int, (int)message.type, WIRE_ABORT));
    cr_expect(lt(int, peer_receive(refusal.t[0], &message, body), 0));
    end_refusal(&refusal);
    end();
}

struct opening {
    struct error err;
    int ret;
};

static void open_in_vain(void *arg)
{
    struct opening *opening = arg;
    struct connection *conn = NULL;

    opening->ret = connection_open(&config, &conn, &opening->err);
}

Test(connection, opening_is_cancelled)
{
    struct refusal refusal = {.welcome = 2, .silent = true};
    struct opening opening = {0};
    struct worker peer, source;

    config.cancel_fd = eventfd(0, EFD_CLOEXEC);
    worker_start(&peer, refuse, &refusal);
    worker_start(&source, open_in_vain, &opening);
    worker_join(&peer);
    worker_await_sleep(&source);
    eventfd_write(config.cancel_fd, 1);
    worker_join(&source);
    cr_expect(lt(int, opening.ret, 0));
    cr_expect(eq(int, (int)opening.err.cause, CAUSE_INTERRUPTED), "%s", opening.err.message);
    close(config.cancel_fd);
    end_refusal(&refusal);
    end();
}

Test(connection, opening_takes_too_long)
{
    struct refusal refusal = {.silent = true};
    struct opening opening = {0};

    config.timeout_ms = 50;
    open_in_vain(&opening);
    cr_expect(eq(int, (int)opening.err.cause, CAUSE_TIMEOUT), "%s", opening.err.message);
    end_refusal(&refusal);
    end();
}

struct question {
    struct hello hello;
};

static void answer_question(void *arg)
{
    struct question *question = arg;

    transport_close(fake_answer(&fake, &question->hello));
}

/* The question is about the session that was lost, and can be asked as often as one likes. */
Test(connection, asks_what_became_of_it)
{
    struct ends ends = {0};
    struct connection *conn = open_to(&ends);
    struct transport_wait wait = {.cancel_fd = -1, .deadline_ms = clock_ms() + 60000};
    struct hello made = ends.hello;
    struct error err;

    close_connection(conn, &ends);
    for (enum wire_outcome want = WIRE_OUTCOME_UNKNOWN; want <= WIRE_OUTCOME_FAILED; want++) {
        enum wire_outcome outcome = WIRE_OUTCOME_UNKNOWN;
        struct question question = {0};
        struct worker worker;
        fake.reply.outcome = want;
        worker_start(&worker, answer_question, &question);
        CHECK_OK(connection_ask(conn, &wait, &outcome, &err));
        worker_join(&worker);
        cr_expect(eq(int, (int)outcome, (int)want));
        cr_expect(eq(int, (int)question.hello.kind, WIRE_HELLO_QUERY));
        cr_expect(zero(int, memcmp(question.hello.session, made.session, sizeof(made.session))));
    }
    connection_free(conn);
    end();
}

/* The locks of channels, in one step or not at all. */
Test(connection, locks_channels)
{
    static const bool both[CHANNELS] = {true, true}, second[CHANNELS] = {false, true};
    struct ends ends = {0};
    struct connection *conn = open_to(&ends);

    for (unsigned round = 0; round < 2; round++) {
        cr_assert(connection_lock_channels(conn, both));
        cr_expect(eq(int, pthread_mutex_trylock(&conn->channels[0].lock), EBUSY));
        cr_expect(eq(int, pthread_mutex_trylock(&conn->channels[1].lock), EBUSY));
        connection_unlock_channels(conn, both);
        cr_assert(connection_lock_channels(conn, second));
        cr_assert(zero(int, pthread_mutex_trylock(&conn->channels[0].lock)));
        cr_expect(eq(int, pthread_mutex_trylock(&conn->channels[1].lock), EBUSY));
        pthread_mutex_unlock(&conn->channels[0].lock);
        connection_unlock_channels(conn, second);
    }
    /* One of them is closed: none is locked. */
    channel_close(&conn->channels[1], CHANNEL_SEALED);
    cr_assert(not(connection_lock_channels(conn, both)));
    cr_assert(not(connection_lock_channels(conn, second)));
    for (unsigned c = 0; c < CHANNELS; c++) {
        cr_assert(zero(int, pthread_mutex_trylock(&conn->channels[c].lock)));
        pthread_mutex_unlock(&conn->channels[c].lock);
    }
    /* One that is not asked for does not matter. */
    static const bool first[CHANNELS] = {true, false};
    cr_assert(connection_lock_channels(conn, first));
    connection_unlock_channels(conn, first);
    close_connection(conn, &ends);
    connection_free(conn);
    end();
}

Test(connection, counts)
{
    struct ends ends = {0};
    struct connection *conn = open_to(&ends);
    struct file *ram = file_new(WIRE_RAM, "ram"), *unknown = file_new(1, "dev");
    uint64_t counts[CHANNELS] = {9, 9}, packet = sizeof(struct wire_packet) + 1;

    cr_assert(zero(int, file_set_channels(ram, CHANNELS, 1)));
    atomic_store(&ram->per_channel[0].last_sequence, 4);
    connection_count(conn, ram, counts);
    cr_expect(eq(u64, counts[0], 4));
    cr_expect(zero(u64, counts[1]));
    connection_count(conn, unknown, counts);
    cr_expect(zero(u64, counts[0]));
    send_packet(conn, 0, 'a');
    send_packet(conn, 1, 'b');
    send_packet(conn, 1, 'c');
    connection_count(conn, NULL, counts);
    cr_expect(eq(u64, counts[0], 1));
    cr_expect(eq(u64, counts[1], 2));
    for (unsigned c = 0; c < CHANNELS; c++)
        cr_assert(zero(int, channel_flush(&conn->channels[c], counts[c], NULL)));
    cr_expect(eq(u64, connection_channel_bytes(conn, 0), packet));
    cr_expect(eq(u64, connection_channel_bytes(conn, 1), 2 * packet));
    cr_expect(eq(u64, connection_wire_bytes(conn), 3 * packet));
    cr_expect(eq(ptr, connection_home(conn, ram, 0), &conn->channels[0]));
    close_connection(conn, &ends);
    cr_expect(eq(u64, connection_wire_bytes(conn), 3 * packet));
    connection_free(conn);
    file_put(ram);
    file_put(unknown);
    end();
}

/* Nobody lingers over what somebody is going to wait for. */
Test(connection, counting_hurries)
{
    struct ends ends = {0};
    struct connection *conn = open_to(&ends);
    uint64_t counts[CHANNELS];

    add_packet(conn, 1, 'x');
    cr_expect(not(conn->channels[1].hurry));
    connection_count(conn, NULL, counts);
    cr_expect(conn->channels[1].hurry);
    cr_expect(not(conn->channels[0].hurry));
    channel_send_copied(&conn->channels[1]);
    expect_packet(&ends, 1, 1, 'x');
    close_connection(conn, &ends);
    connection_free(conn);
    end();
}

Test(connection, sizes_that_the_peer_allows)
{
    struct ends ends = {0};
    struct file *ram = file_new(WIRE_RAM, "ram"), *device = file_new(1, "dev");
    struct error err;

    fake.reply.max_ram = 1000;
    fake.reply.max_device = 10;
    struct connection *conn = open_to(&ends);
    CHECK_OK(connection_check_size(conn, ram, 1000, &err));
    CHECK_FAILS(connection_check_size(conn, ram, 1001, &err), CAUSE_QUOTA);
    cr_expect(not(zero(ptr, strstr(err.message, "1001 bytes; the destination allows 1000"))), "%s",
              err.message);
    CHECK_OK(connection_check_size(conn, device, 10, &err));
    CHECK_FAILS(connection_check_size(conn, device, 11, &err), CAUSE_QUOTA);
    close_connection(conn, &ends);
    connection_free(conn);
    file_put(ram);
    file_put(device);
    end();
}

/* What a channel says becomes a reason, and whether the main channel may know a better one. */
Test(connection, reasons)
{
    static const struct {
        enum zerocopy_mode mode;
        int code;
        enum cause cause;
        const char *text;
        bool waits;
    } cases[] = {
        {ZEROCOPY_REQUIRE, -EOPNOTSUPP, CAUSE_UNSUPPORTED, "the kernel copies what channel 1 sends", false},
        {ZEROCOPY_REQUIRE, -ENOBUFS, CAUSE_NO_MEMORY, "channel 1 cannot lock memory", false},
        {ZEROCOPY_REQUIRE, -ECONNRESET, CAUSE_RESET, "sending on channel 1", true},
        {ZEROCOPY_AUTO, -EOPNOTSUPP, CAUSE_UNSUPPORTED, "sending on channel 1", true},
        {ZEROCOPY_AUTO, -ENOBUFS, CAUSE_NONE, "sending on channel 1", true},
        {ZEROCOPY_AUTO, -EFAULT, CAUSE_IO, "the RAM source cannot be read", true},
    };
    struct ends ends = {0};
    struct connection *conn = open_to(&ends);
    struct channel *ch = &conn->channels[1];

    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        conn->zero_copy = cases[i].mode;
        ch->failed(ch->failed_arg, ch->index, cases[i].code);
        cr_expect(eq(uint, failure.count, i + 1));
        cr_expect(not(zero(ptr, strstr(failure.reason.message, cases[i].text))), "%zu: %s", i,
                  failure.reason.message);
        if (cases[i].cause != CAUSE_NONE)
            cr_expect(eq(int, (int)failure.reason.cause, (int)cases[i].cause), "%zu: %s", i,
                      failure.reason.message);
        cr_expect(eq(int, failure.delay_ms > 0, cases[i].waits), "%zu", i);
    }
    close_connection(conn, &ends);
    connection_free(conn);
    end();
}

/* Nothing is left open: of a connection that was hung up, of an attempt that was refused, of a question. */
Test(connection, leaves_nothing_open)
{
    struct ends ends = {0};
    struct refusal refusal = {.welcome = 2};
    struct transport_wait wait = {.cancel_fd = -1, .deadline_ms = clock_ms() + 60000};
    struct question question = {0};
    struct connection *conn = open_to(&ends), *none = NULL;
    enum wire_outcome outcome;
    struct worker worker;
    struct error err;

    close_connection(conn, &ends);
    connection_free(conn);
    unsigned fds = rig_count_fds();
    conn = open_to(&ends);
    close_connection(conn, &ends);
    cr_expect(eq(uint, rig_count_fds(), fds)); /* before it is freed */
    worker_start(&worker, answer_question, &question);
    CHECK_OK(connection_ask(conn, &wait, &outcome, &err));
    worker_join(&worker);
    cr_expect(eq(uint, rig_count_fds(), fds));
    worker_start(&worker, refuse, &refusal);
    CHECK_FAILS(connection_open(&config, &none, &err), CAUSE_REFUSED);
    worker_join(&worker);
    end_refusal(&refusal);
    cr_expect(eq(uint, rig_count_fds(), fds));
    connection_free(conn);
    /* One that nobody has hung up. */
    conn = open_to(&ends);
    connection_free(conn);
    hang_up(&ends);
    cr_expect(eq(uint, rig_count_fds(), fds));
    end();
}

/* Two ways to the same peer. */
static struct fake other;

static void welcome_both(void *arg)
{
    struct ends *ends = arg;
    struct hello hello;

    ends->main = fake_answer(&fake, &ends->hello);
    cr_assert(eq(int, (int)ends->hello.kind, WIRE_HELLO_MAIN));
    for (unsigned c = 0; c < CHANNELS; c++) {
        ends->data[c] = fake_answer(c % 2 ? &other : &fake, &hello);
        cr_assert(eq(uint, hello.channel, c));
        cr_assert(zero(int, memcmp(hello.session, ends->hello.session, sizeof(hello.session))));
    }
}

Test(connection, channels_are_dealt_to_the_uris)
{
    struct ends ends = {0};
    struct connection *conn = NULL;
    struct worker worker;
    struct error err;
    char text[URI_LIST_MAX], where[300];

    snprintf(where, sizeof(where), "unix:%s/other", scratch);
    fake_listen(&other, where);
    snprintf(text, sizeof(text), "unix:%s/socket %s", scratch, where);
    CHECK_OK(uri_list_parse(text, &uris, &err));
    worker_start(&worker, welcome_both, &ends);
    CHECK_OK(connection_open(&config, &conn, &err));
    worker_join(&worker);
    cr_expect(eq(str, conn->fallen_back, ""));
    cr_expect(zero(int, strncmp(conn->channels[1].peer, "unix", 4)), "%s", conn->channels[1].peer);
    send_packet(conn, 1, 'o');
    expect_packet(&ends, 1, 1, 'o');
    close_connection(conn, &ends);
    connection_free(conn);
    end();
    fake_close(&other);
}

/* What nobody answers by RDMA. */
static void listen_by_tcp(void)
{
    struct error err;
    char text[URI_MAX];

    fake_close(&fake);
    fake_listen(&fake, "tcp:127.0.0.1:0");
    snprintf(text, sizeof(text), "rdma%s", strchr(transport_listener_address(fake.listener), ':'));
    CHECK_OK(uri_list_parse(text, &uris, &err));
}

Test(connection, falls_back)
{
    struct ends ends = {0};

    listen_by_tcp();
    config.fallback = true;
    struct connection *conn = open_to(&ends);
    cr_expect(ne(str, conn->fallen_back, ""));
    cr_expect(not(conn->places));
    cr_expect(zero(int, strncmp(conn->channels[0].peer, "tcp:", 4)), "%s", conn->channels[0].peer);
    send_packet(conn, 0, 'f');
    expect_packet(&ends, 0, 1, 'f');
    close_connection(conn, &ends);
    connection_free(conn);
    end();
}

Test(connection, falls_back_only_when_it_is_told)
{
    struct connection *conn = NULL;
    struct error err = {0};

    listen_by_tcp();
    if (!transport_has_rdma)
        cr_skip("this migfs is built without RDMA");
    cr_expect(lt(int, connection_open(&config, &conn, &err), 0));
    cr_expect(conn == NULL);
    cr_expect(error_is_set(&err));
    end();
}

Test(connection, nothing_to_fall_back_to)
{
    struct connection *conn = NULL;
    struct error err = {0};

    listen_by_tcp();
    end();
    config.fallback = true;
    CHECK_FAILS(connection_open(&config, &conn, &err), CAUSE_REFUSED);
    cr_expect(strstr(err.message, "refused") != NULL, "%s", err.message);
}

static bool splices(enum connection_splice splice)
{
    struct ends ends;

    config.splice = splice;
    struct connection *conn = open_to(&ends);
    bool ret = conn->splices;
    connection_free(conn);
    hang_up(&ends);
    return ret;
}

/* Where nobody has said it, what the channels say decides. */
Test(connection, splice)
{
    struct error err;

    cr_expect(not(splices(CONNECTION_SPLICE_NEVER)));
    cr_expect(splices(CONNECTION_SPLICE_AUTO), "it pays on a socket of this machine");
    end();
    fake_listen(&fake, "tcp:127.0.0.1:0");
    CHECK_OK(uri_list_parse(transport_listener_address(fake.listener), &uris, &err));
    cr_expect(not(splices(CONNECTION_SPLICE_AUTO)), "and not by TCP");
    cr_expect(splices(CONNECTION_SPLICE_ALWAYS));
    end();
}

/*
 * Connections that are made again when they are lost
 */

/* A hello comes, and the connection goes before it is answered. */
static struct hello hear_and_hang_up(void)
{
    struct transport *t = NULL;
    struct wire_hello wire;
    struct hello hello;
    struct error err;

    while (transport_accept(fake.listener, &t) == -EAGAIN) {
        struct pollfd fd = {.fd = transport_listener_pollfd(fake.listener), .events = POLLIN};
        poll(&fd, 1, -1);
    }
    cr_assert(zero(int, transport_recv_all(t, &wire, sizeof(wire), NULL)));
    CHECK_OK(wire_hello_decode(&wire, &hello, &err));
    transport_close(t);
    return hello;
}

static void resume_for(uint32_t ms)
{
    config.resume_ms = ms;
    config.features |= WIRE_FEATURE_RESUME;
}

static bool is_same_session(const struct hello *a, const struct hello *b)
{
    return !memcmp(a->session, b->session, sizeof(a->session));
}

struct made {
    struct worker worker;
    struct connection *conn;
    struct error err;
    int ret;
};

static void make(void *arg)
{
    struct made *made = arg;

    made->ret = connection_open(&config, &made->conn, &made->err);
}

/* The destination may have heard of the main one, and knows only one of that session: so it has another one. */
Test(connection, lost_before_it_is_answered)
{
    struct made made = {0};
    struct ends ends = {0};
    struct hello lost[2], hello;

    resume_for(60000);
    worker_start(&made.worker, make, &made);
    for (int i = 0; i < 2; i++)
        lost[i] = hear_and_hang_up();
    cr_expect(not(is_same_session(&lost[0], &lost[1])));
    ends.main = fake_answer(&fake, &ends.hello);
    cr_expect(eq(int, (int)ends.hello.kind, WIRE_HELLO_MAIN));
    cr_expect(not(is_same_session(&ends.hello, &lost[1])));
    cr_expect(eq(u32, ends.hello.resume_ms, 60000));
    for (unsigned c = 0; c < CHANNELS; c++) {
        for (int i = 0; i < 2; i++) {
            lost[i] = hear_and_hang_up();
            cr_expect(is_same_session(&ends.hello, &lost[i]));
            cr_expect(eq(int, (int)lost[i].kind, WIRE_HELLO_DATA));
            cr_expect(eq(uint, lost[i].channel, c));
        }
        ends.data[c] = fake_answer(&fake, &hello);
        cr_expect(eq(int, (int)hello.kind, WIRE_HELLO_DATA));
    }
    worker_join(&made.worker);
    cr_assert(zero(int, made.ret), "%s", made.err.message);
    cr_expect(zero(int, memcmp(made.conn->group.id, ends.hello.session, sizeof(made.conn->group.id))));
    cr_expect(zero(int, memcmp(made.conn->hello.session, ends.hello.session, 16)));
    close_connection(made.conn, &ends);
    connection_free(made.conn);
    end();
}

/* Without that it is not made again, nor is one that was refused or whose time is over. */
Test(connection, lost_before_it_is_answered_for_good)
{
    struct transport *t = NULL;

    for (int i = 0; i < 3; i++) {
        struct made made = {0};
        unsigned attempts = 0;
        resume_for(i == 0 ? 0 : i == 1 ? 60000 : 1);
        worker_start(&made.worker, make, &made);
        if (i == 1) {
            struct refusal refusal = {0};
            refuse(&refusal);
            end_refusal(&refusal);
        }
        while (i != 1 && !atomic_load(&made.worker.done)) {
            if (transport_accept(fake.listener, &t) == 0) {
                transport_close(t);
                attempts++;
            }
            sched_yield();
        }
        worker_join(&made.worker);
        if (i == 0)
            cr_expect(eq(uint, attempts, 1));
        cr_expect(lt(int, made.ret, 0));
        cr_expect(eq(int, (int)made.err.cause, i == 1 ? CAUSE_REFUSED : CAUSE_RESET), "%s",
                  made.err.message);
        cr_expect(eq(int, transport_accept(fake.listener, &t), -EAGAIN), "nobody has come once more");
    }
    end();
}

Test(connection, cancelled_while_it_is_made_again)
{
    struct made made = {0};

    config.cancel_fd = eventfd(0, EFD_CLOEXEC);
    resume_for(60000);
    worker_start(&made.worker, make, &made);
    hear_and_hang_up();
    eventfd_write(config.cancel_fd, 1);
    worker_join(&made.worker);
    cr_expect(eq(int, (int)made.err.cause, CAUSE_INTERRUPTED), "%s", made.err.message);
    struct transport *t;
    while (transport_accept(fake.listener, &t) == 0)
        transport_close(t);
    close(config.cancel_fd);
    end();
}

/* What has to be sent again is kept: so much of each channel, by copies. */
Test(connection, keeps)
{
    static const struct {
        uint32_t resume_ms;
        uint64_t write_behind, max;
    } cases[] = {{0, 1u << 20, 0}, {1000, 1u << 20, 2u << 20}, {1000, 64u << 20, 32u << 20}};

    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        struct ends ends = {0};
        bool keeps = cases[i].resume_ms;
        config.splice = CONNECTION_SPLICE_ALWAYS;
        config.write_behind = cases[i].write_behind;
        config.features = 0;
        config.resume_ms = cases[i].resume_ms;
        if (keeps)
            resume_for(cases[i].resume_ms);
        struct connection *conn = open_to(&ends);
        cr_expect(eq(int, connection_resumes(conn), keeps));
        cr_expect(eq(int, conn->splices, !keeps));
        cr_expect(eq(int, conn->main.keeps, keeps));
        for (unsigned c = 0; c < CHANNELS; c++) {
            cr_expect(eq(int, conn->channels[c].keeps, keeps));
            cr_expect(eq(u64, conn->channels[c].kept.max, cases[i].max));
        }
        close_connection(conn, &ends);
        connection_free(conn);
    }
    end();
}

/* All channels are made again once, and once more when something has been applied since. */
Test(connection, shakes)
{
    struct ends ends = {0};
    struct error reason = {0};
    struct connection *conn = open_to(&ends);

    cr_expect(not(connection_shake(conn)), "its connections are not made again");
    close_connection(conn, &ends);
    connection_free(conn);
    resume_for(1000);
    conn = open_to(&ends);
    conn->watch = (struct stall_watch){.limit_ms = 1, .step_ms = 1000, .last_ms = 1};
    cr_expect(connection_look(conn, true, &reason));
    cr_expect(connection_shake(conn));
    cr_expect(zero(i64, conn->watch.last_ms), "they have their time");
    for (unsigned c = 0; c < CHANNELS; c++) {
        cr_expect(conn->channels[c].down);
        conn->channels[c].down = false;
    }
    cr_expect(not(connection_shake(conn)));
    cr_expect(not(conn->channels[0].down));
    conn->progress.channel[1].applied++;
    cr_expect(connection_shake(conn));
    cr_expect(conn->channels[0].down);
    cr_expect(not(connection_shake(conn)));
    close_connection(conn, &ends);
    connection_free(conn);
    end();
}
