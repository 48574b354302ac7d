/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The FUSE operations; see ops.h.
 *
 * Each runs in one of the workers (loop.h) and may block; there are many workers.
 * What blocks is interruptible: struct waiting ties the request's interrupt to
 * the waits of the core.
 *
 * Nothing is cached by the kernel, neither names nor attributes, because both
 * change without it. Data files are opened for direct I/O with parallel writes,
 * but for a completed image, which goes through the page cache so that it can
 * be mapped.
 */
#include "ops.h"
#include "cleanup.h"
#include "control.h"
#include "handle.h"
#include "listing.h"
#include "loop.h"
#include "parking.h"
#include "polling.h"
#include "ram_source.h"
#include "request.h"
#include "setting.h"

#include <errno.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/fuse.h>
#include <string.h>

/* Whether requests come in pipes is decided by writes from here on. */
#define SPLICE_MIN (64u << 10)

static struct handle *handle_of(struct fuse_file_info *fi)
{
    return (struct handle *)(uintptr_t)fi->fh;
}

static void op_init(void *userdata, struct fuse_conn_info *conn)
{
    (void)userdata;
    conn->max_write = LOOP_WRITE_MAX;
    conn->max_readahead = LOOP_WRITE_MAX;
    /* Releases and asynchronous writes share this: one slow migration is not to hold up the others. */
    conn->max_background = OPS_MAX_BACKGROUND;
    conn->congestion_threshold = OPS_MAX_BACKGROUND / 4 * 3;
    conn->want &= ~(unsigned)(FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_MOVE);
}

static int fill_entry(fuse_req_t req, struct node *node, struct fuse_entry_param *entry)
{
    if (!node)
        return -ENOMEM;
    memset(entry, 0, sizeof(*entry));
    entry->ino = node_id(node);
    node_stat(request_host(req), node, &entry->attr);
    return 0;
}

static void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct fuse_entry_param entry;
    struct node *node;
    int ret = node_lookup(request_registry(req), node_of(parent), name, &node);

    if (ret < 0) {
        fuse_reply_err(req, -ret);
        return;
    }
    fill_entry(req, node, &entry);
    if (fuse_reply_entry(req, &entry) < 0)
        node_forget(node, 1);
}

static void op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t nlookup)
{
    node_forget(node_of(ino), nlookup);
    fuse_reply_none(req);
}

static void op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
    for (size_t i = 0; i < count; i++)
        node_forget(node_of(forgets[i].ino), forgets[i].nlookup);
    fuse_reply_none(req);
}

static void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct stat st;

    (void)fi;
    node_stat(request_host(req), node_of(ino), &st);
    fuse_reply_attr(req, &st, 0);
}

/* Sets the size of a data file of an outgoing migration. */
static int truncate_node(fuse_req_t req, struct node *node, uint64_t size, struct error *err)
{
    struct waiting waiting;

    if (migration_is_incoming(node->m))
        return error_set(err, CAUSE_READ_ONLY, "the size of an incoming file is the source's");
    if (request_wait(req, &waiting, NULL, node->m, err) < 0)
        return -EIO;
    int ret = migration_truncate(node->m, node_file(node), size, &waiting.interrupt, err);
    request_end_wait(req, &waiting);
    return ret;
}

/*
 * The kernel has checked who may change what (default_permissions), but by what it knew when
 * it looked `control` up: that has many inodes, and the others do not hear of a new owner.
 */
static bool may_change(fuse_req_t req, const struct node *node, const struct stat *now)
{
    uid_t uid = fuse_req_ctx(req)->uid;

    return node->kind != NODE_CONTROL || uid == 0 || uid == now->st_uid;
}

/* What setattr is to change of owner, mode and times. */
static unsigned changes_of(const struct node *node, const struct stat *attr, int to_set,
                           struct attributes *to)
{
    struct timespec now;
    unsigned what = 0;

    clock_gettime(CLOCK_REALTIME, &now);
    *to = (struct attributes){
        .uid = attr->st_uid,
        .gid = attr->st_gid,
        /*
         * Nothing here is executed, and files are made by one user alone: only a directory's sticky bit means
         * something.
         */
        .mode = attr->st_mode & (node_is_directory(node) ? 01777 : 0777),
        .atime = to_set & FUSE_SET_ATTR_ATIME_NOW ? now : attr->st_atim,
        .mtime = to_set & FUSE_SET_ATTR_MTIME_NOW ? now : attr->st_mtim,
    };
    what |= to_set & FUSE_SET_ATTR_UID ? ATTRIBUTE_UID : 0;
    what |= to_set & FUSE_SET_ATTR_GID ? ATTRIBUTE_GID : 0;
    what |= to_set & FUSE_SET_ATTR_MODE ? ATTRIBUTE_MODE : 0;
    what |= to_set & (FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_ATIME_NOW) ? ATTRIBUTE_ATIME : 0;
    what |= to_set & (FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_MTIME_NOW) ? ATTRIBUTE_MTIME : 0;
    return what;
}

static void op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set,
                       struct fuse_file_info *fi)
{
    struct node *node = node_of(ino);
    struct attributes to;
    struct error err = {0};
    struct stat st;
    unsigned what = changes_of(node, attr, to_set, &to);

    (void)fi;
    node_stat(request_host(req), node, &st);
    if (what & (ATTRIBUTE_UID | ATTRIBUTE_GID | ATTRIBUTE_MODE) && !may_change(req, node, &st)) {
        fuse_reply_err(req, EPERM);
        return;
    }
    if ((to_set & FUSE_SET_ATTR_SIZE && node_file(node) &&
         truncate_node(req, node, (uint64_t)attr->st_size, &err) < 0) ||
        (what && node_change(request_host(req), node, what, &to, &err) < 0)) {
        request_reply_error(req, node->m, &err);
        return;
    }
    node_stat(request_host(req), node, &st);
    fuse_reply_attr(req, &st, 0);
}

static void op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
    const struct fuse_ctx *ctx = fuse_req_ctx(req);
    struct node *dir = node_of(parent);
    struct fuse_entry_param entry;
    struct error err = {0};
    struct migration *m;

    if (dir->kind != NODE_ROOT) {
        request_reply_cause(req, dir->m, CAUSE_DENIED, "a migration's directory has the files that it has");
        return;
    }
    if (registry_add_outgoing(request_registry(req), name, ctx->uid, ctx->gid, &m, &err) < 0) {
        request_reply_error(req, NULL, &err);
        return;
    }
    struct node *node = node_get(NODE_MIGRATION, m, NULL, 0);
    /* Nobody can look it up until this is answered: the kernel holds the lock of the root directory. */
    attribute_table_mkdir(&m->attributes, mode & 01777);
    migration_put(m);
    if (fill_entry(req, node, &entry) < 0)
        fuse_reply_err(req, ENOMEM);
    else if (fuse_reply_entry(req, &entry) < 0)
        node_forget(node, 1);
}

static void op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct node *dir = node_of(parent);
    struct error err = {0};

    if (dir->kind != NODE_ROOT) {
        request_reply_cause(req, dir->m, CAUSE_DENIED, "a migration's directory keeps the files that it has");
        return;
    }
    struct migration *m = registry_find(request_registry(req), name);
    if (!m) {
        fuse_reply_err(req, ENOENT);
        return;
    }
    if (registry_remove(request_registry(req), m, &err) < 0)
        request_reply_error(req, m, &err);
    else
        fuse_reply_err(req, 0);
    migration_put(m);
}

/* Whether devices can be removed and renamed in a directory. */
static bool is_changeable(const struct node *dir)
{
    return dir->kind == NODE_DEVICE_STATE && !migration_is_incoming(dir->m);
}

static void op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct node *dir = node_of(parent);
    struct waiting waiting;
    struct error err = {0};

    if (!is_changeable(dir)) {
        request_reply_cause(req, dir->m, CAUSE_DENIED,
                            "only devices are removed, at the source: rmdir ends a migration");
        return;
    }
    int ret = request_wait(req, &waiting, NULL, dir->m, &err);
    if (ret == 0) {
        ret = migration_remove_device(dir->m, name, &waiting.interrupt, &err);
        request_end_wait(req, &waiting);
    }
    if (ret < 0)
        request_reply_error(req, dir->m, &err);
    else
        fuse_reply_err(req, 0);
}

static void op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent,
                      const char *newname, unsigned int flags)
{
    struct node *dir = node_of(parent);
    struct waiting waiting;
    struct error err = {0};

    if (!is_changeable(dir) || !is_changeable(node_of(newparent))) {
        request_reply_cause(req, dir->m, CAUSE_DENIED, "only devices can be renamed, at the source");
        return;
    }
    /* A caller that is told so copies. */
    if (parent != newparent) {
        fuse_reply_err(req, EXDEV);
        return;
    }
    if (flags & ~(unsigned)RENAME_NOREPLACE) {
        fuse_reply_err(req, EINVAL);
        return;
    }
    int ret = request_wait(req, &waiting, NULL, dir->m, &err);
    if (ret == 0) {
        ret = migration_rename_device(dir->m, name, newname, flags & RENAME_NOREPLACE, &waiting.interrupt,
                                      &err);
        request_end_wait(req, &waiting);
    }
    if (ret < 0)
        request_reply_error(req, dir->m, &err);
    else
        fuse_reply_err(req, 0);
}

/*
 * Opening
 */

/* Writing to an incoming migration: only the image, and only when it is complete. */
static int check_incoming_writer(const struct node *node, int flags, struct error *err)
{
    if (node->kind == NODE_DEVICE)
        return error_set(err, CAUSE_READ_ONLY, "a device's stream is written at the source");
    if (migration_state(node->m) != STATE_COMPLETED)
        return error_set(err, CAUSE_STATE, "the image can be written when the migration has completed");
    if (flags & O_TRUNC)
        return error_set(err, CAUSE_READ_ONLY, "the size of an incoming file is the source's");
    return 0;
}

static int open_data(fuse_req_t req, struct handle *handle, int flags, struct error *err)
{
    struct node *node = handle->node;
    bool writes = (flags & O_ACCMODE) != O_RDONLY;

    /* Whoever opens by a path looks once more, and finds what has the name now, or nothing. */
    if (file_open_reader(node_file(node)) < 0)
        return error_set(err, CAUSE_STALE, "it has been removed");
    handle->counted = true;
    if (migration_is_incoming(node->m)) {
        handle->cached = node->kind == NODE_RAM && migration_state(node->m) == STATE_COMPLETED;
        return writes ? check_incoming_writer(node, flags, err) : 0;
    }
    /* First: a stream that is emptied to be written again does not end in between. */
    if (writes) {
        handle->writer = true;
        migration_open_writer(node->m, node_file(node));
    }
    if (!(flags & O_TRUNC))
        return 0;
    if (truncate_node(req, node, 0, err) < 0)
        return -EIO;
    if (writes)
        migration_begin_anew(node->m, node_file(node));
    return 0;
}

/*
 * The flags of an answer to OPEN. libfuse 3.14 has no field for parallel direct writes, the kernel has.
 *
 * close(2) never fails, since there are VMMs that end when it does: it is not asked
 * about (FOPEN_NOFLUSH, also when the daemon is gone), and a kernel before 5.16,
 * which asks, learns that there is no such operation, and does not ask again.
 */
static struct fuse_open_out open_out(const struct handle *handle)
{
    return (struct fuse_open_out){
        .fh = (uint64_t)(uintptr_t)handle,
        .open_flags = FOPEN_NOFLUSH | (handle->cached ? 0 : FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES),
    };
}

/* The handle of an open that nobody will use. */
static void abandon(struct handle *handle)
{
    if (handle->writer)
        migration_close_writer(handle->node->m, node_file(handle->node));
    if (handle->counted)
        file_close_reader(node_file(handle->node));
    poll_forget(handle);
    handle_free(handle);
}

static void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct node *node = node_of(ino);
    struct handle *handle = handle_new(node, fuse_req_ctx(req)->uid, fuse_req_ctx(req)->gid);
    struct error err = {0};

    if (!handle) {
        fuse_reply_err(req, ENOMEM);
        return;
    }
    if (node_file(node) && open_data(req, handle, fi->flags, &err) < 0) {
        abandon(handle);
        if ((fi->flags & O_ACCMODE) == O_RDONLY && !(fi->flags & O_TRUNC))
            request_reply_looking(req, err.cause);
        else
            request_reply_error(req, node->m, &err);
        return;
    }
    struct fuse_open_out out = open_out(handle);
    if (fuse_reply_buf(req, (const char *)&out, sizeof(out)) < 0)
        abandon(handle);
}

static struct fuse_attr attr_out(const struct stat *st)
{
    return (struct fuse_attr){
        .ino = st->st_ino,
        .size = (uint64_t)st->st_size,
        .blocks = (uint64_t)st->st_blocks,
        .atime = (uint64_t)st->st_atim.tv_sec,
        .mtime = (uint64_t)st->st_mtim.tv_sec,
        .ctime = (uint64_t)st->st_ctim.tv_sec,
        .atimensec = (uint32_t)st->st_atim.tv_nsec,
        .mtimensec = (uint32_t)st->st_mtim.tv_nsec,
        .ctimensec = (uint32_t)st->st_ctim.tv_nsec,
        .mode = st->st_mode,
        .nlink = (uint32_t)st->st_nlink,
        .uid = st->st_uid,
        .gid = st->st_gid,
        .blksize = (uint32_t)st->st_blksize,
    };
}

/*
 * A device is whose process makes it; one that root makes is the directory's owner's. What others may
 * is said by chmod, not by O_CREAT: at a destination, anybody could read it with the usual umask.
 */
static void claim_device(fuse_req_t req, const struct node *dir, struct file *file, mode_t mode)
{
    const struct fuse_ctx *ctx = fuse_req_ctx(req);
    struct stat st;

    node_stat(request_host(req), dir, &st);
    attributes_claim(&dir->m->attributes, file_attributes(file), ctx->uid ? ctx->uid : st.st_uid,
                     ctx->uid ? ctx->gid : st.st_gid, mode & ATTRIBUTES_RAM_MODE);
}

static void op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
                      struct fuse_file_info *fi)
{
    struct node *dir = node_of(parent);
    struct error err = {0};
    struct waiting waiting;
    CLEANUP_FILE struct file *file = NULL;
    struct stat st;

    if (dir->kind != NODE_DEVICE_STATE) {
        request_reply_cause(req, dir->m, CAUSE_DENIED,
                            "new files are made in device-state/ only; mkdir makes a migration");
        return;
    }
    if (migration_is_incoming(dir->m)) {
        request_reply_cause(req, dir->m, CAUSE_READ_ONLY, "devices are made at the source");
        return;
    }
    int ret = request_wait(req, &waiting, NULL, dir->m, &err);
    if (ret == 0) {
        ret = migration_create_device(dir->m, name, fi->flags & O_EXCL, &waiting.interrupt, &file, &err);
        request_end_wait(req, &waiting);
    }
    if (ret < 0) {
        request_reply_error(req, dir->m, &err);
        return;
    }
    claim_device(req, dir, file, mode);
    struct node *node = node_get(NODE_DEVICE, dir->m, file, 0);
    struct handle *handle = node ? handle_new(node, fuse_req_ctx(req)->uid, fuse_req_ctx(req)->gid) : NULL;
    if (!handle || open_data(req, handle, fi->flags, &err) < 0) {
        if (!handle)
            error_set(&err, CAUSE_NO_MEMORY, "out of memory");
        else
            abandon(handle);
        if (node)
            node_forget(node, 1);
        request_reply_error(req, dir->m, &err);
        return;
    }
    struct {
        struct fuse_entry_out entry;
        struct fuse_open_out open;
    } out = {.entry = {.nodeid = node_id(node)}, .open = open_out(handle)};
    node_stat(request_host(req), node, &st);
    out.entry.attr = attr_out(&st);
    if (fuse_reply_buf(req, (const char *)&out, sizeof(out)) < 0) {
        abandon(handle);
        node_forget(node, 1);
    }
}

static void op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino;
    abandon(handle_of(fi));
    fuse_reply_err(req, 0);
}

static void op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
    struct node *node = node_of(ino);
    struct file *file = node->kind == NODE_DIRTY ? migration_file(node->m, WIRE_RAM) : node_file(node);
    struct waiting waiting;
    struct error err = {0};

    (void)datasync;
    /* Before `start` nothing has been accepted, and after `complete` all of it has been applied. */
    if (!file || migration_is_incoming(node->m) || migration_state(node->m) == STATE_NONE ||
        migration_state(node->m) == STATE_COMPLETED) {
        fuse_reply_err(req, 0);
        return;
    }
    int ret = request_wait(req, &waiting, handle_of(fi)->user, node->m, &err);
    if (ret == 0) {
        ret = migration_sync(node->m, file, &waiting.interrupt, &err);
        request_end_wait(req, &waiting);
    }
    if (ret < 0)
        request_reply_error(req, node->m, &err);
    else
        fuse_reply_err(req, 0);
}

/*
 * Reading
 */

/* What is parked is answered by one thread for all: a part will do, and the reader comes back. */
#define PARKED_READ_MAX (256u << 10)

static void read_again(fuse_req_t req, struct handle *handle, size_t size, off_t offset, int flags,
                       enum cause cause);

static void read_text(fuse_req_t req, struct handle *handle, size_t size, off_t offset, int flags)
{
    CLEANUP_FREE char *text = NULL;
    bool waits = handle->node->kind == NODE_DIGEST;
    struct waiting waiting;
    struct error err = {0};

    if (waits && request_wait(req, &waiting, handle->user, handle->node->m, &err) < 0) {
        request_reply_looking(req, err.cause);
        return;
    }
    int n = handle_read_text(handle, request_host(req), (uint64_t)offset, size,
                             waits ? &waiting.interrupt : NULL, &text, &err);
    if (waits)
        request_end_wait(req, &waiting);
    if (n < 0 && err.cause == CAUSE_AGAIN && !(flags & O_NONBLOCK))
        parking_park(req, handle, size, offset, flags, read_again);
    else if (n < 0)
        request_reply_looking(req, err.cause);
    else
        fuse_reply_buf(req, text, (size_t)n);
}

/* A bitmap of the RAM: of what has arrived, or of what is to be sent. */
static void read_bitmap(fuse_req_t req, struct node *node, size_t size, off_t offset)
{
    CLEANUP_FREE char *buf = malloc(size);

    if (!buf)
        fuse_reply_err(req, ENOMEM);
    else if (node->kind == NODE_DIRTY)
        fuse_reply_buf(req, buf, migration_read_dirty(node->m, (uint64_t)offset, buf, size));
    else
        fuse_reply_buf(
            req, buf, file_read_received_map(migration_file(node->m, WIRE_RAM), (uint64_t)offset, buf, size));
}

/* RAM by reference is in its file; what is pushed is not kept. */
static void read_source(fuse_req_t req, struct node *node, size_t size, off_t offset)
{
    CLEANUP_FREE char *buf = malloc(size);
    ssize_t n = buf ? migration_read_ram(node->m, (uint64_t)offset, buf, size) : -ENOMEM;

    if (n < 0)
        request_reply_looking(req, error_cause_of_errno((int)n));
    else
        fuse_reply_buf(req, buf, (size_t)n);
}

/* What file_read() fails with. -ECONNRESET: of what the migration has failed. */
static enum cause cause_of_read(struct migration *m, ssize_t code)
{
    if (code == -EAGAIN)
        return CAUSE_AGAIN;
    if (code == -ECONNRESET)
        return migration_read_cause(m);
    return error_cause_of_errno((int)code);
}

static void read_data(fuse_req_t req, struct handle *handle, size_t size, off_t offset, int flags)
{
    struct node *node = handle->node;
    CLEANUP_FREE char *buf = malloc(size);

    if (!buf) {
        fuse_reply_err(req, ENOMEM);
        return;
    }
    ssize_t n = file_read(node_file(node), (uint64_t)offset, buf, size, true, NULL);
    if (n == -EAGAIN && !(flags & O_NONBLOCK)) {
        parking_park(req, handle, size, offset, flags, read_again);
        return;
    }
    if (n < 0) {
        request_reply_looking(req, cause_of_read(node->m, n));
        return;
    }
    atomic_store(&handle->position, (uint64_t)offset + (uint64_t)n);
    fuse_reply_buf(req, buf, (size_t)n);
}

/* A read that was parked. */
static void read_again(fuse_req_t req, struct handle *handle, size_t size, off_t offset, int flags,
                       enum cause cause)
{
    if (cause != CAUSE_NONE)
        request_reply_looking(req, cause);
    else if (handle->node->kind == NODE_WAIT)
        read_text(req, handle, size, offset, flags);
    else
        read_data(req, handle, size < PARKED_READ_MAX ? size : PARKED_READ_MAX, offset, flags);
}

static void op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi)
{
    struct node *node = node_of(ino);

    if (node->kind == NODE_RECEIVED || node->kind == NODE_DIRTY)
        read_bitmap(req, node, size, offset);
    else if (!node_file(node))
        read_text(req, handle_of(fi), size, offset, fi->flags);
    else if (migration_is_outgoing(node->m) && node->kind == NODE_RAM)
        read_source(req, node, size, offset);
    else if (migration_is_outgoing(node->m))
        request_reply_looking(req, CAUSE_UNSUPPORTED); /* what is written to a device is not kept */
    else if (node->kind == NODE_RAM && !file_is_receiving(node_file(node)))
        /* nothing has arrived; who wants to wait reads `wait` */
        request_reply_looking(req, CAUSE_UNSUPPORTED);
    else
        read_data(req, handle_of(fi), size, offset, fi->flags);
}

static void op_lseek(fuse_req_t req, fuse_ino_t ino, off_t offset, int whence, struct fuse_file_info *fi)
{
    struct node *node = node_of(ino);
    struct file *file = node_file(node);
    struct stat st;

    (void)fi;
    node_stat(request_host(req), node, &st);
    int64_t found = offset >= st.st_size ? -ENXIO : whence == SEEK_DATA ? offset : st.st_size;
    if (file && migration_is_incoming(node->m))
        found = file_seek(file, (uint64_t)offset, whence == SEEK_DATA);
    if (found < 0)
        fuse_reply_err(req, (int)-found);
    else
        fuse_reply_lseek(req, found);
}

/*
 * Writing
 */

/* Takes what the writer names as the source of RAM; nothing, or "none", is none. */
static int write_ram_source(fuse_req_t req, const struct handle *handle, const char *buf, size_t size,
                            struct error *err)
{
    const struct fuse_ctx *ctx = fuse_req_ctx(req);
    struct ram_source_caller caller = {
        .pid = ctx->pid,
        .uid = ctx->uid,
        .gid = ctx->gid,
        .opener_uid = handle->uid,
        .opener_gid = handle->gid,
    };
    struct node *node = handle->node;
    char text[SETTING_VALUE_MAX];
    struct waiting waiting;
    CLEANUP_FD int fd = -1;

    if (text_line(buf, size, text, sizeof(text), err) < 0)
        return -EIO;
    if (*text && strcmp(text, "none")) {
        int count = fuse_req_getgroups(req, 0, NULL);
        CLEANUP_FREE gid_t *groups = calloc(count > 0 ? (size_t)count : 1, sizeof(*groups));
        if (!groups)
            return error_set(err, CAUSE_NO_MEMORY, "out of memory");
        caller.groups = groups;
        caller.group_count = count > 0 && fuse_req_getgroups(req, count, groups) == count ? count : 0;
        fd = ram_source_open(&caller, text, err);
        if (fd < 0)
            return -EIO;
    }
    if (request_wait(req, &waiting, handle->user, node->m, err) < 0)
        return -EIO;
    int ret = migration_set_reference(node->m, steal_fd(&fd), text, ctx->pid, &waiting.interrupt, err);
    request_end_wait(req, &waiting);
    return ret;
}

static int write_text(fuse_req_t req, const struct handle *handle, const char *buf, size_t size, off_t offset,
                      struct error *err)
{
    struct node *node = handle->node;
    struct control_line line;
    struct waiting waiting;
    int ret;

    if (node->kind == NODE_SETTING) {
        if (request_wait(req, &waiting, handle->user, node->m, err) < 0)
            return -EIO;
        ret = setting_write(node->m, &settings_table[node->index], buf, size, &waiting.interrupt, err);
        request_end_wait(req, &waiting);
        return ret;
    }
    if (node->kind == NODE_RAM_SOURCE)
        return write_ram_source(req, handle, buf, size, err);
    if (node->kind == NODE_DIRTY)
        return migration_mark_dirty(node->m, buf, size, (uint64_t)offset, err);
    if (node->kind != NODE_CONTROL)
        return error_set(err, CAUSE_DENIED, "this file cannot be written");
    if (control_parse(buf, size, &line, err) < 0)
        return -EIO;
    if (!control_waits(&line))
        return control_run(node->m, &line, NULL, err);
    if (request_wait(req, &waiting, handle->user, node->m, err) < 0)
        return -EIO;
    ret = control_run(node->m, &line, &waiting.interrupt, err);
    request_end_wait(req, &waiting);
    return ret;
}

/* A write to a file of data, while it is taken. */
struct data_write {
    fuse_req_t req;
    size_t size;
};

/* From here on the handle and the node can go. */
static void on_accepted(void *arg)
{
    const struct data_write *write = arg;

    fuse_req_interrupt_func(write->req, NULL, NULL);
    fuse_reply_write(write->req, write->size);
}

/* @data: in memory; or in a pipe, and can go out of it. */
static void write_data(fuse_req_t req, struct handle *handle, const struct fuse_buf *data, off_t offset)
{
    struct node *node = handle->node;
    struct migration *m = migration_get(node->m);
    bool waits = !migration_is_incoming(m); /* what a completed image is written to is memory */
    struct data_write taken = {req, data->size};
    struct waiting waiting;
    struct error err = {0};
    bool piped = data->flags & FUSE_BUF_IS_FD;
    struct file_write write = {
        .file = node_file(node),
        .buf = piped ? NULL : data->mem,
        .pipe = piped ? data->fd : -1,
        .len = data->size,
        .offset = (uint64_t)offset,
        .interrupt = waits ? &waiting.interrupt : NULL,
        .accepted = on_accepted,
        .arg = &taken,
    };

    if (waits && request_wait(req, &waiting, handle->user, m, &err) < 0) {
        request_reply_error(req, m, &err);
        migration_put(m);
        return;
    }
    if (migration_write(m, &write, &err) < 0) {
        fuse_req_interrupt_func(req, NULL, NULL);
        request_reply_error(req, m, &err);
    }
    /* Now: what was accepted can wait to be sent. */
    if (waits)
        admission_leave(&waiting.admission);
    migration_put(m);
}

static void write_memory(fuse_req_t req, struct node *node, const struct fuse_buf *data, off_t offset,
                         struct fuse_file_info *fi)
{
    struct error err = {0};

    if (node_file(node)) {
        write_data(req, handle_of(fi), data, offset);
    } else if (write_text(req, handle_of(fi), data->mem, data->size, offset, &err) < 0) {
        request_reply_error(req, node->m, &err);
    } else {
        fuse_reply_write(req, data->size);
    }
}

/* The data is in memory, or in a pipe by itself. */
static void op_write_buf(fuse_req_t req, fuse_ino_t ino, struct fuse_bufvec *in, off_t offset,
                         struct fuse_file_info *fi)
{
    struct node *node = node_of(ino);
    struct file *file = node_file(node);
    const struct fuse_buf *data = &in->buf[0];
    bool splices = file && migration_splices(node->m, file, data->size, (uint64_t)offset);
    bool piped = data->flags & FUSE_BUF_IS_FD;

    if (request_host(req)->splices && data->size >= SPLICE_MIN)
        loop_prefer_pipe(splices);
    if (!piped) {
        write_memory(req, node, data, offset, fi);
    } else if (splices) {
        write_data(req, handle_of(fi), data, offset);
    } else {
        struct fuse_bufvec out = FUSE_BUFVEC_INIT(data->size);
        out.buf[0].mem = loop_buffer();
        ssize_t n = data->size <= LOOP_WRITE_MAX ? fuse_buf_copy(&out, in, 0) : -EIO;
        if (n == (ssize_t)data->size)
            write_memory(req, node, &out.buf[0], offset, fi);
        else
            fuse_reply_err(req, EIO);
    }
}

static void op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t length,
                         struct fuse_file_info *fi)
{
    struct node *node = node_of(ino);
    struct file *file = node_file(node);
    bool clears = mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE);
    struct waiting waiting;
    struct error err = {0};
    int ret = 0;

    (void)fi;
    if (!file || migration_is_incoming(node->m) || offset < 0 || length <= 0 ||
        mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) {
        request_reply_cause(req, node->m, CAUSE_UNSUPPORTED, "this kind of fallocate is not supported here");
        return;
    }
    uint64_t end = (uint64_t)offset + (uint64_t)length;
    if (request_wait(req, &waiting, handle_of(fi)->user, node->m, &err) < 0) {
        request_reply_error(req, node->m, &err);
        return;
    }
    if (clears)
        ret = migration_discard(node->m, file, (uint64_t)offset, (uint64_t)length, &waiting.interrupt, &err);
    if (ret == 0 && !(mode & FALLOC_FL_KEEP_SIZE) && end > file_sent_size(file))
        ret = migration_truncate(node->m, file, end, &waiting.interrupt, &err);
    request_end_wait(req, &waiting);
    if (ret < 0)
        request_reply_error(req, node->m, &err);
    else
        fuse_reply_err(req, 0);
}

/*
 * Directories
 */

static void op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct listing *listing = listing_new();

    if (!listing) {
        fuse_reply_err(req, ENOMEM);
        return;
    }
    (void)ino;
    fi->fh = (uint64_t)(uintptr_t)listing;
    if (fuse_reply_open(req, fi) < 0)
        listing_free(listing);
}

/* The kernel reads a directory from one thread at a time. */
static void op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi)
{
    struct listing *listing = (struct listing *)(uintptr_t)fi->fh;
    int ret = offset == 0 ? listing_make(listing, req, request_registry(req), node_of(ino)) : 0;

    if (ret < 0)
        fuse_reply_err(req, -ret);
    else
        listing_reply(listing, req, size, (size_t)offset);
}

static void op_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino;
    listing_free((struct listing *)(uintptr_t)fi->fh);
    fuse_reply_err(req, 0);
}

static void op_poll(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, struct fuse_pollhandle *ph)
{
    (void)ino;
    fuse_reply_poll(req, poll_check(handle_of(fi), ph));
}

static void op_statfs(fuse_req_t req, fuse_ino_t ino)
{
    const struct host *host = request_host(req);
    uint64_t limit = host->accounts.memory.limit / WIRE_PAGE_SIZE;
    uint64_t used = atomic_load_explicit(&host->accounts.memory.used, memory_order_relaxed) / WIRE_PAGE_SIZE;
    struct statvfs st = {
        .f_bsize = WIRE_STRIPE_SIZE,
        .f_frsize = WIRE_PAGE_SIZE,
        .f_blocks = limit,
        .f_bfree = limit - used,
        .f_bavail = limit - used,
        .f_namemax = WIRE_NAME_MAX,
    };

    (void)ino;
    fuse_reply_statfs(req, &st);
}

const struct fuse_lowlevel_ops ops_table = {
    .init = op_init,
    .lookup = op_lookup,
    .forget = op_forget,
    .forget_multi = op_forget_multi,
    .getattr = op_getattr,
    .setattr = op_setattr,
    .mkdir = op_mkdir,
    .rmdir = op_rmdir,
    .unlink = op_unlink,
    .rename = op_rename,
    .open = op_open,
    .create = op_create,
    .release = op_release,
    .fsync = op_fsync,
    .read = op_read,
    .write_buf = op_write_buf,
    .lseek = op_lseek,
    .fallocate = op_fallocate,
    .opendir = op_opendir,
    .readdir = op_readdir,
    .releasedir = op_releasedir,
    .poll = op_poll,
    .statfs = op_statfs,
};
