/* SPDX-License-Identifier: Apache-2.0 */
/* What the benchmark's helpers share: a clock, sizes, a deterministic stream of bytes, and a way to give up. */
#ifndef MIGFS_BENCH_COMMON_H
#define MIGFS_BENCH_COMMON_H

#include <ctype.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096u

/* Defined by each program. */
extern const char program[];

#define die(...) (fprintf(stderr, "%s: ", program), fprintf(stderr, __VA_ARGS__), fputc('\n', stderr), exit(1))
#define die_errno(what) die("%s: %s", what, strerror(errno))

static inline double now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* A number with K, M or G behind it. */
static inline uint64_t parse_size(const char *text)
{
    char *end;
    uint64_t value = strtoull(text, &end, 10);
    const char *units = "KMG", *unit = *end ? strchr(units, toupper((unsigned char)*end)) : NULL;

    if (end == text || (*end && (!unit || end[1])))
        die("'%s' is not a size", text);
    return value << (unit ? (unsigned)(unit - units + 1) * 10 : 0);
}

/* xorshift64*: 8 bytes a step that no compressor shrinks. */
static inline uint64_t draw(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 2685821657736338717ull;
}

static inline void fill(void *buf, size_t len, uint64_t *state)
{
    uint64_t *words = buf;

    for (size_t i = 0; i < len / sizeof(*words); i++)
        words[i] = draw(state);
}

/* User and system time of this process, or of its children that have been waited for. */
static inline double cpu_seconds(int who)
{
    struct rusage usage;

    getrusage(who, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

/* Of the whole machine: what was not idle, also what no process is charged for. */
static inline double busy_seconds(void)
{
    unsigned long long f[8] = {0};
    FILE *stat = fopen("/proc/stat", "r");
    int n = stat ? fscanf(stat, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", f, f + 1, f + 2, f + 3, f + 4, f + 5, f + 6, f + 7) : 0;

    if (stat)
        fclose(stat);
    return n == 8 ? (double)(f[0] + f[1] + f[2] + f[5] + f[6] + f[7]) / (double)sysconf(_SC_CLK_TCK) : 0;
}

static inline int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

#endif
