/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of the source have in common, and the file that its RAM comes from. */
#include "source.h"
#include "bed.h"
#include "check.h"
#include "clock.h"
#include "ram.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

static struct bed bed;
static struct migration *m;
static struct source *source;
static struct file *ram;
static const struct interrupt hit = {true};

static void set_up(void)
{
    bed_init(&bed);
    m = bed.m;
    source = &bed.source;
    ram = m->files[WIRE_RAM];
}

static void end(void)
{
    bed_fini(&bed);
}

TestSuite(source, .init = set_up);

static struct reference *new_reference(uint64_t size, const char *text)
{
    struct error err = {0};
    int fd = memfd_create("ram", 0);

    cr_assert(zero(int, ftruncate(fd, (off_t)size)));
    struct reference *ref = reference_new(fd, text, &err);
    cr_assert(ne(ptr, ref, NULL), "%s", err.message);
    return ref;
}

static bool is_readable(int fd)
{
    struct pollfd poller = {.fd = fd, .events = POLLIN};

    return poll(&poller, 1, 0) == 1;
}

static void doom(const char *sentence, int64_t delay_ms)
{
    struct error reason = {0};

    error_set(&reason, CAUSE_RESET, "%s", sentence);
    pthread_mutex_lock(&m->lock);
    source_doom(source, &reason, delay_ms);
    pthread_mutex_unlock(&m->lock);
}

/* The thread that reads is told of a doom, so that it waits no longer than that. */
static bool was_woken(void)
{
    eventfd_t n;

    return eventfd_read(bed.conn->main.wake_fd, &n) == 0;
}

Test(source, the_earliest_doom_stands)
{
    bed_activate(&bed);
    cr_expect(not(was_woken()));
    int64_t before = clock_ms();
    doom("in a while", 50000);
    int64_t after = clock_ms();
    cr_expect(was_woken());
    cr_expect(eq(str, source->doom.message, "in a while"));
    cr_expect(ge(i64, source->doom_at, before + 50000));
    cr_expect(le(i64, source->doom_at, after + 50000));
    doom("later", 90000);
    cr_expect(eq(str, source->doom.message, "in a while"));
    cr_expect(not(was_woken()));
    doom("now", 0);
    cr_expect(eq(str, source->doom.message, "now"));
    cr_expect(lt(i64, source->doom_at, before + 50000));
    cr_expect(was_woken());
    end();
}

Test(source, the_connection_that_is_opened_is_woken)
{
    bed_connect(&bed);
    pthread_mutex_lock(&m->lock);
    source_wake_reader(source);
    cr_expect(not(was_woken()));
    source->opening = bed.conn;
    source_wake_reader(source);
    cr_expect(was_woken());
    source->opening = NULL;
    pthread_mutex_unlock(&m->lock);
    end();
}

static void await_verdict(void *arg)
{
    struct bed_call *w = arg;

    w->ret = source_await_verdict(source, COMMAND_SYNC, &w->interrupt, &w->err);
}

static void await_starter(void *arg)
{
    struct bed_call *w = arg;

    pthread_mutex_lock(&m->lock);
    w->ret = source_await_starter(source, &w->interrupt, &w->err);
    pthread_mutex_unlock(&m->lock);
}

static void wait_begin(struct bed_call *w, void (*work)(void *arg))
{
    *w = (struct bed_call){0};
    worker_start(&w->worker, work, w);
    bed_waits(w);
}

static void is_interrupted(struct bed_call *w)
{
    bed_interrupt(&bed, w);
    bed_fails(w, CAUSE_INTERRUPTED, "interrupted");
}

Test(source, verdict)
{
    struct bed_call w;
    struct error err;

    bed_activate(&bed);
    CHECK_OK(source_await_verdict(source, COMMAND_SYNC, &hit, &err));
    doom("soon", 60000);
    wait_begin(&w, await_verdict);
    is_interrupted(&w);
    wait_begin(&w, await_verdict);
    bed_move(&bed, STATE_COMPLETING);
    worker_join(&w.worker);
    cr_expect(lt(int, w.ret, 0));
    cr_expect(eq(int, (int)w.err.cause, CAUSE_STATE));
    bed_move(&bed, STATE_ACTIVE);
    wait_begin(&w, await_verdict);
    bed_fail(&bed, CAUSE_RESET, "gone");
    worker_join(&w.worker);
    cr_expect(eq(str, w.err.message, "gone"));
    CHECK_FAILS(source_allows(source, COMMAND_SYNC, &err), CAUSE_RESET);
    end();
}

/* A `start` that was cancelled is on its way out. */
Test(source, starter_that_leaves)
{
    struct bed_call w;
    struct error err;

    pthread_mutex_lock(&m->lock);
    cr_expect(source_is_unstarted(source));
    CHECK_OK(source_settings_writable(source, NULL, &err));
    pthread_mutex_unlock(&m->lock);
    bed_connect(&bed);
    source->starting = true;
    pthread_mutex_lock(&m->lock);
    cr_expect(not(source_is_leaving(source)));
    cr_expect(not(source_is_unstarted(source)));
    CHECK_OK(source_await_starter(source, NULL, &err));
    CHECK_FAILS(source_settings_writable(source, NULL, &err), CAUSE_STATE);
    cr_expect(eq(str, err.message, "settings cannot be changed once the migration has started"));
    pthread_mutex_unlock(&m->lock);
    bed_fail(&bed, CAUSE_CANCELLED, "cancelled");
    pthread_mutex_lock(&m->lock);
    cr_expect(source_is_leaving(source));
    cr_expect(not(source_is_unstarted(source)));
    CHECK_FAILS(source_await_starter(source, &hit, &err), CAUSE_INTERRUPTED);
    CHECK_FAILS(source_settings_writable(source, &hit, &err), CAUSE_INTERRUPTED);
    pthread_mutex_unlock(&m->lock);
    wait_begin(&w, await_starter);
    is_interrupted(&w);
    wait_begin(&w, await_starter);
    pthread_mutex_lock(&m->lock);
    source->starting = false;
    pthread_mutex_unlock(&m->lock);
    bed_kick(&bed);
    worker_join(&w.worker);
    cr_expect(zero(int, w.ret));
    pthread_mutex_lock(&m->lock);
    cr_expect(source_is_unstarted(source), "it has sent nothing");
    CHECK_OK(source_settings_writable(source, &hit, &err));
    m->was_active = true;
    cr_expect(not(source_is_unstarted(source)));
    m->was_active = false;
    m->role = ROLE_INCOMING;
    cr_expect(not(source_is_unstarted(source)));
    CHECK_FAILS(source_settings_writable(source, NULL, &err), CAUSE_STATE);
    cr_expect(eq(str, err.message, "the settings of an incoming migration are its source's"));
    m->role = ROLE_OUTGOING;
    pthread_mutex_unlock(&m->lock);
    end();
}

Test(source, what_waits_for_the_start_gives_up)
{
    pthread_mutex_lock(&m->lock);
    cr_expect(eq(int, source->cancel_fd, -1));
    source_interrupt_start(source);
    source_close_cancel(source);
    source->cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int fd = source->cancel_fd;
    cr_expect(not(is_readable(fd)));
    source_interrupt_start(source);
    cr_expect(is_readable(fd));
    source_close_cancel(source);
    cr_expect(eq(int, source->cancel_fd, -1));
    cr_expect(eq(int, close(fd), -1), "it is closed");
    pthread_mutex_unlock(&m->lock);
    end();
}

Test(source, rules)
{
    bed_activate(&bed);
    struct file *device = bed_device(&bed, "x");
    m->settings.checksum = false;
    m->settings.zero_pages = true;
    bed.conn->copy_max = 1234;
    struct plan_rules rules = source_rules(source, bed.conn, ram);
    cr_expect(not(rules.checksum));
    cr_expect(not(rules.compress));
    cr_expect(rules.zero_pages);
    cr_expect(eq(u32, rules.copy_max, 1234));
    cr_expect(eq(int, (int)rules.large, PLAN_KEPT));
    rules = source_rules(source, bed.conn, device);
    cr_expect(rules.checksum);
    cr_expect(not(rules.zero_pages));
    m->settings.checksum = true;
    m->settings.zero_pages = false;
    bed.conn->compressor = compressor_new(1);
    rules = source_rules(source, bed.conn, ram);
    cr_expect(rules.checksum);
    cr_expect(rules.compress);
    cr_expect(not(rules.zero_pages));
    end();
}

/*
 * The file of the RAM
 */

Test(source, file_of_the_ram)
{
    struct error err;

    struct reference *ref = new_reference(10000, "fd:7");
    CHECK_FAILS(ram_check_file(source, ref, &err), CAUSE_SYNTAX);
    cr_expect(eq(str, err.message, "RAM of 0 bytes, and 'fd:7' has 10000"));
    atomic_store(&ram->size, 10000);
    CHECK_OK(ram_check_file(source, ref, &err));
    atomic_store(&ram->size, 10001);
    CHECK_FAILS(ram_check_file(source, ref, &err), CAUSE_SYNTAX);
    cr_expect(eq(str, err.message, "RAM of 10001 bytes, and 'fd:7' has 10000"));
    reference_free(ref);
    end();
}

static void text_is(const char *want)
{
    char text[100];

    ram_text(source, text, sizeof(text));
    cr_expect(eq(str, text, (char *)want));
}

/* Where no size was declared, the file's is; and the migration is outgoing then. */
Test(source, size_by_reference)
{
    struct error err;

    text_is("");
    cr_expect(zero(u64, ram_dirty_size(source)));
    CHECK_OK(ram_set_reference(source, NULL, NULL, &err));
    cr_expect(eq(int, (int)m->role, ROLE_NONE));
    cr_expect(not(source->sized_by_reference));
    CHECK_OK(ram_set_reference(source, new_reference(10000, "fd:7"), NULL, &err));
    text_is("fd:7");
    cr_expect(eq(int, (int)m->role, ROLE_OUTGOING));
    cr_expect(eq(u64, atomic_load(&ram->size), 10000));
    cr_expect(eq(u64, ram->declared, 10000));
    cr_expect(source->sized_by_reference);
    cr_expect(eq(u64, ram_dirty_size(source), 8));
    CHECK_OK(ram_set_reference(source, new_reference(20000, "fd:8"), NULL, &err));
    text_is("fd:8");
    cr_expect(eq(u64, ram->declared, 20000));
    CHECK_OK(ram_set_reference(source, NULL, NULL, &err));
    text_is("");
    cr_expect(zero(u64, ram->declared));
    cr_expect(zero(u64, atomic_load(&ram->size)));
    cr_expect(not(source->sized_by_reference));
    /* What was declared stays. */
    atomic_store(&ram->size, 5000);
    ram->declared = 5000;
    CHECK_OK(ram_set_reference(source, new_reference(10000, "fd:7"), NULL, &err));
    cr_expect(eq(u64, ram->declared, 5000));
    cr_expect(not(source->sized_by_reference));
    CHECK_OK(ram_set_reference(source, NULL, NULL, &err));
    cr_expect(eq(u64, ram->declared, 5000));
    end();
}

Test(source, size_of_a_bitmap)
{
    static const struct {
        uint64_t size, want;
    } sizes[] = {
        {1, 8}, {64 * 4096, 8}, {64 * 4096 + 1, 16}, {128 * 4096, 16}, {(1ull << 40) + 1, (1ull << 25) + 8}};
    struct error err;

    CHECK_OK(ram_set_reference(source, new_reference(10000, "fd:7"), NULL, &err));
    for (size_t i = 0; i < ARRAY_LENGTH(sizes); i++) {
        atomic_store(&ram->size, sizes[i].size);
        cr_expect(eq(u64, ram_dirty_size(source), sizes[i].want), "%zu", i);
    }
    end();
}

Test(source, reference_when_it_runs)
{
    struct error err;

    bed_activate(&bed);
    CHECK_FAILS(ram_set_reference(source, NULL, NULL, &err), CAUSE_STATE);
    cr_expect(eq(str, err.message, "the source of RAM cannot be changed any more"));
    CHECK_FAILS(ram_set_reference(source, new_reference(10000, "fd:7"), NULL, &err), CAUSE_SYNTAX);
    cr_expect(zero(ptr, source->reference));
    atomic_store(&ram->size, 10000);
    CHECK_OK(ram_set_reference(source, new_reference(10000, "fd:7"), NULL, &err));
    text_is("fd:7");
    cr_expect(eq(uint, source->reference->count, BED_CHANNELS), "it is started");
    CHECK_FAILS(ram_set_reference(source, new_reference(10000, "fd:8"), NULL, &err), CAUSE_STATE);
    text_is("fd:7");
    CHECK_FAILS(ram_set_reference(source, NULL, NULL, &err), CAUSE_STATE);
    bed_move(&bed, STATE_COMPLETING);
    CHECK_FAILS(ram_set_reference(source, NULL, NULL, &err), CAUSE_STATE);
    end();
}

/* This process writes to a copy of its own: nothing of that is in the file. */
Test(source, private_mapping)
{
    struct error err;

    struct reference *ref = new_reference(10000, "fd:7");
    CHECK_OK(ram_set_reference(source, ref, NULL, &err));
    ram_check_sharing(source, getpid());
    cr_expect(eq(str, m->warning, ""));
    void *copy = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, ref->fd, 0);
    cr_assert(ne(ptr, copy, MAP_FAILED));
    ram_check_sharing(source, getpid());
    char want[200];
    snprintf(want, sizeof(want),
             "process %d has the ram-source mapped privately: what it writes there is not in the file, and "
             "is not sent "
             "(share=off?)",
             (int)getpid());
    cr_expect(eq(str, m->warning, want));
    munmap(copy, 4096);
    ram_check_sharing(source, getpid());
    cr_expect(eq(str, m->warning, ""));
    end();
}
