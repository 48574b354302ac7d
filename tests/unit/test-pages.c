/* SPDX-License-Identifier: Apache-2.0 */
/* Packets of scattered pages at the destination: wherever they come from and go to, each page is in its place. */
#include "blocked.h"
#include "check.h"
#include "guard.h"
#include "image.h"
#include "incoming.h"
#include "peer.h"
#include "rig.h"
#include "scratch.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

TestSuite(pages, .init = scratch_make, .fini = scratch_remove);

#define PAGE     4096ull
#define STRIPE   ((uint64_t)WIRE_STRIPE_SIZE)
#define RAM_SIZE (4 * STRIPE)

static struct rig rig;
static struct peer peer;
static struct migration *m;
static uint8_t payload[64 + WIRE_STRIPE_SIZE], model[RAM_SIZE], got[RAM_SIZE];
static uint64_t said; /* pages, by all packets */

static const char *place(void)
{
    static char text[128];

    snprintf(text, sizeof(text), "unix:%s/socket", scratch);
    return text;
}

static void open_ram(uint64_t features, uint64_t size)
{
    peer_open_with(&peer, rig.address, "vm", 2, features);
    cr_assert(eq(int, (int)peer_announce(&peer, WIRE_RAM, size, "ram"), CAUSE_NONE));
    m = rig_arrived(&rig, "vm");
}

static void end(void)
{
    peer_close(&peer);
    rig_await_end(m);
    migration_put(m);
}

/* Makes a packet, which is said of the pages of @bits: 'd' with data, '0' zero, anything else: of those nothing. */
static struct packet make(uint64_t offset, const char *bits, unsigned seed)
{
    uint64_t pages = strlen(bits), words = (pages + 63) / 64;
    struct packet packet = {
        .type = WIRE_PAGES, .flags = WIRE_PACKET_PARTIAL, .offset = offset, .range = pages * PAGE};
    uint8_t *to = payload + 16 * words;

    memset(payload, 0, 16 * words);
    for (uint64_t page = 0; page < pages; page++) {
        uint8_t *in = model + offset + page * PAGE, bit = (uint8_t)(1u << page % 8);
        if (bits[page] == 'd') {
            for (uint64_t i = 0; i < PAGE; i++)
                to[i] = (uint8_t)(i * 7 + page + seed + i / 251);
            memcpy(in, to, PAGE);
            to += PAGE;
            payload[page / 8] |= bit;
        } else if (bits[page] == '0') {
            memset(in, 0, PAGE);
        } else {
            continue;
        }
        payload[8 * words + page / 8] |= bit;
        said++;
    }
    packet.length = packet.raw_length = (uint32_t)(to - payload);
    packet.payload_check = wire_payload_check(payload, packet.length);
    return packet;
}

/* Sends it in pieces of @piece bytes at most; a destination that has given up takes no more of it. */
static void send_in_pieces(unsigned channel, struct packet packet, size_t piece)
{
    struct wire_packet wire;

    packet.channel = channel;
    packet.sequence = ++peer.sequence[channel];
    wire_packet_encode(&packet, &wire);
    size_t all = sizeof(wire) + packet.length;
    uint8_t *bytes = malloc(all);
    memcpy(bytes, &wire, sizeof(wire));
    memcpy(bytes + sizeof(wire), payload, packet.length);
    int ret = 0;
    for (size_t at = 0, n; at < all && ret == 0; at += n) {
        n = all - at < piece ? all - at : piece;
        struct iovec part = {bytes + at, n};
        ret = transport_send(peer.data[channel], &part, 1);
    }
    free(bytes);
}

static void check_ram(uint64_t id, const char *when)
{
    struct file *ram = migration_file(m, WIRE_RAM);

    cr_assert(peer_sync(&peer, id), "%s: %s", when, m->failure.message);
    uint64_t size = image_size(&ram->image);
    cr_assert(le(u64, size, RAM_SIZE));
    cr_expect(eq(long, file_read(ram, 0, got, size, true, NULL), (long)size));
    for (uint64_t page = 0; page < size / PAGE; page++)
        cr_assert(zero(int, memcmp(got + page * PAGE, model + page * PAGE, PAGE)), "%s: page %lu", when,
                  (unsigned long)page);
}

static void random_bits(char *bits, size_t pages, unsigned *state)
{
    static const char *const kinds[] = {"d...", "d0..", "dd0.", "d", "d0"};
    const char *kind = kinds[rand_r(state) / 7 % 5];

    for (size_t i = 0; i < pages; i++)
        bits[i] = kind[rand_r(state) / 7 % strlen(kind)];
    bits[0] = 'd';
    bits[pages] = '\0';
}

/* What is random comes again and again over what is there, in pieces of all sizes, with and without a checksum. */
Test(pages, random)
{
    static const size_t pieces[] = {SIZE_MAX, 1u << 20, 70000, 4096, 1000, 4160};
    unsigned state = 1;
    char bits[257];

    guard_setup();
    for (unsigned round = 0; round < 4; round++) {
        memset(model, 0, sizeof(model));
        said = 0;
        rig_init(&rig, place(), NULL);
        open_ram(round % 2 ? WIRE_FEATURE_CHECKSUM : 0, round < 2 ? RAM_SIZE : 0);
        for (unsigned i = 0; i < 120; i++) {
            unsigned stripe = (unsigned)rand_r(&state) / 3 % 4, first = (unsigned)rand_r(&state) / 3 % 256;
            random_bits(bits, 1 + (unsigned)rand_r(&state) / 3 % (256 - first), &state);
            struct packet packet = make(stripe * STRIPE + first * PAGE, bits, i);
            send_in_pieces(stripe % 2, packet, pieces[(unsigned)rand_r(&state) / 3 % ARRAY_LENGTH(pieces)]);
            if (i % 20 == 0)
                check_ram(i + 1, "in between");
        }
        check_ram(1000, round % 2 ? "checked" : "not checked");
        struct file_totals totals = file_totals(migration_file(m, WIRE_RAM));
        cr_expect(eq(u64, totals.covered, said * PAGE), "what nothing was said of does not count");
        end();
        rig_fini(&rig);
    }
}

/* A page more, of which nothing is said, stays as it is; the map of what has arrived has the others. */
Test(pages, what_is_not_said)
{
    rig_init(&rig, place(), NULL);
    memset(model, 0, sizeof(model));
    open_ram(0, RAM_SIZE);
    struct packet packet = make(0, "dddddddd", 1);
    send_in_pieces(0, packet, SIZE_MAX);
    packet = make(0, "d.0.d", 2);
    send_in_pieces(0, packet, SIZE_MAX);
    packet = make(2 * STRIPE, "d..0", 3);
    send_in_pieces(0, packet, SIZE_MAX);
    check_ram(1, "after three");
    struct image *image = &migration_file(m, WIRE_RAM)->image;
    uint64_t bits = 0;
    cr_assert(eq(sz, image_read_map(image, 512 / 8, &bits, sizeof(bits)), sizeof(bits)));
    cr_expect(eq(u64, le64toh(bits), 1 | 1 << 3), "a zero page has arrived, too");
    cr_expect(eq(long, image_seek(image, 2 * STRIPE, true), (long)(2 * STRIPE)));
    cr_expect(eq(long, image_seek(image, 2 * STRIPE + PAGE, true), -ENXIO), "but has no memory");
    end();
    rig_fini(&rig);
}

Test(pages, damaged)
{
    rig_init(&rig, place(), NULL);
    for (unsigned where = 0; where < 3; where++) {
        open_ram(WIRE_FEATURE_CHECKSUM, RAM_SIZE);
        struct packet packet = make(0, "d0.d.d", 1);
        payload[(const unsigned[]){16, 16 + 5000, 16 + 3 * 4096 - 1}[where]] ^= 1;
        send_in_pieces(0, packet, SIZE_MAX);
        cr_expect(eq(int, (int)rig_await_end(m), STATE_FAILED));
        cr_expect(eq(int, (int)m->failure.cause, CAUSE_PROTOCOL));
        cr_expect(ne(ptr, strstr(m->failure.message, "damaged"), NULL), "%s", m->failure.message);
        end();
    }
    rig_fini(&rig);
}

/* The end of the stream in the bits, and in each part of the pages. */
Test(pages, cut)
{
    static const size_t cuts[] = {1, 15, 16, 17, 16 + 4096, 16 + 4097, 16 + 3 * 4096 - 1};

    rig_init(&rig, place(), NULL);
    for (size_t i = 0; i < ARRAY_LENGTH(cuts); i++) {
        struct wire_packet wire;
        open_ram(0, RAM_SIZE);
        struct packet packet = make(0, "d0.d.d", 1);
        packet.sequence = ++peer.sequence[0];
        wire_packet_encode(&packet, &wire);
        struct iovec parts[] = {{&wire, sizeof(wire)}, {payload, cuts[i]}};
        cr_assert(zero(int, transport_send(peer.data[0], parts, 2)));
        transport_finish(peer.data[0]);
        cr_expect(eq(int, (int)rig_await_end(m), STATE_FAILED));
        cr_expect(eq(int, (int)m->failure.cause, CAUSE_RESET), "%s", m->failure.message);
        end();
    }
    rig_fini(&rig);
}

/* Somebody has truncated the memory that pages are stored into: that is said, and harms nobody. */
Test(pages, memory_went_away)
{
    guard_setup();
    rig_init(&rig, place(), NULL);
    for (unsigned small = 0; small < 2; small++) {
        open_ram(0, RAM_SIZE);
        struct packet packet = make(0, "d.d.d.d", 1);
        send_in_pieces(0, packet, SIZE_MAX);
        cr_assert(peer_sync(&peer, 1));
        cr_assert(zero(int, ftruncate(migration_file(m, WIRE_RAM)->image.memory.fd, 0)));
        packet = make(0, "d.d.d.d", 2);
        send_in_pieces(0, packet, small ? 1000 : SIZE_MAX);
        cr_expect(eq(int, (int)rig_await_end(m), STATE_FAILED));
        cr_expect(eq(int, (int)m->failure.cause, CAUSE_IO), "%s", m->failure.message);
        cr_expect(ne(ptr, strstr(m->failure.message, "truncated"), NULL), "%s", m->failure.message);
        end();
    }
    rig_fini(&rig);
}
