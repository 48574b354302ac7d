/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Somebody who is told once that something has come about, and holds no thread
 * until then. Whoever makes it come about takes the follower off its list and
 * calls @wake, with the lock held that guards the list.
 *
 * Taking a follower off its list is what makes it somebody's: it is told, or it
 * has left, and never both.
 */
#ifndef MIGFS_FOLLOWER_H
#define MIGFS_FOLLOWER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct follower {
    /* Guarded by the lock of the list. */
    struct follower *next, **prev; /* prev NULL: in no list */
    uint64_t offset;               /* in a stream: where there is to be something */
    /* Takes no lock but a leaf. */
    void (*wake)(struct follower *follower);
};

/* All of these: called with the lock of the list held. */

static inline void follower_join(struct follower *follower, struct follower **list)
{
    follower->next = *list;
    follower->prev = list;
    if (*list)
        (*list)->prev = &follower->next;
    *list = follower;
}

/* Return: whether it was in a list. */
static inline bool follower_leave(struct follower *follower)
{
    if (!follower->prev)
        return false;
    *follower->prev = follower->next;
    if (follower->next)
        follower->next->prev = follower->prev;
    follower->prev = NULL;
    return true;
}

static inline void follower_tell(struct follower *follower)
{
    follower_leave(follower);
    follower->wake(follower);
}

#endif
