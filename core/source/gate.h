/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A bound on bytes: those that a migration has accepted and not sent yet. A
 * thread that wants to add to them waits until there is room; this is where a slow
 * peer blocks the writers.
 */
#ifndef MIGFS_GATE_H
#define MIGFS_GATE_H

#include "interrupt.h"

#include <pthread.h>
#include <stdint.h>

struct gate {
    uint64_t limit; /* constant */
    /*
     * Sequentially consistent, both: a leaver frees room and then looks for
     * waiters, a waiter announces itself and then looks for room; one of them
     * sees the other.
     */
    _Atomic uint64_t used;
    atomic_uint waiters;
    atomic_bool closed; /* nobody waits any more, everybody passes */
    pthread_mutex_t lock;
    pthread_cond_t room;
    struct gate_waiter *first, **last; /* the threads that wait, in the order of arrival; guarded by lock */
};

void gate_init(struct gate *gate, uint64_t limit);
void gate_fini(struct gate *gate);

/**
 * gate_enter - take @bytes, when there is room
 *
 * One entrant is let in whatever its size when nobody else is in. Those who wait are
 * let in in the order of arrival. Return: 0;
 * -EINTR when @interrupt was hit first; -ECANCELED when the gate was closed
 * (nothing was taken then).
 */
int gate_enter(struct gate *gate, uint64_t bytes, const struct interrupt *interrupt);

/** gate_leave - give @bytes back */
void gate_leave(struct gate *gate, uint64_t bytes);

/** gate_close - let nobody in any more: the migration has failed */
void gate_close(struct gate *gate);

/** gate_kick - make the waiters look at their interrupts */
void gate_kick(struct gate *gate);

#endif
