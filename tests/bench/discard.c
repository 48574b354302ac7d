/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A FUSE daemon that takes what is written to its one file, `ram`, and forgets it: what a write through FUSE costs when
 * nothing is done with the data.
 *
 *   discard MOUNTPOINT
 *
 * In the foreground, until it is unmounted. It asks the kernel for what migfs asks for: direct I/O, parallel direct
 * writes, writes of 1 MiB, no splicing, many workers with a descriptor each.
 */
#include "common.h"

#include <fuse_lowlevel.h>
#include <linux/fuse.h>
#include <stdatomic.h>
#include <sys/stat.h>

const char program[] = "discard";

enum { ROOT = FUSE_ROOT_ID, RAM };

static _Atomic uint64_t size = 1ull << 40;

static int attributes(fuse_ino_t ino, struct stat *st)
{
    *st = (struct stat){.st_ino = ino, .st_mode = ino == ROOT ? S_IFDIR | 0755 : S_IFREG | 0600, .st_nlink = 1};
    if (ino == RAM)
        st->st_size = (off_t)atomic_load(&size);
    return 0;
}

static void op_init(void *data, struct fuse_conn_info *conn)
{
    (void)data;
    conn->max_write = 1 << 20;
    conn->want &= ~(unsigned)(FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_MOVE);
}

static void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct fuse_entry_param entry = {.ino = RAM};

    if (parent != ROOT || strcmp(name, "ram")) {
        fuse_reply_err(req, ENOENT);
        return;
    }
    attributes(RAM, &entry.attr);
    fuse_reply_entry(req, &entry);
}

static void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct stat st;

    (void)fi;
    attributes(ino, &st);
    fuse_reply_attr(req, &st, 0);
}

static void op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set, struct fuse_file_info *fi)
{
    if (to_set & FUSE_SET_ATTR_SIZE)
        atomic_store(&size, (uint64_t)attr->st_size);
    op_getattr(req, ino, fi);
}

static void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    /* libfuse 3.14 has no field for parallel direct writes. */
    struct fuse_open_out out = {.open_flags = FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES};

    (void)ino, (void)fi;
    fuse_reply_buf(req, (const char *)&out, sizeof(out));
}

static void op_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t len, off_t offset, struct fuse_file_info *fi)
{
    (void)ino, (void)buf, (void)offset, (void)fi;
    fuse_reply_write(req, len);
}

static const struct fuse_lowlevel_ops ops = {
    .init = op_init,
    .lookup = op_lookup,
    .getattr = op_getattr,
    .setattr = op_setattr,
    .open = op_open,
    .write = op_write,
};

int main(int argc, char **argv)
{
    struct fuse_args args = FUSE_ARGS_INIT(1, argv);

    if (argc != 2)
        die("usage: discard MOUNTPOINT");
    struct fuse_session *se = fuse_session_new(&args, &ops, sizeof(ops), NULL);
    if (!se || fuse_session_mount(se, argv[1]) != 0)
        die("cannot mount");
    struct fuse_loop_config *config = fuse_loop_cfg_create();
    fuse_loop_cfg_set_clone_fd(config, 1);
    fuse_loop_cfg_set_max_threads(config, 64);
    fuse_loop_cfg_set_idle_threads(config, 16);
    fuse_session_loop_mt(se, config);
    fuse_loop_cfg_destroy(config);
    fuse_session_unmount(se);
    fuse_session_destroy(se);
    return 0;
}
