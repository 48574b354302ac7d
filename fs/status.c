/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What `status` says; see status.h. The words are those of QEMU's query-migrate
 * where it has them; times are in milliseconds, sizes in bytes.
 *
 * The states and times are one snapshot, taken under the migration's lock. The
 * counters run on while they are read; after a barrier they stand still.
 */
#include "status.h"
#include "clock.h"
#include "incoming.h"
#include "outgoing.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

struct snapshot {
    enum state state;
    struct milestones times;
    struct settings settings;
    struct error failure;
    uint64_t generation, rounds;
    uint32_t files;
};

struct writer {
    FILE *out;
    bool json, first;
};

static void key(struct writer *w, const char *name)
{
    if (w->json)
        fprintf(w->out, "%s\n  \"%s\": ", w->first ? "" : ",", name);
    else
        fprintf(w->out, "%s ", name);
    w->first = false;
}

static void put_number(struct writer *w, const char *name, uint64_t value)
{
    key(w, name);
    fprintf(w->out, "%" PRIu64 "%s", value, w->json ? "" : "\n");
}

static void put_decimal(struct writer *w, const char *name, double value)
{
    key(w, name);
    fprintf(w->out, "%.2f%s", value, w->json ? "" : "\n");
}

/* The length of the UTF-8 sequence at @p, or 0 when there is none. */
static int utf8_length(const char *p)
{
    unsigned char c = (unsigned char)*p;
    int n = c < 0x80 ? 1 : c >= 0xc2 && c < 0xe0 ? 2 : c >= 0xe0 && c < 0xf0 ? 3 : c >= 0xf0 && c < 0xf5 ? 4 : 0;

    for (int i = 1; i < n; i++) {
        if (((unsigned char)p[i] & 0xc0) != 0x80)
            return 0;
    }
    return n;
}

/* JSON is UTF-8, names are bytes: what is not UTF-8 becomes U+FFFD there. */
static void put_text(struct writer *w, const char *name, const char *value)
{
    key(w, name);
    if (!w->json) {
        fprintf(w->out, "%s\n", value);
        return;
    }
    fputc('"', w->out);
    while (*value) {
        int n = utf8_length(value);
        if (*value == '"' || *value == '\\')
            fprintf(w->out, "\\%c", *value);
        else if ((unsigned char)*value < ' ')
            fprintf(w->out, "\\u%04x", *value);
        else if (n > 0)
            fwrite(value, 1, (size_t)n, w->out);
        else
            fputs("\\ufffd", w->out);
        value += n > 0 ? n : 1;
    }
    fputc('"', w->out);
}

static uint64_t span(int64_t from, int64_t to)
{
    return from && to > from ? (uint64_t)(to - from) : 0;
}

static void put_times(struct writer *w, const struct snapshot *s, uint64_t transferred)
{
    int64_t end = s->times.ended ? s->times.ended : clock_ms();
    uint64_t moving = span(s->times.active, end);

    put_number(w, "setup-time", span(s->times.started, s->times.active ? s->times.active : end));
    put_number(w, "total-time", span(s->times.started, end));
    put_number(w, "downtime", s->state == STATE_COMPLETED ? span(s->times.switchover, s->times.ended) : 0);
    put_decimal(w, "mbps", moving ? (double)transferred * 8 / 1000 / (double)moving : 0);
}

static void put_counters(struct writer *w, struct migration *m, const struct snapshot *s, unsigned channels)
{
    bool outgoing = m->role == ROLE_OUTGOING;
    struct file_totals ram = {0}, devices = {0};
    uint64_t multifd = 0, main_bytes = outgoing ? outgoing_wire_bytes(m, -1) : 0;
    uint64_t size = 0;

    for (uint32_t i = 0; i < s->files; i++) {
        struct file *file = m->files[i];
        struct file_totals totals = channels ? file_totals(file) : (struct file_totals){0};
        if (i == WIRE_RAM) {
            ram = totals;
            size = outgoing ? atomic_load(&file->size) : file_received_size(file);
        } else {
            devices.bytes += totals.bytes;
            ram.discarded_bytes += totals.discarded_bytes;
        }
    }
    for (unsigned c = 0; c < channels; c++)
        multifd += outgoing ? outgoing_wire_bytes(m, (int)c) : incoming_wire_bytes(m, c);
    put_times(w, s, multifd + main_bytes);
    put_number(w, "transferred", multifd + main_bytes);
    put_number(w, "multifd-bytes", multifd);
    put_number(w, "page-size", WIRE_PAGE_SIZE);
    put_number(w, "normal", ram.pages);
    put_number(w, "normal-bytes", ram.bytes);
    put_number(w, "duplicate", ram.zero_pages);
    put_number(w, "discarded-bytes", ram.discarded_bytes);
    if (!outgoing)
        put_number(w, "first-arrivals", ram.first_pages);
    put_number(w, "dirty-sync-count", s->rounds);
    put_number(w, "dirty-sync-missed-zero-copy", 0);
    put_number(w, "ram-size", size);
    put_number(w, "devices", s->files ? s->files - 1 : 0);
    put_number(w, "device-bytes", devices.bytes);
    if (outgoing)
        put_number(w, "queued-bytes", outgoing_queued(m));
    for (unsigned c = 0; c < channels; c++) {
        char name[40];
        snprintf(name, sizeof(name), "channel-%u-bytes", c);
        put_number(w, name, outgoing ? outgoing_wire_bytes(m, (int)c) : incoming_wire_bytes(m, c));
    }
}

static struct snapshot take_snapshot(struct migration *m)
{
    pthread_mutex_lock(&m->lock);
    struct snapshot s = {
        .state = m->state,
        .times = m->times,
        .settings = m->settings,
        .failure = m->failure,
        .generation = m->generation,
        .rounds = m->rounds,
        .files = m->file_count,
    };
    pthread_mutex_unlock(&m->lock);
    return s;
}

char *status_text(struct migration *m, bool json, size_t *size, uint64_t *generation)
{
    struct snapshot s = take_snapshot(m);
    unsigned channels = m->role == ROLE_OUTGOING ? outgoing_channels(m) : incoming_channels(m);
    char *text = NULL;
    struct writer w = {.out = open_memstream(&text, size), .json = json, .first = true};

    if (!w.out)
        return NULL;
    if (json)
        fputc('{', w.out);
    put_text(&w, "status", state_names[s.state]);
    put_text(&w, "role", m->role == ROLE_OUTGOING ? "outgoing" : "incoming");
    put_text(&w, "name", m->name);
    if (error_is_set(&s.failure) && (s.state == STATE_FAILED || s.state == STATE_CANCELLED))
        put_text(&w, "error-desc", s.failure.message);
    if (s.settings.uri.text[0])
        put_text(&w, "uri", s.settings.uri.text);
    put_number(&w, "channels", s.settings.channels);
    put_text(&w, "checksum", s.settings.checksum ? "on" : "off");
    if (m->role == ROLE_INCOMING) {
        char path[4096];
        incoming_ram_path(m, path, sizeof(path));
        if (*path)
            put_text(&w, "ram-path", path);
    }
    put_counters(&w, m, &s, channels);
    if (json)
        fputs("\n}\n", w.out);
    if (fclose(w.out)) {
        free(text);
        return NULL;
    }
    *generation = s.generation;
    return text;
}
