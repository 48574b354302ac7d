/* SPDX-License-Identifier: Apache-2.0 */
/* Connections of a migration that arrives, lost and made again: the source is the test. */
#include "interruption.h"
#include "blocked.h"
#include "check.h"
#include "clock.h"
#include "host.h"
#include "link.h"

#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#define CHANNELS 2u
#define LONG_MS  3600000u

static struct host host;
static struct migration *m;
static struct account *account;
static struct catalog catalog;
static struct inbound in;
static struct error err;
static struct transport *main_end, *data[CHANNELS];
static atomic_uint announced;

static void note_change(struct migration *changed)
{
    cr_expect(eq(ptr, changed, m));
    atomic_fetch_add(&announced, 1);
}

static void nothing(struct migration *unused)
{
    (void)unused;
}

static bool never(const struct migration *unused)
{
    (void)unused;
    return false;
}

static const struct role_operations no_role = {
    .free = nothing, .ended = nothing, .kick = nothing, .is_committing = never, .release = nothing};

static struct reception reception = {.catalog = &catalog};

static void move(enum state state)
{
    pthread_mutex_lock(&m->lock);
    cr_assert(migration_move(m, state, NULL));
    pthread_mutex_unlock(&m->lock);
}

static void set_up(void)
{
    struct limits limits = {.max_memory = 1u << 30, .timeout_ms = LONG_MS};
    const struct hello_reply reply = {0};
    struct wire_hello_reply wire;
    struct link link;

    host_init(&host, &limits, note_change);
    m = migration_new(&host, ROLE_NONE, &no_role, "vm", WIRE_DEVICES_MAX);
    cr_assert(ne(ptr, m, NULL));
    account = account_get(&host.accounts, "test");
    cr_assert(zero(int, catalog_init(&catalog, 0)));
    CHECK_OK(inbound_init(&in, &reception, account, CHANNELS, 0, &err));
    link_pair(&link);
    CHECK_OK(inbound_open(&in, link.b, LONG_MS, LONG_MS, LONG_MS, 2000, &err));
    main_end = link.a;
    for (unsigned c = 0; c < CHANNELS; c++) {
        link_pair(&link);
        CHECK_OK(inbound_attach(&in, c, CHANNELS, link.b, LONG_MS, &reply, &err));
        cr_assert(zero(int, transport_recv_all(link.a, &wire, sizeof(wire), NULL)));
        data[c] = link.a;
    }
    m->role = ROLE_INCOMING;
    move(STATE_SETUP);
}

static void end(void)
{
    transport_close(main_end);
    for (unsigned c = 0; c < CHANNELS; c++)
        transport_close(data[c]);
    interruption_end(m, &in);
    inbound_fini(&in);
    catalog_fini(&catalog);
    account_put(account);
    migration_put(m);
    host_fini(&host);
}

TestSuite(interruption, .init = set_up, .fini = end);

/* A connection comes, in the place of another one. Return: the source's end. */
static struct transport *come(int channel, uint64_t received)
{
    struct link link;

    link_pair(&link);
    pthread_mutex_lock(&m->lock);
    CHECK_OK(interruption_attach(m, &in, channel, received, link.b, &err));
    pthread_mutex_unlock(&m->lock);
    return link.a;
}

static void come_in_vain(enum cause cause, const char *sentence)
{
    struct link link;

    link_pair(&link);
    pthread_mutex_lock(&m->lock);
    CHECK_FAILS(interruption_attach(m, &in, 0, 0, link.b, &err), cause);
    pthread_mutex_unlock(&m->lock);
    cr_expect(eq(str, err.message, (char *)sentence));
    cr_expect(zero(ptr, in.receivers[0].next));
    link_close(&link);
}

static void expect_welcome(struct transport *t, uint64_t received)
{
    struct wire_hello_reply wire;
    struct hello_reply reply;

    cr_assert(zero(int, transport_recv_all(t, &wire, sizeof(wire), NULL)));
    CHECK_OK(wire_hello_reply_decode(&wire, &reply, &err));
    cr_expect(eq(int, (int)reply.cause, CAUSE_NONE));
    cr_expect(eq(u64, reply.features, WIRE_FEATURES));
    cr_expect(eq(u64, reply.received, received));
}

static void expect_paused(const char *reason)
{
    char shown[ERROR_MESSAGE_MAX];

    cr_expect(migration_is_paused(m));
    cr_expect(interruption_is_there(m, &in));
    migration_last_error(m, shown);
    cr_expect(eq(str, shown, (char *)reason));
}

static void expect_running(void)
{
    cr_expect(not(migration_is_paused(m)));
    cr_expect(not(interruption_is_there(m, &in)));
}

/* A receiver that has lost its connection. */
struct loser {
    struct worker worker;
    unsigned channel;
    struct error reason;
    int ret;
};

static void wait_for_another(void *arg)
{
    struct loser *loser = arg;

    loser->ret = interruption_of_channel(m, &in, loser->channel, &loser->reason);
}

static void lose(struct loser *loser, unsigned channel)
{
    *loser = (struct loser){.channel = channel, .ret = 1};
    error_set(&loser->reason, CAUSE_RESET, "it is gone");
    worker_start(&loser->worker, wait_for_another, loser);
    worker_await_sleep(&loser->worker);
}

static struct loser losers[CHANNELS];

Test(interruption, too_early_and_too_late)
{
    come_in_vain(CAUSE_AGAIN, "the migration is still starting");
    lose(&losers[0], 0);
    worker_join(&losers[0].worker);
    cr_expect(lt(int, losers[0].ret, 0), "nobody waits before it is active");
    expect_running();
    move(STATE_FAILED);
    come_in_vain(CAUSE_STATE, "a connection was made again when the migration was failed");
    lose(&losers[0], 0);
    worker_join(&losers[0].worker);
    cr_expect(lt(int, losers[0].ret, 0));
    expect_running();
}

Test(interruption, channel)
{
    move(STATE_ACTIVE);
    counter_add(&in.receivers[1].wire_bytes, 555);
    unsigned before = atomic_load(&announced);
    lose(&losers[1], 1);
    cr_expect(not(atomic_load(&losers[1].worker.done)));
    expect_paused("channel 1: it is gone");
    cr_expect(eq(uint, atomic_load(&announced), before + 1));
    /* The other one's is no matter. */
    struct transport *other = come(0, 0);
    worker_await_sleep(&losers[1].worker);
    cr_expect(not(atomic_load(&losers[1].worker.done)));
    struct transport *next = come(1, 0);
    worker_join(&losers[1].worker);
    cr_expect(zero(int, losers[1].ret));
    expect_welcome(next, 555);
    expect_running();
    cr_expect(eq(uint, atomic_load(&announced), before + 2));
    transport_close(data[0]);
    transport_close(data[1]);
    data[0] = other;
    data[1] = next;
}

/* The reader hears of it, so that it knows until when. */
Test(interruption, reader_is_woken)
{
    move(STATE_ACTIVE);
    eventfd_t drained;
    cr_assert(zero(int, eventfd_read(in.session.wake_fd, &drained)), "all are there");
    lose(&losers[0], 0);
    cr_expect(zero(int, eventfd_read(in.session.wake_fd, &drained)));
    move(STATE_CANCELLED);
    worker_join(&losers[0].worker);
    cr_expect(lt(int, losers[0].ret, 0));
    cr_expect(not(migration_is_paused(m)));
}

/* It comes before the receiver has noticed anything: the old one is shut down, and that is how it does. */
Test(interruption, channel_is_there_already)
{
    move(STATE_ACTIVE);
    struct transport *next = come(0, 0);
    char c;
    cr_expect(le(long, transport_recv(data[0], &c, 1, 0), 0));
    lose(&losers[0], 0);
    worker_join(&losers[0].worker);
    cr_expect(zero(int, losers[0].ret));
    expect_welcome(next, 0);
    expect_running();
    transport_close(next);
}

/* Two are lost, and each comes back: it is one pause. */
Test(interruption, two_channels)
{
    move(STATE_ACTIVE);
    for (unsigned c = 0; c < CHANNELS; c++)
        lose(&losers[c], c);
    expect_paused("channel 0: it is gone");
    struct transport *next[CHANNELS];
    next[0] = come(0, 0);
    worker_join(&losers[0].worker);
    expect_paused("channel 0: it is gone");
    next[1] = come(1, 0);
    worker_join(&losers[1].worker);
    expect_running();
    cr_expect(eq(u64, m->pauses, 1));
    for (unsigned c = 0; c < CHANNELS; c++)
        transport_close(next[c]);
}

/* Nobody waits when it is over, for whatever reason. */
Test(interruption, ends)
{
    move(STATE_ACTIVE);
    lose(&losers[0], 0);
    interruption_end(m, &in);
    worker_join(&losers[0].worker);
    cr_expect(lt(int, losers[0].ret, 0));
    lose(&losers[1], 1);
    worker_join(&losers[1].worker);
    cr_expect(lt(int, losers[1].ret, 0));
    come_in_vain(CAUSE_AGAIN, "the migration is about to end");
}

Test(interruption, main_channel)
{
    struct error reason = {0};

    move(STATE_ACTIVE);
    session_send(&in.session, WIRE_SYNC_ACK, 3, NULL, 0);
    atomic_store(&in.session.received, 6);
    error_set(&reason, CAUSE_TIMEOUT, "silence");
    interruption_of_main(m, &in, &reason);
    expect_paused("silence");
    cr_expect(zero(ptr, in.session.transport));
    CHECK_OK(interruption_check(m, &in, &err));
    expect_paused("silence");
    struct transport *next = come(-1, 0);
    expect_paused("silence");
    CHECK_OK(interruption_check(m, &in, &err));
    expect_running();
    expect_welcome(next, 6);
    struct wire_message wire;
    struct message message;
    cr_assert(zero(int, transport_recv_all(next, &wire, sizeof(wire), NULL)));
    CHECK_OK(wire_message_decode(&wire, &message, &err));
    cr_expect(eq(u64, message.id, 3), "what the source has not received is sent again");
    CHECK_OK(interruption_check(m, &in, &err));
    transport_close(main_end);
    main_end = next;
}

/* It comes before this side has noticed: its turn is when that has. */
Test(interruption, main_channel_is_there_already)
{
    struct error reason = {0};

    move(STATE_ACTIVE);
    struct transport *next = come(-1, 0);
    CHECK_OK(interruption_check(m, &in, &err));
    cr_expect(ne(ptr, in.next_main, NULL));
    error_set(&reason, CAUSE_RESET, "closed");
    interruption_of_main(m, &in, &reason);
    CHECK_OK(interruption_check(m, &in, &err));
    expect_welcome(next, 0);
    expect_running();
    transport_close(next);
}

Test(interruption, source_that_makes_no_sense)
{
    struct error reason = {0};

    move(STATE_ACTIVE);
    error_set(&reason, CAUSE_RESET, "closed");
    interruption_of_main(m, &in, &reason);
    struct transport *next = come(-1, 1);
    CHECK_FAILS(interruption_check(m, &in, &err), CAUSE_PROTOCOL);
    cr_expect(migration_is_paused(m));
    transport_close(next);
}

/* Too late, with the reason of what has been lost the longest. */
Test(interruption, too_late)
{
    struct error reason = {0};

    move(STATE_ACTIVE);
    error_set(&reason, CAUSE_TIMEOUT, "silence");
    lose(&losers[0], 0);
    interruption_of_main(m, &in, &reason);
    CHECK_OK(interruption_check(m, &in, &err));
    in.main_loss.since -= 3500; /* 2000, a quarter more, and a second */
    CHECK_FAILS(interruption_check(m, &in, &err), CAUSE_TIMEOUT);
    cr_expect(eq(str, err.message, "silence, and the source has not come back within 2 s"));
    in.receivers[0].loss.since = in.main_loss.since - 1;
    CHECK_FAILS(interruption_check(m, &in, &err), CAUSE_RESET);
    cr_expect(eq(str, err.message, "channel 0: it is gone, and the source has not come back within 2 s"));
    interruption_end(m, &in);
    worker_join(&losers[0].worker);
}
