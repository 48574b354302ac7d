/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The barriers that a destination keeps until they are passed.
 *
 * A barrier has a count for each channel, and is passed when every channel has
 * applied as many packets. It waits for one channel at a time: for the first that
 * has not passed its count. What a channel has applied only grows, so a channel
 * that was passed need not be looked at again: a barrier costs one step for each
 * channel, and where it waits it stands in a heap, ordered by the counts of that
 * channel, whose top is all that the channel has to know.
 *
 * Not locked: the thread of the migration has it.
 */
#ifndef MIGFS_BARRIER_SET_H
#define MIGFS_BARRIER_SET_H

#include "wire.h"

#include <stdint.h>

struct change;
struct file;

struct barrier {
    enum wire_message_type type; /* these four are the caller's */
    uint64_t id;
    struct file *file;
    struct change *change;

    uint64_t number; /* in the order in which they were added */
    /* that it stands in: the channel that it waits for; the number of channels: none any more */
    unsigned heap;
    struct barrier *child, *next, *previous; /* in the heap; @previous of a first child is its parent */
    uint64_t counts[];                       /* one for each channel */
};

struct barrier_set {
    unsigned channels, count;
    uint64_t added;
    struct barrier **heaps; /* one for each channel, and one for those that are passed */
};

/** barrier_size - the bytes of a barrier */
static inline size_t barrier_size(unsigned channels)
{
    return sizeof(struct barrier) + channels * sizeof(uint64_t);
}

/** barrier_new - a barrier whose counts are 0; NULL when memory runs out. free() frees it. */
struct barrier *barrier_new(unsigned channels);

/** barrier_set_init - an empty set; 0 or -ENOMEM */
int barrier_set_init(struct barrier_set *set, unsigned channels);
/** barrier_set_fini - free the set, and what is in it */
void barrier_set_fini(struct barrier_set *set);

/** barrier_set_add - the barrier is the set's from now on */
void barrier_set_add(struct barrier_set *set, struct barrier *barrier);

/** barrier_set_remove - take a barrier out that has not been taken; it is the caller's again */
void barrier_set_remove(struct barrier_set *set, struct barrier *barrier);

/**
 * barrier_set_take - take the oldest of the barriers that are passed
 * @applied: how many packets each channel has applied; no fewer than at the last call
 *
 * Return: the barrier, which is the caller's, or NULL.
 */
struct barrier *barrier_set_take(struct barrier_set *set, const uint64_t *applied);

/** barrier_set_target - the count of a channel at which barrier_set_take() has something to do; 0: none */
uint64_t barrier_set_target(const struct barrier_set *set, unsigned channel);

#endif
