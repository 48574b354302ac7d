/* SPDX-License-Identifier: Apache-2.0 */
/* Connections for tests; see link.h. */
#include "link.h"
#include "check.h"
#include "socket.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct transport_group link_group = {.chunk = TRANSPORT_CHUNK};
const struct transport_wait link_forever = {.cancel_fd = -1, .deadline_ms = INT64_MAX};

void link_pair(struct link *link)
{
    int fds[2];

    cr_assert(zero(int, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds)));
    *link = (struct link){.a = socket_transport_new(fds[0], false), .b = socket_transport_new(fds[1], false)};
}

struct transport_listener *link_listen(const char *text)
{
    struct transport_listener *l = NULL;
    struct error err;
    struct uri uri;

    CHECK_OK(uri_parse(text, &uri, &err));
    CHECK_OK(transport_listen(&uri, &l, &err));
    return l;
}

struct transport *link_connect(struct transport_listener *l, const char *faults, unsigned index)
{
    struct transport *t = NULL;
    struct error err;
    struct uri uri;
    char text[2 * URI_MAX];

    snprintf(text, sizeof(text), "%s%s", faults, transport_listener_address(l));
    CHECK_OK(uri_parse(text, &uri, &err));
    CHECK_OK(transport_connect(&uri, index, &link_group, &link_forever, &t, &err));
    return t;
}

struct transport *link_accept(struct transport_listener *l)
{
    struct transport *t = NULL;
    int ret;

    while ((ret = transport_accept(l, &t)) == -EAGAIN) {
        struct pollfd fd = {.fd = transport_listener_pollfd(l), .events = POLLIN};
        poll(&fd, 1, -1);
    }
    cr_assert(eq(int, ret, 0));
    return t;
}

void link_open(struct link *link, const char *text, const char *faults)
{
    link->listener = link_listen(text);
    link->a = link_connect(link->listener, faults, 0);
    link->b = link_accept(link->listener);
}

void link_close(struct link *link)
{
    transport_close(link->a);
    transport_close(link->b);
    transport_listener_close(link->listener);
}

void pattern(void *buf, size_t len, unsigned seed)
{
    unsigned char *p = buf;
    uint64_t x = seed * 0x9e3779b97f4a7c15ull + 1;

    for (size_t i = 0; i < len; i++) {
        if (i % 8 == 0)
            x = x * 6364136223846793005ull + 1442695040888963407ull;
        p[i] = (unsigned char)(x >> (24 + i % 8));
    }
}

int link_send(struct transport *t, const void *buf, size_t len)
{
    struct iovec iov = {(void *)(uintptr_t)buf, len};

    return transport_send(t, &iov, 1);
}

static void sink_work(void *arg)
{
    struct sink *sink = arg;

    while (sink->have < sink->want) {
        sink->last = transport_recv(sink->t, sink->buf + sink->have, sink->want - sink->have, 0);
        if (sink->last <= 0)
            return;
        sink->have += (size_t)sink->last;
    }
}

void sink_start(struct sink *sink, struct transport *t, size_t want)
{
    *sink = (struct sink){.t = t, .want = want, .buf = malloc(want ? want : 1)};
    cr_assert(not(zero(ptr, sink->buf)));
    worker_start(&sink->worker, sink_work, sink);
}

void sink_join(struct sink *sink)
{
    worker_join(&sink->worker);
}

void sink_free(struct sink *sink)
{
    free(sink->buf);
}
