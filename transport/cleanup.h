/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scope-bound ownership: a variable marked with one of these releases what it
 * holds when it goes out of scope; steal_fd() and steal_ptr() hand it over.
 */
#ifndef MIGFS_CLEANUP_H
#define MIGFS_CLEANUP_H

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

static inline void cleanup_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
}

static inline void cleanup_free(void *p)
{
    free(*(void **)p);
}

static inline void cleanup_unlock(pthread_mutex_t **lock)
{
    if (*lock)
        pthread_mutex_unlock(*lock);
}

static inline pthread_mutex_t *lock_and_return(pthread_mutex_t *lock)
{
    pthread_mutex_lock(lock);
    return lock;
}

static inline int steal_fd(int *fd)
{
    int stolen = *fd;
    *fd = -1;
    return stolen;
}

static inline void *steal_ptr_(void *pp)
{
    void *stolen = *(void **)pp;
    *(void **)pp = NULL;
    return stolen;
}

#define steal_ptr(pp) ((__typeof__(*(pp)))steal_ptr_(pp))

#define CLEANUP_FD   __attribute__((cleanup(cleanup_fd)))
#define CLEANUP_FREE __attribute__((cleanup(cleanup_free)))

/* Holds the mutex until the end of the enclosing scope. */
#define SCOPED_LOCK(m)                                                                                       \
    pthread_mutex_t *scoped_lock_ __attribute__((cleanup(cleanup_unlock), unused)) = lock_and_return(m)

#endif
