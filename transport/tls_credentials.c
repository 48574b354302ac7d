/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The files that TLS proves itself with; see tls.h.
 *
 * They are read when the daemon starts, so that what is missing or wrong shows then, and again by
 * tls_reload(). A handshake keeps the set that it began with.
 */
#include "tls_credentials.h"
#include "cleanup.h"
#include "log.h"

#include <ctype.h>
#include <errno.h>
#include <fnmatch.h>
#include <limits.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>

#define DEFAULT_USER "qemu" /* that QEMU's clients take, too */
#define LINE_MAX_LEN 1024
#define KEY_MIN      16 /* bytes: fewer could be guessed */

struct tls {
    char *directory, *keys; /* constant, like the next one; one of the two is NULL */
    char *lets_in;
    bool serves;
    pthread_mutex_t lock; /* guards the set; a leaf */
    struct tls_set *set;
};

const bool transport_has_tls = true;

/*
 * Files
 */

/* The library's words for what has just failed. */
static const char *library_error(void)
{
    const char *reason = ERR_reason_error_string(ERR_peek_last_error());

    return reason ? reason : "it cannot be used";
}

static int name_file(const struct tls *tls, const char *name, char path[PATH_MAX], struct error *err)
{
    if (snprintf(path, PATH_MAX, "%s/%s", tls->directory, name) >= PATH_MAX)
        return error_set(err, CAUSE_SYNTAX, "tls: the name of %s is too long", name);
    return 0;
}

/* Whether a file is there; 0: it is not, negative: it is, but cannot be read. */
static int has_file(const char *path, struct error *err)
{
    FILE *file = fopen(path, "re");

    if (!file && (errno == ENOENT || errno == ENOTDIR))
        return 0;
    if (!file)
        return error_set_errno(err, errno, "tls: %s", path);
    fclose(file);
    return 1;
}

/* Nobody is asked for the password of a key. */
static int no_password(char *buf, int size, int writes, void *arg)
{
    (void)buf, (void)size, (void)writes, (void)arg;
    return -1;
}

/* A list of revoked certificates applies to all of the chain for which there is one. */
static int load_revoked(const struct tls *tls, SSL_CTX *ctx, struct error *err)
{
    X509_STORE *store = SSL_CTX_get_cert_store(ctx);
    char path[PATH_MAX];
    X509_CRL *crl;
    unsigned n = 0;

    if (name_file(tls, "ca-crl.pem", path, err) < 0)
        return -EIO;
    int there = has_file(path, err);
    if (there <= 0)
        return there;
    FILE *file = fopen(path, "re");
    if (!file)
        return error_set_errno(err, errno, "tls: %s", path);
    while ((crl = PEM_read_X509_CRL(file, NULL, no_password, NULL))) {
        n += X509_STORE_add_crl(store, crl) > 0;
        X509_CRL_free(crl);
    }
    fclose(file);
    if (!n)
        return error_set(err, CAUSE_SYNTAX, "tls: %s: no list of revoked certificates: %s", path,
                         library_error());
    ERR_clear_error();
    X509_STORE_set_flags(store, X509_V_FLAG_CRL_CHECK | X509_V_FLAG_CRL_CHECK_ALL);
    return 0;
}

/* It still works, for whom it is shown to decides; but whoever looks for the reason finds it here, too. */
static void warn_of_dates(const SSL_CTX *ctx, const char *path)
{
    X509 *certificate = SSL_CTX_get0_certificate(ctx);

    if (certificate && X509_cmp_current_time(X509_get0_notAfter(certificate)) < 0)
        log_error("tls: %s has expired", path);
    if (certificate && X509_cmp_current_time(X509_get0_notBefore(certificate)) > 0)
        log_error("tls: %s is not yet valid", path);
}

/* A side's certificate and key. 1; 0: neither file is there. */
static int load_pair(const struct tls *tls, SSL_CTX *ctx, const char *side, struct error *err)
{
    char cert[PATH_MAX], key[PATH_MAX], name[32];
    int has_cert, has_key;

    snprintf(name, sizeof(name), "%s-cert.pem", side);
    if (name_file(tls, name, cert, err) < 0 || (has_cert = has_file(cert, err)) < 0)
        return -EIO;
    snprintf(name, sizeof(name), "%s-key.pem", side);
    if (name_file(tls, name, key, err) < 0 || (has_key = has_file(key, err)) < 0)
        return -EIO;
    if (has_cert != has_key)
        return error_set(err, CAUSE_NOT_FOUND, "tls: there is %s, but no %s", has_cert ? cert : key,
                         has_cert ? key : cert);
    if (!has_cert)
        return 0;
    if (SSL_CTX_use_certificate_chain_file(ctx, cert) <= 0)
        return error_set(err, CAUSE_SYNTAX, "tls: %s: no certificate: %s", cert, library_error());
    if (SSL_CTX_use_PrivateKey_file(ctx, key, SSL_FILETYPE_PEM) <= 0) {
        bool differs = ERR_GET_REASON(ERR_peek_last_error()) == X509_R_KEY_VALUES_MISMATCH;
        return differs ? error_set(err, CAUSE_SYNTAX, "tls: %s is not the key of %s", key, cert)
                       : error_set(err, CAUSE_SYNTAX, "tls: %s: no key, or one with a password: %s", key,
                                   library_error());
    }
    if (SSL_CTX_check_private_key(ctx) <= 0)
        return error_set(err, CAUSE_SYNTAX, "tls: %s is not the key of %s", key, cert);
    warn_of_dates(ctx, cert);
    return 1;
}

/* What OpenSSL works out of a certificate when somebody looks at it first: now, before several threads do. */
static void work_out(SSL_CTX *ctx)
{
    STACK_OF(X509_OBJECT) *trusted = X509_STORE_get0_objects(SSL_CTX_get_cert_store(ctx));

    for (int i = 0; i < sk_X509_OBJECT_num(trusted); i++) {
        X509 *cert = X509_OBJECT_get0_X509(sk_X509_OBJECT_value(trusted, i));
        if (cert)
            X509_check_purpose(cert, -1, 0);
    }
    X509_check_purpose(SSL_CTX_get0_certificate(ctx), -1, 0);
}

/* The context of one side; *@out stays NULL when there are no files for it. */
static int load_side(const struct tls *tls, const char *side, const SSL_METHOD *method, SSL_CTX **out,
                     struct error *err)
{
    char ca[PATH_MAX];
    SSL_CTX *ctx = SSL_CTX_new(method);

    ERR_clear_error();
    if (!ctx)
        return error_set(err, CAUSE_NO_MEMORY, "tls: %s", library_error());
    SSL_CTX_set_default_passwd_cb(ctx, no_password);
    tls_set_up(ctx, false);
    int ret = name_file(tls, "ca-cert.pem", ca, err);
    if (ret == 0)
        ret = has_file(ca, err);
    if (ret == 0)
        error_set(err, CAUSE_NOT_FOUND, "tls: there is no %s", ca);
    else if (ret > 0 && SSL_CTX_load_verify_file(ctx, ca) <= 0)
        error_set(err, CAUSE_SYNTAX, "tls: %s: no certificate: %s", ca, library_error());
    if (!error_is_set(err) && load_revoked(tls, ctx, err) == 0)
        ret = load_pair(tls, ctx, side, err);
    if (error_is_set(err) || ret == 0) {
        SSL_CTX_free(ctx);
    } else {
        work_out(ctx);
        *out = ctx;
    }
    return error_is_set(err) ? -EIO : 0;
}

static int load_certificates(const struct tls *tls, struct tls_set *set, struct error *err)
{
    if (load_side(tls, "server", TLS_server_method(), &set->server, err) < 0 ||
        load_side(tls, "client", TLS_client_method(), &set->client, err) < 0)
        return -EIO;
    if (tls->serves && !set->server)
        return error_set(err, CAUSE_NOT_FOUND,
                         "tls: to listen, this daemon needs %s/server-cert.pem and server-key.pem",
                         tls->directory);
    if (!set->server && !set->client)
        return error_set(err, CAUSE_NOT_FOUND,
                         "tls: there is neither client-cert.pem nor server-cert.pem in %s", tls->directory);
    return 0;
}

/*
 * Keys
 */

static int hex_value(char c)
{
    return isdigit((unsigned char)c) ? c - '0' : tolower((unsigned char)c) - 'a' + 10;
}

/* USER:HEXKEY, whose user may have colons. */
static int add_user(const struct tls *tls, struct tls_set *set, char *line, unsigned number,
                    struct error *err)
{
    char *hex = strrchr(line, ':');
    size_t digits = hex ? strlen(hex + 1) : 0;
    struct tls_user user = {.len = digits / 2};

    if (!hex || hex == line || digits % 2 || strspn(hex + 1, "0123456789abcdefABCDEF") != digits ||
        user.len > sizeof(user.key))
        return error_set(err, CAUSE_SYNTAX, "tls-psk: %s: line %u is not USER:HEXKEY", tls->keys, number);
    if (user.len < KEY_MIN)
        return error_set(err, CAUSE_SYNTAX, "tls-psk: %s: line %u: a key has %u bytes at least", tls->keys,
                         number, KEY_MIN);
    *hex++ = '\0';
    for (size_t i = 0; i < user.len; i++)
        user.key[i] = (uint8_t)(hex_value(hex[2 * i]) << 4 | hex_value(hex[2 * i + 1]));
    struct tls_user *more = realloc(set->users, (set->user_count + 1) * sizeof(*more));
    if (more)
        set->users = more;
    user.name = more ? strdup(line) : NULL;
    bool added = user.name;
    if (added)
        set->users[set->user_count++] = user;
    OPENSSL_cleanse(&user, sizeof(user));
    return added ? 0 : error_set(err, CAUSE_NO_MEMORY, "out of memory");
}

static SSL_CTX *keyed_context(const SSL_METHOD *method, struct error *err)
{
    SSL_CTX *ctx = SSL_CTX_new(method);

    if (ctx)
        tls_set_up(ctx, true);
    else
        error_set(err, CAUSE_NO_MEMORY, "tls-psk: %s", library_error());
    return ctx;
}

static int load_keys(const struct tls *tls, struct tls_set *set, struct error *err)
{
    FILE *file = fopen(tls->keys, "re");
    char line[LINE_MAX_LEN];
    unsigned number = 0;
    int ret = 0;

    if (!file)
        return error_set_errno(err, errno, "tls-psk: %s", tls->keys);
    while (ret == 0 && fgets(line, sizeof(line), file)) {
        line[strcspn(line, "\r\n")] = '\0';
        number++;
        if (*line && *line != '#')
            ret = add_user(tls, set, line, number, err);
    }
    if (ret == 0 && ferror(file))
        ret = error_set_errno(err, errno, "tls-psk: %s", tls->keys);
    fclose(file);
    OPENSSL_cleanse(line, sizeof(line));
    if (ret < 0)
        return ret;
    if (!set->user_count)
        return error_set(err, CAUSE_NOT_FOUND, "tls-psk: there is no USER:HEXKEY in %s", tls->keys);
    set->server = keyed_context(TLS_server_method(), err);
    set->client = keyed_context(TLS_client_method(), err);
    return error_is_set(err) ? -EIO : 0;
}

const struct tls_user *tls_set_find(const struct tls_set *set, const void *name, size_t len)
{
    for (size_t i = 0; i < set->user_count; i++) {
        if (strlen(set->users[i].name) == len && !memcmp(set->users[i].name, name, len))
            return &set->users[i];
    }
    return NULL;
}

const struct tls_user *tls_set_user(const struct tls_set *set)
{
    const struct tls_user *user = tls_set_find(set, DEFAULT_USER, strlen(DEFAULT_USER));

    return user ? user : set->users;
}

/*
 * Sets
 */

struct tls_set *tls_set_get(struct tls *tls)
{
    SCOPED_LOCK(&tls->lock);
    atomic_fetch_add(&tls->set->refs, 1);
    return tls->set;
}

void tls_set_put(struct tls_set *set)
{
    if (!set || atomic_fetch_sub(&set->refs, 1) > 1)
        return;
    SSL_CTX_free(set->server);
    SSL_CTX_free(set->client);
    for (size_t i = 0; i < set->user_count; i++) {
        free(set->users[i].name);
        OPENSSL_cleanse(&set->users[i], sizeof(set->users[i]));
    }
    free(set->users);
    free(set);
}

static struct tls_set *load(const struct tls *tls, struct error *err)
{
    struct tls_set *set = calloc(1, sizeof(*set));

    if (!set) {
        error_set(err, CAUSE_NO_MEMORY, "out of memory");
        return NULL;
    }
    set->refs = 1;
    if ((tls->keys ? load_keys(tls, set, err) : load_certificates(tls, set, err)) == 0)
        return set;
    tls_set_put(set);
    return NULL;
}

int tls_reload(struct tls *tls, struct error *err)
{
    struct tls_set *set = load(tls, err);

    if (!set)
        return -EIO;
    pthread_mutex_lock(&tls->lock);
    struct tls_set *old = tls->set;
    tls->set = set;
    pthread_mutex_unlock(&tls->lock);
    tls_set_put(old);
    return 0;
}

/* A copy of @text if there is any. */
static int copy_text(char **to, const char *text)
{
    *to = text ? strdup(text) : NULL;
    return text && !*to ? -ENOMEM : 0;
}

int tls_new(const struct tls_config *config, struct tls **out, struct error *err)
{
    struct tls *tls = calloc(1, sizeof(*tls));

    if (!tls)
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    pthread_mutex_init(&tls->lock, NULL);
    tls->serves = config->serves;
    if (copy_text(&tls->directory, config->directory) < 0 || copy_text(&tls->keys, config->keys) < 0 ||
        copy_text(&tls->lets_in, config->lets_in) < 0)
        error_set(err, CAUSE_NO_MEMORY, "out of memory");
    if (error_is_set(err) || tls_reload(tls, err) < 0) {
        tls_free(tls);
        return -EIO;
    }
    *out = tls;
    return 0;
}

void tls_free(struct tls *tls)
{
    if (!tls)
        return;
    tls_set_put(tls->set);
    pthread_mutex_destroy(&tls->lock);
    free(tls->directory);
    free(tls->keys);
    free(tls->lets_in);
    free(tls);
}

bool tls_lets_in(const struct tls *tls, const char *const *names, size_t n)
{
    CLEANUP_FREE char *patterns = tls->lets_in ? strdup(tls->lets_in) : NULL;
    char *rest = patterns, *pattern;

    if (!tls->lets_in)
        return true;
    while (patterns && (pattern = strsep(&rest, ":"))) {
        for (size_t i = 0; *pattern && i < n; i++) {
            if (fnmatch(pattern, names[i], 0) == 0)
                return true;
        }
    }
    return false;
}
