/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device's stream as it arrives: its frontier, and its readers.
 *
 * A reader may follow a stream while it arrives. For each stripe we keep how much has arrived without a gap;
 * the frontier moves over stripes that are full. Data that was written out of order within a
 * stripe is seen when the stream ends. After a truncation the stripes of a channel count again only when that
 * channel has applied it, too.
 *
 * At the frontier a reader waits, or is told later (follower.h); until
 *   the frontier moves    then there is something to read,
 *   the stream ends       what is there is all, for now: the end of the file. It may go on,
 *   it is over            the migration is, and it will never end: -ECONNRESET,
 *   it is orphaned        the device has been removed, and no packet comes any more: -ESTALE,
 *   it is dropped         nothing of it can be read any more, before the frontier neither: -ECONNRESET.
 *
 * The bytes are an image's, whose lock is taken under the stream's.
 */
#ifndef MIGFS_STREAM_H
#define MIGFS_STREAM_H

#include "follower.h"
#include "homes.h"
#include "image.h"
#include "interrupt.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct stream {
    struct image *image;  /* constant */
    struct homes homes;   /* constant once it has begun, which it does before anybody is told */
    pthread_mutex_t lock; /* guards what follows; a leaf, but for image.lock */
    pthread_cond_t moved; /* the frontier has, or the stream ended, or a reader was interrupted */
    unsigned readers;     /* waiting on moved */
    struct follower *followers;
    uint64_t followed_from; /* none of them at an offset before it */
    bool ended, broken, orphaned, dropped;
    uint32_t *prefix;      /* how much of each stripe has arrived without a gap from its start */
    uint64_t stripes;      /* length of prefix */
    uint64_t frontier;     /* everything before it has arrived */
    uint64_t truncation;   /* the newest one seen on any channel */
    uint64_t *truncations; /* the newest one that each home channel has applied */
};

/** stream_init - of the bytes in an image, which stays; without any yet */
void stream_init(struct stream *stream, struct image *image);
void stream_fini(struct stream *stream);

/** stream_begin - its bytes will come on these channels; 0 or -ENOMEM */
int stream_begin(struct stream *stream, const struct homes *homes);

/** stream_settle - no channel is left, and nothing moves any more */
void stream_settle(struct stream *stream);

/** stream_arrived - [offset, offset + len) of one stripe is stored in the image; wakes readers */
void stream_arrived(struct stream *stream, uint64_t offset, uint64_t len);

/** stream_truncate - a channel's part of truncation number @number to @size; the image's comes after it */
void stream_truncate(struct stream *stream, unsigned channel, uint64_t size, uint64_t number);

/**
 * stream_end - the stream has ended; all its data has arrived
 * @is_overtaken: whether the news is out of date; asked with the lock held. NULL: it is not.
 */
void stream_end(struct stream *stream, bool (*is_overtaken)(const void *arg), const void *arg);

/** stream_resume - the stream goes on */
void stream_resume(struct stream *stream);

/**
 * stream_over - the migration is over
 * @broken: a reader at the frontier of a stream that has not ended fails; otherwise it has ended
 */
void stream_over(struct stream *stream, bool broken);

/** stream_orphan - nothing comes any more, and not the end either */
void stream_orphan(struct stream *stream);

/** stream_drop - nothing can be read any more */
void stream_drop(struct stream *stream);

/**
 * stream_read - read what has arrived
 * @nowait: -EAGAIN at the frontier, instead of waiting
 *
 * Return: the count, 0 at the end, -EINTR, one of those above, or another negative errno.
 */
ssize_t stream_read(struct stream *stream, uint64_t offset, void *buf, size_t len, bool nowait,
                    const struct interrupt *interrupt);

/** stream_readable - whether stream_read() at @offset would not wait */
bool stream_readable(struct stream *stream, uint64_t offset);

/**
 * stream_seek - image_seek() over what has arrived
 *
 * From the frontier of a stream that has not ended on everything is still to come, and counts as data: a
 * program that copies sparsely must not take for a hole what has not arrived.
 */
int64_t stream_seek(struct stream *stream, uint64_t offset, bool data);

/**
 * stream_follow - be told once, with stream.lock held, that stream_read() at @follower->offset would not wait
 * Return: whether @follower waits now; if not, it would not wait already.
 */
bool stream_follow(struct stream *stream, struct follower *follower);

/** stream_unfollow - leave; whether @follower had not been told: if so, it will not be */
bool stream_unfollow(struct stream *stream, struct follower *follower);

/** stream_kick - make the readers look at their interrupts */
void stream_kick(struct stream *stream);

#endif
