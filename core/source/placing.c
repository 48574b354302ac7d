/* SPDX-License-Identifier: Apache-2.0 */
/* What of the destination's RAM may be written from here; see placing.h. */
#include "placing.h"
#include "cleanup.h"
#include "clock.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void placing_init(struct placing *p, struct session *session, uint64_t chunk_size)
{
    *p = (struct placing){.main = session, .chunk_size = chunk_size, .most = UINT32_MAX};
    pthread_mutex_init(&p->lock, NULL);
    clock_cond_init(&p->changed);
}

void placing_fini(struct placing *p)
{
    free(p->chunks);
    pthread_cond_destroy(&p->changed);
    pthread_mutex_destroy(&p->lock);
}

/* All of what follows is called with placing.lock held, unless it is said. */

static int reach(struct placing *p, uint64_t number)
{
    if (number < p->count)
        return 0;
    uint64_t count = number + 1 > 2 * p->count ? number + 1 : 2 * p->count;
    struct placing_chunk *chunks = realloc(p->chunks, count * sizeof(*chunks));
    if (!chunks)
        return -ENOMEM;
    memset(chunks + p->count, 0, (count - p->count) * sizeof(*chunks));
    p->chunks = chunks;
    p->count = count;
    return 0;
}

static void tell(struct placing *p, enum wire_message_type type, uint64_t number, uint64_t len)
{
    uint8_t buf[16];
    struct wire_writer body = {buf, buf, buf + sizeof(buf)};

    wire_write_u64(&body, number * p->chunk_size);
    wire_write_u64(&body, len);
    session_send(p->main, type, 0, buf, wire_written(&body));
}

static void ask(struct placing *p, uint64_t number, uint64_t len)
{
    struct placing_chunk *chunk = &p->chunks[number];

    chunk->state = PLACING_ASKED;
    chunk->len = len;
    chunk->used = ++p->clock;
    p->held++;
    p->pending++;
    tell(p, WIRE_EXPOSE, number, len);
}

static void withdraw(struct placing *p, uint64_t number)
{
    tell(p, WIRE_WITHDRAW, number, p->chunks[number].len);
    p->chunks[number] = (struct placing_chunk){0};
    p->held--;
    p->figures.chunks--;
}

/* Gives back the chunk that was used longest ago, and is not in use. Return: whether there is one. */
static bool evict(struct placing *p)
{
    struct placing_chunk *oldest = NULL;

    for (struct placing_chunk *chunk = p->chunks; chunk < p->chunks + p->count; chunk++) {
        if (chunk->state == PLACING_EXPOSED && chunk->users == 0 && (!oldest || chunk->used < oldest->used))
            oldest = chunk;
    }
    if (!oldest)
        return false;
    p->figures.evictions++;
    withdraw(p, (uint64_t)(oldest - p->chunks));
    return true;
}

/* How much of a chunk there is; the image may end in it. */
static uint64_t length_of(const struct placing *p, uint64_t number, uint64_t size)
{
    uint64_t start = number * p->chunk_size, end = start + p->chunk_size;

    if (size && size < end)
        end = size;
    if (end > WIRE_OFFSET_MAX)
        end = WIRE_OFFSET_MAX;
    return start < end ? end - start : 0;
}

/* Asks for a chunk that is not there, if there may be one more. @needed: others make room for it. */
static void ask_if_possible(struct placing *p, uint64_t number, uint64_t size, bool needed)
{
    uint64_t len = length_of(p, number, size);

    if (!len || !p->most || reach(p, number) < 0 || p->chunks[number].state != PLACING_NONE ||
        p->chunks[number].refusals >= PLACING_TRIES)
        return;
    if (p->held >= p->most && (!needed || !evict(p)))
        return;
    ask(p, number, len);
}

int placing_want(struct placing *p, uint64_t offset, uint64_t len, uint64_t size,
                 const struct interrupt *interrupt)
{
    uint64_t number = offset / p->chunk_size;
    int ret = 0;

    SCOPED_LOCK(&p->lock);
    if (p->closed)
        return -ECANCELED;
    if (number < p->count && p->chunks[number].state == PLACING_EXPOSED &&
        offset + len <= number * p->chunk_size + p->chunks[number].len)
        return 0;
    /* After a refusal there is room for one chunk less, and it is asked for once more. */
    for (unsigned most = 0; ret == 0 && most != p->most;) {
        most = p->most;
        ask_if_possible(p, number, size, true);
        for (uint64_t ahead = 1; ahead <= PLACING_AHEAD; ahead++)
            ask_if_possible(p, number + ahead, size, false);
        while (ret == 0 && number < p->count && p->chunks[number].state == PLACING_ASKED) {
            if (p->closed)
                ret = -ECANCELED;
            else if (interrupt_is_hit(interrupt))
                ret = -EINTR;
            else
                pthread_cond_wait(&p->changed, &p->lock);
        }
        if (number < p->count && p->chunks[number].state == PLACING_EXPOSED)
            break;
    }
    return ret;
}

void placing_pin(struct placing *p, uint64_t size)
{
    SCOPED_LOCK(&p->lock);
    for (uint64_t number = 0; number * p->chunk_size < size; number++)
        ask_if_possible(p, number, size, false);
}

bool placing_is_pinned(struct placing *p, uint64_t size)
{
    SCOPED_LOCK(&p->lock);
    for (uint64_t number = 0; number * p->chunk_size < size; number++) {
        if (number >= p->count || p->chunks[number].state != PLACING_EXPOSED)
            return false;
    }
    return true;
}

bool placing_use(struct placing *p, uint64_t offset, uint64_t len, struct transport_key *key, uint64_t *at)
{
    uint64_t number = offset / p->chunk_size, within = offset % p->chunk_size;

    SCOPED_LOCK(&p->lock);
    if (number >= p->count || p->closed)
        return false;
    struct placing_chunk *chunk = &p->chunks[number];
    if (chunk->state != PLACING_EXPOSED || within + len > chunk->len)
        return false;
    chunk->users++;
    p->users++;
    chunk->used = ++p->clock;
    *key = chunk->key;
    *at = within;
    return true;
}

void placing_unuse(struct placing *p, uint64_t offset)
{
    SCOPED_LOCK(&p->lock);
    p->chunks[offset / p->chunk_size].users--;
    if (--p->users == 0 && p->withdrawing)
        pthread_cond_broadcast(&p->changed);
}

int placing_withdraw_all(struct placing *p, const struct interrupt *interrupt)
{
    SCOPED_LOCK(&p->lock);
    p->withdrawing = true;
    while ((p->pending || p->users) && !p->closed && !interrupt_is_hit(interrupt))
        pthread_cond_wait(&p->changed, &p->lock);
    p->withdrawing = false;
    if (p->closed)
        return 0;
    if (p->pending || p->users)
        return -EINTR;
    for (uint64_t number = 0; number < p->count; number++) {
        if (p->chunks[number].state == PLACING_EXPOSED)
            withdraw(p, number);
    }
    return 0;
}

/*
 * There is no room for one more; or, when others have made room and it is refused again, it is this chunk
 * that cannot be had.
 */
static void refuse(struct placing *p, struct placing_chunk *chunk)
{
    struct placing_chunk refused = {.refusals = chunk->refusals + 1, .most = chunk->most};

    p->held--;
    p->figures.refusals++;
    if (refused.refusals == 1) {
        refused.most = p->most;
        p->most = p->held;
    } else {
        p->most = refused.most;
    }
    *chunk = refused;
}

int placing_on_exposed(struct placing *p, struct wire_reader *body, struct error *err)
{
    uint64_t offset = wire_read_u64(body), address = wire_read_u64(body);
    uint32_t key = wire_read_u32(body), cause = wire_read_u32(body);
    uint64_t number = offset / p->chunk_size;

    SCOPED_LOCK(&p->lock);
    if (!wire_read_done(body) || offset % p->chunk_size || number >= p->count ||
        p->chunks[number].state != PLACING_ASKED)
        return error_set(err, CAUSE_PROTOCOL, "the destination exposes what nobody asked for");
    struct placing_chunk *chunk = &p->chunks[number];
    p->pending--;
    if (cause == CAUSE_NONE) {
        chunk->state = PLACING_EXPOSED;
        chunk->refusals = 0;
        chunk->key = (struct transport_key){.address = address, .key = key};
        p->figures.chunks++;
        p->figures.exposures++;
    } else {
        refuse(p, chunk);
    }
    pthread_cond_broadcast(&p->changed);
    return 0;
}

void placing_close(struct placing *p)
{
    SCOPED_LOCK(&p->lock);
    p->closed = true;
    pthread_cond_broadcast(&p->changed);
}

void placing_kick(struct placing *p)
{
    SCOPED_LOCK(&p->lock);
    pthread_cond_broadcast(&p->changed);
}

bool placing_is_answer_due(struct placing *p)
{
    SCOPED_LOCK(&p->lock);
    return p->pending;
}

struct placing_figures placing_figures(struct placing *p)
{
    SCOPED_LOCK(&p->lock);
    return p->figures;
}
