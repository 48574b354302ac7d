/* SPDX-License-Identifier: Apache-2.0 */
/* The source's side of a migration; see outgoing.h. */
#include "outgoing.h"
#include "barriers.h"
#include "cleanup.h"
#include "clock.h"
#include "handover.h"
#include "host.h"
#include "question.h"
#include "ram.h"
#include "source.h"
#include "stall.h"
#include "start.h"
#include "precopy.h"
#include "streams.h"
#include "tracking.h"
#include "writes.h"

#include <errno.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define LAST_PRIORITY 19

struct outgoing {
    struct source source;
    struct streams streams;
    struct barriers barriers;
    struct precopy precopy;
    struct question question;
    struct handover handover;
    struct start start;
};

static void init_parts(struct outgoing *out)
{
    streams_init(&out->streams, &out->source);
    barriers_init(&out->barriers, &out->source, &out->streams);
    precopy_init(&out->precopy, &out->source, &out->barriers);
    question_init(&out->question, &out->source);
    handover_init(&out->handover, &out->source, &out->streams, &out->question);
}

/*
 * It starts anew: nothing has been said to a destination yet. Whom the parts belong to stays as it is: that
 * is read without a lock. The caller holds migration.lock.
 */
static void forget(void *role)
{
    struct outgoing *out = role;

    streams_forget(&out->streams);
    barriers_forget(&out->barriers);
    precopy_forget(&out->precopy);
    question_forget(&out->question);
    handover_forget(&out->handover);
}

static int step(void *role, struct connection *conn, int64_t deadline_ms, struct error *err);
static void *mig_out(void *arg);

static const struct start_operations start_operations = {.forget = forget, .step = step, .thread = mig_out};

struct outgoing *outgoing_new(struct migration *m)
{
    struct outgoing *out = calloc(1, sizeof(*out));

    if (!out)
        return NULL;
    source_init(&out->source, m);
    init_parts(out);
    start_init(&out->start, &out->source, &out->streams, &start_operations, out);
    return out;
}

void outgoing_free(struct outgoing *out)
{
    if (!out)
        return;
    streams_fini(&out->streams);
    source_fini(&out->source);
    free(out);
}

/*
 * Writing
 */

int outgoing_write_begin(struct migration *m, struct file *file, const void *buf, size_t len, uint64_t offset,
                         const struct interrupt *interrupt, struct sender_write *write, struct error *err)
{
    return writes_begin(&m->out->source, file, buf, len, offset, interrupt, write, err);
}

bool outgoing_splices(const struct migration *m, const struct file *file, size_t len, uint64_t offset)
{
    return writes_can_splice(&m->out->source, file, len, offset);
}

int outgoing_splice_begin(struct migration *m, struct file *file, int pipe, size_t len, uint64_t offset,
                          const struct interrupt *interrupt, struct sender_write *write, struct error *err)
{
    return writes_begin_splice(&m->out->source, file, pipe, len, offset, interrupt, write, err);
}

int outgoing_discard(struct migration *m, struct file *file, uint64_t offset, uint64_t len,
                     const struct interrupt *interrupt, struct error *err)
{
    return writes_discard(&m->out->source, file, offset, len, interrupt, err);
}

int outgoing_truncate(struct migration *m, struct file *file, uint64_t size,
                      const struct interrupt *interrupt, struct error *err)
{
    int ret = writes_truncate(&m->out->source, file, size, interrupt, err);

    if (ret <= 0)
        return ret;
    SCOPED_LOCK(&m->lock);
    streams_tell(&m->out->streams, file, true);
    return 0;
}

int outgoing_start(struct migration *m, const struct interrupt *interrupt, struct error *err)
{
    return start_run(&m->out->start, interrupt, err);
}

int outgoing_flush(struct migration *m, struct file *file, const struct interrupt *interrupt,
                   struct error *err)
{
    return barriers_flush(&m->out->barriers, file, interrupt, err);
}

int outgoing_sync(struct migration *m, struct file *file, const struct interrupt *interrupt,
                  struct error *err)
{
    return barriers_sync(&m->out->barriers, file, interrupt, err);
}

int outgoing_precopy(struct migration *m, const struct interrupt *interrupt, struct error *err)
{
    return precopy_run(&m->out->precopy, interrupt, err);
}

int outgoing_digest(struct migration *m, struct file *file, const struct interrupt *interrupt,
                    uint8_t digest[DIGEST_SIZE], struct error *err)
{
    return question_digest(&m->out->question, file, interrupt, digest, err);
}

uint64_t outgoing_verified(const struct migration *m)
{
    return atomic_load(&m->out->question.verified);
}

int outgoing_complete(struct migration *m, const struct interrupt *interrupt, struct error *err)
{
    return handover_complete(&m->out->handover, interrupt, err);
}

static bool is_committing(const struct migration *m)
{
    return handover_is_committing(&m->out->handover);
}

int outgoing_create_device(struct migration *m, const char *name, bool exclusive,
                           const struct interrupt *interrupt, struct file **out, struct error *err)
{
    return streams_create(&m->out->streams, name, exclusive, interrupt, out, err);
}

int outgoing_remove_device(struct migration *m, const char *name, const struct interrupt *interrupt,
                           struct error *err)
{
    return streams_remove(&m->out->streams, name, interrupt, err);
}

int outgoing_rename_device(struct migration *m, const char *from, const char *to, bool exclusive,
                           const struct interrupt *interrupt, struct error *err)
{
    return streams_rename(&m->out->streams, from, to, exclusive, interrupt, err);
}

void outgoing_open_writer(struct migration *m, struct file *file)
{
    streams_open_writer(&m->out->streams, file);
}

void outgoing_begin_anew(struct file *file)
{
    /* Another writer may have been quicker. */
    if (atomic_load(&file->size) == 0)
        atomic_store_explicit(&file->touched, false, memory_order_relaxed);
}

void outgoing_close_writer(struct migration *m, struct file *file)
{
    streams_close_writer(&m->out->streams, file);
}

/*
 * The main channel
 */

/* What handle_message() is about. */
struct reader {
    struct outgoing *out;
    struct connection *conn;
};

static int on_file_reply(struct outgoing *out, struct connection *conn, const struct message *message,
                         struct wire_reader *body, struct error *err)
{
    (void)conn;
    (void)message;
    return streams_on_reply(&out->streams, body, err);
}

static int on_sync_ack(struct outgoing *out, struct connection *conn, const struct message *message,
                       struct wire_reader *body, struct error *err)
{
    (void)conn;
    (void)body;
    (void)err;
    barriers_on_ack(&out->barriers, message->id);
    return 0;
}

static int on_prepared(struct outgoing *out, struct connection *conn, const struct message *message,
                       struct wire_reader *body, struct error *err)
{
    (void)conn;
    (void)body;
    (void)err;
    handover_on_prepared(&out->handover, message->id);
    return 0;
}

static int on_committed(struct outgoing *out, struct connection *conn, const struct message *message,
                        struct wire_reader *body, struct error *err)
{
    (void)conn;
    (void)body;
    return handover_on_committed(&out->handover, message->id, err);
}

static int on_abort(struct outgoing *out, struct connection *conn, const struct message *message,
                    struct wire_reader *body, struct error *err)
{
    (void)out;
    (void)message;
    conn->peer_aborted = true;
    session_read_abort(body, "the destination", err);
    return -EIO;
}

static int on_answer(struct outgoing *out, struct connection *conn, const struct message *message,
                     struct wire_reader *body, struct error *err)
{
    (void)conn;
    return question_on_answer(&out->question, message, body, err);
}

static int on_progress(struct outgoing *out, struct connection *conn, const struct message *message,
                       struct wire_reader *body, struct error *err)
{
    (void)out;
    (void)message;
    return connection_note_progress(conn, body, err);
}

static int on_exposed(struct outgoing *out, struct connection *conn, const struct message *message,
                      struct wire_reader *body, struct error *err)
{
    (void)out;
    (void)message;
    return placing_on_exposed(&conn->placing, body, err);
}

static int on_changed(struct outgoing *out, struct connection *conn, const struct message *message,
                      struct wire_reader *body, struct error *err)
{
    (void)conn;
    (void)body;
    return streams_on_changed(&out->streams, message->id, err);
}

/* What the destination may say, and whom it concerns. NULL: it may not. */
static int (*const handlers[WIRE_MESSAGE_MAX])(struct outgoing *out, struct connection *conn,
                                               const struct message *message, struct wire_reader *body,
                                               struct error *err) = {
    [WIRE_FILE_REPLY] = on_file_reply, [WIRE_SYNC_ACK] = on_sync_ack, [WIRE_PREPARED] = on_prepared,
    [WIRE_COMMITTED] = on_committed,   [WIRE_ABORT] = on_abort,       [WIRE_DIGEST_REPLY] = on_answer,
    [WIRE_VERIFY_REPLY] = on_answer,   [WIRE_PROGRESS] = on_progress, [WIRE_FILE_REMOVE] = on_changed,
    [WIRE_FILE_RENAME] = on_changed,   [WIRE_EXPOSED] = on_exposed,
};

/* Runs in mig-out, and in the thread of `start` before that exists. */
static int handle_message(void *arg, const struct message *message, struct wire_reader *body,
                          struct error *err)
{
    struct reader *reader = arg;
    unsigned type = message->type;

    if (type >= WIRE_MESSAGE_MAX || !handlers[type])
        return error_set(err, CAUSE_PROTOCOL, "a message of type %u from the destination", type);
    return handlers[type](reader->out, reader->conn, message, body, err);
}

static int step(void *role, struct connection *conn, int64_t deadline_ms, struct error *err)
{
    struct reader reader = {role, conn};
    struct outgoing *out = role;
    struct error failure = {0};

    if (session_step(&conn->main, deadline_ms, handle_message, &reader, err) == 0)
        return 0;
    if (!conn->main.lost || !connection_resumes(conn) || !state_is_running(out->source.m->state))
        return -EIO;
    if (again_main(&out->source.again, conn, out->source.cancel_fd, err, &failure) < 0) {
        *err = failure;
        if (failure.cause != CAUSE_INTERRUPTED || !state_is_running(out->source.m->state))
            return -EIO;
        *err = (struct error){0};
        return error_set(err, CAUSE_INTERRUPTED, "interrupted");
    }
    *err = (struct error){0};
    handover_delay(&out->handover);
    return 0;
}

static void lost_connection(struct migration *m, struct connection *conn, const struct error *reason)
{
    pthread_mutex_lock(&m->lock);
    bool committing = is_committing(m) && !conn->peer_aborted;
    pthread_mutex_unlock(&m->lock);
    if (committing)
        handover_resolve(&m->out->handover, conn, reason);
    else
        migration_fail(m, reason);
}

/* Whether somebody waits for an answer of the destination's. The caller holds migration.lock. */
static bool is_answer_due(const struct outgoing *out)
{
    return streams_is_answer_due(&out->streams) || barriers_is_answer_due(&out->barriers) ||
           question_is_answer_due(&out->question) || handover_is_answer_due(&out->handover);
}

/*
 * Ends the migration when a channel, or the destination as a whole, stands still while
 * something is due. In mig-out. After the commit the migration's doom bounds the wait.
 */
static void look_for_stall(struct migration *m, struct connection *conn)
{
    struct error reason = {0};

    pthread_mutex_lock(&m->lock);
    bool due = is_answer_due(m->out);
    pthread_mutex_unlock(&m->lock);
    due = due || placing_is_answer_due(&conn->placing);
    if (migration_is_paused(m)) {
        connection_watch(conn);
        return;
    }
    if (!connection_look(conn, due, &reason) || connection_shake(conn))
        return;
    SCOPED_LOCK(&m->lock);
    if (!handover_is_committing(&m->out->handover))
        source_doom(&m->out->source, &reason, 0);
}

/* It is over, and nothing is queued: gives up all but the sums. */
static void settle(struct migration *m)
{
    struct outgoing *out = m->out;
    struct connection *conn = source_connection(&out->source);
    struct file **files;
    int count = migration_keep_records(m, true) < 0 ? -ENOMEM : migration_files(m, &files, NULL);

    for (unsigned c = 0; count > 0 && c < conn->channel_count; c++)
        pthread_mutex_lock(&conn->channels[c].lock);
    for (int i = 0; i < count; i++)
        file_settle(files[i]);
    for (unsigned c = 0; count > 0 && c < conn->channel_count; c++)
        pthread_mutex_unlock(&conn->channels[c].lock);
    if (count >= 0)
        migration_put_files(files, count);
    SCOPED_LOCK(&m->lock);
    connection_end(conn);
    source_close_cancel(&out->source);
}

/*
 * To forget the RAM costs a processor 25 ms for each GiB, just when the VM is to go on, perhaps on this
 * machine: the thread, which has no other work left, does it when nobody else has any.
 */
static void give_way(void)
{
    setpriority(PRIO_PROCESS, (id_t)gettid(), LAST_PRIORITY);
}

/* What the migration is lost for, and when, unless something else comes before. */
struct fate {
    struct error doom;
    int64_t at;
    bool confirming; /* the destination has been told to complete */
};

static struct fate fate_of(struct outgoing *out)
{
    SCOPED_LOCK(&out->source.m->lock);
    return (struct fate){out->source.doom, out->source.doom_at, handover_is_committing(&out->handover)};
}

/* Whether the daemon is going away. */
static bool is_closing(void *arg)
{
    const struct host *host = arg;

    return atomic_load(&host->closed);
}

static void *mig_out(void *arg)
{
    struct migration *m = arg;
    struct outgoing *out = m->out;

    pthread_setname_np(pthread_self(), "mig-out");
    if (!start_await_launch(&out->start)) {
        migration_put(m);
        return NULL;
    }
    struct connection *conn = source_connection(&out->source);
    while (!state_is_final(m->state)) {
        struct error err = {0};
        struct fate before = fate_of(out);
        int ret = step(out, conn, error_is_set(&before.doom) ? before.at : clock_ms() + 60000, &err);
        if (stall_is_due(&conn->watch, clock_ms()))
            look_for_stall(m, conn);
        struct fate fate = fate_of(out); /* it may have been put off */
        bool doomed = error_is_set(&before.doom) && clock_ms() >= fate.at;
        if (ret == 0 && !doomed)
            continue;
        /* The first sign of trouble says more than what followed from it, unless the peer itself says why. */
        if (doomed || (error_is_set(&fate.doom) && !fate.confirming && !conn->peer_aborted))
            err = fate.doom;
        lost_connection(m, conn, &err);
    }
    if (m->state != STATE_COMPLETED && !conn->peer_aborted)
        session_goodbye(&conn->main, &m->failure);
    again_stop(&out->source.again);
    connection_break(conn);
    again_join(&out->source.again);
    connection_await_quiet(conn);
    give_way();
    if (out->source.reference) {
        reference_stop(out->source.reference);
        pthread_mutex_lock(&m->lock);
        reference_close(out->source.reference);
        pthread_mutex_unlock(&m->lock);
    }
    if (out->source.tracking)
        tracking_end(out->source.tracking);
    if (m->state == STATE_CANCELLED && !conn->peer_aborted && connection_resumes(conn))
        again_goodbye(conn, is_closing, m->host);
    connection_hang_up(conn);
    settle(m);
    migration_put(m);
    return NULL;
}

static void leave(struct migration *m, const struct error *reason)
{
    source_doom(&m->out->source, reason, 0);
    /* A question that is being asked is asked once more. */
    source_interrupt_start(&m->out->source);
}

static void ended(struct migration *m)
{
    SCOPED_LOCK(&m->lock);
    /* The next `start` may be there already. */
    if (!state_is_final(m->state))
        return;
    source_interrupt_start(&m->out->source);
    source_wake_reader(&m->out->source);
}

static void kick(struct migration *m)
{
    struct outgoing *out = m->out;

    pthread_mutex_lock(&m->lock);
    if (interrupt_is_hit(out->source.starter)) {
        source_interrupt_start(&out->source);
        source_wake_reader(&out->source);
    }
    pthread_mutex_unlock(&m->lock);
    struct connection *conn = source_connection(&out->source);
    if (!conn)
        return;
    gate_kick(&conn->gate);
    placing_kick(&conn->placing);
    if (out->source.reference)
        reference_kick(out->source.reference);
    if (out->source.tracking)
        tracking_kick(out->source.tracking);
    for (unsigned c = 0; c < conn->channel_count; c++)
        channel_kick(&conn->channels[c]);
}

static void settings_changed(struct migration *m)
{
    struct connection *conn = m->out ? source_connection(&m->out->source) : NULL;

    if (conn)
        pace_set(&conn->pace, m->settings.max_bandwidth);
}

int outgoing_setting_writable(struct migration *m, const struct interrupt *interrupt, struct error *err)
{
    if (m->role == ROLE_INCOMING) /* then m->out may not be there */
        return error_set(err, CAUSE_STATE, "the settings of an incoming migration are its source's");
    return source_settings_writable(&m->out->source, interrupt, err);
}

/* Where no size was declared, the destination is told of the file's. */
static int size_late(struct migration *m, const struct reference *ref, const struct interrupt *interrupt,
                     struct error *err)
{
    struct file *ram = m->files[WIRE_RAM];

    if (!ref || m->out->source.reference || atomic_load(&ram->size) || atomic_load(&m->state) != STATE_ACTIVE)
        return 0;
    return outgoing_truncate(m, ram, reference_file_size(ref), interrupt, err);
}

int outgoing_set_reference(struct migration *m, struct reference *ref, const struct interrupt *interrupt,
                           struct error *err)
{
    if (size_late(m, ref, interrupt, err) < 0) {
        reference_free(ref);
        return -EIO;
    }
    return ram_set_reference(&m->out->source, ref, interrupt, err);
}

void outgoing_check_sharing(struct migration *m, pid_t writer)
{
    ram_check_sharing(&m->out->source, writer);
}

void outgoing_reference_text(struct migration *m, char *out, size_t size)
{
    ram_text(&m->out->source, out, size);
}

static ssize_t outgoing_read_ram(struct migration *m, uint64_t offset, void *buf, size_t len)
{
    return ram_read(&m->out->source, offset, buf, len);
}

static size_t outgoing_read_dirty(struct migration *m, uint64_t offset, void *buf, size_t len)
{
    return ram_read_dirty(&m->out->source, offset, buf, len);
}

uint64_t outgoing_dirty_size(struct migration *m)
{
    return ram_dirty_size(&m->out->source);
}

int outgoing_mark_dirty(struct migration *m, const void *bitmap, size_t len, uint64_t offset,
                        struct error *err)
{
    if (source_allows(&m->out->source, COMMAND_WRITE, err) < 0)
        return -EIO;
    if (!m->out->source.reference)
        return error_set(err, CAUSE_SYNTAX, "there is no ram-source: its pages would be sent");
    return reference_mark(m->out->source.reference, bitmap, len, offset, err);
}

uint64_t outgoing_wire_bytes(struct migration *m, int index)
{
    struct connection *conn = source_connection(&m->out->source);

    if (!conn)
        return 0;
    if (index < 0)
        return atomic_load_explicit(&conn->main.bytes_sent, memory_order_relaxed);
    return connection_channel_bytes(conn, (unsigned)index);
}

const char *outgoing_path(struct migration *m)
{
    struct connection *conn = source_connection(&m->out->source);
    uint64_t spliced;

    if (!conn)
        return NULL;
    if (m->out->source.reference)
        return "reference";
    if (outgoing_splices(m, m->files[WIRE_RAM], WIRE_STRIPE_SIZE, 0))
        return "splice";
    for (unsigned c = 0; c < conn->channel_count; c++) {
        if (outgoing_zerocopy(m, c, &spliced).bytes)
            return "zero-copy";
    }
    return "copy";
}

struct zerocopy_counters outgoing_zerocopy(struct migration *m, unsigned index, uint64_t *spliced)
{
    struct channel *ch = &source_connection(&m->out->source)->channels[index];

    SCOPED_LOCK(&ch->lock);
    *spliced = ch->spliced_bytes;
    return ch->zerocopy.counters;
}

uint64_t outgoing_queued(struct migration *m)
{
    struct connection *conn = source_connection(&m->out->source);

    if (!conn)
        return 0;
    uint64_t bytes = atomic_load_explicit(&conn->gate.used, memory_order_relaxed);
    if (m->out->source.reference)
        bytes += reference_remaining(m->out->source.reference) * WIRE_PAGE_SIZE;
    return bytes;
}

unsigned outgoing_channels(struct migration *m)
{
    struct connection *conn = source_connection(&m->out->source);

    return conn ? conn->channel_count : 0;
}

/*
 * The role
 */

static void free_role(struct migration *m)
{
    outgoing_free(m->out);
}

/*
 * Who waits for a peer to fill a device waits in vain. The file of the RAM is the VMM's again, also where the
 * kernel still knows the name of something in the directory.
 */
static void release(struct migration *m)
{
    SCOPED_LOCK(&m->lock);
    migration_expect_nothing(m);
    if (m->out->source.reference)
        reference_close(m->out->source.reference);
}

static void count(struct migration *m, unsigned channel, struct channel_record *record)
{
    struct channel *ch = &source_connection(&m->out->source)->channels[channel];

    SCOPED_LOCK(&ch->lock);
    record->wire_bytes = ch->wire_bytes;
    record->copies = ch->zerocopy.counters;
    record->spliced_bytes = ch->spliced_bytes;
    record->placed_bytes = ch->placed_bytes;
    record->peer = ch->peer;
}

static void figures(struct migration *m, struct migration_figures *out)
{
    *out = (struct migration_figures){
        .ram_size = atomic_load(&m->files[WIRE_RAM]->size),
        .main_bytes = outgoing_wire_bytes(m, -1),
        .queued = outgoing_queued(m),
        .verified = outgoing_verified(m),
        .path = outgoing_path(m),
    };
    struct connection *conn = source_connection(&m->out->source);
    if (conn) {
        strcpy(out->fallen_back, conn->fallen_back);
        out->peer = conn->peer;
    }
    out->places = conn && conn->places;
    if (!out->places)
        return;
    out->placing = placing_figures(&conn->placing);
    for (unsigned c = 0; c < conn->channel_count; c++)
        channel_figures(&conn->channels[c], &out->transport, &out->drains);
}

static int write_file(struct migration *m, const struct file_write *request, struct error *err)
{
    struct sender_write write;
    int ret = request->buf ? outgoing_write_begin(m, request->file, request->buf, request->len,
                                                  request->offset, request->interrupt, &write, err)
                           : outgoing_splice_begin(m, request->file, request->pipe, request->len,
                                                   request->offset, request->interrupt, &write, err);

    if (ret < 0)
        return ret;
    request->accepted(request->arg);
    sender_finish(&write);
    return 0;
}

static void begin_anew(struct migration *m, struct file *file)
{
    (void)m;
    outgoing_begin_anew(file);
}

static int set_reference(struct migration *m, int fd, const char *text, pid_t writer,
                         const struct interrupt *interrupt, struct error *err)
{
    struct reference *ref = fd < 0 ? NULL : reference_new(fd, text, err);

    if ((fd >= 0 && !ref) || outgoing_set_reference(m, ref, interrupt, err) < 0)
        return -EIO;
    outgoing_check_sharing(m, writer);
    return 0;
}

const struct role_operations outgoing_operations = {
    .free = free_role,
    .ended = ended,
    .kick = kick,
    .is_committing = is_committing,
    .leave = leave,
    .release = release,
    .channels = outgoing_channels,
    .count = count,
    .figures = figures,
    .may_change_settings = outgoing_setting_writable,
    .start = outgoing_start,
    .flush = outgoing_flush,
    .sync = outgoing_sync,
    .precopy = outgoing_precopy,
    .settings_changed = settings_changed,
    .complete = outgoing_complete,
    .digest = outgoing_digest,
    .write = write_file,
    .splices = outgoing_splices,
    .discard = outgoing_discard,
    .truncate = outgoing_truncate,
    .create_device = outgoing_create_device,
    .remove_device = outgoing_remove_device,
    .rename_device = outgoing_rename_device,
    .open_writer = outgoing_open_writer,
    .close_writer = outgoing_close_writer,
    .begin_anew = begin_anew,
    .set_reference = set_reference,
    .reference_text = outgoing_reference_text,
    .read_ram = outgoing_read_ram,
    .dirty_size = outgoing_dirty_size,
    .read_dirty = outgoing_read_dirty,
    .mark_dirty = outgoing_mark_dirty,
};
