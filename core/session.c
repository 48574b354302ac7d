/* SPDX-License-Identifier: Apache-2.0 */
/* The main channel; see session.h. */
#include "session.h"
#include "cleanup.h"
#include "clock.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>

#define BUFFER_SIZE (sizeof(struct wire_message) + WIRE_BODY_MAX)
#define QUEUE_MAX   (4u << 20)
#define UNSAID_MAX                                                                                           \
    (32u << 10) /* bytes of messages that are received before the peer is told, at the latest */

int session_init(struct session *s, struct transport *transport, uint32_t timeout_ms,
                 uint32_t peer_timeout_ms)
{
    int wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    uint32_t shorter = timeout_ms < peer_timeout_ms ? timeout_ms : peer_timeout_ms;

    if (wake_fd < 0)
        return -errno;
    *s = (struct session){
        .wake_fd = wake_fd,
        .timeout_ms = (int)timeout_ms,
        .ping_ms = shorter < 200 ? 50 : (int)shorter / 4,
    };
    s->buffer = malloc(BUFFER_SIZE);
    if (!s->buffer) {
        close(wake_fd);
        return -ENOMEM;
    }
    pthread_mutex_init(&s->send_lock, NULL);
    s->transport = transport;
    s->unread = true;
    transport_set_timeout(transport, (int)timeout_ms);
    s->last_heard = clock_ms();
    s->next_ping = s->last_heard + s->ping_ms;
    s->heard = true; /* a handshake */
    return 0;
}

/* How much of a queue of @size bytes is charged. */
static size_t charged(size_t size)
{
    return size > SESSION_QUEUE ? size - SESSION_QUEUE : 0;
}

void session_end(struct session *s)
{
    SCOPED_LOCK(&s->send_lock);
    s->broken = true;
    if (s->budget)
        budget_release(s->budget, charged(s->queue_size));
    free(s->queue);
    free(s->buffer);
    s->queue = s->buffer = NULL;
    s->queued = s->queue_size = s->out = 0;
    if (s->wake_fd >= 0)
        close(s->wake_fd);
    s->wake_fd = -1;
}

void session_fini(struct session *s)
{
    transport_close(s->transport);
    session_end(s);
    pthread_mutex_destroy(&s->send_lock);
}

/* Called with send_lock held. */
static void give_up(struct session *s)
{
    s->broken = true;
    s->queued = s->out = 0;
    if (s->transport)
        transport_shutdown(s->transport);
}

/* Takes bytes that are sent off the queue. Called with send_lock held. */
static void drop_queued(struct session *s, size_t bytes)
{
    if (!bytes)
        return;
    memmove(s->queue, s->queue + bytes, s->queued - bytes);
    s->queued -= bytes;
    s->out -= bytes;
}

/* Sends what can be sent now. Called with send_lock held. */
static void flush_queue(struct session *s)
{
    while (s->transport && s->out < s->queued) {
        ssize_t n = transport_try_send(s->transport, s->queue + s->out, s->queued - s->out);
        if (n == -EAGAIN)
            break;
        if (n < 0 && s->keeps) {
            transport_shutdown(s->transport); /* the loop finds it */
            break;
        }
        if (n < 0) {
            give_up(s);
            return;
        }
        s->out += (size_t)n;
    }
    if (!s->keeps)
        drop_queued(s, s->out);
}

/*
 * The peer has received @count messages, of those that are sent: they are not kept any more, nor pings before
 * the next one. Called with send_lock held. False: it cannot have.
 */
static bool confirm(struct session *s, uint64_t count)
{
    struct wire_message header;
    struct message message;
    struct error unused = {0};
    size_t done = 0;

    while (s->out - done >= sizeof(header)) {
        memcpy(&header, s->queue + done, sizeof(header));
        wire_message_decode(&header, &message, &unused);
        if (s->out - done < sizeof(header) + message.length ||
            (message.type != WIRE_PING && s->confirmed == count))
            break;
        s->confirmed += message.type != WIRE_PING;
        done += sizeof(header) + message.length;
    }
    drop_queued(s, done);
    return s->confirmed == count;
}

/* What the header of a message says of those that its sender has received. False: it makes no sense. */
static bool hear_received(struct session *s, uint32_t received)
{
    if (!s->keeps)
        return true;
    SCOPED_LOCK(&s->send_lock);
    uint32_t more = received - (uint32_t)s->confirmed;
    /* One that was sent before a later one was heard of, and has been sent again. */
    if (more > UINT32_MAX / 2)
        return true;
    return confirm(s, s->confirmed + more);
}

/* Called with send_lock held. */
static int reserve(struct session *s, size_t more)
{
    size_t size = s->queued + more;

    if (size > QUEUE_MAX)
        return -ENOBUFS;
    if (size <= s->queue_size)
        return 0;
    size = size < 2 * s->queue_size ? 2 * s->queue_size : size;
    size_t more_charged = charged(size) - charged(s->queue_size);
    if (s->budget && !budget_charge(s->budget, more_charged))
        return -ENOBUFS;
    uint8_t *queue = realloc(s->queue, size);
    if (!queue) {
        if (s->budget)
            budget_release(s->budget, more_charged);
        return -ENOMEM;
    }
    s->queue = queue;
    s->queue_size = size;
    return 0;
}

void session_send(struct session *s, enum wire_message_type type, uint64_t id, const void *body,
                  uint32_t length)
{
    struct wire_message header;

    wire_message_encode_received(type, id, s->keeps ? atomic_load(&s->received) : 0, body, length, &header);
    SCOPED_LOCK(&s->send_lock);
    if (s->broken)
        return;
    if (reserve(s, sizeof(header) + length) < 0) {
        give_up(s);
        return;
    }
    memcpy(s->queue + s->queued, &header, sizeof(header));
    if (length)
        memcpy(s->queue + s->queued + sizeof(header), body, length);
    s->queued += sizeof(header) + length;
    atomic_fetch_add_explicit(&s->bytes_sent, sizeof(header) + length, memory_order_relaxed);
    flush_queue(s);
    /* The loop waits for room from now on. */
    if (s->out < s->queued)
        session_wake(s);
}

/* Whether something is not sent yet. */
static bool has_queued(struct session *s)
{
    SCOPED_LOCK(&s->send_lock);
    return s->out < s->queued;
}

void session_keep(struct session *s)
{
    s->keeps = true;
}

void session_lose(struct session *s)
{
    pthread_mutex_lock(&s->send_lock);
    struct transport *transport = s->transport;
    s->transport = NULL;
    pthread_mutex_unlock(&s->send_lock);
    transport_close(transport);
    s->lost = false;
}

uint64_t session_confirmed(struct session *s)
{
    SCOPED_LOCK(&s->send_lock);
    return s->confirmed;
}

int session_renew(struct session *s, struct transport *transport, uint64_t confirmed, struct error *err)
{
    SCOPED_LOCK(&s->send_lock);
    if (s->broken)
        return error_set(err, CAUSE_NO_MEMORY, "more messages than can be kept were due while it was lost");
    if (confirmed < s->confirmed || !confirm(s, confirmed))
        return error_set(err, CAUSE_PROTOCOL, "the other side has received %llu messages, but not %llu",
                         (unsigned long long)s->confirmed, (unsigned long long)confirmed);
    s->transport = transport;
    s->have = 0;
    s->partial_since = 0;
    s->unread = true;
    s->heard = false;
    s->out = 0;
    s->last_heard = s->next_ping = clock_ms();
    transport_set_timeout(transport, s->timeout_ms);
    flush_queue(s);
    return 0;
}

void session_wake(struct session *s)
{
    eventfd_write(s->wake_fd, 1);
}

/* Dispatches the whole messages in the buffer. */
static int dispatch(struct session *s,
                    int (*handle)(void *, const struct message *, struct wire_reader *, struct error *),
                    void *arg, struct error *err)
{
    size_t at = 0;
    int ret = 0;

    while (ret == 0 && s->have - at >= sizeof(struct wire_message)) {
        struct wire_message header;
        struct message message;
        memcpy(&header, s->buffer + at, sizeof(header));
        ret = wire_message_decode(&header, &message, err);
        if (ret < 0 || s->have - at < sizeof(header) + message.length)
            break;
        const uint8_t *body = s->buffer + at + sizeof(header);
        if (!wire_message_check(&header, body, message.length))
            return error_set(err, CAUSE_PROTOCOL, "a message arrived damaged");
        at += sizeof(header) + message.length;
        s->heard = true;
        if (!hear_received(s, message.received))
            return error_set(err, CAUSE_PROTOCOL, "the other side has received more messages than were sent");
        if (message.type == WIRE_PING)
            continue;
        struct wire_reader reader = {.p = body, .left = message.length};
        ret = handle(arg, &message, &reader, err);
        if (ret == 0) {
            atomic_fetch_add(&s->received, 1);
            s->unsaid += (uint32_t)sizeof(header) + message.length;
        }
    }
    memmove(s->buffer, s->buffer + at, s->have - at);
    s->have -= at;
    if (!s->have)
        s->partial_since = 0;
    else if (at || !s->partial_since)
        s->partial_since = clock_ms();
    return ret;
}

static bool is_broken(struct session *s)
{
    SCOPED_LOCK(&s->send_lock);
    return s->broken;
}

/* Reads some of what is there, and dispatches it. */
static int receive(struct session *s,
                   int (*handle)(void *, const struct message *, struct wire_reader *, struct error *),
                   void *arg, struct error *err)
{
    ssize_t n = transport_recv(s->transport, s->buffer + s->have, BUFFER_SIZE - s->have, TRANSPORT_NOWAIT);

    s->unread = n > 0;
    if (n == -EAGAIN || n == -EINTR)
        return 0;
    if (n <= 0)
        s->lost = !is_broken(s);
    if (n == 0)
        return error_set(err, CAUSE_RESET, "the other side has closed the connection");
    if (n < 0) {
        transport_explain(s->transport, err);
        return error_set_errno(err, (int)n, "the connection to the other side is lost");
    }
    s->last_heard = clock_ms();
    s->have += (size_t)n;
    return dispatch(s, handle, arg, err);
}

/* There is no connection: waits for a wake-up. */
static int await_wake(struct session *s, int64_t deadline_ms, struct error *err)
{
    struct pollfd fd = {.fd = s->wake_fd, .events = POLLIN};
    eventfd_t drained;

    if (poll(&fd, 1, clock_poll_timeout(deadline_ms)) < 0 && errno != EINTR)
        return error_set_errno(err, errno, "poll");
    eventfd_read(s->wake_fd, &drained);
    return 0;
}

/* The peer keeps what it does not know to be received. */
static void say_received(struct session *s)
{
    if (!s->keeps || s->unsaid < UNSAID_MAX)
        return;
    s->unsaid = 0;
    session_send(s, WIRE_PING, 0, NULL, 0);
}

int session_step(struct session *s, int64_t deadline_ms,
                 int (*handle)(void *arg, const struct message *message, struct wire_reader *body,
                               struct error *err),
                 void *arg, struct error *err)
{
    if (!s->transport)
        return await_wake(s, deadline_ms, err);
    struct pollfd fds[2] = {
        {.fd = transport_pollfd(s->transport), .events = POLLIN | (has_queued(s) ? POLLOUT : 0)},
        {.fd = s->wake_fd, .events = POLLIN},
    };
    int64_t silent = (s->partial_since ? s->partial_since : s->last_heard) + s->timeout_ms;
    int64_t until = deadline_ms;

    if (s->next_ping < until)
        until = s->next_ping;
    if (silent < until)
        until = silent;
    if (poll(fds, 2, s->unread ? 0 : clock_poll_timeout(until)) < 0 && errno != EINTR)
        return error_set_errno(err, errno, "poll");
    if (fds[1].revents) {
        eventfd_t drained;
        eventfd_read(s->wake_fd, &drained);
    }
    int64_t now = clock_ms();
    if (now >= s->next_ping) {
        session_send(s, WIRE_PING, 0, NULL, 0);
        s->next_ping = now + s->ping_ms;
    }
    if (fds[0].revents & POLLOUT) {
        SCOPED_LOCK(&s->send_lock);
        flush_queue(s);
    }
    int ret = receive(s, handle, arg, err);
    say_received(s);
    now = clock_ms();
    if (ret == 0 && now - s->last_heard >= s->timeout_ms) {
        s->lost = true;
        ret = error_set(err, CAUSE_TIMEOUT, "the other side has been silent for %d ms", s->timeout_ms);
    }
    /*
     * A damaged length would swallow all that follows, heartbeats and all. Where the message can come once
     * more, the line may as well have gone dead in it.
     */
    if (ret == 0 && s->partial_since && now - s->partial_since >= s->timeout_ms) {
        s->lost = s->keeps;
        ret = error_set(err, s->keeps ? CAUSE_TIMEOUT : CAUSE_PROTOCOL,
                        "a message that does not end within %d ms", s->timeout_ms);
    }
    return ret;
}

void session_goodbye(struct session *s, const struct error *failure)
{
    uint8_t buf[8 + WIRE_TEXT_MAX];
    struct wire_writer body = wire_writer_of(buf, sizeof(buf));
    char text[WIRE_TEXT_SIZE];

    if (!failure)
        return;
    snprintf(text, sizeof(text), "%s", failure->message);
    wire_write_u32(&body, failure->cause);
    wire_write_text(&body, text);
    session_send(s, WIRE_ABORT, 0, buf, wire_written(&body));
}

bool session_part(struct session *s, int timeout_ms)
{
    int64_t deadline = clock_ms() + timeout_ms;
    char rest[4096];
    bool finished = false;

    while (s->transport && clock_ms() < deadline) {
        bool queued = has_queued(s);
        struct pollfd fd = {.fd = transport_pollfd(s->transport), .events = POLLIN | (queued ? POLLOUT : 0)};
        if (!queued && !finished) {
            SCOPED_LOCK(&s->send_lock);
            transport_finish(s->transport);
            finished = true;
        }
        ssize_t n = transport_recv(s->transport, rest, sizeof(rest), TRANSPORT_NOWAIT);
        if (n == -EAGAIN) {
            poll(&fd, 1, clock_poll_timeout(deadline));
            if (fd.revents & POLLOUT) {
                SCOPED_LOCK(&s->send_lock);
                flush_queue(s);
            }
        } else if (n <= 0 && n != -EINTR) {
            return n == 0 && !queued;
        }
    }
    return false;
}

void session_linger(struct session *s, int timeout_ms)
{
    session_part(s, timeout_ms);
    SCOPED_LOCK(&s->send_lock);
    give_up(s);
    transport_close(s->transport);
    s->transport = NULL;
}

void session_read_reason(uint32_t cause, const char *text, const char *who, struct error *out)
{
    bool ours =
        cause == CAUSE_NONE || cause == CAUSE_INTERRUPTED || cause == CAUSE_AGAIN || cause >= CAUSE_MAX;

    error_set(out, ours ? CAUSE_PEER : (enum cause)cause, "%s: %s", who,
              *text ? text : "it has given up, and did not say why");
}

void session_read_abort(struct wire_reader *body, const char *who, struct error *out)
{
    uint32_t cause = wire_read_u32(body);
    char text[WIRE_TEXT_SIZE];

    wire_read_text(body, text, WIRE_TEXT_MAX);
    session_read_reason(wire_read_done(body) ? cause : CAUSE_NONE, text, who, out);
}
