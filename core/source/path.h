/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The paths of packets into their channels: for each enum plan_path one set of operations, which the sender
 * calls in the order of struct path.
 *
 * All operations are there; one that has nothing to do is path_nothing_to_make() or
 * path_nothing_to_release().
 */
#ifndef MIGFS_PATH_H
#define MIGFS_PATH_H

#include "connection.h"
#include "file.h"
#include "plan.h"

struct context;
struct gathered;

/* Where the bytes of a write are, and whether the gate has counted them. */
struct path_bytes {
    const char *buf;                 /* those of packets that are copied, kept or made */
    uint64_t offset;                 /* what the first of them stands for */
    int pipe;                        /* PLAN_SPLICED: it has those of the packet and nothing else */
    const char *map;                 /* PLAN_MAPPED: the RAM's file, from its start */
    const struct gathered *gathered; /* PLAN_GATHERED: the parts */
    bool gated;                      /* they are memory of the daemon's: the gate counts them */
};

/* What the packets of a write have in common. */
struct path_write {
    struct connection *conn;
    struct file *file;
    bool checksum;         /* what is made gets one */
    bool eager;            /* the thread that makes it has nothing else to do */
    struct context *lease; /* compressor_pack()'s */
};

/* A packet whose bytes are not copied, from its place in the queue until it is sent. */
struct path_piece {
    const struct path *path;
    struct channel *channel;
    uint64_t offset; /* the packet's */
    struct channel_entry entry;
    /* Of a packet that is made: what of, and the buffers that hold it until it is sent. */
    struct packet packet;
    const char *raw;
    void *gathered, *packed;
};

struct path {
    /*
     * Gives the packet its place, with @share to be given back to the gate when it is sent. The channel's
     * lock is held, and it is open. @piece: the packet's; NULL if it is copied, when room is reserved.
     */
    void (*add)(struct channel *ch, struct file *file, struct packet *packet, const struct path_bytes *bytes,
                uint64_t share, struct path_piece *piece);
    /*
     * Makes the payload, if there is none yet. All packets of the write have their places; no lock is held.
     * It waits for nobody but a context (compressor_pack()), since all that comes after the packet waits for
     * it.
     */
    void (*make)(struct path_write *write, struct path_piece *piece);
    /* The packet has been sent, or dropped: gives back what it was made in. */
    void (*release)(struct path_write *write, struct path_piece *piece);
};

extern const struct path path_copied, path_kept, path_mapped, path_spliced, path_gathered; /* path.c */
extern const struct path path_made;                                                        /* path_made.c */

/** path_count - a packet is as it is sent, and its header's check is @check; the channel's lock is held */
void path_count(struct channel *ch, struct file *file, const struct packet *packet, uint64_t check);

void path_nothing_to_make(struct path_write *write, struct path_piece *piece);
void path_nothing_to_release(struct path_write *write, struct path_piece *piece);

#endif
