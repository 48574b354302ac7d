/* SPDX-License-Identifier: Apache-2.0 */
/* The channels of a file's stripes; see homes.h. */
#include "homes.h"

/* How much of [0, end) is of the stripes at @position in each round of the channels. */
static uint64_t bytes_before(const struct homes *homes, uint64_t position, uint64_t end)
{
    uint64_t round = (uint64_t)homes->count * WIRE_STRIPE_SIZE;
    uint64_t rest = end % round, start = position * WIRE_STRIPE_SIZE;
    uint64_t part = rest <= start ? 0 : rest - start < WIRE_STRIPE_SIZE ? rest - start : WIRE_STRIPE_SIZE;

    return end / round * WIRE_STRIPE_SIZE + part;
}

uint64_t homes_bytes(const struct homes *homes, unsigned channel, uint64_t offset, uint64_t len)
{
    uint64_t n = homes->count, position;

    if (!homes_has(homes, channel))
        return 0;
    position = (channel - homes->first + n - homes->turn % n) % n;
    return bytes_before(homes, position, offset + len) - bytes_before(homes, position, offset);
}
