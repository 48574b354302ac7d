/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a transport takes for an operation in which it has nothing of its own, so
 * that no caller has to ask whether there is one.
 *
 * What can be done with other operations is done with them; the rest says
 * -EOPNOTSUPP. The traits of the transport say which of them pay.
 */
#ifndef MIGFS_DUMMY_H
#define MIGFS_DUMMY_H

#include "transport.h"

/** dummy_send_pipe - reads the bytes, and sends them by @send */
int dummy_send_pipe(struct transport *t, const struct iovec *iov, int n, int pipe, size_t len);

/** dummy_zerocopy - Return: -EOPNOTSUPP. */
int dummy_zerocopy(struct transport *t);

/** dummy_send_zerocopy - hands nothing over. Return: -EOPNOTSUPP. */
int dummy_send_zerocopy(struct transport *t, const struct iovec *iov, int n, const void *buf, size_t len,
                        struct transport_handed *handed);

/** dummy_place - hands nothing over. Return: -EOPNOTSUPP. */
int dummy_place(struct transport *t, const struct transport_key *key, uint64_t offset, const void *buf,
                size_t len, struct transport_handed *handed);

/** dummy_expose - Return: -EOPNOTSUPP. */
int dummy_expose(struct transport *t, void *base, size_t len, struct transport_key *key);

/** dummy_withdraw - there is nothing to withdraw */
void dummy_withdraw(struct transport *t, const struct transport_key *key);

/** dummy_pin - Return: -EOPNOTSUPP. */
int dummy_pin(struct transport *t, const void *base, size_t len);

/** dummy_figures - there is nothing to add */
void dummy_figures(struct transport *t, bool of_group, struct transport_figures *out);

/** dummy_reap - nothing has been handed over, so nothing more comes back */
void dummy_reap(struct transport *t, int wait_ms, struct transport_returns *returns);

/** dummy_recv_parts - receives into the first part, by @recv */
ssize_t dummy_recv_parts(struct transport *t, const struct iovec *iov, int n);

/** dummy_explain - the errno says all */
void dummy_explain(struct transport *t, struct error *err);

/** dummy_recv_fd - receives by @recv, and writes to the file */
ssize_t dummy_recv_fd(struct transport *t, int fd, off_t offset, size_t len, int *file_code);

#endif
