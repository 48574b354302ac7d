/* SPDX-License-Identifier: Apache-2.0 */
/* Bytes of a file that is open. */
#ifndef MIGFS_DESCRIPTOR_H
#define MIGFS_DESCRIPTOR_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/**
 * descriptor_read - pread(2) that goes on until it has everything
 * Return: the count, which is less than @len where the file ends, or a negative errno.
 */
ssize_t descriptor_read(int fd, uint64_t offset, void *buf, size_t len);

#endif
