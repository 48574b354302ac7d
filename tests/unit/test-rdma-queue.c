/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A connection over a queue pair, with the card of verbs.h: what is sent and placed, while the card does and
 * tells it as late as it may, or breaks.
 */
#include "rdma_link.h"
#include "check.h"
#include "clock.h"
#include "guard.h"
#include "shifted_clock.h"

#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <sched.h>
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
#define IMM_ALL    0xffffu  /* as many receives as can be told of */
#define IMM_END    0x10000u /* nothing more comes */
#define COPIES     8u       /* slots of the end that receives payloads */

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

static int receive_end(struct transport *t)
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

/* A connection that has ended leaves nothing on the heap, and no descriptor. */
Test(rdma_queue, nothing_stays)
{
    unsigned descriptors = open_descriptors();
    size_t before = 0;

    for (unsigned i = 0; i < 50; i++) {
        if (i == 10)
            before = heap_in_use();
        open_link();
        cr_expect(zero(int, link_send(a, "hello", 6)));
        expect_received(b, "hello", 6);
        close_link();
    }
    cr_expect(lt(sz, heap_in_use(), before + 40 * 16));
    cr_expect(eq(uint, open_descriptors(), descriptors));
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

/* A message has what there is room for, wherever the parts of it begin and end. */
Test(rdma_queue, parts)
{
    static uint8_t data[100000];
    struct iovec iov[] = {{NULL, 0},          {data, 1}, {NULL, 0},         {data + 1, 40000},
                          {data + 40001, 99}, {NULL, 0}, {data + 40100, 0}, {data + 40100, 59900},
                          {NULL, 0}};

    open_link();
    pattern(data, sizeof(data), 1);
    cr_expect(zero(int, transport_send(a, iov, ARRAY_LENGTH(iov))));
    cr_expect(eq(uint, verbs_counts().messages, 4), "three that are full, and one");
    expect_received(b, data, sizeof(data));
    cr_expect(zero(int, transport_send(a, iov, 1)));
    cr_expect(zero(int, transport_send(a, iov, 0)));
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

/* What goes with its work request needs no slot: up to 128 bytes. */
Test(rdma_queue, inline_needs_no_slot)
{
    char data[129];

    open_link();
    pattern(data, sizeof(data), 1);
    verbs_hold(VERBS_PASSIVE, VERBS_WORK);
    for (unsigned i = 0; i < 6; i++)
        cr_expect(eq(int, (int)transport_try_send(b, data, 128), 128));
    cr_expect(eq(uint, verbs_counts().inlined, 6));
    for (unsigned i = 0; i < COPIES; i++)
        cr_expect(eq(int, (int)transport_try_send(b, data, 129), 129));
    cr_expect(eq(uint, verbs_counts().inlined, 6));
    cr_expect(eq(int, (int)transport_try_send(b, data, 1), -EAGAIN), "it would be copied into a slot first");
    verbs_hold(VERBS_PASSIVE, 0);
    for (unsigned i = 0; i < 6 + COPIES; i++)
        expect_received(a, data, i < 6 ? 128 : 129);
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

/*
 * Waiting, and what ends it
 */

static struct worker worker;
static int result;

static void receive_work(void *arg)
{
    result = receive_end(arg);
}

static void send_work(void *arg)
{
    result = link_send(arg, "x", 1);
}

static void place_work(void *arg)
{
    place_much(arg);
}

/* In a thread that is blocked when this returns. */
static void block(void (*work)(void *), void *arg)
{
    result = 1;
    worker_start(&worker, work, arg);
    worker_await_sleep(&worker);
    cr_assert(not(atomic_load(&worker.done)));
}

static int unblocked(void)
{
    worker_join(&worker);
    return result;
}

/* A blocked receiver is woken by a message, also when another thread has taken it from the card. */
Test(rdma_queue, receiver_is_woken)
{
    struct transport_returns returns = {0};

    open_link();
    block(receive_work, b);
    cr_expect(zero(int, link_send(a, "x", 1)));
    cr_expect(eq(int, unblocked(), 1));
    verbs_hold(VERBS_PASSIVE, VERBS_RECEIVED);
    block(receive_work, b);
    cr_expect(zero(int, link_send(a, "x", 1)));
    verbs_hold(VERBS_PASSIVE, 0);
    transport_reap(b, 0, &returns);
    cr_expect(eq(int, unblocked(), 1));
    close_link();
}

Test(rdma_queue, sender_without_credits_is_woken)
{
    open_link();
    fill(a);
    block(send_work, a);
    empty(b, RECEIVES_B - 1);
    cr_expect(zero(int, unblocked()));
    empty(b, 1);
    close_link();
}

/* One thread waits at the card, the others are woken by it. */
Test(rdma_queue, sender_and_receiver_wait_together)
{
    struct worker other;

    open_link();
    fill(a);
    worker_start(&other, receive_work, a);
    worker_await_sleep(&other);
    block(send_work, a);
    empty(b, RECEIVES_B - 1);
    worker_join(&worker);
    empty(b, 1);
    cr_expect(zero(int, link_send(b, "x", 1)));
    worker_join(&other);
    cr_expect(eq(int, result, 1));
    close_link();
}

/* What another thread has taken from the card is still said by the descriptor. */
Test(rdma_queue, descriptor_says_what_a_sender_has_found)
{
    char byte;

    open_link();
    fill(b);
    block(send_work, b);
    cr_expect(zero(int, link_send(a, "m", 1)));
    worker_await_sleep(&worker);
    cr_expect(is_readable(b));
    expect_received(b, "m", 1);
    worker_await_sleep(&worker);
    expect_nothing(b);
    transport_finish(a);
    while (transport_recv(b, &byte, 1, TRANSPORT_NOWAIT) != 0)
        sched_yield();
    worker_await_sleep(&worker);
    cr_expect(is_readable(b));
    empty(a, RECEIVES_A - 1);
    cr_expect(zero(int, unblocked()));
    empty(a, 1);
    close_link();
}

/* A signal is no reason to return. */
Test(rdma_queue, interrupted)
{
    open_link();
    result = 1;
    worker_start(&worker, receive_work, b);
    worker_interrupt(&worker);
    cr_expect(not(atomic_load(&worker.done)));
    cr_expect(zero(int, link_send(a, "xx", 2)));
    cr_expect(eq(int, unblocked(), 1));
    close_link();
}

Test(rdma_queue, wait_with_an_end)
{
    struct transport_wait wait = {.cancel_fd = eventfd(1, EFD_CLOEXEC), .deadline_ms = INT64_MAX};
    char byte;

    open_link();
    cr_expect(eq(int, transport_recv_all(b, &byte, 1, &wait), -ECANCELED));
    close(wait.cancel_fd);
    wait = (struct transport_wait){.cancel_fd = -1, .deadline_ms = clock_ms() + 1};
    cr_expect(eq(int, transport_recv_all(b, &byte, 1, &wait), -ETIMEDOUT));
    cr_expect(zero(int, link_send(a, "x", 1)));
    cr_expect(zero(int, transport_recv_all(b, &byte, 1, &wait)));
    close_link();
}

static void expect_over(struct transport *t, int code)
{
    struct transport_handed handed;
    char byte;

    cr_expect(eq(int, link_send(t, "x", 1), code));
    cr_expect(eq(int, (int)transport_try_send(t, "x", 1), code));
    cr_expect(eq(int, (int)transport_recv(t, &byte, 1, TRANSPORT_NOWAIT), code == -ECONNRESET ? 0 : code));
    cr_expect(eq(int, (int)transport_recv(t, &byte, 1, 0), code == -ECONNRESET ? 0 : code));
    cr_expect(is_readable(t));
    if (source) {
        cr_expect(eq(int, transport_place(t, &key, 0, source, 10, &handed), code));
        cr_expect(zero(u64, handed.ticket));
        cr_expect(eq(int, transport_place(t, &key, 0, "12345", 5, &handed), code));
        cr_expect(zero(u64, handed.ticket));
    }
    transport_finish(t);
}

/* Whatever a thread waits for, a shutdown ends it, and what was lent comes back. */
Test(rdma_queue, shutdown_while_blocked)
{
    static void (*const works[])(void *) = {receive_work, send_work, place_work};

    for (size_t i = 0; i < ARRAY_LENGTH(works); i++) {
        open_placing();
        if (works[i] == send_work)
            fill(a);
        verbs_hold(VERBS_ACTIVE, VERBS_WORK);
        block(works[i], works[i] == place_work ? (void *)&result : a);
        transport_shutdown(a);
        transport_shutdown(a);
        cr_expect(eq(int, unblocked(), works[i] == receive_work ? 0 : -ECONNRESET));
        expect_over(a, -ECONNRESET);
        if (works[i] == place_work)
            cr_expect(eq(u64, back(100000, 31), 32));
        verbs_hold(VERBS_ACTIVE, 0);
        if (works[i] == send_work)
            empty(b, RECEIVES_B - 1);
        cr_expect(zero(int, receive_end(b)));
        expect_over(b, -ECONNRESET);
        cr_expect(eq(uint, verbs_counts().disconnects, i + 1));
        close_placing();
    }
}

/* Also when the card says late that it has given them up, whichever end shuts down. */
Test(rdma_queue, lent_until_the_card_gives_it_up)
{
    for (int i = 0; i < 2; i++) {
        struct transport_returns returns = {0};
        open_placing();
        verbs_hold(VERBS_ACTIVE, VERBS_WORK | VERBS_SENT);
        uint64_t ticket = place(0, source, 1000, 1000);
        transport_shutdown(i ? b : a);
        cr_expect(zero(u64, back(1, 0)), "%d", i);
        if (i)
            expect_over(a, -ECONNRESET);
        cr_expect(zero(u64, back(0, 0)), "%d", i);
        verbs_hold(VERBS_ACTIVE, 0);
        transport_reap(a, 100000, &returns);
        cr_expect(eq(u64, returns.ticket, ticket));
        cr_expect(zero(u64, returns.bytes), "it has not arrived");
        cr_expect(zero(u64, returns.sends));
        close_placing();
    }
}

/* The peer closes: what it has sent arrives, and then it is the end. */
Test(rdma_queue, peer_closes)
{
    open_link();
    for (int i = 0; i < 5; i++)
        cr_expect(zero(int, link_send(a, "x", 1)));
    transport_close(a);
    empty(b, 5);
    cr_expect(zero(int, receive_end(b)));
    /* As with a socket, it is noticed when nothing more fits. */
    while (link_send(b, "x", 1) == 0)
        ;
    expect_over(b, -ECONNRESET);
    two.a = NULL;
    close_link();
}

/* Without a last word: as after kill -9. */
Test(rdma_queue, peer_is_gone)
{
    open_link();
    block(receive_work, b);
    cr_expect(zero(int, link_send(a, "x", 1)));
    cr_expect(eq(int, unblocked(), 1));
    block(receive_work, b);
    transport_shutdown(a);
    cr_expect(zero(int, unblocked()));
    expect_over(b, -ECONNRESET);
    close_link();
}

/* Nothing more comes from one end; the other one goes on, beyond what there were receives for. */
Test(rdma_queue, half_closed)
{
    open_link();
    cr_expect(zero(int, link_send(a, "last", 4)));
    block(receive_work, a);
    transport_finish(a);
    expect_received(b, "last", 4);
    cr_expect(zero(int, receive_end(b)));
    cr_expect(is_readable(b));
    cr_expect(zero(int, link_send(b, "x", 1)));
    cr_expect(eq(int, unblocked(), 1));
    for (int i = 0; i < 3 * RECEIVES_A; i++) {
        cr_expect(zero(int, link_send(b, "x", 1)));
        empty(a, 1);
    }
    close_link();
}

/* A close waits until what was sent has arrived. */
static void close_work(void *arg)
{
    transport_close(arg);
    result = 0;
}

Test(rdma_queue, close_waits_for_what_was_sent)
{
    open_link();
    verbs_hold(VERBS_ACTIVE, VERBS_WORK);
    cr_expect(zero(int, link_send(a, "hello", 5)));
    block(close_work, a);
    verbs_hold(VERBS_ACTIVE, 0);
    cr_expect(zero(int, unblocked()));
    expect_received(b, "hello", 5);
    cr_expect(zero(int, receive_end(b)));
    two.a = NULL;
    close_link();
}

/* Time passes between two looks at the clock: no wait becomes one without an end. */
Test(rdma_queue, clock_that_runs)
{
    open_placing();
    verbs_hold(VERBS_ACTIVE, VERBS_WORK);
    place(0, source, 10, 10);
    for (int wait_ms = 0; wait_ms < 8; wait_ms++) {
        shifted_clock_run(2);
        cr_expect(zero(u64, back(wait_ms, 0)));
    }
    shifted_clock_run(600);
    transport_close(a);
    shifted_clock_run(0);
    verbs_hold(VERBS_ACTIVE, 0);
    a = NULL;
    close_placing();
}

/* But not for ever. */
Test(rdma_queue, close_does_not_wait_for_ever)
{
    open_link();
    verbs_hold(VERBS_ACTIVE, VERBS_WORK);
    cr_expect(zero(int, link_send(a, "hello", 5)));
    transport_close(a);
    verbs_hold(VERBS_ACTIVE, 0);
    cr_expect(zero(int, receive_end(b)));
    two.a = NULL;
    close_link();
}

/*
 * What breaks
 */

/* What the card says of a failure, and what is made of it. */
Test(rdma_queue, broken)
{
    static const struct {
        enum ibv_wc_status status;
        int code;
    } cases[] = {
        {IBV_WC_RETRY_EXC_ERR, -ETIMEDOUT},
        {IBV_WC_RNR_RETRY_EXC_ERR, -ETIMEDOUT},
        {IBV_WC_RESP_TIMEOUT_ERR, -ETIMEDOUT},
        {IBV_WC_REM_ACCESS_ERR, -EREMOTEIO},
        {IBV_WC_REM_INV_REQ_ERR, -EREMOTEIO},
        {IBV_WC_REM_OP_ERR, -EREMOTEIO},
        {IBV_WC_WR_FLUSH_ERR, -ECONNRESET},
        {IBV_WC_LOC_PROT_ERR, -EFAULT},
        {IBV_WC_FATAL_ERR, -EIO},
    };

    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        open_placing();
        verbs_break(VERBS_ACTIVE, 3, cases[i].status);
        cr_expect(zero(int, link_send(a, "x", 1)));
        cr_expect(zero(int, link_send(a, "x", 1)));
        cr_expect(zero(int, link_send(a, "y", 1)), "it is not told yet");
        cr_expect(eq(int, (int)transport_try_send(a, "x", 1), cases[i].code), "%zu", i);
        expect_over(a, cases[i].code);
        empty(b, 2);
        close_placing();
    }
}

/* What was placed before the failure has arrived, what comes after it has not; all of it comes back. */
Test(rdma_queue, broken_between_writes)
{
    struct transport_returns returns = {0};

    open_placing();
    verbs_break(VERBS_ACTIVE, 3, IBV_WC_RETRY_EXC_ERR);
    verbs_hold(VERBS_ACTIVE, VERBS_WORK);
    for (int i = 0; i < 5; i++)
        place(1000 * i, source, 1000, 1000);
    verbs_hold(VERBS_ACTIVE, 0);
    transport_reap(a, 100000, &returns);
    cr_expect(eq(u64, returns.ticket, 5));
    cr_expect(eq(u64, returns.bytes, 2000));
    cr_expect(eq(u64, returns.sends, 2));
    expect_over(a, -ETIMEDOUT);
    close_placing();
}

/* Breaks at each work request of a stream: what arrives is what was sent, up to there. */
Test(rdma_queue, broken_anywhere)
{
    static char data[100000];

    pattern(data, sizeof(data), 1);
    for (unsigned n = 1; n < 30; n++) {
        unsigned sent = 0, got = 0;
        ssize_t ret;
        char byte[4000];
        open_link();
        verbs_shuffle_start(n);
        verbs_break(VERBS_ACTIVE, n, IBV_WC_RETRY_EXC_ERR);
        while (sent < 25 && link_send(a, data + 4000 * sent, 4000) == 0)
            sent++;
        transport_shutdown(a);
        while ((ret = transport_recv(b, byte, 4000, 0)) > 0) {
            cr_assert(zero(int, memcmp(data + got, byte, (size_t)ret)), "n %u, at %u", n, got);
            got += (unsigned)ret;
        }
        cr_expect(zero(int, (int)ret));
        cr_expect(le(uint, got, 4000 * (n - 1)));
        verbs_shuffle_stop();
        close_link();
    }
}

/* The library itself refuses. */
Test(rdma_queue, refused_by_the_library)
{
    struct transport_handed handed;

    open_placing();
    verbs_fail(VERBS_POST_SEND, 1, EINVAL);
    cr_expect(eq(int, link_send(a, "x", 1), -EINVAL));
    expect_over(a, -EINVAL);
    close_placing();

    open_placing();
    verbs_fail(VERBS_POST_SEND, 2, ENOMEM);
    cr_expect(eq(int, transport_place(a, &key, 0, source, 1000000, &handed), -EIO));
    cr_expect(eq(sz, handed.bytes, 1u << 19));
    cr_expect(ne(u64, handed.ticket, 0));
    cr_expect(eq(u64, back(1000, 0), handed.ticket));
    expect_over(a, -EIO);
    close_placing();

    open_placing();
    verbs_fail(VERBS_POST_SEND, 1, EINVAL);
    cr_expect(eq(int, transport_place(a, &key, 0, "12345", 5, &handed), -EINVAL));
    close_placing();

    open_link();
    cr_expect(zero(int, link_send(a, "x", 1)));
    verbs_fail(VERBS_POST_RECV, 1, EINVAL);
    empty(b, 1);
    cr_expect(eq(int, receive_end(b), -EIO));
    close_link();

    open_link();
    verbs_fail(VERBS_POLL_CQ, 1, EINVAL);
    cr_expect(eq(int, receive_end(b), -EIO));
    close_link();
}

/* A key that was withdrawn, is wrong, or of less than what is written. */
Test(rdma_queue, keys)
{
    struct transport_key another;

    for (int i = 0; i < 5; i++) {
        struct transport_handed handed;
        open_placing();
        memset(target, 7, TARGET);
        uint64_t offset = i == 1 ? TARGET - 50 : i == 2 ? UINT64_MAX - 10 : 0;
        another = key;
        if (i == 0) {
            transport_withdraw(b, &key);
        } else if (i == 3) {
            another.key++;
        } else if (i == 4) {
            transport_withdraw(b, &key);
            cr_assert(zero(int, transport_expose(b, target, 99, &key)));
            another = key;
        }
        cr_expect(zero(int, transport_place(a, &another, offset, source, 100, &handed)));
        cr_expect(eq(u64, back(100000, 0), handed.ticket));
        expect_over(a, -EREMOTEIO);
        for (size_t at = 0; at < TARGET; at += 4096)
            cr_assert(eq(int, target[at], 7));
        cr_expect(eq(int, target[99], 7));
        cr_expect(zero(int, receive_end(b)));
        cr_expect(eq(uint, verbs_counts().refused, i + 1));
        cr_expect(zero(uint, verbs_counts().writes));
        transport_withdraw(b, &key);
        link_close(&two);
        unmap();
        verbs_expect_nothing_left();
    }
}

/* A key is worth nothing to another group, and to no other one when its own has gone. */
Test(rdma_queue, keys_of_another_group)
{
    struct transport_handed handed;
    struct link third = {0};

    open_placing();
    third.listener = two.listener;
    rdma_link_connect(&third, "another group");
    cr_expect(zero(int, transport_place(third.a, &key, 0, source, 100, &handed)));
    cr_expect(eq(int, link_send(third.a, "x", 1), 0));
    cr_expect(eq(int, (int)transport_try_send(third.a, "x", 1), -EREMOTEIO));
    cr_expect(eq(uint, verbs_counts().refused, 1));
    transport_close(third.a);
    transport_close(third.b);
    rdma_link_connect(&third, "group");
    cr_expect(zero(int, transport_place(third.a, &key, 0, source, 100, &handed)));
    cr_expect(eq(uint, verbs_counts().refused, 1));
    cr_expect(eq(uint, verbs_counts().domains, 2), "one a group and end");
    transport_close(third.a);
    transport_close(third.b);
    place(0, source, 10, 10);
    transport_withdraw(b, &key);
    link_close(&two);
    unmap();
    verbs_expect_nothing_left();
}

/* The device goes: nothing completes any more, and all comes back at once. */
Test(rdma_queue, device_is_removed)
{
    open_placing();
    fill(b);
    verbs_hold(VERBS_ACTIVE, VERBS_WORK);
    place(0, source, 1000, 1000);
    place(0, source, 1000, 1000);
    block(receive_work, b);
    verbs_remove_device(0);
    cr_expect(eq(int, unblocked(), -ENODEV));
    struct transport_returns returns = {0};
    transport_reap(a, 1000000, &returns);
    cr_expect(eq(u64, returns.ticket, 2));
    cr_expect(zero(u64, returns.bytes));
    unsigned late = verbs_counts().late_notifications;
    expect_over(b, -ENODEV);
    empty(a, RECEIVES_A - 1);
    expect_over(a, -ENODEV);
    cr_expect(eq(uint, verbs_counts().late_notifications, late),
              "a device that is known to be gone is not asked");
    close_placing();
}

/* Nothing acknowledges what is sent: without a timeout it is waited for. */
Test(rdma_queue, link_is_down)
{
    open_placing();
    verbs_hold(VERBS_ACTIVE, VERBS_WORK);
    transport_set_timeout(a, 20);
    place(0, source, 10, 10);
    cr_expect(eq(int, receive_end(a), -ETIMEDOUT));
    cr_expect(eq(u64, back(100000, 0), 1));
    close_placing();
}

/* One that has nothing in flight is not given up: it waits until it is told something. */
Test(rdma_queue, idle_is_not_down)
{
    open_placing();
    transport_set_timeout(a, 1);
    transport_set_timeout(b, 1);
    uint64_t ticket = place(0, source, 10, 10);
    cr_expect(eq(u64, back(1000, 0), ticket));
    block(receive_work, a);
    shifted_clock_add(1000);
    worker_interrupt(&worker);
    cr_expect(zero(int, link_send(b, "x", 1)));
    cr_expect(eq(int, unblocked(), 1));
    close_placing();
}

/* What is sent goes away while it is copied. */
Test(rdma_queue, memory_that_goes)
{
    struct transport_handed handed;
    int fd = memfd_create("short", MFD_CLOEXEC);
    char *gone = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    open_placing();
    cr_expect(eq(int, link_send(a, gone, 100), -EFAULT));
    cr_expect(eq(int, (int)transport_try_send(a, gone, 100), -EFAULT));
    cr_expect(eq(int, transport_place(a, &key, 0, gone, 100, &handed), -EFAULT));
    cr_expect(zero(u64, handed.ticket));
    cr_expect(zero(int, link_send(a, "x", 1)));
    cr_expect(eq(int, (int)transport_recv(b, gone, 1, 0), -EFAULT));
    empty(b, 1);
    munmap(gone, 4096);
    close(fd);
    close_placing();
}

static void place_some(void *arg)
{
    for (size_t at = 0; at < TARGET; at += 1u << 20)
        place(at, source + at, 1u << 20, 1u << 20);
    (void)arg;
}

/* Another connection of the group is made while chunks are registered. */
Test(rdma_queue, one_more_of_a_group)
{
    struct link third = {0};
    struct worker placer;

    open_placing();
    third.listener = two.listener;
    worker_start(&placer, place_some, NULL);
    rdma_link_connect(&third, "group");
    worker_join(&placer);
    transport_close(third.a);
    transport_close(third.b);
    back(1000, 0);
    close_placing();
}

/*
 * Memory that may not be locked
 */

/* Chunks make room for one another; when there is none, payloads go through slots. */
Test(rdma_queue, little_lockable_memory)
{
    struct transport_figures figures = {0};

    open_placing();
    uint64_t have = verbs_counts().registered_bytes;
    verbs_limit(have + (2u << 20), 128);
    pattern(source, TARGET, 1);
    for (size_t at = 0; at < TARGET; at += 1u << 20) {
        uint64_t ticket = place(at, source + at, 1u << 20, 1u << 20);
        cr_expect(eq(u64, back(0, 0), ticket));
    }
    cr_expect(zero(int, memcmp(source, target, TARGET)));
    transport_figures(a, true, &figures);
    cr_expect(eq(u64, figures.registrations, 24));
    cr_expect(eq(u64, figures.evictions, 22));
    cr_expect(eq(u64, figures.registered_bytes, 2u << 20));
    close_placing();

    open_placing();
    verbs_limit(verbs_counts().registered_bytes, 128);
    struct transport_key more;
    cr_expect(eq(int, transport_expose(b, target, 4096, &more), -ENOMEM));
    pattern(source, TARGET, 2);
    place(0, source, 1000000, 0);
    cr_expect(zero(int, memcmp(source, target, 1000000)));
    close_placing();
}

/* A chunk that makes room is not one that the card still reads. */
Test(rdma_queue, no_chunk_goes_that_is_read)
{
    open_placing();
    verbs_limit(verbs_counts().registered_bytes + (1u << 20), 128);
    pattern(source, TARGET, 1);
    verbs_hold(VERBS_ACTIVE, VERBS_WORK);
    place(0, source, 1000, 1000);
    place(1000, source + (1u << 20), 1000, 0);
    verbs_hold(VERBS_ACTIVE, 0);
    back(1000, 0);
    cr_expect(zero(int, memcmp(source, target, 1000)));
    cr_expect(zero(int, memcmp(source + (1u << 20), target + 1000, 1000)));
    place(1000, source + (1u << 20), 1000, 1000);
    close_placing();
}

/*
 * Hostile peers
 */

static struct transport_listener *listener;
static struct stranger stranger;

static struct transport *join(uint32_t receives, uint32_t size)
{
    listener = link_listen(RDMA_PLACE);
    return stranger_join(&stranger, listener, receives, size);
}

static void leave(struct transport *t)
{
    stranger_receive(&stranger, 1000); /* for a last word */
    transport_close(t);
    stranger_free(&stranger);
    transport_listener_close(listener);
    verbs_expect_nothing_left();
}

Test(rdma_queue, stranger_that_behaves)
{
    struct transport *t = join(8, 300);
    char data[1000];

    cr_expect(eq(u32, le32toh(stranger.greeting.receives), RECEIVES_B));
    cr_expect(eq(u32, le32toh(stranger.greeting.receive_size), MESSAGE));
    memset(stranger.memory + STRANGER_MEMORY / 2, 'q', STRANGER_MEMORY / 2);
    stranger_send(&stranger, 3, false, 0);
    cr_expect(eq(int, stranger_next(&stranger).status, IBV_WC_SUCCESS));
    expect_received(t, "qqq", 3);
    /* No message is larger than a receive of the peer's. */
    for (unsigned i = 0; i < 4; i++)
        stranger_receive(&stranger, i);
    pattern(data, sizeof(data), 1);
    cr_expect(zero(int, link_send(t, data, sizeof(data))));
    for (unsigned i = 0; i < 4; i++) {
        struct ibv_wc wc = stranger_next(&stranger);
        cr_expect(eq(int, wc.status, IBV_WC_SUCCESS));
        cr_expect(eq(u32, wc.byte_len, i < 3 ? 300 : 100));
        cr_expect(eq(u32, ntohl(wc.imm_data), i == 0 ? 1 : 0), "the receive that is free again, once");
    }
    leave(t);
}

/* A message that no receive holds ends the connection, and writes nowhere. */
Test(rdma_queue, stranger_with_too_large_a_message)
{
    struct transport *t = join(8, 300);

    stranger_send(&stranger, MESSAGE, true, 0);
    char *data = malloc(MESSAGE);
    cr_expect(zero(int, transport_recv_all(t, data, MESSAGE, NULL)));
    free(data);
    stranger_send(&stranger, MESSAGE + 1, true, 0);
    cr_expect(eq(int, receive_end(t), -EIO));
    leave(t);
}

/* It sends more than there are receives for: its own card waits. */
Test(rdma_queue, stranger_without_restraint)
{
    struct transport *t = join(8, 300);

    for (int i = 0; i < 100; i++)
        stranger_send(&stranger, 1, true, 0);
    cr_expect(eq(uint, verbs_counts().messages, RECEIVES_B));
    for (int i = 0; i < 100; i++)
        expect_received(t, "\0", 1);
    leave(t);
}

/* It promises receives that it does not have: our card waits, until the timeout. */
Test(rdma_queue, stranger_that_promises)
{
    struct transport *t = join(65535, 300);

    transport_set_timeout(t, 20);
    for (int i = 0; i < 8; i++)
        cr_expect(zero(int, link_send(t, "x", 1)));
    cr_expect(eq(int, receive_end(t), -ETIMEDOUT));
    cr_expect(lt(uint, 0, verbs_counts().unready));
    leave(t);
}

/*
 * What says nothing, or what cannot be, ends the connection: one such message after the other would keep a
 * thread with the connection's lock for as long as the peer likes.
 */
Test(rdma_queue, stranger_that_says_what_cannot_be)
{
    static const struct {
        uint32_t len, imm;
        unsigned sent; /* messages of ours before */
        bool fits;
    } cases[] = {
        {0, 0, 0, false},
        {0, 1, 0, false},
        {1, 1, 0, false},
        {0, IMM_ALL, 5, false},
        {0, 4, 3, false},
        {1, IMM_ALL, 3, false},
        {0, 3, 3, true},
        {1, 3, 3, true},
        {0, IMM_END, 0, true},
        {5, IMM_END, 0, true},
        {0, IMM_END | 4, 3, false},
    };

    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        struct transport *t = join(8, 300);
        for (unsigned k = 0; k < cases[i].sent; k++) {
            stranger_receive(&stranger, k);
            cr_expect(zero(int, link_send(t, "x", 1)));
        }
        stranger_send(&stranger, cases[i].len, true, cases[i].imm);
        char byte;
        transport_recv(t, &byte, 1, TRANSPORT_NOWAIT);
        stranger_receive(&stranger, 100);
        cr_expect(eq(int, link_send(t, "x", 1), cases[i].fits ? 0 : -EPROTO), "%zu", i);
        leave(t);
    }
}

/* After its end it says which receives are free, and nothing else. */
Test(rdma_queue, stranger_that_goes_on_after_its_end)
{
    static const uint32_t ends[] = {IMM_END, 0};
    struct transport *t = join(8, 300);

    for (unsigned k = 0; k < 3; k++) {
        stranger_receive(&stranger, k);
        cr_expect(zero(int, link_send(t, "x", 1)));
    }
    stranger_send(&stranger, 0, true, IMM_END);
    cr_expect(zero(int, receive_end(t)));
    stranger_send(&stranger, 0, true, 3);
    cr_expect(zero(int, receive_end(t)));
    stranger_receive(&stranger, 3);
    cr_expect(zero(int, link_send(t, "x", 1)));
    leave(t);
    for (size_t i = 0; i < ARRAY_LENGTH(ends); i++) {
        t = join(8, 300);
        stranger_send(&stranger, 0, true, IMM_END);
        cr_expect(zero(int, receive_end(t)));
        stranger_send(&stranger, ends[i] ? 0 : 1, true, ends[i]);
        cr_expect(eq(int, (int)transport_try_send(t, "x", 1), -EPROTO), "%zu", i);
        leave(t);
    }
}

/* Both a word that nothing more comes and the close after it are of one end, and said once. */
Test(rdma_queue, end_is_said_once)
{
    open_link();
    transport_finish(a);
    transport_finish(a);
    cr_expect(eq(uint, verbs_counts().messages, 1));
    cr_expect(zero(int, receive_end(b)));
    transport_close(a);
    cr_expect(eq(uint, verbs_counts().messages, 1));
    two.a = NULL;
    close_link();
}
