/* SPDX-License-Identifier: Apache-2.0 */
/* What the source may write by itself; see exposure.h. */
#include "exposure.h"

#include <errno.h>
#include <stdlib.h>

struct exposure {
    uint64_t offset, len;
    struct transport_key key;
    struct exposure *next;
};

void exposures_init(struct exposures *e, struct transport *transport, uint64_t limit)
{
    *e = (struct exposures){.transport = transport, .limit = limit};
}

static int expose(struct exposures *e, struct file *ram, uint64_t offset, uint64_t len,
                  struct transport_key *key)
{
    struct exposure *exposure = malloc(sizeof(*exposure));
    void *memory = exposure && e->transport ? image_expose(&ram->image, offset, len, e->limit) : NULL;

    if (!memory) {
        free(exposure);
        return -ENOMEM;
    }
    int ret = transport_expose(e->transport, memory, len, key);
    if (ret < 0) {
        image_unexpose(&ram->image);
        free(exposure);
        return ret;
    }
    *exposure = (struct exposure){offset, len, *key, e->list};
    e->list = exposure;
    e->count++;
    if (!e->ram)
        e->ram = file_get(ram);
    return 0;
}

/* Whether some of a range is exposed already. */
static bool overlaps(const struct exposures *e, uint64_t offset, uint64_t len)
{
    for (const struct exposure *exposure = e->list; exposure; exposure = exposure->next) {
        if (exposure->offset < offset + len && offset < exposure->offset + exposure->len)
            return true;
    }
    return false;
}

int exposures_add(struct exposures *e, struct file *ram, struct wire_reader *body, struct wire_writer *reply,
                  struct error *err)
{
    uint64_t offset = wire_read_u64(body), len = wire_read_u64(body);
    struct transport_key key = {0};

    if (!wire_read_done(body) || offset % WIRE_STRIPE_SIZE || !len || len > WIRE_OFFSET_MAX ||
        offset > WIRE_OFFSET_MAX - len || overlaps(e, offset, len))
        return error_set(err, CAUSE_PROTOCOL, "a request to expose what cannot be exposed");
    if (!ram)
        return error_set(err, CAUSE_PROTOCOL, "a request to expose the RAM, which has not been announced");
    int ret = e->count < EXPOSURES_MAX ? expose(e, ram, offset, len, &key) : -ENOMEM;
    wire_write_u64(reply, offset);
    wire_write_u64(reply, key.address);
    wire_write_u32(reply, key.key);
    wire_write_u32(reply, ret == 0 ? CAUSE_NONE : error_cause_of_errno(ret));
    return 0;
}

static void withdraw(struct exposures *e, struct exposure **at)
{
    struct exposure *exposure = *at;

    *at = exposure->next;
    e->count--;
    transport_withdraw(e->transport, &exposure->key);
    image_unexpose(&e->ram->image);
    free(exposure);
}

int exposures_remove(struct exposures *e, struct wire_reader *body, struct error *err)
{
    uint64_t offset = wire_read_u64(body), len = wire_read_u64(body);
    struct exposure **at = &e->list;

    while (*at && ((*at)->offset != offset || (*at)->len != len))
        at = &(*at)->next;
    if (!wire_read_done(body) || !*at)
        return error_set(err, CAUSE_PROTOCOL, "the source withdraws what is not exposed");
    withdraw(e, at);
    return 0;
}

void exposures_fini(struct exposures *e)
{
    while (e->list)
        withdraw(e, &e->list);
    file_put(e->ram);
    e->ram = NULL;
}
