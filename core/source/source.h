/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the parts of the source's role have in common: the migration, its connection, its
 * RAM by reference, the `start` that runs, and what the migration is lost for.
 *
 * The parts (see outgoing.h) keep a pointer to it. They wait on
 * migration.changed, and what they keep is guarded by migration.lock.
 */
#ifndef MIGFS_SOURCE_H
#define MIGFS_SOURCE_H

#include "again.h"
#include "connection.h"
#include "migration.h"
#include "plan.h"
#include "reference.h"

struct source {
    struct migration *m; /* constant */
    /*
     * NULL until the migration is active, and then there until the migration is freed, whatever becomes of
     * it: so a thread that loads it with acquire (source_connection()) may use it without a lock.
     */
    struct connection *_Atomic connection;
    /*
     * Of the RAM, or NULL. Changed with migration.lock held: at will before the
     * start, after it once, from NULL.
     */
    struct reference *_Atomic reference;
    /* Of the RAM, or NULL: it is not compared. Made by `start`, and there until the next one. */
    struct tracking *tracking;
    struct again
        again; /* of the connection that there is, or opens; who opens it, and then its reader, has it */

    /* Guarded by migration.lock: */
    bool sized_by_reference; /* the size of RAM is its file's, nobody has declared it */
    struct connection
        *opening;  /* has its channels, but the files are still announced; the thread of `start` changes it */
    int cancel_fd; /* an eventfd, readable when the thread of `start`, or a last question, is to give up; -1:
                      there is none */
    const struct interrupt *starter; /* of the `start` that runs */
    /* A `start` has not left, though it may have been cancelled: it uses the settings, the files and
     * @opening. */
    bool starting;
    /* If nothing else comes before @doom_at, the migration is lost for this reason. */
    struct error doom;
    int64_t doom_at;
};

void source_init(struct source *source, struct migration *m);
/** source_fini - nobody else knows the migration any more */
void source_fini(struct source *source);

/** source_connection - the migration's; NULL: it has not become active */
static inline struct connection *source_connection(const struct source *source)
{
    return atomic_load_explicit(&source->connection, memory_order_acquire);
}

/** source_rules - by which rules a file's bytes become packets of a connection */
struct plan_rules source_rules(const struct source *source, const struct connection *conn,
                               const struct file *file);

/** source_allows - migration_allows() for a caller without the lock */
int source_allows(struct source *source, enum command command, struct error *err);

/**
 * source_doom - the migration is lost for @reason, unless it ends otherwise within @delay_ms
 *
 * The caller holds migration.lock, and the migration has left setup. The
 * earliest doom stands. After the commit, the destination is asked first.
 */
void source_doom(struct source *source, const struct error *reason, int64_t delay_ms);

/**
 * source_await_verdict - a caller found a channel closed: wait until it is clear what that means
 * @command: what it was about to do
 *
 * A migration that is doomed fails first. No lock is held. Return: 0: it goes on, try again; else why not.
 */
int source_await_verdict(struct source *source, enum command command, const struct interrupt *interrupt,
                         struct error *err);

/**
 * source_drain_reference - wait until the RAM that was asked for by reference has its place in the order
 * @file: the one that it matters for; NULL: all of them. For a device nothing is waited for.
 */
int source_drain_reference(struct source *source, const struct file *file, const struct interrupt *interrupt,
                           struct error *err);

/** source_interrupt_start - what waits for @cancel_fd gives up; the caller holds migration.lock */
void source_interrupt_start(struct source *source);
/** source_close_cancel - nothing waits for it any more; the caller holds migration.lock */
void source_close_cancel(struct source *source);

/** source_wake_reader - make the thread that reads the main channel look around; the caller holds
 * migration.lock */
void source_wake_reader(struct source *source);

/** source_is_leaving - whether a `start` that was cancelled is still on its way out; the caller holds
 * migration.lock */
bool source_is_leaving(const struct source *source);

/** source_await_starter - wait until it is gone; the caller holds migration.lock, which is given up meanwhile
 */
int source_await_starter(struct source *source, const struct interrupt *interrupt, struct error *err);

/** source_is_unstarted - whether it can be started, and nothing uses its settings; the caller holds
 * migration.lock */
bool source_is_unstarted(const struct source *source);

/**
 * source_settings_writable - whether settings can be changed now; the caller holds migration.lock
 *
 * Waits, with the lock given up, for a `start` that was cancelled and still uses them.
 */
int source_settings_writable(struct source *source, const struct interrupt *interrupt, struct error *err);

#endif
