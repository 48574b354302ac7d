/* SPDX-License-Identifier: Apache-2.0 */
/* Memory with its maps; see image.h. */
#include "image.h"
#include "cleanup.h"
#include "wire.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

_Static_assert(WIRE_STRIPE_SIZE / MEMORY_MAP_UNIT == 16, "image.mapped");

#define HOLE_SIZE (1ull << 30) /* at a time; the kernel gives back a GiB of small pages in about 0.1 s */
/* of RAM whose size nobody has declared; more is not worth the address space */
#define UNDECLARED_WINDOW (1ull << 40)
#define PAGES_SIZE        (16u << 10) /* what is larger and not there is written with pwrite(2) */
#define PREALLOCATE_SIZE  (16u << 20) /* at a time; the thread that does it looks up in between */

void image_init(struct image *image)
{
    *image = (struct image){.intact = UINT64_MAX};
    pthread_mutex_init(&image->lock, NULL);
    pthread_rwlock_init(&image->hole_lock, NULL);
}

/* Called with image->lock held. */
static void discharge(struct image *image)
{
    if (image->budgets.memory)
        budget_release(image->budgets.memory, image->charged);
    image->charged = 0;
}

/* Called with image->lock held. */
static void release_window(struct image *image)
{
    budget_release(image->budgets.windows, image->window);
    image->window = 0;
    free(image->mapped);
    image->mapped = NULL;
}

/* Nobody uses it any more, or yet; but the migration's thread may settle it meanwhile. */
static void give_back(struct image *image)
{
    SCOPED_LOCK(&image->lock);
    if (image->has_memory) {
        memory_fini(&image->memory, image->kept);
        if (image->account)
            budget_release(&image->account->descriptors, 1);
    }
    image->has_memory = false;
    discharge(image);
    release_window(image);
    if (image->account)
        budget_release(&image->account->memory, image->overhead);
    image->overhead = 0;
    page_map_fini(&image->received);
    page_map_fini(&image->held);
}

void image_fini(struct image *image)
{
    give_back(image);
    account_put(image->account);
    free(image->ends);
    pthread_mutex_destroy(&image->lock);
    pthread_rwlock_destroy(&image->hole_lock);
}

void image_account(struct image *image, struct account *account, uint64_t overhead)
{
    if (!image->account)
        image->account = account_hold(account);
    image->overhead = overhead;
}

/* The lock of an image that is only looked at. */
static pthread_mutex_t *lock_of(const struct image *image)
{
    return (pthread_mutex_t *)(uintptr_t)&image->lock;
}

/*
 * Sizes, and what they are charged to
 */

static int charge(struct image *image, uint64_t size, struct error *err)
{
    SCOPED_LOCK(&image->lock);
    if (size <= image->charged)
        return 0;
    if (budget_take(image->budgets.memory, size - image->charged, err, "a size of %llu bytes does not fit",
                    (unsigned long long)size) < 0)
        return -EIO;
    image->charged = size;
    return 0;
}

int image_grow(struct image *image, unsigned channel, uint64_t end, struct error *err)
{
    if (end <= image_end(image, channel))
        return 0;
    if (charge(image, end, err) < 0)
        return -EIO;
    atomic_store_explicit(&image->ends[channel - image->homes.first], end, memory_order_relaxed);
    return 0;
}

/* Called with image->lock held. */
static uint64_t size_of(const struct image *image)
{
    uint64_t size = image->past_size;

    for (unsigned i = 0; image_is_begun(image) && image->ends && i < image->homes.count; i++) {
        uint64_t end = counter_get(&image->ends[i]);
        if (end > size)
            size = end;
    }
    return size;
}

uint64_t image_size(const struct image *image)
{
    SCOPED_LOCK(lock_of(image));
    return size_of(image);
}

/* Where stored bytes can be at all: a range that reaches past it need not be walked. */
static uint64_t stored_end(struct image *image)
{
    SCOPED_LOCK(&image->lock);
    /* In whole pages: where the data ends in a page, nothing more is in that page. */
    return (image->charged + WIRE_PAGE_SIZE - 1) / WIRE_PAGE_SIZE * WIRE_PAGE_SIZE;
}

/* Makes the memory. Negative: there is none, and nothing is charged for it. */
static int make_memory(struct image *image, const struct memory_place *place, const char *name,
                       uint64_t window, struct error *err)
{
    struct budget *descriptors = image->account ? &image->account->descriptors : NULL;

    if (descriptors && budget_take(descriptors, 1, err, "it needs a descriptor, and there is none left") < 0)
        return -EIO;
    if (memory_init(&image->memory, place, name, window, err) < 0) {
        budget_release(descriptors, 1);
        return -EIO;
    }
    atomic_store_explicit(&image->has_memory, true, memory_order_release);
    return 0;
}

/*
 * How much of RAM gets a window: what was declared, or as much as it may be worth. Where the budget has no
 * room for it there is none; then everything is written with pwrite(2), which is slower.
 */
static uint64_t charge_window(struct image *image, uint64_t size, uint64_t limit)
{
    uint64_t window = size ? size : limit < UNDECLARED_WINDOW ? limit : UNDECLARED_WINDOW;

    if (!image->budgets.windows || !budget_charge(image->budgets.windows, window))
        return 0;
    image->window = window;
    return window;
}

static int make_ram(struct image *image, const struct image_form *form, struct error *err)
{
    uint64_t limit = form->limit;

    /* More than all that may be held is not worth a map. */
    if (limit > form->budgets.memory->limit)
        limit = form->budgets.memory->limit;
    if (limit > WIRE_OFFSET_MAX)
        limit = WIRE_OFFSET_MAX;
    if (make_memory(image, form->place, form->name, charge_window(image, form->size, limit), err) < 0)
        return -EIO;
    if (page_map_init(&image->received, limit, err) < 0 || page_map_init(&image->held, limit, err) < 0)
        return -EIO;
    image->mapped = calloc(image->window / WIRE_STRIPE_SIZE + 1, sizeof(*image->mapped));
    return form->size ? memory_resize(&image->memory, form->size, err) : 0;
}

static int make_ends(struct image *image, uint64_t size, struct error *err)
{
    free(image->ends);
    image->ends = calloc(image->homes.count, sizeof(*image->ends));
    if (!image->ends)
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    for (unsigned i = 0; i < image->homes.count; i++)
        atomic_store_explicit(&image->ends[i], size, memory_order_relaxed);
    return 0;
}

int image_begin(struct image *image, const struct image_form *form, struct error *err)
{
    image->is_ram = form->is_ram;
    image->homes = form->homes;
    /* It may be discharged before it begins. */
    pthread_mutex_lock(&image->lock);
    image->budgets = form->budgets;
    pthread_mutex_unlock(&image->lock);
    if (charge(image, form->size, err) < 0 || make_ends(image, form->size, err) < 0 ||
        (form->is_ram && make_ram(image, form, err) < 0)) {
        give_back(image);
        return -EIO;
    }
    atomic_store_explicit(&image->begun, true, memory_order_release);
    return 0;
}

int image_reserve(struct image *image, const char *name, struct error *err)
{
    SCOPED_LOCK(&image->lock);
    return image->has_memory ? 0 : make_memory(image, NULL, name, 0, err);
}

void image_settle(struct image *image, uint64_t overhead)
{
    SCOPED_LOCK(&image->lock);
    image->past_size = size_of(image);
    free(image->ends);
    image->ends = NULL;
    if (image->overhead > overhead) {
        budget_release(&image->account->memory, image->overhead - overhead);
        image->overhead = overhead;
    }
    if (image->has_memory)
        memory_unmap(&image->memory);
    release_window(image);
}

/*
 * Bytes and pages that arrive
 */

uint64_t image_arrived(struct image *image, uint64_t offset, uint64_t len)
{
    uint64_t first, pages = page_map_span(offset, len, &first);

    if (!image->is_ram)
        return 0;
    page_map_set(&image->held, first, pages);
    return page_map_set(&image->received, first, pages);
}

/* Makes a range read as zeros; gives its pages back, unless somebody may store into them. */
static int make_hole(struct image *image, uint64_t offset, uint64_t len, struct error *err)
{
    pthread_rwlock_rdlock(&image->hole_lock);
    int ret = image_is_exposed(image) ? memory_clear(&image->memory, offset, len, err)
                                      : memory_discard(&image->memory, offset, len, err);
    pthread_rwlock_unlock(&image->hole_lock);
    return ret;
}

void *image_expose(struct image *image, uint64_t offset, uint64_t len, uint64_t limit)
{
    if (!image->is_ram || image->memory.block || offset + len > limit ||
        charge(image, offset + len, NULL) < 0)
        return NULL;
    /* From here on no page is given back, and one that was is: what is made now stays. */
    pthread_rwlock_wrlock(&image->hole_lock);
    atomic_fetch_add(&image->exposed, 1);
    atomic_store(&image->was_exposed, true);
    pthread_rwlock_unlock(&image->hole_lock);
    void *memory = memory_make(&image->memory, offset, len);
    if (!memory)
        image_unexpose(image);
    return memory;
}

void image_unexpose(struct image *image)
{
    atomic_fetch_sub(&image->exposed, 1);
}

/*
 * Makes a range read as zeros. The one place that takes pages out of the memory while it is filled: what is
 * preallocated is there only as long as it was not given back.
 */
static int clear(struct image *image, uint64_t offset, uint64_t len, struct error *err)
{
    uint64_t intact = counter_get(&image->intact);

    while (offset < intact && !atomic_compare_exchange_weak(&image->intact, &intact, offset))
        ;
    if (!image->has_memory)
        return 0;
    for (uint64_t done = 0, part; done < len; done += part) {
        part = len - done < HOLE_SIZE ? len - done : HOLE_SIZE;
        if (make_hole(image, offset + done, part, err) < 0)
            return -EIO;
        atomic_fetch_add_explicit(&image->work, part, memory_order_relaxed);
    }
    return 0;
}

int image_zero(struct image *image, uint64_t offset, uint64_t len, uint64_t *first, struct error *err)
{
    uint64_t start = offset / WIRE_PAGE_SIZE, end = start + len / WIRE_PAGE_SIZE;

    /*
     * From the first page that holds something: zero pages give their memory back, and what is not held is a
     * hole already.
     */
    uint64_t page = page_map_next(&image->held, start, end, true);
    if (page < end) {
        if (clear(image, page * WIRE_PAGE_SIZE, (end - page) * WIRE_PAGE_SIZE, err) < 0)
            return -EIO;
        page_map_clear(&image->held, page, end - page);
    }
    *first = page_map_set(&image->received, start, end - start);
    return 0;
}

/* A hole; a page that it only touches has still arrived. */
static int discard(struct image *image, uint64_t offset, uint64_t end, struct error *err)
{
    if (clear(image, offset, end - offset, err) < 0)
        return -EIO;
    uint64_t first = (offset + WIRE_PAGE_SIZE - 1) / WIRE_PAGE_SIZE, last = end / WIRE_PAGE_SIZE;
    if (image->is_ram && first < last) {
        page_map_clear(&image->received, first, last - first);
        page_map_clear(&image->held, first, last - first);
    }
    return 0;
}

/* The channel's stripes of [offset, end). */
static int discard_home(struct image *image, unsigned channel, uint64_t offset, uint64_t end,
                        struct error *err)
{
    if (offset >= end)
        return 0;
    if (image->homes.count == 1)
        return image->homes.first == channel ? discard(image, offset, end, err) : 0;
    while (offset < end) {
        uint64_t stripe_end = (offset / WIRE_STRIPE_SIZE + 1) * WIRE_STRIPE_SIZE;
        uint64_t to = stripe_end < end ? stripe_end : end;
        if (homes_of(&image->homes, offset) == channel && discard(image, offset, to, err) < 0)
            return -EIO;
        offset = to;
    }
    return 0;
}

int image_discard(struct image *image, unsigned channel, uint64_t offset, uint64_t len, struct error *err)
{
    uint64_t end = offset + len, stored = stored_end(image);

    return discard_home(image, channel, offset, end < stored ? end : stored, err);
}

int image_truncate(struct image *image, unsigned channel, uint64_t size, struct error *err)
{
    if (discard_home(image, channel, size, stored_end(image), err) < 0)
        return -EIO;
    atomic_store_explicit(&image->ends[channel - image->homes.first], size, memory_order_relaxed);
    return 0;
}

bool image_preallocate(struct image *image)
{
    uint64_t from = counter_get(&image->preallocated),
             size = image_size(image) / WIRE_PAGE_SIZE * WIRE_PAGE_SIZE;
    uint64_t len = size - from < PREALLOCATE_SIZE ? size - from : PREALLOCATE_SIZE;

    if (from >= size || !memory_populate(&image->memory, from, len))
        return false;
    atomic_store_explicit(&image->preallocated, from + len, memory_order_relaxed);
    return true;
}

/*
 * Page table entries for what is stored into for the second time, all at once: that
 * costs a fraction of a fault for each page.
 */
static void map_once(struct image *image, uint64_t offset, size_t len)
{
    uint16_t *mapped = &image->mapped[offset / WIRE_STRIPE_SIZE];
    uint64_t start = offset % WIRE_STRIPE_SIZE;
    unsigned first = (unsigned)(start / MEMORY_MAP_UNIT),
             last = (unsigned)((start + len - 1) / MEMORY_MAP_UNIT);
    uint16_t units = (uint16_t)((2u << last) - (1u << first));

    if (units & ~*mapped)
        memory_map(&image->memory, offset, len);
    *mapped |= units;
}

void *image_window(struct image *image, uint64_t offset, size_t len)
{
    uint64_t first, pages = page_map_span(offset, len, &first);

    if (!image->is_ram)
        return NULL;
    if (offset + len <= counter_get(&image->preallocated) && offset + len <= counter_get(&image->intact))
        return memory_window(&image->memory, offset, len);
    if (page_map_next(&image->held, first, first + pages, false) != first + pages)
        return NULL;
    if (image->mapped && offset + len <= image->window)
        map_once(image, offset, len);
    return memory_window(&image->memory, offset, len);
}

void *image_pages(struct image *image, uint64_t offset, size_t len)
{
    void *window = image_window(image, offset, len);

    if (window || !image->is_ram || len > PAGES_SIZE || !image->memory.tmpfs)
        return window;
    return memory_window(&image->memory, offset, len);
}

/*
 * What is there
 */

bool image_use(struct image *image)
{
    SCOPED_LOCK(&image->lock);
    bool there = image_is_begun(image) && !image->dropped;
    image->users += there;
    return there;
}

void image_unuse(struct image *image)
{
    pthread_mutex_lock(&image->lock);
    /* There is one last user: once it is dropped, nobody comes any more. */
    bool last = --image->users == 0 && image->dropped;
    pthread_mutex_unlock(&image->lock);
    if (last)
        give_back(image);
}

static bool is_dropped(const struct image *image)
{
    SCOPED_LOCK(lock_of(image));
    return image->dropped;
}

ssize_t image_readable(const struct image *image, uint64_t offset, size_t len)
{
    SCOPED_LOCK(lock_of(image));
    uint64_t size = size_of(image);

    if (image->dropped)
        return -ECONNRESET;
    if (offset >= size)
        return 0;
    return (ssize_t)(len < size - offset ? len : size - offset);
}

ssize_t image_read(struct image *image, uint64_t offset, void *buf, size_t len)
{
    bool used = image_use(image);
    ssize_t got = used && image->has_memory ? memory_read(&image->memory, offset, buf, len) : 0;

    if (used)
        image_unuse(image);
    if (got < 0)
        return got;
    if (is_dropped(image))
        return -ECONNRESET;
    /* The memory can be shorter than the size. */
    memset((char *)buf + got, 0, len - (size_t)got);
    return (ssize_t)len;
}

static int64_t seek_held(const struct image *image, uint64_t offset, uint64_t size, bool data)
{
    uint64_t page = offset / WIRE_PAGE_SIZE, end = (size + WIRE_PAGE_SIZE - 1) / WIRE_PAGE_SIZE;
    uint64_t found = page_map_next(&image->held, page, end, data);

    if (found == page)
        return (int64_t)offset;
    if (found == end)
        return data ? -ENXIO : (int64_t)size;
    return (int64_t)(found * WIRE_PAGE_SIZE);
}

/* A device has no map of what is held: its memory knows what was stored. */
static int64_t seek_stored(const struct image *image, uint64_t offset, uint64_t size, bool data)
{
    int64_t found = image->has_memory ? memory_seek(&image->memory, offset, data)
                    : data            ? -ENXIO
                                      : (int64_t)offset;

    if (found < 0 || (uint64_t)found < size)
        return found;
    return data ? -ENXIO : (int64_t)size;
}

int64_t image_seek(struct image *image, uint64_t offset, bool data)
{
    uint64_t size = image_size(image);

    if (offset >= size || !image_use(image))
        return -ENXIO;
    int64_t found =
        image->is_ram ? seek_held(image, offset, size, data) : seek_stored(image, offset, size, data);
    image_unuse(image);
    return found;
}

/* What is there, not what ought to be. A hole need not be read. */
static ssize_t read_for_digest(void *arg, uint64_t offset, void *buf, size_t len)
{
    struct image *image = arg;

    atomic_fetch_add_explicit(&image->work, len, memory_order_relaxed);
    /* Of a migration that is over; nobody needs to know any more. */
    if (is_dropped(image))
        return -ECONNRESET;
    if (!image->has_memory)
        return 0;
    int64_t data = memory_seek(&image->memory, offset, true);
    if (data == -ENXIO || data >= (int64_t)(offset + len))
        return 0;
    return memory_read(&image->memory, offset, buf, len);
}

/* A digest that somebody waits for. */
struct digest_wait {
    struct image *image;
    const struct interrupt *interrupt;
};

static ssize_t read_unless_interrupted(void *arg, uint64_t offset, void *buf, size_t len)
{
    const struct digest_wait *wait = arg;

    return interrupt_is_hit(wait->interrupt) ? -EINTR : read_for_digest(wait->image, offset, buf, len);
}

int image_digest(struct image *image, const struct interrupt *interrupt, uint8_t out[DIGEST_SIZE])
{
    struct digest_wait wait = {image, interrupt};

    if (!image_use(image))
        return -ECONNRESET;
    int ret = digest_compute(image_size(image), read_unless_interrupted, &wait, out);
    if (ret == 0 && is_dropped(image))
        ret = -ECONNRESET;
    image_unuse(image);
    return ret;
}

int image_digest_pieces(struct image *image, uint64_t first, uint64_t count, uint8_t *out)
{
    struct digest_source source = {.size = image_size(image), .read = read_for_digest, .arg = image};
    uint64_t pieces = (source.size + DIGEST_PIECE - 1) / DIGEST_PIECE;

    if (first > pieces || count > pieces - first)
        return -ERANGE;
    if (!image_use(image))
        return -ECONNRESET;
    int ret = digest_pieces(&source, first, count, out);
    if (ret == 0 && is_dropped(image))
        ret = -ECONNRESET;
    image_unuse(image);
    return ret;
}

uint64_t image_map_size(const struct image *image)
{
    uint64_t pages = (image_size(image) + WIRE_PAGE_SIZE - 1) / WIRE_PAGE_SIZE;

    return (pages + 63) / 64 * 8;
}

size_t image_read_map(struct image *image, uint64_t offset, void *buf, size_t len)
{
    uint64_t size = image_map_size(image);

    if (offset >= size || !image_use(image))
        return 0;
    if (len > size - offset)
        len = (size_t)(size - offset);
    page_map_read(&image->received, offset, buf, len);
    image_unuse(image);
    return len;
}

int64_t image_blocks(struct image *image)
{
    struct stat st = {0};

    if (!image_use(image))
        return 0;
    if (image->has_memory)
        fstat(image->memory.fd, &st);
    image_unuse(image);
    return st.st_blocks;
}

void image_path(struct image *image, char *out, size_t size)
{
    out[0] = '\0';
    if (!image_use(image))
        return;
    if (image->has_memory && image->memory.path)
        snprintf(out, size, "%s", image->memory.path);
    else if (image->has_memory)
        snprintf(out, size, "/proc/%d/fd/%d", (int)getpid(), image->memory.fd);
    image_unuse(image);
}

int image_own(struct image *image, uid_t uid, gid_t gid, mode_t mode, struct error *err)
{
    if (!image_use(image))
        return 0;
    int ret = image->has_memory ? memory_own(&image->memory, uid, gid, mode, err) : 0;
    image_unuse(image);
    return ret;
}

/*
 * Ends
 */

int image_check(struct image *image, struct error *err)
{
    return image_has_memory(image) ? memory_check(&image->memory, err) : 0;
}

int image_finish(struct image *image, struct error *err)
{
    if (!image->has_memory)
        return 0;
    /* Truncation leaves the memory longer than the image, and a VMM maps the memory. */
    if (memory_resize(&image->memory, image_size(image), err) < 0)
        return -EIO;
    return memory_finish(&image->memory, err);
}

void image_keep(struct image *image)
{
    SCOPED_LOCK(&image->lock);
    image->kept = true;
}

void image_unlink(struct image *image)
{
    if (!image_use(image))
        return;
    if (image->has_memory)
        memory_unlink(&image->memory);
    image_unuse(image);
}

void image_discharge(struct image *image)
{
    SCOPED_LOCK(&image->lock);
    discharge(image);
}

void image_drop(struct image *image)
{
    struct error err = {0};

    if (!image_use(image))
        return;
    pthread_mutex_lock(&image->lock);
    image->dropped = true;
    pthread_mutex_unlock(&image->lock);
    /* The pages go now; the rest goes when nobody looks any more. */
    if (image->has_memory) {
        memory_unlink(&image->memory);
        memory_resize(&image->memory, 0, &err);
    }
    image_discharge(image);
    image_unuse(image);
}
