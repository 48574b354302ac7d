/* SPDX-License-Identifier: Apache-2.0 */
/* A source and a destination in one process, as two daemons would be, without FUSE. */
#ifndef MIGFS_TEST_RIG_H
#define MIGFS_TEST_RIG_H

#include "registry.h"
#include "listener.h"
#include "outgoing.h"

struct rig {
    struct registry source, destination;
    struct listener *listener; /* the destination's */
    char address[URI_MAX];     /* where it listens; unix: is in the scratch directory */
};

/* What the hosts of rig_init() prove themselves with; NULL: nothing. */
extern struct tls *rig_tls_source, *rig_tls_destination;

/** rig_limits - limits that are in nobody's way */
struct limits rig_limits(void);

/**
 * rig_init - start both
 * @listen: a URI
 * @limits: the destination's; NULL: rig_limits()
 */
void rig_init(struct rig *rig, const char *listen, const struct limits *limits);

/** rig_fini - end both, as a daemon ends; nothing of them is left */
void rig_fini(struct rig *rig);

/** rig_make - an outgoing migration with its settings, not started; @faults ("faulty:cut=9:", or "") go in front of the address */
struct migration *rig_make(struct rig *rig, const char *name, unsigned channels, const char *faults);

/** rig_start - rig_make() and outgoing_start(), with RAM of @ram_size declared (0: not) */
struct migration *rig_start(struct rig *rig, const char *name, unsigned channels, uint64_t ram_size);

/** rig_arrived - wait until the incoming migration of a name is shown; the caller drops the reference */
struct migration *rig_arrived(struct rig *rig, const char *name);

/** rig_await_end - wait for a final state */
enum state rig_await_end(struct migration *m);

/** rig_try_write - write any length; the first error ends it */
int rig_try_write(struct migration *m, struct file *file, const void *buf, size_t len, uint64_t offset,
                  const struct interrupt *interrupt, struct error *err);

/** rig_write - the same; the test fails when it does */
void rig_write(struct migration *m, struct file *file, const void *buf, size_t len, uint64_t offset);

/** rig_device - a device, made if it is not there */
struct file *rig_device(struct migration *m, const char *name);

/** rig_compare - the incoming migration's file is @want, from its beginning to its end; the test fails if not */
void rig_compare(struct migration *incoming, uint32_t id, const void *want, size_t size);

/** rig_find_file - the incoming file of a name; waits for its announcement */
struct file *rig_find_file(struct migration *incoming, const char *name);

/** rig_count_fds - open descriptors of this process */
unsigned rig_count_fds(void);

/** rig_count_threads - threads of this process */
unsigned rig_count_threads(void);

/** rig_await_threads - wait until no more than @n threads are left */
void rig_await_threads(unsigned n);

#endif
