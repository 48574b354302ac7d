/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What becomes of a migration that arrives while connections of its are lost, if its source makes them again:
 * it is paused, who receives waits, and when a connection comes that takes the place of a lost one, its
 * thread welcomes it and goes on. A connection can come before this side has noticed that the old one is
 * lost: then that is shut down, and so noticed.
 *
 * All of it is guarded by migration.lock; who waits, waits on migration.changed.
 */
#ifndef MIGFS_INTERRUPTION_H
#define MIGFS_INTERRUPTION_H

#include "inbound.h"
#include "migration.h"

/**
 * interruption_of_channel - a data channel is lost: waits for another connection; in its receiver's thread
 * Return: 0: it is there; negative: none will come.
 */
int interruption_of_channel(struct migration *m, struct inbound *in, unsigned channel,
                            const struct error *reason);

/** interruption_of_main - the main channel is lost; its reader, which goes on with its loop */
void interruption_of_main(struct migration *m, struct inbound *in, const struct error *reason);

/**
 * interruption_attach - a connection takes the place of another one; the lock is held
 * @channel: a data channel; -1: the main one
 * @received: -1: how many messages the source has received
 * @transport: the migration's from now on, on success
 *
 * Return: 0; negative with @err: CAUSE_AGAIN: not yet.
 */
int interruption_attach(struct migration *m, struct inbound *in, int channel, uint64_t received,
                        struct transport *transport, struct error *err);

/**
 * interruption_check - in each turn of the reader's loop: goes on with a main channel that has come
 * Return: 0; negative with @err: what is lost was not made again in time, or makes no sense.
 */
int interruption_check(struct migration *m, struct inbound *in, struct error *err);

/** interruption_is_there - whether a connection is lost now */
bool interruption_is_there(struct migration *m, struct inbound *in);

/** interruption_end - nobody waits for a connection any more; before inbound_end() */
void interruption_end(struct migration *m, struct inbound *in);

#endif
