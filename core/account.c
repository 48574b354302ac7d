/* SPDX-License-Identifier: Apache-2.0 */
/* Accounts of peers; see account.h. */
#include "account.h"
#include "cleanup.h"
#include "host.h"

#include <stdio.h>
#include <string.h>

/* Called with host.accounts_lock held. */
static struct account *account_new(struct host *host, const char *address)
{
    const struct limits *limits = &host->limits;
    struct account *account = calloc(1, sizeof(*account));

    if (!account)
        return NULL;
    account->host = host;
    snprintf(account->address, sizeof(account->address), "%s", address);
    account->memory = (struct budget){
        .limit = limits->max_peer_memory, .whole = &host->budget, .unit = "bytes for one peer (max-peer-memory)"};
    account->channels = (struct budget){.limit = limits->max_peer_channels,
                                        .whole = &host->channels,
                                        .unit = "channels for one peer (max-peer-channels)"};
    account->descriptors = (struct budget){.limit = limits->max_peer_descriptors,
                                           .whole = &host->descriptors,
                                           .unit = "descriptors for one peer (see the limit of open files)"};
    account->next = host->accounts;
    host->accounts = account;
    return account;
}

struct account *account_get(struct host *host, const char *address)
{
    SCOPED_LOCK(&host->accounts_lock);
    struct account *account = host->accounts;

    while (account && strcmp(account->address, address))
        account = account->next;
    if (!account)
        account = account_new(host, address);
    if (account)
        account->refs++;
    return account;
}

struct account *account_hold(struct account *account)
{
    SCOPED_LOCK(&account->host->accounts_lock);
    account->refs++;
    return account;
}

void account_put(struct account *account)
{
    if (!account)
        return;
    SCOPED_LOCK(&account->host->accounts_lock);
    if (--account->refs > 0)
        return;
    struct account **p = &account->host->accounts;
    while (*p != account)
        p = &(*p)->next;
    *p = account->next;
    free(account);
}
