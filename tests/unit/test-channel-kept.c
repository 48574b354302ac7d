/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A channel that outlives its connections. Each connection takes so many bytes and is cut then; what all of
 * them have taken is the stream that the destination has received, which has to be one without a cut.
 */
#include "channel.h"
#include "blocked.h"
#include "check.h"
#include "dummy.h"
#include "guard.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define HEADER   ((uint32_t)sizeof(struct wire_packet))
#define COPY_MAX 100u /* a packet of more is its owner's */
#define LARGE    (COPY_MAX + 77)

/* What the destination has received, over all connections. */
static uint8_t stream[1u << 20];
static size_t received;

struct line {
    struct transport base;
    pthread_mutex_t lock; /* guards the rest */
    pthread_cond_t changed;
    size_t room; /* bytes that it still takes */
    int broken;  /* what a send returns when there is no room; 0: it waits */
    bool stuck;  /* a send does not notice that it is shut down */
    bool shut;
    unsigned sends, closes;
    uint8_t told[64]; /* what the destination says */
    size_t told_have;
};

static int line_send(struct transport *t, const struct iovec *iov, int n)
{
    struct line *line = (struct line *)t;
    int ret = 0;

    pthread_mutex_lock(&line->lock);
    line->sends++;
    for (int i = 0; i < n && ret == 0; i++) {
        for (size_t at = 0; at < iov[i].iov_len && ret == 0;) {
            while (!line->room && !line->broken && (!line->shut || line->stuck))
                pthread_cond_wait(&line->changed, &line->lock);
            if (line->shut && !line->stuck)
                ret = -EPIPE;
            else if (!line->room)
                ret = line->broken;
            size_t more = iov[i].iov_len - at < line->room ? iov[i].iov_len - at : line->room;
            if (ret < 0)
                break;
            cr_assert(le(sz, received + more, sizeof(stream)));
            memcpy(stream + received, (char *)iov[i].iov_base + at, more);
            received += more;
            line->room -= more;
            at += more;
        }
    }
    pthread_mutex_unlock(&line->lock);
    return ret;
}

static ssize_t line_recv(struct transport *t, void *buf, size_t len, int flags)
{
    struct line *line = (struct line *)t;

    cr_assert(zero(int, flags), "the listener waits");
    pthread_mutex_lock(&line->lock);
    while (!line->told_have && !line->shut)
        pthread_cond_wait(&line->changed, &line->lock);
    size_t n = line->told_have < len ? line->told_have : len;
    memcpy(buf, line->told, n);
    memmove(line->told, line->told + n, line->told_have - n);
    line->told_have -= n;
    pthread_mutex_unlock(&line->lock);
    return (ssize_t)n;
}

static void line_shutdown(struct transport *t)
{
    struct line *line = (struct line *)t;

    pthread_mutex_lock(&line->lock);
    line->shut = true;
    pthread_cond_broadcast(&line->changed);
    pthread_mutex_unlock(&line->lock);
}

static void line_close(struct transport *t)
{
    ((struct line *)t)->closes++;
}

static const struct transport_ops line_ops = {.name = "line",
                                              .send = line_send,
                                              .recv = line_recv,
                                              .figures = dummy_figures,
                                              .shutdown = line_shutdown,
                                              .close = line_close};

static void line_init(struct line *line, size_t room, int broken)
{
    *line = (struct line){
        .base = {.ops = &line_ops, .traits.copy_max = COPY_MAX}, .room = room, .broken = broken};
    pthread_mutex_init(&line->lock, NULL);
    pthread_cond_init(&line->changed, NULL);
}

static void line_fini(struct line *line)
{
    pthread_mutex_destroy(&line->lock);
    pthread_cond_destroy(&line->changed);
}

static void line_tell(struct line *line, const void *bytes, size_t len)
{
    pthread_mutex_lock(&line->lock);
    memcpy(line->told + line->told_have, bytes, len);
    line->told_have += len;
    pthread_cond_broadcast(&line->changed);
    pthread_mutex_unlock(&line->lock);
}

/* It takes so many more, and has not been shut down. */
static void line_let(struct line *line, size_t room)
{
    pthread_mutex_lock(&line->lock);
    line->room += room;
    line->stuck = line->shut = false;
    pthread_cond_broadcast(&line->changed);
    pthread_mutex_unlock(&line->lock);
}

static struct line first, second;
static struct gate gate;
static struct channel ch;
static atomic_int failed_code;
static atomic_uint failures;

static void note_failure(void *arg, unsigned index, int code)
{
    (void)arg;
    cr_expect(eq(uint, index, 3));
    atomic_store(&failed_code, code);
    atomic_fetch_add(&failures, 1);
}

/* The channel's first connection takes so many bytes. */
static void open_with(size_t room, int broken, uint64_t max)
{
    guard_setup();
    received = 0;
    line_init(&first, room, broken);
    line_init(&second, SIZE_MAX, 0);
    gate_init(&gate, 1u << 20);
    channel_init(&ch, 3, &first.base, &gate, note_failure, NULL);
    channel_keep(&ch, max);
}

static void end(void)
{
    channel_close(&ch, CHANNEL_DEAD);
    if (ch.transport)
        channel_disconnect(&ch);
    cr_expect(zero(u64, gate.used), "the gate got everything back");
    channel_fini(&ch);
    gate_fini(&gate);
    line_fini(&first);
    line_fini(&second);
}

static struct packet packet_of(const void *payload, uint32_t length)
{
    return (struct packet){
        .type = WIRE_DATA,
        .file = 1,
        .length = length,
        .raw_length = length,
        .payload_check = length ? wire_payload_check(payload, length) : 0,
    };
}

static char payloads[64][LARGE];

/* Accepts packets whose payload is marked with their number: one that is copied, or another kind. */
enum kind { SMALL, OWNED, PARTS, STAYING };

static void accept(enum kind kind, struct channel_entry *entry)
{
    char *payload = payloads[ch.last_sequence];
    uint32_t length = kind == SMALL ? 40 : LARGE;

    memset(payload, 'a' + (int)ch.last_sequence, LARGE);
    payload[LARGE / 2] = 1;
    struct packet packet = packet_of(payload, length);
    cr_assert(zero(int, gate_enter(&gate, length, NULL)));
    pthread_mutex_lock(&ch.lock);
    switch (kind) {
    case SMALL:
        cr_assert(zero(int, channel_reserve(&ch, 1, length)));
        channel_add_copied(&ch, &packet, payload, length);
        break;
    case OWNED:
        channel_add(&ch, &packet, payload, length, entry);
        break;
    case PARTS: {
        static struct iovec parts[2];
        parts[0] = (struct iovec){payload, 9};
        parts[1] = (struct iovec){payload + 9, length - 9};
        channel_add_parts(&ch, &packet, parts, 2, length, entry);
        break;
    }
    case STAYING:
        channel_add_staying(&ch, &packet, payload, length, entry);
        break;
    }
    pthread_mutex_unlock(&ch.lock);
}

/* Five packets, of all kinds, which are sent as far as they can be. */
static void send_five(void)
{
    struct channel_entry entries[3];

    accept(SMALL, NULL);
    accept(SMALL, NULL);
    accept(OWNED, &entries[0]);
    accept(PARTS, &entries[1]);
    accept(STAYING, &entries[2]);
    for (unsigned i = 0; i < 3; i++) {
        channel_finish_entry(&ch, &entries[i]);
        /* From here on the buffer is its owner's again, unless it stays. */
        if (i < 2)
            memset(payloads[2 + i], 0xdd, LARGE);
    }
}

#define FIVE (2 * (HEADER + 40) + 3 * (HEADER + LARGE))

/* The stream is whole packets, each of them once, whose payloads are those that were accepted. */
static void expect_packets(uint64_t count)
{
    size_t at = 0;

    for (uint64_t i = 0; i < count; i++) {
        struct wire_packet wire;
        struct packet packet;
        struct error err;
        cr_assert(le(sz, at + HEADER, received), "packet %llu is not there", (unsigned long long)i + 1);
        memcpy(&wire, stream + at, HEADER);
        CHECK_OK(wire_packet_decode(&wire, &packet, &err));
        cr_assert(eq(u64, packet.sequence, i + 1));
        at += HEADER;
        cr_assert(le(sz, at + packet.length, received));
        cr_expect(eq(u64, wire_payload_check(stream + at, packet.length), packet.payload_check),
                  "packet %llu", (unsigned long long)i + 1);
        at += packet.length;
    }
    cr_expect(eq(sz, at, received), "and nothing more");
}

static int tell(struct line *line, uint64_t count)
{
    count = htole64(count);
    line_tell(line, &count, sizeof(count));
    return channel_hear(&ch);
}

Test(channel_kept, until_it_is_applied)
{
    open_with(SIZE_MAX, 0, 1 << 20);
    send_five();
    expect_packets(5);
    cr_expect(eq(u64, gate.used, 80 + 3 * LARGE), "what is kept is memory");
    cr_expect(eq(u64, ch.kept.bytes, FIVE));
    cr_expect(eq(u64, ch.wire_bytes, FIVE));
    cr_expect(zero(int, channel_flush(&ch, 5, NULL)), "it is sent all the same");
    cr_expect(zero(int, tell(&first, 0)));
    cr_expect(zero(int, tell(&first, 1)));
    cr_expect(eq(u64, gate.used, 80 + 3 * LARGE), "a slice goes as a whole");
    cr_expect(zero(int, tell(&first, 2)));
    cr_expect(eq(u64, gate.used, 3 * LARGE));
    cr_expect(zero(int, tell(&first, 2)));
    cr_expect(zero(int, tell(&first, 4)));
    cr_expect(eq(u64, gate.used, LARGE));
    cr_expect(zero(int, tell(&first, 5)));
    cr_expect(zero(u64, gate.used));
    cr_expect(zero(u64, ch.kept.bytes));
    cr_expect(zero(uint, failures));
    end();
}

/* What was told before it was kept. */
Test(channel_kept, applied_while_it_is_sent)
{
    struct channel_entry entry;

    open_with(SIZE_MAX, 0, 1 << 20);
    accept(OWNED, &entry);
    cr_expect(zero(int, tell(&first, 1)));
    channel_finish_entry(&ch, &entry);
    cr_expect(zero(u64, gate.used));
    cr_expect(zero(u64, ch.kept.bytes));
    end();
}

/* After each byte in turn; what is accepted meanwhile comes after what is sent again. */
Test(channel_kept, cut_after_any_byte)
{
    for (size_t room = 0; room < FIVE; room++) {
        open_with(room, -ECONNRESET, 1 << 20);
        send_five();
        cr_assert(eq(sz, received, room));
        cr_expect(ch.down);
        cr_expect(first.shut);
        cr_expect(zero(uint, failures));
        cr_expect(eq(u64, ch.sent_sequence, 5));
        cr_expect(eq(u64, ch.wire_bytes, FIVE), "what counts as sent is counted");
        accept(SMALL, NULL);
        channel_send_copied(&ch);
        cr_assert(eq(sz, received, room), "nothing more is sent");
        cr_expect(zero(int, channel_renew(&ch, &second.base, received)));
        cr_expect(not(ch.down));
        cr_expect(eq(uint, first.closes, 1));
        expect_packets(6);
        cr_expect(eq(u64, ch.wire_bytes, FIVE + HEADER + 40), "each byte is counted once");
        cr_expect(eq(u64, ch.zerocopy.counters.copied_bytes, ch.wire_bytes));
        cr_expect(zero(int, tell(&second, 6)));
        cr_expect(zero(u64, gate.used));
        end();
    }
}

/* Each connection takes so few bytes that a packet needs several of them. */
Test(channel_kept, cut_again_and_again)
{
    for (size_t step = 7; step < 200; step += 3) {
        struct line lines[2];
        unsigned n = 0;
        open_with(step, -ETIMEDOUT, 1 << 20);
        send_five();
        while (received < FIVE) {
            struct line *line = &lines[n++ % 2];
            if (n > 2)
                line_fini(line);
            line_init(line, step, -EPIPE);
            size_t before = received;
            cr_expect(zero(int, channel_renew(&ch, &line->base, received)));
            cr_assert(received == FIVE || received == before + step, "it goes on");
            cr_expect(eq(u64, ch.wire_bytes, FIVE));
        }
        expect_packets(5);
        cr_expect(eq(uint, n, (FIVE - 1) / step));
        cr_expect(zero(uint, failures));
        end();
        line_fini(&lines[0]);
        line_fini(&lines[1]);
    }
}

/* What has been sent once has its place, and a buffer that is free, however often it is sent. */
Test(channel_kept, sent_again_is_sent)
{
    enum { COUNT = 5 }; /* more than one batch */
    static char payload[CHANNEL_BATCH / 2];
    struct channel_entry entries[COUNT];

    open_with(SIZE_MAX, 0, 1 << 20);
    for (unsigned i = 0; i < COUNT; i++) {
        struct packet packet = packet_of(payload, sizeof(payload));
        pthread_mutex_lock(&ch.lock);
        channel_add_staying(&ch, &packet, payload, 0, &entries[i]);
        pthread_mutex_unlock(&ch.lock);
        channel_finish_entry(&ch, &entries[i]);
    }
    channel_lose(&ch);
    received = 0;
    line_fini(&second);
    line_init(&second, HEADER, -ECONNRESET);
    cr_expect(zero(int, channel_renew(&ch, &second.base, 0)));
    cr_expect(ch.down);
    cr_expect(eq(u64, ch.left_sequence, COUNT));
    cr_expect(zero(int, channel_flush(&ch, COUNT, NULL)));
    end();
}

/* Of a payload that stays where it is, the rest is sent as it is then. */
Test(channel_kept, what_stays_may_have_changed)
{
    struct channel_entry entry;

    open_with(HEADER + 50, -ECONNRESET, 1 << 20);
    accept(STAYING, &entry);
    channel_finish_entry(&ch, &entry);
    memset(payloads[0], 'z', LARGE);
    cr_expect(zero(int, channel_renew(&ch, &second.base, received)));
    cr_assert(eq(sz, received, HEADER + LARGE));
    cr_expect(eq(int, stream[HEADER + 49], 'a'));
    cr_expect(eq(int, stream[HEADER + 50], 'z'));
    cr_expect(eq(int, stream[HEADER + LARGE - 1], 'z'));
    end();
}

/*
 * The window
 */

static void finish(void *arg)
{
    channel_finish_entry(&ch, arg);
}

Test(channel_kept, window)
{
    open_with(SIZE_MAX, 0, 2 * (HEADER + 40));
    for (unsigned i = 0; i < 4; i++) {
        accept(SMALL, NULL);
        channel_send_copied(&ch);
    }
    cr_expect(eq(sz, received, 2 * (HEADER + 40)), "there is no room for a third");
    cr_expect(zero(int, tell(&first, 0)));
    cr_expect(eq(sz, received, 2 * (HEADER + 40)));
    cr_expect(zero(int, tell(&first, 1)));
    expect_packets(4); /* the last two wait as one slice */
    cr_expect(eq(u64, ch.kept.bytes, 3 * (HEADER + 40)));
    cr_expect(zero(int, tell(&first, 4)));
    cr_expect(zero(u64, gate.used));
    end();
}

/* Those who wait for room are the next to send: one for all of them. */
Test(channel_kept, window_with_owners)
{
    static struct worker workers[3];
    static struct channel_entry entries[3];

    open_with(SIZE_MAX, 0, HEADER + LARGE);
    for (unsigned i = 0; i < 3; i++) {
        accept(OWNED, &entries[i]);
        worker_start(&workers[i], finish, &entries[i]);
        worker_await_sleep(&workers[i]);
        cr_expect(eq(int, atomic_load(&workers[i].done), i == 0), "only the first one has room");
    }
    expect_packets(1);
    cr_expect(zero(int, tell(&first, 1)));
    for (unsigned i = 0; i < 3; i++)
        worker_join(&workers[i]);
    expect_packets(3);
    cr_expect(eq(u64, gate.used, 2 * LARGE));
    end();
}

/*
 * Losing it, and going on
 */

/* In the middle of a send: its owner has its buffer back, since there is a copy. */
Test(channel_kept, lost_while_it_is_sent)
{
    static struct worker worker;
    static struct channel_entry entry;

    open_with(HEADER + 10, 0, 1 << 20);
    accept(OWNED, &entry);
    worker_start(&worker, finish, &entry);
    worker_await_sleep(&worker);
    cr_assert(not(atomic_load(&worker.done)));
    channel_lose(&ch);
    worker_join(&worker);
    cr_expect(entry.done);
    memset(payloads[0], 0xdd, LARGE);
    cr_expect(eq(u64, gate.used, LARGE));
    cr_expect(zero(int, channel_flush(&ch, 1, NULL)), "its place in the order is given, and its buffer free");
    cr_expect(zero(int, channel_renew(&ch, &second.base, HEADER + 10)));
    expect_packets(1);
    cr_expect(zero(uint, failures));
    end();
}

/* With owners in the queue: they wait, and each gets its turn, after what is sent again. */
Test(channel_kept, lost_while_owners_wait)
{
    static struct worker workers[3];
    static struct channel_entry entries[3];

    open_with(10, 0, 1 << 20);
    for (unsigned i = 0; i < 3; i++) {
        accept(OWNED, &entries[i]);
        worker_start(&workers[i], finish, &entries[i]);
        worker_await_sleep(&workers[i]);
    }
    accept(SMALL, NULL);
    channel_lose(&ch);
    worker_join(&workers[0]);
    for (unsigned i = 1; i < 3; i++) {
        worker_await_sleep(&workers[i]);
        cr_expect(not(atomic_load(&workers[i].done)));
    }
    channel_lose(&ch); /* once more is nothing */
    cr_expect(zero(int, channel_renew(&ch, &second.base, 10)));
    for (unsigned i = 1; i < 3; i++)
        worker_join(&workers[i]);
    cr_expect(zero(int, channel_flush(&ch, 4, NULL)));
    expect_packets(4);
    end();
}

/* A flush waits as long as the connection is lost. */
struct flusher {
    struct worker worker;
    int ret;
};

static void flush(void *arg)
{
    ((struct flusher *)arg)->ret = channel_flush(&ch, UINT64_MAX, NULL);
}

Test(channel_kept, flush_waits)
{
    static struct flusher flusher;

    open_with(SIZE_MAX, 0, 1 << 20);
    channel_lose(&ch);
    accept(SMALL, NULL);
    channel_send_copied(&ch);
    worker_start(&flusher.worker, flush, &flusher);
    worker_await_sleep(&flusher.worker);
    cr_expect(not(atomic_load(&flusher.worker.done)));
    cr_expect(zero(int, channel_renew(&ch, &second.base, 0)));
    worker_join(&flusher.worker);
    cr_expect(zero(int, flusher.ret));
    expect_packets(1);
    end();
}

/* What a sender has in its hand is put down before another connection takes the place of its own. */
struct renewal {
    struct worker worker;
    uint64_t received;
    int ret;
};

static void renew(void *arg)
{
    struct renewal *renewal = arg;

    renewal->ret = channel_renew(&ch, &second.base, renewal->received);
}

Test(channel_kept, renew_waits_for_the_sender)
{
    static struct worker worker;
    static struct channel_entry entry;
    static struct renewal renewal = {.received = HEADER + LARGE};

    open_with(10, 0, 1 << 20);
    first.stuck = true;
    accept(OWNED, &entry);
    worker_start(&worker, finish, &entry);
    worker_await_sleep(&worker);
    channel_lose(&ch);
    worker_start(&renewal.worker, renew, &renewal);
    worker_await_sleep(&renewal.worker);
    cr_expect(not(atomic_load(&renewal.worker.done)));
    line_let(&first, SIZE_MAX - received); /* the rest goes through */
    worker_join(&renewal.worker);
    worker_join(&worker);
    cr_expect(zero(int, renewal.ret));
    cr_expect(eq(uint, first.closes, 1));
    expect_packets(1);
    cr_expect(zero(u64, gate.used), "the destination has all of it");
    end();
}

Test(channel_kept, renew_that_makes_no_sense)
{
    open_with(FIVE - 1, -ECONNRESET, 1 << 20);
    send_five();
    cr_expect(zero(int, tell(&first, 2)));
    cr_expect(eq(int, channel_renew(&ch, &second.base, FIVE + 1), -EPROTO), "so much was never sent");
    cr_expect(eq(int, channel_renew(&ch, &second.base, 2 * (HEADER + 40) - 1), -EPROTO),
              "less than it has applied");
    cr_expect(zero(uint, second.closes), "it is the caller's");
    cr_expect(zero(uint, first.closes));
    cr_expect(ch.down);
    cr_expect(zero(int, channel_renew(&ch, &second.base, FIVE - 1)));
    expect_packets(5);
    end();
}

/*
 * Dead
 */

Test(channel_kept, dead_while_it_is_lost)
{
    static struct worker worker;
    static struct channel_entry entry;

    open_with(SIZE_MAX, 0, 1 << 20);
    accept(SMALL, NULL);
    channel_send_copied(&ch);
    channel_lose(&ch);
    accept(OWNED, &entry);
    accept(SMALL, NULL);
    worker_start(&worker, finish, &entry);
    worker_await_sleep(&worker);
    cr_expect(not(channel_is_dead(&ch)));
    channel_close(&ch, CHANNEL_DEAD);
    cr_expect(channel_is_dead(&ch));
    worker_join(&worker);
    cr_expect(entry.done, "its owner is not left waiting");
    cr_expect(zero(ptr, ch.head), "nor what is nobody's");
    cr_expect(eq(u64, gate.used, 40), "what is kept goes with the connection");
    cr_expect(eq(int, channel_flush(&ch, 3, NULL), -ECONNRESET));
    cr_expect(eq(int, channel_renew(&ch, &second.base, HEADER + 40), -ECANCELED));
    cr_expect(zero(uint, second.closes));
    expect_packets(1);
    channel_disconnect(&ch);
    cr_expect(zero(u64, gate.used));
    cr_expect(eq(uint, first.closes, 1));
    end();
}

/* Nobody waits, and what waits for the connection is dropped all the same. */
Test(channel_kept, dead_and_nobody_waits)
{
    open_with(SIZE_MAX, 0, 1 << 20);
    channel_lose(&ch);
    accept(SMALL, NULL);
    channel_send_copied(&ch);
    channel_close(&ch, CHANNEL_SEALED);
    cr_expect(ne(ptr, ch.head, NULL));
    channel_close(&ch, CHANNEL_DEAD);
    cr_expect(zero(ptr, ch.head));
    cr_expect(zero(u64, gate.used));
    cr_expect(zero(sz, received));
    end();
}

/* Its end shuts down the connection that there is, and wakes the listener. */
Test(channel_kept, ends)
{
    open_with(SIZE_MAX, 0, 1 << 20);
    channel_end(&ch);
    cr_expect(channel_is_dead(&ch));
    cr_expect(first.shut);
    cr_expect(eq(int, channel_hear(&ch), -ECONNRESET));
    channel_disconnect(&ch);
    channel_end(&ch);
    end();
}

static void await_quiet(void *arg)
{
    (void)arg;
    channel_await_quiet(&ch);
}

/* What stays where it is may be in anybody's hands: it must not go before they are empty. */
Test(channel_kept, ends_while_it_is_sent)
{
    static struct worker sender, waiter;
    static struct channel_entry entry;

    open_with(10, 0, 1 << 20);
    channel_await_quiet(&ch);
    first.stuck = true;
    accept(STAYING, &entry);
    worker_start(&sender, finish, &entry);
    worker_await_sleep(&sender);
    channel_end(&ch);
    worker_start(&waiter, await_quiet, NULL);
    worker_await_sleep(&waiter);
    cr_expect(not(atomic_load(&waiter.done)));
    line_let(&first, SIZE_MAX - received);
    worker_join(&waiter);
    worker_join(&sender);
    end();
}

/* Renewed while its maker is about to end it: the next one is not shut down by that, but refused. */
Test(channel_kept, ends_before_it_is_renewed)
{
    open_with(SIZE_MAX, 0, 1 << 20);
    channel_lose(&ch);
    channel_end(&ch);
    cr_expect(eq(int, channel_renew(&ch, &second.base, 0), -ECANCELED));
    cr_expect(not(second.shut));
    end();
}

/*
 * What the listener hears
 */

Test(channel_kept, half_a_count)
{
    uint64_t count = htole64(5);

    open_with(SIZE_MAX, 0, 1 << 20);
    send_five();
    line_tell(&first, &count, 3);
    cr_expect(zero(int, channel_hear(&ch)));
    cr_expect(zero(u64, ch.kept.applied));
    line_tell(&first, (char *)&count + 3, 5);
    cr_expect(zero(int, channel_hear(&ch)));
    cr_expect(eq(u64, ch.kept.applied, 5));
    /* The rest of one does not come over another connection. */
    line_tell(&first, &count, 3);
    cr_expect(zero(int, channel_hear(&ch)));
    channel_lose(&ch);
    cr_expect(zero(int, channel_renew(&ch, &second.base, received)));
    cr_expect(zero(int, tell(&second, 5)));
    cr_expect(zero(int, tell(&second, 5)));
    end();
}

Test(channel_kept, counts_that_make_no_sense)
{
    open_with(SIZE_MAX, 0, 1 << 20);
    send_five();
    cr_expect(zero(int, tell(&first, 3)));
    cr_expect(eq(int, tell(&first, 6), 1), "there are only five");
    cr_expect(eq(int, tell(&first, 2), 1), "it has said more before");
    cr_expect(eq(int, tell(&first, UINT64_MAX), 1));
    cr_expect(eq(u64, ch.kept.applied, 3), "nothing has come of it");
    cr_expect(eq(u64, gate.used, 2 * LARGE));
    line_shutdown(&first.base);
    cr_expect(eq(int, channel_hear(&ch), -ECONNRESET));
    end();
}

/* Whether it has moved since it was renewed; what is not due need not. */
Test(channel_kept, moves)
{
    open_with(SIZE_MAX, 0, 1 << 20);
    send_five();
    cr_expect(channel_has_moved(&ch), "the first connection was made");
    channel_lose(&ch);
    cr_expect(zero(int, channel_renew(&ch, &second.base, HEADER)));
    cr_expect(channel_has_moved(&ch), "more was received than before");
    received = HEADER;
    channel_lose(&ch);
    line_fini(&first);
    line_init(&first, SIZE_MAX, 0);
    cr_expect(zero(int, channel_renew(&ch, &first.base, HEADER)));
    cr_expect(not(channel_has_moved(&ch)));
    cr_expect(zero(int, tell(&first, 0)));
    cr_expect(not(channel_has_moved(&ch)), "no news");
    cr_expect(zero(int, tell(&first, 1)));
    cr_expect(channel_has_moved(&ch), "something is applied");
    ch.moved = false;
    cr_expect(zero(int, tell(&first, 5)));
    ch.moved = false;
    cr_expect(channel_is_idle(&ch), "nothing is due");
    end();
}

/*
 * What is a loss
 */

Test(channel_kept, failures_that_another_connection_cures)
{
    static const struct {
        int code;
        bool lost;
    } cases[] = {{-ECONNRESET, true}, {-EPIPE, true},   {-ETIMEDOUT, true}, {-EIO, true},
                 {-EFAULT, false},    {-ENOMEM, false}, {-ENODATA, false}};

    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        struct channel_entry entry;
        atomic_store(&failures, 0);
        open_with(0, cases[i].code, 1 << 20);
        accept(OWNED, &entry);
        channel_finish_entry(&ch, &entry);
        cr_expect(eq(uint, failures, !cases[i].lost), "%s", strerror(-cases[i].code));
        cr_expect(eq(int, ch.down, cases[i].lost), "%s", strerror(-cases[i].code));
        cr_expect(eq(int, channel_is_dead(&ch), !cases[i].lost));
        if (!cases[i].lost)
            cr_expect(eq(int, failed_code, cases[i].code));
        end();
    }
}

/* What is to be kept cannot be read any more, though it was sent. */
Test(channel_kept, nothing_to_copy)
{
    long page = sysconf(_SC_PAGESIZE);
    int fd = memfd_create("gone", 0);
    struct channel_entry gone, next;

    cr_assert(zero(int, ftruncate(fd, page)));
    char *map = mmap(NULL, (size_t)page, PROT_READ, MAP_SHARED, fd, 0);
    open_with(0, -ECONNRESET, 1 << 20);
    struct packet packet = packet_of(map, LARGE);
    cr_assert(zero(int, gate_enter(&gate, LARGE, NULL)));
    pthread_mutex_lock(&ch.lock);
    channel_add(&ch, &packet, map, LARGE, &gone);
    pthread_mutex_unlock(&ch.lock);
    accept(OWNED, &next);
    cr_assert(zero(int, ftruncate(fd, 0)));
    channel_finish_entry(&ch, &gone);
    channel_finish_entry(&ch, &next);
    cr_expect(eq(uint, failures, 1));
    cr_expect(eq(int, failed_code, -EFAULT));
    cr_expect(channel_is_dead(&ch));
    cr_expect(eq(int, channel_flush(&ch, 2, NULL), -ECONNRESET));
    end();
    munmap(map, (size_t)page);
    close(fd);
}
