/* SPDX-License-Identifier: Apache-2.0 */
/* What writers ask of the source; see writes.h. */
#include "writes.h"
#include "cleanup.h"
#include "tracking.h"

#include <assert.h>
#include <errno.h>

/* Data is allowed, so that the connection is there. */
static int check_active(struct source *source, struct error *err)
{
    /* Not there, and active: the migration has become incoming. */
    if (atomic_load_explicit(&source->m->state, memory_order_acquire) == STATE_ACTIVE &&
        source_connection(source))
        return 0;
    return source_allows(source, COMMAND_WRITE, err);
}

/* Whether [.., end) may be written: not past what was declared or is allowed. */
static int check_size(struct source *source, struct file *file, uint64_t offset, uint64_t len,
                      struct error *err)
{
    char name[WIRE_NAME_SIZE];

    if (len > WIRE_OFFSET_MAX || offset > WIRE_OFFSET_MAX - len)
        return error_set(err, CAUSE_TOO_BIG, "'%.64s': no file has more than %llu bytes",
                         file_name(file, name), WIRE_OFFSET_MAX);
    if (file->declared && offset + len > file->declared)
        return error_set(
            err, CAUSE_TOO_BIG, "'%.64s' was declared to have %llu bytes; the write ends at %llu",
            file_name(file, name), (unsigned long long)file->declared, (unsigned long long)(offset + len));
    return connection_check_size(source_connection(source), file, offset + len, err);
}

/* Whether a write may be taken now. */
static int admit(struct source *source, struct file *file, size_t len, uint64_t offset,
                 const struct interrupt *interrupt, struct error *err)
{
    assert(len <= PLAN_WRITE_MAX);
    if (check_active(source, err) < 0 || check_size(source, file, offset, len, err) < 0)
        return -EIO;
    return source_drain_reference(source, file, interrupt, err);
}

/* The sender has taken nothing, for @reason. 0: try again. */
static int explain(struct source *source, int reason, const struct interrupt *interrupt, struct error *err)
{
    switch (reason) {
    case -EINTR:
        return error_set(err, CAUSE_INTERRUPTED, "interrupted");
    case -ENOMEM:
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    case -EAGAIN:
        return source_await_verdict(source, COMMAND_WRITE, interrupt, err);
    default:
        if (source_await_verdict(source, COMMAND_WRITE, interrupt, err) < 0)
            return -EIO;
        return error_set(err, CAUSE_RESET, "the connection is lost");
    }
}

static int accept_plan(struct source *source, struct file *file, struct plan *plan,
                       const struct path_bytes *bytes, const struct interrupt *interrupt,
                       struct sender_write *write, struct error *err)
{
    struct connection *conn = source_connection(source);
    int ret;

    while ((ret = sender_accept(write, conn, file, plan, bytes, interrupt)) < 0) {
        if (explain(source, ret, interrupt, err) < 0)
            return -EIO;
    }
    return 0;
}

/* A write to a device that has been removed: it succeeds, and goes nowhere. */
static int accept_nothing(struct source *source, struct file *file, struct sender_write *write,
                          struct error *err)
{
    static const struct path_bytes bytes;
    struct plan plan;

    if (check_active(source, err) < 0)
        return -EIO;
    plan_begin(&plan, &(struct plan_rules){0});
    return accept_plan(source, file, &plan, &bytes, NULL, write, err);
}

/* What a write says of pages that it does not say as a whole cannot be compared. */
static bool is_changed(struct tracking *t, const char *buf, uint64_t at, size_t len)
{
    if (len == WIRE_PAGE_SIZE)
        return tracking_record(t, at / WIRE_PAGE_SIZE, buf, len);
    tracking_forget(t, at, len);
    return true;
}

/* The plan of a write of which only what has changed is sent. Who calls keeps its stripes. */
static void plan_changes(struct tracking *t, struct plan *plan, const struct plan_rules *rules,
                         const char *buf, size_t len, uint64_t offset)
{
    size_t run = 0; /* where what is to be sent begins, up to here */
    uint64_t pages = 0, changed = 0;

    plan_begin(plan, rules);
    for (size_t at = 0, next; at < len; at = next) {
        size_t rest = WIRE_PAGE_SIZE - (offset + at) % WIRE_PAGE_SIZE;
        next = len - at < rest ? len : at + rest;
        bool sent = is_changed(t, buf + at, offset + at, next - at);
        pages++;
        changed += sent;
        size_t end = sent ? next : at;
        bool ends = !sent || next == len || (offset + next) % WIRE_STRIPE_SIZE == 0;
        if (ends && end > run)
            plan_run(plan, buf + run, offset + run, end - run);
        if (ends)
            run = next;
    }
    plan_end(plan, buf, offset);
    tracking_count(t, pages, changed, 0);
}

static int begin_compared(struct source *source, struct file *file, const struct path_bytes *bytes,
                          size_t len, const struct interrupt *interrupt, struct sender_write *write,
                          struct error *err)
{
    struct plan_rules rules = source_rules(source, source_connection(source), file);
    struct tracking *t = source->tracking;
    struct plan plan;

    if (tracking_enter(t, bytes->offset, len, interrupt) < 0)
        return error_set(err, CAUSE_INTERRUPTED, "interrupted");
    plan_changes(t, &plan, &rules, bytes->buf, len, bytes->offset);
    int ret = accept_plan(source, file, &plan, bytes, interrupt, write, err);
    if (ret < 0)
        tracking_forget(t, bytes->offset, len);
    tracking_leave(t, bytes->offset, len);
    return ret;
}

/* The RAM's digests, if this is the RAM and it is compared. */
static struct tracking *tracking_of(const struct source *source, const struct file *file)
{
    return file->id == WIRE_RAM ? source->tracking : NULL;
}

int writes_begin(struct source *source, struct file *file, const void *buf, size_t len, uint64_t offset,
                 const struct interrupt *interrupt, struct sender_write *write, struct error *err)
{
    struct path_bytes bytes = {.buf = buf, .offset = offset, .gated = true};
    struct plan plan;

    if (file_is_removed(file))
        return accept_nothing(source, file, write, err);
    if (admit(source, file, len, offset, interrupt, err) < 0)
        return -EIO;
    if (tracking_of(source, file) && len > 0)
        return begin_compared(source, file, &bytes, len, interrupt, write, err);
    struct plan_rules rules = source_rules(source, source_connection(source), file);
    plan_write(&plan, &rules, buf, len, offset);
    return accept_plan(source, file, &plan, &bytes, interrupt, write, err);
}

bool writes_can_splice(const struct source *source, const struct file *file, size_t len, uint64_t offset)
{
    const struct connection *conn = source_connection(source);

    if (!conn || !conn->splices || tracking_of(source, file))
        return false;
    struct plan_rules rules = source_rules(source, conn, file);
    return plan_can_splice(&rules, len, offset);
}

int writes_begin_splice(struct source *source, struct file *file, int pipe, size_t len, uint64_t offset,
                        const struct interrupt *interrupt, struct sender_write *write, struct error *err)
{
    struct path_bytes bytes = {.pipe = pipe, .gated = true};
    struct plan plan;

    if (file_is_removed(file))
        return accept_nothing(source, file, write, err);
    if (admit(source, file, len, offset, interrupt, err) < 0)
        return -EIO;
    struct plan_rules rules = source_rules(source, source_connection(source), file);
    plan_pipe(&plan, &rules, len, offset);
    return accept_plan(source, file, &plan, &bytes, interrupt, write, err);
}

/*
 * Before something is said of a range that is not the bytes of its pages: of those it is not known any more
 * what was sent. Keeps their stripes, until forgotten().
 */
static int forget(struct source *source, const struct file *file, uint64_t offset, uint64_t len,
                  const struct interrupt *interrupt, struct error *err)
{
    struct tracking *t = tracking_of(source, file);

    if (!t)
        return 0;
    if (tracking_enter(t, offset, len, interrupt) < 0)
        return error_set(err, CAUSE_INTERRUPTED, "interrupted");
    tracking_forget(t, offset, len);
    return 0;
}

static void forgotten(struct source *source, const struct file *file, uint64_t offset, uint64_t len)
{
    struct tracking *t = tracking_of(source, file);

    if (t)
        tracking_leave(t, offset, len);
}

int writes_discard(struct source *source, struct file *file, uint64_t offset, uint64_t len,
                   const struct interrupt *interrupt, struct error *err)
{
    int ret;

    if (check_active(source, err) < 0)
        return -EIO;
    if (file_is_removed(file))
        return 0;
    uint64_t size = atomic_load(&file->size);
    if (offset >= size || len == 0)
        return 0;
    if (len > size - offset)
        len = size - offset;
    if (source_drain_reference(source, file, interrupt, err) < 0 ||
        forget(source, file, offset, len, interrupt, err) < 0)
        return -EIO;
    while ((ret = sender_discard(source_connection(source), file, offset, len, interrupt)) < 0) {
        if (explain(source, ret, interrupt, err) < 0)
            break;
    }
    forgotten(source, file, offset, len);
    return ret < 0 ? -EIO : 0;
}

/* Return: 1 when the size is declared; 0: the migration has been started. */
static int declare(struct source *source, struct file *file, uint64_t size, const struct interrupt *interrupt,
                   struct error *err)
{
    SCOPED_LOCK(&source->m->lock);
    if (source_await_starter(source, interrupt, err) < 0)
        return -EIO;
    if (!source_is_unstarted(source))
        return 0;
    atomic_store(&file->size, size);
    if (file->id == WIRE_RAM) {
        file->declared = size;
        source->sized_by_reference = false;
    }
    return 1;
}

int writes_truncate(struct source *source, struct file *file, uint64_t size,
                    const struct interrupt *interrupt, struct error *err)
{
    if (size > WIRE_OFFSET_MAX)
        return error_set(err, CAUSE_TOO_BIG, "no file has more than %llu bytes", WIRE_OFFSET_MAX);
    int ret = declare(source, file, size, interrupt, err);
    if (ret != 0)
        return ret < 0 ? -EIO : 0;
    if (check_active(source, err) < 0 ||
        connection_check_size(source_connection(source), file, size, err) < 0)
        return -EIO;
    if (file_is_removed(file))
        return 0;
    if (file->declared && size > file->declared)
        return error_set(err, CAUSE_TOO_BIG, "it was declared to have %llu bytes before the start",
                         (unsigned long long)file->declared);
    if (size == atomic_load(&file->size))
        return 0;
    if (source->reference && file->id == WIRE_RAM)
        return error_set(err, CAUSE_STATE, "the size of RAM by reference does not change");
    if (forget(source, file, size, WIRE_OFFSET_MAX - size + 1, interrupt, err) < 0)
        return -EIO;
    while ((ret = sender_truncate(source_connection(source), file, size, interrupt)) < 0) {
        if (explain(source, ret, interrupt, err) < 0)
            break;
    }
    forgotten(source, file, size, WIRE_OFFSET_MAX - size + 1);
    return ret < 0 ? -EIO : 1;
}
