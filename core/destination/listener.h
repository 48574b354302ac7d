/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where migrations arrive: accepts connections, reads their hellos, answers
 * them, and hands them to the migration that they belong to.
 *
 * One thread, which never blocks on a peer: every connection has a deadline,
 * and there is a bound on how many may be undecided at once; past it the oldest
 * one goes, so that idle connections cannot keep others out.
 */
#ifndef MIGFS_LISTENER_H
#define MIGFS_LISTENER_H

#include "registry.h"
#include "uri.h"

#define LISTENER_URIS_MAX 16

struct listener;

/**
 * listener_new - bind and listen; no thread yet, so that the process may still fork
 * @uris: @n of them, at most LISTENER_URIS_MAX; 0 is fine
 */
int listener_new(struct registry *registry, const struct uri *uris, unsigned n, struct listener **out,
                 struct error *err);

/** listener_start - make the thread */
int listener_start(struct listener *l, struct error *err);

/** listener_address - the URI that reaches listener @i, or NULL */
const char *listener_address(struct listener *l, unsigned i);

/** listener_free - stop listening, join the thread, drop what is undecided; NULL is fine */
void listener_free(struct listener *l);

#endif
