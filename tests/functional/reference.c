/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a VMM does by reference and a shell cannot. Says "ok", a number of
 * bytes, or the name of the errno.
 *
 *   reference give FLAGS FILE SOURCE    open FILE (rdonly, wronly, rdwr, path), and write fd:N to SOURCE
 *   reference thread FILE SOURCE        the same, rdonly, from a thread that is not the first one
 *   reference hidden FILE SOURCE        the same, rdonly, from a process that its user may not trace
 *   reference lend UID GID UID GID SOURCE TEXT   as root: the second user writes TEXT to SOURCE, which the first has opened
 *   reference rooted DIRECTORY SOURCE TEXT   as root: write TEXT to SOURCE from a process whose root is elsewhere
 *   reference memfd IMAGE SOURCE [huge] with a memfd of IMAGE's contents
 *   reference mark DIRTY FIRST[-LAST]...   write the bits of these pages to DIRTY, each range with one write(2)
 *   reference patch MODEL FROM FIRST[-LAST]...   copy these pages from FROM to MODEL
 *   reference unaligned DIRTY LENGTH SHIFT   write(2) LENGTH bytes of ones from memory SHIFT bytes behind a page's start
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE 4096

static void say(ssize_t n)
{
    if (n < 0)
        puts(strerrorname_np(errno));
    else
        puts("ok");
    exit(0);
}

static int must(int ret, const char *what)
{
    if (ret < 0) {
        perror(what);
        exit(1);
    }
    return ret;
}

static ssize_t write_name(int fd, const char *source)
{
    int to = open(source, O_WRONLY);
    char text[32];
    int n = snprintf(text, sizeof(text), "fd:%d\n", fd);

    return to < 0 ? -1 : write(to, text, (size_t)n);
}

static int flags_of(const char *text)
{
    if (!strcmp(text, "wronly"))
        return O_WRONLY;
    if (!strcmp(text, "rdwr"))
        return O_RDWR;
    return !strcmp(text, "path") ? O_PATH : O_RDONLY;
}

struct given {
    int fd;
    const char *source;
};

static void *give(void *arg)
{
    struct given *given = arg;

    say(write_name(given->fd, given->source));
    return NULL;
}

static void give_memfd(const char *image, const char *source, int huge)
{
    int from = must(open(image, O_RDONLY), image);
    int fd = must(memfd_create("guest", MFD_CLOEXEC | (huge ? MFD_HUGETLB | MFD_HUGE_2MB : 0)), "memfd_create");
    struct stat st;
    must(fstat(from, &st), image);
    size_t size = (size_t)st.st_size, mapped = huge ? (size + (2 << 20) - 1) >> 21 << 21 : size;
    must(ftruncate(fd, (off_t)mapped), "ftruncate");
    char *map = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        must(-1, "mmap");
    for (size_t done = 0; done < size;) {
        ssize_t n = must((int)pread(from, map + done, size - done < 1 << 20 ? size - done : 1 << 20, (off_t)done), image);
        done += (size_t)n;
    }
    say(write_name(fd, source));
}

static void parse(const char *range, uint64_t *first, uint64_t *last)
{
    char *end;

    *first = strtoull(range, &end, 10);
    *last = *end == '-' ? strtoull(end + 1, &end, 10) : *first;
    if (*end || *last < *first)
        exit(2);
}

static void become(const char *uid, const char *gid)
{
    setfsuid(0);
    setfsgid((gid_t)atoi(gid));
    setfsuid((uid_t)atoi(uid));
}

static void lend(char **arg)
{
    become(arg[0], arg[1]);
    int fd = must(open(arg[4], O_WRONLY), arg[4]);
    become(arg[2], arg[3]);
    say(write(fd, arg[5], strlen(arg[5])));
}

static void mark(const char *path, char **ranges)
{
    int fd = must(open(path, O_WRONLY), path);

    for (; *ranges; ranges++) {
        uint64_t first, last;
        parse(*ranges, &first, &last);
        uint64_t word = first / 64, words = last / 64 - word + 1;
        unsigned char *bits = calloc(words, 8);
        for (uint64_t page = first; page <= last; page++)
            bits[page / 8 - word * 8] |= (unsigned char)(1u << page % 8);
        if (pwrite(fd, bits, words * 8, (off_t)(word * 8)) != (ssize_t)(words * 8))
            say(-1);
        free(bits);
    }
    say(0);
}

static void patch(const char *model, const char *from, char **ranges)
{
    int to = must(open(model, O_WRONLY), model), in = must(open(from, O_RDONLY), from);
    char page[PAGE];

    for (; *ranges; ranges++) {
        uint64_t first, last;
        parse(*ranges, &first, &last);
        for (; first <= last; first++) {
            ssize_t n = pread(in, page, PAGE, (off_t)(first * PAGE));
            must((int)pwrite(to, page, (size_t)must((int)n, from), (off_t)(first * PAGE)), model);
        }
    }
    say(0);
}

static void unaligned(const char *path, size_t length, size_t shift)
{
    int fd = must(open(path, O_WRONLY), path);
    char *buf = mmap(NULL, length + shift, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    memset(buf, 0xff, length + shift);
    ssize_t n = write(fd, buf + shift, length);
    if (n < 0)
        say(-1);
    printf("%zd\n", n);
}

int main(int argc, char **argv)
{
    const char *op = argc > 3 ? argv[1] : "";

    if (!strcmp(op, "give") && argc == 5)
        say(write_name(must(open(argv[3], flags_of(argv[2])), argv[3]), argv[4]));
    if (!strcmp(op, "thread")) {
        struct given given = {must(open(argv[2], O_RDONLY), argv[2]), argv[3]};
        pthread_t thread;
        pthread_create(&thread, NULL, give, &given);
        pthread_join(thread, NULL);
    }
    if (!strcmp(op, "hidden") && prctl(PR_SET_DUMPABLE, 0) == 0)
        say(write_name(must(open(argv[2], O_RDONLY), argv[2]), argv[3]));
    if (!strcmp(op, "rooted") && argc == 5) {
        int fd = must(open(argv[3], O_WRONLY), argv[3]);
        must(chroot(argv[2]), "chroot");
        say(write(fd, argv[4], strlen(argv[4])));
    }
    if (!strcmp(op, "lend") && argc == 8)
        lend(argv + 2);
    if (!strcmp(op, "memfd"))
        give_memfd(argv[2], argv[3], argc > 4);
    if (!strcmp(op, "mark"))
        mark(argv[2], argv + 3);
    if (!strcmp(op, "patch"))
        patch(argv[2], argv[3], argv + 4);
    if (!strcmp(op, "unaligned") && argc == 5) {
        unaligned(argv[2], (size_t)atoll(argv[3]), (size_t)atoll(argv[4]));
        return 0;
    }
    return 2;
}
