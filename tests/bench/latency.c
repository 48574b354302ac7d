/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A round trip, many times.
 *
 *   latency [-n COUNT] tcp            one byte there and back between two processes over loopback
 *   latency [-n COUNT] sync CONTROL   `sync` written to a migration's control file, with nothing in flight
 *
 * Microseconds as one line of JSON. A hundred rounds come first that do not count.
 */
#include "common.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define WARM_UP 100

const char program[] = "latency";

static int connected(pid_t *child)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(address);
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    char c;

    if (bind(listener, (struct sockaddr *)&address, len) < 0 || listen(listener, 1) < 0 ||
        getsockname(listener, (struct sockaddr *)&address, &len) < 0)
        die_errno("listen");
    *child = fork();
    if (*child == 0) {
        int fd = accept(listener, NULL, NULL);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
        while (recv(fd, &c, 1, 0) == 1 && send(fd, &c, 1, MSG_NOSIGNAL) == 1)
            ;
        _exit(0);
    }
    close(listener);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        die_errno("connect");
    return fd;
}

int main(int argc, char **argv)
{
    unsigned count = 2000;
    pid_t child = 0;
    char c = 0;
    int opt, fd;

    while ((opt = getopt(argc, argv, "n:")) != -1) {
        if (opt != 'n')
            return 2;
        count = (unsigned)atoi(optarg);
    }
    if (argc - optind == 1 && !strcmp(argv[optind], "tcp"))
        fd = connected(&child);
    else if (argc - optind == 2 && !strcmp(argv[optind], "sync"))
        fd = open(argv[optind + 1], O_WRONLY);
    else
        die("usage: latency [-n COUNT] tcp | sync CONTROL");
    if (fd < 0)
        die_errno(argv[optind + 1]);
    double *times = calloc(count + WARM_UP, sizeof(*times)), sum = 0;
    for (unsigned i = 0; i < count + WARM_UP; i++) {
        double begin = now();
        if (child ? send(fd, &c, 1, MSG_NOSIGNAL) != 1 || recv(fd, &c, 1, 0) != 1 : pwrite(fd, "sync\n", 5, 0) != 5)
            die_errno(argv[optind]);
        times[i] = (now() - begin) * 1e6;
    }
    times += WARM_UP;
    for (unsigned i = 0; i < count; i++)
        sum += times[i];
    qsort(times, count, sizeof(*times), by_value);
    printf("{\"median\": %.2f, \"mean\": %.2f, \"p99\": %.2f}\n", times[count / 2], sum / count, times[count * 99 / 100]);
    close(fd);
    if (child)
        waitpid(child, NULL, 0);
    return 0;
}
