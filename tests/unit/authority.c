/* SPDX-License-Identifier: Apache-2.0 */
/* A CA for tests; see authority.h. */
#include "authority.h"
#include "check.h"

#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <sys/stat.h>

#define HOUR 3600

static EVP_PKEY *new_key(void)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");

    cr_assert(key != NULL);
    return key;
}

static X509 *new_certificate(EVP_PKEY *key, const char *name, long serial, long from, long until)
{
    X509 *x = X509_new();

    X509_set_version(x, X509_VERSION_3);
    ASN1_INTEGER_set(X509_get_serialNumber(x), serial);
    X509_gmtime_adj(X509_getm_notBefore(x), from);
    X509_gmtime_adj(X509_getm_notAfter(x), until);
    X509_set_pubkey(x, key);
    if (name)
        X509_NAME_add_entry_by_txt(X509_get_subject_name(x), "CN", MBSTRING_UTF8, (const unsigned char *)name, -1, -1,
                                   0);
    return x;
}

static void extend(X509 *x, int nid, const char *value)
{
    X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, NULL, nid, value);

    cr_assert(extension != NULL, "%s", value);
    X509_add_ext(x, extension, -1);
    X509_EXTENSION_free(extension);
}

static FILE *create(const char *dir, const char *side, const char *what)
{
    char path[256];

    snprintf(path, sizeof(path), "%s/%s-%s.pem", dir, side, what);
    FILE *file = fopen(path, "w");
    cr_assert(file != NULL, "%s", path);
    return file;
}

struct authority authority_new(const char *name)
{
    struct authority a = {.key = new_key(), .serial = 1};

    a.certificate = new_certificate(a.key, name, 1, -HOUR, HOUR);
    X509_set_issuer_name(a.certificate, X509_get_subject_name(a.certificate));
    extend(a.certificate, NID_basic_constraints, "critical,CA:TRUE");
    extend(a.certificate, NID_key_usage, "critical,keyCertSign,cRLSign");
    cr_assert(X509_sign(a.certificate, a.key, EVP_sha256()) > 0);
    return a;
}

void authority_free(struct authority *a)
{
    EVP_PKEY_free(a->key);
    X509_free(a->certificate);
}

void authority_write(const struct authority *a, const char *dir)
{
    mkdir(dir, 0700);
    FILE *file = create(dir, "ca", "cert");
    PEM_write_X509(file, a->certificate);
    fclose(file);
}

long authority_issue(struct authority *a, const char *dir, const char *side, const struct wish *wish)
{
    EVP_PKEY *key = new_key();
    X509 *x = new_certificate(key, wish->name, ++a->serial, wish->from ? wish->from : -HOUR,
                              wish->until ? wish->until : HOUR);

    X509_set_issuer_name(x, X509_get_subject_name(a->certificate));
    if (wish->alternatives)
        extend(x, NID_subject_alt_name, wish->alternatives);
    cr_assert(X509_sign(x, a->key, EVP_sha256()) > 0);
    FILE *file = create(dir, side, "cert");
    PEM_write_X509(file, x);
    fclose(file);
    file = create(dir, side, "key");
    PEM_write_PrivateKey(file, key, NULL, NULL, 0, NULL, NULL);
    fclose(file);
    X509_free(x);
    EVP_PKEY_free(key);
    return a->serial;
}

void authority_revoke(const struct authority *a, const char *dir, long serial, long until)
{
    X509_CRL *crl = X509_CRL_new();
    ASN1_TIME *when = X509_gmtime_adj(NULL, -HOUR);

    X509_CRL_set_version(crl, X509_CRL_VERSION_2);
    X509_CRL_set_issuer_name(crl, X509_get_subject_name(a->certificate));
    X509_CRL_set1_lastUpdate(crl, when);
    if (serial) {
        X509_REVOKED *revoked = X509_REVOKED_new();
        ASN1_INTEGER *number = ASN1_INTEGER_new();
        ASN1_INTEGER_set(number, serial);
        X509_REVOKED_set_serialNumber(revoked, number);
        X509_REVOKED_set_revocationDate(revoked, when);
        X509_CRL_add0_revoked(crl, revoked);
        ASN1_INTEGER_free(number);
    }
    X509_gmtime_adj(when, until);
    X509_CRL_set1_nextUpdate(crl, when);
    cr_assert(X509_CRL_sign(crl, a->key, EVP_sha256()) > 0);
    FILE *file = create(dir, "ca", "crl");
    PEM_write_X509_CRL(file, crl);
    fclose(file);
    ASN1_TIME_free(when);
    X509_CRL_free(crl);
}
