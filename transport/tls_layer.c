/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The layer of TLS on a connected stream; see tls.h.
 *
 * Sending: bytes are gathered into full records, several of which go in one call of the transport below. A
 * large buffer begins a record of its own, so that the other end, which asks for it in one piece, has it
 * decrypted to its place. What transport_try_send() could not send stays here as a record; the bytes in it
 * count as sent when the last byte of it is.
 *
 * Receiving: as much as there is comes into a buffer, and the records in it are decrypted to where they are
 * asked for, unless they are longer than that: then what is too much stays here. So there can be bytes that
 * no descriptor tells of, which is why whoever polls receives until there is nothing more.
 *
 * Both can happen at the same time, in two threads, and share nothing but one flag. The memory of either can
 * go away (guard.h), at which nothing more is sent or received. Nothing is sent without a copy, and no pipe
 * is spliced: all of it has to be encrypted.
 *
 * Where the kernel has TLS it does all that in one direction or in both, and bytes pass through; only records
 * that carry no data are looked at here. A socket that it receives from cannot be given up to us any more,
 * and the key cannot change: see tls_kernel.h.
 */
#include "tls.h"
#include "clock.h"
#include "dummy.h"
#include "guard.h"
#include "tls_handshake.h"
#include "tls_kernel.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define RECORDS        8 /* in one call */
#define BUFFER         (RECORDS * (TLS_CONTENT_MAX + TLS_OVERHEAD))
#define UPDATE_SIZE    (5 + TLS_OVERHEAD)
#define PLAIN          (TLS_CONTENT_MAX + 256)
#define IDLE_MAX       32 /* records without data, one after the other */
#define TICKET         4  /* messages of the handshake that can come later */
#define KEY_UPDATE     24
#define MESSAGE_HEADER 4

static_assert(BUFFER + PLAIN + TLS_CONTENT_MAX + TLS_OVERHEAD + UPDATE_SIZE + 1024 <= TLS_MEMORY,
              "what is charged");

enum stage {
    SHAKING,
    OPEN,
    TALKS_PLAIN, /* the peer speaks no TLS; a server alone */
    FAILED,
};

/* One thread at a time. */
struct sending {
    bool by_kernel; /* and nothing else of this is used but the code; constant once it is open */
    struct tls_key *key;
    uint8_t *buffer;
    size_t size;
    size_t start, end; /* records that are not sent */
    size_t claimed;    /* bytes of the caller's that they carry, which nobody has been told of */
    int code;          /* not 0: nothing more is sent */
};

/* One thread at a time. */
struct receiving {
    bool by_kernel; /* and the key and the buffers are not used; constant once it is open */
    struct tls_key *key;
    uint8_t *buffer, *plain;
    size_t start, end;
    size_t plain_start, plain_end;
    unsigned idle;
    bool ended;
    int code; /* not 0: nothing more is received */
};

struct tls_transport {
    struct transport *below;
    /* Changes in the handshake, before there are two threads. */
    enum stage stage;
    struct tls_shake *shake; /* NULL when it is over */
    bool kernel;             /* it can */
    bool keeps_key;          /* the peer cannot follow another one */
    struct sending sending;
    struct receiving receiving;
    struct error why;       /* the receiving thread's */
    atomic_bool update_due; /* the peer wants to see another key; it only hints, relaxed */
};

/*
 * Sending
 */

static int send_records(struct tls_transport *tls)
{
    struct sending *s = &tls->sending;
    struct iovec iov = {s->buffer + s->start, s->end - s->start};

    if (s->start < s->end)
        s->code = transport_send(tls->below, &iov, 1);
    s->start = s->end = 0;
    return s->code;
}

/* Makes a record behind those that are in the buffer. */
static int add_record(struct tls_transport *tls, enum tls_content type, const struct iovec *iov, int n,
                      size_t len)
{
    struct sending *s = &tls->sending;
    ssize_t size = tls_seal(s->key, type, iov, n, len, s->buffer + s->end);

    if (size < 0)
        s->code = (int)size;
    else
        s->end += (size_t)size;
    return s->code;
}

/* The next record has another key when this one has served. */
static int renew_key(struct tls_transport *tls)
{
    uint8_t update[] = {KEY_UPDATE, 0, 0, 1, 0};
    struct iovec iov = {update, sizeof(update)};
    struct sending *s = &tls->sending;

    if (tls->keeps_key)
        return 0;
    if (tls_key_records(s->key) < tls_key_life &&
        !atomic_load_explicit(&tls->update_due, memory_order_relaxed))
        return 0;
    atomic_store_explicit(&tls->update_due, false, memory_order_relaxed);
    if (add_record(tls, TLS_HANDSHAKE, &iov, 1, sizeof(update)) == 0)
        s->code = tls_key_update(s->key);
    return s->code;
}

/* Whether anything can be sent: there is a buffer for so many records, and a change of the key. */
static int ready_to_send(struct tls_transport *tls, size_t records)
{
    struct sending *s = &tls->sending;
    size_t size = records * (TLS_CONTENT_MAX + TLS_OVERHEAD) + UPDATE_SIZE;

    if (tls->stage != OPEN)
        return -ENOTCONN;
    if (s->code || s->by_kernel || s->size >= size)
        return s->code;
    uint8_t *buffer = realloc(s->buffer, size);
    if (!buffer)
        return -ENOMEM;
    s->buffer = buffer;
    s->size = size;
    return 0;
}

/* Where a sender is in its buffers. */
struct cursor {
    const struct iovec *iov;
    int n;
    size_t done; /* bytes of the first one */
};

static void skip(struct cursor *c, size_t len)
{
    c->done += len;
    while (c->n > 0 && c->done >= c->iov->iov_len) {
        c->done -= c->iov->iov_len;
        c->iov++;
        c->n--;
    }
}

/* The content of the next record, at most as many parts as there are. Return: its bytes. */
static size_t gather(struct cursor *c, struct iovec *parts, int *n)
{
    size_t len = 0;

    for (*n = 0; c->n > 0 && len < TLS_CONTENT_MAX; ++*n) {
        size_t left = c->iov->iov_len - c->done;
        if (len && !c->done && left >= TLS_CONTENT_MAX)
            break;
        size_t take = left < TLS_CONTENT_MAX - len ? left : TLS_CONTENT_MAX - len;
        parts[*n] = (struct iovec){(char *)c->iov->iov_base + c->done, take};
        len += take;
        skip(c, take);
    }
    return len;
}

static int tls_send(struct transport *t, const struct iovec *iov, int n)
{
    struct tls_transport *tls = t->own;
    struct sending *s = &tls->sending;
    struct cursor cursor = {.iov = iov, .n = n};
    int ret = ready_to_send(tls, RECORDS);

    if (ret == 0 && s->by_kernel)
        return s->code = transport_send(tls->below, iov, n);
    if (ret == 0)
        ret = send_records(tls);
    skip(&cursor, s->claimed);
    s->claimed = 0;
    while (ret == 0 && cursor.n > 0) {
        while (ret == 0 && cursor.n > 0 && s->end + TLS_CONTENT_MAX + TLS_OVERHEAD <= BUFFER) {
            struct iovec parts[TRANSPORT_IOV_MAX];
            int count;
            ret = renew_key(tls);
            size_t len = gather(&cursor, parts, &count);
            if (ret == 0)
                ret = add_record(tls, TLS_DATA, parts, count, len);
        }
        if (ret == 0)
            ret = send_records(tls);
    }
    return ret;
}

/* Sends what there is room for. 0: all of it; -EAGAIN; another negative errno. */
static int try_records(struct tls_transport *tls)
{
    struct sending *s = &tls->sending;

    while (s->start < s->end) {
        ssize_t n = transport_try_send(tls->below, s->buffer + s->start, s->end - s->start);
        if (n == -EAGAIN)
            return -EAGAIN;
        if (n < 0)
            return s->code = (int)n;
        s->start += (size_t)n;
    }
    s->start = s->end = 0;
    return 0;
}

static ssize_t tls_try_send(struct transport *t, const void *buf, size_t len)
{
    struct tls_transport *tls = t->own;
    struct sending *s = &tls->sending;

    if (tls->stage == TALKS_PLAIN)
        return transport_try_send(tls->below, buf, len);
    /* The alert has told the peer all that it is to know. */
    if (tls->stage == FAILED)
        return (ssize_t)len;
    int ret = ready_to_send(tls, 1);
    if (ret == 0 && s->by_kernel)
        return transport_try_send(tls->below, buf, len);
    if (ret == 0 && s->start == s->end) {
        struct iovec iov = {(void *)(uintptr_t)buf, len < TLS_CONTENT_MAX ? len : TLS_CONTENT_MAX};
        ret = renew_key(tls);
        if (ret == 0)
            ret = add_record(tls, TLS_DATA, &iov, 1, iov.iov_len);
        s->claimed = iov.iov_len;
    }
    if (ret == 0)
        ret = try_records(tls);
    if (ret < 0)
        return ret;
    size_t sent = s->claimed;
    s->claimed = 0;
    return (ssize_t)sent;
}

static void tls_finish(struct transport *t)
{
    struct tls_transport *tls = t->own;
    uint8_t goodbye[] = {1, 0}; /* a warning: close_notify */
    struct iovec iov = {goodbye, sizeof(goodbye)};

    int ret = ready_to_send(tls, 1);
    if (ret == 0 && tls->sending.by_kernel)
        tls_kernel_send(transport_pollfd(tls->below), TLS_ALERT, goodbye, sizeof(goodbye));
    else if (ret == 0 && try_records(tls) == 0 && add_record(tls, TLS_ALERT, &iov, 1, sizeof(goodbye)) == 0)
        try_records(tls);
    tls->sending.code = tls->sending.code ? tls->sending.code : -EPIPE;
    transport_finish(tls->below);
}

/*
 * Receiving
 */

static ssize_t tls_recv(struct transport *t, void *buf, size_t len, int flags);

static int fail(struct tls_transport *tls, int code, const char *why)
{
    if (why)
        error_set(&tls->why, CAUSE_PROTOCOL, "%s", why);
    return tls->receiving.code = code;
}

/* Messages of the handshake that come after it. */
static int take_messages(struct tls_transport *tls, const uint8_t *p, size_t len)
{
    struct receiving *r = &tls->receiving;

    while (len >= MESSAGE_HEADER) {
        size_t size = (size_t)p[1] << 16 | (size_t)p[2] << 8 | p[3];
        if (size > len - MESSAGE_HEADER)
            break;
        bool updates = *p == KEY_UPDATE && size == 1 && p[MESSAGE_HEADER] <= 1 && len == MESSAGE_HEADER + 1;
        if (*p != TICKET && !updates)
            break;
        if (updates && r->by_kernel)
            return fail(tls, -EPROTO, "the peer has changed its key, which the kernel's TLS cannot follow");
        if (updates && p[MESSAGE_HEADER])
            atomic_store_explicit(&tls->update_due, true, memory_order_relaxed);
        if (updates && tls_key_update(r->key) < 0)
            return fail(tls, -EIO, NULL);
        p += MESSAGE_HEADER + size;
        len -= MESSAGE_HEADER + size;
    }
    return len ? fail(tls, -EPROTO, "a message of TLS that does not belong here") : 0;
}

/* A record that carries no data for the caller. */
static int take_other(struct tls_transport *tls, enum tls_content type, const uint8_t *content, size_t len)
{
    struct receiving *r = &tls->receiving;

    if (++r->idle > IDLE_MAX)
        return fail(tls, -EPROTO, "too many TLS records that carry nothing");
    if (type == TLS_DATA)
        return 0;
    if (type == TLS_HANDSHAKE && len > 0)
        return take_messages(tls, content, len);
    if (type != TLS_ALERT || len != 2)
        return fail(tls, -EPROTO, "a TLS record of an unknown kind");
    if (tls_read_alert(content, &tls->why) < 0)
        return fail(tls, -EPROTO, NULL);
    r->ended = true;
    return 0;
}

/* The size of the record that has arrived whole; 0: none has. */
static ssize_t whole_record(struct tls_transport *tls)
{
    const struct receiving *r = &tls->receiving;

    if (r->end - r->start < TLS_HEADER)
        return 0;
    ssize_t size = tls_record_size(r->buffer + r->start);
    if (size < 0)
        return fail(tls, -EPROTO, "what arrives is not TLS");
    return (size_t)size <= r->end - r->start ? size : 0;
}

/* Opens a record at @out. The count of data bytes, which can be 0, or a negative errno. */
static ssize_t open_at(struct tls_transport *tls, size_t size, uint8_t *out)
{
    struct receiving *r = &tls->receiving;
    enum tls_content type;
    ssize_t n = tls_open(r->key, r->buffer + r->start, size, out, &type);

    /* It can be opened somewhere else. */
    if (n == -EFAULT)
        return n;
    r->start += size;
    if (n < 0)
        return fail(tls, (int)n, n == -EBADMSG ? "a TLS record arrived damaged" : NULL);
    if (type != TLS_DATA || n == 0)
        return take_other(tls, type, out, (size_t)n);
    r->idle = 0;
    return n;
}

/* Hands out what is decrypted already. */
static ssize_t take_plain(struct tls_transport *tls, void *buf, size_t len)
{
    struct receiving *r = &tls->receiving;
    size_t left = r->plain_end - r->plain_start;

    len = left < len ? left : len;
    if (guard_copy(buf, r->plain + r->plain_start, len) < 0)
        return -EFAULT;
    r->plain_start += len;
    return (ssize_t)len;
}

/*
 * Opens the records that are there, as far as they fit. A record that does not is opened alone, and handed
 * out in parts. The count; 0: a whole record has to arrive first; a negative errno, though not if there is a
 * count.
 */
static ssize_t open_records(struct tls_transport *tls, uint8_t *buf, size_t len)
{
    struct receiving *r = &tls->receiving;
    size_t done = 0;
    ssize_t n = 0;

    if (r->plain_start < r->plain_end)
        return take_plain(tls, buf, len);
    while (!r->ended && n >= 0 && done < len) {
        ssize_t size = whole_record(tls);
        if (size <= 0) {
            n = size;
            break;
        }
        if (tls_room((size_t)size) <= len - done) {
            n = open_at(tls, (size_t)size, buf + done);
            done += n > 0 ? (size_t)n : 0;
            continue;
        }
        if (done)
            break;
        n = open_at(tls, (size_t)size, r->plain);
        r->plain_start = 0;
        r->plain_end = n > 0 ? (size_t)n : 0;
        if (n > 0)
            return take_plain(tls, buf, len);
    }
    return done ? (ssize_t)done : n;
}

/* Receives more. The count, 0 at the end, or a negative errno. */
static ssize_t fill(struct tls_transport *tls, int flags)
{
    struct receiving *r = &tls->receiving;

    memmove(r->buffer, r->buffer + r->start, r->end - r->start);
    r->end -= r->start;
    r->start = 0;
    ssize_t n = transport_recv(tls->below, r->buffer + r->end, BUFFER - r->end, flags);
    if (n > 0)
        r->end += (size_t)n;
    return n;
}

/* A record that carries no data is next. 0: it has been taken; a negative errno. */
static int take_from_kernel(struct tls_transport *tls)
{
    uint8_t content[PLAIN];
    enum tls_content type;
    ssize_t n = tls_kernel_receive(transport_pollfd(tls->below), &type, content, sizeof(content));

    if (n < 0)
        return n == -EAGAIN || n == -EINTR ? 0 : (int)n;
    if (n == 0 || type == TLS_DATA)
        return -EIO;
    return take_other(tls, type, content, (size_t)n);
}

/* What the kernel gives. The count, 0 at the end, or a negative errno. @n: 1: @flags count */
static ssize_t receive_parts(struct tls_transport *tls, const struct iovec *iov, int n, int flags)
{
    struct receiving *r = &tls->receiving;
    ssize_t got = -EIO;

    while (got == -EIO && !r->code && !r->ended) {
        got = n == 1 ? transport_recv(tls->below, iov->iov_base, iov->iov_len, flags)
                     : transport_recv_parts(tls->below, iov, n);
        if (got == -EIO && !r->code)
            r->code = take_from_kernel(tls);
    }
    if (got == -EBADMSG)
        fail(tls, -EBADMSG, "a TLS record arrived damaged, or the memory that it was for has gone");
    if (got > 0)
        r->idle = 0;
    return r->code ? r->code : r->ended ? 0 : got;
}

static ssize_t receive(struct tls_transport *tls, void *buf, size_t len, int flags)
{
    struct receiving *r = &tls->receiving;
    ssize_t n = 1;

    if (r->by_kernel)
        return receive_parts(tls, &(struct iovec){buf, len}, 1, flags);
    if (!r->buffer && !(r->buffer = malloc(BUFFER)))
        return -ENOMEM;
    if (!r->plain && !(r->plain = malloc(PLAIN)))
        return -ENOMEM;
    while (n > 0 && !r->code && !r->ended) {
        ssize_t got = open_records(tls, buf, len);
        if (got > 0 || got == -EFAULT)
            return got;
        if (!r->code && !r->ended)
            n = fill(tls, flags);
    }
    return r->code ? r->code : r->ended ? 0 : n;
}

/* The first part waits for bytes, the others take what is there. */
static ssize_t tls_recv_parts(struct transport *t, const struct iovec *iov, int n)
{
    struct tls_transport *tls = t->own;
    ssize_t sum = 0;

    if (tls->stage != OPEN)
        return tls_recv(t, iov[0].iov_base, iov[0].iov_len, 0);
    if (tls->receiving.by_kernel)
        return receive_parts(tls, iov, n, 0);
    for (int i = 0; i < n; i++) {
        for (size_t done = 0; done < iov[i].iov_len;) {
            uint8_t *to = (uint8_t *)iov[i].iov_base + done;
            size_t room = iov[i].iov_len - done;
            ssize_t got = sum ? open_records(tls, to, room) : receive(tls, to, room, 0);
            if (got <= 0)
                return sum ? sum : got;
            done += (size_t)got;
            sum += got;
        }
    }
    return sum;
}

/*
 * The handshake
 */

/* Has the kernel do what it can. */
static void hand_to_kernel(struct tls_transport *tls, const struct tls_agreed *agreed)
{
    int fd = transport_pollfd(tls->below);

    tls->sending.by_kernel = tls_kernel_take(fd, agreed->to_peer) == 0;
    /* It may be that only one of them is there. */
    tls->receiving.by_kernel = !agreed->renews_keys && tls_kernel_take(fd, agreed->from_peer) == 0;
}

/* A step of it. 0: it is over, and well; -EAGAIN, -ENOBUFS: tls_shake_step(); another negative errno. */
static int shake(struct transport *t)
{
    struct tls_transport *tls = t->own;
    struct tls_agreed agreed;
    int ret = tls_shake_step(tls->shake, &agreed, &tls->why);

    if (ret == -EAGAIN || ret == -ENOBUFS)
        return ret;
    tls_shake_free(tls->shake);
    tls->shake = NULL;
    tls->stage = ret == 0 ? OPEN : ret == -EPFNOSUPPORT ? TALKS_PLAIN : FAILED;
    if (ret < 0)
        return ret;
    t->identity = agreed.identity;
    t->traits.seals = false;
    tls->sending.key = agreed.to_peer;
    tls->receiving.key = agreed.from_peer;
    tls->keeps_key = agreed.keeps_keys;
    if (tls->kernel)
        hand_to_kernel(tls, &agreed);
    t->identity.by_kernel = tls->sending.by_kernel && tls->receiving.by_kernel;
    if (agreed.let_in)
        return 0;
    error_set(&tls->why, CAUSE_DENIED, "'%.128s' is not let in here", t->identity.name);
    return tls->receiving.code = -EACCES;
}

/* Until it is over. @wait: NULL: for as long as it takes */
static int shake_hands(struct transport *t, const struct transport_wait *wait)
{
    struct tls_transport *tls = t->own;
    int ret;

    while ((ret = shake(t)) == -EAGAIN || ret == -ENOBUFS) {
        struct pollfd fds[2] = {
            {.fd = transport_pollfd(tls->below), .events = ret == -EAGAIN ? POLLIN : POLLOUT},
            {.fd = wait ? wait->cancel_fd : -1, .events = POLLIN},
        };
        int ready = poll(fds, 2, wait ? clock_poll_timeout(wait->deadline_ms) : -1);
        if (ready < 0 && errno != EINTR)
            return -errno;
        if (fds[1].revents)
            return -ECANCELED;
        if (ready == 0 && wait && clock_ms() >= wait->deadline_ms)
            return -ETIMEDOUT;
    }
    return ret;
}

static ssize_t tls_recv(struct transport *t, void *buf, size_t len, int flags)
{
    struct tls_transport *tls = t->own;

    if (tls->stage == SHAKING) {
        int ret = flags & TRANSPORT_NOWAIT ? shake(t) : shake_hands(t, NULL);
        if (ret == -ENOBUFS) {
            error_set(&tls->why, CAUSE_RESET, "the peer reads nothing of the TLS handshake");
            tls->stage = FAILED;
        }
        if (ret < 0)
            return ret;
    }
    /* What a peer goes on to say that has not made it. */
    if (tls->stage != OPEN)
        return transport_recv(tls->below, buf, len, flags);
    return receive(tls, buf, len, flags);
}

/*
 * The rest
 */

static void tls_explain(struct transport *t, struct error *err)
{
    const struct tls_transport *tls = t->own;

    if (error_is_set(&tls->why))
        error_set(err, tls->why.cause, "%s", tls->why.message);
    else
        transport_explain(tls->below, err);
}

static int tls_pollfd(struct transport *t)
{
    return transport_pollfd(((struct tls_transport *)t->own)->below);
}

static void tls_set_timeout(struct transport *t, int timeout_ms)
{
    transport_set_timeout(((struct tls_transport *)t->own)->below, timeout_ms);
}

static void tls_shutdown(struct transport *t)
{
    transport_shutdown(((struct tls_transport *)t->own)->below);
}

static void tls_close(struct transport *t)
{
    struct tls_transport *tls = t->own;

    tls_shake_free(tls->shake);
    tls_key_free(tls->sending.key);
    tls_key_free(tls->receiving.key);
    free(tls->sending.buffer);
    free(tls->receiving.buffer);
    free(tls->receiving.plain);
    transport_close(tls->below);
    free(tls);
    free(t);
}

static const struct transport_ops tls_ops = {
    .name = "tls",
    .send = tls_send,
    .send_pipe = dummy_send_pipe,
    .zerocopy = dummy_zerocopy,
    .send_zerocopy = dummy_send_zerocopy,
    .place = dummy_place,
    .expose = dummy_expose,
    .withdraw = dummy_withdraw,
    .pin = dummy_pin,
    .figures = dummy_figures,
    .reap = dummy_reap,
    .try_send = tls_try_send,
    .recv = tls_recv,
    .recv_parts = tls_recv_parts,
    .recv_fd = dummy_recv_fd,
    .pollfd = tls_pollfd,
    .set_timeout = tls_set_timeout,
    .shutdown = tls_shutdown,
    .finish = tls_finish,
    .explain = tls_explain,
    .close = tls_close,
};

/* Puts the layer on a connection. 0; -EIO: see @err; -ENOMEM. */
static int put_on(struct tls *credentials, struct transport *t, const char *name, struct error *err)
{
    struct tls_transport *tls = calloc(1, sizeof(*tls));

    if (!tls)
        return -ENOMEM;
    tls->shake = tls_shake_new(credentials, name, err);
    if (!tls->shake || transport_upgrade(t, &tls_ops, tls, &tls->below) < 0) {
        bool out_of_memory = tls->shake || !error_is_set(err);
        tls_shake_free(tls->shake);
        free(tls);
        return out_of_memory ? -ENOMEM : -EIO;
    }
    tls->kernel = tls->below->traits.is_tcp_socket && tls_kernel_attach(transport_pollfd(tls->below));
    tls_shake_over(tls->shake, tls->below, tls->kernel);
    return 0;
}

int tls_server(struct tls *tls, struct transport *t)
{
    struct error err = {0};

    return put_on(tls, t, NULL, &err) < 0 ? -ENOMEM : 0;
}

int tls_client(struct tls *tls, struct transport *t, const char *name, const struct transport_wait *wait,
               struct error *err)
{
    int ret = put_on(tls, t, name, err);

    if (ret == -ENOMEM)
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    if (ret == 0)
        ret = shake_hands(t, wait);
    if (ret == 0)
        return 0;
    if (ret == -ECANCELED)
        return error_set(err, CAUSE_INTERRUPTED, "connecting to %s was interrupted", t->peer);
    if (ret == -ETIMEDOUT)
        return error_set(err, CAUSE_TIMEOUT, "%s does not answer", t->peer);
    if (!error_is_set(err)) {
        transport_explain(t, err);
        error_set_errno(err, ret, "the TLS handshake");
        error_prefix(err, "%s", t->peer);
    }
    return -EIO;
}
