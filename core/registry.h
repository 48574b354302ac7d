/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The registry: the migrations of one daemon, by name. It is above both roles, and makes them; what an
 * incoming migration needs of it comes to it as operations (incoming.h).
 */
#ifndef MIGFS_REGISTRY_H
#define MIGFS_REGISTRY_H

#include "host.h"
#include "migration.h"

#include <pthread.h>
#include <stdint.h>

struct registry {
    struct host host;

    pthread_mutex_t lock; /* guards the rest; its place in the order is in host.h */
    struct migration *first;
    unsigned count;   /* in the list, */
    unsigned arrived; /* and those of them that peers have made */
};

/** registry_init - an empty one; @changed may be NULL */
void registry_init(struct registry *registry, const struct limits *limits,
                   void (*changed)(struct migration *m));
void registry_fini(struct registry *registry);

/** registry_find - the visible migration of a name, with a reference for the caller; NULL: there is none */
struct migration *registry_find(struct registry *registry, const char *name);

/**
 * registry_list - all visible migrations, each with a reference; the caller frees the array. The count, or
 * -ENOMEM.
 */
int registry_list(struct registry *registry, struct migration ***out);

/**
 * registry_add_outgoing - make a migration here, which starts or is expected from a peer
 *
 * On success @out has a reference for the caller.
 */
int registry_add_outgoing(struct registry *registry, const char *name, uid_t uid, gid_t gid,
                          struct migration **out, struct error *err);

/**
 * registry_add_incoming - make an incoming migration that a peer starts; users do not see it yet
 * @address: of the peer's, or what else tells it from others: whose limits it counts against
 *
 * A failed or cancelled incoming migration of the name makes way. If it was made here, the same is
 * expected again, with the settings and devices that were prepared. @out has a reference.
 */
int registry_add_incoming(struct registry *registry, const char *address, const struct hello *hello,
                          struct migration **out, struct error *err);

/**
 * registry_find_session - the incoming migration of a session, with a reference, or NULL
 * @peer: the digest of its sender's identity, which nobody else may use; NULL: whoever has sent it
 */
struct migration *registry_find_session(struct registry *registry, const char *name,
                                        const uint8_t session[16], const uint8_t peer[32]);

/** registry_remove - forget a migration that is not running; the user's rmdir */
int registry_remove(struct registry *registry, struct migration *m, struct error *err);

/**
 * registry_arrive - all channels of an incoming migration are there: make it active, and let users see it
 * @out: the same migration, or the expected one of its name that has taken its place and all that
 *       belongs to it; with a reference for the caller
 */
int registry_arrive(struct registry *registry, struct migration *m, struct migration **out,
                    struct error *err);

/** registry_drop - take a migration out of the list, if it is there */
void registry_drop(struct registry *registry, struct migration *m);

/** registry_shutdown - fail what runs and let nothing start any more; does not wait */
void registry_shutdown(struct registry *registry);

/**
 * registry_drain - after registry_shutdown(): forget all migrations and wait until their threads are gone
 * @timeout_ms: for how long, or HOST_FOREVER
 * Return: whether they are gone; if not, they go on using @registry.
 */
bool registry_drain(struct registry *registry, int64_t timeout_ms);

#endif
