/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What becomes of the source's announcements: files that begin, end, go on, are removed and get other names.
 *
 * Theory of operation
 *   A file that is announced is one that users have made for the source to fill, or a new one. It is charged,
 *   gets a number in the catalog, and the source is told that it is taken, or why not. A refusal is the
 *   file's: the migration goes on.
 *
 *   The end of a stream, a removal and a renaming come with a count of each channel, and the arrival releases
 *   them. A change of names is made then, for users in one step. A file that nobody finds any more may still
 *   be in the hands of a receiver that has found it before: it is kept until none has it, and its memory goes
 *   then.
 *
 * What users see is the owner's. There are neither threads nor connections in here; one thread has all of it.
 */
#ifndef MIGFS_ANNOUNCED_H
#define MIGFS_ANNOUNCED_H

#include "account.h"
#include "arrival.h"
#include "catalog.h"
#include "error.h"
#include "file.h"
#include "host.h"
#include "receiver.h"
#include "wire.h"

#include <stdbool.h>
#include <stdint.h>

/* All of them are there; called in the thread that has the announced files. */
struct announced_operations {
    /*
     * What users have made for the source to fill, the RAM or the device of a name, with a reference; or a
     * file that has arrived and that users still see under this name. NULL: neither.
     */
    struct file *(*expected)(void *owner, uint32_t number, const char *name);
    /* A file has its memory, and users do not see it yet; negative: it cannot be taken all the same. */
    int (*settle)(void *owner, struct file *file, struct error *err);
    /* A file is taken, of which the source declares @size bytes. @show: users see it from here on. */
    void (*taken)(void *owner, struct file *file, uint64_t size, bool show);
    /*
     * Make a change of names, in one step for users: @gone goes, the file of the change is shown or renamed,
     * and @unfilled, which users have made and the source does not fill, makes way. NULL: none does.
     */
    void (*change)(void *owner, const struct change *change, struct file *gone, struct file *unfilled);
    /* Whether a receiver may have a file in use that the catalog has forgotten. */
    bool (*uses)(void *owner, const struct file *file);
    /* Send to the source. */
    void (*send)(void *owner, enum wire_message_type type, uint64_t id, const void *body, uint32_t length);
};

/* Constant, but for the last one. All that it points to outlives it. */
struct announced {
    const struct announced_operations *operations;
    void *owner;
    struct host *host;
    struct account *account; /* what the files are charged to */
    const struct reception *reception;
    struct catalog *catalog;
    struct arrival *arrival;
    unsigned device_channels;
    char name[WIRE_NAME_SIZE]; /* of the migration: for the log, and for a backing file */
    struct file *unburied;     /* removed, and a receiver has them; each with a reference */
};

/*
 * What the source says; each returns 0, or negative with @err: the migration cannot go on.
 */
int announced_on_create(struct announced *a, struct wire_reader *body, struct error *err);
/* WIRE_FILE_END or WIRE_FILE_RESUME */
int announced_on_stream(struct announced *a, const struct message *message, struct wire_reader *body,
                        struct error *err);
/* WIRE_FILE_REMOVE or WIRE_FILE_RENAME */
int announced_on_change(struct announced *a, const struct message *message, struct wire_reader *body,
                        struct error *err);

/** announced_change - the turn of a change has come: make it */
void announced_change(struct announced *a, const struct change *change);

/**
 * announced_changed - no more of them can be made for now: tell the source, and announced_bury()
 * @made: those that were, a list
 *
 * The source takes the answer for a file, too, that it has announced after a change and that is shown with
 * it.
 */
void announced_changed(struct announced *a, const struct change *made);

/** announced_bury - give up the removed files that no receiver has any more; their readers keep them */
void announced_bury(struct announced *a);

#endif
