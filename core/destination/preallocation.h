/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Having the memory of a RAM image there before it arrives: a thread, mig-prealloc, that goes through it from
 * its start. It waits for nobody, and nobody for it but the one who ends it: memory that is not there when
 * data comes is made then.
 */
#ifndef MIGFS_PREALLOCATION_H
#define MIGFS_PREALLOCATION_H

#include "error.h"
#include "image.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

/* A zeroed one has not begun. */
struct preallocation {
    struct image *image; /* its owner keeps it until preallocation_end() */
    pthread_t thread;    /* one thread of its owner's has it, like the next one */
    bool running;        /* the thread has to be joined */
    atomic_bool ends;    /* it is to end, or not to begin */
};

/** preallocation_begin - make the thread; once */
int preallocation_begin(struct preallocation *p, struct image *image, struct error *err);

/** preallocation_stop - it is of no use any more; any thread, and at any time */
void preallocation_stop(struct preallocation *p);

/** preallocation_end - wait until nothing more is made, if it has begun; the memory can be given back then */
void preallocation_end(struct preallocation *p);

#endif
