/* SPDX-License-Identifier: Apache-2.0 */
/* Connections to the fuzzer; see lane.h. */
#include "dummy.h"
#include "lane.h"
#include "dummy.h"
#include "cleanup.h"
#include "guard.h"
#include "input.h"
#include "memory.h"
#include "wire.h"

#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <sys/eventfd.h>

/* What the driver may write. */
#define KEYS_MAX 64
struct lane_key {
    uint8_t *base; /* NULL: there is none */
    size_t len;
    uint64_t offset; /* in the RAM, once the destination has said so */
    bool told;
};
static pthread_mutex_t keys_lock = PTHREAD_MUTEX_INITIALIZER; /* guards them */
static struct lane_key keys[KEYS_MAX];

static int lane_expose(struct transport *t, void *base, size_t len, struct transport_key *key)
{
    (void)t;
    SCOPED_LOCK(&keys_lock);
    for (unsigned i = 0; i < KEYS_MAX; i++) {
        if (keys[i].base)
            continue;
        keys[i] = (struct lane_key){.base = base, .len = len};
        *key = (struct transport_key){.address = (uintptr_t)base, .key = i + 1};
        return 0;
    }
    return -ENOMEM;
}

static void lane_withdraw(struct transport *t, const struct transport_key *key)
{
    (void)t;
    SCOPED_LOCK(&keys_lock);
    MUST(key->key && key->key <= KEYS_MAX && (uintptr_t)keys[key->key - 1].base == key->address);
    /* It still is there to be written, to the last moment. */
    memset(keys[key->key - 1].base, keys[key->key - 1].base[0], 1);
    keys[key->key - 1].base = NULL;
}

/* The destination says what became of a request. */
static void hear_exposed(const uint8_t *body, size_t len)
{
    struct wire_reader r = {.p = body, .left = len};
    uint64_t offset = wire_read_u64(&r), address = wire_read_u64(&r);
    uint32_t key = wire_read_u32(&r), cause = wire_read_u32(&r);

    MUST(wire_read_done(&r));
    MUST(cause ? !key && !address : key && key <= KEYS_MAX);
    if (cause)
        return;
    SCOPED_LOCK(&keys_lock);
    struct lane_key *k = &keys[key - 1];
    if ((uintptr_t)k->base != address)
        return; /* withdrawn already, since it is over */
    k->offset = offset;
    k->told = true;
}

uint8_t *lane_exposed(uint64_t offset, size_t len)
{
    SCOPED_LOCK(&keys_lock);
    for (struct lane_key *k = keys; k < keys + KEYS_MAX; k++) {
        if (k->base && k->told && offset >= k->offset && len <= k->len && offset - k->offset <= k->len - len)
            return k->base + (offset - k->offset);
    }
    return NULL;
}

bool lane_exposure(unsigned n, uint64_t *offset, uint64_t *len)
{
    SCOPED_LOCK(&keys_lock);
    for (struct lane_key *k = keys; k < keys + KEYS_MAX; k++) {
        if (!k->base || !k->told || n-- > 0)
            continue;
        *offset = k->offset;
        *len = k->len;
        return true;
    }
    return false;
}

unsigned lane_keys(void)
{
    unsigned count = 0;

    SCOPED_LOCK(&keys_lock);
    for (struct lane_key *k = keys; k < keys + KEYS_MAX; k++)
        count += k->base != NULL;
    return count;
}

/* Called with the lock held. */
static void update(struct lane *lane)
{
    bool readable = lane->at < lane->have || lane->eof || lane->shut || lane->turns < lane->wanted;
    eventfd_t drained;

    if (readable && !lane->readable)
        eventfd_write(lane->fd, 1);
    if (!readable && lane->readable)
        eventfd_read(lane->fd, &drained);
    lane->readable = readable;
    pthread_cond_broadcast(&lane->moved);
}

/* What the destination says has to be right, whatever it was told. The answer to the hello goes this way. */
static int lane_send(struct transport *t, const struct iovec *iov, int n)
{
    struct lane *lane = (struct lane *)t;
    struct hello_reply reply;
    struct error err = {0};

    MUST(n == 1 && iov[0].iov_len == sizeof(struct wire_hello_reply));
    MUST(wire_hello_reply_decode(iov[0].iov_base, &reply, &err) == 0);
    SCOPED_LOCK(&lane->lock);
    return lane->shut ? -EPIPE : 0;
}

/* And messages this way, in any pieces. */
static ssize_t lane_try_send(struct transport *t, const void *buf, size_t len)
{
    struct lane *lane = (struct lane *)t;
    struct wire_message header;
    struct message message;
    struct error err = {0};

    SCOPED_LOCK(&lane->lock);
    if (lane->shut)
        return -EPIPE;
    /* The answer to the hello comes first, all at once. */
    if (!lane->greeted) {
        MUST(len == sizeof(struct wire_hello_reply));
        lane->greeted = true;
        return (ssize_t)len;
    }
    lane->full = lane->busy && !lane->full;
    if (lane->full)
        return -EAGAIN;
    if (lane->base.traits.places) {
        uint64_t count;
        MUST(len == sizeof(count));
        memcpy(&count, buf, sizeof(count));
        MUST(le64toh(count) > lane->told);
        lane->told = le64toh(count);
        return (ssize_t)len;
    }
    if (lane->slice && len > lane->slice)
        len = lane->slice;
    MUST(lane->heard + len <= sizeof(lane->said));
    memcpy(lane->said + lane->heard, buf, len);
    lane->heard += len;
    while (lane->heard >= sizeof(header)) {
        memcpy(&header, lane->said, sizeof(header));
        MUST(wire_message_decode(&header, &message, &err) == 0);
        size_t whole = sizeof(header) + message.length;
        MUST(whole <= 1024);
        if (lane->heard < whole)
            break;
        MUST(wire_message_check(&header, lane->said + sizeof(header), message.length));
        if (message.type == WIRE_EXPOSED)
            hear_exposed(lane->said + sizeof(header), message.length);
        memmove(lane->said, lane->said + whole, lane->heard - whole);
        lane->heard -= whole;
    }
    return (ssize_t)len;
}

struct copy {
    void *to;
    const void *from;
    size_t len;
};

static void copy(void *arg)
{
    struct copy *c = arg;

    memcpy(c->to, c->from, c->len);
}

/* As recv(2) does it: where there is no memory any more it says so. */
static ssize_t lane_recv(struct transport *t, void *buf, size_t len, int flags)
{
    struct lane *lane = (struct lane *)t;

    MUST(len > 0);
    SCOPED_LOCK(&lane->lock);
    for (;;) {
        if (lane->at < lane->have && !lane->shut) {
            size_t n = lane->have - lane->at;
            if (n > len)
                n = len;
            if (lane->slice && n > lane->slice)
                n = lane->slice;
            struct copy c = {buf, lane->bytes + lane->at, n};
            int ret = guard_call(copy, &c);
            lane->at += n;
            update(lane);
            return ret < 0 ? ret : (ssize_t)n;
        }
        if (lane->eof || lane->shut) {
            lane->over = true;
            update(lane);
            return 0;
        }
        if (flags & TRANSPORT_NOWAIT) {
            lane->turns++;
            update(lane);
            return -EAGAIN;
        }
        lane->waiting = true;
        pthread_cond_broadcast(&lane->moved);
        pthread_cond_wait(&lane->moved, &lane->lock);
        lane->waiting = false;
    }
}

static int lane_pollfd(struct transport *t)
{
    return ((struct lane *)t)->fd;
}

static void lane_set_timeout(struct transport *t, int timeout_ms)
{
    (void)t;
    (void)timeout_ms;
}

static void lane_shutdown(struct transport *t)
{
    struct lane *lane = (struct lane *)t;

    SCOPED_LOCK(&lane->lock);
    lane->shut = true;
    update(lane);
}

static void lane_finish(struct transport *t)
{
    (void)t;
}

static void lane_close(struct transport *t)
{
    struct lane *lane = (struct lane *)t;

    SCOPED_LOCK(&lane->lock);
    MUST(!lane->closed);
    lane->closed = lane->shut = true;
    update(lane);
}

static const struct transport_ops lane_ops = {
    .name = "lane",
    .send = lane_send,
    .try_send = lane_try_send,
    .recv = lane_recv,
    .recv_parts = dummy_recv_parts,
    .expose = lane_expose,
    .withdraw = lane_withdraw,
    .pollfd = lane_pollfd,
    .set_timeout = lane_set_timeout,
    .shutdown = lane_shutdown,
    .finish = lane_finish,
    .explain = dummy_explain,
    .close = lane_close,
};

void lane_init(struct lane *lane, size_t slice, bool busy)
{
    *lane = (struct lane){.base = {.ops = &lane_ops, .peer = "the fuzzer"}, .slice = slice, .busy = busy};
    lane->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    MUST(lane->fd >= 0);
    pthread_mutex_init(&lane->lock, NULL);
    pthread_cond_init(&lane->moved, NULL);
}

void lane_places(struct lane *lane)
{
    lane->base.traits.places = true;
}

void lane_fini(struct lane *lane)
{
    MUST(lane->closed);
    close(lane->fd);
    free(lane->bytes);
    pthread_cond_destroy(&lane->moved);
    pthread_mutex_destroy(&lane->lock);
}

void lane_put(struct lane *lane, const void *bytes, size_t len)
{
    SCOPED_LOCK(&lane->lock);
    if (!len || lane->shut || lane->eof)
        return;
    if (lane->at == lane->have)
        lane->at = lane->have = 0;
    if (lane->have + len > lane->room) {
        lane->room = 2 * (lane->have + len);
        lane->bytes = realloc(lane->bytes, lane->room);
        MUST(lane->bytes);
    }
    memcpy(lane->bytes + lane->have, bytes, len);
    lane->have += len;
    update(lane);
}

void lane_end(struct lane *lane)
{
    SCOPED_LOCK(&lane->lock);
    lane->eof = true;
    update(lane);
}

void lane_settle(struct lane *lane)
{
    SCOPED_LOCK(&lane->lock);
    lane->wanted = lane->turns + 2; /* after the first one it may still be busy with what it has taken */
    update(lane);
    for (;;) {
        bool taken = lane->at == lane->have;
        if (lane->shut || lane->over || (taken && (lane->waiting || lane->turns >= lane->wanted)))
            break;
        pthread_cond_wait(&lane->moved, &lane->lock);
    }
    lane->wanted = lane->turns;
    update(lane);
}

void lane_wait_closed(struct lane *lane)
{
    SCOPED_LOCK(&lane->lock);
    while (!lane->closed)
        pthread_cond_wait(&lane->moved, &lane->lock);
}
