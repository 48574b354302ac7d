/* SPDX-License-Identifier: Apache-2.0 */
/* The command line. */
#ifndef MIGFS_OPTIONS_H
#define MIGFS_OPTIONS_H

#include "host.h"
#include "listener.h"

#include <fuse_lowlevel.h>

struct options {
    struct limits limits; /* limits.backing points to memory of this struct */
    char *backing;
    char *tls_directory, *tls_keys, *tls_lets_in; /* see struct tls_config; NULL: not given */
    struct uri uris[LISTENER_URIS_MAX];
    unsigned uri_count;
    char *mountpoint;
    char *source; /* what the mount is called in the table of mounts; NULL: migfs */
    bool stack;   /* mount even over a mount of migfs */
    char *digest; /* a file whose digest is asked for, instead of a mount */
    bool foreground, help, version, debug;
};

/**
 * options_parse - read the command line
 * @args: the words; what is left are options for libfuse
 * @err: what is wrong with it
 */
int options_parse(struct fuse_args *args, struct options *out, struct error *err);
void options_fini(struct options *options);

/** options_help - the text of -h, without libfuse's own options */
void options_help(const char *program);

#endif
