/* SPDX-License-Identifier: Apache-2.0 */
/* The table of settings; see setting.h. */
#include "setting.h"
#include "compression.h"
#include "control.h"
#include "intake.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RDMA_CHUNK_MIN (1ull << 20)
#define RDMA_CHUNK_MAX (1ull << 30)
static_assert(RDMA_CHUNK_MIN % WIRE_STRIPE_SIZE == 0, "a stripe is in one chunk");

int setting_parse_size(const char *text, uint64_t *out, struct error *err)
{
    static const char units[] = "KMGT";
    char *end;

    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    const char *unit = *end ? strchr(units, toupper((unsigned char)*end)) : NULL;
    unsigned shift = unit ? (unsigned)(unit - units + 1) * 10 : 0;
    if (!isdigit((unsigned char)*text) || errno || (*end && (!unit || end[1])) ||
        value > (UINT64_MAX >> shift))
        return error_set(err, CAUSE_SYNTAX, "'%.32s' is not a size, such as 512M or 16G", text);
    *out = value << shift;
    return 0;
}

static int parse_number(const char *text, const char *what, unsigned long min, unsigned long max,
                        unsigned long *out, struct error *err)
{
    char *end;

    errno = 0;
    unsigned long value = strtoul(text, &end, 10);
    if (!isdigit((unsigned char)*text) || *end || errno || value < min || value > max)
        return error_set(err, CAUSE_SYNTAX, "'%.32s' is not a %s: %lu to %lu", text, what, min, max);
    *out = value;
    return 0;
}

static int parse_uri(struct settings *settings, const char *text, struct error *err)
{
    return uri_list_parse(text, &settings->uris, err);
}

static void format_uri(const struct settings *settings, char *out, size_t size)
{
    uri_list_format(&settings->uris, out, size);
}

static int parse_channels(struct settings *settings, const char *text, struct error *err)
{
    unsigned long value = 0;

    if (parse_number(text, "number of channels", 1, WIRE_CHANNELS_MAX, &value, err) < 0)
        return -EIO;
    settings->channels = (unsigned)value;
    return 0;
}

static void format_channels(const struct settings *settings, char *out, size_t size)
{
    snprintf(out, size, "%u", settings->channels);
}

static int parse_timeout(struct settings *settings, const char *text, struct error *err)
{
    unsigned long value = 0;

    if (parse_number(text, "number of seconds", 1, 3600, &value, err) < 0)
        return -EIO;
    settings->timeout_ms = (uint32_t)value * 1000;
    return 0;
}

static void format_timeout(const struct settings *settings, char *out, size_t size)
{
    snprintf(out, size, "%u", settings->timeout_ms / 1000);
}

static int parse_resume(struct settings *settings, const char *text, struct error *err)
{
    unsigned long value = 0;

    if (parse_number(text, "number of seconds", 0, WIRE_RESUME_MAX, &value, err) < 0)
        return -EIO;
    settings->resume_ms = (uint32_t)value * 1000;
    return 0;
}

static void format_resume(const struct settings *settings, char *out, size_t size)
{
    snprintf(out, size, "%u", settings->resume_ms / 1000);
}

static int parse_device_channels(struct settings *settings, const char *text, struct error *err)
{
    unsigned long value = 0;

    if (parse_number(text, "number of channels", 0, WIRE_CHANNELS_MAX - 1, &value, err) < 0)
        return -EIO;
    settings->device_channels = (unsigned)value;
    return 0;
}

static void format_device_channels(const struct settings *settings, char *out, size_t size)
{
    snprintf(out, size, "%u", settings->device_channels);
}

static int parse_switch(const char *text, bool *out, struct error *err)
{
    if (strcmp(text, "on") && strcmp(text, "off"))
        return error_set(err, CAUSE_SYNTAX, "'%.32s' is neither on nor off", text);
    *out = !strcmp(text, "on");
    return 0;
}

static void format_switch(bool value, char *out, size_t size)
{
    snprintf(out, size, value ? "on" : "off");
}

static const char *const choice_names[] = {[CHOICE_AUTO] = "auto", [CHOICE_ON] = "on", [CHOICE_OFF] = "off"};

static int parse_choice(const char *text, enum choice *out, struct error *err)
{
    for (enum choice choice = CHOICE_AUTO; choice <= CHOICE_OFF; choice++) {
        if (!strcmp(text, choice_names[choice])) {
            *out = choice;
            return 0;
        }
    }
    return error_set(err, CAUSE_SYNTAX, "'%.32s' is neither auto nor on nor off", text);
}

static int parse_checksum(struct settings *settings, const char *text, struct error *err)
{
    return parse_choice(text, &settings->checksum_choice, err);
}

static void format_checksum(const struct settings *settings, char *out, size_t size)
{
    snprintf(out, size, "%s", choice_names[settings->checksum_choice]);
}

static int parse_splice(struct settings *settings, const char *text, struct error *err)
{
    return parse_choice(text, &settings->splice, err);
}

static void format_splice(const struct settings *settings, char *out, size_t size)
{
    snprintf(out, size, "%s", choice_names[settings->splice]);
}

static int parse_compression(struct settings *settings, const char *text, struct error *err)
{
    if (strcmp(text, "none") && strcmp(text, "zstd"))
        return error_set(err, CAUSE_SYNTAX, "'%.32s' is neither none nor zstd", text);
    settings->compress = !strcmp(text, "zstd");
    return 0;
}

static void format_compression(const struct settings *settings, char *out, size_t size)
{
    snprintf(out, size, settings->compress ? "zstd" : "none");
}

static int parse_zstd_level(struct settings *settings, const char *text, struct error *err)
{
    char *end;

    errno = 0;
    long value = strtol(text, &end, 10);
    if (!*text || isspace((unsigned char)*text) || *end || errno || value < COMPRESSION_LEVEL_MIN ||
        value > COMPRESSION_LEVEL_MAX)
        return error_set(err, CAUSE_SYNTAX, "'%.32s' is not a level of zstd: %d to %d", text,
                         COMPRESSION_LEVEL_MIN, COMPRESSION_LEVEL_MAX);
    settings->zstd_level = (int)value;
    return 0;
}

static void format_zstd_level(const struct settings *settings, char *out, size_t size)
{
    snprintf(out, size, "%d", settings->zstd_level);
}

static int parse_zero_copy(struct settings *settings, const char *text, struct error *err)
{
    for (unsigned i = 0; i < ZEROCOPY_MODES; i++) {
        if (!strcmp(text, zerocopy_mode_names[i])) {
            settings->zero_copy = i;
            return 0;
        }
    }
    return error_set(err, CAUSE_SYNTAX, "'%.32s' is none of off, auto and require", text);
}

static void format_zero_copy(const struct settings *settings, char *out, size_t size)
{
    snprintf(out, size, "%s", zerocopy_mode_names[settings->zero_copy]);
}

static int parse_verify(struct settings *settings, const char *text, struct error *err)
{
    return parse_switch(text, &settings->verify, err);
}

static void format_verify(const struct settings *settings, char *out, size_t size)
{
    format_switch(settings->verify, out, size);
}

static int parse_zero_pages(struct settings *settings, const char *text, struct error *err)
{
    return parse_switch(text, &settings->zero_pages, err);
}

static void format_zero_pages(const struct settings *settings, char *out, size_t size)
{
    format_switch(settings->zero_pages, out, size);
}

static int parse_tracking(struct settings *settings, const char *text, struct error *err)
{
    if (strcmp(text, "bitmap") && strcmp(text, "compare"))
        return error_set(err, CAUSE_SYNTAX, "'%.32s' is neither bitmap nor compare", text);
    settings->compare = !strcmp(text, "compare");
    return 0;
}

static void format_tracking(const struct settings *settings, char *out, size_t size)
{
    snprintf(out, size, settings->compare ? "compare" : "bitmap");
}

static int parse_downtime_limit(struct settings *settings, const char *text, struct error *err)
{
    unsigned long value = 0;

    if (parse_number(text, "number of milliseconds", 1, 3600000, &value, err) < 0)
        return -EIO;
    settings->downtime_limit_ms = (uint32_t)value;
    return 0;
}

static void format_downtime_limit(const struct settings *settings, char *out, size_t size)
{
    snprintf(out, size, "%u", settings->downtime_limit_ms);
}

static int parse_max_bandwidth(struct settings *settings, const char *text, struct error *err)
{
    uint64_t value = 0;

    if (setting_parse_size(text, &value, err) < 0)
        return -EIO;
    if (value && value < BANDWIDTH_MIN)
        return error_set(err, CAUSE_SYNTAX, "'%.32s' bytes a second: 1M at least, or 0 for no bound", text);
    settings->max_bandwidth = value;
    return 0;
}

static void format_max_bandwidth(const struct settings *settings, char *out, size_t size)
{
    snprintf(out, size, "%llu", (unsigned long long)settings->max_bandwidth);
}

static int parse_weight(struct settings *settings, const char *text, struct error *err)
{
    unsigned long value = 0;

    if (parse_number(text, "weight", 1, INTAKE_WEIGHT_MAX, &value, err) < 0)
        return -EIO;
    settings->weight = (unsigned)value;
    return 0;
}

static void format_weight(const struct settings *settings, char *out, size_t size)
{
    snprintf(out, size, "%u", settings->weight);
}

static int parse_max_rounds(struct settings *settings, const char *text, struct error *err)
{
    unsigned long value = 0;

    if (parse_number(text, "number of rounds", 1, 10000, &value, err) < 0)
        return -EIO;
    settings->max_rounds = (unsigned)value;
    return 0;
}

static void format_max_rounds(const struct settings *settings, char *out, size_t size)
{
    snprintf(out, size, "%u", settings->max_rounds);
}

static int parse_fallback(struct settings *settings, const char *text, struct error *err)
{
    return parse_switch(text, &settings->fallback, err);
}

static void format_fallback(const struct settings *settings, char *out, size_t size)
{
    format_switch(settings->fallback, out, size);
}

static int parse_tls_hostname(struct settings *settings, const char *text, struct error *err)
{
    if (strlen(text) >= sizeof(settings->tls_name))
        return error_set(err, CAUSE_SYNTAX, "the name of a host has %zu characters at most",
                         sizeof(settings->tls_name) - 1);
    strcpy(settings->tls_name, text);
    return 0;
}

static void format_tls_hostname(const struct settings *settings, char *out, size_t size)
{
    snprintf(out, size, "%s", settings->tls_name);
}

static int parse_rdma_chunk(struct settings *settings, const char *text, struct error *err)
{
    uint64_t value = 0;

    if (setting_parse_size(text, &value, err) < 0)
        return -EIO;
    if (value < RDMA_CHUNK_MIN || value > RDMA_CHUNK_MAX || value & (value - 1))
        return error_set(err, CAUSE_SYNTAX, "'%.32s' is not a power of two from 1M to 1G", text);
    settings->rdma_chunk = value;
    return 0;
}

static void format_rdma_chunk(const struct settings *settings, char *out, size_t size)
{
    snprintf(out, size, "%lluM", (unsigned long long)settings->rdma_chunk >> 20);
}

static int parse_rdma_pin(struct settings *settings, const char *text, struct error *err)
{
    if (strcmp(text, "demand") && strcmp(text, "all"))
        return error_set(err, CAUSE_SYNTAX, "'%.32s' is neither demand nor all", text);
    settings->rdma_pin_all = !strcmp(text, "all");
    return 0;
}

static void format_rdma_pin(const struct settings *settings, char *out, size_t size)
{
    snprintf(out, size, settings->rdma_pin_all ? "all" : "demand");
}

const struct setting settings_table[] = {
    {"uri", parse_uri, format_uri, SETTING_FIXED},
    {"channels", parse_channels, format_channels, SETTING_FIXED},
    {"timeout", parse_timeout, format_timeout, SETTING_FIXED},
    {"device-channels", parse_device_channels, format_device_channels, SETTING_FIXED},
    {"checksum", parse_checksum, format_checksum, SETTING_FIXED},
    {"compression", parse_compression, format_compression, SETTING_FIXED},
    {"dirty-tracking", parse_tracking, format_tracking, SETTING_FIXED},
    {"downtime-limit", parse_downtime_limit, format_downtime_limit, SETTING_LIVE_OUTGOING},
    {"fallback", parse_fallback, format_fallback, SETTING_FIXED},
    {"max-bandwidth", parse_max_bandwidth, format_max_bandwidth, SETTING_LIVE},
    {"max-rounds", parse_max_rounds, format_max_rounds, SETTING_LIVE_OUTGOING},
    {"rdma-chunk", parse_rdma_chunk, format_rdma_chunk, SETTING_FIXED},
    {"rdma-pin", parse_rdma_pin, format_rdma_pin, SETTING_FIXED},
    {"resume", parse_resume, format_resume, SETTING_FIXED},
    {"splice", parse_splice, format_splice, SETTING_FIXED},
    {"tls-hostname", parse_tls_hostname, format_tls_hostname, SETTING_FIXED},
    {"verify", parse_verify, format_verify, SETTING_FIXED},
    {"weight", parse_weight, format_weight, SETTING_LIVE_INCOMING},
    {"zstd-level", parse_zstd_level, format_zstd_level, SETTING_FIXED},
    {"zero-copy", parse_zero_copy, format_zero_copy, SETTING_FIXED},
    {"zero-page-detection", parse_zero_pages, format_zero_pages, SETTING_FIXED},
};
static_assert(sizeof(settings_table) / sizeof(settings_table[0]) <= SETTINGS_MAX,
              "there is a place for each setting");
const unsigned settings_count = sizeof(settings_table) / sizeof(settings_table[0]);

/* A line that was written to a setting. */
struct assignment {
    const struct setting *setting;
    const char *text;
};

static int assign(struct settings *settings, void *arg, struct error *err)
{
    const struct assignment *assignment = arg;

    return assignment->setting->parse(settings, assignment->text, err);
}

int setting_write(struct migration *m, const struct setting *setting, const char *text, size_t len,
                  const struct interrupt *interrupt, struct error *err)
{
    char line[SETTING_VALUE_MAX];
    struct assignment assignment = {setting, line};

    if (text_line(text, len, line, sizeof(line), err) < 0)
        return -EIO;
    return migration_change_settings(m, setting->life, assign, &assignment, interrupt, err);
}

void setting_read(struct migration *m, const struct setting *setting, char *out, size_t size)
{
    struct settings settings;

    migration_settings(m, &settings);
    setting->format(&settings, out, size - 1);
    if (*out)
        strcat(out, "\n");
}
