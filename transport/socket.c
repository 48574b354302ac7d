/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stream sockets as transports.
 *
 * The sockets are non-blocking: a send that finds no room waits in poll(2), so
 * that the same socket serves a receiver that must not block. shutdown(2) wakes
 * both. TCP_USER_TIMEOUT and keepalive make the kernel give up on a peer that
 * has vanished; a peer that is there but silent is for the caller to notice.
 *
 * MSG_ZEROCOPY (Documentation/networking/msg_zerocopy.rst of Linux): the error
 * queue says which buffers are free again, and makes poll(2) return at once until
 * it is empty. So everybody who polls reads it; whoever waits for a buffer looks
 * at what has been read, by whomever. A buffer is free when the kernel says so, and
 * never before: a connection that is shut down is also disconnected, so that the
 * kernel drops what it would otherwise send again for as long as the peer is silent,
 * and what the card still has returns when the card is done. The socket stays open
 * until then, because a closed one says nothing any more.
 */
#include "socket.h"
#include "cleanup.h"
#include "clock.h"
#include "completions.h"
#include "dummy.h"
#include "lookup.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/errqueue.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>

#define BACKLOG_RETRY_MS 10
#define COPY_MAX         (16u << 10) /* to wait for the sender, or for the error queue, costs about as much */
#define RECV_PIPE        (1 << 20)
#define RECV_PIPE_MIN    (64 << 10) /* a smaller one costs more than it saves */
#define KERNEL_ENOTSUPP  524        /* what Linux says where a socket has no such option */
#define SEND_MAX         (1u << 30)
#define ERROR_QUEUE_MS   1 /* between two looks at the error queue when poll(2) does not wait */

struct socket_transport {
    int fd;
    bool tcp;
    int pipe[2];  /* the receiving thread's; -1 until it is needed */
    bool no_pipe; /* there was none to be had; the receiving thread's */
    /*
     * Held while a send without a copy is made and noted, which does not block, so
     * that nobody reads of the end of a send that is not noted. A leaf.
     */
    pthread_mutex_t completion_lock;
    /* NULL: no zero-copy; constant from the first send on, what it has is guarded */
    struct completions *completions;
};

/* The caller holds completion_lock. */
static void read_error_queue(struct socket_transport *s)
{
    for (;;) {
        union {
            char bytes[128];
            struct cmsghdr align;
        } control;
        struct msghdr msg = {.msg_control = &control, .msg_controllen = sizeof(control)};
        if (recvmsg(s->fd, &msg, MSG_ERRQUEUE) < 0) {
            if (errno == EINTR)
                continue;
            return;
        }
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
            struct sock_extended_err e;
            if ((c->cmsg_level != SOL_IP || c->cmsg_type != IP_RECVERR) &&
                (c->cmsg_level != SOL_IPV6 || c->cmsg_type != IPV6_RECVERR))
                continue;
            memcpy(&e, CMSG_DATA(c), sizeof(e));
            if (e.ee_origin == SO_EE_ORIGIN_ZEROCOPY && e.ee_errno == 0)
                completions_end(s->completions, e.ee_info, e.ee_data, e.ee_code & SO_EE_CODE_ZEROCOPY_COPIED);
        }
    }
}

static int wait_for(struct socket_transport *s, short events)
{
    struct pollfd pfd = {.fd = s->fd, .events = events};

    while (poll(&pfd, 1, -1) < 0) {
        if (errno != EINTR)
            return -errno;
    }
    if (s->completions && (pfd.revents & POLLERR)) {
        SCOPED_LOCK(&s->completion_lock);
        read_error_queue(s);
    }
    return 0;
}

static int send_parts(struct transport *t, const struct iovec *iov, int n, int flags)
{
    struct socket_transport *s = t->own;
    struct iovec rest[TRANSPORT_IOV_MAX];
    struct msghdr msg = {.msg_iov = rest, .msg_iovlen = (size_t)n};

    if (n > 0)
        memcpy(rest, iov, (size_t)n * sizeof(*iov));
    while (msg.msg_iovlen > 0) {
        ssize_t sent = sendmsg(s->fd, &msg, MSG_NOSIGNAL | flags);
        if (sent < 0) {
            int code = errno;
            if (code == EAGAIN)
                code = -wait_for(s, POLLOUT);
            if (code && code != EINTR)
                return -code;
            continue;
        }
        while (msg.msg_iovlen > 0 && (size_t)sent >= msg.msg_iov->iov_len) {
            sent -= (ssize_t)msg.msg_iov->iov_len;
            msg.msg_iov++;
            msg.msg_iovlen--;
        }
        if (msg.msg_iovlen > 0) {
            msg.msg_iov->iov_base = (char *)msg.msg_iov->iov_base + sent;
            msg.msg_iov->iov_len -= (size_t)sent;
        }
    }
    return 0;
}

static int socket_send(struct transport *t, const struct iovec *iov, int n)
{
    return send_parts(t, iov, n, 0);
}

/* EAGAIN is the socket's, which can be waited for, or the pipe's. */
static int wait_to_splice(struct socket_transport *s, int pipe)
{
    int left = 0;

    if (ioctl(pipe, FIONREAD, &left) < 0)
        return -errno;
    return left ? wait_for(s, POLLOUT) : -ENODATA;
}

/* splice(2) hands pages to the socket; only the receiver copies them, even over loopback. */
static int socket_send_pipe(struct transport *t, const struct iovec *iov, int n, int pipe, size_t len)
{
    struct socket_transport *s = t->own;
    int ret = send_parts(t, iov, n, MSG_MORE);

    while (ret == 0 && len > 0) {
        ssize_t sent = splice(pipe, NULL, s->fd, NULL, len, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
        if (sent > 0)
            len -= (size_t)sent;
        else if (sent == 0)
            ret = -ENODATA;
        else if (errno == EAGAIN)
            ret = wait_to_splice(s, pipe);
        else if (errno != EINTR)
            ret = -errno;
    }
    return ret;
}

static int socket_zerocopy(struct transport *t)
{
    struct socket_transport *s = t->own;
    int on = 1;

    if (!s->tcp)
        return -EOPNOTSUPP;
    if (setsockopt(s->fd, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof(on)) < 0)
        return errno == ENOPROTOOPT || errno == KERNEL_ENOTSUPP ? -EOPNOTSUPP : -errno;
    s->completions = malloc(sizeof(*s->completions));
    if (!s->completions)
        return -ENOMEM;
    completions_init(s->completions, 0);
    return 0;
}

/* Sends what can be sent now. The count, -EAGAIN, -ENOBUFS, or another negative errno. */
static ssize_t send_noted(struct socket_transport *s, const void *buf, size_t len,
                          struct transport_handed *handed)
{
    SCOPED_LOCK(&s->completion_lock);
    if (!completions_has_room(s->completions))
        read_error_queue(s);
    if (!completions_has_room(s->completions))
        return -ENOBUFS;
    ssize_t n = send(s->fd, buf, len, MSG_NOSIGNAL | MSG_ZEROCOPY);
    if (n < 0)
        return -errno;
    if (n > 0) {
        handed->ticket = completions_add(s->completions, (uint32_t)n);
        handed->bytes += (size_t)n;
    }
    return n;
}

static int socket_send_zerocopy(struct transport *t, const struct iovec *iov, int n, const void *buf,
                                size_t len, struct transport_handed *handed)
{
    struct socket_transport *s = t->own;
    const char *p = buf;

    *handed = (struct transport_handed){0};
    int ret = send_parts(t, iov, n, MSG_MORE);
    while (ret == 0 && handed->bytes < len) {
        size_t left = len - handed->bytes;
        ssize_t sent = send_noted(s, p + handed->bytes, left < SEND_MAX ? left : SEND_MAX, handed);
        if (sent == -ENOBUFS)
            break;
        if (sent == -EAGAIN)
            ret = wait_for(s, POLLOUT);
        else if (sent < 0 && sent != -EINTR)
            ret = (int)sent;
    }
    return ret;
}

static void socket_reap(struct transport *t, int wait_ms, struct transport_returns *returns)
{
    struct socket_transport *s = t->own;
    struct pollfd pfd = {.fd = s->fd};
    const struct timespec pause = {.tv_nsec = ERROR_QUEUE_MS * 1000000};
    int64_t deadline = wait_ms ? clock_ms() + wait_ms : 0;
    uint64_t known = returns->sends + returns->copied_sends;

    for (;;) {
        pthread_mutex_lock(&s->completion_lock);
        read_error_queue(s);
        *returns = s->completions->returns;
        bool in_flight = completions_in_flight(s->completions);
        pthread_mutex_unlock(&s->completion_lock);
        if (returns->sends + returns->copied_sends != known || !in_flight || !wait_ms ||
            clock_ms() >= deadline)
            return;
        /* A connection that has ended keeps poll() from waiting. */
        if (pfd.revents)
            nanosleep(&pause, NULL);
        poll(&pfd, 1, clock_poll_timeout(deadline));
    }
}

static ssize_t socket_try_send(struct transport *t, const void *buf, size_t len)
{
    struct socket_transport *s = t->own;
    ssize_t n;

    do
        n = send(s->fd, buf, len, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

/* After a receive that has failed: 0 when it is to be tried again. */
static int await_bytes(struct socket_transport *s, int flags)
{
    if (errno == EINTR)
        return 0;
    if (errno != EAGAIN || (flags & TRANSPORT_NOWAIT))
        return -errno;
    return wait_for(s, POLLIN);
}

static ssize_t socket_recv(struct transport *t, void *buf, size_t len, int flags)
{
    struct socket_transport *s = t->own;
    ssize_t n;

    while ((n = recv(s->fd, buf, len, 0)) < 0) {
        int ret = await_bytes(s, flags);
        if (ret < 0)
            return ret;
    }
    return n;
}

static ssize_t socket_recv_parts(struct transport *t, const struct iovec *iov, int n)
{
    struct socket_transport *s = t->own;
    struct msghdr msg = {.msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = (size_t)n};
    ssize_t got;

    while ((got = recvmsg(s->fd, &msg, 0)) < 0) {
        int ret = await_bytes(s, 0);
        if (ret < 0)
            return ret;
    }
    return got;
}

static void close_pipe(struct socket_transport *s)
{
    close(s->pipe[0]);
    close(s->pipe[1]);
    s->pipe[0] = s->pipe[1] = -1;
}

/* Whether there is a pipe for splice(2), as large as one may have. */
static bool has_pipe(struct socket_transport *s)
{
    if (s->pipe[0] >= 0 || s->no_pipe)
        return !s->no_pipe;
    s->no_pipe = pipe2(s->pipe, O_CLOEXEC | O_NONBLOCK) < 0;
    if (s->no_pipe) {
        s->pipe[0] = s->pipe[1] = -1;
        return false;
    }
    fcntl(s->pipe[1], F_SETPIPE_SZ, RECV_PIPE);
    /* A user who has many pipes gets small ones. */
    s->no_pipe = fcntl(s->pipe[1], F_GETPIPE_SZ) < RECV_PIPE_MIN;
    if (s->no_pipe)
        close_pipe(s);
    return !s->no_pipe;
}

/*
 * The socket's pages go through a pipe into the file, which copies them: once, where recv(2) and pwrite(2)
 * copy twice.
 */
static ssize_t socket_recv_fd(struct transport *t, int fd, off_t offset, size_t len, int *file_code)
{
    struct socket_transport *s = t->own;
    int ret = 0;
    ssize_t n;

    if (!has_pipe(s))
        return dummy_recv_fd(t, fd, offset, len, file_code);
    while ((n = splice(s->fd, NULL, s->pipe[1], NULL, len, SPLICE_F_MOVE | SPLICE_F_NONBLOCK)) < 0) {
        if (errno == EAGAIN)
            ret = wait_for(s, POLLIN);
        else if (errno != EINTR)
            ret = -errno;
        if (ret < 0)
            return ret;
    }
    for (ssize_t left = n; left > 0;) {
        ssize_t stored = splice(s->pipe[0], NULL, fd, &offset, (size_t)left, SPLICE_F_MOVE);
        if (stored < 0 && errno == EINTR)
            continue;
        if (stored <= 0) {
            *file_code = stored < 0 ? errno : ENOSPC;
            return -EBADFD;
        }
        left -= stored;
    }
    return n;
}

static int socket_pollfd(struct transport *t)
{
    struct socket_transport *s = t->own;

    return s->fd;
}

static void set_option(int fd, int level, int option, int value)
{
    setsockopt(fd, level, option, &value, sizeof(value));
}

static void socket_set_timeout(struct transport *t, int timeout_ms)
{
    struct socket_transport *s = t->own;
    int probe_s = timeout_ms / 4000 > 0 ? timeout_ms / 4000 : 1;

    if (!s->tcp)
        return;
    set_option(s->fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    set_option(s->fd, IPPROTO_TCP, TCP_KEEPIDLE, probe_s);
    set_option(s->fd, IPPROTO_TCP, TCP_KEEPINTVL, probe_s);
    set_option(s->fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
    set_option(s->fd, IPPROTO_TCP, TCP_USER_TIMEOUT, timeout_ms);
}

static void socket_shutdown(struct transport *t)
{
    struct socket_transport *s = t->own;
    const struct sockaddr nobody = {.sa_family = AF_UNSPEC};

    shutdown(s->fd, SHUT_RDWR);
    if (!s->completions)
        return;
    /* From here on nothing more can be sent. */
    SCOPED_LOCK(&s->completion_lock);
    read_error_queue(s);
    if (completions_in_flight(s->completions))
        connect(s->fd, &nobody, sizeof(nobody));
}

static void socket_finish(struct transport *t)
{
    struct socket_transport *s = t->own;

    shutdown(s->fd, SHUT_WR);
}

static void socket_close(struct transport *t)
{
    struct socket_transport *s = t->own;

    if (s->pipe[0] >= 0)
        close_pipe(s);
    close(s->fd);
    free(s->completions);
    pthread_mutex_destroy(&s->completion_lock);
    free(s);
    free(t);
}

static const struct transport_ops socket_ops = {
    .name = "socket",
    .send = socket_send,
    .send_pipe = socket_send_pipe,
    .zerocopy = socket_zerocopy,
    .send_zerocopy = socket_send_zerocopy,
    .place = dummy_place,
    .expose = dummy_expose,
    .withdraw = dummy_withdraw,
    .pin = dummy_pin,
    .figures = dummy_figures,
    .reap = socket_reap,
    .try_send = socket_try_send,
    .recv = socket_recv,
    .recv_parts = socket_recv_parts,
    .recv_fd = socket_recv_fd,
    .pollfd = socket_pollfd,
    .set_timeout = socket_set_timeout,
    .shutdown = socket_shutdown,
    .finish = socket_finish,
    .explain = dummy_explain,
    .close = socket_close,
};

static void name_peer(struct transport *t)
{
    struct socket_transport *s = t->own;
    struct sockaddr_storage addr;
    socklen_t len = sizeof(addr);

    if (s->tcp) {
        bool known = getpeername(s->fd, (struct sockaddr *)&addr, &len) == 0;
        lookup_name_peer(t, "tcp", known ? (struct sockaddr *)&addr : NULL, len);
    } else {
        struct ucred cred = {.uid = (uid_t)-1};
        len = sizeof(cred);
        getsockopt(s->fd, SOL_SOCKET, SO_PEERCRED, &cred, &len);
        snprintf(t->peer, sizeof(t->peer), "unix peer (pid %d)", (int)cred.pid);
        snprintf(t->address, sizeof(t->address), "user %u", (unsigned)cred.uid);
    }
}

struct transport *socket_transport_new(int fd, bool tcp)
{
    struct socket_transport *s = calloc(1, sizeof(*s));
    struct transport *t = s ? transport_new(&socket_ops, s) : NULL;

    if (!t) {
        free(s);
        close(fd);
        return NULL;
    }
    s->fd = fd;
    s->tcp = tcp;
    t->traits = (struct transport_traits){
        .copy_max = COPY_MAX,
        /* TCP passes a pipe's pages on one by one, and to receive those costs more than is saved. */
        .splices = !tcp,
        .receives_to_file = true,
        .is_local = !tcp,
        .seals = tcp,
        .is_tcp_socket = tcp,
    };
    s->pipe[0] = s->pipe[1] = -1;
    pthread_mutex_init(&s->completion_lock, NULL);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    if (tcp)
        set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    name_peer(t);
    return t;
}

int socket_connect(int fd, const struct sockaddr *addr, socklen_t len, const struct transport_wait *wait)
{
    struct pollfd cancel = {.fd = wait->cancel_fd, .events = POLLIN};

    /* A unix socket whose backlog is full says EAGAIN, and cannot be polled for room: it is tried again. */
    while (connect(fd, addr, len) < 0) {
        if (errno == EINPROGRESS)
            goto in_progress;
        if (errno != EAGAIN)
            return -errno;
        if (clock_ms() >= wait->deadline_ms)
            return -ETIMEDOUT;
        if (poll(&cancel, 1, BACKLOG_RETRY_MS) > 0)
            return -ECANCELED;
    }
    return 0;
in_progress:
    for (;;) {
        struct pollfd fds[2] = {
            {.fd = fd, .events = POLLOUT},
            {.fd = wait->cancel_fd, .events = POLLIN},
        };
        int ready = poll(fds, 2, clock_poll_timeout(wait->deadline_ms));
        if (ready < 0 && errno != EINTR)
            return -errno;
        if (ready < 0)
            continue;
        if (fds[1].revents)
            return -ECANCELED;
        if (fds[0].revents)
            break;
        if (clock_ms() >= wait->deadline_ms)
            return -ETIMEDOUT;
    }
    int code = 0;
    len = sizeof(code);
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &len) < 0)
        return -errno;
    return -code;
}

struct socket_listener {
    struct transport_listener base;
    int fds[SOCKET_LISTEN_MAX];
    int n;
    int epoll_fd; /* polls readable when any of fds does */
    bool tcp;
    char address[URI_MAX];
    char unlink_path[sizeof(((struct sockaddr_un *)0)->sun_path)];
};

static int socket_accept(struct transport_listener *l, struct transport **out)
{
    struct socket_listener *s = (struct socket_listener *)l;
    int code = EAGAIN;

    for (int i = 0; i < s->n; i++) {
        int fd = accept4(s->fds[i], NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            struct transport *t = socket_transport_new(fd, s->tcp);
            if (!t)
                return -ENOMEM;
            *out = t;
            return 0;
        }
        if (errno != EAGAIN)
            code = errno;
    }
    return -code;
}

static int socket_listener_pollfd(struct transport_listener *l)
{
    return ((struct socket_listener *)l)->epoll_fd;
}

static const char *socket_listener_address(struct transport_listener *l)
{
    return ((struct socket_listener *)l)->address;
}

static void socket_listener_close(struct transport_listener *l)
{
    struct socket_listener *s = (struct socket_listener *)l;

    if (s->unlink_path[0])
        unlink(s->unlink_path);
    for (int i = 0; i < s->n; i++)
        close(s->fds[i]);
    if (s->epoll_fd >= 0)
        close(s->epoll_fd);
    free(s);
}

static const struct transport_listener_ops socket_listener_ops = {
    .accept = socket_accept,
    .pollfd = socket_listener_pollfd,
    .address = socket_listener_address,
    .close = socket_listener_close,
};

struct transport_listener *socket_listener_new(const int *fds, int n, bool tcp, const char *address,
                                               const char *unlink_path)
{
    struct socket_listener *s = calloc(1, sizeof(*s));

    if (!s) {
        for (int i = 0; i < n; i++)
            close(fds[i]);
        return NULL;
    }
    s->base.ops = &socket_listener_ops;
    s->n = n;
    s->tcp = tcp;
    memcpy(s->fds, fds, (size_t)n * sizeof(*fds));
    snprintf(s->address, sizeof(s->address), "%s", address);
    if (unlink_path)
        snprintf(s->unlink_path, sizeof(s->unlink_path), "%s", unlink_path);
    s->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 0; i < n; i++) {
        struct epoll_event event = {.events = EPOLLIN};
        if (s->epoll_fd < 0 || epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, fds[i], &event) < 0) {
            socket_listener_close(&s->base);
            return NULL;
        }
    }
    return &s->base;
}
