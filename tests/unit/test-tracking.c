/* SPDX-License-Identifier: Apache-2.0 */
/* What has changed since it was sent: by page, and who may say so. */
#include "tracking.h"
#include "blocked.h"
#include "check.h"

#include <errno.h>
#include <string.h>
#include <xxhash.h>

#define PAGES 600u /* two stripes and a bit */
#define IMAGE (PAGES * (uint64_t)WIRE_PAGE_SIZE - 100)

static struct tracking *t;
static char a[WIRE_PAGE_SIZE], b[WIRE_PAGE_SIZE], zeros[WIRE_PAGE_SIZE];

static void begin(void)
{
    struct error err = {0};

    t = tracking_new(IMAGE, &err);
    cr_assert(ne(ptr, t, NULL), "%s", err.message);
    cr_assert(eq(u64, t->pages, PAGES));
    memset(a, 'a', sizeof(a));
    memcpy(b, a, sizeof(b));
    b[sizeof(b) - 1] = 'b';
}

static void end(void)
{
    tracking_free(t);
}

TestSuite(tracking, .init = begin, .fini = end);

Test(tracking, nothing_is_known_at_first)
{
    for (uint64_t page = 0; page < PAGES; page++) {
        cr_expect(not(tracking_is_same(t, page, zeros, sizeof(zeros))));
        cr_expect(not(tracking_is_same(t, page, a, sizeof(a))));
    }
}

Test(tracking, what_was_sent_is_the_same)
{
    cr_expect(tracking_record(t, 7, a, sizeof(a)), "it was not known");
    cr_expect(tracking_is_same(t, 7, a, sizeof(a)));
    cr_expect(not(tracking_record(t, 7, a, sizeof(a))), "it is the same");
    cr_expect(not(tracking_is_same(t, 7, b, sizeof(b))), "one bit");
    cr_expect(not(tracking_is_same(t, 6, a, sizeof(a))));
    cr_expect(not(tracking_is_same(t, 8, a, sizeof(a))));
    /* A-B-A: what counts is what was sent last. */
    cr_expect(tracking_record(t, 7, b, sizeof(b)));
    cr_expect(not(tracking_is_same(t, 7, a, sizeof(a))));
    cr_expect(tracking_record(t, 7, a, sizeof(a)));
}

Test(tracking, zeros)
{
    cr_expect(tracking_record_zeros(t, 0));
    cr_expect(not(tracking_record_zeros(t, 0)));
    cr_expect(tracking_is_same(t, 0, zeros, sizeof(zeros)), "a page that is not there reads as zeros");
    cr_expect(not(tracking_record(t, 0, zeros, sizeof(zeros))));
    cr_expect(not(tracking_is_same(t, 0, zeros, sizeof(zeros) - 100)), "another length is another thing");
    cr_expect(tracking_record(t, PAGES - 1, zeros, sizeof(zeros) - 100));
    cr_expect(tracking_is_same(t, PAGES - 1, zeros, sizeof(zeros) - 100));
}

/* Which pages are known. */
static void expect_known(uint64_t first, uint64_t end)
{
    for (uint64_t page = 0; page < PAGES; page++)
        cr_expect(eq(int, tracking_is_same(t, page, a, sizeof(a)), page >= first && page < end), "%u",
                  (unsigned)page);
}

static void know_all(void)
{
    for (uint64_t page = 0; page < PAGES; page++)
        tracking_record(t, page, a, sizeof(a));
}

Test(tracking, forgets_the_pages_of_a_range)
{
    static const struct {
        uint64_t offset, len, known_first, known_end;
    } cases[] = {
        {0, 0, 0, PAGES},
        {0, 1, 1, PAGES},
        {0, WIRE_PAGE_SIZE, 1, PAGES},
        {0, WIRE_PAGE_SIZE + 1, 2, PAGES},
        {(PAGES - 1) * (uint64_t)WIRE_PAGE_SIZE, 1, 0, PAGES - 1},
        {(PAGES - 1) * (uint64_t)WIRE_PAGE_SIZE - 1, 2, 0, PAGES - 2},
        {3 * WIRE_PAGE_SIZE, WIRE_OFFSET_MAX, 0, 3},
        {PAGES * (uint64_t)WIRE_PAGE_SIZE, 5, 0, PAGES},
        {1ull << 50, WIRE_OFFSET_MAX - (1ull << 50), 0, PAGES},
        {0, UINT64_MAX, 0, 0},
    };

    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        know_all();
        tracking_forget(t, cases[i].offset, cases[i].len);
        expect_known(cases[i].known_first, cases[i].known_end);
    }
}

Test(tracking, beyond_the_end_all_has_changed)
{
    cr_expect(tracking_record(t, PAGES, a, sizeof(a)));
    cr_expect(tracking_record(t, PAGES, a, sizeof(a)));
    cr_expect(tracking_record_zeros(t, PAGES + 1));
    cr_expect(not(tracking_is_same(t, PAGES, a, sizeof(a))));
    cr_expect(not(tracking_is_same(t, 1ull << 40, a, sizeof(a))));
    /* Nor has that changed what a page of zeros is. */
    tracking_record_zeros(t, 1);
    cr_expect(tracking_is_same(t, 1, zeros, sizeof(zeros)));
}

Test(tracking, at_the_end_nothing_is_known)
{
    know_all();
    tracking_end(t);
    expect_known(0, 0);
}

Test(tracking, figures)
{
    tracking_count(t, 10, 3, 1000);
    tracking_count(t, 5, 0, 1);
    struct tracking_figures figures = tracking_figures(t);
    cr_expect(eq(u64, figures.scanned, 15));
    cr_expect(eq(u64, figures.changed, 3));
    cr_expect(eq(u64, figures.scan_ns, 1001));
}

Test(tracking, two_do_not_look_alike)
{
    struct error err;
    struct tracking *other = tracking_new(IMAGE, &err);

    cr_assert(ne(ptr, other, NULL));
    cr_expect(ne(int, memcmp(t->secret, other->secret, sizeof(t->secret)), 0), "the key is random");
    tracking_free(other);
}

/*
 * Stripes
 */

struct entry {
    struct worker worker;
    struct interrupt interrupt;
    uint64_t offset, len;
    int ret;
};

static void enter_work(void *arg)
{
    struct entry *entry = arg;

    entry->ret = tracking_enter(t, entry->offset, entry->len, &entry->interrupt);
}

static void expect_free(uint64_t offset, uint64_t len)
{
    static const struct interrupt hit = {.hit = true};

    cr_expect(zero(int, tracking_enter(t, offset, len, &hit)), "%llu is kept", (unsigned long long)offset);
    tracking_leave(t, offset, len);
}

static void expect_kept(uint64_t offset, uint64_t len)
{
    static const struct interrupt hit = {.hit = true};

    cr_expect(eq(int, tracking_enter(t, offset, len, &hit), -EINTR), "%llu is free",
              (unsigned long long)offset);
}

Test(tracking, one_keeps_a_stripe)
{
    const uint64_t stripe = WIRE_STRIPE_SIZE;

    cr_assert(zero(int, tracking_enter(t, stripe, 1, NULL)));
    expect_kept(stripe, 1);
    expect_kept(2 * stripe - 1, 1);
    expect_kept(0, stripe + 1);
    expect_kept(0, WIRE_OFFSET_MAX);
    expect_kept(65 * stripe, 1); /* numbers modulo 64 */
    expect_free(0, stripe);
    expect_free(2 * stripe, stripe);
    expect_free(2 * stripe, 63 * stripe);
    tracking_leave(t, stripe, 1);
    expect_free(0, WIRE_OFFSET_MAX);
    cr_assert(zero(int, tracking_enter(t, 5 * stripe, 64 * stripe, NULL)));
    expect_kept(4 * stripe, 1);
    tracking_leave(t, 5 * stripe, 64 * stripe);
    expect_free(0, WIRE_OFFSET_MAX);
}

Test(tracking, another_one_waits)
{
    struct entry entry = {.offset = 100, .len = 1, .ret = 1};

    cr_assert(zero(int, tracking_enter(t, 0, 10, NULL)));
    worker_start(&entry.worker, enter_work, &entry);
    worker_await_sleep(&entry.worker);
    tracking_leave(t, 0, 10);
    worker_join(&entry.worker);
    cr_expect(zero(int, entry.ret));
    expect_kept(0, 10);
    tracking_leave(t, 100, 1);
}

Test(tracking, a_wait_is_interrupted)
{
    struct entry entry = {.offset = 100, .len = 1, .ret = 1};

    cr_assert(zero(int, tracking_enter(t, 0, 10, NULL)));
    worker_start(&entry.worker, enter_work, &entry);
    worker_await_sleep(&entry.worker);
    atomic_store(&entry.interrupt.hit, true);
    tracking_kick(t);
    worker_join(&entry.worker);
    cr_expect(eq(int, entry.ret, -EINTR));
    tracking_leave(t, 0, 10);
    expect_free(0, 10);
}

/* Each instruction set gives what the library gives, of any length, and wherever the bytes are. */
Test(tracking, page_hash)
{
    static const struct {
        const char *set;
        page_hash_fn *hash;
    } all[] = {{"plain", page_hash_plain},
#ifdef __x86_64__
               {"avx2", page_hash_avx2},
               {"avx512", page_hash_avx512}
#endif
    };
    char bytes[WIRE_PAGE_SIZE + 1], secret[PAGE_HASH_SECRET];
    unsigned known = 0;

    for (unsigned i = 0; i < sizeof(bytes); i++)
        bytes[i] = (char)(i * 7 + i / 256 * 3);
    for (unsigned i = 0; i < sizeof(secret); i++)
        secret[i] = (char)(i * 11 + 5);
    for (unsigned i = 0; i < sizeof(all) / sizeof(*all); i++) {
        known += all[i].hash == page_hash_best();
#ifdef __x86_64__
        if ((all[i].hash == page_hash_avx2 && !__builtin_cpu_supports("avx2")) ||
            (all[i].hash == page_hash_avx512 && !__builtin_cpu_supports("avx512f")))
            continue;
#endif
        for (size_t len = 1; len <= WIRE_PAGE_SIZE; len += len < 600 ? 1 : 437) {
            XXH128_hash_t right = XXH3_128bits_withSecret(bytes + 1, len, secret, sizeof(secret));
            struct page_hash got = all[i].hash(bytes + 1, len, secret);
            cr_assert(eq(u64, got.low, right.low64), "%s, %zu bytes", all[i].set, len);
            cr_assert(eq(u64, got.high, right.high64), "%s, %zu bytes", all[i].set, len);
        }
    }
    cr_expect(eq(uint, known, 1), "the best is one of them");
}
