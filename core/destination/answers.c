/* SPDX-License-Identifier: Apache-2.0 */
/* Answers about the bytes that are here; see answers.h. */
#include "answers.h"
#include "cleanup.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

void answers_init(struct answers *answers, const struct catalog *catalog,
                  const struct answers_operations *operations, void *owner)
{
    *answers = (struct answers){.operations = operations, .owner = owner, .catalog = catalog};
}

/* The bytes of the digests that the open question is about. */
static uint32_t digests_size(const struct answers *answers)
{
    return (answers->question.type == WIRE_VERIFY ? answers->question.count : 1) * DIGEST_SIZE;
}

/*
 * Answers the question that is open. @body: where the answer is written; the digests are in it, behind the
 * cause.
 */
static void answer(struct answers *answers, enum cause cause, uint8_t *body)
{
    bool verifies = answers->question.type == WIRE_VERIFY;
    uint64_t id = answers->question.id;
    struct wire_writer w = {body, body, body + 4};
    uint32_t size = digests_size(answers);

    wire_write_u32(&w, cause);
    if (cause != CAUSE_NONE && verifies)
        size = 0;
    else if (cause != CAUSE_NONE)
        memset(body + 4, 0, size);
    /* The source may ask again as soon as it has the answer. */
    atomic_store(&answers->open, false);
    answers->operations->send(answers->owner, verifies ? WIRE_VERIFY_REPLY : WIRE_DIGEST_REPLY, id, body,
                              4 + size);
}

static int compute(const struct answers *answers, uint8_t *digests)
{
    struct file *file = answers->question.file;

    if (answers->question.type == WIRE_VERIFY)
        return image_digest_pieces(&file->image, answers->question.first, answers->question.count, digests);
    return image_digest(&file->image, NULL, digests);
}

void answers_work(struct answers *answers)
{
    uint8_t few[4 + DIGEST_SIZE];
    CLEANUP_FREE uint8_t *many = malloc(4 + digests_size(answers));

    int ret = many ? compute(answers, many + 4) : -ENOMEM;
    file_put(answers->question.file);
    answer(answers, ret < 0 ? error_cause_of_errno(ret) : CAUSE_NONE, many ? many : few);
}

int answers_on_question(struct answers *answers, const struct message *message, struct wire_reader *body,
                        struct error *err)
{
    bool verifies = message->type == WIRE_VERIFY;
    uint32_t number = wire_read_u32(body), count = 0;
    uint64_t first = 0;
    uint8_t few[4 + DIGEST_SIZE];
    struct error failure = {0};

    if (verifies) {
        count = wire_read_u32(body);
        first = wire_read_u64(body);
    }
    if (!wire_read_done(body) || !catalog_has(answers->catalog, number))
        return error_set(err, CAUSE_PROTOCOL, "a question about a file that does not exist");
    if (verifies && (!count || count > WIRE_VERIFY_MAX))
        return error_set(err, CAUSE_PROTOCOL, "a question about %u pieces of a file", count);
    if (atomic_exchange(&answers->open, true))
        return error_set(err, CAUSE_PROTOCOL, "a question while another one is open");
    answers->question.type = message->type;
    answers->question.id = message->id;
    answers->question.first = first;
    answers->question.count = count;
    answers->question.file = file_get(catalog_file(answers->catalog, number));
    if (answers->operations->begin(answers->owner, &failure) < 0) {
        file_put(answers->question.file);
        answer(answers, failure.cause, few);
    }
    return 0;
}
