/* SPDX-License-Identifier: Apache-2.0 */
/* The devices of a source whose destination the test plays, message by message. */
#include "streams.h"
#include "bed.h"
#include "blocked.h"
#include "check.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static struct bed bed;
static struct migration *m;
static struct streams streams;
static const struct interrupt hit = {true};

static void set_up(void)
{
    bed_init(&bed);
    m = bed.m;
    streams_init(&streams, &bed.source);
}

static void end(void)
{
    streams_fini(&streams);
    bed_fini(&bed);
}

TestSuite(streams, .init = set_up);

/* The destination answers. */
static int reply(uint32_t id, uint32_t cause, const char *text, struct error *err)
{
    uint8_t buf[300];
    struct wire_writer w = {buf, buf, buf + sizeof(buf)};

    wire_write_u32(&w, id);
    wire_write_u32(&w, cause);
    wire_write_text(&w, text);
    struct wire_reader body = {.p = buf, .left = wire_written(&w)};
    return streams_on_reply(&streams, &body, err);
}

/* A caller of streams_create() that waits. */
struct maker {
    struct worker worker;
    struct interrupt interrupt;
    const char *name;
    bool exclusive;
    struct file *file;
    struct error err;
    int ret;
};

static void make(void *arg)
{
    struct maker *maker = arg;

    maker->ret =
        streams_create(&streams, maker->name, maker->exclusive, &maker->interrupt, &maker->file, &maker->err);
}

static void make_begin(struct maker *maker, const char *name)
{
    *maker = (struct maker){.name = name};
    worker_start(&maker->worker, make, maker);
    worker_await_sleep(&maker->worker);
}

static struct file *create(const char *name)
{
    struct file *file = NULL;
    struct error err;

    CHECK_OK(streams_create(&streams, name, false, NULL, &file, &err));
    file_put(file); /* it is in the table */
    return file;
}

Test(streams, made_before_the_start)
{
    struct file *file = NULL;
    struct error err;

    struct file *a = create("a"), *b = create("b");
    cr_expect(eq(u32, a->id, 1));
    cr_expect(eq(u32, b->id, 2));
    cr_expect(eq(u32, b->slot, 2));
    cr_expect(a->made_here);
    cr_expect(not(a->announced_open));
    cr_expect(eq(uint, a->refs, 1));
    cr_expect(zero(ptr, a->per_channel));
    cr_expect(eq(ptr, create("a"), a), "it is there already");
    CHECK_FAILS(streams_create(&streams, "b", true, NULL, &file, &err), CAUSE_EXISTS);
    cr_expect(eq(str, err.message, "the device 'b' exists already"));
    CHECK_FAILS(streams_create(&streams, "a/b", false, NULL, &file, &err), CAUSE_SYNTAX);
    cr_expect(zero(ptr, file));
    CHECK_OK(streams_create(&streams, "c", true, NULL, &file, &err));
    cr_expect(eq(u32, file->id, 3));
    cr_expect(eq(uint, file->refs, 2));
    file_put(file);
    end();
}

Test(streams, as_many_as_there_may_be)
{
    struct file *file = NULL;
    struct error err;
    char name[16];

    for (unsigned i = 1; i <= WIRE_DEVICES_MAX; i++) {
        snprintf(name, sizeof(name), "%u", i);
        create(name);
    }
    CHECK_FAILS(streams_create(&streams, "more", false, NULL, &file, &err), CAUSE_QUOTA);
    cr_expect(eq(str, err.message, "there are 4096 devices already, and no more are allowed"));
    CHECK_OK(streams_remove(&streams, "17", NULL, &err));
    cr_expect(eq(u32, create("more")->id, 17), "the number is free");
    end();
}

Test(streams, removed_and_renamed_before_the_start)
{
    struct error err;

    struct file *a = file_get(create("a")), *b = create("b"), *c = create("c");
    cr_expect(zero(int, file_open_reader(a)));
    CHECK_OK(streams_remove(&streams, "a", NULL, &err));
    cr_expect(file_is_removed(a));
    cr_expect(a->orphaned, "a reader that waits for a peer is told");
    cr_expect(eq(uint, a->refs, 1));
    cr_expect(eq(int, file_open_reader(a), -ESTALE));
    file_close_reader(a);
    file_put(a);
    CHECK_FAILS(streams_remove(&streams, "a", NULL, &err), CAUSE_NOT_FOUND);
    cr_expect(eq(str, err.message, "there is no device 'a'"));
    CHECK_FAILS(streams_rename(&streams, "b", "c", true, NULL, &err), CAUSE_EXISTS);
    cr_expect(eq(str, err.message, "the device 'c' exists already"));
    CHECK_FAILS(streams_rename(&streams, "b", "b", true, NULL, &err), CAUSE_EXISTS);
    CHECK_OK(streams_rename(&streams, "b", "b", false, NULL, &err));
    CHECK_OK(streams_rename(&streams, "b", "d", true, NULL, &err));
    cr_expect(eq(str, b->name, "d"));
    CHECK_FAILS(streams_rename(&streams, "d", "..", false, NULL, &err), CAUSE_SYNTAX);
    /* The gap that the first one has left is closed. */
    streams_number(&streams);
    cr_expect(eq(u32, m->file_count, 3));
    cr_expect(eq(ptr, m->files[1], b));
    cr_expect(eq(ptr, m->files[2], c));
    cr_expect(zero(ptr, m->files[3]));
    cr_expect(eq(u32, b->id, 1));
    cr_expect(eq(u32, b->slot, 1));
    cr_expect(eq(u32, c->id, 2));
    cr_expect(eq(u32, c->slot, 2));
    CHECK_OK(streams_rename(&streams, "d", "c", false, NULL, &err));
    cr_expect(eq(uint, migration_count_devices(m), 1));
    cr_expect(eq(str, b->name, "c"));
    cr_expect(eq(uint, streams.changes, 0));
    end();
}

Test(streams, announced_in_setup)
{
    struct error err;

    struct file *ram = m->files[WIRE_RAM];
    ram->size = 123456789;
    bed_connect(&bed);
    cr_expect(not(streams_is_answer_due(&streams)));
    CHECK_FAILS(reply(WIRE_RAM, CAUSE_NONE, "", &err), CAUSE_PROTOCOL);
    streams_announce(&streams, bed.conn, ram);
    struct wire_reader body = bed_said(&bed, WIRE_FILE_CREATE, NULL);
    char name[WIRE_NAME_MAX + 1];
    cr_expect(eq(u32, wire_read_u32(&body), WIRE_RAM));
    cr_expect(eq(u64, wire_read_u64(&body), 123456789));
    wire_read_text(&body, name, WIRE_NAME_MAX);
    cr_expect(eq(str, name, "ram"));
    cr_expect(wire_read_done(&body));
    cr_expect(eq(uint, ram->refs, 2));
    cr_expect(not(streams_is_answered(&streams)));
    cr_expect(streams_is_answer_due(&streams));

    CHECK_FAILS(reply(1, CAUSE_NONE, "", &err), CAUSE_PROTOCOL);
    cr_expect(eq(str, err.message, "an answer about a file that nobody asked for"));
    uint8_t more[13] = {0};
    struct wire_reader longer = {.p = more, .left = sizeof(more)};
    CHECK_FAILS(streams_on_reply(&streams, &longer, &err), CAUSE_PROTOCOL);
    cr_expect(not(streams_is_answered(&streams)));
    CHECK_OK(reply(WIRE_RAM, CAUSE_NONE, "", &err));
    cr_expect(streams_is_answered(&streams));
    cr_expect(not(streams_is_answer_due(&streams)));
    cr_expect(ram->announced_open);
    cr_expect(eq(u32, m->file_count, 1), "it was there");
    CHECK_FAILS(reply(WIRE_RAM, CAUSE_NONE, "", &err), CAUSE_PROTOCOL);
    CHECK_OK(streams_take_answer(&streams, &err));
    cr_expect(eq(uint, ram->refs, 1));
    cr_expect(not(streams_is_answered(&streams)));

    streams_announce(&streams, bed.conn, ram);
    bed_said(&bed, WIRE_FILE_CREATE, NULL);
    ram->announced_open = false;
    CHECK_OK(reply(WIRE_RAM, CAUSE_QUOTA, "no room", &err));
    cr_expect(not(ram->announced_open));
    CHECK_FAILS(streams_take_answer(&streams, &err), CAUSE_QUOTA);
    cr_expect(eq(str, err.message, "the destination refuses: no room"));
    cr_expect(eq(uint, ram->refs, 1));
    bed_quiet(&bed);
    end();
}

Test(streams, made_while_it_runs)
{
    struct maker first, second;
    struct error err;
    char name[WIRE_NAME_MAX + 1];

    bed_activate(&bed);
    make_begin(&first, "first");
    struct wire_reader body = bed_said(&bed, WIRE_FILE_CREATE, NULL);
    cr_expect(eq(u32, wire_read_u32(&body), 1));
    cr_expect(eq(u64, wire_read_u64(&body), 0));
    wire_read_text(&body, name, WIRE_NAME_MAX);
    cr_expect(eq(str, name, "first"));
    cr_expect(wire_read_done(&body));
    cr_expect(streams_is_answer_due(&streams));
    cr_expect(zero(ptr, migration_device(m, "first")), "the destination has not taken it");
    /* One at a time. */
    make_begin(&second, "second");
    bed_quiet(&bed);
    CHECK_OK(reply(1, CAUSE_NONE, "", &err));
    worker_join(&first.worker);
    cr_assert(zero(int, first.ret), "%s", first.err.message);
    cr_expect(eq(ptr, migration_device(m, "first"), first.file));
    cr_expect(eq(u32, first.file->slot, 1));
    cr_expect(first.file->announced_open);
    cr_expect(not(first.file->made_here));
    cr_expect(eq(uint, first.file->channels, BED_CHANNELS));
    cr_expect(eq(uint, first.file->refs, 2));
    file_put(first.file);
    body = bed_said(&bed, WIRE_FILE_CREATE, NULL);
    cr_expect(eq(u32, wire_read_u32(&body), 2));
    CHECK_OK(reply(2, CAUSE_DENIED, "not this one", &err));
    worker_join(&second.worker);
    cr_expect(eq(int, second.ret, -EIO));
    cr_expect(eq(int, (int)second.err.cause, CAUSE_DENIED));
    cr_expect(eq(str, second.err.message, "the destination refuses: not this one"));
    cr_expect(eq(uint, migration_count_devices(m), 1));
    cr_expect(zero(ptr, second.file));
    bed_quiet(&bed);
    end();
}

Test(streams, channels_of_a_device)
{
    struct maker maker;
    struct error err;

    bed_activate(&bed);
    bed.conn->hello.device_channels = 1;
    make_begin(&maker, "x");
    bed_said(&bed, WIRE_FILE_CREATE, NULL);
    CHECK_OK(reply(1, CAUSE_NONE, "", &err));
    worker_join(&maker.worker);
    cr_expect(eq(uint, maker.file->homes.first, 2));
    cr_expect(eq(uint, maker.file->homes.count, 1));
    file_put(maker.file);
    end();
}

/* A device whose maker has left when the answer comes exists all the same. */
Test(streams, maker_that_leaves)
{
    struct maker maker, next;
    struct error err;

    bed_activate(&bed);
    make_begin(&maker, "x");
    bed_said(&bed, WIRE_FILE_CREATE, NULL);
    atomic_store(&maker.interrupt.hit, true);
    bed_kick(&bed);
    worker_join(&maker.worker);
    cr_expect(eq(int, (int)maker.err.cause, CAUSE_INTERRUPTED));
    cr_expect(eq(str, maker.err.message, "interrupted: the destination decides whether 'x' exists"));
    cr_expect(streams_is_answer_due(&streams));
    cr_expect(zero(ptr, migration_device(m, "x")));
    /* A thread that waits for the turn can be interrupted, too, and lets nothing be said. */
    struct file *file = NULL;
    CHECK_FAILS(streams_create(&streams, "y", false, &hit, &file, &err), CAUSE_INTERRUPTED);
    cr_expect(eq(str, err.message, "interrupted"));
    bed_quiet(&bed);
    make_begin(&next, "x");
    CHECK_OK(reply(1, CAUSE_NONE, "", &err));
    worker_join(&next.worker);
    cr_assert(zero(int, next.ret), "%s", next.err.message);
    cr_expect(eq(ptr, migration_device(m, "x"), next.file), "the one that was made");
    cr_expect(eq(uint, next.file->refs, 2));
    cr_expect(not(streams_is_answer_due(&streams)));
    cr_expect(zero(ptr, streams.announced.file));
    file_put(next.file);
    bed_quiet(&bed);
    end();
}

Test(streams, maker_whose_migration_ends)
{
    struct maker maker;
    struct error err;
    struct file *file = NULL;

    bed_activate(&bed);
    make_begin(&maker, "x");
    bed_said(&bed, WIRE_FILE_CREATE, NULL);
    bed_fail(&bed, CAUSE_RESET, "the network is gone");
    worker_join(&maker.worker);
    cr_expect(eq(int, maker.ret, -EIO));
    cr_expect(eq(int, (int)maker.err.cause, CAUSE_RESET));
    cr_expect(eq(str, maker.err.message, "the network is gone"));
    cr_expect(zero(ptr, streams.announced.file));
    CHECK_FAILS(streams_create(&streams, "y", false, NULL, &file, &err), CAUSE_RESET);
    CHECK_FAILS(streams_remove(&streams, "x", NULL, &err), CAUSE_NOT_FOUND);
    bed_quiet(&bed);
    end();
}

Test(streams, as_many_as_the_destination_allows)
{
    struct maker maker;
    struct file *file = NULL;
    struct error err;
    char name[16];

    bed_activate(&bed);
    bed.conn->limits.max_devices = 3;
    for (unsigned i = 1; i <= 2; i++) {
        snprintf(name, sizeof(name), "%u", i);
        bed_device(&bed, name);
    }
    make_begin(&maker, "3");
    bed_said(&bed, WIRE_FILE_CREATE, NULL);
    CHECK_OK(reply(3, CAUSE_NONE, "", &err));
    worker_join(&maker.worker);
    file_put(maker.file);
    CHECK_FAILS(streams_create(&streams, "4", false, NULL, &file, &err), CAUSE_QUOTA);
    cr_expect(eq(str, err.message, "there are 3 devices already, and no more are allowed"));
    /* A number is free when the destination has removed its device, too. */
    CHECK_OK(streams_remove(&streams, "2", NULL, &err));
    uint64_t id;
    bed_said(&bed, WIRE_FILE_REMOVE, &id);
    CHECK_FAILS(streams_create(&streams, "4", false, &hit, &file, &err), CAUSE_INTERRUPTED);
    make_begin(&maker, "4");
    bed_quiet(&bed);
    CHECK_OK(streams_on_changed(&streams, id, &err));
    struct wire_reader body = bed_said(&bed, WIRE_FILE_CREATE, NULL);
    cr_expect(eq(u32, wire_read_u32(&body), 2));
    CHECK_OK(reply(2, CAUSE_NONE, "", &err));
    worker_join(&maker.worker);
    cr_expect(zero(int, maker.ret));
    file_put(maker.file);
    end();
}

Test(streams, removed_while_it_runs)
{
    struct error err;
    uint64_t id;

    bed_activate(&bed);
    struct file *a = file_get(bed_device(&bed, "a")), *b = bed_device(&bed, "b");
    bed_accepted(&bed, 0, a, 7);
    bed_accepted(&bed, 2, a, 9);
    bed_accepted(&bed, 1, b, 4);
    counter_add(&a->per_channel[0].packets, 5);
    CHECK_OK(streams_remove(&streams, "a", NULL, &err));
    cr_expect(file_is_removed(a));
    cr_expect(not(a->orphaned));
    cr_expect(eq(ptr, m->files[1], a), "its number stays taken");
    cr_expect(zero(ptr, migration_device(m, "a")));
    struct wire_reader body = bed_said(&bed, WIRE_FILE_REMOVE, &id);
    cr_expect(eq(u64, id, a->removal));
    cr_expect(eq(u64, id, streams.last_change));
    cr_expect(eq(u32, wire_read_u32(&body), 1));
    bed_counts(&body, 7, 0, 9);
    cr_expect(wire_read_done(&body));
    cr_expect(eq(uint, streams.changes, 1));
    cr_expect(streams_is_answer_due(&streams));
    /* What its writers do is told nobody. */
    atomic_store(&a->touched, true);
    streams_open_writer(&streams, a);
    streams_close_writer(&streams, a);
    bed_quiet(&bed);

    CHECK_OK(streams_on_changed(&streams, id, &err));
    cr_expect(eq(u64, streams.last_made, id));
    cr_expect(zero(ptr, m->files[1]));
    cr_expect(eq(u64, m->gone[0].packets, 5), "what it did is counted");
    cr_expect(eq(uint, a->refs, 1));
    cr_expect(not(streams_is_answer_due(&streams)));
    CHECK_FAILS(streams_on_changed(&streams, id, &err), CAUSE_PROTOCOL);
    cr_expect(eq(str, err.message, "the destination has changed a name that it was not asked to"));
    cr_expect(eq(uint, streams.changes, 0));
    file_put(a);
    end();
}

Test(streams, renamed_while_it_runs)
{
    struct error err;
    uint64_t id, next;
    char name[WIRE_NAME_MAX + 1];

    bed_activate(&bed);
    struct file *a = bed_device(&bed, "a"), *b = file_get(bed_device(&bed, "b"));
    bed_accepted(&bed, 0, a, 7);
    bed_accepted(&bed, 1, a, 3);
    bed_accepted(&bed, 1, b, 5);
    CHECK_FAILS(streams_rename(&streams, "a", "b", true, NULL, &err), CAUSE_EXISTS);
    CHECK_OK(streams_rename(&streams, "a", "a", false, NULL, &err));
    bed_quiet(&bed);
    CHECK_OK(streams_rename(&streams, "a", "b", false, NULL, &err));
    cr_expect(eq(ptr, migration_device(m, "b"), a));
    cr_expect(file_is_removed(b));
    struct wire_reader body = bed_said(&bed, WIRE_FILE_RENAME, &id);
    cr_expect(eq(u32, wire_read_u32(&body), 1));
    bed_counts(&body, 7, 5, 0); /* after what was accepted for both */
    cr_expect(eq(u32, wire_read_u32(&body), 2));
    wire_read_text(&body, name, WIRE_NAME_MAX);
    cr_expect(eq(str, name, "b"));
    cr_expect(wire_read_done(&body));

    CHECK_OK(streams_rename(&streams, "b", "c", true, NULL, &err));
    body = bed_said(&bed, WIRE_FILE_RENAME, &next);
    cr_expect(eq(u64, next, id + 1));
    cr_expect(eq(u32, wire_read_u32(&body), 1));
    bed_counts(&body, 7, 3, 0);
    cr_expect(eq(u32, wire_read_u32(&body), 0), "nothing had the name");
    cr_expect(eq(uint, streams.changes, 2));
    cr_expect(eq(u64, streams.last_change, next));

    CHECK_OK(streams_on_changed(&streams, id, &err));
    cr_expect(zero(ptr, m->files[2]));
    cr_expect(eq(uint, b->refs, 1));
    file_put(b);
    CHECK_OK(streams_on_changed(&streams, next, &err));
    cr_expect(eq(u64, streams.last_made, next));
    end();
}

/* An answer that comes late does not take back what a newer one has said. */
Test(streams, last_made_does_not_go_back)
{
    struct error err;

    bed_activate(&bed);
    bed_device(&bed, "a");
    CHECK_OK(streams_rename(&streams, "a", "b", false, NULL, &err));
    CHECK_OK(streams_rename(&streams, "b", "c", false, NULL, &err));
    CHECK_OK(streams_on_changed(&streams, 2, &err));
    CHECK_OK(streams_on_changed(&streams, 1, &err));
    cr_expect(eq(u64, streams.last_made, 2));
    end();
}

struct changer {
    struct worker worker;
    struct interrupt interrupt;
    struct error err;
    int ret;
};

static void rename_a(void *arg)
{
    struct changer *changer = arg;

    changer->ret = streams_rename(&streams, "a", "b", false, &changer->interrupt, &changer->err);
}

static void change_begin(struct changer *changer)
{
    *changer = (struct changer){0};
    worker_start(&changer->worker, rename_a, changer);
    worker_await_sleep(&changer->worker);
}

Test(streams, only_so_many_changes_are_on_their_way)
{
    struct changer changer;
    struct error err;
    uint64_t id;

    bed_activate(&bed);
    bed_device(&bed, "a");
    for (unsigned i = 0; i < WIRE_CHANGES_MAX; i++) {
        char from[16], to[16];
        snprintf(from, sizeof(from), i ? "%u" : "a", i);
        snprintf(to, sizeof(to), i + 1 < WIRE_CHANGES_MAX ? "%u" : "a", i + 1);
        CHECK_OK(streams_rename(&streams, from, to, false, NULL, &err));
        bed_said(&bed, WIRE_FILE_RENAME, &id);
    }
    cr_expect(eq(uint, streams.changes, WIRE_CHANGES_MAX));
    CHECK_FAILS(streams_rename(&streams, "a", "b", false, &hit, &err), CAUSE_INTERRUPTED);
    cr_expect(eq(str, err.message, "interrupted"));
    change_begin(&changer);
    cr_expect(not(atomic_load(&changer.worker.done)));
    bed_quiet(&bed);
    CHECK_OK(streams_on_changed(&streams, 1, &err));
    worker_join(&changer.worker);
    cr_expect(zero(int, changer.ret), "%s", changer.err.message);
    bed_said(&bed, WIRE_FILE_RENAME, &id);
    cr_expect(eq(u64, id, WIRE_CHANGES_MAX + 1));
    cr_expect(eq(str, m->files[1]->name, "b"));
    end();
}

/* A change waits for an announcement's answer; nothing is asked in the middle. */
Test(streams, changes_wait_for_their_turn)
{
    struct maker maker;
    struct changer changer;
    struct error err;
    uint64_t id;

    bed_activate(&bed);
    bed_device(&bed, "a");
    make_begin(&maker, "b");
    bed_said(&bed, WIRE_FILE_CREATE, NULL);
    CHECK_FAILS(streams_rename(&streams, "a", "b", false, &hit, &err), CAUSE_INTERRUPTED);
    pthread_mutex_lock(&m->lock);
    CHECK_FAILS(streams_await_turn(&streams, &hit, &err), CAUSE_INTERRUPTED);
    pthread_mutex_unlock(&m->lock);
    change_begin(&changer);
    bed_quiet(&bed);
    CHECK_OK(reply(2, CAUSE_NONE, "", &err));
    worker_join(&maker.worker);
    worker_join(&changer.worker);
    cr_expect(zero(int, changer.ret), "%s", changer.err.message);
    bed_said(&bed, WIRE_FILE_RENAME, &id);
    cr_expect(file_is_removed(maker.file), "the one that was made had the name");
    file_put(maker.file);
    pthread_mutex_lock(&m->lock);
    CHECK_OK(streams_await_turn(&streams, &hit, &err));
    pthread_mutex_unlock(&m->lock);
    end();
}

/* A channel is closed, and it is not clear why: the change is made when it is open again, or fails with the
 * migration. */
Test(streams, changes_when_a_channel_is_closed)
{
    struct changer changer;
    struct error err, reason = {0};
    uint64_t id;

    bed_activate(&bed);
    struct file *b = bed_device(&bed, "a");
    b = file_get(bed_device(&bed, "b"));
    channel_close(&bed.conn->channels[1], CHANNEL_SEALED);
    error_set(&reason, CAUSE_RESET, "channel 1 is gone");
    pthread_mutex_lock(&m->lock);
    source_doom(&bed.source, &reason, 60000);
    pthread_mutex_unlock(&m->lock);
    CHECK_FAILS(streams_rename(&streams, "a", "b", false, &hit, &err), CAUSE_INTERRUPTED);
    cr_expect(not(file_is_removed(b)));
    cr_expect(eq(str, m->files[1]->name, "a"));
    change_begin(&changer);
    bed_quiet(&bed);
    channel_reopen(&bed.conn->channels[1]);
    pthread_mutex_lock(&m->lock);
    bed.source.doom = (struct error){0};
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->lock);
    worker_join(&changer.worker);
    cr_expect(zero(int, changer.ret), "%s", changer.err.message);
    bed_said(&bed, WIRE_FILE_RENAME, &id);
    cr_expect(file_is_removed(b));
    cr_expect(eq(u64, b->removal, id));
    file_put(b);
    bed_fail(&bed, CAUSE_RESET, "channel 1 is gone");
    CHECK_FAILS(streams_remove(&streams, "b", NULL, &err), CAUSE_RESET);
    cr_expect(eq(str, err.message, "channel 1 is gone"));
    bed_quiet(&bed);
    end();
}

static void told(enum wire_message_type type, uint32_t id)
{
    struct wire_reader body = bed_said(&bed, type, NULL);

    cr_expect(eq(u32, wire_read_u32(&body), id));
    if (type == WIRE_FILE_END)
        bed_counts(&body, 7, 0, 9);
    cr_expect(wire_read_done(&body));
    bed_quiet(&bed);
}

Test(streams, ends_and_goes_on)
{
    bed_activate(&bed);
    struct file *a = bed_device(&bed, "a"), *ram = m->files[WIRE_RAM];
    bed_accepted(&bed, 0, a, 7);
    bed_accepted(&bed, 2, a, 9);
    /* Nothing was written to it. */
    streams_open_writer(&streams, a);
    streams_close_writer(&streams, a);
    bed_quiet(&bed);
    streams_open_writer(&streams, a);
    streams_open_writer(&streams, a);
    cr_expect(eq(uint, a->writers, 2));
    atomic_store(&a->touched, true);
    streams_close_writer(&streams, a);
    bed_quiet(&bed);
    streams_close_writer(&streams, a);
    told(WIRE_FILE_END, 1);
    cr_expect(not(a->announced_open));
    streams_open_writer(&streams, a);
    told(WIRE_FILE_RESUME, 1);
    cr_expect(a->announced_open);
    streams_open_writer(&streams, a);
    bed_quiet(&bed);
    /* The RAM is no stream. */
    atomic_store(&ram->touched, true);
    ram->announced_open = true;
    streams_open_writer(&streams, ram);
    streams_close_writer(&streams, ram);
    bed_quiet(&bed);
    end();
}

Test(streams, an_end_is_told_again)
{
    bed_activate(&bed);
    struct file *a = bed_device(&bed, "a");
    bed_accepted(&bed, 0, a, 7);
    bed_accepted(&bed, 2, a, 9);
    pthread_mutex_lock(&m->lock);
    streams_tell(&streams, a, true);
    bed_quiet(&bed);
    atomic_store(&a->touched, true);
    streams_tell(&streams, a, false);
    told(WIRE_FILE_END, 1);
    streams_tell(&streams, a, false);
    bed_quiet(&bed);
    streams_tell(&streams, a, true);
    told(WIRE_FILE_END, 1);
    a->writers = 1;
    streams_tell(&streams, a, false);
    told(WIRE_FILE_RESUME, 1);
    streams_tell(&streams, a, true);
    bed_quiet(&bed);
    pthread_mutex_unlock(&m->lock);
    end();
}

/* What happened while nothing could be told is told afterwards. */
Test(streams, all_are_told)
{
    bed_activate(&bed);
    struct file *a = bed_device(&bed, "a"), *b = bed_device(&bed, "b"), *c = bed_device(&bed, "c");
    atomic_store(&a->touched, true);
    atomic_store(&c->touched, true);
    bed_move(&bed, STATE_COMPLETING);
    streams_open_writer(&streams, a);
    streams_close_writer(&streams, a);
    bed_quiet(&bed);
    bed_move(&bed, STATE_ACTIVE);
    pthread_mutex_lock(&m->lock);
    migration_remove_file(m, b);
    streams_tell_all(&streams);
    pthread_mutex_unlock(&m->lock);
    file_put(b);
    struct wire_reader body = bed_said(&bed, WIRE_FILE_END, NULL);
    cr_expect(eq(u32, wire_read_u32(&body), 1));
    body = bed_said(&bed, WIRE_FILE_END, NULL);
    cr_expect(eq(u32, wire_read_u32(&body), 3));
    bed_quiet(&bed);
    end();
}

Test(streams, nothing_is_told_of_an_incoming_one)
{
    bed_activate(&bed);
    struct file *a = bed_device(&bed, "a");
    atomic_store(&a->touched, true);
    m->role = ROLE_INCOMING;
    streams_open_writer(&streams, a);
    streams_close_writer(&streams, a);
    bed_quiet(&bed);
    m->role = ROLE_OUTGOING;
    end();
}
