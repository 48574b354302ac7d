/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What has been sent and is kept: a piece of the stream of packets, by hand. The bytes that are sent again
 * after each cut are put together as a batch has them, and compared with those of the stream.
 */
#include "kept.h"
#include "batch.h"
#include "check.h"
#include "guard.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define HEADER ((uint32_t)sizeof(struct wire_packet))

static struct kept kept;

/* The stream as it was sent at first. */
static char stream[8192];
static size_t sent;

static void send_bytes(const void *bytes, size_t len)
{
    memcpy(stream + sent, bytes, len);
    sent += len;
}

/* An owner's packet, with a header of its own. */
static struct channel_entry owned(enum channel_place place, uint64_t sequence, const void *payload,
                                  uint32_t length)
{
    struct channel_entry entry = {
        .place = place, .payload = payload, .length = length, .last_sequence = sequence, .bytes = length};

    memset(&entry.header, (int)(0x80 + sequence), HEADER);
    return entry;
}

/* It is sent, and kept. */
static struct channel_entry *keep(struct channel_entry *entry)
{
    cr_assert(zero(int, kept_copy(entry)));
    struct channel_entry *own = kept_add(&kept, entry);
    if (entry->place != CHANNEL_SLICE)
        send_bytes(&entry->header, HEADER);
    if (entry->place == CHANNEL_PARTS) {
        for (unsigned i = 0; i < entry->part_count; i++)
            send_bytes(entry->parts[i].iov_base, entry->parts[i].iov_len);
    } else {
        send_bytes(entry->payload, entry->length);
    }
    cr_assert(ne(ptr, own, NULL));
    return own;
}

/* A slice's memory is a chunk's, and stays. */
static char slice_bytes[4 * sizeof(struct wire_packet)];
static struct channel_entry slice;

static void forget(struct channel_entry *entry)
{
    if (entry && entry->orphan)
        free(entry);
}

/* Four packets: 1 in memory, 2 to 4 in a slice, 5 in parts, 6 that stays, 7 without a payload. */
static char one[100], five[3][40], six[50];

static void keep_all(void)
{
    struct iovec parts[] = {{five[0], 40}, {five[1], 1}, {five[2], 39}};
    struct channel_entry first = owned(CHANNEL_MEMORY, 1, one, sizeof(one)),
                         fifth = owned(CHANNEL_PARTS, 5, one, 80),
                         sixth = owned(CHANNEL_MEMORY, 6, six, sizeof(six)),
                         last = owned(CHANNEL_MEMORY, 7, one, 0);

    memset(one, 'a', sizeof(one));
    memset(slice_bytes, 'b', sizeof(slice_bytes));
    for (int i = 0; i < 3; i++)
        memset(five[i], 'c' + i, sizeof(five[i]));
    memset(six, 'f', sizeof(six));
    for (size_t i = 0; i < sizeof(one); i++)
        one[i] = (char)i;
    slice = owned(CHANNEL_SLICE, 4, slice_bytes, sizeof(slice_bytes));
    fifth.parts = parts;
    fifth.part_count = 3;
    sixth.stays = true;
    kept_init(&kept, 1000);
    sent = 0;
    cr_expect(ne(ptr, keep(&first), &first));
    cr_expect(eq(ptr, keep(&slice), &slice), "a slice is nobody's, and is kept itself");
    keep(&fifth);
    keep(&sixth);
    keep(&last);
    /* From here on the buffers are their owners' again. */
    memset(one, 'x', sizeof(one));
    memset(five, 'x', sizeof(five));
    cr_expect(eq(u64, kept.bytes, sent));
    cr_expect(eq(u64, sent, 4 * HEADER + 100 + sizeof(slice_bytes) + 80 + 50));
}

static void drop_all(void)
{
    struct channel_entry *entry;

    kept.applied = UINT64_MAX;
    while ((entry = kept_take_applied(&kept)))
        forget(entry);
}

/* What a list of entries sends is the stream from @from on. */
static void expect_rest(struct channel_entry *entries, uint64_t from)
{
    static struct batch batch;
    size_t at = from;

    batch_begin(&batch, entries);
    for (struct channel_entry *entry = entries; entry; entry = entry->next)
        batch_add(&batch, entry, false);
    cr_expect(eq(u64, batch.bytes, sent - from));
    for (int i = 0; i < batch.n; i++) {
        cr_assert(le(sz, at + batch.iov[i].iov_len, sent));
        cr_expect(zero(int, memcmp(stream + at, batch.iov[i].iov_base, batch.iov[i].iov_len)),
                  "part %d of what follows byte %llu", i, (unsigned long long)from);
        at += batch.iov[i].iov_len;
    }
    cr_expect(eq(sz, at, sent));
}

TestSuite(kept, .init = guard_setup);

/* The connection is lost after each byte in turn. */
Test(kept, cut_after_any_byte)
{
    static const uint64_t ends[] = {
        HEADER + 100, HEADER + 100 + sizeof(slice_bytes), 2 * HEADER + 180 + sizeof(slice_bytes),
        3 * HEADER + 230 + sizeof(slice_bytes), 4 * HEADER + 230 + sizeof(slice_bytes)};

    for (uint64_t received = 0; received <= ends[4]; received++) {
        struct channel_entry *entry, *head = NULL, **tail = &head;
        unsigned whole = 0, expected = 0;
        keep_all();
        cr_assert(kept_has_sent(&kept, received));
        while (expected < 5 && ends[expected] <= received)
            expected++;
        while ((entry = kept_take_received(&kept, received))) {
            forget(entry);
            whole++;
        }
        cr_expect(eq(uint, whole, expected), "of %llu bytes", (unsigned long long)received);
        cr_expect(eq(u64, kept.from, received));
        cr_expect(eq(u64, kept.bytes, sent - received));
        kept_put_back(&kept, &head, &tail);
        cr_expect(zero(u64, kept.bytes));
        cr_expect(eq(u64, kept.from, received), "what is sent next is the next of the stream");
        expect_rest(head, received);
        while ((entry = head)) {
            head = entry->next;
            forget(entry);
        }
    }
}

/* It is cut, sent again, and cut in the same packet. */
Test(kept, cut_again)
{
    for (uint64_t step = 1; step < 70; step++) {
        struct channel_entry *entry;
        keep_all();
        for (uint64_t received = step; received < sent; received += step) {
            struct channel_entry *head = NULL, **tail = &head;
            while ((entry = kept_take_received(&kept, received)))
                forget(entry);
            kept_put_back(&kept, &head, &tail);
            expect_rest(head, received);
            /* All of it is sent, and kept: what is nobody's needs no copy. */
            cr_assert(zero(int, kept_copy(head)));
            while ((entry = head)) {
                head = entry->next;
                cr_assert(eq(ptr, kept_add(&kept, entry), entry));
            }
            cr_expect(eq(u64, kept.from, received));
            cr_expect(eq(u64, kept.bytes, sent - received));
        }
        drop_all();
    }
}

/* What stays where it is is sent again as it is then, and is not copied. */
Test(kept, what_stays)
{
    struct channel_entry entry = owned(CHANNEL_MEMORY, 1, six, sizeof(six)), lent = entry;

    kept_init(&kept, 1000);
    sent = 0;
    entry.stays = true;
    struct channel_entry *own = keep(&entry);
    cr_expect(eq(ptr, (void *)(uintptr_t)own->payload, six));
    cr_expect(own->stays);
    cr_expect(own->orphan);
    own = keep(&lent);
    cr_expect(ne(ptr, (void *)(uintptr_t)own->payload, six));
    cr_expect(not(own->stays));
    cr_expect(eq(u64, own->bytes, sizeof(six)));
    cr_expect(eq(u64, own->last_sequence, 1));
    cr_expect(eq(int, (int)own->place, CHANNEL_MEMORY));
    drop_all();
}

Test(kept, bounds)
{
    keep_all();
    cr_expect(not(kept_is_full(&kept)));
    kept.max = sent + 1;
    cr_expect(not(kept_is_full(&kept)));
    kept.max = sent;
    cr_expect(kept_is_full(&kept));
    cr_expect(kept_has_sent(&kept, sent));
    cr_expect(not(kept_has_sent(&kept, sent + 1)));
    kept.applied = 1;
    forget(kept_take_applied(&kept));
    cr_expect(eq(u64, kept.from, HEADER + 100));
    cr_expect(not(kept_is_full(&kept)));
    cr_expect(kept_has_sent(&kept, HEADER + 100));
    cr_expect(not(kept_has_sent(&kept, HEADER + 99)), "it has said that it applied more");
    drop_all();
}

/* In their order; of a slice, when its last packet is applied. */
Test(kept, applied)
{
    static const unsigned taken[] = {0, 1, 0, 0, 1, 1, 1, 1, 0};
    struct channel_entry *entry;

    keep_all();
    for (uint64_t applied = 0; applied < ARRAY_LENGTH(taken); applied++) {
        unsigned n = 0;
        kept.applied = applied;
        while ((entry = kept_take_applied(&kept))) {
            cr_expect(eq(u64, entry->last_sequence, applied));
            forget(entry);
            n++;
        }
        cr_expect(eq(uint, n, taken[applied]), "packet %llu", (unsigned long long)applied);
    }
    cr_expect(zero(u64, kept.bytes));
    cr_expect(eq(u64, kept.from, sent));
    cr_expect(kept_has_sent(&kept, sent));
    cr_expect(zero(ptr, kept_take_received(&kept, sent)));
    /* And what comes after that is kept as the first. */
    struct channel_entry next = owned(CHANNEL_MEMORY, 9, one, 1);
    entry = keep(&next);
    cr_expect(eq(ptr, kept.first, entry));
    cr_expect(eq(u64, kept.bytes, HEADER + 1));
    drop_all();
}

/* Before what is queued, whose tail stays; or as all that there is. */
Test(kept, put_back)
{
    struct channel_entry queued[2] = {{.next = &queued[1]}}, *head = &queued[0], **tail = &queued[1].next;
    struct channel_entry *entry;

    kept_init(&kept, 10);
    kept_put_back(&kept, &head, &tail);
    cr_expect(eq(ptr, head, &queued[0]), "nothing is kept");
    keep_all();
    kept_put_back(&kept, &head, &tail);
    cr_expect(eq(ptr, tail, &queued[1].next));
    cr_expect(zero(ptr, kept.first));
    unsigned n = 0;
    while ((entry = head) != &queued[0]) {
        head = entry->next;
        cr_assert(ne(ptr, entry, NULL));
        forget(entry);
        n++;
    }
    cr_expect(eq(uint, n, 5));
    keep_all();
    struct channel_entry *last = kept.first;
    while (last->next)
        last = last->next;
    head = NULL;
    tail = &head;
    kept_put_back(&kept, &head, &tail);
    cr_expect(eq(ptr, tail, &last->next));
    while ((entry = head)) {
        head = entry->next;
        forget(entry);
    }
}

/* The memory of a payload has gone when it was to be copied: the owner's entry, too, is without a copy then.
 */
Test(kept, nothing_to_copy)
{
    long page = sysconf(_SC_PAGESIZE);
    int fd = memfd_create("gone", 0);

    cr_assert(zero(int, ftruncate(fd, page)));
    char *map = mmap(NULL, (size_t)page, PROT_READ, MAP_SHARED, fd, 0);
    cr_assert(zero(int, ftruncate(fd, 0)));
    struct channel_entry gone = owned(CHANNEL_MEMORY, 1, map, 100), next = owned(CHANNEL_MEMORY, 2, one, 10);
    gone.next = &next;
    kept_init(&kept, 1000);
    cr_expect(eq(int, kept_copy(&gone), -EFAULT));
    cr_expect(zero(ptr, next.copy));
    cr_expect(zero(ptr, kept_add(&kept, &next)));
    cr_expect(zero(ptr, kept.first));
    free(gone.copy);
    munmap(map, (size_t)page);
    close(fd);
}
