/* SPDX-License-Identifier: Apache-2.0 */
/* rdma:HOST:PORT where RDMA is not built. */
#include "transport.h"

static int refuse(struct error *err)
{
    return error_set(err, CAUSE_UNSUPPORTED, "this migfs is built without RDMA");
}

static int rdma_connect(const struct uri *uri, unsigned index, const struct transport_wait *wait,
                        struct transport **out, struct error *err)
{
    (void)uri, (void)index, (void)wait, (void)out;
    return refuse(err);
}

static int rdma_listen(const struct uri *uri, struct transport_listener **out, struct error *err)
{
    (void)uri, (void)out;
    return refuse(err);
}

const struct transport_family transport_rdma = {
    .connect = rdma_connect,
    .listen = rdma_listen,
};
