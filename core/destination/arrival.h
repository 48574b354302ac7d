/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Counts at the destination: what has arrived, and what waits for it.
 *
 * Each channel has a count, the packets that its receiver has applied. What a source says about the
 * data that it has sent comes on the main channel with a vector of such counts, a barrier: a `sync` is
 * to be acknowledged, a stream has ended, a name changes, a manifest can be checked, when every channel
 * has passed its own. Barriers are kept here until then, and so is the manifest; what they release is
 * told through struct arrival_operations. There are neither threads nor connections in here.
 *
 * Nobody waits, and nothing is missed
 *   A receiver has one number to look at for all barriers together, its target. It publishes its count,
 *   looks at the target, and when that is reached sends a wake-up, which takes no lock and waits for
 *   nobody; then it receives on. So no channel ever waits for another one, whatever barriers there are.
 *   The thread that has the arrival does not wait here either: arrival_check() looks at the counts and
 *   returns. Between two calls it waits in its session for messages and wake-ups alike.
 *
 *   No wake-up is lost. The receiver stores its count n and then loads the target; arrival_check() stores
 *   a target T and then loads the count; all four are sequentially consistent, so they have one order. If
 *   the receiver's load comes after the store of T, and n >= T, then it finds T reached and wakes. If it
 *   comes before, its store of n does so all the more, and the load of arrival_check() sees n: it goes
 *   round again. A receiver takes a target back by compare-and-swap, so it takes none that has come in the
 *   meantime; that one was stored after the receiver's load, and is the second case. Both may see it,
 *   which costs a turn that finds nothing.
 *
 *   One target is enough. What was passed is taken before targets are set, and the target of a channel is
 *   the lowest count of the barriers that wait for that channel (barrier_set.h); one that waits for another
 *   channel first has its turn when that one is passed, in a call that looks at this count anew.
 *
 *   No barrier waits for another barrier: each is released when its own counts are passed, and counts only
 *   grow. A change of names waits for those announced before it, because they are made in that order; but
 *   each of them waits for counts alone, so the first one never waits for a later one, and data waits for
 *   none of them. A count that is never reached, because the source promised what it did not send, is for
 *   the owner to find: a receiver that is awaited and stands still (stall.h) fails the migration.
 *
 * Not locked: one thread has it.
 */
#ifndef MIGFS_ARRIVAL_H
#define MIGFS_ARRIVAL_H

#include "barrier_set.h"
#include "budget.h"
#include "catalog.h"
#include "error.h"
#include "wire.h"

#include <stdbool.h>
#include <stdint.h>

/* Where counts come from, and what is told of them. All of them are there. */
struct arrival_operations {
    /* The packets that a channel has applied; never fewer than before. */
    uint64_t (*applied)(void *owner, unsigned channel);
    /* Await a count of a channel instead of the one before, 0: none; whether it is applied already. */
    bool (*aim)(void *owner, unsigned channel, uint64_t target);

    /* All that was sent before `sync` number @id is applied. */
    void (*synced)(void *owner, uint64_t id);
    /* A stream has ended, unless a channel has applied more than @counts. */
    void (*ended)(void *owner, struct file *file, const uint64_t *counts);
    /* Make a change of names, for which all that was sent before it is applied. */
    void (*change)(void *owner, const struct change *change);
    /* No more changes can be made for now. @made: those that were, a list; they are freed afterwards. */
    void (*changed)(void *owner, const struct change *made);
    /* Manifest @id is what has arrived, and nothing else has; negative: it cannot be kept all the same. */
    int (*complete)(void *owner, uint64_t id, struct error *err);
};

/* What the source says it has sent. */
struct manifest {
    uint64_t id;             /* 0: there is none */
    struct barrier *barrier; /* what it is about has not been applied; NULL: it has */
    bool checked;            /* it is true, and the source has been told so */
    uint32_t entries;
    struct manifest_entry *entry; /* in the order of their files */
    uint64_t counts[WIRE_CHANNELS_MAX];
};

struct arrival {
    const struct arrival_operations *operations;
    void *owner;
    struct catalog *catalog;
    struct budget *budget; /* to which barriers are charged beyond those that are free */
    unsigned channels;
    struct barrier_set barriers;
    unsigned syncs;           /* of the barriers */
    unsigned barrier_count;   /* of all that there are */
    struct manifest manifest; /* one at a time: a newer one takes its place */
};

/** arrival_memory - bytes of the barriers that each migration can have without being charged for them */
uint64_t arrival_memory(unsigned channels);

/**
 * arrival_init - nothing has arrived
 * @catalog: the files; the owner announces them, and changes of their names
 * @budget: outlives it, like the catalog and the owner
 * Return: 0 or -ENOMEM. arrival_fini() follows in either case.
 */
int arrival_init(struct arrival *a, unsigned channels, struct catalog *catalog, struct budget *budget,
                 const struct arrival_operations *operations, void *owner);

/** arrival_fini - forget what waits; can be called again */
void arrival_fini(struct arrival *a);

/**
 * arrival_sync, arrival_end, arrival_change - acknowledge, end a stream, or make a change, at a barrier
 * @counts: of each channel
 * @change: in the catalog, and not ripe; NULL, with @err: nothing is done
 * Return: 0; negative with @err: the source asks for too much, or what arrival_check() says.
 */
int arrival_sync(struct arrival *a, uint64_t id, const uint64_t *counts, struct error *err);
int arrival_end(struct arrival *a, struct file *file, const uint64_t *counts, struct error *err);
int arrival_change(struct arrival *a, struct change *change, const uint64_t *counts, struct error *err);

/** arrival_read_counts - a barrier as it is on the wire: a count for each channel */
void arrival_read_counts(const struct arrival *a, struct wire_reader *body,
                         uint64_t counts[WIRE_CHANNELS_MAX]);

/**
 * arrival_on_sync, arrival_on_complete - the source says so, in message @id: arrival_sync(),
 * arrival_manifest()
 *
 * Return: as above, and what makes no sense is refused.
 */
int arrival_on_sync(struct arrival *a, uint64_t id, struct wire_reader *body, struct error *err);
int arrival_on_complete(struct arrival *a, uint64_t id, struct wire_reader *body, struct error *err);

/** arrival_forget_end - there is newer news of a stream than that it was to end */
void arrival_forget_end(struct arrival *a, struct file *file);

/**
 * arrival_manifest - check a manifest when all is applied that it is about
 * @id: not 0
 * @entry: of @entries files, in their order; taken over in any case
 *
 * A source that has gone on meanwhile has made it void. Return: as above.
 */
int arrival_manifest(struct arrival *a, uint64_t id, const uint64_t *counts, struct manifest_entry *entry,
                     uint32_t entries, struct error *err);

/** arrival_forget_manifest - the source has gone on since it sent it */
void arrival_forget_manifest(struct arrival *a);

/**
 * arrival_is_complete - whether manifest @id has been found true, and nothing has come since; 0: no manifest
 */
bool arrival_is_complete(const struct arrival *a, uint64_t id);

/**
 * arrival_check - act on all that is passed, and await what is next
 * Return: 0; negative with @err: what has arrived is not what the source says it has sent.
 */
int arrival_check(struct arrival *a, struct error *err);

#endif
