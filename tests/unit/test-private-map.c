/* SPDX-License-Identifier: Apache-2.0 */
#include "private_map.h"
#include "check.h"
#include "scratch.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

/* A proc(5) of our own: process 12 has a file with such a line among others. */
static void write_maps(const char *format, const struct stat *file, uint64_t more)
{
    char path[200];

    snprintf(path, sizeof(path), "%s/12", scratch);
    mkdir(path, 0700);
    snprintf(path, sizeof(path), "%s/12/maps", scratch);
    FILE *maps = fopen(path, "w");
    cr_assert(not(zero(ptr, maps)));
    fprintf(maps, "00400000-00452000 r-xp 00000000 08:02 173521                           /usr/bin/x\n");
    fprintf(maps, format, major(file->st_dev), minor(file->st_dev), (unsigned long)(file->st_ino + more));
    fprintf(maps, "7fff00000000-7fff00021000 rw-p 00000000 00:00 0                          [stack]\n");
    fclose(maps);
}

TestSuite(private_map, .init = scratch_make, .fini = scratch_remove);

Test(private_map, lines)
{
    static const struct {
        const char *format;
        uint64_t more;
        pid_t want;
    } lines[] = {
        {"7f0000000000-7f0040000000 rw-p 00000000 %02x:%02x %lu /dev/shm/ram\n", 0, 12},
        {"7f0000000000-7f0040000000 rwxp 00100000 %02x:%02x %lu /a file with spaces (deleted)\n", 0, 12},
        {"7f0000000000-7f0040000000 rw-p 00000000 %02x:%02x %lu\n", 0, 12},
        {"7f0000000000-7f0040000000 rw-s 00000000 %02x:%02x %lu /dev/shm/ram\n", 0, 0},
        {"7f0000000000-7f0040000000 r--p 00000000 %02x:%02x %lu /dev/shm/ram\n", 0, 0},
        {"7f0000000000-7f0040000000 rw-p 00000000 %02x:%02x %lu /dev/shm/ram\n", 1, 0},
        {"7f0000000000-7f0040000000 rw-p 00000000 1%02x:%02x %lu /dev/shm/ram\n", 0, 0},
        {"rw-p %02x:%02x %lu\n", 0, 0},
    };
    struct stat file;

    cr_assert(zero(int, stat(scratch, &file)));
    cr_expect(zero(int, private_map_find(scratch, &file, 0)), "no process at all");
    for (size_t i = 0; i < ARRAY_LENGTH(lines); i++) {
        write_maps(lines[i].format, &file, lines[i].more);
        cr_expect(eq(int, private_map_find(scratch, &file, 0), lines[i].want), "line %zu", i);
        cr_expect(eq(int, private_map_find(scratch, &file, 12), lines[i].want), "line %zu, looked at first", i);
        cr_expect(eq(int, private_map_find(scratch, &file, 13), lines[i].want), "line %zu, after one that is gone", i);
    }
    cr_expect(zero(int, private_map_find("/nonexistent", &file, 1)));
}

/* What the kernel says of this very process. */
Test(private_map, real)
{
    char path[200];
    struct stat file;

    snprintf(path, sizeof(path), "%s/ram", scratch);
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    cr_assert(zero(int, ftruncate(fd, 4096)));
    cr_assert(zero(int, fstat(fd, &file)));
    void *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    cr_assert(ne(ptr, shared, MAP_FAILED));
    cr_expect(zero(int, private_map_find("/proc", &file, 0)));
    void *mine = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    cr_assert(ne(ptr, mine, MAP_FAILED));
    cr_expect(eq(int, private_map_find("/proc", &file, 0), getpid()));
    cr_expect(eq(int, private_map_find("/proc", &file, getpid()), getpid()));
    munmap(shared, 4096);
    munmap(mine, 4096);
    close(fd);
}
