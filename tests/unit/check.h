/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Assertions on calls that take a struct error, which is the caller's variable `err`.
 */
#ifndef MIGFS_TEST_CHECK_H
#define MIGFS_TEST_CHECK_H

#include "error.h"

#include <criterion/criterion.h>
#include <criterion/new/assert.h>

/* Criterion 2.4.1's gt(T, a, b) also holds when both are equal: write a > b. */
#pragma GCC poison gt

/* The call succeeds. */
#define CHECK_OK(call)                                                                                      \
    do {                                                                                                    \
        err = (struct error){0};                                                                            \
        int check_ret_ = (call);                                                                            \
        cr_assert(eq(int, check_ret_, 0), "%s: %s", #call, err.message);                                    \
        cr_assert(eq(int, (int)err.cause, CAUSE_NONE), "%s: %s", #call, err.message);                       \
    } while (0)

/* The call fails with that cause, and with a sentence. */
#define CHECK_FAILS(call, expected)                                                                         \
    do {                                                                                                    \
        err = (struct error){0};                                                                            \
        int check_ret_ = (call);                                                                            \
        cr_assert(lt(int, check_ret_, 0), "%s did not fail with %s", #call, #expected);                     \
        cr_assert(eq(int, (int)err.cause, (int)(expected)), "%s: %s", #call, err.message);                  \
        cr_assert(ne(str, err.message, ""), "%s", #call);                                                   \
    } while (0)

#define ARRAY_LENGTH(a) (sizeof(a) / sizeof((a)[0]))

#endif
