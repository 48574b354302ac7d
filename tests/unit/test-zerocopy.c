/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sending without a copy: when a channel does, and that no buffer is its owner's
 * before it is back. The transport is one that keeps buffers until it is told to
 * give them back.
 */
#include "channel.h"
#include "dummy.h"
#include "blocked.h"
#include "check.h"
#include "cleanup.h"
#include "clock.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MIB (1u << 20)

/*
 * The decisions
 */

static struct zerocopy z;
static struct transport_returns returns;

/* So many sends come back. */
static void come_back(unsigned sends, uint64_t bytes, bool copied)
{
    returns.sends += copied ? 0 : sends;
    returns.bytes += copied ? 0 : bytes;
    returns.copied_sends += copied ? sends : 0;
    returns.copied_bytes += copied ? bytes : 0;
    zerocopy_returned(&z, &returns);
}

/* Sends what may be sent of @len bytes, which all goes; how much that was. */
static size_t take(size_t len)
{
    size_t n = zerocopy_may(&z) ? zerocopy_take(&z, len) : 0;

    if (n)
        zerocopy_handed(&z, n, n);
    return n;
}

static void reset(enum zerocopy_mode mode)
{
    returns = (struct transport_returns){0};
    zerocopy_init(&z, mode, true);
}

Test(zerocopy, off_and_impossible)
{
    reset(ZEROCOPY_OFF);
    cr_expect(not(zerocopy_may(&z)));
    zerocopy_copied(&z, 100, 50);
    zerocopy_barrier(&z);
    cr_expect(eq(u64, z.counters.missed, 0));
    zerocopy_init(&z, ZEROCOPY_AUTO, false);
    cr_expect(not(zerocopy_may(&z)));
}

Test(zerocopy, tries_before_it_goes)
{
    reset(ZEROCOPY_AUTO);
    cr_expect(eq(sz, take(MIB), ZEROCOPY_PROBE));
    cr_expect(not(zerocopy_may(&z)), "one at a time");
    come_back(1, ZEROCOPY_PROBE, false);
    cr_expect(eq(int, (int)z.phase, ZEROCOPY_GOING));
    cr_expect(eq(sz, take(MIB), MIB));
    cr_expect(eq(sz, take(MIB), MIB));
    cr_expect(eq(u64, z.in_flight, 2 * MIB));
}

Test(zerocopy, rests_longer_and_longer)
{
    int64_t rest = 0;

    reset(ZEROCOPY_AUTO);
    for (int i = 0; i < ZEROCOPY_TRIES; i++) {
        cr_assert(eq(sz, take(MIB), ZEROCOPY_PROBE));
        come_back(1, ZEROCOPY_PROBE, true);
    }
    for (int i = 0; i < 10; i++) {
        int64_t last = rest;
        cr_assert(eq(int, (int)z.phase, ZEROCOPY_RESTING));
        cr_expect(not(zerocopy_may(&z)));
        rest = z.retry_at_ms - clock_ms();
        cr_expect(rest > (i < 6 ? last : ZEROCOPY_REST_MAX - 1000));
        cr_expect(le(i64, rest, ZEROCOPY_REST_MAX));
        /* The time has come: one piece, which is enough to know. */
        z.retry_at_ms = clock_ms();
        cr_assert(eq(sz, take(MIB), ZEROCOPY_PROBE));
        cr_expect(not(zerocopy_may(&z)));
        come_back(1, ZEROCOPY_PROBE, true);
    }
    z.retry_at_ms = clock_ms();
    cr_assert(take(MIB) > 0);
    come_back(1, ZEROCOPY_PROBE, false);
    cr_expect(eq(int, (int)z.phase, ZEROCOPY_GOING));
    cr_expect(eq(i64, z.rest_ms, ZEROCOPY_REST_MS), "and all is forgotten");
}

Test(zerocopy, a_few_copies_do_not_stop_it)
{
    reset(ZEROCOPY_AUTO);
    take(MIB);
    come_back(1, ZEROCOPY_PROBE, false);
    for (int round = 0; round < 5; round++) {
        for (int i = 0; i < ZEROCOPY_GIVE_UP - 1; i++) {
            take(MIB);
            come_back(1, MIB, true);
        }
        take(MIB);
        come_back(1, MIB, false);
        cr_assert(eq(int, (int)z.phase, ZEROCOPY_GOING));
    }
    take(MIB);
    come_back(1, MIB, true);
    come_back(0, 0, true);
    cr_expect(eq(uint, z.in_vain, 1));
    for (int i = 1; i < ZEROCOPY_GIVE_UP; i++) {
        take(MIB);
        come_back(1, MIB, true);
    }
    cr_expect(eq(int, (int)z.phase, ZEROCOPY_RESTING));
    cr_expect(eq(u64, z.in_flight, 0));
    cr_expect(eq(u64, z.counters.sends, 6));
    cr_expect(eq(u64, z.counters.kernel_copied_sends, 6 * ZEROCOPY_GIVE_UP - 5));
}

/* At the bound a part must come back, not all. */
Test(zerocopy, bound)
{
    reset(ZEROCOPY_REQUIRE);
    size_t sent = 0, n;
    while ((n = take(MIB)))
        sent += n;
    cr_expect(eq(sz, sent, ZEROCOPY_BOUND));
    come_back(1, ZEROCOPY_BOUND / 8, true);
    cr_expect(zero(sz, take(MIB)), "not for so little");
    cr_expect(eq(sz, take(4096), 4096), "a small one fits");
    come_back(1, ZEROCOPY_BOUND / 8 + 4096, true);
    cr_expect(eq(sz, take(2 * MIB), MIB));
    /* More than the bound at once, when nothing is in flight: as much as it allows. */
    come_back(1, z.in_flight, true);
    cr_expect(eq(sz, take(100 * MIB), ZEROCOPY_BOUND));
}

Test(zerocopy, bound_adapts)
{
    reset(ZEROCOPY_REQUIRE);
    uint64_t before = z.bound;
    for (int i = 0; i < 3; i++) {
        size_t n = zerocopy_take(&z, MIB);
        cr_expect(zerocopy_handed(&z, n, n));
    }
    /* The fourth MiB is refused: half of what was tried. */
    size_t n = zerocopy_take(&z, MIB);
    cr_expect(zerocopy_handed(&z, n, 0), "it tries again with less");
    cr_expect(eq(u64, z.bound, before / 2));
    cr_expect(eq(u64, z.in_flight, 3 * MIB));
    cr_expect(zero(sz, zerocopy_take(&z, MIB)));
    come_back(3, 3 * MIB, false);
    cr_expect(z.bound > before / 2);
    for (int i = 0; i < 2000; i++)
        come_back(1, take(MIB), false);
    cr_expect(eq(u64, z.bound, ZEROCOPY_BOUND_MAX));
    /* Nothing fits any more, down to the least. */
    while (z.bound > ZEROCOPY_BOUND_MIN) {
        n = zerocopy_take(&z, 100 * MIB);
        cr_expect(zerocopy_handed(&z, n, 0));
    }
    cr_expect(zero(int, zerocopy_verdict(&z)));
    for (int i = 0; i < ZEROCOPY_GIVE_UP; i++) {
        n = zerocopy_take(&z, 100 * MIB);
        cr_expect(eq(sz, n, ZEROCOPY_BOUND_MIN));
        cr_expect(not(zerocopy_handed(&z, n, 0)), "the rest of this payload is copied");
    }
    cr_expect(eq(int, zerocopy_verdict(&z), -ENOBUFS));
}

/* Locked memory runs out: auto copies what was refused, and rests when nothing goes at all. */
Test(zerocopy, auto_without_memory)
{
    reset(ZEROCOPY_AUTO);
    unsigned refused = 0;
    while (z.phase == ZEROCOPY_TRYING) {
        size_t n = zerocopy_take(&z, MIB);
        cr_expect(not(zerocopy_handed(&z, n, 0)));
        refused++;
        cr_assert(lt(uint, refused, 10));
    }
    cr_expect(eq(int, (int)z.phase, ZEROCOPY_RESTING));
    cr_expect(eq(u64, z.counters.refused, refused));
    cr_expect(eq(u64, z.in_flight, 0));
    cr_expect(zero(int, zerocopy_verdict(&z)), "auto never fails");
}

Test(zerocopy, required_and_copied)
{
    reset(ZEROCOPY_REQUIRE);
    for (int i = 0; i < ZEROCOPY_GIVE_UP; i++) {
        cr_expect(zero(int, zerocopy_verdict(&z)));
        take(MIB);
        come_back(1, MIB, true);
    }
    cr_expect(eq(int, zerocopy_verdict(&z), -EOPNOTSUPP));
    /* A barrier is enough. */
    reset(ZEROCOPY_REQUIRE);
    zerocopy_barrier(&z);
    zerocopy_copied(&z, 1000, 0);
    zerocopy_barrier(&z);
    cr_expect(zero(int, zerocopy_verdict(&z)), "nothing large was sent");
    take(MIB);
    come_back(1, MIB, false);
    take(MIB);
    come_back(1, MIB, true);
    zerocopy_barrier(&z);
    cr_expect(zero(int, zerocopy_verdict(&z)));
    take(MIB);
    come_back(1, MIB, true);
    zerocopy_barrier(&z);
    cr_expect(eq(int, zerocopy_verdict(&z), -EOPNOTSUPP));
}

/* Idle is not missed. */
Test(zerocopy, missed)
{
    reset(ZEROCOPY_AUTO);
    zerocopy_barrier(&z);
    zerocopy_copied(&z, 16000, 0);
    zerocopy_barrier(&z);
    cr_expect(eq(u64, z.counters.missed, 0));
    zerocopy_copied(&z, MIB + 80, MIB);
    zerocopy_barrier(&z);
    zerocopy_barrier(&z);
    cr_expect(eq(u64, z.counters.missed, 1));
    take(MIB);
    come_back(1, ZEROCOPY_PROBE, true);
    zerocopy_barrier(&z);
    cr_expect(eq(u64, z.counters.missed, 2));
    take(MIB);
    come_back(1, ZEROCOPY_PROBE, false);
    zerocopy_copied(&z, MIB, MIB - ZEROCOPY_PROBE);
    zerocopy_barrier(&z);
    cr_expect(eq(u64, z.counters.missed, 2));
    cr_expect(eq(u64, z.counters.copied_sends, 4));
}

/* Two threads that ask the transport can come back in the other order. */
Test(zerocopy, an_old_answer)
{
    reset(ZEROCOPY_REQUIRE);
    take(MIB);
    struct transport_returns old = {.sends = 1, .bytes = 1000, .ticket = 1};
    struct transport_returns new = {.sends = 2, .bytes = 3000, .ticket = 2};
    zerocopy_returned(&z, &new);
    zerocopy_returned(&z, &old);
    cr_expect(eq(u64, z.in_flight, MIB - 3000));
    cr_expect(eq(u64, z.known.ticket, 2));
    cr_expect(eq(u64, z.counters.sends, 2));
}

/*
 * Channels
 */

/* Keeps what is sent without a copy until lender_return(). */
struct lender {
    struct transport base;
    pthread_mutex_t lock; /* guards the rest */
    pthread_cond_t changed;
    const char *buf[64]; /* of each send */
    size_t len[64];
    uint64_t sent; /* sends, all of them */
    struct transport_returns returns;
    size_t lockable;   /* bytes, 0: any number */
    unsigned lent;     /* bytes now */
    bool shut, closed, broken;
    unsigned copies;   /* plain sends */
};

static int lender_send(struct transport *t, const struct iovec *iov, int n)
{
    struct lender *l = (struct lender *)t;

    (void)iov, (void)n;
    SCOPED_LOCK(&l->lock);
    l->copies++;
    pthread_cond_broadcast(&l->changed);
    return l->shut || l->broken ? -ECONNRESET : 0;
}

static int lender_zerocopy(struct transport *t)
{
    (void)t;
    return 0;
}

static int lender_send_zerocopy(struct transport *t, const struct iovec *iov, int n, const void *buf, size_t len,
                                struct transport_handed *handed)
{
    struct lender *l = (struct lender *)t;

    (void)iov, (void)n;
    *handed = (struct transport_handed){0};
    SCOPED_LOCK(&l->lock);
    if (l->shut || l->broken)
        return -ECONNRESET;
    if (l->lockable && l->lent + len > l->lockable)
        return 0;
    l->buf[l->sent % 64] = buf;
    l->len[l->sent % 64] = len;
    l->lent += (unsigned)len;
    *handed = (struct transport_handed){.bytes = len, .ticket = ++l->sent};
    pthread_cond_broadcast(&l->changed);
    return 0;
}

static void lender_reap(struct transport *t, int wait_ms, struct transport_returns *out)
{
    struct lender *l = (struct lender *)t;
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += (until.tv_nsec + wait_ms * 1000000) / 1000000000;
    until.tv_nsec = (until.tv_nsec + wait_ms * 1000000) % 1000000000;
    SCOPED_LOCK(&l->lock);
    while (l->returns.ticket == out->ticket && wait_ms &&
           pthread_cond_timedwait(&l->changed, &l->lock, &until) == 0)
        ;
    *out = l->returns;
}

static void lender_shutdown(struct transport *t)
{
    struct lender *l = (struct lender *)t;

    SCOPED_LOCK(&l->lock);
    l->shut = true;
}

static void lender_close(struct transport *t)
{
    struct lender *l = (struct lender *)t;

    SCOPED_LOCK(&l->lock);
    cr_expect(eq(u64, l->returns.ticket, l->sent), "everything is back before it is closed");
    l->closed = true;
}

static const struct transport_ops lender_ops = {
    .name = "lender",
    .send = lender_send,
    .zerocopy = lender_zerocopy,
    .send_zerocopy = lender_send_zerocopy,
    .place = dummy_place,
    .expose = dummy_expose,
    .withdraw = dummy_withdraw,
    .figures = dummy_figures,
    .reap = lender_reap,
    .shutdown = lender_shutdown,
    .close = lender_close,
};

/* Gives back the oldest sends. Their contents are what they were. */
static void lender_return(struct lender *l, unsigned sends, bool copied)
{
    SCOPED_LOCK(&l->lock);
    while (sends-- > 0) {
        uint64_t send = l->returns.ticket;
        cr_assert(lt(u64, send, l->sent));
        for (size_t i = 1; i < l->len[send % 64]; i++)
            cr_assert(eq(i8, l->buf[send % 64][i], l->buf[send % 64][0]), "a buffer has changed while it was lent");
        l->lent -= (unsigned)l->len[send % 64];
        l->returns.ticket++;
        *(copied ? &l->returns.copied_sends : &l->returns.sends) += 1;
        *(copied ? &l->returns.copied_bytes : &l->returns.bytes) += l->len[send % 64];
    }
    pthread_cond_broadcast(&l->changed);
}

static void lender_await(struct lender *l, uint64_t sent, unsigned copies)
{
    SCOPED_LOCK(&l->lock);
    while (l->sent < sent || l->copies < copies)
        pthread_cond_wait(&l->changed, &l->lock);
}

static struct lender lender;
static struct gate gate;
static struct channel ch;
static atomic_int failure;

static void note_failure(void *arg, unsigned index, int code)
{
    (void)arg, (void)index;
    atomic_store(&failure, code);
}

static void open_channel(enum zerocopy_mode mode)
{
    lender = (struct lender){.base = {.ops = &lender_ops, .traits.copy_max = CHANNEL_COPY_MAX}};
    pthread_mutex_init(&lender.lock, NULL);
    pthread_cond_init(&lender.changed, NULL);
    atomic_store(&failure, 0);
    gate_init(&gate, 1u << 30);
    channel_init(&ch, 0, &lender.base, &gate, note_failure, NULL);
    cr_assert(eq(int, channel_set_zerocopy(&ch, mode), 0));
}

static void free_channel(void)
{
    channel_fini(&ch);
    gate_fini(&gate);
    pthread_mutex_destroy(&lender.lock);
    pthread_cond_destroy(&lender.changed);
}

static void close_channel(void)
{
    channel_close(&ch, CHANNEL_DEAD);
    channel_disconnect(&ch);
    cr_expect(lender.closed);
    cr_expect(eq(u64, gate.used, 0));
    free_channel();
}

/* A writer of one packet: its own buffer, which it spoils as soon as it has it back. */
struct one {
    struct worker worker;
    uint32_t length;
    char mark;
    uint64_t sequence;
    char *buf;
    struct channel_entry entry;
};

static void finish_one(void *arg)
{
    struct one *one = arg;

    if (channel_copies(&ch, one->length))
        channel_send_copied(&ch);
    else
        channel_finish_entry(&ch, &one->entry);
    memset(one->buf, '!', one->length / 2 + 1);
    memset(one->buf + one->length / 2, '?', one->length - one->length / 2);
}

static void one_start(struct one *one, char mark, uint32_t length)
{
    struct packet packet = {.type = WIRE_DATA, .length = length, .raw_length = length};

    *one = (struct one){.length = length, .mark = mark, .buf = malloc(length)};
    memset(one->buf, mark, length);
    gate_enter(&gate, length, NULL);
    pthread_mutex_lock(&ch.lock);
    if (channel_copies(&ch, length))
        channel_reserve(&ch, 1, length);
    if (channel_copies(&ch, length))
        channel_add_copied(&ch, &packet, one->buf, length);
    else
        channel_add(&ch, &packet, one->buf, length, &one->entry);
    one->sequence = packet.sequence;
    pthread_mutex_unlock(&ch.lock);
    worker_start(&one->worker, finish_one, one);
}

static void one_join(struct one *one)
{
    worker_join(&one->worker);
    free(one->buf);
}

static void flush_all(void *arg)
{
    *(int *)arg = channel_flush(&ch, UINT64_MAX, NULL);
}

/* An owner waits for its buffer; what comes after it does not; a flush waits for both. */
Test(zerocopy, the_owner_waits)
{
    struct one large, small, next;
    struct worker flusher;
    int flushed = 1;

    open_channel(ZEROCOPY_REQUIRE);
    one_start(&large, 'a', MIB);
    lender_await(&lender, 1, 0);
    worker_await_sleep(&large.worker);
    one_start(&small, 'b', 100);
    one_join(&small);
    lender_await(&lender, 1, 1);
    one_start(&next, 'c', MIB);
    lender_await(&lender, 2, 1);
    worker_start(&flusher, flush_all, &flushed);
    worker_await_sleep(&flusher);
    lender_return(&lender, 1, false);
    one_join(&large);
    cr_expect(eq(u64, ch.sent_sequence, 2));
    cr_expect(not(atomic_load(&flusher.done)));
    cr_expect(not(atomic_load(&next.worker.done)));
    lender_return(&lender, 1, false);
    one_join(&next);
    worker_join(&flusher);
    cr_expect(eq(int, flushed, 0));
    cr_expect(eq(u64, ch.sent_sequence, 3));
    cr_expect(eq(u64, ch.zerocopy.counters.sends, 2));
    cr_expect(eq(u64, ch.zerocopy.counters.bytes, 2 * MIB));
    cr_expect(eq(u64, ch.zerocopy.counters.bytes + ch.zerocopy.counters.copied_bytes, ch.wire_bytes));
    cr_expect(eq(u64, ch.zerocopy.counters.missed, 0));
    close_channel();
}

/* At the bound the sender goes on as soon as a part is back. */
Test(zerocopy, the_bound_holds)
{
    struct one ones[6];

    open_channel(ZEROCOPY_REQUIRE);
    for (unsigned i = 0; i < 6; i++)
        one_start(&ones[i], (char)('a' + i), MIB);
    lender_await(&lender, 4, 0);
    for (unsigned i = 0; i < 6; i++)
        worker_await_sleep(&ones[i].worker);
    cr_expect(eq(uint, lender.lent, 4 * MIB));
    lender_return(&lender, 1, false);
    lender_await(&lender, 5, 0);
    cr_expect(le(uint, lender.lent, 5 * MIB));
    for (unsigned i = 5; i < 20 && lender.returns.bytes < 6 * MIB; i++) {
        lender_return(&lender, (unsigned)(lender.sent - lender.returns.ticket), false);
        if (lender.returns.bytes < 6 * MIB)
            lender_await(&lender, lender.returns.ticket + 1, 0);
    }
    for (unsigned i = 0; i < 6; i++)
        one_join(&ones[i]);
    cr_expect(eq(int, channel_flush(&ch, UINT64_MAX, NULL), 0));
    cr_expect(eq(u64, ch.zerocopy.counters.bytes, 6 * MIB));
    close_channel();
}

/* No buffer is given up, however dead the channel is. */
Test(zerocopy, a_dead_channel_waits_for_its_buffers)
{
    struct one ones[3];
    struct worker flusher;
    int flushed = 1;

    open_channel(ZEROCOPY_REQUIRE);
    for (unsigned i = 0; i < 3; i++)
        one_start(&ones[i], (char)('a' + i), MIB);
    lender_await(&lender, 3, 0);
    worker_start(&flusher, flush_all, &flushed);
    worker_await_sleep(&flusher);
    channel_close(&ch, CHANNEL_DEAD);
    transport_shutdown(&lender.base);
    worker_join(&flusher);
    cr_expect(eq(int, flushed, -ECONNRESET), "who waits for nothing but the news is told");
    for (unsigned i = 0; i < 3; i++) {
        worker_await_sleep(&ones[i].worker);
        cr_expect(not(atomic_load(&ones[i].worker.done)));
    }
    lender_return(&lender, 3, false);
    for (unsigned i = 0; i < 3; i++)
        one_join(&ones[i]);
    cr_expect(eq(int, channel_flush(&ch, UINT64_MAX, NULL), -ECONNRESET));
    close_channel();
}

static void disconnect(void *arg)
{
    (void)arg;
    channel_disconnect(&ch);
}

Test(zerocopy, disconnecting_waits_for_buffers)
{
    struct one one;
    struct worker worker;

    open_channel(ZEROCOPY_REQUIRE);
    one_start(&one, 'a', MIB);
    lender_await(&lender, 1, 0);
    worker_await_sleep(&one.worker);
    channel_close(&ch, CHANNEL_DEAD);
    worker_start(&worker, disconnect, NULL);
    worker_await_sleep(&worker);
    cr_expect(not(lender.closed));
    lender_return(&lender, 1, true);
    one_join(&one);
    worker_join(&worker);
    cr_expect(lender.closed);
    cr_expect(zero(ptr, ch.transport));
    free_channel();
}

/* The sending itself fails with a part of the payload lent. */
Test(zerocopy, broken_in_the_middle)
{
    struct one one;

    open_channel(ZEROCOPY_REQUIRE);
    one_start(&one, 'a', 6 * MIB);
    lender_await(&lender, 1, 0);
    worker_await_sleep(&one.worker);
    cr_expect(eq(uint, lender.lent, ZEROCOPY_BOUND));
    pthread_mutex_lock(&lender.lock);
    lender.broken = true;
    pthread_mutex_unlock(&lender.lock);
    lender_return(&lender, 1, false);
    one_join(&one);
    cr_expect(eq(int, atomic_load(&failure), -ECONNRESET));
    close_channel();
}

/* Auto: what cannot be locked is copied, and nobody waits for it. */
Test(zerocopy, auto_tries_and_copies)
{
    struct one ones[4];

    open_channel(ZEROCOPY_AUTO);
    one_start(&ones[0], 'a', MIB);
    lender_await(&lender, 1, 1);
    cr_expect(eq(uint, lender.lent, ZEROCOPY_PROBE));
    worker_await_sleep(&ones[0].worker);
    one_start(&ones[1], 'b', MIB);
    one_join(&ones[1]);
    lender_return(&lender, 1, false);
    one_join(&ones[0]);
    one_start(&ones[2], 'c', MIB);
    lender_await(&lender, 2, 2);
    cr_expect(eq(uint, lender.lent, MIB), "and now all of it");
    pthread_mutex_lock(&lender.lock);
    lender.lockable = MIB + 100;
    pthread_mutex_unlock(&lender.lock);
    one_start(&ones[3], 'd', MIB);
    one_join(&ones[3]);
    lender_return(&lender, 1, false);
    one_join(&ones[2]);
    cr_expect(eq(int, channel_flush(&ch, UINT64_MAX, NULL), 0));
    cr_expect(eq(u64, ch.zerocopy.counters.refused, 1));
    cr_expect(eq(u64, ch.zerocopy.counters.bytes, ZEROCOPY_PROBE + MIB));
    cr_expect(eq(u64, ch.zerocopy.counters.bytes + ch.zerocopy.counters.copied_bytes, ch.wire_bytes));
    close_channel();
}

/* What goes without a copy counts as sent when it is decided how fast that may be. */
Test(zerocopy, paced)
{
    const double bytes = MIB + sizeof(struct wire_packet);
    struct pace pace;
    struct one one;

    open_channel(ZEROCOPY_AUTO);
    pace_init(&pace, 1);
    pace_close(&pace); /* it takes, and does not wait: twelve days */
    ch.pace = &pace;
    one_start(&one, 'a', MIB);
    lender_await(&lender, 1, 1);
    lender_return(&lender, 1, false);
    one_join(&one);
    cr_expect(le(dbl, pace.tokens, 1000 - bytes));
    cr_expect(ge(dbl, pace.tokens, -bytes));
    close_channel();
    pace_fini(&pace);
}

/* Required with little memory: it goes in pieces. */
Test(zerocopy, required_with_little_memory)
{
    struct one one;

    open_channel(ZEROCOPY_REQUIRE);
    lender.lockable = 100000;
    one_start(&one, 'a', MIB);
    for (;;) {
        lender_await(&lender, lender.returns.ticket + 1, 0);
        lender_return(&lender, 1, false);
        if (lender.returns.bytes == MIB)
            break;
    }
    one_join(&one);
    cr_expect(eq(int, channel_flush(&ch, UINT64_MAX, NULL), 0));
    cr_expect(ch.zerocopy.counters.refused > 0);
    cr_expect(eq(u64, ch.zerocopy.counters.bytes, MIB));
    close_channel();
}

/* Required, and the kernel copies: the next barrier says so, and only once is somebody told. */
Test(zerocopy, required_in_vain)
{
    struct one one;

    open_channel(ZEROCOPY_REQUIRE);
    one_start(&one, 'a', MIB);
    lender_await(&lender, 1, 0);
    lender_return(&lender, 1, true);
    one_join(&one);
    cr_expect(zero(int, atomic_load(&failure)));
    cr_expect(eq(int, channel_flush(&ch, UINT64_MAX, NULL), -EOPNOTSUPP));
    cr_expect(eq(int, atomic_load(&failure), -EOPNOTSUPP));
    cr_expect(eq(int, (int)ch.closed, CHANNEL_DEAD));
    cr_expect(eq(int, channel_flush(&ch, UINT64_MAX, NULL), -EOPNOTSUPP));
    close_channel();
}

/* An interrupt ends a flush, not the loan. */
Test(zerocopy, an_interrupted_flush)
{
    struct one one;
    struct interrupt interrupt = {0};

    open_channel(ZEROCOPY_REQUIRE);
    one_start(&one, 'a', MIB);
    lender_await(&lender, 1, 0);
    worker_await_sleep(&one.worker);
    atomic_store(&interrupt.hit, true);
    cr_expect(eq(int, channel_flush(&ch, UINT64_MAX, &interrupt), -EINTR));
    cr_expect(not(atomic_load(&one.worker.done)));
    lender_return(&lender, 1, false);
    one_join(&one);
    close_channel();
}

/* Many writers and a transport that gives back at random: every owner gets its buffer, and none too early. */
#define WRITERS 8

static void give_back(void *arg)
{
    atomic_bool *stop = arg;
    unsigned random = 1;

    while (!atomic_load(stop)) {
        random = random * 1103515245 + 12345;
        pthread_mutex_lock(&lender.lock);
        unsigned out = (unsigned)(lender.sent - lender.returns.ticket);
        pthread_mutex_unlock(&lender.lock);
        if (out)
            lender_return(&lender, 1 + (random >> 16) % out, (random >> 8) % 16 == 0);
        else
            sched_yield();
    }
}

static void write_many(void *arg)
{
    unsigned random = (unsigned)(uintptr_t)arg * 7919 + 1;
    char *buf = malloc(MIB);

    for (unsigned i = 0; i < 300; i++) {
        struct channel_entry entry;
        random = random * 1103515245 + 12345;
        uint32_t length = 1000u << (random >> 16) % 10;
        struct packet packet = {.type = WIRE_DATA, .length = length, .raw_length = length};
        memset(buf, (char)i, length);
        gate_enter(&gate, length, NULL);
        pthread_mutex_lock(&ch.lock);
        bool copies = channel_copies(&ch, length);
        if (copies)
            channel_reserve(&ch, 1, length);
        if (copies)
            channel_add_copied(&ch, &packet, buf, length);
        else
            channel_add(&ch, &packet, buf, length, &entry);
        pthread_mutex_unlock(&ch.lock);
        if (copies)
            channel_send_copied(&ch);
        else
            channel_finish_entry(&ch, &entry);
        for (uint32_t b = 0; b < length; b++)
            buf[b] = (char)b;
        if (i % 50 == 49)
            cr_assert(eq(int, channel_flush(&ch, packet.sequence, NULL), 0));
    }
    free(buf);
}

Test(zerocopy, many_writers)
{
    struct worker writers[WRITERS], back;
    atomic_bool stop = false;

    open_channel(ZEROCOPY_AUTO);
    worker_start(&back, give_back, &stop);
    for (uintptr_t i = 0; i < WRITERS; i++)
        worker_start(&writers[i], write_many, (void *)i);
    for (unsigned i = 0; i < WRITERS; i++)
        worker_join(&writers[i]);
    cr_expect(eq(int, channel_flush(&ch, UINT64_MAX, NULL), 0));
    atomic_store(&stop, true);
    worker_join(&back);
    cr_expect(eq(u64, ch.sent_sequence, WRITERS * 300));
    cr_expect(eq(u64, ch.zerocopy.in_flight, 0));
    cr_expect(eq(u64, ch.zerocopy.counters.bytes + ch.zerocopy.counters.copied_bytes, ch.wire_bytes));
    cr_expect(ch.zerocopy.counters.bytes > 0);
    close_channel();
}
