/* SPDX-License-Identifier: Apache-2.0 */
/* A device's stream: where its frontier is, who is woken, and how it ends. */
#include "stream.h"
#include "blocked.h"
#include "check.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define STRIPE ((uint64_t)WIRE_STRIPE_SIZE)
#define FIRST  2u /* of the channels */

static struct budget budget, windows;
static struct image image;
static struct stream stream;

static void make(unsigned channels)
{
    const struct image_form form = {
        .limit = 1ull << 40,
        .budgets = {&budget, &windows},
        .homes = {.turn = 1, .first = FIRST, .count = channels},
    };
    struct error err;

    budget.limit = 1ull << 40;
    image_init(&image);
    stream_init(&stream, &image);
    cr_assert(zero(int, stream_begin(&stream, &form.homes)));
    CHECK_OK(image_begin(&image, &form, &err));
}

static void end(void)
{
    stream_fini(&stream);
    image_fini(&image);
    cr_expect(zero(u64, budget.used));
}

static unsigned home_of(uint64_t offset)
{
    return homes_of(&stream.homes, offset);
}

/* One packet's worth of data, as a receiver applies it: within one stripe. */
static void fill(uint64_t offset, char c, size_t len)
{
    char *buf = malloc(len);
    struct error err;

    memset(buf, c, len);
    CHECK_OK(image_grow(&image, home_of(offset), offset + len, &err));
    CHECK_OK(image_reserve(&image, "stream", &err));
    CHECK_OK(image_write(&image, offset, buf, len, &err));
    image_arrived(&image, offset, len);
    stream_arrived(&stream, offset, len);
    free(buf);
}

static void cut(unsigned channel, uint64_t size, uint64_t number)
{
    struct error err;

    CHECK_OK(image_grow(&image, channel, size, &err));
    stream_truncate(&stream, channel, size, number);
    CHECK_OK(image_truncate(&image, channel, size, &err));
}

static void stream_has_ended(void)
{
    stream_end(&stream, NULL, NULL);
}

static ssize_t read_now(uint64_t offset, void *buf, size_t len)
{
    return stream_read(&stream, offset, buf, len, true, NULL);
}

/*
 * The frontier
 */

Test(stream, frontier_follows_the_data)
{
    char buf[64];

    make(2);
    cr_expect(eq(long, read_now(0, buf, 64), -EAGAIN));
    cr_expect(not(stream_readable(&stream, 0)));
    fill(0, 'a', 10);
    cr_expect(eq(long, read_now(0, buf, 64), 10), "as much as there is");
    cr_expect(eq(long, read_now(3, buf, 7), 7));
    cr_expect(eq(long, read_now(3, buf, 6), 6));
    cr_expect(stream_readable(&stream, 9));
    cr_expect(not(stream_readable(&stream, 10)));
    cr_expect(eq(long, read_now(10, buf, 64), -EAGAIN));
    fill(20, 'c', 10);
    cr_expect(eq(long, read_now(10, buf, 64), -EAGAIN), "there is a gap");
    fill(11, 'c', 5);
    cr_expect(eq(u64, stream.frontier, 10), "of one byte");
    fill(5, 'b', 15);
    cr_expect(eq(long, read_now(0, buf, 64), 20));
    cr_expect(zero(int, memcmp(buf, "aaaaabbbbbbbbbbbbbbb", 20)));
    fill(0, 'a', 20);
    fill(3, 'a', 1);
    cr_expect(eq(u64, stream.frontier, 20), "what arrives again moves nothing");
    end();
}

/* Stripes are full in any order; the frontier moves over those that follow one another. */
Test(stream, frontier_across_stripes)
{
    static const unsigned orders[][4] = {{0, 1, 2, 3}, {3, 2, 1, 0}, {1, 3, 0, 2}, {2, 0, 3, 1}};

    for (size_t o = 0; o < ARRAY_LENGTH(orders); o++) {
        bool have[5] = {false};
        make(3);
        for (int i = 0; i < 4; i++) {
            uint64_t frontier = 0;
            fill(orders[o][i] * STRIPE, 'a', STRIPE);
            have[orders[o][i]] = true;
            while (have[frontier / STRIPE])
                frontier += STRIPE;
            cr_expect(eq(u64, stream.frontier, frontier), "order %zu, step %d", o, i);
            cr_expect(not(stream_readable(&stream, frontier)));
            cr_expect(frontier == 0 || stream_readable(&stream, frontier - 1));
        }
        end();
    }
}

/* The last byte of a stripe is missing; then it comes. */
Test(stream, a_stripe_that_is_almost_full)
{
    make(2);
    fill(STRIPE, 'b', 7);
    fill(0, 'a', STRIPE - 1);
    cr_expect(eq(u64, stream.frontier, STRIPE - 1));
    fill(STRIPE - 1, 'a', 1);
    cr_expect(eq(u64, stream.frontier, STRIPE + 7));
    end();
}

/* Far ahead of the frontier: what is between has not arrived. */
Test(stream, far_ahead)
{
    make(2);
    fill(0, 'a', 10);
    fill(9 * STRIPE, 'a', 10);
    cr_expect(eq(u64, stream.frontier, 10));
    for (uint64_t s = 1; s < 9; s++)
        fill(s * STRIPE, 'a', STRIPE);
    cr_expect(eq(u64, stream.frontier, 10));
    fill(10, 'a', STRIPE - 10);
    cr_expect(eq(u64, stream.frontier, 9 * STRIPE + 10));
    end();
}

/* After a truncation that one channel has seen, the other one's data does not count until it has seen it, too. */
Test(stream, frontier_and_truncation)
{
    make(2);
    unsigned ahead = home_of(0), behind = home_of(STRIPE);

    fill(0, 'a', STRIPE);
    fill(STRIPE, 'a', STRIPE);
    cut(ahead, 0, 1);
    cr_expect(eq(u64, stream.frontier, 0));
    fill(0, 'b', STRIPE);
    cr_expect(eq(u64, stream.frontier, STRIPE), "not over the old data of the channel that is behind");
    cut(behind, 0, 1);
    cr_expect(eq(u64, stream.frontier, STRIPE));
    fill(STRIPE, 'b', 10);
    cr_expect(eq(u64, stream.frontier, STRIPE + 10));
    end();
}

/* What is before a truncation stays, up to the byte, and counts again when its channel has seen it. */
Test(stream, truncation_in_a_stripe)
{
    make(2);
    unsigned ahead = home_of(0), behind = home_of(STRIPE);

    for (uint64_t s = 0; s < 4; s++)
        fill(s * STRIPE, 'a', STRIPE);
    cut(ahead, STRIPE + 100, 1);
    cr_expect(eq(u64, stream.frontier, STRIPE + 100), "the frontier does not wait for the other channel");
    cr_expect(eq(uint, stream.prefix[0], STRIPE));
    cr_expect(zero(uint, stream.prefix[2]));
    cr_expect(eq(uint, stream.prefix[1], STRIPE), "of the other channel");
    cut(behind, STRIPE + 100, 1);
    cr_expect(eq(uint, stream.prefix[1], 100));
    cr_expect(zero(uint, stream.prefix[3]));
    cr_expect(eq(u64, stream.frontier, STRIPE + 100));
    fill(STRIPE + 100, 'b', STRIPE - 100);
    cr_expect(eq(u64, stream.frontier, 2 * STRIPE), "and not over what was cut off");
    end();
}

/* To more than there is: nothing is cut, nothing has arrived of it, and the channel that is behind is waited for. */
Test(stream, truncation_that_grows)
{
    make(2);
    unsigned behind = home_of(0), ahead = home_of(STRIPE);

    fill(0, 'a', 10);
    cut(ahead, 3 * STRIPE, 1);
    cr_expect(eq(u64, stream.frontier, 10));
    fill(10, 'a', 10);
    cr_expect(eq(u64, stream.frontier, 10), "this was before it");
    cut(behind, 3 * STRIPE, 1);
    cr_expect(eq(u64, stream.frontier, 20), "and now counts");
    cut(ahead, 5, 3);
    cr_expect(eq(u64, stream.frontier, 5));
    cut(behind, 8, 2);
    cr_expect(eq(u64, stream.truncation, 3), "the newest one counts");
    cr_expect(eq(u64, stream.frontier, 5));
    cut(behind, 5, 3);
    fill(5, 'b', 1);
    cr_expect(eq(u64, stream.frontier, 6));
    end();
}

/*
 * Ends
 */

Test(stream, ends_and_goes_on)
{
    char buf[32];

    make(2);
    fill(0, 'a', 5);
    fill(10, 'b', 5);
    stream_has_ended();
    cr_expect(eq(long, read_now(0, buf, 32), 15), "what was written out of order is seen at the end");
    cr_expect(zero(int, memcmp(buf, "aaaaa\0\0\0\0\0bbbbb", 15)));
    cr_expect(eq(long, read_now(15, buf, 32), 0), "the end of the file");
    cr_expect(stream_readable(&stream, 15));
    stream_resume(&stream);
    cr_expect(eq(long, read_now(15, buf, 32), -EAGAIN), "its writers are back");
    cr_expect(eq(long, read_now(0, buf, 32), 5));
    stream_has_ended();
    fill(5, 'c', 1);
    cr_expect(eq(long, read_now(15, buf, 32), -EAGAIN), "more has come");
    stream_has_ended();
    cut(home_of(STRIPE), 15, 1);
    cr_expect(eq(long, read_now(15, buf, 32), -EAGAIN), "and a truncation is more, too");
    stream_over(&stream, false);
    cr_expect(eq(long, read_now(15, buf, 32), 0), "completed");
    end();
}

static bool answer(const void *arg)
{
    return *(const bool *)arg;
}

/* The news of an end can be late. */
Test(stream, an_end_that_is_out_of_date)
{
    bool overtaken = true;

    make(1);
    fill(0, 'a', 5);
    stream_end(&stream, answer, &overtaken);
    cr_expect(not(stream_readable(&stream, 5)));
    overtaken = false;
    stream_end(&stream, answer, &overtaken);
    cr_expect(stream_readable(&stream, 5));
    end();
}

Test(stream, never_ends)
{
    char buf[32];

    make(2);
    fill(0, 'a', 5);
    stream_orphan(&stream);
    cr_expect(eq(long, read_now(0, buf, 32), 5), "what has arrived can be read");
    cr_expect(eq(long, read_now(5, buf, 32), -ESTALE));
    cr_expect(stream_readable(&stream, 5), "an error is something to read");
    stream_over(&stream, true);
    cr_expect(eq(long, read_now(4, buf, 32), 1));
    cr_expect(eq(long, read_now(5, buf, 32), -ECONNRESET));
    stream_has_ended();
    cr_expect(eq(long, read_now(5, buf, 32), 0), "this one had ended before");
    stream_drop(&stream);
    cr_expect(eq(long, read_now(0, buf, 32), -ECONNRESET));
    end();
    make(2);
    fill(0, 'a', 5);
    stream_drop(&stream);
    cr_expect(stream_readable(&stream, 5));
    cr_expect(eq(long, read_now(0, buf, 32), -ECONNRESET));
    cr_expect(eq(i64, stream_seek(&stream, 0, true), -ENXIO));
    end();
}

/* Nothing moves any more. */
Test(stream, settled)
{
    char buf[32];

    make(2);
    fill(0, 'a', 5);
    stream_over(&stream, false);
    stream_settle(&stream);
    image_settle(&image, 0);
    cr_expect(zero(ptr, stream.prefix));
    cr_expect(eq(long, read_now(0, buf, 32), 5));
    cr_expect(eq(long, read_now(5, buf, 32), 0));
    end();
}

/* A stream that has ended shows what is held of it; before, what can be read without waiting, and the rest as data. */
Test(stream, seek)
{
    int64_t size = (int64_t)(5 * STRIPE);
    struct error err;

    make(2);
    cr_expect(eq(i64, stream_seek(&stream, 0, true), -ENXIO), "it is empty");
    fill(0, 'x', STRIPE);
    fill(3 * STRIPE, 'x', STRIPE);
    for (unsigned c = FIRST; c < FIRST + 2; c++)
        CHECK_OK(image_grow(&image, c, 5 * STRIPE, &err));
    cr_expect(eq(i64, stream_seek(&stream, 0, true), 0));
    cr_expect(eq(i64, stream_seek(&stream, 0, false), size), "what may still come is no hole");
    cr_expect(eq(i64, stream_seek(&stream, STRIPE, true), (int64_t)STRIPE), "from the frontier on");
    cr_expect(eq(i64, stream_seek(&stream, STRIPE, false), size));
    cr_expect(eq(i64, stream_seek(&stream, 2 * STRIPE, true), (int64_t)(2 * STRIPE)));
    CHECK_OK(image_discard(&image, home_of(0), STRIPE / 4, STRIPE / 4, &err));
    cr_expect(eq(i64, stream_seek(&stream, 0, false), (int64_t)(STRIPE / 4)), "a hole before the frontier");
    cr_expect(eq(i64, stream_seek(&stream, STRIPE / 4, true), (int64_t)(STRIPE / 2)));
    for (unsigned c = FIRST; c < FIRST + 2; c++)
        CHECK_OK(image_discard(&image, c, 0, STRIPE, &err));
    cr_expect(eq(i64, stream_seek(&stream, 0, true), (int64_t)STRIPE), "the frontier");
    cr_expect(eq(i64, stream_seek(&stream, 0, false), 0));

    stream_has_ended();
    cr_expect(eq(i64, stream_seek(&stream, 0, true), (int64_t)(3 * STRIPE)));
    cr_expect(eq(i64, stream_seek(&stream, 3 * STRIPE, false), (int64_t)(4 * STRIPE)));
    cr_expect(eq(i64, stream_seek(&stream, 4 * STRIPE, false), (int64_t)(4 * STRIPE)), "past the memory, too");
    cr_expect(eq(i64, stream_seek(&stream, 4 * STRIPE, true), -ENXIO));
    cr_expect(eq(i64, stream_seek(&stream, 5 * STRIPE, false), -ENXIO));

    /* The memory is longer than the stream. */
    for (unsigned c = FIRST; c < FIRST + 2; c++)
        cut(c, 3 * STRIPE + 10, 1);
    stream_has_ended();
    cr_expect(eq(i64, stream_seek(&stream, 3 * STRIPE, false), (int64_t)(3 * STRIPE + 10)));
    cr_expect(eq(i64, stream_seek(&stream, 0, true), (int64_t)(3 * STRIPE)));
    end();
}

/* Nothing is held at all, before the frontier or behind it. */
Test(stream, seek_in_a_hole)
{
    struct error err;

    make(2);
    fill(0, 'x', STRIPE);
    for (unsigned c = FIRST; c < FIRST + 2; c++) {
        CHECK_OK(image_grow(&image, c, 2 * STRIPE, &err));
        CHECK_OK(image_discard(&image, c, 0, STRIPE, &err));
    }
    cr_expect(eq(i64, stream_seek(&stream, 0, true), (int64_t)STRIPE), "what may still come is data");
    stream_has_ended();
    cr_expect(eq(i64, stream_seek(&stream, 0, true), -ENXIO));
    cr_expect(zero(i64, stream_seek(&stream, 0, false)));
    end();
}

/*
 * Followers
 */

struct listener {
    struct follower follower;
    unsigned told;
};

static void note(struct follower *follower)
{
    ((struct listener *)follower)->told++;
}

static bool follows(struct listener *listener, uint64_t offset)
{
    *listener = (struct listener){.follower = {.offset = offset, .wake = note}};
    return stream_follow(&stream, &listener->follower);
}

Test(stream, followers_are_told_once)
{
    struct listener near, far, gone, late;

    make(2);
    fill(0, 'a', 5);
    cr_expect(not(follows(&late, 4)), "there is something to read");
    cr_expect(follows(&near, 5));
    cr_expect(follows(&far, 100));
    cr_expect(follows(&gone, 5));
    cr_expect(stream_unfollow(&stream, &gone.follower), "it was not told");
    fill(10, 'b', 5);
    cr_expect(zero(uint, near.told), "the frontier has not moved");
    fill(5, 'b', 1);
    cr_expect(eq(uint, near.told, 1));
    cr_expect(zero(uint, far.told), "not as far as this");
    cr_expect(not(stream_unfollow(&stream, &near.follower)), "it was told");
    fill(6, 'b', 1);
    cr_expect(eq(uint, near.told, 1), "once");
    cr_expect(follows(&near, 50));
    stream_has_ended();
    cr_expect(eq(uint, near.told, 1), "the end is something to read");
    cr_expect(eq(uint, far.told, 1));
    cr_expect(zero(uint, gone.told));
    end();
}

/* Of several, each is told when it is its turn, whatever the order in which they came. */
Test(stream, followers_by_their_offsets)
{
    static const unsigned orders[][3] = {{10, 20, 30}, {30, 20, 10}, {20, 30, 10}, {20, 10, 30}};
    struct listener listeners[3];

    for (size_t o = 0; o < ARRAY_LENGTH(orders); o++) {
        make(1);
        for (int i = 0; i < 3; i++)
            cr_assert(follows(&listeners[i], orders[o][i]));
        for (uint64_t at = 0; at < 40; at += 5) {
            fill(at, 'a', 5);
            for (int i = 0; i < 3; i++)
                cr_expect(eq(uint, listeners[i].told, at + 5 > orders[o][i]), "order %zu, %d, at %d", o, i, (int)at);
        }
        end();
    }
}

static void over_well(void)
{
    stream_over(&stream, false);
}

static void over_broken(void)
{
    stream_over(&stream, true);
}

static void orphan(void)
{
    stream_orphan(&stream);
}

static void drop(void)
{
    stream_drop(&stream);
}

/*
 * Readers that wait
 */

struct reader {
    struct worker worker;
    uint64_t offset;
    struct interrupt interrupt;
    char buf[16];
    ssize_t ret;
};

static void read_waiting(void *arg)
{
    struct reader *r = arg;

    r->ret = stream_read(&stream, r->offset, r->buf, sizeof(r->buf), false, &r->interrupt);
}

static void reader_start(struct reader *r, uint64_t offset)
{
    *r = (struct reader){.offset = offset};
    worker_start(&r->worker, read_waiting, r);
    worker_await_sleep(&r->worker);
    cr_assert(not(atomic_load(&r->worker.done)));
}

/* Each way to end wakes a reader, and tells a follower. */
Test(stream, every_end_is_told)
{
    static const struct {
        void (*happen)(void);
        ssize_t want;
    } ends[] = {
        {stream_has_ended, 0}, {over_well, 0}, {over_broken, -ECONNRESET}, {orphan, -ESTALE}, {drop, -ECONNRESET},
    };

    for (size_t i = 0; i < ARRAY_LENGTH(ends); i++) {
        struct listener listener;
        struct reader reader;
        make(2);
        fill(0, 'a', 5);
        cr_expect(follows(&listener, 100));
        reader_start(&reader, 5);
        ends[i].happen();
        worker_join(&reader.worker);
        cr_expect(eq(long, reader.ret, ends[i].want), "end %zu", i);
        cr_expect(eq(uint, listener.told, 1), "end %zu", i);
        cr_expect(not(follows(&listener, 100)), "end %zu", i);
        end();
    }
}

Test(stream, waiting_reader)
{
    struct reader first, second;

    make(2);
    reader_start(&first, 0);
    reader_start(&second, 3);
    fill(0, 'a', 3);
    worker_join(&first.worker);
    cr_expect(eq(long, first.ret, 3));
    worker_await_sleep(&second.worker);
    cr_expect(not(atomic_load(&second.worker.done)));
    fill(3, 'b', 2);
    worker_join(&second.worker);
    cr_expect(eq(long, second.ret, 2));
    cr_expect(zero(uint, stream.readers));

    reader_start(&first, 5);
    reader_start(&second, 5);
    atomic_store(&first.interrupt.hit, true);
    stream_kick(&stream);
    worker_join(&first.worker);
    cr_expect(eq(long, first.ret, -EINTR));
    worker_await_sleep(&second.worker);
    cr_expect(not(atomic_load(&second.worker.done)));
    stream_has_ended();
    worker_join(&second.worker);
    cr_expect(eq(long, second.ret, 0));
    end();
}

/* A truncation can let the frontier move, too: over what had arrived on a channel that was behind. */
Test(stream, woken_by_a_truncation)
{
    struct reader reader;

    make(2);
    cut(home_of(STRIPE), 3 * STRIPE, 1);
    fill(0, 'a', 10);
    reader_start(&reader, 0);
    cut(home_of(0), 3 * STRIPE, 1);
    worker_join(&reader.worker);
    cr_expect(eq(long, reader.ret, 10));
    end();
}

/* A reader that follows a stream of several channels sees every byte once, in order, and right. */
#define STREAM_CHANNELS 3
#define STREAM_LENGTH   (8 * STRIPE + 12345)

static char byte_at(uint64_t offset)
{
    return (char)(offset / 977 + offset);
}

static void receive_stream(void *arg)
{
    unsigned channel = FIRST + (unsigned)(uintptr_t)arg;
    char buf[5000];

    for (uint64_t at = 0; at < STREAM_LENGTH;) {
        uint64_t room = STRIPE - at % STRIPE, len = sizeof(buf) < room ? sizeof(buf) : room;
        if (len > STREAM_LENGTH - at)
            len = STREAM_LENGTH - at;
        if (home_of(at) == channel) {
            for (uint64_t i = 0; i < len; i++)
                buf[i] = byte_at(at + i);
            image_grow(&image, channel, at + len, NULL);
            image_reserve(&image, "stream", NULL);
            image_write(&image, at, buf, len, NULL);
            stream_arrived(&stream, at, len);
        }
        at += len;
    }
}

Test(stream, followed_to_its_end)
{
    struct worker workers[STREAM_CHANNELS];
    uint64_t at = 0;

    make(STREAM_CHANNELS);
    for (uintptr_t c = 0; c < STREAM_CHANNELS; c++)
        worker_start(&workers[c], receive_stream, (void *)c);
    while (at < STREAM_LENGTH) {
        char buf[70000];
        ssize_t n = stream_read(&stream, at, buf, sizeof(buf), false, NULL);
        cr_assert(n > 0);
        for (ssize_t i = 0; i < n; i++)
            cr_assert(buf[i] == byte_at(at + (uint64_t)i), "at %llu", (unsigned long long)at + i);
        at += (uint64_t)n;
    }
    for (int c = 0; c < STREAM_CHANNELS; c++)
        worker_join(&workers[c]);
    cr_expect(eq(u64, at, STREAM_LENGTH));
    end();
}
