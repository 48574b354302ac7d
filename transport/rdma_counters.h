/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an RDMA device counts by itself, for all that use it. The names are each driver's own; what it does
 * not count stays 0.
 */
#ifndef MIGFS_RDMA_COUNTERS_H
#define MIGFS_RDMA_COUNTERS_H

#include <infiniband/verbs.h>
#include <stdint.h>

struct rdma_counters {
    uint64_t rnr_naks; /* of ours that the other end had no receive for */
    uint64_t retries;  /* requests that were sent once more for want of an answer */
};

/** rdma_counters - as they are now, all ports together */
struct rdma_counters rdma_counters(struct ibv_context *device);

#endif
