/* SPDX-License-Identifier: Apache-2.0 */
/* How fast a connection may send; see pace.h. */
#include "pace.h"
#include "cleanup.h"
#include "clock.h"

void pace_init(struct pace *pace, uint64_t rate)
{
    *pace = (struct pace){.rate = rate, .filled_ns = clock_ns()};
    pthread_mutex_init(&pace->lock, NULL);
    clock_cond_init(&pace->changed);
}

void pace_fini(struct pace *pace)
{
    pthread_cond_destroy(&pace->changed);
    pthread_mutex_destroy(&pace->lock);
}

/* Adds what has come since the last time. The lock is held. Return: the rate. */
static double fill(struct pace *pace)
{
    double rate = (double)atomic_load_explicit(&pace->rate, memory_order_relaxed);
    double most = rate * PACE_BURST_MS / 1e3;
    int64_t now = clock_ns();

    pace->tokens += (double)(now - pace->filled_ns) / 1e9 * rate;
    if (pace->tokens > most)
        pace->tokens = most;
    pace->filled_ns = now;
    return rate;
}

void pace_set(struct pace *pace, uint64_t rate)
{
    SCOPED_LOCK(&pace->lock);
    fill(pace);
    atomic_store_explicit(&pace->rate, rate, memory_order_relaxed);
    pthread_cond_broadcast(&pace->changed);
}

void pace_take(struct pace *pace, uint64_t bytes)
{
    if (!pace_is_on(pace))
        return;
    SCOPED_LOCK(&pace->lock);
    double rate = fill(pace);
    pace->tokens -= (double)bytes;
    while (rate > 0 && pace->tokens < 0 && !pace->closed) {
        struct timespec until = clock_timespec(clock_ns() + (int64_t)(-pace->tokens / rate * 1e9) + 1);
        pthread_cond_timedwait(&pace->changed, &pace->lock, &until);
        rate = fill(pace);
    }
    if (rate <= 0)
        pace->tokens = 0;
}

uint64_t pace_piece(const struct pace *pace)
{
    uint64_t rate = atomic_load_explicit(&pace->rate, memory_order_relaxed);
    uint64_t burst = rate / 1000 * PACE_BURST_MS;

    return !rate ? UINT64_MAX : burst > PACE_LEAST ? burst : PACE_LEAST;
}

void pace_close(struct pace *pace)
{
    SCOPED_LOCK(&pace->lock);
    pace->closed = true;
    pthread_cond_broadcast(&pace->changed);
}

void pace_open(struct pace *pace)
{
    SCOPED_LOCK(&pace->lock);
    pace->closed = false;
}
