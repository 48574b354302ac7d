/* SPDX-License-Identifier: Apache-2.0 */
/* Counters of a device; see rdma_counters.h. */
#include "rdma_counters.h"
#include "cleanup.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* Of rdma_rxe, then of mlx5. */
static const char *const rnr_naks[] = {"rcvd_rnr_err", "rnr_nak_retry_err", NULL};
static const char *const retries[] = {"completer_retry_err", "local_ack_timeout_err", NULL};

static uint64_t read_counter(int directory, const char *const *names)
{
    for (; *names; names++) {
        CLEANUP_FD int fd = openat(directory, *names, O_RDONLY | O_CLOEXEC);
        char text[24];
        ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
        if (n > 0) {
            text[n] = '\0';
            return strtoull(text, NULL, 10);
        }
    }
    return 0;
}

struct rdma_counters rdma_counters(struct ibv_context *device)
{
    struct rdma_counters sum = {0};
    char path[512];

    for (unsigned port = 1;; port++) {
        snprintf(path, sizeof(path), "%s/ports/%u/hw_counters", device->device->ibdev_path, port);
        CLEANUP_FD int directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (directory < 0)
            return sum;
        sum.rnr_naks += read_counter(directory, rnr_naks);
        sum.retries += read_counter(directory, retries);
    }
}
