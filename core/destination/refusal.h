/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Operations of a migration's role (struct role_operations) that are for the source to do: at the destination
 * they are there, too, and say so. A user can have begun before a peer came.
 */
#ifndef MIGFS_REFUSAL_H
#define MIGFS_REFUSAL_H

#include "migration.h"

/* With CAUSE_READ_ONLY: */
int refusal_of_command(struct migration *m, const struct interrupt *interrupt, struct error *err);
int refusal_of_barrier(struct migration *m, struct file *file, const struct interrupt *interrupt,
                       struct error *err);
int refusal_of_discard(struct migration *m, struct file *file, uint64_t offset, uint64_t len,
                       const struct interrupt *interrupt, struct error *err);
int refusal_of_truncate(struct migration *m, struct file *file, uint64_t size,
                        const struct interrupt *interrupt, struct error *err);
int refusal_of_create(struct migration *m, const char *name, bool exclusive,
                      const struct interrupt *interrupt, struct file **out, struct error *err);
int refusal_of_remove(struct migration *m, const char *name, const struct interrupt *interrupt,
                      struct error *err);
int refusal_of_rename(struct migration *m, const char *from, const char *to, bool exclusive,
                      const struct interrupt *interrupt, struct error *err);
int refusal_of_dirty(struct migration *m, const void *bitmap, size_t len, uint64_t offset, struct error *err);

/* With CAUSE_STATE: the settings are the source's. A descriptor is closed. */
int refusal_of_settings(struct migration *m, const struct interrupt *interrupt, struct error *err);
int refusal_of_reference(struct migration *m, int fd, const char *text, pid_t writer,
                         const struct interrupt *interrupt, struct error *err);

/* With `false`: */
bool refusal_of_splice(const struct migration *m, const struct file *file, size_t len, uint64_t offset);

/* Without an answer: nothing is written, and there is no reference. */
void refusal_of_writer(struct migration *m, struct file *file);
void refusal_of_reference_text(struct migration *m, char *out, size_t size);
uint64_t refusal_of_dirty_size(struct migration *m);
size_t refusal_of_reading_dirty(struct migration *m, uint64_t offset, void *buf, size_t len);

/* With -EOPNOTSUPP: */
ssize_t refusal_of_reading(struct migration *m, uint64_t offset, void *buf, size_t len);

#endif
