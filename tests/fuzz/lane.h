/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections whose other end is the fuzzer: a transport that hands out what the
 * driver has put there, and checks what is sent to it.
 *
 * lane_settle() makes runs repeatable: it returns when the thread that reads a
 * lane has taken all of it and has come back for more, so that whatever the
 * bytes do has been done.
 */
#ifndef MIGFS_FUZZ_LANE_H
#define MIGFS_FUZZ_LANE_H

#include "transport.h"

#include <pthread.h>
#include <stdbool.h>

struct lane {
    struct transport base;
    pthread_mutex_t lock; /* guards the rest */
    pthread_cond_t moved;
    uint8_t *bytes;
    size_t at, have, room;
    size_t slice;          /* no receive gives more, and no send takes more; constant */
    uint8_t said[1 << 17]; /* what was sent and is not a whole message yet */
    size_t heard;
    bool greeted;          /* the answer to the hello has been sent */
    bool busy, full; /* busy: whether `full` changes with every send; constant */
    int fd; /* an eventfd: readable when a receive would have something to say, or while the driver waits */
    bool readable;
    bool eof, shut, closed;
    bool waiting;   /* the reader has taken everything and waits in recv */
    bool over;      /* the reader was told of the end */
    uint64_t told; /* the last count of applied packets, on a lane that places */
    unsigned turns; /* how often a reader that does not wait found nothing */
    unsigned wanted;
};

/** lane_init - @slice: no receive gives more, 0: any; @busy: every other send finds no room */
void lane_init(struct lane *lane, size_t slice, bool busy);
void lane_fini(struct lane *lane);

/** lane_places - the driver can write what the destination exposes; before it is used */
void lane_places(struct lane *lane);
/** lane_exposed - where [@offset, @offset + @len) of the RAM is, if it is exposed, and the driver was told; or NULL */
uint8_t *lane_exposed(uint64_t offset, size_t len);
/** lane_exposure - the @n-th range that is exposed. Return: whether there is one */
bool lane_exposure(unsigned n, uint64_t *offset, uint64_t *len);
/** lane_keys - how many there are */
unsigned lane_keys(void);

/** lane_put - bytes arrive */
void lane_put(struct lane *lane, const void *bytes, size_t len);
/** lane_end - and nothing more */
void lane_end(struct lane *lane);
/** lane_settle - wait until all has been taken and acted on, or nobody reads any more */
void lane_settle(struct lane *lane);
/** lane_wait_closed - wait until the migration has closed it */
void lane_wait_closed(struct lane *lane);

#endif
