/* SPDX-License-Identifier: Apache-2.0 */
/* Causes and sentences. */
#include "error.h"
#include "check.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

Test(error, first_wins)
{
    struct error err = {0};

    cr_expect(not(error_is_set(&err)));
    cr_expect(lt(int, error_set(&err, CAUSE_QUOTA, "%d apples", 3), 0));
    cr_expect(lt(int, error_set(&err, CAUSE_RESET, "later"), 0));
    cr_expect(lt(int, error_set_errno(&err, EIO, "later still"), 0));
    cr_expect(eq(int, (int)err.cause, CAUSE_QUOTA));
    cr_expect(eq(str, err.message, "3 apples"));
    cr_expect(error_is_set(&err));
}

Test(error, nobody_listens)
{
    cr_expect(lt(int, error_set(NULL, CAUSE_QUOTA, "nobody reads this"), 0));
    cr_expect(lt(int, error_set_errno(NULL, EIO, "nor this"), 0));
}

static const struct {
    int code;
    enum cause cause;
} causes[] = {
    {EPIPE, CAUSE_RESET},
    {ECONNRESET, CAUSE_RESET},
    {ECONNABORTED, CAUSE_RESET},
    {ETIMEDOUT, CAUSE_TIMEOUT},
    {ECONNREFUSED, CAUSE_REFUSED},
    {ENOENT, CAUSE_NOT_FOUND},
    {EHOSTUNREACH, CAUSE_UNREACHABLE},
    {ENETUNREACH, CAUSE_UNREACHABLE},
    {EHOSTDOWN, CAUSE_UNREACHABLE},
    {ENETDOWN, CAUSE_UNREACHABLE},
    {EADDRNOTAVAIL, CAUSE_UNREACHABLE},
    {ENOMEM, CAUSE_NO_MEMORY},
    {EMFILE, CAUSE_NO_MEMORY},
    {ENFILE, CAUSE_NO_MEMORY},
    {ENOSPC, CAUSE_NO_SPACE},
    {EDQUOT, CAUSE_NO_SPACE},
    {EINTR, CAUSE_INTERRUPTED},
    {EADDRINUSE, CAUSE_IN_USE},
    {EEXIST, CAUSE_EXISTS},
    {EACCES, CAUSE_DENIED},
    {EPERM, CAUSE_DENIED},
    {EFBIG, CAUSE_TOO_BIG},
    {EOPNOTSUPP, CAUSE_UNSUPPORTED},
    {EAFNOSUPPORT, CAUSE_UNSUPPORTED},
    {EIO, CAUSE_IO},
    {ENOTTY, CAUSE_IO},
    {0, CAUSE_IO},
    {123456, CAUSE_IO},
};

Test(error, cause_of_errno)
{
    for (size_t i = 0; i < ARRAY_LENGTH(causes); i++) {
        cr_expect(eq(int, (int)error_cause_of_errno(causes[i].code), (int)causes[i].cause), "errno %d", causes[i].code);
        cr_expect(eq(int, (int)error_cause_of_errno(-causes[i].code), (int)causes[i].cause), "errno %d",
                  -causes[i].code);
    }
}

Test(error, errno_in_words)
{
    struct error err = {0};
    char expected[ERROR_MESSAGE_MAX];

    error_set_errno(&err, -ECONNREFUSED, "cannot connect to %s", "there");
    snprintf(expected, sizeof(expected), "cannot connect to there: %s", strerror(ECONNREFUSED));
    cr_expect(eq(str, err.message, expected));
    cr_expect(eq(int, (int)err.cause, CAUSE_REFUSED));
}

Test(error, prefix)
{
    struct error err = {0};

    error_prefix(&err, "nothing");
    cr_expect(eq(str, err.message, ""), "no prefix without a message");
    error_set(&err, CAUSE_IO, "it broke");
    error_prefix(&err, "channel %d", 3);
    cr_expect(eq(str, err.message, "channel 3: it broke"));
    cr_expect(eq(int, (int)err.cause, CAUSE_IO));
}

Test(error, long_sentences_are_cut)
{
    char text[2 * ERROR_MESSAGE_MAX];
    struct error err = {0};

    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    error_set(&err, CAUSE_IO, "%s", text);
    cr_expect(eq(sz, strlen(err.message), ERROR_MESSAGE_MAX - 1));
    error_prefix(&err, "%s", text);
    cr_expect(eq(sz, strlen(err.message), ERROR_MESSAGE_MAX - 1));

    for (size_t length = ERROR_MESSAGE_MAX - 20; length < ERROR_MESSAGE_MAX + 2; length++) {
        err = (struct error){0};
        error_set_errno(&err, EIO, "%.*s", (int)length, text);
        cr_expect(lt(sz, strlen(err.message), ERROR_MESSAGE_MAX));
    }
}

/* The numbers travel: they may be added to, but never change. */
Test(error, numbers_are_the_wire_s)
{
    static const enum cause in_order[] = {
        CAUSE_NONE,     CAUSE_SYNTAX,      CAUSE_STATE,   CAUSE_NOT_STARTED, CAUSE_CANCELLED,     CAUSE_UNSUPPORTED,
        CAUSE_PEER,     CAUSE_PROTOCOL,    CAUSE_RESET,   CAUSE_TIMEOUT,     CAUSE_REFUSED,       CAUSE_UNREACHABLE,
        CAUSE_TOO_BIG,  CAUSE_QUOTA,       CAUSE_EXISTS,  CAUSE_NOT_FOUND,   CAUSE_NAME_TOO_LONG, CAUSE_INTERRUPTED,
        CAUSE_NO_MEMORY, CAUSE_NO_SPACE,   CAUSE_IO,      CAUSE_READ_ONLY,   CAUSE_MISMATCH,      CAUSE_SHUTDOWN,
        CAUSE_AGAIN,    CAUSE_IN_USE,      CAUSE_DENIED,  CAUSE_STALE,       CAUSE_ROUNDS,
    };

    for (size_t i = 0; i < ARRAY_LENGTH(in_order); i++)
        cr_expect(eq(int, (int)in_order[i], (int)i));
    cr_expect(eq(int, CAUSE_MAX, (int)ARRAY_LENGTH(in_order)), "a new cause belongs at the end of this table");
}
