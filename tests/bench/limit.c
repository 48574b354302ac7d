/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The limit: an image through bare TCP connections of this machine, nothing else.
 *
 *   limit [-n CHANNELS] [-b BLOCK] [-c map|write] IMAGE DESTINATION
 *
 * One process sends, one receives, each with a thread for each connection; block i goes over connection i % n. The
 * receiver's memory is a file in tmpfs, mapped and resident before the clock starts. With -c it is fresh:
 * received through the mapping (`map`) or into a buffer and written (`write`). The clock stops
 * when the receiver has acknowledged on all connections that it has everything. One line of JSON.
 */
#include "common.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

const char program[] = "limit";

struct channel {
    unsigned index;
    int socket;
    pthread_t thread;
};

static unsigned channels = 2;
static uint64_t block = 1 << 20, size;
static bool cold, cold_write;
static char *memory;          /* the image, or the destination */
static int memory_fd;
static pthread_barrier_t begin;
static int report[2];          /* a pipe: the CPU seconds of the receiver */

static void *send_blocks(void *arg)
{
    struct channel *c = arg;
    char ack;

    pthread_barrier_wait(&begin);
    for (uint64_t at = c->index * block; at < size; at += channels * block) {
        uint64_t end = at + block < size ? at + block : size;
        for (uint64_t p = at; p < end;) {
            ssize_t n = send(c->socket, memory + p, end - p, MSG_NOSIGNAL);
            if (n <= 0)
                die_errno("send");
            p += (uint64_t)n;
        }
    }
    if (recv(c->socket, &ack, 1, 0) != 1)
        die_errno("no acknowledgement");
    return NULL;
}

static void *receive_blocks(void *arg)
{
    struct channel *c = arg;
    char *buf = cold_write ? malloc(block) : NULL;

    for (uint64_t at = c->index * block; at < size; at += channels * block) {
        uint64_t len = at + block < size ? block : size - at;
        if (recv(c->socket, buf ? buf : memory + at, len, MSG_WAITALL) != (ssize_t)len)
            die_errno("recv");
        if (buf && pwrite(memory_fd, buf, len, (off_t)at) != (ssize_t)len)
            die_errno("pwrite");
    }
    free(buf);
    if (send(c->socket, "", 1, MSG_NOSIGNAL) != 1)
        die_errno("send");
    return NULL;
}

static void *map_file(const char *path, int flags, bool resident)
{
    int prot = flags == O_RDONLY ? PROT_READ : PROT_READ | PROT_WRITE;

    memory_fd = open(path, flags, 0600);
    if (memory_fd < 0 || (flags & O_CREAT && ftruncate(memory_fd, (off_t)size) < 0))
        die_errno(path);
    void *map = mmap(NULL, size, prot, MAP_SHARED, memory_fd, 0);
    if (map == MAP_FAILED)
        die_errno(path);
    if (resident && madvise(map, size, flags == O_RDONLY ? MADV_POPULATE_READ : MADV_POPULATE_WRITE) < 0)
        die_errno("populating");
    return map;
}

static void receive(const char *path, int listener)
{
    struct channel *c = calloc(channels, sizeof(*c));

    memory = map_file(path, O_RDWR | O_CREAT | (cold ? O_TRUNC : 0), !cold);
    for (unsigned i = 0; i < channels; i++) {
        uint32_t index;
        int fd = accept(listener, NULL, NULL);
        if (fd < 0 || recv(fd, &index, sizeof(index), MSG_WAITALL) != sizeof(index))
            die_errno("accept");
        c[index] = (struct channel){.index = index, .socket = fd};
    }
    for (unsigned i = 0; i < channels; i++)
        pthread_create(&c[i].thread, NULL, receive_blocks, &c[i]);
    /* Everything is ready: the sender's clock may start. */
    double cpu = cpu_seconds(RUSAGE_SELF);
    if (send(c[0].socket, "", 1, MSG_NOSIGNAL) != 1)
        die_errno("send");
    for (unsigned i = 0; i < channels; i++)
        pthread_join(c[i].thread, NULL);
    cpu = cpu_seconds(RUSAGE_SELF) - cpu;
    if (write(report[1], &cpu, sizeof(cpu)) != sizeof(cpu))
        die_errno("write");
}

int main(int argc, char **argv)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(address);
    struct stat st;
    char ack;
    int opt, status, one = 1;

    while ((opt = getopt(argc, argv, "n:b:c:")) != -1) {
        if (opt == 'n')
            channels = (unsigned)atoi(optarg);
        else if (opt == 'b')
            block = parse_size(optarg);
        else if (opt == 'c')
            cold = true, cold_write = !strcmp(optarg, "write");
        else
            return 2;
    }
    if (argc - optind != 2 || !channels || !block)
        die("usage: limit [-n CHANNELS] [-b BLOCK] [-c map|write] IMAGE DESTINATION");
    if (stat(argv[optind], &st) < 0)
        die_errno(argv[optind]);
    size = (uint64_t)st.st_size;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&address, len) < 0 || listen(listener, (int)channels) < 0 ||
        getsockname(listener, (struct sockaddr *)&address, &len) < 0)
        die_errno("listen");
    if (pipe(report) < 0)
        die_errno("pipe");
    pid_t child = fork();
    if (child == 0) {
        receive(argv[optind + 1], listener);
        return 0;
    }
    close(listener);
    memory = map_file(argv[optind], O_RDONLY, true);
    struct channel *c = calloc(channels, sizeof(*c));
    pthread_barrier_init(&begin, NULL, channels + 1);
    for (unsigned i = 0; i < channels; i++) {
        uint32_t index = i;
        c[i] = (struct channel){.index = i, .socket = socket(AF_INET, SOCK_STREAM, 0)};
        setsockopt(c[i].socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
        if (connect(c[i].socket, (struct sockaddr *)&address, sizeof(address)) < 0 ||
            send(c[i].socket, &index, sizeof(index), MSG_NOSIGNAL) != sizeof(index))
            die_errno("connect");
    }
    if (recv(c[0].socket, &ack, 1, 0) != 1)
        die("the receiver has failed");
    for (unsigned i = 0; i < channels; i++)
        pthread_create(&c[i].thread, NULL, send_blocks, &c[i]);
    double cpu = cpu_seconds(RUSAGE_SELF), their_cpu, busy = busy_seconds(), start = now();
    pthread_barrier_wait(&begin);
    for (unsigned i = 0; i < channels; i++)
        pthread_join(c[i].thread, NULL);
    double seconds = now() - start;
    cpu = cpu_seconds(RUSAGE_SELF) - cpu;
    busy = busy_seconds() - busy;
    if (waitpid(child, &status, 0) != child || status || read(report[0], &their_cpu, sizeof(their_cpu)) != sizeof(their_cpu))
        die("the receiver has failed");
    printf("{\"seconds\": %.6f, \"bytes\": %llu, \"cpu_source\": %.6f, \"cpu_destination\": %.6f, \"cpu_machine\": %.2f}\n",
           seconds, (unsigned long long)size, cpu, their_cpu, busy);
    return 0;
}
