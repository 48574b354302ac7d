/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The parts of the destination's RAM that this connection may write by itself.
 *
 * Theory of operation
 *   The image is cut into chunks. Before a payload is placed, its chunk is asked for on the
 *   main channel (WIRE_EXPOSE); the destination pins it and answers with a key
 *   (WIRE_EXPOSED), or says that it can pin no more. The next chunk is asked for at the same
 *   time, so that the destination pins it while this one is sent.
 *
 *   When the destination can pin no more, or as many are exposed as it allows, the chunk that
 *   was used longest ago, and of which nothing is in flight, is given back (WIRE_WITHDRAW): the
 *   main channel has an order, so the next request comes after that. When there is none to give
 *   back, the payload goes through the stream, as on a transport that does not place. So it does
 *   where a chunk is refused once more after another one has made room for it: that is about this
 *   chunk, and the others keep their places.
 *
 *   A key is used from the moment that a packet gets its place until its write is complete
 *   (placing_use(), placing_unuse()); until then its chunk stays.
 *
 * Lock: placing.lock, under channel.lock, and a leaf but that the main channel's send_lock is taken
 * while it is held; so what is said of a chunk has the order in which it was decided.
 */
#ifndef MIGFS_PLACING_H
#define MIGFS_PLACING_H

#include "interrupt.h"
#include "placing_figures.h"
#include "session.h"
#include "transport.h"
#include "wire.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define PLACING_AHEAD 1u /* chunks that are asked for before they are needed */
#define PLACING_TRIES 2u /* a chunk that was refused as often is not asked for again */

enum placing_state { PLACING_NONE, PLACING_ASKED, PLACING_EXPOSED };

struct placing_chunk {
    enum placing_state state;
    unsigned users;           /* payloads in flight */
    uint64_t used;            /* when it was last taken */
    uint64_t len;             /* bytes from its start that are exposed */
    struct transport_key key; /* PLACING_EXPOSED */
    unsigned refusals;        /* since it was exposed last */
    unsigned most;            /* placing.most before the first of them */
};

struct placing {
    struct session *main; /* constant */
    uint64_t chunk_size;  /* bytes, a multiple of a stripe; constant */

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t changed;
    bool closed; /* the connection is over: nobody waits */
    struct placing_chunk *chunks;
    uint64_t count; /* of them there is a struct */
    uint64_t clock;
    unsigned held;    /* asked for or exposed */
    unsigned pending; /* asked for */
    uint64_t users;   /* of all chunks */
    bool withdrawing; /* placing_withdraw_all() waits for them */
    unsigned most;    /* how many may be held: so many could be had */
    struct placing_figures figures;
};

/** placing_init - nothing is exposed. @chunk_size: a power of two, and a stripe at least */
void placing_init(struct placing *p, struct session *session, uint64_t chunk_size);
void placing_fini(struct placing *p);

/**
 * placing_want - have the chunk of [@offset, @offset + @len) exposed, if that can be
 * @size: the image ends there, or nobody knows (0)
 *
 * Waits for the destination's answer. Return: 0, whatever that is; -EINTR; -ECANCELED: the connection is
 * over.
 */
int placing_want(struct placing *p, uint64_t offset, uint64_t len, uint64_t size,
                 const struct interrupt *interrupt);

/**
 * placing_pin - ask for all chunks of an image of @size bytes at once, and wait for nothing
 *
 * The caller reads the answers until placing_is_answer_due() says no.
 */
void placing_pin(struct placing *p, uint64_t size);

/** placing_is_pinned - whether all of an image is exposed */
bool placing_is_pinned(struct placing *p, uint64_t size);

/**
 * placing_use - the key of [@offset, @offset + @len), if it is exposed
 * @at: where in what the key stands for
 *
 * On success the chunk stays until placing_unuse().
 */
bool placing_use(struct placing *p, uint64_t offset, uint64_t len, struct transport_key *key, uint64_t *at);
void placing_unuse(struct placing *p, uint64_t offset);

/**
 * placing_withdraw_all - give all chunks back, when what is asked for is answered, and nobody uses one any
 * more; nothing is placed meanwhile
 *
 * Return: 0; -EINTR, with nothing given back.
 */
int placing_withdraw_all(struct placing *p, const struct interrupt *interrupt);

/** placing_on_exposed - WIRE_EXPOSED; the reader's */
int placing_on_exposed(struct placing *p, struct wire_reader *body, struct error *err);

/** placing_close - the connection is over: nobody waits any more */
void placing_close(struct placing *p);
/** placing_kick - make those that wait look at their interrupts */
void placing_kick(struct placing *p);

/** placing_is_answer_due - whether the destination owes an answer; any thread */
bool placing_is_answer_due(struct placing *p);

struct placing_figures placing_figures(struct placing *p);

#endif
