/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a channel has sent of RAM and the destination may not have applied.
 *
 * A placed payload is in the destination's memory as soon as the card has written it, also before
 * packets that were sent earlier on the same channel: those wait in the stream until the receiver
 * applies them. So a payload may be placed only where nothing that is not applied says something
 * of the same bytes; elsewhere it goes through the stream, in its order. This is the part of the
 * proof of contract 2.1 that placing needs (sender.c has the rest).
 *
 * The ranges are kept in the order of their packets, and go when the destination says how many it
 * has applied. When there are too many, everything counts as said until all of them are applied.
 *
 * The channel's lock guards it.
 */
#ifndef MIGFS_UNAPPLIED_H
#define MIGFS_UNAPPLIED_H

#include <stdbool.h>
#include <stdint.h>

#define UNAPPLIED_MAX 4096u

struct unapplied_range {
    uint64_t sequence; /* of the last packet that says something of it */
    uint64_t start, end;
};

struct unapplied {
    struct unapplied_range *ranges; /* a ring, oldest first */
    uint64_t first, next;
    uint64_t everything; /* the last packet for which there was no room; 0: there was for all */
};

/** unapplied_init - nothing is unapplied. Return: 0 or -ENOMEM */
int unapplied_init(struct unapplied *u);
void unapplied_fini(struct unapplied *u);

/** unapplied_add - packet @sequence, later than all before, says something of [@start, @start + @len) */
void unapplied_add(struct unapplied *u, uint64_t sequence, uint64_t start, uint64_t len);

/** unapplied_pass - the destination has applied @count packets */
void unapplied_pass(struct unapplied *u, uint64_t count);

/** unapplied_is_empty - whether all that was added is applied */
static inline bool unapplied_is_empty(const struct unapplied *u)
{
    return u->first == u->next && !u->everything;
}

/** unapplied_touches - whether something that is not applied says something of [@start, @start + @len) */
bool unapplied_touches(const struct unapplied *u, uint64_t start, uint64_t len);

#endif
