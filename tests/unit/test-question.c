/* SPDX-License-Identifier: Apache-2.0 */
/* Questions of a source whose destination the test plays. */
#include "question.h"
#include "bed.h"
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MIB ((uint64_t)DIGEST_PIECE)

static struct bed bed;
static struct migration *m;
static struct question question;
static struct file *ram, *device;
static const struct interrupt hit = {true};

static void set_up(void)
{
    bed_init(&bed);
    m = bed.m;
    ram = m->files[WIRE_RAM];
    question_init(&question, &bed.source);
}

static void set_up_active(void)
{
    set_up();
    bed_activate(&bed);
    device = bed_device(&bed, "x");
}

static void end(void)
{
    bed_fini(&bed);
}

TestSuite(question, .init = set_up_active);
TestSuite(question_before, .init = set_up);

struct asker {
    struct bed_call call;
    struct file *file; /* NULL: question_verify() */
    uint8_t digest[DIGEST_SIZE];
};

static void work(void *arg)
{
    struct asker *a = arg;
    struct bed_call *call = &a->call;

    call->ret = a->file ? question_digest(&question, a->file, &call->interrupt, a->digest, &call->err)
                        : question_verify(&question, &call->interrupt, &call->err);
}

static void ask(struct asker *a, struct file *file)
{
    *a = (struct asker){.file = file};
    worker_start(&a->call.worker, work, a);
}

static void interrupt(struct asker *a)
{
    bed_interrupt(&bed, &a->call);
    bed_fails(&a->call, CAUSE_INTERRUPTED, "interrupted");
}

static uint64_t asked_for(uint32_t file)
{
    uint64_t id;
    struct wire_reader body = bed_said(&bed, WIRE_DIGEST, &id);

    cr_expect(eq(u32, wire_read_u32(&body), file));
    cr_expect(wire_read_done(&body));
    return id;
}

/* The destination answers; @size bytes of digests, each of them @fill. */
static int answer(enum wire_message_type type, uint64_t id, uint32_t cause, size_t size, int fill,
                  struct error *err)
{
    static uint8_t buf[4 + 64];
    struct wire_writer w = {buf, buf, buf + sizeof(buf)};
    struct message message = {.type = type, .id = id};

    wire_write_u32(&w, cause);
    memset(w.p, fill, size);
    struct wire_reader body = {.p = buf, .left = 4 + size};
    return question_on_answer(&question, &message, &body, err);
}

static void answers(uint64_t id, uint32_t cause)
{
    struct error err;

    CHECK_OK(answer(WIRE_DIGEST_REPLY, id, cause, DIGEST_SIZE, 7, &err));
}

Test(question_before, not_started)
{
    uint8_t digest[DIGEST_SIZE];
    struct error err;

    CHECK_FAILS(question_digest(&question, ram, NULL, digest, &err), CAUSE_NOT_STARTED);
    CHECK_FAILS(answer(WIRE_DIGEST_REPLY, 0, CAUSE_NONE, DIGEST_SIZE, 1, &err), CAUSE_PROTOCOL);
    cr_expect(not(question_is_answer_due(&question)));
    end();
}

Test(question, only_what_was_asked_is_answered)
{
    struct asker a;
    struct error err;
    struct message message = {.type = WIRE_DIGEST_REPLY};
    uint8_t few[2] = {0};
    struct wire_reader body = {.p = few, .left = sizeof(few)};

    CHECK_FAILS(answer(WIRE_DIGEST_REPLY, 0, CAUSE_NONE, 0, 1, &err), CAUSE_PROTOCOL);
    cr_expect(eq(str, err.message, "an answer that nobody asked for"));
    ask(&a, device);
    uint64_t id = asked_for(1);
    cr_expect(question_is_answer_due(&question));
    bed_waits(&a.call);
    CHECK_FAILS(answer(WIRE_DIGEST_REPLY, id + 1, CAUSE_NONE, DIGEST_SIZE, 1, &err), CAUSE_PROTOCOL);
    CHECK_FAILS(answer(WIRE_DIGEST_REPLY, 0, CAUSE_NONE, DIGEST_SIZE, 1, &err), CAUSE_PROTOCOL);
    CHECK_FAILS(answer(WIRE_VERIFY_REPLY, id, CAUSE_NONE, DIGEST_SIZE, 1, &err), CAUSE_PROTOCOL);
    CHECK_FAILS(answer(WIRE_VERIFY_REPLY, id, CAUSE_IO, 0, 1, &err), CAUSE_PROTOCOL);
    CHECK_FAILS(answer(WIRE_DIGEST_REPLY, id, CAUSE_NONE, DIGEST_SIZE - 1, 1, &err), CAUSE_PROTOCOL);
    CHECK_FAILS(answer(WIRE_DIGEST_REPLY, id, CAUSE_NONE, DIGEST_SIZE + 1, 1, &err), CAUSE_PROTOCOL);
    CHECK_FAILS(answer(WIRE_DIGEST_REPLY, id, CAUSE_IO, 0, 1, &err), CAUSE_PROTOCOL);
    message.id = id;
    CHECK_FAILS(question_on_answer(&question, &message, &body, &err), CAUSE_PROTOCOL);
    bed_waits(&a.call);
    answers(id, CAUSE_NONE);
    bed_works(&a.call);
    for (size_t i = 0; i < DIGEST_SIZE; i++)
        cr_expect(eq(int, a.digest[i], 7));
    cr_expect(not(question_is_answer_due(&question)));
    CHECK_FAILS(answer(WIRE_DIGEST_REPLY, id, CAUSE_NONE, DIGEST_SIZE, 1, &err), CAUSE_PROTOCOL);
    bed_quiet(&bed);
    end();
}

Test(question, one_at_a_time)
{
    struct asker first, second;

    ask(&first, device);
    uint64_t id = asked_for(1);
    bed_waits(&first.call);
    ask(&second, ram);
    bed_waits(&second.call);
    bed_quiet(&bed);
    answers(id, CAUSE_NONE);
    bed_works(&first.call);
    uint64_t next = asked_for(WIRE_RAM);
    cr_expect(eq(u64, next, id + 1));
    bed_waits(&second.call);
    answers(next, CAUSE_NONE);
    bed_works(&second.call);
    end();
}

Test(question, what_the_destination_cannot_read)
{
    static const struct {
        uint32_t says;
        enum cause means;
    } causes[] = {{CAUSE_IO, CAUSE_IO},       {CAUSE_INTERRUPTED, CAUSE_PEER}, {CAUSE_AGAIN, CAUSE_PEER},
                  {CAUSE_MAX, CAUSE_PEER},    {CAUSE_MAX + 1, CAUSE_PEER},     {UINT32_MAX, CAUSE_PEER},
                  {CAUSE_QUOTA, CAUSE_QUOTA}, {CAUSE_MAX - 1, CAUSE_MAX - 1}};

    for (size_t i = 0; i < ARRAY_LENGTH(causes); i++) {
        struct asker a;
        ask(&a, device);
        uint64_t id = asked_for(1);
        answers(id, causes[i].says);
        bed_fails(&a.call, causes[i].means, "the destination cannot read 'x'");
    }
    end();
}

/* A thread that leaves leaves the question open: the next one waits for the answer, too. */
Test(question, late_answer)
{
    struct asker a, next;
    struct error err;

    ask(&a, device);
    uint64_t id = asked_for(1);
    bed_waits(&a.call);
    interrupt(&a);
    cr_expect(question_is_answer_due(&question), "the answer is in the way");
    ask(&next, ram);
    bed_waits(&next.call);
    bed_quiet(&bed);
    answers(id, CAUSE_NONE);
    cr_expect(eq(int, a.digest[0], 0), "nobody waits for it");
    id = asked_for(WIRE_RAM);
    cr_expect(question_is_answer_due(&question));
    answers(id, CAUSE_NONE);
    bed_works(&next.call);
    cr_expect(eq(int, next.digest[DIGEST_SIZE - 1], 7));
    CHECK_FAILS(answer(WIRE_DIGEST_REPLY, id, CAUSE_NONE, DIGEST_SIZE, 1, &err), CAUSE_PROTOCOL);
    end();
}

Test(question, waiting_for_the_turn)
{
    struct asker a, next;
    struct error err;
    uint8_t digest[DIGEST_SIZE];

    CHECK_FAILS(question_digest(&question, device, &hit, digest, &err), CAUSE_INTERRUPTED);
    bed_quiet(&bed);
    ask(&a, ram);
    uint64_t id = asked_for(WIRE_RAM);
    ask(&next, device);
    bed_waits(&next.call);
    interrupt(&next);
    ask(&next, device);
    bed_waits(&next.call);
    atomic_store(&device->removed, true);
    answers(id, CAUSE_NONE);
    bed_works(&a.call);
    bed_fails(&next.call, CAUSE_NOT_FOUND, "the device has been removed");
    bed_quiet(&bed);
    atomic_store(&device->removed, false);
    ask(&a, ram);
    asked_for(WIRE_RAM);
    ask(&next, device);
    bed_waits(&a.call);
    bed_waits(&next.call);
    bed_fail(&bed, CAUSE_RESET, "gone");
    bed_fails(&a.call, CAUSE_RESET, "gone");
    bed_fails(&next.call, CAUSE_RESET, "gone");
    bed_quiet(&bed);
    end();
}

/*
 * verify
 */

static int image;

/* RAM by reference of so many bytes, all of them holes; the migration completes. */
static void begin_to_verify(uint64_t size)
{
    struct error err = {0};

    image = memfd_create("ram", 0);
    cr_assert(zero(int, ftruncate(image, (off_t)size)));
    struct reference *ref = reference_new(dup(image), "fd:7", &err);
    cr_assert(ne(ptr, ref, NULL), "%s", err.message);
    bed.source.reference = ref;
    atomic_store(&ram->size, size);
    m->settings.verify = true;
    bed_move(&bed, STATE_COMPLETING);
}

static uint64_t asked_to_verify(uint32_t count, uint64_t first)
{
    uint64_t id;
    struct wire_reader body = bed_said(&bed, WIRE_VERIFY, &id);

    cr_expect(eq(u32, wire_read_u32(&body), WIRE_RAM));
    cr_expect(eq(u32, wire_read_u32(&body), count));
    cr_expect(eq(u64, wire_read_u64(&body), first));
    cr_expect(wire_read_done(&body));
    return id;
}

static ssize_t read_nothing(void *arg, uint64_t offset, void *buf, size_t len)
{
    (void)arg, (void)offset, (void)buf, (void)len;
    return 0;
}

/* The digests of an image that is a hole; @wrong: the piece whose digest differs, or -1. */
static void answer_of_holes(uint64_t id, uint64_t size, uint64_t first, uint32_t count, int64_t wrong)
{
    const struct digest_source holes = {.size = size, .read = read_nothing};
    struct message message = {.type = WIRE_VERIFY_REPLY, .id = id};
    uint8_t *buf = calloc(1, 4 + count * DIGEST_SIZE);
    struct error err;

    cr_assert(zero(int, digest_pieces(&holes, first, count, buf + 4)));
    if (wrong >= 0)
        buf[4 + wrong * DIGEST_SIZE + DIGEST_SIZE - 1] ^= 1;
    struct wire_reader body = {.p = buf, .left = 4 + count * DIGEST_SIZE};
    CHECK_OK(question_on_answer(&question, &message, &body, &err));
    free(buf);
}

static void end_verified(void)
{
    close(image);
    end();
}

Test(question, verify_is_off)
{
    struct error err;

    begin_to_verify(MIB);
    m->settings.verify = false;
    CHECK_OK(question_verify(&question, NULL, &err));
    m->settings.verify = true;
    struct reference *ref = atomic_exchange(&bed.source.reference, NULL);
    CHECK_OK(question_verify(&question, NULL, &err));
    reference_free(ref);
    bed_quiet(&bed);
    end_verified();
}

Test(question, verify_a_thousand_at_a_time)
{
    static const struct {
        uint64_t size;
        uint32_t last;
    } sizes[] = {{1024 * MIB, 0},
                 {1024 * MIB + 1, 1},
                 {1026 * MIB, 2},
                 {1023 * MIB + 4096, 0},
                 {2049 * MIB - 1, 1025}};

    begin_to_verify(2049 * MIB);
    for (size_t i = 0; i < ARRAY_LENGTH(sizes); i++) {
        struct asker a;
        uint64_t size = sizes[i].size;
        cr_assert(zero(int, ftruncate(image, (off_t)size)));
        atomic_store(&ram->size, size);
        ask(&a, NULL);
        uint64_t id = asked_to_verify(1024, 0);
        cr_expect(zero(u64, atomic_load(&question.verified)));
        answer_of_holes(id, size, 0, 1024, -1);
        if (sizes[i].last) {
            uint32_t count = sizes[i].last < 1024 ? sizes[i].last : 1024;
            id = asked_to_verify(count, 1024);
            cr_expect(eq(u64, atomic_load(&question.verified), 1024 * MIB));
            answer_of_holes(id, size, 1024, count, -1);
        }
        if (sizes[i].last > 1024) {
            id = asked_to_verify(1, 2048);
            answer_of_holes(id, size, 2048, 1, -1);
        }
        bed_works(&a.call);
        cr_expect(eq(u64, atomic_load(&question.verified), size), "%zu", i);
        bed_quiet(&bed);
    }
    end_verified();
}

Test(question, verify_names_the_first_difference)
{
    struct asker a;

    begin_to_verify(1027 * MIB);
    ask(&a, NULL);
    answer_of_holes(asked_to_verify(1024, 0), 1027 * MIB, 0, 1024, 5);
    bed_fails(&a.call, CAUSE_MISMATCH,
          "'ram' is not the same at both ends in the MiB at offset 5242880: damaged on the way, or changed "
          "after it "
          "was sent");
    cr_expect(zero(u64, atomic_load(&question.verified)));
    ask(&a, NULL);
    answer_of_holes(asked_to_verify(1024, 0), 1027 * MIB, 0, 1024, -1);
    answer_of_holes(asked_to_verify(3, 1024), 1027 * MIB, 1024, 3, 2);
    bed_fails(&a.call, CAUSE_MISMATCH,
          "'ram' is not the same at both ends in the MiB at offset 1075838976: damaged on the way, or "
          "changed after "
          "it was sent");
    cr_expect(eq(u64, atomic_load(&question.verified), 1024 * MIB));
    end_verified();
}

Test(question, verify_what_the_destination_cannot_read)
{
    struct asker a;
    struct error err;

    begin_to_verify(3 * MIB);
    ask(&a, NULL);
    uint64_t id = asked_to_verify(3, 0);
    CHECK_FAILS(answer(WIRE_VERIFY_REPLY, id, CAUSE_IO, 3 * DIGEST_SIZE, 1, &err), CAUSE_PROTOCOL);
    CHECK_FAILS(answer(WIRE_VERIFY_REPLY, id, CAUSE_NONE, 0, 1, &err), CAUSE_PROTOCOL);
    CHECK_FAILS(answer(WIRE_DIGEST_REPLY, id, CAUSE_NONE, 3 * DIGEST_SIZE, 1, &err), CAUSE_PROTOCOL);
    CHECK_OK(answer(WIRE_VERIFY_REPLY, id, CAUSE_IO, 0, 1, &err));
    bed_fails(&a.call, CAUSE_IO, "the destination cannot read 'ram'");
    end_verified();
}

Test(question, verify_what_has_become_shorter)
{
    struct asker a;

    begin_to_verify(3 * MIB);
    cr_assert(zero(int, ftruncate(image, 2 * MIB + 5)));
    ask(&a, NULL);
    asked_to_verify(3, 0);
    bed_fails(&a.call, CAUSE_IO, "the RAM source has become shorter");
    cr_expect(question_is_answer_due(&question), "the answer is thrown away when it comes");
    end_verified();
}

Test(question, verify_what_cannot_be_read)
{
    struct error err;

    begin_to_verify(3 * MIB);
    reference_close(bed.source.reference);
    CHECK_FAILS(question_verify(&question, NULL, &err), CAUSE_NO_MEMORY);
    bed_quiet(&bed);
    end_verified();
}

/* Not the file that it was, and nothing that can be read. */
Test(question, verify_what_is_no_file_any_more)
{
    struct asker a;
    int directory = open("/", O_RDONLY | O_DIRECTORY);

    begin_to_verify(3 * MIB);
    cr_assert(le(int, 0, dup2(directory, bed.source.reference->fd)));
    ask(&a, NULL);
    asked_to_verify(3, 0);
    bed_fails(&a.call, CAUSE_IO, "cannot read the RAM source to verify it: Is a directory");
    close(directory);
    end_verified();
}

Test(question, verify_is_interrupted)
{
    struct asker a;
    struct error err;

    begin_to_verify(3 * MIB);
    CHECK_FAILS(question_verify(&question, &hit, &err), CAUSE_INTERRUPTED);
    bed_quiet(&bed);
    ask(&a, NULL);
    uint64_t id = asked_to_verify(3, 0);
    bed_waits(&a.call);
    interrupt(&a);
    cr_expect(question_is_answer_due(&question));
    answer_of_holes(id, 3 * MIB, 0, 3, -1);
    cr_expect(not(question_is_answer_due(&question)));
    ask(&a, NULL);
    id = asked_to_verify(3, 0);
    answer_of_holes(id, 3 * MIB, 0, 3, -1);
    bed_works(&a.call);
    ask(&a, NULL);
    asked_to_verify(3, 0);
    bed_waits(&a.call);
    bed_fail(&bed, CAUSE_CANCELLED, "cancelled");
    bed_fails(&a.call, CAUSE_CANCELLED, "cancelled");
    CHECK_FAILS(question_verify(&question, NULL, &err), CAUSE_INTERRUPTED);
    bed_quiet(&bed);
    end_verified();
}
