/* SPDX-License-Identifier: Apache-2.0 */
/* Counts at the destination; see arrival.h. */
#include "arrival.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BARRIERS_FREE 64 /* may wait without being charged each */

uint64_t arrival_memory(unsigned channels)
{
    return BARRIERS_FREE * barrier_size(channels);
}

int arrival_init(struct arrival *a, unsigned channels, struct catalog *catalog, struct budget *budget,
                 const struct arrival_operations *operations, void *owner)
{
    *a = (struct arrival){
        .operations = operations,
        .owner = owner,
        .catalog = catalog,
        .budget = budget,
        .channels = channels,
    };
    return barrier_set_init(&a->barriers, channels);
}

/*
 * Barriers
 */

static struct barrier *make_barrier(struct arrival *a, enum wire_message_type type, uint64_t id,
                                    const uint64_t *counts, struct error *err)
{
    size_t size = barrier_size(a->channels);
    bool extra = a->barrier_count >= BARRIERS_FREE;

    if (extra && budget_take(a->budget, size, err, "%u barriers are too many", a->barrier_count) < 0)
        return NULL;
    struct barrier *barrier = barrier_new(a->channels);
    if (!barrier) {
        if (extra)
            budget_release(a->budget, size);
        error_set(err, CAUSE_NO_MEMORY, "out of memory");
        return NULL;
    }
    a->barrier_count++;
    barrier->type = type;
    barrier->id = id;
    memcpy(barrier->counts, counts, a->channels * sizeof(counts[0]));
    return barrier;
}

static void free_barrier(struct arrival *a, struct barrier *barrier)
{
    free(barrier);
    if (a->barrier_count-- > BARRIERS_FREE)
        budget_release(a->budget, barrier_size(a->channels));
}

static int add_barrier(struct arrival *a, struct barrier *barrier, struct error *err)
{
    barrier_set_add(&a->barriers, barrier);
    return arrival_check(a, err);
}

void arrival_fini(struct arrival *a)
{
    arrival_forget_manifest(a);
    barrier_set_fini(&a->barriers);
    if (a->barrier_count > BARRIERS_FREE)
        budget_release(a->budget, (a->barrier_count - BARRIERS_FREE) * barrier_size(a->channels));
    a->barrier_count = 0;
}

void arrival_read_counts(const struct arrival *a, struct wire_reader *body,
                         uint64_t counts[WIRE_CHANNELS_MAX])
{
    for (unsigned c = 0; c < a->channels; c++)
        counts[c] = wire_read_u64(body);
}

int arrival_sync(struct arrival *a, uint64_t id, const uint64_t *counts, struct error *err)
{
    if (a->syncs == WIRE_SYNCS_MAX)
        return error_set(err, CAUSE_PROTOCOL, "more than %d barriers wait", WIRE_SYNCS_MAX);
    struct barrier *barrier = make_barrier(a, WIRE_SYNC, id, counts, err);
    if (!barrier)
        return -EIO;
    a->syncs++;
    return add_barrier(a, barrier, err);
}

void arrival_forget_end(struct arrival *a, struct file *file)
{
    if (!file->end_barrier)
        return;
    barrier_set_remove(&a->barriers, file->end_barrier);
    free_barrier(a, file->end_barrier);
    file->end_barrier = NULL;
}

int arrival_end(struct arrival *a, struct file *file, const uint64_t *counts, struct error *err)
{
    arrival_forget_end(a, file);
    struct barrier *barrier = make_barrier(a, WIRE_FILE_END, 0, counts, err);
    if (!barrier)
        return -EIO;
    barrier->file = file;
    file->end_barrier = barrier;
    return add_barrier(a, barrier, err);
}

int arrival_change(struct arrival *a, struct change *change, const uint64_t *counts, struct error *err)
{
    struct barrier *barrier =
        change ? make_barrier(a, change->type == CHANGE_REMOVE ? WIRE_FILE_REMOVE : WIRE_FILE_RENAME,
                              change->id, counts, err)
               : NULL;

    if (!barrier)
        return -EIO;
    barrier->change = change;
    /* The source has gone on since it was checked. */
    arrival_forget_manifest(a);
    return add_barrier(a, barrier, err);
}

int arrival_on_sync(struct arrival *a, uint64_t id, struct wire_reader *body, struct error *err)
{
    uint64_t counts[WIRE_CHANNELS_MAX];

    arrival_read_counts(a, body, counts);
    if (!wire_read_done(body))
        return error_set(err, CAUSE_PROTOCOL, "a barrier with the wrong number of counts");
    return arrival_sync(a, id, counts, err);
}

/*
 * The manifest
 */

void arrival_forget_manifest(struct arrival *a)
{
    if (a->manifest.barrier) {
        barrier_set_remove(&a->barriers, a->manifest.barrier);
        free_barrier(a, a->manifest.barrier);
    }
    free(a->manifest.entry);
    a->manifest = (struct manifest){0};
}

int arrival_manifest(struct arrival *a, uint64_t id, const uint64_t *counts, struct manifest_entry *entry,
                     uint32_t entries, struct error *err)
{
    struct manifest *manifest = &a->manifest;

    arrival_forget_manifest(a);
    struct barrier *barrier = make_barrier(a, WIRE_COMPLETE, id, counts, err);
    if (!barrier) {
        free(entry);
        return -EIO;
    }
    *manifest = (struct manifest){.id = id, .barrier = barrier, .entries = entries, .entry = entry};
    memcpy(manifest->counts, counts, a->channels * sizeof(counts[0]));
    return add_barrier(a, barrier, err);
}

/* The entries of a manifest of @count files, or NULL. */
static struct manifest_entry *read_entries(struct wire_reader *body, uint32_t count, struct error *err)
{
    struct manifest_entry *entries = calloc(count + 1, sizeof(*entries));

    if (!entries) {
        error_set(err, CAUSE_NO_MEMORY, "out of memory");
        return NULL;
    }
    for (uint32_t i = 0; i < count; i++) {
        struct manifest_entry *entry = &entries[i];
        entry->file = wire_read_u32(body);
        wire_read_u32(body);
        entry->size = wire_read_u64(body);
        entry->packets = wire_read_u64(body);
        entry->bytes = wire_read_u64(body);
        entry->digest = wire_read_u64(body);
        if (i > 0 && entry->file <= entry[-1].file) {
            error_set(err, CAUSE_PROTOCOL, "a manifest whose files are out of order");
            free(entries);
            return NULL;
        }
    }
    return entries;
}

int arrival_on_complete(struct arrival *a, uint64_t id, struct wire_reader *body, struct error *err)
{
    uint64_t counts[WIRE_CHANNELS_MAX];

    arrival_read_counts(a, body, counts);
    uint32_t count = wire_read_u32(body);
    if (body->bad || !id || count > a->catalog->count ||
        body->left != (size_t)count * WIRE_MANIFEST_ENTRY_SIZE)
        return error_set(err, CAUSE_MISMATCH,
                         "a manifest that does not fit: of %u files, where the destination has %u", count,
                         a->catalog->count);
    struct manifest_entry *entries = read_entries(body, count, err);
    return entries ? arrival_manifest(a, id, counts, entries, count, err) : -EIO;
}

/*
 * Whether what has been applied is exactly what the manifest is about. More means that the source has gone
 * on.
 */
static bool is_exactly_applied(const struct arrival *a)
{
    for (unsigned c = 0; c < a->channels; c++) {
        if (a->operations->applied(a->owner, c) != a->manifest.counts[c])
            return false;
    }
    return true;
}

bool arrival_is_complete(const struct arrival *a, uint64_t id)
{
    return a->manifest.checked && a->manifest.id == id && a->manifest.entries == a->catalog->count &&
           is_exactly_applied(a);
}

static int check_entry(const struct arrival *a, const struct manifest_entry *entry, struct error *err)
{
    struct file *file = catalog_file(a->catalog, entry->file);
    char name[WIRE_NAME_SIZE];

    if (!catalog_has(a->catalog, entry->file))
        return error_set(err, CAUSE_MISMATCH, "the source has a file %u that the destination has not",
                         entry->file);
    struct file_totals have = file_totals(file);
    uint64_t size = file_received_size(file);
    if (size != entry->size)
        return error_set(err, CAUSE_MISMATCH,
                         "'%.64s' has %llu bytes at the source and %llu at the destination",
                         file_name(file, name), (unsigned long long)entry->size, (unsigned long long)size);
    if (have.packets != entry->packets || have.bytes != entry->bytes || have.digest != entry->digest)
        return error_set(
            err, CAUSE_MISMATCH,
            "'%.64s': the source sent %llu bytes in %llu packets, the destination has %llu bytes in %llu",
            file_name(file, name), (unsigned long long)entry->bytes, (unsigned long long)entry->packets,
            (unsigned long long)have.bytes, (unsigned long long)have.packets);
    return 0;
}

/* Everything is applied: is it what the source says it sent? */
static int check_manifest(struct arrival *a, struct error *err)
{
    struct manifest *manifest = &a->manifest;

    manifest->barrier = NULL;
    if (!is_exactly_applied(a) || manifest->entries < a->catalog->count) {
        arrival_forget_manifest(a);
        return 0;
    }
    if (a->catalog->first)
        return error_set(err, CAUSE_PROTOCOL, "a manifest that leaves changes of names unmade");
    for (uint32_t i = 0; i < manifest->entries; i++) {
        if (check_entry(a, &manifest->entry[i], err) < 0)
            return -EIO;
    }
    int ret = a->operations->complete(a->owner, manifest->id, err);
    manifest->checked = ret == 0;
    return ret;
}

/*
 * What is passed
 */

/* Makes all changes of names whose turn has come. */
static void make_changes(struct arrival *a)
{
    struct change *made = NULL, **last = &made, *change;

    while ((change = catalog_take(a->catalog))) {
        a->operations->change(a->owner, change);
        *last = change;
        last = &change->next;
    }
    a->operations->changed(a->owner, made);
    change_free_all(made);
}

static int reach(struct arrival *a, const struct barrier *barrier, struct error *err)
{
    switch (barrier->type) {
    case WIRE_SYNC:
        a->syncs--;
        a->operations->synced(a->owner, barrier->id);
        return 0;
    case WIRE_FILE_END:
        barrier->file->end_barrier = NULL;
        a->operations->ended(a->owner, barrier->file, barrier->counts);
        return 0;
    case WIRE_FILE_REMOVE:
    case WIRE_FILE_RENAME:
        barrier->change->ripe = true;
        make_changes(a);
        return 0;
    default:
        return check_manifest(a, err);
    }
}

int arrival_check(struct arrival *a, struct error *err)
{
    uint64_t applied[WIRE_CHANNELS_MAX];
    bool again;

    do {
        struct barrier *barrier;
        for (unsigned c = 0; c < a->channels; c++)
            applied[c] = a->operations->applied(a->owner, c);
        while ((barrier = barrier_set_take(&a->barriers, applied))) {
            int ret = reach(a, barrier, err);
            free_barrier(a, barrier);
            if (ret < 0)
                return ret;
        }
        again = false;
        for (unsigned c = 0; c < a->channels; c++)
            again |= a->operations->aim(a->owner, c, barrier_set_target(&a->barriers, c));
    } while (again);
    return 0;
}
