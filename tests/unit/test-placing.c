/* SPDX-License-Identifier: Apache-2.0 */
/* What of the destination's RAM may be written from here: asked for, waited for, given back. */
#include "placing.h"
#include "blocked.h"
#include "check.h"
#include "link.h"
#include "peer.h"

#include <errno.h>
#include <poll.h>
#include <string.h>

#define CHUNK (4ull << 20)

static struct link link_;
static struct session session;
static struct placing placing;
static uint8_t body[WIRE_BODY_MAX];

static void begin(void)
{
    link_pair(&link_);
    cr_assert(zero(int, session_init(&session, link_.a, 60000, 60000)));
    placing_init(&placing, &session, CHUNK);
}

static void end(void)
{
    placing_fini(&placing);
    session_fini(&session);
    transport_close(link_.b);
}

TestSuite(placing, .init = begin, .fini = end);

/* What was said next: of that type, about that chunk. */
static void expect_said(enum wire_message_type type, uint64_t number, uint64_t len)
{
    struct message message;

    cr_assert(zero(int, peer_receive(link_.b, &message, body)));
    cr_assert(eq(int, (int)message.type, (int)type));
    struct wire_reader r = {.p = body, .left = message.length};
    cr_expect(eq(u64, wire_read_u64(&r), number * CHUNK));
    cr_expect(eq(u64, wire_read_u64(&r), len));
    cr_expect(wire_read_done(&r));
}

static void expect_quiet(void)
{
    struct pollfd fd = {.fd = transport_pollfd(link_.b), .events = POLLIN};

    cr_expect(eq(int, poll(&fd, 1, 0), 0), "something was said");
}

static int answer_raw(uint64_t offset, uint32_t cause, size_t len, struct error *err)
{
    uint8_t buf[32] = {0};
    struct wire_writer w = {buf, buf, buf + sizeof(buf)};

    wire_write_u64(&w, offset);
    wire_write_u64(&w, 0x1000 + offset);
    wire_write_u32(&w, (uint32_t)(offset / CHUNK) + 7);
    wire_write_u32(&w, cause);
    struct wire_reader r = {.p = buf, .left = len};
    return placing_on_exposed(&placing, &r, err);
}

static void answer(uint64_t number, uint32_t cause)
{
    struct error err;

    CHECK_OK(answer_raw(number * CHUNK, cause, 24, &err));
}

/* A thread that wants a chunk. */
struct want {
    struct worker worker;
    uint64_t offset, len, size;
    struct interrupt interrupt;
    int ret;
};

static void want_work(void *arg)
{
    struct want *want = arg;

    want->ret = placing_want(&placing, want->offset, want->len, want->size, &want->interrupt);
}

static void want_begin(struct want *want, uint64_t offset, uint64_t size)
{
    *want = (struct want){.offset = offset, .len = 4096, .size = size, .ret = 1};
    worker_start(&want->worker, want_work, want);
}

static int want_end(struct want *want)
{
    worker_join(&want->worker);
    return want->ret;
}

static bool use(uint64_t offset)
{
    struct transport_key key;
    uint64_t at;

    return placing_use(&placing, offset, 4096, &key, &at);
}

/* Chunk @number is exposed; the one after it is asked for, and refused or not there. */
static void have(uint64_t number, uint64_t size)
{
    struct want want;

    want_begin(&want, number * CHUNK, size);
    expect_said(WIRE_EXPOSE, number, size - number * CHUNK < CHUNK ? size - number * CHUNK : CHUNK);
    answer(number, CAUSE_NONE);
    cr_assert(zero(int, want_end(&want)));
}

Test(placing, asked_once_and_the_next_one_ahead)
{
    struct transport_key key;
    struct want want;
    uint64_t at = 0;

    cr_expect(not(use(0)));
    want_begin(&want, 100, 0);
    expect_said(WIRE_EXPOSE, 0, CHUNK);
    expect_said(WIRE_EXPOSE, 1, CHUNK);
    worker_await_sleep(&want.worker);
    cr_expect(not(want.worker.done));
    cr_expect(placing_is_answer_due(&placing));
    cr_expect(not(use(0)), "not before the answer");
    answer(0, CAUSE_NONE);
    cr_expect(zero(int, want_end(&want)), "the other answer is not waited for");
    cr_expect(placing_is_answer_due(&placing));
    answer(1, CAUSE_NONE);
    cr_expect(not(placing_is_answer_due(&placing)));
    cr_expect(zero(int, placing_want(&placing, CHUNK - 4096, 4096, 0, NULL)), "it is there");
    expect_quiet();
    cr_expect(placing_use(&placing, CHUNK + 300, 10, &key, &at));
    cr_expect(eq(u64, at, 300));
    cr_expect(eq(u64, key.address, 0x1000 + CHUNK));
    cr_expect(eq(u32, key.key, 8));
    placing_unuse(&placing, CHUNK + 300);
    cr_expect(not(use(2 * CHUNK)));
    struct placing_figures figures = placing_figures(&placing);
    cr_expect(eq(u64, figures.chunks, 2));
    cr_expect(eq(u64, figures.exposures, 2));
}

Test(placing, where_the_image_ends)
{
    struct want want;

    want_begin(&want, CHUNK, CHUNK + 5000);
    expect_said(WIRE_EXPOSE, 1, 5000);
    answer(1, CAUSE_NONE);
    cr_expect(zero(int, want_end(&want)));
    cr_expect(use(CHUNK + 900), "all of it is in there");
    cr_expect(not(use(CHUNK + 905)), "a byte is not");
    placing_unuse(&placing, CHUNK + 900);
    cr_expect(zero(int, placing_want(&placing, 2 * CHUNK, 10, CHUNK + 5000, NULL)), "past the end");
    cr_expect(zero(int, placing_want(&placing, 1ull << 50, 10, CHUNK + 5000, NULL)), "far past the end");
    expect_quiet();
}

Test(placing, two_want_the_same)
{
    struct want first, second;

    want_begin(&first, 0, CHUNK);
    expect_said(WIRE_EXPOSE, 0, CHUNK);
    want_begin(&second, 4096, CHUNK);
    worker_await_sleep(&second.worker);
    expect_quiet();
    answer(0, CAUSE_NONE);
    cr_expect(zero(int, want_end(&first)));
    cr_expect(zero(int, want_end(&second)));
}

Test(placing, interrupted)
{
    struct want want;

    want_begin(&want, 0, CHUNK);
    expect_said(WIRE_EXPOSE, 0, CHUNK);
    worker_await_sleep(&want.worker);
    atomic_store(&want.interrupt.hit, true);
    placing_kick(&placing);
    cr_expect(eq(int, want_end(&want), -EINTR));
    answer(0, CAUSE_NONE);
    cr_expect(use(0), "the answer that comes later counts");
    placing_unuse(&placing, 0);
}

Test(placing, closed)
{
    struct want want;

    want_begin(&want, 0, 2 * CHUNK);
    expect_said(WIRE_EXPOSE, 0, CHUNK);
    expect_said(WIRE_EXPOSE, 1, CHUNK);
    worker_await_sleep(&want.worker);
    placing_close(&placing);
    cr_expect(eq(int, want_end(&want), -ECANCELED));
    answer(1, CAUSE_NONE);
    cr_expect(not(use(CHUNK)), "nothing is placed any more");
    cr_expect(eq(int, placing_want(&placing, CHUNK, 10, 0, NULL), -ECANCELED));
    cr_expect(eq(int, placing_want(&placing, 5 * CHUNK, 10, 0, NULL), -ECANCELED));
    expect_quiet();
    cr_expect(zero(int, placing_withdraw_all(&placing, NULL)));
    expect_quiet();
}

/* When there is no more to be had, the one that was used longest ago makes room, and none that is in use. */
Test(placing, evicts)
{
    const uint64_t size = 5 * CHUNK;
    struct want want;

    want_begin(&want, 0, size);
    expect_said(WIRE_EXPOSE, 0, CHUNK);
    expect_said(WIRE_EXPOSE, 1, CHUNK);
    answer(0, CAUSE_NONE);
    answer(1, CAUSE_NONE);
    cr_assert(zero(int, want_end(&want)));
    want_begin(&want, 2 * CHUNK, size);
    expect_said(WIRE_EXPOSE, 2, CHUNK);
    expect_said(WIRE_EXPOSE, 3, CHUNK);
    answer(2, CAUSE_NONE);
    answer(3, CAUSE_NO_MEMORY);
    cr_assert(zero(int, want_end(&want)));
    cr_expect(eq(uint, placing.most, 3));

    cr_assert(use(CHUNK));
    cr_assert(use(0));
    placing_unuse(&placing, 0);
    cr_assert(use(2 * CHUNK));
    placing_unuse(&placing, 2 * CHUNK);
    want_begin(&want, 3 * CHUNK, size);
    expect_said(WIRE_WITHDRAW, 0, CHUNK); /* chunk 1 is older, and in use */
    expect_said(WIRE_EXPOSE, 3, CHUNK);
    answer(3, CAUSE_NONE);
    cr_assert(zero(int, want_end(&want)));
    expect_quiet();
    cr_expect(not(use(0)));

    cr_assert(use(2 * CHUNK));
    cr_assert(use(3 * CHUNK));
    cr_expect(zero(int, placing_want(&placing, 0, 10, size, NULL)), "none can go: through the stream");
    expect_quiet();
    cr_expect(not(use(0)));
    placing_unuse(&placing, CHUNK);
    placing_unuse(&placing, 2 * CHUNK);
    placing_unuse(&placing, 3 * CHUNK);
    cr_expect(eq(u64, placing_figures(&placing).evictions, 1));
    cr_expect(eq(u64, placing_figures(&placing).refusals, 1));
    cr_expect(eq(u64, placing_figures(&placing).chunks, 3));
}

/* A chunk that cannot be had whatever makes room for it does not cost the others their places. */
Test(placing, one_chunk_that_cannot_be)
{
    const uint64_t size = 4 * CHUNK;
    struct want want;

    want_begin(&want, 0, size);
    expect_said(WIRE_EXPOSE, 0, CHUNK);
    expect_said(WIRE_EXPOSE, 1, CHUNK);
    answer(0, CAUSE_NONE);
    answer(1, CAUSE_NONE);
    cr_assert(zero(int, want_end(&want)));
    want_begin(&want, 3 * CHUNK, size);
    expect_said(WIRE_EXPOSE, 3, CHUNK);
    answer(3, CAUSE_NO_MEMORY);
    expect_said(WIRE_WITHDRAW, 0, CHUNK);
    expect_said(WIRE_EXPOSE, 3, CHUNK);
    answer(3, CAUSE_NO_MEMORY);
    cr_assert(zero(int, want_end(&want)));
    expect_quiet();
    cr_expect(eq(uint, placing.most, UINT32_MAX), "it was not for want of room");
    cr_expect(zero(int, placing_want(&placing, 3 * CHUNK, 10, size, NULL)));
    expect_quiet();
    cr_expect(use(CHUNK), "the other one stays");
    placing_unuse(&placing, CHUNK);
    want_begin(&want, 0, size);
    expect_said(WIRE_EXPOSE, 0, CHUNK);
    answer(0, CAUSE_NONE);
    cr_assert(zero(int, want_end(&want)));
    expect_quiet();
}

Test(placing, nothing_at_all)
{
    struct want want;

    want_begin(&want, 0, 2 * CHUNK);
    expect_said(WIRE_EXPOSE, 0, CHUNK);
    expect_said(WIRE_EXPOSE, 1, CHUNK);
    answer(0, CAUSE_NO_MEMORY);
    answer(1, CAUSE_UNSUPPORTED);
    cr_expect(zero(int, want_end(&want)));
    cr_expect(zero(int, placing_want(&placing, 0, 10, 2 * CHUNK, NULL)));
    cr_expect(zero(int, placing_want(&placing, CHUNK, 10, 2 * CHUNK, NULL)));
    expect_quiet();
    cr_expect(not(use(0)));
}

Test(placing, pinned)
{
    struct error err;

    placing_pin(&placing, 2 * CHUNK + 4096);
    for (uint64_t number = 0; number < 3; number++)
        expect_said(WIRE_EXPOSE, number, number < 2 ? CHUNK : 4096);
    expect_quiet();
    for (uint64_t number = 0; number < 3; number++) {
        cr_expect(placing_is_answer_due(&placing));
        cr_expect(not(placing_is_pinned(&placing, 2 * CHUNK + 4096)));
        answer(number, CAUSE_NONE);
    }
    cr_expect(not(placing_is_answer_due(&placing)));
    cr_expect(placing_is_pinned(&placing, 2 * CHUNK + 4096));
    cr_expect(placing_is_pinned(&placing, 3 * CHUNK));
    cr_expect(not(placing_is_pinned(&placing, 3 * CHUNK + 1)));
    cr_expect(use(2 * CHUNK));
    placing_unuse(&placing, 2 * CHUNK);
    /* All are there: nothing more is asked for. */
    placing_pin(&placing, 3 * CHUNK);
    expect_quiet();
    CHECK_FAILS(answer_raw(0, CAUSE_NONE, 24, &err), CAUSE_PROTOCOL);
    cr_expect(strstr(err.message, "nobody asked for") != NULL, "%s", err.message);
}

Test(placing, not_all_can_be_pinned)
{
    placing_pin(&placing, 2 * CHUNK);
    expect_said(WIRE_EXPOSE, 0, CHUNK);
    expect_said(WIRE_EXPOSE, 1, CHUNK);
    answer(0, CAUSE_NONE);
    answer(1, CAUSE_NO_MEMORY);
    cr_expect(not(placing_is_answer_due(&placing)));
    cr_expect(not(placing_is_pinned(&placing, 2 * CHUNK)));
    cr_expect(placing_is_pinned(&placing, CHUNK));
    cr_expect(placing_is_pinned(&placing, 0));
}

struct withdrawal {
    struct worker worker;
    struct interrupt interrupt;
    int ret;
};

static void withdraw_work(void *arg)
{
    struct withdrawal *w = arg;

    w->ret = placing_withdraw_all(&placing, &w->interrupt);
}

Test(placing, all_withdrawn)
{
    struct withdrawal w = {.ret = 1};
    struct want want;

    want_begin(&want, 0, 3 * CHUNK);
    expect_said(WIRE_EXPOSE, 0, CHUNK);
    expect_said(WIRE_EXPOSE, 1, CHUNK);
    answer(0, CAUSE_NONE);
    cr_assert(zero(int, want_end(&want)));
    cr_assert(use(0));
    worker_start(&w.worker, withdraw_work, &w);
    worker_await_sleep(&w.worker);
    placing_unuse(&placing, 0);
    worker_await_sleep(&w.worker);
    cr_expect(not(w.worker.done), "an answer is due");
    expect_quiet();
    answer(1, CAUSE_NONE);
    worker_join(&w.worker);
    cr_expect(zero(int, w.ret));
    expect_said(WIRE_WITHDRAW, 0, CHUNK);
    expect_said(WIRE_WITHDRAW, 1, CHUNK);
    cr_expect(not(use(0)));
    cr_expect(not(use(CHUNK)));
    cr_expect(zero(u64, placing_figures(&placing).chunks));
    have(2, 3 * CHUNK);
    cr_expect(use(2 * CHUNK), "and it goes on");
    placing_unuse(&placing, 2 * CHUNK);
}

Test(placing, withdrawal_waits_for_users)
{
    struct withdrawal w = {.ret = 1};

    have(0, CHUNK);
    cr_assert(use(0));
    cr_assert(use(4096));
    worker_start(&w.worker, withdraw_work, &w);
    worker_await_sleep(&w.worker);
    placing_unuse(&placing, 0);
    worker_await_sleep(&w.worker);
    cr_expect(not(w.worker.done));
    expect_quiet();
    atomic_store(&w.interrupt.hit, true);
    placing_kick(&placing);
    worker_join(&w.worker);
    cr_expect(eq(int, w.ret, -EINTR));
    expect_quiet();
    cr_expect(use(0), "nothing is given back");
    placing_unuse(&placing, 0);
    placing_unuse(&placing, 0);
    cr_expect(zero(int, placing_withdraw_all(&placing, NULL)));
    expect_said(WIRE_WITHDRAW, 0, CHUNK);
}

Test(placing, malformed_answers)
{
    struct error err;
    struct want want;

    CHECK_FAILS(answer_raw(0, CAUSE_NONE, 24, &err), CAUSE_PROTOCOL);
    want_begin(&want, 0, CHUNK);
    expect_said(WIRE_EXPOSE, 0, CHUNK);
    CHECK_FAILS(answer_raw(0, CAUSE_NONE, 23, &err), CAUSE_PROTOCOL);
    CHECK_FAILS(answer_raw(0, CAUSE_NONE, 25, &err), CAUSE_PROTOCOL);
    CHECK_FAILS(answer_raw(0, CAUSE_NONE, 0, &err), CAUSE_PROTOCOL);
    CHECK_FAILS(answer_raw(4096, CAUSE_NONE, 24, &err), CAUSE_PROTOCOL);
    CHECK_FAILS(answer_raw(CHUNK, CAUSE_NONE, 24, &err), CAUSE_PROTOCOL);
    CHECK_FAILS(answer_raw(UINT64_MAX - CHUNK + 1, CAUSE_NONE, 24, &err), CAUSE_PROTOCOL);
    cr_expect(placing_is_answer_due(&placing), "that was none of them");
    answer(0, CAUSE_NONE);
    CHECK_FAILS(answer_raw(0, CAUSE_NONE, 24, &err), CAUSE_PROTOCOL);
    CHECK_FAILS(answer_raw(0, CAUSE_NO_MEMORY, 24, &err), CAUSE_PROTOCOL);
    cr_expect(zero(int, want_end(&want)));
    cr_expect(use(0));
    placing_unuse(&placing, 0);
}
