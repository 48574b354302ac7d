/* SPDX-License-Identifier: Apache-2.0 */
/* What a channel sends in one go (channel.h): entries off the head of its queue, and where their bytes are.
 */
#ifndef MIGFS_BATCH_H
#define MIGFS_BATCH_H

#include "entry.h"

/* What is sent in one go; its owner fills it in. */
struct batch {
    struct channel_entry *entries;
    struct iovec iov[TRANSPORT_IOV_MAX];
    int n;
    uint64_t bytes, large; /* that are copied: of iov, and of large payloads in it */
    uint64_t uncopied;     /* of other payloads */
    uint64_t placed;       /* of payloads that are placed, and not in iov */
    bool counted;          /* it counts as sent already, piece by piece */
    /* One of them, or none: the payload of the last entry, which is not in iov. */
    const struct channel_entry *piped;
    struct channel_entry *zerocopy;
};

/** batch_begin - nothing is in it; @entries: the first of what will be */
void batch_begin(struct batch *batch, struct channel_entry *entries);

/** batch_has_room - whether the parts of one more entry fit */
bool batch_has_room(const struct batch *batch, const struct channel_entry *entry);

/**
 * batch_add - the header and the payload of an entry, as far as they are to be sent
 * @zerocopy: the payload is sent without a copy; the entry is alone
 */
void batch_add(struct batch *batch, struct channel_entry *entry, bool zerocopy);

#endif
