/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opening the file that `ram-source` names, with the rights of whoever wrote it:
 * a daemon that runs as root is not to read for a caller what the caller could
 * not open.
 */
#ifndef MIGFS_RAM_SOURCE_H
#define MIGFS_RAM_SOURCE_H

#include "error.h"

#include <sys/types.h>

struct ram_source_caller {
    pid_t pid; /* of a thread, as FUSE has it */
    uid_t uid;
    gid_t gid;
    uid_t opener_uid; /* who opened `ram-source`, and may have handed it to the caller */
    gid_t opener_gid;
    const gid_t *groups; /* supplementary ones */
    int group_count;
};

/**
 * ram_source_open - the descriptor that @text names
 * @text: "fd:N", a descriptor of the caller's; or a path, relative to the caller's directory
 * Return: the descriptor, the caller's to close; negative with @err.
 */
int ram_source_open(const struct ram_source_caller *caller, const char *text, struct error *err);

#endif
