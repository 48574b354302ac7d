/* SPDX-License-Identifier: Apache-2.0 */
/* A destination's file in a directory; see backing.h. */
#include "backing.h"
#include "cleanup.h"
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define MARK  S_ISVTX
#define TRIES 100 /* the name changes hands each time */

bool backing_has_name(int fd, const char *path)
{
    struct stat own, named;

    return fstat(fd, &own) == 0 && lstat(path, &named) == 0 && own.st_dev == named.st_dev &&
           own.st_ino == named.st_ino;
}

/*
 * Whether a file can be one that a migfs of this user fills. One of root's gives it
 * to whom the image belongs.
 */
static bool is_marked(const struct stat *st)
{
    return S_ISREG(st->st_mode) && st->st_mode & MARK && st->st_nlink == 1 &&
           (geteuid() == 0 || st->st_uid == geteuid());
}

static int is_taken(const char *path, struct error *err)
{
    return error_set(err, CAUSE_EXISTS,
                     "the backing file '%.160s' exists already: remove it if nobody needs it", path);
}

static int is_in_use(const char *path, struct error *err)
{
    return error_set(err, CAUSE_STATE, "the backing file '%.160s' is in use: another migfs fills it", path);
}

/* Removes the file of that name if it is a leftover. 0 also when it has gone by itself. */
static int remove_leftover(const char *path, struct error *err)
{
    struct stat st;

    /* To open what is no regular file could have effects. */
    if (lstat(path, &st) < 0)
        return errno == ENOENT
                   ? 0
                   : error_set_errno(err, errno, "cannot look at the backing file '%.160s'", path);
    /* It was removed between the kernel's finding it and looking at it. */
    if (st.st_nlink == 0)
        return 0;
    if (!is_marked(&st))
        return is_taken(path, err);
    CLEANUP_FD int fd = open(path, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? 0 : is_taken(path, err);
    if (flock(fd, LOCK_EX | LOCK_NB) < 0)
        return errno == EWOULDBLOCK ? is_in_use(path, err) : is_taken(path, err);
    if (!backing_has_name(fd, path))
        return 0;
    /* It can have been completed before it was locked. */
    if (fstat(fd, &st) < 0 || !is_marked(&st))
        return is_taken(path, err);
    if (unlink(path) < 0)
        return error_set_errno(err, errno, "cannot remove the leftover '%.160s'", path);
    log_info("removed '%s', which a migfs that died has left unfinished", path);
    return 0;
}

/* Makes and locks one, if there is none: 1. 0: there was one, or somebody has been faster. */
static int make(const char *path, int *out, struct error *err)
{
    CLEANUP_FD int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600 | MARK);

    if (fd < 0 && errno == EEXIST)
        return 0;
    if (fd < 0)
        return error_set_errno(err, errno, "cannot make the backing file '%.160s'", path);
    if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        /* Another one has taken it for a leftover, and removes it. */
        if (errno == EWOULDBLOCK)
            return 0;
        log_info("'%s' cannot be locked: if this daemon dies it has to be removed by hand", path);
        if (fchmod(fd, 0600) < 0)
            return error_set_errno(err, errno, "cannot set the mode of the backing file '%.160s'", path);
    }
    if (!backing_has_name(fd, path))
        return 0;
    *out = steal_fd(&fd);
    return 1;
}

int backing_make(const char *path, struct error *err)
{
    int fd = -1;

    for (unsigned i = 0; i < TRIES; i++) {
        int ret = make(path, &fd, err);
        if (ret != 0)
            return ret < 0 ? ret : fd;
        if (remove_leftover(path, err) < 0)
            return -EIO;
    }
    return is_in_use(path, err);
}

int backing_finish(int fd, const char *path, struct error *err)
{
    struct stat st;

    if (fstat(fd, &st) < 0 || (st.st_mode & MARK && fchmod(fd, st.st_mode & 07777 & ~(mode_t)MARK) < 0))
        return error_set_errno(err, errno, "cannot set the mode of the backing file '%.160s'", path);
    flock(fd, LOCK_UN);
    return 0;
}
