/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One attempt of a source to reach this side: the main channel, the data channels with their receivers, and
 * what they are charged. It knows no migration. It counts from zero, like the source's connection, whose
 * other end it is.
 *
 * Lifetime
 *   inbound_init() charges an account for all of it, so that a source is told at its start, and not when its
 *   VM has stopped. inbound_open() takes the main channel, inbound_attach() the data channels as they arrive;
 *   when it is whole, inbound_start() makes the receivers. When it is over: inbound_end() waits until nothing
 *   more is applied and closes the data channels, inbound_settle() keeps nothing but sums, inbound_close()
 *   gives up what the main channel has.
 *
 * One thread has it, its reader, the one that calls session_step(). What others look at is guarded by a lock
 * of its owner's; functions that want it say so. Each receiver has a thread of its own (receiver.h).
 */
#ifndef MIGFS_INBOUND_H
#define MIGFS_INBOUND_H

#include "account.h"
#include "error.h"
#include "exposure.h"
#include "receiver.h"
#include "session.h"
#include "stall.h"
#include "wire.h"

#include <stdbool.h>
#include <stdint.h>

struct inbound {
    struct reception reception; /* constant once there are receivers */
    struct account *account;    /* whose limits it counts against; constant */
    unsigned channel_count;     /* constant */
    uint64_t beside;            /* bytes of its owner's that are charged with the main channel; constant */
    struct session session;
    bool holds_channels, holds_session; /* what they need is charged; the reader's */
    uint32_t patience_ms;               /* how long what a barrier waits for may stand still; constant */
    uint32_t resume_ms;         /* how long a lost connection may be made again; 0: it may not; constant */
    struct stall_watch watch;   /* the reader's */
    bool peer_aborted;          /* the reader's */
    struct exposures exposures; /* the reader's */

    /* The reader's, and written with the owner's lock held; others look with it. */
    struct receiver *receivers; /* NULL when it is over */
    uint64_t barrier_ns;        /* when they are gone: the sum of theirs */

    /* Guarded by the owner's lock: */
    bool has_session;
    unsigned attached; /* receivers that have a connection */
    bool started;      /* there are receivers */
    bool ending;       /* no connection is waited for any more */
    /* The main channel's, that is to take the place of its connection, and what the source has received. */
    struct transport *next_main;
    uint64_t next_received;
    struct loss main_loss;
    unsigned lost; /* connections, the main one among them */
    /*
     * Why the first receiver has ended, and until when the main channel may say more of it. Written once,
     * with the lock held: a thread that has seen with it that there is a suspicion can read it without.
     */
    struct error suspect;
    int64_t suspect_until;
};

/** inbound_memory - bytes that one of so many channels is charged, beside its owner's */
uint64_t inbound_memory(unsigned channels);

/**
 * inbound_init - without a connection; charged to an account
 * @reception: copied; where to charge descriptors is set here
 * @account: outlives it
 * @beside: bytes that its owner needs for it
 *
 * inbound_fini() follows in either case.
 */
int inbound_init(struct inbound *in, const struct reception *reception, struct account *account,
                 unsigned channels, uint64_t beside, struct error *err);
void inbound_fini(struct inbound *in);

/**
 * inbound_open - take over the main channel; the owner's lock is held
 * @transport: its own from now on, on success; inbound_give_back() undoes that
 * @timeout_ms: how long the source may be silent
 * @peer_timeout_ms: how long the source lets this side be silent
 * @patience_ms: how long what a barrier waits for may stand still
 * @resume_ms: how long a lost connection may be made again; 0: it may not
 */
int inbound_open(struct inbound *in, struct transport *transport, uint32_t timeout_ms,
                 uint32_t peer_timeout_ms, uint32_t patience_ms, uint32_t resume_ms, struct error *err);
/** inbound_give_back - nobody reads the main channel: it is the caller's again */
void inbound_give_back(struct inbound *in);

/**
 * inbound_attach - take over a data channel, and welcome it; the owner's lock is held
 * @channels: how many the source speaks of
 * @transport: its own from now on, on success
 * @timeout_ms: how long it may stay blocked
 *
 * Does not block. Wakes the reader when it is whole.
 */
int inbound_attach(struct inbound *in, unsigned channel, unsigned channels, struct transport *transport,
                   uint32_t timeout_ms, const struct hello_reply *reply, struct error *err);

/**
 * inbound_attach_again - take over a connection that is to take the place of another one, which may be lost
 * without this side having noticed; the owner's lock is held
 * @channel: a data channel; -1: the main one
 * @received: -1: how many messages the source has received
 * @transport: its own from now on, on success; it is welcomed by the thread that needs it
 */
int inbound_attach_again(struct inbound *in, int channel, uint64_t received, struct transport *transport,
                         struct error *err);

/**
 * inbound_lose, inbound_find_again - note that a connection is lost, or not any more; the owner's lock is
 * held
 * @channel: a data channel; -1: the main one
 */
void inbound_lose(struct inbound *in, int channel, const struct error *reason);
void inbound_find_again(struct inbound *in, int channel);

/**
 * inbound_renew - give a receiver the connection that has come for it, if one has, and welcome it
 * @reply: the welcome, but for what has been applied
 *
 * In the receiver's thread, with the owner's lock held. Return: whether one has.
 */
bool inbound_renew(struct inbound *in, unsigned channel, struct hello_reply *reply);

/**
 * inbound_renew_main - the same for the main channel, which session_lose() was called for; the reader, with
 * the owner's lock held
 *
 * Return: 1; 0: none has come; negative with @err: the source makes no sense.
 */
int inbound_renew_main(struct inbound *in, struct hello_reply *reply, struct error *err);

/**
 * inbound_deadline - until when all that is lost may be made again; the owner's lock is held
 * @reason: why that was lost which is due first; can be NULL
 *
 * Return: INT64_MAX: nothing is lost.
 */
int64_t inbound_deadline(const struct inbound *in, struct error *reason);

/** inbound_is_whole - whether all data channels are there; the owner's lock is held */
bool inbound_is_whole(const struct inbound *in);

/** inbound_start - make the receivers' threads; it is whole */
int inbound_start(struct inbound *in, struct error *err);

/** inbound_on_expose - WIRE_EXPOSE: answers it. @ram: NULL: it has not been announced; the reader */
int inbound_on_expose(struct inbound *in, struct file *ram, struct wire_reader *body, struct error *err);

/** inbound_on_withdraw - WIRE_WITHDRAW; the reader */
int inbound_on_withdraw(struct inbound *in, struct wire_reader *body, struct error *err);

/** inbound_suspect - a receiver has ended, and why; the first one counts; the owner's lock is held */
void inbound_suspect(struct inbound *in, unsigned channel, const struct error *reason);

/** inbound_uses - whether a receiver may have a file in use that has been forgotten by the catalog */
bool inbound_uses(const struct inbound *in, const struct file *file);

/** inbound_look_is_due - whether to call inbound_look() again; the reader */
bool inbound_look_is_due(const struct inbound *in);

/** inbound_rest - what stands still has a reason: nothing has been looked at; the reader */
void inbound_rest(struct inbound *in);

/**
 * inbound_look - tell the source what has arrived, and see whether all stands still that a barrier waits for
 * @work: grows with what else is done for the source
 * Return: 0; negative: it has stood still for too long.
 */
int inbound_look(struct inbound *in, uint64_t work, struct error *err);

/** inbound_wire_bytes - received on a channel, headers and all; it has receivers; the owner's lock is held */
uint64_t inbound_wire_bytes(const struct inbound *in, unsigned channel);

/** inbound_placed_bytes - the part of it that the source has written by itself; likewise */
uint64_t inbound_placed_bytes(const struct inbound *in, unsigned channel);

/** inbound_barrier_ns - nanoseconds that all receivers were blocked at barriers; the owner's lock is held */
uint64_t inbound_barrier_ns(const struct inbound *in);

/**
 * inbound_end - wait until nothing more is applied, and close the data channels; can be called again
 *
 * No more of them are attached: all are there, or the owner has ceased to take any, with its lock held. Where
 * connections can be made again, it has set `ending` before, and woken those who wait for another one.
 */
void inbound_end(struct inbound *in);

/** inbound_settle - give up all but the sums; it has ended; the owner's lock is held */
void inbound_settle(struct inbound *in);

/** inbound_close - nothing more is said or heard on the main channel; the owner's lock is held */
void inbound_close(struct inbound *in);

#endif
