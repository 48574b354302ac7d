/* SPDX-License-Identifier: Apache-2.0 */
/* Connections over the card of verbs.h; see rdma_link.h. */
#include "rdma_link.h"
#include "check.h"
#include "entries.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define CHUNK (1u << 20)

static void connect_work(void *arg)
{
    struct connecting *c = arg;

    c->ret = transport_connect(&c->uri, 1, &c->group, &c->wait, &c->t, &c->err);
    eventfd_write(c->done_fd, 1);
}

void connecting_start(struct connecting *c, const char *uri, const char *group,
                      const struct transport_wait *wait)
{
    struct error err;

    *c = (struct connecting){.group = {.chunk = CHUNK}, .wait = wait ? *wait : link_forever};
    memcpy(c->group.id, group, strnlen(group, sizeof(c->group.id)));
    c->done_fd = eventfd(0, EFD_CLOEXEC);
    CHECK_OK(uri_parse(uri, &c->uri, &err));
    worker_start(&c->worker, connect_work, c);
}

struct transport *connecting_serve(struct connecting *c, struct transport_listener *l)
{
    struct transport *t = NULL;
    struct pollfd fds[2] = {{.fd = c->done_fd, .events = POLLIN},
                            {.fd = transport_listener_pollfd(l), .events = POLLIN}};

    while (!fds[0].revents) {
        struct transport *next;
        poll(fds, 2, -1);
        if (transport_accept(l, &next) == 0) {
            cr_assert(zero(ptr, t));
            t = next;
        }
    }
    worker_join(&c->worker);
    close(c->done_fd);
    return t;
}

void rdma_link_connect(struct link *link, const char *group)
{
    struct connecting c;

    connecting_start(&c, transport_listener_address(link->listener), group, NULL);
    link->b = connecting_serve(&c, link->listener);
    link->a = c.t;
    cr_assert(zero(int, c.ret), "%s", c.err.message);
    cr_assert(ne(ptr, link->b, NULL));
}

void rdma_link_open(struct link *link)
{
    link->listener = link_listen(RDMA_PLACE);
    rdma_link_connect(link, "group");
}

size_t heap_in_use(void)
{
    struct mallinfo2 info = mallinfo2();

    return info.uordblks + info.hblkhd;
}

unsigned open_descriptors(void)
{
    return count_entries("/proc/self/fd");
}

/*
 * An end by hand
 */

enum rdma_cm_event_type stranger_hear(struct stranger *s)
{
    struct rdma_cm_event *event;

    cr_assert(zero(int, rdma_get_cm_event(s->events, &event)));
    enum rdma_cm_event_type type = event->event;
    if (type == RDMA_CM_EVENT_ESTABLISHED && event->param.conn.private_data)
        memcpy(&s->greeting, event->param.conn.private_data, sizeof(s->greeting));
    rdma_ack_cm_event(event);
    return type;
}

static struct sockaddr_in address_of(struct transport_listener *l)
{
    const char *port = strrchr(transport_listener_address(l), ':') + 1;

    return (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port)), .sin_addr = {htonl(INADDR_LOOPBACK)}};
}

void stranger_ask(struct stranger *s, struct transport_listener *l, const void *data, size_t len)
{
    struct sockaddr_in addr = address_of(l);

    *s = (struct stranger){.events = rdma_create_event_channel(), .memory = calloc(1, STRANGER_MEMORY)};
    fcntl(s->events->fd, F_SETFL, O_NONBLOCK);
    rdma_create_id(s->events, &s->id, NULL, RDMA_PS_TCP);
    cr_assert(zero(int, rdma_resolve_addr(s->id, NULL, (struct sockaddr *)&addr, 1000)));
    cr_assert(eq(int, stranger_hear(s), RDMA_CM_EVENT_ADDR_RESOLVED));
    cr_assert(zero(int, rdma_resolve_route(s->id, 1000)));
    cr_assert(eq(int, stranger_hear(s), RDMA_CM_EVENT_ROUTE_RESOLVED));
    s->pd = ibv_alloc_pd(s->id->verbs);
    s->mr = ibv_reg_mr(s->pd, s->memory, STRANGER_MEMORY, IBV_ACCESS_LOCAL_WRITE);
    s->channel = ibv_create_comp_channel(s->id->verbs);
    s->cq = ibv_create_cq(s->id->verbs, 1000, NULL, s->channel, 0);
    struct ibv_qp_init_attr attr = {
        .send_cq = s->cq,
        .recv_cq = s->cq,
        .cap = {.max_send_wr = 400, .max_recv_wr = 400, .max_send_sge = 1, .max_recv_sge = 1},
        .qp_type = IBV_QPT_RC,
    };
    cr_assert(zero(int, rdma_create_qp(s->id, s->pd, &attr)));
    struct rdma_conn_param param = {
        .private_data = data, .private_data_len = (uint8_t)len, .rnr_retry_count = 7};
    cr_assert(zero(int, rdma_connect(s->id, &param)));
}

struct transport *stranger_join(struct stranger *s, struct transport_listener *l, uint32_t receives,
                                uint32_t size)
{
    struct rdma_greeting greeting = {.magic = {'m', 'i', 'g', '1'},
                                     .group = "stranger",
                                     .receives = htole32(receives),
                                     .receive_size = htole32(size)};
    struct transport *t = NULL;

    stranger_ask(s, l, &greeting, sizeof(greeting));
    cr_assert(eq(int, transport_accept(l, &t), -EAGAIN));
    cr_assert(eq(int, stranger_hear(s), RDMA_CM_EVENT_ESTABLISHED));
    cr_assert(zero(int, transport_accept(l, &t)));
    return t;
}

void stranger_receive(struct stranger *s, uint64_t number)
{
    struct ibv_sge part = {(uintptr_t)s->memory, STRANGER_MEMORY / 2, s->mr->lkey};
    struct ibv_recv_wr wr = {.wr_id = number, .sg_list = &part, .num_sge = 1}, *bad;

    cr_assert(zero(int, ibv_post_recv(s->id->qp, &wr, &bad)));
}

void stranger_send(struct stranger *s, uint32_t len, bool with_imm, uint32_t imm)
{
    struct ibv_sge part = {(uintptr_t)s->memory + STRANGER_MEMORY / 2, len, s->mr->lkey};
    struct ibv_send_wr wr = {.opcode = with_imm ? IBV_WR_SEND_WITH_IMM : IBV_WR_SEND,
                             .send_flags = IBV_SEND_SIGNALED,
                             .imm_data = htonl(imm),
                             .sg_list = &part,
                             .num_sge = 1};
    struct ibv_send_wr *bad;

    cr_assert(zero(int, ibv_post_send(s->id->qp, &wr, &bad)));
}

struct ibv_wc stranger_next(struct stranger *s)
{
    struct ibv_wc wc;

    cr_assert(eq(int, ibv_poll_cq(s->cq, 1, &wc), 1));
    return wc;
}

void stranger_free(struct stranger *s)
{
    rdma_disconnect(s->id);
    rdma_destroy_qp(s->id);
    ibv_destroy_cq(s->cq);
    ibv_destroy_comp_channel(s->channel);
    ibv_dereg_mr(s->mr);
    ibv_dealloc_pd(s->pd);
    rdma_destroy_id(s->id);
    rdma_destroy_event_channel(s->events);
    free(s->memory);
}
