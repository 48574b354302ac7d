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

int session_init(struct session *s, struct transport *transport, uint32_t timeout_ms, uint32_t peer_timeout_ms)
{
    int wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

    if (wake_fd < 0)
        return -errno;
    uint32_t shorter = timeout_ms < peer_timeout_ms ? timeout_ms : peer_timeout_ms;
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
    transport_set_timeout(transport, (int)timeout_ms);
    s->last_heard = clock_ms();
    s->next_ping = s->last_heard + s->ping_ms;
    return 0;
}

void session_fini(struct session *s)
{
    transport_close(s->transport);
    close(s->wake_fd);
    free(s->buffer);
    pthread_mutex_destroy(&s->send_lock);
}

/* Called with send_lock held. */
static int send_locked(struct session *s, enum wire_message_type type, uint64_t id, const void *body,
                       uint32_t length)
{
    struct wire_message header;
    struct iovec iov[2] = {
        {&header, sizeof(header)},
        {(void *)(uintptr_t)body, length},
    };

    wire_message_encode(type, id, body, length, &header);
    atomic_fetch_add_explicit(&s->bytes_sent, sizeof(header) + length, memory_order_relaxed);
    return transport_send(s->transport, iov, length ? 2 : 1);
}

int session_send(struct session *s, enum wire_message_type type, uint64_t id, const void *body, uint32_t length)
{
    SCOPED_LOCK(&s->send_lock);
    return send_locked(s, type, id, body, length);
}

int session_try_send(struct session *s, enum wire_message_type type, uint64_t id, const void *body,
                     uint32_t length)
{
    if (pthread_mutex_trylock(&s->send_lock))
        return -EAGAIN;
    int ret = send_locked(s, type, id, body, length);
    pthread_mutex_unlock(&s->send_lock);
    return ret;
}

void session_wake(struct session *s)
{
    eventfd_write(s->wake_fd, 1);
}

/* Dispatches the whole messages in the buffer. */
static int dispatch(struct session *s,
                    int (*handle)(void *, const struct message *, struct wire_reader *, struct error *), void *arg,
                    struct error *err)
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
        if (message.type == WIRE_PING)
            continue;
        struct wire_reader reader = {.p = body, .left = message.length};
        ret = handle(arg, &message, &reader, err);
    }
    memmove(s->buffer, s->buffer + at, s->have - at);
    s->have -= at;
    return ret;
}

/* Reads what is there, and dispatches it. */
static int receive(struct session *s,
                   int (*handle)(void *, const struct message *, struct wire_reader *, struct error *), void *arg,
                   struct error *err)
{
    for (;;) {
        ssize_t n = transport_recv(s->transport, s->buffer + s->have, BUFFER_SIZE - s->have, TRANSPORT_NOWAIT);
        if (n == -EAGAIN)
            return 0;
        if (n == 0)
            return error_set(err, CAUSE_RESET, "the other side has closed the connection");
        if (n < 0)
            return error_set_errno(err, (int)n, "the connection to the other side is lost");
        s->last_heard = clock_ms();
        s->have += (size_t)n;
        int ret = dispatch(s, handle, arg, err);
        if (ret < 0)
            return ret;
    }
}

int session_step(struct session *s, int64_t deadline_ms,
                 int (*handle)(void *arg, const struct message *message, struct wire_reader *body, struct error *err),
                 void *arg, struct error *err)
{
    struct pollfd fds[2] = {
        {.fd = transport_pollfd(s->transport), .events = POLLIN},
        {.fd = s->wake_fd, .events = POLLIN},
    };
    int64_t silent = s->last_heard + s->timeout_ms;
    int64_t until = deadline_ms;

    if (s->next_ping < until)
        until = s->next_ping;
    if (silent < until)
        until = silent;
    if (poll(fds, 2, clock_poll_timeout(until)) < 0 && errno != EINTR)
        return error_set_errno(err, errno, "poll");
    if (fds[1].revents) {
        eventfd_t drained;
        eventfd_read(s->wake_fd, &drained);
    }
    int64_t now = clock_ms();
    if (now >= s->next_ping) {
        /* A lost heartbeat is noticed by the side that waits for it. */
        session_try_send(s, WIRE_PING, 0, NULL, 0);
        s->next_ping = now + s->ping_ms;
    }
    int ret = receive(s, handle, arg, err);
    if (ret == 0 && clock_ms() - s->last_heard >= s->timeout_ms)
        ret = error_set(err, CAUSE_TIMEOUT, "the other side has been silent for %d ms", s->timeout_ms);
    return ret;
}

void session_goodbye(struct session *s, const struct error *failure)
{
    uint8_t buf[8 + WIRE_TEXT_MAX];
    struct wire_writer body = {buf, buf, buf + sizeof(buf)};
    char text[WIRE_TEXT_MAX + 1];

    if (!failure)
        return;
    snprintf(text, sizeof(text), "%s", failure->message);
    wire_write_u32(&body, failure->cause);
    wire_write_text(&body, text);
    session_try_send(s, WIRE_ABORT, 0, buf, wire_written(&body));
}

void session_linger(struct session *s, int timeout_ms)
{
    int64_t deadline = clock_ms() + timeout_ms;
    struct pollfd fd = {.fd = transport_pollfd(s->transport), .events = POLLIN};
    char rest[4096];

    transport_finish(s->transport);
    while (clock_ms() < deadline) {
        ssize_t n = transport_recv(s->transport, rest, sizeof(rest), TRANSPORT_NOWAIT);
        if (n == -EAGAIN)
            poll(&fd, 1, clock_poll_timeout(deadline));
        else if (n <= 0)
            break;
    }
    transport_shutdown(s->transport);
}

void session_read_abort(struct wire_reader *body, const char *peer_role, struct error *out)
{
    uint32_t cause = wire_read_u32(body);
    char text[WIRE_TEXT_MAX + 1];

    wire_read_text(body, text, WIRE_TEXT_MAX);
    for (char *p = text; *p; p++) {
        if ((unsigned char)*p < ' ' || *p == 0x7f)
            *p = '?';
    }
    if (!wire_read_done(body) || cause == CAUSE_NONE || cause >= CAUSE_MAX)
        error_set(out, CAUSE_PEER, "the %s has given up, and did not say why", peer_role);
    else
        error_set(out, cause, "the %s: %s", peer_role, text);
}
