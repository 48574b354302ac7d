/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernel's TLS (Documentation/networking/tls.rst of Linux): a TCP socket that makes and opens the records
 * itself. For transport/tls*.c alone.
 *
 * It saves a copy in either direction: bytes are encrypted on their way into the socket, and decrypted on
 * their way out of it. Before Linux 6.14 it cannot change keys, so a connection whose kernel receives is one
 * on which nobody does (tls_shake_prepare()): 2^26 records, a TiB, with one key of AES-GCM are within a
 * margin of 2^-54 (RFC 8446, section 5.5, has 2^-57).
 */
#ifndef MIGFS_TLS_KERNEL_H
#define MIGFS_TLS_KERNEL_H

#include "tls_record.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/**
 * tls_kernel_attach - prepare a connected TCP socket; it goes on as it is until tls_kernel_take()
 * Return: whether the kernel has TLS.
 */
bool tls_kernel_attach(int fd);

/**
 * tls_kernel_take - from now on the socket sends with a key, or receives with it; its record 0 is next
 * Return: 0, or a negative errno: the kernel does not have the cipher.
 */
int tls_kernel_take(int fd, const struct tls_key *key);

/** tls_kernel_send - send a record that is none of data; never blocks. The count, or a negative errno */
ssize_t tls_kernel_send(int fd, enum tls_content type, const void *content, size_t len);

/**
 * tls_kernel_receive - receive (a part of) one record of any type; never blocks
 *
 * For those of data there is recv(2), which says EIO when a record of another type is next. Return: the
 * count, 0 at the end, or a negative errno.
 */
ssize_t tls_kernel_receive(int fd, enum tls_content *type, void *content, size_t len);

#endif
