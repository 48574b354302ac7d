/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lookups; see lookup.h.
 *
 * getaddrinfo(3) cannot be interrupted, and a name server that does not answer holds it
 * up for longer than anybody wants to wait. So a thread of its own makes the call, and
 * whoever does not wait any more leaves the lookup to it: the last of the two frees it.
 * What is an address already needs no thread.
 */
#include "lookup.h"
#include "cleanup.h"
#include "clock.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>

#define LOOKUPS_MAX 64 /* threads: those that were given up included */

struct lookup {
    char host[URI_MAX], port[URI_MAX];
    int done_fd;      /* an eventfd: readable when it is done */
    atomic_bool done; /* the following is there; release and acquire, because poll(2) orders nothing */
    int code, errnum; /* getaddrinfo()'s, and errno for EAI_SYSTEM */
    struct addrinfo *list;
    /* of two: the thread, and whoever waits; acquire and release, so that the last one sees all */
    atomic_uint users;
};

static atomic_uint lookups;

static const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};

static void lookup_put(struct lookup *lookup)
{
    if (atomic_fetch_sub(&lookup->users, 1) > 1)
        return;
    if (lookup->list)
        freeaddrinfo(lookup->list);
    close(lookup->done_fd);
    free(lookup);
    atomic_fetch_sub(&lookups, 1);
}

static void *look_up(void *arg)
{
    struct lookup *lookup = arg;
    struct addrinfo *list = NULL;

    pthread_setname_np(pthread_self(), "mig-lookup");
    lookup->code = getaddrinfo(lookup->host, lookup->port, &hints, &list);
    lookup->errnum = errno;
    lookup->list = lookup->code ? NULL : list;
    atomic_store_explicit(&lookup->done, true, memory_order_release);
    eventfd_write(lookup->done_fd, 1);
    lookup_put(lookup);
    return NULL;
}

/* With a thread that is on its way. */
static int lookup_new(const char *host, const char *port, struct lookup **out)
{
    struct lookup *lookup;
    pthread_attr_t attr;
    pthread_t thread;

    if (atomic_fetch_add(&lookups, 1) >= LOOKUPS_MAX || !(lookup = calloc(1, sizeof(*lookup)))) {
        atomic_fetch_sub(&lookups, 1);
        return -EAGAIN;
    }
    strncpy(lookup->host, host, sizeof(lookup->host) - 1);
    strncpy(lookup->port, port, sizeof(lookup->port) - 1);
    lookup->users = 1;
    lookup->done_fd = eventfd(0, EFD_CLOEXEC);
    int code = lookup->done_fd < 0 ? errno : 0;
    if (!code) {
        lookup->users = 2;
        pthread_attr_init(&attr);
        pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
        code = pthread_create(&thread, &attr, look_up, lookup);
        pthread_attr_destroy(&attr);
    }
    if (code) {
        lookup->users = 1;
        lookup_put(lookup);
        return -code;
    }
    *out = lookup;
    return 0;
}

static int await(const struct lookup *lookup, const struct transport_wait *wait)
{
    struct pollfd fds[2] = {
        {.fd = lookup->done_fd, .events = POLLIN},
        {.fd = wait->cancel_fd, .events = POLLIN},
    };

    while (!atomic_load_explicit(&lookup->done, memory_order_acquire)) {
        int n = poll(fds, 2, clock_poll_timeout(wait->deadline_ms));
        if (n < 0 && errno != EINTR)
            return -errno;
        if (n > 0 && fds[0].revents)
            continue;
        if (n > 0 && fds[1].revents)
            return -ECANCELED;
        if (clock_ms() >= wait->deadline_ms)
            return -ETIMEDOUT;
    }
    return 0;
}

/* 0; 1 with what getaddrinfo() says in *@gai; a negative errno. */
static int find(const char *host, const char *port, const struct transport_wait *wait, struct addrinfo **out,
                int *gai)
{
    struct addrinfo numeric = hints;
    struct lookup *lookup = NULL;

    numeric.ai_flags = AI_NUMERICHOST;
    if (!*host || getaddrinfo(host, port, &numeric, out) == 0) {
        *gai = *host ? 0 : getaddrinfo(NULL, port, &hints, out);
        return *gai != 0;
    }
    int ret = lookup_new(host, port, &lookup);
    if (ret < 0)
        return ret;
    ret = await(lookup, wait);
    if (ret == 0 && lookup->code == EAI_SYSTEM) {
        ret = -lookup->errnum;
    } else if (ret == 0 && lookup->code) {
        *gai = lookup->code;
        ret = 1;
    } else if (ret == 0) {
        *out = lookup->list;
        lookup->list = NULL;
    }
    lookup_put(lookup);
    return ret;
}

int lookup_uri(const struct uri *uri, const struct transport_wait *wait, struct addrinfo **out,
               struct error *err)
{
    int gai = 0;
    int ret = find(uri->host, uri->port, wait, out, &gai);

    if (ret == -ECANCELED)
        return error_set(err, CAUSE_INTERRUPTED, "looking up %s was interrupted", uri->text);
    if (ret == -ETIMEDOUT)
        return error_set(err, CAUSE_TIMEOUT, "%s: the name service does not answer", uri->text);
    if (ret < 0)
        return error_set_errno(err, ret, "looking up %s", uri->text);
    if (ret > 0)
        return error_set(err, CAUSE_UNREACHABLE, "%s: %s", uri->text, gai_strerror(gai));
    return 0;
}

int lookup_here(const struct uri *uri, const char *port, struct addrinfo **out, struct error *err)
{
    struct addrinfo passive = hints;

    passive.ai_flags = AI_PASSIVE;
    int ret = getaddrinfo(uri->host[0] ? uri->host : NULL, port, &passive, out);
    if (ret == EAI_SYSTEM)
        return error_set_errno(err, errno, "%s", uri->text);
    if (ret != 0)
        return error_set(err, CAUSE_UNREACHABLE, "%s: %s", uri->text, gai_strerror(ret));
    return 0;
}

static bool is_loopback(const struct sockaddr *address)
{
    if (address->sa_family == AF_INET6)
        return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)address)->sin6_addr);
    return ntohl(((const struct sockaddr_in *)address)->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
}

bool lookup_is_private(const struct uri *uri)
{
    CLEANUP_ADDRINFO struct addrinfo *list = NULL;
    struct error err = {0};

    if (uri->inner == URI_UNIX)
        return true;
    if (!uri->host[0] || lookup_here(uri, uri->port, &list, &err) < 0)
        return false;
    for (const struct addrinfo *ai = list; ai; ai = ai->ai_next) {
        if (!is_loopback(ai->ai_addr))
            return false;
    }
    return true;
}

void lookup_name_peer(struct transport *t, const char *scheme, const struct sockaddr *addr, socklen_t len)
{
    static const char mapped[] = "::ffff:";
    char host[64], port[8];

    if (!addr || getnameinfo(addr, len, host, sizeof(host), port, sizeof(port),
                             NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
        snprintf(t->peer, sizeof(t->peer), "%s peer", scheme);
        snprintf(t->address, sizeof(t->address), "unknown");
        return;
    }
    bool is_mapped = !strncmp(host, mapped, sizeof(mapped) - 1) && strchr(host, '.');
    snprintf(t->peer, sizeof(t->peer), strchr(host, ':') ? "%s:[%s]:%s" : "%s:%s:%s", scheme, host, port);
    snprintf(t->address, sizeof(t->address), "%s", is_mapped ? host + sizeof(mapped) - 1 : host);
}
