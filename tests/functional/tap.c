/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A relay between TCP ports of this machine that keeps all that goes over it.
 *
 *   tap TARGET FILE
 *
 * Says the port that it listens at, passes each connection on to port TARGET, both ways, and appends what each direction
 * carries to FILE in whole pieces as they come. Ends when its standard input does.
 */
#include "relay.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static int file;

struct way {
    int from, to;
};

static void *carry(void *arg)
{
    struct way *way = arg;
    static _Thread_local char buf[1 << 16];
    ssize_t n;

    while ((n = read(way->from, buf, sizeof(buf))) > 0) {
        if (write(file, buf, (size_t)n) != n)
            exit(1);
        for (ssize_t done = 0, m; done < n; done += m) {
            m = send(way->to, buf + done, (size_t)(n - done), MSG_NOSIGNAL);
            if (m <= 0)
                break;
        }
    }
    shutdown(way->to, SHUT_WR);
    free(way);
    return NULL;
}

static void start(int from, int to)
{
    relay_start(carry, &(struct way){from, to}, sizeof(struct way));
}

int main(int argc, char **argv)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(address);

    if (argc != 3)
        return 2;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    file = open(argv[2], O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (file < 0 || bind(listener, (struct sockaddr *)&address, len) || listen(listener, 64) ||
        getsockname(listener, (struct sockaddr *)&address, &len))
        return 1;
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    address.sin_port = htons((unsigned short)atoi(argv[1]));
    for (;;) {
        struct pollfd fds[2] = {{.fd = listener, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
        if (poll(fds, 2, -1) < 0 || fds[1].revents)
            return 0;
        int from = accept(listener, NULL, NULL), to = socket(AF_INET, SOCK_STREAM, 0);
        if (from < 0 || connect(to, (struct sockaddr *)&address, sizeof(address)))
            return 1;
        start(from, to);
        start(to, from);
    }
}
