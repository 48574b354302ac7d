/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The parts of the RAM that the source may write by itself (core/source/placing.h is the other end).
 *
 * The source asks for a chunk, and this end pins it and gives the connections' group a key. While any
 * chunk is exposed, what makes a hole in the RAM clears it in place instead: a page that the card still
 * writes to must not be taken out of the file. Before the image is the user's, or goes away, all is
 * withdrawn.
 *
 * All of it is the migration's thread's.
 */
#ifndef MIGFS_EXPOSURE_H
#define MIGFS_EXPOSURE_H

#include "file.h"
#include "transport.h"
#include "wire.h"

#include <stdint.h>

#define EXPOSURES_MAX       65536u /* chunks of a migration */
#define EXPOSURE_REPLY_SIZE 24     /* bytes of the body of WIRE_EXPOSED */

struct exposure;

struct exposures {
    struct transport *transport; /* one of the group's; NULL: none of the channels places */
    struct file *ram;            /* with a reference, once something was exposed */
    uint64_t limit;              /* bytes that the RAM may have */
    struct exposure *list;
    unsigned count;
};

/** exposures_init - nothing is exposed */
void exposures_init(struct exposures *e, struct transport *transport, uint64_t limit);

/**
 * exposures_add - WIRE_EXPOSE
 * @ram: NULL: it has not been announced
 * @reply: the body of WIRE_EXPOSED; EXPOSURE_REPLY_SIZE bytes
 *
 * That it cannot be exposed is an answer. Return: 0; negative with @err: the source must not ask that.
 */
int exposures_add(struct exposures *e, struct file *ram, struct wire_reader *body, struct wire_writer *reply,
                  struct error *err);

/** exposures_remove - WIRE_WITHDRAW */
int exposures_remove(struct exposures *e, struct wire_reader *body, struct error *err);

/** exposures_fini - withdraw all: nobody writes there any more. The transport is still open */
void exposures_fini(struct exposures *e);

#endif
