/* SPDX-License-Identifier: Apache-2.0 */
/* The receiving end of a data channel; see receiver.h. */
#include "receiver.h"
#include "clock.h"
#include "guard.h"

#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#define PIPE_DESCRIPTORS 2
#define TELL_EVERY       64          /* packets */
#define DIRECT_MIN       (64u << 10) /* a payload from this size on is worth a pipe */

void receiver_init(struct receiver *r, const struct reception *reception, unsigned index)
{
    *r = (struct receiver){.reception = reception, .index = index};
}

/*
 * Payloads: from the connection to where they belong
 */

static void note_received(struct receiver *r, size_t n)
{
    atomic_fetch_add_explicit(&r->wire_bytes, (uint64_t)n, memory_order_relaxed);
    if (r->reception->share)
        intake_pay(r->reception->share, n);
}

static int lost(struct receiver *r, int code, struct error *err)
{
    transport_explain(r->transport, err);
    return error_set_errno(err, code, "the connection is lost");
}

/* Receiving has said @n. Whether the connection is lost, and another one has come, so that it can be tried
 * again. */
static bool goes_on(struct receiver *r, ssize_t n)
{
    struct error reason = {0};

    if (n > 0 || n == -EFAULT || n == -EBADFD || !r->reception->resumes)
        return false;
    if (n == 0)
        error_set(&reason, CAUSE_RESET, "the source has closed the connection");
    else
        lost(r, (int)n, &reason);
    r->telling_left = 0;
    return r->reception->events->lost(r->reception->owner, r->index, &reason) == 0;
}

/* Reads at most @most more into the buffer. 0; 1 at the end of the stream; negative with @err. */
static int fill(struct receiver *r, size_t most, struct error *err)
{
    if (r->start == r->end)
        r->start = r->end = 0;
    if (r->start > 0) {
        memmove(r->buffer, r->buffer + r->start, r->end - r->start);
        r->end -= r->start;
        r->start = 0;
    }
    size_t room = RECEIVER_BUFFER - r->end;
    ssize_t n;

    do
        n = transport_recv(r->transport, r->buffer + r->end, room < most ? room : most, 0);
    while (goes_on(r, n));
    if (n < 0)
        return lost(r, (int)n, err);
    r->end += (size_t)n;
    note_received(r, (size_t)n);
    return n == 0;
}

static int ended_early(struct error *err)
{
    return error_set(err, CAUSE_RESET, "the connection ended in the middle of a packet");
}

/* Has something in the buffer; reads at most @most when there is nothing. In the middle of a packet. */
static int refill(struct receiver *r, size_t most, struct error *err)
{
    int ret = r->start == r->end ? fill(r, most, err) : 0;

    return ret > 0 ? ended_early(err) : ret;
}

/*
 * Where a payload goes: straight into @window when that is not NULL, else to
 * @store, part by part, each with its offset in the payload.
 */
struct sink {
    uint8_t *window;
    bool direct; /* nobody looks at it: the transport may put it into the file itself */
    int (*store)(struct sink *sink, uint32_t at, const uint8_t *part, size_t len, struct error *err);
    struct file *file; /* for the stores below */
    uint64_t offset;
    uint8_t *buffer;
};

/*
 * Stores bytes that have been received. Where there is a @window, through it: pwrite(2) takes the inode's
 * lock, and channels would wait for one another.
 */
static int store(struct file *file, void *window, uint64_t offset, const void *from, size_t len,
                 struct error *err)
{
    if (window && guard_copy(window, from, len) == 0)
        return 0;
    /* It has been truncated, or there is no memory: then pwrite(2) says so. */
    if (window && file_receive_check(file, err) < 0)
        return -EIO;
    return image_write(&file->image, offset, from, len, err);
}

static int store_in_file(struct sink *sink, uint32_t at, const uint8_t *part, size_t len, struct error *err)
{
    return store(sink->file, sink->window ? sink->window + at : NULL, sink->offset + at, part, len, err);
}

static int store_in_buffer(struct sink *sink, uint32_t at, const uint8_t *part, size_t len, struct error *err)
{
    (void)err;
    memcpy(sink->buffer + at, part, len);
    return 0;
}

/* The caller uses it where it lies. */
static int store_nowhere(struct sink *sink, uint32_t at, const uint8_t *part, size_t len, struct error *err)
{
    (void)sink, (void)at, (void)part, (void)len, (void)err;
    return 0;
}

static int went_away(struct file *file, struct error *err)
{
    char name[WIRE_NAME_SIZE];

    if (file_receive_check(file, err) < 0)
        return -EIO;
    return error_set(err, CAUSE_IO, "the memory of '%.64s' went away for a moment: was it truncated?",
                     file_name(file, name));
}

/* A checksum over memory that can go away. */
struct window_check {
    XXH3_state_t *checker;
    const uint8_t *p;
    size_t len;
};

static void check_window(void *arg)
{
    struct window_check *check = arg;

    XXH3_64bits_update(check->checker, check->p, check->len);
}

/* Receives the next part of a payload into its place. The count, or negative with @err. */
static ssize_t receive_in_place(struct receiver *r, struct file *file, uint8_t *to, size_t len, bool checksum,
                                struct error *err)
{
    ssize_t n;

    do
        n = transport_recv(r->transport, to, len, 0);
    while (goes_on(r, n));
    if (n == -EFAULT)
        return went_away(file, err);
    if (n < 0)
        return lost(r, (int)n, err);
    if (n == 0)
        return ended_early(err);
    note_received(r, (size_t)n);
    struct window_check check = {r->checker, to, (size_t)n};
    if (checksum && guard_call(check_window, &check) < 0)
        return went_away(file, err);
    return n;
}

/* Receives the next part of a payload straight into the file. The count, or negative with @err. */
static ssize_t receive_in_file(struct receiver *r, const struct sink *sink, uint32_t at, size_t len,
                               struct error *err)
{
    int code = 0;
    ssize_t n;

    do
        n = transport_recv_fd(r->transport, image_descriptor(&sink->file->image), (off_t)(sink->offset + at),
                              len, &code);
    while (goes_on(r, n));
    if (n == -EBADFD)
        return error_set_errno(err, code, "cannot store what arrived");
    if (n < 0)
        return lost(r, (int)n, err);
    if (n == 0)
        return ended_early(err);
    note_received(r, (size_t)n);
    image_stored(&sink->file->image, sink->offset + at + (uint64_t)n);
    return n;
}

static bool is_checked(const struct receiver *r, const struct file *file)
{
    return file->id != WIRE_RAM || r->reception->checked;
}

/* All of a payload has been given to the checker. */
static int check_payload(const struct receiver *r, struct file *file, const struct packet *packet,
                         struct error *err)
{
    char name[WIRE_NAME_SIZE];

    if (XXH3_64bits_digest(r->checker) == packet->payload_check)
        return 0;
    return error_set(err, CAUSE_PROTOCOL, "the data for '%.64s' at offset %llu arrived damaged",
                     file_name(file, name), (unsigned long long)packet->offset);
}

/* Passes a payload on as it arrives, and checks it at the end. */
static int take_payload(struct receiver *r, struct file *file, const struct packet *packet, struct sink *sink,
                        struct error *err)
{
    bool checksum = is_checked(r, file);
    uint32_t done = 0;

    if (checksum)
        XXH3_64bits_reset(r->checker);
    while (done < packet->length) {
        size_t left = packet->length - done, n;
        if (r->start == r->end && sink->window) {
            /* In parts that are still in the processor's cache when they are checked. */
            ssize_t got = receive_in_place(r, file, sink->window + done,
                                           left < RECEIVER_BUFFER ? left : RECEIVER_BUFFER, checksum, err);
            if (got < 0)
                return -EIO;
            done += (uint32_t)got;
            continue;
        }
        if (r->start == r->end && sink->direct) {
            ssize_t got = receive_in_file(r, sink, done, left, err);
            if (got < 0)
                return -EIO;
            done += (uint32_t)got;
            continue;
        }
        if (refill(r, RECEIVER_BUFFER, err) < 0)
            return -EIO;
        n = r->end - r->start < left ? r->end - r->start : left;
        if (checksum)
            XXH3_64bits_update(r->checker, r->buffer + r->start, n);
        if (sink->store(sink, done, r->buffer + r->start, n, err) < 0)
            return -EIO;
        r->start += n;
        done += (uint32_t)n;
    }
    return checksum ? check_payload(r, file, packet, err) : 0;
}

/* The whole payload as it was sent; *@out is the receiver's until it reads on. */
static int take_whole(struct receiver *r, struct file *file, const struct packet *packet, const uint8_t **out,
                      struct error *err)
{
    if (!r->packed)
        r->packed = malloc(COMPRESSION_RAW_MAX);
    if (!r->packed)
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    struct sink sink = {.window = r->packed, .store = store_in_buffer, .buffer = r->packed};
    if (r->end - r->start >= packet->length) {
        *out = r->buffer + r->start;
        sink.store = store_nowhere;
    } else {
        *out = r->packed;
    }
    return take_payload(r, file, packet, &sink, err);
}

/* A frame that is unpacked into memory that can go away. */
struct unpacking {
    struct decompressor *decompressor;
    const uint8_t *packed;
    void *out;
    const struct packet *packet;
    struct error *err;
    int ret;
};

static void unpack_guarded(void *arg)
{
    struct unpacking *u = arg;

    u->ret = decompressor_unpack(u->decompressor, u->packed, u->packet->length, u->out, u->packet->raw_length,
                                 u->err);
}

/*
 * The whole payload, unpacked: into @window when that is not NULL, else *@out is
 * where, in the receiver's decompressor, which the caller returns.
 */
static int unpack(struct receiver *r, struct file *file, const struct packet *packet, uint8_t *window,
                  const uint8_t **out, struct error *err)
{
    const uint8_t *packed = NULL;

    if (!r->reception->compressed)
        return error_set(err, CAUSE_PROTOCOL, "a compressed packet, though compression was not asked for");
    if (take_whole(r, file, packet, &packed, err) < 0)
        return -EIO;
    r->decompressor = decompressor_take(r->reception->decompressors);
    if (!r->decompressor)
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    void *to = window ? window : decompressor_buffer(r->decompressor);
    struct unpacking u = {r->decompressor, packed, to, packet, err, 0};
    if (!window)
        unpack_guarded(&u);
    else if (guard_call(unpack_guarded, &u) < 0)
        return went_away(file, err);
    *out = u.out;
    return u.ret;
}

/* Whether the transport may have a pipe, which it makes when it receives into a file. */
static bool may_have_pipe(struct receiver *r)
{
    if (!r->has_pipe && !r->no_pipe) {
        r->has_pipe = budget_charge(r->reception->descriptors, PIPE_DESCRIPTORS);
        r->no_pipe = !r->has_pipe;
    }
    return r->has_pipe;
}

/* The payload is in its place already: only its checksum, if it has one, is left to be looked at. */
static int take_placed(struct receiver *r, struct file *file, const struct packet *packet, struct error *err)
{
    if (!r->transport->traits.places || !image_was_exposed(&file->image))
        return error_set(err, CAUSE_PROTOCOL, "a placed packet, though nothing was exposed");
    note_received(r, packet->length);
    atomic_fetch_add_explicit(&r->placed_bytes, packet->length, memory_order_relaxed);
    if (!is_checked(r, file))
        return 0;
    void *memory = image_exposed(&file->image, packet->offset, packet->length);
    struct window_check check = {r->checker, memory, packet->length};
    XXH3_64bits_reset(r->checker);
    if (!memory || guard_call(check_window, &check) < 0)
        return went_away(file, err);
    return check_payload(r, file, packet, err);
}

/* The payload of a WIRE_DATA packet goes to its place in the file. */
static int take_data(struct receiver *r, struct file *file, const struct packet *packet, struct error *err)
{
    if (packet->flags & WIRE_PACKET_PLACED)
        return take_placed(r, file, packet, err);
    uint8_t *window = image_window(&file->image, packet->offset, packet->raw_length);
    struct sink sink = {.window = window, .store = store_in_file, .file = file, .offset = packet->offset};
    const uint8_t *raw;

    if (packet->flags & WIRE_PACKET_ZSTD) {
        if (unpack(r, file, packet, window, &raw, err) < 0)
            return -EIO;
        return window ? 0 : image_write(&file->image, packet->offset, raw, packet->raw_length, err);
    }
    sink.direct = !window && !is_checked(r, file) && packet->length >= DIRECT_MIN &&
                  image_descriptor(&file->image) >= 0 && r->transport->traits.receives_to_file &&
                  may_have_pipe(r);
    return take_payload(r, file, packet, &sink, err);
}

/*
 * Pages: a payload of scattered ones, from the connection to where they belong
 */

/* What a WIRE_PAGES packet says of its pages; bit n of word w is its page 64 w + n. */
struct page_bits {
    uint64_t data[WIRE_STRIPE_SIZE / WIRE_PAGE_SIZE / 64]; /* these follow */
    uint64_t said[WIRE_STRIPE_SIZE / WIRE_PAGE_SIZE / 64]; /* these, and others that are zero */
};

/* @bitmaps: as they travel, wire_pages_head() bytes. @packet->pages is filled in. */
static int decode_bits(struct packet *packet, const uint8_t *bitmaps, struct page_bits *bits,
                       struct error *err)
{
    uint64_t pages = packet->range / WIRE_PAGE_SIZE, data = 0;
    bool partial = packet->flags & WIRE_PACKET_PARTIAL, bad = false;
    unsigned words = wire_bitmap_size(packet->range) / 8;

    for (unsigned word = 0; word < words; word++) {
        uint64_t rest = pages - word * 64ull, all = rest < 64 ? (1ull << rest) - 1 : UINT64_MAX;
        uint64_t held, said = all;
        memcpy(&held, bitmaps + 8 * word, 8);
        if (partial)
            memcpy(&said, bitmaps + 8 * (words + word), 8);
        bits->data[word] = le64toh(held);
        bits->said[word] = partial ? le64toh(said) : all;
        bad |= bits->data[word] & ~bits->said[word] || bits->said[word] & ~all;
        data += (uint64_t)__builtin_popcountll(bits->data[word]);
        packet->pages += (uint64_t)__builtin_popcountll(bits->said[word]);
    }
    if (bad || wire_pages_head(packet) + data * WIRE_PAGE_SIZE != packet->raw_length)
        return error_set(err, CAUSE_PROTOCOL, "%llu of %llu pages in a packet of %u bytes",
                         (unsigned long long)data, (unsigned long long)pages, packet->raw_length);
    return 0;
}

/* The next run of pages of a packet that are alike, from @page on. */
struct page_run {
    uint64_t pages;
    bool said, data;
};

static struct page_run run_at(const struct packet *packet, const struct page_bits *bits, uint64_t page)
{
    uint64_t pages = packet->range / WIRE_PAGE_SIZE;
    struct page_run run = {.said = bits->said[page / 64] >> page % 64 & 1,
                           .data = bits->data[page / 64] >> page % 64 & 1};

    do
        run.pages++, page++;
    while (page < pages && (bits->said[page / 64] >> page % 64 & 1) == run.said &&
           (bits->data[page / 64] >> page % 64 & 1) == run.data);
    return run;
}

/* The pages of a packet that follow, and how much of them has been stored. */
struct scatter {
    struct file *file;
    struct {
        uint64_t offset;
        uint8_t *window; /* NULL: there is none */
        uint32_t len;    /* of what is left */
    } runs[WIRE_STRIPE_SIZE / WIRE_PAGE_SIZE / 2 + 1];
    unsigned count, next;
    uint32_t left;    /* bytes */
    bool has_windows; /* all of them */
};

static void scatter_begin(struct scatter *s, struct file *file, const struct packet *packet,
                          const struct page_bits *bits)
{
    /* By reference alone: what is pushed arrives without a fault when it comes for the first time. */
    bool partial = packet->flags & WIRE_PACKET_PARTIAL;
    struct page_run run;

    s->file = file;
    s->count = s->next = 0;
    s->left = 0;
    s->has_windows = true;
    for (uint64_t page = 0; page < packet->range / WIRE_PAGE_SIZE; page += run.pages) {
        uint64_t offset = packet->offset + page * WIRE_PAGE_SIZE;
        run = run_at(packet, bits, page);
        uint32_t len = (uint32_t)run.pages * WIRE_PAGE_SIZE;
        if (!run.data)
            continue;
        s->runs[s->count].offset = offset;
        s->runs[s->count].window =
            partial ? image_pages(&file->image, offset, len) : image_window(&file->image, offset, len);
        s->has_windows &= s->runs[s->count].window != NULL;
        s->runs[s->count++].len = len;
        s->left += len;
    }
}

/* So many bytes of the next run have been stored. */
static void scatter_advance(struct scatter *s, uint32_t len)
{
    s->runs[s->next].offset += len;
    s->runs[s->next].len -= len;
    if (s->runs[s->next].window)
        s->runs[s->next].window += len;
    s->next += s->runs[s->next].len == 0;
    s->left -= len;
}

/* Stores bytes of the next run, which are no more than are left of it. */
static int scatter_store(struct scatter *s, const uint8_t *from, uint32_t len, struct error *err)
{
    if (store(s->file, s->runs[s->next].window, s->runs[s->next].offset, from, len, err) < 0)
        return -EIO;
    scatter_advance(s, len);
    return 0;
}

/*
 * Receives at least one byte straight into the pages. 0; 1: they have gone, or there is no memory for them,
 * which storing them one by one finds out; or negative with @err.
 */
static int scatter_receive(struct receiver *r, struct scatter *s, bool checksum, struct error *err)
{
    struct iovec parts[sizeof(s->runs) / sizeof(s->runs[0])];
    int n = 0;

    for (unsigned i = s->next; i < s->count; i++)
        parts[n++] = (struct iovec){s->runs[i].window, s->runs[i].len};
    ssize_t got;

    do
        got = transport_recv_parts(r->transport, parts, n);
    while (goes_on(r, got));
    if (got == -EFAULT)
        return 1;
    if (got < 0)
        return lost(r, (int)got, err);
    if (got == 0)
        return ended_early(err);
    note_received(r, (size_t)got);
    while (got > 0) {
        uint32_t len = got < s->runs[s->next].len ? (uint32_t)got : s->runs[s->next].len;
        struct window_check check = {r->checker, s->runs[s->next].window, len};
        if (checksum && guard_call(check_window, &check) < 0)
            return went_away(s->file, err);
        scatter_advance(s, len);
        got -= len;
    }
    return 0;
}

/* Takes bytes of a payload that come before its pages. */
static int take_head(struct receiver *r, uint8_t *head, uint32_t len, bool checksum, struct error *err)
{
    for (uint32_t have = 0; have < len;) {
        if (refill(r, len - have, err) < 0)
            return -EIO;
        size_t n = r->end - r->start < len - have ? r->end - r->start : len - have;
        memcpy(head + have, r->buffer + r->start, n);
        r->start += n;
        have += (uint32_t)n;
    }
    if (checksum)
        XXH3_64bits_update(r->checker, head, len);
    return 0;
}

/* The payload of a WIRE_PAGES packet that is as it was sent: *@bits is filled in, its pages are stored. */
static int take_pages(struct receiver *r, struct file *file, struct packet *packet, struct page_bits *bits,
                      struct error *err)
{
    uint8_t head[2 * sizeof(bits->data)];
    bool checksum = is_checked(r, file);
    struct scatter s;

    if (checksum)
        XXH3_64bits_reset(r->checker);
    if (take_head(r, head, wire_pages_head(packet), checksum, err) < 0 ||
        decode_bits(packet, head, bits, err) < 0)
        return -EIO;
    scatter_begin(&s, file, packet, bits);
    while (s.left > 0) {
        if (r->start == r->end && s.has_windows) {
            int ret = scatter_receive(r, &s, checksum, err);
            if (ret < 0)
                return ret;
            s.has_windows = ret == 0;
            continue;
        }
        if (refill(r, RECEIVER_BUFFER, err) < 0)
            return -EIO;
        size_t have = r->end - r->start;
        uint32_t n = have < s.runs[s.next].len ? (uint32_t)have : s.runs[s.next].len;
        if (checksum)
            XXH3_64bits_update(r->checker, r->buffer + r->start, n);
        if (scatter_store(&s, r->buffer + r->start, n, err) < 0)
            return -EIO;
        r->start += n;
    }
    return checksum ? check_payload(r, file, packet, err) : 0;
}

/* The same for one that is compressed. */
static int unpack_pages(struct receiver *r, struct file *file, struct packet *packet, struct page_bits *bits,
                        struct error *err)
{
    const uint8_t *raw;
    struct scatter s;

    if (unpack(r, file, packet, NULL, &raw, err) < 0 || decode_bits(packet, raw, bits, err) < 0)
        return -EIO;
    raw += wire_pages_head(packet);
    scatter_begin(&s, file, packet, bits);
    while (s.left > 0) {
        uint32_t len = s.runs[s.next].len;
        if (scatter_store(&s, raw, len, err) < 0)
            return -EIO;
        raw += len;
    }
    return 0;
}

/*
 * Packets: what their headers say
 */

static int apply_data(struct receiver *r, struct file *file, const struct packet *packet, struct error *err)
{
    if (file_receive_size(file, r->index, packet->offset + packet->raw_length,
                          reception_limit(r->reception, file), err) < 0 ||
        file_receive_storage(file, err) < 0 || take_data(r, file, packet, err) < 0)
        return -EIO;
    file_received(file, r->index, packet->offset, packet->raw_length);
    return 0;
}

static int apply_pages(struct receiver *r, struct file *file, struct packet *packet, struct error *err)
{
    struct page_bits bits;
    struct page_run run;

    if (file->id != WIRE_RAM)
        return error_set(err, CAUSE_PROTOCOL, "zero pages of a device");
    if (file_receive_size(file, r->index, packet->offset + packet->range, reception_limit(r->reception, file),
                          err) < 0)
        return -EIO;
    int ret = packet->flags & WIRE_PACKET_ZSTD ? unpack_pages(r, file, packet, &bits, err)
                                               : take_pages(r, file, packet, &bits, err);
    for (uint64_t page = 0; ret == 0 && page < packet->range / WIRE_PAGE_SIZE; page += run.pages) {
        uint64_t offset = packet->offset + page * WIRE_PAGE_SIZE;
        run = run_at(packet, &bits, page);
        if (run.data)
            file_received(file, r->index, offset, run.pages * WIRE_PAGE_SIZE);
        else if (run.said)
            ret = file_receive_zero(file, r->index, offset, run.pages * WIRE_PAGE_SIZE, err);
    }
    return ret;
}

static int apply_zero(struct receiver *r, struct file *file, const struct packet *packet, struct error *err)
{
    if (file->id != WIRE_RAM)
        return error_set(err, CAUSE_PROTOCOL, "zero pages of a device");
    if (file_receive_size(file, r->index, packet->offset + packet->range, reception_limit(r->reception, file),
                          err) < 0)
        return -EIO;
    return file_receive_zero(file, r->index, packet->offset, packet->range, err);
}

/* The bytes of the file that a packet is about. */
static uint64_t packet_span(const struct file *file, unsigned channel, const struct packet *packet)
{
    switch (packet->type) {
    case WIRE_DATA:
        return packet->raw_length;
    case WIRE_DISCARD:
        return file_home_bytes(file, channel, packet->offset, packet->range);
    case WIRE_PAGES:
        return packet->pages * WIRE_PAGE_SIZE;
    case WIRE_ZERO:
        return packet->range;
    default:
        return 0;
    }
}

/* A receiver does not wait at a barrier. Should it ever block here, the counter tells. */
static void tell_reached(struct receiver *r)
{
    struct rusage before, after;
    int64_t start = clock_ns();

    getrusage(RUSAGE_THREAD, &before);
    r->reception->events->reached(r->reception->owner);
    getrusage(RUSAGE_THREAD, &after);
    if (after.ru_nvcsw != before.ru_nvcsw)
        counter_add(&r->barrier_ns, (uint64_t)(clock_ns() - start));
}

/*
 * The file of a packet, or NULL. It stays until end_using().
 *
 * When a file is removed, its owner first takes it out of the catalog and then looks
 * whether a receiver uses it; a receiver first says what it uses and then looks whether
 * it still is in the catalog. All four are sequentially consistent, so at least one
 * sees the other: either the receiver finds it gone and leaves it alone, or the owner
 * keeps it for later. What an honest source removes is used by nobody any
 * more: all its packets have been applied, and `using` is cleared before that is published.
 */
static struct file *begin_using(struct receiver *r, uint32_t number)
{
    const struct catalog *catalog = r->reception->catalog;
    struct file *file = catalog_file(catalog, number);

    atomic_store(&r->using, file);
    return catalog_file(catalog, number) == file ? file : NULL;
}

static void end_using(struct receiver *r)
{
    atomic_store_explicit(&r->using, NULL, memory_order_release);
}

/* Whether a packet may come here and now. */
static int check_packet(struct receiver *r, const struct file *file, const struct packet *packet,
                        uint64_t sequence, struct error *err)
{
    bool placed = packet->type == WIRE_DATA || packet->type == WIRE_ZERO || packet->type == WIRE_PAGES;

    if (packet->channel != r->index || packet->sequence != sequence)
        return error_set(
            err, CAUSE_PROTOCOL, "packet %llu of channel %u came where packet %llu of channel %u was due",
            (unsigned long long)packet->sequence, packet->channel, (unsigned long long)sequence, r->index);
    if (!file)
        return error_set(err, CAUSE_PROTOCOL, "a packet for file %u, which has not been announced",
                         packet->file);
    if (!file_is_home(file, r->index) || (placed && file_home(file, packet->offset) != r->index))
        return error_set(err, CAUSE_PROTOCOL, "a packet for offset %llu, whose home is another channel",
                         (unsigned long long)packet->offset);
    return 0;
}

static int apply_to(struct receiver *r, struct file *file, struct packet *packet, struct error *err)
{
    switch (packet->type) {
    case WIRE_DATA:
        return apply_data(r, file, packet, err);
    case WIRE_PAGES:
        return apply_pages(r, file, packet, err);
    case WIRE_ZERO:
        return apply_zero(r, file, packet, err);
    case WIRE_DISCARD:
        return file_receive_discard(file, r->index, packet->offset, packet->range, err);
    default:
        return file_receive_truncate(file, r->index, packet->offset, packet->range,
                                     reception_limit(r->reception, file), err);
    }
}

/* Sends what is left of a count. Whether all of it is sent. */
static bool tell_rest(struct receiver *r)
{
    ssize_t n =
        transport_try_send(r->transport, r->telling + sizeof(r->telling) - r->telling_left, r->telling_left);

    if (n > 0)
        r->telling_left -= (size_t)n;
    return r->telling_left == 0;
}

/* Says how many packets are applied; false: there is no room to say it now. */
static bool tell(struct receiver *r, uint64_t sequence)
{
    uint64_t count = htole64(sequence);

    if (r->telling_left && !tell_rest(r))
        return false;
    memcpy(r->telling, &count, sizeof(count));
    r->telling_left = sizeof(count);
    return tell_rest(r);
}

/*
 * The source places nothing over what may not be applied, keeps what is not, and waits for no word of it: it
 * is told when there is nothing more to apply at the moment, or after a while.
 */
static void tell_applied(struct receiver *r, const struct file *file, const struct packet *packet,
                         uint64_t sequence)
{
    r->untold |= r->reception->resumes ||
                 (file->id == WIRE_RAM && (!(packet->flags & WIRE_PACKET_PLACED) || r->reception->checked));
    if (!r->untold || (r->start != r->end && sequence - r->told < TELL_EVERY))
        return;
    if (!tell(r, sequence))
        return;
    r->told = sequence;
    r->untold = false;
}

/* The packet is applied: counts it, lets go of its file, and only then says so to those who wait for it. */
static void publish(struct receiver *r, struct file *file, const struct packet *packet, uint64_t sequence)
{
    struct file_channel *channel = &file->per_channel[r->index];

    counter_add(&channel->covered, packet_span(file, r->index, packet));
    counter_add(&channel->packets, 1);
    counter_add(&channel->digest, packet->check);
    end_using(r);
    atomic_store(&r->applied, sequence);
    uint64_t target = atomic_load(&r->target);
    if (target && sequence >= target && atomic_compare_exchange_strong(&r->target, &target, 0))
        tell_reached(r);
    if (r->transport->traits.places || r->reception->resumes)
        tell_applied(r, file, packet, sequence);
    r->reception->events->applied(r->reception->owner);
}

/* A packet whose header was read; its payload comes next on the connection. */
static int apply(struct receiver *r, struct packet *packet, struct error *err)
{
    struct file *file = begin_using(r, packet->file);
    uint64_t sequence = atomic_load_explicit(&r->applied, memory_order_relaxed) + 1;

    if (check_packet(r, file, packet, sequence, err) < 0)
        return -EIO;
    atomic_store_explicit(&file->per_channel[r->index].last_sequence, sequence, memory_order_relaxed);
    int ret = apply_to(r, file, packet, err);
    decompressor_return(r->reception->decompressors, r->decompressor);
    r->decompressor = NULL;
    if (ret < 0)
        return ret;
    publish(r, file, packet, sequence);
    return 0;
}

/*
 * The thread
 */

/* One packet. 0; 1 when the stream has ended between packets; negative with @err. */
static int receive_packet(struct receiver *r, struct error *err)
{
    struct wire_packet wire;
    struct packet packet;

    while (r->end - r->start < sizeof(wire)) {
        bool between = r->start == r->end;
        int ret = fill(r, r->ahead, err);
        if (ret < 0)
            return ret;
        if (ret > 0)
            return between ? 1 : ended_early(err);
    }
    memcpy(&wire, r->buffer + r->start, sizeof(wire));
    if (wire_packet_decode(&wire, &packet, err) < 0)
        return -EIO;
    r->start += sizeof(wire);
    /* Behind a large packet comes another one: read no more than its header, so that its payload goes in
     * place. */
    r->ahead = packet.length >= RECEIVER_BUFFER / 4 ? sizeof(wire) : RECEIVER_BUFFER;
    return apply(r, &packet, err);
}

static void *mig_recv(void *arg)
{
    struct receiver *r = arg;
    struct error err = {0};
    int ret;

    while ((ret = receive_packet(r, &err)) == 0)
        ;
    /* After the last packet the source just closes; that it comes too early is for the owner to find. */
    if (ret > 0)
        error_set(&err, CAUSE_RESET, "the source has closed the connection");
    r->reception->events->failed(r->reception->owner, r->index, &err);
    return NULL;
}

int receiver_start(struct receiver *r, struct error *err)
{
    char name[24];

    r->buffer = malloc(RECEIVER_BUFFER);
    r->ahead = RECEIVER_BUFFER;
    r->checker = XXH3_createState();
    if (!r->buffer || !r->checker)
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    int code = pthread_create(&r->thread, NULL, mig_recv, r);
    if (code)
        return error_set_errno(err, code, "cannot make a thread");
    r->running = true;
    snprintf(name, sizeof(name), "mig-recv-%u", r->index);
    pthread_setname_np(r->thread, name);
    return 0;
}

void receiver_join(struct receiver *r)
{
    if (r->running)
        pthread_join(r->thread, NULL);
    r->running = false;
    end_using(r);
}

void receiver_close(struct receiver *r)
{
    if (r->has_pipe)
        budget_release(r->reception->descriptors, PIPE_DESCRIPTORS);
    r->has_pipe = false;
    transport_close(r->transport);
    transport_close(r->next);
    r->transport = r->next = NULL;
    free(r->buffer);
    r->buffer = NULL;
    XXH3_freeState(r->checker);
    r->checker = NULL;
    free(r->packed);
    r->packed = NULL;
}
