/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The handles that wait in poll(2); see polling.h.
 *
 * Locks: poll_lock, then whatever the readiness of a file takes
 * (migration.lock, stream.lock). A waiter is listed before it is looked at, and
 * looked at after every change, so that no change is missed.
 */
#include "polling.h"
#include "cleanup.h"

#include <poll.h>

static pthread_mutex_t poll_lock = PTHREAD_MUTEX_INITIALIZER;
static struct handle *waiting; /* guarded by poll_lock */
static atomic_uint count;      /* how many that are; written with the lock held */

static unsigned ready_events(struct handle *handle)
{
    struct node *node = handle->node;
    struct migration *m = node->m;
    char verdict[MIGRATION_VERDICT_MAX];

    switch (node->kind) {
    case NODE_STATUS:
    case NODE_STATUS_JSON:
        return migration_generation(m) != handle->generation ? POLLIN | POLLRDNORM | POLLPRI : 0;
    case NODE_WAIT:
        return migration_is_over(m, verdict) ? POLLIN | POLLRDNORM : 0;
    case NODE_DEVICE:
        if (migration_is_outgoing(m) || (handle->writer && !migration_is_incoming(m)))
            return POLLOUT | POLLWRNORM;
        return file_readable(node_file(node), handle->position) ? POLLIN | POLLRDNORM : 0;
    default:
        return POLLIN | POLLRDNORM | POLLOUT | POLLWRNORM;
    }
}

/*
 * Whether somebody can wait for it. io_uring asks hundreds of times for each buffered write to a file that is
 * always ready.
 */
static bool is_changing(const struct node *node)
{
    switch (node->kind) {
    case NODE_STATUS:
    case NODE_STATUS_JSON:
    case NODE_WAIT:
        return true;
    case NODE_DEVICE:
        return !migration_is_outgoing(node->m);
    default:
        return false;
    }
}

/* Only a stream changes with every packet. */
static void count_watcher(const struct handle *handle, int n)
{
    atomic_fetch_add(&count, n);
    if (handle->node->kind == NODE_DEVICE)
        atomic_fetch_add(&handle->node->m->watchers, n);
}

/* Called with poll_lock held. */
static void unlist(struct handle *handle)
{
    struct handle **p = &waiting;

    if (!handle->ph)
        return;
    while (*p != handle)
        p = &(*p)->next_waiting;
    *p = handle->next_waiting;
    fuse_pollhandle_destroy(handle->ph);
    handle->ph = NULL;
    count_watcher(handle, -1);
}

unsigned poll_check(struct handle *handle, struct fuse_pollhandle *ph)
{
    if (!handle->node->m || !is_changing(handle->node)) {
        if (ph)
            fuse_pollhandle_destroy(ph);
        return ready_events(handle);
    }
    SCOPED_LOCK(&poll_lock);
    if (ph) {
        unlist(handle);
        handle->ph = ph;
        handle->next_waiting = waiting;
        waiting = handle;
        count_watcher(handle, 1);
    }
    unsigned events = ready_events(handle);
    if (events)
        unlist(handle);
    return events;
}

void poll_forget(struct handle *handle)
{
    SCOPED_LOCK(&poll_lock);
    unlist(handle);
}

void poll_forget_all(void)
{
    SCOPED_LOCK(&poll_lock);
    while (waiting)
        unlist(waiting);
}

void poll_changed(struct migration *m)
{
    if (!atomic_load(&count))
        return;
    SCOPED_LOCK(&poll_lock);
    for (struct handle *handle = waiting, *next; handle; handle = next) {
        next = handle->next_waiting;
        if (handle->node->m == m && ready_events(handle)) {
            fuse_lowlevel_notify_poll(handle->ph);
            unlist(handle);
        }
    }
}
