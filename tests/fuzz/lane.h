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
#include "wire.h"

#include <pthread.h>
#include <stdbool.h>

struct lane {
    struct transport base;
    pthread_mutex_t lock; /* guards the rest */
    pthread_cond_t moved;
    uint8_t *bytes;
    size_t at, have, room;
    uint64_t taken; /* by readers; of a data channel that is made again: of all its lanes so far */
    uint64_t end;   /* when so many are taken, receives say: */
    int end_code;
    size_t slice;       /* no receive gives more, and no send takes more; constant */
    uint8_t said[2048]; /* what was sent and is not a whole message yet */
    size_t said_length;
    bool greeted; /* the answer to the hello has been sent: */
    struct hello_reply reply;
    bool resumes;    /* a data channel that tells what is applied; what does not arrive is kept; constant */
    bool busy, full; /* busy: whether `full` changes with every send; constant */
    bool mute, deaf; /* what is sent gets lost; nothing can be sent */
    int fd; /* an eventfd: readable when a receive would have something to say, or while the driver waits */
    bool readable;
    bool shut, closed;
    bool waiting;   /* the reader has taken everything and waits in recv */
    bool over;      /* the reader was told of the end */
    uint64_t told;  /* the last count of applied packets, on a lane that tells them */
    uint64_t heard; /* messages, pings not counted, of all main channels so far */
    uint64_t heard_of[WIRE_MESSAGE_MAX];
    uint64_t spoken; /* so many messages, or packets, may have been received so far */
    unsigned turns;  /* how often a reader that does not wait found nothing */
    unsigned wanted;
    void (*at_shutdown)(void *arg); /* NULL; called once, in the thread that shuts it down, */
    void (*at_end)(void *arg);      /* or in the reader's, before it is told of the end */
    void *arg;
};

/** lane_new - @slice: no receive gives more, 0: any, and it receives into files, too; @busy: every other send
 * finds no room */
struct lane *lane_new(size_t slice, bool busy);
/** lane_free - it is closed; NULL is fine */
void lane_free(struct lane *lane);

/** lane_places - the driver can write what the destination exposes; before it is used */
void lane_places(struct lane *lane);
/** lane_exposed - where [@offset, @offset + @len) of the RAM is, if it is exposed, and the driver was told;
 * or NULL */
uint8_t *lane_exposed(uint64_t offset, size_t len);
/** lane_exposure - the @n-th range that is exposed. Return: whether there is one */
bool lane_exposure(unsigned n, uint64_t *offset, uint64_t *len);
/** lane_keys - how many there are */
unsigned lane_keys(void);

/** lane_put - bytes arrive, unless it ends before */
void lane_put(struct lane *lane, const void *bytes, size_t len);
/** lane_end - what has been put still arrives, and nothing more */
void lane_end(struct lane *lane);
/** lane_cut - so many bytes still arrive, and then receives say @code: 0, or a negative errno */
void lane_cut(struct lane *lane, size_t after, int code);
/** lane_is_cut - what is put now may not arrive */
bool lane_is_cut(struct lane *lane);
/** lane_hears - what the destination sends arrives, and what it is sent */
bool lane_hears(struct lane *lane);
/** lane_is_over - its reader was told of the end */
bool lane_is_over(struct lane *lane);
/** lane_mute, lane_deafen - what the destination sends gets lost from now on; or that fails */
void lane_mute(struct lane *lane);
void lane_deafen(struct lane *lane);

/**
 * lane_succeed - a lane that nothing was sent on takes the place of another one, which is mute
 * @heard: how many messages it tells that it has received
 */
void lane_succeed(struct lane *lane, struct lane *old, uint64_t heard);
/**
 * lane_carry_over - what was put on another lane and did not arrive arrives here
 * @old: nobody reads it any more
 * @skip: so many bytes of that do not
 */
void lane_carry_over(struct lane *lane, struct lane *old, size_t skip);
/** lane_await_welcome - wait for the answer to the hello. Return: whether there is one */
bool lane_await_welcome(struct lane *lane, struct hello_reply *reply);
/** lane_taken, lane_heard - bytes that were taken; messages that were received from the destination */
uint64_t lane_taken(struct lane *lane);
uint64_t lane_heard(struct lane *lane);
/** lane_speak - so many messages, or packets, were sent at most: more cannot be received */
void lane_speak(struct lane *lane, uint64_t n);
/**
 * lane_ambush - call something when the destination shuts the lane down, or before it is told of the end;
 * NULL: do not Return: whether something was to be called before, and was not.
 */
bool lane_ambush(struct lane *lane, void (*at_shutdown)(void *arg), void (*at_end)(void *arg), void *arg);

/** lane_settle - wait until all has been taken and acted on, or nobody reads any more */
void lane_settle(struct lane *lane);
/** lane_wait_closed - wait until the migration has closed it */
void lane_wait_closed(struct lane *lane);

#endif
