/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The place where it is mounted; see mountpoint.h.
 *
 * What asks a daemon that has died fails with ENOTCONN, realpath(3) included, and
 * what asks one that is stopped does not return. So a place is opened with
 * O_PATH, which asks nobody, the kernel's table of mounts says what is there,
 * and a process of its own, for a limited time, asks the daemon whether it lives.
 *
 * A dead mount stays dead, and root unmounts it by its descriptor: whatever
 * somebody mounts there meanwhile is not touched. An ordinary user has
 * fusermount3, which takes a path, and unmounts only what is the user's.
 */
#include "mountpoint.h"
#include "cleanup.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PATIENCE_MS 5000
#define DEAD_MAX    64 /* mounts on top of one another */

struct mount {
    char point[PATH_MAX]; /* where it is */
    char type[64];
    uid_t uid; /* FUSE: the user whose processes may ask it, without allow_other */
    gid_t gid;
};

/* The escapes of /proc/self/mountinfo: \040 is a blank. */
static void unescape(char *text)
{
    char *out = text;

    for (const char *p = text; *p; out++) {
        unsigned value;
        if (*p == '\\' && sscanf(p + 1, "%3o", &value) == 1) {
            *out = (char)value;
            p += 4;
        } else {
            *out = *p++;
        }
    }
    *out = '\0';
}

static int mount_id(int fd)
{
    char path[64], line[256];
    int id = -1;

    snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
    FILE *info = fopen(path, "re");
    while (info && fgets(line, sizeof(line), info) && sscanf(line, "mnt_id: %d", &id) != 1)
        ;
    if (info)
        fclose(info);
    return id;
}

int mountpoint_id(const char *path)
{
    CLEANUP_FD int fd = open(path, O_PATH | O_CLOEXEC);

    return fd < 0 ? -1 : mount_id(fd);
}

/* A line of /proc/self/mountinfo; see proc(5). Whether it is that of mount @id. */
static bool parse_mount(const char *line, int id, struct mount *mount)
{
    const char *dash = strstr(line, " - ");
    int its_id, length = 0;

    if (!dash || sscanf(line, "%d %*d %*s %*s %n", &its_id, &length) != 1 || its_id != id || !length)
        return false;
    size_t size = strcspn(line + length, " ");
    if (size >= sizeof(mount->point) || sscanf(dash + 3, "%63s", mount->type) != 1)
        return false;
    memcpy(mount->point, line + length, size);
    mount->point[size] = '\0';
    unescape(mount->point);
    const char *uid = strstr(dash, "user_id="), *gid = strstr(dash, "group_id=");
    mount->uid = uid ? (uid_t)strtoul(strchr(uid, '=') + 1, NULL, 10) : 0;
    mount->gid = gid ? (gid_t)strtoul(strchr(gid, '=') + 1, NULL, 10) : 0;
    return true;
}

/* The mount that a descriptor is in; whether it has been found. */
static bool find_mount(int fd, struct mount *mount)
{
    FILE *table = fopen("/proc/self/mountinfo", "re");
    CLEANUP_FREE char *line = NULL;
    size_t size = 0;
    bool found = false;
    int id = mount_id(fd);

    while (table && id >= 0 && !found && getline(&line, &size, table) > 0)
        found = parse_mount(line, id, mount);
    if (table)
        fclose(table);
    return found;
}

static bool is_fuse(const struct mount *mount)
{
    return !strncmp(mount->type, "fuse", 4) && strcmp(mount->type, "fusectl");
}

enum life { ALIVE, DEAD, SILENT };

/*
 * In a process of its own: whether the root of a mount can be asked. As its user, since it answers nobody
 * else.
 */
static void ask(int fd, const struct mount *mount, int answer)
{
    struct stat st;

    bool user = geteuid() != 0 || (setresgid(mount->gid, mount->gid, mount->gid) == 0 &&
                                   setresuid(mount->uid, mount->uid, mount->uid) == 0);
    char life = fstat(fd, &st) < 0 && errno == ENOTCONN ? DEAD : ALIVE;
    if (life == ALIVE && !user)
        _exit(1); /* it may have refused us */
    _exit(write(answer, &life, 1) != 1);
}

static enum life examine(int fd, const struct mount *mount)
{
    int pair[2];
    char life = SILENT;

    if (pipe2(pair, O_CLOEXEC) < 0)
        return SILENT;
    CLEANUP_FD int in = pair[0], out = pair[1];
    pid_t child = fork();
    if (child < 0)
        return SILENT;
    if (child == 0)
        ask(fd, mount, out);
    close(steal_fd(&out));
    struct pollfd answer = {.fd = in, .events = POLLIN};
    int ready = poll(&answer, 1, PATIENCE_MS);
    if (ready != 1 || read(in, &life, 1) != 1)
        life = SILENT;
    if (ready != 1)
        kill(child, SIGKILL);
    /* Nobody waits for one that cannot be killed: it has asked, and nobody answers. */
    waitpid(child, NULL, ready == 1 ? 0 : WNOHANG);
    return (enum life)life;
}

/* fusermount3 -uz, which says nothing. */
static int unmount_as_user(const char *path)
{
    extern char **environ;
    char program[] = "fusermount3", options[] = "-uz", dashes[] = "--";
    char *argv[] = {program, options, dashes, (char *)path, NULL};
    posix_spawn_file_actions_t actions;
    int status = 0;
    pid_t child;

    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
    int code = posix_spawnp(&child, program, &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (code || waitpid(child, &status, 0) < 0 || !WIFEXITED(status) || WEXITSTATUS(status))
        return -EPERM;
    return 0;
}

static int end_dead(int fd, const char *path)
{
    char self[64];

    snprintf(self, sizeof(self), "/proc/self/fd/%d", fd);
    if (umount2(self, MNT_DETACH) == 0)
        return 0;
    return unmount_as_user(path);
}

void mountpoint_detach(const char *path)
{
    if (umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW) < 0)
        unmount_as_user(path);
}

static int is_dead(const struct mount *mount, struct error *err)
{
    return error_set(err, CAUSE_STATE,
                     "the mount at '%.120s' (%s) is dead, its daemon has ended: unmount it with fusermount3 "
                     "-u, or as root with umount -l",
                     mount->point, mount->type);
}

int mountpoint_blame(const char *path, struct error *err)
{
    char prefix[PATH_MAX];
    struct mount mount;

    snprintf(prefix, sizeof(prefix), "%s", path);
    for (;;) {
        CLEANUP_FD int fd = open(*prefix ? prefix : ".", O_PATH | O_CLOEXEC);
        if (fd >= 0 && find_mount(fd, &mount))
            return is_dead(&mount, err);
        char *slash = strrchr(prefix, '/');
        if (fd >= 0 || !*prefix || slash == prefix)
            return error_set_errno(err, ENOTCONN, "'%.128s'", path);
        *(slash ? slash : prefix) = '\0';
    }
}

/* Nothing of ours is there, or nothing any more. 1: look again. */
static int look(const char *path, bool stack, char **out, struct error *err)
{
    CLEANUP_FD int fd = open(path, O_PATH | O_CLOEXEC);
    char self[64], absolute[PATH_MAX];
    struct mount mount;
    struct stat st;

    if (fd < 0)
        return errno == ENOTCONN ? mountpoint_blame(path, err)
                                 : error_set_errno(err, errno, "the mount point '%.128s'", path);
    snprintf(self, sizeof(self), "/proc/self/fd/%d", fd);
    ssize_t length = readlink(self, absolute, sizeof(absolute) - 1);
    if (length >= 0)
        absolute[length] = '\0';
    else if (!realpath(path, absolute)) /* without /proc */
        return error_set_errno(err, errno, "the mount point '%.128s'", path);
    bool is_root = find_mount(fd, &mount) && !strcmp(mount.point, absolute) && is_fuse(&mount);
    if (is_root) {
        enum life life = examine(fd, &mount);
        bool ours = !strcmp(mount.type, "fuse.migfs");
        if (life == DEAD)
            return ours && end_dead(fd, absolute) == 0 ? 1 : is_dead(&mount, err);
        if (ours && !stack)
            return error_set(err, CAUSE_STATE,
                             "migfs is mounted at '%.128s' already%s: unmount it first, or give -o stack",
                             absolute, life == SILENT ? ", and does not answer" : "");
    } else if (fstat(fd, &st) < 0) {
        return error_set_errno(err, errno, "the mount point '%.128s'", path);
    } else if (!S_ISDIR(st.st_mode)) {
        return error_set(err, CAUSE_SYNTAX, "the mount point '%.128s' is not a directory", absolute);
    }
    *out = strdup(absolute);
    return *out ? 0 : error_set(err, CAUSE_NO_MEMORY, "out of memory");
}

int mountpoint_claim(const char *path, bool stack, char **out, struct error *err)
{
    for (int i = 0; i < DEAD_MAX; i++) {
        int ret = look(path, stack, out, err);
        if (ret <= 0)
            return ret;
    }
    return error_set(err, CAUSE_STATE, "'%.128s' has more than %d dead mounts", path, DEAD_MAX);
}
