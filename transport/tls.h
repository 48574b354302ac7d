/* SPDX-License-Identifier: Apache-2.0 */
/*
 * TLS 1.3 with both sides authenticated: a layer on a connected stream (transport_upgrade()).
 *
 * What the two sides prove themselves with is a set of files: certificates in a directory with the names that
 * QEMU and libvirt use, or keys that both have. Who is at the other end stands in transport.identity when the
 * layer has made sure of it: when the first byte has been received, or tls_client() has returned.
 *
 * Here are no sessions to be resumed and no early data: each connection shows who it is.
 */
#ifndef MIGFS_TLS_H
#define MIGFS_TLS_H

#include "transport.h"

struct tls;

struct tls_config {
    /* One of them: */
    const char *directory; /* ca-cert.pem, server-cert.pem, server-key.pem, client-cert.pem, client-key.pem */
    const char *keys;      /* a file of USER:HEXKEY lines */
    /* Patterns of fnmatch(3) for whom tls_server() lets in, with ':' between them; NULL: whoever proves
     * itself */
    const char *lets_in;
    bool serves; /* tls_server() will be called: what it needs has to be there */
};

/* Bytes that a connection has at most for what it receives, and for short messages that it sends. */
#define TLS_MEMORY (192u << 10)

/* Whether it is built. */
extern const bool transport_has_tls;

/**
 * tls_new - read the files
 * @config: copied
 * @err: which file is missing or wrong
 */
int tls_new(const struct tls_config *config, struct tls **out, struct error *err);
/** tls_free - no connection shakes hands any more; NULL is fine */
void tls_free(struct tls *tls);

/**
 * tls_reload - read the files again, for connections that are made from now on; any thread
 *
 * On failure all stays as it was.
 */
int tls_reload(struct tls *tls, struct error *err);

/**
 * tls_server - put the layer on a connection that was accepted; does not block
 *
 * The handshake happens in transport_recv(), which says -EAGAIN with TRANSPORT_NOWAIT while it lasts; nothing
 * is sent before that has returned bytes. When it fails, transport_recv() does, and transport_explain() says
 * why. A peer that speaks no TLS is sent plain bytes from then on, so that it can be told.
 *
 * Return: 0, or -ENOMEM with @t unchanged.
 */
int tls_server(struct tls *tls, struct transport *t);

/**
 * tls_client - put the layer on a connection that was made, and shake hands; blocks
 * @name: the host that the other end has to prove to be; not looked at where keys are used
 * @wait: for how long
 *
 * On failure @t can only be closed.
 */
int tls_client(struct tls *tls, struct transport *t, const char *name, const struct transport_wait *wait,
               struct error *err);

#endif
