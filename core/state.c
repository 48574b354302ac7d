/* SPDX-License-Identifier: Apache-2.0 */
/* The tables of states, steps and commands; see state.h. */
#include "state.h"

#include <assert.h>
#include <stddef.h>

const char *const state_names[] = {
    [STATE_NONE] = "none",           [STATE_SETUP] = "setup",
    [STATE_ACTIVE] = "active",       [STATE_COMPLETING] = "completing",
    [STATE_COMPLETED] = "completed", [STATE_FAILED] = "failed",
    [STATE_CANCELLED] = "cancelled",
};
static_assert(sizeof(state_names) / sizeof(state_names[0]) == STATE_MAX, "every state has a name");

const char *const command_names[] = {
    [COMMAND_START] = "start",     [COMMAND_FLUSH] = "flush",       [COMMAND_SYNC] = "sync",
    [COMMAND_PRECOPY] = "precopy", [COMMAND_COMPLETE] = "complete", [COMMAND_STOP] = "stop",
    [COMMAND_CANCEL] = "cancel",   [COMMAND_WRITE] = "write",
};
static_assert(sizeof(command_names) / sizeof(command_names[0]) == COMMAND_MAX, "every command has a name");

#define TO(state) (1u << STATE_##state)
static const unsigned steps[] = {
    [STATE_NONE] = TO(SETUP),
    [STATE_SETUP] = TO(ACTIVE) | TO(FAILED) | TO(CANCELLED),
    [STATE_ACTIVE] = TO(COMPLETING) | TO(COMPLETED) | TO(FAILED) | TO(CANCELLED),
    [STATE_COMPLETING] = TO(ACTIVE) | TO(COMPLETED) | TO(FAILED) | TO(CANCELLED),
    [STATE_COMPLETED] = 0,
    [STATE_FAILED] = TO(SETUP),
    [STATE_CANCELLED] = TO(SETUP),
};
static_assert(sizeof(steps) / sizeof(steps[0]) == STATE_MAX, "every state has its steps");

bool state_may_become(enum state from, enum state to)
{
    return steps[from] & (1u << to);
}

bool state_is_final(enum state state)
{
    return state == STATE_COMPLETED || state == STATE_FAILED || state == STATE_CANCELLED;
}

bool state_is_running(enum state state)
{
    return state == STATE_SETUP || state == STATE_ACTIVE || state == STATE_COMPLETING;
}

/*
 * What a command is told in a state. CAUSE_NONE with no text: go on. FAILURE: what the migration failed of.
 */
struct rule {
    enum cause cause;
    const char *text;
};

#define GO_ON                                                                                                \
    {                                                                                                        \
        CAUSE_NONE, NULL                                                                                     \
    }
#define FAILURE                                                                                              \
    {                                                                                                        \
        CAUSE_PEER, NULL                                                                                     \
    }
#define NOT_STARTED                                                                                          \
    {                                                                                                        \
        CAUSE_NOT_STARTED, "the migration has not been started: write 'start' to control"                    \
    }
#define IN_SETUP                                                                                             \
    {                                                                                                        \
        CAUSE_NOT_STARTED, "the migration is still connecting"                                               \
    }
#define STARTED                                                                                              \
    {                                                                                                        \
        CAUSE_STATE, "the migration has been started already"                                                \
    }
#define IN_COMPLETING                                                                                        \
    {                                                                                                        \
        CAUSE_STATE, "the migration is being completed"                                                      \
    }
#define IS_COMPLETED                                                                                         \
    {                                                                                                        \
        CAUSE_STATE, "the migration has completed"                                                           \
    }
#define HAS_FAILED                                                                                           \
    {                                                                                                        \
        CAUSE_STATE, "the migration has failed"                                                              \
    }
#define NOTHING_TO_END                                                                                       \
    {                                                                                                        \
        CAUSE_NOT_STARTED, "the migration has not been started: there is nothing to cancel"                  \
    }

static const struct rule rules[COMMAND_MAX][STATE_MAX] = {
    /*
     *                   none            setup     active   completing     completed     failed      cancelled
     */
    [COMMAND_START] = {GO_ON, STARTED, STARTED, STARTED, IS_COMPLETED, GO_ON, GO_ON},
    [COMMAND_FLUSH] = {NOT_STARTED, IN_SETUP, GO_ON, IN_COMPLETING, IS_COMPLETED, FAILURE, FAILURE},
    [COMMAND_SYNC] = {NOT_STARTED, IN_SETUP, GO_ON, IN_COMPLETING, IS_COMPLETED, FAILURE, FAILURE},
    [COMMAND_PRECOPY] = {NOT_STARTED, IN_SETUP, GO_ON, IN_COMPLETING, IS_COMPLETED, FAILURE, FAILURE},
    [COMMAND_COMPLETE] = {NOT_STARTED, IN_SETUP, GO_ON, IN_COMPLETING, IS_COMPLETED, FAILURE, FAILURE},
    [COMMAND_STOP] = {NOT_STARTED, IN_SETUP, GO_ON, IN_COMPLETING, IS_COMPLETED, FAILURE, FAILURE},
    [COMMAND_CANCEL] = {NOTHING_TO_END, GO_ON, GO_ON, GO_ON, IS_COMPLETED, HAS_FAILED, GO_ON},
    [COMMAND_WRITE] = {NOT_STARTED, IN_SETUP, GO_ON, IN_COMPLETING, IS_COMPLETED, FAILURE, FAILURE},
};

int state_allows(enum state state, enum command command, const struct error *failure, struct error *err)
{
    const struct rule *rule = &rules[command][state];

    if (rule->cause == CAUSE_NONE)
        return 0;
    if (!rule->text)
        return error_set(err, failure->cause, "%s", failure->message);
    return error_set(err, rule->cause, "%s", rule->text);
}
