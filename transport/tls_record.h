/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Records of TLS 1.3 (RFC 8446, section 5): bytes to what goes over the wire, and back. The handshake that
 * agrees on the secrets is not here.
 *
 * One direction of a connection has one key. It is for one thread at a time.
 */
#ifndef MIGFS_TLS_RECORD_H
#define MIGFS_TLS_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#define TLS_CONTENT_MAX 16384u /* bytes that a record carries at most */
#define TLS_HEADER      5u
#define TLS_TAG         16u
/* What a record has beside its content: the header, the type, the tag. */
#define TLS_OVERHEAD   (TLS_HEADER + 1 + TLS_TAG)
#define TLS_RECORD_MAX (TLS_CONTENT_MAX + 256 + TLS_HEADER)
#define TLS_SECRET_MAX 48

enum tls_content {
    TLS_CHANGE_CIPHER = 20,
    TLS_ALERT = 21,
    TLS_HANDSHAKE = 22,
    TLS_DATA = 23,
};

struct tls_key;

enum tls_cipher { TLS_AES_128, TLS_AES_256, TLS_CHACHA20 };

/* What a key is made of, for another one who makes the records. */
struct tls_material {
    enum tls_cipher cipher;
    uint8_t key[32]; /* 16 bytes of it with TLS_AES_128 */
    uint8_t iv[12];
    bool seals;
};

/*
 * How many records one key is for: AES-GCM allows 2^24.5 (RFC 8446, section 5.5). For tests to change, before
 * there are connections.
 */
extern uint64_t tls_key_life;

/**
 * tls_key_new - the key of one direction
 * @cipher: "TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384" or "TLS_CHACHA20_POLY1305_SHA256"
 * @secret: the traffic secret, as long as the cipher's hash
 * @seals: whether it is for sending
 *
 * Return: NULL: there is no such cipher, the secret does not fit, or memory runs out.
 */
struct tls_key *tls_key_new(const char *cipher, const uint8_t *secret, size_t len, bool seals);
/** tls_key_free - wipe it and free it; NULL is fine */
void tls_key_free(struct tls_key *key);

/** tls_key_update - go on with the next secret (section 7.2), from record 0. 0 or -EIO */
int tls_key_update(struct tls_key *key);

/** tls_key_material - what it is made of, for the caller to wipe; it has not been used. 0 or -EIO */
int tls_key_material(const struct tls_key *key, struct tls_material *out);

/** tls_key_records - how many records it has been used for */
uint64_t tls_key_records(const struct tls_key *key);

/**
 * tls_seal - make a record
 * @iov: its content, TLS_CONTENT_MAX bytes at most; can be memory that goes away
 * @out: @len + TLS_OVERHEAD bytes
 *
 * Return: the record's size; -EFAULT: the memory went away; -EIO. After either of them nothing more may be
 * sent: a number would be used twice.
 */
ssize_t tls_seal(struct tls_key *key, enum tls_content type, const struct iovec *iov, int n, size_t len,
                 uint8_t *out);

/** tls_record_size - of the record that begins with a header; -EBADMSG: it is too long, or not one of data */
ssize_t tls_record_size(const uint8_t header[TLS_HEADER]);

/** tls_room - how much room tls_open() wants for a record's content; 0: it is too short to be one */
size_t tls_room(size_t record_size);

/**
 * tls_open - check a record, and take its content out
 * @out: tls_room() bytes, whatever the content has; can be memory that goes away
 *
 * What is in @out is nothing to go by unless it succeeds. Return: the size of the content; -EBADMSG: it is
 * not what was sent; -EIO: the key cannot be used any more; -EFAULT: the memory went away, and the same
 * record can be opened elsewhere.
 */
ssize_t tls_open(struct tls_key *key, const uint8_t *record, size_t size, uint8_t *out,
                 enum tls_content *type);

#endif
