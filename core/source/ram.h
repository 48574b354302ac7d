/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The file that the RAM of the source comes from, when it comes by reference: which one it is, whether
 * it will do, and what its user should look at.
 */
#ifndef MIGFS_RAM_H
#define MIGFS_RAM_H

#include "source.h"

/** ram_check_file - whether the RAM's file has all of the RAM */
int ram_check_file(const struct source *source, const struct reference *ref, struct error *err);

/** ram_start - reference_start() for a connection of the source's */
int ram_start(const struct source *source, struct reference *ref, struct connection *conn, struct error *err);

/**
 * ram_set_reference - outgoing_set_reference(), when the size is known
 * @ref: the migration's, whatever this returns
 */
int ram_set_reference(struct source *source, struct reference *ref, const struct interrupt *interrupt,
                      struct error *err);

/** ram_check_sharing - outgoing_check_sharing() */
void ram_check_sharing(struct source *source, pid_t writer);

/** ram_text - what the reference is called; empty when there is none */
void ram_text(struct source *source, char *out, size_t size);

/** ram_read - migration_read_ram() */
ssize_t ram_read(struct source *source, uint64_t offset, void *buf, size_t len);

/** ram_read_dirty - migration_read_dirty() */
size_t ram_read_dirty(struct source *source, uint64_t offset, void *buf, size_t len);

/** ram_dirty_size - bytes of a whole dirty bitmap of the RAM; 0 when it does not come by reference */
uint64_t ram_dirty_size(struct source *source);

#endif
