/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that the card may read and write, and whose it is.
 *
 * Theory of operation
 *   The connections of one migration are a group, and share a protection domain: a key
 *   that is given to the peer of one group is worth nothing in another one.
 *
 *   What is sent from has to be registered, which pins its pages. That takes long, so it
 *   is done in chunks, when they are first needed, and remembered. Only memory that
 *   stays where it is can be remembered: transport_memory_add() says which does. The
 *   number of pinned bytes is bounded by RLIMIT_MEMLOCK alone: when the kernel refuses
 *   another chunk, the one that was used longest ago, and is not in use, goes.
 *
 *   What the peer may write is registered by rdma_expose(), until rdma_withdraw().
 *
 * Locks: memory_lock (the lists of regions and domains), then a domain's lock.
 */
#ifndef MIGFS_RDMA_MEMORY_H
#define MIGFS_RDMA_MEMORY_H

#include "transport.h"

#include <infiniband/verbs.h>

struct rdma_domain;

/* A registered chunk of memory that is sent from. */
struct rdma_local {
    uint64_t base, len;
    struct ibv_mr *mr;
    unsigned users; /* work requests that read it; the domain's lock */
    uint64_t used;  /* when it was last taken; the domain's lock */
    bool pinned;    /* makes room for no other one; the domain's lock */
    bool doomed;    /* its region is gone: the last user frees it; the domain's lock */
    struct rdma_local *next;
};

/**
 * rdma_domain_get - the domain of a group on a device
 * @group: its id; another reference to the domain that is there, or a new one
 * @passive: the end that listens; both ends can be in one process
 *
 * Return: NULL when the group is on another device, or there is no memory (errno).
 */
struct rdma_domain *rdma_domain_get(struct ibv_context *device, const uint8_t *group, bool passive);
void rdma_domain_put(struct rdma_domain *domain);
struct ibv_pd *rdma_domain_pd(struct rdma_domain *domain);

/** rdma_domain_settings - the size of chunks, from the connection that makes the domain */
void rdma_domain_settings(struct rdma_domain *domain, const struct transport_group *group);

/**
 * rdma_local_take - registered memory that begins at @buf; stays until rdma_local_release()
 * @len: bytes that are wanted
 * @covered: how many of them it has; more than none
 *
 * Return: NULL when the memory is not known to stay, or cannot be registered.
 */
struct rdma_local *rdma_local_take(struct rdma_domain *domain, const void *buf, size_t len, size_t *covered);
void rdma_local_release(struct rdma_domain *domain, struct rdma_local *local);

/** rdma_local_pin - struct transport_ops @pin: registered chunks that make room for no others */
int rdma_local_pin(struct rdma_domain *domain, const void *base, size_t len);

/** rdma_expose, rdma_withdraw - see struct transport_ops */
int rdma_expose(struct rdma_domain *domain, void *base, size_t len, struct transport_key *key);
void rdma_withdraw(struct rdma_domain *domain, const struct transport_key *key);

/** rdma_domain_figures - add what it has registered */
void rdma_domain_figures(struct rdma_domain *domain, struct transport_figures *out);

#endif
