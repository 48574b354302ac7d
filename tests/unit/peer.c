/* SPDX-License-Identifier: Apache-2.0 */
/* The other end of the wire, by hand; see peer.h. */
#include "peer.h"
#include "check.h"
#include "tls.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct transport_wait forever = {.cancel_fd = -1, .deadline_ms = INT64_MAX};

uint32_t peer_timeout_ms = 60000;
struct tls *peer_tls;

struct hello peer_hello(const char *name, unsigned channels)
{
    static unsigned sessions;
    struct hello hello = {
        .kind = WIRE_HELLO_MAIN,
        .channels = channels,
        .features = WIRE_FEATURE_CHECKSUM,
        .page_size = WIRE_PAGE_SIZE,
        .stripe_size = WIRE_STRIPE_SIZE,
        .timeout_ms = peer_timeout_ms,
    };

    sessions++;
    memcpy(hello.session, &sessions, sizeof(sessions));
    strncpy(hello.name, name, sizeof(hello.name) - 1);
    return hello;
}

struct transport *peer_dial(const char *address)
{
    struct transport *t = NULL;
    struct error err;
    struct uri uri;

    CHECK_OK(uri_parse(address, &uri, &err));
    CHECK_OK(transport_connect(&uri, 0, &(struct transport_group){.chunk = TRANSPORT_CHUNK}, &forever, &t, &err));
    if (peer_tls)
        CHECK_OK(tls_client(peer_tls, t, uri.host, &forever, &err));
    return t;
}

struct transport *peer_greet(const char *address, const struct hello *hello, struct hello_reply *reply)
{
    struct transport *t = peer_dial(address);
    struct wire_hello wire;
    struct wire_hello_reply answer;
    struct iovec iov = {&wire, sizeof(wire)};
    struct error err;

    wire_hello_encode(hello, &wire);
    cr_assert(zero(int, transport_send(t, &iov, 1)));
    cr_assert(zero(int, transport_recv_all(t, &answer, sizeof(answer), NULL)), "there is no answer to a hello");
    CHECK_OK(wire_hello_reply_decode(&answer, reply, &err));
    if (reply->cause == CAUSE_NONE)
        return t;
    transport_close(t);
    return NULL;
}

void peer_open_with(struct peer *p, const char *address, const char *name, unsigned channels, uint64_t features)
{
    struct hello_reply reply;

    *p = (struct peer){.hello = peer_hello(name, channels)};
    p->hello.features |= features;
    p->main = peer_greet(address, &p->hello, &reply);
    cr_assert(not(zero(ptr, p->main)), "%s", reply.text);
    for (unsigned c = 0; c < channels; c++) {
        struct hello hello = p->hello;
        hello.kind = WIRE_HELLO_DATA;
        hello.channel = c;
        p->data[c] = peer_greet(address, &hello, &reply);
        cr_assert(not(zero(ptr, p->data[c])), "%s", reply.text);
    }
}

void peer_open(struct peer *p, const char *address, const char *name, unsigned channels)
{
    peer_open_with(p, address, name, channels, 0);
}

void peer_close(struct peer *p)
{
    transport_close(p->main);
    for (unsigned c = 0; c < PEER_CHANNELS_MAX; c++)
        transport_close(p->data[c]);
}

int peer_send(struct transport *t, enum wire_message_type type, uint64_t id, const void *body, uint32_t length)
{
    struct wire_message header;
    struct iovec iov[2] = {{&header, sizeof(header)}, {(void *)(uintptr_t)body, length}};

    wire_message_encode(type, id, body, length, &header);
    return transport_send(t, iov, length ? 2 : 1);
}

int peer_receive(struct transport *t, struct message *message, uint8_t *body)
{
    struct wire_message header;
    struct error err;

    do {
        int ret = transport_recv_all(t, &header, sizeof(header), NULL);
        if (ret < 0)
            return ret;
        CHECK_OK(wire_message_decode(&header, message, &err));
        ret = transport_recv_all(t, body, message->length, NULL);
        if (ret < 0)
            return ret;
        cr_assert(wire_message_check(&header, body, message->length));
    } while (message->type == WIRE_PING || message->type == WIRE_PROGRESS);
    return 0;
}

enum cause peer_announce(struct peer *p, uint32_t id, uint64_t size, const char *name)
{
    static uint8_t buf[WIRE_BODY_MAX]; /* the peer is one thread's */
    struct wire_writer w = {buf, buf, buf + sizeof(buf)};
    struct message message;

    wire_write_u32(&w, id);
    wire_write_u64(&w, size);
    wire_write_text(&w, name);
    peer_send(p->main, WIRE_FILE_CREATE, 0, buf, wire_written(&w));
    cr_assert(zero(int, peer_receive(p->main, &message, buf)));
    cr_assert(eq(int, (int)message.type, WIRE_FILE_REPLY));
    struct wire_reader r = {.p = buf, .left = message.length};
    cr_expect(eq(u32, wire_read_u32(&r), id));
    enum cause cause = wire_read_u32(&r);
    p->files += cause == CAUSE_NONE;
    return cause;
}

int peer_packet(struct peer *p, unsigned channel, struct packet packet, const void *payload)
{
    struct wire_packet wire;
    struct iovec iov[2] = {{&wire, sizeof(wire)}, {(void *)(uintptr_t)payload, packet.length}};

    p->sequence[channel]++;
    if (!packet.sequence)
        packet.sequence = p->sequence[channel];
    if (!packet.channel)
        packet.channel = channel;
    if (!packet.raw_length)
        packet.raw_length = packet.length;
    if (packet.length && !packet.payload_check)
        packet.payload_check = wire_payload_check(payload, packet.length);
    wire_packet_encode(&packet, &wire);
    return transport_send(p->data[channel], iov, packet.length ? 2 : 1);
}

bool peer_sync(struct peer *p, uint64_t id)
{
    static uint8_t buf[WIRE_BODY_MAX]; /* the peer is one thread's */
    struct wire_writer w = {buf, buf, buf + sizeof(buf)};
    struct message message;

    for (unsigned c = 0; c < p->hello.channels; c++)
        wire_write_u64(&w, p->sequence[c]);
    peer_send(p->main, WIRE_SYNC, id, buf, wire_written(&w));
    return peer_receive(p->main, &message, buf) == 0 && message.type == WIRE_SYNC_ACK && message.id == id;
}

void fake_listen(struct fake *f, const char *text)
{
    struct error err;
    struct uri uri;

    *f = (struct fake){
        .reply =
            {
                .features = WIRE_FEATURES,
                .max_ram = 1ull << 30,
                .max_device = 1ull << 30,
                .max_devices = 16,
                .timeout_ms = 60000,
            },
    };
    CHECK_OK(uri_parse(text, &uri, &err));
    CHECK_OK(transport_listen(&uri, &f->listener, &err));
}

struct transport *fake_answer(struct fake *f, struct hello *hello)
{
    struct transport *t = NULL;
    struct wire_hello wire;
    struct wire_hello_reply answer;
    struct iovec iov = {&answer, sizeof(answer)};
    struct error err;

    while (transport_accept(f->listener, &t) == -EAGAIN) {
        struct pollfd fd = {.fd = transport_listener_pollfd(f->listener), .events = POLLIN};
        poll(&fd, 1, -1);
    }
    cr_assert(zero(int, transport_recv_all(t, &wire, sizeof(wire), NULL)));
    CHECK_OK(wire_hello_decode(&wire, hello, &err));
    wire_hello_reply_encode(&f->reply, &answer);
    transport_send(t, &iov, 1);
    return t;
}

void fake_reply(struct fake *f, enum cause cause, const char *text)
{
    static uint8_t buf[WIRE_BODY_MAX]; /* the peer is one thread's */
    struct message message;

    cr_assert(zero(int, peer_receive(f->main, &message, buf)));
    cr_assert(eq(int, (int)message.type, WIRE_FILE_CREATE));
    struct wire_reader r = {.p = buf, .left = message.length};
    uint32_t id = wire_read_u32(&r);
    struct wire_writer w = {buf, buf, buf + sizeof(buf)};
    wire_write_u32(&w, id);
    wire_write_u32(&w, cause);
    wire_write_text(&w, text);
    peer_send(f->main, WIRE_FILE_REPLY, 0, buf, wire_written(&w));
}

void fake_accept_all(struct fake *f, unsigned files)
{
    struct hello hello;

    f->main = fake_answer(f, &f->hello);
    cr_assert(eq(int, (int)f->hello.kind, WIRE_HELLO_MAIN));
    cr_assert(le(uint, f->hello.channels, PEER_CHANNELS_MAX));
    for (f->channels = 0; f->channels < f->hello.channels; f->channels++) {
        f->data[f->channels] = fake_answer(f, &hello);
        cr_assert(eq(int, (int)hello.kind, WIRE_HELLO_DATA));
        cr_assert(eq(uint, hello.channel, f->channels));
        cr_assert(zero(int, memcmp(hello.session, f->hello.session, sizeof(hello.session))));
    }
    while (files-- > 0)
        fake_reply(f, CAUSE_NONE, "");
}

void fake_hang_up(struct fake *f)
{
    transport_close(f->main);
    for (unsigned c = 0; c < f->channels; c++)
        transport_close(f->data[c]);
    f->main = NULL;
    f->channels = 0;
}

void fake_close(struct fake *f)
{
    fake_hang_up(f);
    transport_listener_close(f->listener);
}
