/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What it costs to read memory: a file in tmpfs through a mapping whose page table entries are there.
 *
 *   read THREADS FILE
 *
 * The clock runs while each thread reads its part once.
 */
#include "common.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

const char program[] = "read";

struct part {
    pthread_t thread;
    const char *from, *to;
    uint64_t sum;
};

static pthread_barrier_t ready;

/* One load for a cache line if the processor has it: with eight, of words, memory seems to be half as fast. */
typedef uint64_t line __attribute__((vector_size(64), may_alias));

#ifdef __x86_64__
__attribute__((target_clones("default", "avx2", "avx512f")))
#endif
static void sum_lines(const char *p, const char *end, uint64_t *sum)
{
    line sums[2] = {0};

    for (; p < end; p += 2 * sizeof(line)) {
        sums[0] += *(const line *)p;
        sums[1] += *(const line *)(p + sizeof(line));
    }
    sums[0] += sums[1];
    for (int i = 0; i < 8; i++)
        *sum += sums[0][i];
}

static void *read_part(void *arg)
{
    struct part *part = arg;

    pthread_barrier_wait(&ready);
    sum_lines(part->from, part->to, &part->sum);
    return NULL;
}

int main(int argc, char **argv)
{
    struct part parts[64];
    struct stat st;

    if (argc != 3)
        die("usage: read THREADS FILE");
    unsigned threads = (unsigned)atoi(argv[1]);
    int fd = open(argv[2], O_RDONLY);
    if (!threads || threads > 64 || fd < 0 || fstat(fd, &st) < 0)
        die_errno(argv[2]);
    uint64_t size = (uint64_t)st.st_size / PAGE * PAGE, share = size / threads / PAGE * PAGE;
    char *map = mmap(NULL, size, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (map == MAP_FAILED)
        die_errno("mmap");
    pthread_barrier_init(&ready, NULL, threads + 1);
    for (unsigned i = 0; i < threads; i++) {
        parts[i] = (struct part){.from = map + i * share, .to = map + (i + 1) * share};
        if (pthread_create(&parts[i].thread, NULL, read_part, &parts[i]))
            die("cannot make a thread");
    }
    double cpu = cpu_seconds(RUSAGE_SELF), begin = now();
    uint64_t sum = 0;
    pthread_barrier_wait(&ready);
    for (unsigned i = 0; i < threads; i++) {
        pthread_join(parts[i].thread, NULL);
        sum += parts[i].sum;
    }
    printf("{\"seconds\": %.6f, \"bytes\": %llu, \"cpu\": %.6f, \"check\": %llu}\n", now() - begin,
           (unsigned long long)(share * threads), cpu_seconds(RUSAGE_SELF) - cpu, (unsigned long long)sum % 1000);
    return 0;
}
