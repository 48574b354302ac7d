/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A migration, in either role: what both have of it, and what users ask of it, which it asks its role.
 *
 * It knows neither role. What was made here has the operations of the source's until a peer comes for it;
 * what a peer makes has those of the destination's from the beginning. docs/HACKING.md has the threads,
 * host.h the order of the locks. Detached threads hold a reference, and registry_drain() waits for all of
 * them.
 */
#ifndef MIGFS_MIGRATION_H
#define MIGFS_MIGRATION_H

#include "attributes.h"
#include "file.h"
#include "interrupt.h"
#include "state.h"
#include "uri.h"
#include "zerocopy_mode.h"
#include "placing_figures.h"
#include "transport.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct account;
struct host;
struct migration;
struct outgoing;
struct incoming;

/* None: it was made here, and it is not decided yet. `uri` and `ram-source` decide that it is outgoing. */
enum role { ROLE_NONE, ROLE_OUTGOING, ROLE_INCOMING };

enum choice { CHOICE_AUTO, CHOICE_ON, CHOICE_OFF };

struct settings {
    struct uri_list uris;
    unsigned channels;
    unsigned device_channels; /* the last so many channels carry devices alone; 0: all carry everything */
    uint32_t timeout_ms;
    /*
     * Whether payloads of RAM carry a checksum; those of devices always do. Auto: where the daemon looks at
     * most of them anyway.
     */
    enum choice checksum_choice;
    bool checksum; /* what came of the choice at the start; incoming: what the source has chosen */
    bool compress; /* with zstd */
    int zstd_level;
    enum zerocopy_mode zero_copy;
    /*
     * Whether data that nobody looks at goes from FUSE's pipe to the socket. Auto: where that is known to be
     * faster.
     */
    enum choice splice;
    bool verify;                /* both ends compare what both have before the commit */
    bool zero_pages;            /* look for zero pages in what is written to RAM */
    uint64_t max_bandwidth;     /* bytes a second; 0: as fast as can be. Changes while it runs, too */
    unsigned weight;            /* of it at the destination, beside others that arrive (intake.h); likewise */
    bool compare;               /* what has changed is found out, not told */
    uint32_t downtime_limit_ms; /* of `precopy`: when it is enough */
    unsigned max_rounds;        /* of it: when it gives up */
    /* Where channels go by RDMA: */
    uint64_t rdma_chunk;               /* bytes that are registered at once; a power of two */
    bool rdma_pin_all;                 /* all of the RAM is, before the migration is active */
    bool fallback;                     /* a channel that cannot go by RDMA goes by TCP */
    char tls_name[TRANSPORT_HOST_MAX]; /* the host that the peer has to prove to be; empty: that of the URI */
    uint32_t resume_ms; /* how long a lost connection is tried to be made again; 0: the migration fails */
};

/* Milliseconds of the monotonic clock; 0: has not happened. */
struct milestones {
    int64_t started;    /* setup began */
    int64_t active;     /* setup ended */
    int64_t switchover; /* `stop` was said, or else `complete` began */
    int64_t completing; /* `complete` began */
    int64_t ended;      /* a final state */
};

/* A round of the RAM: from one `sync` of it to the next. */
struct round {
    uint64_t pages, bytes; /* accepted in it, zero pages and all */
    uint64_t wire_bytes;   /* sent in it */
    int64_t time_ms;
};

#define PRECOPY_ROUNDS_SHOWN 16

/* A round of `precopy`. */
struct precopy_round {
    uint64_t scanned, changed; /* pages */
    uint64_t wire_bytes;
    double time_ms, scan_ms; /* from its start to its barrier; of it, that all scanners looked at memory */
    double dirty_rate;       /* pages a second that were changed since the round before looked at them */
    double expected_ms;      /* that a switch-over after it takes */
};

/* What `status` shows of it: the last rounds, number n at n % PRECOPY_ROUNDS_SHOWN. */
struct precopy_progress {
    unsigned count;
    double expected_ms; /* after the last one */
    struct precopy_round rounds[PRECOPY_ROUNDS_SHOWN];
};

/* What a channel did, or all of them. */
struct channel_record {
    struct file_totals ram, devices;
    uint64_t wire_bytes; /* headers and all */
    /* Source: what was sent without a copy, and with one; and out of pipes, which is in no other counter. */
    struct zerocopy_counters copies;
    uint64_t spliced_bytes;
    uint64_t placed_bytes; /* the part of wire_bytes that the source's card has written by itself */
    const char *peer;      /* source, one channel's: where it goes */
};

/* A write to a file, for migration_write(). */
struct file_write {
    struct file *file;
    const void *buf; /* @len bytes, or NULL: */
    /* has them and nothing else; on failure, also a later one of the migration, some are still there */
    int pipe;
    size_t len;
    uint64_t offset;
    const struct interrupt *interrupt;
    /* The data is the daemon's, and its place in the order is fixed: the writer can be answered. */
    void (*accepted)(void *arg);
    void *arg;
};

/* What `status` says of a role beside the records, as it is now. */
struct migration_figures {
    uint64_t ram_size;   /* as far as it is known */
    uint64_t main_bytes; /* source: sent on the main channel */
    uint64_t queued;     /* source: bytes that are accepted, or asked for, and not sent */
    uint64_t verified;   /* source: bytes of RAM that `complete` has found the same at both ends so far */
    uint64_t barrier_ns; /* destination: nanoseconds that all receivers together were blocked at barriers */
    uint64_t held_ns;    /* destination: nanoseconds that a rate kept receivers from receiving */
    /* source: why a channel goes by TCP that should have gone by RDMA; empty: none does */
    char fallen_back[ERROR_MESSAGE_MAX];
    bool places; /* source: what follows says something */
    struct placing_figures placing;
    struct transport_figures transport;
    uint64_t drains;                /* flushes of channels that place, which waited for what was in flight */
    struct transport_identity peer; /* who is at the other end; without a name: nobody has made sure */
    const char *path;               /* source: which way RAM takes into the sockets; NULL before the start */
    char ram_path[4096];            /* destination: where the RAM image can be mapped; empty: nowhere */
};

/*
 * What `status` shows: the states and times as they were at one moment, and the counters as they were just
 * after it.
 */
struct migration_snapshot {
    enum state state;
    bool paused; /* and why */
    struct error pause_reason;
    uint64_t pauses, paused_ms; /* so far */
    const char *role;
    bool incoming;
    struct milestones times;
    struct settings settings;
    struct error failure;
    char warning[ERROR_MESSAGE_MAX];
    uint64_t generation, rounds;
    struct precopy_progress precopy;
    struct round round;
    uint32_t devices;
    struct channel_record *records; /* of each channel, and of all together */
    unsigned channels;
    struct migration_figures figures;
};

/*
 * What a migration asks of its role. All of them are there, and each is called with the migration that it is
 * about; no lock is held but where it is said. What users ask for is described at the function of its name,
 * migration_NAME().
 */
struct role_operations {
    /* Free what the role has of it; nobody else knows the migration any more. */
    void (*free)(struct migration *m);
    /* The state has become final: wake all that waits. The migration may have been started again already. */
    void (*ended)(struct migration *m);
    /* Make those who wait look at their interrupts. */
    void (*kick)(struct migration *m);
    /* Whether the destination has been told to complete, so that it alone decides. migration.lock is held. */
    bool (*is_committing)(const struct migration *m);
    /*
     * The daemon goes away, and the destination, which decides, is asked once more. migration.lock is held.
     */
    void (*leave)(struct migration *m, const struct error *reason);
    /* The user has removed it: give up what nobody needs any more, and end the waits for it. */
    void (*release)(struct migration *m);
    /* How many data channels there are to tell apart. */
    unsigned (*channels)(struct migration *m);
    /* What a channel has done by itself: all of the record but what files count. */
    void (*count)(struct migration *m, unsigned channel, struct channel_record *record);
    void (*figures)(struct migration *m, struct migration_figures *out);
    /* Whether the settings can be changed now. migration.lock is held, and given up while it waits. */
    int (*may_change_settings)(struct migration *m, const struct interrupt *interrupt, struct error *err);
    /* Those that can be changed while it runs may have been: max_bandwidth. migration.lock is held. */
    void (*settings_changed)(struct migration *m);

    int (*start)(struct migration *m, const struct interrupt *interrupt, struct error *err);
    int (*flush)(struct migration *m, struct file *file, const struct interrupt *interrupt,
                 struct error *err);
    int (*sync)(struct migration *m, struct file *file, const struct interrupt *interrupt, struct error *err);
    int (*precopy)(struct migration *m, const struct interrupt *interrupt, struct error *err);
    int (*complete)(struct migration *m, const struct interrupt *interrupt, struct error *err);
    int (*digest)(struct migration *m, struct file *file, const struct interrupt *interrupt,
                  uint8_t digest[DIGEST_SIZE], struct error *err);

    int (*write)(struct migration *m, const struct file_write *write, struct error *err);
    bool (*splices)(const struct migration *m, const struct file *file, size_t len, uint64_t offset);
    int (*discard)(struct migration *m, struct file *file, uint64_t offset, uint64_t len,
                   const struct interrupt *interrupt, struct error *err);
    int (*truncate)(struct migration *m, struct file *file, uint64_t size, const struct interrupt *interrupt,
                    struct error *err);

    int (*create_device)(struct migration *m, const char *name, bool exclusive,
                         const struct interrupt *interrupt, struct file **out, struct error *err);
    int (*remove_device)(struct migration *m, const char *name, const struct interrupt *interrupt,
                         struct error *err);
    int (*rename_device)(struct migration *m, const char *from, const char *to, bool exclusive,
                         const struct interrupt *interrupt, struct error *err);
    void (*open_writer)(struct migration *m, struct file *file);
    void (*close_writer)(struct migration *m, struct file *file);
    void (*begin_anew)(struct migration *m, struct file *file);

    int (*set_reference)(struct migration *m, int fd, const char *text, pid_t writer,
                         const struct interrupt *interrupt, struct error *err);
    void (*reference_text)(struct migration *m, char *out, size_t size);
    ssize_t (*read_ram)(struct migration *m, uint64_t offset, void *buf, size_t len);
    uint64_t (*dirty_size)(struct migration *m);
    size_t (*read_dirty)(struct migration *m, uint64_t offset, void *buf, size_t len);
    int (*mark_dirty)(struct migration *m, const void *bitmap, size_t len, uint64_t offset,
                      struct error *err);
};

struct migration {
    struct host *host;
    struct migration *next; /* in the registry's list; guarded by registry.lock */
    bool listed;            /* whether it is in the list; guarded by registry.lock */
    bool visible;           /* whether users are shown it; guarded by registry.lock */
    /*
     * Written with the lock held, and once from none to what it then stays. A thread that sees the role
     * without the lock sees what belongs to it, too; one that sees none checks again with the lock held.
     */
    _Atomic enum role role;
    /*
     * What its role does: the source's for what was made here, until a peer comes for it. Changed before the
     * role becomes incoming, with the lock held; release.
     */
    const struct role_operations *_Atomic operations;
    const struct role_operations *first_operations; /* those that it was made with; constant */
    struct account *maker; /* the peer that has made it, with a reference; NULL: it was made here; constant */
    atomic_uint opens;     /* files of it that users have open */
    char name[WIRE_NAME_SIZE];
    struct attribute_table attributes;
    atomic_uint refs;
    atomic_uint watchers; /* how many poll a stream of this migration: they are told of each packet */
    atomic_uint waiting;  /* requests that hold a worker and can wait; for fs, like the next one */
    atomic_uint parked;   /* reads that wait and hold none */

    pthread_mutex_t lock;   /* guards what follows */
    pthread_cond_t changed; /* anything that follows has changed, or a waiter was interrupted */
    /* Written with the lock held; the data path reads it without. */
    _Atomic enum state state;
    bool was_active;
    struct follower *followers; /* they are told when it is over */
    bool digesting;             /* somebody takes the digests of its files for a reader; the others wait */
    bool removed;               /* rmdir has taken it away: it cannot be started any more */
    uint64_t generation;        /* counts the changes of state */
    struct error failure;       /* why the state is failed or cancelled */
    struct error last_error;    /* what `error` shows */
    /* what the user should look at, though nothing has failed; empty: nothing */
    char warning[ERROR_MESSAGE_MAX];
    struct settings settings; /* written only while the migration can be started */
    struct milestones times;
    unsigned lost; /* connections that are lost and made again; while there are some, it is paused */
    struct error pause_reason;       /* why the first of them was lost */
    bool pause_is_news;              /* nothing has failed since: `error` shows it */
    uint64_t pauses;                 /* so far, with this one */
    int64_t paused_since, paused_ms; /* this one; all that are over */
    int64_t pause_logged_ms;         /* when the log was told of one */
    bool pause_is_logged;            /* this one */
    bool stopped;                    /* `stop` has marked the switchover */
    uint64_t rounds;                 /* syncs of RAM that are done */
    struct round last_round;
    struct precopy_progress precopy;
    uint8_t session_id[16];
    struct transport_identity peer; /* incoming: who sends it; without a name: nobody has made sure */
    /*
     * In the order in which they were made, each with a reference; [0] is RAM, which stays until the
     * migration is freed. Others are looked at with the lock held, or with a reference: migration_get_file().
     */
    struct file *_Atomic *files;
    _Atomic uint32_t file_count; /* no entry behind it is used */
    /* of devices that have been removed, by channel; guarded by the lock */
    struct file_totals gone[WIRE_CHANNELS_MAX];

    /*
     * When it is over: what each channel did, `past_channels` of them, and in one more entry all of
     * them together. Set once, before what it was made of goes; then constant.
     */
    struct channel_record *past;
    unsigned past_channels;

    struct outgoing *out; /* not NULL when it was made here; constant */
    struct incoming *in;  /* set before the operations become its; then constant */
};

/** migration_get - another reference */
struct migration *migration_get(struct migration *m);
/**
 * migration_start_thread - make a detached thread
 * @run: gets the migration, with a reference that it drops at the end; names itself
 */
int migration_start_thread(struct migration *m, void *(*run)(void *), struct error *err);

/** migration_put - drop a reference; the last one frees. NULL is fine. */
void migration_put(struct migration *m);

/** migration_state - as it is now */
static inline enum state migration_state(const struct migration *m)
{
    return m->state;
}

/** migration_open_file, migration_close_file - a user has opened a file of it, or closed it */
static inline void migration_open_file(struct migration *m)
{
    atomic_fetch_add(&m->opens, 1);
}

static inline void migration_close_file(struct migration *m)
{
    atomic_fetch_sub(&m->opens, 1);
}

/** migration_is_incoming - whether a peer sends it, and m->in is there; if not, m->out is */
static inline bool migration_is_incoming(const struct migration *m)
{
    return atomic_load_explicit(&m->role, memory_order_acquire) == ROLE_INCOMING;
}

/** migration_is_outgoing - whether it is decided that it is sent from here */
static inline bool migration_is_outgoing(const struct migration *m)
{
    return atomic_load_explicit(&m->role, memory_order_acquire) == ROLE_OUTGOING;
}

/** migration_operations - of the role that it has now */
static inline const struct role_operations *migration_operations(const struct migration *m)
{
    return atomic_load_explicit(&m->operations, memory_order_acquire);
}

/**
 * migration_new - for the one who makes it, and then sets m->out or m->in: state none, one reference
 * @role: none, or incoming
 */
struct migration *migration_new(struct host *host, enum role role, const struct role_operations *operations,
                                const char *name, uint32_t max_devices);

/**
 * migration_move - change the state; the caller holds the lock
 * @failure: kept when the new state is failed or cancelled; the first one wins
 *
 * Return: whether the step exists. The caller calls migration_announce() after
 * unlocking.
 */
bool migration_move(struct migration *m, enum state to, const struct error *failure);

/**
 * migration_lose, migration_find_again - a connection was lost, and will be made again; one that was lost has
 * been made again
 * @reason: why; the first one counts
 *
 * Between the two it is paused. No lock held.
 */
void migration_lose(struct migration *m, const struct error *reason);
void migration_find_again(struct migration *m);

/** migration_is_paused - whether a connection is lost now */
bool migration_is_paused(struct migration *m);

/** migration_announce - tell those who poll; no lock held */
void migration_announce(struct migration *m);

/**
 * migration_fail - end a running migration with a reason; any thread, no lock held
 *
 * The state becomes cancelled when the cause is CAUSE_CANCELLED, failed
 * otherwise, and all who wait are told. Does nothing in a final state.
 */
void migration_fail(struct migration *m, const struct error *failure);

/** migration_shut_down - the daemon is going away; no lock held */
void migration_shut_down(struct migration *m);

/**
 * migration_note_error - what `error` shows next; no lock held. No error leaves it as it is.
 *
 * Why a migration failed or was cancelled stays until it is started again: what is refused meanwhile
 * goes to host_note_error(), with the migration's name.
 */
void migration_note_error(struct migration *m, const struct error *err);

/* A line of migration_is_over(): the state and a sentence. */
#define MIGRATION_VERDICT_MAX (ERROR_MESSAGE_MAX + 16)

/**
 * migration_is_over - whether it has ended, so that nothing more comes of it unless it is started again
 * @verdict: if it has, a line in MIGRATION_VERDICT_MAX bytes: "completed", or "failed: " or "cancelled: " and
 * why
 *
 * A migration that was removed before it was started, and one whose daemon goes away, has ended, too.
 */
bool migration_is_over(struct migration *m, char *verdict);

/**
 * migration_follow - be told once, with migration.lock held, that the migration is over
 * Return: whether @follower waits now; if not, it is over already.
 */
bool migration_follow(struct migration *m, struct follower *follower);

/** migration_unfollow - leave; whether @follower had not been told: if so, it will not be */
bool migration_unfollow(struct migration *m, struct follower *follower);

/** migration_tell - tell the followers, if the migration is over; the caller holds the lock */
void migration_tell(struct migration *m);

/** migration_kick - make all who wait look at their interrupts; no lock held */
void migration_kick(struct migration *m);

/**
 * migration_file - the file of a slot, or NULL
 *
 * Without a reference: for RAM, for callers that know that it stays, or with the lock held.
 */
struct file *migration_file(struct migration *m, uint32_t slot);

/**
 * migration_checks - whether the payloads of a file carry a checksum; those of devices do, whatever the
 * settings say
 */
static inline bool migration_checks(const struct migration *m, const struct file *file)
{
    return file->id != WIRE_RAM || m->settings.checksum;
}

/**
 * migration_get_file - the file of an id, with a reference for the caller; NULL: there is none; no lock held
 */
struct file *migration_get_file(struct migration *m, uint32_t id);

/**
 * migration_files - all files, in the order of their ids, each with a reference; no lock held
 * @out: freed by migration_put_files()
 * @gone: NULL, or set to what those did that have been removed, for WIRE_CHANNELS_MAX channels
 * Return: the count, or -ENOMEM.
 */
int migration_files(struct migration *m, struct file ***out, struct file_totals *gone);
void migration_put_files(struct file **files, int count);

/** migration_device - the device of a name, without a reference, or NULL; the caller holds the lock */
struct file *migration_device(struct migration *m, const char *name);

/**
 * migration_find_device - the device of a name, with a reference for the caller; NULL: there is none; no lock
 * held
 */
struct file *migration_find_device(struct migration *m, const char *name);

/**
 * migration_change - what chown(2), chmod(2) and utimensat(2) ask for; who may is the caller's business
 * @which: in the migration's table, or in one of its devices; @directory: where that is
 * @what: ATTRIBUTE_UID, ...
 *
 * The backing file of RAM gets the same; nothing is changed when it cannot.
 */
int migration_change(struct migration *m, struct attributes *which, enum attribute_place directory,
                     unsigned what, const struct attributes *to, struct error *err);

/**
 * migration_settle_file - a file that arrives has its memory: from now on its owner is known
 *
 * Before users see it. The backing file, if any, is the owner's, too.
 */
int migration_settle_file(struct migration *m, struct file *file, struct error *err);

/**
 * migration_records - what each channel did so far, or in all; no lock held
 * @channels: how many are told apart
 * @out: an entry for each of them, and one more for all together; the caller frees it
 */
int migration_records(struct migration *m, unsigned *channels, struct channel_record **out);

/**
 * migration_keep_records - it is over: keep the records, so that what they are made of can go; no lock held
 * @each: those of each channel, too
 */
int migration_keep_records(struct migration *m, bool each);

/** migration_drop_devices - take the devices that a peer has announced out of the table; no lock held */
void migration_drop_devices(struct migration *m);

/**
 * migration_add_file - publish a file, whose reference is the table's then; the caller holds the lock and has
 * checked the count
 */
void migration_add_file(struct migration *m, struct file *file);

/** migration_add_file_at - the same, at a place that is free */
void migration_add_file_at(struct migration *m, struct file *file, uint32_t slot);

/** migration_free_slot - the first free place for a device in the list; the caller holds the lock */
uint32_t migration_free_slot(const struct migration *m);

/**
 * migration_remove_file - take a device out of the list; the caller holds the lock, and may go on counting
 * what it did Return: it, with the list's reference, to be dropped without the lock.
 */
struct file *migration_remove_file(struct migration *m, struct file *file);

/** migration_count_devices - how many there are; the caller holds the lock */
uint32_t migration_count_devices(const struct migration *m);

/**
 * migration_allows - whether a command of the source may be given; the caller holds the lock
 * @err: why not
 */
int migration_allows(struct migration *m, enum command command, struct error *err);

/** migration_become_outgoing - what the user has set makes no sense otherwise; the caller holds the lock */
void migration_become_outgoing(struct migration *m);

/** migration_become_incoming - a peer has come for it, and m->in is there; the caller holds the lock */
void migration_become_incoming(struct migration *m, const struct role_operations *operations);

/**
 * migration_expect_nothing - end the waits of those who read devices that no peer will fill; the caller holds
 * the lock
 */
void migration_expect_nothing(struct migration *m);

/** migration_stop - the command `stop`: the VM has been stopped, and the downtime counts from here */
int migration_stop(struct migration *m, struct error *err);

/**
 * migration_cancel - the command `cancel`, in either role
 * @err: why not
 */
int migration_cancel(struct migration *m, struct error *err);

/*
 * What users ask for. At the destination, where it is for the source to do, each fails with CAUSE_READ_ONLY,
 * but for what is said. All may wait, until @interrupt is hit (NULL: it is not).
 */

/**
 * migration_start - connect, and become active
 *
 * After a `cancel`, waits for the `start` before it to leave.
 */
static inline int migration_start(struct migration *m, const struct interrupt *interrupt, struct error *err)
{
    return migration_operations(m)->start(m, interrupt, err);
}

/** migration_flush - wait until what was accepted (for @file, or at all when it is NULL) has left */
static inline int migration_flush(struct migration *m, struct file *file, const struct interrupt *interrupt,
                                  struct error *err)
{
    return migration_operations(m)->flush(m, file, interrupt, err);
}

/**
 * migration_precopy - send the RAM of a running VM in rounds until a switch-over would be short enough
 *
 * CAUSE_ROUNDS: it would still not be after as many as are allowed; it can be asked for again.
 */
static inline int migration_precopy(struct migration *m, const struct interrupt *interrupt, struct error *err)
{
    return migration_operations(m)->precopy(m, interrupt, err);
}

/** migration_sync - wait until the destination has applied it */
static inline int migration_sync(struct migration *m, struct file *file, const struct interrupt *interrupt,
                                 struct error *err)
{
    return migration_operations(m)->sync(m, file, interrupt, err);
}

/** migration_complete - the final barrier, the check and the hand-over */
static inline int migration_complete(struct migration *m, const struct interrupt *interrupt,
                                     struct error *err)
{
    return migration_operations(m)->complete(m, interrupt, err);
}

/** migration_digest - of what the destination has of a file, at either end */
static inline int migration_digest(struct migration *m, struct file *file, const struct interrupt *interrupt,
                                   uint8_t digest[DIGEST_SIZE], struct error *err)
{
    return migration_operations(m)->digest(m, file, interrupt, digest, err);
}

/**
 * migration_begin_digests - nobody else takes the digests of its files until migration_end_digests()
 *
 * They read all of the memory: one reader at a time will do.
 */
int migration_begin_digests(struct migration *m, const struct interrupt *interrupt, struct error *err);
void migration_end_digests(struct migration *m);

/**
 * migration_write - take a write, and send it
 * @write: the data is left alone by the caller until this returns
 *
 * Calls @write->accepted once, unless it fails. It blocks before that while too much is accepted and not
 * sent, and after it while this thread sends. Later failures are the migration's. At the destination a
 * completed image is the user's, and is written in place.
 */
static inline int migration_write(struct migration *m, const struct file_write *write, struct error *err)
{
    return migration_operations(m)->write(m, write, err);
}

/**
 * migration_splices - whether migration_write() takes a write of data that is in a pipe: nobody has to look
 * at it
 */
static inline bool migration_splices(const struct migration *m, const struct file *file, size_t len,
                                     uint64_t offset)
{
    return migration_operations(m)->splices(m, file, len, offset);
}

/** migration_discard - punch a hole, ordered with the writes */
static inline int migration_discard(struct migration *m, struct file *file, uint64_t offset, uint64_t len,
                                    const struct interrupt *interrupt, struct error *err)
{
    return migration_operations(m)->discard(m, file, offset, len, interrupt, err);
}

/** migration_truncate - set the size; before `start` it declares it */
static inline int migration_truncate(struct migration *m, struct file *file, uint64_t size,
                                     const struct interrupt *interrupt, struct error *err)
{
    return migration_operations(m)->truncate(m, file, size, interrupt, err);
}

/**
 * migration_create_device - the device of a name, made if it is not there
 * @exclusive: CAUSE_EXISTS when it is
 * @out: has a reference for the caller
 */
static inline int migration_create_device(struct migration *m, const char *name, bool exclusive,
                                          const struct interrupt *interrupt, struct file **out,
                                          struct error *err)
{
    return migration_operations(m)->create_device(m, name, exclusive, interrupt, out, err);
}

/** migration_remove_device - remove the device of a name; the destination follows */
static inline int migration_remove_device(struct migration *m, const char *name,
                                          const struct interrupt *interrupt, struct error *err)
{
    return migration_operations(m)->remove_device(m, name, interrupt, err);
}

/**
 * migration_rename_device - give a device another name, in the place of the one that has it
 * @exclusive: CAUSE_EXISTS when there is one
 */
static inline int migration_rename_device(struct migration *m, const char *from, const char *to,
                                          bool exclusive, const struct interrupt *interrupt,
                                          struct error *err)
{
    return migration_operations(m)->rename_device(m, from, to, exclusive, interrupt, err);
}

/**
 * migration_open_writer, migration_close_writer - an open handle that can write came or went
 *
 * A stream ends when its last writer has closed it and something was ever written to it: a reader
 * is to wait for the first byte. At the destination nobody writes, and nothing happens.
 */
static inline void migration_open_writer(struct migration *m, struct file *file)
{
    migration_operations(m)->open_writer(m, file);
}

static inline void migration_close_writer(struct migration *m, struct file *file)
{
    migration_operations(m)->close_writer(m, file);
}

/**
 * migration_begin_anew - a device was emptied by one who has opened it to write it again: until then it does
 * not end
 */
static inline void migration_begin_anew(struct migration *m, struct file *file)
{
    migration_operations(m)->begin_anew(m, file);
}

/**
 * migration_set_reference - the RAM will come by reference, or (@fd negative) through `ram` alone
 * @fd: of the file that has it; taken over, whatever this returns
 * @text: what reading the setting gives
 * @writer: the process that names it
 *
 * Where no size was declared, the file's is. An active migration takes a reference too, when it has none;
 * that can wait until the destination takes the size. A process that has the file mapped privately is warned
 * of, @writer first.
 */
static inline int migration_set_reference(struct migration *m, int fd, const char *text, pid_t writer,
                                          const struct interrupt *interrupt, struct error *err)
{
    return migration_operations(m)->set_reference(m, fd, text, writer, interrupt, err);
}

/** migration_reference_text - what the reference is called; empty when there is none */
static inline void migration_reference_text(struct migration *m, char *out, size_t size)
{
    migration_operations(m)->reference_text(m, out, size);
}

/**
 * migration_read_ram - read back the RAM at the source, where it comes by reference
 *
 * Return: the count, 0 past the end; -EOPNOTSUPP: it does not, and what is pushed is not kept; or another
 * negative errno.
 */
static inline ssize_t migration_read_ram(struct migration *m, uint64_t offset, void *buf, size_t len)
{
    return migration_operations(m)->read_ram(m, offset, buf, len);
}

/** migration_dirty_size - bytes of a whole dirty bitmap of the RAM; 0 when it does not come by reference */
static inline uint64_t migration_dirty_size(struct migration *m)
{
    return migration_operations(m)->dirty_size(m);
}

/**
 * migration_read_dirty - the bitmap of the pages that were asked for and have not been taken up yet
 * Return: the count; 0 past its end, and when the migration is over.
 */
static inline size_t migration_read_dirty(struct migration *m, uint64_t offset, void *buf, size_t len)
{
    return migration_operations(m)->read_dirty(m, offset, buf, len);
}

/**
 * migration_mark_dirty - send the pages of a dirty bitmap (reference_mark()), when the migration is active
 */
static inline int migration_mark_dirty(struct migration *m, const void *bitmap, size_t len, uint64_t offset,
                                       struct error *err)
{
    return migration_operations(m)->mark_dirty(m, bitmap, len, offset, err);
}

/* When a setting can be changed though the migration runs. */
enum setting_life {
    SETTING_FIXED = 0,
    SETTING_LIVE_OUTGOING = 1,
    SETTING_LIVE_INCOMING = 2,
    SETTING_LIVE = SETTING_LIVE_OUTGOING | SETTING_LIVE_INCOMING,
};

/**
 * migration_change_settings - change them while they can be changed; may wait for a `start` that was
 * cancelled
 * @life: of what is changed
 * @change: with the lock held
 */
int migration_change_settings(struct migration *m, enum setting_life life,
                              int (*change)(struct settings *settings, void *arg, struct error *err),
                              void *arg, const struct interrupt *interrupt, struct error *err);

/** migration_settings - as they are now */
void migration_settings(struct migration *m, struct settings *out);

/** migration_last_error - what `error` shows; empty: nothing */
void migration_last_error(struct migration *m, char out[ERROR_MESSAGE_MAX]);

/** migration_generation - it changes with the state */
uint64_t migration_generation(struct migration *m);

/** migration_read_cause - why a read of a stream fails that will never end (file_read()'s -ECONNRESET) */
enum cause migration_read_cause(struct migration *m);

/** migration_take_snapshot - what `status` shows; 0 or -ENOMEM */
int migration_take_snapshot(struct migration *m, struct migration_snapshot *out);
void migration_drop_snapshot(struct migration_snapshot *snapshot);

#endif
