/* SPDX-License-Identifier: Apache-2.0 */
/* rdma:HOST:PORT where RDMA is not built. */
#include "transport.h"

static int refuse(struct error *err)
{
    return error_set(err, CAUSE_UNSUPPORTED, "this migfs is built without RDMA");
}

static int rdma_connect(const struct uri *uri, unsigned index, const struct transport_group *group,
                        const struct transport_wait *wait, struct transport **out, struct error *err)
{
    (void)uri, (void)index, (void)group, (void)wait, (void)out;
    return refuse(err);
}

static int rdma_listen(const struct uri *uri, struct transport_listener **out, struct error *err)
{
    (void)uri, (void)out;
    return refuse(err);
}

/* Nothing has to be registered. */
int transport_memory_add(void *base, size_t len)
{
    (void)base, (void)len;
    return 0;
}

void transport_memory_remove(void *base)
{
    (void)base;
}

const bool transport_has_rdma = false;

const struct transport_family transport_rdma = {
    .connect = rdma_connect,
    .listen = rdma_listen,
};
