/* SPDX-License-Identifier: Apache-2.0 */
/* Who may receive next, where a rate bounds it. No time passes but what the tests add, so the order is one.
 */
#include "intake.h"
#include "blocked.h"
#include "check.h"
#include "cleanup.h"
#include "clock.h"
#include "shifted_clock.h"

#define RATE   100000000ull
#define UNIT   1000000ull /* bytes of a payment; what comes in 10 ms */
#define PAYERS 64
#define BEGIN_MS 10000 /* what the clock says at first */
#define DAY_MS (24 * 3600000ll)

struct payer {
    struct worker worker;
    struct intake_share *share;
    uint64_t bytes;
    char name;
};

static struct intake intake;
/* a and b are the one peer's, c is the other's; the debt is somebody's who pays no more */
static struct intake_share a, b, c, debtor;
static struct payer payers[PAYERS];
static unsigned count;
static pthread_mutex_t order_lock = PTHREAD_MUTEX_INITIALIZER;
static char order[PAYERS + 1]; /* names, as they were let through; guarded by order_lock */

static const struct account *peer(int number)
{
    static char peers[3];

    return (const void *)&peers[number];
}

static void begin(uint64_t rate)
{
    shifted_clock_stop();
    /* What the kernel waits for is over by then. Not before the machine has begun: a wait that cannot be gives
     * nobody else the lock. */
    shifted_clock_add(BEGIN_MS - clock_ms());
    intake_init(&intake, rate);
    intake_share_init(&a, &intake, peer(0));
    intake_share_init(&b, &intake, peer(0));
    intake_share_init(&c, &intake, peer(1));
    intake_share_init(&debtor, &intake, peer(2));
}

static void end(void)
{
    intake_share_close(&a);
    intake_share_close(&b);
    intake_share_close(&c);
    for (unsigned i = 0; i < count; i++)
        worker_join(&payers[i].worker);
    intake_share_fini(&b);
    intake_share_fini(&debtor);
    intake_share_fini(&c);
    intake_share_fini(&a);
    intake_fini(&intake);
}

static void pay(void *arg)
{
    struct payer *payer = arg;

    intake_pay(payer->share, payer->bytes);
    SCOPED_LOCK(&order_lock);
    order[strlen(order)] = payer->name;
}

static unsigned queued(void)
{
    SCOPED_LOCK(&intake.lock);
    return a.queued + b.queued + c.queued;
}

static size_t let_through(void)
{
    SCOPED_LOCK(&order_lock);
    return strlen(order);
}

/* More payments of a share wait; there is a debt. */
static void wait_in_line(struct intake_share *share, unsigned n)
{
    while (n-- > 0) {
        struct payer *payer = &payers[count++];
        unsigned before = queued();
        *payer = (struct payer){.share = share,
                                .bytes = UNIT,
                                .name = share == &a   ? 'a'
                                        : share == &b ? 'b'
                                                      : 'c'};
        worker_start(&payer->worker, pay, payer);
        while (queued() == before)
            sched_yield();
    }
}

/* Time for so many payments passes. */
static void let_pass(unsigned n)
{
    while (n-- > 0) {
        size_t before = let_through();
        shifted_clock_add(10);
        while (let_through() == before)
            sched_yield();
    }
}

static unsigned passed(char name)
{
    unsigned n = 0;

    for (const char *p = order; *p; p++)
        n += *p == name;
    return n;
}

Test(intake, without_a_rate_nobody_waits)
{
    begin(0);
    for (int i = 0; i < 1000; i++)
        intake_pay(&a, 1ull << 40);
    cr_expect(zero(u64, intake_share_held_ns(&a)));
    end();
}

Test(intake, the_rate_is_that_of_all)
{
    begin(RATE);
    intake_pay(&debtor, UNIT);
    wait_in_line(&a, 1);
    wait_in_line(&c, 1);
    shifted_clock_add(9);
    cr_expect(eq(u32, queued(), 2));
    shifted_clock_add(1);
    while (let_through() < 1)
        sched_yield();
    let_pass(1);
    cr_expect(eq(str, order, "ac"));
    /* Both were in debt for 20 ms. */
    cr_expect(eq(u64, intake_share_held_ns(&a), 10000000));
    cr_expect(eq(u64, intake_share_held_ns(&c), 20000000));
    end();
}

Test(intake, shares_are_by_weight)
{
    begin(RATE);
    intake_share_set(&a, 300, 0);
    intake_pay(&debtor, UNIT);
    wait_in_line(&a, 20);
    wait_in_line(&c, 20);
    let_pass(16);
    cr_expect(eq(u32, passed('a'), 12), "%s", order);
    cr_expect(eq(u32, passed('c'), 4), "%s", order);
    /* The other one has it all when it waits alone. */
    let_pass(12);
    cr_expect(eq(u32, passed('a'), 20), "%s", order);
    let_pass(12);
    cr_expect(eq(u32, passed('c'), 20), "%s", order);
    end();
}

Test(intake, the_number_of_channels_does_not_count)
{
    begin(RATE);
    intake_pay(&debtor, UNIT);
    wait_in_line(&a, 30);
    for (int i = 1; i <= 10; i++) {
        /* One channel: it pays again when it has been let through. */
        wait_in_line(&c, 1);
        let_pass(2);
        cr_expect(ge(u32, passed('c') + 1, (unsigned)i), "%s", order);
        cr_expect(ge(u32, passed('a') + 1, (unsigned)i), "%s", order);
    }
    end();
}

Test(intake, a_peer_does_not_get_more_by_sending_more)
{
    begin(RATE);
    intake_pay(&debtor, UNIT);
    for (int i = 0; i < 15; i++) {
        wait_in_line(&a, 1);
        wait_in_line(&b, 1);
        wait_in_line(&c, 1);
    }
    let_pass(20);
    cr_expect(ge(u32, passed('c'), 9), "%s", order);
    cr_expect(le(u32, passed('c'), 11), "%s", order);
    cr_expect(ge(u32, passed('a'), 4), "%s", order);
    cr_expect(ge(u32, passed('b'), 4), "%s", order);
    end();
}

Test(intake, what_was_not_used_is_not_made_up_for)
{
    begin(RATE);
    intake_pay(&debtor, UNIT);
    wait_in_line(&a, 40);
    let_pass(20);
    wait_in_line(&c, 10);
    let_pass(10);
    /* About INTAKE_LAG more than half. */
    cr_expect(ge(u32, passed('c'), 5), "%s", order);
    cr_expect(le(u32, passed('c'), 7), "%s", order);
    end();
}

Test(intake, the_least_weight_has_its_turn)
{
    unsigned n = 0;

    begin(RATE);
    intake_share_set(&a, INTAKE_WEIGHT_MAX, 0);
    intake_share_set(&c, 1, 0);
    intake_pay(&debtor, UNIT);
    wait_in_line(&c, 2);
    let_pass(1);
    cr_expect(eq(str, order, "c"));
    /* By weight it would come after 10000 of the other one. */
    for (;;) {
        wait_in_line(&a, 1);
        let_pass(1);
        if (order[1] == 'c')
            break;
        worker_join(&payers[--count].worker);
        order[1] = '\0';
        n++;
    }
    cr_expect(ge(u32, n, 450), "%u", n);
    cr_expect(le(u32, n, 510), "%u", n);
    end();
}

Test(intake, another_weight_is_for_those_who_wait)
{
    begin(RATE);
    intake_share_set(&c, 1, 0);
    intake_pay(&debtor, UNIT);
    wait_in_line(&a, 16);
    wait_in_line(&c, 8);
    let_pass(8);
    cr_expect(le(u32, passed('c'), 1), "%s", order);
    intake_share_set(&c, 100, 0);
    let_pass(12);
    cr_expect(ge(u32, passed('c'), 5), "%s", order);
    cr_expect(le(u32, passed('c'), 8), "%s", order);
    end();
}

Test(intake, a_share_has_a_rate_of_its_own)
{
    begin(0);
    shifted_clock_add(DAY_MS); /* the kernel's waits do not end by themselves */
    intake_share_set(&a, 100, RATE / 10);
    intake_pay(&c, 1ull << 40);
    payers[0] = (struct payer){.share = &a, .bytes = UNIT, .name = 'a'};
    count = 1;
    worker_start(&payers[0].worker, pay, &payers[0]);
    worker_await_sleep(&payers[0].worker);
    cr_expect(eq(str, order, ""));
    shifted_clock_add(50);
    cr_expect(eq(u64, intake_share_held_ns(&a), 50000000));
    intake_share_set(&a, 100, 0);
    worker_join(&payers[0].worker);
    count = 0;
    cr_expect(eq(str, order, "a"));
    cr_expect(eq(u64, intake_share_held_ns(&a), 50000000));
    end();
}

Test(intake, nobody_waits_for_what_is_closed)
{
    begin(RATE);
    intake_pay(&debtor, UNIT << 20);
    wait_in_line(&a, 3);
    wait_in_line(&c, 1);
    intake_share_close(&a);
    while (let_through() < 3)
        sched_yield();
    cr_expect(eq(str, order, "aaa"));
    intake_pay(&a, UNIT);
    cr_expect(eq(u32, queued(), 1));
    intake_share_open(&a);
    wait_in_line(&a, 1);
    cr_expect(eq(u32, queued(), 2));
    end();
}
