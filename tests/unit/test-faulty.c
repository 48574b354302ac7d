/* SPDX-License-Identifier: Apache-2.0 */
/* The transport that breaks another one: it has to break it exactly where it says. */
#include "check.h"
#include "link.h"
#include "scratch.h"

#include <errno.h>

TestSuite(faulty, .init = scratch_make, .fini = scratch_remove);

static const char *place(void)
{
    static char text[128];

    snprintf(text, sizeof(text), "unix:%s/socket", scratch);
    return text;
}

static void open_faulty(struct link *link, const char *options)
{
    char faults[128];

    snprintf(faults, sizeof(faults), "faulty:%s:", options);
    link_open(link, place(), faults);
}

/* Receives until the end; the count. */
static size_t receive_rest(struct transport *t, char *buf, size_t size)
{
    size_t have = 0;
    ssize_t n;

    while ((n = transport_recv(t, buf + have, size - have, 0)) > 0)
        have += (size_t)n;
    return have;
}

#define LENGTH 50

/* Sent in one go, in slices, and in many sends: exactly N bytes arrive, and they are the first ones. */
Test(faulty, cut_while_sending)
{
    static const char *const slices[] = {"", "+short=1", "+short=7"};
    char data[LENGTH], got[2 * LENGTH], options[64];

    pattern(data, sizeof(data), 1);
    for (size_t s = 0; s < ARRAY_LENGTH(slices); s++) {
        for (size_t cut = 1; cut < LENGTH; cut++) {
            for (size_t step = 1; step <= LENGTH; step += 13) {
                struct link link;
                snprintf(options, sizeof(options), "cut=%zu%s", cut, slices[s]);
                open_faulty(&link, options);
                int ret = 0;
                for (size_t at = 0; at < LENGTH && ret == 0; at += step)
                    ret = link_send(link.a, data + at, LENGTH - at < step ? LENGTH - at : step);
                cr_expect(eq(int, ret, -ECONNRESET), "%s, %zu at a time", options, step);
                cr_expect(lt(int, link_send(link.a, data, 1), 0), "it stays dead");
                cr_assert(eq(sz, receive_rest(link.b, got, sizeof(got)), cut), "%s, %zu at a time", options, step);
                cr_expect(zero(int, memcmp(got, data, cut)));
                link_close(&link);
            }
        }
    }
}

Test(faulty, cut_while_receiving)
{
    char data[LENGTH], got[2 * LENGTH], options[64];

    pattern(data, sizeof(data), 2);
    for (size_t cut = 1; cut < LENGTH; cut++) {
        for (size_t step = 1; step <= LENGTH; step += 13) {
            struct link link;
            size_t have = 0;
            ssize_t n;
            snprintf(options, sizeof(options), "cut=%zu", cut);
            open_faulty(&link, options);
            link_send(link.b, data, LENGTH);
            while ((n = transport_recv(link.a, got + have, step, 0)) > 0)
                have += (size_t)n;
            cr_expect(eq(sz, have, cut), "cut=%zu, %zu at a time", cut, step);
            cr_expect(zero(int, memcmp(got, data, cut)));
            /* The other end notices too. */
            cr_expect(eq(sz, receive_rest(link.b, got, sizeof(got)), 0));
            link_close(&link);
        }
    }
}

/* Both directions share one count. */
Test(faulty, cut_counts_both_directions)
{
    struct link link;
    char got[LENGTH], data[LENGTH] = {0};

    open_faulty(&link, "cut=30");
    cr_expect(eq(int, link_send(link.a, data, 12), 0));
    cr_expect(eq(int, transport_recv_all(link.b, got, 12, NULL), 0));
    link_send(link.b, data, 10);
    cr_expect(eq(int, transport_recv_all(link.a, got, 10, NULL), 0));
    cr_expect(lt(int, link_send(link.a, data, 20), 0));
    cr_expect(eq(sz, receive_rest(link.b, got, sizeof(got)), 8));
    link_close(&link);
}

/* Many threads' worth of traffic both ways at once: no more than N bytes get through in all. */
Test(faulty, cut_is_exact_under_load)
{
    static char data[256 << 10];
    struct link link;
    struct sink there, back;

    open_faulty(&link, "cut=100000");
    sink_start(&there, link.b, sizeof(data));
    sink_start(&back, link.a, sizeof(data));
    link_send(link.b, data, 60000); /* the faulty end receives this much */
    int ret = 0;
    while (ret == 0)
        ret = link_send(link.a, data, 1000);
    sink_join(&there);
    sink_join(&back);
    cr_expect(le(sz, there.have + back.have, 100000));
    /* What the receiver left, but for a send that the cut overtook. */
    cr_expect(ge(sz, there.have, 40000 - 1000));
    sink_free(&there);
    sink_free(&back);
    link_close(&link);
}

Test(faulty, corrupt)
{
    static const char *const slices[] = {"", "+short=1", "+short=3"};
    char data[LENGTH], got[LENGTH], options[64];

    pattern(data, sizeof(data), 3);
    for (size_t s = 0; s < ARRAY_LENGTH(slices); s++) {
        for (size_t nth = 1; nth <= LENGTH; nth++) {
            struct link link;
            char before[LENGTH];
            memcpy(before, data, sizeof(data));
            snprintf(options, sizeof(options), "corrupt=%zu%s", nth, slices[s]);
            open_faulty(&link, options);
            struct iovec iov[3] = {{data, 20}, {data + 20, 1}, {data + 21, LENGTH - 21}};
            cr_expect(eq(int, transport_send(link.a, iov, 3), 0));
            cr_expect(eq(int, transport_recv_all(link.b, got, LENGTH, NULL), 0));
            for (size_t i = 0; i < LENGTH; i++)
                cr_expect(eq(int, got[i] != data[i], i == nth - 1), "%s: byte %zu", options, i + 1);
            cr_expect(zero(int, memcmp(before, data, sizeof(data))), "the sender's buffer is left alone");
            /* Once. */
            cr_expect(eq(int, link_send(link.a, data, LENGTH), 0));
            cr_expect(eq(int, transport_recv_all(link.b, got, LENGTH, NULL), 0));
            cr_expect(zero(int, memcmp(got, data, LENGTH)));
            link_close(&link);
        }
    }
}

/* What is received arrives as it was sent. */
Test(faulty, corrupt_is_for_what_is_sent)
{
    struct link link;
    char got[LENGTH], data[LENGTH] = {0};

    open_faulty(&link, "corrupt=3");
    link_send(link.b, data, LENGTH);
    cr_expect(eq(int, transport_recv_all(link.a, got, LENGTH, NULL), 0));
    cr_expect(zero(int, memcmp(got, data, LENGTH)));
    link_close(&link);
}

Test(faulty, short_receives)
{
    struct link link;
    char got[LENGTH], data[LENGTH] = {0};

    open_faulty(&link, "short=7");
    link_send(link.b, data, LENGTH);
    size_t left = LENGTH;
    while (left > 0) {
        ssize_t n = transport_recv(link.a, got, sizeof(got), 0);
        cr_assert(n > 0);
        cr_expect(le(long, n, 7));
        left -= (size_t)n;
    }
    cr_expect(eq(long, transport_recv(link.a, got, 1, TRANSPORT_NOWAIT), -EAGAIN));
    link_close(&link);
}

Test(faulty, delay_delays_and_delivers)
{
    struct link link;
    char got[6];

    open_faulty(&link, "delay=1");
    cr_expect(eq(int, link_send(link.a, "hello", 6), 0));
    cr_expect(eq(int, transport_recv_all(link.b, got, 6, NULL), 0));
    cr_expect(eq(str, got, "hello"));
    link_close(&link);
}

/* only=K: the Kth connection that is made, by the index that the caller gives. */
Test(faulty, only_one_of_those_that_connect)
{
    struct transport_listener *l = link_listen(place());
    char data[LENGTH] = {0};

    for (unsigned i = 0; i < 4; i++) {
        struct transport *t = link_connect(l, "faulty:cut=10+only=2:", i);
        struct transport *b = link_accept(l);
        cr_expect(eq(int, link_send(t, data, LENGTH) == 0, i != 2), "connection %u", i);
        transport_close(t);
        transport_close(b);
    }
    transport_listener_close(l);
}

/* ... and of those that are accepted, by their order. */
Test(faulty, only_one_of_those_that_are_accepted)
{
    char text[160], data[LENGTH] = {0};

    snprintf(text, sizeof(text), "faulty:cut=10+only=1:%s", place());
    struct transport_listener *l = link_listen(text);
    cr_expect(eq(str, (char *)transport_listener_address(l), (char *)place()), "who connects needs no faults");
    for (unsigned i = 0; i < 4; i++) {
        struct transport *t = link_connect(l, "", 0);
        struct transport *b = link_accept(l);
        cr_expect(eq(int, link_send(b, data, LENGTH) == 0, i != 1), "connection %u", i);
        transport_close(t);
        transport_close(b);
    }
    transport_listener_close(l);
}

/* What is not broken is handed through. */
Test(faulty, hands_through)
{
    struct link link;
    struct sink sink;
    char c;

    open_faulty(&link, "short=5");
    cr_expect(ne(str, link.a->peer, ""));
    transport_set_timeout(link.a, 1000);
    cr_expect(eq(long, transport_recv(link.a, &c, 1, TRANSPORT_NOWAIT), -EAGAIN));
    transport_finish(link.a);
    cr_expect(eq(long, transport_recv(link.b, &c, 1, 0), 0));
    sink_start(&sink, link.a, 1);
    worker_await_sleep(&sink.worker);
    transport_shutdown(link.a);
    sink_join(&sink);
    cr_expect(le(long, sink.last, 0));
    sink_free(&sink);
    link_close(&link);
}
