/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A host: what all migrations of one daemon share. It knows none of them; the registry does.
 *
 * Lock order, outermost first. This is the one place where it is written:
 *   in fs/: handle.lock (over the making of a text), poll_lock of polling.c
 *   registry.lock
 *   attribute_table.lock of a migration or the host (over changes of a backing file's owner)
 *   migration.lock (of an arriving one, then of the expected one that takes its place)
 *   stripes that are kept (tracking_enter(); all of a range at once, and none later)
 *   leaves: host.lock, file.lock, stream.lock and under it image.lock, channel.lock (several in the order
 *     of their index; before the three of a file in file_settle()) and under it placing.lock and those of
 *     the transport, gate.lock, session.send_lock (also under placing.lock),
 *     reference.lock, accounts.lock, those of the compressors and of the decompressors, memory.mode_lock
 *     (also under memory.map_lock), completion_lock of socket.c, tls.lock, placing.lock (under channel.lock,
 *     over session.send_lock), image.hole_lock, tracking.lock, pace.lock and intake.lock (both also under
 *     migration.lock), those of rdma_queue.c (also under channel.lock), rdma_memory.c's memory_lock,
 *     and under either of them a domain's lock; in fs/: tree_lock of node.c, loop.lock, the list of handles,
 *     user_lock, and parking_lock, also under migration.lock or stream.lock
 */
#ifndef MIGFS_HOST_H
#define MIGFS_HOST_H

#include "account.h"
#include "attributes.h"
#include "budget.h"
#include "compression.h"
#include "intake.h"
#include "memory.h"
#include "wire.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct migration;
struct tls;

#define HOST_HISTORY 256
#define HOST_WINDOWS (64ull << 40) /* half of what a process has on x86-64 */

/*
 * What a user sets when the daemon starts; constant after that. 0 of what has "peer", "channels", "bandwidth"
 * or "outgoing" in its name: no limit.
 */
struct limits {
    uint64_t max_memory;                      /* bytes of all incoming migrations together */
    uint64_t max_peer_memory;                 /* of those of one peer */
    uint64_t max_ram;                         /* bytes of one RAM image, incoming */
    uint64_t max_device;                      /* bytes of one device's stream, incoming */
    uint32_t max_devices;                     /* per migration */
    uint32_t max_migrations;                  /* that peers make */
    uint32_t max_peer_migrations;             /* that one peer makes */
    uint32_t max_outgoing;                    /* migrations that are made here */
    uint32_t max_channels, max_peer_channels; /* of all incoming migrations together, of those of one peer */
    /* the same, and undecided connections are not among them */
    uint32_t max_descriptors, max_peer_descriptors;
    uint64_t max_bandwidth;  /* bytes a second of all incoming migrations together; 0: as fast as can be */
    uint64_t write_behind;   /* bytes that a migration has accepted and not sent */
    bool insecure;           /* listens and connects where others can read, and with whoever comes */
    bool expect;             /* a peer's migration has to be expected: mkdir has made it */
    uint32_t timeout_ms;     /* how long a peer may be silent; the default of the setting */
    struct memory_place ram; /* of incoming migrations */
    struct owner owner;      /* of what appears by itself: the root, incoming migrations */
    bool preallocate;        /* have the memory of incoming RAM there before it arrives */
};

/* What became of a migration that arrived, for a source that lost the connection at the last moment. */
struct outcome_record {
    uint8_t session[16], peer[32];
    enum wire_outcome outcome;
};

struct host {
    struct limits limits;
    struct accounts accounts; /* of the peers; what they may have in all */
    struct budget windows;    /* of address space, for all incoming RAM */
    struct intake intake;     /* what they receive together */
    struct decompressor_pool decompressors;
    struct attribute_table attributes; /* of the root directory and of what is in there by itself */
    struct tls *tls; /* what connections over a network are protected with; NULL: nothing; constant */
    bool splices;    /* writes can come in a pipe; constant once there are migrations */
    /*
     * Called after a change that status or poll(2) can show; with no lock held; any thread. Not looked into
     * here.
     */
    void (*changed)(struct migration *m);
    /*
     * No new migrations: the daemon is going away. Whoever starts one looks at this with migration.lock held,
     * which is taken for each migration after this is set: so each has either started by then, and is failed,
     * or does not start.
     */
    atomic_bool closed;

    pthread_mutex_t lock;  /* guards the rest; a leaf lock */
    pthread_cond_t unused; /* `users` fell */
    unsigned users;        /* migrations that are not freed yet */
    struct outcome_record history[HOST_HISTORY];
    unsigned history_next;
    char last_error[ERROR_MESSAGE_MAX]; /* the last failure that belongs to no migration */
};

/** host_init - @changed may be NULL */
void host_init(struct host *host, const struct limits *limits, void (*changed)(struct migration *m));
void host_fini(struct host *host);

/** host_use, host_unuse - something needs the host until it says that it does not any more */
void host_use(struct host *host);
void host_unuse(struct host *host);

#define HOST_FOREVER (-1)

/**
 * host_await_unused - wait until nothing needs the host
 * @timeout_ms: for how long, or HOST_FOREVER
 * Return: whether that is so.
 */
bool host_await_unused(struct host *host, int64_t timeout_ms);

/** host_close - let nothing start any more */
void host_close(struct host *host);

/**
 * host_record - remember what became of a session: before anybody can forget the migration itself
 * @peer: the digest of who has sent it
 */
void host_record(struct host *host, const uint8_t session[16], const uint8_t peer[32],
                 enum wire_outcome outcome);

/** host_outcome - what became of a session of that peer's, if that is remembered */
enum wire_outcome host_outcome(struct host *host, const uint8_t session[16], const uint8_t peer[32]);

/** host_note_error - keep a sentence about something that belongs to no migration, and log it */
void host_note_error(struct host *host, const char *message);

/** host_last_error - the last such sentence; empty: there was none */
void host_last_error(struct host *host, char out[ERROR_MESSAGE_MAX]);

#endif
