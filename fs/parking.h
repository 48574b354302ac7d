/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads that wait for as long as it takes: of a device's stream until there is more,
 * of `wait` until the migration is over. Parked, such a request holds no worker and no
 * thread, so that any number of readers leaves the mount as it is. How many may be
 * parked is bounded, for each user and each migration.
 */
#ifndef MIGFS_PARKING_H
#define MIGFS_PARKING_H

#include "error.h"
#include "handle.h"

#include <fuse_lowlevel.h>

/**
 * parking_answer - answers a read, or parks it again
 * @cause: CAUSE_NONE: look again, there should be something. Else why there will be no data:
 *         CAUSE_INTERRUPTED, CAUSE_QUOTA, CAUSE_NO_MEMORY or CAUSE_SHUTDOWN
 *
 * Called once, by parking_park() itself or later by another thread, with no lock of ours held.
 */
typedef void (*parking_answer)(fuse_req_t req, struct handle *handle, size_t size, off_t offset, int flags,
                               enum cause cause);

/** parking_start - make the thread that answers; 0 or a negative errno */
int parking_start(void);

/** parking_stop - answer all that are parked; the workers are gone */
void parking_stop(void);

/**
 * parking_park - leave a read of a device at the destination, or of `wait`, until it need not wait
 * @req: whoever calls @answer has it; not the caller's any more
 * @handle: of the file that is read
 * @flags: those of open(2) that it has now
 */
void parking_park(fuse_req_t req, struct handle *handle, size_t size, off_t offset, int flags,
                  parking_answer answer);

#endif
