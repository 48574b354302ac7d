/* SPDX-License-Identifier: Apache-2.0 */
/* The migrations of a daemon: names, limits, lists, what is remembered. */
#include "host.h"
#include "check.h"
#include "incoming.h"
#include "listener.h"
#include "outgoing.h"
#include "peer.h"
#include "rig.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct host *make(unsigned max_migrations)
{
    struct limits limits = rig_limits();
    struct host *host = malloc(sizeof(*host));

    limits.max_migrations = limits.max_outgoing = max_migrations;
    host_init(host, &limits, NULL);
    return host;
}

static void end(struct host *host)
{
    host_shutdown(host);
    host_drain(host, HOST_FOREVER);
    cr_expect(eq(uint, host->living, 0));
    host_fini(host);
    free(host);
}

static struct migration *add(struct host *host, const char *name)
{
    struct migration *m = NULL;
    struct error err;

    CHECK_OK(host_add_outgoing(host, name, 11, 22, &m, &err));
    return m;
}

Test(host, add_find_remove)
{
    struct host *host = make(10);
    struct migration *m = add(host, "vm-1"), *other;
    struct error err;

    cr_expect(eq(str, m->name, "vm-1"));
    struct attributes ram = attributes_get(&m->attributes, &m->attributes.at[ATTRIBUTES_RAM], ATTRIBUTES_DIRECTORY);
    cr_expect(eq(uint, ram.uid, 11));
    cr_expect(eq(uint, ram.gid, 22));
    cr_expect(eq(int, (int)m->role, ROLE_NONE));
    cr_expect(eq(int, (int)m->state, STATE_NONE));
    cr_expect(eq(uint, m->file_count, 1), "it has RAM");
    cr_expect(eq(str, migration_file(m, WIRE_RAM)->name, "ram"));
    cr_expect(zero(ptr, migration_file(m, 1)));
    other = host_find(host, "vm-1");
    cr_expect(eq(ptr, other, m));
    migration_put(other);
    cr_expect(zero(ptr, host_find(host, "vm-2")));
    CHECK_FAILS(host_add_outgoing(host, "vm-1", 0, 0, &other, &err), CAUSE_EXISTS);
    CHECK_OK(host_remove(host, m, &err));
    cr_expect(zero(ptr, host_find(host, "vm-1")));
    CHECK_FAILS(host_remove(host, m, &err), CAUSE_NOT_FOUND);
    CHECK_FAILS(outgoing_start(m, NULL, &err), CAUSE_NOT_FOUND);
    migration_put(m);
    m = add(host, "vm-1");
    migration_put(m);
    end(host);
}

Test(host, bad_names)
{
    static const struct {
        const char *name;
        enum cause cause;
    } cases[] = {
        {"", CAUSE_SYNTAX}, {".", CAUSE_SYNTAX}, {"..", CAUSE_SYNTAX}, {"a/b", CAUSE_SYNTAX}, {"../x", CAUSE_SYNTAX}, {".x", CAUSE_SYNTAX},
    };
    struct host *host = make(10);
    struct migration *m;
    struct error err;
    char longest[257];

    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++)
        CHECK_FAILS(host_add_outgoing(host, cases[i].name, 0, 0, &m, &err), cases[i].cause);
    memset(longest, 'n', 256);
    longest[256] = '\0';
    CHECK_FAILS(host_add_outgoing(host, longest, 0, 0, &m, &err), CAUSE_NAME_TOO_LONG);
    longest[255] = '\0';
    CHECK_OK(host_add_outgoing(host, longest, 0, 0, &m, &err));
    migration_put(m);
    cr_expect(eq(uint, host->living, 1), "nothing of the others is left");
    end(host);
}

Test(host, list)
{
    struct host *host = make(10);
    struct migration **list = NULL;
    char name[8];

    cr_expect(eq(int, host_list(host, &list), 0));
    free(list);
    for (int i = 0; i < 5; i++) {
        sprintf(name, "vm-%d", i);
        migration_put(add(host, name));
    }
    int n = host_list(host, &list);
    cr_expect(eq(int, n, 5));
    for (int i = 0; i < n; i++)
        migration_put(list[i]);
    free(list);
    end(host);
}

/* What is made here and what peers make have bounds of their own. */
Test(host, max_migrations)
{
    struct host *host = make(2);
    struct hello hellos[3] = {peer_hello("in-0", 1), peer_hello("in-1", 1), peer_hello("in-2", 1)};
    struct migration *m, *none;
    struct error err;

    migration_put(add(host, "a"));
    m = add(host, "b");
    CHECK_FAILS(host_add_outgoing(host, "c", 0, 0, &none, &err), CAUSE_QUOTA);
    cr_expect(not(zero(ptr, strstr(err.message, "max-outgoing"))), "%s", err.message);
    CHECK_OK(host_remove(host, m, &err));
    migration_put(m);
    for (int i = 0; i < 2; i++) {
        CHECK_OK(host_add_incoming(host, "test", &hellos[i], &m, &err));
        migration_put(m);
    }
    CHECK_FAILS(host_add_incoming(host, "other", &hellos[2], &none, &err), CAUSE_QUOTA);
    cr_expect(not(zero(ptr, strstr(err.message, "max-migrations"))), "%s", err.message);
    migration_put(add(host, "c"));
    end(host);
}

/* All channels are there. */
static void arrive(struct host *host, struct migration *m)
{
    struct migration *shown = NULL;
    struct error err;

    m->state = STATE_SETUP;
    CHECK_OK(host_arrive(host, m, &shown, &err));
    cr_expect(eq(ptr, shown, m));
    cr_expect(eq(int, (int)m->state, STATE_ACTIVE));
    migration_put(shown);
}

Test(host, incoming)
{
    struct host *host = make(10);
    struct hello hello = peer_hello("vm", 3), again = peer_hello("vm", 3), bad = peer_hello("../x", 1);
    struct migration *m, *other;
    struct error err;

    hello.features = WIRE_FEATURE_CHECKSUM;
    hello.device_channels = 1;
    CHECK_FAILS(host_add_incoming(host, "test", &bad, &other, &err), CAUSE_SYNTAX);
    CHECK_OK(host_add_incoming(host, "test", &hello, &m, &err));
    cr_expect(eq(int, (int)m->role, ROLE_INCOMING));
    cr_expect(eq(uint, m->settings.channels, 3));
    cr_expect(eq(uint, m->settings.device_channels, 1));
    cr_expect(m->settings.checksum);
    cr_expect(zero(ptr, host_find(host, "vm")), "not shown before its channels are there");
    other = host_find_session(host, "vm", hello.session);
    cr_expect(eq(ptr, other, m));
    migration_put(other);
    cr_expect(zero(ptr, host_find_session(host, "vm", again.session)));
    cr_expect(zero(ptr, host_find_session(host, "other", hello.session)));
    arrive(host, m);
    other = host_find(host, "vm");
    cr_expect(eq(ptr, other, m));
    migration_put(other);
    host_drop(host, m);
    host_drop(host, m);
    cr_expect(zero(ptr, host_find(host, "vm")));
    m->state = STATE_FAILED;
    migration_put(m);
    end(host);
}

/* Of two that arrive under a name, the first whose channels are all there takes it. */
Test(host, two_at_once)
{
    for (int expected = 0; expected < 2; expected++) {
        struct host *host = make(10);
        struct migration *m = expected ? add(host, "vm") : NULL, *shown = NULL;
        struct hello hellos[2] = {peer_hello("vm", 1), peer_hello("vm", 2)};
        struct migration *peers[2];
        struct error err;

        for (int i = 0; i < 2; i++) {
            CHECK_OK(host_add_incoming(host, "test", &hellos[i], &peers[i], &err));
            peers[i]->state = STATE_SETUP;
        }
        CHECK_OK(host_arrive(host, peers[1], &shown, &err));
        cr_expect(eq(ptr, shown, m ? m : peers[1]));
        cr_expect(eq(uint, shown->settings.channels, 2));
        CHECK_FAILS(host_arrive(host, peers[0], &m, &err), CAUSE_EXISTS);
        cr_expect(eq(int, (int)peers[0]->state, STATE_SETUP), "for whoever calls to end it");
        cr_expect(eq(int, (int)shown->state, STATE_ACTIVE));
        peers[0]->state = shown->state = STATE_FAILED;
        for (int i = 0; i < 2; i++)
            migration_put(peers[i]);
        if (expected)
            migration_put(shown);
        migration_put(shown);
        end(host);
    }
}

/* Who fails makes way for a new attempt of the same name; who completed, or is outgoing, does not. */
Test(host, who_makes_way)
{
    static const struct {
        enum state state;
        bool makes_way;
    } cases[] = {
        {STATE_ACTIVE, false}, {STATE_COMPLETED, false}, {STATE_FAILED, true}, {STATE_CANCELLED, true},
    };
    struct error err;

    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        struct host *host = make(1);
        struct hello hello = peer_hello("vm", 1), again = peer_hello("vm", 1);
        struct migration *m, *next;
        CHECK_OK(host_add_incoming(host, "test", &hello, &m, &err));
        arrive(host, m);
        m->state = cases[i].state;
        if (cases[i].makes_way) {
            CHECK_OK(host_add_incoming(host, "test", &again, &next, &err));
            migration_put(next);
        } else {
            CHECK_FAILS(host_add_incoming(host, "test", &again, &next, &err), CAUSE_EXISTS);
        }
        /* What users do not see yet is in nobody's way. */
        if (cases[i].makes_way)
            migration_put(add(host, "vm"));
        else
            CHECK_FAILS(host_add_outgoing(host, "vm", 0, 0, &next, &err), CAUSE_EXISTS);
        m->state = STATE_FAILED;
        migration_put(m);
        end(host);
    }
}

/* When the list is full, the incoming migration that failed first makes way, whatever its name. */
Test(host, failures_do_not_fill_the_list)
{
    struct host *host = make(3);
    struct hello hellos[3] = {peer_hello("a", 1), peer_hello("b", 1), peer_hello("c", 1)};
    struct hello hello = peer_hello("d", 1);
    struct migration *m[3], *next, *found;
    struct error err;

    for (int i = 0; i < 3; i++) {
        CHECK_OK(host_add_incoming(host, "test", &hellos[i], &m[i], &err));
        arrive(host, m[i]);
    }
    CHECK_FAILS(host_add_incoming(host, "test", &hello, &next, &err), CAUSE_QUOTA);
    m[1]->state = STATE_FAILED;
    m[2]->state = STATE_CANCELLED;
    CHECK_OK(host_add_incoming(host, "test", &hello, &next, &err));
    cr_expect(zero(ptr, host_find(host, "b")), "the oldest one");
    found = host_find(host, "c");
    cr_expect(eq(ptr, found, m[2]));
    migration_put(found);
    migration_put(next);
    for (int i = 0; i < 3; i++)
        migration_put(m[i]);
    end(host);
}

static struct migration *come(struct host *host, const char *name)
{
    struct hello hello = peer_hello(name, 2);
    struct migration *m = NULL;
    struct error err;

    CHECK_OK(host_add_incoming(host, "test", &hello, &m, &err));
    return m;
}

/* An expected migration becomes the one that arrives; what was prepared stays. */
Test(host, expected)
{
    struct host *host = make(10);
    struct migration *m = add(host, "vm"), *peer, *shown = NULL;
    struct hello hello = peer_hello("vm", 3);
    struct file *device = NULL;
    struct error err;

    m->settings.timeout_ms = 7000;
    CHECK_OK(outgoing_truncate(m, m->files[WIRE_RAM], 1 << 20, NULL, &err));
    CHECK_OK(outgoing_create_device(m, "vga", true, NULL, &device, &err));
    file_put(device); /* it stays in the table */
    CHECK_OK(host_add_incoming(host, "test", &hello, &peer, &err));
    cr_expect(eq(u64, incoming_max_ram(peer), 1 << 20));
    cr_expect(eq(uint, peer->settings.timeout_ms, 7000));
    cr_expect(eq(int, (int)m->role, ROLE_NONE), "it has not arrived yet");
    peer->state = STATE_SETUP;
    CHECK_OK(host_arrive(host, peer, &shown, &err));
    cr_expect(eq(ptr, shown, m));
    cr_expect(zero(ptr, peer->in));
    migration_put(peer);
    cr_expect(eq(int, (int)m->role, ROLE_INCOMING));
    cr_expect(eq(int, (int)m->state, STATE_ACTIVE));
    cr_expect(eq(uint, m->settings.channels, 3));
    cr_expect(eq(uint, m->settings.timeout_ms, 7000));
    cr_expect(eq(uint, m->attributes.at[ATTRIBUTES_RAM].uid, 11));
    cr_expect(eq(uint, host->count, 1));
    struct migration *found = host_find_session(host, "vm", hello.session);
    cr_expect(eq(ptr, found, m));
    migration_put(found);
    m->state = STATE_FAILED;
    migration_put(m);
    migration_put(shown);
    end(host);
}

/* All that a source does is refused, and nothing of it reaches what is not there. */
Test(host, nothing_of_a_source_once_it_is_incoming)
{
    struct host *host = make(10);
    struct migration *m = add(host, "vm"), *peer = come(host, "vm"), *shown = NULL;
    struct file *ram = migration_file(m, WIRE_RAM), *device = NULL, *other = NULL;
    uint8_t digest[DIGEST_SIZE];
    struct outgoing_write write;
    struct error err;

    CHECK_OK(outgoing_create_device(m, "vga", true, NULL, &device, &err));
    file_put(device); /* it stays in the table */
    outgoing_open_writer(m, device);
    peer->state = STATE_SETUP;
    CHECK_OK(host_arrive(host, peer, &shown, &err));
    migration_put(peer);
    CHECK_FAILS(outgoing_start(m, NULL, &err), CAUSE_READ_ONLY);
    CHECK_FAILS(outgoing_flush(m, NULL, NULL, &err), CAUSE_READ_ONLY);
    CHECK_FAILS(outgoing_sync(m, ram, NULL, &err), CAUSE_READ_ONLY);
    CHECK_FAILS(outgoing_complete(m, NULL, &err), CAUSE_READ_ONLY);
    CHECK_FAILS(outgoing_digest(m, ram, NULL, digest, &err), CAUSE_READ_ONLY);
    CHECK_FAILS(migration_stop(m, &err), CAUSE_READ_ONLY);
    CHECK_FAILS(outgoing_write_begin(m, ram, "x", 1, 0, NULL, &write, &err), CAUSE_READ_ONLY);
    CHECK_FAILS(outgoing_splice_begin(m, ram, -1, 1, 0, NULL, &write, &err), CAUSE_READ_ONLY);
    CHECK_FAILS(outgoing_discard(m, ram, 0, 1, NULL, &err), CAUSE_READ_ONLY);
    CHECK_FAILS(outgoing_truncate(m, ram, 5, NULL, &err), CAUSE_READ_ONLY);
    CHECK_FAILS(outgoing_create_device(m, "new", true, NULL, &other, &err), CAUSE_READ_ONLY);
    CHECK_FAILS(outgoing_mark_dirty(m, "\1\0\0\0\0\0\0\0", 8, 0, &err), CAUSE_READ_ONLY);
    pthread_mutex_lock(&m->lock);
    CHECK_FAILS(outgoing_setting_writable(m, NULL, &err), CAUSE_STATE);
    pthread_mutex_unlock(&m->lock);
    cr_expect(not(outgoing_splices(m, ram, WIRE_STRIPE_SIZE, 0)));
    cr_expect(eq(uint, outgoing_channels(m), 0));
    cr_expect(eq(u64, outgoing_dirty_size(m), 0));
    cr_expect(eq(u64, outgoing_queued(m), 0));
    cr_expect(zero(ptr, (void *)outgoing_path(m)));
    outgoing_close_writer(m, device);
    migration_kick(m);
    m->state = STATE_FAILED;
    migration_put(shown);
    migration_put(m);
    end(host);
}

/* What was prepared for a migration that has failed is there for the next peer. */
Test(host, expected_again)
{
    struct host *host = make(10);
    struct migration *m = add(host, "vm"), *peer = come(host, "vm"), *shown = NULL, *again;
    struct file *device = NULL;
    struct error err;

    m->settings.timeout_ms = 7000;
    CHECK_OK(outgoing_truncate(m, m->files[WIRE_RAM], 1 << 20, NULL, &err));
    CHECK_OK(outgoing_create_device(m, "vga", true, NULL, &device, &err));
    file_put(device); /* it stays in the table */
    peer->state = STATE_SETUP;
    CHECK_OK(host_arrive(host, peer, &shown, &err));
    migration_put(peer);
    migration_put(shown);
    m->state = STATE_FAILED;
    peer = come(host, "vm");
    again = host_find(host, "vm");
    cr_assert(ne(ptr, again, m));
    cr_expect(eq(int, (int)again->state, STATE_NONE));
    cr_expect(eq(int, (int)again->role, ROLE_NONE));
    cr_expect(eq(uint, again->attributes.at[ATTRIBUTES_DIRECTORY].uid, 11));
    cr_expect(eq(uint, again->attributes.at[ATTRIBUTES_RAM].gid, 22));
    cr_expect(eq(uint, again->settings.timeout_ms, 7000));
    cr_expect(eq(u64, incoming_max_ram(peer), 1 << 20));
    struct file *vga = migration_find_device(again, "vga");
    cr_expect(ne(ptr, vga, NULL));
    file_put(vga);
    peer->state = STATE_FAILED;
    migration_put(peer);
    migration_put(again);
    migration_put(m);
    end(host);
}

/* `uri` and a peer: what is first, wins. */
Test(host, one_role_wins)
{
    struct host *host = make(10);
    struct migration *m = add(host, "vm"), *peer = come(host, "vm"), *shown = NULL;
    struct hello hello = peer_hello("vm", 1);
    struct error err;

    pthread_mutex_lock(&m->lock);
    migration_become_outgoing(m);
    pthread_mutex_unlock(&m->lock);
    peer->state = STATE_SETUP;
    CHECK_FAILS(host_arrive(host, peer, &shown, &err), CAUSE_EXISTS);
    cr_expect(eq(int, (int)peer->state, STATE_SETUP));
    peer->state = STATE_FAILED;
    migration_put(peer);
    CHECK_FAILS(host_add_incoming(host, "test", &hello, &peer, &err), CAUSE_EXISTS);
    migration_put(m);
    end(host);
}

/* A migration that is removed while its peer's channels arrive. */
Test(host, expected_no_more)
{
    struct host *host = make(10);
    struct migration *m = add(host, "vm"), *peer = come(host, "vm");
    struct error err;

    CHECK_OK(host_remove(host, m, &err));
    migration_put(m);
    arrive(host, peer);
    peer->state = STATE_FAILED;
    migration_put(peer);
    end(host);
}

Test(host, only_what_is_expected)
{
    struct host *host = make(10);
    struct migration *m, *peer, *shown = NULL;
    struct hello hello = peer_hello("vm", 1);
    struct error err;

    host->limits.expect = true;
    CHECK_FAILS(host_add_incoming(host, "test", &hello, &peer, &err), CAUSE_DENIED);
    m = add(host, "vm");
    CHECK_OK(host_add_incoming(host, "test", &hello, &peer, &err));
    CHECK_OK(host_remove(host, m, &err));
    migration_put(m);
    peer->state = STATE_SETUP;
    CHECK_FAILS(host_arrive(host, peer, &shown, &err), CAUSE_DENIED);
    peer->state = STATE_FAILED;
    migration_put(peer);
    end(host);
}

static struct migration *arrive_from(struct host *host, const char *address, const char *name, enum state state)
{
    struct hello hello = peer_hello(name, 1);
    struct migration *m = NULL;
    struct error err;

    CHECK_OK(host_add_incoming(host, address, &hello, &m, &err));
    arrive(host, m);
    m->state = state;
    return m;
}

static bool is_there(struct host *host, const char *name)
{
    struct migration *m = host_find(host, name);

    migration_put(m);
    return m;
}

/* A peer that takes its share takes nothing from others, and only what it has made itself makes way for it. */
Test(host, shares_of_peers)
{
    struct limits limits = rig_limits();
    struct host host;
    struct migration *good, *bad[4], *none;
    struct error err;
    struct hello hello = peer_hello("bad-4", 1);

    limits.max_migrations = 6;
    limits.max_peer_migrations = 4;
    host_init(&host, &limits, NULL);
    good = arrive_from(&host, "10.0.0.1", "good", STATE_FAILED);
    static const char *const names[] = {"bad-0", "bad-1", "bad-2", "bad-3"};
    for (int i = 0; i < 4; i++)
        bad[i] = arrive_from(&host, "10.0.0.2", names[i], STATE_ACTIVE);
    CHECK_FAILS(host_add_incoming(&host, "10.0.0.2", &hello, &none, &err), CAUSE_QUOTA);
    cr_expect(not(zero(ptr, strstr(err.message, "max-peer-migrations"))), "%s", err.message);
    cr_expect(is_there(&host, "good"), "another peer's does not make way");
    migration_put(arrive_from(&host, "10.0.0.1", "good-2", STATE_FAILED));
    bad[2]->state = STATE_CANCELLED;
    migration_put(arrive_from(&host, "10.0.0.2", "bad-4", STATE_FAILED));
    cr_expect(not(is_there(&host, "bad-2")), "its own one does");
    /* The list is full, too: now the oldest one of all. */
    migration_put(arrive_from(&host, "10.0.0.3", "third", STATE_FAILED));
    cr_expect(not(is_there(&host, "good")));
    cr_expect(is_there(&host, "good-2"));
    for (int i = 0; i < 4; i++) {
        bad[i]->state = STATE_FAILED;
        migration_put(bad[i]);
    }
    migration_put(good);
    host_shutdown(&host);
    host_drain(&host, HOST_FOREVER);
    host_fini(&host);
}

/* A completed migration in which nothing has arrived makes way, when no failed one does and nobody has it open. */
Test(host, empty_ones_make_way)
{
    struct host *host = make(4);
    struct migration *full = arrive_from(host, "test", "full", STATE_COMPLETED);
    struct migration *open = arrive_from(host, "test", "open", STATE_COMPLETED);
    struct migration *empty = arrive_from(host, "test", "empty", STATE_COMPLETED);
    struct migration *failed = arrive_from(host, "test", "failed", STATE_FAILED);
    struct file *ram = file_new(WIRE_RAM, "ram");
    struct hello hello = peer_hello("three", 1);
    struct migration *none;
    struct error err;

    file_set_channels(ram, 1, 0);
    atomic_store(&ram->per_channel[0].bytes, 1);
    pthread_mutex_lock(&full->lock);
    migration_add_file(full, ram);
    pthread_mutex_unlock(&full->lock);
    atomic_store(&open->opens, 1);
    struct migration *one = arrive_from(host, "test", "one", STATE_ACTIVE);
    cr_expect(not(is_there(host, "failed")), "a failed one first");
    struct migration *two = arrive_from(host, "test", "two", STATE_ACTIVE);
    cr_expect(not(is_there(host, "empty")));
    CHECK_FAILS(host_add_incoming(host, "test", &hello, &none, &err), CAUSE_QUOTA);
    cr_expect(is_there(host, "full"));
    cr_expect(is_there(host, "open"));
    one->state = two->state = STATE_FAILED;
    struct migration *all[] = {full, open, empty, failed, one, two};
    for (size_t i = 0; i < ARRAY_LENGTH(all); i++)
        migration_put(all[i]);
    end(host);
}

/* Channels, descriptors and buffers count against the host and the peer, until the migration is over. */
Test(host, budgets)
{
    static const struct {
        const char *what;
        size_t limit;
        uint32_t value;
    } cases[] = {
        {"max-channels", offsetof(struct limits, max_channels), 40},
        {"max-peer-channels", offsetof(struct limits, max_peer_channels), 20},
        {"open files", offsetof(struct limits, max_descriptors), 40},
        {"open files", offsetof(struct limits, max_peer_descriptors), 20},
    };
    struct error err;

    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        struct limits limits = rig_limits();
        struct hello hellos[3] = {peer_hello("a", 16), peer_hello("b", 16), peer_hello("c", 16)};
        struct host host;
        struct migration *m[3];
        *(uint32_t *)(void *)((char *)&limits + cases[i].limit) = cases[i].value;
        host_init(&host, &limits, NULL);
        CHECK_OK(host_add_incoming(&host, "one", &hellos[0], &m[0], &err));
        bool of_peer = cases[i].value == 20;
        if (of_peer)
            CHECK_FAILS(host_add_incoming(&host, "one", &hellos[1], &m[1], &err), CAUSE_QUOTA);
        else
            CHECK_OK(host_add_incoming(&host, "one", &hellos[1], &m[1], &err));
        if (of_peer)
            CHECK_OK(host_add_incoming(&host, "two", &hellos[1], &m[1], &err));
        else
            CHECK_FAILS(host_add_incoming(&host, "two", &hellos[2], &m[2], &err), CAUSE_QUOTA);
        host_drop(&host, m[0]);
        migration_put(m[0]);
        CHECK_OK(host_add_incoming(&host, "one", &hellos[0], &m[0], &err));
        migration_put(m[0]);
        migration_put(m[1]);
        host_shutdown(&host);
        host_drain(&host, HOST_FOREVER);
        cr_expect(zero(u64, host.channels.used), "%s", cases[i].what);
        cr_expect(zero(u64, host.descriptors.used), "%s", cases[i].what);
        cr_expect(zero(u64, host.budget.used), "%s", cases[i].what);
        cr_expect(zero(ptr, host.accounts), "%s", cases[i].what);
        host_fini(&host);
    }
}

Test(host, running_is_not_removed)
{
    struct host *host = make(10);
    struct migration *m = add(host, "vm");
    struct error err;

    for (int state = STATE_SETUP; state <= STATE_COMPLETING; state++) {
        m->state = (enum state)state;
        CHECK_FAILS(host_remove(host, m, &err), CAUSE_STATE);
    }
    m->state = STATE_FAILED;
    CHECK_OK(host_remove(host, m, &err));
    migration_put(m);
    end(host);
}

static void record(struct host *host, const uint8_t session[16], enum wire_outcome outcome)
{
    pthread_mutex_lock(&host->lock);
    host_record(host, session, outcome);
    pthread_mutex_unlock(&host->lock);
}

Test(host, outcomes)
{
    struct host *host = make(10);
    uint8_t session[16] = {0}, unknown[16] = {0xff};

    cr_expect(eq(int, (int)host_outcome(host, session), WIRE_OUTCOME_UNKNOWN), "also of the session of zeros");
    for (int i = 0; i < HOST_HISTORY; i++) {
        memcpy(session, &i, sizeof(i));
        session[15] = 1;
        record(host, session, i % 2 ? WIRE_OUTCOME_COMPLETED : WIRE_OUTCOME_FAILED);
    }
    for (int i = 0; i < HOST_HISTORY; i++) {
        memcpy(session, &i, sizeof(i));
        cr_expect(eq(int, (int)host_outcome(host, session), i % 2 ? WIRE_OUTCOME_COMPLETED : WIRE_OUTCOME_FAILED));
    }
    cr_expect(eq(int, (int)host_outcome(host, unknown), WIRE_OUTCOME_UNKNOWN));
    record(host, unknown, WIRE_OUTCOME_COMPLETED);
    cr_expect(eq(int, (int)host_outcome(host, unknown), WIRE_OUTCOME_COMPLETED));
    int first = 0;
    memcpy(session, &first, sizeof(first));
    cr_expect(eq(int, (int)host_outcome(host, session), WIRE_OUTCOME_UNKNOWN), "the oldest one made room");
    end(host);
}

Test(host, closed)
{
    struct host *host = make(10);
    struct hello hello = peer_hello("in", 1);
    struct migration *m;
    struct error err;

    host_shutdown(host);
    CHECK_FAILS(host_add_outgoing(host, "vm", 0, 0, &m, &err), CAUSE_SHUTDOWN);
    CHECK_FAILS(host_add_incoming(host, "test", &hello, &m, &err), CAUSE_SHUTDOWN);
    end(host);
}

Test(host, last_error)
{
    struct host *host = make(10);
    char text[ERROR_MESSAGE_MAX];

    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    host_note_error(host, text);
    cr_expect(eq(str, host->last_error, text));
    host_note_error(host, "short");
    cr_expect(eq(str, host->last_error, "short"));
    end(host);
}

/* Devices of a migration that is not started. */
Test(host, devices)
{
    struct host *host = make(10);
    struct migration *m = add(host, "vm");
    struct file *file, *other;
    struct error err;

    CHECK_OK(outgoing_create_device(m, "vga", true, NULL, &file, &err));
    cr_expect(eq(u32, file->id, 1));
    other = migration_find_device(m, "vga");
    cr_expect(eq(ptr, other, file));
    file_put(other);
    cr_expect(zero(ptr, migration_find_device(m, "ram")), "RAM is no device");
    CHECK_OK(outgoing_create_device(m, "vga", false, NULL, &other, &err));
    cr_expect(eq(ptr, other, file));
    CHECK_FAILS(outgoing_create_device(m, "vga", true, NULL, &other, &err), CAUSE_EXISTS);
    CHECK_FAILS(outgoing_create_device(m, ".", false, NULL, &other, &err), CAUSE_SYNTAX);
    CHECK_FAILS(outgoing_create_device(m, "a/b", false, NULL, &other, &err), CAUSE_SYNTAX);
    cr_expect(eq(u32, m->file_count, 2));
    file_put(other);
    migration_put(m);
    end(host);
    cr_expect(eq(str, file->name, "vga"), "a file outlives its migration for those who hold it");
    file_put(file);
}

/* Every command before `start`, and the sentence that `error` shows then. */
Test(host, before_start)
{
    struct host *host = make(10);
    struct migration *m = add(host, "vm");
    struct file *ram = migration_file(m, WIRE_RAM);
    struct outgoing_write write;
    struct error err;
    uint8_t digest[DIGEST_SIZE];

    CHECK_FAILS(outgoing_flush(m, NULL, NULL, &err), CAUSE_NOT_STARTED);
    CHECK_FAILS(outgoing_sync(m, NULL, NULL, &err), CAUSE_NOT_STARTED);
    CHECK_FAILS(outgoing_complete(m, NULL, &err), CAUSE_NOT_STARTED);
    CHECK_FAILS(outgoing_digest(m, ram, NULL, digest, &err), CAUSE_NOT_STARTED);
    CHECK_FAILS(migration_cancel(m, &err), CAUSE_NOT_STARTED);
    CHECK_FAILS(migration_stop(m, &err), CAUSE_NOT_STARTED);
    CHECK_FAILS(outgoing_write_begin(m, ram, "x", 1, 0, NULL, &write, &err), CAUSE_NOT_STARTED);
    CHECK_FAILS(outgoing_discard(m, ram, 0, 1, NULL, &err), CAUSE_NOT_STARTED);
    CHECK_FAILS(outgoing_start(m, NULL, &err), CAUSE_SYNTAX);
    CHECK_FAILS(outgoing_truncate(m, ram, WIRE_OFFSET_MAX + 1, NULL, &err), CAUSE_TOO_BIG);
    CHECK_OK(outgoing_truncate(m, ram, 1 << 20, NULL, &err));
    cr_expect(eq(u64, ram->size, 1 << 20));
    pthread_mutex_lock(&m->lock);
    CHECK_OK(outgoing_setting_writable(m, NULL, &err));
    pthread_mutex_unlock(&m->lock);
    cr_expect(eq(uint, outgoing_channels(m), 0));
    cr_expect(eq(u64, outgoing_queued(m), 0));
    cr_expect(eq(u64, outgoing_wire_bytes(m, -1), 0));
    migration_note_error(m, &err);
    cr_expect(eq(str, m->last_error.message, ""), "no error leaves it as it is");
    outgoing_flush(m, NULL, NULL, &err);
    migration_note_error(m, &err);
    cr_expect(ne(str, m->last_error.message, ""));
    migration_put(m);
    end(host);
}

/* Why a migration has failed stays until it is started again: what is refused meanwhile is said elsewhere. */
Test(host, a_failure_stays)
{
    struct host *host = make(10);
    struct migration *m = add(host, "vm");
    struct error err, failure = {0}, refusal = {0};

    CHECK_OK(uri_parse("unix:/nowhere/at/all", &m->settings.uri, &err));
    error_set(&refusal, CAUSE_SYNTAX, "not so");
    migration_note_error(m, &refusal);
    cr_expect(eq(str, m->last_error.message, "not so"), "there is no failure yet");
    cr_assert(lt(int, outgoing_start(m, NULL, &failure), 0));
    cr_expect(eq(int, (int)m->state, STATE_FAILED));
    cr_expect(eq(str, m->last_error.message, failure.message));
    migration_note_error(m, &refusal);
    cr_expect(eq(str, m->last_error.message, failure.message));
    cr_expect(eq(str, host->last_error, "vm: not so"));
    host_note_error(host, "");
    migration_note_error(m, &failure);
    cr_expect(eq(str, host->last_error, ""), "the failure itself is no news");
    migration_put(m);
    end(host);
}

/* Who is refused for a quota does not take a failed migration's reason away. */
Test(host, reason_stays_when_the_next_is_refused)
{
    struct limits limits = rig_limits();
    struct host host;
    struct hello vm = peer_hello("vm", 1), other = peer_hello("other", 1);
    struct migration *failed, *running, *refused;
    struct error err;

    limits.max_peer_migrations = 1;
    host_init(&host, &limits, NULL);
    CHECK_OK(host_add_incoming(&host, "a", &vm, &failed, &err));
    failed->visible = true;
    failed->state = STATE_FAILED;
    CHECK_OK(host_add_incoming(&host, "b", &other, &running, &err));
    CHECK_FAILS(host_add_incoming(&host, "b", &vm, &refused, &err), CAUSE_QUOTA);
    struct migration *found = host_find(&host, "vm");
    cr_expect(eq(ptr, found, failed));
    migration_put(found);
    running->state = STATE_FAILED;
    migration_put(failed);
    migration_put(running);
    host_shutdown(&host);
    host_drain(&host, HOST_FOREVER);
    host_fini(&host);
}
