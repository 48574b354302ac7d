/* SPDX-License-Identifier: Apache-2.0 */
/* What is in the queue of a channel (channel.h): a packet, or several small ones. */
#ifndef MIGFS_ENTRY_H
#define MIGFS_ENTRY_H

#include "transport.h"
#include "wire.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct chunk;

/* Where the bytes are that an entry sends. */
enum channel_place {
    CHANNEL_MEMORY, /* the header in the entry, the payload in its owner's buffer */
    CHANNEL_SLICE,  /* in a chunk, headers and all; nobody owns the entry */
    CHANNEL_PIPE,   /* the header in the entry, the payload in a pipe */
    CHANNEL_PARTS,  /* the header in the entry, the payload in parts of its owner's */
};

/*
 * A place in the queue. A large packet's entry lives on its owner's stack until
 * channel_finish_entry(). Small packets that follow one another are a slice of a chunk,
 * which has the entries of its slices.
 */
struct channel_entry {
    struct channel_entry *next;
    enum channel_place place;
    struct wire_packet header; /* of a large packet */
    struct chunk *chunk;       /* CHANNEL_SLICE */
    const void *payload;       /* CHANNEL_MEMORY, and the bytes of a CHANNEL_SLICE */
    int pipe;                  /* CHANNEL_PIPE */
    const struct iovec *parts; /* CHANNEL_PARTS: so many */
    unsigned part_count;
    bool stays;  /* CHANNEL_MEMORY: the payload is there, as it may be then, as long as the channel */
    bool orphan; /* CHANNEL_MEMORY: a copy that is kept, and nobody's */
    uint32_t
        skip; /* of an orphan: bytes, of the header and then of the payload, that need not be sent again */
    struct channel_entry *copy; /* of an entry that has been sent, while it is sent: what is kept of it */
    bool placed;                /* CHANNEL_MEMORY: the payload is placed, and then the header is sent */
    struct transport_key key;   /* where, if it is: @key_offset bytes into what it stands for */
    uint64_t key_offset;
    uint32_t length;        /* of the payload, or of the slice */
    uint64_t bytes;         /* what the gate is given back when it is sent */
    uint64_t last_sequence; /* of its last packet */
    /* Guarded by channel.lock: */
    bool unmade;         /* its owner still makes the payload: nothing from here on is sent */
    bool in_flight;      /* sent, but for the buffer, which is not back */
    uint64_t ticket;     /* with which it comes back; 0: it is not out */
    bool done;           /* sent and back, or dropped */
    bool waiting;        /* the owner sleeps on wake */
    bool chosen;         /* the owner is the sender now */
    pthread_cond_t wake; /* initialised while waiting */
};

#endif
