/* SPDX-License-Identifier: Apache-2.0 */
/* What both roles of a migration share; see migration.h. */
#include "migration.h"
#include "cleanup.h"
#include "clock.h"
#include "host.h"
#include "log.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define PAUSE_LOG_MS 1000 /* the log has no more than one pause in that time */

static const char *const role_names[] = {
    [ROLE_NONE] = "none",
    [ROLE_OUTGOING] = "outgoing",
    [ROLE_INCOMING] = "incoming",
};

struct migration *migration_new(struct host *host, enum role role, const struct role_operations *operations,
                                const char *name, uint32_t max_devices)
{
    struct migration *m = calloc(1, sizeof(*m));

    if (!m)
        return NULL;
    m->files = calloc(max_devices + 1, sizeof(*m->files));
    if (!m->files) {
        free(m);
        return NULL;
    }
    m->host = host;
    m->role = role;
    m->operations = m->first_operations = operations;
    strcpy(m->name, name);
    attribute_table_init(&m->attributes, &host->limits.owner);
    m->refs = 1;
    m->state = STATE_NONE;
    m->settings = (struct settings){
        .channels = 2,
        .timeout_ms = host->limits.timeout_ms,
        .zstd_level = 1,
        .zero_copy = ZEROCOPY_AUTO,
        .zero_pages = true,
        .downtime_limit_ms = 300,
        .max_rounds = 30,
        .weight = INTAKE_WEIGHT,
        .rdma_chunk = TRANSPORT_CHUNK,
    };
    pthread_mutex_init(&m->lock, NULL);
    clock_cond_init(&m->changed);
    host_use(host);
    return m;
}

static void migration_free(struct migration *m)
{
    struct host *host = m->host;
    const struct role_operations *operations = m->operations;

    m->first_operations->free(m);
    if (operations != m->first_operations)
        operations->free(m);
    for (uint32_t i = 0; i < m->file_count; i++)
        file_put(m->files[i]);
    account_put(m->maker);
    free(m->files);
    free(m->past);
    attribute_table_fini(&m->attributes);
    pthread_cond_destroy(&m->changed);
    pthread_mutex_destroy(&m->lock);
    free(m);
    host_unuse(host);
}

struct migration *migration_get(struct migration *m)
{
    atomic_fetch_add(&m->refs, 1);
    return m;
}

void migration_put(struct migration *m)
{
    if (m && atomic_fetch_sub(&m->refs, 1) == 1)
        migration_free(m);
}

int migration_start_thread(struct migration *m, void *(*run)(void *), struct error *err)
{
    pthread_attr_t attr;
    pthread_t thread;

    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    int code = pthread_create(&thread, &attr, run, migration_get(m));
    pthread_attr_destroy(&attr);
    if (code) {
        migration_put(m);
        return error_set_errno(err, code, "cannot make a thread");
    }
    return 0;
}

/* Called with the lock held. */
static void end_pause(struct migration *m)
{
    if (m->lost)
        m->paused_ms += clock_ms() - m->paused_since;
    m->lost = 0;
    m->pause_reason = (struct error){0};
}

bool migration_move(struct migration *m, enum state to, const struct error *failure)
{
    enum state from = m->state;

    if (!state_may_become(from, to))
        return false;
    if (failure) {
        m->failure = *failure;
        m->last_error = *failure;
    }
    int64_t now = clock_ms();
    switch (to) {
    case STATE_SETUP:
        m->failure = (struct error){0};
        m->times = (struct milestones){.started = now};
        m->pauses = 0;
        m->paused_ms = 0;
        break;
    case STATE_ACTIVE:
        if (!m->times.active)
            m->times.active = now;
        if (!m->stopped)
            m->times.switchover = 0;
        m->was_active = true;
        break;
    case STATE_COMPLETING:
        m->times.completing = now;
        if (!m->stopped)
            m->times.switchover = now;
        break;
    case STATE_COMPLETED:
    case STATE_FAILED:
    case STATE_CANCELLED:
        m->times.ended = now;
        end_pause(m);
        break;
    default:
        break;
    }
    /* Last: who sees a final state without the lock may read the failure. */
    m->state = to;
    m->generation++;
    pthread_cond_broadcast(&m->changed);
    migration_tell(m);
    return true;
}

void migration_lose(struct migration *m, const struct error *reason)
{
    pthread_mutex_lock(&m->lock);
    bool pauses = state_is_running(m->state) && m->lost++ == 0, logs = false;
    if (pauses) {
        m->pause_reason = *reason;
        m->pause_is_news = true;
        m->paused_since = clock_ms();
        m->pauses++;
        logs = m->pause_is_logged = m->paused_since - m->pause_logged_ms >= PAUSE_LOG_MS;
        m->pause_logged_ms = logs ? m->paused_since : m->pause_logged_ms;
        m->generation++;
        pthread_cond_broadcast(&m->changed);
    }
    pthread_mutex_unlock(&m->lock);
    if (!pauses)
        return;
    if (logs)
        log_error("%s: paused: %s", m->name, reason->message);
    migration_announce(m);
}

void migration_find_again(struct migration *m)
{
    pthread_mutex_lock(&m->lock);
    bool goes_on = m->lost == 1;
    int64_t since = m->paused_since;
    bool logs = m->pause_is_logged;
    if (goes_on) {
        end_pause(m);
        m->generation++;
        pthread_cond_broadcast(&m->changed);
    } else if (m->lost) {
        m->lost--;
    }
    pthread_mutex_unlock(&m->lock);
    if (!goes_on)
        return;
    if (logs || clock_ms() - since >= PAUSE_LOG_MS)
        log_info("%s: goes on after a pause of %lld ms", m->name, (long long)(clock_ms() - since));
    migration_announce(m);
}

bool migration_is_paused(struct migration *m)
{
    SCOPED_LOCK(&m->lock);
    return m->lost > 0;
}

void migration_announce(struct migration *m)
{
    if (m->host->changed)
        m->host->changed(m);
}

/* After the move to a final state, with no lock held; it may have been started again already. */
static void ended(struct migration *m, enum state state, const struct error *failure)
{
    log_error("%s: %s: %s", m->name, state_names[state], failure->message);
    migration_operations(m)->ended(m);
    migration_announce(m);
}

void migration_fail(struct migration *m, const struct error *failure)
{
    enum state to = failure->cause == CAUSE_CANCELLED ? STATE_CANCELLED : STATE_FAILED;

    pthread_mutex_lock(&m->lock);
    bool moved = state_is_running(m->state) && migration_move(m, to, failure);
    pthread_mutex_unlock(&m->lock);
    if (moved)
        ended(m, to, failure);
}

void migration_shut_down(struct migration *m)
{
    struct error failure = {0};

    error_set(&failure, CAUSE_SHUTDOWN, "the daemon is going away");
    pthread_mutex_lock(&m->lock);
    /* After the commit only the destination knows: it is asked, once. */
    bool committing = migration_operations(m)->is_committing(m);
    if (committing)
        migration_operations(m)->leave(m, &failure);
    bool moved = !committing && state_is_running(m->state) && migration_move(m, STATE_FAILED, &failure);
    if (m->role == ROLE_NONE)
        migration_expect_nothing(m);
    migration_tell(m);
    pthread_mutex_unlock(&m->lock);
    if (moved)
        ended(m, STATE_FAILED, &failure);
    else
        migration_announce(m);
}

void migration_note_error(struct migration *m, const struct error *err)
{
    struct error refusal = *err;

    if (!error_is_set(err))
        return;
    pthread_mutex_lock(&m->lock);
    bool over = state_is_final(m->state) && error_is_set(&m->failure);
    bool same = !strcmp(m->failure.message, err->message);
    if (!over) {
        m->last_error = *err;
        m->pause_is_news = false;
    }
    pthread_mutex_unlock(&m->lock);
    if (over && !same) {
        error_prefix(&refusal, "%s", m->name);
        host_note_error(m->host, refusal.message);
    }
}

/* Called with the lock held. */
static bool is_over(struct migration *m, char *verdict)
{
    enum state state = m->state;
    const char *reason = m->failure.message;

    if (!state_is_final(state) && m->removed) {
        state = STATE_CANCELLED;
        reason = "the migration was removed before it was started";
    } else if (!state_is_running(state) && !state_is_final(state) && atomic_load(&m->host->closed)) {
        state = STATE_FAILED;
        reason = "the daemon is going away";
    }
    if (!state_is_final(state))
        return false;
    bool completed = state == STATE_COMPLETED;
    snprintf(verdict, MIGRATION_VERDICT_MAX, "%s%s%s\n", state_names[state], completed ? "" : ": ",
             completed ? "" : reason);
    return true;
}

bool migration_is_over(struct migration *m, char *verdict)
{
    SCOPED_LOCK(&m->lock);
    return is_over(m, verdict);
}

bool migration_follow(struct migration *m, struct follower *follower)
{
    char verdict[MIGRATION_VERDICT_MAX];

    SCOPED_LOCK(&m->lock);
    if (is_over(m, verdict))
        return false;
    follower_join(follower, &m->followers);
    return true;
}

bool migration_unfollow(struct migration *m, struct follower *follower)
{
    SCOPED_LOCK(&m->lock);
    return follower_leave(follower);
}

void migration_tell(struct migration *m)
{
    char verdict[MIGRATION_VERDICT_MAX];

    while (m->followers && is_over(m, verdict))
        follower_tell(m->followers);
}

void migration_kick(struct migration *m)
{
    pthread_mutex_lock(&m->lock);
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->lock);
    migration_operations(m)->kick(m);
    for (uint32_t i = 0; i < m->file_count; i++) {
        CLEANUP_FILE struct file *file = migration_get_file(m, i);
        if (file)
            file_kick(file);
    }
}

struct file *migration_file(struct migration *m, uint32_t slot)
{
    return slot < m->file_count ? m->files[slot] : NULL;
}

struct file *migration_get_file(struct migration *m, uint32_t id)
{
    SCOPED_LOCK(&m->lock);
    struct file *file = migration_file(m, id);
    return file ? file_get(file) : NULL;
}

static void count_gone(const struct file *file, struct file_totals *gone)
{
    for (unsigned c = 0; c < file->channels; c++) {
        struct file_totals totals = file_channel_totals(file, c);
        file_totals_add(&gone[c], &totals);
    }
}

int migration_files(struct migration *m, struct file ***out, struct file_totals *gone)
{
    SCOPED_LOCK(&m->lock);
    struct file **files = calloc(m->file_count + 1, sizeof(struct file *));
    int n = 0;

    if (!files)
        return -ENOMEM;
    if (gone)
        memcpy(gone, m->gone, sizeof(m->gone));
    for (uint32_t i = 0; i < m->file_count; i++) {
        struct file *file = m->files[i];
        if (file && !file_is_removed(file))
            files[n++] = file_get(file);
        else if (file && gone)
            count_gone(file, gone);
    }
    *out = files;
    return n;
}

void migration_put_files(struct file **files, int count)
{
    for (int i = 0; i < count; i++)
        file_put(files[i]);
    free(files);
}

struct file *migration_device(struct migration *m, const char *name)
{
    for (uint32_t i = 1; i < m->file_count; i++) {
        struct file *file = m->files[i];
        if (file && !file_is_removed(file) && !strcmp(file->name, name))
            return file;
    }
    return NULL;
}

static bool is_past(struct migration *m)
{
    SCOPED_LOCK(&m->lock);
    return m->past;
}

static void add_copies(struct channel_record *all, const struct channel_record *record)
{
    struct zerocopy_counters *sum = &all->copies;
    const struct zerocopy_counters *one = &record->copies;

    sum->sends += one->sends;
    sum->bytes += one->bytes;
    sum->copied_sends += one->copied_sends;
    sum->copied_bytes += one->copied_bytes;
    sum->kernel_copied_sends += one->kernel_copied_sends;
    sum->kernel_copied_bytes += one->kernel_copied_bytes;
    sum->refused += one->refused;
    sum->missed += one->missed;
    all->spliced_bytes += record->spliced_bytes;
    all->placed_bytes += record->placed_bytes;
}

/* Adds up what is there now. */
static int add_up(struct migration *m, unsigned channels, struct channel_record *records)
{
    const struct role_operations *operations = migration_operations(m);
    struct channel_record *all = &records[channels];
    CLEANUP_FREE struct file_totals *gone = calloc(WIRE_CHANNELS_MAX, sizeof(*gone));
    struct file **files;
    int n = gone ? migration_files(m, &files, gone) : -ENOMEM;

    if (n < 0)
        return n;
    for (unsigned c = 0; c < channels; c++) {
        struct channel_record *record = &records[c];
        for (int i = 0; i < n; i++) {
            struct file_totals totals = file_channel_totals(files[i], c);
            file_totals_add(i == WIRE_RAM ? &record->ram : &record->devices, &totals);
        }
        file_totals_add(&record->devices, &gone[c]);
        operations->count(m, c, record);
        file_totals_add(&all->ram, &record->ram);
        file_totals_add(&all->devices, &record->devices);
        all->wire_bytes += record->wire_bytes;
        add_copies(all, record);
    }
    migration_put_files(files, n);
    return 0;
}

int migration_records(struct migration *m, unsigned *channels, struct channel_record **out)
{
    bool past = is_past(m);

    for (;;) {
        unsigned n = past ? m->past_channels : migration_operations(m)->channels(m);
        struct channel_record *records = calloc(n + 1, sizeof(*records));
        if (!records || (!past && add_up(m, n, records) < 0)) {
            free(records);
            return -ENOMEM;
        }
        if (past)
            memcpy(records, m->past, (n + 1) * sizeof(*records));
        /* What it was made of may have gone meanwhile. */
        if (past || !is_past(m)) {
            *channels = n;
            *out = records;
            return 0;
        }
        free(records);
        past = true;
    }
}

int migration_keep_records(struct migration *m, bool each)
{
    struct channel_record *records;
    unsigned n;

    if (migration_records(m, &n, &records) < 0)
        return -ENOMEM;
    if (!each) {
        struct channel_record *all = malloc(sizeof(*all));
        if (all)
            *all = records[n];
        free(records);
        if (!all)
            return -ENOMEM;
        records = all;
        n = 0;
    }
    SCOPED_LOCK(&m->lock);
    m->past = records;
    m->past_channels = n;
    return 0;
}

void migration_drop_devices(struct migration *m)
{
    for (uint32_t i = 1; i < m->file_count; i++) {
        pthread_mutex_lock(&m->lock);
        struct file *file = m->files[i];
        if (file && file->made_here)
            file = NULL;
        if (file)
            m->files[i] = NULL;
        pthread_mutex_unlock(&m->lock);
        file_put(file);
    }
}

struct file *migration_find_device(struct migration *m, const char *name)
{
    SCOPED_LOCK(&m->lock);
    struct file *file = migration_device(m, name);
    return file ? file_get(file) : NULL;
}

/* Called with the lock of the attributes held. */
static int own_storage(struct migration *m, struct file *file, const struct attributes *attributes,
                       struct error *err)
{
    return image_own(&file->image, attributes->uid, attributes->gid,
                     attributes_mode(&m->attributes, attributes, ATTRIBUTES_RAM_MODE), err);
}

int migration_change(struct migration *m, struct attributes *which, enum attribute_place directory,
                     unsigned what, const struct attributes *to, struct error *err)
{
    struct attribute_table *table = &m->attributes;
    SCOPED_LOCK(&table->lock);
    struct attributes changed = *which;
    struct file *ram = migration_file(m, WIRE_RAM);
    bool owns = what & (ATTRIBUTE_UID | ATTRIBUTE_GID | ATTRIBUTE_MODE);

    attributes_settle(&changed, &table->at[directory]);
    attributes_update(&changed, what, to);
    if (owns && which == &table->at[ATTRIBUTES_RAM] && ram->settled && own_storage(m, ram, &changed, err) < 0)
        return -EIO;
    *which = changed;
    return 0;
}

int migration_settle_file(struct migration *m, struct file *file, struct error *err)
{
    struct attribute_table *table = &m->attributes;
    SCOPED_LOCK(&table->lock);

    if (file->id != WIRE_RAM) {
        attributes_settle(&file->attributes, &table->at[ATTRIBUTES_DEVICE_STATE]);
        return 0;
    }
    attributes_settle(&table->at[ATTRIBUTES_RAM], &table->at[ATTRIBUTES_DIRECTORY]);
    attributes_settle(&table->at[ATTRIBUTES_RECEIVED], &table->at[ATTRIBUTES_DIRECTORY]);
    file->settled = true;
    return own_storage(m, file, &table->at[ATTRIBUTES_RAM], err);
}

void migration_add_file(struct migration *m, struct file *file)
{
    migration_add_file_at(m, file, m->file_count == 0 ? 0 : migration_free_slot(m));
}

void migration_add_file_at(struct migration *m, struct file *file, uint32_t slot)
{
    file->slot = slot;
    m->files[slot] = file;
    if (slot >= m->file_count)
        m->file_count = slot + 1;
}

uint32_t migration_free_slot(const struct migration *m)
{
    uint32_t slot = 1;

    while (slot < m->file_count && m->files[slot])
        slot++;
    return slot;
}

struct file *migration_remove_file(struct migration *m, struct file *file)
{
    atomic_store_explicit(&file->removed, true, memory_order_release);
    count_gone(file, m->gone);
    m->files[file->slot] = NULL;
    return file;
}

uint32_t migration_count_devices(const struct migration *m)
{
    uint32_t n = 0;

    for (uint32_t i = 1; i < m->file_count; i++)
        n += m->files[i] && !file_is_removed(m->files[i]);
    return n;
}

int migration_allows(struct migration *m, enum command command, struct error *err)
{
    if (m->role == ROLE_INCOMING)
        return error_set(err, CAUSE_READ_ONLY, "the migration is incoming: this is for the source to do");
    return state_allows(m->state, command, &m->failure, err);
}

void migration_become_outgoing(struct migration *m)
{
    if (m->role != ROLE_NONE)
        return;
    atomic_store_explicit(&m->role, ROLE_OUTGOING, memory_order_release);
    migration_expect_nothing(m);
}

void migration_become_incoming(struct migration *m, const struct role_operations *operations)
{
    atomic_store_explicit(&m->operations, operations, memory_order_release);
    atomic_store_explicit(&m->role, ROLE_INCOMING, memory_order_release);
}

void migration_expect_nothing(struct migration *m)
{
    for (uint32_t i = 0; i < m->file_count; i++) {
        if (m->files[i])
            file_receive_over(m->files[i], true);
    }
}

int migration_stop(struct migration *m, struct error *err)
{
    SCOPED_LOCK(&m->lock);
    if (migration_allows(m, COMMAND_STOP, err) < 0)
        return -EIO;
    m->stopped = true;
    m->times.switchover = clock_ms();
    return 0;
}

int migration_cancel(struct migration *m, struct error *err)
{
    struct error failure = {0};
    bool moved = false;

    error_set(&failure, CAUSE_CANCELLED, "cancelled at the %s",
              migration_is_incoming(m) ? "destination" : "source");
    pthread_mutex_lock(&m->lock);
    int ret = state_allows(m->state, COMMAND_CANCEL, &m->failure, err);
    if (ret == 0 && migration_operations(m)->is_committing(m))
        ret = error_set(err, CAUSE_STATE, "too late to cancel: the destination has been told to complete");
    if (ret == 0)
        moved = state_is_running(m->state) && migration_move(m, STATE_CANCELLED, &failure);
    pthread_mutex_unlock(&m->lock);
    if (moved)
        ended(m, STATE_CANCELLED, &failure);
    return ret;
}

int migration_begin_digests(struct migration *m, const struct interrupt *interrupt, struct error *err)
{
    SCOPED_LOCK(&m->lock);
    while (m->digesting && !interrupt_is_hit(interrupt))
        pthread_cond_wait(&m->changed, &m->lock);
    /* Those that wait would take theirs one after the other while the daemon is to end. */
    if (atomic_load(&m->host->closed))
        return error_set(err, CAUSE_SHUTDOWN, "the daemon is going away");
    if (m->digesting)
        return error_set(err, CAUSE_INTERRUPTED, "interrupted");
    m->digesting = true;
    return 0;
}

void migration_end_digests(struct migration *m)
{
    SCOPED_LOCK(&m->lock);
    m->digesting = false;
    pthread_cond_broadcast(&m->changed);
}

int migration_change_settings(struct migration *m, enum setting_life life,
                              int (*change)(struct settings *settings, void *arg, struct error *err),
                              void *arg, const struct interrupt *interrupt, struct error *err)
{
    pthread_mutex_lock(&m->lock);
    /* While it connects, the thread of `start` reads them. */
    bool runs = m->state == STATE_ACTIVE || m->state == STATE_COMPLETING;
    bool live = runs && ((m->role == ROLE_OUTGOING && life & SETTING_LIVE_OUTGOING) ||
                         (m->role == ROLE_INCOMING && life & SETTING_LIVE_INCOMING));
    int ret = live ? 0 : migration_operations(m)->may_change_settings(m, interrupt, err);
    if (ret == 0)
        ret = change(&m->settings, arg, err);
    if (ret == 0 && m->settings.uris.count)
        migration_become_outgoing(m);
    if (ret == 0 && live)
        migration_operations(m)->settings_changed(m);
    pthread_mutex_unlock(&m->lock);
    if (ret == 0)
        migration_announce(m);
    return ret;
}

void migration_settings(struct migration *m, struct settings *out)
{
    SCOPED_LOCK(&m->lock);
    *out = m->settings;
}

void migration_last_error(struct migration *m, char out[ERROR_MESSAGE_MAX])
{
    SCOPED_LOCK(&m->lock);
    const struct error *shown = m->lost && m->pause_is_news ? &m->pause_reason : &m->last_error;
    memcpy(out, shown->message, sizeof(shown->message));
}

uint64_t migration_generation(struct migration *m)
{
    SCOPED_LOCK(&m->lock);
    return m->generation;
}

enum cause migration_read_cause(struct migration *m)
{
    SCOPED_LOCK(&m->lock);
    switch (atomic_load_explicit(&m->role, memory_order_relaxed)) {
    case ROLE_OUTGOING:
        return CAUSE_UNSUPPORTED;
    case ROLE_NONE: /* it was removed, or the daemon goes away */
        return m->removed ? CAUSE_CANCELLED : CAUSE_SHUTDOWN;
    default:
        return error_is_set(&m->failure) ? m->failure.cause : CAUSE_RESET;
    }
}

/* The part that is of one moment. */
static enum role copy_state(struct migration *m, struct migration_snapshot *out)
{
    SCOPED_LOCK(&m->lock);
    *out = (struct migration_snapshot){
        .state = m->state,
        .paused = m->lost > 0,
        .pause_reason = m->pause_reason,
        .pauses = m->pauses,
        .paused_ms = (uint64_t)(m->paused_ms + (m->lost ? clock_ms() - m->paused_since : 0)),
        .role = role_names[m->role],
        .incoming = m->role == ROLE_INCOMING,
        .times = m->times,
        .settings = m->settings,
        .failure = m->failure,
        .generation = m->generation,
        .rounds = m->rounds,
        .round = m->last_round,
        .precopy = m->precopy,
        .devices = migration_count_devices(m),
    };
    strcpy(out->warning, m->warning);
    return m->role;
}

int migration_take_snapshot(struct migration *m, struct migration_snapshot *out)
{
    for (;;) {
        enum role role = copy_state(m, out);
        /* After the state, so that a final state has the final sums. */
        if (migration_records(m, &out->channels, &out->records) < 0)
            return -ENOMEM;
        migration_operations(m)->figures(m, &out->figures);
        if (m->role == role)
            return 0;
        migration_drop_snapshot(out); /* a peer has come meanwhile */
    }
}

void migration_drop_snapshot(struct migration_snapshot *snapshot)
{
    free(snapshot->records);
}
