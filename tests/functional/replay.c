/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What Firecracker and Cloud Hypervisor do to their snapshots' files, replayed: the same calls in the same order, made by
 * a program of ours with a guest of its own, whose memory goes on changing.
 *
 *   replay firecracker MEMORY STATE EXPECTED MIB ROUNDS
 *       A full snapshot, its memory in one write(2); then so many diffs into the same file, while a thread writes to
 *       the memory, and the last one when it has stopped.
 *   replay firecracker-restore MEMORY EXPECTED
 *       Maps it privately, and writes to it.
 *   replay cloud-hypervisor DIRECTORY EXPECTED MIB
 *       A snapshot into a directory that is there. It fails where a file of it is there, too, and says the errno.
 *   replay cloud-hypervisor-restore DIRECTORY EXPECTED
 *       Reads what is no hole.
 *
 * EXPECTED is an ordinary file: written with what the memory was in the end, and compared with what is restored.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE  4096u
#define EVERY 61 /* of so many pages one holds something, and changes */

static uint8_t *memory;
static size_t size, pages;
static _Atomic uint8_t *dirty; /* a flag for each page; set after the page has been written */
static atomic_bool paused;

static void fail(const char *what)
{
    printf("%s: %s\n", what, strerrorname_np(errno));
    exit(1);
}

static void touch(size_t page, uint64_t version)
{
    uint64_t *words = (uint64_t *)(memory + page * PAGE);

    for (unsigned i = 0; i < PAGE / 8; i++)
        words[i] = version * (page + 1) + i;
    atomic_store(&dirty[page], 1);
}

static void make_guest(const char *mib)
{
    size = (size_t)atol(mib) << 20;
    pages = size / PAGE;
    memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    dirty = calloc(pages, 1);
    if (memory == MAP_FAILED || !dirty)
        fail("memory");
    for (size_t page = 3; page < pages; page += EVERY)
        touch(page, 1);
    touch(pages - 1, 1);
}

static void *vcpu(void *arg)
{
    (void)arg;
    for (uint64_t version = 2; !atomic_load(&paused); version++)
        for (size_t i = 0; i < pages / EVERY / 8 && !atomic_load(&paused); i++)
            touch((3 + (i * 7 + version * 13) % (pages / EVERY) * EVERY) % pages, version);
    return NULL;
}

static void write_all(int fd, const uint8_t *data, size_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, data, len);
        if (n <= 0)
            fail("write");
        data += n;
        len -= (size_t)n;
    }
}

/* What is not zero, so that the file is sparse. */
static void write_expected(const char *path)
{
    static const uint8_t zeros[PAGE];
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    if (fd < 0 || ftruncate(fd, (off_t)size))
        fail(path);
    for (size_t page = 0; page < pages; page++) {
        const uint8_t *data = memory + page * PAGE;
        if (memcmp(data, zeros, PAGE) && pwrite(fd, data, PAGE, (off_t)(page * PAGE)) != PAGE)
            fail(path);
    }
    close(fd);
}

static void write_state(const char *path)
{
    uint8_t state[10000];
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    memset(state, 's', sizeof(state));
    if (fd < 0)
        fail(path);
    write_all(fd, state, sizeof(state));
    if (fsync(fd))
        fail("fsync");
    close(fd);
}

/* The memory's file, as Firecracker opens it each time. */
static int open_memory(const char *path)
{
    struct stat st;
    int exists = stat(path, &st) == 0;
    int fd = open(path, O_WRONLY | O_CREAT, 0600);

    if (fd < 0 || fstat(fd, &st))
        fail(path);
    if (exists && (size_t)st.st_size != size && ftruncate(fd, 0))
        fail("ftruncate to 0");
    if (ftruncate(fd, (off_t)size))
        fail("ftruncate");
    return fd;
}

static void snapshot_full(const char *path)
{
    int fd = open_memory(path);

    for (size_t page = 0; page < pages; page++)
        atomic_store(&dirty[page], 0);
    ssize_t n = write(fd, memory, size);
    printf("full: the first write took %zd of %zu bytes\n", n, size);
    if (n <= 0)
        fail("write");
    write_all(fd, memory + n, size - (size_t)n);
    if (fsync(fd))
        fail("fsync");
    close(fd);
}

static void snapshot_diff(const char *path)
{
    size_t runs = 0, sent = 0;
    int fd = open_memory(path);

    for (size_t page = 0; page < pages;) {
        size_t end = page;
        while (end < pages && atomic_exchange(&dirty[end], 0))
            end++;
        if (end == page) {
            page++;
            continue;
        }
        if (lseek(fd, (off_t)(page * PAGE), SEEK_SET) < 0)
            fail("lseek");
        write_all(fd, memory + page * PAGE, (end - page) * PAGE);
        runs++;
        sent += end - page;
        page = end;
    }
    if (fsync(fd))
        fail("fsync");
    close(fd);
    printf("diff: %zu pages in %zu runs\n", sent, runs);
}

static void firecracker(char **argv)
{
    pthread_t thread;

    make_guest(argv[5]);
    if (pthread_create(&thread, NULL, vcpu, NULL))
        fail("thread");
    snapshot_full(argv[2]);
    for (int round = atoi(argv[6]); round > 0; round--)
        snapshot_diff(argv[2]);
    atomic_store(&paused, 1);
    pthread_join(thread, NULL);
    write_state(argv[3]);
    snapshot_diff(argv[2]);
    write_expected(argv[4]);
}

/* The file of what is expected, mapped; sets size. */
static const uint8_t *map_expected(const char *path)
{
    struct stat st;
    int fd = open(path, O_RDONLY);

    if (fd < 0 || fstat(fd, &st))
        fail(path);
    size = (size_t)st.st_size;
    const uint8_t *expected = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (expected == MAP_FAILED)
        fail("mmap");
    return expected;
}

static void firecracker_restore(const char *path, const uint8_t *expected)
{
    struct stat st;
    int fd = open(path, O_RDONLY);

    if (fd < 0 || fstat(fd, &st))
        fail(path);
    if ((size_t)st.st_size != size) {
        printf("the size is %zu, not %zu\n", (size_t)st.st_size, size);
        exit(1);
    }
    uint8_t *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
    if (map == MAP_FAILED)
        fail("mmap");
    if (memcmp(map, expected, size)) {
        puts("another memory");
        exit(1);
    }
    for (size_t at = 0; at < size; at += PAGE * EVERY)
        map[at] = expected[at] ^ 0xff;
    for (size_t at = 0; at < size; at += PAGE * EVERY)
        if (map[at] + expected[at] != 0xff)
            fail("what was written");
    puts("restored");
}

static int make_exclusively(const char *dir, const char *name)
{
    char path[4096];

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fd < 0)
        fail(name);
    return fd;
}

static void write_once(const char *dir, const char *name, const char *text)
{
    int fd = make_exclusively(dir, name);

    if (write(fd, text, strlen(text)) != (ssize_t)strlen(text))
        fail(name);
    close(fd);
}

static void cloud_hypervisor(char **argv)
{
    make_guest(argv[4]);
    write_once(argv[2], "config.json", "{\"cpus\": 1}\n");
    int fd = make_exclusively(argv[2], "memory-ranges");
    if (ftruncate(fd, (off_t)size))
        fail("ftruncate");
    for (size_t page = 0; page < pages;) {
        size_t end = page;
        while (end < pages && atomic_load(&dirty[end]) && end - page < 256)
            end++;
        if (end > page && pwrite(fd, memory + page * PAGE, (end - page) * PAGE, (off_t)(page * PAGE)) !=
                              (ssize_t)((end - page) * PAGE))
            fail("pwrite");
        page = end > page ? end : page + 1;
    }
    close(fd);
    write_once(argv[2], "state.json", "{\"state\": \"paused\"}\n");
    write_expected(argv[3]);
    puts("snapshot");
}

static void cloud_hypervisor_restore(const char *dir, const uint8_t *expected)
{
    char path[4096];
    size_t extents = 0, data_bytes = 0;

    snprintf(path, sizeof(path), "%s/memory-ranges", dir);
    int fd = open(path, O_RDONLY);
    memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (fd < 0 || memory == MAP_FAILED)
        fail(path);
    for (off_t hole = 0;; extents++) {
        off_t data = lseek(fd, hole, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            break;
        hole = data < 0 ? data : lseek(fd, data, SEEK_HOLE);
        if (hole < 0)
            fail("lseek");
        for (off_t at = data; at < hole;) {
            size_t len = hole - at < 1 << 20 ? (size_t)(hole - at) : 1 << 20;
            ssize_t n = pread(fd, memory + at, len, at);
            if (n <= 0)
                fail("pread");
            at += n;
        }
        data_bytes += (size_t)(hole - data);
    }
    if (memcmp(memory, expected, size)) {
        puts("another memory");
        exit(1);
    }
    printf("restored: %zu extents, %zu bytes of %zu\n", extents, data_bytes, size);
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc == 7 && !strcmp(argv[1], "firecracker"))
        firecracker(argv);
    else if (argc == 4 && !strcmp(argv[1], "firecracker-restore"))
        firecracker_restore(argv[2], map_expected(argv[3]));
    else if (argc == 5 && !strcmp(argv[1], "cloud-hypervisor"))
        cloud_hypervisor(argv);
    else if (argc == 4 && !strcmp(argv[1], "cloud-hypervisor-restore"))
        cloud_hypervisor_restore(argv[2], map_expected(argv[3]));
    else
        return 2;
    return 0;
}
