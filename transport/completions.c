/* SPDX-License-Identifier: Apache-2.0 */
/* Which sends are over; see completions.h. */
#include "completions.h"

#include <assert.h>

void completions_init(struct completions *c, uint32_t first)
{
    *c = (struct completions){.next = first, .oldest = first};
}

bool completions_in_flight(const struct completions *c)
{
    return c->oldest != c->next;
}

bool completions_has_room(const struct completions *c)
{
    return c->next - c->oldest < COMPLETIONS_MAX;
}

uint64_t completions_add(struct completions *c, uint32_t bytes)
{
    assert(completions_has_room(c));
    c->sends[c->next % COMPLETIONS_MAX].bytes = bytes;
    c->sends[c->next % COMPLETIONS_MAX].over = false;
    return ++c->next;
}

void completions_end(struct completions *c, uint32_t first, uint32_t last, bool copied)
{
    /* Few are in flight, so the distances have a sign. */
    int64_t begin = (int32_t)(first - (uint32_t)c->oldest), end = (int32_t)(last - (uint32_t)c->oldest);
    int64_t in_flight = (int64_t)(c->next - c->oldest);

    for (int64_t i = begin < 0 ? 0 : begin; i <= end && i < in_flight; i++) {
        uint64_t send = c->oldest + (uint64_t)i;
        uint32_t bytes = c->sends[send % COMPLETIONS_MAX].bytes;
        if (c->sends[send % COMPLETIONS_MAX].over)
            continue;
        c->sends[send % COMPLETIONS_MAX].over = true;
        c->returns.sends += !copied;
        c->returns.bytes += copied ? 0 : bytes;
        c->returns.copied_sends += copied;
        c->returns.copied_bytes += copied ? bytes : 0;
    }
    while (completions_in_flight(c) && c->sends[c->oldest % COMPLETIONS_MAX].over)
        c->oldest++;
    c->returns.ticket = c->oldest;
}
