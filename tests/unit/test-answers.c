/* SPDX-License-Identifier: Apache-2.0 */
/* Answers to the source's questions, with neither threads nor connections: what is begun is done here, when it suits. */
#include "answers.h"
#include "check.h"
#include "file.h"

#include <stdlib.h>
#include <string.h>

#define CHANNELS 1
#define DEVICES  2
#define CONTENT  "what has arrived"

static struct catalog catalog;
static struct file *dev;
static struct answers answers;
static struct error err;
static unsigned begun;
static int begin_returns;

/* The last answer that was sent. */
static struct {
    unsigned count;
    enum wire_message_type type;
    uint64_t id;
    uint32_t cause, length;
    uint8_t digests[64 * DIGEST_SIZE];
} sent;

static int begin_work(void *owner, struct error *error)
{
    cr_assert(eq(ptr, owner, &sent));
    cr_expect(answers.open);
    begun++;
    return begin_returns < 0 ? error_set(error, CAUSE_NO_MEMORY, "no thread") : 0;
}

static void note_answer(void *owner, enum wire_message_type type, uint64_t id, const void *body, uint32_t length)
{
    struct wire_reader r = {body, length, false};

    cr_assert(eq(ptr, owner, &sent));
    cr_expect(not(answers.open), "the source may ask again as soon as it has the answer");
    sent.count++;
    sent.type = type;
    sent.id = id;
    sent.cause = wire_read_u32(&r);
    sent.length = length - 4;
    cr_assert(le(u32, sent.length, (uint32_t)sizeof(sent.digests)));
    memcpy(sent.digests, r.p, sent.length);
}

static const struct answers_operations operations = {.begin = begin_work, .send = note_answer};

/* The RAM, of which nothing is there, and device 1, which has arrived. */
static void begin(void)
{
    struct image_budgets budgets = {NULL, NULL};
    static struct budget memory, windows;
    bool hidden;

    memory = windows = (struct budget){.limit = 1 << 20, .unit = "bytes"};
    budgets = (struct image_budgets){&memory, &windows};
    cr_assert(zero(int, catalog_init(&catalog, DEVICES)));
    dev = file_new(1, "dev");
    CHECK_OK(file_set_channels(dev, CHANNELS, 0));
    CHECK_OK(file_receive_begin(dev, 0, 1 << 20, NULL, "dev", &budgets, &err));
    CHECK_OK(file_receive_size(dev, 0, strlen(CONTENT), 1 << 20, &err));
    CHECK_OK(file_receive_storage(dev, &err));
    CHECK_OK(image_write(&dev->image, 0, CONTENT, strlen(CONTENT), &err));
    file_received(dev, 0, 0, strlen(CONTENT));
    cr_assert(zero(int, catalog_add(&catalog, 1, dev, "dev", true, &hidden)));
    answers_init(&answers, &catalog, &operations, &sent);
}

static void end(void)
{
    catalog_fini(&catalog);
    file_put(dev);
}

TestSuite(answers, .init = begin, .fini = end);

/* Asks @type number @id about file @number, and with WIRE_VERIFY about @count pieces from @first on. */
static int ask(enum wire_message_type type, uint64_t id, uint32_t number, uint32_t count, uint64_t first)
{
    uint8_t buf[16];
    struct wire_writer w = {buf, buf, buf + sizeof(buf)};
    struct message message = {.type = type, .id = id};

    wire_write_u32(&w, number);
    if (type == WIRE_VERIFY) {
        wire_write_u32(&w, count);
        wire_write_u64(&w, first);
    }
    struct wire_reader r = {buf, wire_written(&w), false};
    return answers_on_question(&answers, &message, &r, &err);
}

static void expect_sent(enum wire_message_type type, uint64_t id, enum cause cause, uint32_t length)
{
    cr_expect(eq(int, (int)sent.type, (int)type));
    cr_expect(eq(u64, sent.id, id));
    cr_expect(eq(int, (int)sent.cause, (int)cause));
    cr_expect(eq(u32, sent.length, length));
}

Test(answers, of_a_file)
{
    uint8_t digest[DIGEST_SIZE];

    CHECK_OK(ask(WIRE_DIGEST, 7, 1, 0, 0));
    cr_expect(eq(uint, begun, 1));
    cr_expect(eq(uint, sent.count, 0), "another thread computes");
    answers_work(&answers);
    expect_sent(WIRE_DIGEST_REPLY, 7, CAUSE_NONE, DIGEST_SIZE);
    CHECK_OK(image_digest(&dev->image, NULL, digest));
    cr_expect(zero(int, memcmp(sent.digests, digest, DIGEST_SIZE)));
}

Test(answers, of_pieces)
{
    uint8_t digest[DIGEST_SIZE];

    CHECK_OK(ask(WIRE_VERIFY, 8, 1, 1, 0));
    answers_work(&answers);
    expect_sent(WIRE_VERIFY_REPLY, 8, CAUSE_NONE, DIGEST_SIZE);
    CHECK_OK(image_digest_pieces(&dev->image, 0, 1, digest));
    cr_expect(zero(int, memcmp(sent.digests, digest, DIGEST_SIZE)));
    /* Of more than there is, or from somewhere else on: there are no digests. */
    CHECK_OK(ask(WIRE_VERIFY, 9, 1, 2, 0));
    answers_work(&answers);
    expect_sent(WIRE_VERIFY_REPLY, 9, sent.cause, 0);
    cr_expect(ne(int, (int)sent.cause, CAUSE_NONE));
    CHECK_OK(ask(WIRE_VERIFY, 10, 1, 1, 1));
    answers_work(&answers);
    expect_sent(WIRE_VERIFY_REPLY, 10, sent.cause, 0);
    cr_expect(ne(int, (int)sent.cause, CAUSE_NONE));
    cr_expect(eq(uint, sent.count, 3));
}

/* The file goes away while its digest is computed: it is there for that. */
Test(answers, of_a_removed_file)
{
    CHECK_OK(ask(WIRE_DIGEST, 7, 1, 0, 0));
    file_put(catalog_forget(&catalog, 1));
    cr_expect(eq(uint, atomic_load(&dev->refs), 2));
    answers_work(&answers);
    expect_sent(WIRE_DIGEST_REPLY, 7, CAUSE_NONE, DIGEST_SIZE);
    cr_expect(eq(uint, atomic_load(&dev->refs), 1));
}

/* Where no thread can be made the answer is the cause, and the next question is answered. */
Test(answers, without_a_thread)
{
    static const uint8_t nothing[DIGEST_SIZE];

    begin_returns = -1;
    CHECK_OK(ask(WIRE_DIGEST, 7, 1, 0, 0));
    expect_sent(WIRE_DIGEST_REPLY, 7, CAUSE_NO_MEMORY, DIGEST_SIZE);
    cr_expect(zero(int, memcmp(sent.digests, nothing, DIGEST_SIZE)));
    CHECK_OK(ask(WIRE_VERIFY, 8, 1, 1, 0));
    expect_sent(WIRE_VERIFY_REPLY, 8, CAUSE_NO_MEMORY, 0);
    cr_expect(eq(uint, atomic_load(&dev->refs), 2));
    begin_returns = 0;
    CHECK_OK(ask(WIRE_DIGEST, 9, 1, 0, 0));
    answers_work(&answers);
    expect_sent(WIRE_DIGEST_REPLY, 9, CAUSE_NONE, DIGEST_SIZE);
}

Test(answers, one_at_a_time)
{
    CHECK_OK(ask(WIRE_DIGEST, 7, 1, 0, 0));
    CHECK_FAILS(ask(WIRE_DIGEST, 8, 1, 0, 0), CAUSE_PROTOCOL);
    CHECK_FAILS(ask(WIRE_VERIFY, 9, 1, 1, 0), CAUSE_PROTOCOL);
    cr_expect(eq(uint, begun, 1));
    answers_work(&answers);
    expect_sent(WIRE_DIGEST_REPLY, 7, CAUSE_NONE, DIGEST_SIZE);
}

Test(answers, questions_that_make_no_sense)
{
    static const struct {
        enum wire_message_type type;
        uint32_t number, count;
    } cases[] = {
        {WIRE_DIGEST, 0, 0}, {WIRE_DIGEST, 2, 0}, {WIRE_DIGEST, DEVICES + 1, 0},
        {WIRE_DIGEST, UINT32_MAX, 0}, {WIRE_VERIFY, 2, 1}, {WIRE_VERIFY, 1, 0}, {WIRE_VERIFY, 1, WIRE_VERIFY_MAX + 1},
    };
    struct message message = {.type = WIRE_DIGEST, .id = 1};
    uint8_t byte = 1;
    struct wire_reader cut = {&byte, 1, false};

    for (size_t i = 0; i < ARRAY_LENGTH(cases); i++)
        CHECK_FAILS(ask(cases[i].type, 1, cases[i].number, cases[i].count, 0), CAUSE_PROTOCOL);
    CHECK_FAILS(answers_on_question(&answers, &message, &cut, &err), CAUSE_PROTOCOL);
    cr_expect(eq(uint, begun, 0));
    CHECK_OK(ask(WIRE_DIGEST, 7, 1, 0, 0));
    answers_work(&answers);
    cr_expect(eq(uint, sent.count, 1));
}
