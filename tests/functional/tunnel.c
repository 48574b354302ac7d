/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A tunnel between unix sockets that acknowledges what it does not pass on.
 *
 *   tunnel LISTEN TARGET N stall=BYTES|hold=BYTES|lose=BYTES|pace=MS
 *
 * Passes connections on, both ways; the migration's main channel is number 0, its
 * data channels follow. Towards the target, and after the hello, connection N
 *   stall=BYTES   takes everything, and passes on no more than that;
 *   hold=BYTES    takes no more than about that;
 *   lose=BYTES    leaves out the byte after so many;
 *   pace=MS       passes on seven bytes at a time, each that long after the last.
 * It says "ready" when it listens, and ends when its standard input does.
 */
#include "relay.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define HELLO 320 /* bytes; see core/wire.h */

static const char *target;
static int special;
static uint64_t stall = UINT64_MAX, hold = UINT64_MAX, lose = UINT64_MAX;
static long pace;

struct way {
    int from, to;
    int special;
};

static int unix_socket(const char *path, int listens)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);

    strncpy(address.sun_path, path, sizeof(address.sun_path) - 1);
    if (fd < 0 || (listens ? bind(fd, (struct sockaddr *)&address, sizeof(address)) || listen(fd, 64)
                           : connect(fd, (struct sockaddr *)&address, sizeof(address)))) {
        perror(path);
        exit(1);
    }
    return fd;
}

static int put(int fd, const char *buf, size_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, buf, len);
        if (n <= 0)
            return -1;
        buf += n;
        len -= (size_t)n;
    }
    return 0;
}

/* Passes on what comes at @at, with the fault. */
static int put_broken(int fd, const char *buf, size_t len, uint64_t at)
{
    if (pace) {
        struct timespec delay = {pace / 1000, pace % 1000 * 1000000};
        nanosleep(&delay, NULL);
    }
    if (at >= stall)
        return 0;
    if (len > stall - at)
        len = stall - at;
    if (lose >= at && lose < at + len)
        return put(fd, buf, lose - at) || put(fd, buf + (lose - at) + 1, len - (lose - at) - 1);
    return put(fd, buf, len);
}

static void *carry(void *arg)
{
    struct way *way = arg;
    char buf[65536];
    uint64_t at = 0;

    for (;;) {
        size_t most = at < HELLO ? HELLO - at : way->special && pace ? 7 : sizeof(buf);
        if (way->special && at >= HELLO && at - HELLO >= hold)
            pause();
        ssize_t n = read(way->from, buf, most);
        if (n <= 0)
            break;
        int broken = way->special && at >= HELLO ? put_broken(way->to, buf, (size_t)n, at - HELLO)
                                                 : put(way->to, buf, (size_t)n);
        if (broken)
            break;
        at += (uint64_t)n;
    }
    shutdown(way->to, SHUT_WR);
    return NULL;
}

static void start(int from, int to, int is_special)
{
    relay_start(carry, &(struct way){from, to, is_special}, sizeof(struct way));
}

int main(int argc, char **argv)
{
    if (argc != 5 || sscanf(argv[4], "stall=%lu", &stall) + sscanf(argv[4], "hold=%lu", &hold) +
                             sscanf(argv[4], "lose=%lu", &lose) +
                             sscanf(argv[4], "pace=%ld", &pace) < 1)
        return 2;
    int listener = unix_socket(argv[1], 1);
    target = argv[2];
    special = atoi(argv[3]);
    puts("ready");
    fflush(stdout);
    for (int n = 0;; n++) {
        struct pollfd fds[2] = {{.fd = listener, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
        if (poll(fds, 2, -1) < 0 || fds[1].revents)
            return 0;
        int from = accept(listener, NULL, NULL);
        if (from < 0)
            return 1;
        int to = unix_socket(target, 0);
        start(from, to, n == special);
        start(to, from, 0);
    }
}
