/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The handshake of TLS; see tls_handshake.h.
 *
 * OpenSSL's connection reads and writes the transport below it by a BIO of ours, as many bytes as it needs
 * and no more, and is freed when it has agreed on the secrets: records are made in tls_record.c from then on.
 * There are no tickets, so nothing has been sent with the keys of the data by then. It gives the secrets away
 * by the callback that is meant for logs; they stay in this process.
 *
 * A failure is told to the peer by an alert, which says no more than its number. Here it becomes a sentence.
 */
#include "tls_handshake.h"
#include "cleanup.h"
#include "text.h"
#include "tls_credentials.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <openssl/err.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>

#define HANDSHAKE 22 /* the types of the records that a peer can begin with */
#define ALERT     21
#define CONTEXT   "migfs"
/*
 * An extension (of those for private use) with one byte: whether its sender cannot follow when the other one
 * changes its key. A server answers a client's.
 */
#define KEEPS_KEYS 0xff4d
#define NAMES_MAX  64 /* of a certificate */

enum { CLIENT, SERVER };

static const uint8_t keyed_cipher[] = {0x13, 0x01}; /* TLS_AES_128_GCM_SHA256 */

struct secret {
    uint8_t bytes[TLS_SECRET_MAX];
    size_t len;
};

struct tls_shake {
    struct tls *tls;
    struct tls_set *set;
    SSL *ssl;
    struct transport *below;
    bool serves;
    uint8_t keeps_keys;
    bool peer_has_said, peer_keeps_keys;
    char name[256];
    const struct tls_user *user; /* whose key the client has shown */
    bool looked, is_plain;
    struct secret secrets[2];
    struct error why;
};

/*
 * The BIO
 */

static int bio_write(BIO *bio, const char *buf, size_t len, size_t *written)
{
    struct tls_shake *shake = BIO_get_data(bio);
    ssize_t n = transport_try_send(shake->below, buf, len);

    BIO_clear_retry_flags(bio);
    if (n == -EAGAIN)
        BIO_set_retry_write(bio);
    else if (n < 0)
        error_set_errno(&shake->why, (int)n, "the TLS handshake");
    *written = n > 0 ? (size_t)n : 0;
    return n > 0;
}

static int bio_read(BIO *bio, char *buf, size_t len, size_t *got)
{
    struct tls_shake *shake = BIO_get_data(bio);
    ssize_t n = transport_recv(shake->below, buf, len, TRANSPORT_NOWAIT);

    BIO_clear_retry_flags(bio);
    if (n == -EAGAIN)
        BIO_set_retry_read(bio);
    else if (n < 0)
        error_set_errno(&shake->why, (int)n, "the TLS handshake");
    if (n > 0 && !shake->looked) {
        shake->looked = true;
        shake->is_plain = *buf != HANDSHAKE && *buf != ALERT;
        if (shake->is_plain)
            n = -1;
    }
    *got = n > 0 ? (size_t)n : 0;
    return n > 0;
}

static long bio_ctrl(BIO *bio, int command, long number, void *arg)
{
    (void)bio, (void)number, (void)arg;
    return command == BIO_CTRL_FLUSH;
}

static BIO_METHOD *bio_method;

static void make_bio_method(void)
{
    bio_method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "transport");
    if (!bio_method)
        return;
    BIO_meth_set_write_ex(bio_method, bio_write);
    BIO_meth_set_read_ex(bio_method, bio_read);
    BIO_meth_set_ctrl(bio_method, bio_ctrl);
}

static BIO *bio_of(struct tls_shake *shake)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, make_bio_method);
    BIO *bio = bio_method ? BIO_new(bio_method) : NULL;
    if (bio) {
        BIO_set_data(bio, shake);
        BIO_set_init(bio, 1);
    }
    return bio;
}

/*
 * What OpenSSL asks
 */

static struct tls_shake *shake_of(const SSL *ssl)
{
    return SSL_get_app_data(ssl);
}

/* LABEL RANDOM SECRET, the last two as hexadecimal digits. */
static void keep_secret(const SSL *ssl, const char *line)
{
    static const char *const labels[] = {
        [CLIENT] = "CLIENT_TRAFFIC_SECRET_0 ",
        [SERVER] = "SERVER_TRAFFIC_SECRET_0 ",
    };
    struct tls_shake *shake = shake_of(ssl);
    const char *hex = strrchr(line, ' ');

    for (int side = CLIENT; side <= SERVER; side++) {
        struct secret *secret = &shake->secrets[side];
        unsigned byte;
        if (strncmp(line, labels[side], strlen(labels[side])))
            continue;
        for (secret->len = 0;
             secret->len < TLS_SECRET_MAX && sscanf(hex + 1 + 2 * secret->len, "%2x", &byte) == 1;)
            secret->bytes[secret->len++] = (uint8_t)byte;
    }
}

static bool is_address(const char *name)
{
    uint8_t address[16];

    return inet_pton(AF_INET, name, address) == 1 || inet_pton(AF_INET6, name, address) == 1;
}

/* By its alternative names, and its common name when it has none of them. */
static bool is_certificate_of(X509 *certificate, const char *name)
{
    unsigned flags = is_address(name) ? X509_CHECK_FLAG_NO_WILDCARDS : 0;

    return X509_check_ip_asc(certificate, name, 0) == 1 ||
           X509_check_host(certificate, name, 0, flags, NULL) == 1;
}

static void blame_certificate(struct tls_shake *shake, int code)
{
    const char *what = "the peer's certificate";

    switch (code) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
        error_set(&shake->why, CAUSE_DENIED, "%s has expired", what);
        break;
    case X509_V_ERR_CERT_NOT_YET_VALID:
        error_set(&shake->why, CAUSE_DENIED, "%s is not yet valid", what);
        break;
    case X509_V_ERR_CERT_REVOKED:
        error_set(&shake->why, CAUSE_DENIED, "%s has been revoked", what);
        break;
    case X509_V_ERR_HOSTNAME_MISMATCH:
        error_set(&shake->why, CAUSE_DENIED, "%s is not one of '%.64s' (see tls-hostname)", what,
                  shake->name);
        break;
    case X509_V_ERR_UNABLE_TO_GET_CRL:
    case X509_V_ERR_CRL_HAS_EXPIRED:
    case X509_V_ERR_CRL_NOT_YET_VALID:
        error_set(&shake->why, CAUSE_DENIED, "whether %s was revoked cannot be said: ca-crl.pem: %s", what,
                  X509_verify_cert_error_string(code));
        break;
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_CERT_UNTRUSTED:
    case X509_V_ERR_CERT_SIGNATURE_FAILURE:
        error_set(&shake->why, CAUSE_DENIED, "%s is not signed by a CA of ca-cert.pem", what);
        break;
    default:
        error_set(&shake->why, CAUSE_DENIED, "%s: %s", what, X509_verify_cert_error_string(code));
    }
}

static int on_certificate(int is_fine, X509_STORE_CTX *ctx)
{
    SSL *ssl = X509_STORE_CTX_get_ex_data(ctx, SSL_get_ex_data_X509_STORE_CTX_idx());
    struct tls_shake *shake = shake_of(ssl);
    int depth = X509_STORE_CTX_get_error_depth(ctx), code = X509_STORE_CTX_get_error(ctx);

    /* A CA that keeps no list has revoked nothing; who is at the other end has to be on none. */
    if (!is_fine && code == X509_V_ERR_UNABLE_TO_GET_CRL && depth > 0) {
        X509_STORE_CTX_set_error(ctx, X509_V_OK);
        return 1;
    }
    if (is_fine && depth == 0 && !shake->serves &&
        !is_certificate_of(X509_STORE_CTX_get_current_cert(ctx), shake->name)) {
        code = X509_V_ERR_HOSTNAME_MISMATCH;
        X509_STORE_CTX_set_error(ctx, code);
        is_fine = 0;
    }
    if (!is_fine)
        blame_certificate(shake, code);
    return is_fine;
}

/* Where keys are used a certificate proves nothing. */
static int refuse_certificate(int is_fine, X509_STORE_CTX *ctx)
{
    SSL *ssl = X509_STORE_CTX_get_ex_data(ctx, SSL_get_ex_data_X509_STORE_CTX_idx());

    (void)is_fine;
    error_set(&shake_of(ssl)->why, CAUSE_DENIED,
              "the peer shows a certificate, and this side has keys (tls-psk)");
    X509_STORE_CTX_set_error(ctx, X509_V_ERR_APPLICATION_VERIFICATION);
    return 0;
}

/* NULL when memory runs out. */
static SSL_SESSION *session_of(SSL *ssl, const uint8_t *key, size_t len)
{
    SSL_SESSION *session = SSL_SESSION_new();
    const SSL_CIPHER *cipher = SSL_CIPHER_find(ssl, keyed_cipher);

    if (session && cipher &&
        SSL_SESSION_set1_id_context(session, (const unsigned char *)CONTEXT, strlen(CONTEXT)) > 0 &&
        SSL_SESSION_set1_master_key(session, key, len) > 0 && SSL_SESSION_set_cipher(session, cipher) > 0 &&
        SSL_SESSION_set_protocol_version(session, TLS1_3_VERSION) > 0)
        return session;
    SSL_SESSION_free(session);
    return NULL;
}

static int show_key(SSL *ssl, const EVP_MD *hash, const unsigned char **id, size_t *id_len,
                    SSL_SESSION **session)
{
    const struct tls_user *user = tls_set_user(shake_of(ssl)->set);

    *session = hash && EVP_MD_get_size(hash) != 32 ? NULL : session_of(ssl, user->key, user->len);
    *id = (const unsigned char *)user->name;
    *id_len = strlen(user->name);
    return *session != NULL;
}

/* Nobody learns which users there are: one that is not known has a key that nobody has. */
static int find_key(SSL *ssl, const unsigned char *id, size_t id_len, SSL_SESSION **session)
{
    struct tls_shake *shake = shake_of(ssl);
    const struct tls_user *user = tls_set_find(shake->set, id, id_len);
    uint8_t nobody[32];

    shake->user = user;
    if (!user && RAND_bytes(nobody, sizeof(nobody)) <= 0)
        return 0;
    *session = user ? session_of(ssl, user->key, user->len) : session_of(ssl, nobody, sizeof(nobody));
    return *session != NULL;
}

static int say_keeps_keys(SSL *ssl, unsigned type, unsigned context, const unsigned char **out,
                          size_t *out_len, X509 *certificate, size_t index, int *alert, void *arg)
{
    (void)type, (void)context, (void)certificate, (void)index, (void)alert, (void)arg;
    *out = &shake_of(ssl)->keeps_keys;
    *out_len = 1;
    return 1;
}

static int hear_keeps_keys(SSL *ssl, unsigned type, unsigned context, const unsigned char *in, size_t len,
                           X509 *certificate, size_t index, int *alert, void *arg)
{
    struct tls_shake *shake = shake_of(ssl);

    (void)type, (void)context, (void)certificate, (void)index, (void)alert, (void)arg;
    shake->peer_has_said = true;
    shake->peer_keeps_keys = len != 1 || *in;
    return 1;
}

void tls_set_up(SSL_CTX *ctx, bool has_keys)
{
    SSL_CTX_add_custom_ext(ctx, KEEPS_KEYS, SSL_EXT_CLIENT_HELLO | SSL_EXT_TLS1_3_ENCRYPTED_EXTENSIONS,
                           say_keeps_keys, NULL, NULL, hear_keeps_keys, NULL);
    SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION);
    SSL_CTX_set_max_proto_version(ctx, TLS1_3_VERSION);
    /* The first one is the fastest where the processor has AES. */
    SSL_CTX_set_ciphersuites(ctx, has_keys ? "TLS_AES_128_GCM_SHA256"
                                           : "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:"
                                             "TLS_CHACHA20_POLY1305_SHA256");
    SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET | SSL_OP_CIPHER_SERVER_PREFERENCE);
    SSL_CTX_clear_options(ctx, SSL_OP_ENABLE_MIDDLEBOX_COMPAT);
    SSL_CTX_set_num_tickets(ctx, 0);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_read_ahead(ctx, 0);
    SSL_CTX_set_keylog_callback(ctx, keep_secret);
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT,
                       has_keys ? refuse_certificate : on_certificate);
    /* Whoever is in ca-cert.pem is trusted, the root of a chain or not. */
    X509_VERIFY_PARAM_set_flags(SSL_CTX_get0_param(ctx), X509_V_FLAG_PARTIAL_CHAIN);
    /* Without one OpenSSL takes no session, and to it a key that both have is one. */
    SSL_CTX_set_session_id_context(ctx, (const unsigned char *)CONTEXT, strlen(CONTEXT));
    if (has_keys) {
        SSL_CTX_set_psk_use_session_callback(ctx, show_key);
        SSL_CTX_set_psk_find_session_callback(ctx, find_key);
    }
}

/*
 * Why it has failed
 */

int tls_read_alert(const uint8_t alert[2], struct error *why)
{
    static const struct {
        uint8_t number;
        const char *text;
    } texts[] = {
        {SSL_AD_HANDSHAKE_FAILURE,
         "the peer wants another proof than this side has: a certificate, or a key"},
        {SSL_AD_BAD_CERTIFICATE,
         "the peer refuses this side's certificate: not yet valid, for another host, or damaged"},
        {SSL_AD_UNSUPPORTED_CERTIFICATE, "the peer refuses this side's certificate: not for this purpose"},
        {SSL_AD_CERTIFICATE_REVOKED, "the peer refuses this side's certificate: it has been revoked"},
        {SSL_AD_CERTIFICATE_EXPIRED,
         "the peer refuses this side's certificate: it has expired, or the peer's ca-crl.pem has"},
        {SSL_AD_CERTIFICATE_UNKNOWN, "the peer refuses this side's certificate"},
        {SSL_AD_ILLEGAL_PARAMETER,
         "the peer does not accept this side's key, or found the handshake damaged"},
        {SSL_AD_UNKNOWN_CA, "the peer refuses this side's certificate: its CA is not the peer's"},
        {SSL_AD_ACCESS_DENIED, "the peer does not let this side in"},
        {SSL_AD_DECRYPT_ERROR, "the peer refuses this side's key or signature"},
        {SSL_AD_PROTOCOL_VERSION, "the peer does not speak TLS 1.3"},
        {SSL_AD_UNKNOWN_PSK_IDENTITY, "the peer does not accept this side's key"},
        {SSL_AD_CERTIFICATE_REQUIRED, "the peer wants a certificate of this side, which has shown none"},
        {SSL_AD_BAD_RECORD_MAC, "the peer found a TLS record damaged"},
    };

    if (alert[1] == SSL_AD_CLOSE_NOTIFY)
        return 0;
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        bool denied = alert[1] != SSL_AD_PROTOCOL_VERSION && alert[1] != SSL_AD_BAD_RECORD_MAC;
        if (texts[i].number == alert[1])
            return error_set(why, denied ? CAUSE_DENIED : CAUSE_PROTOCOL, "%s", texts[i].text);
    }
    return error_set(why, CAUSE_PROTOCOL, "the peer has ended TLS with alert %u", alert[1]);
}

static void explain(struct tls_shake *shake, bool ended)
{
    unsigned long code = ERR_peek_last_error();
    int reason = ERR_GET_LIB(code) == ERR_LIB_SSL ? ERR_GET_REASON(code) : 0;
    uint8_t alert[2] = {0};

    if (reason > SSL_AD_REASON_OFFSET) {
        alert[1] = (uint8_t)(reason - SSL_AD_REASON_OFFSET);
        tls_read_alert(alert, &shake->why);
    }
    switch (reason) {
    case SSL_R_UNSUPPORTED_PROTOCOL:
    case SSL_R_WRONG_SSL_VERSION:
    case SSL_R_WRONG_VERSION_NUMBER:
    case SSL_R_VERSION_TOO_LOW:
        error_set(&shake->why, CAUSE_PROTOCOL, "the peer does not speak TLS 1.3");
        break;
    case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
        error_set(&shake->why, CAUSE_DENIED, "the peer has shown no certificate");
        break;
    case SSL_R_BINDER_DOES_NOT_VERIFY:
        if (shake->user)
            error_set(&shake->why, CAUSE_DENIED, "the peer has not the key of user '%.64s'",
                      shake->user->name);
        error_set(&shake->why, CAUSE_DENIED, "the peer has the key of no user that is known here");
        break;
    case SSL_R_NO_SHARED_CIPHER:
    case SSL_R_NO_SUITABLE_SIGNATURE_ALGORITHM:
    case SSL_R_NO_CERTIFICATE_SET:
        if (shake->set->users)
            error_set(&shake->why, CAUSE_DENIED, "the peer has shown no key");
        break;
    case SSL_R_UNEXPECTED_EOF_WHILE_READING:
        ended = true;
        break;
    default:
        break;
    }
    if (ended)
        error_set(&shake->why, CAUSE_RESET, "the peer has closed the connection in the TLS handshake");
    error_set(&shake->why, CAUSE_PROTOCOL, "the TLS handshake: %s",
              reason ? ERR_reason_error_string(code) : "failed");
}

/*
 * Who is there
 */

/* Names of a certificate, as text. */
struct names {
    char *name[NAMES_MAX];
    size_t count;
};

static void add_name(struct names *names, char *name)
{
    if (!name || names->count == NAMES_MAX) {
        free(name);
        return;
    }
    text_make_plain(name);
    names->name[names->count++] = name;
}

static void add_subject(struct names *names, X509_NAME *subject, EVP_MD_CTX *digest)
{
    BIO *bio = BIO_new(BIO_s_mem());
    char *text;
    unsigned char *der = NULL;
    int len = i2d_X509_NAME(subject, &der);

    if (len > 0)
        EVP_DigestUpdate(digest, der, (size_t)len);
    OPENSSL_free(der);
    if (bio && X509_NAME_entry_count(subject) > 0 &&
        X509_NAME_print_ex(bio, subject, 0, XN_FLAG_RFC2253) > 0) {
        long size = BIO_get_mem_data(bio, &text);
        add_name(names, strndup(text, (size_t)size));
    }
    BIO_free(bio);
    for (int at = -1; (at = X509_NAME_get_index_by_NID(subject, NID_commonName, at)) >= 0;) {
        unsigned char *utf8 = NULL;
        if (ASN1_STRING_to_UTF8(&utf8, X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at))) >= 0)
            add_name(names, strdup((char *)utf8));
        OPENSSL_free(utf8);
    }
}

static void add_alternatives(struct names *names, X509 *certificate, EVP_MD_CTX *digest)
{
    GENERAL_NAMES *all = X509_get_ext_d2i(certificate, NID_subject_alt_name, NULL, NULL);

    for (int i = 0; i < sk_GENERAL_NAME_num(all); i++) {
        const GENERAL_NAME *name = sk_GENERAL_NAME_value(all, i);
        char address[INET6_ADDRSTRLEN];
        unsigned char *der = NULL;
        int len = i2d_GENERAL_NAME(name, &der);
        if (len > 0)
            EVP_DigestUpdate(digest, der, (size_t)len);
        OPENSSL_free(der);
        if (name->type == GEN_DNS || name->type == GEN_URI || name->type == GEN_EMAIL) {
            const ASN1_STRING *text = name->d.ia5;
            add_name(names,
                     strndup((const char *)ASN1_STRING_get0_data(text), (size_t)ASN1_STRING_length(text)));
        } else if (name->type == GEN_IPADD) {
            int size = ASN1_STRING_length(name->d.iPAddress);
            if ((size == 4 || size == 16) &&
                inet_ntop(size == 4 ? AF_INET : AF_INET6, ASN1_STRING_get0_data(name->d.iPAddress), address,
                          sizeof(address)))
                add_name(names, strdup(address));
        }
    }
    GENERAL_NAMES_free(all);
}

static void identify(struct tls_shake *shake, X509 *certificate, struct tls_agreed *out)
{
    EVP_MD_CTX *digest = EVP_MD_CTX_new();
    struct names names = {0};
    static_assert(sizeof(out->identity.digest) == 32, "that of SHA-256");

    if (!digest || EVP_DigestInit_ex(digest, EVP_sha256(), NULL) <= 0) {
        error_set(&shake->why, CAUSE_NO_MEMORY, "out of memory");
    } else if (certificate) {
        add_subject(&names, X509_get_subject_name(certificate), digest);
        add_alternatives(&names, certificate, digest);
    } else {
        const struct tls_user *user = shake->serves ? shake->user : tls_set_user(shake->set);
        EVP_DigestUpdate(digest, "key", 4);
        EVP_DigestUpdate(digest, user->name, strlen(user->name));
        add_name(&names, strdup(user->name));
    }
    if (!error_is_set(&shake->why))
        EVP_DigestFinal_ex(digest, out->identity.digest, NULL);
    EVP_MD_CTX_free(digest);
    snprintf(out->identity.name, sizeof(out->identity.name), "%s",
             names.count ? names.name[0] : "a peer without a name");
    out->let_in = !shake->serves || tls_lets_in(shake->tls, (const char *const *)names.name, names.count);
    while (names.count > 0)
        free(names.name[--names.count]);
}

/* All is agreed: takes what is needed of it. */
static int conclude(struct tls_shake *shake, struct tls_agreed *out)
{
    const struct secret *secrets = shake->secrets;
    X509 *certificate = SSL_get0_peer_certificate(shake->ssl);
    bool proven = shake->set->users ? SSL_session_reused(shake->ssl) && (shake->user || !shake->serves)
                                    : certificate && SSL_get_verify_result(shake->ssl) == X509_V_OK;

    *out = (struct tls_agreed){.cipher = SSL_CIPHER_get_name(SSL_get_current_cipher(shake->ssl))};
    if (SSL_version(shake->ssl) != TLS1_3_VERSION || !proven || SSL_has_pending(shake->ssl))
        return error_set(&shake->why, CAUSE_PROTOCOL, "the TLS handshake has ended without a proof");
    out->keeps_keys = shake->peer_keeps_keys;
    out->renews_keys = !shake->peer_has_said;
    identify(shake, shake->set->users ? NULL : certificate, out);
    out->to_peer = tls_key_new(out->cipher, secrets[shake->serves].bytes, secrets[shake->serves].len, true);
    out->from_peer =
        tls_key_new(out->cipher, secrets[!shake->serves].bytes, secrets[!shake->serves].len, false);
    if (!out->to_peer || !out->from_peer)
        error_set(&shake->why, CAUSE_NO_MEMORY, "the keys of TLS cannot be made");
    if (!error_is_set(&shake->why))
        return 0;
    tls_key_free(out->to_peer);
    tls_key_free(out->from_peer);
    return -EIO;
}

int tls_shake_step(struct tls_shake *shake, struct tls_agreed *out, struct error *why)
{
    ERR_clear_error();
    int ret = SSL_do_handshake(shake->ssl);
    int code = ret > 0 ? SSL_ERROR_NONE : SSL_get_error(shake->ssl, ret);

    if (code == SSL_ERROR_NONE && conclude(shake, out) == 0)
        return 0;
    if (code == SSL_ERROR_WANT_READ)
        return -EAGAIN;
    if (code == SSL_ERROR_WANT_WRITE)
        return -ENOBUFS;
    if (shake->is_plain)
        error_set(&shake->why, CAUSE_PROTOCOL, "the peer does not speak TLS");
    else
        explain(shake, code == SSL_ERROR_SYSCALL);
    *why = shake->why;
    ERR_clear_error();
    return shake->is_plain ? -EPFNOSUPPORT : -EPROTO;
}

struct tls_shake *tls_shake_new(struct tls *tls, const char *name, struct error *err)
{
    struct tls_shake *shake = calloc(1, sizeof(*shake));

    if (!shake)
        return NULL;
    shake->tls = tls;
    shake->set = tls_set_get(tls);
    shake->serves = !name;
    if (name)
        snprintf(shake->name, sizeof(shake->name), "%.*s", (int)strcspn(name, "%"), name);
    SSL_CTX *ctx = name ? shake->set->client : shake->set->server;
    if (!ctx) {
        error_set(err, CAUSE_NOT_FOUND, "there is no %s-cert.pem in the directory of 'tls'",
                  name ? "client" : "server");
        tls_shake_free(shake);
        return NULL;
    }
    shake->ssl = SSL_new(ctx);
    BIO *bio = shake->ssl ? bio_of(shake) : NULL;
    if (!bio) {
        tls_shake_free(shake);
        return NULL;
    }
    SSL_set_bio(shake->ssl, bio, bio);
    SSL_set_app_data(shake->ssl, shake);
    if (name)
        SSL_set_connect_state(shake->ssl);
    else
        SSL_set_accept_state(shake->ssl);
    return shake;
}

void tls_shake_over(struct tls_shake *shake, struct transport *below, bool keeps_keys)
{
    shake->keeps_keys = keeps_keys;
    shake->below = below;
}

void tls_shake_free(struct tls_shake *shake)
{
    if (!shake)
        return;
    SSL_free(shake->ssl);
    tls_set_put(shake->set);
    OPENSSL_cleanse(shake, sizeof(*shake));
    free(shake);
}
