/* SPDX-License-Identifier: Apache-2.0 */
/* The commands of `control`; see control.h. */
#include "control.h"
#include "migration.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>

#define DEVICE_PREFIX "device-state/"

const char control_help[] = "start\n"
                            "flush [ram|device-state/DEV]\n"
                            "sync [ram|device-state/DEV]\n"
                            "precopy\n"
                            "stop\n"
                            "complete\n"
                            "cancel\n";

int text_line(const char *text, size_t len, char *out, size_t size, struct error *err)
{
    while (len > 0 && isspace((unsigned char)text[len - 1]))
        len--;
    while (len > 0 && isspace((unsigned char)*text)) {
        text++;
        len--;
    }
    if (len >= size)
        return error_set(err, CAUSE_SYNTAX, "%zu bytes are too long; at most %zu are allowed", len, size - 1);
    for (size_t i = 0; i < len; i++) {
        if (text[i] == '\n')
            return error_set(err, CAUSE_SYNTAX, "more than one line in one write");
        if (iscntrl((unsigned char)text[i]) && text[i] != '\t')
            return error_set(err, CAUSE_SYNTAX, "control characters in the text");
    }
    memcpy(out, text, len);
    out[len] = '\0';
    return 0;
}

int control_parse(const char *text, size_t len, struct control_line *out, struct error *err)
{
    struct control_line line = {.command = COMMAND_MAX};
    char buf[CONTROL_LINE_MAX];

    if (text_line(text, len, buf, sizeof(buf), err) < 0)
        return -EIO;
    char *target = buf + strcspn(buf, " \t");
    if (*target) {
        *target++ = '\0';
        target += strspn(target, " \t");
    }
    for (enum command c = COMMAND_START; c <= COMMAND_CANCEL; c++) {
        if (!strcmp(buf, command_names[c]))
            line.command = c;
    }
    if (line.command == COMMAND_MAX)
        return error_set(
            err, CAUSE_SYNTAX,
            "unknown command '%.64s': start, flush, sync, precopy, stop, complete and cancel exist", buf);
    if (*target && line.command != COMMAND_FLUSH && line.command != COMMAND_SYNC)
        return error_set(err, CAUSE_SYNTAX, "'%s' stands alone", command_names[line.command]);
    if (*target && strcmp(target, "ram") && strncmp(target, DEVICE_PREFIX, strlen(DEVICE_PREFIX)))
        return error_set(err, CAUSE_SYNTAX, "'%.64s': expected ram or device-state/DEV", target);
    if (strlen(target) >= sizeof(line.target))
        return error_set(err, CAUSE_SYNTAX, "the name is too long");
    strcpy(line.target, target);
    *out = line;
    return 0;
}

static int find_target(struct migration *m, const char *target, struct file **out, struct error *err)
{
    *out = NULL;
    if (!*target)
        return 0;
    *out = !strcmp(target, "ram") ? migration_get_file(m, WIRE_RAM)
                                  : migration_find_device(m, target + strlen(DEVICE_PREFIX));
    if (!*out)
        return error_set(err, CAUSE_NOT_FOUND, "there is no '%.80s'", target);
    return 0;
}

bool control_waits(const struct control_line *line)
{
    return line->command != COMMAND_CANCEL && line->command != COMMAND_STOP;
}

int control_run(struct migration *m, const struct control_line *line, const struct interrupt *interrupt,
                struct error *err)
{
    CLEANUP_FILE struct file *file = NULL;

    if (line->command == COMMAND_CANCEL)
        return migration_cancel(m, err);
    if (migration_is_incoming(m))
        return error_set(err, CAUSE_UNSUPPORTED, "'%s' is for the source: this migration is incoming",
                         command_names[line->command]);
    if (find_target(m, line->target, &file, err) < 0)
        return -EIO;
    switch (line->command) {
    case COMMAND_START:
        return migration_start(m, interrupt, err);
    case COMMAND_FLUSH:
        return migration_flush(m, file, interrupt, err);
    case COMMAND_SYNC:
        return migration_sync(m, file, interrupt, err);
    case COMMAND_PRECOPY:
        return migration_precopy(m, interrupt, err);
    case COMMAND_STOP:
        return migration_stop(m, err);
    default:
        return migration_complete(m, interrupt, err);
    }
}
