/* SPDX-License-Identifier: Apache-2.0 */
/* What a channel sends in one go; see batch.h. */
#include "batch.h"

#include <string.h>

void batch_begin(struct batch *batch, struct channel_entry *entries)
{
    batch->entries = entries;
    batch->n = 0;
    batch->bytes = batch->large = batch->uncopied = batch->placed = 0;
    batch->counted = false;
    batch->piped = NULL;
    batch->zerocopy = NULL;
}

static void add(struct batch *batch, const void *buf, size_t len)
{
    batch->iov[batch->n++] = (struct iovec){(void *)(uintptr_t)buf, len};
    batch->bytes += len;
}

static void add_parts(struct batch *batch, const struct channel_entry *entry)
{
    memcpy(batch->iov + batch->n, entry->parts, entry->part_count * sizeof(*entry->parts));
    batch->n += (int)entry->part_count;
    batch->bytes += entry->length;
}

/* An entry of which the destination has the beginning. */
static void add_rest(struct batch *batch, const struct channel_entry *entry)
{
    uint32_t of_header = (uint32_t)sizeof(entry->header) - entry->skip;

    if (entry->skip < sizeof(entry->header))
        add(batch, (const char *)&entry->header + entry->skip, of_header);
    else
        of_header = 0;
    uint32_t skip = of_header ? 0 : entry->skip - (uint32_t)sizeof(entry->header);
    if (entry->length > skip)
        add(batch, (const char *)entry->payload + skip, entry->length - skip);
}

bool batch_has_room(const struct batch *batch, const struct channel_entry *entry)
{
    int parts = entry->place == CHANNEL_PARTS ? 1 + (int)entry->part_count : 2;

    return batch->n + parts <= TRANSPORT_IOV_MAX;
}

void batch_add(struct batch *batch, struct channel_entry *entry, bool zerocopy)
{
    if (entry->skip) {
        add_rest(batch, entry);
        return;
    }
    if (entry->place != CHANNEL_SLICE)
        add(batch, &entry->header, sizeof(entry->header));
    if (zerocopy)
        batch->zerocopy = entry;
    else if (entry->place == CHANNEL_PIPE)
        batch->piped = entry;
    else if (entry->place == CHANNEL_PARTS)
        add_parts(batch, entry);
    else if (entry->placed)
        batch->placed += entry->length;
    else if (entry->length)
        add(batch, entry->payload, entry->length);
}
