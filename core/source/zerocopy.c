/* SPDX-License-Identifier: Apache-2.0 */
/* Whether a channel sends without a copy; see zerocopy.h. */
#include "zerocopy.h"
#include "clock.h"

#include <errno.h>

void zerocopy_init(struct zerocopy *z, enum zerocopy_mode mode, bool possible)
{
    *z = (struct zerocopy){
        .mode = mode,
        .possible = possible,
        .phase = mode == ZEROCOPY_REQUIRE ? ZEROCOPY_GOING : ZEROCOPY_TRYING,
        .bound = ZEROCOPY_BOUND,
        .rest_ms = ZEROCOPY_REST_MS,
    };
}

bool zerocopy_may(const struct zerocopy *z)
{
    if (z->mode == ZEROCOPY_OFF || !z->possible)
        return false;
    switch (z->phase) {
    case ZEROCOPY_TRYING:
        return z->in_flight == 0;
    case ZEROCOPY_RESTING:
        return z->in_flight == 0 && clock_ms() >= z->retry_at_ms;
    default:
        return true;
    }
}

size_t zerocopy_take(struct zerocopy *z, size_t len)
{
    uint64_t room = z->bound > z->in_flight ? z->bound - z->in_flight : 0;
    uint64_t worth = len < z->bound / 4 ? len : z->bound / 4;

    if (z->phase == ZEROCOPY_RESTING)
        z->phase = ZEROCOPY_TRYING;
    if (z->phase == ZEROCOPY_TRYING && len > ZEROCOPY_PROBE)
        len = ZEROCOPY_PROBE;
    if (room < worth && z->in_flight)
        return 0;
    if (len > room)
        len = room;
    z->in_flight += len;
    return len;
}

static void rest(struct zerocopy *z)
{
    z->phase = ZEROCOPY_RESTING;
    z->retry_at_ms = clock_ms() + z->rest_ms;
    z->rest_ms = z->rest_ms * 2 < ZEROCOPY_REST_MAX ? z->rest_ms * 2 : ZEROCOPY_REST_MAX;
    /* Afterwards, one try is enough. */
    z->in_vain = ZEROCOPY_TRIES - 1;
}

static void note_in_vain(struct zerocopy *z, unsigned sends, bool unlockable)
{
    z->in_vain += sends;
    z->unlockable = unlockable;
    if (z->mode == ZEROCOPY_AUTO && z->phase != ZEROCOPY_RESTING &&
        z->in_vain >= (z->phase == ZEROCOPY_TRYING ? ZEROCOPY_TRIES : ZEROCOPY_GIVE_UP))
        rest(z);
}

bool zerocopy_handed(struct zerocopy *z, size_t taken, size_t handed)
{
    z->in_flight -= taken - handed;
    if (handed == taken)
        return z->phase == ZEROCOPY_GOING;
    z->counters.refused++;
    /* Nothing else is in flight, and not even the least is possible. */
    bool hopeless = handed == 0 && z->in_flight == 0 && taken <= ZEROCOPY_BOUND_MIN;
    uint64_t bound = (z->in_flight + taken - handed) / 2;
    if (bound < z->bound)
        z->bound = bound > ZEROCOPY_BOUND_MIN ? bound : ZEROCOPY_BOUND_MIN;
    if (hopeless)
        note_in_vain(z, 1, true);
    return z->mode == ZEROCOPY_REQUIRE && !hopeless;
}

void zerocopy_broken(struct zerocopy *z, size_t taken, size_t handed)
{
    z->in_flight -= taken - handed;
}

void zerocopy_copied(struct zerocopy *z, uint64_t bytes, uint64_t large)
{
    z->counters.copied_sends++;
    z->counters.copied_bytes += bytes;
    z->round_copied += large;
}

void zerocopy_returned(struct zerocopy *z, const struct transport_returns *returns)
{
    uint64_t sends = returns->sends - z->known.sends, bytes = returns->bytes - z->known.bytes;
    uint64_t copied = returns->copied_sends - z->known.copied_sends;
    uint64_t copied_bytes = returns->copied_bytes - z->known.copied_bytes;

    if (returns->sends + returns->copied_sends <= z->known.sends + z->known.copied_sends)
        return;
    z->known = *returns;
    z->in_flight -= bytes + copied_bytes;
    z->counters.sends += sends;
    z->counters.bytes += bytes;
    z->counters.copied_sends += copied;
    z->counters.copied_bytes += copied_bytes;
    z->counters.kernel_copied_sends += copied;
    z->counters.kernel_copied_bytes += copied_bytes;
    z->round_bytes += bytes;
    z->round_copied += copied_bytes;
    if (sends) {
        z->in_vain = 0;
        z->rest_ms = ZEROCOPY_REST_MS;
        if (z->phase == ZEROCOPY_TRYING)
            z->phase = ZEROCOPY_GOING;
        z->bound = z->bound + bytes / 4 < ZEROCOPY_BOUND_MAX ? z->bound + bytes / 4 : ZEROCOPY_BOUND_MAX;
    } else {
        note_in_vain(z, (unsigned)copied, false);
    }
}

void zerocopy_barrier(struct zerocopy *z)
{
    if (z->mode != ZEROCOPY_OFF && z->round_copied && !z->round_bytes) {
        z->counters.missed++;
        if (z->mode == ZEROCOPY_REQUIRE && z->in_vain < ZEROCOPY_GIVE_UP)
            z->in_vain = ZEROCOPY_GIVE_UP;
    }
    z->round_bytes = z->round_copied = 0;
}

int zerocopy_verdict(const struct zerocopy *z)
{
    if (z->mode != ZEROCOPY_REQUIRE || z->in_vain < ZEROCOPY_GIVE_UP)
        return 0;
    return z->unlockable ? -ENOBUFS : -EOPNOTSUPP;
}
