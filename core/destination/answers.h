/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Answers to what the source asks about the bytes that are here: the digest of a file, and, for `verify`,
 * those of pieces of the RAM.
 *
 * One question is open at a time. An answer may take seconds to compute, and the thread that reads the main
 * channel has the heartbeat to think of: so another one computes and sends it. There are neither threads nor
 * connections in here.
 *
 * A file that is removed while its digest is computed stays until that is done.
 */
#ifndef MIGFS_ANSWERS_H
#define MIGFS_ANSWERS_H

#include "catalog.h"
#include "digest.h"
#include "error.h"
#include "wire.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* All of them are there. */
struct answers_operations {
    /* Have another thread call answers_work(), once; the owner stays until that has returned. */
    int (*begin)(void *owner, struct error *err);
    /* Send an answer to the source. Any thread; does not block. */
    void (*send)(void *owner, enum wire_message_type type, uint64_t id, const void *body, uint32_t length);
};

struct answers {
    const struct answers_operations *operations; /* constant, like the next two */
    void *owner;
    const struct catalog *catalog;
    /*
     * A question is open. The thread that reads the main channel sets it, and the one that answers takes it
     * back before the answer is sent; sequentially consistent, so the next question does not overwrite this
     * one while it is read.
     */
    atomic_bool open;
    /* Written while no question is open, and before another thread is told of it. */
    struct {
        enum wire_message_type type; /* WIRE_DIGEST, or WIRE_VERIFY about @count pieces from @first on */
        uint64_t id, first;
        struct file *file; /* with a reference */
        uint32_t count;
    } question;
};

/** answers_init - no question is open; @catalog: the files that can be asked about */
void answers_init(struct answers *answers, const struct catalog *catalog,
                  const struct answers_operations *operations, void *owner);

/**
 * answers_on_question - the source asks; in the thread that has the catalog
 *
 * Return: 0, and it is answered sooner or later, if only by a cause; negative with CAUSE_PROTOCOL.
 */
int answers_on_question(struct answers *answers, const struct message *message, struct wire_reader *body,
                        struct error *err);

/** answers_work - compute the answer to the open question, and send it */
void answers_work(struct answers *answers);

#endif
