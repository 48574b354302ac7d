/* SPDX-License-Identifier: Apache-2.0 */
/* Files; see file.h. */
#include "file.h"
#include "cleanup.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct file *file_new(uint32_t id, const char *name)
{
    struct file *file = calloc(1, sizeof(*file));

    if (!file)
        return NULL;
    file->refs = 1;
    file->id = id;
    file->is_ram = id == WIRE_RAM;
    strncpy(file->name, name, sizeof(file->name) - 1);
    attributes_init(&file->attributes);
    image_init(&file->image);
    stream_init(&file->stream, &file->image);
    pthread_mutex_init(&file->lock, NULL);
    return file;
}

struct file *file_get(struct file *file)
{
    atomic_fetch_add(&file->refs, 1);
    return file;
}

void file_put(struct file *file)
{
    if (!file || atomic_fetch_sub(&file->refs, 1) > 1)
        return;
    stream_fini(&file->stream);
    image_fini(&file->image);
    free(file->per_channel);
    pthread_mutex_destroy(&file->lock);
    free(file);
}

const char *file_name(struct file *file, char out[WIRE_NAME_SIZE])
{
    SCOPED_LOCK(&file->lock);
    strcpy(out, file->name);
    return out;
}

void file_rename(struct file *file, const char *name)
{
    SCOPED_LOCK(&file->lock);
    strcpy(file->name, name);
}

int file_set_channels(struct file *file, unsigned channels, unsigned device_channels)
{
    struct file_channel *per_channel = calloc(channels, sizeof(*per_channel));

    if (!per_channel)
        return -ENOMEM;
    SCOPED_LOCK(&file->lock);
    free(file->per_channel);
    file->per_channel = per_channel;
    file->channels = channels;
    file->homes = (struct homes){
        .turn = file->id,
        .first = device_channels && !file->is_ram ? channels - device_channels : 0,
        .count = !device_channels ? channels
                 : file->is_ram   ? channels - device_channels
                                  : device_channels,
    };
    return 0;
}

/* The lock of a file that is only looked at. */
static pthread_mutex_t *lock_of(const struct file *file)
{
    return (pthread_mutex_t *)(uintptr_t)&file->lock;
}

static struct file_totals totals_of(const struct file_channel *fc)
{
    return (struct file_totals){
        .packets = counter_get(&fc->packets),
        .covered = counter_get(&fc->covered),
        .bytes = counter_get(&fc->bytes),
        .pages = counter_get(&fc->pages),
        .digest = counter_get(&fc->digest),
        .zero_pages = counter_get(&fc->zero_pages),
        .first_pages = counter_get(&fc->first_pages),
        .discarded_bytes = counter_get(&fc->discarded_bytes),
    };
}

struct file_totals file_channel_totals(const struct file *file, unsigned channel)
{
    SCOPED_LOCK(lock_of(file));
    bool there = file->per_channel && channel < file->channels;
    return there ? totals_of(&file->per_channel[channel]) : (struct file_totals){0};
}

void file_totals_add(struct file_totals *sum, const struct file_totals *totals)
{
    sum->packets += totals->packets;
    sum->covered += totals->covered;
    sum->bytes += totals->bytes;
    sum->pages += totals->pages;
    sum->digest += totals->digest;
    sum->zero_pages += totals->zero_pages;
    sum->first_pages += totals->first_pages;
    sum->discarded_bytes += totals->discarded_bytes;
}

/* Called with file->lock held. */
static struct file_totals sum_of_totals(const struct file *file)
{
    struct file_totals sum = file->past;

    for (unsigned c = 0; file->per_channel && c < file->channels; c++) {
        struct file_totals totals = totals_of(&file->per_channel[c]);
        file_totals_add(&sum, &totals);
    }
    return sum;
}

struct file_totals file_totals(const struct file *file)
{
    SCOPED_LOCK(lock_of(file));
    return sum_of_totals(file);
}

void file_settle(struct file *file)
{
    pthread_mutex_lock(&file->lock);
    file->past = sum_of_totals(file);
    free(file->per_channel);
    file->per_channel = NULL;
    pthread_mutex_unlock(&file->lock);
    stream_settle(&file->stream);
    image_settle(&file->image, sizeof(*file));
}

/*
 * The destination's side
 */

void file_set_id(struct file *file, uint32_t id)
{
    SCOPED_LOCK(&file->lock);
    file->id = id;
    file->homes.turn = id;
}

/* What a file has for each of its channels: counters, an end of the data, a truncation. */
#define CHANNEL_MEMORY (sizeof(struct file_channel) + 2 * sizeof(uint64_t))

int file_receive_account(struct file *file, struct account *account, struct error *err)
{
    uint64_t bytes = sizeof(*file) + file->channels * CHANNEL_MEMORY;

    if (budget_take(&account->memory, bytes, err, "'%.64s' does not fit", file->name) < 0)
        return -EIO;
    image_account(&file->image, account, bytes);
    return 0;
}

/* Says which file it is that there is no room for. */
static int name_file(struct file *file, struct error *err)
{
    char name[WIRE_NAME_SIZE];

    if (err && err->cause == CAUSE_QUOTA)
        error_prefix(err, "'%.64s'", file_name(file, name));
    return -EIO;
}

int file_receive_begin(struct file *file, uint64_t size, uint64_t limit, const struct memory_place *place,
                       const char *name, const struct image_budgets *budgets, struct error *err)
{
    const struct image_form form = {
        .is_ram = file->is_ram,
        .size = size,
        .limit = limit,
        .place = place,
        .name = name,
        .budgets = *budgets,
        .homes = file->homes,
    };

    if (stream_begin(&file->stream, &file->homes) < 0)
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    return image_begin(&file->image, &form, err) < 0 ? name_file(file, err) : 0;
}

int file_receive_storage(struct file *file, struct error *err)
{
    char name[WIRE_NAME_SIZE];

    if (image_has_memory(&file->image) || image_reserve(&file->image, file_name(file, name), err) == 0)
        return 0;
    return name_file(file, err);
}

int file_receive_size(struct file *file, unsigned channel, uint64_t end, uint64_t limit, struct error *err)
{
    char name[WIRE_NAME_SIZE];

    if (end <= image_end(&file->image, channel))
        return 0;
    if (end > limit)
        return error_set(err, CAUSE_QUOTA, "'%.64s' grows to %llu bytes; the destination allows %llu",
                         file_name(file, name), (unsigned long long)end, (unsigned long long)limit);
    return image_grow(&file->image, channel, end, err) < 0 ? name_file(file, err) : 0;
}

void file_received(struct file *file, unsigned channel, uint64_t offset, uint64_t len)
{
    struct file_channel *fc = &file->per_channel[channel];
    uint64_t first;

    counter_add(&fc->bytes, len);
    counter_add(&fc->pages, page_map_span(offset, len, &first));
    counter_add(&fc->first_pages, image_arrived(&file->image, offset, len));
    if (!file->is_ram)
        stream_arrived(&file->stream, offset, len);
}

int file_receive_zero(struct file *file, unsigned channel, uint64_t offset, uint64_t len, struct error *err)
{
    struct file_channel *fc = &file->per_channel[channel];
    uint64_t first;

    if (image_zero(&file->image, offset, len, &first, err) < 0)
        return -EIO;
    counter_add(&fc->zero_pages, len / WIRE_PAGE_SIZE);
    counter_add(&fc->first_pages, first);
    return 0;
}

int file_receive_discard(struct file *file, unsigned channel, uint64_t offset, uint64_t len,
                         struct error *err)
{
    counter_add(&file->per_channel[channel].discarded_bytes, file_home_bytes(file, channel, offset, len));
    return image_discard(&file->image, channel, offset, len, err);
}

int file_receive_truncate(struct file *file, unsigned channel, uint64_t size, uint64_t number, uint64_t limit,
                          struct error *err)
{
    struct file_channel *fc = &file->per_channel[channel];

    if (number <= fc->truncation)
        return error_set(err, CAUSE_PROTOCOL, "truncation %llu after truncation %llu",
                         (unsigned long long)number, (unsigned long long)fc->truncation);
    if (file_receive_size(file, channel, size, limit, err) < 0)
        return -EIO;
    fc->truncation = number;
    /* First the frontier: a reader does not take what is cut off for what has arrived. */
    if (!file->is_ram)
        stream_truncate(&file->stream, channel, size, number);
    return image_truncate(&file->image, channel, size, err);
}

/* The news of an end, and the counts that it is about. */
struct end_news {
    const struct file *file;
    const uint64_t *counts;
};

static bool is_overtaken(const void *arg)
{
    const struct end_news *news = arg;

    for (unsigned c = 0; c < news->file->channels; c++) {
        if (counter_get(&news->file->per_channel[c].last_sequence) > news->counts[c])
            return true;
    }
    return false;
}

void file_receive_end(struct file *file, const uint64_t *counts)
{
    struct end_news news = {file, counts};

    stream_end(&file->stream, counts ? is_overtaken : NULL, &news);
}

int file_receive_check(struct file *file, struct error *err)
{
    char name[WIRE_NAME_SIZE];

    if (image_check(&file->image, err) == 0)
        return 0;
    if (err && !file->image.memory.path)
        error_prefix(err, "'%.64s'", file_name(file, name));
    return -EIO;
}

void file_receive_drop(struct file *file)
{
    if (!file_is_receiving(file))
        return;
    stream_drop(&file->stream);
    image_drop(&file->image);
}

void file_receive_remove(struct file *file)
{
    stream_orphan(&file->stream);
    pthread_mutex_lock(&file->lock);
    file->orphaned = true;
    bool unused = !file->handles;
    pthread_mutex_unlock(&file->lock);
    if (unused)
        file_receive_drop(file);
}

int file_open_reader(struct file *file)
{
    SCOPED_LOCK(&file->lock);
    if (file_is_removed(file))
        return -ESTALE;
    file->handles++;
    return 0;
}

void file_close_reader(struct file *file)
{
    pthread_mutex_lock(&file->lock);
    bool unused = --file->handles == 0 && file->orphaned;
    pthread_mutex_unlock(&file->lock);
    if (unused)
        file_receive_drop(file);
}

/*
 * What users ask for
 */

ssize_t file_read(struct file *file, uint64_t offset, void *buf, size_t len, bool nowait,
                  const struct interrupt *interrupt)
{
    if (!file->is_ram)
        return stream_read(&file->stream, offset, buf, len, nowait, interrupt);
    ssize_t n = image_readable(&file->image, offset, len);
    return n > 0 ? image_read(&file->image, offset, buf, (size_t)n) : n;
}

int64_t file_seek(struct file *file, uint64_t offset, bool data)
{
    return file->is_ram ? image_seek(&file->image, offset, data) : stream_seek(&file->stream, offset, data);
}

bool file_follow(struct file *file, struct follower *follower)
{
    return !file->is_ram && stream_follow(&file->stream, follower);
}

bool file_readable(struct file *file, uint64_t offset)
{
    return file->is_ram || stream_readable(&file->stream, offset);
}
