/* SPDX-License-Identifier: Apache-2.0 */
/* The other end of a source's connection; see inbound.h. */
#include "inbound.h"
#include "clock.h"

#include <errno.h>
#include <stdlib.h>

#define SUSPECT_MS          1000 /* how long a broken data channel waits for the main channel to say why */
#define SESSION_DESCRIPTORS 2    /* a connection and an eventfd */

/*
 * What it is charged
 */

/* From its start on, for the data channels and for the main channel. */
static uint64_t channels_memory(unsigned channels)
{
    return (uint64_t)channels * RECEIVER_MEMORY;
}

uint64_t inbound_memory(unsigned channels)
{
    return channels_memory(channels) + SESSION_MEMORY;
}

static void release_channels(struct inbound *in)
{
    if (!in->holds_channels)
        return;
    budget_release(&in->account->channels, in->channel_count);
    budget_release(&in->account->descriptors, in->channel_count);
    budget_release(&in->account->memory, channels_memory(in->channel_count));
    in->holds_channels = false;
}

static void release_session(struct inbound *in)
{
    if (!in->holds_session)
        return;
    budget_release(&in->account->descriptors, SESSION_DESCRIPTORS);
    budget_release(&in->account->memory, SESSION_MEMORY + in->beside);
    in->holds_session = false;
}

/* All at once, or nothing. */
static int charge(struct inbound *in, struct error *err)
{
    struct account *account = in->account;
    unsigned n = in->channel_count;

    if (budget_take(&account->channels, n, err, "%u channels are too many", n) < 0)
        return -EIO;
    if (budget_take(&account->descriptors, n + SESSION_DESCRIPTORS, err, "%u connections are too many",
                    n + 1) < 0) {
        budget_release(&account->channels, n);
        return -EIO;
    }
    if (budget_take(&account->memory, inbound_memory(n) + in->beside, err,
                    "the buffers of %u channels do not fit", n) < 0) {
        budget_release(&account->channels, n);
        budget_release(&account->descriptors, n + SESSION_DESCRIPTORS);
        return -EIO;
    }
    in->holds_channels = in->holds_session = true;
    return 0;
}

int inbound_init(struct inbound *in, const struct reception *reception, struct account *account,
                 unsigned channels, uint64_t beside, struct error *err)
{
    *in = (struct inbound){
        .reception = *reception, .account = account, .channel_count = channels, .beside = beside};
    in->reception.descriptors = &account->descriptors;
    in->receivers = calloc(channels, sizeof(*in->receivers));
    if (!in->receivers)
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    for (unsigned c = 0; c < channels; c++)
        receiver_init(&in->receivers[c], &in->reception, c);
    return charge(in, err);
}

void inbound_fini(struct inbound *in)
{
    inbound_end(in);
    release_session(in);
    if (in->has_session)
        session_fini(&in->session);
    free(in->receivers);
}

/*
 * It comes together
 */

int inbound_open(struct inbound *in, struct transport *transport, uint32_t timeout_ms,
                 uint32_t peer_timeout_ms, uint32_t patience_ms, uint32_t resume_ms, struct error *err)
{
    if (session_init(&in->session, transport, timeout_ms, peer_timeout_ms) < 0)
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    in->session.budget = &in->account->memory;
    in->has_session = true;
    in->patience_ms = patience_ms;
    in->resume_ms = resume_ms;
    in->reception.resumes = resume_ms > 0;
    if (resume_ms)
        session_keep(&in->session);
    stall_init(&in->watch, patience_ms, in->session.ping_ms);
    return 0;
}

void inbound_give_back(struct inbound *in)
{
    in->session.transport = NULL;
}

int inbound_attach(struct inbound *in, unsigned channel, unsigned channels, struct transport *transport,
                   uint32_t timeout_ms, const struct hello_reply *reply, struct error *err)
{
    struct wire_hello_reply wire;

    if (channels != in->channel_count)
        return error_set(err, CAUSE_PROTOCOL, "a channel of %u for a migration with %u", channels,
                         in->channel_count);
    struct receiver *r = &in->receivers[channel];
    if (in->resume_ms && transport->traits.places)
        return error_set(err, CAUSE_UNSUPPORTED, "resume is not possible by RDMA");
    if (r->transport && (!in->resume_ms || in->started))
        return error_set(err, CAUSE_EXISTS, "channel %u is there already", channel);
    transport_set_timeout(transport, (int)timeout_ms);
    wire_hello_reply_encode(reply, &wire);
    if (transport_send_now(transport, &wire, sizeof(wire)) < 0)
        return error_set(err, CAUSE_RESET, "channel %u takes no welcome", channel);
    bool is_new = !r->transport;
    /* The source has not heard that the first one was welcome. */
    transport_close(r->transport);
    r->transport = transport;
    if (is_new && ++in->attached == in->channel_count)
        session_wake(&in->session);
    return 0;
}

static struct loss *loss_of(struct inbound *in, int channel)
{
    return channel < 0 ? &in->main_loss : &in->receivers[channel].loss;
}

int inbound_attach_again(struct inbound *in, int channel, uint64_t received, struct transport *transport,
                         struct error *err)
{
    if (!in->resume_ms)
        return error_set(err, CAUSE_STATE, "its connections are not made again");
    /* What has become of it is not known yet. */
    if (in->ending)
        return error_set(err, CAUSE_AGAIN, "the migration is about to end");
    if (transport->traits.places)
        return error_set(err, CAUSE_UNSUPPORTED, "a connection is not made again by RDMA");
    /* An attempt that was given up long ago can arrive late. */
    if (channel < 0 && received < session_confirmed(&in->session))
        return error_set(err, CAUSE_AGAIN, "there was a later connection");
    if (channel >= (int)in->channel_count)
        return error_set(err, CAUSE_PROTOCOL, "channel %d of %u", channel, in->channel_count);
    struct transport **next = channel < 0 ? &in->next_main : &in->receivers[channel].next;
    struct transport *now = channel < 0 ? in->session.transport : in->receivers[channel].transport;
    /* An attempt that the source has given up. */
    transport_close(*next);
    *next = transport;
    if (channel < 0)
        in->next_received = received;
    if (!loss_of(in, channel)->since)
        transport_shutdown(now);
    session_wake(&in->session);
    return 0;
}

void inbound_lose(struct inbound *in, int channel, const struct error *reason)
{
    in->lost++;
    *loss_of(in, channel) = (struct loss){.since = clock_ms(), .reason = *reason};
}

void inbound_find_again(struct inbound *in, int channel)
{
    in->lost--;
    *loss_of(in, channel) = (struct loss){0};
}

/* Welcomes who has come to take the place of a lost connection. */
static void welcome(struct transport *t, struct hello_reply *reply, uint64_t received)
{
    struct wire_hello_reply wire;

    reply->received = received;
    wire_hello_reply_encode(reply, &wire);
    if (transport_send_now(t, &wire, sizeof(wire)) < 0)
        transport_shutdown(t); /* then it is lost again */
}

bool inbound_renew(struct inbound *in, unsigned channel, struct hello_reply *reply)
{
    struct receiver *r = &in->receivers[channel];

    if (!r->next)
        return false;
    transport_close(r->transport);
    r->transport = r->next;
    r->next = NULL;
    transport_set_timeout(r->transport, in->session.timeout_ms);
    welcome(r->transport, reply, counter_get(&r->wire_bytes));
    return true;
}

int inbound_renew_main(struct inbound *in, struct hello_reply *reply, struct error *err)
{
    struct transport *t = in->next_main;

    if (!t)
        return 0;
    in->next_main = NULL;
    welcome(t, reply, atomic_load(&in->session.received));
    if (session_renew(&in->session, t, in->next_received, err) == 0)
        return 1;
    transport_close(t);
    return -EIO;
}

int64_t inbound_deadline(const struct inbound *in, struct error *reason)
{
    const struct loss *first = in->main_loss.since ? &in->main_loss : NULL;

    for (unsigned c = 0; in->lost && c < in->channel_count; c++) {
        const struct loss *loss = &in->receivers[c].loss;
        if (loss->since && (!first || loss->since < first->since))
            first = loss;
    }
    if (!first)
        return INT64_MAX;
    if (reason)
        *reason = first->reason;
    return first->since + wire_resume_wait_ms(in->resume_ms);
}

bool inbound_is_whole(const struct inbound *in)
{
    return in->attached == in->channel_count;
}

int inbound_start(struct inbound *in, struct error *err)
{
    struct transport *places = NULL;

    for (unsigned c = 0; c < in->channel_count; c++) {
        if (in->receivers[c].transport->traits.places)
            places = in->receivers[c].transport;
    }
    exposures_init(&in->exposures, places, in->reception.max_ram);
    if (in->reception.share)
        intake_share_open(in->reception.share);
    in->started = true;
    for (unsigned c = 0; c < in->channel_count; c++) {
        if (receiver_start(&in->receivers[c], err) < 0)
            return -EIO;
    }
    return 0;
}

/*
 * While it is there
 */

int inbound_on_expose(struct inbound *in, struct file *ram, struct wire_reader *body, struct error *err)
{
    uint8_t buf[EXPOSURE_REPLY_SIZE];
    struct wire_writer reply = {buf, buf, buf + sizeof(buf)};

    if (exposures_add(&in->exposures, ram, body, &reply, err) < 0)
        return -EIO;
    session_send(&in->session, WIRE_EXPOSED, 0, buf, wire_written(&reply));
    return 0;
}

int inbound_on_withdraw(struct inbound *in, struct wire_reader *body, struct error *err)
{
    return exposures_remove(&in->exposures, body, err);
}

void inbound_suspect(struct inbound *in, unsigned channel, const struct error *reason)
{
    if (error_is_set(&in->suspect))
        return;
    in->suspect = *reason;
    error_prefix(&in->suspect, "channel %u", channel);
    /*
     * What the connection says may be explained on the main channel; what the data says needs no explanation.
     */
    in->suspect_until = clock_ms() + (reason->cause == CAUSE_RESET ? SUSPECT_MS : 0);
}

bool inbound_uses(const struct inbound *in, const struct file *file)
{
    bool used = false;

    for (unsigned c = 0; c < in->channel_count; c++)
        used |= receiver_uses(&in->receivers[c], file);
    return used;
}

bool inbound_look_is_due(const struct inbound *in)
{
    return stall_is_due(&in->watch, clock_ms());
}

void inbound_rest(struct inbound *in)
{
    stall_init(&in->watch, in->patience_ms, in->session.ping_ms);
}

int inbound_look(struct inbound *in, uint64_t work, struct error *err)
{
    uint8_t buf[8 + 16 * WIRE_CHANNELS_MAX];
    struct wire_writer body = wire_writer_of(buf, sizeof(buf));
    struct stall_sight all = {.mark = work};
    unsigned awaited = 0;

    wire_write_u64(&body, work);
    for (unsigned c = in->channel_count; c-- > 0;) {
        if (receiver_is_awaited(&in->receivers[c])) {
            all.awaited = true;
            awaited = c;
        }
    }
    for (unsigned c = 0; c < in->channel_count; c++) {
        uint64_t received = counter_get(&in->receivers[c].wire_bytes),
                 applied = receiver_applied(&in->receivers[c]);
        wire_write_u64(&body, received);
        wire_write_u64(&body, applied);
        all.mark += received + applied;
    }
    session_send(&in->session, WIRE_PROGRESS, 0, buf, wire_written(&body));
    if (stall_look(&in->watch, clock_ms(), &all, 1) < 0)
        return 0;
    return error_set(err, CAUSE_TIMEOUT,
                     "channel %u has stalled: a barrier waits for it, and nothing has come for %u ms",
                     awaited, in->patience_ms);
}

uint64_t inbound_wire_bytes(const struct inbound *in, unsigned channel)
{
    return counter_get(&in->receivers[channel].wire_bytes);
}

uint64_t inbound_placed_bytes(const struct inbound *in, unsigned channel)
{
    return counter_get(&in->receivers[channel].placed_bytes);
}

uint64_t inbound_barrier_ns(const struct inbound *in)
{
    uint64_t sum = in->barrier_ns;

    for (unsigned c = 0; in->receivers && c < in->channel_count; c++)
        sum += counter_get(&in->receivers[c].barrier_ns);
    return sum;
}

/*
 * It is over
 */

void inbound_end(struct inbound *in)
{
    if (in->reception.share)
        intake_share_close(in->reception.share);
    for (unsigned c = 0; in->receivers && c < in->channel_count; c++) {
        if (in->receivers[c].transport)
            transport_shutdown(in->receivers[c].transport);
    }
    for (unsigned c = 0; in->receivers && c < in->channel_count; c++)
        receiver_join(&in->receivers[c]);
    exposures_fini(&in->exposures);
    release_channels(in);
    transport_close(in->next_main);
    in->next_main = NULL;
    for (unsigned c = 0; in->receivers && c < in->channel_count; c++)
        receiver_close(&in->receivers[c]);
}

void inbound_settle(struct inbound *in)
{
    in->barrier_ns = inbound_barrier_ns(in);
    free(in->receivers);
    in->receivers = NULL;
}

void inbound_close(struct inbound *in)
{
    release_session(in);
    session_end(&in->session);
}
