/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The main channel of a migration: messages both ways, and a heartbeat.
 *
 * Both ends run the same loop in a thread of their own: wait for messages, for
 * room to send, for a wake-up from this process, or for the next heartbeat. Any
 * thread may send: a message goes into a bounded queue, and as much of the queue
 * as the connection takes is sent at once; the loop sends the rest. So nobody
 * ever blocks here, whatever the peer does. A peer that does not read until the
 * queue is full, or a failure to send, ends the connection.
 *
 * A session can outlive its connection (session_keep()). Then each message stays in the
 * queue until the peer has said, in the header of a message of its own, how many it has
 * received; a message counts when it has been handled as a whole. After session_lose()
 * messages are queued and nothing is sent; session_renew() takes another connection, over
 * which the peer has said once more how many it has, and sends the rest again. So each
 * message is handled once, whatever becomes of the connections.
 *
 * session.send_lock guards the queue. It is a leaf lock.
 */
#ifndef MIGFS_SESSION_H
#define MIGFS_SESSION_H

#include "budget.h"
#include "transport.h"
#include "wire.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#define SESSION_QUEUE (256u << 10)
/* that one can have without a budget */
#define SESSION_MEMORY (2 * SESSION_QUEUE + sizeof(struct wire_message))
/* How long the peer has to read a goodbye. */
#define SESSION_LINGER_MS 2000

struct session {
    struct transport *transport; /* the loop's thread receives; sending is guarded by send_lock */
    int wake_fd;                 /* an eventfd */
    int timeout_ms, ping_ms;
    int64_t last_heard, next_ping; /* the loop's thread */
    uint8_t *buffer;               /* the loop's thread: what has arrived and is not dispatched */
    size_t have;
    bool unread; /* the loop's thread: there can be bytes that the descriptor does not tell of */
    /* the loop's thread: when the unfinished message in the buffer began; 0: there is none */
    int64_t partial_since;
    bool heard;      /* the loop's thread: a message has come over this connection */
    bool lost;       /* the loop's thread: the connection is gone, but the session could go on */
    bool keeps;      /* what is sent is kept until the peer has it; constant once others send */
    uint32_t unsaid; /* the loop's thread: bytes of messages that the peer does not know to be received */
    _Atomic uint64_t
        received; /* messages that were handled, pings not counted; written by the loop's thread */

    pthread_mutex_t send_lock; /* guards what follows */
    uint8_t *queue;
    size_t queued, queue_size;
    size_t out; /* bytes at the start of the queue that are sent, and kept */
    uint64_t
        confirmed; /* messages that the peer has received, pings not counted; they are not in the queue */
    /* for a queue that is longer than SESSION_QUEUE; NULL: nobody counts; constant */
    struct budget *budget;
    bool broken;                 /* nothing more can be sent */
    _Atomic uint64_t bytes_sent; /* relaxed */
};

/**
 * session_init - take over a connection whose handshake is done
 * @transport: the session's from now on, on success
 * @timeout_ms: how long the peer may be silent
 * @peer_timeout_ms: how long the peer lets this side be silent
 */
int session_init(struct session *s, struct transport *transport, uint32_t timeout_ms,
                 uint32_t peer_timeout_ms);
void session_fini(struct session *s);

/**
 * session_end - the loop is over and the connection closed: free what nothing needs any more; others may
 * still send, into nothing
 */
void session_end(struct session *s);

/**
 * session_send - send one message; any thread; never blocks
 *
 * A failure is noticed by the loop, which finds the connection shut down.
 */
void session_send(struct session *s, enum wire_message_type type, uint64_t id, const void *body,
                  uint32_t length);

/** session_keep - the session is to outlive its connection; before anything is sent */
void session_keep(struct session *s);

/**
 * session_lose - the connection is lost: close it; the loop's thread
 *
 * What is sent from now on waits for session_renew(). session_step() waits for its deadline, or a wake-up.
 */
void session_lose(struct session *s);

/**
 * session_renew - go on over another connection, whose handshake is done; after session_lose(), the loop's
 * thread
 * @transport: the session's from now on, on success
 * @confirmed: how many messages the peer has received
 *
 * Return: 0; negative with CAUSE_PROTOCOL: the peer cannot have received so many, or has forgotten some.
 */
int session_renew(struct session *s, struct transport *transport, uint64_t confirmed, struct error *err);

/** session_confirmed - how many messages the peer is known to have received; any thread */
uint64_t session_confirmed(struct session *s);

/** session_wake - make session_step() return; any thread */
void session_wake(struct session *s);

/**
 * session_step - wait, and dispatch what has arrived
 * @deadline_ms: return then at the latest, by the monotonic clock
 * @handle: called for each message; a negative return ends the step with @err set
 *
 * Sends the heartbeat when it is due, and what is queued. Return: 0; negative
 * with CAUSE_TIMEOUT, CAUSE_RESET (the peer has closed), CAUSE_PROTOCOL, or what
 * @handle said. Where the connection is gone, and nothing else is wrong, s->lost is set.
 */
int session_step(struct session *s, int64_t deadline_ms,
                 int (*handle)(void *arg, const struct message *message, struct wire_reader *body,
                               struct error *err),
                 void *arg, struct error *err);

/** session_goodbye - say why it is over, if there is something to say; NULL: there is not */
void session_goodbye(struct session *s, const struct error *failure);

/**
 * session_part - send what is queued and nothing more, and wait until the peer has closed or @timeout_ms is
 * over; the loop is over
 * Return: whether all was sent, and the peer has closed in good order, as it does when it has read a goodbye.
 */
bool session_part(struct session *s, int timeout_ms);

/** session_linger - session_part(), and close */
void session_linger(struct session *s, int timeout_ms);

/**
 * session_read_reason - a cause and a sentence of the peer, as this side's error
 * @who: whose words they are
 *
 * What a peer may not decide for this side's user becomes CAUSE_PEER.
 */
void session_read_reason(uint32_t cause, const char *text, const char *who, struct error *out);

/** session_read_abort - the body of an abort */
void session_read_abort(struct wire_reader *body, const char *who, struct error *out);

#endif
