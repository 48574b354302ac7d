/* SPDX-License-Identifier: Apache-2.0 */
/* Open files; see handle.h. */
#include "handle.h"
#include "cleanup.h"
#include "control.h"
#include "host.h"
#include "setting.h"
#include "status.h"
#include "user.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static pthread_mutex_t all_lock = PTHREAD_MUTEX_INITIALIZER; /* a leaf lock */
static struct handle *all;                                   /* guarded by all_lock */

struct handle *handle_new(struct node *node, uid_t uid, gid_t gid)
{
    struct handle *handle = calloc(1, sizeof(*handle));
    struct user *user = user_get(uid);

    if (!handle || !user) {
        free(handle);
        return NULL;
    }
    handle->node = node;
    handle->user = user;
    handle->uid = uid;
    handle->gid = gid;
    handle->generation = UINT64_MAX;
    if (node->m)
        migration_open_file(node->m);
    pthread_mutex_init(&handle->lock, NULL);
    SCOPED_LOCK(&all_lock);
    handle->next = all;
    handle->prev = &all;
    if (all)
        all->prev = &handle->next;
    all = handle;
    return handle;
}

void handle_free_all(void)
{
    while (all)
        handle_free(all);
}

void handle_free(struct handle *handle)
{
    pthread_mutex_lock(&all_lock);
    *handle->prev = handle->next;
    if (handle->next)
        handle->next->prev = handle->prev;
    pthread_mutex_unlock(&all_lock);
    if (handle->node->m)
        migration_close_file(handle->node->m);
    pthread_mutex_destroy(&handle->lock);
    free(handle->text);
    free(handle);
}

static char *error_text(const char *message, size_t *size)
{
    char *text = NULL;
    int n = asprintf(&text, *message ? "%s\n" : "%s", message);

    if (n < 0)
        return NULL;
    *size = (size_t)n;
    return text;
}

/* A line for each file: its digest and its name. */
static char *digest_lines(struct migration *m, const struct interrupt *interrupt, size_t *size,
                          struct error *err)
{
    char *text = NULL;
    FILE *out = open_memstream(&text, size);
    int ret = 0;

    if (!out)
        return NULL;
    for (uint32_t i = 0; i < m->file_count && ret == 0; i++) {
        CLEANUP_FILE struct file *file = migration_get_file(m, i);
        if (!file || file_is_removed(file))
            continue;
        char name[WIRE_NAME_SIZE];
        uint8_t digest[DIGEST_SIZE];
        char hex[DIGEST_TEXT];
        ret = migration_digest(m, file, interrupt, digest, err);
        /* Meanwhile. */
        if (ret < 0 && file_is_removed(file) && !state_is_final(migration_state(m))) {
            *err = (struct error){0};
            ret = 0;
            continue;
        }
        if (ret == 0) {
            digest_text(digest, hex);
            fprintf(out, "%s  %s%s\n", hex, i == WIRE_RAM ? "" : "device-state/", file_name(file, name));
        }
    }
    if (fclose(out) || ret < 0) {
        free(text);
        return NULL;
    }
    return text;
}

static char *make_text(struct handle *handle, struct host *host, size_t *size, struct error *err)
{
    const struct node *node = handle->node;
    char buf[SETTING_VALUE_MAX + ERROR_MESSAGE_MAX] = "";
    uint64_t generation;
    char *text;

    switch (node->kind) {
    case NODE_STATUS:
    case NODE_STATUS_JSON:
        text = status_text(node->m, node->kind == NODE_STATUS_JSON, size, &generation);
        if (text)
            handle->generation = generation;
        return text;
    case NODE_ERROR:
        migration_last_error(node->m, buf);
        return error_text(buf, size);
    case NODE_HOST_ERROR:
        host_last_error(host, buf);
        return error_text(buf, size);
    case NODE_WAIT:
        if (!migration_is_over(node->m, buf)) {
            error_set(err, CAUSE_AGAIN, "the migration is not over");
            return NULL;
        }
        break;
    case NODE_RAM_SOURCE:
        migration_reference_text(node->m, buf, sizeof(buf) - 1);
        strcat(buf, *buf ? "\n" : "");
        break;
    case NODE_SETTING:
        setting_read(node->m, &settings_table[node->index], buf, sizeof(buf));
        break;
    default:
        snprintf(buf, sizeof(buf), "%s", control_help);
    }
    *size = strlen(buf);
    return strdup(buf);
}

/* One at a time takes the digests of a migration: it reads all of the memory. */
static char *take_digests(struct migration *m, const struct interrupt *interrupt, size_t *size,
                          struct error *err)
{
    if (migration_begin_digests(m, interrupt, err) < 0)
        return NULL;
    char *text = digest_lines(m, interrupt, size, err);
    migration_end_digests(m);
    return text;
}

/* Called with handle->lock held. */
static int copy_text(const struct handle *handle, uint64_t offset, size_t size, char **out, struct error *err)
{
    if (offset >= handle->text_size)
        size = 0;
    else if (size > handle->text_size - offset)
        size = handle->text_size - offset;
    *out = malloc(size + 1);
    if (!*out)
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    if (size)
        memcpy(*out, handle->text + offset, size);
    return (int)size;
}

int handle_read_text(struct handle *handle, struct host *host, uint64_t offset, size_t size,
                     const struct interrupt *interrupt, char **out, struct error *err)
{
    bool digests = handle->node->kind == NODE_DIGEST;
    size_t text_size = 0;
    char *text = NULL;

    pthread_mutex_lock(&handle->lock);
    bool stale = offset == 0 || !handle->text;
    pthread_mutex_unlock(&handle->lock);
    if (stale && digests) {
        text = take_digests(handle->node->m, interrupt, &text_size, err);
        if (!text)
            return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    }
    SCOPED_LOCK(&handle->lock);
    if (stale && !digests) {
        text = make_text(handle, host, &text_size, err);
        if (!text)
            return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    }
    if (text) {
        free(handle->text);
        handle->text = text;
        handle->text_size = text_size;
    }
    return copy_text(handle, offset, size, out, err);
}
