/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owners, modes and times: of a migration's directory, of its files, and of its
 * devices.
 *
 * Everything but the devices has a place in a table of the migration; the
 * attributes of a device are in its file. What nobody has changed has a default:
 * an owner that is OWNER_INHERITED is that of the directory, and a mode that is
 * MODE_DEFAULT is decided by whoever shows it, who knows the kinds of files.
 *
 * What appears later in a directory takes its owner from there at that moment
 * (attributes_settle()), and keeps it from then on.
 */
#ifndef MIGFS_ATTRIBUTES_H
#define MIGFS_ATTRIBUTES_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#define OWNER_INHERITED ((uid_t)-1)
#define MODE_DEFAULT    ((mode_t)-1)

/* the usual mode of RAM, and of the file that it is kept in; the most that a new device has */
#define ATTRIBUTES_RAM_MODE 0600

struct attributes {
    uid_t uid; /* OWNER_INHERITED: that of the directory, and so is gid */
    gid_t gid;
    mode_t mode; /* permissions; MODE_DEFAULT: that of the kind of file */
    struct timespec atime, mtime;
};

/* Places of a table. Others are numbered by whoever shows them. */
enum attribute_place {
    ATTRIBUTES_DIRECTORY,
    ATTRIBUTES_DEVICE_STATE, /* the directory of devices */
    ATTRIBUTES_RAM,
    ATTRIBUTES_RECEIVED,
    ATTRIBUTES_OTHERS,
    ATTRIBUTES_MAX = 96
};

/* Whose what appears by itself is. */
struct owner {
    uid_t uid;
    gid_t gid;
    bool masks; /* the owner's permissions are everybody's, but for those in the mask */
    mode_t mask;
};

struct attribute_table {
    /* guards `at`, and the attributes of the migration's devices; its place is in host.h */
    pthread_mutex_t lock;
    bool masks; /* constant, like the mask: struct owner's */
    mode_t mask;
    struct attributes at[ATTRIBUTES_MAX];
};

/**
 * attribute_table_init - everything belongs to @owner, and what appears later to the owner of its directory
 */
void attribute_table_init(struct attribute_table *table, const struct owner *owner);
void attribute_table_fini(struct attribute_table *table);

/** attribute_table_give - a user has made all of it; for a table that nobody else knows yet */
void attribute_table_give(struct attribute_table *table, uid_t uid, gid_t gid);

/**
 * attribute_table_mkdir - the mode that mkdir(2) asks for; devices are made by those who may write the
 * directory
 */
void attribute_table_mkdir(struct attribute_table *table, mode_t mode);

/** attribute_table_copy - all places and the mask; @to is known to nobody else yet */
void attribute_table_copy(struct attribute_table *to, struct attribute_table *from);

/** attributes_init - of what has not appeared yet */
void attributes_init(struct attributes *attributes);

/**
 * attributes_settle - a file appears: its owner is that of its directory if it has none; the table's lock is
 * held
 */
void attributes_settle(struct attributes *which, const struct attributes *directory);

/** attributes_claim - a user has made a file: it is the user's if it was nobody's */
void attributes_claim(struct attribute_table *table, struct attributes *which, uid_t uid, gid_t gid,
                      mode_t mode);

/** attributes_get - a copy, settled */
struct attributes attributes_get(struct attribute_table *table, const struct attributes *which,
                                 enum attribute_place directory);

#define ATTRIBUTE_UID   1u
#define ATTRIBUTE_GID   2u
#define ATTRIBUTE_MODE  4u
#define ATTRIBUTE_ATIME 8u
#define ATTRIBUTE_MTIME 16u

/** attributes_update - take over those that @what names; the table's lock is held */
void attributes_update(struct attributes *which, unsigned what, const struct attributes *from);

/**
 * attributes_mode - the mode to show
 * @usual: of its kind. Where there is a mask, everybody gets what @usual gives the owner, less the mask.
 */
mode_t attributes_mode(const struct attribute_table *table, const struct attributes *attributes,
                       mode_t usual);

#endif
