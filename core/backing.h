/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The regular file in a user's directory that a destination keeps RAM in.
 *
 * While it is filled, the file has the sticky bit, which is without a meaning for
 * regular files and which every file system keeps, hugetlbfs too; and its descriptor
 * holds a lock, flock(2), which ends with the daemon, however that ends. So:
 *
 *   mark and lock     somebody fills it
 *   mark, no lock     a leftover of a daemon that died: whoever needs the name removes it
 *   no mark           complete, or not ours: nobody's to remove but the user's
 *
 * Nobody touches a file that has the mark without holding its lock, but for the moment
 * between making and locking one, and whoever has got a lock looks whether the name
 * still is the locked file's. A leftover is removed, not emptied: whoever has it open
 * or mapped keeps it. It is removed under its lock, and a new one is made under O_EXCL:
 * of several daemons that want the name at once, one gets it.
 */
#ifndef MIGFS_BACKING_H
#define MIGFS_BACKING_H

#include "error.h"

#include <stdbool.h>

/**
 * backing_make - make a file, with the mark, and lock it
 *
 * A leftover of the name makes way. Where the file system knows no locks there is no
 * mark, either: then a leftover has to be removed by hand.
 * Return: the descriptor. Negative: CAUSE_STATE when it is in use, CAUSE_EXISTS when there is another file.
 */
int backing_make(const char *path, struct error *err);

/**
 * backing_finish - it is complete: take the mark away, and end the lock
 *
 * Nobody else changes the mode meanwhile.
 */
int backing_finish(int fd, const char *path, struct error *err);

/**
 * backing_has_name - whether @path is the file's: somebody can have removed it, and even have put another one
 * there
 */
bool backing_has_name(int fd, const char *path);

#endif
