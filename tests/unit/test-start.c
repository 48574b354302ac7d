/* SPDX-License-Identifier: Apache-2.0 */
/* `start` with a role that the test plays, and so it does the destination. */
#include "start.h"
#include "bed.h"
#include "check.h"
#include "peer.h"
#include "scratch.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

static struct bed bed;
static struct migration *m;
static struct streams streams;
static struct start start;
static struct file *ram;
static struct fake fake;
static char address[128];
static atomic_uint forgotten, threads;
static atomic_int launched; /* what start_await_launch() has said; -1: nothing yet */

static void forget(void *role)
{
    cr_expect(eq(ptr, role, &bed));
    cr_expect(eq(int, (int)m->state == STATE_SETUP, 0), "before anything else");
    atomic_fetch_add(&forgotten, 1);
}

static int handle(void *arg, const struct message *message, struct wire_reader *body, struct error *err)
{
    (void)arg;
    cr_expect(eq(int, (int)message->type, WIRE_FILE_REPLY));
    return streams_on_reply(&streams, body, err);
}

static int step(void *role, struct connection *conn, int64_t deadline_ms, struct error *err)
{
    cr_expect(eq(ptr, role, &bed));
    return session_step(&conn->main, deadline_ms, handle, NULL, err);
}

static void *thread(void *arg)
{
    struct migration *mine = arg;

    atomic_fetch_add(&threads, 1);
    atomic_store(&launched, start_await_launch(&start));
    migration_put(mine);
    return NULL;
}

static const struct start_operations operations = {.forget = forget, .step = step, .thread = thread};

static void set_up(void)
{
    struct error err;

    scratch_make();
    bed_init(&bed);
    m = bed.m;
    ram = m->files[WIRE_RAM];
    streams_init(&streams, &bed.source);
    start_init(&start, &bed.source, &streams, &operations, &bed);
    snprintf(address, sizeof(address), "unix:%s/socket", scratch);
    fake_listen(&fake, address);
    CHECK_OK(uri_list_parse(address, &m->settings.uris, &err));
    atomic_store(&launched, -1);
}

static void end(void)
{
    struct connection *conn = source_connection(&bed.source);

    fake_close(&fake);
    while (atomic_load(&m->refs) > 1)
        sched_yield();
    if (conn)
        connection_break(conn);
    streams_fini(&streams);
    bed_fini(&bed);
}

TestSuite(start, .init = set_up, .fini = scratch_remove);

static struct bed_call starter;

static void work(void *arg)
{
    struct bed_call *s = arg;

    s->ret = start_run(&start, &s->interrupt, &s->err);
}

static void begin(void)
{
    starter = (struct bed_call){0};
    worker_start(&starter.worker, work, &starter);
}

static void works(void)
{
    bed_works(&starter);
    cr_expect(eq(int, (int)m->state, STATE_ACTIVE));
}

static void fails(enum cause cause, const char *sentence)
{
    bed_fails(&starter, cause, sentence);
    cr_expect(eq(int, (int)m->state, STATE_FAILED));
    cr_expect(zero(ptr, bed.source.opening));
    cr_expect(not(bed.source.starting));
    cr_expect(zero(ptr, (void *)(uintptr_t)bed.source.starter));
    cr_expect(eq(int, bed.source.cancel_fd, -1));
}

static void refused(enum cause cause, const char *sentence)
{
    struct error err;

    CHECK_FAILS(start_run(&start, NULL, &err), cause);
    cr_expect(eq(str, err.message, (char *)sentence));
    cr_expect(zero(uint, atomic_load(&forgotten)));
}

Test(start, not_allowed)
{
    m->removed = true;
    refused(CAUSE_NOT_FOUND, "the migration is gone");
    m->removed = false;
    m->settings.channels = m->settings.device_channels = 3;
    refused(CAUSE_SYNTAX, "3 of 3 channels for devices leave none for RAM");
    m->settings.device_channels = 0;
    m->settings.splice = CHOICE_ON;
    refused(CAUSE_UNSUPPORTED,
            "splice is on, but this daemon cannot have pipes that are large enough (fs.pipe-max-size)");
    m->settings.splice = CHOICE_AUTO;
    m->settings.uris.count = 0;
    refused(CAUSE_SYNTAX, "where to? Write a URI to 'uri' first");
    m->was_active = true;
    bed_move(&bed, STATE_SETUP);
    refused(CAUSE_STATE, "the migration has been started already");
    bed_fail(&bed, CAUSE_CANCELLED, "x");
    refused(CAUSE_STATE, "the migration has been cancelled: rmdir it and make it again");
    bed_move(&bed, STATE_SETUP);
    bed_fail(&bed, CAUSE_RESET, "x");
    refused(CAUSE_STATE, "the migration has failed: rmdir it and make it again");
    m->was_active = false;
    host_close(&bed.host);
    refused(CAUSE_SHUTDOWN, "the daemon is going away");
    cr_expect(eq(int, bed.source.cancel_fd, -1));
    end();
}

Test(start, becomes_active)
{
    struct file *device = bed_device(&bed, "x");

    bed.source.doom.cause = CAUSE_RESET;
    atomic_store(&ram->size, 12345);
    unsigned announced = bed.announced;
    begin();
    fake_accept_all(&fake, 2);
    works();
    cr_expect(eq(uint, atomic_load(&forgotten), 1));
    cr_expect(eq(uint, bed.announced, announced + 2), "setup and active");
    cr_expect(zero(int, (int)bed.source.doom.cause));
    cr_expect(eq(int, (int)m->role, ROLE_OUTGOING));
    cr_expect(eq(uint, source_connection(&bed.source)->channel_count, 2));
    cr_expect(zero(ptr, bed.source.opening));
    cr_expect(zero(ptr, (void *)(uintptr_t)bed.source.starter));
    cr_expect(not(bed.source.starting));
    cr_expect(eq(uint, device->channels, 2));
    cr_expect(device->announced_open);
    while (atomic_load(&launched) < 0)
        sched_yield();
    cr_expect(eq(uint, atomic_load(&threads), 1));
    cr_expect(eq(int, atomic_load(&launched), 1));
    end();
}

/* What `auto` comes to. */
Test(start, checksums)
{
    static const struct {
        enum choice choice;
        bool verify, compress, zero_pages, by_reference, want;
    } cases[] = {
        {CHOICE_AUTO, false, false, true, false, true},   {CHOICE_AUTO, false, false, true, true, false},
        {CHOICE_AUTO, false, false, false, false, false}, {CHOICE_AUTO, false, true, false, false, true},
        {CHOICE_AUTO, false, true, false, true, true},    {CHOICE_OFF, false, true, true, false, false},
        {CHOICE_OFF, true, false, false, false, true},    {CHOICE_OFF, true, false, false, true, false},
        {CHOICE_ON, false, false, false, false, true},    {CHOICE_ON, false, false, false, true, true},
        {CHOICE_AUTO, true, false, false, true, false},   {CHOICE_AUTO, true, false, false, false, true},
    };
    struct error err;

    transport_listener_close(fake.listener);
    fake.listener = NULL;
    atomic_store(&ram->size, 4096);
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        struct reference *ref = NULL;
        if (cases[i].by_reference) {
            int fd = memfd_create("ram", 0);
            cr_assert(zero(int, ftruncate(fd, 4096)));
            ref = reference_new(fd, "fd:7", &err);
        }
        bed.source.reference = ref;
        m->settings.checksum_choice = cases[i].choice;
        m->settings.verify = cases[i].verify;
        m->settings.compress = cases[i].compress;
        m->settings.zero_pages = cases[i].zero_pages;
        CHECK_FAILS(start_run(&start, NULL, &err), CAUSE_REFUSED);
        cr_expect(eq(int, m->settings.checksum, cases[i].want), "%zu", i);
        bed.source.reference = NULL;
        reference_free(ref);
    }
    cr_expect(eq(uint, atomic_load(&forgotten), ARRAY_LENGTH(cases)));
    end();
}

/* Where the cards check each packet, and nothing can come to go another way. */
Test(start, checksums_by_rdma)
{
    static const struct {
        const char *uris;
        unsigned channels;
        bool fallback, compress, want;
    } cases[] = {
        {"rdma:127.0.0.1:1", 2, false, false, false},
        {"rdma:127.0.0.1:1 rdma:127.0.0.2:1", 2, false, false, false},
        {"rdma:127.0.0.1:1", 2, true, false, true},
        {"rdma:127.0.0.1:1", 2, false, true, true},
        {"rdma:127.0.0.1:1 tcp:127.0.0.1:2", 2, false, false, true},
        {"tcp:127.0.0.1:2 rdma:127.0.0.1:1", 2, false, false, true},
        {"rdma:127.0.0.1:1 tcp:127.0.0.1:2", 1, false, false, false},
    };
    struct error err;

    m->settings.zero_pages = true;
    m->settings.verify = false;
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        CHECK_OK(uri_list_parse(cases[i].uris, &m->settings.uris, &err));
        m->settings.channels = cases[i].channels;
        m->settings.fallback = cases[i].fallback;
        m->settings.compress = cases[i].compress;
        cr_expect(lt(int, start_run(&start, NULL, &err), 0));
        cr_expect(eq(int, m->settings.checksum, cases[i].want), "%zu", i);
    }
    end();
}

static bool splices(enum choice choice, bool compress, enum zerocopy_mode zero_copy)
{
    m->settings.splice = choice;
    m->settings.compress = compress;
    m->settings.zero_copy = zero_copy;
    begin();
    fake_accept_all(&fake, 1);
    works();
    struct connection *conn = atomic_exchange(&bed.source.connection, NULL);
    bool ret = conn->splices;
    fake_hang_up(&fake);
    while (atomic_load(&m->refs) > 1)
        sched_yield();
    connection_break(conn);
    connection_free(conn);
    bed_fail(&bed, CAUSE_RESET, "x");
    m->was_active = false;
    return ret;
}

Test(start, splicing)
{
    bed.host.splices = true;
    cr_expect(splices(CHOICE_ON, false, ZEROCOPY_OFF));
    cr_expect(not(splices(CHOICE_OFF, false, ZEROCOPY_OFF)));
    cr_expect(not(splices(CHOICE_ON, true, ZEROCOPY_OFF)));
    cr_expect(splices(CHOICE_ON, false, ZEROCOPY_AUTO));
    bed.host.splices = false;
    cr_expect(not(splices(CHOICE_AUTO, false, ZEROCOPY_OFF)));
    end();
}

Test(start, what_the_destination_refuses)
{
    atomic_store(&ram->size, 12345);
    bed_device(&bed, "a");
    bed_device(&bed, "b");
    begin();
    fake_accept_all(&fake, 2);
    fake_reply(&fake, CAUSE_NO_SPACE, "full");
    fails(CAUSE_NO_SPACE, "the destination refuses: full");
    fake_hang_up(&fake);
    fake.reply.max_devices = 1;
    begin();
    fake_accept_all(&fake, 2);
    fails(CAUSE_QUOTA, "the destination allows 1 devices");
    fake_hang_up(&fake);
    fake.reply.max_ram = 12344;
    begin();
    fake_accept_all(&fake, 0);
    fails(CAUSE_QUOTA, "'ram' would have 12345 bytes; the destination allows 12344");
    cr_expect(zero(uint, atomic_load(&threads)));
    end();
}

Test(start, interrupted_and_cancelled)
{
    begin();
    fake_accept_all(&fake, 0);
    worker_await_sleep(&starter.worker);
    atomic_store(&starter.interrupt.hit, true);
    pthread_mutex_lock(&m->lock);
    cr_expect(eq(ptr, (void *)(uintptr_t)bed.source.starter, &starter.interrupt));
    cr_expect(bed.source.starting);
    source_wake_reader(&bed.source);
    pthread_mutex_unlock(&m->lock);
    fails(CAUSE_INTERRUPTED, "interrupted");
    fake_hang_up(&fake);
    begin();
    fake_accept_all(&fake, 0);
    worker_await_sleep(&starter.worker);
    bed_fail(&bed, CAUSE_CANCELLED, "said so");
    pthread_mutex_lock(&m->lock);
    source_wake_reader(&bed.source);
    pthread_mutex_unlock(&m->lock);
    bed_fails(&starter, CAUSE_CANCELLED, "said so");
    cr_expect(eq(int, (int)m->state, STATE_CANCELLED));
    cr_expect(zero(ptr, bed.source.opening));
    end();
}

/* The destination takes the connection and does not say a word about the file. */
Test(start, no_answer)
{
    m->settings.timeout_ms = 300;
    begin();
    fake_accept_all(&fake, 0);
    worker_join(&starter.worker);
    cr_expect(eq(int, (int)starter.err.cause, CAUSE_TIMEOUT));
    cr_expect(eq(int, (int)m->state, STATE_FAILED));
    end();
}

/* What has to be kept cannot go without a copy, out of a pipe, or be placed. */
Test(start, resume_is_refused)
{
    struct error err;

    m->settings.resume_ms = 1000;
    bed.host.splices = true;
    m->settings.splice = CHOICE_ON;
    refused(CAUSE_UNSUPPORTED, "splice is on, but with resume what is sent has to be kept");
    m->settings.splice = CHOICE_AUTO;
    m->settings.zero_copy = ZEROCOPY_REQUIRE;
    refused(CAUSE_UNSUPPORTED, "zero-copy is required, but with resume what is sent has to be kept");
    m->settings.zero_copy = ZEROCOPY_AUTO;
    CHECK_OK(uri_list_parse("tcp:127.0.0.1:2 rdma:127.0.0.1:1", &m->settings.uris, &err));
    refused(CAUSE_UNSUPPORTED,
            "resume is not possible by RDMA: what a card has placed cannot be placed again");
    end();
}

/* Each channel has its listener, which ends with the connection, whether that has come to anything or not. */
Test(start, with_resume)
{
    for (int works_out = 0; works_out < 2; works_out++) {
        m->settings.resume_ms = 7000;
        begin();
        fake_accept_all(&fake, 0);
        cr_expect(eq(u32, fake.hello.resume_ms, 7000));
        cr_expect(ne(u64, fake.hello.features & WIRE_FEATURE_RESUME, 0));
        fake_reply(&fake, works_out ? CAUSE_NONE : CAUSE_NO_SPACE, works_out ? "" : "full");
        if (works_out) {
            works();
            cr_expect(eq(uint, bed.source.again.running, 2));
        } else {
            fails(CAUSE_NO_SPACE, "the destination refuses: full");
            cr_expect(zero(uint, bed.source.again.running));
            cr_expect(eq(int, bed.source.again.over_fd, -1));
            fake_hang_up(&fake);
        }
    }
    /* A connection that is lost, and made again, pauses the migration. */
    struct hello hello;
    transport_close(fake.data[1]);
    fake.data[1] = fake_answer(&fake, &hello);
    cr_expect(eq(int, (int)hello.kind, WIRE_HELLO_DATA_AGAIN));
    cr_expect(eq(uint, hello.channel, 1));
    pthread_mutex_lock(&m->lock);
    while (!m->pauses || m->lost)
        pthread_cond_wait(&m->changed, &m->lock);
    cr_expect(eq(u64, m->pauses, 1));
    pthread_mutex_unlock(&m->lock);
    while (atomic_load(&launched) < 0)
        sched_yield();
    again_stop(&bed.source.again);
    connection_break(source_connection(&bed.source));
    again_join(&bed.source.again);
    end();
}
