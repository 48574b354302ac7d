/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A transport that places, in one process: a layer on any other connection.
 *
 * What a card does is imitated at its worst. A payload is read and stored as late as it may be, just before the
 * next thing that is sent after it, and its ticket comes back later still, one or none at a time. Until then the
 * bytes may not change (the card could have to send them again), and the key may not be withdrawn.
 *
 * For whole migrations, `rdma:` stands for this here, over TCP: a test that is linked with it gets no other RDMA.
 */
#ifndef MIGFS_TEST_PLACER_H
#define MIGFS_TEST_PLACER_H

#include "transport.h"

/* Of all connections of the process. */
struct placer {
    /* What the test wants: */
    bool hold;         /* no ticket comes back, but when a connection is shut down */
    bool copied;       /* @place copies: no buffer is lent */
    bool free_buffers; /* those whose buffers change in flight are no violation: RAM by reference */
    unsigned most;     /* keys that there may be; another one is refused */
    unsigned break_at; /* this call of @place fails, counted from 1; 0: none does */
    /* What has happened: */
    unsigned keys;       /* there are now */
    unsigned exposes;    /* that went well */
    unsigned refusals;   /* of @expose */
    unsigned places;     /* calls */
    unsigned placed;     /* of them: stored */
    unsigned violations; /* a key that is not there, or was withdrawn in flight; a buffer that changed */
    uint64_t placed_bytes;
};

/** placer_begin - nothing is exposed, everything is allowed */
void placer_begin(void);

/** placer_wrap - have a connection place; under the same pointer */
void placer_wrap(struct transport *t);

/** placer_get - the state; placer_set - change what the test wants of it */
struct placer placer_get(void);
void placer_set(const struct placer *want);

#endif
