/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Records of TLS 1.3; see tls_record.h.
 *
 * They are made here, and not by the library's connection, for what it costs: bytes are encrypted from where
 * they are and decrypted to where they belong, several records go in one system call, and memory that goes
 * away under either of them is an error of ours (guard.h). It is what the kernel's TLS does with the same
 * keys.
 *
 * A record's number goes into its nonce. So a key whose record was begun and not sent must not be used again:
 * the callers give the connection up.
 */
#include "tls_record.h"
#include "guard.h"

#include <endian.h>
#include <errno.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/params.h>
#include <stdlib.h>
#include <string.h>

#define NONCE 12
/*
 * The cipher goes through memory in steps, at each of which the memory of a later one is asked for: on its
 * own it waits for memory a third of the time, where the processor's prefetching ends with each page. A step
 * is of whole turns of OpenSSL's AES-GCM (96 bytes). The numbers are measured, see docs/performance.md.
 */
#define STEP  1152u
#define AHEAD (2 * STEP)
#define LINE  64u

uint64_t tls_key_life = 1u << 23;

static const struct suite {
    const char *name, *cipher, *hash;
    size_t key_size, hash_size;
    enum tls_cipher number;
} suites[] = {
    {"TLS_AES_128_GCM_SHA256", "AES-128-GCM", "SHA256", 16, 32, TLS_AES_128},
    {"TLS_AES_256_GCM_SHA384", "AES-256-GCM", "SHA384", 32, 48, TLS_AES_256},
    {"TLS_CHACHA20_POLY1305_SHA256", "ChaCha20-Poly1305", "SHA256", 32, 32, TLS_CHACHA20},
};

struct tls_key {
    const struct suite *suite;
    EVP_CIPHER_CTX *cipher;
    uint8_t secret[TLS_SECRET_MAX];
    uint8_t iv[NONCE];
    uint64_t records;
    bool seals;
};

/* HKDF-Expand-Label (section 7.1) without a context. */
static int expand(const struct suite *suite, const uint8_t *secret, const char *label, uint8_t *out,
                  size_t len)
{
    uint8_t info[64];
    size_t label_len = strlen(label), n = 0;
    EVP_KDF *kdf = EVP_KDF_fetch(NULL, "HKDF", NULL);
    EVP_KDF_CTX *ctx = kdf ? EVP_KDF_CTX_new(kdf) : NULL;
    int mode = EVP_KDF_HKDF_MODE_EXPAND_ONLY;

    info[n++] = (uint8_t)(len >> 8);
    info[n++] = (uint8_t)len;
    info[n++] = (uint8_t)(6 + label_len);
    memcpy(info + n, "tls13 ", 6);
    memcpy(info + n + 6, label, label_len);
    n += 6 + label_len;
    info[n++] = 0;
    const OSSL_PARAM params[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, (char *)(uintptr_t)suite->hash, 0),
        OSSL_PARAM_construct_int(OSSL_KDF_PARAM_MODE, &mode),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, (void *)(uintptr_t)secret, suite->hash_size),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, info, n),
        OSSL_PARAM_construct_end(),
    };
    int ret = ctx && EVP_KDF_derive(ctx, out, len, params) > 0 ? 0 : -EIO;
    EVP_KDF_CTX_free(ctx);
    EVP_KDF_free(kdf);
    return ret;
}

/* Has the cipher use the secret, from record 0 on. */
static int begin(struct tls_key *key)
{
    const struct suite *suite = key->suite;
    EVP_CIPHER *cipher = EVP_CIPHER_fetch(NULL, suite->cipher, NULL);
    uint8_t bytes[32];
    int ret = -EIO;

    if (cipher && expand(suite, key->secret, "key", bytes, suite->key_size) == 0 &&
        expand(suite, key->secret, "iv", key->iv, sizeof(key->iv)) == 0 &&
        EVP_CipherInit_ex2(key->cipher, cipher, bytes, NULL, key->seals, NULL) > 0)
        ret = 0;
    OPENSSL_cleanse(bytes, sizeof(bytes));
    EVP_CIPHER_free(cipher);
    key->records = 0;
    return ret;
}

struct tls_key *tls_key_new(const char *cipher, const uint8_t *secret, size_t len, bool seals)
{
    const struct suite *suite = suites, *end = suites + sizeof(suites) / sizeof(suites[0]);

    while (suite < end && strcmp(suite->name, cipher))
        suite++;
    if (suite == end || suite->hash_size != len)
        return NULL;
    struct tls_key *key = calloc(1, sizeof(*key));
    if (!key)
        return NULL;
    key->suite = suite;
    key->seals = seals;
    memcpy(key->secret, secret, len);
    key->cipher = EVP_CIPHER_CTX_new();
    if (!key->cipher || begin(key) < 0) {
        tls_key_free(key);
        return NULL;
    }
    return key;
}

void tls_key_free(struct tls_key *key)
{
    if (!key)
        return;
    EVP_CIPHER_CTX_free(key->cipher);
    OPENSSL_cleanse(key, sizeof(*key));
    free(key);
}

int tls_key_update(struct tls_key *key)
{
    uint8_t next[TLS_SECRET_MAX];

    if (expand(key->suite, key->secret, "traffic upd", next, key->suite->hash_size) < 0)
        return -EIO;
    memcpy(key->secret, next, sizeof(next));
    OPENSSL_cleanse(next, sizeof(next));
    return begin(key);
}

int tls_key_material(const struct tls_key *key, struct tls_material *out)
{
    *out = (struct tls_material){.cipher = key->suite->number, .seals = key->seals};
    memcpy(out->iv, key->iv, sizeof(out->iv));
    return expand(key->suite, key->secret, "key", out->key, key->suite->key_size);
}

uint64_t tls_key_records(const struct tls_key *key)
{
    return key->records;
}

/* A record that is made or opened: what happens in the guard. */
struct work {
    struct tls_key *key;
    const struct iovec *iov; /* sealing: the content */
    int n;
    uint8_t type;
    uint8_t *record;
    uint8_t *content; /* opening: where it goes */
    size_t inner;     /* bytes that are encrypted: the content, the type, and padding */
    int ret;
};

/* Has the cipher begin with the next record, whose header is there. */
static int begin_record(struct tls_key *key, const uint8_t *header)
{
    uint8_t nonce[NONCE];
    uint64_t number = htobe64(key->records++);
    int ignored;

    memcpy(nonce, key->iv, sizeof(nonce));
    for (size_t i = 0; i < sizeof(number); i++)
        nonce[NONCE - sizeof(number) + i] ^= ((const uint8_t *)&number)[i];
    return EVP_CipherInit_ex2(key->cipher, NULL, NULL, nonce, -1, NULL) > 0 &&
                   EVP_CipherUpdate(key->cipher, NULL, &ignored, header, TLS_HEADER) > 0
               ? 0
               : -EIO;
}

/* Neither end has to be mapped. */
static void ask_for(const uint8_t *p, size_t len)
{
    for (size_t at = 0; at < len; at += LINE)
        __builtin_prefetch(p + at, 0, 3);
}

/* Encrypts or decrypts; @far is the one of both that is not in the cache. */
static int pass(EVP_CIPHER_CTX *cipher, uint8_t *to, const uint8_t *from, size_t len, const uint8_t *far)
{
    int done;

    ask_for(far, len < AHEAD ? len : AHEAD);
    for (size_t at = 0; at < len; at += STEP) {
        size_t n = len - at < STEP ? len - at : STEP;
        ask_for(far + at + AHEAD, n);
        if (EVP_CipherUpdate(cipher, to + at, &done, from + at, (int)n) <= 0)
            return -EIO;
    }
    return 0;
}

static void seal(void *arg)
{
    struct work *w = arg;
    EVP_CIPHER_CTX *cipher = w->key->cipher;
    uint8_t *to = w->record + TLS_HEADER;
    int len;

    w->ret = begin_record(w->key, w->record);
    for (int i = 0; i < w->n && w->ret == 0; i++) {
        w->ret = pass(cipher, to, w->iov[i].iov_base, w->iov[i].iov_len, w->iov[i].iov_base);
        to += w->iov[i].iov_len;
    }
    if (w->ret < 0 || EVP_CipherUpdate(cipher, to, &len, &w->type, 1) <= 0 ||
        EVP_CipherFinal_ex(cipher, to + 1, &len) <= 0 ||
        EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_AEAD_GET_TAG, TLS_TAG, to + 1) <= 0)
        w->ret = -EIO;
}

ssize_t tls_seal(struct tls_key *key, enum tls_content type, const struct iovec *iov, int n, size_t len,
                 uint8_t *out)
{
    struct work w = {.key = key, .iov = iov, .n = n, .type = (uint8_t)type, .record = out};
    size_t size = len + 1 + TLS_TAG;

    out[0] = TLS_DATA;
    out[1] = out[2] = 3;
    out[3] = (uint8_t)(size >> 8);
    out[4] = (uint8_t)size;
    if (guard_call(seal, &w) < 0)
        return -EFAULT;
    return w.ret < 0 ? w.ret : (ssize_t)(TLS_HEADER + size);
}

ssize_t tls_record_size(const uint8_t header[TLS_HEADER])
{
    size_t size = (size_t)header[3] << 8 | header[4];

    if (header[0] != TLS_DATA || header[1] != 3 || size <= TLS_TAG || size + TLS_HEADER > TLS_RECORD_MAX)
        return -EBADMSG;
    return (ssize_t)(size + TLS_HEADER);
}

size_t tls_room(size_t record_size)
{
    return record_size - TLS_OVERHEAD;
}

/*
 * The last byte of what is encrypted is the type, unless there is padding: it goes nowhere, so that a content
 * that fills its place fits.
 */
static void open_record(void *arg)
{
    struct work *w = arg;
    EVP_CIPHER_CTX *cipher = w->key->cipher;
    uint8_t *from = w->record + TLS_HEADER, none[16];
    size_t first = w->inner - 1;
    int len;

    w->ret = begin_record(w->key, w->record);
    if (w->ret < 0 || pass(cipher, w->content, from, first, w->content) < 0 ||
        EVP_CipherUpdate(cipher, &w->type, &len, from + first, 1) <= 0 ||
        EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_AEAD_SET_TAG, TLS_TAG, from + w->inner) <= 0) {
        w->ret = -EIO;
        return;
    }
    if (EVP_CipherFinal_ex(cipher, none, &len) <= 0) {
        w->ret = -EBADMSG;
        return;
    }
    while (!w->type && first > 0)
        w->type = w->content[--first];
    w->inner = first;
}

ssize_t tls_open(struct tls_key *key, const uint8_t *record, size_t size, uint8_t *out,
                 enum tls_content *type)
{
    struct work w = {
        .key = key,
        .record = (uint8_t *)(uintptr_t)record,
        .content = out,
        .inner = size - TLS_HEADER - TLS_TAG,
    };

    if (guard_call(open_record, &w) < 0) {
        key->records--;
        return -EFAULT;
    }
    if (w.ret < 0)
        return w.ret;
    /* Padding alone, or more than a record may carry. */
    if (!w.type || w.inner > TLS_CONTENT_MAX)
        return -EBADMSG;
    *type = w.type;
    return (ssize_t)w.inner;
}
