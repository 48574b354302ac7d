/* SPDX-License-Identifier: Apache-2.0 */
/* The memory of small packets: when it is cut, used again, kept and freed. What is left is seen by
 * leftovers.c. */
#include "chunk.h"
#include "check.h"

#include <string.h>

#define SLICES 64u /* of a chunk */

static struct chunk_pool pool;

static void reserve(unsigned packets, size_t size, size_t largest)
{
    cr_assert(zero(int, chunk_reserve(&pool, packets, size, largest)));
}

/* A slice of so many bytes. */
static struct channel_entry *cut(uint32_t size)
{
    struct channel_entry *slice = chunk_cut(&pool, size);

    chunk_take(&pool, slice, size);
    return slice;
}

static void end(void)
{
    chunk_fini(&pool);
    cr_expect(zero(ptr, pool.chunk));
    cr_expect(zero(ptr, pool.free));
    cr_expect(zero(uint, pool.free_count));
}

TestSuite(chunk, .fini = end);

/* Enough for the worst case: each chunk is left when the largest packet does not fit, each packet is a slice.
 */
Test(chunk, reserves)
{
    static const struct {
        unsigned packets;
        size_t size, largest;
        unsigned chunks;
    } cases[] = {
        {0, 0, 1000, 0},
        {1, 100, 1000, 2},
        {SLICES - 1, 100, 1000, 2},
        {SLICES, 100, 1000, 3},
        {1, CHUNK_SIZE - 1000 - 1, 1000, 2},
        {1, CHUNK_SIZE - 1000, 1000, 3},
        {2 * SLICES, 3 * (CHUNK_SIZE - 5), 5, 7},
    };

    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        reserve(cases[i].packets, cases[i].size, cases[i].largest);
        cr_expect(eq(uint, pool.free_count, cases[i].chunks), "case %zu", i);
        reserve(cases[i].packets, cases[i].size, cases[i].largest);
        cr_expect(eq(uint, pool.free_count, cases[i].chunks), "what is there is enough");
        end();
    }
}

Test(chunk, slices_of_one_chunk)
{
    cr_expect(not(chunk_has_room(&pool, 1)), "there is no chunk yet");
    reserve(2, 300, 1000);
    struct channel_entry *first = chunk_cut(&pool, 100);
    cr_expect(eq(int, (int)first->place, CHANNEL_SLICE));
    cr_expect(zero(u32, first->length));
    cr_expect(eq(uint, pool.free_count, 1));
    char *at = chunk_take(&pool, first, 100);
    cr_expect(eq(ptr, (void *)at, (void *)(uintptr_t)first->payload));
    cr_expect(eq(ptr, chunk_take(&pool, first, 50), at + 100));
    cr_expect(eq(u32, first->length, 150));
    struct channel_entry *second = chunk_cut(&pool, 1);
    cr_expect(eq(ptr, (void *)(uintptr_t)second->payload, at + 150));
    cr_expect(eq(ptr, second->chunk, first->chunk));
    cr_expect(chunk_has_room(&pool, CHUNK_SIZE - 150));
    cr_expect(not(chunk_has_room(&pool, CHUNK_SIZE - 150 + 1)));
    chunk_retire(&pool, first);
    chunk_retire(&pool, second);
}

/* The chunk that slices are cut from begins anew when none of them is used any more. */
Test(chunk, used_again_at_once)
{
    reserve(1, 100, 100);
    struct channel_entry *first = cut(100), *second = cut(200);
    struct chunk *chunk = first->chunk;
    chunk_retire(&pool, first);
    cr_expect(not(chunk_has_room(&pool, CHUNK_SIZE - 299)), "one of them is used");
    chunk_retire(&pool, second);
    cr_expect(chunk_has_room(&pool, CHUNK_SIZE));
    /* And has all of its slices once more. */
    struct channel_entry *all[SLICES];
    for (unsigned i = 0; i < SLICES; i++) {
        all[i] = cut(1);
        cr_expect(eq(ptr, all[i]->chunk, chunk));
    }
    for (unsigned i = 0; i < SLICES; i++)
        chunk_retire(&pool, all[i]);
}

/* Another chunk, for want of bytes or of slices; the one that is left comes back when it is not used. */
Test(chunk, the_next_one)
{
    for (int of_slices = 0; of_slices < 2; of_slices++) {
        struct channel_entry *all[SLICES];
        unsigned n = of_slices ? SLICES : 1;
        reserve(1, 100, 100);
        for (unsigned i = 0; i < n; i++)
            all[i] = cut(of_slices ? 1 : CHUNK_SIZE - 99);
        cr_assert(eq(uint, pool.free_count, 1));
        struct channel_entry *next = cut(100);
        cr_expect(ne(ptr, next->chunk, all[0]->chunk));
        cr_expect(zero(uint, pool.free_count));
        for (unsigned i = 0; i < n; i++) {
            cr_expect(zero(uint, pool.free_count));
            chunk_retire(&pool, all[i]);
        }
        cr_expect(eq(uint, pool.free_count, 1));
        chunk_retire(&pool, next);
        cr_expect(eq(uint, pool.free_count, 1), "slices go on being cut from this one");
        end();
    }
}

Test(chunk, few_are_spared)
{
    struct channel_entry *slices[CHUNK_SPARE + 3];

    reserve(SLICES * (CHUNK_SPARE + 1), 0, 1);
    cr_assert(eq(uint, pool.free_count, CHUNK_SPARE + 3));
    for (unsigned i = 0; i < ARRAY_LENGTH(slices); i++)
        slices[i] = cut(CHUNK_SIZE);
    cr_assert(zero(uint, pool.free_count));
    for (unsigned i = 0; i < ARRAY_LENGTH(slices); i++) {
        chunk_retire(&pool, slices[i]);
        cr_expect(eq(uint, pool.free_count, i < CHUNK_SPARE ? i + 1 : CHUNK_SPARE));
    }
}
