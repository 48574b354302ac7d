/* SPDX-License-Identifier: Apache-2.0 */
/* Connections to the fuzzer; see lane.h. */
#include "lane.h"
#include "cleanup.h"
#include "guard.h"
#include "input.h"
#include "memory.h"
#include "wire.h"

#include <errno.h>
#include <poll.h>
#include <sys/eventfd.h>

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
    .pollfd = lane_pollfd,
    .set_timeout = lane_set_timeout,
    .shutdown = lane_shutdown,
    .finish = lane_finish,
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
