/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Processes that have a file mapped privately and can write to the mapping.
 *
 * What such a process writes stays with it and is not in the file: a VMM whose RAM
 * is a shared file, but mapped with MAP_PRIVATE (share=off), has its guest's memory
 * elsewhere, and the file has what was there before.
 */
#ifndef MIGFS_PRIVATE_MAP_H
#define MIGFS_PRIVATE_MAP_H

#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

/**
 * private_map_find - a process that maps a file privately, and writably
 * @proc: where proc(5) is mounted
 * @file: what stat(2) says of the file
 * @first: a process to look at first; 0: none
 *
 * Return: its number, or 0 when none is seen: those of others, which this process may not
 * look into, and those of other PID namespaces are not. Takes a read of the maps of every
 * process.
 */
pid_t private_map_find(const char *proc, const struct stat *file, pid_t first);

#endif
