/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files; see file.h.
 *
 * The size at the destination. Channels run ahead of one another, so a channel
 * may apply a truncation while another one still stores data from before it.
 * Each channel therefore keeps its own view of where its data ends; a truncation
 * travels on all of them and cuts each view in turn; the size is the largest
 * view. Once all channels have applied everything, it is the source's.
 *
 * The frontier of a stream. A reader may follow a device's stream while it
 * arrives. For each stripe we keep how much has arrived without a gap; the
 * frontier moves over stripes that are full. Data that was written out of order
 * within a stripe is seen when the stream ends. After a truncation the stripes
 * of a channel count again only when that channel has applied it too.
 */
#include "file.h"
#include "account.h"
#include "cleanup.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

_Static_assert(WIRE_STRIPE_SIZE / MEMORY_MAP_UNIT == 16, "file.mapped");

#define HOLE_SIZE (1ull << 30) /* at a time; the kernel gives back a GiB of small pages in about 0.1 s */
/* of RAM whose size nobody has declared; more is not worth the address space */
#define UNDECLARED_WINDOW (1ull << 40)
#define PREPARE_SIZE      (16u << 20) /* at a time; the thread that does it looks up in between */

struct file *file_new(uint32_t id, const char *name)
{
    struct file *file = calloc(1, sizeof(*file));

    if (!file)
        return NULL;
    file->refs = 1;
    file->id = id;
    file->intact = UINT64_MAX;
    file->followed_from = UINT64_MAX;
    strncpy(file->name, name, sizeof(file->name) - 1);
    attributes_init(&file->attributes);
    pthread_mutex_init(&file->lock, NULL);
    pthread_cond_init(&file->arrived, NULL);
    return file;
}

/* Called with file->lock held. */
static void discharge(struct file *file)
{
    if (file->budgets.memory)
        budget_release(file->budgets.memory, file->charged);
    file->charged = 0;
}

/* Nobody uses it any more, or yet; but the migration's thread may settle it meanwhile. */
static void forget_storage(struct file *file)
{
    SCOPED_LOCK(&file->lock);
    if (file->has_memory) {
        memory_fini(&file->memory, file->kept);
        if (file->account)
            budget_release(&file->account->descriptors, 1);
    }
    file->has_memory = false;
    discharge(file);
    budget_release(file->budgets.windows, file->window);
    file->window = 0;
    if (file->account)
        budget_release(&file->account->memory, file->overhead);
    file->overhead = 0;
    page_map_fini(&file->received);
    page_map_fini(&file->held);
    free(file->mapped);
    file->mapped = NULL;
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
    forget_storage(file);
    account_put(file->account);
    free(file->per_channel);
    free(file->prefix);
    pthread_cond_destroy(&file->arrived);
    pthread_mutex_destroy(&file->lock);
    free(file);
}

const char *file_name(struct file *file, char out[WIRE_NAME_MAX + 1])
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
    file->first_channel = device_channels && file->id != WIRE_RAM ? channels - device_channels : 0;
    file->home_channels = !device_channels       ? channels
                          : file->id == WIRE_RAM ? channels - device_channels
                                                 : device_channels;
    return 0;
}

/* How much of [0, end) is of the stripes at @position in each round of the home channels. */
static uint64_t bytes_before(const struct file *file, uint64_t position, uint64_t end)
{
    uint64_t round = (uint64_t)file->home_channels * WIRE_STRIPE_SIZE;
    uint64_t rest = end % round, start = position * WIRE_STRIPE_SIZE;
    uint64_t part = rest <= start ? 0 : rest - start < WIRE_STRIPE_SIZE ? rest - start : WIRE_STRIPE_SIZE;

    return end / round * WIRE_STRIPE_SIZE + part;
}

uint64_t file_home_bytes(const struct file *file, unsigned channel, uint64_t offset, uint64_t len)
{
    uint64_t n = file->home_channels, position;

    if (!file_is_home(file, channel))
        return 0;
    position = (channel - file->first_channel + n - file->id % n) % n;
    return bytes_before(file, position, offset + len) - bytes_before(file, position, offset);
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
        .accepted = counter_get(&fc->accepted),
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
    sum->accepted += totals->accepted;
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

/* Called with file->lock held. */
static uint64_t received_size(const struct file *file)
{
    uint64_t size = file->past_size;

    for (unsigned c = 0; file_is_receiving(file) && file->per_channel && c < file->channels; c++) {
        uint64_t end = counter_get(&file->per_channel[c].end);
        if (end > size)
            size = end;
    }
    return size;
}

void file_settle(struct file *file)
{
    SCOPED_LOCK(&file->lock);
    file->past = sum_of_totals(file);
    file->past_size = received_size(file);
    free(file->per_channel);
    file->per_channel = NULL;
    if (file->overhead > sizeof(*file)) {
        budget_release(&file->account->memory, file->overhead - sizeof(*file));
        file->overhead = sizeof(*file);
    }
    free(file->prefix);
    file->prefix = NULL;
    file->stripes = 0;
    free(file->mapped);
    file->mapped = NULL;
    if (file->has_memory)
        memory_unmap(&file->memory);
    if (file->budgets.windows)
        budget_release(file->budgets.windows, file->window);
    file->window = 0;
}

/* Called with file->lock held. */
static int charge(struct file *file, uint64_t size, struct error *err)
{
    if (size <= file->charged)
        return 0;
    if (budget_take(file->budgets.memory, size - file->charged, err, "'%.64s' of %llu bytes does not fit",
                    file->name, (unsigned long long)size) < 0)
        return -EIO;
    file->charged = size;
    return 0;
}

void file_set_id(struct file *file, uint32_t id)
{
    SCOPED_LOCK(&file->lock);
    file->id = id;
}

int file_receive_account(struct file *file, struct account *account, struct error *err)
{
    uint64_t bytes = sizeof(*file) + file->channels * sizeof(*file->per_channel);

    if (budget_take(&account->memory, bytes, err, "'%.64s' does not fit", file->name) < 0)
        return -EIO;
    if (!file->account)
        file->account = account_hold(account);
    file->overhead = bytes;
    return 0;
}

/* Makes the memory. Negative: there is none, and nothing is charged for it. */
static int make_memory(struct file *file, const struct memory_place *place, const char *name, uint64_t window,
                       struct error *err)
{
    struct budget *descriptors = file->account ? &file->account->descriptors : NULL;

    if (descriptors && budget_take(descriptors, 1, err, "'%.64s' needs a descriptor, and there is none left",
                                   file->name) < 0)
        return -EIO;
    if (memory_init(&file->memory, place, name, window, err) < 0) {
        budget_release(descriptors, 1);
        return -EIO;
    }
    atomic_store_explicit(&file->has_memory, true, memory_order_release);
    return 0;
}

/*
 * How much of RAM gets a window: what was declared, or as much as it may be worth. Where the budget has no
 * room for it there is none; then everything is written with pwrite(2), which is slower.
 */
static uint64_t charge_window(struct file *file, uint64_t size, uint64_t limit)
{
    uint64_t window = size ? size : limit < UNDECLARED_WINDOW ? limit : UNDECLARED_WINDOW;

    if (!file->budgets.windows || !budget_charge(file->budgets.windows, window))
        return 0;
    file->window = window;
    return window;
}

static int make_ram(struct file *file, uint64_t size, uint64_t limit, const struct memory_place *place,
                    const char *name, struct error *err)
{
    if (make_memory(file, place, name, charge_window(file, size, limit), err) < 0)
        return -EIO;
    if (page_map_init(&file->received, limit, err) < 0 || page_map_init(&file->held, limit, err) < 0)
        return -EIO;
    file->mapped = calloc(file->window / WIRE_STRIPE_SIZE + 1, sizeof(*file->mapped));
    return size ? memory_resize(&file->memory, size, err) : 0;
}

int file_receive_begin(struct file *file, uint64_t size, uint64_t limit, const struct memory_place *place,
                       const char *name, const struct file_budgets *budgets, struct error *err)
{
    file->budgets = *budgets;
    pthread_mutex_lock(&file->lock);
    int ret = charge(file, size, err);
    pthread_mutex_unlock(&file->lock);
    /* More than all that may be held is not worth a map. */
    if (limit > budgets->memory->limit)
        limit = budgets->memory->limit;
    if (limit > WIRE_OFFSET_MAX)
        limit = WIRE_OFFSET_MAX;
    if (ret == 0 && file->id == WIRE_RAM)
        ret = make_ram(file, size, limit, place, name, err);
    if (ret < 0) {
        forget_storage(file);
        return ret;
    }
    for (unsigned c = 0; c < file->channels; c++) {
        if (file_is_home(file, c))
            atomic_store_explicit(&file->per_channel[c].end, size, memory_order_relaxed);
    }
    atomic_store_explicit(&file->receiving, true, memory_order_release);
    return 0;
}

int file_receive_storage(struct file *file, struct error *err)
{
    if (atomic_load_explicit(&file->has_memory, memory_order_acquire))
        return 0;
    SCOPED_LOCK(&file->lock);
    if (file->has_memory)
        return 0;
    return make_memory(file, NULL, file->name, 0, err);
}

bool file_use(struct file *file)
{
    SCOPED_LOCK(&file->lock);
    bool there = file_is_receiving(file) && !file->dropped;
    file->users += there;
    return there;
}

void file_unuse(struct file *file)
{
    pthread_mutex_lock(&file->lock);
    bool last = --file->users == 0 && file->dropped && !file->released;
    file->released |= last;
    pthread_mutex_unlock(&file->lock);
    if (last)
        forget_storage(file);
}

bool file_receive_prepare(struct file *file)
{
    uint64_t from = counter_get(&file->prepared),
             size = file_received_size(file) / WIRE_PAGE_SIZE * WIRE_PAGE_SIZE;
    uint64_t len = size - from < PREPARE_SIZE ? size - from : PREPARE_SIZE;

    if (from >= size || !memory_populate(&file->memory, from, len))
        return false;
    atomic_store_explicit(&file->prepared, from + len, memory_order_relaxed);
    return true;
}

int file_receive_size(struct file *file, unsigned channel, uint64_t end, uint64_t limit, struct error *err)
{
    struct file_channel *fc = &file->per_channel[channel];

    if (end <= counter_get(&fc->end))
        return 0;
    char name[WIRE_NAME_MAX + 1];
    if (end > limit)
        return error_set(err, CAUSE_QUOTA, "'%.64s' grows to %llu bytes; the destination allows %llu",
                         file_name(file, name), (unsigned long long)end, (unsigned long long)limit);
    pthread_mutex_lock(&file->lock);
    int ret = charge(file, end, err);
    pthread_mutex_unlock(&file->lock);
    if (ret == 0)
        atomic_store_explicit(&fc->end, end, memory_order_relaxed);
    return ret;
}

/* Called with file->lock held. Whether a stripe's prefix belongs to the stream as it is now. */
static bool stripe_is_current(const struct file *file, uint64_t stripe)
{
    unsigned home = file_home(file, stripe * WIRE_STRIPE_SIZE);

    return file->per_channel[home].truncation == file->truncation;
}

/* Called with file->lock held. Whether a read of a stream at @offset would not wait. */
static bool is_readable(const struct file *file, uint64_t offset)
{
    return file->ended || file->broken || file->dropped || file->orphaned || offset < file->frontier;
}

/* Called with file->lock held: a stream has got longer, or has ended. */
static void wake_readers(struct file *file)
{
    if (file->readers)
        pthread_cond_broadcast(&file->arrived);
    if (!is_readable(file, file->followed_from))
        return;
    file->followed_from = UINT64_MAX;
    for (struct follower *follower = file->followers, *next; follower; follower = next) {
        next = follower->next;
        if (is_readable(file, follower->offset))
            follower_tell(follower);
        else if (follower->offset < file->followed_from)
            file->followed_from = follower->offset;
    }
}

/* Called with file->lock held. */
static void advance_frontier(struct file *file)
{
    uint64_t before = file->frontier;

    for (;;) {
        uint64_t stripe = file->frontier / WIRE_STRIPE_SIZE;
        if (stripe >= file->stripes || !stripe_is_current(file, stripe))
            break;
        uint64_t end = stripe * WIRE_STRIPE_SIZE + file->prefix[stripe];
        if (end <= file->frontier)
            break;
        file->frontier = end;
    }
    if (file->frontier != before)
        wake_readers(file);
}

/* The pages that a range touches. */
static uint64_t page_span(uint64_t offset, uint64_t len, uint64_t *first)
{
    *first = offset / WIRE_PAGE_SIZE;
    return (offset + len - 1) / WIRE_PAGE_SIZE - *first + 1;
}

void file_received(struct file *file, unsigned channel, uint64_t offset, uint64_t len)
{
    struct file_channel *fc = &file->per_channel[channel];
    uint64_t stripe = offset / WIRE_STRIPE_SIZE;
    uint32_t start = (uint32_t)(offset % WIRE_STRIPE_SIZE);
    uint64_t first, pages = page_span(offset, len, &first);

    counter_add(&fc->bytes, len);
    counter_add(&fc->pages, pages);
    if (file->id == WIRE_RAM) {
        page_map_set(&file->held, first, pages);
        counter_add(&fc->first_pages, page_map_set(&file->received, first, pages));
        return;
    }
    SCOPED_LOCK(&file->lock);
    /* The stream goes on; the news that it has ended names a later packet. */
    file->ended = false;
    if (stripe >= file->stripes) {
        uint64_t stripes = stripe + 1 > 2 * file->stripes ? stripe + 1 : 2 * file->stripes;
        uint32_t *prefix = realloc(file->prefix, stripes * sizeof(*prefix));
        if (!prefix)
            return; /* the frontier stands still; a reader sees the data when the stream ends */
        memset(prefix + file->stripes, 0, (stripes - file->stripes) * sizeof(*prefix));
        file->prefix = prefix;
        file->stripes = stripes;
    }
    if (start <= file->prefix[stripe] && start + len > file->prefix[stripe]) {
        file->prefix[stripe] = start + (uint32_t)len;
        advance_frontier(file);
    }
}

/* What is prepared is there only as long as it was not given back. */
static int punch(struct file *file, uint64_t offset, uint64_t len, struct error *err)
{
    uint64_t intact = counter_get(&file->intact);

    while (offset < intact && !atomic_compare_exchange_weak(&file->intact, &intact, offset))
        ;
    if (!file->has_memory)
        return 0;
    for (uint64_t done = 0, part; done < len; done += part) {
        part = len - done < HOLE_SIZE ? len - done : HOLE_SIZE;
        if (memory_discard(&file->memory, offset + done, part, err) < 0)
            return -EIO;
        atomic_fetch_add_explicit(&file->work, part, memory_order_relaxed);
    }
    return 0;
}

/* Makes a hole; pages that lie in it whole count as never received. */
static int discard(struct file *file, uint64_t offset, uint64_t end, struct error *err)
{
    if (punch(file, offset, end - offset, err) < 0)
        return -EIO;
    uint64_t first = (offset + WIRE_PAGE_SIZE - 1) / WIRE_PAGE_SIZE, last = end / WIRE_PAGE_SIZE;
    if (file->id == WIRE_RAM && first < last) {
        page_map_clear(&file->received, first, last - first);
        page_map_clear(&file->held, first, last - first);
    }
    return 0;
}

/* The channel's stripes of [offset, end). */
static int discard_home(struct file *file, unsigned channel, uint64_t offset, uint64_t end, struct error *err)
{
    if (offset >= end)
        return 0;
    if (file->home_channels == 1)
        return file->first_channel == channel ? discard(file, offset, end, err) : 0;
    while (offset < end) {
        uint64_t stripe_end = (offset / WIRE_STRIPE_SIZE + 1) * WIRE_STRIPE_SIZE;
        uint64_t to = stripe_end < end ? stripe_end : end;
        if (file_home(file, offset) == channel && discard(file, offset, to, err) < 0)
            return -EIO;
        offset = to;
    }
    return 0;
}

int file_receive_zero(struct file *file, unsigned channel, uint64_t offset, uint64_t len, struct error *err)
{
    struct file_channel *fc = &file->per_channel[channel];
    uint64_t first = offset / WIRE_PAGE_SIZE, end = first + len / WIRE_PAGE_SIZE;

    /*
     * From the first page that holds something: zero pages give their memory back, and what is not held is a
     * hole already.
     */
    uint64_t page = page_map_next(&file->held, first, end, true);
    if (page < end) {
        if (punch(file, page * WIRE_PAGE_SIZE, (end - page) * WIRE_PAGE_SIZE, err) < 0)
            return -EIO;
        page_map_clear(&file->held, page, end - page);
    }
    counter_add(&fc->zero_pages, end - first);
    counter_add(&fc->first_pages, page_map_set(&file->received, first, end - first));
    return 0;
}

/* Where stored bytes can be at all: a range that reaches past it need not be walked. */
static uint64_t stored_end(struct file *file)
{
    SCOPED_LOCK(&file->lock);
    /* In whole pages: where a file ends in a page, nothing more is in that page. */
    return (file->charged + WIRE_PAGE_SIZE - 1) / WIRE_PAGE_SIZE * WIRE_PAGE_SIZE;
}

int file_receive_discard(struct file *file, unsigned channel, uint64_t offset, uint64_t len,
                         struct error *err)
{
    uint64_t end = offset + len, stored = stored_end(file);

    counter_add(&file->per_channel[channel].discarded_bytes, file_home_bytes(file, channel, offset, len));
    return discard_home(file, channel, offset, end < stored ? end : stored, err);
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
    if (discard_home(file, channel, size, stored_end(file), err) < 0)
        return -EIO;
    SCOPED_LOCK(&file->lock);
    file->ended = false;
    atomic_store_explicit(&fc->end, size, memory_order_relaxed);
    fc->truncation = number;
    if (number > file->truncation)
        file->truncation = number;
    if (file->frontier > size)
        file->frontier = size;
    for (uint64_t stripe = size / WIRE_STRIPE_SIZE; stripe < file->stripes; stripe++) {
        uint64_t start = stripe * WIRE_STRIPE_SIZE;
        uint32_t keep = size > start ? (uint32_t)(size - start) : 0;
        if (file_home(file, start) == channel && file->prefix[stripe] > keep)
            file->prefix[stripe] = keep;
    }
    advance_frontier(file);
    return 0;
}

void file_receive_end(struct file *file, const uint64_t *counts)
{
    SCOPED_LOCK(&file->lock);
    /* A packet that is not seen here yet resumes the stream after this. */
    for (unsigned c = 0; counts && c < file->channels; c++) {
        if (counter_get(&file->per_channel[c].last_sequence) > counts[c])
            return;
    }
    file->ended = true;
    wake_readers(file);
}

void file_receive_resume(struct file *file)
{
    SCOPED_LOCK(&file->lock);
    file->ended = false;
}

void file_receive_over(struct file *file, bool broken)
{
    SCOPED_LOCK(&file->lock);
    if (broken)
        file->broken = true;
    else
        file->ended = true;
    wake_readers(file);
}

int file_receive_check(struct file *file, struct error *err)
{
    char name[WIRE_NAME_MAX + 1];

    if (!atomic_load_explicit(&file->has_memory, memory_order_acquire) ||
        memory_check(&file->memory, err) == 0)
        return 0;
    if (err && !file->memory.path)
        error_prefix(err, "'%.64s'", file_name(file, name));
    return -EIO;
}

int file_receive_finish(struct file *file, struct error *err)
{
    if (!file->has_memory)
        return 0;
    /* Truncation leaves the memory longer than the file, and a VMM maps the memory. */
    if (memory_resize(&file->memory, file_received_size(file), err) < 0)
        return -EIO;
    return memory_finish(&file->memory, err);
}

void file_receive_keep(struct file *file)
{
    SCOPED_LOCK(&file->lock);
    file->kept = true;
}

void file_receive_unlink(struct file *file)
{
    if (!file_use(file))
        return;
    if (file->has_memory)
        memory_unlink(&file->memory);
    file_unuse(file);
}

int64_t file_receive_blocks(struct file *file)
{
    struct stat st = {0};

    if (!file_use(file))
        return 0;
    if (file->has_memory)
        fstat(file->memory.fd, &st);
    file_unuse(file);
    return st.st_blocks;
}

void file_receive_drop(struct file *file)
{
    struct error err = {0};

    if (!file_use(file))
        return;
    pthread_mutex_lock(&file->lock);
    file->dropped = true;
    wake_readers(file);
    pthread_mutex_unlock(&file->lock);
    /* The pages go now; the rest goes when nobody looks any more. */
    if (file->has_memory) {
        memory_unlink(&file->memory);
        memory_resize(&file->memory, 0, &err);
    }
    file_receive_discharge(file);
    file_unuse(file);
}

void file_receive_remove(struct file *file)
{
    pthread_mutex_lock(&file->lock);
    file->orphaned = true;
    bool unused = !file->handles;
    wake_readers(file);
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

void file_receive_discharge(struct file *file)
{
    SCOPED_LOCK(&file->lock);
    discharge(file);
}

uint64_t file_received_size(const struct file *file)
{
    SCOPED_LOCK(lock_of(file));
    return received_size(file);
}

/* Called with file->lock held: how many of @len bytes at @offset can be read; -EAGAIN: wait. */
static ssize_t readable(struct file *file, uint64_t offset, size_t len)
{
    uint64_t end = received_size(file);

    if (file->dropped)
        return -ECONNRESET;
    if (file->id != WIRE_RAM && !file->ended) {
        if (!is_readable(file, offset))
            return -EAGAIN;
        if (offset >= file->frontier)
            return file->broken ? -ECONNRESET : -ESTALE;
        end = file->frontier;
    }
    if (offset >= end)
        return 0;
    return (ssize_t)(len < end - offset ? len : end - offset);
}

ssize_t file_read(struct file *file, uint64_t offset, void *buf, size_t len, bool nowait,
                  const struct interrupt *interrupt)
{
    ssize_t n;

    pthread_mutex_lock(&file->lock);
    file->readers++;
    while ((n = readable(file, offset, len)) == -EAGAIN && !nowait) {
        if (interrupt_is_hit(interrupt)) {
            n = -EINTR;
            break;
        }
        pthread_cond_wait(&file->arrived, &file->lock);
    }
    file->readers--;
    pthread_mutex_unlock(&file->lock);
    if (n <= 0)
        return n;
    bool used = file_use(file);
    ssize_t got = used && file->has_memory ? memory_read(&file->memory, offset, buf, (size_t)n) : 0;
    if (used)
        file_unuse(file);
    if (got < 0)
        return got;
    pthread_mutex_lock(&file->lock);
    bool dropped = file->dropped;
    pthread_mutex_unlock(&file->lock);
    if (dropped)
        return -ECONNRESET;
    /* The memory can be shorter than the size: what was never stored is a hole. */
    memset((char *)buf + got, 0, (size_t)(n - got));
    return n;
}

/*
 * Page table entries for what is stored into for the second time, all at once: that
 * costs a fraction of a fault for each page.
 */
static void map_once(struct file *file, uint64_t offset, size_t len)
{
    uint16_t *mapped = &file->mapped[offset / WIRE_STRIPE_SIZE];
    uint64_t start = offset % WIRE_STRIPE_SIZE;
    unsigned first = (unsigned)(start / MEMORY_MAP_UNIT),
             last = (unsigned)((start + len - 1) / MEMORY_MAP_UNIT);
    uint16_t units = (uint16_t)((2u << last) - (1u << first));

    if (units & ~*mapped)
        memory_map(&file->memory, offset, len);
    *mapped |= units;
}

void *file_window(struct file *file, uint64_t offset, size_t len)
{
    uint64_t first, pages = page_span(offset, len, &first);

    if (file->id != WIRE_RAM)
        return NULL;
    if (offset + len <= counter_get(&file->prepared) && offset + len <= counter_get(&file->intact))
        return memory_window(&file->memory, offset, len);
    if (page_map_next(&file->held, first, first + pages, false) != first + pages)
        return NULL;
    if (len >= MEMORY_MAP_UNIT / 2 && file->mapped && offset + len <= file->window)
        map_once(file, offset, len);
    return memory_window(&file->memory, offset, len);
}

/*
 * A device has no map of what is held: its memory knows what was stored. From the
 * frontier of a stream that has not ended on everything is still to come, and counts as data:
 * whoever copies sparsely must not take for a hole what has not arrived.
 */
static int64_t seek_device(struct file *file, uint64_t offset, uint64_t size, bool data)
{
    pthread_mutex_lock(&file->lock);
    uint64_t known = file->ended || file->frontier > size ? size : file->frontier;
    pthread_mutex_unlock(&file->lock);
    if (offset >= known)
        return (int64_t)(data ? offset : size);
    int64_t found = file->has_memory ? memory_seek(&file->memory, offset, data)
                    : data           ? -ENXIO
                                     : (int64_t)offset;
    if (found < 0 && found != -ENXIO)
        return found;
    if (found >= 0 && (uint64_t)found < known)
        return found;
    return !data ? (int64_t)size : known < size ? (int64_t)known : -ENXIO;
}

static int64_t seek_ram(struct file *file, uint64_t offset, uint64_t size, bool data)
{
    uint64_t page = offset / WIRE_PAGE_SIZE, end = (size + WIRE_PAGE_SIZE - 1) / WIRE_PAGE_SIZE;
    uint64_t found = page_map_next(&file->held, page, end, data);
    if (found == page)
        return (int64_t)offset;
    if (found == end)
        return data ? -ENXIO : (int64_t)size;
    return (int64_t)(found * WIRE_PAGE_SIZE);
}

int64_t file_seek(struct file *file, uint64_t offset, bool data)
{
    uint64_t size = file_received_size(file);

    if (offset >= size || !file_use(file))
        return -ENXIO;
    int64_t found =
        file->id == WIRE_RAM ? seek_ram(file, offset, size, data) : seek_device(file, offset, size, data);
    file_unuse(file);
    return found;
}

static bool is_dropped(struct file *file)
{
    SCOPED_LOCK(&file->lock);
    return file->dropped;
}

/* What is there, not what ought to be. A hole need not be read. */
static ssize_t read_for_digest(void *arg, uint64_t offset, void *buf, size_t len)
{
    struct file *file = arg;

    atomic_fetch_add_explicit(&file->work, len, memory_order_relaxed);
    /* Of a migration that is over; nobody needs to know any more. */
    if (is_dropped(file))
        return -ECONNRESET;
    if (!file->has_memory)
        return 0;
    int64_t data = memory_seek(&file->memory, offset, true);
    if (data == -ENXIO || data >= (int64_t)(offset + len))
        return 0;
    return memory_read(&file->memory, offset, buf, len);
}

/* A digest that somebody waits for. */
struct digest_wait {
    struct file *file;
    const struct interrupt *interrupt;
};

static ssize_t read_unless_interrupted(void *arg, uint64_t offset, void *buf, size_t len)
{
    const struct digest_wait *wait = arg;

    return interrupt_is_hit(wait->interrupt) ? -EINTR : read_for_digest(wait->file, offset, buf, len);
}

int file_digest(struct file *file, const struct interrupt *interrupt, uint8_t out[DIGEST_SIZE])
{
    struct digest_wait wait = {file, interrupt};

    if (!file_use(file))
        return -ECONNRESET;
    int ret = digest_compute(file_received_size(file), read_unless_interrupted, &wait, out);
    if (ret == 0 && is_dropped(file))
        ret = -ECONNRESET;
    file_unuse(file);
    return ret;
}

int file_digest_pieces(struct file *file, uint64_t first, uint64_t count, uint8_t *out)
{
    struct digest_source source = {.size = file_received_size(file), .read = read_for_digest, .arg = file};
    uint64_t pieces = (source.size + DIGEST_PIECE - 1) / DIGEST_PIECE;

    if (first > pieces || count > pieces - first)
        return -ERANGE;
    if (!file_use(file))
        return -ECONNRESET;
    int ret = digest_pieces(&source, first, count, out);
    if (ret == 0 && is_dropped(file))
        ret = -ECONNRESET;
    file_unuse(file);
    return ret;
}

uint64_t file_received_map_size(const struct file *file)
{
    uint64_t pages = (file_received_size(file) + WIRE_PAGE_SIZE - 1) / WIRE_PAGE_SIZE;

    return (pages + 63) / 64 * 8;
}

size_t file_read_received_map(struct file *file, uint64_t offset, void *buf, size_t len)
{
    uint64_t size = file_received_map_size(file);

    if (offset >= size || !file_use(file))
        return 0;
    if (len > size - offset)
        len = (size_t)(size - offset);
    page_map_read(&file->received, offset, buf, len);
    file_unuse(file);
    return len;
}

bool file_follow(struct file *file, struct follower *follower)
{
    SCOPED_LOCK(&file->lock);
    if (file->id == WIRE_RAM || is_readable(file, follower->offset))
        return false;
    follower_join(follower, &file->followers);
    if (follower->offset < file->followed_from)
        file->followed_from = follower->offset;
    return true;
}

bool file_unfollow(struct file *file, struct follower *follower)
{
    SCOPED_LOCK(&file->lock);
    return follower_leave(follower);
}

bool file_readable(struct file *file, uint64_t offset)
{
    SCOPED_LOCK(&file->lock);
    return readable(file, offset, 1) != -EAGAIN;
}

void file_kick(struct file *file)
{
    SCOPED_LOCK(&file->lock);
    pthread_cond_broadcast(&file->arrived);
}
