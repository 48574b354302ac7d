/* SPDX-License-Identifier: Apache-2.0 */
/* Bytes of a file that is open; see descriptor.h. */
#include "descriptor.h"

#include <errno.h>
#include <unistd.h>

ssize_t descriptor_read(int fd, uint64_t offset, void *buf, size_t len)
{
    size_t got = 0;

    while (got < len) {
        ssize_t n = pread(fd, (char *)buf + got, len - got, (off_t)(offset + got));
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
