/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The devices of the source: announced, opened, ended, removed and renamed. Also RAM is
 * announced here, before the first byte.
 *
 * Theory of operation
 *   The destination is told of a file and answers before anything is sent of it. One
 *   announcement is open at a time, so that the files come in the order of their
 *   numbers: a thread that wants to make a device waits for its turn. A device whose
 *   maker has left when the answer comes exists all the same.
 *
 *   Removing and renaming are done here at once; the destination follows when it
 *   has applied what was accepted before. A device that is removed is not found any more,
 *   and what is still written to it goes nowhere; its place in the list, whose index is its
 *   number, stays taken until the destination has removed it.
 *
 *   A stream ends when its last writer has closed it and something was ever written to
 *   it; it goes on when somebody opens it to write. The destination is told of both, with
 *   counts of what was accepted before.
 *
 * All of it is guarded by migration.lock, and so the news come in order.
 */
#ifndef MIGFS_STREAMS_H
#define MIGFS_STREAMS_H

#include "source.h"

struct streams {
    struct source *source;           /* constant */
    unsigned changes;                /* removals and renamings that the destination has not made yet */
    uint64_t last_change, last_made; /* the last one that was asked for, and the last one that it has made */
    /* The file that the destination has been told of, and whose answer nobody has taken. */
    struct {
        struct file *file; /* a reference; NULL: there is none */
        bool made;         /* it is the migration's when the destination accepts it */
        bool there;        /* it has answered; the thread that asked takes the answer */
        bool abandoned;    /* that thread has left: the answer decides */
        struct error refusal;
    } announced;
};

void streams_init(struct streams *streams, struct source *source);
void streams_fini(struct streams *streams);
/** streams_forget - it starts anew: nothing has been said to a destination; the caller holds migration.lock
 */
void streams_forget(struct streams *streams);

/** streams_number - before the start: devices that were removed have left gaps; no lock held */
void streams_number(struct streams *streams);

/**
 * streams_announce - tell the destination of a file that the migration has; nothing is announced; no lock
 * held
 *
 * For the thread that reads the main channel: it goes on until streams_is_answered(), and calls
 * streams_take_answer().
 */
void streams_announce(struct streams *streams, struct connection *conn, struct file *file);
bool streams_is_answered(const struct streams *streams);
/** streams_take_answer - whether the destination takes the file; the caller holds migration.lock */
int streams_take_answer(struct streams *streams, struct error *err);
/** streams_forget_answer - nobody waits for an answer any more; the caller holds migration.lock */
void streams_forget_answer(struct streams *streams);

/**
 * streams_await_turn - wait until no announcement is open; the caller holds migration.lock
 *
 * None is begun as long as the caller keeps the lock.
 */
int streams_await_turn(struct streams *streams, const struct interrupt *interrupt, struct error *err);

/** streams_create - the device of a name, made if it is not there: outgoing_create_device() */
int streams_create(struct streams *streams, const char *name, bool exclusive,
                   const struct interrupt *interrupt, struct file **out_file, struct error *err);

/** streams_remove - outgoing_remove_device() */
int streams_remove(struct streams *streams, const char *name, const struct interrupt *interrupt,
                   struct error *err);

/** streams_rename - outgoing_rename_device() */
int streams_rename(struct streams *streams, const char *from, const char *to, bool exclusive,
                   const struct interrupt *interrupt, struct error *err);

/** streams_open_writer, streams_close_writer - an open handle that can write came or went; no lock held */
void streams_open_writer(struct streams *streams, struct file *file);
void streams_close_writer(struct streams *streams, struct file *file);

/**
 * streams_tell - tell the destination whether a stream has ended, when that has changed; the caller holds
 * migration.lock
 * @again: something was done to it by somebody who is no writer, so an end is told once more
 */
void streams_tell(struct streams *streams, struct file *file, bool again);
/** streams_tell_all - the same for all of them */
void streams_tell_all(struct streams *streams);

/* What the destination says. */
int streams_on_reply(struct streams *streams, struct wire_reader *body, struct error *err);
int streams_on_changed(struct streams *streams, uint64_t id, struct error *err);

/** streams_is_answer_due - whether an answer of the destination's is; the caller holds migration.lock */
bool streams_is_answer_due(const struct streams *streams);

#endif
