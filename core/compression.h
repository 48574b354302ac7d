/* SPDX-License-Identifier: Apache-2.0 */
/*
 * zstd, a packet at a time.
 *
 * The source has a few contexts for all channels of a migration, about as many
 * as compress at once on this machine, and buffers for what waits to be sent; both
 * are reused. A thread that gets a context compresses for all that wait for one, before it is
 * given back: to hand it from thread to thread leaves processors idle.
 */
#ifndef MIGFS_COMPRESSION_H
#define MIGFS_COMPRESSION_H

#include "error.h"
#include "wire.h"

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define COMPRESSION_LEVEL_MIN (-100)
#define COMPRESSION_LEVEL_MAX 19

/* The largest payload before compression: the pages of a stripe and a bit for each of them. */
#define COMPRESSION_RAW_MAX (WIRE_STRIPE_SIZE + WIRE_STRIPE_SIZE / WIRE_PAGE_SIZE / 8)

struct compressor;
struct context;

/** compressor_new - contexts for @level; NULL when memory runs out */
struct compressor *compressor_new(int level);
/** compressor_free - nobody uses it or a buffer of it; NULL is fine */
void compressor_free(struct compressor *c);

/** compressor_close - the migration is over: free what is idle now, and what is given back when it comes */
void compressor_close(struct compressor *c);

/** compressor_buffer - a buffer for one payload, packed or not; NULL when memory runs out */
void *compressor_buffer(struct compressor *c);
/** compressor_return - give a buffer back; NULL is fine */
void compressor_return(struct compressor *c, void *buffer);

/**
 * compressor_pack - compress a payload
 * @raw: at most COMPRESSION_RAW_MAX bytes
 * @out: a buffer of compressor_buffer()
 * @eager: of a thread that only compresses and sends. There are as many contexts as processors, and one more
 * for eager threads: the kernel may leave two threads on one processor for milliseconds while another one is
 *         idle, which a thread that waits for a context cannot use
 * @lease: NULL at first; a context, if this thread got one, which it uses again, and gives to
 *         compressor_help() soon: without waiting for anybody, for others wait for it
 *
 * Return: the packed size; 0 when it would not be smaller.
 */
size_t compressor_pack(struct compressor *c, const void *raw, size_t len, void *out, bool eager,
                       struct context **lease);

/** compressor_help - compress what others wait for, and give the lease back; NULL is fine */
void compressor_help(struct compressor *c, struct context *lease);

/* A context, and room for what comes out. */
struct decompressor;

struct decompressor *decompressor_new(void);
void decompressor_free(struct decompressor *d);

/** decompressor_buffer - COMPRESSION_RAW_MAX bytes that belong to it */
void *decompressor_buffer(struct decompressor *d);

/*
 * The decompressors of all receivers of a daemon: twice as many as processors at
 * most, so that their number does not depend on that of the channels. A receiver
 * has one only between two looks at its connection: nobody waits for a peer here.
 */
struct decompressor_pool {
    pthread_mutex_t lock; /* a leaf lock; guards what follows */
    pthread_cond_t returned;
    struct decompressor *idle;
    unsigned count, max;
};

void decompressor_pool_init(struct decompressor_pool *pool);
/** decompressor_pool_trim - free those that nobody has */
void decompressor_pool_trim(struct decompressor_pool *pool);
/** decompressor_pool_fini - all have been returned */
void decompressor_pool_fini(struct decompressor_pool *pool);
/**
 * decompressor_take - get one, which may take until another receiver is done; NULL: there is no memory for
 * the first one
 */
struct decompressor *decompressor_take(struct decompressor_pool *pool);
/** decompressor_return - give it back; NULL is fine */
void decompressor_return(struct decompressor_pool *pool, struct decompressor *d);

/**
 * decompressor_unpack - the other way round
 * @out: gets exactly @raw_len bytes
 *
 * CAUSE_PROTOCOL when the payload is no frame, or unpacks to another size; never
 * writes past @raw_len.
 */
int decompressor_unpack(struct decompressor *d, const void *packed, size_t len, void *out, size_t raw_len,
                        struct error *err);

#endif
