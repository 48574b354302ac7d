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

static const char *const role_names[] = {
    [ROLE_NONE] = "none",
    [ROLE_OUTGOING] = "outgoing",
    [ROLE_INCOMING] = "incoming",
};

struct snapshot {
    enum state state;
    enum role role;
    struct milestones times;
    struct settings settings;
    struct error failure;
    uint64_t generation, rounds;
    struct round round;
    bool stopped;
    struct file **files; /* each with a reference */
    int file_count;
    struct channel_record *records; /* of each channel, and of all together */
    unsigned channels;
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
        /* One line, whatever it says. */
        for (; *value; value++)
            fputc((unsigned char)*value < ' ' || *value == 0x7f ? '?' : *value, w->out);
        fputc('\n', w->out);
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

static void put_channel(struct writer *w, unsigned c, const char *what, uint64_t value)
{
    char name[64];

    snprintf(name, sizeof(name), "channel-%u-%s", c, what);
    put_number(w, name, value);
}

/* What was sent with and without a copy. */
struct copies {
    struct zerocopy_counters counters;
    uint64_t spliced;
};

static struct copies add_up_copies(struct migration *m, unsigned first, unsigned end)
{
    struct copies sum = {0};

    for (unsigned c = first; c < end; c++) {
        uint64_t spliced;
        struct zerocopy_counters one = outgoing_zerocopy(m, c, &spliced);
        sum.counters.sends += one.sends;
        sum.counters.bytes += one.bytes;
        sum.counters.copied_sends += one.copied_sends;
        sum.counters.copied_bytes += one.copied_bytes;
        sum.counters.kernel_copied_sends += one.kernel_copied_sends;
        sum.counters.kernel_copied_bytes += one.kernel_copied_bytes;
        sum.counters.refused += one.refused;
        sum.counters.missed += one.missed;
        sum.spliced += spliced;
    }
    return sum;
}

/* @prefix: "", or the channel's. */
static void put_copies(struct writer *w, const char *prefix, const struct copies *copies)
{
    const struct {
        const char *name;
        uint64_t value;
    } values[] = {
        {"zero-copy-sends", copies->counters.sends},
        {"zero-copy-bytes", copies->counters.bytes},
        {"copied-sends", copies->counters.copied_sends},
        {"copied-bytes", copies->counters.copied_bytes},
        {"kernel-copied-sends", copies->counters.kernel_copied_sends},
        {"kernel-copied-bytes", copies->counters.kernel_copied_bytes},
        {"zero-copy-refused", copies->counters.refused},
        {"spliced-bytes", copies->spliced},
        {"dirty-sync-missed-zero-copy", copies->counters.missed},
    };

    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        char name[64];
        snprintf(name, sizeof(name), "%s%s", prefix, values[i].name);
        put_number(w, name, values[i].value);
    }
}

static void put_channels(struct writer *w, struct migration *m, const struct snapshot *s, unsigned channels)
{
    for (unsigned c = 0; c < channels; c++) {
        struct channel_record sums = s->records[c];
        put_channel(w, c, "bytes", sums.wire_bytes);
        put_channel(w, c, "packets", sums.ram.packets + sums.devices.packets);
        put_channel(w, c, "accepted-bytes", sums.ram.accepted + sums.devices.accepted);
        put_channel(w, c, "normal-bytes", sums.ram.bytes);
        put_channel(w, c, "zero-bytes", sums.ram.zero_pages * WIRE_PAGE_SIZE);
        put_channel(w, c, "discarded-bytes", sums.ram.discarded_bytes + sums.devices.discarded_bytes);
        put_channel(w, c, "device-bytes", sums.devices.bytes);
        if (s->role != ROLE_INCOMING) {
            struct copies copies = add_up_copies(m, c, c + 1);
            char prefix[24];
            snprintf(prefix, sizeof(prefix), "channel-%u-", c);
            put_copies(w, prefix, &copies);
        }
    }
}

/* The last round, and what it lets one expect: the next one may dirty as much and be sent as fast. */
static void put_rounds(struct writer *w, struct migration *m, const struct snapshot *s)
{
    const struct round *round = &s->round;
    uint64_t queued = outgoing_queued(m);
    uint64_t time = round->time_ms > 0 ? (uint64_t)round->time_ms : 1;

    put_number(w, "dirty-sync-count", s->rounds);
    put_number(w, "last-round-pages", round->pages);
    put_number(w, "last-round-bytes", round->bytes);
    put_number(w, "last-round-time", (uint64_t)round->time_ms);
    put_number(w, "dirty-pages-rate", round->pages * 1000 / time);
    put_number(w, "remaining", queued);
    put_number(w, "verified-bytes", outgoing_verified(m));
    put_number(w, "expected-downtime",
               round->bytes ? (uint64_t)((double)(round->bytes + queued) / (double)round->bytes * (double)time) : 0);
}

static void put_counters(struct writer *w, struct migration *m, const struct snapshot *s, unsigned channels)
{
    bool outgoing = s->role != ROLE_INCOMING;
    uint64_t main_bytes = outgoing ? outgoing_wire_bytes(m, -1) : 0;
    struct channel_record sums = s->records[s->channels];
    struct file *ram = s->file_count ? s->files[WIRE_RAM] : NULL;

    put_times(w, s, sums.wire_bytes + main_bytes);
    put_number(w, "transferred", sums.wire_bytes + main_bytes);
    put_number(w, "multifd-bytes", sums.wire_bytes);
    put_number(w, "page-size", WIRE_PAGE_SIZE);
    put_number(w, "accepted-bytes", sums.ram.accepted + sums.devices.accepted);
    put_number(w, "normal", sums.ram.pages);
    put_number(w, "normal-bytes", sums.ram.bytes);
    put_number(w, "duplicate", sums.ram.zero_pages);
    put_number(w, "zero-bytes", sums.ram.zero_pages * WIRE_PAGE_SIZE);
    put_number(w, "discarded-bytes", sums.ram.discarded_bytes + sums.devices.discarded_bytes);
    put_number(w, "device-bytes", sums.devices.bytes);
    put_number(w, "devices", s->file_count ? (uint64_t)s->file_count - 1 : 0);
    put_number(w, "ram-size", !ram ? 0 : outgoing ? atomic_load(&ram->size) : file_received_size(ram));
    if (outgoing) {
        struct copies copies = add_up_copies(m, 0, channels);
        put_rounds(w, m, s);
        put_copies(w, "", &copies);
    }
    if (!outgoing) {
        put_number(w, "first-arrivals", sums.ram.first_pages);
        put_number(w, "barrier-idle-time", incoming_barrier_ns(m) / 1000000);
    }
    put_channels(w, m, s, channels);
}

static int take_snapshot(struct migration *m, struct snapshot *out)
{
    struct file **files;
    int count = migration_files(m, &files);

    if (count < 0)
        return count;
    pthread_mutex_lock(&m->lock);
    *out = (struct snapshot){
        .state = m->state,
        .role = m->role,
        .times = m->times,
        .settings = m->settings,
        .failure = m->failure,
        .generation = m->generation,
        .rounds = m->rounds,
        .round = m->last_round,
        .files = files,
        .file_count = count,
    };
    pthread_mutex_unlock(&m->lock);
    /* After the state, so that a final state has the final sums. */
    int ret = migration_records(m, &out->channels, &out->records);
    if (ret < 0)
        migration_put_files(files, count);
    return ret;
}

static void drop_snapshot(struct snapshot *s)
{
    migration_put_files(s->files, s->file_count);
    free(s->records);
}

/* How many channels are told apart. */
static unsigned channels_of(struct migration *m, const struct snapshot *s)
{
    unsigned outgoing = s->role == ROLE_INCOMING ? s->channels : outgoing_channels(m);

    /* A peer may have come since the snapshot was made. */
    return outgoing < s->channels ? outgoing : s->channels;
}

char *status_text(struct migration *m, bool json, size_t *size, uint64_t *generation)
{
    struct snapshot s;
    char *text = NULL;

    if (take_snapshot(m, &s) < 0)
        return NULL;
    struct writer w = {.out = open_memstream(&text, size), .json = json, .first = true};
    if (!w.out) {
        drop_snapshot(&s);
        return NULL;
    }
    if (json)
        fputc('{', w.out);
    put_text(&w, "status", state_names[s.state]);
    put_text(&w, "role", role_names[s.role]);
    put_text(&w, "name", m->name);
    if (error_is_set(&s.failure) && (s.state == STATE_FAILED || s.state == STATE_CANCELLED))
        put_text(&w, "error-desc", s.failure.message);
    if (s.settings.uri.text[0])
        put_text(&w, "uri", s.settings.uri.text);
    put_number(&w, "channels", s.settings.channels);
    put_number(&w, "device-channels", s.settings.device_channels);
    if (s.role == ROLE_INCOMING || s.times.started)
        put_text(&w, "checksum", s.settings.checksum ? "on" : "off");
    put_text(&w, "compression", s.settings.compress ? "zstd" : "none");
    if (s.role != ROLE_INCOMING)
        put_text(&w, "verify", s.settings.verify ? "on" : "off");
    if (s.role != ROLE_INCOMING)
        put_text(&w, "zero-copy", zerocopy_mode_names[s.settings.zero_copy]);
    const char *way = s.role == ROLE_INCOMING ? NULL : outgoing_path(m);
    if (way)
        put_text(&w, "path", way);
    if (s.role == ROLE_INCOMING) {
        char path[4096];
        incoming_ram_path(m, path, sizeof(path));
        if (*path)
            put_text(&w, "ram-path", path);
    }
    put_counters(&w, m, &s, channels_of(m, &s));
    drop_snapshot(&s);
    if (json)
        fputs("\n}\n", w.out);
    if (fclose(w.out)) {
        free(text);
        return NULL;
    }
    *generation = s.generation;
    return text;
}
