/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The payload of a packet of scattered pages (WIRE_PAGES, partial): where its parts are. Nothing is copied;
 * each page is sent from its own place.
 */
#ifndef MIGFS_GATHERED_H
#define MIGFS_GATHERED_H

#include "plan.h"

#include <sys/uio.h>

struct gathered {
    uint64_t bitmaps[2 * PLAN_WORDS]; /* as they travel */
    struct iovec parts[1 + WIRE_STRIPE_SIZE / WIRE_PAGE_SIZE];
    unsigned count; /* of parts */
};

/**
 * gathered_begin - a payload without pages so far
 * @packet: the last one of a plan_gather()
 * @pages: the plan's
 */
void gathered_begin(struct gathered *g, const struct packet *packet, const struct plan_pages *pages);

/** gathered_add - the next of the pages whose bytes are sent is at @page, and stays there */
void gathered_add(struct gathered *g, const char *page);

#endif
