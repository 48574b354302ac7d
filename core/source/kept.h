/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a channel has sent and the destination may not have (channel.h, channel_keep()): entries in their
 * order, a piece of the stream of packets without a gap. They go when the destination has applied them, or
 * says, after a connection was lost, how much of the stream it has received.
 *
 * The channel's lock guards it.
 */
#ifndef MIGFS_KEPT_H
#define MIGFS_KEPT_H

#include "entry.h"

#include <errno.h>

struct kept {
    struct channel_entry *first, **tail;
    uint64_t from, bytes; /* of the stream: where it begins, and how many */
    uint64_t max;         /* nothing more is sent when there are so many */
    uint64_t applied;     /* packets that the destination has applied */
};

/** kept_init - nothing is kept */
void kept_init(struct kept *kept, uint64_t max);

/**
 * kept_copy - copy what is to be kept of entries, and belongs to others; without the lock
 * Return: 0; -ENOMEM; -EFAULT: memory of the RAM's has gone.
 */
int kept_copy(struct channel_entry *entries);

/** kept_add - keep an entry that is nobody's, or the copy of one that is somebody's: the next of the stream
 * Return: which of the two it was; NULL: there is no copy, and nothing is kept.
 */
struct channel_entry *kept_add(struct kept *kept, struct channel_entry *entry);

/** kept_is_full - whether nothing more is to be sent */
static inline bool kept_is_full(const struct kept *kept)
{
    return kept->bytes >= kept->max;
}

/** kept_cures - whether what sending has failed with may not come back when it is sent over another
 * connection */
static inline bool kept_cures(int code)
{
    return code < 0 && code != -EFAULT && code != -ENOMEM && code != -ENODATA;
}

/** kept_end - where in the stream it ends */
static inline uint64_t kept_end(const struct kept *kept)
{
    return kept->from + kept->bytes;
}

/** kept_take_applied - take the first entry, if it is applied; NULL: it is not, or there is none */
struct channel_entry *kept_take_applied(struct kept *kept);

/** kept_has_sent - whether the destination can have received the stream up to @received, and needs the rest
 */
static inline bool kept_has_sent(const struct kept *kept, uint64_t received)
{
    return received >= kept->from && received <= kept_end(kept);
}

/**
 * kept_take_received - take the first entry, if the destination has all of it
 * @received: kept_has_sent()
 *
 * Return: NULL: it has not, or there is none; then what it has of the first one is not sent again.
 */
struct channel_entry *kept_take_received(struct kept *kept, uint64_t received);

/** kept_put_back - put all that is kept before the entries of a queue; its tail may be an open end */
void kept_put_back(struct kept *kept, struct channel_entry **head, struct channel_entry ***tail);

#endif
