/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One system call, and what it says: "ok", the name of the errno, or for some
 * operations what they found. Shells hide all but a sentence about an errno.
 *
 *   attempt OPERATION FILE [ARGUMENT...]
 *
 *   mkdir, rmdir, unlink, stat
 *   open FLAG[,FLAG...]      such as wronly,creat,excl
 *   write TEXT               one write(2) at offset 0
 *   pwrite OFFSET LENGTH     of the letter x; says "short" when not all was taken
 *   read OFFSET LENGTH [nonblock]   says the bytes, or "end"
 *   truncate SIZE
 *   fallocate OFFSET LENGTH [punch|zero|keep|collapse]
 *   fsync, fdatasync
 *   seek data|hole OFFSET    says the offset
 *   rename NEW
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void usage(void)
{
    fprintf(stderr, "attempt: see the source for the operations\n");
    exit(2);
}

static void say(int failed)
{
    puts(failed ? strerrorname_np(errno) : "ok");
    exit(0);
}

static int must_open(const char *path, int flags)
{
    int fd = open(path, flags, 0600);

    if (fd < 0)
        say(1);
    return fd;
}

static int open_flags(char *text)
{
    static const struct {
        const char *name;
        int flag;
    } table[] = {
        {"rdonly", O_RDONLY}, {"wronly", O_WRONLY}, {"rdwr", O_RDWR},       {"creat", O_CREAT},
        {"excl", O_EXCL},     {"trunc", O_TRUNC},   {"append", O_APPEND},   {"direct", O_DIRECT},
    };
    int flags = 0;

    for (char *word = strtok(text, ","); word; word = strtok(NULL, ",")) {
        size_t i = 0;
        while (i < sizeof(table) / sizeof(table[0]) && strcmp(word, table[i].name))
            i++;
        if (i == sizeof(table) / sizeof(table[0]))
            usage();
        flags |= table[i].flag;
    }
    return flags;
}

static void attempt_pwrite(const char *path, off_t offset, size_t length)
{
    int fd = must_open(path, O_WRONLY);
    char *buf = malloc(length + 1);

    if (!buf)
        exit(1);
    memset(buf, 'x', length);
    ssize_t n = pwrite(fd, buf, length, offset);
    if (n >= 0 && (size_t)n < length) {
        puts("short");
        exit(0);
    }
    say(n < 0);
}

static void attempt_read(const char *path, off_t offset, size_t length, int nonblock)
{
    int fd = must_open(path, O_RDONLY | (nonblock ? O_NONBLOCK : 0));
    char *buf = malloc(length + 1);

    if (!buf)
        exit(1);
    ssize_t n = pread(fd, buf, length, offset);
    if (n < 0)
        say(1);
    if (n == 0)
        puts("end");
    else
        fwrite(buf, 1, (size_t)n, stdout);
    exit(0);
}

static int fallocate_mode(const char *text)
{
    if (!text)
        return 0;
    if (!strcmp(text, "punch"))
        return FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    if (!strcmp(text, "zero"))
        return FALLOC_FL_ZERO_RANGE;
    if (!strcmp(text, "keep"))
        return FALLOC_FL_KEEP_SIZE;
    if (!strcmp(text, "collapse"))
        return FALLOC_FL_COLLAPSE_RANGE;
    usage();
    return 0;
}

int main(int argc, char **argv)
{
    const char *op = argc > 2 ? argv[1] : "", *path = argv[2];
    char **arg = argv + 3;
    struct stat st;
    int n = argc - 3;

    if (!strcmp(op, "mkdir"))
        say(mkdir(path, 0777) < 0);
    if (!strcmp(op, "rmdir"))
        say(rmdir(path) < 0);
    if (!strcmp(op, "unlink"))
        say(unlink(path) < 0);
    if (!strcmp(op, "stat"))
        say(stat(path, &st) < 0);
    if (!strcmp(op, "fsync"))
        say(fsync(must_open(path, O_WRONLY)) < 0);
    if (!strcmp(op, "fdatasync"))
        say(fdatasync(must_open(path, O_WRONLY)) < 0);
    if (n == 1 && !strcmp(op, "open"))
        say(open(path, open_flags(arg[0]), 0600) < 0);
    if (n == 1 && !strcmp(op, "write"))
        say(write(must_open(path, O_WRONLY), arg[0], strlen(arg[0])) != (ssize_t)strlen(arg[0]));
    if (n == 1 && !strcmp(op, "truncate"))
        say(truncate(path, atoll(arg[0])) < 0);
    if (n == 1 && !strcmp(op, "rename"))
        say(rename(path, arg[0]) < 0);
    if (n == 2 && !strcmp(op, "pwrite"))
        attempt_pwrite(path, atoll(arg[0]), (size_t)atoll(arg[1]));
    if (n >= 2 && !strcmp(op, "read"))
        attempt_read(path, atoll(arg[0]), (size_t)atoll(arg[1]), n > 2);
    if (n >= 2 && !strcmp(op, "fallocate"))
        say(fallocate(must_open(path, O_WRONLY), fallocate_mode(n > 2 ? arg[2] : NULL), atoll(arg[0]),
                      atoll(arg[1])) < 0);
    if (n == 2 && !strcmp(op, "seek")) {
        off_t found = lseek(must_open(path, O_RDONLY), atoll(arg[1]), !strcmp(arg[0], "data") ? SEEK_DATA : SEEK_HOLE);
        if (found < 0)
            say(1);
        printf("%lld\n", (long long)found);
        return 0;
    }
    usage();
}
