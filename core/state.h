/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The states of a migration, and what each of them allows.
 *
 *   none        mkdir made it; settings can be written, sizes declared
 *   setup       `start` is connecting, or a peer's channels are arriving
 *   active      data moves
 *   completing  `complete` runs: no more data is accepted
 *   completed   the destination has everything and says so
 *   failed      something went wrong; the reason is kept
 *   cancelled   somebody said `cancel`
 *
 * An incoming migration goes from active to completed; only an outgoing one has
 * `completing`. A migration that failed or was cancelled before it was ever
 * active has sent nothing and can be started again.
 */
#ifndef MIGFS_STATE_H
#define MIGFS_STATE_H

#include "error.h"

#include <stdbool.h>

enum state {
    STATE_NONE,
    STATE_SETUP,
    STATE_ACTIVE,
    STATE_COMPLETING,
    STATE_COMPLETED,
    STATE_FAILED,
    STATE_CANCELLED,
    STATE_MAX
};

enum command {
    COMMAND_START,
    COMMAND_FLUSH,
    COMMAND_SYNC,
    COMMAND_PRECOPY,
    COMMAND_COMPLETE,
    COMMAND_STOP,
    COMMAND_CANCEL,
    COMMAND_WRITE, /* not a command of `control`: writing data, punching holes, truncating */
    COMMAND_MAX
};

extern const char *const state_names[];
extern const char *const command_names[];

/** state_may_become - whether the step from @from to @to exists */
bool state_may_become(enum state from, enum state to);

/** state_is_final - completed, failed or cancelled */
bool state_is_final(enum state state);

/** state_is_running - between `start` and a final state */
bool state_is_running(enum state state);

/**
 * state_allows - whether a command may be given to an outgoing migration
 * @failure: why it failed or was cancelled, when it did; what the caller is told then
 * @err: why not
 */
int state_allows(enum state state, enum command command, const struct error *failure, struct error *err);

#endif
