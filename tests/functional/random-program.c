/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random operations on an outgoing migration, done to a model in memory too,
 * and what the destination has and both sides count, compared with the model.
 *
 *   random-program SOURCE-MOUNT DESTINATION-MOUNT URI NAME SEED STEPS [KEY=VALUE...]
 *
 * Makes the migration NAME, carries it through to `complete`, and removes it.
 * Keys of the program's own:
 *   threads=N    that operate at once; with one the run can be repeated exactly
 *   size=BYTES   the largest size of the image
 *   declared=1   the size is declared before `start`
 *   devices=N    at most
 *   rounds=N     how often all threads meet, and everything is compared
 *   watch=1      a thread more reads all the time at both sides, and compares nothing
 * All other keys are settings of the migration.
 *
 * Theory of operation
 *   Of operations that overlap, the file and the model see the same one last:
 *   a thread holds the locks of all blocks of its range while it does first
 *   the one and then the other. What moves the size holds the image's lock for
 *   writing; a device has one lock. So the model is exact at any time for
 *   whoever holds the locks, and with them held a thread can also pass a
 *   barrier by itself and compare its range while the others go on.
 *
 *   Whatever fails is reported with the seed, the settings and the step, and,
 *   for a byte that is wrong, with the step that changed it last.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE         4096u
#define STRIPE       (1u << 20)
#define BLOCK        (64u << 10)
#define LONGEST      (3u << 20)
#define REQUEST      (1u << 20) /* a longer write is cut by the kernel, where we cannot know */
#define DEVICE_MAX   (3u << 20)
#define DEVICES_MAX  16
#define HANDLES      3
#define THREADS_MAX  32
#define CHANNELS_MAX 128
#define KEYS_MAX     2048

/* One thread's state. */
struct worker {
    uint64_t random;
    unsigned index;
    char *buf; /* LONGEST, at a page's start */
    int fd;    /* of the image */
    bool direct;
};

enum received { MISSING, RECEIVED, EITHER };

struct device {
    pthread_mutex_t lock; /* guards the rest */
    bool exists, touched; /* touched: has got something since it was made, or opened with O_TRUNC, so that it can end */
    char path[600], there[600], sync[300];
    int fds[HANDLES]; /* -1: closed */
    bool appends[HANDLES];
    char *model;
    uint64_t size;
    uint64_t prefix; /* arrived without a gap, by what was written: a reader must get that much */
    uint32_t *step;  /* that changed a page last */
};

static struct {
    char text[1024]; /* the settings, for reports */
    uint64_t seed, steps, limit;
    unsigned threads, devices, rounds;
    bool declared, watch, detection;
} config = {.limit = 20u << 20, .threads = 4, .devices = 4, .rounds = 10, .detection = true};

static char source[512], destination[512];
static atomic_uint step;
static _Atomic(const char *) doing[THREADS_MAX + 1];

static struct {
    pthread_rwlock_t lock; /* for writing: the size changes */
    pthread_mutex_t *blocks;
    pthread_mutex_t size_lock; /* writes that grow; a leaf lock */
    uint64_t size;
    char *model;
    uint8_t *received; /* enum received, of each page */
    uint32_t *step;
} image;

static struct device devices[DEVICES_MAX];

/* What must have been counted. */
static struct {
    _Atomic uint64_t written, device_written, discarded;
    _Atomic uint64_t zero_min, zero_max;   /* pages */
    _Atomic uint64_t first, first_unsure;  /* pages */
    _Atomic uint64_t rounds;
} counted;

static pthread_barrier_t meeting;
static atomic_bool over;

static void report_place(void)
{
    fflush(stdout);
    fprintf(stderr, "random-program: seed %" PRIu64 ", step %u of %" PRIu64 ",%s\n", config.seed, atomic_load(&step),
            config.steps, config.text);
}

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *format, ...)
{
    static pthread_mutex_t once = PTHREAD_MUTEX_INITIALIZER;
    va_list args;

    pthread_mutex_lock(&once);
    report_place();
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    _exit(1);
}

/* The time is over: who is where? */
static void on_term(int signal)
{
    (void)signal;
    report_place();
    for (unsigned i = 0; i <= config.threads; i++)
        fprintf(stderr, "thread %u: %s\n", i, doing[i] ? doing[i] : "nothing");
    _exit(1);
}

static uint64_t draw(struct worker *w, uint64_t n)
{
    w->random = w->random * 6364136223846793005ull + 1442695040888963407ull;
    uint64_t x = w->random ^ w->random >> 33;
    x *= 0xff51afd7ed558ccdull;
    return (x ^ x >> 33) % n;
}

static void now(const struct worker *w, const char *what)
{
    atomic_store(&doing[w->index], what);
}

/*
 * Files
 */

static char *path_of(const char *directory, const char *name)
{
    static __thread char path[4][1200];
    static __thread unsigned turn;

    turn = (turn + 1) % 4;
    snprintf(path[turn], sizeof(path[turn]), "%s/%s", directory, name);
    return path[turn];
}

/* What a text file says; the caller frees it. */
static char *slurp(const char *path)
{
    size_t size = 0, room = 1 << 16;
    char *text = malloc(room);
    int fd = open(path, O_RDONLY);

    if (fd < 0)
        die("%s: %s", path, strerror(errno));
    for (;;) {
        ssize_t n = pread(fd, text + size, room - size - 1, (off_t)size);
        if (n < 0)
            die("reading %s: %s", path, strerror(errno));
        if (n == 0)
            break;
        size += (size_t)n;
        if (room - size < 4096)
            text = realloc(text, room *= 2);
    }
    close(fd);
    text[size] = '\0';
    return text;
}

static void spill(const char *name, const char *text)
{
    const char *path = path_of(source, name);
    int fd = open(path, O_WRONLY);
    int code = fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text) ? errno : 0;

    if (code)
        die("'%s' to %s: %s: %s", text, path, strerror(code), slurp(path_of(source, "error")));
    close(fd);
}

static void tell(const char *command)
{
    spill("control", command);
    if (!strcmp(command, "sync") || !strcmp(command, "sync ram"))
        counted.rounds++;
}

/*
 * What is written
 */

static void fill_random(struct worker *w, char *buf, size_t len)
{
    for (size_t i = 0; i < len; i += 8) {
        uint64_t word = draw(w, UINT64_MAX);
        memcpy(buf + i, &word, len - i < 8 ? len - i : 8);
    }
}

static void fill_text(struct worker *w, char *buf, size_t len)
{
    static const char *const words[] = {"page ", "channel ", "barrier ", "dirty ", "zero\n", "stripe ", "0000 ", "\t"};
    size_t at = 0;

    while (at < len) {
        const char *word = words[draw(w, 8)];
        size_t n = strlen(word) < len - at ? strlen(word) : len - at;
        memcpy(buf + at, word, n);
        at += n;
    }
}

/* Fills with data of some kind, so that a page at @offset of the file lies in the buffer as in the file. */
static void fill(struct worker *w, char *buf, size_t len, uint64_t offset)
{
    uint64_t kind = draw(w, 10);
    size_t at = 0;

    if (kind < 2)
        fill_random(w, buf, len);
    else if (kind < 4)
        fill_text(w, buf, len);
    else
        memset(buf, kind < 9 ? 0 : (int)draw(w, 256), len);
    /* Kinds 5 to 8: zeros with something in them, by pages. */
    while (kind >= 5 && kind < 9 && at < len) {
        size_t n = PAGE - (offset + at) % PAGE < len - at ? PAGE - (offset + at) % PAGE : len - at;
        uint64_t what = draw(w, kind == 8 ? 12 : 4);
        if (what == 0)
            fill_random(w, buf + at, n);
        else if (what == 1)
            buf[at + draw(w, n)] = (char)(1 + draw(w, 255));
        else if (what == 2 && kind == 7)
            buf[at + n - 1] = 1;
        at += n;
    }
}

static bool is_zero(const char *buf, size_t len)
{
    return buf[0] == 0 && !memcmp(buf, buf + 1, len - 1);
}

static void count_zero_pages(const char *buf, size_t len, uint64_t offset)
{
    uint64_t n = 0;

    for (size_t at = (PAGE - offset % PAGE) % PAGE; at + PAGE <= len; at += PAGE)
        n += is_zero(buf + at, PAGE);
    counted.zero_max += n;
    if (len <= REQUEST)
        counted.zero_min += n;
}

static size_t draw_length(struct worker *w)
{
    uint64_t kind = draw(w, 100);

    if (kind < 10)
        return 1 + draw(w, 64);
    if (kind < 35)
        return PAGE * (1 + draw(w, 4));
    if (kind < 60)
        return 1 + draw(w, 9000);
    if (kind < 75)
        return PAGE * (1 + draw(w, 64));
    if (kind < 93)
        return 1 + draw(w, 300000);
    return kind < 96 ? STRIPE : 1 + draw(w, LONGEST);
}

static uint64_t draw_offset(struct worker *w, uint64_t limit)
{
    uint64_t offset = draw(w, limit), kind = draw(w, 8);

    /* Some corners are visited more than others. */
    if (kind < 3)
        offset = offset / PAGE * PAGE;
    else if (kind == 3)
        offset = offset / STRIPE * STRIPE;
    else if (kind == 4 && offset >= STRIPE)
        offset = offset / STRIPE * STRIPE - draw(w, 2 * PAGE);
    else if (kind == 5)
        offset = draw(w, limit < 3 * BLOCK ? limit : 3 * BLOCK);
    return offset;
}

/*
 * The image
 */

static void lock_blocks(uint64_t offset, uint64_t len)
{
    pthread_rwlock_rdlock(&image.lock);
    for (uint64_t b = offset / BLOCK; b <= (offset + len - 1) / BLOCK; b++)
        pthread_mutex_lock(&image.blocks[b]);
}

static void unlock_blocks(uint64_t offset, uint64_t len)
{
    for (uint64_t b = offset / BLOCK; b <= (offset + len - 1) / BLOCK; b++)
        pthread_mutex_unlock(&image.blocks[b]);
    pthread_rwlock_unlock(&image.lock);
}

static void image_grow(uint64_t end)
{
    pthread_mutex_lock(&image.size_lock);
    if (end > image.size)
        image.size = end;
    pthread_mutex_unlock(&image.size_lock);
}

static uint64_t image_size(void)
{
    pthread_mutex_lock(&image.size_lock);
    uint64_t size = image.size;
    pthread_mutex_unlock(&image.size_lock);
    return size;
}

/* The range is the caller's. */
static void model_write(const char *buf, size_t len, uint64_t offset, unsigned at_step)
{
    memcpy(image.model + offset, buf, len);
    image_grow(offset + len);
    for (uint64_t page = offset / PAGE; page <= (offset + len - 1) / PAGE; page++) {
        counted.first += image.received[page] == MISSING;
        counted.first_unsure += image.received[page] == EITHER;
        image.received[page] = RECEIVED;
        image.step[page] = at_step;
    }
}

/* @size: of the file before. */
static void model_clear(uint64_t offset, uint64_t end, uint64_t size, bool truncated, unsigned at_step)
{
    if (offset >= end)
        return;
    memset(image.model + offset, 0, end - offset);
    for (uint64_t page = offset / PAGE; page <= (end - 1) / PAGE; page++) {
        image.step[page] = at_step;
        if (page * PAGE < offset)
            continue;
        /* A hole to the end of the file: whether its last page lies in it whole is a matter of taste. */
        if (page * PAGE + PAGE <= end || truncated)
            image.received[page] = MISSING;
        else if (image.received[page] == RECEIVED && end == size)
            image.received[page] = EITHER;
    }
}

static void image_write(struct worker *w, unsigned at_step)
{
    size_t len = draw_length(w);
    uint64_t offset = draw_offset(w, config.limit);

    now(w, "write to the image");
    if (w->direct) {
        offset = offset / PAGE * PAGE;
        len = (len + PAGE - 1) / PAGE * PAGE;
    }
    if (len > config.limit - offset)
        len = config.limit - offset;
    fill(w, w->buf, len, offset);
    lock_blocks(offset, len);
    ssize_t n = pwrite(w->fd, w->buf, len, (off_t)offset);
    if (n != (ssize_t)len)
        die("a write of %zu bytes at %" PRIu64 " gives %zd: %s", len, offset, n, strerror(errno));
    model_write(w->buf, len, offset, at_step);
    unlock_blocks(offset, len);
    counted.written += len;
    count_zero_pages(w->buf, len, offset);
}

/* Holes, and what else fallocate(2) does. */
static void image_fallocate(struct worker *w, unsigned at_step)
{
    static const int modes[] = {FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE, 0,
                                FALLOC_FL_KEEP_SIZE};
    int mode = modes[draw(w, 6)];
    uint64_t offset = draw_offset(w, config.limit), len = draw_length(w) * (1 + draw(w, 3));

    now(w, "fallocate of the image");
    if (len > config.limit - offset)
        len = config.limit - offset;
    bool grows = !(mode & FALLOC_FL_KEEP_SIZE), clears = mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE);
    /* Where the end of the file has a say, nobody may move it meanwhile. */
    bool alone = grows;
    if (!alone) {
        lock_blocks(offset, len);
        alone = offset + len > image_size();
        if (alone)
            unlock_blocks(offset, len);
    }
    if (alone)
        pthread_rwlock_wrlock(&image.lock);
    if (fallocate(w->fd, mode, (off_t)offset, (off_t)len) < 0)
        die("fallocate of mode %d, %" PRIu64 " bytes at %" PRIu64 ": %s", mode, len, offset, strerror(errno));
    uint64_t size = image_size(), end = offset + len < size ? offset + len : size;
    if (clears && offset < end) {
        counted.discarded += end - offset;
        model_clear(offset, end, size, false, at_step);
    }
    if (grows)
        image_grow(offset + len);
    if (alone)
        pthread_rwlock_unlock(&image.lock);
    else
        unlock_blocks(offset, len);
}

static void image_truncate(struct worker *w, unsigned at_step)
{
    uint64_t kind = draw(w, 10), size = 0;
    int failed;

    now(w, "truncation of the image");
    pthread_rwlock_wrlock(&image.lock);
    if (kind < 4)
        size = config.limit - draw(w, config.limit / 4);
    else if (kind < 9)
        size = draw_offset(w, config.limit);
    if (kind == 9) {
        int fd = open(path_of(source, "ram"), O_WRONLY | O_TRUNC);
        failed = fd < 0 || close(fd) < 0;
    } else {
        failed = kind < 2 ? truncate(path_of(source, "ram"), (off_t)size) : ftruncate(w->fd, (off_t)size);
    }
    if (failed)
        die("truncation to %" PRIu64 ": %s", size, strerror(errno));
    model_clear(size, image.size, image.size, true, at_step);
    image.size = size;
    pthread_rwlock_unlock(&image.lock);
}

/* @len bytes of a file at the destination that ought to be there. */
static void read_there(int fd, char *buf, size_t len, uint64_t offset, const char *name)
{
    size_t got = 0;

    while (got < len) {
        ssize_t n = pread(fd, buf + got, len - got, (off_t)(offset + got));
        if (n < 0)
            die("reading %s at the destination at %" PRIu64 ": %s", name, offset + got, strerror(errno));
        if (n == 0)
            die("%s ends at %" PRIu64 " at the destination, %" PRIu64 " were written", name, offset + got, offset + len);
        got += (size_t)n;
    }
}

static void compare_bytes(const char *have, const char *want, size_t len, uint64_t offset, const uint32_t *steps,
                          const char *name, const char *when)
{
    size_t i = 0, last = len;

    if (!memcmp(have, want, len))
        return;
    while (have[i] == want[i])
        i++;
    while (have[last - 1] == want[last - 1])
        last--;
    die("%s: %s is wrong from %" PRIu64 " to %" PRIu64 ": %02x instead of %02x; step %u changed the first page last",
        when, name, offset + i, offset + last, (unsigned char)have[i], (unsigned char)want[i],
        steps[(offset + i) / PAGE]);
}

/* The range of the image that is locked. */
static void compare_image(struct worker *w, uint64_t offset, uint64_t len, const char *when)
{
    int fd = open(path_of(destination, "ram"), O_RDONLY);

    if (fd < 0)
        die("the destination's ram: %s", strerror(errno));
    for (uint64_t at = offset; at < offset + len;) {
        size_t n = offset + len - at < STRIPE ? offset + len - at : STRIPE;
        read_there(fd, w->buf, n, at, "the image");
        compare_bytes(w->buf, image.model + at, n, at, image.step, "the image", when);
        at += n;
    }
    close(fd);
}

/* A barrier while the others go on: what this thread has locked must be there. */
static void image_verify(struct worker *w)
{
    uint64_t offset = draw_offset(w, config.limit), len = draw_length(w), kind = draw(w, 3), size;

    now(w, "verifying a range of the image");
    if (len > config.limit - offset)
        len = config.limit - offset;
    lock_blocks(offset, len);
    if (kind == 0) {
        if (fsync(w->fd) < 0)
            die("fsync: %s", strerror(errno));
        counted.rounds++;
    } else {
        size = image_size();
        tell(kind == 1 ? "sync" : "sync ram");
    }
    /* It may have grown meanwhile. */
    size = image_size();
    if (offset < size) {
        struct stat st;
        uint64_t end = offset + len < size ? offset + len : size;
        if (stat(path_of(destination, "ram"), &st) < 0)
            die("stat: %s", strerror(errno));
        if ((uint64_t)st.st_size < end)
            end = (uint64_t)st.st_size > offset ? (uint64_t)st.st_size : offset;
        compare_image(w, offset, end - offset, "after a barrier in the middle");
    }
    unlock_blocks(offset, len);
}

/*
 * Devices
 */

static int open_handle(const struct device *d)
{
    for (int i = 0; i < HANDLES; i++) {
        if (d->fds[i] >= 0)
            return i;
    }
    return -1;
}

static void device_resized(struct device *d, uint64_t size, unsigned at_step)
{
    if (size < d->size) {
        memset(d->model + size, 0, d->size - size);
        for (uint64_t page = size / PAGE; page <= (d->size - 1) / PAGE; page++)
            d->step[page] = at_step;
    }
    if (size > 0 && size != d->size && at_step > 0)
        d->touched = true;
    d->size = size;
    if (d->prefix > size)
        d->prefix = size;
}

static void device_open(struct worker *w, struct device *d, int handle, unsigned at_step)
{
    int flags = draw(w, 3) ? O_WRONLY : O_RDWR;

    now(w, "opening a device");
    d->appends[handle] = draw(w, 3) == 0;
    if (d->appends[handle])
        flags |= O_APPEND;
    if (!d->exists)
        flags |= draw(w, 2) ? O_CREAT | O_EXCL : O_CREAT;
    else if (draw(w, 4) == 0)
        flags |= O_TRUNC;
    d->fds[handle] = open(d->path, flags, 0600);
    if (d->fds[handle] < 0)
        die("opening %s with flags %o: %s", d->path, flags, strerror(errno));
    d->exists = true;
    if (flags & O_TRUNC) {
        device_resized(d, 0, at_step);
        d->touched = false;
    }
}

static void device_close(struct device *d, int handle)
{
    if (d->fds[handle] >= 0 && close(d->fds[handle]) < 0)
        die("closing %s: %s", d->path, strerror(errno));
    d->fds[handle] = -1;
}

static void device_write(struct worker *w, struct device *d, int handle, unsigned at_step)
{
    size_t len = draw_length(w);
    uint64_t room = d->size + BLOCK < DEVICE_MAX ? d->size + BLOCK : DEVICE_MAX;
    uint64_t offset = d->appends[handle] || draw(w, 2) ? d->size : draw_offset(w, room);

    now(w, "writing to a device");
    if (offset >= DEVICE_MAX)
        return;
    if (len > DEVICE_MAX - offset)
        len = DEVICE_MAX - offset;
    fill(w, w->buf, len, offset);
    ssize_t n = d->appends[handle] ? write(d->fds[handle], w->buf, len) : pwrite(d->fds[handle], w->buf, len, (off_t)offset);
    if (n != (ssize_t)len)
        die("a write of %zu bytes at %" PRIu64 " of %s gives %zd: %s", len, offset, d->path, n, strerror(errno));
    memcpy(d->model + offset, w->buf, len);
    d->touched = true;
    for (uint64_t page = offset / PAGE; page <= (offset + len - 1) / PAGE; page++)
        d->step[page] = at_step;
    if (offset + len > d->size)
        d->size = offset + len;
    if (offset <= d->prefix && offset + len > d->prefix)
        d->prefix = offset + len;
    counted.device_written += len;
}

static void device_fallocate(struct worker *w, struct device *d, int handle, unsigned at_step)
{
    bool grows = draw(w, 3) == 0;
    int mode = grows ? FALLOC_FL_ZERO_RANGE : FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    uint64_t offset = draw_offset(w, DEVICE_MAX), len = draw_length(w);

    now(w, "fallocate of a device");
    if (len > DEVICE_MAX - offset)
        len = DEVICE_MAX - offset;
    if (fallocate(d->fds[handle], mode, (off_t)offset, (off_t)len) < 0)
        die("fallocate of %s: %s", d->path, strerror(errno));
    uint64_t end = offset + len < d->size ? offset + len : d->size;
    if (offset < end) {
        memset(d->model + offset, 0, end - offset);
        for (uint64_t page = offset / PAGE; page <= (end - 1) / PAGE; page++)
            d->step[page] = at_step;
        counted.discarded += end - offset;
    }
    if (grows && offset + len > d->size)
        device_resized(d, offset + len, at_step);
}

/* All that is written has been applied. What can be read without waiting must be right, and include the prefix. */
static void compare_prefix(struct worker *w, struct device *d, const char *when)
{
    int fd = open(d->there, O_RDONLY | O_NONBLOCK);
    uint64_t at = 0;
    ssize_t n;

    if (fd < 0)
        die("%s: %s", d->there, strerror(errno));
    while ((n = pread(fd, w->buf, STRIPE, (off_t)at)) > 0) {
        if (at + (uint64_t)n > d->size)
            die("%s: %s can be read up to %" PRIu64 ", though %" PRIu64 " are written", when, d->there, at + (uint64_t)n, d->size);
        compare_bytes(w->buf, d->model + at, (size_t)n, at, d->step, d->there, when);
        at += (uint64_t)n;
    }
    if (n < 0 && errno != EAGAIN)
        die("reading %s: %s", d->there, strerror(errno));
    if (n == 0)
        die("%s: %s is at its end, though it is %s at the source", when, d->there, d->touched ? "open" : "not begun");
    if (at < d->prefix)
        die("%s: %s can be read up to %" PRIu64 " of %" PRIu64 ", which have no gap", when, d->there, at, d->prefix);
    close(fd);
}

/* Nobody has it open at the source: a reader gets to the end. */
static void compare_device(struct worker *w, struct device *d, const char *when)
{
    int fd = open(d->there, O_RDONLY);
    uint64_t at = 0;
    struct stat st;
    ssize_t n;

    if (fd < 0)
        die("%s: %s", d->there, strerror(errno));
    while ((n = pread(fd, w->buf, STRIPE, (off_t)at)) > 0) {
        if (at + (uint64_t)n > d->size)
            die("%s: %s has %" PRIu64 " bytes or more, %" PRIu64 " are written", when, d->there, at + (uint64_t)n, d->size);
        compare_bytes(w->buf, d->model + at, (size_t)n, at, d->step, d->there, when);
        at += (uint64_t)n;
    }
    if (n < 0)
        die("reading %s: %s", d->there, strerror(errno));
    if (at != d->size)
        die("%s: %s ends at %" PRIu64 " of %" PRIu64, when, d->there, at, d->size);
    if (fstat(fd, &st) < 0 || (uint64_t)st.st_size != d->size)
        die("%s: %s has the size %" PRIu64 ", not %" PRIu64, when, d->there, (uint64_t)st.st_size, d->size);
    close(fd);
}

/* Removed; whoever has it open may go on, and it goes nowhere. */
static void device_remove(struct worker *w, struct device *d, unsigned at_step)
{
    int orphan = d->fds[0];

    now(w, "removing a device");
    d->fds[0] = -1;
    for (int i = 0; i < HANDLES; i++)
        device_close(d, i);
    if (unlink(d->path) < 0)
        die("removing %s: %s", d->path, strerror(errno));
    d->exists = false;
    device_resized(d, 0, at_step);
    d->touched = false;
    if (orphan < 0)
        return;
    if (pwrite(orphan, w->buf, 1 + draw(w, 9000), (off_t)draw(w, DEVICE_MAX)) < 1 ||
        ftruncate(orphan, (off_t)draw(w, DEVICE_MAX)) < 0 || (draw(w, 4) == 0 && fsync(orphan) < 0))
        die("%s, which has been removed: %s", d->path, strerror(errno));
    close(orphan);
}

/* Renamed, also in the place of another one. The caller has the locks of both. */
static void device_rename(struct worker *w, struct device *from, struct device *to, unsigned at_step)
{
    now(w, "renaming a device");
    for (int i = 0; i < HANDLES; i++)
        device_close(to, i);
    if (rename(from->path, to->path) < 0)
        die("renaming %s to %s: %s", from->path, to->path, strerror(errno));
    char *model = to->model;
    uint32_t *steps = to->step;
    uint64_t size = to->size;
    to->model = from->model;
    to->step = from->step;
    to->size = from->size;
    to->prefix = from->prefix;
    to->touched = from->touched;
    to->exists = true;
    memcpy(to->fds, from->fds, sizeof(to->fds));
    memcpy(to->appends, from->appends, sizeof(to->appends));
    from->model = model;
    from->step = steps;
    from->size = size;
    from->exists = from->touched = false;
    for (int i = 0; i < HANDLES; i++)
        from->fds[i] = -1;
    device_resized(from, 0, at_step);
    from->touched = false;
}

static void device_verify(struct worker *w, struct device *d)
{
    uint64_t kind = draw(w, 3);

    now(w, "verifying a device");
    if (kind == 0) {
        if (fdatasync(d->fds[open_handle(d)]) < 0)
            die("fdatasync of %s: %s", d->path, strerror(errno));
        compare_prefix(w, d, "after fdatasync");
    } else if (kind == 1) {
        tell(d->sync);
        compare_prefix(w, d, "after a sync of the device");
    } else {
        for (int i = 0; i < HANDLES; i++)
            device_close(d, i);
        /* So that the destination knows that it was opened at all. */
        tell(d->sync);
        if (d->touched)
            compare_device(w, d, "after the last close");
        else
            compare_prefix(w, d, "after the last close");
    }
}

static void device_operate(struct worker *w, unsigned at_step)
{
    struct device *d = &devices[draw(w, config.devices)];
    uint64_t kind = draw(w, 100);

    pthread_mutex_lock(&d->lock);
    int handle = d->exists && d->fds[draw(w, HANDLES)] >= 0 ? open_handle(d) : -1;
    if (!d->exists || open_handle(d) < 0) {
        device_open(w, d, 0, at_step);
    } else if (handle < 0) {
        handle = (int)draw(w, HANDLES);
        if (d->fds[handle] < 0)
            device_open(w, d, handle, at_step);
    } else if (kind < 60) {
        device_write(w, d, handle, at_step);
    } else if (kind < 70) {
        device_close(d, (int)draw(w, HANDLES));
    } else if (kind < 78) {
        uint64_t size = draw(w, 2) ? draw(w, d->size + 1) : draw_offset(w, DEVICE_MAX);
        now(w, "truncating a device");
        if (ftruncate(d->fds[handle], (off_t)size) < 0)
            die("truncation of %s to %" PRIu64 ": %s", d->path, size, strerror(errno));
        device_resized(d, size, at_step);
    } else if (kind < 85) {
        device_fallocate(w, d, handle, at_step);
    } else if (kind < 92) {
        device_verify(w, d);
    } else if (kind < 95) {
        device_remove(w, d, at_step);
    } else if (kind < 98) {
        struct device *to = &devices[draw(w, config.devices)];
        /* Only one that nobody operates on now. */
        if (to != d && pthread_mutex_trylock(&to->lock) == 0) {
            device_rename(w, d, to, at_step);
            pthread_mutex_unlock(&to->lock);
        }
    }
    pthread_mutex_unlock(&d->lock);
}

/*
 * Counters
 */

struct status {
    char *text;
    unsigned n;
    const char *keys[KEYS_MAX], *values[KEYS_MAX];
};

static void status_read(const char *directory, struct status *out)
{
    out->n = 0;
    out->text = slurp(path_of(directory, "status"));
    for (char *save, *line = strtok_r(out->text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char *space = strchr(line, ' ');
        if (!space || out->n == KEYS_MAX)
            die("a line of status: '%s'", line);
        *space = '\0';
        out->keys[out->n] = line;
        out->values[out->n++] = space + 1;
    }
}

static const char *status_text(const struct status *s, const char *key)
{
    for (unsigned i = 0; i < s->n; i++) {
        if (!strcmp(s->keys[i], key))
            return s->values[i];
    }
    die("status has no %s", key);
}

static uint64_t status_get(const struct status *s, const char *key)
{
    return strtoull(status_text(s, key), NULL, 10);
}

static uint64_t status_channel(const struct status *s, unsigned channel, const char *what)
{
    char key[64];

    snprintf(key, sizeof(key), "channel-%u-%s", channel, what);
    return status_get(s, key);
}

static const char *const summands[] = {"normal-bytes", "zero-bytes", "discarded-bytes", "device-bytes"};
#define SUMMANDS (sizeof(summands) / sizeof(summands[0]))

/* accepted = normal + zero + discarded + device, of each channel and in sum; the sum is that of the channels. */
static void check_sums(const struct status *s, const char *side, const char *when)
{
    uint64_t channels = status_get(s, "channels"), total = 0, sums[SUMMANDS] = {0}, accepted = 0;

    for (unsigned c = 0; c < channels; c++) {
        uint64_t sum = 0;
        for (unsigned i = 0; i < SUMMANDS; i++) {
            uint64_t value = status_channel(s, c, summands[i]);
            sums[i] += value;
            sum += value;
        }
        if (sum != status_channel(s, c, "accepted-bytes"))
            die("%s: channel %u of the %s has accepted %" PRIu64 " bytes, and sent or received %" PRIu64, when, c, side,
                status_channel(s, c, "accepted-bytes"), sum);
        accepted += status_channel(s, c, "accepted-bytes");
    }
    for (unsigned i = 0; i < SUMMANDS; i++) {
        if (sums[i] != status_get(s, summands[i]))
            die("%s: %s of the channels of the %s are %" PRIu64 " in sum, %" PRIu64 " together", when, summands[i], side,
                sums[i], status_get(s, summands[i]));
        total += sums[i];
    }
    if (accepted != status_get(s, "accepted-bytes") || total != accepted)
        die("%s: the %s has accepted %" PRIu64 " bytes, its channels %" PRIu64 ", and sent or received %" PRIu64, when,
            side, status_get(s, "accepted-bytes"), accepted, total);
    if (status_get(s, "zero-bytes") != status_get(s, "duplicate") * PAGE)
        die("%s: zero-bytes and duplicate of the %s do not fit", when, side);
}

static void check_equal(const struct status *a, const struct status *b, const char *key, const char *when)
{
    if (status_get(a, key) != status_get(b, key))
        die("%s: %s is %" PRIu64 " at the source and %" PRIu64 " at the destination", when, key, status_get(a, key),
            status_get(b, key));
}

static void check_range(const struct status *s, const char *key, uint64_t min, uint64_t max, const char *when)
{
    uint64_t value = status_get(s, key);

    if (value < min || value > max)
        die("%s: %s is %" PRIu64 ", not %" PRIu64 " to %" PRIu64, when, key, value, min, max);
}

/* Everything that was accepted has been applied. */
static void check_counters(const char *state, const char *when)
{
    static struct status here, there;
    static const char *const same[] = {"status",       "channels", "device-channels", "accepted-bytes",
                                       "normal",       "normal-bytes", "duplicate",   "zero-bytes",
                                       "discarded-bytes", "device-bytes", "devices",  "ram-size", "page-size"};
    static const char *const same_channel[] = {"accepted-bytes", "normal-bytes", "zero-bytes", "discarded-bytes",
                                               "device-bytes", "packets", "bytes"};
    uint64_t existing = 0;
    char key[64];

    do {
        status_read(source, &here);
        status_read(destination, &there);
    } while (!strcmp(status_text(&here, "status"), "paused") || !strcmp(status_text(&there, "status"), "paused"));
    if (strcmp(status_text(&here, "status"), state) || strcmp(status_text(&there, "status"), state))
        die("%s: the source is %s, the destination %s", when, status_text(&here, "status"), status_text(&there, "status"));
    check_sums(&here, "source", when);
    check_sums(&there, "destination", when);
    for (unsigned i = 0; i < sizeof(same) / sizeof(same[0]); i++)
        check_equal(&here, &there, same[i], when);
    for (unsigned c = 0; c < status_get(&here, "channels"); c++) {
        for (unsigned i = 0; i < sizeof(same_channel) / sizeof(same_channel[0]); i++) {
            snprintf(key, sizeof(key), "channel-%u-%s", c, same_channel[i]);
            check_equal(&here, &there, key, when);
        }
    }
    for (unsigned i = 0; i < config.devices; i++)
        existing += devices[i].exists;
    check_range(&here, "devices", existing, existing, when);
    check_range(&here, "ram-size", image.size, image.size, when);
    check_range(&here, "device-bytes", counted.device_written, counted.device_written, when);
    check_range(&here, "discarded-bytes", counted.discarded, counted.discarded, when);
    check_range(&here, "duplicate", config.detection ? counted.zero_min : 0, config.detection ? counted.zero_max : 0, when);
    uint64_t moved = status_get(&here, "normal-bytes") + status_get(&here, "zero-bytes");
    if (moved != counted.written)
        die("%s: %" PRIu64 " bytes of the image are counted, %" PRIu64 " were written", when, moved, counted.written);
    check_range(&here, "dirty-sync-count", counted.rounds, counted.rounds, when);
    check_range(&there, "first-arrivals", counted.first, counted.first + counted.first_unsure, when);
    /* What a receiver takes to say that it has passed one, and is taken off its processor for, is all that there is. */
    check_range(&there, "barrier-idle-time", 0, 20 + counted.rounds, when);
    free(here.text);
    free(there.text);
}

/*
 * Everything
 */

/* SEEK_HOLE and SEEK_DATA: where there is a hole there are zeros, and what never arrived is one. */
static void check_holes(const char *when)
{
    int fd = open(path_of(destination, "ram"), O_RDONLY);
    off_t size = (off_t)image.size, at = 0;

    if (fd < 0)
        die("the destination's ram: %s", strerror(errno));
    while (at < size) {
        off_t data = lseek(fd, at, SEEK_DATA);
        if (data < 0 && errno != ENXIO)
            die("SEEK_DATA at %jd: %s", (intmax_t)at, strerror(errno));
        if (data < 0)
            data = size;
        if (data < at || data > size)
            die("%s: SEEK_DATA at %jd gives %jd", when, (intmax_t)at, (intmax_t)data);
        if (data > at && !is_zero(image.model + at, (size_t)(data - at)))
            die("%s: there is a hole from %jd to %jd, where there was data", when, (intmax_t)at, (intmax_t)data);
        if (data == size)
            break;
        at = lseek(fd, data, SEEK_HOLE);
        if (at <= data || at > size)
            die("%s: SEEK_HOLE at %jd gives %jd", when, (intmax_t)data, (intmax_t)at);
        for (off_t page = data / PAGE; page < (at + PAGE - 1) / PAGE; page++) {
            if (image.received[page] == MISSING)
                die("%s: there is data at page %jd, which was never written or has been discarded (by step %u)", when,
                    (intmax_t)page, image.step[page]);
        }
    }
    close(fd);
}

static void check_received(const char *when)
{
    uint64_t pages = (image.size + PAGE - 1) / PAGE, bytes = (pages + 63) / 64 * 8;
    int fd = open(path_of(destination, "received"), O_RDONLY);
    uint8_t *map = calloc(1, bytes + 1);
    struct stat st;

    if (fd < 0 || fstat(fd, &st) < 0 || (uint64_t)st.st_size != bytes)
        die("%s: `received` is not a file of %" PRIu64 " bytes", when, bytes);
    if (pread(fd, map, bytes, 0) != (ssize_t)bytes)
        die("`received` cannot be read");
    for (uint64_t page = 0; page < bytes * 8; page++) {
        bool bit = map[page / 8] >> page % 8 & 1;
        enum received want = page < pages ? image.received[page] : MISSING;
        if (want != EITHER && bit != (want == RECEIVED))
            die("%s: page %" PRIu64 " of %" PRIu64 " is%s received, says `received`; step %u changed it last", when, page,
                pages, bit ? "" : " not", page < pages ? image.step[page] : 0);
    }
    free(map);
    close(fd);
}

/* What the destination has. Nobody else operates. */
static void check_bytes(struct worker *w, const char *state, const char *when)
{
    struct stat st;

    now(w, "comparing everything");
    if (stat(path_of(destination, "ram"), &st) < 0 || (uint64_t)st.st_size != image.size)
        die("%s: the image has %" PRIu64 " bytes at the destination, not %" PRIu64, when, (uint64_t)st.st_size, image.size);
    compare_image(w, 0, image.size, when);
    check_holes(when);
    check_received(when);
    for (unsigned i = 0; i < config.devices; i++) {
        struct device *d = &devices[i];
        if (!d->exists)
            continue;
        if ((open_handle(d) >= 0 || !d->touched) && strcmp(state, "completed"))
            compare_prefix(w, d, when);
        else
            compare_device(w, d, when);
    }
}

static void check_all(struct worker *w, const char *state, const char *when)
{
    check_counters(state, when);
    check_bytes(w, state, when);
}

static void meet(struct worker *w)
{
    static char when[64];
    static unsigned round;
    uint64_t kind = draw(w, 4);

    now(w, "a barrier of all");
    snprintf(when, sizeof(when), "after round %u", ++round);
    if (draw(w, 3) == 0) {
        for (unsigned i = 0; i < config.devices; i++) {
            for (int h = 0; h < HANDLES; h++)
                device_close(&devices[i], h);
        }
    }
    if (kind == 0) {
        /* File by file. */
        if (fsync(w->fd) < 0)
            die("fsync: %s", strerror(errno));
        counted.rounds++;
        for (unsigned i = 0; i < config.devices; i++) {
            if (devices[i].exists)
                tell(devices[i].sync);
        }
        check_bytes(w, "active", when);
        /* The packets of a device that was removed are on their way still: no barrier of a file waits for them. */
    } else if (kind == 1) {
        tell("flush");
    }
    tell("sync");
    check_all(w, "active", when);
}

static void check_digest(struct worker *w)
{
    now(w, "digest");
    char *text = slurp(path_of(draw(w, 2) ? source : destination, "digest"));

    if (strlen(text) < 32 || strspn(text, "0123456789abcdef") != 32)
        die("digest says '%s'", text);
    free(text);
}

static void operate(struct worker *w)
{
    unsigned at_step = atomic_fetch_add(&step, 1) + 1;
    uint64_t kind = draw(w, 1000);

    if (kind < 500)
        image_write(w, at_step);
    else if (kind < 580)
        image_fallocate(w, at_step);
    else if (kind < 600)
        image_truncate(w, at_step);
    else if (kind < 940)
        device_operate(w, at_step);
    else if (kind < 965)
        image_verify(w);
    else if (kind < 975)
        tell("sync");
    else if (kind < 985)
        tell(kind < 980 ? "flush" : "flush ram");
    else if (kind < 988)
        check_digest(w);
    else if (kind < 995) {
        /* Another handle, of another kind. */
        static const int flags[] = {O_WRONLY, O_RDWR, O_WRONLY | O_DIRECT};
        uint64_t which = draw(w, 3);
        now(w, "opening the image");
        int fd = open(path_of(source, "ram"), flags[which]);
        if (fd < 0)
            die("opening ram: %s", strerror(errno));
        close(w->fd);
        w->fd = fd;
        w->direct = which == 2;
    } else {
        image_verify(w);
    }
}

static void worker_init(struct worker *w, unsigned index)
{
    void *buf;

    if (posix_memalign(&buf, PAGE, LONGEST + 8))
        die("out of memory");
    *w = (struct worker){.random = config.seed * 1000003 + index, .index = index, .buf = buf};
    for (int i = 0; i < 8; i++)
        draw(w, 2);
}

static void *work(void *arg)
{
    struct worker *w = arg;

    w->fd = open(path_of(source, "ram"), O_WRONLY);
    if (w->fd < 0)
        die("ram: %s", strerror(errno));
    for (unsigned round = 0; round < config.rounds; round++) {
        uint64_t n = config.steps / config.rounds / config.threads;
        for (uint64_t i = 0; i < n; i++)
            operate(w);
        now(w, "waiting for the others");
        pthread_barrier_wait(&meeting);
        if (w->index == 0)
            meet(w);
        pthread_barrier_wait(&meeting);
    }
    close(w->fd);
    return NULL;
}

/* Looks at everything, at any time. */
static void *watch(void *arg)
{
    struct worker *w = arg;
    static const char *const texts[] = {"status", "status.json", "error", "digest"};

    while (!over) {
        uint64_t kind = draw(w, 10);
        now(w, "watching");
        if (kind < 4) {
            free(slurp(path_of(draw(w, 2) ? source : destination, texts[draw(w, 10) ? draw(w, 3) : 3])));
        } else {
            char name[300] = "ram";
            if (kind == 4)
                strcpy(name, "received");
            else if (kind < 7)
                snprintf(name, sizeof(name), "device-state/dev%u", (unsigned)draw(w, config.devices));
            int fd = open(path_of(destination, name), O_RDONLY | O_NONBLOCK);
            if (fd < 0)
                continue;
            off_t at = (off_t)draw(w, config.limit);
            /* It may have been removed meanwhile. */
            if (pread(fd, w->buf, 1 + draw(w, STRIPE), kind == 4 ? 0 : at) < 0 && errno != EAGAIN && errno != ESTALE)
                die("watching %s: %s", name, strerror(errno));
            lseek(fd, at, draw(w, 2) ? SEEK_DATA : SEEK_HOLE);
            close(fd);
        }
    }
    return NULL;
}

static void make_model(void)
{
    pthread_rwlockattr_t attr;
    size_t pages = config.limit / PAGE + 2, blocks = config.limit / BLOCK + 2;

    pthread_rwlockattr_init(&attr);
    pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&image.lock, &attr);
    pthread_mutex_init(&image.size_lock, NULL);
    image.blocks = calloc(blocks, sizeof(*image.blocks));
    image.model = calloc(1, pages * PAGE);
    image.received = calloc(1, pages);
    image.step = calloc(pages, sizeof(*image.step));
    if (!image.blocks || !image.model || !image.received || !image.step)
        die("out of memory");
    for (size_t i = 0; i < blocks; i++)
        pthread_mutex_init(&image.blocks[i], NULL);
    for (unsigned i = 0; i < config.devices; i++) {
        struct device *d = &devices[i];
        pthread_mutex_init(&d->lock, NULL);
        snprintf(d->path, sizeof(d->path), "%s/device-state/dev%u", source, i);
        snprintf(d->there, sizeof(d->there), "%s/device-state/dev%u", destination, i);
        snprintf(d->sync, sizeof(d->sync), "sync device-state/dev%u", i);
        for (int h = 0; h < HANDLES; h++)
            d->fds[h] = -1;
        d->model = calloc(1, DEVICE_MAX + PAGE);
        d->step = calloc(DEVICE_MAX / PAGE + 1, sizeof(*d->step));
        if (!d->model || !d->step)
            die("out of memory");
    }
}

/* What can be done before `start`: the size, and devices that are there already. */
static void prepare(struct worker *w)
{
    if (config.declared) {
        image.size = config.limit;
        if (truncate(path_of(source, "ram"), (off_t)image.size) < 0)
            die("declaring the size: %s", strerror(errno));
    }
    if (config.devices > 1 && draw(w, 2)) {
        struct device *d = &devices[1];
        device_open(w, d, 0, 0);
        uint64_t size = draw(w, 2) ? draw(w, 100000) : 0;
        if (ftruncate(d->fds[0], (off_t)size) < 0)
            die("declaring the size of a device: %s", strerror(errno));
        device_resized(d, size, 0);
        if (draw(w, 2))
            device_close(d, 0);
    }
}

/* One KEY=VALUE; true when it is the program's own. */
static bool read_key(const char *arg)
{
    const char *value = strchr(arg, '=');

    if (!value)
        die("'%s' is not KEY=VALUE", arg);
    uint64_t number = strtoull(++value, NULL, 10);
    strncat(config.text, " ", sizeof(config.text) - strlen(config.text) - 1);
    strncat(config.text, arg, sizeof(config.text) - strlen(config.text) - 1);
    if (!strcmp(arg, "zero-page-detection=off"))
        config.detection = false;
    if (!strncmp(arg, "threads=", 8))
        return config.threads = (unsigned)number, true;
    if (!strncmp(arg, "size=", 5))
        return config.limit = number, true;
    if (!strncmp(arg, "declared=", 9))
        return config.declared = number, true;
    if (!strncmp(arg, "devices=", 8))
        return config.devices = (unsigned)number, true;
    if (!strncmp(arg, "rounds=", 7))
        return config.rounds = (unsigned)number, true;
    if (!strncmp(arg, "watch=", 6))
        return config.watch = number, true;
    return false;
}

static void set(const char *arg)
{
    char name[64];

    snprintf(name, sizeof(name), "%.*s", (int)(strchr(arg, '=') - arg), arg);
    spill(name, strchr(arg, '=') + 1);
}

int main(int argc, char **argv)
{
    struct worker workers[THREADS_MAX + 1];
    pthread_t threads[THREADS_MAX], watcher;

    if (argc < 7)
        return 2;
    snprintf(source, sizeof(source), "%s/%s", argv[1], argv[4]);
    snprintf(destination, sizeof(destination), "%s/%s", argv[2], argv[4]);
    config.seed = strtoull(argv[5], NULL, 10);
    config.steps = strtoull(argv[6], NULL, 10);
    signal(SIGTERM, on_term);
    if (mkdir(source, 0777) < 0)
        die("mkdir %s: %s", source, strerror(errno));
    spill("uri", argv[3]);
    for (int i = 7; i < argc; i++) {
        if (!read_key(argv[i]))
            set(argv[i]);
    }
    if (config.threads < 1 || config.threads > THREADS_MAX || config.devices < 1 || config.devices > DEVICES_MAX ||
        config.rounds < 1 || config.limit < 4 * STRIPE)
        die("such a program cannot be run");
    make_model();
    for (unsigned i = 0; i <= config.threads; i++)
        worker_init(&workers[i], i);
    prepare(&workers[0]);
    tell("start");
    pthread_barrier_init(&meeting, NULL, config.threads);
    for (unsigned i = 0; i < config.threads; i++)
        pthread_create(&threads[i], NULL, work, &workers[i]);
    if (config.watch)
        pthread_create(&watcher, NULL, watch, &workers[config.threads]);
    for (unsigned i = 0; i < config.threads; i++)
        pthread_join(threads[i], NULL);
    over = true;
    if (config.watch)
        pthread_join(watcher, NULL);

    struct worker *w = &workers[0];
    w->fd = -1;
    /* Whoever still has a device open at `complete` does not keep the stream from ending. */
    for (unsigned i = 0; i < config.devices; i++) {
        for (int h = 0; h < HANDLES && i % 2; h++)
            device_close(&devices[i], h);
    }
    now(w, "complete");
    tell("complete");
    check_all(w, "completed", "after complete");
    for (unsigned i = 0; i < config.devices; i++) {
        for (int h = 0; h < HANDLES; h++)
            device_close(&devices[i], h);
    }
    if (rmdir(source) < 0 || rmdir(destination) < 0)
        die("rmdir: %s", strerror(errno));
    return 0;
}
