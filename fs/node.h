/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tree: what the kernel knows by a node id.
 *
 * A node is a place in the tree, and lives while the kernel remembers it. It
 * holds a reference to its migration, and one to its file of data, so that a file
 * that has left its migration, or whose migration is gone, is still safe to
 * touch. The same place is the same node, with one
 * exception: every lookup of `control` makes a new one. The kernel holds an
 * inode's lock while a write to it runs; with an inode of its own, `cancel`
 * does not have to wait for the `sync` that it is to end.
 */
#ifndef MIGFS_NODE_H
#define MIGFS_NODE_H

#include "registry.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

enum node_kind {
    NODE_ROOT,
    NODE_HOST_ERROR, /* .error, of no migration */
    NODE_MIGRATION,
    NODE_DEVICE_STATE,
    NODE_RAM,
    NODE_DEVICE,
    NODE_CONTROL,
    NODE_STATUS,
    NODE_STATUS_JSON,
    NODE_ERROR,
    NODE_SETTING,
    NODE_RECEIVED,
    NODE_DIGEST,
    NODE_RAM_SOURCE,
    NODE_DIRTY,
    NODE_WAIT,
    NODE_KINDS
};

struct node {
    enum node_kind kind;
    struct migration *m; /* NULL: of no migration */
    struct file *file;   /* NODE_RAM, NODE_DEVICE; NULL for others */
    uint32_t index;      /* NODE_SETTING: which */
    uint64_t inode;      /* what stat(2) shows */
    uint64_t lookups;    /* guarded by the tree's lock */
};

/** node_of - the node of a node id */
struct node *node_of(uint64_t id);

/** node_id - the other way round */
uint64_t node_id(struct node *node);

/**
 * node_get - the node of a place, with one more lookup; NULL when memory runs out
 * @file: of NODE_RAM and NODE_DEVICE
 * @index: of NODE_SETTING
 */
struct node *node_get(enum node_kind kind, struct migration *m, struct file *file, uint32_t index);

/** node_forget - the kernel forgets @n lookups of a node; the last one frees it */
void node_forget(struct node *node, uint64_t n);

/** node_forget_all - at the end, when the kernel is gone */
void node_forget_all(void);

/** node_file - the file of data of a RAM or device node; NULL for others */
struct file *node_file(const struct node *node);

/** node_is_directory */
bool node_is_directory(const struct node *node);

/** node_stat - what stat(2) shows */
void node_stat(struct host *host, const struct node *node, struct stat *st);

/**
 * node_change - chown(2), chmod(2), utimensat(2)
 * @what: ATTRIBUTE_UID, ...; whether the caller may has been checked
 */
int node_change(struct host *host, const struct node *node, unsigned what, const struct attributes *to,
                struct error *err);

/**
 * node_lookup - the node of a name in a directory, with one more lookup
 * Return: 0, -ENOENT or -ENOMEM.
 */
int node_lookup(struct registry *registry, const struct node *parent, const char *name, struct node **out);

/** node_list - call @add for every name in a directory, with its S_IFMT bits */
int node_list(struct registry *registry, const struct node *dir,
              int (*add)(void *arg, const char *name, mode_t type), void *arg);

#endif
