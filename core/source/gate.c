/* SPDX-License-Identifier: Apache-2.0 */
/* A bound on bytes; see gate.h. The way in and out with no waiting is a few atomics. */
#include "gate.h"
#include "cleanup.h"

#include <errno.h>

struct gate_waiter {
    struct gate_waiter *next;
};

void gate_init(struct gate *gate, uint64_t limit)
{
    *gate = (struct gate){.limit = limit};
    gate->last = &gate->first;
    pthread_mutex_init(&gate->lock, NULL);
    pthread_cond_init(&gate->room, NULL);
}

void gate_fini(struct gate *gate)
{
    pthread_cond_destroy(&gate->room);
    pthread_mutex_destroy(&gate->lock);
}

static bool try_enter(struct gate *gate, uint64_t bytes)
{
    uint64_t used = atomic_load(&gate->used);

    do {
        if (used && used + bytes > gate->limit)
            return false;
    } while (!atomic_compare_exchange_weak(&gate->used, &used, used + bytes));
    return true;
}

static void leave_queue(struct gate *gate, struct gate_waiter *waiter)
{
    struct gate_waiter **p = &gate->first;

    while (*p != waiter)
        p = &(*p)->next;
    *p = waiter->next;
    if (gate->last == &waiter->next)
        gate->last = p;
    atomic_fetch_sub(&gate->waiters, 1);
    /* The next one may have room too. */
    pthread_cond_broadcast(&gate->room);
}

int gate_enter(struct gate *gate, uint64_t bytes, const struct interrupt *interrupt)
{
    struct gate_waiter waiter = {0};
    int ret = 0;

    if (!atomic_load(&gate->waiters) && try_enter(gate, bytes))
        return 0;
    SCOPED_LOCK(&gate->lock);
    *gate->last = &waiter;
    gate->last = &waiter.next;
    atomic_fetch_add(&gate->waiters, 1);
    while (gate->first != &waiter || !try_enter(gate, bytes)) {
        if (atomic_load(&gate->closed))
            ret = -ECANCELED;
        else if (interrupt_is_hit(interrupt))
            ret = -EINTR;
        if (ret < 0)
            break;
        pthread_cond_wait(&gate->room, &gate->lock);
    }
    leave_queue(gate, &waiter);
    return ret;
}

void gate_kick(struct gate *gate)
{
    SCOPED_LOCK(&gate->lock);
    pthread_cond_broadcast(&gate->room);
}

void gate_leave(struct gate *gate, uint64_t bytes)
{
    atomic_fetch_sub(&gate->used, bytes);
    if (atomic_load(&gate->waiters))
        gate_kick(gate);
}

void gate_close(struct gate *gate)
{
    atomic_store(&gate->closed, true);
    gate_kick(gate);
}
