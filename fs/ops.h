/* SPDX-License-Identifier: Apache-2.0 */
/* The FUSE operations: from requests of the kernel to calls of the core. */
#ifndef MIGFS_OPS_H
#define MIGFS_OPS_H

#include "registry.h"

#include <fuse_lowlevel.h>

/*
 * Requests that the kernel sends without somebody waiting for each. Asynchronous reads and writes can wait
 * here, and closing a file, which may not wait for them, is one of these requests, too: so there are more
 * than may wait (LOOP_WAITERS_MAX, and what is parked).
 */
#define OPS_MAX_BACKGROUND 4096

/** ops_table - the operations; their user data is the struct registry */
extern const struct fuse_lowlevel_ops ops_table;

#endif
