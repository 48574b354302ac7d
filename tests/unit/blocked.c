/* SPDX-License-Identifier: Apache-2.0 */
/* Threads of tests; see blocked.h. */
#include "blocked.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static void *run(void *arg)
{
    struct worker *w = arg;

    atomic_store(&w->tid, gettid());
    w->work(w->arg);
    atomic_store(&w->done, true);
    return NULL;
}

void worker_start(struct worker *w, void (*work)(void *arg), void *arg)
{
    *w = (struct worker){.work = work, .arg = arg};
    cr_assert(zero(int, pthread_create(&w->thread, NULL, run, w)));
}

void worker_join(struct worker *w)
{
    pthread_join(w->thread, NULL);
}

static char state_of(int tid)
{
    char path[64], line[512] = "";
    FILE *f;

    snprintf(path, sizeof(path), "/proc/self/task/%d/stat", tid);
    f = fopen(path, "r");
    if (!f)
        return 0;
    if (!fgets(line, sizeof(line), f))
        line[0] = '\0';
    fclose(f);
    /* "TID (NAME) STATE ...", and the name can have anything in it. */
    const char *end = strrchr(line, ')');
    return end && end[1] == ' ' ? end[2] : 0;
}

void worker_await_sleep(struct worker *w)
{
    /* Twice in a row: a thread can sleep for a moment on a lock on its way. */
    for (int seen = 0; seen < 3 && !atomic_load(&w->done);) {
        int tid = atomic_load(&w->tid);
        seen = tid && state_of(tid) == 'S' ? seen + 1 : 0;
        sched_yield();
    }
}

static sem_t handled;

static void on_signal(int signal)
{
    (void)signal;
    sem_post(&handled);
}

void worker_interrupt(struct worker *w)
{
    struct sigaction action = {.sa_handler = on_signal}; /* without SA_RESTART */

    sem_init(&handled, 0, 0);
    sigaction(SIGUSR1, &action, NULL);
    worker_await_sleep(w);
    if (atomic_load(&w->done))
        return;
    pthread_kill(w->thread, SIGUSR1);
    sem_wait(&handled);
    worker_await_sleep(w);
}
