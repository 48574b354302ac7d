/* SPDX-License-Identifier: Apache-2.0 */
/* Names of migrations and devices; see name.h. */
#include "name.h"
#include "text.h"
#include "wire.h"

#include <string.h>

static int check(const char *what, const char *name, struct error *err)
{
    if (!*name)
        return error_set(err, CAUSE_SYNTAX, "the name of a %s is empty", what);
    if (strlen(name) > WIRE_NAME_MAX)
        return error_set(err, CAUSE_NAME_TOO_LONG, "the name of a %s has at most %d bytes", what,
                         WIRE_NAME_MAX);
    for (size_t n; *name; name += n) {
        switch (text_next(name, &n, NULL)) {
        case TEXT_INVALID:
            return error_set(err, CAUSE_SYNTAX, "the name of a %s is UTF-8", what);
        case TEXT_CONTROL:
            return error_set(err, CAUSE_SYNTAX, "the name of a %s has no control characters", what);
        case TEXT_DIRECTION:
            return error_set(err, CAUSE_SYNTAX,
                             "the name of a %s has no characters that turn the direction of text", what);
        case TEXT_PLAIN:
            if (*name == '/')
                return error_set(err, CAUSE_SYNTAX, "the name of a %s has no slash", what);
        }
    }
    return 0;
}

int name_check_migration(const char *name, struct error *err)
{
    if (*name == '.')
        return error_set(err, CAUSE_SYNTAX, "'%.64s': the name of a migration does not begin with a dot",
                         name);
    return check("migration", name, err);
}

int name_check_device(const char *name, struct error *err)
{
    if (!strcmp(name, ".") || !strcmp(name, ".."))
        return error_set(err, CAUSE_SYNTAX, "'%s' is no name of a device", name);
    return check("device", name, err);
}
