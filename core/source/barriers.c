/* SPDX-License-Identifier: Apache-2.0 */
/* Barriers of the source; see barriers.h. */
#include "barriers.h"
#include "cleanup.h"
#include "clock.h"

#include <errno.h>

/* A `sync` that waits for its acknowledgement. */
struct sync_waiter {
    uint64_t id;
    bool acked;
    struct sync_waiter *next;
};

void barriers_init(struct barriers *barriers, struct source *source, const struct streams *streams)
{
    *barriers = (struct barriers){.source = source, .streams = streams};
}

void barriers_forget(struct barriers *barriers)
{
    barriers->waiters = NULL;
    barriers->unanswered = 0;
    barriers->round_start = (struct round){0};
}

/* Whether channel_flush() says that zero-copy is required in vain: the data may be there, but the migration
 * fails. */
static bool is_verdict(int ret)
{
    return ret == -EOPNOTSUPP || ret == -ENOBUFS;
}

static int await_failure(struct migration *m, const struct interrupt *interrupt, struct error *err)
{
    SCOPED_LOCK(&m->lock);
    while (state_is_running(m->state) && !interrupt_is_hit(interrupt))
        pthread_cond_wait(&m->changed, &m->lock);
    if (state_is_running(m->state))
        return error_set(err, CAUSE_INTERRUPTED, "interrupted");
    return error_set(err, m->failure.cause, "%s", m->failure.message);
}

int barriers_flush(struct barriers *barriers, struct file *file, const struct interrupt *interrupt,
                   struct error *err)
{
    struct source *source = barriers->source;
    uint64_t counts[WIRE_CHANNELS_MAX];

    if (source_allows(source, COMMAND_FLUSH, err) < 0 ||
        source_drain_reference(source, file, interrupt, err) < 0)
        return -EIO;
    struct connection *conn = source_connection(source);
    connection_count(conn, file, counts);
    for (unsigned c = 0; c < conn->channel_count; c++) {
        int ret = channel_flush(&conn->channels[c], counts[c], interrupt);
        if (ret == -EINTR)
            return error_set(err, CAUSE_INTERRUPTED, "interrupted");
        if (is_verdict(ret))
            return await_failure(source->m, interrupt, err);
        if (ret < 0 && source_await_verdict(source, COMMAND_FLUSH, interrupt, err) == 0)
            return error_set(err, CAUSE_RESET, "the connection is lost");
        if (ret < 0)
            return -EIO;
    }
    return 0;
}

/* A barrier of RAM has been passed. */
static void end_round(struct barriers *barriers)
{
    struct migration *m = barriers->source->m;
    struct connection *conn = source_connection(barriers->source);

    SCOPED_LOCK(&m->lock);
    const struct round *start = &barriers->round_start;
    struct file_totals totals = file_totals(m->files[WIRE_RAM]);
    struct round sum = {
        .pages = totals.pages + totals.zero_pages,
        .bytes = totals.bytes + totals.zero_pages * WIRE_PAGE_SIZE,
        .wire_bytes = connection_wire_bytes(conn),
        .time_ms = clock_ms(),
    };
    m->last_round = (struct round){
        .pages = sum.pages - start->pages,
        .bytes = sum.bytes - start->bytes,
        .wire_bytes = sum.wire_bytes - start->wire_bytes,
        .time_ms = sum.time_ms - (start->time_ms ? start->time_ms : m->times.active),
    };
    barriers->round_start = sum;
    m->rounds++;
}

/* Waits until one sync more may be on its way. The caller holds migration.lock. */
static int await_turn(struct barriers *barriers, const struct interrupt *interrupt, struct error *err)
{
    struct migration *m = barriers->source->m;

    while (m->state == STATE_ACTIVE && barriers->unanswered >= WIRE_SYNCS_MAX && !interrupt_is_hit(interrupt))
        pthread_cond_wait(&m->changed, &m->lock);
    if (migration_allows(m, COMMAND_SYNC, err) < 0)
        return -EIO;
    return barriers->unanswered < WIRE_SYNCS_MAX ? 0 : error_set(err, CAUSE_INTERRUPTED, "interrupted");
}

/* Begins to wait. Sets @change to the change of names that has to be made, too. */
static int join(struct barriers *barriers, const struct file *file, struct sync_waiter *waiter,
                uint64_t *change, const struct interrupt *interrupt, struct error *err)
{
    SCOPED_LOCK(&barriers->source->m->lock);
    if (await_turn(barriers, interrupt, err) < 0)
        return -EIO;
    barriers->unanswered++;
    waiter->id = connection_next_id(source_connection(barriers->source));
    /* That the device has the name which it has here belongs to it. */
    *change = file && file->id != WIRE_RAM ? barriers->streams->last_change : 0;
    waiter->next = barriers->waiters;
    barriers->waiters = waiter;
    return 0;
}

/* Waits for the answer. */
static int await_ack(struct barriers *barriers, struct sync_waiter *waiter, uint64_t change,
                     const struct interrupt *interrupt, struct error *err)
{
    const struct streams *streams = barriers->streams;
    struct migration *m = barriers->source->m;
    struct sync_waiter **p = &barriers->waiters;

    SCOPED_LOCK(&m->lock);
    /* A `complete` that starts meanwhile does not end the wait: what it applies includes this. */
    while ((!waiter->acked || streams->last_made < change) && state_is_running(m->state) &&
           !interrupt_is_hit(interrupt))
        pthread_cond_wait(&m->changed, &m->lock);
    while (*p != waiter)
        p = &(*p)->next;
    *p = waiter->next;
    if ((waiter->acked && streams->last_made >= change) || m->state == STATE_COMPLETED)
        return 0;
    if (state_is_running(m->state))
        return error_set(err, CAUSE_INTERRUPTED, "interrupted");
    return error_set(err, m->failure.cause, "%s", m->failure.message);
}

int barriers_sync(struct barriers *barriers, struct file *file, const struct interrupt *interrupt,
                  struct error *err)
{
    struct source *source = barriers->source;
    uint64_t counts[WIRE_CHANNELS_MAX], change;
    uint8_t buf[sizeof(counts)];
    struct wire_writer body = wire_writer_of(buf, sizeof(buf));
    struct sync_waiter waiter = {0};

    if (source_allows(source, COMMAND_SYNC, err) < 0 ||
        source_drain_reference(source, file, interrupt, err) < 0 ||
        join(barriers, file, &waiter, &change, interrupt, err) < 0)
        return -EIO;
    struct connection *conn = source_connection(source);
    connection_count(conn, file, counts);
    for (unsigned c = 0; c < conn->channel_count; c++)
        wire_write_u64(&body, counts[c]);
    session_send(&conn->main, WIRE_SYNC, waiter.id, buf, wire_written(&body));
    if (await_ack(barriers, &waiter, change, interrupt, err) < 0)
        return -EIO;
    /*
     * The destination can be faster than the thread that has sent: its counters are to be exact, too.
     * A thread that is interrupted here has what it asked for.
     */
    for (unsigned c = 0; c < conn->channel_count; c++) {
        int flushed = channel_flush(&conn->channels[c], counts[c], interrupt);
        if (is_verdict(flushed))
            return await_failure(source->m, interrupt, err);
    }
    if (!file || file->id == WIRE_RAM)
        end_round(barriers);
    return 0;
}

void barriers_on_ack(struct barriers *barriers, uint64_t id)
{
    struct migration *m = barriers->source->m;

    SCOPED_LOCK(&m->lock);
    if (barriers->unanswered)
        barriers->unanswered--;
    for (struct sync_waiter *waiter = barriers->waiters; waiter; waiter = waiter->next) {
        if (waiter->id == id)
            waiter->acked = true;
    }
    pthread_cond_broadcast(&m->changed);
}

bool barriers_is_answer_due(const struct barriers *barriers)
{
    return barriers->unanswered;
}
