/* SPDX-License-Identifier: Apache-2.0 */
/* The sending side of a data channel; see channel.h. */
#include "channel.h"
#include "cleanup.h"
#include "clock.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <string.h>

/* How long the reaper asks before it looks whether it is interrupted, or the sender was told in its place. */
#define REAP_MS 20

/* How often the destination is listened to at once. */
#define APPLIED_TURNS 64

void channel_init(struct channel *ch, unsigned index, struct transport *transport, struct gate *gate,
                  void (*failed)(void *arg, unsigned index, int code), void *failed_arg)
{
    uint32_t copy_max = transport->traits.copy_max;

    *ch = (struct channel){
        .index = index,
        .transport = transport,
        .copy_max = copy_max < CHANNEL_COPY_MAX ? copy_max : CHANNEL_COPY_MAX,
        .splices = transport->traits.splices,
        .places = transport->traits.places,
        .gate = gate,
        .failed = failed,
        .failed_arg = failed_arg,
    };
    memcpy(ch->peer, transport->peer, sizeof(ch->peer));
    ch->tail = &ch->head;
    ch->in_flight_tail = &ch->in_flight;
    pthread_mutex_init(&ch->lock, NULL);
    pthread_cond_init(&ch->progress, NULL);
    clock_cond_init(&ch->more);
}

int channel_set_zerocopy(struct channel *ch, enum zerocopy_mode mode)
{
    int ret = mode == ZEROCOPY_OFF ? 0 : transport_zerocopy(ch->transport);

    zerocopy_init(&ch->zerocopy, mode, ret == 0);
    return mode == ZEROCOPY_REQUIRE ? ret : 0;
}

void channel_keep(struct channel *ch, uint64_t max)
{
    ch->keeps = ch->moved = true;
    kept_init(&ch->kept, max);
}

int channel_set_placing(struct channel *ch)
{
    return ch->places ? unapplied_init(&ch->unapplied) : 0;
}

static void push(struct channel *ch, struct channel_entry *entry)
{
    entry->next = NULL;
    *ch->tail = entry;
    ch->tail = &entry->next;
}

int channel_reserve(struct channel *ch, unsigned packets, size_t bytes)
{
    return chunk_reserve(&ch->chunks, packets, packets * sizeof(struct wire_packet) + bytes,
                         ch->copy_max + sizeof(struct wire_packet));
}

/* The slice at the end of the queue, with room for @size bytes; chunks are reserved. */
static struct channel_entry *slice_for(struct channel *ch, size_t size)
{
    if (ch->open_slice && chunk_has_room(&ch->chunks, size))
        return ch->open_slice;
    ch->open_slice = chunk_cut(&ch->chunks, size);
    push(ch, ch->open_slice);
    return ch->open_slice;
}

/* Fixes the packet's place in the order. */
static void number(struct channel *ch, struct packet *packet)
{
    assert(ch->closed == CHANNEL_OPEN);
    packet->channel = ch->index;
    packet->sequence = ++ch->last_sequence;
}

uint64_t channel_add_copied(struct channel *ch, struct packet *packet, const void *payload, uint64_t bytes)
{
    uint32_t size = (uint32_t)sizeof(struct wire_packet) + packet->length;
    struct wire_packet header;

    number(ch, packet);
    uint64_t check = wire_packet_encode(packet, &header);
    struct channel_entry *slice = slice_for(ch, size);
    char *to = chunk_take(&ch->chunks, slice, size);
    memcpy(to, &header, sizeof(header));
    if (packet->length)
        memcpy(to + sizeof(header), payload, packet->length);
    slice->bytes += bytes;
    slice->last_sequence = packet->sequence;
    return check;
}

/* Puts a packet into the queue that has an entry of its own, which says where the payload is. */
static void push_own(struct channel *ch, struct packet *packet, struct channel_entry *entry)
{
    number(ch, packet);
    entry->last_sequence = packet->sequence;
    push(ch, entry);
    ch->open_slice = NULL;
}

uint64_t channel_add(struct channel *ch, struct packet *packet, const void *payload, uint64_t bytes,
                     struct channel_entry *entry)
{
    *entry = (struct channel_entry){
        .place = CHANNEL_MEMORY, .payload = payload, .length = packet->length, .bytes = bytes};
    push_own(ch, packet, entry);
    return wire_packet_encode(packet, &entry->header);
}

uint64_t channel_add_staying(struct channel *ch, struct packet *packet, const void *payload, uint64_t bytes,
                             struct channel_entry *entry)
{
    uint64_t check = channel_add(ch, packet, payload, bytes, entry);

    entry->stays = true;
    return check;
}

uint64_t channel_add_parts(struct channel *ch, struct packet *packet, const struct iovec *parts,
                           unsigned count, uint64_t bytes, struct channel_entry *entry)
{
    assert(count <= CHANNEL_PARTS_MAX);
    *entry = (struct channel_entry){.place = CHANNEL_PARTS,
                                    .parts = parts,
                                    .part_count = count,
                                    .length = packet->length,
                                    .bytes = bytes};
    push_own(ch, packet, entry);
    return wire_packet_encode(packet, &entry->header);
}

uint64_t channel_add_pipe(struct channel *ch, struct packet *packet, int pipe, uint64_t bytes,
                          struct channel_entry *entry)
{
    *entry =
        (struct channel_entry){.place = CHANNEL_PIPE, .pipe = pipe, .length = packet->length, .bytes = bytes};
    push_own(ch, packet, entry);
    return wire_packet_encode(packet, &entry->header);
}

void channel_add_unmade(struct channel *ch, struct packet *packet, uint64_t bytes,
                        struct channel_entry *entry)
{
    *entry = (struct channel_entry){.place = CHANNEL_MEMORY, .bytes = bytes, .unmade = true};
    push_own(ch, packet, entry);
}

uint64_t channel_made(const struct packet *packet, const void *payload, struct channel_entry *entry)
{
    entry->payload = payload;
    entry->length = packet->length;
    entry->unmade = false;
    return wire_packet_encode(packet, &entry->header);
}

/* Reads a count of what is applied, or a part of it. 1 and *@count, when it is whole; 0; a negative errno. */
static int read_count(struct channel *ch, int flags, uint64_t *count)
{
    ssize_t n = transport_recv(ch->transport, ch->applied + ch->applied_have,
                               sizeof(ch->applied) - ch->applied_have, flags);

    if (n <= 0)
        return n < 0 ? (int)n : -ECONNRESET;
    ch->applied_have += (size_t)n;
    if (ch->applied_have < sizeof(ch->applied))
        return 0;
    ch->applied_have = 0;
    memcpy(count, ch->applied, sizeof(*count));
    *count = le64toh(*count);
    return 1;
}

/*
 * Reads what the destination says that it has applied. Called with the lock held; so one that goes on saying
 * it is not listened to for long.
 */
static void read_applied(struct channel *ch)
{
    for (unsigned turn = 0; ch->transport && turn < APPLIED_TURNS; turn++) {
        uint64_t count = 0;
        int ret = read_count(ch, TRANSPORT_NOWAIT, &count);
        if (ret < 0)
            return;
        if (ret > 0 && count <= ch->last_sequence)
            unapplied_pass(&ch->unapplied, count);
    }
}

bool channel_may_place(struct channel *ch, uint64_t offset, uint64_t len)
{
    if (!unapplied_is_empty(&ch->unapplied))
        read_applied(ch);
    return !unapplied_touches(&ch->unapplied, offset, len);
}

void channel_place(struct channel_entry *entry, const struct transport_key *key, uint64_t offset)
{
    entry->placed = true;
    entry->key = *key;
    entry->key_offset = offset;
}

void channel_note_unapplied(struct channel *ch, uint64_t offset, uint64_t len)
{
    unapplied_add(&ch->unapplied, ch->last_sequence, offset, len);
}

/* Whether there is something to send, or to drop. */
static bool can_send(const struct channel *ch)
{
    if (!ch->head || ch->head->unmade)
        return false;
    return !ch->keeps || ch->closed == CHANNEL_DEAD || (!ch->down && !kept_is_full(&ch->kept));
}

/* Whether a payload is worth being sent without a copy. */
static bool is_large(const struct channel *ch, const struct channel_entry *entry)
{
    return entry->place == CHANNEL_MEMORY && !entry->placed && !channel_copies(ch, entry->length);
}

/*
 * Takes up to CHANNEL_BATCH bytes of entries off the queue; one whose payload is in
 * a pipe is the last, and one that is sent without a copy is alone.
 */
static void take_batch(struct channel *ch, struct batch *batch)
{
    struct channel_entry *last = NULL;

    batch_begin(batch, ch->head);
    while (can_send(ch) && batch_has_room(batch, ch->head) && batch->bytes + batch->placed < CHANNEL_BATCH &&
           !batch->piped && !batch->zerocopy) {
        struct channel_entry *entry = ch->head;
        bool zerocopy = is_large(ch, entry) && zerocopy_may(&ch->zerocopy);
        if (zerocopy && batch->n)
            break;
        batch_add(batch, entry, zerocopy);
        if (is_large(ch, entry) && !zerocopy)
            batch->large += entry->length;
        ch->head = entry->next;
        last = entry;
    }
    last->next = NULL;
    if (!ch->head) {
        ch->tail = &ch->head;
        ch->open_slice = NULL;
        ch->hurry = false;
    }
}

/* An entry's buffer is its owner's again. */
static uint64_t retire(struct channel *ch, struct channel_entry *entry)
{
    uint64_t bytes = entry->bytes;

    if (entry->placed && !ch->lost)
        ch->placed_bytes += entry->length;
    if (entry->place == CHANNEL_SLICE) {
        chunk_retire(&ch->chunks, entry);
    } else if (entry->orphan) {
        free(entry);
    } else {
        entry->done = true;
        if (entry->waiting)
            pthread_cond_signal(&entry->wake);
    }
    return bytes;
}

/* Everything that has been sent, up to the first buffer that is not back. */
static void update_sent(struct channel *ch)
{
    ch->sent_sequence = ch->in_flight ? ch->in_flight->last_sequence - 1 : ch->left_sequence;
}

/* Retires what is back, and returns what the gate is due. */
static uint64_t retire_returned(struct channel *ch)
{
    uint64_t bytes = 0;

    while (ch->in_flight && ch->in_flight->ticket <= ch->returned) {
        struct channel_entry *entry = ch->in_flight;
        ch->in_flight = entry->next;
        if (!ch->in_flight)
            ch->in_flight_tail = &ch->in_flight;
        if (ch->closed == CHANNEL_DEAD)
            ch->lost = true;
        bytes += retire(ch, entry);
    }
    update_sent(ch);
    return bytes;
}

/* An entry has been sent, or the connection was lost meanwhile: keeps it, or the copy that was made of it. */
static uint64_t keep(struct channel *ch, struct channel_entry *entry)
{
    struct channel_entry *kept = kept_add(&ch->kept, entry);

    if (kept == entry)
        return 0;
    /* Without a copy there was no memory for one, and the channel is about to be dead. */
    if (kept)
        entry->bytes = 0; /* the copy has them now */
    return retire(ch, entry);
}

/* What is applied need not be kept. Returns what the gate is due. */
static uint64_t drop_applied(struct channel *ch)
{
    struct channel_entry *entry;
    uint64_t bytes = 0;

    while (ch->keeps && (entry = kept_take_applied(&ch->kept)))
        bytes += retire(ch, entry);
    return bytes;
}

/*
 * A batch has been sent or dropped, or is to be sent again (@keeps): wakes its owners, and returns what the
 * gate is due.
 */
static uint64_t retire_batch(struct channel *ch, struct channel_entry *entry, bool keeps)
{
    uint64_t bytes = 0;

    while (entry) {
        struct channel_entry *next = entry->next;
        if (ch->left_sequence < entry->last_sequence)
            ch->left_sequence = entry->last_sequence;
        if (entry->ticket) {
            entry->in_flight = true;
            entry->next = NULL;
            *ch->in_flight_tail = entry;
            ch->in_flight_tail = &entry->next;
            if (entry->waiting && !ch->reaping)
                pthread_cond_signal(&entry->wake);
        } else {
            bytes += keeps ? keep(ch, entry) : retire(ch, entry);
        }
        entry = next;
    }
    return bytes + drop_applied(ch) + retire_returned(ch);
}

/* Called with the lock held, which is given up meanwhile: declares the channel dead, and tells of it once. */
static void fail(struct channel *ch, int code)
{
    if (ch->closed == CHANNEL_DEAD)
        return;
    ch->closed = CHANNEL_DEAD;
    pthread_cond_broadcast(&ch->progress);
    pthread_mutex_unlock(&ch->lock);
    ch->failed(ch->failed_arg, ch->index, code);
    pthread_mutex_lock(&ch->lock);
}

/*
 * Called with the lock held, which is given up meanwhile, by a thread that waits
 * for what is in flight while nobody else reaps: asks the transport once.
 */
static void reap(struct channel *ch)
{
    struct transport_returns returns = ch->zerocopy.known;

    returns.ticket = ch->returned;
    ch->reaping = true;
    pthread_mutex_unlock(&ch->lock);
    transport_reap(ch->transport, REAP_MS, &returns);
    pthread_mutex_lock(&ch->lock);
    ch->reaping = false;
    if (ch->zerocopy.possible)
        zerocopy_returned(&ch->zerocopy, &returns);
    if (returns.ticket > ch->returned)
        ch->returned = returns.ticket;
    uint64_t bytes = retire_returned(ch);
    int verdict = zerocopy_verdict(&ch->zerocopy);
    if (ch->flushers)
        pthread_cond_broadcast(&ch->progress);
    if (bytes) {
        pthread_mutex_unlock(&ch->lock);
        gate_leave(ch->gate, bytes);
        pthread_mutex_lock(&ch->lock);
    }
    if (verdict < 0)
        fail(ch, verdict);
}

/* Somebody stops waiting for what is in flight: another one goes on asking. */
static void pass_reaping(struct channel *ch)
{
    struct channel_entry *entry = ch->in_flight;

    if (ch->reaping)
        return;
    while (entry && !entry->waiting)
        entry = entry->next;
    if (entry)
        pthread_cond_signal(&entry->wake);
    else if (ch->flushers)
        pthread_cond_broadcast(&ch->progress);
}

/* Called with the lock held, by a thread that waits on progress: until something has happened. */
static void await_progress(struct channel *ch)
{
    if ((ch->zerocopy.in_flight || ch->in_flight) && !ch->reaping) {
        reap(ch);
        return;
    }
    ch->flushers++;
    pthread_cond_wait(&ch->progress, &ch->lock);
    ch->flushers--;
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
 * Sends one large payload: without a copy as much as fits into the bound, and more
 * as soon as enough is back; what cannot go that way is copied. Called without the
 * lock.
 */
static int send_zerocopy(struct channel *ch, struct batch *batch)
{
    struct channel_entry *entry = batch->zerocopy;
    struct iovec iov[] = {batch->iov[0], {(void *)(uintptr_t)entry->payload, entry->length}};
    struct iovec *payload = &iov[1];
    int headers = 1, ret = 0;
    bool again = true;

    pthread_mutex_lock(&ch->lock);
    while (ret == 0 && again && payload->iov_len && zerocopy_may(&ch->zerocopy)) {
        struct transport_handed handed;
        if (ch->closed == CHANNEL_DEAD) {
            ret = -ECONNRESET;
            break;
        }
        size_t taken = zerocopy_take(&ch->zerocopy, payload->iov_len);
        if (!taken) {
            await_progress(ch);
            continue;
        }
        pthread_mutex_unlock(&ch->lock);
        ret = transport_send_zerocopy(ch->transport, iov, headers, payload->iov_base, taken, &handed);
        pthread_mutex_lock(&ch->lock);
        if (ret < 0)
            zerocopy_broken(&ch->zerocopy, taken, handed.bytes);
        else
            again = zerocopy_handed(&ch->zerocopy, taken, handed.bytes);
        if (handed.bytes)
            entry->ticket = handed.ticket;
        headers = 0;
        batch->uncopied += handed.bytes;
        payload->iov_base = (char *)payload->iov_base + handed.bytes;
        payload->iov_len -= handed.bytes;
    }
    pass_reaping(ch);
    pthread_mutex_unlock(&ch->lock);
    if (ret == 0 && payload->iov_len)
        ret = transport_send(ch->transport, iov + 1 - headers, 1 + headers);
    batch->bytes += payload->iov_len;
    batch->large += payload->iov_len;
    return ret;
}

/* Places what is to be placed: it is there before the headers, which follow. Called without the lock. */
static int place_batch(struct channel *ch, struct batch *batch)
{
    int ret = 0;

    for (struct channel_entry *entry = batch->entries; entry && ret == 0; entry = entry->next) {
        struct transport_handed handed;
        if (!entry->placed)
            continue;
        ret = transport_place(ch->transport, &entry->key, entry->key_offset, entry->payload, entry->length,
                              &handed);
        SCOPED_LOCK(&ch->lock);
        entry->ticket = handed.ticket;
    }
    return ret;
}

/* Called without the lock. */
static int send_batch(struct channel *ch, struct batch *batch)
{
    const struct channel_entry *piped = batch->piped;

    if (batch->zerocopy)
        return send_zerocopy(ch, batch);
    if (batch->placed) {
        int ret = place_batch(ch, batch);
        if (ret < 0)
            return ret;
    }
    if (!piped)
        return transport_send(ch->transport, batch->iov, batch->n);
    batch->uncopied = piped->length;
    return transport_send_pipe(ch->transport, batch->iov, batch->n, piped->pipe, piped->length);
}

/* Waits until so much may be sent. Called without the lock. */
static void keep_pace(struct channel *ch, uint64_t bytes)
{
    pthread_mutex_lock(&ch->lock);
    ch->paced = true;
    pthread_mutex_unlock(&ch->lock);
    pace_take(ch->pace, bytes);
    SCOPED_LOCK(&ch->lock);
    ch->paced = false;
}

/* A piece of a batch that is all in iov is sent. Called without the lock. */
static void count_piece(struct channel *ch, struct batch *batch, uint64_t bytes)
{
    SCOPED_LOCK(&ch->lock);
    if (ch->keeps) /* its position in the stream counts */
        return;
    ch->wire_bytes += bytes;
    zerocopy_copied(&ch->zerocopy, bytes, batch->counted ? 0 : batch->large);
    batch->counted = true;
}

/* The pieces come evenly: at a low rate a batch is a large part of what is sent in a second. Without the
 * lock. */
static int send_pieces(struct channel *ch, struct batch *batch)
{
    size_t sent = 0; /* of iov[i] */
    int i = 0, ret = 0;

    while (i < batch->n && ret == 0) {
        struct iovec piece[TRANSPORT_IOV_MAX];
        uint64_t room = pace_piece(ch->pace), bytes = 0;
        int n = 0;
        for (; i < batch->n && bytes < room; n++) {
            size_t left = batch->iov[i].iov_len - sent, len = left < room - bytes ? left : room - bytes;
            piece[n] = (struct iovec){(char *)batch->iov[i].iov_base + sent, len};
            bytes += len;
            sent = len < left ? sent + len : 0;
            i += len == left;
        }
        keep_pace(ch, bytes);
        ret = transport_send(ch->transport, piece, n);
        if (ret == 0)
            count_piece(ch, batch, bytes);
    }
    return ret;
}

/* Sends a batch as fast as it may be. Called without the lock. */
static int send_paced(struct channel *ch, struct batch *batch)
{
    uint64_t bytes = batch->bytes + batch->placed;

    if (!batch->placed && !batch->piped && !batch->zerocopy)
        return send_pieces(ch, batch);
    if (batch->piped)
        bytes += batch->piped->length;
    if (batch->zerocopy)
        bytes += batch->zerocopy->length;
    keep_pace(ch, bytes);
    return send_batch(ch, batch);
}

/* Called with the lock held. */
static void lose(struct channel *ch)
{
    if (ch->down)
        return;
    ch->down = true;
    transport_shutdown(ch->transport);
}

/* The stream has come so far, or has been before: what is sent once more is not counted once more. */
static void count_stream(struct channel *ch, uint64_t position)
{
    ch->wire_bytes = ch->wire_bytes < position ? position : ch->wire_bytes;
    ch->zerocopy.counters.copied_bytes = ch->wire_bytes;
}

/* The batch is sent. Called with the lock held. */
static void count_batch(struct channel *ch, const struct batch *batch, bool keeps)
{
    if (batch->counted)
        return;
    ch->wire_bytes += keeps ? 0 : batch->bytes + batch->uncopied + batch->placed;
    ch->spliced_bytes += batch->piped ? batch->uncopied : 0;
    zerocopy_copied(&ch->zerocopy, batch->bytes, batch->large);
}

/*
 * Called with the lock held: the batch that was in hand is not any more. @cured: another connection makes up
 * for it that @ret is an error. Returns what the gate is due.
 *
 * What a lost connection was given counts as sent, and is counted, from then on: the destination can tell of
 * it as soon as it has been sent again, before the thread that did so is here.
 */
static uint64_t put_down(struct channel *ch, struct batch *batch, bool keeps, bool cured, int ret)
{
    if (ret == 0)
        count_batch(ch, batch, keeps);
    else if (cured)
        lose(ch);
    else
        ch->lost = true;
    uint64_t bytes = retire_batch(ch, batch->entries, keeps);
    if (keeps && (ret == 0 || cured))
        count_stream(ch, kept_end(&ch->kept));
    ch->in_hand = false;
    if (ch->flushers)
        pthread_cond_broadcast(&ch->progress);
    return bytes;
}

/*
 * The sender's work; called and left with the lock held, ch->busy set at first.
 * @mine: the caller's own packet, or NULL when it was copied.
 */
static void send_queued(struct channel *ch, struct channel_entry *mine)
{
    while (can_send(ch)) {
        if (!mine || mine->done || mine->in_flight) {
            struct channel_entry *successor = next_waiting(ch);
            if (successor) {
                successor->chosen = true;
                pthread_cond_signal(&successor->wake);
                return;
            }
        }
        struct batch batch;
        bool dead = ch->closed == CHANNEL_DEAD;
        take_batch(ch, &batch);
        ch->in_hand = true;
        bool paced = !dead && ch->pace && pace_is_on(ch->pace);
        pthread_mutex_unlock(&ch->lock);

        int ret = dead ? -ECONNRESET : paced ? send_paced(ch, &batch) : send_batch(ch, &batch);
        bool keeps = ch->keeps && !dead;
        int copied = keeps ? kept_copy(batch.entries) : 0;
        ret = copied < 0 ? copied : ret;
        bool cured = keeps && kept_cures(ret);

        pthread_mutex_lock(&ch->lock);
        uint64_t bytes = put_down(ch, &batch, keeps, cured, ret);
        pthread_mutex_unlock(&ch->lock);
        gate_leave(ch->gate, bytes);
        pthread_mutex_lock(&ch->lock);
        if (ret < 0 && !cured)
            fail(ch, ret);
    }
    ch->busy = false;
    if (ch->flushers || ch->closed != CHANNEL_OPEN)
        pthread_cond_broadcast(&ch->progress);
}

/* Called and left with the lock held, by a thread that waits for none of what is queued. */
static void send_if_idle(struct channel *ch)
{
    if (ch->busy || !can_send(ch))
        return;
    ch->busy = true;
    send_queued(ch, NULL);
}

void channel_send_copied(struct channel *ch)
{
    SCOPED_LOCK(&ch->lock);
    send_if_idle(ch);
}

void channel_finish_entry(struct channel *ch, struct channel_entry *entry)
{
    SCOPED_LOCK(&ch->lock);
    bool reaped = false;
    while (!entry->done) {
        if (!entry->in_flight && (entry->chosen || (!ch->busy && can_send(ch)))) {
            entry->chosen = false;
            ch->busy = true;
            send_queued(ch, entry);
            continue;
        }
        if (entry->in_flight && !ch->reaping) {
            reap(ch);
            reaped = true;
            continue;
        }
        /* Somebody sends, reaps, or makes a payload that comes first, and looks for owners that wait. */
        pthread_cond_init(&entry->wake, NULL);
        entry->waiting = true;
        while (!entry->done && !entry->chosen && !(entry->in_flight && !ch->reaping))
            pthread_cond_wait(&entry->wake, &ch->lock);
        entry->waiting = false;
        pthread_cond_destroy(&entry->wake);
    }
    if (reaped)
        pass_reaping(ch);
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
    struct timespec until = clock_timespec(clock_ns() + CHANNEL_LINGER_US * 1000);

    ch->lingering = true;
    while (is_too_little(ch) && pthread_cond_timedwait(&ch->more, &ch->lock, &until) != ETIMEDOUT)
        ;
    ch->lingering = false;
}

void channel_linger_copied(struct channel *ch)
{
    SCOPED_LOCK(&ch->lock);
    if (is_too_little(ch)) {
        if (ch->lingering)
            return;
        linger(ch);
    }
    send_if_idle(ch);
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
    channel_hurry(ch);
    ch->drains += ch->places && ch->sent_sequence < sequence;
    while (ret == 0 && ch->sent_sequence < sequence) {
        if (interrupt_is_hit(interrupt))
            ret = -EINTR;
        else if (ch->closed == CHANNEL_DEAD)
            ret = -ECONNRESET;
        else
            await_progress(ch);
    }
    pass_reaping(ch);
    if (ret == 0)
        zerocopy_barrier(&ch->zerocopy);
    int verdict = zerocopy_verdict(&ch->zerocopy);
    if (verdict < 0) {
        fail(ch, verdict);
        return verdict;
    }
    return ret == 0 && ch->lost ? -ECONNRESET : ret;
}

bool channel_is_owed(struct channel *ch, uint64_t applied, uint64_t *moved)
{
    SCOPED_LOCK(&ch->lock);
    uint64_t done = applied < ch->sent_sequence ? applied : ch->sent_sequence;
    *moved = ch->wire_bytes + ch->left_sequence + ch->sent_sequence;
    return !ch->paced && (ch->busy || ch->left_sequence > done);
}

static void add_figures(struct transport_figures *sum, const struct transport_figures *figures)
{
    sum->partial_drains += figures->partial_drains;
    sum->registrations += figures->registrations;
    sum->evictions += figures->evictions;
    sum->registered_bytes += figures->registered_bytes;
    sum->rnr_naks += figures->rnr_naks;
    sum->retries += figures->retries;
}

void channel_figures(struct channel *ch, struct transport_figures *out, uint64_t *drains)
{
    SCOPED_LOCK(&ch->lock);
    if (ch->transport)
        transport_figures(ch->transport, ch->of_group, out);
    add_figures(out, &ch->figures);
    *drains += ch->drains;
}

void channel_close(struct channel *ch, enum channel_closed closed)
{
    SCOPED_LOCK(&ch->lock);
    if (ch->closed != CHANNEL_DEAD)
        ch->closed = closed;
    pthread_cond_broadcast(&ch->progress);
    pthread_cond_signal(&ch->more);
    /* Nobody may be there to drop what waited for a connection. */
    if (ch->keeps && closed == CHANNEL_DEAD)
        send_if_idle(ch);
}

void channel_end(struct channel *ch)
{
    channel_close(ch, CHANNEL_DEAD);
    SCOPED_LOCK(&ch->lock);
    if (ch->transport)
        transport_shutdown(ch->transport);
}

int channel_hear(struct channel *ch)
{
    uint64_t count = 0;
    int ret = read_count(ch, 0, &count);

    if (ret <= 0)
        return ret == -EINTR ? 0 : ret;
    pthread_mutex_lock(&ch->lock);
    bool valid = count >= ch->kept.applied && count <= ch->last_sequence;
    if (valid) {
        ch->moved |= count > ch->kept.applied;
        ch->kept.applied = count;
    }
    uint64_t bytes = drop_applied(ch);
    pthread_mutex_unlock(&ch->lock);
    gate_leave(ch->gate, bytes);
    channel_send_copied(ch);
    return valid ? 0 : 1;
}

bool channel_is_dead(struct channel *ch)
{
    SCOPED_LOCK(&ch->lock);
    return ch->closed == CHANNEL_DEAD;
}

void channel_lose(struct channel *ch)
{
    SCOPED_LOCK(&ch->lock);
    lose(ch);
}

void channel_await_quiet(struct channel *ch)
{
    SCOPED_LOCK(&ch->lock);
    ch->flushers++;
    while (ch->in_hand)
        pthread_cond_wait(&ch->progress, &ch->lock);
    ch->flushers--;
}

int channel_renew(struct channel *ch, struct transport *transport, uint64_t received)
{
    /* As long as it is lost nothing is taken up to be sent. */
    channel_await_quiet(ch);
    pthread_mutex_lock(&ch->lock);
    int ret = ch->closed == CHANNEL_DEAD ? -ECANCELED : kept_has_sent(&ch->kept, received) ? 0 : -EPROTO;
    if (ret < 0) {
        pthread_mutex_unlock(&ch->lock);
        return ret;
    }
    struct transport *old = ch->transport;
    struct channel_entry *entry;
    uint64_t bytes = 0;
    ch->transport = transport;
    ch->applied_have = 0;
    ch->moved = received > ch->renewed_at;
    ch->renewed_at = received;
    while ((entry = kept_take_received(&ch->kept, received)))
        bytes += retire(ch, entry);
    kept_put_back(&ch->kept, &ch->head, &ch->tail);
    ch->down = false;
    pthread_mutex_unlock(&ch->lock);
    transport_close(old);
    gate_leave(ch->gate, bytes);
    channel_send_copied(ch);
    return 0;
}

bool channel_has_moved(struct channel *ch)
{
    SCOPED_LOCK(&ch->lock);
    return ch->moved;
}

bool channel_is_idle(struct channel *ch)
{
    SCOPED_LOCK(&ch->lock);
    return !ch->head && !ch->in_hand && !ch->kept.first;
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

/* It is over: nothing is kept any more. Returns what the gate is due. */
static uint64_t drop_kept(struct channel *ch)
{
    ch->kept.applied = UINT64_MAX;
    return drop_applied(ch);
}

void channel_disconnect(struct channel *ch)
{
    pthread_mutex_lock(&ch->lock);
    assert(ch->closed != CHANNEL_OPEN);
    while (ch->busy || ch->head || ch->in_flight || ch->reaping)
        await_progress(ch);
    transport_figures(ch->transport, ch->of_group, &ch->figures);
    ch->figures.registered_bytes = 0;
    struct transport *transport = ch->transport;
    ch->transport = NULL;
    uint64_t bytes = drop_kept(ch);
    pthread_mutex_unlock(&ch->lock);
    gate_leave(ch->gate, bytes);
    /* That may take its time, in which the figures are asked for. */
    transport_close(transport);
    SCOPED_LOCK(&ch->lock);
    chunk_fini(&ch->chunks);
    unapplied_fini(&ch->unapplied);
}

void channel_fini(struct channel *ch)
{
    assert(!ch->head && !ch->busy && !ch->in_flight);
    drop_kept(ch);
    transport_close(ch->transport);
    chunk_fini(&ch->chunks);
    unapplied_fini(&ch->unapplied);
    pthread_cond_destroy(&ch->more);
    pthread_cond_destroy(&ch->progress);
    pthread_mutex_destroy(&ch->lock);
}
