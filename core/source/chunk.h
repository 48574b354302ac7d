/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The memory of small packets: they travel together, in slices of chunks. A slice is an entry of the queue; a
 * chunk is used again when none of its slices is.
 *
 * The channel's lock guards it, but for the bytes of slices that are being sent.
 */
#ifndef MIGFS_CHUNK_H
#define MIGFS_CHUNK_H

#include "entry.h"

#define CHUNK_SIZE  (64u << 10)
#define CHUNK_SPARE 4 /* chunks that are kept for the next time */

struct chunk_pool {
    struct chunk *chunk; /* where the next slice is cut from, or NULL */
    struct chunk *free;
    unsigned free_count;
};

/** chunk_reserve - make room for packets; bounded by who asks
 * @packets, @size: how many, and bytes of all of them, headers and all
 * @largest: bytes of one
 *
 * Return: 0 or -ENOMEM.
 */
int chunk_reserve(struct chunk_pool *pool, unsigned packets, size_t size, size_t largest);

/** chunk_has_room - whether @size bytes more fit into the slice that was cut last */
bool chunk_has_room(const struct chunk_pool *pool, size_t size);

/** chunk_cut - a new slice, empty, with room for @size bytes, which are reserved */
struct channel_entry *chunk_cut(struct chunk_pool *pool, size_t size);

/** chunk_take - @size bytes at the end of the slice that was cut last; chunk_has_room() */
char *chunk_take(struct chunk_pool *pool, struct channel_entry *slice, uint32_t size);

/** chunk_retire - a slice is not used any more */
void chunk_retire(struct chunk_pool *pool, struct channel_entry *slice);

/** chunk_fini - free all; no slice is used */
void chunk_fini(struct chunk_pool *pool);

#endif
