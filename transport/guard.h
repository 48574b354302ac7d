/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that can go away: a mapped file that somebody else makes shorter. The kernel then says SIGBUS to
 * whoever touches it. In here that is an error. A system call says EFAULT by itself, so only what is copied
 * by the processor needs it.
 */
#ifndef MIGFS_GUARD_H
#define MIGFS_GUARD_H

#include <stddef.h>

/** guard_setup - once, before the first guard_call(), when no thread runs yet */
void guard_setup(void);

/**
 * guard_call - call @use, which touches such memory and takes no lock
 *
 * Return: 0; -EFAULT when it went away under it. Calls do not nest.
 */
int guard_call(void (*use)(void *arg), void *arg);

/** guard_copy - memcpy(3), one end of which can be such memory. Return: 0 or -EFAULT, with some of it copied
 */
int guard_copy(void *to, const void *from, size_t len);

#endif
