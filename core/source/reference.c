/* SPDX-License-Identifier: Apache-2.0 */
/* RAM by reference; see reference.h. */
#include "reference.h"
#include "cleanup.h"
#include "clock.h"
#include "connection.h"
#include "descriptor.h"
#include "file.h"
#include "gathered.h"
#include "guard.h"
#include "memory.h"
#include "sender.h"
#include "tracking.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#define TOGETHER         CHUNK_SIZE /* packets that are copied wait for one another up to this many bytes */
#define UNMAPPED_AT_ONCE (8u << 20)

/* A channel's thread. Its own, but for what is marked. */
struct reference_scanner {
    struct reference *ref;
    unsigned channel;
    pthread_t thread;
    char *buffer;                   /* a stripe */
    struct gathered gathered;       /* pages of it, or of the mapping */
    struct reference_reader reader; /* for holes, where the RAM is compared */
    uint64_t next; /* the stripe whose page table entries are made ready next, while nothing else is to do */
    uint64_t done; /* the last bitmap that a pass has covered; guarded by reference.lock */
};

struct reference *reference_new(int fd, const char *text, struct error *err)
{
    struct reference *ref = calloc(1, sizeof(*ref));
    CLEANUP_FD int mine = fd;
    int flags = fcntl(fd, F_GETFL);
    struct stat st;
    int ret = 0;

    if (ref)
        ref->text = strdup(text);
    if (!ref || !ref->text)
        ret = error_set(err, CAUSE_NO_MEMORY, "out of memory");
    else if (flags < 0 || fstat(fd, &st) < 0)
        ret = error_set_errno(err, errno, "cannot use '%.100s'", text);
    else if ((flags & O_ACCMODE) == O_WRONLY || flags & O_PATH)
        ret = error_set(err, CAUSE_DENIED, "'%.100s' is not open for reading", text);
    else if (!S_ISREG(st.st_mode))
        ret = error_set(err, CAUSE_SYNTAX, "'%.100s' is not a regular file or memfd", text);
    else if (st.st_size == 0)
        ret = error_set(err, CAUSE_SYNTAX, "'%.100s' is empty", text);
    if (ret < 0) {
        if (ref)
            free(ref->text);
        free(ref);
        return NULL;
    }
    ref->fd = steal_fd(&mine);
    pthread_mutex_init(&ref->lock, NULL);
    pthread_cond_init(&ref->changed, NULL);
    return ref;
}

void reference_close(struct reference *ref)
{
    if (ref->fd >= 0)
        close(ref->fd);
    ref->fd = -1;
}

void reference_free(struct reference *ref)
{
    if (!ref)
        return;
    reference_stop(ref);
    reference_close(ref);
    pthread_cond_destroy(&ref->changed);
    pthread_mutex_destroy(&ref->lock);
    free(ref->text);
    free(ref);
}

uint64_t reference_file_size(const struct reference *ref)
{
    struct stat st;

    return fstat(ref->fd, &st) == 0 ? (uint64_t)st.st_size : 0;
}

/* Makes the page table entries of a stripe whose pages are all there: all at once is cheaper. */
static void populate_stripe(const struct reference *ref, uint64_t stripe)
{
    uint64_t offset = stripe * WIRE_STRIPE_SIZE;
    unsigned char resident[WIRE_STRIPE_SIZE / WIRE_PAGE_SIZE];
    void *at = (void *)(uintptr_t)(ref->map + offset);

    if (ref->size - offset < WIRE_STRIPE_SIZE || mincore(at, WIRE_STRIPE_SIZE, resident) < 0)
        return;
    for (size_t page = 0; page < sizeof(resident); page++) {
        if (!(resident[page] & 1))
            return;
    }
    madvise(at, WIRE_STRIPE_SIZE, MADV_POPULATE_READ);
}

/* The look at a stripe by reference: under guard_call(), since the file can become shorter at any time. */
struct look {
    const struct reference *ref;
    uint64_t offset; /* of the stripe */
    const uint64_t *bits;
    unsigned char resident[WIRE_STRIPE_SIZE / WIRE_PAGE_SIZE]; /* mincore(2)'s */
    char *buffer;
    struct plan *plan;
    struct gathered *gathered;
    const struct reference_reader *reader; /* compared: */
    uint64_t scanned, changed;             /* pages */
    uint64_t changed_bits[PLAN_WORDS];
    int ret;
};

enum page_kind { PAGE_UNWANTED, PAGE_ABSENT, PAGE_RESIDENT };

static enum page_kind page_kind(const struct look *look, uint64_t page)
{
    if (!(look->bits[page / 64] >> page % 64 & 1))
        return PAGE_UNWANTED;
    return look->resident[page] & 1 ? PAGE_RESIDENT : PAGE_ABSENT;
}

/* Reads all of it, and makes no pages. Return: 0, -ENODATA when the file is shorter, or another negative
 * errno. */
static int read_file(int fd, char *buf, size_t len, uint64_t offset)
{
    ssize_t n = descriptor_read(fd, offset, buf, len);

    if (n < 0)
        return (int)n;
    return (size_t)n < len ? -ENODATA : 0;
}

/* Copies the resident pages of a packet that will be copied; the others are in the buffer. */
static void copy_resident(struct look *look, const struct packet *packet)
{
    uint64_t at = packet->offset - look->offset, end = at + packet->length;

    while (at < end) {
        uint64_t next = (at / WIRE_PAGE_SIZE + 1) * WIRE_PAGE_SIZE;
        size_t len = (next < end ? next : end) - at;
        if (look->resident[at / WIRE_PAGE_SIZE] & 1)
            memcpy(look->buffer + at, look->ref->map + look->offset + at, len);
        at += len;
    }
}

static uint64_t end_of_run(const struct look *look, uint64_t at, uint64_t end, enum page_kind kind)
{
    do
        at += WIRE_PAGE_SIZE;
    while (at < end && page_kind(look, at / WIRE_PAGE_SIZE) == kind);
    return at < end ? at : end;
}

/* Whether a range is a hole: 1 or 0; -ENODATA when the file is shorter. */
static int is_hole(const struct reference_reader *reader, uint64_t offset, size_t len)
{
    off_t data = reader->seeks ? lseek(reader->fd, (off_t)offset, SEEK_DATA) : (off_t)offset;
    struct stat st;

    if (data >= 0)
        return data >= (off_t)(offset + len);
    if (errno != ENXIO)
        return 0;
    /* There is no data up to the end of the file, which may come before that of the range. */
    return fstat(reader->fd, &st) == 0 && (uint64_t)st.st_size >= offset + len ? 1 : -ENODATA;
}

/* Whether a page has to be sent; then its bytes are in the buffer, and recorded. */
static bool take_if_changed(struct look *look, uint64_t at, size_t len, bool resident, bool hole)
{
    struct tracking *t = look->ref->tracking;
    uint64_t page = (look->offset + at) / WIRE_PAGE_SIZE;
    const char *there = look->ref->map + look->offset + at;

    if (hole && len == WIRE_PAGE_SIZE) {
        if (!tracking_record_zeros(t, page))
            return false;
        memset(look->buffer + at, 0, len);
        return true;
    }
    if (hole)
        memset(look->buffer + at, 0, len);
    if (resident && tracking_is_same(t, page, there, len))
        return false;
    if (resident)
        memcpy(look->buffer + at, there, len);
    return tracking_record(t, page, look->buffer + at, len);
}

/* The pages of a run that have changed: their bits in changed_bits, their bytes in the buffer. */
static void compare_run(struct look *look, uint64_t at, uint64_t end, enum page_kind kind)
{
    int hole = kind == PAGE_ABSENT ? is_hole(look->reader, look->offset + at, end - at) : 0;

    if (hole < 0)
        look->ret = hole;
    else if (kind == PAGE_ABSENT && !hole)
        look->ret = read_file(look->ref->fd, look->buffer + at, end - at, look->offset + at);
    for (size_t len; at < end && look->ret == 0; at += len) {
        len = end - at < WIRE_PAGE_SIZE ? end - at : WIRE_PAGE_SIZE;
        look->scanned++;
        if (!take_if_changed(look, at, len, kind == PAGE_RESIDENT, hole))
            continue;
        look->changed++;
        look->changed_bits[at / WIRE_PAGE_SIZE / 64] |= 1ull << at / WIRE_PAGE_SIZE % 64;
    }
}

/* What has not changed is not wanted any more, and what has is in the buffer. @end: of the stripe */
static void compare_stripe(struct look *look, uint64_t end)
{
    for (uint64_t at = 0, next; at < end && look->ret == 0; at = next) {
        enum page_kind kind = page_kind(look, at / WIRE_PAGE_SIZE);
        next = end_of_run(look, at, end, kind);
        if (kind != PAGE_UNWANTED)
            compare_run(look, at, next, kind);
    }
    look->bits = look->changed_bits;
}

/* The parts of the last packet: resident pages go from the mapping, unless they are kept in the buffer. */
static void gather(struct look *look)
{
    const struct plan *plan = look->plan;
    const char *stripe = look->ref->map + look->offset;

    gathered_begin(look->gathered, &plan->packets[plan->count - 1], &plan->gathered);
    for (uint64_t page = 0; page < WIRE_STRIPE_SIZE / WIRE_PAGE_SIZE; page++) {
        bool in_place = look->resident[page] & 1 && plan->rules.large == PLAN_MAPPED;
        if (plan->gathered.data[page / 64] >> page % 64 & 1)
            gathered_add(look->gathered, (in_place ? stripe : look->buffer) + page * WIRE_PAGE_SIZE);
    }
}

static void look_at_stripe(void *arg)
{
    struct look *look = arg;
    struct plan *plan = look->plan;
    uint64_t rest = look->ref->size - look->offset;
    uint64_t end = rest < WIRE_STRIPE_SIZE ? rest : WIRE_STRIPE_SIZE;
    const char *stripe = look->ref->map + look->offset;

    if (mincore((void *)(uintptr_t)stripe, end, look->resident) < 0)
        memset(look->resident, 0, sizeof(look->resident));
    bool in_buffer = look->ref->tracking;
    if (in_buffer)
        compare_stripe(look, end);
    for (uint64_t at = 0, next; at < end && look->ret == 0; at = next) {
        enum page_kind kind = page_kind(look, at / WIRE_PAGE_SIZE);
        next = end_of_run(look, at, end, kind);
        if (kind == PAGE_UNWANTED)
            continue;
        size_t len = next - at;
        bool in_place = kind == PAGE_RESIDENT && plan->rules.large == PLAN_MAPPED;
        if (kind == PAGE_ABSENT &&
            !in_buffer) /* holes stay holes, which they would not if the mapping were read */
            look->ret = read_file(look->ref->fd, look->buffer + at, len, look->offset + at);
        else if (!in_place && !in_buffer) /* what is compressed or checked must not change meanwhile */
            memcpy(look->buffer + at, stripe + at, len);
        const char *bytes = in_place ? stripe + at : look->buffer + at;
        if (kind == PAGE_ABSENT)
            plan_look(plan, bytes, look->offset + at, len);
        else
            plan_run(plan, bytes, look->offset + at, len);
    }
    if (look->ret == 0 && plan_gather(plan))
        gather(look);
    if (plan->rules.large != PLAN_MAPPED)
        return;
    for (unsigned i = 0; i < plan->count; i++) {
        if (plan->packets[i].type == WIRE_DATA && plan_path(&plan->rules, &plan->packets[i]) == PLAN_COPIED)
            copy_resident(look, &plan->packets[i]);
    }
}

/*
 * Plans the pages of a stripe that @bits name, and gives the packets their places. The bytes of those that do
 * not go straight from the mapping are in the scanner's buffer. The gate does not count them: they are no
 * memory of the daemon's. @pages: how many they are, and how many of them were sent. Return: 0, -EAGAIN: the
 * channel takes nothing more, for a reason of its own; or -EIO with @err.
 */
static int push_stripe(struct reference_scanner *scanner, uint64_t offset, const uint64_t *bits,
                       uint64_t *pages, struct sender_write *write, struct error *err)
{
    const struct reference *ref = scanner->ref;
    struct plan plan;
    struct look look = {.ref = ref,
                        .offset = offset,
                        .bits = bits,
                        .buffer = scanner->buffer,
                        .plan = &plan,
                        .gathered = &scanner->gathered,
                        .reader = &scanner->reader};
    struct path_bytes bytes = {
        .buf = scanner->buffer, .offset = offset, .map = ref->map, .gathered = &scanner->gathered};

    plan_begin(&plan, &ref->rules);
    int64_t begun = clock_ns();
    int lost = guard_call(look_at_stripe, &look);
    if (ref->tracking)
        tracking_count(ref->tracking, look.scanned, look.changed, (uint64_t)(clock_ns() - begun));
    if (lost < 0 || look.ret == -ENODATA)
        return error_set(err, CAUSE_IO, "the RAM source '%.100s' has become shorter", ref->text);
    if (look.ret < 0)
        return error_set(err, CAUSE_IO, "cannot read the RAM source '%.100s': %s", ref->text,
                         strerror(-look.ret));
    *pages = ref->tracking ? look.changed : *pages;
    write->count = 0;
    if (*pages == 0)
        return 0;
    plan_end(&plan, scanner->buffer, offset);
    int ret = sender_accept(write, ref->conn, ref->ram, &plan, &bytes, NULL);
    if (ret == -ENOMEM)
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    write->common.eager = true;
    return ret;
}

/* Sends what was copied for a channel; waits, so that there is a bound to it. */
static void send_copied(struct channel *ch)
{
    channel_send_copied(ch);
    channel_flush(ch, UINT64_MAX, NULL);
}

/* Sends what is asked for of a stripe. @held: up to TOGETHER bytes were copied, and are not sent yet. */
static int send_stripe(struct reference_scanner *scanner, uint64_t stripe, size_t *held, struct error *err)
{
    struct reference *ref = scanner->ref;
    uint64_t bits[PLAN_WORDS], any = 0, pages = 0;
    struct channel *ch = &ref->conn->channels[scanner->channel];
    struct sender_write write;

    for (unsigned i = 0; i < PLAN_WORDS; i++) {
        uint64_t word = stripe * PLAN_WORDS + i;
        bits[i] = word * 64 < ref->dirty.pages ? page_map_take(&ref->dirty, word) : 0;
        any |= bits[i];
        pages += (uint64_t)__builtin_popcountll(bits[i]);
    }
    if (!any)
        return 0;
    /* For the first time: all at once costs less than a fault for each unit of them. */
    if (stripe >= scanner->next) {
        populate_stripe(ref, stripe);
        scanner->next = stripe + ref->ram->homes.count;
    }
    /* A writer of the RAM, who records what he writes, has to come before or after. */
    if (ref->tracking)
        tracking_enter(ref->tracking, stripe * WIRE_STRIPE_SIZE, WIRE_STRIPE_SIZE, NULL);
    int ret = push_stripe(scanner, stripe * WIRE_STRIPE_SIZE, bits, &pages, &write, err);
    if (ref->tracking)
        tracking_leave(ref->tracking, stripe * WIRE_STRIPE_SIZE, WIRE_STRIPE_SIZE);
    if (ret < 0)
        return ret;
    *held += pages * WIRE_PAGE_SIZE;
    if (write.count > 0)
        sender_finish(&write);
    else if (*held >= TOGETHER)
        send_copied(ch);
    else
        return 0;
    *held = 0;
    return 0;
}

static uint64_t stripes_of(const struct reference *ref)
{
    return (ref->size + WIRE_STRIPE_SIZE - 1) / WIRE_STRIPE_SIZE;
}

/* Passes once over all stripes of the scanner's channel. */
static int pass(struct reference_scanner *scanner, struct error *err)
{
    const struct reference *ref = scanner->ref;
    const struct file *ram = ref->ram;
    uint64_t stripes = stripes_of(ref);
    size_t held = 0;
    int ret = 0;

    /* The stripes of RAM go round its channels from the first. */
    static_assert(WIRE_RAM == 0, "file_home() of RAM begins with its first channel");
    for (uint64_t stripe = scanner->channel - ram->homes.first; stripe < stripes && ret == 0;
         stripe += ram->homes.count)
        ret = send_stripe(scanner, stripe, &held, err);
    if (held > 0)
        send_copied(&ref->conn->channels[scanner->channel]);
    return ret;
}

static void *mig_ref(void *arg)
{
    struct reference_scanner *scanner = arg;
    struct reference *ref = scanner->ref;
    unsigned step = ref->ram->homes.count;
    struct error failure = {0};

    pthread_mutex_lock(&ref->lock);
    while (!ref->stopped) {
        uint64_t asked = ref->asked;
        if (scanner->done == asked && scanner->next >= stripes_of(ref)) {
            pthread_cond_wait(&ref->changed, &ref->lock);
            continue;
        }
        pthread_mutex_unlock(&ref->lock);
        if (scanner->done == asked) {
            populate_stripe(ref, scanner->next);
            scanner->next += step;
            pthread_mutex_lock(&ref->lock);
            continue;
        }
        int ret = pass(scanner, &failure);
        /*
         * Before anybody can think that all was sent. That a channel takes nothing
         * more has a reason of its own, which is on its way.
         */
        if (error_is_set(&failure))
            ref->conn->failed(ref->conn->failed_arg, &failure, 0);
        pthread_mutex_lock(&ref->lock);
        if (ret < 0)
            ref->stopped = true;
        else
            scanner->done = asked;
        pthread_cond_broadcast(&ref->changed);
    }
    pthread_mutex_unlock(&ref->lock);
    return NULL;
}

static void free_scanner(struct reference_scanner *scanner)
{
    if (scanner->reader.fd >= 0)
        close(scanner->reader.fd);
    free(scanner->buffer);
}

static int make_scanners(struct reference *ref, struct error *err)
{
    const struct file *ram = ref->ram;

    ref->scanners = calloc(ram->homes.count, sizeof(*ref->scanners));
    if (!ref->scanners)
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    for (unsigned i = 0; i < ram->homes.count; i++) {
        struct reference_scanner *scanner = &ref->scanners[i];
        char name[24];
        *scanner = (struct reference_scanner){
            .ref = ref, .channel = ram->homes.first + i, .next = i, .reader = {.fd = -1}};
        scanner->buffer = malloc(WIRE_STRIPE_SIZE);
        if (!scanner->buffer)
            return error_set(err, CAUSE_NO_MEMORY, "out of memory");
        if (ref->tracking)
            scanner->reader = reference_open(ref);
        int code = pthread_create(&scanner->thread, NULL, mig_ref, scanner);
        if (code) {
            free_scanner(scanner);
            return error_set_errno(err, code, "cannot make a thread");
        }
        snprintf(name, sizeof(name), "mig-ref-%u", scanner->channel);
        pthread_setname_np(scanner->thread, name);
        ref->count = i + 1;
    }
    return 0;
}

/* Huge pages are mapped, and unmapped, whole. */
static uint64_t mapping_size(const struct reference *ref, uint64_t size)
{
    struct statfs fs;
    uint64_t block = fstatfs(ref->fd, &fs) == 0 && fs.f_type == HUGETLBFS_MAGIC ? (uint64_t)fs.f_bsize : 1;

    return (size + block - 1) / block * block;
}

int reference_start(struct reference *ref, struct connection *conn, struct file *ram,
                    const struct plan_rules *rules, struct tracking *tracking, struct error *err)
{
    uint64_t size = atomic_load(&ram->size);

    if (page_map_init(&ref->dirty, size, err) < 0)
        return -EIO;
    ref->mapped = mapping_size(ref, size);
    /* Huge pages that the VMM has not reserved are not for us to reserve. */
    void *map = mmap(NULL, ref->mapped, PROT_READ, MAP_SHARED | MAP_NORESERVE, ref->fd, 0);
    if (map == MAP_FAILED) {
        error_set_errno(err, errno, "cannot map '%.100s'", ref->text);
        page_map_fini(&ref->dirty);
        return -EIO;
    }
    ref->conn = conn;
    ref->ram = ram;
    ref->rules = *rules;
    ref->tracking = tracking;
    /* What is compressed, checked or compared must not change meanwhile: it is copied. */
    ref->rules.large = rules->compress || rules->checksum || tracking ? PLAN_KEPT : PLAN_MAPPED;
    ref->map = map;
    transport_memory_add(map, ref->mapped);
    ref->size = size;
    ref->stopped = false;
    ref->asked = 0;
    if (make_scanners(ref, err) < 0) {
        reference_stop(ref);
        return -EIO;
    }
    return 0;
}

int reference_pin(struct reference *ref, struct error *err)
{
    const struct connection *conn = ref->conn;
    unsigned c = 0;

    while (!conn->channels[c].places)
        c++;
    int ret = transport_pin(conn->channels[c].transport, ref->map, ref->mapped);
    if (ret == -ENOMEM)
        return error_set(
            err, CAUSE_NO_MEMORY,
            "rdma-pin is all, but '%.100s' cannot be pinned: raise RLIMIT_MEMLOCK (ulimit -l), or "
            "take 'demand'",
            ref->text);
    return ret < 0 ? error_set_errno(err, ret,
                                     "rdma-pin is all, but '%.100s' cannot be registered (Linux before "
                                     "6.2 registers no memory that it may only read)",
                                     ref->text)
                   : 0;
}

/* Gives up the page table entries, and lets those in between who wait for the daemon's map of its memory. */
static void let_go(const struct reference *ref)
{
    for (uint64_t at = 0; at < ref->mapped; at += UNMAPPED_AT_ONCE) {
        uint64_t left = ref->mapped - at;
        madvise((void *)(uintptr_t)(ref->map + at), left < UNMAPPED_AT_ONCE ? left : UNMAPPED_AT_ONCE,
                MADV_DONTNEED);
    }
}

void reference_stop(struct reference *ref)
{
    pthread_mutex_lock(&ref->lock);
    ref->stopped = true;
    pthread_cond_broadcast(&ref->changed);
    pthread_mutex_unlock(&ref->lock);
    for (unsigned i = 0; i < ref->count; i++) {
        pthread_join(ref->scanners[i].thread, NULL);
        free_scanner(&ref->scanners[i]);
    }
    if (ref->map)
        let_go(ref);
    /* A thread that looks at what remains holds the lock. */
    SCOPED_LOCK(&ref->lock);
    ref->count = 0;
    free(ref->scanners);
    ref->scanners = NULL;
    if (ref->map) {
        transport_memory_remove((void *)(uintptr_t)ref->map);
        munmap((void *)(uintptr_t)ref->map, ref->mapped);
    }
    ref->map = NULL;
    page_map_fini(&ref->dirty);
}

/* The bits of word @word that are pages of the image. */
static uint64_t pages_in_word(const struct reference *ref, uint64_t word)
{
    uint64_t pages = ref->dirty.pages;

    /* Not word * 64, which can overflow. */
    if (word > pages / 64)
        return 0;
    uint64_t rest = pages - word * 64;
    return rest >= 64 ? ~0ull : (1ull << rest) - 1;
}

static uint64_t load_word(const char *bitmap, size_t at)
{
    uint64_t bits;

    memcpy(&bits, bitmap + at, sizeof(bits));
    return le64toh(bits);
}

int reference_mark(struct reference *ref, const void *bitmap, size_t len, uint64_t offset, struct error *err)
{
    uint64_t first = offset / 8;

    if (len % 8 || offset % 8)
        return error_set(
            err, CAUSE_SYNTAX,
            "a dirty bitmap is written in 64-bit words: %zu bytes at %llu are not multiples of 8", len,
            (unsigned long long)offset);
    SCOPED_LOCK(&ref->lock);
    if (ref->sealers)
        return error_set(err, CAUSE_STATE, "the migration is being completed");
    if (ref->stopped)
        return error_set(err, CAUSE_RESET, "the migration is over");
    for (size_t i = 0; i < len / 8; i++) {
        if (load_word(bitmap, 8 * i) && !pages_in_word(ref, first + i))
            return error_set(
                err, CAUSE_TOO_BIG,
                "dirty pages at byte %llu of the bitmap, which ends at %llu for RAM of %llu bytes",
                (unsigned long long)offset + 8 * i, (unsigned long long)(ref->dirty.pages + 63) / 64 * 8,
                (unsigned long long)ref->size);
    }
    for (size_t i = 0; i < len / 8; i++) {
        uint64_t bits = load_word(bitmap, 8 * i) & pages_in_word(ref, first + i);
        if (bits)
            page_map_merge(&ref->dirty, first + i, bits);
    }
    ref->asked++;
    pthread_cond_broadcast(&ref->changed);
    return 0;
}

void reference_mark_all(struct reference *ref)
{
    SCOPED_LOCK(&ref->lock);
    if (ref->stopped)
        return;
    for (uint64_t word = 0; word * 64 < ref->dirty.pages; word++)
        page_map_merge(&ref->dirty, word, pages_in_word(ref, word));
    ref->asked++;
    pthread_cond_broadcast(&ref->changed);
}

static bool is_covered(const struct reference *ref, uint64_t asked)
{
    /* After the end no scanner is left that could have. */
    if (ref->count == 0)
        return false;
    for (unsigned i = 0; i < ref->count; i++) {
        if (ref->scanners[i].done < asked)
            return false;
    }
    return true;
}

int reference_drain(struct reference *ref, const struct interrupt *interrupt)
{
    SCOPED_LOCK(&ref->lock);
    uint64_t asked = ref->asked;

    while (!is_covered(ref, asked)) {
        if (interrupt_is_hit(interrupt))
            return -EINTR;
        if (ref->stopped)
            return -ECONNRESET;
        pthread_cond_wait(&ref->changed, &ref->lock);
    }
    return 0;
}

struct reference_reader reference_open(const struct reference *ref)
{
    struct reference_reader reader = {.fd = -1};
    char path[40];

    if (ref->fd < 0)
        return reader;
    /* The descriptor that the VMM gave shares its position with the VMM's. */
    snprintf(path, sizeof(path), "/proc/self/fd/%d", ref->fd);
    reader.fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    reader.seeks = reader.fd >= 0;
    if (!reader.seeks)
        reader.fd = fcntl(ref->fd, F_DUPFD_CLOEXEC, 0);
    return reader;
}

ssize_t reference_read(const struct reference_reader *reader, uint64_t offset, void *buf, size_t len)
{
    int hole = is_hole(reader, offset, len);

    if (hole)
        return hole < 0 ? hole : 0;
    int ret = read_file(reader->fd, buf, len, offset);
    return ret < 0 ? ret : (ssize_t)len;
}

void reference_seal(struct reference *ref, bool sealed)
{
    SCOPED_LOCK(&ref->lock);
    ref->sealers += sealed ? 1 : -1u;
}

int reference_dup(const struct reference *ref)
{
    if (ref->fd < 0)
        return -EOPNOTSUPP;
    int fd = fcntl(ref->fd, F_DUPFD_CLOEXEC, 0);
    return fd < 0 ? -errno : fd;
}

size_t reference_read_dirty(struct reference *ref, uint64_t offset, void *buf, size_t len)
{
    SCOPED_LOCK(&ref->lock);
    uint64_t size = ref->map ? (ref->dirty.pages + 63) / 64 * 8 : 0;

    if (offset >= size)
        return 0;
    if (len > size - offset)
        len = (size_t)(size - offset);
    page_map_read(&ref->dirty, offset, buf, len);
    return len;
}

uint64_t reference_remaining(const struct reference *ref)
{
    SCOPED_LOCK((pthread_mutex_t *)(uintptr_t)&ref->lock);
    return ref->map ? page_map_count(&ref->dirty) : 0;
}

void reference_kick(struct reference *ref)
{
    SCOPED_LOCK(&ref->lock);
    pthread_cond_broadcast(&ref->changed);
}
