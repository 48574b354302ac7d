/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One file of a migration, the RAM or a device: what it is called, whose it is, and what has been counted
 * of it. Its bytes at the destination are an image (image.h); those of a device are a stream, too
 * (stream.h).
 *
 * What each channel did for a file is kept per channel, so that the data path shares nothing:
 * at the source file_channel is guarded by the channel's lock, at the
 * destination it belongs to the channel's receiver. Others read the counters,
 * which are therefore atomics, relaxed; a thread that needs them exact has passed a
 * barrier first.
 */
#ifndef MIGFS_FILE_H
#define MIGFS_FILE_H

#include "attributes.h"
#include "counter.h"
#include "homes.h"
#include "image.h"
#include "stream.h"
#include "wire.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct file_channel {
    _Atomic uint64_t packets;
    /* bytes of all that was written or punched, data, zero pages and holes: accepted here, or applied */
    _Atomic uint64_t covered;
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
    uint64_t truncation; /* destination: the last truncation applied */
};

struct barrier;

/* What the channels did for a file, one of them or all. */
struct file_totals {
    uint64_t packets, covered, bytes, pages, digest, zero_pages, first_pages, discarded_bytes;
};

struct file {
    atomic_uint refs;
    /*
     * WIRE_RAM, or a device's number. That of a device which is expected changes once, when it is
     * announced: with the lock held, and before `image` begins. At the source, numbers change at the start.
     */
    uint32_t id;
    bool is_ram;                  /* constant */
    uint32_t slot;                /* its place in the migration's list; guarded by migration.lock */
    char name[WIRE_NAME_SIZE];    /* written with migration.lock and lock held, read with either */
    struct attributes attributes; /* of a device; guarded by the lock of the migration's attributes */
    /*
     * A device is not in its directory any more. Written with migration.lock held, at the source
     * also with the locks of all its channels: nothing is accepted for it any more.
     */
    atomic_bool removed;
    uint64_t removal; /* source: the id of the message that removes it; guarded by migration.lock */

    /*
     * Set when the number of channels is known, and given up by file_settle(). A thread that works for a
     * channel (receiver, or channel.lock) has it; others look with the lock held.
     */
    struct file_channel *per_channel;
    unsigned channels;
    struct homes homes; /* set with per_channel, and with the id */

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
     * Destination. A file that was made here for a peer to fill has none of it until it is announced: then
     * the image begins.
     */
    struct image image;
    struct stream stream; /* of a device */
    /* RAM: the memory takes owners and modes; guarded by the lock of the migration's attributes */
    bool settled;
    struct file *next_unburied;  /* removed, and a receiver may still use it; mig-in's */
    struct barrier *end_barrier; /* devices: at which the stream ends; the migration's thread */

    pthread_mutex_t lock;    /* guards what follows; a leaf lock, but for file_settle() */
    unsigned handles;        /* open ones */
    bool orphaned;           /* it was removed, and no packet comes for it any more */
    struct file_totals past; /* what is left of per_channel when it is given up */
};

/** file_home - the channel that carries the stripe at @offset */
static inline unsigned file_home(const struct file *file, uint64_t offset)
{
    return homes_of(&file->homes, offset);
}

/** file_is_home - whether a channel carries anything of a file */
static inline bool file_is_home(const struct file *file, unsigned channel)
{
    return homes_has(&file->homes, channel);
}

/** file_home_bytes - how much of [offset, offset + len) a channel carries */
static inline uint64_t file_home_bytes(const struct file *file, unsigned channel, uint64_t offset,
                                       uint64_t len)
{
    return homes_bytes(&file->homes, channel, offset, len);
}

/** file_new - a file without channels, with one reference; NULL when memory runs out */
struct file *file_new(uint32_t id, const char *name);

/** file_get - another reference */
struct file *file_get(struct file *file);

/** file_put - drop a reference; the last one frees. NULL is fine. */
void file_put(struct file *file);

/** file_name - copy the name as it is now; file.lock is not held. Return: @out. */
const char *file_name(struct file *file, char out[WIRE_NAME_SIZE]);

/** file_rename - set the name; the caller holds migration.lock */
void file_rename(struct file *file, const char *name);

/** file_is_removed - whether it is not in its directory any more */
static inline bool file_is_removed(const struct file *file)
{
    return atomic_load_explicit(&file->removed, memory_order_acquire);
}

/** file_attributes - of a device, for those of attributes.h, with the migration's table */
static inline struct attributes *file_attributes(struct file *file)
{
    return &file->attributes;
}

/** file_sent_size - source: the size that a reader of the file would see */
static inline uint64_t file_sent_size(const struct file *file)
{
    return atomic_load(&file->size);
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
 * file_settle - the migration is over: keep the sums and the size, and free what is there for each channel
 *
 * No thread works for a channel any more. At the source the caller holds the locks of all channels.
 */
void file_settle(struct file *file);

/*
 * The destination's side: what is asked of the image, or of the stream, and counted.
 */

/** file_set_id - the number that the source has for a file that was expected */
void file_set_id(struct file *file, uint32_t id);

/** file_is_receiving - whether the destination's part is there */
static inline bool file_is_receiving(const struct file *file)
{
    return image_is_begun(&file->image);
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
                       const char *name, const struct image_budgets *budgets, struct error *err);

/** file_receive_storage - image_reserve() */
int file_receive_storage(struct file *file, struct error *err);

/**
 * file_receive_size - note that a channel's data will reach to @end, before it is stored
 * @limit: no file may be larger
 */
int file_receive_size(struct file *file, unsigned channel, uint64_t end, uint64_t limit, struct error *err);

/** file_received - [offset, offset + len) of one stripe is stored; wakes readers */
void file_received(struct file *file, unsigned channel, uint64_t offset, uint64_t len);

/** file_receive_zero - whole pages of one stripe are zero: image_zero() */
int file_receive_zero(struct file *file, unsigned channel, uint64_t offset, uint64_t len, struct error *err);

/** file_receive_discard - a channel's part of a hole: image_discard() */
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
static inline void file_receive_resume(struct file *file)
{
    stream_resume(&file->stream);
}

/** file_receive_over - the migration is over; @broken: stream_over() */
static inline void file_receive_over(struct file *file, bool broken)
{
    stream_over(&file->stream, broken);
}

/** file_receive_check - image_check(); nobody stores anything meanwhile */
int file_receive_check(struct file *file, struct error *err);

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

/**
 * file_receive_drop - the migration has failed: give everything back; nobody writes any more
 *
 * The last of those who look at the memory closes it. Readers get -ECONNRESET.
 */
void file_receive_drop(struct file *file);

/*
 * What users ask for.
 */

/** file_received_size - image_size() */
static inline uint64_t file_received_size(const struct file *file)
{
    return image_size(&file->image);
}

/** file_receive_blocks - image_blocks() */
static inline int64_t file_receive_blocks(struct file *file)
{
    return image_blocks(&file->image);
}

/**
 * file_read - read what has arrived: stream_read(), or of RAM, which never waits, image_read()
 *
 * Return: the count, 0 at the end, -EAGAIN (@nowait), -EINTR, -ECONNRESET when nothing more comes of it, or
 * another negative errno.
 */
ssize_t file_read(struct file *file, uint64_t offset, void *buf, size_t len, bool nowait,
                  const struct interrupt *interrupt);

/** file_seek - stream_seek(), or image_seek() */
int64_t file_seek(struct file *file, uint64_t offset, bool data);

/** file_follow - stream_follow(); RAM is read as it is, and never waited for */
bool file_follow(struct file *file, struct follower *follower);

/** file_unfollow - stream_unfollow() */
static inline bool file_unfollow(struct file *file, struct follower *follower)
{
    return stream_unfollow(&file->stream, follower);
}

/** file_readable - whether file_read() at @offset would not wait */
bool file_readable(struct file *file, uint64_t offset);

/** file_received_map_size, file_read_received_map - image_map_size(), image_read_map() */
static inline uint64_t file_received_map_size(const struct file *file)
{
    return image_map_size(&file->image);
}

static inline size_t file_read_received_map(struct file *file, uint64_t offset, void *buf, size_t len)
{
    return image_read_map(&file->image, offset, buf, len);
}

/** file_kick - make the readers look at their interrupts */
static inline void file_kick(struct file *file)
{
    stream_kick(&file->stream);
}

#endif
