/* SPDX-License-Identifier: Apache-2.0 */
/* What a writer may do at the source, and what it is told. */
#include "writes.h"
#include "bed.h"
#include "check.h"
#include "tracking.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static struct bed bed;
static struct migration *m;
static struct file *ram, *device;
static const struct interrupt hit = {true};

static void set_up(void)
{
    bed_init(&bed);
    m = bed.m;
    ram = m->files[WIRE_RAM];
}

static void set_up_active(void)
{
    set_up();
    bed_activate(&bed);
    device = bed_device(&bed, "x");
}

static void end(void)
{
    bed_fini(&bed);
}

TestSuite(writes, .init = set_up_active);
TestSuite(writes_before, .init = set_up);

static int try_write(struct file *file, size_t len, uint64_t offset, const struct interrupt *interrupt,
                     struct error *err)
{
    static const char zeros[PLAN_WRITE_MAX], data[8] = "written";
    struct sender_write write;
    int ret = writes_begin(&bed.source, file, len <= sizeof(data) ? data : zeros, len, offset, interrupt,
                           &write, err);

    if (ret == 0)
        sender_finish(&write);
    return ret;
}

static uint64_t packets(void)
{
    uint64_t n = 0;

    for (unsigned c = 0; c < BED_CHANNELS; c++)
        n += bed.conn->channels[c].last_sequence;
    return n;
}

static void refused(struct file *file, size_t len, uint64_t offset, enum cause cause, const char *sentence)
{
    struct error err;
    uint64_t before = packets();

    CHECK_FAILS(try_write(file, len, offset, NULL, &err), cause);
    cr_expect(eq(str, err.message, (char *)sentence));
    cr_expect(eq(u64, packets(), before));
    cr_expect(zero(u64, bed.conn->gate.used));
}

Test(writes_before, not_started)
{
    struct error err;

    CHECK_FAILS(try_write(ram, 5, 0, NULL, &err), CAUSE_NOT_STARTED);
    CHECK_FAILS(writes_discard(&bed.source, ram, 0, 5, NULL, &err), CAUSE_NOT_STARTED);
    cr_expect(not(writes_can_splice(&bed.source, ram, WIRE_STRIPE_SIZE, 0)));
    bed_connect(&bed);
    CHECK_FAILS(try_write(ram, 5, 0, NULL, &err), CAUSE_NOT_STARTED);
    end();
}

Test(writes, sizes)
{
    struct error err;

    bed.conn->limits.max_ram = 1000;
    bed.conn->limits.max_device = 500;
    CHECK_OK(try_write(ram, 5, 995, NULL, &err));
    cr_expect(eq(u64, atomic_load(&ram->size), 1000));
    cr_expect(eq(u64, packets(), 1));
    refused(ram, 5, 996, CAUSE_QUOTA, "'ram' would have 1001 bytes; the destination allows 1000");
    CHECK_OK(try_write(device, 5, 495, NULL, &err));
    refused(device, 6, 495, CAUSE_QUOTA, "'x' would have 501 bytes; the destination allows 500");
    ram->declared = 900;
    CHECK_OK(try_write(ram, 5, 895, NULL, &err));
    refused(ram, 5, 896, CAUSE_TOO_BIG, "'ram' was declared to have 900 bytes; the write ends at 901");
    ram->declared = 0;
    bed.conn->limits.max_ram = UINT64_MAX;
    refused(ram, 5, WIRE_OFFSET_MAX - 4, CAUSE_TOO_BIG, "'ram': no file has more than 70368744177664 bytes");
    refused(ram, 5, UINT64_MAX - 1, CAUSE_TOO_BIG, "'ram': no file has more than 70368744177664 bytes");
    CHECK_OK(try_write(ram, 5, WIRE_OFFSET_MAX - 5, NULL, &err));
    cr_expect(eq(u64, atomic_load(&ram->size), WIRE_OFFSET_MAX));
    end();
}

/* What a device that has been removed is sent goes nowhere. */
Test(writes, removed)
{
    struct error err;
    struct sender_write write;
    int pipes[2];

    atomic_store(&device->removed, true);
    CHECK_OK(try_write(device, 5, 0, &hit, &err));
    CHECK_OK(try_write(device, 5, UINT64_MAX, NULL, &err));
    CHECK_OK(writes_discard(&bed.source, device, 0, 5, NULL, &err));
    cr_expect(eq(int, writes_truncate(&bed.source, device, 7, NULL, &err), 0));
    cr_assert(zero(int, pipe(pipes)));
    CHECK_OK(writes_begin_splice(&bed.source, device, pipes[0], 5, 0, NULL, &write, &err));
    sender_finish(&write);
    cr_expect(zero(u64, packets()));
    cr_expect(zero(u64, atomic_load(&device->size)));
    cr_expect(zero(u64, bed.conn->gate.used));
    atomic_store(&device->removed, false);
    bed_fail(&bed, CAUSE_RESET, "gone");
    atomic_store(&device->removed, true);
    CHECK_FAILS(try_write(device, 5, 0, NULL, &err), CAUSE_RESET);
    CHECK_FAILS(writes_discard(&bed.source, device, 0, 5, NULL, &err), CAUSE_RESET);
    atomic_store(&device->removed, false);
    close(pipes[0]);
    close(pipes[1]);
    end();
}

Test(writes, discards)
{
    struct error err;

    atomic_store(&ram->size, 10 * WIRE_STRIPE_SIZE);
    CHECK_OK(writes_discard(&bed.source, ram, 10 * WIRE_STRIPE_SIZE, 5, NULL, &err));
    CHECK_OK(writes_discard(&bed.source, ram, 5, 0, NULL, &err));
    cr_expect(zero(u64, packets()), "there is nothing");
    CHECK_OK(writes_discard(&bed.source, ram, 10 * WIRE_STRIPE_SIZE - 1, UINT64_MAX, NULL, &err));
    cr_expect(eq(u64, packets(), 1), "it ends with the file");
    CHECK_OK(writes_discard(&bed.source, ram, WIRE_STRIPE_SIZE, 2 * WIRE_STRIPE_SIZE, NULL, &err));
    cr_expect(eq(u64, packets(), 3));
    CHECK_OK(writes_discard(&bed.source, ram, 0, UINT64_MAX, NULL, &err));
    cr_expect(eq(u64, packets(), 6), "each channel once");
    end();
}

Test(writes_before, sizes_before_the_start)
{
    struct error err;

    device = bed_device(&bed, "x");
    bed.source.sized_by_reference = true;
    CHECK_FAILS(writes_truncate(&bed.source, ram, WIRE_OFFSET_MAX + 1, NULL, &err), CAUSE_TOO_BIG);
    CHECK_OK(writes_truncate(&bed.source, ram, WIRE_OFFSET_MAX, NULL, &err));
    cr_expect(eq(u64, ram->declared, WIRE_OFFSET_MAX));
    cr_expect(eq(u64, atomic_load(&ram->size), WIRE_OFFSET_MAX));
    cr_expect(not(bed.source.sized_by_reference));
    CHECK_OK(writes_truncate(&bed.source, device, 5, NULL, &err));
    cr_expect(eq(u64, atomic_load(&device->size), 5));
    cr_expect(zero(u64, device->declared));
    CHECK_OK(writes_truncate(&bed.source, ram, 0, NULL, &err));
    cr_expect(zero(u64, ram->declared));
    end();
}

Test(writes, truncates)
{
    struct error err = {0};

    bed.conn->limits.max_ram = 1000;
    ram->declared = 900;
    CHECK_FAILS(writes_truncate(&bed.source, ram, 1001, NULL, &err), CAUSE_QUOTA);
    CHECK_FAILS(writes_truncate(&bed.source, ram, 901, NULL, &err), CAUSE_TOO_BIG);
    cr_expect(eq(str, err.message, "it was declared to have 900 bytes before the start"));
    cr_expect(eq(int, writes_truncate(&bed.source, ram, 0, NULL, &err), 0), "it has that size");
    cr_expect(zero(u64, packets()));
    cr_expect(eq(int, writes_truncate(&bed.source, ram, 900, NULL, &err), 1));
    cr_expect(eq(u64, packets(), BED_CHANNELS));
    cr_expect(eq(u64, atomic_load(&ram->size), 900));
    cr_expect(eq(u64, ram->declared, 900));
    cr_expect(eq(u64, ram->truncations, 1));
    cr_expect(eq(int, writes_truncate(&bed.source, ram, 5, NULL, &err), 1));
    cr_expect(eq(u64, ram->truncations, 2));
    int fd = memfd_create("ram", 0);
    cr_assert(zero(int, ftruncate(fd, 5)));
    bed.source.reference = reference_new(fd, "fd:7", &err);
    CHECK_FAILS(writes_truncate(&bed.source, ram, 4, NULL, &err), CAUSE_STATE);
    cr_expect(eq(str, err.message, "the size of RAM by reference does not change"));
    cr_expect(eq(int, writes_truncate(&bed.source, ram, 5, NULL, &err), 0));
    cr_expect(eq(int, writes_truncate(&bed.source, device, 4, NULL, &err), 1));
    bed_fail(&bed, CAUSE_RESET, "gone");
    CHECK_FAILS(writes_truncate(&bed.source, device, 5, NULL, &err), CAUSE_RESET);
    end();
}

/* Too much is on its way: the writer waits, and can be interrupted. */
Test(writes, full)
{
    struct error err;

    cr_assert(zero(int, gate_enter(&bed.conn->gate, bed.conn->gate.limit, NULL)));
    atomic_store(&ram->size, 5);
    CHECK_FAILS(try_write(ram, 5, 0, &hit, &err), CAUSE_INTERRUPTED);
    cr_expect(eq(str, err.message, "interrupted"));
    CHECK_FAILS(writes_discard(&bed.source, ram, 0, 5, &hit, &err), CAUSE_INTERRUPTED);
    CHECK_FAILS(writes_truncate(&bed.source, ram, 4, &hit, &err), CAUSE_INTERRUPTED);
    cr_expect(zero(u64, packets()));
    gate_leave(&bed.conn->gate, bed.conn->gate.limit);
    CHECK_OK(try_write(ram, 5, 0, &hit, &err));
    end();
}

static void write_five(void *arg)
{
    struct bed_call *w = arg;

    w->ret = try_write(ram, 5, 0, &w->interrupt, &w->err);
}

/* The gate is closed, or a channel is, and it is not clear what that means. */
Test(writes, closed)
{
    struct bed_call w = {0};
    struct error err, reason = {0};

    cr_assert(zero(int, gate_enter(&bed.conn->gate, bed.conn->gate.limit, NULL)));
    gate_close(&bed.conn->gate);
    CHECK_FAILS(try_write(ram, 5, 0, NULL, &err), CAUSE_RESET);
    cr_expect(eq(str, err.message, "the connection is lost"));
    error_set(&reason, CAUSE_RESET, "channel 1 is gone");
    pthread_mutex_lock(&m->lock);
    source_doom(&bed.source, &reason, 60000);
    pthread_mutex_unlock(&m->lock);
    CHECK_FAILS(try_write(ram, 5, 0, &hit, &err), CAUSE_INTERRUPTED);
    worker_start(&w.worker, write_five, &w);
    worker_await_sleep(&w.worker);
    cr_assert(not(atomic_load(&w.worker.done)));
    bed_fail(&bed, CAUSE_PEER, "the peer says why");
    worker_join(&w.worker);
    cr_expect(eq(int, w.ret, -EIO));
    cr_expect(eq(int, (int)w.err.cause, CAUSE_PEER));
    cr_expect(eq(str, w.err.message, "the peer says why"));
    end();
}

/* Writers do not wait for what holds the migration's lock. */
Test(writes, without_the_lock)
{
    struct bed_call w = {0};

    pthread_mutex_lock(&m->lock);
    worker_start(&w.worker, write_five, &w);
    worker_join(&w.worker);
    pthread_mutex_unlock(&m->lock);
    cr_expect(zero(int, w.ret), "%s", w.err.message);
    end();
}

/* `complete` has sealed the channels, and was interrupted: the writer tries again. */
Test(writes, sealed)
{
    struct bed_call w = {0};
    struct error reason = {0};

    channel_close(&bed.conn->channels[0], CHANNEL_SEALED);
    error_set(&reason, CAUSE_RESET, "perhaps");
    pthread_mutex_lock(&m->lock);
    source_doom(&bed.source, &reason, 60000);
    pthread_mutex_unlock(&m->lock);
    worker_start(&w.worker, write_five, &w);
    worker_await_sleep(&w.worker);
    cr_assert(not(atomic_load(&w.worker.done)));
    cr_expect(zero(u64, bed.conn->gate.used));
    channel_reopen(&bed.conn->channels[0]);
    pthread_mutex_lock(&m->lock);
    bed.source.doom = (struct error){0};
    pthread_mutex_unlock(&m->lock);
    bed_kick(&bed);
    worker_join(&w.worker);
    cr_expect(zero(int, w.ret), "%s", w.err.message);
    cr_expect(eq(u64, packets(), 1));
    bed_move(&bed, STATE_COMPLETING);
    refused(ram, 5, 0, CAUSE_STATE, "the migration is being completed");
    end();
}

/* What is in a pipe goes out of it when nobody looks at it. */
Test(writes, splices)
{
    struct error err;
    struct sender_write write;
    int pipes[2];

    m->settings.zero_pages = false;
    cr_expect(not(writes_can_splice(&bed.source, ram, WIRE_STRIPE_SIZE, 0)));
    bed.conn->splices = true;
    cr_expect(writes_can_splice(&bed.source, ram, WIRE_STRIPE_SIZE, 0));
    cr_expect(not(writes_can_splice(&bed.source, ram, WIRE_STRIPE_SIZE, 1)), "two channels");
    m->settings.zero_pages = true;
    cr_expect(not(writes_can_splice(&bed.source, ram, WIRE_STRIPE_SIZE, 0)));
    m->settings.zero_pages = false;
    bed.conn->limits.max_ram = 1000;
    cr_assert(zero(int, pipe(pipes)));
    CHECK_FAILS(writes_begin_splice(&bed.source, ram, pipes[0], 5, 996, NULL, &write, &err), CAUSE_QUOTA);
    cr_expect(zero(u64, packets()));
    close(pipes[0]);
    close(pipes[1]);
    end();
}

/*
 * What is compared
 */

static char image[4 * WIRE_PAGE_SIZE];

static void begin_comparing(void)
{
    struct error err = {0};

    bed.source.tracking = tracking_new(4 * (uint64_t)WIRE_STRIPE_SIZE, &err);
    cr_assert(ne(ptr, bed.source.tracking, NULL));
    for (size_t i = 0; i < sizeof(image); i++)
        image[i] = (char)(i / 7 + 1);
}

static int put(const void *buf, size_t len, uint64_t offset, const struct interrupt *interrupt,
               struct error *err)
{
    struct sender_write write;
    int ret = writes_begin(&bed.source, ram, buf, len, offset, interrupt, &write, err);

    if (ret == 0)
        sender_finish(&write);
    return ret;
}

/* How many bytes of a write are sent. */
static uint64_t sent_of(const void *buf, size_t len, uint64_t offset)
{
    uint64_t before = file_totals(ram).covered;
    struct error err;

    CHECK_OK(put(buf, len, offset, NULL, &err));
    return file_totals(ram).covered - before;
}

Test(writes, compared)
{
    const uint64_t page = WIRE_PAGE_SIZE, all = sizeof(image);
    struct error err;

    begin_comparing();
    cr_expect(eq(u64, sent_of(image, all, 0), all));
    cr_expect(zero(u64, sent_of(image, all, 0)));
    cr_expect(zero(u64, sent_of(image + page, 2 * page, page)));
    image[2 * page + 5] ^= 1;
    cr_expect(eq(u64, sent_of(image, all, 0), page));
    cr_expect(zero(u64, sent_of(image, all, 0)));
    /* The same bytes somewhere else, over the end of a stripe. */
    cr_expect(eq(u64, sent_of(image, all, WIRE_STRIPE_SIZE - 2 * page), all));
    cr_expect(zero(u64, sent_of(image, all, WIRE_STRIPE_SIZE - 2 * page)));
    /* Parts of pages always go, and of those pages nothing is known then. */
    cr_expect(eq(u64, sent_of(image + 100, 5000, 100), 5000));
    cr_expect(eq(u64, sent_of(image + 100, 5000, 100), 5000));
    cr_expect(eq(u64, sent_of(image, all, 0), 2 * page));
    /* Nothing at all. */
    cr_expect(zero(u64, sent_of(image, 0, 0)));
    struct tracking_figures figures = tracking_figures(bed.source.tracking);
    cr_expect(eq(u64, figures.scanned, 4 + 4 + 2 + 4 + 4 + 4 + 4 + 2 + 2 + 4));
    cr_expect(eq(u64, figures.changed, 4 + 0 + 0 + 1 + 0 + 4 + 0 + 2 + 2 + 2));
    /* A device is not. */
    CHECK_OK(try_write(device, 8, 0, NULL, &err));
    uint64_t before = packets();
    CHECK_OK(try_write(device, 8, 0, NULL, &err));
    cr_expect(eq(u64, packets(), before + 1));
    cr_expect(not(writes_can_splice(&bed.source, ram, WIRE_STRIPE_SIZE, 0)));
    end();
}

Test(writes, compared_after_holes)
{
    const uint64_t page = WIRE_PAGE_SIZE, all = sizeof(image);
    struct error err;

    begin_comparing();
    sent_of(image, all, 0);
    CHECK_OK(writes_discard(&bed.source, ram, page, page, NULL, &err));
    cr_expect(eq(u64, sent_of(image, all, 0), page));
    CHECK_OK(writes_discard(&bed.source, ram, 2 * page + 10, page, NULL, &err));
    cr_expect(eq(u64, sent_of(image, all, 0), 2 * page), "two pages are touched");
    cr_expect(eq(int, writes_truncate(&bed.source, ram, page, NULL, &err), 1));
    cr_expect(eq(u64, sent_of(image, all, 0), 3 * page));
    cr_expect(eq(int, writes_truncate(&bed.source, ram, page - 1, NULL, &err), 1));
    cr_expect(eq(u64, sent_of(image, all, 0), all));
    cr_expect(zero(u64, sent_of(image, all, 0)));
    end();
}

/* What was not accepted is not known to have been sent. */
Test(writes, compared_in_vain)
{
    const uint64_t page = WIRE_PAGE_SIZE, all = sizeof(image);
    struct error err;

    begin_comparing();
    sent_of(image, all, 0);
    image[0] ^= 1;
    bed.conn->gate.used = bed.conn->gate.limit;
    CHECK_FAILS(put(image, all, 0, &hit, &err), CAUSE_INTERRUPTED);
    bed.conn->gate.used = 0;
    cr_expect(eq(u64, sent_of(image, all, 0), all), "of none of its pages it is known");
    cr_expect(zero(u64, sent_of(image, all, 0)));
    /* Somebody else has the stripe. */
    cr_assert(zero(int, tracking_enter(bed.source.tracking, page, 1, NULL)));
    CHECK_FAILS(put(image, all, 0, &hit, &err), CAUSE_INTERRUPTED);
    CHECK_FAILS(writes_discard(&bed.source, ram, 0, 1, &hit, &err), CAUSE_INTERRUPTED);
    CHECK_FAILS(writes_truncate(&bed.source, ram, 1, &hit, &err), CAUSE_INTERRUPTED);
    tracking_leave(bed.source.tracking, page, 1);
    cr_expect(zero(u64, sent_of(image, all, 0)), "they have left it as it was");
    end();
}
