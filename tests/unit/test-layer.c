/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A layer takes the place of a connection that is in use, under the same pointer,
 * as TLS would after a handshake. Here it is one that scrambles every byte.
 */
#include "blocked.h"
#include "check.h"
#include "cleanup.h"
#include "dummy.h"
#include "link.h"
#include "scratch.h"
#include "session.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

TestSuite(layer, .init = scratch_make, .fini = scratch_remove);

struct scrambler {
    struct transport *below;
    unsigned char key;
    unsigned *closed;
};

static void scramble(const struct scrambler *s, void *to, const void *from, size_t len)
{
    for (size_t i = 0; i < len; i++)
        ((unsigned char *)to)[i] = ((const unsigned char *)from)[i] ^ s->key;
}

static int scrambler_send(struct transport *t, const struct iovec *iov, int n)
{
    struct scrambler *s = t->own;
    int ret = 0;

    for (int i = 0; i < n && ret == 0; i++) {
        CLEANUP_FREE char *bytes = malloc(iov[i].iov_len + 1);
        scramble(s, bytes, iov[i].iov_base, iov[i].iov_len);
        ret = link_send(s->below, bytes, iov[i].iov_len);
    }
    return ret;
}

static ssize_t scrambler_try_send(struct transport *t, const void *buf, size_t len)
{
    struct scrambler *s = t->own;
    char bytes[512];

    if (len > sizeof(bytes))
        len = sizeof(bytes);
    scramble(s, bytes, buf, len);
    return transport_try_send(s->below, bytes, len);
}

static ssize_t scrambler_recv(struct transport *t, void *buf, size_t len, int flags)
{
    struct scrambler *s = t->own;
    ssize_t n = transport_recv(s->below, buf, len, flags);

    if (n > 0)
        scramble(s, buf, buf, (size_t)n);
    return n;
}

static int scrambler_pollfd(struct transport *t)
{
    return transport_pollfd(((struct scrambler *)t->own)->below);
}

static void scrambler_set_timeout(struct transport *t, int timeout_ms)
{
    transport_set_timeout(((struct scrambler *)t->own)->below, timeout_ms);
}

static void scrambler_shutdown(struct transport *t)
{
    transport_shutdown(((struct scrambler *)t->own)->below);
}

static void scrambler_finish(struct transport *t)
{
    transport_finish(((struct scrambler *)t->own)->below);
}

static void scrambler_close(struct transport *t)
{
    struct scrambler *s = t->own;

    transport_close(s->below);
    if (s->closed)
        ++*s->closed;
    free(s);
    free(t);
}

static const struct transport_ops scrambler_ops = {
    .name = "scrambler",
    .send = scrambler_send,
    .send_pipe = dummy_send_pipe,
    .zerocopy = dummy_zerocopy,
    .send_zerocopy = dummy_send_zerocopy,
    .place = dummy_place,
    .expose = dummy_expose,
    .withdraw = dummy_withdraw,
    .figures = dummy_figures,
    .reap = dummy_reap,
    .try_send = scrambler_try_send,
    .recv = scrambler_recv,
    .recv_parts = dummy_recv_parts,
    .recv_fd = dummy_recv_fd,
    .pollfd = scrambler_pollfd,
    .set_timeout = scrambler_set_timeout,
    .shutdown = scrambler_shutdown,
    .finish = scrambler_finish,
    .explain = dummy_explain,
    .close = scrambler_close,
};

static void upgrade(struct transport *t, unsigned char key, unsigned *closed)
{
    struct scrambler *s = calloc(1, sizeof(*s));

    *s = (struct scrambler){.key = key, .closed = closed};
    cr_assert(zero(int, transport_upgrade(t, &scrambler_ops, s, &s->below)));
}

static void expect(struct transport *t, const char *want)
{
    char got[64];

    cr_assert(zero(int, transport_recv_all(t, got, strlen(want), &link_forever)));
    got[strlen(want)] = '\0';
    cr_expect(eq(str, got, (char *)want));
}

/* What was said before is plain, what is said afterwards is not, and who has the pointer need not know. */
Test(layer, takes_over)
{
    struct link link = {0};
    struct transport before;

    link_pair(&link);
    before = *link.a;
    cr_expect(eq(int, link_send(link.a, "hello", 5), 0));
    upgrade(link.a, 'a' ^ 'A', NULL);
    cr_expect(eq(str, (char *)link.a->ops->name, "scrambler"));
    cr_expect(eq(str, link.a->peer, before.peer));
    cr_expect(eq(str, link.a->address, before.address));
    cr_expect(eq(u32, link.a->traits.copy_max, before.traits.copy_max));
    cr_expect(before.traits.splices && !link.a->traits.splices);
    cr_expect(before.traits.receives_to_file && !link.a->traits.receives_to_file);
    cr_expect(eq(int, link_send(link.a, "world", 5), 0));
    cr_expect(eq(int, transport_send_now(link.a, "now", 3), 0));
    expect(link.b, "helloWORLDNOW");
    cr_expect(eq(int, link_send(link.b, "Answer", 6), 0));
    expect(link.a, "aNSWER");
    upgrade(link.b, 'a' ^ 'A', NULL);
    cr_expect(eq(int, link_send(link.b, "Answer", 6), 0));
    expect(link.a, "Answer");
    char head[2], rest[5];
    struct iovec parts[] = {{head, 2}, {rest, 5}};
    cr_expect(eq(int, link_send(link.a, "PARTS", 5), 0));
    ssize_t n = transport_recv_parts(link.b, parts, 2);
    cr_expect(n >= 1 && n <= 5);
    cr_expect(eq(chr, head[0], 'P'));
    for (char c; n < 5; n++)
        cr_assert(eq(long, transport_recv(link.b, &c, 1, 0), 1));
    cr_expect(eq(int, link_send(link.a, "question", 8), 0));
    expect(link.b, "question");
    cr_expect(eq(int, transport_zerocopy(link.a), -EOPNOTSUPP));
    link_close(&link);
}

/* Whatever way the bytes take, they go through it. */
Test(layer, pipes_and_files)
{
    enum { SIZE = 40000 };
    static char bytes[SIZE], got[SIZE];
    struct link link = {0};
    struct iovec header = {"header", 6};
    char path[sizeof(scratch) + 8];
    int pipe_fds[2], code = 0;

    link_pair(&link);
    upgrade(link.a, 0x5a, NULL);
    upgrade(link.b, 0x5a, NULL);
    pattern(bytes, SIZE, 1);
    cr_assert(zero(int, pipe2(pipe_fds, O_CLOEXEC | O_NONBLOCK)));
    cr_assert(eq(long, write(pipe_fds[1], bytes, SIZE), SIZE));
    cr_expect(eq(int, transport_send_pipe(link.a, &header, 1, pipe_fds[0], SIZE), 0));
    expect(link.b, "header");
    snprintf(path, sizeof(path), "%s/file", scratch);
    CLEANUP_FD int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    for (off_t at = 0; at < SIZE;) {
        ssize_t n = transport_recv_fd(link.b, file, at, (size_t)(SIZE - at), &code);
        cr_assert(n > 0);
        at += n;
    }
    cr_assert(eq(long, pread(file, got, SIZE, 0), SIZE));
    cr_expect(zero(int, memcmp(got, bytes, SIZE)));
    close(pipe_fds[0]);
    close(pipe_fds[1]);
    link_close(&link);
}

/* A layer on a layer; each is closed once, and then what is below them. */
Test(layer, layers_can_be_stacked)
{
    struct link link = {0};
    unsigned closed = 0;
    char c;

    link_pair(&link);
    upgrade(link.a, 0x0f, &closed);
    upgrade(link.a, 0xf0, &closed);
    upgrade(link.b, 0xff, &closed);
    cr_expect(eq(int, link_send(link.a, "deep", 4), 0));
    expect(link.b, "deep");
    transport_finish(link.a);
    cr_expect(eq(long, transport_recv(link.b, &c, 1, 0), 0));
    transport_close(link.a);
    cr_expect(eq(uint, closed, 2));
    cr_expect(lt(int, link_send(link.b, "?", 1), 0), "nobody is there any more");
    transport_close(link.b);
    cr_expect(eq(uint, closed, 3));
}

/* Faults are at the wire, whatever comes on top of them. */
Test(layer, on_faults)
{
    struct link link;
    char where[sizeof(scratch) + 16], got[10];

    snprintf(where, sizeof(where), "unix:%s/socket", scratch);
    link_open(&link, where, "faulty:corrupt=3+cut=8:");
    upgrade(link.a, 0x20, NULL);
    cr_expect(eq(int, link_send(link.a, "HELLO", 5), 0));
    expect(link.b, "he|lo");
    cr_expect(eq(int, link_send(link.a, "WORLD", 5), -ECONNRESET));
    cr_expect(eq(int, transport_recv_all(link.b, got, 3, NULL), 0));
    cr_expect(zero(int, memcmp(got, "wor", 3)));
    cr_expect(eq(int, transport_recv_all(link.b, got, 1, NULL), -ECONNRESET));
    link_close(&link);
}

static int note(void *arg, const struct message *message, struct wire_reader *body, struct error *err)
{
    (void)err;
    snprintf(arg, 32, "%u %u %.*s", (unsigned)message->type, (unsigned)message->id, (int)message->length,
             (const char *)body->p);
    return 0;
}

/* A session that has the pointer goes on over the layer. */
Test(layer, a_session_goes_on)
{
    struct link link = {0};
    struct session a, b;
    struct error err;
    char heard[32] = "", want[32];

    link_pair(&link);
    cr_assert(zero(int, session_init(&a, link.a, 10000, 10000)));
    cr_assert(zero(int, session_init(&b, link.b, 10000, 10000)));
    for (unsigned round = 1; round <= 2; round++) {
        session_send(&a, WIRE_SYNC, round, "body", 4);
        snprintf(want, sizeof(want), "%u %u body", (unsigned)WIRE_SYNC, round);
        while (strcmp(heard, want))
            CHECK_OK(session_step(&b, INT64_MAX, note, heard, &err));
        upgrade(link.a, 0x33, NULL);
        upgrade(link.b, 0x33, NULL);
    }
    session_fini(&a);
    session_fini(&b);
}
