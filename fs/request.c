/* SPDX-License-Identifier: Apache-2.0 */
/* Requests; see request.h. */
#include "request.h"
#include "errno_table.h"

#include <errno.h>

struct registry *request_registry(fuse_req_t req)
{
    return fuse_req_userdata(req);
}

struct host *request_host(fuse_req_t req)
{
    return &request_registry(req)->host;
}

static void on_interrupt(fuse_req_t req, void *data)
{
    struct waiting *waiting = data;

    (void)req;
    atomic_store(&waiting->interrupt.hit, true);
    migration_kick(waiting->admission.m);
}

int request_wait(fuse_req_t req, struct waiting *waiting, struct user *user, struct migration *m,
                 struct error *err)
{
    if (!user)
        user = user_get(fuse_req_ctx(req)->uid);
    if (!user)
        return error_set(err, CAUSE_NO_MEMORY, "out of memory");
    if (admission_enter(&waiting->admission, user, m, err) < 0)
        return -EIO;
    atomic_init(&waiting->interrupt.hit, false);
    fuse_req_interrupt_func(req, on_interrupt, waiting);
    return 0;
}

void request_end_wait(fuse_req_t req, struct waiting *waiting)
{
    fuse_req_interrupt_func(req, NULL, NULL);
    admission_leave(&waiting->admission);
}

void request_reply_looking(fuse_req_t req, enum cause cause)
{
    fuse_reply_err(req, errno_of(cause));
}

void request_reply_error(fuse_req_t req, struct migration *m, const struct error *err)
{
    bool noteworthy = err->cause != CAUSE_INTERRUPTED && err->cause != CAUSE_AGAIN;

    if (m && noteworthy)
        migration_note_error(m, err);
    else if (noteworthy)
        host_note_error(request_host(req), err->message);
    fuse_reply_err(req, errno_of(err->cause));
}

void request_reply_cause(fuse_req_t req, struct migration *m, enum cause cause, const char *text)
{
    struct error err = {0};

    error_set(&err, cause, "%s", text);
    request_reply_error(req, m, &err);
}
