/* SPDX-License-Identifier: Apache-2.0 */
/* The digest of a file; see digest.h. */
#include "digest.h"
#include "cleanup.h"
#include "descriptor.h"
#include "xxh3.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define PIECE       DIGEST_PIECE
#define THREADS_MAX 16

struct job {
    const struct digest_source *source;
    uint64_t first, count; /* pieces */
    _Atomic uint64_t next; /* the one of them that nobody has taken */
    atomic_int failed;     /* a negative errno */
    uint8_t *out;
};

static void hash(const void *bytes, size_t len, uint8_t out[DIGEST_SIZE])
{
    XXH128_canonical_t canonical;

    XXH128_canonicalFromHash(&canonical, XXH3_128bits(bytes, len));
    memcpy(out, canonical.digest, DIGEST_SIZE);
}

/* What a thread keeps from piece to piece. */
struct bench {
    void *buf;        /* a piece */
    bool knows_zeros; /* a large image can have many pieces of zeros: their digest is computed once */
    uint8_t zeros[DIGEST_SIZE];
};

static int digest_piece(struct job *job, uint64_t piece, struct bench *bench)
{
    const struct digest_source *source = job->source;
    uint64_t offset = (job->first + piece) * PIECE;
    size_t len = source->size - offset < PIECE ? (size_t)(source->size - offset) : PIECE;
    uint8_t *out = job->out + piece * DIGEST_SIZE;

    if (source->stop && source->stop(source->arg))
        return -ECANCELED;
    ssize_t n = source->read(source->arg, offset, bench->buf, len);
    if (n < 0)
        return (int)n;
    bool zeros = n == 0 && len == PIECE;
    if (!zeros || !bench->knows_zeros) {
        memset((char *)bench->buf + n, 0, len - (size_t)n);
        hash(bench->buf, len, zeros ? bench->zeros : out);
    }
    bench->knows_zeros |= zeros;
    if (zeros)
        memcpy(out, bench->zeros, DIGEST_SIZE);
    return 0;
}

/* What a helper has no memory for, others do. */
static void *work(void *arg)
{
    struct job *job = arg;
    CLEANUP_FREE void *buf = malloc(PIECE);
    struct bench bench = {.buf = buf};
    int ret = 0;

    if (!buf)
        return NULL;
    while (ret == 0 && !job->failed) {
        uint64_t piece = atomic_fetch_add(&job->next, 1);
        if (piece >= job->count)
            return NULL;
        ret = digest_piece(job, piece, &bench);
    }
    if (ret < 0)
        job->failed = ret;
    return NULL;
}

int digest_pieces(const struct digest_source *source, uint64_t first, uint64_t count, uint8_t *out)
{
    struct job job = {.source = source, .first = first, .count = count, .out = out};
    pthread_t threads[THREADS_MAX];
    long wanted = sysconf(_SC_NPROCESSORS_ONLN) - 1;
    int helpers = 0;

    if ((uint64_t)wanted > count)
        wanted = (long)count;
    while (helpers < wanted && helpers < THREADS_MAX && !pthread_create(&threads[helpers], NULL, work, &job))
        helpers++;
    work(&job);
    while (helpers > 0)
        pthread_join(threads[--helpers], NULL);
    if (job.failed)
        return job.failed;
    /* Nobody had any. */
    return job.next < job.count ? -ENOMEM : 0;
}

int digest_compute(uint64_t size, ssize_t (*read)(void *arg, uint64_t offset, void *buf, size_t len),
                   void *arg, uint8_t out[DIGEST_SIZE])
{
    struct digest_source source = {.size = size, .read = read, .arg = arg};
    uint64_t pieces = (size + PIECE - 1) / PIECE, little = htole64(size);
    /* The size comes behind the digests of the pieces. */
    size_t bytes = (size_t)pieces * DIGEST_SIZE;
    CLEANUP_FREE uint8_t *all = malloc(bytes + sizeof(little));

    if (!all)
        return -ENOMEM;
    int ret = digest_pieces(&source, 0, pieces, all);
    if (ret < 0)
        return ret;
    memcpy(all + bytes, &little, sizeof(little));
    hash(all, bytes + sizeof(little), out);
    return 0;
}

void digest_text(const uint8_t digest[DIGEST_SIZE], char out[DIGEST_TEXT])
{
    for (int i = 0; i < DIGEST_SIZE; i++)
        snprintf(out + 2 * i, 3, "%02x", digest[i]);
}

static ssize_t read_descriptor(void *arg, uint64_t offset, void *buf, size_t len)
{
    return descriptor_read(*(int *)arg, offset, buf, len);
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
