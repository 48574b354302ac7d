/* SPDX-License-Identifier: Apache-2.0 */
/* Connections that have not found their migration yet, by hand: who is refused, told why, and dropped. */
#include "listener.h"
#include "check.h"
#include "entries.h"
#include "peer.h"
#include "rig.h"
#include "scratch.h"
#include "shifted_clock.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

static struct rig rig;

static void set_up(void)
{
    char text[128];

    scratch_make();
    snprintf(text, sizeof(text), "unix:%s/socket", scratch);
    rig_init(&rig, text, NULL);
}

static void end(void)
{
    rig_fini(&rig);
}

TestSuite(listener, .init = set_up, .fini = scratch_remove);

static struct transport *greet(const char *name)
{
    struct hello hello = peer_hello(name, 1);
    struct hello_reply reply;
    struct transport *t = peer_greet(rig.address, &hello, &reply);

    cr_assert(not(zero(ptr, t)), "%s", reply.text);
    return t;
}

static void expect_refusal(struct transport *t, enum cause cause, const char *sentence)
{
    struct wire_hello_reply wire;
    struct hello_reply reply;
    struct error err;

    cr_assert(zero(int, transport_recv_all(t, &wire, sizeof(wire), NULL)), "there is no answer");
    CHECK_OK(wire_hello_reply_decode(&wire, &reply, &err));
    cr_expect(eq(int, (int)reply.cause, (int)cause));
    cr_expect(not(zero(ptr, strstr(reply.text, sentence))), "%s", reply.text);
}

static void expect_end(int fd)
{
    struct pollfd poller = {.fd = fd, .events = POLLIN};
    char byte;

    cr_assert(eq(int, poll(&poller, 1, 20000), 1), "it is still open");
    cr_expect(le(long, recv(fd, &byte, 1, 0), 0));
}

static bool is_quiet(int fd)
{
    struct pollfd poller = {.fd = fd, .events = POLLIN};

    return poll(&poller, 1, 0) == 0;
}

/* Waits for the other end to let go of what it has. */
static void await_descriptors(unsigned n)
{
    while (count_entries("/proc/self/fd") > n)
        sched_yield();
}

/* One that says nothing is dropped after ten seconds, and not before. */
Test(listener, silence)
{
    shifted_clock_stop();
    struct transport *silent = peer_dial(rig.address);
    transport_close(greet("a")); /* it is accepted after the silent one */
    shifted_clock_add(9999);
    transport_close(greet("b"));
    cr_expect(is_quiet(transport_pollfd(silent)));
    shifted_clock_add(1);
    transport_close(greet("c"));
    expect_end(transport_pollfd(silent));
    transport_close(silent);
    end();
}

/* One that is refused has a second to read why, and goes when it has. */
Test(listener, the_refused_linger)
{
    struct transport *t[2];
    struct wire_hello wire;
    struct hello hello = peer_hello("a", 1);
    struct iovec iov = {&wire, sizeof(wire)};

    shifted_clock_stop();
    unsigned before = count_entries("/proc/self/fd");
    hello.kind = WIRE_HELLO_DATA; /* of no migration */
    wire_hello_encode(&hello, &wire);
    for (int i = 0; i < 2; i++) {
        t[i] = peer_dial(rig.address);
        cr_assert(zero(int, transport_send(t[i], &iov, 1)));
        expect_refusal(t[i], CAUSE_NOT_FOUND, "no such migration");
    }
    cr_expect(eq(uint, count_entries("/proc/self/fd"), before + 4));
    transport_close(t[0]);
    await_descriptors(before + 2);
    shifted_clock_add(999);
    struct transport *other = peer_dial(rig.address), *another;
    while (count_entries("/proc/self/fd") < before + 4)
        sched_yield();
    shifted_clock_add(1);
    another = peer_dial(rig.address);
    while (count_entries("/proc/self/fd") !=
           before + 5) /* one more of each end, and the refused one's less */
        sched_yield();
    transport_close(other);
    transport_close(another);
    transport_close(t[1]);
    await_descriptors(before);
    end();
}

Test(listener, a_peer_that_speaks_tls)
{
    static uint8_t record[] = {0x16, 0x03, 0x01, 0x00};
    struct iovec iov = {record, sizeof(record)};
    struct transport *t = peer_dial(rig.address);

    cr_assert(zero(int, transport_send(t, &iov, 1)));
    expect_refusal(t, CAUSE_PROTOCOL, "speaks TLS");
    transport_close(t);
    /* And one that begins like it, and goes on otherwise. */
    record[1] = 0x04;
    t = peer_dial(rig.address);
    cr_assert(zero(int, transport_send(t, &iov, 1)));
    transport_close(greet("a"));
    cr_expect(is_quiet(transport_pollfd(t)), "it is no hello yet");
    transport_close(t);
    end();
}

/* The limit is of numbers: the next peer gets the next one, and there is none for its other end. */
static void leave_one_descriptor(void)
{
    struct rlimit limit;

    cr_assert(zero(int, getrlimit(RLIMIT_NOFILE, &limit)));
    limit.rlim_cur = limit.rlim_max;
    cr_assert(zero(int, setrlimit(RLIMIT_NOFILE, &limit)));
    int next = open("/dev/null", O_RDONLY | O_CLOEXEC);
    cr_assert(le(int, 0, next));
    close(next);
    limit.rlim_cur = (rlim_t)next + 1;
    cr_assert(zero(int, setrlimit(RLIMIT_NOFILE, &limit)));
}

/* A peer that comes when there are no descriptors is told so, and the next one when it has gone. */
Test(listener, no_descriptors)
{
    struct rlimit limit;

    cr_assert(zero(int, getrlimit(RLIMIT_NOFILE, &limit)));
    leave_one_descriptor();
    struct transport *first = peer_dial(rig.address);
    expect_refusal(first, CAUSE_NO_MEMORY, "no file descriptors left");
    leave_one_descriptor();
    struct transport *second = peer_dial(rig.address);
    for (int i = 0; i < 100; i++)
        sched_yield();
    cr_expect(is_quiet(transport_pollfd(second)), "there is nothing to tell it with");
    transport_shutdown(first);
    expect_refusal(second, CAUSE_NO_MEMORY, "no file descriptors left");
    setrlimit(RLIMIT_NOFILE, &limit);
    transport_close(first);
    transport_close(second);
    transport_close(greet("a"));
    end();
}

/* The next look after that is made when the time is up, with nothing else to wake it. */
Test(listener, no_descriptors_for_a_while)
{
    struct rlimit limit;

    cr_assert(zero(int, getrlimit(RLIMIT_NOFILE, &limit)));
    leave_one_descriptor();
    struct transport *first = peer_dial(rig.address);
    expect_refusal(first, CAUSE_NO_MEMORY, "no file descriptors left");
    setrlimit(RLIMIT_NOFILE, &limit);
    /* It waits for the first one to go, which never does. */
    transport_close(greet("a"));
    expect_end(transport_pollfd(first));
    transport_close(first);
    end();
}

/*
 * Many peers
 */

static int dial_from(unsigned host)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000000 + host)};
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};

    there.sin_port = htons((uint16_t)atoi(strrchr(rig.address, ':') + 1));
    cr_assert(zero(int, bind(fd, (struct sockaddr *)&here, sizeof(here))));
    cr_assert(zero(int, connect(fd, (struct sockaddr *)&there, sizeof(there))));
    return fd;
}

/* A listener on a network, whose descriptors count from now on. */
static unsigned listen_on_loopback(void)
{
    end();
    rig_init(&rig, "tcp:127.0.0.1:0", NULL);
    return count_entries("/proc/self/fd");
}

static void await_accepted(unsigned descriptors)
{
    while (count_entries("/proc/self/fd") != descriptors)
        sched_yield();
}

/* One peer has 64 that say nothing; the 65th takes the place of its oldest one. */
Test(listener, one_peer_makes_room_for_itself)
{
    unsigned before = listen_on_loopback();
    int fds[65], other;

    other = dial_from(2);
    await_accepted(before + 2);
    for (int i = 0; i < 64; i++)
        fds[i] = dial_from(3);
    await_accepted(before + 2 + 128);
    for (int i = 0; i < 64; i++)
        cr_expect(is_quiet(fds[i]));
    fds[64] = dial_from(3);
    expect_end(fds[0]);
    cr_expect(is_quiet(other));
    for (int i = 1; i < 65; i++)
        cr_expect(is_quiet(fds[i]), "connection %d", i);
    for (int i = 0; i < 65; i++)
        close(fds[i]);
    close(other);
    await_descriptors(before);
    end();
}

/* All have 256; the peer with the most makes room for another one. */
Test(listener, the_greediest_peer_makes_room)
{
    static const unsigned counts[] = {60, 61, 60, 60, 15};
    unsigned before = listen_on_loopback(), n = 0;
    int fds[257];

    for (unsigned host = 0; host < ARRAY_LENGTH(counts); host++) {
        for (unsigned i = 0; i < counts[host]; i++)
            fds[n++] = dial_from(10 + host);
        await_accepted(before + 2 * n);
    }
    fds[n++] = dial_from(10 + ARRAY_LENGTH(counts) - 1);
    expect_end(fds[60]);
    for (unsigned i = 0; i < n; i++)
        cr_expect(i == 60 || is_quiet(fds[i]), "connection %u", i);
    for (unsigned i = 0; i < n; i++)
        close(fds[i]);
    await_descriptors(before);
    end();
}

/*
 * Where it listens
 */

static int listen_at(const char *first, const char *second, struct error *err)
{
    struct listener *l = NULL;
    struct uri uris[2];

    cr_assert(zero(int, uri_parse(first, &uris[0], err)));
    if (second)
        cr_assert(zero(int, uri_parse(second, &uris[1], err)));
    int ret = listener_new(&rig.destination, uris, second ? 2 : 1, &l, err);
    if (ret == 0) {
        cr_expect(not(zero(ptr, (void *)listener_address(l, 0))));
        cr_expect(eq(int, listener_address(l, 1) != NULL, second != NULL));
        cr_expect(zero(ptr, (void *)listener_address(l, 2)));
    }
    listener_free(l);
    return ret;
}

/* What is on a network needs TLS, or somebody who says that it does not. */
Test(listener, exposure)
{
    struct host *host = &rig.destination.host;
    struct error err;

    CHECK_OK(listen_at("tcp:127.0.0.1:0", "tcp:localhost:0", &err));
    CHECK_FAILS(listen_at("tcp:0.0.0.0:0", NULL, &err), CAUSE_DENIED);
    cr_expect(not(zero(ptr, strstr(err.message, "without TLS"))), "%s", err.message);
    CHECK_FAILS(listen_at("tcp:127.0.0.1:0", "tcp:0.0.0.0:0", &err), CAUSE_DENIED);
    CHECK_FAILS(listen_at("rdma:0.0.0.0:0", NULL, &err), CAUSE_DENIED);
    cr_expect(not(zero(ptr, strstr(err.message, "RDMA has no TLS"))), "%s", err.message);
    host->limits.insecure = true;
    CHECK_OK(listen_at("tcp:0.0.0.0:0", NULL, &err));
    host->limits.insecure = false;
    end();
}

Test(listener, nowhere)
{
    struct listener *l = NULL;
    struct error err;

    CHECK_OK(listener_new(&rig.destination, NULL, 0, &l, &err));
    CHECK_OK(listener_start(l, &err));
    cr_expect(zero(ptr, (void *)listener_address(l, 0)));
    listener_free(l);
    listener_free(NULL);
    end();
}
