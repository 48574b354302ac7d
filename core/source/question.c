/* SPDX-License-Identifier: Apache-2.0 */
/* Questions to the destination; see question.h. */
#include "question.h"
#include "cleanup.h"

#include <errno.h>
#include <string.h>

void question_init(struct question *question, struct source *source)
{
    question->source = source;
    question_forget(question);
}

void question_forget(struct question *question)
{
    question->id = 0;
}

/* What is asked. */
struct wording {
    enum wire_message_type type;
    const void *body;
    uint32_t length;
};

/*
 * Asks, when no question is open any more. Returns the question's id; 0 when the migration has left @during,
 * the file was removed, or the wait was interrupted. @digests stays until await_answer() has returned.
 */
static uint64_t ask(struct question *question, const struct file *file, enum state during,
                    const struct wording *wording, uint8_t *digests, size_t size,
                    const struct interrupt *interrupt)
{
    struct migration *m = question->source->m;
    struct connection *conn = source_connection(question->source);

    pthread_mutex_lock(&m->lock);
    while (m->state == during && question->id && !interrupt_is_hit(interrupt))
        pthread_cond_wait(&m->changed, &m->lock);
    bool asks = m->state == during && !interrupt_is_hit(interrupt) && !file_is_removed(file);
    uint64_t id = asks ? connection_next_id(conn) : 0;
    if (id) {
        question->id = id;
        question->type = wording->type;
        question->there = false;
        question->digests = digests;
        question->size = size;
        /* With the lock held, before the news that the file is removed. */
        session_send(&conn->main, wording->type, id, wording->body, wording->length);
    }
    pthread_mutex_unlock(&m->lock);
    return id;
}

/* Waits for the answer, or (@leave) not: the thread that reads it throws it away. */
static int await_answer(struct question *question, const struct file *file, uint64_t id, bool leave,
                        const struct interrupt *interrupt, struct error *err)
{
    struct migration *m = question->source->m;

    SCOPED_LOCK(&m->lock);
    while (!leave && state_is_running(m->state) && question->id == id && !question->there &&
           !interrupt_is_hit(interrupt))
        pthread_cond_wait(&m->changed, &m->lock);
    bool ours = question->id == id;
    if (ours && question->there) {
        question->id = 0;
        pthread_cond_broadcast(&m->changed);
        if (question->cause != CAUSE_NONE)
            return error_set(err, question->cause, "the destination cannot read '%.64s'", file->name);
        return 0;
    }
    if (ours) {
        question->there = true;
        question->digests = NULL;
    }
    if (state_is_running(m->state))
        return error_set(err, CAUSE_INTERRUPTED, "interrupted");
    return error_set(err, m->failure.cause, "%s", m->failure.message);
}

int question_digest(struct question *question, struct file *file, const struct interrupt *interrupt,
                    uint8_t digest[DIGEST_SIZE], struct error *err)
{
    uint8_t buf[4];
    struct wire_writer body = wire_writer_of(buf, sizeof(buf));
    struct wording wording = {WIRE_DIGEST, buf, sizeof(buf)};

    if (source_allows(question->source, COMMAND_SYNC, err) < 0)
        return -EIO;
    wire_write_u32(&body, file->id);
    uint64_t id = ask(question, file, STATE_ACTIVE, &wording, digest, DIGEST_SIZE, interrupt);
    if (id)
        return await_answer(question, file, id, false, interrupt, err);
    if (source_allows(question->source, COMMAND_SYNC, err) < 0)
        return -EIO;
    if (file_is_removed(file))
        return error_set(err, CAUSE_NOT_FOUND, "the device has been removed");
    return error_set(err, CAUSE_INTERRUPTED, "interrupted");
}

/*
 * Verifying: the RAM's file and what the destination has are compared piece by piece, by their digests. A
 * thousand at a time, so that nobody works long for a thread that has left.
 */
#define VERIFY_PIECES 1024u

struct verification {
    struct question *question;
    const struct interrupt *interrupt;
    struct reference_reader reader;
};

static ssize_t read_for_verification(void *arg, uint64_t offset, void *buf, size_t len)
{
    struct verification *v = arg;

    return reference_read(&v->reader, offset, buf, len);
}

static bool verification_stops(void *arg)
{
    struct verification *v = arg;

    return interrupt_is_hit(v->interrupt) || atomic_load(&v->question->source->m->state) != STATE_COMPLETING;
}

/* The first piece whose digests differ, or @count. */
static uint32_t first_difference(const uint8_t *ours, const uint8_t *theirs, uint32_t count)
{
    uint32_t i = 0;

    while (i < count && !memcmp(ours + i * DIGEST_SIZE, theirs + i * DIGEST_SIZE, DIGEST_SIZE))
        i++;
    return i;
}

static int verify_pieces(struct verification *v, const struct digest_source *image, uint64_t first,
                         uint32_t count, uint8_t *digests, struct error *err)
{
    struct question *question = v->question;
    struct file *ram = question->source->m->files[WIRE_RAM];
    uint8_t *theirs = digests + (size_t)count * DIGEST_SIZE;
    uint8_t buf[16];
    struct wire_writer body = wire_writer_of(buf, sizeof(buf));
    struct wording wording = {WIRE_VERIFY, buf, sizeof(buf)};

    wire_write_u32(&body, WIRE_RAM);
    wire_write_u32(&body, count);
    wire_write_u64(&body, first);
    uint64_t id =
        ask(question, ram, STATE_COMPLETING, &wording, theirs, (size_t)count * DIGEST_SIZE, v->interrupt);
    if (!id)
        return error_set(err, CAUSE_INTERRUPTED, "interrupted");
    /* Both ends compute at the same time. */
    int ret = digest_pieces(image, first, count, digests);
    struct error lost = {0};
    int answered = await_answer(question, ram, id, ret < 0, v->interrupt, &lost);
    if (ret == -ECANCELED) {
        /* If the migration has ended, that is why. */
        *err = lost;
        return error_set(err, CAUSE_INTERRUPTED, "interrupted");
    }
    if (ret == -ENODATA)
        return error_set(err, CAUSE_IO, "the RAM source has become shorter");
    if (ret < 0)
        return error_set_errno(err, ret, "cannot read the RAM source to verify it");
    if (answered < 0) {
        *err = lost;
        return -EIO;
    }
    uint32_t differs = first_difference(digests, theirs, count);
    if (differs < count)
        return error_set(
            err, CAUSE_MISMATCH,
            "'%.64s' is not the same at both ends in the MiB at offset %llu: damaged on the way, or "
            "changed after it was sent",
            ram->name, (unsigned long long)(first + differs) * DIGEST_PIECE);
    uint64_t end = (first + count) * DIGEST_PIECE;
    atomic_store(&question->verified, end < image->size ? end : image->size);
    return 0;
}

int question_verify(struct question *question, const struct interrupt *interrupt, struct error *err)
{
    struct source *source = question->source;
    struct migration *m = source->m;
    struct verification v = {.question = question, .interrupt = interrupt};
    struct digest_source image = {
        .size = atomic_load(&m->files[WIRE_RAM]->size),
        .read = read_for_verification,
        .stop = verification_stops,
        .arg = &v,
    };
    uint64_t pieces = (image.size + DIGEST_PIECE - 1) / DIGEST_PIECE;
    int ret = 0;

    if (!m->settings.verify || !source->reference)
        return 0;
    CLEANUP_FREE uint8_t *digests = malloc((size_t)VERIFY_PIECES * 2 * DIGEST_SIZE);
    pthread_mutex_lock(&m->lock);
    v.reader = reference_open(source->reference);
    pthread_mutex_unlock(&m->lock);
    CLEANUP_FD int mine = v.reader.fd;
    if (!digests || mine < 0)
        return error_set(err, CAUSE_NO_MEMORY, "not enough memory or descriptors to verify the RAM");
    atomic_store(&question->verified, 0);
    for (uint64_t first = 0; first < pieces && ret == 0; first += VERIFY_PIECES) {
        uint64_t rest = pieces - first;
        uint32_t count = rest < VERIFY_PIECES ? (uint32_t)rest : VERIFY_PIECES;
        ret = verify_pieces(&v, &image, first, count, digests, err);
    }
    return ret;
}

int question_on_answer(struct question *question, const struct message *message, struct wire_reader *body,
                       struct error *err)
{
    enum wire_message_type type = message->type == WIRE_VERIFY_REPLY ? WIRE_VERIFY : WIRE_DIGEST;
    struct migration *m = question->source->m;
    uint32_t cause = wire_read_u32(body);

    SCOPED_LOCK(&m->lock);
    size_t want = type == WIRE_VERIFY && cause != CAUSE_NONE ? 0 : question->size;
    if (body->bad || !message->id || message->id != question->id || type != question->type ||
        body->left != want)
        return error_set(err, CAUSE_PROTOCOL, "an answer that nobody asked for");
    if (question->there) {
        question->id = 0; /* the thread that asked has left */
    } else {
        memcpy(question->digests, body->p, want);
        /* Not what only this side's user can have. */
        bool odd = cause == CAUSE_INTERRUPTED || cause == CAUSE_AGAIN || cause >= CAUSE_MAX;
        question->cause = odd ? CAUSE_PEER : (enum cause)cause;
        question->there = true;
    }
    pthread_cond_broadcast(&m->changed);
    return 0;
}

bool question_is_answer_due(const struct question *question)
{
    /* A question whose asker has left is in the way of the next one. */
    return question->id && (!question->there || !question->digests);
}
