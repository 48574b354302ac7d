/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The end of a migration, as a VMM with several devices goes through it: the VM is stopped, the residual RAM and the
 * state of all devices are written at once, then the migration is completed.
 *
 *   switchover [-r RAM] [-d DEVICES] [-s STATE] [-m RATE] [-w WRITERS] DIRECTORY
 *     -r SIZE   residual RAM, in pieces of 64 KiB spread evenly over the image (64M)
 *     -d N      devices, a thread each (4)
 *     -s SIZE   state of a device, in writes of 1 MiB (16M)
 *     -m RATE   bytes a second that a device gives its state at (0: as fast as it is taken)
 *     -w N      threads that write RAM (1)
 *
 * DIRECTORY is the migration's. Milliseconds since `stop`, as one line of JSON: when RAM was written, when the last
 * device was closed, and the return of `complete`, which is the downtime.
 */
#include "common.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <unistd.h>

#define PIECE  (64u << 10)
#define CHUNK  (1u << 20)

const char program[] = "switchover";

struct worker {
    pthread_t thread;
    unsigned index;
    int fd;
    double done;
};

static uint64_t residual = 64u << 20, state_size = 16u << 20, rate, ram_size;
static unsigned devices = 4, ram_writers = 1;
static const char *directory;
static char *content;
static double begin;
static pthread_barrier_t stopped;

static int open_file(const char *name, int flags)
{
    char path[4096];

    snprintf(path, sizeof(path), "%s/%s", directory, name);
    int fd = open(path, flags, 0600);
    if (fd < 0)
        die_errno(path);
    return fd;
}

static void command(int control, const char *text)
{
    if (pwrite(control, text, strlen(text), 0) < 0)
        die_errno(text);
}

static void *write_ram(void *arg)
{
    struct worker *w = arg;
    uint64_t pieces = residual / PIECE, step = ram_size / PIECE / (pieces ? pieces : 1);

    pthread_barrier_wait(&stopped);
    for (uint64_t i = w->index; i < pieces; i += ram_writers) {
        if (pwrite(w->fd, content, PIECE, (off_t)(i * step * PIECE)) != PIECE)
            die_errno("ram");
    }
    w->done = now();
    return NULL;
}

static void sleep_until(double when)
{
    double left = when - now();
    struct timespec ts = {(time_t)left, (long)((left - (double)(time_t)left) * 1e9)};

    if (left > 0)
        nanosleep(&ts, NULL);
}

static void *write_device(void *arg)
{
    struct worker *w = arg;
    char name[64];

    pthread_barrier_wait(&stopped);
    snprintf(name, sizeof(name), "device-state/vf%u", w->index);
    int fd = open_file(name, O_WRONLY | O_CREAT);
    for (uint64_t at = 0; at < state_size;) {
        uint64_t n = state_size - at < CHUNK ? state_size - at : CHUNK;
        if (rate)
            sleep_until(begin + (double)(at + n) / (double)rate);
        if (pwrite(fd, content, n, (off_t)at) != (ssize_t)n)
            die_errno(name);
        at += n;
    }
    if (close(fd) < 0)
        die_errno(name);
    w->done = now();
    return NULL;
}

int main(int argc, char **argv)
{
    uint64_t state = 1181783497276652981ull;
    double ram_done = 0, devices_done = 0;
    struct stat st;
    int opt;

    while ((opt = getopt(argc, argv, "r:d:s:m:w:")) != -1) {
        switch (opt) {
        case 'r':
            residual = parse_size(optarg);
            break;
        case 'd':
            devices = (unsigned)atoi(optarg);
            break;
        case 's':
            state_size = parse_size(optarg);
            break;
        case 'm':
            rate = parse_size(optarg);
            break;
        case 'w':
            ram_writers = (unsigned)atoi(optarg);
            break;
        default:
            return 2;
        }
    }
    if (argc - optind != 1 || !ram_writers)
        die("usage: switchover [OPTION...] DIRECTORY");
    directory = argv[optind];
    content = malloc(CHUNK);
    fill(content, CHUNK, &state);
    int control = open_file("control", O_WRONLY), ram = open_file("ram", O_WRONLY);
    if (fstat(ram, &st) < 0)
        die_errno("ram");
    ram_size = (uint64_t)st.st_size;
    if (residual > ram_size)
        die("there is less RAM than residual RAM");

    struct worker *w = calloc(ram_writers + devices, sizeof(*w));
    pthread_barrier_init(&stopped, NULL, ram_writers + devices + 1);
    for (unsigned i = 0; i < ram_writers + devices; i++) {
        bool is_ram = i < ram_writers;
        w[i].index = is_ram ? i : i - ram_writers;
        w[i].fd = ram;
        if (pthread_create(&w[i].thread, NULL, is_ram ? write_ram : write_device, &w[i]))
            die("cannot make a thread");
    }
    begin = now();
    command(control, "stop\n");
    pthread_barrier_wait(&stopped);
    for (unsigned i = 0; i < ram_writers + devices; i++) {
        double *last = i < ram_writers ? &ram_done : &devices_done;
        pthread_join(w[i].thread, NULL);
        *last = w[i].done > *last ? w[i].done : *last;
    }
    close(ram);
    command(control, "complete\n");
    double end = now();
    printf("{\"downtime\": %.3f, \"ram\": %.3f, \"devices\": %.3f}\n", (end - begin) * 1e3, (ram_done - begin) * 1e3,
           devices ? (devices_done - begin) * 1e3 : 0);
    return 0;
}
