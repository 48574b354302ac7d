/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Maps a received image as a VMM would, and writes to it.
 *
 *   mapping IMAGE MODEL
 *
 * Both hold the same at first. A private mapping shows the image and keeps its
 * changes to itself; those of a shared one reach the file, and other mappings
 * and readers of it. In the end both files hold the same again.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static void die(const char *what)
{
    fprintf(stderr, "mapping: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void check(int ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "mapping: %s\n", what);
        exit(1);
    }
}

static char *map(int fd, size_t size, int flags)
{
    char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);

    if (p == MAP_FAILED)
        die(flags == MAP_SHARED ? "MAP_SHARED" : "MAP_PRIVATE");
    return p;
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    int image = open(argv[1], O_RDWR), model = open(argv[2], O_RDWR);
    struct stat st, st_model;
    char byte;

    if (image < 0 || model < 0 || fstat(image, &st) < 0 || fstat(model, &st_model) < 0)
        die("open");
    check(st.st_size == st_model.st_size, "the sizes differ");
    size_t size = (size_t)st.st_size;
    char *expected = map(model, size, MAP_SHARED);

    char *private = map(image, size, MAP_PRIVATE);
    check(!memcmp(private, expected, size), "a private mapping shows something else");
    for (size_t i = 0; i < size; i += 4096)
        private[i] ^= 0x55;

    char *shared = map(image, size, MAP_SHARED);
    check(!memcmp(shared, expected, size), "a shared mapping shows something else, or a private one's changes");
    for (size_t i = 100; i < size; i += 3 * 4096) {
        shared[i] ^= 0x33;
        expected[i] ^= 0x33;
    }
    if (msync(shared, size, MS_SYNC) < 0)
        die("msync");

    int other = open(argv[1], O_RDWR);
    check(other >= 0 && pread(other, &byte, 1, 100) == 1 && byte == expected[100], "a reader sees no change");
    char *another = map(other, size, MAP_SHARED);
    check(!memcmp(another, expected, size), "another mapping sees no change");
    if (pwrite(other, "written", 7, 5000) != 7)
        die("write");
    memcpy(expected + 5000, "written", 7);
    check(!memcmp(shared, expected, size), "a mapping does not see what was written");
    check(private[0] == (char)(expected[0] ^ 0x55), "a private mapping has lost its change");
    if (munmap(shared, size) < 0 || munmap(another, size) < 0 || fsync(other) < 0 || close(other) < 0)
        die("closing");
    return 0;
}
