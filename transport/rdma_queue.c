/* SPDX-License-Identifier: Apache-2.0 */
/* A connection over a queue pair; see rdma_queue.h. */
#include "rdma_queue.h"
#include "cleanup.h"
#include "clock.h"
#include "dummy.h"
#include "lookup.h"
#include "guard.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#define SENDS        256           /* work requests that may be posted and not complete */
#define MESSAGE      (32u << 10)   /* bytes of payloads */
#define SMALL        1024u         /* a hello's reply, or what has been applied */
#define SIGNAL_EVERY 8             /* messages without a completion of their own, in a row */
#define PLACED_MAX   (16ull << 20) /* bytes that are written and not complete: the partial drain's bound */
#define COPY_MAX     (8u << 10)    /* from here on a write of its own costs less than the copy */
#define INLINE_MAX   128           /* a header goes with its work request */
#define SHARE_MAX    (512u << 10)  /* how much of a payload is one write */
#define SPIN_NS      20000         /* how long it is looked before it is slept */
#define CLOSE_MS     1000          /* for what is sent to arrive before the connection is closed */

/* in a work request's id: a receive, since a failed completion does not say */
#define RECEIVED (1ull << 63)

#define IMM_CREDITS 0xffffu  /* receives that are free again */
#define IMM_FINISH  0x10000u /* nothing more comes */

static const uint8_t magic[4] = {'m', 'i', 'g', '1'};

const struct rdma_shape rdma_active_shape = {
    .receives = 16, .receive_size = SMALL, .slots = 32, .slot_size = MESSAGE};
const struct rdma_shape rdma_passive_shape = {
    .receives = 32, .receive_size = MESSAGE, .slots = 8, .slot_size = SMALL};

/* What is given back when a work request is complete. */
struct posted {
    struct rdma_local *local; /* the memory that it reads, or NULL */
    uint32_t placed;          /* bytes of the caller's that it writes */
    bool slot;                /* it has one */
};

/* A message that has arrived. */
struct message {
    uint32_t slot, len;
};

struct rdma_queue {
    struct rdma_cm_id *id;             /* the owner's until it is established */
    struct rdma_event_channel *events; /* our own, once it is established */
    struct ibv_comp_channel *completions;
    struct ibv_cq *cq;
    struct rdma_domain *domain;
    int epoll_fd; /* what rdma_pollfd() says: readable when there may be something to receive */
    int ready_fd; /* in it: a message is queued, or the stream has ended */
    int wake_fd;  /* wakes the thread that polls */

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t progress;
    bool polling; /* a thread waits at the descriptors */
    int dead;     /* a negative errno: nothing more is sent */
    bool ended;   /* nothing more is received */
    bool gone;    /* the device is: nothing completes any more, and nothing is read or written either */
    int timeout_ms;
    int64_t moved_ms;   /* when something was last complete, or posted while nothing was */
    unsigned cq_events; /* to be acknowledged */
    bool spins;         /* looking before sleeping has paid last time */

    uint32_t inline_max;
    uint64_t posted, completed; /* work requests; the number of the last one */
    uint64_t signaled;          /* the last one posted whose completion will be told */
    struct posted sends[SENDS];
    uint8_t *send_ring;
    struct ibv_mr *send_mr;
    uint64_t slots_used, slots_freed;
    unsigned quiet;       /* messages in a row that asked for no completion */
    uint32_t credits;     /* receives that the peer has for us */
    uint32_t credits_max; /* so many it has posted */
    bool finished;        /* the peer has been told that nothing more comes */
    uint32_t message_max; /* bytes that one of them has */
    uint64_t placing;     /* bytes that are written and not complete */
    struct transport_returns returns;
    uint64_t partial_drains;

    struct rdma_shape shape;
    uint8_t *recv_ring;
    struct ibv_mr *recv_mr;
    struct message *arrived;                    /* a ring of shape.receives */
    uint32_t arrived_head, arrived_tail, taken; /* @taken bytes of the first are */
    uint32_t freed;                             /* receives that the peer has not been told of */
};

/*
 * What happens
 */

static void wake(struct rdma_queue *q)
{
    pthread_cond_broadcast(&q->progress);
    if (q->polling)
        eventfd_write(q->wake_fd, 1);
}

/* The connection is over: what is posted comes back with errors. */
static void die(struct rdma_queue *q, int code)
{
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_ERR};

    if (q->dead)
        return;
    q->dead = code;
    q->ended = true;
    ibv_modify_qp(q->id->qp, &attr, IBV_QP_STATE);
    eventfd_write(q->ready_fd, 1);
    wake(q);
}

static void end_stream(struct rdma_queue *q)
{
    if (q->ended)
        return;
    q->ended = true;
    eventfd_write(q->ready_fd, 1);
}

static int errno_of_status(enum ibv_wc_status status)
{
    switch (status) {
    case IBV_WC_RETRY_EXC_ERR:
    case IBV_WC_RNR_RETRY_EXC_ERR:
    case IBV_WC_RESP_TIMEOUT_ERR:
        return -ETIMEDOUT;
    case IBV_WC_REM_ACCESS_ERR: /* a key that the peer has withdrawn, or never gave */
    case IBV_WC_REM_INV_REQ_ERR:
    case IBV_WC_REM_OP_ERR:
        return -EREMOTEIO;
    case IBV_WC_WR_FLUSH_ERR:
        return -ECONNRESET;
    case IBV_WC_LOC_PROT_ERR:
        return -EFAULT;
    default:
        return -EIO;
    }
}

/* All work requests up to @number are over. */
static void retire(struct rdma_queue *q, uint64_t number, bool success)
{
    while (q->completed < number) {
        struct posted *send = &q->sends[++q->completed % SENDS];
        if (send->local)
            rdma_local_release(q->domain, send->local);
        q->slots_freed += send->slot;
        q->placing -= send->placed;
        if (send->placed && success) {
            q->returns.sends++;
            q->returns.bytes += send->placed;
        }
    }
    q->returns.ticket = q->completed;
    q->moved_ms = clock_ms();
}

static int post_receive(struct rdma_queue *q, uint32_t slot)
{
    struct ibv_sge sge = {.addr = (uintptr_t)q->recv_ring + (uint64_t)slot * q->shape.receive_size,
                          .length = q->shape.receive_size,
                          .lkey = q->recv_mr->lkey};
    struct ibv_recv_wr wr = {.wr_id = slot | RECEIVED, .sg_list = &sge, .num_sge = 1}, *bad;

    return -ibv_post_recv(q->id->qp, &wr, &bad);
}

/* A receive is free again: the peer is told with the next message. */
static void free_receive(struct rdma_queue *q, uint32_t slot)
{
    if (q->dead)
        return;
    if (post_receive(q, slot) < 0)
        die(q, -EIO);
    else
        q->freed++;
}

/*
 * Whether a message can be one of such a peer as this end is. An empty one that says nothing, and a receive
 * that was never taken, could follow one another for as long as the peer likes, with the lock held by whoever
 * handles them.
 */
static bool is_possible(const struct rdma_queue *q, uint32_t len, uint32_t imm)
{
    uint32_t told = imm & IMM_CREDITS;

    if (told > q->credits_max - q->credits)
        return false;
    return q->ended ? told > 0 && len == 0 && !(imm & IMM_FINISH) : told > 0 || len > 0 || imm & IMM_FINISH;
}

static void on_message(struct rdma_queue *q, const struct ibv_wc *wc)
{
    uint32_t imm = wc->wc_flags & IBV_WC_WITH_IMM ? ntohl(wc->imm_data) : 0, slot = (uint32_t)wc->wr_id;

    if (q->dead)
        return;
    if (!is_possible(q, wc->byte_len, imm)) {
        die(q, -EPROTO);
        return;
    }
    q->credits += imm & IMM_CREDITS;
    if (wc->byte_len == 0) {
        free_receive(q, slot);
    } else {
        if (q->arrived_head == q->arrived_tail)
            eventfd_write(q->ready_fd, 1);
        q->arrived[q->arrived_tail++ % q->shape.receives] = (struct message){slot, wc->byte_len};
    }
    if (imm & IMM_FINISH)
        end_stream(q);
}

/* Handles what is complete. Return: whether anything was. */
static bool drain(struct rdma_queue *q)
{
    struct ibv_wc wc[16];
    bool any = false;
    int n;

    while ((n = ibv_poll_cq(q->cq, 16, wc)) > 0) {
        any = true;
        for (int i = 0; i < n; i++) {
            bool received = wc[i].wr_id & RECEIVED;
            wc[i].wr_id &= ~RECEIVED;
            if (!received)
                retire(q, wc[i].wr_id, wc[i].status == IBV_WC_SUCCESS);
            if (wc[i].status != IBV_WC_SUCCESS)
                die(q, errno_of_status(wc[i].status));
            else if (received)
                on_message(q, &wc[i]);
        }
    }
    if (n < 0)
        die(q, -EIO);
    return any;
}

static void on_connection_event(struct rdma_queue *q, enum rdma_cm_event_type type)
{
    switch (type) {
    case RDMA_CM_EVENT_DISCONNECTED:
        /* What the peer had sent before has arrived. */
        drain(q);
        end_stream(q);
        die(q, -ECONNRESET);
        break;
    case RDMA_CM_EVENT_DEVICE_REMOVAL:
        die(q, -ENODEV);
        drain(q);
        q->gone = true;
        retire(q, q->posted, false);
        break;
    default:
        break;
    }
}

static void handle_connection_events(struct rdma_queue *q)
{
    struct rdma_cm_event *event;

    while (q->events && rdma_get_cm_event(q->events, &event) == 0) {
        enum rdma_cm_event_type type = event->event;
        rdma_ack_cm_event(event);
        on_connection_event(q, type);
    }
}

/* Lets the descriptors say the next thing that happens. */
static void arm(struct rdma_queue *q)
{
    struct ibv_cq *cq;
    void *context;

    while (ibv_get_cq_event(q->completions, &cq, &context) == 0)
        q->cq_events++;
    if (q->cq_events > 1000) {
        ibv_ack_cq_events(q->cq, q->cq_events);
        q->cq_events = 0;
    }
    if (!q->gone)
        ibv_req_notify_cq(q->cq, 0);
}

/* What is posted has to complete within the timeout: not every device says that a link is down. */
static void check_time(struct rdma_queue *q)
{
    if (q->timeout_ms && q->signaled > q->completed && clock_ms() - q->moved_ms >= q->timeout_ms)
        die(q, -ETIMEDOUT);
}

/* Looks for a moment: what comes at once is not worth a sleep. */
static bool spin(struct rdma_queue *q)
{
    int64_t until = clock_ns() + SPIN_NS;

    while (clock_ns() < until) {
        if (drain(q))
            return true;
    }
    return false;
}

/*
 * Called with the lock held, which is given up meanwhile: until something has happened, or
 * @wait_ms are over. The caller looks whether it is what it waits for.
 */
static void step(struct rdma_queue *q, int wait_ms)
{
    if (drain(q)) {
        wake(q);
        return;
    }
    if (q->polling) {
        struct timespec until = clock_timespec(clock_ns() + (int64_t)wait_ms * 1000000);
        if (wait_ms)
            pthread_cond_timedwait(&q->progress, &q->lock, &until);
        return;
    }
    if (wait_ms && q->spins) {
        q->spins = spin(q);
        if (q->spins) {
            wake(q);
            return;
        }
    }
    arm(q);
    if (!drain(q)) {
        struct pollfd fds[] = {{.fd = q->completions->fd, .events = POLLIN},
                               {.fd = q->wake_fd, .events = POLLIN},
                               {.fd = q->events ? q->events->fd : -1, .events = POLLIN}};
        eventfd_t count;
        q->polling = true;
        pthread_mutex_unlock(&q->lock);
        int64_t start = wait_ms ? clock_ns() : 0;
        poll(fds, 3, wait_ms);
        bool soon = wait_ms && clock_ns() - start < 2 * SPIN_NS;
        pthread_mutex_lock(&q->lock);
        q->polling = false;
        q->spins = q->spins || soon;
        eventfd_read(q->wake_fd, &count);
        drain(q);
        handle_connection_events(q);
    }
    check_time(q);
    pthread_cond_broadcast(&q->progress);
}

/*
 * Sending
 */

#define WAIT_MS 200 /* how long a thread sleeps before it looks at the time */

static bool has_room(const struct rdma_queue *q)
{
    return q->posted - q->completed < SENDS;
}

/* Posts a work request that there is room for. Return: its number, or 0 with the connection dead. */
static uint64_t post(struct rdma_queue *q, struct ibv_send_wr *wr, struct posted note)
{
    struct ibv_send_wr *bad;
    uint64_t number = q->posted + 1;

    if (q->signaled <= q->completed)
        q->moved_ms = clock_ms();
    wr->wr_id = number;
    int ret = ibv_post_send(q->id->qp, wr, &bad);
    if (ret) {
        die(q, ret == ENOMEM ? -EIO : -ret);
        return 0;
    }
    q->posted = number;
    if (wr->send_flags & IBV_SEND_SIGNALED)
        q->signaled = number;
    q->sends[number % SENDS] = note;
    return number;
}

static bool has_slot(const struct rdma_queue *q)
{
    return q->slots_used - q->slots_freed < q->shape.slots;
}

static uint8_t *slot_of(const struct rdma_queue *q)
{
    return q->send_ring + q->slots_used % q->shape.slots * q->shape.slot_size;
}

/* Posts a message of what is in the next slot; there is a slot, room and a credit. */
static void post_message(struct rdma_queue *q, uint32_t len, uint32_t flags)
{
    uint32_t told = q->freed < IMM_CREDITS ? q->freed : IMM_CREDITS;
    struct ibv_sge sge = {.addr = (uintptr_t)slot_of(q), .length = len, .lkey = q->send_mr->lkey};
    struct ibv_send_wr wr = {
        .opcode = IBV_WR_SEND_WITH_IMM, .sg_list = &sge, .num_sge = len > 0, .imm_data = htonl(told | flags)};
    bool is_inline = len <= q->inline_max;

    if (++q->quiet >= SIGNAL_EVERY || flags)
        q->quiet = 0;
    wr.send_flags = (q->quiet == 0 ? IBV_SEND_SIGNALED : 0) | (is_inline ? IBV_SEND_INLINE : 0);
    if (!post(q, &wr, (struct posted){.slot = !is_inline}))
        return;
    q->slots_used += !is_inline;
    q->credits--;
    q->freed -= told;
}

/* Whether a message with bytes may be posted; the last credit is for one without. */
static bool may_send(const struct rdma_queue *q)
{
    return has_room(q) && has_slot(q) && q->credits > 1;
}

/* Tells the peer which receives are free, when it may be waiting for them. */
static void tell_freed(struct rdma_queue *q)
{
    if (!q->dead && q->freed >= q->shape.receives / 2 && has_room(q) && q->credits > 0)
        post_message(q, 0, 0);
}

/* The count, or -EFAULT: what is sent went away. */
static ssize_t copy_out(const struct iovec **iov, int *n, size_t *at, uint8_t *to, size_t room)
{
    size_t len = 0;

    while (*n > 0 && len < room) {
        size_t left = (*iov)->iov_len - *at, part = left < room - len ? left : room - len;
        if (part > 0 && guard_copy(to + len, (const uint8_t *)(*iov)->iov_base + *at, part) < 0)
            return -EFAULT;
        len += part;
        *at += part;
        if (*at == (*iov)->iov_len) {
            (*iov)++;
            (*n)--;
            *at = 0;
        }
    }
    return (ssize_t)len;
}

static int queue_send(struct transport *t, const struct iovec *iov, int n)
{
    struct rdma_queue *q = t->own;
    size_t at = 0;

    SCOPED_LOCK(&q->lock);
    for (;;) {
        while (n > 0 && at == iov->iov_len)
            iov++, n--, at = 0;
        if (n == 0)
            return q->dead;
        while (!q->dead && !may_send(q))
            step(q, WAIT_MS);
        if (q->dead)
            return q->dead;
        ssize_t len = copy_out(&iov, &n, &at, slot_of(q), q->message_max);
        if (len < 0)
            return (int)len;
        post_message(q, (uint32_t)len, 0);
    }
}

static ssize_t queue_try_send(struct transport *t, const void *buf, size_t len)
{
    struct rdma_queue *q = t->own;
    struct iovec iov = {(void *)(uintptr_t)buf, len};
    const struct iovec *p = &iov;
    size_t at = 0;
    int n = 1;

    SCOPED_LOCK(&q->lock);
    drain(q);
    if (q->dead)
        return q->dead;
    if (!may_send(q))
        return -EAGAIN;
    ssize_t sent = copy_out(&p, &n, &at, slot_of(q), q->message_max);
    if (sent < 0)
        return sent;
    post_message(q, (uint32_t)sent, 0);
    return q->dead ? q->dead : sent;
}

/* Writes what the caller has through a slot: its memory is not registered. */
static int place_copied(struct rdma_queue *q, const struct transport_key *key, uint64_t offset,
                        const void *buf, size_t len, uint64_t *ticket)
{
    while (!q->dead && !(has_room(q) && has_slot(q)))
        step(q, WAIT_MS);
    if (q->dead)
        return q->dead;
    if (guard_copy(slot_of(q), buf, len) < 0)
        return -EFAULT;
    struct ibv_sge sge = {.addr = (uintptr_t)slot_of(q), .length = (uint32_t)len, .lkey = q->send_mr->lkey};
    struct ibv_send_wr wr = {.opcode = IBV_WR_RDMA_WRITE,
                             .send_flags = IBV_SEND_SIGNALED,
                             .sg_list = &sge,
                             .num_sge = 1,
                             .wr.rdma = {.remote_addr = key->address + offset, .rkey = key->key}};
    uint64_t number = post(q, &wr, (struct posted){.slot = true, .placed = (uint32_t)len});
    if (!number)
        return q->dead;
    *ticket = number;
    q->slots_used++;
    q->placing += len;
    return 0;
}

static int place_registered(struct rdma_queue *q, const struct transport_key *key, uint64_t offset,
                            const void *buf, size_t len, struct rdma_local *local, uint64_t *ticket)
{
    bool waited = false;

    while (!q->dead && !(has_room(q) && (q->placing == 0 || q->placing + len <= PLACED_MAX))) {
        waited = true;
        step(q, WAIT_MS);
    }
    q->partial_drains += waited;
    if (q->dead)
        return q->dead;
    struct ibv_sge sge = {.addr = (uintptr_t)buf, .length = (uint32_t)len, .lkey = local->mr->lkey};
    struct ibv_send_wr wr = {.opcode = IBV_WR_RDMA_WRITE,
                             .send_flags = IBV_SEND_SIGNALED,
                             .sg_list = &sge,
                             .num_sge = 1,
                             .wr.rdma = {.remote_addr = key->address + offset, .rkey = key->key}};
    uint64_t number = post(q, &wr, (struct posted){.local = local, .placed = (uint32_t)len});
    if (!number)
        return q->dead;
    *ticket = number;
    q->placing += len;
    return 0;
}

static int queue_place(struct transport *t, const struct transport_key *key, uint64_t offset, const void *buf,
                       size_t len, struct transport_handed *handed)
{
    struct rdma_queue *q = t->own;
    bool copies = false;

    *handed = (struct transport_handed){0};
    for (size_t done = 0; done < len;) {
        const uint8_t *from = (const uint8_t *)buf + done;
        size_t part = len - done < SHARE_MAX ? len - done : SHARE_MAX;
        /* What could not be registered is not tried again with the next slot's worth of it. */
        struct rdma_local *local = copies ? NULL : rdma_local_take(q->domain, from, part, &part);
        int ret;

        copies = !local;
        pthread_mutex_lock(&q->lock);
        if (local) {
            ret = place_registered(q, key, offset + done, from, part, local, &handed->ticket);
        } else {
            part = part < q->shape.slot_size ? part : q->shape.slot_size;
            ret = place_copied(q, key, offset + done, from, part, &handed->ticket);
        }
        pthread_mutex_unlock(&q->lock);
        if (ret < 0) {
            if (local)
                rdma_local_release(q->domain, local);
            return ret;
        }
        handed->bytes += local ? part : 0;
        done += part;
    }
    return 0;
}

static void queue_reap(struct transport *t, int wait_ms, struct transport_returns *returns)
{
    struct rdma_queue *q = t->own;
    int64_t deadline = clock_ms() + wait_ms;
    uint64_t known = returns->ticket;

    SCOPED_LOCK(&q->lock);
    drain(q);
    while (q->returns.ticket <= known && q->placing > 0 && clock_ms() < deadline)
        step(q, clock_poll_timeout(deadline));
    *returns = q->returns;
}

/*
 * Receiving
 */

static void forget_message(struct rdma_queue *q)
{
    eventfd_t count;

    free_receive(q, q->arrived[q->arrived_head++ % q->shape.receives].slot);
    q->taken = 0;
    if (q->arrived_head == q->arrived_tail && !q->ended)
        eventfd_read(q->ready_fd, &count);
    tell_freed(q);
}

static ssize_t queue_recv(struct transport *t, void *buf, size_t len, int flags)
{
    struct rdma_queue *q = t->own;

    SCOPED_LOCK(&q->lock);
    for (bool looked = false; q->arrived_head == q->arrived_tail; looked = true) {
        if (q->ended)
            return q->dead && q->dead != -ECONNRESET ? q->dead : 0;
        if (flags & TRANSPORT_NOWAIT && looked)
            return -EAGAIN;
        step(q, flags & TRANSPORT_NOWAIT ? 0 : WAIT_MS);
    }
    struct message *message = &q->arrived[q->arrived_head % q->shape.receives];
    const uint8_t *from = q->recv_ring + (uint64_t)message->slot * q->shape.receive_size + q->taken;
    uint32_t left = message->len - q->taken;
    size_t n = left < len ? left : len;
    if (guard_copy(buf, from, n) < 0)
        return -EFAULT;
    q->taken += (uint32_t)n;
    if (q->taken == message->len)
        forget_message(q);
    return (ssize_t)n;
}

static int queue_pollfd(struct transport *t)
{
    return ((struct rdma_queue *)t->own)->epoll_fd;
}

/*
 * The rest
 */

static int queue_expose(struct transport *t, void *base, size_t len, struct transport_key *key)
{
    return rdma_expose(((struct rdma_queue *)t->own)->domain, base, len, key);
}

static void queue_withdraw(struct transport *t, const struct transport_key *key)
{
    rdma_withdraw(((struct rdma_queue *)t->own)->domain, key);
}

static int queue_pin(struct transport *t, const void *base, size_t len)
{
    return rdma_local_pin(((struct rdma_queue *)t->own)->domain, base, len);
}

static void queue_figures(struct transport *t, bool of_group, struct transport_figures *out)
{
    struct rdma_queue *q = t->own;

    if (of_group)
        rdma_domain_figures(q->domain, out);
    SCOPED_LOCK(&q->lock);
    out->partial_drains += q->partial_drains;
}

static void queue_set_timeout(struct transport *t, int timeout_ms)
{
    struct rdma_queue *q = t->own;

    SCOPED_LOCK(&q->lock);
    q->timeout_ms = timeout_ms;
}

static void queue_shutdown(struct transport *t)
{
    struct rdma_queue *q = t->own;

    SCOPED_LOCK(&q->lock);
    die(q, -ECONNRESET);
    if (q->events)
        rdma_disconnect(q->id);
}

/* Called with the lock held. Where there is no room for it, the end of the connection says the same. */
static void finish(struct rdma_queue *q)
{
    if (q->dead || q->finished || !has_room(q) || q->credits == 0)
        return;
    q->finished = true;
    post_message(q, 0, IMM_FINISH);
}

static void queue_finish(struct transport *t)
{
    struct rdma_queue *q = t->own;

    SCOPED_LOCK(&q->lock);
    finish(q);
}

static void free_queue(struct rdma_queue *q)
{
    if (q->id && q->id->qp)
        rdma_destroy_qp(q->id);
    /* Without the queue pair nobody reads or writes anything that was posted. */
    retire(q, q->posted, false);
    if (q->cq) {
        ibv_ack_cq_events(q->cq, q->cq_events);
        ibv_destroy_cq(q->cq);
    }
    if (q->completions)
        ibv_destroy_comp_channel(q->completions);
    if (q->send_mr)
        ibv_dereg_mr(q->send_mr);
    if (q->recv_mr)
        ibv_dereg_mr(q->recv_mr);
    free(q->send_ring);
    free(q->recv_ring);
    free(q->arrived);
    if (q->events) {
        rdma_destroy_id(q->id);
        rdma_destroy_event_channel(q->events);
    }
    for (int *fd = (int[]){q->epoll_fd, q->ready_fd, q->wake_fd, -2}; *fd != -2; fd++) {
        if (*fd >= 0)
            close(*fd);
    }
    rdma_domain_put(q->domain);
    pthread_cond_destroy(&q->progress);
    pthread_mutex_destroy(&q->lock);
    free(q);
}

static void queue_close(struct transport *t)
{
    struct rdma_queue *q = t->own;

    pthread_mutex_lock(&q->lock);
    /* One that never stood has nothing to say, and nobody to wait for. */
    if (q->events)
        finish(q);
    int64_t deadline = clock_ms() + CLOSE_MS;
    while (q->events && !q->dead && q->signaled > q->completed && clock_ms() < deadline)
        step(q, clock_poll_timeout(deadline));
    die(q, -ECONNRESET);
    if (q->events)
        rdma_disconnect(q->id);
    pthread_mutex_unlock(&q->lock);
    free_queue(q);
    free(t);
}

static const struct transport_ops rdma_ops = {
    .name = "rdma",
    .send = queue_send,
    .send_pipe = dummy_send_pipe,
    .zerocopy = dummy_zerocopy,
    .send_zerocopy = dummy_send_zerocopy,
    .place = queue_place,
    .reap = queue_reap,
    .try_send = queue_try_send,
    .recv = queue_recv,
    .recv_parts = dummy_recv_parts,
    .recv_fd = dummy_recv_fd,
    .expose = queue_expose,
    .withdraw = queue_withdraw,
    .pin = queue_pin,
    .figures = queue_figures,
    .pollfd = queue_pollfd,
    .set_timeout = queue_set_timeout,
    .shutdown = queue_shutdown,
    .finish = queue_finish,
    .explain = dummy_explain,
    .close = queue_close,
};

static int watch(struct rdma_queue *q, int fd)
{
    struct epoll_event event = {.events = EPOLLIN};

    return fd >= 0 && epoll_ctl(q->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : -errno;
}

static int make_rings(struct rdma_queue *q, struct ibv_pd *pd)
{
    size_t recv_size = (size_t)q->shape.receives * q->shape.receive_size,
           send_size = (size_t)q->shape.slots * q->shape.slot_size;

    if (posix_memalign((void **)&q->send_ring, 4096, send_size) ||
        posix_memalign((void **)&q->recv_ring, 4096, recv_size))
        return -ENOMEM;
    q->arrived = calloc(q->shape.receives, sizeof(*q->arrived));
    if (!q->arrived)
        return -ENOMEM;
    q->send_mr = ibv_reg_mr(pd, q->send_ring, send_size, 0);
    if (!q->send_mr)
        return -errno;
    q->recv_mr = ibv_reg_mr(pd, q->recv_ring, recv_size, IBV_ACCESS_LOCAL_WRITE);
    return q->recv_mr ? 0 : -errno;
}

static int make_queue_pair(struct rdma_queue *q, struct ibv_pd *pd)
{
    q->completions = ibv_create_comp_channel(q->id->verbs);
    if (!q->completions || fcntl(q->completions->fd, F_SETFL, O_NONBLOCK) < 0)
        return -errno;
    q->cq = ibv_create_cq(q->id->verbs, (int)(SENDS + q->shape.receives + 1), NULL, q->completions, 0);
    if (!q->cq)
        return -errno;
    struct ibv_qp_init_attr attr = {
        .send_cq = q->cq,
        .recv_cq = q->cq,
        .cap = {.max_send_wr = SENDS,
                .max_recv_wr = q->shape.receives,
                .max_send_sge = 1,
                .max_recv_sge = 1,
                .max_inline_data = INLINE_MAX},
        .qp_type = IBV_QPT_RC,
    };
    int ret = rdma_create_qp(q->id, pd, &attr);
    if (ret < 0 && attr.cap.max_inline_data) {
        /* Not every device has so much room in a work request. */
        attr.cap.max_inline_data = 0;
        ret = rdma_create_qp(q->id, pd, &attr);
    }
    if (ret < 0)
        return -errno;
    q->inline_max = attr.cap.max_inline_data;
    return 0;
}

static int make_descriptors(struct rdma_queue *q)
{
    q->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    q->ready_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    q->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (q->epoll_fd < 0 || q->wake_fd < 0)
        return -errno;
    int ret = watch(q, q->ready_fd);
    return ret < 0 ? ret : watch(q, q->completions->fd);
}

static int prepare(struct rdma_queue *q)
{
    struct ibv_pd *pd = rdma_domain_pd(q->domain);
    int ret = make_rings(q, pd);

    if (ret == 0)
        ret = make_queue_pair(q, pd);
    if (ret == 0)
        ret = make_descriptors(q);
    for (uint32_t slot = 0; slot < q->shape.receives && ret == 0; slot++)
        ret = post_receive(q, slot);
    if (ret == 0 && ibv_req_notify_cq(q->cq, 0))
        ret = -EIO;
    return ret;
}

int rdma_queue_new(struct rdma_cm_id *id, const struct rdma_shape *shape, struct rdma_domain *domain,
                   struct transport **out, struct error *err)
{
    struct rdma_queue *q = calloc(1, sizeof(*q));
    struct transport *t = q ? transport_new(&rdma_ops, q) : NULL;

    if (!t) {
        free(q);
        rdma_domain_put(domain);
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    }
    q->id = id;
    q->domain = domain;
    q->shape = *shape;
    q->epoll_fd = q->ready_fd = q->wake_fd = -1;
    pthread_mutex_init(&q->lock, NULL);
    clock_cond_init(&q->progress);
    int ret = prepare(q);
    if (ret < 0) {
        free_queue(q);
        free(t);
        if (ret == -ENOMEM)
            return error_set(err, CAUSE_NO_MEMORY,
                             "memory cannot be registered for RDMA: raise RLIMIT_MEMLOCK (ulimit -l)");
        return error_set_errno(err, ret, "making a queue pair");
    }
    t->traits = (struct transport_traits){.copy_max = COPY_MAX, .places = true};
    *out = t;
    return 0;
}

void rdma_queue_greeting(struct transport *t, struct rdma_greeting *greeting)
{
    struct rdma_queue *q = t->own;

    *greeting = (struct rdma_greeting){.receives = htole32(q->shape.receives),
                                       .receive_size = htole32(q->shape.receive_size)};
    memcpy(greeting->magic, magic, sizeof(magic));
}

bool rdma_greeting_is_valid(const void *greeting, size_t len)
{
    return greeting && len >= sizeof(struct rdma_greeting) && !memcmp(greeting, magic, sizeof(magic));
}

int rdma_queue_meet(struct transport *t, const void *greeting, size_t len, struct error *err)
{
    struct rdma_queue *q = t->own;
    struct rdma_greeting theirs;

    if (!rdma_greeting_is_valid(greeting, len))
        return error_set(err, CAUSE_PROTOCOL, "the peer's RDMA connection is not one of migfs");
    memcpy(&theirs, greeting, sizeof(theirs));
    uint32_t receives = le32toh(theirs.receives), size = le32toh(theirs.receive_size);
    if (receives < 4 || receives > IMM_CREDITS || size < 256)
        return error_set(err, CAUSE_PROTOCOL, "the peer has %u receives of %u bytes", receives, size);
    SCOPED_LOCK(&q->lock);
    q->credits = q->credits_max = receives;
    q->message_max = size < q->shape.slot_size ? size : q->shape.slot_size;
    return 0;
}

int rdma_queue_established(struct transport *t)
{
    struct rdma_queue *q = t->own;
    struct rdma_event_channel *events = rdma_create_event_channel();

    if (!events)
        return -errno;
    /* The last thing that can fail is that the id moves: from there on it is the connection's. */
    if (fcntl(events->fd, F_SETFL, O_NONBLOCK) < 0 || watch(q, events->fd) < 0 ||
        rdma_migrate_id(q->id, events) < 0) {
        int code = errno;
        rdma_destroy_event_channel(events);
        return -code;
    }
    pthread_mutex_lock(&q->lock);
    q->events = events;
    pthread_mutex_unlock(&q->lock);
    const struct sockaddr *addr = rdma_get_peer_addr(q->id);
    lookup_name_peer(t, "rdma", addr,
                     addr->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in));
    return 0;
}
