/* SPDX-License-Identifier: Apache-2.0 */
/* Bytes to packets; see plan.h. */
#include "plan.h"
#include "zero.h"

#include <assert.h>

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
