/* SPDX-License-Identifier: Apache-2.0 */
/* A file in a user's directory: which one makes way, and for whom. */
#include "backing.h"
#include "check.h"
#include "scratch.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/file.h>
#include <sys/stat.h>

static char path[128];

static void init(void)
{
    scratch_make();
    snprintf(path, sizeof(path), "%s/vm-1", scratch);
}

TestSuite(backing, .init = init, .fini = scratch_remove);

static unsigned mode_of(void)
{
    struct stat st;

    cr_assert(zero(int, lstat(path, &st)));
    return st.st_mode & 07777;
}

static void put(mode_t mode)
{
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

    cr_assert(eq(long, write(fd, "precious", 8), 8));
    cr_assert(zero(int, fchmod(fd, mode)));
    close(fd);
}

static void is_precious(void)
{
    char got[9] = "";
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    cr_expect(eq(long, read(fd, got, 8), 8));
    cr_expect(eq(str, got, "precious"));
    close(fd);
}

Test(backing, life)
{
    struct error err = {0};

    int fd = backing_make(path, &err);
    cr_assert(ge(int, fd, 0), "%s", err.message);
    cr_expect(eq(uint, mode_of(), 01600));
    CHECK_FAILS(backing_make(path, &err), CAUSE_STATE);
    cr_expect(not(zero(ptr, strstr(err.message, path))), "it says which: %s", err.message);
    cr_assert(zero(int, fchmod(fd, 01640)));
    CHECK_OK(backing_finish(fd, path, &err));
    cr_expect(eq(uint, mode_of(), 0640));
    CHECK_FAILS(backing_make(path, &err), CAUSE_EXISTS);
    cr_expect(not(zero(ptr, strstr(err.message, path))), "it says which: %s", err.message);
    int own = open(path, O_RDWR | O_CLOEXEC);
    cr_expect(zero(int, flock(own, LOCK_EX | LOCK_NB)), "the user's to lock");
    close(own);
    close(fd);
    CHECK_FAILS(backing_make(path, &err), CAUSE_EXISTS);
}

Test(backing, leftover)
{
    struct error err = {0};
    char got[9] = "";

    put(01640);
    int old = open(path, O_RDONLY | O_CLOEXEC);
    int fd = backing_make(path, &err);
    cr_assert(ge(int, fd, 0), "%s", err.message);
    cr_expect(eq(uint, mode_of(), 01600));
    cr_expect(zero(long, read(fd, got, 8)), "a new one");
    cr_expect(eq(long, read(old, got, 8), 8), "who has the old one keeps it");
    close(old);
    close(fd);
    /* As a daemon does that is killed. */
    fd = backing_make(path, &err);
    cr_expect(ge(int, fd, 0), "%s", err.message);
    close(fd);
}

Test(backing, what_is_no_leftover)
{
    struct error err = {0};
    char other[160];

    put(0600);
    CHECK_FAILS(backing_make(path, &err), CAUSE_EXISTS);
    is_precious();

    /* Somebody else has a lock. */
    chmod(path, 01600);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    flock(fd, LOCK_SH);
    CHECK_FAILS(backing_make(path, &err), CAUSE_STATE);
    is_precious();
    close(fd);

    /* It has another name, too, or is a link itself. */
    snprintf(other, sizeof(other), "%s/other", scratch);
    cr_assert(zero(int, link(path, other)));
    CHECK_FAILS(backing_make(path, &err), CAUSE_EXISTS);
    is_precious();
    unlink(path);
    cr_assert(zero(int, symlink(other, path)));
    CHECK_FAILS(backing_make(path, &err), CAUSE_EXISTS);
    is_precious();
    unlink(path);

    cr_assert(zero(int, mkfifo(path, 0600)));
    chmod(path, 01600);
    CHECK_FAILS(backing_make(path, &err), CAUSE_EXISTS);
    unlink(path);
    cr_assert(zero(int, mkdir(path, 01700)));
    CHECK_FAILS(backing_make(path, &err), CAUSE_EXISTS);
    rmdir(path);

    if (geteuid() == 0) {
        put(01600);
        cr_assert(zero(int, chmod(scratch, 0777)));
        cr_assert(zero(int, seteuid(65534)));
        CHECK_FAILS(backing_make(path, &err), CAUSE_EXISTS);
        cr_assert(zero(int, seteuid(0)));
        is_precious();
    }
}

#define THREADS 8
#define ROUNDS  50

static atomic_uint winners, nameless;
static pthread_barrier_t together;

static void *want(void *arg)
{
    for (unsigned i = 0; i < ROUNDS; i++) {
        struct error err = {0};
        pthread_barrier_wait(&together);
        int fd = backing_make(path, &err);
        if (fd >= 0)
            atomic_fetch_add(&winners, 1);
        else if (err.cause != CAUSE_STATE)
            *(struct error *)arg = err;
        pthread_barrier_wait(&together);
        if (fd >= 0 && !backing_has_name(fd, path))
            atomic_fetch_add(&nameless, 1);
        if (fd >= 0)
            close(fd);
    }
    return NULL;
}

/* All want the name of a leftover at the same time. Whoever gives up has seen one that goes on, so each time one gets it. */
Test(backing, one_gets_it)
{
    pthread_t threads[THREADS];
    static struct error errors[THREADS];

    put(01600);
    pthread_barrier_init(&together, NULL, THREADS);
    for (unsigned i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, want, &errors[i]);
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    for (unsigned i = 0; i < THREADS; i++)
        cr_expect(eq(int, (int)errors[i].cause, 0), "%s", errors[i].message);
    cr_expect(eq(uint, winners, ROUNDS));
    cr_expect(zero(uint, nameless), "whoever gets it has the name");
}
