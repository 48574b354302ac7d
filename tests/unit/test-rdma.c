/* SPDX-License-Identifier: Apache-2.0 */
/* Connecting and listening at rdma: addresses, with the card of verbs.h. */
#include "rdma_link.h"
#include "check.h"
#include "clock.h"
#include "shifted_clock.h"

#include <dlfcn.h>
#include <endian.h>
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

TestSuite(rdma);

static struct transport_listener *l;
static struct error err;

static void listen_here(void)
{
    l = link_listen(RDMA_PLACE);
}

static void end(void)
{
    transport_listener_close(l);
    verbs_expect_nothing_left();
}

/* Connects, while the listener does its part. *@other: what was accepted. */
static struct transport *try_connect(const struct transport_wait *wait, struct transport **other)
{
    struct connecting c;

    connecting_start(&c, transport_listener_address(l), "group", wait);
    *other = connecting_serve(&c, l);
    err = c.err;
    cr_expect(eq(int, c.ret == 0, c.t != NULL));
    cr_expect(eq(int, c.ret == 0, !error_is_set(&c.err)), "%s", c.err.message);
    return c.t;
}

static void expect_failure(enum cause cause, const char *sentence)
{
    struct transport *other;

    cr_expect(zero(ptr, try_connect(NULL, &other)));
    cr_expect(zero(ptr, other));
    cr_expect(eq(int, (int)err.cause, (int)cause), "%s", err.message);
    cr_expect(ne(ptr, strstr(err.message, sentence), NULL), "%s", err.message);
    cr_expect(zero(uint, verbs_counts().pairs));
}

static void expect_success(void)
{
    struct link link = {.listener = l};

    rdma_link_connect(&link, "group");
    cr_expect(zero(int, link_send(link.a, "x", 1)));
    char byte;
    cr_expect(zero(int, transport_recv_all(link.b, &byte, 1, NULL)));
    transport_close(link.a);
    transport_close(link.b);
}

/* The main channel of a migration is TCP, to the same address and port. */
Test(rdma, main_channel)
{
    struct link link;

    cr_expect(transport_has_rdma);
    link_open(&link, RDMA_PLACE, "");
    cr_expect(eq(str, (char *)link.a->ops->name, "socket"));
    cr_expect(zero(int, strncmp(transport_listener_address(link.listener), "rdma:127.0.0.1:", 15)));
    cr_expect(zero(uint, verbs_counts().pairs));
    link_close(&link);
    verbs_expect_nothing_left();
}

static void connect_main(enum cause cause)
{
    struct transport *t;
    struct uri uri;

    CHECK_OK(uri_parse("rdma:127.0.0.1:1", &uri, &err));
    CHECK_FAILS(transport_connect(&uri, 0, &link_group, &link_forever, &t, &err), cause);
    verbs_expect_nothing_left();
}

/* It is said at once that there is no RDMA here, and not by the peer. */
Test(rdma, no_device)
{
    connect_main(CAUSE_REFUSED);
    verbs_set_devices(0);
    connect_main(CAUSE_UNSUPPORTED);
    cr_expect(ne(ptr, strstr(err.message, "no RDMA device"), NULL));
    verbs_set_devices(1);
    verbs_fail(VERBS_CREATE_EVENT_CHANNEL, 1, ENODEV);
    connect_main(CAUSE_UNSUPPORTED);
    verbs_fail(VERBS_CREATE_EVENT_CHANNEL, 1, ENOENT);
    connect_main(CAUSE_UNSUPPORTED);
    cr_expect(ne(ptr, strstr(err.message, "rdma_ucm"), NULL));
}

/*
 * Connecting
 */

Test(rdma, connects)
{
    listen_here();
    expect_success();
    expect_success();
    end();
}

/* What the connection manager says, and what a person is told. */
Test(rdma, answers)
{
    static const struct {
        enum rdma_cm_event_type type, instead;
        enum cause cause;
        const char *sentence;
    } cases[] = {
        {RDMA_CM_EVENT_ADDR_RESOLVED, RDMA_CM_EVENT_ADDR_ERROR, CAUSE_UNREACHABLE,
         "no RDMA device of this machine"},
        {RDMA_CM_EVENT_ROUTE_RESOLVED, RDMA_CM_EVENT_ROUTE_ERROR, CAUSE_UNREACHABLE,
         "no RDMA device of this machine"},
        {RDMA_CM_EVENT_ESTABLISHED, RDMA_CM_EVENT_REJECTED, CAUSE_REFUSED, "takes no RDMA connection"},
        {RDMA_CM_EVENT_ESTABLISHED, RDMA_CM_EVENT_UNREACHABLE, CAUSE_UNREACHABLE, "does not answer by RDMA"},
        {RDMA_CM_EVENT_ROUTE_RESOLVED, RDMA_CM_EVENT_DEVICE_REMOVAL, CAUSE_RESET, "device was removed"},
        {RDMA_CM_EVENT_ESTABLISHED, RDMA_CM_EVENT_CONNECT_ERROR, CAUSE_RESET, "connect error"},
    };

    listen_here();
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        verbs_answer(cases[i].type, cases[i].instead);
        expect_failure(cases[i].cause, cases[i].sentence);
        cr_expect(ne(ptr, strstr(err.message, i == 4 ? "RDMA" : "rdma:127.0.0.1:"), NULL), "%s", err.message);
    }
    expect_success();
    end();
}

/* A call that fails: a sentence, nothing is left, and the next attempt stands. */
Test(rdma, calls_that_fail)
{
    static const struct {
        enum verbs_call call;
        unsigned n;
        int code;
        enum cause cause;
        const char *sentence;
    } cases[] = {
        {VERBS_CREATE_EVENT_CHANNEL, 1, ENODEV, CAUSE_UNSUPPORTED, "no RDMA"},
        {VERBS_CREATE_EVENT_CHANNEL, 1, EMFILE, CAUSE_NONE, "no RDMA"},
        {VERBS_CREATE_ID, 1, ENOMEM, CAUSE_NO_MEMORY, "RDMA"},
        {VERBS_RESOLVE_ADDR, 1, ENODEV, CAUSE_UNREACHABLE, "no RDMA device of this machine"},
        {VERBS_RESOLVE_ADDR, 1, EINVAL, CAUSE_NONE, "finding"},
        {VERBS_RESOLVE_ROUTE, 1, EINVAL, CAUSE_NONE, "finding the way"},
        {VERBS_ALLOC_PD, 1, ENOMEM, CAUSE_NO_MEMORY, "protection domain"},
        {VERBS_REG_MR, 1, ENOMEM, CAUSE_NO_MEMORY, "RLIMIT_MEMLOCK"},
        {VERBS_REG_MR, 2, ENOMEM, CAUSE_NO_MEMORY, "RLIMIT_MEMLOCK"},
        {VERBS_REG_MR, 1, EPERM, CAUSE_NONE, "making a queue pair"},
        {VERBS_CREATE_COMP_CHANNEL, 1, EMFILE, CAUSE_NONE, "making a queue pair"},
        {VERBS_CREATE_CQ, 1, EINVAL, CAUSE_NONE, "making a queue pair"},
        {VERBS_POST_RECV, 16, EINVAL, CAUSE_NONE, "making a queue pair"},
        {VERBS_NOTIFY_CQ, 1, EINVAL, CAUSE_NONE, "making a queue pair"},
        {VERBS_CONNECT, 1, EINVAL, CAUSE_NONE, "connecting to"},
        {VERBS_GET_CM_EVENT, 1, EBADF, CAUSE_NONE, "RDMA"},
    };

    listen_here();
    unsigned descriptors = open_descriptors();
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        struct transport *other;
        verbs_fail(cases[i].call, cases[i].n, cases[i].code);
        cr_expect(zero(ptr, try_connect(NULL, &other)), "%zu", i);
        cr_expect(zero(ptr, other));
        if (cases[i].cause != CAUSE_NONE)
            cr_expect(eq(int, (int)err.cause, (int)cases[i].cause), "%zu: %s", i, err.message);
        cr_expect(ne(ptr, strstr(err.message, cases[i].sentence), NULL), "%zu: %s", i, err.message);
        cr_expect(zero(uint, verbs_counts().pairs), "%zu", i);
        cr_expect(zero(uint, verbs_counts().domains), "%zu", i);
        cr_expect(eq(uint, verbs_counts().event_channels, 1), "%zu", i);
    }
    expect_success();
    cr_expect(eq(uint, open_descriptors(), descriptors));
    end();
}

/* Where a queue pair has no room for what is sent inline it does without; another failure is one. */
Test(rdma, queue_pair_without_inline)
{
    listen_here();
    verbs_limit(UINT64_MAX, 100);
    expect_success();
    cr_expect(lt(uint, verbs_counts().inlined, 3), "only messages without bytes");
    end();
}

/* Memory that may not be locked: the sentence says what to raise. */
Test(rdma, registration_refused)
{
    listen_here();
    for (unsigned limit = 0; limit < 1100000; limit += 500000) {
        verbs_limit(limit, 128);
        expect_failure(CAUSE_NO_MEMORY, "RLIMIT_MEMLOCK");
    }
    verbs_limit(UINT64_MAX, 128);
    expect_success();
    end();
}

/* Silence at each step: until it is interrupted, or the deadline has passed. */
Test(rdma, silence)
{
    static const enum rdma_cm_event_type steps[] = {RDMA_CM_EVENT_ADDR_RESOLVED, RDMA_CM_EVENT_ROUTE_RESOLVED,
                                                    RDMA_CM_EVENT_CONNECT_REQUEST, RDMA_CM_EVENT_ESTABLISHED};
    struct transport *other;

    listen_here();
    for (size_t i = 0; i < ARRAY_LENGTH(steps); i++) {
        struct transport_wait wait = {.cancel_fd = eventfd(0, EFD_CLOEXEC), .deadline_ms = INT64_MAX};
        struct connecting c;
        verbs_answer(steps[i], VERBS_SILENCE);
        connecting_start(&c, transport_listener_address(l), "group", &wait);
        if (steps[i] == RDMA_CM_EVENT_ESTABLISHED) {
            struct pollfd fd = {.fd = transport_listener_pollfd(l), .events = POLLIN};
            poll(&fd, 1, -1);
            cr_expect(eq(int, transport_accept(l, &other), -EAGAIN));
        }
        worker_interrupt(&c.worker);
        cr_expect(not(atomic_load(&c.worker.done)), "%zu", i);
        eventfd_write(wait.cancel_fd, 1);
        cr_expect(zero(ptr, connecting_serve(&c, l)));
        cr_expect(eq(int, (int)c.err.cause, CAUSE_INTERRUPTED), "%zu: %s", i, c.err.message);
        close(wait.cancel_fd);

        wait = (struct transport_wait){.cancel_fd = -1, .deadline_ms = clock_ms() + 5};
        verbs_answer(steps[i], VERBS_SILENCE);
        cr_expect(zero(ptr, try_connect(&wait, &other)));
        cr_expect(eq(int, (int)err.cause, CAUSE_TIMEOUT), "%zu: %s", i, err.message);
        verbs_answer(steps[i], steps[i]);
    }
    cr_expect(eq(int, transport_accept(l, &other), -EAGAIN));
    cr_expect(zero(uint, verbs_counts().pairs));
    expect_success();
    end();
}

static int connect_to(const char *text, struct transport **t)
{
    struct uri uri;

    err = (struct error){0};
    cr_assert(zero(int, uri_parse(text, &uri, &err)));
    return transport_connect(&uri, 1, &link_group, &link_forever, t, &err);
}

/* An address that no device has, a port at which nobody listens, and a name that is none. */
Test(rdma, addresses_that_lead_nowhere)
{
    struct transport *t;

    CHECK_FAILS(connect_to("rdma:127.0.0.99:1", &t), CAUSE_UNREACHABLE);
    CHECK_FAILS(connect_to("rdma:127.0.0.1:1", &t), CAUSE_REFUSED);
    CHECK_FAILS(connect_to("rdma:nobody.invalid:1", &t), CAUSE_UNREACHABLE);
    verbs_expect_nothing_left();
}

/* The URI of the listener's port at another host. */
static const char *at_host(const char *host)
{
    static char text[URI_MAX];

    snprintf(text, sizeof(text), "rdma:%s%s", host, strrchr(transport_listener_address(l), ':'));
    return text;
}

/* In place of the library's: a name of three addresses, the first of which no device has. */
int getaddrinfo(const char *host, const char *port, const struct addrinfo *hints, struct addrinfo **out)
{
    int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
    struct addrinfo **at = out;
    int ret = 0;

    *(void **)&real = dlsym(RTLD_NEXT, "getaddrinfo");
    if (!host || strcmp(host, "three.invalid") != 0 || hints->ai_flags & AI_NUMERICHOST)
        return real(host, port, hints, out);
    for (int i = 0; i < 3 && ret == 0; i++, at = &(*at)->ai_next)
        ret = real(i == 0 ? "127.0.0.99" : "127.0.0.1", port, hints, at);
    return ret;
}

/* Each address of a host is tried, until one answers. */
Test(rdma, several_addresses)
{
    struct connecting c;

    listen_here();
    connecting_start(&c, at_host("three.invalid"), "group", NULL);
    struct transport *other = connecting_serve(&c, l);
    cr_expect(zero(int, c.ret), "%s", c.err.message);
    transport_close(c.t);
    transport_close(other);
    end();
}

/* But none any more after a wait that has ended. */
Test(rdma, several_addresses_interrupted)
{
    struct transport_wait wait = {.cancel_fd = eventfd(0, EFD_CLOEXEC), .deadline_ms = INT64_MAX};
    struct connecting c;

    listen_here();
    verbs_answer(RDMA_CM_EVENT_ADDR_RESOLVED, VERBS_SILENCE);
    verbs_fail(VERBS_RESOLVE_ADDR, 3, EINVAL); /* what is not called */
    connecting_start(&c, at_host("three.invalid"), "group", &wait);
    while (verbs_counts().unanswered == 0)
        sched_yield();
    eventfd_write(wait.cancel_fd, 1);
    cr_expect(zero(ptr, connecting_serve(&c, l)));
    cr_expect(eq(int, (int)c.err.cause, CAUSE_INTERRUPTED), "%s", c.err.message);
    close(wait.cancel_fd);
    end();
}

/*
 * Listening
 */

static void expect_no_listener(const char *text, enum cause cause, const char *sentence)
{
    struct transport_listener *none;
    struct uri uri;

    CHECK_OK(uri_parse(text, &uri, &err));
    CHECK_FAILS(transport_listen(&uri, &none, &err), cause);
    cr_expect(ne(ptr, strstr(err.message, sentence), NULL), "%s", err.message);
    verbs_expect_nothing_left();
}

Test(rdma, no_listener)
{
    expect_no_listener("rdma:127.0.0.99:0", CAUSE_UNREACHABLE, "no RDMA device has this address");
    verbs_fail(VERBS_BIND_ADDR, 1, EADDRNOTAVAIL);
    expect_no_listener(RDMA_PLACE, CAUSE_UNREACHABLE, "no RDMA device has this address");
    verbs_fail(VERBS_CREATE_EVENT_CHANNEL, 1, ENODEV);
    expect_no_listener(RDMA_PLACE, CAUSE_UNSUPPORTED, "no RDMA");
    verbs_fail(VERBS_CREATE_ID, 1, ENOMEM);
    expect_no_listener(RDMA_PLACE, CAUSE_NO_MEMORY, "RDMA");
    verbs_fail(VERBS_BIND_ADDR, 1, ENOMEM);
    expect_no_listener(RDMA_PLACE, CAUSE_NO_MEMORY, "cannot listen");
    verbs_fail(VERBS_LISTEN, 1, ENOMEM);
    expect_no_listener(RDMA_PLACE, CAUSE_NO_MEMORY, "cannot listen");
}

/* At all addresses of the machine; but all connections of a group are on one device. */
Test(rdma, listens_everywhere)
{
    struct connecting first, second;
    struct transport *t, *other;

    l = link_listen("rdma:0.0.0.0:0");
    connecting_start(&first, at_host("127.0.0.1"), "group", NULL);
    t = connecting_serve(&first, l);
    cr_assert(zero(int, first.ret), "%s", first.err.message);
    connecting_start(&second, at_host("127.0.0.2"), "group", NULL);
    cr_expect(zero(ptr, connecting_serve(&second, l)));
    cr_expect(lt(int, second.ret, 0));
    cr_expect(ne(ptr, strstr(second.err.message, "protection domain"), NULL), "%s", second.err.message);
    connecting_start(&second, at_host("127.0.0.2"), "another group", NULL);
    other = connecting_serve(&second, l);
    cr_assert(zero(int, second.ret), "%s", second.err.message);
    cr_expect(eq(uint, verbs_counts().domains, 4));
    transport_close(first.t);
    transport_close(t);
    transport_close(second.t);
    transport_close(other);
    end();
}

static struct rdma_greeting greeting_of(const char *magic, uint32_t receives, uint32_t size)
{
    struct rdma_greeting greeting = {
        .group = "stranger", .receives = htole32(receives), .receive_size = htole32(size)};

    memcpy(greeting.magic, magic, sizeof(greeting.magic));
    return greeting;
}

/* A request that is none of migfs, or of a peer that promises nonsense, is refused and leaves nothing. */
Test(rdma, requests_that_are_refused)
{
    const struct {
        struct rdma_greeting greeting;
        size_t len;
        bool valid;
    } cases[] = {
        {greeting_of("mig1", 8, 256), 0, false},
        {greeting_of("mig1", 8, 256), sizeof(struct rdma_greeting) / 2, false},
        {greeting_of("mig2", 8, 256), sizeof(struct rdma_greeting), false},
        {greeting_of("mig1", 3, 256), sizeof(struct rdma_greeting), false},
        {greeting_of("mig1", 0, 256), sizeof(struct rdma_greeting), false},
        {greeting_of("mig1", 65536, 256), sizeof(struct rdma_greeting), false},
        {greeting_of("mig1", UINT32_MAX, 256), sizeof(struct rdma_greeting), false},
        {greeting_of("mig1", 8, 255), sizeof(struct rdma_greeting), false},
        {greeting_of("mig1", 4, 256), sizeof(struct rdma_greeting), true},
        {greeting_of("mig1", 65535, UINT32_MAX), sizeof(struct rdma_greeting), true},
    };
    struct transport *t;

    listen_here();
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        struct stranger stranger;
        stranger_ask(&stranger, l, &cases[i].greeting, cases[i].len);
        cr_expect(eq(int, transport_accept(l, &t), -EAGAIN));
        cr_expect(eq(int, stranger_hear(&stranger),
                     cases[i].valid ? RDMA_CM_EVENT_ESTABLISHED : RDMA_CM_EVENT_REJECTED),
                  "%zu", i);
        cr_expect(eq(int, transport_accept(l, &t), cases[i].valid ? 0 : -EAGAIN));
        cr_expect(eq(uint, verbs_counts().pairs, 1 + cases[i].valid));
        if (cases[i].valid)
            transport_close(t);
        stranger_free(&stranger);
        cr_expect(eq(uint, verbs_counts().ids, 1));
    }
    expect_success();
    end();
}

/* The listener's own calls that fail: the peer is refused, and the next one is taken. */
Test(rdma, listener_runs_out)
{
    static const enum verbs_call calls[] = {VERBS_ALLOC_PD,  VERBS_REG_MR,    VERBS_CREATE_COMP_CHANNEL,
                                            VERBS_CREATE_CQ, VERBS_POST_RECV, VERBS_NOTIFY_CQ,
                                            VERBS_ACCEPT};
    struct rdma_greeting greeting = greeting_of("mig1", 8, 256);
    struct transport *t;

    listen_here();
    for (size_t i = 0; i < ARRAY_LENGTH(calls); i++) {
        struct stranger stranger;
        stranger_ask(&stranger, l, &greeting, sizeof(greeting));
        verbs_fail(calls[i], 1, ENOMEM);
        cr_expect(eq(int, transport_accept(l, &t), -EAGAIN));
        cr_expect(eq(int, stranger_hear(&stranger), RDMA_CM_EVENT_REJECTED), "%zu", i);
        stranger_free(&stranger);
        cr_expect(eq(uint, verbs_counts().ids, 1));
        cr_expect(zero(uint, verbs_counts().domains));
    }
    /* It stands, and cannot be taken over. */
    for (int i = 0; i < 2; i++) {
        struct stranger stranger;
        stranger_ask(&stranger, l, &greeting, sizeof(greeting));
        cr_expect(eq(int, transport_accept(l, &t), -EAGAIN));
        cr_expect(eq(int, stranger_hear(&stranger), RDMA_CM_EVENT_ESTABLISHED));
        verbs_fail(i ? VERBS_MIGRATE_ID : VERBS_CREATE_EVENT_CHANNEL, 1, ENOMEM);
        cr_expect(eq(int, transport_accept(l, &t), -EAGAIN));
        cr_expect(eq(int, stranger_hear(&stranger), RDMA_CM_EVENT_DISCONNECTED), "%d", i);
        stranger_free(&stranger);
        cr_expect(eq(uint, verbs_counts().ids, 1));
        cr_expect(zero(uint, verbs_counts().domains));
    }
    expect_success();
    end();
}

#define UNSURE_MAX 64

/* So many may be on their way; one that gives up makes room. */
Test(rdma, too_many_are_being_made)
{
    static struct stranger strangers[UNSURE_MAX + 1];
    struct rdma_greeting greeting = greeting_of("mig1", 8, 256);
    struct transport *t;

    listen_here();
    for (int i = 0; i < UNSURE_MAX; i++) {
        stranger_ask(&strangers[i], l, &greeting, sizeof(greeting));
        cr_expect(eq(int, transport_accept(l, &t), -EAGAIN));
    }
    cr_expect(eq(uint, verbs_counts().pairs, 2 * UNSURE_MAX));
    stranger_ask(&strangers[UNSURE_MAX], l, &greeting, sizeof(greeting));
    cr_expect(eq(int, transport_accept(l, &t), -EAGAIN));
    cr_expect(eq(int, stranger_hear(&strangers[UNSURE_MAX]), RDMA_CM_EVENT_REJECTED));
    stranger_free(&strangers[UNSURE_MAX]);
    /* One in the middle gives up, and one stands. */
    stranger_free(&strangers[7]);
    cr_expect(eq(int, transport_accept(l, &t), -EAGAIN));
    cr_expect(eq(int, stranger_hear(&strangers[9]), RDMA_CM_EVENT_ESTABLISHED));
    cr_assert(zero(int, transport_accept(l, &t)));
    stranger_send(&strangers[9], 1, true, 0);
    char byte;
    cr_expect(zero(int, transport_recv_all(t, &byte, 1, NULL)));
    transport_close(t);
    stranger_free(&strangers[9]);
    stranger_ask(&strangers[7], l, &greeting, sizeof(greeting));
    cr_expect(eq(int, transport_accept(l, &t), -EAGAIN));
    cr_expect(eq(int, stranger_hear(&strangers[7]), RDMA_CM_EVENT_ESTABLISHED));
    /* Those that are left, and one that was not even looked at, go with the listener. */
    stranger_ask(&strangers[9], l, &greeting, sizeof(greeting));
    transport_listener_close(l);
    cr_expect(eq(int, stranger_hear(&strangers[9]), RDMA_CM_EVENT_REJECTED));
    for (int i = 0; i < UNSURE_MAX; i++)
        stranger_free(&strangers[i]);
    verbs_expect_nothing_left();
}

/* One of which nothing is heard is not kept for longer than ten seconds. */
Test(rdma, silent_while_being_made)
{
    static struct stranger strangers[3];
    struct rdma_greeting greeting = greeting_of("mig1", 8, 256);
    struct transport *t;

    listen_here();
    shifted_clock_stop();
    for (int i = 0; i < 3; i++) {
        stranger_ask(&strangers[i], l, &greeting, sizeof(greeting));
        cr_expect(eq(int, transport_accept(l, &t), -EAGAIN));
        shifted_clock_add(4000);
    }
    shifted_clock_add(-2001);
    cr_expect(eq(int, transport_accept(l, &t), -EAGAIN));
    cr_expect(eq(uint, verbs_counts().pairs, 6));
    shifted_clock_add(1);
    cr_expect(eq(int, transport_accept(l, &t), -EAGAIN));
    cr_expect(eq(uint, verbs_counts().pairs, 5));
    shifted_clock_add(4000);
    cr_expect(eq(int, transport_accept(l, &t), -EAGAIN));
    cr_expect(eq(uint, verbs_counts().pairs, 4));
    cr_expect(eq(int, stranger_hear(&strangers[2]), RDMA_CM_EVENT_ESTABLISHED));
    cr_assert(zero(int, transport_accept(l, &t)));
    stranger_receive(&strangers[2], 0);
    transport_close(t);
    for (int i = 0; i < 3; i++)
        stranger_free(&strangers[i]);
    end();
}

/* The device of a listener goes: what it has accepted fails, TCP goes on. */
Test(rdma, listener_without_its_device)
{
    struct link link = {0}, main_channel = {0};
    struct stranger stranger;
    struct rdma_greeting greeting = greeting_of("mig1", 8, 256);
    struct transport *t;
    char byte;

    listen_here();
    link.listener = l;
    rdma_link_connect(&link, "group");
    stranger_ask(&stranger, l, &greeting, sizeof(greeting));
    cr_expect(eq(int, transport_accept(l, &t), -EAGAIN));
    verbs_remove_device(0);
    cr_expect(eq(int, transport_accept(l, &t), -EAGAIN));
    cr_expect(eq(int, (int)transport_recv(link.b, &byte, 1, 0), -ENODEV));
    cr_expect(eq(int, (int)transport_recv(link.a, &byte, 1, 0), -ENODEV));
    struct pollfd fd = {.fd = transport_listener_pollfd(l), .events = POLLIN};
    cr_expect(zero(int, poll(&fd, 1, 0)));
    transport_close(link.a);
    transport_close(link.b);
    stranger_free(&stranger);
    main_channel.a = link_connect(l, "", 0);
    main_channel.b = link_accept(l);
    cr_expect(eq(str, (char *)main_channel.b->ops->name, "socket"));
    transport_close(main_channel.a);
    transport_close(main_channel.b);
    end();
}
