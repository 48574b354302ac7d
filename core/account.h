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

#include <pthread.h>
#include <stdint.h>

/* Limits. */
struct shares {
    uint64_t memory, channels, descriptors;
};

/* The accounts of all peers. */
struct accounts {
    /* What all have together, of which each account has a share. */
    struct budget memory;      /* bytes */
    struct budget channels;    /* data channels of migrations that are not over */
    struct budget descriptors; /* of migrations; those of undecided connections are bounded by their number */
    struct shares each;        /* the limits of one peer; constant */

    pthread_mutex_t lock; /* guards the list and the counts of references; a leaf lock */
    struct account *first;
};

struct account {
    struct accounts *accounts;
    struct account *next; /* guarded by accounts.lock */
    unsigned refs;        /* guarded by accounts.lock */
    char address[TRANSPORT_ADDRESS_MAX];
    struct budget memory, channels, descriptors; /* its shares */
    unsigned migrations; /* that it has made, in the registry's list; guarded by registry.lock */
    unsigned undecided;  /* connections; the listener's thread has it */
    bool flooding;       /* that it has too many of them is in the log; the listener's thread has it */
};

/** accounts_init - no peers; @all: may have so much together, @each: and each of them so much */
void accounts_init(struct accounts *accounts, const struct shares *all, const struct shares *each);
void accounts_fini(struct accounts *accounts);

/** account_get - the account of an address, with a reference; NULL when memory runs out */
struct account *account_get(struct accounts *accounts, const char *address);

/** account_hold - another reference */
struct account *account_hold(struct account *account);

/** account_put - drop a reference; NULL is fine */
void account_put(struct account *account);

#endif
