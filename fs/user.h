/* SPDX-License-Identifier: Apache-2.0 */
/* The users whose requests wait, each with how many do: so that one leaves room for the others. */
#ifndef MIGFS_USER_H
#define MIGFS_USER_H

#include <stdatomic.h>
#include <sys/types.h>

struct user {
    struct user *next; /* guarded by the lock of user.c, like refs */
    unsigned refs;
    uid_t uid;
    atomic_uint parked; /* requests that hold no worker; see parking.h */
};

/** user_get - the record of a user, with a reference; NULL when memory runs out */
struct user *user_get(uid_t uid);

/** user_put - drop it; NULL is fine */
void user_put(struct user *user);

#endif
