/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What each state allows, written down a second time: from the manual's point of
 * view, not from the table's in core/state.c.
 */
#include "state.h"
#include "check.h"

#include <string.h>

#define OK     CAUSE_NONE
#define BUSY   CAUSE_STATE
#define EARLY  CAUSE_NOT_STARTED
#define REASON CAUSE_QUOTA /* whatever the migration failed of; this test's is a quota */

static const struct {
    const char *state;
    enum state value;
    bool running, final;
    struct {
        enum cause start, flush, sync, complete, stop, cancel, write;
    } may;
    const char *steps; /* the states that can follow */
} expected[] = {
    {"none", STATE_NONE, false, false, {OK, EARLY, EARLY, EARLY, EARLY, EARLY, EARLY}, "setup"},
    {"setup", STATE_SETUP, true, false, {BUSY, EARLY, EARLY, EARLY, EARLY, OK, EARLY}, "active failed cancelled"},
    {"active", STATE_ACTIVE, true, false, {BUSY, OK, OK, OK, OK, OK, OK}, "completing completed failed cancelled"},
    {"completing", STATE_COMPLETING, true, false, {BUSY, BUSY, BUSY, BUSY, BUSY, OK, BUSY},
     "active completed failed cancelled"},
    {"completed", STATE_COMPLETED, false, true, {BUSY, BUSY, BUSY, BUSY, BUSY, BUSY, BUSY}, ""},
    /* `start` after a failure: whether the migration was ever active is the caller's to ask. */
    {"failed", STATE_FAILED, false, true, {OK, REASON, REASON, REASON, REASON, BUSY, REASON}, "setup"},
    {"cancelled", STATE_CANCELLED, false, true, {OK, REASON, REASON, REASON, REASON, OK, REASON}, "setup"},
};

static bool has_word(const char *words, const char *word)
{
    size_t n = strlen(word);

    for (const char *p = strstr(words, word); p; p = strstr(p + 1, word)) {
        if ((p == words || p[-1] == ' ') && (p[n] == ' ' || p[n] == '\0'))
            return true;
    }
    return false;
}

Test(state, names)
{
    static const char *const commands[] = {"start", "flush", "sync", "precopy", "complete", "stop", "cancel", "write"};

    cr_assert(eq(sz, ARRAY_LENGTH(expected), STATE_MAX));
    cr_assert(eq(sz, ARRAY_LENGTH(commands), COMMAND_MAX));
    for (int i = 0; i < STATE_MAX; i++)
        cr_expect(eq(str, (char *)state_names[expected[i].value], (char *)expected[i].state));
    for (int i = 0; i < COMMAND_MAX; i++)
        cr_expect(eq(str, (char *)command_names[i], (char *)commands[i]));
}

Test(state, classes)
{
    for (int i = 0; i < STATE_MAX; i++) {
        cr_expect(eq(int, state_is_running(expected[i].value), expected[i].running), "%s", expected[i].state);
        cr_expect(eq(int, state_is_final(expected[i].value), expected[i].final), "%s", expected[i].state);
    }
}

Test(state, steps)
{
    for (int from = 0; from < STATE_MAX; from++) {
        for (int to = 0; to < STATE_MAX; to++)
            cr_expect(eq(int, state_may_become(expected[from].value, expected[to].value),
                         has_word(expected[from].steps, expected[to].state)),
                      "from %s to %s", expected[from].state, expected[to].state);
    }
}

Test(state, every_command_in_every_state)
{
    const struct error failure = {.cause = REASON, .message = "it was too much"};

    for (int i = 0; i < STATE_MAX; i++) {
        const enum cause want[COMMAND_MAX] = {
            [COMMAND_START] = expected[i].may.start,   [COMMAND_FLUSH] = expected[i].may.flush,
            [COMMAND_SYNC] = expected[i].may.sync,     [COMMAND_COMPLETE] = expected[i].may.complete,
            [COMMAND_STOP] = expected[i].may.stop,     [COMMAND_CANCEL] = expected[i].may.cancel,
            [COMMAND_WRITE] = expected[i].may.write,   [COMMAND_PRECOPY] = expected[i].may.sync,
        };
        for (int command = 0; command < COMMAND_MAX; command++) {
            struct error err = {0};
            int ret = state_allows(expected[i].value, (enum command)command, &failure, &err);
            cr_expect(eq(int, (int)err.cause, (int)want[command]), "%s when %s: %s", command_names[command],
                      expected[i].state, err.message);
            cr_expect(eq(int, ret == 0, want[command] == OK), "%s when %s", command_names[command], expected[i].state);
            cr_expect(eq(int, err.message[0] == '\0', want[command] == OK), "%s when %s has a sentence if it fails",
                      command_names[command], expected[i].state);
            if (want[command] == REASON)
                cr_expect(eq(str, err.message, "it was too much"), "the reason is handed through");
        }
    }
}

Test(state, without_a_place_for_the_sentence)
{
    const struct error failure = {.cause = CAUSE_RESET, .message = "gone"};

    cr_expect(eq(int, state_allows(STATE_ACTIVE, COMMAND_SYNC, &failure, NULL), 0));
    cr_expect(lt(int, state_allows(STATE_NONE, COMMAND_SYNC, &failure, NULL), 0));
    cr_expect(lt(int, state_allows(STATE_FAILED, COMMAND_SYNC, &failure, NULL), 0));
}
