/* SPDX-License-Identifier: Apache-2.0 */
/* What locks.c sees. */
#include "blocked.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <signal.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

Test(locks, held)
{
    cr_expect(zero(int, pthread_mutex_lock(&mutex)));
    cr_expect(zero(int, pthread_mutex_unlock(&mutex)));
}

Test(locks, not_held, .signal = SIGABRT)
{
    pthread_mutex_unlock(&mutex);
}

static void lock(void *arg)
{
    (void)arg;
    pthread_mutex_lock(&mutex);
}

Test(locks, held_by_another, .signal = SIGABRT)
{
    struct worker worker;

    worker_start(&worker, lock, NULL);
    worker_join(&worker);
    pthread_mutex_unlock(&mutex);
}
