/* SPDX-License-Identifier: Apache-2.0 */
/* What TLS proves itself with, and whom it lets in; for transport/tls*.c alone. */
#ifndef MIGFS_TLS_CREDENTIALS_H
#define MIGFS_TLS_CREDENTIALS_H

#include "tls.h"

#include <openssl/ssl.h>
#include <stdatomic.h>

/* A key that both ends have. */
struct tls_user {
    char *name;
    uint8_t key[64];
    size_t len;
};

/* What was read from the files at one time. Constant, and counted. */
struct tls_set {
    atomic_uint refs;
    SSL_CTX *server, *client; /* NULL: there are no files for that side */
    struct tls_user *users;   /* NULL: there are certificates */
    size_t user_count;
};

/** tls_set_get - the one that is in use, with a reference */
struct tls_set *tls_set_get(struct tls *tls);
void tls_set_put(struct tls_set *set);

/** tls_set_user - the user whose key a client shows: `qemu`, or the first one */
const struct tls_user *tls_set_user(const struct tls_set *set);

/** tls_set_find - NULL: there is no such user */
const struct tls_user *tls_set_find(const struct tls_set *set, const void *name, size_t len);

/** tls_lets_in - whether a peer with one of these names is let in */
bool tls_lets_in(const struct tls *tls, const char *const *names, size_t n);

/** tls_set_up - what tls_handshake.c wants of each context */
void tls_set_up(SSL_CTX *ctx, bool has_keys);

#endif
