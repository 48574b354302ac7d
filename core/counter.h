/* SPDX-License-Identifier: Apache-2.0 */
/* A number that one thread, or whoever has a lock, adds to, and that others read: relaxed, it guards nothing.
 */
#ifndef MIGFS_COUNTER_H
#define MIGFS_COUNTER_H

#include <stdatomic.h>
#include <stdint.h>

/** counter_add - one writer at a time */
static inline void counter_add(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n,
                          memory_order_relaxed);
}

static inline uint64_t counter_get(const _Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

#endif
