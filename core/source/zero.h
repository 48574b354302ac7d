/* SPDX-License-Identifier: Apache-2.0 */
/* Finding pages that are all zero. */
#ifndef MIGFS_ZERO_H
#define MIGFS_ZERO_H

#include <stdbool.h>
#include <stddef.h>

/** zero_is - whether @len bytes are all zero; stops at the first that is not */
bool zero_is(const void *buf, size_t len);

/**
 * zero_run - the length of the run of whole pages at the start of @buf that are alike
 * @len: bytes, a multiple of the page size, not 0
 * @zero: whether the run's pages are all zero
 */
size_t zero_run(const void *buf, size_t len, bool *zero);

#endif
