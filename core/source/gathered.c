/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of a packet of scattered pages; see gathered.h. */
#include "gathered.h"

#include <assert.h>
#include <endian.h>

void gathered_begin(struct gathered *g, const struct packet *packet, const struct plan_pages *pages)
{
    uint64_t first = packet->offset % WIRE_STRIPE_SIZE / WIRE_PAGE_SIZE,
             count = packet->range / WIRE_PAGE_SIZE;
    unsigned words = wire_bitmap_size(packet->range) / 8;

    *g = (struct gathered){.count = 1};
    for (uint64_t n = 0; n < count; n++) {
        uint64_t page = first + n;
        uint64_t data = pages->data[page / 64] >> page % 64 & 1,
                 said = pages->said[page / 64] >> page % 64 & 1;
        g->bitmaps[n / 64] |= data << n % 64;
        g->bitmaps[words + n / 64] |= said << n % 64;
    }
    for (unsigned word = 0; word < 2 * words; word++)
        g->bitmaps[word] = htole64(g->bitmaps[word]);
    g->parts[0] = (struct iovec){g->bitmaps, 16 * words};
}

void gathered_add(struct gathered *g, const char *page)
{
    struct iovec *last = &g->parts[g->count - 1];

    if (g->count > 1 && (const char *)last->iov_base + last->iov_len == page) {
        last->iov_len += WIRE_PAGE_SIZE;
        return;
    }
    assert(g->count < sizeof(g->parts) / sizeof(g->parts[0]));
    g->parts[g->count++] = (struct iovec){(void *)(uintptr_t)page, WIRE_PAGE_SIZE};
}
