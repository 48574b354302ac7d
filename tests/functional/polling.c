/* SPDX-License-Identifier: Apache-2.0 */
/*
 * poll(2) on the files of a migration.
 *
 *   polling status FILE       prints each state that poll(2) tells of, until one that nothing follows
 *   polling follow FILE       copies a stream to stdout, with O_NONBLOCK: poll(2) whenever read(2) says EAGAIN
 *   polling quiet FILE MS     reads once (status) or to the frontier (a device); fails if poll(2) then wakes within MS
 *
 * poll(2) waits without a limit in the first two: what it does not tell of is a hang.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void die(const char *what)
{
    fprintf(stderr, "polling: %s: %s\n", what, strerror(errno));
    exit(1);
}

static short wait_for(int fd, int timeout_ms)
{
    struct pollfd pfd = {.fd = fd, .events = POLLIN};
    int n = poll(&pfd, 1, timeout_ms);

    if (n < 0)
        die("poll");
    if (n > 0 && !(pfd.revents & POLLIN)) {
        errno = EIO;
        die("poll says something else");
    }
    return pfd.revents;
}

static int watch_status(const char *path)
{
    int fd = open(path, O_RDONLY);
    char buf[8192], last[64] = "";

    if (fd < 0)
        die(path);
    for (;;) {
        ssize_t n = pread(fd, buf, sizeof(buf) - 1, 0);
        if (n <= 7)
            die("reading the status");
        buf[n] = '\0';
        buf[strcspn(buf, "\n")] = '\0';
        const char *state = buf + strlen("status ");
        if (strcmp(state, last)) {
            puts(state);
            fflush(stdout);
            snprintf(last, sizeof(last), "%.60s", state);
        }
        if (!strcmp(state, "completed") || !strcmp(state, "failed") || !strcmp(state, "cancelled"))
            return 0;
        wait_for(fd, -1);
    }
}

static int follow(const char *path)
{
    int fd = open(path, O_RDONLY | O_NONBLOCK);
    char buf[50000];
    unsigned waits = 0;

    if (fd < 0)
        die(path);
    for (;;) {
        ssize_t n = read(fd, buf, sizeof(buf));
        if (n == 0)
            break;
        if (n < 0 && errno != EAGAIN)
            die("read");
        if (n < 0) {
            waits++;
            wait_for(fd, -1);
        } else if (write(STDOUT_FILENO, buf, (size_t)n) != n) {
            die("write");
        }
    }
    fprintf(stderr, "%u waits\n", waits);
    return 0;
}

static int quiet(const char *path, int ms)
{
    int fd = open(path, O_RDONLY | O_NONBLOCK);
    char buf[8192];
    ssize_t n;

    if (fd < 0)
        die(path);
    while ((n = read(fd, buf, sizeof(buf))) > 0)
        ;
    if (n < 0 && errno != EAGAIN)
        die("read");
    if (wait_for(fd, ms)) {
        fprintf(stderr, "polling: poll(2) wakes and there is nothing new\n");
        return 1;
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "status"))
        return watch_status(argv[2]);
    if (argc == 3 && !strcmp(argv[1], "follow"))
        return follow(argv[2]);
    if (argc == 4 && !strcmp(argv[1], "quiet"))
        return quiet(argv[2], atoi(argv[3]));
    return 2;
}
