/* SPDX-License-Identifier: Apache-2.0 */
/* Packets that are not applied; see unapplied.h. */
#include "unapplied.h"

#include <errno.h>
#include <stdlib.h>

int unapplied_init(struct unapplied *u)
{
    *u = (struct unapplied){.ranges = calloc(UNAPPLIED_MAX, sizeof(*u->ranges))};
    return u->ranges ? 0 : -ENOMEM;
}

void unapplied_fini(struct unapplied *u)
{
    free(u->ranges);
    u->ranges = NULL;
}

static struct unapplied_range *at(const struct unapplied *u, uint64_t index)
{
    return &u->ranges[index % UNAPPLIED_MAX];
}

void unapplied_add(struct unapplied *u, uint64_t sequence, uint64_t start, uint64_t len)
{
    struct unapplied_range *last = u->first < u->next ? at(u, u->next - 1) : NULL;

    if (last && last->end == start) {
        last->end = start + len;
        last->sequence = sequence;
    } else if (u->next - u->first < UNAPPLIED_MAX) {
        *at(u, u->next++) = (struct unapplied_range){sequence, start, start + len};
    } else {
        u->everything = sequence;
    }
}

void unapplied_pass(struct unapplied *u, uint64_t count)
{
    while (u->first < u->next && at(u, u->first)->sequence <= count)
        u->first++;
    if (u->everything <= count)
        u->everything = 0;
}

bool unapplied_touches(const struct unapplied *u, uint64_t start, uint64_t len)
{
    if (u->everything)
        return true;
    for (uint64_t i = u->first; i < u->next; i++) {
        if (at(u, i)->start < start + len && start < at(u, i)->end)
            return true;
    }
    return false;
}
