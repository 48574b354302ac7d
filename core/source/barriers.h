/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Barriers of the source: flush and sync, and the rounds of the RAM between them.
 *
 * Theory of operation
 *   A barrier is a vector of counts: the number of the last packet accepted on
 *   each channel. `flush` waits until the packets have left; `sync` sends the
 *   vector and waits until the destination says that it has applied that many.
 *   Nothing about a barrier travels on a data channel, so no channel waits for another one.
 *
 *   A sync covers the names of the devices, too: a renaming that was asked for before it has been made.
 *   A sync of the RAM ends a round.
 *
 * All of it is guarded by migration.lock.
 */
#ifndef MIGFS_BARRIERS_H
#define MIGFS_BARRIERS_H

#include "source.h"
#include "streams.h"

struct barriers {
    struct source *source;         /* constant */
    const struct streams *streams; /* constant */
    struct sync_waiter *waiters;
    unsigned unanswered;      /* syncs, whether somebody still waits for them or not */
    struct round round_start; /* the sums when the current round began */
};

void barriers_init(struct barriers *barriers, struct source *source, const struct streams *streams);
/** barriers_forget - it starts anew, and nobody waits; the caller holds migration.lock */
void barriers_forget(struct barriers *barriers);

/** barriers_flush - outgoing_flush() */
int barriers_flush(struct barriers *barriers, struct file *file, const struct interrupt *interrupt,
                   struct error *err);

/** barriers_sync - outgoing_sync() */
int barriers_sync(struct barriers *barriers, struct file *file, const struct interrupt *interrupt,
                  struct error *err);

/* What the destination says: it has applied what the sync with this id is about. */
void barriers_on_ack(struct barriers *barriers, uint64_t id);

/** barriers_is_answer_due - whether somebody waits for an answer of the destination's; the caller holds
 * migration.lock */
bool barriers_is_answer_due(const struct barriers *barriers);

#endif
