/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sends whose buffers the kernel still reads.
 *
 * Linux counts the sends with MSG_ZEROCOPY of a socket in 32 bits, and says
 * which ranges of them are over. Ranges may come merged, in parts, and in any
 * order. Here sends have 64 bits, and a ticket: all sends before it.
 *
 * The caller's lock guards it.
 */
#ifndef MIGFS_COMPLETIONS_H
#define MIGFS_COMPLETIONS_H

#include "transport.h"

#define COMPLETIONS_MAX 1024u /* sends in flight */

struct completions {
    uint64_t next;   /* number of the next send */
    uint64_t oldest; /* that is not over, or next */
    struct transport_returns returns;
    struct {
        uint32_t bytes;
        bool over;
    } sends[COMPLETIONS_MAX]; /* from oldest to next, in a ring */
};

/** completions_init - none yet; @first is what the kernel will call the first send */
void completions_init(struct completions *c, uint32_t first);

/** completions_has_room - whether another send can be noted */
bool completions_has_room(const struct completions *c);

/** completions_add - note a send; there is room. Return: its ticket. */
uint64_t completions_add(struct completions *c, uint32_t bytes);

/**
 * completions_end - sends @first to @last, in the kernel's numbers, are over; @copied: they were copied after
 * all
 */
void completions_end(struct completions *c, uint32_t first, uint32_t last, bool copied);

/** completions_in_flight - whether a send is not over */
bool completions_in_flight(const struct completions *c);

#endif
