/* SPDX-License-Identifier: Apache-2.0 */
/* Bytes to packets; see plan.h. */
#include "plan.h"
#include "zero.h"

#include <assert.h>

#define GATHER_MIN 2 /* runs */

void plan_begin(struct plan *plan, const struct plan_rules *rules)
{
    plan->rules = *rules;
    plan->count = plan->uncopied = 0;
    plan->cost = 0;
}

static void add(struct plan *plan, const struct packet *packet)
{
    assert(plan->count < PLAN_PACKETS_MAX);
    plan->packets[plan->count++] = *packet;
}

/* Whether data at @offset goes on where a packet of the same stripe ends. */
static bool continues(const struct packet *last, uint64_t offset)
{
    return last->type == WIRE_DATA && last->offset + last->length == offset && offset % WIRE_STRIPE_SIZE;
}

void plan_data(struct plan *plan, uint64_t offset, size_t len)
{
    struct packet *last = plan->count ? &plan->packets[plan->count - 1] : NULL;
    uint32_t length = (uint32_t)len;

    if (last && continues(last, offset))
        last->length = last->raw_length = last->length + length;
    else
        add(plan,
            &(struct packet){.type = WIRE_DATA, .offset = offset, .length = length, .raw_length = length});
}

/* A packet of whole pages that has no payload, or gets it later. */
static void add_range(struct plan *plan, enum wire_packet_type type, uint64_t offset, size_t len)
{
    add(plan, &(struct packet){.type = type, .offset = offset, .range = len});
}

/* Whole pages of one stripe. */
static void look_at_pages(struct plan *plan, const char *buf, uint64_t offset, size_t len)
{
    bool zero;
    size_t run = zero_run(buf, len, &zero);

    if (plan->rules.compress && run < len) {
        add_range(plan, WIRE_PAGES, offset, len);
        return;
    }
    for (size_t at = 0; at < len; at += run) {
        run = zero_run(buf + at, len - at, &zero);
        if (zero)
            add_range(plan, WIRE_ZERO, offset + at, run);
        else
            plan_data(plan, offset + at, run);
    }
}

void plan_look(struct plan *plan, const char *buf, uint64_t offset, size_t len)
{
    size_t head = (WIRE_PAGE_SIZE - offset % WIRE_PAGE_SIZE) % WIRE_PAGE_SIZE;

    if (head > len)
        head = len;
    size_t whole = (len - head) / WIRE_PAGE_SIZE * WIRE_PAGE_SIZE;
    size_t tail = len - head - whole;
    if (head)
        plan_data(plan, offset, head);
    if (whole)
        look_at_pages(plan, buf + head, offset + head, whole);
    if (tail)
        plan_data(plan, offset + head + whole, tail);
}

void plan_run(struct plan *plan, const char *buf, uint64_t offset, size_t len)
{
    if (plan->rules.zero_pages)
        plan_look(plan, buf, offset, len);
    else
        plan_data(plan, offset, len);
}

/* Whether a packet is whole pages that are zero, or few enough to be copied. */
static bool is_gatherable(const struct plan_rules *rules, const struct packet *packet)
{
    bool small = packet->type == WIRE_DATA && packet->length <= rules->copy_max;

    return packet->type == WIRE_ZERO ||
           (small && packet->offset % WIRE_PAGE_SIZE == 0 && packet->length % WIRE_PAGE_SIZE == 0);
}

static void mark(uint64_t *bits, const struct packet *packet)
{
    uint64_t first = packet->offset % WIRE_STRIPE_SIZE / WIRE_PAGE_SIZE;

    for (uint64_t page = first; page < first + plan_bytes(packet) / WIRE_PAGE_SIZE; page++)
        bits[page / 64] |= 1ull << page % 64;
}

bool plan_gather(struct plan *plan)
{
    unsigned runs = 0, kept = 0;
    uint64_t start = UINT64_MAX, end = 0, pages = 0;
    uint32_t bytes = 0;

    for (unsigned i = 0; i < plan->count; i++)
        runs += plan->packets[i].type == WIRE_DATA && is_gatherable(&plan->rules, &plan->packets[i]);
    if (plan->rules.compress || plan->rules.checksum || runs < GATHER_MIN)
        return false;
    plan->gathered = (struct plan_pages){0};
    for (unsigned i = 0; i < plan->count; i++) {
        const struct packet *packet = &plan->packets[i];
        if (!is_gatherable(&plan->rules, packet)) {
            plan->packets[kept++] = *packet;
            continue;
        }
        mark(plan->gathered.said, packet);
        if (packet->type == WIRE_DATA) {
            mark(plan->gathered.data, packet);
            bytes += packet->length;
        }
        start = packet->offset < start ? packet->offset : start;
        end = plan_packet_end(packet);
        pages += plan_bytes(packet) / WIRE_PAGE_SIZE;
    }
    struct packet all = {.type = WIRE_PAGES,
                         .flags = WIRE_PACKET_PARTIAL,
                         .offset = start,
                         .range = end - start,
                         .pages = pages};
    all.length = all.raw_length = wire_pages_head(&all) + bytes;
    plan->count = kept;
    add(plan, &all);
    return true;
}

void plan_end(struct plan *plan, const char *buf, uint64_t offset)
{
    for (unsigned i = 0; i < plan->count; i++) {
        struct packet *packet = &plan->packets[i];
        enum plan_path path = plan_path(&plan->rules, packet);
        if (packet->type == WIRE_DATA && plan->rules.checksum && path != PLAN_MADE)
            packet->payload_check = wire_payload_check(buf + (packet->offset - offset), packet->length);
        plan->uncopied += path != PLAN_COPIED;
        plan->cost += plan_cost(packet);
    }
}

void plan_write(struct plan *plan, const struct plan_rules *rules, const char *buf, size_t len,
                uint64_t offset)
{
    assert(len <= PLAN_WRITE_MAX);
    plan_begin(plan, rules);
    for (size_t done = 0; done < len;) {
        uint64_t at = offset + done;
        size_t room = WIRE_STRIPE_SIZE - at % WIRE_STRIPE_SIZE;
        size_t piece = len - done < room ? len - done : room;
        plan_run(plan, buf + done, at, piece);
        done += piece;
    }
    plan_end(plan, buf, offset);
}

bool plan_can_splice(const struct plan_rules *rules, size_t len, uint64_t offset)
{
    bool looked_at = rules->zero_pages || rules->compress || rules->checksum;

    return !looked_at && len > rules->copy_max && len <= WIRE_STRIPE_SIZE - offset % WIRE_STRIPE_SIZE;
}

void plan_pipe(struct plan *plan, const struct plan_rules *rules, size_t len, uint64_t offset)
{
    assert(plan_can_splice(rules, len, offset));
    plan_begin(plan, rules);
    plan->rules.large = PLAN_SPLICED;
    plan_data(plan, offset, len);
    plan_end(plan, NULL, offset);
}
