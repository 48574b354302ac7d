/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The place where it is mounted: what is mounted there already, and whether the
 * daemon behind that lives.
 */
#ifndef MIGFS_MOUNTPOINT_H
#define MIGFS_MOUNTPOINT_H

#include "error.h"

#include <stdbool.h>

/**
 * mountpoint_claim - see that a directory can be mounted over
 * @path: the directory
 * @stack: a mount of migfs that lives is no reason to refuse
 * @out: its absolute path, the caller's to free
 *
 * A mount of migfs whose daemon has died is taken away.
 *
 * Return: 0, or negative with @err, whose cause is CAUSE_STATE when another mount is in the way.
 */
int mountpoint_claim(const char *path, bool stack, char **out, struct error *err);

/** mountpoint_detach - take away what is mounted at @path, whoever uses it; it may be in vain */
void mountpoint_detach(const char *path);

/** mountpoint_id - the number of the mount that @path is in now; -1: it cannot be told. It asks no daemon. */
int mountpoint_id(const char *path);

/**
 * mountpoint_blame - say which mount it is that makes a look at @path fail with ENOTCONN, and how to end it
 */
int mountpoint_blame(const char *path, struct error *err);

#endif
