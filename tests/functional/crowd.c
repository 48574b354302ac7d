/* SPDX-License-Identifier: Apache-2.0 */
/*
 * crowd COUNT read|write|fsync|sync FILE: so many threads do the same to a file, each once, through an open of its
 * own (FILE -: all through the standard input). At the end it says how many came to what, a line each: "2100
 * ok", "3 EDQUOT". A read is of one byte at offset 0, a write of 64 KiB at the thread's own place;
 * sync writes that command.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SIZE  65536
#define STACK 65536

static const char *operation, *path;
static atomic_uint results[256];
static char data[SIZE];

static void *member(void *arg)
{
    int fd = strcmp(path, "-") ? open(path, *operation == 'r' ? O_RDONLY : O_WRONLY) : 0;
    off_t place = (off_t)(long)arg * SIZE;
    ssize_t n = -1;
    char byte;

    if (fd >= 0 && *operation == 'r')
        n = pread(fd, &byte, 1, 0);
    else if (fd >= 0 && *operation == 'w')
        n = pwrite(fd, data, SIZE, place);
    else if (fd >= 0 && *operation == 's')
        n = write(fd, "sync", 4);
    else if (fd >= 0)
        n = fsync(fd);
    results[n < 0 ? errno & 255 : 0]++;
    if (fd > 0)
        close(fd);
    return NULL;
}

int main(int argc, char **argv)
{
    int count = argc == 4 ? atoi(argv[1]) : 0, made = 0;
    pthread_t *threads = calloc(count + 1, sizeof(*threads));
    pthread_attr_t attr;

    if (count <= 0 || !threads)
        return 2;
    operation = argv[2];
    path = argv[3];
    memset(data, 'x', sizeof(data));
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, STACK);
    while (made < count) {
        int code = pthread_create(&threads[made], &attr, member, (void *)(long)made);
        if (code) {
            fprintf(stderr, "crowd: thread %d: %s\n", made, strerror(code));
            return 1;
        }
        made++;
    }
    while (made > 0)
        pthread_join(threads[--made], NULL);
    for (int code = 0; code < 256; code++) {
        if (results[code])
            printf("%u %s\n", results[code], code ? strerrorname_np(code) : "ok");
    }
    return 0;
}
