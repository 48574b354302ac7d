/* SPDX-License-Identifier: Apache-2.0 */
/* The digest of a file, computed here a second time in the plainest way. */
#include "digest.h"
#include "check.h"
#include "entries.h"
#include "scratch.h"

#include <endian.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>
#include <xxhash.h>

TestSuite(digest, .init = scratch_make, .fini = scratch_remove);

#define PIECE (1u << 20)

struct content {
    const uint8_t *bytes;
    size_t size; /* what is missing counts as zeros */
    uint64_t fails_at;
};

static ssize_t read_content(void *arg, uint64_t offset, void *buf, size_t len)
{
    const struct content *content = arg;

    if (content->fails_at >= offset && content->fails_at < offset + len)
        return -EIO;
    if (offset >= content->size)
        return 0;
    if (len > content->size - offset)
        len = content->size - offset;
    memcpy(buf, content->bytes + offset, len);
    return (ssize_t)len;
}

static void plainly(const uint8_t *bytes, uint64_t size, uint8_t out[DIGEST_SIZE])
{
    uint8_t all[64 * DIGEST_SIZE + 8];
    size_t n = 0;
    XXH128_canonical_t canonical;

    for (uint64_t at = 0; at < size; at += PIECE) {
        XXH128_canonicalFromHash(&canonical, XXH3_128bits(bytes + at, size - at < PIECE ? size - at : PIECE));
        memcpy(all + n, canonical.digest, DIGEST_SIZE);
        n += DIGEST_SIZE;
    }
    uint64_t little = htole64(size);
    memcpy(all + n, &little, 8);
    XXH128_canonicalFromHash(&canonical, XXH3_128bits(all, n + 8));
    memcpy(out, canonical.digest, DIGEST_SIZE);
}

static const size_t sizes[] = {0, 1, 4095, PIECE - 1, PIECE, PIECE + 1, 5 * PIECE + 12345, 40 * PIECE};

Test(digest, is_what_it_says)
{
    uint8_t *bytes = malloc(40 * PIECE), got[DIGEST_SIZE], want[DIGEST_SIZE];

    for (size_t i = 0; i < 40 * PIECE; i++)
        bytes[i] = (uint8_t)(i * 2654435761u >> 13);
    for (size_t i = 0; i < ARRAY_LENGTH(sizes); i++) {
        struct content content = {bytes, sizes[i], UINT64_MAX};
        char path[128];
        cr_assert(zero(int, digest_compute(sizes[i], read_content, &content, got)));
        plainly(bytes, sizes[i], want);
        cr_expect(zero(int, memcmp(got, want, DIGEST_SIZE)), "%zu bytes", sizes[i]);

        snprintf(path, sizeof(path), "%s/file", scratch);
        FILE *f = fopen(path, "w");
        cr_assert(eq(sz, fwrite(bytes, 1, sizes[i], f), sizes[i]));
        fclose(f);
        memset(got, 0, sizeof(got));
        cr_assert(zero(int, digest_path(path, got)));
        cr_expect(zero(int, memcmp(got, want, DIGEST_SIZE)), "a file of %zu bytes", sizes[i]);
    }
    free(bytes);
}

/* The size counts, and where a byte is. */
Test(digest, differs)
{
    uint8_t *bytes = calloc(3, PIECE), digests[5][DIGEST_SIZE];
    struct content content = {bytes, 3 * PIECE, UINT64_MAX}, nothing = {NULL, 0, UINT64_MAX};

    digest_compute(3 * PIECE, read_content, &content, digests[0]);
    digest_compute(3 * PIECE - 1, read_content, &content, digests[1]);
    bytes[0] = 1;
    digest_compute(3 * PIECE, read_content, &content, digests[2]);
    bytes[0] = 0;
    bytes[2 * PIECE] = 1;
    digest_compute(3 * PIECE, read_content, &content, digests[3]);
    digest_compute(0, read_content, &nothing, digests[4]);
    for (int i = 0; i < 5; i++) {
        for (int k = 0; k < i; k++)
            cr_expect(memcmp(digests[i], digests[k], DIGEST_SIZE) != 0, "%d and %d", i, k);
    }
    uint8_t sparse[DIGEST_SIZE];
    digest_compute(3 * PIECE, read_content, &nothing, sparse);
    cr_expect(zero(int, memcmp(sparse, digests[0], DIGEST_SIZE)), "what is missing counts as zeros");
    free(bytes);
}

/* Any range of pieces; together they are what the digest of the whole is made of. */
Test(digest, pieces)
{
    uint64_t size = 9 * (uint64_t)PIECE + 5;
    uint8_t *bytes = calloc(10, PIECE), all[10 * DIGEST_SIZE], some[10 * DIGEST_SIZE];
    struct content content = {bytes, size, UINT64_MAX}, nothing = {NULL, 0, UINT64_MAX};
    struct digest_source source = {.size = size, .read = read_content, .arg = &content};

    for (uint64_t i = 0; i < size; i += 1000)
        bytes[i] = (uint8_t)(i >> 10);
    cr_assert(zero(int, digest_pieces(&source, 0, 10, all)));
    for (uint64_t first = 0; first < 10; first++) {
        for (uint64_t count = 0; count <= 10 - first; count++) {
            cr_assert(zero(int, digest_pieces(&source, first, count, some)));
            cr_expect(zero(int, memcmp(some, all + first * DIGEST_SIZE, count * DIGEST_SIZE)));
        }
    }
    memset(bytes, 0, 10 * PIECE);
    cr_assert(zero(int, digest_pieces(&source, 0, 10, all)));
    source.arg = &nothing;
    cr_assert(zero(int, digest_pieces(&source, 0, 10, some)));
    cr_expect(zero(int, memcmp(some, all, sizeof(all))), "what is missing counts as zeros");
    free(bytes);
}

static atomic_int asked;

static bool stop_at_three(void *arg)
{
    (void)arg;
    return atomic_fetch_add(&asked, 1) >= 3;
}

Test(digest, stops)
{
    struct content content = {NULL, 0, UINT64_MAX};
    struct digest_source source = {.size = 1ull << 40, .read = read_content, .stop = stop_at_three, .arg = &content};
    uint8_t *out = malloc(DIGEST_SIZE << 20);

    cr_expect(eq(int, digest_pieces(&source, 0, 1 << 20, out), -ECANCELED));
    cr_expect(zero(int, atomic_load(&asked) > 100), "it goes on and on");
    free(out);
}

/*
 * All that read at the same time. The thread that asks comes last: when it reads, the helpers are there, and each
 * holds a piece until then.
 */
struct crowd {
    pid_t asks;
    sem_t go;
    unsigned before, readers;
};

static unsigned count_threads(void)
{
    return count_entries("/proc/self/task");
}

static ssize_t read_in_a_crowd(void *arg, uint64_t offset, void *buf, size_t len)
{
    struct crowd *crowd = arg;

    (void)offset, (void)buf, (void)len;
    if (gettid() != crowd->asks)
        sem_wait(&crowd->go);
    else if (!crowd->readers)
        crowd->readers = 1 + count_threads() - crowd->before;
    sem_post(&crowd->go);
    return 0;
}

static void *say_who(void *arg)
{
    *(pid_t *)arg = gettid();
    return NULL;
}

/* A sanitizer makes a thread of its own with the first one: that one comes and goes before anything is counted. */
static void begin_with_a_thread(void)
{
    pthread_t thread;
    char path[64];
    pid_t tid;

    cr_assert(zero(int, pthread_create(&thread, NULL, say_who, &tid)));
    pthread_join(thread, NULL);
    snprintf(path, sizeof(path), "/proc/self/task/%d", tid);
    while (access(path, F_OK) == 0)
        sched_yield();
}

Test(digest, as_many_helpers_as_processors)
{
    begin_with_a_thread();
    struct crowd crowd = {.asks = gettid(), .before = count_threads()};
    struct digest_source source = {.size = 200ull * PIECE, .read = read_in_a_crowd, .arg = &crowd};
    static uint8_t out[200 * DIGEST_SIZE];
    long processors = sysconf(_SC_NPROCESSORS_ONLN);

    sem_init(&crowd.go, 0, 0);
    cr_expect(zero(int, digest_pieces(&source, 0, 200, out)));
    cr_expect(eq(uint, crowd.readers, processors < 17 ? (unsigned)processors : 17));
}

Test(digest, errors)
{
    uint8_t got[DIGEST_SIZE];
    struct content content = {NULL, 0, 17 * (uint64_t)PIECE + 5};
    char path[128];

    cr_expect(eq(int, digest_compute(40 * PIECE, read_content, &content, got), -EIO));
    snprintf(path, sizeof(path), "%s/missing", scratch);
    cr_expect(eq(int, digest_path(path, got), -ENOENT));
    cr_expect(lt(int, digest_path(scratch, got), 0), "a directory");
}

Test(digest, text)
{
    static const uint8_t digest[DIGEST_SIZE] = {0x00, 0x01, 0x7f, 0x80, 0xff, 0xab};
    char text[DIGEST_TEXT];

    digest_text(digest, text);
    cr_expect(eq(str, text, "00017f80ffab00000000000000000000"));
}
