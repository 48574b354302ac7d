/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which request that can wait may have a worker, to wait in it: for room, for a peer, for an
 * answer. So many at most that there are always workers for what never waits: looking
 * at names and states, `cancel`, closing, and the interrupts of what waits.
 *
 * Whoever asks is admitted while he, and the migration, leave enough for the others:
 * a user twice as many as are left, a migration as many as are left. So one
 * migration takes at most a half, one user at most two thirds, and whoever comes next
 * finds a share, however many there are. That holds for root, too.
 */
#ifndef MIGFS_ADMISSION_H
#define MIGFS_ADMISSION_H

#include "error.h"
#include "migration.h"
#include "user.h"

struct admission {
    struct user *user;
    struct migration *m;
};

/**
 * admission_enter - a request that can wait begins; in a worker
 * @m: outlives the admission
 * Return: 0, or negative with CAUSE_QUOTA. It never waits.
 */
int admission_enter(struct admission *admission, struct user *user, struct migration *m, struct error *err);

/** admission_leave - it waits no more */
void admission_leave(struct admission *admission);

#endif
