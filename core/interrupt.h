/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whoever asked for something may stop waiting for it: a signal arrived. The
 * flag is set from another thread, which then wakes the migration's waiters
 * (migration_kick()); every wait looks at it under the lock that it waits with.
 */
#ifndef MIGFS_INTERRUPT_H
#define MIGFS_INTERRUPT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

struct interrupt {
    atomic_bool hit;
};

/* @interrupt may be NULL: a wait that nothing interrupts. */
static inline bool interrupt_is_hit(const struct interrupt *interrupt)
{
    return interrupt && atomic_load(&interrupt->hit);
}

#endif
