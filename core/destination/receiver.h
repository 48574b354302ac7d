/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes to memory: the receiving end of one data channel.
 *
 * Thread mig-recv-N reads the packets of channel N and applies them in their order, each to the
 * file that its header names. It waits for nothing but the next bytes, for its turn to receive them where
 * a rate bounds that (intake.h), and for a decompressor, which another receiver gives back without waiting
 * for anything: never for another channel, a reader or a user. What it has done it publishes as one number,
 * the packets that are applied; barriers
 * are counts that others compare with it (arrival.h).
 *
 * A packet is applied in two parts. The book-keeping needs its header alone: the order, the home,
 * the limits, the received map, the counters. The payload goes from the connection to where it
 * belongs: into a window of the memory, by the transport into the file, or through a buffer. A way
 * that brings payloads by itself replaces the second part and keeps the first.
 *
 * Where connections can be made again, a receiver outlives its own: it waits for another one, over which the
 * stream goes on with the next byte, be it in the middle of a packet.
 *
 * A receiver knows the files by their numbers, and what it may take; it knows no migration.
 */
#ifndef MIGFS_RECEIVER_H
#define MIGFS_RECEIVER_H

#include "budget.h"
#include "catalog.h"
#include "compression.h"
#include "file.h"
#include "intake.h"
#include "transport.h"
#include "xxh3.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define RECEIVER_BUFFER (256u << 10)
#define RECEIVER_MEMORY (RECEIVER_BUFFER + COMPRESSION_RAW_MAX) /* bytes that one can have */

/* What a receiver tells. All of them are there; called in its thread, with no lock held. */
struct receiver_events {
    /* Nothing more comes on this channel, and why; the last thing that is told. CAUSE_RESET: the connection
     * has ended. */
    void (*failed)(void *owner, unsigned channel, const struct error *reason);
    /*
     * The connection is lost. Waits for another one; 0: receiver.transport is that one; negative: there is
     * none, and `failed` follows. NULL: there never is.
     */
    int (*lost)(void *owner, unsigned channel, const struct error *reason);
    /* The count that receiver_aim() has set is applied. Must not wait. */
    void (*reached)(void *owner);
    /* A packet is applied. On the data path. */
    void (*applied)(void *owner);
};

/* What all receivers of a migration have in common; constant while any of them runs. */
struct reception {
    const struct receiver_events *events;
    void *owner; /* for the events */
    const struct catalog *catalog;
    struct decompressor_pool *decompressors;
    struct intake_share *share;   /* of what may be received; NULL: nothing bounds it */
    struct budget *descriptors;   /* a receiver that receives into files has a pipe, if this allows it */
    uint64_t max_ram, max_device; /* the largest size of a file */
    bool resumes;                 /* connections can be made again */
    bool compressed;              /* payloads may be */
    bool checked;                 /* those of RAM have a checksum; those of devices always do */
};

/* A connection that is lost, and may be made again. */
struct loss {
    int64_t since; /* 0: it is there */
    struct error reason;
};

/* Its thread's, but for what is marked. */
struct receiver {
    const struct reception *reception; /* constant */
    unsigned index;                    /* of the channel; constant */
    /*
     * Set before the thread is made, by its maker, whose lock guards it till then. `lost` changes it, in the
     * thread, with that lock held.
     */
    struct transport *transport;
    struct transport *next; /* that is to take its place; guarded by the owner's lock */
    struct loss loss;       /* of the connection; guarded by the owner's lock */
    pthread_t thread;       /* its maker's, like the next one */
    bool running;           /* the thread exists */
    /*
     * Packets applied, and the count that is awaited (0: none). Both sequentially consistent: the receiver
     * publishes its count and then looks at the target, receiver_aim() sets the target and then looks at the
     * count; one of them sees the other.
     */
    _Atomic uint64_t applied, target;
    struct file *_Atomic using;  /* the file of the packet that is applied; see begin_using() */
    _Atomic uint64_t wire_bytes; /* received, headers and all; relaxed */
    _Atomic uint64_t barrier_ns; /* how long it was blocked at barriers; relaxed */
    XXH3_state_t *checker;
    uint8_t *packed;                   /* payloads that are needed whole; made when the first one arrives */
    struct decompressor *decompressor; /* while a packet is unpacked and stored */
    bool has_pipe, no_pipe;            /* a pipe has been charged, or there is nothing left to charge it to */
    uint64_t told; /* of what is applied, the source knows so much, if it places or keeps it */
    bool untold;   /* it must not place over, or keeps, something that it does not know to be applied */
    uint8_t telling[WIRE_APPLIED_SIZE]; /* the end of a count that is half said: so many bytes */
    size_t telling_left;
    _Atomic uint64_t placed_bytes; /* the part of wire_bytes that the source has placed; relaxed */
    size_t start, end;             /* of what is in the buffer */
    size_t ahead;                  /* how much to read when a header is wanted */
    uint8_t *buffer;
};

/** reception_limit - the largest size that a file may have */
static inline uint64_t reception_limit(const struct reception *reception, const struct file *file)
{
    return file->id == WIRE_RAM ? reception->max_ram : reception->max_device;
}

/** receiver_init - of a channel, without a connection */
void receiver_init(struct receiver *r, const struct reception *reception, unsigned index);

/** receiver_start - make its thread; it has a connection */
int receiver_start(struct receiver *r, struct error *err);

/** receiver_join - its connection is shut down, or fails: wait for the end of its thread, if there is one */
void receiver_join(struct receiver *r);

/** receiver_close - give up the connection and all memory, but not what it has counted; no thread runs */
void receiver_close(struct receiver *r);

/** receiver_applied - how many packets are applied; any thread. All that belongs to them is seen, too. */
static inline uint64_t receiver_applied(const struct receiver *r)
{
    return atomic_load(&r->applied);
}

/**
 * receiver_aim - await a count, instead of what was awaited before; one thread
 * @target: 0: none
 * Return: whether it is applied already; then `reached` may not be told.
 */
static inline bool receiver_aim(struct receiver *r, uint64_t target)
{
    atomic_store(&r->target, target);
    return target && receiver_applied(r) >= target;
}

/** receiver_is_awaited - whether a count is awaited that is not applied; any thread */
static inline bool receiver_is_awaited(const struct receiver *r)
{
    return atomic_load(&r->target) != 0;
}

/** receiver_uses - whether it may have a file in use that has been forgotten by the catalog; any thread */
static inline bool receiver_uses(const struct receiver *r, const struct file *file)
{
    return atomic_load(&r->using) == file;
}

#endif
