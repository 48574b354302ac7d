/* SPDX-License-Identifier: Apache-2.0 */
/* Registered memory; see rdma_memory.h. */
#include "rdma_memory.h"
#include "cleanup.h"
#include "rdma_counters.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* Memory that stays where it is; memory_lock guards all of them. */
struct region {
    uint64_t base, len;
    unsigned users; /* that register a part of it */
    struct region *next;
};

/* A range that the peer may write. */
struct exposure {
    struct ibv_mr *mr;
    struct exposure *next;
};

struct rdma_domain {
    struct ibv_context *device;
    struct ibv_pd *pd;
    uint8_t group[TRANSPORT_GROUP_SIZE];
    bool passive;
    unsigned references;      /* memory_lock */
    struct rdma_domain *next; /* memory_lock */

    pthread_mutex_t lock; /* guards what follows */
    uint64_t chunk;       /* bytes; a power of two */
    struct rdma_local *locals;
    struct exposure *exposures;
    uint64_t clock;
    struct transport_figures figures;
    struct rdma_counters counters; /* the device's when it was made; constant */
};

static pthread_mutex_t memory_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t region_unused = PTHREAD_COND_INITIALIZER; /* with memory_lock */
static struct region *regions;
static struct rdma_domain *domains;

int transport_memory_add(void *base, size_t len)
{
    struct region *region = malloc(sizeof(*region));

    if (!region)
        return -ENOMEM;
    *region = (struct region){.base = (uintptr_t)base, .len = len};
    SCOPED_LOCK(&memory_lock);
    region->next = regions;
    regions = region;
    return 0;
}

/* Called with the domain's lock held. */
static void free_local(struct rdma_domain *domain, struct rdma_local *local)
{
    domain->figures.registered_bytes -= local->len;
    ibv_dereg_mr(local->mr);
    free(local);
}

/* Called with the domain's lock held: takes it out of the list, and frees it unless somebody uses it. */
static void unlink_local(struct rdma_domain *domain, struct rdma_local **at)
{
    struct rdma_local *local = *at;

    *at = local->next;
    local->doomed = true;
    if (local->users == 0)
        free_local(domain, local);
}

static void forget_region(struct rdma_domain *domain, const struct region *region)
{
    SCOPED_LOCK(&domain->lock);
    for (struct rdma_local **at = &domain->locals; *at;) {
        if ((*at)->base >= region->base && (*at)->base < region->base + region->len)
            unlink_local(domain, at);
        else
            at = &(*at)->next;
    }
}

void transport_memory_remove(void *base)
{
    struct region **at = &regions;

    SCOPED_LOCK(&memory_lock);
    while (*at && (*at)->base != (uintptr_t)base)
        at = &(*at)->next;
    if (!*at)
        return;
    struct region *region = *at;
    *at = region->next;
    while (region->users > 0)
        pthread_cond_wait(&region_unused, &memory_lock);
    for (struct rdma_domain *domain = domains; domain; domain = domain->next)
        forget_region(domain, region);
    free(region);
}

/* Called with memory_lock held. */
static struct rdma_domain *find_domain(const uint8_t *group, bool passive)
{
    for (struct rdma_domain *domain = domains; domain; domain = domain->next) {
        if (domain->passive == passive && !memcmp(domain->group, group, sizeof(domain->group)))
            return domain;
    }
    return NULL;
}

struct rdma_domain *rdma_domain_get(struct ibv_context *device, const uint8_t *group, bool passive)
{
    SCOPED_LOCK(&memory_lock);
    struct rdma_domain *domain = find_domain(group, passive);
    if (domain && domain->device != device) {
        errno = EXDEV;
        return NULL;
    }
    if (domain) {
        domain->references++;
        return domain;
    }
    domain = calloc(1, sizeof(*domain));
    if (!domain)
        return NULL;
    domain->pd = ibv_alloc_pd(device);
    if (!domain->pd) {
        free(domain);
        return NULL;
    }
    domain->device = device;
    domain->passive = passive;
    domain->references = 1;
    domain->chunk = TRANSPORT_CHUNK;
    domain->counters = rdma_counters(device);
    memcpy(domain->group, group, sizeof(domain->group));
    pthread_mutex_init(&domain->lock, NULL);
    domain->next = domains;
    domains = domain;
    return domain;
}

void rdma_domain_settings(struct rdma_domain *domain, const struct transport_group *group)
{
    SCOPED_LOCK(&domain->lock);
    domain->chunk = group->chunk;
}

struct ibv_pd *rdma_domain_pd(struct rdma_domain *domain)
{
    return domain->pd;
}

void rdma_domain_put(struct rdma_domain *domain)
{
    struct rdma_domain **at = &domains;

    if (!domain)
        return;
    SCOPED_LOCK(&memory_lock);
    if (--domain->references > 0)
        return;
    while (*at != domain)
        at = &(*at)->next;
    *at = domain->next;
    /* No connection is left, so nobody reads or writes any of it. */
    while (domain->locals)
        unlink_local(domain, &domain->locals);
    while (domain->exposures) {
        struct exposure *exposure = domain->exposures;
        domain->exposures = exposure->next;
        ibv_dereg_mr(exposure->mr);
        free(exposure);
    }
    ibv_dealloc_pd(domain->pd);
    pthread_mutex_destroy(&domain->lock);
    free(domain);
}

/* A cached chunk with the byte at @at. Called with the domain's lock held. */
static struct rdma_local *find_local(struct rdma_domain *domain, uint64_t at)
{
    struct rdma_local *local = domain->locals;

    while (local && (at < local->base || at >= local->base + local->len))
        local = local->next;
    return local;
}

/* Gives up the chunk that was used longest ago, if there is one that nobody uses. */
static bool evict(struct rdma_domain *domain)
{
    struct rdma_local **oldest = NULL;

    SCOPED_LOCK(&domain->lock);
    for (struct rdma_local **at = &domain->locals; *at; at = &(*at)->next) {
        if ((*at)->users == 0 && !(*at)->pinned && (!oldest || (*at)->used < (*oldest)->used))
            oldest = at;
    }
    if (!oldest)
        return false;
    domain->figures.evictions++;
    unlink_local(domain, oldest);
    return true;
}

static struct region *use_region(uint64_t at)
{
    SCOPED_LOCK(&memory_lock);
    struct region *region = regions;
    while (region && (at < region->base || at >= region->base + region->len))
        region = region->next;
    if (region)
        region->users++;
    return region;
}

static void unuse_region(struct region *region)
{
    SCOPED_LOCK(&memory_lock);
    if (--region->users == 0)
        pthread_cond_broadcast(&region_unused);
}

/* Registers the chunk, of @chunk bytes, of a region with the byte at @at. No lock is held: it takes long. */
static struct rdma_local *register_chunk(struct rdma_domain *domain, uint64_t chunk,
                                         const struct region *region, uint64_t at)
{
    struct rdma_local *local = calloc(1, sizeof(*local));
    uint64_t begin = at - (at - region->base) % chunk;
    uint64_t left = region->base + region->len - begin;

    if (!local)
        return NULL;
    local->base = begin;
    local->len = left < chunk ? left : chunk;
    do
        local->mr = ibv_reg_mr(domain->pd, (void *)(uintptr_t)begin, local->len, 0);
    while (!local->mr && errno == ENOMEM && evict(domain));
    if (!local->mr) {
        free(local);
        return NULL;
    }
    return local;
}

/* Puts a chunk into the list, unless another thread was faster. Called with the domain's lock held. */
static struct rdma_local *publish(struct rdma_domain *domain, struct rdma_local *made, uint64_t at)
{
    struct rdma_local *local = find_local(domain, at);

    domain->figures.registrations++;
    domain->figures.registered_bytes += made->len;
    if (local) {
        free_local(domain, made);
        return local;
    }
    made->next = domain->locals;
    domain->locals = made;
    return made;
}

static struct rdma_local *take(struct rdma_domain *domain, struct rdma_local *local)
{
    local->users++;
    local->used = ++domain->clock;
    return local;
}

struct rdma_local *rdma_local_take(struct rdma_domain *domain, const void *buf, size_t len, size_t *covered)
{
    uint64_t at = (uintptr_t)buf;

    pthread_mutex_lock(&domain->lock);
    struct rdma_local *local = find_local(domain, at);
    if (local)
        take(domain, local);
    uint64_t chunk = domain->chunk;
    pthread_mutex_unlock(&domain->lock);
    if (!local) {
        struct region *region = use_region(at);
        struct rdma_local *made = region ? register_chunk(domain, chunk, region, at) : NULL;
        if (made) {
            SCOPED_LOCK(&domain->lock);
            local = take(domain, publish(domain, made, at));
        }
        if (region)
            unuse_region(region);
    }
    if (!local)
        return NULL;
    uint64_t left = local->base + local->len - at;
    *covered = left < len ? left : len;
    return local;
}

void rdma_local_release(struct rdma_domain *domain, struct rdma_local *local)
{
    SCOPED_LOCK(&domain->lock);
    if (--local->users == 0 && local->doomed)
        free_local(domain, local);
}

int rdma_local_pin(struct rdma_domain *domain, const void *base, size_t len)
{
    const char *at = base;

    while (len > 0) {
        size_t covered;
        errno = 0;
        struct rdma_local *local = rdma_local_take(domain, at, len, &covered);
        if (!local)
            return errno ? -errno : -ENOMEM;
        pthread_mutex_lock(&domain->lock);
        local->pinned = true;
        pthread_mutex_unlock(&domain->lock);
        rdma_local_release(domain, local);
        at += covered;
        len -= covered;
    }
    return 0;
}

int rdma_expose(struct rdma_domain *domain, void *base, size_t len, struct transport_key *key)
{
    struct exposure *exposure = calloc(1, sizeof(*exposure));

    if (!exposure)
        return -ENOMEM;
    exposure->mr = ibv_reg_mr(domain->pd, base, len, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
    if (!exposure->mr) {
        int code = errno;
        free(exposure);
        return -code;
    }
    *key = (struct transport_key){.address = (uintptr_t)base, .key = exposure->mr->rkey};
    SCOPED_LOCK(&domain->lock);
    exposure->next = domain->exposures;
    domain->exposures = exposure;
    domain->figures.registrations++;
    domain->figures.registered_bytes += len;
    return 0;
}

void rdma_withdraw(struct rdma_domain *domain, const struct transport_key *key)
{
    struct exposure **at = &domain->exposures;

    SCOPED_LOCK(&domain->lock);
    while (*at && (*at)->mr->rkey != key->key)
        at = &(*at)->next;
    if (!*at)
        return;
    struct exposure *exposure = *at;
    *at = exposure->next;
    domain->figures.registered_bytes -= exposure->mr->length;
    ibv_dereg_mr(exposure->mr);
    free(exposure);
}

void rdma_domain_figures(struct rdma_domain *domain, struct transport_figures *out)
{
    struct rdma_counters counters = rdma_counters(domain->device);

    out->rnr_naks += counters.rnr_naks - domain->counters.rnr_naks;
    out->retries += counters.retries - domain->counters.retries;
    SCOPED_LOCK(&domain->lock);
    out->registrations += domain->figures.registrations;
    out->evictions += domain->figures.evictions;
    out->registered_bytes += domain->figures.registered_bytes;
}
