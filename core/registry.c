/* SPDX-License-Identifier: Apache-2.0 */
/* The migrations of one daemon; see registry.h. */
#include "registry.h"
#include "cleanup.h"
#include "incoming.h"
#include "log.h"
#include "name.h"
#include "outgoing.h"
#include "shown.h"

#include <errno.h>
#include <string.h>

void registry_init(struct registry *registry, const struct limits *limits,
                   void (*changed)(struct migration *m))
{
    *registry = (struct registry){0};
    host_init(&registry->host, limits, changed);
    pthread_mutex_init(&registry->lock, NULL);
}

void registry_fini(struct registry *registry)
{
    pthread_mutex_destroy(&registry->lock);
    host_fini(&registry->host);
}

/*
 * The migration of a name that users see. Any number of others may be arriving under the name: the first
 * whose channels are all there takes it. Called with registry->lock held.
 */
static struct migration *find(struct registry *registry, const char *name)
{
    struct migration *m = registry->first;

    while (m && (!m->visible || strcmp(m->name, name)))
        m = m->next;
    return m;
}

struct migration *registry_find(struct registry *registry, const char *name)
{
    SCOPED_LOCK(&registry->lock);
    struct migration *m = find(registry, name);
    return m ? migration_get(m) : NULL;
}

/* The migrations of the list, each with a reference; the caller frees the array. */
static int snapshot(struct registry *registry, bool hidden, struct migration ***out)
{
    SCOPED_LOCK(&registry->lock);
    struct migration **list = calloc(registry->count + 1, sizeof(struct migration *));
    int n = 0;

    if (!list)
        return -ENOMEM;
    for (struct migration *m = registry->first; m; m = m->next) {
        if (m->visible || hidden)
            list[n++] = migration_get(m);
    }
    *out = list;
    return n;
}

int registry_list(struct registry *registry, struct migration ***out)
{
    return snapshot(registry, false, out);
}

/* Called with registry->lock held. The list's reference goes with it. */
static bool unlist(struct registry *registry, struct migration *m)
{
    struct migration **p = &registry->first;

    if (!m->listed)
        return false;
    while (*p != m)
        p = &(*p)->next;
    *p = m->next;
    m->listed = m->visible = false;
    registry->count--;
    if (m->maker) {
        registry->arrived--;
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
    return migration_is_incoming(m) && m->state == STATE_COMPLETED && !m->opens && shown_is_empty(m);
}

/*
 * The migration that makes way for one of a peer: the one that has been failed or cancelled for the
 * longest time, or else the oldest one of those that have completed with nothing in them; NULL: there
 * is none. Only those that peers have made. Called with registry->lock held.
 * @account: one of this peer's; NULL: anybody's
 */
static struct migration *oldest_useless(struct registry *registry, const struct account *account)
{
    struct migration *failed = NULL, *worthless = NULL;

    for (struct migration *m = registry->first; m; m = m->next) {
        if (!m->maker || (account && m->maker != account))
            continue;
        if (has_failed(m))
            failed = m;
        else if (is_worthless(m))
            worthless = m;
    }
    return failed ? failed : worthless;
}

/* Called with registry->lock held. The list takes a reference. */
static void add_to_list(struct registry *registry, struct migration *m, bool visible)
{
    m->next = registry->first;
    registry->first = migration_get(m);
    registry->count++;
    if (m->maker) {
        registry->arrived++;
        m->maker->migrations++;
    }
    m->listed = true;
    m->visible = visible;
}

static int is_taken(const struct migration *m, bool is_paused, struct error *err)
{
    enum state state = m->state;

    return error_set(err, CAUSE_EXISTS, "a migration '%.64s' exists already: it is %s", m->name,
                     is_paused ? "paused" : state_names[state]);
}

/* Takes a migration out of the list, for a new one; @gone is a list of those that have to go. */
static void make_way(struct registry *registry, struct migration *m, struct migration **gone)
{
    unlist(registry, m);
    m->next = *gone;
    *gone = m;
}

/*
 * Makes room for one more migration of a peer: first in the peer's own share, which takes nothing from
 * others. Called with registry->lock held.
 */
static int make_room(struct registry *registry, const struct account *account, struct migration **gone,
                     struct error *err)
{
    const struct limits *limits = &registry->host.limits;
    struct migration *m;

    while (account->migrations >= limits->max_peer_migrations && (m = oldest_useless(registry, account)))
        make_way(registry, m, gone);
    if (account->migrations >= limits->max_peer_migrations)
        return error_set(
            err, CAUSE_QUOTA,
            "there are %u migrations already of this peer, and no more are allowed (max-peer-migrations)",
            account->migrations);
    while (registry->arrived >= limits->max_migrations && (m = oldest_useless(registry, NULL)))
        make_way(registry, m, gone);
    if (registry->arrived >= limits->max_migrations)
        return error_set(err, CAUSE_QUOTA,
                         "there are %u migrations already, and no more are allowed (max-migrations)",
                         registry->arrived);
    return 0;
}

/* No lock held. */
static void let_go(struct migration *gone)
{
    while (gone) {
        struct migration *next = gone->next;
        enum state state = gone->state;
        log_info("%s: %s, makes way for a new migration", gone->name, state_names[state]);
        shown_release(gone);
        migration_put(gone);
        gone = next;
    }
}

/* A migration that is made here: with RAM, and without a role. */
static struct migration *make_here(struct registry *registry, const char *name, uid_t uid, gid_t gid)
{
    struct migration *m = migration_new(&registry->host, ROLE_NONE, &outgoing_operations, name,
                                        2 * WIRE_DEVICES_MAX); /* its own, and those that a peer makes */
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

int registry_add_outgoing(struct registry *registry, const char *name, uid_t uid, gid_t gid,
                          struct migration **out, struct error *err)
{
    if (name_check_migration(name, err) < 0)
        return -EIO;
    struct migration *m = make_here(registry, name, uid, gid);
    if (!m)
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    pthread_mutex_lock(&registry->lock);
    struct migration *old = find(registry, name);
    int ret = 0;
    if (registry->host.closed)
        ret = error_set(err, CAUSE_SHUTDOWN, "the daemon is going away");
    else if (old)
        ret = is_taken(old, migration_is_paused(old), err);
    else if (registry->count - registry->arrived >= registry->host.limits.max_outgoing)
        ret = error_set(err, CAUSE_QUOTA,
                        "%u migrations have been made here already, and no more are allowed (max-outgoing)",
                        registry->count - registry->arrived);
    else
        add_to_list(registry, m, true);
    pthread_mutex_unlock(&registry->lock);
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
static struct migration *expect_again(struct registry *registry, struct migration *old)
{
    struct migration *m = make_here(registry, old->name, 0, 0);

    if (!m)
        return NULL;
    attribute_table_copy(&m->attributes, &old->attributes);
    m->settings.timeout_ms = old->settings.timeout_ms;
    m->settings.max_bandwidth = old->settings.max_bandwidth;
    m->settings.weight = old->settings.weight;
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

/* Whether a peer may come under a name, and what was prepared for it. Called with registry->lock held. */
static int check_arrival(struct registry *registry, struct migration *expected, const char *name,
                         struct error *err)
{
    if (registry->host.closed)
        return error_set(err, CAUSE_SHUTDOWN, "the daemon is going away");
    if (!expected && registry->host.limits.expect)
        return error_set(err, CAUSE_DENIED, "nobody here expects a migration '%.64s': mkdir it first", name);
    if (expected && expected->role != ROLE_NONE)
        return is_taken(expected, migration_is_paused(expected), err);
    return 0;
}

/*
 * Puts an arriving migration into the list.
 * @again: what takes the place of a failed one that was made here, or NULL
 * @gone: those that made way
 */
static int enlist_arriving(struct registry *registry, struct migration *m, struct migration *again,
                           struct migration **gone, struct error *err)
{
    SCOPED_LOCK(&registry->lock);
    struct migration *old = find(registry, m->name);
    bool stale = old && has_failed(old) && (again || !old->out);
    if (check_arrival(registry, stale && !old->out ? NULL : stale ? again : old, m->name, err) < 0)
        return -EIO;
    if (stale)
        unlist(registry, old);
    if (make_room(registry, m->maker, gone, err) < 0) {
        /* It goes on saying why it has failed. */
        if (stale) {
            add_to_list(registry, old, true);
            migration_put(old);
        }
        return -EIO;
    }
    if (stale) {
        old->next = *gone;
        *gone = old;
    }
    if (stale && again)
        add_to_list(registry, again, true);
    add_to_list(registry, m, false);
    old = find(registry, m->name);
    if (old) {
        pthread_mutex_lock(&old->lock);
        m->settings.timeout_ms = old->settings.timeout_ms;
        incoming_limit_ram(m, old->files[WIRE_RAM]->declared);
        pthread_mutex_unlock(&old->lock);
    }
    return 0;
}

static int on_arrival(void *registry, struct migration *m, struct migration **out, struct error *err)
{
    return registry_arrive(registry, m, out, err);
}

/* An arriving migration has failed: whoever expects it sees why. */
static void on_setback(void *registry, struct migration *m)
{
    registry_drop(registry, m);
    struct migration *expected = registry_find(registry, m->name);

    if (expected && expected->role == ROLE_NONE)
        migration_note_error(expected, &m->failure);
    migration_put(expected);
}

static const struct incoming_owner_operations owner_operations = {.arrive = on_arrival, .forget = on_setback};

int registry_add_incoming(struct registry *registry, const char *address, const struct hello *hello,
                          struct migration **out, struct error *err)
{
    struct migration *m, *again = NULL, *gone = NULL;

    if (name_check_migration(hello->name, err) < 0)
        return -EIO;
    m = migration_new(&registry->host, ROLE_INCOMING, &incoming_operations, hello->name,
                      registry->host.limits.max_devices);
    if (!m)
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    memcpy(m->session_id, hello->session, sizeof(m->session_id));
    m->settings.channels = hello->channels;
    m->settings.device_channels = hello->device_channels;
    m->settings.checksum = hello->features & WIRE_FEATURE_CHECKSUM;
    m->settings.compress = hello->features & WIRE_FEATURE_ZSTD;
    m->settings.resume_ms = hello->resume_ms;
    m->maker = account_get(&registry->host.accounts, address);
    m->in = m->maker ? incoming_new(m, m->maker, &owner_operations, registry, err) : NULL;
    if (!m->in) {
        migration_put(m);
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    }
    struct migration *old = registry_find(registry, hello->name);
    if (old && old->out && has_failed(old))
        again = expect_again(registry, old);
    int ret = enlist_arriving(registry, m, again, &gone, err);
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

/* Makes an arriving migration active. Called with registry->lock held. */
static int activate(struct migration *m, struct error *err)
{
    SCOPED_LOCK(&m->lock);
    return migration_move(m, STATE_ACTIVE, NULL) ? 0 : error_set(err, CAUSE_CANCELLED, "cancelled");
}

/* Called with registry->lock and the locks of both held. */
static int become(struct migration *expected, struct migration *arriving, struct error *err)
{
    struct error over = {0};

    error_set(&over, CAUSE_STATE, "a migration that was expected has taken its place");
    /* `uri` can be written at any time. */
    if (expected->role != ROLE_NONE)
        return is_taken(expected, expected->lost > 0, err);
    if (!migration_move(arriving, STATE_CANCELLED, &over))
        return error_set(err, CAUSE_CANCELLED, "cancelled");
    expected->settings.channels = arriving->settings.channels;
    expected->settings.device_channels = arriving->settings.device_channels;
    expected->settings.checksum = arriving->settings.checksum;
    expected->settings.compress = arriving->settings.compress;
    expected->settings.resume_ms = arriving->settings.resume_ms;
    memcpy(expected->session_id, arriving->session_id, sizeof(expected->session_id));
    expected->peer = arriving->peer;
    incoming_hand_over(arriving, expected);
    migration_move(expected, STATE_SETUP, NULL);
    expected->times.started = arriving->times.started;
    migration_become_incoming(expected, &incoming_operations);
    migration_move(expected, STATE_ACTIVE, NULL);
    return 0;
}

/*
 * An expected migration becomes the one that is arriving, and takes all that belongs to it; nobody
 * but mig-in knows that one any more. Called with registry->lock held.
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

int registry_arrive(struct registry *registry, struct migration *m, struct migration **out, struct error *err)
{
    pthread_mutex_lock(&registry->lock);
    struct migration *expected = find(registry, m->name);
    bool takes_over = false;
    int ret = check_arrival(registry, expected, m->name, err);

    if (ret == 0 && expected) {
        ret = take_over(expected, m, err);
        takes_over = ret == 0 && unlist(registry, m);
    } else if (ret == 0) {
        ret = activate(m, err);
        m->visible = ret == 0 && m->listed;
    }
    if (ret == 0)
        *out = migration_get(expected ? expected : m);
    pthread_mutex_unlock(&registry->lock);
    if (takes_over)
        migration_put(m);
    return ret;
}

struct migration *registry_find_session(struct registry *registry, const char *name,
                                        const uint8_t session[16], const uint8_t peer[32])
{
    SCOPED_LOCK(&registry->lock);
    struct migration *m = registry->first;

    while (m && (!migration_is_incoming(m) || strcmp(m->name, name) || memcmp(m->session_id, session, 16) ||
                 (peer && memcmp(m->peer.digest, peer, 32))))
        m = m->next;
    return m ? migration_get(m) : NULL;
}

int registry_remove(struct registry *registry, struct migration *m, struct error *err)
{
    pthread_mutex_lock(&registry->lock);
    pthread_mutex_lock(&m->lock);
    enum state state = m->state;
    bool running = state_is_running(state), is_paused = m->lost > 0;
    m->removed = m->removed || !running;
    migration_tell(m);
    pthread_mutex_unlock(&m->lock);
    bool removed = !running && unlist(registry, m);
    pthread_mutex_unlock(&registry->lock);
    if (running)
        return error_set(err, CAUSE_STATE, "the migration is %s: write 'cancel' to control first",
                         is_paused ? "paused" : state_names[state]);
    if (!removed)
        return error_set(err, CAUSE_NOT_FOUND, "the migration is gone already");
    migration_operations(m)->release(m);
    migration_announce(m);
    migration_put(m);
    return 0;
}

void registry_drop(struct registry *registry, struct migration *m)
{
    pthread_mutex_lock(&registry->lock);
    bool removed = unlist(registry, m);
    pthread_mutex_unlock(&registry->lock);
    if (removed)
        migration_put(m);
}

void registry_shutdown(struct registry *registry)
{
    struct migration **list;

    host_close(&registry->host);
    int n = snapshot(registry, true, &list);
    for (int i = 0; i < n; i++) {
        migration_shut_down(list[i]);
        migration_put(list[i]);
    }
    if (n >= 0)
        free(list);
}

bool registry_drain(struct registry *registry, int64_t timeout_ms)
{
    pthread_mutex_lock(&registry->lock);
    while (registry->first) {
        struct migration *m = registry->first;
        unlist(registry, m);
        pthread_mutex_unlock(&registry->lock);
        migration_put(m);
        pthread_mutex_lock(&registry->lock);
    }
    pthread_mutex_unlock(&registry->lock);
    return host_await_unused(&registry->host, timeout_ms);
}
