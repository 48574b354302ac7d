/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The workers; see loop.h.
 *
 * All read the session's descriptor, which blocks and wakes one of them for a
 * request: the one that has slept for the longest time. A worker that takes the last
 * idle one's place makes a new one before it serves its request, and one that finds too
 * many idle ends, so that there are as many as operations that block at a time.
 *
 * libfuse's own loop tells nobody that the connection has ended while a worker
 * is blocked in an operation. A thread that polls the descriptor for that is
 * woken by each request.
 *
 * Locks: loop.lock guards the list of workers, and nothing is called with it
 * held but pthread_kill() and pthread_create(). A worker that ends joins the one
 * that ended before it, and loop_stop() the last one.
 */
#include "loop.h"
#include "cleanup.h"
#include "clock.h"
#include "transport.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#define WORKERS_SPARE 8  /* that do not wait, */
#define WORKERS_FEW   32 /* when more than this do */
#define WORKERS_IDLE  16
#define KICK_MS       20
#define PATIENCE      256 /* requests in pipes without one that is spliced, before memory is used again */

#define HUGE_PAGE (2u << 20)
#define LARGE     (LOOP_WRITE_MAX / 4) /* a request that shows that a huge page pays */
/* slots for LOOP_WRITE_MAX bytes, which need not begin with a page, and a header */
#define PIPE_SIZE    (2u << 20)
#define WRITE_HEADER (sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in))

struct worker {
    struct loop *loop;
    pthread_t thread;
    struct worker *prev, *next;
    char *mapping;
    /*
     * Where the data of a write is read to, its header just before it. It begins with a page: from
     * an aligned writer's pages, the kernel then copies each into one of ours.
     */
    char *data;
    bool huge;   /* the data is in a huge page, if the kernel had one */
    int pipe[2]; /* for requests that may be spliced; -1: there is none yet */
};

struct loop {
    struct fuse_session *se;
    int ended_fd;
    atomic_uint idle; /* workers that wait for a request, or are about to */
    atomic_bool stopping;
    atomic_bool pipes;     /* requests are to come in pipes */
    atomic_uint unspliced; /* that came in pipes since the last write that was spliced */
    atomic_int code;       /* why the connection was lost */

    pthread_mutex_t lock;
    pthread_cond_t gone; /* a worker has left the list */
    struct worker *workers;
    atomic_uint count;       /* written with the lock held */
    struct worker *finished; /* has left the list, and is to be joined */
};

#define BUFFER_SIZE (WRITE_HEADER + LOOP_WRITE_MAX)
/* in it, a huge page and the page before it; the rest is never touched */
#define MAPPING_SIZE (2 * HUGE_PAGE)

static_assert(LOOP_WRITE_MAX <= HUGE_PAGE, "the data of a write is in one huge page");

static _Thread_local struct worker *current;

static void close_pipe(int pipe[2])
{
    if (pipe[0] >= 0) {
        close(pipe[0]);
        close(pipe[1]);
    }
    pipe[0] = pipe[1] = -1;
}

/* Whether a large enough one could be had. */
static bool open_pipe(int pipe[2])
{
    if (pipe2(pipe, O_CLOEXEC | O_NONBLOCK) < 0)
        return false;
    if (fcntl(pipe[0], F_SETPIPE_SZ, PIPE_SIZE) >= 0)
        return true;
    close_pipe(pipe);
    return false;
}

bool loop_can_splice(void)
{
    int pipe[2];
    bool can = open_pipe(pipe);

    if (can)
        close_pipe(pipe);
    return can;
}

void loop_prefer_pipe(bool prefer)
{
    struct loop *loop = current->loop;

    if (atomic_load_explicit(&loop->pipes, memory_order_relaxed) != prefer)
        atomic_store_explicit(&loop->pipes, prefer, memory_order_relaxed);
    if (prefer)
        atomic_store_explicit(&loop->unspliced, 0, memory_order_relaxed);
}

void *loop_buffer(void)
{
    return current->data;
}

static void worker_free(struct worker *worker)
{
    if (!worker)
        return;
    close_pipe(worker->pipe);
    transport_memory_remove(worker->data);
    munmap(worker->mapping, MAPPING_SIZE);
    free(worker);
}

static struct worker *worker_new(struct loop *loop)
{
    struct worker *worker = calloc(1, sizeof(*worker));

    if (!worker)
        return NULL;
    worker->loop = loop;
    worker->pipe[0] = worker->pipe[1] = -1;
    worker->mapping =
        mmap(NULL, MAPPING_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (worker->mapping == MAP_FAILED) {
        free(worker);
        return NULL;
    }
    worker->data = worker->mapping + HUGE_PAGE - (uintptr_t)worker->mapping % HUGE_PAGE;
    /* If not, what is written is copied once more where the card could have taken it from here. */
    transport_memory_add(worker->data, LOOP_WRITE_MAX);
    return worker;
}

/*
 * For each page of data that is read, the kernel looks up the page it goes to, and
 * marks it: faster within a huge page. A daemon that has little to do needs none.
 */
static void use_huge_page(struct worker *worker)
{
    worker->huge = true;
    if (madvise(worker->data, HUGE_PAGE, MADV_HUGEPAGE) < 0)
        return;
    /* The small pages that are in its place go, and are not to be sent from any more. */
    transport_memory_remove(worker->data);
    madvise(worker->data, HUGE_PAGE, MADV_DONTNEED);
    transport_memory_add(worker->data, LOOP_WRITE_MAX);
}

static void worker_join(struct worker *worker)
{
    if (worker)
        pthread_join(worker->thread, NULL);
    worker_free(worker);
}

static void *run_worker(void *arg);

/* Called with the lock held. */
static int add_worker(struct loop *loop)
{
    struct worker *worker = worker_new(loop);

    if (!worker)
        return -ENOMEM;
    atomic_fetch_add(&loop->idle, 1);
    int code = pthread_create(&worker->thread, NULL, run_worker, worker);
    if (code) {
        atomic_fetch_sub(&loop->idle, 1);
        worker_free(worker);
        return -code;
    }
    worker->next = loop->workers;
    if (worker->next)
        worker->next->prev = worker;
    loop->workers = worker;
    loop->count++;
    return 0;
}

/* Nobody waits for requests any more: for want of memory or threads, whoever is ready first will. */
static void add_if_needed(struct loop *loop)
{
    SCOPED_LOCK(&loop->lock);
    if (atomic_load(&loop->idle) == 0 && loop->count < LOOP_WORKERS_MAX && !atomic_load(&loop->stopping))
        add_worker(loop);
}

bool loop_spare(unsigned waiting)
{
    struct loop *loop = current->loop;
    unsigned wanted = waiting + WORKERS_SPARE;

    if (waiting <= WORKERS_FEW || atomic_load_explicit(&loop->count, memory_order_relaxed) >= wanted)
        return true;
    SCOPED_LOCK(&loop->lock);
    while (loop->count < wanted && loop->count < LOOP_WORKERS_MAX && add_worker(loop) == 0)
        ;
    return loop->count >= wanted;
}

static void end(struct loop *loop, int code)
{
    int none = 0;

    if (code)
        atomic_compare_exchange_strong(&loop->code, &none, code);
    eventfd_write(loop->ended_fd, 1);
}

/*
 * A request follows the answer that made it possible. ThreadSanitizer sees that in
 * readv(2), also of nothing, but not in splice(2).
 */
static void note_order(int fd)
{
#ifdef __SANITIZE_THREAD__
    struct iovec nothing = {0};

    if (readv(fd, &nothing, 0) < 0)
        abort();
#else
    (void)fd;
#endif
}

/*
 * Whether the next request is to come in the worker's pipe. A user's pipes are counted: no longer than is
 * needed.
 */
static bool choose_pipe(struct worker *worker)
{
    struct loop *loop = worker->loop;
    bool wanted = atomic_load_explicit(&loop->pipes, memory_order_relaxed);

    if (!wanted)
        close_pipe(worker->pipe);
    else if (worker->pipe[0] < 0 && !open_pipe(worker->pipe))
        loop_prefer_pipe(false);
    return worker->pipe[0] >= 0;
}

/* The next request's size; 0: there is none, try again; or -ECANCELED: there will not be any. */
static ssize_t receive(struct worker *worker, struct fuse_buf *buf)
{
    struct loop *loop = worker->loop;
    int fd = fuse_session_fd(loop->se);
    char *buffer = worker->data - WRITE_HEADER;
    bool piped = choose_pipe(worker);
    ssize_t n =
        piped ? splice(fd, NULL, worker->pipe[1], NULL, BUFFER_SIZE, 0) : read(fd, buffer, BUFFER_SIZE);

    if (n > 0) {
        note_order(fd);
        *buf = (struct fuse_buf){.size = (size_t)n, .mem = piped ? NULL : buffer, .fd = worker->pipe[0]};
        buf->flags = piped ? FUSE_BUF_IS_FD : 0;
        return n;
    }
    if (atomic_load(&loop->stopping))
        return -ECANCELED;
    /* ENOENT: it was interrupted before we had it. */
    if (n < 0 && (errno == EINTR || errno == ENOENT || errno == EAGAIN))
        return 0;
    /* splice(2) allocates, read(2) does not. */
    if (piped && n < 0 && errno == ENOMEM) {
        loop_prefer_pipe(false);
        return 0;
    }
    end(loop, n < 0 && errno != ENODEV ? -errno : 0);
    return -ECANCELED;
}

/* Unless there are enough. */
static bool become_idle(struct loop *loop)
{
    unsigned idle = atomic_load(&loop->idle);

    do {
        if (idle >= WORKERS_IDLE)
            return false;
    } while (!atomic_compare_exchange_weak(&loop->idle, &idle, idle + 1));
    return true;
}

/* Serves one request. Returns whether to go on; if not, the worker does not count as idle any more. */
static bool serve(struct worker *worker)
{
    struct loop *loop = worker->loop;
    struct fuse_buf buf;
    ssize_t n = receive(worker, &buf);
    int left = 0;

    if (n < 0)
        atomic_fetch_sub(&loop->idle, 1);
    if (n <= 0)
        return n == 0;
    if (atomic_fetch_sub(&loop->idle, 1) == 1)
        add_if_needed(loop);
    bool piped = buf.flags & FUSE_BUF_IS_FD;
    if (piped && atomic_fetch_add_explicit(&loop->unspliced, 1, memory_order_relaxed) >= PATIENCE)
        loop_prefer_pipe(false);
    fuse_session_process_buf(loop->se, &buf);
    /* What was refused, or could not be sent, is no part of the next request. */
    if (piped && (ioctl(buf.fd, FIONREAD, &left) < 0 || left))
        close_pipe(worker->pipe);
    if (n >= LARGE && !piped && !worker->huge)
        use_huge_page(worker);
    if (fuse_session_exited(loop->se)) {
        end(loop, 0);
        return false;
    }
    /* While requests are waiting, nobody sleeps and is kicked. */
    return !atomic_load(&loop->stopping) && become_idle(loop);
}

static void *run_worker(void *arg)
{
    struct worker *worker = arg, *before;
    struct loop *loop = worker->loop;

    current = worker;
    pthread_setname_np(pthread_self(), "fuse-worker");
    while (serve(worker))
        ;
    pthread_mutex_lock(&loop->lock);
    if (worker->prev)
        worker->prev->next = worker->next;
    else
        loop->workers = worker->next;
    if (worker->next)
        worker->next->prev = worker->prev;
    before = loop->finished;
    loop->finished = worker;
    loop->count--;
    pthread_cond_signal(&loop->gone);
    pthread_mutex_unlock(&loop->lock);
    worker_join(before);
    return NULL;
}

int loop_start(struct fuse_session *se, struct loop **out)
{
    struct loop *loop = calloc(1, sizeof(*loop));

    if (!loop)
        return -ENOMEM;
    loop->se = se;
    loop->ended_fd = eventfd(0, EFD_CLOEXEC);
    if (loop->ended_fd < 0) {
        int ret = -errno;
        free(loop);
        return ret;
    }
    pthread_mutex_init(&loop->lock, NULL);
    clock_cond_init(&loop->gone);
    pthread_mutex_lock(&loop->lock);
    int ret = add_worker(loop);
    pthread_mutex_unlock(&loop->lock);
    if (ret < 0)
        loop_stop(loop);
    else
        *out = loop;
    return ret;
}

int loop_ended_fd(const struct loop *loop)
{
    return loop->ended_fd;
}

int loop_stop(struct loop *loop)
{
    atomic_store(&loop->stopping, true);
    pthread_mutex_lock(&loop->lock);
    while (loop->count) {
        /* A worker may be about to wait when it is kicked: once is not enough. */
        for (struct worker *worker = loop->workers; worker; worker = worker->next)
            pthread_kill(worker->thread, SIGUSR1);
        struct timespec until = clock_timespec(clock_ns() + KICK_MS * 1000000);
        pthread_cond_timedwait(&loop->gone, &loop->lock, &until);
    }
    pthread_mutex_unlock(&loop->lock);
    worker_join(loop->finished);
    int ret = atomic_load(&loop->code);
    pthread_cond_destroy(&loop->gone);
    pthread_mutex_destroy(&loop->lock);
    close(loop->ended_fd);
    free(loop);
    return ret;
}
