/* SPDX-License-Identifier: Apache-2.0 */
/* Addresses that have proved nothing; see strangers.h. */
#include "strangers.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

/* What stands for an address. */
static void shorten(const char *address, char out[TRANSPORT_ADDRESS_MAX])
{
    struct in6_addr bytes;

    snprintf(out, TRANSPORT_ADDRESS_MAX, "%.*s", (int)strcspn(address, "%"), address);
    if (inet_pton(AF_INET6, out, &bytes) <= 0)
        return;
    memset(bytes.s6_addr + 8, 0, 8);
    inet_ntop(AF_INET6, &bytes, out, TRANSPORT_ADDRESS_MAX);
}

static void fade(struct stranger *stranger, int64_t now_ms)
{
    stranger->begun -= (double)(now_ms - stranger->faded_ms) * STRANGERS_RATE / 1e3;
    if (stranger->begun < 0)
        stranger->begun = 0;
    stranger->faded_ms = now_ms;
}

/* The place of an address, faded; one that is new takes that of the one with the least. */
static struct stranger *find(struct strangers *strangers, const char *address, int64_t now_ms)
{
    char name[TRANSPORT_ADDRESS_MAX];
    struct stranger *least = &strangers->known[0];

    shorten(address, name);
    for (struct stranger *s = strangers->known; s < strangers->known + STRANGERS_MAX; s++) {
        fade(s, now_ms);
        if (!strcmp(s->address, name))
            return s;
        if (s->begun < least->begun)
            least = s;
    }
    *least = (struct stranger){.faded_ms = now_ms};
    strcpy(least->address, name);
    return least;
}

bool strangers_admit(struct strangers *strangers, const char *address, int64_t now_ms, bool *first)
{
    struct stranger *stranger = find(strangers, address, now_ms);

    if (stranger->begun + 1 <= STRANGERS_BURST) {
        stranger->begun++;
        stranger->refused = false;
        return true;
    }
    *first = !stranger->refused;
    stranger->refused = true;
    return false;
}

void strangers_vouch(struct strangers *strangers, const char *address, int64_t now_ms)
{
    struct stranger *stranger = find(strangers, address, now_ms);

    stranger->begun = stranger->begun > 1 ? stranger->begun - 1 : 0;
}
