/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A digest of a file's content that several processors compute at once: the
 * XXH3 (128 bits) of the XXH3s of its pieces of 1 MiB, in order, followed by its
 * size. It tells whether two ends have the same; it is no defence against
 * somebody who wants them to differ.
 */
#ifndef MIGFS_DIGEST_H
#define MIGFS_DIGEST_H

#include <stdbool.h>
#include <stdint.h>
#include <stddef.h>
#include <sys/types.h>

#define DIGEST_PIECE (1u << 20)
#define DIGEST_SIZE  16
#define DIGEST_TEXT  (2 * DIGEST_SIZE + 1)

/* A file, as it is read for a digest. */
struct digest_source {
    uint64_t size; /* in bytes */
    /* Like pread(2): the count, or a negative errno; what is missing counts as zeros. Any thread. */
    ssize_t (*read)(void *arg, uint64_t offset, void *buf, size_t len);
    /* Whether to give up; asked before each piece; any thread. NULL: never. */
    bool (*stop)(void *arg);
    void *arg;
};

/**
 * digest_pieces - the digests of pieces of a file, of 1 MiB each; the last one of the file is as short as
 * that is
 * @first, @count: which; they lie within the file
 * @out: DIGEST_SIZE bytes for each
 *
 * Return: 0, -ECANCELED when @source->stop said so, or another negative errno.
 */
int digest_pieces(const struct digest_source *source, uint64_t first, uint64_t count, uint8_t *out);

/**
 * digest_compute - read a file and compute its digest
 * @size: in bytes
 * @read: reads like pread(2): the count, or a negative errno; what is missing counts as zeros; any thread
 *
 * Return: 0 or a negative errno.
 */
int digest_compute(uint64_t size, ssize_t (*read)(void *arg, uint64_t offset, void *buf, size_t len),
                   void *arg, uint8_t out[DIGEST_SIZE]);

/** digest_text - in hexadecimal */
void digest_text(const uint8_t digest[DIGEST_SIZE], char out[DIGEST_TEXT]);

/** digest_path - the digest of a local file */
int digest_path(const char *path, uint8_t out[DIGEST_SIZE]);

#endif
