/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One file of a migration: the RAM image, or a device's stream.
 *
 * A file is cut into stripes, and a stripe has a home: the one channel that
 * carries everything about it, in order. What each channel did for a file is
 * kept per channel, so that the data path shares nothing:
 * at the source file_channel is guarded by the channel's lock, at the
 * destination it belongs to the channel's receiver. Others read the counters,
 * which are therefore atomics, relaxed; whoever needs them exact has passed a
 * barrier first.
 */
#ifndef MIGFS_FILE_H
#define MIGFS_FILE_H

#include "attributes.h"
#include "budget.h"
#include "digest.h"
#include "follower.h"
#include "interrupt.h"
#include "memory.h"
#include "page_map.h"
#include "wire.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct file_channel {
    _Atomic uint64_t packets;
    _Atomic uint64_t accepted;   /* bytes of all that was written or punched: data, zero pages and holes */
    _Atomic uint64_t bytes;      /* of data, before compression */
    _Atomic uint64_t pages;      /* touched by payloads; one that two packets touch counts twice */
    _Atomic uint64_t zero_pages; /* sent as zero */
    /* destination, RAM: pages that arrived for the first time, data or zero */
    _Atomic uint64_t first_pages;
    _Atomic uint64_t discarded_bytes; /* in holes; a truncation is none */
    _Atomic uint64_t digest;          /* the sum of the packets' checks */
    /*
     * Of the last packet for this file. Source: guarded by the channel's lock; destination: written by the
     * receiver.
     */
    _Atomic uint64_t last_sequence;
    uint64_t truncation;  /* destination: the last truncation applied */
    _Atomic uint64_t end; /* destination: where the data of this channel ends, as far as it knows */
};

/* Adds to a counter that one thread writes and others read. */
static inline void counter_add(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n,
                          memory_order_relaxed);
}

static inline uint64_t counter_get(const _Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

struct account;
struct barrier;

/* What the channels did for a file, one of them or all. */
struct file_totals {
    uint64_t packets, accepted, bytes, pages, digest, zero_pages, first_pages, discarded_bytes;
};

/* What a file that arrives is charged to. */
struct file_budgets {
    struct budget *memory;  /* its size in bytes */
    struct budget *windows; /* address space for memory_window() */
};

struct file {
    atomic_uint refs;
    /*
     * WIRE_RAM, or a device's number. That of a device which is expected changes once, when it is
     * announced: with the lock held, and before `receiving`. At the source, numbers change at the start.
     */
    uint32_t id;
    uint32_t slot;                /* its place in the migration's list; guarded by migration.lock */
    char name[WIRE_NAME_MAX + 1]; /* written with migration.lock and lock held, read with either */
    struct attributes attributes; /* of a device; guarded by the lock of the migration's attributes */
    /*
     * A device is not in its directory any more. Written with migration.lock held, at the source
     * also with the locks of all its channels: nothing is accepted for it any more.
     */
    atomic_bool removed;
    uint64_t removal; /* source: the id of the message that removes it; guarded by migration.lock */

    /*
     * Set when the number of channels is known, and given up by file_settle(). Whoever works for a channel
     * (receiver, or channel.lock) has it; others look with the lock held.
     */
    struct file_channel *per_channel;
    unsigned channels;
    unsigned first_channel, home_channels; /* the channels that its stripes go round */

    /*
     * Source: the size that a reader of the file would see. Written with the
     * locks of all channels held (truncation) or of one (growth, by
     * compare-and-swap, so that the larger one wins); before `start` under the
     * migration's lock.
     */
    _Atomic uint64_t size;
    /* source, RAM: what was declared before `start`; writes past it are refused. 0: nothing */
    uint64_t declared;
    uint64_t truncations; /* source: how many there were; guarded by the locks of all channels */
    bool made_here;       /* a device that was made before a start, or for a peer to fill; constant */
    unsigned writers;     /* source: open handles that write; guarded by the migration's lock */
    /* source: has got something since it was made, or begun anew with O_TRUNC: it can end; relaxed */
    atomic_bool touched;
    bool announced_open; /* source: whether the destination expects more; guarded by migration.lock */

    /*
     * Destination only. A file that was made here for a peer to fill has none of it until it is
     * announced: `receiving` says that it is there (release), and then stays.
     */
    atomic_bool receiving;
    struct memory memory;
    atomic_bool has_memory; /* release; of a device from its first byte on */
    /* RAM: the memory takes owners and modes; guarded by the lock of the migration's attributes */
    bool settled;
    /*
     * RAM: the pages that have arrived, and those whose memory holds something.
     * A zero page that arrives where nothing is held need not be touched.
     */
    struct page_map received, held;
    _Atomic uint64_t prepared;   /* RAM: the memory of everything before it was there once; relaxed, a hint */
    _Atomic uint64_t intact;     /* no hole has been made before it */
    struct file *next_unburied;  /* removed, and a receiver may still use it; mig-in's */
    struct barrier *end_barrier; /* devices: at which the stream ends; the migration's thread */
    /* RAM: of each stripe, which MEMORY_MAP_UNITs have had memory_map(); the home channel's */
    uint16_t *mapped;
    /* bytes of holes and digests made: what takes long, and shows no other progress; relaxed */
    _Atomic uint64_t work;
    struct file_budgets budgets;
    /* whose it is, with a reference, or NULL; its descriptor is charged to it, and */
    struct account *account;
    uint64_t overhead;          /* bytes for the struct and what each channel has of it */
    pthread_mutex_t lock;       /* guards what follows; a leaf lock, but for file_settle() */
    pthread_cond_t arrived;     /* the frontier moved, the stream ended, or a reader was interrupted */
    unsigned readers;           /* waiting on arrived */
    struct follower *followers; /* who wants to read on, and is told */
    uint64_t followed_from;     /* none of them at an offset before it */
    unsigned handles;           /* open ones */
    bool orphaned;              /* it was removed, and no packet comes for it any more */
    uint64_t charged;           /* bytes of size that the budget has been charged for */
    bool ended;                 /* the writers have closed it: what is there is all, for now */
    bool broken;                /* the migration is over and the stream will never end */
    bool dropped;               /* the memory has been given back: there is nothing to read */
    unsigned users;             /* who look at the memory and the maps, and are no receivers: file_use() */
    bool released;              /* the last of them has given all of it back */
    uint64_t window;            /* bytes of address space that the budget has been charged for */
    struct file_totals past;    /* what is left of per_channel when it is given up */
    uint64_t past_size;
    bool kept;           /* the migration has completed: the backing file is the user's */
    uint32_t *prefix;    /* devices: how much of each stripe has arrived without a gap from its start */
    uint64_t stripes;    /* length of prefix */
    uint64_t frontier;   /* devices: everything before it has arrived */
    uint64_t truncation; /* the newest one seen on any channel */
};

/** file_home - the channel that carries the stripe at @offset */
static inline unsigned file_home(const struct file *file, uint64_t offset)
{
    return file->first_channel + (unsigned)((offset / WIRE_STRIPE_SIZE + file->id) % file->home_channels);
}

/** file_is_home - whether a channel carries anything of a file */
static inline bool file_is_home(const struct file *file, unsigned channel)
{
    return channel >= file->first_channel && channel - file->first_channel < file->home_channels;
}

/** file_home_bytes - how much of [offset, offset + len) a channel carries */
uint64_t file_home_bytes(const struct file *file, unsigned channel, uint64_t offset, uint64_t len);

/** file_new - a file without channels, with one reference; NULL when memory runs out */
struct file *file_new(uint32_t id, const char *name);

/** file_get - another reference */
struct file *file_get(struct file *file);

/** file_put - drop a reference; the last one frees. NULL is fine. */
void file_put(struct file *file);

/** file_name - copy the name as it is now; file.lock is not held. Return: @out. */
const char *file_name(struct file *file, char out[WIRE_NAME_MAX + 1]);

/** file_rename - set the name; the caller holds migration.lock */
void file_rename(struct file *file, const char *name);

/** file_is_removed - whether it is not in its directory any more */
static inline bool file_is_removed(const struct file *file)
{
    return atomic_load_explicit(&file->removed, memory_order_acquire);
}

static inline void cleanup_file(struct file **file)
{
    file_put(*file);
}

/* Drops the variable's reference when it goes out of scope. */
#define CLEANUP_FILE __attribute__((cleanup(cleanup_file)))

/**
 * file_set_channels - make room for what each channel does; once
 * @device_channels: so many of them, the last ones, carry devices alone; 0: all carry everything
 */
int file_set_channels(struct file *file, unsigned channels, unsigned device_channels);

/** file_channel_totals - of one channel; nothing when the file is settled */
struct file_totals file_channel_totals(const struct file *file, unsigned channel);
/** file_totals_add - add up */
void file_totals_add(struct file_totals *sum, const struct file_totals *totals);
/** file_totals - of all channels */
struct file_totals file_totals(const struct file *file);

/**
 * file_settle - the migration is over: keep the sums, and free what is there for each channel
 *
 * Nobody works for a channel any more. At the source the caller holds the locks of all channels.
 */
void file_settle(struct file *file);

/*
 * The destination's side.
 */

/** file_set_id - the number that the source has for a file that was expected */
void file_set_id(struct file *file, uint32_t id);

/** file_is_receiving - whether the destination's part is there */
static inline bool file_is_receiving(const struct file *file)
{
    return atomic_load_explicit(&file->receiving, memory_order_acquire);
}

/**
 * file_receive_account - whose limits the file counts against, from here until it is freed
 *
 * What the file needs without a byte in it is charged at once, the descriptor of its memory when that is
 * made.
 */
int file_receive_account(struct file *file, struct account *account, struct error *err);

/**
 * file_receive_begin - a file will arrive
 * @size: declared; charged to the budget at once
 * @limit: no larger size will be allowed
 * @place, @name: memory_init()'s, for RAM, whose memory is made now
 */
int file_receive_begin(struct file *file, uint64_t size, uint64_t limit, const struct memory_place *place,
                       const char *name, const struct file_budgets *budgets, struct error *err);

/** file_receive_storage - have the memory there before bytes are stored in it */
int file_receive_storage(struct file *file, struct error *err);

/**
 * file_use - keep the memory from being given back while somebody who is no receiver looks at it
 * Return: whether there is any; then file_unuse() follows.
 */
bool file_use(struct file *file);
void file_unuse(struct file *file);

/**
 * file_receive_prepare - have the memory of the next part of RAM there before it arrives
 * Return: whether there is more to prepare. One thread at a time.
 */
bool file_receive_prepare(struct file *file);

/**
 * file_receive_size - note that a channel's data will reach to @end, before it is stored
 * @limit: no file may be larger
 */
int file_receive_size(struct file *file, unsigned channel, uint64_t end, uint64_t limit, struct error *err);

/** file_received - [offset, offset + len) of one stripe is stored; wakes readers */
void file_received(struct file *file, unsigned channel, uint64_t offset, uint64_t len);

/** file_window - memory_window() of RAM whose pages are all held, or prepared and still there; else NULL */
void *file_window(struct file *file, uint64_t offset, size_t len);

/** file_receive_zero - whole pages of one stripe are zero: nothing is done where nothing is held */
int file_receive_zero(struct file *file, unsigned channel, uint64_t offset, uint64_t len, struct error *err);

/** file_receive_discard - a channel's part of a hole */
int file_receive_discard(struct file *file, unsigned channel, uint64_t offset, uint64_t len,
                         struct error *err);

/** file_receive_truncate - a channel's part of truncation number @number to @size */
int file_receive_truncate(struct file *file, unsigned channel, uint64_t size, uint64_t number, uint64_t limit,
                          struct error *err);

/**
 * file_receive_end - the stream has ended; all its data has been applied
 * @counts: of each channel, its last packet then: where more has been applied, the stream goes on. NULL: it
 * does not
 */
void file_receive_end(struct file *file, const uint64_t *counts);

/** file_receive_resume - the stream goes on */
void file_receive_resume(struct file *file);

/**
 * file_receive_over - the migration is over; @broken: readers at the frontier of a stream that has not ended
 * fail
 */
void file_receive_over(struct file *file, bool broken);

/** file_receive_check - memory_check(), if there is any; nobody stores anything meanwhile */
int file_receive_check(struct file *file, struct error *err);

/** file_receive_finish - everything has arrived: give the memory its size, and finish it */
int file_receive_finish(struct file *file, struct error *err);

/** file_receive_keep - the migration has completed: a backing file stays where it is */
void file_receive_keep(struct file *file);

/**
 * file_receive_remove - the file has been removed, and nobody writes to it any more
 *
 * Its memory is given back when the last handle is closed. Until then it can be read; at the frontier of
 * a stream that has not ended, -ESTALE.
 */
void file_receive_remove(struct file *file);

/** file_open_reader, file_close_reader - a handle that can read came or went; -ESTALE: it is removed */
int file_open_reader(struct file *file);
void file_close_reader(struct file *file);

/** file_receive_unlink - the user has removed the migration: remove the backing file */
void file_receive_unlink(struct file *file);

/** file_receive_blocks - what stat(2) says of the memory, in blocks of 512 bytes */
int64_t file_receive_blocks(struct file *file);

/**
 * file_receive_drop - the migration has failed: give everything back; nobody writes any more
 *
 * The last of those who look at the memory closes it. Readers get -ECONNRESET.
 */
void file_receive_drop(struct file *file);

/**
 * file_receive_discharge - the budget need not count it any more
 *
 * Its memory goes when the last user of it closes it.
 */
void file_receive_discharge(struct file *file);

/** file_received_size - the size as far as it has arrived; exact after a barrier */
uint64_t file_received_size(const struct file *file);

/**
 * file_read - read what has arrived
 * @nowait: -EAGAIN at the frontier of a stream that has not ended, instead of waiting
 *
 * The RAM image is read as it is. Return: the count, 0 at the end, -EAGAIN,
 * -EINTR, -ECONNRESET when the stream will never end, or another negative errno.
 */
ssize_t file_read(struct file *file, uint64_t offset, void *buf, size_t len, bool nowait,
                  const struct interrupt *interrupt);

/**
 * file_seek - lseek(2)'s SEEK_DATA and SEEK_HOLE over what has arrived
 * @data: the next byte that is held, or the next hole
 *
 * Past the frontier of a stream that has not ended everything is data.
 * Return: the offset, -ENXIO, or another negative errno.
 */
int64_t file_seek(struct file *file, uint64_t offset, bool data);

/**
 * file_follow - be told once, with file.lock held, that file_read() at @follower->offset would not wait
 * Return: whether @follower waits now; if not, it would not wait already.
 */
bool file_follow(struct file *file, struct follower *follower);

/** file_unfollow - leave; whether @follower had not been told: if so, it will not be */
bool file_unfollow(struct file *file, struct follower *follower);

/** file_readable - whether file_read() at @offset would not wait */
bool file_readable(struct file *file, uint64_t offset);

/** file_digest - the digest of what has arrived; 0 or a negative errno */
int file_digest(struct file *file, const struct interrupt *interrupt, uint8_t out[DIGEST_SIZE]);

/** file_digest_pieces - digest_pieces() of what has arrived; -ERANGE when it has not so many */
int file_digest_pieces(struct file *file, uint64_t first, uint64_t count, uint8_t *out);

/** file_received_map_size - bytes of the map of received pages: a bit for each page, in whole 64-bit words */
uint64_t file_received_map_size(const struct file *file);

/** file_read_received_map - read it; the count */
size_t file_read_received_map(struct file *file, uint64_t offset, void *buf, size_t len);

/** file_kick - make the readers look at their interrupts */
void file_kick(struct file *file);

#endif
