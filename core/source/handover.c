/* SPDX-License-Identifier: Apache-2.0 */
/* The hand-over to the destination; see handover.h. */
#include "handover.h"
#include "cleanup.h"
#include "clock.h"
#include "host.h"
#include "log.h"

#include <errno.h>
#include <poll.h>

#define RETRY_MS    200  /* between two questions about what became of a migration */
#define LAST_ASK_MS 2000 /* how long a daemon that goes away waits for the answer to its last one */

void handover_init(struct handover *handover, struct source *source, struct streams *streams,
                   struct question *question)
{
    *handover = (struct handover){.source = source, .streams = streams, .question = question};
}

void handover_forget(struct handover *handover)
{
    handover->prepared_id = handover->manifest_id = handover->commit_id = 0;
}

/* From active to completing. */
static int begin(struct handover *handover, const struct interrupt *interrupt, struct error *err)
{
    struct migration *m = handover->source->m;

    pthread_mutex_lock(&m->lock);
    /* No device may be on its way to being made while the files are counted. */
    int ret = streams_await_turn(handover->streams, interrupt, err);
    if (ret == 0)
        ret = migration_allows(m, COMMAND_COMPLETE, err);
    if (ret == 0)
        migration_move(m, STATE_COMPLETING, NULL);
    pthread_mutex_unlock(&m->lock);
    if (ret == 0)
        migration_announce(m);
    return ret;
}

/* Lets nothing more in, and waits until all has left. False: interrupted, or the migration fails, which shows
 * in its state. */
static bool seal(struct handover *handover, struct connection *conn, const struct interrupt *interrupt)
{
    struct reference *ref = handover->source->reference;
    bool left = true;

    if (ref) {
        reference_seal(ref, true);
        /* The last round: nobody else says what has changed. */
        if (handover->source->tracking)
            reference_mark_all(ref);
        /* Before all is drained its senders still need the channels. */
        if (reference_drain(ref, interrupt) < 0)
            return false;
    }
    for (unsigned c = 0; c < conn->channel_count; c++)
        channel_close(&conn->channels[c], CHANNEL_SEALED);
    /* What is still being compressed is counted when it is sent. */
    for (unsigned c = 0; c < conn->channel_count; c++)
        left = channel_flush(&conn->channels[c], UINT64_MAX, interrupt) == 0 && left;
    return left && !interrupt_is_hit(interrupt);
}

/* Back from completing to active: data is accepted again. The caller holds migration.lock. */
static void go_on(struct handover *handover, struct connection *conn)
{
    handover->manifest_id = 0;
    migration_move(handover->source->m, STATE_ACTIVE, NULL);
    for (unsigned c = 0; c < conn->channel_count; c++)
        channel_reopen(&conn->channels[c]);
    if (handover->source->reference)
        reference_seal(handover->source->reference, false);
    streams_tell_all(handover->streams);
}

static void write_manifest(struct handover *handover, struct connection *conn, struct wire_writer *body)
{
    struct migration *m = handover->source->m;
    uint64_t counts[WIRE_CHANNELS_MAX];

    connection_count(conn, NULL, counts);
    for (unsigned c = 0; c < conn->channel_count; c++)
        wire_write_u64(body, counts[c]);
    SCOPED_LOCK(&m->lock);
    wire_write_u32(body, 1 + migration_count_devices(m));
    for (uint32_t i = 0; i < m->file_count; i++) {
        struct file *file = m->files[i];
        if (!file || file_is_removed(file))
            continue;
        struct file_totals totals = file_totals(file);
        wire_write_u32(body, i);
        wire_write_u32(body, 0);
        wire_write_u64(body, atomic_load(&file->size));
        wire_write_u64(body, totals.packets);
        wire_write_u64(body, totals.bytes);
        wire_write_u64(body, totals.digest);
    }
}

/* All channels are sealed. */
static int send_manifest(struct handover *handover, struct connection *conn, uint64_t id, struct error *err)
{
    CLEANUP_FREE uint8_t *buf = malloc(WIRE_BODY_MAX);
    struct wire_writer body = wire_writer_of(buf, WIRE_BODY_MAX);

    if (!buf)
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    write_manifest(handover, conn, &body);
    session_send(&conn->main, WIRE_COMPLETE, id, buf, wire_written(&body));
    return 0;
}

/* Waits until the destination has everything that manifest @id (0: none was sent) is about. */
static bool await_prepared(struct handover *handover, uint64_t id, const struct interrupt *interrupt,
                           struct error *err)
{
    struct migration *m = handover->source->m;

    SCOPED_LOCK(&m->lock);
    handover->manifest_id = id;
    while (m->state == STATE_COMPLETING && (!id || handover->prepared_id != id) &&
           !interrupt_is_hit(interrupt))
        pthread_cond_wait(&m->changed, &m->lock);
    if (m->state != STATE_COMPLETING)
        return false;
    if (!id || handover->prepared_id != id) {
        error_set(err, CAUSE_INTERRUPTED, "interrupted");
        return false;
    }
    return true;
}

/* Sends all, and has it checked at the other end. False: @failure says why, or the migration's state does. */
static bool send_and_check(struct handover *handover, struct connection *conn, uint64_t id,
                           const struct interrupt *interrupt, struct error *failure)
{
    bool sent = seal(handover, conn, interrupt) && placing_withdraw_all(&conn->placing, interrupt) == 0;

    if (sent && send_manifest(handover, conn, id, failure) < 0)
        return false;
    return await_prepared(handover, sent ? id : 0, interrupt, failure) &&
           question_verify(handover->question, interrupt, failure) == 0;
}

/* From here on there is no way back. The caller holds migration.lock. */
static void commit(struct handover *handover, struct connection *conn, uint64_t id)
{
    struct error silent = {0};

    error_set(&silent, CAUSE_TIMEOUT, "the destination does not confirm that it has completed");
    handover->commit_id = id;
    atomic_store(&conn->committed, true);
    source_doom(handover->source, &silent, handover->source->m->settings.timeout_ms);
    session_send(&conn->main, WIRE_COMMIT, id, NULL, 0);
}

int handover_complete(struct handover *handover, const struct interrupt *interrupt, struct error *err)
{
    struct migration *m = handover->source->m;
    struct error failure = {0};

    if (begin(handover, interrupt, err) < 0)
        return -EIO;
    struct connection *conn = source_connection(handover->source);
    uint64_t id = connection_next_id(conn);
    bool checked = send_and_check(handover, conn, id, interrupt, &failure);
    bool passing = failure.cause == CAUSE_INTERRUPTED || failure.cause == CAUSE_NO_MEMORY;
    if (error_is_set(&failure) && !passing)
        migration_fail(m, &failure);
    pthread_mutex_lock(&m->lock);
    bool goes_on = passing && m->state == STATE_COMPLETING;
    if (goes_on)
        go_on(handover, conn);
    else if (checked && m->state == STATE_COMPLETING)
        commit(handover, conn, id);
    /*
     * After the commit there is no interrupt: a writer that is told that `complete` was interrupted goes on
     * with the VM here. The doom of the migration bounds the wait.
     */
    while (!goes_on && m->state == STATE_COMPLETING)
        pthread_cond_wait(&m->changed, &m->lock);
    bool completed = !goes_on && m->state == STATE_COMPLETED;
    if (!goes_on && !completed)
        error_set(err, m->failure.cause, "%s", m->failure.message);
    pthread_mutex_unlock(&m->lock);
    if (goes_on) {
        migration_announce(m);
        return error_set(err, failure.cause, "%s: the migration goes on", failure.message);
    }
    return completed ? 0 : -EIO;
}

bool handover_is_committing(const struct handover *handover)
{
    return handover->commit_id && handover->source->m->state == STATE_COMPLETING;
}

void handover_delay(struct handover *handover)
{
    struct source *source = handover->source;

    SCOPED_LOCK(&source->m->lock);
    if (handover_is_committing(handover))
        source->doom_at = clock_ms() + source->m->settings.timeout_ms;
}

/* Asks until there is an answer, or no time. */
static bool ask(struct handover *handover, struct connection *conn, enum wire_outcome *outcome,
                struct error *last)
{
    struct migration *m = handover->source->m;
    int64_t deadline = clock_ms() + m->settings.timeout_ms;
    bool last_time = false;

    while (!last_time && clock_ms() < deadline) {
        struct pollfd fd = {.fd = handover->source->cancel_fd, .events = POLLIN};
        struct transport_wait wait = {.cancel_fd = fd.fd, .deadline_ms = clock_ms() + m->settings.timeout_ms};
        /* A daemon that goes away asks once, and does not wait for long. */
        last_time = atomic_load(&m->host->closed);
        if (last_time)
            wait = (struct transport_wait){.cancel_fd = -1, .deadline_ms = clock_ms() + LAST_ASK_MS};
        *last = (struct error){0};
        if (connection_ask(conn, &wait, outcome, last) == 0)
            return true;
        if (last->cause == CAUSE_REFUSED)
            return false;
        poll(&fd, 1, RETRY_MS);
    }
    return false;
}

void handover_resolve(struct handover *handover, struct connection *conn, const struct error *lost)
{
    struct migration *m = handover->source->m;
    struct error failure = {0}, last = {0};
    enum wire_outcome outcome = WIRE_OUTCOME_UNKNOWN;

    log_info("%s: lost the connection at the last step (%s); asking what became of it", m->name,
             lost->message);
    bool answered = ask(handover, conn, &outcome, &last);
    if (outcome == WIRE_OUTCOME_COMPLETED) {
        pthread_mutex_lock(&m->lock);
        bool moved = migration_move(m, STATE_COMPLETED, NULL);
        pthread_mutex_unlock(&m->lock);
        if (moved)
            log_info("%s: completed, as the destination says", m->name);
        migration_announce(m);
        return;
    }
    if (outcome == WIRE_OUTCOME_FAILED)
        error_set(&failure, lost->cause, "%s; the destination has not completed", lost->message);
    else
        error_set(
            &failure, lost->cause,
            "%s, and the destination cannot say whether it has completed (%s): look there before the VM goes "
            "on here",
            lost->message, answered ? "it does not know the migration" : last.message);
    migration_fail(m, &failure);
}

void handover_on_prepared(struct handover *handover, uint64_t id)
{
    struct migration *m = handover->source->m;

    SCOPED_LOCK(&m->lock);
    handover->prepared_id = id;
    pthread_cond_broadcast(&m->changed);
}

int handover_on_committed(struct handover *handover, uint64_t id, struct error *err)
{
    struct migration *m = handover->source->m;

    pthread_mutex_lock(&m->lock);
    bool moved = handover->commit_id && handover->commit_id == id && migration_move(m, STATE_COMPLETED, NULL);
    pthread_mutex_unlock(&m->lock);
    if (!moved)
        return error_set(err, CAUSE_PROTOCOL, "the destination has completed what it was not asked to");
    log_info("%s: completed", m->name);
    migration_announce(m);
    return 0;
}

bool handover_is_answer_due(const struct handover *handover)
{
    return handover->manifest_id && handover->prepared_id != handover->manifest_id;
}
