/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What all incoming migrations of a daemon may receive together: `-o max-bandwidth`. Each has a fair share.
 *
 * A receiver pays for what it has received before it receives more. While it waits, the bytes that follow
 * stay in its connection, whose window closes: so its source is slowed down by its own transport, and needs
 * to know nothing.
 *
 * Who is next
 *   One bucket fills with the rate (as in pace.h), and whoever waits queues for it in the order of tags. A
 *   payment's tag is where the share's account stands, and the account then moves on by bytes / weight: so
 *   of shares that always wait, each gets its weight's part of the rate, however many channels it has; one
 *   that waits for its source leaves its part to the others. What it has not used then is not made up for,
 *   but for INTAKE_LAG, which is about what comes while its thread wakes up. A payment that has let others
 *   pass with what the bucket gives in INTAKE_PATIENCE_S is next, whatever its tag: nobody waits for ever.
 *
 *   The weights of one peer's shares add up to no more than the largest of them, so that a peer does not get
 *   more by sending more migrations at once; they divide what is the peer's by weight.
 *
 * A share can have a rate of its own, which it pays first.
 *
 * Locks: intake.lock, a leaf; with neither rate nobody takes one.
 */
#ifndef MIGFS_INTAKE_H
#define MIGFS_INTAKE_H

#include "pace.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define INTAKE_WEIGHT     100 /* unless it is said */
#define INTAKE_WEIGHT_MAX 10000
#define INTAKE_LAG        (1u << 20) /* bytes, at the default weight */
#define INTAKE_PATIENCE_S 5          /* after what fills the bucket for so long, whoever waits has its turn */
#define INTAKE_RECENT_MS  100        /* a share that has paid since then takes part */

struct intake_payment;
struct account;

struct intake {
    uint64_t rate;        /* bytes a second; 0: as fast as can be; constant */
    pthread_mutex_t lock; /* guards what follows, and what shares say of it */
    double tokens;        /* bytes; negative: a debt */
    int64_t filled_ns;
    double passed;                /* the largest tag that was let through */
    uint64_t poured;              /* bytes that were let through */
    struct intake_payment *queue; /* by tag; those that are alike in the order in which they came */
    struct intake_payment *front; /* the one whose turn it is */
    struct intake_share *shares;
};

/* An incoming migration's. */
struct intake_share {
    struct intake *intake;      /* constant */
    const struct account *peer; /* whose it is: its identity alone is looked at; constant */
    struct pace own;            /* its own rate */
    /* Guarded by intake.lock: */
    struct intake_share *next;
    unsigned weight;
    double account;                 /* the tag of its next payment */
    unsigned queued;                /* payments that wait for the bucket */
    int64_t paid_ms;                /* when the last one was let through */
    unsigned held;                  /* receivers that wait */
    int64_t held_since_ns, held_ns; /* how long at least one of them has waited */
    bool closed;
};

/** intake_init - @rate: bytes a second; 0: as fast as can be */
void intake_init(struct intake *intake, uint64_t rate);
/** intake_fini - no shares are left */
void intake_fini(struct intake *intake);

/** intake_share_init - a share of a migration of @peer's, of INTAKE_WEIGHT and without a rate; it is open */
void intake_share_init(struct intake_share *share, struct intake *intake, const struct account *peer);
/** intake_share_fini - nobody pays any more */
void intake_share_fini(struct intake_share *share);

/** intake_share_set - another weight, and another rate (0: none), from now on; any thread */
void intake_share_set(struct intake_share *share, unsigned weight, uint64_t rate);

/** intake_share_close, intake_share_open - nobody waits any more; they do again */
void intake_share_close(struct intake_share *share);
void intake_share_open(struct intake_share *share);

/** intake_share_held_ns - how long a receiver has waited, all together; grows while one does; any thread */
uint64_t intake_share_held_ns(struct intake_share *share);

/** intake_pay_now - intake_pay(), where there is a rate */
void intake_pay_now(struct intake_share *share, uint64_t bytes);

/** intake_pay - @bytes have been received: wait until more may be, or intake_share_close(); any thread */
static inline void intake_pay(struct intake_share *share, uint64_t bytes)
{
    if (share->intake->rate || pace_is_on(&share->own))
        intake_pay_now(share, bytes);
}

#endif
