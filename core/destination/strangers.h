/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Addresses whose connections have not proved who they are: how many more of them the listener takes.
 *
 * A handshake costs the listener's thread a signature, whoever asks for it. So every connection that begins
 * one is put down to its address, and taken off again when the peer has proved itself: a migration of many
 * channels is nothing, and one that dials again and again without a proof has a bounded rate. What is put
 * down fades. An IPv6 address stands for its /64, which one machine can have to itself.
 *
 * A fixed number of addresses is remembered; when there are more, those that matter least are forgotten.
 *
 * One thread uses it.
 */
#ifndef MIGFS_STRANGERS_H
#define MIGFS_STRANGERS_H

#include "transport.h"

#include <stdbool.h>
#include <stdint.h>

#define STRANGERS_MAX   256 /* addresses */
#define STRANGERS_BURST 256 /* handshakes without a proof, at once; more than one peer may have undecided */
#define STRANGERS_RATE  16  /* a second, from then on */

struct strangers {
    struct stranger {
        char address[TRANSPORT_ADDRESS_MAX]; /* empty: the place is free */
        double begun;                        /* handshakes that have not faded */
        int64_t faded_ms;                    /* until when they have */
        bool refused;                        /* it is known that the last one was */
    } known[STRANGERS_MAX];
};

/**
 * strangers_admit - a connection of an address wants to begin a handshake
 * @first: set when it is refused: the one before was not
 * Return: whether it may; it is put down then.
 */
bool strangers_admit(struct strangers *strangers, const char *address, int64_t now_ms, bool *first);

/** strangers_vouch - one that was admitted has proved itself */
void strangers_vouch(struct strangers *strangers, const char *address, int64_t now_ms);

#endif
