/* SPDX-License-Identifier: Apache-2.0 */
/* The migrations of one daemon; see host.h. */
#include "host.h"
#include "cleanup.h"
#include "clock.h"
#include "incoming.h"
#include "log.h"
#include "name.h"
#include "outgoing.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <time.h>

static void default_to(uint32_t *limit, uint32_t value)
{
    *limit = *limit ? *limit : value;
}

static void set_budgets(struct host *host)
{
    struct limits *limits = &host->limits;

    limits->max_peer_memory = limits->max_peer_memory ? limits->max_peer_memory : limits->max_memory;
    default_to(&limits->max_peer_migrations, limits->max_migrations);
    default_to(&limits->max_outgoing, UINT32_MAX);
    default_to(&limits->max_channels, UINT32_MAX);
    default_to(&limits->max_peer_channels, limits->max_channels);
    default_to(&limits->max_descriptors, UINT32_MAX);
    default_to(&limits->max_peer_descriptors, limits->max_descriptors);
    host->budget = (struct budget){.limit = limits->max_memory, .unit = "bytes in all (max-memory)"};
    host->channels = (struct budget){.limit = limits->max_channels, .unit = "channels in all (max-channels)"};
    host->descriptors = (struct budget){.limit = limits->max_descriptors,
                                        .unit = "descriptors in all (see the limit of open files)"};
}

void host_init(struct host *host, const struct limits *limits, void (*changed)(struct migration *m))
{
    *host = (struct host){.limits = *limits, .windows.limit = HOST_WINDOWS, .changed = changed};
    set_budgets(host);
    attribute_table_init(&host->attributes, &limits->owner);
    pthread_mutex_init(&host->accounts_lock, NULL);
    decompressor_pool_init(&host->decompressors);
    pthread_mutex_init(&host->lock, NULL);
    clock_cond_init(&host->gone);
}

void host_fini(struct host *host)
{
    attribute_table_fini(&host->attributes);
    assert(!host->accounts);
    decompressor_pool_fini(&host->decompressors);
    pthread_mutex_destroy(&host->accounts_lock);
    pthread_cond_destroy(&host->gone);
    pthread_mutex_destroy(&host->lock);
}

/*
 * The migration of a name that users see. Any number of others may be arriving under the name: the first
 * whose channels are all there takes it. Called with host->lock held.
 */
static struct migration *find(struct host *host, const char *name)
{
    struct migration *m = host->first;

    while (m && (!m->visible || strcmp(m->name, name)))
        m = m->next;
    return m;
}

struct migration *host_find(struct host *host, const char *name)
{
    SCOPED_LOCK(&host->lock);
    struct migration *m = find(host, name);
    return m ? migration_get(m) : NULL;
}

/* The migrations of the list, each with a reference; the caller frees the array. */
static int snapshot(struct host *host, bool hidden, struct migration ***out)
{
    SCOPED_LOCK(&host->lock);
    struct migration **list = calloc(host->count + 1, sizeof(struct migration *));
    int n = 0;

    if (!list)
        return -ENOMEM;
    for (struct migration *m = host->first; m; m = m->next) {
        if (m->visible || hidden)
            list[n++] = migration_get(m);
    }
    *out = list;
    return n;
}

int host_list(struct host *host, struct migration ***out)
{
    return snapshot(host, false, out);
}

/* Called with host->lock held. The list's reference goes with it. */
static bool unlist(struct host *host, struct migration *m)
{
    struct migration **p = &host->first;

    if (!m->listed)
        return false;
    while (*p != m)
        p = &(*p)->next;
    *p = m->next;
    m->listed = m->visible = false;
    host->count--;
    if (m->maker) {
        host->arrived--;
        m->maker->migrations--;
    }
    return true;
}

static bool has_failed(const struct migration *m)
{
    enum state state = m->state;

    return migration_is_incoming(m) && (state == STATE_FAILED || state == STATE_CANCELLED);
}

/* Whether it is over and nobody loses anything with it: nothing has arrived in it, and nobody looks at it. */
static bool is_worthless(struct migration *m)
{
    return migration_is_incoming(m) && m->state == STATE_COMPLETED && !m->opens && incoming_is_empty(m);
}

/*
 * The migration that makes way for one of a peer: the one that has been failed or cancelled for the
 * longest time, or else the oldest one of those that have completed with nothing in them; NULL: there
 * is none. Only those that peers have made. Called with host->lock held.
 * @account: one of this peer's; NULL: anybody's
 */
static struct migration *oldest_useless(struct host *host, const struct account *account)
{
    struct migration *failed = NULL, *worthless = NULL;

    for (struct migration *m = host->first; m; m = m->next) {
        if (!m->maker || (account && m->maker != account))
            continue;
        if (has_failed(m))
            failed = m;
        else if (is_worthless(m))
            worthless = m;
    }
    return failed ? failed : worthless;
}

/* Called with host->lock held. The list takes a reference. */
static void add_to_list(struct host *host, struct migration *m, bool visible)
{
    m->next = host->first;
    host->first = migration_get(m);
    host->count++;
    if (m->maker) {
        host->arrived++;
        m->maker->migrations++;
    }
    m->listed = true;
    m->visible = visible;
}

static int is_taken(const struct migration *m, struct error *err)
{
    enum state state = m->state;

    return error_set(err, CAUSE_EXISTS, "a migration '%.64s' exists already: it is %s", m->name, state_names[state]);
}

/* Takes a migration out of the list, for a new one; @gone is a list of those that have to go. */
static void make_way(struct host *host, struct migration *m, struct migration **gone)
{
    unlist(host, m);
    m->next = *gone;
    *gone = m;
}

/*
 * Makes room for one more migration of a peer: first in the peer's own share, which takes nothing from
 * others. Called with host->lock held.
 */
static int make_room(struct host *host, const struct account *account, struct migration **gone, struct error *err)
{
    const struct limits *limits = &host->limits;
    struct migration *m;

    while (account->migrations >= limits->max_peer_migrations && (m = oldest_useless(host, account)))
        make_way(host, m, gone);
    if (account->migrations >= limits->max_peer_migrations)
        return error_set(err, CAUSE_QUOTA, "there are %u migrations already of this peer, and no more are allowed (max-peer-migrations)",
                         account->migrations);
    while (host->arrived >= limits->max_migrations && (m = oldest_useless(host, NULL)))
        make_way(host, m, gone);
    if (host->arrived >= limits->max_migrations)
        return error_set(err, CAUSE_QUOTA, "there are %u migrations already, and no more are allowed (max-migrations)",
                         host->arrived);
    return 0;
}

/* No lock held. */
static void let_go(struct migration *gone)
{
    while (gone) {
        struct migration *next = gone->next;
        enum state state = gone->state;
        log_info("%s: %s, makes way for a new migration", gone->name, state_names[state]);
        incoming_release(gone);
        migration_put(gone);
        gone = next;
    }
}

/* A migration that is made here: with RAM, and without a role. */
static struct migration *make_here(struct host *host, const char *name, uid_t uid, gid_t gid)
{
    struct migration *m = migration_new(host, ROLE_NONE, name, 2 * WIRE_DEVICES_MAX); /* its own, and those that a peer makes */
    struct file *ram = file_new(WIRE_RAM, "ram");

    if (m)
        m->out = outgoing_new(m);
    if (!ram || !m || !m->out) {
        file_put(ram);
        migration_put(m);
        return NULL;
    }
    attribute_table_give(&m->attributes, uid, gid);
    migration_add_file(m, ram);
    return m;
}

int host_add_outgoing(struct host *host, const char *name, uid_t uid, gid_t gid, struct migration **out,
                      struct error *err)
{
    if (name_check_migration(name, err) < 0)
        return -EIO;
    struct migration *m = make_here(host, name, uid, gid);
    if (!m)
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    pthread_mutex_lock(&host->lock);
    struct migration *old = find(host, name);
    int ret = 0;
    if (host->closed)
        ret = error_set(err, CAUSE_SHUTDOWN, "the daemon is going away");
    else if (old)
        ret = is_taken(old, err);
    else if (host->count - host->arrived >= host->limits.max_outgoing)
        ret = error_set(err, CAUSE_QUOTA, "%u migrations have been made here already, and no more are allowed (max-outgoing)",
                        host->count - host->arrived);
    else
        add_to_list(host, m, true);
    pthread_mutex_unlock(&host->lock);
    if (ret < 0) {
        migration_put(m);
        return ret;
    }
    *out = m;
    return 0;
}

/*
 * What was prepared here was for a peer that has failed: the same once more, for the next peer. Its
 * devices are those that were made here. NULL when memory runs out.
 */
static struct migration *prepare_again(struct migration *old)
{
    struct migration *m = make_here(old->host, old->name, 0, 0);

    if (!m)
        return NULL;
    attribute_table_copy(&m->attributes, &old->attributes);
    m->settings.timeout_ms = old->settings.timeout_ms;
    m->files[WIRE_RAM]->declared = old->files[WIRE_RAM]->declared;
    m->files[WIRE_RAM]->size = old->files[WIRE_RAM]->declared;
    for (uint32_t i = 1; i < old->file_count; i++) {
        CLEANUP_FILE struct file *was = migration_get_file(old, i);
        struct file *file = was && was->made_here ? file_new(m->file_count, was->name) : NULL;
        if (!file)
            continue;
        file->made_here = true;
        file->attributes = attributes_get(&old->attributes, &was->attributes, ATTRIBUTES_DEVICE_STATE);
        migration_add_file(m, file);
    }
    SCOPED_LOCK(&old->lock);
    m->last_error = old->last_error;
    return m;
}

/* Whether a peer may come under a name, and what was prepared for it. Called with host->lock held. */
static int check_arrival(struct host *host, const struct migration *expected, const char *name, struct error *err)
{
    if (host->closed)
        return error_set(err, CAUSE_SHUTDOWN, "the daemon is going away");
    if (!expected && host->limits.expect)
        return error_set(err, CAUSE_DENIED, "nobody here expects a migration '%.64s': mkdir it first", name);
    if (expected && expected->role != ROLE_NONE)
        return is_taken(expected, err);
    return 0;
}

/*
 * Puts an arriving migration into the list.
 * @again: what takes the place of a failed one that was made here, or NULL
 * @gone: those that made way
 */
static int enlist_arriving(struct host *host, struct migration *m, struct migration *again, struct migration **gone,
                           struct error *err)
{
    SCOPED_LOCK(&host->lock);
    struct migration *old = find(host, m->name);
    bool stale = old && has_failed(old) && (again || !old->out);
    if (check_arrival(host, stale && !old->out ? NULL : stale ? again : old, m->name, err) < 0)
        return -EIO;
    if (stale)
        unlist(host, old);
    if (make_room(host, m->maker, gone, err) < 0) {
        /* It goes on saying why it has failed. */
        if (stale) {
            add_to_list(host, old, true);
            migration_put(old);
        }
        return -EIO;
    }
    if (stale) {
        old->next = *gone;
        *gone = old;
    }
    if (stale && again)
        add_to_list(host, again, true);
    add_to_list(host, m, false);
    old = find(host, m->name);
    if (old) {
        pthread_mutex_lock(&old->lock);
        m->settings.timeout_ms = old->settings.timeout_ms;
        incoming_limit_ram(m, old->files[WIRE_RAM]->declared);
        pthread_mutex_unlock(&old->lock);
    }
    return 0;
}

int host_add_incoming(struct host *host, const char *address, const struct hello *hello, struct migration **out,
                      struct error *err)
{
    struct migration *m, *again = NULL, *gone = NULL;

    if (name_check_migration(hello->name, err) < 0)
        return -EIO;
    m = migration_new(host, ROLE_INCOMING, hello->name, host->limits.max_devices);
    if (!m)
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    memcpy(m->session_id, hello->session, sizeof(m->session_id));
    m->settings.channels = hello->channels;
    m->settings.device_channels = hello->device_channels;
    m->settings.checksum = hello->features & WIRE_FEATURE_CHECKSUM;
    m->settings.compress = hello->features & WIRE_FEATURE_ZSTD;
    m->maker = account_get(host, address);
    m->in = m->maker ? incoming_new(m, m->maker, err) : NULL;
    if (!m->in) {
        migration_put(m);
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    }
    struct migration *old = host_find(host, hello->name);
    if (old && old->out && has_failed(old))
        again = prepare_again(old);
    int ret = enlist_arriving(host, m, again, &gone, err);
    migration_put(old);
    migration_put(again);
    let_go(gone);
    if (ret < 0) {
        migration_put(m);
        return ret;
    }
    *out = m;
    return 0;
}

/* Makes an arriving migration active. Called with host->lock held. */
static int activate(struct migration *m, struct error *err)
{
    SCOPED_LOCK(&m->lock);
    return migration_move(m, STATE_ACTIVE, NULL) ? 0 : error_set(err, CAUSE_CANCELLED, "cancelled");
}

/* Called with host->lock and the locks of both held. */
static int become(struct migration *expected, struct migration *arriving, struct error *err)
{
    struct error over = {0};

    error_set(&over, CAUSE_STATE, "a migration that was expected has taken its place");
    /* `uri` can be written at any time. */
    if (expected->role != ROLE_NONE)
        return is_taken(expected, err);
    if (!migration_move(arriving, STATE_CANCELLED, &over))
        return error_set(err, CAUSE_CANCELLED, "cancelled");
    expected->settings.channels = arriving->settings.channels;
    expected->settings.device_channels = arriving->settings.device_channels;
    expected->settings.checksum = arriving->settings.checksum;
    expected->settings.compress = arriving->settings.compress;
    memcpy(expected->session_id, arriving->session_id, sizeof(expected->session_id));
    incoming_hand_over(arriving, expected);
    migration_move(expected, STATE_SETUP, NULL);
    expected->times.started = arriving->times.started;
    atomic_store_explicit(&expected->role, ROLE_INCOMING, memory_order_release);
    migration_move(expected, STATE_ACTIVE, NULL);
    return 0;
}

/*
 * An expected migration becomes the one that is arriving, and takes all that belongs to it; nobody
 * but mig-in knows that one any more. Called with host->lock held.
 */
static int take_over(struct migration *expected, struct migration *arriving, struct error *err)
{
    pthread_mutex_lock(&arriving->lock);
    pthread_mutex_lock(&expected->lock);
    int ret = become(expected, arriving, err);
    pthread_mutex_unlock(&expected->lock);
    pthread_mutex_unlock(&arriving->lock);
    return ret;
}

int host_arrive(struct host *host, struct migration *m, struct migration **out, struct error *err)
{
    pthread_mutex_lock(&host->lock);
    struct migration *expected = find(host, m->name);
    bool takes_over = false;
    int ret = check_arrival(host, expected, m->name, err);

    if (ret == 0 && expected) {
        ret = take_over(expected, m, err);
        takes_over = ret == 0 && unlist(host, m);
    } else if (ret == 0) {
        ret = activate(m, err);
        m->visible = ret == 0 && m->listed;
    }
    if (ret == 0)
        *out = migration_get(expected ? expected : m);
    pthread_mutex_unlock(&host->lock);
    if (takes_over)
        migration_put(m);
    return ret;
}

void host_note_setback(struct host *host, const struct migration *m)
{
    struct migration *expected = host_find(host, m->name);

    if (expected && expected->role == ROLE_NONE)
        migration_note_error(expected, &m->failure);
    migration_put(expected);
}

struct migration *host_find_session(struct host *host, const char *name, const uint8_t session[16])
{
    SCOPED_LOCK(&host->lock);
    struct migration *m = host->first;

    while (m && (!migration_is_incoming(m) || strcmp(m->name, name) || memcmp(m->session_id, session, 16)))
        m = m->next;
    return m ? migration_get(m) : NULL;
}

static void end_waits(struct migration *m)
{
    SCOPED_LOCK(&m->lock);
    migration_expect_nothing(m);
}

int host_remove(struct host *host, struct migration *m, struct error *err)
{
    pthread_mutex_lock(&host->lock);
    pthread_mutex_lock(&m->lock);
    enum state state = m->state;
    bool running = state_is_running(state);
    m->removed = m->removed || !running;
    migration_tell(m);
    pthread_mutex_unlock(&m->lock);
    bool removed = !running && unlist(host, m);
    pthread_mutex_unlock(&host->lock);
    if (running)
        return error_set(err, CAUSE_STATE, "the migration is %s: write 'cancel' to control first", state_names[state]);
    if (!removed)
        return error_set(err, CAUSE_NOT_FOUND, "the migration is gone already");
    if (migration_is_incoming(m))
        incoming_release(m);
    else
        end_waits(m);
    migration_announce(m);
    migration_put(m);
    return 0;
}

void host_drop(struct host *host, struct migration *m)
{
    pthread_mutex_lock(&host->lock);
    bool removed = unlist(host, m);
    pthread_mutex_unlock(&host->lock);
    if (removed)
        migration_put(m);
}

void host_record(struct host *host, const uint8_t session[16], enum wire_outcome outcome)
{
    struct outcome_record *record = &host->history[host->history_next++ % HOST_HISTORY];

    memcpy(record->session, session, sizeof(record->session));
    record->outcome = outcome;
}

enum wire_outcome host_outcome(struct host *host, const uint8_t session[16])
{
    SCOPED_LOCK(&host->lock);
    for (unsigned i = 0; i < HOST_HISTORY; i++) {
        const struct outcome_record *record = &host->history[i];
        if (record->outcome != WIRE_OUTCOME_UNKNOWN && !memcmp(record->session, session, 16))
            return record->outcome;
    }
    return WIRE_OUTCOME_UNKNOWN;
}

void host_note_error(struct host *host, const char *message)
{
    log_error("%s", message);
    SCOPED_LOCK(&host->lock);
    strncpy(host->last_error, message, sizeof(host->last_error) - 1);
}

void host_shutdown(struct host *host)
{
    struct migration **list;

    pthread_mutex_lock(&host->lock);
    host->closed = true;
    pthread_mutex_unlock(&host->lock);
    int n = snapshot(host, true, &list);
    for (int i = 0; i < n; i++) {
        migration_shut_down(list[i]);
        migration_put(list[i]);
    }
    if (n >= 0)
        free(list);
}

bool host_drain(struct host *host, int64_t timeout_ms)
{
    struct timespec until = clock_timespec((clock_ms() + timeout_ms) * 1000000);
    int ret = 0;

    pthread_mutex_lock(&host->lock);
    while (host->first) {
        struct migration *m = host->first;
        unlist(host, m);
        pthread_mutex_unlock(&host->lock);
        migration_put(m);
        pthread_mutex_lock(&host->lock);
    }
    while (host->living && ret == 0)
        ret = timeout_ms == HOST_FOREVER ? pthread_cond_wait(&host->gone, &host->lock)
                                         : pthread_cond_timedwait(&host->gone, &host->lock, &until);
    bool drained = !host->living;
    pthread_mutex_unlock(&host->lock);
    return drained;
}
