/* SPDX-License-Identifier: Apache-2.0 */
/*
 * RAM by reference under fire: threads write to a memfd all the time while rounds
 * of dirty bitmaps run, and after each round nothing at the destination is older
 * than it was when the bitmap was taken.
 *
 *   dirtying SOURCE DESTINATION SECONDS THREADS MIB
 *
 * SOURCE and DESTINATION are the migration's directories; SOURCE has its settings
 * and is not started. At the end the threads stop, there is a last round, all is
 * compared, and the migration completes.
 *
 * A page's version is in each of its words, so that it shows when a page was
 * read in the middle of a write; every eighth version is a page of zeros.
 *
 * A writer writes the page and then sets its bit. The other way round a round
 * could take the bit, and read the page, before the write. So a page that is
 * being written while the bitmap is taken is not in it, or is there because of
 * an earlier version; its bit is set afterwards, for the next round. What a round
 * owes is counted in `finished`, which follows the bit and is read before
 * the bitmap is taken.
 */
#include <endian.h>
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
#include <time.h>
#include <unistd.h>

#define PAGE        4096
#define WORDS       (PAGE / 8)
#define THREADS_MAX 64
#define ZERO_EVERY  8

static uint64_t pages;
static uint64_t (*memory)[WORDS];    /* the guest's; each page is written by one thread */
static _Atomic uint64_t *dirty;      /* a bit a page */
static _Atomic uint64_t *started;    /* the version that may be in the page, */
static _Atomic uint64_t *finished;   /* and the one that is, with its bit set */
static uint64_t *floors;             /* what a round owes */
static uint64_t *seen;               /* the oldest version, but for zeros, at the destination */
static atomic_bool stop;
static unsigned threads;
static const char *source;
static uint64_t torn, zeros;

static void die(const char *what)
{
    fprintf(stderr, "dirtying: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int open_in(const char *directory, const char *name, int flags)
{
    char path[4096];
    int fd;

    snprintf(path, sizeof(path), "%s/%s", directory, name);
    fd = open(path, flags);
    if (fd < 0)
        die(path);
    return fd;
}

static void tell(const char *name, const char *text)
{
    int fd = open_in(source, name, O_WRONLY);

    if (write(fd, text, strlen(text)) != (ssize_t)strlen(text))
        die(text);
    close(fd);
}

static void write_page(uint64_t page)
{
    uint64_t version = atomic_load(&finished[page]) + 1;
    uint64_t value = version % ZERO_EVERY ? htole64(version) : 0;

    atomic_store(&started[page], version);
    for (unsigned i = 0; i < WORDS; i++)
        __atomic_store_n(&memory[page][i], value, __ATOMIC_RELAXED);
    atomic_fetch_or(&dirty[page / 64], 1ull << page % 64);
    atomic_store(&finished[page], version);
}

static void *writer(void *arg)
{
    uint64_t mine = (uintptr_t)arg, own = pages / threads, random = mine * 7919 + 1, hot;

    while (!atomic_load(&stop)) {
        random = random * 6364136223846793005ull + 1442695040888963407ull;
        /* Half of the writes go to a few pages, some of them next to one another. */
        hot = random >> 63 ? (random >> 33) % 16 : (random >> 33) % own;
        write_page(hot * threads + mine);
    }
    return NULL;
}

/* Reports a page that must not be as it is. */
static void bad(uint64_t page, uint64_t word, uint64_t value)
{
    fprintf(stderr, "dirtying: page %llu, word %llu: version %llu; %llu was owed, %llu has been begun, %llu was seen\n",
            (unsigned long long)page, (unsigned long long)word, (unsigned long long)value,
            (unsigned long long)floors[page], (unsigned long long)atomic_load(&started[page]),
            (unsigned long long)seen[page]);
    exit(1);
}

static void check_page(uint64_t page, const uint64_t *words)
{
    uint64_t latest = atomic_load(&started[page]), oldest = UINT64_MAX;
    bool is_torn = false;

    for (unsigned i = 0; i < WORDS; i++) {
        uint64_t value = le64toh(words[i]);
        is_torn |= words[i] != words[0];
        /* A zero is of one of the versions that are. */
        if (value ? value < floors[page] || value > latest || value < seen[page]
                  : latest / ZERO_EVERY * ZERO_EVERY < floors[page])
            bad(page, i, value);
        if (value && value < oldest)
            oldest = value;
    }
    if (oldest != UINT64_MAX)
        seen[page] = oldest;
    torn += is_torn;
    zeros += !is_torn && !words[0];
}

static void check(int destination)
{
    static uint64_t buf[256][WORDS];

    for (uint64_t page = 0; page < pages; page += 256) {
        uint64_t count = pages - page < 256 ? pages - page : 256;
        if (pread(destination, buf, count * PAGE, (off_t)(page * PAGE)) != (ssize_t)(count * PAGE))
            die("reading the destination");
        for (uint64_t i = 0; i < count; i++)
            check_page(page + i, buf[i]);
    }
}

/* Returns how many pages were dirty. */
static uint64_t run_round(int bitmap)
{
    uint64_t words = (pages + 63) / 64, count = 0;
    uint64_t *taken = malloc(words * 8);

    for (uint64_t page = 0; page < pages; page++)
        floors[page] = atomic_load(&finished[page]);
    for (uint64_t word = 0; word < words; word++) {
        uint64_t bits = atomic_exchange(&dirty[word], 0);
        count += (uint64_t)__builtin_popcountll(bits);
        taken[word] = htole64(bits);
    }
    if (pwrite(bitmap, taken, words * 8, 0) != (ssize_t)(words * 8))
        die("writing the bitmap");
    free(taken);
    tell("control", "sync");
    return count;
}

static double now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void *zeroed(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED)
        die("mmap");
    return p;
}

int main(int argc, char **argv)
{
    pthread_t thread[THREADS_MAX];
    uint64_t rounds = 0, sent = 0, versions = 0;
    char name[32];

    if (argc != 6)
        return 2;
    source = argv[1];
    threads = (unsigned)atoi(argv[4]);
    pages = (uint64_t)atoi(argv[5]) * 256;
    if (threads < 1 || threads > THREADS_MAX || pages / threads < 16)
        return 2;
    int fd = memfd_create("guest", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)(pages * PAGE)) < 0)
        die("memfd");
    memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED)
        die("mmap");
    dirty = zeroed(pages / 8 + 8);
    started = zeroed(pages * 8);
    finished = zeroed(pages * 8);
    floors = zeroed(pages * 8);
    seen = zeroed(pages * 8);

    snprintf(name, sizeof(name), "fd:%d", fd);
    tell("ram-source", name);
    tell("control", "start");
    int bitmap = open_in(source, "dirty", O_WRONLY), destination = open_in(argv[2], "ram", O_RDONLY);
    for (uint64_t page = 0; page < pages; page++)
        write_page(page);
    for (unsigned i = 0; i < threads; i++)
        pthread_create(&thread[i], NULL, writer, (void *)(uintptr_t)i);
    for (double end = now() + atof(argv[3]); now() < end || rounds < 3; rounds++) {
        sent += run_round(bitmap);
        check(destination);
    }
    atomic_store(&stop, true);
    for (unsigned i = 0; i < threads; i++)
        pthread_join(thread[i], NULL);
    uint64_t torn_before = torn;
    sent += run_round(bitmap);
    check(destination);
    if (torn != torn_before) {
        fprintf(stderr, "dirtying: after the last round %llu pages are torn\n", (unsigned long long)(torn - torn_before));
        return 1;
    }
    for (int completed = 0; completed < 2; completed++) {
        if (completed)
            tell("control", "complete");
        uint64_t (*got)[WORDS] = zeroed(pages * PAGE);
        for (uint64_t page = 0; page < pages; page += 256) {
            if (pread(destination, got[page], 256 * PAGE, (off_t)(page * PAGE)) != 256 * PAGE)
                die("reading the destination");
        }
        if (memcmp(got, memory, pages * PAGE)) {
            fprintf(stderr, "dirtying: the destination differs%s\n", completed ? " after complete" : "");
            return 1;
        }
        munmap(got, pages * PAGE);
    }
    for (uint64_t page = 0; page < pages; page++)
        versions += atomic_load(&finished[page]);
    printf("%llu versions, %llu rounds with %llu pages; at the destination %llu pages were torn, %llu zero\n",
           (unsigned long long)versions, (unsigned long long)rounds + 1, (unsigned long long)sent,
           (unsigned long long)torn, (unsigned long long)zeros);
    return 0;
}
