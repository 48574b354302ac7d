/* SPDX-License-Identifier: Apache-2.0 */
/* Private mappings of a file; see private_map.h. The lines are those of proc_pid_maps(5). */
#include "private_map.h"
#include "cleanup.h"

#include <ctype.h>
#include <dirent.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/sysmacros.h>

static bool is_private_map(const char *line, const struct stat *file)
{
    unsigned device_major, device_minor;
    uint64_t inode;
    char modes[5];

    return sscanf(line, "%*x-%*x %4s %*x %x:%x %" SCNu64, modes, &device_major, &device_minor, &inode) == 4 &&
           modes[1] == 'w' && modes[3] == 'p' && inode == (uint64_t)file->st_ino &&
           makedev(device_major, device_minor) == file->st_dev;
}

static bool maps_privately(const char *proc, pid_t pid, const struct stat *file)
{
    CLEANUP_FREE char *line = NULL;
    char path[256];
    size_t size = 0;
    bool found = false;

    snprintf(path, sizeof(path), "%.200s/%d/maps", proc, (int)pid);
    FILE *maps = fopen(path, "re");
    while (maps && !found && getline(&line, &size, maps) > 0)
        found = is_private_map(line, file);
    if (maps)
        fclose(maps);
    return found;
}

pid_t private_map_find(const char *proc, const struct stat *file, pid_t first)
{
    if (first > 0 && maps_privately(proc, first, file))
        return first;
    DIR *dir = opendir(proc);
    struct dirent *entry;
    pid_t found = 0;
    while (dir && !found && (entry = readdir(dir))) {
        pid_t pid = isdigit((unsigned char)entry->d_name[0]) ? (pid_t)strtol(entry->d_name, NULL, 10) : 0;
        if (pid > 0 && pid != first && maps_privately(proc, pid, file))
            found = pid;
    }
    if (dir)
        closedir(dir);
    return found;
}
