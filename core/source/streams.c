/* SPDX-License-Identifier: Apache-2.0 */
/* The devices of the source; see streams.h. */
#include "streams.h"
#include "cleanup.h"
#include "name.h"

#include <errno.h>
#include <string.h>

void streams_init(struct streams *streams, struct source *source)
{
    *streams = (struct streams){.source = source};
}

void streams_forget(struct streams *streams)
{
    streams->changes = 0;
    streams->last_change = streams->last_made = 0;
    memset(&streams->announced, 0, sizeof(streams->announced));
}

void streams_fini(struct streams *streams)
{
    file_put(streams->announced.file);
}

void streams_number(struct streams *streams)
{
    struct migration *m = streams->source->m;
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

/*
 * Announcing
 */

/* Tells the destination of a file. The caller holds migration.lock, and no other announcement is open. */
static void announce(struct streams *streams, struct connection *conn, struct file *file, bool made)
{
    uint8_t buf[16 + WIRE_NAME_MAX];
    struct wire_writer body = wire_writer_of(buf, sizeof(buf));
    char name[WIRE_NAME_SIZE];

    wire_write_u32(&body, file->id);
    wire_write_u64(&body, atomic_load(&file->size));
    wire_write_text(&body, file_name(file, name));
    streams->announced.file = file_get(file);
    streams->announced.made = made;
    session_send(&conn->main, WIRE_FILE_CREATE, 0, buf, wire_written(&body));
}

void streams_announce(struct streams *streams, struct connection *conn, struct file *file)
{
    SCOPED_LOCK(&streams->source->m->lock);
    announce(streams, conn, file, false);
}

bool streams_is_answered(const struct streams *streams)
{
    return streams->announced.there;
}

void streams_forget_answer(struct streams *streams)
{
    file_put(streams->announced.file);
    memset(&streams->announced, 0, sizeof(streams->announced));
    pthread_cond_broadcast(&streams->source->m->changed);
}

int streams_take_answer(struct streams *streams, struct error *err)
{
    if (error_is_set(&streams->announced.refusal))
        *err = streams->announced.refusal;
    streams_forget_answer(streams);
    return error_is_set(err) ? -EIO : 0;
}

/*
 * Waits for the answer about a new device, which makes it the migration's. A thread that is
 * interrupted leaves the device to the answer. The stall watch bounds the wait. The caller
 * holds migration.lock.
 */
static int await_answer(struct streams *streams, struct file *file, const struct interrupt *interrupt,
                        struct error *err)
{
    struct migration *m = streams->source->m;

    while (!streams->announced.there && m->state == STATE_ACTIVE && !interrupt_is_hit(interrupt))
        pthread_cond_wait(&m->changed, &m->lock);
    if (streams->announced.there)
        return streams_take_answer(streams, err);
    if (m->state == STATE_ACTIVE) {
        streams->announced.abandoned = true;
        return error_set(err, CAUSE_INTERRUPTED,
                         "interrupted: the destination decides whether '%.64s' exists", file->name);
    }
    streams_forget_answer(streams);
    return migration_allows(m, COMMAND_WRITE, err);
}

int streams_await_turn(struct streams *streams, const struct interrupt *interrupt, struct error *err)
{
    struct migration *m = streams->source->m;

    while (m->state == STATE_ACTIVE && streams->announced.file) {
        if (interrupt_is_hit(interrupt))
            return error_set(err, CAUSE_INTERRUPTED, "interrupted");
        pthread_cond_wait(&m->changed, &m->lock);
    }
    return 0;
}

int streams_on_reply(struct streams *streams, struct wire_reader *body, struct error *err)
{
    struct migration *m = streams->source->m;
    uint32_t id = wire_read_u32(body);
    uint32_t cause = wire_read_u32(body);
    char text[WIRE_TEXT_SIZE];

    wire_read_text(body, text, WIRE_TEXT_MAX);
    SCOPED_LOCK(&m->lock);
    struct file *file = streams->announced.file;
    if (!wire_read_done(body) || !file || streams->announced.there || id != file->id)
        return error_set(err, CAUSE_PROTOCOL, "an answer about a file that nobody asked for");
    if (cause != CAUSE_NONE)
        session_read_reason(cause, text, "the destination refuses", &streams->announced.refusal);
    streams->announced.there = true;
    if (cause == CAUSE_NONE) {
        file->announced_open = true;
        if (streams->announced.made)
            migration_add_file_at(m, file_get(file), id);
    }
    if (streams->announced.abandoned)
        streams_forget_answer(streams);
    pthread_cond_broadcast(&m->changed);
    return 0;
}

/*
 * Creating
 */

/*
 * Finds the device of a name, or waits until one may be made: for the turn, and for a number.
 * One that was removed has its number until the destination has removed it, too. The caller
 * holds migration.lock.
 */
static int await_place(struct streams *streams, const char *name, const struct interrupt *interrupt,
                       struct file **file, uint32_t *id, struct error *err)
{
    struct migration *m = streams->source->m;

    for (;;) {
        *file = migration_device(m, name);
        if (*file)
            return 0;
        bool local = source_is_unstarted(streams->source);
        bool turn = m->state != STATE_ACTIVE || !streams->announced.file;
        if (!local && migration_allows(m, COMMAND_WRITE, err) < 0)
            return -EIO;
        uint32_t max = local ? WIRE_DEVICES_MAX : source_connection(streams->source)->limits.max_devices;
        uint32_t devices = migration_count_devices(m);
        *id = migration_free_slot(m);
        if (turn && *id <= max && *id <= WIRE_DEVICES_MAX)
            return 0;
        if (turn && (devices >= max || devices >= WIRE_DEVICES_MAX))
            return error_set(err, CAUSE_QUOTA, "there are %u devices already, and no more are allowed",
                             devices);
        if (interrupt_is_hit(interrupt))
            return error_set(err, CAUSE_INTERRUPTED, "interrupted");
        pthread_cond_wait(&m->changed, &m->lock);
    }
}

/* A new device of a number. @conn: NULL before the start */
static struct file *new_device(const struct connection *conn, uint32_t id, const char *name,
                               struct error *err)
{
    struct file *file = file_new(id, name);

    if (file && conn && file_set_channels(file, conn->channel_count, conn->hello.device_channels) < 0) {
        file_put(file);
        file = NULL;
    }
    if (!file)
        error_set(err, CAUSE_NO_MEMORY, "out of memory");
    return file;
}

int streams_create(struct streams *streams, const char *name, bool exclusive,
                   const struct interrupt *interrupt, struct file **out_file, struct error *err)
{
    struct source *source = streams->source;
    struct migration *m = source->m;
    struct file *file;
    uint32_t id;

    if (name_check_device(name, err) < 0)
        return -EIO;
    SCOPED_LOCK(&m->lock);
    if (source_await_starter(source, interrupt, err) < 0) /* before what it may need */
        return -EIO;
    if (await_place(streams, name, interrupt, &file, &id, err) < 0)
        return -EIO;
    if (file) {
        if (exclusive)
            return error_set(err, CAUSE_EXISTS, "the device '%.64s' exists already", name);
        *out_file = file_get(file);
        return 0;
    }
    struct connection *conn = source_is_unstarted(source) ? NULL : source_connection(source);
    file = new_device(conn, id, name, err);
    if (!file)
        return -EIO;
    if (conn) {
        announce(streams, conn, file, true);
        if (await_answer(streams, file, interrupt, err) < 0) {
            file_put(file);
            return -EIO;
        }
    } else {
        file->made_here = true;
        migration_add_file(m, file_get(file));
    }
    *out_file = file;
    return 0;
}

/*
 * Removing and renaming
 */

/* What is to be changed: at least one of them. */
struct change_of_names {
    struct file *gone; /* is removed */
    struct file *kept; /* gets the name */
    const char *name;
};

/* Waits for the turn, and until one change more may be on its way. The caller holds migration.lock. */
static int await_change(struct streams *streams, const struct interrupt *interrupt, struct error *err)
{
    struct migration *m = streams->source->m;

    while (m->state == STATE_ACTIVE && streams->changes >= WIRE_CHANGES_MAX) {
        if (interrupt_is_hit(interrupt))
            return error_set(err, CAUSE_INTERRUPTED, "interrupted");
        pthread_cond_wait(&m->changed, &m->lock);
    }
    return streams_await_turn(streams, interrupt, err);
}

/* From here on nothing is accepted for the device. The caller holds migration.lock. False: a channel is
 * closed. */
static bool retire(struct connection *conn, struct file *file, uint64_t id)
{
    bool need[WIRE_CHANNELS_MAX];

    for (unsigned c = 0; c < WIRE_CHANNELS_MAX; c++)
        need[c] = file_is_home(file, c);
    if (!connection_lock_channels(conn, need))
        return false;
    atomic_store_explicit(&file->removed, true, memory_order_release);
    connection_unlock_channels(conn, need);
    file->removal = id;
    return true;
}

/* The same at the destination, after what was accepted. The caller holds migration.lock. */
static void announce_change(struct streams *streams, struct connection *conn,
                            const struct change_of_names *change, uint64_t id)
{
    struct file *gone = change->gone, *kept = change->kept;
    uint64_t counts[WIRE_CHANNELS_MAX], others[WIRE_CHANNELS_MAX] = {0};
    uint8_t buf[16 + sizeof(counts) + WIRE_NAME_MAX];
    struct wire_writer body = wire_writer_of(buf, sizeof(buf));

    if (gone)
        connection_count(conn, gone, others);
    connection_count(conn, kept ? kept : gone, counts);
    wire_write_u32(&body, kept ? kept->id : gone->id);
    for (unsigned c = 0; c < conn->channel_count; c++)
        wire_write_u64(&body, counts[c] > others[c] ? counts[c] : others[c]);
    if (kept) {
        wire_write_u32(&body, gone ? gone->id : 0);
        wire_write_text(&body, change->name);
    }
    streams->changes++;
    streams->last_change = id;
    session_send(&conn->main, kept ? WIRE_FILE_RENAME : WIRE_FILE_REMOVE, id, buf, wire_written(&body));
}

/*
 * The caller holds migration.lock. 1: done; 0: a channel is closed, try again; negative: not
 * allowed, and why. @listed: set to a file whose reference is to be dropped without the lock
 */
static int try_change(struct streams *streams, const struct change_of_names *change, struct file **listed,
                      struct error *err)
{
    struct source *source = streams->source;
    bool local = source_is_unstarted(source);

    if (!local && migration_allows(source->m, COMMAND_WRITE, err) < 0)
        return -EIO;
    if (local) {
        if (change->gone)
            *listed = migration_remove_file(source->m, change->gone);
        if (change->kept)
            file_rename(change->kept, change->name);
        return 1;
    }
    struct connection *conn = source_connection(source);
    uint64_t id = connection_next_id(conn);
    if (change->gone && !retire(conn, change->gone, id))
        return 0;
    if (change->kept)
        file_rename(change->kept, change->name);
    announce_change(streams, conn, change, id);
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

static int change_device(struct streams *streams, const char *from, const char *to, bool exclusive,
                         const struct interrupt *interrupt, struct error *err)
{
    struct migration *m = streams->source->m;
    struct change_of_names change;
    struct file *listed = NULL;

    pthread_mutex_lock(&m->lock);
    int ret = source_await_starter(streams->source, interrupt, err);
    while (ret == 0) {
        ret = await_change(streams, interrupt, err);
        if (ret == 0)
            ret = find_change(m, from, to, exclusive, &change, err);
        if (ret == 0 && change.gone == change.kept)
            ret = 1; /* it has the name */
        if (ret == 0)
            ret = try_change(streams, &change, &listed, err);
        if (ret == 0) {
            pthread_mutex_unlock(&m->lock);
            ret = source_await_verdict(streams->source, COMMAND_WRITE, interrupt, err);
            pthread_mutex_lock(&m->lock);
        }
    }
    pthread_mutex_unlock(&m->lock);
    /* A reader that waits for a peer to fill it waits in vain. */
    if (listed)
        file_receive_remove(listed);
    file_put(listed);
    return ret < 0 ? ret : 0;
}

int streams_remove(struct streams *streams, const char *name, const struct interrupt *interrupt,
                   struct error *err)
{
    return change_device(streams, name, NULL, false, interrupt, err);
}

int streams_rename(struct streams *streams, const char *from, const char *to, bool exclusive,
                   const struct interrupt *interrupt, struct error *err)
{
    return name_check_device(to, err) < 0 ? -EIO
                                          : change_device(streams, from, to, exclusive, interrupt, err);
}

/* The destination has made a change. */
int streams_on_changed(struct streams *streams, uint64_t id, struct error *err)
{
    struct migration *m = streams->source->m;
    struct file *gone = NULL;

    pthread_mutex_lock(&m->lock);
    bool asked = streams->changes > 0;
    streams->changes -= asked;
    if (id > streams->last_made)
        streams->last_made = id;
    for (uint32_t i = 1; i < m->file_count && !gone; i++) {
        struct file *file = m->files[i];
        /* Its number can be used again. All its packets have been applied, so its counters are exact. */
        if (file && file_is_removed(file) && file->removal == id)
            gone = migration_remove_file(m, file);
    }
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->lock);
    file_put(gone);
    return asked ? 0
                 : error_set(err, CAUSE_PROTOCOL,
                             "the destination has changed a name that it was not asked to");
}

/*
 * Ending
 */

void streams_tell(struct streams *streams, struct file *file, bool again)
{
    struct migration *m = streams->source->m;
    uint64_t counts[WIRE_CHANNELS_MAX];
    uint8_t buf[4 + sizeof(counts)];
    struct wire_writer body = wire_writer_of(buf, sizeof(buf));

    bool open = file->writers > 0 || !atomic_load_explicit(&file->touched, memory_order_relaxed);
    bool active = m->state == STATE_ACTIVE && m->role == ROLE_OUTGOING && !file_is_removed(file);
    if (file->id == WIRE_RAM || !active || (open == file->announced_open && (open || !again)))
        return;
    struct connection *conn = source_connection(streams->source);
    wire_write_u32(&body, file->id);
    connection_count(conn, file, counts);
    for (unsigned c = 0; c < conn->channel_count && !open; c++)
        wire_write_u64(&body, counts[c]);
    session_send(&conn->main, open ? WIRE_FILE_RESUME : WIRE_FILE_END, 0, buf, wire_written(&body));
    file->announced_open = open;
}

void streams_tell_all(struct streams *streams)
{
    struct migration *m = streams->source->m;

    for (uint32_t i = 1; i < m->file_count; i++) {
        if (m->files[i])
            streams_tell(streams, m->files[i], false);
    }
}

void streams_open_writer(struct streams *streams, struct file *file)
{
    SCOPED_LOCK(&streams->source->m->lock);
    if (file->writers++ == 0)
        streams_tell(streams, file, false);
}

void streams_close_writer(struct streams *streams, struct file *file)
{
    SCOPED_LOCK(&streams->source->m->lock);
    if (--file->writers == 0)
        streams_tell(streams, file, false);
}

bool streams_is_answer_due(const struct streams *streams)
{
    return streams->changes || (streams->announced.file && !streams->announced.there);
}
