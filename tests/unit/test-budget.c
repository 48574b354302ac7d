/* SPDX-License-Identifier: Apache-2.0 */
/* What a daemon holds for all incoming migrations together. */
#include "budget.h"
#include "check.h"

#include <pthread.h>

Test(budget, is_a_bound)
{
    struct budget budget = {.limit = 100};

    cr_expect(budget_charge(&budget, 0));
    cr_expect(budget_charge(&budget, 60));
    cr_expect(not(budget_charge(&budget, 41)));
    cr_expect(eq(u64, budget.used, 60), "a refusal takes nothing");
    cr_expect(budget_charge(&budget, 40));
    cr_expect(not(budget_charge(&budget, 1)));
    cr_expect(budget_charge(&budget, 0));
    budget_release(&budget, 100);
    cr_expect(eq(u64, budget.used, 0));
    cr_expect(budget_charge(&budget, 100));
}

Test(budget, huge_sizes_do_not_wrap)
{
    struct budget budget = {.limit = UINT64_MAX};

    cr_expect(budget_charge(&budget, UINT64_MAX - 1));
    cr_expect(not(budget_charge(&budget, UINT64_MAX)));
    cr_expect(not(budget_charge(&budget, 2)));
    cr_expect(budget_charge(&budget, 1));
    budget.limit = 10;
    budget.used = 10;
    cr_expect(not(budget_charge(&budget, UINT64_MAX - 5)));
}

#define THREADS 4
#define LIMIT   1000

static struct budget shared = {.limit = LIMIT};
static atomic_bool above;

static void *charge_and_release(void *arg)
{
    uint64_t mine = 0;

    (void)arg;
    for (unsigned i = 0; i < 50000; i++) {
        uint64_t n = i % 300;
        if (budget_charge(&shared, n))
            mine += n;
        if (atomic_load(&shared.used) > LIMIT)
            atomic_store(&above, true);
        if (i % 3 == 0) {
            budget_release(&shared, mine);
            mine = 0;
        }
    }
    budget_release(&shared, mine);
    return NULL;
}

Test(budget, many_threads)
{
    pthread_t threads[THREADS];

    for (int i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, charge_and_release, NULL);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    cr_expect(not(above));
    cr_expect(eq(u64, shared.used, 0));
}

/* What does not fit into the whole is not charged to the share, and the sentence names the limit. */
Test(budget, shares)
{
    struct budget whole = {.limit = 100, .unit = "bytes in all (max-memory)"};
    struct budget a = {.limit = 80, .whole = &whole, .unit = "bytes for one peer (max-peer-memory)"};
    struct budget b = {.limit = 80, .whole = &whole};
    struct error err = {0};

    cr_expect(budget_charge(&a, 70));
    cr_expect(not(budget_charge(&b, 40)));
    cr_expect(zero(u64, b.used));
    cr_expect(lt(int, budget_take(&a, 20, &err, "'%s' is too much", "x"), 0));
    cr_expect(eq(int, (int)err.cause, CAUSE_QUOTA));
    cr_expect(eq(str, err.message, "'x' is too much: the destination holds at most 80 bytes for one peer (max-peer-memory)"));
    err = (struct error){0};
    cr_expect(lt(int, budget_take(&b, 40, &err, "it does not fit"), 0));
    cr_expect(eq(str, err.message, "it does not fit: the destination holds at most 100 bytes in all (max-memory)"));
    cr_expect(zero(int, budget_take(&b, 30, &err, "it")));
    cr_expect(eq(u64, whole.used, 100));
    budget_release(&a, 70);
    budget_release(&b, 30);
    cr_expect(zero(u64, whole.used));
}
