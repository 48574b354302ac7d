/* SPDX-License-Identifier: Apache-2.0 */
/* What the programs that pass connections on have in common: tap.c, tunnel.c, line.c. */
#ifndef MIGFS_TEST_RELAY_H
#define MIGFS_TEST_RELAY_H

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* One way of a connection in a thread of its own, which gets a copy of what says which, and frees it or keeps it. */
static inline void relay_start(void *(*carry)(void *way), const void *way, size_t size)
{
    void *copy = malloc(size);
    pthread_t thread;

    if (!copy)
        exit(1);
    memcpy(copy, way, size);
    if (pthread_create(&thread, NULL, carry, copy))
        exit(1);
    pthread_detach(thread);
}

#endif
