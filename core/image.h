/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory with its maps: what has come of a file's bytes. All that stores bytes in the memory, clears them,
 * gives pages back or says what is there goes through here; a way that puts bytes into the memory by itself
 * (recv(2) into a window, the transport into the descriptor) asks for the place first, and says afterwards
 * what has arrived.
 *
 * An image of RAM has its memory from the beginning, and two maps, of the pages that have arrived and of
 * those whose memory holds something. One of a device's bytes has no maps, and its memory is made with its
 * first byte.
 *
 * Several channels fill an image at once, each its own stripes (homes.h): what is said of a range
 * is said by the home channel of its stripe. A channel has its own view of where the data ends, since it may
 * apply a truncation while another one still stores data from before it; a truncation travels on
 * all of them and cuts each view in turn. The size is the largest view: once all channels have
 * applied everything, it is the source's.
 *
 * Sizes are charged before anything is stored.
 */
#ifndef MIGFS_IMAGE_H
#define MIGFS_IMAGE_H

#include "account.h"
#include "budget.h"
#include "counter.h"
#include "digest.h"
#include "homes.h"
#include "interrupt.h"
#include "memory.h"
#include "page_map.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* What an image is charged to. */
struct image_budgets {
    struct budget *memory;  /* its size in bytes */
    struct budget *windows; /* address space for memory_window() */
};

/* What an image begins with. */
struct image_form {
    bool is_ram;
    uint64_t size;  /* declared; charged at once */
    uint64_t limit; /* it will not be larger */
    /* memory_init()'s, for RAM */
    const struct memory_place *place;
    const char *name;
    struct image_budgets budgets;
    struct homes homes;
};

struct image {
    /* Whether what follows up to `budgets` is there; release. Before that it has no bytes, and none come. */
    atomic_bool begun;
    bool is_ram;
    struct homes homes;
    atomic_bool has_memory; /* release; of a device from its first byte on */
    struct memory memory;
    struct page_map received, held; /* RAM; a word of them is written for its home channel */
    uint16_t *mapped; /* RAM: of each stripe, which MEMORY_MAP_UNITs have had memory_map(); its home's */
    _Atomic uint64_t
        preallocated;        /* RAM: the memory of everything before it was there once; relaxed, a hint */
    _Atomic uint64_t intact; /* no hole has been made before it */
    /*
     * RAM: ranges that somebody else stores into; grows with hole_lock held for writing. While there are any,
     * pages are cleared and not given back.
     */
    atomic_uint exposed;
    atomic_bool was_exposed;    /* once; set before the source is told */
    pthread_rwlock_t hole_lock; /* held for reading while pages are given back; a leaf */
    /* bytes of holes and digests made: what takes long, and shows no other progress; relaxed */
    _Atomic uint64_t work;
    struct image_budgets budgets;
    /* whose it is, with a reference, or NULL; its descriptor is charged to it, and `overhead`; constant */
    struct account *account;
    uint64_t overhead; /* set before it begins, then guarded by the lock */

    pthread_mutex_t lock; /* guards what follows, and that nothing of the above goes; a leaf */
    uint64_t charged;     /* bytes of size that the budget has been charged for */
    uint64_t window; /* bytes of address space that the budget has been charged for; the channels read it */
    /*
     * Where the data of each home channel ends, as far as it knows; written for that channel, relaxed. The
     * array goes with the lock held, when no channel is left.
     */
    _Atomic uint64_t *ends;
    uint64_t past_size; /* what was left of them */
    unsigned users;     /* threads that look at it and work for no channel: image_use() */
    bool dropped;       /* the memory has been given back: there is nothing to read */
    bool kept;          /* the backing file is the user's */
};

/** image_init - nothing yet */
void image_init(struct image *image);
void image_fini(struct image *image);

/**
 * image_account - whose limits it counts against, from here until it is given back
 * @overhead: bytes for what embeds it, which are charged already and given back with it
 *
 * Before it begins. The descriptor of the memory is charged when that is made.
 */
void image_account(struct image *image, struct account *account, uint64_t overhead);

/** image_begin - bytes will come; CAUSE_QUOTA: not so many */
int image_begin(struct image *image, const struct image_form *form, struct error *err);

/** image_is_begun - whether it has begun */
static inline bool image_is_begun(const struct image *image)
{
    return atomic_load_explicit(&image->begun, memory_order_acquire);
}

/** image_settle - no channel is left: keep the size, and @overhead bytes of overhead */
void image_settle(struct image *image, uint64_t overhead);

/*
 * For a channel: one thread at a time for each.
 */

/** image_end - where the data of a home channel ends */
static inline uint64_t image_end(const struct image *image, unsigned channel)
{
    return counter_get(&image->ends[channel - image->homes.first]);
}

/** image_grow - note that a home channel's data will reach to @end, before it is stored; CAUSE_QUOTA */
int image_grow(struct image *image, unsigned channel, uint64_t end, struct error *err);

/** image_reserve - have the memory there before bytes are stored in it */
int image_reserve(struct image *image, const char *name, struct error *err);

/** image_has_memory - whether it is there */
static inline bool image_has_memory(const struct image *image)
{
    return atomic_load_explicit(&image->has_memory, memory_order_acquire);
}

/** image_write - memory_write() */
static inline int image_write(struct image *image, uint64_t offset, const void *buf, size_t len,
                              struct error *err)
{
    return memory_write(&image->memory, offset, buf, len, err);
}

/**
 * image_window - where a range of RAM whose pages are all held, or preallocated and still there, can be
 * stored into; else NULL: image_write()
 *
 * memory_window() says how; the range is within one stripe.
 */
void *image_window(struct image *image, uint64_t offset, size_t len);

/**
 * image_pages - the same for few pages, also those that are not held; who stores there may find no memory
 *
 * A fault for each page costs less than pwrite(2) for each, during which other channels wait.
 */
void *image_pages(struct image *image, uint64_t offset, size_t len);

/** image_descriptor - where others may store bytes, which they tell with image_stored(); negative: nowhere */
static inline int image_descriptor(const struct image *image)
{
    return image->memory.block ? -1 : image->memory.fd;
}

static inline void image_stored(struct image *image, uint64_t end)
{
    memory_stored(&image->memory, end);
}

/**
 * image_arrived - [offset, offset + len) of one stripe is stored
 * Return: how many pages of RAM arrived for the first time.
 */
uint64_t image_arrived(struct image *image, uint64_t offset, uint64_t len);

/**
 * image_zero - whole pages of one stripe of RAM are zero: nothing is done where nothing is held
 * @first: set to how many of them arrived for the first time
 */
int image_zero(struct image *image, uint64_t offset, uint64_t len, uint64_t *first, struct error *err);

/** image_discard - a channel's part of a hole; what reaches past all that is stored is no work */
int image_discard(struct image *image, unsigned channel, uint64_t offset, uint64_t len, struct error *err);

/** image_truncate - a channel's part of a truncation to @size, which image_grow() has been asked for */
int image_truncate(struct image *image, unsigned channel, uint64_t size, struct error *err);

/** image_is_exposed - whether some of it is: somebody else may store into it now */
static inline bool image_is_exposed(const struct image *image)
{
    return atomic_load(&image->exposed);
}

/**
 * image_was_exposed - whether some of it ever was: the bytes of a packet can be in their place already
 *
 * What was placed is withdrawn when it is there, and the headers that belong to it may come later.
 */
static inline bool image_was_exposed(const struct image *image)
{
    return atomic_load(&image->was_exposed);
}

/** image_exposed - where [offset, offset + len), which has been exposed, is mapped; NULL: it was not */
static inline void *image_exposed(struct image *image, uint64_t offset, size_t len)
{
    return memory_window(&image->memory, offset, len);
}

/**
 * image_preallocate - have the memory of the next part of RAM there before it arrives
 * Return: whether there is more to do. One thread at a time.
 */
bool image_preallocate(struct image *image);

/*
 * For all others.
 */

/** image_size - as far as it has arrived; exact after a barrier */
uint64_t image_size(const struct image *image);

/**
 * image_use - keep the memory from being given back while a thread that works for no channel looks at it
 * Return: whether there is any; then image_unuse() follows.
 */
bool image_use(struct image *image);
void image_unuse(struct image *image);

/**
 * image_expose - have the memory of a part of RAM there, and let it be stored into from outside
 * @limit: the size that it may have
 *
 * Until image_unexpose(), called as often, no page of the image is given back. Return: where it is mapped;
 * NULL: that cannot be.
 */
void *image_expose(struct image *image, uint64_t offset, uint64_t len, uint64_t limit);
void image_unexpose(struct image *image);

/** image_readable - how many of @len bytes at @offset there are; 0 past the end, -ECONNRESET: all is dropped
 */
ssize_t image_readable(const struct image *image, uint64_t offset, size_t len);

/** image_read - read what there is; what was never stored reads as zeros. @len or a negative errno. */
ssize_t image_read(struct image *image, uint64_t offset, void *buf, size_t len);

/**
 * image_seek - lseek(2)'s SEEK_DATA and SEEK_HOLE over what is held
 * @data: the next byte that is held, or the next hole
 * Return: the offset, -ENXIO, or another negative errno.
 */
int64_t image_seek(struct image *image, uint64_t offset, bool data);

/** image_digest - the digest of what is there; 0 or a negative errno */
int image_digest(struct image *image, const struct interrupt *interrupt, uint8_t out[DIGEST_SIZE]);

/** image_digest_pieces - digest_pieces() of what is there; -ERANGE when it has not so many */
int image_digest_pieces(struct image *image, uint64_t first, uint64_t count, uint8_t *out);

/** image_map_size - bytes of the map of received pages: a bit for each page, in whole 64-bit words */
uint64_t image_map_size(const struct image *image);

/** image_read_map - read it; the count */
size_t image_read_map(struct image *image, uint64_t offset, void *buf, size_t len);

/** image_blocks - what stat(2) says of the memory, in blocks of 512 bytes */
int64_t image_blocks(struct image *image);

/** image_path - where the memory can be opened; empty: nowhere */
void image_path(struct image *image, char *out, size_t size);

/** image_own - memory_own() of RAM, if it has its memory */
int image_own(struct image *image, uid_t uid, gid_t gid, mode_t mode, struct error *err);

/*
 * Ends. No channel stores anything meanwhile.
 */

/** image_check - memory_check(), if there is any */
int image_check(struct image *image, struct error *err);

/** image_finish - everything has arrived: give the memory its size, and finish it */
int image_finish(struct image *image, struct error *err);

/** image_keep - a backing file stays where it is */
void image_keep(struct image *image);

/** image_unlink - the backing file goes */
void image_unlink(struct image *image);

/** image_discharge - the budget need not count its size any more; it goes when its last user closes it */
void image_discharge(struct image *image);

/** image_drop - give everything back: the bytes now, the rest when the last user leaves */
void image_drop(struct image *image);

#endif
