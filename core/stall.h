/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether what is waited for still moves.
 *
 * A connection can be alive and carry nothing: behind a tunnel that acknowledges
 * what it does not pass on, or where a byte was lost. So both ends look from time to
 * time at marks, numbers that change when something moves, of all that they wait
 * for. What is waited for and has not moved for the limit has stalled.
 *
 * Time counts as far as this side was there to look: it adds up from look to look,
 * two steps at most each time. A process that was stopped, or a machine that was
 * suspended, has not seen the others stand still.
 *
 * One thread uses a watch.
 */
#ifndef MIGFS_STALL_H
#define MIGFS_STALL_H

#include "wire.h"

#include <stdbool.h>
#include <stdint.h>

#define STALL_MAX (WIRE_CHANNELS_MAX + 1) /* all channels, and one thing more */

/* One thing, as it is at a look. */
struct stall_sight {
    bool awaited;
    uint64_t mark; /* the sum of counters that only grow */
};

struct stall_watch {
    int64_t limit_ms, step_ms;
    int64_t last_ms; /* of the last look; 0: there was none */
    struct {
        uint64_t mark;
        int64_t still_ms; /* how long it has been awaited without moving */
    } seen[STALL_MAX];
};

/**
 * stall_init - nothing has been looked at
 * @limit_ms: how long what is awaited may stand still
 * @step_ms: between two looks; a mark may come that much later than what it stands for
 */
void stall_init(struct stall_watch *watch, int64_t limit_ms, int64_t step_ms);

/** stall_is_due - whether to look again at @now_ms */
bool stall_is_due(const struct stall_watch *watch, int64_t now_ms);

/**
 * stall_look - note how things are at @now_ms
 * @sights: @n of them, STALL_MAX at most, always the same ones in the same order
 *
 * Return: the first one that has stalled, or -1.
 */
int stall_look(struct stall_watch *watch, int64_t now_ms, const struct stall_sight *sights, unsigned n);

#endif
