/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source's role of a migration: its thread, what the destination says, and how it ends.
 *
 * Theory of operation
 *   `start` makes a connection and the role's thread, mig-out, which reads the main channel until the
 *   migration is over. Each message goes to the part that it concerns:
 *
 *     source      what the parts share: the migration, the connection, the RAM by reference, the doom
 *     ram         which file the RAM comes from, when it comes by reference
 *     streams     devices: announced, opened, ended, removed, renamed
 *     start       from the settings to a connection whose files are announced
 *     writes      what is written: whether it is taken; plan, sender and channel do the rest
 *     barriers    flush, sync, rounds
 *     question    what the destination has: digests, `verify`
 *     handover    `complete`, commit, and the question afterwards
 *
 *   A part knows only those above it, and none knows this file.
 *
 *   The destination says from time to time what has arrived. mig-out looks whether
 *   what is owed still moves (stall.h), so that nothing waits for ever.
 *
 *   When a data channel breaks, the main channel usually says why a moment
 *   later; the failure waits for that (source_doom()).
 */
#ifndef MIGFS_OUTGOING_H
#define MIGFS_OUTGOING_H

#include "migration.h"
#include "reference.h"
#include "sender.h"

struct outgoing *outgoing_new(struct migration *m);
/** outgoing_free - free what outgoing_new() made; NULL is fine */
void outgoing_free(struct outgoing *out);

/**
 * outgoing_start - connect, and become active; blocks
 *
 * After a `cancel`, waits for the `start` before it to leave.
 */
int outgoing_start(struct migration *m, const struct interrupt *interrupt, struct error *err);

/**
 * outgoing_write_begin - accept a write
 * @buf: left alone by the caller until sender_finish()
 * @len: at most PLAN_WRITE_MAX
 * @write: filled in on success; sender_finish() must follow
 *
 * On success the data is the daemon's and its place in the order is fixed: the
 * writer can be answered. Blocks while the migration has too much accepted and
 * not sent. Later failures are the migration's.
 */
int outgoing_write_begin(struct migration *m, struct file *file, const void *buf, size_t len, uint64_t offset,
                         const struct interrupt *interrupt, struct sender_write *write, struct error *err);

/**
 * outgoing_splices - whether outgoing_splice_begin() takes a write of data
 *
 * Nobody has to look at the data, and it goes to one channel.
 */
bool outgoing_splices(const struct migration *m, const struct file *file, size_t len, uint64_t offset);

/**
 * outgoing_splice_begin - outgoing_write_begin() for data that is in a pipe
 * @pipe: has the data and nothing else; left alone by the caller until sender_finish()
 *
 * On failure, and when the migration fails before all has been sent, the pipe still
 * has some of it.
 */
int outgoing_splice_begin(struct migration *m, struct file *file, int pipe, size_t len, uint64_t offset,
                          const struct interrupt *interrupt, struct sender_write *write, struct error *err);

/**
 * outgoing_set_reference - the RAM will come by reference, or (@ref NULL) through `ram` alone
 * @ref: the migration's, whatever this returns
 *
 * Where no size was declared, the file's is. An active migration takes a
 * reference too, when it has none; that can wait until the destination takes
 * the size.
 */
int outgoing_set_reference(struct migration *m, struct reference *ref, const struct interrupt *interrupt,
                           struct error *err);

/**
 * outgoing_check_sharing - warn when a process has the file of the RAM by reference mapped privately
 * @writer: the process that named it, which is looked at first; 0: not known
 *
 * The warning is what `status` shows; `start` looks once more.
 */
void outgoing_check_sharing(struct migration *m, pid_t writer);

/** outgoing_reference_text - what the reference is called; empty when there is none */
void outgoing_reference_text(struct migration *m, char *out, size_t size);

/** outgoing_dirty_size - bytes of a whole dirty bitmap of the RAM; 0 when it does not come by reference */
uint64_t outgoing_dirty_size(struct migration *m);

/** outgoing_mark_dirty - reference_mark(), when the migration is active */
int outgoing_mark_dirty(struct migration *m, const void *bitmap, size_t len, uint64_t offset,
                        struct error *err);

/** outgoing_discard - punch a hole, ordered with the writes */
int outgoing_discard(struct migration *m, struct file *file, uint64_t offset, uint64_t len,
                     const struct interrupt *interrupt, struct error *err);

/** outgoing_truncate - set the size; before `start` it declares it */
int outgoing_truncate(struct migration *m, struct file *file, uint64_t size,
                      const struct interrupt *interrupt, struct error *err);

/** outgoing_flush - wait until what was accepted (for @file, or at all when it is NULL) has left */
int outgoing_flush(struct migration *m, struct file *file, const struct interrupt *interrupt,
                   struct error *err);

/** outgoing_sync - wait until the destination has applied it */
int outgoing_sync(struct migration *m, struct file *file, const struct interrupt *interrupt,
                  struct error *err);

/** outgoing_precopy - migration_precopy() */
int outgoing_precopy(struct migration *m, const struct interrupt *interrupt, struct error *err);

/** outgoing_digest - ask the destination for the digest of what it has of a file */
int outgoing_digest(struct migration *m, struct file *file, const struct interrupt *interrupt,
                    uint8_t digest[DIGEST_SIZE], struct error *err);

/** outgoing_complete - the final barrier, the check and the hand-over */
int outgoing_complete(struct migration *m, const struct interrupt *interrupt, struct error *err);

/**
 * outgoing_create_device - the device of a name, made if it is not there
 * @exclusive: CAUSE_EXISTS when it is
 * @out: has a reference for the caller
 */
int outgoing_create_device(struct migration *m, const char *name, bool exclusive,
                           const struct interrupt *interrupt, struct file **out, struct error *err);

/**
 * outgoing_begin_anew - a device was emptied by one who has opened it to write it again: until then its
 * stream does not end
 */
void outgoing_begin_anew(struct file *file);

/** outgoing_remove_device - remove the device of a name; the destination follows */
int outgoing_remove_device(struct migration *m, const char *name, const struct interrupt *interrupt,
                           struct error *err);

/**
 * outgoing_rename_device - give a device another name, in the place of the one that has it
 * @exclusive: CAUSE_EXISTS when there is one
 */
int outgoing_rename_device(struct migration *m, const char *from, const char *to, bool exclusive,
                           const struct interrupt *interrupt, struct error *err);

/**
 * outgoing_open_writer, outgoing_close_writer - an open handle that can write came or went
 *
 * A stream ends when its last writer has closed it and something was ever written to it: a reader
 * is to wait for the first byte.
 */
void outgoing_open_writer(struct migration *m, struct file *file);
void outgoing_close_writer(struct migration *m, struct file *file);

/**
 * outgoing_setting_writable - whether settings can be changed now; the caller holds migration.lock
 *
 * Waits, with the lock given up, for a `start` that was cancelled and still uses them.
 */
int outgoing_setting_writable(struct migration *m, const struct interrupt *interrupt, struct error *err);

/** outgoing_wire_bytes - sent on channel @index, headers and all; @index -1: the main channel */
uint64_t outgoing_wire_bytes(struct migration *m, int index);
/** outgoing_verified - bytes of RAM that `complete` has found the same at both ends so far */
uint64_t outgoing_verified(const struct migration *m);
/**
 * outgoing_path - which way RAM takes into the sockets: reference, splice, zero-copy or copy; NULL before the
 * start
 */
const char *outgoing_path(struct migration *m);
/**
 * outgoing_zerocopy - what channel @index has sent without a copy, and out of pipes (which is in no other
 * counter)
 */
struct zerocopy_counters outgoing_zerocopy(struct migration *m, unsigned index, uint64_t *spliced);
/** outgoing_queued - bytes that are accepted and not sent */
uint64_t outgoing_queued(struct migration *m);
/** outgoing_channels - how many data channels exist now */
unsigned outgoing_channels(struct migration *m);

/** outgoing_operations - the source's role; m->out is there */
extern const struct role_operations outgoing_operations;

#endif
