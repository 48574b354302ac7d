/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A process that has a file mapped, as a VMM has its RAM.
 *
 *   maps FILE private|shared
 *
 * Says "mapped", and ends when its standard input does.
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    char byte;

    if (argc != 3)
        return 2;
    int fd = open(argv[1], O_RDWR);
    int flags = strcmp(argv[2], "private") ? MAP_SHARED : MAP_PRIVATE;
    if (fd < 0 || mmap(NULL, 4096, PROT_READ | PROT_WRITE, flags, fd, 0) == MAP_FAILED) {
        perror(argv[1]);
        return 1;
    }
    close(fd);
    puts("mapped");
    fflush(stdout);
    while (read(0, &byte, 1) > 0)
        ;
    return 0;
}
