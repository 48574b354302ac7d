/* SPDX-License-Identifier: Apache-2.0 */
/* The stand-in's memory; see verbs.h. */
#include "verbs_card.h"
#include "cleanup.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#define REMOTE_KEYS 0x80000000u /* a key for the peer is none for this end */

/* In the place of the library's. */
#undef ibv_reg_mr

struct range {
    struct ibv_mr mr;
    int access;
    struct range *next;
};

/* Under card_lock. */
static struct range *ranges;
static uint32_t last_key;
static uint64_t registered_max = UINT64_MAX;

void memory_limit(uint64_t bytes)
{
    registered_max = bytes;
}

struct ibv_pd *ibv_alloc_pd(struct ibv_context *context)
{
    SCOPED_LOCK(&card_lock);
    if (card_must_fail(VERBS_ALLOC_PD))
        return NULL;
    struct ibv_pd *pd = calloc(1, sizeof(*pd));
    pd->context = context;
    card_counts.domains++;
    return pd;
}

int ibv_dealloc_pd(struct ibv_pd *pd)
{
    SCOPED_LOCK(&card_lock);
    for (const struct range *range = ranges; range; range = range->next) {
        if (range->mr.pd == pd)
            card_violation("a protection domain goes before its memory");
    }
    if (pair_uses(pd))
        card_violation("a protection domain goes before its queue pairs");
    card_counts.domains--;
    free(pd);
    return 0;
}

struct ibv_mr *ibv_reg_mr(struct ibv_pd *pd, void *addr, size_t length, int access)
{
    SCOPED_LOCK(&card_lock);
    if (card_must_fail(VERBS_REG_MR))
        return NULL;
    if (length > registered_max - card_counts.registered_bytes) {
        errno = ENOMEM;
        return NULL;
    }
    struct range *range = calloc(1, sizeof(*range));
    last_key++;
    range->mr = (struct ibv_mr){.context = pd->context,
                                .pd = pd,
                                .addr = addr,
                                .length = length,
                                .lkey = last_key,
                                .rkey = last_key | REMOTE_KEYS};
    range->access = access;
    range->next = ranges;
    ranges = range;
    card_counts.ranges++;
    card_counts.registered_bytes += length;
    return &range->mr;
}

struct ibv_mr *ibv_reg_mr_iova2(struct ibv_pd *pd, void *addr, size_t length, uint64_t iova,
                                unsigned int access)
{
    (void)iova;
    return ibv_reg_mr(pd, addr, length, (int)access);
}

/* ASan's, where there is ASan. */
extern void *__asan_region_is_poisoned(void *begin, size_t size) __attribute__((weak));

static void check_mapped(const struct ibv_mr *mr)
{
    uintptr_t begin = (uintptr_t)mr->addr & ~(uintptr_t)4095, end = (uintptr_t)mr->addr + mr->length;

    if (msync((void *)begin, end - begin, MS_ASYNC) < 0)
        card_violation("memory was unmapped while it was registered");
    if (__asan_region_is_poisoned && __asan_region_is_poisoned(mr->addr, mr->length))
        card_violation("memory was freed while it was registered");
}

int ibv_dereg_mr(struct ibv_mr *mr)
{
    struct range **at = &ranges;

    SCOPED_LOCK(&card_lock);
    while (*at && &(*at)->mr != mr)
        at = &(*at)->next;
    if (!*at)
        card_violation("memory is deregistered that is not registered");
    check_mapped(mr);
    struct range *range = *at;
    *at = range->next;
    card_counts.ranges--;
    card_counts.registered_bytes -= mr->length;
    free(range);
    return 0;
}

static bool is_inside(const struct ibv_mr *mr, uint64_t addr, uint64_t len)
{
    uint64_t begin = (uintptr_t)mr->addr;

    return addr >= begin && addr - begin <= mr->length && len <= mr->length - (addr - begin);
}

bool memory_allows(const struct ibv_pd *pd, uint32_t key, uint64_t addr, uint64_t len, int access)
{
    const struct range *range = ranges;

    while (range && (range->mr.pd != pd || (key & REMOTE_KEYS ? range->mr.rkey : range->mr.lkey) != key))
        range = range->next;
    return range && (range->access & access) == access && is_inside(&range->mr, addr, len) &&
           !(access & IBV_ACCESS_REMOTE_WRITE) == !(key & REMOTE_KEYS);
}
