/* SPDX-License-Identifier: Apache-2.0 */
/* The handshake of TLS, by OpenSSL, over a transport; for transport/tls*.c alone. */
#ifndef MIGFS_TLS_HANDSHAKE_H
#define MIGFS_TLS_HANDSHAKE_H

#include "tls.h"
#include "tls_record.h"

struct tls_shake;

/* What came of it. */
struct tls_agreed {
    struct tls_key *to_peer, *from_peer; /* the caller's */
    const char *cipher;                  /* constant */
    struct transport_identity identity;
    bool keeps_keys;  /* the peer cannot follow when this side changes its key */
    bool renews_keys; /* the peer may change its key, whatever this side can */
    bool let_in;      /* always at a client */
};

/**
 * tls_shake_new - prepare it
 * @name: a client's: whom it wants to reach; copied. NULL: this is a server
 * @err: why not, when that is not for want of memory
 */
struct tls_shake *tls_shake_new(struct tls *tls, const char *name, struct error *err);
/**
 * tls_shake_over - what it goes over; before the first step, and it stays until tls_shake_free()
 * @keeps_keys: this side may not be able to follow when the peer changes its key; it is told so
 */
void tls_shake_over(struct tls_shake *shake, struct transport *below, bool keeps_keys);
void tls_shake_free(struct tls_shake *shake);

/**
 * tls_shake_step - go on; never blocks
 * @out: set when it is done
 * @why: set when it has failed
 *
 * Return: 0: it is done, and @below is at the first record behind it; -EAGAIN: when @below has bytes;
 * -ENOBUFS: when it has room; -EPROTO: @why, and the peer has been told as much as an alert says;
 * -EPFNOSUPPORT: likewise, and the peer speaks no TLS and waits for other bytes.
 */
int tls_shake_step(struct tls_shake *shake, struct tls_agreed *out, struct error *why);

/** tls_read_alert - what an alert of the peer's means, for a person. 0: it is a goodbye, nothing is set */
int tls_read_alert(const uint8_t alert[2], struct error *why);

#endif
