/* SPDX-License-Identifier: Apache-2.0 */
/* What the stream socket families (tcp, unix) share. */
#ifndef MIGFS_SOCKET_H
#define MIGFS_SOCKET_H

#include "transport.h"

#include <sys/socket.h>

#define SOCKET_LISTEN_MAX 8

/**
 * socket_transport_new - make a connection of a connected stream socket
 * @fd: the socket, non-blocking or not; the connection's from now on, also on failure
 * @tcp: whether TCP's options apply
 *
 * Return: the connection, or NULL when memory runs out.
 */
struct transport *socket_transport_new(int fd, bool tcp);

/**
 * socket_connect - connect one socket to one address
 * @fd: non-blocking; the caller's
 * Return: 0, or a negative errno (-ECANCELED and -ETIMEDOUT from @wait).
 */
int socket_connect(int fd, const struct sockaddr *addr, socklen_t len, const struct transport_wait *wait);

/**
 * socket_listener_new - make a listener of bound, listening sockets
 * @fds: the sockets; the listener's from now on, also on failure
 * @n: how many, at most SOCKET_LISTEN_MAX
 * @address: the URI that reaches it
 * @unlink_path: a socket file to remove at the end, or NULL
 */
struct transport_listener *socket_listener_new(const int *fds, int n, bool tcp, const char *address,
                                               const char *unlink_path);

#endif
