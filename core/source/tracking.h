/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What of the RAM has changed since it was sent, when nobody says it: `dirty-tracking compare`.
 *
 * Theory of operation
 *   There is a 128-bit digest of what was last sent of each page, 16 bytes for 4 KiB. A page whose bytes
 *   have the same digest is not sent again. That sees every writer (processors, vhost-user, a device's DMA),
 *   and costs a read of the memory.
 *
 *   The trap is a page that goes A-B-A: hashed as A, sent as B, and A again when it is looked at the next
 *   time, it would never be sent again. So what is recorded is the digest of the bytes that are sent
 *   (tracking_record() is given the copy that goes out), or none at all (tracking_forget()): a page without
 *   one is always sent. A look at memory that changes meanwhile (tracking_is_same()) can only find the bytes
 *   that were sent, or others: then a copy is made, and that is what is recorded and sent.
 *
 *   Records have to have the order of the packets: of two writers of a page, the one whose packet comes last
 *   has to be the one that records last. So who looks, records and gives packets their places keeps the
 *   stripe meanwhile (tracking_enter(), tracking_leave()).
 *
 *   The digests are keyed by random bytes, so that a guest cannot make two pages that look alike.
 *
 * Lock: tracking.lock, a leaf. The digests of a stripe belong to who keeps it.
 */
#ifndef MIGFS_TRACKING_H
#define MIGFS_TRACKING_H

#include "error.h"
#include "interrupt.h"
#include "page_hash.h"
#include "wire.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Sums since tracking_init(); relaxed, they only count. */
struct tracking_figures {
    uint64_t scanned; /* pages that were looked at */
    uint64_t changed; /* the part of them that was not the same, or not known */
    uint64_t scan_ns; /* that all looks at memory took, of all threads together */
};

struct tracking {
    uint64_t pages; /* constant */
    /* Of each page; all zero: not known. Address space for all; memory for those that have one; constant. */
    struct page_hash *digests;
    page_hash_fn *hash;               /* constant */
    uint8_t secret[PAGE_HASH_SECRET]; /* constant */
    struct page_hash zero;            /* a page of zeros has this one; constant */

    _Atomic uint64_t scanned, changed, scan_ns;

    pthread_mutex_t lock;
    pthread_cond_t changed_busy; /* a stripe is free, or a waiter was interrupted */
    uint64_t busy; /* bit n: somebody keeps the stripes with number n modulo 64; guarded by lock */
};

/** tracking_new - nothing was sent of an image of @bytes. NULL with @err when there is no memory */
struct tracking *tracking_new(uint64_t bytes, struct error *err);
/** tracking_free - nobody uses it any more; NULL is fine */
void tracking_free(struct tracking *t);
/** tracking_end - the migration is over: give up the memory of the digests; others may still use it */
void tracking_end(struct tracking *t);

/**
 * tracking_enter - keep the stripes of [@offset, @offset + @len), which is not empty
 * Return: 0 or -EINTR, with nothing kept.
 */
int tracking_enter(struct tracking *t, uint64_t offset, uint64_t len, const struct interrupt *interrupt);
void tracking_leave(struct tracking *t, uint64_t offset, uint64_t len);
/** tracking_kick - make those who wait look at their interrupts */
void tracking_kick(struct tracking *t);

/**
 * tracking_is_same - whether these are the bytes that were sent of a page; who keeps its stripe
 * @len: of the page: less only at the end of the image
 */
bool tracking_is_same(struct tracking *t, uint64_t page, const void *bytes, size_t len);
/** tracking_record - these bytes of a page are sent. Return: whether others, or unknown ones, were. */
bool tracking_record(struct tracking *t, uint64_t page, const void *bytes, size_t len);
/** tracking_record_zeros - the same for a whole page that is not there */
bool tracking_record_zeros(struct tracking *t, uint64_t page);
/** tracking_forget - of the pages that touch [@offset, @offset + @len) it is not known what was sent */
void tracking_forget(struct tracking *t, uint64_t offset, uint64_t len);

/** tracking_count - so many pages were looked at, and so many of them changed, in @ns */
void tracking_count(struct tracking *t, uint64_t scanned, uint64_t changed, uint64_t ns);
struct tracking_figures tracking_figures(struct tracking *t);

#endif
