/* SPDX-License-Identifier: Apache-2.0 */
/* An open file. */
#ifndef MIGFS_HANDLE_H
#define MIGFS_HANDLE_H

#include "node.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct fuse_pollhandle;
struct user;

struct handle {
    struct handle *next, **prev; /* among all open files */
    struct node *node;           /* the kernel keeps it while the file is open */
    struct user *user;           /* who opened it */
    uid_t uid;
    gid_t gid;
    bool writer;          /* counted among the file's writers */
    bool counted;         /* counted among the file's handles */
    bool cached;          /* through the page cache: a completed image */
    pthread_mutex_t lock; /* guards the text; held while a new one is made, so outside of migration.lock */
    char *text;           /* a snapshot, made by a read at offset 0 */
    size_t text_size;
    /* For poll(2): what has been read so far. */
    _Atomic uint64_t generation;
    _Atomic uint64_t position;
    /* Guarded by the lock of polling.c: */
    struct handle *next_waiting;
    struct fuse_pollhandle *ph; /* not NULL: waiting */
};

/** handle_new - an open file; @uid, @gid: who opens it. NULL when memory runs out */
struct handle *handle_new(struct node *node, uid_t uid, gid_t gid);
/** handle_free - nobody polls it any more: poll_forget() comes before */
void handle_free(struct handle *handle);

/**
 * handle_free_all - at the end, when the kernel is gone and cannot close them any more; after
 * poll_forget_all()
 */
void handle_free_all(void);

/**
 * handle_read_text - read from the text of a node that has one
 * @out: a copy, the caller's to free
 * Return: its size, or negative with @err. A read at offset 0 takes a new snapshot;
 * that of `digest` may take a while. CAUSE_AGAIN: that of `wait` is not there.
 */
int handle_read_text(struct handle *handle, struct host *host, uint64_t offset, size_t size,
                     const struct interrupt *interrupt, char **out, struct error *err);

#endif
