/* SPDX-License-Identifier: Apache-2.0 */
/* The migrations of a daemon: names, limits, lists. */
#include "registry.h"
#include "check.h"
#include "incoming.h"
#include "listener.h"
#include "outgoing.h"
#include "peer.h"
#include "rig.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct transport_identity nobody;

static struct registry *make(unsigned max_migrations)
{
    struct limits limits = rig_limits();
    struct registry *registry = malloc(sizeof(*registry));

    limits.max_migrations = limits.max_outgoing = max_migrations;
    registry_init(registry, &limits, NULL);
    return registry;
}

static void end(struct registry *registry)
{
    registry_shutdown(registry);
    registry_drain(registry, HOST_FOREVER);
    cr_expect(eq(uint, registry->host.users, 0));
    registry_fini(registry);
    free(registry);
}

static struct migration *add(struct registry *registry, const char *name)
{
    struct migration *m = NULL;
    struct error err;

    CHECK_OK(registry_add_outgoing(registry, name, 11, 22, &m, &err));
    return m;
}

Test(registry, add_find_remove)
{
    struct registry *registry = make(10);
    struct migration *m = add(registry, "vm-1"), *other;
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
    other = registry_find(registry, "vm-1");
    cr_expect(eq(ptr, other, m));
    migration_put(other);
    cr_expect(zero(ptr, registry_find(registry, "vm-2")));
    CHECK_FAILS(registry_add_outgoing(registry, "vm-1", 0, 0, &other, &err), CAUSE_EXISTS);
    CHECK_OK(registry_remove(registry, m, &err));
    cr_expect(zero(ptr, registry_find(registry, "vm-1")));
    CHECK_FAILS(registry_remove(registry, m, &err), CAUSE_NOT_FOUND);
    CHECK_FAILS(outgoing_start(m, NULL, &err), CAUSE_NOT_FOUND);
    migration_put(m);
    m = add(registry, "vm-1");
    migration_put(m);
    end(registry);
}

Test(registry, bad_names)
{
    static const struct {
        const char *name;
        enum cause cause;
    } cases[] = {
        {"", CAUSE_SYNTAX}, {".", CAUSE_SYNTAX}, {"..", CAUSE_SYNTAX}, {"a/b", CAUSE_SYNTAX}, {"../x", CAUSE_SYNTAX}, {".x", CAUSE_SYNTAX},
    };
    struct registry *registry = make(10);
    struct migration *m;
    struct error err;
    char longest[257];

    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++)
        CHECK_FAILS(registry_add_outgoing(registry, cases[i].name, 0, 0, &m, &err), cases[i].cause);
    memset(longest, 'n', 256);
    longest[256] = '\0';
    CHECK_FAILS(registry_add_outgoing(registry, longest, 0, 0, &m, &err), CAUSE_NAME_TOO_LONG);
    longest[255] = '\0';
    CHECK_OK(registry_add_outgoing(registry, longest, 0, 0, &m, &err));
    migration_put(m);
    cr_expect(eq(uint, registry->host.users, 1), "nothing of the others is left");
    end(registry);
}

Test(registry, list)
{
    struct registry *registry = make(10);
    struct migration **list = NULL;
    char name[8];

    cr_expect(eq(int, registry_list(registry, &list), 0));
    free(list);
    for (int i = 0; i < 5; i++) {
        sprintf(name, "vm-%d", i);
        migration_put(add(registry, name));
    }
    int n = registry_list(registry, &list);
    cr_expect(eq(int, n, 5));
    for (int i = 0; i < n; i++)
        migration_put(list[i]);
    free(list);
    end(registry);
}

/* What is made here and what peers make have bounds of their own. */
Test(registry, max_migrations)
{
    struct registry *registry = make(2);
    struct hello hellos[3] = {peer_hello("in-0", 1), peer_hello("in-1", 1), peer_hello("in-2", 1)};
    struct migration *m, *none;
    struct error err;

    migration_put(add(registry, "a"));
    m = add(registry, "b");
    CHECK_FAILS(registry_add_outgoing(registry, "c", 0, 0, &none, &err), CAUSE_QUOTA);
    cr_expect(not(zero(ptr, strstr(err.message, "max-outgoing"))), "%s", err.message);
    CHECK_OK(registry_remove(registry, m, &err));
    migration_put(m);
    for (int i = 0; i < 2; i++) {
        CHECK_OK(registry_add_incoming(registry, "test", &hellos[i], &m, &err));
        migration_put(m);
    }
    CHECK_FAILS(registry_add_incoming(registry, "other", &hellos[2], &none, &err), CAUSE_QUOTA);
    cr_expect(not(zero(ptr, strstr(err.message, "max-migrations"))), "%s", err.message);
    migration_put(add(registry, "c"));
    end(registry);
}

/* All channels are there. */
static void arrive(struct registry *registry, struct migration *m)
{
    struct migration *shown = NULL;
    struct error err;

    m->state = STATE_SETUP;
    CHECK_OK(registry_arrive(registry, m, &shown, &err));
    cr_expect(eq(ptr, shown, m));
    cr_expect(eq(int, (int)m->state, STATE_ACTIVE));
    migration_put(shown);
}

Test(registry, incoming)
{
    struct registry *registry = make(10);
    struct hello hello = peer_hello("vm", 3), again = peer_hello("vm", 3), bad = peer_hello("../x", 1);
    struct migration *m, *other;
    struct error err;

    hello.features = WIRE_FEATURE_CHECKSUM;
    hello.device_channels = 1;
    CHECK_FAILS(registry_add_incoming(registry, "test", &bad, &other, &err), CAUSE_SYNTAX);
    CHECK_OK(registry_add_incoming(registry, "test", &hello, &m, &err));
    cr_expect(eq(int, (int)m->role, ROLE_INCOMING));
    cr_expect(eq(uint, m->settings.channels, 3));
    cr_expect(eq(uint, m->settings.device_channels, 1));
    cr_expect(m->settings.checksum);
    cr_expect(zero(ptr, registry_find(registry, "vm")), "not shown before its channels are there");
    other = registry_find_session(registry, "vm", hello.session, nobody.digest);
    cr_expect(eq(ptr, other, m));
    migration_put(other);
    cr_expect(zero(ptr, registry_find_session(registry, "vm", again.session, nobody.digest)));
    cr_expect(zero(ptr, registry_find_session(registry, "other", hello.session, nobody.digest)));
    arrive(registry, m);
    other = registry_find(registry, "vm");
    cr_expect(eq(ptr, other, m));
    migration_put(other);
    registry_drop(registry, m);
    registry_drop(registry, m);
    cr_expect(zero(ptr, registry_find(registry, "vm")));
    m->state = STATE_FAILED;
    migration_put(m);
    end(registry);
}

/* Of two that arrive under a name, the first whose channels are all there takes it. */
Test(registry, two_at_once)
{
    for (int expected = 0; expected < 2; expected++) {
        struct registry *registry = make(10);
        struct migration *m = expected ? add(registry, "vm") : NULL, *shown = NULL;
        struct hello hellos[2] = {peer_hello("vm", 1), peer_hello("vm", 2)};
        struct migration *peers[2];
        struct error err;

        for (int i = 0; i < 2; i++) {
            CHECK_OK(registry_add_incoming(registry, "test", &hellos[i], &peers[i], &err));
            peers[i]->state = STATE_SETUP;
        }
        CHECK_OK(registry_arrive(registry, peers[1], &shown, &err));
        cr_expect(eq(ptr, shown, m ? m : peers[1]));
        cr_expect(eq(uint, shown->settings.channels, 2));
        CHECK_FAILS(registry_arrive(registry, peers[0], &m, &err), CAUSE_EXISTS);
        cr_expect(eq(int, (int)peers[0]->state, STATE_SETUP), "for whoever calls to end it");
        cr_expect(eq(int, (int)shown->state, STATE_ACTIVE));
        peers[0]->state = shown->state = STATE_FAILED;
        for (int i = 0; i < 2; i++)
            migration_put(peers[i]);
        if (expected)
            migration_put(shown);
        migration_put(shown);
        end(registry);
    }
}

/* Who fails makes way for a new attempt of the same name; who completed, or is outgoing, does not. */
Test(registry, who_makes_way)
{
    static const struct {
        enum state state;
        bool makes_way;
    } cases[] = {
        {STATE_ACTIVE, false}, {STATE_COMPLETED, false}, {STATE_FAILED, true}, {STATE_CANCELLED, true},
    };
    struct error err;

    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        struct registry *registry = make(1);
        struct hello hello = peer_hello("vm", 1), again = peer_hello("vm", 1);
        struct migration *m, *next;
        CHECK_OK(registry_add_incoming(registry, "test", &hello, &m, &err));
        arrive(registry, m);
        m->state = cases[i].state;
        if (cases[i].makes_way) {
            CHECK_OK(registry_add_incoming(registry, "test", &again, &next, &err));
            migration_put(next);
        } else {
            CHECK_FAILS(registry_add_incoming(registry, "test", &again, &next, &err), CAUSE_EXISTS);
        }
        /* What users do not see yet is in nobody's way. */
        if (cases[i].makes_way)
            migration_put(add(registry, "vm"));
        else
            CHECK_FAILS(registry_add_outgoing(registry, "vm", 0, 0, &next, &err), CAUSE_EXISTS);
        m->state = STATE_FAILED;
        migration_put(m);
        end(registry);
    }
}

/* When the list is full, the incoming migration that failed first makes way, whatever its name. */
Test(registry, failures_do_not_fill_the_list)
{
    struct registry *registry = make(3);
    struct hello hellos[3] = {peer_hello("a", 1), peer_hello("b", 1), peer_hello("c", 1)};
    struct hello hello = peer_hello("d", 1);
    struct migration *m[3], *next, *found;
    struct error err;

    for (int i = 0; i < 3; i++) {
        CHECK_OK(registry_add_incoming(registry, "test", &hellos[i], &m[i], &err));
        arrive(registry, m[i]);
    }
    CHECK_FAILS(registry_add_incoming(registry, "test", &hello, &next, &err), CAUSE_QUOTA);
    m[1]->state = STATE_FAILED;
    m[2]->state = STATE_CANCELLED;
    CHECK_OK(registry_add_incoming(registry, "test", &hello, &next, &err));
    cr_expect(zero(ptr, registry_find(registry, "b")), "the oldest one");
    found = registry_find(registry, "c");
    cr_expect(eq(ptr, found, m[2]));
    migration_put(found);
    migration_put(next);
    for (int i = 0; i < 3; i++)
        migration_put(m[i]);
    end(registry);
}

static struct migration *come(struct registry *registry, const char *name)
{
    struct hello hello = peer_hello(name, 2);
    struct migration *m = NULL;
    struct error err;

    CHECK_OK(registry_add_incoming(registry, "test", &hello, &m, &err));
    return m;
}

/* An expected migration becomes the one that arrives; what was prepared stays. */
Test(registry, expected)
{
    struct registry *registry = make(10);
    struct migration *m = add(registry, "vm"), *peer, *shown = NULL;
    struct hello hello = peer_hello("vm", 3);
    struct file *device = NULL;
    struct error err;

    m->settings.timeout_ms = 7000;
    CHECK_OK(outgoing_truncate(m, m->files[WIRE_RAM], 1 << 20, NULL, &err));
    CHECK_OK(outgoing_create_device(m, "vga", true, NULL, &device, &err));
    file_put(device); /* it stays in the table */
    CHECK_OK(registry_add_incoming(registry, "test", &hello, &peer, &err));
    cr_expect(eq(u64, incoming_max_ram(peer), 1 << 20));
    cr_expect(eq(uint, peer->settings.timeout_ms, 7000));
    cr_expect(eq(int, (int)m->role, ROLE_NONE), "it has not arrived yet");
    peer->state = STATE_SETUP;
    CHECK_OK(registry_arrive(registry, peer, &shown, &err));
    cr_expect(eq(ptr, shown, m));
    cr_expect(zero(ptr, peer->in));
    migration_put(peer);
    cr_expect(eq(int, (int)m->role, ROLE_INCOMING));
    cr_expect(eq(int, (int)m->state, STATE_ACTIVE));
    cr_expect(eq(uint, m->settings.channels, 3));
    cr_expect(eq(uint, m->settings.timeout_ms, 7000));
    cr_expect(eq(uint, m->attributes.at[ATTRIBUTES_RAM].uid, 11));
    cr_expect(eq(uint, registry->count, 1));
    struct migration *found = registry_find_session(registry, "vm", hello.session, nobody.digest);
    cr_expect(eq(ptr, found, m));
    migration_put(found);
    m->state = STATE_FAILED;
    migration_put(m);
    migration_put(shown);
    end(registry);
}

/* All that a source does is refused, and nothing of it reaches what is not there. */
Test(registry, nothing_of_a_source_once_it_is_incoming)
{
    struct registry *registry = make(10);
    struct migration *m = add(registry, "vm"), *peer = come(registry, "vm"), *shown = NULL;
    struct file *ram = migration_file(m, WIRE_RAM), *device = NULL, *other = NULL;
    uint8_t digest[DIGEST_SIZE];
    struct sender_write write;
    struct error err;

    CHECK_OK(outgoing_create_device(m, "vga", true, NULL, &device, &err));
    file_put(device); /* it stays in the table */
    outgoing_open_writer(m, device);
    peer->state = STATE_SETUP;
    CHECK_OK(registry_arrive(registry, peer, &shown, &err));
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
    end(registry);
}

static void not_accepted(void *arg)
{
    (void)arg;
    cr_expect(false, "it must not be accepted");
}

static int change_channels(struct settings *settings, void *arg, struct error *err)
{
    (void)err;
    settings->channels = *(unsigned *)arg;
    return 0;
}

/* What users ask of a migration goes to its role: the source's as long as it is expected, then the destination's. */
Test(registry, roles)
{
    struct registry *registry = make(10);
    struct migration *m = add(registry, "vm"), *peer, *shown = NULL;
    struct file *ram = migration_file(m, WIRE_RAM), *device = NULL, *other = NULL;
    struct file_write write = {.file = ram, .buf = "x", .pipe = -1, .len = 1, .accepted = not_accepted};
    struct settings settings;
    uint8_t digest[DIGEST_SIZE];
    unsigned three = 3, four = 4;
    char text[16] = "?";
    struct error err;

    cr_expect(not(migration_is_incoming(m)));
    cr_expect(not(migration_is_outgoing(m)), "it is not decided");
    CHECK_OK(migration_change_settings(m, SETTING_FIXED, change_channels, &three, NULL, &err));
    migration_settings(m, &settings);
    cr_expect(eq(uint, settings.channels, 3));
    CHECK_OK(migration_truncate(m, ram, 1 << 20, NULL, &err));
    cr_expect(eq(u64, ram->declared, 1 << 20));
    CHECK_OK(migration_create_device(m, "vga", true, NULL, &device, &err));
    file_put(device); /* it stays in the table */
    CHECK_OK(migration_rename_device(m, "vga", "nic", true, NULL, &err));
    CHECK_FAILS(migration_remove_device(m, "vga", NULL, &err), CAUSE_NOT_FOUND);
    CHECK_FAILS(migration_write(m, &write, &err), CAUSE_NOT_STARTED);
    CHECK_FAILS(migration_start(m, NULL, &err), CAUSE_SYNTAX);
    CHECK_OK(migration_set_reference(m, -1, "", 0, NULL, &err));
    migration_reference_text(m, text, sizeof(text));
    cr_expect(eq(str, text, ""));
    peer = come(registry, "vm");
    peer->state = STATE_SETUP;
    CHECK_OK(registry_arrive(registry, peer, &shown, &err));
    migration_put(peer);

    cr_expect(migration_is_incoming(m));
    int fd = dup(0);
    strcpy(text, "?");
    CHECK_FAILS(migration_start(m, NULL, &err), CAUSE_READ_ONLY);
    CHECK_FAILS(migration_flush(m, NULL, NULL, &err), CAUSE_READ_ONLY);
    CHECK_FAILS(migration_sync(m, ram, NULL, &err), CAUSE_READ_ONLY);
    CHECK_FAILS(migration_complete(m, NULL, &err), CAUSE_READ_ONLY);
    CHECK_FAILS(migration_discard(m, ram, 0, 1, NULL, &err), CAUSE_READ_ONLY);
    CHECK_FAILS(migration_truncate(m, ram, 5, NULL, &err), CAUSE_READ_ONLY);
    CHECK_FAILS(migration_create_device(m, "new", true, NULL, &other, &err), CAUSE_READ_ONLY);
    CHECK_FAILS(migration_remove_device(m, "nic", NULL, &err), CAUSE_READ_ONLY);
    CHECK_FAILS(migration_rename_device(m, "nic", "vga", false, NULL, &err), CAUSE_READ_ONLY);
    CHECK_FAILS(migration_mark_dirty(m, "\1\0\0\0\0\0\0\0", 8, 0, &err), CAUSE_READ_ONLY);
    CHECK_FAILS(migration_change_settings(m, SETTING_FIXED, change_channels, &four, NULL, &err), CAUSE_STATE);
    CHECK_FAILS(migration_set_reference(m, fd, "fd:0", 0, NULL, &err), CAUSE_STATE);
    cr_expect(eq(int, fcntl(fd, F_GETFD), -1), "the descriptor was taken over");
    CHECK_FAILS(migration_write(m, &write, &err), CAUSE_STATE);
    write.file = device;
    CHECK_FAILS(migration_write(m, &write, &err), CAUSE_READ_ONLY);
    cr_expect(not(migration_splices(m, ram, WIRE_STRIPE_SIZE, 0)));
    cr_expect(eq(u64, migration_dirty_size(m), 0));
    migration_reference_text(m, text, sizeof(text));
    cr_expect(eq(str, text, ""));
    cr_expect(lt(int, migration_digest(m, ram, NULL, digest, &err), 0), "nothing has been announced");
    migration_open_writer(m, device);
    migration_begin_anew(m, device);
    migration_close_writer(m, device);
    cr_expect(eq(uint, device->writers, 0));
    migration_settings(m, &settings);
    cr_expect(eq(uint, settings.channels, 2), "the source's");
    m->state = STATE_FAILED;
    migration_put(shown);
    migration_put(m);
    end(registry);
}

/* What was prepared for a migration that has failed is there for the next peer. */
Test(registry, expected_again)
{
    struct registry *registry = make(10);
    struct migration *m = add(registry, "vm"), *peer = come(registry, "vm"), *shown = NULL, *again;
    struct file *device = NULL;
    struct error err;

    m->settings.timeout_ms = 7000;
    CHECK_OK(outgoing_truncate(m, m->files[WIRE_RAM], 1 << 20, NULL, &err));
    CHECK_OK(outgoing_create_device(m, "vga", true, NULL, &device, &err));
    file_put(device); /* it stays in the table */
    peer->state = STATE_SETUP;
    CHECK_OK(registry_arrive(registry, peer, &shown, &err));
    migration_put(peer);
    migration_put(shown);
    m->state = STATE_FAILED;
    peer = come(registry, "vm");
    again = registry_find(registry, "vm");
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
    end(registry);
}

/* `uri` and a peer: what is first, wins. */
Test(registry, one_role_wins)
{
    struct registry *registry = make(10);
    struct migration *m = add(registry, "vm"), *peer = come(registry, "vm"), *shown = NULL;
    struct hello hello = peer_hello("vm", 1);
    struct error err;

    pthread_mutex_lock(&m->lock);
    migration_become_outgoing(m);
    pthread_mutex_unlock(&m->lock);
    peer->state = STATE_SETUP;
    CHECK_FAILS(registry_arrive(registry, peer, &shown, &err), CAUSE_EXISTS);
    cr_expect(eq(int, (int)peer->state, STATE_SETUP));
    peer->state = STATE_FAILED;
    migration_put(peer);
    CHECK_FAILS(registry_add_incoming(registry, "test", &hello, &peer, &err), CAUSE_EXISTS);
    migration_put(m);
    end(registry);
}

/* The daemon goes away while somebody reads a device that is expected: nothing more comes of it. */
Test(registry, expected_when_the_daemon_ends)
{
    struct registry *registry = make(10);
    struct migration *m = add(registry, "vm");
    struct file *device = NULL;
    struct error err;
    char byte;

    CHECK_OK(outgoing_create_device(m, "vga", true, NULL, &device, &err));
    cr_expect(eq(long, file_read(device, 0, &byte, 1, true, NULL), -EAGAIN), "it is waited for");
    migration_shut_down(m);
    cr_expect(ne(long, file_read(device, 0, &byte, 1, true, NULL), -EAGAIN));
    file_put(device);
    migration_put(m);
    end(registry);
}

/* A migration that is removed while its peer's channels arrive. */
Test(registry, expected_no_more)
{
    struct registry *registry = make(10);
    struct migration *m = add(registry, "vm"), *peer = come(registry, "vm");
    struct error err;

    CHECK_OK(registry_remove(registry, m, &err));
    migration_put(m);
    arrive(registry, peer);
    peer->state = STATE_FAILED;
    migration_put(peer);
    end(registry);
}

Test(registry, only_what_is_expected)
{
    struct registry *registry = make(10);
    struct migration *m, *peer, *shown = NULL;
    struct hello hello = peer_hello("vm", 1);
    struct error err;

    registry->host.limits.expect = true;
    CHECK_FAILS(registry_add_incoming(registry, "test", &hello, &peer, &err), CAUSE_DENIED);
    m = add(registry, "vm");
    CHECK_OK(registry_add_incoming(registry, "test", &hello, &peer, &err));
    CHECK_OK(registry_remove(registry, m, &err));
    migration_put(m);
    peer->state = STATE_SETUP;
    CHECK_FAILS(registry_arrive(registry, peer, &shown, &err), CAUSE_DENIED);
    peer->state = STATE_FAILED;
    migration_put(peer);
    end(registry);
}

static struct migration *arrive_from(struct registry *registry, const char *address, const char *name, enum state state)
{
    struct hello hello = peer_hello(name, 1);
    struct migration *m = NULL;
    struct error err;

    CHECK_OK(registry_add_incoming(registry, address, &hello, &m, &err));
    arrive(registry, m);
    m->state = state;
    return m;
}

static bool is_there(struct registry *registry, const char *name)
{
    struct migration *m = registry_find(registry, name);

    migration_put(m);
    return m;
}

/* A peer that takes its share takes nothing from others, and only what it has made itself makes way for it. */
Test(registry, shares_of_peers)
{
    struct limits limits = rig_limits();
    struct registry registry;
    struct migration *good, *bad[4], *none;
    struct error err;
    struct hello hello = peer_hello("bad-4", 1);

    limits.max_migrations = 6;
    limits.max_peer_migrations = 4;
    registry_init(&registry, &limits, NULL);
    good = arrive_from(&registry, "10.0.0.1", "good", STATE_FAILED);
    static const char *const names[] = {"bad-0", "bad-1", "bad-2", "bad-3"};
    for (int i = 0; i < 4; i++)
        bad[i] = arrive_from(&registry, "10.0.0.2", names[i], STATE_ACTIVE);
    CHECK_FAILS(registry_add_incoming(&registry, "10.0.0.2", &hello, &none, &err), CAUSE_QUOTA);
    cr_expect(not(zero(ptr, strstr(err.message, "max-peer-migrations"))), "%s", err.message);
    cr_expect(is_there(&registry, "good"), "another peer's does not make way");
    migration_put(arrive_from(&registry, "10.0.0.1", "good-2", STATE_FAILED));
    bad[2]->state = STATE_CANCELLED;
    migration_put(arrive_from(&registry, "10.0.0.2", "bad-4", STATE_FAILED));
    cr_expect(not(is_there(&registry, "bad-2")), "its own one does");
    /* The list is full, too: now the oldest one of all. */
    migration_put(arrive_from(&registry, "10.0.0.3", "third", STATE_FAILED));
    cr_expect(not(is_there(&registry, "good")));
    cr_expect(is_there(&registry, "good-2"));
    for (int i = 0; i < 4; i++) {
        bad[i]->state = STATE_FAILED;
        migration_put(bad[i]);
    }
    migration_put(good);
    registry_shutdown(&registry);
    registry_drain(&registry, HOST_FOREVER);
    registry_fini(&registry);
}

/* A completed migration in which nothing has arrived makes way, when no failed one does and nobody has it open. */
Test(registry, empty_ones_make_way)
{
    struct registry *registry = make(4);
    struct migration *full = arrive_from(registry, "test", "full", STATE_COMPLETED);
    struct migration *open = arrive_from(registry, "test", "open", STATE_COMPLETED);
    struct migration *empty = arrive_from(registry, "test", "empty", STATE_COMPLETED);
    struct migration *failed = arrive_from(registry, "test", "failed", STATE_FAILED);
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
    struct migration *one = arrive_from(registry, "test", "one", STATE_ACTIVE);
    cr_expect(not(is_there(registry, "failed")), "a failed one first");
    struct migration *two = arrive_from(registry, "test", "two", STATE_ACTIVE);
    cr_expect(not(is_there(registry, "empty")));
    CHECK_FAILS(registry_add_incoming(registry, "test", &hello, &none, &err), CAUSE_QUOTA);
    cr_expect(is_there(registry, "full"));
    cr_expect(is_there(registry, "open"));
    one->state = two->state = STATE_FAILED;
    struct migration *all[] = {full, open, empty, failed, one, two};
    for (size_t i = 0; i < ARRAY_LENGTH(all); i++)
        migration_put(all[i]);
    end(registry);
}

/* Channels, descriptors and buffers count against the host and the peer, until the migration is over. */
Test(registry, budgets)
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
        struct registry registry;
        struct migration *m[3];
        *(uint32_t *)(void *)((char *)&limits + cases[i].limit) = cases[i].value;
        registry_init(&registry, &limits, NULL);
        CHECK_OK(registry_add_incoming(&registry, "one", &hellos[0], &m[0], &err));
        bool of_peer = cases[i].value == 20;
        if (of_peer)
            CHECK_FAILS(registry_add_incoming(&registry, "one", &hellos[1], &m[1], &err), CAUSE_QUOTA);
        else
            CHECK_OK(registry_add_incoming(&registry, "one", &hellos[1], &m[1], &err));
        if (of_peer)
            CHECK_OK(registry_add_incoming(&registry, "two", &hellos[1], &m[1], &err));
        else
            CHECK_FAILS(registry_add_incoming(&registry, "two", &hellos[2], &m[2], &err), CAUSE_QUOTA);
        registry_drop(&registry, m[0]);
        migration_put(m[0]);
        CHECK_OK(registry_add_incoming(&registry, "one", &hellos[0], &m[0], &err));
        migration_put(m[0]);
        migration_put(m[1]);
        registry_shutdown(&registry);
        registry_drain(&registry, HOST_FOREVER);
        cr_expect(zero(u64, registry.host.accounts.channels.used), "%s", cases[i].what);
        cr_expect(zero(u64, registry.host.accounts.descriptors.used), "%s", cases[i].what);
        cr_expect(zero(u64, registry.host.accounts.memory.used), "%s", cases[i].what);
        cr_expect(zero(ptr, registry.host.accounts.first), "%s", cases[i].what);
        registry_fini(&registry);
    }
}

Test(registry, running_is_not_removed)
{
    struct registry *registry = make(10);
    struct migration *m = add(registry, "vm");
    struct error err;

    for (int state = STATE_SETUP; state <= STATE_COMPLETING; state++) {
        m->state = (enum state)state;
        CHECK_FAILS(registry_remove(registry, m, &err), CAUSE_STATE);
    }
    m->state = STATE_FAILED;
    CHECK_OK(registry_remove(registry, m, &err));
    migration_put(m);
    end(registry);
}

Test(registry, closed)
{
    struct registry *registry = make(10);
    struct hello hello = peer_hello("in", 1);
    struct migration *m;
    struct error err;

    registry_shutdown(registry);
    CHECK_FAILS(registry_add_outgoing(registry, "vm", 0, 0, &m, &err), CAUSE_SHUTDOWN);
    CHECK_FAILS(registry_add_incoming(registry, "test", &hello, &m, &err), CAUSE_SHUTDOWN);
    end(registry);
}

/* Devices of a migration that is not started. */
Test(registry, devices)
{
    struct registry *registry = make(10);
    struct migration *m = add(registry, "vm");
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
    end(registry);
    cr_expect(eq(str, file->name, "vga"), "a file outlives its migration for those who hold it");
    file_put(file);
}

/* Every command before `start`, and the sentence that `error` shows then. */
Test(registry, before_start)
{
    struct registry *registry = make(10);
    struct migration *m = add(registry, "vm");
    struct file *ram = migration_file(m, WIRE_RAM);
    struct sender_write write;
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
    end(registry);
}

/* Why a migration has failed stays until it is started again: what is refused meanwhile is said elsewhere. */
Test(registry, a_failure_stays)
{
    struct registry *registry = make(10);
    struct migration *m = add(registry, "vm");
    struct error err, failure = {0}, refusal = {0};

    CHECK_OK(uri_list_parse("unix:/nowhere/at/all", &m->settings.uris, &err));
    error_set(&refusal, CAUSE_SYNTAX, "not so");
    migration_note_error(m, &refusal);
    cr_expect(eq(str, m->last_error.message, "not so"), "there is no failure yet");
    cr_assert(lt(int, outgoing_start(m, NULL, &failure), 0));
    cr_expect(eq(int, (int)m->state, STATE_FAILED));
    cr_expect(eq(str, m->last_error.message, failure.message));
    migration_note_error(m, &refusal);
    cr_expect(eq(str, m->last_error.message, failure.message));
    cr_expect(eq(str, registry->host.last_error, "vm: not so"));
    host_note_error(&registry->host, "");
    migration_note_error(m, &failure);
    cr_expect(eq(str, registry->host.last_error, ""), "the failure itself is no news");
    migration_put(m);
    end(registry);
}

/* A peer that is refused for a quota does not take a failed migration's reason away. */
Test(registry, reason_stays_when_the_next_is_refused)
{
    struct registry *registry = make(10);
    struct hello vm = peer_hello("vm", 1), other = peer_hello("other", 1);
    struct migration *failed, *running, *refused;
    struct error err;

    registry->host.limits.max_peer_migrations = 1;
    CHECK_OK(registry_add_incoming(registry, "a", &vm, &failed, &err));
    failed->visible = true;
    failed->state = STATE_FAILED;
    CHECK_OK(registry_add_incoming(registry, "b", &other, &running, &err));
    CHECK_FAILS(registry_add_incoming(registry, "b", &vm, &refused, &err), CAUSE_QUOTA);
    struct migration *found = registry_find(registry, "vm");
    cr_expect(eq(ptr, found, failed));
    migration_put(found);
    running->state = STATE_FAILED;
    migration_put(failed);
    migration_put(running);
    end(registry);
}
