/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packets to channels; see sender.h.
 *
 * The order, and its proof
 *   Claim (contract 2.1): once the writer of U has been answered, what a later write V says of the
 *   same bytes lands after what U says of them; and of two writes that overlap in time, the same
 *   one comes last everywhere.
 *
 *   One home. All that is said of a stripe (data, zero pages, its part of a hole or of a
 *   truncation) goes to one channel, file_home(): it depends on the file's number and the offset
 *   alone, and neither changes while a migration runs. A plan cuts at the stripes, so a packet has
 *   one home. A hole and a truncation are told to all channels that are concerned, and each applies
 *   them to its own stripes.
 *
 *   One place. A packet gets its place, a sequence number, under its channel's lock, and before
 *   sender_accept() returns: before the writer is answered. So V, which begins after that, finds
 *   U's numbers taken. A caller takes the locks of all channels that it needs before it gives the
 *   first place, in the order of their index (so no two wait for one another), and gives none back
 *   before the last place: of two that share a channel, one has all its places before the other one
 *   has any. Room for what is copied is reserved first, so that nothing can fail in the middle: a
 *   write is in the order as a whole, or not at all. A device is removed, and a truncation sets the
 *   size, under the locks of all its channels, so both have a place in this order, too.
 *
 *   Sent in that order. A channel takes packets off the head of its queue alone, and has one thread
 *   that sends. A packet that is still to be made stays where it is, and what is behind it waits.
 *   So that this ends, sender_finish() makes all packets of its write before it waits for any: the
 *   thread that owes the first packet that is not made waits for no other packet, nor does a thread
 *   that has the context which it may need (compression.h).
 *
 *   Received in that order. A channel is one connection, and TCP as well as a queue pair keeps its
 *   order: also between a header that is copied and a payload that comes out of a pipe, is sent
 *   without a copy, or was placed before its header was sent. At the other end one thread applies a
 *   packet before it takes the next one.
 *
 *   And these are the bytes of that write. A buffer is its writer's again when sender_finish()
 *   returns: not before the kernel has given it back, since it may have to send it again. RAM by
 *   reference has no such buffer: a page that changes in flight may go out as it was, as it is, or
 *   as half of each. Then it is dirty, its next version is another packet, in a later place on the
 *   same channel, and so lands after it; and a round ends when every buffer is back
 *   (channel_flush()). A write to the RAM waits until all that was asked for by reference before
 *   has its place.
 */
#include "sender.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const struct path *const paths[PLAN_PATHS] = {
    [PLAN_COPIED] = &path_copied, [PLAN_KEPT] = &path_kept,       [PLAN_MADE] = &path_made,
    [PLAN_MAPPED] = &path_mapped, [PLAN_SPLICED] = &path_spliced, [PLAN_GATHERED] = &path_gathered,
};

/* Called with the locks of the write's channels held: room for everything that will be copied. */
static int reserve(struct connection *conn, const struct file *file, const struct plan *plan,
                   const bool *need)
{
    for (unsigned c = 0; c < conn->channel_count; c++) {
        unsigned packets = 0;
        size_t bytes = 0;
        for (unsigned i = 0; need[c] && i < plan->count; i++) {
            const struct packet *packet = &plan->packets[i];
            if (plan_path(&plan->rules, packet) == PLAN_COPIED && file_home(file, packet->offset) == c) {
                packets++;
                bytes += packet->length;
            }
        }
        if (channel_reserve(&conn->channels[c], packets, bytes) < 0)
            return -ENOMEM;
    }
    return 0;
}

/* What of a file a packet says something. */
static uint64_t said_bytes(const struct packet *packet)
{
    if (packet->type == WIRE_TRUNCATE)
        return WIRE_OFFSET_MAX - packet->offset;
    return plan_packet_end(packet) - packet->offset;
}

/*
 * Whether the payload of a packet that is about to be added is placed: it is data of RAM as it stands, its
 * place is exposed, and nothing that is not applied says something of it. The channel's lock is held.
 */
static bool is_placed(struct connection *conn, struct channel *ch, const struct file *file,
                      const struct packet *packet, const struct path_piece *piece, struct transport_key *key,
                      uint64_t *at)
{
    return ch->places && piece && file->id == WIRE_RAM && packet->type == WIRE_DATA && !conn->compressor &&
           piece->path != &path_spliced && channel_may_place(ch, packet->offset, packet->length) &&
           placing_use(&conn->placing, packet->offset, packet->length, key, at);
}

/* The channel's lock is held. */
static void add_packet(struct connection *conn, struct channel *ch, struct file *file, struct packet *packet,
                       const struct path *path, const struct path_bytes *bytes, struct path_piece *piece)
{
    struct transport_key key;
    uint64_t at;
    bool placed = is_placed(conn, ch, file, packet, piece, &key, &at);

    packet->file = file->id;
    packet->flags |= placed ? WIRE_PACKET_PLACED : 0;
    path->add(ch, file, packet, bytes, bytes->gated ? plan_cost(packet) : 0, piece);
    if (placed)
        channel_place(&piece->entry, &key, at);
    /* A payload with a checksum has to stay as it is until the checksum is looked at. */
    if (ch->places && file->id == WIRE_RAM && (!placed || conn->hello.features & WIRE_FEATURE_CHECKSUM))
        channel_note_unapplied(ch, packet->offset, said_bytes(packet));
    atomic_store_explicit(&file->per_channel[ch->index].last_sequence, packet->sequence,
                          memory_order_relaxed);
}

/* The file has bytes up to @end. The lock of one of its channels is held. */
static void grow(struct file *file, uint64_t end)
{
    uint64_t size = atomic_load_explicit(&file->size, memory_order_relaxed);

    if (!atomic_load_explicit(&file->touched, memory_order_relaxed))
        atomic_store_explicit(&file->touched, true, memory_order_relaxed);
    while (end > size && !atomic_compare_exchange_weak(&file->size, &size, end))
        ;
}

/* Called with the locks of the write's channels held, and all that is copied reserved. */
static void place(struct sender_write *write, struct plan *plan, const struct path_bytes *bytes)
{
    struct file *file = write->common.file;

    for (unsigned i = 0; i < plan->count; i++) {
        struct packet *packet = &plan->packets[i];
        struct channel *ch = connection_home(write->common.conn, file, packet->offset);
        enum plan_path path = plan_path(&plan->rules, packet);
        struct path_piece *piece = path == PLAN_COPIED ? NULL : &write->pieces[write->count++];
        if (piece) {
            piece->path = paths[path];
            piece->channel = ch;
            piece->offset = packet->offset;
        }
        add_packet(write->common.conn, ch, file, packet, paths[path], bytes, piece);
        grow(file, plan_packet_end(packet));
        /* What was written, whatever becomes of it. */
        counter_add(&file->per_channel[ch->index].covered, plan_bytes(packet));
    }
}

/* All packets get their places, or none does. */
static int place_all(struct sender_write *write, struct plan *plan, const struct path_bytes *bytes)
{
    struct connection *conn = write->common.conn;
    int ret = 0;

    if (!connection_lock_channels(conn, write->need))
        return -EAGAIN;
    bool removed = file_is_removed(write->common.file);
    if (!removed)
        ret = reserve(conn, write->common.file, plan, write->need);
    if (!removed && ret == 0)
        place(write, plan, bytes);
    connection_unlock_channels(conn, write->need);
    if (!removed)
        return ret;
    memset(write->need, 0, sizeof(write->need));
    gate_leave(&conn->gate, bytes->gated ? plan->cost + write->surcharge : 0);
    write->surcharge = 0;
    return 0;
}

static int begin(struct sender_write *write, struct connection *conn, struct file *file,
                 const struct plan *plan)
{
    write->common = (struct path_write){.conn = conn, .file = file, .checksum = plan->rules.checksum};
    write->channels = 0;
    write->count = 0;
    write->surcharge = 0;
    write->pieces = write->few;
    memset(write->need, 0, sizeof(write->need));
    for (unsigned i = 0; i < plan->count; i++) {
        bool *need = &write->need[file_home(file, plan->packets[i].offset)];
        write->channels += !*need;
        *need = true;
    }
    if (plan->uncopied > sizeof(write->few) / sizeof(write->few[0])) {
        write->pieces = malloc(plan->uncopied * sizeof(*write->pieces));
        if (!write->pieces)
            return -ENOMEM;
    }
    return 0;
}

static void end(struct sender_write *write)
{
    if (write->surcharge)
        gate_leave(&write->common.conn->gate, write->surcharge);
    if (write->pieces != write->few)
        free(write->pieces);
}

/* Has what will be placed exposed, before any lock is taken. */
static int expose(struct connection *conn, const struct file *file, const struct plan *plan,
                  const struct interrupt *interrupt)
{
    int ret = 0;

    if (!conn->places || conn->compressor || file->id != WIRE_RAM)
        return 0;
    for (unsigned i = 0; i < plan->count && ret == 0; i++) {
        const struct packet *packet = &plan->packets[i];
        if (packet->type == WIRE_DATA && plan_path(&plan->rules, packet) != PLAN_COPIED &&
            connection_home(conn, file, packet->offset)->places)
            ret = placing_want(&conn->placing, packet->offset, packet->length, file->declared, interrupt);
    }
    return ret;
}

int sender_accept(struct sender_write *write, struct connection *conn, struct file *file, struct plan *plan,
                  const struct path_bytes *bytes, const struct interrupt *interrupt)
{
    int ret = begin(write, conn, file, plan);

    if (ret < 0)
        return ret;
    ret = expose(conn, file, plan, interrupt);
    if (ret == 0 && bytes->gated) {
        uint64_t least = plan->uncopied ? conn->gate.limit / SENDER_WRITES_MAX : 0;
        uint64_t surcharge = least > plan->cost ? least - plan->cost : 0;
        ret = gate_enter(&conn->gate, plan->cost + surcharge, interrupt);
        write->surcharge = ret == 0 ? surcharge : 0;
    }
    if (ret == 0) {
        ret = place_all(write, plan, bytes);
        if (ret < 0 && bytes->gated)
            gate_leave(&conn->gate, plan->cost);
    }
    if (ret < 0)
        end(write);
    return ret;
}

void sender_finish(struct sender_write *write)
{
    struct connection *conn = write->common.conn;

    /* All are made before any is waited for: others wait for them. */
    for (unsigned i = 0; i < write->count; i++)
        write->pieces[i].path->make(&write->common, &write->pieces[i]);
    /* A thread that is helped sends what comes before its own. */
    compressor_help(conn->compressor, write->common.lease);
    for (unsigned i = 0; i < write->count; i++) {
        struct path_piece *piece = &write->pieces[i];
        channel_finish_entry(piece->channel, &piece->entry);
        write->need[piece->channel->index] = false;
        if (piece->entry.placed)
            placing_unuse(&conn->placing, piece->offset);
        piece->path->release(&write->common, piece);
    }
    for (unsigned c = 0; c < conn->channel_count; c++) {
        if (!write->need[c])
            continue;
        /* A thread that lingers over one channel cannot see to another; and what lingers must not fill the
         * gate. */
        if (write->channels == 1 && conn->gate.limit >= 2ull * CHANNEL_ENOUGH * conn->channel_count)
            channel_linger_copied(&conn->channels[c]);
        else
            channel_send_copied(&conn->channels[c]);
    }
    end(write);
}

/* A truncation has its place in the order. The locks of all channels of the file are held. */
static void begin_truncation(struct file *file, struct packet *packet)
{
    atomic_store(&file->size, packet->offset);
    if (packet->offset > 0)
        atomic_store_explicit(&file->touched, true, memory_order_relaxed);
    packet->range = ++file->truncations;
}

/* Gives the packet to each channel of @need, whose locks are held. All of them, or none. */
static int place_everywhere(struct connection *conn, struct file *file, const bool *need,
                            struct packet *packet)
{
    static const struct path_bytes none = {.gated = true};

    for (unsigned c = 0; c < conn->channel_count; c++) {
        if (need[c] && channel_reserve(&conn->channels[c], 1, 0) < 0)
            return -ENOMEM;
    }
    if (packet->type == WIRE_TRUNCATE)
        begin_truncation(file, packet);
    for (unsigned c = 0; c < conn->channel_count; c++) {
        struct packet copy = *packet;
        if (need[c])
            add_packet(conn, &conn->channels[c], file, &copy, &path_copied, &none, NULL);
    }
    return 0;
}

/* Gives a packet without a payload to each channel of @need, in one step, and sends them. */
static int broadcast(struct connection *conn, struct file *file, const bool *need, struct packet *packet,
                     const struct interrupt *interrupt)
{
    uint64_t cost = 0;
    bool placed = false;

    for (unsigned c = 0; c < conn->channel_count; c++)
        cost += need[c] ? plan_cost(packet) : 0;
    int ret = gate_enter(&conn->gate, cost, interrupt);
    if (ret < 0)
        return ret;
    if (!connection_lock_channels(conn, need)) {
        ret = -EAGAIN;
    } else {
        if (!file_is_removed(file)) {
            ret = place_everywhere(conn, file, need, packet);
            placed = ret == 0;
        }
        connection_unlock_channels(conn, need);
    }
    if (!placed) {
        gate_leave(&conn->gate, cost);
        return ret;
    }
    for (unsigned c = 0; c < conn->channel_count; c++) {
        if (need[c])
            channel_send_copied(&conn->channels[c]);
    }
    return 0;
}

int sender_discard(struct connection *conn, struct file *file, uint64_t offset, uint64_t len,
                   const struct interrupt *interrupt)
{
    struct packet packet = {.type = WIRE_DISCARD, .offset = offset, .range = len};
    uint64_t first = offset / WIRE_STRIPE_SIZE, last = (offset + len - 1) / WIRE_STRIPE_SIZE;
    bool need[WIRE_CHANNELS_MAX] = {false};

    for (uint64_t stripe = first; stripe <= last && stripe - first < conn->channel_count; stripe++)
        need[file_home(file, stripe * WIRE_STRIPE_SIZE)] = true;
    return broadcast(conn, file, need, &packet, interrupt);
}

int sender_truncate(struct connection *conn, struct file *file, uint64_t size,
                    const struct interrupt *interrupt)
{
    struct packet packet = {.type = WIRE_TRUNCATE, .offset = size};
    bool need[WIRE_CHANNELS_MAX];

    for (unsigned c = 0; c < WIRE_CHANNELS_MAX; c++)
        need[c] = file_is_home(file, c);
    return broadcast(conn, file, need, &packet, interrupt);
}
