/* SPDX-License-Identifier: Apache-2.0 */
/* `flush` and `sync` of a source whose destination the test plays. */
#include "barriers.h"
#include "bed.h"
#include "check.h"
#include "cleanup.h"
#include "clock.h"

#include <errno.h>
#include <string.h>

static struct bed bed;
static struct migration *m;
static struct streams streams;
static struct barriers barriers;
static struct file *ram, *device;
static const struct interrupt hit = {true};

static void set_up(void)
{
    bed_init(&bed);
    m = bed.m;
    ram = m->files[WIRE_RAM];
    streams_init(&streams, &bed.source);
    barriers_init(&barriers, &bed.source, &streams);
}

static void set_up_active(void)
{
    set_up();
    bed_activate(&bed);
    device = bed_device(&bed, "x");
}

static bool nobody_waits(void)
{
    SCOPED_LOCK(&m->lock);
    return !barriers.waiters;
}

static void end(void)
{
    cr_expect(nobody_waits(), "nobody is left in the list");
    streams_fini(&streams);
    bed_fini(&bed);
}

TestSuite(barriers, .init = set_up_active);
TestSuite(barriers_before, .init = set_up);

struct waiter {
    struct bed_call call;
    struct file *file;
    int (*wait)(struct barriers *barriers, struct file *file, const struct interrupt *interrupt,
                struct error *err);
};

static void work(void *arg)
{
    struct waiter *w = arg;

    w->call.ret = w->wait(&barriers, w->file, &w->call.interrupt, &w->call.err);
}

/* Begins to wait, and does wait. */
static void begin(struct waiter *w, const struct waiter *how)
{
    *w = *how;
    worker_start(&w->call.worker, work, w);
    bed_waits(&w->call);
}

static void flush_begin(struct waiter *w, struct file *file)
{
    begin(w, &(struct waiter){.file = file, .wait = barriers_flush});
}

static void sync_begin(struct waiter *w, struct file *file)
{
    begin(w, &(struct waiter){.file = file, .wait = barriers_sync});
}

static void interrupt(struct waiter *w)
{
    bed_interrupt(&bed, &w->call);
    bed_fails(&w->call, CAUSE_INTERRUPTED, "interrupted");
}

Test(barriers_before, not_started)
{
    struct error err;

    CHECK_FAILS(barriers_flush(&barriers, NULL, NULL, &err), CAUSE_NOT_STARTED);
    CHECK_FAILS(barriers_sync(&barriers, NULL, NULL, &err), CAUSE_NOT_STARTED);
    bed_connect(&bed);
    CHECK_FAILS(barriers_flush(&barriers, NULL, NULL, &err), CAUSE_NOT_STARTED);
    CHECK_FAILS(barriers_sync(&barriers, NULL, NULL, &err), CAUSE_NOT_STARTED);
    bed_quiet(&bed);
    end();
}

Test(barriers, flush_is_local)
{
    struct waiter w;
    struct error err;

    CHECK_OK(barriers_flush(&barriers, NULL, &hit, &err)); /* nothing to wait for */
    for (unsigned c = 0; c < BED_CHANNELS; c++) {
        bed_queued(&bed, c, device, 5 + c);
        CHECK_OK(barriers_flush(&barriers, ram, NULL, &err));
        flush_begin(&w, NULL);
        bed_sent(&bed, c);
        bed_works(&w.call);
        bed_queued(&bed, c, device, 8 + c);
        flush_begin(&w, device);
        bed_sent(&bed, c);
        bed_works(&w.call);
        bed_queued(&bed, c, NULL, 20 + c);
        CHECK_OK(barriers_flush(&barriers, device, NULL, &err));
        flush_begin(&w, NULL);
        interrupt(&w);
        bed_sent(&bed, c);
    }
    bed_quiet(&bed);
    end();
}

Test(barriers, flush_when_a_channel_is_gone)
{
    struct error err, reason = {0};
    struct waiter w;

    bed_queued(&bed, 1, NULL, 3);
    channel_close(&bed.conn->channels[1], CHANNEL_DEAD);
    CHECK_FAILS(barriers_flush(&barriers, NULL, NULL, &err), CAUSE_RESET);
    cr_expect(eq(str, err.message, "the connection is lost"));
    error_set(&reason, CAUSE_RESET, "why");
    pthread_mutex_lock(&m->lock);
    source_doom(&bed.source, &reason, 60000);
    pthread_mutex_unlock(&m->lock);
    flush_begin(&w, NULL);
    bed_fail(&bed, CAUSE_PEER, "the peer has said why");
    bed_fails(&w.call, CAUSE_PEER, "the peer has said why");
    CHECK_FAILS(barriers_flush(&barriers, NULL, NULL, &err), CAUSE_PEER);
    end();
}

/* What is required in vain is the migration's failure, and a flush tells of that. */
static void require_in_vain(bool unlockable, int code)
{
    struct waiter w;

    bed.conn->channels[2].zerocopy =
        (struct zerocopy){.mode = ZEROCOPY_REQUIRE, .in_vain = ZEROCOPY_GIVE_UP, .unlockable = unlockable};
    flush_begin(&w, NULL);
    interrupt(&w);
    cr_expect(eq(int, bed.channel_code, code));
    flush_begin(&w, NULL);
    bed_fail(&bed, CAUSE_UNSUPPORTED, "in vain");
    bed_fails(&w.call, CAUSE_UNSUPPORTED, "in vain");
    end();
}

Test(barriers, flush_when_the_kernel_copies)
{
    require_in_vain(false, -EOPNOTSUPP);
}

Test(barriers, flush_when_no_memory_can_be_locked)
{
    require_in_vain(true, -ENOBUFS);
}

/* One flush finds it out, and another one that waits for the same channel learns it. */
Test(barriers, flush_that_waits_when_the_kernel_copies)
{
    struct channel *ch = &bed.conn->channels[2];
    struct waiter w;

    bed_queued(&bed, 2, NULL, 3);
    flush_begin(&w, NULL);
    pthread_mutex_lock(&ch->lock);
    ch->zerocopy = (struct zerocopy){.mode = ZEROCOPY_REQUIRE, .in_vain = ZEROCOPY_GIVE_UP};
    pthread_mutex_unlock(&ch->lock);
    cr_expect(eq(int, channel_flush(ch, 0, NULL), -EOPNOTSUPP));
    bed_fail(&bed, CAUSE_UNSUPPORTED, "in vain");
    bed_fails(&w.call, CAUSE_UNSUPPORTED, "in vain");
    end();
}

Test(barriers, sync_when_the_kernel_copies)
{
    struct waiter w;
    uint64_t id;

    sync_begin(&w, NULL);
    bed_said(&bed, WIRE_SYNC, &id);
    bed.conn->channels[2].zerocopy = (struct zerocopy){.mode = ZEROCOPY_REQUIRE, .in_vain = ZEROCOPY_GIVE_UP};
    barriers_on_ack(&barriers, id);
    worker_await_sleep(&w.call.worker);
    cr_expect(not(atomic_load(&w.call.worker.done)));
    bed_fail(&bed, CAUSE_UNSUPPORTED, "in vain");
    bed_fails(&w.call, CAUSE_UNSUPPORTED, "in vain");
    cr_expect(eq(u64, m->rounds, 0));
    end();
}

Test(barriers, sync_says_what_was_accepted)
{
    struct waiter all, of_device;
    uint64_t id, next;

    bed_accepted(&bed, 0, device, 7);
    bed_accepted(&bed, 0, NULL, 11);
    bed_accepted(&bed, 1, NULL, 2);
    bed_accepted(&bed, 2, device, 9);
    cr_expect(not(barriers_is_answer_due(&barriers)));
    sync_begin(&all, NULL);
    struct wire_reader body = bed_said(&bed, WIRE_SYNC, &id);
    bed_counts(&body, 11, 2, 9);
    cr_expect(wire_read_done(&body));
    sync_begin(&of_device, device);
    body = bed_said(&bed, WIRE_SYNC, &next);
    bed_counts(&body, 7, 0, 9);
    cr_expect(wire_read_done(&body));
    cr_expect(eq(u64, next, id + 1));
    cr_expect(barriers_is_answer_due(&barriers));
    barriers_on_ack(&barriers, id);
    bed_works(&all.call);
    cr_expect(barriers_is_answer_due(&barriers));
    worker_await_sleep(&of_device.call.worker);
    cr_expect(not(atomic_load(&of_device.call.worker.done)), "that was not for it");
    barriers_on_ack(&barriers, next);
    bed_works(&of_device.call);
    cr_expect(not(barriers_is_answer_due(&barriers)));
    barriers_on_ack(&barriers, next);
    cr_expect(zero(uint, barriers.unanswered), "one answer too many does no harm");
    cr_expect(eq(u64, m->rounds, 1), "a barrier of a device ends no round");
    bed_quiet(&bed);
    end();
}

/* The counters here are to be exact, too: the thread that sends may be slower than the destination. */
Test(barriers, sync_waits_for_its_own_side)
{
    for (unsigned c = 0; c < BED_CHANNELS; c++) {
        struct waiter w;
        uint64_t id;
        bed_queued(&bed, c, NULL, 4);
        sync_begin(&w, NULL);
        bed_said(&bed, WIRE_SYNC, &id);
        barriers_on_ack(&barriers, id);
        worker_await_sleep(&w.call.worker);
        cr_expect(not(atomic_load(&w.call.worker.done)));
        cr_expect(nobody_waits());
        cr_expect(eq(u64, m->rounds, c));
        if (c == 1) {
            /* A thread that is interrupted here has what it asked for. */
            atomic_store(&w.call.interrupt.hit, true);
            bed_kick(&bed);
        } else {
            bed_sent(&bed, c);
        }
        bed_works(&w.call);
        bed_sent(&bed, c);
    }
    cr_expect(eq(u64, m->rounds, 3));
    end();
}

Test(barriers, interrupted_in_any_order)
{
    struct waiter w[3];

    for (unsigned first = 0; first < 3; first++) {
        uint64_t ids[3];
        for (unsigned i = 0; i < 3; i++) {
            sync_begin(&w[i], NULL);
            bed_said(&bed, WIRE_SYNC, &ids[i]);
        }
        interrupt(&w[first]);
        cr_expect(eq(uint, barriers.unanswered, 3), "the destination has it all the same");
        for (unsigned i = 0; i < 3; i++)
            barriers_on_ack(&barriers, ids[i]);
        for (unsigned i = 0; i < 3; i++) {
            if (i != first)
                bed_works(&w[i].call);
        }
        cr_expect(nobody_waits());
        cr_expect(zero(uint, barriers.unanswered));
    }
    end();
}

Test(barriers, only_so_many_are_unanswered)
{
    struct waiter w;
    struct error err;
    uint64_t id;

    barriers.unanswered = WIRE_SYNCS_MAX - 1;
    sync_begin(&w, NULL);
    bed_said(&bed, WIRE_SYNC, &id);
    interrupt(&w);
    cr_expect(eq(uint, barriers.unanswered, WIRE_SYNCS_MAX));
    CHECK_FAILS(barriers_sync(&barriers, NULL, &hit, &err), CAUSE_INTERRUPTED);
    cr_expect(eq(str, err.message, "interrupted"));
    sync_begin(&w, NULL);
    bed_quiet(&bed);
    barriers_on_ack(&barriers, id);
    bed_said(&bed, WIRE_SYNC, &id);
    cr_expect(eq(uint, barriers.unanswered, WIRE_SYNCS_MAX));
    barriers_on_ack(&barriers, id);
    bed_works(&w.call);
    /* One that waits for its turn ends with the migration. */
    barriers.unanswered = WIRE_SYNCS_MAX;
    sync_begin(&w, NULL);
    bed_fail(&bed, CAUSE_RESET, "gone");
    bed_fails(&w.call, CAUSE_RESET, "gone");
    bed_quiet(&bed);
    end();
}

Test(barriers, ends_with_the_migration)
{
    struct waiter w;
    struct error err;
    uint64_t id;

    sync_begin(&w, ram);
    bed_said(&bed, WIRE_SYNC, &id);
    bed_fail(&bed, CAUSE_MISMATCH, "damaged");
    bed_fails(&w.call, CAUSE_MISMATCH, "damaged");
    CHECK_FAILS(barriers_sync(&barriers, NULL, NULL, &err), CAUSE_MISMATCH);
    end();
}

/* What `complete` applies includes it. */
Test(barriers, complete_does_not_end_it)
{
    struct waiter w;
    struct error err;
    uint64_t id;

    sync_begin(&w, NULL);
    bed_said(&bed, WIRE_SYNC, &id);
    bed_move(&bed, STATE_COMPLETING);
    CHECK_FAILS(barriers_sync(&barriers, NULL, NULL, &err), CAUSE_STATE);
    worker_await_sleep(&w.call.worker);
    cr_expect(not(atomic_load(&w.call.worker.done)));
    bed_move(&bed, STATE_COMPLETED);
    bed_works(&w.call);
    end();
}

/* That the device has the name which it has here belongs to it, but not to the RAM. */
Test(barriers, waits_for_the_names)
{
    struct waiter w;
    uint64_t id;

    streams.last_change = 5;
    streams.last_made = 4;
    sync_begin(&w, device);
    bed_said(&bed, WIRE_SYNC, &id);
    barriers_on_ack(&barriers, id);
    worker_await_sleep(&w.call.worker);
    cr_expect(not(atomic_load(&w.call.worker.done)), "the name is not there");
    interrupt(&w);
    sync_begin(&w, device);
    bed_said(&bed, WIRE_SYNC, &id);
    pthread_mutex_lock(&m->lock);
    streams.last_change = 6; /* a later one is no matter of this */
    streams.last_made = 5;
    pthread_mutex_unlock(&m->lock);
    bed_kick(&bed);
    worker_await_sleep(&w.call.worker);
    cr_expect(not(atomic_load(&w.call.worker.done)), "the bytes are not there");
    barriers_on_ack(&barriers, id);
    bed_works(&w.call);
    sync_begin(&w, ram);
    bed_said(&bed, WIRE_SYNC, &id);
    barriers_on_ack(&barriers, id);
    bed_works(&w.call);
    sync_begin(&w, NULL);
    bed_said(&bed, WIRE_SYNC, &id);
    barriers_on_ack(&barriers, id);
    bed_works(&w.call);
    end();
}

static void sync_ram(void)
{
    struct waiter w;
    uint64_t id;

    sync_begin(&w, ram);
    bed_said(&bed, WIRE_SYNC, &id);
    barriers_on_ack(&barriers, id);
    bed_works(&w.call);
}

Test(barriers, rounds)
{
    struct file_channel *first = &ram->per_channel[0], *last = &ram->per_channel[2];

    counter_add(&first->pages, 10);
    counter_add(&last->pages, 5);
    counter_add(&first->zero_pages, 3);
    counter_add(&first->bytes, 40000);
    counter_add(&last->bytes, 20480);
    counter_add(&device->per_channel[0].bytes, 99999);
    bed.conn->channels[0].wire_bytes = 1000;
    bed.conn->channels[2].wire_bytes = 234;
    m->times.active = clock_ms() - 5000;
    int64_t began = clock_ms();
    sync_ram();
    int64_t took = clock_ms() - began;
    cr_expect(eq(u64, m->rounds, 1));
    cr_expect(eq(u64, m->last_round.pages, 18));
    cr_expect(eq(u64, m->last_round.bytes, 60480 + 3 * WIRE_PAGE_SIZE));
    cr_expect(eq(u64, m->last_round.wire_bytes, 1234));
    cr_expect(ge(i64, m->last_round.time_ms, 5000));
    cr_expect(le(i64, m->last_round.time_ms, 5000 + took + 1));

    /* The second one begins where the first one has ended. */
    counter_add(&first->pages, 2);
    counter_add(&first->zero_pages, 1);
    counter_add(&last->bytes, 8192);
    bed.conn->channels[1].wire_bytes = 50;
    barriers.round_start.time_ms -= 7000;
    began = clock_ms();
    sync_ram();
    took = clock_ms() - began;
    cr_expect(eq(u64, m->rounds, 2));
    cr_expect(eq(u64, m->last_round.pages, 3));
    cr_expect(eq(u64, m->last_round.bytes, 8192 + WIRE_PAGE_SIZE));
    cr_expect(eq(u64, m->last_round.wire_bytes, 50));
    cr_expect(ge(i64, m->last_round.time_ms, 7000));
    sync_ram();
    cr_expect(eq(u64, m->last_round.pages, 0));
    cr_expect(eq(u64, m->last_round.bytes, 0));
    cr_expect(lt(i64, m->last_round.time_ms, 7000 + took));
    end();
}
