/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One part of the source alone: a migration without a role, and a connection whose other end the test holds.
 * Nobody reads the main channel but the test, and what data channels send is thrown away.
 */
#ifndef MIGFS_TEST_BED_H
#define MIGFS_TEST_BED_H

#include "blocked.h"
#include "host.h"
#include "source.h"

#define BED_CHANNELS 3u

struct bed {
    struct host host;
    struct migration *m; /* with RAM */
    struct source source;
    struct connection *conn; /* the source's, from bed_connect() on */
    struct transport *peer;  /* the other end of its main channel */
    struct transport links[BED_CHANNELS];
    atomic_uint sends;           /* on all data channels */
    atomic_uint announced;       /* how often the migration was announced */
    int channel_code;            /* what channel.failed said */
    uint8_t body[WIRE_BODY_MAX]; /* of the last message of bed_said() */
};

/** bed_init - the migration is made, and nothing more */
void bed_init(struct bed *bed);
/** bed_connect - it has a connection, and is in setup; bed_activate() - and then active */
void bed_connect(struct bed *bed);
void bed_activate(struct bed *bed);
/** bed_fini - at the end of a test that has not failed: no reference to the migration or the RAM is left */
void bed_fini(struct bed *bed);

/** bed_move - the migration's state; bed_fail - failed, for @cause and that sentence */
void bed_move(struct bed *bed, enum state state);
void bed_fail(struct bed *bed, enum cause cause, const char *sentence);

/** bed_device - a device that the destination has taken */
struct file *bed_device(struct bed *bed, const char *name);

/** bed_said - what was said next on the main channel, which is of that type. Return: the body */
struct wire_reader bed_said(struct bed *bed, enum wire_message_type type, uint64_t *id);
/** bed_quiet - nothing more was said; the test fails if something was */
void bed_quiet(struct bed *bed);

/** bed_counts - the body goes on with such a count for each channel */
void bed_counts(struct wire_reader *body, uint64_t first, uint64_t second, uint64_t third);
/** bed_accepted - so many packets were accepted on a channel, the last of them for @file (NULL: another one),
 * and sent */
void bed_accepted(struct bed *bed, unsigned channel, struct file *file, uint64_t sequence);
/** bed_queued - the same, but they have not been sent, until bed_sent() */
void bed_queued(struct bed *bed, unsigned channel, struct file *file, uint64_t sequence);
void bed_sent(struct bed *bed, unsigned channel);

/** bed_kick - those who wait for the migration look around */
void bed_kick(struct bed *bed);

/* A call that a test makes in a thread of its own. A test that has more to say embeds it as the first field. */
struct bed_call {
    struct worker worker;
    struct interrupt interrupt;
    struct error err;
    int ret;
};

/** bed_waits - the call sleeps, and is not over */
void bed_waits(struct bed_call *call);
/** bed_works - it ends, with success; bed_fails - with -EIO, for @cause and that sentence */
void bed_works(struct bed_call *call);
void bed_fails(struct bed_call *call, enum cause cause, const char *sentence);
/** bed_interrupt - it is interrupted, and looks around */
void bed_interrupt(struct bed *bed, struct bed_call *call);

#endif
