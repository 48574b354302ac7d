/* SPDX-License-Identifier: Apache-2.0 */
/* `start`; see start.h. */
#include "start.h"
#include "cleanup.h"
#include "clock.h"
#include "host.h"
#include "log.h"
#include "ram.h"
#include "tracking.h"

#include <errno.h>
#include <sys/eventfd.h>

#define UNDECLARED_MAX (1ull << 40) /* bytes of RAM that are compared where no size was declared */

void start_init(struct start *start, struct source *source, struct streams *streams,
                const struct start_operations *operations, void *role)
{
    *start = (struct start){.source = source, .streams = streams, .operations = operations, .role = role};
}

/*
 * From the settings to setup
 */

/* Whether what the connections carry can be kept, and sent again over others. */
static int may_resume(const struct settings *settings, struct error *err)
{
    for (unsigned i = 0; i < settings->uris.count; i++) {
        if (settings->uris.uri[i].inner == URI_RDMA)
            return error_set(err, CAUSE_UNSUPPORTED,
                             "resume is not possible by RDMA: what a card has placed cannot be placed again");
    }
    if (settings->zero_copy == ZEROCOPY_REQUIRE)
        return error_set(err, CAUSE_UNSUPPORTED,
                         "zero-copy is required, but with resume what is sent has to be kept");
    if (settings->splice == CHOICE_ON)
        return error_set(err, CAUSE_UNSUPPORTED, "splice is on, but with resume what is sent has to be kept");
    return 0;
}

static int may_start(struct source *source, struct error *err)
{
    struct migration *m = source->m;
    const struct settings *settings = &m->settings;

    if (m->removed)
        return error_set(err, CAUSE_NOT_FOUND, "the migration is gone");
    if (migration_allows(m, COMMAND_START, err) < 0)
        return -EIO;
    if (m->was_active)
        return error_set(err, CAUSE_STATE, "the migration has %s: rmdir it and make it again",
                         m->state == STATE_FAILED ? "failed" : "been cancelled");
    if (!settings->uris.count)
        return error_set(err, CAUSE_SYNTAX, "where to? Write a URI to 'uri' first");
    if (settings->device_channels >= settings->channels)
        return error_set(err, CAUSE_SYNTAX, "%u of %u channels for devices leave none for RAM",
                         settings->device_channels, settings->channels);
    if (settings->splice == CHOICE_ON && !m->host->splices)
        return error_set(
            err, CAUSE_UNSUPPORTED,
            "splice is on, but this daemon cannot have pipes that are large enough (fs.pipe-max-size)");
    if (settings->resume_ms && may_resume(settings, err) < 0)
        return -EIO;
    return source->reference ? ram_check_file(source, source->reference, err) : 0;
}

/* Whether all data goes by cards that check each packet from one end to the other, with 32 bits. */
static bool goes_by_rdma(const struct settings *settings)
{
    bool all = !settings->fallback;

    for (unsigned i = 0; i < settings->uris.count && i < settings->channels; i++)
        all = all && settings->uris.uri[i].inner == URI_RDMA;
    return all;
}

/* What `auto` comes to: a checksum is cheap where the data has to be read anyway, and costs a copy where it
 * need not. */
static bool wants_checksum(const struct settings *settings, bool by_reference)
{
    /* Nothing is left here of what comes through FUSE: only what it was sent with can tell. */
    if (settings->verify && !by_reference)
        return true;
    if (settings->checksum_choice != CHOICE_AUTO)
        return settings->checksum_choice == CHOICE_ON;
    return settings->compress || (settings->zero_pages && !by_reference && !goes_by_rdma(settings));
}

/* An eventfd that is not readable. The caller holds migration.lock. */
static int make_cancel(struct source *source, struct error *err)
{
    eventfd_t drained;

    if (source->cancel_fd < 0)
        source->cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (source->cancel_fd < 0)
        return error_set_errno(err, errno, "cannot make an eventfd");
    eventfd_read(source->cancel_fd, &drained);
    return 0;
}

/* From a state in which it can be started to setup. -EAGAIN: a `start` that was cancelled has not left. */
static int try_setup(struct start *start, const struct interrupt *interrupt, struct error *err)
{
    struct source *source = start->source;
    struct migration *m = source->m;

    SCOPED_LOCK(&m->lock);
    /* See host.closed. */
    if (atomic_load(&m->host->closed))
        return error_set(err, CAUSE_SHUTDOWN, "the daemon is going away");
    if (source_is_leaving(source))
        return -EAGAIN;
    if (may_start(source, err) < 0 || make_cancel(source, err) < 0)
        return -EIO;
    start->operations->forget(start->role);
    start->launch = LAUNCH_WAIT;
    source->doom = (struct error){0};
    source->starter = interrupt;
    source->starting = true;
    migration_become_outgoing(m);
    m->settings.checksum = wants_checksum(&m->settings, source->reference);
    migration_move(m, STATE_SETUP, NULL);
    return 0;
}

static int enter_setup(struct start *start, const struct interrupt *interrupt, struct error *err)
{
    struct migration *m = start->source->m;
    int ret;

    do {
        pthread_mutex_lock(&m->lock);
        ret = source_await_starter(start->source, interrupt, err);
        pthread_mutex_unlock(&m->lock);
        if (ret == 0)
            ret = try_setup(start, interrupt, err);
    } while (ret == -EAGAIN);
    return ret;
}

/*
 * Connecting
 */

/* connection_config.failed: keep the reason, and let the main channel have its say. */
static void connection_failed(void *arg, const struct error *reason, int64_t delay_ms)
{
    struct source *source = arg;

    SCOPED_LOCK(&source->m->lock);
    source_doom(source, reason, delay_ms);
}

/* connection_config.lost, connection_config.found_again */
static void connection_lost(void *arg, const struct error *reason)
{
    migration_lose(((struct source *)arg)->m, reason);
}

static void connection_found_again(void *arg)
{
    migration_find_again(((struct source *)arg)->m);
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

static int connect_to(struct source *source, struct connection **conn, struct error *err)
{
    const struct migration *m = source->m;
    const struct settings *settings = &m->settings;
    struct connection_config config = {
        .uris = &settings->uris,
        .name = m->name,
        .channels = settings->channels,
        .device_channels = settings->device_channels,
        .timeout_ms = settings->timeout_ms,
        .features = (settings->checksum ? WIRE_FEATURE_CHECKSUM : 0) |
                    (settings->compress ? WIRE_FEATURE_ZSTD : 0) |
                    (settings->resume_ms ? WIRE_FEATURE_RESUME : 0),
        .zero_copy = settings->zero_copy,
        .splice = splice_of(m),
        .compress = settings->compress,
        .zstd_level = settings->zstd_level,
        .write_behind = m->host->limits.write_behind,
        .rdma_chunk = settings->rdma_chunk,
        .fallback = settings->fallback,
        .tls = m->host->tls,
        .tls_name = settings->tls_name,
        .insecure = m->host->limits.insecure,
        .max_bandwidth = settings->max_bandwidth,
        .resume_ms = settings->resume_ms,
        .cancel_fd = source->cancel_fd,
        .failed = connection_failed,
        .lost = connection_lost,
        .found_again = connection_found_again,
        .arg = source,
    };

    return connection_open(&config, conn, err);
}

/* Reads the main channel once, for an answer that is due before the deadline. */
static int await_answer(struct start *start, struct connection *conn, int64_t deadline,
                        const struct interrupt *interrupt, struct error *err)
{
    if (interrupt_is_hit(interrupt))
        return error_set(err, CAUSE_INTERRUPTED, "interrupted");
    if (start->source->m->state != STATE_SETUP)
        return error_set(err, CAUSE_CANCELLED, "cancelled");
    if (clock_ms() >= deadline)
        return error_set(err, CAUSE_TIMEOUT, "the destination does not answer");
    return start->operations->step(start->role, conn, deadline, err);
}

/* Tells the destination of a file, and waits for its answer. */
static int announce(struct start *start, struct connection *conn, struct file *file,
                    const struct interrupt *interrupt, struct error *err)
{
    struct migration *m = start->source->m;
    int64_t deadline = clock_ms() + m->settings.timeout_ms;

    streams_announce(start->streams, conn, file);
    while (!streams_is_answered(start->streams)) {
        if (await_answer(start, conn, deadline, interrupt, err) < 0)
            return -EIO;
    }
    SCOPED_LOCK(&m->lock);
    return streams_take_answer(start->streams, err);
}

/* `rdma-pin all`: the whole RAM is pinned at the destination, and here, if it comes by reference. */
static int pin_all(struct start *start, struct connection *conn, const struct interrupt *interrupt,
                   struct error *err)
{
    struct source *source = start->source;
    uint64_t size = atomic_load(&source->m->files[WIRE_RAM]->size), answers = 0;
    uint32_t timeout_ms = source->m->settings.timeout_ms;
    int64_t deadline = clock_ms() + timeout_ms;

    placing_pin(&conn->placing, size);
    while (placing_is_answer_due(&conn->placing)) {
        struct placing_figures figures = placing_figures(&conn->placing);
        if (figures.exposures > answers)
            deadline = clock_ms() + timeout_ms;
        answers = figures.exposures;
        if (await_answer(start, conn, deadline, interrupt, err) < 0)
            return -EIO;
    }
    if (!placing_is_pinned(&conn->placing, size))
        return error_set(err, CAUSE_NO_MEMORY,
                         "rdma-pin is all, but the destination can pin only %llu MiB of %llu: raise its "
                         "RLIMIT_MEMLOCK (ulimit -l), or take 'demand'",
                         (unsigned long long)(placing_figures(&conn->placing).chunks * conn->group.chunk) >>
                             20,
                         (unsigned long long)size >> 20);
    return source->reference ? reference_pin(source->reference, err) : 0;
}

/* `dirty-tracking compare`: nothing has been sent yet. */
static int begin_tracking(struct source *source, const struct connection *conn, struct error *err)
{
    struct migration *m = source->m;
    const struct file *ram = m->files[WIRE_RAM];
    uint64_t size = atomic_load(&ram->size);

    tracking_free(source->tracking);
    source->tracking = NULL;
    if (!m->settings.compare)
        return 0;
    if (size == 0) /* it grows as it is written; what is beyond this is always sent */
        size = conn->limits.max_ram < UNDECLARED_MAX ? conn->limits.max_ram : UNDECLARED_MAX;
    source->tracking = tracking_new(size, err);
    return source->tracking ? 0 : -EIO;
}

/* again.is_over: a data channel has been given up. After the commit only the destination knows. */
static bool is_doomed(void *arg)
{
    struct source *source = arg;
    const struct connection *conn = source_connection(source);

    if (conn && atomic_load(&conn->committed))
        return false;
    SCOPED_LOCK(&source->m->lock);
    return error_is_set(&source->doom) && clock_ms() >= source->doom_at;
}

/* Connects, and tells the destination of all files. */
static int connect_all(struct start *start, const struct interrupt *interrupt, struct error *err)
{
    struct source *source = start->source;
    struct migration *m = source->m;
    struct reference *ref = source->reference;
    struct connection *conn;

    if (connect_to(source, &conn, err) < 0)
        return -EIO;
    pthread_mutex_lock(&m->lock);
    source->opening = conn;
    pthread_mutex_unlock(&m->lock);
    source->again.is_over = is_doomed;
    source->again.is_over_arg = source;
    if (connection_resumes(conn) && again_start(&source->again, conn, err) < 0)
        return -EIO;
    streams_number(start->streams);
    for (uint32_t i = 0; i < m->file_count; i++) {
        struct file *file = m->files[i];
        if (file_set_channels(file, conn->channel_count, conn->hello.device_channels) < 0)
            return error_set(err, CAUSE_NO_MEMORY, "out of memory");
        if (file->id > conn->limits.max_devices)
            return error_set(err, CAUSE_QUOTA, "the destination allows %u devices", conn->limits.max_devices);
        if (connection_check_size(conn, file, atomic_load(&file->size), err) < 0 ||
            announce(start, conn, file, interrupt, err) < 0)
            return -EIO;
    }
    if (begin_tracking(source, conn, err) < 0)
        return -EIO;
    if (ref && ram_start(source, ref, conn, err) < 0)
        return -EIO;
    return m->settings.rdma_pin_all && conn->places ? pin_all(start, conn, interrupt, err) : 0;
}

/*
 * The end of it
 */

/* The attempt has failed, and the role has no thread. */
static void leave_setup(struct start *start, struct error *failure, struct error *err)
{
    struct source *source = start->source;
    struct migration *m = source->m;

    /* A goodbye tells the peer more than a closed connection. */
    if (source->opening && !source->opening->peer_aborted)
        session_goodbye(&source->opening->main, failure);
    again_stop(&source->again);
    if (source->opening)
        connection_break(source->opening);
    again_join(&source->again);
    pthread_mutex_lock(&m->lock);
    source->starter = NULL;
    streams_forget_answer(start->streams);
    if (source->reference)
        reference_stop(source->reference);
    connection_free(source->opening);
    source->opening = NULL;
    source_close_cancel(source);
    if (m->state == STATE_SETUP)
        migration_move(m, STATE_FAILED, failure);
    *err = m->failure;
    source->starting = false;
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->lock);
    log_error("%s: cannot start: %s", m->name, err->message);
    migration_announce(m);
}

/* All is connected, and the role's thread waits for what becomes of it. False, with @failure: it was
 * cancelled meanwhile. */
static bool launch(struct start *start, struct error *failure)
{
    struct source *source = start->source;
    struct migration *m = source->m;
    eventfd_t drained;

    SCOPED_LOCK(&m->lock);
    bool active = m->state == STATE_SETUP;
    start->launch = active ? LAUNCH_GO : LAUNCH_LEAVE;
    pthread_cond_broadcast(&m->changed);
    if (active) {
        source->starter = NULL;
        source->starting = false;
        eventfd_read(source->cancel_fd, &drained);
        connection_watch(source->opening);
        atomic_store_explicit(&source->connection, source->opening, memory_order_release);
        source->opening = NULL;
        migration_move(m, STATE_ACTIVE, NULL);
        return true;
    }
    *failure = m->failure;
    while (start->launch == LAUNCH_LEAVE)
        pthread_cond_wait(&m->changed, &m->lock);
    return false;
}

bool start_await_launch(struct start *start)
{
    struct migration *m = start->source->m;

    SCOPED_LOCK(&m->lock);
    while (start->launch == LAUNCH_WAIT)
        pthread_cond_wait(&m->changed, &m->lock);
    if (start->launch == LAUNCH_GO)
        return true;
    start->launch = LAUNCH_WAIT;
    pthread_cond_broadcast(&m->changed);
    return false;
}

int start_run(struct start *start, const struct interrupt *interrupt, struct error *err)
{
    struct source *source = start->source;
    struct migration *m = source->m;
    struct error failure = {0};
    char uris[URI_LIST_MAX];

    if (enter_setup(start, interrupt, err) < 0)
        return -EIO;
    migration_announce(m);
    if (source->reference)
        ram_check_sharing(source, 0);
    if (connect_all(start, interrupt, &failure) < 0 ||
        migration_start_thread(m, start->operations->thread, &failure) < 0 || !launch(start, &failure)) {
        leave_setup(start, &failure, err);
        return -EIO;
    }
    migration_announce(m);
    const struct connection *conn = source_connection(source);
    uri_list_format(&conn->uris, uris, sizeof(uris));
    log_info("%s: active, %u channels to %s", m->name, conn->channel_count, uris);
    if (conn->fallen_back[0])
        log_error("%s: not by RDMA, but by TCP: %s", m->name, conn->fallen_back);
    return 0;
}
