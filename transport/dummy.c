/* SPDX-License-Identifier: Apache-2.0 */
/* Operations for a transport that has none of its own; see dummy.h. */
#include "dummy.h"
#include "cleanup.h"

#include <errno.h>

#define SEND_COPY (256u << 10)
#define RECV_COPY (64u << 10)

int dummy_send_pipe(struct transport *t, const struct iovec *iov, int n, int pipe, size_t len)
{
    size_t size = len < SEND_COPY ? len : SEND_COPY;
    CLEANUP_FREE char *buf = malloc(size);

    if (!buf)
        return -ENOMEM;
    int ret = transport_send(t, iov, n);
    while (ret == 0 && len > 0) {
        ssize_t got = read(pipe, buf, len < size ? len : size);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return got < 0 && errno != EAGAIN ? -errno : -ENODATA;
        struct iovec part = {buf, (size_t)got};
        ret = transport_send(t, &part, 1);
        len -= (size_t)got;
    }
    return ret;
}

int dummy_zerocopy(struct transport *t)
{
    (void)t;
    return -EOPNOTSUPP;
}

int dummy_send_zerocopy(struct transport *t, const struct iovec *iov, int n, const void *buf, size_t len,
                        struct transport_handed *handed)
{
    (void)t, (void)iov, (void)n, (void)buf, (void)len;
    *handed = (struct transport_handed){0};
    return -EOPNOTSUPP;
}

int dummy_place(struct transport *t, const struct transport_key *key, uint64_t offset, const void *buf,
                size_t len, struct transport_handed *handed)
{
    (void)t, (void)key, (void)offset, (void)buf, (void)len;
    *handed = (struct transport_handed){0};
    return -EOPNOTSUPP;
}

int dummy_expose(struct transport *t, void *base, size_t len, struct transport_key *key)
{
    (void)t, (void)base, (void)len, (void)key;
    return -EOPNOTSUPP;
}

void dummy_withdraw(struct transport *t, const struct transport_key *key)
{
    (void)t, (void)key;
}

int dummy_pin(struct transport *t, const void *base, size_t len)
{
    (void)t, (void)base, (void)len;
    return -EOPNOTSUPP;
}

void dummy_figures(struct transport *t, bool of_group, struct transport_figures *out)
{
    (void)t, (void)of_group, (void)out;
}

void dummy_reap(struct transport *t, int wait_ms, struct transport_returns *returns)
{
    (void)t, (void)wait_ms, (void)returns;
}

ssize_t dummy_recv_parts(struct transport *t, const struct iovec *iov, int n)
{
    (void)n;
    return transport_recv(t, iov[0].iov_base, iov[0].iov_len, 0);
}

void dummy_explain(struct transport *t, struct error *err)
{
    (void)t, (void)err;
}

ssize_t dummy_recv_fd(struct transport *t, int fd, off_t offset, size_t len, int *file_code)
{
    char buf[RECV_COPY];
    ssize_t n = transport_recv(t, buf, len < sizeof(buf) ? len : sizeof(buf), 0);

    for (ssize_t done = 0; done < n;) {
        ssize_t stored = pwrite(fd, buf + done, (size_t)(n - done), offset + done);
        if (stored < 0 && errno == EINTR)
            continue;
        if (stored <= 0) {
            *file_code = stored < 0 ? errno : ENOSPC;
            return -EBADFD;
        }
        done += stored;
    }
    return n;
}
