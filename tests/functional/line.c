/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A line between TCP ports of this machine that is lost now and then.
 *
 *   line TARGET SEED
 *
 * Says the port that it listens at, and passes each connection on to port TARGET, both ways. Commands come on standard
 * input, a line each, and each is answered with a line:
 *   cut N MIN MAX   from now on each connection, also a new one, is cut after MIN to MAX bytes, by turns in good order and
 *                   by a reset, until N were cut: "ok"
 *   cuts            how many of them were: the number
 *   down            all connections are cut, and those that come are closed: "ok"
 *   up              those that come are passed on again: "ok"
 * Ends when its standard input does.
 */
#include "relay.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* One connection. Freed when both ways are at their ends. */
struct wire {
    struct wire *next;
    int ends[2];
    int64_t left; /* bytes until it is cut; negative: it is not */
    bool cut;
    int ways;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards what follows */
static struct wire *wires;
static bool is_down;
static unsigned due, cuts; /* that are still to be made; that were */
static int64_t least, most;
static uint64_t seed;

static uint64_t draw(uint64_t limit)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (seed >> 33) % limit;
}

/* The lock is held, of these and of the following. */
static void arm(struct wire *wire)
{
    wire->left = due ? least + (int64_t)draw((uint64_t)(most - least + 1)) : -1;
}

static void cut(struct wire *wire)
{
    struct linger hard = {.l_onoff = 1};

    if (wire->cut)
        return;
    wire->cut = true;
    for (int i = 0; i < 2; i++) {
        if (draw(2))
            setsockopt(wire->ends[i], SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
        shutdown(wire->ends[i], SHUT_RDWR);
    }
}

/* How many of @n bytes are still passed on. */
static ssize_t pass(struct wire *wire, ssize_t n)
{
    ssize_t passed = n;

    pthread_mutex_lock(&lock);
    if (wire->left >= 0 && due) {
        if (n > wire->left)
            passed = (ssize_t)wire->left;
        wire->left -= passed;
        if (passed < n) {
            due--;
            cuts++;
        } else {
            passed = n;
        }
    }
    pthread_mutex_unlock(&lock);
    return passed;
}

struct way {
    struct wire *wire;
    int from, to;
};

static void *carry(void *arg)
{
    struct way *way = arg;
    struct wire *wire = way->wire;
    char buf[1 << 16];
    ssize_t n;

    while ((n = recv(way->from, buf, sizeof(buf), 0)) > 0) {
        ssize_t passed = pass(wire, n);
        for (ssize_t done = 0, m; done < passed; done += m) {
            m = send(way->to, buf + done, (size_t)(passed - done), MSG_NOSIGNAL);
            if (m <= 0)
                break;
        }
        if (passed < n)
            break;
    }
    pthread_mutex_lock(&lock);
    if (n > 0)
        cut(wire);
    else
        shutdown(way->to, SHUT_WR);
    if (--wire->ways == 0) {
        struct wire **p = &wires;
        while (*p != wire)
            p = &(*p)->next;
        *p = wire->next;
        close(wire->ends[0]);
        close(wire->ends[1]);
        free(wire);
    }
    pthread_mutex_unlock(&lock);
    free(way);
    return NULL;
}

static void begin(struct wire *wire, int from)
{
    relay_start(carry, &(struct way){wire, wire->ends[from], wire->ends[!from]}, sizeof(struct way));
}

static void take(int from, struct sockaddr_in *target)
{
    struct wire *wire = calloc(1, sizeof(*wire));
    int to = socket(AF_INET, SOCK_STREAM, 0), on = 1;

    if (!wire || to < 0)
        exit(1);
    pthread_mutex_lock(&lock);
    bool closed = is_down || connect(to, (struct sockaddr *)target, sizeof(*target));
    if (closed) {
        pthread_mutex_unlock(&lock);
        close(from);
        close(to);
        free(wire);
        return;
    }
    setsockopt(from, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    setsockopt(to, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    *wire = (struct wire){.next = wires, .ends = {from, to}, .ways = 2};
    wires = wire;
    arm(wire);
    begin(wire, 0);
    begin(wire, 1);
    pthread_mutex_unlock(&lock);
}

static void obey(const char *line)
{
    unsigned n;
    long from, to;

    pthread_mutex_lock(&lock);
    if (sscanf(line, "cut %u %ld %ld", &n, &from, &to) == 3) {
        due = n;
        cuts = 0;
        least = from;
        most = to;
        for (struct wire *wire = wires; wire; wire = wire->next)
            arm(wire);
        puts("ok");
    } else if (!strncmp(line, "cuts", 4)) {
        printf("%u\n", cuts);
    } else if (!strncmp(line, "down", 4) || !strncmp(line, "up", 2)) {
        is_down = *line == 'd';
        for (struct wire *wire = wires; wire && is_down; wire = wire->next)
            cut(wire);
        puts("ok");
    } else {
        exit(2);
    }
    fflush(stdout);
    pthread_mutex_unlock(&lock);
}

int main(int argc, char **argv)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(address);
    char line[128];
    size_t have = 0;

    if (argc != 3)
        return 2;
    seed = strtoull(argv[2], NULL, 10);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&address, len) || listen(listener, 128) ||
        getsockname(listener, (struct sockaddr *)&address, &len))
        return 1;
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    address.sin_port = htons((unsigned short)atoi(argv[1]));
    for (;;) {
        struct pollfd fds[2] = {{.fd = listener, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
        if (poll(fds, 2, -1) < 0)
            return 1;
        if (fds[0].revents) {
            int from = accept(listener, NULL, NULL);
            if (from >= 0)
                take(from, &address);
        }
        if (!fds[1].revents)
            continue;
        if (read(0, line + have, 1) != 1)
            return 0;
        if (line[have++] == '\n' || have == sizeof(line) - 1) {
            line[have] = '\0';
            obey(line);
            have = 0;
        }
    }
}
