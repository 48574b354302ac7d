/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What users write: commands, settings and URIs.
 *
 * The first byte picks the parser, the rest is the text. What a parser accepts
 * it accepts again in the form that it is shown in, with the same meaning; what
 * it refuses leaves the value as it was.
 */
#include "input.h"
#include "compression.h"
#include "control.h"
#include "registry.h"
#include "name.h"
#include "setting.h"

#include <ctype.h>

static void check_error(int ret, const struct error *err)
{
    MUST((ret < 0) == error_is_set(err));
    MUST(memchr(err->message, '\0', sizeof(err->message)));
}

static void fuzz_line(const char *text, size_t len)
{
    for (size_t size = 1; size <= 64; size += 63) {
        char *out = malloc(size);
        struct error err = {0};
        MUST(out);
        int ret = text_line(text, len, out, size, &err);
        check_error(ret, &err);
        if (ret == 0) {
            size_t n = strlen(out);
            MUST(n < size && !memchr(out, '\n', n));
            MUST(!n || (!isspace((unsigned char)out[0]) && !isspace((unsigned char)out[n - 1])));
        }
        free(out);
    }
}

static void fuzz_control(const char *text, size_t len)
{
    struct control_line line, twice;
    char again[CONTROL_LINE_MAX];
    struct error err = {0};
    int ret = control_parse(text, len, &line, &err);

    check_error(ret, &err);
    if (ret < 0)
        return;
    MUST(line.command < COMMAND_MAX && line.command != COMMAND_WRITE);
    snprintf(again, sizeof(again), "%s %s\n", command_names[line.command], line.target);
    MUST(control_parse(again, strlen(again), &twice, &err) == 0);
    MUST(twice.command == line.command && !strcmp(twice.target, line.target));
}

static void fuzz_uri(const char *text)
{
    struct uri uri, twice;
    struct error err = {0};

    memset(&uri, 0x5a, sizeof(uri));
    int ret = uri_parse(text, &uri, &err);
    check_error(ret, &err);
    if (ret < 0) {
        for (size_t i = 0; i < sizeof(uri); i++)
            MUST(((const uint8_t *)&uri)[i] == 0x5a);
        return;
    }
    MUST(uri_has_scheme(text) && !strcmp(uri.text, text));
    MUST(memchr(uri.host, '\0', sizeof(uri.host)) && memchr(uri.port, '\0', sizeof(uri.port)));
    MUST(memchr(uri.path, '\0', sizeof(uri.path)));
    MUST((uri.inner == URI_UNIX) == (uri.path[0] == '/'));
    MUST((uri.inner == URI_UNIX) == !uri.port[0] && uri.inner != URI_FAULTY);
    MUST(uri_parse(uri.text, &twice, &err) == 0);
    MUST(!memcmp(&uri.faults, &twice.faults, sizeof(uri.faults)) && !strcmp(uri.host, twice.host));
}

static void check_settings(const struct settings *s)
{
    MUST(s->channels >= 1 && s->channels <= WIRE_CHANNELS_MAX && s->device_channels < WIRE_CHANNELS_MAX);
    MUST(s->timeout_ms >= 1000 && s->timeout_ms <= 3600000);
    MUST(s->zstd_level >= COMPRESSION_LEVEL_MIN && s->zstd_level <= COMPRESSION_LEVEL_MAX);
}

static struct registry registry;
static struct migration *m;

/* One write after another, a line each, to the same migration: the way that `settings` are used. */
static void fuzz_setting(const struct setting *setting, const char *text, size_t len)
{
    char before[SETTING_VALUE_MAX + 1], after[SETTING_VALUE_MAX + 1], again[SETTING_VALUE_MAX + 1];
    struct error err = {0};

    setting_read(m, setting, before, sizeof(before));
    int ret = setting_write(m, setting, text, len, NULL, &err);
    check_error(ret, &err);
    setting_read(m, setting, after, sizeof(after));
    check_settings(&m->settings);
    if (ret < 0) {
        MUST(!strcmp(before, after));
        return;
    }
    MUST(setting_write(m, setting, after, strlen(after), NULL, &err) == 0);
    setting_read(m, setting, again, sizeof(again));
    MUST(!strcmp(after, again));
}

static void fuzz_name(const char *text)
{
    struct error err = {0};
    int ret = name_check_device(text, &err);

    check_error(ret, &err);
    if (ret == 0)
        MUST(*text && strcmp(text, ".") && strcmp(text, "..") && !strchr(text, '/') && !strchr(text, '\n') &&
             strlen(text) <= WIRE_NAME_MAX);
    struct error other = {0};
    bool same = name_check_migration(text, &other) == ret;
    check_error(same ? ret : -1, &other);
    MUST(same || *text == '.');
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct limits limits = {.max_migrations = 1, .max_devices = 1, .timeout_ms = 5000};
    struct input in = {data, size};
    unsigned parser = input_u8(&in);
    size_t len;
    const uint8_t *rest = input_bytes(&in, in.left, &len);
    char *text = input_copy(rest, len), *string = calloc(1, len + 1);
    struct error err = {0};

    MUST(string);
    memcpy(string, text, len);
    if (!m) {
        registry_init(&registry, &limits, NULL);
        MUST(registry_add_outgoing(&registry, "m", 0, 0, &m, &err) == 0);
    }
    switch (parser % 16) {
    case 0:
        fuzz_line(text, len);
        break;
    case 1:
    case 2:
        fuzz_control(text, len);
        break;
    case 3:
    case 4:
        fuzz_uri(string);
        break;
    case 5:
        fuzz_name(string);
        break;
    default:
        fuzz_setting(&settings_table[(parser % 16 - 6) % settings_count], text, len);
    }
    free(string);
    free(text);
    return 0;
}
