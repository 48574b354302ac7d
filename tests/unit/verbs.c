/* SPDX-License-Identifier: Apache-2.0 */
/* The stand-in's completion queues and queue pairs; see verbs.h. */
#include "verbs_card.h"
#include "check.h"
#include "cleanup.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define INLINE_MAX 512

struct comp_channel {
    struct ibv_comp_channel channel;
    unsigned queues;
};

struct completion {
    struct ibv_wc wc;
    struct pair *pair;
    uint64_t number; /* of the work request, or receive, on its queue */
    bool received;
};

/* Completions in their order. */
struct completions {
    struct completion *ring;
    unsigned size, head, tail;
};

struct queue {
    struct ibv_cq cq;
    struct completions told;
    bool armed;
    unsigned events, unacknowledged;
    struct queue *next;
};

struct work {
    uint64_t id;
    enum ibv_wr_opcode opcode;
    unsigned flags;
    uint32_t imm;
    struct ibv_sge part; /* no bytes: none */
    uint64_t remote;
    uint32_t key;
    bool begun, unready; /* that has been counted */
    uint8_t inlined[INLINE_MAX];
};

struct receive {
    uint64_t id;
    struct ibv_sge part;
};

struct pair {
    struct ibv_qp qp;
    enum verbs_side side;
    struct pair *peer;
    struct ibv_qp_cap cap;
    uint8_t rnr_retries;
    bool signals_all;
    struct work *works; /* a ring; of numbers: */
    uint64_t posted, begun, freed;
    struct receive *receives; /* a ring */
    uint64_t offered, used, polled;
    struct completions sent, received; /* that are not told yet */
    struct pair *next;
};

pthread_mutex_t card_lock = PTHREAD_MUTEX_INITIALIZER;
struct verbs_counts card_counts;
bool card_removed[VERBS_DEVICES];
struct ibv_context verbs_devices[VERBS_DEVICES];

/* All of it under card_lock. */
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct queue *queues;
static struct pair *pairs;
static unsigned held[VERBS_BOTH];        /* stages, by side */
static unsigned until_break[VERBS_BOTH]; /* work requests, by side */
static enum ibv_wc_status break_status[VERBS_BOTH];
static struct {
    unsigned until;
    int code;
} failures[VERBS_CALLS];
static uint32_t inline_max = INLINE_MAX;
static bool expires; /* a peer that is gone is noticed at once */

bool card_must_fail(enum verbs_call call)
{
    if (failures[call].until == 0 || --failures[call].until > 0)
        return false;
    errno = failures[call].code;
    return true;
}

void card_violation(const char *what)
{
    fprintf(stderr, "the card: %s\n", what);
    abort();
}

bool card_is_removed(const struct ibv_context *device)
{
    return card_removed[device - verbs_devices];
}

/*
 * Completions
 */

static void put(struct completions *list, const struct completion *completion)
{
    if (list->tail - list->head == list->size)
        card_violation("a completion queue overflows");
    list->ring[list->tail++ % list->size] = *completion;
}

static bool get(struct completions *list, struct completion *out)
{
    if (list->head == list->tail)
        return false;
    *out = list->ring[list->head++ % list->size];
    return true;
}

struct ibv_comp_channel *ibv_create_comp_channel(struct ibv_context *context)
{
    SCOPED_LOCK(&card_lock);
    if (card_must_fail(VERBS_CREATE_COMP_CHANNEL))
        return NULL;
    struct comp_channel *c = calloc(1, sizeof(*c));
    c->channel = (struct ibv_comp_channel){.context = context, .fd = eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE)};
    card_counts.comp_channels++;
    return &c->channel;
}

int ibv_destroy_comp_channel(struct ibv_comp_channel *channel)
{
    SCOPED_LOCK(&card_lock);
    if (((struct comp_channel *)channel)->queues > 0)
        card_violation("a completion channel goes before its queues");
    close(channel->fd);
    card_counts.comp_channels--;
    free(channel);
    return 0;
}

static int notify(struct ibv_cq *cq, int solicited_only)
{
    SCOPED_LOCK(&card_lock);
    if (card_must_fail(VERBS_NOTIFY_CQ))
        return errno;
    card_counts.late_notifications += card_is_removed(cq->context);
    ((struct queue *)cq)->armed = !solicited_only;
    return 0;
}

static int poll_queue(struct ibv_cq *cq, int n, struct ibv_wc *wc)
{
    struct queue *queue = (struct queue *)cq;
    struct completion completion;
    int i = 0;

    SCOPED_LOCK(&card_lock);
    if (card_must_fail(VERBS_POLL_CQ))
        return -1;
    for (; i < n && get(&queue->told, &completion); i++) {
        struct pair *pair = completion.pair;
        if (completion.received)
            pair->polled = completion.number;
        else
            pair->freed = completion.number;
        wc[i] = completion.wc;
    }
    return i;
}

struct ibv_cq *ibv_create_cq(struct ibv_context *context, int cqe, void *cq_context,
                             struct ibv_comp_channel *channel, int comp_vector)
{
    (void)comp_vector;
    SCOPED_LOCK(&card_lock);
    if (card_must_fail(VERBS_CREATE_CQ))
        return NULL;
    struct queue *queue = calloc(1, sizeof(*queue));
    queue->cq = (struct ibv_cq){.context = context, .channel = channel, .cq_context = cq_context, .cqe = cqe};
    queue->told = (struct completions){.ring = calloc(cqe, sizeof(struct completion)), .size = cqe};
    queue->next = queues;
    queues = queue;
    ((struct comp_channel *)channel)->queues++;
    card_counts.queues++;
    return &queue->cq;
}

int ibv_destroy_cq(struct ibv_cq *cq)
{
    struct queue *queue = (struct queue *)cq, **at = &queues;

    SCOPED_LOCK(&card_lock);
    if (queue->unacknowledged > 0)
        card_violation("a completion queue goes, and waits for its events to be acknowledged");
    for (const struct pair *pair = pairs; pair; pair = pair->next) {
        if (pair->qp.send_cq == cq || pair->qp.recv_cq == cq)
            card_violation("a completion queue goes before its queue pair");
    }
    while (*at != queue)
        at = &(*at)->next;
    *at = queue->next;
    ((struct comp_channel *)cq->channel)->queues--;
    card_counts.queues--;
    free(queue->told.ring);
    free(queue);
    return 0;
}

int ibv_get_cq_event(struct ibv_comp_channel *channel, struct ibv_cq **cq, void **cq_context)
{
    eventfd_t one;

    if (eventfd_read(channel->fd, &one) < 0)
        return -1;
    SCOPED_LOCK(&card_lock);
    struct queue *queue = queues;
    while (queue && (queue->cq.channel != channel || queue->events == 0))
        queue = queue->next;
    if (!queue)
        card_violation("an event is for no completion queue");
    queue->events--;
    queue->unacknowledged++;
    *cq = &queue->cq;
    *cq_context = queue->cq.cq_context;
    return 0;
}

void ibv_ack_cq_events(struct ibv_cq *cq, unsigned int n)
{
    struct queue *queue = (struct queue *)cq;

    SCOPED_LOCK(&card_lock);
    if (n > queue->unacknowledged)
        card_violation("events are acknowledged that there were not");
    queue->unacknowledged -= n;
}

static void tell(struct ibv_cq *cq, const struct completion *completion)
{
    struct queue *queue = (struct queue *)cq;

    put(&queue->told, completion);
    if (queue->armed) {
        queue->armed = false;
        queue->events++;
        eventfd_write(cq->channel->fd, 1);
    }
}

/* Tells the next one of a queue pair. */
static bool tell_next(struct pair *pair, bool received)
{
    struct completion completion;

    if (!get(received ? &pair->received : &pair->sent, &completion))
        return false;
    tell(received ? pair->qp.recv_cq : pair->qp.send_cq, &completion);
    return true;
}

/*
 * Queue pairs
 */

bool pair_uses(const struct ibv_pd *pd)
{
    const struct pair *pair = pairs;

    while (pair && pair->qp.pd != pd)
        pair = pair->next;
    return pair;
}

static bool holds(const struct pair *pair, enum verbs_stage stage)
{
    return held[pair->side] & stage;
}

static void complete_receive(struct pair *pair, enum ibv_wc_status status, uint32_t len,
                             const struct work *work)
{
    const struct receive *receive = &pair->receives[++pair->used % pair->cap.max_recv_wr];
    struct completion completion = {.pair = pair, .number = pair->used, .received = true};

    completion.wc = (struct ibv_wc){.wr_id = receive->id,
                                    .status = status,
                                    .opcode = IBV_WC_RECV,
                                    .byte_len = len,
                                    .qp_num = pair->qp.qp_num};
    if (work && work->opcode == IBV_WR_SEND_WITH_IMM) {
        completion.wc.wc_flags = IBV_WC_WITH_IMM;
        completion.wc.imm_data = work->imm;
    }
    put(&pair->received, &completion);
    if (!holds(pair, VERBS_RECEIVED))
        tell_next(pair, true);
    pthread_cond_broadcast(&changed);
}

/* The work request that was begun last is over. */
static void complete_work(struct pair *pair, enum ibv_wc_status status)
{
    const struct work *work = &pair->works[pair->begun % pair->cap.max_send_wr];
    struct completion completion = {.pair = pair, .number = pair->begun};

    if (status == IBV_WC_SUCCESS && !(work->flags & IBV_SEND_SIGNALED) && !pair->signals_all)
        return;
    completion.wc = (struct ibv_wc){
        .wr_id = work->id,
        .status = status,
        .opcode = work->opcode == IBV_WR_RDMA_WRITE ? IBV_WC_RDMA_WRITE : IBV_WC_SEND,
        .qp_num = pair->qp.qp_num,
    };
    /* What failed does not say what it was. */
    if (status != IBV_WC_SUCCESS)
        completion.wc.opcode = IBV_WC_BIND_MW;
    put(&pair->sent, &completion);
    if (!holds(pair, VERBS_SENT))
        tell_next(pair, false);
    pthread_cond_broadcast(&changed);
}

void pair_break(struct pair *pair)
{
    if (card_is_removed(pair->qp.context))
        return;
    pair->qp.state = IBV_QPS_ERR;
    while (pair->begun < pair->posted) {
        pair->begun++;
        complete_work(pair, IBV_WC_WR_FLUSH_ERR);
    }
    while (pair->used < pair->offered)
        complete_receive(pair, IBV_WC_WR_FLUSH_ERR, 0, NULL);
}

/* A message arrives. Return: what becomes of it; IBV_WC_GENERAL_ERR: nothing yet. */
static enum ibv_wc_status receive(struct pair *pair, struct work *work, const void *from)
{
    if (pair->used == pair->offered) {
        card_counts.unready += !work->unready;
        work->unready = true;
        return IBV_WC_RNR_RETRY_EXC_ERR;
    }
    const struct receive *next = &pair->receives[(pair->used + 1) % pair->cap.max_recv_wr];
    uint32_t len = work->part.length;
    enum ibv_wc_status status = IBV_WC_SUCCESS;

    if (len > next->part.length)
        status = IBV_WC_LOC_LEN_ERR;
    else if (len > 0 &&
             !memory_allows(pair->qp.pd, next->part.lkey, next->part.addr, len, IBV_ACCESS_LOCAL_WRITE))
        status = IBV_WC_LOC_PROT_ERR;
    else if (len > 0)
        memcpy((void *)(uintptr_t)next->part.addr, from, len);
    complete_receive(pair, status, len, work);
    card_counts.messages += status == IBV_WC_SUCCESS;
    return status == IBV_WC_SUCCESS ? status : IBV_WC_REM_INV_REQ_ERR;
}

static enum ibv_wc_status write_to(struct pair *peer, const struct work *work, const void *from)
{
    if (!memory_allows(peer->qp.pd, work->key, work->remote, work->part.length, IBV_ACCESS_REMOTE_WRITE)) {
        card_counts.refused++;
        return IBV_WC_REM_ACCESS_ERR;
    }
    memcpy((void *)(uintptr_t)work->remote, from, work->part.length);
    card_counts.writes++;
    return IBV_WC_SUCCESS;
}

/* What becomes of the next work request; -1: it has to wait. */
static int attempt(struct pair *pair, struct work *work)
{
    struct pair *peer = pair->peer;
    const void *from = work->flags & IBV_SEND_INLINE ? work->inlined : (void *)(uintptr_t)work->part.addr;

    if (!work->begun && until_break[pair->side] && --until_break[pair->side] == 0)
        return break_status[pair->side];
    work->begun = true;
    if (!peer || peer->qp.state == IBV_QPS_ERR)
        return expires ? IBV_WC_RETRY_EXC_ERR : -1;
    if (peer->qp.state != IBV_QPS_RTS || card_is_removed(peer->qp.context))
        return -1;
    if (!(work->flags & IBV_SEND_INLINE) && work->part.length > 0 &&
        !memory_allows(pair->qp.pd, work->part.lkey, work->part.addr, work->part.length, 0))
        return IBV_WC_LOC_PROT_ERR;
    if (work->opcode == IBV_WR_RDMA_WRITE)
        return write_to(peer, work, from);
    int status = receive(peer, work, from);
    return status == IBV_WC_RNR_RETRY_EXC_ERR && pair->rnr_retries == 7 ? -1 : status;
}

/* Does the next work request. Return: whether there was one that could be done. */
static bool work_next(struct pair *pair)
{
    struct pair *peer = pair->peer;

    if (pair->qp.state != IBV_QPS_RTS || pair->begun == pair->posted || card_is_removed(pair->qp.context))
        return false;
    int status = attempt(pair, &pair->works[(pair->begun + 1) % pair->cap.max_send_wr]);
    if (status < 0)
        return false;
    pair->begun++;
    complete_work(pair, status);
    if (status == IBV_WC_SUCCESS)
        return true;
    pair_break(pair);
    if (peer && (status == IBV_WC_REM_ACCESS_ERR || status == IBV_WC_REM_INV_REQ_ERR))
        pair_break(peer);
    return true;
}

static void run(struct pair *pair)
{
    while (!holds(pair, VERBS_WORK) && work_next(pair))
        ;
}

/* 0 or an errno. */
static int accept_work(struct pair *pair, const struct ibv_send_wr *wr)
{
    struct work work = {.id = wr->wr_id, .opcode = wr->opcode, .flags = wr->send_flags, .imm = wr->imm_data};

    if (card_must_fail(VERBS_POST_SEND))
        return errno;
    if (card_is_removed(pair->qp.context))
        return EIO;
    if (pair->qp.state != IBV_QPS_RTS && pair->qp.state != IBV_QPS_ERR)
        return EINVAL;
    if (pair->posted - pair->freed >= pair->cap.max_send_wr)
        return ENOMEM;
    if (wr->num_sge > 1 ||
        (wr->opcode != IBV_WR_RDMA_WRITE && wr->opcode != IBV_WR_SEND && wr->opcode != IBV_WR_SEND_WITH_IMM))
        return EINVAL;
    if (wr->num_sge == 1)
        work.part = wr->sg_list[0];
    if (wr->send_flags & IBV_SEND_INLINE) {
        if (work.part.length > pair->cap.max_inline_data)
            return EINVAL;
        if (work.part.length > 0)
            memcpy(work.inlined, (void *)(uintptr_t)work.part.addr, work.part.length);
        card_counts.inlined++;
    }
    work.remote = wr->wr.rdma.remote_addr;
    work.key = wr->wr.rdma.rkey;
    card_counts.signaled += !!(wr->send_flags & IBV_SEND_SIGNALED);
    pair->works[++pair->posted % pair->cap.max_send_wr] = work;
    return 0;
}

static int post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad)
{
    struct pair *pair = (struct pair *)qp;

    SCOPED_LOCK(&card_lock);
    for (; wr; wr = wr->next) {
        int code = accept_work(pair, wr);
        if (code) {
            *bad = wr;
            return code;
        }
    }
    pthread_cond_broadcast(&changed);
    if (qp->state == IBV_QPS_ERR)
        pair_break(pair);
    else
        run(pair);
    return 0;
}

static int accept_receive(struct pair *pair, const struct ibv_recv_wr *wr)
{
    if (card_must_fail(VERBS_POST_RECV))
        return errno;
    if (card_is_removed(pair->qp.context))
        return EIO;
    if (pair->qp.state == IBV_QPS_RESET || wr->num_sge != 1)
        return EINVAL;
    if (pair->offered - pair->polled >= pair->cap.max_recv_wr)
        return ENOMEM;
    pair->receives[++pair->offered % pair->cap.max_recv_wr] = (struct receive){wr->wr_id, wr->sg_list[0]};
    return 0;
}

static int post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
    struct pair *pair = (struct pair *)qp;

    SCOPED_LOCK(&card_lock);
    for (; wr; wr = wr->next) {
        int code = accept_receive(pair, wr);
        if (code) {
            *bad = wr;
            return code;
        }
    }
    if (qp->state == IBV_QPS_ERR)
        pair_break(pair);
    else if (pair->peer)
        run(pair->peer);
    return 0;
}

int ibv_modify_qp(struct ibv_qp *qp, struct ibv_qp_attr *attr, int mask)
{
    SCOPED_LOCK(&card_lock);
    if (mask != IBV_QP_STATE || attr->qp_state != IBV_QPS_ERR)
        card_violation("a queue pair is modified in a way that the stand-in does not know");
    pair_break((struct pair *)qp);
    return 0;
}

struct pair *pair_new(struct ibv_pd *pd, struct ibv_qp_init_attr *attr, enum verbs_side side)
{
    struct ibv_qp_cap *cap = &attr->cap;

    if (cap->max_inline_data > inline_max || attr->qp_type != IBV_QPT_RC || cap->max_send_sge != 1 ||
        cap->max_recv_sge != 1) {
        errno = EINVAL;
        return NULL;
    }
    struct pair *pair = calloc(1, sizeof(*pair));
    pair->qp = (struct ibv_qp){.context = pd->context,
                               .pd = pd,
                               .send_cq = attr->send_cq,
                               .recv_cq = attr->recv_cq,
                               .state = IBV_QPS_INIT,
                               .qp_type = attr->qp_type};
    pair->side = side;
    pair->cap = *cap;
    pair->signals_all = attr->sq_sig_all;
    pair->works = calloc(cap->max_send_wr, sizeof(*pair->works));
    pair->receives = calloc(cap->max_recv_wr, sizeof(*pair->receives));
    pair->sent = (struct completions){.ring = calloc(cap->max_send_wr, sizeof(struct completion)),
                                      .size = cap->max_send_wr};
    pair->received = (struct completions){.ring = calloc(cap->max_recv_wr, sizeof(struct completion)),
                                          .size = cap->max_recv_wr};
    pair->next = pairs;
    pairs = pair;
    card_counts.pairs++;
    return pair;
}

/* Its completions go with it. */
static void forget_completions(struct queue *queue, const struct pair *pair)
{
    unsigned end = queue->told.tail;

    while (queue->told.head != end) {
        struct completion completion;
        get(&queue->told, &completion);
        if (completion.pair != pair)
            put(&queue->told, &completion);
    }
}

void pair_free(struct pair *pair)
{
    struct pair **at = &pairs;

    while (*at != pair)
        at = &(*at)->next;
    *at = pair->next;
    forget_completions((struct queue *)pair->qp.send_cq, pair);
    forget_completions((struct queue *)pair->qp.recv_cq, pair);
    if (pair->peer)
        pair->peer->peer = NULL;
    card_counts.pairs--;
    free(pair->works);
    free(pair->receives);
    free(pair->sent.ring);
    free(pair->received.ring);
    free(pair);
}

struct ibv_qp *pair_qp(struct pair *pair)
{
    return &pair->qp;
}

void pair_join(struct pair *a, struct pair *b, uint8_t rnr_retries)
{
    a->peer = b;
    b->peer = a;
    a->rnr_retries = b->rnr_retries = rnr_retries;
}

void pair_set_ready(struct pair *pair)
{
    if (pair->qp.state != IBV_QPS_INIT)
        return;
    pair->qp.state = IBV_QPS_RTS;
    if (pair->peer)
        run(pair->peer);
}

/*
 * What a test says
 */

struct verbs_counts verbs_counts(void)
{
    SCOPED_LOCK(&card_lock);
    return card_counts;
}

void verbs_expect_nothing_left(void)
{
    struct verbs_counts counts = verbs_counts();

    cr_expect(zero(uint, counts.domains));
    cr_expect(zero(uint, counts.ranges));
    cr_expect(zero(u64, counts.registered_bytes));
    cr_expect(zero(uint, counts.comp_channels));
    cr_expect(zero(uint, counts.queues));
    cr_expect(zero(uint, counts.pairs));
    cr_expect(zero(uint, counts.ids));
    cr_expect(zero(uint, counts.event_channels));
}

void verbs_hold(enum verbs_side sides, unsigned stages)
{
    SCOPED_LOCK(&card_lock);
    for (unsigned side = VERBS_ACTIVE; side <= VERBS_PASSIVE; side++) {
        if (sides & side)
            held[side] = stages;
    }
    for (struct pair *pair = pairs; pair; pair = pair->next) {
        run(pair);
        while (!holds(pair, VERBS_SENT) && tell_next(pair, false))
            ;
        while (!holds(pair, VERBS_RECEIVED) && tell_next(pair, true))
            ;
    }
}

/* Lets one go on. */
static bool release(struct pair *pair, enum verbs_stage stage)
{
    return stage == VERBS_WORK ? work_next(pair) : tell_next(pair, stage == VERBS_RECEIVED);
}

unsigned verbs_release(enum verbs_side sides, unsigned stages, unsigned n)
{
    unsigned done = 0;

    SCOPED_LOCK(&card_lock);
    for (struct pair *pair = pairs; pair; pair = pair->next) {
        for (unsigned stage = VERBS_WORK; stage < VERBS_ALL && sides & pair->side; stage <<= 1) {
            for (unsigned i = 0; i < n && stages & stage && release(pair, stage); i++)
                done++;
        }
    }
    return done;
}

static unsigned count_held(enum verbs_side sides, unsigned stages)
{
    unsigned n = 0;

    for (const struct pair *pair = pairs; pair; pair = pair->next) {
        if (!(sides & pair->side))
            continue;
        n += stages & VERBS_WORK ? (unsigned)(pair->posted - pair->begun) : 0;
        n += stages & VERBS_SENT ? pair->sent.tail - pair->sent.head : 0;
        n += stages & VERBS_RECEIVED ? pair->received.tail - pair->received.head : 0;
    }
    return n;
}

void verbs_await_held(enum verbs_side sides, unsigned stages, unsigned n)
{
    SCOPED_LOCK(&card_lock);
    while (count_held(sides, stages) < n)
        pthread_cond_wait(&changed, &card_lock);
}

static struct {
    pthread_t thread;
    uint64_t random;
    bool stop;
} shuffle; /* card_lock */

static unsigned draw(unsigned below)
{
    shuffle.random = shuffle.random * 6364136223846793005ull + 1442695040888963407ull;
    return (unsigned)(shuffle.random >> 33) % below;
}

static void *run_shuffle(void *arg)
{
    (void)arg;
    SCOPED_LOCK(&card_lock);
    while (!shuffle.stop) {
        if (count_held(VERBS_BOTH, VERBS_ALL) == 0) {
            pthread_cond_wait(&changed, &card_lock);
            continue;
        }
        struct pair *pair = pairs;
        for (unsigned n = draw(card_counts.pairs); n > 0; n--)
            pair = pair->next;
        enum verbs_stage stage = VERBS_WORK << draw(3);
        for (unsigned n = draw(9); n > 0 && release(pair, stage); n--)
            ;
        pthread_mutex_unlock(&card_lock);
        sched_yield();
        pthread_mutex_lock(&card_lock);
    }
    return NULL;
}

void verbs_shuffle_start(unsigned seed)
{
    shuffle.random = seed;
    shuffle.stop = false;
    verbs_hold(VERBS_BOTH, VERBS_ALL);
    cr_assert(zero(int, pthread_create(&shuffle.thread, NULL, run_shuffle, NULL)));
}

void verbs_shuffle_stop(void)
{
    pthread_mutex_lock(&card_lock);
    shuffle.stop = true;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&card_lock);
    pthread_join(shuffle.thread, NULL);
    verbs_hold(VERBS_BOTH, 0);
}

void verbs_break(enum verbs_side sides, unsigned n, enum ibv_wc_status status)
{
    SCOPED_LOCK(&card_lock);
    for (unsigned side = VERBS_ACTIVE; side <= VERBS_PASSIVE; side++) {
        if (sides & side) {
            until_break[side] = n;
            break_status[side] = status;
        }
    }
}

void verbs_expire(void)
{
    SCOPED_LOCK(&card_lock);
    expires = true;
    for (struct pair *pair = pairs; pair; pair = pair->next)
        run(pair);
}

void verbs_fail(enum verbs_call call, unsigned n, int code)
{
    SCOPED_LOCK(&card_lock);
    failures[call].until = n;
    failures[call].code = code;
}

void verbs_limit(uint64_t registered_bytes, uint32_t inline_bytes)
{
    SCOPED_LOCK(&card_lock);
    memory_limit(registered_bytes);
    inline_max = inline_bytes < INLINE_MAX ? inline_bytes : INLINE_MAX;
}

static __attribute__((constructor)) void make_devices(void)
{
    static struct ibv_device devices[VERBS_DEVICES]; /* with nothing in /sys, unless a test says it */

    for (unsigned i = 0; i < VERBS_DEVICES; i++) {
        strcpy(devices[i].ibdev_path, "/nowhere");
        verbs_devices[i].device = &devices[i];
        verbs_devices[i].ops = (struct ibv_context_ops){
            .poll_cq = poll_queue, .req_notify_cq = notify, .post_send = post_send, .post_recv = post_recv};
    }
}
