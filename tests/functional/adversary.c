/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A peer that means harm, or is broken.
 *
 *   adversary PORT hellos                 hellos with a wrong field each
 *   adversary PORT random COUNT SEED      connections that send random bytes instead of a hello
 *   adversary PORT cut                    hellos that end early: some close then, some say nothing more
 *   adversary PORT idle COUNT             connections that say nothing; prints "idle" and waits until all are dropped
 *   adversary PORT same NAME              a second migration of a name that is taken
 *   adversary PORT missing                channels that never arrive
 *   adversary PORT channels               data channels that belong to nothing, come twice or too late
 *   adversary PORT messages               wrong messages on the main channel of a migration
 *   adversary PORT packets                wrong packets on its data channel
 *   adversary PORT noise COUNT SEED       random bytes on either of them
 *   adversary PORT budget                 more memory than the destination has for all
 *   adversary PORT many COUNT             more migrations than it takes
 *   adversary PORT empty COUNT            migrations that complete with nothing in them; none is refused
 *   adversary PORT devices COUNT DEVICES  migrations with a byte in each of so many devices, that fail
 *   adversary PORT packed COUNT           migrations of 128 channels with a compressed packet on each, at once, until
 *                                         one is refused
 *   adversary PORT barriers               as many barriers of 128 counts as may wait
 *   adversary PORT hold                   main channels until one is refused; prints "held" and keeps them until its
 *                                         standard input ends
 *
 * PORT is one of 127.0.0.1; ADDRESS in the environment is where the connections come from. Each step prints what it tries and what it is told.
 * Fails when the destination does not refuse: with a sentence on the wire, where
 * there is somebody to tell, and with the end of the connection.
 *
 * The bytes are made here, from the layouts of wire.h, so that any can be wrong.
 */
#include "wire.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#define WAIT_MS  20000 /* for any answer; longer than the destination waits for anything */
#define PING_MS  500
#define BODY_MAX (1u << 20)

static int port;
static const char *step = ""; /* what is being tried */
static int ping_fd = -1;      /* the main channel that is kept alive while an answer is awaited; -1: none */

static void fail(const char *what)
{
    printf("%s: FAIL: %s\n", step, what);
    exit(1);
}

static void die(const char *what)
{
    printf("%s: %s: %s\n", step, what, strerror(errno));
    exit(1);
}

static long long now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000ll + ts.tv_nsec / 1000000;
}

static uint64_t draw(uint64_t *state)
{
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return *state >> 24;
}

/*
 * Connections
 */

static int dial(void)
{
    struct sockaddr_in addr = {
        .sin_family = AF_INET,
        .sin_port = htons((uint16_t)port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in from = {.sin_family = AF_INET};
    const char *address = getenv("ADDRESS");

    if (address && (!inet_aton(address, &from.sin_addr) || bind(fd, (struct sockaddr *)&from, sizeof(from)) < 0))
        die("bind");
    if (fd < 0 || connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0)
        die("connect");
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    return fd;
}

/* The destination may have ended the connection already: that is no failure of ours. */
static void put(int fd, const void *data, size_t len)
{
    const char *p = data;

    while (len > 0) {
        ssize_t n = send(fd, p, len, MSG_NOSIGNAL);
        if (n < 0 && (errno == EPIPE || errno == ECONNRESET))
            return;
        if (n < 0)
            die("send");
        p += n;
        len -= (size_t)n;
    }
}

static void ping(int fd);

/* 1: all of it; 0: the connection ended first. */
static int get(int fd, void *data, size_t len)
{
    long long end = now_ms() + WAIT_MS;
    char *p = data;

    while (len > 0) {
        struct pollfd pfd = {.fd = fd, .events = POLLIN};
        if (now_ms() >= end)
            fail("no answer, and the connection stays");
        if (poll(&pfd, 1, PING_MS) == 0) {
            ping(ping_fd);
            continue;
        }
        ssize_t n = recv(fd, p, len, 0);
        if (n < 0 && errno != ECONNRESET)
            die("recv");
        if (n <= 0)
            return 0;
        p += n;
        len -= (size_t)n;
    }
    return 1;
}

static void expect_end(int fd)
{
    char rest[4096];

    while (get(fd, rest, 1))
        ;
    close(fd);
}

/*
 * Hellos
 */

static uint64_t sum(const void *data, size_t len)
{
    return XXH3_64bits(data, len);
}

static void seal_hello(struct wire_hello *hello)
{
    hello->check = sum(hello, sizeof(*hello) - WIRE_CHECK_SIZE);
}

static struct wire_hello make_hello(enum wire_hello_kind kind, const char *name, unsigned channels)
{
    static uint32_t serial;
    struct wire_hello hello = {
        .version = WIRE_VERSION,
        .kind = (uint16_t)kind,
        .channels = (uint16_t)channels,
        .features = WIRE_FEATURE_CHECKSUM,
        .page_size = WIRE_PAGE_SIZE,
        .stripe_size = WIRE_STRIPE_SIZE,
        .timeout_ms = 60000,
        .name_length = (uint16_t)strlen(name),
    };
    uint32_t session[4] = {(uint32_t)getpid(), ++serial, (uint32_t)time(NULL), 7};

    memcpy(hello.magic, "migfs\r\n\x1a", 8);
    memcpy(hello.session, session, sizeof(session));
    memcpy(hello.name, name, strlen(name));
    seal_hello(&hello);
    return hello;
}

static struct wire_hello_reply get_reply(int fd)
{
    struct wire_hello_reply reply;

    if (!get(fd, &reply, sizeof(reply)))
        fail("the connection ended without an answer");
    if (memcmp(reply.magic, "MIGFS\r\n\x1a", 8) || reply.check != sum(&reply, sizeof(reply) - WIRE_CHECK_SIZE))
        fail("the answer is no answer");
    return reply;
}

static void expect_refusal(int fd)
{
    struct wire_hello_reply reply = get_reply(fd);

    if (reply.cause == CAUSE_NONE)
        fail("it is welcome");
    if (reply.text_length == 0 || reply.text_length > WIRE_TEXT_MAX)
        fail("it is refused without a sentence");
    printf("%s: %.*s\n", step, reply.text_length, reply.text);
    expect_end(fd);
}

static void expect_welcome(int fd)
{
    struct wire_hello_reply reply = get_reply(fd);

    if (reply.cause != CAUSE_NONE) {
        printf("%s: %.*s\n", step, reply.text_length, reply.text);
        fail("it should be welcome");
    }
}

static void try_hello(const char *what, const struct wire_hello *hello)
{
    int fd = dial();

    step = what;
    put(fd, hello, sizeof(*hello));
    expect_refusal(fd);
}

#define WRONG(what, change)                                                                                 \
    do {                                                                                                    \
        struct wire_hello h = make_hello(WIRE_HELLO_MAIN, "wrong", 2);                                      \
        change;                                                                                             \
        seal_hello(&h);                                                                                     \
        try_hello(what, &h);                                                                                \
    } while (0)

static void name_it(struct wire_hello *hello, const char *name, size_t len)
{
    memset(hello->name, 0, sizeof(hello->name));
    memcpy(hello->name, name, len);
    hello->name_length = (uint16_t)len;
}

static void hellos(void)
{
    struct wire_hello hello = make_hello(WIRE_HELLO_MAIN, "wrong", 2);

    hello.check ^= 1;
    try_hello("a wrong check", &hello);
    WRONG("wrong magic", h.magic[7] = 0);
    WRONG("version 0", h.version = 0);
    WRONG("a later version", h.version = WIRE_VERSION + 1);
    WRONG("version 65535", h.version = 65535);
    WRONG("kind 5", h.kind = 5);
    WRONG("kind 65535", h.kind = 65535);
    WRONG("no channels", h.channels = 0);
    WRONG("129 channels", h.channels = WIRE_CHANNELS_MAX + 1);
    WRONG("65535 channels", h.channels = 65535);
    WRONG("channel 2 of 2", h.channel = 2);
    WRONG("channel 65535 of 2", h.channel = 65535);
    WRONG("unknown features", h.features = 1ull << 63);
    WRONG("pages of 1 byte", h.page_size = 1);
    WRONG("pages of 8192 bytes", h.page_size = 8192);
    WRONG("stripes of 0 bytes", h.stripe_size = 0);
    WRONG("all channels for devices", h.device_channels = 2);
    WRONG("65535 channels for devices", h.device_channels = 65535);
    WRONG("an empty name", name_it(&h, "", 0));
    WRONG("a name of 256 bytes", memset(h.name, 'x', 256); h.name_length = 256);
    WRONG("a name of 65535 bytes", h.name_length = 65535);
    WRONG("a name with a NUL", name_it(&h, "a\0b", 3));
    WRONG("the name ../x", name_it(&h, "../x", 4));
    WRONG("the name ..", name_it(&h, "..", 2));
    WRONG("the name .", name_it(&h, ".", 1));
    WRONG("the name .error", name_it(&h, ".error", 6));
    WRONG("the name a/b", name_it(&h, "a/b", 3));
    WRONG("the name /etc/passwd", name_it(&h, "/etc/passwd", 11));
    WRONG("a name with a newline", name_it(&h, "a\nb", 3));
    WRONG("a name with an escape", name_it(&h, "\033[2J", 4));
}

static void send_random(uint64_t seed)
{
    static char junk[8192];
    size_t len = (size_t)(draw(&seed) % sizeof(junk));
    int fd = dial();

    for (size_t i = 0; i < len; i++)
        junk[i] = (char)draw(&seed);
    /* Some begin well. */
    if (seed % 3 == 0)
        memcpy(junk, "migfs\r\n\x1a\x01", 9);
    put(fd, junk, len);
    shutdown(fd, SHUT_WR);
    expect_end(fd);
}

static void random_bytes(int count, uint64_t seed)
{
    printf("seed %llu\n", (unsigned long long)seed);
    step = "random bytes";
    for (int i = 0; i < count; i++)
        send_random(seed + (uint64_t)i);
}

static void cut(void)
{
    struct wire_hello hello = make_hello(WIRE_HELLO_MAIN, "cut", 2);
    int waiting[32], n = 0;

    step = "a hello that is cut";
    for (size_t len = 0; len < sizeof(hello); len += 10) {
        int fd = dial();
        put(fd, &hello, len);
        if (len % 20)
            waiting[n++] = fd;
        else
            close(fd);
    }
    step = "a hello that does not go on";
    for (int i = 0; i < n; i++)
        expect_end(waiting[i]);
}

static void raise_descriptor_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static void idle(int count)
{
    int *fds = calloc((size_t)count, sizeof(*fds));

    step = "an idle connection";
    raise_descriptor_limit();
    for (int i = 0; i < count; i++)
        fds[i] = dial();
    puts("idle");
    fflush(stdout);
    for (int i = 0; i < count; i++)
        expect_end(fds[i]);
    free(fds);
}

static void same(const char *name)
{
    struct wire_hello hello = make_hello(WIRE_HELLO_MAIN, name, 1);

    try_hello("a name that is taken", &hello);
    hello = make_hello(WIRE_HELLO_DATA, name, 1);
    try_hello("a data channel of another session", &hello);
}

/*
 * Sessions
 */

struct session {
    struct wire_hello hello;
    int main;
    int data[WIRE_CHANNELS_MAX];
    unsigned channels;
    uint64_t sequence[WIRE_CHANNELS_MAX];
};

static int greet(struct session *s, enum wire_hello_kind kind, unsigned channel)
{
    struct wire_hello hello = s->hello;
    int fd = dial();

    hello.kind = (uint16_t)kind;
    hello.channel = (uint16_t)channel;
    seal_hello(&hello);
    put(fd, &hello, sizeof(hello));
    expect_welcome(fd);
    return fd;
}

static struct session begin_session(const char *name, unsigned channels, uint64_t features)
{
    struct session s = {.hello = make_hello(WIRE_HELLO_MAIN, name, channels), .channels = channels};

    s.hello.features = features;
    s.main = greet(&s, WIRE_HELLO_MAIN, 0);
    return s;
}

static void attach(struct session *s)
{
    for (unsigned c = 0; c < s->channels; c++)
        s->data[c] = greet(s, WIRE_HELLO_DATA, c);
}

static void ping(int fd)
{
    struct wire_message message = {.magic = 0x4d47494d, .type = WIRE_PING};

    message.check = sum(&message, sizeof(message) - WIRE_CHECK_SIZE);
    if (fd >= 0)
        put(fd, &message, sizeof(message));
}

static void put_message(struct session *s, unsigned type, uint64_t id, const void *body, uint32_t length)
{
    struct wire_message message = {.magic = 0x4d47494d, .type = (uint16_t)type, .length = length, .id = id};

    message.check = sum(&message, sizeof(message) - WIRE_CHECK_SIZE) ^ (length ? sum(body, length) : 0);
    put(s->main, &message, sizeof(message));
    if (length)
        put(s->main, body, length);
}

static struct wire_message get_message(struct session *s, char *body)
{
    struct wire_message message;

    for (;;) {
        if (!get(s->main, &message, sizeof(message)))
            fail("the main channel ended without a word");
        if (message.magic != 0x4d47494d || message.length > BODY_MAX || !get(s->main, body, message.length))
            fail("what comes on the main channel is no message");
        if (message.type != WIRE_PING && message.type != WIRE_PROGRESS)
            return message;
    }
}

/* The destination gives up, says why, and ends all connections. */
static void expect_abort(struct session *s)
{
    static char body[BODY_MAX];
    struct wire_message message;
    uint16_t length;

    do {
        message = get_message(s, body);
    } while (message.type == WIRE_SYNC_ACK || message.type == WIRE_FILE_REPLY || message.type == WIRE_DIGEST_REPLY ||
             message.type == WIRE_VERIFY_REPLY || message.type == WIRE_FILE_REMOVE || message.type == WIRE_FILE_RENAME);
    if (message.type != WIRE_ABORT || message.length < 6)
        fail("it says something else than that it gives up");
    memcpy(&length, body + 4, 2);
    if (length == 0 || length + 6u != message.length)
        fail("it gives up without a sentence");
    printf("%s: %.*s\n", step, length, body + 6);
    expect_end(s->main);
    for (unsigned c = 0; c < s->channels; c++) {
        if (s->data[c])
            expect_end(s->data[c]);
    }
}

struct body {
    char data[BODY_MAX];
    uint32_t length;
};

static void add(struct body *body, const void *data, size_t len)
{
    memcpy(body->data + body->length, data, len);
    body->length += (uint32_t)len;
}
static void add_u16(struct body *body, uint16_t value)
{
    add(body, &value, sizeof(value));
}
static void add_u32(struct body *body, uint32_t value)
{
    add(body, &value, sizeof(value));
}
static void add_u64(struct body *body, uint64_t value)
{
    add(body, &value, sizeof(value));
}

/* Announces a file. Return: the cause, CAUSE_NONE when it is accepted. */
static uint32_t announce(struct session *s, uint32_t id, uint64_t size, const char *name, size_t name_length)
{
    static struct body body;
    static char answer[BODY_MAX];
    uint32_t said, cause;

    body.length = 0;
    add_u32(&body, id);
    add_u64(&body, size);
    add_u16(&body, (uint16_t)name_length);
    add(&body, name, name_length);
    put_message(s, WIRE_FILE_CREATE, 0, body.data, body.length);
    struct wire_message message = get_message(s, answer);
    if (message.type != WIRE_FILE_REPLY || message.length < 10)
        fail("no answer about a file");
    memcpy(&said, answer, 4);
    memcpy(&cause, answer + 4, 4);
    if (said != id)
        fail("an answer about another file");
    if (cause != CAUSE_NONE)
        printf("%s: %.*s\n", step, (int)message.length - 10, answer + 10);
    return cause;
}

static struct session begin(const char *what, unsigned channels, uint64_t features)
{
    step = what;
    struct session s = begin_session("adversary", channels, features);
    attach(&s);
    return s;
}

static struct session begin_with_ram(const char *what, unsigned channels, uint64_t features)
{
    struct session s = begin(what, channels, features);

    if (announce(&s, WIRE_RAM, 1 << 20, "ram", 3) != CAUSE_NONE)
        fail("the image is refused");
    return s;
}

/* The source goes away; what is there fails. */
static void leave(struct session *s)
{
    close(s->main);
    for (unsigned c = 0; c < s->channels; c++) {
        if (s->data[c])
            expect_end(s->data[c]);
    }
}

static void missing(void)
{
    step = "channels that never arrive";
    struct session s = begin_session("missing", 4, 0);
    s.data[0] = greet(&s, WIRE_HELLO_DATA, 0);
    s.data[2] = greet(&s, WIRE_HELLO_DATA, 2);
    ping_fd = s.main;
    expect_abort(&s);

    step = "only a main channel";
    s = begin_session("missing", 4, 0);
    ping_fd = s.main;
    expect_abort(&s);
    ping_fd = -1;

    step = "a main channel that ends";
    s = begin_session("missing", 4, 0);
    s.data[1] = greet(&s, WIRE_HELLO_DATA, 1);
    leave(&s);
}

static void channels(void)
{
    struct session s = begin_session("channels", 2, 0);
    struct wire_hello hello = s.hello;

    hello.kind = WIRE_HELLO_DATA;
    s.data[0] = greet(&s, WIRE_HELLO_DATA, 0);
    hello.channel = 0;
    seal_hello(&hello);
    try_hello("a channel that is there already", &hello);
    hello.channel = 2;
    hello.channels = 3;
    seal_hello(&hello);
    try_hello("a channel of another number", &hello);
    hello.channel = 1;
    hello.channels = 2;
    hello.session[0] ^= 1;
    seal_hello(&hello);
    try_hello("a channel of another session", &hello);
    name_it(&hello, "nobody", 6);
    seal_hello(&hello);
    try_hello("a channel of no migration", &hello);
    step = "the last channel";
    s.data[1] = greet(&s, WIRE_HELLO_DATA, 1);
    if (announce(&s, WIRE_RAM, 4096, "ram", 3) != CAUSE_NONE)
        fail("the image is refused");
    hello = s.hello;
    hello.kind = WIRE_HELLO_DATA;
    seal_hello(&hello);
    try_hello("a channel that comes too late", &hello);

    step = "a question about nothing";
    hello = make_hello(WIRE_HELLO_QUERY, "nobody", 1);
    int fd = dial();
    put(fd, &hello, sizeof(hello));
    struct wire_hello_reply reply = get_reply(fd);
    if (reply.cause != CAUSE_NONE || reply.outcome != WIRE_OUTCOME_UNKNOWN)
        fail("it knows something");
    expect_end(fd);

    step = "and then it ends";
    leave(&s);
}

/*
 * Messages
 */

static void raw_message(const char *what, uint32_t magic, unsigned type, uint32_t length, int break_check)
{
    struct session s = begin(what, 1, 0);
    struct wire_message message = {.magic = magic, .type = (uint16_t)type, .length = length};

    message.check = sum(&message, sizeof(message) - WIRE_CHECK_SIZE) ^ (unsigned)break_check;
    put(s.main, &message, sizeof(message));
    expect_abort(&s);
}

static void message_with(const char *what, unsigned type, uint64_t id, const struct body *body)
{
    struct session s = begin_with_ram(what, 2, 0);

    put_message(&s, type, id, body->data, body->length);
    expect_abort(&s);
}

#define BODY(...)                                                                                           \
    ({                                                                                                      \
        static struct body body_;                                                                           \
        struct body *b = &body_;                                                                            \
        b->length = 0;                                                                                      \
        __VA_ARGS__;                                                                                        \
        b;                                                                                                  \
    })

static void refused_file(struct session *s, const char *what, uint64_t size, const char *name, size_t len)
{
    step = what;
    if (announce(s, 1, size, name, len) == CAUSE_NONE)
        fail("it is accepted");
}

/* They are refused, and nothing else happens. */
static void pieces_that_are_not_there(void)
{
    static char answer[BODY_MAX];
    const struct {
        const char *what;
        uint64_t first;
        uint32_t count;
        bool there;
    } questions[] = {{"the piece that is there", 0, 1, true},
                     {"a piece past the end", 1, 1, false},
                     {"a piece over the end", 0, 2, false},
                     {"piece 2^64-1", UINT64_MAX, 2, false}};
    struct session s = begin_with_ram("pieces of a file", 1, 0);

    for (size_t i = 0; i < sizeof(questions) / sizeof(questions[0]); i++) {
        step = questions[i].what;
        struct body *body = BODY(add_u32(b, 0); add_u32(b, questions[i].count); add_u64(b, questions[i].first));
        put_message(&s, WIRE_VERIFY, i + 1, body->data, body->length);
        struct wire_message message = get_message(&s, answer);
        if (message.type != WIRE_VERIFY_REPLY || message.id != i + 1 || message.length != (questions[i].there ? 20 : 4))
            fail("another answer than was due");
    }
    leave(&s);
}

static void files(void)
{
    struct session s = begin_with_ram("files", 1, 0);
    char name[16];

    refused_file(&s, "a device ../x", 0, "../x", 4);
    refused_file(&s, "a device a/b", 0, "a/b", 3);
    refused_file(&s, "a device .", 0, ".", 1);
    refused_file(&s, "a device with an escape", 0, "\033c", 2);
    refused_file(&s, "a device that is too large", 1ull << 40, "large", 5);
    for (uint32_t id = 1;; id++) {
        step = "too many devices";
        snprintf(name, sizeof(name), "dev%u", id);
        if (announce(&s, id, 0, name, strlen(name)) != CAUSE_NONE)
            break;
        if (id == WIRE_DEVICES_MAX)
            fail("there is no limit");
    }
    leave(&s);

    s = begin("an image that is too large", 1, 0);
    if (announce(&s, WIRE_RAM, 1ull << 45, "ram", 3) == CAUSE_NONE)
        fail("it is accepted");
    leave(&s);
}

/* A migration with the devices 1 and 2, whose changes wait for a packet that does not come. */
static struct session begin_with_devices(const char *what)
{
    struct session s = begin_with_ram(what, 1, 0);

    if (announce(&s, 1, 0, "a", 1) != CAUSE_NONE || announce(&s, 2, 0, "b", 1) != CAUSE_NONE)
        fail("the devices are refused");
    return s;
}

static void put_removal(struct session *s, uint32_t file, uint64_t count)
{
    struct body *body = BODY(add_u32(b, file); add_u64(b, count));

    put_message(s, WIRE_FILE_REMOVE, 1, body->data, body->length);
}

static void put_renaming(struct session *s, uint32_t file, uint32_t replaced, const char *name)
{
    struct body *body = BODY(add_u32(b, file); add_u64(b, 1); add_u32(b, replaced); add_u16(b, (uint16_t)strlen(name));
                             add(b, name, strlen(name)));

    put_message(s, WIRE_FILE_RENAME, 1, body->data, body->length);
}

#define CHANGES(what, ...)                                                                                  \
    do {                                                                                                    \
        struct session s = begin_with_devices(what);                                                        \
        __VA_ARGS__;                                                                                        \
        expect_abort(&s);                                                                                   \
    } while (0)

static void changes(void)
{
    CHANGES("a removal of the image", put_removal(&s, 0, 0));
    CHANGES("a removal of file 4294967295", put_removal(&s, UINT32_MAX, 0));
    CHANGES("a removal twice", put_removal(&s, 1, 1); put_removal(&s, 1, 0));
    CHANGES("a removal of what has been removed", put_removal(&s, 1, 0); put_removal(&s, 1, 0));
    CHANGES("a new name for the image", put_renaming(&s, 0, 0, "c"));
    CHANGES("a new name for what is removed", put_removal(&s, 1, 1); put_renaming(&s, 1, 0, "c"));
    CHANGES("a name that is taken", put_renaming(&s, 1, 0, "b"));
    CHANGES("the name of another one than it replaces", put_renaming(&s, 1, 2, "c"));
    CHANGES("a device that replaces itself", put_renaming(&s, 1, 1, "a"));
    CHANGES("a device that replaces file 4294967295", put_renaming(&s, 1, UINT32_MAX, "c"));
    CHANGES("a new name ../c", put_renaming(&s, 1, 0, "../c"));
    CHANGES("a new name with an escape", put_renaming(&s, 1, 0, "\033c"));
    CHANGES("1000 changes", for (int i = 0; i < 1000; i++) put_renaming(&s, 1, 0, i % 2 ? "c" : "d"));
    CHANGES("the number of what is still there", put_removal(&s, 1, 1);
            struct body *body = BODY(add_u32(b, 1); add_u64(b, 0); add_u16(b, 1); add(b, "c", 1));
            put_message(&s, WIRE_FILE_CREATE, 0, body->data, body->length));

    /* As often as it likes, when it is answered in between. */
    struct session s = begin_with_devices("1000 removals");
    for (int i = 0; i < 1000; i++) {
        put_removal(&s, 1, 0);
        static char answer[BODY_MAX];
        if (get_message(&s, answer).type != WIRE_FILE_REMOVE)
            fail("it is not removed");
        if (announce(&s, 1, 4096, "a", 1) != CAUSE_NONE)
            fail("its number is not free");
    }
    leave(&s);
}

static void many_barriers(void)
{
    struct session s = begin_with_ram("5000 barriers", 1, 0);
    struct body *body = BODY(add_u64(b, 1ull << 60));

    for (uint64_t i = 1; i <= 5000; i++)
        put_message(&s, WIRE_SYNC, i, body->data, body->length);
    expect_abort(&s);
}

static void unfinished_message(void)
{
    struct session s = begin_with_ram("a message that does not end", 1, 0);
    struct wire_message message = {.magic = 0x4d47494d, .type = WIRE_SYNC, .length = WIRE_BODY_MAX};

    message.check = sum(&message, sizeof(message) - WIRE_CHECK_SIZE);
    put(s.main, &message, sizeof(message));
    /* Something comes all the time, but no message. */
    long long end = now_ms() + 2 * WAIT_MS;
    for (;;) {
        struct pollfd pfd = {.fd = s.main, .events = POLLRDHUP};
        if (now_ms() > end)
            fail("it waits for ever");
        if (poll(&pfd, 1, 200) > 0)
            break;
        put(s.main, "0123456789", 10);
    }
    expect_abort(&s);
}

static void messages_early(void)
{
    step = "a message before the channels are there";
    struct session s = begin_session("adversary", 2, 0);
    put_message(&s, WIRE_COMMIT, 1, NULL, 0);
    expect_abort(&s);
}

/* A manifest that leaves out a file may be an old one: it is ignored, and nothing can be committed. */
static void manifest_of_nothing(void)
{
    struct session s = begin_with_ram("a manifest of no files", 1, 0);
    struct body *body = BODY(add_u64(b, 0); add_u32(b, 0));

    put_message(&s, WIRE_COMPLETE, 1, body->data, body->length);
    put_message(&s, WIRE_COMMIT, 1, NULL, 0);
    expect_abort(&s);
}

static void silent_source(void)
{
    struct session s = begin_with_ram("a source that falls silent", 1, 0);

    expect_abort(&s);
}

static void abort_with_escapes(void)
{
    struct session s = begin_with_ram("an abort with escapes", 1, 0);
    struct body *body = BODY(add_u32(b, CAUSE_PEER); add_u16(b, 5); add(b, "\033[2J\n", 5));

    put_message(&s, WIRE_ABORT, 0, body->data, body->length);
    leave(&s);
    s = begin_with_ram("an abort that makes no sense", 1, 0);
    body = BODY(add_u32(b, 77777); add_u16(b, 60000));
    put_message(&s, WIRE_ABORT, 0, body->data, body->length);
    leave(&s);
}

static void messages(void)
{
    raw_message("a message without magic", 0, WIRE_SYNC, 0, 0);
    raw_message("message type 0", 0x4d47494d, 0, 0, 0);
    raw_message("message type 99", 0x4d47494d, 99, 0, 0);
    raw_message("message type 65535", 0x4d47494d, 65535, 0, 0);
    raw_message("a message of 4 GiB", 0x4d47494d, WIRE_SYNC, UINT32_MAX, 0);
    raw_message("a message that is a byte too long", 0x4d47494d, WIRE_SYNC, WIRE_BODY_MAX + 1, 0);
    raw_message("a message with a wrong check", 0x4d47494d, WIRE_PING, 0, 1);
    messages_early();
    for (unsigned type = 1; type < WIRE_MESSAGE_MAX; type++) {
        if (type == WIRE_PING || type == WIRE_ABORT)
            continue;
        char what[40];
        snprintf(what, sizeof(what), "message type %u with no body", type);
        message_with(what, type, 1, BODY());
        snprintf(what, sizeof(what), "message type %u with a large body", type);
        message_with(what, type, 1, BODY(memset(b->data, 0xff, WIRE_BODY_MAX); b->length = WIRE_BODY_MAX));
    }
    message_with("a file whose number is taken", WIRE_FILE_CREATE, 0,
                 BODY(add_u32(b, 0); add_u64(b, 0); add_u16(b, 1); add(b, "x", 1)));
    message_with("file 4097", WIRE_FILE_CREATE, 0,
                 BODY(add_u32(b, 4097); add_u64(b, 0); add_u16(b, 1); add(b, "x", 1)));
    message_with("file 4294967295", WIRE_FILE_CREATE, 0,
                 BODY(add_u32(b, UINT32_MAX); add_u64(b, 0); add_u16(b, 1); add(b, "x", 1)));
    message_with("a file of 2^63 bytes", WIRE_FILE_CREATE, 0,
                 BODY(add_u32(b, 1); add_u64(b, 1ull << 63); add_u16(b, 1); add(b, "x", 1)));
    message_with("a file whose name is longer than the message", WIRE_FILE_CREATE, 0,
                 BODY(add_u32(b, 1); add_u64(b, 0); add_u16(b, 200); add(b, "x", 1)));
    message_with("a file with a NUL in its name", WIRE_FILE_CREATE, 0,
                 BODY(add_u32(b, 1); add_u64(b, 0); add_u16(b, 3); add(b, "a\0b", 3)));
    message_with("the end of the image", WIRE_FILE_END, 0, BODY(add_u32(b, 0); add_u64(b, 0); add_u64(b, 0)));
    message_with("the end of file 4294967295", WIRE_FILE_END, 0,
                 BODY(add_u32(b, UINT32_MAX); add_u64(b, 0); add_u64(b, 0)));
    message_with("a barrier with one count of two", WIRE_SYNC, 1, BODY(add_u64(b, 0)));
    message_with("a barrier with three counts of two", WIRE_SYNC, 1,
                 BODY(add_u64(b, 0); add_u64(b, 0); add_u64(b, 0)));
    message_with("a manifest of 4294967295 files", WIRE_COMPLETE, 1,
                 BODY(add_u64(b, 0); add_u64(b, 0); add_u32(b, UINT32_MAX)));
    message_with("a manifest of what was not sent", WIRE_COMPLETE, 1,
                 BODY(add_u64(b, 0); add_u64(b, 0); add_u32(b, 1); add_u32(b, 0); add_u32(b, 0);
                      add_u64(b, 1 << 20); add_u64(b, 1); add_u64(b, 4096); add_u64(b, 12345)));
    message_with("a manifest of another size", WIRE_COMPLETE, 1,
                 BODY(add_u64(b, 0); add_u64(b, 0); add_u32(b, 1); add_u32(b, 0); add_u32(b, 0);
                      add_u64(b, 4096); add_u64(b, 0); add_u64(b, 0); add_u64(b, 0)));
    message_with("a question about pieces of an unknown file", WIRE_VERIFY, 1,
                 BODY(add_u32(b, 7); add_u32(b, 1); add_u64(b, 0)));
    message_with("a question about no pieces", WIRE_VERIFY, 1, BODY(add_u32(b, 0); add_u32(b, 0); add_u64(b, 0)));
    message_with("a question about 4294967295 pieces", WIRE_VERIFY, 1,
                 BODY(add_u32(b, 0); add_u32(b, UINT32_MAX); add_u64(b, 0)));
    message_with("half a question about pieces", WIRE_VERIFY, 1, BODY(add_u32(b, 0); add_u32(b, 1)));
    pieces_that_are_not_there();
    message_with("a commit of nothing", WIRE_COMMIT, 1, BODY());
    message_with("a commit of id 0", WIRE_COMMIT, 0, BODY());
    files();
    changes();
    many_barriers();
    manifest_of_nothing();
    abort_with_escapes();
    silent_source();
    unfinished_message();
}

/*
 * Packets
 */

static struct wire_packet make_packet(struct session *s, unsigned type)
{
    return (struct wire_packet){.magic = 0x5047494d, .type = (uint8_t)type, .sequence = ++s->sequence[0]};
}

static void put_packet(struct session *s, struct wire_packet *packet, const void *payload, size_t len)
{
    packet->check = sum(packet, sizeof(*packet) - WIRE_CHECK_SIZE);
    put(s->data[0], packet, sizeof(*packet));
    if (len)
        put(s->data[0], payload, len);
}

static char payload[2 << 20];

/* One packet; `p` is it, `len` how much follows it. */
#define PACKET(what, features, kind, change)                                                                \
    do {                                                                                                    \
        struct session s = begin_with_ram(what, 2, features);                                               \
        struct wire_packet p = make_packet(&s, kind);                                                       \
        size_t len = 0;                                                                                     \
        change;                                                                                             \
        put_packet(&s, &p, payload, len);                                                                   \
        expect_abort(&s);                                                                                   \
    } while (0)

#define WITH_DATA(n) (p.length = p.raw_length = (uint32_t)(n), len = (n), p.payload_check = sum(payload, n))

static void packets(void)
{
    PACKET("a packet without magic", 0, WIRE_DATA, p.magic = 0);
    PACKET("packet type 0", 0, 0, WITH_DATA(10));
    PACKET("packet type 99", 0, 99, WITH_DATA(10));
    PACKET("packet flags 255", 0, WIRE_DATA, p.flags = 255; WITH_DATA(10));
    PACKET("a packet of another channel", 0, WIRE_DATA, p.channel = 1; WITH_DATA(10));
    PACKET("a packet of channel 65535", 0, WIRE_DATA, p.channel = 65535; WITH_DATA(10));
    PACKET("a packet of an unknown file", 0, WIRE_DATA, p.file = 1; WITH_DATA(10));
    PACKET("a packet of file 4294967295", 0, WIRE_DATA, p.file = UINT32_MAX; WITH_DATA(10));
    PACKET("packet number 0", 0, WIRE_DATA, p.sequence = 0; WITH_DATA(10));
    PACKET("packet number 2 first", 0, WIRE_DATA, p.sequence = 2; WITH_DATA(10));
    PACKET("packet number 2^64-1", 0, WIRE_DATA, p.sequence = UINT64_MAX; WITH_DATA(10));
    PACKET("a packet of no bytes", 0, WIRE_DATA, p.length = 0);
    PACKET("a packet of 4 GiB", 0, WIRE_DATA, p.length = p.raw_length = UINT32_MAX);
    PACKET("a packet over the end of its stripe", 0, WIRE_DATA, p.offset = WIRE_STRIPE_SIZE - 5; WITH_DATA(10));
    PACKET("a packet of more than a stripe", 0, WIRE_DATA, WITH_DATA(WIRE_STRIPE_SIZE + 1));
    PACKET("a packet whose home is another channel", 0, WIRE_DATA, p.offset = WIRE_STRIPE_SIZE; WITH_DATA(10));
    PACKET("a packet at 2^64-5", 0, WIRE_DATA, p.offset = UINT64_MAX - 4; WITH_DATA(10));
    PACKET("a packet at 2^63", 0, WIRE_DATA, p.offset = 1ull << 63; WITH_DATA(10));
    PACKET("a packet at 2^46", 0, WIRE_DATA, p.offset = WIRE_OFFSET_MAX; WITH_DATA(10));
    PACKET("a packet past the limit", 0, WIRE_DATA, p.offset = 1ull << 40; WITH_DATA(10));
    PACKET("a damaged payload", WIRE_FEATURE_CHECKSUM, WIRE_DATA, WITH_DATA(100000); p.payload_check ^= 1);
    PACKET("a discard of nothing", 0, WIRE_DISCARD, p.range = 0);
    PACKET("a discard of 2^63 bytes", 0, WIRE_DISCARD, p.range = 1ull << 63);
    PACKET("a discard past 2^64", 0, WIRE_DISCARD, p.offset = WIRE_OFFSET_MAX; p.range = UINT64_MAX - 10);
    PACKET("a discard with a payload", 0, WIRE_DISCARD, p.range = 4096; WITH_DATA(10));
    PACKET("truncation 0", 0, WIRE_TRUNCATE, p.offset = 4096);
    PACKET("a truncation past the limit", 0, WIRE_TRUNCATE, p.offset = WIRE_OFFSET_MAX; p.range = 1);
    PACKET("a truncation to 2^63", 0, WIRE_TRUNCATE, p.offset = 1ull << 63; p.range = 1);
    PACKET("a truncation with a payload", 0, WIRE_TRUNCATE, p.range = 1; WITH_DATA(10));
    PACKET("zero pages that are none", 0, WIRE_ZERO, p.offset = 1; p.range = 4096);
    PACKET("no zero pages", 0, WIRE_ZERO, p.range = 0);
    PACKET("zero pages past the stripe", 0, WIRE_ZERO, p.range = 2 * WIRE_STRIPE_SIZE);
    PACKET("2^63 zero bytes", 0, WIRE_ZERO, p.range = 1ull << 63);
    PACKET("zero pages past the limit", 0, WIRE_ZERO, p.offset = 1ull << 40; p.range = 4096);
    PACKET("zero pages with a payload", 0, WIRE_ZERO, p.range = 4096; WITH_DATA(4096));
    PACKET("pages without a bitmap", 0, WIRE_PAGES, p.range = 8192);
    PACKET("pages with a short bitmap", 0, WIRE_PAGES, p.range = 8192; WITH_DATA(4));
    PACKET("pages with fewer pages than bits", 0, WIRE_PAGES, p.range = 8192; memset(payload, 0xff, 8);
           WITH_DATA(8 + 4096));
    PACKET("pages with bits past the range", 0, WIRE_PAGES, p.range = 8192; memset(payload, 0xff, 8);
           WITH_DATA(8 + 64 * 4096));
    PACKET("pages past the stripe", 0, WIRE_PAGES, p.offset = WIRE_STRIPE_SIZE - 4096; p.range = 8192;
           WITH_DATA(8));
    PACKET("pages whose raw length is 4 GiB", 0, WIRE_PAGES, p.range = 8192; WITH_DATA(8);
           p.raw_length = UINT32_MAX);
    PACKET("pages that are not whole", 0, WIRE_PAGES, p.range = 5000; WITH_DATA(8));
    memset(payload, 0, 16);
    PACKET("compression that was not asked for", 0, WIRE_DATA, p.flags = WIRE_PACKET_ZSTD; WITH_DATA(1000);
           p.raw_length = 4096);
    PACKET("a frame that is none", WIRE_FEATURE_ZSTD, WIRE_DATA, p.flags = WIRE_PACKET_ZSTD; WITH_DATA(1000);
           p.raw_length = 4096);
    PACKET("a frame whose raw length is 4 GiB", WIRE_FEATURE_ZSTD, WIRE_DATA, p.flags = WIRE_PACKET_ZSTD;
           WITH_DATA(1000); p.raw_length = UINT32_MAX);
    PACKET("a frame whose raw length is 0", WIRE_FEATURE_ZSTD, WIRE_DATA, p.flags = WIRE_PACKET_ZSTD;
           WITH_DATA(1000); p.raw_length = 0);

    struct session s = begin_with_ram("a packet with a wrong check", 2, 0);
    struct wire_packet p = make_packet(&s, WIRE_DISCARD);
    p.range = 4096;
    p.check = 1;
    put(s.data[0], &p, sizeof(p));
    expect_abort(&s);

    s = begin("a packet before there is a file", 1, 0);
    p = make_packet(&s, WIRE_DATA);
    p.length = p.raw_length = 10;
    put_packet(&s, &p, payload, 10);
    expect_abort(&s);

    s = begin_with_ram("a packet that ends early", 1, 0);
    p = make_packet(&s, WIRE_DATA);
    p.length = p.raw_length = 1000;
    put_packet(&s, &p, payload, 500);
    shutdown(s.data[0], SHUT_WR);
    expect_abort(&s);

    s = begin_with_ram("the same truncation twice", 1, 0);
    for (int i = 0; i < 2; i++) {
        p = make_packet(&s, WIRE_TRUNCATE);
        p.range = 1;
        p.offset = 8192;
        put_packet(&s, &p, NULL, 0);
    }
    expect_abort(&s);

    s = begin_with_ram("a damaged payload of a device, without the feature", 2, 0);
    if (announce(&s, 1, 0, "dev", 3) != CAUSE_NONE)
        fail("a device is refused");
    p = make_packet(&s, WIRE_DATA);
    p.file = 1;
    p.offset = WIRE_STRIPE_SIZE;
    p.length = p.raw_length = 10;
    p.payload_check = sum(payload, 10) ^ 1;
    put_packet(&s, &p, payload, 10);
    expect_abort(&s);

    s = begin_with_ram("more data than there was before the commit", 1, 0);
    struct body *body = BODY(add_u64(b, 0); add_u32(b, 1); add_u32(b, 0); add_u32(b, 0); add_u64(b, 1 << 20);
                             add_u64(b, 0); add_u64(b, 0); add_u64(b, 0));
    put_message(&s, WIRE_COMPLETE, 9, body->data, body->length);
    static char answer[BODY_MAX];
    if (get_message(&s, answer).type != WIRE_PREPARED)
        fail("it is not prepared");
    p = make_packet(&s, WIRE_DATA);
    p.length = p.raw_length = 10;
    put_packet(&s, &p, payload, 10);
    /* Until it is applied, the commit would be right. */
    body = BODY(add_u64(b, 1));
    put_message(&s, WIRE_SYNC, 10, body->data, body->length);
    if (get_message(&s, answer).type != WIRE_SYNC_ACK)
        fail("no answer to a barrier");
    put_message(&s, WIRE_COMMIT, 9, NULL, 0);
    expect_abort(&s);
}

static void noise(int count, uint64_t seed)
{
    static char junk[65536];

    printf("seed %llu\n", (unsigned long long)seed);
    for (int i = 0; i < count; i++) {
        uint64_t state = seed + (uint64_t)i;
        int on_main = draw(&state) % 2;
        struct session s = begin_with_ram(on_main ? "noise on the main channel" : "noise on a data channel", 2,
                                          WIRE_FEATURES);
        size_t len = 64 + (size_t)(draw(&state) % (sizeof(junk) - 64));
        for (size_t k = 0; k < len; k++)
            junk[k] = (char)draw(&state);
        put(on_main ? s.main : s.data[draw(&state) % 2], junk, len);
        expect_abort(&s);
    }
}

static void budget(void)
{
    struct session s[10];
    int refused = 0;

    for (int i = 0; i < 10; i++) {
        char name[16];
        step = "memory for all";
        snprintf(name, sizeof(name), "budget%d", i);
        s[i] = begin_session(name, 1, 0);
        attach(&s[i]);
        refused += announce(&s[i], WIRE_RAM, 64 << 20, "ram", 3) != CAUSE_NONE;
    }
    if (!refused)
        fail("there is no limit");
    for (int i = 0; i < 10; i++)
        leave(&s[i]);
}

static void many(int count)
{
    struct session *s = calloc((size_t)count, sizeof(*s));
    int n;

    step = "too many migrations";
    for (n = 0; n < count; n++) {
        char name[16];
        snprintf(name, sizeof(name), "many%d", n);
        s[n].hello = make_hello(WIRE_HELLO_MAIN, name, 1);
        s[n].main = dial();
        put(s[n].main, &s[n].hello, sizeof(s[n].hello));
        struct wire_hello_reply reply = get_reply(s[n].main);
        if (reply.cause != CAUSE_NONE) {
            printf("%s: %.*s\n", step, reply.text_length, reply.text);
            break;
        }
    }
    if (n == count)
        fail("there is no limit");
    for (int i = 0; i <= n; i++)
        close(s[i].main);
    free(s);
}

static void expect_message(struct session *s, unsigned type)
{
    static char answer[BODY_MAX];

    if (get_message(s, answer).type != type)
        fail("another answer is due");
}

static void empty(int count)
{
    step = "an empty migration";
    for (int i = 0; i < count; i++) {
        char name[40];
        snprintf(name, sizeof(name), "empty%d-%d", (int)getpid(), i);
        struct session s = begin_session(name, 1, 0);
        attach(&s);
        struct body *body = BODY(add_u64(b, 0); add_u32(b, 0));
        put_message(&s, WIRE_COMPLETE, 1, body->data, body->length);
        expect_message(&s, WIRE_PREPARED);
        put_message(&s, WIRE_COMMIT, 1, NULL, 0);
        expect_message(&s, WIRE_COMMITTED);
        close(s.main);
        close(s.data[0]);
    }
}

static void devices(int count, uint32_t number)
{
    step = "many devices";
    for (int i = 0; i < count; i++) {
        char name[24];
        snprintf(name, sizeof(name), "devices%d", i);
        struct session s = begin_session(name, 1, 0);
        attach(&s);
        if (announce(&s, WIRE_RAM, 256 << 20, "ram", 3) != CAUSE_NONE)
            fail("the image is refused");
        for (uint32_t id = 1; id <= number; id++) {
            snprintf(name, sizeof(name), "dev%u", id);
            if (announce(&s, id, 0, name, strlen(name)) != CAUSE_NONE)
                fail("a device is refused");
            struct wire_packet p = make_packet(&s, WIRE_DATA);
            size_t len = 0;
            p.file = id;
            WITH_DATA(1);
            put_packet(&s, &p, payload, len);
        }
        struct body *body = BODY(add_u64(b, s.sequence[0]));
        put_message(&s, WIRE_SYNC, 1, body->data, body->length);
        expect_message(&s, WIRE_SYNC_ACK);
        leave(&s);
    }
}

/* 64 KiB of one byte, as a frame of zstd: a block that says so. */
static const unsigned char frame[] = {0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0, 1, 0, 3, 0, 8, 'x'};

/* What is said to the main channel; NULL: it is welcome. */
static const char *try_main(struct session *s, const char *name, unsigned channels, uint64_t features)
{
    static struct wire_hello_reply reply;

    *s = (struct session){.hello = make_hello(WIRE_HELLO_MAIN, name, channels), .channels = channels};
    s->hello.features = features;
    seal_hello(&s->hello);
    s->main = dial();
    put(s->main, &s->hello, sizeof(s->hello));
    reply = get_reply(s->main);
    reply.text[reply.text_length] = '\0';
    return reply.cause == CAUSE_NONE ? NULL : reply.text;
}

static void packed(int count)
{
    struct session *s = calloc((size_t)count, sizeof(*s));
    const char *refusal = NULL;
    int n;

    step = "128 channels";
    for (n = 0; n < count; n++) {
        char name[24];
        snprintf(name, sizeof(name), "packed%d", n);
        refusal = try_main(&s[n], name, WIRE_CHANNELS_MAX, WIRE_FEATURE_ZSTD);
        if (refusal)
            break;
        attach(&s[n]);
        if (announce(&s[n], WIRE_RAM, WIRE_CHANNELS_MAX * (uint64_t)WIRE_STRIPE_SIZE, "ram", 3) != CAUSE_NONE)
            break;
        struct body *body = BODY();
        for (unsigned c = 0; c < WIRE_CHANNELS_MAX; c++) {
            struct wire_packet p = make_packet(&s[n], WIRE_DATA);
            p.sequence = 1;
            p.channel = (uint16_t)c;
            p.offset = c * (uint64_t)WIRE_STRIPE_SIZE;
            p.flags = WIRE_PACKET_ZSTD;
            p.length = sizeof(frame);
            p.raw_length = 65536;
            p.payload_check = sum(frame, sizeof(frame));
            p.check = sum(&p, sizeof(p) - WIRE_CHECK_SIZE);
            put(s[n].data[c], &p, sizeof(p));
            put(s[n].data[c], frame, sizeof(frame));
            add_u64(body, 1);
        }
        put_message(&s[n], WIRE_SYNC, 1, body->data, body->length);
        expect_message(&s[n], WIRE_SYNC_ACK);
    }
    printf("%s: %d, and then: %s\n", step, n, refusal ? refusal : "the image is refused");
    if (n == count)
        fail("there is no limit");
    if (n == 0)
        fail("there is none");
    for (int i = 0; i < n; i++)
        leave(&s[i]);
    close(s[n].main);
    free(s);
}

static void barriers(void)
{
    step = "barriers of 128 counts";
    struct session s = begin_session("barriers", WIRE_CHANNELS_MAX, 0);
    attach(&s);
    struct body *body = BODY();
    for (unsigned c = 0; c < WIRE_CHANNELS_MAX; c++)
        add_u64(body, 1ull << 60);
    for (uint64_t i = 1; i <= 4096; i++)
        put_message(&s, WIRE_SYNC, i, body->data, body->length);
    leave(&s);
}

static void hold(void)
{
    static struct session s[70000];
    const char *refusal = NULL;
    char rest;
    int n;

    step = "migrations that never begin";
    raise_descriptor_limit();
    for (n = 0; n < 70000 && !refusal; n++) {
        char name[24];
        snprintf(name, sizeof(name), "hold%d", n);
        refusal = try_main(&s[n], name, 1, 0);
    }
    if (!refusal)
        fail("there is no limit");
    printf("%s: %d, and then: %s\nheld\n", step, n - 1, refusal);
    while (read(0, &rest, 1) > 0)
        ;
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    port = atoi(argv[1]);
    setvbuf(stdout, NULL, _IOLBF, 0);
    const char *what = argv[2];
    int count = argc > 3 ? atoi(argv[3]) : 0;
    uint64_t seed = argc > 4 ? strtoull(argv[4], NULL, 0) : 1;

    if (!strcmp(what, "hellos"))
        hellos();
    else if (!strcmp(what, "random"))
        random_bytes(count, seed);
    else if (!strcmp(what, "cut"))
        cut();
    else if (!strcmp(what, "idle"))
        idle(count);
    else if (!strcmp(what, "same") && argc > 3)
        same(argv[3]);
    else if (!strcmp(what, "missing"))
        missing();
    else if (!strcmp(what, "channels"))
        channels();
    else if (!strcmp(what, "messages"))
        messages();
    else if (!strcmp(what, "packets"))
        packets();
    else if (!strcmp(what, "noise"))
        noise(count, seed);
    else if (!strcmp(what, "budget"))
        budget();
    else if (!strcmp(what, "many"))
        many(count);
    else if (!strcmp(what, "empty"))
        empty(count);
    else if (!strcmp(what, "devices"))
        devices(count, (uint32_t)seed);
    else if (!strcmp(what, "packed"))
        packed(count);
    else if (!strcmp(what, "barriers"))
        barriers();
    else if (!strcmp(what, "hold"))
        hold();
    else
        return 2;
    return 0;
}
