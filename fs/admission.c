/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Admission of what can wait; see admission.h.
 *
 * The counters are relaxed: each request counts itself before it looks, so that the
 * total is never more than is allowed; for the shares a moment's difference does not
 * matter.
 */
#include "admission.h"
#include "loop.h"

static atomic_uint total;

static unsigned add(atomic_uint *counter)
{
    return atomic_fetch_add_explicit(counter, 1, memory_order_relaxed) + 1;
}

static void subtract(atomic_uint *counter)
{
    atomic_fetch_sub_explicit(counter, 1, memory_order_relaxed);
}

int admission_enter(struct admission *admission, struct user *user, struct migration *m, struct error *err)
{
    unsigned all = add(&total), mine = add(&user->waiting), of_migration = add(&m->waiting);
    unsigned left = all < LOOP_WAITERS_MAX ? LOOP_WAITERS_MAX - all : 0;

    *admission = (struct admission){user, m};
    if (mine <= 2 * left && of_migration <= left && loop_spare(all))
        return 0;
    admission_leave(admission);
    if (of_migration > left)
        return error_set(err, CAUSE_QUOTA, "%u requests of this migration wait already, and no more may",
                         of_migration - 1);
    return error_set(err, CAUSE_QUOTA, "%u requests of user %u wait already, of %u in all: no more may",
                     mine - 1, (unsigned)user->uid, all - 1);
}

void admission_leave(struct admission *admission)
{
    subtract(&admission->m->waiting);
    subtract(&admission->user->waiting);
    subtract(&total);
}
