/* SPDX-License-Identifier: Apache-2.0 */
/* The sending side of a data channel; see channel.h. */
#include "channel.h"
#include "cleanup.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <time.h>

/* A write can alternate between small and large packets: a chunk serves as many slices as that. */
#define SLICES 64

/* All of it is guarded by the channel's lock, but for the bytes of slices that are being sent. */
struct channel_chunk {
    struct channel_chunk *next_free;
    uint32_t used;         /* bytes */
    unsigned slices, live; /* cut, and not sent yet */
    struct channel_entry slice[SLICES];
    char data[CHANNEL_CHUNK];
};

void channel_init(struct channel *ch, unsigned index, struct transport *transport, struct gate *gate,
                  void (*failed)(void *arg, unsigned index, int code), void *failed_arg)
{
    *ch = (struct channel){
        .index = index,
        .transport = transport,
        .gate = gate,
        .failed = failed,
        .failed_arg = failed_arg,
    };
    ch->tail = &ch->head;
    pthread_mutex_init(&ch->lock, NULL);
    pthread_cond_init(&ch->progress, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&ch->more, &attr);
    pthread_condattr_destroy(&attr);
}

void channel_fini(struct channel *ch)
{
    assert(!ch->head && !ch->busy);
    transport_close(ch->transport);
    free(ch->chunk);
    while (ch->free_chunks) {
        struct channel_chunk *chunk = ch->free_chunks;
        ch->free_chunks = chunk->next_free;
        free(chunk);
    }
    pthread_cond_destroy(&ch->more);
    pthread_cond_destroy(&ch->progress);
    pthread_mutex_destroy(&ch->lock);
}

static void push(struct channel *ch, struct channel_entry *entry)
{
    entry->next = NULL;
    *ch->tail = entry;
    ch->tail = &entry->next;
}

int channel_reserve(struct channel *ch, unsigned packets, size_t bytes)
{
    size_t total = packets * sizeof(struct wire_packet) + bytes;
    /* A packet that does not fit into the rest of a chunk goes into the next one; each may need a slice of its own. */
    size_t worst = CHANNEL_CHUNK - CHANNEL_COPY_MAX - sizeof(struct wire_packet);
    size_t needed = packets ? total / worst + packets / SLICES + 2 : 0;

    while (ch->free_count < needed) {
        struct channel_chunk *chunk = malloc(sizeof(*chunk));
        if (!chunk)
            return -ENOMEM;
        chunk->next_free = ch->free_chunks;
        ch->free_chunks = chunk;
        ch->free_count++;
    }
    return 0;
}

static void recycle(struct channel *ch, struct channel_chunk *chunk)
{
    if (ch->free_count >= CHANNEL_SPARE) {
        free(chunk);
        return;
    }
    chunk->next_free = ch->free_chunks;
    ch->free_chunks = chunk;
    ch->free_count++;
}

/* The slice at the end of the queue, with room for @size bytes; chunks are reserved. */
static struct channel_entry *slice_for(struct channel *ch, size_t size)
{
    struct channel_chunk *chunk = ch->chunk;
    bool room = chunk && CHANNEL_CHUNK - chunk->used >= size;

    if (ch->open_slice && room)
        return ch->open_slice;
    if (!room || chunk->slices == SLICES) {
        struct channel_chunk *full = chunk;
        chunk = ch->free_chunks;
        assert(chunk);
        ch->free_chunks = chunk->next_free;
        ch->free_count--;
        chunk->used = 0;
        chunk->slices = chunk->live = 0;
        ch->chunk = chunk;
        if (full && full->live == 0)
            recycle(ch, full);
    }
    struct channel_entry *slice = &chunk->slice[chunk->slices++];
    chunk->live++;
    *slice = (struct channel_entry){.chunk = chunk, .payload = chunk->data + chunk->used};
    push(ch, slice);
    ch->open_slice = slice;
    return slice;
}

/* A slice has been sent or dropped. */
static void retire_slice(struct channel *ch, struct channel_chunk *chunk)
{
    if (--chunk->live > 0)
        return;
    if (chunk == ch->chunk) {
        chunk->used = 0;
        chunk->slices = 0;
    } else {
        recycle(ch, chunk);
    }
}

uint64_t channel_add(struct channel *ch, struct packet *packet, const void *payload, uint64_t bytes,
                     struct channel_entry *entry)
{
    struct wire_packet header;
    uint64_t check;

    assert(ch->closed == CHANNEL_OPEN);
    packet->channel = ch->index;
    packet->sequence = ++ch->last_sequence;
    check = wire_packet_encode(packet, &header);
    if (entry) {
        *entry = (struct channel_entry){
            .header = header,
            .payload = payload,
            .length = packet->length,
            .bytes = bytes,
            .last_sequence = packet->sequence,
        };
        push(ch, entry);
        ch->open_slice = NULL;
        return check;
    }
    uint32_t size = (uint32_t)sizeof(header) + packet->length;
    struct channel_entry *slice = slice_for(ch, size);
    char *to = ch->chunk->data + ch->chunk->used;
    memcpy(to, &header, sizeof(header));
    if (packet->length)
        memcpy(to + sizeof(header), payload, packet->length);
    ch->chunk->used += size;
    slice->length += size;
    slice->bytes += bytes;
    slice->last_sequence = packet->sequence;
    return check;
}

uint64_t channel_add_from(struct channel *ch, struct packet *packet, int fd, off_t offset, uint64_t bytes,
                          struct channel_entry *entry)
{
    uint64_t check = channel_add(ch, packet, NULL, bytes, entry);

    entry->fd = fd;
    entry->fd_offset = offset;
    return check;
}

void channel_add_unprepared(struct channel *ch, struct packet *packet, uint64_t bytes, struct channel_entry *entry)
{
    assert(ch->closed == CHANNEL_OPEN);
    packet->channel = ch->index;
    packet->sequence = ++ch->last_sequence;
    *entry = (struct channel_entry){.bytes = bytes, .last_sequence = packet->sequence, .unprepared = true};
    push(ch, entry);
    ch->open_slice = NULL;
}

uint64_t channel_prepare(const struct packet *packet, const void *payload, struct channel_entry *entry)
{
    entry->payload = payload;
    entry->length = packet->length;
    entry->unprepared = false;
    return wire_packet_encode(packet, &entry->header);
}

/* Whether there is something to send. */
static bool can_send(const struct channel *ch)
{
    return ch->head && !ch->head->unprepared;
}

/* Whether an entry's payload is read from a descriptor. */
static bool is_from_fd(const struct channel_entry *entry)
{
    return !entry->payload && entry->length > 0;
}

/*
 * Takes up to CHANNEL_BATCH bytes of entries off the queue; one whose payload is
 * read from a descriptor, *@from, is the last. Returns the number of parts.
 */
static int take_batch(struct channel *ch, struct iovec *iov, struct channel_entry **first,
                      const struct channel_entry **from)
{
    size_t total = 0;
    int n = 0;

    *first = ch->head;
    *from = NULL;
    struct channel_entry *last = NULL;
    while (can_send(ch) && n + 2 <= TRANSPORT_IOV_MAX && total < CHANNEL_BATCH && !*from) {
        struct channel_entry *entry = ch->head;
        if (!entry->chunk)
            iov[n++] = (struct iovec){&entry->header, sizeof(entry->header)};
        if (is_from_fd(entry))
            *from = entry;
        else if (entry->length)
            iov[n++] = (struct iovec){(void *)(uintptr_t)entry->payload, entry->length};
        total += iov[n - 1].iov_len;
        ch->head = entry->next;
        last = entry;
    }
    last->next = NULL;
    if (!ch->head) {
        ch->tail = &ch->head;
        ch->open_slice = NULL;
        ch->hurry = false;
    }
    return n;
}

/* Marks a batch as sent or dropped, wakes its owners, and returns what the gate is due. */
static uint64_t retire_batch(struct channel *ch, struct channel_entry *entry)
{
    uint64_t bytes = 0;

    while (entry) {
        struct channel_entry *next = entry->next;
        bytes += entry->bytes;
        ch->sent_sequence = entry->last_sequence;
        if (entry->chunk) {
            retire_slice(ch, entry->chunk);
        } else {
            entry->done = true;
            if (entry->waiting)
                pthread_cond_signal(&entry->wake);
        }
        entry = next;
    }
    return bytes;
}

/* An owner that sleeps, and so can take over. */
static struct channel_entry *next_waiting(struct channel *ch)
{
    struct channel_entry *entry = ch->head;

    while (entry && !entry->waiting)
        entry = entry->next;
    return entry;
}

/*
 * The sender's work; called and left with the lock held, ch->busy set at first.
 * @mine: the caller's own packet, or NULL when it was copied.
 */
static void send_queued(struct channel *ch, struct channel_entry *mine)
{
    while (can_send(ch)) {
        if (!mine || mine->done) {
            struct channel_entry *successor = next_waiting(ch);
            if (successor) {
                successor->chosen = true;
                pthread_cond_signal(&successor->wake);
                return;
            }
        }
        struct iovec iov[TRANSPORT_IOV_MAX];
        struct channel_entry *batch;
        const struct channel_entry *from;
        bool dead = ch->closed == CHANNEL_DEAD;
        int n = take_batch(ch, iov, &batch, &from);
        pthread_mutex_unlock(&ch->lock);

        int ret;
        if (dead)
            ret = -ECONNRESET;
        else if (from)
            ret = transport_send_fd(ch->transport, iov, n, from->fd, from->fd_offset, from->length);
        else
            ret = transport_send(ch->transport, iov, n);
        uint64_t wire_bytes = from ? from->length : 0;
        for (int i = 0; i < n; i++)
            wire_bytes += iov[i].iov_len;

        pthread_mutex_lock(&ch->lock);
        bool died = ret < 0 && ch->closed != CHANNEL_DEAD;
        if (died)
            ch->closed = CHANNEL_DEAD;
        if (ret == 0)
            ch->wire_bytes += wire_bytes;
        else
            ch->lost = true;
        uint64_t bytes = retire_batch(ch, batch);
        if (ch->flushers || died)
            pthread_cond_broadcast(&ch->progress);
        pthread_mutex_unlock(&ch->lock);
        gate_leave(ch->gate, bytes);
        if (died)
            ch->failed(ch->failed_arg, ch->index, ret);
        pthread_mutex_lock(&ch->lock);
    }
    ch->busy = false;
    if (ch->flushers || ch->closed != CHANNEL_OPEN)
        pthread_cond_broadcast(&ch->progress);
}

void channel_finish(struct channel *ch, struct channel_entry *entry)
{
    SCOPED_LOCK(&ch->lock);
    if (!entry) {
        if (!ch->busy && can_send(ch)) {
            ch->busy = true;
            send_queued(ch, NULL);
        }
        return;
    }
    while (!entry->done) {
        if (entry->chosen || (!ch->busy && can_send(ch))) {
            entry->chosen = false;
            ch->busy = true;
            send_queued(ch, entry);
            continue;
        }
        /* Somebody sends, or makes a payload that comes first; who does looks for owners that wait. */
        pthread_cond_init(&entry->wake, NULL);
        entry->waiting = true;
        while (!entry->done && !entry->chosen)
            pthread_cond_wait(&entry->wake, &ch->lock);
        entry->waiting = false;
        pthread_cond_destroy(&entry->wake);
    }
}

/* Whether all that is queued is small packets, too few to be sent yet. */
static bool is_too_little(const struct channel *ch)
{
    return ch->open_slice && ch->head == ch->open_slice && ch->head->length < CHANNEL_ENOUGH && !ch->busy &&
           !ch->hurry && ch->closed == CHANNEL_OPEN;
}

/* Called and left with the lock held. */
static void linger(struct channel *ch)
{
    struct timespec until;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += CHANNEL_LINGER_US * 1000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    ch->lingering = true;
    while (is_too_little(ch) && pthread_cond_timedwait(&ch->more, &ch->lock, &until) != ETIMEDOUT)
        ;
    ch->lingering = false;
}

void channel_finish_copied(struct channel *ch)
{
    SCOPED_LOCK(&ch->lock);
    if (is_too_little(ch)) {
        if (ch->lingering)
            return;
        linger(ch);
    }
    if (!ch->busy && can_send(ch)) {
        ch->busy = true;
        send_queued(ch, NULL);
    }
}

void channel_hurry(struct channel *ch)
{
    ch->hurry = ch->head;
    if (ch->lingering)
        pthread_cond_signal(&ch->more);
}

int channel_flush(struct channel *ch, uint64_t sequence, const struct interrupt *interrupt)
{
    int ret = 0;

    SCOPED_LOCK(&ch->lock);
    if (sequence > ch->last_sequence)
        sequence = ch->last_sequence;
    ch->flushers++;
    channel_hurry(ch);
    while (ret == 0 && ch->sent_sequence < sequence) {
        if (interrupt_is_hit(interrupt))
            ret = -EINTR;
        else if (ch->closed == CHANNEL_DEAD)
            ret = -ECONNRESET;
        else
            pthread_cond_wait(&ch->progress, &ch->lock);
    }
    ch->flushers--;
    return ret == 0 && ch->lost ? -ECONNRESET : ret;
}

void channel_close(struct channel *ch, enum channel_closed closed)
{
    SCOPED_LOCK(&ch->lock);
    if (ch->closed != CHANNEL_DEAD)
        ch->closed = closed;
    pthread_cond_broadcast(&ch->progress);
    pthread_cond_signal(&ch->more);
}

void channel_reopen(struct channel *ch)
{
    SCOPED_LOCK(&ch->lock);
    if (ch->closed == CHANNEL_SEALED)
        ch->closed = CHANNEL_OPEN;
}

void channel_kick(struct channel *ch)
{
    SCOPED_LOCK(&ch->lock);
    pthread_cond_broadcast(&ch->progress);
}

void channel_disconnect(struct channel *ch)
{
    SCOPED_LOCK(&ch->lock);
    assert(ch->closed != CHANNEL_OPEN);
    while (ch->busy || ch->head)
        pthread_cond_wait(&ch->progress, &ch->lock);
    transport_close(ch->transport);
    ch->transport = NULL;
}
