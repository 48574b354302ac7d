/* SPDX-License-Identifier: Apache-2.0 */
/* Monotonic time. */
#ifndef MIGFS_CLOCK_H
#define MIGFS_CLOCK_H

#include <pthread.h>
#include <stdint.h>
#include <time.h>

static inline int64_t clock_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static inline int64_t clock_ms(void)
{
    return clock_ns() / 1000000;
}

/* What poll(2) takes to wait until @deadline_ms: never negative. */
static inline int clock_poll_timeout(int64_t deadline_ms)
{
    int64_t left = deadline_ms - clock_ms();
    return left < 0 ? 0 : left > 1000000 ? 1000000 : (int)left;
}

/* A condition whose pthread_cond_timedwait() goes by this clock. */
static inline void clock_cond_init(pthread_cond_t *cond)
{
    pthread_condattr_t attr;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attr);
    pthread_condattr_destroy(&attr);
}

/* What it takes to wait until @deadline_ns. */
static inline struct timespec clock_timespec(int64_t deadline_ns)
{
    return (struct timespec){deadline_ns / 1000000000, deadline_ns % 1000000000};
}

#endif
