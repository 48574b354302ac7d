/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packets to channels: gives all packets of a write their places in one step, and then sees to it that they
 * are sent. sender.c opens with why no write overtakes another one (contract 2.1).
 *
 * It knows a connection and a file. What it means that a channel is closed, its caller has to know.
 */
#ifndef MIGFS_SENDER_H
#define MIGFS_SENDER_H

#include "path.h"

/*
 * The thread of a write that is not copied as a whole sees it out, and has a worker until then: so a
 * connection has room for so many of them at most, however small they are.
 */
#define SENDER_WRITES_MAX 128

/* A write whose packets have their places, and are not all sent; lives on its owner's stack. */
struct sender_write {
    struct path_write common;     /* its owner may set eager */
    bool need[WIRE_CHANNELS_MAX]; /* the channels that have something of it */
    unsigned channels;            /* how many they are */
    unsigned count;
    uint64_t surcharge;        /* what the gate is given back at the end, beside the packets' costs */
    struct path_piece *pieces; /* few, or allocated */
    struct path_piece few[4];
};

/**
 * sender_accept - give all packets of a plan their places, in one step
 * @bytes: left alone, but for what is mapped, until sender_finish()
 * @write: filled in on success; must be finished. Where its count is 0 all was copied: then
 * channel_send_copied() of its channels will do, once for several writes. A file that has been removed takes
 * nothing
 *
 * Waits until the gate has room. Once it has returned, nothing that is accepted later comes before these
 * packets. Later failures are the connection's: connection.failed.
 *
 * Return: 0; or, and nothing is accepted, -EAGAIN: one of its channels is closed, for now or for good;
 * -ECANCELED: the connection is broken; -EINTR; -ENOMEM.
 */
int sender_accept(struct sender_write *write, struct connection *conn, struct file *file, struct plan *plan,
                  const struct path_bytes *bytes, const struct interrupt *interrupt);

/** sender_finish - make what is still to be made, and send it all, or wait until another thread has */
void sender_finish(struct sender_write *write);

/**
 * sender_discard - punch a hole, ordered with the writes; its channels get a packet each, in one step
 * @offset, @len: within the file, and not empty
 *
 * Return: as sender_accept().
 */
int sender_discard(struct connection *conn, struct file *file, uint64_t offset, uint64_t len,
                   const struct interrupt *interrupt);

/** sender_truncate - set the file's size, ordered with the writes; as sender_discard() */
int sender_truncate(struct connection *conn, struct file *file, uint64_t size,
                    const struct interrupt *interrupt);

#endif
