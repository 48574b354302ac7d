/* SPDX-License-Identifier: Apache-2.0 */
/* `complete` of a source whose destination the test plays, and what becomes of it when the connection is lost
 * then. */
#include "handover.h"
#include "bed.h"
#include "check.h"
#include "cleanup.h"
#include "clock.h"
#include "peer.h"
#include "scratch.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

static struct bed bed;
static struct migration *m;
static struct streams streams;
static struct question question;
static struct handover handover;
static struct file *ram, *device;

static void set_up(void)
{
    scratch_make();
    bed_init(&bed);
    m = bed.m;
    ram = m->files[WIRE_RAM];
    streams_init(&streams, &bed.source);
    question_init(&question, &bed.source);
    handover_init(&handover, &bed.source, &streams, &question);
    bed_activate(&bed);
    device = bed_device(&bed, "x");
}

static void end(void)
{
    streams_fini(&streams);
    bed_fini(&bed);
}

TestSuite(handover, .init = set_up, .fini = scratch_remove);

static struct bed_call completer;

static void complete(void *arg)
{
    struct bed_call *c = arg;

    c->ret = handover_complete(&handover, &c->interrupt, &c->err);
}

static void begin(void)
{
    completer = (struct bed_call){0};
    worker_start(&completer.worker, complete, &completer);
}

static void are_sealed(enum channel_closed closed)
{
    for (unsigned c = 0; c < BED_CHANNELS; c++) {
        SCOPED_LOCK(&bed.conn->channels[c].lock);
        cr_expect(eq(int, (int)bed.conn->channels[c].closed, (int)closed), "channel %u", c);
    }
}

static bool is_answer_due(void)
{
    SCOPED_LOCK(&m->lock);
    return handover_is_answer_due(&handover);
}

static bool is_committing(void)
{
    SCOPED_LOCK(&m->lock);
    return handover_is_committing(&handover);
}

static unsigned sealers(void)
{
    SCOPED_LOCK(&bed.source.reference->lock);
    return bed.source.reference->sealers;
}

static void entry(struct wire_reader *body, uint32_t id, uint64_t size, uint64_t packets, uint64_t bytes,
                  uint64_t digest)
{
    cr_expect(eq(u32, wire_read_u32(body), id));
    cr_expect(eq(u32, wire_read_u32(body), 0));
    cr_expect(eq(u64, wire_read_u64(body), size));
    cr_expect(eq(u64, wire_read_u64(body), packets));
    cr_expect(eq(u64, wire_read_u64(body), bytes));
    cr_expect(eq(u64, wire_read_u64(body), digest));
}

/* Until the destination is asked to commit. Return: the id. */
static uint64_t run_to_commit(void)
{
    uint64_t id, commit;

    begin();
    bed_said(&bed, WIRE_COMPLETE, &id);
    handover_on_prepared(&handover, id);
    struct wire_reader body = bed_said(&bed, WIRE_COMMIT, &commit);
    cr_expect(eq(u64, commit, id));
    cr_expect(wire_read_done(&body));
    bed_waits(&completer);
    return id;
}

Test(handover, manifest)
{
    struct error err;
    uint64_t id;

    struct file *gone = bed_device(&bed, "gone"), *removed = bed_device(&bed, "removed"),
                *last = bed_device(&bed, "y");
    pthread_mutex_lock(&m->lock);
    migration_remove_file(m, gone);
    pthread_mutex_unlock(&m->lock);
    file_put(gone);
    atomic_store(&removed->removed, true);
    atomic_store(&ram->size, 1000000);
    atomic_store(&device->size, 77);
    counter_add(&ram->per_channel[0].packets, 5);
    counter_add(&ram->per_channel[2].packets, 6);
    counter_add(&ram->per_channel[1].bytes, 12345);
    counter_add(&ram->per_channel[0].digest, UINT64_MAX);
    counter_add(&ram->per_channel[1].digest, 10);
    counter_add(&last->per_channel[1].packets, 1);
    bed_accepted(&bed, 0, NULL, 3);
    bed_accepted(&bed, 1, NULL, 4);
    bed_accepted(&bed, 2, NULL, 5);
    unsigned announced = bed.announced;
    begin();
    struct wire_reader body = bed_said(&bed, WIRE_COMPLETE, &id);
    bed_waits(&completer);
    cr_expect(eq(uint, bed.announced, announced + 1));
    cr_expect(eq(int, (int)m->state, STATE_COMPLETING));
    are_sealed(CHANNEL_SEALED);
    bed_counts(&body, 3, 4, 5);
    cr_expect(eq(u32, wire_read_u32(&body), 3));
    entry(&body, 0, 1000000, 11, 12345, 9);
    entry(&body, 1, 77, 0, 0, 0);
    entry(&body, 4, 0, 1, 0, 0);
    cr_expect(wire_read_done(&body));

    cr_expect(is_answer_due());
    cr_expect(not(is_committing()));
    handover_on_prepared(&handover, id + 1);
    bed_waits(&completer);
    bed_quiet(&bed);
    cr_expect(is_answer_due());
    CHECK_FAILS(handover_on_committed(&handover, id, &err), CAUSE_PROTOCOL);
    CHECK_FAILS(handover_on_committed(&handover, 0, &err), CAUSE_PROTOCOL);
    cr_expect(eq(str, err.message, "the destination has completed what it was not asked to"));
    cr_expect(eq(int, (int)m->state, STATE_COMPLETING));
    handover_on_prepared(&handover, id);
    uint64_t commit;
    bed_said(&bed, WIRE_COMMIT, &commit);
    cr_expect(eq(u64, commit, id));
    cr_expect(not(is_answer_due()), "from here on the doom bounds the wait");
    handover_on_committed(&handover, id, &err);
    worker_join(&completer.worker);
    pthread_mutex_lock(&m->lock);
    migration_remove_file(m, removed);
    pthread_mutex_unlock(&m->lock);
    file_put(removed);
    end();
}

Test(handover, commit)
{
    struct error err;

    m->settings.timeout_ms = 1234000;
    int64_t before = clock_ms();
    uint64_t id = run_to_commit();
    int64_t after = clock_ms();
    cr_expect(is_committing());
    cr_expect(eq(int, (int)bed.source.doom.cause, CAUSE_TIMEOUT));
    cr_expect(eq(str, bed.source.doom.message, "the destination does not confirm that it has completed"));
    cr_expect(ge(i64, bed.source.doom_at, before + 1234000));
    cr_expect(le(i64, bed.source.doom_at, after + 1234000));
    bed_interrupt(&bed, &completer); /* too late */
    bed_waits(&completer);
    CHECK_FAILS(handover_on_committed(&handover, id + 1, &err), CAUSE_PROTOCOL);
    bed_waits(&completer);
    unsigned announced = bed.announced;
    CHECK_OK(handover_on_committed(&handover, id, &err));
    worker_join(&completer.worker);
    cr_expect(zero(int, completer.ret), "%s", completer.err.message);
    cr_expect(eq(int, (int)m->state, STATE_COMPLETED));
    cr_expect(eq(uint, bed.announced, announced + 1));
    cr_expect(not(is_committing()));
    CHECK_FAILS(handover_on_committed(&handover, id, &err), CAUSE_PROTOCOL);
    end();
}

Test(handover, fails_after_the_commit)
{
    run_to_commit();
    bed_fail(&bed, CAUSE_NO_SPACE, "no space there");
    bed_fails(&completer, CAUSE_NO_SPACE, "no space there");
    cr_expect(not(is_committing()));
    end();
}

Test(handover, not_allowed)
{
    struct error err;

    bed_move(&bed, STATE_COMPLETING);
    CHECK_FAILS(handover_complete(&handover, NULL, &err), CAUSE_STATE);
    bed_fail(&bed, CAUSE_RESET, "gone");
    CHECK_FAILS(handover_complete(&handover, NULL, &err), CAUSE_RESET);
    cr_expect(eq(str, err.message, "gone"));
    bed_quiet(&bed);
    are_sealed(CHANNEL_OPEN);
    end();
}

/* No device is on its way to being made while the files are counted. */
Test(handover, waits_for_an_announcement)
{
    streams.announced.file = file_get(device);
    begin();
    bed_waits(&completer);
    cr_expect(eq(int, (int)m->state, STATE_ACTIVE));
    bed_interrupt(&bed, &completer);
    bed_fails(&completer, CAUSE_INTERRUPTED, "interrupted");
    begin();
    bed_waits(&completer);
    bed_quiet(&bed);
    pthread_mutex_lock(&m->lock);
    streams_forget_answer(&streams);
    pthread_mutex_unlock(&m->lock);
    uint64_t id;
    bed_said(&bed, WIRE_COMPLETE, &id);
    bed_fail(&bed, CAUSE_CANCELLED, "cancelled");
    bed_fails(&completer, CAUSE_CANCELLED, "cancelled");
    end();
}

/* All is as it was, and what could not be told meanwhile is told. */
static void goes_on(void)
{
    unsigned announced = bed.announced;

    streams_open_writer(&streams, device);
    atomic_store(&device->touched, true);
    streams_close_writer(&streams, device);
    bed_quiet(&bed);
    bed_interrupt(&bed, &completer);
    bed_fails(&completer, CAUSE_INTERRUPTED, "interrupted: the migration goes on");
    cr_expect(eq(uint, bed.announced, announced + 1));
    cr_expect(eq(int, (int)m->state, STATE_ACTIVE));
    cr_expect(not(is_answer_due()));
    are_sealed(CHANNEL_OPEN);
    struct wire_reader body = bed_said(&bed, WIRE_FILE_END, NULL);
    cr_expect(eq(u32, wire_read_u32(&body), 1));
    bed_quiet(&bed);
}

Test(handover, interrupted_while_it_sends)
{
    bed_queued(&bed, 1, NULL, 3);
    begin();
    bed_waits(&completer);
    are_sealed(CHANNEL_SEALED);
    goes_on();
    bed_sent(&bed, 1);
    end();
}

Test(handover, interrupted_while_the_destination_checks)
{
    struct error err;
    uint64_t id;

    begin();
    bed_said(&bed, WIRE_COMPLETE, &id);
    bed_waits(&completer);
    goes_on();
    /* The answer to the first one is none to the second. */
    handover_on_prepared(&handover, id);
    begin();
    uint64_t next;
    bed_said(&bed, WIRE_COMPLETE, &next);
    cr_expect(eq(u64, next, id + 1));
    bed_waits(&completer);
    bed_quiet(&bed);
    cr_expect(is_answer_due());
    handover_on_prepared(&handover, next);
    bed_said(&bed, WIRE_COMMIT, &next);
    CHECK_OK(handover_on_committed(&handover, next, &err));
    worker_join(&completer.worker);
    cr_expect(zero(int, completer.ret));
    end();
}

/* Already there when it begins: nothing is said, and nothing has changed. */
Test(handover, interrupted_from_the_beginning)
{
    const struct interrupt hit = {true};
    struct error err;

    CHECK_FAILS(handover_complete(&handover, &hit, &err), CAUSE_INTERRUPTED);
    cr_expect(eq(str, err.message, "interrupted: the migration goes on"));
    bed_quiet(&bed);
    are_sealed(CHANNEL_OPEN);
    cr_expect(eq(int, (int)m->state, STATE_ACTIVE));
    end();
}

Test(handover, fails_while_it_sends)
{
    bed_queued(&bed, 1, NULL, 3);
    begin();
    bed_waits(&completer);
    bed_fail(&bed, CAUSE_RESET, "gone");
    channel_close(&bed.conn->channels[1], CHANNEL_DEAD);
    bed_fails(&completer, CAUSE_RESET, "gone");
    cr_expect(eq(int, (int)bed.conn->channels[0].closed, CHANNEL_SEALED));
    bed_quiet(&bed);
    end();
}

/* A channel is dead, and it is not clear why: the migration's failure will say it. */
Test(handover, waits_for_the_reason)
{
    bed_queued(&bed, 2, NULL, 3);
    channel_close(&bed.conn->channels[2], CHANNEL_DEAD);
    begin();
    bed_waits(&completer);
    bed_quiet(&bed);
    cr_expect(not(is_answer_due()));
    bed_fail(&bed, CAUSE_PEER, "the peer has said why");
    bed_fails(&completer, CAUSE_PEER, "the peer has said why");
    end();
}

Test(handover, sends_of_all_channels_are_awaited)
{
    uint64_t id;

    for (unsigned c = 0; c < BED_CHANNELS; c++)
        bed_queued(&bed, c, NULL, 3 + c);
    begin();
    for (unsigned c = 0; c < BED_CHANNELS; c++) {
        bed_waits(&completer);
        bed_quiet(&bed);
        bed_sent(&bed, c);
    }
    bed_said(&bed, WIRE_COMPLETE, &id);
    bed_fail(&bed, CAUSE_CANCELLED, "cancelled");
    bed_fails(&completer, CAUSE_CANCELLED, "cancelled");
    end();
}

static void take_reference(uint64_t size)
{
    struct error err = {0};
    int fd = memfd_create("ram", 0);

    cr_assert(zero(int, ftruncate(fd, (off_t)size)));
    bed.source.reference = reference_new(fd, "fd:7", &err);
    cr_assert(ne(ptr, bed.source.reference, NULL), "%s", err.message);
    atomic_store(&ram->size, size);
    const struct plan_rules rules = source_rules(&bed.source, bed.conn, ram);
    CHECK_OK(reference_start(bed.source.reference, bed.conn, ram, &rules, NULL, &err));
}

Test(handover, nothing_is_asked_for_by_reference)
{
    uint64_t id;

    take_reference(4096);
    begin();
    bed_said(&bed, WIRE_COMPLETE, &id);
    cr_expect(eq(uint, sealers(), 1));
    goes_on();
    cr_expect(eq(uint, sealers(), 0));
    end();
}

Test(handover, verify_finds_a_difference)
{
    uint64_t id, verify;
    uint8_t wrong[4 + DIGEST_SIZE] = {0};
    struct wire_reader body = {.p = wrong, .left = sizeof(wrong)};
    struct message message = {.type = WIRE_VERIFY_REPLY};
    struct error err;

    take_reference(4096);
    m->settings.verify = true;
    begin();
    bed_said(&bed, WIRE_COMPLETE, &id);
    handover_on_prepared(&handover, id);
    bed_said(&bed, WIRE_VERIFY, &verify);
    message.id = verify;
    CHECK_OK(question_on_answer(&question, &message, &body, &err));
    worker_join(&completer.worker);
    cr_expect(eq(int, completer.ret, -EIO));
    cr_expect(eq(int, (int)completer.err.cause, CAUSE_MISMATCH));
    cr_expect(eq(int, (int)m->state, STATE_FAILED));
    cr_expect(eq(str, m->failure.message, completer.err.message));
    bed_quiet(&bed);
    end();
}

/*
 * The connection is lost after the commit
 */

static struct fake fake;

static void listen_there(void)
{
    char text[128];
    struct error err;

    snprintf(text, sizeof(text), "unix:%s/socket", scratch);
    fake_listen(&fake, text);
    CHECK_OK(uri_list_parse(text, &bed.conn->uris, &err));
    strcpy(bed.conn->hello.name, "vm");
    bed.conn->hello.channels = BED_CHANNELS;
    bed.conn->hello.page_size = WIRE_PAGE_SIZE;
    bed.conn->hello.stripe_size = WIRE_STRIPE_SIZE;
    memset(bed.conn->hello.session, 7, 16);
    bed.source.cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

static void resolve(void *arg)
{
    struct error lost = {0};

    (void)arg;
    error_set(&lost, CAUSE_RESET, "the cable");
    handover_resolve(&handover, bed.conn, &lost);
}

static struct worker resolver;

static void ask_there(void)
{
    run_to_commit();
    worker_start(&resolver, resolve, NULL);
}

static void asked(enum wire_outcome outcome, enum cause cause, const char *text)
{
    struct hello hello;

    fake.reply.outcome = outcome;
    fake.reply.cause = cause;
    strcpy(fake.reply.text, text);
    struct transport *t = fake_answer(&fake, &hello);
    cr_expect(eq(int, (int)hello.kind, WIRE_HELLO_QUERY));
    cr_expect(eq(int, hello.session[15], 7));
    transport_close(t);
}

static void resolved(void)
{
    worker_join(&resolver);
    worker_join(&completer.worker);
    transport_listener_close(fake.listener);
    end();
}

Test(handover, lost_and_completed)
{
    listen_there();
    ask_there();
    unsigned announced = bed.announced;
    asked(WIRE_OUTCOME_COMPLETED, CAUSE_NONE, "");
    worker_join(&completer.worker);
    cr_expect(zero(int, completer.ret), "%s", completer.err.message);
    cr_expect(eq(int, (int)m->state, STATE_COMPLETED));
    worker_join(&resolver);
    cr_expect(eq(uint, bed.announced, announced + 1));
    transport_listener_close(fake.listener);
    end();
}

Test(handover, lost_and_failed)
{
    listen_there();
    ask_there();
    asked(WIRE_OUTCOME_FAILED, CAUSE_NONE, "");
    bed_fails(&completer, CAUSE_RESET, "the cable; the destination has not completed");
    resolved();
}

Test(handover, lost_and_forgotten)
{
    listen_there();
    ask_there();
    asked(WIRE_OUTCOME_UNKNOWN, CAUSE_NONE, "");
    bed_fails(&completer, CAUSE_RESET,
          "the cable, and the destination cannot say whether it has completed (it does not know the "
          "migration): look there before the VM goes on here");
    resolved();
}

Test(handover, lost_and_refused)
{
    listen_there();
    ask_there();
    asked(WIRE_OUTCOME_UNKNOWN, CAUSE_REFUSED, "not you");
    worker_join(&completer.worker);
    cr_expect(eq(int, (int)m->state, STATE_FAILED));
    cr_expect(
        eq(str, completer.err.message,
           "the cable, and the destination cannot say whether it has completed (the destination refuses: not "
           "you): look there before the VM goes on here"));
    resolved();
}

/* It did not come to an answer: it is asked again. */
Test(handover, lost_and_asked_again)
{
    struct hello hello;

    listen_there();
    ask_there();
    fake.reply.cause = CAUSE_AGAIN;
    for (int i = 0; i < 2; i++)
        transport_close(fake_answer(&fake, &hello));
    asked(WIRE_OUTCOME_COMPLETED, CAUSE_NONE, "");
    worker_join(&completer.worker);
    cr_expect(eq(int, (int)m->state, STATE_COMPLETED));
    resolved();
}

Test(handover, lost_and_nobody_is_there)
{
    listen_there();
    transport_listener_close(fake.listener);
    fake.listener = NULL;
    ask_there();
    worker_join(&completer.worker);
    cr_expect(eq(int, (int)m->state, STATE_FAILED));
    cr_expect(eq(int, (int)completer.err.cause, CAUSE_RESET));
    resolved();
}

/* A daemon that goes away asks once more, and not again. */
Test(handover, lost_when_the_daemon_goes_away)
{
    listen_there();
    transport_listener_close(fake.listener);
    eventfd_write(bed.source.cancel_fd, 1);
    host_close(&bed.host);
    ask_there();
    worker_join(&completer.worker);
    cr_expect(eq(int, (int)m->state, STATE_FAILED));
    fake.listener = NULL;
    resolved();
}

Test(handover, lost_when_the_daemon_goes_away_and_answered)
{
    listen_there();
    host_close(&bed.host);
    ask_there();
    asked(WIRE_OUTCOME_COMPLETED, CAUSE_NONE, "");
    worker_join(&completer.worker);
    cr_expect(eq(int, (int)m->state, STATE_COMPLETED), "%s", completer.err.message);
    resolved();
}

/* From the commit on the data channels are not needed; and it has its time once more with another connection. */
Test(handover, main_channel_made_again)
{
    struct error err;

    m->settings.timeout_ms = 1234000;
    handover_delay(&handover);
    cr_expect(zero(i64, bed.source.doom_at), "nobody waits for a confirmation");
    begin();
    uint64_t id;
    bed_said(&bed, WIRE_COMPLETE, &id);
    cr_expect(not(atomic_load(&bed.conn->committed)));
    handover_delay(&handover);
    cr_expect(zero(i64, bed.source.doom_at));
    handover_on_prepared(&handover, id);
    bed_said(&bed, WIRE_COMMIT, &id);
    cr_expect(atomic_load(&bed.conn->committed));
    bed_waits(&completer);
    bed.source.doom_at = 1;
    int64_t before = clock_ms();
    handover_delay(&handover);
    cr_expect(ge(i64, bed.source.doom_at, before + 1234000));
    cr_expect(le(i64, bed.source.doom_at, clock_ms() + 1234000));
    cr_expect(eq(int, (int)bed.source.doom.cause, CAUSE_TIMEOUT));
    CHECK_OK(handover_on_committed(&handover, id, &err));
    worker_join(&completer.worker);
    cr_expect(zero(int, completer.ret), "%s", completer.err.message);
    end();
}
