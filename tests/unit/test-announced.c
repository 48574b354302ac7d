/* SPDX-License-Identifier: Apache-2.0 */
/* What the source announces, with neither threads nor connections: counts, users and receivers are variables here. */
#include "announced.h"
#include "check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHANNELS 2
#define DEVICES  3
#define SIZE_MAX_HERE (1u << 20)

/* What has been told, a word and a number each, in its order. */
static char told[4096];
static uint64_t applied[CHANNELS];
static struct file *expected;   /* what users have made, or still see; the RAM or a device */
static const struct file *used; /* by a receiver */
static int settle_returns;
static struct {
    uint32_t number, cause;
    char text[WIRE_TEXT_MAX + 1];
} reply; /* the last one */

static struct host host;
static struct account *account;
static struct reception reception;
static struct catalog catalog;
static struct arrival arrival;
static struct announced announced;
static struct error err;

static void tell(const char *what, uint64_t number)
{
    size_t len = strlen(told);

    snprintf(told + len, sizeof(told) - len, "%s%llu ", what, (unsigned long long)number);
}

/* What has been told since the last call is this. */
static void expect_told(const char *what)
{
    cr_expect(eq(str, told, (char *)what));
    told[0] = '\0';
}

/*
 * The owner
 */

static struct file *expected_file(void *owner, uint32_t number, const char *name)
{
    cr_assert(eq(ptr, owner, told));
    if (!expected || (number == WIRE_RAM ? expected->id != WIRE_RAM : strcmp(expected->name, name)))
        return NULL;
    return file_get(expected);
}

static int settle(void *owner, struct file *file, struct error *error)
{
    (void)owner;
    (void)file;
    return settle_returns < 0 ? error_set(error, CAUSE_IO, "it cannot be owned") : 0;
}

static void taken(void *owner, struct file *file, uint64_t size, bool show)
{
    (void)owner;
    cr_expect(file_is_receiving(file));
    tell(show ? "show" : "take", file->id);
    tell(":", size);
}

static void change(void *owner, const struct change *made, struct file *gone, struct file *unfilled)
{
    (void)owner;
    tell(made->type == CHANGE_CREATE ? "created" : made->type == CHANGE_REMOVE ? "removed" : "renamed", made->number);
    if (gone)
        tell("gone", gone->id);
    if (unfilled)
        tell("unfilled", unfilled->id);
}

static bool uses(void *owner, const struct file *file)
{
    (void)owner;
    return file == used;
}

static void note_message(void *owner, enum wire_message_type type, uint64_t id, const void *body, uint32_t length)
{
    struct wire_reader r = {body, length, false};

    (void)owner;
    if (type == WIRE_FILE_REPLY) {
        reply.number = wire_read_u32(&r);
        reply.cause = wire_read_u32(&r);
        wire_read_text(&r, reply.text, WIRE_TEXT_MAX);
        cr_expect(wire_read_done(&r));
        tell(reply.cause == CAUSE_NONE ? "yes" : "no", reply.number);
        return;
    }
    tell(type == WIRE_FILE_REMOVE ? "REMOVE" : type == WIRE_FILE_RENAME ? "RENAME" : "?", id);
}

static const struct announced_operations operations = {
    .expected = expected_file,
    .settle = settle,
    .taken = taken,
    .change = change,
    .uses = uses,
    .send = note_message,
};

/*
 * The counts
 */

static uint64_t count_of(void *owner, unsigned channel)
{
    (void)owner;
    return applied[channel];
}

static bool aim(void *owner, unsigned channel, uint64_t target)
{
    (void)owner;
    return target && applied[channel] >= target;
}

static void synced(void *owner, uint64_t id)
{
    (void)owner;
    tell("synced", id);
}

static void ended(void *owner, struct file *file, const uint64_t *counts)
{
    (void)owner;
    (void)counts;
    tell("ended", file->id);
}

static void turn_comes(void *owner, const struct change *made)
{
    (void)owner;
    announced_change(&announced, made);
}

static void changed(void *owner, const struct change *made)
{
    (void)owner;
    announced_changed(&announced, made);
}

static int complete(void *owner, uint64_t id, struct error *error)
{
    (void)owner;
    (void)error;
    tell("complete", id);
    return 0;
}

static const struct arrival_operations arrival_operations = {
    .applied = count_of,
    .aim = aim,
    .synced = synced,
    .ended = ended,
    .change = turn_comes,
    .changed = changed,
    .complete = complete,
};

/*
 * What the source says
 */

static int create_file(uint32_t number, uint64_t size, const char *name)
{
    uint8_t buf[512];
    struct wire_writer w = {buf, buf, buf + sizeof(buf)};

    wire_write_u32(&w, number);
    wire_write_u64(&w, size);
    wire_write_text(&w, name);
    struct wire_reader r = {buf, wire_written(&w), false};
    err = (struct error){0};
    return announced_on_create(&announced, &r, &err);
}

static void write_counts(struct wire_writer *w, uint64_t first, uint64_t second)
{
    wire_write_u64(w, first);
    wire_write_u64(w, second);
}

static int say_stream(enum wire_message_type type, uint32_t number, uint64_t first)
{
    uint8_t buf[64];
    struct wire_writer w = {buf, buf, buf + sizeof(buf)};
    struct message message = {.type = type};

    wire_write_u32(&w, number);
    if (type == WIRE_FILE_END)
        write_counts(&w, first, 0);
    struct wire_reader r = {buf, wire_written(&w), false};
    err = (struct error){0};
    return announced_on_stream(&announced, &message, &r, &err);
}

/* A removal, or with @name a renaming, when @first packets of the first channel are applied. */
static int say_change(uint64_t id, uint32_t number, uint64_t first, const char *name, uint32_t replaced)
{
    uint8_t buf[512];
    struct wire_writer w = {buf, buf, buf + sizeof(buf)};
    struct message message = {.type = name ? WIRE_FILE_RENAME : WIRE_FILE_REMOVE, .id = id};

    wire_write_u32(&w, number);
    write_counts(&w, first, 0);
    if (name) {
        wire_write_u32(&w, replaced);
        wire_write_text(&w, name);
    }
    struct wire_reader r = {buf, wire_written(&w), false};
    err = (struct error){0};
    return announced_on_change(&announced, &message, &r, &err);
}

static void begin(void)
{
    const struct limits limits = {
        .max_memory = 8 << 20, .max_ram = SIZE_MAX_HERE, .max_device = SIZE_MAX_HERE, .max_devices = DEVICES};

    host_init(&host, &limits, NULL);
    account = account_get(&host.accounts, "test");
    reception = (struct reception){.max_ram = SIZE_MAX_HERE, .max_device = SIZE_MAX_HERE};
    cr_assert(zero(int, catalog_init(&catalog, DEVICES)));
    cr_assert(zero(int, arrival_init(&arrival, CHANNELS, &catalog, &account->memory, &arrival_operations, NULL)));
    announced = (struct announced){
        .operations = &operations,
        .owner = told,
        .host = &host,
        .account = account,
        .reception = &reception,
        .catalog = &catalog,
        .arrival = &arrival,
        .name = "vm",
    };
    CHECK_OK(create_file(WIRE_RAM, 8192, "ram"));
    expect_told("show0 :8192 yes0 ");
}

static void end(void)
{
    used = NULL;
    announced_bury(&announced);
    file_put(expected);
    arrival_fini(&arrival);
    catalog_fini(&catalog);
    cr_expect(zero(u64, account->memory.used));
    cr_expect(zero(u64, account->descriptors.used));
    cr_expect(zero(u64, host.windows.used));
    account_put(account);
    host_fini(&host);
}

TestSuite(announced, .init = begin, .fini = end);

Test(announced, a_device)
{
    CHECK_OK(create_file(1, 0, "dev"));
    expect_told("show1 :0 yes1 ");
    cr_expect(eq(u32, catalog_find(&catalog, "dev"), 1));
    cr_expect(eq(str, catalog_file(&catalog, 1)->name, "dev"));
    cr_expect(eq(uint, atomic_load(&catalog_file(&catalog, 1)->refs), 1), "the catalog's");
}

/* What users have made for the source to fill is filled, and shown already. */
Test(announced, an_expected_device)
{
    expected = file_new(9, "dev");
    CHECK_OK(create_file(2, 0, "dev"));
    expect_told("take2 :0 yes2 ");
    cr_expect(eq(ptr, catalog_file(&catalog, 2), expected));
    cr_expect(eq(u32, expected->id, 2));
}

/* Each refusal is the file's alone, is told in a sentence, and leaves nothing behind. */
Test(announced, refused)
{
    uint64_t memory = account->memory.used;

    CHECK_OK(create_file(DEVICES + 1, 0, "dev"));
    cr_expect(eq(u32, reply.cause, CAUSE_QUOTA));
    cr_expect(ne(str, reply.text, ""));
    CHECK_OK(create_file(1, 0, "../dev"));
    cr_expect(eq(u32, reply.cause, CAUSE_SYNTAX));
    CHECK_OK(create_file(1, SIZE_MAX_HERE + 1, "dev"));
    cr_expect(eq(u32, reply.cause, CAUSE_QUOTA));
    settle_returns = -1;
    CHECK_OK(create_file(1, 4096, "dev"));
    cr_expect(eq(u32, reply.cause, CAUSE_IO));
    cr_expect(eq(str, reply.text, "it cannot be owned"));
    settle_returns = 0;
    expect_told("no4 no1 no1 no1 ");
    cr_expect(eq(u64, account->memory.used, memory));
    CHECK_OK(create_file(1, SIZE_MAX_HERE, "dev"));
    CHECK_OK(create_file(2, 0, "dev"));
    cr_expect(eq(u32, reply.cause, CAUSE_EXISTS));
    told[0] = '\0';
}

/* An expected one that is refused stays where it is, and what it was given goes. */
Test(announced, an_expected_device_refused)
{
    expected = file_new(9, "dev");
    settle_returns = -1;
    CHECK_OK(create_file(1, 4096, "dev"));
    settle_returns = 0;
    expect_told("no1 ");
    cr_expect(eq(uint, atomic_load(&expected->refs), 1));
    cr_expect(zero(u64, expected->image.charged));
}

Test(announced, files_that_make_no_sense)
{
    uint8_t byte = 0;
    struct wire_reader cut = {&byte, 1, false};

    CHECK_FAILS(create_file(WIRE_RAM, 0, "ram"), CAUSE_PROTOCOL);
    CHECK_OK(create_file(1, 0, "dev"));
    CHECK_FAILS(create_file(1, 0, "other"), CAUSE_PROTOCOL);
    CHECK_FAILS(create_file(WIRE_DEVICES_MAX + 1, 0, "other"), CAUSE_PROTOCOL);
    CHECK_FAILS(create_file(2, WIRE_OFFSET_MAX + 1ull, "other"), CAUSE_PROTOCOL);
    CHECK_FAILS(announced_on_create(&announced, &cut, &err), CAUSE_PROTOCOL);
    CHECK_FAILS(say_stream(WIRE_FILE_END, WIRE_RAM, 0), CAUSE_PROTOCOL);
    CHECK_FAILS(say_stream(WIRE_FILE_END, 2, 0), CAUSE_PROTOCOL);
    CHECK_FAILS(say_stream(WIRE_FILE_RESUME, DEVICES + 1, 0), CAUSE_PROTOCOL);
    CHECK_FAILS(say_change(1, WIRE_RAM, 0, NULL, 0), CAUSE_PROTOCOL);
    CHECK_FAILS(say_change(1, 2, 0, "new", 0), CAUSE_PROTOCOL);
    CHECK_FAILS(say_change(1, 1, 0, "a/b", 0), CAUSE_SYNTAX);
    expect_told("show1 :0 yes1 ");
}

/* The first file is the RAM. */
Test(announced, a_device_before_the_ram)
{
    struct catalog other;

    cr_assert(zero(int, catalog_init(&other, DEVICES)));
    announced.catalog = &other;
    CHECK_FAILS(create_file(1, 0, "dev"), CAUSE_PROTOCOL);
    announced.catalog = &catalog;
    catalog_fini(&other);
}

/* RAM that was refused is there, with a size: another announcement does not change that. */
Test(announced, the_ram_once_more)
{
    struct catalog other;

    cr_assert(zero(int, catalog_init(&other, DEVICES)));
    expected = file_get(catalog_file(&catalog, WIRE_RAM));
    announced.catalog = &other;
    CHECK_OK(create_file(WIRE_RAM, 4096, "ram"));
    cr_expect(eq(u32, reply.cause, CAUSE_STATE));
    announced.catalog = &catalog;
    catalog_fini(&other);
    cr_expect(eq(uint, atomic_load(&expected->refs), 2));
}

Test(announced, the_end_of_a_stream)
{
    CHECK_OK(create_file(1, 0, "dev"));
    told[0] = '\0';
    CHECK_OK(say_stream(WIRE_FILE_END, 1, 2));
    expect_told("");
    applied[0] = 2;
    CHECK_OK(arrival_check(&arrival, &err));
    expect_told("ended1 ");
    /* One that goes on before its end has come does not end. */
    CHECK_OK(say_stream(WIRE_FILE_END, 1, 3));
    CHECK_OK(say_stream(WIRE_FILE_RESUME, 1, 0));
    applied[0] = 3;
    CHECK_OK(arrival_check(&arrival, &err));
    expect_told("");
}

/* A removal is made when its turn comes, and the file kept as long as a receiver has it. */
Test(announced, removed)
{
    CHECK_OK(create_file(1, 0, "dev"));
    told[0] = '\0';
    struct file *file = file_get(catalog_file(&catalog, 1));
    CHECK_OK(say_stream(WIRE_FILE_END, 1, 9));
    CHECK_OK(say_change(7, 1, 1, NULL, 0));
    expect_told("");
    used = file;
    applied[0] = 1;
    CHECK_OK(arrival_check(&arrival, &err));
    expect_told("removed1 gone1 REMOVE7 ");
    cr_expect(zero(ptr, catalog_file(&catalog, 1)));
    cr_expect(zero(ptr, file->end_barrier), "it ends no more");
    cr_expect(eq(uint, atomic_load(&file->refs), 2));
    cr_expect(not(file->orphaned));
    used = NULL;
    announced_bury(&announced);
    cr_expect(eq(uint, atomic_load(&file->refs), 1));
    cr_expect(file->orphaned);
    file_put(file);
    /* Its number is free. */
    CHECK_OK(create_file(1, 0, "dev"));
    expect_told("show1 :0 yes1 ");
}

/* Of several removed files those that nobody has go, in whatever order. */
Test(announced, buried_one_by_one)
{
    struct file *files[DEVICES];

    for (uint32_t i = 0; i < DEVICES; i++) {
        char name[8];
        snprintf(name, sizeof(name), "d%u", i);
        CHECK_OK(create_file(i + 1, 0, name));
        files[i] = file_get(catalog_file(&catalog, i + 1));
    }
    used = files[1];
    for (uint32_t i = 0; i < DEVICES; i++)
        CHECK_OK(say_change(i + 1, i + 1, 0, NULL, 0));
    for (uint32_t i = 0; i < DEVICES; i++) {
        cr_expect(eq(uint, atomic_load(&files[i]->refs), i == 1 ? 2 : 1), "%u", i);
        file_put(files[i]);
    }
    told[0] = '\0';
}

Test(announced, renamed)
{
    CHECK_OK(create_file(1, 0, "dev"));
    CHECK_OK(create_file(2, 0, "other"));
    told[0] = '\0';
    CHECK_OK(say_change(7, 1, 0, "new", 0));
    expect_told("renamed1 RENAME7 ");
    cr_expect(eq(u32, catalog_find(&catalog, "new"), 1));
    /* Over another one. */
    CHECK_OK(say_change(8, 1, 0, "other", 2));
    expect_told("renamed1 gone2 RENAME8 ");
    cr_expect(zero(ptr, catalog_file(&catalog, 2)));
    /* Over one that users have made and that the source does not fill: its readers hear of it. */
    expected = file_new(9, "expected");
    CHECK_OK(say_change(9, 1, 0, "expected", 0));
    expect_told("renamed1 unfilled9 RENAME9 ");
    cr_expect(expected->orphaned);
    cr_expect(eq(uint, atomic_load(&expected->refs), 1));
}

/* A name that a file still has for users: a new one of it is shown when the old one has gone. */
Test(announced, after_a_change_that_waits)
{
    CHECK_OK(create_file(1, 0, "dev"));
    expected = file_get(catalog_file(&catalog, 1));
    CHECK_OK(say_change(7, 1, 1, NULL, 0));
    told[0] = '\0';
    CHECK_OK(create_file(2, 0, "dev"));
    expect_told("take2 :0 yes2 ");
    cr_expect(ne(ptr, catalog_file(&catalog, 2), expected));
    applied[0] = 1;
    CHECK_OK(arrival_check(&arrival, &err));
    /* A sync of the new one waits for the answer: it is seen by then. */
    expect_told("removed1 gone1 created2 REMOVE7 ");
}

/* Of changes that are made together each is answered, in their order, when all of them have been made. */
Test(announced, several_changes)
{
    CHECK_OK(create_file(1, 0, "dev"));
    CHECK_OK(create_file(2, 0, "other"));
    CHECK_OK(say_change(7, 1, 1, NULL, 0));
    CHECK_OK(say_change(8, 2, 1, "dev", 0));
    CHECK_OK(create_file(3, 0, "other"));
    told[0] = '\0';
    applied[0] = 1;
    CHECK_OK(arrival_check(&arrival, &err));
    expect_told("removed1 gone1 REMOVE7 renamed2 created3 RENAME8 ");
}

/* A source that goes on after a manifest has made it void. */
Test(announced, after_a_manifest)
{
    arrival.manifest = (struct manifest){.id = 5, .checked = true};
    CHECK_OK(create_file(1, 0, "dev"));
    cr_expect(zero(u64, arrival.manifest.id));
    told[0] = '\0';
}
