/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What users see of a migration that arrives, its files, and what they do with them.
 *
 * The source decides which files there are (announced.h); what was made here for it to fill stays where it
 * was. The files are shown in the migration's list, and change there in one step, with migration.lock held.
 */
#ifndef MIGFS_SHOWN_H
#define MIGFS_SHOWN_H

#include "catalog.h"
#include "migration.h"

/** shown_expected - the RAM, or what is shown as a device of this name, with a reference; NULL: nothing is */
struct file *shown_expected(struct migration *m, uint32_t number, const char *name);

/** shown_add - show a file; the list takes a reference of its own; no lock held */
void shown_add(struct migration *m, struct file *file);

/**
 * shown_change - a change of names, in one step; no lock held
 * @gone, @unfilled: these are shown no more; NULL: there is none
 */
void shown_change(struct migration *m, const struct change *change, struct file *gone, struct file *unfilled);

/** shown_end_streams - the migration is over; @broken: readers at the frontier of one that has not ended fail
 */
void shown_end_streams(struct migration *m, bool broken);

/**
 * shown_release - the user has removed it: remove its backing file, and let others have its share of the
 * budget
 *
 * Threads, and users who have a file open, may hold the memory a little longer; what a user keeps
 * open after rmdir is the user's own.
 */
void shown_release(struct migration *m);

/** shown_is_empty - whether nothing but declared sizes and holes has arrived */
bool shown_is_empty(struct migration *m);

/** shown_ram_path - where the RAM image can be mapped by a VMM; empty: nowhere */
void shown_ram_path(struct migration *m, char *out, size_t size);

/** shown_digest - migration_digest(): of what is here */
int shown_digest(struct migration *m, struct file *file, const struct interrupt *interrupt,
                 uint8_t out[DIGEST_SIZE], struct error *err);

/** shown_write - migration_write(): a completed image is the user's */
int shown_write(struct migration *m, const struct file_write *write, struct error *err);

#endif
