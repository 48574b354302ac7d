/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A card in memory, in the place of libibverbs and librdmacm: what transport/rdma* calls of them is defined
 * here, and a test has both ends of every connection in its own process.
 *
 * What it models
 *   Memory: protection domains, registered ranges with keys, bounds and rights, a limit as RLIMIT_MEMLOCK is
 *   one. A range that is no longer mapped when its registration goes ends the test.
 *   Completion queues: an event is for a completion that comes after the queue was armed. A queue that
 *   overflows, or goes while an event of its own is not acknowledged, ends the test: the one loses
 *   completions, the other waits for ever.
 *   Reliable queue pairs: work requests are done in their order. A send queue has as many places as were
 * asked for, and one is free again when its completion, or that of a later one, was polled. A SEND takes a
 * receive of the peer's; when there is none, that is an RNR, counted, and it is tried again. An RDMA WRITE
 * needs a key of the peer queue pair's protection domain, bounds and the right to write. Work requests may be
 * inline and unsignaled. After a failure the rest is flushed, in the order in which it was posted; what a
 * peer refuses breaks both queue pairs. The connection manager: bind, listen, resolve, connect, accept,
 * reject, disconnect, migrate, the removal of a device; private data arrives with zeros behind it, as it does
 * over InfiniBand. An id that is destroyed before its events are acknowledged, which waits for ever, or with
 * its queue pair, ends the test.
 *
 * What it does not
 *   Time: a peer that is gone lets work requests wait until the test, or the owner, ends that. Packets,
 * paths, ports, reads, atomics, shared receives, other kinds of queue pairs.
 *
 * Unless a test says otherwise everything is done within the call that asks for it. The first device has the
 * loopback addresses, the second one 127.0.0.2.
 */
#ifndef MIGFS_TEST_VERBS_H
#define MIGFS_TEST_VERBS_H

#include <rdma/rdma_cma.h>
#include <stdbool.h>

#define VERBS_DEVICES 2
#define VERBS_SILENCE (-1)

extern struct ibv_context verbs_devices[VERBS_DEVICES];

/* Which ends of the connections: those that connected, and those that were accepted. */
enum verbs_side {
    VERBS_ACTIVE = 1,
    VERBS_PASSIVE = 2,
    VERBS_BOTH = 3,
};

/* What can be held back. */
enum verbs_stage {
    VERBS_WORK = 1,     /* work requests are not begun: their memory is not read yet */
    VERBS_SENT = 2,     /* they are done, and their completions are not told */
    VERBS_RECEIVED = 4, /* messages have arrived, and that is not told */
    VERBS_ALL = 7,
};

enum verbs_call {
    VERBS_ALLOC_PD,
    VERBS_REG_MR,
    VERBS_CREATE_COMP_CHANNEL,
    VERBS_CREATE_CQ,
    VERBS_NOTIFY_CQ,
    VERBS_POLL_CQ,
    VERBS_POST_SEND,
    VERBS_POST_RECV,
    VERBS_CREATE_EVENT_CHANNEL,
    VERBS_CREATE_ID,
    VERBS_BIND_ADDR,
    VERBS_LISTEN,
    VERBS_RESOLVE_ADDR,
    VERBS_RESOLVE_ROUTE,
    VERBS_CREATE_QP,
    VERBS_CONNECT,
    VERBS_ACCEPT,
    VERBS_MIGRATE_ID,
    VERBS_GET_CM_EVENT,
    VERBS_CALLS,
};

struct verbs_counts {
    /* What there is now. */
    unsigned domains, ranges, comp_channels, queues, pairs, ids, event_channels;
    uint64_t registered_bytes;
    /* What has happened. */
    unsigned messages, writes;   /* that were done */
    unsigned unready;            /* RNR: messages for which there was no receive */
    unsigned refused;            /* writes that the peer's keys did not allow */
    unsigned inlined, signaled;  /* work requests that were posted */
    unsigned disconnects;        /* that an end asked for */
    unsigned unanswered;         /* events that a test had withheld */
    unsigned late_notifications; /* asked of a device that was gone */
};

struct verbs_counts verbs_counts(void);

/** verbs_expect_nothing_left - all that was made has been given back */
void verbs_expect_nothing_left(void);

/**
 * verbs_hold - hold back the stages of those ends, and no others of theirs: what was held goes on
 * @stages: of enum verbs_stage; 0: none
 */
void verbs_hold(enum verbs_side sides, unsigned stages);

/**
 * verbs_release - let the next @n of each queue pair and stage go on
 * Return: how many there were.
 */
unsigned verbs_release(enum verbs_side sides, unsigned stages, unsigned n);

/** verbs_await_held - wait until @n or more are held altogether */
void verbs_await_held(enum verbs_side sides, unsigned stages, unsigned n);

/** verbs_shuffle_start - from now on a thread does and tells everything, late, and in batches of a random
 * size */
void verbs_shuffle_start(unsigned seed);
void verbs_shuffle_stop(void);

/** verbs_break - the @n-th work request that is begun from now on fails with @status */
void verbs_break(enum verbs_side sides, unsigned n, enum ibv_wc_status status);

/** verbs_expire - what waits for a peer that is gone has been tried often enough */
void verbs_expire(void);

/** verbs_fail - the @n-th call from now on fails with @code, an errno */
void verbs_fail(enum verbs_call call, unsigned n, int code);

/** verbs_limit - how many bytes can be registered, and how many go inline */
void verbs_limit(uint64_t registered_bytes, uint32_t inline_bytes);

/** verbs_answer - the next event of a type is another one, or with VERBS_SILENCE none */
void verbs_answer(enum rdma_cm_event_type type, int instead);

/** verbs_set_devices - how many devices rdma_get_devices() finds */
void verbs_set_devices(int n);

void verbs_remove_device(unsigned i);

#endif
