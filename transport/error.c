/* SPDX-License-Identifier: Apache-2.0 */
/* Causes and sentences of failures; see error.h. */
#include "error.h"
#include "text.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

int error_set(struct error *err, enum cause cause, const char *fmt, ...)
{
    if (err && !error_is_set(err)) {
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(err->message, sizeof(err->message), fmt, ap);
        va_end(ap);
        text_make_plain(err->message);
        err->cause = cause;
    }
    return -EIO;
}

enum cause error_cause_of_errno(int code)
{
    switch (code < 0 ? -code : code) {
    case EPIPE:
    case ECONNRESET:
    case ECONNABORTED:
        return CAUSE_RESET;
    case ETIMEDOUT:
        return CAUSE_TIMEOUT;
    case ECONNREFUSED:
        return CAUSE_REFUSED;
    case ENOENT:
        return CAUSE_NOT_FOUND;
    case EHOSTUNREACH:
    case ENETUNREACH:
    case EHOSTDOWN:
    case ENETDOWN:
    case EADDRNOTAVAIL:
        return CAUSE_UNREACHABLE;
    case ENOMEM:
    case EMFILE:
    case ENFILE:
        return CAUSE_NO_MEMORY;
    case ENOSPC:
    case EDQUOT:
        return CAUSE_NO_SPACE;
    case EINTR:
        return CAUSE_INTERRUPTED;
    case EADDRINUSE:
        return CAUSE_IN_USE;
    case EEXIST:
        return CAUSE_EXISTS;
    case EACCES:
    case EPERM:
        return CAUSE_DENIED;
    case ESTALE:
        return CAUSE_STALE;
    case EFBIG:
        return CAUSE_TOO_BIG;
    case EOPNOTSUPP:
    case EAFNOSUPPORT:
        return CAUSE_UNSUPPORTED;
    default:
        return CAUSE_IO;
    }
}

int error_set_errno(struct error *err, int code, const char *fmt, ...)
{
    if (err && !error_is_set(err)) {
        va_list ap;
        char reason[64];
        va_start(ap, fmt);
        int n = vsnprintf(err->message, sizeof(err->message), fmt, ap);
        va_end(ap);
        if (n >= 0 && (size_t)n < sizeof(err->message))
            snprintf(err->message + n, sizeof(err->message) - (size_t)n, ": %s",
                     strerror_r(code < 0 ? -code : code, reason, sizeof(reason)));
        text_make_plain(err->message);
        err->cause = error_cause_of_errno(code);
    }
    return -EIO;
}

void error_prefix(struct error *err, const char *fmt, ...)
{
    char prefix[ERROR_MESSAGE_MAX], whole[2 * ERROR_MESSAGE_MAX + 2];

    if (!error_is_set(err))
        return;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(prefix, sizeof(prefix), fmt, ap);
    va_end(ap);
    snprintf(whole, sizeof(whole), "%s: %s", prefix, err->message);
    whole[ERROR_MESSAGE_MAX - 1] = '\0';
    memcpy(err->message, whole, ERROR_MESSAGE_MAX);
    text_make_plain(err->message);
}
