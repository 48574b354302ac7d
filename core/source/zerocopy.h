/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a channel sends without a copy: whether, how much at a time, and what
 * has come of it.
 *
 * Theory of operation
 *   Only large payloads are worth it. That the transport has it, and that the
 *   kernel takes a buffer, does not mean that it is not copied: over loopback,
 *   over veth, or while somebody captures packets, Linux copies after all, and
 *   says so only when the buffer comes back. So:
 *
 *   trying   A piece of a payload is sent without a copy, the rest with one,
 *            and so is everything until the piece is back.
 *   going    A piece was not copied: now everything large goes this way. Bytes in
 *            flight are bounded: the bound halves when the kernel has no more
 *            memory to lock, and grows with what comes back.
 *   resting  Too many sends in a row were copied: everything is copied, until
 *            it is time to try once more; each time that is in vain, the rest
 *            lasts twice as long.
 *
 *   ZEROCOPY_REQUIRE is always going, and instead of resting it fails. It also
 *   fails at a barrier when everything large since the last one was copied, so
 *   that it always finds out. A single send that is copied is no failure: a
 *   packet capture does that.
 *
 *   The channel's lock guards it all.
 */
#ifndef MIGFS_ZEROCOPY_H
#define MIGFS_ZEROCOPY_H

#include "transport.h"
#include "zerocopy_mode.h"

#include <stdbool.h>
#include <stdint.h>

/* fits into 64 KiB of lockable memory, once a limit that was common */
#define ZEROCOPY_BOUND_MIN (32u << 10)
#define ZEROCOPY_BOUND     (4u << 20) /* at first: tcp_wmem lets a socket have so much */
#define ZEROCOPY_BOUND_MAX (64u << 20)
#define ZEROCOPY_PROBE     (64u << 10) /* what is sent to try */
#define ZEROCOPY_TRIES     2           /* in vain, at first */
#define ZEROCOPY_GIVE_UP   16          /* sends in a row, after it had worked, or when it is required */
#define ZEROCOPY_REST_MS   1000        /* the first one */
#define ZEROCOPY_REST_MAX  60000

enum zerocopy_phase { ZEROCOPY_TRYING, ZEROCOPY_GOING, ZEROCOPY_RESTING };

struct zerocopy {
    enum zerocopy_mode mode;
    bool possible; /* the transport can */
    enum zerocopy_phase phase;
    uint64_t bound, in_flight; /* bytes */
    unsigned in_vain;          /* sends in a row that were copied or refused */
    bool unlockable;           /* the last of them was refused */
    int64_t rest_ms, retry_at_ms;
    uint64_t round_bytes, round_copied; /* large payloads since the last barrier: without a copy, with one */
    struct transport_returns known;
    struct zerocopy_counters counters;
};

/** zerocopy_init - with nothing sent; @possible: the transport can */
void zerocopy_init(struct zerocopy *z, enum zerocopy_mode mode, bool possible);

/** zerocopy_may - whether now is the time to send a payload, or what is left of it, without a copy */
bool zerocopy_may(const struct zerocopy *z);

/**
 * zerocopy_take - how much of @len bytes may be sent at once; they are in flight from now on
 *
 * zerocopy_may() has said yes. Return: 0 when something must come back first.
 */
size_t zerocopy_take(struct zerocopy *z, size_t len);

/**
 * zerocopy_handed - of what was taken, so much has been sent
 * @taken: what zerocopy_take() said
 * @handed: what the transport took; less when memory could not be locked
 *
 * Return: whether to go on with the rest of the payload; otherwise it is copied.
 */
bool zerocopy_handed(struct zerocopy *z, size_t taken, size_t handed);

/** zerocopy_broken - the same, of a send that failed */
void zerocopy_broken(struct zerocopy *z, size_t taken, size_t handed);

/** zerocopy_copied - a send was made with a copy; @large: so many bytes of it could have been sent without */
void zerocopy_copied(struct zerocopy *z, uint64_t bytes, uint64_t large);

/** zerocopy_returned - what the transport says has come back; an old answer is ignored */
void zerocopy_returned(struct zerocopy *z, const struct transport_returns *returns);

/** zerocopy_barrier - everything that was sent has come back: a round ends */
void zerocopy_barrier(struct zerocopy *z);

/**
 * zerocopy_verdict - whether what is required does not happen
 * Return: 0; -EOPNOTSUPP: the kernel copies; -ENOBUFS: no memory can be locked.
 */
int zerocopy_verdict(const struct zerocopy *z);

#endif
