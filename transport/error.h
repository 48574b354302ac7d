/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Why something failed, for a person.
 *
 * A function that takes a struct error returns 0, or a negative number that
 * says no more than that it failed; the cause and the sentence are in the
 * struct. Causes are not errno values: they travel on the wire, and the one
 * table that turns them into the user's errno is fs/errno_table.c.
 */
#ifndef MIGFS_ERROR_H
#define MIGFS_ERROR_H

#include <stdarg.h>
#include <stdbool.h>

#define ERROR_MESSAGE_MAX 256

/* The numbers are part of the wire protocol: add at the end, never reuse. */
enum cause {
    CAUSE_NONE = 0,
    CAUSE_SYNTAX = 1,       /* a command, setting or name that cannot be parsed */
    CAUSE_STATE = 2,        /* not in this state */
    CAUSE_NOT_STARTED = 3,  /* data or a command before `start` */
    CAUSE_CANCELLED = 4,    /* somebody said `cancel` */
    CAUSE_UNSUPPORTED = 5,  /* not built, or not supported by this kernel */
    CAUSE_PEER = 6,         /* the other side failed */
    CAUSE_PROTOCOL = 7,     /* the other side broke the protocol */
    CAUSE_RESET = 8,        /* the connection is gone */
    CAUSE_TIMEOUT = 9,      /* the other side is silent */
    CAUSE_REFUSED = 10,     /* nobody listens there */
    CAUSE_UNREACHABLE = 11, /* no such host, or no way to it */
    CAUSE_TOO_BIG = 12,     /* past the declared or allowed size */
    CAUSE_QUOTA = 13,       /* over the destination's limits */
    CAUSE_EXISTS = 14,      /* the name is taken */
    CAUSE_NOT_FOUND = 15,   /* no such migration, device or host */
    CAUSE_NAME_TOO_LONG = 16,
    CAUSE_INTERRUPTED = 17, /* a signal arrived */
    CAUSE_NO_MEMORY = 18,
    CAUSE_NO_SPACE = 19,  /* the backing file system is full */
    CAUSE_IO = 20,        /* the local system failed */
    CAUSE_READ_ONLY = 21, /* writing what belongs to the other side */
    CAUSE_MISMATCH = 22,  /* the destination has not what the source sent */
    CAUSE_SHUTDOWN = 23,  /* the daemon is going away */
    CAUSE_AGAIN = 24,     /* would block */
    CAUSE_IN_USE = 25,    /* the address is taken */
    CAUSE_DENIED = 26,    /* not permitted */
    CAUSE_STALE = 27,     /* the file was removed */
    CAUSE_ROUNDS = 28,    /* the rounds that were allowed were not enough */
    CAUSE_MAX             /* one past the last */
};

struct error {
    enum cause cause; /* CAUSE_NONE: nothing happened */
    char message[ERROR_MESSAGE_MAX];
};

/**
 * error_set - note why something failed
 * @err: where to; may be NULL. The first error wins: one that is already set stays.
 * @cause: the class of the failure
 * @fmt: a sentence without a full stop, for a person
 *
 * Return: a negative number, so that "return error_set(...)" reads well.
 */
int error_set(struct error *err, enum cause cause, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/**
 * error_set_errno - error_set() for a failed system call
 * @code: the errno value, positive or negative; appended to the sentence in words
 */
int error_set_errno(struct error *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/** error_cause_of_errno - the cause that fits a failed system call */
enum cause error_cause_of_errno(int code);

/** error_prefix - put "what: " in front of a message that is set */
void error_prefix(struct error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static inline bool error_is_set(const struct error *err)
{
    return err->cause != CAUSE_NONE;
}

#endif
