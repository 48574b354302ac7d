/* SPDX-License-Identifier: Apache-2.0 */
/* Names of migrations and devices. */
#ifndef MIGFS_NAME_H
#define MIGFS_NAME_H

#include "error.h"

/**
 * name_check - whether a name is fit to be a file's
 * @what: "migration" or "device", for the sentence
 *
 * The rule is the same for a user's mkdir and a peer's hello: 1 to 255 bytes,
 * no slash, no control characters, no dot at the beginning. CAUSE_SYNTAX or
 * CAUSE_NAME_TOO_LONG.
 */
int name_check(const char *what, const char *name, struct error *err);

#endif
