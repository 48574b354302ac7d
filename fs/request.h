/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A request of the kernel's, as the operations see it: whose it is, what it waits for, and how it is answered
 * when it fails.
 */
#ifndef MIGFS_REQUEST_H
#define MIGFS_REQUEST_H

#include "admission.h"
#include "registry.h"

#include <fuse_lowlevel.h>

/** request_registry - the daemon's */
struct registry *request_registry(fuse_req_t req);
struct host *request_host(fuse_req_t req);

/* Ties a request to what it waits for. */
struct waiting {
    struct interrupt interrupt;
    struct admission admission;
};

/**
 * request_wait - before all that can wait; not before what cannot: that is never refused
 * @waiting: its interrupt is the request's, until request_end_wait()
 * @user: the one who has opened the file; NULL: the one who makes the request
 */
int request_wait(fuse_req_t req, struct waiting *waiting, struct user *user, struct migration *m,
                 struct error *err);

/** request_end_wait - nobody waits any more, and after this the interrupt cannot come any more */
void request_end_wait(fuse_req_t req, struct waiting *waiting);

/**
 * request_reply_looking - answer one that only looks with an error: it leaves no sentence, whoever makes it
 */
void request_reply_looking(fuse_req_t req, enum cause cause);

/** request_reply_error - answer one that would have changed something, and keep the sentence for `error` */
void request_reply_error(fuse_req_t req, struct migration *m, const struct error *err);

/** request_reply_cause - the same, with a sentence that is always the same */
void request_reply_cause(fuse_req_t req, struct migration *m, enum cause cause, const char *text);

#endif
