/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A transport moves bytes, in order, between two ends. It knows nothing of
 * migrations.
 *
 * Theory of operation
 *   A URI names an address and the family that understands it. A family makes
 *   connections (transport_connect()) and listeners (transport_listen());
 *   a listener hands out connections too. One connection is one channel of a
 *   migration: one thread at a time sends, one thread at a time receives, and
 *   any thread may call transport_shutdown() to make both return.
 *
 *   A family that is not built is a file that says so (rdma_none.c). A
 *   transport can be a layer on another one (faulty.c): it implements the same
 *   operations, and forwards them. It takes the other one's place under the same
 *   pointer, so that also a connection that is in use, such as one that has shaken
 *   hands, can get a layer (transport_upgrade()).
 */
#ifndef MIGFS_TRANSPORT_H
#define MIGFS_TRANSPORT_H

#include "error.h"
#include "uri.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#define TRANSPORT_PEER_MAX    128
#define TRANSPORT_ADDRESS_MAX 72
#define TRANSPORT_IOV_MAX     272 /* each page of a MiB, and what stands before them */
#define TRANSPORT_GROUP_SIZE  16
#define TRANSPORT_NAME_MAX    192
#define TRANSPORT_HOST_MAX    256
/* bytes: how much memory is registered at once, unless it is said */
#define TRANSPORT_CHUNK (32u << 20)

struct transport;
struct transport_listener;

/*
 * How long to wait for something, and what ends the wait early: @cancel_fd
 * becomes readable (-1: nothing does), or the monotonic clock passes @deadline_ms.
 */
struct transport_wait {
    int cancel_fd;
    int64_t deadline_ms;
};

enum transport_recv_flags {
    TRANSPORT_NOWAIT = 1, /* -EAGAIN instead of waiting */
};

/* What transport_send_zerocopy() has handed over. */
struct transport_handed {
    size_t bytes;    /* of the buffer; they have been sent */
    uint64_t ticket; /* they are the caller's again when this one is back; valid if there are any */
};

/* What has come back of it; sums since the connection was made. */
struct transport_returns {
    uint64_t ticket;                     /* all up to this one are back */
    uint64_t sends, bytes;               /* that have left without a copy */
    uint64_t copied_sends, copied_bytes; /* that the kernel has copied all the same */
};

/* What the connections of one attempt of a migration have in common. */
struct transport_group {
    uint8_t id[TRANSPORT_GROUP_SIZE]; /* random: nobody but the two ends knows it */
    uint64_t chunk;                   /* bytes: how much memory is registered at once; a power of two */
};

/* A range of the peer's memory that it lets this group write, as it came from the peer; opaque. */
struct transport_key {
    uint64_t address;
    uint32_t key;
};

/* What a connection, or its group, has done so far. */
struct transport_figures {
    uint64_t partial_drains;   /* waits for some of what was in flight, since it was too much */
    uint64_t registrations;    /* of chunks of memory; the group's */
    uint64_t evictions;        /* of chunks that made room for others; the group's */
    uint64_t registered_bytes; /* now; the group's */
    /* Since the group was made; what the device counts, of all that use it, if it does: */
    uint64_t rnr_naks; /* sends that found no receive */
    uint64_t retries;  /* requests that were sent once more */
};

/**
 * struct transport_ops - what a connection can do
 *
 * All of them are there: a transport takes from dummy.h what it has nothing of its own for.
 *
 * @send: Sends all of @iov (at most TRANSPORT_IOV_MAX parts) or fails. Called by
 *        one thread at a time; may block for as long as the peer takes nothing,
 *        and returns an error soon after @shutdown. The buffers belong to the
 *        caller again when it returns: what is to be lent for longer goes by @send_zerocopy.
 *        0 or a negative errno.
 * @send_pipe: Sends all of @iov, and then exactly @len bytes of a pipe that does not block
 *        and has them; their pages go out without a copy. Under the rules of @send.
 *        -ENODATA: there were fewer bytes. After an error the connection cannot be used.
 * @zerocopy: Prepares for @send_zerocopy, before the first of them. 0; -EOPNOTSUPP: there is no
 *        such thing here; another negative errno.
 * @send_zerocopy: Sends all of @iov, which may have no parts and is copied, and then of @buf as
 *        much as there is lockable memory for: all of @len, or fewer bytes, *@handed says how
 *        many. Those belong to the kernel or the card until @reap says that their ticket is
 *        back, also after an error and after @shutdown. Under the rules of @send.
 * @place: Writes @len bytes of @buf into the peer's memory, @offset bytes into what @key stands for, so
 *        that they are there before anything is received that is sent later. Until the ticket of *@handed is
 *        back, which @reap says, @key is in use, and any part of @buf may be lent; ticket 0: nothing was
 *        begun. Also after an error, after which the connection cannot be used. Under the rules of @send.
 *        0; -EOPNOTSUPP: there is no such thing here; another negative errno.
 * @expose: Lets the peers of this connection's group write [@base, @base + @len), which is mapped writable
 *        until @withdraw, and pins it. Any thread. 0 and *@key for the peer; -EOPNOTSUPP: there is no such
 *        thing here; -ENOMEM: no more memory may be pinned; another negative errno.
 * @withdraw: Once it returns, nobody writes there any more: a peer that does breaks its connection.
 * @pin: Prepares [@base, @base + @len), which transport_memory_add() knows, to be sent from by @place, for as
 *        long as it is known. 0; -EOPNOTSUPP: nothing has to be prepared; -ENOMEM: so much memory cannot be
 *        pinned; another negative errno.
 * @figures: Adds its figures to *@out: those of the connection, and with @of_group those of its group, too.
 * @reap: Waits until more is back than *@returns says, for @wait_ms at most, and updates it. Any
 *        thread, several at a time, also while another one sends, whom it does not hold up.
 *        After @shutdown all is back soon, whatever the peer does, and only then @close comes.
 * @try_send: Sends as many of @len bytes as can be taken now, in the order of @send
 *        and under its thread rules. The count, -EAGAIN, or another negative errno. After -EAGAIN the next
 *        bytes that are sent are the same ones.
 * @recv: Receives at least one byte. Called by one thread at a time. With
 *        TRANSPORT_NOWAIT it never blocks. The count; 0 at the end of the
 *        stream; a negative errno.
 * @recv_parts: The same into the parts of @iov (1 to TRANSPORT_IOV_MAX, none of them empty), in their order;
 *        blocks until there is something. -EFAULT: a part has gone away, and nothing was received.
 * @recv_fd: Receives at least one byte of the @len that are due straight into a file at
 *        @offset. Under the rules of @recv; the count, 0 or a negative errno. -EBADFD: it is
 *        the file that could not be written, and *@file_code says why; the bytes are lost.
 * @pollfd: A descriptor that polls readable when @recv has something to say, once it has said -EAGAIN:
 *        a layer can hold bytes that the descriptor does not tell of. It stays valid until @close.
 * @set_timeout: A connection on which the peer acknowledges nothing for that many
 *        milliseconds is to fail by itself, as far as the family can notice.
 * @shutdown: Ends both directions. Any thread, any number of times, never blocks.
 * @finish: Tells the peer that nothing more will be sent; receiving goes on. Under the thread rules of @send;
 *        never blocks.
 * @explain: Sets @err if there is more to say of why an operation has just failed than its errno does. Called
 *        by the thread that it failed in.
 * @close: Frees the connection, what is its own and @t itself. The caller makes sure that
 *        nobody uses it.
 */
struct transport_ops {
    const char *name;
    int (*send)(struct transport *t, const struct iovec *iov, int n);
    int (*send_pipe)(struct transport *t, const struct iovec *iov, int n, int pipe, size_t len);
    int (*zerocopy)(struct transport *t);
    int (*send_zerocopy)(struct transport *t, const struct iovec *iov, int n, const void *buf, size_t len,
                         struct transport_handed *handed);
    int (*place)(struct transport *t, const struct transport_key *key, uint64_t offset, const void *buf,
                 size_t len, struct transport_handed *handed);
    int (*expose)(struct transport *t, void *base, size_t len, struct transport_key *key);
    void (*withdraw)(struct transport *t, const struct transport_key *key);
    int (*pin)(struct transport *t, const void *base, size_t len);
    void (*figures)(struct transport *t, bool of_group, struct transport_figures *out);
    void (*reap)(struct transport *t, int wait_ms, struct transport_returns *returns);
    ssize_t (*try_send)(struct transport *t, const void *buf, size_t len);
    ssize_t (*recv)(struct transport *t, void *buf, size_t len, int flags);
    ssize_t (*recv_parts)(struct transport *t, const struct iovec *iov, int n);
    ssize_t (*recv_fd)(struct transport *t, int fd, off_t offset, size_t len, int *file_code);
    int (*pollfd)(struct transport *t);
    void (*set_timeout)(struct transport *t, int timeout_ms);
    void (*shutdown)(struct transport *t);
    void (*finish)(struct transport *t);
    void (*explain)(struct transport *t, struct error *err);
    void (*close)(struct transport *t);
};

/*
 * What pays with a connection: every operation works, but not each is the better way.
 * A family says it when it makes the connection; it is constant.
 */
struct transport_traits {
    uint32_t copy_max;     /* bytes: to copy so many costs no more than to keep them until they have left */
    bool splices;          /* to send what is in a pipe costs less than to read and to send it */
    bool receives_to_file; /* @recv_fd costs less than @recv into the file's mapping */
    bool places;           /* there is @place, and @expose at the other end */
    /* What is sent does not leave the machine, and the kernel has made sure who may connect; layers keep it.
     */
    bool is_local;
    bool seals;         /* a layer can keep it from others (tls.h); layers keep it, until one has */
    bool is_tcp_socket; /* @pollfd is the socket, and there is no layer on it */
};

/* Who is at the other end, when the transport has made sure of it. */
struct transport_identity {
    char name[TRANSPORT_NAME_MAX]; /* for people; empty: nobody has */
    uint8_t digest[32];            /* the same for all connections of one peer, and of no other one */
    bool by_kernel;                /* the kernel encrypts what is sent to it, and decrypts what it sends */
};

/*
 * A connection. Its operations find what is theirs at @own: the struct itself can be
 * another one than it was, because transport_upgrade() moves it.
 */
struct transport {
    const struct transport_ops *ops;
    void *own;
    struct transport_traits traits;
    char peer[TRANSPORT_PEER_MAX]; /* who is at the other end, for people; constant */
    /* Whose connection it is: the same for all of one machine, or of one user of this machine; constant. */
    char address[TRANSPORT_ADDRESS_MAX];
    struct transport_identity identity; /* constant from the first byte received on */
};

/**
 * struct transport_listener_ops - what a listener can do
 * @accept: Never blocks: 0 and a connection, or a negative errno (-EAGAIN: none is waiting).
 * @pollfd: Polls readable when @accept has something to do.
 * @address: The URI that reaches it; differs from the one asked for when the port was 0.
 * @close: Stops listening and frees it.
 */
struct transport_listener_ops {
    int (*accept)(struct transport_listener *l, struct transport **out);
    int (*pollfd)(struct transport_listener *l);
    const char *(*address)(struct transport_listener *l);
    void (*close)(struct transport_listener *l);
};

struct transport_listener {
    const struct transport_listener_ops *ops;
};

/**
 * struct transport_family - how the URIs of one scheme are reached
 * @connect: Blocks until connected, failed, or @wait ends. On success *@out is the caller's.
 * @listen: Binds and listens. On success *@out is the caller's.
 */
struct transport_family {
    int (*connect)(const struct uri *uri, unsigned index, const struct transport_group *group,
                   const struct transport_wait *wait, struct transport **out, struct error *err);
    int (*listen)(const struct uri *uri, struct transport_listener **out, struct error *err);
};

extern const struct transport_family transport_tcp, transport_unix, transport_rdma, transport_faulty;

/**
 * transport_connect - connect to a URI
 * @uri: where to
 * @index: which of the caller's connections to this peer it is, from 0, the main one (faults can pick one)
 * @group: what they have in common; copied
 * @wait: for how long
 * @out: the connection; the caller closes it with transport_close()
 * @err: why not
 */
int transport_connect(const struct uri *uri, unsigned index, const struct transport_group *group,
                      const struct transport_wait *wait, struct transport **out, struct error *err);

/**
 * transport_memory_add - let memory be sent from where it is, by transports that have to register it
 * @base: stays mapped until transport_memory_remove(), which waits for nothing that is in flight: the caller
 * does, before. Memory that is not added can be sent, too; it is copied
 *
 * Return: 0 or -ENOMEM.
 */
int transport_memory_add(void *base, size_t len);
void transport_memory_remove(void *base);

/* Whether rdma: URIs can be used, where there is a device. */
extern const bool transport_has_rdma;

/** transport_listen - listen at a URI; the caller ends it with transport_listener_close() */
int transport_listen(const struct uri *uri, struct transport_listener **out, struct error *err);

/**
 * transport_new - for a family: a connection with nothing but its operations
 * @own: for the operations, the caller's
 *
 * Return: the connection, for @close to free; NULL when memory runs out.
 */
struct transport *transport_new(const struct transport_ops *ops, void *own);

/**
 * transport_upgrade - for a layer: take the place of a connection
 * @t: from now on it is the layer's; nobody else uses it meanwhile, not even for transport_shutdown()
 * @ops, @own: the layer's
 * @below: the connection as it was, which the layer's operations use, and its @close closes
 *
 * Who is at the other end, and what a layer changes nothing about, stays; the other traits are the layer's to
 * set. So the connection gets its layers before anybody goes by its traits: before channel_init(). Return: 0,
 * or -ENOMEM with nothing changed.
 */
int transport_upgrade(struct transport *t, const struct transport_ops *ops, void *own,
                      struct transport **below);

int transport_send(struct transport *t, const struct iovec *iov, int n);
int transport_send_pipe(struct transport *t, const struct iovec *iov, int n, int pipe, size_t len);

/**
 * transport_zerocopy - whether transport_send_zerocopy() and transport_reap() can be used; 0 or a negative
 * errno
 */
int transport_zerocopy(struct transport *t);
int transport_send_zerocopy(struct transport *t, const struct iovec *iov, int n, const void *buf, size_t len,
                            struct transport_handed *handed);
int transport_place(struct transport *t, const struct transport_key *key, uint64_t offset, const void *buf,
                    size_t len, struct transport_handed *handed);
int transport_expose(struct transport *t, void *base, size_t len, struct transport_key *key);
void transport_withdraw(struct transport *t, const struct transport_key *key);
int transport_pin(struct transport *t, const void *base, size_t len);
void transport_figures(struct transport *t, bool of_group, struct transport_figures *out);
void transport_reap(struct transport *t, int wait_ms, struct transport_returns *returns);

ssize_t transport_try_send(struct transport *t, const void *buf, size_t len);

/**
 * transport_send_now - send all of it without ever blocking, for what a new connection always has room for
 * Return: 0; -EAGAIN: there was no room for the rest, and the connection cannot be used; another negative
 * errno.
 */
int transport_send_now(struct transport *t, const void *buf, size_t len);
ssize_t transport_recv(struct transport *t, void *buf, size_t len, int flags);
ssize_t transport_recv_parts(struct transport *t, const struct iovec *iov, int n);

/** transport_recv_fd - whatever the traits say; see there */
ssize_t transport_recv_fd(struct transport *t, int fd, off_t offset, size_t len, int *file_code);

/**
 * transport_recv_all - receive exactly @len bytes
 * @wait: ends the wait early; NULL waits until the peer or transport_shutdown() ends it
 *
 * Return: 0; -ECONNRESET when the stream ends first; -ETIMEDOUT or -ECANCELED
 * when @wait ends; another negative errno.
 */
int transport_recv_all(struct transport *t, void *buf, size_t len, const struct transport_wait *wait);

int transport_pollfd(struct transport *t);
void transport_set_timeout(struct transport *t, int timeout_ms);
void transport_shutdown(struct transport *t);
void transport_finish(struct transport *t);
void transport_explain(struct transport *t, struct error *err);
/** transport_close - free a connection; NULL is fine */
void transport_close(struct transport *t);

int transport_accept(struct transport_listener *l, struct transport **out);
int transport_listener_pollfd(struct transport_listener *l);
const char *transport_listener_address(struct transport_listener *l);
/** transport_listener_close - stop listening; NULL is fine */
void transport_listener_close(struct transport_listener *l);

#endif
