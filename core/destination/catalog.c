/* SPDX-License-Identifier: Apache-2.0 */
/* What a source has announced; see catalog.h. */
#include "catalog.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int catalog_init(struct catalog *catalog, uint32_t max_devices)
{
    *catalog = (struct catalog){.size = max_devices + 1};
    catalog->last = &catalog->first;
    catalog->files = calloc(catalog->size, sizeof(*catalog->files));
    catalog->names = calloc(catalog->size, sizeof(*catalog->names));
    if (catalog->files && catalog->names)
        return 0;
    catalog_fini(catalog);
    return -ENOMEM;
}

void change_free_all(struct change *first)
{
    while (first) {
        struct change *change = first;
        first = change->next;
        free(change);
    }
}

void catalog_fini(struct catalog *catalog)
{
    for (uint32_t i = 0; catalog->files && catalog->names && i < catalog->size; i++) {
        file_put(catalog->files[i]);
        free(catalog->names[i]);
    }
    change_free_all(catalog->first);
    free(catalog->files);
    free(catalog->names);
    *catalog = (struct catalog){0};
}

bool catalog_has(const struct catalog *catalog, uint32_t number)
{
    return number < catalog->size && catalog->names[number];
}

uint32_t catalog_find(const struct catalog *catalog, const char *name)
{
    for (uint32_t i = 1; i < catalog->size; i++) {
        if (catalog->names[i] && !strcmp(catalog->names[i], name))
            return i;
    }
    return 0;
}

static struct change *add_change(struct catalog *catalog, enum change_type type, uint64_t id, uint32_t number,
                                 const char *name)
{
    struct change *change = calloc(1, sizeof(*change) + strlen(name) + 1);

    if (!change)
        return NULL;
    strcpy(change->name, name);
    change->type = type;
    change->id = id;
    change->number = number;
    change->file = catalog->files[number];
    *catalog->last = change;
    catalog->last = &change->next;
    catalog->asked += type != CHANGE_CREATE;
    return change;
}

int catalog_add(struct catalog *catalog, uint32_t number, struct file *file, const char *name, bool shown,
                bool *hidden)
{
    char *copy = strdup(name);
    bool waits = catalog->first && !shown;

    if (!copy)
        return -ENOMEM;
    atomic_store(&catalog->files[number], file);
    struct change *change = waits ? add_change(catalog, CHANGE_CREATE, 0, number, "") : NULL;
    if (waits && !change) {
        atomic_store(&catalog->files[number], NULL);
        free(copy);
        return -ENOMEM;
    }
    if (change)
        change->ripe = true;
    file_get(file);
    catalog->names[number] = copy;
    catalog->count++;
    *hidden = waits;
    return 0;
}

static int check_change(const struct catalog *catalog, uint32_t number, struct error *err)
{
    if (number == WIRE_RAM || !catalog_has(catalog, number))
        return error_set(err, CAUSE_PROTOCOL, "a change of file %u, which is no device", number);
    if (catalog->asked >= WIRE_CHANGES_MAX)
        return error_set(err, CAUSE_PROTOCOL, "more than %u changes wait", WIRE_CHANGES_MAX);
    return 0;
}

static void forget_name(struct catalog *catalog, uint32_t number)
{
    free(catalog->names[number]);
    catalog->names[number] = NULL;
    catalog->count--;
}

static struct change *out_of_memory(struct error *err)
{
    error_set(err, CAUSE_NO_MEMORY, "out of memory");
    return NULL;
}

struct change *catalog_remove(struct catalog *catalog, uint64_t id, uint32_t number, struct error *err)
{
    if (check_change(catalog, number, err) < 0)
        return NULL;
    struct change *change = add_change(catalog, CHANGE_REMOVE, id, number, "");
    if (!change)
        return out_of_memory(err);
    forget_name(catalog, number);
    return change;
}

struct change *catalog_rename(struct catalog *catalog, uint64_t id, uint32_t number, const char *name,
                              uint32_t replaced, struct error *err)
{
    if (check_change(catalog, number, err) < 0)
        return NULL;
    uint32_t taken = catalog_find(catalog, name);
    if (taken != replaced || taken == number) {
        error_set(err, CAUSE_PROTOCOL, "'%.64s' becomes the name of file %u, but is that of file %u", name,
                  number, taken);
        return NULL;
    }
    char *copy = strdup(name);
    struct change *change = copy ? add_change(catalog, CHANGE_RENAME, id, number, name) : NULL;
    if (!change) {
        free(copy);
        return out_of_memory(err);
    }
    change->replaced = replaced;
    if (replaced)
        forget_name(catalog, replaced);
    free(catalog->names[number]);
    catalog->names[number] = copy;
    return change;
}

bool catalog_is_coming(const struct catalog *catalog, const char *name)
{
    const struct change *change = catalog->first;

    while (change && (change->type != CHANGE_RENAME || strcmp(change->name, name)))
        change = change->next;
    return change;
}

struct change *catalog_take(struct catalog *catalog)
{
    struct change *change = catalog->first;

    if (!change || !change->ripe)
        return NULL;
    catalog->first = change->next;
    if (!change->next)
        catalog->last = &catalog->first;
    change->next = NULL;
    catalog->asked -= change->type != CHANGE_CREATE;
    return change;
}

struct file *catalog_forget(struct catalog *catalog, uint32_t number)
{
    return atomic_exchange(&catalog->files[number], NULL);
}

/* The next file that can be found, from @number on, which moves behind it; NULL: there is none. */
static struct file *next(const struct catalog *catalog, uint32_t *number)
{
    struct file *file = NULL;

    while (!file && *number < catalog->size)
        file = catalog_file(catalog, (*number)++);
    return file;
}

uint64_t catalog_work(const struct catalog *catalog)
{
    const struct file *file;
    uint64_t sum = 0;

    for (uint32_t i = 0; (file = next(catalog, &i));)
        sum += counter_get(&file->image.work);
    return sum;
}

int catalog_check_storage(const struct catalog *catalog, struct error *err)
{
    struct file *file;

    for (uint32_t i = 0; (file = next(catalog, &i));) {
        if (file_receive_check(file, err) < 0)
            return -EIO;
    }
    return 0;
}

int catalog_finish(const struct catalog *catalog, struct error *err)
{
    struct file *file;

    for (uint32_t i = 0; (file = next(catalog, &i));) {
        if (image_finish(&file->image, err) < 0)
            return -EIO;
    }
    return 0;
}

void catalog_keep(const struct catalog *catalog)
{
    struct file *file;

    for (uint32_t i = 0; (file = next(catalog, &i));)
        image_keep(&file->image);
}

void catalog_drop(const struct catalog *catalog)
{
    struct file *file;

    for (uint32_t i = 0; (file = next(catalog, &i));)
        file_receive_drop(file);
}

void catalog_settle(const struct catalog *catalog)
{
    struct file *file;

    for (uint32_t i = 0; (file = next(catalog, &i));)
        file_settle(file);
}
