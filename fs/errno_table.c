/* SPDX-License-Identifier: Apache-2.0 */
/* From causes to errno; see errno_table.h. */
#include "errno_table.h"

#include <assert.h>
#include <errno.h>

static const int table[] = {
    [CAUSE_NONE] = 0,
    [CAUSE_SYNTAX] = EINVAL,
    [CAUSE_STATE] = EBUSY,
    [CAUSE_NOT_STARTED] = ENOTCONN,
    [CAUSE_CANCELLED] = ECANCELED,
    [CAUSE_UNSUPPORTED] = EOPNOTSUPP,
    [CAUSE_PEER] = EREMOTEIO,
    [CAUSE_PROTOCOL] = EPROTO,
    [CAUSE_RESET] = ECONNRESET,
    [CAUSE_TIMEOUT] = ETIMEDOUT,
    [CAUSE_REFUSED] = ECONNREFUSED,
    [CAUSE_UNREACHABLE] = EHOSTUNREACH,
    [CAUSE_TOO_BIG] = EFBIG,
    [CAUSE_QUOTA] = EDQUOT,
    [CAUSE_EXISTS] = EEXIST,
    [CAUSE_NOT_FOUND] = ENOENT,
    [CAUSE_NAME_TOO_LONG] = ENAMETOOLONG,
    [CAUSE_INTERRUPTED] = EINTR,
    [CAUSE_NO_MEMORY] = ENOMEM,
    [CAUSE_NO_SPACE] = ENOSPC,
    [CAUSE_IO] = EIO,
    [CAUSE_READ_ONLY] = EROFS,
    [CAUSE_MISMATCH] = EREMOTEIO,
    [CAUSE_SHUTDOWN] = ESHUTDOWN,
    [CAUSE_AGAIN] = EAGAIN,
    [CAUSE_IN_USE] = EADDRINUSE,
    [CAUSE_DENIED] = EPERM,
    [CAUSE_STALE] = ESTALE,
    [CAUSE_ROUNDS] = ETIME,
};
static_assert(sizeof(table) / sizeof(table[0]) == CAUSE_MAX, "every cause has an errno");

int errno_of(enum cause cause)
{
    return table[cause];
}
