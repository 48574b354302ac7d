/* SPDX-License-Identifier: Apache-2.0 */
/* tcp:HOST:PORT, over IPv4 and IPv6; see socket.c for the connection itself. */
#include "cleanup.h"
#include "clock.h"
#include "lookup.h"
#include "socket.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>

/* Whether an address is one of this machine's: then what is sent there has it as its source, too. */
static bool is_local(const struct sockaddr *addr, socklen_t len)
{
    /* No packet is sent: to connect a datagram socket is to look up the route. */
    CLEANUP_FD int fd = socket(addr->sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct sockaddr_storage source = {0};
    socklen_t source_len = sizeof(source);

    if (fd < 0 || connect(fd, addr, len) < 0 || getsockname(fd, (struct sockaddr *)&source, &source_len) < 0)
        return false;
    if (addr->sa_family == AF_INET6)
        return !memcmp(&((const struct sockaddr_in6 *)addr)->sin6_addr,
                       &((struct sockaddr_in6 *)&source)->sin6_addr, sizeof(struct in6_addr));
    return ((const struct sockaddr_in *)addr)->sin_addr.s_addr ==
           ((struct sockaddr_in *)&source)->sin_addr.s_addr;
}

/*
 * Within a machine nothing is congested, and a congestion control that paces (BBR)
 * costs a sixth of the CPU time for timers. Reno is always there; where it may not
 * be used, the machine's default remains. A connection that has been made with BBR
 * goes on pacing with reno, so this comes before.
 *
 * Nor is anything on its way for long. The buffer that the kernel makes grows to
 * megabytes, out of the processor's cache; one that stays in it is 3 to 12 % faster,
 * with TLS most. The kernel takes twice the number, and at a quarter of it, less
 * than two segments of the loopback, a connection comes nearly to a stop.
 */
static void suit_machine(int fd, const struct sockaddr *addr, socklen_t len)
{
    static const char reno[] = "reno";
    int size = 128 << 10;

    if (!is_local(addr, len))
        return;
    setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, reno, sizeof(reno) - 1);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
}

/* A connected socket, or a negative errno. */
static int connect_to(const struct addrinfo *ai, const struct transport_wait *wait)
{
    CLEANUP_FD int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -errno;
    suit_machine(fd, ai->ai_addr, ai->ai_addrlen);
    int ret = socket_connect(fd, ai->ai_addr, ai->ai_addrlen, wait);
    return ret < 0 ? ret : steal_fd(&fd);
}

static int tcp_connect(const struct uri *uri, unsigned index, const struct transport_group *group,
                       const struct transport_wait *wait, struct transport **out, struct error *err)
{
    CLEANUP_ADDRINFO struct addrinfo *list = NULL;
    int fd = -EHOSTUNREACH;

    (void)index, (void)group;
    if (lookup_uri(uri, wait, &list, err) < 0)
        return -EIO;
    for (struct addrinfo *ai = list; ai && fd < 0 && fd != -ECANCELED; ai = ai->ai_next)
        fd = connect_to(ai, wait);
    if (fd == -ECANCELED)
        return error_set(err, CAUSE_INTERRUPTED, "connecting to %s was interrupted", uri->text);
    if (fd < 0)
        return error_set_errno(err, fd, "cannot connect to %s", uri->text);
    *out = socket_transport_new(fd, true);
    return *out ? 0 : error_set(err, CAUSE_NO_MEMORY, "out of memory");
}

static int bind_and_listen(const struct addrinfo *ai, unsigned short port)
{
    CLEANUP_FD int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_storage addr;
    int one = 1;

    if (fd < 0)
        return -errno;
    memcpy(&addr, ai->ai_addr, ai->ai_addrlen);
    if (ai->ai_family == AF_INET6) {
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
        if (port)
            ((struct sockaddr_in6 *)&addr)->sin6_port = htons(port);
    } else if (port) {
        ((struct sockaddr_in *)&addr)->sin_port = htons(port);
    }
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (bind(fd, (struct sockaddr *)&addr, ai->ai_addrlen) < 0 || listen(fd, 1024) < 0)
        return -errno;
    return steal_fd(&fd);
}

static unsigned short bound_port(int fd)
{
    struct sockaddr_storage addr = {0};
    socklen_t len = sizeof(addr);

    getsockname(fd, (struct sockaddr *)&addr, &len);
    return ntohs(addr.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&addr)->sin6_port
                                            : ((struct sockaddr_in *)&addr)->sin_port);
}

static int tcp_listen(const struct uri *uri, struct transport_listener **out, struct error *err)
{
    CLEANUP_ADDRINFO struct addrinfo *list = NULL;
    int fds[SOCKET_LISTEN_MAX], n = 0, code = -EADDRNOTAVAIL;
    unsigned short port = 0;
    char address[URI_MAX];

    if (lookup_here(uri, uri->port, &list, err) < 0)
        return -EIO;
    /*
     * A name can have several addresses: all of them, on one port. An address family that is off is no error.
     */
    for (struct addrinfo *ai = list; ai && n < SOCKET_LISTEN_MAX; ai = ai->ai_next) {
        int fd = bind_and_listen(ai, port);
        if (fd >= 0) {
            fds[n++] = fd;
            port = bound_port(fd);
        } else if (fd != -EAFNOSUPPORT && fd != -EADDRNOTAVAIL) {
            while (n > 0)
                close(fds[--n]);
            return error_set_errno(err, fd, "cannot listen at %s", uri->text);
        }
    }
    if (n == 0)
        return error_set_errno(err, code, "cannot listen at %s", uri->text);
    snprintf(address, sizeof(address), strchr(uri->host, ':') ? "tcp:[%s]:%u" : "tcp:%s:%u", uri->host, port);
    *out = socket_listener_new(fds, n, true, address, NULL);
    return *out ? 0 : error_set(err, CAUSE_NO_MEMORY, "out of memory");
}

const struct transport_family transport_tcp = {
    .connect = tcp_connect,
    .listen = tcp_listen,
};
