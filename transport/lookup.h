/* SPDX-License-Identifier: Apache-2.0 */
/* The addresses of a host, by a lookup that can be given up. */
#ifndef MIGFS_LOOKUP_H
#define MIGFS_LOOKUP_H

#include "transport.h"

struct addrinfo;

/**
 * lookup_host - getaddrinfo(3) for a connection
 * @wait: for how long
 * @out: the caller's, for freeaddrinfo(3)
 * @gai: what getaddrinfo() says, when that is no errno
 *
 * Return: 0; 1 with @gai; -ECANCELED or -ETIMEDOUT when @wait ends; -EAGAIN when too many lookups have been
 * given up and are not over; another negative errno.
 */
int lookup_host(const char *host, const char *port, const struct transport_wait *wait, struct addrinfo **out,
                int *gai);

#endif
