/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files of callers; see source.h.
 *
 * A descriptor is taken with pidfd_getfd(2), which asks the kernel whether the
 * daemon may look into the caller (ptrace(2)'s rules); the caller had to open it
 * first. Root's daemon may look into everybody, so it asks by itself whether the
 * caller's user may. A path is opened by a thread of its own with the caller's user, groups and
 * directory: the kernel keeps those of each thread apart, and takes away root's
 * powers over files with the user. No other thread ever has other rights than it began with: the kernel takes
 * the descriptors of RDMA devices from no thread that had, even if it has its own back. Links of /proc are
 * not followed, since /proc/self would be the daemon.
 *
 * Whoever opened `ram-source` may have made it the output of a program that has
 * more rights, and chosen what it prints: such a program lends its rights to
 * nobody (the kernel's own files of that kind look at the opener, too).
 */
#include "ram_source.h"
#include "cleanup.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/openat2.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/stat.h>
#include <sys/syscall.h>

/* FUSE names the thread that writes; a pidfd is of a process. */
static pid_t process_of(pid_t thread)
{
    char path[64], line[128];
    int pid = 0;

    snprintf(path, sizeof(path), "/proc/%d/status", (int)thread);
    FILE *status = fopen(path, "re");
    if (!status)
        return 0;
    while (fgets(line, sizeof(line), status) && sscanf(line, "Tgid: %d", &pid) != 1)
        ;
    fclose(status);
    return pid;
}

/*
 * Whether a process belongs to its user alone. /proc/PID/fd is root's when it
 * does not: a process that got or gave up rights since its last execve(2).
 */
static bool is_its_users(const struct ram_source_caller *caller)
{
    char path[64];
    struct stat st;

    snprintf(path, sizeof(path), "/proc/%d/fd", (int)caller->pid);
    return stat(path, &st) == 0 && st.st_uid == caller->uid;
}

static int take_descriptor(const struct ram_source_caller *caller, const char *number, struct error *err)
{
    char *end;

    errno = 0;
    unsigned long n = strtoul(number, &end, 10);
    if (!isdigit((unsigned char)*number) || *end || errno || n > INT_MAX)
        return error_set(err, CAUSE_SYNTAX, "'fd:%.32s' is not a descriptor: fd:N, with a number", number);
    if (geteuid() == 0 && !is_its_users(caller))
        return error_set(err, CAUSE_DENIED,
                         "user %d may not look into process %d (see ptrace(2)): name the file by its path",
                         (int)caller->uid, (int)caller->pid);
    CLEANUP_FD int pidfd = (int)syscall(SYS_pidfd_open, process_of(caller->pid), 0);
    if (pidfd < 0)
        return error_set_errno(err, errno, "cannot find process %d, whose descriptor that would be",
                               (int)caller->pid);
    int fd = (int)syscall(SYS_pidfd_getfd, pidfd, (int)n, 0);
    if (fd < 0 && errno == EBADF)
        return error_set(err, CAUSE_SYNTAX, "process %d has no descriptor %lu", (int)caller->pid, n);
    if (fd < 0 && errno == EPERM)
        return error_set(err, CAUSE_DENIED,
                         "the daemon may not take descriptor %lu of process %d (see ptrace(2))", n,
                         (int)caller->pid);
    if (fd < 0)
        return error_set_errno(err, errno, "cannot take descriptor %lu of process %d", n, (int)caller->pid);
    return fd;
}

/* Whether a path means the same to the caller and to the daemon. */
static bool shares_paths(const struct ram_source_caller *caller)
{
    char path[64], theirs[64], ours[64];
    struct stat their_root, our_root;

    snprintf(path, sizeof(path), "/proc/%d/ns/mnt", (int)caller->pid);
    ssize_t a = readlink(path, theirs, sizeof(theirs)), b = readlink("/proc/self/ns/mnt", ours, sizeof(ours));
    if (a <= 0 || a != b || memcmp(theirs, ours, (size_t)a))
        return false;
    snprintf(path, sizeof(path), "/proc/%d/root", (int)caller->pid);
    return stat(path, &their_root) == 0 && stat("/", &our_root) == 0 &&
           their_root.st_dev == our_root.st_dev && their_root.st_ino == our_root.st_ino;
}

static int open_path(int directory, const char *path)
{
    struct open_how how = {
        .flags = O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK,
        .resolve = RESOLVE_NO_MAGICLINKS,
    };
    int fd = (int)syscall(SYS_openat2, directory, path, &how, sizeof(how));

    return fd < 0 ? -errno : fd;
}

/* What a thread opens that has a caller's rights. */
struct errand {
    const struct ram_source_caller *caller;
    int directory;
    const char *path;
    int fd; /* or a negative errno */
};

/* The C library would change all threads; the kernel does not. */
static void *mig_open(void *arg)
{
    struct errand *errand = arg;
    const struct ram_source_caller *caller = errand->caller;

    pthread_setname_np(pthread_self(), "mig-open");
    if (syscall(SYS_setgroups, caller->group_count, caller->groups) < 0) {
        errand->fd = -errno;
        return NULL;
    }
    setfsgid(caller->gid);
    setfsuid(caller->uid);
    /* These two say nothing of success: asking again does. */
    bool changed = (uid_t)setfsuid((uid_t)-1) == caller->uid && (gid_t)setfsgid((gid_t)-1) == caller->gid;
    errand->fd = changed ? open_path(errand->directory, errand->path) : -EPERM;
    return NULL;
}

/* The same with the caller's rights, by a daemon of root's. */
static int open_path_as(const struct ram_source_caller *caller, int directory, const char *path)
{
    struct errand errand = {caller, directory, path, -EPERM};
    pthread_t thread;
    int code = pthread_create(&thread, NULL, mig_open, &errand);

    if (code)
        return -code;
    pthread_join(thread, NULL);
    return errand.fd;
}

static int open_for(const struct ram_source_caller *caller, const char *path, struct error *err)
{
    char cwd[64];
    CLEANUP_FD int directory = -1;

    if (!shares_paths(caller))
        return error_set(err, CAUSE_DENIED,
                         "process %d sees other files than the daemon: open it there, and write fd:N",
                         (int)caller->pid);
    if (geteuid() != 0 && caller->uid != geteuid())
        return error_set(err, CAUSE_DENIED,
                         "the daemon cannot open files with the rights of user %d: write fd:N",
                         (int)caller->uid);
    snprintf(cwd, sizeof(cwd), "/proc/%d/cwd", (int)caller->pid);
    directory = open(cwd, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0)
        return error_set_errno(err, errno, "cannot see the directory of process %d", (int)caller->pid);
    int fd = geteuid() == 0 ? open_path_as(caller, directory, path) : open_path(directory, path);
    if (fd == -ELOOP)
        return error_set(err, CAUSE_DENIED,
                         "'%.160s' goes through a link of /proc, or too many links: write fd:N", path);
    if (fd == -EACCES)
        return error_set(err, CAUSE_DENIED, "you may not read '%.160s'", path);
    if (fd == -ENOENT)
        return error_set(err, CAUSE_NOT_FOUND, "there is no '%.160s'", path);
    if (fd < 0)
        return error_set_errno(err, fd, "cannot open '%.160s'", path);
    return fd;
}

int ram_source_open(const struct ram_source_caller *caller, const char *text, struct error *err)
{
    if (caller->pid <= 0)
        return error_set(err, CAUSE_UNSUPPORTED,
                         "your process is in a PID namespace that the daemon cannot see");
    if (caller->opener_uid != 0 && (caller->opener_uid != caller->uid || caller->opener_gid != caller->gid))
        return error_set(err, CAUSE_DENIED,
                         "user %d writes what user %d has opened: that one could lack the rights",
                         (int)caller->uid, (int)caller->opener_uid);
    if (!strncmp(text, "fd:", 3))
        return take_descriptor(caller, text + 3, err);
    return open_for(caller, text, err);
}
