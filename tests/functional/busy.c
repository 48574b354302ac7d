/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A guest that never rests: writes to its RAM, a file that is mapped shared, until its standard input ends.
 *
 *   busy FILE MIB-PER-SECOND FLIPPED-PAGES
 *
 * One thread writes pages at random, with what was never there before, at most so fast (0: not at all). Another
 * one flips some pages between two contents, A-B-A-B, as fast as it can. Says "busy" when both run, and
 * "stopped" with the number of flips when nothing is written any more.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PAGE  4096
#define WORDS (PAGE / 8)

static uint64_t (*memory)[WORDS];
static uint64_t pages, flipped, rate; /* the first pages are flipped; pages a second */
static atomic_bool stop;
static _Atomic uint64_t flips;

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static int64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000000ll + ts.tv_nsec;
}

/* As many pages as are due, and then a pause that others can use. */
static void *write_pages(void *arg)
{
    uint64_t state = 88172645463325252ull, written = 0;
    int64_t begun = now_ns();

    (void)arg;
    while (!atomic_load(&stop)) {
        uint64_t due = (uint64_t)((double)(now_ns() - begun) / 1e9 * (double)rate);
        for (; written < due && !atomic_load_explicit(&stop, memory_order_relaxed); written++) {
            uint64_t *page = memory[flipped + next_random(&state) % (pages - flipped)];
            for (unsigned i = 0; i < WORDS; i += 8)
                page[i] = next_random(&state);
        }
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    return NULL;
}

static void *flip_pages(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        for (uint64_t page = 0; page < flipped; page++)
            memory[page][page % WORDS] ^= ~0ull;
        atomic_fetch_add(&flips, flipped);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    pthread_t writer, flipper;
    struct stat st;
    char byte;

    if (argc != 4)
        return 2;
    int fd = open(argv[1], O_RDWR);
    if (fd < 0 || fstat(fd, &st) < 0)
        return perror(argv[1]), 1;
    pages = (uint64_t)st.st_size / PAGE;
    rate = strtoull(argv[2], NULL, 10) * (1048576 / PAGE);
    flipped = strtoull(argv[3], NULL, 10);
    memory = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED || flipped >= pages)
        return perror("mmap"), 1;
    if (pthread_create(&writer, NULL, write_pages, NULL) || pthread_create(&flipper, NULL, flip_pages, NULL))
        return 1;
    printf("busy\n");
    fflush(stdout);
    while (read(0, &byte, 1) > 0)
        ;
    atomic_store(&stop, true);
    pthread_join(writer, NULL);
    pthread_join(flipper, NULL);
    printf("stopped after %llu flips\n", (unsigned long long)atomic_load(&flips));
    return 0;
}
