/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How much a daemon is willing to hold for its incoming migrations, all
 * together. Sizes are charged, not pages: what a peer declares counts.
 */
#ifndef MIGFS_BUDGET_H
#define MIGFS_BUDGET_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct budget {
    uint64_t limit;        /* constant */
    _Atomic uint64_t used; /* relaxed: it guards nothing but itself */
};

/** budget_charge - take @bytes if they fit */
static inline bool budget_charge(struct budget *budget, uint64_t bytes)
{
    uint64_t used = atomic_load_explicit(&budget->used, memory_order_relaxed);

    do {
        if (bytes > budget->limit - used)
            return false;
    } while (!atomic_compare_exchange_weak_explicit(&budget->used, &used, used + bytes, memory_order_relaxed,
                                                    memory_order_relaxed));
    return true;
}

static inline void budget_release(struct budget *budget, uint64_t bytes)
{
    atomic_fetch_sub_explicit(&budget->used, bytes, memory_order_relaxed);
}

#endif
