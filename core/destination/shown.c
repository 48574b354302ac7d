/* SPDX-License-Identifier: Apache-2.0 */
/* What users see of a migration that arrives; see shown.h. */
#include "shown.h"
#include "cleanup.h"

#include <errno.h>

/*
 * The list
 */

struct file *shown_expected(struct migration *m, uint32_t number, const char *name)
{
    return number == WIRE_RAM ? migration_get_file(m, WIRE_RAM) : migration_find_device(m, name);
}

/* Where the source has it, if nothing that was expected is there. The caller holds migration.lock. */
static void add(struct migration *m, struct file *file)
{
    uint32_t slot = migration_file(m, file->id) ? migration_free_slot(m) : file->id;

    migration_add_file_at(m, file_get(file), slot);
}

void shown_add(struct migration *m, struct file *file)
{
    SCOPED_LOCK(&m->lock);
    add(m, file);
}

void shown_change(struct migration *m, const struct change *change, struct file *gone, struct file *unfilled)
{
    pthread_mutex_lock(&m->lock);
    struct file *shown = gone ? migration_remove_file(m, gone) : NULL;
    struct file *waited_for = unfilled ? migration_remove_file(m, unfilled) : NULL;
    if (change->type == CHANGE_CREATE)
        add(m, change->file);
    else if (change->type == CHANGE_RENAME)
        file_rename(change->file, change->name);
    pthread_mutex_unlock(&m->lock);
    file_put(shown);
    file_put(waited_for);
}

void shown_end_streams(struct migration *m, bool broken)
{
    for (uint32_t i = 0; i < m->file_count; i++) {
        CLEANUP_FILE struct file *file = migration_get_file(m, i);
        if (file)
            file_receive_over(file, broken);
    }
}

void shown_release(struct migration *m)
{
    if (m->file_count > 0)
        image_unlink(&m->files[WIRE_RAM]->image);
    for (uint32_t i = 0; i < m->file_count; i++) {
        CLEANUP_FILE struct file *file = migration_get_file(m, i);
        if (file)
            image_discharge(&file->image);
    }
}

bool shown_is_empty(struct migration *m)
{
    for (uint32_t i = 0; i < m->file_count; i++) {
        CLEANUP_FILE struct file *file = migration_get_file(m, i);
        struct file_totals totals = file ? file_totals(file) : (struct file_totals){0};
        if (totals.bytes || totals.zero_pages)
            return false;
    }
    return true;
}

/*
 * What is in them
 */

void shown_ram_path(struct migration *m, char *out, size_t size)
{
    struct file *ram = migration_file(m, WIRE_RAM);

    out[0] = '\0';
    if (ram)
        image_path(&ram->image, out, size);
}

int shown_digest(struct migration *m, struct file *file, const struct interrupt *interrupt,
                 uint8_t out[DIGEST_SIZE], struct error *err)
{
    char name[WIRE_NAME_SIZE];
    int ret = image_digest(&file->image, interrupt, out);

    (void)m;
    if (ret == -EINTR)
        return error_set(err, CAUSE_INTERRUPTED, "interrupted");
    return ret < 0 ? error_set_errno(err, ret, "reading '%.64s'", file_name(file, name)) : 0;
}

int shown_write(struct migration *m, const struct file_write *write, struct error *err)
{
    struct file *file = write->file;

    /* It may have been opened before a peer came. */
    if (file->id != WIRE_RAM)
        return error_set(err, CAUSE_READ_ONLY, "a device's stream is written at the source");
    if (m->state != STATE_COMPLETED)
        return error_set(err, CAUSE_STATE, "the image can be written when the migration has completed");
    if (write->offset + write->len > file_received_size(file))
        return error_set(err, CAUSE_TOO_BIG, "a received image does not grow");
    if (image_write(&file->image, write->offset, write->buf, write->len, err) < 0)
        return -EIO;
    write->accepted(write->arg);
    return 0;
}
