/* SPDX-License-Identifier: Apache-2.0 */
/* A source and a destination in one process; see rig.h. */
#include "rig.h"
#include "check.h"
#include "entries.h"
#include "guard.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Anything has changed in any migration. */
static pthread_mutex_t change_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t change = PTHREAD_COND_INITIALIZER;
static unsigned changes; /* guarded by change_lock */

static void note_change(struct migration *m)
{
    (void)m;
    pthread_mutex_lock(&change_lock);
    changes++;
    pthread_cond_broadcast(&change);
    pthread_mutex_unlock(&change_lock);
}

static unsigned changes_so_far(void)
{
    pthread_mutex_lock(&change_lock);
    unsigned n = changes;
    pthread_mutex_unlock(&change_lock);
    return n;
}

static void await_change_after(unsigned n)
{
    pthread_mutex_lock(&change_lock);
    while (changes == n)
        pthread_cond_wait(&change, &change_lock);
    pthread_mutex_unlock(&change_lock);
}

struct tls *rig_tls_source, *rig_tls_destination;

struct limits rig_limits(void)
{
    return (struct limits){
        .max_memory = 1ull << 30,
        .max_ram = 256ull << 20,
        .max_device = 64ull << 20,
        .max_devices = 64,
        .max_migrations = 1000,
        .write_behind = 8ull << 20,
        .timeout_ms = 60000,
        .owner = {.uid = getuid(), .gid = getgid()},
    };
}

void rig_init(struct rig *rig, const char *listen, const struct limits *limits)
{
    struct limits defaults = rig_limits();
    struct error err;
    struct uri uri;

    guard_setup();
    registry_init(&rig->source, &defaults, note_change);
    registry_init(&rig->destination, limits ? limits : &defaults, note_change);
    rig->source.host.tls = rig_tls_source;
    rig->destination.host.tls = rig_tls_destination;
    CHECK_OK(uri_parse(listen, &uri, &err));
    CHECK_OK(listener_new(&rig->destination, &uri, 1, &rig->listener, &err));
    CHECK_OK(listener_start(rig->listener, &err));
    snprintf(rig->address, sizeof(rig->address), "%s", listener_address(rig->listener, 0));
    /* What only one end is to break is not in the address of the other. */
    if (!strncmp(rig->address, "faulty:", 7))
        memmove(rig->address, strchr(rig->address + 7, ':') + 1, strlen(strchr(rig->address + 7, ':')));
}

void rig_fini(struct rig *rig)
{
    registry_shutdown(&rig->source);
    registry_shutdown(&rig->destination);
    listener_free(rig->listener);
    registry_drain(&rig->source, HOST_FOREVER);
    registry_drain(&rig->destination, HOST_FOREVER);
    cr_expect(eq(uint, rig->source.host.users, 0));
    cr_expect(eq(uint, rig->destination.host.users, 0));
    cr_expect(eq(u64, rig->destination.host.accounts.memory.used, 0));
    registry_fini(&rig->source);
    registry_fini(&rig->destination);
}

struct migration *rig_make(struct rig *rig, const char *name, unsigned channels, const char *faults)
{
    struct migration *m = NULL;
    struct error err;
    char text[2 * URI_MAX];

    CHECK_OK(registry_add_outgoing(&rig->source, name, 0, 0, &m, &err));
    snprintf(text, sizeof(text), "%s%s", faults, rig->address);
    CHECK_OK(uri_list_parse(text, &m->settings.uris, &err));
    m->settings.channels = channels;
    return m;
}

struct migration *rig_start(struct rig *rig, const char *name, unsigned channels, uint64_t ram_size)
{
    struct migration *m = rig_make(rig, name, channels, "");
    struct error err;

    if (ram_size)
        CHECK_OK(outgoing_truncate(m, migration_file(m, WIRE_RAM), ram_size, NULL, &err));
    CHECK_OK(outgoing_start(m, NULL, &err));
    return m;
}

struct migration *rig_arrived(struct rig *rig, const char *name)
{
    for (;;) {
        unsigned n = changes_so_far();
        struct migration *m = registry_find(&rig->destination, name);
        if (m)
            return m;
        await_change_after(n);
    }
}

enum state rig_await_end(struct migration *m)
{
    pthread_mutex_lock(&m->lock);
    while (!state_is_final(m->state))
        pthread_cond_wait(&m->changed, &m->lock);
    enum state state = m->state;
    pthread_mutex_unlock(&m->lock);
    return state;
}

int rig_try_write(struct migration *m, struct file *file, const void *buf, size_t len, uint64_t offset,
                  const struct interrupt *interrupt, struct error *err)
{
    const char *p = buf;

    while (len > 0) {
        struct sender_write write;
        size_t n = len < PLAN_WRITE_MAX ? len : PLAN_WRITE_MAX;
        int ret = outgoing_write_begin(m, file, p, n, offset, interrupt, &write, err);
        if (ret < 0)
            return ret;
        sender_finish(&write);
        p += n;
        offset += n;
        len -= n;
    }
    return 0;
}

void rig_write(struct migration *m, struct file *file, const void *buf, size_t len, uint64_t offset)
{
    struct error err;

    CHECK_OK(rig_try_write(m, file, buf, len, offset, NULL, &err));
}

struct file *rig_device(struct migration *m, const char *name)
{
    struct file *file = NULL;
    struct error err;

    CHECK_OK(outgoing_create_device(m, name, false, NULL, &file, &err));
    file_put(file); /* it stays in the migration's table */
    return file;
}

struct file *rig_find_file(struct migration *incoming, const char *name)
{
    for (;;) {
        unsigned n = changes_so_far();
        struct file *file =
            !strcmp(name, "ram") ? migration_get_file(incoming, WIRE_RAM) : migration_find_device(incoming, name);
        if (file) {
            file_put(file); /* it stays in the migration's table */
            return file;
        }
        await_change_after(n);
    }
}

void rig_compare(struct migration *incoming, uint32_t id, const void *want, size_t size)
{
    struct file *file = migration_file(incoming, id);
    char *got = malloc(size + 1);

    cr_assert(not(zero(ptr, file)), "file %u is not there", id);
    cr_assert(eq(u64, file_received_size(file), size), "%s", file->name);
    size_t have = 0;
    while (have < size) {
        ssize_t n = file_read(file, have, got + have, size + 1 - have, true, NULL);
        if (n <= 0)
            break;
        have += (size_t)n;
    }
    cr_assert(eq(sz, have, size), "%s", file->name);
    if (memcmp(got, want, size)) {
        size_t at = 0;
        while (got[at] == ((const char *)want)[at])
            at++;
        cr_assert(false, "%s differs at %zu", file->name, at);
    }
    free(got);
}

unsigned rig_count_fds(void)
{
    return count_entries("/proc/self/fd");
}

unsigned rig_count_threads(void)
{
    return count_entries("/proc/self/task");
}

void rig_await_threads(unsigned n)
{
    /* A detached thread's last act comes after everything that can be waited for. */
    while (rig_count_threads() > n)
        sched_yield();
}
