/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One attempt to reach a peer: the main channel, the data channels, and what the peer
 * has said of itself. It knows no migration. The same migration can make another one,
 * after this one or beside it: each has a session id of its own, by which the peer
 * tells them apart, and counts from zero.
 *
 * Lifetime
 *   connection_open() returns it when all its channels are there, and nobody else knows
 *   it. Its owner publishes it with a store that releases; a thread that loads the
 *   pointer with acquire needs no lock for what is constant here, and never for the
 *   gate and the channels, which have locks of their own. So it stays until no thread can
 *   have the pointer: until the migration is freed, however long ago the connection broke.
 *
 *   When it is over: connection_break() lets nobody wait any more, connection_hang_up()
 *   waits until nobody sends and closes it, connection_end() gives up the rest of its
 *   memory. The counters stay.
 *
 *   One thread at a time is its reader: the one that calls session_step() on the main channel.
 */
#ifndef MIGFS_CONNECTION_H
#define MIGFS_CONNECTION_H

#include "channel.h"
#include "compression.h"
#include "file.h"
#include "gate.h"
#include "pace.h"
#include "placing.h"
#include "session.h"
#include "stall.h"
#include "tls.h"
#include "uri.h"
#include "zerocopy.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* Whether bytes that come in a pipe, and that nobody looks at, go out of it. AUTO: where that is faster. */
enum connection_splice { CONNECTION_SPLICE_NEVER, CONNECTION_SPLICE_AUTO, CONNECTION_SPLICE_ALWAYS };

/* What an attempt is made with. All is copied. */
struct connection_config {
    const struct uri_list *uris; /* one at least */
    const char *name;            /* of the migration, WIRE_NAME_MAX at most */
    unsigned channels;
    unsigned device_channels; /* the last so many of them carry devices alone */
    uint32_t timeout_ms;
    uint64_t features; /* WIRE_FEATURE_... */
    enum zerocopy_mode zero_copy;
    enum connection_splice splice;
    bool compress;
    int zstd_level;
    uint64_t write_behind;  /* how many bytes may be accepted and not sent */
    uint64_t rdma_chunk;    /* how much memory is registered at once; a power of two, a stripe at least */
    bool fallback;          /* a channel that cannot go by RDMA goes by TCP */
    struct tls *tls;        /* what goes over a network is protected with it; NULL: nothing is */
    const char *tls_name;   /* the host that the peer has to prove to be; empty: that of the URI */
    bool insecure;          /* what cannot be protected goes all the same */
    uint64_t max_bandwidth; /* bytes a second; 0: as fast as can be */
    uint32_t resume_ms;     /* how long a lost connection is tried to be made again; 0: not at all */
    int cancel_fd; /* what waits gives up when it is readable; stays open as long as connection_open() runs */
    /*
     * A channel is broken. With no lock held, by the thread that noticed. The main channel usually says why
     * a moment later: unless it does within @delay_ms, this is the reason.
     */
    void (*failed)(void *arg, const struct error *reason, int64_t delay_ms);
    /*
     * One of its connections is lost, and is being made again; one has been. Where that is done, both are
     * there. As @failed.
     */
    void (*lost)(void *arg, const struct error *reason);
    void (*found_again)(void *arg);
    void *arg;
};

/* What the peer has last said of what it has done. */
struct progress {
    uint64_t work; /* that moves no channel */
    struct {
        uint64_t received, applied; /* bytes, packets */
    } channel[WIRE_CHANNELS_MAX];
};

struct connection {
    /* Constant: */
    struct uri_list uris;
    bool fallback;   /* may be used */
    struct tls *tls; /* NULL: nothing is protected */
    char tls_name[TRANSPORT_HOST_MAX];
    bool insecure;
    struct transport_identity peer; /* of the main channel; all the others have it, too */
    struct hello hello; /* what all its hellos say, but for the kind and the channel; has the session id */
    struct transport_group group; /* of all its channels */
    enum zerocopy_mode zero_copy;
    struct hello_reply limits; /* the peer's */
    /* Why a channel goes by TCP that should have gone by RDMA; empty: none does. The opener's, then constant.
     */
    char fallen_back[ERROR_MESSAGE_MAX];
    uint32_t copy_max; /* a payload up to this size is copied, whichever channel takes it */
    struct channel *channels;
    unsigned channel_count;
    struct compressor *compressor; /* NULL: nothing is compressed */
    bool splices;                  /* what comes in a pipe and is not looked at goes out of it */
    void (*failed)(void *arg, const struct error *reason, int64_t delay_ms);
    void (*lost)(void *arg, const struct error *reason);
    void (*found_again)(void *arg);
    void *failed_arg;

    struct session main;
    bool places;            /* payloads of RAM can be placed; constant */
    struct placing placing; /* if they can: what of the peer's RAM is exposed */
    struct pace pace;
    struct gate gate;         /* apart from what is constant: all who write change it */
    atomic_bool committed;    /* the peer has been told to complete, and needs no data channels any more */
    _Atomic uint64_t last_id; /* of a message that has an answer */

    /* The reader's: */
    struct progress progress;
    struct stall_watch watch;
    uint64_t shaken_at; /* how many packets had been applied at the last connection_shake(), and one */
    bool peer_aborted;  /* the peer has said why it gives up: it needs no goodbye */
};

/**
 * connection_open - connect and exchange hellos; blocks
 * @out: has all channels
 *
 * On failure the peer is told why, if it has answered at all.
 */
int connection_open(const struct connection_config *config, struct connection **out, struct error *err);

/** connection_free - close what is open and free it; nobody else knows it any more. NULL is fine */
void connection_free(struct connection *conn);

/** connection_next_id - another number for a message that has an answer: from 1; any thread */
static inline uint64_t connection_next_id(struct connection *conn)
{
    return atomic_fetch_add_explicit(&conn->last_id, 1, memory_order_relaxed) + 1;
}

/** connection_home - the channel of a place in a file */
static inline struct channel *connection_home(struct connection *conn, const struct file *file,
                                              uint64_t offset)
{
    return &conn->channels[file_home(file, offset)];
}

/**
 * connection_lock_channels - lock the channels that @need names, in the order of their index
 * Return: false, with nothing locked: one of them is closed.
 */
bool connection_lock_channels(struct connection *conn, const bool *need);
void connection_unlock_channels(struct connection *conn, const bool *need);

/**
 * connection_count - the number of the last packet accepted on each channel
 * @file: for it; NULL: at all
 * @counts: one for each channel
 *
 * Somebody is going to wait for them: nobody lingers over what is queued.
 */
void connection_count(struct connection *conn, const struct file *file, uint64_t *counts);

/** connection_check_size - whether the peer allows a file to have @size bytes */
int connection_check_size(const struct connection *conn, struct file *file, uint64_t size, struct error *err);

/** connection_channel_bytes - sent on a channel, headers and all; also when it is over */
uint64_t connection_channel_bytes(struct connection *conn, unsigned index);
/** connection_wire_bytes - on all data channels */
uint64_t connection_wire_bytes(struct connection *conn);

/** connection_note_progress - WIRE_PROGRESS; the reader's */
int connection_note_progress(struct connection *conn, struct wire_reader *body, struct error *err);

/** connection_watch - from now on what is owed has to move (stall.h); the reader's, or before there is one */
void connection_watch(struct connection *conn);

/**
 * connection_look - whether a channel, or the peer as a whole, stands still while something is due; the
 * reader's
 * @answer_due: an answer of the peer's is
 * @reason: which one, when one does
 *
 * To be called when stall_is_due().
 */
bool connection_look(struct connection *conn, bool answer_due, struct error *reason);

/**
 * connection_ask - connect once more, and ask what became of the session
 * @wait: what ends the attempt
 */
int connection_ask(struct connection *conn, const struct transport_wait *wait, enum wire_outcome *outcome,
                   struct error *err);

/**
 * connection_shake - what stands still may do so because of its connections: have them made again
 * Return: false: they are not, or they were, and nothing has moved since. The reader's.
 */
bool connection_shake(struct connection *conn);

/**
 * connection_greet_again - connect once more, in the place of a connection that is lost
 * @index: of the data channel; -1: the main one
 * @reply: filled in as far as the peer has answered
 *
 * Any thread.
 */
int connection_greet_again(struct connection *conn, int index, const struct transport_wait *wait,
                           struct transport **out, struct hello_reply *reply, struct error *err);

/** connection_resumes - whether its connections are made again when they are lost */
static inline bool connection_resumes(const struct connection *conn)
{
    return conn->hello.resume_ms > 0;
}

/** connection_break - it is over: nobody waits for room or for a channel any more, and nothing more is
 * accepted */
void connection_break(struct connection *conn);

/** connection_await_quiet - after connection_break(): wait until nobody sends from memory that can go then */
void connection_await_quiet(struct connection *conn);

/**
 * connection_hang_up - after connection_break(): send what is queued on the main channel, and close all
 *
 * Waits until nobody sends, and every buffer is back. The reader's, and the last that it does.
 */
void connection_hang_up(struct connection *conn);

/**
 * connection_end - after connection_hang_up(): give up what nothing needs any more
 *
 * Under the lock, if any, with which others call session_wake().
 */
void connection_end(struct connection *conn);

#endif
