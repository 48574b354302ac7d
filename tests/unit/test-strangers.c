/* SPDX-License-Identifier: Apache-2.0 */
/* How many handshakes without a proof an address has. */
#include "strangers.h"
#include "check.h"

#include <stdio.h>

static struct strangers strangers;
static int64_t now = 1000000;
static bool first;

static bool admit(const char *address)
{
    return strangers_admit(&strangers, address, now, &first);
}

static unsigned admitted(const char *address, unsigned tries)
{
    unsigned n = 0;

    while (tries-- > 0)
        n += admit(address);
    return n;
}

Test(strangers, a_bounded_number_and_then_a_rate)
{
    cr_expect(eq(u32, admitted("192.0.2.1", 2 * STRANGERS_BURST), STRANGERS_BURST));
    now += 1000;
    cr_expect(eq(u32, admitted("192.0.2.1", 100), STRANGERS_RATE));
    now += 10000;
    cr_expect(eq(u32, admitted("192.0.2.1", 1000), 10 * STRANGERS_RATE));
    /* It does not add up beyond what there may be at once. */
    now += 3600000;
    cr_expect(eq(u32, admitted("192.0.2.1", 1000), STRANGERS_BURST));
}

Test(strangers, others_have_their_own)
{
    admitted("192.0.2.1", 1000);
    cr_expect(eq(u32, admitted("192.0.2.2", 1000), STRANGERS_BURST));
    cr_expect(eq(u32, admitted("user 1000", 1000), STRANGERS_BURST));
}

Test(strangers, a_network_of_ipv6_is_one)
{
    cr_expect(eq(u32, admitted("2001:db8:1:2::1", STRANGERS_BURST / 2), STRANGERS_BURST / 2));
    cr_expect(eq(u32, admitted("2001:db8:1:2:ffff::7", 1000), STRANGERS_BURST / 2));
    cr_expect(eq(u32, admitted("2001:db8:1:3::1", 1000), STRANGERS_BURST));
    cr_expect(eq(u32, admitted("fe80::1%eth0", STRANGERS_BURST), STRANGERS_BURST));
    cr_expect(not(admit("fe80::2%eth1")));
}

Test(strangers, a_proof_is_taken_off)
{
    for (int i = 0; i < 10 * STRANGERS_BURST; i++) {
        cr_assert(admit("192.0.2.1"), "%d", i);
        strangers_vouch(&strangers, "192.0.2.1", now);
    }
    cr_expect(eq(u32, admitted("192.0.2.1", 1000), STRANGERS_BURST));
    strangers_vouch(&strangers, "192.0.2.1", now);
    cr_expect(admit("192.0.2.1"));
    cr_expect(not(admit("192.0.2.1")));
}

Test(strangers, the_first_refusal_is_told)
{
    admitted("192.0.2.1", STRANGERS_BURST);
    for (int i = 0; i < 2; i++) {
        cr_expect(not(admit("192.0.2.1")));
        cr_expect(first);
        cr_expect(not(admit("192.0.2.1")));
        cr_expect(not(first));
        now += 1000;
        cr_expect(eq(u32, admitted("192.0.2.1", STRANGERS_RATE), STRANGERS_RATE));
    }
}

/* However many there are, the worst one is remembered. */
Test(strangers, many)
{
    char address[16];

    admitted("192.0.2.1", STRANGERS_BURST);
    for (int i = 0; i < 4 * STRANGERS_MAX; i++) {
        snprintf(address, sizeof(address), "10.0.%d.%d", i / 256, i % 256);
        cr_expect(admit(address));
    }
    cr_expect(not(admit("192.0.2.1")));
}
