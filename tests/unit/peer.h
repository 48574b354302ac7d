/* SPDX-License-Identifier: Apache-2.0 */
/* The other end of the wire, by hand: what a well-behaved peer would say, and what no peer should. */
#ifndef MIGFS_TEST_PEER_H
#define MIGFS_TEST_PEER_H

#include "transport.h"
#include "wire.h"

#define PEER_CHANNELS_MAX WIRE_CHANNELS_MAX

/* A source. */
struct peer {
    struct hello hello;
    struct transport *main, *data[PEER_CHANNELS_MAX];
    uint64_t sequence[PEER_CHANNELS_MAX]; /* of the last packet */
    uint32_t files; /* announced */
};

/* What a source's hello says of how long the destination may be silent. */
extern uint32_t peer_timeout_ms;

/* What peer_dial() proves itself with; NULL: nothing. */
extern struct tls *peer_tls;

/** peer_hello - a good one for the main channel */
struct hello peer_hello(const char *name, unsigned channels);

/** peer_dial - connect, and nothing more */
struct transport *peer_dial(const char *address);

/** peer_greet - connect, say hello and read the answer. NULL: refused; the connection is closed then. */
struct transport *peer_greet(const char *address, const struct hello *hello, struct hello_reply *reply);

/** peer_open - all channels of a migration; the test fails when one is refused */
void peer_open(struct peer *p, const char *address, const char *name, unsigned channels);
/** peer_open_with - the same, with more features than the usual */
void peer_open_with(struct peer *p, const char *address, const char *name, unsigned channels, uint64_t features);
void peer_close(struct peer *p);

/** peer_send - one message */
int peer_send(struct transport *t, enum wire_message_type type, uint64_t id, const void *body, uint32_t length);

/** peer_receive - the next message that is no ping. @body has room for WIRE_BODY_MAX. 0, or a negative errno. */
int peer_receive(struct transport *t, struct message *message, uint8_t *body);

/** peer_announce - announce a file; the cause of the answer */
enum cause peer_announce(struct peer *p, uint32_t id, uint64_t size, const char *name);

/** peer_packet - send a packet as it is, but for a channel and a sequence number that are filled in, and a good payload_check */
int peer_packet(struct peer *p, unsigned channel, struct packet packet, const void *payload);

/** peer_sync - send a barrier over all that was sent, and wait for its acknowledgement. False: another message came. */
bool peer_sync(struct peer *p, uint64_t id);

/* A destination. */
struct fake {
    struct transport_listener *listener;
    struct transport *main, *data[PEER_CHANNELS_MAX];
    unsigned channels; /* that are there */
    struct hello hello; /* of the main channel */
    struct hello_reply reply; /* what it answers; a welcome unless changed */
};

/** fake_listen - listen at a URI, and be ready to welcome */
void fake_listen(struct fake *f, const char *text);
/** fake_answer - accept a connection, read its hello and answer it with @f->reply */
struct transport *fake_answer(struct fake *f, struct hello *hello);
/** fake_accept_all - welcome a source, and all its channels and @files files */
void fake_accept_all(struct fake *f, unsigned files);
/** fake_reply - answer the announcement of a file, which is awaited */
void fake_reply(struct fake *f, enum cause cause, const char *text);
void fake_hang_up(struct fake *f);
void fake_close(struct fake *f);

#endif
