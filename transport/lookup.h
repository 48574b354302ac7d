/* SPDX-License-Identifier: Apache-2.0 */
/* The addresses of a host, by a lookup that can be given up; and the names of addresses. */
#ifndef MIGFS_LOOKUP_H
#define MIGFS_LOOKUP_H

#include "transport.h"

#include <netdb.h>
#include <sys/socket.h>

/**
 * lookup_uri - the addresses of a URI's host and port, for a connection
 * @wait: for how long
 * @out: the caller's, for freeaddrinfo(3)
 */
int lookup_uri(const struct uri *uri, const struct transport_wait *wait, struct addrinfo **out,
               struct error *err);

/**
 * lookup_here - the addresses of a URI's host, to listen at; the lookup cannot be given up
 * @port: instead of the URI's
 * @out: the caller's, for freeaddrinfo(3)
 */
int lookup_here(const struct uri *uri, const char *port, struct addrinfo **out, struct error *err);

/**
 * lookup_is_private - whether nobody but this machine reaches a listener at a URI: a unix socket, or
 * addresses of the loopback alone
 */
bool lookup_is_private(const struct uri *uri);

static inline void cleanup_addrinfo(struct addrinfo **list)
{
    if (*list)
        freeaddrinfo(*list);
}

#define CLEANUP_ADDRINFO __attribute__((cleanup(cleanup_addrinfo)))

/**
 * lookup_name_peer - call the other end of a connection by its address
 * @scheme: of its URI
 * @addr: NULL: it is not known
 *
 * An IPv4 address that came by an IPv6 socket is the same machine.
 */
void lookup_name_peer(struct transport *t, const char *scheme, const struct sockaddr *addr, socklen_t len);

#endif
