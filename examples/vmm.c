/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vmm: what a VMM does to migrate a guest whose RAM is a memfd.
 *
 *   cc -O2 -o vmm vmm.c -pthread
 *   vmm MIGRATION [RAM]      a directory with a uri, as in src/vm1; dst/vm1/ram, to compare with
 *
 * It gives migfs a descriptor of the RAM once, and then asks for pages by writing
 * dirty bitmaps; no page goes through it. The guest here is a thread, and the
 * bitmap is what KVM_GET_DIRTY_LOG gives a real VMM.
 */
#define _GNU_SOURCE
#include <endian.h>
#include <err.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE  4096
#define PAGES 16384 /* 64 MiB */
#define WORDS (PAGES / 64)

static int migration; /* the directory */
static char *ram;
static _Atomic uint64_t dirty[WORDS]; /* a bit a page: written since the last round */
static atomic_bool running = true;

/* Makes it dirty after it has been written: whoever takes the bit sees what was written. */
static void write_page(unsigned page, int value)
{
    memset(ram + (size_t)page * PAGE, value, PAGE);
    atomic_fetch_or(&dirty[page / 64], 1ull << page % 64);
}

static void *guest(void *arg)
{
    for (unsigned i = 0; atomic_load(&running); i++)
        write_page((i * 37 + i / 900) % 900, (int)i);
    return arg;
}

/* Writes to a file of the migration, in one write(2). */
static void put(const char *name, const void *data, size_t size)
{
    int fd = openat(migration, name, O_WRONLY | O_CREAT, 0600);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size)
        err(1, "%s", name); /* the sentence is in `error` */
    close(fd);
}

static void command(const char *text)
{
    put("control", text, strlen(text));
}

/* A round: returns the number of pages once the destination has them. */
static unsigned run_round(const char *barrier)
{
    uint64_t bitmap[WORDS]; /* little-endian words */
    unsigned pages = 0;

    for (unsigned i = 0; i < WORDS; i++) {
        uint64_t bits = atomic_exchange(&dirty[i], 0);
        pages += (unsigned)__builtin_popcountll(bits);
        bitmap[i] = htole64(bits);
    }
    put("dirty", bitmap, sizeof(bitmap));
    command(barrier);
    return pages;
}

int main(int argc, char **argv)
{
    char text[32];
    pthread_t thread;
    unsigned pages = 0;

    if (argc < 2)
        errx(2, "usage: vmm MIGRATION [RAM]");
    migration = open(argv[1], O_PATH | O_DIRECTORY);
    int fd = memfd_create("ram", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)PAGES * PAGE) < 0)
        err(1, "memfd");
    ram = mmap(NULL, (size_t)PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (ram == MAP_FAILED)
        err(1, "mmap");
    for (unsigned page = 0; page < PAGES / 2; page++)
        write_page(page, 'x');
    memset(dirty, 0xff, sizeof(dirty)); /* everything, at first; what was never touched costs nothing */
    pthread_create(&thread, NULL, guest, NULL);

    snprintf(text, sizeof(text), "fd:%d", fd);
    put("ram-source", text, strlen(text));
    command("start");
    for (int round = 1; round <= 5; round++) {
        pages = run_round("sync");
        printf("round %d: %u dirty pages\n", round, pages);
        usleep(20000); /* a real guest dirties more slowly */
    }
    command("stop"); /* from here on the guest is down */
    atomic_store(&running, false);
    pthread_join(thread, NULL);
    pages = run_round("flush");
    printf("last round: %u dirty pages\n", pages);
    snprintf(text, sizeof(text), "%u\n", (unsigned)(unsigned char)ram[0]);
    put("device-state/cpu", text, strlen(text));
    command("complete");
    printf("completed: the guest goes on at the destination\n");
    if (argc > 2) {
        fd = open(argv[2], O_RDONLY);
        char *there = mmap(NULL, (size_t)PAGES * PAGE, PROT_READ, MAP_SHARED, fd, 0);
        if (fd < 0 || there == MAP_FAILED)
            err(1, "%s", argv[2]);
        if (memcmp(there, ram, (size_t)PAGES * PAGE))
            errx(1, "%s is something else", argv[2]);
        printf("identical\n");
    }
    return 0;
}
