/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a destination keeps a file that arrives: a memfd, or a regular file in
 * a directory that a VMM can map too (tmpfs, hugetlbfs).
 *
 * What is not there yet is written with pwrite(2): a first touch is then no page
 * fault, and a full file system is an error, not a SIGBUS. What is there can be
 * overwritten through a mapping of the whole file (memory_window()), which
 * takes no lock in the kernel: pwrite(2) takes the inode's, and channels would
 * wait for one another. Receiving into the window reports a page that somebody
 * has truncated away as EFAULT; reading and writing it from here goes through
 * guard_call().
 *
 * Others can reach the file, too: by the name of a backing file, or in /proc/PID/fd.
 * memory_check() finds that it has become shorter than it was made here, or
 * that its name has gone to another file. A hole that somebody has punched
 * looks like one that was made here, and is not found.
 *
 * hugetlbfs knows no write(2); there a mapping is used for everything, whose
 * pages the kernel reserves when it is made.
 */
#ifndef MIGFS_MEMORY_H
#define MIGFS_MEMORY_H

#include "error.h"

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct memory {
    int fd;
    char *path;                /* of the backing file; NULL for a memfd */
    pthread_mutex_t mode_lock; /* a leaf; held while the mode of the backing file is read and changed */
    bool unlinked;             /* the backing file has been removed already; guarded by mode_lock */
    uint64_t block;            /* hugetlbfs: the size of a huge page; otherwise 0 */
    bool tmpfs;                /* or a memfd: a page that is mapped for reading can be written, too */
    char *window;              /* not hugetlbfs: the mapping; NULL where address space is short */
    uint64_t window_size;
    /*
     * What it has been made so long here; what a mapping stores past the end is lost. Relaxed: it is exact
     * when nobody stores.
     */
    _Atomic uint64_t length;
    /* hugetlbfs only: */
    pthread_rwlock_t map_lock; /* held for writing while the mapping grows */
    char *map;                 /* guarded by map_lock */
    uint64_t mapped;           /* its length; guarded by map_lock */
};

/* What kind of memory. */
struct memory_place {
    const char *directory; /* where the backing file goes; NULL: a memfd */
    /* of a memfd: the size of its huge pages, from the kernel's pool of them; 0: ordinary pages */
    uint64_t huge_page;
    bool transparent; /* ask the kernel to use huge pages where it can */
};

/**
 * memory_init - make an empty memory
 * @place: NULL: a memfd of ordinary pages
 * @name: of the file in a directory; no file of that name may exist, but for a leftover: backing_make()
 * @window: how much of it gets a window, which takes address space; not on hugetlbfs
 */
int memory_init(struct memory *mem, const struct memory_place *place, const char *name, uint64_t window,
                struct error *err);

/** memory_fini - free it; @keep leaves the backing file where it is */
void memory_fini(struct memory *mem, bool keep);

/**
 * memory_own - give the backing file an owner and permissions; a memfd has none
 * @mode: permissions; the set-user-ID, set-group-ID and sticky bits stay as they are
 */
int memory_own(struct memory *mem, uid_t uid, gid_t gid, mode_t mode, struct error *err);

/** memory_finish - all is there: a backing file is the user's from now on, whatever becomes of the daemon */
int memory_finish(struct memory *mem, struct error *err);

/** memory_unmap - give the window up; nobody uses it any more */
void memory_unmap(struct memory *mem);

/**
 * memory_unlink - remove the backing file now, if it still has its name; who has it open or mapped keeps it
 */
void memory_unlink(struct memory *mem);

/** memory_write - store bytes, growing as needed; any number of threads at once */
int memory_write(struct memory *mem, uint64_t offset, const void *buf, size_t len, struct error *err);

/** memory_stored - somebody else has stored bytes before @end in the descriptor */
void memory_stored(struct memory *mem, uint64_t end);

/**
 * memory_check - whether all that was stored can still be there
 *
 * Fails with CAUSE_IO when somebody has truncated the file, or the name of a backing file is no longer its.
 */
int memory_check(struct memory *mem, struct error *err);

/**
 * memory_window - where [offset, offset + len) is mapped, for recv(2)
 *
 * Only where all pages have been written or populated before, and are there. NULL:
 * use memory_write(), which also makes the file longer.
 */
void *memory_window(struct memory *mem, uint64_t offset, size_t len);

/**
 * memory_populate - have whole pages there, with their page table entries in the window
 * Return: whether they are, for now.
 */
bool memory_populate(struct memory *mem, uint64_t offset, size_t len);

/**
 * memory_make - have memory for [@offset, @offset + @len), growing as needed
 * Return: where it is mapped; NULL: there is no window there, or no memory.
 */
void *memory_make(struct memory *mem, uint64_t offset, uint64_t len);

/* What the kernel maps at a fault for reading, if nobody has told it otherwise (fault_around_bytes). */
#define MEMORY_MAP_UNIT (64u << 10)

/**
 * memory_map - have page table entries in the window for pages that are there; a hint
 *
 * Those of the MEMORY_MAP_UNITs that are touched come along. Half the price of
 * memory_populate(), which takes one fault for each page.
 */
void memory_map(struct memory *mem, uint64_t offset, size_t len);

/** memory_read - what is there; the count, 0 past the end, or a negative errno */
ssize_t memory_read(struct memory *mem, uint64_t offset, void *buf, size_t len);

/**
 * memory_seek - lseek(2)'s SEEK_DATA and SEEK_HOLE; what lies past its end is a hole
 * @data: the next byte that is stored, or the next hole
 * Return: the offset, -ENXIO when nothing more is stored, or another negative errno.
 */
int64_t memory_seek(const struct memory *mem, uint64_t offset, bool data);

/** memory_discard - make a range read as zeros and give its pages back */
int memory_discard(struct memory *mem, uint64_t offset, uint64_t len, struct error *err);

/** memory_clear - make a range read as zeros, and keep its pages; where there are none, none are made */
int memory_clear(struct memory *mem, uint64_t offset, uint64_t len, struct error *err);

/**
 * memory_resize - set the length (rounded up to whole huge pages on hugetlbfs);
 * nobody writes meanwhile, or the new length is no smaller
 */
int memory_resize(struct memory *mem, uint64_t size, struct error *err);

#endif
