/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What one peer has taken of the daemon's limits. Peers are told apart by the
 * address of their connections (transport.address): all that come from one share
 * one account, which lives as long as something counts against it.
 */
#ifndef MIGFS_ACCOUNT_H
#define MIGFS_ACCOUNT_H

#include "budget.h"
#include "transport.h"

struct host;

struct account {
    struct host *host;
    struct account *next; /* guarded by host.accounts_lock */
    unsigned refs;        /* guarded by host.accounts_lock */
    char address[TRANSPORT_ADDRESS_MAX];
    /* Shares of the host's. */
    struct budget memory;      /* bytes */
    struct budget channels;    /* data channels of migrations that are not over */
    struct budget descriptors; /* of migrations; those of undecided connections are bounded by their number */
    unsigned migrations;       /* that it has made, in the host's list; guarded by host.lock */
    unsigned undecided;        /* connections; the listener's thread has it */
    bool flooding;             /* that it has too many of them is in the log; the listener's thread has it */
};

/** account_get - the account of an address, with a reference; NULL when memory runs out */
struct account *account_get(struct host *host, const char *address);

/** account_hold - another reference */
struct account *account_hold(struct account *account);

/** account_put - drop a reference; NULL is fine */
void account_put(struct account *account);

#endif
