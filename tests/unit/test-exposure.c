/* SPDX-License-Identifier: Apache-2.0 */
/* What the source may write by itself, and what the image does while it may. */
#include "exposure.h"
#include "check.h"
#include "dummy.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define STRIPE ((uint64_t)WIRE_STRIPE_SIZE)
#define PAGE   ((uint64_t)WIRE_PAGE_SIZE)
#define LIMIT  (16 * STRIPE)

/* Keys that are out, by number. */
static struct {
    uint8_t *base;
    size_t len;
} out[8];
static unsigned exposed, withdrawn;
static int refusal; /* what the next one is answered with; 0: it may be */

static int note_expose(struct transport *t, void *base, size_t len, struct transport_key *key)
{
    (void)t;
    if (refusal)
        return refusal;
    unsigned i = exposed++;
    cr_assert(lt(uint, i, ARRAY_LENGTH(out)));
    out[i].base = base;
    out[i].len = len;
    *key = (struct transport_key){.address = (uintptr_t)base, .key = i + 1};
    return 0;
}

static void note_withdraw(struct transport *t, const struct transport_key *key)
{
    (void)t;
    cr_assert(ne(ptr, out[key->key - 1].base, NULL), "withdrawn once");
    out[key->key - 1].base = NULL;
    withdrawn++;
}

static const struct transport_ops counting_ops = {
    .name = "counting", .expose = note_expose, .withdraw = note_withdraw};
static struct transport counting = {.ops = &counting_ops, .traits.places = true};

static struct budget budget, windows;
static struct file *ram;
static struct exposures exposures;

static void begin_with(uint64_t size)
{
    const struct image_budgets budgets = {.memory = &budget, .windows = &windows};
    struct error err;

    budget = (struct budget){.limit = 12 * STRIPE, .unit = "bytes"};
    windows = (struct budget){.limit = 4ull << 40};
    exposed = withdrawn = 0;
    refusal = 0;
    ram = file_new(WIRE_RAM, "ram");
    cr_assert(zero(int, file_set_channels(ram, 1, 0)));
    CHECK_OK(file_receive_begin(ram, size, LIMIT, NULL, "ram", &budgets, &err));
    exposures_init(&exposures, &counting, LIMIT);
}

static void begin(void)
{
    begin_with(8 * STRIPE);
}

static void end(void)
{
    exposures_fini(&exposures);
    cr_expect(eq(uint, exposed, withdrawn), "all is withdrawn");
    cr_expect(not(image_is_exposed(&ram->image)));
    cr_expect(eq(uint, ram->refs, 1));
    file_put(ram);
    cr_expect(zero(u64, budget.used));
}

TestSuite(exposure, .init = begin, .fini = end);

static int try_add(struct file *file, uint64_t offset, uint64_t len, size_t body_len, enum cause *cause,
                   struct error *err)
{
    uint8_t body[24] = {0}, reply[EXPOSURE_REPLY_SIZE];
    struct wire_writer w = {body, body, body + sizeof(body)}, answer = {reply, reply, reply + sizeof(reply)};

    wire_write_u64(&w, offset);
    wire_write_u64(&w, len);
    struct wire_reader r = {.p = body, .left = body_len};
    *err = (struct error){0};
    int ret = exposures_add(&exposures, file, &r, &answer, err);
    if (ret < 0)
        return ret;
    cr_assert(eq(uint, wire_written(&answer), EXPOSURE_REPLY_SIZE));
    struct wire_reader said = {.p = reply, .left = sizeof(reply)};
    cr_expect(eq(u64, wire_read_u64(&said), offset));
    uint64_t address = wire_read_u64(&said);
    uint32_t key = wire_read_u32(&said);
    *cause = wire_read_u32(&said);
    if (*cause == CAUSE_NONE) {
        cr_assert(eq(uint, key, exposed));
        cr_expect(eq(u64, address, (uintptr_t)out[key - 1].base));
        cr_expect(eq(sz, out[key - 1].len, len));
    } else {
        cr_expect(zero(u64, address), "nothing is told of what is not exposed");
        cr_expect(zero(u32, key));
    }
    return 0;
}

static enum cause add(uint64_t offset, uint64_t len)
{
    enum cause cause = CAUSE_NONE;
    struct error err;

    cr_assert(zero(int, try_add(ram, offset, len, 16, &cause, &err)), "%s", err.message);
    return cause;
}

static int take_away(uint64_t offset, uint64_t len, size_t body_len, struct error *err)
{
    uint8_t body[24] = {0};
    struct wire_writer w = {body, body, body + sizeof(body)};

    wire_write_u64(&w, offset);
    wire_write_u64(&w, len);
    struct wire_reader r = {.p = body, .left = body_len};
    return exposures_remove(&exposures, &r, err);
}

Test(exposure, written_from_outside)
{
    char got[5] = "";

    cr_expect(eq(int, (int)add(STRIPE, 2 * STRIPE), CAUSE_NONE));
    cr_expect(image_is_exposed(&ram->image));
    memcpy(out[0].base + 17, "bytes", 5);
    cr_expect(eq(long, image_read(&ram->image, STRIPE + 17, got, 5), 5));
    cr_expect(zero(int, memcmp(got, "bytes", 5)), "the key stands for the image's own memory");
}

Test(exposure, withdrawn)
{
    struct error err;

    add(0, STRIPE);
    add(4 * STRIPE, STRIPE);
    CHECK_FAILS(take_away(0, STRIPE + 1, 16, &err), CAUSE_PROTOCOL);
    CHECK_FAILS(take_away(STRIPE, STRIPE, 16, &err), CAUSE_PROTOCOL);
    CHECK_FAILS(take_away(0, STRIPE, 15, &err), CAUSE_PROTOCOL);
    CHECK_FAILS(take_away(0, STRIPE, 17, &err), CAUSE_PROTOCOL);
    cr_expect(zero(uint, withdrawn), "a bad message withdraws nothing");
    CHECK_OK(take_away(0, STRIPE, 16, &err));
    cr_expect(eq(uint, withdrawn, 1));
    cr_expect(image_is_exposed(&ram->image), "the other one still is");
    CHECK_FAILS(take_away(0, STRIPE, 16, &err), CAUSE_PROTOCOL);
    CHECK_OK(take_away(4 * STRIPE, STRIPE, 16, &err));
    cr_expect(not(image_is_exposed(&ram->image)));
    cr_expect(image_was_exposed(&ram->image), "headers of what was placed may still come");
    cr_expect(eq(int, (int)add(0, STRIPE), CAUSE_NONE), "and again");
}

Test(exposure, what_cannot_be_asked)
{
    enum cause cause;
    struct error err;

    add(2 * STRIPE, 2 * STRIPE);
    CHECK_FAILS(try_add(ram, 3 * STRIPE, STRIPE, 16, &cause, &err), CAUSE_PROTOCOL);
    CHECK_FAILS(try_add(ram, 0, 2 * STRIPE + 1, 16, &cause, &err), CAUSE_PROTOCOL);
    CHECK_FAILS(try_add(ram, 0, 5 * STRIPE, 16, &cause, &err), CAUSE_PROTOCOL);
    CHECK_FAILS(try_add(ram, 0, 0, 16, &cause, &err), CAUSE_PROTOCOL);
    CHECK_FAILS(try_add(ram, 1, STRIPE, 16, &cause, &err), CAUSE_PROTOCOL);
    CHECK_FAILS(try_add(ram, 0, UINT64_MAX, 16, &cause, &err), CAUSE_PROTOCOL);
    CHECK_FAILS(try_add(ram, WIRE_OFFSET_MAX, STRIPE, 16, &cause, &err), CAUSE_PROTOCOL);
    CHECK_FAILS(try_add(ram, UINT64_MAX - STRIPE + 1, STRIPE, 16, &cause, &err), CAUSE_PROTOCOL);
    CHECK_FAILS(try_add(ram, 0, STRIPE, 15, &cause, &err), CAUSE_PROTOCOL);
    CHECK_FAILS(try_add(ram, 0, STRIPE, 17, &cause, &err), CAUSE_PROTOCOL);
    CHECK_FAILS(try_add(NULL, 0, STRIPE, 16, &cause, &err), CAUSE_PROTOCOL);
    cr_expect(eq(uint, exposed, 1));
    cr_expect(eq(int, (int)add(0, 2 * STRIPE), CAUSE_NONE), "up to the next one");
    cr_expect(eq(int, (int)add(4 * STRIPE, STRIPE - 1), CAUSE_NONE), "the image may end in it");
}

Test(exposure, refused)
{
    refusal = -ENOMEM;
    cr_expect(eq(int, (int)add(0, STRIPE), CAUSE_NO_MEMORY));
    cr_expect(not(image_is_exposed(&ram->image)));
    refusal = -EOPNOTSUPP;
    cr_expect(eq(int, (int)add(0, STRIPE), CAUSE_UNSUPPORTED));
    refusal = 0;
    cr_expect(eq(int, (int)add(0, STRIPE), CAUSE_NONE));
    cr_expect(ne(int, (int)add(6 * STRIPE, 4 * STRIPE), CAUSE_NONE), "past the end of what is mapped");
    cr_expect(eq(uint, exposed, 1));
}

Test(exposure, no_channel_places)
{
    struct error err;
    enum cause cause;

    exposures_init(&exposures, NULL, LIMIT);
    cr_assert(zero(int, try_add(ram, 0, STRIPE, 16, &cause, &err)));
    cr_expect(ne(int, (int)cause, CAUSE_NONE));
    cr_expect(not(image_is_exposed(&ram->image)));
}

/* Nobody has said how large the image will be: what is exposed is charged. */
Test(exposure, undeclared)
{
    end();
    begin_with(0);
    cr_expect(eq(int, (int)add(0, 4 * STRIPE), CAUSE_NONE));
    cr_expect(eq(u64, budget.used, 4 * STRIPE));
    cr_expect(ne(int, (int)add(8 * STRIPE, 5 * STRIPE), CAUSE_NONE), "more than the budget");
    cr_expect(ne(int, (int)add(12 * STRIPE, 8 * STRIPE), CAUSE_NONE), "more than the image may have");
    cr_expect(eq(u64, budget.used, 4 * STRIPE));
    cr_expect(zero(u64, image_size(&ram->image)), "nothing has arrived");
}

static int64_t blocks(void)
{
    return image_blocks(&ram->image);
}

static void store(uint64_t offset, size_t len)
{
    char *bytes = malloc(len);
    struct error err;

    memset(bytes, 'x', len);
    CHECK_OK(image_write(&ram->image, offset, bytes, len, &err));
    file_received(ram, 0, offset, len);
    free(bytes);
}

static bool is_zero(uint64_t offset, size_t len)
{
    char c;

    for (uint64_t at = offset; at < offset + len; at += 512) {
        cr_assert(eq(long, image_read(&ram->image, at, &c, 1), 1));
        if (c)
            return false;
    }
    return true;
}

/* A page that the card writes to stays in the file; so whatever makes a hole clears it in place. */
Test(exposure, nothing_is_punched)
{
    struct error err;
    uint64_t first;

    store(0, 3 * STRIPE);
    add(0, 2 * STRIPE);
    int64_t before = blocks();
    CHECK_OK(image_zero(&ram->image, 0, 16 * PAGE, &first, &err));
    CHECK_OK(image_discard(&ram->image, 0, 32 * PAGE + 1000, 2 * PAGE, &err));
    CHECK_OK(image_discard(&ram->image, 0, 2 * STRIPE, STRIPE, &err));
    cr_expect(is_zero(0, 16 * PAGE));
    cr_expect(is_zero(33 * PAGE, PAGE));
    cr_expect(is_zero(2 * STRIPE, STRIPE), "also what is not exposed");
    cr_expect(eq(i64, blocks(), before), "no page is given back");
    CHECK_OK(image_truncate(&ram->image, 0, STRIPE, &err));
    cr_expect(is_zero(STRIPE, STRIPE));
    cr_expect(eq(i64, blocks(), before), "nor by a truncation");

    out[0].base[5] = 'y';
    char c = 0;
    image_read(&ram->image, 5, &c, 1);
    cr_expect(eq(chr, c, 'y'), "it is still the same memory");

    CHECK_OK(take_away(0, 2 * STRIPE, 16, &err));
    store(0, 3 * STRIPE);
    before = blocks();
    CHECK_OK(image_zero(&ram->image, 0, STRIPE, &first, &err));
    CHECK_OK(image_discard(&ram->image, 0, STRIPE, STRIPE, &err));
    cr_expect(eq(i64, before - blocks(), (int64_t)(2 * STRIPE / 512)), "then pages are given back");
    cr_expect(is_zero(0, 2 * STRIPE));
}
