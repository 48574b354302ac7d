/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Going into the background.
 *
 * The process that serves is made first, before it has opened anything: what it opens is then its own. (The
 * kernel takes RDMA's descriptors from no process but the one that has opened them.) The one that was
 * called waits until the other one is ready, or has ended with a reason.
 */
#ifndef MIGFS_DAEMON_H
#define MIGFS_DAEMON_H

/**
 * daemon_begin - go on in a new process
 *
 * It keeps the terminal, and ends with its maker, until daemon_ready(). Return: 0; -1 with errno.
 */
int daemon_begin(void);

/** daemon_ready - let the maker end with status 0, and leave the terminal; does nothing without
 * daemon_begin() */
int daemon_ready(void);

#endif
