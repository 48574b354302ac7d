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
#include "zero.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>

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
    return out->source.reference ? reference_start(out->source.reference, m, atomic_load(&m->files[WIRE_RAM]->size), err) : 0;
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

/* What is taken from the gate for a packet: a bound on the memory that it holds until it is sent. */
static uint64_t cost(const struct packet *packet)
{
    return sizeof(struct wire_packet) + (packet->type == WIRE_PAGES ? packet->range : packet->raw_length);
}

/*
 * The packets of a write, in the order of their offsets. The payload of a packet
 * lies in the writer's buffer, at the packet's offset.
 */
struct plan {
    bool compress, checksum;
    uint32_t copy_max; /* channel_copies() of any of the channels */
    bool gated; /* the gate has counted its cost */
    const struct reference *ref; /* large payloads are sent from its mapping, as they are then */
    enum channel_place place;    /* CHANNEL_PIPE: the payload of the only packet is in @pipe */
    int pipe;
    unsigned n, large;
    uint64_t cost;
    struct packet packets[OUTGOING_WRITE_MAX / WIRE_PAGE_SIZE + 8];
};

/* What the gate is given back for a packet. */
static uint64_t gate_share(const struct plan *plan, const struct packet *packet)
{
    return plan && !plan->gated ? 0 : cost(packet);
}

/* Counts a packet with a payload of @bytes in @pages, and @zero pages without. The channel's lock is held. */
static void count_data(struct file_channel *fc, uint64_t bytes, uint64_t pages, uint64_t zero)
{
    counter_add(&fc->bytes, bytes);
    counter_add(&fc->pages, pages);
    counter_add(&fc->zero_pages, zero);
}

static uint64_t pages_touched(const struct packet *packet)
{
    return (packet->offset + packet->raw_length - 1) / WIRE_PAGE_SIZE - packet->offset / WIRE_PAGE_SIZE + 1;
}

/* Called with the channel's lock held. @plan: what the packet is of, or NULL */
static void add_packet(struct channel *ch, struct file *file, struct packet *packet, const void *payload,
                       const struct plan *plan, struct channel_entry *entry)
{
    struct file_channel *fc = &file->per_channel[ch->index];

    packet->file = file->id;
    if (entry && plan->ref)
        payload = plan->ref->map + packet->offset;
    uint64_t check = plan && plan->place == CHANNEL_PIPE
                         ? channel_add_pipe(ch, packet, plan->pipe, gate_share(plan, packet), entry)
                         : channel_add(ch, packet, payload, gate_share(plan, packet), entry);
    atomic_store_explicit(&fc->last_sequence, packet->sequence, memory_order_relaxed);
    counter_add(&fc->packets, 1);
    counter_add(&fc->digest, check);
    switch (packet->type) {
    case WIRE_DATA:
        count_data(fc, packet->length, pages_touched(packet), 0);
        break;
    case WIRE_ZERO:
        count_data(fc, 0, 0, packet->range / WIRE_PAGE_SIZE);
        break;
    case WIRE_DISCARD:
        counter_add(&fc->discarded_bytes, file_home_bytes(file, ch->index, packet->offset, packet->range));
        counter_add(&fc->accepted, file_home_bytes(file, ch->index, packet->offset, packet->range));
        break;
    default:
        break;
    }
}

/* The same for a packet that is prepared later; it is counted then. */
static void add_unprepared(struct file *file, const struct plan *plan, const struct packet *packet, const char *raw,
                           struct outgoing_piece *piece)
{
    struct file_channel *fc = &file->per_channel[piece->channel->index];

    piece->later = true;
    piece->packet = *packet;
    piece->packet.file = file->id;
    piece->raw = raw;
    piece->gathered = piece->packed = NULL;
    channel_add_unprepared(piece->channel, &piece->packet, gate_share(plan, packet), &piece->entry);
    atomic_store_explicit(&fc->last_sequence, piece->packet.sequence, memory_order_relaxed);
}

/* Called with the channel's lock held. */
static void grow(struct file *file, uint64_t end)
{
    uint64_t size = atomic_load_explicit(&file->size, memory_order_relaxed);

    if (!atomic_load_explicit(&file->touched, memory_order_relaxed))
        atomic_store_explicit(&file->touched, true, memory_order_relaxed);
    while (end > size && !atomic_compare_exchange_weak(&file->size, &size, end))
        ;
}

/* Whether [.., end) may be written: not past what was declared or is allowed. */
static int check_size(struct migration *m, struct file *file, uint64_t offset, uint64_t len, struct error *err)
{
    char name[WIRE_NAME_MAX + 1];

    if (len > WIRE_OFFSET_MAX || offset > WIRE_OFFSET_MAX - len)
        return error_set(err, CAUSE_TOO_BIG, "'%.64s': no file has more than %llu bytes", file_name(file, name),
                         WIRE_OFFSET_MAX);
    if (file->declared && offset + len > file->declared)
        return error_set(err, CAUSE_TOO_BIG, "'%.64s' was declared to have %llu bytes; the write ends at %llu",
                         file_name(file, name), (unsigned long long)file->declared, (unsigned long long)(offset + len));
    return connection_check_size(source_connection(&m->out->source), file, offset + len, err);
}

/* Data is allowed, so that conn->channels and the limits are there. */
static int check_active(struct migration *m, struct error *err)
{
    /* Not ready, and active: the migration has become incoming. */
    if (atomic_load_explicit(&m->state, memory_order_acquire) == STATE_ACTIVE && source_connection(&m->out->source))
        return 0;
    SCOPED_LOCK(&m->lock);
    return migration_allows(m, COMMAND_WRITE, err);
}

static int enter_gate(struct migration *m, uint64_t bytes, const struct interrupt *interrupt, struct error *err)
{
    int ret = gate_enter(&source_connection(&m->out->source)->gate, bytes, interrupt);

    if (ret == -EINTR)
        return error_set(err, CAUSE_INTERRUPTED, "interrupted");
    if (ret == -ECANCELED && source_await_verdict(&m->out->source, COMMAND_WRITE, interrupt, err) == 0)
        return error_set(err, CAUSE_RESET, "the connection is lost");
    return ret;
}

/* Whether a packet's payload is compressed or checked after the writer is answered. */
static bool is_prepared_later(const struct plan *plan, const struct packet *packet)
{
    if (plan->compress)
        return packet->type == WIRE_PAGES || packet->raw_length >= WIRE_PAGE_SIZE;
    return plan->checksum && packet->length > plan->copy_max;
}

static bool is_copied(const struct plan *plan, const struct packet *packet)
{
    return !is_prepared_later(plan, packet) && packet->length <= plan->copy_max;
}

static void plan_add(struct plan *plan, enum wire_packet_type type, uint64_t offset, size_t len)
{
    struct packet *last = plan->n ? &plan->packets[plan->n - 1] : NULL;
    uint32_t length = (uint32_t)len;

    if (type != WIRE_DATA)
        plan->packets[plan->n++] = (struct packet){.type = type, .offset = offset, .range = len};
    else if (last && last->type == WIRE_DATA && last->offset + last->length == offset && offset % WIRE_STRIPE_SIZE)
        last->length = last->raw_length = last->length + length;
    else
        plan->packets[plan->n++] =
            (struct packet){.type = type, .offset = offset, .length = length, .raw_length = length};
}

/*
 * Whole pages of one stripe: a packet for each run of data or zero pages, or,
 * when they will be compressed, one for all, since many short frames compress
 * badly.
 */
static void plan_pages(struct plan *plan, const char *buf, uint64_t offset, size_t len)
{
    bool zero;
    size_t run = zero_run(buf, len, &zero);

    if (plan->compress && run < len) {
        plan_add(plan, WIRE_PAGES, offset, len);
        return;
    }
    for (size_t at = 0; at < len; at += run) {
        run = zero_run(buf + at, len - at, &zero);
        plan_add(plan, zero ? WIRE_ZERO : WIRE_DATA, offset + at, run);
    }
}

/* Cuts [offset, offset + len), which is within a stripe. */
static void plan_stripe(struct plan *plan, const char *buf, uint64_t offset, size_t len)
{
    size_t head = (WIRE_PAGE_SIZE - offset % WIRE_PAGE_SIZE) % WIRE_PAGE_SIZE;

    if (head > len)
        head = len;
    size_t whole = (len - head) / WIRE_PAGE_SIZE * WIRE_PAGE_SIZE;
    size_t tail = len - head - whole;
    if (head)
        plan_add(plan, WIRE_DATA, offset, head);
    if (whole)
        plan_pages(plan, buf + head, offset + head, whole);
    if (tail)
        plan_add(plan, WIRE_DATA, offset + head + whole, tail);
}

static void begin_plan(struct migration *m, const struct file *file, struct plan *plan)
{
    plan->compress = source_connection(&m->out->source)->compressor;
    plan->copy_max = source_connection(&m->out->source)->channels[0].copy_max;
    plan->checksum = migration_checks(m, file);
    plan->gated = true;
    plan->ref = NULL;
    plan->place = CHANNEL_MEMORY;
    plan->n = plan->large = 0;
    plan->cost = 0;
}

/* All packets are there; their bytes that are in memory are at @buf, which stands for @offset. */
static void end_plan(struct plan *plan, const char *buf, uint64_t offset)
{
    for (unsigned i = 0; i < plan->n; i++) {
        struct packet *packet = &plan->packets[i];
        if (packet->type == WIRE_DATA && plan->checksum && !is_prepared_later(plan, packet))
            packet->payload_check = wire_payload_check(buf + (packet->offset - offset), packet->length);
        plan->large += !is_copied(plan, packet);
        plan->cost += cost(packet);
    }
}

static void plan_write(struct migration *m, const struct file *file, const char *buf, size_t len, uint64_t offset,
                       struct plan *plan)
{
    bool zero_pages = m->settings.zero_pages && file->id == WIRE_RAM;

    begin_plan(m, file, plan);
    for (size_t done = 0; done < len;) {
        uint64_t at = offset + done;
        size_t room = WIRE_STRIPE_SIZE - at % WIRE_STRIPE_SIZE;
        size_t piece = len - done < room ? len - done : room;
        if (zero_pages)
            plan_stripe(plan, buf + done, at, piece);
        else
            plan_add(plan, WIRE_DATA, at, piece);
        done += piece;
    }
    end_plan(plan, buf, offset);
}

/* Called with the locks of the write's channels held: room for everything that will be copied. */
static int reserve(struct connection *conn, const struct file *file, const struct plan *plan, const bool *need)
{
    for (unsigned c = 0; c < conn->channel_count; c++) {
        unsigned packets = 0;
        size_t bytes = 0;
        for (unsigned i = 0; need[c] && i < plan->n; i++) {
            const struct packet *packet = &plan->packets[i];
            if (is_copied(plan, packet) && file_home(file, packet->offset) == c) {
                packets++;
                bytes += packet->length;
            }
        }
        if (channel_reserve(&conn->channels[c], packets, bytes) < 0)
            return -ENOMEM;
    }
    return 0;
}

/* Gives the packets their places, all in one step. */
static int place(struct migration *m, struct file *file, const char *buf, uint64_t offset, struct plan *plan,
                 const struct interrupt *interrupt, struct outgoing_write *write, struct error *err)
{
    struct connection *conn = source_connection(&m->out->source);

    while (!connection_lock_channels(conn, write->need)) {
        if (source_await_verdict(&m->out->source, COMMAND_WRITE, interrupt, err) < 0)
            return -EIO;
    }
    if (reserve(conn, file, plan, write->need) < 0) {
        connection_unlock_channels(conn, write->need);
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    }
    if (file_is_removed(file)) {
        connection_unlock_channels(conn, write->need);
        memset(write->need, 0, sizeof(write->need));
        gate_leave(&conn->gate, plan->gated ? plan->cost : 0);
        return 0;
    }
    for (unsigned i = 0; i < plan->n; i++) {
        struct packet *packet = &plan->packets[i];
        const char *payload = plan->place == CHANNEL_MEMORY ? buf + (packet->offset - offset) : NULL;
        struct channel *ch = connection_home(conn, file, packet->offset);
        struct outgoing_piece *piece = is_copied(plan, packet) ? NULL : &write->pieces[write->n++];
        if (piece) {
            piece->channel = ch;
            piece->later = false;
        }
        if (is_prepared_later(plan, packet))
            add_unprepared(file, plan, packet, payload, piece);
        else
            add_packet(ch, file, packet, payload, plan, piece ? &piece->entry : NULL);
        uint64_t bytes = packet->type == WIRE_DATA ? packet->raw_length : packet->range;
        grow(file, packet->offset + bytes);
        /* What was written, whatever becomes of it. */
        counter_add(&file->per_channel[ch->index].accepted, bytes);
    }
    connection_unlock_channels(conn, write->need);
    return 0;
}

static int begin_write(struct migration *m, struct file *file, const struct plan *plan, struct outgoing_write *write,
                       struct error *err)
{
    write->m = m;
    write->file = file;
    write->n = 0;
    write->pieces = write->few;
    memset(write->need, 0, sizeof(write->need));
    write->channels = 0;
    write->eager = false;
    for (unsigned i = 0; i < plan->n; i++) {
        bool *need = &write->need[file_home(file, plan->packets[i].offset)];
        write->channels += !*need;
        *need = true;
    }
    if (plan->large > sizeof(write->few) / sizeof(write->few[0])) {
        write->pieces = malloc(plan->large * sizeof(*write->pieces));
        if (!write->pieces)
            return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    }
    return 0;
}

/* Whether a write may be taken now. */
static int admit(struct migration *m, struct file *file, size_t len, uint64_t offset, const struct interrupt *interrupt,
                 struct error *err)
{
    assert(len <= OUTGOING_WRITE_MAX);
    if (check_active(m, err) < 0 || check_size(m, file, offset, len, err) < 0)
        return -EIO;
    return source_drain_reference(&m->out->source, file, interrupt, err);
}

/* Takes a write that has been admitted and planned. */
static int accept_plan(struct migration *m, struct file *file, const void *buf, uint64_t offset, struct plan *plan,
                       const struct interrupt *interrupt, struct outgoing_write *write, struct error *err)
{
    if (begin_write(m, file, plan, write, err) < 0)
        return -EIO;
    int ret = enter_gate(m, plan->cost, interrupt, err);
    if (ret == 0) {
        ret = place(m, file, buf, offset, plan, interrupt, write, err);
        if (ret < 0)
            gate_leave(&source_connection(&m->out->source)->gate, plan->cost);
    }
    if (ret < 0 && write->pieces != write->few)
        free(write->pieces);
    return ret;
}

/* A write to a device that has been removed: it succeeds, and goes nowhere. */
static int accept_nothing(struct migration *m, struct file *file, struct outgoing_write *write, struct error *err)
{
    struct plan plan = {.n = 0};

    return check_active(m, err) < 0 ? -EIO : begin_write(m, file, &plan, write, err);
}

int outgoing_write_begin(struct migration *m, struct file *file, const void *buf, size_t len, uint64_t offset,
                         const struct interrupt *interrupt, struct outgoing_write *write, struct error *err)
{
    struct plan plan;

    if (file_is_removed(file))
        return accept_nothing(m, file, write, err);
    if (admit(m, file, len, offset, interrupt, err) < 0)
        return -EIO;
    plan_write(m, file, buf, len, offset, &plan);
    return accept_plan(m, file, buf, offset, &plan, interrupt, write, err);
}

bool outgoing_splices(const struct migration *m, const struct file *file, size_t len, uint64_t offset)
{
    const struct connection *conn = source_connection(&m->out->source);

    if (!conn || !conn->splices)
        return false;
    bool looked_at = m->settings.zero_pages || migration_checks(m, file);
    /* The parts of a write that goes to several channels could not all be first at the pipe. */
    return !looked_at && !channel_copies(&conn->channels[0], (uint32_t)len) &&
           len <= WIRE_STRIPE_SIZE - offset % WIRE_STRIPE_SIZE;
}

int outgoing_splice_begin(struct migration *m, struct file *file, int pipe, size_t len, uint64_t offset,
                          const struct interrupt *interrupt, struct outgoing_write *write, struct error *err)
{
    struct plan plan;

    if (file_is_removed(file))
        return accept_nothing(m, file, write, err);
    if (admit(m, file, len, offset, interrupt, err) < 0)
        return -EIO;
    begin_plan(m, file, &plan);
    plan.place = CHANNEL_PIPE;
    plan.pipe = pipe;
    plan_add(&plan, WIRE_DATA, offset, len);
    end_plan(&plan, NULL, offset);
    return accept_plan(m, file, NULL, offset, &plan, interrupt, write, err);
}

/* The look at a stripe by reference: under memory_guard(), since the file can become shorter at any time. */
struct look {
    struct migration *m;
    const struct reference *ref;
    uint64_t offset; /* of the stripe */
    const uint64_t *bits;
    unsigned char resident[WIRE_STRIPE_SIZE / WIRE_PAGE_SIZE]; /* mincore(2)'s */
    char *buffer;
    struct plan *plan;
    int ret;
};

enum page_kind { PAGE_UNWANTED, PAGE_ABSENT, PAGE_RESIDENT };

static enum page_kind page_kind(const struct look *look, uint64_t page)
{
    if (!(look->bits[page / 64] >> page % 64 & 1))
        return PAGE_UNWANTED;
    return look->resident[page] & 1 ? PAGE_RESIDENT : PAGE_ABSENT;
}

/* Reads part of the stripe to its place in the buffer. Holes stay holes, which they would not if the mapping were read. */
static void read_part(struct look *look, uint64_t at, size_t len)
{
    while (len > 0 && look->ret == 0) {
        ssize_t n = pread(look->ref->fd, look->buffer + at, len, (off_t)(look->offset + at));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            look->ret = n < 0 ? -errno : -ENODATA;
            return;
        }
        at += (uint64_t)n;
        len -= (size_t)n;
    }
}

/* Copies the resident pages of a packet that will be copied; the others are in the buffer. */
static void copy_resident(struct look *look, const struct packet *packet)
{
    uint64_t at = packet->offset - look->offset, end = at + packet->length;

    while (at < end) {
        uint64_t next = (at / WIRE_PAGE_SIZE + 1) * WIRE_PAGE_SIZE;
        size_t len = (next < end ? next : end) - at;
        if (look->resident[at / WIRE_PAGE_SIZE] & 1)
            memcpy(look->buffer + at, look->ref->map + look->offset + at, len);
        at += len;
    }
}

static void look_at_stripe(void *arg)
{
    struct look *look = arg;
    struct plan *plan = look->plan;
    uint64_t rest = look->ref->size - look->offset;
    uint64_t end = rest < WIRE_STRIPE_SIZE ? rest : WIRE_STRIPE_SIZE;
    const char *stripe = look->ref->map + look->offset;

    if (mincore((void *)(uintptr_t)stripe, end, look->resident) < 0)
        memset(look->resident, 0, sizeof(look->resident));
    for (uint64_t at = 0, run; at < end && look->ret == 0; at += run) {
        enum page_kind kind = page_kind(look, at / WIRE_PAGE_SIZE);
        for (run = WIRE_PAGE_SIZE; at + run < end && page_kind(look, (at + run) / WIRE_PAGE_SIZE) == kind;
             run += WIRE_PAGE_SIZE)
            ;
        if (kind == PAGE_UNWANTED)
            continue;
        size_t len = at + run > end ? end - at : run;
        bool in_place = kind == PAGE_RESIDENT && plan->ref;
        if (kind == PAGE_ABSENT)
            read_part(look, at, len);
        else if (!in_place) /* what is compressed or checked must not change meanwhile */
            memcpy(look->buffer + at, stripe + at, len);
        if (look->m->settings.zero_pages || kind == PAGE_ABSENT)
            plan_stripe(plan, in_place ? stripe + at : look->buffer + at, look->offset + at, len);
        else
            plan_add(plan, WIRE_DATA, look->offset + at, len);
    }
    for (unsigned i = 0; plan->ref && i < plan->n; i++) {
        if (plan->packets[i].type == WIRE_DATA && is_copied(plan, &plan->packets[i]))
            copy_resident(look, &plan->packets[i]);
    }
}

int outgoing_push_stripe(struct migration *m, const struct reference *ref, uint64_t offset, const uint64_t *bits,
                         char *buffer, struct outgoing_write *write, struct error *err)
{
    struct file *ram = m->files[WIRE_RAM];
    struct plan plan;
    struct look look = {.m = m, .ref = ref, .offset = offset, .bits = bits, .buffer = buffer, .plan = &plan};

    begin_plan(m, ram, &plan);
    plan.gated = false;
    plan.ref = plan.compress || plan.checksum ? NULL : ref;
    if (memory_guard(look_at_stripe, &look) < 0 || look.ret == -ENODATA)
        return error_set(err, CAUSE_IO, "the RAM source '%.100s' has become shorter", ref->text);
    if (look.ret < 0)
        return error_set(err, CAUSE_IO, "cannot read the RAM source '%.100s': %s", ref->text, strerror(-look.ret));
    end_plan(&plan, buffer, offset);
    if (begin_write(m, ram, &plan, write, err) < 0)
        return -EIO;
    write->eager = true;
    int ret = place(m, ram, buffer, offset, &plan, NULL, write, err);
    if (ret < 0 && write->pieces != write->few)
        free(write->pieces);
    return ret;
}

void outgoing_send_copied(struct migration *m, unsigned channel)
{
    struct channel *ch = &source_connection(&m->out->source)->channels[channel];

    channel_finish(ch, NULL);
    channel_flush(ch, UINT64_MAX, NULL);
}

/*
 * The payload of a WIRE_PAGES packet: a bit for each page, then the pages whose
 * bit is set. Returns its size.
 */
static uint32_t gather(const char *raw, uint64_t range, char *out)
{
    uint64_t bits[WIRE_STRIPE_SIZE / WIRE_PAGE_SIZE / 64] = {0};
    uint32_t size = wire_bitmap_size(range);

    for (size_t at = 0; at < range;) {
        bool zero;
        size_t run = zero_run(raw + at, range - at, &zero);
        if (!zero) {
            memcpy(out + size, raw + at, run);
            size += (uint32_t)run;
            for (size_t page = at / WIRE_PAGE_SIZE; page < (at + run) / WIRE_PAGE_SIZE; page++)
                bits[page / 64] |= 1ull << page % 64;
        }
        at += run;
    }
    for (size_t word = 0; word < wire_bitmap_size(range) / 8; word++)
        bits[word] = htole64(bits[word]);
    memcpy(out, bits, wire_bitmap_size(range));
    return size;
}

/*
 * Makes the payload that is sent: compressed, if it shrinks. Returns it, with
 * the packet's lengths and flags filled in; NULL when memory runs out.
 */
static const char *pack(struct compressor *c, struct outgoing_piece *piece, bool eager, struct context **lease)
{
    struct packet *packet = &piece->packet;
    const char *payload = piece->raw;

    if (packet->type == WIRE_PAGES) {
        payload = piece->gathered = compressor_buffer(c);
        if (!payload)
            return NULL;
        packet->raw_length = gather(piece->raw, packet->range, piece->gathered);
    }
    packet->length = packet->raw_length;
    piece->packed = c ? compressor_buffer(c) : NULL;
    size_t packed = piece->packed ? compressor_pack(c, payload, packet->raw_length, piece->packed, eager, lease) : 0;
    if (!packed)
        return payload;
    packet->length = (uint32_t)packed;
    packet->flags = WIRE_PACKET_ZSTD;
    return piece->packed;
}

/* What was left for after the writer was answered; then the packet can be sent. */
static void prepare(struct outgoing_write *write, struct outgoing_piece *piece, struct context **lease)
{
    struct migration *m = write->m;
    struct packet *packet = &piece->packet;
    struct file_channel *fc = &write->file->per_channel[piece->channel->index];
    const char *payload = pack(source_connection(&m->out->source)->compressor, piece, write->eager, lease);

    if (!payload) {
        struct error failure = {0};
        error_set(&failure, CAUSE_NO_MEMORY, "out of memory");
        migration_fail(m, &failure);
        channel_close(piece->channel, CHANNEL_DEAD);
    } else if (migration_checks(m, write->file)) {
        packet->payload_check = wire_payload_check(payload, packet->length);
    }
    SCOPED_LOCK(&piece->channel->lock);
    counter_add(&fc->digest, channel_prepare(packet, payload, &piece->entry));
    counter_add(&fc->packets, 1);
    if (!payload)
        return;
    if (packet->type == WIRE_PAGES) {
        uint64_t bytes = packet->raw_length - wire_bitmap_size(packet->range), pages = bytes / WIRE_PAGE_SIZE;
        count_data(fc, bytes, pages, packet->range / WIRE_PAGE_SIZE - pages);
    } else {
        count_data(fc, packet->raw_length, pages_touched(packet), 0);
    }
}

void outgoing_write_end(struct outgoing_write *write)
{
    struct connection *conn = source_connection(&write->m->out->source);
    struct context *lease = NULL;

    /* All are prepared before any is waited for: others wait for them. */
    for (unsigned i = 0; i < write->n; i++) {
        if (write->pieces[i].later)
            prepare(write, &write->pieces[i], &lease);
    }
    /* Whoever is helped sends what comes before its own. */
    compressor_help(conn->compressor, lease);
    for (unsigned i = 0; i < write->n; i++) {
        struct outgoing_piece *piece = &write->pieces[i];
        channel_finish(piece->channel, &piece->entry);
        write->need[piece->channel->index] = false;
        if (piece->later && conn->compressor) {
            compressor_return(conn->compressor, piece->gathered);
            compressor_return(conn->compressor, piece->packed);
        }
    }
    for (unsigned c = 0; c < conn->channel_count; c++) {
        if (!write->need[c])
            continue;
        /* Who lingers over one channel cannot see to another; and what lingers must not fill the gate. */
        if (write->channels == 1 && conn->gate.limit >= 2ull * CHANNEL_ENOUGH * conn->channel_count)
            channel_finish_copied(&conn->channels[c]);
        else
            channel_finish(&conn->channels[c], NULL);
    }
    if (write->pieces != write->few)
        free(write->pieces);
}

/*
 * Gives one packet to each channel of @need, in one step, and sends them.
 * @make fills in the packet, with all the locks held.
 */
static int broadcast_packet(struct migration *m, struct file *file, const bool *need,
                            void (*make)(struct file *file, uint64_t value, uint64_t range, struct packet *packet),
                            uint64_t value, uint64_t range, const struct interrupt *interrupt, struct error *err)
{
    struct connection *conn = source_connection(&m->out->source);
    struct packet packet = {0};
    uint64_t total = 0;
    int ret = 0;

    for (unsigned c = 0; c < conn->channel_count; c++)
        total += need[c] ? cost(&packet) : 0;
    if (enter_gate(m, total, interrupt, err) < 0)
        return -EIO;
    while (ret == 0 && !connection_lock_channels(conn, need))
        ret = source_await_verdict(&m->out->source, COMMAND_WRITE, interrupt, err);
    if (ret < 0) {
        gate_leave(&conn->gate, total);
        return ret;
    }
    if (file_is_removed(file)) {
        connection_unlock_channels(conn, need);
        gate_leave(&conn->gate, total);
        return 0;
    }
    for (unsigned c = 0; c < conn->channel_count && ret == 0; c++) {
        if (need[c])
            ret = channel_reserve(&conn->channels[c], 1, 0);
    }
    if (ret == 0)
        make(file, value, range, &packet);
    for (unsigned c = 0; c < conn->channel_count && ret == 0; c++) {
        struct packet copy = packet;
        if (need[c])
            add_packet(&conn->channels[c], file, &copy, NULL, NULL, NULL);
    }
    connection_unlock_channels(conn, need);
    if (ret < 0) {
        gate_leave(&conn->gate, total);
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    }
    for (unsigned c = 0; c < conn->channel_count; c++) {
        if (need[c])
            channel_finish(&conn->channels[c], NULL);
    }
    return 0;
}

static void make_discard(struct file *file, uint64_t offset, uint64_t range, struct packet *packet)
{
    (void)file;
    *packet = (struct packet){.type = WIRE_DISCARD, .offset = offset, .range = range};
}

int outgoing_discard(struct migration *m, struct file *file, uint64_t offset, uint64_t len,
                     const struct interrupt *interrupt, struct error *err)
{
    bool need[WIRE_CHANNELS_MAX] = {false};
    uint64_t size;

    if (check_active(m, err) < 0)
        return -EIO;
    if (file_is_removed(file))
        return 0;
    size = atomic_load(&file->size);
    if (offset >= size || len == 0)
        return 0;
    if (len > size - offset)
        len = size - offset;
    if (source_drain_reference(&m->out->source, file, interrupt, err) < 0)
        return -EIO;
    struct connection *conn = source_connection(&m->out->source);
    uint64_t first = offset / WIRE_STRIPE_SIZE, last = (offset + len - 1) / WIRE_STRIPE_SIZE;
    for (uint64_t stripe = first; stripe <= last && stripe - first < conn->channel_count; stripe++)
        need[file_home(file, stripe * WIRE_STRIPE_SIZE)] = true;
    return broadcast_packet(m, file, need, make_discard, offset, len, interrupt, err);
}

static void make_truncate(struct file *file, uint64_t size, uint64_t range, struct packet *packet)
{
    (void)range;
    atomic_store(&file->size, size);
    if (size > 0)
        atomic_store_explicit(&file->touched, true, memory_order_relaxed);
    *packet = (struct packet){.type = WIRE_TRUNCATE, .offset = size, .range = ++file->truncations};
}

int outgoing_truncate(struct migration *m, struct file *file, uint64_t size, const struct interrupt *interrupt,
                      struct error *err)
{
    bool need[WIRE_CHANNELS_MAX];

    if (size > WIRE_OFFSET_MAX)
        return error_set(err, CAUSE_TOO_BIG, "no file has more than %llu bytes", WIRE_OFFSET_MAX);
    pthread_mutex_lock(&m->lock);
    int ret = source_await_starter(&m->out->source, interrupt, err);
    bool declares = ret == 0 && source_is_unstarted(&m->out->source);
    if (declares) {
        atomic_store(&file->size, size);
        if (file->id == WIRE_RAM) {
            file->declared = size;
            m->out->source.sized_by_reference = false;
        }
    }
    pthread_mutex_unlock(&m->lock);
    if (ret < 0 || declares)
        return ret;
    if (check_active(m, err) < 0 || connection_check_size(source_connection(&m->out->source), file, size, err) < 0)
        return -EIO;
    if (file_is_removed(file))
        return 0;
    if (file->declared && size > file->declared)
        return error_set(err, CAUSE_TOO_BIG, "it was declared to have %llu bytes before the start",
                         (unsigned long long)file->declared);
    if (size == atomic_load(&file->size))
        return 0;
    if (m->out->source.reference && file->id == WIRE_RAM)
        return error_set(err, CAUSE_STATE, "the size of RAM by reference does not change");
    for (unsigned c = 0; c < WIRE_CHANNELS_MAX; c++)
        need[c] = file_is_home(file, c);
    if (broadcast_packet(m, file, need, make_truncate, size, 0, interrupt, err) < 0)
        return -EIO;
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
    if (check_active(m, err) < 0)
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
