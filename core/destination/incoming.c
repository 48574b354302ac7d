/* SPDX-License-Identifier: Apache-2.0 */
/* The destination's side of a migration; see incoming.h. */
#include "incoming.h"
#include "announced.h"
#include "answers.h"
#include "arrival.h"
#include "catalog.h"
#include "cleanup.h"
#include "clock.h"
#include "host.h"
#include "inbound.h"
#include "interruption.h"
#include "log.h"
#include "preallocation.h"
#include "refusal.h"
#include "shown.h"
#include "tls.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define TIMEOUT_MAX (3600u * 1000) /* as long as the setting can be, whatever the source says */
/* times the longer timeout: the source, which knows more, gives up before this side does */
#define PATIENCE 2

struct incoming {
    /* whose it is; mig-in's: it changes when an expected migration takes over, before there are receivers */
    struct migration *m;
    const struct incoming_owner_operations *owner_operations;
    void *owner;                        /* who has made it; constant, like its operations */
    struct account *account;            /* whose limits it counts against; constant */
    struct intake_share share;          /* of what the host receives; it has a lock of its own */
    struct inbound inbound;             /* mig-in reads it; its lock is migration.lock */
    struct arrival arrival;             /* mig-in's */
    struct catalog catalog;             /* mig-in's; receivers look up files */
    struct announced announced;         /* mig-in's */
    struct preallocation preallocation; /* mig-in's; any thread stops it */
    struct answers answers;             /* mig-in's, and mig-digest's while a question is open */
};

/*
 * What the receivers tell
 */

static void channel_failed(void *arg, unsigned channel, const struct error *reason)
{
    struct incoming *in = arg;
    struct migration *m = in->m;

    pthread_mutex_lock(&m->lock);
    inbound_suspect(&in->inbound, channel, reason);
    pthread_mutex_unlock(&m->lock);
    session_wake(&in->inbound.session);
}

static int channel_lost(void *arg, unsigned channel, const struct error *reason)
{
    struct incoming *in = arg;

    return interruption_of_channel(in->m, &in->inbound, channel, reason);
}

static void channel_reached(void *arg)
{
    struct incoming *in = arg;

    session_wake(&in->inbound.session);
}

static void packet_applied(void *arg)
{
    struct incoming *in = arg;

    if (atomic_load(&in->m->watchers))
        migration_announce(in->m);
}

static const struct arrival_operations arrival_operations;
static const struct announced_operations announced_operations;
static const struct answers_operations answers_operations;

static const struct receiver_events receiver_events = {
    .failed = channel_failed,
    .lost = channel_lost,
    .reached = channel_reached,
    .applied = packet_applied,
};

static uint64_t memory_beside(const struct host *host, unsigned channels)
{
    return arrival_memory(channels) + (host->tls ? (uint64_t)(channels + 1) * TLS_MEMORY : 0);
}

uint64_t incoming_memory(const struct host *host, unsigned channels)
{
    return inbound_memory(channels) + memory_beside(host, channels);
}

struct incoming *incoming_new(struct migration *m, struct account *account,
                              const struct incoming_owner_operations *operations, void *owner,
                              struct error *err)
{
    struct incoming *in = calloc(1, sizeof(*in));
    unsigned n = m->settings.channels;

    if (!in) {
        error_set(err, CAUSE_NO_MEMORY, "out of memory");
        return NULL;
    }
    in->m = m;
    in->owner_operations = operations;
    in->owner = owner;
    in->account = account_hold(account);
    intake_share_init(&in->share, &m->host->intake, account);
    const struct reception reception = {
        .events = &receiver_events,
        .owner = in,
        .catalog = &in->catalog,
        .decompressors = &m->host->decompressors,
        .share = &in->share,
        .max_ram = m->host->limits.max_ram,
        .max_device = m->host->limits.max_device,
    };
    if (catalog_init(&in->catalog, m->host->limits.max_devices) < 0 ||
        arrival_init(&in->arrival, n, &in->catalog, &account->memory, &arrival_operations, in) < 0)
        error_set(err, CAUSE_NO_MEMORY, "out of memory");
    if (error_is_set(err) ||
        inbound_init(&in->inbound, &reception, account, n, memory_beside(m->host, n), err) < 0) {
        incoming_free(in);
        return NULL;
    }
    in->announced = (struct announced){
        .operations = &announced_operations,
        .owner = in,
        .host = m->host,
        .account = account,
        .reception = &in->inbound.reception,
        .catalog = &in->catalog,
        .arrival = &in->arrival,
        .device_channels = m->settings.device_channels,
    };
    memcpy(in->announced.name, m->name, sizeof(in->announced.name));
    answers_init(&in->answers, &in->catalog, &answers_operations, in);
    return in;
}

void incoming_free(struct incoming *in)
{
    if (!in)
        return;
    inbound_fini(&in->inbound);
    arrival_fini(&in->arrival);
    catalog_fini(&in->catalog);
    intake_share_fini(&in->share);
    account_put(in->account);
    free(in);
}

/*
 * Barriers
 */

static uint64_t channel_applied(void *arg, unsigned channel)
{
    const struct incoming *in = arg;

    return receiver_applied(&in->inbound.receivers[channel]);
}

static bool aim_channel(void *arg, unsigned channel, uint64_t target)
{
    struct incoming *in = arg;

    return receiver_aim(&in->inbound.receivers[channel], target);
}

static void acknowledge_sync(void *arg, uint64_t id)
{
    struct incoming *in = arg;

    session_send(&in->inbound.session, WIRE_SYNC_ACK, id, NULL, 0);
}

static void end_stream(void *arg, struct file *file, const uint64_t *counts)
{
    struct incoming *in = arg;

    file_receive_end(file, counts);
    migration_announce(in->m);
}

static void make_change(void *arg, const struct change *change)
{
    struct incoming *in = arg;

    announced_change(&in->announced, change);
}

static void changes_made(void *arg, const struct change *made)
{
    struct incoming *in = arg;

    announced_changed(&in->announced, made);
    migration_announce(in->m);
}

static int say_prepared(void *arg, uint64_t id, struct error *err)
{
    struct incoming *in = arg;

    if (catalog_check_storage(&in->catalog, err) < 0)
        return -EIO;
    session_send(&in->inbound.session, WIRE_PREPARED, id, NULL, 0);
    return 0;
}

static const struct arrival_operations arrival_operations = {
    .applied = channel_applied,
    .aim = aim_channel,
    .synced = acknowledge_sync,
    .ended = end_stream,
    .change = make_change,
    .changed = changes_made,
    .complete = say_prepared,
};

/*
 * Files that the source announces, and what users see of them
 */

static struct file *expected_file(void *arg, uint32_t number, const char *name)
{
    return shown_expected(((struct incoming *)arg)->m, number, name);
}

static int settle_file(void *arg, struct file *file, struct error *err)
{
    return migration_settle_file(((struct incoming *)arg)->m, file, err);
}

static void begin_preallocation(struct incoming *in, struct file *ram)
{
    struct error failure = {0};

    if (preallocation_begin(&in->preallocation, &ram->image, &failure) <
        0) /* The memory comes when it is needed. */
        log_error("%s: %s", in->m->name, failure.message);
}

static void take_file(void *arg, struct file *file, uint64_t size, bool show)
{
    struct incoming *in = arg;
    struct migration *m = in->m;

    if (show)
        shown_add(m, file);
    if (file->id == WIRE_RAM && size && m->host->limits.preallocate)
        begin_preallocation(in, file);
}

static void change_files(void *arg, const struct change *change, struct file *gone, struct file *unfilled)
{
    shown_change(((struct incoming *)arg)->m, change, gone, unfilled);
}

static bool is_used(void *arg, const struct file *file)
{
    return inbound_uses(&((struct incoming *)arg)->inbound, file);
}

static void send_message(void *arg, enum wire_message_type type, uint64_t id, const void *body,
                         uint32_t length)
{
    struct incoming *in = arg;

    session_send(&in->inbound.session, type, id, body, length);
}

static const struct announced_operations announced_operations = {
    .expected = expected_file,
    .settle = settle_file,
    .taken = take_file,
    .change = change_files,
    .uses = is_used,
    .send = send_message,
};

/*
 * Answers
 */

static void *mig_digest(void *arg)
{
    struct migration *m = arg;

    pthread_setname_np(pthread_self(), "mig-digest");
    answers_work(&m->in->answers);
    migration_put(m);
    return NULL;
}

static int begin_answer(void *arg, struct error *err)
{
    struct migration *m = ((struct incoming *)arg)->m;

    if (migration_start_thread(m, mig_digest, err) == 0)
        return 0;
    log_error("%s: %s", m->name, err->message);
    return -EIO;
}

static const struct answers_operations answers_operations = {.begin = begin_answer, .send = send_message};

/*
 * The end
 */

/*
 * Ends all that touches the memory: nothing more is applied. No more connections are attached: they are all
 * there, or the state is final, which it has become with the lock held.
 */
static void end_receivers(struct migration *m)
{
    struct incoming *in = m->in;

    interruption_end(m, &in->inbound);
    inbound_end(&in->inbound);
    preallocation_end(&in->preallocation);
    announced_bury(&in->announced);
    if (m->settings.compress)
        decompressor_pool_trim(&m->host->decompressors);
}

/* The source says that the files are the destination's now. */
static int commit(struct migration *m, uint64_t id, struct error *err)
{
    struct incoming *in = m->in;

    /* From here on the image is the user's, and nothing may be stored in it. */
    end_receivers(m);
    if (!arrival_is_complete(&in->arrival, id))
        return error_set(err, CAUSE_PROTOCOL, "a commit of what was not prepared");
    /*
     * It may have been a while since it was prepared, and what has got shorter must not be made longer again.
     */
    if (catalog_check_storage(&in->catalog, err) < 0)
        return -EIO;
    /*
     * Before anybody sees that it has completed: after that no other daemon takes the image for a leftover.
     */
    if (catalog_finish(&in->catalog, err) < 0)
        return -EIO;
    pthread_mutex_lock(&m->lock);
    bool completes = state_may_become(m->state, STATE_COMPLETED);
    if (completes) {
        /*
         * First: as soon as it is seen to have completed it can be removed, and then the record answers for
         * it.
         */
        host_record(m->host, m->session_id, m->peer.digest, WIRE_OUTCOME_COMPLETED);
        migration_move(m, STATE_COMPLETED, NULL);
    }
    pthread_mutex_unlock(&m->lock);
    if (!completes)
        return error_set(err, CAUSE_STATE, "a commit of a migration that is over");
    catalog_keep(&in->catalog);
    shown_end_streams(m, false);
    log_info("%s: completed", m->name);
    session_send(&in->inbound.session, WIRE_COMMITTED, id, NULL, 0);
    migration_announce(m);
    return 0;
}

void incoming_limit_ram(struct migration *m, uint64_t size)
{
    uint64_t limit = m->host->limits.max_ram;

    m->in->inbound.reception.max_ram = size && size < limit ? size : limit;
}

uint64_t incoming_max_ram(const struct migration *m)
{
    return m->in->inbound.reception.max_ram;
}

void incoming_hand_over(struct migration *from, struct migration *to)
{
    struct incoming *in = from->in;

    from->in = NULL;
    in->m = to;
    to->in = in;
    incoming_limit_ram(to, to->files[WIRE_RAM]->declared);
}

/* What the user has set of what bounds it. */
static void settings_changed(struct migration *m)
{
    intake_share_set(&m->in->share, m->settings.weight, m->settings.max_bandwidth);
}

/* If all channels are there: make the migration active, and the receivers. */
static int activate(struct incoming *in, struct error *err)
{
    struct migration *m = in->m;

    pthread_mutex_lock(&m->lock);
    bool ready = m->state == STATE_SETUP && inbound_is_whole(&in->inbound);
    pthread_mutex_unlock(&m->lock);
    if (!ready)
        return 0;
    struct migration *shown;
    if (in->owner_operations->arrive(in->owner, m, &shown, err) < 0)
        return -EIO;
    if (shown == m)
        migration_put(shown);
    m = shown;
    in->inbound.reception.compressed = m->settings.compress;
    in->inbound.reception.checked = m->settings.checksum;
    char peer[TRANSPORT_PEER_MAX];
    pthread_mutex_lock(&m->lock);
    settings_changed(m);
    /* The main channel may be lost already. */
    memcpy(peer, in->inbound.receivers[0].transport->peer, sizeof(peer));
    pthread_mutex_unlock(&m->lock);
    if (inbound_start(&in->inbound, err) < 0)
        return -EIO;
    log_info("%s: active, %u channels from %s", m->name, in->inbound.channel_count, peer);
    migration_announce(m);
    return 0;
}

/*
 * The main channel
 */

static int on_file_create(struct incoming *in, const struct message *message, struct wire_reader *body,
                          struct error *err)
{
    (void)message;
    if (announced_on_create(&in->announced, body, err) < 0)
        return -EIO;
    migration_announce(in->m);
    return 0;
}

static int on_stream(struct incoming *in, const struct message *message, struct wire_reader *body,
                     struct error *err)
{
    return announced_on_stream(&in->announced, message, body, err);
}

static int on_change(struct incoming *in, const struct message *message, struct wire_reader *body,
                     struct error *err)
{
    return announced_on_change(&in->announced, message, body, err);
}

static int on_sync(struct incoming *in, const struct message *message, struct wire_reader *body,
                   struct error *err)
{
    return arrival_on_sync(&in->arrival, message->id, body, err);
}

static int on_question(struct incoming *in, const struct message *message, struct wire_reader *body,
                       struct error *err)
{
    return answers_on_question(&in->answers, message, body, err);
}

static int on_complete(struct incoming *in, const struct message *message, struct wire_reader *body,
                       struct error *err)
{
    return arrival_on_complete(&in->arrival, message->id, body, err);
}

static int on_commit(struct incoming *in, const struct message *message, struct wire_reader *body,
                     struct error *err)
{
    (void)body;
    return commit(in->m, message->id, err);
}

static int on_expose(struct incoming *in, const struct message *message, struct wire_reader *body,
                     struct error *err)
{
    (void)message;
    return inbound_on_expose(&in->inbound, catalog_file(&in->catalog, WIRE_RAM), body, err);
}

static int on_withdraw(struct incoming *in, const struct message *message, struct wire_reader *body,
                       struct error *err)
{
    (void)message;
    return inbound_on_withdraw(&in->inbound, body, err);
}

static int on_abort(struct incoming *in, const struct message *message, struct wire_reader *body,
                    struct error *err)
{
    (void)message;
    in->inbound.peer_aborted = true;
    session_read_abort(body, "the source", err);
    return -EIO;
}

/* What the source may say, and whom it concerns. NULL: it may not. */
static int (*const handlers[WIRE_MESSAGE_MAX])(struct incoming *in, const struct message *message,
                                               struct wire_reader *body, struct error *err) = {
    [WIRE_FILE_CREATE] = on_file_create, [WIRE_FILE_END] = on_stream,    [WIRE_FILE_RESUME] = on_stream,
    [WIRE_FILE_REMOVE] = on_change,      [WIRE_FILE_RENAME] = on_change, [WIRE_SYNC] = on_sync,
    [WIRE_DIGEST] = on_question,         [WIRE_VERIFY] = on_question,    [WIRE_COMPLETE] = on_complete,
    [WIRE_COMMIT] = on_commit,           [WIRE_ABORT] = on_abort,        [WIRE_EXPOSE] = on_expose,
    [WIRE_WITHDRAW] = on_withdraw,
};

static int handle_message(void *arg, const struct message *message, struct wire_reader *body,
                          struct error *err)
{
    struct incoming *in = arg;
    unsigned type = message->type;

    /* The first message can overtake the news that the last channel is there. */
    if (activate(in, err) < 0)
        return -EIO;
    enum state state = in->m->state;
    if (state_is_final(state))
        return error_set(err, CAUSE_STATE, "a message after the end");
    if (state == STATE_SETUP && type != WIRE_ABORT)
        return error_set(err, CAUSE_PROTOCOL, "a message before all channels have arrived");
    if (type >= WIRE_MESSAGE_MAX || !handlers[type])
        return error_set(err, CAUSE_PROTOCOL, "a message of type %u from the source", type);
    return handlers[type](in, message, body, err);
}

/*
 * The thread
 */

/* Tells the source what has arrived, and looks whether anything still does. */
static int look(struct incoming *in, struct error *err)
{
    struct inbound *inbound = &in->inbound;

    if (!interruption_is_there(in->m, inbound))
        return inbound_look(inbound, catalog_work(&in->catalog) + intake_share_held_ns(&in->share), err);
    inbound_rest(inbound);
    return 0;
}

/* Whether a source that has lost its main channel makes it again: who has said nothing but hello does not. */
static bool may_come_back(struct incoming *in)
{
    SCOPED_LOCK(&in->m->lock);
    return in->inbound.resume_ms && !state_is_final(in->m->state) && in->inbound.attached > 0;
}

/* One turn of the loop. Negative: it is over, and why. */
static int turn(struct incoming *in, int64_t setup_deadline, struct error *err)
{
    struct migration *m = in->m;
    struct inbound *inbound = &in->inbound;
    bool setup = m->state == STATE_SETUP;

    pthread_mutex_lock(&m->lock);
    bool suspected = error_is_set(&inbound->suspect);
    unsigned attached = inbound->attached;
    int64_t deadline = suspected ? inbound->suspect_until : setup ? setup_deadline : clock_ms() + 60000;
    int64_t pause_deadline = inbound_deadline(inbound, NULL);
    pthread_mutex_unlock(&m->lock);
    if (activate(in, err) < 0)
        return -EIO;
    int ret = session_step(&inbound->session, deadline < pause_deadline ? deadline : pause_deadline,
                           handle_message, in, err);
    if (ret < 0 && inbound->session.lost && may_come_back(in)) {
        interruption_of_main(in->m, inbound, err);
        *err = (struct error){0};
        ret = 0;
    }
    if (ret == 0)
        ret = interruption_check(in->m, inbound, err);
    if (ret == 0 && !setup)
        ret = arrival_check(&in->arrival, err);
    if (ret == 0 && in->m->state == STATE_ACTIVE && inbound_look_is_due(inbound))
        ret = look(in, err);
    if (ret == 0 && setup && clock_ms() >= setup_deadline && attached < inbound->channel_count)
        ret = error_set(err, CAUSE_TIMEOUT, "only %u of %u channels have arrived", attached,
                        inbound->channel_count);
    if (ret == 0 && suspected && clock_ms() >= deadline)
        ret = -EIO;
    if (ret < 0 && suspected && !inbound->peer_aborted)
        *err = inbound->suspect;
    return ret;
}

/*
 * It is over, and nobody works for it any more but this thread: gives up all but the sums, and what
 * is the user's: the files of a migration that has completed.
 */
static void settle(struct migration *m, bool failed)
{
    struct incoming *in = m->in;
    arrival_fini(&in->arrival);
    if (migration_keep_records(m, !failed) < 0)
        return;
    catalog_settle(&in->catalog);
    catalog_fini(&in->catalog);
    if (failed)
        migration_drop_devices(m);
    SCOPED_LOCK(&m->lock);
    inbound_settle(&in->inbound);
}

/* The loop is over: what is left is why, and what has arrived. */
static void end_session(struct migration *m)
{
    struct incoming *in = m->in;

    arrival_fini(&in->arrival);
    /* Others wake the session with the lock held. */
    SCOPED_LOCK(&m->lock);
    inbound_close(&in->inbound);
}

static void *mig_in(void *arg)
{
    struct migration *m = arg;
    struct incoming *in = m->in;
    int64_t setup_deadline = clock_ms() + m->settings.timeout_ms;

    pthread_setname_np(pthread_self(), "mig-in");
    /* incoming_begin() holds the lock until the hello is answered. */
    pthread_mutex_lock(&m->lock);
    pthread_mutex_unlock(&m->lock);
    while (!state_is_final(m->state)) {
        struct error err = {0};
        int ret = turn(in, setup_deadline, &err);
        if (in->m != m) {
            /* This thread works for another one now, and holds a reference to that. */
            migration_put(m);
            m = in->m;
        }
        if (ret < 0)
            migration_fail(m, &err);
    }
    bool failed = m->state != STATE_COMPLETED;
    if (failed && !in->inbound.peer_aborted)
        session_goodbye(&in->inbound.session, &m->failure);
    if (failed && m->was_active)
        host_record(m->host, m->session_id, m->peer.digest, WIRE_OUTCOME_FAILED);
    /* After a completion the source closes when it has read the confirmation. */
    if (!failed)
        session_linger(&in->inbound.session, SESSION_LINGER_MS);
    end_receivers(m);
    if (failed) {
        shown_end_streams(m, true);
        catalog_drop(&in->catalog);
    }
    settle(m, failed);
    if (failed) {
        migration_announce(m);
        session_linger(&in->inbound.session, SESSION_LINGER_MS);
    }
    end_session(m);
    if (!m->was_active)
        in->owner_operations->forget(in->owner, m);
    migration_put(m);
    return NULL;
}

int incoming_begin(struct migration *m, struct transport *transport, uint32_t peer_timeout_ms,
                   const struct hello_reply *reply, struct error *err)
{
    struct incoming *in = m->in;
    struct wire_hello_reply wire;

    wire_hello_reply_encode(reply, &wire);
    SCOPED_LOCK(&m->lock);
    /* See host.closed. */
    if (atomic_load(&m->host->closed))
        return error_set(err, CAUSE_SHUTDOWN, "the daemon is going away");
    uint32_t longer =
        m->host->limits.timeout_ms > peer_timeout_ms ? m->host->limits.timeout_ms : peer_timeout_ms;
    uint32_t patience = PATIENCE * (longer < TIMEOUT_MAX ? longer : TIMEOUT_MAX);
    if (inbound_open(&in->inbound, transport, m->settings.timeout_ms, peer_timeout_ms, patience,
                     m->settings.resume_ms, err) < 0)
        return -EIO;
    if (migration_start_thread(m, mig_in, err) < 0) {
        inbound_give_back(&in->inbound);
        return -EIO;
    }
    if (transport_send_now(transport, &wire, sizeof(wire)) < 0)
        transport_shutdown(transport); /* mig-in finds it */
    migration_move(m, STATE_SETUP, NULL);
    return 0;
}

int incoming_attach(struct migration *m, unsigned channel, unsigned channels, struct transport *transport,
                    const struct hello_reply *reply, struct error *err)
{
    /*
     * Under the lock, so that mig-in neither closes the connection meanwhile nor misses that it is there when
     * the source's next message comes. It never blocks.
     */
    SCOPED_LOCK(&m->lock);
    /* The source has not heard that it was welcome. */
    if (m->state == STATE_ACTIVE && m->settings.resume_ms)
        return interruption_attach(m, &m->in->inbound, (int)channel, 0, transport, err);
    if (m->state != STATE_SETUP)
        return error_set(err, CAUSE_STATE, "channel %u came when the migration was %s", channel,
                         state_names[m->state]);
    return inbound_attach(&m->in->inbound, channel, channels, transport, m->settings.timeout_ms, reply, err);
}

int incoming_attach_again(struct migration *m, int channel, uint64_t received, struct transport *transport,
                          struct error *err)
{
    SCOPED_LOCK(&m->lock);
    /* One that was expected is taking it over. */
    if (!m->in)
        return error_set(err, CAUSE_AGAIN, "the migration is still starting");
    return interruption_attach(m, &m->in->inbound, channel, received, transport, err);
}

enum wire_outcome incoming_decide(struct migration *m)
{
    struct error failure = {0};

    error_set(&failure, CAUSE_RESET, "the source has lost the connection");
    migration_fail(m, &failure);
    return m->state == STATE_COMPLETED ? WIRE_OUTCOME_COMPLETED : WIRE_OUTCOME_FAILED;
}

uint64_t incoming_wire_bytes(struct migration *m, unsigned index)
{
    SCOPED_LOCK(&m->lock);
    if (m->in->inbound.receivers)
        return inbound_wire_bytes(&m->in->inbound, index);
    return index < m->past_channels ? m->past[index].wire_bytes : 0;
}

uint64_t incoming_barrier_ns(struct migration *m)
{
    SCOPED_LOCK(&m->lock);
    return inbound_barrier_ns(&m->in->inbound);
}

unsigned incoming_channels(struct migration *m)
{
    return m->in->inbound.channel_count;
}

static void ended(struct migration *m)
{
    preallocation_stop(&m->in->preallocation);
    SCOPED_LOCK(&m->lock);
    if (m->in->inbound.has_session)
        session_wake(&m->in->inbound.session);
}

static void free_role(struct migration *m)
{
    incoming_free(m->in);
}

/* Nobody waits but on the migration and its files, which are kicked by themselves. */
static void kick(struct migration *m)
{
    (void)m;
}

static bool is_committing(const struct migration *m)
{
    (void)m;
    return false; /* it is for the source to do */
}

static void leave(struct migration *m, const struct error *reason)
{
    (void)m;
    (void)reason;
}

static void count(struct migration *m, unsigned channel, struct channel_record *record)
{
    record->wire_bytes = incoming_wire_bytes(m, channel);
    SCOPED_LOCK(&m->lock);
    if (m->in->inbound.receivers)
        record->placed_bytes = inbound_placed_bytes(&m->in->inbound, channel);
}

static void figures(struct migration *m, struct migration_figures *out)
{
    struct file *ram = migration_file(m, WIRE_RAM);

    *out = (struct migration_figures){
        .ram_size = ram ? file_received_size(ram) : 0,
        .barrier_ns = incoming_barrier_ns(m),
        .held_ns = intake_share_held_ns(&m->in->share),
        .peer = m->peer,
    };
    shown_ram_path(m, out->ram_path, sizeof(out->ram_path));
}

const struct role_operations incoming_operations = {
    .free = free_role,
    .ended = ended,
    .kick = kick,
    .is_committing = is_committing,
    .leave = leave,
    .release = shown_release,
    .channels = incoming_channels,
    .count = count,
    .figures = figures,
    .may_change_settings = refusal_of_settings,
    .settings_changed = settings_changed,
    .start = refusal_of_command,
    .flush = refusal_of_barrier,
    .sync = refusal_of_barrier,
    .precopy = refusal_of_command,
    .complete = refusal_of_command,
    .digest = shown_digest,
    .write = shown_write,
    .splices = refusal_of_splice,
    .discard = refusal_of_discard,
    .truncate = refusal_of_truncate,
    .create_device = refusal_of_create,
    .remove_device = refusal_of_remove,
    .rename_device = refusal_of_rename,
    .open_writer = refusal_of_writer,
    .close_writer = refusal_of_writer,
    .begin_anew = refusal_of_writer,
    .set_reference = refusal_of_reference,
    .reference_text = refusal_of_reference_text,
    .read_ram = refusal_of_reading,
    .dirty_size = refusal_of_dirty_size,
    .read_dirty = refusal_of_reading_dirty,
    .mark_dirty = refusal_of_dirty,
};
