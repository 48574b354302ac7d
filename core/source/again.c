/* SPDX-License-Identifier: Apache-2.0 */
/* Connections that are made again; see again.h. */
#include "again.h"
#include "clock.h"
#include "connection.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define BACKOFF_MS       20 /* after the first attempt; doubles */
#define BACKOFF_MAX_MS   1000
#define BACKOFF_THERE_MS 100  /* the most where the destination has just been there */
#define SETTLED_MS       1000 /* a connection that lasts so long was worth the effort */

void again_init(struct again *again)
{
    *again = (struct again){.over_fd = -1};
}

/* Whether the destination will not think better of it. */
static bool is_final(enum cause refusal)
{
    return refusal == CAUSE_NOT_FOUND || refusal == CAUSE_STATE || refusal == CAUSE_PROTOCOL ||
           refusal == CAUSE_DENIED || refusal == CAUSE_UNSUPPORTED || refusal == CAUSE_CANCELLED;
}

/* Waits before another attempt. False: there is none; with @err, if it is over. */
static bool may_try(int cancel_fd, int64_t deadline_ms, int *backoff_ms, struct error *err)
{
    struct pollfd fd = {.fd = cancel_fd, .events = POLLIN};
    int64_t left = deadline_ms - clock_ms();

    if (left <= 0)
        return false;
    if (poll(&fd, 1, *backoff_ms < left ? *backoff_ms : (int)left) > 0) {
        error_set(err, CAUSE_INTERRUPTED, "it is over");
        return false;
    }
    *backoff_ms = *backoff_ms ? 2 * *backoff_ms : BACKOFF_MS;
    if (*backoff_ms > BACKOFF_MAX_MS)
        *backoff_ms = BACKOFF_MAX_MS;
    return true;
}

/* What to connect for, and for whom. */
struct attempt {
    struct connection *conn;
    int index;     /* of a data channel; -1: the main one */
    int cancel_fd; /* gives up when it is readable */
    /* Whether it is over for another reason; NULL: there is none. Looked at before each attempt */
    bool (*is_over)(void *arg);
    void *is_over_arg;
    /* Gives the connection to who needs it, or fails: then it is closed. */
    int (*take)(void *arg, struct transport *t, const struct hello_reply *reply, struct error *err);
    void *arg;
};

/* Connects until it is welcome. */
static int reach_until(const struct attempt *attempt, int64_t deadline_ms, int *backoff_ms, struct error *err)
{
    struct connection *conn = attempt->conn;
    struct error last = {0};

    while (may_try(attempt->cancel_fd, deadline_ms, backoff_ms, err)) {
        if (attempt->is_over && attempt->is_over(attempt->is_over_arg))
            return error_set(err, CAUSE_INTERRUPTED, "it is over");
        int64_t until = clock_ms() + conn->hello.timeout_ms;
        struct transport_wait wait = {.cancel_fd = attempt->cancel_fd,
                                      .deadline_ms = until < deadline_ms ? until : deadline_ms};
        struct hello_reply reply = {0};
        struct transport *t;
        last = (struct error){0};
        if (connection_greet_again(conn, attempt->index, &wait, &t, &reply, &last) == 0) {
            if (attempt->take(attempt->arg, t, &reply, err) == 0)
                return 0;
            transport_close(t);
            return -EIO;
        }
        if (is_final(reply.cause) || last.cause == CAUSE_DENIED) {
            *err = last;
            return -EIO;
        }
    }
    if (error_is_set(err))
        return -EIO;
    return error_set(err, error_is_set(&last) ? last.cause : CAUSE_TIMEOUT,
                     "it could not be made again within %u s: %s", conn->hello.resume_ms / 1000,
                     error_is_set(&last) ? last.message : "there was no time");
}

/* What a connection has done since it was made the last time. */
enum record {
    RECORD_STUCK, /* nothing, though something was due */
    RECORD_IDLE,  /* nothing was due */
    RECORD_MOVED,
};

/* A connection that is lost again at once, time after time, is not made again at once. */
static int reach(const struct attempt *attempt, struct again_patience *patience, enum record record,
                 struct error *err)
{
    int64_t begun = clock_ms();

    if (record != RECORD_STUCK)
        patience->left_ms = attempt->conn->hello.resume_ms;
    if (record == RECORD_MOVED || begun - patience->made_ms >= SETTLED_MS)
        patience->backoff_ms = 0;
    else if (patience->backoff_ms > BACKOFF_THERE_MS)
        patience->backoff_ms = BACKOFF_THERE_MS;
    int ret = reach_until(attempt, begun + patience->left_ms, &patience->backoff_ms, err);
    patience->made_ms = clock_ms();
    patience->left_ms -= patience->made_ms - begun;
    return ret;
}

/*
 * Data channels
 */

static int take_channel(void *arg, struct transport *t, const struct hello_reply *reply, struct error *err)
{
    struct again_listener *l = arg;

    transport_set_timeout(t, (int)l->conn->hello.timeout_ms);
    int ret = channel_renew(&l->conn->channels[l->index], t, reply->received);
    if (ret == -ECANCELED)
        return error_set(err, CAUSE_INTERRUPTED, "it is over");
    if (ret < 0)
        return error_set(err, CAUSE_PROTOCOL, "the destination has received %llu bytes, which cannot be",
                         (unsigned long long)reply->received);
    return 0;
}

/* The channel cannot go on. Who is told to complete does not need it. */
static void give_up(struct again_listener *l, const struct error *why)
{
    struct connection *conn = l->conn;

    channel_close(&conn->channels[l->index], CHANNEL_DEAD);
    if (why->cause != CAUSE_INTERRUPTED && !atomic_load(&conn->committed))
        conn->failed(conn->failed_arg, why, 0);
}

/* The connection of a channel is lost: makes it again. False: it is over. */
static bool renew(struct again_listener *l, int code)
{
    struct connection *conn = l->conn;
    struct channel *ch = &conn->channels[l->index];
    struct error reason = {0}, err = {0};

    channel_lose(ch);
    if (channel_is_dead(ch) || atomic_load(&conn->committed))
        return false;
    transport_explain(ch->transport, &reason);
    error_set_errno(&reason, code, "the connection of channel %u", l->index);
    conn->lost(conn->failed_arg, &reason);
    const struct attempt attempt = {
        .conn = conn, .index = (int)l->index, .cancel_fd = l->again->over_fd, .take = take_channel, .arg = l};
    enum record record = channel_has_moved(ch) ? RECORD_MOVED
                         : channel_is_idle(ch) ? RECORD_IDLE
                                               : RECORD_STUCK;
    bool made = reach(&attempt, &l->patience, record, &err) == 0;
    /* Who was told to complete meanwhile needs the channel no more, and refuses it. */
    if (made || atomic_load(&conn->committed)) {
        conn->found_again(conn->failed_arg);
        return made;
    }
    error_prefix(&err, "channel %u is lost (%s)", l->index, reason.message);
    give_up(l, &err);
    return false;
}

static void *mig_again(void *arg)
{
    struct again_listener *l = arg;
    struct channel *ch = &l->conn->channels[l->index];
    struct error nonsense = {0};
    int ret = 0;

    do {
        while ((ret = channel_hear(ch)) == 0)
            ;
    } while (ret < 0 && renew(l, ret));
    if (ret < 0)
        return NULL;
    /* No other connection would cure that. */
    error_set(&nonsense, CAUSE_PROTOCOL, "channel %u: the destination has applied what was not sent",
              l->index);
    give_up(l, &nonsense);
    return NULL;
}

int again_start(struct again *again, struct connection *conn, struct error *err)
{
    char name[24];

    again->over_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (again->over_fd < 0)
        return error_set_errno(err, errno, "cannot make an eventfd");
    again->listeners = calloc(conn->channel_count, sizeof(*again->listeners));
    if (!again->listeners)
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    for (unsigned c = 0; c < conn->channel_count; c++) {
        struct again_listener *l = &again->listeners[c];
        l->again = again;
        l->conn = conn;
        l->index = c;
        int code = pthread_create(&l->thread, NULL, mig_again, l);
        if (code)
            return error_set_errno(err, code, "cannot make a thread");
        again->running = c + 1;
        snprintf(name, sizeof(name), "mig-again-%u", c);
        pthread_setname_np(l->thread, name);
    }
    return 0;
}

void again_stop(struct again *again)
{
    if (again->over_fd >= 0)
        eventfd_write(again->over_fd, 1);
}

void again_join(struct again *again)
{
    for (unsigned i = 0; i < again->running; i++)
        pthread_join(again->listeners[i].thread, NULL);
    free(again->listeners);
    if (again->over_fd >= 0)
        close(again->over_fd);
    again_init(again);
}

/*
 * The main channel
 */

static int take_main(void *arg, struct transport *t, const struct hello_reply *reply, struct error *err)
{
    struct connection *conn = arg;

    return session_renew(&conn->main, t, reply->received, err);
}

int again_main(struct again *again, struct connection *conn, int cancel_fd, const struct error *reason,
               struct error *err)
{
    uint64_t received = atomic_load(&conn->main.received);
    enum record record = conn->main.heard ? RECORD_IDLE : RECORD_STUCK;

    if (received != again->main_received)
        record = RECORD_MOVED;
    again->main_received = received;
    session_lose(&conn->main);
    conn->lost(conn->failed_arg, reason);
    const struct attempt attempt = {.conn = conn,
                                    .index = -1,
                                    .cancel_fd = cancel_fd,
                                    .is_over = again->is_over,
                                    .is_over_arg = again->is_over_arg,
                                    .take = take_main,
                                    .arg = conn};
    if (reach(&attempt, &again->main, record, err) == 0) {
        conn->found_again(conn->failed_arg);
        return 0;
    }
    error_prefix(err, "%s", reason->message);
    return -EIO;
}

void again_goodbye(struct connection *conn, bool (*is_over)(void *arg), void *arg)
{
    int64_t deadline = clock_ms() + wire_resume_wait_ms(conn->hello.resume_ms);
    const struct attempt attempt = {.conn = conn,
                                    .index = -1,
                                    .cancel_fd = -1,
                                    .is_over = is_over,
                                    .is_over_arg = arg,
                                    .take = take_main,
                                    .arg = conn};
    int backoff_ms = 0;
    struct error err = {0};

    while (!session_part(&conn->main, SESSION_LINGER_MS)) {
        session_lose(&conn->main);
        if (reach_until(&attempt, deadline, &backoff_ms, &err) < 0)
            return;
    }
}
