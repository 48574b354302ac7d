/* SPDX-License-Identifier: Apache-2.0 */
/*
 * unix:PATH; see socket.c for the connection itself.
 *
 * The socket file is made with mode 0600: who may write to it may start
 * migrations. A socket file that nobody listens at any more is replaced.
 */
#include "cleanup.h"
#include "clock.h"
#include "socket.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>

static struct sockaddr_un address_of(const struct uri *uri)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};

    strcpy(addr.sun_path, uri->path);
    return addr;
}

/* Non-blocking; or a negative errno. */
static int unix_socket(void)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    return fd < 0 ? -errno : fd;
}

static int unix_connect(const struct uri *uri, unsigned index, const struct transport_group *group,
                        const struct transport_wait *wait, struct transport **out, struct error *err)
{
    struct sockaddr_un addr = address_of(uri);
    CLEANUP_FD int fd = unix_socket();
    int ret = fd < 0 ? fd : socket_connect(fd, (struct sockaddr *)&addr, sizeof(addr), wait);

    (void)index, (void)group;
    /* No socket there: nobody listens. */
    if (ret == -ENOENT)
        ret = -ECONNREFUSED;
    if (ret < 0)
        return error_set_errno(err, ret, "cannot connect to %s", uri->text);
    *out = socket_transport_new(steal_fd(&fd), false);
    return *out ? 0 : error_set(err, CAUSE_NO_MEMORY, "out of memory");
}

static bool nobody_listens(const struct sockaddr_un *addr)
{
    struct stat st;
    struct transport_wait now = {.cancel_fd = -1, .deadline_ms = clock_ms()};

    if (lstat(addr->sun_path, &st) < 0 || !S_ISSOCK(st.st_mode))
        return false;
    CLEANUP_FD int fd = unix_socket();
    return fd >= 0 && socket_connect(fd, (const struct sockaddr *)addr, sizeof(*addr), &now) == -ECONNREFUSED;
}

static int unix_listen(const struct uri *uri, struct transport_listener **out, struct error *err)
{
    struct sockaddr_un addr = address_of(uri);
    CLEANUP_FD int fd = unix_socket();
    int ret;

    if (fd < 0)
        return error_set_errno(err, fd, "cannot make a socket");
    if (nobody_listens(&addr))
        unlink(addr.sun_path);
    mode_t old = umask(0177);
    ret = bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0 ? -errno : 0;
    umask(old);
    if (ret < 0)
        return error_set_errno(err, ret, "cannot listen at %s", uri->text);
    if (listen(fd, 1024) < 0) {
        ret = -errno;
        unlink(addr.sun_path);
        return error_set_errno(err, ret, "cannot listen at %s", uri->text);
    }
    int stolen = steal_fd(&fd);
    *out = socket_listener_new(&stolen, 1, false, uri->text, addr.sun_path);
    return *out ? 0 : error_set(err, CAUSE_NO_MEMORY, "out of memory");
}

const struct transport_family transport_unix = {
    .connect = unix_connect,
    .listen = unix_listen,
};
