/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a test and the code under it make is gone when the test is over: memory, mappings, descriptors,
 * threads, locks. What is left ends the test, and is named by the place that made it. Linked into every unit
 * test; the linker has our own calls, and no library's, come here (--wrap).
 *
 * Nobody writes behind the end of memory either: a fence stands there, which is looked at when the memory
 * goes.
 *
 * A test that fails does not come to its end, and is not asked.
 */
#include "leftovers.h"
#include "entries.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <zstd.h>

enum kind { MEMORY, MAPPING, THREAD, LOCK, CONDITION };

static const char *const kinds[] = {"memory", "a mapping", "a thread that nobody joined", "a lock",
                                    "a condition"};

struct thing {
    struct thing *next;
    enum kind kind;
    uintptr_t key;
    const char *maker;
    bool fenced; /* memory, with a fence behind its @size bytes */
    size_t size;
};

/* AddressSanitizer has fences of its own, which stand closer, since it sees reads, too. */
#ifdef __SANITIZE_ADDRESS__
#define FENCE ((size_t)0)
#else
#define FENCE ((size_t)16)
#endif

#define BUCKET_BITS  16
#define FENCE_BYTE   0xfe
#define WAIT_SECONDS 10 /* for threads that nobody joins; only a test that fails waits so long */

/* All guarded by the lock, but for the last line: the test's thread. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct thing *things[1u << BUCKET_BITS], *spare;
static unsigned count;
static bool watches;
static bool is_at_its_end;
static unsigned descriptors, threads;

extern const char __executable_start[];

#define WRAP(type, name, ...)                                                                                \
    type __real_##name(__VA_ARGS__);                                                                         \
    type __wrap_##name(__VA_ARGS__);                                                                         \
    type __wrap_##name(__VA_ARGS__)
#define MAKER __builtin_return_address(0)

void *__real_malloc(size_t size);

static struct thing **bucket(uintptr_t key)
{
    return &things[(uint64_t)key * UINT64_C(0x9e3779b97f4a7c15) >> (64 - BUCKET_BITS)];
}

static void add(enum kind kind, uintptr_t key, const char *maker, bool fenced, size_t size)
{
    if (fenced)
        memset((char *)key + size, FENCE_BYTE, FENCE);
    if (!watches)
        return;
    struct thing *thing = spare ? spare : __real_malloc(sizeof(*thing));
    if (thing == spare)
        spare = thing->next;
    *thing = (struct thing){*bucket(key), kind, key, maker, fenced, size};
    *bucket(key) = thing;
    count++;
}

static void made(enum kind kind, const void *key, const char *maker)
{
    if (!key)
        return;
    pthread_mutex_lock(&lock);
    add(kind, (uintptr_t)key, maker, false, 0);
    pthread_mutex_unlock(&lock);
}

static void check_fence(const struct thing *thing)
{
    const unsigned char *p = (const unsigned char *)thing->key + thing->size;

    for (size_t i = FENCE; thing->fenced && i-- > 0;) {
        if (p[i] == FENCE_BYTE)
            continue;
        fprintf(stderr, "written behind its end: memory, made at %#tx\n", thing->maker - __executable_start);
        abort();
    }
}

/* Called before it is: its address can be another's at once. A library may have made what we free. */
static void unmade(enum kind kind, uintptr_t key, const char *unmaker)
{
    bool found = false;

    pthread_mutex_lock(&lock);
    for (struct thing **at = bucket(key), *thing; !found && (thing = *at); at = &thing->next)
        if (thing->key == key && thing->kind == kind) {
            check_fence(thing);
            *at = thing->next;
            thing->next = spare;
            spare = thing;
            count--;
            found = true;
        }
    if (watches && !found && (kind == LOCK || kind == CONDITION)) {
        fprintf(stderr, "%s that was never made, or is no more, is destroyed at %#tx\n", kinds[kind],
                unmaker - __executable_start);
        abort();
    }
    pthread_mutex_unlock(&lock);
}

static void *memory(void *p, const char *maker)
{
    made(MEMORY, p, maker);
    return p;
}

static void *fenced(void *p, size_t size, const char *maker)
{
    if (!p)
        return NULL;
    pthread_mutex_lock(&lock);
    add(MEMORY, (uintptr_t)p, maker, true, size);
    pthread_mutex_unlock(&lock);
    return p;
}

WRAP(void *, malloc, size_t size)
{
    return fenced(size + FENCE < size ? NULL : __real_malloc(size + FENCE), size, MAKER);
}

WRAP(void *, calloc, size_t n, size_t size)
{
    size_t bytes;

    if (__builtin_mul_overflow(n, size, &bytes) || bytes + FENCE < bytes)
        return NULL;
    return fenced(__real_calloc(1, bytes + FENCE), bytes, MAKER);
}

/* What cannot grow, which no test has happen, is forgotten. */
WRAP(void *, realloc, void *p, size_t size)
{
    unmade(MEMORY, (uintptr_t)p, MAKER);
    return fenced(__real_realloc(p, size + FENCE), size, MAKER);
}

WRAP(int, posix_memalign, void **p, size_t alignment, size_t size)
{
    int ret = __real_posix_memalign(p, alignment, size);

    if (ret == 0)
        made(MEMORY, *p, MAKER);
    return ret;
}

WRAP(char *, strdup, const char *text)
{
    return memory(__real_strdup(text), MAKER);
}

WRAP(int, asprintf, char **p, const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    int ret = vasprintf(p, format, ap);
    va_end(ap);
    if (ret >= 0)
        made(MEMORY, *p, MAKER);
    return ret;
}

WRAP(void, free, void *p)
{
    unmade(MEMORY, (uintptr_t)p, MAKER);
    __real_free(p);
}

WRAP(ZSTD_CCtx *, ZSTD_createCCtx, void)
{
    return memory(__real_ZSTD_createCCtx(), MAKER);
}

WRAP(size_t, ZSTD_freeCCtx, ZSTD_CCtx *c)
{
    unmade(MEMORY, (uintptr_t)c, MAKER);
    return __real_ZSTD_freeCCtx(c);
}

WRAP(ZSTD_DCtx *, ZSTD_createDCtx, void)
{
    return memory(__real_ZSTD_createDCtx(), MAKER);
}

WRAP(size_t, ZSTD_freeDCtx, ZSTD_DCtx *d)
{
    unmade(MEMORY, (uintptr_t)d, MAKER);
    return __real_ZSTD_freeDCtx(d);
}

WRAP(void *, XXH3_createState, void)
{
    return memory(__real_XXH3_createState(), MAKER);
}

WRAP(int, XXH3_freeState, void *state)
{
    unmade(MEMORY, (uintptr_t)state, MAKER);
    return __real_XXH3_freeState(state);
}

struct addrinfo;

WRAP(int, getaddrinfo, const char *node, const char *service, const struct addrinfo *hints,
     struct addrinfo **result)
{
    int ret = __real_getaddrinfo(node, service, hints, result);

    if (ret == 0)
        made(MEMORY, *result, MAKER);
    return ret;
}

WRAP(void, freeaddrinfo, struct addrinfo *result)
{
    unmade(MEMORY, (uintptr_t)result, MAKER);
    __real_freeaddrinfo(result);
}

/* One that takes another's place goes with it. */
WRAP(void *, mmap64, void *at, size_t size, int protection, int flags, int fd, off_t offset)
{
    void *map = __real_mmap64(at, size, protection, flags, fd, offset);

    if (map != MAP_FAILED && !(flags & MAP_FIXED))
        made(MAPPING, map, MAKER);
    return map;
}

WRAP(int, munmap, void *map, size_t size)
{
    unmade(MAPPING, (uintptr_t)map, MAKER);
    return __real_munmap(map, size);
}

WRAP(int, pthread_create, pthread_t *thread, const pthread_attr_t *attr, void *(*run)(void *), void *arg)
{
    int detached = PTHREAD_CREATE_JOINABLE;

    if (attr)
        pthread_attr_getdetachstate(attr, &detached);
    /* Nobody joins it before it is there. */
    pthread_mutex_lock(&lock);
    int ret = __real_pthread_create(thread, attr, run, arg);
    if (ret == 0 && detached == PTHREAD_CREATE_JOINABLE)
        add(THREAD, *thread, MAKER, false, 0);
    pthread_mutex_unlock(&lock);
    return ret;
}

WRAP(int, pthread_join, pthread_t thread, void **result)
{
    unmade(THREAD, thread, MAKER);
    return __real_pthread_join(thread, result);
}

WRAP(int, pthread_mutex_init, pthread_mutex_t *mutex, const pthread_mutexattr_t *attr)
{
    made(LOCK, mutex, MAKER);
    return __real_pthread_mutex_init(mutex, attr);
}

WRAP(int, pthread_mutex_destroy, pthread_mutex_t *mutex)
{
    unmade(LOCK, (uintptr_t)mutex, MAKER);
    return __real_pthread_mutex_destroy(mutex);
}

WRAP(int, pthread_rwlock_init, pthread_rwlock_t *rwlock, const pthread_rwlockattr_t *attr)
{
    made(LOCK, rwlock, MAKER);
    return __real_pthread_rwlock_init(rwlock, attr);
}

WRAP(int, pthread_rwlock_destroy, pthread_rwlock_t *rwlock)
{
    unmade(LOCK, (uintptr_t)rwlock, MAKER);
    return __real_pthread_rwlock_destroy(rwlock);
}

WRAP(int, pthread_cond_init, pthread_cond_t *cond, const pthread_condattr_t *attr)
{
    made(CONDITION, cond, MAKER);
    return __real_pthread_cond_init(cond, attr);
}

WRAP(int, pthread_cond_destroy, pthread_cond_t *cond)
{
    unmade(CONDITION, (uintptr_t)cond, MAKER);
    return __real_pthread_cond_destroy(cond);
}

WRAP(void, criterion_internal_test_setup, void)
{
    descriptors = count_entries("/proc/self/fd");
    threads = count_entries("/proc/self/task");
    pthread_mutex_lock(&lock);
    watches = true;
    pthread_mutex_unlock(&lock);
    __real_criterion_internal_test_setup();
}

static void (*test)(void);

static void run(void)
{
    test();
    is_at_its_end = true;
}

WRAP(void, criterion_internal_test_main, void (*fn)(void))
{
    test = fn;
    __real_criterion_internal_test_main(run);
}

unsigned leftovers_count(void)
{
    pthread_mutex_lock(&lock);
    unsigned left = count;
    pthread_mutex_unlock(&lock);
    return left;
}

/* Not the clock that a test may shift. */
static time_t now(void)
{
    struct timespec ts;

    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &ts);
    return ts.tv_sec;
}

static void name_things(void)
{
    for (unsigned i = 0, said = 0; i < 1u << BUCKET_BITS && said < 20; i++)
        for (struct thing *thing = things[i]; thing; thing = thing->next, said++)
            fprintf(stderr, "left: %s, made at %#tx\n", kinds[thing->kind],
                    thing->maker - __executable_start);
}

WRAP(void, criterion_internal_test_teardown, void)
{
    __real_criterion_internal_test_teardown();
    if (!is_at_its_end)
        return;
    for (time_t end = now() + WAIT_SECONDS; now() < end; sched_yield())
        if (leftovers_count() == 0 && count_entries("/proc/self/task") <= threads &&
            count_entries("/proc/self/fd") <= descriptors)
            return;
    fprintf(stderr, "left: %u things, %u threads, %u descriptors\n", leftovers_count(),
            count_entries("/proc/self/task") - threads, count_entries("/proc/self/fd") - descriptors);
    pthread_mutex_lock(&lock);
    name_things();
    abort();
}
