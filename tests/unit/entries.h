/* SPDX-License-Identifier: Apache-2.0 */
/* How many descriptors or threads there are: entries of /proc/self/fd, or /proc/self/task. */
#ifndef MIGFS_TEST_ENTRIES_H
#define MIGFS_TEST_ENTRIES_H

#include <dirent.h>

/* With those of the directory itself; of /proc/self/fd, with the descriptor that counts. */
static inline unsigned count_entries(const char *path)
{
    DIR *dir = opendir(path);
    unsigned n = 0;

    while (readdir(dir))
        n++;
    closedir(dir);
    return n;
}

#endif
