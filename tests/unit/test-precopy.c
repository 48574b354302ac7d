/* SPDX-License-Identifier: Apache-2.0 */
/* How long a switch-over is expected to take. */
#include "precopy.h"
#include "check.h"

Test(precopy, estimate)
{
    struct precopy_round round = {.wire_bytes = 8000000, .time_ms = 50, .scan_ms = 10};

    /* 8 MB were changed in 100 ms, so 4 MB in the 50 ms of the round; 1 MB a ms. */
    cr_expect(epsilon_eq(dbl, precopy_estimate(&round, 100, 1e6, 0), 14.0, 1e-9));
    cr_expect(epsilon_eq(dbl, precopy_estimate(&round, 100, 1e6, 2.5), 16.5, 1e-9));
    cr_expect(epsilon_eq(dbl, precopy_estimate(&round, 200, 1e6, 0), 12.0, 1e-9));
    cr_expect(epsilon_eq(dbl, precopy_estimate(&round, 100, 2e6, 0), 12.0, 1e-9));
    /* Nothing is known of how much changes, or how fast it goes: the look alone. */
    cr_expect(epsilon_eq(dbl, precopy_estimate(&round, 0, 1e6, 1), 11.0, 1e-9));
    cr_expect(epsilon_eq(dbl, precopy_estimate(&round, 100, 0, 1), 11.0, 1e-9));
    round.wire_bytes = 0;
    cr_expect(epsilon_eq(dbl, precopy_estimate(&round, 100, 1e6, 1), 11.0, 1e-9));
}
