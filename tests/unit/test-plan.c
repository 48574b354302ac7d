/* SPDX-License-Identifier: Apache-2.0 */
/* Bytes to packets: every edge of a page and of a stripe, with neither threads nor sockets. */
#include "plan.h"
#include "check.h"

#include <stdlib.h>
#include <string.h>

#define PAGE     ((size_t)WIRE_PAGE_SIZE)
#define STRIPE   ((size_t)WIRE_STRIPE_SIZE)
#define COPY_MAX (16u << 10)

static const struct plan_rules plain = {.copy_max = COPY_MAX, .large = PLAN_KEPT};
static const struct plan_rules looking = {.copy_max = COPY_MAX, .large = PLAN_KEPT, .zero_pages = true};
static const struct plan_rules packing = {
    .copy_max = COPY_MAX, .large = PLAN_KEPT, .zero_pages = true, .compress = true};
static const struct plan_rules checking = {.copy_max = COPY_MAX, .large = PLAN_KEPT, .checksum = true};

static struct plan plan;
static char *bytes; /* a write that begins within a page needs a page more */

static void setup(void)
{
    bytes = malloc(PLAN_WRITE_MAX + PAGE);
    cr_assert(ne(ptr, bytes, NULL));
    memset(bytes, 'x', PLAN_WRITE_MAX + PAGE);
}

static void teardown(void)
{
    free(bytes);
}

TestSuite(plan, .init = setup, .fini = teardown);

/* Packet @i is this one; what is not said of it is zero. */
static void expect_packet(unsigned i, enum wire_packet_type type, uint64_t offset, size_t len)
{
    const struct packet *packet = &plan.packets[i];
    bool data = type == WIRE_DATA;

    cr_assert(i < plan.count, "there is no packet %u", i);
    cr_expect(eq(int, (int)packet->type, (int)type), "of packet %u", i);
    cr_expect(eq(u64, packet->offset, offset), "of packet %u", i);
    cr_expect(eq(u64, packet->range, data ? 0 : len), "of packet %u", i);
    cr_expect(eq(u32, packet->length, data ? (uint32_t)len : 0), "of packet %u", i);
    cr_expect(eq(u32, packet->raw_length, packet->length), "of packet %u", i);
    cr_expect(eq(u64, plan_bytes(packet), len), "of packet %u", i);
    cr_expect(eq(u64, packet->sequence, 0));
    cr_expect(eq(int, (int)packet->flags, 0));
}

/* What holds for the plan of every write: nothing is missing, doubled, or over a stripe's edge. */
static void check_write(const struct plan_rules *rules, const char *buf, size_t len, uint64_t offset)
{
    uint64_t at = offset, cost = 0;
    unsigned uncopied = 0;

    plan_write(&plan, rules, buf, len, offset);
    cr_assert(plan.count <= PLAN_PACKETS_MAX);
    for (unsigned i = 0; i < plan.count; i++) {
        const struct packet *packet = &plan.packets[i];
        uint64_t n = plan_bytes(packet);
        cr_assert(eq(u64, packet->offset, at), "packet %u of %zu bytes at %lu", i, len,
                  (unsigned long)offset);
        cr_assert(n > 0);
        cr_assert(eq(u64, at / STRIPE, (at + n - 1) / STRIPE));
        if (packet->type == WIRE_ZERO || packet->type == WIRE_PAGES) {
            cr_assert(at % PAGE == 0 && n % PAGE == 0);
        }
        at += n;
        cost += plan_cost(packet);
        uncopied += plan_path(rules, packet) != PLAN_COPIED;
    }
    cr_assert(eq(u64, at, offset + len));
    cr_assert(eq(u64, plan.cost, cost));
    cr_assert(eq(u32, plan.uncopied, uncopied));
}

Test(plan, nothing_has_no_packets)
{
    plan_write(&plan, &looking, bytes, 0, 5 * STRIPE);
    cr_expect(eq(u32, plan.count, 0));
    cr_expect(eq(u32, plan.uncopied, 0));
    cr_expect(eq(u64, plan.cost, 0));
}

/* Every combination of an edge where a write begins and of one where it ends, data and zeros. */
Test(plan, every_edge)
{
    const uint64_t edges[] = {0,
                              1,
                              PAGE - 1,
                              PAGE,
                              PAGE + 1,
                              2 * PAGE,
                              STRIPE - PAGE - 1,
                              STRIPE - PAGE,
                              STRIPE - 1,
                              STRIPE,
                              STRIPE + 1,
                              STRIPE + PAGE,
                              2 * STRIPE - 1,
                              2 * STRIPE,
                              3 * STRIPE,
                              4 * STRIPE - 1,
                              4 * STRIPE};
    const struct plan_rules all[] = {plain, looking, packing, checking};

    for (int fill = 0; fill < 2; fill++) {
        memset(bytes, fill, PLAN_WRITE_MAX);
        for (size_t r = 0; r < ARRAY_LENGTH(all); r++) {
            for (size_t i = 0; i < ARRAY_LENGTH(edges); i++) {
                for (size_t j = i + 1; j < ARRAY_LENGTH(edges); j++)
                    check_write(&all[r], bytes, edges[j] - edges[i], 7 * STRIPE + edges[i]);
            }
        }
    }
}

Test(plan, data_is_cut_at_the_stripes_alone)
{
    check_write(&plain, bytes, 2 * STRIPE, STRIPE / 2 + 3);
    cr_expect(eq(u32, plan.count, 3));
    expect_packet(0, WIRE_DATA, STRIPE / 2 + 3, STRIPE / 2 - 3);
    expect_packet(1, WIRE_DATA, STRIPE, STRIPE);
    expect_packet(2, WIRE_DATA, 2 * STRIPE, STRIPE / 2 + 3);
}

Test(plan, zeros_count_for_nothing_when_nobody_looks)
{
    memset(bytes, 0, 4 * PAGE);
    check_write(&plain, bytes, 4 * PAGE, 0);
    cr_expect(eq(u32, plan.count, 1));
    expect_packet(0, WIRE_DATA, 0, 4 * PAGE);
}

/* A write from within a page to within another: the whole pages between are zero. */
Test(plan, head_whole_and_tail)
{
    memset(bytes, 0, 4 * PAGE);
    check_write(&looking, bytes, 3 * PAGE, 10 * PAGE - 100);
    cr_expect(eq(u32, plan.count, 3));
    expect_packet(0, WIRE_DATA, 10 * PAGE - 100, 100); /* zeros, but no page */
    expect_packet(1, WIRE_ZERO, 10 * PAGE, 2 * PAGE);
    expect_packet(2, WIRE_DATA, 12 * PAGE, PAGE - 100);
    /* One that ends within the page where it begins has a head alone. */
    check_write(&looking, bytes, 50, 10 * PAGE + 100);
    cr_expect(eq(u32, plan.count, 1));
    expect_packet(0, WIRE_DATA, 10 * PAGE + 100, 50);
    /* One that ends where its page does, too. */
    check_write(&looking, bytes, PAGE - 100, 10 * PAGE + 100);
    cr_expect(eq(u32, plan.count, 1));
    /* And one that begins at a page and does not fill it has a tail alone. */
    check_write(&looking, bytes, PAGE - 1, 10 * PAGE);
    cr_expect(eq(u32, plan.count, 1));
    expect_packet(0, WIRE_DATA, 10 * PAGE, PAGE - 1);
}

Test(plan, head_whole_and_tail_of_data_are_one_packet)
{
    check_write(&looking, bytes, 3 * PAGE, 10 * PAGE - 100);
    cr_expect(eq(u32, plan.count, 1));
    expect_packet(0, WIRE_DATA, 10 * PAGE - 100, 3 * PAGE);
}

Test(plan, runs_of_zero_pages)
{
    memset(bytes + PAGE, 0, 2 * PAGE);
    memset(bytes + 5 * PAGE, 0, PAGE);
    check_write(&looking, bytes, 7 * PAGE, STRIPE);
    cr_expect(eq(u32, plan.count, 5));
    expect_packet(0, WIRE_DATA, STRIPE, PAGE);
    expect_packet(1, WIRE_ZERO, STRIPE + PAGE, 2 * PAGE);
    expect_packet(2, WIRE_DATA, STRIPE + 3 * PAGE, 2 * PAGE);
    expect_packet(3, WIRE_ZERO, STRIPE + 5 * PAGE, PAGE);
    expect_packet(4, WIRE_DATA, STRIPE + 6 * PAGE, PAGE);
}

Test(plan, a_run_ends_at_its_stripe)
{
    memset(bytes, 0, 2 * PAGE);
    check_write(&looking, bytes, 2 * PAGE, STRIPE - PAGE);
    cr_expect(eq(u32, plan.count, 2));
    expect_packet(0, WIRE_ZERO, STRIPE - PAGE, PAGE);
    expect_packet(1, WIRE_ZERO, STRIPE, PAGE);
    memset(bytes, 1, 2 * PAGE);
    check_write(&looking, bytes, 2 * PAGE, STRIPE - PAGE);
    cr_expect(eq(u32, plan.count, 2));
    expect_packet(0, WIRE_DATA, STRIPE - PAGE, PAGE);
    expect_packet(1, WIRE_DATA, STRIPE, PAGE);
}

Test(plan, one_byte_makes_a_page_data)
{
    for (size_t at = 0; at < PAGE; at += PAGE - 1) {
        memset(bytes, 0, 3 * PAGE);
        bytes[PAGE + at] = 1;
        check_write(&looking, bytes, 3 * PAGE, 0);
        cr_expect(eq(u32, plan.count, 3));
        expect_packet(1, WIRE_DATA, PAGE, PAGE);
    }
}

/* No write has more packets than this one: a head, pages that alternate, and a tail. */
Test(plan, the_largest_write_fills_the_array)
{
    for (size_t page = 0; page < PLAN_WRITE_MAX / PAGE; page += 2)
        memset(bytes + 1 + page * PAGE, 0, PAGE);
    check_write(&looking, bytes, PLAN_WRITE_MAX, PAGE - 1);
    cr_expect(eq(u32, plan.count, PLAN_PACKETS_MAX));
    expect_packet(0, WIRE_DATA, PAGE - 1, 1);
    expect_packet(1, WIRE_ZERO, PAGE, PAGE);
    expect_packet(2, WIRE_DATA, 2 * PAGE, PAGE);
    expect_packet(PLAN_PACKETS_MAX - 1, WIRE_DATA, PLAN_WRITE_MAX, PAGE - 1);
}

/* What will be compressed is cut at the stripes, and has a bit for each page. */
Test(plan, mixed_pages_are_compressed_together)
{
    memset(bytes + PAGE, 0, PAGE);
    memset(bytes + STRIPE + PAGE, 0, PAGE);
    check_write(&packing, bytes, STRIPE + 4 * PAGE, 4 * STRIPE);
    cr_expect(eq(u32, plan.count, 2));
    expect_packet(0, WIRE_PAGES, 4 * STRIPE, STRIPE);
    expect_packet(1, WIRE_PAGES, 5 * STRIPE, 4 * PAGE);
    cr_expect(eq(u64, plan.cost, STRIPE + 4 * PAGE + 2 * sizeof(struct wire_packet)));
    cr_expect(eq(u32, plan.uncopied, 2));
    /* Its head and its tail are packets of their own. */
    check_write(&packing, bytes + PAGE - 5, 3 * PAGE + 10, 9 * PAGE - 5);
    cr_expect(eq(u32, plan.count, 3));
    expect_packet(0, WIRE_DATA, 9 * PAGE - 5, 5);
    expect_packet(1, WIRE_PAGES, 9 * PAGE, 3 * PAGE);
    expect_packet(2, WIRE_DATA, 12 * PAGE, 5);
}

Test(plan, pages_that_are_alike_need_no_bits)
{
    check_write(&packing, bytes, 3 * PAGE, 0);
    cr_expect(eq(u32, plan.count, 1));
    expect_packet(0, WIRE_DATA, 0, 3 * PAGE);
    memset(bytes, 0, 3 * PAGE);
    check_write(&packing, bytes, 3 * PAGE, 0);
    cr_expect(eq(u32, plan.count, 1));
    expect_packet(0, WIRE_ZERO, 0, 3 * PAGE);
    cr_expect(eq(int, (int)plan_path(&packing, &plan.packets[0]), PLAN_COPIED));
    cr_expect(eq(u64, plan.cost, sizeof(struct wire_packet)));
}

static enum plan_path path_of(const struct plan_rules *rules, enum wire_packet_type type, size_t len)
{
    struct packet packet = {.type = type};

    if (type == WIRE_DATA)
        packet.length = packet.raw_length = (uint32_t)len;
    else
        packet.range = len;
    return plan_path(rules, &packet);
}

Test(plan, paths)
{
    struct plan_rules mapped = plain, both = packing, tiny = packing;

    mapped.large = PLAN_MAPPED;
    both.checksum = true;
    tiny.copy_max = 100;
    const struct {
        const struct plan_rules *rules;
        enum wire_packet_type type;
        size_t len;
        enum plan_path path;
    } cases[] = {
        {&plain, WIRE_DATA, 1, PLAN_COPIED},
        {&plain, WIRE_DATA, COPY_MAX, PLAN_COPIED},
        {&plain, WIRE_DATA, COPY_MAX + 1, PLAN_KEPT},
        {&plain, WIRE_DATA, STRIPE, PLAN_KEPT},
        {&mapped, WIRE_DATA, COPY_MAX, PLAN_COPIED},
        {&mapped, WIRE_DATA, COPY_MAX + 1, PLAN_MAPPED},
        {&looking, WIRE_ZERO, STRIPE, PLAN_COPIED},
        /* A checksum of what is copied is made at once, and of more when the writer has been answered. */
        {&checking, WIRE_DATA, COPY_MAX, PLAN_COPIED},
        {&checking, WIRE_DATA, COPY_MAX + 1, PLAN_MADE},
        {&checking, WIRE_ZERO, STRIPE, PLAN_COPIED},
        /* A frame pays from a page on. */
        {&packing, WIRE_DATA, PAGE - 1, PLAN_COPIED},
        {&packing, WIRE_DATA, PAGE, PLAN_MADE},
        {&packing, WIRE_DATA, STRIPE, PLAN_MADE},
        {&packing, WIRE_PAGES, 2 * PAGE, PLAN_MADE},
        {&packing, WIRE_ZERO, STRIPE, PLAN_COPIED},
        {&both, WIRE_DATA, PAGE - 1, PLAN_COPIED},
        {&both, WIRE_DATA, PAGE, PLAN_MADE},
        /* The transport copies less. */
        {&tiny, WIRE_DATA, 100, PLAN_COPIED},
        {&tiny, WIRE_DATA, 101, PLAN_KEPT},
        {&tiny, WIRE_DATA, PAGE, PLAN_MADE},
    };

    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++)
        cr_expect(eq(int, (int)path_of(cases[i].rules, cases[i].type, cases[i].len), (int)cases[i].path),
                  "case %zu", i);
}

Test(plan, cost)
{
    check_write(&plain, bytes, 1, 0);
    cr_expect(eq(u64, plan.cost, 1 + sizeof(struct wire_packet)));
    check_write(&plain, bytes, STRIPE + 1, 0);
    cr_expect(eq(u64, plan.cost, STRIPE + 1 + 2 * sizeof(struct wire_packet)));
    cr_expect(eq(u32, plan.uncopied, 1));
}

/* What is copied has its checksum at once; what is made has none yet. */
Test(plan, checksums)
{
    for (size_t i = 0; i < 2 * STRIPE; i++)
        bytes[i] = (char)(i * 7 + i / 256);
    check_write(&checking, bytes, STRIPE + 10, PAGE + 1);
    cr_expect(eq(u32, plan.count, 2));
    cr_expect(eq(u64, plan.packets[0].payload_check, 0));
    cr_expect(
        eq(u64, plan.packets[1].payload_check, wire_payload_check(bytes + STRIPE - PAGE - 1, PAGE + 1 + 10)));
    check_write(&plain, bytes, 10, 0);
    cr_expect(eq(u64, plan.packets[0].payload_check, 0));
    /* Zero pages have no payload. */
    struct plan_rules rules = checking;
    rules.zero_pages = true;
    memset(bytes, 0, PAGE);
    check_write(&rules, bytes, PAGE, 0);
    expect_packet(0, WIRE_ZERO, 0, PAGE);
    cr_expect(eq(u64, plan.packets[0].payload_check, 0));
}

Test(plan, what_can_be_spliced)
{
    struct plan_rules rules = plain;

    cr_expect(not(plan_can_splice(&rules, COPY_MAX, 0)));
    cr_expect(plan_can_splice(&rules, COPY_MAX + 1, 0));
    cr_expect(plan_can_splice(&rules, STRIPE, 3 * STRIPE));
    cr_expect(plan_can_splice(&rules, STRIPE - 5, 3 * STRIPE + 5));
    cr_expect(not(plan_can_splice(&rules, STRIPE - 4, 3 * STRIPE + 5)));
    cr_expect(not(plan_can_splice(&rules, STRIPE + 1, 0)));
    rules.zero_pages = true;
    cr_expect(not(plan_can_splice(&rules, STRIPE, 0)));
    cr_expect(not(plan_can_splice(&checking, STRIPE, 0)));
    rules = plain;
    rules.compress = true;
    cr_expect(not(plan_can_splice(&rules, STRIPE, 0)));
}

Test(plan, a_pipe_has_one_packet)
{
    check_write(&looking, bytes, 2 * STRIPE, 0); /* of which nothing is left */
    plan_pipe(&plan, &plain, STRIPE - 5, STRIPE + 5);
    cr_expect(eq(u32, plan.count, 1));
    expect_packet(0, WIRE_DATA, STRIPE + 5, STRIPE - 5);
    cr_expect(eq(int, (int)plan_path(&plan.rules, &plan.packets[0]), PLAN_SPLICED));
    cr_expect(eq(u32, plan.uncopied, 1));
    cr_expect(eq(u64, plan.cost, STRIPE - 5 + sizeof(struct wire_packet)));
}

/* RAM by reference: parts of a stripe, some of them looked at in place, some as they stand, with gaps
 * between. */
Test(plan, parts_of_a_stripe)
{
    struct plan_rules rules = looking;

    rules.large = PLAN_MAPPED;
    memset(bytes + 2 * PAGE, 0, PAGE);
    plan_begin(&plan, &rules);
    plan_look(&plan, bytes, STRIPE, 4 * PAGE);
    plan_data(&plan, STRIPE + 4 * PAGE, 8 * PAGE);  /* goes on */
    plan_data(&plan, STRIPE + 20 * PAGE, 2 * PAGE); /* leaves a gap */
    plan_look(&plan, bytes, STRIPE + 22 * PAGE, PAGE);
    plan_data(&plan, 2 * STRIPE - 1, 1);
    plan_end(&plan, bytes, STRIPE);
    cr_expect(eq(u32, plan.count, 5));
    expect_packet(0, WIRE_DATA, STRIPE, 2 * PAGE);
    expect_packet(1, WIRE_ZERO, STRIPE + 2 * PAGE, PAGE);
    expect_packet(2, WIRE_DATA, STRIPE + 3 * PAGE, 9 * PAGE);
    expect_packet(3, WIRE_DATA, STRIPE + 20 * PAGE, 3 * PAGE);
    expect_packet(4, WIRE_DATA, 2 * STRIPE - 1, 1);
    const enum plan_path paths[] = {PLAN_COPIED, PLAN_COPIED, PLAN_MAPPED, PLAN_COPIED, PLAN_COPIED};
    for (unsigned i = 0; i < plan.count; i++)
        cr_expect(eq(int, (int)plan_path(&plan.rules, &plan.packets[i]), (int)paths[i]), "packet %u", i);
    cr_expect(eq(u32, plan.uncopied, 1));
}

/* A plan is begun where another one was. */
Test(plan, nothing_is_left_of_the_plan_before)
{
    check_write(&plain, bytes, STRIPE, 0);
    plan_begin(&plan, &looking);
    cr_expect(eq(u32, plan.count, 0));
    plan_data(&plan, STRIPE / 2, 1);
    plan_end(&plan, bytes, STRIPE / 2);
    cr_expect(eq(u32, plan.count, 1));
    cr_expect(eq(u32, plan.uncopied, 0));
    cr_expect(eq(u64, plan.cost, 1 + sizeof(struct wire_packet)));
}

/*
 * Scattered pages
 */

/* Plans pages of a stripe at @offset: 'd' data, '0' zero, '.' nothing is said of it; each run by itself. */
static void plan_pages(const struct plan_rules *rules, uint64_t offset, const char *pages)
{
    plan_begin(&plan, rules);
    for (size_t at = 0, run; pages[at]; at += run) {
        run = strspn(pages + at, (char[]){pages[at], 0});
        memset(bytes + at * PAGE, pages[at] == '0' ? 0 : 'x', run * PAGE);
        if (pages[at] != '.')
            plan_run(&plan, bytes + at * PAGE, offset + at * PAGE, run * PAGE);
    }
}

Test(plan, scattered_pages_are_gathered)
{
    plan_pages(&looking, 3 * STRIPE, "..d.0dd..00d.");
    cr_assert(plan_gather(&plan));
    cr_assert(eq(u32, plan.count, 1));
    const struct packet *packet = &plan.packets[0];
    cr_expect(eq(int, (int)packet->type, WIRE_PAGES));
    cr_expect(eq(int, (int)packet->flags, WIRE_PACKET_PARTIAL));
    cr_expect(eq(u64, packet->offset, 3 * STRIPE + 2 * PAGE), "from the first page that it is about");
    cr_expect(eq(u64, packet->range, 10 * PAGE), "to the last one");
    cr_expect(eq(u64, packet->pages, 7));
    cr_expect(eq(u32, packet->length, 2 * 8 + 4 * PAGE));
    cr_expect(eq(u32, packet->raw_length, packet->length));
    cr_expect(eq(u64, plan_bytes(packet), 7 * PAGE));
    cr_expect(eq(u64, plan_packet_end(packet), 3 * STRIPE + 12 * PAGE));
    cr_expect(eq(u64, plan.gathered.data[0], 1 << 2 | 3 << 5 | 1 << 11));
    cr_expect(eq(u64, plan.gathered.said[0], 1 << 2 | 7 << 4 | 7 << 9));
    cr_expect(eq(int, (int)plan_path(&plan.rules, packet), PLAN_GATHERED));
    plan_end(&plan, bytes, 3 * STRIPE);
    cr_expect(eq(u32, plan.uncopied, 1));
}

/* Each second page of a whole stripe; all words have their bits. */
Test(plan, a_stripe_of_scattered_pages)
{
    plan_begin(&plan, &looking);
    for (size_t page = 1; page < STRIPE / PAGE; page += 2)
        plan_run(&plan, bytes + page * PAGE, page * PAGE, PAGE);
    cr_assert(plan_gather(&plan));
    cr_assert(eq(u32, plan.count, 1));
    cr_expect(eq(u64, plan.packets[0].offset, PAGE));
    cr_expect(eq(u64, plan.packets[0].range, STRIPE - PAGE));
    cr_expect(eq(u32, plan.packets[0].length, 2 * 32 + STRIPE / 2));
    for (unsigned word = 0; word < PLAN_WORDS; word++)
        cr_expect(eq(u64, plan.gathered.data[word], 0xaaaaaaaaaaaaaaaa));
}

/* What is large goes by itself, as do bytes that are no whole pages; the order of the others stays. */
Test(plan, what_is_not_gathered)
{
    plan_begin(&plan, &looking);
    plan_run(&plan, bytes, 100, 50);
    plan_run(&plan, bytes + PAGE, PAGE, PAGE);
    plan_run(&plan, bytes + 3 * PAGE, 3 * PAGE, COPY_MAX);
    plan_run(&plan, bytes + 20 * PAGE, 20 * PAGE, COPY_MAX + PAGE);
    plan_run(&plan, bytes + 40 * PAGE, 40 * PAGE, 100);
    cr_assert(plan_gather(&plan));
    cr_assert(eq(u32, plan.count, 4));
    expect_packet(0, WIRE_DATA, 100, 50);
    expect_packet(1, WIRE_DATA, 20 * PAGE, COPY_MAX + PAGE);
    expect_packet(2, WIRE_DATA, 40 * PAGE, 100);
    cr_expect(eq(u64, plan.packets[3].offset, PAGE));
    cr_expect(eq(u64, plan.packets[3].range, 2 * PAGE + COPY_MAX));
}

Test(plan, not_worth_gathering)
{
    struct plan_rules rules[] = {looking, packing, checking};

    plan_pages(&looking, 0, "d.0.0.0");
    cr_expect(zero(int, plan_gather(&plan)), "one run of data");
    cr_expect(eq(u32, plan.count, 4));
    plan_pages(&looking, 0, "0.0.0");
    cr_expect(zero(int, plan_gather(&plan)), "none");
    for (size_t i = 0; i < ARRAY_LENGTH(rules); i++) {
        plan_pages(&rules[i], 0, "d.d");
        cr_expect(eq(int, plan_gather(&plan), i == 0), "what is compressed, or checked as a whole");
    }
}
