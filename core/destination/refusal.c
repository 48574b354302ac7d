/* SPDX-License-Identifier: Apache-2.0 */
/* What a destination refuses; see refusal.h. */
#include "refusal.h"

#include <errno.h>
#include <unistd.h>

static int refuse(struct error *err)
{
    return error_set(err, CAUSE_READ_ONLY, "the migration is incoming: this is for the source to do");
}

int refusal_of_settings(struct migration *m, const struct interrupt *interrupt, struct error *err)
{
    (void)m;
    (void)interrupt;
    return error_set(err, CAUSE_STATE, "the settings of an incoming migration are its source's");
}

int refusal_of_command(struct migration *m, const struct interrupt *interrupt, struct error *err)
{
    (void)m;
    (void)interrupt;
    return refuse(err);
}

int refusal_of_barrier(struct migration *m, struct file *file, const struct interrupt *interrupt,
                       struct error *err)
{
    (void)m;
    (void)file;
    (void)interrupt;
    return refuse(err);
}

int refusal_of_discard(struct migration *m, struct file *file, uint64_t offset, uint64_t len,
                       const struct interrupt *interrupt, struct error *err)
{
    (void)m;
    (void)file;
    (void)offset;
    (void)len;
    (void)interrupt;
    return refuse(err);
}

int refusal_of_truncate(struct migration *m, struct file *file, uint64_t size,
                        const struct interrupt *interrupt, struct error *err)
{
    (void)m;
    (void)file;
    (void)size;
    (void)interrupt;
    return refuse(err);
}

int refusal_of_create(struct migration *m, const char *name, bool exclusive,
                      const struct interrupt *interrupt, struct file **out, struct error *err)
{
    (void)m;
    (void)name;
    (void)exclusive;
    (void)interrupt;
    (void)out;
    return refuse(err);
}

int refusal_of_remove(struct migration *m, const char *name, const struct interrupt *interrupt,
                      struct error *err)
{
    (void)m;
    (void)name;
    (void)interrupt;
    return refuse(err);
}

int refusal_of_rename(struct migration *m, const char *from, const char *to, bool exclusive,
                      const struct interrupt *interrupt, struct error *err)
{
    (void)m;
    (void)from;
    (void)to;
    (void)exclusive;
    (void)interrupt;
    return refuse(err);
}

bool refusal_of_splice(const struct migration *m, const struct file *file, size_t len, uint64_t offset)
{
    (void)m;
    (void)file;
    (void)len;
    (void)offset;
    return false;
}

void refusal_of_writer(struct migration *m, struct file *file)
{
    (void)m;
    (void)file;
}

int refusal_of_reference(struct migration *m, int fd, const char *text, pid_t writer,
                         const struct interrupt *interrupt, struct error *err)
{
    (void)text;
    (void)writer;
    if (fd >= 0)
        close(fd);
    return refusal_of_settings(m, interrupt, err);
}

void refusal_of_reference_text(struct migration *m, char *out, size_t size)
{
    (void)m;
    (void)size;
    *out = '\0';
}

uint64_t refusal_of_dirty_size(struct migration *m)
{
    (void)m;
    return 0;
}

int refusal_of_dirty(struct migration *m, const void *bitmap, size_t len, uint64_t offset, struct error *err)
{
    (void)m;
    (void)bitmap;
    (void)len;
    (void)offset;
    return refuse(err);
}

size_t refusal_of_reading_dirty(struct migration *m, uint64_t offset, void *buf, size_t len)
{
    (void)m, (void)offset, (void)buf, (void)len;
    return 0;
}

ssize_t refusal_of_reading(struct migration *m, uint64_t offset, void *buf, size_t len)
{
    (void)m, (void)offset, (void)buf, (void)len;
    return -EOPNOTSUPP;
}
