/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How fast a connection may send, or an incoming migration receive: `max-bandwidth`.
 *
 * A bucket that fills with the rate, and holds what may pass at once. A thread that moves bytes takes first,
 * also more than there is, and then waits until the bucket is not in debt any more: so nothing has to be
 * cut, and the rate holds over any time that is longer than that of a piece. What can be cut is: a packet of
 * 1 MiB is a tenth of a second at 10 MB/s.
 *
 * Lock: pace.lock, a leaf. Without a rate nobody takes it.
 */
#ifndef MIGFS_PACE_H
#define MIGFS_PACE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define PACE_BURST_MS 10          /* what may pass at once: of so long a time */
#define PACE_LEAST    (64u << 10) /* bytes that are not worth to be cut */

struct pace {
    _Atomic uint64_t rate; /* bytes a second; 0: as fast as can be. Written with the lock held */
    pthread_mutex_t lock;  /* guards what follows */
    pthread_cond_t changed;
    bool closed;
    double tokens; /* bytes; negative: a debt */
    int64_t filled_ns;
};

void pace_init(struct pace *pace, uint64_t rate);
void pace_fini(struct pace *pace);

/** pace_set - another rate, from now on, also for those who wait */
void pace_set(struct pace *pace, uint64_t rate);

/** pace_is_on - whether there is a rate; any thread */
static inline bool pace_is_on(const struct pace *pace)
{
    return atomic_load_explicit(&pace->rate, memory_order_relaxed);
}

/** pace_take - @bytes are about to be sent, or have been received: wait until they may be, or pace_close() */
void pace_take(struct pace *pace, uint64_t bytes);

/** pace_piece - into how large pieces is to be cut what can be, in bytes, so that they come evenly; any
 * thread
 */
uint64_t pace_piece(const struct pace *pace);

/** pace_close, pace_open - nobody waits any more; they do again */
void pace_close(struct pace *pace);
void pace_open(struct pace *pace);

#endif
