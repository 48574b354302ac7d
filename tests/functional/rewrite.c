/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Threads rewrite one range of a file, under a lock, one version after the other.
 *
 *   rewrite FILE OFFSET LENGTH WRITES THREADS MODEL
 *
 * Every word of a version is its number; the last version is left in MODEL.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LENGTH_MAX (64u << 10)
#define THREADS_MAX 64

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const char *path;
static off_t offset;
static size_t length;
static uint64_t version, writes;
static uint64_t words[LENGTH_MAX / 8];

static void *rewrite(void *arg)
{
    int fd = open(path, O_WRONLY);

    (void)arg;
    if (fd < 0) {
        perror(path);
        exit(1);
    }
    for (;;) {
        pthread_mutex_lock(&lock);
        if (version == writes)
            break;
        version++;
        for (size_t i = 0; i < (length + 7) / 8; i++)
            words[i] = version;
        if (pwrite(fd, words, length, offset) != (ssize_t)length) {
            perror("rewrite: write");
            exit(1);
        }
        pthread_mutex_unlock(&lock);
    }
    pthread_mutex_unlock(&lock);
    close(fd);
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t threads[THREADS_MAX];

    if (argc != 7)
        return 2;
    path = argv[1];
    offset = atoll(argv[2]);
    length = (size_t)atoll(argv[3]);
    writes = strtoull(argv[4], NULL, 0);
    int n = atoi(argv[5]);
    if (length > LENGTH_MAX || n < 1 || n > THREADS_MAX)
        return 2;
    for (int i = 0; i < n; i++)
        pthread_create(&threads[i], NULL, rewrite, NULL);
    for (int i = 0; i < n; i++)
        pthread_join(threads[i], NULL);
    FILE *model = fopen(argv[6], "w");
    return !model || fwrite(words, 1, length, model) != length || fclose(model);
}
