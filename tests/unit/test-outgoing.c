/* SPDX-License-Identifier: Apache-2.0 */
/* The source against destinations of all kinds, and against slow ones. */
#include "outgoing.h"
#include "blocked.h"
#include "check.h"
#include "clock.h"
#include "link.h"
#include "peer.h"
#include "rig.h"
#include "scratch.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <xxhash.h>

static struct registry registry;
static struct fake fake;
static struct migration *m;
static struct file *ram;

static void set_up(void)
{
    struct limits limits = rig_limits();
    char text[128];
    struct error err;

    scratch_make();
    limits.write_behind = 1 << 20;
    registry_init(&registry, &limits, NULL);
    snprintf(text, sizeof(text), "unix:%s/socket", scratch);
    fake_listen(&fake, text);
    CHECK_OK(registry_add_outgoing(&registry, "vm", 0, 0, &m, &err));
    CHECK_OK(uri_list_parse(text, &m->settings.uris, &err));
    ram = migration_file(m, WIRE_RAM);
}

static void tear_down(void)
{
    scratch_remove();
}

/* At the end of a test that has not failed: nothing is left. */
static void end(void)
{
    registry_shutdown(&registry);
    fake_close(&fake);
    migration_put(m);
    registry_drain(&registry, HOST_FOREVER);
    cr_expect(eq(uint, registry.host.users, 0));
    registry_fini(&registry);
}

TestSuite(outgoing, .init = set_up, .fini = tear_down);

/*
 * Start
 */

static struct starter {
    struct worker worker;
    struct interrupt interrupt;
    struct error err;
    int ret;
} starter;

static void start(void *arg)
{
    struct starter *s = arg;

    s->ret = outgoing_start(m, &s->interrupt, &s->err);
}

static void start_begin(void)
{
    starter.err = (struct error){0};
    atomic_store(&starter.interrupt.hit, false);
    worker_start(&starter.worker, start, &starter);
}

static void start_fails(enum cause cause)
{
    worker_join(&starter.worker);
    cr_expect(lt(int, starter.ret, 0));
    cr_expect(eq(int, (int)starter.err.cause, (int)cause), "%s", starter.err.message);
    cr_expect(eq(int, (int)m->state, STATE_FAILED));
}

static void start_works(void)
{
    worker_join(&starter.worker);
    cr_assert(zero(int, starter.ret), "%s", starter.err.message);
    cr_expect(eq(int, (int)m->state, STATE_ACTIVE));
}

static void become_active(void)
{
    start_begin();
    fake_accept_all(&fake, m->file_count);
    start_works();
}

Test(outgoing, hello_says_what_was_set)
{
    m->settings.channels = 5;
    m->settings.device_channels = 2;
    m->settings.checksum_choice = CHOICE_OFF;
    m->settings.compress = true;
    m->settings.timeout_ms = 12345;
    start_begin();
    fake_accept_all(&fake, 1);
    start_works();
    cr_expect(eq(str, fake.hello.name, "vm"));
    cr_expect(eq(uint, fake.hello.channels, 5));
    cr_expect(eq(uint, fake.hello.device_channels, 2));
    cr_expect(eq(u64, fake.hello.features, WIRE_FEATURE_ZSTD));
    cr_expect(eq(u32, fake.hello.timeout_ms, 12345));
    cr_expect(eq(uint, outgoing_channels(m), 5));
    end();
}

Test(outgoing, no_channel_left_for_ram)
{
    struct error err;

    m->settings.channels = 2;
    m->settings.device_channels = 2;
    CHECK_FAILS(outgoing_start(m, NULL, &err), CAUSE_SYNTAX);
    cr_expect(eq(int, (int)m->state, STATE_NONE));
    end();
}

Test(outgoing, refused_hello)
{
    struct hello hello;

    fake.reply.cause = CAUSE_QUOTA;
    strcpy(fake.reply.text, "no room here");
    start_begin();
    struct transport *t = fake_answer(&fake, &hello);
    start_fails(CAUSE_QUOTA);
    cr_expect(not(zero(ptr, strstr(starter.err.message, "no room here"))), "%s", starter.err.message);
    transport_close(t);

    /* Nothing was sent: it can be started again. */
    fake.reply.cause = CAUSE_NONE;
    become_active();
    end();
}

/* What a peer says goes into `error`, and on to somebody's terminal. */
Test(outgoing, refusals_are_one_harmless_line)
{
    struct hello hello;

    fake.reply.cause = CAUSE_QUOTA;
    strcpy(fake.reply.text, "first\nsecond \x1b[2J \xe2\x80\xae\xc2\x9b\xff");
    start_begin();
    struct transport *t = fake_answer(&fake, &hello);
    start_fails(CAUSE_QUOTA);
    cr_expect(zero(ptr, strpbrk(starter.err.message, "\n\x1b\x80\xc2\xff")), "of a hello");
    transport_close(t);

    fake.reply.cause = CAUSE_NONE;
    start_begin();
    fake_accept_all(&fake, 0);
    fake_reply(&fake, CAUSE_QUOTA, "first\nsecond \x1b[2J \xe2\x80\xae\xc2\x9b\xff");
    start_fails(CAUSE_QUOTA);
    cr_expect(zero(ptr, strpbrk(starter.err.message, "\n\x1b\x80\xc2\xff")), "of a file");
    end();
}

Test(outgoing, refused_data_channel)
{
    struct hello hello;

    start_begin();
    fake.main = fake_answer(&fake, &hello);
    fake.reply.cause = CAUSE_EXISTS;
    struct transport *t = fake_answer(&fake, &hello);
    start_fails(CAUSE_EXISTS);
    transport_close(t);
    end();
}

Test(outgoing, refused_file)
{
    start_begin();
    fake_accept_all(&fake, 0);
    fake_reply(&fake, CAUSE_QUOTA, "too large");
    start_fails(CAUSE_QUOTA);
    fake_hang_up(&fake);
    become_active();
    end();
}

Test(outgoing, destination_of_another_version)
{
    struct hello hello;
    struct wire_hello_reply answer;
    struct iovec iov = {&answer, sizeof(answer)};

    start_begin();
    struct transport *t = link_accept(fake.listener);
    struct wire_hello wire;
    transport_recv_all(t, &wire, sizeof(wire), NULL);
    wire_hello_reply_encode(&fake.reply, &answer);
    answer.version = 99;
    answer.check = wire_payload_check(&answer, sizeof(answer) - WIRE_CHECK_SIZE);
    transport_send(t, &iov, 1);
    start_fails(CAUSE_PROTOCOL);
    transport_close(t);

    start_begin();
    t = link_accept(fake.listener);
    memset(&answer, 'x', sizeof(answer));
    transport_send(t, &iov, 1);
    start_fails(CAUSE_PROTOCOL);
    transport_close(t);
    (void)hello;
    end();
}

Test(outgoing, destination_that_hangs_up)
{
    start_begin();
    struct transport *t = link_accept(fake.listener);
    transport_close(t);
    start_fails(CAUSE_RESET);
    end();
}

Test(outgoing, destination_that_does_not_answer)
{
    m->settings.timeout_ms = 100;
    start_begin();
    struct transport *t = link_accept(fake.listener);
    start_fails(CAUSE_TIMEOUT);
    transport_close(t);
    end();
}

Test(outgoing, nobody_listens)
{
    transport_listener_close(fake.listener);
    fake.listener = NULL;
    start_begin();
    start_fails(CAUSE_REFUSED);
    end();
}

static struct file *coming_device;
static atomic_bool has_started;

static void come_and_go(void *arg)
{
    (void)arg;
    do {
        outgoing_open_writer(m, coming_device);
        outgoing_close_writer(m, coming_device);
    } while (!atomic_load(&has_started));
}

/* Whoever closes a device finds its migration also while it begins anew. */
Test(outgoing, writers_come_and_go_while_it_starts)
{
    struct worker writer;
    struct error err = {0};

    transport_listener_close(fake.listener);
    fake.listener = NULL;
    CHECK_OK(outgoing_create_device(m, "dev", false, NULL, &coming_device, &err));
    worker_start(&writer, come_and_go, NULL);
    for (int i = 0; i < 100; i++)
        CHECK_FAILS(outgoing_start(m, NULL, &err), CAUSE_REFUSED);
    atomic_store(&has_started, true);
    worker_join(&writer);
    file_put(coming_device);
    end();
}

Test(outgoing, interrupted_start)
{
    start_begin();
    struct transport *t = link_accept(fake.listener);
    worker_await_sleep(&starter.worker);
    atomic_store(&starter.interrupt.hit, true);
    migration_kick(m);
    start_fails(CAUSE_INTERRUPTED);
    transport_close(t);
    become_active();
    end();
}

Test(outgoing, cancelled_start)
{
    struct error err;

    start_begin();
    struct transport *t = link_accept(fake.listener);
    worker_await_sleep(&starter.worker);
    CHECK_OK(migration_cancel(m, &err));
    worker_join(&starter.worker);
    cr_expect(lt(int, starter.ret, 0));
    cr_expect(eq(int, (int)starter.err.cause, CAUSE_CANCELLED), "%s", starter.err.message);
    cr_expect(eq(int, (int)m->state, STATE_CANCELLED));
    transport_close(t);
    become_active();
    end();
}

/* Holds up a `start`, between the change of its state and the first connection. */
static struct hold {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool held, reached;
} hold = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false, false};

static void hold_start(struct migration *changed)
{
    pthread_mutex_lock(&hold.lock);
    while (hold.held && changed->state == STATE_SETUP) {
        hold.reached = true;
        pthread_cond_broadcast(&hold.changed);
        pthread_cond_wait(&hold.changed, &hold.lock);
    }
    pthread_mutex_unlock(&hold.lock);
}

static void set_held(bool held)
{
    pthread_mutex_lock(&hold.lock);
    hold.held = held;
    pthread_cond_broadcast(&hold.changed);
    pthread_mutex_unlock(&hold.lock);
}

/* A `start` that was cancelled, and has not left. */
static void cancelled_and_held(void)
{
    struct error err;

    registry.host.changed = hold_start;
    set_held(true);
    start_begin();
    pthread_mutex_lock(&hold.lock);
    while (!hold.reached)
        pthread_cond_wait(&hold.changed, &hold.lock);
    pthread_mutex_unlock(&hold.lock);
    CHECK_OK(migration_cancel(m, &err));
}

static struct starter second;

static void start_elsewhere(void *arg)
{
    struct starter *s = arg;
    char text[128];

    snprintf(text, sizeof(text), "unix:%s/socket", scratch);
    pthread_mutex_lock(&m->lock);
    s->ret = outgoing_setting_writable(m, &s->interrupt, &s->err);
    if (s->ret == 0)
        s->ret = uri_list_parse(text, &m->settings.uris, &s->err);
    pthread_mutex_unlock(&m->lock);
    if (s->ret == 0)
        s->ret = outgoing_start(m, &s->interrupt, &s->err);
}

/* `cancel`, another address, `start`: what the first one uses is its own until it has left. */
Test(outgoing, started_again_before_the_first_has_left)
{
    struct error err;

    CHECK_OK(uri_list_parse("unix:/nowhere/at/all", &m->settings.uris, &err));
    cancelled_and_held();
    worker_start(&second.worker, start_elsewhere, &second);
    worker_await_sleep(&second.worker);
    cr_expect(zero(int, (int)second.worker.done), "%s", second.err.message);
    cr_expect(eq(int, (int)m->state, STATE_CANCELLED));
    cr_expect(eq(str, m->settings.uris.uri[0].text, "unix:/nowhere/at/all"));
    set_held(false);
    worker_join(&starter.worker);
    cr_expect(eq(int, (int)starter.err.cause, CAUSE_CANCELLED), "%s", starter.err.message);
    fake_accept_all(&fake, 1);
    worker_join(&second.worker);
    cr_expect(zero(int, second.ret), "%s", second.err.message);
    cr_expect(eq(int, (int)m->state, STATE_ACTIVE));
    end();
}

/* Everything that changes what the first one uses waits, and can be interrupted. */
static void start_again(void *arg)
{
    struct starter *s = arg;

    s->ret = outgoing_start(m, &s->interrupt, &s->err);
}

static void declare(void *arg)
{
    struct starter *s = arg;

    s->ret = outgoing_truncate(m, ram, 1 << 20, &s->interrupt, &s->err);
}

static void make_device(void *arg)
{
    struct starter *s = arg;
    struct file *file;

    s->ret = outgoing_create_device(m, "dev", false, &s->interrupt, &file, &s->err);
    if (s->ret == 0)
        file_put(file); /* it stays in the table */
}

static void forget_reference(void *arg)
{
    struct starter *s = arg;

    s->ret = outgoing_set_reference(m, NULL, &s->interrupt, &s->err);
}

Test(outgoing, waiting_for_the_first_to_leave_is_interrupted)
{
    void (*const works[])(void *) = {start_again, start_elsewhere, declare, make_device, forget_reference};

    cancelled_and_held();
    for (size_t i = 0; i < ARRAY_LENGTH(works); i++) {
        second.err = (struct error){0};
        atomic_store(&second.interrupt.hit, false);
        worker_start(&second.worker, works[i], &second);
        worker_await_sleep(&second.worker);
        cr_expect(zero(int, (int)second.worker.done), "%zu", i);
        atomic_store(&second.interrupt.hit, true);
        migration_kick(m);
        worker_join(&second.worker);
        cr_expect(eq(int, (int)second.err.cause, CAUSE_INTERRUPTED), "%zu: %s", i, second.err.message);
    }
    cr_expect(eq(uint, m->file_count, 1));
    set_held(false);
    worker_join(&starter.worker);
    cr_expect(eq(int, (int)m->state, STATE_CANCELLED));
    end();
}

/* Everything is connected and announced; what remains is to become active. */
Test(outgoing, cancelled_at_the_last_moment_and_started_again)
{
    struct error failure = {0};

    error_set(&failure, CAUSE_CANCELLED, "cancelled");
    for (int round = 0; round < 10; round++) {
        start_begin();
        fake_accept_all(&fake, 0);
        worker_await_sleep(&starter.worker);
        pthread_mutex_lock(&m->lock);
        fake_reply(&fake, CAUSE_NONE, ""); /* whoever reads it needs the lock */
        cr_assert(migration_move(m, STATE_CANCELLED, &failure));
        pthread_mutex_unlock(&m->lock);
        worker_join(&starter.worker);
        cr_expect(eq(int, (int)starter.err.cause, CAUSE_CANCELLED), "%s", starter.err.message);
        cr_expect(eq(int, (int)m->state, STATE_CANCELLED));
        fake_hang_up(&fake);
    }
    become_active();
    end();
}

Test(outgoing, started_twice)
{
    struct error err;

    become_active();
    CHECK_FAILS(outgoing_start(m, NULL, &err), CAUSE_STATE);
    pthread_mutex_lock(&m->lock);
    CHECK_FAILS(outgoing_setting_writable(m, NULL, &err), CAUSE_STATE);
    pthread_mutex_unlock(&m->lock);
    end();
}

/*
 * What a destination may not say
 */

static uint8_t body_buf[WIRE_BODY_MAX];

static void say(enum wire_message_type type, uint64_t id)
{
    peer_send(fake.main, type, id, NULL, 0);
}

static void committed_unasked(void)
{
    say(WIRE_COMMITTED, 0);
}

static void committed_unasked_with_a_number(void)
{
    say(WIRE_COMMITTED, 1);
}

static void what_a_source_says(void)
{
    say(WIRE_COMMIT, 1);
}

static void answer_about_no_file(void)
{
    memset(body_buf, 0, 16);
    peer_send(fake.main, WIRE_FILE_REPLY, 0, body_buf, 10);
}

static void half_an_answer(void)
{
    peer_send(fake.main, WIRE_FILE_REPLY, 0, body_buf, 3);
}

static void digest_unasked(void)
{
    peer_send(fake.main, WIRE_DIGEST_REPLY, 1, body_buf, 4 + DIGEST_SIZE);
}

static void progress_of_too_few_channels(void)
{
    peer_send(fake.main, WIRE_PROGRESS, 0, body_buf, 8 + 16);
}

static void noise(void)
{
    struct iovec iov = {body_buf, 1000};
    transport_send(fake.main, &iov, 1);
}

static void hang_up(void)
{
    fake_hang_up(&fake);
}

static void hang_up_a_channel(void)
{
    transport_close(fake.data[0]);
    fake.data[0] = NULL;
}

static void abort_with(enum cause cause)
{
    struct wire_writer w = {body_buf, body_buf, body_buf + sizeof(body_buf)};
    wire_write_u32(&w, cause);
    wire_write_text(&w, "because");
    peer_send(fake.main, WIRE_ABORT, 0, body_buf, wire_written(&w));
}

static void give_up(void)
{
    abort_with(CAUSE_NO_SPACE);
}

static void cancel(void)
{
    abort_with(CAUSE_CANCELLED);
}

static const struct {
    const char *what;
    void (*break_it)(void);
    enum state state;
    enum cause cause;
} breaches[] = {
#define CASE(f, state, cause) {#f, f, state, cause}
    CASE(committed_unasked, STATE_FAILED, CAUSE_PROTOCOL),
    CASE(committed_unasked_with_a_number, STATE_FAILED, CAUSE_PROTOCOL),
    CASE(what_a_source_says, STATE_FAILED, CAUSE_PROTOCOL),
    CASE(answer_about_no_file, STATE_FAILED, CAUSE_PROTOCOL),
    CASE(half_an_answer, STATE_FAILED, CAUSE_PROTOCOL),
    CASE(digest_unasked, STATE_FAILED, CAUSE_PROTOCOL),
    CASE(progress_of_too_few_channels, STATE_FAILED, CAUSE_PROTOCOL),
    CASE(noise, STATE_FAILED, CAUSE_PROTOCOL),
    CASE(hang_up, STATE_FAILED, CAUSE_RESET),
    CASE(give_up, STATE_FAILED, CAUSE_NO_SPACE),
    CASE(cancel, STATE_CANCELLED, CAUSE_CANCELLED),
#undef CASE
};

Test(outgoing, breaches)
{
    struct error err;
    struct sender_write write;
    struct uri_list uri = m->settings.uris;

    for (size_t i = 0; i < ARRAY_LENGTH(breaches); i++) {
        become_active();
        breaches[i].break_it();
        cr_expect(eq(int, (int)rig_await_end(m), (int)breaches[i].state), "%s", breaches[i].what);
        cr_expect(eq(int, (int)m->failure.cause, (int)breaches[i].cause), "%s: %s", breaches[i].what, m->failure.message);
        /* From now on everything says so. */
        CHECK_FAILS(outgoing_sync(m, NULL, NULL, &err), breaches[i].cause);
        CHECK_FAILS(outgoing_flush(m, NULL, NULL, &err), breaches[i].cause);
        CHECK_FAILS(outgoing_complete(m, NULL, &err), breaches[i].cause);
        CHECK_FAILS(outgoing_write_begin(m, ram, "x", 1, 0, NULL, &write, &err), breaches[i].cause);
        CHECK_FAILS(outgoing_start(m, NULL, &err), CAUSE_STATE);
        fake_hang_up(&fake);
        CHECK_OK(registry_remove(&registry, m, &err));
        migration_put(m);
        CHECK_OK(registry_add_outgoing(&registry, "vm", 0, 0, &m, &err));
        m->settings.uris = uri;
        ram = migration_file(m, WIRE_RAM);
    }
    end();
}

/* A data channel that is gone is noticed by who sends on it. */
Test(outgoing, data_channel_is_gone)
{
    struct error err = {0};
    int ret = 0;

    become_active();
    hang_up_a_channel();
    while (ret == 0)
        ret = rig_try_write(m, ram, "x", 1, 0, NULL, &err);
    cr_expect(eq(int, (int)err.cause, CAUSE_RESET), "%s", err.message);
    cr_expect(eq(int, (int)rig_await_end(m), STATE_FAILED));
    cr_expect(eq(u64, outgoing_queued(m), 0));
    end();
}

Test(outgoing, silent_destination)
{
    m->settings.timeout_ms = 150;
    fake.reply.timeout_ms = 150;
    become_active();
    cr_expect(eq(int, (int)rig_await_end(m), STATE_FAILED));
    cr_expect(eq(int, (int)m->failure.cause, CAUSE_TIMEOUT), "%s", m->failure.message);
    end();
}

/*
 * A destination that takes nothing
 */

static struct writer {
    struct worker worker;
    struct interrupt interrupt;
    struct error err;
    size_t len;
    uint64_t offset;
    int ret;
} writers[4];

static char *zeros;

static void write_until_it_fails(void *arg)
{
    struct writer *w = arg;

    w->ret = 0;
    while (w->ret == 0)
        w->ret = rig_try_write(m, ram, zeros, w->len, w->offset, &w->interrupt, &w->err);
}

/* All writers block, whatever the size of their writes, and no more is accepted than the bound and a write of each. */
static void fill_up(void)
{
    static const size_t sizes[] = {100, 20000, 300000, PLAN_WRITE_MAX};

    m->settings.zero_pages = false;
    zeros = calloc(1, PLAN_WRITE_MAX);
    become_active();
    for (size_t i = 0; i < ARRAY_LENGTH(writers); i++) {
        writers[i].len = sizes[i];
        writers[i].offset = i * 3 * WIRE_STRIPE_SIZE;
        worker_start(&writers[i].worker, write_until_it_fails, &writers[i]);
    }
    /* All asleep at the same time, and none for a moment only: nothing moves. */
    for (uint64_t before = 0, now, still = 0; still < 100; before = now) {
        for (size_t i = 0; i < ARRAY_LENGTH(writers); i++)
            worker_await_sleep(&writers[i].worker);
        now = outgoing_queued(m) + outgoing_wire_bytes(m, 0) + outgoing_wire_bytes(m, 1);
        still = now == before ? still + 1 : 0;
    }
    cr_expect(le(u64, outgoing_queued(m), (1 << 20) + PLAN_WRITE_MAX + 8192), "memory is bounded");
}

static void all_writers_fail(enum cause cause)
{
    for (size_t i = 0; i < ARRAY_LENGTH(writers); i++) {
        worker_join(&writers[i].worker);
        cr_expect(eq(int, (int)writers[i].err.cause, (int)cause), "%s", writers[i].err.message);
    }
    cr_expect(eq(u64, outgoing_queued(m), 0));
    free(zeros);
}

Test(outgoing, cancel_frees_blocked_writers)
{
    struct error err;

    fill_up();
    CHECK_OK(migration_cancel(m, &err));
    all_writers_fail(CAUSE_CANCELLED);
    end();
}

Test(outgoing, broken_connection_frees_blocked_writers)
{
    fill_up();
    fake_hang_up(&fake);
    all_writers_fail(CAUSE_RESET);
    cr_expect(eq(int, (int)rig_await_end(m), STATE_FAILED));
    end();
}

Test(outgoing, shutdown_frees_blocked_writers)
{
    fill_up();
    registry_shutdown(&registry);
    all_writers_fail(CAUSE_SHUTDOWN);
    end();
}

static struct waiter {
    struct worker worker;
    struct interrupt interrupt;
    struct error err;
    int ret;
} waiter;

static void flush(void *arg)
{
    struct waiter *w = arg;

    w->ret = outgoing_flush(m, NULL, &w->interrupt, &w->err);
}

static void sync_all(void *arg)
{
    struct waiter *w = arg;

    w->ret = outgoing_sync(m, NULL, &w->interrupt, &w->err);
}

static void complete(void *arg)
{
    struct waiter *w = arg;

    w->ret = outgoing_complete(m, &w->interrupt, &w->err);
}

static void digest(void *arg)
{
    struct waiter *w = arg;
    uint8_t out[DIGEST_SIZE];

    w->ret = outgoing_digest(m, ram, &w->interrupt, out, &w->err);
}

/* Every command that waits can be interrupted, and the migration goes on. */
Test(outgoing, commands_are_interrupted)
{
    static void (*const commands[])(void *) = {flush, sync_all, complete, digest};
    struct error err;

    fill_up();
    for (size_t i = 0; i < ARRAY_LENGTH(commands); i++) {
        waiter = (struct waiter){0};
        worker_start(&waiter.worker, commands[i], &waiter);
        worker_await_sleep(&waiter.worker);
        cr_assert(not(atomic_load(&waiter.worker.done)));
        atomic_store(&waiter.interrupt.hit, true);
        migration_kick(m);
        worker_join(&waiter.worker);
        cr_expect(lt(int, waiter.ret, 0), "command %zu", i);
        cr_expect(eq(int, (int)waiter.err.cause, CAUSE_INTERRUPTED), "command %zu: %s", i, waiter.err.message);
        cr_expect(eq(int, (int)m->state, STATE_ACTIVE), "command %zu", i);
    }
    CHECK_OK(migration_cancel(m, &err));
    for (size_t i = 0; i < ARRAY_LENGTH(writers); i++)
        worker_join(&writers[i].worker);
    free(zeros);
    end();
}

/*
 * A `sync` that was interrupted still waits at the destination. No more of them are sent than that takes, and an answer
 * makes room for the next one.
 */
Test(outgoing, syncs_that_nobody_answers)
{
    const struct interrupt hit = {true};
    struct message message;
    struct error err;

    become_active();
    for (int i = 0; i < WIRE_SYNCS_MAX + 3; i++)
        CHECK_FAILS(outgoing_sync(m, NULL, &hit, &err), CAUSE_INTERRUPTED);
    waiter = (struct waiter){0};
    worker_start(&waiter.worker, sync_all, &waiter);
    worker_await_sleep(&waiter.worker);
    for (int i = 0; i < WIRE_SYNCS_MAX; i++) {
        cr_assert(zero(int, peer_receive(fake.main, &message, body_buf)));
        cr_assert(eq(int, (int)message.type, WIRE_SYNC));
    }
    struct pollfd more = {.fd = transport_pollfd(fake.main), .events = POLLIN};
    if (poll(&more, 1, 0) > 0) {
        /* What is there is the heartbeat. */
        struct wire_message ping;
        cr_assert(zero(int, transport_recv_all(fake.main, &ping, sizeof(ping), NULL)));
        cr_assert(eq(int, (int)ping.type, WIRE_PING));
    }
    say(WIRE_SYNC_ACK, 1);
    cr_assert(zero(int, peer_receive(fake.main, &message, body_buf)));
    cr_assert(eq(int, (int)message.type, WIRE_SYNC));
    say(WIRE_SYNC_ACK, message.id);
    worker_join(&waiter.worker);
    cr_expect(zero(int, waiter.ret), "%s", waiter.err.message);
    end();
}

Test(outgoing, blocked_writer_is_interrupted)
{
    struct error err;

    fill_up();
    /* One more, who can only wait at the gate. */
    struct writer last = {.len = PLAN_WRITE_MAX, .offset = 100 * (uint64_t)WIRE_STRIPE_SIZE};
    worker_start(&last.worker, write_until_it_fails, &last);
    worker_await_sleep(&last.worker);
    atomic_store(&last.interrupt.hit, true);
    migration_kick(m);
    worker_join(&last.worker);
    cr_expect(eq(int, (int)last.err.cause, CAUSE_INTERRUPTED), "%s", last.err.message);
    cr_expect(eq(int, (int)m->state, STATE_ACTIVE));
    CHECK_OK(migration_cancel(m, &err));
    all_writers_fail(CAUSE_CANCELLED);
    end();
}

static void await_message(enum wire_message_type type, uint64_t *id)
{
    struct message message;

    do {
        cr_assert(zero(int, peer_receive(fake.main, &message, body_buf)));
    } while (message.type != type);
    *id = message.id;
}

/*
 * A destination that is alive, and of whose channels some move and some do not
 */

/* What the destination says next: bytes received and packets applied on either channel. */
static struct {
    uint64_t work, received[2], applied[2];
} report;

static void tell_progress(void)
{
    struct wire_writer w = {body_buf, body_buf, body_buf + sizeof(body_buf)};
    /* Not faster than a destination of this timeout would. */
    struct pollfd nothing = {.fd = -1};

    wire_write_u64(&w, report.work);
    for (unsigned c = 0; c < 2; c++) {
        wire_write_u64(&w, report.received[c]);
        wire_write_u64(&w, report.applied[c]);
    }
    peer_send(fake.main, WIRE_PROGRESS, 0, body_buf, wire_written(&w));
    poll(&nothing, 1, 25);
}

#define SHORT_MS 400

/* A packet on each channel, and a command that waits for both. */
static void wait_for_two_packets(void (*command)(void *))
{
    memset(&report, 0, sizeof(report));
    m->settings.timeout_ms = fake.reply.timeout_ms = SHORT_MS;
    become_active();
    rig_write(m, ram, "x", 1, 0);
    rig_write(m, ram, "y", 1, WIRE_STRIPE_SIZE);
    waiter = (struct waiter){0};
    worker_start(&waiter.worker, command, &waiter);
}

/* The command fails because of what has stalled, which the sentence names. */
static void ends_stalled(const char *what)
{
    /* What the source says at the end is not read: it is closed, and sending fails. */
    while (!atomic_load(&waiter.worker.done))
        tell_progress();
    worker_join(&waiter.worker);
    cr_expect(lt(int, waiter.ret, 0));
    cr_expect(eq(int, (int)waiter.err.cause, CAUSE_TIMEOUT), "%s", waiter.err.message);
    cr_expect(eq(int, strncmp(waiter.err.message, what, strlen(what)), 0), "%s", waiter.err.message);
    cr_expect(eq(int, (int)m->state, STATE_FAILED));
    end();
}

Test(outgoing, stalled_channel_ends_a_sync)
{
    wait_for_two_packets(sync_all);
    report.applied[0] = 1;
    ends_stalled("channel 1 has stalled");
}

Test(outgoing, stalled_channel_ends_complete)
{
    wait_for_two_packets(complete);
    report.applied[1] = 1;
    ends_stalled("channel 0 has stalled");
}

/* Also when nobody has said anything of channels. */
Test(outgoing, destination_that_tells_nothing)
{
    wait_for_two_packets(sync_all);
    while (!atomic_load(&waiter.worker.done)) {
        struct pollfd nothing = {.fd = -1};
        peer_send(fake.main, WIRE_PING, 0, NULL, 0);
        poll(&nothing, 1, 25);
    }
    ends_stalled("channel 0 has stalled");
}

Test(outgoing, destination_that_has_all_and_does_not_answer)
{
    wait_for_two_packets(sync_all);
    report.applied[0] = report.applied[1] = 1;
    ends_stalled("the destination is there, but has not answered");
}

Test(outgoing, digest_that_stands_still)
{
    wait_for_two_packets(digest);
    report.applied[0] = report.applied[1] = 1;
    ends_stalled("the destination is there, but has not answered");
}

/* One byte, or one hole, now and then is enough, and nothing that is not owed is awaited. */
Test(outgoing, slow_channel_is_waited_for)
{
    unsigned rounds = 0;
    uint64_t id;

    wait_for_two_packets(sync_all);
    await_message(WIRE_SYNC, &id);
    for (int64_t end_ms = clock_ms() + 4 * SHORT_MS; clock_ms() < end_ms;) {
        report.received[rounds++ % 2]++;
        tell_progress();
    }
    report.applied[0] = 1;
    for (int64_t end_ms = clock_ms() + 4 * SHORT_MS; clock_ms() < end_ms;) {
        report.work++;
        tell_progress();
    }
    cr_expect(not(atomic_load(&waiter.worker.done)), "%s", waiter.err.message);
    report.applied[1] = 1;
    say(WIRE_SYNC_ACK, id);
    worker_join(&waiter.worker);
    cr_expect(zero(int, waiter.ret), "%s", waiter.err.message);
    for (int64_t end_ms = clock_ms() + 4 * SHORT_MS; clock_ms() < end_ms;)
        tell_progress();
    cr_expect(eq(int, (int)m->state, STATE_ACTIVE), "%s", m->failure.message);
    end();
}

/*
 * The last step. The connection is lost after `commit`: the source asks once more, and believes the answer.
 */

static void run_to_commit(void)
{
    uint64_t id;

    become_active();
    waiter = (struct waiter){0};
    worker_start(&waiter.worker, complete, &waiter);
    await_message(WIRE_COMPLETE, &id);
    say(WIRE_PREPARED, id);
    await_message(WIRE_COMMIT, &id);
}

static void answer_question(enum wire_outcome outcome)
{
    struct hello hello;

    fake_hang_up(&fake);
    fake.reply.outcome = outcome;
    struct transport *t = fake_answer(&fake, &hello);
    cr_expect(eq(int, (int)hello.kind, WIRE_HELLO_QUERY));
    cr_expect(zero(int, memcmp(hello.session, fake.hello.session, 16)));
    transport_close(t);
    worker_join(&waiter.worker);
}

Test(outgoing, lost_after_commit_and_completed)
{
    run_to_commit();
    answer_question(WIRE_OUTCOME_COMPLETED);
    cr_expect(zero(int, waiter.ret), "%s", waiter.err.message);
    cr_expect(eq(int, (int)m->state, STATE_COMPLETED));
    end();
}

Test(outgoing, lost_after_commit_and_failed)
{
    run_to_commit();
    answer_question(WIRE_OUTCOME_FAILED);
    cr_expect(lt(int, waiter.ret, 0));
    cr_expect(eq(int, (int)waiter.err.cause, CAUSE_RESET), "%s", waiter.err.message);
    cr_expect(eq(int, (int)m->state, STATE_FAILED));
    end();
}

Test(outgoing, lost_after_commit_and_forgotten)
{
    run_to_commit();
    answer_question(WIRE_OUTCOME_UNKNOWN);
    cr_expect(lt(int, waiter.ret, 0));
    cr_expect(eq(int, (int)m->state, STATE_FAILED));
    cr_expect(not(zero(ptr, strstr(waiter.err.message, "look there"))), "%s", waiter.err.message);
    end();
}

Test(outgoing, lost_after_commit_and_gone)
{
    run_to_commit();
    transport_listener_close(fake.listener);
    fake.listener = NULL;
    fake_hang_up(&fake);
    worker_join(&waiter.worker);
    cr_expect(lt(int, waiter.ret, 0));
    cr_expect(eq(int, (int)m->state, STATE_FAILED));
    cr_expect(not(zero(ptr, strstr(waiter.err.message, "look there"))), "%s", waiter.err.message);
    end();
}

/* The peer gives up after the commit: it says so itself, and need not be asked. */
Test(outgoing, given_up_after_commit)
{
    run_to_commit();
    abort_with(CAUSE_NO_SPACE);
    worker_join(&waiter.worker);
    cr_expect(lt(int, waiter.ret, 0));
    cr_expect(eq(int, (int)waiter.err.cause, CAUSE_NO_SPACE), "%s", waiter.err.message);
    cr_expect(eq(int, (int)m->state, STATE_FAILED));
    end();
}

Test(outgoing, too_late_to_cancel)
{
    uint64_t id;
    struct error err;

    become_active();
    worker_start(&waiter.worker, complete, &waiter);
    await_message(WIRE_COMPLETE, &id);
    say(WIRE_PREPARED, id);
    await_message(WIRE_COMMIT, &id);
    CHECK_FAILS(migration_cancel(m, &err), CAUSE_STATE);
    say(WIRE_COMMITTED, id);
    worker_join(&waiter.worker);
    cr_expect(zero(int, waiter.ret), "%s", waiter.err.message);
    CHECK_FAILS(migration_cancel(m, &err), CAUSE_STATE);
    end();
}

/* A `prepared` for something else is no `prepared`. */
Test(outgoing, prepared_for_another_manifest)
{
    uint64_t id;

    become_active();
    worker_start(&waiter.worker, complete, &waiter);
    await_message(WIRE_COMPLETE, &id);
    say(WIRE_PREPARED, id + 1);
    worker_await_sleep(&waiter.worker);
    cr_expect(eq(int, (int)m->state, STATE_COMPLETING));
    say(WIRE_PREPARED, id);
    await_message(WIRE_COMMIT, &id);
    say(WIRE_COMMITTED, id);
    worker_join(&waiter.worker);
    cr_expect(zero(int, waiter.ret), "%s", waiter.err.message);
    end();
}

/* An answer to a question that nobody waits for any more is thrown away, and the next one is asked. */
Test(outgoing, late_digest)
{
    uint64_t id;

    become_active();
    waiter = (struct waiter){0};
    worker_start(&waiter.worker, digest, &waiter);
    await_message(WIRE_DIGEST, &id);
    atomic_store(&waiter.interrupt.hit, true);
    migration_kick(m);
    worker_join(&waiter.worker);
    cr_expect(eq(int, (int)waiter.err.cause, CAUSE_INTERRUPTED), "%s", waiter.err.message);
    waiter = (struct waiter){0};
    worker_start(&waiter.worker, digest, &waiter);
    worker_await_sleep(&waiter.worker);
    memset(body_buf, 0, 4 + DIGEST_SIZE);
    peer_send(fake.main, WIRE_DIGEST_REPLY, id, body_buf, 4 + DIGEST_SIZE);
    await_message(WIRE_DIGEST, &id);
    memset(body_buf, 0, 4 + DIGEST_SIZE);
    peer_send(fake.main, WIRE_DIGEST_REPLY, id, body_buf, 4 + DIGEST_SIZE);
    worker_join(&waiter.worker);
    cr_expect(zero(int, waiter.ret), "%s", waiter.err.message);
    end();
}

/* Nothing goes on the wire for a flush, and nothing for a second one. */
Test(outgoing, flush_is_local)
{
    struct error err;

    m->settings.timeout_ms = 1 << 30; /* no heartbeat */
    fake.reply.timeout_ms = 1 << 30;
    become_active();
    rig_write(m, ram, "hello", 5, 0);
    uint64_t main_bytes = outgoing_wire_bytes(m, -1), data_bytes = outgoing_wire_bytes(m, 0);
    CHECK_OK(outgoing_flush(m, NULL, NULL, &err));
    CHECK_OK(outgoing_flush(m, ram, NULL, &err));
    cr_expect(eq(u64, outgoing_wire_bytes(m, -1), main_bytes));
    cr_expect(eq(u64, outgoing_wire_bytes(m, 0), data_bytes));
    cr_expect(eq(u64, data_bytes, sizeof(struct wire_packet) + 5));
    end();
}

/* The limits of the welcome are kept here already: a write past them is refused to the writer, and harms nothing. */
Test(outgoing, limits_of_the_destination)
{
    struct sender_write write;
    struct file *dev;
    struct error err;

    fake.reply.max_ram = 100;
    fake.reply.max_device = 50;
    fake.reply.max_devices = 1;
    dev = rig_device(m, "dev");
    become_active();
    CHECK_FAILS(outgoing_write_begin(m, ram, "x", 1, 100, NULL, &write, &err), CAUSE_QUOTA);
    CHECK_FAILS(outgoing_write_begin(m, dev, "x", 1, 50, NULL, &write, &err), CAUSE_QUOTA);
    CHECK_FAILS(outgoing_truncate(m, dev, 51, NULL, &err), CAUSE_QUOTA);
    CHECK_FAILS(outgoing_create_device(m, "second", false, NULL, &dev, &err), CAUSE_QUOTA);
    CHECK_FAILS(outgoing_write_begin(m, ram, "x", 1, WIRE_OFFSET_MAX, NULL, &write, &err), CAUSE_TOO_BIG);
    CHECK_FAILS(outgoing_write_begin(m, ram, "x", 1, UINT64_MAX, NULL, &write, &err), CAUSE_TOO_BIG);
    cr_expect(eq(int, (int)m->state, STATE_ACTIVE));
    rig_write(m, ram, "x", 1, 99);
    end();
}

Test(outgoing, declared_sizes)
{
    struct sender_write write;
    struct error err;
    struct hello hello;

    CHECK_OK(outgoing_truncate(m, ram, 1000, NULL, &err));
    fake.reply.max_ram = 999;
    start_begin();
    fake.main = fake_answer(&fake, &fake.hello);
    for (unsigned c = 0; c < m->settings.channels; c++, fake.channels++)
        fake.data[c] = fake_answer(&fake, &hello);
    start_fails(CAUSE_QUOTA);
    fake_hang_up(&fake);
    fake.reply.max_ram = 5000;
    become_active();
    CHECK_FAILS(outgoing_write_begin(m, ram, "xx", 2, 999, NULL, &write, &err), CAUSE_TOO_BIG);
    CHECK_FAILS(outgoing_truncate(m, ram, 1001, NULL, &err), CAUSE_TOO_BIG);
    CHECK_OK(outgoing_truncate(m, ram, 500, NULL, &err));
    rig_write(m, ram, "x", 1, 999);
    end();
}

/*
 * Verifying
 */

#define VERIFIED_SIZE (2 * (size_t)WIRE_STRIPE_SIZE + 5000)

static char *verified; /* the RAM's file, mapped */
static int verified_fd;

/* Active, by reference, with `verify`; and `complete` has come so far that the destination is asked. @id: of the question */
static void begin_to_verify(uint64_t *id)
{
    struct error err = {0};

    verified_fd = memfd_create("ram", 0);
    cr_assert(zero(int, ftruncate(verified_fd, (off_t)VERIFIED_SIZE)));
    verified = mmap(NULL, VERIFIED_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, verified_fd, 0);
    cr_assert(ne(ptr, (void *)verified, MAP_FAILED));
    memset(verified, 1, WIRE_STRIPE_SIZE);
    memset(verified + 2 * WIRE_STRIPE_SIZE, 2, 5000);
    m->settings.verify = true;
    struct reference *ref = reference_new(dup(verified_fd), "fd:7", &err);
    cr_assert(not(zero(ptr, ref)), "%s", err.message);
    CHECK_OK(outgoing_set_reference(m, ref, NULL, &err));
    become_active();
    cr_expect(not(m->settings.checksum), "the digests tell");
    waiter = (struct waiter){0};
    worker_start(&waiter.worker, complete, &waiter);
    await_message(WIRE_COMPLETE, id);
    say(WIRE_PREPARED, *id);
    await_message(WIRE_VERIFY, id);
    cr_expect(eq(int, (int)m->state, STATE_COMPLETING));
}

/* @wrong: the piece whose digest is another one; -1: none */
static void answer_verify(uint64_t id, int wrong)
{
    struct wire_writer w = {body_buf, body_buf, body_buf + sizeof(body_buf)};

    wire_write_u32(&w, CAUSE_NONE);
    for (int i = 0; i < 3; i++) {
        XXH128_canonical_t canonical;
        size_t at = (size_t)i * WIRE_STRIPE_SIZE, len = i < 2 ? WIRE_STRIPE_SIZE : 5000;
        XXH128_canonicalFromHash(&canonical, XXH3_128bits(verified + at, len));
        canonical.digest[15] ^= i == wrong;
        memcpy(w.p, canonical.digest, DIGEST_SIZE);
        w.p += DIGEST_SIZE;
    }
    peer_send(fake.main, WIRE_VERIFY_REPLY, id, body_buf, wire_written(&w));
}

static void end_verified(void)
{
    end();
    munmap(verified, VERIFIED_SIZE);
    close(verified_fd);
}

static void verify_fails(enum cause cause, const char *says)
{
    worker_join(&waiter.worker);
    cr_expect(lt(int, waiter.ret, 0));
    cr_expect(eq(int, (int)waiter.err.cause, (int)cause), "%s", waiter.err.message);
    cr_expect(not(zero(ptr, strstr(waiter.err.message, says))), "%s", waiter.err.message);
    cr_expect(eq(int, (int)m->state, STATE_FAILED));
    end_verified();
}

Test(outgoing, verify)
{
    uint64_t id;

    begin_to_verify(&id);
    answer_verify(id, -1);
    await_message(WIRE_COMMIT, &id);
    cr_expect(eq(u64, outgoing_verified(m), VERIFIED_SIZE));
    say(WIRE_COMMITTED, id);
    worker_join(&waiter.worker);
    cr_expect(zero(int, waiter.ret), "%s", waiter.err.message);
    end_verified();
}

Test(outgoing, verify_finds_a_difference)
{
    uint64_t id;

    begin_to_verify(&id);
    answer_verify(id, 2);
    verify_fails(CAUSE_MISMATCH, "MiB at offset 2097152");
}

/* Once the destination has been told, it fails for the same reason. */
Test(outgoing, verify_tells_the_destination)
{
    struct message message;
    uint64_t id;

    begin_to_verify(&id);
    answer_verify(id, 0);
    do
        cr_assert(zero(int, peer_receive(fake.main, &message, body_buf)));
    while (message.type != WIRE_ABORT);
    struct wire_reader r = {.p = body_buf, .left = message.length};
    cr_expect(eq(u32, wire_read_u32(&r), CAUSE_MISMATCH));
    verify_fails(CAUSE_MISMATCH, "'ram' is not the same");
}

Test(outgoing, verify_is_interrupted)
{
    uint64_t id, again;

    begin_to_verify(&id);
    worker_await_sleep(&waiter.worker);
    atomic_store(&waiter.interrupt.hit, true);
    migration_kick(m);
    worker_join(&waiter.worker);
    cr_expect(eq(int, (int)waiter.err.cause, CAUSE_INTERRUPTED), "%s", waiter.err.message);
    cr_expect(eq(int, (int)m->state, STATE_ACTIVE));
    /* And once more. The destination answers one question at a time. */
    waiter = (struct waiter){0};
    worker_start(&waiter.worker, complete, &waiter);
    await_message(WIRE_COMPLETE, &again);
    say(WIRE_PREPARED, again);
    answer_verify(id, 0);
    await_message(WIRE_VERIFY, &id);
    answer_verify(id, -1);
    await_message(WIRE_COMMIT, &id);
    cr_expect(eq(u64, id, again));
    say(WIRE_COMMITTED, id);
    worker_join(&waiter.worker);
    cr_expect(zero(int, waiter.ret), "%s", waiter.err.message);
    end_verified();
}

Test(outgoing, verify_is_cancelled)
{
    struct error err;
    uint64_t id;

    begin_to_verify(&id);
    worker_await_sleep(&waiter.worker);
    CHECK_OK(migration_cancel(m, &err));
    worker_join(&waiter.worker);
    cr_expect(eq(int, (int)waiter.err.cause, CAUSE_CANCELLED), "%s", waiter.err.message);
    end_verified();
}

Test(outgoing, verify_without_a_peer)
{
    uint64_t id;

    begin_to_verify(&id);
    fake_hang_up(&fake);
    verify_fails(CAUSE_RESET, "");
}

Test(outgoing, verify_what_cannot_be_read)
{
    struct wire_writer w = {body_buf, body_buf, body_buf + sizeof(body_buf)};
    uint64_t id;

    begin_to_verify(&id);
    wire_write_u32(&w, CAUSE_IO);
    peer_send(fake.main, WIRE_VERIFY_REPLY, id, body_buf, wire_written(&w));
    verify_fails(CAUSE_IO, "the destination cannot read 'ram'");
}

/* What the destination says is not this side's user's doing. */
Test(outgoing, verify_is_not_interrupted_by_the_peer)
{
    struct wire_writer w = {body_buf, body_buf, body_buf + sizeof(body_buf)};
    uint64_t id;

    begin_to_verify(&id);
    wire_write_u32(&w, CAUSE_INTERRUPTED);
    peer_send(fake.main, WIRE_VERIFY_REPLY, id, body_buf, wire_written(&w));
    verify_fails(CAUSE_PEER, "the destination cannot read 'ram'");
}

/* Too many digests, or of something else. */
Test(outgoing, verify_with_wrong_answers)
{
    uint64_t id;

    begin_to_verify(&id);
    memset(body_buf, 0, 4 + 4 * DIGEST_SIZE);
    peer_send(fake.main, WIRE_VERIFY_REPLY, id, body_buf, 4 + 4 * DIGEST_SIZE);
    verify_fails(CAUSE_PROTOCOL, "nobody asked for");
}

Test(outgoing, verify_with_another_answer)
{
    uint64_t id;

    begin_to_verify(&id);
    memset(body_buf, 0, 4 + DIGEST_SIZE);
    peer_send(fake.main, WIRE_DIGEST_REPLY, id, body_buf, 4 + DIGEST_SIZE);
    verify_fails(CAUSE_PROTOCOL, "nobody asked for");
}

/* The file becomes shorter when all of it has been sent. */
Test(outgoing, verify_of_a_shorter_file)
{
    uint64_t id;

    begin_to_verify(&id);
    atomic_store(&waiter.interrupt.hit, true);
    migration_kick(m);
    worker_join(&waiter.worker);
    cr_assert(zero(int, ftruncate(verified_fd, 5)));
    waiter = (struct waiter){0};
    worker_start(&waiter.worker, complete, &waiter);
    memset(body_buf, 0, 4 + 3 * DIGEST_SIZE);
    peer_send(fake.main, WIRE_VERIFY_REPLY, id, body_buf, 4 + 3 * DIGEST_SIZE);
    await_message(WIRE_COMPLETE, &id);
    say(WIRE_PREPARED, id);
    await_message(WIRE_VERIFY, &id);
    verify_fails(CAUSE_IO, "has become shorter");
}

/* A destination that is there, and does nothing. */
Test(outgoing, verify_that_stalls)
{
    uint64_t id;

    m->settings.timeout_ms = fake.reply.timeout_ms = SHORT_MS;
    begin_to_verify(&id);
    while (!atomic_load(&waiter.worker.done))
        tell_progress();
    verify_fails(CAUSE_TIMEOUT, "has not answered");
}

/* What comes through FUSE is verified by its checksums. */
Test(outgoing, verify_without_a_reference)
{
    m->settings.verify = true;
    m->settings.checksum_choice = CHOICE_OFF;
    become_active();
    cr_expect(m->settings.checksum);
    cr_expect(eq(u64, fake.hello.features & WIRE_FEATURE_CHECKSUM, WIRE_FEATURE_CHECKSUM));
    end();
}

/*
 * Connections that are made again
 */

static void become_active_for(uint32_t resume_ms)
{
    m->settings.resume_ms = resume_ms;
    become_active();
}

/* The main channel comes once more; the destination has received so many messages. */
static void answer_main_again(uint64_t received)
{
    struct hello hello;

    fake.reply.received = received;
    struct transport *t = fake_answer(&fake, &hello);
    cr_expect(eq(int, (int)hello.kind, WIRE_HELLO_MAIN_AGAIN));
    cr_expect(zero(int, memcmp(hello.session, fake.hello.session, 16)));
    transport_close(fake.main);
    fake.main = t;
}

static void lose_main(void)
{
    transport_close(fake.main);
    fake.main = NULL;
}

/* What the destination has not received is said again, and what waits for an answer gets it. */
Test(outgoing, main_channel_made_again)
{
    uint64_t id, again;

    become_active_for(60000);
    waiter = (struct waiter){0};
    worker_start(&waiter.worker, sync_all, &waiter);
    await_message(WIRE_SYNC, &id);
    lose_main();
    answer_main_again(1); /* the announcement of the RAM */
    await_message(WIRE_SYNC, &again);
    cr_expect(eq(u64, again, id));
    cr_expect(eq(u64, m->pauses, 1));
    say(WIRE_SYNC_ACK, id);
    worker_join(&waiter.worker);
    cr_expect(zero(int, waiter.ret), "%s", waiter.err.message);
    cr_expect(not(migration_is_paused(m)));
    end();
}

static void refuse_main_again(enum cause cause, const char *text)
{
    fake.reply.cause = cause;
    strcpy(fake.reply.text, text);
    answer_main_again(0);
    fake.reply.cause = CAUSE_NONE;
    *fake.reply.text = '\0';
}

Test(outgoing, main_channel_is_refused)
{
    become_active_for(60000);
    lose_main();
    refuse_main_again(CAUSE_NOT_FOUND, "started again since");
    cr_expect(eq(int, (int)rig_await_end(m), STATE_FAILED));
    cr_expect(eq(str, m->failure.message,
                 "the other side has closed the connection: the destination refuses: started again since"));
    cr_expect(not(migration_is_paused(m)));
    end();
}

/* What makes no sense does so over any connection. */
Test(outgoing, nonsense_is_not_made_again)
{
    become_active_for(60000);
    say(WIRE_COMMIT, 1);
    cr_expect(eq(int, (int)rig_await_end(m), STATE_FAILED));
    cr_expect(eq(int, (int)m->failure.cause, CAUSE_PROTOCOL), "%s", m->failure.message);
    cr_expect(zero(u64, m->pauses));
    end();
}

Test(outgoing, cancelled_while_it_is_paused)
{
    struct error err;

    become_active_for(60000);
    lose_main();
    while (!migration_is_paused(m))
        sched_yield();
    CHECK_OK(migration_cancel(m, &err));
    cr_expect(eq(int, (int)rig_await_end(m), STATE_CANCELLED));
    cr_expect(not(migration_is_paused(m)));
    struct transport *t = NULL;
    while (transport_accept(fake.listener, &t) == 0)
        transport_close(t);
    end();
}

/* The main channel comes once more, with COMMIT, and completes. */
static void completes_again(void)
{
    uint64_t id;

    answer_main_again(2); /* the announcement, and COMPLETE */
    await_message(WIRE_COMMIT, &id);
    say(WIRE_COMMITTED, id);
    worker_join(&waiter.worker);
    cr_expect(zero(int, waiter.ret), "%s", waiter.err.message);
    cr_expect(eq(int, (int)m->state, STATE_COMPLETED));
    end();
}

/* After the commit: it hears the answer over another connection, */
Test(outgoing, made_again_after_commit)
{
    m->settings.resume_ms = 60000;
    run_to_commit();
    lose_main();
    completes_again();
}

/* for which it has its time once more, however long that has taken, */
Test(outgoing, made_again_long_after_commit)
{
    struct transport *t = NULL;

    m->settings.resume_ms = 60000;
    m->settings.timeout_ms = 1000;
    run_to_commit();
    lose_main();
    for (int64_t until = clock_ms() + 1200; clock_ms() < until; sched_yield()) {
        if (transport_accept(fake.listener, &t) == 0)
            transport_close(t);
    }
    completes_again();
}

/* or asks, where the destination has nothing more to say. */
Test(outgoing, refused_after_commit)
{
    m->settings.resume_ms = 60000;
    run_to_commit();
    lose_main();
    refuse_main_again(CAUSE_STATE, "it was completed");
    answer_question(WIRE_OUTCOME_COMPLETED);
    cr_expect(zero(int, waiter.ret), "%s", waiter.err.message);
    cr_expect(eq(int, (int)m->state, STATE_COMPLETED));
    end();
}

/* What has stalled may do so for its connections: they are made again, and then it is the end. */
Test(outgoing, stalled_channel_is_shaken)
{
    unsigned made[2] = {0};

    m->settings.resume_ms = 60000;
    wait_for_two_packets(sync_all);
    report.applied[0] = 1;
    while (!atomic_load(&waiter.worker.done)) {
        struct pollfd fd = {.fd = transport_listener_pollfd(fake.listener), .events = POLLIN};
        if (poll(&fd, 1, 0) == 1) {
            struct hello hello;
            struct transport *t = fake_answer(&fake, &hello);
            cr_assert(eq(int, (int)hello.kind, WIRE_HELLO_DATA_AGAIN));
            transport_close(fake.data[hello.channel]);
            fake.data[hello.channel] = t;
            made[hello.channel]++;
        }
        tell_progress();
    }
    cr_expect(eq(uint, made[0], 1));
    cr_expect(eq(uint, made[1], 1));
    ends_stalled("channel 1 has stalled");
}
