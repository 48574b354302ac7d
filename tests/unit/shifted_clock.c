/* SPDX-License-Identifier: Apache-2.0 */
/* A clock; see shifted_clock.h. */
#include "shifted_clock.h"

#include <stdatomic.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000

static _Atomic int64_t shift, step, stopped; /* ns; each for itself. @stopped: when it was, or 0 */

static int64_t real_ns(void)
{
    struct timespec ts;

    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * SECOND + ts.tv_nsec;
}

void shifted_clock_add(int64_t ms)
{
    atomic_fetch_add(&shift, ms * 1000000);
}

void shifted_clock_run(int64_t ms)
{
    atomic_store(&step, ms * 1000000);
}

void shifted_clock_stop(void)
{
    atomic_store(&stopped, real_ns());
}

int clock_gettime(clockid_t clock, struct timespec *ts)
{
    if (clock != CLOCK_MONOTONIC)
        return (int)syscall(SYS_clock_gettime, clock, ts);
    int64_t by = atomic_load(&step), at = atomic_load(&stopped);
    int64_t ns = (at ? at : real_ns()) + atomic_fetch_add(&shift, by) + by;
    *ts = (struct timespec){ns / SECOND, ns % SECOND};
    return 0;
}
