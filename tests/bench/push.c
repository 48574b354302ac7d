/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pushes an image into one or more `ram` files, and says how long it took.
 *
 *   push [OPTION...] IMAGE RAM...
 *     -b SIZE     bytes a write (1M)
 *     -j N        writers of each RAM; they take blocks in turn (1)
 *     -c          read(2) each block into a buffer first, as dd does; by default the writes come from a
 *                 mapping of the image whose pages are ready, which is what a VMM has
 *     -d          open RAM with O_DIRECT
 *     -s holes    write what SEEK_DATA finds in the image
 *     -s zeros    look at every page, and write the runs of pages that are not zero
 *     -r COUNT    write COUNT blocks at random places that are multiples of the block, by all writers together
 *     -p          by reference: a bitmap of all pages to dirty; ram-source has been set
 *     -P          the same, with a bitmap of the pages that are not zero
 *     -n          no `sync` at the end
 *
 * With several RAMs, each gets the part of the image that is its share: the amount of data is the same for
 * any number of them. The clock runs from the first write to the return of the last `sync`, which the program
 * writes to `control` beside RAM. One line of JSON.
 */
#include "common.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

const char program[] = "push";

enum skip { SKIP_NOTHING, SKIP_HOLES, SKIP_ZEROS };

/* One RAM file, and its part of the image. */
struct target {
    const char *path;
    uint64_t base, size;      /* in the image */
    pthread_barrier_t done;   /* its writers have written */
    int control;
};

struct writer {
    struct target *target;
    unsigned index;
    pthread_t thread;
    int fd;
    char *buf;
    uint64_t bytes, writes;   /* written by this one */
    double written, synced;   /* when */
};

static uint64_t block = 1 << 20, count;
static unsigned jobs = 1;
static bool copy, by_reference, nonzero, no_sync;
static int direct;
static enum skip skip;
static const char *image_path;
static int image_fd;
static const char *image;     /* the mapping; NULL with -c */
static const char *wanted;    /* the bitmap of -P */
static pthread_barrier_t ready;

static int open_beside(const char *path, const char *name, int flags)
{
    char other[4096];
    const char *slash = strrchr(path, '/');

    snprintf(other, sizeof(other), "%.*s/%s", slash ? (int)(slash - path) : 1, slash ? path : ".", name);
    int fd = open(other, flags);
    if (fd < 0)
        die_errno(other);
    return fd;
}

static void put(struct writer *w, uint64_t offset, size_t len)
{
    const char *from = image ? image + w->target->base + offset : w->buf;

    if (!image && pread(image_fd, w->buf, len, (off_t)(w->target->base + offset)) != (ssize_t)len)
        die_errno(image_path);
    ssize_t n = pwrite(w->fd, from, len, (off_t)offset);
    if (n != (ssize_t)len)
        die("%s, at %llu: %s", w->target->path, (unsigned long long)offset, n < 0 ? strerror(errno) : "a short write");
    w->bytes += len;
    w->writes++;
}

/* A range without anything to skip, block by block; blocks are at multiples of their size. */
static void put_range(struct writer *w, uint64_t offset, uint64_t end)
{
    while (offset < end) {
        uint64_t next = (offset / block + 1) * block;
        next = next < end ? next : end;
        if (offset / block % jobs == w->index)
            put(w, offset, (size_t)(next - offset));
        offset = next;
    }
}

static void put_data(struct writer *w)
{
    struct target *t = w->target;
    uint64_t at = t->base, end = t->base + t->size;

    while (at < end) {
        off_t data = lseek(image_fd, (off_t)at, SEEK_DATA);
        if (data < 0 || (uint64_t)data >= end)
            break;
        off_t hole = lseek(image_fd, data, SEEK_HOLE);
        at = hole > 0 && (uint64_t)hole < end ? (uint64_t)hole : end;
        put_range(w, (uint64_t)data - t->base, at - t->base);
    }
}

static bool is_zero(const char *page)
{
    return !*page && !memcmp(page, page + 1, PAGE - 1);
}

static void put_nonzero(struct writer *w)
{
    struct target *t = w->target;
    uint64_t at = 0;

    while (at < t->size) {
        uint64_t end = at;
        /* Blocks of other writers are theirs to look at. */
        if (at % block == 0 && at / block % jobs != w->index) {
            at += block;
            continue;
        }
        while (end < t->size && (end == at || end % block) && !is_zero(image + t->base + end))
            end += PAGE;
        if (end > at)
            put(w, at, (size_t)(end - at));
        at = end > at ? end : at + PAGE;
    }
}

static void put_random(struct writer *w)
{
    uint64_t state = 2463534242ull + w->index * 7919ull, blocks = w->target->size / block;

    for (uint64_t i = w->index; i < count; i += jobs)
        put(w, (draw(&state) >> 20) % blocks * block, block);
}

static void put_reference(struct writer *w)
{
    struct target *t = w->target;
    int dirty = open_beside(t->path, "dirty", O_WRONLY);
    uint64_t pages = t->size / PAGE, len = (pages + 63) / 64 * 8;
    char *bits = malloc(len);

    memset(bits, nonzero ? 0 : 0xff, len);
    memcpy(bits, wanted, nonzero ? len : 0);
    for (uint64_t at = 0; at < len;) {
        uint64_t n = len - at < (128u << 10) ? len - at : 128u << 10;
        if (pwrite(dirty, bits + at, n, (off_t)at) != (ssize_t)n)
            die_errno("dirty");
        at += n;
    }
    close(dirty);
    free(bits);
    w->bytes = t->size;
}

/* Which pages of the image are not zero, before the clock runs: a VMM knows what is dirty. */
static char *look_for_data(uint64_t size)
{
    char *bits = calloc(1, (size / PAGE + 63) / 64 * 8);

    for (uint64_t page = 0; page < size / PAGE; page++) {
        if (!is_zero(image + page * PAGE))
            bits[page / 8] |= (char)(1 << page % 8);
    }
    return bits;
}

static void *write_all(void *arg)
{
    struct writer *w = arg;
    struct target *t = w->target;

    pthread_barrier_wait(&ready);
    pthread_barrier_wait(&ready);
    if (by_reference)
        put_reference(w);
    else if (count)
        put_random(w);
    else if (skip == SKIP_HOLES)
        put_data(w);
    else if (skip == SKIP_ZEROS)
        put_nonzero(w);
    else
        put_range(w, 0, t->size);
    w->written = w->synced = now();
    if (jobs > 1)
        pthread_barrier_wait(&t->done);
    if (w->index == 0 && !no_sync) {
        if (write(t->control, "sync\n", 5) < 0)
            die_errno("sync");
        w->synced = now();
    }
    return NULL;
}

static void map_image(uint64_t size)
{
    void *map = mmap(NULL, size, PROT_READ, MAP_SHARED, image_fd, 0);

    if (map == MAP_FAILED)
        die_errno(image_path);
    /* Holes stay holes; a read through a mapping of tmpfs would fill them. */
    for (off_t at = lseek(image_fd, 0, SEEK_DATA), end; at >= 0 && (uint64_t)at < size; at = lseek(image_fd, end, SEEK_DATA)) {
        end = lseek(image_fd, at, SEEK_HOLE);
        if (madvise((char *)map + at, (size_t)(end - at), MADV_POPULATE_READ) < 0)
            die_errno("populating the mapping");
    }
    image = map;
}

static void parse(int argc, char **argv)
{
    int opt;

    while ((opt = getopt(argc, argv, "b:j:cds:r:pPn")) != -1) {
        switch (opt) {
        case 'b':
            block = parse_size(optarg);
            break;
        case 'j':
            jobs = (unsigned)atoi(optarg);
            break;
        case 'c':
            copy = true;
            break;
        case 'd':
            direct = O_DIRECT;
            break;
        case 's':
            skip = !strcmp(optarg, "holes") ? SKIP_HOLES : SKIP_ZEROS;
            break;
        case 'r':
            count = parse_size(optarg);
            break;
        case 'p':
            by_reference = true;
            break;
        case 'P':
            by_reference = nonzero = true;
            break;
        case 'n':
            no_sync = true;
            break;
        default:
            exit(2);
        }
    }
    if (argc - optind < 2 || !jobs || !block || block % PAGE || (copy && skip == SKIP_ZEROS))
        die("usage: push [OPTION...] IMAGE RAM...");
}

int main(int argc, char **argv)
{
    struct stat st;

    parse(argc, argv);
    image_path = argv[optind];
    image_fd = open(image_path, O_RDONLY);
    if (image_fd < 0 || fstat(image_fd, &st) < 0)
        die_errno(image_path);
    if (!copy && (!by_reference || nonzero))
        map_image((uint64_t)st.st_size);
    if (nonzero)
        wanted = look_for_data((uint64_t)st.st_size);

    unsigned targets = (unsigned)(argc - optind - 1), writers = targets * jobs;
    struct target *target = calloc(targets, sizeof(*target));
    struct writer *writer = calloc(writers, sizeof(*writer));
    pthread_barrier_init(&ready, NULL, writers + 1);
    for (unsigned i = 0; i < writers; i++) {
        struct target *t = &target[i / jobs];
        if (i % jobs == 0) {
            t->path = argv[optind + 1 + (int)(i / jobs)];
            t->size = (uint64_t)st.st_size / targets / PAGE * PAGE;
            t->base = i / jobs * t->size;
            t->control = no_sync ? -1 : open_beside(t->path, "control", O_WRONLY);
            pthread_barrier_init(&t->done, NULL, jobs);
        }
        writer[i].target = t;
        writer[i].index = i % jobs;
        writer[i].fd = open(t->path, O_WRONLY | direct);
        if (writer[i].fd < 0)
            die_errno(t->path);
        if (copy) {
            writer[i].buf = aligned_alloc(PAGE, block);
            memset(writer[i].buf, 1, block);
        }
        if (pthread_create(&writer[i].thread, NULL, write_all, &writer[i]))
            die("cannot make a thread");
    }
    pthread_barrier_wait(&ready);
    double cpu = cpu_seconds(RUSAGE_SELF), busy = busy_seconds(), begin = now(), written = 0, synced = 0;
    uint64_t bytes = 0, writes = 0;
    pthread_barrier_wait(&ready);
    for (unsigned i = 0; i < writers; i++) {
        pthread_join(writer[i].thread, NULL);
        written = writer[i].written > written ? writer[i].written : written;
        synced = writer[i].synced > synced ? writer[i].synced : synced;
        bytes += writer[i].bytes;
        writes += writer[i].writes;
    }
    cpu = cpu_seconds(RUSAGE_SELF) - cpu;
    busy = busy_seconds() - busy;
    printf("{\"seconds\": %.6f, \"written\": %.6f, \"bytes\": %llu, \"writes\": %llu, \"cpu\": %.6f, \"busy\": %.2f}\n",
           synced - begin, written - begin, (unsigned long long)bytes, (unsigned long long)writes, cpu, busy);
    return 0;
}
