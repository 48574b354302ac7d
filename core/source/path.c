/* SPDX-License-Identifier: Apache-2.0 */
/* The paths of packets that are sent as they stand; see path.h. */
#include "path.h"
#include "gathered.h"

static uint64_t pages_touched(const struct packet *packet)
{
    return (packet->offset + packet->raw_length - 1) / WIRE_PAGE_SIZE - packet->offset / WIRE_PAGE_SIZE + 1;
}

void path_count(struct channel *ch, struct file *file, const struct packet *packet, uint64_t check)
{
    struct file_channel *fc = &file->per_channel[ch->index];
    uint64_t bytes, pages;

    counter_add(&fc->packets, 1);
    counter_add(&fc->digest, check);
    switch (packet->type) {
    case WIRE_DATA:
        counter_add(&fc->bytes, packet->raw_length);
        counter_add(&fc->pages, pages_touched(packet));
        break;
    case WIRE_ZERO:
        counter_add(&fc->zero_pages, packet->range / WIRE_PAGE_SIZE);
        break;
    case WIRE_PAGES:
        bytes = packet->raw_length - wire_pages_head(packet);
        pages = bytes / WIRE_PAGE_SIZE;
        counter_add(&fc->bytes, bytes);
        counter_add(&fc->pages, pages);
        counter_add(&fc->zero_pages, plan_bytes(packet) / WIRE_PAGE_SIZE - pages);
        break;
    case WIRE_DISCARD:
        bytes = file_home_bytes(file, ch->index, packet->offset, packet->range);
        counter_add(&fc->discarded_bytes, bytes);
        counter_add(&fc->covered, bytes);
        break;
    default:
        break;
    }
}

void path_nothing_to_make(struct path_write *write, struct path_piece *piece)
{
    (void)write;
    (void)piece;
}

void path_nothing_to_release(struct path_write *write, struct path_piece *piece)
{
    (void)write;
    (void)piece;
}

static void add_copied(struct channel *ch, struct file *file, struct packet *packet,
                       const struct path_bytes *bytes, uint64_t share, struct path_piece *piece)
{
    /* A packet without a payload has no bytes. */
    const char *payload = packet->length ? bytes->buf + (packet->offset - bytes->offset) : NULL;

    (void)piece;
    path_count(ch, file, packet, channel_add_copied(ch, packet, payload, share));
}

const struct path path_copied = {add_copied, path_nothing_to_make, path_nothing_to_release};

static void add_kept(struct channel *ch, struct file *file, struct packet *packet,
                     const struct path_bytes *bytes, uint64_t share, struct path_piece *piece)
{
    const char *payload = bytes->buf + (packet->offset - bytes->offset);

    path_count(ch, file, packet, channel_add(ch, packet, payload, share, &piece->entry));
}

const struct path path_kept = {add_kept, path_nothing_to_make, path_nothing_to_release};

static void add_mapped(struct channel *ch, struct file *file, struct packet *packet,
                       const struct path_bytes *bytes, uint64_t share, struct path_piece *piece)
{
    path_count(ch, file, packet,
               channel_add_staying(ch, packet, bytes->map + packet->offset, share, &piece->entry));
}

const struct path path_mapped = {add_mapped, path_nothing_to_make, path_nothing_to_release};

static void add_spliced(struct channel *ch, struct file *file, struct packet *packet,
                        const struct path_bytes *bytes, uint64_t share, struct path_piece *piece)
{
    path_count(ch, file, packet, channel_add_pipe(ch, packet, bytes->pipe, share, &piece->entry));
}

const struct path path_spliced = {add_spliced, path_nothing_to_make, path_nothing_to_release};

static void add_gathered(struct channel *ch, struct file *file, struct packet *packet,
                         const struct path_bytes *bytes, uint64_t share, struct path_piece *piece)
{
    const struct gathered *g = bytes->gathered;

    path_count(ch, file, packet, channel_add_parts(ch, packet, g->parts, g->count, share, &piece->entry));
}

const struct path path_gathered = {add_gathered, path_nothing_to_make, path_nothing_to_release};
