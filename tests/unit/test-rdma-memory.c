/* SPDX-License-Identifier: Apache-2.0 */
/* Registered memory, with the card of verbs.h. */
#include "rdma_memory.h"
#include "check.h"
#include "rdma_counters.h"
#include "rdma_link.h"
#include "scratch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define CHUNK 65536u

static char *memory; /* that stays: three chunks and a bit, which begins anywhere */
#define SIZE (3 * (size_t)CHUNK + 100)

static struct rdma_domain *domain;
static const struct transport_group group = {.id = "group", .chunk = CHUNK};

static void set_up(void)
{
    memory = malloc(SIZE);
    domain = rdma_domain_get(&verbs_devices[0], group.id, false);
    cr_assert(ne(ptr, domain, NULL));
    rdma_domain_settings(domain, &group);
    cr_assert(zero(int, transport_memory_add(memory, SIZE)));
}

static void end(void)
{
    transport_memory_remove(memory);
    rdma_domain_put(domain);
    verbs_expect_nothing_left();
    free(memory);
}

TestSuite(rdma_memory, .init = set_up);

static void figures_are(uint64_t registrations, uint64_t evictions, uint64_t bytes)
{
    struct transport_figures figures = {0};

    rdma_domain_figures(domain, &figures);
    rdma_domain_figures(domain, &figures);
    cr_expect(eq(u64, figures.registrations, 2 * registrations));
    cr_expect(eq(u64, figures.evictions, 2 * evictions));
    cr_expect(eq(u64, figures.registered_bytes, 2 * bytes));
}

static struct rdma_local *take(size_t at, size_t len, size_t want)
{
    size_t covered = 0;
    struct rdma_local *local = rdma_local_take(domain, memory + at, len, &covered);

    cr_assert(ne(ptr, local, NULL));
    cr_expect(eq(sz, covered, want));
    cr_expect(le(u64, local->base, (uintptr_t)memory + at));
    return local;
}

static bool is_refused(const char *at)
{
    size_t covered;

    return !rdma_local_take(domain, at, 1, &covered);
}

Test(rdma_memory, domains)
{
    static const uint8_t other[TRANSPORT_GROUP_SIZE] = "other";

    cr_expect(eq(ptr, rdma_domain_get(&verbs_devices[0], group.id, false), domain));
    cr_expect(eq(uint, verbs_counts().domains, 1));
    cr_expect(zero(ptr, rdma_domain_get(&verbs_devices[1], group.id, false)));
    cr_expect(eq(int, errno, EXDEV));
    struct rdma_domain *passive = rdma_domain_get(&verbs_devices[0], group.id, true);
    struct rdma_domain *second = rdma_domain_get(&verbs_devices[0], other, false);
    cr_expect(ne(ptr, passive, domain));
    cr_expect(ne(ptr, second, domain));
    cr_expect(ne(ptr, rdma_domain_pd(second), rdma_domain_pd(domain)));
    cr_expect(eq(uint, verbs_counts().domains, 3));
    rdma_domain_put(passive);
    cr_expect(eq(uint, verbs_counts().domains, 2));
    rdma_domain_put(domain);
    cr_expect(eq(uint, verbs_counts().domains, 2), "it is had twice");
    rdma_domain_put(second);
    rdma_domain_put(NULL);
    end();
}

Test(rdma_memory, chunks)
{
    struct rdma_local *a = take(10, 50, 50);
    cr_expect(eq(u64, a->base, (uintptr_t)memory));
    cr_expect(eq(u64, a->len, CHUNK));
    cr_expect(eq(ptr, take(0, 1, 1), a));
    cr_expect(eq(ptr, take(CHUNK - 1, 5, 1), a), "to its end");
    cr_expect(eq(ptr, take(CHUNK - 7, 7, 7), a));
    figures_are(1, 0, CHUNK);
    struct rdma_local *b = take(CHUNK, SIZE, CHUNK);
    cr_expect(eq(u64, b->base, (uintptr_t)memory + CHUNK));
    struct rdma_local *last = take(3 * CHUNK + 99, 5, 1);
    cr_expect(eq(u64, last->base, (uintptr_t)memory + 3 * CHUNK));
    cr_expect(eq(u64, last->len, 100), "it ends with the memory");
    figures_are(3, 0, 2 * CHUNK + 100);
    cr_expect(is_refused(memory + SIZE));
    cr_expect(is_refused(memory - 1));
    cr_expect(eq(uint, verbs_counts().ranges, 3));
    for (int i = 0; i < 4; i++)
        rdma_local_release(domain, a);
    rdma_local_release(domain, b);
    rdma_local_release(domain, last);
    cr_expect(eq(uint, verbs_counts().ranges, 3), "they are remembered");
    end();
}

/* The one that was used longest ago makes way, but none that is in use. */
Test(rdma_memory, room)
{
    verbs_limit(2 * CHUNK, 0);
    struct rdma_local *a = take(0, 1, 1), *b = take(CHUNK, 1, 1);
    cr_expect(is_refused(memory + 2 * CHUNK));
    rdma_local_release(domain, a);
    rdma_local_release(domain, b);
    rdma_local_release(domain, take(0, 1, 1));
    struct rdma_local *c = take(2 * CHUNK, 1, 1);
    figures_are(3, 1, 2 * CHUNK);
    cr_expect(eq(ptr, take(1, 1, 1), a), "it is still there");
    cr_expect(is_refused(memory + CHUNK));
    rdma_local_release(domain, c);
    b = take(CHUNK, 1, 1);
    figures_are(4, 2, 2 * CHUNK);
    rdma_local_release(domain, a);
    rdma_local_release(domain, b);
    end();
}

/* Memory that goes away: what is in use goes with its last user. */
Test(rdma_memory, memory_that_goes)
{
    char *more = malloc(CHUNK);
    size_t covered;

    cr_assert(zero(int, transport_memory_add(more, CHUNK)));
    struct rdma_local *other = rdma_local_take(domain, more, 1, &covered);
    struct rdma_local *a = take(0, 1, 1), *last = take(SIZE - 1, 1, 1);
    rdma_local_release(domain, last);
    transport_memory_remove(memory);
    cr_expect(eq(uint, verbs_counts().ranges, 2));
    cr_expect(a->doomed);
    cr_expect(not(other->doomed));
    cr_expect(is_refused(memory));
    rdma_local_release(domain, a);
    cr_expect(eq(uint, verbs_counts().ranges, 1));
    figures_are(3, 0, CHUNK);
    transport_memory_remove(memory);
    rdma_local_release(domain, other);
    transport_memory_remove(more);
    cr_expect(zero(uint, verbs_counts().ranges));
    free(more);
    end();
}

Test(rdma_memory, exposed)
{
    struct transport_key first, second;

    cr_assert(zero(int, rdma_expose(domain, memory, 1000, &first)));
    cr_assert(zero(int, rdma_expose(domain, memory + 1000, 24, &second)));
    cr_expect(eq(u64, first.address, (uintptr_t)memory));
    cr_expect(ne(u32, first.key, second.key));
    figures_are(2, 0, 1024);
    rdma_withdraw(domain, &first);
    figures_are(2, 0, 24);
    rdma_withdraw(domain, &first);
    cr_expect(eq(uint, verbs_counts().ranges, 1));
    verbs_limit(24, 0);
    cr_expect(eq(int, rdma_expose(domain, memory, 1000, &first), -ENOMEM));
    figures_are(2, 0, 24);
    end(); /* the rest goes with the domain */
}

Test(rdma_memory, pinned)
{
    verbs_limit(2 * CHUNK + 100, 0);
    cr_expect(eq(int, rdma_local_pin(domain, memory, 2 * CHUNK), 0));
    figures_are(2, 0, 2 * CHUNK);
    /* What is pinned makes no room. */
    cr_expect(is_refused(memory + 2 * CHUNK));
    figures_are(2, 0, 2 * CHUNK);
    cr_expect(eq(int, rdma_local_pin(domain, memory, SIZE), -ENOMEM));
    /* Again, and in the middle: it is there. */
    cr_expect(eq(int, rdma_local_pin(domain, memory + 100, CHUNK), 0));
    figures_are(2, 0, 2 * CHUNK);
    end();
}

static void write_counter(unsigned port, const char *name, const char *text)
{
    char path[200];

    snprintf(path, sizeof(path), "%s/ports", scratch);
    mkdir(path, 0700);
    snprintf(path, sizeof(path), "%s/ports/%u", scratch, port);
    mkdir(path, 0700);
    strcat(path, "/hw_counters");
    mkdir(path, 0700);
    strcat(path, "/");
    strcat(path, name);
    FILE *file = fopen(path, "w");
    cr_assert(ne(ptr, file, NULL));
    fputs(text, file);
    fclose(file);
}

Test(rdma_memory, counters)
{
    struct ibv_context *device = &verbs_devices[1];
    struct rdma_counters counters = rdma_counters(device);
    struct transport_figures figures = {0};

    cr_expect(zero(u64, counters.rnr_naks));
    scratch_make();
    strcpy(device->device->ibdev_path, scratch);
    write_counter(1, "rcvd_rnr_err", "7\n");
    write_counter(2, "rnr_nak_retry_err", "5\n");
    write_counter(2, "local_ack_timeout_err", "3\n");
    counters = rdma_counters(device);
    cr_expect(eq(u64, counters.rnr_naks, 12));
    cr_expect(eq(u64, counters.retries, 3));
    struct rdma_domain *other = rdma_domain_get(device, (const uint8_t *)"other group 1234", true);
    cr_assert(ne(ptr, other, NULL));
    write_counter(1, "rcvd_rnr_err", "9\n");
    write_counter(1, "completer_retry_err", "4\n");
    rdma_domain_figures(other, &figures);
    cr_expect(eq(u64, figures.rnr_naks, 2));
    cr_expect(eq(u64, figures.retries, 4));
    rdma_domain_put(other);
    scratch_remove();
    end();
}

/* What is registered and given back leaves nothing on the heap. */
Test(rdma_memory, nothing_stays)
{
    size_t before = 0;

    transport_memory_remove(memory);
    for (unsigned i = 0; i < 50; i++) {
        struct transport_key key;
        size_t covered;
        if (i == 10)
            before = heap_in_use();
        cr_assert(zero(int, transport_memory_add(memory, SIZE)));
        verbs_limit(CHUNK, 0);
        rdma_local_release(domain, take(0, 1, 1));
        struct rdma_local *local = take(CHUNK, 1, 1);
        cr_expect(zero(ptr, rdma_local_take(domain, memory, 1, &covered)));
        cr_expect(lt(int, rdma_expose(domain, memory, CHUNK, &key), 0));
        verbs_limit(UINT64_MAX, 0);
        transport_memory_remove(memory);
        rdma_local_release(domain, local);
        cr_assert(zero(int, rdma_expose(domain, memory, CHUNK, &key)));
        rdma_withdraw(domain, &key);
        struct rdma_domain *other =
            rdma_domain_get(&verbs_devices[0], (const uint8_t *)"a group of others", true);
        cr_assert(zero(int, rdma_expose(other, memory, CHUNK, &key)));
        rdma_domain_put(other);
        verbs_fail(VERBS_ALLOC_PD, 1, ENOMEM);
        cr_expect(zero(ptr, rdma_domain_get(&verbs_devices[0], (const uint8_t *)"a group of others", true)));
    }
    cr_expect(lt(sz, heap_in_use(), before + 40 * 16));
    end();
}
