/* SPDX-License-Identifier: Apache-2.0 */
/* The stand-in's connection manager; see verbs.h. */
#include "verbs_card.h"
#include "cleanup.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define REQUEST_DATA 56 /* bytes of private data, as they are over InfiniBand */
#define ANSWER_DATA  196
#define EVENT_TYPES  (RDMA_CM_EVENT_TIMEWAIT_EXIT + 1)
#define NO_ANSWER    (-2)

enum endpoint_state {
    IDLE,
    BOUND,
    LISTENING,
    RESOLVED,
    ROUTED,
    ASKING,   /* it has been connected, and not answered */
    ASKED,    /* it is of a connection request */
    ACCEPTED, /* the other end does not know it yet */
    CONNECTED,
    OVER,
};

struct endpoint {
    struct rdma_cm_id id;
    enum endpoint_state state;
    struct pair *pair;
    struct endpoint *peer;
    uint8_t rnr_retries;
    unsigned unacknowledged;
    struct endpoint *next;
};

struct event {
    struct rdma_cm_event event;
    uint8_t data[ANSWER_DATA];
    struct event *next;
};

struct event_channel {
    struct rdma_event_channel channel;
    struct event *events;
    unsigned ids;
};

/* All of it under card_lock. */
static struct endpoint *endpoints;
static int answers[EVENT_TYPES] = {[0 ... EVENT_TYPES - 1] = NO_ANSWER};
static int device_count = 1;

/*
 * Events
 */

static void append(struct event_channel *c, struct event *event)
{
    struct event **at = &c->events;

    while (*at)
        at = &(*at)->next;
    event->next = NULL;
    *at = event;
    eventfd_write(c->channel.fd, 1);
}

/* Takes an event away that nobody has got. */
static struct event *take_away(struct event_channel *c, struct event **at)
{
    struct event *event = *at;
    eventfd_t one;

    *at = event->next;
    eventfd_read(c->channel.fd, &one);
    return event;
}

static struct event_channel *channel_of(const struct endpoint *e)
{
    return (struct event_channel *)e->id.channel;
}

/* Tells an end, with @len bytes of private data and zeros up to @room. */
static void announce(struct endpoint *e, struct endpoint *listener, enum rdma_cm_event_type type,
                     const struct rdma_conn_param *param, uint8_t room)
{
    struct event *event = calloc(1, sizeof(*event));
    int instead = answers[type];

    answers[type] = NO_ANSWER;
    if (instead == VERBS_SILENCE) {
        card_counts.unanswered++;
        free(event);
        return;
    }
    event->event.id = &e->id;
    event->event.listen_id = listener ? &listener->id : NULL;
    event->event.event = instead == NO_ANSWER ? type : (enum rdma_cm_event_type)instead;
    if (param && param->private_data)
        memcpy(event->data, param->private_data,
               param->private_data_len < room ? param->private_data_len : room);
    event->event.param.conn.private_data = room ? event->data : NULL;
    event->event.param.conn.private_data_len = room;
    append(channel_of(listener ? listener : e), event);
}

struct rdma_event_channel *rdma_create_event_channel(void)
{
    SCOPED_LOCK(&card_lock);
    if (card_must_fail(VERBS_CREATE_EVENT_CHANNEL))
        return NULL;
    struct event_channel *c = calloc(1, sizeof(*c));
    c->channel.fd = eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE);
    card_counts.event_channels++;
    return &c->channel;
}

void rdma_destroy_event_channel(struct rdma_event_channel *channel)
{
    struct event_channel *c = (struct event_channel *)channel;

    SCOPED_LOCK(&card_lock);
    if (c->ids > 0)
        card_violation("an event channel goes before its ids");
    close(channel->fd);
    card_counts.event_channels--;
    free(c);
}

/* The end that connected hears that it stands: from now on both are ready. */
static void stand(struct endpoint *e)
{
    struct endpoint *peer = e->peer;

    if (e->state != ASKING || !peer)
        return;
    e->state = peer->state = CONNECTED;
    pair_set_ready(e->pair);
    announce(peer, NULL, RDMA_CM_EVENT_ESTABLISHED, NULL, 0);
}

int rdma_get_cm_event(struct rdma_event_channel *channel, struct rdma_cm_event **out)
{
    struct event_channel *c = (struct event_channel *)channel;
    eventfd_t one;

    if (eventfd_read(channel->fd, &one) < 0)
        return -1;
    SCOPED_LOCK(&card_lock);
    if (card_must_fail(VERBS_GET_CM_EVENT)) {
        eventfd_write(channel->fd, 1);
        return -1;
    }
    struct event *event = c->events;
    if (!event) {
        errno = EAGAIN;
        return -1;
    }
    struct endpoint *e = (struct endpoint *)event->event.id;
    struct rdma_cm_id *counted = event->event.listen_id ? event->event.listen_id : event->event.id;
    c->events = event->next;
    ((struct endpoint *)counted)->unacknowledged++;
    if (event->event.event == RDMA_CM_EVENT_ESTABLISHED)
        stand(e);
    *out = &event->event;
    return 0;
}

int rdma_ack_cm_event(struct rdma_cm_event *event)
{
    struct rdma_cm_id *counted = event->listen_id ? event->listen_id : event->id;

    SCOPED_LOCK(&card_lock);
    ((struct endpoint *)counted)->unacknowledged--;
    free(event);
    return 0;
}

const char *rdma_event_str(enum rdma_cm_event_type event)
{
    return event == RDMA_CM_EVENT_CONNECT_ERROR ? "connect error" : "another event";
}

/*
 * Ids
 */

static struct endpoint *endpoint_new(struct rdma_event_channel *channel, void *context)
{
    struct endpoint *e = calloc(1, sizeof(*e));

    e->id = (struct rdma_cm_id){.channel = channel, .context = context, .ps = RDMA_PS_TCP};
    e->next = endpoints;
    endpoints = e;
    channel_of(e)->ids++;
    card_counts.ids++;
    return e;
}

int rdma_create_id(struct rdma_event_channel *channel, struct rdma_cm_id **id, void *context,
                   enum rdma_port_space ps)
{
    SCOPED_LOCK(&card_lock);
    if (card_must_fail(VERBS_CREATE_ID))
        return -1;
    if (ps != RDMA_PS_TCP)
        card_violation("this port space is not known");
    *id = &endpoint_new(channel, context)->id;
    return 0;
}

static void tell_peer_of_end(struct endpoint *e)
{
    struct endpoint *peer = e->peer;

    if (!peer)
        return;
    if (peer->state == CONNECTED)
        announce(peer, NULL, RDMA_CM_EVENT_DISCONNECTED, NULL, 0);
    else if (peer->state != OVER)
        announce(peer, NULL, RDMA_CM_EVENT_REJECTED, NULL, 0);
    peer->state = OVER;
    peer->peer = NULL;
}

static void endpoint_free(struct endpoint *e)
{
    struct endpoint **at = &endpoints;
    struct event_channel *c = channel_of(e);

    if (e->unacknowledged > 0)
        card_violation("an id is destroyed, and waits for its events to be acknowledged");
    if (e->pair)
        card_violation("an id is destroyed before its queue pair");
    tell_peer_of_end(e);
    while (*at != e)
        at = &(*at)->next;
    *at = e->next;
    for (struct event **event = &c->events; *event;) {
        struct rdma_cm_event *what = &(*event)->event;
        if (what->id != &e->id && what->listen_id != &e->id) {
            event = &(*event)->next;
            continue;
        }
        /* A request that nobody has got goes with the listener. */
        if (what->id != &e->id) {
            endpoint_free((struct endpoint *)what->id);
            event = &c->events;
        } else {
            free(take_away(c, event));
        }
    }
    c->ids--;
    card_counts.ids--;
    free(e);
}

int rdma_destroy_id(struct rdma_cm_id *id)
{
    SCOPED_LOCK(&card_lock);
    endpoint_free((struct endpoint *)id);
    return 0;
}

int rdma_migrate_id(struct rdma_cm_id *id, struct rdma_event_channel *channel)
{
    struct endpoint *e = (struct endpoint *)id;
    struct event_channel *from = channel_of(e), *to = (struct event_channel *)channel;

    SCOPED_LOCK(&card_lock);
    if (card_must_fail(VERBS_MIGRATE_ID))
        return -1;
    if (e->unacknowledged > 0)
        card_violation("an id moves, and waits for its events to be acknowledged");
    for (struct event **event = &from->events; *event;) {
        if ((*event)->event.id == id)
            append(to, take_away(from, event));
        else
            event = &(*event)->next;
    }
    id->channel = channel;
    from->ids--;
    to->ids++;
    return 0;
}

/*
 * Addresses
 */

static uint16_t port_of(const struct sockaddr *addr)
{
    return addr->sa_family == AF_INET6 ? ((const struct sockaddr_in6 *)addr)->sin6_port
                                       : ((const struct sockaddr_in *)addr)->sin_port;
}

static bool is_any(const struct sockaddr *addr)
{
    if (addr->sa_family == AF_INET6)
        return IN6_IS_ADDR_UNSPECIFIED(&((const struct sockaddr_in6 *)addr)->sin6_addr);
    return ((const struct sockaddr_in *)addr)->sin_addr.s_addr == htonl(INADDR_ANY);
}

/* The device that has an address, or NULL. */
static struct ibv_context *device_of(const struct sockaddr *addr)
{
    struct ibv_context *device = NULL;

    if (addr->sa_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)addr)->sin6_addr))
        device = &verbs_devices[0];
    else if (addr->sa_family == AF_INET) {
        uint32_t host = ntohl(((const struct sockaddr_in *)addr)->sin_addr.s_addr) - INADDR_LOOPBACK;
        device = host < VERBS_DEVICES ? &verbs_devices[host] : NULL;
    }
    return device && !card_is_removed(device) ? device : NULL;
}

static void copy_address(struct sockaddr_storage *to, const struct sockaddr *from)
{
    memcpy(to, from, from->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in));
}

static int fail(int code)
{
    errno = code;
    return -1;
}

int rdma_bind_addr(struct rdma_cm_id *id, struct sockaddr *addr)
{
    SCOPED_LOCK(&card_lock);
    if (card_must_fail(VERBS_BIND_ADDR))
        return -1;
    id->verbs = device_of(addr);
    if (!id->verbs && !is_any(addr))
        return fail(ENODEV);
    copy_address(&id->route.addr.src_storage, addr);
    ((struct endpoint *)id)->state = BOUND;
    return 0;
}

int rdma_listen(struct rdma_cm_id *id, int backlog)
{
    struct endpoint *e = (struct endpoint *)id;

    SCOPED_LOCK(&card_lock);
    if (card_must_fail(VERBS_LISTEN))
        return -1;
    if (e->state != BOUND || backlog < 1)
        return fail(EINVAL);
    e->state = LISTENING;
    return 0;
}

/* The device may have been removed since. */
static bool is_there(const struct rdma_cm_id *id)
{
    return id->verbs && !card_is_removed(id->verbs);
}

int rdma_resolve_addr(struct rdma_cm_id *id, struct sockaddr *src, struct sockaddr *dst, int timeout_ms)
{
    struct endpoint *e = (struct endpoint *)id;

    (void)src, (void)timeout_ms;
    SCOPED_LOCK(&card_lock);
    if (card_must_fail(VERBS_RESOLVE_ADDR))
        return -1;
    id->verbs = device_of(dst);
    if (!id->verbs)
        return fail(ENODEV);
    copy_address(&id->route.addr.dst_storage, dst);
    copy_address(&id->route.addr.src_storage, dst);
    e->state = RESOLVED;
    announce(e, NULL, RDMA_CM_EVENT_ADDR_RESOLVED, NULL, 0);
    return 0;
}

int rdma_resolve_route(struct rdma_cm_id *id, int timeout_ms)
{
    struct endpoint *e = (struct endpoint *)id;

    (void)timeout_ms;
    SCOPED_LOCK(&card_lock);
    if (card_must_fail(VERBS_RESOLVE_ROUTE))
        return -1;
    if (e->state != RESOLVED || !is_there(id))
        return fail(EINVAL);
    e->state = ROUTED;
    announce(e, NULL, RDMA_CM_EVENT_ROUTE_RESOLVED, NULL, 0);
    return 0;
}

/*
 * Connections
 */

int rdma_create_qp(struct rdma_cm_id *id, struct ibv_pd *pd, struct ibv_qp_init_attr *attr)
{
    struct endpoint *e = (struct endpoint *)id;

    SCOPED_LOCK(&card_lock);
    if (card_must_fail(VERBS_CREATE_QP))
        return -1;
    if (pd->context != id->verbs)
        return fail(EINVAL);
    e->pair = pair_new(pd, attr, e->state == ASKED ? VERBS_PASSIVE : VERBS_ACTIVE);
    if (!e->pair)
        return -1;
    id->qp = pair_qp(e->pair);
    id->pd = pd;
    return 0;
}

void rdma_destroy_qp(struct rdma_cm_id *id)
{
    struct endpoint *e = (struct endpoint *)id;

    SCOPED_LOCK(&card_lock);
    pair_free(e->pair);
    e->pair = NULL;
    id->qp = NULL;
}

static struct endpoint *find_listener(const struct sockaddr *addr)
{
    struct endpoint *e = endpoints;

    while (e && (e->state != LISTENING || port_of(&e->id.route.addr.src_addr) != port_of(addr) ||
                 (e->id.verbs && e->id.verbs != device_of(addr))))
        e = e->next;
    return e;
}

int rdma_connect(struct rdma_cm_id *id, struct rdma_conn_param *param)
{
    struct endpoint *e = (struct endpoint *)id;

    SCOPED_LOCK(&card_lock);
    if (card_must_fail(VERBS_CONNECT))
        return -1;
    if (e->state != ROUTED || !e->pair || !is_there(id) || param->private_data_len > REQUEST_DATA)
        return fail(EINVAL);
    e->state = ASKING;
    e->rnr_retries = param->rnr_retry_count;
    struct endpoint *listener = find_listener(&id->route.addr.dst_addr);
    if (answers[RDMA_CM_EVENT_CONNECT_REQUEST] == VERBS_SILENCE)
        return 0; /* the request is lost */
    if (!listener) {
        announce(e, NULL, RDMA_CM_EVENT_REJECTED, NULL, 0);
        return 0;
    }
    struct endpoint *asked = endpoint_new(listener->id.channel, listener->id.context);
    asked->id.verbs = id->verbs;
    asked->id.route.addr.src_storage = id->route.addr.dst_storage;
    asked->id.route.addr.dst_storage = id->route.addr.src_storage;
    asked->state = ASKED;
    asked->peer = e;
    e->peer = asked;
    announce(asked, listener, RDMA_CM_EVENT_CONNECT_REQUEST, param, REQUEST_DATA);
    return 0;
}

int rdma_accept(struct rdma_cm_id *id, struct rdma_conn_param *param)
{
    struct endpoint *e = (struct endpoint *)id;

    SCOPED_LOCK(&card_lock);
    if (card_must_fail(VERBS_ACCEPT))
        return -1;
    if (e->state != ASKED || !e->pair || !e->peer || !e->peer->pair || !is_there(id) ||
        param->private_data_len > ANSWER_DATA)
        return fail(EINVAL);
    uint8_t retries =
        e->peer->rnr_retries < param->rnr_retry_count ? e->peer->rnr_retries : param->rnr_retry_count;
    e->state = ACCEPTED;
    pair_join(e->pair, e->peer->pair, retries);
    pair_set_ready(e->pair);
    announce(e->peer, NULL, RDMA_CM_EVENT_ESTABLISHED, param, ANSWER_DATA);
    return 0;
}

int rdma_reject(struct rdma_cm_id *id, const void *private_data, uint8_t private_data_len)
{
    struct endpoint *e = (struct endpoint *)id;

    (void)private_data, (void)private_data_len;
    SCOPED_LOCK(&card_lock);
    if (e->state != ASKED)
        return fail(EINVAL);
    tell_peer_of_end(e);
    e->peer = NULL;
    e->state = OVER;
    return 0;
}

int rdma_disconnect(struct rdma_cm_id *id)
{
    struct endpoint *e = (struct endpoint *)id;

    SCOPED_LOCK(&card_lock);
    if (e->state != CONNECTED && e->state != OVER)
        return fail(EINVAL);
    if (e->pair)
        pair_break(e->pair);
    if (e->state == OVER)
        return 0;
    card_counts.disconnects++;
    tell_peer_of_end(e);
    e->peer = NULL;
    e->state = OVER;
    announce(e, NULL, RDMA_CM_EVENT_DISCONNECTED, NULL, 0);
    return 0;
}

/*
 * Devices, and what a test says
 */

struct ibv_context **rdma_get_devices(int *n)
{
    SCOPED_LOCK(&card_lock);
    struct ibv_context **list = calloc(VERBS_DEVICES + 1, sizeof(*list));
    *n = device_count;
    for (int i = 0; i < device_count; i++)
        list[i] = &verbs_devices[i];
    return list;
}

void rdma_free_devices(struct ibv_context **list)
{
    free(list);
}

void verbs_set_devices(int n)
{
    SCOPED_LOCK(&card_lock);
    device_count = n;
}

void verbs_answer(enum rdma_cm_event_type type, int instead)
{
    SCOPED_LOCK(&card_lock);
    answers[type] = instead;
}

void verbs_remove_device(unsigned i)
{
    SCOPED_LOCK(&card_lock);
    card_removed[i] = true;
    for (struct endpoint *e = endpoints; e; e = e->next) {
        if (e->id.verbs == &verbs_devices[i])
            announce(e, NULL, RDMA_CM_EVENT_DEVICE_REMOVAL, NULL, 0);
    }
}
