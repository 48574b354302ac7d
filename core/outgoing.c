/* SPDX-License-Identifier: Apache-2.0 */
/* The source's side of a migration; see outgoing.h. */
#include "outgoing.h"
#include "cleanup.h"
#include "clock.h"
#include "compression.h"
#include "host.h"
#include "log.h"
#include "name.h"
#include "private_map.h"
#include "stall.h"
#include "zero.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>

#define SUSPECT_MS 1000 /* how long a broken data channel waits for the main channel to say why */
#define LINGER_MS  2000 /* how long the peer has to read a goodbye */
#define RETRY_MS   200  /* between two questions about what became of a migration */

/* A `sync` that waits for its acknowledgement. */
struct sync_waiter {
    uint64_t id;
    bool acked;
    struct sync_waiter *next;
};

/* What belongs to one attempt to migrate, and is forgotten when `start` tries again. Guarded by migration.lock. */
struct attempt {
    uint64_t last_id; /* of a barrier, a manifest or a question */
    unsigned syncs;   /* that have not been answered, whether somebody still waits for them or not */
    unsigned changes; /* removals and renamings that the destination has not made yet */
    uint64_t last_change, last_made; /* the last one that was asked for, and the last one that it has made */
    /* If nothing else comes before @doom_at, the migration is lost for this reason. */
    struct error doom;
    int64_t doom_at;
    uint64_t prepared_id; /* the last manifest that the destination has everything of */
    uint64_t manifest_id; /* the last manifest that was sent */
    uint64_t commit_id;   /* not 0: the destination has been told to complete */
    bool peer_aborted;    /* the destination said why; it needs no goodbye */
    struct round round_start; /* the sums when the current round began */
    struct {
        uint64_t id;                 /* 0: none is open */
        enum wire_message_type type; /* WIRE_DIGEST or WIRE_VERIFY */
        bool there;                  /* the answer, or (its asker has left) nobody waits for it */
        enum cause cause;
        uint8_t *digests; /* where they go: the asker's */
        size_t size;
    } question; /* about what the destination has */
    /* The file that the destination has been told of, and has not answered about. One at a time, so that they come in order. */
    struct {
        struct file *file; /* a reference; NULL: there is none */
        bool made;         /* it is the migration's when the destination accepts it */
        bool there;        /* it has answered; whoever asked takes the answer */
        bool abandoned;    /* whoever asked has left: the answer decides */
        struct error refusal;
    } announced;
};

/* What the destination has last said of itself. */
struct progress {
    uint64_t work; /* that moves no channel */
    struct {
        uint64_t received, applied; /* bytes, packets */
    } channel[WIRE_CHANNELS_MAX];
};

/* What mig-out, which is made before it is known whether the migration becomes active, is to do. */
enum launch { LAUNCH_WAIT, LAUNCH_GO, LAUNCH_LEAVE };

struct outgoing {
    int cancel_fd; /* an eventfd, readable when `start` is to give up; -1 before and after; changed with migration.lock held */
    struct gate gate;
    struct session session;    /* valid from setup on, when has_session */
    struct channel *channels;  /* valid when ready */
    unsigned channel_count;
    struct hello_reply limits; /* the destination's; constant when ready */
    struct compressor *compressor; /* constant when ready; NULL: nothing is compressed */
    bool splices; /* constant when ready: what comes in a pipe and is not looked at goes out of it */
    /* Release when all of the above is there; then they stay until outgoing_free(). */
    atomic_bool ready;

    struct progress progress; /* mig-out's */
    struct stall_watch watch; /* mig-out's */
    _Atomic uint64_t verified; /* bytes of RAM that the last verification has found the same so far */

    /*
     * Of the RAM, or NULL. Changed with migration.lock held: at will before the
     * start, after it once, from NULL.
     */
    struct reference *_Atomic reference;
    bool sized_by_reference; /* the size of RAM is its file's, nobody has declared it; guarded by migration.lock */

    /* Guarded by migration.lock: */
    bool has_session;
    const struct interrupt *starter; /* of the `start` that runs */
    /* A `start` has not left, though it may have been cancelled: it uses the settings and the files, and what is above. */
    bool starting;
    enum launch launch;
    struct sync_waiter *waiters;
    struct attempt attempt;
};

struct outgoing *outgoing_new(struct migration *m)
{
    struct outgoing *out = calloc(1, sizeof(*out));

    if (!out)
        return NULL;
    out->cancel_fd = -1;
    gate_init(&out->gate, m->host->limits.write_behind);
    return out;
}

/* Takes down what connect_all() has made. Nobody else uses it: it is not ready, or the migration is being freed. */
static void disconnect_all(struct outgoing *out)
{
    if (out->reference)
        reference_stop(out->reference);
    for (unsigned c = 0; c < out->channel_count; c++)
        channel_fini(&out->channels[c]);
    compressor_free(out->compressor);
    out->compressor = NULL;
    free(out->channels);
    out->channels = NULL;
    out->channel_count = 0;
    if (out->has_session)
        session_fini(&out->session);
    out->has_session = false;
}

/* migration.lock is held, or nobody else knows it any more. */
static void close_cancel(struct outgoing *out)
{
    if (out->cancel_fd >= 0)
        close(out->cancel_fd);
    out->cancel_fd = -1;
}

/* Called with migration.lock held. */
static void interrupt_start(struct outgoing *out)
{
    if (out->cancel_fd >= 0)
        eventfd_write(out->cancel_fd, 1);
}

void outgoing_free(struct outgoing *out)
{
    if (!out)
        return;
    disconnect_all(out);
    reference_free(out->reference);
    gate_fini(&out->gate);
    file_put(out->attempt.announced.file);
    close_cancel(out);
    free(out);
}

static bool is_ready(const struct outgoing *out)
{
    return atomic_load_explicit(&out->ready, memory_order_acquire);
}

static struct channel *home_of(struct outgoing *out, const struct file *file, uint64_t offset)
{
    return &out->channels[file_home(file, offset)];
}

/*
 * Failures
 */

void outgoing_doom(struct migration *m, const struct error *reason, int64_t delay_ms)
{
    struct attempt *attempt = &m->out->attempt;
    int64_t at = clock_ms() + delay_ms;

    if (error_is_set(&attempt->doom) && attempt->doom_at <= at)
        return;
    attempt->doom = *reason;
    attempt->doom_at = at;
    session_wake(&m->out->session);
}

/* channel.failed: keep the reason, and let the main channel have its say. */
static void channel_failed(void *arg, unsigned index, int code)
{
    struct migration *m = arg;
    struct error reason = {0};
    int delay_ms = 0;

    if (code == -EOPNOTSUPP && m->settings.zero_copy == ZEROCOPY_REQUIRE) {
        error_set(&reason, CAUSE_UNSUPPORTED,
                  "zero-copy is required, but the kernel copies what channel %u sends (as always over loopback and veth)",
                  index);
    } else if (code == -ENOBUFS && m->settings.zero_copy == ZEROCOPY_REQUIRE) {
        error_set(&reason, CAUSE_NO_MEMORY,
                  "zero-copy is required, but channel %u cannot lock memory (RLIMIT_MEMLOCK, net.core.optmem_max)", index);
    } else {
        delay_ms = SUSPECT_MS;
        if (code == -EFAULT)
            error_set(&reason, CAUSE_IO, "the RAM source cannot be read: perhaps it has become shorter");
        else
            error_set_errno(&reason, code, "sending on channel %u", index);
    }
    SCOPED_LOCK(&m->lock);
    outgoing_doom(m, &reason, delay_ms);
}

/* Whether somebody waits for an answer of the destination's. The caller holds migration.lock. */
static bool is_answer_due(const struct outgoing *out)
{
    const struct attempt *attempt = &out->attempt;

    /* A question whose asker has left is in the way of the next one. */
    bool asked = attempt->question.id && (!attempt->question.there || !attempt->question.digests);

    return attempt->syncs || attempt->changes || asked ||
           (attempt->announced.file && !attempt->announced.there) ||
           (attempt->manifest_id && attempt->prepared_id != attempt->manifest_id);
}

/*
 * Ends the migration when a channel, or the destination as a whole, stands still while
 * something is due. In mig-out. After the commit the migration's doom bounds the wait.
 */
static void look_for_stall(struct migration *m)
{
    struct outgoing *out = m->out;
    struct stall_sight sights[STALL_MAX];
    struct stall_sight *answers = &sights[out->channel_count];
    struct error reason = {0};

    answers->mark = 0;
    for (unsigned c = 0; c < out->channel_count; c++) {
        uint64_t applied = out->progress.channel[c].applied;
        sights[c].awaited = channel_is_owed(&out->channels[c], applied, &sights[c].mark);
        sights[c].mark += out->progress.channel[c].received + applied + out->progress.work;
        answers->mark += sights[c].mark;
    }
    SCOPED_LOCK(&m->lock);
    answers->awaited = is_answer_due(out);
    int stalled = stall_look(&out->watch, clock_ms(), sights, out->channel_count + 1);
    if (stalled < 0 || out->attempt.commit_id)
        return;
    if ((unsigned)stalled < out->channel_count)
        error_set(&reason, CAUSE_TIMEOUT, "channel %d has stalled: nothing has moved on it for %u ms", stalled,
                  m->settings.timeout_ms);
    else
        error_set(&reason, CAUSE_TIMEOUT, "the destination is there, but has not answered for %u ms",
                  m->settings.timeout_ms);
    outgoing_doom(m, &reason, 0);
}

/*
 * A command or a write found a channel closed. Waits for the verdict if the
 * migration is about to fail. 0: try again, else why not.
 */
static int refuse(struct migration *m, enum command command, const struct interrupt *interrupt, struct error *err)
{
    SCOPED_LOCK(&m->lock);
    while (m->state == STATE_ACTIVE && error_is_set(&m->out->attempt.doom)) {
        if (interrupt_is_hit(interrupt))
            return error_set(err, CAUSE_INTERRUPTED, "interrupted");
        pthread_cond_wait(&m->changed, &m->lock);
    }
    return migration_allows(m, command, err);
}

/*
 * Starting
 */

/* Connects and exchanges hellos. */
static int greet(struct migration *m, enum wire_hello_kind kind, unsigned channel, struct transport **transport,
                 struct hello_reply *reply, struct error *err)
{
    const struct settings *settings = &m->settings;
    struct transport_wait wait = {
        .cancel_fd = m->out->cancel_fd,
        .deadline_ms = clock_ms() + settings->timeout_ms,
    };
    /* The last question of a daemon that goes away, which does not wait for long. */
    if (kind == WIRE_HELLO_QUERY && atomic_load(&m->host->closed))
        wait = (struct transport_wait){.cancel_fd = -1, .deadline_ms = clock_ms() + LINGER_MS};
    struct hello hello = {
        .kind = kind,
        .channel = channel,
        .channels = settings->channels,
        .device_channels = settings->device_channels,
        .features = (settings->checksum ? WIRE_FEATURE_CHECKSUM : 0) | (settings->compress ? WIRE_FEATURE_ZSTD : 0),
        .page_size = WIRE_PAGE_SIZE,
        .stripe_size = WIRE_STRIPE_SIZE,
        .timeout_ms = settings->timeout_ms,
    };
    struct wire_hello wire;
    struct wire_hello_reply wire_reply;
    struct iovec iov = {&wire, sizeof(wire)};
    struct transport *t;

    memcpy(hello.session, m->session_id, sizeof(hello.session));
    strcpy(hello.name, m->name);
    if (transport_connect(&settings->uri, kind == WIRE_HELLO_DATA ? channel + 1 : 0, &wait, &t, err) < 0)
        return -EIO;
    wire_hello_encode(&hello, &wire);
    int ret = transport_send(t, &iov, 1);
    if (ret == 0)
        ret = transport_recv_all(t, &wire_reply, sizeof(wire_reply), &wait);
    if (ret == -ECANCELED)
        error_set(err, CAUSE_INTERRUPTED, "connecting to %s was interrupted", settings->uri.text);
    else if (ret == -ETIMEDOUT)
        error_set(err, CAUSE_TIMEOUT, "%s does not answer", settings->uri.text);
    else if (ret < 0)
        error_set_errno(err, ret, "the handshake with %s", settings->uri.text);
    else if (wire_hello_reply_decode(&wire_reply, reply, err) == 0 && reply->cause != CAUSE_NONE)
        session_read_reason(reply->cause, reply->text, "the destination refuses", err);
    if (error_is_set(err)) {
        transport_close(t);
        return -EIO;
    }
    *transport = t;
    return 0;
}

static int handle_message(void *arg, const struct message *message, struct wire_reader *body, struct error *err);

/* Tells the destination of a file. The caller holds migration.lock, and no other announcement is open. */
static void send_announcement(struct migration *m, struct file *file, bool made)
{
    struct attempt *attempt = &m->out->attempt;
    uint8_t buf[16 + WIRE_NAME_MAX];
    struct wire_writer body = {buf, buf, buf + sizeof(buf)};
    char name[WIRE_NAME_MAX + 1];

    wire_write_u32(&body, file->id);
    wire_write_u64(&body, atomic_load(&file->size));
    wire_write_text(&body, file_name(file, name));
    memset(&attempt->announced, 0, sizeof(attempt->announced));
    attempt->announced.file = file_get(file);
    attempt->announced.made = made;
    session_send(&m->out->session, WIRE_FILE_CREATE, 0, buf, wire_written(&body));
}

/* Nobody waits for an answer any more. The caller holds migration.lock. */
static void end_announcement(struct migration *m)
{
    struct attempt *attempt = &m->out->attempt;

    file_put(attempt->announced.file);
    memset(&attempt->announced, 0, sizeof(attempt->announced));
    pthread_cond_broadcast(&m->changed);
}

/* Takes the answer. The caller holds migration.lock. */
static int take_answer(struct migration *m, struct error *err)
{
    struct attempt *attempt = &m->out->attempt;

    if (error_is_set(&attempt->announced.refusal))
        *err = attempt->announced.refusal;
    end_announcement(m);
    return error_is_set(err) ? -EIO : 0;
}

/* Tells the destination of a file, and waits for its answer. While mig-out does not run yet: this thread reads the main channel itself. */
static int announce_in_setup(struct migration *m, struct file *file, const struct interrupt *interrupt,
                             struct error *err)
{
    struct outgoing *out = m->out;
    int64_t deadline = clock_ms() + m->settings.timeout_ms;

    pthread_mutex_lock(&m->lock);
    send_announcement(m, file, false);
    pthread_mutex_unlock(&m->lock);
    while (!out->attempt.announced.there) {
        if (interrupt_is_hit(interrupt))
            return error_set(err, CAUSE_INTERRUPTED, "interrupted");
        if (m->state != STATE_SETUP)
            return error_set(err, CAUSE_CANCELLED, "cancelled");
        if (clock_ms() >= deadline)
            return error_set(err, CAUSE_TIMEOUT, "the destination does not answer");
        if (session_step(&out->session, deadline, handle_message, m, err) < 0)
            return -EIO;
    }
    SCOPED_LOCK(&m->lock);
    return take_answer(m, err);
}

/*
 * Waits for the answer about a new device, which makes it the migration's. Whoever is
 * interrupted leaves the device to the answer. The stall watch bounds the wait. The caller
 * holds migration.lock.
 */
static int await_answer(struct migration *m, struct file *file, const struct interrupt *interrupt, struct error *err)
{
    struct attempt *attempt = &m->out->attempt;

    while (!attempt->announced.there && m->state == STATE_ACTIVE && !interrupt_is_hit(interrupt))
        pthread_cond_wait(&m->changed, &m->lock);
    if (attempt->announced.there)
        return take_answer(m, err);
    if (m->state == STATE_ACTIVE) {
        attempt->announced.abandoned = true;
        return error_set(err, CAUSE_INTERRUPTED, "interrupted: the destination decides whether '%.64s' exists",
                         file->name);
    }
    end_announcement(m);
    return migration_allows(m, COMMAND_WRITE, err) < 0 ? -EIO : error_set(err, CAUSE_RESET, "the connection is lost");
}

/* Waits until no announcement is open. The caller holds migration.lock. */
static int await_turn(struct migration *m, const struct interrupt *interrupt, struct error *err)
{
    while (m->state == STATE_ACTIVE && m->out->attempt.announced.file) {
        if (interrupt_is_hit(interrupt))
            return error_set(err, CAUSE_INTERRUPTED, "interrupted");
        pthread_cond_wait(&m->changed, &m->lock);
    }
    return 0;
}

/* The destination's limit on a file's size. */
static uint64_t size_limit(const struct outgoing *out, const struct file *file)
{
    return file->id == WIRE_RAM ? out->limits.max_ram : out->limits.max_device;
}

static int check_quota(const struct outgoing *out, struct file *file, uint64_t end, struct error *err)
{
    char name[WIRE_NAME_MAX + 1];

    if (end > size_limit(out, file))
        return error_set(err, CAUSE_QUOTA, "'%.64s' would have %llu bytes; the destination allows %llu",
                         file_name(file, name), (unsigned long long)end, (unsigned long long)size_limit(out, file));
    return 0;
}

/* All connections are there: whether to splice. A buffer that has to be kept for the kernel is not in a pipe. */
static bool wants_splice(const struct migration *m)
{
    const struct settings *settings = &m->settings;
    bool pays = settings->splice == CHOICE_ON || m->out->channels[0].transport->splices;

    return settings->splice != CHOICE_OFF && pays && m->host->splices && !settings->compress &&
           settings->zero_copy != ZEROCOPY_REQUIRE;
}

/* Devices that were removed before the start have left gaps. */
static void number_files(struct migration *m)
{
    uint32_t n = 1;

    SCOPED_LOCK(&m->lock);
    for (uint32_t i = 1; i < m->file_count; i++) {
        struct file *file = m->files[i];
        if (!file)
            continue;
        m->files[i] = NULL;
        m->files[n] = file;
        file_set_id(file, n);
        file->slot = n++;
    }
    m->file_count = n;
}

static int connect_all(struct migration *m, const struct interrupt *interrupt, struct error *err)
{
    struct outgoing *out = m->out;
    unsigned n = m->settings.channels;
    struct transport *t;

    if (getrandom(m->session_id, sizeof(m->session_id), 0) != sizeof(m->session_id))
        return error_set_errno(err, errno, "no random numbers");
    if (greet(m, WIRE_HELLO_MAIN, 0, &t, &out->limits, err) < 0)
        return -EIO;
    if (session_init(&out->session, t, m->settings.timeout_ms, out->limits.timeout_ms) < 0) {
        transport_close(t);
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    }
    pthread_mutex_lock(&m->lock);
    out->has_session = true;
    pthread_mutex_unlock(&m->lock);
    out->channels = calloc(n, sizeof(*out->channels));
    if (m->settings.compress)
        out->compressor = compressor_new(m->settings.zstd_level);
    if (!out->channels || (m->settings.compress && !out->compressor))
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    for (unsigned c = 0; c < n; c++) {
        struct hello_reply reply;
        if (greet(m, WIRE_HELLO_DATA, c, &t, &reply, err) < 0)
            return -EIO;
        transport_set_timeout(t, (int)m->settings.timeout_ms);
        channel_init(&out->channels[c], c, t, &out->gate, channel_failed, m);
        out->channel_count = c + 1;
        int ret = channel_set_zerocopy(&out->channels[c], m->settings.zero_copy);
        if (ret == -EOPNOTSUPP)
            return error_set(err, CAUSE_UNSUPPORTED, "zero-copy is required, but there is none on the way to %.160s",
                             m->settings.uri.text);
        if (ret < 0)
            return error_set_errno(err, ret, "zero-copy is required, but cannot be had for channel %u", c);
    }
    out->splices = wants_splice(m);
    number_files(m);
    for (uint32_t i = 0; i < m->file_count; i++) {
        struct file *file = m->files[i];
        if (file_set_channels(file, n, m->settings.device_channels) < 0)
            return error_set(err, CAUSE_NO_MEMORY, "out of memory");
        if (file->id > out->limits.max_devices)
            return error_set(err, CAUSE_QUOTA, "the destination allows %u devices", out->limits.max_devices);
        if (check_quota(out, file, atomic_load(&file->size), err) < 0 ||
            announce_in_setup(m, file, interrupt, err) < 0)
            return -EIO;
    }
    return out->reference ? reference_start(out->reference, m, atomic_load(&m->files[WIRE_RAM]->size), err) : 0;
}

static void announce_stream(struct migration *m, struct file *file, bool again);
static void announce_streams(struct migration *m);
static void *mig_out(void *arg);

/* Whether the RAM's file has all of the RAM. */
static int check_reference(const struct reference *ref, const struct file *ram, struct error *err)
{
    uint64_t have = reference_file_size(ref), size = atomic_load(&ram->size);

    if (size == 0 || size > have)
        return error_set(err, CAUSE_SYNTAX, "RAM of %llu bytes, and '%.100s' has %llu", (unsigned long long)size,
                         ref->text, (unsigned long long)have);
    return 0;
}

/* Whether a `start` that was cancelled is still on its way out. The caller holds migration.lock. */
static bool is_leaving(const struct migration *m)
{
    return m->out && m->out->starting && !state_is_running(m->state);
}

/* Waits until it is gone. The caller holds migration.lock, which is given up meanwhile. */
static int await_starter(struct migration *m, const struct interrupt *interrupt, struct error *err)
{
    while (is_leaving(m)) {
        if (interrupt_is_hit(interrupt))
            return error_set(err, CAUSE_INTERRUPTED, "interrupted");
        pthread_cond_wait(&m->changed, &m->lock);
    }
    return 0;
}

/* Whether it can be started, and nothing uses its settings. The caller holds migration.lock. */
static bool is_unstarted(const struct migration *m)
{
    if (m->role == ROLE_INCOMING || m->out->starting || m->was_active)
        return false;
    return m->state == STATE_NONE || (state_is_final(m->state) && m->state != STATE_COMPLETED);
}

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
    return m->out->reference ? check_reference(m->out->reference, m->files[WIRE_RAM], err) : 0;
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

    /* host_shutdown() finds a migration that runs, or keeps it from starting. */
    SCOPED_LOCK(&m->host->lock);
    if (m->host->closed)
        return error_set(err, CAUSE_SHUTDOWN, "the daemon is going away");
    pthread_mutex_lock(&m->lock);
    int ret = is_leaving(m) ? -EAGAIN : may_start(m, err);
    if (ret == 0 && out->cancel_fd < 0)
        out->cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (ret == 0 && out->cancel_fd < 0)
        ret = error_set_errno(err, errno, "cannot make an eventfd");
    if (ret == 0) {
        eventfd_read(out->cancel_fd, &drained);
        out->attempt = (struct attempt){0};
        out->progress = (struct progress){0};
        out->starter = interrupt;
        migration_become_outgoing(m);
        out->starting = true;
        out->launch = LAUNCH_WAIT;
        m->settings.checksum = wants_checksum(&m->settings, out->reference);
        migration_move(m, STATE_SETUP, NULL);
    }
    pthread_mutex_unlock(&m->lock);
    return ret;
}

static int enter_setup(struct migration *m, const struct interrupt *interrupt, struct error *err)
{
    int ret;

    do {
        pthread_mutex_lock(&m->lock);
        ret = await_starter(m, interrupt, err);
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
    if (out->has_session && !out->attempt.peer_aborted)
        session_goodbye(&out->session, failure);
    pthread_mutex_lock(&m->lock);
    out->starter = NULL;
    end_announcement(m);
    disconnect_all(out);
    close_cancel(out);
    if (m->state == STATE_SETUP)
        migration_move(m, STATE_FAILED, failure);
    *err = m->failure;
    out->starting = false;
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
        out->starter = NULL;
        out->starting = false;
        eventfd_read(out->cancel_fd, &drained);
        /* What the destination shows comes up to a step later, and is looked at up to a step after that. */
        stall_init(&out->watch, (int64_t)m->settings.timeout_ms + 2 * out->session.ping_ms, out->session.ping_ms);
        atomic_store_explicit(&out->ready, true, memory_order_release);
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
    if (out->reference)
        outgoing_check_sharing(m, 0);
    if (connect_all(m, interrupt, &failure) < 0 || migration_start_thread(m, mig_out, &failure) < 0 ||
        !launch(m, &failure)) {
        leave_setup(m, &failure, err);
        return -EIO;
    }
    migration_announce(m);
    log_info("%s: active, %u channels to %s", m->name, out->channel_count, m->settings.uri.text);
    return 0;
}

/*
 * Writing
 */

/* Locks the channels that @need names, in the order of their index. False, with nothing locked: one is closed. */
static bool lock_channels(struct outgoing *out, const bool *need)
{
    bool open = true;
    unsigned c;

    for (c = 0; c < out->channel_count && open; c++) {
        if (!need[c])
            continue;
        pthread_mutex_lock(&out->channels[c].lock);
        open = out->channels[c].closed == CHANNEL_OPEN;
    }
    if (open)
        return true;
    while (c-- > 0) {
        if (need[c])
            pthread_mutex_unlock(&out->channels[c].lock);
    }
    return false;
}

static void unlock_channels(struct outgoing *out, const bool *need)
{
    for (unsigned c = 0; c < out->channel_count; c++) {
        if (need[c])
            pthread_mutex_unlock(&out->channels[c].lock);
    }
}

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
    return check_quota(m->out, file, offset + len, err);
}

/* Data is allowed, so that out->channels and the limits are there. */
static int check_active(struct migration *m, struct error *err)
{
    /* Not ready, and active: the migration has become incoming. */
    if (atomic_load_explicit(&m->state, memory_order_acquire) == STATE_ACTIVE && is_ready(m->out))
        return 0;
    SCOPED_LOCK(&m->lock);
    return migration_allows(m, COMMAND_WRITE, err);
}

static int enter_gate(struct migration *m, uint64_t bytes, const struct interrupt *interrupt, struct error *err)
{
    int ret = gate_enter(&m->out->gate, bytes, interrupt);

    if (ret == -EINTR)
        return error_set(err, CAUSE_INTERRUPTED, "interrupted");
    if (ret == -ECANCELED && refuse(m, COMMAND_WRITE, interrupt, err) == 0)
        return error_set(err, CAUSE_RESET, "the connection is lost");
    return ret;
}

/* Whether a packet's payload is compressed or checked after the writer is answered. */
static bool is_prepared_later(const struct plan *plan, const struct packet *packet)
{
    if (plan->compress)
        return packet->type == WIRE_PAGES || packet->raw_length >= WIRE_PAGE_SIZE;
    return plan->checksum && !channel_copies(packet->length);
}

static bool is_copied(const struct plan *plan, const struct packet *packet)
{
    return !is_prepared_later(plan, packet) && channel_copies(packet->length);
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
    plan->compress = m->out->compressor;
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
static int reserve(struct outgoing *out, const struct file *file, const struct plan *plan, const bool *need)
{
    for (unsigned c = 0; c < out->channel_count; c++) {
        unsigned packets = 0;
        size_t bytes = 0;
        for (unsigned i = 0; need[c] && i < plan->n; i++) {
            const struct packet *packet = &plan->packets[i];
            if (is_copied(plan, packet) && file_home(file, packet->offset) == c) {
                packets++;
                bytes += packet->length;
            }
        }
        if (channel_reserve(&out->channels[c], packets, bytes) < 0)
            return -ENOMEM;
    }
    return 0;
}

/* Gives the packets their places, all in one step. */
static int place(struct migration *m, struct file *file, const char *buf, uint64_t offset, struct plan *plan,
                 const struct interrupt *interrupt, struct outgoing_write *write, struct error *err)
{
    struct outgoing *out = m->out;

    while (!lock_channels(out, write->need)) {
        if (refuse(m, COMMAND_WRITE, interrupt, err) < 0)
            return -EIO;
    }
    if (reserve(out, file, plan, write->need) < 0) {
        unlock_channels(out, write->need);
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    }
    if (file_is_removed(file)) {
        unlock_channels(out, write->need);
        memset(write->need, 0, sizeof(write->need));
        gate_leave(&out->gate, plan->gated ? plan->cost : 0);
        return 0;
    }
    for (unsigned i = 0; i < plan->n; i++) {
        struct packet *packet = &plan->packets[i];
        const char *payload = plan->place == CHANNEL_MEMORY ? buf + (packet->offset - offset) : NULL;
        struct channel *ch = home_of(out, file, packet->offset);
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
    unlock_channels(out, write->need);
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

/* What was asked for by reference before comes first in the order. */
static int drain_reference(struct migration *m, const struct file *file, const struct interrupt *interrupt,
                           struct error *err)
{
    struct reference *ref = m->out->reference;

    if (!ref || (file && file->id != WIRE_RAM))
        return 0;
    int ret = reference_drain(ref, interrupt);
    if (ret == -EINTR)
        return error_set(err, CAUSE_INTERRUPTED, "interrupted");
    if (ret < 0 && refuse(m, COMMAND_WRITE, interrupt, err) == 0)
        return error_set(err, CAUSE_RESET, "the connection is lost");
    return ret;
}

/* Whether a write may be taken now. */
static int admit(struct migration *m, struct file *file, size_t len, uint64_t offset, const struct interrupt *interrupt,
                 struct error *err)
{
    assert(len <= OUTGOING_WRITE_MAX);
    if (check_active(m, err) < 0 || check_size(m, file, offset, len, err) < 0)
        return -EIO;
    return drain_reference(m, file, interrupt, err);
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
            gate_leave(&m->out->gate, plan->cost);
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
    if (!is_ready(m->out) || !m->out->splices)
        return false;
    bool looked_at = m->settings.zero_pages || migration_checks(m, file);
    /* The parts of a write that goes to several channels could not all be first at the pipe. */
    return !looked_at && !channel_copies((uint32_t)len) && len <= WIRE_STRIPE_SIZE - offset % WIRE_STRIPE_SIZE;
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
    struct channel *ch = &m->out->channels[channel];

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
    const char *payload = pack(m->out->compressor, piece, write->eager, lease);

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
    struct outgoing *out = write->m->out;
    struct context *lease = NULL;

    /* All are prepared before any is waited for: others wait for them. */
    for (unsigned i = 0; i < write->n; i++) {
        if (write->pieces[i].later)
            prepare(write, &write->pieces[i], &lease);
    }
    /* Whoever is helped sends what comes before its own. */
    compressor_help(out->compressor, lease);
    for (unsigned i = 0; i < write->n; i++) {
        struct outgoing_piece *piece = &write->pieces[i];
        channel_finish(piece->channel, &piece->entry);
        write->need[piece->channel->index] = false;
        if (piece->later && out->compressor) {
            compressor_return(out->compressor, piece->gathered);
            compressor_return(out->compressor, piece->packed);
        }
    }
    for (unsigned c = 0; c < out->channel_count; c++) {
        if (!write->need[c])
            continue;
        /* Who lingers over one channel cannot see to another; and what lingers must not fill the gate. */
        if (write->channels == 1 && out->gate.limit >= 2ull * CHANNEL_ENOUGH * out->channel_count)
            channel_finish_copied(&out->channels[c]);
        else
            channel_finish(&out->channels[c], NULL);
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
    struct outgoing *out = m->out;
    struct packet packet = {0};
    uint64_t total = 0;
    int ret = 0;

    for (unsigned c = 0; c < out->channel_count; c++)
        total += need[c] ? cost(&packet) : 0;
    if (enter_gate(m, total, interrupt, err) < 0)
        return -EIO;
    while (ret == 0 && !lock_channels(out, need))
        ret = refuse(m, COMMAND_WRITE, interrupt, err);
    if (ret < 0) {
        gate_leave(&out->gate, total);
        return ret;
    }
    if (file_is_removed(file)) {
        unlock_channels(out, need);
        gate_leave(&out->gate, total);
        return 0;
    }
    for (unsigned c = 0; c < out->channel_count && ret == 0; c++) {
        if (need[c])
            ret = channel_reserve(&out->channels[c], 1, 0);
    }
    if (ret == 0)
        make(file, value, range, &packet);
    for (unsigned c = 0; c < out->channel_count && ret == 0; c++) {
        struct packet copy = packet;
        if (need[c])
            add_packet(&out->channels[c], file, &copy, NULL, NULL, NULL);
    }
    unlock_channels(out, need);
    if (ret < 0) {
        gate_leave(&out->gate, total);
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    }
    for (unsigned c = 0; c < out->channel_count; c++) {
        if (need[c])
            channel_finish(&out->channels[c], NULL);
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
    struct outgoing *out = m->out;
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
    if (drain_reference(m, file, interrupt, err) < 0)
        return -EIO;
    uint64_t first = offset / WIRE_STRIPE_SIZE, last = (offset + len - 1) / WIRE_STRIPE_SIZE;
    for (uint64_t stripe = first; stripe <= last && stripe - first < out->channel_count; stripe++)
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
    int ret = await_starter(m, interrupt, err);
    bool declares = ret == 0 && is_unstarted(m);
    if (declares) {
        atomic_store(&file->size, size);
        if (file->id == WIRE_RAM) {
            file->declared = size;
            m->out->sized_by_reference = false;
        }
    }
    pthread_mutex_unlock(&m->lock);
    if (ret < 0 || declares)
        return ret;
    if (check_active(m, err) < 0 || check_quota(m->out, file, size, err) < 0)
        return -EIO;
    if (file_is_removed(file))
        return 0;
    if (file->declared && size > file->declared)
        return error_set(err, CAUSE_TOO_BIG, "it was declared to have %llu bytes before the start",
                         (unsigned long long)file->declared);
    if (size == atomic_load(&file->size))
        return 0;
    if (m->out->reference && file->id == WIRE_RAM)
        return error_set(err, CAUSE_STATE, "the size of RAM by reference does not change");
    for (unsigned c = 0; c < WIRE_CHANNELS_MAX; c++)
        need[c] = file_is_home(file, c);
    if (broadcast_packet(m, file, need, make_truncate, size, 0, interrupt, err) < 0)
        return -EIO;
    SCOPED_LOCK(&m->lock);
    announce_stream(m, file, true);
    return 0;
}

/*
 * Barriers
 */

/* The number of the last packet accepted on each channel, for @file or at all. */
static void count_accepted(struct outgoing *out, const struct file *file, uint64_t *counts)
{
    for (unsigned c = 0; c < out->channel_count; c++) {
        struct channel *ch = &out->channels[c];
        SCOPED_LOCK(&ch->lock);
        const struct file_channel *fc = file ? file->per_channel : NULL;
        /* When it is over, or was removed before the start, there is nothing to wait for. */
        counts[c] = !file ? ch->last_sequence : fc ? counter_get(&fc[c].last_sequence) : 0;
        channel_hurry(ch);
    }
}

static int check_command(struct migration *m, enum command command, struct error *err)
{
    SCOPED_LOCK(&m->lock);
    return migration_allows(m, command, err);
}

/* Whether channel_flush() says that zero-copy is required in vain: the data may be there, but the migration fails. */
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

int outgoing_flush(struct migration *m, struct file *file, const struct interrupt *interrupt, struct error *err)
{
    struct outgoing *out = m->out;
    uint64_t counts[WIRE_CHANNELS_MAX];

    if (check_command(m, COMMAND_FLUSH, err) < 0 || drain_reference(m, file, interrupt, err) < 0)
        return -EIO;
    count_accepted(out, file, counts);
    for (unsigned c = 0; c < out->channel_count; c++) {
        int ret = channel_flush(&out->channels[c], counts[c], interrupt);
        if (ret == -EINTR)
            return error_set(err, CAUSE_INTERRUPTED, "interrupted");
        if (is_verdict(ret))
            return await_failure(m, interrupt, err);
        if (ret < 0 && refuse(m, COMMAND_FLUSH, interrupt, err) == 0)
            return error_set(err, CAUSE_RESET, "the connection is lost");
        if (ret < 0)
            return -EIO;
    }
    return 0;
}

/* A barrier of RAM has been passed. Called with migration.lock held. */
static void end_round(struct migration *m)
{
    struct outgoing *out = m->out;
    struct file_totals totals = file_totals(m->files[WIRE_RAM]);
    struct round sum = {
        .pages = totals.pages + totals.zero_pages,
        .bytes = totals.bytes + totals.zero_pages * WIRE_PAGE_SIZE,
        .time_ms = clock_ms(),
    };

    for (unsigned c = 0; c < out->channel_count; c++)
        sum.wire_bytes += outgoing_wire_bytes(m, (int)c);
    m->last_round = (struct round){
        .pages = sum.pages - out->attempt.round_start.pages,
        .bytes = sum.bytes - out->attempt.round_start.bytes,
        .wire_bytes = sum.wire_bytes - out->attempt.round_start.wire_bytes,
        .time_ms = sum.time_ms - (out->attempt.round_start.time_ms ? out->attempt.round_start.time_ms : m->times.active),
    };
    out->attempt.round_start = sum;
    m->rounds++;
}

int outgoing_sync(struct migration *m, struct file *file, const struct interrupt *interrupt, struct error *err)
{
    struct outgoing *out = m->out;
    uint64_t counts[WIRE_CHANNELS_MAX];
    uint8_t buf[sizeof(counts)];
    struct wire_writer body = {buf, buf, buf + sizeof(buf)};
    struct sync_waiter waiter = {0};
    uint64_t change = 0;

    if (check_command(m, COMMAND_SYNC, err) < 0 || drain_reference(m, file, interrupt, err) < 0)
        return -EIO;
    pthread_mutex_lock(&m->lock);
    while (m->state == STATE_ACTIVE && out->attempt.syncs >= WIRE_SYNCS_MAX && !interrupt_is_hit(interrupt))
        pthread_cond_wait(&m->changed, &m->lock);
    int ret = migration_allows(m, COMMAND_SYNC, err);
    if (ret == 0 && out->attempt.syncs >= WIRE_SYNCS_MAX)
        ret = error_set(err, CAUSE_INTERRUPTED, "interrupted");
    if (ret == 0) {
        out->attempt.syncs++;
        waiter.id = ++out->attempt.last_id;
        /* That the device has the name which it has here belongs to it. */
        change = file && file->id != WIRE_RAM ? out->attempt.last_change : 0;
        waiter.next = out->waiters;
        out->waiters = &waiter;
    }
    pthread_mutex_unlock(&m->lock);
    if (ret < 0)
        return ret;
    count_accepted(out, file, counts);
    for (unsigned c = 0; c < out->channel_count; c++)
        wire_write_u64(&body, counts[c]);
    session_send(&m->out->session, WIRE_SYNC, waiter.id, buf, wire_written(&body));

    pthread_mutex_lock(&m->lock);
    /* A `complete` that starts meanwhile does not end the wait: what it applies includes this. */
    while ((!waiter.acked || out->attempt.last_made < change) && state_is_running(m->state) &&
           !interrupt_is_hit(interrupt))
        pthread_cond_wait(&m->changed, &m->lock);
    struct sync_waiter **p = &out->waiters;
    while (*p != &waiter)
        p = &(*p)->next;
    *p = waiter.next;
    bool passed = (waiter.acked && out->attempt.last_made >= change) || m->state == STATE_COMPLETED;
    if (!passed && state_is_running(m->state))
        error_set(err, CAUSE_INTERRUPTED, "interrupted");
    else if (!passed)
        *err = m->failure;
    pthread_mutex_unlock(&m->lock);
    if (!passed)
        return -EIO;
    /*
     * The destination can be faster than the thread that has sent: its counters are to be exact, too.
     * Whoever is interrupted here has what was asked for.
     */
    for (unsigned c = 0; c < out->channel_count; c++) {
        int flushed = channel_flush(&out->channels[c], counts[c], interrupt);
        if (is_verdict(flushed))
            return await_failure(m, interrupt, err);
    }
    if (!file || file->id == WIRE_RAM) {
        SCOPED_LOCK(&m->lock);
        end_round(m);
    }
    return 0;
}

/*
 * Asks the destination about the contents of a file, when no question is open any more: it answers one at a
 * time, and one that nobody waits for is still open. Returns the question's id; 0 when the migration has left
 * @during, the file was removed, or the wait was interrupted. @digests stays until await_digests() has returned.
 */
static uint64_t ask_digests(struct migration *m, const struct file *file, enum state during,
                            enum wire_message_type type, const void *body, uint32_t length, uint8_t *digests,
                            size_t size, const struct interrupt *interrupt)
{
    struct outgoing *out = m->out;

    pthread_mutex_lock(&m->lock);
    while (m->state == during && out->attempt.question.id && !interrupt_is_hit(interrupt))
        pthread_cond_wait(&m->changed, &m->lock);
    bool asks = m->state == during && !interrupt_is_hit(interrupt) && !file_is_removed(file);
    uint64_t id = asks ? ++out->attempt.last_id : 0;
    if (id) {
        out->attempt.question.id = id;
        out->attempt.question.type = type;
        out->attempt.question.there = false;
        out->attempt.question.digests = digests;
        out->attempt.question.size = size;
        /* With the lock held, before the news that the file is removed. */
        session_send(&out->session, type, id, body, length);
    }
    pthread_mutex_unlock(&m->lock);
    return id;
}

/* Waits for the answer, or (@leave) not: whoever reads it throws it away. */
static int await_digests(struct migration *m, const struct file *file, uint64_t id, bool leave,
                         const struct interrupt *interrupt, struct error *err)
{
    struct attempt *attempt = &m->out->attempt;

    SCOPED_LOCK(&m->lock);
    while (!leave && state_is_running(m->state) && attempt->question.id == id && !attempt->question.there &&
           !interrupt_is_hit(interrupt))
        pthread_cond_wait(&m->changed, &m->lock);
    bool ours = attempt->question.id == id;
    if (ours && attempt->question.there) {
        attempt->question.id = 0;
        pthread_cond_broadcast(&m->changed);
        if (attempt->question.cause != CAUSE_NONE)
            return error_set(err, attempt->question.cause, "the destination cannot read '%.64s'", file->name);
        return 0;
    }
    if (ours) {
        attempt->question.there = true;
        attempt->question.digests = NULL;
    }
    if (state_is_running(m->state))
        return error_set(err, CAUSE_INTERRUPTED, "interrupted");
    return error_set(err, m->failure.cause, "%s", m->failure.message);
}

int outgoing_digest(struct migration *m, struct file *file, const struct interrupt *interrupt,
                    uint8_t digest[DIGEST_SIZE], struct error *err)
{
    uint8_t buf[4];
    struct wire_writer body = {buf, buf, buf + sizeof(buf)};

    if (check_command(m, COMMAND_SYNC, err) < 0)
        return -EIO;
    wire_write_u32(&body, file->id);
    uint64_t id = ask_digests(m, file, STATE_ACTIVE, WIRE_DIGEST, buf, sizeof(buf), digest, DIGEST_SIZE, interrupt);
    if (id)
        return await_digests(m, file, id, false, interrupt, err);
    if (check_command(m, COMMAND_SYNC, err) < 0)
        return -EIO;
    if (file_is_removed(file))
        return error_set(err, CAUSE_NOT_FOUND, "the device has been removed");
    return error_set(err, CAUSE_INTERRUPTED, "interrupted");
}

/*
 * Verifying: the RAM's file and what the destination has are compared piece by piece, by their digests. A
 * thousand at a time, so that nobody works long for one who has left.
 */
#define VERIFY_PIECES 1024u

struct verification {
    struct migration *m;
    const struct interrupt *interrupt;
    struct reference_reader reader;
};

static ssize_t read_for_verification(void *arg, uint64_t offset, void *buf, size_t len)
{
    struct verification *v = arg;

    return reference_read(&v->reader, offset, buf, len);
}

static bool verification_stops(void *arg)
{
    struct verification *v = arg;

    return interrupt_is_hit(v->interrupt) || atomic_load(&v->m->state) != STATE_COMPLETING;
}

/* The first piece whose digests differ, or @count. */
static uint32_t first_difference(const uint8_t *ours, const uint8_t *theirs, uint32_t count)
{
    uint32_t i = 0;

    while (i < count && !memcmp(ours + i * DIGEST_SIZE, theirs + i * DIGEST_SIZE, DIGEST_SIZE))
        i++;
    return i;
}

static int verify_pieces(struct verification *v, const struct digest_source *source, uint64_t first, uint32_t count,
                         uint8_t *digests, struct error *err)
{
    struct migration *m = v->m;
    struct file *ram = m->files[WIRE_RAM];
    uint8_t *theirs = digests + (size_t)count * DIGEST_SIZE;
    uint8_t buf[16];
    struct wire_writer body = {buf, buf, buf + sizeof(buf)};

    wire_write_u32(&body, WIRE_RAM);
    wire_write_u32(&body, count);
    wire_write_u64(&body, first);
    uint64_t id = ask_digests(m, ram, STATE_COMPLETING, WIRE_VERIFY, buf, sizeof(buf), theirs,
                              (size_t)count * DIGEST_SIZE, v->interrupt);
    if (!id)
        return error_set(err, CAUSE_INTERRUPTED, "interrupted");
    /* Both ends compute at the same time. */
    int ret = digest_pieces(source, first, count, digests);
    struct error lost = {0};
    int answered = await_digests(m, ram, id, ret < 0, v->interrupt, &lost);
    if (ret == -ECANCELED)
        return error_set(err, CAUSE_INTERRUPTED, "interrupted");
    if (ret == -ENODATA)
        return error_set(err, CAUSE_IO, "the RAM source has become shorter");
    if (ret < 0)
        return error_set_errno(err, ret, "cannot read the RAM source to verify it");
    if (answered < 0) {
        *err = lost;
        return -EIO;
    }
    uint32_t differs = first_difference(digests, theirs, count);
    if (differs < count)
        return error_set(err, CAUSE_MISMATCH,
                         "'%.64s' is not the same at both ends in the MiB at offset %llu: damaged on the way, or changed "
                         "after it was sent",
                         ram->name, (unsigned long long)(first + differs) * DIGEST_PIECE);
    uint64_t end = (first + count) * DIGEST_PIECE;
    atomic_store(&m->out->verified, end < source->size ? end : source->size);
    return 0;
}

/* Everything is applied: are the bytes that both ends have the same? Of what came through FUSE there is no copy here. */
static int verify(struct migration *m, const struct interrupt *interrupt, struct error *err)
{
    struct outgoing *out = m->out;
    struct verification v = {.m = m, .interrupt = interrupt};
    struct digest_source source = {
        .size = atomic_load(&m->files[WIRE_RAM]->size),
        .read = read_for_verification,
        .stop = verification_stops,
        .arg = &v,
    };
    uint64_t pieces = (source.size + DIGEST_PIECE - 1) / DIGEST_PIECE;
    int ret = 0;

    if (!m->settings.verify || !out->reference)
        return 0;
    CLEANUP_FREE uint8_t *digests = malloc((size_t)VERIFY_PIECES * 2 * DIGEST_SIZE);
    pthread_mutex_lock(&m->lock);
    v.reader = reference_open(out->reference);
    pthread_mutex_unlock(&m->lock);
    CLEANUP_FD int mine = v.reader.fd;
    if (!digests || mine < 0)
        return error_set(err, CAUSE_NO_MEMORY, "not enough memory or descriptors to verify the RAM");
    atomic_store(&out->verified, 0);
    for (uint64_t first = 0; first < pieces && ret == 0; first += VERIFY_PIECES) {
        uint64_t rest = pieces - first;
        ret = verify_pieces(&v, &source, first, rest < VERIFY_PIECES ? (uint32_t)rest : VERIFY_PIECES, digests, err);
    }
    return ret;
}

uint64_t outgoing_verified(const struct migration *m)
{
    return atomic_load(&m->out->verified);
}

/* The body of WIRE_COMPLETE; all channels are sealed. The caller frees *@out. */
static int make_manifest(struct migration *m, uint8_t **out, uint32_t *length)
{
    uint8_t *buf = malloc(WIRE_BODY_MAX);
    struct wire_writer body = {buf, buf, buf + WIRE_BODY_MAX};
    uint64_t counts[WIRE_CHANNELS_MAX];

    if (!buf)
        return -ENOMEM;
    count_accepted(m->out, NULL, counts);
    for (unsigned c = 0; c < m->out->channel_count; c++)
        wire_write_u64(&body, counts[c]);
    SCOPED_LOCK(&m->lock);
    wire_write_u32(&body, 1 + migration_count_devices(m));
    for (uint32_t i = 0; i < m->file_count; i++) {
        struct file *file = m->files[i];
        if (!file || file_is_removed(file))
            continue;
        struct file_totals totals = file_totals(file);
        wire_write_u32(&body, i);
        wire_write_u32(&body, 0);
        wire_write_u64(&body, atomic_load(&file->size));
        wire_write_u64(&body, totals.packets);
        wire_write_u64(&body, totals.bytes);
        wire_write_u64(&body, totals.digest);
    }
    *out = buf;
    *length = wire_written(&body);
    return 0;
}

/* Back from completing to active: data is accepted again. The caller holds migration.lock. */
static void resume_from_completing(struct migration *m)
{
    migration_move(m, STATE_ACTIVE, NULL);
    for (unsigned c = 0; c < m->out->channel_count; c++)
        channel_reopen(&m->out->channels[c]);
    if (m->out->reference)
        reference_seal(m->out->reference, false);
}

/* Waits until the destination has everything that manifest @id (0: none was sent) is about. */
static bool await_prepared(struct migration *m, uint64_t id, const struct interrupt *interrupt, struct error *err)
{
    struct attempt *attempt = &m->out->attempt;

    SCOPED_LOCK(&m->lock);
    attempt->manifest_id = id;
    while (m->state == STATE_COMPLETING && (!id || attempt->prepared_id != id) && !interrupt_is_hit(interrupt))
        pthread_cond_wait(&m->changed, &m->lock);
    if (m->state != STATE_COMPLETING)
        return false;
    if (!id || attempt->prepared_id != id) {
        error_set(err, CAUSE_INTERRUPTED, "interrupted");
        return false;
    }
    return true;
}

int outgoing_complete(struct migration *m, const struct interrupt *interrupt, struct error *err)
{
    struct outgoing *out = m->out;
    CLEANUP_FREE uint8_t *manifest = NULL;
    struct error failure = {0};
    uint32_t length;

    pthread_mutex_lock(&m->lock);
    /* No device may be on its way to being made while the files are counted. */
    int ret = await_turn(m, interrupt, err);
    if (ret == 0)
        ret = migration_allows(m, COMMAND_COMPLETE, err);
    uint64_t id = ++out->attempt.last_id;
    if (ret == 0)
        migration_move(m, STATE_COMPLETING, NULL);
    pthread_mutex_unlock(&m->lock);
    if (ret < 0)
        return ret;
    migration_announce(m);
    bool drained = true;
    if (out->reference) {
        reference_seal(out->reference, true);
        drained = reference_drain(out->reference, interrupt) == 0;
    }
    /* Before all is drained the senders still need the channels. */
    for (unsigned c = 0; c < out->channel_count && drained; c++)
        channel_close(&out->channels[c], CHANNEL_SEALED);
    /* What is still being compressed is counted when it is sent. A failure shows in the state. */
    bool sent = drained;
    for (unsigned c = 0; c < out->channel_count && drained; c++)
        sent = channel_flush(&out->channels[c], UINT64_MAX, interrupt) == 0 && sent;
    sent = sent && !interrupt_is_hit(interrupt);
    if (sent && make_manifest(m, &manifest, &length) < 0) {
        pthread_mutex_lock(&m->lock);
        if (m->state == STATE_COMPLETING)
            resume_from_completing(m);
        pthread_mutex_unlock(&m->lock);
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    }
    if (sent)
        session_send(&m->out->session, WIRE_COMPLETE, id, manifest, length);

    bool verified = await_prepared(m, sent ? id : 0, interrupt, &failure) && verify(m, interrupt, &failure) == 0;
    bool interrupted = failure.cause == CAUSE_INTERRUPTED || failure.cause == CAUSE_NO_MEMORY;
    if (error_is_set(&failure) && !interrupted)
        migration_fail(m, &failure);
    pthread_mutex_lock(&m->lock);
    interrupted = interrupted && m->state == STATE_COMPLETING;
    if (interrupted) {
        out->attempt.manifest_id = 0;
        resume_from_completing(m);
        announce_streams(m);
    } else if (verified && m->state == STATE_COMPLETING) {
        struct error silent = {0};
        error_set(&silent, CAUSE_TIMEOUT, "the destination does not confirm that it has completed");
        out->attempt.commit_id = id;
        outgoing_doom(m, &silent, m->settings.timeout_ms);
    }
    bool commit = out->attempt.commit_id == id;
    pthread_mutex_unlock(&m->lock);
    if (interrupted) {
        migration_announce(m);
        return error_set(err, failure.cause, "%s: the migration goes on", failure.message);
    }
    if (commit)
        session_send(&m->out->session, WIRE_COMMIT, id, NULL, 0);

    SCOPED_LOCK(&m->lock);
    /*
     * From here on there is no way back, and no interrupt: whoever is told that `complete` was interrupted goes
     * on with the VM here. The doom of the migration bounds the wait.
     */
    while (m->state == STATE_COMPLETING)
        pthread_cond_wait(&m->changed, &m->lock);
    if (m->state == STATE_COMPLETED)
        return 0;
    return error_set(err, m->failure.cause, "%s", m->failure.message);
}

bool outgoing_is_committing(const struct migration *m)
{
    return m->out->attempt.commit_id && m->state == STATE_COMPLETING;
}

/*
 * Devices
 */

/*
 * Finds the device of a name, or waits until one may be made: for the turn, and for a number.
 * One that was removed has its number until the destination has removed it, too. The caller
 * holds migration.lock.
 */
static int await_place(struct migration *m, const char *name, const struct interrupt *interrupt, struct file **file,
                       uint32_t *id, struct error *err)
{
    for (;;) {
        *file = migration_device(m, name);
        if (*file)
            return 0;
        bool local = is_unstarted(m), turn = m->state != STATE_ACTIVE || !m->out->attempt.announced.file;
        if (!local && migration_allows(m, COMMAND_WRITE, err) < 0)
            return -EIO;
        uint32_t max = local ? WIRE_DEVICES_MAX : m->out->limits.max_devices, devices = migration_count_devices(m);
        *id = migration_free_slot(m);
        if (turn && *id <= max && *id <= WIRE_DEVICES_MAX)
            return 0;
        if (turn && (devices >= max || devices >= WIRE_DEVICES_MAX))
            return error_set(err, CAUSE_QUOTA, "there are %u devices already, and no more are allowed", devices);
        if (interrupt_is_hit(interrupt))
            return error_set(err, CAUSE_INTERRUPTED, "interrupted");
        pthread_cond_wait(&m->changed, &m->lock);
    }
}

/* A new device of a number: the caller holds migration.lock. */
static struct file *new_device(struct migration *m, uint32_t id, const char *name, bool before_start, struct error *err)
{
    struct file *file = file_new(id, name);

    if (file && !before_start && file_set_channels(file, m->out->channel_count, m->settings.device_channels) < 0) {
        file_put(file);
        file = NULL;
    }
    if (!file)
        error_set(err, CAUSE_NO_MEMORY, "out of memory");
    return file;
}

int outgoing_create_device(struct migration *m, const char *name, bool exclusive, const struct interrupt *interrupt,
                           struct file **out_file, struct error *err)
{
    struct file *file;
    uint32_t id;

    if (name_check_device(name, err) < 0)
        return -EIO;
    SCOPED_LOCK(&m->lock);
    if (await_starter(m, interrupt, err) < 0) /* before what it may need */
        return -EIO;
    if (await_place(m, name, interrupt, &file, &id, err) < 0)
        return -EIO;
    if (file) {
        if (exclusive)
            return error_set(err, CAUSE_EXISTS, "the device '%.64s' exists already", name);
        *out_file = file_get(file);
        return 0;
    }
    bool before_start = is_unstarted(m);
    file = new_device(m, id, name, before_start, err);
    if (!file)
        return -EIO;
    if (before_start) {
        file->made_here = true;
        migration_add_file(m, file_get(file));
    } else {
        send_announcement(m, file, true);
        if (await_answer(m, file, interrupt, err) < 0) {
            file_put(file);
            return -EIO;
        }
    }
    *out_file = file;
    return 0;
}

/*
 * Removing and renaming. Here both are done at once; the destination follows when it
 * has applied what was accepted before. A device that is removed is not found any more,
 * and what is still written to it goes nowhere; its place in the list, whose index is its
 * number, stays taken until the destination has removed it.
 */

/* What is to be changed: at least one of them. */
struct change_of_names {
    struct file *gone; /* is removed */
    struct file *kept; /* gets the name */
    const char *name;
};

/* Waits for the turn, and until one change more may be on its way. The caller holds migration.lock. */
static int await_change(struct migration *m, const struct interrupt *interrupt, struct error *err)
{
    while (m->state == STATE_ACTIVE && m->out->attempt.changes >= WIRE_CHANGES_MAX) {
        if (interrupt_is_hit(interrupt))
            return error_set(err, CAUSE_INTERRUPTED, "interrupted");
        pthread_cond_wait(&m->changed, &m->lock);
    }
    return await_turn(m, interrupt, err);
}

/* From here on nothing is accepted for the device. The caller holds migration.lock. False: a channel is closed. */
static bool retire(struct migration *m, struct file *file, uint64_t id)
{
    bool need[WIRE_CHANNELS_MAX];

    for (unsigned c = 0; c < WIRE_CHANNELS_MAX; c++)
        need[c] = file_is_home(file, c);
    if (!lock_channels(m->out, need))
        return false;
    atomic_store_explicit(&file->removed, true, memory_order_release);
    unlock_channels(m->out, need);
    file->removal = id;
    return true;
}

/* The same at the destination, after what was accepted. The caller holds migration.lock. */
static void announce_change(struct migration *m, const struct change_of_names *change, uint64_t id)
{
    struct outgoing *out = m->out;
    struct file *gone = change->gone, *kept = change->kept;
    uint64_t counts[WIRE_CHANNELS_MAX], others[WIRE_CHANNELS_MAX] = {0};
    uint8_t buf[16 + sizeof(counts) + WIRE_NAME_MAX];
    struct wire_writer body = {buf, buf, buf + sizeof(buf)};

    if (gone)
        count_accepted(out, gone, others);
    count_accepted(out, kept ? kept : gone, counts);
    wire_write_u32(&body, kept ? kept->id : gone->id);
    for (unsigned c = 0; c < out->channel_count; c++)
        wire_write_u64(&body, counts[c] > others[c] ? counts[c] : others[c]);
    if (kept) {
        wire_write_u32(&body, gone ? gone->id : 0);
        wire_write_text(&body, change->name);
    }
    out->attempt.changes++;
    out->attempt.last_change = id;
    session_send(&out->session, kept ? WIRE_FILE_RENAME : WIRE_FILE_REMOVE, id, buf, wire_written(&body));
}

/*
 * The caller holds migration.lock. 1: done; 0: a channel is closed, try again; negative: not
 * allowed, and why. @listed: set to a file whose reference is to be dropped without the lock
 */
static int try_change(struct migration *m, const struct change_of_names *change, struct file **listed,
                      struct error *err)
{
    bool local = is_unstarted(m);

    if (!local && migration_allows(m, COMMAND_WRITE, err) < 0)
        return -EIO;
    if (local && change->gone)
        *listed = migration_remove_file(m, change->gone);
    uint64_t id = local ? 0 : ++m->out->attempt.last_id;
    if (!local && change->gone && !retire(m, change->gone, id))
        return 0;
    if (change->kept)
        file_rename(change->kept, change->name);
    if (!local)
        announce_change(m, change, id);
    return 1;
}

/* Finds what a change is about. @to: NULL when @from is removed. The caller holds migration.lock. */
static int find_change(struct migration *m, const char *from, const char *to, bool exclusive,
                       struct change_of_names *change, struct error *err)
{
    struct file *file = migration_device(m, from);

    if (!file)
        return error_set(err, CAUSE_NOT_FOUND, "there is no device '%.64s'", from);
    change->kept = to ? file : NULL;
    change->gone = to ? migration_device(m, to) : file;
    change->name = to;
    if (to && change->gone && exclusive)
        return error_set(err, CAUSE_EXISTS, "the device '%.64s' exists already", to);
    return 0;
}

static int change_device(struct migration *m, const char *from, const char *to, bool exclusive,
                         const struct interrupt *interrupt, struct error *err)
{
    struct change_of_names change;
    struct file *listed = NULL;

    pthread_mutex_lock(&m->lock);
    int ret = await_starter(m, interrupt, err);
    while (ret == 0) {
        ret = await_change(m, interrupt, err);
        if (ret == 0)
            ret = find_change(m, from, to, exclusive, &change, err);
        if (ret == 0 && change.gone == change.kept)
            ret = 1; /* it has the name */
        if (ret == 0)
            ret = try_change(m, &change, &listed, err);
        if (ret == 0) {
            pthread_mutex_unlock(&m->lock);
            ret = refuse(m, COMMAND_WRITE, interrupt, err);
            pthread_mutex_lock(&m->lock);
        }
    }
    pthread_mutex_unlock(&m->lock);
    /* Who waits for a peer to fill it waits in vain. */
    if (listed)
        file_receive_remove(listed);
    file_put(listed);
    return ret < 0 ? ret : 0;
}

int outgoing_remove_device(struct migration *m, const char *name, const struct interrupt *interrupt, struct error *err)
{
    return change_device(m, name, NULL, false, interrupt, err);
}

int outgoing_rename_device(struct migration *m, const char *from, const char *to, bool exclusive,
                           const struct interrupt *interrupt, struct error *err)
{
    return name_check_device(to, err) < 0 ? -EIO : change_device(m, from, to, exclusive, interrupt, err);
}

/*
 * Tells the destination whether a device's stream has ended, when that has changed.
 * @again: something was done to it by somebody who is no writer, so an end is told once more
 *
 * The caller holds migration.lock, so that the news come in order.
 */
static void announce_stream(struct migration *m, struct file *file, bool again)
{
    struct outgoing *out = m->out;
    uint64_t counts[WIRE_CHANNELS_MAX];
    uint8_t buf[4 + sizeof(counts)];
    struct wire_writer body = {buf, buf, buf + sizeof(buf)};

    bool open = file->writers > 0 || !atomic_load_explicit(&file->touched, memory_order_relaxed);
    bool active = m->state == STATE_ACTIVE && m->role == ROLE_OUTGOING && !file_is_removed(file);
    if (file->id == WIRE_RAM || !active || (open == file->announced_open && (open || !again)))
        return;
    wire_write_u32(&body, file->id);
    count_accepted(out, file, counts);
    for (unsigned c = 0; c < out->channel_count && !open; c++)
        wire_write_u64(&body, counts[c]);
    session_send(&m->out->session, open ? WIRE_FILE_RESUME : WIRE_FILE_END, 0, buf, wire_written(&body));
    file->announced_open = open;
}

static void announce_streams(struct migration *m)
{
    for (uint32_t i = 1; i < m->file_count; i++) {
        if (m->files[i])
            announce_stream(m, m->files[i], false);
    }
}

void outgoing_open_writer(struct migration *m, struct file *file)
{
    SCOPED_LOCK(&m->lock);
    if (file->writers++ == 0)
        announce_stream(m, file, false);
}

void outgoing_begin_anew(struct file *file)
{
    /* Another writer may have been quicker. */
    if (atomic_load(&file->size) == 0)
        atomic_store_explicit(&file->touched, false, memory_order_relaxed);
}

void outgoing_close_writer(struct migration *m, struct file *file)
{
    SCOPED_LOCK(&m->lock);
    if (--file->writers == 0)
        announce_stream(m, file, false);
}

/*
 * The main channel
 */

static int on_file_reply(struct migration *m, struct wire_reader *body, struct error *err)
{
    struct attempt *attempt = &m->out->attempt;
    uint32_t id = wire_read_u32(body);
    uint32_t cause = wire_read_u32(body);
    char text[WIRE_TEXT_MAX + 1];

    wire_read_text(body, text, WIRE_TEXT_MAX);
    SCOPED_LOCK(&m->lock);
    if (!wire_read_done(body) || !attempt->announced.file || attempt->announced.there ||
        id != attempt->announced.file->id)
        return error_set(err, CAUSE_PROTOCOL, "an answer about a file that nobody asked for");
    if (cause != CAUSE_NONE)
        session_read_reason(cause, text, "the destination refuses", &attempt->announced.refusal);
    attempt->announced.there = true;
    if (cause == CAUSE_NONE) {
        attempt->announced.file->announced_open = true;
        if (attempt->announced.made)
            migration_add_file_at(m, file_get(attempt->announced.file), id);
    }
    if (attempt->announced.abandoned)
        end_announcement(m);
    pthread_cond_broadcast(&m->changed);
    return 0;
}

static int on_answer(struct migration *m, const struct message *message, struct wire_reader *body, struct error *err)
{
    struct attempt *attempt = &m->out->attempt;
    enum wire_message_type type = message->type == WIRE_VERIFY_REPLY ? WIRE_VERIFY : WIRE_DIGEST;
    uint32_t cause = wire_read_u32(body);

    SCOPED_LOCK(&m->lock);
    size_t want = type == WIRE_VERIFY && cause != CAUSE_NONE ? 0 : attempt->question.size;
    if (body->bad || !message->id || message->id != attempt->question.id || type != attempt->question.type ||
        body->left != want)
        return error_set(err, CAUSE_PROTOCOL, "an answer that nobody asked for");
    if (attempt->question.there) {
        attempt->question.id = 0; /* the one who asked has left */
    } else {
        memcpy(attempt->question.digests, body->p, want);
        /* Not what only this side's user can have. */
        bool odd = cause == CAUSE_INTERRUPTED || cause == CAUSE_AGAIN || cause >= CAUSE_MAX;
        attempt->question.cause = odd ? CAUSE_PEER : (enum cause)cause;
        attempt->question.there = true;
    }
    pthread_cond_broadcast(&m->changed);
    return 0;
}

static void on_sync_ack(struct migration *m, uint64_t id)
{
    SCOPED_LOCK(&m->lock);
    if (m->out->attempt.syncs)
        m->out->attempt.syncs--;
    for (struct sync_waiter *waiter = m->out->waiters; waiter; waiter = waiter->next) {
        if (waiter->id == id)
            waiter->acked = true;
    }
    pthread_cond_broadcast(&m->changed);
}

/* The destination has made a change. */
static int on_changed(struct migration *m, uint64_t id, struct error *err)
{
    struct file *gone = NULL;

    pthread_mutex_lock(&m->lock);
    bool asked = m->out->attempt.changes > 0;
    m->out->attempt.changes -= asked;
    if (id > m->out->attempt.last_made)
        m->out->attempt.last_made = id;
    for (uint32_t i = 1; i < m->file_count && !gone; i++) {
        struct file *file = m->files[i];
        /* Its number can be used again. All its packets have been applied, so its counters are exact. */
        if (file && file_is_removed(file) && file->removal == id)
            gone = migration_remove_file(m, file);
    }
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->lock);
    file_put(gone);
    return asked ? 0 : error_set(err, CAUSE_PROTOCOL, "the destination has changed a name that it was not asked to");
}

static int on_committed(struct migration *m, uint64_t id, struct error *err)
{
    pthread_mutex_lock(&m->lock);
    bool moved = m->out->attempt.commit_id && m->out->attempt.commit_id == id && migration_move(m, STATE_COMPLETED, NULL);
    pthread_mutex_unlock(&m->lock);
    if (!moved)
        return error_set(err, CAUSE_PROTOCOL, "the destination has completed what it was not asked to");
    log_info("%s: completed", m->name);
    migration_announce(m);
    return 0;
}

static int on_progress(struct migration *m, struct wire_reader *body, struct error *err)
{
    struct progress progress = {.work = wire_read_u64(body)};

    for (unsigned c = 0; c < m->out->channel_count; c++) {
        progress.channel[c].received = wire_read_u64(body);
        progress.channel[c].applied = wire_read_u64(body);
    }
    if (!wire_read_done(body))
        return error_set(err, CAUSE_PROTOCOL, "progress of another number of channels");
    m->out->progress = progress;
    return 0;
}

/* Runs in mig-out, and in the thread of `start` before that exists. */
static int handle_message(void *arg, const struct message *message, struct wire_reader *body, struct error *err)
{
    struct migration *m = arg;

    switch (message->type) {
    case WIRE_FILE_REPLY:
        return on_file_reply(m, body, err);
    case WIRE_SYNC_ACK:
        on_sync_ack(m, message->id);
        return 0;
    case WIRE_PREPARED: {
        SCOPED_LOCK(&m->lock);
        m->out->attempt.prepared_id = message->id;
        pthread_cond_broadcast(&m->changed);
        return 0;
    }
    case WIRE_FILE_REMOVE:
    case WIRE_FILE_RENAME:
        return on_changed(m, message->id, err);
    case WIRE_PROGRESS:
        return on_progress(m, body, err);
    case WIRE_DIGEST_REPLY:
    case WIRE_VERIFY_REPLY:
        return on_answer(m, message, body, err);
    case WIRE_COMMITTED:
        return on_committed(m, message->id, err);
    case WIRE_ABORT:
        m->out->attempt.peer_aborted = true;
        session_read_abort(body, "the destination", err);
        return -EIO;
    default:
        return error_set(err, CAUSE_PROTOCOL, "a message of type %d from the destination", (int)message->type);
    }
}

/* The connection was lost after the commit was sent: asks the destination what became of the migration. */
static void resolve(struct migration *m, const struct error *lost)
{
    int64_t deadline = clock_ms() + m->settings.timeout_ms;
    struct error failure = {0}, last = {0};
    enum wire_outcome outcome = WIRE_OUTCOME_UNKNOWN;
    bool answered = false, refused = false, last_time = false;

    log_info("%s: lost the connection at the last step (%s); asking what became of it", m->name, lost->message);
    while (!answered && !refused && !last_time && clock_ms() < deadline) {
        struct hello_reply reply;
        /* A daemon that goes away asks once. */
        last_time = atomic_load(&m->host->closed);
        struct transport *t;
        struct pollfd fd = {.fd = m->out->cancel_fd, .events = POLLIN};
        last = (struct error){0};
        if (greet(m, WIRE_HELLO_QUERY, 0, &t, &reply, &last) == 0) {
            transport_close(t);
            outcome = reply.outcome;
            answered = true;
        } else {
            refused = last.cause == CAUSE_REFUSED;
            if (!refused)
                poll(&fd, 1, RETRY_MS);
        }
    }
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
        error_set(&failure, lost->cause,
                  "%s, and the destination cannot say whether it has completed (%s): look there before the VM goes on here",
                  lost->message, answered ? "it does not know the migration" : last.message);
    migration_fail(m, &failure);
}

static void lost_connection(struct migration *m, const struct error *reason)
{
    pthread_mutex_lock(&m->lock);
    bool committing = outgoing_is_committing(m) && !m->out->attempt.peer_aborted;
    pthread_mutex_unlock(&m->lock);
    if (committing)
        resolve(m, reason);
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
    struct file **files;
    int count = migration_keep_records(m, true) < 0 ? -ENOMEM : migration_files(m, &files, NULL);

    for (unsigned c = 0; count > 0 && c < out->channel_count; c++)
        pthread_mutex_lock(&out->channels[c].lock);
    for (int i = 0; i < count; i++)
        file_settle(files[i]);
    for (unsigned c = 0; count > 0 && c < out->channel_count; c++)
        pthread_mutex_unlock(&out->channels[c].lock);
    if (count >= 0)
        migration_put_files(files, count);
    if (out->compressor)
        compressor_close(out->compressor);
    SCOPED_LOCK(&m->lock);
    session_end(&out->session);
    close_cancel(out);
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
    while (!state_is_final(m->state)) {
        struct error err = {0};
        pthread_mutex_lock(&m->lock);
        struct error doom = out->attempt.doom;
        int64_t deadline = error_is_set(&doom) ? out->attempt.doom_at : clock_ms() + 60000;
        bool confirming = out->attempt.commit_id;
        pthread_mutex_unlock(&m->lock);
        int ret = session_step(&out->session, deadline, handle_message, m, &err);
        if (state_is_final(m->state))
            break;
        if (stall_is_due(&out->watch, clock_ms()))
            look_for_stall(m);
        bool doomed = error_is_set(&doom) && clock_ms() >= deadline;
        if (ret == 0 && !doomed)
            continue;
        /* The first sign of trouble says more than what followed from it, unless the peer itself says why. */
        if (doomed || (error_is_set(&doom) && !confirming && !out->attempt.peer_aborted))
            err = doom;
        lost_connection(m, &err);
    }
    if (m->state != STATE_COMPLETED && !out->attempt.peer_aborted)
        session_goodbye(&out->session, &m->failure);
    for (unsigned c = 0; c < out->channel_count; c++) {
        channel_close(&out->channels[c], CHANNEL_DEAD);
        transport_shutdown(out->channels[c].transport);
    }
    gate_close(&out->gate);
    if (out->reference) {
        reference_stop(out->reference);
        pthread_mutex_lock(&m->lock);
        reference_close(out->reference);
        pthread_mutex_unlock(&m->lock);
    }
    for (unsigned c = 0; c < out->channel_count; c++)
        channel_disconnect(&out->channels[c]);
    session_linger(&out->session, LINGER_MS);
    settle(m);
    migration_put(m);
    return NULL;
}

void outgoing_leave(struct migration *m, const struct error *reason)
{
    outgoing_doom(m, reason, 0);
    /* A question that is being asked is asked once more. */
    interrupt_start(m->out);
}

void outgoing_ended(struct migration *m)
{
    SCOPED_LOCK(&m->lock);
    /* The next `start` may be there already. */
    if (!state_is_final(m->state))
        return;
    interrupt_start(m->out);
    if (m->out->has_session)
        session_wake(&m->out->session);
}

void outgoing_kick(struct migration *m)
{
    struct outgoing *out = m->out;

    pthread_mutex_lock(&m->lock);
    if (interrupt_is_hit(out->starter)) {
        interrupt_start(out);
        if (out->has_session)
            session_wake(&out->session);
    }
    pthread_mutex_unlock(&m->lock);
    gate_kick(&out->gate);
    if (is_ready(out) && out->reference)
        reference_kick(out->reference);
    for (unsigned c = 0; is_ready(out) && c < out->channel_count; c++)
        channel_kick(&out->channels[c]);
}

int outgoing_setting_writable(struct migration *m, const struct interrupt *interrupt, struct error *err)
{
    if (m->role == ROLE_INCOMING)
        return error_set(err, CAUSE_STATE, "the settings of an incoming migration are its source's");
    if (await_starter(m, interrupt, err) < 0)
        return -EIO;
    if (is_unstarted(m))
        return 0;
    return error_set(err, CAUSE_STATE, "settings cannot be changed once the migration has started");
}

/* The migration is active, and its RAM comes by reference from now on. The caller holds migration.lock. */
static int start_reference(struct migration *m, struct reference *ref, struct error *err)
{
    struct file *ram = m->files[WIRE_RAM];

    if (m->out->reference || !ref)
        return error_set(err, CAUSE_STATE, "the source of RAM cannot be changed any more");
    if (check_reference(ref, ram, err) < 0 || reference_start(ref, m, atomic_load(&ram->size), err) < 0)
        return -EIO;
    m->out->reference = ref;
    return 0;
}

/* Where no size was declared, the destination is told of the file's. */
static int size_late(struct migration *m, const struct reference *ref, const struct interrupt *interrupt,
                     struct error *err)
{
    struct file *ram = m->files[WIRE_RAM];

    if (!ref || m->out->reference || atomic_load(&ram->size) || atomic_load(&m->state) != STATE_ACTIVE)
        return 0;
    return outgoing_truncate(m, ram, reference_file_size(ref), interrupt, err);
}

int outgoing_set_reference(struct migration *m, struct reference *ref, const struct interrupt *interrupt,
                           struct error *err)
{
    struct file *ram = m->files[WIRE_RAM];
    struct reference *old = ref;
    int ret = size_late(m, ref, interrupt, err);

    if (ret < 0) {
        reference_free(ref);
        return ret;
    }
    pthread_mutex_lock(&m->lock);
    if (m->state == STATE_ACTIVE && m->role == ROLE_OUTGOING) {
        ret = start_reference(m, ref, err);
        if (ret == 0)
            old = NULL;
    } else {
        ret = outgoing_setting_writable(m, interrupt, err);
        if (ret == 0) {
            old = atomic_exchange(&m->out->reference, ref);
            if (ref)
                migration_become_outgoing(m);
            if (!atomic_load(&ram->size) || m->out->sized_by_reference) {
                ram->size = ram->declared = ref ? reference_file_size(ref) : 0;
                m->out->sized_by_reference = ref;
            }
        }
    }
    pthread_mutex_unlock(&m->lock);
    reference_free(old);
    return ret;
}

void outgoing_check_sharing(struct migration *m, pid_t writer)
{
    char warning[ERROR_MESSAGE_MAX] = "";
    struct stat file;

    pthread_mutex_lock(&m->lock);
    struct reference *ref = m->out->reference;
    bool known = ref && ref->fd >= 0 && fstat(ref->fd, &file) == 0;
    pthread_mutex_unlock(&m->lock);
    pid_t pid = known ? private_map_find("/proc", &file, writer) : 0;
    if (pid)
        snprintf(warning, sizeof(warning),
                 "process %d has the ram-source mapped privately: what it writes there is not in the file, and is not sent (share=off?)",
                 (int)pid);
    pthread_mutex_lock(&m->lock);
    bool news = strcmp(m->warning, warning);
    strcpy(m->warning, warning);
    pthread_mutex_unlock(&m->lock);
    if (news && *warning)
        log_error("%s: %s", m->name, warning);
}

void outgoing_reference_text(struct migration *m, char *out, size_t size)
{
    SCOPED_LOCK(&m->lock);
    snprintf(out, size, "%s", m->out->reference ? m->out->reference->text : "");
}

uint64_t outgoing_dirty_size(struct migration *m)
{
    uint64_t size = atomic_load(&m->files[WIRE_RAM]->size);

    SCOPED_LOCK(&m->lock);
    return m->out->reference ? (size + WIRE_PAGE_SIZE * 64 - 1) / (WIRE_PAGE_SIZE * 64) * 8 : 0;
}

int outgoing_mark_dirty(struct migration *m, const void *bitmap, size_t len, uint64_t offset, struct error *err)
{
    if (check_active(m, err) < 0)
        return -EIO;
    if (!m->out->reference)
        return error_set(err, CAUSE_SYNTAX, "there is no ram-source: its pages would be sent");
    return reference_mark(m->out->reference, bitmap, len, offset, err);
}

uint64_t outgoing_wire_bytes(struct migration *m, int index)
{
    struct outgoing *out = m->out;

    if (!is_ready(out))
        return 0;
    if (index < 0)
        return atomic_load_explicit(&out->session.bytes_sent, memory_order_relaxed);
    SCOPED_LOCK(&out->channels[index].lock);
    return out->channels[index].wire_bytes;
}

const char *outgoing_path(struct migration *m)
{
    struct outgoing *out = m->out;
    uint64_t spliced;

    if (!is_ready(out))
        return NULL;
    if (out->reference)
        return "reference";
    if (outgoing_splices(m, m->files[WIRE_RAM], WIRE_STRIPE_SIZE, 0))
        return "splice";
    for (unsigned c = 0; c < out->channel_count; c++) {
        if (outgoing_zerocopy(m, c, &spliced).bytes)
            return "zero-copy";
    }
    return "copy";
}

struct zerocopy_counters outgoing_zerocopy(struct migration *m, unsigned index, uint64_t *spliced)
{
    struct channel *ch = &m->out->channels[index];

    SCOPED_LOCK(&ch->lock);
    *spliced = ch->spliced_bytes;
    return ch->zerocopy.counters;
}

uint64_t outgoing_queued(struct migration *m)
{
    uint64_t bytes = atomic_load_explicit(&m->out->gate.used, memory_order_relaxed);

    if (is_ready(m->out) && m->out->reference)
        bytes += reference_remaining(m->out->reference) * WIRE_PAGE_SIZE;
    return bytes;
}

unsigned outgoing_channels(struct migration *m)
{
    return is_ready(m->out) ? m->out->channel_count : 0;
}
