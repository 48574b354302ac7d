/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Many processes change one file at random, in unaligned and overlapping
 * ranges, and do the same to a model, which is a plain file.
 *
 *   ranges FILE MODEL SIZE PROCESSES OPERATIONS SEED [truncate]
 *
 * Of each pair of operations that overlap, both files must see the same one
 * last: a process holds the locks of all blocks of its range while it changes
 * first the file and then the model. With `truncate` the size changes too,
 * under all the locks. SIZE is never exceeded.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define BLOCK    (128u << 10)
#define LONGEST  (3u << 20)

struct shared {
    uint64_t size; /* of both files; guarded by all locks for truncation, by size_lock for growth */
    pthread_mutex_t size_lock;
    pthread_mutex_t locks[];
};

static struct shared *shared;
static size_t blocks;
static uint64_t limit;
static int file_fd, model_fd;
static char *buf, *zeros;

static void die(const char *what)
{
    fprintf(stderr, "ranges: %s: %s\n", what, strerror(errno));
    _exit(1);
}

static uint64_t draw(uint64_t *state, uint64_t n)
{
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return (*state >> 20) % n;
}

static void lock_range(size_t first, size_t last)
{
    for (size_t i = first; i <= last; i++)
        pthread_mutex_lock(&shared->locks[i]);
}

static void unlock_range(size_t first, size_t last)
{
    for (size_t i = first; i <= last; i++)
        pthread_mutex_unlock(&shared->locks[i]);
}

static void write_all(int fd, const char *data, size_t len, uint64_t offset)
{
    ssize_t n = pwrite(fd, data, len, (off_t)offset);

    if (n < 0)
        die(fd == file_fd ? "write" : "write to the model");
    if ((size_t)n != len) {
        errno = EIO;
        die("a short write");
    }
}

static uint64_t current_size(void)
{
    pthread_mutex_lock(&shared->size_lock);
    uint64_t size = shared->size;
    pthread_mutex_unlock(&shared->size_lock);
    return size;
}

static void grow(uint64_t end)
{
    pthread_mutex_lock(&shared->size_lock);
    if (end > shared->size)
        shared->size = end;
    pthread_mutex_unlock(&shared->size_lock);
}

static void change_size(uint64_t size)
{
    lock_range(0, blocks - 1);
    if (ftruncate(file_fd, (off_t)size) < 0)
        die("truncate");
    if (ftruncate(model_fd, (off_t)size) < 0)
        die("truncate the model");
    shared->size = size;
    unlock_range(0, blocks - 1);
}

static void fill(uint64_t *state, size_t len)
{
    for (size_t i = 0; i < len; i += 8) {
        uint64_t word = draw(state, UINT64_MAX);
        memcpy(buf + i, &word, 8);
    }
}

static void clear(uint64_t offset, size_t len, int mode)
{
    if (fallocate(file_fd, mode, (off_t)offset, (off_t)len) < 0)
        die("fallocate");
    if (mode & FALLOC_FL_KEEP_SIZE) {
        uint64_t size = current_size();
        len = offset >= size ? 0 : len < size - offset ? len : (size_t)(size - offset);
    } else {
        grow(offset + len);
    }
    write_all(model_fd, zeros, len, offset);
}

static void operate(uint64_t *state, int truncates)
{
    uint64_t kind = draw(state, 1000);

    if (truncates && kind < 10) {
        change_size(draw(state, 2) ? limit - draw(state, limit / 4) : draw(state, limit));
        return;
    }
    if (kind < 15) {
        if (fdatasync(file_fd) < 0)
            die("fdatasync");
        return;
    }
    uint64_t longest = kind < 60 ? LONGEST : kind < 300 ? 300000 : 9000;
    size_t len = 1 + (size_t)draw(state, longest);
    uint64_t offset = draw(state, limit);
    /* Some corners are visited more than others. */
    if (kind % 7 == 0)
        offset = offset / BLOCK * BLOCK + (draw(state, 2) ? 0 : BLOCK - 1);
    if (offset >= limit)
        offset = limit - 1;
    if (len > limit - offset)
        len = (size_t)(limit - offset);
    size_t first = offset / BLOCK, last = (offset + len - 1) / BLOCK;
    lock_range(first, last);
    if (kind >= 800 && kind < 830) {
        clear(offset, len, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);
    } else if (kind >= 830 && kind < 840) {
        clear(offset, len, FALLOC_FL_ZERO_RANGE | (draw(state, 2) ? FALLOC_FL_KEEP_SIZE : 0));
    } else {
        fill(state, len);
        write_all(file_fd, buf, len, offset);
        grow(offset + len);
        write_all(model_fd, buf, len, offset);
    }
    unlock_range(first, last);
}

static void work(const char *file, const char *model, uint64_t operations, uint64_t state, int truncates)
{
    file_fd = open(file, O_WRONLY);
    model_fd = open(model, O_WRONLY);
    buf = malloc(LONGEST + 8);
    zeros = calloc(1, LONGEST);
    if (file_fd < 0 || model_fd < 0 || !buf || !zeros)
        die("open");
    for (uint64_t i = 0; i < operations; i++)
        operate(&state, truncates);
    if (close(file_fd) < 0)
        die("close");
    _exit(0);
}

int main(int argc, char **argv)
{
    if (argc < 7)
        return 2;
    limit = strtoull(argv[3], NULL, 0);
    int processes = atoi(argv[4]), failed = 0;
    pid_t *pids = calloc((size_t)processes, sizeof(*pids));
    uint64_t operations = strtoull(argv[5], NULL, 0), seed = strtoull(argv[6], NULL, 0);
    blocks = limit / BLOCK + 1;
    shared = mmap(NULL, sizeof(*shared) + blocks * sizeof(pthread_mutex_t), PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        die("mmap");
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
    pthread_mutex_init(&shared->size_lock, &attr);
    for (size_t i = 0; i < blocks; i++)
        pthread_mutex_init(&shared->locks[i], &attr);
    shared->size = limit;

    model_fd = open(argv[2], O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (model_fd < 0 || ftruncate(model_fd, (off_t)limit) < 0)
        die(argv[2]);
    for (int i = 0; i < processes; i++) {
        pids[i] = fork();
        if (pids[i] < 0)
            die("fork");
        if (pids[i] == 0)
            work(argv[1], argv[2], operations, seed * 1000 + (uint64_t)i, argc > 7);
    }
    /* One that fails may leave its locks taken: then the others are ended too. */
    for (int left = processes; left > 0; left--) {
        int status;
        pid_t pid = wait(&status);
        if (pid < 0)
            die("wait");
        for (int i = 0; i < processes; i++) {
            if (pids[i] == pid)
                pids[i] = 0;
        }
        if (status != 0 && !failed) {
            failed = 1;
            for (int i = 0; i < processes; i++) {
                if (pids[i] > 0)
                    kill(pids[i], SIGKILL);
            }
        }
    }
    return failed;
}
