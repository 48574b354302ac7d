/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Makes an image of RAM, the same one each time.
 *
 *   image [-r RUN | -s ONE-IN] [-z] SIZE FILE
 *
 * Without options every page is incompressible. With -r, of each 8 * RUN pages
 * the first RUN are, and the others are zero: 7/8 of the image. With -s, one page in so many is, at
 * random. With -z the zero pages are holes; otherwise they are there, as in a guest that has touched them.
 */
#include "common.h"

#include <fcntl.h>
#include <stdbool.h>
#include <unistd.h>

const char program[] = "image";

int main(int argc, char **argv)
{
    static uint64_t buf[PAGE / sizeof(uint64_t)], zeros[PAGE / sizeof(uint64_t)];
    uint64_t run = 0, one_in = 0, state = 88172645463325252ull, places = 362436069;
    bool holes = false;
    int opt;

    while ((opt = getopt(argc, argv, "r:s:z")) != -1) {
        if (opt == 'r')
            run = parse_size(optarg);
        else if (opt == 's')
            one_in = parse_size(optarg);
        else if (opt == 'z')
            holes = true;
        else
            return 2;
    }
    if (argc - optind != 2)
        die("usage: image [-r RUN | -s ONE-IN] [-z] SIZE FILE");
    uint64_t size = parse_size(argv[optind]);
    int fd = open(argv[optind + 1], O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || ftruncate(fd, (off_t)size) < 0)
        die_errno(argv[optind + 1]);
    for (uint64_t page = 0; page < size / PAGE; page++) {
        bool data = one_in ? (draw(&places) >> 20) % one_in == 0 : !run || page / run % 8 == 0;
        if (data)
            fill(buf, sizeof(buf), &state);
        else if (holes)
            continue;
        if (pwrite(fd, data ? buf : zeros, PAGE, (off_t)(page * PAGE)) != PAGE)
            die_errno(argv[optind + 1]);
    }
    return close(fd) < 0;
}
