/* SPDX-License-Identifier: Apache-2.0 */
/* What the FUSE side asks a migration, in either role: whether it is over, what status shows, who may do
 * what. */
#include "blocked.h"
#include "check.h"
#include "rig.h"
#include "scratch.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static struct rig rig;
static struct migration *m; /* at the source, not started */
static struct file *ram;    /* of m */

static void set_up(void)
{
    char text[128];

    scratch_make();
    snprintf(text, sizeof(text), "unix:%s/socket", scratch);
    rig_init(&rig, text, NULL);
    m = rig_make(&rig, "vm", 2, "");
    ram = migration_file(m, WIRE_RAM);
}

static void end(void)
{
    migration_put(m);
    rig_fini(&rig);
}

TestSuite(asked, .init = set_up, .fini = scratch_remove);

static struct migration *start(uint64_t size)
{
    struct error err;

    CHECK_OK(migration_truncate(m, ram, size, NULL, &err));
    CHECK_OK(migration_start(m, NULL, &err));
    return rig_arrived(&rig, "vm");
}

static void is_over(struct migration *of, const char *want)
{
    char verdict[MIGRATION_VERDICT_MAX] = "";

    cr_expect(eq(int, migration_is_over(of, verdict), want != NULL));
    cr_expect(eq(str, verdict, (char *)(want ? want : "")));
}

/*
 * Whether it is over
 */

struct told {
    struct follower follower;
    int times;
};

static void tell(struct follower *follower)
{
    ((struct told *)follower)->times++;
}

Test(asked, completed)
{
    struct told told[4] = {0};
    struct error err;

    is_over(m, NULL);
    struct migration *incoming = start(1 << 20);
    for (int i = 0; i < 4; i++) {
        told[i].follower.wake = tell;
        cr_expect(migration_follow(i == 3 ? incoming : m, &told[i].follower));
    }
    is_over(m, NULL);
    is_over(incoming, NULL);
    cr_expect(migration_unfollow(m, &told[1].follower));
    cr_expect(not(migration_unfollow(m, &told[1].follower)), "it has left");
    pthread_mutex_lock(&m->lock);
    migration_tell(m);
    pthread_mutex_unlock(&m->lock);
    cr_expect(zero(int, told[0].times), "it is not over");
    CHECK_OK(migration_complete(m, NULL, &err));
    is_over(m, "completed\n");
    cr_expect(eq(int, (int)rig_await_end(incoming), STATE_COMPLETED));
    is_over(incoming, "completed\n");
    for (int i = 0; i < 4; i++)
        cr_expect(eq(int, told[i].times, i != 1), "follower %d", i);
    cr_expect(not(migration_unfollow(m, &told[0].follower)), "it was told");
    cr_expect(not(migration_follow(m, &told[1].follower)), "it is over");
    cr_expect(zero(int, told[1].times));
    migration_put(incoming);
    end();
}

Test(asked, cancelled)
{
    struct error err;

    struct migration *incoming = start(1 << 20);
    CHECK_OK(migration_cancel(m, &err));
    is_over(m, "cancelled: cancelled at the source\n");
    rig_await_end(incoming);
    char verdict[MIGRATION_VERDICT_MAX] = "";
    cr_expect(migration_is_over(incoming, verdict));
    cr_expect(not(zero(ptr, strstr(verdict, ": "))), "%s", verdict);
    migration_put(incoming);
    end();
}

Test(asked, removed_before_it_was_started)
{
    struct told told = {.follower.wake = tell};
    struct error err;

    cr_expect(migration_follow(m, &told.follower));
    CHECK_OK(registry_remove(&rig.source, m, &err));
    cr_expect(eq(int, told.times, 1));
    is_over(m, "cancelled: the migration was removed before it was started\n");
    cr_expect(eq(int, (int)migration_read_cause(m), CAUSE_CANCELLED));
    end();
}

Test(asked, the_daemon_goes_away)
{
    struct told told = {.follower.wake = tell};

    cr_expect(migration_follow(m, &told.follower));
    registry_shutdown(&rig.source);
    cr_expect(eq(int, told.times, 1));
    is_over(m, "failed: the daemon is going away\n");
    cr_expect(eq(int, (int)migration_read_cause(m), CAUSE_SHUTDOWN));
    end();
}

/* One that runs is told by what comes of it. */
Test(asked, the_daemon_goes_away_while_it_runs)
{
    struct migration *incoming = start(1 << 20);

    atomic_store(&rig.source.host.closed, true);
    is_over(m, NULL);
    atomic_store(&rig.source.host.closed, false);
    registry_shutdown(&rig.source);
    is_over(m, "failed: the daemon is going away\n");
    rig_await_end(incoming);
    migration_put(incoming);
    end();
}

/*
 * One reader at a time takes the digests
 */

static struct digester {
    struct worker worker;
    struct interrupt interrupt;
    struct error err;
    int ret;
} digester;

static void begin_digests(void *arg)
{
    struct digester *d = arg;

    d->ret = migration_begin_digests(m, &d->interrupt, &d->err);
}

static void wait_for_digests(void)
{
    struct error err;

    digester = (struct digester){0};
    CHECK_OK(migration_begin_digests(m, NULL, &err));
    worker_start(&digester.worker, begin_digests, &digester);
    worker_await_sleep(&digester.worker);
    cr_expect(not(atomic_load(&digester.worker.done)), "the other one has them");
}

Test(asked, digests_one_after_the_other)
{
    wait_for_digests();
    migration_end_digests(m);
    worker_join(&digester.worker);
    cr_expect(zero(int, digester.ret), "%s", digester.err.message);
    cr_expect(m->digesting);
    migration_end_digests(m);
    cr_expect(not(m->digesting));
    end();
}

Test(asked, digests_interrupted)
{
    struct error err;

    wait_for_digests();
    atomic_store(&digester.interrupt.hit, true);
    migration_kick(m);
    worker_join(&digester.worker);
    cr_expect(lt(int, digester.ret, 0));
    cr_expect(eq(int, (int)digester.err.cause, CAUSE_INTERRUPTED));
    cr_expect(m->digesting, "they are still the other one's");
    migration_end_digests(m);
    /* Where nobody has them, an interrupt is in nobody's way. */
    CHECK_OK(migration_begin_digests(m, &digester.interrupt, &err));
    end();
}

Test(asked, digests_of_a_daemon_that_goes_away)
{
    struct error err;

    registry_shutdown(&rig.source);
    CHECK_FAILS(migration_begin_digests(m, NULL, &err), CAUSE_SHUTDOWN);
    cr_expect(not(m->digesting));
    end();
}

/*
 * Settings, errors, status
 */

static int set_bandwidth(struct settings *settings, void *arg, struct error *err)
{
    uint64_t *rate = arg;

    if (*rate == 0)
        return error_set(err, CAUSE_SYNTAX, "no rate");
    settings->max_bandwidth = *rate;
    return 0;
}

static int set_uri(struct settings *settings, void *arg, struct error *err)
{
    return uri_list_parse(arg, &settings->uris, err);
}

static void write_much(void *arg)
{
    static const char data[1 << 20] = "x";
    struct error err;

    (void)arg;
    for (int i = 0; i < 4; i++)
        rig_write(m, ram, data, sizeof(data), 0);
    CHECK_OK(migration_sync(m, NULL, NULL, &err));
}

Test(asked, settings)
{
    struct settings settings;
    struct worker writer;
    struct error err;
    uint64_t rate = 1, none = 0;

    CHECK_OK(migration_change_settings(m, SETTING_LIVE_OUTGOING, set_bandwidth, &rate, NULL, &err));
    migration_settings(m, &settings);
    cr_expect(eq(u64, settings.max_bandwidth, 1));
    struct migration *incoming = start(1 << 20);
    CHECK_FAILS(migration_change_settings(m, SETTING_FIXED, set_bandwidth, &rate, NULL, &err), CAUSE_STATE);
    worker_start(&writer, write_much, NULL);
    worker_await_sleep(&writer);
    uint64_t generation = migration_generation(m);
    CHECK_FAILS(migration_change_settings(m, SETTING_LIVE_OUTGOING, set_bandwidth, &none, NULL, &err),
                CAUSE_SYNTAX);
    cr_expect(eq(u64, m->settings.max_bandwidth, 1));
    rate = 1 << 30;
    CHECK_OK(migration_change_settings(m, SETTING_LIVE_OUTGOING, set_bandwidth, &rate, NULL, &err));
    worker_join(&writer);
    cr_expect(eq(u64, migration_generation(m), generation), "the state is what it was");
    CHECK_FAILS(migration_change_settings(incoming, SETTING_LIVE_OUTGOING, set_bandwidth, &rate, NULL, &err),
                CAUSE_STATE);
    CHECK_OK(migration_change_settings(incoming, SETTING_LIVE_INCOMING, set_bandwidth, &rate, NULL, &err));
    CHECK_FAILS(migration_change_settings(m, SETTING_LIVE_INCOMING, set_bandwidth, &rate, NULL, &err),
                CAUSE_STATE);
    CHECK_OK(migration_complete(m, NULL, &err));
    cr_expect(lt(u64, generation, migration_generation(m)));
    rig_await_end(incoming);
    migration_put(incoming);
    end();
}

/* One with an address is sent from here; one without may still be what a peer sends. */
Test(asked, an_address_decides)
{
    struct migration *other = NULL;
    struct error err;
    uint64_t rate = 1 << 20;
    char text[128];

    CHECK_OK(registry_add_outgoing(&rig.source, "other", 0, 0, &other, &err));
    CHECK_OK(migration_change_settings(other, SETTING_FIXED, set_bandwidth, &rate, NULL, &err));
    cr_expect(not(migration_is_outgoing(other)));
    snprintf(text, sizeof(text), "unix:%s/socket", scratch);
    CHECK_OK(migration_change_settings(other, SETTING_FIXED, set_uri, text, NULL, &err));
    cr_expect(migration_is_outgoing(other));
    migration_put(other);
    end();
}

Test(asked, the_last_error)
{
    char text[ERROR_MESSAGE_MAX];
    struct error err = {0};

    migration_last_error(m, text);
    cr_expect(eq(str, text, ""));
    migration_note_error(m, &err);
    error_set(&err, CAUSE_SYNTAX, "what is this");
    migration_note_error(m, &err);
    migration_last_error(m, text);
    cr_expect(eq(str, text, "what is this"));
    err = (struct error){0};
    migration_note_error(m, &err);
    migration_last_error(m, text);
    cr_expect(eq(str, text, "what is this"), "no error changes nothing");
    end();
}

Test(asked, why_it_cannot_be_read)
{
    struct error err;

    cr_expect(eq(int, (int)migration_read_cause(m), CAUSE_SHUTDOWN), "the role is not known yet");
    struct migration *incoming = start(1 << 20);
    cr_expect(eq(int, (int)migration_read_cause(m), CAUSE_UNSUPPORTED));
    cr_expect(eq(int, (int)migration_read_cause(incoming), CAUSE_RESET));
    CHECK_OK(migration_cancel(incoming, &err));
    cr_expect(eq(int, (int)migration_read_cause(incoming), CAUSE_CANCELLED));
    rig_await_end(m);
    migration_put(incoming);
    end();
}

Test(asked, snapshots)
{
    struct migration_snapshot here, there;
    struct error err;
    char page[4096] = "x";

    cr_assert(zero(int, migration_take_snapshot(m, &here)));
    cr_expect(eq(int, (int)here.state, STATE_NONE));
    migration_drop_snapshot(&here);
    struct migration *incoming = start(1 << 20);
    rig_write(m, ram, page, sizeof(page), 8192);
    CHECK_OK(migration_sync(m, NULL, NULL, &err));
    cr_assert(zero(int, migration_take_snapshot(m, &here)));
    cr_assert(zero(int, migration_take_snapshot(incoming, &there)));
    cr_expect(eq(int, (int)here.state, STATE_ACTIVE));
    cr_expect(eq(str, (char *)here.role, "outgoing"));
    cr_expect(eq(str, (char *)there.role, "incoming"));
    cr_expect(not(here.incoming));
    cr_expect(there.incoming);
    cr_expect(eq(uint, here.channels, 2));
    cr_expect(eq(uint, there.channels, 2));
    cr_expect(eq(u64, here.figures.ram_size, 1 << 20));
    cr_expect(eq(u64, there.figures.ram_size, 1 << 20));
    cr_expect(eq(u64, here.figures.queued, 0));
    cr_expect(lt(u64, 0, here.figures.main_bytes));
    cr_expect(not(zero(ptr, (void *)here.figures.path)));
    cr_expect(zero(ptr, (void *)there.figures.path));
    cr_expect(eq(u64, here.records[2].ram.bytes, sizeof(page)));
    cr_expect(eq(u64, there.records[2].ram.bytes, sizeof(page)));
    cr_expect(eq(u64, here.records[2].wire_bytes, here.records[0].wire_bytes + here.records[1].wire_bytes));
    cr_expect(eq(u64, there.records[2].wire_bytes, here.records[2].wire_bytes));
    cr_expect(eq(u64, here.rounds, 1));
    migration_drop_snapshot(&here);
    migration_drop_snapshot(&there);
    CHECK_OK(migration_complete(m, NULL, &err));
    rig_await_end(incoming);
    migration_put(incoming);
    end();
}

/*
 * Writes
 */

static void count_accepted(void *arg)
{
    ++*(int *)arg;
}

static int write_to(struct migration *to, uint64_t offset, const char *text, int *accepted, struct error *err)
{
    struct file_write write = {
        .file = migration_file(to, WIRE_RAM),
        .buf = text,
        .len = strlen(text),
        .offset = offset,
        .accepted = count_accepted,
        .arg = accepted,
    };

    *accepted = 0;
    return migration_write(to, &write, err);
}

Test(asked, writes)
{
    struct error err;
    int accepted;
    char got[8] = "";

    CHECK_FAILS(write_to(m, 0, "early", &accepted, &err), CAUSE_NOT_STARTED);
    cr_expect(zero(int, accepted));
    struct migration *incoming = start(4096);
    CHECK_OK(write_to(m, 100, "there", &accepted, &err));
    cr_expect(eq(int, accepted, 1));
    CHECK_OK(migration_sync(m, NULL, NULL, &err));
    cr_expect(eq(long, file_read(migration_file(incoming, WIRE_RAM), 100, got, 5, true, NULL), 5));
    cr_expect(eq(str, got, "there"));
    CHECK_FAILS(write_to(incoming, 100, "early", &accepted, &err), CAUSE_STATE);
    cr_expect(zero(int, accepted));
    CHECK_OK(migration_complete(m, NULL, &err));
    cr_expect(eq(int, (int)rig_await_end(incoming), STATE_COMPLETED));
    CHECK_FAILS(write_to(m, 100, "later", &accepted, &err), CAUSE_STATE);
    /* The image that has arrived is a file like others, but does not grow. */
    CHECK_FAILS(write_to(incoming, 4092, "later", &accepted, &err), CAUSE_TOO_BIG);
    cr_expect(zero(int, accepted));
    CHECK_OK(write_to(incoming, 4091, "later", &accepted, &err));
    cr_expect(eq(int, accepted, 1));
    cr_expect(eq(long, file_read(migration_file(incoming, WIRE_RAM), 4091, got, 8, true, NULL), 5));
    cr_expect(eq(str, got, "later"));
    migration_put(incoming);
    end();
}

/* RAM by reference as the FUSE side sets it: what cannot be one leaves what was there. */
Test(asked, ram_source)
{
    struct error err;
    char text[64];
    int fd = memfd_create("ram", 0);

    cr_assert(zero(int, ftruncate(fd, 1 << 20)));
    CHECK_OK(migration_set_reference(m, dup(fd), "fd:7", getpid(), NULL, &err));
    migration_reference_text(m, text, sizeof(text));
    cr_expect(eq(str, text, "fd:7"));
    CHECK_FAILS(migration_set_reference(m, open("/dev/null", O_RDWR), "/dev/null", getpid(), NULL, &err),
                CAUSE_SYNTAX);
    migration_reference_text(m, text, sizeof(text));
    cr_expect(eq(str, text, "fd:7"));
    CHECK_OK(migration_set_reference(m, -1, "", getpid(), NULL, &err));
    migration_reference_text(m, text, sizeof(text));
    cr_expect(eq(str, text, ""));
    struct migration *incoming = start(4096);
    CHECK_OK(migration_complete(m, NULL, &err));
    CHECK_FAILS(migration_set_reference(m, dup(fd), "fd:7", getpid(), NULL, &err), CAUSE_STATE);
    rig_await_end(incoming);
    migration_put(incoming);
    close(fd);
    end();
}
