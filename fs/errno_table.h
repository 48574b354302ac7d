/* SPDX-License-Identifier: Apache-2.0 */
/* The one place where the user's errno is chosen; the table is also in migfs(5). */
#ifndef MIGFS_ERRNO_TABLE_H
#define MIGFS_ERRNO_TABLE_H

#include "error.h"

/** errno_of - the errno, positive, that a user gets for a cause */
int errno_of(enum cause cause);

#endif
