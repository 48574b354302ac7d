/* SPDX-License-Identifier: Apache-2.0 */
/* Each thing that is made is counted until it is unmade; see leftovers.c. */
#include "leftovers.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <netdb.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <zstd.h>

static unsigned before;

static void begin(void)
{
    before = leftovers_count();
}

TestSuite(leftovers, .init = begin);

#define EXPECT_MORE(n) cr_expect(eq(uint, leftovers_count(), before + (n)))

Test(leftovers, memory)
{
    void *p, *volatile some[5]; /* a compiler may leave out what is not used */
    char *text;
    struct addrinfo *found;

    some[0] = malloc(1);
    some[1] = calloc(1, 1);
    some[2] = realloc(NULL, 1);
    some[3] = strdup("");
    cr_assert(zero(int, posix_memalign(&p, 64, 64)));
    some[4] = p;
    EXPECT_MORE(5);
    some[2] = realloc(some[2], 100000);
    EXPECT_MORE(5);
    for (int i = 0; i < 5; i++)
        free(some[i]);
    free(NULL);
    cr_assert(eq(int, asprintf(&text, "%d", 5), 1));
    cr_assert(zero(int, getaddrinfo("127.0.0.1", NULL, NULL, &found)));
    EXPECT_MORE(2);
    free(text);
    freeaddrinfo(found);
    p = ZSTD_createCCtx();
    EXPECT_MORE(1);
    ZSTD_freeCCtx(p);
    p = ZSTD_createDCtx();
    EXPECT_MORE(1);
    ZSTD_freeDCtx(p);
    p = mmap(NULL, 1, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT_MORE(1);
    munmap(p, 1);
    EXPECT_MORE(0);
}

static void *nothing(void *arg)
{
    return arg;
}

Test(leftovers, threads_and_locks)
{
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_rwlock_t rwlock;
    pthread_cond_t cond;

    cr_assert(zero(int, pthread_create(&thread, NULL, nothing, NULL)));
    pthread_mutex_init(&mutex, NULL);
    pthread_rwlock_init(&rwlock, NULL);
    pthread_cond_init(&cond, NULL);
    EXPECT_MORE(4);
    pthread_join(thread, NULL);
    pthread_mutex_destroy(&mutex);
    pthread_rwlock_destroy(&rwlock);
    pthread_cond_destroy(&cond);
    EXPECT_MORE(0);
}

/* What is given back has its fence, wherever it has been. */
#ifndef __SANITIZE_ADDRESS__
static void write_behind(void *p, size_t size)
{
    volatile size_t at = size; /* which no compiler sees through */

    ((volatile char *)p)[at] = 1;
    free(p);
}

Test(leftovers, written_behind_malloc, .signal = SIGABRT)
{
    write_behind(malloc(3), 3);
}

Test(leftovers, written_behind_calloc, .signal = SIGABRT)
{
    write_behind(calloc(3, 5), 15);
}

Test(leftovers, written_behind_realloc, .signal = SIGABRT)
{
    write_behind(realloc(malloc(3), 24), 24);
}
#endif

Test(leftovers, written_as_far_as_it_goes)
{
    char *p = malloc(3);

    memset(p, 1, 3);
    p = realloc(p, 70);
    memset(p, 1, 70);
    p = realloc(p, 8);
    memset(p, 1, 8);
    free(p);
}

Test(leftovers, destroyed_and_never_made, .signal = SIGABRT)
{
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

    pthread_mutex_destroy(&mutex);
}

Test(leftovers, destroyed_twice, .signal = SIGABRT)
{
    pthread_cond_t cond;

    pthread_cond_init(&cond, NULL);
    pthread_cond_destroy(&cond);
    pthread_cond_destroy(&cond);
}
