/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Questions to the destination about the bytes that it has: the digest of a file, and, for `verify`, those of
 * the pieces of the RAM.
 *
 * The destination answers one at a time, so one is open at a time. A thread that leaves before the answer
 * comes leaves the question open; whoever reads the answer throws it away.
 *
 * All of it is guarded by migration.lock, unless it says otherwise.
 */
#ifndef MIGFS_QUESTION_H
#define MIGFS_QUESTION_H

#include "digest.h"
#include "source.h"

struct question {
    struct source *source;       /* constant */
    uint64_t id;                 /* 0: none is open */
    enum wire_message_type type; /* WIRE_DIGEST or WIRE_VERIFY */
    bool there;                  /* the answer, or (the thread that asked has left) nobody waits for it */
    enum cause cause;            /* of the answer: why there are no digests */
    uint8_t *digests;            /* where they go: the asking thread's */
    size_t size;                 /* of all of them */
    _Atomic uint64_t
        verified; /* bytes of RAM that the last verification has found the same so far; without the lock */
};

/** question_init - none is open; @question was zeroed once */
void question_init(struct question *question, struct source *source);
/** question_forget - it starts anew, and none is open; the caller holds migration.lock */
void question_forget(struct question *question);

/** question_digest - outgoing_digest() */
int question_digest(struct question *question, struct file *file, const struct interrupt *interrupt,
                    uint8_t digest[DIGEST_SIZE], struct error *err);

/**
 * question_verify - whether both ends have the same RAM; the migration is completing
 *
 * RAM that comes by reference can be read here once more. Of what came through FUSE there is no copy: then,
 * and without the setting `verify`, this does nothing.
 */
int question_verify(struct question *question, const struct interrupt *interrupt, struct error *err);

/* What the destination says. */
int question_on_answer(struct question *question, const struct message *message, struct wire_reader *body,
                       struct error *err);

/** question_is_answer_due - whether somebody waits for an answer of the destination's; the caller holds
 * migration.lock */
bool question_is_answer_due(const struct question *question);

#endif
