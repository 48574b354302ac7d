/* SPDX-License-Identifier: Apache-2.0 */
/* Users; see user.h. A record is there while a file that its user has opened is, or a request. */
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
        if (user->uid == uid) {
            user->refs++;
            return user;
        }
    }
    struct user *user = calloc(1, sizeof(*user));
    if (!user)
        return NULL;
    user->uid = uid;
    user->refs = 1;
    user->next = *bucket;
    *bucket = user;
    return user;
}

void user_put(struct user *user)
{
    if (!user)
        return;
    SCOPED_LOCK(&user_lock);
    if (--user->refs)
        return;
    struct user **p = &users[user->uid % BUCKETS];
    while (*p != user)
        p = &(*p)->next;
    *p = user->next;
    free(user);
}
