/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A plan: the packets of one write, in the order of their offsets. Bytes go in, packets come out;
 * a plan knows no migration, no channel and no thread.
 *
 * Theory of operation
 *   A write is cut at the stripes, since a stripe has a home channel. Where zero pages are looked
 *   for, each piece is cut once more: what comes before its first whole page (its head), the whole
 *   pages in runs of data and of zero pages, and what comes after its last whole page (its tail).
 *   Runs of data that touch are one packet. What will be compressed is not cut at its zero pages,
 *   since many short frames compress badly: one packet has a bit for each page.
 *
 *   Each packet takes one way to its channel, its path (enum plan_path). The plan chooses it, from
 *   nothing but the rules and the packet; path.h has what each of them does. A new one, which
 *   places payloads in the peer's memory, would be one more value for plan_rules.large, and one
 *   more entry there.
 */
#ifndef MIGFS_PLAN_H
#define MIGFS_PLAN_H

#include "wire.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The largest write that is planned at once. */
#define PLAN_WRITE_MAX (4 * (size_t)WIRE_STRIPE_SIZE)

/* Each packet has a page, or a part of one, to itself; a write that begins within a page touches one more. */
#define PLAN_PACKETS_MAX (PLAN_WRITE_MAX / WIRE_PAGE_SIZE + 1)

/* Which way a packet takes to its channel. */
enum plan_path {
    PLAN_COPIED,   /* its bytes are copied when it gets its place: nobody has to keep them */
    PLAN_KEPT,     /* its payload is sent from the writer's buffer, which is kept until then */
    PLAN_MADE,     /* its payload is made of the writer's bytes after the writer has been answered */
    PLAN_SPLICED,  /* its payload is in a pipe, and goes out of it */
    PLAN_MAPPED,   /* its payload is sent from the mapping of the RAM's file, as it is then */
    PLAN_GATHERED, /* its payload is sent from where its pages are, each from its place */
    PLAN_PATHS
};

/* What a plan has to know. */
struct plan_rules {
    bool compress;        /* payloads of a page and more are compressed */
    bool checksum;        /* payloads carry a checksum */
    bool zero_pages;      /* zero pages are looked for */
    uint32_t copy_max;    /* a payload up to this size is copied */
    enum plan_path large; /* the path of one that is neither copied nor made */
};

#define PLAN_WORDS (WIRE_STRIPE_SIZE / WIRE_PAGE_SIZE / 64)

/* Pages of a stripe: bit n of word w is page 64 w + n. */
struct plan_pages {
    uint64_t data[PLAN_WORDS]; /* those whose bytes are sent */
    uint64_t said[PLAN_WORDS]; /* those, and the ones that are zero */
};

struct plan {
    struct plan_rules rules;
    unsigned count;    /* of packets */
    unsigned uncopied; /* packets whose path is not PLAN_COPIED */
    uint64_t cost;     /* of all packets */
    /* The payload of a packet is at its offset in what is written: @length bytes, or (WIRE_PAGES) @range. */
    struct packet packets[PLAN_PACKETS_MAX];
    /* Of the one packet that is PLAN_GATHERED, if there is one: the last. */
    struct plan_pages gathered;
};

/** plan_begin - a plan without packets */
void plan_begin(struct plan *plan, const struct plan_rules *rules);

/** plan_data - [offset, offset + len), which is within a stripe and follows what is planned, is data as it
 * stands */
void plan_data(struct plan *plan, uint64_t offset, size_t len);

/**
 * plan_look - the same, but its zero pages are looked for
 * @buf: its bytes
 */
void plan_look(struct plan *plan, const char *buf, uint64_t offset, size_t len);

/** plan_run - plan_look() or plan_data(), as the rules say */
void plan_run(struct plan *plan, const char *buf, uint64_t offset, size_t len);

/**
 * plan_gather - the small runs of whole pages, and the zero pages, of the one stripe that is planned become
 * one packet, if there are several such runs and nothing is compressed or checked
 *
 * A packet for each would be cut, copied and stored by itself, and a live round is made of them.
 * Return: whether there is such a packet now.
 */
bool plan_gather(struct plan *plan);

/**
 * plan_end - all packets are there
 * @buf, @offset: the bytes in memory, and what their first one stands for. Those of packets that are copied,
 * or that have a checksum, have to be there
 */
void plan_end(struct plan *plan, const char *buf, uint64_t offset);

/**
 * plan_write - the plan of a write
 * @len: PLAN_WRITE_MAX at most
 */
void plan_write(struct plan *plan, const struct plan_rules *rules, const char *buf, size_t len,
                uint64_t offset);

/**
 * plan_can_splice - whether plan_pipe() takes a write: nobody has to look at it, and it goes to one channel
 *
 * The parts of a write that goes to several channels could not all be first at the pipe.
 */
bool plan_can_splice(const struct plan_rules *rules, size_t len, uint64_t offset);

/** plan_pipe - the plan of a write whose data is in a pipe, and which plan_can_splice(); @rules->large is
 * ignored */
void plan_pipe(struct plan *plan, const struct plan_rules *rules, size_t len, uint64_t offset);

/** plan_path - which way a packet takes */
static inline enum plan_path plan_path(const struct plan_rules *rules, const struct packet *packet)
{
    if (packet->flags & WIRE_PACKET_PARTIAL)
        return PLAN_GATHERED;
    if (rules->compress && (packet->type == WIRE_PAGES || packet->raw_length >= WIRE_PAGE_SIZE))
        return PLAN_MADE;
    if (packet->length <= rules->copy_max)
        return PLAN_COPIED;
    return rules->checksum && !rules->compress ? PLAN_MADE : rules->large;
}

/** plan_cost - what the gate takes for a packet: a bound on the memory that it holds until it is sent */
static inline uint64_t plan_cost(const struct packet *packet)
{
    return sizeof(struct wire_packet) + (packet->type == WIRE_PAGES ? packet->range : packet->raw_length);
}

/** plan_bytes - how many bytes of the write a packet stands for */
static inline uint64_t plan_bytes(const struct packet *packet)
{
    if (packet->flags & WIRE_PACKET_PARTIAL)
        return packet->pages * WIRE_PAGE_SIZE;
    return packet->type == WIRE_DATA ? packet->raw_length : packet->range;
}

/** plan_packet_end - where the last of them stands */
static inline uint64_t plan_packet_end(const struct packet *packet)
{
    return packet->offset + (packet->type == WIRE_DATA ? packet->raw_length : packet->range);
}

#endif
