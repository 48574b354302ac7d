/* SPDX-License-Identifier: Apache-2.0 */
/* Whether what is waited for still moves; see stall.h. */
#include "stall.h"

void stall_init(struct stall_watch *watch, int64_t limit_ms, int64_t step_ms)
{
    *watch = (struct stall_watch){.limit_ms = limit_ms, .step_ms = step_ms};
}

bool stall_is_due(const struct stall_watch *watch, int64_t now_ms)
{
    return now_ms - watch->last_ms >= watch->step_ms;
}

int stall_look(struct stall_watch *watch, int64_t now_ms, const struct stall_sight *sights, unsigned n)
{
    int64_t elapsed = watch->last_ms ? now_ms - watch->last_ms : 0;
    int stalled = -1;

    if (elapsed > 2 * watch->step_ms)
        elapsed = 2 * watch->step_ms;
    watch->last_ms = now_ms;
    for (unsigned i = n; i-- > 0;) {
        if (!sights[i].awaited || sights[i].mark != watch->seen[i].mark)
            watch->seen[i].still_ms = 0;
        else
            watch->seen[i].still_ms += elapsed;
        watch->seen[i].mark = sights[i].mark;
        if (watch->seen[i].still_ms >= watch->limit_ms)
            stalled = (int)i;
    }
    return stalled;
}
