/* SPDX-License-Identifier: Apache-2.0 */
/*
 * poll(2) on the files of the tree: who waits for what, and who is told.
 *
 * `status` is readable when the state has changed since it was last read
 * through the same handle; `wait` when the migration is over; a device's stream
 * when reading on would not wait; everything else always.
 */
#ifndef MIGFS_POLLING_H
#define MIGFS_POLLING_H

#include "handle.h"

#include <fuse_lowlevel.h>

/**
 * poll_check - is a handle ready?
 * @ph: to be told later when it is not, or NULL; consumed
 * Return: poll events.
 */
unsigned poll_check(struct handle *handle, struct fuse_pollhandle *ph);

/** poll_forget - the handle is being closed */
void poll_forget(struct handle *handle);

/** poll_forget_all - at the end, when the kernel is gone */
void poll_forget_all(void);

/** poll_changed - something about a migration has changed: tell those who are ready now */
void poll_changed(struct migration *m);

#endif
