/* SPDX-License-Identifier: Apache-2.0 */
/* Connections that are lost and come again; see interruption.h. */
#include "interruption.h"
#include "cleanup.h"
#include "clock.h"

#include <errno.h>

/* What a connection is told that takes the place of another one; the limits were told before. */
static const struct hello_reply welcome_again = {.features = WIRE_FEATURES};

int interruption_of_channel(struct migration *m, struct inbound *in, unsigned channel,
                            const struct error *reason)
{
    struct hello_reply reply = welcome_again;
    struct error why = *reason;
    bool found = false;

    error_prefix(&why, "channel %u", channel);
    pthread_mutex_lock(&m->lock);
    bool waits = m->state == STATE_ACTIVE && !in->ending;
    if (waits) {
        inbound_lose(in, (int)channel, &why);
        /* The reader is to know until when. */
        session_wake(&in->session);
    }
    pthread_mutex_unlock(&m->lock);
    if (!waits)
        return -EIO;
    migration_lose(m, &why);
    pthread_mutex_lock(&m->lock);
    while (m->state == STATE_ACTIVE && !in->ending && !(found = inbound_renew(in, channel, &reply)))
        pthread_cond_wait(&m->changed, &m->lock);
    if (found)
        inbound_find_again(in, (int)channel);
    pthread_mutex_unlock(&m->lock);
    if (!found)
        return -EIO;
    migration_find_again(m);
    return 0;
}

void interruption_of_main(struct migration *m, struct inbound *in, const struct error *reason)
{
    pthread_mutex_lock(&m->lock);
    inbound_lose(in, -1, reason);
    pthread_mutex_unlock(&m->lock);
    session_lose(&in->session);
    migration_lose(m, reason);
}

int interruption_attach(struct migration *m, struct inbound *in, int channel, uint64_t received,
                        struct transport *transport, struct error *err)
{
    /* The news that all channels are there may not have been heard yet. */
    if (m->state == STATE_SETUP)
        return error_set(err, CAUSE_AGAIN, "the migration is still starting");
    /* What it said of that itself was lost with the main channel. */
    if (error_is_set(&m->failure))
        return error_set(err, m->failure.cause == CAUSE_CANCELLED ? CAUSE_CANCELLED : CAUSE_STATE,
                         "the migration has been given up there: %s", m->failure.message);
    if (m->state != STATE_ACTIVE)
        return error_set(err, CAUSE_STATE, "a connection was made again when the migration was %s",
                         state_names[m->state]);
    if (inbound_attach_again(in, channel, received, transport, err) < 0)
        return -EIO;
    pthread_cond_broadcast(&m->changed);
    return 0;
}

int interruption_check(struct migration *m, struct inbound *in, struct error *err)
{
    struct hello_reply reply = welcome_again;
    struct error reason = {0};

    pthread_mutex_lock(&m->lock);
    int ret = in->main_loss.since ? inbound_renew_main(in, &reply, err) : 0;
    if (ret > 0)
        inbound_find_again(in, -1);
    bool late = clock_ms() >= inbound_deadline(in, &reason);
    pthread_mutex_unlock(&m->lock);
    if (ret > 0)
        migration_find_again(m);
    if (ret < 0)
        return ret;
    if (!late)
        return 0;
    return error_set(err, reason.cause, "%s, and the source has not come back within %u s", reason.message,
                     in->resume_ms / 1000);
}

bool interruption_is_there(struct migration *m, struct inbound *in)
{
    SCOPED_LOCK(&m->lock);
    return in->lost > 0;
}

void interruption_end(struct migration *m, struct inbound *in)
{
    SCOPED_LOCK(&m->lock);
    in->ending = true;
    pthread_cond_broadcast(&m->changed);
}
