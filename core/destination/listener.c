/* SPDX-License-Identifier: Apache-2.0 */
/* Where migrations arrive; see listener.h. */
#include "listener.h"
#include "cleanup.h"
#include "clock.h"
#include "incoming.h"
#include "log.h"
#include "lookup.h"
#include "strangers.h"
#include "tls.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>

#define PENDING_MAX      256   /* undecided connections */
#define PENDING_PEER_MAX 64    /* of one peer */
#define ACCEPT_MAX       64    /* in one turn: what has arrived is read in between */
#define HELLO_TIMEOUT_MS 10000 /* for a peer to say hello */
#define LINGER_MS        1000  /* for a refused peer to read why */
#define RETRY_MS         100   /* when accepting fails for want of memory */
/* The first bytes of a connection with TLS: a record of the handshake, and the major version */
#define TLS_FIRST  0x16
#define TLS_SECOND 0x03

#define NO_DESCRIPTORS "the destination has no file descriptors left: try again later"

/* A connection whose hello has not been read, or that has been refused and may still read why. */
struct pending {
    struct transport *transport;
    struct account *account; /* of its peer */
    bool on_spare; /* its descriptor is the one that is kept for telling a peer that there are none */
    int64_t deadline;
    bool refused;
    bool unproved; /* it shakes hands, and the strangers count it */
    size_t have;   /* bytes of hello */
    struct wire_hello hello;
};

/* All of it is the thread's, but what is made before the thread and constant. */
struct listener {
    struct registry *registry;
    unsigned n;
    struct transport_listener *listeners[LISTENER_URIS_MAX];
    int stop_fd;
    /* given up to accept one connection when there are no descriptors left; -1: it is in use */
    int spare_fd;
    bool starving; /* the last connection could not be accepted, and the log has it */
    bool running;
    pthread_t thread;
    struct strangers strangers;
    unsigned pending_count;
    struct pending pending[PENDING_MAX]; /* oldest first */
};

static void send_reply(struct transport *t, const struct hello_reply *reply)
{
    struct wire_hello_reply wire;

    wire_hello_reply_encode(reply, &wire);
    /* A peer that has no room for it learns nothing more. */
    if (transport_send_now(t, &wire, sizeof(wire)) < 0)
        transport_shutdown(t);
}

static struct hello_reply welcome(const struct host *host)
{
    const struct limits *limits = &host->limits;

    return (struct hello_reply){
        .features = WIRE_FEATURES,
        .max_ram = limits->max_ram,
        .max_device = limits->max_device,
        .max_devices = limits->max_devices,
        .timeout_ms = limits->timeout_ms,
    };
}

/* Answers with the reason, and keeps the connection until the peer has had time to read it. */
static void turn_away(struct listener *l, struct pending *p, const struct error *err)
{
    struct hello_reply reply = welcome(&l->registry->host);

    reply.cause = err->cause;
    snprintf(reply.text, sizeof(reply.text), "%s", err->message);
    send_reply(p->transport, &reply);
    transport_finish(p->transport);
    p->refused = true;
    p->deadline = clock_ms() + LINGER_MS;
}

static void refuse(struct listener *l, struct pending *p, const struct error *err)
{
    struct error line = *err;

    error_prefix(&line, "%s: refused", p->transport->peer);
    host_note_error(&l->registry->host, line.message);
    turn_away(l, p, err);
}

/*
 * Who belongs to a session: all its connections are of one identity. NULL: that cannot be told, and need not
 * be: an RDMA connection where `insecure` allows it.
 */
static const uint8_t *member(const struct listener *l, const struct transport *t)
{
    const struct host *host = &l->registry->host;

    return host->tls && host->limits.insecure && t->traits.places ? NULL : t->identity.digest;
}

/* Whose limits a connection counts against: its identity's, if there is one. */
static void account_name(const struct transport *t, char out[TRANSPORT_ADDRESS_MAX])
{
    static_assert(TRANSPORT_ADDRESS_MAX > 2 * sizeof(t->identity.digest), "it is told by its digest");

    snprintf(out, TRANSPORT_ADDRESS_MAX, "%s", t->address);
    for (size_t i = 0; t->identity.name[0] && i < sizeof(t->identity.digest); i++)
        snprintf(out + 2 * i, 3, "%02x", t->identity.digest[i]);
}

/* The kinds of hello. On success the connection has found its owner and p->transport is NULL. */

static int accept_main(struct listener *l, struct pending *p, const struct hello *hello, struct error *err)
{
    struct hello_reply reply = welcome(&l->registry->host);
    char name[TRANSPORT_ADDRESS_MAX];
    struct migration *m;

    account_name(p->transport, name);
    if (registry_add_incoming(l->registry, name, hello, &m, err) < 0)
        return -EIO;
    /* No other thread looks for it before there is mig-in. */
    m->peer = p->transport->identity;
    reply.max_ram = incoming_max_ram(m);
    reply.timeout_ms = m->settings.timeout_ms;
    int ret = incoming_begin(m, p->transport, hello->timeout_ms, &reply, err);
    if (ret == 0)
        p->transport = NULL;
    else
        registry_drop(l->registry, m);
    migration_put(m);
    return ret;
}

/* The migration of a session, or NULL. Who knows the session and is another one hears no more than that there
 * is none. */
static struct migration *find_own(const struct listener *l, const struct pending *p,
                                  const struct hello *hello)
{
    const struct transport *t = p->transport;
    struct migration *m = registry_find_session(l->registry, hello->name, hello->session, member(l, t));
    struct migration *other =
        m ? NULL : registry_find_session(l->registry, hello->name, hello->session, NULL);

    if (other)
        log_error("%s: '%s' is of '%s', and this is '%s'", t->peer, other->name, other->peer.name,
                  t->identity.name);
    migration_put(other);
    return m;
}

static int accept_data(struct listener *l, struct pending *p, const struct hello *hello, struct error *err)
{
    struct hello_reply reply = welcome(&l->registry->host);
    struct migration *m = find_own(l, p, hello);

    if (!m)
        return error_set(err, CAUSE_NOT_FOUND, "a channel for '%.64s', but no such migration is starting",
                         hello->name);
    int ret = incoming_attach(m, hello->channel, hello->channels, p->transport, &reply, err);
    if (ret == 0)
        p->transport = NULL;
    migration_put(m);
    return ret;
}

static int accept_again(struct listener *l, struct pending *p, const struct hello *hello, struct error *err)
{
    struct migration *m = find_own(l, p, hello);
    int channel = hello->kind == WIRE_HELLO_MAIN_AGAIN ? -1 : (int)hello->channel;

    if (!m)
        return error_set(
            err, CAUSE_NOT_FOUND,
            "'%.64s' cannot go on here: this daemon has been started again since, or has given it up",
            hello->name);
    int ret = incoming_attach_again(m, channel, hello->received, p->transport, err);
    if (ret == 0)
        p->transport = NULL;
    migration_put(m);
    return ret;
}

static void answer_query(struct listener *l, struct pending *p, const struct hello *hello)
{
    struct hello_reply reply = welcome(&l->registry->host);
    const uint8_t *peer = p->transport->identity.digest;
    struct migration *m = registry_find_session(l->registry, hello->name, hello->session, peer);

    reply.outcome = m ? incoming_decide(m) : host_outcome(&l->registry->host, hello->session, peer);
    migration_put(m);
    send_reply(p->transport, &reply);
    transport_finish(p->transport);
    p->refused = true; /* nothing more is expected of it */
    p->deadline = clock_ms() + LINGER_MS;
}

static void decide(struct listener *l, struct pending *p)
{
    struct error err = {0};
    struct hello hello;

    if (p->on_spare)
        error_set(&err, CAUSE_NO_MEMORY, NO_DESCRIPTORS);
    else if (wire_hello_decode(&p->hello, &hello, &err) == 0) {
        switch (hello.kind) {
        case WIRE_HELLO_MAIN:
            accept_main(l, p, &hello, &err);
            break;
        case WIRE_HELLO_DATA:
            accept_data(l, p, &hello, &err);
            break;
        case WIRE_HELLO_QUERY:
            answer_query(l, p, &hello);
            break;
        case WIRE_HELLO_MAIN_AGAIN:
        case WIRE_HELLO_DATA_AGAIN:
            accept_again(l, p, &hello, &err);
            break;
        }
    }
    if (error_is_set(&err))
        refuse(l, p, &err);
}

/* Whether a peer begins as TLS does, and not as the wire protocol. */
static bool begins_with_tls(const struct pending *p)
{
    const uint8_t *first = (const uint8_t *)&p->hello;

    return p->have >= 2 && first[0] == TLS_FIRST && first[1] == TLS_SECOND;
}

/* The connection has said something that is no hello, or something went wrong. True: it is done with. */
static bool give_up(struct listener *l, struct pending *p, ssize_t code)
{
    struct error err = {0};

    transport_explain(p->transport, &err);
    if (!error_is_set(&err)) {
        log_error("%s: closed before it said hello", p->transport->peer);
        return true;
    }
    if (err.cause == CAUSE_RESET) {
        log_error("%s: %s", p->transport->peer, err.message);
        return true;
    }
    if (code == -EPFNOSUPPORT)
        error_prefix(&err, "this destination takes TLS alone (-o tls, -o tls-psk)");
    refuse(l, p, &err);
    return false;
}

/* Reads on, until there is nothing more. True: the connection is done with, here. */
static bool advance(struct listener *l, struct pending *p)
{
    struct error err = {0};
    char rest[4096];

    while (!p->refused) {
        ssize_t n = transport_recv(p->transport, (char *)&p->hello + p->have, sizeof(p->hello) - p->have,
                                   TRANSPORT_NOWAIT);
        if (n == -EAGAIN)
            return false;
        if (n <= 0)
            return give_up(l, p, n);
        if (p->unproved)
            strangers_vouch(&l->strangers, p->transport->address, clock_ms());
        p->unproved = false;
        p->have += (size_t)n;
        if (begins_with_tls(p)) {
            error_set(&err, CAUSE_PROTOCOL,
                      "the peer speaks TLS, and this daemon has no -o tls and no -o tls-psk");
            refuse(l, p, &err);
        } else if (p->have == sizeof(p->hello)) {
            decide(l, p);
        }
        if (!p->transport)
            return true;
    }
    ssize_t n = transport_recv(p->transport, rest, sizeof(rest), TRANSPORT_NOWAIT);
    return n <= 0 && n != -EAGAIN;
}

static void take_spare(struct listener *l)
{
    if (l->spare_fd < 0)
        l->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

static void drop_pending(struct listener *l, unsigned i)
{
    struct pending *p = &l->pending[i];
    bool on_spare = p->on_spare;

    p->account->undecided--;
    account_put(p->account);
    transport_close(p->transport);
    memmove(p, p + 1, (l->pending_count - i - 1) * sizeof(*p));
    l->pending_count--;
    if (on_spare)
        take_spare(l);
}

/*
 * Makes room for one more of a peer: it does not take that of others, and the peer with the most gives some
 * up first.
 */
static void make_room(struct listener *l, const struct account *account)
{
    unsigned oldest = 0;

    if (account->undecided < PENDING_PEER_MAX && l->pending_count < PENDING_MAX)
        return;
    if (account->undecided < PENDING_PEER_MAX) {
        for (unsigned i = 0; i < l->pending_count; i++) {
            if (l->pending[i].account->undecided > account->undecided)
                account = l->pending[i].account;
        }
    }
    while (oldest < l->pending_count - 1 && l->pending[oldest].account != account)
        oldest++;
    struct pending *p = &l->pending[oldest];
    if (!p->account->flooding)
        log_error("%s: dropped: too many connections of %s that say nothing", p->transport->peer,
                  account->address);
    p->account->flooding = true;
    drop_pending(l, oldest);
}

/* Whether a connection may begin to shake hands; if not, the log has it once. */
static bool admit(struct listener *l, const struct transport *t)
{
    bool first = false;

    if (strangers_admit(&l->strangers, t->address, clock_ms(), &first))
        return true;
    if (first)
        log_error("%s: dropped: too many connections of %s have not proved who they are", t->peer,
                  t->address);
    return false;
}

/* Return: 0; -ECONNABORTED or -ENOMEM; the connection is closed then. */
static int add_pending(struct listener *l, struct transport *t, bool on_spare)
{
    struct host *host = &l->registry->host;
    bool shakes = host->tls && t->traits.seals;

    if (shakes && !admit(l, t)) {
        transport_close(t);
        return -ECONNABORTED;
    }
    struct account *account = account_get(&host->accounts, t->address);
    if (!account || (shakes && tls_server(host->tls, t) < 0)) {
        account_put(account);
        transport_close(t);
        return -ENOMEM;
    }
    make_room(l, account);
    if (account->undecided++ == 0)
        account->flooding = false;
    l->pending[l->pending_count++] = (struct pending){
        .transport = t,
        .account = account,
        .on_spare = on_spare,
        .unproved = shakes,
        .deadline = clock_ms() + HELLO_TIMEOUT_MS,
    };
    return 0;
}

/* There are no descriptors left: the spare one goes to a peer for as long as it takes to tell it so. */
static int accept_on_spare(struct listener *l, struct transport_listener *from, int code)
{
    struct error err = {0};
    struct transport *t;

    if (!l->starving)
        log_error("%s: refusing connections: %s", transport_listener_address(from), strerror(-code));
    l->starving = true;
    close(l->spare_fd);
    l->spare_fd = -1;
    int ret = transport_accept(from, &t);
    if (ret == 0)
        ret = add_pending(l, t, true);
    if (ret < 0) {
        take_spare(l);
        return ret;
    }
    struct pending *p = &l->pending[l->pending_count - 1];
    error_set(&err, CAUSE_NO_MEMORY, NO_DESCRIPTORS);
    /* One that shakes hands is told when it has, in decide(). */
    if (l->registry->host.tls && t->traits.seals)
        p->deadline = clock_ms() + LINGER_MS;
    else
        turn_away(l, p, &err);
    return 0;
}

static int accept_one(struct listener *l, struct transport_listener *from)
{
    struct transport *t;
    int ret = transport_accept(from, &t);

    if ((ret == -EMFILE || ret == -ENFILE) && l->spare_fd >= 0)
        return accept_on_spare(l, from, ret);
    if (ret < 0)
        return ret;
    l->starving = false;
    return add_pending(l, t, false);
}

static void expire(struct listener *l)
{
    int64_t now = clock_ms();

    for (unsigned i = l->pending_count; i-- > 0;) {
        if (now < l->pending[i].deadline)
            continue;
        if (!l->pending[i].refused)
            log_error("%s: dropped: it has not said hello", l->pending[i].transport->peer);
        drop_pending(l, i);
    }
}

/* Accepts what has come; with the time after which it is tried again when that fails. */
static void accept_all(struct listener *l, const struct pollfd *fds, int64_t *accept_after)
{
    for (unsigned i = 0; i < l->n; i++) {
        int ret = 0;
        /* Without the spare descriptor, what comes waits. */
        for (int k = 0;
             k < ACCEPT_MAX && fds[i].revents && (ret == 0 || ret == -ECONNABORTED) && l->spare_fd >= 0; k++)
            ret = accept_one(l, l->listeners[i]);
        if (ret < 0 && ret != -EAGAIN && ret != -EINTR && ret != -ECONNABORTED) {
            if (!l->starving)
                log_error("%s: accept: %s", transport_listener_address(l->listeners[i]), strerror(-ret));
            l->starving = true;
            *accept_after = clock_ms() + RETRY_MS;
        }
    }
}

static bool spare_is_lent(const struct listener *l)
{
    for (unsigned i = 0; i < l->pending_count; i++) {
        if (l->pending[i].on_spare)
            return true;
    }
    return false;
}

static void *mig_listen(void *arg)
{
    struct listener *l = arg;
    int64_t accept_after = 0; /* a pause when accepting fails */

    for (;;) {
        struct pollfd fds[1 + LISTENER_URIS_MAX + PENDING_MAX];
        int64_t now = clock_ms(), until = now + 60000;
        unsigned pending = l->pending_count;
        /* Somebody else was faster: it is taken back when there is one again. */
        if (l->spare_fd < 0 && !spare_is_lent(l)) {
            take_spare(l);
            accept_after = l->spare_fd < 0 ? now + RETRY_MS : accept_after;
        }
        bool accepts = l->spare_fd >= 0 && now >= accept_after;
        fds[0] = (struct pollfd){.fd = l->stop_fd, .events = POLLIN};
        for (unsigned i = 0; i < l->n; i++)
            fds[1 + i] = (struct pollfd){
                .fd = accepts ? transport_listener_pollfd(l->listeners[i]) : -1,
                .events = POLLIN,
            };
        if (now < accept_after)
            until = accept_after;
        for (unsigned i = 0; i < pending; i++) {
            fds[1 + l->n + i] =
                (struct pollfd){.fd = transport_pollfd(l->pending[i].transport), .events = POLLIN};
            if (l->pending[i].deadline < until)
                until = l->pending[i].deadline;
        }
        if (poll(fds, 1 + l->n + pending, clock_poll_timeout(until)) < 0 && errno != EINTR)
            log_error("listener: poll: %s", strerror(errno));
        if (fds[0].revents)
            return NULL;
        for (unsigned i = pending; i-- > 0;) {
            if (fds[1 + l->n + i].revents && advance(l, &l->pending[i]))
                drop_pending(l, i);
        }
        expire(l);
        accept_all(l, fds + 1, &accept_after);
    }
}

/* Whether it may be listened at there. */
static int check_exposure(const struct host *host, const struct uri *uri, struct error *err)
{
    if (host->limits.insecure || lookup_is_private(uri))
        return 0;
    if (uri->inner == URI_RDMA)
        return error_set(
            err, CAUSE_DENIED,
            "%.160s: RDMA has no TLS: whoever is on the way reads and changes guest memory. If that is "
            "fine, say -o insecure",
            uri->text);
    if (!host->tls)
        return error_set(
            err, CAUSE_DENIED,
            "%.160s: without TLS anybody could send migrations, and read them on the way: give -o "
            "tls=DIR or -o tls-psk=FILE; or say -o insecure",
            uri->text);
    return 0;
}

int listener_new(struct registry *registry, const struct uri *uris, unsigned n, struct listener **out,
                 struct error *err)
{
    struct listener *l = calloc(1, sizeof(*l));

    if (!l)
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    l->registry = registry;
    l->stop_fd = eventfd(0, EFD_CLOEXEC);
    l->spare_fd = -1;
    take_spare(l);
    if (l->stop_fd < 0 || l->spare_fd < 0)
        error_set_errno(err, errno, "eventfd");
    for (; l->n < n && !error_is_set(err); l->n++) {
        if (check_exposure(&registry->host, &uris[l->n], err) < 0 ||
            transport_listen(&uris[l->n], &l->listeners[l->n], err) < 0)
            break;
    }
    if (error_is_set(err)) {
        listener_free(l);
        return -EIO;
    }
    *out = l;
    return 0;
}

int listener_start(struct listener *l, struct error *err)
{
    if (l->n == 0)
        return 0;
    int code = pthread_create(&l->thread, NULL, mig_listen, l);
    if (code)
        return error_set_errno(err, code, "cannot make a thread");
    pthread_setname_np(l->thread, "mig-listen");
    l->running = true;
    return 0;
}

const char *listener_address(struct listener *l, unsigned i)
{
    return i < l->n ? transport_listener_address(l->listeners[i]) : NULL;
}

void listener_free(struct listener *l)
{
    if (!l)
        return;
    if (l->running) {
        eventfd_write(l->stop_fd, 1);
        pthread_join(l->thread, NULL);
    }
    while (l->pending_count > 0)
        drop_pending(l, l->pending_count - 1);
    for (unsigned i = 0; i < l->n; i++)
        transport_listener_close(l->listeners[i]);
    if (l->stop_fd >= 0)
        close(l->stop_fd);
    if (l->spare_fd >= 0)
        close(l->spare_fd);
    free(l);
}
