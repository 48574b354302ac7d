/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rdma:HOST:PORT: the main channel (connection 0) is TCP to HOST:PORT, the others are queue pairs to the same
 * address and port of the RDMA connection manager; see rdma_queue.h for what such a connection does.
 */
#include "cleanup.h"
#include "clock.h"
#include "log.h"
#include "lookup.h"
#include "rdma_queue.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>

#define RESOLVE_MS  5000  /* for the connection manager to find the way */
#define BACKLOG     128   /* requests that wait */
#define UNSURE_MAX  64    /* accepted connections that are not established */
#define UNSURE_MS   10000 /* for them to be */
#define RETRIES     7     /* of the card's, as many as there can be */
#define NEVER_READY 7     /* retries for want of a receive: without end; but there always is one */

static struct rdma_event_channel *new_event_channel(struct error *err)
{
    struct rdma_event_channel *events = rdma_create_event_channel();

    if (!events && (errno == ENODEV || errno == ENOENT))
        error_set(err, CAUSE_UNSUPPORTED, "this machine has no RDMA (no device, or rdma_ucm is not loaded)");
    else if (!events)
        error_set_errno(err, errno, "no RDMA");
    else
        fcntl(events->fd, F_SETFL, O_NONBLOCK);
    return events;
}

/* Whether there is a device at all: better said before the peer is asked. */
static int check_devices(struct error *err)
{
    struct rdma_event_channel *events = new_event_channel(err);
    struct ibv_context **devices;
    int n = 0;

    if (!events)
        return -EIO;
    rdma_destroy_event_channel(events);
    devices = rdma_get_devices(&n);
    if (devices)
        rdma_free_devices(devices);
    return n > 0 ? 0 : error_set(err, CAUSE_UNSUPPORTED, "this machine has no RDMA device");
}

static struct rdma_conn_param conn_param(struct rdma_greeting *greeting)
{
    return (struct rdma_conn_param){
        .private_data = greeting,
        .private_data_len = sizeof(*greeting),
        .retry_count = RETRIES,
        .rnr_retry_count = NEVER_READY,
    };
}

/*
 * Connecting
 */

/* What a connection is made with; all that is left in it is destroyed at the end. */
struct attempt {
    const struct uri *uri;
    const struct transport_group *group;
    const struct transport_wait *wait;
    struct rdma_event_channel *events;
    struct rdma_cm_id *id;
    struct transport *transport; /* owns @id when it is established */
};

static int describe(const struct attempt *a, const struct rdma_cm_event *event, struct error *err)
{
    const char *where = a->uri->text;

    switch (event->event) {
    case RDMA_CM_EVENT_ADDR_ERROR:
    case RDMA_CM_EVENT_ROUTE_ERROR:
        return error_set(err, CAUSE_UNREACHABLE, "no RDMA device of this machine reaches %.160s", where);
    case RDMA_CM_EVENT_REJECTED:
        return error_set(err, CAUSE_REFUSED, "%.160s takes no RDMA connection", where);
    case RDMA_CM_EVENT_UNREACHABLE:
        return error_set(err, CAUSE_UNREACHABLE, "%.160s does not answer by RDMA", where);
    case RDMA_CM_EVENT_DEVICE_REMOVAL:
        return error_set(err, CAUSE_RESET, "the RDMA device was removed");
    default:
        return error_set(err, CAUSE_RESET, "%.160s: RDMA: %s", where, rdma_event_str(event->event));
    }
}

/* Waits for the next event. 0: it is the wanted one; with @transport what comes with it is told to that. */
static int expect(struct attempt *a, enum rdma_cm_event_type wanted, struct error *err)
{
    struct rdma_cm_event *event;
    int ret = 0;

    while (rdma_get_cm_event(a->events, &event) < 0) {
        struct pollfd fds[2] = {{.fd = a->events->fd, .events = POLLIN},
                                {.fd = a->wait->cancel_fd, .events = POLLIN}};
        if (errno != EAGAIN && errno != EINTR)
            return error_set_errno(err, errno, "RDMA");
        int ready = poll(fds, 2, clock_poll_timeout(a->wait->deadline_ms));
        if (ready > 0 && fds[1].revents)
            return error_set(err, CAUSE_INTERRUPTED, "connecting to %.160s was interrupted", a->uri->text);
        if (ready == 0 && clock_ms() >= a->wait->deadline_ms)
            return error_set(err, CAUSE_TIMEOUT, "%.160s does not answer", a->uri->text);
    }
    if (event->event != wanted)
        ret = describe(a, event, err);
    else if (wanted == RDMA_CM_EVENT_ESTABLISHED)
        ret = rdma_queue_meet(a->transport, event->param.conn.private_data,
                              event->param.conn.private_data_len, err);
    rdma_ack_cm_event(event);
    return ret;
}

static int find_way(struct attempt *a, struct sockaddr *addr, struct error *err)
{
    if (rdma_create_id(a->events, &a->id, NULL, RDMA_PS_TCP) < 0)
        return error_set_errno(err, errno, "RDMA");
    if (rdma_resolve_addr(a->id, NULL, addr, RESOLVE_MS) < 0)
        return errno == ENODEV ? error_set(err, CAUSE_UNREACHABLE,
                                           "no RDMA device of this machine reaches %.160s", a->uri->text)
                               : error_set_errno(err, errno, "finding %.160s by RDMA", a->uri->text);
    if (expect(a, RDMA_CM_EVENT_ADDR_RESOLVED, err) < 0)
        return -EIO;
    if (rdma_resolve_route(a->id, RESOLVE_MS) < 0)
        return error_set_errno(err, errno, "finding the way to %.160s by RDMA", a->uri->text);
    return expect(a, RDMA_CM_EVENT_ROUTE_RESOLVED, err);
}

static int attach(struct attempt *a, struct error *err)
{
    struct rdma_domain *domain = rdma_domain_get(a->id->verbs, a->group->id, false);
    struct rdma_greeting greeting;

    if (!domain)
        return error_set_errno(err, errno, "an RDMA protection domain");
    rdma_domain_settings(domain, a->group);
    if (rdma_queue_new(a->id, &rdma_active_shape, domain, &a->transport, err) < 0)
        return -EIO;
    rdma_queue_greeting(a->transport, &greeting);
    memcpy(greeting.group, a->group->id, sizeof(greeting.group));
    struct rdma_conn_param param = conn_param(&greeting);
    if (rdma_connect(a->id, &param) < 0)
        return error_set_errno(err, errno, "connecting to %.160s by RDMA", a->uri->text);
    if (expect(a, RDMA_CM_EVENT_ESTABLISHED, err) < 0)
        return -EIO;
    int ret = rdma_queue_established(a->transport);
    return ret < 0 ? error_set_errno(err, ret, "RDMA") : 0;
}

/* To one address of the host. */
static int try_address(struct attempt *a, struct sockaddr *addr, struct transport **out, struct error *err)
{
    a->events = new_event_channel(err);
    if (!a->events)
        return -EIO;
    int ret = find_way(a, addr, err);
    if (ret == 0)
        ret = attach(a, err);
    bool owned = ret == 0;
    if (!owned && a->transport)
        transport_close(a->transport);
    if (!owned && a->id)
        rdma_destroy_id(a->id);
    rdma_destroy_event_channel(a->events);
    *out = owned ? a->transport : NULL;
    return ret;
}

static int rdma_connect_to(const struct uri *uri, unsigned index, const struct transport_group *group,
                           const struct transport_wait *wait, struct transport **out, struct error *err)
{
    CLEANUP_ADDRINFO struct addrinfo *list = NULL;
    struct error why = {0};
    int ret = -EIO;

    if (index == 0 && check_devices(err) < 0)
        return -EIO;
    if (index == 0)
        return transport_tcp.connect(uri, index, group, wait, out, err);
    if (lookup_uri(uri, wait, &list, err) < 0)
        return -EIO;
    for (struct addrinfo *ai = list; ai && ret < 0; ai = ai->ai_next) {
        struct attempt a = {.uri = uri, .group = group, .wait = wait};
        why = (struct error){0};
        ret = try_address(&a, ai->ai_addr, out, &why);
        if (why.cause == CAUSE_INTERRUPTED || why.cause == CAUSE_TIMEOUT)
            break;
    }
    return ret < 0 ? error_set(err, why.cause ? why.cause : CAUSE_UNREACHABLE, "%s", why.message) : 0;
}

/*
 * Listening
 */

/* A connection that was accepted, and of which the peer has not said that it stands. */
struct unsure {
    struct transport *transport;
    struct rdma_cm_id *id;
    int64_t deadline;
};

struct rdma_listener {
    struct transport_listener base;
    struct transport_listener *tcp;
    struct rdma_event_channel *events;
    struct rdma_cm_id *id;
    int epoll_fd;
    char address[URI_MAX];
    unsigned unsure_count;
    struct unsure unsure[UNSURE_MAX];
};

static void drop(struct rdma_listener *l, unsigned i)
{
    struct unsure *unsure = &l->unsure[i];

    transport_close(unsure->transport);
    rdma_destroy_id(unsure->id);
    *unsure = l->unsure[--l->unsure_count];
}

static void expire(struct rdma_listener *l)
{
    int64_t now = clock_ms();

    for (unsigned i = l->unsure_count; i-- > 0;) {
        if (now >= l->unsure[i].deadline)
            drop(l, i);
    }
}

/* Answers a connection request, whose id is ours from now on. */
static int answer(struct rdma_listener *l, struct rdma_cm_id *id, const struct rdma_conn_param *request,
                  struct error *err)
{
    struct rdma_greeting theirs, ours;
    struct transport *t;

    if (l->unsure_count == UNSURE_MAX)
        return error_set(err, CAUSE_AGAIN, "too many connections are being made");
    if (!rdma_greeting_is_valid(request->private_data, request->private_data_len))
        return error_set(err, CAUSE_PROTOCOL, "the RDMA connection is not one of migfs");
    memcpy(&theirs, request->private_data, sizeof(theirs));
    struct rdma_domain *domain = rdma_domain_get(id->verbs, theirs.group, true);
    if (!domain)
        return error_set_errno(err, errno, "an RDMA protection domain");
    if (rdma_queue_new(id, &rdma_passive_shape, domain, &t, err) < 0)
        return -EIO;
    rdma_queue_greeting(t, &ours);
    struct rdma_conn_param param = conn_param(&ours);
    if (rdma_queue_meet(t, request->private_data, request->private_data_len, err) == 0 &&
        rdma_accept(id, &param) < 0)
        error_set_errno(err, errno, "accepting");
    if (error_is_set(err)) {
        transport_close(t);
        return -EIO;
    }
    l->unsure[l->unsure_count++] = (struct unsure){t, id, clock_ms() + UNSURE_MS};
    return 0;
}

static void on_request(struct rdma_listener *l, struct rdma_cm_id *id, const struct rdma_conn_param *request)
{
    struct error err = {0};

    if (answer(l, id, request, &err) == 0)
        return;
    log_error("%s: refused: %s", l->address, err.message);
    rdma_reject(id, NULL, 0);
    rdma_destroy_id(id);
}

/* The connection stands: the caller's. */
static struct transport *establish(struct rdma_listener *l, unsigned i)
{
    struct transport *t = l->unsure[i].transport;

    if (rdma_queue_established(t) < 0) {
        drop(l, i);
        return NULL;
    }
    l->unsure[i] = l->unsure[--l->unsure_count];
    return t;
}

/* Handles an event. Return: a connection that stands, or NULL. */
static struct transport *handle(struct rdma_listener *l, struct rdma_cm_event *event)
{
    enum rdma_cm_event_type type = event->event;
    struct rdma_cm_id *id = event->id;
    struct rdma_conn_param request = event->param.conn;
    uint8_t data[sizeof(struct rdma_greeting)];
    unsigned i = 0;

    if (type == RDMA_CM_EVENT_CONNECT_REQUEST) {
        if (request.private_data_len > sizeof(data))
            request.private_data_len = sizeof(data);
        if (request.private_data)
            memcpy(data, request.private_data, request.private_data_len);
        request.private_data = request.private_data ? data : NULL;
    }
    /* An id cannot be moved or destroyed before its events are acknowledged. */
    rdma_ack_cm_event(event);
    if (type == RDMA_CM_EVENT_CONNECT_REQUEST) {
        on_request(l, id, &request);
        return NULL;
    }
    if (id == l->id && type == RDMA_CM_EVENT_DEVICE_REMOVAL) {
        /* The device cannot go before nobody listens there. */
        log_error("%s: the RDMA device was removed: no data channels are taken any more", l->address);
        rdma_destroy_id(l->id);
        l->id = NULL;
        return NULL;
    }
    while (i < l->unsure_count && l->unsure[i].id != id)
        i++;
    if (i == l->unsure_count)
        return NULL;
    if (type == RDMA_CM_EVENT_ESTABLISHED)
        return establish(l, i);
    drop(l, i);
    return NULL;
}

static int rdma_accept_next(struct transport_listener *base, struct transport **out)
{
    struct rdma_listener *l = (struct rdma_listener *)base;
    struct rdma_cm_event *event;
    int ret = transport_accept(l->tcp, out);

    if (ret != -EAGAIN)
        return ret;
    expire(l);
    while (rdma_get_cm_event(l->events, &event) == 0) {
        *out = handle(l, event);
        if (*out)
            return 0;
    }
    return -EAGAIN;
}

static int rdma_listener_pollfd(struct transport_listener *base)
{
    return ((struct rdma_listener *)base)->epoll_fd;
}

static const char *rdma_listener_address(struct transport_listener *base)
{
    return ((struct rdma_listener *)base)->address;
}

static void rdma_listener_close(struct transport_listener *base)
{
    struct rdma_listener *l = (struct rdma_listener *)base;

    while (l->unsure_count > 0)
        drop(l, l->unsure_count - 1);
    if (l->id)
        rdma_destroy_id(l->id);
    if (l->events)
        rdma_destroy_event_channel(l->events);
    transport_listener_close(l->tcp);
    if (l->epoll_fd >= 0)
        close(l->epoll_fd);
    free(l);
}

static const struct transport_listener_ops rdma_listener_ops = {
    .accept = rdma_accept_next,
    .pollfd = rdma_listener_pollfd,
    .address = rdma_listener_address,
    .close = rdma_listener_close,
};

/* The queue pairs come to the port that the main channels come to. */
static int bind_id(struct rdma_listener *l, const struct uri *uri, struct error *err)
{
    CLEANUP_ADDRINFO struct addrinfo *list = NULL;

    if (lookup_here(uri, strrchr(l->address, ':') + 1, &list, err) < 0)
        return -EIO;
    int ret = rdma_bind_addr(l->id, list->ai_addr);
    if (ret < 0 && (errno == ENODEV || errno == EADDRNOTAVAIL))
        return error_set(err, CAUSE_UNREACHABLE, "%s: no RDMA device has this address", uri->text);
    if (ret < 0 || rdma_listen(l->id, BACKLOG) < 0)
        return error_set_errno(err, errno, "cannot listen at %s by RDMA", uri->text);
    return 0;
}

static int watch(const struct rdma_listener *l, int fd, struct error *err)
{
    struct epoll_event event = {.events = EPOLLIN};

    return epoll_ctl(l->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0 ? error_set_errno(err, errno, "epoll") : 0;
}

static int prepare(struct rdma_listener *l, const struct uri *uri, struct error *err)
{
    if (l->epoll_fd < 0)
        return error_set_errno(err, errno, "epoll");
    if (transport_tcp.listen(uri, &l->tcp, err) < 0)
        return -EIO;
    snprintf(l->address, sizeof(l->address), "rdma%s", strchr(transport_listener_address(l->tcp), ':'));
    l->events = new_event_channel(err);
    if (!l->events)
        return -EIO;
    if (rdma_create_id(l->events, &l->id, NULL, RDMA_PS_TCP) < 0)
        return error_set_errno(err, errno, "RDMA");
    if (bind_id(l, uri, err) < 0 || watch(l, transport_listener_pollfd(l->tcp), err) < 0)
        return -EIO;
    return watch(l, l->events->fd, err);
}

static int rdma_listen_at(const struct uri *uri, struct transport_listener **out, struct error *err)
{
    struct rdma_listener *l = calloc(1, sizeof(*l));

    if (!l)
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    l->base.ops = &rdma_listener_ops;
    l->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (prepare(l, uri, err) < 0) {
        rdma_listener_close(&l->base);
        return -EIO;
    }
    *out = &l->base;
    return 0;
}

const bool transport_has_rdma = true;

const struct transport_family transport_rdma = {
    .connect = rdma_connect_to,
    .listen = rdma_listen_at,
};
