/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs the tests under ThreadSanitizer, in the place of Criterion's runner.
 *
 * Criterion starts each test in a sandbox whose memory is mapped at an address
 * that ThreadSanitizer does not allow, so its own runner gives up at once. This
 * one forks for each test, and takes the place of the few functions through which
 * a test speaks to the runner. The assertions themselves stay Criterion's.
 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define EXIT_SKIPPED 77
#define TEST_SECONDS 300 /* then it hangs */

/* The sections in which the macros of Criterion leave tests and suites; the linker names their ends. */
extern struct criterion_test *__start_cr_tst[], *__stop_cr_tst[];
extern struct criterion_suite *__start_cr_sts[] __attribute__((weak)), *__stop_cr_sts[] __attribute__((weak));

/* Of the forked process: the test's thread is the only one that uses them. */
static jmp_buf out_of_test;
static bool failed;

static void print_node(const struct cri_assert_node *node, int depth)
{
    if (node->message)
        fprintf(stderr, "%*s%s\n", depth, "", node->message);
    if (node->repr && !node->pass)
        fprintf(stderr, "%*s%s\n", depth, "", node->repr);
    for (int i = 0; i < CRI_ASSERT_MAX_PARAMS; i++) {
        if (node->params[i].name && node->params[i].type == CRI_ASSERT_RT_STR)
            fprintf(stderr, "%*s  %s: %s\n", depth, "", node->params[i].name, (char *)node->params[i].data);
    }
    for (unsigned i = 0; i < node->nchild; i++)
        print_node(&node->children[i], depth + 2);
}

void cri_assert_node_send(const char *file, size_t line, struct cri_assert_node *tree)
{
    fprintf(stderr, "%s:%zu: assertion failed\n", file, line);
    print_node(tree, 2);
    failed = true;
}

void criterion_continue_test(void)
{
}

void criterion_abort_test(void)
{
    longjmp(out_of_test, 1);
}

void criterion_skip_test(const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    fprintf(stderr, "  ");
    vfprintf(stderr, format, ap);
    fprintf(stderr, "\n");
    va_end(ap);
    exit(EXIT_SKIPPED);
}

void criterion_internal_test_setup(void)
{
}

void criterion_internal_test_main(void (*test)(void))
{
    if (!setjmp(out_of_test))
        test();
}

void criterion_internal_test_teardown(void)
{
}

static const struct criterion_suite *suite_of(const struct criterion_test *test)
{
    static const struct criterion_test_extra_data nothing;
    static const struct criterion_suite none = {"", (struct criterion_test_extra_data *)&nothing};

    for (struct criterion_suite **s = __start_cr_sts; s < __stop_cr_sts; s++) {
        if (!strcmp((*s)->name, test->category))
            return *s;
    }
    return &none;
}

static void run_here(const struct criterion_test *test)
{
    const struct criterion_suite *suite = suite_of(test);

    alarm(TEST_SECONDS);
    if (suite->data->init)
        suite->data->init();
    if (test->data->init)
        test->data->init();
    test->test();
    if (test->data->fini)
        test->data->fini();
    if (suite->data->fini)
        suite->data->fini();
    exit(failed ? EXIT_FAILURE : EXIT_SUCCESS);
}

/* Arguments are names of tests; options are for Criterion's runner. */
static bool is_wanted(const struct criterion_test *test, char **args)
{
    bool named = false;

    for (; *args; args++) {
        if (!strcmp(*args, test->name))
            return true;
        named |= **args != '-';
    }
    return !named;
}

int main(int argc, char **argv)
{
    int failures = 0;

    (void)argc;
    for (struct criterion_test **t = __start_cr_tst; t < __stop_cr_tst; t++) {
        const struct criterion_test *test = *t;
        int status;
        if (!is_wanted(test, argv + 1))
            continue;
        fflush(NULL);
        pid_t pid = fork();
        if (pid == 0)
            run_here(test);
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
            ;
        bool skipped = WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SKIPPED;
        int wanted = test->data->signal;
        bool passed = wanted ? WIFSIGNALED(status) && WTERMSIG(status) == wanted
                             : WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SUCCESS;
        printf("[%s] %s::%s", skipped ? "SKIP" : passed ? "PASS" : "FAIL", test->category, test->name);
        if (!skipped && !passed)
            printf(WIFSIGNALED(status) ? " (signal %d)" : " (exit %d)",
                   WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
        printf("\n");
        failures += !skipped && !passed;
    }
    return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
