/* SPDX-License-Identifier: Apache-2.0 */
/* Rounds of a running VM's RAM; see precopy.h. */
#include "precopy.h"
#include "cleanup.h"
#include "clock.h"
#include "reference.h"
#include "tracking.h"

#include <errno.h>

#define SLOW_LOOKS  3          /* one after the other; a busy machine has one now and then */
#define LEAST_BYTES (1u << 20) /* a round that sends less says nothing about the rate */

void precopy_init(struct precopy *precopy, struct source *source, struct barriers *barriers)
{
    *precopy = (struct precopy){.source = source, .barriers = barriers};
}

void precopy_forget(struct precopy *precopy)
{
    precopy->running = false;
    precopy->slow_looks = 0;
    precopy->bytes_per_ms = 0;
}

double precopy_estimate(const struct precopy_round *last, double interval_ms, double bytes_per_ms,
                        double barrier_ms)
{
    double changed = interval_ms > 0 ? (double)last->wire_bytes / interval_ms * last->time_ms : 0;

    return last->scan_ms + (bytes_per_ms > 0 ? changed / bytes_per_ms : 0) + barrier_ms;
}

static double ms_since(int64_t ns)
{
    return (double)(clock_ns() - ns) / 1e6;
}

/* Sends what has changed, and waits until it is there. */
static int run_round(struct precopy *precopy, struct precopy_round *round, const struct interrupt *interrupt,
                     struct error *err)
{
    struct source *source = precopy->source;
    struct reference *ref = source->reference;
    struct file *ram = source->m->files[WIRE_RAM];
    struct tracking_figures before = {0}, after = {0};
    int64_t begun = clock_ns();

    if (source_allows(source, COMMAND_PRECOPY, err) < 0)
        return -EIO;
    if (interrupt_is_hit(interrupt))
        return error_set(err, CAUSE_INTERRUPTED, "interrupted");
    struct connection *conn = source_connection(source);
    uint64_t wire_bytes = connection_wire_bytes(conn);
    if (source->tracking)
        before = tracking_figures(source->tracking);
    if (source->tracking && ref)
        reference_mark_all(ref);
    if (barriers_sync(precopy->barriers, ram, interrupt, err) < 0)
        return -EIO;
    if (source->tracking)
        after = tracking_figures(source->tracking);
    *round = (struct precopy_round){
        .scanned = after.scanned - before.scanned,
        .changed = after.changed - before.changed,
        .wire_bytes = connection_wire_bytes(conn) - wire_bytes,
        .time_ms = ms_since(begun),
        .scan_ms = (double)(after.scan_ns - before.scan_ns) / 1e6 / (ref && ref->count ? ref->count : 1),
    };
    return 0;
}

/* A barrier with next to nothing before it. */
static int time_barrier(struct precopy *precopy, double *ms, const struct interrupt *interrupt,
                        struct error *err)
{
    int64_t begun = clock_ns();

    if (barriers_sync(precopy->barriers, precopy->source->m->files[WIRE_RAM], interrupt, err) < 0)
        return -EIO;
    *ms = ms_since(begun);
    return 0;
}

/* Whether a switch-over would take longer than it may. What is found out is shown in `status`. */
static bool is_too_long(struct precopy *precopy, struct precopy_round *round, double interval_ms,
                        double barrier_ms)
{
    struct migration *m = precopy->source->m;
    double sending = round->time_ms > round->scan_ms ? round->time_ms - round->scan_ms : round->time_ms;

    SCOPED_LOCK(&m->lock);
    if (round->wire_bytes >= LEAST_BYTES && sending > 0)
        precopy->bytes_per_ms = (double)round->wire_bytes / sending;
    double most = (double)m->settings.max_bandwidth / 1e3;
    if (most > 0 && precopy->bytes_per_ms > most)
        precopy->bytes_per_ms = most;
    round->dirty_rate = interval_ms > 0 ? (double)round->changed * 1000 / interval_ms : 0;
    round->expected_ms = interval_ms > 0 || !round->changed
                             ? precopy_estimate(round, interval_ms, precopy->bytes_per_ms, barrier_ms)
                             : round->time_ms;
    m->precopy.rounds[m->precopy.count++ % PRECOPY_ROUNDS_SHOWN] = *round;
    m->precopy.expected_ms = round->expected_ms;
    pthread_cond_broadcast(&m->changed);
    return round->expected_ms > m->settings.downtime_limit_ms;
}

/*
 * Whether it is to give up after @rounds: they were as many as it may have, or no round can help, since the
 * look at the memory alone takes too long, again and again.
 */
static bool is_enough(struct precopy *precopy, const struct precopy_round *round, unsigned rounds,
                      struct error *err)
{
    const struct settings *settings = &precopy->source->m->settings;

    SCOPED_LOCK(&precopy->source->m->lock);
    precopy->slow_looks = round->scan_ms > settings->downtime_limit_ms ? precopy->slow_looks + 1 : 0;
    if (precopy->slow_looks >= SLOW_LOOKS) {
        error_set(
            err, CAUSE_ROUNDS,
            "after %u rounds: to look at all of the RAM takes %.0f ms by itself, and downtime-limit is %u: "
            "more rounds do not help",
            rounds, round->scan_ms, settings->downtime_limit_ms);
        return true;
    }
    if (rounds < settings->max_rounds)
        return false;
    error_set(
        err, CAUSE_ROUNDS,
        "after %u rounds a switch-over would take %.0f ms, and downtime-limit is %u: the VM changes %.1f "
        "MB/s, and %.1f MB/s were sent (to look at all of the RAM takes %.0f ms)",
        rounds, round->expected_ms, settings->downtime_limit_ms, round->dirty_rate * WIRE_PAGE_SIZE / 1e6,
        precopy->bytes_per_ms / 1e3, round->scan_ms);
    return true;
}

static int run_rounds(struct precopy *precopy, const struct interrupt *interrupt, struct error *err)
{
    struct source *source = precopy->source;
    bool compares = source->tracking && source->reference;
    double interval_ms = 0, barrier_ms = 0;

    precopy->slow_looks = 0;
    for (unsigned n = 1;; n++) {
        struct precopy_round round;
        int64_t begun = clock_ns();
        if (run_round(precopy, &round, interrupt, err) < 0)
            return -EIO;
        if (n == 1 && time_barrier(precopy, &barrier_ms, interrupt, err) < 0)
            return -EIO;
        if (!is_too_long(precopy, &round, interval_ms, barrier_ms) || !compares)
            return 0;
        if (is_enough(precopy, &round, n, err))
            return -EIO;
        interval_ms = ms_since(begun);
    }
}

int precopy_run(struct precopy *precopy, const struct interrupt *interrupt, struct error *err)
{
    struct migration *m = precopy->source->m;

    pthread_mutex_lock(&m->lock);
    int ret = migration_allows(m, COMMAND_PRECOPY, err);
    if (ret == 0 && precopy->running)
        ret = error_set(err, CAUSE_STATE, "another precopy runs");
    if (ret == 0)
        precopy->running = true;
    pthread_mutex_unlock(&m->lock);
    if (ret < 0)
        return ret;
    ret = run_rounds(precopy, interrupt, err);
    pthread_mutex_lock(&m->lock);
    precopy->running = false;
    pthread_mutex_unlock(&m->lock);
    return ret;
}
