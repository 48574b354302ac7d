/* SPDX-License-Identifier: Apache-2.0 */
/* The bound on what is accepted and not sent. */
#include "gate.h"
#include "blocked.h"
#include "check.h"

#include <errno.h>
#include <sched.h>

#define LIMIT 100

/* One call of gate_enter() in a thread of its own. */
struct entrant {
    struct worker worker;
    struct gate *gate;
    uint64_t bytes;
    struct interrupt interrupt;
    int ret;
};

static void enter(void *arg)
{
    struct entrant *e = arg;

    e->ret = gate_enter(e->gate, e->bytes, &e->interrupt);
}

static void start_waiting(struct entrant *e, struct gate *gate, uint64_t bytes)
{
    *e = (struct entrant){.gate = gate, .bytes = bytes, .ret = 1};
    worker_start(&e->worker, enter, e);
    worker_await_sleep(&e->worker);
    cr_assert(not(atomic_load(&e->worker.done)), "%d bytes were let in", (int)bytes);
}

Test(gate, lets_in_up_to_the_limit)
{
    struct gate gate;

    gate_init(&gate, LIMIT);
    cr_expect(eq(int, gate_enter(&gate, 60, NULL), 0));
    cr_expect(eq(int, gate_enter(&gate, 40, NULL), 0));
    cr_expect(eq(u64, gate.used, LIMIT));
    gate_leave(&gate, 60);
    cr_expect(eq(int, gate_enter(&gate, 1, NULL), 0));
    gate_leave(&gate, 41);
    cr_expect(eq(u64, gate.used, 0));
    gate_fini(&gate);
}

Test(gate, blocks_until_there_is_room)
{
    struct gate gate;
    struct entrant e;

    gate_init(&gate, LIMIT);
    gate_enter(&gate, 60, NULL);
    start_waiting(&e, &gate, 41);
    gate_leave(&gate, 0);
    worker_await_sleep(&e.worker);
    cr_expect(not(atomic_load(&e.worker.done)));
    gate_leave(&gate, 1);
    worker_join(&e.worker);
    cr_expect(eq(int, e.ret, 0));
    cr_expect(eq(u64, gate.used, LIMIT));
    gate_fini(&gate);
}

Test(gate, one_big_entrant_alone)
{
    struct gate gate;
    struct entrant small, big;

    gate_init(&gate, LIMIT);
    cr_expect(eq(int, gate_enter(&gate, 5 * LIMIT, NULL), 0), "alone, whatever its size");
    start_waiting(&small, &gate, 1);
    gate_leave(&gate, 5 * LIMIT);
    worker_join(&small.worker);
    start_waiting(&big, &gate, 5 * LIMIT);
    gate_leave(&gate, 1);
    worker_join(&big.worker);
    cr_expect(eq(int, big.ret, 0));
    cr_expect(eq(u64, gate.used, 5 * LIMIT));
    gate_leave(&gate, 5 * LIMIT);
    gate_fini(&gate);
}

Test(gate, interrupt)
{
    struct gate gate;
    struct entrant e, other;
    struct interrupt hit = {.hit = true};

    gate_init(&gate, LIMIT);
    cr_expect(eq(int, gate_enter(&gate, 10, &hit), 0), "who need not wait is not interrupted");
    gate_enter(&gate, 90, NULL);
    cr_expect(eq(int, gate_enter(&gate, 1, &hit), -EINTR));
    start_waiting(&e, &gate, 1);
    start_waiting(&other, &gate, 2);
    atomic_store(&e.interrupt.hit, true);
    gate_kick(&gate);
    worker_join(&e.worker);
    cr_expect(eq(int, e.ret, -EINTR));
    cr_expect(eq(u64, gate.used, LIMIT), "nothing was taken");
    worker_await_sleep(&other.worker);
    cr_expect(not(atomic_load(&other.worker.done)), "the other one waits on");
    gate_leave(&gate, 2);
    worker_join(&other.worker);
    cr_expect(eq(int, other.ret, 0));
    gate_fini(&gate);
}

Test(gate, close)
{
    struct gate gate;
    struct entrant waiting[3];

    gate_init(&gate, LIMIT);
    gate_enter(&gate, LIMIT, NULL);
    for (int i = 0; i < 3; i++)
        start_waiting(&waiting[i], &gate, 1 + (unsigned)i);
    gate_close(&gate);
    for (int i = 0; i < 3; i++) {
        worker_join(&waiting[i].worker);
        cr_expect(eq(int, waiting[i].ret, -ECANCELED));
    }
    cr_expect(eq(u64, gate.used, LIMIT), "nothing was taken");
    cr_expect(eq(int, gate_enter(&gate, 1, NULL), -ECANCELED), "nobody waits at a closed gate");
    gate_leave(&gate, LIMIT);
    cr_expect(eq(u64, gate.used, 0), "what is in can still leave");
    gate_fini(&gate);
}

/*
 * Many threads of all sizes. What is inside is counted apart from the gate: it
 * is never above the limit, unless somebody is there alone.
 */
#define THREADS 8
#define TURNS   3000

static struct crowd {
    struct gate gate;
    pthread_mutex_t lock;
    uint64_t inside;
    unsigned people;
    unsigned violations;
} crowd = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void count(uint64_t bytes, int sign)
{
    pthread_mutex_lock(&crowd.lock);
    crowd.inside += sign > 0 ? bytes : -bytes;
    crowd.people += sign;
    if (crowd.inside > LIMIT && crowd.people > 1)
        crowd.violations++;
    pthread_mutex_unlock(&crowd.lock);
}

static void come_and_go(void *arg)
{
    unsigned seed = (unsigned)(uintptr_t)arg;

    for (unsigned i = 0; i < TURNS; i++) {
        seed = seed * 1103515245 + 12345;
        /* Now and then one that is larger than the limit. */
        uint64_t bytes = seed >> 16 & 0x1f ? 1 + (seed >> 8) % LIMIT : LIMIT + 1 + (seed >> 8) % LIMIT;
        gate_enter(&crowd.gate, bytes, NULL);
        count(bytes, 1);
        if (i % 4 == 0)
            sched_yield();
        count(bytes, -1);
        gate_leave(&crowd.gate, bytes);
    }
}

Test(gate, crowd)
{
    struct worker workers[THREADS];

    gate_init(&crowd.gate, LIMIT);
    for (uintptr_t i = 0; i < THREADS; i++)
        worker_start(&workers[i], come_and_go, (void *)(i + 1));
    for (int i = 0; i < THREADS; i++)
        worker_join(&workers[i]);
    cr_expect(eq(uint, crowd.violations, 0));
    cr_expect(eq(u64, crowd.gate.used, 0));
    cr_expect(eq(uint, crowd.gate.waiters, 0));
    gate_fini(&crowd.gate);
}
