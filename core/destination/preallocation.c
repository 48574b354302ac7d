/* SPDX-License-Identifier: Apache-2.0 */
/* Memory before it is needed; see preallocation.h. */
#include "preallocation.h"

static void *mig_prealloc(void *arg)
{
    struct preallocation *p = arg;

    while (!atomic_load(&p->ends) && image_preallocate(p->image))
        ;
    return NULL;
}

int preallocation_begin(struct preallocation *p, struct image *image, struct error *err)
{
    p->image = image;
    int code = pthread_create(&p->thread, NULL, mig_prealloc, p);
    if (code)
        return error_set_errno(err, code, "cannot make a thread");
    p->running = true;
    pthread_setname_np(p->thread, "mig-prealloc");
    return 0;
}

void preallocation_stop(struct preallocation *p)
{
    atomic_store(&p->ends, true);
}

void preallocation_end(struct preallocation *p)
{
    preallocation_stop(p);
    if (p->running)
        pthread_join(p->thread, NULL);
    p->running = false;
}
