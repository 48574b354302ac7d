/* SPDX-License-Identifier: Apache-2.0 */
/* Connections over the card of verbs.h: with a transport at both ends, or with one that a test plays. */
#ifndef MIGFS_TEST_RDMA_LINK_H
#define MIGFS_TEST_RDMA_LINK_H

#include "link.h"
#include "rdma_queue.h"
#include "verbs.h"

#define RDMA_PLACE "rdma:127.0.0.1:0"

/* A thread that connects. */
struct connecting {
    struct worker worker;
    struct uri uri;
    struct transport_group group;
    struct transport_wait wait;
    struct transport *t;
    struct error err;
    int ret;
    int done_fd;
};

/** connecting_start - to a URI; the group's id is @group; @wait: NULL: nothing ends it */
void connecting_start(struct connecting *c, const char *uri, const char *group,
                      const struct transport_wait *wait);

/** connecting_serve - have the listener do its part until the thread is done. Return: what was accepted, or
 * NULL */
struct transport *connecting_serve(struct connecting *c, struct transport_listener *l);

/** rdma_link_connect - a connection of another group, or another one of the same, to a listener that is there
 */
void rdma_link_connect(struct link *link, const char *group);
void rdma_link_open(struct link *link);

/** heap_in_use - bytes, of all threads; under a sanitizer, which has a heap of its own, always the same */
size_t heap_in_use(void);

/** open_descriptors - of this process */
unsigned open_descriptors(void);

/* An end by hand; it connects. */
struct stranger {
    struct rdma_event_channel *events;
    struct rdma_cm_id *id;
    struct ibv_pd *pd;
    struct ibv_comp_channel *channel;
    struct ibv_cq *cq;
    struct ibv_mr *mr;
    uint8_t *memory; /* STRANGER_MEMORY bytes; receives have the first half */
    struct rdma_greeting greeting;
};
#define STRANGER_MEMORY (1u << 20)

/** stranger_ask - ask a listener for a connection, with the private data @data */
void stranger_ask(struct stranger *s, struct transport_listener *l, const void *data, size_t len);

/** stranger_hear - the next event; the test fails when there is none */
enum rdma_cm_event_type stranger_hear(struct stranger *s);

/** stranger_join - connect with that greeting. Return: the other end */
struct transport *stranger_join(struct stranger *s, struct transport_listener *l, uint32_t receives,
                                uint32_t size);

/** stranger_receive - post a receive */
void stranger_receive(struct stranger *s, uint64_t number);

/** stranger_send - a message of @len bytes of the second half of its memory */
void stranger_send(struct stranger *s, uint32_t len, bool with_imm, uint32_t imm);

/** stranger_next - the next completion; the test fails when there is none */
struct ibv_wc stranger_next(struct stranger *s);
void stranger_free(struct stranger *s);

#endif
