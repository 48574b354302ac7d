/* SPDX-License-Identifier: Apache-2.0 */
/* What the two parts of the stand-in share: verbs.c has memory and queues, verbs_cm.c the connection manager.
 */
#ifndef MIGFS_TEST_VERBS_CARD_H
#define MIGFS_TEST_VERBS_CARD_H

#include "verbs.h"

#include <pthread.h>

struct pair;

/* Guards everything in the stand-in. Functions that are declared here are called with it held. */
extern pthread_mutex_t card_lock;
extern struct verbs_counts card_counts;
extern bool card_removed[VERBS_DEVICES];

/** card_must_fail - whether a test wants this call to fail; then errno is set */
bool card_must_fail(enum verbs_call call);

/** card_violation - what no caller may do: ends the test */
void card_violation(const char *what) __attribute__((noreturn));

bool card_is_removed(const struct ibv_context *device);

/** memory_allows - whether a key of a protection domain does that: of this end's, or with remote access, of
 * the peer's */
bool memory_allows(const struct ibv_pd *pd, uint32_t key, uint64_t addr, uint64_t len, int access);
void memory_limit(uint64_t bytes);

/** pair_uses - whether any queue pair is of that domain */
bool pair_uses(const struct ibv_pd *pd);

/** pair_new - NULL with errno: the device has no such thing */
struct pair *pair_new(struct ibv_pd *pd, struct ibv_qp_init_attr *attr, enum verbs_side side);
void pair_free(struct pair *pair);
struct ibv_qp *pair_qp(struct pair *pair);

/** pair_join - they are each other's peers; none is ready */
void pair_join(struct pair *a, struct pair *b, uint8_t rnr_retries);

/** pair_set_ready - it can send and receive */
void pair_set_ready(struct pair *pair);

/** pair_break - what is posted is flushed */
void pair_break(struct pair *pair);

#endif
