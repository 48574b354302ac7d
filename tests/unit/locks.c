/* SPDX-License-Identifier: Apache-2.0 */
/*
 * No thread unlocks a mutex that it does not hold. glibc lets that pass for a mutex of the usual kind, and
 * what comes of it is seen once in a thousand runs; here it ends the test. Linked into every unit test, in
 * place of libc's function.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int (*unlock)(pthread_mutex_t *mutex);

static __attribute__((constructor)) void find_unlock(void)
{
    *(void **)&unlock = dlsym(RTLD_NEXT, "pthread_mutex_unlock");
}

int pthread_mutex_unlock(pthread_mutex_t *mutex)
{
    if (!unlock)
        find_unlock();
#ifdef __GLIBC__
    if (mutex->__data.__kind == PTHREAD_MUTEX_NORMAL && mutex->__data.__owner != gettid()) {
        fprintf(stderr, "a thread unlocks a mutex that it does not hold\n");
        abort();
    }
#endif
    return unlock(mutex);
}
