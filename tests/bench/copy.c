/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What one copy in memory costs: memcpy(3) between two resident buffers, one thread.
 *
 *   copy [SIZE]
 */
#include "common.h"

#include <sys/mman.h>

const char program[] = "copy";

int main(int argc, char **argv)
{
    uint64_t size = parse_size(argc > 1 ? argv[1] : "1G");
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE;
    char *from = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, -1, 0);
    char *to = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, -1, 0);

    if (from == MAP_FAILED || to == MAP_FAILED)
        die_errno("mmap");
    double cpu = cpu_seconds(RUSAGE_SELF), begin = now();
    /* In pieces, as daemons copy. */
    for (uint64_t at = 0; at < size; at += 256u << 10)
        memcpy(to + at, from + at, size - at < 256u << 10 ? size - at : 256u << 10);
    double seconds = now() - begin;
    printf("{\"seconds\": %.6f, \"bytes\": %llu, \"cpu\": %.6f, \"check\": %d}\n", seconds, (unsigned long long)size,
           cpu_seconds(RUSAGE_SELF) - cpu, to[size - 1]);
    return 0;
}
