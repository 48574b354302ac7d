/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A file as it arrives: what is counted of it, and that its image and its stream together come to what the
 * source has.
 */
#include "file.h"
#include "check.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define STRIPE    ((uint64_t)WIRE_STRIPE_SIZE)
#define UNLIMITED UINT64_MAX
#define DEVICE    1u

static struct budget budget = {.limit = 1ull << 40}, windows = {.limit = 4ull << 40};
static const struct image_budgets budgets = {.memory = &budget, .windows = &windows};

static struct file *make(uint32_t id, unsigned channels, uint64_t size)
{
    struct file *file = file_new(id, id == WIRE_RAM ? "ram" : "dev");
    struct error err;

    cr_assert(zero(int, file_set_channels(file, channels, 0)));
    CHECK_OK(file_receive_begin(file, size, 1ull << 40, NULL, file->name, &budgets, &err));
    return file;
}

static void discard_file(struct file *file)
{
    file_put(file);
    cr_expect(eq(u64, budget.used, 0), "the budget got everything back");
    cr_expect(eq(u64, windows.used, 0), "the address space, too");
}

/* One packet's worth of data, as a receiver applies it: within one stripe, on its home channel. */
static void apply_data(struct file *file, uint64_t offset, const void *data, size_t len)
{
    struct error err;

    CHECK_OK(file_receive_size(file, file_home(file, offset), offset + len, UNLIMITED, &err));
    CHECK_OK(file_receive_storage(file, &err));
    CHECK_OK(image_write(&file->image, offset, data, len, &err));
    file_received(file, file_home(file, offset), offset, len);
}

static void apply_fill(struct file *file, uint64_t offset, char c, size_t len)
{
    char *buf = malloc(len);

    memset(buf, c, len);
    apply_data(file, offset, buf, len);
    free(buf);
}

static ssize_t read_now(struct file *file, uint64_t offset, void *buf, size_t len)
{
    return file_read(file, offset, buf, len, true, NULL);
}

/* Dedicated channels: the last ones carry devices alone, the others RAM alone. */
Test(file, device_channels)
{
    for (unsigned channels = 2; channels <= 9; channels++) {
        for (unsigned devices = 1; devices < channels; devices++) {
            struct file *ram = file_new(WIRE_RAM, "ram"), *dev = file_new(7, "dev");
            file_set_channels(ram, channels, devices);
            file_set_channels(dev, channels, devices);
            for (uint64_t stripe = 0; stripe < 40; stripe++) {
                cr_assert(lt(uint, file_home(ram, stripe * STRIPE), channels - devices));
                cr_assert(ge(uint, file_home(dev, stripe * STRIPE), channels - devices));
                cr_assert(lt(uint, file_home(dev, stripe * STRIPE), channels));
            }
            for (unsigned c = 0; c < channels; c++) {
                cr_expect(eq(int, file_is_home(ram, c), c < channels - devices));
                cr_expect(eq(int, file_is_home(dev, c), c >= channels - devices));
            }
            file_put(ram);
            file_put(dev);
        }
    }
}

Test(file, totals)
{
    struct file *file = file_new(DEVICE, "dev");

    cr_expect(eq(u64, file_totals(file).packets, 0), "also before the channels are known");
    file_set_channels(file, 3, 0);
    for (unsigned c = 0; c < 3; c++) {
        struct file_channel *fc = &file->per_channel[c];
        _Atomic uint64_t *counters[] = {&fc->packets, &fc->covered, &fc->bytes, &fc->pages, &fc->zero_pages, &fc->first_pages, &fc->discarded_bytes};
        for (unsigned i = 0; i < ARRAY_LENGTH(counters); i++)
            counter_add(counters[i], (c + 1) * (i + 1));
        counter_add(&fc->digest, UINT64_MAX - c);
    }
    cr_expect(zero(u64, file_channel_totals(file, 3).packets), "there is no such channel");
    for (int settled = 0; settled < 2; settled++) {
        struct file_totals totals = file_totals(file);
        cr_expect(eq(u64, totals.packets, 6));
        cr_expect(eq(u64, totals.covered, 12));
        cr_expect(eq(u64, totals.bytes, 18));
        cr_expect(eq(u64, totals.pages, 24));
        cr_expect(eq(u64, totals.zero_pages, 30));
        cr_expect(eq(u64, totals.first_pages, 36));
        cr_expect(eq(u64, totals.discarded_bytes, 42));
        cr_expect(eq(u64, totals.digest, (uint64_t)-6), "the digest wraps");
        file_settle(file);
    }
    file_put(file);
    file_put(NULL);
}

Test(file, renamed)
{
    struct file *file = file_new(DEVICE, "dev");
    char name[WIRE_NAME_MAX + 1];

    cr_expect(eq(str, (char *)file_name(file, name), "dev"));
    file_rename(file, "other");
    cr_expect(eq(str, (char *)file_name(file, name), "other"));
    file_put(file);
}

/*
 * Sizes, limits, the budget
 */

Test(file, limits)
{
    struct file *file = make(DEVICE, 1, 0), *other;
    struct error err;

    CHECK_OK(file_receive_size(file, 0, 1000, 1000, &err));
    CHECK_FAILS(file_receive_size(file, 0, 1001, 1000, &err), CAUSE_QUOTA);
    CHECK_FAILS(file_receive_truncate(file, 0, 1001, 1, 1000, &err), CAUSE_QUOTA);
    cr_expect(eq(u64, file_received_size(file), 1000), "a refusal changes nothing");

    budget.limit = 1500;
    CHECK_FAILS(file_receive_size(file, 0, 1501, UNLIMITED, &err), CAUSE_QUOTA);
    other = file_new(2, "other");
    file_set_channels(other, 1, 0);
    CHECK_FAILS(file_receive_begin(other, 501, UNLIMITED, NULL, "other", &budgets, &err), CAUSE_QUOTA);
    file_put(other);
    cr_expect(eq(u64, budget.used, 1000));
    CHECK_OK(file_receive_size(file, 0, 1500, UNLIMITED, &err));
    discard_file(file);
}

/*
 * Truncation, seen by channels in different orders
 */

Test(file, truncate_shrinks)
{
    for (unsigned channels = 1; channels <= 3; channels++) {
        struct file *file = make(WIRE_RAM, channels, 0);
        struct error err;
        char buf[8];
        for (uint64_t s = 0; s < 4; s++)
            apply_fill(file, s * STRIPE, 'a', STRIPE);
        for (unsigned c = 0; c < channels; c++)
            CHECK_OK(file_receive_truncate(file, c, STRIPE + 100, 1, UNLIMITED, &err));
        cr_expect(eq(u64, file_received_size(file), STRIPE + 100), "%u channels", channels);
        cr_expect(eq(long, read_now(file, STRIPE + 96, buf, 8), 4));
        /* What was cut off is gone when the file grows again. */
        for (unsigned c = 0; c < channels; c++)
            CHECK_OK(file_receive_truncate(file, c, 4 * STRIPE, 2, UNLIMITED, &err));
        for (uint64_t at = STRIPE + 96; at < 4 * STRIPE; at += STRIPE / 2) {
            cr_expect(eq(long, read_now(file, at, buf, 8), 8));
            cr_expect(zero(int, memcmp(buf, at == STRIPE + 96 ? "aaaa\0\0\0\0" : "\0\0\0\0\0\0\0\0", 8)));
        }
        discard_file(file);
    }
}

/* truncate(2) to something larger, of an empty file and of one with data. */
Test(file, truncate_grows)
{
    for (unsigned channels = 1; channels <= 3; channels++) {
        for (int with_data = 0; with_data < 2; with_data++) {
            struct file *file = make(WIRE_RAM, channels, 0);
            struct error err;
            char c;
            if (with_data)
                apply_fill(file, 0, 'a', 10);
            for (unsigned ch = 0; ch < channels; ch++)
                CHECK_OK(file_receive_truncate(file, ch, 3 * STRIPE, 1, UNLIMITED, &err));
            cr_expect(eq(u64, file_received_size(file), 3 * STRIPE));
            cr_expect(eq(long, read_now(file, 3 * STRIPE - 1, &c, 1), 1));
            cr_expect(eq(chr, c, 0));
            discard_file(file);
        }
    }
}

/* To the size that it has had before, which is as far as anything was ever stored. */
Test(file, truncate_to_the_high_water_mark)
{
    for (unsigned channels = 1; channels <= 3; channels++) {
        struct file *file = make(DEVICE, channels, 0);
        struct error err;
        apply_fill(file, 0, 'a', 1000);
        for (unsigned c = 0; c < channels; c++)
            CHECK_OK(file_receive_truncate(file, c, 1000, 1, UNLIMITED, &err));
        cr_expect(eq(u64, file_received_size(file), 1000));
        discard_file(file);
    }
}

/* A channel that is ahead has seen a truncation that others have not: the size is the largest view, and right at the end. */
Test(file, views_of_channels)
{
    struct file *file = make(WIRE_RAM, 2, 0);
    struct error err;

    /* The source: 2 MiB of data, truncate to 0, 5 bytes. Channel 0 runs ahead. */
    apply_fill(file, 0, 'a', STRIPE);
    CHECK_OK(file_receive_truncate(file, 0, 0, 1, UNLIMITED, &err));
    apply_fill(file, 0, 'b', 5);
    cr_expect(eq(u64, file_received_size(file), 5));
    apply_fill(file, STRIPE, 'a', STRIPE);
    cr_expect(eq(u64, file_received_size(file), 2 * STRIPE), "channel 1 is still before the truncation");
    CHECK_OK(file_receive_truncate(file, 1, 0, 1, UNLIMITED, &err));
    cr_expect(eq(u64, file_received_size(file), 5));
    discard_file(file);
}

Test(file, truncations_are_numbered)
{
    struct file *file = make(DEVICE, 2, 0);
    struct error err;

    CHECK_OK(file_receive_truncate(file, 0, 10, 1, UNLIMITED, &err));
    CHECK_FAILS(file_receive_truncate(file, 0, 10, 1, UNLIMITED, &err), CAUSE_PROTOCOL);
    CHECK_FAILS(file_receive_truncate(file, 1, 10, 0, UNLIMITED, &err), CAUSE_PROTOCOL);
    CHECK_OK(file_receive_truncate(file, 1, 10, 1, UNLIMITED, &err));
    discard_file(file);
}

/*
 * What is counted
 */

#define PAGE ((uint64_t)WIRE_PAGE_SIZE)

static void apply_zero(struct file *file, uint64_t page, uint64_t count)
{
    unsigned home = file_home(file, page * PAGE);
    struct error err;

    CHECK_OK(file_receive_size(file, home, (page + count) * PAGE, UNLIMITED, &err));
    CHECK_OK(file_receive_zero(file, home, page * PAGE, count * PAGE, &err));
}

static bool arrived(struct file *file, uint64_t page)
{
    uint8_t byte;

    return file_read_received_map(file, page / 8, &byte, 1) == 1 && byte >> page % 8 & 1;
}

/* In its counters, and in the map of what has arrived. */
Test(file, counts_of_a_channel)
{
    struct file *file = make(WIRE_RAM, 2, 0), *dev = make(DEVICE, 2, 0);
    struct error err;

    apply_fill(file, 3 * PAGE + 1, 'x', PAGE);
    apply_zero(file, 4, 6);
    CHECK_OK(file_receive_discard(file, 0, STRIPE / 2, STRIPE, &err));
    CHECK_OK(file_receive_discard(file, 1, STRIPE / 2, STRIPE, &err));
    struct file_totals totals = file_channel_totals(file, 0);
    cr_expect(eq(u64, totals.bytes, PAGE));
    cr_expect(eq(u64, totals.pages, 2));
    cr_expect(eq(u64, totals.zero_pages, 6));
    cr_expect(eq(u64, totals.first_pages, 7), "a page that has arrived twice counts once");
    cr_expect(eq(u64, totals.discarded_bytes, STRIPE / 2), "its own part of the hole");
    cr_expect(eq(u64, file_totals(file).discarded_bytes, STRIPE));
    for (uint64_t page = 0; page < 12; page++)
        cr_expect(eq(int, arrived(file, page), page >= 3 && page < 10), "page %d", (int)page);
    apply_fill(dev, 10, 'x', 2 * PAGE);
    totals = file_totals(dev);
    cr_expect(eq(u64, totals.bytes, 2 * PAGE));
    cr_expect(eq(u64, totals.pages, 3));
    cr_expect(zero(u64, totals.first_pages), "of RAM alone");
    file_put(dev);
    discard_file(file);
}

/* Data among zeros: only what is zero is cleared. */
Test(file, zero_pages_around_data)
{
    struct file *file = make(WIRE_RAM, 2, 0);
    char c;

    apply_fill(file, 0, 'x', 100 * PAGE);
    apply_zero(file, 20, 3);
    apply_zero(file, 50, 40);
    for (uint64_t page = 0; page < 100; page++) {
        bool zero = (page >= 20 && page < 23) || (page >= 50 && page < 90);
        read_now(file, page * PAGE, &c, 1);
        cr_expect(eq(chr, c, zero ? 0 : 'x'), "page %d", (int)page);
        read_now(file, page * PAGE + PAGE - 1, &c, 1);
        cr_expect(eq(chr, c, zero ? 0 : 'x'), "page %d", (int)page);
        cr_expect(arrived(file, page));
    }
    discard_file(file);
}

/*
 * The stream
 */

/* The news of an end can be late: what came after it on a data channel resumes the stream, whichever is seen first. */
Test(file, an_end_that_is_out_of_date)
{
    struct file *file = make(DEVICE, 2, 0);
    uint64_t counts[2] = {0};
    unsigned home = file_home(file, 0);
    struct error err;

    counts[home] = 7;
    file->per_channel[home].last_sequence = 7;
    apply_fill(file, 0, 'a', 5);
    file_receive_end(file, counts);
    cr_expect(file_readable(file, 5), "this is the end");
    file->per_channel[home].last_sequence = 9;
    apply_fill(file, 5, 'b', 5);
    cr_expect(not(file_readable(file, 10)), "more has come");
    file_receive_end(file, counts);
    cr_expect(not(file_readable(file, 10)), "that was the end before");
    counts[home] = 9;
    file_receive_end(file, counts);
    cr_expect(file_readable(file, 10));
    CHECK_OK(file_receive_truncate(file, 1 - home, 0, 1, UNLIMITED, &err));
    CHECK_OK(file_receive_truncate(file, home, 0, 1, UNLIMITED, &err));
    cr_expect(not(file_readable(file, 0)), "it begins anew");
    discard_file(file);
}

/* RAM is no stream: it is read as it is. */
Test(file, ram_does_not_block)
{
    struct file *file = make(WIRE_RAM, 2, 0);
    char buf[8];

    cr_expect(eq(long, file_read(file, 0, buf, 8, false, NULL), 0));
    apply_fill(file, 4, 'a', 4);
    cr_expect(eq(long, file_read(file, 0, buf, 8, false, NULL), 8));
    cr_expect(zero(int, memcmp(buf, "\0\0\0\0aaaa", 8)));
    cr_expect(file_readable(file, 100));
    discard_file(file);
}

/* RAM shows what is held of it; a device what can be read, and the rest as data. */
Test(file, seek)
{
    struct file *file = make(WIRE_RAM, 2, 10 * PAGE), *dev = make(DEVICE, 2, 0);

    apply_fill(file, 3 * PAGE + 1, 'x', 10);
    cr_expect(eq(i64, file_seek(file, 0, true), (int64_t)(3 * PAGE)));
    cr_expect(eq(i64, file_seek(file, 0, false), 0));
    apply_fill(dev, 2 * STRIPE, 'x', 10);
    cr_expect(eq(i64, file_seek(dev, 0, true), 0));
    cr_expect(eq(i64, file_seek(dev, 0, false), (int64_t)(2 * STRIPE + 10)));
    file_put(dev);
    discard_file(file);
}

static void nothing(struct follower *follower)
{
    (void)follower;
}

/* RAM is never waited for. */
Test(file, followed)
{
    struct file *ram = make(WIRE_RAM, 1, 0), *dev = make(DEVICE, 1, 0);
    struct follower follower = {.offset = 10, .wake = nothing};

    cr_expect(not(file_follow(ram, &follower)));
    cr_expect(file_follow(dev, &follower));
    cr_expect(file_unfollow(dev, &follower));
    cr_expect(not(file_unfollow(dev, &follower)));
    file_put(ram);
    discard_file(dev);
}

/* A name goes along with what is refused. */
Test(file, what_does_not_fit_has_a_name)
{
    struct file *file = make(DEVICE, 1, 10);
    struct error err;

    budget.limit = 100;
    CHECK_FAILS(file_receive_size(file, 0, 101, UNLIMITED, &err), CAUSE_QUOTA);
    cr_expect(eq(str, err.message, "'dev': a size of 101 bytes does not fit: the destination holds at most 100 in all"));
    cr_expect(lt(int, file_receive_size(file, 0, 101, UNLIMITED, NULL), 0));
    CHECK_FAILS(file_receive_size(file, 0, 101, 100, &err), CAUSE_QUOTA);
    cr_expect(eq(str, err.message, "'dev' grows to 101 bytes; the destination allows 100"));
    discard_file(file);
}

/*
 * Ends
 */

/* Removed, it is there until the last handle is closed. */
Test(file, removed_while_it_is_open)
{
    struct file *file = make(DEVICE, 1, 0), *unused = make(2, 1, 10);
    char buf[8];

    apply_data(file, 0, "data", 4);
    cr_assert(zero(int, file_open_reader(file)));
    cr_assert(zero(int, file_open_reader(file)));
    atomic_store(&file->removed, true);
    cr_expect(eq(int, file_open_reader(file), -ESTALE));
    file_receive_remove(file);
    file_close_reader(file);
    cr_expect(eq(long, read_now(file, 0, buf, 8), 4));
    cr_expect(eq(long, read_now(file, 4, buf, 8), -ESTALE));
    file_close_reader(file);
    cr_expect(eq(long, read_now(file, 0, buf, 8), -ECONNRESET));
    cr_expect(not(image_has_memory(&file->image)));
    file_receive_remove(unused);
    cr_expect(zero(u64, budget.used), "nobody has this one open");
    file_put(unused);
    discard_file(file);
}

/* Open, and not removed: a handle that is closed takes nothing along. */
Test(file, closed)
{
    struct file *file = make(DEVICE, 1, 0);
    char buf[8];

    apply_data(file, 0, "data", 4);
    cr_assert(zero(int, file_open_reader(file)));
    file_close_reader(file);
    cr_expect(eq(long, read_now(file, 0, buf, 8), 4));
    discard_file(file);
}

/* A migration has failed; what its files did is still told. */
Test(file, dropped_and_settled)
{
    struct file *ram = make(WIRE_RAM, 2, STRIPE), *expected = file_new(DEVICE, "dev");
    char got[4];

    apply_data(ram, 0, "data", 4);
    file_receive_drop(ram);
    cr_expect(eq(long, read_now(ram, 0, got, sizeof(got)), -ECONNRESET));
    cr_expect(eq(long, read_now(ram, STRIPE, got, sizeof(got)), -ECONNRESET));
    cr_expect(eq(u64, budget.used, 0));
    file_settle(ram);
    cr_expect(eq(u64, file_totals(ram).bytes, 4));
    cr_expect(eq(u64, file_received_size(ram), STRIPE));
    cr_expect(zero(ptr, ram->per_channel));
    cr_expect(eq(u64, file_channel_totals(ram, 0).bytes, 0));
    file_receive_drop(expected);
    cr_expect(eq(long, read_now(expected, 0, got, sizeof(got)), -EAGAIN), "it has not begun: a peer may still come");
    file_put(expected);
    discard_file(ram);
}

/*
 * Against a model: any sequence of writes, holes and truncations, applied by the
 * channels in any interleaving, ends as it would have in a plain file.
 */

#define OPS_MAX 60
#define SPACE   (6 * STRIPE)

struct op {
    enum wire_packet_type type;
    uint64_t offset, length; /* TRUNCATE: the size, and the number */
    char fill;
};

/* What a channel has to do, in its order. */
struct queue {
    struct op ops[2 * OPS_MAX];
    unsigned n, done;
};

static uint64_t random_state;

static uint64_t random_u64(uint64_t below)
{
    random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
    return (random_state >> 24) % below;
}

/* Sizes and offsets like to be round. */
static uint64_t random_place(void)
{
    uint64_t at = random_u64(SPACE);

    switch (random_u64(4)) {
    case 0:
        return at / STRIPE * STRIPE;
    case 1:
        return at / 4096 * 4096;
    default:
        return at;
    }
}

static void model(uint64_t seed, uint32_t id, unsigned channels)
{
    static char want[SPACE], got[SPACE + 1];
    static struct queue queues[8];
    uint64_t size = 0, truncations = 0;
    struct file *file = make(id, channels, 0);
    struct error err;

    random_state = seed * 0x9e3779b97f4a7c15ull;
    memset(want, 0, sizeof(want));
    memset(queues, 0, sizeof(queues));
    /* The source: makes the queues, and the file as it should be. */
    for (int i = 0; i < OPS_MAX; i++) {
        uint64_t kind = random_u64(10), offset = random_place(), length = 1 + random_u64(STRIPE);
        struct op op = {.fill = (char)('a' + i % 26)};
        if (kind < 6) {
            op.type = WIRE_DATA;
            if (offset + length > SPACE)
                length = SPACE - offset;
            memset(want + offset, op.fill, length);
            for (uint64_t at = offset, end = offset + length; at < end; at = op.offset + op.length) {
                uint64_t room = STRIPE - at % STRIPE;
                op.offset = at;
                op.length = end - at < room ? end - at : room;
                struct queue *q = &queues[file_home(file, at)];
                q->ops[q->n++] = op;
            }
            if (offset + length > size)
                size = offset + length;
        } else if (kind < 8) {
            length = 1 + random_u64(3 * STRIPE);
            if (offset >= size)
                continue;
            if (offset + length > size)
                length = size - offset;
            memset(want + offset, 0, length);
            op.type = WIRE_DISCARD;
            op.offset = offset;
            op.length = length;
            for (unsigned c = 0; c < channels; c++)
                queues[c].ops[queues[c].n++] = op;
        } else {
            memset(want + offset, 0, SPACE - offset);
            size = offset;
            op.type = WIRE_TRUNCATE;
            op.offset = size;
            op.length = ++truncations;
            for (unsigned c = 0; c < channels; c++)
                queues[c].ops[queues[c].n++] = op;
        }
    }
    /* The destination: channels take turns as they like. */
    for (bool more = true; more;) {
        struct queue *q = &queues[random_u64(channels)];
        for (uint64_t run = random_u64(8); run > 0 && q->done < q->n; run--) {
            const struct op *op = &q->ops[q->done++];
            unsigned c = (unsigned)(q - queues);
            if (op->type == WIRE_DATA)
                apply_fill(file, op->offset, op->fill, op->length);
            else if (op->type == WIRE_DISCARD)
                CHECK_OK(file_receive_discard(file, c, op->offset, op->length, &err));
            else
                CHECK_OK(file_receive_truncate(file, c, op->offset, op->length, UNLIMITED, &err));
        }
        more = false;
        for (unsigned c = 0; c < channels; c++)
            more |= queues[c].done < queues[c].n;
    }
    cr_expect(eq(u64, file_received_size(file), size), "seed %llu, %u channels", (unsigned long long)seed, channels);
    cr_expect(le(u64, file->stream.frontier, size), "seed %llu, %u channels", (unsigned long long)seed, channels);
    file_receive_end(file, NULL);
    cr_expect(eq(long, read_now(file, 0, got, sizeof(got)), (long)size), "seed %llu, %u channels",
              (unsigned long long)seed, channels);
    cr_expect(zero(int, memcmp(got, want, size)), "seed %llu, %u channels", (unsigned long long)seed, channels);
    discard_file(file);
}

Test(file, model_of_ram)
{
    for (uint64_t seed = 1; seed <= 24; seed++)
        model(seed, WIRE_RAM, 2 + seed % 4);
}

Test(file, model_of_a_device)
{
    for (uint64_t seed = 1; seed <= 24; seed++)
        model(seed, DEVICE, 2 + seed % 4);
}

Test(file, model_with_one_channel)
{
    for (uint64_t seed = 1; seed <= 20; seed++)
        model(seed, seed % 2, 1);
}
