/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The channels that the stripes of a file go round. A stripe has a home: the one channel that carries
 * everything about it, in order.
 */
#ifndef MIGFS_HOMES_H
#define MIGFS_HOMES_H

#include "wire.h"

#include <stdbool.h>
#include <stdint.h>

struct homes {
    uint32_t turn;  /* the file's id: the first stripes of small files go round, too */
    unsigned first; /* of the channels */
    unsigned count;
};

/** homes_of - the channel that carries the stripe at @offset */
static inline unsigned homes_of(const struct homes *homes, uint64_t offset)
{
    return homes->first + (unsigned)((offset / WIRE_STRIPE_SIZE + homes->turn) % homes->count);
}

/** homes_has - whether a channel carries anything */
static inline bool homes_has(const struct homes *homes, unsigned channel)
{
    return channel >= homes->first && channel - homes->first < homes->count;
}

/** homes_bytes - how much of [offset, offset + len) a channel carries */
uint64_t homes_bytes(const struct homes *homes, unsigned channel, uint64_t offset, uint64_t len);

#endif
