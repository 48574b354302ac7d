/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `complete`: the final barrier, the check, and the hand-over to the destination.
 *
 * Theory of operation
 *   The channels are sealed, so that nothing more is accepted, and drained; the manifest with
 *   the final counts goes out. The destination applies all, checks, and says `prepared`. With
 *   `verify`, both ends compare the RAM. Up to here an interrupt, or want of memory, takes the
 *   migration back to active.
 *
 *   Then the source says `commit`, and there is no way back: only the destination knows what
 *   became of it. It completes and says `committed`, and the source completes. Should the
 *   connection be lost meanwhile, the source connects once more and asks; if it cannot learn
 *   it, the migration fails with a sentence that says so.
 *
 * All of it is guarded by migration.lock.
 */
#ifndef MIGFS_HANDOVER_H
#define MIGFS_HANDOVER_H

#include "question.h"
#include "source.h"
#include "streams.h"

struct handover {
    struct source *source;     /* constant */
    struct streams *streams;   /* constant */
    struct question *question; /* constant */
    uint64_t prepared_id;      /* the last manifest that the destination has everything of */
    uint64_t manifest_id;      /* the last manifest that was sent */
    uint64_t commit_id;        /* not 0: the manifest that the destination has been told to complete */
};

void handover_init(struct handover *handover, struct source *source, struct streams *streams,
                   struct question *question);
/** handover_forget - it starts anew; the caller holds migration.lock */
void handover_forget(struct handover *handover);

/** handover_complete - outgoing_complete() */
int handover_complete(struct handover *handover, const struct interrupt *interrupt, struct error *err);

/** handover_is_committing - the destination has been told to complete, and has not answered; the caller holds
 * migration.lock */
bool handover_is_committing(const struct handover *handover);

/** handover_delay - the main channel has been made again: the destination has its time to answer once more */
void handover_delay(struct handover *handover);

/**
 * handover_resolve - the connection was lost after the commit: ask the destination what became of the
 * migration, and end it
 * @lost: why it was lost
 *
 * In the thread that read the main channel; with no lock held.
 */
void handover_resolve(struct handover *handover, struct connection *conn, const struct error *lost);

/* What the destination says. */
void handover_on_prepared(struct handover *handover, uint64_t id);
int handover_on_committed(struct handover *handover, uint64_t id, struct error *err);

/** handover_is_answer_due - whether somebody waits for an answer of the destination's; the caller holds
 * migration.lock */
bool handover_is_answer_due(const struct handover *handover);

#endif
