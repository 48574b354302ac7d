/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A connection over a reliable queue pair: a stream of bytes, and placing.
 *
 * Theory of operation
 *   The stream goes in messages, which are copied into registered slots and sent; the
 *   other end has as many receives posted as it has said when it connected, and each
 *   message says how many of them are free again (its immediate data). So a message is
 *   sent only when there is a receive for it: the card never has to say "receiver not
 *   ready". One receive is kept for a message without bytes that says nothing but that,
 *   so that two ends that are both full get on.
 *
 *   A placed payload is written by the card from the caller's registered memory straight
 *   into the peer's, and the queue pair's order makes it be there before any message that
 *   is sent later. What is not registered goes through the slots. The caller's memory is
 *   its own again when the write is complete, which rdma_reap() tells.
 *
 *   Slots and writes are given back in the order in which they were posted. Messages ask
 *   for a completion only now and then, since a later one speaks for all before it.
 *
 * Threads
 *   One lock guards all of it. A thread that has to wait (for a receive of the peer's, for
 *   a slot, for a message, for a completion) calls step() in a loop: one of those that
 *   wait polls the card's descriptors, handles all that has come, for whomever it is, and
 *   wakes the others. The lock is held for no longer than it takes to post or to handle.
 */
#ifndef MIGFS_RDMA_QUEUE_H
#define MIGFS_RDMA_QUEUE_H

#include "rdma_memory.h"

#include <rdma/rdma_cma.h>

/* What the two ends tell each other with the connection request and its answer. All little-endian. */
struct rdma_greeting {
    uint8_t magic[4];
    uint8_t group[TRANSPORT_GROUP_SIZE]; /* in the request */
    uint32_t receives;                   /* how many are posted */
    uint32_t receive_size;               /* bytes of each */
};

/* What one end has: the listening one receives payloads, the other one sends them. Sizes are bytes. */
struct rdma_shape {
    uint32_t receives, receive_size;
    uint32_t slots, slot_size; /* for what is sent; the size is a bound for the messages */
};

extern const struct rdma_shape rdma_active_shape, rdma_passive_shape;

/**
 * rdma_queue_new - make the queue pair of a connection that is being made
 * @id: resolved, or of a connection request; stays the caller's until rdma_queue_established()
 * @out: closed with transport_close(); receives are posted
 */
int rdma_queue_new(struct rdma_cm_id *id, const struct rdma_shape *shape, struct rdma_domain *domain,
                   struct transport **out, struct error *err);

/** rdma_queue_greeting - what this end has to say */
void rdma_queue_greeting(struct transport *t, struct rdma_greeting *greeting);

/**
 * rdma_queue_meet - what the other end has said
 * @len: bytes of it; the peer says how many
 */
int rdma_queue_meet(struct transport *t, const void *greeting, size_t len, struct error *err);

/** rdma_greeting_is_valid - whether it is one */
bool rdma_greeting_is_valid(const void *greeting, size_t len);

/**
 * rdma_queue_established - the connection stands, and all events of @id have been acknowledged
 *
 * Return: 0, and @id is the connection's; a negative errno, and it is the caller's, as the connection is.
 */
int rdma_queue_established(struct transport *t);

#endif
