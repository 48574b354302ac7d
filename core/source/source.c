/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of the source's role have in common; see source.h. */
#include "source.h"
#include "cleanup.h"
#include "clock.h"
#include "tracking.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

void source_init(struct source *source, struct migration *m)
{
    source->m = m;
    source->cancel_fd = -1;
    again_init(&source->again);
}

void source_fini(struct source *source)
{
    if (source->reference)
        reference_stop(source->reference);
    connection_free(source->connection);
    reference_free(source->reference);
    tracking_free(source->tracking);
    source_close_cancel(source);
}

struct plan_rules source_rules(const struct source *source, const struct connection *conn,
                               const struct file *file)
{
    return (struct plan_rules){
        .compress = conn->compressor,
        .checksum = migration_checks(source->m, file),
        .zero_pages = source->m->settings.zero_pages && file->id == WIRE_RAM,
        .copy_max = conn->copy_max,
        .large = PLAN_KEPT,
    };
}

int source_allows(struct source *source, enum command command, struct error *err)
{
    SCOPED_LOCK(&source->m->lock);
    return migration_allows(source->m, command, err);
}

void source_doom(struct source *source, const struct error *reason, int64_t delay_ms)
{
    int64_t at = clock_ms() + delay_ms;

    if (error_is_set(&source->doom) && source->doom_at <= at)
        return;
    source->doom = *reason;
    source->doom_at = at;
    source_wake_reader(source);
}

int source_await_verdict(struct source *source, enum command command, const struct interrupt *interrupt,
                         struct error *err)
{
    struct migration *m = source->m;

    SCOPED_LOCK(&m->lock);
    while (m->state == STATE_ACTIVE && error_is_set(&source->doom)) {
        if (interrupt_is_hit(interrupt))
            return error_set(err, CAUSE_INTERRUPTED, "interrupted");
        pthread_cond_wait(&m->changed, &m->lock);
    }
    return migration_allows(m, command, err);
}

int source_drain_reference(struct source *source, const struct file *file, const struct interrupt *interrupt,
                           struct error *err)
{
    struct reference *ref = source->reference;

    if (!ref || (file && file->id != WIRE_RAM))
        return 0;
    int ret = reference_drain(ref, interrupt);
    if (ret == -EINTR)
        return error_set(err, CAUSE_INTERRUPTED, "interrupted");
    if (ret < 0 && source_await_verdict(source, COMMAND_WRITE, interrupt, err) == 0)
        return error_set(err, CAUSE_RESET, "the connection is lost");
    return ret;
}

void source_interrupt_start(struct source *source)
{
    if (source->cancel_fd >= 0)
        eventfd_write(source->cancel_fd, 1);
}

void source_close_cancel(struct source *source)
{
    if (source->cancel_fd >= 0)
        close(source->cancel_fd);
    source->cancel_fd = -1;
}

void source_wake_reader(struct source *source)
{
    struct connection *conn = source->opening ? source->opening : source_connection(source);

    if (conn)
        session_wake(&conn->main);
}

bool source_is_leaving(const struct source *source)
{
    return source->starting && !state_is_running(source->m->state);
}

int source_await_starter(struct source *source, const struct interrupt *interrupt, struct error *err)
{
    while (source_is_leaving(source)) {
        if (interrupt_is_hit(interrupt))
            return error_set(err, CAUSE_INTERRUPTED, "interrupted");
        pthread_cond_wait(&source->m->changed, &source->m->lock);
    }
    return 0;
}

bool source_is_unstarted(const struct source *source)
{
    const struct migration *m = source->m;

    if (m->role == ROLE_INCOMING || source->starting || m->was_active)
        return false;
    return m->state == STATE_NONE || (state_is_final(m->state) && m->state != STATE_COMPLETED);
}

int source_settings_writable(struct source *source, const struct interrupt *interrupt, struct error *err)
{
    if (source->m->role == ROLE_INCOMING)
        return error_set(err, CAUSE_STATE, "the settings of an incoming migration are its source's");
    if (source_await_starter(source, interrupt, err) < 0)
        return -EIO;
    if (source_is_unstarted(source))
        return 0;
    return error_set(err, CAUSE_STATE, "settings cannot be changed once the migration has started");
}
