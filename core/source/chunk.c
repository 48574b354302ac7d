/* SPDX-License-Identifier: Apache-2.0 */
/* The memory of small packets; see chunk.h. */
#include "chunk.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

/* A write can alternate between small and large packets: a chunk serves as many slices as that. */
#define SLICES 64

struct chunk {
    struct chunk *next_free;
    uint32_t used;         /* bytes */
    unsigned slices, live; /* cut, and not retired yet */
    struct channel_entry slice[SLICES];
    char data[CHUNK_SIZE];
};

/* Nothing of it is used: it is kept for the next time. */
static void put_free(struct chunk_pool *pool, struct chunk *chunk)
{
    chunk->next_free = pool->free;
    pool->free = chunk;
    pool->free_count++;
}

int chunk_reserve(struct chunk_pool *pool, unsigned packets, size_t size, size_t largest)
{
    /* A packet that does not fit into the rest of a chunk goes into the next one; each may need a slice of
     * its own. */
    size_t worst = CHUNK_SIZE - largest;
    size_t needed = packets ? size / worst + packets / SLICES + 2 : 0;

    while (pool->free_count < needed) {
        struct chunk *chunk = malloc(sizeof(*chunk));
        if (!chunk)
            return -ENOMEM;
        put_free(pool, chunk);
    }
    return 0;
}

static void recycle(struct chunk_pool *pool, struct chunk *chunk)
{
    if (pool->free_count >= CHUNK_SPARE)
        free(chunk);
    else
        put_free(pool, chunk);
}

bool chunk_has_room(const struct chunk_pool *pool, size_t size)
{
    return pool->chunk && CHUNK_SIZE - pool->chunk->used >= size;
}

struct channel_entry *chunk_cut(struct chunk_pool *pool, size_t size)
{
    struct chunk *chunk = pool->chunk;

    if (!chunk_has_room(pool, size) || chunk->slices == SLICES) {
        struct chunk *full = chunk;
        chunk = pool->free;
        assert(chunk);
        pool->free = chunk->next_free;
        pool->free_count--;
        chunk->used = 0;
        chunk->slices = chunk->live = 0;
        pool->chunk = chunk;
        if (full && full->live == 0)
            recycle(pool, full);
    }
    struct channel_entry *slice = &chunk->slice[chunk->slices++];
    chunk->live++;
    *slice =
        (struct channel_entry){.place = CHANNEL_SLICE, .chunk = chunk, .payload = chunk->data + chunk->used};
    return slice;
}

char *chunk_take(struct chunk_pool *pool, struct channel_entry *slice, uint32_t size)
{
    char *at = pool->chunk->data + pool->chunk->used;

    pool->chunk->used += size;
    slice->length += size;
    return at;
}

void chunk_retire(struct chunk_pool *pool, struct channel_entry *slice)
{
    struct chunk *chunk = slice->chunk;

    if (--chunk->live > 0)
        return;
    if (chunk == pool->chunk) {
        chunk->used = 0;
        chunk->slices = 0;
    } else {
        recycle(pool, chunk);
    }
}

void chunk_fini(struct chunk_pool *pool)
{
    free(pool->chunk);
    pool->chunk = NULL;
    while (pool->free) {
        struct chunk *chunk = pool->free;
        pool->free = chunk->next_free;
        free(chunk);
    }
    pool->free_count = 0;
}
