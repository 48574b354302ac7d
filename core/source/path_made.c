/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The path of packets whose payload is made after the writer has been answered: their pages are gathered,
 * they are compressed, a checksum is taken. Until then the packet has its place, and holds back what is
 * behind it (path.h).
 */
#include "path.h"
#include "cleanup.h"
#include "zero.h"

#include <endian.h>
#include <string.h>

static void add_unmade(struct channel *ch, struct file *file, struct packet *packet,
                       const struct path_bytes *bytes, uint64_t share, struct path_piece *piece)
{
    (void)file;
    channel_add_unmade(ch, packet, share, &piece->entry);
    piece->packet = *packet;
    piece->raw = bytes->buf + (packet->offset - bytes->offset);
    piece->gathered = piece->packed = NULL;
}

/*
 * The payload of a WIRE_PAGES packet: a bit for each page, then the pages whose
 * bit is set. Returns its size.
 */
static uint32_t gather(const char *raw, uint64_t range, char *out)
{
    uint64_t bits[WIRE_STRIPE_SIZE / WIRE_PAGE_SIZE / 64] = {0};
    uint32_t size = wire_bitmap_size(range);

    for (size_t at = 0; at < range;) {
        bool zero;
        size_t run = zero_run(raw + at, range - at, &zero);
        if (!zero) {
            memcpy(out + size, raw + at, run);
            size += (uint32_t)run;
            for (size_t page = at / WIRE_PAGE_SIZE; page < (at + run) / WIRE_PAGE_SIZE; page++)
                bits[page / 64] |= 1ull << page % 64;
        }
        at += run;
    }
    for (size_t word = 0; word < wire_bitmap_size(range) / 8; word++)
        bits[word] = htole64(bits[word]);
    memcpy(out, bits, wire_bitmap_size(range));
    return size;
}

/*
 * Makes the payload that is sent: compressed, if it shrinks. Returns it, with
 * the packet's lengths and flags filled in; NULL when memory runs out.
 */
static const char *pack(struct compressor *c, struct path_piece *piece, bool eager, struct context **lease)
{
    struct packet *packet = &piece->packet;
    const char *payload = piece->raw;

    if (packet->type == WIRE_PAGES) {
        payload = piece->gathered = compressor_buffer(c);
        if (!payload)
            return NULL;
        packet->raw_length = gather(piece->raw, packet->range, piece->gathered);
    }
    packet->length = packet->raw_length;
    piece->packed = c ? compressor_buffer(c) : NULL;
    size_t packed =
        piece->packed ? compressor_pack(c, payload, packet->raw_length, piece->packed, eager, lease) : 0;
    if (!packed)
        return payload;
    packet->length = (uint32_t)packed;
    packet->flags = WIRE_PACKET_ZSTD;
    return piece->packed;
}

static void make(struct path_write *write, struct path_piece *piece)
{
    struct connection *conn = write->conn;
    struct packet *packet = &piece->packet;
    const char *payload = pack(conn->compressor, piece, write->eager, &write->lease);

    if (!payload) {
        struct error failure = {0};
        error_set(&failure, CAUSE_NO_MEMORY, "out of memory");
        conn->failed(conn->failed_arg, &failure, 0);
        channel_close(piece->channel, CHANNEL_DEAD);
    } else if (write->checksum) {
        packet->payload_check = wire_payload_check(payload, packet->length);
    }
    SCOPED_LOCK(&piece->channel->lock);
    uint64_t check = channel_made(packet, payload, &piece->entry);
    if (payload)
        path_count(piece->channel, write->file, packet, check);
}

static void release(struct path_write *write, struct path_piece *piece)
{
    if (!write->conn->compressor)
        return;
    compressor_return(write->conn->compressor, piece->gathered);
    compressor_return(write->conn->compressor, piece->packed);
}

const struct path path_made = {add_unmade, make, release};
