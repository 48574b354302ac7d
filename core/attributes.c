/* SPDX-License-Identifier: Apache-2.0 */
/* Owners, modes and times; see attributes.h. */
#include "attributes.h"
#include "cleanup.h"

void attributes_init(struct attributes *attributes)
{
    *attributes = (struct attributes){.uid = OWNER_INHERITED, .gid = OWNER_INHERITED, .mode = MODE_DEFAULT};
    clock_gettime(CLOCK_REALTIME, &attributes->mtime);
    attributes->atime = attributes->mtime;
}

void attribute_table_init(struct attribute_table *table, const struct owner *owner)
{
    *table = (struct attribute_table){.masks = owner->masks, .mask = owner->mask};
    pthread_mutex_init(&table->lock, NULL);
    for (unsigned i = 0; i < ATTRIBUTES_MAX; i++) {
        attributes_init(&table->at[i]);
        if (i != ATTRIBUTES_RAM && i != ATTRIBUTES_RECEIVED) {
            table->at[i].uid = owner->uid;
            table->at[i].gid = owner->gid;
        }
    }
}

void attribute_table_fini(struct attribute_table *table)
{
    pthread_mutex_destroy(&table->lock);
}

void attribute_table_give(struct attribute_table *table, uid_t uid, gid_t gid)
{
    table->masks = false;
    for (unsigned i = 0; i < ATTRIBUTES_MAX; i++) {
        if (i != ATTRIBUTES_RECEIVED) {
            table->at[i].uid = uid;
            table->at[i].gid = gid;
        }
    }
}

void attribute_table_mkdir(struct attribute_table *table, mode_t mode)
{
    SCOPED_LOCK(&table->lock);
    table->at[ATTRIBUTES_DIRECTORY].mode = mode;
    table->at[ATTRIBUTES_DEVICE_STATE].mode = mode & 0777;
}

void attribute_table_copy(struct attribute_table *to, struct attribute_table *from)
{
    SCOPED_LOCK(&from->lock);
    to->masks = from->masks;
    to->mask = from->mask;
    for (unsigned i = 0; i < ATTRIBUTES_MAX; i++)
        to->at[i] = from->at[i];
}

void attributes_settle(struct attributes *which, const struct attributes *directory)
{
    if (which->uid != OWNER_INHERITED)
        return;
    which->uid = directory->uid;
    which->gid = directory->gid;
}

void attributes_claim(struct attribute_table *table, struct attributes *which, uid_t uid, gid_t gid,
                      mode_t mode)
{
    SCOPED_LOCK(&table->lock);
    if (which->uid != OWNER_INHERITED)
        return;
    which->uid = uid;
    which->gid = gid;
    which->mode = mode;
}

struct attributes attributes_get(struct attribute_table *table, const struct attributes *which,
                                 enum attribute_place directory)
{
    SCOPED_LOCK(&table->lock);
    struct attributes copy = *which;

    attributes_settle(&copy, &table->at[directory]);
    return copy;
}

void attributes_update(struct attributes *which, unsigned what, const struct attributes *from)
{
    if (what & ATTRIBUTE_UID)
        which->uid = from->uid;
    if (what & ATTRIBUTE_GID)
        which->gid = from->gid;
    if (what & ATTRIBUTE_MODE)
        which->mode = from->mode;
    if (what & ATTRIBUTE_ATIME)
        which->atime = from->atime;
    if (what & ATTRIBUTE_MTIME)
        which->mtime = from->mtime;
}

mode_t attributes_mode(const struct attribute_table *table, const struct attributes *attributes, mode_t usual)
{
    if (attributes->mode != MODE_DEFAULT)
        return attributes->mode;
    return table->masks ? (usual >> 6 & 7) * 0111 & ~table->mask : usual;
}
