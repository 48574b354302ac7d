/* SPDX-License-Identifier: Apache-2.0 */
/* A part of the source alone; see bed.h. */
#include "bed.h"
#include "check.h"
#include "dummy.h"
#include "peer.h"
#include "socket.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

static struct bed *bed_of_changes; /* one bed in a process */

static void note_change(struct migration *m)
{
    cr_assert(eq(ptr, m, bed_of_changes->m));
    atomic_fetch_add(&bed_of_changes->announced, 1);
}

static void nothing(struct migration *m)
{
    (void)m;
}

static bool never(const struct migration *m)
{
    (void)m;
    return false;
}

static const struct role_operations no_role = {
    .free = nothing, .ended = nothing, .kick = nothing, .is_committing = never, .release = nothing};

void bed_init(struct bed *bed)
{
    struct limits limits = {.max_memory = 1u << 30, .write_behind = 1u << 20, .timeout_ms = 60000};

    memset(bed, 0, sizeof(*bed));
    bed_of_changes = bed;
    host_init(&bed->host, &limits, note_change);
    bed->m = migration_new(&bed->host, ROLE_NONE, &no_role, "vm", 2 * WIRE_DEVICES_MAX);
    cr_assert(ne(ptr, bed->m, NULL));
    migration_add_file(bed->m, file_new(WIRE_RAM, "ram"));
    source_init(&bed->source, bed->m);
}

static int send_nowhere(struct transport *t, const struct iovec *iov, int n)
{
    struct bed *bed = t->own;

    (void)iov;
    (void)n;
    atomic_fetch_add(&bed->sends, 1);
    return 0;
}

static void forget(struct transport *t)
{
    (void)t;
}

static const struct transport_ops nowhere = {
    .name = "nowhere", .send = send_nowhere, .figures = dummy_figures, .shutdown = forget, .close = forget};

static void channel_failed(void *arg, unsigned index, int code)
{
    struct bed *bed = arg;

    (void)index;
    bed->channel_code = code;
}

static void failed(void *arg, const struct error *reason, int64_t delay_ms)
{
    (void)arg;
    (void)delay_ms;
    cr_assert(0, "the connection has failed: %s", reason->message);
}

void bed_connect(struct bed *bed)
{
    struct connection *conn = calloc(1, sizeof(*conn));
    int fds[2];

    cr_assert(ne(ptr, conn, NULL));
    cr_assert(zero(int, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds)));
    bed->peer = socket_transport_new(fds[1], false);
    cr_assert(zero(int, session_init(&conn->main, socket_transport_new(fds[0], false), 60000, 60000)));
    gate_init(&conn->gate, 1u << 20);
    pace_init(&conn->pace, 0);
    placing_init(&conn->placing, &conn->main, 0);
    conn->hello.timeout_ms = 60000;
    conn->limits = (struct hello_reply){.max_ram = 1u << 30, .max_device = 1u << 20, .max_devices = 8};
    conn->channels = calloc(BED_CHANNELS, sizeof(*conn->channels));
    conn->channel_count = BED_CHANNELS;
    conn->failed = failed;
    conn->failed_arg = bed;
    for (unsigned c = 0; c < BED_CHANNELS; c++) {
        struct transport *link = &bed->links[c];
        *link = (struct transport){.ops = &nowhere, .own = bed, .traits.copy_max = CHANNEL_COPY_MAX};
        channel_init(&conn->channels[c], c, link, &conn->gate, channel_failed, bed);
    }
    for (uint32_t i = 0; i < bed->m->file_count; i++)
        cr_assert(zero(int, file_set_channels(bed->m->files[i], BED_CHANNELS, 0)));
    bed->conn = conn;
    bed->m->role = ROLE_OUTGOING;
    bed_move(bed, STATE_SETUP);
}

void bed_activate(struct bed *bed)
{
    bed_connect(bed);
    atomic_store(&bed->source.connection, bed->conn);
    bed_move(bed, STATE_ACTIVE);
}

void bed_fini(struct bed *bed)
{
    cr_expect(eq(uint, bed->m->refs, 1));
    cr_expect(eq(uint, bed->m->files[WIRE_RAM]->refs, 1));
    if (bed->conn && !source_connection(&bed->source))
        connection_free(bed->conn);
    source_fini(&bed->source);
    transport_close(bed->peer);
    migration_put(bed->m);
    cr_expect(eq(uint, bed->host.users, 0));
    host_fini(&bed->host);
}

void bed_move(struct bed *bed, enum state state)
{
    pthread_mutex_lock(&bed->m->lock);
    cr_assert(migration_move(bed->m, state, NULL));
    pthread_mutex_unlock(&bed->m->lock);
}

void bed_fail(struct bed *bed, enum cause cause, const char *sentence)
{
    struct error failure = {0};

    error_set(&failure, cause, "%s", sentence);
    migration_fail(bed->m, &failure);
}

struct file *bed_device(struct bed *bed, const char *name)
{
    struct file *file = file_new(migration_free_slot(bed->m), name);

    cr_assert(ne(ptr, file, NULL));
    if (bed->conn)
        cr_assert(zero(int, file_set_channels(file, BED_CHANNELS, 0)));
    file->announced_open = true;
    pthread_mutex_lock(&bed->m->lock);
    migration_add_file(bed->m, file);
    pthread_mutex_unlock(&bed->m->lock);
    return file;
}

struct wire_reader bed_said(struct bed *bed, enum wire_message_type type, uint64_t *id)
{
    struct message message;

    cr_assert(zero(int, peer_receive(bed->peer, &message, bed->body)));
    cr_assert(eq(int, (int)message.type, (int)type));
    if (id)
        *id = message.id;
    else
        cr_expect(eq(u64, message.id, 0));
    return (struct wire_reader){.p = bed->body, .left = message.length};
}

void bed_quiet(struct bed *bed)
{
    struct pollfd fd = {.fd = transport_pollfd(bed->peer), .events = POLLIN};

    cr_expect(eq(int, poll(&fd, 1, 0), 0), "something was said");
}

void bed_counts(struct wire_reader *body, uint64_t first, uint64_t second, uint64_t third)
{
    cr_expect(eq(u64, wire_read_u64(body), first));
    cr_expect(eq(u64, wire_read_u64(body), second));
    cr_expect(eq(u64, wire_read_u64(body), third));
}

void bed_queued(struct bed *bed, unsigned channel, struct file *file, uint64_t sequence)
{
    struct channel *ch = &bed->conn->channels[channel];

    pthread_mutex_lock(&ch->lock);
    ch->last_sequence = sequence;
    if (file)
        atomic_store(&file->per_channel[channel].last_sequence, sequence);
    pthread_mutex_unlock(&ch->lock);
}

void bed_sent(struct bed *bed, unsigned channel)
{
    struct channel *ch = &bed->conn->channels[channel];

    pthread_mutex_lock(&ch->lock);
    ch->left_sequence = ch->sent_sequence = ch->last_sequence;
    pthread_cond_broadcast(&ch->progress);
    pthread_mutex_unlock(&ch->lock);
}

void bed_accepted(struct bed *bed, unsigned channel, struct file *file, uint64_t sequence)
{
    bed_queued(bed, channel, file, sequence);
    bed_sent(bed, channel);
}

void bed_kick(struct bed *bed)
{
    pthread_mutex_lock(&bed->m->lock);
    pthread_cond_broadcast(&bed->m->changed);
    pthread_mutex_unlock(&bed->m->lock);
    for (unsigned c = 0; bed->conn && c < BED_CHANNELS; c++)
        channel_kick(&bed->conn->channels[c]);
}

void bed_waits(struct bed_call *call)
{
    worker_await_sleep(&call->worker);
    cr_assert(not(atomic_load(&call->worker.done)), "%s", call->err.message);
}

void bed_works(struct bed_call *call)
{
    worker_join(&call->worker);
    cr_assert(zero(int, call->ret), "%s", call->err.message);
}

void bed_fails(struct bed_call *call, enum cause cause, const char *sentence)
{
    worker_join(&call->worker);
    cr_expect(eq(int, call->ret, -EIO));
    cr_expect(eq(int, (int)call->err.cause, (int)cause));
    cr_expect(eq(str, call->err.message, (char *)sentence));
}

void bed_interrupt(struct bed *bed, struct bed_call *call)
{
    atomic_store(&call->interrupt.hit, true);
    bed_kick(bed);
}
