/* SPDX-License-Identifier: Apache-2.0 */
/* What has changed since it was sent; see tracking.h. */
#include "tracking.h"
#include "cleanup.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>

#define SLOTS 64 /* stripes that can be kept apart */

static struct page_hash digest_of(const struct tracking *t, const void *bytes, size_t len)
{
    return t->hash(bytes, len, t->secret);
}

static bool is_equal(const struct page_hash *a, const struct page_hash *b)
{
    return a->low == b->low && a->high == b->high;
}

static size_t digests_size(const struct tracking *t)
{
    return (t->pages + 1) * sizeof(struct page_hash); /* mmap(2) maps no nothing */
}

struct tracking *tracking_new(uint64_t bytes, struct error *err)
{
    static const char zeros[WIRE_PAGE_SIZE];
    struct tracking *t = calloc(1, sizeof(*t));

    if (!t) {
        error_set(err, CAUSE_NO_MEMORY, "out of memory");
        return NULL;
    }
    t->pages = (bytes + WIRE_PAGE_SIZE - 1) / WIRE_PAGE_SIZE;
    t->digests = mmap(NULL, digests_size(t), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (t->digests == MAP_FAILED ||
        getrandom(t->secret, sizeof(t->secret), 0) != (ssize_t)sizeof(t->secret)) {
        error_set_errno(err, errno, "digests of %llu pages", (unsigned long long)t->pages);
        if (t->digests != MAP_FAILED)
            munmap(t->digests, digests_size(t));
        free(t);
        return NULL;
    }
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->changed_busy, NULL);
    t->hash = page_hash_best();
    t->zero = digest_of(t, zeros, sizeof(zeros));
    return t;
}

void tracking_free(struct tracking *t)
{
    if (!t)
        return;
    munmap(t->digests, digests_size(t));
    pthread_cond_destroy(&t->changed_busy);
    pthread_mutex_destroy(&t->lock);
    free(t);
}

void tracking_end(struct tracking *t)
{
    /* What is read as zeros is not known; who still asks sends what nobody takes. */
    madvise(t->digests, digests_size(t), MADV_DONTNEED);
}

/* The slots of the stripes of a range. */
static uint64_t slots_of(uint64_t offset, uint64_t len)
{
    uint64_t first = offset / WIRE_STRIPE_SIZE, last = (offset + len - 1) / WIRE_STRIPE_SIZE, slots = 0;

    if (last - first >= SLOTS - 1)
        return ~0ull;
    for (uint64_t stripe = first; stripe <= last; stripe++)
        slots |= 1ull << stripe % SLOTS;
    return slots;
}

int tracking_enter(struct tracking *t, uint64_t offset, uint64_t len, const struct interrupt *interrupt)
{
    uint64_t slots = slots_of(offset, len);

    SCOPED_LOCK(&t->lock);
    /* All at once, so no two wait for one another. */
    while (t->busy & slots) {
        if (interrupt_is_hit(interrupt))
            return -EINTR;
        pthread_cond_wait(&t->changed_busy, &t->lock);
    }
    t->busy |= slots;
    return 0;
}

void tracking_leave(struct tracking *t, uint64_t offset, uint64_t len)
{
    SCOPED_LOCK(&t->lock);
    t->busy &= ~slots_of(offset, len);
    pthread_cond_broadcast(&t->changed_busy);
}

void tracking_kick(struct tracking *t)
{
    SCOPED_LOCK(&t->lock);
    pthread_cond_broadcast(&t->changed_busy);
}

bool tracking_is_same(struct tracking *t, uint64_t page, const void *bytes, size_t len)
{
    struct page_hash digest = digest_of(t, bytes, len);

    return page < t->pages && is_equal(&t->digests[page], &digest);
}

static bool record(struct tracking *t, uint64_t page, const struct page_hash *digest)
{
    /* What is beyond is always sent. */
    if (page >= t->pages)
        return true;
    bool changed = !is_equal(&t->digests[page], digest);
    if (changed)
        t->digests[page] = *digest;
    return changed;
}

bool tracking_record(struct tracking *t, uint64_t page, const void *bytes, size_t len)
{
    struct page_hash digest = digest_of(t, bytes, len);

    return record(t, page, &digest);
}

bool tracking_record_zeros(struct tracking *t, uint64_t page)
{
    return record(t, page, &t->zero);
}

void tracking_forget(struct tracking *t, uint64_t offset, uint64_t len)
{
    uint64_t first = offset / WIRE_PAGE_SIZE, end;

    if (len == 0 || first >= t->pages)
        return;
    end = len > t->pages * WIRE_PAGE_SIZE - offset ? t->pages : (offset + len - 1) / WIRE_PAGE_SIZE + 1;
    for (uint64_t page = first; page < end; page++) {
        /* Memory that was never touched is not known already. */
        if (t->digests[page].low | t->digests[page].high)
            t->digests[page] = (struct page_hash){0};
    }
}

void tracking_count(struct tracking *t, uint64_t scanned, uint64_t changed, uint64_t ns)
{
    atomic_fetch_add_explicit(&t->scanned, scanned, memory_order_relaxed);
    atomic_fetch_add_explicit(&t->changed, changed, memory_order_relaxed);
    atomic_fetch_add_explicit(&t->scan_ns, ns, memory_order_relaxed);
}

struct tracking_figures tracking_figures(struct tracking *t)
{
    return (struct tracking_figures){
        .scanned = atomic_load_explicit(&t->scanned, memory_order_relaxed),
        .changed = atomic_load_explicit(&t->changed, memory_order_relaxed),
        .scan_ns = atomic_load_explicit(&t->scan_ns, memory_order_relaxed),
    };
}
