/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Parked reads; see parking.h.
 *
 * A parked request follows its file or its migration (follower.h). Whoever makes
 * the stream longer, or ends it, tells the request, which only puts it into a queue;
 * thread fuse-answer takes it from there, reads and answers. So the thread that
 * receives data does not copy it for readers, and nobody looks at requests that
 * have nothing to read yet.
 *
 * Why a request is answered exactly once. It has one owner at a time:
 * - at first the worker that parks it. Until that is done (`settled`), the others
 *   only note that they were there (`told`, `interrupted`), and the worker, which looks
 *   at that under parking_lock when it settles the request, answers it itself;
 * - then the list that it follows in. Whoever takes it out of there has it: the one who
 *   tells, who hands it to fuse-answer, or the interrupt. Both take it out under the
 *   lock of that list, so only one of them does.
 *
 * Why it is there for as long as somebody may look at it. libfuse calls
 * on_interrupt() with the request's lock held, and after fuse_req_interrupt_func(req,
 * NULL, NULL), which takes that lock, it cannot be called any more. An owner calls that
 * first, and then answers and frees. on_interrupt() itself cannot, as it has the lock; it
 * need not, since nobody calls it a second time meanwhile. It may answer, since libfuse
 * keeps the request until it returns; but not when fuse_req_interrupt_func() calls it, which is
 * why it answers no request that is not settled.
 *
 * Why an interrupted request is answered at once. The kernel puts INTERRUPT before
 * all other requests, some workers are never blocked (loop.h), and the worker that reads it
 * answers, or finds that fuse-answer or the parking worker is about to.
 *
 * At the end the workers are gone, and fuse-answer ends when its queue is empty: then
 * all that is in the list of all is answered, whether it was told or not.
 *
 * Locks: the request's (libfuse's), then migration.lock or stream.lock, then
 * parking_lock. Nothing is answered with one of ours held.
 */
#include "parking.h"
#include "cleanup.h"
#include "user.h"

#include <errno.h>

/*
 * For each user and each migration; and for all together, of which everybody leaves as much as he has. Of
 * what a migration has, and of DIRECT_MAX, a user takes twice as much as is left at most, so that
 * one who may only look does not keep its owner from waiting.
 */
#define SHARE_MAX 4096u
#define TOTAL_MAX (4 * SHARE_MAX)
/* Reads with O_DIRECT can be asynchronous, and then hold one of the kernel's places for what is. */
#define DIRECT_MAX 256u

struct parked {
    struct follower follower;    /* first: the core knows it by this */
    struct parked *next, **prev; /* of all */
    struct parked *next_ready;   /* in the queue of fuse-answer */
    fuse_req_t req;
    struct handle *handle; /* the kernel does not close it before the request is answered */
    struct migration *m;
    struct file *file; /* NULL: `wait` */
    size_t size;
    off_t offset;
    int flags;
    parking_answer answer;
    bool direct;
    bool settled, told, interrupted;
};

static pthread_mutex_t parking_lock =
    PTHREAD_MUTEX_INITIALIZER; /* a leaf lock; guards all of what is above and below */
static pthread_cond_t work = PTHREAD_COND_INITIALIZER;
static struct parked *all;
static struct parked *ready, **ready_tail = &ready; /* told, and not answered */
static unsigned count, directs;
static bool stopping; /* nothing is parked any more */
static bool stopped;  /* fuse-answer is gone */
static pthread_t thread;

/* Called with the lock held of the list that it was in. */
static void on_ready(struct follower *follower)
{
    struct parked *p = (struct parked *)follower;

    SCOPED_LOCK(&parking_lock);
    p->told = true;
    if (!p->settled || stopped)
        return;
    p->next_ready = NULL;
    *ready_tail = p;
    ready_tail = &p->next_ready;
    pthread_cond_signal(&work);
}

static bool follow(struct parked *p)
{
    return p->file ? file_follow(p->file, &p->follower) : migration_follow(p->m, &p->follower);
}

static bool unfollow(struct parked *p)
{
    return p->file ? file_unfollow(p->file, &p->follower) : migration_unfollow(p->m, &p->follower);
}

/* Whether a user who has @mine and takes one of @left leaves enough for the others. */
static bool leaves(unsigned mine, unsigned left)
{
    return left && mine + 1 <= 2 * (left - 1);
}

/* Whether there is room for one more. */
static enum cause enlist(struct parked *p)
{
    struct user *user = p->handle->user;

    SCOPED_LOCK(&parking_lock);
    if (stopping)
        return CAUSE_SHUTDOWN;
    unsigned share = TOTAL_MAX - count < SHARE_MAX ? TOTAL_MAX - count : SHARE_MAX;
    if (user->parked >= share || p->m->parked >= share || !leaves(user->parked, SHARE_MAX - p->m->parked) ||
        (p->direct && !leaves(user->directs, DIRECT_MAX - directs)))
        return CAUSE_QUOTA;
    count++;
    directs += p->direct;
    user->directs += p->direct;
    user->parked++;
    p->m->parked++;
    p->next = all;
    p->prev = &all;
    if (all)
        all->prev = &p->next;
    all = p;
    return CAUSE_NONE;
}

/* Called by its owner, after which on_interrupt() does not run any more, but for the one that is the owner.
 */
static void finish(struct parked *p, enum cause cause)
{
    struct parked own = *p;

    pthread_mutex_lock(&parking_lock);
    *p->prev = p->next;
    if (p->next)
        p->next->prev = p->prev;
    count--;
    directs -= p->direct;
    p->handle->user->directs -= p->direct;
    p->handle->user->parked--;
    p->m->parked--;
    pthread_mutex_unlock(&parking_lock);
    free(p);
    own.answer(own.req, own.handle, own.size, own.offset, own.flags, cause);
}

static void on_interrupt(fuse_req_t req, void *data)
{
    struct parked *p = data;

    (void)req;
    pthread_mutex_lock(&parking_lock);
    p->interrupted = true;
    bool settled = p->settled;
    pthread_mutex_unlock(&parking_lock);
    if (settled && unfollow(p))
        finish(p, CAUSE_INTERRUPTED);
}

void parking_park(fuse_req_t req, struct handle *handle, size_t size, off_t offset, int flags,
                  parking_answer answer)
{
    struct parked *p = calloc(1, sizeof(*p));

    if (!p) {
        answer(req, handle, size, offset, flags, CAUSE_NO_MEMORY);
        return;
    }
    *p = (struct parked){
        .follower = {.offset = (uint64_t)offset, .wake = on_ready},
        .req = req,
        .handle = handle,
        .m = handle->node->m,
        .file = handle->node->kind == NODE_DEVICE ? node_file(handle->node) : NULL,
        .size = size,
        .offset = offset,
        .flags = flags,
        .direct = flags & O_DIRECT,
        .answer = answer,
    };
    enum cause cause = enlist(p);
    if (cause != CAUSE_NONE) {
        free(p);
        answer(req, handle, size, offset, flags, cause);
        return;
    }
    fuse_req_interrupt_func(req, on_interrupt, p);
    bool waits = follow(p);
    pthread_mutex_lock(&parking_lock);
    p->settled = waits && !p->told && !p->interrupted;
    bool settled = p->settled;
    pthread_mutex_unlock(&parking_lock);
    if (settled)
        return; /* it is not ours any more */
    unfollow(p);
    fuse_req_interrupt_func(req, NULL, NULL);
    finish(p, p->interrupted ? CAUSE_INTERRUPTED : CAUSE_NONE);
}

/* The next one to be answered; NULL: it is over. */
static struct parked *next_ready(void)
{
    SCOPED_LOCK(&parking_lock);
    while (!ready && !stopping)
        pthread_cond_wait(&work, &parking_lock);
    struct parked *p = ready;
    if (!p)
        return NULL;
    ready = p->next_ready;
    if (!ready)
        ready_tail = &ready;
    return p;
}

static void *fuse_answer(void *arg)
{
    struct parked *p;

    (void)arg;
    pthread_setname_np(pthread_self(), "fuse-answer");
    while ((p = next_ready())) {
        fuse_req_interrupt_func(p->req, NULL, NULL);
        finish(p, CAUSE_NONE);
    }
    return NULL;
}

int parking_start(void)
{
    return -pthread_create(&thread, NULL, fuse_answer, NULL);
}

void parking_stop(void)
{
    pthread_mutex_lock(&parking_lock);
    stopping = true;
    pthread_cond_signal(&work);
    pthread_mutex_unlock(&parking_lock);
    pthread_join(thread, NULL);
    pthread_mutex_lock(&parking_lock);
    stopped = true;
    pthread_mutex_unlock(&parking_lock);
    while (all) {
        struct parked *p = all;
        unfollow(p);
        fuse_req_interrupt_func(p->req, NULL, NULL);
        finish(p, CAUSE_NONE); /* what has nothing to read finds that nothing is parked any more */
    }
}
