/* SPDX-License-Identifier: Apache-2.0 */
/* The channels that stripes go round. */
#include "homes.h"
#include "check.h"

#define STRIPE ((uint64_t)WIRE_STRIPE_SIZE)

Test(homes, of_stripes)
{
    for (unsigned channels = 1; channels <= WIRE_CHANNELS_MAX; channels++) {
        for (uint32_t turn = 0; turn < 3; turn++) {
            struct homes homes = {.turn = turn, .first = 2, .count = channels};
            cr_expect(eq(uint, homes_of(&homes, 0), 2 + turn % channels), "small files do not all have the same one");
            for (uint64_t stripe = 0; stripe < 300; stripe++) {
                unsigned home = homes_of(&homes, stripe * STRIPE);
                cr_assert(homes_has(&homes, home));
                cr_assert(eq(uint, homes_of(&homes, stripe * STRIPE + STRIPE - 1), home), "a stripe has one home");
                if (channels > 1)
                    cr_assert(ne(uint, homes_of(&homes, (stripe + 1) * STRIPE), home), "neighbours use other channels");
            }
            cr_expect(homes_has(&homes, homes_of(&homes, WIRE_OFFSET_MAX)));
            cr_expect(not(homes_has(&homes, 1)));
            cr_expect(homes_has(&homes, 2));
            cr_expect(homes_has(&homes, 1 + channels));
            cr_expect(not(homes_has(&homes, 2 + channels)));
        }
    }
}

/* Against counting stripe by stripe. */
Test(homes, bytes)
{
    static const uint64_t places[] = {0, 1, STRIPE - 1, STRIPE, STRIPE + 1, 3 * STRIPE, 7 * STRIPE + 12345};

    for (unsigned first = 0; first < 3; first++) {
        for (uint32_t turn = 0; turn < 7; turn++) {
            struct homes homes = {.turn = turn, .first = first, .count = 5 - first};
            for (size_t i = 0; i < ARRAY_LENGTH(places); i++) {
                for (size_t k = 0; k < ARRAY_LENGTH(places); k++) {
                    uint64_t counted[6] = {0}, end = places[i] + places[k];
                    for (uint64_t at = places[i]; at < end;) {
                        uint64_t to = (at / STRIPE + 1) * STRIPE < end ? (at / STRIPE + 1) * STRIPE : end;
                        counted[homes_of(&homes, at)] += to - at;
                        at = to;
                    }
                    for (unsigned c = 0; c < 6; c++)
                        cr_assert(eq(u64, homes_bytes(&homes, c, places[i], places[k]), counted[c]),
                                  "turn %u, channel %u, from %u", turn, c, first);
                }
            }
            cr_expect(homes_bytes(&homes, homes_of(&homes, 0), 0, WIRE_OFFSET_MAX) > 0, "and no time for a huge one");
        }
    }
}
