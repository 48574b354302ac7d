/* SPDX-License-Identifier: Apache-2.0 */
/* The settings of a migration: one value a file. Most are for the source; see setting_is_shown(). */
#ifndef MIGFS_SETTING_H
#define MIGFS_SETTING_H

#include "migration.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SETTINGS_MAX      48 /* as many as there can be, for tables by setting */
#define SETTING_VALUE_MAX (URI_LIST_MAX + 2)
#define BANDWIDTH_MIN     (1u << 20) /* bytes a second: a packet takes no longer than one */

/**
 * struct setting - one of them
 * @parse: text to value; the migration's lock is held and it may be written
 * @format: value to text, without a newline
 */
struct setting {
    const char *name;
    int (*parse)(struct settings *settings, const char *text, struct error *err);
    void (*format)(const struct settings *settings, char *out, size_t size);
    enum setting_life life;
};

extern const struct setting settings_table[];
extern const unsigned settings_count;

/**
 * setting_write - set a value from what a user wrote; waits for a `start` that was cancelled and has not left
 */
int setting_write(struct migration *m, const struct setting *setting, const char *text, size_t len,
                  const struct interrupt *interrupt, struct error *err);

/** setting_is_shown - whether it is a file of the migration: what arrives has those that bound its arrival */
static inline bool setting_is_shown(const struct migration *m, const struct setting *setting)
{
    return !migration_is_incoming(m) || setting->life & SETTING_LIVE_INCOMING;
}

/** setting_parse_size - a number of bytes, which may have K, M, G or T behind it */
int setting_parse_size(const char *text, uint64_t *out, struct error *err);

/** setting_read - the value and a newline; nothing at all when it is not set */
void setting_read(struct migration *m, const struct setting *setting, char *out, size_t size);

#endif
