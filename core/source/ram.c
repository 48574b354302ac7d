/* SPDX-License-Identifier: Apache-2.0 */
/* The file that the RAM of the source comes from; see ram.h. */
#include "ram.h"
#include "cleanup.h"
#include "descriptor.h"
#include "log.h"
#include "private_map.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

int ram_check_file(const struct source *source, const struct reference *ref, struct error *err)
{
    uint64_t have = reference_file_size(ref), size = atomic_load(&source->m->files[WIRE_RAM]->size);

    if (size == 0 || size > have)
        return error_set(err, CAUSE_SYNTAX, "RAM of %llu bytes, and '%.100s' has %llu",
                         (unsigned long long)size, ref->text, (unsigned long long)have);
    return 0;
}

int ram_start(const struct source *source, struct reference *ref, struct connection *conn, struct error *err)
{
    struct file *ram = source->m->files[WIRE_RAM];
    const struct plan_rules rules = source_rules(source, conn, ram);

    return reference_start(ref, conn, ram, &rules, source->tracking, err);
}

/* The migration is active, and its RAM comes by reference from now on. The caller holds migration.lock. */
static int start_late(struct source *source, struct reference *ref, struct error *err)
{
    if (source->reference || !ref)
        return error_set(err, CAUSE_STATE, "the source of RAM cannot be changed any more");
    if (ram_check_file(source, ref, err) < 0 || ram_start(source, ref, source_connection(source), err) < 0)
        return -EIO;
    source->reference = ref;
    return 0;
}

/* The migration is not started. The caller holds migration.lock. Returns what is not the migration's any
 * more. */
static struct reference *replace(struct source *source, struct reference *ref)
{
    struct file *ram = source->m->files[WIRE_RAM];
    struct reference *old = atomic_exchange(&source->reference, ref);

    if (ref)
        migration_become_outgoing(source->m);
    if (!atomic_load(&ram->size) || source->sized_by_reference) {
        ram->size = ram->declared = ref ? reference_file_size(ref) : 0;
        source->sized_by_reference = ref;
    }
    return old;
}

int ram_set_reference(struct source *source, struct reference *ref, const struct interrupt *interrupt,
                      struct error *err)
{
    struct migration *m = source->m;
    struct reference *unused = ref;
    int ret;

    pthread_mutex_lock(&m->lock);
    if (m->state == STATE_ACTIVE && m->role == ROLE_OUTGOING) {
        ret = start_late(source, ref, err);
        if (ret == 0)
            unused = NULL;
    } else {
        ret = source_settings_writable(source, interrupt, err);
        if (ret == 0)
            unused = replace(source, ref);
    }
    pthread_mutex_unlock(&m->lock);
    reference_free(unused);
    return ret;
}

void ram_check_sharing(struct source *source, pid_t writer)
{
    struct migration *m = source->m;
    char warning[ERROR_MESSAGE_MAX] = "";
    struct stat file;

    pthread_mutex_lock(&m->lock);
    struct reference *ref = source->reference;
    bool known = ref && ref->fd >= 0 && fstat(ref->fd, &file) == 0;
    pthread_mutex_unlock(&m->lock);
    pid_t pid = known ? private_map_find("/proc", &file, writer) : 0;
    if (pid)
        snprintf(
            warning, sizeof(warning),
            "process %d has the ram-source mapped privately: what it writes there is not in the file, and is "
            "not sent (share=off?)",
            (int)pid);
    pthread_mutex_lock(&m->lock);
    bool news = strcmp(m->warning, warning);
    strcpy(m->warning, warning);
    pthread_mutex_unlock(&m->lock);
    if (news && *warning)
        log_error("%s: %s", m->name, warning);
}

void ram_text(struct source *source, char *out, size_t size)
{
    SCOPED_LOCK(&source->m->lock);
    snprintf(out, size, "%s", source->reference ? source->reference->text : "");
}

uint64_t ram_dirty_size(struct source *source)
{
    uint64_t size = atomic_load(&source->m->files[WIRE_RAM]->size);

    SCOPED_LOCK(&source->m->lock);
    return source->reference ? (size + WIRE_PAGE_SIZE * 64 - 1) / (WIRE_PAGE_SIZE * 64) * 8 : 0;
}

/*
 * What a reader may ask; NULL: nothing. It does not depend on what has been given up already: the thread
 * that gives it up begins when the migration is over. The caller holds migration.lock.
 */
static struct reference *readable(const struct source *source)
{
    const struct migration *m = source->m;

    return m->was_active && state_is_final(m->state) ? NULL : source->reference;
}

ssize_t ram_read(struct source *source, uint64_t offset, void *buf, size_t len)
{
    struct migration *m = source->m;
    uint64_t size = atomic_load(&m->files[WIRE_RAM]->size);
    CLEANUP_FD int fd = -EOPNOTSUPP;

    pthread_mutex_lock(&m->lock);
    struct reference *ref = readable(source);
    if (ref)
        fd = reference_dup(ref);
    pthread_mutex_unlock(&m->lock);
    if (fd < 0)
        return fd;
    if (offset >= size)
        return 0;
    return descriptor_read(fd, offset, buf, len < size - offset ? len : (size_t)(size - offset));
}

size_t ram_read_dirty(struct source *source, uint64_t offset, void *buf, size_t len)
{
    SCOPED_LOCK(&source->m->lock);
    struct reference *ref = readable(source);
    return ref ? reference_read_dirty(ref, offset, buf, len) : 0;
}
