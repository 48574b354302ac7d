/* SPDX-License-Identifier: Apache-2.0 */
/* How fast may be sent. Only that it takes long enough is looked at: how long too long is, a busy machine
 * says. */
#include "pace.h"
#include "blocked.h"
#include "check.h"
#include "clock.h"

static struct pace pace;

static void end(void)
{
    pace_fini(&pace);
}

TestSuite(pace, .fini = end);

/* Milliseconds for so many takes of so many bytes. */
static double time_of(unsigned takes, uint64_t bytes)
{
    int64_t begun = clock_ns();

    for (unsigned i = 0; i < takes; i++)
        pace_take(&pace, bytes);
    return (double)(clock_ns() - begun) / 1e6;
}

Test(pace, without_a_rate_nobody_waits)
{
    pace_init(&pace, 0);
    cr_expect(not(pace_is_on(&pace)));
    time_of(1000, 1ull << 40);
    cr_expect(zero(dbl, pace.tokens));
}

/* Of 10 ms, if that is worth a send. */
Test(pace, pieces)
{
    pace_init(&pace, 0);
    cr_expect(eq(u64, pace_piece(&pace), UINT64_MAX));
    pace_set(&pace, 1 << 20);
    cr_expect(eq(u64, pace_piece(&pace), 65536));
    pace_set(&pace, 50000000);
    cr_expect(eq(u64, pace_piece(&pace), 500000));
}

Test(pace, holds_the_rate)
{
    pace_init(&pace, 10000000);
    cr_expect(pace_is_on(&pace));
    /* Of 3 MB the burst of 10 ms is free. */
    double ms = time_of(30, 100000);
    cr_expect(ge(dbl, ms, 289.0), "%f ms", ms);
    /* And again: what was not used has not added up. */
    ms = time_of(10, 100000);
    cr_expect(ge(dbl, ms, 89.0), "%f ms", ms);
}

Test(pace, a_pause_is_not_made_up_for)
{
    pace_init(&pace, 100000000);
    time_of(1, 1000000);
    int64_t until = clock_ns() + 100000000;
    while (clock_ns() < until)
        ;
    double ms = time_of(5, 1000000);
    cr_expect(ge(dbl, ms, 39.0), "%f ms", ms);
}

struct taker {
    struct worker worker;
    uint64_t bytes;
};

static void take_work(void *arg)
{
    pace_take(&pace, ((struct taker *)arg)->bytes);
}

static void begin_to_wait(struct taker *taker)
{
    pace_init(&pace, 1000);
    taker->bytes = 1000000000; /* eleven days */
    worker_start(&taker->worker, take_work, taker);
    worker_await_sleep(&taker->worker);
}

Test(pace, another_rate_is_for_those_who_wait)
{
    struct taker taker;

    begin_to_wait(&taker);
    pace_set(&pace, 1000000000000);
    worker_join(&taker.worker);
}

Test(pace, no_rate_is_for_those_who_wait)
{
    struct taker taker;

    begin_to_wait(&taker);
    pace_set(&pace, 0);
    worker_join(&taker.worker);
    cr_expect(not(pace_is_on(&pace)));
    /* Whoever comes later owes nothing. */
    pace_set(&pace, 1000000);
    cr_expect(ge(dbl, pace.tokens, 0.0));
}

Test(pace, closed)
{
    struct taker taker;

    begin_to_wait(&taker);
    pace_close(&pace);
    worker_join(&taker.worker);
    time_of(10, 1000000000);
}
