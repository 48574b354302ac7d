/* SPDX-License-Identifier: Apache-2.0 */
/* RAM by reference: bitmaps, and who waits for what they ask for. */
#include "reference.h"
#include "blocked.h"
#include "check.h"
#include "cleanup.h"
#include "guard.h"
#include "peer.h"
#include "rig.h"
#include "scratch.h"
#include "tracking.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define PAGE WIRE_PAGE_SIZE

static struct rig rig;
static struct migration *m;
static struct reference *ref; /* of m; NULL until start() */
static char *memory;          /* the VMM's */
static uint64_t memory_size;
static int memory_fd;

static void set_up(void)
{
    char text[128];

    scratch_make();
    signal(SIGPIPE, SIG_IGN); /* as the daemon has it: splice(2) knows no MSG_NOSIGNAL */
    snprintf(text, sizeof(text), "unix:%s/socket", scratch);
    rig_init(&rig, text, NULL);
    memory_fd = memfd_create("ram", 0);
}

static void tear_down(void)
{
    if (memory)
        munmap(memory, memory_size);
    close(memory_fd);
    scratch_remove();
}

TestSuite(reference, .init = set_up, .fini = tear_down);

static void make_memory(uint64_t size)
{
    memory_size = size;
    cr_assert(zero(int, ftruncate(memory_fd, (off_t)size)));
    memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, memory_fd, 0);
    cr_assert(ne(ptr, (void *)memory, MAP_FAILED));
}

/* Makes memory of @size, and a migration of it that is active. */
static void start_with(uint64_t size, unsigned channels, bool compare)
{
    struct error err = {0};

    make_memory(size);
    m = rig_make(&rig, "vm", channels, "");
    m->settings.compare = compare;
    err = (struct error){0};
    ref = reference_new(dup(memory_fd), "fd:7", &err);
    cr_assert(not(zero(ptr, ref)), "%s", err.message);
    CHECK_OK(outgoing_set_reference(m, ref, NULL, &err));
    CHECK_OK(outgoing_start(m, NULL, &err));
}

static void start(uint64_t size, unsigned channels)
{
    start_with(size, channels, false);
}

static void end(void)
{
    migration_put(m);
    rig_fini(&rig);
}

/* Marks pages [first, first + count) with bitmaps of one word each. */
static void mark(uint64_t first, uint64_t count)
{
    struct error err = {0};

    for (uint64_t page = first; page < first + count; page++) {
        uint64_t bits = htole64(1ull << page % 64);
        CHECK_OK(outgoing_mark_dirty(m, &bits, sizeof(bits), page / 64 * 8, &err));
    }
}

static void compare(uint64_t size)
{
    struct migration *incoming = rig_arrived(&rig, "vm");
    struct error err = {0};

    CHECK_OK(outgoing_sync(m, NULL, NULL, &err));
    rig_compare(incoming, WIRE_RAM, memory, size);
    migration_put(incoming);
}

Test(reference, what_cannot_be_a_source)
{
    struct error err = {0};
    char path[128];

    CHECK_FAILS(reference_new(dup(memory_fd), "x", &err) ? 0 : -1, CAUSE_SYNTAX); /* empty */
    CHECK_FAILS(reference_new(open(scratch, O_RDONLY), "x", &err) ? 0 : -1, CAUSE_SYNTAX);
    CHECK_FAILS(reference_new(open("/dev/zero", O_RDONLY), "x", &err) ? 0 : -1, CAUSE_SYNTAX);
    snprintf(path, sizeof(path), "%s/file", scratch);
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    cr_assert(eq(int, (int)write(fd, "x", 1), 1));
    CHECK_FAILS(reference_new(fd, "x", &err) ? 0 : -1, CAUSE_DENIED);
    CHECK_FAILS(reference_new(open(path, O_PATH), "x", &err) ? 0 : -1, CAUSE_DENIED);
    CHECK_FAILS(reference_new(9999, "x", &err) ? 0 : -1, CAUSE_IO);

    /* None of them is left open. */
    unsigned fds = rig_count_fds();
    reference_new(dup(memory_fd), "x", &err);
    cr_expect(eq(uint, rig_count_fds(), fds));
    err = (struct error){0};
    struct reference *good = reference_new(open(path, O_RDONLY), "x", &err);
    cr_assert(not(zero(ptr, good)), "%s", err.message);
    cr_expect(eq(u64, reference_file_size(good), 1));
    reference_free(good);
    cr_expect(eq(uint, rig_count_fds(), fds));
    reference_free(NULL);
    rig_fini(&rig);
}

Test(reference, bitmaps_of_the_right_shape)
{
    uint64_t bits[3] = {~0ull, ~0ull, ~0ull};
    struct error err = {0};

    start(70 * PAGE - 5, 2);
    cr_expect(eq(u64, outgoing_dirty_size(m), 16));
    CHECK_FAILS(outgoing_mark_dirty(m, bits, 7, 0, &err), CAUSE_SYNTAX);
    CHECK_FAILS(outgoing_mark_dirty(m, bits, 8, 4, &err), CAUSE_SYNTAX);
    CHECK_FAILS(outgoing_mark_dirty(m, bits, 1, 0, &err), CAUSE_SYNTAX);
    CHECK_FAILS(outgoing_mark_dirty(m, bits, 8, 16, &err), CAUSE_TOO_BIG);
    /* What is not taken is not taken in part. */
    CHECK_FAILS(outgoing_mark_dirty(m, bits, 24, 0, &err), CAUSE_TOO_BIG);
    CHECK_OK(outgoing_sync(m, NULL, NULL, &err));
    cr_expect(eq(u64, file_totals(migration_file(m, WIRE_RAM)).covered, 0));
    /* Zeros may go on as long as they like, and ones to the end of a word. */
    bits[2] = 0;
    CHECK_OK(outgoing_mark_dirty(m, bits, 24, 0, &err));
    CHECK_OK(outgoing_mark_dirty(m, bits + 2, 8, 1ull << 40, &err));
    CHECK_OK(outgoing_mark_dirty(m, bits, 0, 0, &err));
    compare(70 * PAGE - 5);
    cr_expect(eq(u64, file_totals(migration_file(m, WIRE_RAM)).covered, 70 * PAGE - 5));
    end();
}

/* Offsets whose pages have numbers past 64 bits. */
Test(reference, bitmaps_far_away)
{
    uint64_t bits = ~0ull;
    struct error err = {0};

    start(64 * PAGE, 1);
    for (uint64_t i = 1; i < 4; i++)
        CHECK_FAILS(outgoing_mark_dirty(m, &bits, sizeof(bits), i << 61, &err), CAUSE_TOO_BIG);
    CHECK_FAILS(outgoing_mark_dirty(m, &bits, sizeof(bits), INT64_MAX - 7, &err), CAUSE_TOO_BIG);
    CHECK_FAILS(outgoing_mark_dirty(m, &bits, sizeof(bits), 8, &err), CAUSE_TOO_BIG);
    end();
}

/* Marks everything there is, in one bitmap. */
static void mark_all(void)
{
    uint64_t size = outgoing_dirty_size(m);
    CLEANUP_FREE char *bitmap = malloc(size);
    struct error err = {0};

    memset(bitmap, 0xff, size);
    CHECK_OK(outgoing_mark_dirty(m, bitmap, size, 0, &err));
}

static uint64_t accepted(void)
{
    return file_totals(migration_file(m, WIRE_RAM)).covered;
}

Test(reference, pages_that_are_asked_for)
{
    const uint64_t size = 9 * (uint64_t)WIRE_STRIPE_SIZE + 3 * PAGE + 7;
    struct error err = {0};

    start(size, 3);
    memset(memory, 'a', size);
    mark_all();
    compare(size);
    cr_expect(eq(u64, accepted(), size));
    /* What is not asked for stays as it was. */
    memset(memory + 5 * PAGE, 'b', 3 * PAGE);
    memset(memory + 700 * PAGE, 'c', PAGE);
    memory[900 * PAGE] = 'd';
    memset(memory + size - 7, 'e', 7);
    mark(5, 3);
    mark(700, 1);
    mark((size - 1) / PAGE, 1);
    CHECK_OK(reference_drain(ref, NULL));
    cr_expect(eq(u64, reference_remaining(ref), 0));
    cr_expect(eq(u64, accepted(), size + 4 * PAGE + 7));
    CHECK_OK(outgoing_sync(m, NULL, NULL, &err));
    memory[900 * PAGE] = 'a';
    compare(size);
    CHECK_OK(outgoing_complete(m, NULL, &err));
    CHECK_FAILS(outgoing_mark_dirty(m, "\1\0\0\0\0\0\0", 8, 0, &err), CAUSE_STATE);
    end();
}

/* A drain that was interrupted already is the shortest one. */
static struct interrupt hit = {true};

/* What was asked for before an interrupted `complete` is not forgotten with it. */
Test(reference, interrupted_complete)
{
    /* A page a stripe: the senders take hold of their channels as often as can be. */
    const uint64_t stripes = 200, size = stripes * WIRE_STRIPE_SIZE, words = WIRE_STRIPE_SIZE / PAGE / 64;
    CLEANUP_FREE uint64_t *bits = calloc(stripes, words * sizeof(*bits));
    struct error err = {0};

#ifdef __SANITIZE_THREAD__
    start(size, 60); /* it follows no more than 64 locks of a thread */
#else
    start(size, 100);
#endif
    for (uint64_t stripe = 0; stripe < stripes; stripe++)
        bits[stripe * words] = htole64(1);
    for (int i = 0; i < 500; i++) {
        for (uint64_t stripe = 0; stripe < stripes; stripe++)
            memory[stripe * WIRE_STRIPE_SIZE] = (char)(i % 255 + 1);
        uint64_t before = accepted();
        CHECK_OK(outgoing_mark_dirty(m, bits, stripes * words * sizeof(*bits), 0, &err));
        /* In the middle of it. */
        while (accepted() == before)
            ;
        CHECK_FAILS(outgoing_complete(m, &hit, &err), CAUSE_INTERRUPTED);
        cr_assert(eq(int, (int)m->state, STATE_ACTIVE));
    }
    CHECK_OK(outgoing_complete(m, NULL, &err));
    struct migration *incoming = rig_arrived(&rig, "vm");
    for (uint64_t stripe = 0; stripe < stripes; stripe++) {
        char got = 0;
        file_read(migration_file(incoming, WIRE_RAM), stripe * WIRE_STRIPE_SIZE, &got, 1, false, NULL);
        cr_assert(eq(int, got, memory[stripe * WIRE_STRIPE_SIZE]), "stripe %d", (int)stripe);
    }
    migration_put(incoming);
    end();
}

Test(reference, sealed)
{
    uint64_t bits = htole64(1);
    struct error err = {0};

    start(PAGE, 1);
    reference_seal(ref, true);
    reference_seal(ref, true);
    CHECK_FAILS(outgoing_mark_dirty(m, &bits, sizeof(bits), 0, &err), CAUSE_STATE);
    reference_seal(ref, false);
    CHECK_FAILS(outgoing_mark_dirty(m, &bits, sizeof(bits), 0, &err), CAUSE_STATE);
    reference_seal(ref, false);
    CHECK_OK(outgoing_mark_dirty(m, &bits, sizeof(bits), 0, &err));
    compare(PAGE);
    end();
}

/* The file goes back when the migration is over, not when it is forgotten. */
Test(reference, stopped)
{
    unsigned threads = rig_count_threads();
    uint64_t bits = htole64(1);
    struct error err = {0};

    start(3 * (uint64_t)WIRE_STRIPE_SIZE, 5);
    mark_all();
    CHECK_OK(migration_cancel(m, &err));
    rig_await_threads(threads);
    pthread_mutex_lock(&m->lock);
    cr_expect(eq(int, ref->fd, -1));
    pthread_mutex_unlock(&m->lock);
    cr_expect(le(int, reference_drain(ref, NULL), 0)); /* it does not wait for what never comes */
    cr_expect(eq(u64, reference_remaining(ref), 0));
    CHECK_FAILS(reference_mark(ref, &bits, sizeof(bits), 0, &err), CAUSE_RESET);
    CHECK_FAILS(outgoing_mark_dirty(m, &bits, sizeof(bits), 0, &err), CAUSE_CANCELLED);
    end();
}

/*
 * What is compared
 */

/* As start(), but nobody says what has changed. */
static void start_compared(uint64_t size, unsigned channels)
{
    start_with(size, channels, true);
}

/* How many bytes of what is asked for are sent. */
static uint64_t sent_of_all(void)
{
    uint64_t before = accepted();
    struct error err = {0};

    reference_mark_all(ref);
    CHECK_OK(outgoing_sync(m, NULL, NULL, &err));
    return accepted() - before;
}

Test(reference, compared)
{
    const uint64_t size = 3 * (uint64_t)WIRE_STRIPE_SIZE + 5 * PAGE + 9;
    struct error err = {0};

    start_compared(size, 2);
    memset(memory, 'a', size);
    cr_expect(eq(u64, sent_of_all(), size));
    compare(size);
    cr_expect(zero(u64, sent_of_all()));
    /* One byte, the first and the last ones, a page of zeros, and one that is not there any more. */
    memory[100 * PAGE + 77] = 'b';
    memory[0] = memory[size - 1] = 'c';
    memset(memory + 7 * PAGE, 0, PAGE);
    cr_assert(zero(int, fallocate(memory_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 300 * PAGE, PAGE)));
    cr_expect(eq(u64, sent_of_all(), 4 * PAGE + 9));
    compare(size);
    cr_expect(zero(u64, sent_of_all()));
    /* A bitmap asks, and what is the same is not sent. */
    uint64_t before = accepted();
    memory[20 * PAGE] = 'd';
    mark(19, 3);
    compare(size);
    cr_expect(eq(u64, accepted() - before, PAGE));
    /* There and back. */
    memory[20 * PAGE] = 'e';
    cr_expect(eq(u64, sent_of_all(), PAGE));
    memory[20 * PAGE] = 'd';
    cr_expect(eq(u64, sent_of_all(), PAGE));
    /* The last round is the hand-over's own. */
    memory[21 * PAGE] = 'f';
    struct migration *incoming = rig_arrived(&rig, "vm");
    CHECK_OK(outgoing_complete(m, NULL, &err));
    rig_compare(incoming, WIRE_RAM, memory, size);
    migration_put(incoming);
    end();
}

/* What the file does not have is zeros, and is looked at without being made. */
Test(reference, compared_holes)
{
    const uint64_t size = 8 * (uint64_t)WIRE_STRIPE_SIZE;
    struct stat st;

    start_compared(size, 3);
    memset(memory + WIRE_STRIPE_SIZE, 'a', 10 * PAGE);
    cr_expect(eq(u64, sent_of_all(), size));
    cr_expect(zero(u64, sent_of_all()));
    cr_assert(zero(int, fstat(memory_fd, &st)));
    cr_expect(le(u64, (uint64_t)st.st_blocks * 512, 10 * PAGE), "pages were made");
    compare(size); /* which reads them, and so makes them */
    cr_assert(zero(int, ftruncate(memory_fd, WIRE_STRIPE_SIZE)));
    cr_assert(zero(int, ftruncate(memory_fd, (off_t)size)));
    cr_expect(eq(u64, sent_of_all(), 10 * PAGE));
    compare(size);
    end();
}

Test(reference, precopy_gives_up)
{
    const uint64_t pages = 300;
    struct error err = {0};

    start_compared(pages * PAGE, 2);
    memset(memory, 'a', pages * PAGE);
    m->settings.downtime_limit_ms = 0;
    m->settings.max_rounds = 3;
    CHECK_FAILS(outgoing_precopy(m, NULL, &err), CAUSE_ROUNDS);
    cr_expect(ne(ptr, strstr(err.message, "after 3 rounds"), NULL), "%s", err.message);
    cr_expect(eq(uint, m->precopy.count, 3));
    for (unsigned i = 0; i < 3; i++) {
        const struct precopy_round *round = &m->precopy.rounds[i];
        cr_expect(eq(u64, round->scanned, pages), "%u", i);
        cr_expect(eq(u64, round->changed, i ? 0 : pages), "%u", i);
        cr_expect(i ? round->wire_bytes == 0 : round->wire_bytes >= pages * PAGE, "%u", i);
        cr_expect(round->time_ms >= round->scan_ms && round->scan_ms > 0, "%u", i);
        cr_expect(round->expected_ms >= round->scan_ms && round->expected_ms > 0, "%u", i);
        cr_expect(zero(dbl, round->dirty_rate), "%u", i);
    }
    cr_expect(eq(dbl, m->precopy.expected_ms, m->precopy.rounds[2].expected_ms));
    cr_expect(eq(dbl, m->precopy.rounds[0].expected_ms, m->precopy.rounds[0].time_ms));
    /* It can be given again, and succeed. */
    m->settings.downtime_limit_ms = 3600000;
    memory[0] = 'b';
    CHECK_OK(outgoing_precopy(m, NULL, &err));
    cr_expect(eq(uint, m->precopy.count, 4));
    cr_expect(eq(u64, m->precopy.rounds[3].changed, 1));
    cr_expect(eq(u64, tracking_figures(ref->tracking).scanned, 4 * pages));
    compare(pages * PAGE);
    CHECK_FAILS(outgoing_precopy(m, &hit, &err), CAUSE_INTERRUPTED);
    CHECK_OK(migration_cancel(m, &err));
    CHECK_FAILS(outgoing_precopy(m, NULL, &err), CAUSE_CANCELLED);
    end();
}

/* Where nobody compares there is nothing to find. */
Test(reference, precopy_of_bitmaps)
{
    struct error err = {0};

    start(10 * PAGE, 1);
    memset(memory, 'a', 10 * PAGE);
    mark_all();
    m->settings.downtime_limit_ms = 0;
    CHECK_OK(outgoing_precopy(m, NULL, &err));
    cr_expect(eq(uint, m->precopy.count, 1));
    cr_expect(zero(u64, m->precopy.rounds[0].scanned));
    cr_expect(eq(u64, accepted(), 10 * PAGE));
    end();
}

/* Shorter than it was: by a look, with a checksum, and by send(2). Nothing of that is ever completed. */
static void become_shorter(enum choice checksum, bool zero_pages)
{
    const uint64_t size = 8 * (uint64_t)WIRE_STRIPE_SIZE;
    struct error err = {0};

    make_memory(size);
    memset(memory, 'x', size);
    m = rig_make(&rig, "vm", 2, "");
    m->settings.checksum_choice = checksum;
    m->settings.zero_pages = zero_pages;
    ref = reference_new(dup(memory_fd), "the guest's", &err);
    CHECK_OK(outgoing_set_reference(m, ref, NULL, &err));
    CHECK_OK(outgoing_start(m, NULL, &err));
    struct migration *incoming = rig_arrived(&rig, "vm");
    cr_assert(zero(int, ftruncate(memory_fd, (off_t)size / 2)));
    mark_all();
    CHECK_FAILS(outgoing_complete(m, NULL, &err), CAUSE_IO);
    cr_expect(not(zero(ptr, strstr(err.message, "shorter"))), "%s", err.message);
    cr_expect(eq(int, (int)rig_await_end(m), STATE_FAILED));
    cr_expect(eq(int, (int)rig_await_end(incoming), STATE_FAILED));
    migration_put(incoming);
    end();
}

Test(reference, shorter_than_a_look)
{
    become_shorter(CHOICE_OFF, true);
}

Test(reference, shorter_than_a_checksum)
{
    become_shorter(CHOICE_ON, false);
}

Test(reference, shorter_than_what_is_sent)
{
    become_shorter(CHOICE_OFF, false);
}

/* Memory that the guest has never touched stays so, here and there. */
static void leave_holes(enum choice checksum, bool compress)
{
    const uint64_t size = 16 * (uint64_t)WIRE_STRIPE_SIZE;
    struct error err = {0};
    struct stat st;

    make_memory(size);
    m = rig_make(&rig, "vm", 2, "");
    m->settings.checksum_choice = checksum;
    m->settings.compress = compress;
    ref = reference_new(dup(memory_fd), "the guest's", &err);
    CHECK_OK(outgoing_set_reference(m, ref, NULL, &err));
    CHECK_OK(outgoing_start(m, NULL, &err));
    memory[5 * PAGE] = memory[1000 * PAGE] = 1;
    mark_all();
    CHECK_OK(outgoing_sync(m, NULL, NULL, &err));
    cr_assert(zero(int, fstat(memory_fd, &st)));
    cr_expect(le(u64, (uint64_t)st.st_blocks, 2 * PAGE / 512), "%d blocks", (int)st.st_blocks);
    cr_expect(eq(u64, file_totals(migration_file(m, WIRE_RAM)).zero_pages, size / PAGE - 2));
    struct migration *incoming = rig_arrived(&rig, "vm");
    cr_assert(zero(int, fstat(migration_file(incoming, WIRE_RAM)->image.memory.fd, &st)));
    cr_expect(le(u64, (uint64_t)st.st_blocks, 2 * PAGE / 512), "%d blocks arrived", (int)st.st_blocks);
    migration_put(incoming);
    compare(size);
    end();
}

Test(reference, holes_are_looked_at)
{
    leave_holes(CHOICE_OFF, false);
}

Test(reference, holes_with_a_checksum)
{
    leave_holes(CHOICE_ON, false);
}

Test(reference, holes_that_are_compressed)
{
    leave_holes(CHOICE_OFF, true);
}

/* The size of RAM, where nobody has declared it, is that of the last file. */
Test(reference, size_of_the_file)
{
    struct file *ram;
    struct error err = {0};

    cr_assert(zero(int, ftruncate(memory_fd, 5 * PAGE)));
    m = rig_make(&rig, "vm", 1, "");
    ram = migration_file(m, WIRE_RAM);
    CHECK_OK(outgoing_set_reference(m, reference_new(dup(memory_fd), "a", &err), NULL, &err));
    cr_expect(eq(u64, atomic_load(&ram->size), 5 * PAGE));
    cr_assert(zero(int, ftruncate(memory_fd, 9 * PAGE)));
    CHECK_OK(outgoing_set_reference(m, reference_new(dup(memory_fd), "b", &err), NULL, &err));
    cr_expect(eq(u64, atomic_load(&ram->size), 9 * PAGE));
    cr_expect(eq(u64, ram->declared, 9 * PAGE));
    CHECK_OK(outgoing_set_reference(m, NULL, NULL, &err));
    cr_expect(eq(u64, atomic_load(&ram->size), 0));
    cr_expect(eq(u64, ram->declared, 0));
    cr_expect(eq(u64, outgoing_dirty_size(m), 0));
    /* What was declared stays. */
    CHECK_OK(outgoing_truncate(m, ram, 3 * PAGE, NULL, &err));
    CHECK_OK(outgoing_set_reference(m, reference_new(dup(memory_fd), "c", &err), NULL, &err));
    cr_expect(eq(u64, ram->declared, 3 * PAGE));
    CHECK_OK(outgoing_set_reference(m, NULL, NULL, &err));
    cr_expect(eq(u64, ram->declared, 3 * PAGE));
    CHECK_OK(outgoing_set_reference(m, reference_new(dup(memory_fd), "d", &err), NULL, &err));
    CHECK_OK(outgoing_truncate(m, ram, 10 * PAGE, NULL, &err));
    CHECK_FAILS(outgoing_start(m, NULL, &err), CAUSE_SYNTAX);
    cr_expect(eq(int, (int)m->state, STATE_NONE));
    CHECK_OK(outgoing_truncate(m, ram, 9 * PAGE, NULL, &err));
    CHECK_OK(outgoing_start(m, NULL, &err));
    CHECK_FAILS(outgoing_set_reference(m, NULL, NULL, &err), CAUSE_STATE);
    CHECK_FAILS(outgoing_truncate(m, ram, 8 * PAGE, NULL, &err), CAUSE_STATE);
    end();
}

/*
 * A destination that takes nothing
 */

static struct fake fake;
static struct registry registry;

static void set_up_blocked(void)
{
    struct limits limits = rig_limits();

    scratch_make();
    signal(SIGPIPE, SIG_IGN);
    guard_setup();
    registry_init(&registry, &limits, NULL);
    memory_fd = memfd_create("ram", 0);
}

TestSuite(blocked_reference, .init = set_up_blocked, .fini = tear_down);

static struct worker starter;

static void start_blocked_one(void *arg)
{
    struct error err = {0};

    (void)arg;
    CHECK_OK(outgoing_start(m, NULL, &err));
}

/* One channel, @size bytes of memory, nothing asked for. */
static void start_blocked(uint64_t size)
{
    struct error err = {0};
    char text[128];

    make_memory(size);
    memset(memory, 'x', size);
    snprintf(text, sizeof(text), "unix:%s/socket", scratch);
    fake_listen(&fake, text);
    CHECK_OK(registry_add_outgoing(&registry, "vm", 0, 0, &m, &err));
    CHECK_OK(uri_list_parse(text, &m->settings.uris, &err));
    m->settings.channels = 1;
    ref = reference_new(dup(memory_fd), "fd:7", &err);
    CHECK_OK(outgoing_set_reference(m, ref, NULL, &err));
    worker_start(&starter, start_blocked_one, NULL);
    fake_accept_all(&fake, 1);
    worker_join(&starter);
}

static void end_blocked(void)
{
    registry_shutdown(&registry);
    fake_close(&fake);
    migration_put(m);
    registry_drain(&registry, HOST_FOREVER);
    registry_fini(&registry);
}

static struct waiter {
    struct worker worker;
    struct interrupt interrupt;
    struct error err;
    int ret;
} waiter;

static void drain(void *arg)
{
    struct waiter *w = arg;

    w->ret = reference_drain(ref, &w->interrupt);
}

static void sync_all(void *arg)
{
    struct waiter *w = arg;

    w->ret = outgoing_sync(m, NULL, &w->interrupt, &w->err);
}

static void flush(void *arg)
{
    struct waiter *w = arg;

    w->ret = outgoing_flush(m, migration_file(m, WIRE_RAM), &w->interrupt, &w->err);
}

static void complete(void *arg)
{
    struct waiter *w = arg;

    w->ret = outgoing_complete(m, &w->interrupt, &w->err);
}

static void write_ram(void *arg)
{
    struct waiter *w = arg;

    w->ret = rig_try_write(m, migration_file(m, WIRE_RAM), "x", 1, 0, &w->interrupt, &w->err);
}

static void punch(void *arg)
{
    struct waiter *w = arg;

    w->ret = outgoing_discard(m, migration_file(m, WIRE_RAM), 0, PAGE, &w->interrupt, &w->err);
}

/* Everything that comes after the pages waits for them, can be interrupted, and does no harm then. */
Test(blocked_reference, waiting_is_interrupted)
{
    static void (*const waits[])(void *) = {drain, sync_all, flush, complete, write_ram, punch};
    const uint64_t size = 16 * (uint64_t)WIRE_STRIPE_SIZE;
    struct error err = {0};

    start_blocked(size);
    mark_all();
    for (size_t i = 0; i < ARRAY_LENGTH(waits); i++) {
        waiter = (struct waiter){0};
        worker_start(&waiter.worker, waits[i], &waiter);
        worker_await_sleep(&waiter.worker);
        cr_assert(not(atomic_load(&waiter.worker.done)), "%zu does not wait", i);
        atomic_store(&waiter.interrupt.hit, true);
        migration_kick(m);
        worker_join(&waiter.worker);
        cr_expect(lt(int, waiter.ret, 0));
        if (waits[i] == drain)
            cr_expect(eq(int, waiter.ret, -EINTR));
        else
            cr_expect(eq(int, (int)waiter.err.cause, CAUSE_INTERRUPTED), "%zu: %s", i, waiter.err.message);
        cr_expect(eq(int, (int)m->state, STATE_ACTIVE), "%zu", i);
    }
    /* A bitmap is taken all the time. */
    mark_all();
    cr_expect(ge(u64, outgoing_queued(m), size - 2 * WIRE_STRIPE_SIZE));
    waiter = (struct waiter){0};
    worker_start(&waiter.worker, drain, &waiter);
    worker_await_sleep(&waiter.worker);
    CHECK_OK(migration_cancel(m, &err));
    worker_join(&waiter.worker);
    cr_expect(eq(int, waiter.ret, -ECONNRESET));
    end_blocked();
}

/* A device does not wait for pages. */
Test(blocked_reference, devices_do_not_wait)
{
    struct error err = {0};

    start_blocked(16 * (uint64_t)WIRE_STRIPE_SIZE);
    struct file *device = file_new(1, "dev");
    CHECK_OK(file_set_channels(device, 1, 0));
    pthread_mutex_lock(&m->lock);
    migration_add_file(m, device);
    pthread_mutex_unlock(&m->lock);
    mark_all();
    waiter = (struct waiter){0};
    worker_start(&waiter.worker, drain, &waiter);
    worker_await_sleep(&waiter.worker);
    rig_write(m, device, "x", 1, 0);
    CHECK_OK(migration_cancel(m, &err));
    worker_join(&waiter.worker);
    end_blocked();
}

static void write_device(void *arg)
{
    struct waiter *w = arg;
    CLEANUP_FREE char *data = calloc(1, WIRE_STRIPE_SIZE);

    w->ret = rig_try_write(m, migration_file(m, 1), data, WIRE_STRIPE_SIZE, 0, &w->interrupt, &w->err);
}

/* The state of a thread of a name; 0: there is none. */
static char state_of_thread(const char *name)
{
    char pattern[64], command[128], state = 0;

    snprintf(pattern, sizeof(pattern), "(%s)", name);
    snprintf(command, sizeof(command), "cat /proc/%d/task/*/stat", (int)getpid());
    FILE *tasks = popen(command, "r");
    char line[1024];
    while (fgets(line, sizeof(line), tasks)) {
        const char *at = strstr(line, pattern);
        if (at)
            state = at[strlen(pattern) + 1];
    }
    pclose(tasks);
    return state;
}

/* Pages that are copied do not pile up behind somebody else who sends. */
Test(blocked_reference, copies_are_bounded)
{
    const uint64_t size = 64 * (uint64_t)WIRE_STRIPE_SIZE;
    uint64_t bits[64 * WIRE_STRIPE_SIZE / PAGE / 64];
    struct error err = {0};

    start_blocked(size);
    struct file *device = file_new(1, "dev");
    CHECK_OK(file_set_channels(device, 1, 0));
    pthread_mutex_lock(&m->lock);
    migration_add_file(m, device);
    pthread_mutex_unlock(&m->lock);
    waiter = (struct waiter){0};
    worker_start(&waiter.worker, write_device, &waiter);
    worker_await_sleep(&waiter.worker);
    memset(bits, 0x55, sizeof(bits));
    CHECK_OK(outgoing_mark_dirty(m, bits, sizeof(bits), 0, &err));
    for (int seen = 0; seen < 3;)
        seen = state_of_thread("mig-ref-0") == 'S' ? seen + 1 : 0;
    cr_expect(ge(u64, reference_remaining(ref) * PAGE, size / 2 - 2 * WIRE_STRIPE_SIZE), "%d pages are left",
              (int)reference_remaining(ref));
    CHECK_OK(migration_cancel(m, &err));
    worker_join(&waiter.worker);
    end_blocked();
}

/*
 * Reading back
 */

/* What was asked for and is not taken up shows in `dirty`: all but the stripe that the scanner is about to look at. */
Test(reference, dirty_reads_back)
{
    const uint64_t size = 2 * (uint64_t)WIRE_STRIPE_SIZE + 3 * PAGE;
    uint64_t got[16], words = 2 * 4 + 1;

    start_compared(size, 1);
    struct tracking *tracking = ref->tracking;
    cr_expect(eq(sz, migration_read_dirty(m, 0, got, sizeof(got)), 8 * words));
    cr_expect(zero(u64, got[0] | got[words - 1]), "nothing is asked for");
    tracking_enter(tracking, 0, WIRE_STRIPE_SIZE, NULL);
    reference_mark_all(ref);
    do {
        cr_assert(eq(sz, migration_read_dirty(m, 0, got, sizeof(got)), 8 * words));
        sched_yield();
    } while (got[0] | got[1] | got[2] | got[3]);
    for (unsigned word = 4; word < 8; word++)
        cr_expect(eq(u64, got[word], UINT64_MAX));
    cr_expect(eq(u64, le64toh(got[8]), 7), "of the last word, the pages that there are");
    cr_expect(eq(sz, migration_read_dirty(m, 8 * 8 + 1, got, 100), 7));
    cr_expect(eq(chr, *(char *)got, 0));
    cr_expect(zero(sz, migration_read_dirty(m, 8 * words, got, 8)));
    cr_expect(zero(sz, migration_read_dirty(m, UINT64_MAX, got, 8)));
    tracking_leave(tracking, 0, WIRE_STRIPE_SIZE);
    compare(size);
    cr_assert(eq(sz, migration_read_dirty(m, 0, got, sizeof(got)), 8 * words));
    for (unsigned word = 0; word < words; word++)
        cr_expect(zero(u64, got[word]));
    end();
}

/* RAM by reference is read from its file, as far as the RAM goes; once the migration is over, no more. */
Test(reference, ram_reads_back)
{
    const uint64_t size = 3 * PAGE + 9;
    char got[PAGE];
    struct error err = {0};

    start(size, 2);
    memset(memory, 'r', size);
    cr_expect(eq(long, migration_read_ram(m, PAGE, got, PAGE), PAGE));
    cr_expect(eq(chr, got[0], 'r'));
    cr_expect(eq(chr, got[PAGE - 1], 'r'));
    cr_expect(eq(long, migration_read_ram(m, 3 * PAGE + 5, got, PAGE), 4));
    cr_expect(zero(long, migration_read_ram(m, size, got, PAGE)));
    cr_expect(zero(long, migration_read_ram(m, UINT64_MAX, got, PAGE)));
    struct migration *incoming = rig_arrived(&rig, "vm");
    cr_expect(eq(long, migration_read_ram(incoming, 0, got, PAGE), -EOPNOTSUPP));
    cr_expect(zero(sz, migration_read_dirty(incoming, 0, got, PAGE)));
    migration_put(incoming);
    /* The migration's thread, which is to close the file, gets no further than to say that it is over. */
    pthread_mutex_lock(&ref->lock);
    CHECK_OK(migration_cancel(m, &err));
    rig_await_end(m);
    cr_assert(ge(int, ref->fd, 0), "it is closed too early for this test");
    cr_assert(eq(long, migration_read_ram(m, 0, got, PAGE), -EOPNOTSUPP));
    cr_expect(zero(sz, migration_read_dirty(m, 0, got, PAGE)));
    pthread_mutex_unlock(&ref->lock);
    end();
}
