/* SPDX-License-Identifier: Apache-2.0 */
/* The socket families, over loopback; and what rdma: says where it is not built. */
#include "transport.h"
#include "blocked.h"
#include "check.h"
#include "cleanup.h"
#include "clock.h"
#include "entries.h"
#include "link.h"
#include "scratch.h"
#include "socket.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <semaphore.h>
#include <sys/resource.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

TestSuite(transport, .init = scratch_make, .fini = scratch_remove);

#define BIG (64u << 20) /* more than any socket's buffers hold */

/* Where to listen, one after the other; "unix:" gets a path in the scratch directory. */
static const char *const places[] = {"tcp:127.0.0.1:0", "tcp:[::1]:0", "tcp:localhost:0", "unix:"};

static void reap_all(struct transport *t, uint64_t ticket, struct transport_returns *returns);

static const char *place(size_t i)
{
    static char text[128];

    snprintf(text, sizeof(text), "%s%s%s", places[i], !strcmp(places[i], "unix:") ? scratch : "",
             !strcmp(places[i], "unix:") ? "/socket" : "");
    return text;
}

/* Whether this machine has an IPv6 loopback. */
static bool is_reachable(const char *text)
{
    struct transport_listener *l;
    struct error err = {0};
    struct uri uri;

    if (!strchr(text, '['))
        return true;
    uri_parse(text, &uri, &err);
    if (transport_listen(&uri, &l, &err) < 0) {
        cr_log_warn("%s: %s: not tested", text, err.message);
        return false;
    }
    transport_listener_close(l);
    return true;
}

#define FOR_ALL_PLACES(i)                                                                                   \
    for (size_t i = 0; i < ARRAY_LENGTH(places); i++)                                                       \
        if (is_reachable(place(i)))

Test(transport, both_directions)
{
    FOR_ALL_PLACES(i)
    {
        struct link link;
        char got[6];
        link_open(&link, place(i), "");
        cr_expect(eq(int, link_send(link.a, "hello", 6), 0));
        cr_expect(eq(int, transport_recv_all(link.b, got, 6, &link_forever), 0));
        cr_expect(eq(str, got, "hello"));
        cr_expect(eq(int, link_send(link.b, "world", 6), 0));
        cr_expect(eq(int, transport_recv_all(link.a, got, 6, NULL), 0));
        cr_expect(eq(str, got, "world"));
        cr_expect(ne(str, link.a->peer, ""), "%s: who is there", places[i]);
        cr_expect(ne(str, link.b->peer, ""));
        cr_expect(ne(str, (char *)link.a->ops->name, ""));
        transport_set_timeout(link.a, 5000);
        link_close(&link);
    }
}

Test(transport, port_0_is_resolved)
{
    struct transport_listener *l = link_listen("tcp:127.0.0.1:0"), *other = link_listen("tcp:127.0.0.1:0");
    struct uri uri;
    struct error err;

    cr_expect(ne(str, (char *)transport_listener_address(l), (char *)transport_listener_address(other)));
    CHECK_OK(uri_parse(transport_listener_address(l), &uri, &err));
    cr_expect(eq(str, uri.host, "127.0.0.1"));
    cr_expect(ne(str, uri.port, "0"));
    transport_listener_close(l);
    transport_listener_close(other);
}

Test(transport, ipv6_address_has_brackets)
{
    if (!is_reachable("tcp:[::1]:0"))
        cr_skip_test("there is no IPv6 loopback");
    struct transport_listener *l = link_listen("tcp:[::1]:0");
    cr_expect(zero(int, strncmp(transport_listener_address(l), "tcp:[::1]:", 10)));
    struct transport *t = link_connect(l, "", 0);
    cr_expect(zero(int, strncmp(t->peer, "tcp:[::1]:", 10)), "%s", t->peer);
    transport_close(t);
    transport_listener_close(l);
}

static void expect_option(struct transport *t, int level, int option, int want, const char *what)
{
    int value = -1;
    socklen_t len = sizeof(value);

    cr_assert(zero(int, getsockopt(transport_pollfd(t), level, option, &value, &len)));
    cr_expect(eq(int, value, want), "%s", what);
}

/* What a small message waits for, and what tells that a machine has vanished. */
Test(transport, options_of_tcp)
{
    static const struct {
        int timeout_ms, probe_s;
    } cases[] = {{1000, 1}, {4000, 1}, {8000, 2}, {60000, 15}};
    struct link link;

    link_open(&link, "tcp:127.0.0.1:0", "");
    expect_option(link.a, IPPROTO_TCP, TCP_NODELAY, 1, "TCP_NODELAY");
    expect_option(link.b, IPPROTO_TCP, TCP_NODELAY, 1, "TCP_NODELAY");
    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
        struct transport *t = i % 2 ? link.a : link.b;
        transport_set_timeout(t, cases[i].timeout_ms);
        expect_option(t, SOL_SOCKET, SO_KEEPALIVE, 1, "SO_KEEPALIVE");
        expect_option(t, IPPROTO_TCP, TCP_KEEPIDLE, cases[i].probe_s, "TCP_KEEPIDLE");
        expect_option(t, IPPROTO_TCP, TCP_KEEPINTVL, cases[i].probe_s, "TCP_KEEPINTVL");
        expect_option(t, IPPROTO_TCP, TCP_KEEPCNT, 3, "TCP_KEEPCNT");
        expect_option(t, IPPROTO_TCP, TCP_USER_TIMEOUT, cases[i].timeout_ms, "TCP_USER_TIMEOUT");
    }
    link_close(&link);
}

/* Whose connection it is, for a person and for the accounts. */
Test(transport, who_is_there)
{
    char want[TRANSPORT_PEER_MAX];

    FOR_ALL_PLACES(i)
    {
        struct link link;
        link_open(&link, place(i), "");
        if (!strcmp(places[i], "unix:")) {
            snprintf(want, sizeof(want), "unix peer (pid %d)", (int)getpid());
            cr_expect(eq(str, link.a->peer, want));
            cr_expect(eq(str, link.b->peer, want));
            snprintf(want, sizeof(want), "user %u", (unsigned)getuid());
            cr_expect(eq(str, link.a->address, want));
            cr_expect(eq(str, link.b->address, want));
        } else if (!strstr(places[i], "localhost")) {
            cr_expect(eq(str, link.a->peer, (char *)transport_listener_address(link.listener)));
            const char *host = strchr(places[i], '[') ? "::1" : "127.0.0.1";
            cr_expect(eq(str, link.a->address, (char *)host));
            cr_expect(eq(str, link.b->address, (char *)host));
        }
        link_close(&link);
    }
}

static unsigned open_descriptors(void)
{
    return count_entries("/proc/self/fd");
}

/* Whatever a connection has made for itself is gone with it. */
Test(transport, nothing_stays_open)
{
    CLEANUP_FD int file = memfd_create("file", MFD_CLOEXEC);
    unsigned before = open_descriptors();

    FOR_ALL_PLACES(i)
    {
        struct link link;
        int code = 0;
        link_open(&link, place(i), "");
        if (transport_zerocopy(link.a) == 0) {
            struct transport_handed handed;
            struct transport_returns returns = {0};
            cr_expect(eq(int, transport_send_zerocopy(link.a, NULL, 0, "abc", 3, &handed), 0));
            reap_all(link.a, handed.ticket, &returns);
        } else {
            cr_expect(eq(int, link_send(link.a, "abc", 3), 0));
        }
        for (off_t at = 0; at < 3;) {
            ssize_t n = transport_recv_fd(link.b, file, at, (size_t)(3 - at), &code);
            cr_assert(n > 0);
            at += n;
        }
        link_close(&link);
        /* A thread that has looked a name up may need a moment more. */
        while (open_descriptors() > before)
            sched_yield();
        cr_expect(eq(uint, open_descriptors(), before), "%s", places[i]);
    }
}

/* Pacing within a machine only costs: whatever the machine's default is, the sender has reno. */
Test(transport, congestion_control_within_a_machine)
{
    FOR_ALL_PLACES(i)
    {
        char name[16] = "";
        socklen_t len = sizeof(name);
        struct link link;
        link_open(&link, place(i), "");
        if (getsockopt(transport_pollfd(link.a), IPPROTO_TCP, TCP_CONGESTION, name, &len) == 0)
            cr_expect(eq(str, name, "reno"), "%s", places[i]);
        else
            cr_expect(eq(str, (char *)places[i], "unix:"));
        link_close(&link);
    }
}

/* What is on its way stays in the cache: the sender's buffer has a size that does not grow, twice what was asked for. */
Test(transport, send_buffer_within_a_machine)
{
    FOR_ALL_PLACES(i)
    {
        int size = 0;
        socklen_t len = sizeof(size);
        struct link link;
        link_open(&link, place(i), "");
        cr_expect(eq(int, getsockopt(transport_pollfd(link.a), SOL_SOCKET, SO_SNDBUF, &size, &len), 0));
        if (strcmp(places[i], "unix:"))
            cr_expect(eq(int, size, 256 << 10), "%s", places[i]);
        link_close(&link);
    }
}

/* A name that has several addresses is listened to at all of them, on one port. */
Test(transport, every_address_of_a_name)
{
    if (!is_reachable("tcp:[::1]:0"))
        cr_skip_test("there is no IPv6 loopback");
    struct transport_listener *l = link_listen("tcp::0");
    const char *port = strrchr(transport_listener_address(l), ':') + 1;
    static const char *const hosts[] = {"127.0.0.1", "[::1]"};
    for (size_t i = 0; i < ARRAY_LENGTH(hosts); i++) {
        char text[64];
        struct uri uri;
        struct error err;
        struct transport *t, *accepted;
        snprintf(text, sizeof(text), "tcp:%s:%s", hosts[i], port);
        CHECK_OK(uri_parse(text, &uri, &err));
        CHECK_OK(transport_connect(&uri, 0, &link_group, &link_forever, &t, &err));
        accepted = link_accept(l);
        transport_close(t);
        transport_close(accepted);
    }
    transport_listener_close(l);
}

Test(transport, accept_does_not_block)
{
    FOR_ALL_PLACES(i)
    {
        struct transport_listener *l = link_listen(place(i));
        struct transport *t = NULL, *accepted;
        cr_expect(eq(int, transport_accept(l, &t), -EAGAIN));
        struct pollfd fd = {.fd = transport_listener_pollfd(l), .events = POLLIN};
        cr_expect(eq(int, poll(&fd, 1, 0), 0));
        t = link_connect(l, "", 0);
        cr_expect(eq(int, poll(&fd, 1, -1), 1), "polls readable when somebody waits");
        accepted = link_accept(l);
        cr_expect(eq(int, transport_accept(l, &t), -EAGAIN));
        transport_close(t);
        transport_close(accepted);
        transport_listener_close(l);
    }
}

/* Parts of all sizes, also empty ones, more bytes than the buffers hold, and a receiver that runs at the same time. */
Test(transport, many_parts)
{
    FOR_ALL_PLACES(i)
    {
        struct link link;
        struct sink sink;
        struct iovec iov[TRANSPORT_IOV_MAX];
        size_t total = 0, at = 0;
        for (unsigned k = 0; k < TRANSPORT_IOV_MAX; k++) {
            iov[k].iov_len = k % 5 == 0 ? 0 : k % 5 == 1 ? 1 : (k * 7919u) % 700000u;
            total += iov[k].iov_len;
        }
        char *data = malloc(total);
        pattern(data, total, 1);
        for (unsigned k = 0; k < TRANSPORT_IOV_MAX; k++) {
            iov[k].iov_base = data + at;
            at += iov[k].iov_len;
        }
        struct iovec before[TRANSPORT_IOV_MAX];
        memcpy(before, iov, sizeof(iov));
        link_open(&link, place(i), "");
        sink_start(&sink, link.b, total);
        cr_expect(eq(int, transport_send(link.a, iov, TRANSPORT_IOV_MAX), 0));
        cr_expect(zero(int, memcmp(before, iov, sizeof(iov))), "the caller's parts are left alone");
        sink_join(&sink);
        cr_expect(eq(sz, sink.have, total));
        cr_expect(zero(int, memcmp(sink.buf, data, total)), "%s", places[i]);
        sink_free(&sink);
        free(data);
        link_close(&link);
    }
}

/* Into parts of all sizes, in their order; what comes is less than there is room for, and nothing goes past it. */
Test(transport, receive_into_parts)
{
    static const char *const faults[] = {"", "faulty:short=1000:"};
    enum { SIZE = 60000, ROOM = SIZE + 5000 };
    static char bytes[SIZE], got[ROOM];

    pattern(bytes, SIZE, 3);
    FOR_ALL_PLACES(i)
    {
        for (unsigned f = 0; f < 2; f++) {
            struct link link;
            size_t have = 0;
            link_open(&link, place(i), faults[f]);
            cr_assert(eq(int, link_send(link.a, bytes, SIZE), 0));
            memset(got, 'x', ROOM);
            while (have < SIZE) {
                struct iovec iov[TRANSPORT_IOV_MAX];
                int n = 0;
                for (size_t at = have; n < TRANSPORT_IOV_MAX && at < ROOM; n++) {
                    size_t len = n % 3 == 0 ? 1 : (size_t)n * 331 % 4096 + 1;
                    iov[n] = (struct iovec){got + at, len < ROOM - at ? len : ROOM - at};
                    at += iov[n].iov_len;
                }
                ssize_t more = transport_recv_parts(link.b, iov, n);
                cr_assert(more > 0);
                have += (size_t)more;
            }
            cr_expect(eq(sz, have, SIZE));
            cr_expect(zero(int, memcmp(got, bytes, SIZE)), "%s%s", faults[f], places[i]);
            cr_expect(eq(chr, got[SIZE], 'x'));
            transport_finish(link.a);
            struct iovec one = {got, 1};
            cr_expect(eq(long, transport_recv_parts(link.b, &one, 1), 0), "the end of the stream");
            link_close(&link);
        }
    }
}

/* A part that has gone away is an error, and what was due is still due. */
Test(transport, receive_into_parts_that_have_gone)
{
    FOR_ALL_PLACES(i)
    {
        struct link link;
        char got[8] = "";
        struct iovec bad[] = {{got, 2}, {NULL, 4}}, good[] = {{got, 2}, {got + 2, 4}};
        link_open(&link, place(i), "");
        cr_assert(eq(int, link_send(link.a, "sixchr", 6), 0));
        ssize_t n = transport_recv_parts(link.b, bad, 2);
        cr_expect(n == -EFAULT || n == 2, "%s: %zd", places[i], n);
        n = n < 0 ? 0 : n;
        if (n == 0)
            n = transport_recv_parts(link.b, good, 2);
        while (n < 6)
            n += transport_recv(link.b, got + n, (size_t)(6 - n), 0);
        cr_expect(eq(str, got, "sixchr"), "%s", places[i]);
        link_close(&link);
    }
}

/* A header, and then what is in a pipe, or should be; also where it must be copied. */
Test(transport, send_from_a_pipe)
{
    static const char *const faults[] = {"", "faulty:short=1000:"};
    enum { SIZE = 60000 };
    char bytes[SIZE];

    pattern(bytes, SIZE, 7);
    FOR_ALL_PLACES(i)
    {
        for (size_t f = 0; f < ARRAY_LENGTH(faults); f++) {
            struct link link;
            struct sink sink;
            int pipes[2];
            struct iovec header = {"header", 6};
            link_open(&link, place(i), faults[f]);
            sink_start(&sink, link.b, 6 + SIZE);
            cr_assert(eq(int, pipe2(pipes, O_CLOEXEC | O_NONBLOCK), 0));
            cr_assert(eq(sz, (size_t)write(pipes[1], bytes, SIZE), SIZE));
            cr_expect(eq(int, transport_send_pipe(link.a, &header, 1, pipes[0], SIZE), 0));
            sink_join(&sink);
            cr_assert(eq(sz, sink.have, sink.want));
            cr_expect(zero(int, memcmp(sink.buf, "header", 6)));
            cr_expect(zero(int, memcmp(sink.buf + 6, bytes, SIZE)));
            /* One byte is missing, while the pipe can still be written to. */
            cr_assert(eq(sz, (size_t)write(pipes[1], bytes, 5), 5));
            cr_expect(eq(int, transport_send_pipe(link.a, &header, 1, pipes[0], 6), -ENODATA));
            close(pipes[0]);
            close(pipes[1]);
            sink_free(&sink);
            link_close(&link);
        }
    }
}

/* A sender for the test below. */
struct sending {
    struct worker worker;
    struct transport *t;
    const char *bytes;
    size_t len;
};

static void run_sending(void *arg)
{
    struct sending *sending = arg;

    link_send(sending->t, sending->bytes, sending->len);
}

/* No descriptor can be had any more. Return: the limit as it was. */
static struct rlimit use_up_descriptors(void)
{
    struct rlimit old, none;
    int lowest = fcntl(0, F_DUPFD_CLOEXEC, 0);

    close(lowest);
    getrlimit(RLIMIT_NOFILE, &old);
    none = (struct rlimit){(rlim_t)lowest, old.rlim_max};
    cr_assert(zero(int, setrlimit(RLIMIT_NOFILE, &none)));
    return old;
}

/*
 * What arrives goes into a file, part by part; a file that cannot be written is told from a connection that
 * is lost.
 * @faults: of the end that receives; @starved: there is no descriptor for a pipe
 */
static void receive_into_a_file(const char *where, const char *faults, bool starved)
{
    size_t size = 3000001;
    char *bytes = malloc(size), *got = malloc(size);
    char path[sizeof(scratch) + 8];
    struct sending sending = {.bytes = bytes, .len = size};
    struct rlimit limit;
    struct link link;
    int code = 0;

    pattern(bytes, size, 3);
    snprintf(path, sizeof(path), "%s/file", scratch);
    CLEANUP_FD int file = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CLEANUP_FD int read_only = open(path, O_RDONLY | O_CLOEXEC);
    link_open(&link, where, faults);
    /* The end that connected has the faults. */
    struct transport *from = *faults ? link.b : link.a, *to = *faults ? link.a : link.b;
    cr_expect(eq(int, to->traits.receives_to_file, !*faults));
    sending.t = from;
    worker_start(&sending.worker, run_sending, &sending);
    if (starved)
        limit = use_up_descriptors();
    for (size_t have = 0; have < size;) {
        ssize_t n = transport_recv_fd(to, file, (off_t)(5 + have), size - have, &code);
        cr_assert(n > 0, "%s", strerror((int)-n));
        have += (size_t)n;
    }
    worker_join(&sending.worker);
    cr_assert(eq(sz, (size_t)pread(file, got, size, 5), size));
    cr_expect(zero(int, memcmp(bytes, got, size)));
    cr_expect(eq(int, link_send(from, bytes, 1000), 0));
    cr_expect(eq(int, (int)transport_recv_fd(to, read_only, 0, 1000, &code), -EBADFD));
    cr_expect(eq(int, code, EBADF));
    transport_finish(from);
    cr_expect(eq(int, (int)transport_recv_fd(to, file, 0, 1000, &code), 0));
    if (starved)
        setrlimit(RLIMIT_NOFILE, &limit);
    link_close(&link);
    free(bytes);
    free(got);
}

Test(transport, receive_into_a_file)
{
    FOR_ALL_PLACES(i)
    {
        receive_into_a_file(place(i), "", false);
        receive_into_a_file(place(i), "", true);
        receive_into_a_file(place(i), "faulty:short=300000:", false);
    }
}

/* Nobody has to ask for an operation before it is called: a pointer that is not there is a crash somewhere.
 */
static void check_operations(const struct transport *t)
{
    const char *const *member = (const char *const *)t->ops; /* a name, and pointers to functions */

    for (size_t i = 0; i < sizeof(*t->ops) / sizeof(*member); i++)
        cr_expect(member[i] != NULL, "operation %zu of %s is not there", i, t->ops->name);
    cr_expect(t->traits.copy_max > 0, "%s", t->ops->name);
}

Test(transport, every_operation_is_there)
{
    static const char *const faults[] = {"", "faulty:short=1:"};

    FOR_ALL_PLACES(i)
    {
        for (size_t f = 0; f < ARRAY_LENGTH(faults); f++) {
            struct link link;
            struct transport_handed handed = {.bytes = 1, .ticket = 1};
            struct transport_returns returns = {0};
            link_open(&link, place(i), faults[f]);
            check_operations(link.a);
            check_operations(link.b);
            if (*faults[f]) {
                cr_expect(eq(int, transport_zerocopy(link.a), -EOPNOTSUPP));
                cr_expect(eq(int, transport_send_zerocopy(link.a, NULL, 0, "a", 1, &handed), -EOPNOTSUPP));
                cr_expect(eq(sz, handed.bytes, 0), "nothing has been handed over");
                transport_reap(link.a, INT_MAX, &returns);
                cr_expect(eq(u64, returns.ticket, 0), "and nothing is waited for");
            }
            link_close(&link);
        }
    }
}

/* It says what there is too little of. */
Test(transport, no_descriptors)
{
    static const char *const texts[] = {"tcp:127.0.0.1:0", "unix:/nonexistent/socket"};

    for (size_t i = 0; i < ARRAY_LENGTH(texts); i++) {
        struct transport *t;
        struct transport_listener *l;
        struct error err = {0}, other = {0};
        struct uri uri;
        CHECK_OK(uri_parse(texts[i], &uri, &err));
        struct rlimit limit = use_up_descriptors();
        int connected = transport_connect(&uri, 0, &link_group, &link_forever, &t, &err);
        int listening = transport_listen(&uri, &l, &other);
        setrlimit(RLIMIT_NOFILE, &limit);
        cr_expect(lt(int, connected, 0));
        cr_expect(lt(int, listening, 0));
        cr_expect(strstr(err.message, strerror(EMFILE)) != NULL, "%s", err.message);
        cr_expect(strstr(other.message, strerror(EMFILE)) != NULL, "%s", other.message);
    }
}

static void open_zerocopy(struct link *link, const char *text)
{
    link_open(link, text, "");
    cr_assert(eq(int, transport_zerocopy(link->a), 0), "%s", text);
}

/* Waits until everything is back that was handed over. */
static void reap_all(struct transport *t, uint64_t ticket, struct transport_returns *returns)
{
    int64_t end = clock_ms() + 30000;

    while (returns->ticket < ticket) {
        transport_reap(t, 1000, returns);
        cr_assert(lt(i64, clock_ms(), end), "ticket %llu of %llu", (unsigned long long)returns->ticket,
                  (unsigned long long)ticket);
    }
}

/* Every other send is a copying one. Over loopback the kernel copies all the same, and says so. */
Test(transport, send_without_a_copy)
{
    enum { SENDS = 40 };
    size_t size = 700001;
    char *bytes = malloc(size);

    pattern(bytes, size, 11);
    FOR_ALL_PLACES(i)
    {
        struct link link;
        struct sink sink;
        struct iovec header = {"header", 6};
        struct transport_handed handed = {0};
        struct transport_returns returns = {0};
        uint64_t total = 0;
        link_open(&link, place(i), "");
        if (!strncmp(places[i], "unix:", 5)) {
            cr_expect(eq(int, transport_zerocopy(link.a), -EOPNOTSUPP));
            link_close(&link);
            continue;
        }
        cr_assert(eq(int, transport_zerocopy(link.a), 0));
        sink_start(&sink, link.b, SENDS * (6 + size + 10));
        for (int n = 0; n < SENDS; n++) {
            cr_assert(eq(int, transport_send_zerocopy(link.a, &header, 1, bytes, size, &handed), 0));
            struct iovec rest[] = {{bytes + handed.bytes, size - handed.bytes}, {"0123456789", 10}};
            cr_assert(eq(int, transport_send(link.a, rest, 2), 0));
            total += handed.bytes;
            transport_reap(link.a, 0, &returns);
        }
        cr_expect(total > 0);
        reap_all(link.a, handed.ticket, &returns);
        cr_expect(eq(u64, returns.copied_bytes, total));
        cr_expect(eq(u64, returns.bytes, 0));
        sink_join(&sink);
        cr_assert(eq(sz, sink.have, sink.want));
        for (size_t at = 0; at < sink.want; at += 6 + size + 10) {
            cr_assert(zero(int, memcmp(sink.buf + at, "header", 6)));
            cr_assert(zero(int, memcmp(sink.buf + at + 6, bytes, size)));
            cr_assert(zero(int, memcmp(sink.buf + at + 6 + size, "0123456789", 10)));
        }
        sink_free(&sink);
        link_close(&link);
    }
    free(bytes);
}

/* Nobody reaps, so that there is no room to note a send; but what the kernel has given back makes room by itself. */
Test(transport, sends_without_a_copy_make_room)
{
    enum { SENDS = 3000 };
    struct link link;
    struct sink sink;
    struct transport_handed handed = {.bytes = 1};
    size_t sent = 0;

    open_zerocopy(&link, "tcp:127.0.0.1:0");
    for (int i = 0; i < SENDS && handed.bytes; i++) {
        cr_assert(zero(int, transport_send_zerocopy(link.a, NULL, 0, "x", 1, &handed)));
        sent += handed.bytes;
    }
    cr_expect(ge(sz, sent, 1000));
    sink_start(&sink, link.b, sent);
    sink_join(&sink);
    struct pollfd back = {.fd = transport_pollfd(link.a)};
    cr_assert(eq(int, poll(&back, 1, 30000), 1));
    cr_assert(zero(int, transport_send_zerocopy(link.a, NULL, 0, "x", 1, &handed)));
    cr_expect(eq(sz, handed.bytes, 1));
    struct transport_returns returns = {0};
    sink_free(&sink);
    sink_start(&sink, link.b, 1);
    sink_join(&sink);
    reap_all(link.a, handed.ticket, &returns);
    sink_free(&sink);
    link_close(&link);
}

/* A stack that looks at the bytes must have them. */
Test(transport, no_zerocopy_in_a_stack)
{
    struct link link;

    link_open(&link, "tcp:127.0.0.1:0", "faulty:short=100000:");
    cr_expect(eq(int, transport_zerocopy(link.a), -EOPNOTSUPP));
    link_close(&link);
}

struct lend {
    struct transport *t;
    const char *buf;
    size_t have;
    struct transport_handed handed;
    int ret;
};

static void lend_on(void *arg)
{
    struct lend *lend = arg;

    do {
        struct transport_handed handed;
        lend->ret = transport_send_zerocopy(lend->t, NULL, 0, lend->buf, 1u << 20, &handed);
        if (handed.bytes)
            lend->handed = handed;
        lend->have += handed.bytes;
    } while (lend->ret == 0);
}

/*
 * The peer reads nothing, and the buffers are stuck in the kernel: a shutdown wakes
 * the sender and brings them back. The same when the peer goes away by itself.
 */
Test(transport, shutdown_brings_buffers_back)
{
    char *buf = calloc(1, 1u << 20);

    for (int peer_goes = 0; peer_goes < 2; peer_goes++) {
        struct link link;
        struct worker worker;
        struct transport_returns returns = {0};
        open_zerocopy(&link, "tcp:127.0.0.1:0");
        struct lend lend = {.t = link.a, .buf = buf};
        worker_start(&worker, lend_on, &lend);
        worker_await_sleep(&worker);
        cr_expect(not(atomic_load(&worker.done)));
        transport_reap(link.a, 50, &returns);
        if (peer_goes) {
            transport_close(link.b);
            link.b = NULL;
        } else {
            transport_shutdown(link.a);
            transport_shutdown(link.a);
        }
        worker_join(&worker);
        cr_expect(lt(int, lend.ret, 0));
        cr_expect(lend.have > 0);
        transport_shutdown(link.a);
        reap_all(link.a, lend.handed.ticket, &returns);
        cr_expect(eq(u64, returns.bytes + returns.copied_bytes, lend.have));
        link_close(&link);
    }
    free(buf);
}

struct reaper {
    struct worker worker;
    struct transport *t;
    uint64_t ticket;
};

static void reap_on(void *arg)
{
    struct reaper *r = arg;
    struct transport_returns returns = {0};

    reap_all(r->t, r->ticket, &returns);
}

/* Several ask at once, and all learn all of it. */
Test(transport, many_reapers)
{
    struct link link;
    struct sink sink;
    struct reaper reapers[4];
    struct transport_handed handed = {0};
    size_t size = 200 << 10, total = 0;
    char *buf = calloc(1, size);

    open_zerocopy(&link, "tcp:127.0.0.1:0");
    sink_start(&sink, link.b, BIG);
    for (int i = 0; i < 4; i++) {
        reapers[i] = (struct reaper){.t = link.a, .ticket = 100};
        worker_start(&reapers[i].worker, reap_on, &reapers[i]);
    }
    while (handed.ticket < 100 && total < BIG - size) {
        cr_assert(eq(int, transport_send_zerocopy(link.a, NULL, 0, buf, size, &handed), 0));
        total += handed.bytes;
    }
    cr_expect(ge(u64, handed.ticket, 100));
    for (int i = 0; i < 4; i++)
        worker_join(&reapers[i].worker);
    transport_shutdown(link.a);
    struct transport_returns returns = {0};
    reap_all(link.a, handed.ticket, &returns);
    sink_join(&sink);
    sink_free(&sink);
    link_close(&link);
    free(buf);
}

Test(transport, nothing_to_send)
{
    struct link link;
    struct iovec empty = {NULL, 0};
    char c;

    link_pair(&link);
    cr_expect(eq(int, transport_send(link.a, &empty, 1), 0));
    cr_expect(eq(int, transport_send(link.a, NULL, 0), 0));
    cr_expect(eq(long, transport_recv(link.b, &c, 1, TRANSPORT_NOWAIT), -EAGAIN));
    link_close(&link);
}

Test(transport, nowait)
{
    FOR_ALL_PLACES(i)
    {
        struct link link;
        char c;
        link_open(&link, place(i), "");
        struct pollfd fd = {.fd = transport_pollfd(link.b), .events = POLLIN};
        cr_expect(eq(long, transport_recv(link.b, &c, 1, TRANSPORT_NOWAIT), -EAGAIN));
        cr_expect(eq(int, poll(&fd, 1, 0), 0));
        link_send(link.a, "x", 1);
        cr_expect(eq(int, poll(&fd, 1, -1), 1));
        cr_expect(eq(long, transport_recv(link.b, &c, 1, TRANSPORT_NOWAIT), 1));
        transport_shutdown(link.a);
        cr_expect(eq(int, poll(&fd, 1, -1), 1));
        cr_expect(eq(long, transport_recv(link.b, &c, 1, TRANSPORT_NOWAIT), 0), "the end of the stream");
        link_close(&link);
    }
}

/* What comes at the moment when nobody wanted to wait for it is not lost: the next receive has it. */
static void send_one_by_one(void *arg)
{
    for (unsigned n = 0; n < 20000; n++)
        link_send(arg, &(char){(char)n}, 1);
}
Test(transport, nothing_is_lost_by_nowait)
{
    struct worker writer;
    struct link link;
    char c;

    link_pair(&link);
    worker_start(&writer, send_one_by_one, link.a);
    for (unsigned n = 0; n < 20000; n++) {
        ssize_t got;
        while ((got = transport_recv(link.b, &c, 1, TRANSPORT_NOWAIT)) == -EAGAIN)
            ;
        cr_assert(eq(long, got, 1));
        cr_assert(eq(int, c, (char)n));
    }
    worker_join(&writer);
    link_close(&link);
}

/* finish() says that no more is sent, and does not end what comes the other way. */
Test(transport, finish)
{
    FOR_ALL_PLACES(i)
    {
        struct link link;
        char c;
        link_open(&link, place(i), "");
        link_send(link.a, "x", 1);
        transport_finish(link.a);
        cr_expect(eq(long, transport_recv(link.b, &c, 1, 0), 1));
        cr_expect(eq(long, transport_recv(link.b, &c, 1, 0), 0));
        cr_expect(eq(int, link_send(link.b, "y", 1), 0));
        cr_expect(eq(long, transport_recv(link.a, &c, 1, 0), 1));
        cr_expect(lt(int, link_send(link.a, "z", 1), 0));
        link_close(&link);
    }
}

Test(transport, recv_all_ends)
{
    struct link link;
    char buf[4];
    int cancel = eventfd(0, EFD_CLOEXEC);
    struct transport_wait passed = {.cancel_fd = -1, .deadline_ms = clock_ms() - 1};
    struct transport_wait soon = {.cancel_fd = -1, .deadline_ms = clock_ms() + 20};
    struct transport_wait cancelled = {.cancel_fd = cancel, .deadline_ms = INT64_MAX};

    link_pair(&link);
    cr_expect(eq(int, transport_recv_all(link.b, buf, 4, &passed), -ETIMEDOUT));
    cr_expect(eq(int, transport_recv_all(link.b, buf, 4, &soon), -ETIMEDOUT));
    cr_expect(ge(i64, clock_ms(), soon.deadline_ms), "not before its time");
    link_send(link.a, "ab", 2);
    cr_expect(eq(int, transport_recv_all(link.b, buf, 4, &passed), -ETIMEDOUT), "in the middle");
    link_send(link.a, "abcd", 4);
    cr_expect(eq(int, transport_recv_all(link.b, buf, 4, &passed), 0), "what is there needs no time");
    eventfd_write(cancel, 1);
    cr_expect(eq(int, transport_recv_all(link.b, buf, 4, &cancelled), -ECANCELED));
    cr_expect(eq(int, transport_recv_all(link.b, buf, 0, &cancelled), 0), "nothing is always there");
    link_send(link.a, "a", 1);
    transport_finish(link.a);
    cr_expect(eq(int, transport_recv_all(link.b, buf, 4, NULL), -ECONNRESET), "the stream ended first");
    cr_expect(eq(int, transport_recv_all(link.b, buf, 4, &link_forever), -ECONNRESET));
    close(cancel);
    link_close(&link);
}

/* A receiver that is cancelled while it sleeps. */
struct receive {
    struct transport *t;
    struct transport_wait wait;
    int ret;
};

static void receive_all(void *arg)
{
    struct receive *r = arg;
    char buf[4];

    r->ret = transport_recv_all(r->t, buf, sizeof(buf), &r->wait);
}

Test(transport, recv_all_is_woken)
{
    struct link link;
    struct worker worker;
    int cancel = eventfd(0, EFD_CLOEXEC);

    link_pair(&link);
    struct receive r = {.t = link.b, .wait = {.cancel_fd = cancel, .deadline_ms = INT64_MAX}};
    worker_start(&worker, receive_all, &r);
    worker_await_sleep(&worker);
    eventfd_write(cancel, 1);
    worker_join(&worker);
    cr_expect(eq(int, r.ret, -ECANCELED));
    close(cancel);
    link_close(&link);
}

/* A sender that nobody listens to. */
struct flood {
    struct transport *t;
    char *buf;
    int ret;
};

static void flood(void *arg)
{
    struct flood *f = arg;

    f->ret = link_send(f->t, f->buf, BIG);
}

Test(transport, shutdown_wakes_a_sender)
{
    FOR_ALL_PLACES(i)
    {
        struct link link;
        struct worker worker;
        link_open(&link, place(i), "");
        struct flood f = {.t = link.a, .buf = calloc(1, BIG)};
        worker_start(&worker, flood, &f);
        worker_await_sleep(&worker);
        cr_expect(not(atomic_load(&worker.done)));
        transport_shutdown(link.a);
        transport_shutdown(link.a);
        worker_join(&worker);
        cr_expect(lt(int, f.ret, 0), "%s", places[i]);
        free(f.buf);
        link_close(&link);
    }
}

Test(transport, shutdown_wakes_a_receiver)
{
    FOR_ALL_PLACES(i)
    {
        struct link link;
        struct sink sink;
        link_open(&link, place(i), "");
        sink_start(&sink, link.b, 1);
        worker_await_sleep(&sink.worker);
        cr_expect(not(atomic_load(&sink.worker.done)));
        transport_shutdown(link.b);
        sink_join(&sink);
        cr_expect(le(long, sink.last, 0), "%s", places[i]);
        sink_free(&sink);
        link_close(&link);
    }
}

/* A signal that a thread gets is not the end of what it waits for. */
Test(transport, signals_end_no_wait)
{
    FOR_ALL_PLACES(i)
    {
        struct link link;
        struct sink sink;
        struct worker worker;
        struct receive r;
        struct flood f = {.buf = calloc(1, BIG)};
        link_open(&link, place(i), "");

        sink_start(&sink, link.b, 1);
        worker_interrupt(&sink.worker);
        cr_expect(not(atomic_load(&sink.worker.done)), "%s", places[i]);
        cr_expect(eq(int, link_send(link.a, "a", 1), 0));
        sink_join(&sink);
        cr_expect(eq(sz, sink.have, 1));
        sink_free(&sink);

        r = (struct receive){.t = link.b, .wait = link_forever};
        worker_start(&worker, receive_all, &r);
        worker_interrupt(&worker);
        cr_expect(not(atomic_load(&worker.done)), "%s", places[i]);
        cr_expect(eq(int, link_send(link.a, "abcd", 4), 0));
        worker_join(&worker);
        cr_expect(eq(int, r.ret, 0));

        f.t = link.a;
        worker_start(&worker, flood, &f);
        worker_interrupt(&worker);
        cr_expect(not(atomic_load(&worker.done)), "%s", places[i]);
        sink_start(&sink, link.b, BIG);
        sink_join(&sink);
        worker_join(&worker);
        cr_expect(eq(int, f.ret, 0));
        cr_expect(eq(sz, sink.have, BIG));
        sink_free(&sink);
        free(f.buf);
        link_close(&link);
    }
}

/* The other end goes away: the sender hears of it, and is not killed by SIGPIPE. */
Test(transport, peer_goes_away)
{
    FOR_ALL_PLACES(i)
    {
        struct link link;
        struct worker worker;
        link_open(&link, place(i), "");
        struct flood f = {.t = link.a, .buf = calloc(1, BIG)};
        worker_start(&worker, flood, &f);
        worker_await_sleep(&worker);
        transport_close(link.b);
        link.b = NULL;
        worker_join(&worker);
        cr_expect(f.ret == -EPIPE || f.ret == -ECONNRESET, "%s", strerror(-f.ret));
        free(f.buf);
        link_close(&link);
    }
}

Test(transport, refused)
{
    char tcp[URI_MAX], missing[URI_MAX], abandoned[URI_MAX], file[URI_MAX];
    struct transport *t = (void *)1;
    struct error err;
    struct uri uri;

    /* A port and a path that were listened to until a moment ago. */
    struct transport_listener *l = link_listen("tcp:127.0.0.1:0");
    strcpy(tcp, transport_listener_address(l));
    transport_listener_close(l);
    snprintf(missing, sizeof(missing), "unix:%s/missing", scratch);
    snprintf(abandoned, sizeof(abandoned), "unix:%s/abandoned", scratch);
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/abandoned", scratch);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert(zero(int, bind(fd, (struct sockaddr *)&addr, sizeof(addr))));
    close(fd);
    snprintf(file, sizeof(file), "unix:%s/file", scratch);
    fclose(fopen(file + 5, "w"));

    const char *const texts[] = {tcp, missing, abandoned, file};
    for (size_t i = 0; i < ARRAY_LENGTH(texts); i++) {
        CHECK_OK(uri_parse(texts[i], &uri, &err));
        CHECK_FAILS(transport_connect(&uri, 0, &link_group, &link_forever, &t, &err), CAUSE_REFUSED);
        cr_expect(not(zero(ptr, strstr(err.message, texts[i]))), "it says where: %s", err.message);
        cr_expect(eq(ptr, t, (void *)1), "written on success only");
    }
}

Test(transport, no_such_host)
{
    struct transport *t;
    struct transport_listener *l;
    struct error err;
    struct uri uri;

    CHECK_OK(uri_parse("tcp:no-such-host.invalid:1", &uri, &err));
    CHECK_FAILS(transport_connect(&uri, 0, &link_group, &link_forever, &t, &err), CAUSE_UNREACHABLE);
    CHECK_FAILS(transport_listen(&uri, &l, &err), CAUSE_UNREACHABLE);
    /* An address that nobody has here: TEST-NET-1. */
    CHECK_OK(uri_parse("tcp:192.0.2.1:0", &uri, &err));
    CHECK_FAILS(transport_listen(&uri, &l, &err), CAUSE_UNREACHABLE);
}

/* In place of the library's: a name service that does not answer until it is told to. */
static sem_t asked, answer;

int getaddrinfo(const char *host, const char *port, const struct addrinfo *hints, struct addrinfo **out)
{
    int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
    bool hangs = host && !strcmp(host, "hangs.invalid") && !(hints->ai_flags & AI_NUMERICHOST);

    if (hangs) {
        sem_post(&asked);
        sem_wait(&answer);
    }
    *(void **)&real = dlsym(RTLD_NEXT, "getaddrinfo");
    return real(hangs ? "127.0.0.1" : host, port, hints, out);
}

struct caller {
    struct worker worker;
    const char *text; /* the URI; NULL: the name that hangs */
    struct transport_wait wait;
    struct error err;
};

static void call(void *arg)
{
    struct caller *caller = arg;
    struct transport *t;
    struct uri uri;

    cr_assert(zero(int, uri_parse(caller->text ? caller->text : "tcp:hangs.invalid:1", &uri, &caller->err)));
    cr_expect(transport_connect(&uri, 0, &link_group, &caller->wait, &t, &caller->err) < 0);
}

Test(transport, a_lookup_is_given_up)
{
    struct caller caller = {.wait = {.cancel_fd = eventfd(0, EFD_CLOEXEC), .deadline_ms = INT64_MAX}};
    struct caller late = {.wait = {.cancel_fd = -1, .deadline_ms = clock_ms()}};

    sem_init(&asked, 0, 0);
    sem_init(&answer, 0, 0);
    worker_start(&caller.worker, call, &caller);
    sem_wait(&asked);
    worker_interrupt(&caller.worker);
    cr_expect(not(atomic_load(&caller.worker.done)), "a signal is not an end");
    eventfd_write(caller.wait.cancel_fd, 1);
    worker_join(&caller.worker);
    cr_expect(eq(int, (int)caller.err.cause, CAUSE_INTERRUPTED), "%s", caller.err.message);

    call(&late);
    cr_expect(eq(int, (int)late.err.cause, CAUSE_TIMEOUT), "%s", late.err.message);
    sem_wait(&asked);

    /* Answers that nobody waits for any more. */
    sem_post(&answer);
    sem_post(&answer);
    struct caller patient = {.wait = {.cancel_fd = -1, .deadline_ms = INT64_MAX}};
    sem_post(&answer);
    call(&patient);
    cr_expect(eq(int, (int)patient.err.cause, CAUSE_REFUSED), "%s", patient.err.message);
    close(caller.wait.cancel_fd);
}

Test(transport, tcp_port_is_taken)
{
    struct transport_listener *l = link_listen("tcp:127.0.0.1:0"), *other;
    struct transport *a = link_connect(l, "", 0), *b = link_accept(l);
    struct error err;
    struct uri uri;

    CHECK_OK(uri_parse(transport_listener_address(l), &uri, &err));
    CHECK_FAILS(transport_listen(&uri, &other, &err), CAUSE_IN_USE);
    /* A connection that this end closes first stays in the kernel for a minute; it takes no port. */
    transport_close(b);
    transport_close(a);
    transport_listener_close(l);
    CHECK_OK(transport_listen(&uri, &other, &err));
    transport_listener_close(other);
}

static const char *unix_uri(const char *name)
{
    static char text[128];

    snprintf(text, sizeof(text), "unix:%s/%s", scratch, name);
    return text;
}

Test(transport, unix_socket_is_private_and_removed)
{
    struct transport_listener *l = link_listen(unix_uri("s"));
    char path[128];
    struct stat st;

    snprintf(path, sizeof(path), "%s/s", scratch);
    cr_assert(zero(int, stat(path, &st)));
    cr_expect(eq(int, S_ISSOCK(st.st_mode), 1));
    cr_expect(eq(uint, st.st_mode & 07777, 0600));
    cr_expect(eq(str, (char *)transport_listener_address(l), (char *)unix_uri("s")));
    transport_listener_close(l);
    cr_expect(lt(int, stat(path, &st), 0));
}

Test(transport, stale_unix_socket_is_replaced)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    struct link link;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/s", scratch);
    cr_assert(zero(int, bind(fd, (struct sockaddr *)&addr, sizeof(addr))));
    cr_assert(zero(int, listen(fd, 1)));
    close(fd);
    link_open(&link, unix_uri("s"), "");
    link_close(&link);
}

Test(transport, live_unix_socket_is_not_replaced)
{
    struct transport_listener *l = link_listen(unix_uri("s")), *other;
    struct transport *t;
    struct error err;
    struct uri uri;

    CHECK_OK(uri_parse(unix_uri("s"), &uri, &err));
    CHECK_FAILS(transport_listen(&uri, &other, &err), CAUSE_IN_USE);
    t = link_connect(l, "", 0);
    transport_close(t);
    transport_listener_close(l);
}

/* A daemon that is alive and does not come to accept: its backlog is full. */
Test(transport, busy_unix_socket_is_not_replaced)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), clients[64], n = 0;
    struct transport_listener *l;
    struct stat before, after;
    struct error err;
    struct uri uri;

    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/s", scratch);
    cr_assert(zero(int, bind(listener, (struct sockaddr *)&addr, sizeof(addr))));
    cr_assert(zero(int, listen(listener, 1)));
    for (bool full = false; !full && n < 64;) {
        clients[n] = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        full = connect(clients[n++], (struct sockaddr *)&addr, sizeof(addr)) < 0;
    }
    cr_assert(lt(int, n, 64));
    stat(addr.sun_path, &before);
    CHECK_OK(uri_parse(unix_uri("s"), &uri, &err));
    CHECK_FAILS(transport_listen(&uri, &l, &err), CAUSE_IN_USE);
    cr_expect(zero(int, stat(addr.sun_path, &after)));
    cr_expect(eq(ulong, after.st_ino, before.st_ino), "the socket of the other one is still there");
    while (n > 0)
        close(clients[--n]);
    close(listener);
}

Test(transport, a_file_is_not_replaced)
{
    char path[128];
    struct transport_listener *l;
    struct stat st;
    struct error err;
    struct uri uri;

    snprintf(path, sizeof(path), "%s/s", scratch);
    fclose(fopen(path, "w"));
    CHECK_OK(uri_parse(unix_uri("s"), &uri, &err));
    CHECK_FAILS(transport_listen(&uri, &l, &err), CAUSE_IN_USE);
    cr_expect(zero(int, stat(path, &st)));
    cr_expect(eq(int, S_ISREG(st.st_mode), 1));
}

Test(transport, unix_in_no_directory)
{
    struct transport_listener *l;
    struct error err = {0};
    struct uri uri;

    CHECK_OK(uri_parse(unix_uri("no/such/directory"), &uri, &err));
    cr_expect(lt(int, transport_listen(&uri, &l, &err), 0));
    cr_expect(error_is_set(&err));
}

Test(transport, connect_is_cancelled)
{
    int cancel = eventfd(1, EFD_CLOEXEC), full[64], n = 0;
    struct transport_wait wait = {.cancel_fd = cancel, .deadline_ms = INT64_MAX};
    struct transport_wait soon = {.cancel_fd = -1, .deadline_ms = clock_ms() + 20};
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(addr);
    struct transport *t;
    struct error err;
    struct uri uri;
    char text[64];

    /* A listener whose backlog is full drops what comes, and a connecting socket waits. */
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert(zero(int, bind(listener, (struct sockaddr *)&addr, len)));
    cr_assert(zero(int, listen(listener, 0)));
    getsockname(listener, (struct sockaddr *)&addr, &len);
    for (; n < 8; n++) {
        full[n] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        connect(full[n], (struct sockaddr *)&addr, len);
    }
    snprintf(text, sizeof(text), "tcp:127.0.0.1:%u", ntohs(addr.sin_port));
    CHECK_OK(uri_parse(text, &uri, &err));
    CHECK_FAILS(transport_connect(&uri, 0, &link_group, &wait, &t, &err), CAUSE_INTERRUPTED);
    CHECK_FAILS(transport_connect(&uri, 0, &link_group, &soon, &t, &err), CAUSE_TIMEOUT);
    cr_expect(ge(i64, clock_ms(), soon.deadline_ms), "not before its time");
    eventfd_read(cancel, &(eventfd_t){0});
    struct caller caller = {.text = text, .wait = wait};
    worker_start(&caller.worker, call, &caller);
    worker_interrupt(&caller.worker);
    cr_expect(not(atomic_load(&caller.worker.done)), "a signal is not an end");
    eventfd_write(cancel, 1);
    worker_join(&caller.worker);
    cr_expect(eq(int, (int)caller.err.cause, CAUSE_INTERRUPTED), "%s", caller.err.message);
    while (n > 0)
        close(full[--n]);
    close(listener);
    close(cancel);
}

Test(transport, many_at_once)
{
    struct transport_listener *l = link_listen("tcp:127.0.0.1:0");
    struct transport *a[100], *b[100];

    for (int i = 0; i < 100; i++)
        a[i] = link_connect(l, "", (unsigned)i);
    for (int i = 0; i < 100; i++)
        b[i] = link_accept(l);
    for (int i = 0; i < 100; i++) {
        transport_close(a[i]);
        transport_close(b[i]);
    }
    transport_listener_close(l);
}

Test(transport, null_is_fine)
{
    transport_close(NULL);
    transport_listener_close(NULL);
}

Test(transport, rdma_is_not_built)
{
    struct transport *t;
    struct transport_listener *l;
    struct error err;
    struct uri uri;

    CHECK_OK(uri_parse("rdma:127.0.0.1:4444", &uri, &err));
    CHECK_FAILS(transport_connect(&uri, 0, &link_group, &link_forever, &t, &err), CAUSE_UNSUPPORTED);
    CHECK_FAILS(transport_listen(&uri, &l, &err), CAUSE_UNSUPPORTED);
    CHECK_OK(uri_parse("faulty:cut=1:rdma:127.0.0.1:4444", &uri, &err));
    CHECK_FAILS(transport_connect(&uri, 0, &link_group, &link_forever, &t, &err), CAUSE_UNSUPPORTED);
    CHECK_FAILS(transport_listen(&uri, &l, &err), CAUSE_UNSUPPORTED);
}

/* What a new connection has room for is sent, in however many parts; where there is no room nobody waits for it. */
Test(transport, send_now)
{
    static const char *const faults[] = {"", "faulty:short=1:"};

    FOR_ALL_PLACES(i)
    {
        for (size_t f = 0; f < ARRAY_LENGTH(faults); f++) {
            char *want = malloc(2000), *got = malloc(2000);
            struct link link;
            link_open(&link, place(i), faults[f]);
            pattern(want, 2000, 7);
            cr_expect(eq(int, transport_send_now(link.a, want, 2000), 0));
            cr_expect(eq(int, transport_recv_all(link.b, got, 2000, &link_forever), 0));
            cr_expect(zero(int, memcmp(want, got, 2000)));
            int ret;
            do {
                ret = transport_send_now(link.a, want, 2000);
            } while (ret == 0);
            cr_expect(eq(int, ret, -EAGAIN));
            link_close(&link);
            free(want);
            free(got);
        }
    }
}
