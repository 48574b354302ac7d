/* SPDX-License-Identifier: Apache-2.0 */
/* zstd: what is packed unpacks to the same, and what a peer makes up does no harm. */
#include "compression.h"
#include "leftovers.h"
#include "check.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static uint64_t random_state = 99;

static void fill(uint8_t *buf, size_t len, bool compressible)
{
    for (size_t i = 0; i < len; i++) {
        random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
        buf[i] = compressible ? (uint8_t)("the quick brown fox "[(random_state >> 60) + i % 4])
                              : (uint8_t)(random_state >> 56);
    }
}

static size_t pack(struct compressor *c, const void *raw, size_t len, void *out)
{
    struct context *lease = NULL;
    size_t size = compressor_pack(c, raw, len, out, false, &lease);

    compressor_help(c, lease);
    return size;
}

Test(compression, round_trip)
{
    static const size_t lengths[] = {4096, 4097, 10000, 65536, WIRE_STRIPE_SIZE, COMPRESSION_RAW_MAX};
    static const int levels[] = {COMPRESSION_LEVEL_MIN, -1, 1, 3, COMPRESSION_LEVEL_MAX};
    uint8_t *raw = malloc(COMPRESSION_RAW_MAX), *got = malloc(COMPRESSION_RAW_MAX);
    struct decompressor *d = decompressor_new();
    struct error err;

    for (size_t level = 0; level < ARRAY_LENGTH(levels); level++) {
        struct compressor *c = compressor_new(levels[level]);
        for (size_t i = 0; i < ARRAY_LENGTH(lengths); i++) {
            void *packed = compressor_buffer(c);
            if (levels[level] > 10 && lengths[i] > 100000)
                memset(raw, 'a', lengths[i]); /* or it takes too long */
            else
                fill(raw, lengths[i], true);
            size_t size = pack(c, raw, lengths[i], packed);
            if (levels[level] > 0)
                cr_expect(size > 0, "%zu bytes at level %d", lengths[i], levels[level]);
            cr_expect(lt(sz, size, lengths[i]));
            if (size) {
                memset(got, 0xee, COMPRESSION_RAW_MAX);
                CHECK_OK(decompressor_unpack(d, packed, size, got, lengths[i], &err));
                cr_expect(zero(int, memcmp(got, raw, lengths[i])));
            }
            compressor_return(c, packed);
        }
        compressor_free(c);
    }
    decompressor_free(d);
    free(raw);
    free(got);
}

/* Noise is left as it is; and the noise does not stop what comes after it from being packed. */
Test(compression, what_does_not_shrink)
{
    static uint8_t noise[WIRE_STRIPE_SIZE], text[WIRE_STRIPE_SIZE];
    struct compressor *c = compressor_new(1);
    void *packed = compressor_buffer(c);

    fill(noise, sizeof(noise), false);
    fill(text, sizeof(text), true);
    for (int i = 0; i < 3; i++) {
        cr_expect(eq(sz, pack(c, noise, sizeof(noise), packed), 0));
        cr_expect(eq(sz, pack(c, noise, 4096, packed), 0));
        cr_expect(pack(c, text, sizeof(text), packed) > 0);
    }
    compressor_return(c, packed);
    compressor_return(c, NULL);
    compressor_free(c);
    compressor_free(NULL);
    decompressor_free(NULL);
}

/* After noise too, what shrinks in part is packed: the place where one looks may be noise. */
Test(compression, what_shrinks_in_part)
{
    static const int levels[] = {1, -20, 3};
    static uint8_t noise[WIRE_STRIPE_SIZE], part[WIRE_STRIPE_SIZE];

    fill(noise, sizeof(noise), false);
    for (size_t i = 0; i < sizeof(part); i++)
        part[i] = (uint8_t)(i / 5 % 50);
    memcpy(part + sizeof(part) * 3 / 8, noise, sizeof(part) / 4);
    for (size_t level = 0; level < ARRAY_LENGTH(levels); level++) {
        struct compressor *c = compressor_new(levels[level]);
        void *packed = compressor_buffer(c);
        for (int i = 0; i < 3; i++) {
            cr_expect(eq(sz, pack(c, noise, sizeof(noise), packed), 0));
            size_t size = pack(c, part, sizeof(part), packed);
            cr_expect(ne(sz, size, 0), "level %d", levels[level]);
            cr_expect(lt(sz, size, sizeof(part) * 3 / 4), "level %d", levels[level]);
        }
        compressor_return(c, packed);
        compressor_free(c);
    }
}

/* What a peer may send: cut frames, frames of another size, noise, every bit flipped. */
Test(compression, nothing_is_written_past_the_end)
{
    enum { LENGTH = 5000 };
    uint8_t raw[LENGTH], *packed, *copy, *out = malloc(LENGTH);
    struct compressor *c = compressor_new(1);
    struct decompressor *d = decompressor_new();
    struct error err;

    fill(raw, sizeof(raw), true);
    packed = compressor_buffer(c);
    size_t size = pack(c, raw, LENGTH, packed);
    cr_assert(size > 100);
    copy = malloc(size);
    memcpy(copy, packed, size);

    CHECK_FAILS(decompressor_unpack(d, copy, size, out, LENGTH - 1, &err), CAUSE_PROTOCOL);
    CHECK_FAILS(decompressor_unpack(d, copy, size, out, 1, &err), CAUSE_PROTOCOL);
    uint8_t *larger = malloc(LENGTH + 1);
    CHECK_FAILS(decompressor_unpack(d, copy, size, larger, LENGTH + 1, &err), CAUSE_PROTOCOL);
    free(larger);
    for (size_t length = 1; length < size; length += 7)
        CHECK_FAILS(decompressor_unpack(d, copy, length, out, LENGTH, &err), CAUSE_PROTOCOL);
    /* On the heap and of its own size, so that a sanitizer sees a write past the end. */
    for (size_t bit = 0; bit < 8 * size; bit++) {
        copy[bit / 8] ^= (uint8_t)(1 << bit % 8);
        decompressor_unpack(d, copy, size, out, LENGTH, NULL);
        copy[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    CHECK_OK(decompressor_unpack(d, copy, size, out, LENGTH, &err));
    cr_expect(zero(int, memcmp(out, raw, LENGTH)), "it works again after all that");
    for (int i = 0; i < 1000; i++) {
        fill(copy, size, false);
        CHECK_FAILS(decompressor_unpack(d, copy, size, out, LENGTH, &err), CAUSE_PROTOCOL);
    }
    compressor_return(c, packed);
    compressor_free(c);
    decompressor_free(d);
    free(copy);
    free(out);
}

/* As many leases as processors are taken, and an eager thread gets one all the same. */
Test(compression, eager, .timeout = 60)
{
    struct compressor *c = compressor_new(1);
    char raw[30000] = {0};
    void *packed = compressor_buffer(c);
    struct context *leases[256] = {0}, *lease = NULL;
    size_t cpus = (size_t)sysconf(_SC_NPROCESSORS_ONLN);

    for (size_t i = 0; i < cpus && i < ARRAY_LENGTH(leases); i++) {
        cr_assert(compressor_pack(c, raw, sizeof(raw), packed, false, &leases[i]) > 0);
        cr_assert(leases[i] != NULL);
    }
    cr_expect(compressor_pack(c, raw, sizeof(raw), packed, true, &lease) > 0);
    cr_expect(lease != NULL);
    compressor_help(c, lease);
    for (size_t i = 0; i < ARRAY_LENGTH(leases); i++)
        compressor_help(c, leases[i]);
    compressor_return(c, packed);
    compressor_free(c);
}

/* More threads than processors share the contexts. */
static struct compressor *shared;
static atomic_uint wrong;

static void *pack_and_unpack(void *arg)
{
    enum { LENGTH = 30000 };
    uint8_t *raw = malloc(LENGTH), *got = malloc(LENGTH);
    struct decompressor *d = decompressor_new();

    for (int i = 0; i < 50; i++) {
        memset(raw, (int)(uintptr_t)arg + i, LENGTH);
        void *packed = compressor_buffer(shared);
        /* Sometimes more than one with the same context. */
        struct context *lease = NULL;
        size_t size = 0;
        for (int times = 0; times <= i % 3; times++)
            size = compressor_pack(shared, raw, LENGTH, packed, i % 2, &lease);
        compressor_help(shared, lease);
        if (!size || decompressor_unpack(d, packed, size, got, LENGTH, NULL) < 0 || memcmp(raw, got, LENGTH))
            atomic_fetch_add(&wrong, 1);
        compressor_return(shared, packed);
    }
    decompressor_free(d);
    free(raw);
    free(got);
    return NULL;
}

Test(compression, many_threads)
{
    pthread_t threads[8];

    shared = compressor_new(1);
    for (uintptr_t i = 0; i < ARRAY_LENGTH(threads); i++)
        pthread_create(&threads[i], NULL, pack_and_unpack, (void *)i);
    for (size_t i = 0; i < ARRAY_LENGTH(threads); i++)
        pthread_join(threads[i], NULL);
    cr_expect(eq(uint, wrong, 0));
    compressor_free(shared);
}

#ifdef COUNTS_LEFTOVERS
/* When the migration is over, what is idle goes at once, and what is in use goes when it comes back. */
Test(compression, closed)
{
    char raw[30000] = {0};
    struct compressor *c = compressor_new(1);
    struct context *lease[2] = {0};
    void *buffers[3];
    unsigned before = leftovers_count();

    for (int i = 0; i < 3; i++)
        buffers[i] = compressor_buffer(c);
    for (int i = 0; i < 2; i++)
        cr_assert(compressor_pack(c, raw, sizeof(raw), buffers[i], i == 1, &lease[i]) > 0);
    cr_assert(not(zero(ptr, lease[1])));
    cr_expect(eq(uint, leftovers_count(), before + 3 + 2 * 2), "a buffer, and a context with zstd's own");
    compressor_return(c, buffers[0]);
    compressor_help(c, lease[0]);
    cr_expect(eq(uint, leftovers_count(), before + 3 + 2 * 2), "they are kept for the next one");
    compressor_close(c);
    cr_expect(eq(uint, leftovers_count(), before + 2 + 2));
    compressor_return(c, buffers[1]);
    cr_expect(eq(uint, leftovers_count(), before + 1 + 2));
    compressor_help(c, lease[1]);
    cr_expect(eq(uint, leftovers_count(), before + 1));
    compressor_return(c, buffers[2]);
    cr_expect(eq(uint, leftovers_count(), before));
    compressor_free(c);
}
#endif
