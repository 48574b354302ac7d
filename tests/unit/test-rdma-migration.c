/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whole migrations over the card of verbs.h, which does and tells everything late: what is written arrives,
 * each buffer is spoilt as soon as it is its writer's again, and memory is given back only after its keys.
 */
#include "blocked.h"
#include "check.h"
#include "link.h"
#include "reference.h"
#include "rig.h"
#include "verbs.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define STRIPE ((size_t)WIRE_STRIPE_SIZE)
#define PAGE   ((size_t)WIRE_PAGE_SIZE)
#define IMAGE  (12 * STRIPE)

TestSuite(rdma_migration);

static struct rig rig;
static struct migration *source, *destination;
static uint8_t *model;

static void make_source(unsigned channels, bool checksum)
{
    rig_init(&rig, "rdma:127.0.0.1:0", NULL);
    source = rig_make(&rig, "vm", channels, "");
    source->settings.checksum_choice = checksum ? CHOICE_ON : CHOICE_OFF;
    model = calloc(1, IMAGE);
}

static void start(void)
{
    struct error err;

    CHECK_OK(outgoing_start(source, NULL, &err));
    destination = rig_arrived(&rig, "vm");
    rig_find_file(destination, "ram");
}

static void open_both(unsigned channels, bool checksum)
{
    struct error err;

    make_source(channels, checksum);
    CHECK_OK(outgoing_truncate(source, migration_file(source, WIRE_RAM), IMAGE, NULL, &err));
    start();
}

static void close_both(void)
{
    migration_put(source);
    migration_put(destination);
    rig_fini(&rig);
    free(model);
    cr_expect(zero(uint, verbs_counts().unready));
    verbs_expect_nothing_left();
}

static void fill_all(void)
{
    pattern(model, IMAGE, 99);
    uint8_t *copy = malloc(IMAGE);
    memcpy(copy, model, IMAGE);
    rig_write(source, migration_file(source, WIRE_RAM), copy, IMAGE, 0);
    memset(copy, 0xee, IMAGE);
    free(copy);
}

/* A thread that writes to stripes of its own. */
struct writer {
    struct worker worker;
    unsigned index, count, seed, steps;
};

static unsigned draw(struct writer *w, unsigned below)
{
    w->seed = w->seed * 1103515245u + 12345u;
    return (w->seed >> 10) % below;
}

static void write_work(void *arg)
{
    struct writer *w = arg;
    uint8_t *buf = malloc(STRIPE);

    for (unsigned i = 0; i < w->steps; i++) {
        unsigned stripe = w->index + w->count * draw(w, (unsigned)(IMAGE / STRIPE) / w->count);
        size_t at = draw(w, 4) ? draw(w, 8) * 65536 + draw(w, 3) * 777 : draw(w, 200) * PAGE;
        size_t len = draw(w, 4) ? 8192 + draw(w, 300000) : 1 + draw(w, 5000);
        len = len < STRIPE - at ? len : STRIPE - at;
        if (draw(w, 6))
            pattern(buf, len, w->seed);
        else
            memset(buf, 0, len);
        rig_write(source, migration_file(source, WIRE_RAM), buf, len, stripe * STRIPE + at);
        memcpy(model + stripe * STRIPE + at, buf, len);
        memset(buf, 0xee, len); /* it is the writer's again */
    }
    free(buf);
}

static void round_of(unsigned threads, unsigned steps, unsigned seed)
{
    struct writer writers[4];
    struct error err;

    for (unsigned i = 0; i < threads; i++) {
        writers[i] = (struct writer){.index = i, .count = threads, .seed = seed * 31 + i, .steps = steps};
        worker_start(&writers[i].worker, write_work, &writers[i]);
    }
    for (unsigned i = 0; i < threads; i++)
        worker_join(&writers[i].worker);
    CHECK_OK(outgoing_sync(source, migration_file(source, WIRE_RAM), NULL, &err));
    rig_compare(destination, WIRE_RAM, model, IMAGE);
}

static void write_device(void)
{
    char state[70000];

    pattern(state, sizeof(state), 5);
    rig_write(source, rig_device(source, "net0"), state, sizeof(state), 0);
}

static void complete_both(void)
{
    char state[70000];
    struct error err;

    pattern(state, sizeof(state), 5);
    CHECK_OK(outgoing_complete(source, NULL, &err));
    cr_expect(eq(int, (int)rig_await_end(destination), STATE_COMPLETED));
    rig_compare(destination, WIRE_RAM, model, IMAGE);
    struct file *device = migration_find_device(destination, "net0");
    cr_assert(ne(ptr, device, NULL));
    rig_compare(destination, device->id, state, sizeof(state));
    file_put(device);
}

static void run_rounds(unsigned channels, bool checksum, unsigned seed)
{
    verbs_shuffle_start(seed);
    open_both(channels, checksum);
    fill_all();
    for (unsigned i = 0; i < 3; i++)
        round_of(3, 30, seed + i);
    write_device();
    complete_both();
    verbs_shuffle_stop();
    cr_expect(lt(uint, 20, verbs_counts().writes));
    cr_expect(zero(uint, verbs_counts().refused));
    close_both();
}

Test(rdma_migration, over_a_late_card)
{
    run_rounds(1, false, 1);
    run_rounds(2, false, 2);
    run_rounds(3, true, 3);
}

/* So little may be locked that chunks take turns at the source, and then at neither end there is one. */
Test(rdma_migration, little_lockable_memory)
{
    for (unsigned i = 0; i < 3; i++) {
        open_both(2, false);
        verbs_limit(verbs_counts().registered_bytes + i * (4u << 20), 128);
        fill_all();
        round_of(3, 20, i);
        write_device();
        complete_both();
        verbs_limit(UINT64_MAX, 128);
        close_both();
    }
}

/* The RAM source's mapping is what the card reads. */
Test(rdma_migration, by_reference)
{
    static uint8_t all[IMAGE / PAGE / 8];
    int fd = memfd_create("ram", MFD_CLOEXEC);
    struct error err;

    cr_assert(zero(int, ftruncate(fd, IMAGE)));
    uint8_t *memory = mmap(NULL, IMAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    memset(all, 0xff, sizeof(all));
    verbs_shuffle_start(9);
    make_source(2, false);
    struct reference *reference = reference_new(dup(fd), "fd:7", &err);
    cr_assert(ne(ptr, reference, NULL));
    CHECK_OK(outgoing_set_reference(source, reference, NULL, &err));
    start();
    for (unsigned i = 0; i < 4; i++) {
        pattern(memory + i * STRIPE, IMAGE - 2 * i * STRIPE, i);
        CHECK_OK(outgoing_mark_dirty(source, all, sizeof(all), 0, &err));
        CHECK_OK(outgoing_sync(source, migration_file(source, WIRE_RAM), NULL, &err));
        memcpy(model, memory, IMAGE);
        rig_compare(destination, WIRE_RAM, model, IMAGE);
    }
    write_device();
    complete_both();
    verbs_shuffle_stop();
    cr_expect(lt(uint, 20, verbs_counts().writes));
    close_both();
    munmap(memory, IMAGE);
    close(fd);
}

/*
 * All is pinned
 */

#define CHUNK (4u << 20)

/* Not started. @fd: of the RAM source; -1: it is written */
static void make_pinned(int fd)
{
    struct error err;

    make_source(2, false);
    source->settings.rdma_pin_all = true;
    source->settings.rdma_chunk = CHUNK;
    if (fd < 0) {
        CHECK_OK(outgoing_truncate(source, migration_file(source, WIRE_RAM), IMAGE, NULL, &err));
        return;
    }
    struct reference *reference = reference_new(dup(fd), "fd:7", &err);
    cr_assert(ne(ptr, reference, NULL));
    CHECK_OK(outgoing_set_reference(source, reference, NULL, &err));
}

static struct migration_figures figures(void)
{
    struct migration_figures figures;

    migration_operations(source)->figures(source, &figures);
    cr_expect(figures.places);
    return figures;
}

static int make_ram(void)
{
    int fd = memfd_create("ram", MFD_CLOEXEC);

    cr_assert(zero(int, ftruncate(fd, IMAGE)));
    return fd;
}

Test(rdma_migration, pinned)
{
    make_pinned(-1);
    start();
    cr_expect(eq(u64, figures().placing.chunks, IMAGE / CHUNK));
    fill_all();
    round_of(2, 10, 5);
    cr_expect(eq(u64, figures().placing.exposures, IMAGE / CHUNK));
    cr_expect(zero(u64, figures().placing.evictions));
    write_device();
    complete_both();
    close_both();
}

Test(rdma_migration, pinned_by_reference)
{
    static uint8_t all[IMAGE / PAGE / 8];
    int fd = make_ram();
    struct error err;

    memset(all, 0xff, sizeof(all));
    make_pinned(fd);
    start();
    cr_expect(eq(u64, figures().placing.chunks, IMAGE / CHUNK));
    uint64_t registrations = figures().transport.registrations;
    cr_expect(eq(u64, registrations, IMAGE / CHUNK));
    CHECK_OK(outgoing_mark_dirty(source, all, sizeof(all), 0, &err));
    CHECK_OK(outgoing_sync(source, migration_file(source, WIRE_RAM), NULL, &err));
    cr_expect(eq(u64, figures().transport.registrations, registrations));
    rig_compare(destination, WIRE_RAM, model, IMAGE);
    write_device();
    complete_both();
    close_both();
    close(fd);
}

static void cannot_be_pinned(int fd, uint64_t limit, const char *sentence)
{
    struct error err;

    make_pinned(fd);
    verbs_limit(limit, 128);
    CHECK_FAILS(outgoing_start(source, NULL, &err), CAUSE_NO_MEMORY);
    cr_expect(ne(ptr, strstr(err.message, sentence), NULL), "%s", err.message);
    verbs_limit(UINT64_MAX, 128);
    migration_put(source);
    rig_fini(&rig);
    free(model);
    verbs_expect_nothing_left();
}

/* Two channels have up to 8 MiB of their own, at both ends together. */
Test(rdma_migration, cannot_be_pinned_there)
{
    cannot_be_pinned(-1, 14u << 20, "the destination can pin only");
}

Test(rdma_migration, cannot_be_pinned_here)
{
    int fd = make_ram();

    cannot_be_pinned(fd, 26u << 20, "'fd:7' cannot be pinned: raise RLIMIT_MEMLOCK");
    close(fd);
}

/*
 * What ends early
 */

static void write_until_it_fails(void *arg)
{
    const struct writer *w = arg;
    uint8_t *buf = malloc(STRIPE);
    struct error err = {0};

    for (unsigned i = 0;; i++) {
        pattern(buf, STRIPE, i);
        if (rig_try_write(source, migration_file(source, WIRE_RAM), buf, STRIPE,
                          (w->index + 3 * (i % 4)) * STRIPE, NULL, &err) < 0)
            break;
        memset(buf, 0xee, STRIPE);
    }
    free(buf);
}

static struct writer doomed[3];

static void start_doomed(void)
{
    for (unsigned i = 0; i < 3; i++) {
        doomed[i].index = i;
        worker_start(&doomed[i].worker, write_until_it_fails, &doomed[i]);
    }
}

static void join_doomed(void)
{
    for (unsigned i = 0; i < 3; i++)
        worker_join(&doomed[i].worker);
}

/* With payloads in flight that the card does not do: everybody gets his buffer back. */
Test(rdma_migration, cancelled)
{
    struct error err;

    open_both(3, false);
    fill_all();
    verbs_hold(VERBS_ACTIVE, VERBS_WORK);
    start_doomed();
    verbs_await_held(VERBS_ACTIVE, VERBS_WORK, 3);
    for (unsigned i = 0; i < 3; i++)
        worker_await_sleep(&doomed[i].worker);
    CHECK_OK(migration_cancel(source, &err));
    join_doomed();
    cr_expect(eq(int, (int)rig_await_end(source), STATE_CANCELLED));
    cr_expect(eq(int, (int)rig_await_end(destination), STATE_CANCELLED));
    verbs_hold(VERBS_ACTIVE, 0);
    close_both();
}

/* The destination is cancelled while the source writes into its memory: the keys go before the memory does.
 */
Test(rdma_migration, cancelled_at_the_destination)
{
    for (unsigned seed = 1; seed <= 3; seed++) {
        struct error err;
        verbs_shuffle_start(seed);
        open_both(2, false);
        start_doomed();
        while (verbs_counts().writes < seed * 20)
            sched_yield();
        CHECK_OK(migration_cancel(destination, &err));
        cr_expect(eq(int, (int)rig_await_end(destination), STATE_CANCELLED));
        join_doomed();
        cr_expect(eq(int, (int)rig_await_end(source), STATE_CANCELLED));
        verbs_shuffle_stop();
        close_both();
    }
}

/* A work request of either end fails, wherever it is. */
Test(rdma_migration, broken_anywhere)
{
    for (unsigned n = 1; n < 40; n = n * 2 + 1) {
        open_both(2, false);
        verbs_shuffle_start(n);
        verbs_break(VERBS_ACTIVE, n, IBV_WC_RETRY_EXC_ERR);
        start_doomed();
        join_doomed();
        cr_expect(eq(int, (int)rig_await_end(source), STATE_FAILED), "%u", n);
        cr_expect(eq(int, (int)rig_await_end(destination), STATE_FAILED), "%u", n);
        verbs_shuffle_stop();
        close_both();
    }
}

/* The device goes under a migration. */
Test(rdma_migration, device_is_removed)
{
    open_both(2, false);
    fill_all();
    verbs_shuffle_start(1);
    start_doomed();
    verbs_remove_device(0);
    join_doomed();
    cr_expect(eq(int, (int)rig_await_end(source), STATE_FAILED));
    cr_expect(eq(int, (int)rig_await_end(destination), STATE_FAILED));
    verbs_shuffle_stop();
    close_both();
}
