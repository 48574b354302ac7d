/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Users; see user.h. A record is small, and there are no more than users of this
 * machine: it is kept, so that a request can do without counting references.
 */
#include "user.h"
#include "cleanup.h"

#define BUCKETS 256

static pthread_mutex_t user_lock = PTHREAD_MUTEX_INITIALIZER; /* a leaf lock */
static struct user *users[BUCKETS];                           /* guarded by user_lock */

struct user *user_get(uid_t uid)
{
    struct user **bucket = &users[uid % BUCKETS];

    SCOPED_LOCK(&user_lock);
    for (struct user *user = *bucket; user; user = user->next) {
        if (user->uid == uid)
            return user;
    }
    struct user *user = calloc(1, sizeof(*user));
    if (!user)
        return NULL;
    user->uid = uid;
    user->next = *bucket;
    *bucket = user;
    return user;
}
