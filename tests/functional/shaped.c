/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A link between two network namespaces that is as slow and as long as it is told, where the kernel has no netem.
 *
 *   shaped NAMESPACE NAMESPACE MBIT-PER-SECOND MILLISECONDS
 *
 * Each gets a device `far0` (TUN, MTU 9000); a packet arrives at the other one when those before it have been sent at
 * that rate, and so many milliseconds later. What waits is bounded as in a switch: the rest is lost.
 * It says "ready" when the devices are there.
 */
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define MTU     9000
#define QUEUE   2048               /* packets on their way */
#define WAITING (4 << 20)          /* bytes that wait to be sent, at most */

struct packet {
    int64_t due; /* ns */
    size_t len;
    char data[MTU];
};

struct way {
    int from, to;
    struct packet *packets;
    unsigned first, count;
    int64_t free; /* when the link has sent all that has come */
};

static double ns_a_byte;
static int64_t delay;

static int64_t now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000000ll + ts.tv_nsec;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static int make_device(const char *namespace)
{
    char path[256];
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};

    snprintf(path, sizeof(path), "/run/netns/%s", namespace);
    int ns = open(path, O_RDONLY | O_CLOEXEC);
    if (ns < 0 || setns(ns, CLONE_NEWNET))
        fail(path);
    close(ns);
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    strcpy(request.ifr_name, "far0");
    if (fd < 0 || ioctl(fd, TUNSETIFF, &request))
        fail("/dev/net/tun");
    return fd;
}

static void take(struct way *way)
{
    char lost[MTU];

    for (;;) {
        int64_t at = now();
        int64_t begin = way->free > at ? way->free : at;
        int full = way->count == QUEUE || (double)(begin - at) > WAITING * ns_a_byte;
        struct packet *packet = &way->packets[(way->first + way->count) % QUEUE];
        ssize_t n = read(way->from, full ? lost : packet->data, MTU);
        if (n <= 0)
            return;
        if (full)
            continue;
        way->free = begin + (int64_t)((double)n * ns_a_byte);
        packet->due = way->free + delay;
        packet->len = (size_t)n;
        way->count++;
    }
}

/* Returns when the next one is due, or INT64_MAX. */
static int64_t pass_on(struct way *way)
{
    while (way->count) {
        struct packet *packet = &way->packets[way->first];
        if (packet->due > now())
            return packet->due;
        if (write(way->to, packet->data, packet->len) < 0)
            perror("a packet is lost");
        way->first = (way->first + 1) % QUEUE;
        way->count--;
    }
    return INT64_MAX;
}

int main(int argc, char **argv)
{
    if (argc != 5)
        return 2;
    ns_a_byte = 8e3 / atof(argv[3]);
    delay = (int64_t)(atof(argv[4]) * 1e6);
    int a = make_device(argv[1]), b = make_device(argv[2]);
    struct way ways[2] = {{.from = a, .to = b}, {.from = b, .to = a}};

    for (int i = 0; i < 2; i++) {
        ways[i].packets = calloc(QUEUE, sizeof(struct packet));
        if (!ways[i].packets)
            fail("memory");
    }
    puts("ready");
    fflush(stdout);
    for (;;) {
        int64_t next = pass_on(&ways[0]), other = pass_on(&ways[1]);
        if (other < next)
            next = other;
        int64_t wait = next == INT64_MAX ? INT64_MAX : next - now();
        struct timespec timeout = {wait / 1000000000, wait > 0 ? wait % 1000000000 : 0};
        struct pollfd fds[2] = {{a, POLLIN, 0}, {b, POLLIN, 0}};
        if (wait <= 0)
            timeout = (struct timespec){0, 0};
        if (ppoll(fds, 2, wait == INT64_MAX ? NULL : &timeout, NULL) < 0)
            return 1;
        take(&ways[0]);
        take(&ways[1]);
    }
}
