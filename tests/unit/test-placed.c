/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Placed payloads: a channel in front of a transport that places (placer.h), and whole migrations over it.
 */
#include "blocked.h"
#include "channel.h"
#include "check.h"
#include "cleanup.h"
#include "link.h"
#include "outgoing.h"
#include "peer.h"
#include "placer.h"
#include "reference.h"
#include "rig.h"

#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define STRIPE ((size_t)WIRE_STRIPE_SIZE)
#define PAGE   ((size_t)WIRE_PAGE_SIZE)
#define LARGE  (64u << 10)

/*
 * A channel
 */

static struct link wires;
static struct channel ch;
static struct gate gate;
static struct transport_key key;
static uint8_t *remote; /* what the key stands for: a stripe */
static uint8_t payload[2 * LARGE];
static atomic_int failed_code;

static void note_failure(void *arg, unsigned index, int code)
{
    (void)arg, (void)index;
    atomic_store(&failed_code, code);
    transport_shutdown(wires.a);
}

static void begin(void)
{
    placer_begin();
    link_pair(&wires);
    placer_wrap(wires.a);
    placer_wrap(wires.b);
    remote = calloc(1, STRIPE);
    cr_assert(zero(int, transport_expose(wires.b, remote, STRIPE, &key)));
    gate_init(&gate, 1u << 30);
    channel_init(&ch, 0, wires.a, &gate, note_failure, NULL);
    cr_assert(ch.places);
    cr_assert(zero(int, channel_set_placing(&ch)));
    pattern(payload, sizeof(payload), 1);
}

static void end(void)
{
    channel_fini(&ch);
    transport_withdraw(wires.b, &key);
    transport_close(wires.b);
    free(remote);
    gate_fini(&gate);
    cr_expect(zero(uint, placer_get().violations));
}

TestSuite(placed_channel, .init = begin, .fini = end);

static struct packet packet_at(uint64_t offset, uint32_t len, bool placed)
{
    return (struct packet){.type = WIRE_DATA,
                           .offset = offset,
                           .length = len,
                           .raw_length = len,
                           .flags = placed ? WIRE_PACKET_PLACED : 0};
}

/* Queues a payload, placed. */
static void add_placed(struct channel_entry *entry, uint64_t offset, const void *bytes, uint32_t len)
{
    struct packet packet = packet_at(offset, len, true);

    gate_enter(&gate, len, NULL);
    pthread_mutex_lock(&ch.lock);
    channel_add(&ch, &packet, bytes, len, entry);
    channel_place(entry, &key, offset);
    pthread_mutex_unlock(&ch.lock);
}

/* Queues one through the stream, that says something of its bytes. */
static void add_noted(struct channel_entry *entry, uint64_t offset, const void *bytes, uint32_t len)
{
    struct packet packet = packet_at(offset, len, false);

    gate_enter(&gate, len, NULL);
    pthread_mutex_lock(&ch.lock);
    channel_add(&ch, &packet, bytes, len, entry);
    channel_note_unapplied(&ch, offset, len);
    pthread_mutex_unlock(&ch.lock);
}

static bool may_place(uint64_t offset, uint64_t len)
{
    SCOPED_LOCK(&ch.lock);
    return channel_may_place(&ch, offset, len);
}

static void tell(uint64_t count)
{
    count = htole64(count);
    cr_assert(zero(int, link_send(wires.b, &count, sizeof(count))));
}

static struct wire_packet next_header(void)
{
    struct wire_packet header;

    cr_assert(zero(int, transport_recv_all(wires.b, &header, sizeof(header), NULL)));
    return header;
}

static void let(bool hold)
{
    struct placer want = placer_get();

    want.hold = hold;
    placer_set(&want);
}

Test(placed_channel, there_before_its_header)
{
    struct channel_entry entry;
    struct packet packet;
    struct error err;

    add_placed(&entry, 5000, payload, LARGE);
    channel_finish_entry(&ch, &entry);
    struct wire_packet header = next_header();
    CHECK_OK(wire_packet_decode(&header, &packet, &err));
    cr_expect(eq(int, packet.flags, WIRE_PACKET_PLACED));
    cr_expect(eq(u64, packet.offset, 5000));
    cr_expect(eq(u32, packet.length, LARGE));
    cr_expect(zero(int, memcmp(remote + 5000, payload, LARGE)));
    struct packet small = packet_at(0, 1, false);
    channel_reserve(&ch, 1, 1);
    pthread_mutex_lock(&ch.lock);
    channel_add_copied(&ch, &small, "x", 0);
    pthread_mutex_unlock(&ch.lock);
    channel_send_copied(&ch);
    header = next_header();
    CHECK_OK(wire_packet_decode(&header, &packet, &err));
    cr_expect(zero(int, packet.flags), "the stream had the header alone");
    cr_expect(eq(u64, ch.placed_bytes, LARGE));
    cr_expect(eq(u64, ch.wire_bytes, LARGE + 2 * sizeof(header) + 1));
}

/* What is placed counts as sent when it is decided how fast that may be. */
Test(placed_channel, paced)
{
    const double bytes = LARGE + sizeof(struct wire_packet);
    struct channel_entry entry;
    struct pace pace;

    pace_init(&pace, 1);
    pace_close(&pace); /* it takes, and does not wait: eighteen hours */
    ch.pace = &pace;
    add_placed(&entry, 0, payload, LARGE);
    channel_finish_entry(&ch, &entry);
    cr_expect(le(dbl, pace.tokens, 1000 - bytes));
    cr_expect(ge(dbl, pace.tokens, -bytes));
    cr_expect(not(ch.paced));
    next_header();
    pace_fini(&pace);
}

struct finisher {
    struct worker worker;
    struct channel_entry entry;
};

static void finish_work(void *arg)
{
    struct finisher *f = arg;

    channel_finish_entry(&ch, &f->entry);
}

struct flusher {
    struct worker worker;
    int ret;
};

static void flush_work(void *arg)
{
    struct flusher *f = arg;

    f->ret = channel_flush(&ch, UINT64_MAX, NULL);
}

static void back_when_told(bool copied)
{
    struct placer want = placer_get();
    struct finisher f;
    struct flusher flusher = {.ret = 1};

    want.hold = true;
    want.copied = copied;
    placer_set(&want);
    add_placed(&f.entry, 0, payload, LARGE);
    worker_start(&f.worker, finish_work, &f);
    next_header();
    worker_start(&flusher.worker, flush_work, &flusher);
    pthread_mutex_lock(&ch.lock);
    cr_expect(not(f.entry.done), "its ticket is not back");
    cr_expect(zero(u64, ch.sent_sequence));
    cr_expect(zero(u64, ch.placed_bytes), "it counts when it is complete");
    pthread_mutex_unlock(&ch.lock);
    cr_expect(not(flusher.worker.done));
    cr_expect(not(f.worker.done));
    let(false);
    worker_join(&f.worker);
    worker_join(&flusher.worker);
    cr_expect(zero(int, flusher.ret));
    cr_expect(eq(u64, ch.sent_sequence, 1));
    cr_expect(eq(u64, ch.placed_bytes, LARGE));
}

Test(placed_channel, its_owners_when_the_ticket_is_back)
{
    back_when_told(false);
}

/* A transport that copies has not written yet, either: the key is in use until then. */
Test(placed_channel, done_when_it_is_complete)
{
    back_when_told(true);
}

Test(placed_channel, not_over_what_may_be_unapplied)
{
    struct channel_entry entry;

    cr_expect(may_place(0, STRIPE));
    add_noted(&entry, PAGE, payload, LARGE);
    channel_finish_entry(&ch, &entry);
    cr_expect(may_place(0, PAGE));
    cr_expect(not(may_place(0, PAGE + 1)));
    cr_expect(not(may_place(PAGE + LARGE - 1, 1)));
    cr_expect(may_place(PAGE + LARGE, PAGE));
    add_noted(&entry, 0, payload, LARGE);
    channel_finish_entry(&ch, &entry);
    tell(1);
    while (!may_place(PAGE + LARGE - 1, 1))
        ;
    cr_expect(not(may_place(PAGE, 1)), "the second one said so, too");
    tell(2);
    while (!may_place(0, STRIPE))
        ;
}

Test(placed_channel, counts_that_cannot_be)
{
    struct channel_entry entry;
    uint8_t piece[3] = {0};

    add_noted(&entry, 0, payload, LARGE);
    channel_finish_entry(&ch, &entry);
    tell(2);
    tell(UINT64_MAX);
    tell(0);
    cr_assert(zero(int, link_send(wires.b, piece, sizeof(piece))), "the first part of one");
    for (unsigned i = 0; i < 10; i++)
        cr_expect(not(may_place(0, 1)), "more than was sent");
    uint8_t rest[5] = {0};
    cr_assert(zero(int, link_send(wires.b, rest, sizeof(rest))));
    tell(1);
    while (!may_place(0, 1))
        ;
}

Test(placed_channel, gives_everything_back_when_it_dies)
{
    struct finisher f[3];

    let(true);
    for (unsigned i = 0; i < 3; i++) {
        add_placed(&f[i].entry, i * LARGE, payload, LARGE);
        worker_start(&f[i].worker, finish_work, &f[i]);
    }
    for (unsigned i = 0; i < 3; i++)
        next_header();
    channel_close(&ch, CHANNEL_DEAD);
    transport_shutdown(wires.a);
    for (unsigned i = 0; i < 3; i++)
        worker_join(&f[i].worker);
    cr_expect(eq(int, channel_flush(&ch, UINT64_MAX, NULL), -ECONNRESET));
    cr_expect(zero(u64, gate.used));
    cr_expect(zero(u64, ch.placed_bytes), "nobody knows whether it arrived");
}

/* It breaks after the first of two that are sent together: that one may be on its way, and is waited for. */
Test(placed_channel, breaks_in_the_middle)
{
    struct placer want = placer_get();
    struct channel_entry first;
    struct finisher second;

    want.break_at = 2;
    want.hold = true;
    placer_set(&want);
    add_placed(&first, 0, payload, LARGE);
    add_placed(&second.entry, LARGE, payload, LARGE);
    worker_start(&second.worker, finish_work, &second);
    channel_finish_entry(&ch, &first);
    worker_join(&second.worker);
    cr_expect(eq(int, atomic_load(&failed_code), -ECONNRESET));
    cr_expect(zero(u64, gate.used));
    channel_close(&ch, CHANNEL_DEAD);
    channel_disconnect(&ch);
    cr_expect(eq(uint, placer_get().places, 2));
}

/*
 * Whole migrations
 */

#define IMAGE (24 * STRIPE)

static struct rig rig;
static struct migration *source, *destination;
static uint8_t *model;

static void open_both(unsigned channels, bool checksum, uint64_t declared)
{
    struct error err;

    placer_begin();
    rig_init(&rig, "rdma:127.0.0.1:0", NULL);
    source = rig_make(&rig, "vm", channels, "");
    source->settings.checksum_choice = checksum ? CHOICE_ON : CHOICE_OFF;
    if (declared)
        CHECK_OK(outgoing_truncate(source, migration_file(source, WIRE_RAM), declared, NULL, &err));
    CHECK_OK(outgoing_start(source, NULL, &err));
    destination = rig_arrived(&rig, "vm");
    rig_find_file(destination, "ram");
    model = calloc(1, IMAGE);
}

static void close_both(void)
{
    struct placer after = placer_get();

    migration_put(source);
    migration_put(destination);
    rig_fini(&rig);
    free(model);
    after = placer_get();
    cr_expect(zero(uint, after.violations));
    cr_expect(zero(uint, after.keys), "no key is left");
}

static void sync_both(void)
{
    struct error err;

    CHECK_OK(outgoing_sync(source, migration_file(source, WIRE_RAM), NULL, &err));
}

/* A thread that writes to stripes of its own: random writes, rewrites, zero pages and holes. */
struct writer {
    struct worker worker;
    unsigned index, count, seed, steps;
};

static unsigned draw(struct writer *w, unsigned below)
{
    w->seed = w->seed * 1103515245u + 12345u;
    return (w->seed >> 10) % below;
}

static void step(struct writer *w, uint8_t *buf)
{
    struct file *ram = migration_file(source, WIRE_RAM);
    unsigned stripe = w->index + w->count * draw(w, (unsigned)(IMAGE / STRIPE) / w->count);
    uint64_t offset = stripe * STRIPE;
    size_t at, len;
    struct error err;

    switch (draw(w, 8)) {
    case 0: /* zero pages */
        at = draw(w, 200) * PAGE;
        len = (1 + draw(w, 50)) * PAGE;
        memset(buf, 0, len);
        break;
    case 1: /* a hole */
        at = draw(w, 900000);
        len = 1 + draw(w, 140000);
        CHECK_OK(outgoing_discard(source, ram, offset + at, len, NULL, &err));
        memset(model + offset + at, 0, len);
        return;
    case 2: /* a small write */
        at = draw(w, 1000000);
        len = 1 + draw(w, 5000);
        pattern(buf, len, w->seed);
        break;
    case 3: /* pages of which some are zero */
        at = draw(w, 150) * PAGE;
        len = 60 * PAGE;
        pattern(buf, len, w->seed);
        for (unsigned i = 0; i < 20; i++)
            memset(buf + draw(w, 60) * PAGE, 0, PAGE);
        break;
    default: /* a large one, often to where one was before */
        at = draw(w, 8) * 65536 + draw(w, 3) * 777;
        len = 8192 + draw(w, 300000);
        pattern(buf, len, w->seed);
        break;
    }
    len = len < STRIPE - at ? len : STRIPE - at;
    rig_write(source, ram, buf, len, offset + at);
    memcpy(model + offset + at, buf, len);
    memset(buf, 0xee, len); /* it is the writer's again */
}

static void write_work(void *arg)
{
    struct writer *w = arg;
    uint8_t *buf = malloc(STRIPE);

    for (unsigned i = 0; i < w->steps; i++)
        step(w, buf);
    free(buf);
}

static void round_of(unsigned threads, unsigned steps, unsigned seed)
{
    struct writer writers[8];

    for (unsigned i = 0; i < threads; i++) {
        writers[i] = (struct writer){.index = i, .count = threads, .seed = seed * 31 + i, .steps = steps};
        worker_start(&writers[i].worker, write_work, &writers[i]);
    }
    for (unsigned i = 0; i < threads; i++)
        worker_join(&writers[i].worker);
    sync_both();
    rig_compare(destination, WIRE_RAM, model, IMAGE);
}

static void fill_all(void)
{
    struct file *ram = migration_file(source, WIRE_RAM);

    pattern(model, IMAGE, 99);
    rig_write(source, ram, model, IMAGE, 0);
}

static void complete_both(void)
{
    struct error err;

    CHECK_OK(outgoing_complete(source, NULL, &err));
    cr_expect(eq(int, (int)rig_await_end(destination), STATE_COMPLETED));
    rig_compare(destination, WIRE_RAM, model, IMAGE);
}

static uint64_t placed_bytes(struct migration *m, unsigned channels)
{
    uint64_t sum = 0;

    for (unsigned c = 0; c < channels; c++) {
        struct channel_record record = {0};
        migration_operations(m)->count(m, c, &record);
        sum += record.placed_bytes;
    }
    return sum;
}

static void run_rounds(unsigned channels, bool checksum, unsigned threads)
{
    open_both(channels, checksum, IMAGE);
    fill_all();
    for (unsigned i = 0; i < 5; i++)
        round_of(threads, 40, i + 1);
    struct placer after = placer_get();
    cr_expect(lt(uint, 20, after.placed), "%u placed", after.placed);
    cr_expect(eq(u64, placed_bytes(source, channels), after.placed_bytes), "all are complete, and counted");
    cr_expect(eq(u64, placed_bytes(destination, channels), after.placed_bytes));
    complete_both();
    close_both();
}

Test(placed, last_write_wins)
{
    run_rounds(2, false, 4);
}

Test(placed, last_write_wins_with_checksums)
{
    run_rounds(3, true, 4);
}

Test(placed, one_channel)
{
    run_rounds(1, false, 3);
}

/* A transport that copies: its writes are in flight, though no buffer is. */
Test(placed, copied_by_the_transport)
{
    struct placer want;

    open_both(2, false, IMAGE);
    want = placer_get();
    want.copied = true;
    placer_set(&want);
    fill_all();
    for (unsigned i = 0; i < 3; i++)
        round_of(4, 40, i + 7);
    complete_both();
    close_both();
}

/* Not one chunk: all goes through the stream. */
Test(placed, nothing_can_be_exposed)
{
    struct placer want;

    open_both(2, false, IMAGE);
    want = placer_get();
    want.most = 0;
    placer_set(&want);
    fill_all();
    round_of(3, 30, 5);
    complete_both();
    cr_expect(zero(uint, placer_get().placed));
    cr_expect(lt(uint, 0, placer_get().refusals));
    close_both();
}

/* Chunks of the default size, of an image of which nobody has said how large it is. */
Test(placed, undeclared)
{
    open_both(2, false, 0);
    fill_all();
    round_of(3, 30, 5);
    complete_both();
    cr_expect(lt(uint, 0, placer_get().placed));
    close_both();
}

/* One chunk can be had, of three: they take turns, while several threads write everywhere. */
Test(placed, chunks_take_turns)
{
    const size_t chunk = TRANSPORT_CHUNK;
    struct file *ram;
    struct placer want;
    uint8_t *buf = malloc(2 * STRIPE);
    struct error err;
    char got[16], sent[16];

    open_both(2, false, 3 * chunk);
    ram = migration_file(source, WIRE_RAM);
    want = placer_get();
    want.most = 1;
    placer_set(&want);
    for (unsigned i = 0; i < 60; i++) {
        uint64_t offset = (i * 7 % 3) * chunk + (i % 5) * STRIPE;
        pattern(buf, 2 * STRIPE, i);
        memcpy(sent, buf + STRIPE + 100, 16);
        rig_write(source, ram, buf, 2 * STRIPE, offset);
        memset(buf, 0, 2 * STRIPE);
        if (i % 6)
            continue;
        CHECK_OK(outgoing_sync(source, migration_file(source, WIRE_RAM), NULL, &err));
        cr_assert(
            eq(long,
               file_read(migration_file(destination, WIRE_RAM), offset + STRIPE + 100, got, 16, true, NULL),
               16));
        cr_expect(zero(int, memcmp(got, sent, 16)));
    }
    cr_expect(lt(uint, 5, placer_get().exposes), "%u", placer_get().exposes);
    CHECK_OK(outgoing_complete(source, NULL, &err));
    cr_expect(eq(int, (int)rig_await_end(destination), STATE_COMPLETED));
    close_both();
    free(buf);
}

/* The bytes of a RAM source change while they are sent, as those of a VM do. No lock, so ThreadSanitizer is
 * not asked. */
__attribute__((no_sanitize("thread"))) static void change_some(uint8_t *memory, unsigned seed)
{
    for (unsigned i = 0; i < 200; i++) {
        seed = seed * 1103515245u + 12345u;
        uint8_t *page = memory + (seed >> 8) % (IMAGE / PAGE) * PAGE;
        for (size_t at = 0; at < PAGE; at += 64)
            page[at] = seed & 0x800 ? 0 : (uint8_t)(seed >> 3);
    }
}

Test(placed, by_reference)
{
    static uint8_t all[IMAGE / PAGE / 8];
    int fd = memfd_create("ram", 0);
    struct placer want;
    struct error err;

    cr_assert(zero(int, ftruncate(fd, IMAGE)));
    uint8_t *memory = mmap(NULL, IMAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    cr_assert(ne(ptr, memory, MAP_FAILED));
    pattern(memory, IMAGE, 4);
    memset(all, 0xff, sizeof(all));
    placer_begin();
    want = placer_get();
    want.free_buffers = true;
    placer_set(&want);
    rig_init(&rig, "rdma:127.0.0.1:0", NULL);
    source = rig_make(&rig, "vm", 2, "");
    source->settings.checksum_choice = CHOICE_OFF;
    struct reference *reference = reference_new(dup(fd), "fd:7", &err);
    cr_assert(ne(ptr, reference, NULL));
    CHECK_OK(outgoing_set_reference(source, reference, NULL, &err));
    CHECK_OK(outgoing_start(source, NULL, &err));
    destination = rig_arrived(&rig, "vm");
    model = malloc(IMAGE);
    for (unsigned i = 0; i < 12; i++) {
        CHECK_OK(outgoing_mark_dirty(source, all, sizeof(all), 0, &err));
        change_some(memory, i);
        if (i % 4)
            continue;
        CHECK_OK(outgoing_mark_dirty(source, all, sizeof(all), 0, &err));
        sync_both();
        memcpy(model, memory, IMAGE);
        rig_compare(destination, WIRE_RAM, model, IMAGE);
    }
    CHECK_OK(outgoing_mark_dirty(source, all, sizeof(all), 0, &err));
    memcpy(model, memory, IMAGE);
    complete_both();
    cr_expect(lt(uint, 50, placer_get().placed), "%u placed", placer_get().placed);
    close_both();
    munmap(memory, IMAGE);
    close(fd);
}

/* Cancelled with payloads in flight and threads that write: everybody gets his buffer back, and no key is
 * left. */
struct doomed {
    struct worker worker;
    unsigned index;
};

static void write_until_it_fails(void *arg)
{
    struct doomed *d = arg;
    struct file *ram = migration_file(source, WIRE_RAM);
    uint8_t *buf = malloc(STRIPE);
    struct error err = {0};

    for (unsigned i = 0;; i++) {
        pattern(buf, STRIPE, i);
        if (rig_try_write(source, ram, buf, STRIPE, (d->index + 3 * (i % 8)) * STRIPE, NULL, &err) < 0)
            break;
    }
    free(buf);
}

/* Waits for the destination's word of what it has applied on a channel. */
static uint64_t told(struct transport *t)
{
    struct pollfd poller = {.fd = transport_pollfd(t), .events = POLLIN};
    uint64_t count = 0;

    cr_assert(eq(int, poll(&poller, 1, 20000), 1), "the source is not told");
    cr_assert(zero(int, transport_recv_all(t, &count, sizeof(count), NULL)));
    return le64toh(count);
}

/* A source that places is told when there is nothing more to apply, of the channel on which it came. */
Test(placed, told_what_is_applied)
{
    static const char page[PAGE] = "x";
    struct packet data = packet_at(0, sizeof(page), false);
    struct packet zero = {.type = WIRE_ZERO, .offset = 5 * PAGE, .range = PAGE};
    struct peer p;

    placer_begin();
    rig_init(&rig, "rdma:127.0.0.1:0", NULL);
    peer_open(&p, rig.address, "vm", 1);
    cr_expect(eq(int, (int)peer_announce(&p, 0, IMAGE, "ram"), CAUSE_NONE));
    for (uint64_t i = 1; i < 4; i++) {
        cr_assert(zero(int, peer_packet(&p, 0, data, page)));
        cr_expect(eq(u64, told(p.data[0]), 2 * i - 1));
        cr_assert(zero(int, peer_packet(&p, 0, zero, NULL)));
        cr_expect(eq(u64, told(p.data[0]), 2 * i));
    }
    peer_close(&p);
    rig_fini(&rig);
}

Test(placed, cancelled)
{
    struct doomed doomed[3];

    open_both(3, false, IMAGE);
    fill_all();
    struct placer want = placer_get();
    want.hold = true;
    placer_set(&want);
    for (unsigned i = 0; i < 3; i++) {
        doomed[i].index = i;
        worker_start(&doomed[i].worker, write_until_it_fails, &doomed[i]);
    }
    for (unsigned i = 0; i < 3; i++)
        worker_await_sleep(&doomed[i].worker);
    struct error err;
    CHECK_OK(migration_cancel(source, &err));
    for (unsigned i = 0; i < 3; i++)
        worker_join(&doomed[i].worker);
    cr_expect(eq(int, (int)rig_await_end(source), STATE_CANCELLED));
    cr_expect(eq(int, (int)rig_await_end(destination), STATE_CANCELLED));
    close_both();
}
