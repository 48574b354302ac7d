/* SPDX-License-Identifier: Apache-2.0 */
/* The workers that take requests from the kernel, in place of libfuse's own loop. */
#ifndef MIGFS_LOOP_H
#define MIGFS_LOOP_H

#include <fuse_lowlevel.h>
#include <stdbool.h>

struct loop;

/*
 * The largest write that the kernel is asked to send at once, and that a worker has room for; it cuts longer
 * ones.
 */
#define LOOP_WRITE_MAX (1u << 20)

/**
 * loop_start - make the first worker; more come as requests do
 * @se: mounted; the caller's, and in use until loop_stop() returns
 * @out: the loop
 *
 * An operation may block, when loop_spare() has said that there are other
 * workers. The caller has set a handler for SIGUSR1
 * that does nothing.
 *
 * Return: 0, or a negative errno.
 */
int loop_start(struct fuse_session *se, struct loop **out);

/* So many operations may wait at once; the other workers are for those that do not. */
#define LOOP_WAITERS_MAX (LOOP_WORKERS_MAX - 256)
#define LOOP_WORKERS_MAX 2048

/**
 * loop_spare - see to it that there are workers beside those whose operations wait; for operations
 * @waiting: how many do, or may
 * Return: false when there are none, and there is no memory or no thread for more.
 */
bool loop_spare(unsigned waiting);

/**
 * loop_can_splice - whether a pipe can be had that takes every request
 *
 * A page of a write's data is a slot of the pipe, and without CAP_SYS_RESOURCE
 * fs.pipe-max-size bounds them.
 */
bool loop_can_splice(void);

/**
 * loop_prefer_pipe - say how the next requests are to come; for operations
 *
 * A pipe is good for large writes that are spliced, and costs more than memory for
 * everything else: @prefer says what the last large write was. Only after
 * loop_can_splice(). It makes no difference to what a request means.
 */
void loop_prefer_pipe(bool prefer);

/**
 * loop_buffer - memory for a write that came in a pipe; for operations
 *
 * The calling worker's, with room for LOOP_WRITE_MAX bytes, until the operation returns.
 */
void *loop_buffer(void);

/**
 * loop_ended_fd - a descriptor that becomes readable when the connection to the kernel is gone
 *
 * That is after umount(8), or when something went wrong; see loop_stop().
 */
int loop_ended_fd(const struct loop *loop);

/**
 * loop_stop - let the workers finish, and free the loop
 *
 * Requests that are being served are served to their end: the caller has seen
 * to it that none blocks for ever. Later ones are left to the kernel, which
 * fails them when the session is unmounted.
 *
 * Return: 0, or a negative errno: why the connection was lost, if not by umount(8).
 */
int loop_stop(struct loop *loop);

#endif
