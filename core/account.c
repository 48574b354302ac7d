/* SPDX-License-Identifier: Apache-2.0 */
/* Accounts of peers; see account.h. */
#include "account.h"
#include "cleanup.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

void accounts_init(struct accounts *accounts, const struct shares *all, const struct shares *each)
{
    *accounts = (struct accounts){
        .memory = {.limit = all->memory, .unit = "bytes in all (max-memory)"},
        .channels = {.limit = all->channels, .unit = "channels in all (max-channels)"},
        .descriptors = {.limit = all->descriptors,
                        .unit = "descriptors in all (see the limit of open files)"},
        .each = *each,
    };
    pthread_mutex_init(&accounts->lock, NULL);
}

void accounts_fini(struct accounts *accounts)
{
    assert(!accounts->first);
    pthread_mutex_destroy(&accounts->lock);
}

/* Called with accounts.lock held. */
static struct account *account_new(struct accounts *accounts, const char *address)
{
    struct account *account = calloc(1, sizeof(*account));

    if (!account)
        return NULL;
    account->accounts = accounts;
    snprintf(account->address, sizeof(account->address), "%s", address);
    account->memory = (struct budget){.limit = accounts->each.memory,
                                      .whole = &accounts->memory,
                                      .unit = "bytes for one peer (max-peer-memory)"};
    account->channels = (struct budget){.limit = accounts->each.channels,
                                        .whole = &accounts->channels,
                                        .unit = "channels for one peer (max-peer-channels)"};
    account->descriptors = (struct budget){.limit = accounts->each.descriptors,
                                           .whole = &accounts->descriptors,
                                           .unit = "descriptors for one peer (see the limit of open files)"};
    account->next = accounts->first;
    accounts->first = account;
    return account;
}

struct account *account_get(struct accounts *accounts, const char *address)
{
    SCOPED_LOCK(&accounts->lock);
    struct account *account = accounts->first;

    while (account && strcmp(account->address, address))
        account = account->next;
    if (!account)
        account = account_new(accounts, address);
    if (account)
        account->refs++;
    return account;
}

struct account *account_hold(struct account *account)
{
    SCOPED_LOCK(&account->accounts->lock);
    account->refs++;
    return account;
}

void account_put(struct account *account)
{
    if (!account)
        return;
    SCOPED_LOCK(&account->accounts->lock);
    if (--account->refs > 0)
        return;
    struct account **p = &account->accounts->first;
    while (*p != account)
        p = &(*p)->next;
    *p = account->next;
    free(account);
}
