/* SPDX-License-Identifier: Apache-2.0 */
/* Going into the background; see daemon.h. */
#include "daemon.h"
#include "cleanup.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static int maker = -1; /* a pipe to the process that was called */

/* Ends as the other process says. */
_Noreturn static void wait_for(pid_t child, int from)
{
    char ready;
    int status;
    ssize_t n;

    do
        n = read(from, &ready, 1);
    while (n < 0 && errno == EINTR);
    if (n == 1)
        _exit(0);
    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    _exit(WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_FAILURE);
}

int daemon_begin(void)
{
    pid_t caller = getpid();
    int ends[2];

    if (pipe2(ends, O_CLOEXEC) < 0)
        return -1;
    pid_t child = fork();
    if (child != 0)
        close(ends[1]);
    if (child > 0)
        wait_for(child, ends[0]);
    close(ends[0]);
    if (child < 0)
        return -1;
    maker = ends[1];
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    /* Or has it ended already? */
    return getppid() == caller ? 0 : -1;
}

int daemon_ready(void)
{
    CLEANUP_FD int null = -1;

    if (maker < 0)
        return 0;
    null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (null < 0 || setsid() < 0 || chdir("/") < 0)
        return -1;
    prctl(PR_SET_PDEATHSIG, 0);
    for (int fd = 0; fd <= 2; fd++) {
        if (dup2(null, fd) < 0)
            return -1;
    }
    if (write(maker, "", 1) != 1)
        return -1;
    close(maker);
    maker = -1;
    return 0;
}
