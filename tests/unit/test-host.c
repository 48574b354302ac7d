/* SPDX-License-Identifier: Apache-2.0 */
/* What the migrations of a daemon share: limits, accounts, what is remembered. */
#include "host.h"
#include "blocked.h"
#include "check.h"
#include "clock.h"

#include <string.h>

static const struct limits limits = {.max_memory = 1000, .max_migrations = 10, .max_channels = 8};

/* What is not said about one peer is what is said about all. */
Test(host, limits_of_a_peer)
{
    struct host host;
    struct account *account, *same;

    host_init(&host, &limits, NULL);
    cr_expect(eq(u64, host.limits.max_peer_memory, 1000));
    cr_expect(eq(u32, host.limits.max_peer_migrations, 10));
    cr_expect(eq(u32, host.limits.max_outgoing, UINT32_MAX));
    account = account_get(&host.accounts, "one");
    same = account_get(&host.accounts, "one");
    cr_expect(eq(ptr, account, same));
    cr_expect(eq(u64, account->memory.limit, 1000));
    cr_expect(eq(u64, account->channels.limit, 8));
    cr_expect(eq(u64, account->descriptors.limit, UINT32_MAX));
    cr_expect(budget_charge(&account->channels, 8));
    cr_expect(eq(u64, host.accounts.channels.used, 8));
    cr_expect(not(budget_charge(&account->channels, 1)));
    budget_release(&account->channels, 8);
    account_put(same);
    cr_expect(eq(ptr, account_hold(account), account));
    account_put(account);
    cr_expect(eq(ptr, host.accounts.first, account), "somebody has it");
    account_put(account);
    cr_expect(zero(ptr, host.accounts.first));
    host_fini(&host);
}

static void await_unused(void *arg)
{
    cr_expect(host_await_unused(arg, HOST_FOREVER));
}

/* Whoever waits until nothing uses the host waits for as long as it is told to. */
Test(host, users)
{
    struct worker worker;
    struct host host;

    host_init(&host, &limits, NULL);
    cr_expect(host_await_unused(&host, 0));
    host_use(&host);
    host_use(&host);
    int64_t began = clock_ms();
    cr_expect(not(host_await_unused(&host, 20)));
    cr_expect(ge(i64, clock_ms() - began, 20));
    worker_start(&worker, await_unused, &host);
    worker_await_sleep(&worker);
    host_unuse(&host);
    cr_expect(not(host_await_unused(&host, 0)));
    host_unuse(&host);
    worker_join(&worker);
    host_fini(&host);
}

Test(host, outcomes)
{
    struct host host;
    uint8_t session[16] = {0}, unknown[16] = {0xff}, nobody[32] = {0}, somebody[32] = {1};

    host_init(&host, &limits, NULL);
    cr_expect(eq(int, (int)host_outcome(&host, session, nobody), WIRE_OUTCOME_UNKNOWN), "also of the session of zeros");
    for (int i = 0; i < HOST_HISTORY; i++) {
        memcpy(session, &i, sizeof(i));
        session[15] = 1;
        host_record(&host, session, nobody, i % 2 ? WIRE_OUTCOME_COMPLETED : WIRE_OUTCOME_FAILED);
    }
    for (int i = 0; i < HOST_HISTORY; i++) {
        memcpy(session, &i, sizeof(i));
        cr_expect(eq(int, (int)host_outcome(&host, session, nobody), i % 2 ? WIRE_OUTCOME_COMPLETED : WIRE_OUTCOME_FAILED));
    }
    cr_expect(eq(int, (int)host_outcome(&host, unknown, nobody), WIRE_OUTCOME_UNKNOWN));
    host_record(&host, unknown, nobody, WIRE_OUTCOME_COMPLETED);
    cr_expect(eq(int, (int)host_outcome(&host, unknown, nobody), WIRE_OUTCOME_COMPLETED));
    cr_expect(eq(int, (int)host_outcome(&host, unknown, somebody), WIRE_OUTCOME_UNKNOWN), "of another one's session");
    int first = 0;
    memcpy(session, &first, sizeof(first));
    cr_expect(eq(int, (int)host_outcome(&host, session, nobody), WIRE_OUTCOME_UNKNOWN), "the oldest one made room");
    host_fini(&host);
}

Test(host, last_error)
{
    struct host host;
    char text[ERROR_MESSAGE_MAX], last[ERROR_MESSAGE_MAX];

    host_init(&host, &limits, NULL);
    host_last_error(&host, last);
    cr_expect(eq(str, last, ""));
    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    host_note_error(&host, text);
    host_last_error(&host, last);
    cr_expect(eq(str, last, text));
    host_note_error(&host, "short");
    host_last_error(&host, last);
    cr_expect(eq(str, last, "short"));
    host_fini(&host);
}
