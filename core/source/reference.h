/* SPDX-License-Identifier: Apache-2.0 */
/*
 * RAM by reference: a file of the VMM's that holds its RAM, from which dirty
 * pages are sent when they are asked for. Nothing of them passes FUSE.
 *
 * Theory of operation
 *   A dirty bitmap that is written is merged into a map of what is to be sent:
 *   memory is bounded, whatever is written, and a page that is asked for twice
 *   before it is sent is sent once. Each channel that carries RAM has a thread,
 *   which passes over its own stripes, takes their bits, and sends those pages as
 *   they are at that moment. Pages that the file does not
 *   have (never touched, or given back by a balloon) are not looked at through the
 *   mapping, which would make them, but read, and so found to be zero.
 *
 *   A page may change while it is in flight: then its writer asks for it again,
 *   and the newer version follows on the same channel. An older one cannot
 *   overtake it, since the bytes of a stripe travel on one connection.
 *
 *   Where the RAM is compared (tracking.h), a scanner sends of what is asked for only the pages that have
 *   changed since they were sent last, and sends the copies that it has recorded.
 *
 *   A caller that has to know that everything is on its way (`flush`, `sync`,
 *   `complete`) drains: every bitmap has a number, and a scanner's pass that begins
 *   after bitmap number N ends when all of it has been sent.
 *
 * Locks
 *   reference.lock is a leaf. Bits are set with it held, and taken without.
 */
#ifndef MIGFS_REFERENCE_H
#define MIGFS_REFERENCE_H

#include "error.h"
#include "interrupt.h"
#include "page_map.h"
#include "plan.h"

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct connection;
struct file;
struct reference_scanner;
struct tracking;

struct reference {
    int fd;     /* of the file; -1 when the migration is over */
    char *text; /* what the user called it; constant */
    /* Constant from reference_start() to reference_stop(): */
    struct connection *conn;
    struct file *ram; /* the image, whose pages these are; no reference */
    struct plan_rules rules;
    struct tracking *tracking; /* of what is asked for, only what has changed is sent; NULL: all of it */
    uint64_t size;             /* of the image */
    const char *map;           /* the file from 0; reading it goes through guard_call() */
    uint64_t mapped;           /* so many bytes of it */
    struct page_map dirty;     /* asked for, and not taken by a scanner */

    pthread_mutex_t lock;   /* guards the rest */
    pthread_cond_t changed; /* anything of it, or a waiter was interrupted */
    struct reference_scanner *scanners;
    unsigned count;
    uint64_t asked;   /* the number of the last bitmap */
    unsigned sealers; /* `complete` runs: nothing more is asked for */
    bool stopped;     /* the scanners end */
};

/**
 * reference_new - a reference to a file
 * @fd: the reference's, whatever this returns
 * @text: what reading the setting gives
 * Return: NULL with @err when it cannot be the source of RAM.
 */
struct reference *reference_new(int fd, const char *text, struct error *err);

/** reference_free - stop it, close the file; NULL is fine */
void reference_free(struct reference *ref);

/** reference_file_size - how large the file is now; 0 when it cannot be asked */
uint64_t reference_file_size(const struct reference *ref);

/**
 * reference_start - map the file and make the scanners, one for each channel that carries RAM
 * @conn, @ram: there until reference_stop(); the image's size is at most the file's, and does not change
 * @rules: by which the image's bytes become packets; how large ones take their way, the reference decides
 * @tracking: of the RAM; NULL: nobody compares
 *
 * That the file cannot be read is a failure of the connection: connection.failed.
 */
int reference_start(struct reference *ref, struct connection *conn, struct file *ram,
                    const struct plan_rules *rules, struct tracking *tracking, struct error *err);

/** reference_pin - register all of the mapping, for channels that place; some do */
int reference_pin(struct reference *ref, struct error *err);

/** reference_stop - end the scanners and unmap; their channels take nothing more, or nothing was asked for */
void reference_stop(struct reference *ref);

/** reference_close - after reference_stop(), when the migration is over: let the VMM's memory go */
void reference_close(struct reference *ref);

/**
 * reference_mark - ask for the pages of a bitmap
 * @bitmap: little-endian 64-bit words; @len a multiple of 8
 * @offset: of the bitmap in bytes, a multiple of 8: its first bit is page 8 * @offset
 *
 * Bits past the end of the image are ignored in the last word and CAUSE_TOO_BIG
 * elsewhere; nothing is marked then.
 */
int reference_mark(struct reference *ref, const void *bitmap, size_t len, uint64_t offset, struct error *err);

/** reference_mark_all - ask for all pages, also while it is sealed; nothing when the scanners have ended */
void reference_mark_all(struct reference *ref);

/**
 * reference_drain - wait until all that was asked for has been sent
 * Return: 0, -EINTR, or -ECONNRESET when the scanners have ended.
 */
int reference_drain(struct reference *ref, const struct interrupt *interrupt);

/* The file, for a thread that reads it when reference_close() may come. */
struct reference_reader {
    int fd;     /* -1: there is none */
    bool seeks; /* its position is not the VMM's: holes can be looked for */
};

/** reference_open - another descriptor of the file, for the caller to close; the caller holds migration.lock
 */
struct reference_reader reference_open(const struct reference *ref);

/**
 * reference_read - read [offset, offset + len), and make no pages of the file; any thread
 * Return: @len; 0 when all of it is a hole; -ENODATA when the file is shorter, or another negative errno.
 */
ssize_t reference_read(const struct reference_reader *reader, uint64_t offset, void *buf, size_t len);

/** reference_seal - let nobody ask for more, or (@sealed false) take one seal back */
void reference_seal(struct reference *ref, bool sealed);

/** reference_dup - a descriptor of the file for the caller; -EOPNOTSUPP when it has been closed, or another
 * negative errno */
int reference_dup(const struct reference *ref);

/** reference_read_dirty - the bitmap of what was asked for and is not taken up; the count, 0 past its end */
size_t reference_read_dirty(struct reference *ref, uint64_t offset, void *buf, size_t len);

/** reference_remaining - the pages that are asked for and not sent, about */
uint64_t reference_remaining(const struct reference *ref);

/** reference_kick - make the waiters look at their interrupts */
void reference_kick(struct reference *ref);

#endif
