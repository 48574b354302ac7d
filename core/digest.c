/* SPDX-License-Identifier: Apache-2.0 */
/* The digest of a file; see digest.h. */
#include "digest.h"
#include "cleanup.h"
#include "wire.h"
#include "xxh3.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define PIECE       WIRE_STRIPE_SIZE
#define THREADS_MAX 16

struct job {
    uint64_t size, pieces;
    ssize_t (*read)(void *arg, uint64_t offset, void *buf, size_t len);
    void *arg;
    _Atomic uint64_t next; /* the piece that nobody has taken */
    atomic_int failed;     /* a negative errno */
    XXH128_canonical_t *digests;
};

static int digest_piece(struct job *job, uint64_t piece, void *buf)
{
    uint64_t offset = piece * PIECE;
    size_t len = job->size - offset < PIECE ? (size_t)(job->size - offset) : PIECE;
    ssize_t n = job->read(job->arg, offset, buf, len);

    if (n < 0)
        return (int)n;
    memset((char *)buf + n, 0, len - (size_t)n);
    XXH128_canonicalFromHash(&job->digests[piece], XXH3_128bits(buf, len));
    return 0;
}

/* What a helper has no memory for, others do. */
static void *work(void *arg)
{
    struct job *job = arg;
    CLEANUP_FREE void *buf = malloc(PIECE);
    int ret = 0;

    if (!buf)
        return NULL;
    while (ret == 0 && !job->failed) {
        uint64_t piece = atomic_fetch_add(&job->next, 1);
        if (piece >= job->pieces)
            return NULL;
        ret = digest_piece(job, piece, buf);
    }
    if (ret < 0)
        job->failed = ret;
    return NULL;
}

int digest_compute(uint64_t size, ssize_t (*read)(void *arg, uint64_t offset, void *buf, size_t len), void *arg,
                   uint8_t out[DIGEST_SIZE])
{
    struct job job = {.size = size, .pieces = (size + PIECE - 1) / PIECE, .read = read, .arg = arg};
    pthread_t threads[THREADS_MAX];
    long wanted = sysconf(_SC_NPROCESSORS_ONLN) - 1;
    int helpers = 0;
    /* The size comes behind the digests of the pieces. */
    size_t bytes = (size_t)job.pieces * sizeof(*job.digests);
    CLEANUP_FREE char *all = malloc(bytes + sizeof(uint64_t));
    XXH128_canonical_t whole;

    if (!all)
        return -ENOMEM;
    job.digests = (XXH128_canonical_t *)(void *)all;
    if ((uint64_t)wanted > job.pieces)
        wanted = (long)job.pieces;
    while (helpers < wanted && helpers < THREADS_MAX && !pthread_create(&threads[helpers], NULL, work, &job))
        helpers++;
    work(&job);
    while (helpers > 0)
        pthread_join(threads[--helpers], NULL);
    if (job.failed)
        return job.failed;
    /* Nobody had any. */
    if (job.next < job.pieces)
        return -ENOMEM;
    uint64_t little = htole64(size);
    memcpy(all + bytes, &little, sizeof(little));
    XXH128_canonicalFromHash(&whole, XXH3_128bits(all, bytes + sizeof(little)));
    memcpy(out, whole.digest, DIGEST_SIZE);
    return 0;
}

void digest_text(const uint8_t digest[DIGEST_SIZE], char out[DIGEST_TEXT])
{
    for (int i = 0; i < DIGEST_SIZE; i++)
        snprintf(out + 2 * i, 3, "%02x", digest[i]);
}

static ssize_t read_descriptor(void *arg, uint64_t offset, void *buf, size_t len)
{
    size_t got = 0;

    while (got < len) {
        ssize_t n = pread(*(int *)arg, (char *)buf + got, len - got, (off_t)(offset + got));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            break;
        got += (size_t)n;
    }
    return (ssize_t)got;
}

int digest_path(const char *path, uint8_t out[DIGEST_SIZE])
{
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;

    if (fd < 0 || fstat(fd, &st) < 0)
        return -errno;
    if (!S_ISREG(st.st_mode))
        return -EINVAL;
    return digest_compute((uint64_t)st.st_size, read_descriptor, &fd, out);
}
