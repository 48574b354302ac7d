/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A file as it arrives: what each channel applies in its own order, and what a
 * reader sees of it meanwhile and in the end.
 */
#include "file.h"
#include "blocked.h"
#include "check.h"

#include <errno.h>
#include <fcntl.h>
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

Test(file, home)
{
    for (unsigned channels = 1; channels <= WIRE_CHANNELS_MAX; channels++) {
        for (uint32_t id = 0; id < 3; id++) {
            struct file *file = file_new(id, "x");
            file_set_channels(file, channels, 0);
            for (uint64_t stripe = 0; stripe < 300; stripe++) {
                unsigned home = file_home(file, stripe * STRIPE);
                cr_assert(lt(uint, home, channels));
                cr_assert(eq(uint, file_home(file, stripe * STRIPE + STRIPE - 1), home), "a stripe has one home");
                if (channels > 1)
                    cr_assert(ne(uint, file_home(file, (stripe + 1) * STRIPE), home), "neighbours use other channels");
            }
            cr_expect(lt(uint, file_home(file, WIRE_OFFSET_MAX), channels));
            file_put(file);
        }
    }
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

/* Against counting stripe by stripe. */
Test(file, home_bytes)
{
    static const uint64_t places[] = {0, 1, STRIPE - 1, STRIPE, STRIPE + 1, 3 * STRIPE, 7 * STRIPE + 12345};

    for (unsigned devices = 0; devices < 3; devices++) {
        for (uint32_t id = 0; id < 5; id++) {
            struct file *file = file_new(id, "x");
            file_set_channels(file, 5, devices);
            for (size_t i = 0; i < ARRAY_LENGTH(places); i++) {
                for (size_t k = 0; k < ARRAY_LENGTH(places); k++) {
                    uint64_t counted[5] = {0}, end = places[i] + places[k];
                    for (uint64_t at = places[i]; at < end;) {
                        uint64_t to = (at / STRIPE + 1) * STRIPE < end ? (at / STRIPE + 1) * STRIPE : end;
                        counted[file_home(file, at)] += to - at;
                        at = to;
                    }
                    for (unsigned c = 0; c < 5; c++)
                        cr_assert(eq(u64, file_home_bytes(file, c, places[i], places[k]), counted[c]),
                                  "file %u, channel %u, %u for devices", id, c, devices);
                }
            }
            cr_expect(file_home_bytes(file, file_home(file, 0), 0, WIRE_OFFSET_MAX) > 0, "and no time for a huge one");
            file_put(file);
        }
    }
}

Test(file, totals)
{
    struct file *file = file_new(DEVICE, "dev");

    cr_expect(eq(u64, file_totals(file).packets, 0), "also before the channels are known");
    file_set_channels(file, 3, 0);
    for (unsigned c = 0; c < 3; c++) {
        counter_add(&file->per_channel[c].packets, c + 1);
        counter_add(&file->per_channel[c].bytes, 10 * (c + 1));
        counter_add(&file->per_channel[c].pages, 100 * (c + 1));
        counter_add(&file->per_channel[c].digest, UINT64_MAX - c);
    }
    struct file_totals totals = file_totals(file);
    cr_expect(eq(u64, totals.packets, 6));
    cr_expect(eq(u64, totals.bytes, 60));
    cr_expect(eq(u64, totals.pages, 600));
    cr_expect(eq(u64, totals.digest, (uint64_t)-6), "the digest wraps");
    file_put(file);
    file_put(NULL);
}

/*
 * Sizes, limits, the budget
 */

Test(file, declared_size)
{
    struct file *file = make(WIRE_RAM, 2, 3 * STRIPE + 5);
    char buf[16];

    cr_expect(eq(u64, file_received_size(file), 3 * STRIPE + 5));
    cr_expect(eq(u64, budget.used, 3 * STRIPE + 5), "what is declared is charged");
    cr_expect(eq(long, read_now(file, 3 * STRIPE, buf, 16), 5));
    cr_expect(zero(int, memcmp(buf, "\0\0\0\0\0", 5)), "what has not arrived is a hole");
    cr_expect(eq(long, read_now(file, 3 * STRIPE + 5, buf, 16), 0));
    discard_file(file);
}

Test(file, growth_is_charged_once)
{
    struct file *file = make(DEVICE, 3, 0);
    struct error err;

    CHECK_OK(file_receive_size(file, 0, 1000, UNLIMITED, &err));
    CHECK_OK(file_receive_size(file, 1, 900, UNLIMITED, &err));
    CHECK_OK(file_receive_size(file, 2, 1000, UNLIMITED, &err));
    cr_expect(eq(u64, budget.used, 1000));
    CHECK_OK(file_receive_size(file, 1, 1500, UNLIMITED, &err));
    CHECK_OK(file_receive_size(file, 1, 10, UNLIMITED, &err));
    cr_expect(eq(u64, budget.used, 1500));
    cr_expect(eq(u64, file_received_size(file), 1500));
    discard_file(file);
}

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
 * Discards
 */

Test(file, discard_touches_only_the_channel_s_stripes)
{
    struct file *file = make(WIRE_RAM, 3, 0);
    struct error err;
    char c;

    for (uint64_t s = 0; s < 9; s++)
        apply_fill(file, s * STRIPE, 'a', STRIPE);
    CHECK_OK(file_receive_discard(file, 1, STRIPE / 2, 7 * STRIPE, &err));
    for (uint64_t at = 0; at < 9 * STRIPE; at += STRIPE / 4) {
        bool in_range = at >= STRIPE / 2 && at < STRIPE / 2 + 7 * STRIPE;
        bool discarded = in_range && file_home(file, at) == 1;
        cr_assert(eq(long, read_now(file, at, &c, 1), 1));
        cr_expect(eq(int, c == 0, discarded), "at %llu", (unsigned long long)at);
    }
    cr_expect(eq(u64, file_received_size(file), 9 * STRIPE), "a hole keeps the size");
    discard_file(file);
}

/* A peer's range may reach far past what is stored: that is no work, and no error. */
Test(file, discard_past_the_end)
{
    for (unsigned channels = 1; channels <= 2; channels++) {
        struct file *file = make(WIRE_RAM, channels, 0);
        struct error err;
        char c;
        apply_fill(file, 0, 'a', 100);
        for (unsigned ch = 0; ch < channels; ch++) {
            CHECK_OK(file_receive_discard(file, ch, 50, WIRE_OFFSET_MAX - 50, &err));
            CHECK_OK(file_receive_discard(file, ch, 100, 1, &err));
            CHECK_OK(file_receive_discard(file, ch, 5 * STRIPE, STRIPE, &err));
            CHECK_OK(file_receive_discard(file, ch, WIRE_OFFSET_MAX - 1, 1, &err));
        }
        read_now(file, 49, &c, 1);
        cr_expect(eq(chr, c, 'a'));
        read_now(file, 50, &c, 1);
        cr_expect(eq(chr, c, 0));
        discard_file(file);
    }
}

/* Memory that was prepared can be given back: what comes then is written, so that a full file system is an error. */
Test(file, prepared_and_discarded)
{
    struct file *file = make(WIRE_RAM, 2, 4 * STRIPE);
    struct error err;

    cr_expect(zero(ptr, image_window(&file->image, STRIPE, 100)));
    while (image_prepare(&file->image))
        ;
    cr_expect(not(zero(ptr, image_window(&file->image, STRIPE, 100))));
    cr_expect(not(zero(ptr, image_window(&file->image, 3 * STRIPE, STRIPE))));
    CHECK_OK(file_receive_discard(file, 1, STRIPE + 8192, 4096, &err));
    cr_expect(not(zero(ptr, image_window(&file->image, STRIPE, 8192))));
    cr_expect(zero(ptr, image_window(&file->image, STRIPE, 8193)));
    cr_expect(zero(ptr, image_window(&file->image, STRIPE + 8192, 4096)));
    apply_fill(file, STRIPE + 8192, 'a', 4096);
    cr_expect(not(zero(ptr, image_window(&file->image, STRIPE + 8192, 4096))), "it is there again");
    discard_file(file);
}

/*
 * Zero pages, and the map of what has arrived
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

/* A few pages, and long runs: short ones are overwritten, long ones give their memory back, and both read as zeros. */
Test(file, zero_pages)
{
    for (uint64_t count = 1; count <= 64; count *= 4) {
        struct file *file = make(WIRE_RAM, 2, 0);
        char c;
        apply_zero(file, 10, count);
        cr_expect(eq(i64, file_seek(file, 0, true), -ENXIO), "nothing is held for it");
        cr_expect(eq(u64, file_totals(file).first_pages, count));
        apply_fill(file, 10 * PAGE, 'x', count * PAGE);
        cr_expect(eq(u64, file_totals(file).first_pages, count), "it had arrived before");
        cr_expect(eq(i64, file_seek(file, 0, true), (int64_t)(10 * PAGE)));
        cr_expect(eq(i64, file_seek(file, 10 * PAGE, false), (int64_t)((10 + count) * PAGE)));
        apply_zero(file, 10, count);
        for (uint64_t at = 10 * PAGE; at < (10 + count) * PAGE; at += 1000) {
            read_now(file, at, &c, 1);
            cr_assert(eq(chr, c, 0), "%d pages, at %d", (int)count, (int)at);
        }
        cr_expect(eq(u64, file_totals(file).zero_pages, 2 * count));
        cr_expect(eq(u64, file_received_size(file), (10 + count) * PAGE));
        discard_file(file);
    }
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

Test(file, received_map)
{
    struct file *file = make(WIRE_RAM, 2, 200 * PAGE);
    struct error err;
    uint8_t map[64];

    cr_expect(eq(u64, file_received_map_size(file), 32), "whole words");
    cr_expect(eq(sz, file_read_received_map(file, 0, map, sizeof(map)), 32));
    for (int i = 0; i < 32; i++)
        cr_expect(eq(u8, map[i], 0));
    apply_fill(file, 5 * PAGE + 100, 'x', 10); /* a part of a page */
    apply_fill(file, 8 * PAGE - 1, 'x', 2);    /* two of them */
    apply_zero(file, 70, 2);
    for (uint64_t page = 0; page < 200; page++)
        cr_expect(eq(int, arrived(file, page), page == 5 || page == 7 || page == 8 || page == 70 || page == 71), "page %d",
                  (int)page);
    cr_expect(eq(u64, file_totals(file).first_pages, 5));
    /* A hole has not arrived, where it covers a page. */
    CHECK_OK(file_receive_discard(file, file_home(file, 0), 5 * PAGE, 2 * PAGE + 1, &err));
    cr_expect(not(arrived(file, 5)));
    cr_expect(arrived(file, 7));
    cr_expect(eq(sz, file_read_received_map(file, 31, map, 64), 1));
    cr_expect(eq(sz, file_read_received_map(file, 32, map, 64), 0));
    cr_expect(eq(sz, file_read_received_map(file, UINT64_MAX, map, 64), 0));
    discard_file(file);
}

Test(file, seek)
{
    struct file *file = make(WIRE_RAM, 2, 10 * PAGE + 5), *dev = make(DEVICE, 2, 0);

    apply_fill(file, 3 * PAGE + 1, 'x', 10);
    cr_expect(eq(i64, file_seek(file, 0, true), (int64_t)(3 * PAGE)));
    cr_expect(eq(i64, file_seek(file, 0, false), 0));
    cr_expect(eq(i64, file_seek(file, 3 * PAGE + 5, true), (int64_t)(3 * PAGE + 5)));
    cr_expect(eq(i64, file_seek(file, 3 * PAGE + 5, false), (int64_t)(4 * PAGE)));
    cr_expect(eq(i64, file_seek(file, 4 * PAGE, true), -ENXIO));
    cr_expect(eq(i64, file_seek(file, 10 * PAGE + 4, false), (int64_t)(10 * PAGE + 4)));
    cr_expect(eq(i64, file_seek(file, 10 * PAGE + 5, false), -ENXIO), "past the end");
    apply_fill(file, 10 * PAGE, 'x', 5);
    cr_expect(eq(i64, file_seek(file, 4 * PAGE, true), (int64_t)(10 * PAGE)));
    cr_expect(eq(i64, file_seek(file, 10 * PAGE + 1, false), (int64_t)(10 * PAGE + 5)), "the end is a hole");
    apply_fill(dev, 0, 'x', 10);
    cr_expect(eq(i64, file_seek(dev, 4, true), 4));
    cr_expect(eq(i64, file_seek(dev, 4, false), 10));
    file_put(dev);
    discard_file(file);
}

/* A stream that has ended shows what is held of it; before, what can be read without waiting, and the rest as data. */
Test(file, seek_in_a_device)
{
    struct file *dev = make(DEVICE, 2, 0);
    int64_t size = (int64_t)(5 * STRIPE);
    struct error err;

    cr_expect(eq(i64, file_seek(dev, 0, true), -ENXIO), "it is empty");
    apply_fill(dev, 0, 'x', STRIPE);
    apply_fill(dev, 3 * STRIPE, 'x', STRIPE);
    for (unsigned c = 0; c < 2; c++)
        CHECK_OK(file_receive_size(dev, c, 5 * STRIPE, UNLIMITED, &err));
    cr_expect(eq(i64, file_seek(dev, 0, true), 0));
    cr_expect(eq(i64, file_seek(dev, 0, false), size), "what may still come is no hole");
    cr_expect(eq(i64, file_seek(dev, 2 * STRIPE, true), (int64_t)(2 * STRIPE)));
    CHECK_OK(file_receive_discard(dev, file_home(dev, 0), STRIPE / 4, STRIPE / 4, &err));
    cr_expect(eq(i64, file_seek(dev, 0, false), (int64_t)(STRIPE / 4)), "a hole before the frontier");
    cr_expect(eq(i64, file_seek(dev, STRIPE / 4, true), (int64_t)(STRIPE / 2)));
    for (unsigned c = 0; c < 2; c++)
        CHECK_OK(file_receive_discard(dev, c, 0, STRIPE, &err));
    cr_expect(eq(i64, file_seek(dev, 0, true), (int64_t)STRIPE), "the frontier");

    file_receive_end(dev, NULL);
    cr_expect(eq(i64, file_seek(dev, 0, true), (int64_t)(3 * STRIPE)));
    cr_expect(eq(i64, file_seek(dev, 0, false), 0));
    cr_expect(eq(i64, file_seek(dev, 3 * STRIPE, false), (int64_t)(4 * STRIPE)));
    cr_expect(eq(i64, file_seek(dev, 4 * STRIPE, false), (int64_t)(4 * STRIPE)), "past the end of the memory, too");
    cr_expect(eq(i64, file_seek(dev, 4 * STRIPE, true), -ENXIO));
    cr_expect(eq(i64, file_seek(dev, 5 * STRIPE, false), -ENXIO));

    /* The memory is longer than the file. */
    for (unsigned c = 0; c < 2; c++)
        CHECK_OK(file_receive_truncate(dev, c, 3 * STRIPE + 10, 1, UNLIMITED, &err));
    file_receive_end(dev, NULL);
    cr_expect(eq(i64, file_seek(dev, 3 * STRIPE, false), (int64_t)(3 * STRIPE + 10)));
    cr_expect(eq(i64, file_seek(dev, 0, true), (int64_t)(3 * STRIPE)));
    discard_file(dev);
}

/* What a truncation cut off has not arrived, and nothing is held of it, when the file grows again. */
Test(file, truncation_forgets)
{
    struct file *file = make(WIRE_RAM, 1, 0);
    struct error err;

    apply_fill(file, 0, 'x', 3 * PAGE + 100);
    CHECK_OK(file_receive_truncate(file, 0, 0, 1, UNLIMITED, &err));
    CHECK_OK(file_receive_truncate(file, 0, 8 * PAGE, 2, UNLIMITED, &err));
    for (uint64_t page = 0; page < 8; page++)
        cr_expect(not(arrived(file, page)), "page %d", (int)page);
    cr_expect(eq(i64, file_seek(file, 0, true), -ENXIO));
    discard_file(file);
}

/*
 * The frontier of a stream
 */

Test(file, frontier_follows_the_data)
{
    struct file *file = make(DEVICE, 2, 0);
    char buf[64];

    cr_expect(eq(long, read_now(file, 0, buf, 64), -EAGAIN));
    cr_expect(not(file_readable(file, 0)));
    apply_fill(file, 0, 'a', 10);
    cr_expect(eq(long, read_now(file, 0, buf, 64), 10), "as much as there is");
    cr_expect(file_readable(file, 9));
    cr_expect(not(file_readable(file, 10)));
    cr_expect(eq(long, read_now(file, 10, buf, 64), -EAGAIN));
    apply_fill(file, 20, 'c', 10);
    cr_expect(eq(long, read_now(file, 10, buf, 64), -EAGAIN), "there is a gap");
    apply_fill(file, 5, 'b', 15);
    cr_expect(eq(long, read_now(file, 0, buf, 64), 20));
    cr_expect(zero(int, memcmp(buf, "aaaaabbbbbbbbbbbbbbb", 20)));
    discard_file(file);
}

/* Stripes are full in any order; the frontier moves over those that follow one another. */
Test(file, frontier_across_stripes)
{
    static const unsigned orders[][4] = {{0, 1, 2, 3}, {3, 2, 1, 0}, {1, 3, 0, 2}, {2, 0, 3, 1}};

    for (size_t o = 0; o < ARRAY_LENGTH(orders); o++) {
        struct file *file = make(DEVICE, 3, 0);
        bool have[5] = {false};
        for (int i = 0; i < 4; i++) {
            uint64_t frontier = 0;
            apply_fill(file, orders[o][i] * STRIPE, 'a', STRIPE);
            have[orders[o][i]] = true;
            while (have[frontier / STRIPE])
                frontier += STRIPE;
            cr_expect(eq(u64, file->stream.frontier, frontier), "order %zu, step %d", o, i);
            cr_expect(eq(int, file_readable(file, frontier), false));
            cr_expect(eq(int, frontier == 0 || file_readable(file, frontier - 1), true));
        }
        discard_file(file);
    }
}

Test(file, stream_ends_and_goes_on)
{
    struct file *file = make(DEVICE, 2, 0);
    char buf[32];

    apply_fill(file, 0, 'a', 5);
    apply_fill(file, 10, 'b', 5);
    file_receive_end(file, NULL);
    cr_expect(eq(long, read_now(file, 0, buf, 32), 15), "what was written out of order is seen at the end");
    cr_expect(zero(int, memcmp(buf, "aaaaa\0\0\0\0\0bbbbb", 15)));
    cr_expect(eq(long, read_now(file, 15, buf, 32), 0), "the end of the file");
    cr_expect(file_readable(file, 15));
    file_receive_resume(file);
    cr_expect(eq(long, read_now(file, 15, buf, 32), -EAGAIN), "its writers are back");
    cr_expect(eq(long, read_now(file, 0, buf, 32), 5));
    file_receive_over(file, false);
    cr_expect(eq(long, read_now(file, 15, buf, 32), 0), "completed");
    discard_file(file);
}

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

Test(file, stream_that_never_ends)
{
    struct file *file = make(DEVICE, 2, 0), *ended = make(2, 2, 0);
    char buf[32];

    apply_fill(file, 0, 'a', 5);
    file_receive_over(file, true);
    cr_expect(eq(long, read_now(file, 0, buf, 32), 5), "what has arrived can be read");
    cr_expect(eq(long, read_now(file, 5, buf, 32), -ECONNRESET));
    cr_expect(file_readable(file, 5), "an error is something to read");
    apply_fill(ended, 0, 'a', 5);
    file_receive_end(ended, NULL);
    file_receive_over(ended, true);
    cr_expect(eq(long, read_now(ended, 5, buf, 32), 0), "this one had ended before");
    file_put(ended);
    discard_file(file);
}

/* A follower, and how often it was told. */
struct listener {
    struct follower follower;
    unsigned told;
};

static void note(struct follower *follower)
{
    ((struct listener *)follower)->told++;
}

static bool follows(struct file *file, struct listener *listener, uint64_t offset)
{
    *listener = (struct listener){.follower = {.offset = offset, .wake = note}};
    return file_follow(file, &listener->follower);
}

Test(file, followers_are_told_once)
{
    struct file *file = make(DEVICE, 2, 0);
    struct listener near, far, gone, late;

    apply_fill(file, 0, 'a', 5);
    cr_expect(not(follows(file, &late, 4)), "there is something to read");
    cr_expect(follows(file, &near, 5));
    cr_expect(follows(file, &far, 100));
    cr_expect(follows(file, &gone, 5));
    cr_expect(file_unfollow(file, &gone.follower), "it was not told");
    apply_fill(file, 10, 'b', 5);
    cr_expect(eq(int, (int)near.told, 0), "the frontier has not moved");
    apply_fill(file, 5, 'b', 1);
    cr_expect(eq(int, (int)near.told, 1));
    cr_expect(eq(int, (int)far.told, 0), "not as far as this");
    cr_expect(not(file_unfollow(file, &near.follower)), "it was told");
    apply_fill(file, 6, 'b', 1);
    cr_expect(eq(int, (int)near.told, 1), "once");
    cr_expect(follows(file, &near, 50));
    file_receive_end(file, NULL);
    cr_expect(eq(int, (int)near.told, 1), "the end is something to read");
    cr_expect(eq(int, (int)far.told, 1));
    cr_expect(eq(int, (int)gone.told, 0));
    file_receive_resume(file);
    cr_expect(follows(file, &late, 100));
    file_receive_over(file, true);
    cr_expect(eq(int, (int)late.told, 1), "and so is a failure");
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

/* After a truncation that one channel has seen, the other one's data does not count until it has seen it too. */
Test(file, frontier_and_truncation)
{
    struct file *file = make(DEVICE, 2, 0);
    struct error err;
    unsigned ahead = file_home(file, 0), behind = file_home(file, STRIPE);

    apply_fill(file, 0, 'a', STRIPE);
    apply_fill(file, STRIPE, 'a', STRIPE);
    CHECK_OK(file_receive_truncate(file, ahead, 0, 1, UNLIMITED, &err));
    cr_expect(eq(u64, file->stream.frontier, 0));
    apply_fill(file, 0, 'b', STRIPE);
    cr_expect(eq(u64, file->stream.frontier, STRIPE), "not over the old data of the channel that is behind");
    CHECK_OK(file_receive_truncate(file, behind, 0, 1, UNLIMITED, &err));
    cr_expect(eq(u64, file->stream.frontier, STRIPE));
    apply_fill(file, STRIPE, 'b', 10);
    cr_expect(eq(u64, file->stream.frontier, STRIPE + 10));
    discard_file(file);
}

/*
 * Readers that wait
 */

struct reader {
    struct worker worker;
    struct file *file;
    uint64_t offset;
    struct interrupt interrupt;
    char buf[16];
    ssize_t ret;
};

static void read_waiting(void *arg)
{
    struct reader *r = arg;

    r->ret = file_read(r->file, r->offset, r->buf, sizeof(r->buf), false, &r->interrupt);
}

static void reader_start(struct reader *r, struct file *file, uint64_t offset)
{
    *r = (struct reader){.file = file, .offset = offset};
    worker_start(&r->worker, read_waiting, r);
    worker_await_sleep(&r->worker);
    cr_assert(not(atomic_load(&r->worker.done)));
}

Test(file, waiting_reader)
{
    struct file *file = make(DEVICE, 2, 0);
    struct reader first, second;

    reader_start(&first, file, 0);
    reader_start(&second, file, 3);
    apply_fill(file, 0, 'a', 3);
    worker_join(&first.worker);
    cr_expect(eq(long, first.ret, 3));
    worker_await_sleep(&second.worker);
    cr_expect(not(atomic_load(&second.worker.done)));
    apply_fill(file, 3, 'b', 2);
    worker_join(&second.worker);
    cr_expect(eq(long, second.ret, 2));

    reader_start(&first, file, 5);
    reader_start(&second, file, 5);
    atomic_store(&first.interrupt.hit, true);
    file_kick(file);
    worker_join(&first.worker);
    cr_expect(eq(long, first.ret, -EINTR));
    worker_await_sleep(&second.worker);
    cr_expect(not(atomic_load(&second.worker.done)));
    file_receive_end(file, NULL);
    worker_join(&second.worker);
    cr_expect(eq(long, second.ret, 0));

    file_receive_resume(file);
    reader_start(&first, file, 5);
    file_receive_over(file, true);
    worker_join(&first.worker);
    cr_expect(eq(long, first.ret, -ECONNRESET));
    discard_file(file);
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

/* A reader that follows a stream of several channels sees every byte once, in order, and right. */
#define STREAM_CHANNELS 3
#define STREAM_LENGTH   (8 * STRIPE + 12345)

static char byte_at(uint64_t offset)
{
    return (char)(offset / 977 + offset);
}

static struct file *stream;

static void receive_stream(void *arg)
{
    unsigned channel = (unsigned)(uintptr_t)arg;
    char buf[5000];

    for (uint64_t at = 0; at < STREAM_LENGTH;) {
        uint64_t room = STRIPE - at % STRIPE, len = sizeof(buf) < room ? sizeof(buf) : room;
        if (len > STREAM_LENGTH - at)
            len = STREAM_LENGTH - at;
        if (file_home(stream, at) == channel) {
            for (uint64_t i = 0; i < len; i++)
                buf[i] = byte_at(at + i);
            file_receive_size(stream, channel, at + len, UNLIMITED, NULL);
            file_receive_storage(stream, NULL);
            image_write(&stream->image, at, buf, len, NULL);
            file_received(stream, channel, at, len);
        }
        at += len;
    }
}

Test(file, follow_a_stream)
{
    struct worker workers[STREAM_CHANNELS];
    uint64_t at = 0;

    stream = make(DEVICE, STREAM_CHANNELS, 0);
    for (uintptr_t c = 0; c < STREAM_CHANNELS; c++)
        worker_start(&workers[c], receive_stream, (void *)c);
    while (at < STREAM_LENGTH) {
        char buf[70000];
        ssize_t n = file_read(stream, at, buf, sizeof(buf), false, NULL);
        cr_assert(n > 0);
        for (ssize_t i = 0; i < n; i++)
            cr_assert(buf[i] == byte_at(at + (uint64_t)i), "at %llu", (unsigned long long)at + i);
        at += (uint64_t)n;
    }
    for (int c = 0; c < STREAM_CHANNELS; c++)
        worker_join(&workers[c]);
    cr_expect(eq(u64, at, STREAM_LENGTH));
    discard_file(stream);
}

/* A device takes a descriptor when its first byte comes, and never address space; until then it reads as holes. */
Test(file, device_without_a_byte)
{
    struct file *file = make(DEVICE, 2, 0);
    struct error err;
    char got[10] = "xxxxxxxxx";

    CHECK_OK(file_receive_truncate(file, 0, 1000, 1, UNLIMITED, &err));
    CHECK_OK(file_receive_truncate(file, 1, 1000, 1, UNLIMITED, &err));
    CHECK_OK(file_receive_discard(file, file_home(file, 0), 0, 1000, &err));
    cr_expect(not(file->image.has_memory));
    file_receive_end(file, NULL);
    cr_expect(eq(long, file_read(file, 995, got, sizeof(got), true, NULL), 5));
    cr_expect(zero(int, memcmp(got, "\0\0\0\0\0xxxx", sizeof(got))));
    cr_expect(eq(long, file_seek(file, 0, true), -ENXIO));
    cr_expect(eq(long, file_seek(file, 0, false), 0));
    cr_expect(eq(long, file_receive_blocks(file), 0));
    apply_data(file, 10, "data", 4);
    cr_expect(file->image.has_memory);
    cr_expect(zero(ptr, file->image.memory.window));
    cr_expect(eq(u64, windows.used, 0));
    discard_file(file);
}

/* A migration has failed: all is given back at once, but for what somebody looks at, which goes with the last of them. */
Test(file, drop_while_it_is_used)
{
    struct file *ram = make(WIRE_RAM, 2, STRIPE);
    char got[4];

    apply_data(ram, 0, "data", 4);
    int fd = ram->image.memory.fd;
    cr_assert(image_use(&ram->image));
    cr_assert(image_use(&ram->image));
    file_receive_drop(ram);
    cr_expect(not(image_use(&ram->image)), "nobody starts to look at it");
    cr_expect(eq(long, file_read(ram, 0, got, sizeof(got), true, NULL), -ECONNRESET));
    cr_expect(eq(u64, budget.used, 0));
    image_unuse(&ram->image);
    cr_expect(ge(int, fcntl(fd, F_GETFD), 0), "one still looks");
    image_unuse(&ram->image);
    cr_expect(eq(int, fcntl(fd, F_GETFD), -1));
    cr_expect(zero(ptr, ram->image.received.words));
    cr_expect(eq(u64, windows.used, 0));
    cr_expect(eq(u64, file_read_received_map(ram, 0, got, sizeof(got)), 0));
    cr_expect(eq(long, file_seek(ram, 0, true), -ENXIO));
    file_settle(ram);
    cr_expect(eq(u64, file_totals(ram).bytes, 4), "what it did is still told");
    cr_expect(eq(u64, file_received_size(ram), STRIPE));
    cr_expect(zero(ptr, ram->per_channel));
    discard_file(ram);
}

/* Where the budget of address space is used up, there is no window, and all else works. */
Test(file, no_room_for_a_window)
{
    struct file *files[6];
    struct error err;

#ifdef __SANITIZE_THREAD__
    cr_skip_test("ThreadSanitizer leaves no address space for four windows");
#endif
    for (size_t i = 0; i < 6; i++) {
        files[i] = file_new(WIRE_RAM, "ram");
        CHECK_OK(file_set_channels(files[i], 1, 0));
        CHECK_OK(file_receive_begin(files[i], 0, UNLIMITED, NULL, "ram", &budgets, &err));
        cr_expect(eq(int, files[i]->image.memory.window != NULL, i < 4), "%zu", i);
        apply_data(files[i], STRIPE, "data", 4);
        cr_expect(eq(int, image_window(&files[i]->image, STRIPE, 4) != NULL, i < 4));
    }
    struct file *small = make(WIRE_RAM, 1, STRIPE);
    cr_expect(zero(ptr, small->image.memory.window));
    file_put(files[0]);
    file_put(small);
    small = make(WIRE_RAM, 1, STRIPE);
    cr_expect(eq(u64, small->image.memory.window_size, STRIPE), "as large as it was declared");
    file_settle(small);
    cr_expect(zero(ptr, small->image.memory.window));
    file_put(small);
    for (size_t i = 1; i < 5; i++)
        file_put(files[i]);
    discard_file(files[5]);
}

static struct file *racing;
static pthread_barrier_t both;

static void *unuse_racing(void *arg)
{
    pthread_barrier_wait(&both);
    image_unuse(&racing->image);
    return arg;
}

/* Whoever looks at it last gives all back, while the migration's thread keeps the sums. */
Test(file, settled_while_the_last_user_leaves)
{
    pthread_barrier_init(&both, NULL, 2);
    for (int i = 0; i < 2000; i++) {
        pthread_t thread;
        racing = make(WIRE_RAM, 2, STRIPE);
        cr_assert(image_use(&racing->image));
        file_receive_drop(racing);
        pthread_create(&thread, NULL, unuse_racing, NULL);
        pthread_barrier_wait(&both);
        file_settle(racing);
        pthread_join(thread, NULL);
        discard_file(racing);
        cr_assert(eq(u64, windows.used, 0), "round %d", i);
        cr_assert(eq(u64, budget.used, 0), "round %d", i);
    }
}
