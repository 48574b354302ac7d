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
#include "migration.h"
#include "text.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct writer {
    FILE *out;
    bool json, first;
    const char *list; /* what follows is of one of these, such as a channel; NULL: the migration's */
    unsigned number;  /* of which */
    bool listed;      /* one of the list is there */
};

static void key(struct writer *w, const char *name)
{
    if (w->json)
        fprintf(w->out, "%s\n%s\"%s\": ", w->first ? "" : ",", w->list ? "      " : "  ", name);
    else if (!w->list)
        fprintf(w->out, "%s ", name);
    else
        fprintf(w->out, "%s-%u-%s ", w->list, w->number, name);
    w->first = false;
}

/*
 * A list: lines that begin with @one and a number, or an array of objects, @name. After begin_list() comes
 * list_item() before the keys of each.
 */
static void begin_list(struct writer *w, const char *name, const char *one)
{
    if (w->json) {
        key(w, name);
        fputc('[', w->out);
    }
    w->list = one;
    w->listed = false;
}

static void end_item(struct writer *w)
{
    if (w->json && w->listed)
        fputs("\n    }", w->out);
}

static void list_item(struct writer *w, unsigned number)
{
    end_item(w);
    if (w->json)
        fputs(w->listed ? ",\n    {" : "\n    {", w->out);
    w->number = number;
    w->first = w->listed = true;
}

static void end_list(struct writer *w)
{
    end_item(w);
    if (w->json)
        fputs(w->listed ? "\n  ]" : "]", w->out);
    w->list = NULL;
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

/* What cannot be in a JSON string as it is; what is not UTF-8, such as a path, becomes U+FFFD there. */
static void put_character(FILE *out, const char *p, size_t n, enum text_kind kind, uint32_t code)
{
    if (kind == TEXT_INVALID)
        fputs("\\ufffd", out);
    else if (kind != TEXT_PLAIN)
        fprintf(out, "\\u%04x", code);
    else if (*p == '"' || *p == '\\')
        fprintf(out, "\\%c", *p);
    else
        fwrite(p, 1, n, out);
}

static void put_text(struct writer *w, const char *name, const char *value)
{
    key(w, name);
    if (w->json)
        fputc('"', w->out);
    for (size_t n; *value; value += n) {
        uint32_t code = 0;
        enum text_kind kind = text_next(value, &n, &code);
        if (w->json)
            put_character(w->out, value, n, kind, code);
        else if (kind == TEXT_CONTROL || kind == TEXT_DIRECTION)
            fputc('?', w->out); /* one line, whatever it says */
        else
            fwrite(value, 1, n, w->out);
    }
    fputc(w->json ? '"' : '\n', w->out);
}

static uint64_t span(int64_t from, int64_t to)
{
    return from && to > from ? (uint64_t)(to - from) : 0;
}

static void put_times(struct writer *w, const struct migration_snapshot *s, uint64_t transferred)
{
    int64_t end = s->times.ended ? s->times.ended : clock_ms();
    uint64_t moving = span(s->times.active, end);

    put_number(w, "setup-time", span(s->times.started, s->times.active ? s->times.active : end));
    put_number(w, "total-time", span(s->times.started, end));
    put_number(w, "downtime", s->state == STATE_COMPLETED ? span(s->times.switchover, s->times.ended) : 0);
    put_number(w, "complete-time",
               s->state == STATE_COMPLETED ? span(s->times.completing, s->times.ended) : 0);
    put_number(w, "pauses", s->pauses);
    put_number(w, "paused-time", s->paused_ms);
    put_decimal(w, "mbps", moving ? (double)transferred * 8 / 1000 / (double)moving : 0);
}

static void put_copies(struct writer *w, const struct channel_record *record)
{
    const struct {
        const char *name;
        uint64_t value;
    } values[] = {
        {"zero-copy-sends", record->copies.sends},
        {"zero-copy-bytes", record->copies.bytes},
        {"copied-sends", record->copies.copied_sends},
        {"copied-bytes", record->copies.copied_bytes},
        {"kernel-copied-sends", record->copies.kernel_copied_sends},
        {"kernel-copied-bytes", record->copies.kernel_copied_bytes},
        {"zero-copy-refused", record->copies.refused},
        {"spliced-bytes", record->spliced_bytes},
        {"dirty-sync-missed-zero-copy", record->copies.missed},
    };

    for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++)
        put_number(w, values[i].name, values[i].value);
}

static void put_channel(struct writer *w, const struct migration_snapshot *s, unsigned c)
{
    struct channel_record sums = s->records[c];

    put_number(w, "bytes", sums.wire_bytes);
    put_number(w, "packets", sums.ram.packets + sums.devices.packets);
    put_number(w, "accepted-bytes", sums.ram.covered + sums.devices.covered);
    put_number(w, "normal-bytes", sums.ram.bytes);
    put_number(w, "zero-bytes", sums.ram.zero_pages * WIRE_PAGE_SIZE);
    put_number(w, "discarded-bytes", sums.ram.discarded_bytes + sums.devices.discarded_bytes);
    put_number(w, "device-bytes", sums.devices.bytes);
    put_number(w, "rdma-bytes", sums.placed_bytes);
    if (!s->incoming)
        put_copies(w, &sums);
    if (sums.peer)
        put_text(w, "peer", sums.peer);
}

static void put_channels(struct writer *w, const struct migration_snapshot *s)
{
    begin_list(w, "channels", "channel");
    for (unsigned c = 0; c < s->channels; c++) {
        list_item(w, c);
        put_channel(w, s, c);
    }
    end_list(w);
}

/* The last round, and what it lets one expect: the next one may dirty as much and be sent as fast. */
static void put_rounds(struct writer *w, const struct migration_snapshot *s)
{
    const struct round *round = &s->round;
    uint64_t queued = s->figures.queued;
    uint64_t time = round->time_ms > 0 ? (uint64_t)round->time_ms : 1;

    put_number(w, "dirty-sync-count", s->rounds);
    put_number(w, "last-round-pages", round->pages);
    put_number(w, "last-round-bytes", round->bytes);
    put_number(w, "last-round-time", (uint64_t)round->time_ms);
    put_number(w, "dirty-pages-rate", round->pages * 1000 / time);
    put_number(w, "remaining", queued);
    put_number(w, "verified-bytes", s->figures.verified);
    if (s->precopy.count)
        put_number(w, "expected-downtime", (uint64_t)(s->precopy.expected_ms + 0.5));
    else
        put_number(w, "expected-downtime",
                   round->bytes
                       ? (uint64_t)((double)(round->bytes + queued) / (double)round->bytes * (double)time)
                       : 0);
}

static void put_precopy_round(struct writer *w, const struct precopy_round *round)
{
    put_number(w, "scanned-pages", round->scanned);
    put_number(w, "changed-pages", round->changed);
    put_number(w, "bytes", round->wire_bytes);
    put_decimal(w, "time", round->time_ms);
    put_decimal(w, "scan-time", round->scan_ms);
    put_number(w, "dirty-pages-rate", (uint64_t)round->dirty_rate);
    put_decimal(w, "expected-downtime", round->expected_ms);
}

static void put_precopy(struct writer *w, const struct precopy_progress *precopy)
{
    unsigned first = precopy->count > PRECOPY_ROUNDS_SHOWN ? precopy->count - PRECOPY_ROUNDS_SHOWN : 0;

    put_number(w, "precopy-rounds", precopy->count);
    if (!precopy->count)
        return;
    begin_list(w, "precopy", "round");
    for (unsigned n = first; n < precopy->count; n++) {
        list_item(w, n + 1);
        put_precopy_round(w, &precopy->rounds[n % PRECOPY_ROUNDS_SHOWN]);
    }
    end_list(w);
}

/* What of the destination's memory can be written from here, and what is registered for that. */
static void put_placing(struct writer *w, const struct migration_figures *figures)
{
    put_number(w, "rdma-chunks", figures->placing.chunks);
    put_number(w, "rdma-exposures", figures->placing.exposures);
    put_number(w, "rdma-withdrawals", figures->placing.evictions);
    put_number(w, "rdma-refusals", figures->placing.refusals);
    put_number(w, "rdma-registrations", figures->transport.registrations);
    put_number(w, "rdma-evictions", figures->transport.evictions);
    put_number(w, "rdma-registered-bytes", figures->transport.registered_bytes);
    put_number(w, "rdma-drains", figures->drains);
    put_number(w, "rdma-partial-drains", figures->transport.partial_drains);
    put_number(w, "rdma-rnr-naks", figures->transport.rnr_naks);
    put_number(w, "rdma-retries", figures->transport.retries);
}

static void put_counters(struct writer *w, const struct migration_snapshot *s)
{
    const struct channel_record *sums = &s->records[s->channels];
    uint64_t transferred = sums->wire_bytes + s->figures.main_bytes;

    put_times(w, s, transferred);
    put_number(w, "transferred", transferred);
    put_number(w, "multifd-bytes", sums->wire_bytes);
    put_number(w, "page-size", WIRE_PAGE_SIZE);
    put_number(w, "accepted-bytes", sums->ram.covered + sums->devices.covered);
    put_number(w, "normal", sums->ram.pages);
    put_number(w, "normal-bytes", sums->ram.bytes);
    put_number(w, "duplicate", sums->ram.zero_pages);
    put_number(w, "zero-bytes", sums->ram.zero_pages * WIRE_PAGE_SIZE);
    put_number(w, "discarded-bytes", sums->ram.discarded_bytes + sums->devices.discarded_bytes);
    put_number(w, "device-bytes", sums->devices.bytes);
    put_number(w, "devices", s->devices);
    put_number(w, "ram-size", s->figures.ram_size);
    put_number(w, "rdma-bytes", sums->placed_bytes);
    if (s->figures.places)
        put_placing(w, &s->figures);
    if (s->incoming) {
        put_number(w, "first-arrivals", sums->ram.first_pages);
        put_number(w, "barrier-idle-time", s->figures.barrier_ns / 1000000);
        put_number(w, "throttled-time", s->figures.held_ns / 1000000);
    } else {
        put_rounds(w, s);
        put_copies(w, sums);
        put_precopy(w, &s->precopy);
    }
    put_channels(w, s);
}

/* What TLS does, and what it rules out. */
static void put_tls(struct writer *w, const struct migration_snapshot *s)
{
    bool on = s->figures.peer.name[0];

    if (!s->incoming && !s->times.active)
        return;
    put_text(w, "tls", on ? "on" : "off");
    if (on)
        put_text(w, "tls-by", s->figures.peer.by_kernel ? "kernel" : "migfs");
    if (on)
        put_text(w, "peer-identity", s->figures.peer.name);
    if (on && !s->incoming)
        put_text(w, "not-with-tls", "zero-copy splice");
}

static void put_uris(struct writer *w, const struct migration_snapshot *s)
{
    char uris[URI_LIST_MAX];

    uri_list_format(&s->settings.uris, uris, sizeof(uris));
    if (*uris)
        put_text(w, "uri", uris);
    if (*s->figures.fallen_back)
        put_text(w, "fallback", s->figures.fallen_back);
}

char *status_text(struct migration *m, bool json, size_t *size, uint64_t *generation)
{
    struct migration_snapshot s;
    char *text = NULL;

    if (migration_take_snapshot(m, &s) < 0)
        return NULL;
    struct writer w = {.out = open_memstream(&text, size), .json = json, .first = true};
    if (!w.out) {
        migration_drop_snapshot(&s);
        return NULL;
    }
    if (json)
        fputc('{', w.out);
    put_text(&w, "status", s.paused ? "paused" : state_names[s.state]);
    put_text(&w, "role", s.role);
    put_text(&w, "name", m->name);
    if (error_is_set(&s.failure) && (s.state == STATE_FAILED || s.state == STATE_CANCELLED))
        put_text(&w, "error-desc", s.failure.message);
    if (s.paused)
        put_text(&w, "pause-reason", s.pause_reason.message);
    if (*s.warning)
        put_text(&w, "warning", s.warning);
    put_uris(&w, &s);
    put_tls(&w, &s);
    put_number(&w, json ? "channel-count" : "channels", s.settings.channels);
    put_number(&w, "device-channels", s.settings.device_channels);
    if (s.incoming || s.times.started)
        put_text(&w, "checksum", s.settings.checksum ? "on" : "off");
    put_text(&w, "compression", s.settings.compress ? "zstd" : "none");
    if (!s.incoming)
        put_text(&w, "dirty-tracking", s.settings.compare ? "compare" : "bitmap");
    if (!s.incoming)
        put_text(&w, "verify", s.settings.verify ? "on" : "off");
    if (!s.incoming)
        put_text(&w, "zero-copy", zerocopy_mode_names[s.settings.zero_copy]);
    put_number(&w, "max-bandwidth", s.settings.max_bandwidth);
    if (s.incoming)
        put_number(&w, "weight", s.settings.weight);
    if (s.figures.path)
        put_text(&w, "path", s.figures.path);
    if (*s.figures.ram_path)
        put_text(&w, "ram-path", s.figures.ram_path);
    put_counters(&w, &s);
    migration_drop_snapshot(&s);
    if (json)
        fputs("\n}\n", w.out);
    if (fclose(w.out)) {
        free(text);
        return NULL;
    }
    *generation = s.generation;
    return text;
}
