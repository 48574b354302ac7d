/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A data channel of an outgoing migration: an ordered queue of packets in front
 * of a connection.
 *
 * Theory of operation
 *   There is no sending thread. A thread that adds a packet and finds nobody sending
 *   becomes the sender; one that finds a sender only waits until its buffer is free
 *   (a large packet, sent from the writer's own buffer) or does not wait at all
 *   (a small packet, which is copied). A sender stays until its own packets are
 *   out, and then hands its role to the next waiting owner; with no owner
 *   waiting it goes on, so that nothing that was accepted is ever left behind.
 *   Small packets that arrive while somebody sends travel together; and when nobody
 *   does, a thread that adds one may linger for a moment, so that more of them come: a
 *   packet of its own costs much more than its share of a full send does. One
 *   lingers for all, until there is enough, the time is over, or somebody waits.
 *
 *   A packet's place in the order, its sequence number, is fixed when it is
 *   added, under the channel's lock; a caller that adds to several channels
 *   holds all their locks, so that two writes that overlap meet in the same
 *   order on all of them.
 *
 *   A large payload can be sent without a copy (zerocopy.h). Then it has left, and
 *   its owner waits on, until the transport says that the buffer is free: it is in
 *   flight. What comes after it goes on being sent. One of those that wait, the
 *   reaper, asks the transport. No buffer in flight is ever given up: also on a
 *   dead channel its owner waits for the transport, which after transport_shutdown()
 *   does not take long, and the connection is closed when nothing is in flight.
 *
 *   A channel can outlive its connection (channel_keep()). Then what has been sent is kept
 *   until the destination has applied it, and somebody else's thread, its listener, hears that
 *   (channel_hear()). What is kept is a copy, since its owner goes on, or what stays where it is:
 *   a page of RAM by reference is sent again as it is then, which is no older. When the
 *   connection is lost (channel_lose()), nothing is sent, and packets get their places as before,
 *   as long as there is room. The stream of packets goes on over the next connection
 *   (channel_renew()) with the byte that the destination has not received: what is kept from
 *   there on is the first of what is queued.
 *
 * Locks
 *   channel.lock, many of them in the order of their index. Nothing of core/ but
 *   placing.lock is taken while one is held. Never held while sending.
 */
#ifndef MIGFS_CHANNEL_H
#define MIGFS_CHANNEL_H

#include "batch.h"
#include "chunk.h"
#include "gate.h"
#include "interrupt.h"
#include "kept.h"
#include "pace.h"
#include "transport.h"
#include "unapplied.h"
#include "wire.h"
#include "zerocopy.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define CHANNEL_COPY_MAX                                                                                     \
    (16u << 10) /* no larger packet is copied, whatever the transport says: chunks hold several */
#define CHANNEL_PARTS_MAX (TRANSPORT_IOV_MAX - 1) /* of a payload */
#define CHANNEL_ENOUGH    (48u << 10)             /* nobody lingers for more */
#define CHANNEL_LINGER_US 1000
#define CHANNEL_BATCH     (256u << 10) /* one send takes packets until it has this much */

enum channel_closed {
    CHANNEL_OPEN,
    CHANNEL_SEALED, /* `complete` has counted: what was accepted goes out, nothing more comes in */
    CHANNEL_DEAD,   /* the connection is gone: what is queued is dropped */
};

struct channel {
    unsigned index;                /* constant */
    char peer[TRANSPORT_PEER_MAX]; /* the transport's; constant */
    struct transport *transport;   /* constant until channel_disconnect(); used by the sender */
    uint32_t copy_max;             /* a payload up to this size is copied; the transport says it; constant */
    bool splices;                  /* the transport's; constant */
    bool places;                   /* the transport's; constant */
    bool of_group;                 /* tells the figures of the transport's group; constant */
    struct gate *gate;             /* constant */
    struct pace *pace;             /* constant; NULL: nothing holds it up */
    void (*failed)(void *arg, unsigned index, int code); /* called once, with no lock held */
    void *failed_arg;

    pthread_mutex_t lock; /* guards the rest */
    /* sent_sequence moved, something came back, nobody reaps, it was closed, or a waiter was interrupted */
    pthread_cond_t progress;
    unsigned flushers;   /* waiting on progress */
    pthread_cond_t more; /* the thread that lingers is to look again */
    bool lingering;      /* somebody does, and will send what is queued */
    bool hurry;          /* somebody waits for what is queued */
    enum channel_closed closed;
    bool busy;    /* somebody is the sender */
    bool paced;   /* and waits until it may send */
    bool lost;    /* something was dropped */
    bool keeps;   /* what is sent is kept until it is applied; constant once there are packets */
    bool down;    /* the connection is lost */
    bool in_hand; /* the sender has taken a batch off the queue */
    struct kept kept;
    uint64_t renewed_at; /* of the stream: what the destination had received at the last channel_renew() */
    bool moved;          /* something was received or applied since channel_renew(), as far as it is known */
    bool reaping;        /* somebody asks the transport what is back */
    struct channel_entry *in_flight, **in_flight_tail; /* sent, in their order */
    struct zerocopy zerocopy;
    struct channel_entry *head, **tail;
    struct channel_entry *open_slice; /* the last entry, if it is a slice that nobody sends yet */
    struct chunk_pool chunks;
    uint64_t last_sequence;           /* given to a packet */
    uint64_t left_sequence;           /* everything up to here has been sent */
    uint64_t sent_sequence;           /* and its buffers are free */
    uint64_t wire_bytes;              /* of what counts as sent, headers and all; each byte once */
    uint64_t spliced_bytes;           /* the part of it that came out of pipes */
    uint64_t placed_bytes;            /* the part of it that was placed, and is complete */
    uint64_t drains;                  /* flushes that waited for what was in flight */
    struct transport_figures figures; /* the transport's, when it has been closed */
    uint64_t returned;                /* the last ticket that is back */
    /* Where the transport places: what the destination may not have applied */
    struct unapplied unapplied;
    /* The start of a count of what is; the listener's, where there is one */
    uint8_t applied[WIRE_APPLIED_SIZE];
    size_t applied_have;
};

/**
 * channel_init - make a channel of a connection
 * @transport: the channel's from now on
 * @gate: where accepted bytes are given back
 * @failed: told when sending fails, by the thread that noticed; -EOPNOTSUPP and -ENOBUFS are
 * zerocopy_verdict()'s
 */
void channel_init(struct channel *ch, unsigned index, struct transport *transport, struct gate *gate,
                  void (*failed)(void *arg, unsigned index, int code), void *failed_arg);

/**
 * channel_set_zerocopy - send large payloads without a copy if that can be; before the first packet
 * Return: 0; with ZEROCOPY_REQUIRE why it cannot be, a negative errno.
 */
int channel_set_zerocopy(struct channel *ch, enum zerocopy_mode mode);

/**
 * channel_set_placing - payloads may be placed, if the transport does that; before the first packet
 * Return: 0 or -ENOMEM.
 */
int channel_set_placing(struct channel *ch);

/**
 * channel_keep - what is sent is kept until it is applied; before the first packet
 * @max: bytes, headers and all; nothing more is sent when there are so many
 *
 * Nothing is sent without a copy, placed, or out of a pipe.
 */
void channel_keep(struct channel *ch, uint64_t max);

/**
 * channel_hear - wait for what the destination says that it has applied; the listener
 *
 * Return: 0; a negative errno when the connection is lost; 1: what it says makes no sense.
 */
int channel_hear(struct channel *ch);

/** channel_is_dead - whether nothing goes over it any more */
bool channel_is_dead(struct channel *ch);

/** channel_lose - the connection is lost; the sender and the listener soon find it so. Any thread */
void channel_lose(struct channel *ch);

/**
 * channel_renew - after channel_lose(): go on over another connection; the listener
 * @transport: the channel's from now on, on success
 * @received: how many bytes of the stream the destination has received
 *
 * Return: 0; -EPROTO: that makes no sense; -ECANCELED: the channel is dead.
 */
int channel_renew(struct channel *ch, struct transport *transport, uint64_t received);

/** channel_has_moved - whether something was received or applied since channel_renew(); the listener */
bool channel_has_moved(struct channel *ch);

/** channel_is_idle - whether the destination has all that was accepted */
bool channel_is_idle(struct channel *ch);

/** channel_fini - close the connection and free the queue; nobody else uses the channel any more */
void channel_fini(struct channel *ch);

/** channel_copies - whether a packet with such a payload is copied, so that nobody has to keep it */
static inline bool channel_copies(const struct channel *ch, uint32_t length)
{
    return length <= ch->copy_max;
}

/** channel_splices - whether to send what is in a pipe costs less than to read and to send it */
static inline bool channel_splices(const struct channel *ch)
{
    return ch->splices;
}

/**
 * channel_reserve - make room for packets that will be copied; the caller holds the channel's lock
 * @packets, @bytes: how many, and of their payloads
 *
 * What is copied is bounded by the gate. Return: 0 or -ENOMEM.
 */
int channel_reserve(struct channel *ch, unsigned packets, size_t bytes);

/**
 * channel_add_copied - give a packet its place and copy its payload, which channel_copies(); room is reserved
 * @packet: @sequence and @channel are filled in
 * @payload: @packet->length bytes
 * @bytes: what was taken from the gate for it
 *
 * The caller holds the channel's lock and has seen it CHANNEL_OPEN. Return: the check of the packet's header.
 */
uint64_t channel_add_copied(struct channel *ch, struct packet *packet, const void *payload, uint64_t bytes);

/**
 * channel_add - give a packet its place whose payload stays where it is
 * @entry: the caller's, which leaves it and the payload alone until channel_finish_entry()
 *
 * As channel_add_copied().
 */
uint64_t channel_add(struct channel *ch, struct packet *packet, const void *payload, uint64_t bytes,
                     struct channel_entry *entry);

/** channel_add_staying - the same with a payload that stays where it is as long as the channel is not dead */
uint64_t channel_add_staying(struct channel *ch, struct packet *packet, const void *payload, uint64_t bytes,
                             struct channel_entry *entry);

/**
 * channel_add_parts - the same with a payload in parts
 * @parts: @packet->length bytes together, in @count parts, CHANNEL_PARTS_MAX at most; they stay as they are,
 * and where they are, until channel_finish_entry(). They are sent with a copy
 */
uint64_t channel_add_parts(struct channel *ch, struct packet *packet, const struct iovec *parts,
                           unsigned count, uint64_t bytes, struct channel_entry *entry);

/**
 * channel_add_pipe - give a packet its place whose payload is in a pipe
 * @pipe: what transport_send_pipe() takes; open, and left alone, until channel_finish_entry()
 *
 * As channel_add().
 */
uint64_t channel_add_pipe(struct channel *ch, struct packet *packet, int pipe, uint64_t bytes,
                          struct channel_entry *entry);

/**
 * channel_add_unmade - give a packet its place before its payload is made
 *
 * As channel_add(). The owner makes the payload without waiting for anything, since
 * all that comes after it waits.
 */
void channel_add_unmade(struct channel *ch, struct packet *packet, uint64_t bytes,
                        struct channel_entry *entry);

/** channel_made - the payload is made; the caller holds the channel's lock. Return: the check of the header.
 */
uint64_t channel_made(const struct packet *packet, const void *payload, struct channel_entry *entry);

/**
 * channel_may_place - whether a payload for [@offset, @offset + @len) of the RAM can be placed: nothing
 * before it that says something of these bytes can be unapplied
 *
 * The caller holds the channel's lock.
 */
bool channel_may_place(struct channel *ch, uint64_t offset, uint64_t len);

/**
 * channel_place - the payload of a packet that has just been added goes to (@key, @offset)
 *
 * The caller holds the channel's lock, channel_may_place() has agreed, and the packet is flagged.
 */
void channel_place(struct channel_entry *entry, const struct transport_key *key, uint64_t offset);

/** channel_note_unapplied - a packet that has just been added says something of [@offset, @offset + @len) of
 * RAM */
void channel_note_unapplied(struct channel *ch, uint64_t offset, uint64_t len);

/**
 * channel_finish_entry - see to it that a packet with an entry goes out
 *
 * Returns when the payload may be used again. A failure to send is not this
 * caller's: it goes to @failed.
 */
void channel_finish_entry(struct channel *ch, struct channel_entry *entry);

/** channel_send_copied - see to it that packets go out that were copied; the caller waits for none of them */
void channel_send_copied(struct channel *ch);

/** channel_linger_copied - channel_send_copied(), which may linger: nobody waits for the caller */
void channel_linger_copied(struct channel *ch);

/** channel_hurry - nobody lingers over what is queued; the caller holds the channel's lock */
void channel_hurry(struct channel *ch);

/**
 * channel_flush - wait until everything up to a packet has left, and every buffer is back
 * @sequence: the packet's; past the last one of a sealed channel: everything
 *
 * Here a round of zero-copy ends.
 * Return: 0, -EINTR, -ECONNRESET when the channel is dead, or what zerocopy_verdict() says, after @failed.
 */
int channel_flush(struct channel *ch, uint64_t sequence, const struct interrupt *interrupt);

/**
 * channel_is_owed - whether the channel waits for the other side
 * @applied: how many packets the other side says that it has applied
 * @moved: a number that grows when something leaves, or a buffer comes back
 *
 * What its owner still prepares, or nobody has begun to send, is owed by this side.
 */
bool channel_is_owed(struct channel *ch, uint64_t applied, uint64_t *moved);

/** channel_figures - add the transport's, and how often it was drained; also when it is closed */
void channel_figures(struct channel *ch, struct transport_figures *out, uint64_t *drains);

/** channel_close - seal the channel, or declare it dead and wake everybody; a dead channel stays dead */
void channel_close(struct channel *ch, enum channel_closed closed);

/** channel_end - declare it dead, and shut its connection down, if it has one */
void channel_end(struct channel *ch);

/**
 * channel_await_quiet - after channel_lose() or channel_end(): wait until nobody sends any more
 *
 * What stays where it is may be sent again by any thread, and can go then.
 */
void channel_await_quiet(struct channel *ch);

/** channel_reopen - undo a seal */
void channel_reopen(struct channel *ch);

/** channel_kick - make the waiters look at their interrupts */
void channel_kick(struct channel *ch);

/**
 * channel_disconnect - close the connection of a closed channel, and free its buffers
 *
 * Waits until nobody sends, the queue is empty, and every buffer is back; for the
 * latter, transport_shutdown() has been called.
 */
void channel_disconnect(struct channel *ch);

#endif
