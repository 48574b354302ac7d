/* SPDX-License-Identifier: Apache-2.0 */
/* Limits; see budget.h. */
#include "budget.h"

#include <stdarg.h>
#include <stdio.h>

/*
 * The outermost of those that have too little left. They may have more again by now: then the first is as
 * good as any.
 */
static const struct budget *short_one(const struct budget *budget, uint64_t amount)
{
    const struct budget *found = budget;

    for (; budget; budget = budget->whole) {
        if (amount > budget->limit - atomic_load_explicit(&budget->used, memory_order_relaxed))
            found = budget;
    }
    return found;
}

int budget_take(struct budget *budget, uint64_t amount, struct error *err, const char *what, ...)
{
    char text[ERROR_MESSAGE_MAX / 2];
    va_list ap;

    if (budget_charge(budget, amount))
        return 0;
    const struct budget *full = short_one(budget, amount);
    va_start(ap, what);
    vsnprintf(text, sizeof(text), what, ap);
    va_end(ap);
    return error_set(err, CAUSE_QUOTA, "%s: the destination holds at most %llu %s", text,
                     (unsigned long long)full->limit, full->unit ? full->unit : "in all");
}
