/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What close(2) says, after something has happened to the file system meanwhile.
 *
 *   closing FILE rdonly|wronly [TEXT]
 *
 * Opens the file, writes TEXT to it, says "open", and reads a line from its
 * standard input. Then it closes the file once for a copy of the descriptor in a
 * child, once for a copy of its own, and for good. Says "ok", or which close has
 * failed, and of what.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static int failed(const char *what)
{
    printf("%s: %s\n", what, strerrorname_np(errno));
    return 1;
}

int main(int argc, char **argv)
{
    char line[16];

    if (argc < 3 || argc > 4)
        return 2;
    int fd = open(argv[1], strcmp(argv[2], "rdonly") ? O_WRONLY : O_RDONLY);
    if (fd < 0)
        return failed("open");
    if (argc > 3 && write(fd, argv[3], strlen(argv[3])) != (ssize_t)strlen(argv[3]))
        return failed("write");
    puts("open");
    fflush(stdout);
    if (!fgets(line, sizeof(line), stdin))
        return failed("stdin");
    pid_t child = fork();
    if (child == 0)
        _exit(close(fd) < 0 ? errno : 0);
    int status;
    if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status))
        return failed("fork");
    errno = WEXITSTATUS(status);
    if (errno)
        return failed("close in a child");
    int copy = dup(fd);
    if (copy < 0 || close(copy) < 0)
        return failed("close of a copy");
    if (close(fd) < 0)
        return failed("close");
    puts("ok");
    return 0;
}
