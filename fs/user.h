/* SPDX-License-Identifier: Apache-2.0 */
/* The users whose requests wait, each with how many do: so that one leaves room for the others. */
#ifndef MIGFS_USER_H
#define MIGFS_USER_H

#include <stdatomic.h>
#include <sys/types.h>

struct user {
    struct user *next; /* constant */
    uid_t uid;
    atomic_uint waiting; /* requests that hold a worker; see admission.h */
    atomic_uint parked;  /* requests that hold none; see parking.h */
    atomic_uint directs; /* those of them with O_DIRECT */
};

/** user_get - the record of a user, which stays for ever; NULL when memory runs out */
struct user *user_get(uid_t uid);

#endif
