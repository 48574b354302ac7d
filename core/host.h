/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A host: the migrations of one daemon, by name, and the limits on all of them.
 *
 * Lock order of the core, outermost first:
 *   handle.lock (in fs/)
 *   host.lock
 *   attribute_table.lock
 *   migration.lock (of an arriving one, then of the expected one that takes its place)
 *   file.lock, channel.lock (several in the order of their index), gate.lock, session.send_lock, reference.lock,
 *   accounts_lock: leaves, but for channel.lock before file.lock in file_settle()
 */
#ifndef MIGFS_HOST_H
#define MIGFS_HOST_H

#include "account.h"
#include "budget.h"
#include "compression.h"
#include "migration.h"

#include <pthread.h>
#include <stdint.h>

#define HOST_HISTORY 256
#define HOST_WINDOWS (64ull << 40) /* half of what a process has on x86-64 */

/* What a user sets when the daemon starts; constant after that. 0 of what has "peer", "channels" or "outgoing" in its name: no limit. */
struct limits {
    uint64_t max_memory;     /* bytes of all incoming migrations together */
    uint64_t max_peer_memory; /* of those of one peer */
    uint64_t max_ram;        /* bytes of one RAM image, incoming */
    uint64_t max_device;     /* bytes of one device's stream, incoming */
    uint32_t max_devices;    /* per migration */
    uint32_t max_migrations; /* that peers make */
    uint32_t max_peer_migrations; /* that one peer makes */
    uint32_t max_outgoing;   /* migrations that are made here */
    uint32_t max_channels, max_peer_channels; /* of all incoming migrations together, of those of one peer */
    uint32_t max_descriptors, max_peer_descriptors; /* the same, and undecided connections are not among them */
    uint64_t write_behind;   /* bytes that a migration has accepted and not sent */
    bool expect;             /* a peer's migration has to be expected: mkdir has made it */
    uint32_t timeout_ms;     /* how long a peer may be silent; the default of the setting */
    struct memory_place ram; /* of incoming migrations */
    struct owner owner;      /* of what appears by itself: the root, incoming migrations */
    bool preallocate;        /* have the memory of incoming RAM there before it arrives */
};

/* What became of a migration that arrived, for a source that lost the connection at the last moment. */
struct outcome_record {
    uint8_t session[16];
    enum wire_outcome outcome;
};

struct host {
    struct limits limits;
    struct budget budget;      /* of bytes, */
    struct budget channels;    /* of data channels, */
    struct budget descriptors; /* and of descriptors of incoming migrations */
    struct budget windows;     /* of address space, for all incoming RAM */
    struct decompressor_pool decompressors;
    struct attribute_table attributes; /* of the root directory and of what is in there by itself */
    bool splices;    /* writes can come in a pipe; constant once there are migrations */
    /* Called after a change that status or poll(2) can show; with no lock held; any thread. */
    void (*changed)(struct migration *m);

    pthread_mutex_t accounts_lock; /* guards the list of accounts; a leaf lock */
    struct account *accounts;

    pthread_mutex_t lock; /* guards the rest */
    pthread_cond_t gone;  /* `living` fell */
    struct migration *first;
    unsigned count;   /* in the list, */
    unsigned arrived; /* and those of them that peers have made */
    unsigned living; /* not freed yet */
    atomic_bool closed; /* no new migrations: the daemon is going away; written with the lock held */
    struct outcome_record history[HOST_HISTORY];
    unsigned history_next;
    char last_error[ERROR_MESSAGE_MAX]; /* the last failure that belongs to no migration */
};

/** host_init - an empty host; @changed may be NULL */
void host_init(struct host *host, const struct limits *limits, void (*changed)(struct migration *m));
void host_fini(struct host *host);

/** host_find - the visible migration of a name, with a reference for the caller; NULL: there is none */
struct migration *host_find(struct host *host, const char *name);

/** host_list - all visible migrations, each with a reference; the caller frees the array. The count, or -ENOMEM. */
int host_list(struct host *host, struct migration ***out);

/**
 * host_add_outgoing - make a migration here, which starts or is expected from a peer
 *
 * On success @out has a reference for the caller.
 */
int host_add_outgoing(struct host *host, const char *name, uid_t uid, gid_t gid, struct migration **out,
                      struct error *err);

/**
 * host_add_incoming - make an incoming migration that a peer starts; users do not see it yet
 * @address: the peer's; whose limits it counts against
 *
 * A failed or cancelled incoming migration of the name makes way. If it was made here, the same is
 * expected again, with the settings and devices that were prepared. @out has a reference.
 */
int host_add_incoming(struct host *host, const char *address, const struct hello *hello, struct migration **out,
                      struct error *err);

/** host_find_session - the incoming migration of a session, with a reference, or NULL */
struct migration *host_find_session(struct host *host, const char *name, const uint8_t session[16]);

/** host_remove - forget a migration that is not running; the user's rmdir */
int host_remove(struct host *host, struct migration *m, struct error *err);

/**
 * host_arrive - all channels of an incoming migration are there: make it active, and let users see it
 * @out: the same migration, or the expected one of its name that has taken its place and all that
 *       belongs to it; with a reference for the caller
 */
int host_arrive(struct host *host, struct migration *m, struct migration **out, struct error *err);

/** host_note_setback - an arriving migration has failed: say so in `error` of the one that is expected, if any */
void host_note_setback(struct host *host, const struct migration *m);

/** host_drop - take a migration out of the list, if it is there */
void host_drop(struct host *host, struct migration *m);

/** host_record - remember what became of a session; the caller holds host.lock, so that no query comes between */
void host_record(struct host *host, const uint8_t session[16], enum wire_outcome outcome);
enum wire_outcome host_outcome(struct host *host, const uint8_t session[16]);

/** host_note_error - keep a sentence about something that belongs to no migration, and log it */
void host_note_error(struct host *host, const char *message);

/** host_shutdown - fail what runs and let nothing start any more; does not wait */
void host_shutdown(struct host *host);

#define HOST_FOREVER (-1)

/**
 * host_drain - after host_shutdown(): forget all migrations and wait until their threads are gone
 * @timeout_ms: for how long, or HOST_FOREVER
 * Return: whether they are gone; if not, they go on using @host.
 */
bool host_drain(struct host *host, int64_t timeout_ms);

#endif
