/* SPDX-License-Identifier: Apache-2.0 */
/* What has been sent, and may have to be sent again; see kept.h. */
#include "kept.h"
#include "guard.h"

#include <stdlib.h>

void kept_init(struct kept *kept, uint64_t max)
{
    *kept = (struct kept){.max = max};
    kept->tail = &kept->first;
}

int kept_copy(struct channel_entry *entries)
{
    for (struct channel_entry *entry = entries; entry; entry = entry->next) {
        struct iovec whole = {(void *)(uintptr_t)entry->payload, entry->length};
        bool in_parts = entry->place == CHANNEL_PARTS;
        const struct iovec *parts = in_parts ? entry->parts : &whole;
        if (entry->place == CHANNEL_SLICE || entry->orphan)
            continue;
        struct channel_entry *copy = malloc(sizeof(*copy) + (entry->stays ? 0 : entry->length));
        if (!copy)
            return -ENOMEM;
        *copy = (struct channel_entry){
            .place = CHANNEL_MEMORY,
            .header = entry->header,
            .payload = entry->stays ? entry->payload : copy + 1,
            .stays = entry->stays,
            .orphan = true,
            .length = entry->length,
            .bytes = entry->bytes,
            .last_sequence = entry->last_sequence,
        };
        entry->copy = copy;
        char *to = (char *)(copy + 1);
        for (unsigned i = 0; !entry->stays && i < (in_parts ? entry->part_count : 1); i++) {
            if (guard_copy(to, parts[i].iov_base, parts[i].iov_len) < 0)
                return -EFAULT;
            to += parts[i].iov_len;
        }
    }
    return 0;
}

/* What an entry has in the stream. */
static uint64_t stream_bytes(const struct channel_entry *entry)
{
    return entry->length + (entry->place == CHANNEL_SLICE ? 0 : sizeof(entry->header) - entry->skip);
}

struct channel_entry *kept_add(struct kept *kept, struct channel_entry *entry)
{
    struct channel_entry *own = entry->place == CHANNEL_SLICE || entry->orphan ? entry : entry->copy;

    if (!own)
        return NULL;
    own->next = NULL;
    *kept->tail = own;
    kept->tail = &own->next;
    kept->bytes += stream_bytes(own);
    return own;
}

static struct channel_entry *take_first(struct kept *kept)
{
    struct channel_entry *entry = kept->first;
    uint64_t size = stream_bytes(entry);

    kept->first = entry->next;
    if (!kept->first)
        kept->tail = &kept->first;
    kept->bytes -= size;
    kept->from += size;
    return entry;
}

struct channel_entry *kept_take_applied(struct kept *kept)
{
    return kept->first && kept->first->last_sequence <= kept->applied ? take_first(kept) : NULL;
}

struct channel_entry *kept_take_received(struct kept *kept, uint64_t received)
{
    struct channel_entry *entry = kept->first;

    if (entry && kept->from + stream_bytes(entry) <= received)
        return take_first(kept);
    uint32_t part = (uint32_t)(received - kept->from);
    if (!part)
        return NULL;
    if (entry->place == CHANNEL_SLICE) {
        entry->payload = (const char *)entry->payload + part;
        entry->length -= part;
    } else {
        entry->skip += part;
    }
    kept->from += part;
    kept->bytes -= part;
    return NULL;
}

void kept_put_back(struct kept *kept, struct channel_entry **head, struct channel_entry ***tail)
{
    if (!kept->first)
        return;
    *kept->tail = *head;
    if (!*head)
        *tail = kept->tail;
    *head = kept->first;
    kept->first = NULL;
    kept->tail = &kept->first;
    kept->bytes = 0;
}
