/* SPDX-License-Identifier: Apache-2.0 */
/* What all migrations of one daemon share; see host.h. */
#include "host.h"
#include "cleanup.h"
#include "clock.h"
#include "log.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

static void default_to(uint32_t *limit, uint32_t value)
{
    *limit = *limit ? *limit : value;
}

static void set_defaults(struct limits *limits)
{
    limits->max_peer_memory = limits->max_peer_memory ? limits->max_peer_memory : limits->max_memory;
    default_to(&limits->max_peer_migrations, limits->max_migrations);
    default_to(&limits->max_outgoing, UINT32_MAX);
    default_to(&limits->max_channels, UINT32_MAX);
    default_to(&limits->max_peer_channels, limits->max_channels);
    default_to(&limits->max_descriptors, UINT32_MAX);
    default_to(&limits->max_peer_descriptors, limits->max_descriptors);
}

void host_init(struct host *host, const struct limits *limits, void (*changed)(struct migration *m))
{
    *host = (struct host){.limits = *limits, .windows.limit = HOST_WINDOWS, .changed = changed};
    set_defaults(&host->limits);
    limits = &host->limits;
    accounts_init(
        &host->accounts, &(struct shares){limits->max_memory, limits->max_channels, limits->max_descriptors},
        &(struct shares){limits->max_peer_memory, limits->max_peer_channels, limits->max_peer_descriptors});
    intake_init(&host->intake, limits->max_bandwidth);
    attribute_table_init(&host->attributes, &limits->owner);
    decompressor_pool_init(&host->decompressors);
    pthread_mutex_init(&host->lock, NULL);
    clock_cond_init(&host->unused);
}

void host_fini(struct host *host)
{
    attribute_table_fini(&host->attributes);
    accounts_fini(&host->accounts);
    intake_fini(&host->intake);
    decompressor_pool_fini(&host->decompressors);
    pthread_cond_destroy(&host->unused);
    pthread_mutex_destroy(&host->lock);
}

void host_use(struct host *host)
{
    SCOPED_LOCK(&host->lock);
    host->users++;
}

void host_unuse(struct host *host)
{
    SCOPED_LOCK(&host->lock);
    host->users--;
    pthread_cond_broadcast(&host->unused);
}

bool host_await_unused(struct host *host, int64_t timeout_ms)
{
    struct timespec until = clock_timespec((clock_ms() + timeout_ms) * 1000000);
    int ret = 0;

    SCOPED_LOCK(&host->lock);
    while (host->users && ret == 0)
        ret = timeout_ms == HOST_FOREVER ? pthread_cond_wait(&host->unused, &host->lock)
                                         : pthread_cond_timedwait(&host->unused, &host->lock, &until);
    return !host->users;
}

void host_close(struct host *host)
{
    atomic_store(&host->closed, true);
}

void host_record(struct host *host, const uint8_t session[16], const uint8_t peer[32],
                 enum wire_outcome outcome)
{
    SCOPED_LOCK(&host->lock);
    struct outcome_record *record = &host->history[host->history_next++ % HOST_HISTORY];

    memcpy(record->session, session, sizeof(record->session));
    memcpy(record->peer, peer, sizeof(record->peer));
    record->outcome = outcome;
}

enum wire_outcome host_outcome(struct host *host, const uint8_t session[16], const uint8_t peer[32])
{
    SCOPED_LOCK(&host->lock);
    for (unsigned i = 0; i < HOST_HISTORY; i++) {
        const struct outcome_record *record = &host->history[i];
        if (record->outcome != WIRE_OUTCOME_UNKNOWN && !memcmp(record->session, session, 16) &&
            !memcmp(record->peer, peer, 32))
            return record->outcome;
    }
    return WIRE_OUTCOME_UNKNOWN;
}

void host_note_error(struct host *host, const char *message)
{
    log_error("%s", message);
    SCOPED_LOCK(&host->lock);
    snprintf(host->last_error, sizeof(host->last_error), "%s", message);
}

void host_last_error(struct host *host, char out[ERROR_MESSAGE_MAX])
{
    SCOPED_LOCK(&host->lock);
    memcpy(out, host->last_error, sizeof(host->last_error));
}
