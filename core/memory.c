/* SPDX-License-Identifier: Apache-2.0 */
/* A destination's memory; see memory.h. */
#include "memory.h"
#include "backing.h"
#include "cleanup.h"
#include "descriptor.h"
#include "guard.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/magic.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>

static void map_window(struct memory *mem, uint64_t size, bool transparent)
{
    void *map =
        size ? mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, mem->fd, 0) : MAP_FAILED;

    if (map == MAP_FAILED)
        return;
    mem->window = map;
    mem->window_size = size;
    if (transparent)
        madvise(map, size, MADV_HUGEPAGE);
}

/* A memfd; -1 with @err. */
static int make_memfd(const char *name, uint64_t huge_page, struct error *err)
{
    /* The name is for people who look at /proc/PID/fd; 249 bytes is all the kernel takes. */
    char label[64];
    unsigned flags = MFD_CLOEXEC;

    snprintf(label, sizeof(label), "migfs:%s", name);
    if (huge_page)
        flags |= MFD_HUGETLB | (unsigned)__builtin_ctzll(huge_page) << MAP_HUGE_SHIFT;
    int fd = memfd_create(label, flags);
    if (fd < 0 && huge_page)
        error_set_errno(err, errno, "cannot make a memfd of huge pages of %llu bytes",
                        (unsigned long long)huge_page);
    else if (fd < 0)
        error_set_errno(err, errno, "cannot make a memfd");
    return fd;
}

/*
 * A tmpfs of our own, attached nowhere, that uses huge pages: what memfds may do
 * is a setting of the whole machine, and usually "never". Only root can make one.
 */
static int private_tmpfs = -1; /* its mount; made once */
static pthread_once_t private_tmpfs_once = PTHREAD_ONCE_INIT;

static void make_private_tmpfs(void)
{
    CLEANUP_FD int context = fsopen("tmpfs", FSOPEN_CLOEXEC);

    if (context >= 0 && fsconfig(context, FSCONFIG_SET_STRING, "huge", "within_size", 0) == 0 &&
        fsconfig(context, FSCONFIG_SET_STRING, "size", "0", 0) == 0 &&
        fsconfig(context, FSCONFIG_SET_STRING, "nr_inodes", "0", 0) == 0 &&
        fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) == 0)
        private_tmpfs =
            fsmount(context, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);
}

/* A file in it; -1 when there is none. */
static int make_private_file(void)
{
    pthread_once(&private_tmpfs_once, make_private_tmpfs);
    return private_tmpfs < 0 ? -1 : openat(private_tmpfs, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
}

int memory_init(struct memory *mem, const struct memory_place *place, const char *name, uint64_t window,
                struct error *err)
{
    const char *directory = place ? place->directory : NULL;
    CLEANUP_FREE char *path = NULL;
    CLEANUP_FD int fd = -1;
    struct statfs fs;

    if (directory) {
        if (asprintf(&path, "%s/%s", directory, name) < 0) {
            path = NULL;
            return error_set(err, CAUSE_NO_MEMORY, "out of memory");
        }
        fd = backing_make(path, err);
        if (fd < 0)
            return -EIO;
    } else {
        fd = place && place->transparent ? make_private_file() : -1;
        if (fd < 0)
            fd = make_memfd(name, place ? place->huge_page : 0, err);
        if (fd < 0)
            return -EIO;
    }
    *mem = (struct memory){0};
    if (fstatfs(fd, &fs) == 0) {
        mem->block = fs.f_type == HUGETLBFS_MAGIC ? (uint64_t)fs.f_bsize : 0;
        mem->tmpfs = fs.f_type == TMPFS_MAGIC;
    }
    pthread_rwlock_init(&mem->map_lock, NULL);
    pthread_mutex_init(&mem->mode_lock, NULL);
    mem->fd = steal_fd(&fd);
    mem->path = steal_ptr(&path);
    if (!mem->block)
        map_window(mem, window, place && place->transparent);
    return 0;
}

void memory_fini(struct memory *mem, bool keep)
{
    if (mem->map)
        munmap(mem->map, mem->mapped);
    memory_unmap(mem);
    if (!keep)
        memory_unlink(mem);
    free(mem->path);
    close(mem->fd);
    pthread_rwlock_destroy(&mem->map_lock);
    pthread_mutex_destroy(&mem->mode_lock);
}

int memory_own(struct memory *mem, uid_t uid, gid_t gid, mode_t mode, struct error *err)
{
    struct stat st;

    if (!mem->path)
        return 0;
    SCOPED_LOCK(&mem->mode_lock);
    if (fstat(mem->fd, &st) < 0)
        return error_set_errno(err, errno, "cannot look at the backing file '%.160s'", mem->path);
    if ((st.st_uid != uid || st.st_gid != gid) && fchown(mem->fd, uid, gid) < 0)
        return error_set_errno(err, errno, "cannot give the backing file '%.100s' to user %lld, group %lld",
                               mem->path, (long long)uid, (long long)gid);
    mode |= st.st_mode & (S_ISUID | S_ISGID | S_ISVTX);
    if ((st.st_mode & 07777) == mode || fchmod(mem->fd, mode) == 0)
        return 0;
    return error_set_errno(err, errno, "cannot set the mode of the backing file '%.160s'", mem->path);
}

int memory_finish(struct memory *mem, struct error *err)
{
    SCOPED_LOCK(&mem->mode_lock);
    return mem->path && !mem->unlinked ? backing_finish(mem->fd, mem->path, err) : 0;
}

void memory_unmap(struct memory *mem)
{
    if (mem->window)
        munmap(mem->window, mem->window_size);
    mem->window = NULL;
}

void memory_unlink(struct memory *mem)
{
    SCOPED_LOCK(&mem->mode_lock);
    if (mem->path && !mem->unlinked && backing_has_name(mem->fd, mem->path))
        unlink(mem->path);
    mem->unlinked = true;
}

void memory_stored(struct memory *mem, uint64_t end)
{
    uint64_t length = atomic_load_explicit(&mem->length, memory_order_relaxed);

    while (length < end && !atomic_compare_exchange_weak_explicit(&mem->length, &length, end,
                                                                  memory_order_relaxed, memory_order_relaxed))
        ;
}

int memory_check(struct memory *mem, struct error *err)
{
    uint64_t length = atomic_load_explicit(&mem->length, memory_order_relaxed);
    const char *path = mem->path ? mem->path : "";
    struct stat st;

    if (fstat(mem->fd, &st) < 0)
        return error_set_errno(err, errno, "cannot look at the memory");
    if ((uint64_t)st.st_size < length)
        return error_set(err, CAUSE_IO,
                         "%s%.120s%s was truncated by somebody: it has %llu bytes, and had %llu",
                         mem->path ? "the backing file '" : "the memory", path, mem->path ? "'" : "",
                         (unsigned long long)st.st_size, (unsigned long long)length);
    SCOPED_LOCK(&mem->mode_lock);
    if (mem->path && !mem->unlinked && !backing_has_name(mem->fd, mem->path))
        return error_set(err, CAUSE_IO, "the backing file '%.160s' was removed or replaced by somebody",
                         path);
    return 0;
}

/* hugetlbfs: makes sure that [0, end) is mapped. */
static int grow_map(struct memory *mem, uint64_t end, struct error *err)
{
    uint64_t size = (end + mem->block - 1) / mem->block * mem->block;
    int ret = 0;

    pthread_rwlock_wrlock(&mem->map_lock);
    if (size > mem->mapped) {
        struct stat st;
        if (memory_check(mem, err) < 0) {
            ret = -EIO;
        } else if (fstat(mem->fd, &st) < 0 ||
                   ((uint64_t)st.st_size < size && ftruncate(mem->fd, (off_t)size) < 0)) {
            ret = error_set_errno(err, errno, "cannot grow the backing file");
        } else {
            void *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, mem->fd, 0);
            if (map == MAP_FAILED) {
                ret = error_set(err, CAUSE_NO_SPACE, "there are not enough free huge pages for %llu bytes",
                                (unsigned long long)size);
            } else {
                if (mem->map)
                    munmap(mem->map, mem->mapped);
                mem->map = map;
                mem->mapped = size;
                memory_stored(mem, size);
            }
        }
    }
    pthread_rwlock_unlock(&mem->map_lock);
    return ret;
}

static int write_mapped(struct memory *mem, uint64_t offset, const void *buf, size_t len, struct error *err)
{
    for (;;) {
        int ret = 0;
        pthread_rwlock_rdlock(&mem->map_lock);
        bool fits = offset + len <= mem->mapped;
        /* A hole that was punched has lost its reservation. */
        if (fits)
            ret = guard_copy(mem->map + offset, buf, len);
        pthread_rwlock_unlock(&mem->map_lock);
        if (ret < 0)
            return memory_check(mem, err) < 0
                       ? -EIO
                       : error_set(err, CAUSE_NO_SPACE, "there are not enough free huge pages");
        if (fits)
            return 0;
        if (grow_map(mem, offset + len, err) < 0)
            return -EIO;
    }
}

int memory_write(struct memory *mem, uint64_t offset, const void *buf, size_t len, struct error *err)
{
    const char *p = buf;

    if (mem->block)
        return write_mapped(mem, offset, buf, len, err);
    while (len > 0) {
        ssize_t n = pwrite(mem->fd, p, len, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return error_set_errno(err, n < 0 ? errno : ENOSPC, "cannot store what arrived");
        p += n;
        offset += (uint64_t)n;
        len -= (size_t)n;
        memory_stored(mem, offset);
    }
    return 0;
}

/*
 * Whether the file has all of [.., end), where the caller will store. Of us, only memory_resize() makes it
 * shorter.
 */
static bool reaches(struct memory *mem, uint64_t end)
{
    struct stat st;

    if (end <= atomic_load_explicit(&mem->length, memory_order_relaxed))
        return true;
    if (fstat(mem->fd, &st) < 0 || end > (uint64_t)st.st_size)
        return false;
    memory_stored(mem, end);
    return true;
}

/* Whether the window has [offset, offset + len). */
static bool is_in_window(const struct memory *mem, uint64_t offset, uint64_t len)
{
    return mem->window && len <= mem->window_size && offset <= mem->window_size - len;
}

void *memory_window(struct memory *mem, uint64_t offset, size_t len)
{
    return is_in_window(mem, offset, len) && reaches(mem, offset + len) ? mem->window + offset : NULL;
}

bool memory_populate(struct memory *mem, uint64_t offset, size_t len)
{
    void *window = memory_window(mem, offset, len);

    if (mem->block)
        return fallocate(mem->fd, FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)len) == 0;
    return window && madvise(window, len, MADV_POPULATE_WRITE) == 0;
}

void *memory_make(struct memory *mem, uint64_t offset, uint64_t len)
{
    if (!is_in_window(mem, offset, len) || fallocate(mem->fd, 0, (off_t)offset, (off_t)len) < 0)
        return NULL;
    memory_stored(mem, offset + len);
    return mem->window + offset;
}

struct range {
    const char *start, *end;
};

static void read_around(void *arg)
{
    const struct range *range = arg;

    for (uintptr_t p = (uintptr_t)range->start; p < (uintptr_t)range->end;
         p = (p / MEMORY_MAP_UNIT + 1) * MEMORY_MAP_UNIT)
        (void)*(const volatile char *)p;
}

void memory_map(struct memory *mem, uint64_t offset, size_t len)
{
    char *window = memory_window(mem, offset, len);

    if (!window)
        return;
    /*
     * Faults for reading bring the pages around along, those for writing do not.
     * MADV_POPULATE_READ would take as many, but also mark each page as accessed,
     * whose move to another LRU list costs more than the faults.
     */
    struct range range = {window, window + len};
    uint64_t within = offset % (uint64_t)getpagesize();
    if (mem->tmpfs)
        guard_call(read_around, &range);
    else
        madvise(window - within, within + len, MADV_POPULATE_WRITE);
}

ssize_t memory_read(struct memory *mem, uint64_t offset, void *buf, size_t len)
{
    return descriptor_read(mem->fd, offset, buf, len);
}

int64_t memory_seek(const struct memory *mem, uint64_t offset, bool data)
{
    /* It moves the position of the descriptor, which nobody uses. */
    off_t found = lseek(mem->fd, (off_t)offset, data ? SEEK_DATA : SEEK_HOLE);

    if (found >= 0 || errno != ENXIO)
        return found >= 0 ? found : -errno;
    return data ? -ENXIO : (int64_t)offset;
}

int memory_discard(struct memory *mem, uint64_t offset, uint64_t len, struct error *err)
{
    if (fallocate(mem->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)len) < 0)
        return error_set_errno(err, errno, "cannot punch a hole");
    return 0;
}

int memory_clear(struct memory *mem, uint64_t offset, uint64_t len, struct error *err)
{
    static const char zeros[64u << 10];
    uint64_t end = offset + len, part;

    while (offset < end) {
        int64_t data = memory_seek(mem, offset, true);
        if (data == -ENXIO || data >= (int64_t)end)
            return 0;
        if (data > (int64_t)offset)
            offset = (uint64_t)data;
        int64_t hole = memory_seek(mem, offset, false);
        uint64_t to = hole > (int64_t)offset && hole < (int64_t)end ? (uint64_t)hole : end;
        for (; offset < to; offset += part) {
            part = to - offset < sizeof(zeros) ? to - offset : sizeof(zeros);
            if (memory_write(mem, offset, zeros, part, err) < 0)
                return -EIO;
        }
    }
    return 0;
}

int memory_resize(struct memory *mem, uint64_t size, struct error *err)
{
    if (mem->block) {
        uint64_t rounded = (size + mem->block - 1) / mem->block * mem->block;
        if (rounded > mem->mapped)
            return grow_map(mem, rounded, err);
        size = rounded;
    }
    if (ftruncate(mem->fd, (off_t)size) < 0)
        return error_set_errno(err, errno, "cannot set the size to %llu bytes", (unsigned long long)size);
    atomic_store_explicit(&mem->length, size, memory_order_relaxed);
    return 0;
}
