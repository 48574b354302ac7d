/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The barriers of a destination; see barrier_set.h.
 *
 * The heaps are pairing heaps (Fredman, Sedgewick, Sleator and Tarjan, 1986): a
 * tree whose links are in the barriers, so that nothing can run out of memory when
 * a barrier moves on; adding is one comparison, taking the top or one from the
 * middle O(log n), amortised.
 */
#include "barrier_set.h"

#include <errno.h>
#include <stdlib.h>

struct barrier *barrier_new(unsigned channels)
{
    return calloc(1, barrier_size(channels));
}

int barrier_set_init(struct barrier_set *set, unsigned channels)
{
    *set = (struct barrier_set){.channels = channels};
    set->heaps = calloc(channels + 1, sizeof(struct barrier *));
    return set->heaps ? 0 : -ENOMEM;
}

/* Both are in the same heap, or about to be. */
static bool comes_before(const struct barrier_set *set, const struct barrier *a, const struct barrier *b)
{
    uint64_t count_a = a->heap < set->channels ? a->counts[a->heap] : 0;
    uint64_t count_b = b->heap < set->channels ? b->counts[b->heap] : 0;

    return count_a != count_b ? count_a < count_b : a->number < b->number;
}

/* Makes one tree of two; either may be NULL. */
static struct barrier *meld(const struct barrier_set *set, struct barrier *a, struct barrier *b)
{
    if (!a || !b)
        return a ? a : b;
    if (comes_before(set, b, a)) {
        struct barrier *swap = a;
        a = b;
        b = swap;
    }
    b->previous = a;
    b->next = a->child;
    if (b->next)
        b->next->previous = b;
    a->child = b;
    return a;
}

/* Makes one tree of siblings: of pairs from left to right, and of those from right to left. */
static struct barrier *meld_siblings(const struct barrier_set *set, struct barrier *first)
{
    struct barrier *pairs = NULL, *top = NULL;

    while (first) {
        struct barrier *a = first, *b = a->next;
        first = b ? b->next : NULL;
        a->next = a->previous = NULL;
        if (b)
            b->next = b->previous = NULL;
        a = meld(set, a, b);
        a->next = pairs;
        pairs = a;
    }
    while (pairs) {
        struct barrier *next = pairs->next;
        pairs->next = NULL;
        top = meld(set, top, pairs);
        pairs = next;
    }
    return top;
}

static void insert(struct barrier_set *set, struct barrier *barrier, unsigned heap)
{
    barrier->heap = heap;
    set->heaps[heap] = meld(set, set->heaps[heap], barrier);
}

static void extract(struct barrier_set *set, struct barrier *barrier)
{
    struct barrier **top = &set->heaps[barrier->heap];
    struct barrier *children = meld_siblings(set, barrier->child);

    if (barrier == *top) {
        *top = children;
    } else {
        struct barrier *previous = barrier->previous;
        if (previous->child == barrier)
            previous->child = barrier->next;
        else
            previous->next = barrier->next;
        if (barrier->next)
            barrier->next->previous = previous;
        *top = meld(set, *top, children);
    }
    barrier->child = barrier->next = barrier->previous = NULL;
}

void barrier_set_add(struct barrier_set *set, struct barrier *barrier)
{
    barrier->number = ++set->added;
    set->count++;
    insert(set, barrier, 0);
}

void barrier_set_remove(struct barrier_set *set, struct barrier *barrier)
{
    extract(set, barrier);
    set->count--;
}

struct barrier *barrier_set_take(struct barrier_set *set, const uint64_t *applied)
{
    for (unsigned c = 0; c < set->channels; c++) {
        struct barrier *top;
        while ((top = set->heaps[c]) && top->counts[c] <= applied[c]) {
            unsigned next = c + 1;
            extract(set, top);
            while (next < set->channels && top->counts[next] <= applied[next])
                next++;
            insert(set, top, next);
        }
    }
    struct barrier *passed = set->heaps[set->channels];
    if (passed)
        barrier_set_remove(set, passed);
    return passed;
}

uint64_t barrier_set_target(const struct barrier_set *set, unsigned channel)
{
    const struct barrier *top = set->heaps[channel];

    return top ? top->counts[channel] : 0;
}

void barrier_set_fini(struct barrier_set *set)
{
    for (unsigned heap = 0; set->heaps && heap <= set->channels; heap++) {
        while (set->heaps[heap]) {
            struct barrier *barrier = set->heaps[heap];
            extract(set, barrier);
            free(barrier);
        }
    }
    free(set->heaps);
    set->heaps = NULL;
}
