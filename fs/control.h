/* SPDX-License-Identifier: Apache-2.0 */
/* The commands that are written to `control`. */
#ifndef MIGFS_CONTROL_H
#define MIGFS_CONTROL_H

#include "migration.h"

#include <stddef.h>

#define CONTROL_LINE_MAX 512

struct control_line {
    enum command command;
    char target[WIRE_NAME_MAX + 16]; /* "ram", "device-state/DEV", or empty: all */
};

/** control_parse - read one command: one write(2), one line */
int control_parse(const char *text, size_t len, struct control_line *out, struct error *err);

/** control_waits - whether a command can take a while; `cancel` and `stop` do not */
bool control_waits(const struct control_line *line);

/** control_run - carry out a command; returns when it is done */
int control_run(struct migration *m, const struct control_line *line, const struct interrupt *interrupt,
                struct error *err);

/** control_help - what reading `control` gives: the commands, a line each */
extern const char control_help[];

/**
 * text_line - the line that a write carries, without white space around it
 * @out: a string of at most @size - 1 bytes
 *
 * CAUSE_SYNTAX when there is more than one line, or it is too long or not text.
 */
int text_line(const char *text, size_t len, char *out, size_t size, struct error *err);

#endif
