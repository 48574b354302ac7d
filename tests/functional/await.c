/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Waits until a migration is in one of some states, and prints the state.
 *
 *   await STATUS-FILE SECONDS STATE...
 *
 * Fails, and prints the state too, when the time is over, or when the state is
 * another one that nothing follows. poll(2) tells of a change of state; a
 * status file that is not there yet is looked for again and again.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LOOK_MS 1000 /* at the latest: what poll(2) misses is another test's failure */
#define FIND_MS 10

static long long now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000ll + ts.tv_nsec / 1000000;
}

/* The value of "status", which is the first line. */
static void read_state(int fd, char *state, size_t size)
{
    char buf[256];
    ssize_t n = pread(fd, buf, sizeof(buf) - 1, 0);

    snprintf(state, size, "unreadable: %s", strerror(errno));
    if (n <= 0)
        return;
    buf[n] = '\0';
    buf[strcspn(buf, "\n")] = '\0';
    if (!strncmp(buf, "status ", 7))
        snprintf(state, size, "%.60s", buf + 7);
}

static int is_final(const char *state)
{
    return !strcmp(state, "completed") || !strcmp(state, "failed") || !strcmp(state, "cancelled");
}

int main(int argc, char **argv)
{
    char state[64] = "not there";
    int fd = -1;

    if (argc < 4)
        return 2;
    long long end = now_ms() + atoll(argv[2]) * 1000;
    for (;;) {
        if (fd < 0)
            fd = open(argv[1], O_RDONLY);
        if (fd >= 0) {
            read_state(fd, state, sizeof(state));
            for (int i = 3; i < argc; i++) {
                if (!strcmp(argv[i], state))
                    return puts(state) < 0;
            }
        }
        long long left = end - now_ms();
        if (left <= 0 || is_final(state) || !strncmp(state, "unreadable", 10)) {
            puts(state);
            return 1;
        }
        struct pollfd pfd = {.fd = fd, .events = POLLIN};
        int wait_ms = fd < 0 ? FIND_MS : LOOK_MS;
        poll(&pfd, 1, wait_ms < left ? wait_ms : (int)left);
    }
}
