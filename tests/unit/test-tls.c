/* SPDX-License-Identifier: Apache-2.0 */
/* TLS between two ends in one process: who lets whom in and what each is told, and the bytes that go through. */
#include "authority.h"
#include "blocked.h"
#include "check.h"
#include "cleanup.h"
#include "clock.h"
#include "guard.h"
#include "link.h"
#include "scratch.h"
#include "tls.h"
#include "tls_record.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/tls.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The directories of the two ends, and those who sign for them. */
static char here[96], there[96];
static struct authority ours, other;

static void set_up(void)
{
    scratch_make();
    guard_setup();
    snprintf(here, sizeof(here), "%s/here", scratch);
    snprintf(there, sizeof(there), "%s/there", scratch);
    ours = authority_new("Our CA");
    other = authority_new("Another CA");
    authority_write(&ours, here);
    authority_write(&ours, there);
    authority_issue(&ours, here, "client", &(struct wish){.name = "source", .alternatives = "DNS:src.example"});
    authority_issue(&ours, there, "server", &(struct wish){.name = "destination", .alternatives = "DNS:dst.example"});
}

static void tear_down(void)
{
    authority_free(&ours);
    authority_free(&other);
    scratch_remove();
}

TestSuite(tls, .init = set_up, .fini = tear_down);

static struct tls *certificates(const char *dir, const char *lets_in)
{
    struct tls_config config = {.directory = dir, .lets_in = lets_in, .serves = dir == there};
    struct tls *tls = NULL;
    struct error err;

    CHECK_OK(tls_new(&config, &tls, &err));
    return tls;
}

static struct tls *keys(const char *text)
{
    char path[128];
    static int n;
    struct tls_config config = {.keys = path, .serves = true};
    struct tls *tls = NULL;
    struct error err;

    snprintf(path, sizeof(path), "%s/keys-%d", scratch, n++);
    FILE *file = fopen(path, "w");
    fputs(text, file);
    fclose(file);
    CHECK_OK(tls_new(&config, &tls, &err));
    return tls;
}

/* Two ends that meet, and what each has been told. */
struct meeting {
    struct link link;
    struct tls *client, *server; /* NULL: it speaks no TLS */
    const char *name;
    struct worker worker;
    struct error client_err, server_err;
    bool client_done;
};

/* As migfs does: it says hello, and waits for an answer. */
static void be_client(void *arg)
{
    struct meeting *m = arg;
    struct transport *t = m->link.a;
    char got[6];

    if (m->client && tls_client(m->client, t, m->name, &link_forever, &m->client_err) < 0) {
        transport_shutdown(t);
        return;
    }
    int ret = link_send(t, "hello", 5);
    if (ret == 0)
        ret = transport_recv_all(t, got, 6, &link_forever);
    if (ret == 0 && !memcmp(got, "answer", 6)) {
        m->client_done = true;
        return;
    }
    transport_explain(t, &m->client_err);
    error_set_errno(&m->client_err, ret, "the answer");
}

/* As the listener does: it never blocks, and refuses by closing. */
static void be_server(struct meeting *m)
{
    struct transport *t = m->link.b;
    char got[5];
    size_t have = 0;
    ssize_t n;

    if (m->server)
        cr_assert(zero(int, tls_server(m->server, t)));
    while (have < 5) {
        struct pollfd fd = {.fd = transport_pollfd(t), .events = POLLIN};
        n = transport_recv(t, got + have, 5 - have, TRANSPORT_NOWAIT);
        if (n == -EAGAIN) {
            poll(&fd, 1, -1);
            continue;
        }
        if (n <= 0) {
            transport_explain(t, &m->server_err);
            error_set_errno(&m->server_err, n ? (int)n : ECONNRESET, "the hello");
            transport_finish(t);
            return;
        }
        have += (size_t)n;
    }
    if (memcmp(got, "hello", 5)) {
        error_set(&m->server_err, CAUSE_PROTOCOL, "that is no hello");
        transport_finish(t);
        return;
    }
    cr_expect(eq(int, transport_send_now(t, "answer", 6), 0));
}

/* Afterwards the link is the caller's, to be closed. */
static void meet(struct meeting *m)
{
    if (!m->name)
        m->name = "dst.example";
    if (!m->link.a)
        link_pair(&m->link);
    worker_start(&m->worker, be_client, m);
    be_server(m);
    worker_join(&m->worker);
}

static void part(struct meeting *m)
{
    link_close(&m->link);
    tls_free(m->client);
    tls_free(m->server);
}

#define EXPECT_SENTENCE(err, text)                                                                                     \
    cr_expect(strstr((err).message, text) != NULL, "'%s' is not in '%s'", text, (err).message)

Test(tls, certificates)
{
    struct meeting m = {.client = certificates(here, NULL), .server = certificates(there, NULL)};

    meet(&m);
    cr_expect(m.client_done, "%s; %s", m.client_err.message, m.server_err.message);
    cr_expect(eq(str, m.link.a->identity.name, "CN=destination"));
    cr_expect(eq(str, m.link.b->identity.name, "CN=source"));
    cr_expect(ne(int, memcmp(m.link.a->identity.digest, m.link.b->identity.digest, 32), 0));
    cr_expect(m.link.a->traits.splices == false && !m.link.a->traits.receives_to_file && !m.link.a->traits.seals);
    cr_expect(eq(int, transport_zerocopy(m.link.a), -EOPNOTSUPP));
    transport_finish(m.link.a);
    char c;
    cr_expect(eq(long, transport_recv(m.link.b, &c, 1, 0), 0));
    part(&m);
}

/* Names: by an alternative name or address, by the common name where there are no alternatives, and no other way. */
Test(tls, names)
{
    static const struct {
        const char *common, *alternatives, *asked;
        bool fits;
    } cases[] = {
        {"x", "DNS:dst.example", "dst.example", true},
        {"x", "DNS:a.example,DNS:dst.example", "DST.example", true},
        {"x", "DNS:*.example.org", "dst.example.org", true},
        {"x", "IP:192.0.2.7", "192.0.2.7", true},
        {"x", "IP:2001:db8::7", "2001:db8::7", true},
        {"x", "IP:fe80::7", "fe80::7%eth0", true},
        {"dst.example", NULL, "dst.example", true},
        {"192.0.2.7", NULL, "192.0.2.7", true},
        {"dst.example", "DNS:a.example", "dst.example", false},
        {"x", "DNS:dst.example", "x", false},
        {"x", "IP:192.0.2.7", "192.0.2.8", false},
        {"x", "DNS:*.0.2.7", "192.0.2.7", false},
        {"x", "DNS:dst.example", "sub.dst.example", false},
    };
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        authority_issue(&ours, there, "server",
                        &(struct wish){.name = cases[i].common, .alternatives = cases[i].alternatives});
        struct meeting m = {.client = certificates(here, NULL), .server = certificates(there, NULL), .name = cases[i].asked};
        meet(&m);
        cr_expect(eq(int, m.client_done, cases[i].fits), "%zu: %s", i, m.client_err.message);
        if (!cases[i].fits) {
            EXPECT_SENTENCE(m.client_err, "the peer's certificate is not one of '");
            EXPECT_SENTENCE(m.server_err, "the peer refuses this side's certificate");
        }
        part(&m);
    }
}

/* What can be wrong with a certificate; each side is told what concerns it. */
static void refuses(struct authority *signer, const char *side, const struct wish *wish, const char *judge,
                    const char *judged)
{
    bool is_client = !strcmp(side, "client");

    authority_issue(signer, is_client ? here : there, side, wish);
    struct meeting m = {.client = certificates(here, NULL), .server = certificates(there, NULL)};
    meet(&m);
    cr_expect(not(m.client_done));
    EXPECT_SENTENCE(is_client ? m.server_err : m.client_err, judge);
    EXPECT_SENTENCE(is_client ? m.client_err : m.server_err, judged);
    cr_expect(eq(int, (int)m.client_err.cause, CAUSE_DENIED));
    cr_expect(eq(int, (int)m.server_err.cause, CAUSE_DENIED));
    part(&m);
}

Test(tls, dates)
{
    struct wish early = {.name = "x", .alternatives = "DNS:dst.example", .from = 1800};
    struct wish late = {.name = "x", .alternatives = "DNS:dst.example", .from = -7200, .until = -1800};

    refuses(&ours, "client", &late, "the peer's certificate has expired", "it has expired");
    refuses(&ours, "client", &early, "is not yet valid", "not yet valid, for another host, or damaged");
    authority_issue(&ours, here, "client", &(struct wish){.name = "source"});
    refuses(&ours, "server", &late, "the peer's certificate has expired", "it has expired");
    refuses(&ours, "server", &early, "is not yet valid", "not yet valid, for another host, or damaged");
}

Test(tls, another_ca)
{
    struct wish fine = {.name = "x", .alternatives = "DNS:dst.example"};

    refuses(&other, "client", &fine, "is not signed by a CA of ca-cert.pem", "its CA is not the peer's");
    authority_issue(&ours, here, "client", &fine);
    refuses(&other, "server", &fine, "is not signed by a CA of ca-cert.pem", "its CA is not the peer's");
}

Test(tls, revoked)
{
    struct wish fine = {.name = "x", .alternatives = "DNS:dst.example"};

    authority_revoke(&ours, there, ours.serial + 1, 3600);
    refuses(&ours, "client", &fine, "has been revoked", "it has been revoked");
    authority_issue(&ours, here, "client", &fine);
    struct meeting m = {.client = certificates(here, NULL), .server = certificates(there, NULL)};
    meet(&m);
    cr_expect(m.client_done, "another one is not: %s", m.client_err.message);
    part(&m);
    authority_revoke(&ours, here, ours.serial + 1, 3600);
    refuses(&ours, "server", &fine, "has been revoked", "it has been revoked");
    authority_revoke(&ours, here, 0, -60);
    refuses(&ours, "server", &fine, "ca-crl.pem", "the peer refuses this side's certificate");
}

/* No certificate at all: this side says so by itself, and a client that asks nobody is refused. */
Test(tls, no_certificate)
{
    struct meeting m = {.client = certificates(there, NULL), .server = certificates(there, NULL)};

    meet(&m);
    EXPECT_SENTENCE(m.client_err, "there is no client-cert.pem");
    part(&m);
}

/* A client of another make: one with OpenSSL's own connection, over the same socket. */
struct stranger {
    struct link link;
    struct worker worker;
    int version;
    const char *pem; /* its certificate, or NULL */
    char said[256];
};

static void be_stranger(void *arg)
{
    struct stranger *s = arg;
    int fd = transport_pollfd(s->link.a);
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
    SSL *ssl;
    char byte;

    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
    SSL_CTX_set_max_proto_version(ctx, s->version);
    ssl = SSL_new(ctx);
    SSL_set_fd(ssl, fd);
    if (SSL_connect(ssl) > 0)
        SSL_read(ssl, &byte, 1);
    snprintf(s->said, sizeof(s->said), "%s", ERR_reason_error_string(ERR_peek_last_error()));
    transport_shutdown(s->link.a);
    SSL_free(ssl);
    SSL_CTX_free(ctx);
}

static void stranger_is_told(int version, const char *told, const char *why)
{
    struct stranger s = {.version = version};
    struct meeting m = {.server = certificates(there, NULL)};

    link_pair(&s.link);
    m.link = s.link;
    worker_start(&s.worker, be_stranger, &s);
    be_server(&m);
    worker_join(&s.worker);
    EXPECT_SENTENCE(m.server_err, why);
    cr_expect(strstr(s.said, told) != NULL, "%s", s.said);
    part(&m);
}

Test(tls, strangers)
{
    stranger_is_told(TLS1_2_VERSION, "protocol version", "the peer does not speak TLS 1.3");
    stranger_is_told(TLS1_3_VERSION, "certificate required", "the peer has shown no certificate");
}

Test(tls, plain_to_tls)
{
    struct meeting m = {.server = certificates(there, NULL)};
    char got[3];

    meet(&m);
    EXPECT_SENTENCE(m.server_err, "the peer does not speak TLS");
    cr_expect(not(m.client_done));
    part(&m);
    /* It can be told so, in plain words. */
    m = (struct meeting){.server = certificates(there, NULL)};
    link_pair(&m.link);
    cr_assert(zero(int, tls_server(m.server, m.link.b)));
    cr_expect(zero(int, link_send(m.link.a, "hello", 5)));
    cr_expect(eq(long, transport_recv(m.link.b, got, 3, TRANSPORT_NOWAIT), -EPFNOSUPPORT));
    cr_expect(eq(int, transport_send_now(m.link.b, "no!", 3), 0));
    cr_expect(zero(int, transport_recv_all(m.link.a, got, 3, &link_forever)));
    cr_expect(zero(int, memcmp(got, "no!", 3)));
    part(&m);
}

Test(tls, tls_to_plain)
{
    struct meeting m = {.client = certificates(here, NULL), .name = "dst.example"};

    link_pair(&m.link);
    cr_expect(zero(int, link_send(m.link.b, "welcome", 7)));
    be_client(&m);
    EXPECT_SENTENCE(m.client_err, "the peer does not speak TLS");
    cr_expect(eq(int, (int)m.client_err.cause, CAUSE_PROTOCOL));
    part(&m);
}

#define KEY_A "0102030405060708090a0b0c0d0e0f10"
#define KEY_B "0102030405060708090a0b0c0d0e0f11"

Test(tls, with_keys)
{
    static const struct {
        const char *client, *server, *name; /* what each has; whom the server sees, or NULL */
        const char *client_says, *server_says;
    } cases[] = {
        {"qemu:" KEY_A "\n", "qemu:" KEY_A "\n", "qemu", NULL, NULL},
        {"# two\nb:" KEY_B "\nqemu:" KEY_A "\n", "qemu:" KEY_A "\n", "qemu", NULL, NULL},
        {"b:" KEY_B "\na:" KEY_A "\n", "a:" KEY_A "\r\nb:" KEY_B, "b", NULL, NULL},
        {"a:b:" KEY_B "\n", "a:b:" KEY_B "\n", "a:b", NULL, NULL},
        {"qemu:" KEY_A "\n", "qemu:" KEY_B "\n", NULL, "does not accept this side's key", "has not the key of user 'qemu'"},
        {"eve:" KEY_A "\n", "qemu:" KEY_A "\n", NULL, "does not accept this side's key", "the key of no user"},
    };
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        struct meeting m = {.client = keys(cases[i].client), .server = keys(cases[i].server), .name = "any"};
        meet(&m);
        cr_expect(eq(int, m.client_done, cases[i].name != NULL), "%zu: %s", i, m.client_err.message);
        if (cases[i].name) {
            cr_expect(eq(str, m.link.b->identity.name, (char *)cases[i].name));
        } else {
            EXPECT_SENTENCE(m.client_err, cases[i].client_says);
            EXPECT_SENTENCE(m.server_err, cases[i].server_says);
        }
        part(&m);
    }
}

/* What a stranger is told does not say which users there are. */
Test(tls, unknown_users_look_like_wrong_keys)
{
    struct meeting wrong = {.client = keys("qemu:" KEY_A), .server = keys("qemu:" KEY_B)};
    struct meeting unknown = {.client = keys("eve:" KEY_A), .server = keys("qemu:" KEY_B)};

    meet(&wrong);
    meet(&unknown);
    cr_expect(eq(str, wrong.client_err.message, unknown.client_err.message));
    part(&wrong);
    part(&unknown);
}

Test(tls, keys_and_certificates)
{
    struct meeting m = {.client = keys("qemu:" KEY_A), .server = certificates(there, NULL)};

    meet(&m);
    EXPECT_SENTENCE(m.client_err, "the peer shows a certificate");
    cr_expect(error_is_set(&m.server_err));
    part(&m);
    m = (struct meeting){.client = certificates(here, NULL), .server = keys("qemu:" KEY_A)};
    meet(&m);
    EXPECT_SENTENCE(m.client_err, "the peer wants another proof");
    EXPECT_SENTENCE(m.server_err, "the peer has shown no key");
    part(&m);
}

Test(tls, who_is_let_in)
{
    static const struct {
        const char *patterns;
        bool fits;
    } cases[] = {
        {"CN=source", true},   {"source", true},      {"src.example", true}, {"*.example", true},
        {"nobody:src.*", true}, {"nobody", false},    {"", false},           {"CN=dest*:ource", false},
        {"SOURCE", false},     {"CN=[a-r]*", false},
    };
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        struct meeting m = {.client = certificates(here, NULL), .server = certificates(there, cases[i].patterns)};
        meet(&m);
        cr_expect(eq(int, m.client_done, cases[i].fits), "%s: %s", cases[i].patterns, m.server_err.message);
        if (!cases[i].fits)
            EXPECT_SENTENCE(m.server_err, "'CN=source' is not let in here");
        part(&m);
    }
}

/* The same certificate's owner has one digest, whatever the certificate; another name is another one. */
Test(tls, identities)
{
    static const struct wish wishes[] = {
        {.name = "a", .alternatives = "DNS:x"},
        {.name = "a", .alternatives = "DNS:x", .until = 7200},
        {.name = "a", .alternatives = "DNS:y"},
        {.name = "b", .alternatives = "DNS:x"},
        {.alternatives = "DNS:x"},
    };
    uint8_t digests[ARRAY_LENGTH(wishes)][32];

    for (size_t i = 0; i < ARRAY_LENGTH(wishes); i++) {
        authority_issue(&ours, here, "client", &wishes[i]);
        struct meeting m = {.client = certificates(here, NULL), .server = certificates(there, NULL)};
        meet(&m);
        cr_assert(m.client_done, "%s", m.server_err.message);
        memcpy(digests[i], m.link.b->identity.digest, 32);
        cr_expect(eq(str, m.link.b->identity.name, (char *)(i == 4 ? "x" : i == 3 ? "CN=b" : "CN=a")));
        part(&m);
    }
    cr_expect(zero(int, memcmp(digests[0], digests[1], 32)));
    for (size_t i = 1; i < ARRAY_LENGTH(wishes); i++) {
        for (size_t k = 0; k < i; k++)
            cr_expect(eq(int, !memcmp(digests[i], digests[k], 32), i == 1 && k == 0), "%zu %zu", i, k);
    }
}

Test(tls, reloaded)
{
    struct tls *client = certificates(here, NULL), *server = certificates(there, NULL);
    struct meeting m = {.client = client, .server = server};
    char path[128];
    struct error err;

    authority_issue(&ours, there, "server", &(struct wish){.name = "new", .alternatives = "DNS:dst.example"});
    CHECK_OK(tls_reload(server, &err));
    meet(&m);
    cr_expect(m.client_done && !strcmp(m.link.a->identity.name, "CN=new"));
    link_close(&m.link);
    /* What cannot be read changes nothing. */
    snprintf(path, sizeof(path), "%s/server-key.pem", there);
    cr_assert(zero(int, truncate(path, 10)));
    CHECK_FAILS(tls_reload(server, &err), CAUSE_SYNTAX);
    EXPECT_SENTENCE(err, path);
    m = (struct meeting){.client = client, .server = server};
    meet(&m);
    cr_expect(m.client_done);
    part(&m);
}

/* What is missing or wrong shows when the files are read, with the file's name. */
Test(tls, files)
{
    static const char *const required[] = {"ca-cert.pem", "server-cert.pem", "server-key.pem"};
    struct tls_config config = {.directory = there, .serves = true};
    struct tls *tls = NULL;
    struct error err;
    char path[128], kept[128];

    for (size_t i = 0; i < ARRAY_LENGTH(required); i++) {
        snprintf(path, sizeof(path), "%s/%s", there, required[i]);
        snprintf(kept, sizeof(kept), "%s/kept", there);
        cr_assert(zero(int, rename(path, kept)));
        CHECK_FAILS(tls_new(&config, &tls, &err), CAUSE_NOT_FOUND);
        EXPECT_SENTENCE(err, required[i]);
        cr_assert(zero(int, mkdir(path, 0700)));
        cr_expect(lt(int, tls_new(&config, &tls, &err), 0));
        cr_assert(zero(int, rmdir(path)));
        FILE *file = fopen(path, "w");
        fputs("nothing of the kind\n", file);
        fclose(file);
        CHECK_FAILS(tls_new(&config, &tls, &err), CAUSE_SYNTAX);
        EXPECT_SENTENCE(err, required[i]);
        cr_assert(zero(int, rename(kept, path)));
    }
    snprintf(path, sizeof(path), "%s/server-key.pem", there);
    snprintf(kept, sizeof(kept), "%s/client-key.pem", here);
    cr_assert(zero(int, rename(kept, path)));
    CHECK_FAILS(tls_new(&config, &tls, &err), CAUSE_SYNTAX);
    EXPECT_SENTENCE(err, "is not the key of");
    config.directory = here;
    config.serves = false;
    CHECK_FAILS(tls_new(&config, &tls, &err), CAUSE_NOT_FOUND);
    EXPECT_SENTENCE(err, "client-key.pem");
    config = (struct tls_config){.keys = "/nowhere/keys.psk"};
    CHECK_FAILS(tls_new(&config, &tls, &err), CAUSE_NOT_FOUND);
}

Test(tls, files_of_keys)
{
    static const char *const wrong[] = {"", "# nobody\n", "qemu\n", "qemu:\n", ":" KEY_A "\n", "qemu:0102\n", "qemu:" KEY_A "0\n",
                                        "qemu:" KEY_A "xx\n"};
    struct error err;
    char path[128];

    snprintf(path, sizeof(path), "%s/keys", scratch);
    for (size_t i = 0; i < ARRAY_LENGTH(wrong); i++) {
        struct tls_config config = {.keys = path, .serves = true};
        struct tls *tls = NULL;
        FILE *file = fopen(path, "w");
        fputs(wrong[i], file);
        fclose(file);
        err = (struct error){0};
        cr_expect(lt(int, tls_new(&config, &tls, &err), 0), "%s", wrong[i]);
        EXPECT_SENTENCE(err, path);
    }
}

/*
 * Bytes
 */

/* Two ends that have met over a link, which is made if there is none. */
static void open_pair(struct meeting *m)
{
    m->client = certificates(here, NULL);
    m->server = certificates(there, NULL);
    meet(m);
    cr_assert(m->client_done, "%s; %s", m->client_err.message, m->server_err.message);
}

static _Thread_local uint64_t chance = 1; /* both ends draw */
static size_t up_to(size_t most)
{
    chance = chance * 6364136223846793005ull + 1442695040888963407ull;
    return (size_t)(chance >> 33) % (most + 1);
}

struct stream {
    struct worker worker;
    struct transport *t;
    char *bytes;
    size_t len;
};

/* In parts of any size, by either operation. */
static void send_parts_of(void *arg)
{
    struct stream *s = arg;

    for (size_t at = 0; at < s->len;) {
        struct iovec iov[TRANSPORT_IOV_MAX];
        int n = 1 + (int)up_to(TRANSPORT_IOV_MAX - 1);
        size_t most = up_to(1) ? 100 : 60000;
        for (int i = 0; i < n; i++) {
            size_t len = up_to(most);
            len = len < s->len - at ? len : s->len - at;
            iov[i] = (struct iovec){s->bytes + at, len};
            at += len;
        }
        cr_assert(eq(int, transport_send(s->t, iov, n), 0));
    }
}

/* Receives up to @room bytes, in one piece or in parts. */
static ssize_t receive_some(struct transport *t, char *to, size_t room)
{
    struct iovec parts[5];
    int n = 0;

    if (up_to(1))
        return transport_recv(t, to, room, 0);
    for (size_t at = 0; n < (int)ARRAY_LENGTH(parts) && at < room; n++) {
        size_t len = 1 + up_to(room - at - 1);
        parts[n] = (struct iovec){to + at, len};
        at += len;
    }
    return transport_recv_parts(t, parts, n);
}

static void carry(struct meeting *m, size_t len, size_t most)
{
    struct stream s = {.t = m->link.a, .bytes = malloc(len), .len = len};
    CLEANUP_FREE char *got = malloc(len);

    pattern(s.bytes, len, 7);
    worker_start(&s.worker, send_parts_of, &s);
    for (size_t at = 0; at < len;) {
        size_t room = 1 + up_to(most);
        ssize_t n = receive_some(m->link.b, got + at, room < len - at ? room : len - at);
        cr_assert(n > 0, "%zd", n);
        at += (size_t)n;
    }
    worker_join(&s.worker);
    cr_expect(zero(int, memcmp(got, s.bytes, len)));
    free(s.bytes);
}

Test(tls, carries_bytes)
{
    struct meeting m = {0};

    open_pair(&m);
    carry(&m, 8 << 20, 300000);
    carry(&m, 4 << 20, 20000);
    carry(&m, 1 << 20, 100);
    part(&m);
}

/* A peer that goes away in the handshake is not one that is refused. */
Test(tls, closed_in_the_handshake)
{
    struct meeting m = {.client = certificates(here, NULL), .name = "dst.example"};
    char some[9];

    link_pair(&m.link);
    worker_start(&m.worker, be_client, &m);
    cr_assert(zero(int, transport_recv_all(m.link.b, some, sizeof(some), NULL)));
    transport_finish(m.link.b);
    worker_join(&m.worker);
    cr_expect(not(m.client_done));
    cr_expect(eq(int, (int)m.client_err.cause, CAUSE_RESET));
    EXPECT_SENTENCE(m.client_err, "has closed the connection in the TLS handshake");
    part(&m);
}

/* An end that was said is one, however often it is asked for; and the other direction goes on. */
Test(tls, ended)
{
    struct meeting m = {0};
    char got[4] = "";

    open_pair(&m);
    cr_assert(zero(int, link_send(m.link.a, "abc", 3)));
    transport_finish(m.link.a);
    cr_assert(zero(int, transport_recv_all(m.link.b, got, 3, NULL)));
    cr_expect(eq(str, got, "abc"));
    for (int i = 0; i < 3; i++)
        cr_expect(zero(long, transport_recv(m.link.b, got, 1, 0)));
    cr_assert(zero(int, link_send(m.link.b, "de", 2)));
    cr_assert(zero(int, transport_recv_all(m.link.a, got, 2, NULL)));
    cr_expect(zero(int, memcmp(got, "de", 2)));
    part(&m);
}

/* A connection that moves a few bytes at a time: neither the handshake nor a record comes in one piece. */
Test(tls, in_pieces)
{
    struct meeting m = {0};
    char where[96];

    snprintf(where, sizeof(where), "faulty:short=7:unix:%s/socket", scratch);
    m.link.listener = link_listen(where);
    m.link.a = link_connect(m.link.listener, "", 0);
    m.link.b = link_accept(m.link.listener);
    open_pair(&m);
    carry(&m, 200000, 5000);
    part(&m);
}

Test(tls, keys_change)
{
    struct meeting m = {0};

    tls_key_life = 3;
    open_pair(&m);
    carry(&m, 4 << 20, 300000);
    /* Reads that are shorter than a record that says so. */
    carry(&m, 400000, 3);
    cr_expect(zero(int, link_send(m.link.b, "back", 4)));
    char got[4];
    cr_expect(zero(int, transport_recv_all(m.link.a, got, 4, &link_forever)));
    part(&m);
}

/*
 * A kernel that says of one socket that it has TLS, and takes it over to receive with it: it does not, so the
 * records can be looked at.
 */
static int lying_fd = -1;

int setsockopt(int fd, int level, int name, const void *value, socklen_t len)
{
    bool ulp = level == IPPROTO_TCP && name == TCP_ULP, key = level == SOL_TLS;

    if (fd != lying_fd || (!ulp && !key))
        return (int)syscall(SYS_setsockopt, fd, level, name, value, len);
    if (ulp || name == TLS_RX)
        return 0;
    errno = ENOPROTOOPT;
    return -1;
}

static void be_kernel_client(void *arg)
{
    struct meeting *m = arg;

    cr_expect(zero(int, tls_client(m->client, m->link.a, "dst.example", &link_forever, &m->client_err)));
    cr_expect(zero(int, link_send(m->link.a, "hello", 5)));
}

Test(tls, keys_that_a_kernel_could_not_follow)
{
    enum { RECORDS = 10, SIZE = 100, OVERHEAD = 22 };
    struct meeting m = {.client = certificates(here, NULL), .server = certificates(there, NULL)};
    uint8_t got[RECORDS * (SIZE + OVERHEAD)], bytes[SIZE] = {0};

    tls_key_life = 3;
    m.link.listener = link_listen("tcp:127.0.0.1:0");
    m.link.a = link_connect(m.link.listener, "", 0);
    m.link.b = link_accept(m.link.listener);
    lying_fd = transport_pollfd(m.link.a);
    cr_assert(zero(int, tls_server(m.server, m.link.b)));
    worker_start(&m.worker, be_kernel_client, &m);
    cr_assert(zero(int, transport_recv_all(m.link.b, bytes, 5, NULL)));
    worker_join(&m.worker);
    for (int i = 0; i < RECORDS; i++)
        cr_assert(zero(int, link_send(m.link.b, bytes, SIZE)));
    cr_assert(zero(int, transport_recv_all(m.link.a, got, sizeof(got), NULL)));
    for (int i = 0; i < RECORDS; i++) {
        cr_expect(eq(int, got[i * (SIZE + OVERHEAD)], 23));
        cr_expect(eq(int, got[i * (SIZE + OVERHEAD) + 4], SIZE + OVERHEAD - 5), "record %d", i);
    }
    cr_expect(eq(long, transport_recv(m.link.a, got, 1, TRANSPORT_NOWAIT), -EAGAIN));
    /* The other direction is as always. */
    for (int i = 0; i < RECORDS; i++) {
        cr_assert(zero(int, link_send(m.link.a, "abc", 3)));
        cr_assert(zero(int, transport_recv_all(m.link.b, bytes, 3, NULL)));
    }
    part(&m);
}

/* What is held after a read that was too short for a record is there without the descriptor's help. */
Test(tls, bytes_that_are_held)
{
    struct meeting m = {0};
    char bytes[50000], got[50000];
    size_t have = 0;

    open_pair(&m);
    pattern(bytes, sizeof(bytes), 3);
    cr_expect(zero(int, link_send(m.link.a, bytes, sizeof(bytes))));
    while (have < sizeof(got)) {
        struct pollfd fd = {.fd = transport_pollfd(m.link.b), .events = POLLIN};
        ssize_t n = transport_recv(m.link.b, got + have, 999 < sizeof(got) - have ? 999 : sizeof(got) - have,
                                   TRANSPORT_NOWAIT);
        if (n == -EAGAIN) {
            cr_assert(eq(int, poll(&fd, 1, -1), 1));
            continue;
        }
        cr_assert(n > 0);
        have += (size_t)n;
    }
    cr_expect(zero(int, memcmp(bytes, got, sizeof(got))));
    cr_expect(eq(long, transport_recv(m.link.b, got, 1, TRANSPORT_NOWAIT), -EAGAIN));
    part(&m);
}

/* What cannot be sent now is not counted, and goes first afterwards, once. */
Test(tls, no_room)
{
    struct meeting m = {0};
    static char bytes[4 << 20], got[4 << 20];
    size_t sent = 0, have = 0;
    bool was_full = false;

    open_pair(&m);
    pattern(bytes, sizeof(bytes), 5);
    while (have < sizeof(bytes)) {
        ssize_t n = sent < sizeof(bytes) ? transport_try_send(m.link.a, bytes + sent, sizeof(bytes) - sent) : -EAGAIN;
        if (n > 0) {
            sent += (size_t)n;
            continue;
        }
        cr_assert(eq(long, n, -EAGAIN));
        was_full |= sent < sizeof(bytes);
        n = transport_recv(m.link.b, got + have, 30000 < sizeof(got) - have ? 30000 : sizeof(got) - have, TRANSPORT_NOWAIT);
        cr_assert(n > 0 || n == -EAGAIN);
        have += n > 0 ? (size_t)n : 0;
    }
    cr_expect(was_full);
    cr_expect(zero(int, memcmp(bytes, got, sizeof(got))));
    /* What comes by the other operation after -EAGAIN begins with the same bytes. */
    for (sent = 0;;) {
        ssize_t n = transport_try_send(m.link.a, bytes + sent, 100000);
        if (n == -EAGAIN)
            break;
        sent += (size_t)n;
    }
    struct sink sink = {0};
    sink_start(&sink, m.link.b, sent + 200000);
    cr_expect(zero(int, link_send(m.link.a, bytes + sent, 200000)));
    sink_join(&sink);
    cr_expect(zero(int, memcmp(sink.buf, bytes, sent + 200000)));
    sink_free(&sink);
    part(&m);
}

static char *page_that_goes(void)
{
    int fd = memfd_create("short", MFD_CLOEXEC);
    cr_assert(zero(int, ftruncate(fd, 8192)));
    char *p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    cr_assert(zero(int, ftruncate(fd, 4096)));
    close(fd);
    return p;
}

Test(tls, memory_that_goes_away)
{
    struct meeting m = {0};
    char *p = page_that_goes(), byte;

    open_pair(&m);
    cr_expect(eq(int, link_send(m.link.a, p, 8192), -EFAULT));
    cr_expect(eq(int, link_send(m.link.a, "no more", 7), -EFAULT), "a number is not used again");
    cr_expect(eq(long, transport_recv(m.link.b, &byte, 1, TRANSPORT_NOWAIT), -EAGAIN), "nothing has been sent");
    static char bytes[8192];
    pattern(bytes, sizeof(bytes), 11);
    cr_expect(zero(int, link_send(m.link.b, bytes, sizeof(bytes))));
    cr_expect(eq(long, transport_recv(m.link.a, p, 8192, 0), -EFAULT));
    cr_expect(eq(long, transport_recv(m.link.a, p + 4096, 4096, 0), -EFAULT), "what is held, too");
    struct iovec gone[] = {{p + 4096, 100}, {p, 100}};
    cr_expect(eq(long, transport_recv_parts(m.link.a, gone, 2), -EFAULT));
    char got[8192];
    cr_expect(zero(int, transport_recv_all(m.link.a, got, sizeof(got), NULL)), "nothing is lost");
    cr_expect(zero(int, memcmp(got, bytes, sizeof(got))));
    part(&m);
    munmap(p, 8192);
}

Test(tls, damage)
{
    struct meeting m = {0};
    char where[96], got[64];

    snprintf(where, sizeof(where), "unix:%s/socket", scratch);
    m.link.listener = link_listen(where);
    m.link.a = link_connect(m.link.listener, "faulty:corrupt=20000:", 0);
    m.link.b = link_accept(m.link.listener);
    open_pair(&m);
    static char bytes[65536];
    struct error err = {0};
    ssize_t n;
    cr_expect(zero(int, link_send(m.link.a, bytes, sizeof(bytes))));
    while ((n = transport_recv(m.link.b, got, sizeof(got), 0)) > 0)
        ;
    cr_expect(eq(long, n, -EBADMSG));
    transport_explain(m.link.b, &err);
    EXPECT_SENTENCE(err, "arrived damaged");
    cr_expect(eq(long, transport_recv(m.link.b, got, sizeof(got), 0), -EBADMSG));
    part(&m);
}

/* A peer that is silent, and one that stops in the middle: a deadline or a cancel ends it. */
struct waiting {
    struct worker worker;
    struct tls *tls;
    struct transport *t;
    struct transport_wait wait;
    struct error err;
    int ret;
};

static void be_patient(void *arg)
{
    struct waiting *w = arg;

    w->ret = tls_client(w->tls, w->t, "dst.example", &w->wait, &w->err);
}

Test(tls, cancelled)
{
    struct link link = {0};
    struct waiting w = {.tls = certificates(here, NULL), .wait = {.cancel_fd = eventfd(0, 0), .deadline_ms = INT64_MAX}};

    link_pair(&link);
    w.t = link.a;
    worker_start(&w.worker, be_patient, &w);
    worker_await_sleep(&w.worker);
    eventfd_write(w.wait.cancel_fd, 1);
    worker_join(&w.worker);
    cr_expect(lt(int, w.ret, 0));
    cr_expect(eq(int, (int)w.err.cause, CAUSE_INTERRUPTED));
    close(w.wait.cancel_fd);
    link_close(&link);
    tls_free(w.tls);
}

Test(tls, deadline)
{
    struct link link = {0};
    struct waiting w = {.tls = certificates(here, NULL), .wait = {.cancel_fd = -1, .deadline_ms = clock_ms() + 50}};

    link_pair(&link);
    w.t = link.a;
    cr_expect(zero(int, link_send(link.b, "\x16\x03\x03", 3)));
    be_patient(&w);
    cr_expect(lt(int, w.ret, 0));
    cr_expect(eq(int, (int)w.err.cause, CAUSE_TIMEOUT), "%s", w.err.message);
    link_close(&link);
    tls_free(w.tls);
}

/* A peer that goes away in the handshake, at each of its bytes. */
Test(tls, cut)
{
    for (unsigned at = 1; at < 3000; at += 97) {
        struct meeting m = {.client = certificates(here, NULL), .server = certificates(there, NULL)};
        char where[96], faults[32];
        snprintf(where, sizeof(where), "unix:%s/socket", scratch);
        snprintf(faults, sizeof(faults), "faulty:cut=%u:", at);
        m.link.listener = link_listen(where);
        m.link.a = link_connect(m.link.listener, faults, 0);
        m.link.b = link_accept(m.link.listener);
        meet(&m);
        cr_expect(m.client_done || error_is_set(&m.client_err));
        part(&m);
    }
}

/* Records by themselves: every cipher, every size, and nothing but what was sealed. */
Test(tls, records)
{
    static const struct {
        const char *cipher;
        size_t len;
    } suites[] = {{"TLS_AES_128_GCM_SHA256", 32}, {"TLS_AES_256_GCM_SHA384", 48}, {"TLS_CHACHA20_POLY1305_SHA256", 32}};
    static uint8_t content[TLS_CONTENT_MAX], record[TLS_RECORD_MAX], got[TLS_RECORD_MAX];
    uint8_t secret[TLS_SECRET_MAX] = {42};

    pattern(content, sizeof(content), 9);
    cr_expect(tls_key_new("TLS_NULL", secret, 32, true) == NULL);
    cr_expect(tls_key_new(suites[0].cipher, secret, 31, true) == NULL);
    for (size_t i = 0; i < ARRAY_LENGTH(suites); i++) {
        struct tls_key *seals = tls_key_new(suites[i].cipher, secret, suites[i].len, true);
        struct tls_key *opens = tls_key_new(suites[i].cipher, secret, suites[i].len, false);
        enum tls_content type;
        for (size_t len = 0; len <= TLS_CONTENT_MAX; len = len * 2 + 1) {
            struct iovec parts[] = {{content, len / 3}, {content + len / 3, len - len / 3}};
            ssize_t size = tls_seal(seals, TLS_DATA, parts, 2, len, record);
            cr_assert(eq(long, size, (long)(len + TLS_OVERHEAD)));
            cr_expect(eq(long, tls_record_size(record), size));
            memset(got, 0x55, sizeof(got));
            cr_expect(eq(long, tls_open(opens, record, (size_t)size, got, &type), (long)len));
            cr_expect(eq(int, (int)type, TLS_DATA));
            cr_expect(zero(int, memcmp(got, content, len)));
            cr_expect(eq(int, got[len], 0x55), "nothing behind it is written");
            if (len % 2)
                cr_expect(eq(int, tls_key_update(seals) | tls_key_update(opens), 0));
        }
        struct iovec part = {content, 100};
        ssize_t size = tls_seal(seals, TLS_ALERT, &part, 1, 100, record);
        record[50] ^= 1;
        cr_expect(eq(long, tls_open(opens, record, (size_t)size, got, &type), -EBADMSG));
        tls_key_free(seals);
        tls_key_free(opens);
    }
}
