/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How much of something a daemon is willing to have for its incoming migrations:
 * of memory, descriptors or channels. A budget can be a share of another one;
 * what is charged to it is then charged to both, or to neither.
 *
 * Sizes are charged, not pages: what a peer declares counts.
 */
#ifndef MIGFS_BUDGET_H
#define MIGFS_BUDGET_H

#include "error.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct budget {
    uint64_t limit;        /* constant */
    _Atomic uint64_t used; /* relaxed: it guards nothing but itself */
    struct budget *whole;  /* what it is a share of, or NULL; constant */
    const char *unit;      /* of what it is a limit, and which setting says so: "bytes in all (max-memory)" */
};

/** budget_charge - take @amount if it fits, here and in the whole */
static inline bool budget_charge(struct budget *budget, uint64_t amount)
{
    uint64_t used = atomic_load_explicit(&budget->used, memory_order_relaxed);

    do {
        if (amount > budget->limit - used)
            return false;
    } while (!atomic_compare_exchange_weak_explicit(&budget->used, &used, used + amount, memory_order_relaxed,
                                                    memory_order_relaxed));
    if (!budget->whole || budget_charge(budget->whole, amount))
        return true;
    atomic_fetch_sub_explicit(&budget->used, amount, memory_order_relaxed);
    return false;
}

static inline void budget_release(struct budget *budget, uint64_t amount)
{
    for (; budget; budget = budget->whole)
        atomic_fetch_sub_explicit(&budget->used, amount, memory_order_relaxed);
}

/**
 * budget_take - budget_charge(), with a sentence that names the limit
 * @what: what does not fit
 * @err: CAUSE_QUOTA
 */
int budget_take(struct budget *budget, uint64_t amount, struct error *err, const char *what, ...)
    __attribute__((format(printf, 4, 5)));

#endif
