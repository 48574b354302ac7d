/* SPDX-License-Identifier: Apache-2.0 */
/* What is made, used and freed leaves nothing: no memory, no mapping, no descriptor. */
#include "barrier_set.h"
#include "catalog.h"
#include "channel.h"
#include "check.h"
#include "cleanup.h"
#include "clock.h"
#include "compression.h"
#include "entries.h"
#include "link.h"
#include "memory.h"
#include "page_map.h"
#include "scratch.h"
#include "session.h"

#include <fcntl.h>
#include <malloc.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

TestSuite(leaks, .init = scratch_make, .fini = scratch_remove);

#define ROUNDS 40

struct use {
    size_t heap, pages;
    unsigned descriptors;
};

static struct use use_now(void)
{
    struct mallinfo2 info = mallinfo2();
    struct use use = {.heap = info.uordblks + info.hblkhd};
    CLEANUP_FD int statm = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    char text[128] = "";

    cr_assert(read(statm, text, sizeof(text) - 1) > 0);
    use.pages = strtoull(text, NULL, 10);
    use.descriptors = count_entries("/proc/self/fd");
    return use;
}

/* Less than one leak of the smallest kind a round would take. */
static bool is_more(struct use now, struct use before)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    /* A sanitizer has a heap of its own, and maps what it likes. */
    now.heap = before.heap;
    now.pages = before.pages;
#endif
    return now.heap > before.heap + ROUNDS * 16 || now.pages > before.pages + ROUNDS / 2 ||
           now.descriptors > before.descriptors;
}

/* A leak grows with each turn. What a cache keeps, of threads' stacks or of heaps, is there after some of them. */
static void expect_no_leak(void (*work)(void))
{
    struct use before, now = {0};
    bool grows = true;

    for (int turn = 0; turn < 5 && grows; turn++) {
        before = use_now();
        for (int i = 0; i < ROUNDS; i++)
            work();
        /* A thread that nobody joins may need a moment more. */
        int64_t end = clock_ms() + 2000;
        while ((grows = is_more(now = use_now(), before)) && clock_ms() < end)
            sched_yield();
    }
    cr_expect(not(grows), "%zu bytes, %zu pages, %d descriptors more", now.heap - before.heap,
              now.pages - before.pages, (int)(now.descriptors - before.descriptors));
}

static void use_connection(const char *where, const char *faults)
{
    struct link link;
    char got[3];

    link_open(&link, where, faults);
    transport_zerocopy(link.a);
    cr_assert(zero(int, link_send(link.a, "abc", 3)));
    cr_assert(zero(int, transport_recv_all(link.b, got, 3, NULL)));
    link_close(&link);
}

static void connections(void)
{
    char where[128];

    snprintf(where, sizeof(where), "unix:%s/socket", scratch);
    use_connection("tcp:127.0.0.1:0", "");
    use_connection("tcp:localhost:0", "");
    use_connection(where, "faulty:short=2:");
    snprintf(where, sizeof(where), "faulty:short=2:unix:%s/socket", scratch);
    use_connection(where, "");
}

Test(leaks, transport)
{
    expect_no_leak(connections);
}

static int nothing(void *arg, const struct message *message, struct wire_reader *body, struct error *err)
{
    (void)message, (void)body, (void)err;
    ++*(int *)arg;
    return 0;
}

static void talk(void)
{
    static const char body[5000];
    struct link link = {0};
    struct session a, b;
    struct error err;
    int heard = 0;

    link_pair(&link);
    cr_assert(zero(int, session_init(&a, link.a, 10000, 10000)));
    cr_assert(zero(int, session_init(&b, link.b, 10000, 10000)));
    /* So much that it is queued. */
    for (int i = 0; i < 100; i++)
        session_send(&a, WIRE_SYNC, 1, body, sizeof(body));
    while (heard == 0)
        CHECK_OK(session_step(&b, INT64_MAX, nothing, &heard, &err));
    session_end(&a);
    session_fini(&a);
    session_fini(&b);
}

Test(leaks, session)
{
    expect_no_leak(talk);
}

static void failed(void *arg, unsigned index, int code)
{
    (void)arg, (void)index, (void)code;
}

/* What is queued, what is being filled and what is kept for the next time. */
static void fill_channel(void)
{
    static char payload[CHANNEL_COPY_MAX];
    struct link link = {0};
    struct channel ch;
    struct gate gate;

    link_pair(&link);
    gate_init(&gate, 1u << 30);
    channel_init(&ch, 0, link.a, &gate, failed, NULL);
    pthread_mutex_lock(&ch.lock);
    cr_assert(zero(int, channel_reserve(&ch, 40, 40 * sizeof(payload))));
    for (int i = 0; i < 7; i++) {
        struct packet packet = {.type = WIRE_DATA, .length = sizeof(payload), .raw_length = sizeof(payload)};
        channel_add_copied(&ch, &packet, payload, 0);
    }
    pthread_mutex_unlock(&ch.lock);
    channel_send_copied(&ch);
    cr_expect(le(uint, ch.chunks.free_count, 40));
    channel_close(&ch, CHANNEL_DEAD);
    channel_fini(&ch);
    gate_fini(&gate);
    transport_close(link.b);
}

Test(leaks, channel)
{
    expect_no_leak(fill_channel);
}

static void pack(void)
{
    static const char raw[8192];
    struct compressor *c = compressor_new(1);
    struct context *lease = NULL;
    struct decompressor_pool pool;

    char *packed = compressor_buffer(c);
    size_t len = compressor_pack(c, raw, sizeof(raw), packed, false, &lease);
    cr_assert(len > 0);
    compressor_help(c, lease);
    decompressor_pool_init(&pool);
    struct decompressor *d = decompressor_take(&pool), *other = decompressor_new();
    struct error err;
    CHECK_OK(decompressor_unpack(d, packed, len, decompressor_buffer(d), sizeof(raw), &err));
    decompressor_free(other);
    decompressor_return(&pool, d);
    decompressor_pool_trim(&pool);
    decompressor_return(&pool, decompressor_take(&pool));
    decompressor_pool_fini(&pool);
    compressor_return(c, packed);
    compressor_return(c, compressor_buffer(c));
    compressor_close(c);
    compressor_free(c);
}

Test(leaks, compression)
{
    expect_no_leak(pack);
}

static void count_barriers(void)
{
    static const uint64_t applied[3] = {5, 5, 5};
    struct barrier_set set;

    cr_assert(zero(int, barrier_set_init(&set, 3)));
    for (uint64_t i = 1; i < 10; i++) {
        struct barrier *barrier = barrier_new(3);
        barrier->counts[i % 3] = i;
        barrier_set_add(&set, barrier);
    }
    free(barrier_set_take(&set, applied));
    barrier_set_fini(&set);
}

static void list_files(void)
{
    struct catalog catalog;
    struct error err;
    bool hidden;
    char name[8];

    cr_assert(zero(int, catalog_init(&catalog, 5)));
    for (uint32_t i = 0; i < 4; i++) {
        struct file *file = file_new(i, i ? "d" : "ram");
        snprintf(name, sizeof(name), "d%u", i);
        cr_assert(zero(int, catalog_add(&catalog, i, file, name, true, &hidden)));
        file_put(file);
    }
    cr_assert(catalog_rename(&catalog, 1, 1, "d2", 2, &err) != NULL);
    cr_assert(catalog_remove(&catalog, 2, 3, &err) != NULL);
    catalog_fini(&catalog);
}

Test(leaks, counts_and_names)
{
    expect_no_leak(count_barriers);
    expect_no_leak(list_files);
}

static void map_pages(void)
{
    struct page_map map;
    struct memory mem;
    struct memory_place place = {.directory = scratch};
    struct error err;

    CHECK_OK(page_map_init(&map, 1u << 30, &err));
    page_map_set(&map, 3, 70);
    page_map_fini(&map);
    CHECK_OK(memory_init(&mem, NULL, "vm-1", 1u << 24, &err));
    CHECK_OK(memory_write(&mem, 100, "y", 1, &err));
    memory_fini(&mem, false);
    CHECK_OK(memory_init(&mem, &place, "vm-1", 1u << 24, &err));
    CHECK_OK(memory_write(&mem, 100, "y", 1, &err));
    memory_fini(&mem, false);
}

Test(leaks, maps)
{
    expect_no_leak(map_pages);
}
