/* SPDX-License-Identifier: Apache-2.0 */
/* The migrations of one daemon; see host.h. */
#include "host.h"
#include "cleanup.h"
#include "incoming.h"
#include "log.h"
#include "name.h"
#include "outgoing.h"

#include <errno.h>
#include <string.h>
#include <time.h>

void host_init(struct host *host, const struct limits *limits, void (*changed)(struct migration *m))
{
    *host = (struct host){.limits = *limits, .budget.limit = limits->max_memory, .changed = changed};
    host->created = time(NULL);
    pthread_mutex_init(&host->lock, NULL);
    pthread_cond_init(&host->gone, NULL);
}

void host_fini(struct host *host)
{
    pthread_cond_destroy(&host->gone);
    pthread_mutex_destroy(&host->lock);
}

/* Called with host->lock held. */
static struct migration *find(struct host *host, const char *name)
{
    struct migration *m = host->first;

    while (m && strcmp(m->name, name))
        m = m->next;
    return m;
}

struct migration *host_find(struct host *host, const char *name)
{
    SCOPED_LOCK(&host->lock);
    struct migration *m = find(host, name);
    return m && m->visible ? migration_get(m) : NULL;
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
    return true;
}

/* The incoming migration that has been failed or cancelled for the longest time, or NULL. Called with host->lock held. */
static struct migration *oldest_failed(struct host *host)
{
    struct migration *oldest = NULL;

    for (struct migration *m = host->first; m; m = m->next) {
        enum state state = m->state;
        if (m->role == ROLE_INCOMING && (state == STATE_FAILED || state == STATE_CANCELLED))
            oldest = m;
    }
    return oldest;
}

/*
 * Puts a new migration into the list, which takes a reference.
 * @replaced: a failed or cancelled one that made way, because it has the name or
 * because the list is full; the caller drops its reference.
 */
static int enlist(struct host *host, struct migration *m, bool visible, struct migration **replaced,
                  struct error *err)
{
    SCOPED_LOCK(&host->lock);
    struct migration *old = find(host, m->name);

    if (host->closed)
        return error_set(err, CAUSE_SHUTDOWN, "the daemon is going away");
    if (old) {
        enum state state = old->state;
        if (m->role != ROLE_INCOMING || old->role != ROLE_INCOMING || !state_is_final(state) ||
            state == STATE_COMPLETED)
            return error_set(err, CAUSE_EXISTS, "a migration '%.64s' exists already: it is %s", m->name,
                             state_names[state]);
        unlist(host, old);
        *replaced = old;
    }
    if (host->count >= host->limits.max_migrations && m->role == ROLE_INCOMING && oldest_failed(host)) {
        *replaced = oldest_failed(host);
        unlist(host, *replaced);
    }
    if (host->count >= host->limits.max_migrations)
        return error_set(err, CAUSE_QUOTA, "there are %u migrations already, and no more are allowed", host->count);
    m->next = host->first;
    host->first = migration_get(m);
    host->count++;
    m->listed = true;
    m->visible = visible;
    return 0;
}

int host_add_outgoing(struct host *host, const char *name, uid_t uid, gid_t gid, struct migration **out,
                      struct error *err)
{
    struct migration *m;

    if (name_check_migration(name, err) < 0)
        return -EIO;
    m = migration_new(host, ROLE_NONE, name, WIRE_DEVICES_MAX);
    if (!m)
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    m->uid = uid;
    m->gid = gid;
    struct file *ram = file_new(WIRE_RAM, "ram");
    m->out = outgoing_new(m);
    if (!ram || !m->out) {
        file_free(ram, false);
        migration_put(m);
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    }
    migration_add_file(m, ram);
    if (enlist(host, m, true, NULL, err) < 0) {
        migration_put(m);
        return -EIO;
    }
    *out = m;
    return 0;
}

int host_add_incoming(struct host *host, const struct hello *hello, struct migration **out, struct error *err)
{
    struct migration *m, *replaced = NULL;

    if (name_check_migration(hello->name, err) < 0)
        return -EIO;
    m = migration_new(host, ROLE_INCOMING, hello->name, host->limits.max_devices);
    if (!m)
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    m->uid = getuid();
    m->gid = getgid();
    memcpy(m->session_id, hello->session, sizeof(m->session_id));
    m->settings.channels = hello->channels;
    m->settings.device_channels = hello->device_channels;
    m->settings.checksum = hello->features & WIRE_FEATURE_CHECKSUM;
    m->settings.compress = hello->features & WIRE_FEATURE_ZSTD;
    m->in = incoming_new(m);
    if (!m->in) {
        migration_put(m);
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    }
    if (enlist(host, m, false, &replaced, err) < 0) {
        migration_put(m);
        return -EIO;
    }
    if (replaced) {
        log_info("%s: %s, makes way for a new migration", replaced->name, state_names[replaced->state]);
        incoming_release(replaced);
        migration_put(replaced);
    }
    *out = m;
    return 0;
}

struct migration *host_find_session(struct host *host, const char *name, const uint8_t session[16])
{
    SCOPED_LOCK(&host->lock);
    struct migration *m = find(host, name);

    if (!m || m->role != ROLE_INCOMING || memcmp(m->session_id, session, 16))
        return NULL;
    return migration_get(m);
}

int host_remove(struct host *host, struct migration *m, struct error *err)
{
    pthread_mutex_lock(&host->lock);
    pthread_mutex_lock(&m->lock);
    enum state state = m->state;
    bool running = state_is_running(state);
    m->removed = m->removed || !running;
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->lock);
    bool removed = !running && unlist(host, m);
    pthread_mutex_unlock(&host->lock);
    if (running)
        return error_set(err, CAUSE_STATE, "the migration is %s: write 'cancel' to control first", state_names[state]);
    if (!removed)
        return error_set(err, CAUSE_NOT_FOUND, "the migration is gone already");
    if (migration_is_incoming(m))
        incoming_release(m);
    migration_announce(m);
    migration_put(m);
    return 0;
}

void host_show(struct host *host, struct migration *m)
{
    SCOPED_LOCK(&host->lock);
    m->visible = m->listed;
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

void host_drain(struct host *host)
{
    pthread_mutex_lock(&host->lock);
    while (host->first) {
        struct migration *m = host->first;
        unlist(host, m);
        pthread_mutex_unlock(&host->lock);
        migration_put(m);
        pthread_mutex_lock(&host->lock);
    }
    while (host->living)
        pthread_cond_wait(&host->gone, &host->lock);
    pthread_mutex_unlock(&host->lock);
}
