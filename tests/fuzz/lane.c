/* SPDX-License-Identifier: Apache-2.0 */
/* Connections to the fuzzer; see lane.h. */
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

static bool has_ended(const struct lane *lane)
{
    return lane->shut || lane->taken >= lane->end;
}

/* Called with the lock held. */
static void update(struct lane *lane)
{
    bool readable = lane->at < lane->have || has_ended(lane) || lane->turns < lane->wanted;
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

static void hear(struct lane *lane, const struct message *message, const uint8_t *body)
{
    MUST(message->received <= lane->spoken);
    lane->heard += message->type != WIRE_PING;
    lane->heard_of[message->type]++;
    if (message->type == WIRE_EXPOSED)
        hear_exposed(body, message->length);
}

/* Messages, in any pieces. */
static ssize_t take_messages(struct lane *lane, const void *buf, size_t len)
{
    struct wire_message header;
    struct message message;
    struct error err = {0};

    if (len > sizeof(lane->said) - lane->said_length)
        len = sizeof(lane->said) - lane->said_length;
    memcpy(lane->said + lane->said_length, buf, len);
    lane->said_length += len;
    while (lane->said_length >= sizeof(header)) {
        memcpy(&header, lane->said, sizeof(header));
        MUST(wire_message_decode(&header, &message, &err) == 0);
        size_t whole = sizeof(header) + message.length;
        MUST(whole <= 1024);
        if (lane->said_length < whole)
            break;
        MUST(wire_message_check(&header, lane->said + sizeof(header), message.length));
        hear(lane, &message, lane->said + sizeof(header));
        memmove(lane->said, lane->said + whole, lane->said_length - whole);
        lane->said_length -= whole;
    }
    return (ssize_t)len;
}

/* Counts of packets, which are not told twice. */
static ssize_t take_counts(struct lane *lane, const void *buf, size_t len)
{
    uint64_t count;

    MUST(lane->said_length + len <= sizeof(count));
    /* What is told by RDMA is one piece. */
    if (lane->busy && len > 3 && !lane->base.traits.places)
        len = 3;
    memcpy(lane->said + lane->said_length, buf, len);
    lane->said_length += len;
    if (lane->said_length < sizeof(count))
        return (ssize_t)len;
    memcpy(&count, lane->said, sizeof(count));
    MUST(le64toh(count) > lane->told && le64toh(count) <= lane->spoken);
    lane->told = le64toh(count);
    lane->said_length = 0;
    return (ssize_t)len;
}

static ssize_t lane_try_send(struct transport *t, const void *buf, size_t len)
{
    struct lane *lane = (struct lane *)t;
    struct error err = {0};

    SCOPED_LOCK(&lane->lock);
    if (lane->shut || lane->deaf)
        return -EPIPE;
    /* The answer to the hello comes first, all at once. */
    if (!lane->greeted) {
        MUST(len == sizeof(struct wire_hello_reply));
        MUST(wire_hello_reply_decode(buf, &lane->reply, &err) == 0);
        lane->greeted = true;
        pthread_cond_broadcast(&lane->moved);
        return (ssize_t)len;
    }
    lane->full = lane->busy && !lane->full;
    if (lane->full)
        return -EAGAIN;
    if (lane->base.traits.places)
        MUST(len == WIRE_APPLIED_SIZE);
    if (lane->slice && len > lane->slice)
        len = lane->slice;
    if (lane->mute)
        return (ssize_t)len;
    return lane->resumes || lane->base.traits.places ? take_counts(lane, buf, len)
                                                     : take_messages(lane, buf, len);
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

/* Called with the lock held, which is given up for a moment. */
static ssize_t tell_end(struct lane *lane)
{
    void (*at_end)(void *arg) = lane->at_end;

    lane->at_end = NULL;
    if (at_end) {
        void *arg = lane->arg;
        pthread_mutex_unlock(&lane->lock);
        at_end(arg);
        pthread_mutex_lock(&lane->lock);
    }
    lane->over = true;
    update(lane);
    return lane->shut ? 0 : lane->end_code;
}

/* As recv(2) does it: where there is no memory any more it says so. */
static ssize_t lane_recv(struct transport *t, void *buf, size_t len, int flags)
{
    struct lane *lane = (struct lane *)t;

    MUST(len > 0);
    SCOPED_LOCK(&lane->lock);
    for (;;) {
        if (lane->at < lane->have && !has_ended(lane)) {
            size_t n = lane->have - lane->at;
            if (n > lane->end - lane->taken)
                n = lane->end - lane->taken;
            if (n > len)
                n = len;
            if (lane->slice && n > lane->slice)
                n = lane->slice;
            struct copy c = {buf, lane->bytes + lane->at, n};
            int ret = guard_call(copy, &c);
            lane->at += ret < 0 ? 0 : n;
            lane->taken += ret < 0 ? 0 : n;
            update(lane);
            return ret < 0 ? ret : (ssize_t)n;
        }
        if (has_ended(lane))
            return tell_end(lane);
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
    void (*at_shutdown)(void *arg);

    pthread_mutex_lock(&lane->lock);
    lane->shut = true;
    at_shutdown = lane->at_shutdown;
    lane->at_shutdown = NULL;
    void *arg = lane->arg;
    update(lane);
    pthread_mutex_unlock(&lane->lock);
    if (at_shutdown)
        at_shutdown(arg);
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
    .recv_fd = dummy_recv_fd,
    .expose = lane_expose,
    .withdraw = lane_withdraw,
    .pollfd = lane_pollfd,
    .set_timeout = lane_set_timeout,
    .shutdown = lane_shutdown,
    .finish = lane_finish,
    .explain = dummy_explain,
    .close = lane_close,
};

struct lane *lane_new(size_t slice, bool busy)
{
    struct lane *lane = calloc(1, sizeof(*lane));

    MUST(lane);
    lane->base = (struct transport){.ops = &lane_ops, .peer = "the fuzzer"};
    lane->end = UINT64_MAX;
    lane->base.traits.receives_to_file = !slice;
    lane->slice = slice;
    lane->busy = busy;
    lane->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    MUST(lane->fd >= 0);
    pthread_mutex_init(&lane->lock, NULL);
    pthread_cond_init(&lane->moved, NULL);
    return lane;
}

void lane_places(struct lane *lane)
{
    lane->base.traits.places = true;
}

void lane_free(struct lane *lane)
{
    if (!lane)
        return;
    MUST(lane->closed);
    close(lane->fd);
    free(lane->bytes);
    pthread_cond_destroy(&lane->moved);
    pthread_mutex_destroy(&lane->lock);
    free(lane);
}

void lane_put(struct lane *lane, const void *bytes, size_t len)
{
    SCOPED_LOCK(&lane->lock);
    bool arrives = !lane->shut && lane->taken + (lane->have - lane->at) < lane->end;
    if (!len || (!arrives && !lane->resumes))
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
    if (lane->end > lane->taken + (lane->have - lane->at))
        lane->end = lane->taken + (lane->have - lane->at);
    update(lane);
}

void lane_cut(struct lane *lane, size_t after, int code)
{
    SCOPED_LOCK(&lane->lock);
    if (lane->end <= lane->taken + after)
        return;
    lane->end = lane->taken + after;
    lane->end_code = code;
    update(lane);
}

bool lane_is_cut(struct lane *lane)
{
    SCOPED_LOCK(&lane->lock);
    return lane->shut || lane->end < UINT64_MAX;
}

bool lane_is_over(struct lane *lane)
{
    SCOPED_LOCK(&lane->lock);
    return lane->over;
}

bool lane_hears(struct lane *lane)
{
    SCOPED_LOCK(&lane->lock);
    return !lane->shut && !lane->mute && !lane->deaf && lane->end == UINT64_MAX;
}

void lane_mute(struct lane *lane)
{
    SCOPED_LOCK(&lane->lock);
    lane->mute = true;
}

void lane_deafen(struct lane *lane)
{
    SCOPED_LOCK(&lane->lock);
    lane->deaf = true;
}

void lane_succeed(struct lane *lane, struct lane *old, uint64_t heard)
{
    SCOPED_LOCK(&old->lock);
    MUST(old->mute);
    lane->resumes = old->resumes;
    lane->told = old->told;
    lane->heard = heard;
    lane->spoken = old->spoken;
    memcpy(lane->heard_of, old->heard_of, sizeof(lane->heard_of));
}

void lane_carry_over(struct lane *lane, struct lane *old, size_t skip)
{
    pthread_mutex_lock(&old->lock);
    size_t left = old->have - old->at;
    const uint8_t *rest = left ? old->bytes + old->at : NULL;
    uint64_t taken = old->taken;
    pthread_mutex_unlock(&old->lock);
    pthread_mutex_lock(&lane->lock);
    lane->taken += taken;
    pthread_mutex_unlock(&lane->lock);
    if (left > skip)
        lane_put(lane, rest + skip, left - skip);
}

bool lane_await_welcome(struct lane *lane, struct hello_reply *reply)
{
    SCOPED_LOCK(&lane->lock);
    while (!lane->greeted && !lane->shut)
        pthread_cond_wait(&lane->moved, &lane->lock);
    *reply = lane->reply;
    return lane->greeted;
}

uint64_t lane_taken(struct lane *lane)
{
    SCOPED_LOCK(&lane->lock);
    return lane->taken;
}

uint64_t lane_heard(struct lane *lane)
{
    SCOPED_LOCK(&lane->lock);
    return lane->heard;
}

void lane_speak(struct lane *lane, uint64_t n)
{
    SCOPED_LOCK(&lane->lock);
    if (n > lane->spoken)
        lane->spoken = n;
}

bool lane_ambush(struct lane *lane, void (*at_shutdown)(void *arg), void (*at_end)(void *arg), void *arg)
{
    SCOPED_LOCK(&lane->lock);
    bool was_set = lane->at_shutdown || lane->at_end;
    lane->at_shutdown = at_shutdown;
    lane->at_end = at_end;
    lane->arg = arg;
    return was_set;
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
