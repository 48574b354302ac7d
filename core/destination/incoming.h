/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The destination's side of a migration.
 *
 * Theory of operation
 *   The listener makes a migration when a main channel says hello, and hands it
 *   the data channels as they arrive. Thread mig-in waits until all are there,
 *   starts a receiver for each, and reads the main channel. A receiver applies
 *   the packets of its channel in order and publishes how many it has applied;
 *   it never waits for another one. A barrier is a vector of counts that mig-in
 *   keeps until every receiver has passed its own; a receiver that passes the
 *   next count that anybody waits for wakes mig-in.
 *
 *   Users do not see a migration that arrives before all of its channels are there.
 *   If they have made one of its name by then, which expects it, that one takes over
 *   what belongs to the arriving one (registry_arrive()): so what they have opened and
 *   wait for stays the same, and an attempt that fails before has touched nothing.
 *
 *   As often as it sends its heartbeat, mig-in tells the source what has arrived,
 *   and looks whether anything still does while a barrier waits (stall.h).
 */
#ifndef MIGFS_INCOMING_H
#define MIGFS_INCOMING_H

#include "account.h"
#include "migration.h"

/* What whoever makes incoming migrations does for them. Called in mig-in, with no lock held. */
struct incoming_owner_operations {
    /*
     * All channels are there: make the migration active, and let users see it.
     * @shown: it, or the expected one of its name that has taken its place and all that belongs to it; with a
     * reference
     */
    int (*arrive)(void *owner, struct migration *m, struct migration **shown, struct error *err);
    /* It has failed before users saw it: forget it. */
    void (*forget)(void *owner, struct migration *m);
};

/**
 * incoming_new - what an incoming migration needs, for m->in; charged to the account of the peer
 * @account: the peer's; incoming_free() drops the reference that is taken here
 * @owner: whose @operations are; it outlives the migration
 * Return: NULL: CAUSE_QUOTA or CAUSE_NO_MEMORY.
 */
struct incoming *incoming_new(struct migration *m, struct account *account,
                              const struct incoming_owner_operations *operations, void *owner,
                              struct error *err);
/** incoming_memory - bytes that one of so many channels is charged, until it is over, beside its files */
uint64_t incoming_memory(const struct host *host, unsigned channels);
/** incoming_free - free what incoming_new() made; NULL is fine */
void incoming_free(struct incoming *in);

/**
 * incoming_begin - take over the main channel and start thread mig-in
 * @transport: the migration's from now on, on success
 * @peer_timeout_ms: how long the source lets this side be silent
 * @reply: the answer to its hello, sent on success
 */
int incoming_begin(struct migration *m, struct transport *transport, uint32_t peer_timeout_ms,
                   const struct hello_reply *reply, struct error *err);

/** incoming_limit_ram - the RAM was declared here to have at most @size bytes; 0: it was not */
void incoming_limit_ram(struct migration *m, uint64_t size);

/** incoming_max_ram - the largest RAM that is taken */
uint64_t incoming_max_ram(const struct migration *m);

/**
 * incoming_hand_over - an expected migration takes what belongs to an arriving one, in whose thread mig-in
 * this is
 *
 * The caller holds the locks of both.
 */
void incoming_hand_over(struct migration *from, struct migration *to);

/**
 * incoming_attach - hand over a data channel
 * @transport: the migration's from now on, on success
 * @reply: the answer to its hello, sent on success
 */
int incoming_attach(struct migration *m, unsigned channel, unsigned channels, struct transport *transport,
                    const struct hello_reply *reply, struct error *err);

/**
 * incoming_attach_again - hand over a connection that takes the place of one that is lost
 * @channel: a data channel; -1: the main one
 * @received: -1: how many messages the source has received
 * @transport: the migration's from now on, on success; it is welcomed later
 */
int incoming_attach_again(struct migration *m, int channel, uint64_t received, struct transport *transport,
                          struct error *err);

/**
 * incoming_decide - what becomes of it, for a source that has lost it: a migration that still runs is failed,
 * so that the answer stays true
 */
enum wire_outcome incoming_decide(struct migration *m);

/** incoming_wire_bytes - received on channel @index, headers and all */
uint64_t incoming_wire_bytes(struct migration *m, unsigned index);
/** incoming_barrier_ns - nanoseconds that all receivers together were blocked at barriers */
uint64_t incoming_barrier_ns(struct migration *m);
unsigned incoming_channels(struct migration *m);

/**
 * incoming_operations - the destination's role; m->in is there, but in a migration that another one has taken
 * over
 */
extern const struct role_operations incoming_operations;

#endif
