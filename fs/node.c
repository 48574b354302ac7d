/* SPDX-License-Identifier: Apache-2.0 */
/* The tree; see node.h. */
#include "node.h"
#include "cleanup.h"
#include "setting.h"

#include <assert.h>
#include <errno.h>
#include <fuse_lowlevel.h>
#include <search.h>
#include <string.h>
#include <time.h>

static struct node root = {.kind = NODE_ROOT, .inode = FUSE_ROOT_ID};

static pthread_mutex_t tree_lock = PTHREAD_MUTEX_INITIALIZER; /* a leaf lock; guards what follows */
static void *tree;                                            /* of all nodes but the root, by place */
static uint64_t last_inode = FUSE_ROOT_ID;

struct node *node_of(uint64_t id)
{
    return id == FUSE_ROOT_ID ? &root : (struct node *)(uintptr_t)id;
}

uint64_t node_id(struct node *node)
{
    return node == &root ? FUSE_ROOT_ID : (uint64_t)(uintptr_t)node;
}

static int compare(const void *pa, const void *pb)
{
    const struct node *a = pa, *b = pb;

    if (a->m != b->m)
        return (uintptr_t)a->m < (uintptr_t)b->m ? -1 : 1;
    if (a->kind != b->kind)
        return a->kind < b->kind ? -1 : 1;
    if (a->file != b->file)
        return (uintptr_t)a->file < (uintptr_t)b->file ? -1 : 1;
    if (a->index != b->index)
        return a->index < b->index ? -1 : 1;
    if (a->kind == NODE_CONTROL && a->inode != b->inode)
        return a->inode < b->inode ? -1 : 1;
    return 0;
}

struct node *node_get(enum node_kind kind, struct migration *m, struct file *file, uint32_t index)
{
    struct node key = {.kind = kind, .m = m, .file = file, .index = index};
    struct node **found;

    if (kind == NODE_ROOT)
        return &root;
    SCOPED_LOCK(&tree_lock);
    found = kind == NODE_CONTROL ? NULL : tfind(&key, &tree, compare);
    if (found) {
        (*found)->lookups++;
        return *found;
    }
    struct node *node = malloc(sizeof(*node));
    if (!node)
        return NULL;
    *node = key;
    node->inode = ++last_inode;
    node->lookups = 1;
    if (!tsearch(node, &tree, compare)) {
        free(node);
        return NULL;
    }
    if (m)
        migration_get(m);
    if (file)
        file_get(file);
    return node;
}

static void free_node(void *p)
{
    struct node *node = p;

    file_put(node->file);
    migration_put(node->m);
    free(node);
}

void node_forget(struct node *node, uint64_t n)
{
    if (node == &root)
        return;
    pthread_mutex_lock(&tree_lock);
    node->lookups -= n;
    bool last = node->lookups == 0;
    if (last)
        tdelete(node, &tree, compare);
    pthread_mutex_unlock(&tree_lock);
    if (last)
        free_node(node);
}

void node_forget_all(void)
{
    tdestroy(tree, free_node);
    tree = NULL;
}

struct file *node_file(const struct node *node)
{
    return node->file;
}

bool node_is_directory(const struct node *node)
{
    return node->kind == NODE_ROOT || node->kind == NODE_MIGRATION || node->kind == NODE_DEVICE_STATE;
}

/* Settings have the last places of the table of attributes. */
#define PLACE_SETTING (ATTRIBUTES_MAX - SETTINGS_MAX)
static_assert(ATTRIBUTES_OTHERS + NODE_KINDS <= PLACE_SETTING, "there is a place for every kind of file");

/* Where its attributes are, in which table, and what directory it is in. */
static struct attributes *find_attributes(struct host *host, const struct node *node,
                                          struct attribute_table **table, enum attribute_place *directory)
{
    *table = node->m ? &node->m->attributes : &host->attributes;
    *directory = ATTRIBUTES_DIRECTORY;
    switch (node->kind) {
    case NODE_ROOT:
    case NODE_MIGRATION:
        return &(*table)->at[ATTRIBUTES_DIRECTORY];
    case NODE_DEVICE_STATE:
        return &(*table)->at[ATTRIBUTES_DEVICE_STATE];
    case NODE_DEVICE:
        *directory = ATTRIBUTES_DEVICE_STATE;
        return file_attributes(node->file);
    case NODE_RAM:
        return &(*table)->at[ATTRIBUTES_RAM];
    case NODE_RECEIVED:
        return &(*table)->at[ATTRIBUTES_RECEIVED];
    case NODE_SETTING:
        return &(*table)->at[PLACE_SETTING + node->index];
    default:
        return &(*table)->at[ATTRIBUTES_OTHERS + node->kind];
    }
}

/* The usual mode. */
static mode_t mode_of(const struct node *node)
{
    bool incoming = node->m && migration_is_incoming(node->m);

    switch (node->kind) {
    case NODE_ROOT:
    case NODE_MIGRATION:
    case NODE_DEVICE_STATE:
        return S_IFDIR | 0755;
    case NODE_HOST_ERROR:
    case NODE_STATUS:
    case NODE_STATUS_JSON:
    case NODE_ERROR:
    case NODE_RECEIVED:
    case NODE_WAIT:
        return S_IFREG | 0444;
    case NODE_DIGEST:
        return S_IFREG | 0400;
    case NODE_CONTROL:
    case NODE_RAM:
        return S_IFREG | ATTRIBUTES_RAM_MODE;
    case NODE_DIRTY:
        return S_IFREG | 0600;
    case NODE_DEVICE:
        return S_IFREG | (incoming ? 0400 : 0600);
    default:
        return S_IFREG | 0644;
    }
}

/* The size and the blocks of a file of data. */
static void stat_file(const struct node *node, struct file *file, struct stat *st)
{
    if (!migration_is_incoming(node->m)) {
        st->st_size = (off_t)file_sent_size(file);
        st->st_blocks = (st->st_size + 511) / 512;
    } else {
        st->st_size = (off_t)file_received_size(file);
        st->st_blocks = file_receive_blocks(file);
    }
}

void node_stat(struct host *host, const struct node *node, struct stat *st)
{
    struct file *file = node_file(node);
    struct attribute_table *table;
    enum attribute_place directory;
    const struct attributes *which = find_attributes(host, node, &table, &directory);
    struct attributes attributes = attributes_get(table, which, directory);
    mode_t usual = mode_of(node);

    memset(st, 0, sizeof(*st));
    st->st_ino = node->inode;
    st->st_mode = (usual & S_IFMT) | attributes_mode(table, &attributes, usual & 07777);
    st->st_nlink = node_is_directory(node) ? 2 : file && file_is_removed(file) ? 0 : 1;
    st->st_uid = attributes.uid;
    st->st_gid = attributes.gid;
    st->st_blksize = WIRE_STRIPE_SIZE;
    st->st_atim = attributes.atime;
    st->st_mtim = st->st_ctim = attributes.mtime;
    if (file)
        stat_file(node, file, st);
    else if (node->kind == NODE_RECEIVED)
        st->st_size = (off_t)file_received_map_size(migration_file(node->m, WIRE_RAM));
    else if (node->kind == NODE_DIRTY)
        st->st_size = (off_t)migration_dirty_size(node->m);
    else if (node->kind == NODE_CONTROL)
        st->st_size = WIRE_PAGE_SIZE; /* a write within the size needs no exclusive lock on the inode */
}

int node_change(struct host *host, const struct node *node, unsigned what, const struct attributes *to,
                struct error *err)
{
    struct attribute_table *table;
    enum attribute_place directory;
    struct attributes *which = find_attributes(host, node, &table, &directory);

    if (node->m)
        return migration_change(node->m, which, directory, what, to, err);
    SCOPED_LOCK(&table->lock);
    attributes_update(which, what, to);
    return 0;
}

/* The files of a migration's directory that have no table of their own. */
static const struct {
    const char *name;
    enum node_kind kind;
} fixed[] = {
    {"control", NODE_CONTROL},
    {"device-state", NODE_DEVICE_STATE},
    {"digest", NODE_DIGEST},
    {"dirty", NODE_DIRTY},
    {"error", NODE_ERROR},
    {"ram", NODE_RAM},
    {"ram-source", NODE_RAM_SOURCE},
    {"received", NODE_RECEIVED},
    {"status", NODE_STATUS},
    {"status.json", NODE_STATUS_JSON},
    {"wait", NODE_WAIT},
};
#define FIXED_COUNT (sizeof(fixed) / sizeof(fixed[0]))

static bool is_shown(const struct migration *m, enum node_kind kind)
{
    if (kind == NODE_RECEIVED && !migration_is_incoming(m))
        return false;
    if ((kind == NODE_RAM_SOURCE || kind == NODE_DIRTY) && migration_is_incoming(m))
        return false;
    return (kind != NODE_RAM && kind != NODE_RECEIVED) || m->file_count > 0;
}

static int find_in_migration(struct migration *m, const char *name, struct node *place)
{
    for (size_t i = 0; i < FIXED_COUNT; i++) {
        if (!strcmp(name, fixed[i].name) && is_shown(m, fixed[i].kind)) {
            place->kind = fixed[i].kind;
            place->file = place->kind == NODE_RAM ? migration_get_file(m, WIRE_RAM) : NULL;
            return 0;
        }
    }
    for (uint32_t i = 0; i < settings_count; i++) {
        if (setting_is_shown(m, &settings_table[i]) && !strcmp(name, settings_table[i].name)) {
            place->kind = NODE_SETTING;
            place->index = i;
            return 0;
        }
    }
    return -ENOENT;
}

/* Fills in the place of a name; its migration and its file with references. */
static int find_place(struct registry *registry, const struct node *parent, const char *name,
                      struct node *place)
{
    switch (parent->kind) {
    case NODE_ROOT:
        if (!strcmp(name, ".error")) {
            place->kind = NODE_HOST_ERROR;
            return 0;
        }
        place->kind = NODE_MIGRATION;
        place->m = registry_find(registry, name);
        return place->m ? 0 : -ENOENT;
    case NODE_MIGRATION:
        if (find_in_migration(parent->m, name, place) < 0)
            return -ENOENT;
        break;
    case NODE_DEVICE_STATE:
        place->kind = NODE_DEVICE;
        place->file = migration_find_device(parent->m, name);
        if (!place->file)
            return -ENOENT;
        break;
    default:
        return -ENOENT;
    }
    place->m = migration_get(parent->m);
    return 0;
}

int node_lookup(struct registry *registry, const struct node *parent, const char *name, struct node **out)
{
    struct node place = {0};
    int ret = find_place(registry, parent, name, &place);

    if (ret < 0)
        return ret;
    *out = node_get(place.kind, place.m, place.file, place.index);
    file_put(place.file);
    migration_put(place.m);
    return *out ? 0 : -ENOMEM;
}

static int list_root(struct registry *registry, int (*add)(void *, const char *, mode_t), void *arg)
{
    struct migration **list;
    int n = registry_list(registry, &list), ret = 0;

    if (n < 0)
        return n;
    for (int i = 0; i < n; i++) {
        if (ret == 0)
            ret = add(arg, list[i]->name, S_IFDIR);
        migration_put(list[i]);
    }
    free(list);
    return ret < 0 ? ret : add(arg, ".error", S_IFREG);
}

int node_list(struct registry *registry, const struct node *dir,
              int (*add)(void *arg, const char *name, mode_t type), void *arg)
{
    struct migration *m = dir->m;
    int ret = 0;

    if (dir->kind == NODE_ROOT)
        return list_root(registry, add, arg);
    if (dir->kind == NODE_DEVICE_STATE) {
        char name[WIRE_NAME_SIZE];
        struct file **files;
        int n = migration_files(m, &files, NULL);
        if (n < 0)
            return n;
        for (int i = 1; i < n && ret == 0; i++)
            ret = add(arg, file_name(files[i], name), S_IFREG);
        migration_put_files(files, n);
        return ret;
    }
    for (size_t i = 0; i < FIXED_COUNT && ret == 0; i++) {
        if (is_shown(m, fixed[i].kind))
            ret = add(arg, fixed[i].name, fixed[i].kind == NODE_DEVICE_STATE ? S_IFDIR : S_IFREG);
    }
    for (uint32_t i = 0; i < settings_count && ret == 0; i++) {
        if (setting_is_shown(m, &settings_table[i]))
            ret = add(arg, settings_table[i].name, S_IFREG);
    }
    return ret;
}
