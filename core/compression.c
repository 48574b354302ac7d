/* SPDX-License-Identifier: Apache-2.0 */
/*
 * zstd, a packet at a time; see compression.h.
 *
 * What does not shrink costs time for nothing, so a payload is tried with a
 * small sample first when the one before it did not shrink: some bytes each from
 * several places, since a payload is rarely the same all over.
 */
#include "compression.h"
#include "cleanup.h"

#include <endian.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <zstd.h>

#define SAMPLE       4096
#define SAMPLE_PARTS 4

struct context {
    struct context *next;
    ZSTD_CCtx *zstd;
};

struct buffer {
    struct buffer *next;
};

/* A payload that waits for a context; its owner's. */
struct job {
    struct job *next;
    const char *raw;
    size_t len;
    void *out;
    size_t size;
    bool done;
    pthread_cond_t wake;
};

struct compressor {
    int level;
    unsigned cpus;
    size_t buffer_size;
    atomic_bool futile;   /* the last payload did not shrink; a hint, relaxed */
    pthread_mutex_t lock; /* a leaf lock; guards what follows */
    bool closed;          /* what comes back is freed */
    struct context *idle; /* only while no job waits */
    unsigned contexts;
    struct job *first, **last;
    struct buffer *buffers;
};

struct compressor *compressor_new(int level)
{
    struct compressor *c = calloc(1, sizeof(*c));
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);

    if (!c)
        return NULL;
    c->level = level;
    c->buffer_size = ZSTD_compressBound(COMPRESSION_RAW_MAX);
    c->cpus = cpus > 1 ? (unsigned)cpus : 1;
    pthread_mutex_init(&c->lock, NULL);
    c->last = &c->first;
    return c;
}

static void free_context(struct context *context)
{
    ZSTD_freeCCtx(context->zstd);
    free(context);
}

/* Called with the lock held, or when nobody uses it. */
static void free_idle(struct compressor *c)
{
    while (c->idle) {
        struct context *context = c->idle;
        c->idle = context->next;
        free_context(context);
    }
    while (c->buffers) {
        struct buffer *buffer = c->buffers;
        c->buffers = buffer->next;
        free(buffer);
    }
}

void compressor_close(struct compressor *c)
{
    SCOPED_LOCK(&c->lock);
    c->closed = true;
    free_idle(c);
}

void compressor_free(struct compressor *c)
{
    if (!c)
        return;
    free_idle(c);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

void *compressor_buffer(struct compressor *c)
{
    SCOPED_LOCK(&c->lock);
    struct buffer *buffer = c->buffers;

    if (!buffer)
        return malloc(c->buffer_size);
    c->buffers = buffer->next;
    return buffer;
}

void compressor_return(struct compressor *c, void *p)
{
    struct buffer *buffer = p;

    if (!buffer)
        return;
    SCOPED_LOCK(&c->lock);
    buffer->next = c->buffers;
    c->buffers = buffer;
    if (c->closed)
        free_idle(c);
}

static struct context *context_new(int level)
{
    struct context *context = calloc(1, sizeof(*context));

    if (!context)
        return NULL;
    context->zstd = ZSTD_createCCtx();
    if (!context->zstd) {
        free(context);
        return NULL;
    }
    ZSTD_CCtx_setParameter(context->zstd, ZSTD_c_compressionLevel, level);
    return context;
}

/* Called with the lock held: an idle context, or a new one; NULL: there are enough, or memory runs out. */
static struct context *acquire(struct compressor *c, bool eager)
{
    struct context *context = c->idle;
    unsigned max = c->cpus + eager;

    if (context) {
        c->idle = context->next;
    } else if (c->contexts < max) {
        context = context_new(c->level);
        c->contexts += context != NULL;
    }
    return context;
}

static size_t pack(struct compressor *c, struct context *context, const char *raw, size_t len, void *out)
{
    size_t size = ZSTD_compress2(context->zstd, out, c->buffer_size, raw, len);

    return ZSTD_isError(size) || size >= len ? 0 : size;
}

/*
 * Whether a sample of the payload does not shrink either. At level 1: faster ones find nothing in so little.
 */
static bool is_futile(struct compressor *c, struct context *context, const char *raw, size_t len, void *out)
{
    enum { PART = SAMPLE / SAMPLE_PARTS };
    char sample[SAMPLE];

    for (size_t i = 0; i < SAMPLE_PARTS; i++)
        memcpy(sample + i * PART, raw + (2 * i + 1) * (len / SAMPLE_PARTS / 2) - PART / 2, PART);
    ZSTD_CCtx_setParameter(context->zstd, ZSTD_c_compressionLevel, 1);
    size_t size = pack(c, context, sample, SAMPLE, out);
    ZSTD_CCtx_setParameter(context->zstd, ZSTD_c_compressionLevel, c->level);
    return !size || size > SAMPLE - SAMPLE / 16;
}

static size_t run(struct compressor *c, struct context *context, const char *raw, size_t len, void *out)
{
    bool futile = atomic_load_explicit(&c->futile, memory_order_relaxed);
    size_t size = 0;

    futile = futile && len > 4 * SAMPLE && is_futile(c, context, raw, len, out);
    if (!futile)
        size = pack(c, context, raw, len, out);
    /* A few bytes less are not worth the work at the other side. */
    if (size > len - len / 64)
        size = 0;
    atomic_store_explicit(&c->futile, size == 0, memory_order_relaxed);
    return size;
}

size_t compressor_pack(struct compressor *c, const void *raw, size_t len, void *out, bool eager,
                       struct context **lease)
{
    if (!*lease) {
        SCOPED_LOCK(&c->lock);
        *lease = acquire(c, eager);
        if (!*lease && !c->contexts)
            return 0;
        if (!*lease) {
            struct job job = {.raw = raw, .len = len, .out = out};
            pthread_cond_init(&job.wake, NULL);
            *c->last = &job;
            c->last = &job.next;
            while (!job.done)
                pthread_cond_wait(&job.wake, &c->lock);
            pthread_cond_destroy(&job.wake);
            return job.size;
        }
    }
    return run(c, *lease, raw, len, out);
}

void compressor_help(struct compressor *c, struct context *lease)
{
    if (!lease)
        return;
    SCOPED_LOCK(&c->lock);
    while (c->first) {
        struct job *job = c->first;
        c->first = job->next;
        if (!c->first)
            c->last = &c->first;
        pthread_mutex_unlock(&c->lock);
        job->size = run(c, lease, job->raw, job->len, job->out);
        pthread_mutex_lock(&c->lock);
        job->done = true;
        pthread_cond_signal(&job->wake);
    }
    lease->next = c->idle;
    c->idle = lease;
    if (c->closed)
        free_idle(c);
}

struct decompressor {
    struct decompressor *next;
    ZSTD_DCtx *zstd;
    uint8_t buffer[COMPRESSION_RAW_MAX];
};

struct decompressor *decompressor_new(void)
{
    struct decompressor *d = malloc(sizeof(*d));

    if (d)
        d->zstd = ZSTD_createDCtx();
    if (d && !d->zstd) {
        free(d);
        return NULL;
    }
    return d;
}

void decompressor_free(struct decompressor *d)
{
    if (d)
        ZSTD_freeDCtx(d->zstd);
    free(d);
}

void *decompressor_buffer(struct decompressor *d)
{
    return d->buffer;
}

void decompressor_pool_init(struct decompressor_pool *pool)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);

    *pool = (struct decompressor_pool){.max = cpus > 1 ? 2 * (unsigned)cpus : 2};
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->returned, NULL);
}

void decompressor_pool_trim(struct decompressor_pool *pool)
{
    SCOPED_LOCK(&pool->lock);
    while (pool->idle) {
        struct decompressor *d = pool->idle;
        pool->idle = d->next;
        pool->count--;
        decompressor_free(d);
    }
}

void decompressor_pool_fini(struct decompressor_pool *pool)
{
    decompressor_pool_trim(pool);
    pthread_cond_destroy(&pool->returned);
    pthread_mutex_destroy(&pool->lock);
}

struct decompressor *decompressor_take(struct decompressor_pool *pool)
{
    SCOPED_LOCK(&pool->lock);
    while (!pool->idle) {
        struct decompressor *d = pool->count < pool->max ? decompressor_new() : NULL;
        pool->count += d != NULL;
        if (d || !pool->count)
            return d;
        pthread_cond_wait(&pool->returned, &pool->lock);
    }
    struct decompressor *d = pool->idle;
    pool->idle = d->next;
    return d;
}

void decompressor_return(struct decompressor_pool *pool, struct decompressor *d)
{
    if (!d)
        return;
    SCOPED_LOCK(&pool->lock);
    d->next = pool->idle;
    pool->idle = d;
    pthread_cond_signal(&pool->returned);
}

int decompressor_unpack(struct decompressor *d, const void *packed, size_t len, void *out, size_t raw_len,
                        struct error *err)
{
    uint32_t magic = 0;

    /* One frame of today's format: the library would take several, and frames of formats long gone. */
    memcpy(&magic, packed, len < sizeof(magic) ? len : sizeof(magic));
    if (le32toh(magic) != ZSTD_MAGICNUMBER || ZSTD_findFrameCompressedSize(packed, len) != len)
        return error_set(err, CAUSE_PROTOCOL, "a compressed packet is not one frame of zstd");
    size_t size = ZSTD_decompressDCtx(d->zstd, out, raw_len, packed, len);

    if (ZSTD_isError(size))
        return error_set(err, CAUSE_PROTOCOL, "a compressed packet cannot be unpacked: %s",
                         ZSTD_getErrorName(size));
    if (size != raw_len)
        return error_set(err, CAUSE_PROTOCOL, "a compressed packet unpacks to %zu bytes instead of %zu", size,
                         raw_len);
    return 0;
}
