/* SPDX-License-Identifier: Apache-2.0 */
/* Whole migrations, from one host to another one, in one process. */
#include "blocked.h"
#include "check.h"
#include "incoming.h"
#include "rig.h"
#include "scratch.h"
#include "shown.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

TestSuite(migration, .init = scratch_make, .fini = scratch_remove);

#define STRIPE ((uint64_t)WIRE_STRIPE_SIZE)

static struct rig rig;

static const char *unix_place(const char *faults)
{
    static char text[256];

    snprintf(text, sizeof(text), "%sunix:%s/socket", faults, scratch);
    return text;
}

static uint64_t next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return *state >> 24;
}

/* Some pages zero, some that compress, some that do not. */
static void fill_random(char *buf, size_t len, uint64_t *random)
{
    for (size_t at = 0; at < len;) {
        size_t n = 1 + next_random(random) % 20000, kind = next_random(random) % 3;
        if (n > len - at)
            n = len - at;
        if (kind == 0)
            memset(buf + at, 0, n);
        else if (kind == 1)
            memset(buf + at, (int)next_random(random), n);
        for (size_t i = 0; kind == 2 && i < n; i += 5) {
            uint64_t value = next_random(random);
            memcpy(buf + at + i, &value, n - i < 5 ? n - i : 5);
        }
        at += n;
    }
}

static void check_completed(struct migration *m, struct migration *incoming)
{
    cr_expect(eq(int, (int)m->state, STATE_COMPLETED));
    cr_expect(eq(int, (int)rig_await_end(incoming), STATE_COMPLETED));
}

/*
 * It arrives
 */

#define RAM_SIZE (9 * STRIPE + 777)
#define WRITERS  3

/* A writer has a part of the RAM of its own, and a device; what they should be in the end is kept apart. */
struct writer {
    struct worker worker;
    struct migration *m;
    struct file *file;
    char *want;
    uint64_t from, to;
    uint64_t random;
    unsigned turns;
    struct error err;
    int ret;
};

static void write_at_random(void *arg)
{
    struct writer *w = arg;
    char *buf = malloc(PLAN_WRITE_MAX);

    for (unsigned i = 0; i < w->turns && w->ret == 0; i++) {
        uint64_t offset = w->from + next_random(&w->random) % (w->to - w->from);
        /* Mostly small, some of many stripes, some aligned. */
        size_t len = 1 + next_random(&w->random) % (i % 8 == 0 ? 2 * STRIPE : i % 8 == 1 ? 200000 : 9000);
        if (i % 3 == 0) {
            offset = offset / WIRE_PAGE_SIZE * WIRE_PAGE_SIZE;
            offset = offset < w->from ? w->from : offset;
        }
        if (len > w->to - offset)
            len = w->to - offset;
        fill_random(buf, len, &w->random);
        memcpy(w->want + offset, buf, len);
        w->ret = rig_try_write(w->m, w->file, buf, len, offset, NULL, &w->err);
        /* The daemon has its own copy by now. */
        memset(buf, 0x55, len);
    }
    free(buf);
}

static void write_all(struct writer *writers, unsigned n)
{
    for (unsigned i = 0; i < n; i++)
        worker_start(&writers[i].worker, write_at_random, &writers[i]);
    for (unsigned i = 0; i < n; i++) {
        worker_join(&writers[i].worker);
        cr_assert(zero(int, writers[i].ret), "%s", writers[i].err.message);
    }
}

static void await_device_end(struct migration *incoming, uint32_t id, uint64_t size)
{
    char c;

    /* Blocks until the stream has ended. */
    cr_assert(eq(long, file_read(migration_file(incoming, id), size, &c, 1, false, NULL), 0));
}

/* @faults: of its connections */
static void carry_over(struct rig *r, const char *name, unsigned channels, const char *faults,
                       void (*set)(struct settings *settings))
{
    struct migration *m = rig_make(r, name, channels, faults);
    struct file *ram = migration_file(m, WIRE_RAM);
    char *want = calloc(1, RAM_SIZE), *want_devices[2];
    struct writer writers[WRITERS + 2] = {0};
    struct error err;

    if (set)
        set(&m->settings);
    CHECK_OK(outgoing_truncate(m, ram, RAM_SIZE, NULL, &err));
    CHECK_OK(outgoing_start(m, NULL, &err));
    struct migration *incoming = rig_arrived(r, name);
    for (unsigned i = 0; i < WRITERS; i++)
        writers[i] = (struct writer){
            .m = m,
            .file = ram,
            .want = want,
            .from = RAM_SIZE / WRITERS * i,
            .to = i == WRITERS - 1 ? RAM_SIZE : RAM_SIZE / WRITERS * (i + 1),
            .random = channels * 100 + i,
            .turns = 24,
        };
    for (unsigned d = 0; d < 2; d++) {
        want_devices[d] = calloc(1, 3 * STRIPE);
        writers[WRITERS + d] = (struct writer){
            .m = m,
            .file = rig_device(m, d ? "second device" : "first device"),
            .want = want_devices[d],
            .to = 3 * STRIPE,
            .random = channels * 100 + 50 + d,
            .turns = 12,
        };
        outgoing_open_writer(m, writers[WRITERS + d].file);
        /* So that its size is known. */
        rig_write(m, writers[WRITERS + d].file, "end", 3, 3 * STRIPE - 3);
        memcpy(want_devices[d] + 3 * STRIPE - 3, "end", 3);
    }
    for (int round = 0; round < 2; round++) {
        write_all(writers, WRITERS + 2);
        CHECK_OK(outgoing_sync(m, NULL, NULL, &err));
        rig_compare(incoming, WIRE_RAM, want, RAM_SIZE);
    }
    uint8_t there[DIGEST_SIZE], here[DIGEST_SIZE];
    CHECK_OK(outgoing_digest(m, ram, NULL, there, &err));
    cr_assert(zero(int, image_digest(&migration_file(incoming, WIRE_RAM)->image, NULL, here)));
    cr_expect(zero(int, memcmp(there, here, DIGEST_SIZE)));
    for (unsigned d = 0; d < 2; d++) {
        outgoing_close_writer(m, writers[WRITERS + d].file);
        await_device_end(incoming, d + 1, 3 * STRIPE);
        rig_compare(incoming, d + 1, want_devices[d], 3 * STRIPE);
    }
    CHECK_OK(outgoing_complete(m, NULL, &err));
    check_completed(m, incoming);
    rig_compare(incoming, WIRE_RAM, want, RAM_SIZE);
    for (unsigned d = 0; d < 2; d++)
        rig_compare(incoming, d + 1, want_devices[d], 3 * STRIPE);
    struct stat st;
    fstat(migration_file(incoming, WIRE_RAM)->image.memory.fd, &st);
    cr_expect(eq(u64, (uint64_t)st.st_size, RAM_SIZE), "a VMM maps it: it has the right size");
    cr_expect(eq(u64, outgoing_queued(m), 0));
    for (unsigned i = 0; i < m->file_count; i++) {
        struct file_totals sent = file_totals(migration_file(m, i)), got = file_totals(migration_file(incoming, i));
        cr_expect(eq(u64, sent.bytes, got.bytes), "both ends count the same");
        cr_expect(eq(u64, sent.pages, got.pages));
        cr_expect(eq(u64, sent.packets, got.packets));
        cr_expect(eq(u64, sent.zero_pages, got.zero_pages));
        cr_expect(eq(u64, sent.covered, got.covered));
    }
    for (unsigned c = 0; c < channels; c++)
        cr_expect(eq(u64, outgoing_wire_bytes(m, (int)c), incoming_wire_bytes(incoming, c)), "channel %u", c);
    cr_expect(eq(int, m->pauses > 0, *faults != 0));
    migration_put(m);
    migration_put(incoming);
    free(want);
    free(want_devices[0]);
    free(want_devices[1]);
}

static void carry(struct rig *r, const char *name, unsigned channels, void (*set)(struct settings *settings))
{
    carry_over(r, name, channels, "", set);
}

static const unsigned channel_counts[] = {2, 7, 1, 16};

/* With @n of the counts of channels. */
static void carry_all(const char *listen, size_t n, void (*set)(struct settings *settings))
{
    rig_init(&rig, listen, NULL);
    for (size_t i = 0; i < n; i++) {
        char name[32];
        snprintf(name, sizeof(name), "vm-%u", channel_counts[i]);
        carry(&rig, name, channel_counts[i], set);
    }
    rig_fini(&rig);
}

Test(migration, over_unix)
{
    carry_all(unix_place(""), 4, NULL);
}

Test(migration, over_tcp)
{
    carry_all("tcp:127.0.0.1:0", 4, NULL);
}

Test(migration, over_tcp_ipv6)
{
    struct transport_listener *l;
    struct error err = {0};
    struct uri uri;

    uri_parse("tcp:[::1]:0", &uri, &err);
    if (transport_listen(&uri, &l, &err) < 0)
        cr_skip_test("%s", err.message);
    transport_listener_close(l);
    carry_all("tcp:[::1]:0", 1, NULL);
}

static void no_checksum(struct settings *settings)
{
    settings->checksum_choice = CHOICE_OFF;
}

Test(migration, without_checksums)
{
    carry_all(unix_place(""), 2, no_checksum);
}

static void no_zero_pages(struct settings *settings)
{
    settings->zero_pages = false;
}

Test(migration, without_zero_pages)
{
    carry_all(unix_place(""), 2, no_zero_pages);
}

static void with_zstd(struct settings *settings)
{
    settings->compress = true;
}

Test(migration, compressed)
{
    carry_all(unix_place(""), 4, with_zstd);
}

static void with_zstd_and_nothing_else(struct settings *settings)
{
    settings->compress = true;
    settings->checksum_choice = CHOICE_OFF;
    settings->zero_pages = false;
}

Test(migration, compressed_and_nothing_else)
{
    carry_all(unix_place(""), 2, with_zstd_and_nothing_else);
}

static void with_device_channels(struct settings *settings)
{
    settings->device_channels = settings->channels / 2;
}

Test(migration, with_device_channels)
{
    carry_all(unix_place(""), 2, with_device_channels);
}

/* A few bytes at a time, on either end. */
Test(migration, in_slices)
{
    struct error err;

    rig_init(&rig, unix_place("faulty:short=13:"), NULL);
    struct migration *m = rig_make(&rig, "vm", 3, "faulty:short=7:");
    CHECK_OK(outgoing_start(m, NULL, &err));
    struct migration *incoming = rig_arrived(&rig, "vm");
    char *want = malloc(3 * STRIPE);
    uint64_t random = 5;
    fill_random(want, 3 * STRIPE, &random);
    memset(want + STRIPE, 0, 2 * STRIPE - 5000);
    rig_write(m, migration_file(m, WIRE_RAM), want, 3 * STRIPE, 0);
    CHECK_OK(outgoing_complete(m, NULL, &err));
    check_completed(m, incoming);
    rig_compare(incoming, WIRE_RAM, want, 3 * STRIPE);
    migration_put(m);
    migration_put(incoming);
    free(want);
    rig_fini(&rig);
}

/* Nothing at all is a migration, too. */
Test(migration, of_nothing)
{
    struct error err;

    rig_init(&rig, unix_place(""), NULL);
    struct migration *m = rig_start(&rig, "vm", 2, 0);
    struct migration *incoming = rig_arrived(&rig, "vm");
    struct file *empty = rig_device(m, "empty");
    outgoing_open_writer(m, empty);
    outgoing_close_writer(m, empty);
    CHECK_OK(outgoing_flush(m, NULL, NULL, &err));
    CHECK_OK(outgoing_sync(m, NULL, NULL, &err));
    CHECK_OK(outgoing_complete(m, NULL, &err));
    check_completed(m, incoming);
    rig_compare(incoming, WIRE_RAM, "", 0);
    rig_compare(incoming, 1, "", 0);
    migration_put(m);
    migration_put(incoming);
    rig_fini(&rig);
}

/*
 * Last write wins
 */

#define RACERS 4

struct race {
    struct migration *m;
    struct file *ram;
    pthread_mutex_t lock; /* the order of the versions */
    uint64_t version, offset;
    size_t len;
};

static struct race race;

/* The lock is held until the write is accepted, not until it is sent. */
static void rewrite(void *arg)
{
    char *buf = malloc(race.len);

    (void)arg;
    for (unsigned i = 0; i < 2500; i++) {
        struct sender_write write;
        pthread_mutex_lock(&race.lock);
        uint64_t version = ++race.version;
        for (size_t at = 0; at + 8 <= race.len; at += 8)
            memcpy(buf + at, &version, 8);
        int ret = outgoing_write_begin(race.m, race.ram, buf, race.len, race.offset, NULL, &write, NULL);
        pthread_mutex_unlock(&race.lock);
        if (ret == 0)
            sender_finish(&write);
    }
    free(buf);
}

static void run_race(unsigned channels, uint64_t offset, size_t len, bool compress)
{
    struct worker workers[RACERS];
    struct error err;
    char *want = malloc(len);

    rig_init(&rig, unix_place(""), NULL);
    race = (struct race){.m = rig_make(&rig, "vm", channels, ""), .offset = offset, .len = len};
    race.m->settings.compress = compress;
    race.ram = migration_file(race.m, WIRE_RAM);
    pthread_mutex_init(&race.lock, NULL);
    CHECK_OK(outgoing_start(race.m, NULL, &err));
    struct migration *incoming = rig_arrived(&rig, "vm");
    for (int i = 0; i < RACERS; i++)
        worker_start(&workers[i], rewrite, NULL);
    for (int i = 0; i < RACERS; i++)
        worker_join(&workers[i]);
    CHECK_OK(outgoing_sync(race.m, NULL, NULL, &err));
    for (size_t at = 0; at + 8 <= len; at += 8)
        memcpy(want + at, &race.version, 8);
    char *got = malloc(len);
    cr_expect(eq(u64, race.version, RACERS * 2500));
    cr_assert(eq(long, file_read(migration_file(incoming, WIRE_RAM), offset, got, len, true, NULL), (long)len));
    cr_expect(zero(int, memcmp(got, want, len)), "an older version came last");
    CHECK_OK(outgoing_complete(race.m, NULL, &err));
    migration_put(race.m);
    migration_put(incoming);
    free(want);
    free(got);
    pthread_mutex_destroy(&race.lock);
    rig_fini(&rig);
}

Test(migration, last_version_of_a_page)
{
    run_race(16, 5 * STRIPE, 4096, false);
}

Test(migration, last_version_of_a_large_block)
{
    run_race(4, 4096, 64 << 10, false);
}

/* Two stripes: on both channels the same version comes last. */
Test(migration, last_version_across_stripes)
{
    run_race(16, STRIPE - 20480, 40960, false);
}

Test(migration, last_version_compressed)
{
    run_race(4, STRIPE - 8192, 16384, true);
}

/*
 * Holes and sizes, against a model
 */

#define SPACE (6 * STRIPE)

static void run_model(uint64_t seed, unsigned channels, bool device, bool compress)
{
    static char want[SPACE];
    char *buf = malloc(2 * STRIPE);
    uint64_t random = seed, size = 0;
    struct migration *m = rig_make(&rig, "vm", channels, "");
    struct error err;

    memset(want, 0, sizeof(want));
    m->settings.compress = compress;
    struct file *file = device ? rig_device(m, "dev") : migration_file(m, WIRE_RAM);
    CHECK_OK(outgoing_start(m, NULL, &err));
    struct migration *incoming = rig_arrived(&rig, "vm");
    for (int i = 0; i < 40; i++) {
        uint64_t kind = next_random(&random) % 10, offset = next_random(&random) % SPACE;
        if (next_random(&random) % 2)
            offset = offset / STRIPE * STRIPE;
        if (kind < 6) {
            size_t len = 1 + next_random(&random) % (2 * STRIPE);
            if (len > SPACE - offset)
                len = SPACE - offset;
            fill_random(buf, len, &random);
            memcpy(want + offset, buf, len);
            rig_write(m, file, buf, len, offset);
            size = offset + len > size ? offset + len : size;
        } else if (kind < 8) {
            uint64_t len = 1 + next_random(&random) % (3 * STRIPE);
            CHECK_OK(outgoing_discard(m, file, offset, len, NULL, &err));
            if (offset < size)
                memset(want + offset, 0, offset + len < size ? len : size - offset);
        } else {
            CHECK_OK(outgoing_truncate(m, file, offset, NULL, &err));
            memset(want + offset, 0, SPACE - offset);
            size = offset;
        }
        if (i % 20 == 19 && !device) {
            CHECK_OK(outgoing_sync(m, NULL, NULL, &err));
            rig_compare(incoming, file->id, want, size);
        }
    }
    CHECK_OK(outgoing_complete(m, NULL, &err));
    check_completed(m, incoming);
    rig_compare(incoming, file->id, want, size);
    CHECK_OK(registry_remove(&rig.source, m, &err));
    CHECK_OK(registry_remove(&rig.destination, incoming, &err));
    migration_put(m);
    migration_put(incoming);
    free(buf);
}

Test(migration, holes_and_sizes)
{
    rig_init(&rig, unix_place(""), NULL);
    for (uint64_t seed = 1; seed <= 24; seed++)
        run_model(seed, 1 + (unsigned)seed % 4, seed % 8 >= 4, seed % 16 >= 8);
    rig_fini(&rig);
}

/* ftruncate(2) of an empty file to a size, after the start, and a hole where nothing is. */
Test(migration, grows_without_data)
{
    struct error err;
    char *want = calloc(1, 2 * STRIPE);

    rig_init(&rig, unix_place(""), NULL);
    for (unsigned channels = 1; channels <= 3; channels++) {
        struct migration *m = rig_start(&rig, "vm", channels, 0);
        struct migration *incoming = rig_arrived(&rig, "vm");
        struct file *ram = migration_file(m, WIRE_RAM);
        CHECK_OK(outgoing_truncate(m, ram, 2 * STRIPE, NULL, &err));
        CHECK_OK(outgoing_discard(m, ram, 0, 10 * STRIPE, NULL, &err));
        CHECK_OK(outgoing_discard(m, ram, 5 * STRIPE, STRIPE, NULL, &err));
        CHECK_OK(outgoing_sync(m, NULL, NULL, &err));
        rig_compare(incoming, WIRE_RAM, want, 2 * STRIPE);
        CHECK_OK(outgoing_complete(m, NULL, &err));
        check_completed(m, incoming);
        CHECK_OK(registry_remove(&rig.source, m, &err));
        CHECK_OK(registry_remove(&rig.destination, incoming, &err));
        migration_put(m);
        migration_put(incoming);
    }
    free(want);
    rig_fini(&rig);
}

/* write(2) of nothing changes nothing, wherever it is. */
Test(migration, write_of_nothing)
{
    struct sender_write write;
    struct error err;

    rig_init(&rig, unix_place(""), NULL);
    struct migration *m = rig_start(&rig, "vm", 2, 0);
    struct migration *incoming = rig_arrived(&rig, "vm");
    CHECK_OK(outgoing_write_begin(m, migration_file(m, WIRE_RAM), "", 0, 5 * STRIPE, NULL, &write, &err));
    sender_finish(&write);
    CHECK_OK(outgoing_complete(m, NULL, &err));
    check_completed(m, incoming);
    rig_compare(incoming, WIRE_RAM, "", 0);
    migration_put(m);
    migration_put(incoming);
    rig_fini(&rig);
}

/* Zero pages are counted, and memory that never held anything is not touched for them. */
Test(migration, zero_pages_take_no_memory)
{
    struct error err;
    char *zeros = calloc(1, 8 * STRIPE);
    struct stat st;

    rig_init(&rig, unix_place(""), NULL);
    struct migration *m = rig_start(&rig, "vm", 3, 8 * STRIPE);
    struct migration *incoming = rig_arrived(&rig, "vm");
    struct file *ram = migration_file(m, WIRE_RAM), *there = migration_file(incoming, WIRE_RAM);
    rig_write(m, ram, zeros, 8 * STRIPE, 0);
    CHECK_OK(outgoing_sync(m, NULL, NULL, &err));
    fstat(there->image.memory.fd, &st);
    cr_expect(eq(long, st.st_blocks, 0));
    cr_expect(eq(u64, file_totals(there).zero_pages, 8 * STRIPE / WIRE_PAGE_SIZE));
    cr_expect(eq(u64, file_totals(there).first_pages, 8 * STRIPE / WIRE_PAGE_SIZE));
    cr_expect(eq(u64, file_totals(there).bytes, 0));
    cr_expect(eq(i64, file_seek(there, 0, true), -ENXIO));
    /* One page of data, and zero again: now it has to be cleared. */
    memset(zeros, 'x', 4096);
    rig_write(m, ram, zeros, 4096, 3 * STRIPE + 8192);
    CHECK_OK(outgoing_sync(m, NULL, NULL, &err));
    cr_expect(eq(i64, file_seek(there, 0, true), (int64_t)(3 * STRIPE + 8192)));
    cr_expect(eq(i64, file_seek(there, 3 * STRIPE + 8192, false), (int64_t)(3 * STRIPE + 12288)));
    memset(zeros, 0, 4096);
    rig_write(m, ram, zeros, 4096, 3 * STRIPE + 8192);
    CHECK_OK(outgoing_complete(m, NULL, &err));
    check_completed(m, incoming);
    rig_compare(incoming, WIRE_RAM, zeros, 8 * STRIPE);
    cr_expect(eq(u64, file_totals(there).zero_pages, 8 * STRIPE / WIRE_PAGE_SIZE + 1));
    cr_expect(eq(u64, file_totals(there).first_pages, 8 * STRIPE / WIRE_PAGE_SIZE));
    migration_put(m);
    migration_put(incoming);
    free(zeros);
    rig_fini(&rig);
}

/*
 * Streams
 */

Test(migration, stream_is_followed)
{
    struct error err;
    char buf[16] = "";

    rig_init(&rig, unix_place(""), NULL);
    struct migration *m = rig_start(&rig, "vm", 2, 0);
    struct migration *incoming = rig_arrived(&rig, "vm");
    struct file *dev = rig_device(m, "dev");
    struct file *there = rig_find_file(incoming, "dev");
    outgoing_open_writer(m, dev);
    cr_expect(eq(long, file_read(there, 0, buf, 16, true, NULL), -EAGAIN));
    rig_write(m, dev, "hello", 5, 0);
    cr_expect(eq(long, file_read(there, 0, buf, 16, false, NULL), 5));
    cr_expect(zero(int, memcmp(buf, "hello", 5)));
    outgoing_open_writer(m, dev);
    outgoing_close_writer(m, dev);
    CHECK_OK(outgoing_sync(m, dev, NULL, &err));
    cr_expect(eq(long, file_read(there, 5, buf, 16, true, NULL), -EAGAIN), "one of two writers has closed it");
    outgoing_close_writer(m, dev);
    cr_expect(eq(long, file_read(there, 5, buf, 16, false, NULL), 0), "the last one has");
    /* Opened again, before `complete`. */
    outgoing_open_writer(m, dev);
    CHECK_OK(outgoing_sync(m, dev, NULL, &err));
    cr_expect(eq(long, file_read(there, 5, buf, 16, true, NULL), -EAGAIN));
    rig_write(m, dev, " world", 6, 5);
    cr_expect(eq(long, file_read(there, 5, buf, 16, false, NULL), 6));
    CHECK_OK(outgoing_complete(m, NULL, &err));
    cr_expect(eq(long, file_read(there, 11, buf, 16, false, NULL), 0), "nothing comes after `complete`");
    check_completed(m, incoming);
    outgoing_close_writer(m, dev);
    migration_put(m);
    migration_put(incoming);
    rig_fini(&rig);
}

static ssize_t read_at(struct file *file, uint64_t offset)
{
    char c;

    return file_read(file, offset, &c, 1, true, NULL);
}

/* Whoever reads what is empty waits for what will be written; `complete` ends that, too. */
Test(migration, empty_stream_does_not_end)
{
    struct file *there[3];
    struct error err;

    rig_init(&rig, unix_place(""), NULL);
    struct migration *m = rig_make(&rig, "vm", 2, "");
    struct file *before = rig_device(m, "before");
    CHECK_OK(outgoing_truncate(m, before, 100, NULL, &err));
    CHECK_OK(outgoing_start(m, NULL, &err));
    struct migration *incoming = rig_arrived(&rig, "vm");
    struct file *dev = rig_device(m, "dev"), *empty = rig_device(m, "empty");
    there[0] = rig_find_file(incoming, "before");
    there[1] = rig_find_file(incoming, "dev");
    there[2] = rig_find_file(incoming, "empty");
    struct file *files[] = {before, dev, empty};
    for (int i = 0; i < 3; i++) {
        outgoing_open_writer(m, files[i]);
        outgoing_close_writer(m, files[i]);
        CHECK_OK(outgoing_sync(m, NULL, NULL, &err));
        cr_expect(eq(long, read_at(there[i], 0), -EAGAIN), "%s was closed without a byte", files[i]->name);
    }
    outgoing_open_writer(m, dev);
    rig_write(m, dev, "hello", 5, 0);
    outgoing_close_writer(m, dev);
    CHECK_OK(outgoing_sync(m, NULL, NULL, &err));
    cr_expect(eq(long, read_at(there[1], 5), 0), "it has ended");
    /* By nobody who has it open. */
    CHECK_OK(outgoing_truncate(m, dev, 3 * STRIPE, NULL, &err));
    CHECK_OK(outgoing_sync(m, NULL, NULL, &err));
    cr_expect(eq(long, read_at(there[1], 3 * STRIPE), 0), "it ends elsewhere");
    CHECK_OK(outgoing_truncate(m, dev, 0, NULL, &err));
    CHECK_OK(outgoing_sync(m, NULL, NULL, &err));
    cr_expect(eq(long, read_at(there[1], 0), 0), "it is empty, and has ended");
    /* O_TRUNC */
    outgoing_open_writer(m, dev);
    CHECK_OK(outgoing_truncate(m, dev, 0, NULL, &err));
    outgoing_begin_anew(dev);
    outgoing_close_writer(m, dev);
    CHECK_OK(outgoing_sync(m, NULL, NULL, &err));
    cr_expect(eq(long, read_at(there[1], 0), -EAGAIN), "and was closed without a byte");
    CHECK_OK(outgoing_complete(m, NULL, &err));
    check_completed(m, incoming);
    cr_expect(eq(long, read_at(there[0], 100), 0));
    cr_expect(eq(long, read_at(there[1], 0), 0));
    cr_expect(eq(long, read_at(there[2], 0), 0));
    migration_put(m);
    migration_put(incoming);
    rig_fini(&rig);
}

/* The devices of a side, with a space behind each. */
static char *listing(struct migration *m)
{
    static char text[2][1024];
    static int turn;
    struct file **files;
    int n = migration_files(m, &files, NULL);

    turn = !turn;
    *text[turn] = '\0';
    for (int i = 1; i < n; i++) {
        char name[WIRE_NAME_MAX + 1];
        strcat(strcat(text[turn], file_name(files[i], name)), " ");
    }
    migration_put_files(files, n);
    return text[turn];
}

/* Snapshot after snapshot under the same names, with few numbers: by removing, and by renaming over what is there. */
Test(migration, devices_are_removed_and_renamed)
{
    struct limits limits = rig_limits();
    struct error err;
    uint64_t used = 0;
    char state[100];

    limits.max_devices = 3;
    rig_init(&rig, unix_place(""), &limits);
    struct migration *m = rig_make(&rig, "vm", 3, "");
    rig_device(m, "before");
    CHECK_OK(outgoing_remove_device(m, "before", NULL, &err));
    CHECK_FAILS(outgoing_remove_device(m, "before", NULL, &err), CAUSE_NOT_FOUND);
    for (int i = 0; i < 4; i++) {
        char name[8];
        snprintf(name, sizeof(name), "d%d", i);
        rig_device(m, name);
    }
    CHECK_OK(outgoing_remove_device(m, "d1", NULL, &err));
    CHECK_OK(outgoing_rename_device(m, "d3", "d0", false, NULL, &err));
    CHECK_FAILS(outgoing_rename_device(m, "d0", "d2", true, NULL, &err), CAUSE_EXISTS);
    cr_expect(eq(str, listing(m), "d2 d0 "));
    CHECK_OK(outgoing_start(m, NULL, &err));
    struct migration *incoming = rig_arrived(&rig, "vm");
    for (int i = 0; i < 300; i++) {
        CLEANUP_FILE struct file *new = file_get(rig_device(m, "new"));
        size_t len = (size_t)snprintf(state, sizeof(state), "state %d", i);
        outgoing_open_writer(m, new);
        rig_write(m, new, state, len, 0);
        outgoing_close_writer(m, new);
        CHECK_OK(i % 3 ? outgoing_rename_device(m, "new", "d0", false, NULL, &err)
                       : outgoing_remove_device(m, "new", NULL, &err));
        /* What it is, and is not any more, can be written to. */
        rig_write(m, new, state, 1, 0);
        CHECK_OK(outgoing_truncate(m, new, len, NULL, &err));
        if (i == 10) {
            CHECK_OK(outgoing_sync(m, NULL, NULL, &err));
            used = rig.destination.host.accounts.memory.used;
        }
    }
    CHECK_OK(outgoing_sync(m, NULL, NULL, &err));
    cr_expect(eq(str, listing(m), listing(incoming)));
    struct file *there = rig_find_file(incoming, "d0");
    char got[100] = "";
    cr_expect(eq(long, file_read(there, 0, got, sizeof(got), true, NULL), 9));
    cr_expect(eq(str, got, "state 299"));
    cr_expect(le(u64, rig.destination.host.accounts.memory.used, used + 10), "what is gone takes nothing");
    CHECK_OK(outgoing_complete(m, NULL, &err));
    check_completed(m, incoming);
    cr_expect(eq(u32, migration_count_devices(m), 2));
    cr_expect(eq(u32, migration_count_devices(incoming), 2));
    for (unsigned c = 0; c < 3; c++) {
        cr_expect(eq(u64, m->gone[c].packets, incoming->gone[c].packets));
        cr_expect(eq(u64, m->gone[c].digest, incoming->gone[c].digest));
    }
    migration_put(m);
    migration_put(incoming);
    rig_fini(&rig);
}

struct rewriting {
    struct worker worker;
    struct migration *m;
    struct file *file;
    _Atomic bool over;
    unsigned writes;
};

static void rewrite_for_ever(void *arg)
{
    struct rewriting *r = arg;

    while (!r->over) {
        rig_write(r->m, r->file, "some bytes", 10, (uint64_t)(r->writes++ % 40) * STRIPE / 2);
        if (r->writes % 50 == 0) {
            struct error err;
            CHECK_OK(outgoing_truncate(r->m, r->file, r->writes % 100, NULL, &err));
        }
    }
}

/* Whoever writes to a device while it is removed notices nothing, and no packet comes after the removal. */
Test(migration, removed_while_it_is_written)
{
    struct error err;

    rig_init(&rig, unix_place(""), NULL);
    struct migration *m = rig_start(&rig, "vm", 3, 0);
    struct migration *incoming = rig_arrived(&rig, "vm");
    for (int round = 0; round < 20; round++) {
        struct rewriting r[2] = {{.m = m}, {.m = m}};
        struct file *file = file_get(rig_device(m, "dev"));
        for (int i = 0; i < 2; i++) {
            r[i].file = file;
            worker_start(&r[i].worker, rewrite_for_ever, &r[i]);
        }
        CHECK_OK(outgoing_sync(m, file, NULL, &err));
        if (round % 2) {
            CHECK_OK(outgoing_remove_device(m, "dev", NULL, &err));
        } else {
            rig_device(m, "other");
            CHECK_OK(outgoing_rename_device(m, "other", "dev", false, NULL, &err));
            CHECK_OK(outgoing_remove_device(m, "dev", NULL, &err));
        }
        CHECK_OK(outgoing_sync(m, file, NULL, &err));
        for (int i = 0; i < 2; i++) {
            r[i].over = true;
            worker_join(&r[i].worker);
        }
        file_put(file);
    }
    CHECK_OK(outgoing_complete(m, NULL, &err));
    check_completed(m, incoming);
    cr_expect(eq(str, listing(incoming), ""));
    migration_put(m);
    migration_put(incoming);
    rig_fini(&rig);
}

Test(migration, devices_while_it_runs)
{
    struct limits limits = rig_limits();
    struct file *file;
    struct error err;
    char name[16];

    limits.max_devices = 20;
    rig_init(&rig, unix_place(""), &limits);
    struct migration *m = rig_make(&rig, "vm", 3, "");
    rig_device(m, "before");
    CHECK_OK(outgoing_start(m, NULL, &err));
    struct migration *incoming = rig_arrived(&rig, "vm");
    for (int i = 1; i < 20; i++) {
        snprintf(name, sizeof(name), "dev-%d", i);
        rig_write(m, rig_device(m, name), name, strlen(name), 0);
    }
    CHECK_FAILS(outgoing_create_device(m, "one-more", false, NULL, &file, &err), CAUSE_QUOTA);
    CHECK_FAILS(outgoing_create_device(m, "dev-1", true, NULL, &file, &err), CAUSE_EXISTS);
    CHECK_FAILS(outgoing_create_device(m, "../x", false, NULL, &file, &err), CAUSE_SYNTAX);
    CHECK_OK(outgoing_complete(m, NULL, &err));
    check_completed(m, incoming);
    cr_expect(eq(u32, incoming->file_count, 21));
    for (uint32_t i = 2; i < 21; i++) {
        snprintf(name, sizeof(name), "dev-%d", (int)i - 1);
        cr_expect(eq(str, migration_file(incoming, i)->name, name));
        rig_compare(incoming, i, name, strlen(name));
    }
    rig_compare(incoming, 1, "", 0);
    CHECK_FAILS(outgoing_create_device(m, "late", false, NULL, &file, &err), CAUSE_STATE);
    migration_put(m);
    migration_put(incoming);
    rig_fini(&rig);
}

/*
 * The end
 */

Test(migration, nothing_after_completed)
{
    struct sender_write write;
    struct error err;

    rig_init(&rig, unix_place(""), NULL);
    struct migration *m = rig_start(&rig, "vm", 2, 0);
    struct migration *incoming = rig_arrived(&rig, "vm");
    struct file *ram = migration_file(m, WIRE_RAM);
    CHECK_OK(outgoing_complete(m, NULL, &err));
    check_completed(m, incoming);
    CHECK_FAILS(outgoing_write_begin(m, ram, "x", 1, 0, NULL, &write, &err), CAUSE_STATE);
    CHECK_FAILS(outgoing_truncate(m, ram, 5, NULL, &err), CAUSE_STATE);
    CHECK_FAILS(outgoing_discard(m, ram, 0, 5, NULL, &err), CAUSE_STATE);
    CHECK_FAILS(outgoing_flush(m, NULL, NULL, &err), CAUSE_STATE);
    CHECK_FAILS(outgoing_sync(m, NULL, NULL, &err), CAUSE_STATE);
    CHECK_FAILS(outgoing_complete(m, NULL, &err), CAUSE_STATE);
    CHECK_FAILS(outgoing_start(m, NULL, &err), CAUSE_STATE);
    CHECK_FAILS(migration_cancel(m, &err), CAUSE_STATE);
    CHECK_FAILS(migration_cancel(incoming, &err), CAUSE_STATE);
    cr_expect(eq(int, (int)m->state, STATE_COMPLETED));
    cr_expect(eq(int, (int)incoming->state, STATE_COMPLETED));
    /* A second one of the name does not take it away. */
    CHECK_OK(registry_remove(&rig.source, m, &err));
    migration_put(m);
    m = rig_make(&rig, "vm", 1, "");
    CHECK_FAILS(outgoing_start(m, NULL, &err), CAUSE_EXISTS);
    CHECK_OK(registry_remove(&rig.destination, incoming, &err));
    CHECK_OK(outgoing_start(m, NULL, &err));
    migration_put(m);
    migration_put(incoming);
    rig_fini(&rig);
}

static void cancel_at(bool source)
{
    struct sender_write write;
    struct error err;
    char c;

    rig_init(&rig, unix_place(""), NULL);
    struct migration *m = rig_start(&rig, "vm", 3, 0);
    struct migration *incoming = rig_arrived(&rig, "vm");
    struct file *dev = rig_device(m, "dev");
    rig_write(m, dev, "hello", 5, 0);
    CHECK_OK(outgoing_sync(m, NULL, NULL, &err));
    struct file *there = migration_get_file(incoming, 1);
    CHECK_FAILS(registry_remove(&rig.source, m, &err), CAUSE_STATE);
    CHECK_OK(migration_cancel(source ? m : incoming, &err));
    cr_expect(eq(int, (int)rig_await_end(m), STATE_CANCELLED));
    cr_expect(eq(int, (int)rig_await_end(incoming), STATE_CANCELLED));
    cr_expect(eq(int, (int)m->failure.cause, CAUSE_CANCELLED));
    cr_expect(eq(int, (int)incoming->failure.cause, CAUSE_CANCELLED));
    cr_expect(not(zero(ptr, strstr(m->failure.message, source ? "source" : "destination"))), "%s", m->failure.message);
    CHECK_FAILS(outgoing_write_begin(m, dev, "x", 1, 0, NULL, &write, &err), CAUSE_CANCELLED);
    CHECK_FAILS(outgoing_sync(m, NULL, NULL, &err), CAUSE_CANCELLED);
    CHECK_OK(migration_cancel(source ? m : incoming, &err));
    cr_expect(eq(long, file_read(there, 5, &c, 1, false, NULL), -ECONNRESET), "readers are told");
    file_put(there);
    CHECK_FAILS(outgoing_start(m, NULL, &err), CAUSE_STATE);
    CHECK_OK(registry_remove(&rig.source, m, &err));
    CHECK_OK(registry_remove(&rig.destination, incoming, &err));
    migration_put(m);
    migration_put(incoming);
    rig_fini(&rig);
}

Test(migration, cancelled_at_the_source)
{
    cancel_at(true);
}

Test(migration, cancelled_at_the_destination)
{
    cancel_at(false);
}

/* Writers, barriers and a cancel all at once: everybody is told, nobody hangs. */
static void sync_until_it_fails(void *arg)
{
    struct writer *w = arg;

    while (w->ret == 0)
        w->ret = outgoing_sync(w->m, NULL, NULL, &w->err);
}

static void complete_once(void *arg)
{
    struct writer *w = arg;

    w->ret = outgoing_complete(w->m, NULL, &w->err);
}

Test(migration, cancel_in_the_middle)
{
    for (int round = 0; round < 20; round++) {
        struct writer writers[3] = {0};
        struct error err;
        rig_init(&rig, unix_place(""), NULL);
        struct migration *m = rig_start(&rig, "vm", 3, 0);
        struct migration *incoming = rig_arrived(&rig, "vm");
        for (int i = 0; i < 3; i++)
            writers[i] = (struct writer){
                .m = m,
                .file = migration_file(m, WIRE_RAM),
                .want = calloc(1, RAM_SIZE),
                .to = RAM_SIZE,
                .random = (uint64_t)round,
                .turns = 1 << 20,
            };
        worker_start(&writers[0].worker, write_at_random, &writers[0]);
        worker_start(&writers[1].worker, round % 3 == 2 ? complete_once : write_at_random, &writers[1]);
        worker_start(&writers[2].worker, sync_until_it_fails, &writers[2]);
        for (int i = 0; i < 5 * round; i++)
            sched_yield();
        migration_cancel(round % 2 ? m : incoming, &err);
        for (int i = 0; i < 3; i++) {
            worker_join(&writers[i].worker);
            free(writers[i].want);
        }
        enum state there = rig_await_end(incoming), here = rig_await_end(m);
        cr_expect(eq(int, (int)here, (int)there), "round %d: %s here, %s there", round, state_names[here],
                  state_names[there]);
        migration_put(m);
        migration_put(incoming);
        rig_fini(&rig);
    }
}

/*
 * A `complete` that is called off. It can be interrupted before the destination
 * has everything, and then the migration goes on: whatever was already on its
 * way to the destination must not end it.
 */
static struct completer {
    struct worker worker;
    struct migration *m;
    struct interrupt interrupt;
    struct error err;
    int ret;
} completer;

static void complete_interruptibly(void *arg)
{
    struct completer *c = arg;

    c->ret = outgoing_complete(c->m, &c->interrupt, &c->err);
}

Test(migration, complete_is_interrupted_and_goes_on)
{
    static char data[100000];
    uint64_t random = 3;
    struct error err;
    unsigned interrupted = 0;

    /* The destination takes a byte at a time, so that the interrupt comes before it has everything. */
    rig_init(&rig, unix_place("faulty:short=1:"), NULL);
    struct migration *m = rig_start(&rig, "vm", 2, 0);
    struct migration *incoming = rig_arrived(&rig, "vm");
    struct file *ram = migration_file(m, WIRE_RAM);
    for (int round = 0; round < 10 && m->state == STATE_ACTIVE; round++) {
        fill_random(data, sizeof(data), &random);
        rig_write(m, ram, data, sizeof(data), 100);
        completer = (struct completer){.m = m};
        worker_start(&completer.worker, complete_interruptibly, &completer);
        worker_await_sleep(&completer.worker);
        atomic_store(&completer.interrupt.hit, true);
        migration_kick(m);
        worker_join(&completer.worker);
        if (completer.ret == 0)
            break;
        cr_expect(eq(int, (int)completer.err.cause, CAUSE_INTERRUPTED), "round %d: %s", round, completer.err.message);
        interrupted++;
        rig_write(m, ram, data, 5000, 100);
        if (round % 2)
            rig_write(m, rig_device(m, round % 4 == 1 ? "a" : "b"), data, 500, 0);
        CHECK_OK(outgoing_sync(m, NULL, NULL, &err));
    }
    cr_expect(interrupted > 0);
    if (m->state == STATE_ACTIVE)
        CHECK_OK(outgoing_complete(m, NULL, &err));
    check_completed(m, incoming);
    migration_put(m);
    migration_put(incoming);
    rig_fini(&rig);
}

/*
 * Limits
 */

Test(migration, ram_over_the_limit)
{
    struct limits limits = rig_limits();
    struct sender_write write;
    struct error err;

    limits.max_ram = 2 * STRIPE;
    rig_init(&rig, unix_place(""), &limits);
    struct migration *m = rig_make(&rig, "declared", 2, "");
    CHECK_OK(outgoing_truncate(m, migration_file(m, WIRE_RAM), 2 * STRIPE + 1, NULL, &err));
    CHECK_FAILS(outgoing_start(m, NULL, &err), CAUSE_QUOTA);
    migration_put(m);
    m = rig_start(&rig, "grown", 2, 0);
    CHECK_FAILS(outgoing_write_begin(m, migration_file(m, WIRE_RAM), "xx", 2, 2 * STRIPE - 1, NULL, &write, &err),
                CAUSE_QUOTA);
    CHECK_FAILS(outgoing_truncate(m, migration_file(m, WIRE_RAM), 2 * STRIPE + 1, NULL, &err), CAUSE_QUOTA);
    rig_write(m, migration_file(m, WIRE_RAM), "x", 1, 2 * STRIPE - 1);
    CHECK_OK(outgoing_complete(m, NULL, &err));
    migration_put(m);
    rig_fini(&rig);
}

Test(migration, device_over_the_limit)
{
    struct limits limits = rig_limits();
    struct sender_write write;
    struct error err;

    limits.max_device = 1000;
    rig_init(&rig, unix_place(""), &limits);
    struct migration *m = rig_start(&rig, "vm", 2, 0);
    struct file *dev = rig_device(m, "dev");
    CHECK_FAILS(outgoing_write_begin(m, dev, "xx", 2, 999, NULL, &write, &err), CAUSE_QUOTA);
    rig_write(m, dev, "x", 1, 999);
    CHECK_OK(outgoing_complete(m, NULL, &err));
    migration_put(m);
    rig_fini(&rig);
}

Test(migration, memory_over_the_limit)
{
    struct limits limits = rig_limits();
    struct error err;
    int ret = 0;
    char *buf = malloc(STRIPE);

    memset(buf, 'x', STRIPE);
    limits.max_memory = 48 * STRIPE;
    rig_init(&rig, unix_place(""), &limits);
    struct migration *first = rig_start(&rig, "first", 2, 30 * STRIPE);
    uint64_t used = rig.destination.host.accounts.memory.used;
    cr_expect(ge(u64, used, 30 * STRIPE));
    cr_expect(lt(u64, used, 35 * STRIPE), "%d bytes: the buffers of two channels, too", (int)used);
    struct migration *second = rig_make(&rig, "second", 2, "");
    CHECK_OK(outgoing_truncate(second, migration_file(second, WIRE_RAM), 18 * STRIPE, NULL, &err));
    CHECK_FAILS(outgoing_start(second, NULL, &err), CAUSE_QUOTA);
    cr_expect(not(zero(ptr, strstr(err.message, "max-memory"))), "%s", err.message);
    struct migration *refused = rig_arrived(&rig, "second");
    rig_await_end(refused);
    CHECK_OK(registry_remove(&rig.destination, refused, &err));
    migration_put(refused);
    /* Growth past it ends the migration that grows, with the reason, and no other. */
    struct migration *third = rig_start(&rig, "third", 2, 0);
    for (uint64_t at = 0; ret == 0 && at < 100 * STRIPE; at += STRIPE)
        ret = rig_try_write(third, migration_file(third, WIRE_RAM), buf, STRIPE, at, NULL, &err);
    if (ret == 0)
        ret = outgoing_sync(third, NULL, NULL, &err);
    cr_expect(lt(int, ret, 0));
    cr_expect(eq(int, (int)rig_await_end(third), STATE_FAILED));
    cr_expect(eq(int, (int)third->failure.cause, CAUSE_QUOTA), "%s", third->failure.message);
    CHECK_OK(outgoing_sync(first, NULL, NULL, &err));
    /* What it held is given back when it is forgotten. */
    struct migration *gone = rig_arrived(&rig, "third");
    rig_await_end(gone);
    CHECK_OK(registry_remove(&rig.destination, gone, &err));
    migration_put(gone);
    rig_write(first, migration_file(first, WIRE_RAM), buf, STRIPE, 0);
    CHECK_OK(outgoing_complete(first, NULL, &err));
    migration_put(first);
    migration_put(second);
    migration_put(third);
    free(buf);
    rig_fini(&rig);
}

Test(migration, too_many_migrations)
{
    struct limits limits = rig_limits();
    struct error err;

    limits.max_migrations = 2;
    rig_init(&rig, unix_place(""), &limits);
    struct migration *a = rig_start(&rig, "a", 1, 0), *b = rig_start(&rig, "b", 1, 0);
    struct migration *c = rig_make(&rig, "c", 1, "");
    CHECK_FAILS(outgoing_start(c, NULL, &err), CAUSE_QUOTA);
    struct migration *gone = rig_arrived(&rig, "a");
    CHECK_OK(migration_cancel(a, &err));
    rig_await_end(gone);
    migration_put(gone);
    CHECK_OK(outgoing_start(c, NULL, &err)); /* what is over makes way */
    migration_put(a);
    migration_put(b);
    migration_put(c);
    rig_fini(&rig);
}

/*
 * The backing file
 */

Test(migration, backing_file)
{
    struct limits limits = rig_limits();
    struct error err;
    char directory[96], path[160], shown[160];
    struct stat st;

    snprintf(directory, sizeof(directory), "%s/backing", scratch);
    mkdir(directory, 0700);
    limits.ram.directory = directory;
    rig_init(&rig, unix_place(""), &limits);
    struct migration *m = rig_start(&rig, "vm", 2, 2 * STRIPE);
    struct migration *incoming = rig_arrived(&rig, "vm");
    snprintf(path, sizeof(path), "%s/vm", directory);
    cr_assert(zero(int, stat(path, &st)));
    shown_ram_path(incoming, shown, sizeof(shown));
    cr_expect(eq(str, shown, path));
    rig_write(m, migration_file(m, WIRE_RAM), "hello", 5, STRIPE);
    CHECK_OK(migration_cancel(m, &err));
    rig_await_end(incoming);
    CHECK_OK(registry_remove(&rig.destination, incoming, &err));
    cr_expect(lt(int, stat(path, &st), 0), "of a migration that failed nothing is kept");
    migration_put(incoming);
    migration_put(m);

    m = rig_start(&rig, "kept", 2, 2 * STRIPE);
    rig_write(m, migration_file(m, WIRE_RAM), "hello", 5, STRIPE);
    CHECK_OK(outgoing_complete(m, NULL, &err));
    migration_put(m);
    m = rig_start(&rig, "removed", 2, 2 * STRIPE);
    CHECK_OK(outgoing_complete(m, NULL, &err));
    migration_put(m);
    incoming = rig_arrived(&rig, "removed");
    CHECK_OK(registry_remove(&rig.destination, incoming, &err));
    migration_put(incoming);
    rig_fini(&rig);
    snprintf(path, sizeof(path), "%s/kept", directory);
    cr_assert(zero(int, stat(path, &st)), "a completed image outlives the daemon");
    cr_expect(eq(u64, (uint64_t)st.st_size, 2 * STRIPE));
    snprintf(path, sizeof(path), "%s/removed", directory);
    cr_expect(lt(int, stat(path, &st), 0), "unless it was removed");

    /* The name is taken: the file may be in use. */
    rig_init(&rig, unix_place(""), &limits);
    m = rig_make(&rig, "kept", 2, "");
    CHECK_FAILS(outgoing_start(m, NULL, &err), CAUSE_EXISTS);
    migration_put(m);
    rig_fini(&rig);
}

/*
 * Broken connections. Wherever the cut is, both ends agree: completed on both or
 * on neither, writers and commands are told, and nothing hangs.
 */

#define CUTS 40 /* at the same time */

struct cut {
    struct worker worker;
    char name[32], faults[64];
    enum state here;
    struct error err;
};

static uint32_t cut_resume_ms; /* of the next ones */

static void run_cut(void *arg)
{
    struct cut *c = arg;
    struct migration *m = rig_make(&rig, c->name, 2, c->faults);
    struct file *dev;
    char data[5 * 4096 + 100];
    uint64_t random = 11;
    m->settings.resume_ms = cut_resume_ms;
    int ret = outgoing_start(m, NULL, &c->err);

    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (char)(1 + next_random(&random) % 255);
    if (ret == 0)
        ret = rig_try_write(m, migration_file(m, WIRE_RAM), data + 1, sizeof(data) - 1, 4096, NULL, &c->err);
    if (ret == 0)
        ret = rig_try_write(m, migration_file(m, WIRE_RAM), data + 1, 10000, STRIPE - 5000, NULL, &c->err);
    if (ret == 0)
        ret = outgoing_create_device(m, "dev", false, NULL, &dev, &c->err);
    if (ret == 0)
        file_put(dev); /* it stays in the migration's table */
    if (ret == 0)
        ret = rig_try_write(m, dev, data + 7, 3000, 0, NULL, &c->err);
    if (ret == 0)
        ret = outgoing_sync(m, NULL, NULL, &c->err);
    if (ret == 0)
        ret = outgoing_complete(m, NULL, &c->err);
    c->here = m->state;
    if (ret < 0 && !error_is_set(&c->err))
        c->here = STATE_MAX; /* it failed and did not say why */
    if (ret < 0 && state_is_running(c->here))
        c->here = rig_await_end(m);
    migration_put(m);
}

/* Cuts at @first and every @step; the number of migrations that completed. */
static unsigned cut_at(const char *format, uint64_t first, uint64_t step, unsigned n)
{
    struct cut *cuts = calloc(n, sizeof(*cuts));
    unsigned completed = 0;

    for (unsigned i = 0; i < n; i++) {
        snprintf(cuts[i].name, sizeof(cuts[i].name), "vm-%u-%llu", i, (unsigned long long)first);
        snprintf(cuts[i].faults, sizeof(cuts[i].faults), format, (unsigned long long)(first + i * step));
        worker_start(&cuts[i].worker, run_cut, &cuts[i]);
    }
    for (unsigned i = 0; i < n; i++) {
        worker_join(&cuts[i].worker);
        struct migration *incoming = registry_find(&rig.destination, cuts[i].name);
        enum state there = incoming ? rig_await_end(incoming) : STATE_FAILED;
        enum state here = cuts[i].here;
        cr_expect(here == STATE_COMPLETED || here == STATE_FAILED, "%s: state %d", cuts[i].faults, (int)here);
        cr_expect(eq(int, here == STATE_COMPLETED, there == STATE_COMPLETED), "%s: here %s, there %s (%s)",
                  cuts[i].faults, state_names[here], state_names[there], cuts[i].err.message);
        if (here == STATE_FAILED)
            cr_expect(ne(str, cuts[i].err.message, ""), "%s", cuts[i].faults);
        completed += here == STATE_COMPLETED;
        migration_put(incoming);
    }
    free(cuts);
    return completed;
}

/* The main channel: the handshake, the announcements, the barrier, and every byte of the last steps. */
Test(migration, main_channel_is_cut)
{
    unsigned completed = 0;

    rig_init(&rig, unix_place(""), NULL);
    for (uint64_t at = 1; at < 1400; at += 7 * CUTS)
        completed += cut_at("faulty:cut=%llu+only=0:", at, 7, CUTS);
    cr_expect(completed > 0, "the last cuts come after the end");
    cr_expect(lt(uint, completed, 150));
    rig_fini(&rig);
}

Test(migration, first_data_channel_is_cut)
{
    unsigned completed;

    rig_init(&rig, unix_place(""), NULL);
    completed = cut_at("faulty:cut=%llu+only=1:", 1, 701, CUTS);
    cr_expect(lt(uint, completed, CUTS));
    rig_fini(&rig);
}

Test(migration, any_channel_is_cut)
{
    rig_init(&rig, unix_place(""), NULL);
    cut_at("faulty:cut=%llu:", 500, 37, CUTS);
    cut_at("faulty:cut=%llu:", 2000, 301, CUTS);
    rig_fini(&rig);
}

/*
 * The same with `resume`: nothing is lost by it
 */

static void set_resume(struct settings *settings)
{
    settings->resume_ms = 60000;
}

static void set_resume_and_compression(struct settings *settings)
{
    settings->resume_ms = 60000;
    settings->compress = true;
    settings->checksum_choice = CHOICE_ON;
}

/* Every connection, after so many bytes. */
Test(migration, goes_on_over_many_connections)
{
    rig_init(&rig, unix_place(""), NULL);
    carry_over(&rig, "one", 1, "faulty:cut=300000:", set_resume);
    carry_over(&rig, "three", 3, "faulty:cut=77777:", set_resume);
    carry_over(&rig, "compressed", 2, "faulty:cut=50001:", set_resume_and_compression);
    rig_fini(&rig);
}

/* By TCP, where a connection that is cut takes with it what is on the way. */
Test(migration, goes_on_over_tcp)
{
    rig_init(&rig, "tcp:127.0.0.1:0", NULL);
    carry_over(&rig, "vm", 4, "faulty:cut=200003:", set_resume);
    rig_fini(&rig);
}

/* Wherever the main channel, or any, is cut, they complete; as often as it takes. */
Test(migration, goes_on_wherever_it_is_cut)
{
    rig_init(&rig, unix_place(""), NULL);
    cut_resume_ms = 60000;
    for (uint64_t at = 1000; at < 1400; at += 7 * CUTS)
        cr_expect(eq(uint, cut_at("faulty:cut=%llu+only=0:", at, 7, CUTS), CUTS));
    cr_expect(eq(uint, cut_at("faulty:cut=%llu+only=1:", 700, 37, CUTS), CUTS));
    cr_expect(eq(uint, cut_at("faulty:cut=%llu:", 1003, 301, CUTS), CUTS));
    cut_resume_ms = 0;
    rig_fini(&rig);
}

/* The destination's end of it; one at a time, since the faults are the listener's. */
Test(migration, destination_s_channel_is_cut)
{
    unsigned completed = 0, cuts = 0;

    for (uint64_t at = 641; at < 1600; at += 29, cuts++) {
        char faults[64];
        snprintf(faults, sizeof(faults), "faulty:cut=%llu+only=0:", (unsigned long long)at);
        rig_init(&rig, unix_place(faults), NULL);
        completed += cut_at("", 0, 1, 1);
        rig_fini(&rig);
    }
    cr_expect(completed > 0);
    cr_expect(lt(uint, completed, cuts - 10));
}

/* A byte that flips is noticed, whichever it is, and never ends as completed. */
Test(migration, data_is_corrupted)
{
    rig_init(&rig, unix_place(""), NULL);
    cr_expect(eq(uint, cut_at("faulty:corrupt=%llu+only=1:", 321, 97, CUTS), 0));
    rig_fini(&rig);
}

Test(migration, main_channel_is_corrupted)
{
    rig_init(&rig, unix_place(""), NULL);
    /* What the source sends on the main channel: hello, two files, a barrier, the manifest, the commit. */
    cr_expect(eq(uint, cut_at("faulty:corrupt=%llu+only=0:", 1, 11, CUTS), 0));
    rig_fini(&rig);
}

/* The source's daemon goes away, or the destination's. */
Test(migration, a_daemon_goes_away)
{
    for (int which = 0; which < 2; which++) {
        rig_init(&rig, unix_place(""), NULL);
        struct migration *m = rig_start(&rig, "vm", 2, 0);
        struct migration *incoming = rig_arrived(&rig, "vm");
        registry_shutdown(which ? &rig.source : &rig.destination);
        cr_expect(eq(int, (int)rig_await_end(m), STATE_FAILED));
        cr_expect(eq(int, (int)rig_await_end(incoming), STATE_FAILED));
        cr_expect(eq(int, (int)(which ? incoming : m)->failure.cause, CAUSE_SHUTDOWN), "%s",
                  (which ? incoming : m)->failure.message);
        migration_put(m);
        migration_put(incoming);
        rig_fini(&rig);
    }
}

/* A data channel's connection breaks: the other channel and the main one follow, and the sentence says which. */
Test(migration, sentence_of_a_broken_channel)
{
    struct error err;
    int ret = 0;

    rig_init(&rig, unix_place(""), NULL);
    struct migration *m = rig_make(&rig, "vm", 2, "faulty:cut=2000+only=2:");
    CHECK_OK(outgoing_start(m, NULL, &err));
    struct migration *incoming = rig_arrived(&rig, "vm");
    while (ret == 0)
        ret = rig_try_write(m, migration_file(m, WIRE_RAM), "some data", 9, STRIPE, NULL, &err);
    cr_expect(eq(int, (int)rig_await_end(incoming), STATE_FAILED));
    cr_expect(not(zero(ptr, strstr(incoming->failure.message, "channel 1"))), "%s", incoming->failure.message);
    cr_expect(eq(int, (int)rig_await_end(m), STATE_FAILED));
    cr_expect(not(zero(ptr, strstr(m->failure.message, "channel 1"))), "%s", m->failure.message);
    cr_expect(eq(str, err.message, m->failure.message), "the writer is told the same");
    migration_put(m);
    migration_put(incoming);
    rig_fini(&rig);
}

/*
 * Nothing is left
 */

static void do_nothing(void *arg)
{
    (void)arg;
}

Test(migration, many_at_once_and_nothing_is_left)
{
    unsigned fds = rig_count_fds(), threads;
    struct worker workers[20];
    static struct cut cuts[20];

    /* A sanitizer makes a thread of its own together with the first one. */
    worker_start(&workers[0], do_nothing, NULL);
    worker_join(&workers[0]);
    threads = rig_count_threads();
    for (int round = 0; round < 3; round++) {
        rig_init(&rig, "tcp:127.0.0.1:0", NULL);
        for (int i = 0; i < 20; i++) {
            cuts[i] = (struct cut){0};
            snprintf(cuts[i].name, sizeof(cuts[i].name), "vm-%d", i);
            worker_start(&workers[i], run_cut, &cuts[i]);
        }
        for (int i = 0; i < 20; i++) {
            worker_join(&workers[i]);
            cr_expect(eq(int, (int)cuts[i].here, STATE_COMPLETED), "%s", cuts[i].err.message);
        }
        rig_fini(&rig);
        cr_expect(eq(uint, rig_count_fds(), fds), "round %d", round);
        rig_await_threads(threads);
    }
}

/* The same name again and again, with every way to end. */
Test(migration, again_and_again)
{
    unsigned fds, threads;
    struct error err;

    rig_init(&rig, unix_place(""), NULL);
    fds = rig_count_fds();
    threads = rig_count_threads();
    for (int i = 0; i < 60; i++) {
        struct migration *m = rig_start(&rig, "vm", 1 + (unsigned)i % 4, 0);
        struct migration *incoming = rig_arrived(&rig, "vm");
        rig_write(m, migration_file(m, WIRE_RAM), "hello", 5, 0);
        if (i % 3 == 0)
            CHECK_OK(outgoing_complete(m, NULL, &err));
        else
            CHECK_OK(migration_cancel(i % 3 == 1 ? m : incoming, &err));
        rig_await_end(m);
        rig_await_end(incoming);
        CHECK_OK(registry_remove(&rig.source, m, &err));
        CHECK_OK(registry_remove(&rig.destination, incoming, &err));
        migration_put(m);
        migration_put(incoming);
    }
    cr_expect(host_await_unused(&rig.source.host, HOST_FOREVER));
    cr_expect(host_await_unused(&rig.destination.host, HOST_FOREVER));
    cr_expect(eq(uint, rig_count_fds(), fds));
    cr_expect(eq(u64, rig.destination.host.accounts.memory.used, 0));
    rig_await_threads(threads);
    rig_fini(&rig);
}

/* A start that fails leaves nothing, and another one works. */
Test(migration, start_fails_then_works)
{
    struct error err;
    unsigned fds;

    rig_init(&rig, unix_place(""), NULL);
    struct migration *m = rig_make(&rig, "vm", 3, "");
    struct uri_list good = m->settings.uris;
    fds = rig_count_fds();
    CHECK_OK(uri_list_parse("unix:/nonexistent/socket", &m->settings.uris, &err));
    CHECK_FAILS(outgoing_start(m, NULL, &err), CAUSE_REFUSED);
    CHECK_OK(uri_list_parse("rdma:localhost:1", &m->settings.uris, &err));
    CHECK_FAILS(outgoing_start(m, NULL, &err), CAUSE_UNSUPPORTED);
    cr_expect(eq(uint, rig_count_fds(), fds));
    m->settings.uris = good;
    m->settings.channels = 5;
    CHECK_OK(outgoing_start(m, NULL, &err));
    struct migration *incoming = rig_arrived(&rig, "vm");
    rig_write(m, migration_file(m, WIRE_RAM), "hello", 5, 0);
    CHECK_OK(outgoing_complete(m, NULL, &err));
    check_completed(m, incoming);
    migration_put(m);
    migration_put(incoming);
    rig_fini(&rig);
}

/* Rounds, and the mark of the switchover. */
Test(migration, rounds_and_stop)
{
    struct error err;
    char *buf = malloc(10 * 4096);

    memset(buf, 'x', 10 * 4096);
    memset(buf + 5 * 4096, 0, 4096);
    rig_init(&rig, unix_place(""), NULL);
    struct migration *m = rig_start(&rig, "vm", 2, 0);
    struct file *ram = migration_file(m, WIRE_RAM);
    rig_write(m, ram, buf, 10 * 4096, 0);
    CHECK_OK(outgoing_sync(m, NULL, NULL, &err));
    cr_expect(eq(u64, m->rounds, 1));
    cr_expect(eq(u64, m->last_round.pages, 10));
    cr_expect(eq(u64, m->last_round.bytes, 10 * 4096));
    rig_write(m, ram, buf, 4096, 0);
    CHECK_OK(outgoing_sync(m, ram, NULL, &err));
    cr_expect(eq(u64, m->rounds, 2));
    cr_expect(eq(u64, m->last_round.pages, 1));
    cr_expect(eq(u64, m->last_round.wire_bytes, 4096 + sizeof(struct wire_packet)));
    CHECK_OK(outgoing_sync(m, rig_device(m, "dev"), NULL, &err));
    cr_expect(eq(u64, m->rounds, 2), "a device's barrier is no round");
    cr_expect(zero(i64, m->times.switchover));
    CHECK_OK(migration_stop(m, &err));
    int64_t mark = m->times.switchover;
    cr_expect(mark > 0);
    CHECK_OK(outgoing_complete(m, NULL, &err));
    cr_expect(eq(i64, m->times.switchover, mark), "the downtime counts from `stop`");
    cr_expect(ge(i64, m->times.ended, mark));
    CHECK_FAILS(migration_stop(m, &err), CAUSE_STATE);
    migration_put(m);
    free(buf);
    rig_fini(&rig);
}

/*
 * Expected migrations
 */

/* As many devices as can be made here, and another one that the peer makes. */
Test(migration, expected_with_all_devices)
{
    struct file *prepared = NULL, *files[2];
    struct migration *here = NULL;
    struct error err;
    char name[16], buf[16] = "";

    rig_init(&rig, unix_place(""), NULL);
    CHECK_OK(registry_add_outgoing(&rig.destination, "vm", 0, 0, &here, &err));
    for (int i = 0; i < WIRE_DEVICES_MAX; i++) {
        snprintf(name, sizeof(name), "d%d", i);
        struct file *file = rig_device(here, name);
        prepared = i == 77 ? file : prepared;
    }
    CHECK_FAILS(outgoing_create_device(here, "one more", true, NULL, &files[0], &err), CAUSE_QUOTA);
    cr_expect(eq(long, read_at(prepared, 0), -EAGAIN));
    struct migration *m = rig_start(&rig, "vm", 3, 0);
    struct migration *incoming = rig_arrived(&rig, "vm");
    cr_expect(eq(ptr, incoming, here));
    files[0] = rig_device(m, "new");
    files[1] = rig_device(m, "d77");
    cr_expect(not(file_is_receiving(migration_file(here, 1))));
    cr_expect(eq(ptr, rig_find_file(here, "d77"), prepared));
    rig_write(m, files[0], "0", 1, 0);
    rig_write(m, files[1], "hello", 5, 0);
    cr_expect(eq(long, file_read(prepared, 0, buf, 16, false, NULL), 5));
    cr_expect(zero(int, memcmp(buf, "hello", 5)));
    CHECK_OK(outgoing_complete(m, NULL, &err));
    check_completed(m, incoming);
    cr_expect(eq(long, read_at(migration_file(here, 1), 0), 0), "nobody has it: it has ended");
    cr_expect(eq(u64, file_received_size(migration_file(here, 1)), 0));
    cr_expect(eq(long, read_at(rig_find_file(here, "new"), 0), 1));
    migration_put(m);
    migration_put(here);
    migration_put(incoming);
    rig_fini(&rig);
}

/* Somebody who makes a migration, prepares it, may start it, and removes it. */
static void prepare_and_remove(void *arg)
{
    (void)arg;
    for (int i = 0; i < 150; i++) {
        struct migration *m = NULL;
        struct file *device = NULL;
        struct error err = {0};
        if (registry_add_outgoing(&rig.destination, "vm", 0, 0, &m, &err) < 0)
            m = registry_find(&rig.destination, "vm");
        if (!m)
            continue;
        if (m->out && outgoing_create_device(m, "dev", false, NULL, &device, &err) == 0) {
            outgoing_open_writer(m, device);
            outgoing_close_writer(m, device);
            file_put(device);
        }
        pthread_mutex_lock(&m->lock);
        if (m->out && i % 3 == 1)
            migration_become_outgoing(m);
        pthread_mutex_unlock(&m->lock);
        while (i % 3 != 2 && registry_remove(&rig.destination, m, &err) < 0) {
            enum cause cause = err.cause;
            err = (struct error){0};
            if (cause == CAUSE_NOT_FOUND)
                break;
            migration_cancel(m, &err);
        }
        migration_put(m);
    }
}

/* A peer, again and again; it is refused or comes through. */
static void come_and_go(void *arg)
{
    unsigned *completed = arg;

    /* The other one leaves a migration in the end that it comes through to. */
    for (int i = 0; i < 150 || !*completed; i++) {
        struct error err = {0};
        struct migration *m = rig_make(&rig, "vm", 2, "");
        if (outgoing_start(m, NULL, &err) == 0) {
            struct file *device = NULL;
            if (outgoing_create_device(m, "dev", false, NULL, &device, &err) == 0) {
                rig_try_write(m, device, "hello", 5, 0, NULL, &err);
                file_put(device);
            }
            *completed += outgoing_complete(m, NULL, &err) == 0;
        }
        migration_cancel(m, &err);
        cr_expect(eq(int, registry_remove(&rig.source, m, &err), 0));
        migration_put(m);
    }
}

struct looker {
    atomic_bool done;
    atomic_uint found;
};

/* What users look at, whatever the role is at the moment. */
static void look_at_it(void *arg)
{
    struct looker *looker = arg;

    while (!atomic_load(&looker->done)) {
        struct migration *m = registry_find(&rig.destination, "vm");
        struct file **files = NULL;
        if (!m)
            continue;
        atomic_fetch_add(&looker->found, 1);
        int n = migration_files(m, &files, NULL);
        bool incoming = migration_is_incoming(m);
        unsigned channels = incoming ? incoming_channels(m) : outgoing_channels(m);
        for (int i = 0; i < n; i++) {
            read_at(files[i], 0);
            file_readable(files[i], 0);
            file_seek(files[i], 0, true);
            for (unsigned c = 0; c < channels && file_is_receiving(files[i]); c++)
                file_channel_totals(files[i], c);
        }
        migration_put_files(files, n);
        migration_kick(m);
        migration_put(m);
    }
}

Test(migration, expected_races)
{
    struct looker looker = {0};
    struct worker workers[3];
    unsigned completed = 0;

    rig_init(&rig, unix_place(""), NULL);
    struct migration *m = NULL;
    struct error err;
    CHECK_OK(registry_add_outgoing(&rig.destination, "vm", 0, 0, &m, &err));
    worker_start(&workers[0], look_at_it, &looker);
    while (!atomic_load(&looker.found))
        sched_yield();
    migration_put(m);
    worker_start(&workers[1], prepare_and_remove, NULL);
    worker_start(&workers[2], come_and_go, &completed);
    worker_join(&workers[1]);
    worker_join(&workers[2]);
    atomic_store(&looker.done, true);
    worker_join(&workers[0]);
    cr_expect(completed > 0);
    rig_fini(&rig);
}
