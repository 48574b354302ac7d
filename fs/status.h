/* SPDX-License-Identifier: Apache-2.0 */
/* The texts of `status` and `status.json`: one snapshot, two forms. */
#ifndef MIGFS_STATUS_H
#define MIGFS_STATUS_H

#include "migration.h"

#include <stddef.h>

/**
 * status_text - describe a migration
 * @json: one JSON object instead of "key value" lines
 * @generation: which change of state the text shows
 *
 * Return: the text, the caller's to free; NULL when memory runs out.
 */
char *status_text(struct migration *m, bool json, size_t *size, uint64_t *generation);

#endif
