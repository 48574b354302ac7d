/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `precopy`: rounds of a running VM's RAM until the switch-over would be short enough.
 *
 * Theory of operation
 *   A round asks for all of the RAM by reference, of which only what has changed since it was sent last is
 *   sent again (tracking.h), and ends with a barrier. What follows after the last one, with the VM stopped,
 *   is one round more, by `complete`. So its time is estimated from the round that has just ended:
 *
 *     a look at all of the memory, which took as long in this round,
 *     + what the guest has changed since it was looked at in this round, sent as fast as the rounds were,
 *     + the time of a barrier with nothing to send.
 *
 *   The guest changes as much in a time as it did between the last two looks. The first round finds
 *   everything changed, so the second one is the first that can tell.
 *
 *   Where nobody compares, or the RAM is pushed, there is nothing to find: one barrier, and what was asked
 * for is sent.
 *
 * Guarded by migration.lock.
 */
#ifndef MIGFS_PRECOPY_H
#define MIGFS_PRECOPY_H

#include "barriers.h"
#include "source.h"

struct precopy {
    struct source *source;     /* constant */
    struct barriers *barriers; /* constant */
    bool running;
    unsigned slow_looks; /* of the last rounds, those whose look at the memory alone took too long */
    double bytes_per_ms; /* that the last round which sent much has put on the wire, while it did not scan */
};

void precopy_init(struct precopy *precopy, struct source *source, struct barriers *barriers);
/** precopy_forget - it starts anew; the caller holds migration.lock */
void precopy_forget(struct precopy *precopy);

/** precopy_run - outgoing_precopy() */
int precopy_run(struct precopy *precopy, const struct interrupt *interrupt, struct error *err);

/**
 * precopy_estimate - how long a switch-over after a round would take, in milliseconds
 * @last: the round
 * @interval_ms: from its start back to the one's before
 * @bytes_per_ms: what the channels carry
 * @barrier_ms: of a barrier alone
 */
double precopy_estimate(const struct precopy_round *last, double interval_ms, double bytes_per_ms,
                        double barrier_ms);

#endif
