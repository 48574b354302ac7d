/* SPDX-License-Identifier: Apache-2.0 */
/* A CA for tests, and the files that it makes: those of a directory of -o tls. */
#ifndef MIGFS_TEST_AUTHORITY_H
#define MIGFS_TEST_AUTHORITY_H

#include <openssl/evp.h>
#include <openssl/x509.h>

struct authority {
    EVP_PKEY *key;
    X509 *certificate;
    long serial; /* of the last certificate */
};

/* What a certificate says; what is 0 is left out, and is valid from an hour ago to an hour from now. */
struct wish {
    const char *name;         /* the common name */
    const char *alternatives; /* as in openssl.cnf: "DNS:host,IP:192.0.2.1" */
    long from, until;         /* seconds from now */
};

struct authority authority_new(const char *name);
void authority_free(struct authority *a);

/** authority_write - its own certificate, to DIR/ca-cert.pem */
void authority_write(const struct authority *a, const char *dir);

/** authority_issue - DIR/SIDE-cert.pem and DIR/SIDE-key.pem. Return: the serial number */
long authority_issue(struct authority *a, const char *dir, const char *side, const struct wish *wish);

/** authority_revoke - DIR/ca-crl.pem with one certificate; 0: with none. @until: seconds from now */
void authority_revoke(const struct authority *a, const char *dir, long serial, long until);

#endif
