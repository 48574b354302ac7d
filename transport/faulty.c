/* SPDX-License-Identifier: Apache-2.0 */
/*
 * faulty:OPTIONS:URI, a layer on another transport that breaks it on purpose; for
 * tests. See struct uri_faults for what it can do.
 *
 * Sending and receiving can happen at the same time, so the count of bytes that
 * both share is an atomic: a cut at byte N lets exactly N bytes through.
 *
 * It neither splices nor sends without a copy: it counts, cuts and breaks bytes, for
 * which it must have them.
 */
#include "transport.h"
#include "cleanup.h"
#include "dummy.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#define TRY_MIN 8 /* bytes that faulty_try_send() moves at a time, at least */

struct faulty_transport {
    struct transport *inner;
    struct uri_faults faults;
    _Atomic uint64_t moved; /* bytes sent and received; relaxed, it only counts */
    uint64_t sent;          /* the sender's */
};

static struct transport *inner_of(struct transport *t)
{
    struct faulty_transport *f = t->own;

    return f->inner;
}

/* How many of @len bytes may still move before the cut; claims them. */
static size_t claim(struct faulty_transport *f, size_t len)
{
    if (!f->faults.cut)
        return len;
    uint64_t before = atomic_load_explicit(&f->moved, memory_order_relaxed);
    size_t granted;
    do {
        uint64_t left = f->faults.cut > before ? f->faults.cut - before : 0;
        granted = len < left ? len : (size_t)left;
    } while (!atomic_compare_exchange_weak_explicit(&f->moved, &before, before + granted,
                                                    memory_order_relaxed, memory_order_relaxed));
    return granted;
}

static int send_slice(struct faulty_transport *f, char *buf, size_t len)
{
    size_t granted = claim(f, len);
    struct iovec iov = {buf, granted};
    char broken;
    int ret = 0;

    if (f->faults.corrupt > f->sent && f->faults.corrupt <= f->sent + granted) {
        struct iovec parts[3];
        size_t at = (size_t)(f->faults.corrupt - f->sent - 1);
        broken = (char)(buf[at] ^ 0x10);
        parts[0] = (struct iovec){buf, at};
        parts[1] = (struct iovec){&broken, 1};
        parts[2] = (struct iovec){buf + at + 1, granted - at - 1};
        ret = transport_send(f->inner, parts, 3);
    } else if (granted > 0) {
        ret = transport_send(f->inner, &iov, 1);
    }
    f->sent += granted;
    if (granted < len) {
        transport_shutdown(f->inner);
        return -ECONNRESET;
    }
    return ret;
}

static int faulty_send(struct transport *t, const struct iovec *iov, int n)
{
    struct faulty_transport *f = t->own;

    if (f->faults.delay_ms) {
        struct timespec delay = {f->faults.delay_ms / 1000, (long)(f->faults.delay_ms % 1000) * 1000000};
        nanosleep(&delay, NULL);
    }
    for (int i = 0; i < n; i++) {
        char *p = iov[i].iov_base;
        size_t left = iov[i].iov_len;
        while (left > 0) {
            size_t slice = f->faults.slice && left > f->faults.slice ? f->faults.slice : left;
            int ret = send_slice(f, p, slice);
            if (ret < 0)
                return ret;
            p += slice;
            left -= slice;
        }
    }
    return 0;
}

/* No delay here: who uses this must not be blocked. */
static ssize_t faulty_try_send(struct transport *t, const void *buf, size_t len)
{
    struct faulty_transport *f = t->own;
    char byte;

    /* Single bytes take so much of a socket's buffer that the first message on a connection would not fit. */
    size_t slice = f->faults.slice < TRY_MIN ? TRY_MIN : f->faults.slice;
    if (f->faults.slice && len > slice)
        len = slice;
    /* The byte to be broken goes alone. */
    if (f->faults.corrupt > f->sent + 1 && f->faults.corrupt <= f->sent + len)
        len = (size_t)(f->faults.corrupt - f->sent - 1);
    else if (f->faults.corrupt == f->sent + 1 && len > 0) {
        byte = (char)(*(const char *)buf ^ 0x10);
        buf = &byte;
        len = 1;
    }
    if (f->faults.cut) {
        uint64_t moved = atomic_load_explicit(&f->moved, memory_order_relaxed);
        uint64_t left = f->faults.cut > moved ? f->faults.cut - moved : 0;
        if (left == 0) {
            transport_shutdown(f->inner);
            return -ECONNRESET;
        }
        if (len > left)
            len = (size_t)left;
    }
    ssize_t n = transport_try_send(f->inner, buf, len);
    if (n > 0) {
        claim(f, (size_t)n);
        f->sent += (uint64_t)n;
    }
    return n;
}

static ssize_t faulty_recv(struct transport *t, void *buf, size_t len, int flags)
{
    struct faulty_transport *f = t->own;

    if (f->faults.slice && len > f->faults.slice)
        len = f->faults.slice;
    ssize_t n = transport_recv(f->inner, buf, len, flags);
    if (n <= 0)
        return n;
    size_t granted = claim(f, (size_t)n);
    if (granted < (size_t)n)
        transport_shutdown(f->inner);
    return granted ? (ssize_t)granted : -ECONNRESET;
}

static int faulty_pollfd(struct transport *t)
{
    return transport_pollfd(inner_of(t));
}

static void faulty_set_timeout(struct transport *t, int timeout_ms)
{
    transport_set_timeout(inner_of(t), timeout_ms);
}

static void faulty_shutdown(struct transport *t)
{
    transport_shutdown(inner_of(t));
}

static void faulty_finish(struct transport *t)
{
    transport_finish(inner_of(t));
}

static void faulty_explain(struct transport *t, struct error *err)
{
    transport_explain(inner_of(t), err);
}

static void faulty_close(struct transport *t)
{
    struct faulty_transport *f = t->own;

    transport_close(f->inner);
    free(f);
    free(t);
}

static const struct transport_ops faulty_ops = {
    .name = "faulty",
    .send = faulty_send,
    .send_pipe = dummy_send_pipe,
    .zerocopy = dummy_zerocopy,
    .send_zerocopy = dummy_send_zerocopy,
    .place = dummy_place,
    .expose = dummy_expose,
    .withdraw = dummy_withdraw,
    .pin = dummy_pin,
    .figures = dummy_figures,
    .reap = dummy_reap,
    .try_send = faulty_try_send,
    .recv = faulty_recv,
    .recv_parts = dummy_recv_parts,
    .recv_fd = dummy_recv_fd,
    .pollfd = faulty_pollfd,
    .set_timeout = faulty_set_timeout,
    .shutdown = faulty_shutdown,
    .finish = faulty_finish,
    .explain = faulty_explain,
    .close = faulty_close,
};

/* Breaks a connection, unless the faults are not for it. On failure it is closed. */
static int break_connection(struct transport *t, const struct uri_faults *faults, unsigned index)
{
    if (faults->only >= 0 && (unsigned)faults->only != index)
        return 0;
    struct faulty_transport *f = calloc(1, sizeof(*f));
    if (!f || transport_upgrade(t, &faulty_ops, f, &f->inner) < 0) {
        free(f);
        transport_close(t);
        return -ENOMEM;
    }
    f->faults = *faults;
    return 0;
}

static struct uri inner_uri(const struct uri *uri)
{
    struct uri inner = *uri;

    inner.scheme = uri->inner;
    /* faulty:OPTIONS:URI */
    const char *text = strchr(strchr(uri->text, ':') + 1, ':') + 1;
    memcpy(inner.text, text, strlen(text) + 1);
    return inner;
}

static int faulty_connect(const struct uri *uri, unsigned index, const struct transport_group *group,
                          const struct transport_wait *wait, struct transport **out, struct error *err)
{
    struct uri below = inner_uri(uri);
    struct transport *t;

    if (transport_connect(&below, index, group, wait, &t, err) < 0)
        return -EIO;
    if (break_connection(t, &uri->faults, index) < 0)
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    *out = t;
    return 0;
}

struct faulty_listener {
    struct transport_listener base;
    struct transport_listener *inner;
    struct uri_faults faults;
    unsigned accepted; /* the accepting thread's */
};

static int faulty_accept(struct transport_listener *l, struct transport **out)
{
    struct faulty_listener *f = (struct faulty_listener *)l;
    struct transport *t;
    int ret = transport_accept(f->inner, &t);

    if (ret == 0)
        ret = break_connection(t, &f->faults, f->accepted++);
    if (ret == 0)
        *out = t;
    return ret;
}

static int faulty_listener_pollfd(struct transport_listener *l)
{
    return transport_listener_pollfd(((struct faulty_listener *)l)->inner);
}

static const char *faulty_listener_address(struct transport_listener *l)
{
    return transport_listener_address(((struct faulty_listener *)l)->inner);
}

static void faulty_listener_close(struct transport_listener *l)
{
    transport_listener_close(((struct faulty_listener *)l)->inner);
    free(l);
}

static const struct transport_listener_ops faulty_listener_ops = {
    .accept = faulty_accept,
    .pollfd = faulty_listener_pollfd,
    .address = faulty_listener_address,
    .close = faulty_listener_close,
};

static int faulty_listen(const struct uri *uri, struct transport_listener **out, struct error *err)
{
    struct uri below = inner_uri(uri);
    struct faulty_listener *f = calloc(1, sizeof(*f));

    if (!f)
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    f->base.ops = &faulty_listener_ops;
    f->faults = uri->faults;
    if (transport_listen(&below, &f->inner, err) < 0) {
        free(f);
        return -EIO;
    }
    *out = &f->base;
    return 0;
}

const struct transport_family transport_faulty = {
    .connect = faulty_connect,
    .listen = faulty_listen,
};
