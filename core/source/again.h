/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections that are made again when they are lost (`resume`).
 *
 * Theory of operation
 *   Each data channel has a listener, thread mig-again-N: it hears what the destination has applied, and so
 *   notices first when the connection is gone. Then it connects once more, proves that it belongs to the
 *   session, by its id, which nobody else knows, and by the same identity, is told what has been applied, and
 *   gives the channel its new connection (channel_renew()). The main channel is made again by the thread that
 *   reads it. All of them are made at the same time, each needs three round trips with TLS and two without,
 *   and those that are not lost go on.
 *
 *   The first attempt comes at once, later ones after a while that doubles. It is over when the destination
 *   refuses, or when there is no patience left: that is the time for which a connection may be lost since
 *   something has moved on it, so that one that is made again and again and carries nothing ends, too.
 *
 * Lock: none; what others look at is the channel's, and over_fd is readable from again_stop() on.
 */
#ifndef MIGFS_AGAIN_H
#define MIGFS_AGAIN_H

#include "error.h"
#include "wire.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct connection;

/* Of one connection; who makes it again has it. */
struct again_patience {
    int64_t left_ms;
    int backoff_ms;  /* before the next attempt */
    int64_t made_ms; /* when it was made the last time */
};

struct again_listener {
    struct again *again;     /* constant */
    struct connection *conn; /* constant */
    unsigned index;          /* constant */
    pthread_t thread;
    struct again_patience patience; /* its own */
};

struct again {
    int over_fd;      /* an eventfd; -1: connections are not made again */
    unsigned running; /* listeners */
    struct again_listener *listeners;
    /* The reader's: */
    struct again_patience main;
    uint64_t main_received;     /* messages, when it was lost the last time */
    bool (*is_over)(void *arg); /* whether to give the main channel up; NULL: nothing says so; its owner's */
    void *is_over_arg;
};

/** again_init - without listeners */
void again_init(struct again *again);

/**
 * again_start - make the listeners of all channels of a connection, which keep what they send
 * Return: 0, or negative with @err; again_stop() and again_join() follow in either case.
 */
int again_start(struct again *again, struct connection *conn, struct error *err);

/** again_stop - it is over: nobody tries any more. connection_break() comes next */
void again_stop(struct again *again);

/** again_join - wait until no listener uses its channel, and forget them; can be called again */
void again_join(struct again *again);

/**
 * again_main - the main channel is lost: make it again; in the thread that reads it
 * @cancel_fd: gives up when it is readable
 * @reason: why it is lost
 *
 * Return: 0; negative with @err: why it cannot be.
 */
int again_main(struct again *again, struct connection *conn, int cancel_fd, const struct error *reason,
               struct error *err);

/**
 * again_goodbye - see to it that the destination hears why it is over, also where it cannot now; after
 * session_goodbye(), in the thread that reads the main channel, and when no listener is left
 * @is_over: looked at before each attempt: whether there is no time for it
 *
 * Tries for as long as the destination may wait for the source to come back.
 */
void again_goodbye(struct connection *conn, bool (*is_over)(void *arg), void *arg);

#endif
