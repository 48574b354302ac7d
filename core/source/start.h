/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `start`: from the settings to a connection whose files are announced.
 *
 * Theory of operation
 *   The thread that says `start` connects, and reads the main channel itself until the destination has
 *   answered about every file. Then it makes the role's thread, mig-out, which waits (start_await_launch())
 *   until it is decided whether the migration becomes active: a `cancel` can come until that moment.
 *   An attempt that failed can be made again; a `start` that was cancelled is still on its way out
 *   for a while (source_is_leaving()), and the next one, and all who want to change what it uses, wait for
 * it.
 *
 * Guarded by migration.lock.
 */
#ifndef MIGFS_START_H
#define MIGFS_START_H

#include "source.h"
#include "streams.h"

/* What the role does for it; @role is start.role. */
struct start_operations {
    /* Nothing has been said to a destination yet: forget the last attempt. migration.lock is held. */
    void (*forget)(void *role);
    /* Read the main channel once, until @deadline_ms at the latest: session_step(). */
    int (*step)(void *role, struct connection *conn, int64_t deadline_ms, struct error *err);
    /* The role's thread: gets the migration with a reference, and calls start_await_launch() first. */
    void *(*thread)(void *m);
};

/* What the role's thread, which is made before it is known whether the migration becomes active, is to do. */
enum launch { LAUNCH_WAIT, LAUNCH_GO, LAUNCH_LEAVE };

struct start {
    struct source *source;                     /* constant */
    struct streams *streams;                   /* constant */
    const struct start_operations *operations; /* constant */
    void *role;                                /* constant */
    enum launch launch;
};

void start_init(struct start *start, struct source *source, struct streams *streams,
                const struct start_operations *operations, void *role);

/** start_run - outgoing_start() */
int start_run(struct start *start, const struct interrupt *interrupt, struct error *err);

/** start_await_launch - wait until it is decided. False: it was in vain, and the thread of `start` looks
 * after the rest. */
bool start_await_launch(struct start *start);

#endif
