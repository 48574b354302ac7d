/* SPDX-License-Identifier: Apache-2.0 */
/* One attempt to reach a peer; see connection.h. */
#include "connection.h"
#include "cleanup.h"
#include "clock.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define RETRY_MS   20
#define SUSPECT_MS 1000       /* how long a broken data channel waits for the main channel to say why */
#define KEPT_MIN   (2u << 20) /* bytes that a channel can always keep until they are applied */

/* channel.failed */
static void channel_failed(void *arg, unsigned index, int code)
{
    struct connection *conn = arg;
    struct error reason = {0};
    bool required = conn->zero_copy == ZEROCOPY_REQUIRE;
    int delay_ms = 0;

    if (code == -EOPNOTSUPP && required) {
        error_set(
            &reason, CAUSE_UNSUPPORTED,
            "zero-copy is required, but the kernel copies what channel %u sends (as always over loopback "
            "and veth)",
            index);
    } else if (code == -ENOBUFS && required) {
        error_set(&reason, CAUSE_NO_MEMORY,
                  "zero-copy is required, but channel %u cannot lock memory (RLIMIT_MEMLOCK, "
                  "net.core.optmem_max)",
                  index);
    } else {
        delay_ms = SUSPECT_MS;
        if (code == -EFAULT)
            error_set(&reason, CAUSE_IO, "the RAM source cannot be read: perhaps it has become shorter");
        else
            error_set_errno(&reason, code, "sending on channel %u", index);
    }
    conn->failed(conn->failed_arg, &reason, delay_ms);
}

static struct transport_wait wait_of(const struct connection *conn, int cancel_fd)
{
    return (struct transport_wait){.cancel_fd = cancel_fd,
                                   .deadline_ms = clock_ms() + conn->hello.timeout_ms};
}

/* Connects; by TCP where RDMA cannot be had, if that is allowed. @index: 0 for the main channel */
static int reach(struct connection *conn, const struct uri *uri, unsigned index,
                 const struct transport_wait *wait, struct transport **out, struct error *err)
{
    struct uri tcp;
    bool can_fall_back = conn->fallback && uri_without_rdma(uri, &tcp);

    if (can_fall_back && conn->fallen_back[0])
        return transport_connect(&tcp, index, &conn->group, wait, out, err);
    if (transport_connect(uri, index, &conn->group, wait, out, err) == 0)
        return 0;
    if (!can_fall_back || err->cause == CAUSE_INTERRUPTED)
        return -EIO;
    struct transport_wait again = wait_of(conn, wait->cancel_fd);
    struct error why = *err;
    *err = (struct error){0};
    int ret = transport_connect(&tcp, index, &conn->group, &again, out, err);
    if (ret == 0)
        strcpy(conn->fallen_back, why.message);
    return ret;
}

/* The connection has failed: what it knows of that is more than the errno. */
static void blame(struct transport *t, const struct uri *uri, int code, struct error *err)
{
    struct error why = {0};

    transport_explain(t, &why);
    if (error_is_set(&why))
        error_set(err, why.cause, "%.80s: %s", uri->text, why.message);
    error_set_errno(err, code, "the handshake with %s", uri->text);
}

/* Has the connection protected, if anything is, and makes sure of who is at the other end. */
static int secure(struct connection *conn, const struct uri *uri, enum wire_hello_kind kind,
                  const struct transport_wait *wait, struct transport *t, struct error *err)
{
    const char *host = *conn->tls_name ? conn->tls_name : *uri->host ? uri->host : "localhost";

    if (conn->tls && t->traits.is_local && kind != WIRE_HELLO_MAIN && conn->peer.name[0])
        return error_set(err, CAUSE_DENIED, "%.160s: without TLS, but the main channel is protected by it",
                         uri->text);
    if (!conn->tls || t->traits.is_local)
        return 0;
    if (!t->traits.seals && !conn->insecure)
        return error_set(
            err, CAUSE_UNSUPPORTED,
            "%.160s: there is no TLS by RDMA: if that is fine, start this daemon with -o insecure, too",
            uri->text);
    if (!t->traits.seals)
        return 0;
    if (tls_client(conn->tls, t, host, wait, err) < 0)
        return -EIO;
    if (kind == WIRE_HELLO_MAIN)
        conn->peer = t->identity;
    else if (memcmp(conn->peer.digest, t->identity.digest, sizeof(conn->peer.digest)))
        return error_set(err, CAUSE_DENIED, "%.80s reaches '%.48s', and the main channel '%.48s'", uri->text,
                         t->identity.name, conn->peer.name);
    return 0;
}

/* Connects, and exchanges hellos. */
static int greet(struct connection *conn, enum wire_hello_kind kind, unsigned channel,
                 const struct transport_wait *wait, struct transport **transport, struct hello_reply *reply,
                 struct error *err)
{
    bool is_data = kind == WIRE_HELLO_DATA || kind == WIRE_HELLO_DATA_AGAIN;
    const struct uri *uri = &conn->uris.uri[is_data ? channel % conn->uris.count : 0];
    struct hello hello = conn->hello;
    struct wire_hello wire;
    struct wire_hello_reply wire_reply;
    struct iovec iov = {&wire, sizeof(wire)};
    struct transport *t;

    hello.kind = kind;
    hello.channel = channel;
    hello.received = atomic_load(&conn->main.received);
    if (reach(conn, uri, is_data ? channel + 1 : 0, wait, &t, err) < 0)
        return -EIO;
    wire_hello_encode(&hello, &wire);
    int ret = secure(conn, uri, kind, wait, t, err);
    if (ret == 0)
        ret = transport_send(t, &iov, 1);
    if (ret == 0)
        ret = transport_recv_all(t, &wire_reply, sizeof(wire_reply), wait);
    if (ret == -ECANCELED)
        error_set(err, CAUSE_INTERRUPTED, "connecting to %s was interrupted", uri->text);
    else if (ret == -ETIMEDOUT)
        error_set(err, CAUSE_TIMEOUT, "%s does not answer", uri->text);
    else if (ret < 0)
        blame(t, uri, ret, err);
    else if (wire_hello_reply_decode(&wire_reply, reply, err) == 0 && reply->cause != CAUSE_NONE)
        session_read_reason(reply->cause, reply->text, "the destination refuses", err);
    if (error_is_set(err)) {
        transport_close(t);
        return -EIO;
    }
    *transport = t;
    return 0;
}

static int new_session(struct connection *conn, struct error *err)
{
    if (getrandom(conn->hello.session, sizeof(conn->hello.session), 0) != sizeof(conn->hello.session))
        return error_set_errno(err, errno, "no random numbers");
    static_assert(sizeof(conn->group.id) == sizeof(conn->hello.session), "a group's id is the session's");
    memcpy(conn->group.id, conn->hello.session, sizeof(conn->group.id));
    return 0;
}

/*
 * The same for the first time. A connection that is lost before the destination has answered is made again,
 * too, where that is done at all; the destination may have heard of the main one, so the next is of a session
 * of its own.
 */
static int greet_first(struct connection *conn, enum wire_hello_kind kind, unsigned channel, int cancel_fd,
                       struct transport **transport, struct hello_reply *reply, struct error *err)
{
    struct pollfd fd = {.fd = cancel_fd, .events = POLLIN};
    int64_t deadline = clock_ms() + conn->hello.resume_ms;

    for (;;) {
        struct transport_wait wait = wait_of(conn, cancel_fd);
        if (kind == WIRE_HELLO_MAIN && new_session(conn, err) < 0)
            return -EIO;
        *reply = (struct hello_reply){0};
        if (greet(conn, kind, channel, &wait, transport, reply, err) == 0)
            return 0;
        if (err->cause != CAUSE_RESET || reply->cause != CAUSE_NONE || clock_ms() >= deadline)
            return -EIO;
        *err = (struct error){0};
        poll(&fd, 1, RETRY_MS);
    }
}

/* The connection without its channels. */
static struct connection *new_attempt(const struct connection_config *config, struct error *err)
{
    struct connection *conn = calloc(1, sizeof(*conn));

    if (!conn) {
        error_set(err, CAUSE_NO_MEMORY, "out of memory");
        return NULL;
    }
    conn->uris = *config->uris;
    conn->fallback = config->fallback;
    conn->tls = config->tls;
    conn->insecure = config->insecure;
    if (config->tls_name)
        snprintf(conn->tls_name, sizeof(conn->tls_name), "%s", config->tls_name);
    conn->hello = (struct hello){
        .channels = config->channels,
        .device_channels = config->device_channels,
        .features = config->features,
        .page_size = WIRE_PAGE_SIZE,
        .stripe_size = WIRE_STRIPE_SIZE,
        .timeout_ms = config->timeout_ms,
        .resume_ms = config->resume_ms,
    };
    strcpy(conn->hello.name, config->name);
    conn->zero_copy = config->zero_copy;
    conn->failed = config->failed;
    conn->lost = config->lost;
    conn->found_again = config->found_again;
    conn->failed_arg = config->arg;
    conn->group.chunk = config->rdma_chunk;
    gate_init(&conn->gate, config->write_behind);
    pace_init(&conn->pace, config->max_bandwidth);
    return conn;
}

static int open_main(struct connection *conn, const struct connection_config *config, struct error *err)
{
    struct transport *t;

    if (greet_first(conn, WIRE_HELLO_MAIN, 0, config->cancel_fd, &t, &conn->limits, err) < 0)
        return -EIO;
    if (session_init(&conn->main, t, config->timeout_ms, conn->limits.timeout_ms) == 0) {
        if (config->resume_ms)
            session_keep(&conn->main);
        placing_init(&conn->placing, &conn->main, conn->group.chunk);
        return 0;
    }
    transport_close(t);
    return error_set(err, CAUSE_NO_MEMORY, "out of memory");
}

/* Of a channel, that has been sent and is not known to be applied: all of them together what the gate lets
 * in. */
static uint64_t kept_max(const struct connection_config *config)
{
    uint64_t share = config->write_behind / config->channels;

    return share > KEPT_MIN ? share : KEPT_MIN;
}

static int open_channel(struct connection *conn, const struct connection_config *config, struct error *err)
{
    unsigned c = conn->channel_count;
    struct hello_reply reply;
    struct transport *t;

    if (greet_first(conn, WIRE_HELLO_DATA, c, config->cancel_fd, &t, &reply, err) < 0)
        return -EIO;
    transport_set_timeout(t, (int)config->timeout_ms);
    channel_init(&conn->channels[c], c, t, &conn->gate, channel_failed, conn);
    conn->channels[c].pace = &conn->pace;
    if (config->resume_ms)
        channel_keep(&conn->channels[c], kept_max(config));
    conn->channel_count = c + 1;
    conn->channels[c].of_group = conn->channels[c].places && !conn->places;
    conn->places |= conn->channels[c].places;
    if (c == 0 || conn->channels[c].copy_max < conn->copy_max)
        conn->copy_max = conn->channels[c].copy_max;
    if (channel_set_placing(&conn->channels[c]) < 0)
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    /* A copy is made in any case of what may have to be sent again. */
    int ret = channel_set_zerocopy(&conn->channels[c], config->resume_ms ? ZEROCOPY_OFF : config->zero_copy);
    if (ret == -EOPNOTSUPP && conn->peer.name[0])
        return error_set(err, CAUSE_UNSUPPORTED,
                         "zero-copy is required, but what goes by TLS has to be encrypted first");
    if (ret == -EOPNOTSUPP)
        return error_set(err, CAUSE_UNSUPPORTED,
                         "zero-copy is required, but there is none on the way to %.160s",
                         conn->uris.uri[c % conn->uris.count].text);
    if (ret < 0)
        return error_set_errno(err, ret, "zero-copy is required, but cannot be had for channel %u", c);
    return 0;
}

/* The main channel is there; all the others, and what they need. */
static int open_channels(struct connection *conn, const struct connection_config *config, struct error *err)
{
    conn->channels = calloc(config->channels, sizeof(*conn->channels));
    if (config->compress)
        conn->compressor = compressor_new(config->zstd_level);
    if (!conn->channels || (config->compress && !conn->compressor))
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    while (conn->channel_count < config->channels) {
        if (open_channel(conn, config, err) < 0)
            return -EIO;
    }
    if (conn->peer.name[0] && config->splice == CONNECTION_SPLICE_ALWAYS)
        return error_set(err, CAUSE_UNSUPPORTED,
                         "splice is on, but what goes by TLS has to be encrypted first");
    conn->splices = config->splice != CONNECTION_SPLICE_NEVER && !config->resume_ms;
    for (unsigned c = 0; c < conn->channel_count && config->splice == CONNECTION_SPLICE_AUTO; c++)
        conn->splices &= channel_splices(&conn->channels[c]);
    return 0;
}

int connection_open(const struct connection_config *config, struct connection **out, struct error *err)
{
    struct connection *conn = new_attempt(config, err);

    if (!conn)
        return -EIO;
    if (open_main(conn, config, err) < 0) {
        pace_fini(&conn->pace);
        gate_fini(&conn->gate);
        free(conn);
        return -EIO;
    }
    if (open_channels(conn, config, err) < 0) {
        /* A goodbye tells the peer more than a closed connection. */
        session_goodbye(&conn->main, err);
        connection_free(conn);
        return -EIO;
    }
    *out = conn;
    return 0;
}

void connection_free(struct connection *conn)
{
    if (!conn)
        return;
    for (unsigned c = 0; c < conn->channel_count; c++)
        channel_fini(&conn->channels[c]);
    compressor_free(conn->compressor);
    free(conn->channels);
    placing_fini(&conn->placing);
    session_fini(&conn->main);
    pace_fini(&conn->pace);
    gate_fini(&conn->gate);
    free(conn);
}

bool connection_lock_channels(struct connection *conn, const bool *need)
{
    bool open = true;
    unsigned c;

    for (c = 0; c < conn->channel_count && open; c++) {
        if (!need[c])
            continue;
        pthread_mutex_lock(&conn->channels[c].lock);
        open = conn->channels[c].closed == CHANNEL_OPEN;
    }
    if (open)
        return true;
    while (c-- > 0) {
        if (need[c])
            pthread_mutex_unlock(&conn->channels[c].lock);
    }
    return false;
}

void connection_unlock_channels(struct connection *conn, const bool *need)
{
    for (unsigned c = 0; c < conn->channel_count; c++) {
        if (need[c])
            pthread_mutex_unlock(&conn->channels[c].lock);
    }
}

void connection_count(struct connection *conn, const struct file *file, uint64_t *counts)
{
    for (unsigned c = 0; c < conn->channel_count; c++) {
        struct channel *ch = &conn->channels[c];
        SCOPED_LOCK(&ch->lock);
        const struct file_channel *fc = file ? file->per_channel : NULL;
        /* When it is over, or was removed before the start, there is nothing to wait for. */
        counts[c] = !file ? ch->last_sequence : fc ? counter_get(&fc[c].last_sequence) : 0;
        channel_hurry(ch);
    }
}

int connection_check_size(const struct connection *conn, struct file *file, uint64_t size, struct error *err)
{
    uint64_t max = file->id == WIRE_RAM ? conn->limits.max_ram : conn->limits.max_device;
    char name[WIRE_NAME_SIZE];

    if (size > max)
        return error_set(err, CAUSE_QUOTA, "'%.64s' would have %llu bytes; the destination allows %llu",
                         file_name(file, name), (unsigned long long)size, (unsigned long long)max);
    return 0;
}

uint64_t connection_channel_bytes(struct connection *conn, unsigned index)
{
    SCOPED_LOCK(&conn->channels[index].lock);
    return conn->channels[index].wire_bytes;
}

uint64_t connection_wire_bytes(struct connection *conn)
{
    uint64_t bytes = 0;

    for (unsigned c = 0; c < conn->channel_count; c++)
        bytes += connection_channel_bytes(conn, c);
    return bytes;
}

int connection_note_progress(struct connection *conn, struct wire_reader *body, struct error *err)
{
    struct progress progress = {.work = wire_read_u64(body)};

    for (unsigned c = 0; c < conn->channel_count; c++) {
        progress.channel[c].received = wire_read_u64(body);
        progress.channel[c].applied = wire_read_u64(body);
    }
    if (!wire_read_done(body))
        return error_set(err, CAUSE_PROTOCOL, "progress of another number of channels");
    conn->progress = progress;
    return 0;
}

void connection_watch(struct connection *conn)
{
    /* What the destination shows comes up to a step later, and is looked at up to a step after that. */
    stall_init(&conn->watch, (int64_t)conn->hello.timeout_ms + 2 * conn->main.ping_ms, conn->main.ping_ms);
}

bool connection_look(struct connection *conn, bool answer_due, struct error *reason)
{
    struct stall_sight sights[STALL_MAX];
    struct stall_sight *answers = &sights[conn->channel_count];

    *answers = (struct stall_sight){.awaited = answer_due};
    for (unsigned c = 0; c < conn->channel_count; c++) {
        uint64_t applied = conn->progress.channel[c].applied;
        sights[c].awaited = channel_is_owed(&conn->channels[c], applied, &sights[c].mark);
        sights[c].mark += conn->progress.channel[c].received + applied + conn->progress.work;
        answers->mark += sights[c].mark;
    }
    int stalled = stall_look(&conn->watch, clock_ms(), sights, conn->channel_count + 1);
    if (stalled < 0)
        return false;
    if ((unsigned)stalled < conn->channel_count)
        error_set(reason, CAUSE_TIMEOUT, "channel %d has stalled: nothing has moved on it for %u ms", stalled,
                  conn->hello.timeout_ms);
    else
        error_set(reason, CAUSE_TIMEOUT, "the destination is there, but has not answered for %u ms",
                  conn->hello.timeout_ms);
    return true;
}

int connection_ask(struct connection *conn, const struct transport_wait *wait, enum wire_outcome *outcome,
                   struct error *err)
{
    struct hello_reply reply;
    struct transport *t;

    if (greet(conn, WIRE_HELLO_QUERY, 0, wait, &t, &reply, err) < 0)
        return -EIO;
    transport_close(t);
    *outcome = reply.outcome;
    return 0;
}

bool connection_shake(struct connection *conn)
{
    uint64_t applied = 1;

    for (unsigned c = 0; c < conn->channel_count; c++)
        applied += conn->progress.channel[c].applied;
    if (!connection_resumes(conn) || applied == conn->shaken_at)
        return false;
    conn->shaken_at = applied;
    for (unsigned c = 0; c < conn->channel_count; c++)
        channel_lose(&conn->channels[c]);
    connection_watch(conn);
    return true;
}

int connection_greet_again(struct connection *conn, int index, const struct transport_wait *wait,
                           struct transport **out, struct hello_reply *reply, struct error *err)
{
    if (index < 0)
        return greet(conn, WIRE_HELLO_MAIN_AGAIN, 0, wait, out, reply, err);
    return greet(conn, WIRE_HELLO_DATA_AGAIN, (unsigned)index, wait, out, reply, err);
}

void connection_await_quiet(struct connection *conn)
{
    for (unsigned c = 0; c < conn->channel_count; c++)
        channel_await_quiet(&conn->channels[c]);
}

void connection_break(struct connection *conn)
{
    for (unsigned c = 0; c < conn->channel_count; c++)
        channel_end(&conn->channels[c]);
    placing_close(&conn->placing);
    pace_close(&conn->pace);
    gate_close(&conn->gate);
}

void connection_hang_up(struct connection *conn)
{
    for (unsigned c = 0; c < conn->channel_count; c++)
        channel_disconnect(&conn->channels[c]);
    session_linger(&conn->main, SESSION_LINGER_MS);
    if (conn->compressor)
        compressor_close(conn->compressor);
}

void connection_end(struct connection *conn)
{
    session_end(&conn->main);
}
