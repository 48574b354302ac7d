/* SPDX-License-Identifier: Apache-2.0 */
/* Names of migrations and devices. */
#ifndef MIGFS_NAME_H
#define MIGFS_NAME_H

#include "error.h"

/**
 * name_check_migration - whether a name is fit to be a migration's
 *
 * The rule is the same for a user's mkdir and a peer's hello: 1 to 255 bytes
 * of UTF-8, no slash, no control characters, nothing that turns the direction of
 * text, no dot at the beginning. CAUSE_SYNTAX or CAUSE_NAME_TOO_LONG.
 */
int name_check_migration(const char *name, struct error *err);

/**
 * name_check_device - whether a name is fit to be a device's
 *
 * The same, for a user and a peer, but that it may begin with a dot, as the temporary files of
 * tools do that write a file and then rename it; . and .. are none.
 */
int name_check_device(const char *name, struct error *err);

#endif
