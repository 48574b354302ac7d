/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source's ends of all connections of a migration, and what it takes to make them again.
 *
 * Steps of the script lose a lane, and make it again: as a source does, which asks the destination
 * how far it has got and goes on there, or in some other way. What the destination says is checked:
 * it has received what its reader has taken of a channel, each byte and each message once, and what
 * an honest source asks for is granted while the migration is active.
 */
#ifndef MIGFS_FUZZ_ENDS_H
#define MIGFS_FUZZ_ENDS_H

#include "input.h"
#include "lane.h"
#include "registry.h"

#define ENDS_CHANNELS_MAX 8
#define ENDS_STEPS_MAX    64 /* of the script */

/* Making again: how. What takes another byte has it in this order. */
#define AGAIN_TWICE  1   /* another attempt comes first, and is given up */
#define AGAIN_DATA   2   /* a data channel comes as if it were for the first time */
#define AGAIN_LIE    4   /* enum lie, and what belongs to it */
#define AGAIN_SKEW   8   /* how many messages too many the source says that it has received (signed) */
#define AGAIN_ASTRAY 16  /* how many bytes or messages are left out; negative: there are more */
#define AGAIN_DEAF   32  /* it takes no welcome */
#define AGAIN_SWAP   64  /* messages on a data channel, packets on the main channel */
#define AGAIN_PLACES 128 /* by RDMA */

enum lie {
    LIE_SESSION,
    LIE_NAME,
    LIE_IDENTITY,
    LIE_CHANNEL, /* which one */
    LIE_DAMAGE,  /* where 16, how */
    LIE_FEATURE, /* one that is not known; of a main channel: far more messages */
    LIE_MAX
};

/* Losing: how. The low two bits say what receives say. */
#define LOSE_MUTE 4 /* what is sent from now on does not arrive */
#define LOSE_DEAF 8 /* nothing can be sent from now on */

/* A message that was sent. */
struct ends_message {
    size_t at, len; /* in the log */
    bool counts;    /* it is no ping */
};

struct ends {
    struct registry *registry;
    struct migration *m;
    struct input *in;
    struct hello hello; /* the first one */
    unsigned channels;
    bool resumes;
    bool late; /* the last channel has not come yet */
    size_t slice;
    bool busy;
    struct lane *now[ENDS_CHANNELS_MAX + 1]; /* the last one in use is the main channel */
    struct lane *all[ENDS_CHANNELS_MAX + 4 + 4 * ENDS_STEPS_MAX];
    unsigned count;

    /* What was said on the main channel. */
    uint8_t log[(ENDS_STEPS_MAX + 1) * 512];
    size_t logged;
    struct ends_message messages[ENDS_STEPS_MAX + 1];
    unsigned said;
    uint64_t asked[WIRE_MESSAGE_MAX];
    unsigned first;    /* of the messages, on the lane that is the main channel now */
    uint64_t received; /* messages that had arrived before */
    bool junk;         /* the destination may have received something else */
    bool lied;         /* the source has told more or fewer messages than it has received */
    int8_t skew;       /* how many more it tells */
    uint64_t told;     /* the destination knows that the source has received so many */

    /* What has to be answered before a migration can complete. */
    uint64_t asked_before_complete[WIRE_MESSAGE_MAX], syncs, syncs_before_complete;

    struct lane *ambush[2]; /* NULL: there is none */
    unsigned ambushed;      /* the lane */
    uint64_t ambush_heard;
};

/**
 * ends_open - make the migration of a hello, with all its connections
 * @places: data channels place
 * @late: but the last channel
 */
void ends_open(struct ends *ends, const struct hello *hello, bool places, bool late);
/** ends_close - the main channel ends, and what cannot end by itself is cancelled; all lanes are closed then
 */
void ends_close(struct ends *ends);
void ends_free(struct ends *ends);

static inline struct lane *ends_main(struct ends *ends)
{
    return ends->now[ends->channels];
}

/** ends_settle - wait until what was put on a lane has been acted on; nobody does before all have come */
void ends_settle(struct ends *ends, unsigned lane);
void ends_settle_all(struct ends *ends);

/** ends_send - send a message, and settle */
void ends_send(struct ends *ends, enum wire_message_type type, uint64_t id, const void *body, size_t len);

/** ends_check_answers - the migration has completed: all that was asked before has been answered */
void ends_check_answers(struct ends *ends);

/**
 * ends_check_failure - it has not failed because a connection was lost that can be made again
 * @intact: what was sent makes sense; then nor because that has not arrived as it was sent
 */
void ends_check_failure(const struct ends *ends, bool intact);

/** ends_put_junk - and settle */
void ends_put_junk(struct ends *ends, unsigned lane, const void *bytes, size_t len);

/** ends_lose - a step: lane, how, after how many bytes 24 */
void ends_lose(struct ends *ends);
/**
 * ends_again - a step: lane, how, and what belongs to it
 * Return: whether the destination may have received something else than was sent.
 */
bool ends_again(struct ends *ends);
/**
 * ends_ambush - a step: which lane; connections are made again in the moment in which all of them end (from
 * 128 on), or the lane is made again and the migration cancelled in that in which the lane ends
 */
void ends_ambush(struct ends *ends);

#endif
