/* SPDX-License-Identifier: Apache-2.0 */
/* Connecting and listening at rdma: addresses, with the card of verbs.h. */
#include "rdma_link.h"
#include "check.h"

TestSuite(rdma);

Test(rdma, connects)
{
    struct link link;

    rdma_link_open(&link);
    link_close(&link);
    verbs_expect_nothing_left();
}
