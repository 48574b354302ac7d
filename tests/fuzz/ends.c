/* SPDX-License-Identifier: Apache-2.0 */
/* The source's ends of all connections; see ends.h. */
#include "ends.h"
#include "incoming.h"

#include <errno.h>
#include <sched.h>

static const uint8_t nothing[128];

static struct lane *make_lane(struct ends *ends)
{
    struct lane *lane = lane_new(ends->slice, ends->busy);

    MUST(ends->count < sizeof(ends->all) / sizeof(ends->all[0]));
    ends->all[ends->count++] = lane;
    return lane;
}

static enum state state_of(const struct ends *ends)
{
    return ends->m->state;
}

/* As the listener does it. @damage: XORed with a byte of the hello, @where. */
static int greet(struct ends *ends, const struct hello *hello, struct lane *lane, unsigned where,
                 uint8_t damage, struct error *err)
{
    const struct hello_reply welcome = {.features = WIRE_FEATURES};
    struct wire_hello wire;
    struct hello heard;

    wire_hello_encode(hello, &wire);
    ((uint8_t *)&wire)[where] ^= damage;
    if (wire_hello_decode(&wire, &heard, err) < 0)
        return -EIO;
    struct migration *m =
        registry_find_session(ends->registry, heard.name, heard.session, lane->base.identity.digest);
    if (!m)
        return error_set(err, CAUSE_NOT_FOUND, "no such migration");
    int ret = heard.kind == WIRE_HELLO_DATA
                  ? incoming_attach(m, heard.channel, heard.channels, &lane->base, &welcome, err)
                  : incoming_attach_again(m, heard.kind == WIRE_HELLO_MAIN_AGAIN ? -1 : (int)heard.channel,
                                          heard.received, &lane->base, err);
    migration_put(m);
    return ret;
}

/*
 * From the beginning to the end
 */

static void attach(struct ends *ends, unsigned channel, bool places)
{
    const struct hello_reply reply = {0};
    struct error err = {0};
    struct lane *lane = make_lane(ends);

    lane->resumes = ends->resumes;
    if (places)
        lane_places(lane);
    int ret = incoming_attach(ends->m, channel, ends->channels, &lane->base, &reply, &err);
    if (places && ends->resumes) {
        MUST(ret < 0 && err.cause == CAUSE_UNSUPPORTED);
        transport_close(&lane->base);
        attach(ends, channel, false);
        return;
    }
    MUST(ret == 0);
    ends->now[channel] = lane;
}

void ends_open(struct ends *ends, const struct hello *hello, bool places, bool late)
{
    const struct hello_reply reply = {0};
    struct wire_hello wire;
    struct error err = {0};

    wire_hello_encode(hello, &wire);
    MUST(wire_hello_decode(&wire, &ends->hello, &err) == 0);
    ends->channels = hello->channels;
    ends->resumes = ends->hello.resume_ms > 0;
    MUST(registry_add_incoming(ends->registry, "test", &ends->hello, &ends->m, &err) == 0);
    struct lane *main_lane = ends->now[ends->channels] = make_lane(ends);
    MUST(incoming_begin(ends->m, &main_lane->base, hello->timeout_ms, &reply, &err) == 0);
    for (unsigned c = 0; c < ends->channels; c++) {
        if (!late || c + 1 < ends->channels) {
            attach(ends, c, places);
            continue;
        }
        ends->late = true;
        ends->now[c] = make_lane(ends);
        ends->now[c]->resumes = ends->resumes;
        transport_close(&ends->now[c]->base);
    }
    lane_settle(main_lane);
}

/* The moment has not come: what was to be made again in it is not. */
static void disarm(struct ends *ends)
{
    if (!ends->ambush[0] || !lane_ambush(ends->now[ends->ambushed], NULL, NULL, NULL))
        return;
    for (unsigned i = 0; i < 2 && ends->ambush[i]; i++)
        transport_close(&ends->ambush[i]->base);
    ends->ambush[0] = NULL;
}

/* What the destination says is an answer, and is said once. */
static void check_answers(struct ends *ends)
{
    static const struct {
        enum wire_message_type answer, question;
    } answers[] = {
        {WIRE_FILE_REPLY, WIRE_FILE_CREATE},  {WIRE_SYNC_ACK, WIRE_SYNC},
        {WIRE_PREPARED, WIRE_COMPLETE},       {WIRE_COMMITTED, WIRE_COMMIT},
        {WIRE_DIGEST_REPLY, WIRE_DIGEST},     {WIRE_VERIFY_REPLY, WIRE_VERIFY},
        {WIRE_FILE_REMOVE, WIRE_FILE_REMOVE}, {WIRE_FILE_RENAME, WIRE_FILE_RENAME},
        {WIRE_EXPOSED, WIRE_EXPOSE},
    };
    const uint64_t *heard = ends_main(ends)->heard_of;

    for (size_t i = 0; i < sizeof(answers) / sizeof(answers[0]) && !ends->junk && !ends->lied; i++)
        MUST(heard[answers[i].answer] <= ends->asked[answers[i].question]);
}

void ends_check_answers(struct ends *ends)
{
    struct lane *lane = ends_main(ends);

    if (ends->junk || ends->lied || ends->busy || !lane_hears(lane))
        return;
    MUST(lane->heard_of[WIRE_COMMITTED] == 1);
    MUST(lane->heard_of[WIRE_FILE_REPLY] >= ends->asked_before_complete[WIRE_FILE_CREATE]);
    MUST(lane->heard_of[WIRE_SYNC_ACK] >= ends->syncs_before_complete);
}

static bool has_end(const char *text, const char *end)
{
    size_t len = strlen(text), n = strlen(end);

    return len >= n && !strcmp(text + len - n, end);
}

void ends_check_failure(const struct ends *ends, bool intact)
{
    const char *text = ends->m->failure.message;

    if (!strncmp(text, "the source", strlen("the source"))) /* has said it, or asked what became of it */
        return;
    if (intact)
        MUST(!has_end(text, " was due") && !has_end(text, " arrived damaged") &&
             !has_end(text, " was due on the main channel"));
    if (ends->resumes && ends->m->was_active)
        MUST(ends->m->failure.cause != CAUSE_RESET ||
             strstr(text, ", and the source has not come back within "));
}

void ends_close(struct ends *ends)
{
    struct error err = {0};

    disarm(ends);
    lane_end(ends_main(ends));
    ends_settle(ends, ends->channels);
    /* It waits for others. */
    if (ends->resumes)
        migration_cancel(ends->m, &err);
    for (unsigned i = 0; i < ends->count; i++)
        lane_wait_closed(ends->all[i]);
    MUST(state_is_final(state_of(ends)));
    check_answers(ends);
}

void ends_free(struct ends *ends)
{
    for (unsigned i = 0; i < ends->count; i++)
        lane_free(ends->all[i]);
}

void ends_settle(struct ends *ends, unsigned lane)
{
    bool is_main = lane == ends->channels;

    if (!is_main && state_of(ends) == STATE_SETUP)
        return;
    lane_settle(ends->now[lane]);
    /* That a connection is lost is noticed soon. */
    while ((is_main || ends->resumes) && lane_is_over(ends->now[lane]) && !state_is_final(state_of(ends)) &&
           !migration_is_paused(ends->m))
        sched_yield();
}

void ends_settle_all(struct ends *ends)
{
    for (unsigned i = 0; i <= ends->channels; i++)
        ends_settle(ends, i);
}

/*
 * The main channel
 */

void ends_send(struct ends *ends, enum wire_message_type type, uint64_t id, const void *body, size_t len)
{
    struct ends_message *message = &ends->messages[ends->said++];
    struct wire_message header;
    uint64_t said = type != WIRE_PING, heard = lane_heard(ends_main(ends));

    MUST(ends->said <= ENDS_STEPS_MAX && ends->logged + sizeof(header) + len <= sizeof(ends->log));
    wire_message_encode_received(type, id, ends->resumes ? heard + (uint64_t)ends->skew : 0, body,
                                 (uint32_t)len, &header);
    *message = (struct ends_message){ends->logged, sizeof(header) + len, type != WIRE_PING};
    memcpy(ends->log + ends->logged, &header, sizeof(header));
    if (len)
        memcpy(ends->log + ends->logged + sizeof(header), body, len);
    ends->logged += message->len;
    if (type == WIRE_COMPLETE) {
        memcpy(ends->asked_before_complete, ends->asked, sizeof(ends->asked));
        ends->syncs_before_complete = ends->syncs;
    }
    if (type < WIRE_MESSAGE_MAX)
        ends->asked[type]++;
    for (unsigned i = 0; i + 1 < ends->said; i++)
        said += ends->messages[i].counts;
    lane_speak(ends_main(ends), ends->junk ? UINT64_MAX : said);
    lane_put(ends_main(ends), ends->log + message->at, message->len);
    ends_settle(ends, ends->channels);
    if (!ends->skew && !lane_is_cut(ends_main(ends)) && heard > ends->told)
        ends->told = heard;
}

void ends_put_junk(struct ends *ends, unsigned lane, const void *bytes, size_t len)
{
    ends->junk |= lane == ends->channels;
    lane_speak(ends->now[lane], UINT64_MAX);
    lane_put(ends->now[lane], bytes, len);
    ends_settle(ends, lane);
}

/* How many messages have arrived, by what was taken of the lane that nobody reads any more. */
static uint64_t count_received(const struct ends *ends, uint64_t taken)
{
    uint64_t received = ends->received;

    for (unsigned i = ends->first; i < ends->said && ends->messages[i].len <= taken; i++) {
        taken -= ends->messages[i].len;
        received += ends->messages[i].counts;
    }
    return received;
}

/* The first message after so many that count. */
static unsigned message_after(const struct ends *ends, uint64_t received)
{
    unsigned i = 0;

    for (; i < ends->said && received > 0; i++)
        received -= ends->messages[i].counts;
    return i;
}

/* The new main lane goes on where the destination has got. @more: so many messages are left out. */
static void go_on_with_messages(struct ends *ends, struct lane *lane, bool welcome, uint64_t received,
                                int more)
{
    uint64_t due = count_received(ends, lane_taken(ends_main(ends)));

    if (!ends->junk && welcome)
        MUST(received == due);
    ends->received = due;
    ends->first = message_after(ends, due);
    ends->now[ends->channels] = lane;
    int from = (int)(welcome && ends->junk ? message_after(ends, received) : ends->first) + more;
    if (more)
        ends->junk = true;
    if (ends->junk)
        lane_speak(lane, UINT64_MAX);
    for (int i = from < 0 ? 0 : from; i < (int)ends->said && welcome; i++)
        lane_put(lane, ends->log + ends->messages[i].at, ends->messages[i].len);
}

/* The new data lane does. @more: so many bytes are left out. */
static void go_on_with_packets(struct ends *ends, unsigned channel, struct lane *lane, bool welcome,
                               uint64_t received, int more)
{
    struct lane *old = ends->now[channel];

    if (welcome)
        MUST(received == lane_taken(old));
    if (more < 0)
        lane_put(lane, nothing, (size_t)-more);
    lane_carry_over(lane, old, more > 0 ? (size_t)more : 0);
    ends->now[channel] = lane;
}

/* What belongs to another channel comes first. */
static void swap(struct ends *ends, bool is_main, struct lane *lane)
{
    struct wire_packet packet;
    const struct packet zero = {.type = WIRE_ZERO, .sequence = 1};

    if (is_main || !ends->said) {
        wire_packet_encode(&zero, &packet);
        lane_put(lane, &packet, sizeof(packet));
    } else {
        const struct ends_message *last = &ends->messages[ends->said - 1];
        lane_put(lane, ends->log + last->at, last->len);
        lane_put(lane, nothing, sizeof(nothing));
    }
}

/*
 * Lost, and made again
 */

void ends_lose(struct ends *ends)
{
    static const int codes[] = {0, -ECONNRESET, -ETIMEDOUT, -EPIPE};
    unsigned i = input_u8(ends->in) % (ends->channels + 1), how = input_u8(ends->in);
    size_t after = input_u24(ends->in);
    struct lane *lane = ends->now[i];

    if (how & LOSE_MUTE)
        lane_mute(lane);
    if (how & LOSE_DEAF)
        lane_deafen(lane);
    lane_cut(lane, after, codes[how & 3]);
    ends_settle(ends, i);
}

struct attempt {
    struct hello hello;
    unsigned i; /* which lane it is about */
    bool lies, places;
    unsigned where;
    uint8_t damage;
};

static void lie(struct ends *ends, struct attempt *attempt, struct lane *lane)
{
    struct hello *hello = &attempt->hello;
    unsigned what = input_u8(ends->in) % LIE_MAX;

    attempt->lies = true;
    switch (what) {
    case LIE_SESSION:
        hello->session[input_u8(ends->in) % sizeof(hello->session)] ^= 1;
        break;
    case LIE_NAME:
        hello->name[0] ^= 1;
        break;
    case LIE_IDENTITY:
        lane->base.identity.digest[0] ^= 1;
        break;
    case LIE_CHANNEL:
        hello->channels = WIRE_CHANNELS_MAX;
        hello->channel = input_u8(ends->in) % WIRE_CHANNELS_MAX;
        /* Of those that there are, the source may mean any. */
        attempt->lies = attempt->i < ends->channels && hello->channel >= ends->channels;
        if (attempt->i < ends->channels && !attempt->lies)
            attempt->i = hello->channel;
        break;
    case LIE_DAMAGE:
        attempt->where = input_u16(ends->in) % sizeof(struct wire_hello);
        attempt->damage = input_u8(ends->in) | 1;
        break;
    default:
        attempt->lies = attempt->i < ends->channels;
        hello->features |= 1ull << 40;
        hello->received += 1ull << 40;
    }
}

/* Whether a connection that was refused ought to have been. */
static bool may_refuse(const struct ends *ends, const struct attempt *attempt, enum state before)
{
    enum state after = state_of(ends);
    bool again = attempt->hello.kind != WIRE_HELLO_DATA;

    if (attempt->lies || attempt->places || !ends->resumes || ends->lied || state_is_final(after))
        return true;
    return before == STATE_SETUP && (again || attempt->hello.channels != ends->channels);
}

/* One that was taken. */
static void go_on(struct ends *ends, const struct attempt *attempt, struct lane *lane, unsigned how)
{
    bool is_main = attempt->i == ends->channels, comes = ends->late && attempt->i + 1 == ends->channels;
    int more = how & AGAIN_ASTRAY ? (int8_t)input_u8(ends->in) : 0;
    struct hello_reply reply;

    bool welcome = lane_await_welcome(lane, &reply);
    if (welcome)
        MUST(reply.cause == CAUSE_NONE && reply.features == WIRE_FEATURES);
    if (how & AGAIN_SWAP) {
        ends->junk |= is_main;
        swap(ends, is_main, lane);
    }
    if (is_main)
        go_on_with_messages(ends, lane, welcome, reply.received, more);
    else
        go_on_with_packets(ends, attempt->i, lane, welcome, reply.received, more);
    /* Now they are all there. */
    while (comes && state_of(ends) == STATE_SETUP)
        sched_yield();
    ends->late &= !comes;
    ends_settle_all(ends);
}

/* It is given up as soon as it has come. */
static void attempt_in_vain(struct ends *ends, const struct attempt *attempt)
{
    struct lane *lane = make_lane(ends);
    struct error err = {0};

    lane_mute(lane);
    if (greet(ends, &attempt->hello, lane, attempt->where, attempt->damage, &err) < 0)
        transport_close(&lane->base);
    else
        lane_end(lane);
}

bool ends_again(struct ends *ends)
{
    struct attempt attempt = {.hello = ends->hello, .i = input_u8(ends->in) % (ends->channels + 1)};
    bool is_main = attempt.i == ends->channels;
    unsigned how = input_u8(ends->in);
    struct lane *lane = make_lane(ends);
    enum state before = state_of(ends);
    struct error err = {0};

    attempt.hello.kind = is_main            ? WIRE_HELLO_MAIN_AGAIN
                         : how & AGAIN_DATA ? WIRE_HELLO_DATA
                                            : WIRE_HELLO_DATA_AGAIN;
    attempt.hello.channel = is_main ? 0 : attempt.i;
    if (is_main)
        lane_mute(ends_main(ends));
    attempt.hello.received = lane_heard(ends_main(ends));
    if (how & AGAIN_LIE)
        lie(ends, &attempt, lane);
    /* What the source does not hear any more has not been received. */
    lane_mute(ends->now[attempt.i]);
    if (how & AGAIN_SKEW)
        attempt.hello.received += (uint64_t)(int8_t)input_u8(ends->in);
    /* A later one is there. */
    if (is_main && !ends->lied && attempt.hello.received < ends->told)
        attempt.lies = true;
    bool skewed = is_main && attempt.hello.received != lane_heard(ends_main(ends));
    lane_succeed(lane, ends->now[attempt.i], attempt.hello.received);
    disarm(ends);
    if (how & AGAIN_TWICE) {
        ends->lied |= skewed;
        attempt_in_vain(ends, &attempt);
    }
    attempt.places = how & AGAIN_PLACES;
    if (attempt.places)
        lane_places(lane);
    if (how & AGAIN_DEAF)
        lane_deafen(lane);
    if (greet(ends, &attempt.hello, lane, attempt.where, attempt.damage, &err) < 0) {
        MUST(error_is_set(&err));
        transport_close(&lane->base);
        if (state_is_final(before) && !attempt.lies)
            MUST(err.cause == CAUSE_STATE || err.cause == CAUSE_NOT_FOUND);
        MUST((how & AGAIN_DEAF) || skewed || may_refuse(ends, &attempt, before));
        return false;
    }
    MUST(ends->resumes && !attempt.places && !attempt.lies);
    ends->lied |= skewed;
    go_on(ends, &attempt, lane, how);
    /* So many are never sent. */
    while (is_main && attempt.hello.received >> 40 && !state_is_final(state_of(ends)))
        sched_yield();
    return how & (AGAIN_ASTRAY | AGAIN_SWAP);
}

/* In thread mig-in, when it ends the data channels. */
static void make_again_too_late(void *arg)
{
    struct ends *ends = arg;
    struct hello hello = ends->hello;

    for (unsigned i = 0; i < 2; i++) {
        struct error err = {0};
        hello.kind = i ? WIRE_HELLO_DATA_AGAIN : WIRE_HELLO_MAIN_AGAIN;
        hello.received = ends->ambush_heard;
        MUST(greet(ends, &hello, ends->ambush[i], 0, 0, &err) < 0);
        MUST(error_is_set(&err));
        transport_close(&ends->ambush[i]->base);
    }
}

/* In the reader's thread. */
static void make_again_in_vain(void *arg)
{
    struct ends *ends = arg;
    struct hello hello = ends->hello;
    struct error err = {0};
    bool is_main = ends->ambushed == ends->channels;

    hello.kind = is_main ? WIRE_HELLO_MAIN_AGAIN : WIRE_HELLO_DATA_AGAIN;
    hello.channel = is_main ? 0 : ends->ambushed;
    hello.received = ends->ambush_heard;
    if (greet(ends, &hello, ends->ambush[0], 0, 0, &err) < 0)
        transport_close(&ends->ambush[0]->base);
    migration_cancel(ends->m, &err);
}

void ends_ambush(struct ends *ends)
{
    unsigned which = input_u8(ends->in);
    bool all = which >= 128;

    if (ends->ambush[0])
        return;
    for (unsigned i = 0; i < (all ? 2 : 1); i++)
        ends->ambush[i] = make_lane(ends);
    if (!all)
        ends->ambush[1] = NULL;
    ends->ambush_heard = lane_heard(ends_main(ends));
    ends->ambushed = all ? 0 : which % (ends->channels + 1);
    lane_ambush(ends->now[ends->ambushed], all ? make_again_too_late : NULL, all ? NULL : make_again_in_vain,
                ends);
}
