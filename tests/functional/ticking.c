/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ticking LOG: a process to be moved. It goes over its memory again and again: each word must still be what
 * the pass before left there. It says "pass N" in LOG, or "WRONG", and "end" when there is a file LOG.end.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define WORDS ((size_t)8 << 20 >> 3)

int main(int argc, char **argv)
{
    char end[4096];
    int log = argc == 2 ? open(argv[1], O_WRONLY | O_CREAT | O_APPEND, 0644) : -1;
    uint64_t *words =
        mmap(NULL, WORDS * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

    if (log < 0 || words == MAP_FAILED)
        return 1;
    snprintf(end, sizeof(end), "%s.end", argv[1]);
    for (uint64_t pass = 0; access(end, F_OK) < 0; pass++) {
        for (size_t i = 0; i < WORDS; i++) {
            if (words[i] != pass * (i + 1)) {
                dprintf(log, "WRONG word %zu in pass %llu\n", i, (unsigned long long)pass);
                return 1;
            }
            words[i] += i + 1;
        }
        dprintf(log, "pass %llu\n", (unsigned long long)pass);
        usleep(50000);
    }
    dprintf(log, "end\n");
    return 0;
}
