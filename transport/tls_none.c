/* SPDX-License-Identifier: Apache-2.0 */
/* TLS where it is not built. */
#include "tls.h"

#include <errno.h>

const bool transport_has_tls = false;

static int refuse(struct error *err)
{
    return error_set(err, CAUSE_UNSUPPORTED, "this migfs is built without TLS");
}

int tls_new(const struct tls_config *config, struct tls **out, struct error *err)
{
    (void)config, (void)out;
    return refuse(err);
}

void tls_free(struct tls *tls)
{
    (void)tls;
}

int tls_reload(struct tls *tls, struct error *err)
{
    (void)tls;
    return refuse(err);
}

int tls_server(struct tls *tls, struct transport *t)
{
    (void)tls, (void)t;
    return -EOPNOTSUPP;
}

int tls_client(struct tls *tls, struct transport *t, const char *name, const struct transport_wait *wait,
               struct error *err)
{
    (void)tls, (void)t, (void)name, (void)wait;
    return refuse(err);
}
