/* SPDX-License-Identifier: Apache-2.0 */
/* A transport that places, in one process; see placer.h. */
#include "placer.h"
#include "check.h"
#include "cleanup.h"
#include "dummy.h"
#include "xxh3.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* What may be written. */
struct key {
    uint32_t number;
    uint8_t *base;
    size_t len;
    unsigned in_flight; /* payloads whose tickets are not back */
    struct key *next;
};

/* A payload that is not back. */
struct flight {
    uint64_t ticket;
    const void *buf; /* lent */
    void *copy;      /* or this one, which is ours */
    size_t len;
    uint32_t key;
    uint64_t offset, check;
    bool stored;
    struct flight *next;
};

struct placing_end {
    struct transport *below;
    struct flight *first, **last; /* placer_lock guards these */
    uint64_t given, back;         /* tickets */
    bool shut;
    unsigned asked;
};

static pthread_mutex_t placer_lock = PTHREAD_MUTEX_INITIALIZER; /* guards all of it */
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;       /* what the test wants, or a connection is shut */
static bool over; /* a connection was shut down: its keys may go as they are */
static struct placer state;
static struct key *keys;
static uint32_t last_key;

const bool transport_has_rdma = true;

int transport_memory_add(void *base, size_t len)
{
    (void)base, (void)len;
    return 0;
}

void transport_memory_remove(void *base)
{
    (void)base;
}

void placer_begin(void)
{
    SCOPED_LOCK(&placer_lock);
    state = (struct placer){.most = 1000000};
    over = false;
}

struct placer placer_get(void)
{
    SCOPED_LOCK(&placer_lock);
    return state;
}

void placer_set(const struct placer *want)
{
    SCOPED_LOCK(&placer_lock);
    state.hold = want->hold;
    state.copied = want->copied;
    state.free_buffers = want->free_buffers;
    state.most = want->most;
    state.break_at = want->break_at;
    pthread_cond_broadcast(&changed);
}

/* All of what follows, up to the operations, is called with the lock held. */

static struct key *find_key(uint32_t number)
{
    struct key *key = keys;

    while (key && key->number != number)
        key = key->next;
    return key;
}

static const void *bytes_of(const struct flight *flight)
{
    return flight->copy ? flight->copy : flight->buf;
}

static int store(struct flight *flight)
{
    struct key *key = find_key(flight->key);

    flight->stored = true;
    if (!key || flight->offset > key->len || flight->len > key->len - flight->offset) {
        state.violations++;
        return -EREMOTEIO;
    }
    flight->check = XXH3_64bits(bytes_of(flight), flight->len);
    memcpy(key->base + flight->offset, bytes_of(flight), flight->len);
    state.placed++;
    state.placed_bytes += flight->len;
    return 0;
}

/* What has been placed is there before what is sent now. */
static int store_all(struct placing_end *end)
{
    int ret = 0;

    for (struct flight *flight = end->first; flight && ret == 0; flight = flight->next) {
        if (!flight->stored)
            ret = store(flight);
    }
    return ret;
}

static void give_back(struct placing_end *end)
{
    struct flight *flight = end->first;
    struct key *key = find_key(flight->key);

    if (flight->stored && !state.free_buffers && XXH3_64bits(bytes_of(flight), flight->len) != flight->check)
        state.violations++;
    if (key)
        key->in_flight--;
    end->back = flight->ticket;
    end->first = flight->next;
    if (!end->first)
        end->last = &end->first;
    free(flight->copy);
    free(flight);
}

/*
 * The operations
 */

static int placing_send(struct transport *t, const struct iovec *iov, int n)
{
    struct placing_end *end = t->own;

    pthread_mutex_lock(&placer_lock);
    int ret = store_all(end);
    pthread_mutex_unlock(&placer_lock);
    if (ret == 0)
        return transport_send(end->below, iov, n);
    transport_shutdown(t);
    return ret;
}

static int placing_place(struct transport *t, const struct transport_key *key, uint64_t offset, const void *buf,
                         size_t len, struct transport_handed *handed)
{
    struct placing_end *end = t->own;

    *handed = (struct transport_handed){0};
    SCOPED_LOCK(&placer_lock);
    if (++state.places == state.break_at || end->shut)
        return -ECONNRESET;
    struct key *target = find_key(key->key);
    if (!target || key->address != (uintptr_t)target->base) {
        state.violations++;
        return -EREMOTEIO;
    }
    struct flight *flight = calloc(1, sizeof(*flight));
    cr_assert(ne(ptr, flight, NULL));
    *flight = (struct flight){.ticket = ++end->given, .buf = buf, .len = len, .key = key->key, .offset = offset};
    if (state.copied) {
        flight->copy = malloc(len);
        cr_assert(ne(ptr, flight->copy, NULL));
        memcpy(flight->copy, buf, len);
    }
    target->in_flight++;
    *end->last = flight;
    end->last = &flight->next;
    *handed = (struct transport_handed){.bytes = state.copied ? 0 : len, .ticket = flight->ticket};
    return 0;
}

static void placing_reap(struct transport *t, int wait_ms, struct transport_returns *returns)
{
    struct placing_end *end = t->own;

    pthread_mutex_lock(&placer_lock);
    if (state.hold && !end->shut) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += wait_ms * 1000000L;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        pthread_cond_timedwait(&changed, &placer_lock, &until);
    }
    if (end->shut) {
        while (end->first)
            give_back(end);
    } else if (!state.hold && end->first && ++end->asked % 3 == 0) {
        if (!end->first->stored)
            store(end->first);
        give_back(end);
    }
    returns->ticket = end->back;
    pthread_mutex_unlock(&placer_lock);
    sched_yield();
}

static int placing_expose(struct transport *t, void *base, size_t len, struct transport_key *key)
{
    (void)t;
    SCOPED_LOCK(&placer_lock);
    if (state.keys >= state.most) {
        state.refusals++;
        return -ENOMEM;
    }
    struct key *made = calloc(1, sizeof(*made));
    cr_assert(ne(ptr, made, NULL));
    *made = (struct key){.number = ++last_key, .base = base, .len = len, .next = keys};
    keys = made;
    state.keys++;
    state.exposes++;
    *key = (struct transport_key){.address = (uintptr_t)base, .key = made->number};
    return 0;
}

static void placing_withdraw(struct transport *t, const struct transport_key *key)
{
    struct key **at = &keys;

    (void)t;
    SCOPED_LOCK(&placer_lock);
    while (*at && (*at)->number != key->key)
        at = &(*at)->next;
    cr_assert(ne(ptr, *at, NULL), "a key is withdrawn that is not there");
    struct key *gone = *at;
    *at = gone->next;
    state.violations += gone->in_flight > 0 && !over;
    state.keys--;
    free(gone);
}

static ssize_t placing_try_send(struct transport *t, const void *buf, size_t len)
{
    struct placing_end *end = t->own;

    pthread_mutex_lock(&placer_lock);
    store_all(end);
    pthread_mutex_unlock(&placer_lock);
    return transport_try_send(end->below, buf, len);
}

static ssize_t placing_recv(struct transport *t, void *buf, size_t len, int flags)
{
    return transport_recv(((struct placing_end *)t->own)->below, buf, len, flags);
}

static int placing_pollfd(struct transport *t)
{
    return transport_pollfd(((struct placing_end *)t->own)->below);
}

static void placing_set_timeout(struct transport *t, int timeout_ms)
{
    transport_set_timeout(((struct placing_end *)t->own)->below, timeout_ms);
}

static void placing_shutdown(struct transport *t)
{
    struct placing_end *end = t->own;

    pthread_mutex_lock(&placer_lock);
    end->shut = over = true;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&placer_lock);
    transport_shutdown(end->below);
}

static void placing_finish(struct transport *t)
{
    transport_finish(((struct placing_end *)t->own)->below);
}

static void placing_close(struct transport *t)
{
    struct placing_end *end = t->own;

    pthread_mutex_lock(&placer_lock);
    while (end->first)
        give_back(end);
    pthread_mutex_unlock(&placer_lock);
    transport_close(end->below);
    free(end);
    free(t);
}

static const struct transport_ops placing_ops = {
    .name = "placing",
    .send = placing_send,
    .send_pipe = dummy_send_pipe,
    .zerocopy = dummy_zerocopy,
    .send_zerocopy = dummy_send_zerocopy,
    .place = placing_place,
    .expose = placing_expose,
    .withdraw = placing_withdraw,
    .figures = dummy_figures,
    .reap = placing_reap,
    .try_send = placing_try_send,
    .recv = placing_recv,
    .recv_parts = dummy_recv_parts,
    .recv_fd = dummy_recv_fd,
    .pollfd = placing_pollfd,
    .set_timeout = placing_set_timeout,
    .shutdown = placing_shutdown,
    .finish = placing_finish,
    .explain = dummy_explain,
    .close = placing_close,
};

void placer_wrap(struct transport *t)
{
    struct placing_end *end = calloc(1, sizeof(*end));

    cr_assert(ne(ptr, end, NULL));
    end->last = &end->first;
    cr_assert(zero(int, transport_upgrade(t, &placing_ops, end, &end->below)));
    t->traits = (struct transport_traits){.copy_max = 4096, .places = true};
}

/*
 * As a family: all connections but the main one, whose index only the connecting end knows. So the other end
 * wraps all of them; nobody places on a main channel.
 */

struct placing_listener {
    struct transport_listener base;
    struct transport_listener *below;
};

static int placing_accept(struct transport_listener *l, struct transport **out)
{
    int ret = transport_accept(((struct placing_listener *)l)->below, out);

    if (ret == 0)
        placer_wrap(*out);
    return ret;
}

static int placing_listener_pollfd(struct transport_listener *l)
{
    return transport_listener_pollfd(((struct placing_listener *)l)->below);
}

static const char *placing_listener_address(struct transport_listener *l)
{
    static char address[URI_MAX + 8]; /* one listener in a process */

    snprintf(address, sizeof(address), "rdma%s",
             strchr(transport_listener_address(((struct placing_listener *)l)->below), ':'));
    return address;
}

static void placing_listener_close(struct transport_listener *l)
{
    transport_listener_close(((struct placing_listener *)l)->below);
    free(l);
}

static const struct transport_listener_ops placing_listener_ops = {.accept = placing_accept,
                                                                   .pollfd = placing_listener_pollfd,
                                                                   .address = placing_listener_address,
                                                                   .close = placing_listener_close};

static int placing_listen(const struct uri *uri, struct transport_listener **out, struct error *err)
{
    struct placing_listener *l = calloc(1, sizeof(*l));

    cr_assert(ne(ptr, l, NULL));
    l->base.ops = &placing_listener_ops;
    if (transport_tcp.listen(uri, &l->below, err) < 0) {
        free(l);
        return -EIO;
    }
    *out = &l->base;
    return 0;
}

static int placing_connect(const struct uri *uri, unsigned index, const struct transport_group *group,
                           const struct transport_wait *wait, struct transport **out, struct error *err)
{
    if (transport_tcp.connect(uri, index, group, wait, out, err) < 0)
        return -EIO;
    if (index > 0)
        placer_wrap(*out);
    return 0;
}

const struct transport_family transport_rdma = {.connect = placing_connect, .listen = placing_listen};
