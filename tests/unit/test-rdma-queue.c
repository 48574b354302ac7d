/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A connection over a queue pair, with the card of verbs.h: what is sent and placed, while the card does and
 * tells it as late as it may, or breaks.
 */
#include "rdma_link.h"
#include "check.h"
#include "clock.h"
#include "guard.h"

#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

TestSuite(rdma_queue, .init = guard_setup);

/* What the ends have, and how large a message is. */
#define RECEIVES_A 16
#define RECEIVES_B 32
#define MESSAGE    (32u << 10)
#define COPIES     8u /* slots of the end that receives payloads */

static struct link two;
static struct transport *a, *b; /* the end that connected sends payloads, the other one receives them */

static void open_link(void)
{
    rdma_link_open(&two);
    a = two.a;
    b = two.b;
}

/* No message has ever found no receive, and all is given back. */
static void close_link(void)
{
    link_close(&two);
    cr_expect(zero(uint, verbs_counts().unready));
    verbs_expect_nothing_left();
}

static bool is_readable(struct transport *t)
{
    struct pollfd fd = {.fd = transport_pollfd(t), .events = POLLIN};

    return poll(&fd, 1, 0) == 1;
}

static void expect_received(struct transport *t, const void *want, size_t len)
{
    char *got = malloc(len);

    cr_assert(zero(int, transport_recv_all(t, got, len, NULL)));
    cr_expect(zero(int, memcmp(got, want, len)));
    free(got);
}

static void expect_nothing(struct transport *t)
{
    char byte;

    /* The first look can take what is none of the stream's. */
    for (int i = 0; i < 2; i++)
        cr_expect(eq(int, (int)transport_recv(t, &byte, 1, TRANSPORT_NOWAIT), -EAGAIN));
    cr_expect(not(is_readable(t)));
}

__attribute__((unused)) static int receive_end(struct transport *t)
{
    char byte;

    return (int)transport_recv(t, &byte, 1, 0);
}

/* Sends until nothing more is taken. Return: how many messages. */
static unsigned fill(struct transport *t)
{
    unsigned n = 0;
    ssize_t ret;

    while ((ret = transport_try_send(t, "x", 1)) == 1)
        n++;
    cr_assert(eq(int, (int)ret, -EAGAIN));
    return n;
}

static void empty(struct transport *t, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        expect_received(t, "x", 1);
}

Test(rdma_queue, both_directions)
{
    open_link();
    cr_expect(eq(int, link_send(a, "hello", 6), 0));
    expect_received(b, "hello", 6);
    cr_expect(eq(int, link_send(b, "world", 6), 0));
    expect_received(a, "world", 6);
    cr_expect(eq(str, (char *)a->ops->name, "rdma"));
    cr_expect(zero(int, strncmp(a->peer, "rdma:127.0.0.1:", 15)), "%s", a->peer);
    cr_expect(eq(str, b->address, "127.0.0.1"));
    cr_expect(a->traits.places);
    cr_expect(ne(u32, a->traits.copy_max, 0));
    expect_nothing(a);
    expect_nothing(b);
    close_link();
}

/*
 * Streams
 */

struct flow {
    struct worker sender, receiver;
    struct transport *from, *to;
    const uint8_t *data;
    size_t len;
    unsigned seed;
    uint8_t *got;
};

static size_t next_size(unsigned *seed, size_t max)
{
    *seed = *seed * 1103515245 + 12345;
    unsigned bits = *seed >> 16;
    return 1 + (bits % 7 ? bits * 31u % max : bits % 64);
}

static void flow_send(void *arg)
{
    struct flow *f = arg;
    unsigned seed = f->seed;

    for (size_t done = 0; done < f->len;) {
        struct iovec iov[3];
        int n = 0;
        for (; n < 3 && done < f->len; n++) {
            size_t size = next_size(&seed, 50000);
            size = size < f->len - done ? size : f->len - done;
            iov[n] = (struct iovec){(void *)(uintptr_t)(f->data + done), size};
            done += size;
        }
        cr_assert(zero(int, transport_send(f->from, iov, n)));
    }
}

static void flow_receive(void *arg)
{
    struct flow *f = arg;
    unsigned seed = f->seed + 1;

    for (size_t done = 0; done < f->len;) {
        size_t size = next_size(&seed, 50000);
        size = size < f->len - done ? size : f->len - done;
        ssize_t n = transport_recv(f->to, f->got + done, size, 0);
        cr_assert(lt(int, 0, (int)n));
        done += (size_t)n;
    }
}

static void flow_start(struct flow *f, struct transport *from, struct transport *to, size_t len,
                       unsigned seed)
{
    uint8_t *data = malloc(len);

    pattern(data, len, seed);
    *f = (struct flow){.from = from, .to = to, .data = data, .len = len, .seed = seed, .got = calloc(1, len)};
    worker_start(&f->receiver, flow_receive, f);
    worker_start(&f->sender, flow_send, f);
}

static void flow_join(struct flow *f)
{
    worker_join(&f->sender);
    worker_join(&f->receiver);
    cr_expect(zero(int, memcmp(f->got, f->data, f->len)));
    free(f->got);
    free((void *)(uintptr_t)f->data);
}

static void stream_both_ways(size_t len, unsigned seed)
{
    struct flow there, back;

    flow_start(&there, a, b, len, seed);
    flow_start(&back, b, a, len / 3, seed + 100);
    flow_join(&there);
    flow_join(&back);
}

Test(rdma_queue, streams)
{
    open_link();
    stream_both_ways(8u << 20, 1);
    cr_expect(lt(uint, verbs_counts().signaled, verbs_counts().messages), "not each has a completion");
    close_link();
}

Test(rdma_queue, streams_over_a_late_card)
{
    for (unsigned seed = 1; seed <= 4; seed++) {
        open_link();
        verbs_shuffle_start(seed);
        stream_both_ways(3u << 20, seed);
        verbs_shuffle_stop();
        close_link();
    }
}

/* A device that takes nothing inline. */
Test(rdma_queue, streams_without_inline)
{
    verbs_limit(UINT64_MAX, 0);
    open_link();
    verbs_shuffle_start(7);
    stream_both_ways(2u << 20, 7);
    verbs_shuffle_stop();
    close_link();
}

/*
 * Credits
 */

/* The last receive is kept for a message that says that there are others again. */
Test(rdma_queue, as_many_messages_as_there_are_receives)
{
    open_link();
    cr_expect(eq(uint, fill(a), RECEIVES_B - 1));
    cr_expect(eq(uint, fill(b), RECEIVES_A - 1));
    cr_expect(is_readable(a));
    cr_expect(is_readable(b));
    empty(b, RECEIVES_B - 1);
    empty(a, RECEIVES_A - 1);
    cr_expect(lt(uint, RECEIVES_B / 3, fill(a)));
    cr_expect(lt(uint, RECEIVES_A / 3, fill(b)));
    close_link();
}

/* Whatever order two full ends are read in, both get on. */
Test(rdma_queue, full_ends_get_on)
{
    for (unsigned order = 0; order < 64; order++) {
        open_link();
        for (unsigned round = 0; round < 6; round++) {
            bool first = order >> round & 1;
            unsigned there = fill(a), back = fill(b);
            cr_assert(lt(uint, 0, there), "order %u, round %u", order, round);
            cr_assert(lt(uint, 0, back), "order %u, round %u", order, round);
            if (first)
                empty(b, there);
            empty(a, back);
            if (!first)
                empty(b, there);
        }
        close_link();
    }
}

/* An end has told of its receives with its last credit, more are free since, and it has nothing to send. */
Test(rdma_queue, told_with_the_last_credit)
{
    open_link();
    fill(b);
    empty(b, fill(a)); /* B tells with its last credit */
    empty(b, fill(a));
    fill(a);
    empty(a, RECEIVES_A - 1);
    expect_nothing(a);
    char byte;
    while (transport_recv(b, &byte, 1, TRANSPORT_NOWAIT) == 1)
        ;
    cr_expect(eq(int, transport_try_send(a, "y", 1), 1));
    close_link();
}

/* What a message has is not counted as free before all of it has been taken. */
Test(rdma_queue, message_in_pieces)
{
    char data[1000], got[1000];

    open_link();
    pattern(data, sizeof(data), 1);
    cr_expect(zero(int, link_send(a, data, sizeof(data))));
    for (size_t i = 0; i < sizeof(data); i++) {
        cr_expect(is_readable(b), "at %zu", i);
        cr_assert(eq(int, (int)transport_recv(b, got + i, 1, TRANSPORT_NOWAIT), 1));
    }
    cr_expect(zero(int, memcmp(got, data, sizeof(data))));
    expect_nothing(b);
    cr_expect(zero(int, link_send(a, NULL, 0)));
    expect_nothing(b);
    close_link();
}

/* The slots of an end are free again when the card says so, and not before. */
Test(rdma_queue, slots_are_not_reused_early)
{
    char data[200], got[200];
    unsigned n = 0;

    open_link();
    verbs_hold(VERBS_PASSIVE, VERBS_WORK);
    for (;; n++) {
        pattern(data, sizeof(data), n);
        if (transport_try_send(b, data, sizeof(data)) != sizeof(data))
            break;
    }
    cr_expect(eq(uint, n, COPIES));
    verbs_hold(VERBS_PASSIVE, VERBS_SENT);
    cr_expect(eq(int, (int)transport_try_send(b, data, sizeof(data)), -EAGAIN), "it is done, and not told");
    verbs_hold(VERBS_PASSIVE, 0);
    cr_expect(eq(int, (int)transport_try_send(b, data, sizeof(data)), sizeof(data)));
    for (unsigned i = 0; i <= n; i++) {
        pattern(got, sizeof(got), i);
        expect_received(a, got, sizeof(got));
    }
    close_link();
}

/*
 * Placing
 */

#define TARGET (24u << 20)

static uint8_t *source, *target; /* mappings of TARGET bytes */
static struct transport_key key;

static void map(void)
{
    source = mmap(NULL, TARGET, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    target = mmap(NULL, TARGET, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    cr_assert(zero(int, transport_memory_add(source, TARGET)));
}

static void unmap(void)
{
    transport_memory_remove(source);
    munmap(source, TARGET);
    munmap(target, TARGET);
}

static void open_placing(void)
{
    open_link();
    map();
    cr_assert(zero(int, transport_expose(b, target, TARGET, &key)));
}

static void close_placing(void)
{
    transport_withdraw(b, &key);
    transport_close(a);
    unmap();
    transport_close(b);
    transport_listener_close(two.listener);
    cr_expect(zero(uint, verbs_counts().unready));
    cr_expect(zero(uint, verbs_counts().refused));
    verbs_expect_nothing_left();
}

static uint64_t place(size_t offset, const void *from, size_t len, size_t lent)
{
    struct transport_handed handed;

    cr_assert(zero(int, transport_place(a, &key, offset, from, len, &handed)));
    cr_expect(eq(sz, handed.bytes, lent));
    return handed.ticket;
}

static uint64_t back(int wait_ms, uint64_t known)
{
    struct transport_returns returns = {.ticket = known};

    transport_reap(a, wait_ms, &returns);
    return returns.ticket;
}

/* Straight from registered memory, or through a slot. */
Test(rdma_queue, places)
{
    char *other = malloc(100000);
    struct transport_figures figures = {0};
    struct transport_returns returns = {0};

    open_placing();
    pattern(source, TARGET, 1);
    pattern(other, 100000, 2);
    uint64_t first = place(5000, source + 4096, 3000000, 3000000);
    uint64_t second = place(4000000, other, 100000, 0);
    cr_expect(lt(u64, first, second));
    cr_expect(zero(int, memcmp(target + 5000, source + 4096, 3000000)));
    cr_expect(zero(int, memcmp(target + 4000000, other, 100000)));
    transport_reap(a, 0, &returns);
    cr_expect(eq(u64, returns.ticket, second));
    cr_expect(eq(u64, returns.bytes, 3100000));
    /* Half a mebibyte each, cut where a registered chunk of one ends, and what a slot has. */
    cr_expect(eq(u64, returns.sends, verbs_counts().writes));
    cr_expect(zero(u64, returns.copied_sends));
    transport_figures(a, true, &figures);
    cr_expect(eq(u64, figures.registrations, 3));
    cr_expect(zero(u64, figures.partial_drains));
    transport_figures(b, true, &figures);
    cr_expect(eq(u64, figures.registrations, 4));
    cr_expect(eq(u64, figures.registered_bytes, TARGET + (3u << 20)));
    figures = (struct transport_figures){0};
    transport_figures(a, false, &figures);
    cr_expect(zero(u64, figures.registrations));
    free(other);
    close_placing();
}

/* A ticket is not back before the card has told it, whatever was told of others. */
Test(rdma_queue, told_when_it_is_done)
{
    open_placing();
    verbs_hold(VERBS_ACTIVE, VERBS_WORK);
    memset(source, 1, 300000);
    uint64_t first = place(0, source, 100000, 100000),
             second = place(100000, source + 100000, 100000, 100000);
    cr_expect(zero(u64, back(0, 0)));
    verbs_release(VERBS_ACTIVE, VERBS_WORK, 1);
    cr_expect(eq(u64, back(0, 0), first));
    cr_expect(eq(u64, back(1, first), first));
    memset(source, 2, 100000);
    memset(source + 100000, 3, 100000); /* it is not done: the card may read what it likes */
    verbs_hold(VERBS_ACTIVE, VERBS_SENT);
    cr_expect(eq(u64, back(0, first), first), "it is done, and not told");
    verbs_hold(VERBS_ACTIVE, 0);
    cr_expect(eq(u64, back(0, first), second));
    cr_expect(eq(int, target[0], 1));
    cr_expect(eq(int, target[100000], 3));
    cr_expect(eq(u64, back(100000, second), second), "nothing is in flight: nothing is waited for");
    close_placing();
}

static void reap_work(void *arg)
{
    *(uint64_t *)arg = back(1000000, 0);
}

/* It waits for the card, and is woken by it. */
Test(rdma_queue, reaps_what_comes_later)
{
    struct worker workers[3];
    uint64_t tickets[3];

    open_placing();
    verbs_hold(VERBS_ACTIVE, VERBS_SENT);
    uint64_t ticket = place(0, source, 100, 100);
    for (int i = 0; i < 3; i++)
        worker_start(&workers[i], reap_work, &tickets[i]);
    for (int i = 0; i < 3; i++)
        worker_await_sleep(&workers[i]);
    verbs_release(VERBS_ACTIVE, VERBS_SENT, 1);
    for (int i = 0; i < 3; i++) {
        worker_join(&workers[i]);
        cr_expect(eq(u64, tickets[i], ticket));
    }
    close_placing();
}

/* What a header says of a placed payload. */
struct header {
    uint64_t offset, len, sum;
};

static uint64_t sum(const uint8_t *p, size_t len)
{
    uint64_t s = 14695981039346656037ull;

    for (size_t i = 0; i < len; i++)
        s = (s ^ p[i]) * 1099511628211ull;
    return s;
}

#define LENT  6        /* buffers that take turns */
#define SIZE  1000000u /* of one of them */
#define TURNS 150

/* A buffer is filled, placed, and spoilt as soon as it is the caller's again. */
static void lend_work(void *arg)
{
    uint64_t tickets[LENT] = {0};
    struct transport_returns returns = {0};
    unsigned seed = *(unsigned *)arg;

    for (unsigned turn = 0; turn < TURNS; turn++) {
        unsigned i = turn % LENT;
        uint8_t *buf = source + (size_t)i * SIZE;
        while (returns.ticket < tickets[i])
            transport_reap(a, 1000000, &returns);
        memset(buf, 0xee, SIZE);
        struct header h = {.offset = (size_t)i * SIZE + next_size(&seed, 100),
                           .len = next_size(&seed, SIZE - 200)};
        struct transport_handed handed;
        pattern(buf, h.len, turn + 1);
        h.sum = sum(buf, h.len);
        cr_assert(zero(int, transport_place(a, &key, h.offset, buf, h.len, &handed)));
        cr_expect(eq(sz, handed.bytes, h.len));
        tickets[i] = handed.ticket;
        cr_assert(zero(int, link_send(a, &h, sizeof(h))));
        /* The peer's memory may be written anew when it has been looked at. */
        if (turn % LENT == LENT - 1)
            expect_received(a, "k", 1);
    }
    while (returns.ticket < tickets[(TURNS - 1) % LENT])
        transport_reap(a, 1000000, &returns);
    memset(source, 0xee, LENT * SIZE);
}

/* No completion is lost, and no buffer comes back early, whatever the card delays. */
Test(rdma_queue, lends_to_a_late_card)
{
    for (unsigned seed = 1; seed <= 3; seed++) {
        struct worker lender;
        open_placing();
        verbs_shuffle_start(seed);
        worker_start(&lender, lend_work, &seed);
        for (unsigned turn = 0; turn < TURNS; turn++) {
            struct header h;
            cr_assert(zero(int, transport_recv_all(b, &h, sizeof(h), NULL)));
            cr_assert(eq(u64, sum(target + h.offset, h.len), h.sum), "seed %u, turn %u", seed, turn);
            if (turn % LENT == LENT - 1)
                cr_assert(zero(int, link_send(b, "k", 1)));
        }
        worker_join(&lender);
        verbs_shuffle_stop();
        close_placing();
    }
}

static void place_much(void *arg)
{
    struct transport_handed handed;

    *(int *)arg = transport_place(a, &key, 0, source, TARGET, &handed);
}

static uint64_t partial_drains(void)
{
    struct transport_figures figures = {0};

    transport_figures(a, false, &figures);
    return figures.partial_drains;
}

/* So much is in flight that some of it has to be back first. */
Test(rdma_queue, partial_drain)
{
    struct worker worker;
    int ret = 1;

    open_placing();
    pattern(source, TARGET, 1);
    verbs_hold(VERBS_ACTIVE, VERBS_WORK);
    worker_start(&worker, place_much, &ret);
    verbs_await_held(VERBS_ACTIVE, VERBS_WORK, 32);
    worker_await_sleep(&worker);
    cr_expect(zero(uint, verbs_release(VERBS_ACTIVE, VERBS_SENT, 1)));
    cr_expect(eq(uint, verbs_release(VERBS_ACTIVE, VERBS_WORK, 100), 32), "16 MiB of half a mebibyte each");
    verbs_hold(VERBS_ACTIVE, 0);
    worker_join(&worker);
    cr_expect(zero(int, ret));
    cr_expect(eq(u64, partial_drains(), 1));
    while (back(1000, 0) < 48)
        ;
    cr_expect(zero(int, memcmp(source, target, TARGET)));
    close_placing();
}

/* One that alone is larger than what may be in flight would never go; and small ones find the queue full. */
Test(rdma_queue, as_many_writes_as_the_card_takes)
{
    struct worker worker;
    uint64_t ticket = 0;

    open_placing();
    verbs_hold(VERBS_ACTIVE, VERBS_WORK);
    for (int i = 0; i < 256; i++)
        ticket = place(i, source, 1, 1);
    cr_expect(zero(u64, partial_drains()));
    cr_expect(eq(int, (int)transport_try_send(a, "x", 1), -EAGAIN));
    int ret = 1;
    worker_start(&worker, place_much, &ret);
    worker_await_sleep(&worker);
    verbs_hold(VERBS_ACTIVE, 0);
    worker_join(&worker);
    cr_expect(zero(int, ret));
    cr_expect(lt(u64, 0, partial_drains()));
    cr_expect(lt(u64, ticket, back(1000, 0)));
    close_placing();
}
