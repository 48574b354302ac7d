/* SPDX-License-Identifier: Apache-2.0 */
/* What the source announces; see announced.h. */
#include "announced.h"
#include "log.h"
#include "name.h"

#include <errno.h>

/*
 * Files that begin
 */

static int check_size(const struct announced *a, const struct file *file, uint64_t size, struct error *err)
{
    uint64_t limit = reception_limit(a->reception, file);

    if (size <= limit)
        return 0;
    return error_set(err, CAUSE_QUOTA, "'%.64s' has %llu bytes; the destination %s %llu", file->name,
                     (unsigned long long)size, file->declared ? "expects at most" : "allows",
                     (unsigned long long)limit);
}

/* Gives a file all that it needs to arrive. */
static int equip_file(struct announced *a, struct file *file, uint64_t size, const char *name,
                      struct error *err)
{
    bool is_ram = file->id == WIRE_RAM;
    const struct image_budgets budgets = {.memory = &a->account->memory, .windows = &a->host->windows};

    if (check_size(a, file, size, err) < 0 || file_receive_account(file, a->account, err) < 0 ||
        file_receive_begin(file, size, reception_limit(a->reception, file),
                           is_ram ? &a->host->limits.ram : NULL, is_ram ? a->name : name, &budgets, err) < 0)
        return -EIO;
    return a->operations->settle(a->owner, file, err);
}

static int make_file(struct announced *a, uint32_t number, uint64_t size, const char *name, struct error *err)
{
    if (number > a->host->limits.max_devices)
        return error_set(err, CAUSE_QUOTA, "'%.64s': at most %u devices are allowed", name,
                         a->host->limits.max_devices);
    if (number != WIRE_RAM && name_check_device(name, err) < 0)
        return -EIO;
    if (catalog_find(a->catalog, name))
        return error_set(err, CAUSE_EXISTS, "the device '%.64s' exists already", name);
    struct file *expected = a->operations->expected(a->owner, number, name), *file = expected;
    bool hidden;
    if (expected && (file_is_receiving(expected) || catalog_is_coming(a->catalog, name))) {
        /* It has the name until a change is made that is on its way; one that is expected goes then. */
        file_put(expected);
        file = expected = NULL;
        if (number == WIRE_RAM)
            return error_set(err, CAUSE_STATE, "the RAM has been refused before");
    }
    if (expected)
        file_set_id(file, number);
    else
        file = file_new(number, number == WIRE_RAM ? "ram" : name);
    if (!file || file_set_channels(file, a->arrival->channels, a->device_channels) < 0)
        error_set(err, CAUSE_NO_MEMORY, "out of memory");
    if (error_is_set(err) || equip_file(a, file, size, name, err) < 0) {
        /* One that was made here stays in its directory; what it was given does not. */
        if (file)
            file_receive_drop(file);
        file_put(file);
        return -EIO;
    }
    if (catalog_add(a->catalog, number, file, name, expected, &hidden) < 0) {
        file_put(file);
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    }
    a->operations->taken(a->owner, file, size, !expected && !hidden);
    file_put(file);
    return 0;
}

int announced_on_create(struct announced *a, struct wire_reader *body, struct error *err)
{
    uint32_t number = wire_read_u32(body);
    uint64_t size = wire_read_u64(body);
    char name[WIRE_NAME_SIZE];
    struct error refusal = {0};
    uint8_t buf[16 + WIRE_TEXT_MAX];
    struct wire_writer reply = wire_writer_of(buf, sizeof(buf));

    wire_read_text(body, name, WIRE_NAME_MAX);
    /* RAM is the first one; a number is used again when its file is gone. */
    bool first = !catalog_file(a->catalog, WIRE_RAM);
    if (!wire_read_done(body) || number > WIRE_DEVICES_MAX || first != (number == WIRE_RAM) ||
        catalog_file(a->catalog, number) || size > WIRE_OFFSET_MAX)
        return error_set(err, CAUSE_PROTOCOL, "a file announced in a way that makes no sense");
    if (a->arrival->manifest.checked)
        arrival_forget_manifest(a->arrival);
    make_file(a, number, size, name, &refusal);
    if (error_is_set(&refusal))
        log_error("%s: refused: %s", a->name, refusal.message);
    refusal.message[WIRE_TEXT_MAX] = '\0';
    wire_write_u32(&reply, number);
    wire_write_u32(&reply, refusal.cause);
    wire_write_text(&reply, refusal.message);
    a->operations->send(a->owner, WIRE_FILE_REPLY, 0, buf, wire_written(&reply));
    return 0;
}

/*
 * News of them
 */

int announced_on_stream(struct announced *a, const struct message *message, struct wire_reader *body,
                        struct error *err)
{
    uint32_t number = wire_read_u32(body);
    struct file *file =
        number != WIRE_RAM && catalog_has(a->catalog, number) ? catalog_file(a->catalog, number) : NULL;
    uint64_t counts[WIRE_CHANNELS_MAX];

    if (message->type == WIRE_FILE_END)
        arrival_read_counts(a->arrival, body, counts);
    if (!wire_read_done(body) || !file)
        return error_set(err, CAUSE_PROTOCOL, "news of a stream that does not exist");
    if (message->type == WIRE_FILE_END)
        return arrival_end(a->arrival, file, counts, err);
    arrival_forget_end(a->arrival, file);
    file_receive_resume(file);
    return 0;
}

int announced_on_change(struct announced *a, const struct message *message, struct wire_reader *body,
                        struct error *err)
{
    uint32_t number = wire_read_u32(body), replaced = 0;
    char name[WIRE_NAME_SIZE] = "";
    uint64_t counts[WIRE_CHANNELS_MAX];
    struct change *change = NULL;

    arrival_read_counts(a->arrival, body, counts);
    if (message->type == WIRE_FILE_RENAME) {
        replaced = wire_read_u32(body);
        wire_read_text(body, name, WIRE_NAME_MAX);
    }
    if (!wire_read_done(body))
        return error_set(err, CAUSE_PROTOCOL, "a change of a name in a way that makes no sense");
    if (message->type == WIRE_FILE_REMOVE)
        change = catalog_remove(a->catalog, message->id, number, err);
    else if (name_check_device(name, err) == 0)
        change = catalog_rename(a->catalog, message->id, number, name, replaced, err);
    return change ? arrival_change(a->arrival, change, counts, err) : -EIO;
}

/*
 * Changes of names
 */

void announced_change(struct announced *a, const struct change *change)
{
    uint32_t number = change->type == CHANGE_REMOVE ? change->number : change->replaced;
    struct file *gone = number ? catalog_forget(a->catalog, number) : NULL;
    /* A reader that waits for a device of the new name waits for one that does not come. */
    CLEANUP_FILE struct file *unfilled = change->type == CHANGE_RENAME && !gone
                                             ? a->operations->expected(a->owner, change->number, change->name)
                                             : NULL;

    a->operations->change(a->owner, change, gone, unfilled);
    if (unfilled)
        file_receive_remove(unfilled);
    if (gone) {
        arrival_forget_end(a->arrival, gone);
        gone->next_unburied = a->unburied;
        a->unburied = gone;
    }
}

void announced_changed(struct announced *a, const struct change *made)
{
    for (const struct change *change = made; change; change = change->next) {
        if (change->type == CHANGE_REMOVE)
            a->operations->send(a->owner, WIRE_FILE_REMOVE, change->id, NULL, 0);
        else if (change->type == CHANGE_RENAME)
            a->operations->send(a->owner, WIRE_FILE_RENAME, change->id, NULL, 0);
    }
    announced_bury(a);
}

void announced_bury(struct announced *a)
{
    struct file **p = &a->unburied;

    while (*p) {
        struct file *file = *p;
        if (a->operations->uses(a->owner, file)) {
            p = &file->next_unburied;
            continue;
        }
        *p = file->next_unburied;
        file_receive_remove(file);
        file_put(file);
    }
}
