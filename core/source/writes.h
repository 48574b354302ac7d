/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What writers ask of the source: whether it may be done now, what it comes to, and what to tell the writer
 * when it cannot be. The order of what is accepted is the sender's.
 */
#ifndef MIGFS_WRITES_H
#define MIGFS_WRITES_H

#include "sender.h"
#include "source.h"

/**
 * writes_begin - accept a write
 * @buf: left alone by the caller until sender_finish()
 * @len: at most PLAN_WRITE_MAX
 * @write: filled in on success; sender_finish() must follow
 *
 * On success the data is the daemon's and its place in the order is fixed: the
 * writer can be answered. Blocks while the migration has too much accepted and
 * not sent. Later failures are the migration's.
 */
int writes_begin(struct source *source, struct file *file, const void *buf, size_t len, uint64_t offset,
                 const struct interrupt *interrupt, struct sender_write *write, struct error *err);

/** writes_can_splice - whether writes_begin_splice() takes a write of data: plan_can_splice() */
bool writes_can_splice(const struct source *source, const struct file *file, size_t len, uint64_t offset);

/**
 * writes_begin_splice - writes_begin() for data that is in a pipe
 * @pipe: has the data and nothing else; left alone by the caller until sender_finish()
 *
 * On failure, and when the migration fails before all has been sent, the pipe still
 * has some of it.
 */
int writes_begin_splice(struct source *source, struct file *file, int pipe, size_t len, uint64_t offset,
                        const struct interrupt *interrupt, struct sender_write *write, struct error *err);

/** writes_discard - punch a hole, ordered with the writes */
int writes_discard(struct source *source, struct file *file, uint64_t offset, uint64_t len,
                   const struct interrupt *interrupt, struct error *err);

/**
 * writes_truncate - set the size; before `start` it declares it
 * Return: 0, 1: the destination is told, ordered with the writes; or a negative errno.
 */
int writes_truncate(struct source *source, struct file *file, uint64_t size,
                    const struct interrupt *interrupt, struct error *err);

#endif
