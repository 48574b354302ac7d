/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a source has announced to its destination: the files by the numbers that it
 * gives them, and the changes of their names that are still to be made.
 *
 * A removal or a renaming comes after the data that was sent before it, which is on
 * its way on other channels: it is ripe when that has been applied (a barrier tells),
 * and is made then. Changes are made in the order in which they were announced, so a
 * file that is made while others are to be made before it is hidden until its turn
 * comes. Its data need not wait for that.
 *
 * So a file has two names: the one that the source gives it now, which is kept here
 * and is what the next announcement is checked against, and the one that users see.
 *
 * The thread of the migration has all of it; receivers look up files by number.
 */
#ifndef MIGFS_CATALOG_H
#define MIGFS_CATALOG_H

#include "file.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum change_type { CHANGE_CREATE, CHANGE_REMOVE, CHANGE_RENAME };

struct change {
    struct change *next;
    enum change_type type;
    uint64_t id;               /* of the message that asked for it */
    struct file *file;         /* the catalog has it */
    uint32_t number, replaced; /* RENAME: @replaced is removed in the same step; 0: nothing is */
    bool ripe;
    char name[]; /* RENAME: the new one */
};

/** change_free_all - a list of them; NULL: there are none */
void change_free_all(struct change *first);

struct catalog {
    uint32_t size;               /* numbers are below it; constant */
    struct file *_Atomic *files; /* by number, each with a reference; [0] is RAM */
    char **names;                /* what the source calls them; NULL: it has no such file (any more) */
    uint32_t count;              /* of names */
    struct change *first, **last;
    unsigned asked; /* of the changes, those that are acknowledged: removals and renamings */
};

/** catalog_init - an empty one; @max_devices: and the RAM. 0 or -ENOMEM */
int catalog_init(struct catalog *catalog, uint32_t max_devices);
/** catalog_fini - drop the references */
void catalog_fini(struct catalog *catalog);

/** catalog_file - the file of a number, or NULL. Any thread: without a reference, so see catalog_take(). */
static inline struct file *catalog_file(const struct catalog *catalog, uint32_t number)
{
    return number < catalog->size ? atomic_load(&catalog->files[number]) : NULL;
}

/**
 * catalog_has - whether the source has a file of a number now: that it is removed may still have to be seen
 */
bool catalog_has(const struct catalog *catalog, uint32_t number);

/** catalog_find - the number of the file that the source calls by a name; 0: there is none */
uint32_t catalog_find(const struct catalog *catalog, const char *name);

/**
 * catalog_add - a file that was announced
 * @number: free, and small enough
 * @file: the catalog takes a reference of its own
 * @shown: users see it already
 * @hidden: set to whether it is to be shown later, by a change
 *
 * Return: 0 or -ENOMEM.
 */
int catalog_add(struct catalog *catalog, uint32_t number, struct file *file, const char *name, bool shown,
                bool *hidden);

/**
 * catalog_remove, catalog_rename - announce a change, which is not ripe yet
 * @id: of the message
 * @name: the new one; fit to be one
 * @replaced: the file that has it; 0: none has
 *
 * Return: NULL, with @err, when it makes no sense.
 */
struct change *catalog_remove(struct catalog *catalog, uint64_t id, uint32_t number, struct error *err);
struct change *catalog_rename(struct catalog *catalog, uint64_t id, uint32_t number, const char *name,
                              uint32_t replaced, struct error *err);

/** catalog_is_coming - whether a change that is still to be made gives a file this name */
bool catalog_is_coming(const struct catalog *catalog, const char *name);

/**
 * catalog_take - the next change that can be made, which is the caller's to make and free, and in no list;
 * NULL: there is none
 */
struct change *catalog_take(struct catalog *catalog);

/**
 * catalog_forget - nobody finds a removed file by its number any more
 * Return: the file, with the catalog's reference. A receiver may have found it before.
 */
struct file *catalog_forget(struct catalog *catalog, uint32_t number);

/*
 * For all files that can be found by their numbers. The thread of the migration.
 */

/** catalog_work - the sum of their image.work */
uint64_t catalog_work(const struct catalog *catalog);

/** catalog_check_storage - whether all that was stored is still there: others can reach it.
 * file_receive_check() */
int catalog_check_storage(const struct catalog *catalog, struct error *err);
/** catalog_finish - everything has arrived: image_finish() */
int catalog_finish(const struct catalog *catalog, struct error *err);
/** catalog_keep - the migration has completed: image_keep() */
void catalog_keep(const struct catalog *catalog);
/** catalog_drop - it has failed: file_receive_drop() */
void catalog_drop(const struct catalog *catalog);
/** catalog_settle - it is over: file_settle() */
void catalog_settle(const struct catalog *catalog);

#endif
