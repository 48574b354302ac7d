/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Threads of tests, and the moment at which one of them sleeps.
 *
 * A test that wants to see a blocked thread woken must first know that it is
 * blocked. The kernel says so: a thread that does nothing but one call, and is
 * asleep, is blocked in that call.
 */
#ifndef MIGFS_TEST_BLOCKED_H
#define MIGFS_TEST_BLOCKED_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

struct worker {
    pthread_t thread;
    atomic_int tid; /* 0: has not begun */
    atomic_bool done;
    void (*work)(void *arg);
    void *arg;
};

/** worker_start - run @work in a thread of its own */
void worker_start(struct worker *w, void (*work)(void *arg), void *arg);

/** worker_join - wait for its end */
void worker_join(struct worker *w);

/** worker_await_sleep - wait until the thread sleeps, or is done */
void worker_await_sleep(struct worker *w);

/** worker_interrupt - once it sleeps, have its call interrupted by a signal, and wait until it sleeps again, or is done */
void worker_interrupt(struct worker *w);

#endif
