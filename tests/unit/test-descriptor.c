/* SPDX-License-Identifier: Apache-2.0 */
/* Reading at an offset: all of it, or as far as the file goes. */
#include "descriptor.h"
#include "check.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

Test(descriptor, reads_as_far_as_the_file_goes)
{
    int fd = memfd_create("test", MFD_CLOEXEC);
    char buf[16];

    cr_assert(eq(long, write(fd, "0123456789", 10), 10));
    memset(buf, '?', sizeof(buf));
    cr_expect(eq(long, descriptor_read(fd, 2, buf, 4), 4));
    cr_expect(zero(int, memcmp(buf, "2345?", 5)));
    cr_expect(eq(long, descriptor_read(fd, 7, buf, 16), 3));
    cr_expect(zero(int, memcmp(buf, "7895?", 5)));
    cr_expect(zero(long, descriptor_read(fd, 10, buf, 16)));
    cr_expect(zero(long, descriptor_read(fd, 1000, buf, 16)));
    cr_expect(zero(long, descriptor_read(fd, 3, buf, 0)));
    close(fd);
}

Test(descriptor, says_why_not)
{
    int fds[2];
    char c;

    cr_assert(zero(int, pipe(fds)));
    cr_expect(eq(long, descriptor_read(fds[0], 0, &c, 1), -ESPIPE));
    cr_expect(eq(long, descriptor_read(-1, 0, &c, 1), -EBADF));
    close(fds[0]);
    close(fds[1]);
}
