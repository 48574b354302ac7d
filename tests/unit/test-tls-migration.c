/* SPDX-License-Identifier: Apache-2.0 */
/* Whole migrations over TLS: all their connections belong to one identity, at either end. */
#include "authority.h"
#include "check.h"
#include "connection.h"
#include "incoming.h"
#include "outgoing.h"
#include "peer.h"
#include "rig.h"
#include "scratch.h"
#include "shifted_clock.h"
#include "strangers.h"
#include "tls.h"

#include <stdio.h>
#include <string.h>

#define LISTEN "tcp:127.0.0.1:0"

static struct authority authority;
static struct tls *alice, *bob, *server; /* two clients, and one that serves */

/* A directory of somebody; also with what it takes to serve. */
static struct tls *make(const char *name)
{
    struct wish wish = {.name = name, .alternatives = "IP:127.0.0.1"};
    struct tls_config config = {.serves = true};
    struct tls *tls = NULL;
    struct error err;
    char dir[96];

    snprintf(dir, sizeof(dir), "%s/%s", scratch, name);
    authority_write(&authority, dir);
    authority_issue(&authority, dir, "client", &wish);
    authority_issue(&authority, dir, "server", &wish);
    config.directory = dir;
    CHECK_OK(tls_new(&config, &tls, &err));
    return tls;
}

static void set_up(void)
{
    scratch_make();
    authority = authority_new("CA");
    alice = rig_tls_source = peer_tls = make("alice");
    bob = make("bob");
    server = rig_tls_destination = make("server");
}

static void tear_down(void)
{
    tls_free(alice);
    tls_free(bob);
    tls_free(server);
    authority_free(&authority);
    scratch_remove();
}

TestSuite(tls_migration, .init = set_up, .fini = tear_down);

Test(tls_migration, moves)
{
    enum { SIZE = 3 << 20 };
    static char bytes[SIZE];
    struct migration_figures figures;
    struct rig rig;
    struct error err;

    for (size_t i = 0; i < SIZE; i++)
        bytes[i] = (char)(i * i >> 7);
    rig_init(&rig, LISTEN, NULL);
    struct migration *m = rig_start(&rig, "vm", 3, SIZE), *arrived = rig_arrived(&rig, "vm");
    rig_write(m, migration_file(m, WIRE_RAM), bytes, SIZE, 0);
    rig_write(m, rig_device(m, "disk"), bytes, 12345, 0);
    CHECK_OK(outgoing_complete(m, NULL, &err));
    cr_expect(eq(int, (int)rig_await_end(arrived), STATE_COMPLETED));
    rig_compare(arrived, WIRE_RAM, bytes, SIZE);
    rig_compare(arrived, 1, bytes, 12345);
    migration_operations(m)->figures(m, &figures);
    cr_expect(eq(str, figures.peer.name, "CN=server"));
    migration_operations(arrived)->figures(arrived, &figures);
    cr_expect(eq(str, figures.peer.name, "CN=alice"));
    migration_put(arrived);
    migration_put(m);
    rig_fini(&rig);
}

/* Whoever else has the session learns nothing by it, and changes nothing. */
Test(tls_migration, channels_of_another_identity)
{
    struct hello_reply reply;
    struct rig rig;
    struct peer p = {0};

    rig_init(&rig, LISTEN, NULL);
    p.hello = peer_hello("vm", 1);
    p.main = peer_greet(rig.address, &p.hello, &reply);
    cr_assert(not(zero(ptr, p.main)), "%s", reply.text);
    struct hello data = p.hello, unknown = p.hello;
    data.kind = unknown.kind = WIRE_HELLO_DATA;
    unknown.session[0] ^= 1;
    struct hello_reply of_unknown;
    peer_tls = bob;
    cr_expect(zero(ptr, peer_greet(rig.address, &data, &reply)));
    cr_expect(eq(int, (int)reply.cause, CAUSE_NOT_FOUND));
    cr_expect(zero(ptr, peer_greet(rig.address, &unknown, &of_unknown)));
    cr_expect(eq(str, reply.text, of_unknown.text));
    peer_tls = alice;
    p.data[0] = peer_greet(rig.address, &data, &reply);
    cr_assert(not(zero(ptr, p.data[0])), "%s", reply.text);
    migration_put(rig_arrived(&rig, "vm"));
    cr_expect(peer_sync(&p, 1));
    peer_close(&p);
    rig_fini(&rig);
}

static enum wire_outcome ask(struct rig *rig, struct hello hello, struct tls *who)
{
    struct hello_reply reply = {0};

    hello.kind = WIRE_HELLO_QUERY;
    peer_tls = who;
    struct transport *t = peer_greet(rig->address, &hello, &reply);
    cr_assert(not(zero(ptr, t)), "%s", reply.text);
    transport_close(t);
    peer_tls = alice;
    return reply.outcome;
}

/* A question decides what becomes of a migration that runs: not everybody's. */
Test(tls_migration, questions_of_another_identity)
{
    struct rig rig;
    struct peer p;

    rig_init(&rig, LISTEN, NULL);
    peer_open(&p, rig.address, "vm", 1);
    struct migration *m = rig_arrived(&rig, "vm");
    cr_expect(eq(int, (int)ask(&rig, p.hello, bob), WIRE_OUTCOME_UNKNOWN));
    cr_expect(peer_sync(&p, 1), "it goes on");
    cr_expect(eq(int, (int)ask(&rig, p.hello, alice), WIRE_OUTCOME_FAILED));
    cr_expect(eq(int, (int)rig_await_end(m), STATE_FAILED));
    /* And when it is history. */
    struct error err;
    CHECK_OK(registry_remove(&rig.destination, m, &err));
    migration_put(m);
    cr_expect(eq(int, (int)ask(&rig, p.hello, bob), WIRE_OUTCOME_UNKNOWN));
    cr_expect(eq(int, (int)ask(&rig, p.hello, alice), WIRE_OUTCOME_FAILED));
    peer_close(&p);
    rig_fini(&rig);
}

/* A source whose second way leads to somebody else. */
Test(tls_migration, two_destinations)
{
    struct rig rig, elsewhere;
    struct error err = {0};
    char text[2 * URI_MAX];

    rig_init(&rig, LISTEN, NULL);
    rig_tls_destination = bob;
    rig_init(&elsewhere, LISTEN, NULL);
    struct migration *m = rig_make(&rig, "vm", 2, "");
    snprintf(text, sizeof(text), "%s %s", rig.address, elsewhere.address);
    CHECK_OK(uri_list_parse(text, &m->settings.uris, &err));
    CHECK_FAILS(outgoing_start(m, NULL, &err), CAUSE_DENIED);
    cr_expect(strstr(err.message, "'CN=bob', and the main channel 'CN=server'") != NULL, "%s", err.message);
    migration_put(m);
    rig_fini(&elsewhere);
    rig_fini(&rig);
}

/* A connection that is made again is the same one's, whoever else has the session. */
Test(tls_migration, made_again_by_another_identity)
{
    struct hello_reply reply, of_unknown;
    struct transport *t[2];
    struct rig rig;

    rig_init(&rig, LISTEN, NULL);
    struct hello hello = peer_hello("vm", 1);
    hello.features |= WIRE_FEATURE_RESUME;
    hello.resume_ms = 60000;
    t[0] = peer_greet(rig.address, &hello, &reply);
    struct hello again = hello;
    again.kind = WIRE_HELLO_DATA;
    t[1] = peer_greet(rig.address, &again, &reply);
    cr_assert(t[0] && t[1], "%s", reply.text);
    struct migration *m = rig_arrived(&rig, "vm");
    for (int i = 0; i < 2; i++) {
        again.kind = i ? WIRE_HELLO_DATA_AGAIN : WIRE_HELLO_MAIN_AGAIN;
        struct hello unknown = again;
        unknown.session[0] ^= 1;
        peer_tls = bob;
        cr_expect(zero(ptr, peer_greet(rig.address, &again, &reply)));
        cr_expect(zero(ptr, peer_greet(rig.address, &unknown, &of_unknown)));
        cr_expect(eq(int, (int)reply.cause, CAUSE_NOT_FOUND));
        cr_expect(eq(str, reply.text, of_unknown.text));
        cr_expect(not(migration_is_paused(m)));
        peer_tls = alice;
        struct transport *next = peer_greet(rig.address, &again, &reply);
        cr_assert(not(zero(ptr, next)), "%s", reply.text);
        transport_close(t[i]);
        t[i] = next;
    }
    migration_put(m);
    transport_close(t[0]);
    transport_close(t[1]);
    rig_fini(&rig);
}

/* The limits of a peer count by its identity, wherever it comes from. */
Test(tls_migration, limits_by_identity)
{
    struct limits limits = rig_limits();
    struct hello_reply reply;
    struct rig rig;
    struct peer p, q;

    limits.max_peer_channels = 3;
    limits.max_channels = 100;
    rig_init(&rig, LISTEN, &limits);
    peer_open(&p, rig.address, "a", 2);
    struct hello more = peer_hello("b", 2);
    cr_expect(zero(ptr, peer_greet(rig.address, &more, &reply)));
    cr_expect(eq(int, (int)reply.cause, CAUSE_QUOTA));
    peer_tls = bob;
    peer_open(&q, rig.address, "c", 2);
    peer_close(&p);
    peer_close(&q);
    rig_fini(&rig);
}

/* An address has a bounded number of handshakes without a proof; those with one do not count. */
Test(tls_migration, strangers_who_dial_again_and_again)
{
    struct hello_reply reply;
    struct rig rig;
    char byte;

    shifted_clock_stop();
    rig_init(&rig, LISTEN, NULL);
    for (unsigned i = 0; i < STRANGERS_BURST + 10; i++) {
        struct hello hello = peer_hello("a", 1);
        transport_close(peer_greet(rig.address, &hello, &reply));
    }
    peer_tls = NULL;
    for (unsigned i = 0; i < STRANGERS_BURST; i++)
        transport_close(peer_dial(rig.address));
    struct transport *t = peer_dial(rig.address);
    cr_expect(le(i64, transport_recv(t, &byte, 1, 0), 0), "it is still there");
    transport_close(t);
    /* After a while some may try again, and one of them is somebody else. */
    shifted_clock_add(1000);
    struct migration *m = rig_start(&rig, "vm", 8, 1 << 20), *arrived = rig_arrived(&rig, "vm");
    struct error err;
    CHECK_OK(outgoing_complete(m, NULL, &err));
    cr_expect(eq(int, (int)rig_await_end(arrived), STATE_COMPLETED));
    migration_put(arrived);
    migration_put(m);
    rig_fini(&rig);
}
