/* SPDX-License-Identifier: Apache-2.0 */
/* Memory that can go away; see guard.h. */
#include "guard.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <ucontext.h>

static _Thread_local sigjmp_buf *guard; /* of the guard_call() that runs in this thread */

static void on_sigbus(int signal, siginfo_t *info, void *context)
{
    const ucontext_t *interrupted = context;

    (void)info;
    if (guard) {
        /* Whatever is blocked in here (a sanitizer blocks everything) stays blocked after a jump. */
        pthread_sigmask(SIG_SETMASK, &interrupted->uc_sigmask, NULL);
        siglongjmp(*guard, 1);
    }
    /* Not ours: the default action, when the access is tried again. */
    struct sigaction fatal = {.sa_handler = SIG_DFL};
    sigaction(signal, &fatal, NULL);
}

void guard_setup(void)
{
    struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO};

    sigaction(SIGBUS, &action, NULL);
}

int guard_call(void (*use)(void *arg), void *arg)
{
    sigjmp_buf here;

    if (sigsetjmp(here, 0)) {
        guard = NULL;
        return -EFAULT;
    }
    guard = &here;
    use(arg);
    guard = NULL;
    return 0;
}

struct copy {
    void *to;
    const void *from;
    size_t len;
};

static void copy(void *arg)
{
    const struct copy *c = arg;

    memcpy(c->to, c->from, c->len);
}

int guard_copy(void *to, const void *from, size_t len)
{
    struct copy c = {to, from, len};

    return guard_call(copy, &c);
}
