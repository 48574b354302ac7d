/* SPDX-License-Identifier: Apache-2.0 */
/* The source's side of a migration; see outgoing.h. */
#include "outgoing.h"
#include "barriers.h"
#include "cleanup.h"
#include "clock.h"
#include "handover.h"
#include "host.h"
#include "log.h"
#include "question.h"
#include "ram.h"
#include "source.h"
#include "stall.h"
#include "streams.h"
#include "writes.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>

/* What mig-out, which is made before it is known whether the migration becomes active, is to do. */
enum launch { LAUNCH_WAIT, LAUNCH_GO, LAUNCH_LEAVE };

struct outgoing {
    struct source source;
    struct streams streams;
    struct barriers barriers;
    struct question question;
    struct handover handover;

    /* Guarded by migration.lock: */
    enum launch launch;
};

/* Nothing has been said to a destination yet. */
static void init_parts(struct outgoing *out)
{
    streams_init(&out->streams, &out->source);
    barriers_init(&out->barriers, &out->source, &out->streams);
    question_init(&out->question, &out->source);
    handover_init(&out->handover, &out->source, &out->streams, &out->question);
}

struct outgoing *outgoing_new(struct migration *m)
{
    struct outgoing *out = calloc(1, sizeof(*out));

    if (!out)
        return NULL;
    source_init(&out->source, m);
    init_parts(out);
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
 * Failures
 */

/* connection.failed: keep the reason, and let the main channel have its say. */
static void connection_failed(void *arg, const struct error *reason, int64_t delay_ms)
{
    struct migration *m = arg;

    SCOPED_LOCK(&m->lock);
    source_doom(&m->out->source, reason, delay_ms);
}

/* Whether somebody waits for an answer of the destination's. The caller holds migration.lock. */
static bool is_answer_due(const struct outgoing *out)
{
    return streams_is_answer_due(&out->streams) || barriers_is_answer_due(&out->barriers) ||
           question_is_answer_due(&out->question) ||
           handover_is_answer_due(&out->handover);
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
    if (!connection_look(conn, due, &reason))
        return;
    SCOPED_LOCK(&m->lock);
    if (!handover_is_committing(&m->out->handover))
        source_doom(&m->out->source, &reason, 0);
}

/*
 * Starting
 */

/* What handle_message() is about. */
struct reader {
    struct migration *m;
    struct connection *conn;
};

static int handle_message(void *arg, const struct message *message, struct wire_reader *body, struct error *err);

/*
 * Tells the destination of a file, and waits for its answer. While mig-out does not run yet: this thread
 * reads the main channel itself.
 */
static int announce_in_setup(struct migration *m, struct connection *conn, struct file *file,
                             const struct interrupt *interrupt, struct error *err)
{
    struct outgoing *out = m->out;
    struct reader reader = {m, conn};
    int64_t deadline = clock_ms() + m->settings.timeout_ms;

    streams_announce(&out->streams, conn, file);
    while (!streams_is_answered(&out->streams)) {
        if (interrupt_is_hit(interrupt))
            return error_set(err, CAUSE_INTERRUPTED, "interrupted");
        if (m->state != STATE_SETUP)
            return error_set(err, CAUSE_CANCELLED, "cancelled");
        if (clock_ms() >= deadline)
            return error_set(err, CAUSE_TIMEOUT, "the destination does not answer");
        if (session_step(&conn->main, deadline, handle_message, &reader, err) < 0)
            return -EIO;
    }
    SCOPED_LOCK(&m->lock);
    return streams_take_answer(&out->streams, err);
}

/* A buffer that has to be kept for the kernel is not in a pipe. */
static enum connection_splice splice_of(const struct migration *m)
{
    const struct settings *settings = &m->settings;
    bool can = m->host->splices && !settings->compress && settings->zero_copy != ZEROCOPY_REQUIRE;

    if (!can || settings->splice == CHOICE_OFF)
        return CONNECTION_SPLICE_NEVER;
    return settings->splice == CHOICE_ON ? CONNECTION_SPLICE_ALWAYS : CONNECTION_SPLICE_AUTO;
}

static int connect_to(struct migration *m, struct connection **conn, struct error *err)
{
    const struct settings *settings = &m->settings;
    struct connection_config config = {
        .uri = &settings->uri,
        .name = m->name,
        .channels = settings->channels,
        .device_channels = settings->device_channels,
        .timeout_ms = settings->timeout_ms,
        .features = (settings->checksum ? WIRE_FEATURE_CHECKSUM : 0) | (settings->compress ? WIRE_FEATURE_ZSTD : 0),
        .zero_copy = settings->zero_copy,
        .splice = splice_of(m),
        .compress = settings->compress,
        .zstd_level = settings->zstd_level,
        .write_behind = m->host->limits.write_behind,
        .cancel_fd = m->out->source.cancel_fd,
        .failed = connection_failed,
        .arg = m,
    };

    return connection_open(&config, conn, err);
}

/* Connects, and tells the destination of all files. */
static int connect_all(struct migration *m, const struct interrupt *interrupt, struct error *err)
{
    struct outgoing *out = m->out;
    struct connection *conn;

    if (connect_to(m, &conn, err) < 0)
        return -EIO;
    pthread_mutex_lock(&m->lock);
    out->source.opening = conn;
    pthread_mutex_unlock(&m->lock);
    streams_number(&m->out->streams);
    for (uint32_t i = 0; i < m->file_count; i++) {
        struct file *file = m->files[i];
        if (file_set_channels(file, conn->channel_count, m->settings.device_channels) < 0)
            return error_set(err, CAUSE_NO_MEMORY, "out of memory");
        if (file->id > conn->limits.max_devices)
            return error_set(err, CAUSE_QUOTA, "the destination allows %u devices", conn->limits.max_devices);
        if (connection_check_size(conn, file, atomic_load(&file->size), err) < 0 ||
            announce_in_setup(m, conn, file, interrupt, err) < 0)
            return -EIO;
    }
    return out->source.reference ? ram_start(&out->source, out->source.reference, conn, err) : 0;
}

static void *mig_out(void *arg);

static int may_start(struct migration *m, struct error *err)
{
    if (m->removed)
        return error_set(err, CAUSE_NOT_FOUND, "the migration is gone");
    if (migration_allows(m, COMMAND_START, err) < 0)
        return -EIO;
    if (m->was_active)
        return error_set(err, CAUSE_STATE, "the migration has %s: rmdir it and make it again",
                         m->state == STATE_FAILED ? "failed" : "been cancelled");
    if (!m->settings.uri.text[0])
        return error_set(err, CAUSE_SYNTAX, "where to? Write a URI to 'uri' first");
    if (m->settings.device_channels >= m->settings.channels)
        return error_set(err, CAUSE_SYNTAX, "%u of %u channels for devices leave none for RAM",
                         m->settings.device_channels, m->settings.channels);
    if (m->settings.splice == CHOICE_ON && !m->host->splices)
        return error_set(err, CAUSE_UNSUPPORTED,
                         "splice is on, but this daemon cannot have pipes that are large enough (fs.pipe-max-size)");
    return m->out->source.reference ? ram_check_file(&m->out->source, m->out->source.reference, err) : 0;
}

/* What `auto` comes to: a checksum is cheap where the data has to be read anyway, and costs a copy where it need not. */
static bool wants_checksum(const struct settings *settings, bool by_reference)
{
    /* Nothing is left here of what comes through FUSE: only what it was sent with can tell. */
    if (settings->verify && !by_reference)
        return true;
    if (settings->checksum_choice != CHOICE_AUTO)
        return settings->checksum_choice == CHOICE_ON;
    return settings->compress || (settings->zero_pages && !by_reference);
}

/* From a state in which it can be started to setup. -EAGAIN: a `start` that was cancelled has not left. */
static int try_setup(struct migration *m, const struct interrupt *interrupt, struct error *err)
{
    struct outgoing *out = m->out;
    eventfd_t drained;

    SCOPED_LOCK(&m->lock);
    /* See host.closed. */
    if (atomic_load(&m->host->closed))
        return error_set(err, CAUSE_SHUTDOWN, "the daemon is going away");
    int ret = source_is_leaving(&m->out->source) ? -EAGAIN : may_start(m, err);
    if (ret == 0 && out->source.cancel_fd < 0)
        out->source.cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (ret == 0 && out->source.cancel_fd < 0)
        ret = error_set_errno(err, errno, "cannot make an eventfd");
    if (ret == 0) {
        eventfd_read(out->source.cancel_fd, &drained);
        init_parts(out);
        out->source.doom = (struct error){0};
        out->source.starter = interrupt;
        migration_become_outgoing(m);
        out->source.starting = true;
        out->launch = LAUNCH_WAIT;
        m->settings.checksum = wants_checksum(&m->settings, out->source.reference);
        migration_move(m, STATE_SETUP, NULL);
    }
    return ret;
}

static int enter_setup(struct migration *m, const struct interrupt *interrupt, struct error *err)
{
    int ret;

    do {
        pthread_mutex_lock(&m->lock);
        ret = source_await_starter(&m->out->source, interrupt, err);
        pthread_mutex_unlock(&m->lock);
        if (ret == 0)
            ret = try_setup(m, interrupt, err);
    } while (ret == -EAGAIN);
    return ret;
}

/* The attempt has failed, and there is no mig-out. */
static void leave_setup(struct migration *m, struct error *failure, struct error *err)
{
    struct outgoing *out = m->out;

    /* A goodbye tells the peer more than a closed connection. */
    if (out->source.opening && !out->source.opening->peer_aborted)
        session_goodbye(&out->source.opening->main, failure);
    pthread_mutex_lock(&m->lock);
    out->source.starter = NULL;
    streams_forget_answer(&out->streams);
    if (out->source.reference)
        reference_stop(out->source.reference);
    connection_free(out->source.opening);
    out->source.opening = NULL;
    source_close_cancel(&out->source);
    if (m->state == STATE_SETUP)
        migration_move(m, STATE_FAILED, failure);
    *err = m->failure;
    out->source.starting = false;
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->lock);
    log_error("%s: cannot start: %s", m->name, err->message);
    migration_announce(m);
}

/* All is connected, and mig-out waits for what becomes of it. False, with @failure: it was cancelled meanwhile. */
static bool launch(struct migration *m, struct error *failure)
{
    struct outgoing *out = m->out;
    eventfd_t drained;

    SCOPED_LOCK(&m->lock);
    bool active = m->state == STATE_SETUP;
    out->launch = active ? LAUNCH_GO : LAUNCH_LEAVE;
    pthread_cond_broadcast(&m->changed);
    if (active) {
        out->source.starter = NULL;
        out->source.starting = false;
        eventfd_read(out->source.cancel_fd, &drained);
        connection_watch(out->source.opening);
        atomic_store_explicit(&out->source.connection, out->source.opening, memory_order_release);
        out->source.opening = NULL;
        migration_move(m, STATE_ACTIVE, NULL);
        return true;
    }
    *failure = m->failure;
    while (out->launch == LAUNCH_LEAVE)
        pthread_cond_wait(&m->changed, &m->lock);
    return false;
}

int outgoing_start(struct migration *m, const struct interrupt *interrupt, struct error *err)
{
    struct outgoing *out = m->out;
    struct error failure = {0};

    if (enter_setup(m, interrupt, err) < 0)
        return -EIO;
    migration_announce(m);
    if (out->source.reference)
        outgoing_check_sharing(m, 0);
    if (connect_all(m, interrupt, &failure) < 0 || migration_start_thread(m, mig_out, &failure) < 0 ||
        !launch(m, &failure)) {
        leave_setup(m, &failure, err);
        return -EIO;
    }
    migration_announce(m);
    log_info("%s: active, %u channels to %s", m->name, source_connection(&out->source)->channel_count, m->settings.uri.text);
    return 0;
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

int outgoing_truncate(struct migration *m, struct file *file, uint64_t size, const struct interrupt *interrupt,
                      struct error *err)
{
    int ret = writes_truncate(&m->out->source, file, size, interrupt, err);

    if (ret <= 0)
        return ret;
    SCOPED_LOCK(&m->lock);
    streams_tell(&m->out->streams, file, true);
    return 0;
}

int outgoing_flush(struct migration *m, struct file *file, const struct interrupt *interrupt, struct error *err)
{
    return barriers_flush(&m->out->barriers, file, interrupt, err);
}

int outgoing_sync(struct migration *m, struct file *file, const struct interrupt *interrupt, struct error *err)
{
    return barriers_sync(&m->out->barriers, file, interrupt, err);
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

int outgoing_create_device(struct migration *m, const char *name, bool exclusive, const struct interrupt *interrupt,
                           struct file **out, struct error *err)
{
    return streams_create(&m->out->streams, name, exclusive, interrupt, out, err);
}

int outgoing_remove_device(struct migration *m, const char *name, const struct interrupt *interrupt, struct error *err)
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
    [WIRE_FILE_REPLY] = on_file_reply,   [WIRE_SYNC_ACK] = on_sync_ack,   [WIRE_PREPARED] = on_prepared,
    [WIRE_COMMITTED] = on_committed,     [WIRE_ABORT] = on_abort,         [WIRE_DIGEST_REPLY] = on_answer,
    [WIRE_VERIFY_REPLY] = on_answer,     [WIRE_PROGRESS] = on_progress,   [WIRE_FILE_REMOVE] = on_changed,
    [WIRE_FILE_RENAME] = on_changed,
};

/* Runs in mig-out, and in the thread of `start` before that exists. */
static int handle_message(void *arg, const struct message *message, struct wire_reader *body, struct error *err)
{
    struct reader *reader = arg;
    unsigned type = message->type;

    if (type >= WIRE_MESSAGE_MAX || !handlers[type])
        return error_set(err, CAUSE_PROTOCOL, "a message of type %u from the destination", type);
    return handlers[type](reader->m->out, reader->conn, message, body, err);
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

/* Waits for launch(). False: it was in vain, and who started looks after the rest. */
static bool await_launch(struct migration *m)
{
    SCOPED_LOCK(&m->lock);
    while (m->out->launch == LAUNCH_WAIT)
        pthread_cond_wait(&m->changed, &m->lock);
    if (m->out->launch == LAUNCH_GO)
        return true;
    m->out->launch = LAUNCH_WAIT;
    pthread_cond_broadcast(&m->changed);
    return false;
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

static void *mig_out(void *arg)
{
    struct migration *m = arg;
    struct outgoing *out = m->out;

    pthread_setname_np(pthread_self(), "mig-out");
    if (!await_launch(m)) {
        migration_put(m);
        return NULL;
    }
    struct connection *conn = source_connection(&out->source);
    struct reader reader = {m, conn};
    while (!state_is_final(m->state)) {
        struct error err = {0};
        pthread_mutex_lock(&m->lock);
        struct error doom = out->source.doom;
        int64_t deadline = error_is_set(&doom) ? out->source.doom_at : clock_ms() + 60000;
        bool confirming = handover_is_committing(&out->handover);
        pthread_mutex_unlock(&m->lock);
        int ret = session_step(&conn->main, deadline, handle_message, &reader, &err);
        if (state_is_final(m->state))
            break;
        if (stall_is_due(&conn->watch, clock_ms()))
            look_for_stall(m, conn);
        bool doomed = error_is_set(&doom) && clock_ms() >= deadline;
        if (ret == 0 && !doomed)
            continue;
        /* The first sign of trouble says more than what followed from it, unless the peer itself says why. */
        if (doomed || (error_is_set(&doom) && !confirming && !conn->peer_aborted))
            err = doom;
        lost_connection(m, conn, &err);
    }
    if (m->state != STATE_COMPLETED && !conn->peer_aborted)
        session_goodbye(&conn->main, &m->failure);
    connection_break(conn);
    if (out->source.reference) {
        reference_stop(out->source.reference);
        pthread_mutex_lock(&m->lock);
        reference_close(out->source.reference);
        pthread_mutex_unlock(&m->lock);
    }
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
    if (out->source.reference)
        reference_kick(out->source.reference);
    for (unsigned c = 0; c < conn->channel_count; c++)
        channel_kick(&conn->channels[c]);
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

uint64_t outgoing_dirty_size(struct migration *m)
{
    return ram_dirty_size(&m->out->source);
}

int outgoing_mark_dirty(struct migration *m, const void *bitmap, size_t len, uint64_t offset, struct error *err)
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

static void free_role(struct migration *m)
{
    outgoing_free(m->out);
}

static uint64_t wire_bytes_of(struct migration *m, unsigned channel)
{
    return outgoing_wire_bytes(m, (int)channel);
}

const struct role_operations outgoing_operations = {
    .free = free_role,
    .ended = ended,
    .kick = kick,
    .is_committing = is_committing,
    .leave = leave,
    .channels = outgoing_channels,
    .wire_bytes = wire_bytes_of,
};
