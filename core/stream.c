/* SPDX-License-Identifier: Apache-2.0 */
/* A device's stream; see stream.h. */
#include "stream.h"
#include "cleanup.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void stream_init(struct stream *stream, struct image *image)
{
    *stream = (struct stream){.image = image, .followed_from = UINT64_MAX};
    pthread_mutex_init(&stream->lock, NULL);
    pthread_cond_init(&stream->moved, NULL);
}

void stream_fini(struct stream *stream)
{
    free(stream->prefix);
    free(stream->truncations);
    pthread_cond_destroy(&stream->moved);
    pthread_mutex_destroy(&stream->lock);
}

int stream_begin(struct stream *stream, const struct homes *homes)
{
    uint64_t *truncations = calloc(homes->count, sizeof(*truncations));

    if (!truncations)
        return -ENOMEM;
    SCOPED_LOCK(&stream->lock);
    free(stream->truncations);
    stream->truncations = truncations;
    stream->homes = *homes;
    return 0;
}

void stream_settle(struct stream *stream)
{
    SCOPED_LOCK(&stream->lock);
    free(stream->prefix);
    stream->prefix = NULL;
    stream->stripes = 0;
    free(stream->truncations);
    stream->truncations = NULL;
}

/*
 * The frontier. All of these are called with stream->lock held.
 */

/* Whether a stripe's prefix belongs to the stream as it is now. */
static bool stripe_is_current(const struct stream *stream, uint64_t stripe)
{
    unsigned home = homes_of(&stream->homes, stripe * WIRE_STRIPE_SIZE);

    return stream->truncations[home - stream->homes.first] == stream->truncation;
}

/* Whether a read at @offset would not wait. */
static bool is_readable(const struct stream *stream, uint64_t offset)
{
    return stream->ended || stream->broken || stream->dropped || stream->orphaned ||
           offset < stream->frontier;
}

/* There is more to read, or to be told. */
static void wake_readers(struct stream *stream)
{
    if (stream->readers)
        pthread_cond_broadcast(&stream->moved);
    if (!is_readable(stream, stream->followed_from))
        return;
    stream->followed_from = UINT64_MAX;
    for (struct follower *follower = stream->followers, *next; follower; follower = next) {
        next = follower->next;
        if (is_readable(stream, follower->offset))
            follower_tell(follower);
        else if (follower->offset < stream->followed_from)
            stream->followed_from = follower->offset;
    }
}

static void advance_frontier(struct stream *stream)
{
    uint64_t before = stream->frontier;

    for (;;) {
        uint64_t stripe = stream->frontier / WIRE_STRIPE_SIZE;
        if (stripe >= stream->stripes || !stripe_is_current(stream, stripe))
            break;
        uint64_t end = stripe * WIRE_STRIPE_SIZE + stream->prefix[stripe];
        if (end <= stream->frontier)
            break;
        stream->frontier = end;
    }
    if (stream->frontier != before)
        wake_readers(stream);
}

/* Has a prefix for a stripe. */
static bool reach(struct stream *stream, uint64_t stripe)
{
    if (stripe < stream->stripes)
        return true;
    uint64_t stripes = stripe + 1 > 2 * stream->stripes ? stripe + 1 : 2 * stream->stripes;
    uint32_t *prefix = realloc(stream->prefix, stripes * sizeof(*prefix));
    if (!prefix)
        return false;
    memset(prefix + stream->stripes, 0, (stripes - stream->stripes) * sizeof(*prefix));
    stream->prefix = prefix;
    stream->stripes = stripes;
    return true;
}

void stream_arrived(struct stream *stream, uint64_t offset, uint64_t len)
{
    uint64_t stripe = offset / WIRE_STRIPE_SIZE;
    uint32_t start = (uint32_t)(offset % WIRE_STRIPE_SIZE);

    SCOPED_LOCK(&stream->lock);
    /* The stream goes on; the news that it has ended names a later packet. */
    stream->ended = false;
    /* Without memory for it the frontier stands still; a reader sees the data when the stream ends. */
    if (!reach(stream, stripe))
        return;
    if (start <= stream->prefix[stripe] && start + len > stream->prefix[stripe]) {
        stream->prefix[stripe] = start + (uint32_t)len;
        advance_frontier(stream);
    }
}

void stream_truncate(struct stream *stream, unsigned channel, uint64_t size, uint64_t number)
{
    SCOPED_LOCK(&stream->lock);
    stream->ended = false;
    stream->truncations[channel - stream->homes.first] = number;
    if (number > stream->truncation)
        stream->truncation = number;
    if (stream->frontier > size)
        stream->frontier = size;
    for (uint64_t stripe = size / WIRE_STRIPE_SIZE; stripe < stream->stripes; stripe++) {
        uint64_t start = stripe * WIRE_STRIPE_SIZE;
        uint32_t keep = size > start ? (uint32_t)(size - start) : 0;
        if (homes_of(&stream->homes, start) == channel && stream->prefix[stripe] > keep)
            stream->prefix[stripe] = keep;
    }
    advance_frontier(stream);
}

/*
 * Ends
 */

void stream_end(struct stream *stream, bool (*is_overtaken)(const void *arg), const void *arg)
{
    SCOPED_LOCK(&stream->lock);
    /* A packet that is not seen here yet resumes the stream after this. */
    if (is_overtaken && is_overtaken(arg))
        return;
    stream->ended = true;
    wake_readers(stream);
}

void stream_resume(struct stream *stream)
{
    SCOPED_LOCK(&stream->lock);
    stream->ended = false;
}

/* One of the ends that stay. */
static void close_with(struct stream *stream, bool *how)
{
    SCOPED_LOCK(&stream->lock);
    *how = true;
    wake_readers(stream);
}

void stream_over(struct stream *stream, bool broken)
{
    close_with(stream, broken ? &stream->broken : &stream->ended);
}

void stream_orphan(struct stream *stream)
{
    close_with(stream, &stream->orphaned);
}

void stream_drop(struct stream *stream)
{
    close_with(stream, &stream->dropped);
}

/*
 * Readers
 */

/* Called with stream->lock held: how many of @len bytes at @offset can be read; -EAGAIN: wait. */
static ssize_t available(struct stream *stream, uint64_t offset, size_t len)
{
    if (stream->dropped)
        return -ECONNRESET;
    if (stream->ended)
        return image_readable(stream->image, offset, len);
    if (!is_readable(stream, offset))
        return -EAGAIN;
    if (offset >= stream->frontier)
        return stream->broken ? -ECONNRESET : -ESTALE;
    return (ssize_t)(len < stream->frontier - offset ? len : stream->frontier - offset);
}

ssize_t stream_read(struct stream *stream, uint64_t offset, void *buf, size_t len, bool nowait,
                    const struct interrupt *interrupt)
{
    ssize_t n;

    pthread_mutex_lock(&stream->lock);
    stream->readers++;
    while ((n = available(stream, offset, len)) == -EAGAIN && !nowait) {
        if (interrupt_is_hit(interrupt)) {
            n = -EINTR;
            break;
        }
        pthread_cond_wait(&stream->moved, &stream->lock);
    }
    stream->readers--;
    pthread_mutex_unlock(&stream->lock);
    return n > 0 ? image_read(stream->image, offset, buf, (size_t)n) : n;
}

bool stream_readable(struct stream *stream, uint64_t offset)
{
    SCOPED_LOCK(&stream->lock);
    return is_readable(stream, offset);
}

int64_t stream_seek(struct stream *stream, uint64_t offset, bool data)
{
    uint64_t size = image_size(stream->image);

    pthread_mutex_lock(&stream->lock);
    uint64_t known = stream->ended || stream->frontier > size ? size : stream->frontier;
    bool dropped = stream->dropped;
    pthread_mutex_unlock(&stream->lock);
    if (offset >= size || dropped)
        return -ENXIO;
    if (offset >= known)
        return (int64_t)(data ? offset : size);
    int64_t found = image_seek(stream->image, offset, data);
    if (found < 0 && found != -ENXIO)
        return found;
    if (found >= 0 && (uint64_t)found < known)
        return found;
    return !data ? (int64_t)size : known < size ? (int64_t)known : -ENXIO;
}

bool stream_follow(struct stream *stream, struct follower *follower)
{
    SCOPED_LOCK(&stream->lock);
    if (is_readable(stream, follower->offset))
        return false;
    follower_join(follower, &stream->followers);
    if (follower->offset < stream->followed_from)
        stream->followed_from = follower->offset;
    return true;
}

bool stream_unfollow(struct stream *stream, struct follower *follower)
{
    SCOPED_LOCK(&stream->lock);
    return follower_leave(follower);
}

void stream_kick(struct stream *stream)
{
    SCOPED_LOCK(&stream->lock);
    pthread_cond_broadcast(&stream->moved);
}
