/* SPDX-License-Identifier: Apache-2.0 */
/* A directory of the test's own. scratch_make and scratch_remove fit a suite's .init and .fini. */
#ifndef MIGFS_TEST_SCRATCH_H
#define MIGFS_TEST_SCRATCH_H

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char scratch[64];

static inline void scratch_make(void)
{
    strcpy(scratch, "/tmp/migfs-unit-XXXXXX");
    cr_assert(not(zero(ptr, mkdtemp(scratch))), "no directory for the test");
}

static inline int scratch_remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

static inline void scratch_remove(void)
{
    nftw(scratch, scratch_remove_one, 8, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
}

#endif
