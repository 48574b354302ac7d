/* SPDX-License-Identifier: Apache-2.0 */
/* Picks the family of a URI, and calls through to the operations of a connection; see transport.h. */
#include "transport.h"
#include "clock.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>

static const struct transport_family *const families[] = {
    [URI_TCP] = &transport_tcp,
    [URI_UNIX] = &transport_unix,
    [URI_RDMA] = &transport_rdma,
    [URI_FAULTY] = &transport_faulty,
};

int transport_connect(const struct uri *uri, unsigned index, const struct transport_group *group,
                      const struct transport_wait *wait, struct transport **out, struct error *err)
{
    return families[uri->scheme]->connect(uri, index, group, wait, out, err);
}

int transport_listen(const struct uri *uri, struct transport_listener **out, struct error *err)
{
    return families[uri->scheme]->listen(uri, out, err);
}

struct transport *transport_new(const struct transport_ops *ops, void *own)
{
    struct transport *t = calloc(1, sizeof(*t));

    if (t) {
        t->ops = ops;
        t->own = own;
    }
    return t;
}

int transport_upgrade(struct transport *t, const struct transport_ops *ops, void *own,
                      struct transport **below)
{
    struct transport *moved = malloc(sizeof(*moved));

    if (!moved)
        return -ENOMEM;
    *moved = *t;
    t->ops = ops;
    t->own = own;
    t->traits = (struct transport_traits){
        .copy_max = moved->traits.copy_max,
        .is_local = moved->traits.is_local,
        .seals = moved->traits.seals,
    };
    *below = moved;
    return 0;
}

int transport_send(struct transport *t, const struct iovec *iov, int n)
{
    return t->ops->send(t, iov, n);
}

int transport_send_pipe(struct transport *t, const struct iovec *iov, int n, int pipe, size_t len)
{
    return t->ops->send_pipe(t, iov, n, pipe, len);
}

int transport_zerocopy(struct transport *t)
{
    return t->ops->zerocopy(t);
}

int transport_send_zerocopy(struct transport *t, const struct iovec *iov, int n, const void *buf, size_t len,
                            struct transport_handed *handed)
{
    return t->ops->send_zerocopy(t, iov, n, buf, len, handed);
}

int transport_place(struct transport *t, const struct transport_key *key, uint64_t offset, const void *buf,
                    size_t len, struct transport_handed *handed)
{
    return t->ops->place(t, key, offset, buf, len, handed);
}

int transport_expose(struct transport *t, void *base, size_t len, struct transport_key *key)
{
    return t->ops->expose(t, base, len, key);
}

void transport_withdraw(struct transport *t, const struct transport_key *key)
{
    t->ops->withdraw(t, key);
}

int transport_pin(struct transport *t, const void *base, size_t len)
{
    return t->ops->pin(t, base, len);
}

void transport_figures(struct transport *t, bool of_group, struct transport_figures *out)
{
    t->ops->figures(t, of_group, out);
}

void transport_reap(struct transport *t, int wait_ms, struct transport_returns *returns)
{
    t->ops->reap(t, wait_ms, returns);
}

ssize_t transport_try_send(struct transport *t, const void *buf, size_t len)
{
    return t->ops->try_send(t, buf, len);
}

int transport_send_now(struct transport *t, const void *buf, size_t len)
{
    for (size_t sent = 0; sent < len;) {
        ssize_t n = transport_try_send(t, (const char *)buf + sent, len - sent);
        if (n < 0)
            return (int)n;
        sent += (size_t)n;
    }
    return 0;
}

ssize_t transport_recv(struct transport *t, void *buf, size_t len, int flags)
{
    return t->ops->recv(t, buf, len, flags);
}

ssize_t transport_recv_parts(struct transport *t, const struct iovec *iov, int n)
{
    return t->ops->recv_parts(t, iov, n);
}

int transport_recv_all(struct transport *t, void *buf, size_t len, const struct transport_wait *wait)
{
    char *p = buf;

    while (len > 0) {
        ssize_t n = transport_recv(t, p, len, wait ? TRANSPORT_NOWAIT : 0);
        if (n == 0)
            return -ECONNRESET;
        if (n == -EAGAIN && wait) {
            struct pollfd fds[2] = {
                {.fd = transport_pollfd(t), .events = POLLIN},
                {.fd = wait->cancel_fd, .events = POLLIN},
            };
            int ready = poll(fds, 2, clock_poll_timeout(wait->deadline_ms));
            if (ready < 0 && errno != EINTR)
                return -errno;
            if (fds[1].revents)
                return -ECANCELED;
            if (ready == 0 && clock_ms() >= wait->deadline_ms)
                return -ETIMEDOUT;
            continue;
        }
        if (n == -EINTR)
            continue;
        if (n < 0)
            return (int)n;
        p += n;
        len -= (size_t)n;
    }
    return 0;
}

ssize_t transport_recv_fd(struct transport *t, int fd, off_t offset, size_t len, int *file_code)
{
    return t->ops->recv_fd(t, fd, offset, len, file_code);
}

int transport_pollfd(struct transport *t)
{
    return t->ops->pollfd(t);
}

void transport_set_timeout(struct transport *t, int timeout_ms)
{
    t->ops->set_timeout(t, timeout_ms);
}

void transport_shutdown(struct transport *t)
{
    t->ops->shutdown(t);
}

void transport_finish(struct transport *t)
{
    t->ops->finish(t);
}

void transport_explain(struct transport *t, struct error *err)
{
    t->ops->explain(t, err);
}

void transport_close(struct transport *t)
{
    if (t)
        t->ops->close(t);
}

int transport_accept(struct transport_listener *l, struct transport **out)
{
    return l->ops->accept(l, out);
}

int transport_listener_pollfd(struct transport_listener *l)
{
    return l->ops->pollfd(l);
}

const char *transport_listener_address(struct transport_listener *l)
{
    return l->ops->address(l);
}

void transport_listener_close(struct transport_listener *l)
{
    if (l)
        l->ops->close(l);
}
