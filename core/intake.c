/* SPDX-License-Identifier: Apache-2.0 */
/* What incoming migrations receive together; see intake.h. */
#include "intake.h"
#include "cleanup.h"
#include "clock.h"

#include <assert.h>

/* A receiver that waits; on its stack. Guarded by intake.lock. */
struct intake_payment {
    struct intake_payment *next;
    struct intake_share *share;
    double tag;
    uint64_t joined;        /* what had been let through when it came */
    pthread_cond_t changed; /* it is its turn, or its share is closed */
};

void intake_init(struct intake *intake, uint64_t rate)
{
    *intake = (struct intake){.rate = rate, .filled_ns = clock_ns()};
    pthread_mutex_init(&intake->lock, NULL);
}

void intake_fini(struct intake *intake)
{
    assert(!intake->shares && !intake->queue);
    pthread_mutex_destroy(&intake->lock);
}

void intake_share_init(struct intake_share *share, struct intake *intake, const struct account *peer)
{
    *share = (struct intake_share){.intake = intake, .peer = peer, .weight = INTAKE_WEIGHT};
    pace_init(&share->own, 0);
    SCOPED_LOCK(&intake->lock);
    share->account = intake->passed;
    share->next = intake->shares;
    intake->shares = share;
}

void intake_share_fini(struct intake_share *share)
{
    pthread_mutex_lock(&share->intake->lock);
    struct intake_share **p = &share->intake->shares;
    while (*p != share)
        p = &(*p)->next;
    *p = share->next;
    pthread_mutex_unlock(&share->intake->lock);
    pace_fini(&share->own);
}

void intake_share_close(struct intake_share *share)
{
    pace_close(&share->own);
    SCOPED_LOCK(&share->intake->lock);
    share->closed = true;
    for (struct intake_payment *p = share->intake->queue; p; p = p->next) {
        if (p->share == share)
            pthread_cond_signal(&p->changed);
    }
}

void intake_share_open(struct intake_share *share)
{
    pace_open(&share->own);
    SCOPED_LOCK(&share->intake->lock);
    share->closed = false;
}

/* A receiver of the share begins to wait (1), or has waited (-1). The lock is held. */
static void hold(struct intake_share *share, int more)
{
    int64_t now = clock_ns();

    if (share->held)
        share->held_ns += now - share->held_since_ns;
    share->held_since_ns = now;
    share->held += (unsigned)more;
}

uint64_t intake_share_held_ns(struct intake_share *share)
{
    SCOPED_LOCK(&share->intake->lock);
    hold(share, 0);
    return (uint64_t)share->held_ns;
}

/* What the weight comes to beside those of the same peer's that take part. The lock is held. */
static double weight_beside(const struct intake_share *share)
{
    int64_t recent = clock_ms() - INTAKE_RECENT_MS;
    double sum = 0, most = 0;

    for (const struct intake_share *s = share->intake->shares; s; s = s->next) {
        if (s->peer != share->peer || (s != share && !s->queued && s->paid_ms < recent))
            continue;
        sum += s->weight;
        most = s->weight > most ? s->weight : most;
    }
    return share->weight * most / sum;
}

/*
 * Whose turn it is: the one that has waited for too long, or else the one with the smallest tag. The lock is
 * held.
 */
static void choose(struct intake *intake)
{
    struct intake_payment *front = intake->queue;
    uint64_t oldest = UINT64_MAX;

    for (struct intake_payment *p = intake->queue; p; p = p->next) {
        if (intake->poured - p->joined < INTAKE_PATIENCE_S * intake->rate || p->joined >= oldest)
            continue;
        oldest = p->joined;
        front = p;
    }
    if (front && front != intake->front)
        pthread_cond_signal(&front->changed);
    intake->front = front;
}

/* The lock is held. */
static void insert(struct intake *intake, struct intake_payment *payment)
{
    struct intake_payment **p = &intake->queue;

    while (*p && (*p)->tag <= payment->tag)
        p = &(*p)->next;
    payment->next = *p;
    *p = payment;
}

/* A tag of a share whose weight becomes another one. The lock is held. */
static double weighed_anew(const struct intake_share *share, double tag, unsigned weight)
{
    double passed = share->intake->passed;

    return tag > passed ? passed + (tag - passed) * share->weight / weight : tag;
}

void intake_share_set(struct intake_share *share, unsigned weight, uint64_t rate)
{
    struct intake *intake = share->intake;

    pace_set(&share->own, rate);
    SCOPED_LOCK(&intake->lock);
    struct intake_payment *next, *payment = intake->queue;
    intake->queue = NULL;
    for (; payment; payment = next) {
        next = payment->next;
        if (payment->share == share)
            payment->tag = weighed_anew(share, payment->tag, weight);
        insert(intake, payment);
    }
    share->account = weighed_anew(share, share->account, weight);
    share->weight = weight;
    choose(intake);
}

/* Joins the queue. The lock is held. */
static void join(struct intake_payment *payment, uint64_t bytes)
{
    struct intake_share *share = payment->share;
    struct intake *intake = share->intake;
    double least = intake->passed - (double)INTAKE_LAG / INTAKE_WEIGHT;

    payment->tag = share->account > least ? share->account : least;
    payment->joined = intake->poured;
    share->account = payment->tag + (double)bytes / weight_beside(share);
    share->queued++;
    insert(intake, payment);
    choose(intake);
}

/* Leaves it. The lock is held. */
static void leave(struct intake_payment *payment)
{
    struct intake *intake = payment->share->intake;
    struct intake_payment **p = &intake->queue;

    while (*p != payment)
        p = &(*p)->next;
    *p = payment->next;
    payment->share->queued--;
    choose(intake);
}

/* Adds what has come since the last time. The lock is held. */
static void fill(struct intake *intake)
{
    double rate = (double)intake->rate, most = rate * PACE_BURST_MS / 1e3;
    int64_t now = clock_ns();

    intake->tokens += (double)(now - intake->filled_ns) / 1e9 * rate;
    intake->tokens = intake->tokens < most ? intake->tokens : most;
    intake->filled_ns = now;
}

/* Waits for the turn of a payment that has joined. The lock is held, and given up while it waits. */
static void await_turn(struct intake_payment *payment)
{
    struct intake *intake = payment->share->intake;

    while (!payment->share->closed) {
        if (intake->front != payment) {
            pthread_cond_wait(&payment->changed, &intake->lock);
            continue;
        }
        fill(intake);
        if (intake->tokens >= 0)
            return;
        struct timespec until =
            clock_timespec(clock_ns() + (int64_t)(-intake->tokens / (double)intake->rate * 1e9) + 1);
        pthread_cond_timedwait(&payment->changed, &intake->lock, &until);
    }
}

/* Pays into the bucket of all. The lock is held, and given up while it waits. */
static void pay_all(struct intake_share *share, uint64_t bytes)
{
    struct intake *intake = share->intake;
    struct intake_payment payment = {.share = share};

    clock_cond_init(&payment.changed);
    join(&payment, bytes);
    await_turn(&payment);
    intake->tokens -= (double)bytes;
    intake->poured += bytes;
    /* Not its own tag: it may have had to wait for too long. */
    intake->passed = intake->queue->tag > intake->passed ? intake->queue->tag : intake->passed;
    leave(&payment);
    share->paid_ms = clock_ms();
    pthread_cond_destroy(&payment.changed);
}

void intake_pay_now(struct intake_share *share, uint64_t bytes)
{
    struct intake *intake = share->intake;

    pthread_mutex_lock(&intake->lock);
    hold(share, 1);
    pthread_mutex_unlock(&intake->lock);
    pace_take(&share->own, bytes);
    SCOPED_LOCK(&intake->lock);
    if (intake->rate)
        pay_all(share, bytes);
    hold(share, -1);
}
